//! Where the blocks of a file lie: extent trees, and the block pointers of ext2 and ext3.
//!
//! ```text
//!   extents                                        pointers
//!   inode: header + 4 ─► index blocks ─► leaf      inode: 12 direct, 1 indirect, 1 double, 1 triple
//!          (depth <= 5)                            a pointer of 0 is a hole, as wide as what it would lead to
//! ```
//!
//! **Invariants.** A run never reaches behind the volume's blocks. Every node of a tree is one level below its parent,
//! its keys ascend and stay inside the range that its parent gave it, so that no loop is possible; its checksum held.

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

use super::Ext;
use super::inode::Inode;
use super::superblock::crc32c;
use crate::field::{slice, u16_le, u32_le};
use crate::{Error, Result};

const EXTENT_MAGIC: u16 = 0xF30A;
const MAX_DEPTH: u16 = 5;
const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 12;
/// An extent longer than this is allocated but was never written: it reads as zeros.
const MAX_WRITTEN: u16 = 32768;

/// What a run of a file's blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On the volume from this block on.
    Written(u64),
    /// On the volume from this block on, but never written: zeros.
    Unwritten(u64),
    /// Nowhere: zeros.
    Hole,
}

/// Blocks of a file of one kind, from the block that was asked for on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub block_count: u64,
    pub place: Place,
}

impl Ext {
    /// The run of a file's blocks that begins at `logical`.
    pub(super) fn run_at(&self, inode: &Inode, logical: u64) -> Result<Run> {
        let run = if inode.has_extents() {
            self.extent_run(inode, logical)
        } else {
            self.pointer_run(inode, logical)
        };
        run.and_then(|run| self.check_run(run))
            .map_err(|error| error.within(format!("inode {}, block {logical}", inode.number)))
    }

    fn check_run(&self, run: Run) -> Result<Run> {
        let (Place::Written(start) | Place::Unwritten(start)) = run.place else {
            return Ok(run);
        };
        let end = start.saturating_add(run.block_count);
        if start <= u64::from(self.superblock.first_data_block) || end > self.superblock.block_count
        {
            return Err(Error::corrupt(format!(
                "it lies at blocks {start}..{end} of {}",
                self.superblock.block_count
            )));
        }
        Ok(run)
    }

    fn extent_run(&self, inode: &Inode, logical: u64) -> Result<Run> {
        let Ok(wanted) = u32::try_from(logical) else {
            return Ok(Run {
                block_count: u64::MAX.saturating_sub(logical),
                place: Place::Hole,
            });
        };
        let mut range = (0_u64, 1_u64 << 32);
        let mut step = search(&inode.map, None, wanted, &mut range)?;
        let mut depth = depth(&inode.map)?;
        while let Step::Down(block) = step {
            if block <= u64::from(self.superblock.first_data_block)
                || block >= self.superblock.block_count
            {
                return Err(Error::corrupt(format!(
                    "a node of its extents at block {block}"
                )));
            }
            let node = self.cache.block(block)?;
            let below = depth.checked_sub(1);
            self.check_node(inode, &node)
                .and_then(|()| {
                    step = search(&node, below, wanted, &mut range)?;
                    Ok(())
                })
                .map_err(|error| error.within(format!("node at block {block}")))?;
            depth = below.unwrap_or(0);
        }
        match step {
            Step::Found(run) => Ok(run),
            Step::Down(_) | Step::Nothing => Ok(Run {
                block_count: range.1.saturating_sub(logical).max(1),
                place: Place::Hole,
            }),
        }
    }

    fn check_node(&self, inode: &Inode, node: &[u8]) -> Result<()> {
        if !self.superblock.has_checksums() {
            return Ok(());
        }
        let end = usize::from(u16_le(node, 4)?)
            .saturating_mul(ENTRY_BYTES)
            .saturating_add(HEADER_BYTES);
        let found = crc32c(inode.seed, slice(node, 0, end)?);
        if crate::field::sum_holds(found, u32_le(node, end)?) {
            return Ok(());
        }
        Err(Error::corrupt("its checksum is wrong"))
    }

    fn pointer_run(&self, inode: &Inode, logical: u64) -> Result<Run> {
        let per_block = u64::from(self.superblock.block_bytes / 4);
        let direct = 12_u64;
        if let Some(left) = direct.checked_sub(logical).filter(|&left| left > 0) {
            return pointers(slice(&inode.map, 0, 48)?, logical, left);
        }
        let mut index = logical.saturating_sub(direct);
        let mut span = per_block;
        for level in 0..3_usize {
            if index < span {
                let root = u32_le(&inode.map, level.saturating_mul(4).saturating_add(48))?;
                return self.indirect(root, level, span, index);
            }
            index = index.saturating_sub(span);
            span = span.saturating_mul(per_block);
        }
        Ok(Run {
            block_count: u64::MAX.saturating_sub(logical),
            place: Place::Hole,
        })
    }

    /// Follows `level` blocks of pointers to pointers, and one of pointers to data.
    fn indirect(&self, root: u32, level: usize, span: u64, index: u64) -> Result<Run> {
        let per_block = u64::from(self.superblock.block_bytes / 4).max(1);
        let (mut block, mut span, mut index) = (root, span, index);
        for left in (0..=level).rev() {
            if block == 0 {
                return Ok(Run {
                    block_count: span.saturating_sub(index),
                    place: Place::Hole,
                });
            }
            if u64::from(block) >= self.superblock.block_count {
                return Err(Error::corrupt(format!("a block of pointers at {block}")));
            }
            let table = self.cache.block(u64::from(block))?;
            if left == 0 {
                return pointers(&table, index, per_block.saturating_sub(index));
            }
            span = span.checked_div(per_block).unwrap_or(1).max(1);
            let slot = usize::try_from(index.checked_div(span).unwrap_or(0)).unwrap_or(usize::MAX);
            block = u32_le(&table, slot.saturating_mul(4))?;
            index = index.checked_rem(span).unwrap_or(0);
        }
        Err(Error::corrupt("pointers that lead nowhere"))
    }
}

/// The run of pointers from `index` on, `left` of them at most, that are all holes or lie side by side.
fn pointers(table: &[u8], index: u64, left: u64) -> Result<Run> {
    let at = |index: u64| {
        let offset = usize::try_from(index)
            .unwrap_or(usize::MAX)
            .saturating_mul(4);
        u32_le(table, offset)
    };
    let first = at(index)?;
    let mut count = 1_u64;
    while count < left {
        let expected = if first == 0 {
            0
        } else {
            u64::from(first).saturating_add(count)
        };
        if u64::from(at(index.saturating_add(count))?) != expected {
            break;
        }
        count = count.saturating_add(1);
    }
    let place = if first == 0 {
        Place::Hole
    } else {
        Place::Written(u64::from(first))
    };
    Ok(Run {
        block_count: count,
        place,
    })
}

enum Step {
    Down(u64),
    Found(Run),
    Nothing,
}

fn depth(node: &[u8]) -> Result<u16> {
    u16_le(node, 6)
}

/// Looks in one node; narrows `range` to what the answer holds for.
fn search(node: &[u8], expected: Option<u16>, wanted: u32, range: &mut (u64, u64)) -> Result<Step> {
    let (count, capacity, depth) = (u16_le(node, 2)?, u16_le(node, 4)?, depth(node)?);
    let room = node.len().saturating_sub(HEADER_BYTES) / ENTRY_BYTES;
    if u16_le(node, 0)? != EXTENT_MAGIC
        || count > capacity
        || usize::from(capacity) > room
        || depth > MAX_DEPTH
        || expected.is_some_and(|expected| expected != depth)
    {
        return Err(Error::corrupt("no node of an extent tree"));
    }
    let (lower, upper) = *range;
    let mut best = None;
    let mut behind = lower;
    let mut bound = upper;
    for index in 0..usize::from(count) {
        let offset = index
            .saturating_mul(ENTRY_BYTES)
            .saturating_add(HEADER_BYTES);
        let entry = slice(node, offset, ENTRY_BYTES)?;
        let first = u64::from(u32_le(entry, 0)?);
        let length = if depth == 0 {
            u64::from(extent_length(entry)?.0)
        } else {
            1
        };
        let end = first.saturating_add(length);
        if first < behind || end > upper || length == 0 {
            return Err(Error::corrupt("its extents are not in order"));
        }
        behind = end;
        if first <= u64::from(wanted) {
            best = Some((first, entry));
        } else {
            bound = first;
            break;
        }
    }
    let Some((first, entry)) = best else {
        range.1 = bound;
        return Ok(Step::Nothing);
    };
    if depth > 0 {
        *range = (first, bound);
        return Ok(Step::Down(
            u64::from(u32_le(entry, 4)?) | u64::from(u16_le(entry, 8)?) << 32,
        ));
    }
    range.1 = bound;
    let (length, is_written) = extent_length(entry)?;
    let into = u64::from(wanted).saturating_sub(first);
    let Some(left) = u64::from(length).checked_sub(into).filter(|&left| left > 0) else {
        return Ok(Step::Nothing);
    };
    let start = u64::from(u32_le(entry, 8)?) | u64::from(u16_le(entry, 6)?) << 32;
    let start = start.saturating_add(into);
    let place = if is_written {
        Place::Written(start)
    } else {
        Place::Unwritten(start)
    };
    Ok(Step::Found(Run {
        block_count: left,
        place,
    }))
}

fn extent_length(entry: &[u8]) -> Result<(u16, bool)> {
    let length = u16_le(entry, 4)?;
    Ok(if length > MAX_WRITTEN {
        (length.saturating_sub(MAX_WRITTEN), false)
    } else {
        (length, true)
    })
}
