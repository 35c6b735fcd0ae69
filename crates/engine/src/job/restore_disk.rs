//! Restore of one disk of a version into an image or onto a device.
//!
//! ```text
//!   plan      version + wishes ──► shape of the image, mode
//!   execute   New, Replace   space? ─► create .NAME.partial ─► leaves on all cores ─► finish: renamed
//!                                │ fails: kept beside a note of how far it is durable; the next run goes on from there
//!             InPlace        open for writing ─► compare by hashes ─► write only the blocks that differ ─► flush
//! ```
//!
//! Every block is hashed against the tree before it is written. Zero ranges are not written into a new image. An
//! interrupted run leaves nothing under the image's own name; interrupted in place, it is simply run again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use block::geometry::{self, LEAF_SIZE_BYTES};
use block::sync::SlotSet;
use block::{BLOCK_SIZE_BYTES, BlockIndex, LeafIndex, NodeHash, ReadAt};
use repo::lease::LeaseKind;
use repo::{
    BulkRead, DiskVersion, PointSelector, ReadProtection, ReadSession, RecoveryPoint, Repository,
    VersionReader,
};
use serde::{Deserialize, Serialize};
use vdisk::image::{self, CreateOptions, IfExists, ImageProfile, ImageWriter, WriteOrder};
use vdisk::vhdx::IdSource;
use vdisk::{Format, Subformat};

use super::target::{InPlaceTarget, free_bytes, open_in_place};
use super::{JobContext, Steps, choose_disk};
use crate::compare::{LeafWindow, compare_with_tree};
use crate::profile::{format_word, profile_from, subformat_word};
use crate::{Error, ErrorKind, Result};

/// Leaves between two flushes of a new image: 8 GiB of disk.
const LEAVES_PER_FLUSH: u64 = 1024;
/// Leaves compared and then written, in place: what differs in them is held in memory.
const LEAVES_PER_WINDOW: u64 = 16_384;

/// What happens to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreMode {
    /// It must not exist.
    New,
    /// It is replaced at the moment when the new image is whole.
    Replace,
    /// Only what differs in it is written.
    InPlace,
}

/// Whether the written image is read again at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Proof {
    /// No: every block was hashed before it was written.
    #[default]
    BeforeWriting,
    /// Yes: it is read, hashed and compared with the version's tree.
    ReadBack,
}

/// What is to be restored, and how.
#[derive(Clone)]
pub struct RestoreRequest {
    /// The version.
    pub selector: PointSelector,
    /// Which disk; may be left away when there is only one.
    pub label: Option<String>,
    /// Image file or block device.
    pub target: PathBuf,
    /// The format to write; the source's when absent.
    pub format: Option<Format>,
    /// How space is taken; as in the source when absent.
    pub subformat: Option<Subformat>,
    /// Whose identity the disk gets.
    pub identity: Identity,
    /// What happens to the target.
    pub mode: RestoreMode,
    /// Whether the image is read again.
    pub proof: Proof,
    /// Threads; chosen when absent.
    pub workers: Option<usize>,
    /// Where new ids come from.
    pub ids: IdSource,
}

/// Whose identity a restored disk gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identity {
    /// The source's, where the format has one.
    #[default]
    Source,
    /// A new one: for a copy that runs beside the original.
    New,
}

impl RestoreRequest {
    /// An ordinary restore into a new image of the source's shape.
    pub fn new(selector: PointSelector, target: impl Into<PathBuf>, ids: IdSource) -> Self {
        Self {
            selector,
            label: None,
            target: target.into(),
            format: None,
            subformat: None,
            identity: Identity::Source,
            mode: RestoreMode::New,
            proof: Proof::default(),
            workers: None,
            ids,
        }
    }
}

/// What a restore will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestorePlan {
    /// The version, as NAME@SEQUENCE.
    pub version: String,
    /// Its disk.
    pub label: String,
    /// Root of the disk.
    pub root: String,
    /// Length of the disk.
    pub length_bytes: u64,
    /// Where it goes.
    pub target: PathBuf,
    /// Format of the image; in place, the one that the target has.
    pub format: Option<String>,
    /// How the image takes its space.
    pub subformat: Option<String>,
    /// What happens to the target.
    pub mode: RestoreMode,
    /// Ranges of the version that were left out or could not be read: they come back as zeros.
    pub zeroed_ranges: usize,
}

impl fmt::Display for RestorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target.display();
        let (version, label, bytes) = (&self.version, &self.label, self.length_bytes);
        match (self.mode, &self.format, &self.subformat) {
            (RestoreMode::InPlace, ..) => write!(
                f,
                "write what differs from {label} of {version} into {target}"
            )?,
            (mode, format, subformat) => {
                let shape = [subformat, format]
                    .map(|word| word.as_deref().unwrap_or("raw"))
                    .join(" ");
                let verb = if mode == RestoreMode::Replace {
                    "replace"
                } else {
                    "make"
                };
                write!(
                    f,
                    "{verb} {target} ({shape}, {bytes} bytes) from {label} of {version}"
                )?;
            }
        }
        if self.zeroed_ranges > 0 {
            write!(f, "; {} ranges come back as zeros", self.zeroed_ranges)?;
        }
        Ok(())
    }
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreReport {
    /// What was done.
    #[serde(flatten)]
    pub plan: RestorePlan,
    /// Whether it went on where an interrupted run had stopped.
    pub resumed: bool,
    /// Bytes of the version written into the target.
    pub written_bytes: u64,
    /// Bytes of the target zeroed, in place.
    pub zeroed_bytes: u64,
    /// Bytes of the target read, in place or for the proof.
    pub read_back_bytes: u64,
    /// Whether the whole target was compared with the version's tree.
    pub is_proved: bool,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// Works out what a restore would do.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such version or disk, [`ErrorKind::Unsupported`] when its format is not known.
pub fn plan_restore_disk(repository: &Repository, request: &RestoreRequest) -> Result<RestorePlan> {
    let point = repository.find_point(&request.selector)?.point;
    let disk = choose_disk(&point, request.label.as_deref())?;
    plan_on(request, &point, disk).map(|(plan, _)| plan)
}

fn plan_on(
    request: &RestoreRequest,
    point: &RecoveryPoint,
    disk: &DiskVersion,
) -> Result<(RestorePlan, Option<ImageProfile>)> {
    let profile = match request.mode {
        RestoreMode::InPlace => None,
        RestoreMode::New | RestoreMode::Replace => Some(wanted_profile(request, disk)?),
    };
    let left_out = disk
        .omissions
        .as_ref()
        .map_or(0, |omissions| omissions.ranges.len());
    let plan = RestorePlan {
        version: format!("{}@{}", point.name, point.sequence),
        label: disk.label.clone(),
        root: disk.root.to_string(),
        length_bytes: disk.length_bytes,
        target: request.target.clone(),
        format: profile
            .as_ref()
            .map(|profile| format_word(profile.format).to_owned()),
        subformat: profile
            .as_ref()
            .map(|profile| subformat_word(profile.subformat).to_owned()),
        mode: request.mode,
        zeroed_ranges: left_out.saturating_add(disk.unreadable.len()),
    };
    Ok((plan, profile))
}

fn wanted_profile(request: &RestoreRequest, disk: &DiskVersion) -> Result<ImageProfile> {
    let mut profile = match request.format {
        None => profile_from(&disk.image)?,
        Some(format) => match profile_from(&disk.image) {
            Ok(kept) if kept.format == format => kept,
            Ok(kept) => ImageProfile {
                disk_id: kept.disk_id,
                ..ImageProfile::of(format)
            },
            Err(_) => ImageProfile::of(format),
        },
    };
    if let Some(subformat) = request.subformat {
        if subformat != profile.subformat {
            // A unit of allocation belongs to the subformat it was chosen for.
            profile.allocation_unit_bytes = None;
        }
        profile.subformat = subformat;
    }
    if request.identity == Identity::New {
        profile.disk_id = None;
    }
    Ok(profile)
}

/// Restores a disk.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when the target is there and may not be replaced, [`ErrorKind::Full`] when there is no room
/// for it, [`ErrorKind::Corrupt`] when the repository lacks or has damaged what the version needs.
pub fn restore_disk(
    repository: &Repository,
    request: &RestoreRequest,
    context: JobContext<'_>,
) -> Result<RestoreReport> {
    let clock = repository.environment().clock.clone();
    let started_ms = clock.monotonic_ms();
    let point = repository.find_point(&request.selector)?.point;
    let disk = choose_disk(&point, request.label.as_deref())?;
    let (plan, profile) = plan_on(request, &point, disk)?;
    let session = repository.read_session(LeaseKind::Restore, &[&point], ReadProtection::Lease)?;
    let reader = repository.open_version(disk, &session)?;
    let mut report = RestoreReport {
        plan,
        resumed: false,
        written_bytes: 0,
        zeroed_bytes: 0,
        read_back_bytes: 0,
        is_proved: false,
        elapsed_ms: 0,
    };
    let mut steps = Steps::new(context, format!("restore of {}", report.plan.version));
    let run = Run {
        repository,
        request,
        disk,
        reader: &reader,
        context,
    };
    let result = match &profile {
        Some(profile) => run.into_new_image(profile, &mut report, &mut steps),
        None => run.in_place(&mut report, &mut steps),
    };
    let result = result.and_then(|()| run.prove(&mut report));
    drop(reader);
    let ended = end(session);
    steps.finish(result)?;
    if let Err(error) = ended {
        context.progress.warn(&format!(
            "the reader's lease could not be given back: {error}"
        ));
    }
    report.elapsed_ms = clock.monotonic_ms().saturating_sub(started_ms);
    Ok(report)
}

fn end(session: Arc<ReadSession>) -> repo::Result<()> {
    Arc::into_inner(session).map_or(Ok(()), ReadSession::finish)
}

/// How far a new image is durable: beside it, until it is whole.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RestoreNote {
    root: String,
    format: Option<String>,
    subformat: Option<String>,
    next_leaf: u64,
}

struct Run<'a> {
    repository: &'a Repository,
    request: &'a RestoreRequest,
    disk: &'a DiskVersion,
    reader: &'a VersionReader,
    context: JobContext<'a>,
}

impl Run<'_> {
    fn into_new_image(
        &self,
        profile: &ImageProfile,
        report: &mut RestoreReport,
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        let target = &self.request.target;
        let shown = target.display().to_string();
        let options = CreateOptions {
            size_bytes: self.disk.length_bytes,
            profile: profile.clone(),
            if_exists: match self.request.mode {
                RestoreMode::Replace => IfExists::Replace,
                RestoreMode::New | RestoreMode::InPlace => IfExists::Refuse,
            },
            ids: self.request.ids.clone(),
            unix_seconds: self.repository.environment().clock.unix_ms() / 1000,
        };
        let (writer, first) =
            steps.step("create", &shown, || self.begin_image(&options, report))?;
        steps.step("write", &shown, || {
            self.write_leaves(writer.as_ref(), first, report)
        })?;
        steps.step("finish", &shown, || {
            writer.finish()?;
            remove_note(target)
        })
    }

    /// Goes on with what an interrupted run of the same version and shape left, or begins.
    fn begin_image(
        &self,
        options: &CreateOptions,
        report: &mut RestoreReport,
    ) -> Result<(Box<dyn ImageWriter>, LeafIndex)> {
        let target = &self.request.target;
        if let Some(note) =
            read_note(target).filter(|note| *note == self.note(report, note.next_leaf))
            && let Ok(writer) = image::resume(target, options)
        {
            report.resumed = true;
            let first = LeafIndex(note.next_leaf);
            if writer.order() == WriteOrder::Any {
                // Behind the last flush anything may lie: zeros must be put there, not assumed.
                let from = first.offset().min(self.disk.length_bytes);
                let rest = self.disk.length_bytes - from;
                if rest > 0 {
                    writer.zero_range(from, rest)?;
                }
                return Ok((writer, first));
            }
        }
        report.resumed = false;
        remove_note(target)?;
        self.check_space(options)?;
        Ok((image::create(target, options)?, LeafIndex(0)))
    }

    /// Refuses before anything is written when the target's file system plainly has no room: first by counting leaves, and
    /// only if that is not enough by counting blocks.
    fn check_space(&self, options: &CreateOptions) -> Result<()> {
        let Some(free) = free_bytes(&self.request.target) else {
            return Ok(());
        };
        if options.profile.subformat == Subformat::StreamOptimized {
            return Ok(());
        }
        let mut tree = self.reader.tree()?;
        let mut leaves = 0u64;
        for run in tree.runs(LeafIndex(0)) {
            leaves += u64::from(run?.hash != NodeHash::zero(1));
        }
        if leaves.saturating_mul(LEAF_SIZE_BYTES) <= free {
            return Ok(());
        }
        let (mut blocks, mut at) = (0u64, LeafIndex(0));
        while let Some(run) = tree.run_at(at)? {
            self.context.cancel.check()?;
            if run.hash != NodeHash::zero(1) {
                let node = tree.leaf(at)?;
                blocks += node
                    .blocks()
                    .filter(|hash| *hash != block::BlockHash::zero())
                    .count() as u64;
            }
            at = LeafIndex(at.0.saturating_add(run.count));
        }
        let needed = blocks.saturating_mul(BLOCK_SIZE_BYTES);
        if needed <= free {
            return Ok(());
        }
        let target = self.request.target.display();
        let what = format!("{target} needs {needed} bytes, {free} are free there");
        Err(Error::new(ErrorKind::Full, what))
    }

    fn note(&self, report: &RestoreReport, next_leaf: u64) -> RestoreNote {
        RestoreNote {
            root: self.disk.root.to_string(),
            format: report.plan.format.clone(),
            subformat: report.plan.subformat.clone(),
            next_leaf,
        }
    }

    fn write_leaves(
        &self,
        writer: &dyn ImageWriter,
        first: LeafIndex,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let leaves = geometry::leaf_count(self.disk.length_bytes);
        let progress = self.context.progress;
        progress.begin("restoring", Some(self.disk.length_bytes));
        progress.advance(first.offset().min(self.disk.length_bytes));
        let mut next = first.0;
        let result = loop {
            if next >= leaves {
                break Ok(());
            }
            let end = next.saturating_add(LEAVES_PER_FLUSH).min(leaves);
            match self.write_some(writer, LeafIndex(next), LeafIndex(end)) {
                Ok(bytes) => report.written_bytes = report.written_bytes.saturating_add(bytes),
                Err(error) => break Err(error),
            }
            next = end;
            if next < leaves {
                let noted = writer.flush().map_err(Error::from);
                let note = self.note(report, next);
                if let Err(error) = noted.and_then(|()| put_note(&self.request.target, &note)) {
                    break Err(error);
                }
            }
        };
        progress.end();
        result
    }

    /// Writes the leaves of a range; answers how many bytes that were.
    fn write_some(
        &self,
        writer: &dyn ImageWriter,
        first: LeafIndex,
        end: LeafIndex,
    ) -> Result<u64> {
        let mut options = BulkRead {
            first,
            end: Some(end),
            ..BulkRead::default()
        };
        options.workers = match (writer.order(), self.request.workers) {
            // One worker gives its leaves in order.
            (WriteOrder::Ascending, _) => 1,
            (WriteOrder::Any, Some(workers)) => workers.max(1),
            (WriteOrder::Any, None) => options.workers,
        };
        let shared = Mutex::new((0u64, first.offset()));
        let failed = FirstFailure::default();
        let read = self.reader.read_leaves(&options, &|_, _| true, &|leaf| {
            failed.keep(self.context.cancel.check())?;
            let mut bytes = 0u64;
            for (offset, run) in leaf.runs() {
                failed.keep(writer.write_at(offset, run).map_err(Error::from))?;
                bytes = bytes.saturating_add(run.len() as u64);
            }
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.0 = shared.0.saturating_add(bytes);
            let reached = leaf
                .leaf
                .offset()
                .saturating_add(LEAF_SIZE_BYTES)
                .min(self.disk.length_bytes);
            if reached > shared.1 {
                self.context.progress.advance(reached - shared.1);
                shared.1 = reached;
            }
            Ok(())
        });
        failed.take_or(read)?;
        let (bytes, reached) = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        let behind = end.offset().min(self.disk.length_bytes);
        self.context
            .progress
            .advance(behind.saturating_sub(reached));
        Ok(bytes)
    }

    fn in_place(&self, report: &mut RestoreReport, steps: &mut Steps<'_>) -> Result<()> {
        let shown = self.request.target.display().to_string();
        let target = steps.step("open", &shown, || {
            open_in_place(&self.request.target, self.request.format, &self.request.ids)
        })?;
        let (has, needs) = (target.disk().size_bytes(), self.disk.length_bytes);
        if has != needs {
            let what = format!("{shown} is a disk of {has} bytes, the version one of {needs}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        steps.step("write what differs", &shown, || {
            self.write_differences(&target, report)
        })?;
        steps.step("finish", &shown, || target.finish())
    }

    fn write_differences(&self, target: &InPlaceTarget, report: &mut RestoreReport) -> Result<()> {
        let leaves = geometry::leaf_count(self.disk.length_bytes);
        self.context
            .progress
            .begin("restoring in place", Some(self.disk.length_bytes));
        let mut next = 0;
        let mut result = Ok(());
        while next < leaves && result.is_ok() {
            let end = next.saturating_add(LEAVES_PER_WINDOW).min(leaves);
            let window = LeafWindow {
                first: LeafIndex(next),
                end: LeafIndex(end),
            };
            result = self.write_window(target, window, report);
            next = end;
        }
        self.context.progress.end();
        result
    }

    fn write_window(
        &self,
        target: &InPlaceTarget,
        window: LeafWindow,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let disk = target.disk();
        let mut missing: Vec<(LeafIndex, SlotSet)> = Vec::new();
        let mut zeroed = 0u64;
        let zero = block::BlockHash::zero();
        let shown: &dyn ReadAt = disk;
        let tree = self.disk.tree();
        let cost = compare_with_tree(
            shown,
            tree,
            self.repository,
            window,
            self.context,
            |found| {
                let mut wanted = SlotSet::EMPTY;
                for slot in found.slots.iter() {
                    if found.wanted.block(slot) != zero {
                        wanted.insert(slot);
                        continue;
                    }
                    let offset = found
                        .leaf
                        .offset()
                        .saturating_add((slot as u64).saturating_mul(BLOCK_SIZE_BYTES));
                    let length =
                        BLOCK_SIZE_BYTES.min(self.disk.length_bytes.saturating_sub(offset));
                    disk.zero_range(offset, length)?;
                    zeroed = zeroed.saturating_add(length);
                }
                if !wanted.is_empty() {
                    missing.push((found.leaf, wanted));
                }
                Ok(())
            },
        )?;
        report.read_back_bytes = report.read_back_bytes.saturating_add(cost.read_bytes);
        report.zeroed_bytes = report.zeroed_bytes.saturating_add(zeroed);
        let Some(((first, _), (last, _))) = missing.first().zip(missing.last()) else {
            return Ok(());
        };
        let options = BulkRead {
            first: *first,
            end: Some(LeafIndex(last.0.saturating_add(1))),
            ..BulkRead::default()
        };
        let wanted = |block: BlockIndex, _| {
            let at = missing.binary_search_by_key(&block.leaf(), |(leaf, _)| *leaf);
            at.ok()
                .and_then(|at| missing.get(at))
                .is_some_and(|(_, slots)| slots.contains(block.slot()))
        };
        let written = Mutex::new(0u64);
        let failed = FirstFailure::default();
        let read = self.reader.read_leaves(&options, &wanted, &|leaf| {
            failed.keep(self.context.cancel.check())?;
            for (offset, run) in leaf.runs() {
                failed.keep(disk.write_at(offset, run).map_err(Error::from))?;
                *written.lock().unwrap_or_else(PoisonError::into_inner) += run.len() as u64;
            }
            Ok(())
        });
        failed.take_or(read)?;
        let written = written.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.written_bytes = report.written_bytes.saturating_add(written);
        Ok(())
    }

    fn prove(&self, report: &mut RestoreReport) -> Result<()> {
        if self.request.proof == Proof::BeforeWriting {
            return Ok(());
        }
        let mut options = vdisk::OpenOptions::default();
        if let Some(format) = self.request.format.or(self.written_format(report)) {
            options.format = image::FormatHint::Exactly(format);
        }
        let image = vdisk::Image::open(&self.request.target, &options)?;
        let mut first = None;
        self.context
            .progress
            .begin("reading back", Some(self.disk.length_bytes));
        let compared = compare_with_tree(
            &image,
            self.disk.tree(),
            self.repository,
            LeafWindow::ALL,
            self.context,
            |found| {
                first.get_or_insert(found.leaf.offset());
                Ok(())
            },
        );
        self.context.progress.end();
        report.read_back_bytes = report.read_back_bytes.saturating_add(compared?.read_bytes);
        if image.size_bytes() != self.disk.length_bytes || first.is_some() {
            let target = self.request.target.display();
            let place = first.unwrap_or(self.disk.length_bytes);
            let what = format!("{target} does not read as it was written, first near byte {place}");
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        report.is_proved = true;
        Ok(())
    }

    fn written_format(&self, report: &RestoreReport) -> Option<Format> {
        let word = report.plan.format.clone()?;
        let kept = repo::ImageProfile {
            format: Some(word),
            ..repo::ImageProfile::default()
        };
        profile_from(&kept).ok().map(|profile| profile.format)
    }
}

/// Carries a job's own error through the repository's bulk read, which can only carry its own.
#[derive(Default)]
struct FirstFailure(Mutex<Option<Error>>);

impl FirstFailure {
    fn keep<T>(&self, result: Result<T>) -> repo::Result<T> {
        result.map_err(|error| {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(error);
            repo::Error::new(repo::ErrorKind::Cancelled, "the target failed")
        })
    }

    fn take_or<T>(self, result: repo::Result<T>) -> Result<T> {
        match self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(result?),
        }
    }
}

fn note_path(target: &Path) -> PathBuf {
    let mut path = image::partial_path(target).into_os_string();
    path.push(".note");
    path.into()
}

/// A note that cannot be read is no note: the image is begun anew.
fn read_note(target: &Path) -> Option<RestoreNote> {
    let text = std::fs::read(note_path(target)).ok()?;
    serde_json::from_slice(&text).ok()
}

fn put_note(target: &Path, note: &RestoreNote) -> Result<()> {
    let failed =
        |error: std::io::Error| Error::new(ErrorKind::Io, "noting progress").caused_by(error);
    let text = serde_json::to_vec(note)
        .map_err(|error| Error::new(ErrorKind::Io, "noting progress").caused_by(error))?;
    let path = note_path(target);
    let fresh = path.with_extension("note.new");
    let file = std::fs::File::create(&fresh).map_err(failed)?;
    std::io::Write::write_all(&mut &file, &text).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&fresh, &path).map_err(failed)
}

fn remove_note(target: &Path) -> Result<()> {
    match std::fs::remove_file(note_path(target)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::new(ErrorKind::Io, "removing the note of progress").caused_by(error))
        }
        _ => Ok(()),
    }
}
