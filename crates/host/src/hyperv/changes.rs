//! Changed ranges of a frozen disk: `GetVirtualDiskChanges` in windows, and everything that makes its answer worthless.
//!
//! ```text
//!   offset ─► ask for a window ─► 0: runs, processed n ─► offset += n ─► … end of the disk
//!                   │               └ a run outside, n of 0 or too large: lost
//!                   ├ answer does not fit: half the window, down to 64 MiB
//!                   ├ invalid parameter: less by a sector, once
//!                   └ anything else that the host says: lost (the disk is read whole)
//! ```
//!
//! **Invariants.** Only a network that is gone and being told to stop are errors: whatever the host says against tracking means
//! reading the disk whole. Memory is bounded: neighbours are taken together beyond the limit on ranges.

use wsman::cim::{CimInstance, CimValue};

use block::{ByteRange, ChangedRanges};

use super::HyperV;
use super::cim::{is_too_large, told};
use super::names::IMAGE_SERVICE;
use super::node::Node;
use crate::boundary::{BatchRead, DiskReads};
use crate::checkpoint::{Changes, ConfigurationFile, FrozenDisk};
use crate::clock::CancelToken;
use crate::ids::{CheckpointRef, TrackingScheme, TrackingToken};
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

const LEAST_WINDOW: u64 = 64 << 20;
const SECTOR: u64 = 512;
const STARTED: u32 = 4096;
const INVALID_PARAMETER: u32 = 32_773;
/// How often a window is asked for whose answer came as a job.
const MOST_REPEATS: usize = 3;
/// Largest file of a configuration that is read whole.
const MAX_CONFIGURATION_BYTES: u64 = 64 << 20;

/// One answer.
enum Window {
    Runs {
        runs: Vec<ByteRange>,
        processed_bytes: u64,
    },
    TooLarge,
    Invalid,
    Lost(String),
}

impl HyperV {
    pub(super) fn changes(
        &self,
        reference: &CheckpointRef,
        disk: &FrozenDisk,
        since: &TrackingToken,
        cancel: &CancelToken,
    ) -> Result<Changes> {
        let lost = |reason: String| Ok(Changes::Lost { reason });
        if since.scheme != TrackingScheme::Rct {
            return lost("the token is of another tracker".to_owned());
        }
        if let (Some(now), Some(then)) = (disk.identity, since.disk)
            && now != then
        {
            return lost(format!("the disk is {now}, the token's was {then}"));
        }
        let Some(size_bytes) = disk.size_bytes else {
            return lost("the host does not tell the size of the disk".to_owned());
        };
        if size_bytes != since.size_bytes {
            return lost(format!(
                "the disk has {size_bytes} bytes, the token's had {}",
                since.size_bytes
            ));
        }
        let (changes, _) = self.on_owner(reference.vm, cancel, |node| {
            self.walk(node, disk, since, size_bytes, cancel)
        })?;
        Ok(changes)
    }

    fn walk(
        &self,
        node: &Node,
        disk: &FrozenDisk,
        since: &TrackingToken,
        size_bytes: u64,
        cancel: &CancelToken,
    ) -> Result<Changes> {
        let mut found: Vec<ByteRange> = Vec::new();
        let mut all = ChangedRanges::none();
        let mut window = self.options.change_window_bytes.max(LEAST_WINDOW);
        let mut offset = 0_u64;
        let mut is_shortened = false;
        while offset < size_bytes {
            cancel.check("asking for changes")?;
            let left = size_bytes.saturating_sub(offset);
            let asked = if is_shortened && left > SECTOR {
                left.min(window).saturating_sub(SECTOR)
            } else {
                left.min(window)
            };
            match self.ask_window(node, &disk.path, since, offset, asked, cancel)? {
                Window::Runs {
                    runs,
                    processed_bytes,
                } => {
                    if processed_bytes == 0 || processed_bytes > asked {
                        return Ok(Changes::Lost {
                            reason: format!(
                                "the host processed {processed_bytes} of {asked} bytes at {offset}"
                            ),
                        });
                    }
                    found.extend(runs);
                    if found.len() > self.options.most_changes {
                        all = gather(&all, &mut found, self.options.most_changes)?;
                    }
                    offset = offset.saturating_add(processed_bytes);
                    is_shortened = false;
                }
                Window::TooLarge if window > LEAST_WINDOW => {
                    window = (window / 2).max(LEAST_WINDOW);
                }
                Window::TooLarge => {
                    return Ok(Changes::Lost {
                        reason: format!("too many changes in {LEAST_WINDOW} bytes for one answer"),
                    });
                }
                // Some hosts want less than the disk's size.
                Window::Invalid if asked == left && !is_shortened && left > SECTOR => {
                    is_shortened = true;
                }
                Window::Invalid => {
                    return Ok(Changes::Lost {
                        reason: "the host does not know where to count changes from".to_owned(),
                    });
                }
                Window::Lost(reason) => return Ok(Changes::Lost { reason }),
            }
        }
        let all = gather(&all, &mut found, self.options.most_changes)?;
        Ok(Changes::Known(all))
    }

    fn ask_window(
        &self,
        node: &Node,
        path: &HostPath,
        since: &TrackingToken,
        offset: u64,
        length_bytes: u64,
        cancel: &CancelToken,
    ) -> Result<Window> {
        const METHOD: &str = "GetVirtualDiskChanges";
        let service = node.service(IMAGE_SERVICE);
        let inputs = [
            ("Path", CimValue::Text(path.to_string())),
            ("LimitId", CimValue::Text(since.value.clone())),
            ("ByteOffset", CimValue::Uint(offset)),
            ("ByteLength", CimValue::Uint(length_bytes)),
        ];
        for _ in 0..MOST_REPEATS {
            let output = match node.client().invoke(&service, METHOD, &inputs) {
                Ok(output) => output,
                Err(error) if is_too_large(&error) => return Ok(Window::TooLarge),
                Err(error) => return refused(told(error, node.place(&service, METHOD))),
            };
            match output.u32("ReturnValue") {
                Ok(0) => return Ok(runs_of(&output, offset, length_bytes)),
                Ok(STARTED) => {
                    // The answer of a job is nowhere: wait for it, then ask again.
                    if let Ok(Some(job)) = output.opt_reference("Job") {
                        let place = node.place(&service, METHOD);
                        if let Err(error) = self.wait(node, &job, &place, cancel) {
                            return refused(error);
                        }
                    }
                }
                Ok(INVALID_PARAMETER) => return Ok(Window::Invalid),
                Ok(code) => return Ok(Window::Lost(format!("the host answered {code}"))),
                Err(error) => return Ok(Window::Lost(error.to_string())),
            }
        }
        Ok(Window::Lost(
            "the host answers with jobs and never with changes".to_owned(),
        ))
    }
}

/// What an error means for tracking: a host that says no loses it, a host that is not heard says nothing.
fn refused(error: Error) -> Result<Window> {
    match error.kind() {
        ErrorKind::Unreachable | ErrorKind::Cancelled | ErrorKind::Denied => Err(error),
        _ => Ok(Window::Lost(crate::error::chain_text(&error))),
    }
}

fn runs_of(output: &CimInstance, offset: u64, length_bytes: u64) -> Window {
    let read = || -> std::result::Result<(Vec<u64>, Vec<u64>, u64), wsman::Error> {
        Ok((
            output.u64s("ChangedByteOffsets")?,
            output.u64s("ChangedByteLengths")?,
            output.u64("ProcessedByteLength")?,
        ))
    };
    let (offsets, lengths, processed_bytes) = match read() {
        Ok(read) => read,
        Err(error) => return Window::Lost(error.to_string()),
    };
    if offsets.len() != lengths.len() {
        return Window::Lost(format!(
            "{} offsets and {} lengths of changes",
            offsets.len(),
            lengths.len()
        ));
    }
    let end = offset.saturating_add(length_bytes);
    let mut runs = Vec::with_capacity(offsets.len());
    for (start, length) in offsets.into_iter().zip(lengths) {
        let is_inside = start >= offset && start.checked_add(length).is_some_and(|it| it <= end);
        if !is_inside {
            return Window::Lost(format!(
                "changes at {start} of {length} bytes, where {offset} to {end} were asked for"
            ));
        }
        if length > 0 {
            runs.push(ByteRange {
                offset: start,
                length_bytes: length,
            });
        }
    }
    Window::Runs {
        runs,
        processed_bytes,
    }
}

fn gather(all: &ChangedRanges, found: &mut Vec<ByteRange>, most: usize) -> Result<ChangedRanges> {
    let more = ChangedRanges::new(found.drain(..)).map_err(|error| {
        Error::with_source(ErrorKind::Protocol, "putting changes together", error)
    })?;
    Ok(all.union(&more).coarsened(most))
}

impl DiskReads for HyperV {
    fn open_disk(
        &self,
        reference: &CheckpointRef,
        disk: &FrozenDisk,
        cancel: &CancelToken,
    ) -> Result<std::sync::Arc<dyn BatchRead>> {
        let (node, _) = self.find_owner(reference.vm, cancel)?;
        super::recovery::must_exist(&node, reference)?;
        let opened = crate::access::ChainDisk::open(node.files(), node.name(), &disk.path);
        let error = match opened {
            Ok(disk) => return Ok(std::sync::Arc::new(disk)),
            Err(error) => error,
        };
        // A frozen file on a shared volume may be read on the node alone that owns the volume.
        if let Some(owner) = super::cluster::volume_owner(&node, &disk.path)
            && owner != *node.name()
            && let Ok(owner) = self.node(&owner)
            && let Ok(disk) =
                crate::access::ChainDisk::open(owner.files(), owner.name(), &disk.path)
        {
            return Ok(std::sync::Arc::new(disk));
        }
        // The machine's files may have been moved while the checkpoint exists.
        let now = self.reopen(reference, cancel)?;
        let moved = now
            .disks
            .iter()
            .find(|it| it.device == disk.device && it.path != disk.path);
        let Some(moved) = moved else {
            return Err(error);
        };
        let (node, _) = self.find_owner(reference.vm, cancel)?;
        crate::access::ChainDisk::open(node.files(), node.name(), &moved.path)
            .map(|disk| -> std::sync::Arc<dyn BatchRead> { std::sync::Arc::new(disk) })
    }

    fn read_configuration(
        &self,
        reference: &CheckpointRef,
        file: &ConfigurationFile,
        cancel: &CancelToken,
    ) -> Result<Vec<u8>> {
        let opened = self.open_configuration(reference, file, cancel)?;
        let size_bytes = opened.size_bytes();
        let length = usize::try_from(size_bytes)
            .ok()
            .filter(|_| size_bytes <= MAX_CONFIGURATION_BYTES);
        let length = length.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("{} has {size_bytes} bytes: too many to hold", file.path),
            )
        })?;
        let mut bytes = vec![0; length];
        opened.read_at(0, &mut bytes).map_err(|error| {
            Error::with_source(ErrorKind::Io, format!("reading {}", file.path), error)
        })?;
        Ok(bytes)
    }

    fn open_configuration(
        &self,
        reference: &CheckpointRef,
        file: &ConfigurationFile,
        cancel: &CancelToken,
    ) -> Result<std::sync::Arc<dyn block::ReadAt>> {
        let (node, _) = self.find_owner(reference.vm, cancel)?;
        let opened = node.files().open(node.name(), &file.path)?;
        opened.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{} is not on {}", file.path, node.name()),
            )
        })
    }
}
