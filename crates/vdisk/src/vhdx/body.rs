//! From a disk offset to where its bytes are, and reading them.
//!
//! ```text
//!   offset ─► block ─► BAT entry ─┬─ full ──────────► file
//!                                 ├─ partial ─► bit ┬► file
//!                                 ├─ absent ────────┴► parent, or unallocated
//!                                 └─ zero, unmapped, undefined ─► zeros, whatever the parent has
//! ```
//!
//! **Invariants.** Neighbouring pieces of one source are read in one go. Metadata is seen through a bounded page cache.
//! What lies behind the parent's end reads as zeros.

use std::sync::Arc;

use block::{Error as DiskError, ErrorKind as DiskErrorKind, Extent, ExtentKind, ReadAt};

use super::bytes::{to_u64, to_usize};
use super::entry::{PayloadEntry, PayloadState, decode_bitmap};
use super::geometry::{BAT_ENTRY_BYTES, Geometry};
use super::pages::MetadataPages;
use crate::{Error, Result};

/// Pieces that one look joins at most: what it costs when every block is somewhere else.
const MAX_JOINED_PIECES: u32 = 4096;

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    File(u64),
    /// Said to be zero, or never written.
    Zeros(ExtentKind),
    Parent,
}

impl Source {
    /// The source that joins on behind so many bytes of this one.
    fn behind(self, length: u64) -> Self {
        match self {
            Self::File(offset) => Self::File(offset.saturating_add(length)),
            other => other,
        }
    }
}

/// A run of one source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) source: Source,
    pub(super) length: u64,
}

/// The mapping of one image.
pub(super) struct Body {
    pub(super) file: Arc<dyn ReadAt>,
    pub(super) pages: MetadataPages,
    pub(super) geometry: Geometry,
    bat_offset: u64,
}

impl Body {
    pub(super) fn new(file: Arc<dyn ReadAt>, geometry: Geometry, bat_offset: u64) -> Self {
        Self {
            pages: MetadataPages::new(Arc::clone(&file)),
            file,
            geometry,
            bat_offset,
        }
    }

    fn entry_offset(&self, index: u64) -> u64 {
        self.bat_offset
            .saturating_add(index.saturating_mul(BAT_ENTRY_BYTES))
    }

    /// The entry of a block.
    pub(super) fn payload(&self, block: u64) -> Result<PayloadEntry> {
        let at = self.entry_offset(self.geometry.payload_index(block));
        PayloadEntry::decode(self.pages.word(at)?, self.geometry.lineage)
            .map_err(|why| Error::corrupt(format!("vhdx BAT: block {block}: {why}")))
    }

    pub(super) fn set_payload(&self, block: u64, entry: PayloadEntry) -> Result<()> {
        let at = self.entry_offset(self.geometry.payload_index(block));
        self.pages.set_word(at, entry.encode())
    }

    /// Where the sector bitmap of a chunk lies.
    pub(super) fn bitmap(&self, chunk: u64) -> Result<Option<u64>> {
        let at = self.entry_offset(self.geometry.bitmap_index(chunk));
        decode_bitmap(self.pages.word(at)?)
            .map_err(|why| Error::corrupt(format!("vhdx BAT: bitmap of chunk {chunk}: {why}")))
    }

    pub(super) fn set_bitmap(&self, chunk: u64, raw: u64) -> Result<()> {
        self.pages
            .set_word(self.entry_offset(self.geometry.bitmap_index(chunk)), raw)
    }

    /// The piece at `offset`, inside one block. `offset` lies on the disk and `limit` is not zero.
    fn piece_at(&self, offset: u64, limit: u64) -> Result<Piece> {
        let geometry = &self.geometry;
        let block = geometry.block_of(offset);
        let within = offset.saturating_sub(geometry.block_start(block));
        let length = geometry
            .block_length(block)
            .saturating_sub(within)
            .min(limit);
        let entry = self.payload(block)?;
        let source = match entry.state {
            PayloadState::Full => Source::File(entry.offset.saturating_add(within)),
            PayloadState::NotPresent if geometry.is_differencing() => Source::Parent,
            PayloadState::NotPresent => Source::Zeros(ExtentKind::Unallocated),
            PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped => {
                Source::Zeros(ExtentKind::Zero)
            }
            PayloadState::Partial => return self.partial_piece(entry, offset, within, length),
        };
        Ok(Piece { source, length })
    }

    fn partial_piece(
        &self,
        entry: PayloadEntry,
        offset: u64,
        within: u64,
        length: u64,
    ) -> Result<Piece> {
        let geometry = &self.geometry;
        let block = geometry.block_of(offset);
        let bitmap = self.bitmap(geometry.chunk_of(block))?.ok_or_else(|| {
            Error::corrupt(format!(
                "vhdx BAT: block {block} is partial, but its chunk has no bitmap"
            ))
        })?;
        let in_sector = offset & geometry.sector_size.saturating_sub(1);
        let sectors = geometry
            .sectors(
                length
                    .saturating_add(in_sector)
                    .saturating_add(geometry.sector_size),
            )
            .max(1);
        let (is_present, run) = self
            .pages
            .bit_run(bitmap, geometry.bitmap_bit(offset), sectors)?;
        let bytes = run
            .saturating_mul(geometry.sector_size)
            .saturating_sub(in_sector);
        let source = match is_present {
            true => Source::File(entry.offset.saturating_add(within)),
            false => Source::Parent,
        };
        Ok(Piece {
            source,
            length: bytes.min(length),
        })
    }

    /// The longest run of one source at `offset`, as far as it is looked for.
    pub(super) fn run_at(&self, offset: u64, limit: u64) -> Result<Piece> {
        let limit = limit.min(self.geometry.size.saturating_sub(offset));
        let mut run = self.piece_at(offset, limit)?;
        for _ in 0..MAX_JOINED_PIECES {
            if run.length >= limit {
                break;
            }
            let at = offset.saturating_add(run.length);
            let next = self.piece_at(at, limit.saturating_sub(run.length))?;
            if next.source != run.source.behind(run.length) || next.length == 0 {
                break;
            }
            run.length = run.length.saturating_add(next.length);
        }
        Ok(run)
    }

    /// Refuses what lies outside the disk.
    pub(super) fn check_range(&self, offset: u64, length: u64) -> block::Result<()> {
        let size = self.geometry.size;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(DiskError::new(
                DiskErrorKind::OutOfRange,
                format!("vhdx: {length} bytes at {offset} of a disk of {size}"),
            ));
        }
        Ok(())
    }

    pub(super) fn read_at(
        &self,
        parent: Option<&dyn ReadAt>,
        offset: u64,
        buffer: &mut [u8],
    ) -> block::Result<()> {
        self.check_range(offset, to_u64(buffer.len()))?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let run = self.run_at(at, to_u64(rest.len()))?;
            let count = to_usize(run.length).clamp(1, rest.len());
            let (head, tail) = rest.split_at_mut(count);
            match (run.source, parent) {
                (Source::File(place), _) => self.file.read_at(place, head)?,
                (Source::Zeros(_), _) => head.fill(0),
                (Source::Parent, Some(parent)) => block::read_padded(parent, at, head)?,
                (Source::Parent, None) => {
                    return Err(DiskError::new(
                        DiskErrorKind::NotFound,
                        format!("vhdx: byte {at} is the parent's, and none was given"),
                    ));
                }
            }
            at = at.saturating_add(to_u64(count));
            rest = tail;
        }
        Ok(())
    }

    pub(super) fn extent_at(
        &self,
        parent: Option<&dyn ReadAt>,
        offset: u64,
        limit: u64,
    ) -> block::Result<Extent> {
        if limit == 0 || offset >= self.geometry.size {
            return Err(DiskError::new(
                DiskErrorKind::OutOfRange,
                format!(
                    "vhdx: extent at {offset} of a disk of {}",
                    self.geometry.size
                ),
            ));
        }
        let run = self.run_at(offset, limit)?;
        let extent = |length_bytes: u64, kind| Extent {
            offset,
            length_bytes: length_bytes.max(1),
            kind,
        };
        match (run.source, parent) {
            (Source::Zeros(kind), _) => Ok(extent(run.length, kind)),
            (Source::Parent, None) => Ok(extent(run.length, ExtentKind::InParent)),
            (Source::Parent, Some(parent)) => {
                let left = parent.size_bytes().saturating_sub(offset);
                if left == 0 {
                    return Ok(extent(run.length, ExtentKind::Unallocated));
                }
                let below = parent.extent_at(offset, run.length.min(left))?;
                Ok(extent(below.length_bytes.min(run.length), below.kind))
            }
            (Source::File(place), _) => {
                // A block that the host file has as a hole need not be read: fixed images are full of them.
                let below = self.file.extent_at(place, run.length)?;
                let kind = if below.kind.is_zero() {
                    ExtentKind::Zero
                } else {
                    ExtentKind::Data
                };
                Ok(extent(below.length_bytes.min(run.length), kind))
            }
        }
    }
}
