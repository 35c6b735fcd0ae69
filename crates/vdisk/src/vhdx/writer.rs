//! Changing an image in place: fixed, dynamic or differencing, crash-safe.
//!
//! ```text
//!   write ─► all blocks there? ─ yes ─► file, any thread at once
//!               └ no ─► one thread: space (zeroed) ─► payload ─► BAT and bitmap pages change in memory
//!   flush ─► journal: payload ─► log ─► pages in place
//! ```
//!
//! **Invariants.** What a returned `flush` covers survives any crash. What was written later is there or not, and
//! nothing else changes: a page that points somewhere becomes durable after what lies there, and space that was given
//! up is used again only when no durable page points at it. The write ids change before the first byte does.
//! After a failed flush nothing more is written: what the file holds is then known only to the file.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use block::{Error as DiskError, ErrorKind as DiskErrorKind, Extent, ReadAt, WriteAt};

use super::body::Body;
use super::bytes::{is_zero, to_u64, to_usize};
use super::entry::{PayloadEntry, PayloadState, encode_bitmap};
use super::geometry::{BITMAP_BLOCK_BYTES, Geometry};
use super::grow;
use super::header::{self, MIB};
use super::info::{IdSource, WriteId};
use super::journal::{self, Journal};
use super::locator::ParentLocator;
use super::log;
use super::pages::Fill;
use super::region::Span;
use super::space::{Claim, SpaceMap};
use super::structure::{self, Accept, Anchors, Structure};
use crate::{DiskId, Error, ErrorKind, ImageInfo, Result, Subformat};

/// Pages that may wait before they are committed without being asked for. One block changes at most 20 more.
const COMMIT_AT_PAGES: usize = journal::MAX_ENTRY_PAGES - 20;
/// Zeros written at once where zeros must be written.
const ZERO_PIECE_BYTES: u64 = MIB;

struct State {
    journal: Journal,
    space: SpaceMap,
    /// Space that no page in memory points at, but pages in the file still may.
    given_up: Vec<Span>,
    /// The file is zero from here on, because it grew there under this writer.
    virgin_from: u64,
    /// Where the search for free space begins.
    search_from: u64,
    /// The write ids are this session's.
    is_marked: bool,
    /// Why nothing more may be written.
    failure: Option<String>,
}

/// A VHDX opened for reading and writing. One at a time may have a file open.
pub struct VhdxWriter {
    file: Arc<dyn WriteAt>,
    parent: Option<Arc<dyn ReadAt>>,
    structure: Structure,
    body: Body,
    ids: IdSource,
    opened_as: WriteId,
    state: RwLock<State>,
}

/// One write or zeroing, cut to a block.
#[derive(Clone, Copy)]
struct Part {
    block: u64,
    offset: u64,
    within: u64,
    length: u64,
}

impl VhdxWriter {
    /// Opens an image; a log that waits is replayed in place. `parent` is the flattened view of the parent of a
    /// differencing image: reads and writes of less than a sector need it.
    ///
    /// # Errors
    /// As [`super::VhdxReader::open`]; `Unsupported` when the image has no log.
    pub fn open(
        file: Arc<dyn WriteAt>,
        parent: Option<Arc<dyn ReadAt>>,
        ids: IdSource,
    ) -> Result<Self> {
        Self::open_as(file, parent, ids, None)
    }

    /// Opens an image as if its disk had the larger size already, which [`Self::commit_size`] then makes true. Its BAT
    /// has room for that, and what lies there is empty.
    pub(super) fn open_larger(
        file: Arc<dyn WriteAt>,
        parent: Option<Arc<dyn ReadAt>>,
        ids: IdSource,
        size_bytes: u64,
    ) -> Result<Self> {
        Self::open_as(file, parent, ids, Some(size_bytes))
    }

    fn open_as(
        file: Arc<dyn WriteAt>,
        parent: Option<Arc<dyn ReadAt>>,
        ids: IdSource,
        larger: Option<u64>,
    ) -> Result<Self> {
        header::read_identifier(file.as_ref())?;
        let (current, slot) = header::select(file.as_ref())?;
        let mut journal = Journal::new(current, slot, ids.next())?;
        let ring = journal.ring();
        if ring.end() > file.size_bytes() {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!(
                    "vhdx log: ends at {:#x}, the file at {:#x}",
                    ring.end(),
                    file.size_bytes()
                ),
            ));
        }
        if !journal.header.log.is_nil() {
            // What the replay would make of it is judged in memory first: a wrong image is left as it is.
            structure::open(structure::read_view(&file), Accept::Finished)?
                .survey(Anchors::Ignored)?;
            let active = log::find_active(file.as_ref(), &journal.header)?;
            journal::replay(file.as_ref(), &active, &mut journal)?;
        }
        let found = structure::open(structure::read_view(&file), Accept::Finished)?;
        let structure = match larger {
            Some(size_bytes) => found.enlarged(size_bytes)?,
            None => found,
        };
        let space = structure.survey(Anchors::Kept)?;
        let body = Body::new(
            Arc::clone(&structure.file),
            structure.geometry,
            structure.regions.bat.offset,
        );
        let opened_as = WriteId(journal.header.data_write);
        let state = RwLock::new(State {
            journal,
            space,
            given_up: Vec::new(),
            virgin_from: file.size_bytes().div_ceil(MIB).saturating_mul(MIB),
            search_from: 0,
            is_marked: false,
            failure: None,
        });
        Ok(Self {
            file,
            parent,
            structure,
            body,
            ids,
            opened_as,
            state,
        })
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        self.structure.info()
    }

    /// Identity of the virtual disk.
    pub fn disk_id(&self) -> DiskId {
        self.structure.metadata.disk_id
    }

    /// The data write id now: another one than at opening once something was written.
    pub fn data_write_id(&self) -> WriteId {
        WriteId(self.shared().journal.header.data_write)
    }

    /// The data write id that the image had when it was opened: what its children name.
    pub fn data_write_id_at_open(&self) -> WriteId {
        self.opened_as
    }

    /// What a differencing image says about its parent.
    pub fn parent_locator(&self) -> Option<&ParentLocator> {
        self.structure.metadata.locator.as_ref()
    }

    /// Makes everything durable and the log empty.
    pub fn finish(self) -> Result<()> {
        let mut state = self.exclusive();
        self.check_alive(&state)?;
        self.commit(&mut state)?;
        state.journal.close(self.file.as_ref())
    }

    /// Gives every block behind `offset` its space, if the image is one that keeps all of it.
    pub(super) fn keep_fixed_allocated(&self, offset: u64) -> Result<()> {
        if self.structure.metadata.subformat != Subformat::Fixed {
            return Ok(());
        }
        let mut state = self.exclusive();
        self.alter(&mut state, |state| self.mark(state))?;
        for block in self.geometry().block_of(offset)..self.geometry().block_count() {
            if self.body.payload(block)?.is_used() {
                continue;
            }
            self.alter(&mut state, |state| {
                let offset = self.allocate(state, self.geometry().block_size, FirstFill::Partly)?;
                let state = PayloadState::Full;
                self.body.set_payload(block, PayloadEntry { state, offset })
            })?;
            self.commit_if_many(&mut state)?;
        }
        Ok(())
    }

    /// Makes everything durable, then the size that the image was opened with its own.
    pub(super) fn commit_size(&self, size_bytes: u64) -> Result<()> {
        let mut state = self.exclusive();
        self.alter(&mut state, |state| self.mark(state))?;
        self.commit(&mut state)?;
        let region = self.structure.regions.metadata;
        let pages = grow::size_pages(self.file.as_ref(), region, size_bytes)?;
        self.alter(&mut state, |state| {
            state.journal.commit(self.file.as_ref(), &pages)
        })
    }

    fn shared(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn geometry(&self) -> &Geometry {
        &self.body.geometry
    }

    fn check_alive(&self, state: &State) -> Result<()> {
        match &state.failure {
            None => Ok(()),
            Some(why) => Err(Error::new(
                ErrorKind::Io,
                format!("vhdx: an earlier change failed and the image must be opened anew: {why}"),
            )),
        }
    }

    /// Runs a change; one that fails half-way is the last.
    fn alter<T>(
        &self,
        state: &mut State,
        change: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        self.check_alive(state)?;
        let outcome = change(state);
        if let Err(fault) = &outcome {
            state.failure = Some(fault.to_string());
        }
        outcome
    }

    /// Gives the image new write ids before its first change.
    fn mark(&self, state: &mut State) -> Result<()> {
        if state.is_marked {
            return Ok(());
        }
        let (file_write, data_write) = (self.ids.next(), self.ids.next());
        state.journal.update_header(self.file.as_ref(), |header| {
            header.file_write = file_write;
            header.data_write = data_write;
        })?;
        state.is_marked = true;
        Ok(())
    }

    fn commit(&self, state: &mut State) -> Result<()> {
        self.alter(state, |state| {
            let pages = self.body.pages.dirty_pages();
            state.journal.commit(self.file.as_ref(), &pages)?;
            self.body.pages.settle(pages);
            for span in std::mem::take(&mut state.given_up) {
                state.space.release(span);
                state.search_from = state.search_from.min(span.offset);
            }
            Ok(())
        })
    }

    /// Space for a block or bitmap that reads as zeros.
    fn allocate(&self, state: &mut State, length: u64, fill: FirstFill) -> Result<u64> {
        let mib = length / MIB;
        let found = match state.space.free_mib() >= mib {
            true => state.space.find_free(mib, state.search_from),
            false => None,
        };
        let offset = match found {
            Some(offset) => {
                if length > BITMAP_BLOCK_BYTES {
                    state.search_from = offset;
                }
                offset
            }
            None => {
                // Nothing of this length from there on: no search finds it again until space is given back.
                state.search_from = state.search_from.max(state.space.end());
                state.space.end()
            }
        };
        let span = Span { offset, length };
        state.space.claim(span, Claim::Exclusive).map_err(|at| {
            Error::corrupt(format!("vhdx: space at {at:#x} was free and taken at once"))
        })?;
        if span.end() > self.file.size_bytes() {
            self.file.set_size(span.end())?;
        }
        if offset < state.virgin_from && fill == FirstFill::Partly {
            self.file.zero_range(offset, length)?;
        }
        state.virgin_from = state.virgin_from.max(span.end());
        Ok(offset)
    }

    /// Cuts a range at block borders.
    fn parts(&self, offset: u64, length: u64) -> impl Iterator<Item = Part> + '_ {
        let end = offset.saturating_add(length);
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let geometry = self.geometry();
            let block = geometry.block_of(at);
            let within = at.saturating_sub(geometry.block_start(block));
            let length = geometry
                .block_size
                .saturating_sub(within)
                .min(end.saturating_sub(at));
            let part = Part {
                block,
                offset: at,
                within,
                length,
            };
            at = at.saturating_add(length);
            Some(part)
        })
    }

    /// Writes at once when nothing but payload changes. Answers whether it did.
    fn write_present(&self, offset: u64, buffer: &[u8]) -> block::Result<bool> {
        let state = self.shared();
        self.check_alive(&state)?;
        if !state.is_marked {
            return Ok(false);
        }
        let mut places = Vec::new();
        for part in self.parts(offset, to_u64(buffer.len())) {
            let entry = self.body.payload(part.block)?;
            if entry.state != PayloadState::Full {
                return Ok(false);
            }
            places.push((
                entry.offset.saturating_add(part.within),
                to_usize(part.length),
            ));
        }
        let mut rest = buffer;
        for (place, length) in places {
            let (piece, tail) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            self.file.write_at(place, piece)?;
            rest = tail;
        }
        Ok(true)
    }

    /// Rounds a write to whole sectors where a bitmap needs them, with what is there now.
    fn with_whole_sectors(&self, offset: u64, buffer: &[u8]) -> block::Result<(u64, Vec<u8>)> {
        let sector = self.geometry().sector_size.max(1);
        let first = offset.saturating_sub(offset.checked_rem(sector).unwrap_or(0));
        let end = offset
            .saturating_add(to_u64(buffer.len()))
            .div_ceil(sector)
            .saturating_mul(sector);
        let mut whole = vec![0; to_usize(end.saturating_sub(first))];
        self.body
            .read_at(self.parent.as_deref(), first, &mut whole)?;
        let skip = to_usize(offset.saturating_sub(first));
        for (slot, byte) in whole.iter_mut().skip(skip).zip(buffer) {
            *slot = *byte;
        }
        Ok((first, whole))
    }

    /// Writes one part, allocating what it needs.
    fn write_part(&self, state: &mut State, part: Part, bytes: &[u8]) -> Result<()> {
        let entry = self.body.payload(part.block)?;
        match entry.state {
            PayloadState::Full => Ok(self
                .file
                .write_at(entry.offset.saturating_add(part.within), bytes)?),
            PayloadState::Partial => {
                self.file
                    .write_at(entry.offset.saturating_add(part.within), bytes)?;
                if part.length == self.geometry().block_length(part.block) {
                    let full = PayloadEntry {
                        state: PayloadState::Full,
                        ..entry
                    };
                    return self.body.set_payload(part.block, full);
                }
                self.set_bits(state, part)
            }
            PayloadState::NotPresent if self.geometry().is_differencing() => {
                self.write_over_parent(state, part, bytes)
            }
            // It reads as zeros already.
            _ if is_zero(bytes) => Ok(()),
            _ => {
                let offset = self.place_payload(state, part, bytes)?;
                let full = PayloadEntry {
                    state: PayloadState::Full,
                    offset,
                };
                self.body.set_payload(part.block, full)
            }
        }
    }

    /// New space that holds the bytes, and zeros around them.
    fn place_payload(&self, state: &mut State, part: Part, bytes: &[u8]) -> Result<u64> {
        let block_size = self.geometry().block_size;
        let fill = if part.length == block_size {
            FirstFill::Wholly
        } else {
            FirstFill::Partly
        };
        let offset = self.allocate(state, block_size, fill)?;
        self.file
            .write_at(offset.saturating_add(part.within), bytes)?;
        Ok(offset)
    }

    fn write_over_parent(&self, state: &mut State, part: Part, bytes: &[u8]) -> Result<()> {
        let geometry = *self.geometry();
        let offset = self.place_payload(state, part, bytes)?;
        if part.length == geometry.block_length(part.block) {
            let full = PayloadEntry {
                state: PayloadState::Full,
                offset,
            };
            return self.body.set_payload(part.block, full);
        }
        let bitmap = self.bitmap_for(state, part.block)?;
        let first = geometry.bitmap_bit(geometry.block_start(part.block));
        let count = geometry.sectors(geometry.block_size);
        // Bits of an earlier life of this block mean nothing now.
        self.body
            .pages
            .fill_bits(bitmap, first, count, Fill::Zeros)?;
        self.set_bits(state, part)?;
        self.body.set_payload(
            part.block,
            PayloadEntry {
                state: PayloadState::Partial,
                offset,
            },
        )
    }

    fn set_bits(&self, state: &mut State, part: Part) -> Result<()> {
        let geometry = *self.geometry();
        let bitmap = self.bitmap_for(state, part.block)?;
        let first = geometry.bitmap_bit(part.offset);
        self.body
            .pages
            .fill_bits(bitmap, first, geometry.sectors(part.length), Fill::Ones)
    }

    /// Where the bitmap of a block's chunk lies, making one of zeros if there is none.
    fn bitmap_for(&self, state: &mut State, block: u64) -> Result<u64> {
        let chunk = self.geometry().chunk_of(block);
        if let Some(found) = self.body.bitmap(chunk)? {
            return Ok(found);
        }
        let offset = self.allocate(state, BITMAP_BLOCK_BYTES, FirstFill::Partly)?;
        self.body.pages.forget(offset, BITMAP_BLOCK_BYTES);
        self.body.set_bitmap(chunk, encode_bitmap(offset))?;
        Ok(offset)
    }

    /// Makes one part read as zeros.
    fn zero_part(&self, state: &mut State, part: Part) -> Result<()> {
        let entry = self.body.payload(part.block)?;
        let is_whole = part.length == self.geometry().block_length(part.block);
        let keeps_space = self.structure.metadata.subformat == Subformat::Fixed;
        let over_parent =
            entry.state == PayloadState::NotPresent && self.geometry().is_differencing();
        match entry.state {
            _ if is_whole && over_parent => self.set_zero(part.block),
            PayloadState::Full | PayloadState::Partial if is_whole && !keeps_space => {
                self.set_zero(part.block)?;
                state.given_up.push(Span {
                    offset: entry.offset,
                    length: self.geometry().block_size,
                });
                Ok(())
            }
            PayloadState::Full => {
                let place = entry.offset.saturating_add(part.within);
                Ok(self.file.zero_range(place, part.length)?)
            }
            _ if over_parent || entry.state == PayloadState::Partial => {
                let mut at = 0;
                while at < part.length {
                    let length = ZERO_PIECE_BYTES.min(part.length.saturating_sub(at));
                    let piece = Part {
                        offset: part.offset.saturating_add(at),
                        within: part.within.saturating_add(at),
                        length,
                        ..part
                    };
                    self.write_part(state, piece, &vec![0; to_usize(length)])?;
                    at = at.saturating_add(length);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn set_zero(&self, block: u64) -> Result<()> {
        self.body.set_payload(
            block,
            PayloadEntry {
                state: PayloadState::Zero,
                offset: 0,
            },
        )
    }

    fn commit_if_many(&self, state: &mut State) -> Result<()> {
        if self.body.pages.dirty_count() >= COMMIT_AT_PAGES {
            self.commit(state)?;
        }
        Ok(())
    }

    fn write_changing(&self, state: &mut State, offset: u64, buffer: &[u8]) -> Result<()> {
        self.alter(state, |state| self.mark(state))?;
        let mut rest = buffer;
        for part in self.parts(offset, to_u64(buffer.len())) {
            let (piece, tail) = rest
                .split_at_checked(to_usize(part.length))
                .unwrap_or((rest, &[]));
            rest = tail;
            self.alter(state, |state| self.write_part(state, part, piece))?;
            self.commit_if_many(state)?;
        }
        Ok(())
    }

    fn zero_changing(&self, state: &mut State, offset: u64, length: u64) -> Result<()> {
        self.alter(state, |state| self.mark(state))?;
        for part in self.parts(offset, length) {
            self.alter(state, |state| self.zero_part(state, part))?;
            self.commit_if_many(state)?;
        }
        Ok(())
    }

    fn is_sector_aligned(&self, offset: u64, length: u64) -> bool {
        let sector = self.geometry().sector_size;
        (offset | length) & sector.saturating_sub(1) == 0
    }
}

/// How much of new space its first writer fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstFill {
    /// Every byte: what was there before needs no zeroing.
    Wholly,
    Partly,
}

impl std::fmt::Debug for VhdxWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhdxWriter")
            .field("info", &self.info())
            .finish_non_exhaustive()
    }
}

impl ReadAt for VhdxWriter {
    fn size_bytes(&self) -> u64 {
        self.geometry().size
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let _unchanging = self.shared();
        self.body.read_at(self.parent.as_deref(), offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let _unchanging = self.shared();
        self.body
            .extent_at(self.parent.as_deref(), offset, limit_bytes)
    }
}

impl WriteAt for VhdxWriter {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        let length = to_u64(buffer.len());
        self.body.check_range(offset, length)?;
        if buffer.is_empty() || self.write_present(offset, buffer)? {
            return Ok(());
        }
        let mut state = self.exclusive();
        self.check_alive(&state)?;
        if self.geometry().is_differencing() && !self.is_sector_aligned(offset, length) {
            let (first, whole) = self.with_whole_sectors(offset, buffer)?;
            return Ok(self.write_changing(&mut state, first, &whole)?);
        }
        Ok(self.write_changing(&mut state, offset, buffer)?)
    }

    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        self.body.check_range(offset, length_bytes)?;
        let mut state = self.exclusive();
        self.check_alive(&state)?;
        let sector = self.geometry().sector_size.max(1);
        let end = offset.saturating_add(length_bytes);
        if !self.geometry().is_differencing() || self.is_sector_aligned(offset, length_bytes) {
            return Ok(self.zero_changing(&mut state, offset, length_bytes)?);
        }
        // Sectors that are zeroed in part are read and written, the whole ones between are zeroed.
        let inner_first = offset.div_ceil(sector).saturating_mul(sector).min(end);
        let inner_end = end
            .saturating_sub(end.checked_rem(sector).unwrap_or(0))
            .max(inner_first);
        for (from, to) in [(offset, inner_first), (inner_end, end)] {
            let count = to_usize(to.saturating_sub(from));
            if count > 0 {
                let (first, whole) = self.with_whole_sectors(from, &vec![0; count])?;
                self.write_changing(&mut state, first, &whole)?;
            }
        }
        Ok(self.zero_changing(
            &mut state,
            inner_first,
            inner_end.saturating_sub(inner_first),
        )?)
    }

    fn set_size(&self, _size_bytes: u64) -> block::Result<()> {
        Err(DiskError::new(
            DiskErrorKind::Unsupported,
            "vhdx: the disk cannot be resized",
        ))
    }

    fn flush(&self) -> block::Result<()> {
        let mut state = self.exclusive();
        self.check_alive(&state)?;
        Ok(self.commit(&mut state)?)
    }
}
