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

mod in_place;
mod lock;
mod new_image;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use block::ReadAt;
use repo::lease::LeaseKind;
use repo::{
    DiskVersion, PointSelector, ReadProtection, ReadSession, RecoveryPoint, Repository,
    VersionReader,
};
use serde::Serialize;
use vdisk::image::{self, ImageProfile};
use vdisk::vhdx::IdSource;
use vdisk::{Format, Subformat};

use super::target::is_device;
use super::{JobContext, Steps, choose_disk, protect};
use crate::compare::{LeafWindow, compare_with_tree};
use crate::profile::{format_word, profile_from, subformat_word};
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

/// Leaves with data between two flushes of a new image unless told otherwise: 8 GiB.
const LEAVES_PER_FLUSH: u64 = 1024;

/// What happens to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreMode {
    /// It must not exist; a device always does.
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
    /// Leaves with data (8 MiB each) that are written between two flushes: what an interruption costs at most. Zeros cost
    /// nothing and do not count, so that the time follows what the disk holds, not how large it is.
    pub leaves_per_flush: u64,
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
            leaves_per_flush: LEAVES_PER_FLUSH,
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
    /// Whether a lease kept garbage collection off the version meanwhile.
    pub protected_from_gc: bool,
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
        // A device is the disk itself.
        None if is_device(&request.target) => ImageProfile::of(Format::Raw),
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
/// [`ErrorKind::Busy`] when another restore writes there, [`ErrorKind::AlreadyExists`] when the target is there and may not be replaced, [`ErrorKind::Full`] when there is no room
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
    let lock = lock::TargetLock::take(&request.target, request.mode)?;
    let session = protect(repository, LeaseKind::Restore, &[&point], context)?;
    let reader = repository.open_version(disk, &session)?;
    let mut report = RestoreReport {
        plan,
        resumed: false,
        written_bytes: 0,
        zeroed_bytes: 0,
        read_back_bytes: 0,
        is_proved: false,
        protected_from_gc: session.protection() == ReadProtection::Lease,
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
        Some(profile) => run.write_new_image(profile, &mut report, &mut steps),
        None => run.in_place(&mut report, &mut steps),
    };
    let result = result.and_then(|()| run.prove(&mut report));
    drop(reader);
    let ended = end(session);
    drop(lock);
    steps.finish(result)?;
    if let Err(error) = ended {
        context.progress.warn(&format!(
            "the reader's lease could not be given back: {}",
            explained(&error.into())
        ));
    }
    report.elapsed_ms = clock.monotonic_ms().saturating_sub(started_ms);
    Ok(report)
}

fn end(session: Arc<ReadSession>) -> repo::Result<()> {
    Arc::into_inner(session).map_or(Ok(()), ReadSession::finish)
}

struct Run<'a> {
    repository: &'a Repository,
    request: &'a RestoreRequest,
    disk: &'a DiskVersion,
    reader: &'a VersionReader,
    context: JobContext<'a>,
}

impl Run<'_> {
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
pub(super) struct FirstFailure(Mutex<Option<Error>>);

impl FirstFailure {
    pub(super) fn keep<T>(&self, result: Result<T>) -> repo::Result<T> {
        result.map_err(|error| {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(error);
            repo::Error::new(repo::ErrorKind::Cancelled, "the target failed")
        })
    }

    pub(super) fn take_or<T>(self, result: repo::Result<T>) -> Result<T> {
        match self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(result?),
        }
    }
}
