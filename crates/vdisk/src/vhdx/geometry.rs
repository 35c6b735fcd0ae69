//! The arithmetic of block allocation: which BAT slot, which bitmap bit. Pure.
//!
//! ```text
//!   chunk 0: cr payload slots, 1 bitmap slot │ chunk 1: cr payload slots, 1 bitmap slot │ …
//!   cr (chunk ratio) = 2^23 × logical sector / block size: one 1 MiB bitmap has a bit per sector of a chunk
//! ```
//! Source: MS-VHDX 2.5.
//!
//! **Invariants.** Built only from validated values (block size 1..256 MiB and logical sector 512/4096, both powers of
//! two, disk at most 64 TiB), so that no product here leaves 64 bits; operations saturate all the same.

use super::header::MIB;
use crate::{Error, ErrorKind, Result};

/// Largest disk of the format.
pub const MAX_DISK_BYTES: u64 = 64 << 40;
pub(super) const MIN_BLOCK_BYTES: u32 = 1 << 20;
pub(super) const MAX_BLOCK_BYTES: u32 = 256 << 20;
/// Sectors that one bitmap block describes.
const SECTORS_PER_CHUNK_SHIFT: u32 = 23;
/// Bytes of one sector bitmap block.
pub(super) const BITMAP_BLOCK_BYTES: u64 = MIB;
pub(super) const BAT_ENTRY_BYTES: u64 = 8;

/// Whether blocks that are absent are the parent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lineage {
    Standalone,
    Differencing,
}

/// What a BAT slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Payload of this block.
    Payload(u64),
    /// Sector bitmap of this chunk.
    Bitmap(u64),
}

/// Sizes of one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) size: u64,
    pub(super) lineage: Lineage,
    pub(super) block_size: u64,
    pub(super) sector_size: u64,
    block_shift: u32,
    sector_shift: u32,
    chunk_shift: u32,
}

impl Geometry {
    /// Refuses what the format does not allow.
    pub(super) fn new(size: u64, block: u32, sector: u32, lineage: Lineage) -> Result<Self> {
        let fault = |what: String| Error::new(ErrorKind::Invalid, what);
        if !block.is_power_of_two() || !(MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&block) {
            return Err(fault(format!("vhdx: block size of {block} bytes")));
        }
        if sector != 512 && sector != 4096 {
            return Err(fault(format!("vhdx: logical sector of {sector} bytes")));
        }
        if size == 0 || size > MAX_DISK_BYTES || !size.is_multiple_of(u64::from(sector)) {
            return Err(fault(format!(
                "vhdx: disk of {size} bytes is not a whole number of sectors up to 64 TiB"
            )));
        }
        let block_shift = block.trailing_zeros();
        let sector_shift = sector.trailing_zeros();
        Ok(Self {
            size,
            lineage,
            block_size: u64::from(block),
            sector_size: u64::from(sector),
            block_shift,
            sector_shift,
            chunk_shift: SECTORS_PER_CHUNK_SHIFT
                .saturating_add(sector_shift)
                .saturating_sub(block_shift),
        })
    }

    pub(super) fn is_differencing(&self) -> bool {
        self.lineage == Lineage::Differencing
    }

    /// Payload blocks, the last one possibly partial.
    pub(super) fn block_count(&self) -> u64 {
        self.block_of(self.size.saturating_add(self.block_size).saturating_sub(1))
    }

    pub(super) fn block_of(&self, offset: u64) -> u64 {
        offset.wrapping_shr(self.block_shift)
    }

    pub(super) fn block_start(&self, block: u64) -> u64 {
        block.saturating_mul(self.block_size)
    }

    /// Bytes of the disk that lie in a block.
    pub(super) fn block_length(&self, block: u64) -> u64 {
        self.size
            .saturating_sub(self.block_start(block))
            .min(self.block_size)
    }

    pub(super) fn chunk_of(&self, block: u64) -> u64 {
        block.wrapping_shr(self.chunk_shift)
    }

    pub(super) fn chunk_ratio(&self) -> u64 {
        1u64.wrapping_shl(self.chunk_shift)
    }

    pub(super) fn payload_index(&self, block: u64) -> u64 {
        block.saturating_add(self.chunk_of(block))
    }

    pub(super) fn bitmap_index(&self, chunk: u64) -> u64 {
        let ratio = self.chunk_ratio();
        chunk
            .saturating_mul(ratio.saturating_add(1))
            .saturating_add(ratio)
    }

    /// Entries that the BAT must have.
    pub(super) fn entry_count(&self) -> u64 {
        let blocks = self.block_count();
        match self.lineage {
            Lineage::Standalone => self
                .payload_index(blocks.saturating_sub(1))
                .saturating_add(1),
            Lineage::Differencing => self
                .bitmap_index(self.chunk_of(blocks.saturating_sub(1)))
                .saturating_add(1),
        }
    }

    /// What the slot at a BAT index is for; `None` behind the last block and for a bitmap slot that no one uses.
    pub(super) fn slot(&self, index: u64) -> Option<Slot> {
        let ratio = self.chunk_ratio();
        let per_chunk = ratio.saturating_add(1);
        let chunk = index.checked_div(per_chunk)?;
        let within = index.checked_rem(per_chunk)?;
        if within == ratio {
            return self.is_differencing().then_some(Slot::Bitmap(chunk));
        }
        let block = chunk.saturating_mul(ratio).saturating_add(within);
        (block < self.block_count()).then_some(Slot::Payload(block))
    }

    /// Bit of the sector that holds `offset`, counted in the bitmap of its chunk.
    pub(super) fn bitmap_bit(&self, offset: u64) -> u64 {
        offset.wrapping_shr(self.sector_shift) & ((1 << SECTORS_PER_CHUNK_SHIFT) - 1)
    }

    pub(super) fn sectors(&self, bytes: u64) -> u64 {
        bytes.wrapping_shr(self.sector_shift)
    }
}
