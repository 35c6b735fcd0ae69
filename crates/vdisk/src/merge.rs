//! Merging a differencing image into its parent in place, as a hypervisor does when a checkpoint is removed.
//!
//! ```text
//!   for every range of the child:   its own data ─► written    its own zeros ─► zeroed    the parent's ─► nothing
//!   now and then: flush the parent, report how far everything is durable
//! ```
//!
//! **Invariants.** The child is only read, and read through the parent it shows the same bytes before, during and after.
//! Going on from any point that was reported, or from the beginning, gives the same parent. Nothing is deleted. Any other
//! child of the parent is invalid from the first write on; so is, for an id-checking format, the merged child itself, which
//! is why going on must be said ([`MergeStart::Resume`]).

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use std::path::Path;

use block::{ExtentKind, ReadAt, WriteAt};

use crate::convert::Progress;
use crate::image::{ChainMode, Image, ImageEditor, OpenOptions};
use crate::vhdx::IdSource;
use crate::{Error, ErrorKind, Result, map};

/// Read and written at once.
const STEP_BYTES: u64 = 2 << 20;
/// Between two flushes.
const FLUSH_BYTES: u64 = 256 << 20;

/// Whether a merge begins or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeStart {
    /// It begins: the parent must be the image that the child names.
    Begin,
    /// An interrupted merge of these two goes on; everything in front of `offset` was reported as durable.
    Resume {
        /// First byte that is not known to be merged.
        offset: u64,
    },
}

/// What a merge moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MergeStats {
    /// Bytes copied into the parent.
    pub written_bytes: u64,
    /// Bytes zeroed in the parent.
    pub zeroed_bytes: u64,
}

/// Merges the image at `child` into the one at `parent`. `progress` hears how far everything is durable, and may stop the
/// merge, which can then go on from there.
///
/// # Errors
/// `ParentMismatch` when they do not belong together, `Invalid` when the child has no parent, `Unsupported` when the child is
/// larger than the parent or the parent's format is not written in place, `Cancelled`.
pub fn merge(
    child: &Path,
    parent: &Path,
    start: MergeStart,
    options: &OpenOptions,
    ids: IdSource,
    progress: &dyn Progress,
) -> Result<MergeStats> {
    let alone = OpenOptions {
        chain: ChainMode::LeafOnly,
        ..options.clone()
    };
    let above = Image::open(child, &alone)?;
    let below = Image::open(parent, &alone)?;
    check_pair(&above, &below, child, parent, start)?;
    drop(below);
    let editor = ImageEditor::open(parent, options, ids)?;
    let from = match start {
        MergeStart::Begin => 0,
        MergeStart::Resume { offset } => offset,
    };
    let stats = copy_own(&above, &editor, from, progress)?;
    editor.finish()?;
    progress.advance(above.size_bytes(), above.size_bytes());
    Ok(stats)
}

fn check_pair(
    above: &Image,
    below: &Image,
    child: &Path,
    parent: &Path,
    start: MergeStart,
) -> Result<()> {
    let readers = above.chain().first().zip(below.chain().first());
    let Some((leaf, root)) = readers.filter(|(leaf, _)| leaf.reader().parent_check().is_some())
    else {
        let context = format!("{} has no parent to merge into", child.display());
        return Err(Error::new(ErrorKind::Invalid, context));
    };
    if start == MergeStart::Begin {
        leaf.reader().check_parent(root.reader(), parent)?;
    }
    if above.size_bytes() > below.size_bytes() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} has {} bytes, its parent {}: the parent must be enlarged first",
                child.display(),
                above.size_bytes(),
                below.size_bytes()
            ),
        ));
    }
    Ok(())
}

/// Copies what the child holds itself.
fn copy_own(
    child: &dyn ReadAt,
    parent: &dyn WriteAt,
    from: u64,
    progress: &dyn Progress,
) -> Result<MergeStats> {
    let size = child.size_bytes();
    let mut stats = MergeStats::default();
    let mut unflushed: u64 = 0;
    let mut buffer = vec![0; usize::try_from(STEP_BYTES).unwrap_or(0)];
    for extent in map::extents_in(child, from, size.saturating_sub(from)) {
        let extent = extent?;
        let mut at = extent.offset;
        while at < extent.end() {
            let left = extent.end().saturating_sub(at);
            let step = match extent.kind {
                ExtentKind::InParent => left,
                ExtentKind::Zero | ExtentKind::Unallocated => {
                    let step = left.min(FLUSH_BYTES);
                    parent.zero_range(at, step)?;
                    stats.zeroed_bytes = stats.zeroed_bytes.saturating_add(step);
                    step
                }
                ExtentKind::Data => {
                    let step = left.min(STEP_BYTES);
                    let length = usize::try_from(step)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    let (piece, _) = buffer.split_at_mut(length);
                    child.read_at(at, piece)?;
                    parent.write_at(at, piece)?;
                    stats.written_bytes = stats.written_bytes.saturating_add(step);
                    step
                }
            };
            at = at.saturating_add(step);
            if extent.kind != ExtentKind::InParent {
                unflushed = unflushed.saturating_add(step);
            }
            if unflushed >= FLUSH_BYTES || progress.is_cancelled() {
                parent.flush()?;
                unflushed = 0;
                progress.advance(at, size);
                if progress.is_cancelled() {
                    return Err(Error::new(
                        ErrorKind::Cancelled,
                        "the merge was told to stop",
                    ));
                }
            }
        }
    }
    Ok(stats)
}
