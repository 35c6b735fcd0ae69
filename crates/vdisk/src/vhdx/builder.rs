//! Writing a whole disk into a new VHDX: conversion and restore.
//!
//! ```text
//!   create (marked incomplete) ─► write_at / zero_range, any order, any thread ─► flush … ─► finish (mark removed)
//!                                       └───────────── resume after a crash ◄──────┘
//! ```
//!
//! **Invariants.** Payload goes straight to its place, no log. Until `finish` has returned, the file carries the mark of an
//! interrupted creation and no reader takes it for an image. What a returned `flush` covers is there after `resume`.
//! Zeros take no block in a dynamic image. BAT pages in memory are bounded; the rest of the BAT stays a hole.
//! It does not write differencing images: see [`super::VhdxWriter`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{Error as DiskError, ErrorKind as DiskErrorKind, Extent, ReadAt, WriteAt};

use super::body::Body;
use super::bytes::{is_zero, to_u64, to_usize};
use super::create::{Allocation, CreateOptions, lay_out};
use super::entry::{PayloadEntry, PayloadState};
use super::header::{HEADER_SECTION_BYTES, MIB};
use super::metadata::{self, Completion};
use super::overlay::MAX_FILE_BYTES;
use super::region::Span;
use super::structure::{self, Accept, Anchors, Structure};
use crate::{Error, ErrorKind, ImageInfo, Result, Subformat};

/// Changed BAT pages that are kept before they are written: 4 MiB.
const MAX_DIRTY_PAGES: usize = 1024;

/// A VHDX being built.
pub struct VhdxBuilder {
    file: Arc<dyn WriteAt>,
    structure: Structure,
    body: Body,
    /// Where the next block goes; held while the BAT changes.
    next_free: Mutex<u64>,
}

impl VhdxBuilder {
    /// Begins a fixed or dynamic image; whatever the file held is gone.
    ///
    /// # Errors
    /// `Invalid` when the options contradict the format, `Unsupported` for a differencing image, `Io`.
    pub fn create(file: Arc<dyn WriteAt>, options: &CreateOptions) -> Result<Self> {
        if matches!(options.allocation, Allocation::Differencing(_)) {
            return Err(Self::no_differencing());
        }
        lay_out(file.as_ref(), options, Completion::Unfinished)?;
        Self::resume(file)
    }

    /// Goes on with an image whose building was interrupted. Everything that its last `flush` covered is there; what was
    /// written later may be, in part, and is to be written again.
    ///
    /// # Errors
    /// `Invalid` when it was finished, `Corrupt` when it is no image in the making, `Io`.
    pub fn resume(file: Arc<dyn WriteAt>) -> Result<Self> {
        let structure = structure::open(structure::read_view(&file), Accept::Unfinished)?;
        if structure.metadata.completion == Completion::Finished {
            return Err(Error::new(
                ErrorKind::Invalid,
                "vhdx: building it has been finished",
            ));
        }
        if structure.metadata.subformat == Subformat::Differencing {
            return Err(Self::no_differencing());
        }
        if structure.has_pending_log {
            return Err(Error::corrupt(
                "vhdx: an image in the making has no log to replay",
            ));
        }
        // Blocks that no flush covers may lie behind an end of file that was not written, and behind the last block
        // there may be bytes that no entry knows: both ends become the end of the last block, which gives zeros.
        let end = end_of_blocks(&structure)?;
        file.set_size(end)?;
        structure.survey(Anchors::Ignored)?;
        let body = Body::new(
            Arc::clone(&structure.file),
            structure.geometry,
            structure.regions.bat.offset,
        );
        Ok(Self {
            file,
            structure,
            body,
            next_free: Mutex::new(end),
        })
    }

    fn no_differencing() -> Error {
        Error::new(
            ErrorKind::Unsupported,
            "vhdx: a differencing image is written, not built",
        )
    }

    /// What the image will say about itself.
    pub fn info(&self) -> ImageInfo {
        self.structure.info()
    }

    /// Makes the image valid and durable.
    pub fn finish(self) -> Result<()> {
        WriteAt::flush(&self)?;
        let place = self.structure.regions.metadata.offset;
        let mut table = vec![0; metadata::TABLE_BYTES];
        self.file.read_at(place, &mut table)?;
        let table = metadata::without_marker(&table)?;
        // All entries lie in the first sector: the image is unfinished or finished, nothing between.
        self.file
            .write_at(place, table.get(..4096).unwrap_or(&table))?;
        Ok(self.file.flush()?)
    }

    fn locked(&self) -> MutexGuard<'_, u64> {
        self.next_free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a block its place, unless another thread just did.
    fn allocate(&self, block: u64) -> Result<PayloadEntry> {
        let mut next_free = self.locked();
        let found = self.body.payload(block)?;
        if found.is_used() {
            return Ok(found);
        }
        let entry = PayloadEntry {
            state: PayloadState::Full,
            offset: *next_free,
        };
        let end = next_free.saturating_add(self.body.geometry.block_size);
        self.file.set_size(end)?;
        self.body.set_payload(block, entry)?;
        *next_free = end;
        if self.body.pages.dirty_count() >= MAX_DIRTY_PAGES {
            self.write_back(&next_free)?;
        }
        Ok(entry)
    }

    /// Writes changed BAT pages, neighbours together. The guard says that nobody changes them meanwhile.
    fn write_back(&self, _guard: &MutexGuard<'_, u64>) -> Result<()> {
        let pages = self.body.pages.dirty_pages();
        let mut run: Option<(u64, Vec<u8>)> = None;
        for (offset, bytes) in &pages {
            match &mut run {
                Some((start, joined)) if start.saturating_add(to_u64(joined.len())) == *offset => {
                    joined.extend_from_slice(bytes);
                }
                _ => {
                    if let Some((start, joined)) = run.replace((*offset, bytes.clone())) {
                        self.file.write_at(start, &joined)?;
                    }
                }
            }
        }
        if let Some((start, joined)) = run {
            self.file.write_at(start, &joined)?;
        }
        self.body.pages.settle(pages);
        Ok(())
    }

    /// Calls `each` for the part of a range in every block: block, offset in the block, bytes.
    fn for_blocks(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(u64, u64, u64) -> block::Result<()>,
    ) -> block::Result<()> {
        self.body.check_range(offset, length)?;
        let geometry = &self.body.geometry;
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let block = geometry.block_of(at);
            let within = at.saturating_sub(geometry.block_start(block));
            let count = geometry
                .block_size
                .saturating_sub(within)
                .min(end.saturating_sub(at));
            each(block, within, count)?;
            at = at.saturating_add(count);
        }
        Ok(())
    }
}

/// Byte behind the last thing in the file.
fn end_of_blocks(structure: &Structure) -> Result<u64> {
    let fixed = structure.fixed_spans();
    let mut end = fixed
        .into_iter()
        .map(Span::end)
        .max()
        .unwrap_or(HEADER_SECTION_BYTES);
    structure.scan_bat(&mut |slot, raw| {
        let super::geometry::Slot::Payload(block) = slot else {
            return Ok(());
        };
        let entry = PayloadEntry::decode(raw, structure.geometry.lineage)
            .map_err(|why| Error::corrupt(format!("vhdx BAT: block {block}: {why}")))?;
        if entry.is_used() {
            end = end.max(entry.offset.saturating_add(structure.geometry.block_size));
        }
        Ok(())
    })?;
    if end > MAX_FILE_BYTES {
        return Err(Error::corrupt(format!(
            "vhdx BAT: a block ends at {end:#x}"
        )));
    }
    Ok(end.div_ceil(MIB).saturating_mul(MIB))
}

impl ReadAt for VhdxBuilder {
    fn size_bytes(&self) -> u64 {
        self.body.geometry.size
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.body.read_at(None, offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.body.extent_at(None, offset, limit_bytes)
    }
}

impl WriteAt for VhdxBuilder {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        let mut rest = buffer;
        self.for_blocks(offset, to_u64(buffer.len()), |block, within, count| {
            let (piece, tail) = rest.split_at_checked(to_usize(count)).ok_or_else(|| {
                DiskError::new(
                    DiskErrorKind::OutOfRange,
                    "vhdx: write reaches behind its buffer",
                )
            })?;
            rest = tail;
            let mut entry = self.body.payload(block)?;
            if !entry.is_used() {
                if is_zero(piece) {
                    return Ok(());
                }
                entry = self.allocate(block)?;
            }
            self.file
                .write_at(entry.offset.saturating_add(within), piece)
        })
    }

    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        self.for_blocks(offset, length_bytes, |block, within, count| {
            let entry = self.body.payload(block)?;
            if !entry.is_used() {
                return Ok(());
            }
            self.file
                .zero_range(entry.offset.saturating_add(within), count)
        })
    }

    fn flush(&self) -> block::Result<()> {
        let next_free = self.locked();
        self.write_back(&next_free)?;
        drop(next_free);
        self.file.flush()
    }
}
