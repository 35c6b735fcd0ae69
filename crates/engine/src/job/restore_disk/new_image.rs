//! Into a new image or onto a device: leaves from all cores, progress noted at every flush.
//!
//! A note beside the partial image says up to which leaf it is durable. What lies behind that is unknown, as is what lies
//! on a device: there zeros are written, not assumed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use block::geometry::{self, LEAF_SIZE_BYTES};
use block::sync::SlotSet;
use block::{BLOCK_SIZE_BYTES, FANOUT, LeafIndex, NodeHash};
use repo::{BulkRead, LeafBlocks};
use serde::{Deserialize, Serialize};
use vdisk::Subformat;
use vdisk::convert::TargetContent;
use vdisk::image::{self, CreateOptions, IfExists, ImageProfile, ImageWriter, WriteOrder};

use super::{FirstFailure, RestoreMode, RestoreReport, Run};
use crate::compare::{LeafWindow, slot_ranges};
use crate::job::Steps;
use crate::job::target::{free_bytes, is_device};
use crate::{Error, ErrorKind, Result};

/// Most leaves that are read at once: 12 MiB each, so that a restore stays below 256 MiB.
const MAX_WORKERS: usize = 10;

/// How far a new image is durable: beside it, until it is whole.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RestoreNote {
    root: String,
    format: Option<String>,
    subformat: Option<String>,
    /// Which file it speaks of: another one under the same name is none of this note's business.
    partial: PartialId,
    next_leaf: u64,
}

/// What tells a file from a later one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PartialId {
    device: u64,
    inode: u64,
    /// When it was made, where the file system keeps that; an inode is used again.
    born_unix_ns: Option<u64>,
}

impl PartialId {
    /// Of the partial image of `target` as it is now; `None` when there is none or it cannot be looked at.
    fn of(target: &Path) -> Option<Self> {
        let metadata = std::fs::symlink_metadata(image::partial_path(target)).ok()?;
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let born = metadata.created().ok().and_then(since);
        let (device, inode) = file_number(&metadata);
        Some(Self {
            device,
            inode,
            born_unix_ns: born.and_then(|born| u64::try_from(born.as_nanos()).ok()),
        })
    }
}

/// An image begun or gone on with.
struct Begun {
    writer: Box<dyn ImageWriter>,
    first: LeafIndex,
    /// What lies where nothing is written.
    content: TargetContent,
}

impl Run<'_> {
    pub(super) fn write_new_image(
        &self,
        profile: &ImageProfile,
        report: &mut RestoreReport,
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        let target = &self.request.target;
        if is_device(target) && self.request.mode == RestoreMode::New {
            let what = format!("{}: a device is there already", target.display());
            return Err(Error::new(ErrorKind::AlreadyExists, what));
        }
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
        let begun = steps.step("create", &shown, || self.begin_image(&options, report))?;
        let outcome = steps
            .step("write", &shown, || self.write_leaves(&begun, report))
            .and_then(|()| {
                steps.step("finish", &shown, || {
                    begun.writer.finish()?;
                    remove_note(target)
                })
            });
        if outcome.is_err() && !is_device(target) && read_note(target).is_none() {
            // Without a note nothing can go on from it. The first error is the one to tell.
            image::discard_partial(target).unwrap_or(());
        }
        outcome
    }

    /// Goes on with what an interrupted run of the same version and shape left, or begins.
    fn begin_image(&self, options: &CreateOptions, report: &mut RestoreReport) -> Result<Begun> {
        let target = &self.request.target;
        if let Some(partial) = PartialId::of(target)
            && let Some(note) = read_note(target)
                .filter(|note| *note == self.note(report, partial.clone(), note.next_leaf))
            && let Ok(writer) = image::resume(target, options)
            && writer.order() == WriteOrder::Any
        {
            report.resumed = true;
            // Behind the last flush anything may lie.
            let (first, content) = (LeafIndex(note.next_leaf), TargetContent::Unknown);
            return Ok(Begun {
                writer,
                first,
                content,
            });
        }
        remove_note(target)?;
        self.check_space(options)?;
        let content = if is_device(target) {
            TargetContent::Unknown
        } else {
            TargetContent::Blank
        };
        Ok(Begun {
            writer: image::create(target, options)?,
            first: LeafIndex(0),
            content,
        })
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

    fn note(&self, report: &RestoreReport, partial: PartialId, next_leaf: u64) -> RestoreNote {
        RestoreNote {
            root: self.disk.root.to_string(),
            format: report.plan.format.clone(),
            subformat: report.plan.subformat.clone(),
            partial,
            next_leaf,
        }
    }

    fn write_leaves(&self, begun: &Begun, report: &mut RestoreReport) -> Result<()> {
        let leaves = geometry::leaf_count(self.disk.length_bytes);
        let progress = self.context.progress;
        progress.begin("restoring", Some(self.disk.length_bytes));
        progress.advance(begun.first.offset().min(self.disk.length_bytes));
        let mut next = begun.first.0;
        let mut result = Ok(());
        while next < leaves && result.is_ok() {
            let end = self.window_end(LeafIndex(next))?.0.clamp(next + 1, leaves);
            let window = LeafWindow {
                first: LeafIndex(next),
                end: LeafIndex(end),
            };
            result = self.write_window(begun, window, report);
            if result.is_ok() && end < leaves {
                result = begun.writer.flush().map_err(Error::from);
                // Onto a device there is no partial image, and nothing to go on with.
                if let Some(partial) = PartialId::of(&self.request.target)
                    && result.is_ok()
                {
                    let note = self.note(report, partial, end);
                    result = put_note(&self.request.target, &note);
                }
            }
            next = end;
        }
        progress.end();
        result
    }

    /// The leaf behind a window from `first` on that holds no more data than may lie between two flushes.
    fn window_end(&self, first: LeafIndex) -> Result<LeafIndex> {
        let mut tree = self.reader.tree()?;
        let mut at = first;
        let mut left = self.request.leaves_per_flush.max(1);
        while left > 0 {
            self.context.cancel.check()?;
            let Some(run) = tree.run_at(at)? else { break };
            let taken = if run.hash == NodeHash::zero(1) {
                run.count
            } else {
                let taken = run.count.min(left);
                left -= taken;
                taken
            };
            at = LeafIndex(at.0.saturating_add(taken));
        }
        Ok(at)
    }

    fn write_window(
        &self,
        begun: &Begun,
        window: LeafWindow,
        report: &mut RestoreReport,
    ) -> Result<()> {
        if begun.content == TargetContent::Unknown {
            self.zero_leaves(begun.writer.as_ref(), window)?;
        }
        let mut options = BulkRead {
            first: window.first,
            end: Some(window.end),
            ..BulkRead::default()
        };
        options.workers = match (begun.writer.order(), self.request.workers) {
            // One worker gives its leaves in order.
            (WriteOrder::Ascending, _) => 1,
            (WriteOrder::Any, Some(workers)) => workers.clamp(1, MAX_WORKERS),
            (WriteOrder::Any, None) => options.workers,
        };
        let reached = Mutex::new(self.clipped(window.first));
        let written = AtomicU64::new(0);
        let failed = FirstFailure::default();
        let read = self.reader.read_leaves(&options, &|_, _| true, &|leaf| {
            failed.keep(self.context.cancel.check())?;
            let bytes = failed.keep(self.write_leaf(begun, leaf))?;
            written.fetch_add(bytes, Ordering::Relaxed);
            let behind = self.clipped(LeafIndex(leaf.leaf.0.saturating_add(1)));
            self.advance_to(&reached, behind);
            Ok(())
        });
        failed.take_or(read)?;
        self.advance_to(&reached, self.clipped(window.end));
        report.written_bytes = report.written_bytes.saturating_add(written.into_inner());
        Ok(())
    }

    fn write_leaf(&self, begun: &Begun, leaf: &LeafBlocks<'_>) -> Result<u64> {
        let mut bytes = 0u64;
        for (offset, run) in leaf.runs() {
            begun.writer.write_at(offset, run)?;
            bytes = bytes.saturating_add(run.len() as u64);
        }
        if begun.content == TargetContent::Unknown {
            let mut zero = SlotSet::EMPTY;
            (0..FANOUT)
                .filter(|slot| !leaf.is_read(*slot))
                .for_each(|slot| zero.insert(slot));
            for range in slot_ranges(leaf.leaf, zero, self.disk.length_bytes) {
                begun.writer.zero_range(range.offset, range.length_bytes)?;
            }
        }
        Ok(bytes)
    }

    /// Zeroes the leaves that are all zeros, which a bulk read passes over.
    fn zero_leaves(&self, writer: &dyn ImageWriter, window: LeafWindow) -> Result<()> {
        let mut tree = self.reader.tree()?;
        let mut at = window.first;
        while at < window.end {
            self.context.cancel.check()?;
            let Some(run) = tree.run_at(at)? else { break };
            let next = LeafIndex(at.0.saturating_add(run.count)).min(window.end);
            if run.hash == NodeHash::zero(1) {
                let from = self.clipped(at);
                writer.zero_range(from, self.clipped(next).saturating_sub(from))?;
            }
            at = next;
        }
        Ok(())
    }

    /// The first byte of a leaf, or the end of the disk.
    fn clipped(&self, leaf: LeafIndex) -> u64 {
        leaf.offset().min(self.disk.length_bytes)
    }

    fn advance_to(&self, reached: &Mutex<u64>, behind: u64) {
        let mut reached = reached.lock().unwrap_or_else(PoisonError::into_inner);
        if behind > *reached {
            self.context.progress.advance(behind - *reached);
            *reached = behind;
        }
    }
}

#[cfg(unix)]
fn file_number(metadata: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// Elsewhere the time of birth has to do.
#[cfg(not(unix))]
fn file_number(_: &std::fs::Metadata) -> (u64, u64) {
    (0, 0)
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
