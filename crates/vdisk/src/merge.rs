//! Merging a differencing image into its parent in place, as a hypervisor does when a checkpoint is removed.
//!
//! ```text
//!   the child's disk is larger ─► the parent is enlarged first
//!   for every range of the child:   its own data ─► written    its own zeros ─► zeroed    the parent's ─► nothing
//!   now and then: flush the parent, report how far everything is durable
//! ```
//!
//! **Invariants.** The child is only read, and read through the parent it shows the same bytes before, during and after.
//! Going on from any point that was reported, or from the beginning, gives the same parent. Nothing is deleted. Any other
//! child of the parent is invalid from the first write on; so is, for an id-checking format, the merged child itself, which
//! is why going on must be said ([`MergeStart::Resume`]). A parent that is larger than the child keeps its size and what
//! it has behind the child's end.

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
use crate::image::{self, ChainMode, FormatHint, Image, ImageEditor, OpenOptions};
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
/// `ParentMismatch` when they do not belong together, `Invalid` when the child has no parent, `Unsupported` when their
/// sectors differ or the parent's format is not written in place or cannot be as large as the child, `Cancelled`.
pub fn merge(
    child: &Path,
    parent: &Path,
    start: MergeStart,
    options: &OpenOptions,
    ids: IdSource,
    progress: &dyn Progress,
) -> Result<MergeStats> {
    let above = Image::open(child, &leaf_only(options))?;
    let of_parent = parent_options(&above, options);
    let below = Image::open(parent, &leaf_only(&of_parent))?;
    check_pair(&above, &below, child, parent, start)?;
    let is_larger = above.size_bytes() > below.size_bytes();
    drop(below);
    if is_larger {
        let plan = image::plan_resize(parent, above.size_bytes(), &of_parent)?;
        image::resize(&plan, &of_parent, &ids)?;
    }
    let editor = ImageEditor::open(parent, &of_parent, ids)?;
    let from = match start {
        MergeStart::Begin => 0,
        MergeStart::Resume { offset } => offset,
    };
    let stats = copy_own(&above, &editor, from, progress)?;
    editor.finish()?;
    progress.advance(above.size_bytes(), above.size_bytes());
    Ok(stats)
}

fn leaf_only(options: &OpenOptions) -> OpenOptions {
    OpenOptions {
        chain: ChainMode::LeafOnly,
        ..options.clone()
    }
}

/// How the parent is opened: in the format that the child records. What a guest wrote into a raw parent must not make it
/// another image.
fn parent_options(child: &Image, options: &OpenOptions) -> OpenOptions {
    let leaf = child.chain().first().map(|layer| layer.reader());
    let recorded = leaf.and_then(|leaf| leaf.parent_format());
    OpenOptions {
        format: recorded.map_or(FormatHint::Probe, FormatHint::Exactly),
        ..options.clone()
    }
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
    let sectors = |image: &Image| image.info().logical_sector_bytes;
    if sectors(above) != sectors(below) {
        let context = format!(
            "{} has sectors of {} bytes, its parent of {}",
            child.display(),
            sectors(above),
            sectors(below)
        );
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    Ok(())
}

/// Copies what `child`, opened without its parent, holds itself into `parent`, from the byte `from` on: what [`merge`] does
/// once both are open. `progress` hears how far everything is durable.
///
/// # Errors
/// `Io`, `Cancelled`; `OutOfRange` when the child is larger.
pub fn copy_own(
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
