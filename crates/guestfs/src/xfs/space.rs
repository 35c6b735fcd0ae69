//! What of the volume is in use: everything that the trees of free space do not name.
//!
//! ```text
//!   AGF ─► tree of free space by block: leaf (start:4 count:4)…   node keys 8, children 4
//! ```
//!
//! **Invariants.** Free runs come in ascending order, and are as many blocks as the group's header counts, else the group is
//! corrupt: what is wrongly free would be lost. After an unmount the superblock must count the same blocks.

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

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::{MAX_TREE_LEVELS, Xfs, superblock};
use crate::filesystem::{Cleanliness, VolumeRange};
use crate::{Error, Result, field};

/// Tells what is not free, group by group, neighbours joined.
pub(super) fn used_ranges(
    xfs: &Xfs,
    visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    check_counts(xfs)?;
    let block_bytes = u64::from(xfs.superblock.block_bytes);
    let mut open: Option<(u64, u64)> = None;
    for group in 0..xfs.superblock.group_count {
        let first = u64::from(group).saturating_mul(u64::from(xfs.superblock.group_blocks));
        let length =
            u64::from(xfs.superblock.group_blocks).min(xfs.superblock.blocks.saturating_sub(first));
        let mut at = 0_u64;
        let mut runs = free_runs(xfs, group, length)
            .map_err(|error| error.within(format!("group {group}")))?;
        runs.push((length, 0));
        for (free, count) in runs {
            if free > at {
                let (start, end) = (first.saturating_add(at), first.saturating_add(free));
                open = match open {
                    Some((begin, last)) if last == start => Some((begin, end)),
                    Some((begin, last)) => {
                        if tell(begin, last, block_bytes, visit).is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                        Some((start, end))
                    }
                    None => Some((start, end)),
                };
            }
            at = free.saturating_add(count);
        }
    }
    Ok(match open {
        Some((begin, last)) => tell(begin, last, block_bytes, visit),
        None => ControlFlow::Continue(()),
    })
}

fn tell(
    begin: u64,
    end: u64,
    block_bytes: u64,
    visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
) -> ControlFlow<()> {
    visit(VolumeRange {
        offset: begin.saturating_mul(block_bytes),
        length_bytes: end.saturating_sub(begin).saturating_mul(block_bytes),
    })
}

/// Free blocks as the groups count them: the superblock's own count is only right after an unmount.
pub(super) fn free_blocks(xfs: &Xfs) -> Result<u64> {
    let mut free = 0_u64;
    for group in 0..xfs.superblock.group_count {
        let agf = free_header(xfs, group)?;
        // In runs, on the list for trees to come, and in the trees of free space themselves.
        for at in [52, 48, 60] {
            free = free.saturating_add(u64::from(field::u32_be(&agf, at)?));
        }
    }
    Ok(free)
}

/// Holds the superblock's count against those of the groups, where an unmount brought it up to date.
fn check_counts(xfs: &Xfs) -> Result<()> {
    if xfs.facts.cleanliness != Cleanliness::Clean {
        return Ok(());
    }
    let (told, counted) = (xfs.superblock.free_blocks, free_blocks(xfs)?);
    if told == counted {
        return Ok(());
    }
    // Before Linux counted lazily, blocks of the trees of free space counted as used.
    let mut without_trees = 0_u64;
    for group in 0..xfs.superblock.group_count {
        let agf = free_header(xfs, group)?;
        for at in [52, 48] {
            without_trees = without_trees.saturating_add(u64::from(field::u32_be(&agf, at)?));
        }
    }
    if !xfs.superblock.is_v5 && told == without_trees {
        return Ok(());
    }
    let what = format!("the superblock counts {told} free blocks, the groups {counted}");
    Err(Error::corrupt(what))
}

fn free_header(xfs: &Xfs, group: u32) -> Result<Vec<u8>> {
    let block_bytes = u64::from(xfs.superblock.block_bytes);
    let base = u64::from(group).saturating_mul(u64::from(xfs.superblock.group_blocks));
    let sector = u64::from(xfs.superblock.sector_bytes);
    let mut agf = vec![0; usize::from(xfs.superblock.sector_bytes)];
    let at = base.saturating_mul(block_bytes).saturating_add(sector);
    xfs.blocks.read(at, &mut agf)?;
    if field::slice(&agf, 0, 4)? != b"XAGF" || field::u32_be(&agf, 8)? != group {
        return Err(Error::corrupt("no header of its free space"));
    }
    if xfs.superblock.is_v5 {
        superblock::check_sum(&agf, 216)?;
    }
    Ok(agf)
}

/// Free runs of a group in order.
fn free_runs(xfs: &Xfs, group: u32, length: u64) -> Result<Vec<(u64, u64)>> {
    let agf = free_header(xfs, group)?;
    let levels = field::u32_be(&agf, 28)?;
    if levels == 0 || levels > MAX_TREE_LEVELS {
        return Err(Error::corrupt(format!("free space in {levels} levels")));
    }
    let (magic, header): (&[u8], usize) = if xfs.superblock.is_v5 {
        (b"AB3B", 56)
    } else {
        (b"ABTB", 16)
    };
    let mut waiting = vec![(levels.saturating_sub(1), field::u32_be(&agf, 16)?)];
    let mut seen = HashSet::new();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut end = 0_u64;
    while let Some((level, at)) = waiting.pop() {
        let number = u64::from(group) << xfs.superblock.group_log | u64::from(at);
        if !seen.insert(at) {
            return Err(Error::corrupt("a tree of free space that meets itself"));
        }
        let bytes = xfs.block(number)?;
        let is_level = u32::from(field::u16_be(&bytes, 4)?) == level;
        if field::slice(&bytes, 0, 4)? != magic || !is_level {
            return Err(Error::corrupt(format!("block {at} of its free space")));
        }
        if xfs.superblock.is_v5 {
            superblock::check_sum(&bytes, 52)?;
        }
        let count = usize::from(field::u16_be(&bytes, 6)?);
        if level > 0 {
            let room = bytes
                .len()
                .saturating_sub(header)
                .checked_div(12)
                .unwrap_or(0);
            let first = header.saturating_add(room.saturating_mul(8));
            for index in (0..count).rev() {
                let place = first.saturating_add(index.saturating_mul(4));
                waiting.push((level.saturating_sub(1), field::u32_be(&bytes, place)?));
            }
            continue;
        }
        for record in field::slice(&bytes, header, count.saturating_mul(8))?.chunks_exact(8) {
            let start = u64::from(field::u32_be(record, 0)?);
            let blocks = u64::from(field::u32_be(record, 4)?);
            let last = start.saturating_add(blocks);
            if start < end || blocks == 0 || last > length {
                return Err(Error::corrupt("free runs out of order"));
            }
            end = last;
            runs.push((start, blocks));
        }
    }
    let counted = u64::from(field::u32_be(&agf, 52)?);
    let found: u64 = runs.iter().map(|(_, blocks)| *blocks).sum();
    if found != counted {
        let what = format!("{found} free blocks where its header counts {counted}");
        return Err(Error::corrupt(what));
    }
    Ok(runs)
}
