//! Where the blocks of a VHD lie, and whether that can be true.
//!
//! **Invariants.** Memory is four bytes for each allocated block, up to a cap: an image that claims more blocks than a 2 TiB
//! disk has is held against the file's end only.

use super::format::{FOOTER_SIZE, SECTOR_BYTES};
use super::reader::Blocks;
use crate::{Error, Result};

/// Blocks whose places are compared when opening: a 2 TiB disk with blocks of 512 KiB.
const MAX_COMPARED_BLOCKS: usize = 4 << 20;

/// Where allocated blocks lie, and whether that can be true.
pub(super) struct Placement {
    starts: Vec<u32>,
    block_bytes: u64,
    bitmap_bytes: u64,
    file_bytes: u64,
    disk_bytes: u64,
}

impl Placement {
    pub fn new(blocks: &Blocks, file_bytes: u64, disk_bytes: u64) -> Self {
        let Blocks {
            block_bytes,
            bitmap_bytes,
            ..
        } = *blocks;
        Self {
            starts: Vec::new(),
            block_bytes,
            bitmap_bytes,
            file_bytes,
            disk_bytes,
        }
    }

    /// Notes a block; an error when it lies outside the file or on the footer copy.
    pub fn add(&mut self, index: u64, sector: u32) -> Result<()> {
        let start = u64::from(sector).saturating_mul(SECTOR_BYTES);
        let disk_left = self
            .disk_bytes
            .saturating_sub(index.saturating_mul(self.block_bytes));
        // The last block of a disk may be cut short in the file.
        let used = self
            .bitmap_bytes
            .saturating_add(disk_left.min(self.block_bytes));
        if start.saturating_add(used) > self.file_bytes {
            return Err(Error::corrupt(format!(
                "vhd block {index} at sector {sector} reaches behind the file's end"
            )));
        }
        if start < FOOTER_SIZE {
            return Err(Error::corrupt(format!(
                "vhd block {index} lies on the footer copy"
            )));
        }
        if self.starts.len() < MAX_COMPARED_BLOCKS {
            self.starts.push(sector);
        }
        Ok(())
    }

    /// Pairs of blocks of which the second begins inside the first.
    pub fn overlaps(&mut self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.starts.sort_unstable();
        let room = self.bitmap_bytes.saturating_add(self.block_bytes) / SECTOR_BYTES;
        self.starts
            .iter()
            .zip(self.starts.iter().skip(1))
            .filter(move |(one, next)| u64::from(next.saturating_sub(**one)) < room)
            .map(|(one, next)| (*one, *next))
    }
}
