//! The boot sector of FAT12, FAT16 and FAT32: where everything lies.
//!
//! ```text
//!   11 bytes per sector, sectors per cluster, reserved, tables, root entries, total, media, sectors per table
//!   32 total (32 bits)   FAT32: 36 sectors per table, flags, 44 root cluster, FSInfo   65/37 state   67/39 id, label
//! ```
//!
//! **Invariants.** In a [`Boot`] every place lies inside the volume that it describes, and the width of the table
//! follows from the number of clusters alone, with the limits that Linux and Windows use.

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

use std::sync::Arc;

use block::ReadAt;

use super::heap::{FIRST, Heap, Width};
use super::names;
use crate::cache::BlockCache;
use crate::field::{slice, u8_at, u16_le, u32_le};
use crate::filesystem::{Cleanliness, FileSystemFacts, FileSystemKind};
use crate::{Error, Result};

const CACHE_BLOCK: usize = 4096;
const CACHE_BLOCKS: usize = 1024;

/// What the boot sector says, checked.
pub(super) struct Boot {
    pub width: Width,
    pub root_cluster: u32,
    sector_bytes: u64,
    cluster_bytes: u32,
    total_bytes: u64,
    table_offset: u64,
    root_offset: u64,
    root_bytes: u64,
    heap_offset: u64,
    cluster_count: u32,
    info_offset: Option<u64>,
    identity: Identity,
}

impl Boot {
    /// Reads and checks the boot sector of a volume.
    pub fn read(volume: &dyn ReadAt) -> Result<Self> {
        let mut raw = [0; 512];
        if volume.size_bytes() < 512 {
            return Err(Error::corrupt(
                "a volume without room for a boot sector of FAT",
            ));
        }
        volume.read_at(0, &mut raw)?;
        Self::parse(&raw).map_err(|error| error.within("boot sector of FAT"))
    }

    fn parse(raw: &[u8]) -> Result<Self> {
        let sector_bytes = u16_le(raw, 11)?;
        let cluster_sectors = u8_at(raw, 13)?;
        let (reserved, tables) = (u16_le(raw, 14)?, u8_at(raw, 16)?);
        let media = u8_at(raw, 21)?;
        if !sector_bytes.is_power_of_two()
            || !(512..=4096).contains(&sector_bytes)
            || !cluster_sectors.is_power_of_two()
            || reserved == 0
            || tables == 0
            || !(media == 0xF0 || media >= 0xF8)
        {
            return Err(Error::corrupt(format!(
                "sectors of {sector_bytes} bytes, clusters of {cluster_sectors}, {reserved} reserved, {tables} tables"
            )));
        }
        let is_32 = u16_le(raw, 22)? == 0;
        let table_sectors = if is_32 {
            u32_le(raw, 36)?
        } else {
            u32::from(u16_le(raw, 22)?)
        };
        let total_sectors = match u16_le(raw, 19)? {
            0 => u32_le(raw, 32)?,
            small => u32::from(small),
        };
        let sector = u64::from(sector_bytes);
        let root_bytes = u64::from(u16_le(raw, 17)?).saturating_mul(32);
        let flags = if is_32 { u16_le(raw, 40)? } else { 0 };
        // With mirroring off, one table is the right one.
        let active = if flags & 0x80 == 0 { 0 } else { flags & 0xF };
        let table_bytes = u64::from(table_sectors).saturating_mul(sector);
        let tables_offset = u64::from(reserved).saturating_mul(sector);
        let root_offset = table_bytes
            .saturating_mul(u64::from(tables))
            .saturating_add(tables_offset);
        let heap_offset = root_offset.saturating_add(root_bytes.next_multiple_of(sector));
        let total_bytes = u64::from(total_sectors).saturating_mul(sector);
        let cluster_bytes = u32::from(sector_bytes).saturating_mul(u32::from(cluster_sectors));
        let in_heap = total_bytes
            .saturating_sub(heap_offset)
            .checked_div(u64::from(cluster_bytes))
            .unwrap_or(0);
        if table_sectors == 0 || in_heap == 0 || u16::from(tables) <= active {
            return Err(Error::corrupt(format!(
                "{total_sectors} sectors have no room for clusters"
            )));
        }
        let (width, in_table) = width(is_32, in_heap, table_bytes);
        let cluster_count = in_heap.min(in_table.saturating_sub(u64::from(FIRST)));
        let identity = Identity::parse(raw, if is_32 { 64 } else { 36 })?;
        let info = if is_32 { u16_le(raw, 48)? } else { 0 };
        Ok(Self {
            width,
            root_cluster: if is_32 { u32_le(raw, 44)? } else { 0 },
            sector_bytes: sector,
            cluster_bytes,
            total_bytes,
            table_offset: table_bytes
                .saturating_mul(u64::from(active))
                .saturating_add(tables_offset),
            root_offset,
            root_bytes: if is_32 { 0 } else { root_bytes },
            heap_offset,
            cluster_count: u32::try_from(cluster_count.min(0x0FFF_FFF5)).unwrap_or(0),
            info_offset: (info != 0 && info != u16::MAX)
                .then(|| u64::from(info).saturating_mul(sector)),
            identity,
        })
    }

    /// The clusters of the volume.
    pub fn heap(&self, volume: Arc<dyn ReadAt>) -> Heap {
        Heap {
            cache: BlockCache::new(volume, CACHE_BLOCK, CACHE_BLOCKS),
            width: self.width,
            table_offset: self.table_offset,
            heap_offset: self.heap_offset,
            cluster_bytes: u64::from(self.cluster_bytes),
            cluster_count: self.cluster_count,
        }
    }

    /// Where the root of FAT12 and FAT16 lies, and its bytes.
    pub fn fixed_root(&self) -> Option<(u64, u64)> {
        (self.width != Width::Bits32).then_some((self.root_offset, self.root_bytes))
    }

    /// Whether an entry of a directory can lie there.
    pub fn can_hold_entries(&self, heap: &Heap, position: u64) -> bool {
        let root = self.root_offset..self.root_offset.saturating_add(self.root_bytes);
        let heap_bytes = heap
            .cluster_bytes
            .saturating_mul(u64::from(heap.cluster_count));
        let clusters = heap.heap_offset..heap.heap_offset.saturating_add(heap_bytes);
        root.contains(&position) || clusters.contains(&position)
    }

    /// What is known of the volume; the label is that of the boot sector.
    pub fn facts(&self, heap: &Heap) -> Result<FileSystemFacts> {
        let cleanliness = self.cleanliness(heap)?;
        let free = match self.noted_free(heap)? {
            Some(free) if cleanliness == Cleanliness::Clean => u64::from(free),
            _ => {
                let mut used = 0_u64;
                heap.each_used(&mut |_| {
                    used = used.saturating_add(1);
                    true
                })?;
                u64::from(self.cluster_count).saturating_sub(used)
            }
        };
        Ok(FileSystemFacts {
            kind: match self.width {
                Width::Bits12 => FileSystemKind::Fat12,
                Width::Bits16 => FileSystemKind::Fat16,
                Width::Bits32 | Width::Full32 => FileSystemKind::Fat32,
            },
            version: None,
            label: self.identity.label.clone(),
            id: self.identity.serial.map(id),
            size_bytes: self.total_bytes,
            free_bytes: free.saturating_mul(u64::from(self.cluster_bytes)),
            cluster_bytes: self.cluster_bytes,
            cleanliness,
            times_are_local: true,
            is_case_insensitive: true,
        })
    }

    fn cleanliness(&self, heap: &Heap) -> Result<Cleanliness> {
        if heap.cache.volume().size_bytes() < self.total_bytes {
            return Ok(Cleanliness::Dirty(format!(
                "it has {} bytes, the volume fewer",
                self.total_bytes
            )));
        }
        // Two bits of the second entry: unmounted, and no errors met. FAT12 has none.
        let (clean, sound) = match self.width {
            Width::Bits12 => (0, 0),
            Width::Bits16 => (0x8000, 0x4000),
            Width::Bits32 | Width::Full32 => (0x0800_0000, 0x0400_0000),
        };
        let state = heap.raw(1)?;
        if state & sound != sound {
            return Ok(Cleanliness::Dirty("errors of the disk were met".to_owned()));
        }
        if state & clean != clean || self.identity.is_marked_dirty {
            return Ok(Cleanliness::Dirty("it was not unmounted".to_owned()));
        }
        Ok(Cleanliness::Clean)
    }

    /// The free clusters that FAT32 notes.
    fn noted_free(&self, heap: &Heap) -> Result<Option<u32>> {
        let Some(offset) = self
            .info_offset
            .filter(|&offset| offset.saturating_add(self.sector_bytes) <= self.heap_offset)
        else {
            return Ok(None);
        };
        let mut raw = [0; 512];
        heap.cache.read(offset, &mut raw)?;
        let is_there = u32_le(&raw, 0)? == 0x4161_5252 && u32_le(&raw, 484)? == 0x6141_7272;
        let free = u32_le(&raw, 488)?;
        Ok((is_there && free <= self.cluster_count).then_some(free))
    }
}

/// How wide the entries of the table are, and how many it has.
fn width(is_32: bool, in_heap: u64, table_bytes: u64) -> (Width, u64) {
    match (is_32, in_heap) {
        (true, _) => (Width::Bits32, table_bytes / 4),
        (false, ..=4084) => (Width::Bits12, table_bytes.saturating_mul(2) / 3),
        (false, _) => (Width::Bits16, table_bytes / 2),
    }
}

/// What stands behind the geometry: state, id and label.
struct Identity {
    is_marked_dirty: bool,
    serial: Option<u32>,
    label: Option<String>,
}

impl Identity {
    fn parse(raw: &[u8], offset: usize) -> Result<Self> {
        let part = slice(raw, offset, 18)?;
        let signature = u8_at(part, 2)?;
        let has_serial = matches!(signature, 0x28 | 0x29);
        let label = names::text(slice(part, 7, 11)?);
        let label = label.trim_end_matches([' ', '\0']);
        let has_label = signature == 0x29 && !label.is_empty() && label != "NO NAME";
        Ok(Self {
            is_marked_dirty: u8_at(part, 1)? & 3 != 0 && has_serial,
            serial: if has_serial {
                Some(u32_le(part, 3)?)
            } else {
                None
            },
            label: has_label.then(|| label.to_owned()),
        })
    }
}

/// A serial number as everybody writes it.
pub(super) fn id(serial: u32) -> String {
    format!("{:04X}-{:04X}", serial >> 16, serial & 0xFFFF)
}
