//! Group descriptors, and what of the volume is in use.
//!
//! ```text
//!   group: [superblock copy? + descriptors?] [block bitmap] [inode bitmap] [inode table] data …
//!          flex_bg moves bitmaps and tables into another group; meta_bg keeps descriptors in every 64th group or so
//! ```
//!
//! **Invariants.** A descriptor is given only after its checksum held. A bitmap has as many free clusters as its descriptor
//! counts, or nothing is said to be free: without checksums that is all that vouches for it. A bitmap that was never written
//! (`BLOCK_UNINIT`) is made up from the group's own metadata, as Linux does.

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

use std::ops::ControlFlow;

use super::Ext;
use super::superblock::{Superblock, crc16, crc32c, incompat, ro_compat};
use crate::field::{slice, u16_le, u32_le};
use crate::filesystem::VolumeRange;
use crate::{Error, Result};

const BLOCK_UNINIT: u16 = 2;

/// A group's descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
    pub free_clusters: u32,
    flags: u16,
    bitmap_checksum: u32,
}

impl Ext {
    /// The descriptor of a group.
    pub(super) fn group(&self, number: u32) -> Result<Group> {
        let superblock = &self.superblock;
        let width = u32::from(superblock.descriptor_bytes);
        let per_block = superblock
            .block_bytes
            .checked_div(width)
            .unwrap_or(1)
            .max(1);
        let index = number.checked_div(per_block).unwrap_or(0);
        let within = number
            .checked_rem(per_block)
            .unwrap_or(0)
            .saturating_mul(width);
        let block = self
            .cache
            .block(descriptor_block(superblock, index, per_block))?;
        let within = usize::try_from(within).unwrap_or(usize::MAX);
        let raw = slice(&block, within, usize::from(superblock.descriptor_bytes))?;
        parse(superblock, number, raw).map_err(|error| error.within(format!("group {number}")))
    }

    /// Free clusters, counted over all groups: what a mount would count.
    pub(super) fn free_blocks(&self) -> Result<u64> {
        let mut free = 0_u64;
        for number in 0..self.superblock.group_count {
            free = free.saturating_add(u64::from(self.group(number)?.free_clusters));
        }
        Ok(free.saturating_mul(u64::from(self.superblock.cluster_blocks)))
    }

    /// Tells used runs of clusters, group by group, joined where they touch.
    pub(super) fn used(&self, visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>) -> Result<()> {
        let superblock = &self.superblock;
        // What lies before the first group: a boot block.
        let mut runs = Runs {
            block_bytes: superblock.block_bytes,
            open: None,
            visit,
        };
        if runs
            .add(0, u64::from(superblock.first_data_block))
            .is_break()
        {
            return Ok(());
        }
        for number in 0..superblock.group_count {
            let group = self.group(number)?;
            let bitmap = self.block_bitmap(number, &group)?;
            let start = superblock.group_start(number);
            let count = superblock.block_count.saturating_sub(start);
            let ratio = u64::from(superblock.cluster_blocks);
            let clusters = count
                .div_ceil(ratio.max(1))
                .min(u64::from(superblock.clusters_per_group));
            if !self.is_unwritten(&group) {
                check_count(number, &group, &bitmap, clusters)?;
            }
            for cluster in 0..clusters {
                let byte = usize::try_from(cluster / 8).unwrap_or(usize::MAX);
                let bit = u32::try_from(cluster % 8).unwrap_or(0);
                let Some(&bits) = bitmap.get(byte) else { break };
                if bits.checked_shr(bit).unwrap_or(0) & 1 == 0 {
                    continue;
                }
                let first = start.saturating_add(cluster.saturating_mul(ratio));
                let end = first.saturating_add(ratio).min(superblock.block_count);
                if runs.add(first, end.saturating_sub(first)).is_break() {
                    return Ok(());
                }
            }
        }
        let _ = runs.flush();
        Ok(())
    }

    /// Whether the block bitmap of a group was never written.
    fn is_unwritten(&self, group: &Group) -> bool {
        let superblock = &self.superblock;
        let has_flags =
            superblock.has_checksums() || superblock.has_ro_compat(ro_compat::GDT_CHECKSUM);
        has_flags && group.flags & BLOCK_UNINIT != 0
    }

    fn block_bitmap(&self, number: u32, group: &Group) -> Result<Vec<u8>> {
        let superblock = &self.superblock;
        if self.is_unwritten(group) {
            return Ok(self.unwritten_bitmap(number, group));
        }
        let bitmap = self.cache.block(group.block_bitmap)?.to_vec();
        if superblock.has_checksums() {
            let length = usize::try_from(superblock.clusters_per_group / 8).unwrap_or(usize::MAX);
            let mut found = crc32c(superblock.checksum_seed, slice(&bitmap, 0, length)?);
            if superblock.descriptor_bytes < 64 {
                found &= 0xFFFF;
            }
            if !crate::field::sum_holds(found, group.bitmap_checksum) {
                return Err(Error::corrupt(format!(
                    "group {number}: the checksum of its block bitmap is wrong"
                )));
            }
        }
        Ok(bitmap)
    }

    /// What Linux makes up for a group whose bitmap was never written.
    fn unwritten_bitmap(&self, number: u32, group: &Group) -> Vec<u8> {
        let superblock = &self.superblock;
        let mut bitmap = vec![0; superblock.block_length()];
        let start = superblock.group_start(number);
        let end = start.saturating_add(u64::from(superblock.blocks_per_group));
        let table_blocks = u64::from(superblock.inodes_per_group)
            .saturating_mul(u64::from(superblock.inode_bytes))
            .div_ceil(u64::from(superblock.block_bytes.max(1)));
        let runs = [
            (start, base_blocks(superblock, number)),
            (group.block_bitmap, 1),
            (group.inode_bitmap, 1),
            (group.inode_table, table_blocks),
        ];
        for (first, count) in runs {
            for block in first.max(start)..first.saturating_add(count).min(end) {
                let cluster = block
                    .saturating_sub(start)
                    .checked_div(u64::from(superblock.cluster_blocks))
                    .unwrap_or(0);
                let byte = usize::try_from(cluster / 8).unwrap_or(usize::MAX);
                let bit = u32::try_from(cluster % 8).unwrap_or(0);
                if let Some(bits) = bitmap.get_mut(byte) {
                    *bits |= 1_u8.checked_shl(bit).unwrap_or(0);
                }
            }
        }
        bitmap
    }
}

/// Holds the free clusters of a bitmap against the descriptor's count, as Linux does before it allocates.
fn check_count(number: u32, group: &Group, bitmap: &[u8], clusters: u64) -> Result<()> {
    let whole = usize::try_from(clusters / 8).unwrap_or(usize::MAX);
    let bytes = bitmap.get(..whole).unwrap_or(bitmap);
    let rest = u32::try_from(clusters % 8).unwrap_or(0);
    let used: u64 = bytes.iter().map(|byte| u64::from(byte.count_ones())).sum();
    let last = bitmap.get(whole).copied().unwrap_or(0) & !u8::MAX.checked_shl(rest).unwrap_or(0);
    let used = used.saturating_add(u64::from(last.count_ones()));
    let (free, told) = (
        clusters.saturating_sub(used),
        u64::from(group.free_clusters),
    );
    if free == told {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "group {number}: its bitmap has {free} free clusters, its descriptor counts {told}"
    )))
}

/// Blocks at the start of a group that hold copies of the superblock and of descriptors.
fn base_blocks(superblock: &Superblock, group: u32) -> u64 {
    let width = u32::from(superblock.descriptor_bytes);
    let per_block = superblock
        .block_bytes
        .checked_div(width)
        .unwrap_or(1)
        .max(1);
    let backup = u64::from(superblock.has_backup(group));
    let is_meta = superblock.has_incompat(incompat::META_BG);
    let index = group.checked_div(per_block).unwrap_or(0);
    if is_meta && index >= superblock.first_meta_group {
        // The first, the second and the last group of each meta group hold its one block of descriptors.
        let within = group.checked_rem(per_block).unwrap_or(0);
        let holds = within <= 1 || within == per_block.saturating_sub(1);
        return backup.saturating_add(u64::from(holds));
    }
    if backup == 0 {
        return 0;
    }
    let descriptors = if is_meta {
        u64::from(superblock.first_meta_group)
    } else {
        u64::from(superblock.group_count.div_ceil(per_block))
    };
    descriptors
        .saturating_add(u64::from(superblock.reserved_descriptor_blocks))
        .saturating_add(1)
}

/// The block that holds the `index`th block of descriptors.
fn descriptor_block(superblock: &Superblock, index: u32, per_block: u32) -> u64 {
    let first = u64::from(superblock.first_data_block);
    if !superblock.has_incompat(incompat::META_BG) || index < superblock.first_meta_group {
        // With blocks of 1 KiB the superblock is block 1; else it lies inside block 0.
        let own = if superblock.block_bytes == 1024 {
            1
        } else {
            first
        };
        return own.saturating_add(1).saturating_add(u64::from(index));
    }
    let group = index.saturating_mul(per_block);
    let mut before = u64::from(superblock.has_backup(group));
    if superblock.block_bytes == 1024 && index == 0 && first == 0 {
        before = before.saturating_add(1);
    }
    superblock.group_start(group).saturating_add(before)
}

fn parse(superblock: &Superblock, number: u32, raw: &[u8]) -> Result<Group> {
    check(superblock, number, raw)?;
    let is_wide = superblock.descriptor_bytes >= 64;
    let wide = |low: usize, high: usize| -> Result<u64> {
        let high = if is_wide { u32_le(raw, high)? } else { 0 };
        Ok(u64::from(u32_le(raw, low)?) | u64::from(high) << 32)
    };
    let middle = |low: usize, high: usize| -> Result<u32> {
        let high = if is_wide { u16_le(raw, high)? } else { 0 };
        Ok(u32::from(u16_le(raw, low)?) | u32::from(high) << 16)
    };
    Ok(Group {
        block_bitmap: wide(0, 32)?,
        inode_bitmap: wide(4, 36)?,
        inode_table: wide(8, 40)?,
        free_clusters: middle(12, 44)?,
        flags: u16_le(raw, 18)?,
        bitmap_checksum: middle(24, 56)?,
    })
}

fn check(superblock: &Superblock, number: u32, raw: &[u8]) -> Result<()> {
    let stored = u16_le(raw, 30)?;
    let head = slice(raw, 0, 30)?;
    let tail = raw.get(32..).unwrap_or_default();
    let found = if superblock.has_checksums() {
        let mut sum = crc32c(superblock.checksum_seed, &number.to_le_bytes());
        for part in [head, &[0, 0], tail] {
            sum = crc32c(sum, part);
        }
        u16::try_from(sum & 0xFFFF).unwrap_or(0)
    } else if superblock.has_ro_compat(ro_compat::GDT_CHECKSUM) {
        let mut sum = crc16(u16::MAX, &superblock.uuid);
        for part in [&number.to_le_bytes(), head, tail] {
            sum = crc16(sum, part);
        }
        sum
    } else {
        return Ok(());
    };
    if crate::field::sum_holds(found, stored) {
        return Ok(());
    }
    Err(Error::corrupt("the checksum of its descriptor is wrong"))
}

/// Joins runs that touch.
struct Runs<'a> {
    block_bytes: u32,
    open: Option<(u64, u64)>,
    visit: &'a mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
}

impl Runs<'_> {
    fn add(&mut self, first: u64, count: u64) -> ControlFlow<()> {
        if count == 0 {
            return ControlFlow::Continue(());
        }
        if let Some((_, end)) = &mut self.open
            && *end == first
        {
            *end = first.saturating_add(count);
            return ControlFlow::Continue(());
        }
        self.flush()?;
        self.open = Some((first, first.saturating_add(count)));
        ControlFlow::Continue(())
    }

    fn flush(&mut self) -> ControlFlow<()> {
        let Some((first, end)) = self.open.take() else {
            return ControlFlow::Continue(());
        };
        let width = u64::from(self.block_bytes);
        (self.visit)(VolumeRange {
            offset: first.saturating_mul(width),
            length_bytes: end.saturating_sub(first).saturating_mul(width),
        })
    }
}
