//! Merging a child into its parent in place, as Hyper-V does when a checkpoint is removed.
//!
//! ```text
//!   for every range of the child:  present ─► write to the parent    zero ─► zero the parent    the parent's ─► nothing
//!   every so many bytes: flush the parent, report how far everything is durable
//! ```
//!
//! **Invariants.** The child is only read. Doing it again from any earlier point gives the same parent, so that a merge
//! that was interrupted goes on where its last report said. While it runs, child over parent reads as the child did.
//! It deletes nothing, and other children of the parent are invalid afterwards, as after any write to it.

use std::ops::ControlFlow;

use block::{ExtentKind, ReadAt, WriteAt};

use super::bytes::to_usize;
use super::reader::VhdxReader;
use super::writer::VhdxWriter;
use crate::{Error, ErrorKind, Result};

/// Read and written at once.
const STEP_BYTES: u64 = 2 << 20;
/// Between two flushes.
const FLUSH_BYTES: u64 = 256 << 20;

/// Whether the parent must be the one that the child names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MergeStart {
    /// The parent's data write id must be the one in the child's locator.
    #[default]
    Begin,
    /// An interrupted merge goes on: it changed the parent's data write id itself. Everything in front of the offset is
    /// in the parent already.
    Resume {
        /// First byte that is not known to be merged.
        offset: u64,
    },
}

/// What a merge moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MergeReport {
    /// Bytes copied.
    pub written_bytes: u64,
    /// Bytes zeroed.
    pub zeroed_bytes: u64,
    /// Everything in front of this byte is durably in the parent; the disk's size when the merge is done.
    pub merged_until: u64,
}

/// Merges a child, opened without its parent, into the parent. `progress` hears how far everything is durable and may
/// stop the merge there.
///
/// # Errors
/// `ParentMismatch`; `Unsupported` when the child is larger or its sectors are not the parent's; `Invalid` when the child
/// was opened with a parent or has none; `Io`.
pub fn merge(
    child: &VhdxReader,
    parent: &VhdxWriter,
    start: MergeStart,
    progress: &mut dyn FnMut(&MergeReport) -> ControlFlow<()>,
) -> Result<MergeReport> {
    check_pair(child, parent, start)?;
    let size = child.size_bytes();
    let mut report = MergeReport::default();
    let mut at = match start {
        MergeStart::Begin => 0,
        MergeStart::Resume { offset } => offset.min(size),
    };
    report.merged_until = at;
    let mut since_flush = 0u64;
    let mut buffer = vec![0; to_usize(STEP_BYTES)];
    while at < size {
        let extent = child.extent_at(at, size.saturating_sub(at))?;
        let mut length = extent.length_bytes;
        match extent.kind {
            ExtentKind::InParent => {}
            ExtentKind::Zero | ExtentKind::Unallocated => {
                length = length.min(FLUSH_BYTES);
                parent.zero_range(at, length)?;
                report.zeroed_bytes = report.zeroed_bytes.saturating_add(length);
                since_flush = since_flush.saturating_add(length);
            }
            ExtentKind::Data => {
                length = length.min(STEP_BYTES);
                let piece = buffer.get_mut(..to_usize(length)).unwrap_or_default();
                child.read_at(at, piece)?;
                parent.write_at(at, piece)?;
                report.written_bytes = report.written_bytes.saturating_add(length);
                since_flush = since_flush.saturating_add(length);
            }
        }
        at = at.saturating_add(length);
        if since_flush >= FLUSH_BYTES {
            since_flush = 0;
            parent.flush()?;
            report.merged_until = at;
            if progress(&report).is_break() {
                return Ok(report);
            }
        }
    }
    parent.flush()?;
    report.merged_until = size;
    // Nothing is left to stop.
    let _ = progress(&report);
    Ok(report)
}

fn check_pair(child: &VhdxReader, parent: &VhdxWriter, start: MergeStart) -> Result<()> {
    let locator = child
        .parent_locator()
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "vhdx merge: the child has no parent"))?;
    if child.has_parent_view() {
        return Err(Error::new(
            ErrorKind::Invalid,
            "vhdx merge: the child must be opened without its parent",
        ));
    }
    if start == MergeStart::Begin {
        locator.check_linkage(parent.data_write_id())?;
    }
    let (above, below) = (child.info(), parent.info());
    if above.logical_sector_bytes != below.logical_sector_bytes {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "vhdx merge: sectors of {} bytes over sectors of {}",
                above.logical_sector_bytes, below.logical_sector_bytes
            ),
        ));
    }
    if above.size_bytes > below.size_bytes {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "vhdx merge: the child has {} bytes, the parent {}",
                above.size_bytes, below.size_bytes
            ),
        ));
    }
    Ok(())
}
