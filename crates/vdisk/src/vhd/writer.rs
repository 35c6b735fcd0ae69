//! Changing a VHD in place, and filling a new one.
//!
//! ```text
//!   write to an absent block              old footer's place
//!     1 footer behind the new end  │ … blocks │ bitmap │ data │ footer │
//!     2 bitmap and data            (the copy at 0 rules if the power fails between 1 and 2)
//!     ── flush: everything so far durable ──
//!     3 table entry, sector bitmap
//!     ── flush ──
//! ```
//!
//! **Invariants.** The file never points at bytes that are not durable: table entries and bitmap bits stay in memory until
//! a flush has passed. A crash therefore loses at most what was not flushed, leaves at worst unused space in the file, and
//! every byte that was flushed is there. Images made by [`VhdBuilder`] carry another cookie until `finish`, so that no
//! reader takes half an image for a whole one.
//!
//! Not done: giving the space of zeroed blocks back to other blocks (it goes back to the file system, where it can).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{Extent, ReadAt, WriteAt};

use super::create::{CreateOptions, next_block_start, plan_layout, write_layout};
use super::format::{
    COOKIE, DiskType, FOOTER_BYTES, FOOTER_SIZE, Footer, SECTOR_BYTES, UNFINISHED_COOKIE,
    UNUSED_BLOCK, length_u64,
};
use super::reader::{Blocks, FooterPlace, VhdReader, find_footer};
use crate::{DiskId, Error, ErrorKind, ImageInfo, Result};

/// Changed pages in memory that make the writer flush by itself: 4 MiB.
const MAX_CHANGED_PAGES: usize = 256;
/// Changed bitmaps in memory that make it flush.
const MAX_CHANGED_BITMAPS: usize = 1024;

/// Whether the image can be read by others while it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A whole image: its footer follows every growth.
    Live,
    /// Not yet an image: footers come when it is finished.
    Building,
}

/// What only one thread at a time may change.
struct Growth {
    /// Where the next block begins, and where the footer stands or will stand.
    end: u64,
}

/// A VHD opened for reading and writing. All calls may come from any thread.
pub struct VhdWriter {
    file: Arc<dyn WriteAt>,
    reader: VhdReader,
    stage: Stage,
    growth: Mutex<Growth>,
}

impl VhdWriter {
    /// Opens a whole image. A differencing image that is written in part of a sector, or read, needs its parent.
    pub fn open(file: Arc<dyn WriteAt>, parent: Option<Arc<dyn ReadAt>>) -> Result<Self> {
        let (footer, place) = find_footer(&*file)?;
        let writer = Self::with_footer(file, footer, place, parent, Stage::Live)?;
        if place != FooterPlace::End && writer.reader.blocks().is_some() {
            // The end was damaged: give the file its footer back before anything else changes.
            let end = writer.growth().end;
            writer
                .file
                .write_at(end, &writer.reader.footer().encode())?;
            writer.file.flush()?;
        }
        Ok(writer)
    }

    /// A whole image whose footer will be this one: its disk is larger already for who writes, not yet for who reads.
    pub(super) fn open_larger(
        file: Arc<dyn WriteAt>,
        footer: Footer,
        parent: Option<Arc<dyn ReadAt>>,
    ) -> Result<Self> {
        Self::with_footer(file, footer, FooterPlace::End, parent, Stage::Live)
    }

    fn with_footer(
        file: Arc<dyn WriteAt>,
        footer: Footer,
        place: FooterPlace,
        parent: Option<Arc<dyn ReadAt>>,
        stage: Stage,
    ) -> Result<Self> {
        let readable: Arc<dyn ReadAt> = file.clone();
        let reader = VhdReader::open_with(readable, footer, place, parent)?;
        let end = match reader.blocks() {
            // Nothing behind what may hold data is in use; a footer there is overwritten by the next block's bitmap.
            Some(blocks) => next_block_start(
                reader.data_end().next_multiple_of(SECTOR_BYTES),
                blocks.bitmap_bytes,
            ),
            None => reader.data_end(),
        };
        Ok(Self {
            file,
            reader,
            stage,
            growth: Mutex::new(Growth { end }),
        })
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        self.reader.info()
    }

    /// Identity of the image.
    pub fn unique_id(&self) -> DiskId {
        self.reader.unique_id()
    }

    /// Makes everything durable and closes the image.
    pub fn finish(self) -> Result<()> {
        self.make_durable()
    }

    fn growth(&self) -> MutexGuard<'_, Growth> {
        self.growth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_differencing(&self) -> bool {
        self.reader.footer().disk_type == DiskType::Differencing
    }

    fn make_durable(&self) -> Result<()> {
        let growth = self.growth();
        self.flush_locked(&growth)
    }

    /// Payload first, then what points at it.
    fn flush_locked(&self, _: &Growth) -> Result<()> {
        self.file.flush()?;
        let Some(blocks) = self.reader.blocks() else {
            return Ok(());
        };
        if blocks.table.changed_pages() == 0 && blocks.bitmaps.changed_pages() == 0 {
            return Ok(());
        }
        blocks.bitmaps.write_changed(&*self.file)?;
        blocks.table.write_changed(&*self.file)?;
        self.file.flush()?;
        Ok(())
    }

    /// Where the block begins, taking new space for it if it is absent.
    fn allocate(&self, growth: &mut Growth, blocks: &Blocks, index: u64) -> Result<u64> {
        if let Some(start) = blocks.start_of(index)? {
            return Ok(start);
        }
        let start = growth.end;
        let sector = u32::try_from(start / SECTOR_BYTES)
            .ok()
            .filter(|it| *it != UNUSED_BLOCK);
        let Some(sector) = sector else {
            let context = format!("vhd block {index} at {start}: addresses end at 2 TiB");
            return Err(Error::new(ErrorKind::Unsupported, context));
        };
        let used_end = start
            .saturating_add(blocks.bitmap_bytes)
            .saturating_add(blocks.block_bytes);
        let end = next_block_start(used_end, blocks.bitmap_bytes);
        match self.stage {
            Stage::Live => self.file.write_at(end, &self.reader.footer().encode())?,
            Stage::Building => self.file.set_size(end)?,
        }
        // Differencing: nothing is the child's own until it is written, and the old footer must not look like bits.
        let bits = if self.is_differencing() { 0x00 } else { 0xFF };
        let bitmap = vec![bits; usize::try_from(blocks.bitmap_bytes).unwrap_or(0)];
        self.file.write_at(start, &bitmap)?;
        blocks.table.set(index, sector)?;
        growth.end = end;
        if blocks.table.changed_pages() > MAX_CHANGED_PAGES {
            self.flush_locked(growth)?;
        }
        Ok(start)
    }

    fn write(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.reader.check_range(offset, length_u64(buffer))?;
        let Some(blocks) = self.reader.blocks() else {
            return Ok(self.file.write_at(offset, buffer)?);
        };
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let place = Place::of(blocks, at, length_u64(rest));
            let (now, later) = rest.split_at(
                usize::try_from(place.length)
                    .unwrap_or(usize::MAX)
                    .min(rest.len()),
            );
            if self.is_differencing() {
                self.write_own(blocks, place, Content::Bytes(now))?;
            } else {
                let found = blocks.start_of(place.index)?;
                let start = match found {
                    Some(start) => start,
                    None => self.allocate(&mut self.growth(), blocks, place.index)?,
                };
                self.file.write_at(place.in_file(blocks, start), now)?;
            }
            at = at.saturating_add(place.length);
            rest = later;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.reader.check_range(offset, length_bytes)?;
        let Some(blocks) = self.reader.blocks() else {
            return Ok(self.file.zero_range(offset, length_bytes)?);
        };
        let end = offset.saturating_add(length_bytes);
        let mut at = offset;
        while at < end {
            // What is known to be zero costs nothing, whatever its length.
            let extent = self.reader.extent_at(at, end.saturating_sub(at))?;
            if extent.kind.is_zero() {
                at = extent.end();
                continue;
            }
            let place = Place::of(blocks, at, end.saturating_sub(at));
            if self.is_differencing() {
                self.write_own(blocks, place, Content::Zeros)?;
            } else if let Some(start) = blocks.start_of(place.index)? {
                self.file
                    .zero_range(place.in_file(blocks, start), place.length)?;
            }
            at = at.saturating_add(place.length);
        }
        Ok(())
    }

    /// Writes into a block of a differencing image and marks its sectors as the child's own.
    fn write_own(&self, blocks: &Blocks, place: Place, content: Content<'_>) -> Result<()> {
        // Bits must not be seen before their bytes, so one thread at a time does both.
        let mut growth = self.growth();
        let start = self.allocate(&mut growth, blocks, place.index)?;
        let first = place.within / SECTOR_BYTES;
        let end = place.within.saturating_add(place.length);
        let last = end.saturating_sub(1) / SECTOR_BYTES;
        if !place.within.is_multiple_of(SECTOR_BYTES) {
            self.own_sector(blocks, place.index, start, first)?;
        }
        if !end.is_multiple_of(SECTOR_BYTES) {
            self.own_sector(blocks, place.index, start, last)?;
        }
        let at = place.in_file(blocks, start);
        match content {
            Content::Bytes(bytes) => self.file.write_at(at, bytes)?,
            Content::Zeros => self.file.zero_range(at, place.length)?,
        }
        let count = last.saturating_sub(first).saturating_add(1);
        blocks.bitmaps.set(place.index, start, first, count)?;
        if blocks.bitmaps.changed_pages() > MAX_CHANGED_BITMAPS {
            self.flush_locked(&growth)?;
        }
        Ok(())
    }

    /// Copies a sector that is written in part from the parent first, unless it is the child's own already.
    fn own_sector(&self, blocks: &Blocks, index: u64, start: u64, sector: u64) -> Result<()> {
        let within = sector.saturating_mul(SECTOR_BYTES);
        let on_disk = index
            .saturating_mul(blocks.block_bytes)
            .saturating_add(within);
        let mut bytes = [0; 512];
        block::read_padded(&self.reader, on_disk, &mut bytes)?;
        let at = start
            .saturating_add(blocks.bitmap_bytes)
            .saturating_add(within);
        self.file.write_at(at, &bytes)?;
        Ok(())
    }
}

/// What is written.
enum Content<'a> {
    Bytes(&'a [u8]),
    Zeros,
}

/// A range inside one block.
#[derive(Clone, Copy)]
struct Place {
    index: u64,
    within: u64,
    length: u64,
}

impl Place {
    fn of(blocks: &Blocks, offset: u64, limit: u64) -> Self {
        let index = offset.checked_div(blocks.block_bytes).unwrap_or(0);
        let within = offset.checked_rem(blocks.block_bytes).unwrap_or(0);
        Self {
            index,
            within,
            length: limit.min(blocks.block_bytes.saturating_sub(within)),
        }
    }

    fn in_file(self, blocks: &Blocks, start: u64) -> u64 {
        start
            .saturating_add(blocks.bitmap_bytes)
            .saturating_add(self.within)
    }
}

impl ReadAt for VhdWriter {
    fn size_bytes(&self) -> u64 {
        self.reader.size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.reader.read_at(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.reader.extent_at(offset, limit_bytes)
    }
}

impl WriteAt for VhdWriter {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        Ok(self.write(offset, buffer)?)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        Ok(self.zero(offset, length_bytes)?)
    }
    fn flush(&self) -> block::Result<()> {
        Ok(self.make_durable()?)
    }
}

/// Fills a new fixed or dynamic image: writes in any order, from any thread; an image only when finished.
pub struct VhdBuilder {
    writer: VhdWriter,
}

impl VhdBuilder {
    /// Begins an image in an empty file.
    pub fn create(file: Arc<dyn WriteAt>, options: &CreateOptions) -> Result<Self> {
        let plan = plan_layout(options)?;
        write_layout(&*file, &plan, UNFINISHED_COOKIE)?;
        let place = if plan.header.is_some() {
            FooterPlace::Copy
        } else {
            file.write_at(plan.first_block, &plan.footer.encode_as(UNFINISHED_COOKIE))?;
            FooterPlace::End
        };
        let writer = VhdWriter::with_footer(file, plan.footer, place, None, Stage::Building)?;
        writer.growth().end = plan.first_block;
        Ok(Self { writer })
    }

    /// Goes on with an image that was not finished: all that was written before the last `flush` is there.
    pub fn resume(file: Arc<dyn WriteAt>) -> Result<Self> {
        let size = file.size_bytes();
        let mut bytes = [0; FOOTER_BYTES];
        let mut refusal = None;
        for (place, offset) in [
            (FooterPlace::End, size.saturating_sub(FOOTER_SIZE)),
            (FooterPlace::Copy, 0),
        ] {
            if size < FOOTER_SIZE {
                break;
            }
            file.read_at(offset, &mut bytes)?;
            match Footer::decode_as(&bytes, "of an unfinished image", UNFINISHED_COOKIE) {
                Ok(footer)
                    if (footer.disk_type == DiskType::Fixed) == (place == FooterPlace::End) =>
                {
                    let writer =
                        VhdWriter::with_footer(file, footer, place, None, Stage::Building)?;
                    return Ok(Self { writer });
                }
                Ok(_) => {}
                Err(error) => refusal = Some(error),
            }
        }
        Err(refusal.unwrap_or_else(|| Error::corrupt("vhd: no unfinished image to go on with")))
    }

    /// What the image will say about itself.
    pub fn info(&self) -> ImageInfo {
        self.writer.info()
    }

    /// Makes the image whole and durable.
    pub fn finish(self) -> Result<()> {
        let writer = self.writer;
        writer.make_durable()?;
        let end = writer.growth().end;
        let footer = writer.reader.footer().encode_as(COOKIE);
        writer.file.set_size(end.saturating_add(FOOTER_SIZE))?;
        writer.file.write_at(end, &footer)?;
        writer.file.flush()?;
        if writer.reader.blocks().is_some() {
            writer.file.write_at(0, &footer)?;
            writer.file.flush()?;
        }
        Ok(())
    }
}

impl ReadAt for VhdBuilder {
    fn size_bytes(&self) -> u64 {
        self.writer.size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.writer.read_at(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.writer.extent_at(offset, limit_bytes)
    }
}

impl WriteAt for VhdBuilder {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        self.writer.write_at(offset, buffer)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        self.writer.zero_range(offset, length_bytes)
    }
    fn flush(&self) -> block::Result<()> {
        self.writer.flush()
    }
}
