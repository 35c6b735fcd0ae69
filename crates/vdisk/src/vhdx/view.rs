//! A VHDX file that does not exist: made up, byte by byte as it is read, over a disk that is read-only.
//!
//! ```text
//!   file:  headers, metadata │ BAT          │ block a │ block b │ …
//!            from memory       computed       └──► the disk, at a × block size
//! ```
//!
//! Only blocks that hold data are in the file, one behind the other in the order of the disk, so that a copy of the file takes
//! what a dynamic image would take.
//!
//! **Invariants.** The same disk, options and ids give the same bytes, in any order of reading. Memory: 4 bytes for each block
//! that holds data. The disk must not change meanwhile.

use std::sync::Arc;

use block::{Error as DiskError, ErrorKind as DiskErrorKind, Extent, ExtentKind, ReadAt};

use super::bytes::{to_u64, to_usize};
use super::create::{Allocation, CreateOptions, lay_out};
use super::entry::{PayloadEntry, PayloadState};
use super::geometry::{BAT_ENTRY_BYTES, Geometry, Lineage, Slot};
use super::metadata::Completion;
use crate::memory::MemoryFile;
use crate::{Error, ErrorKind, Result};

/// What a view's blocks measure unless the options say otherwise: what a leaf of a disk's tree covers.
const BLOCK_BYTES: u32 = 8 << 20;
/// BAT entries computed at once.
const PIECE_ENTRIES: u64 = 8192;

/// A dynamic VHDX over a disk.
pub struct VhdxView {
    disk: Arc<dyn ReadAt>,
    geometry: Geometry,
    /// Everything in front of the payload; the BAT in it is a hole.
    front: MemoryFile,
    bat_offset: u64,
    payload_offset: u64,
    /// The blocks that hold data, ascending: the place of a block in the file is its place here.
    blocks: Vec<u32>,
}

/// Where an offset of the file lies.
enum Part {
    Front {
        end: u64,
    },
    Bat,
    /// In the payload of this block, so far from its start.
    Payload {
        block: u64,
        within: u64,
    },
}

impl VhdxView {
    /// Lays the file out. `extents` says what lies from an offset on, as [`ReadAt::extent_at`] does, but may be coarser: what
    /// it calls data may be zeros. It is asked for the whole disk, once.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the options contradict the format (a disk that is no whole number of sectors), or when they
    /// ask for another allocation than [`Allocation::Dynamic`]; what `extents` answers.
    pub fn open(
        disk: Arc<dyn ReadAt>,
        options: &CreateOptions,
        extents: &mut dyn FnMut(u64, u64) -> block::Result<Extent>,
    ) -> Result<Self> {
        if options.allocation != Allocation::Dynamic || options.size_bytes != disk.size_bytes() {
            let what = "vhdx: a view is dynamic, and as large as its disk";
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut options = options.clone();
        let block_bytes = *options.block_bytes.get_or_insert(BLOCK_BYTES);
        let geometry = Geometry::new(
            options.size_bytes,
            block_bytes,
            options.logical_sector_bytes,
            Lineage::Standalone,
        )?;
        let front = MemoryFile::new();
        lay_out(&front, &options, Completion::Finished)?;
        let blocks = present_blocks(&geometry, extents)?;
        Ok(Self {
            disk,
            geometry,
            payload_offset: front.size_bytes(),
            front,
            bat_offset: super::create::BAT_OFFSET,
            blocks,
        })
    }

    /// Blocks that are in the file.
    pub fn block_count(&self) -> u64 {
        to_u64(self.blocks.len())
    }

    /// Bytes of the disk that lie in those blocks.
    pub fn data_bytes(&self) -> u64 {
        let missing = match self.blocks.last() {
            Some(last) => {
                let length = self.geometry.block_length(u64::from(*last));
                self.geometry.block_size.saturating_sub(length)
            }
            None => 0,
        };
        self.geometry
            .block_start(self.block_count())
            .saturating_sub(missing)
    }

    fn part(&self, offset: u64) -> Part {
        if offset < self.bat_offset {
            return Part::Front {
                end: self.bat_offset,
            };
        }
        if offset < self.payload_offset {
            return Part::Bat;
        }
        let behind = offset.saturating_sub(self.payload_offset);
        let place = self.geometry.block_of(behind);
        let within = behind.saturating_sub(self.geometry.block_start(place));
        let block = self
            .blocks
            .get(to_usize(place))
            .copied()
            .map_or(u64::MAX, u64::from);
        Part::Payload { block, within }
    }

    /// Reads from the BAT; the whole buffer lies in it.
    fn read_bat(&self, offset: u64, buffer: &mut [u8]) {
        let within = offset.saturating_sub(self.bat_offset);
        let skip = to_usize(within.checked_rem(BAT_ENTRY_BYTES).unwrap_or(0));
        let first = within.checked_div(BAT_ENTRY_BYTES).unwrap_or(0);
        let mut place: Option<usize> = None;
        let entries = (first..).map(|index| self.entry(index, &mut place));
        let bytes = entries.flat_map(u64::to_le_bytes).skip(skip);
        for (slot, byte) in buffer.iter_mut().zip(bytes) {
            *slot = byte;
        }
    }

    /// One BAT entry; `place` remembers where among the blocks the last one was found.
    fn entry(&self, index: u64, place: &mut Option<usize>) -> u64 {
        let Some(Slot::Payload(block)) = self.geometry.slot(index) else {
            return 0;
        };
        let at = match *place {
            Some(at) => at,
            None => self.blocks.partition_point(|one| u64::from(*one) < block),
        };
        if self.blocks.get(at).copied().map(u64::from) != Some(block) {
            *place = Some(at);
            return 0;
        }
        *place = Some(at.saturating_add(1));
        let offset = self
            .payload_offset
            .saturating_add(self.geometry.block_start(to_u64(at)));
        let state = PayloadState::Full;
        PayloadEntry { state, offset }.encode()
    }

    /// Bytes of the file that can be read from `offset` on as one part.
    fn length_of(&self, offset: u64, part: &Part) -> u64 {
        match part {
            Part::Front { end } => end.saturating_sub(offset),
            Part::Bat => self
                .payload_offset
                .saturating_sub(offset)
                .min(PIECE_ENTRIES.saturating_mul(BAT_ENTRY_BYTES)),
            Part::Payload { within, .. } => self.geometry.block_size.saturating_sub(*within),
        }
    }
}

/// The blocks that `extents` calls anything but zeros.
fn present_blocks(
    geometry: &Geometry,
    extents: &mut dyn FnMut(u64, u64) -> block::Result<Extent>,
) -> Result<Vec<u32>> {
    let mut blocks: Vec<u32> = Vec::new();
    let mut at = 0;
    while at < geometry.size {
        let extent = extents(at, geometry.size.saturating_sub(at))?;
        if extent.length_bytes == 0 {
            return Err(Error::corrupt(format!(
                "nothing is told about what lies at {at}"
            )));
        }
        let end = extent.end().min(geometry.size);
        if !matches!(extent.kind, ExtentKind::Zero | ExtentKind::Unallocated) {
            let last = geometry.block_of(end.saturating_sub(1));
            // At most 64 Mi blocks, of 1 MiB, on a disk of 64 TiB.
            let next = blocks
                .last()
                .map_or(0, |block| u64::from(*block).saturating_add(1));
            let new = geometry.block_of(at).max(next)..=last;
            blocks.extend(new.filter_map(|block| u32::try_from(block).ok()));
        }
        at = end;
    }
    Ok(blocks)
}

fn outside(offset: u64, length: u64, size: u64) -> DiskError {
    let what = format!("{length} bytes at {offset} of {size}");
    DiskError::new(DiskErrorKind::OutOfRange, what)
}

impl ReadAt for VhdxView {
    fn size_bytes(&self) -> u64 {
        let payload = self.geometry.block_start(self.block_count());
        self.payload_offset.saturating_add(payload)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let length = to_u64(buffer.len());
        let size = self.size_bytes();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(outside(offset, length, size));
        }
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let part = self.part(at);
            let count = to_usize(self.length_of(at, &part)).min(rest.len());
            let (piece, after) = rest.split_at_mut(count);
            match part {
                Part::Front { .. } => self.front.read_at(at, piece)?,
                Part::Bat => self.read_bat(at, piece),
                Part::Payload { block, within } => {
                    let start = self.geometry.block_start(block).saturating_add(within);
                    block::read_padded(&self.disk, start, piece)?;
                }
            }
            at = at.saturating_add(to_u64(count));
            rest = after;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let size = self.size_bytes();
        let left = size.saturating_sub(offset).min(limit_bytes);
        if left == 0 {
            return Err(outside(offset, limit_bytes, size));
        }
        let part = self.part(offset);
        let length_bytes = self.length_of(offset, &part).min(left);
        let data = Extent {
            offset,
            length_bytes,
            kind: ExtentKind::Data,
        };
        Ok(match part {
            Part::Bat => data,
            Part::Front { .. } => self.front.extent_at(offset, length_bytes)?,
            Part::Payload { block, within } => {
                let start = self.geometry.block_start(block).saturating_add(within);
                if start >= self.geometry.size {
                    let kind = ExtentKind::Zero;
                    return Ok(Extent { kind, ..data });
                }
                let below = self.disk.extent_at(start, length_bytes)?;
                Extent {
                    offset,
                    length_bytes: below.length_bytes.min(length_bytes),
                    kind: below.kind,
                }
            }
        })
    }
}
