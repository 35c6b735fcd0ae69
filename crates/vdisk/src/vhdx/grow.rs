//! A larger disk in the same file.
//!
//! ```text
//!   room:    slots behind the last block ─► empty     BAT too short? ─► a longer one in free space ─► flush
//!            both region tables (and the pages of the BAT that are in use) ─► one log entry
//!   zeros:   what would show through behind the old end ─► zeroed       (the size in the file is still the old one)
//!   size:    one item of the metadata ─► one log entry
//! ```
//! Source: MS-VHDX 2.5, 2.6.2.2.
//!
//! **Invariants.** A crash at any moment leaves the old size or the new one, and with it every byte of the old disk;
//! what lies behind the old end reads as zeros from the moment that it is part of the disk. The data write id changes,
//! as it must when the size does: children that were made before are children of another disk.
//!
//! Not done: making a disk smaller.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::{ExtentKind, ReadAt, WriteAt};

use super::bytes::{to_u64, to_usize};
use super::entry::PayloadEntry;
use super::geometry::{BAT_ENTRY_BYTES, Geometry};
use super::header::{self, MIB};
use super::info::IdSource;
use super::journal::Journal;
use super::metadata;
use super::pages::{PAGE, PAGE_BYTES};
use super::region::{self, Span};
use super::structure::{self, Accept, Anchors, Structure};
use super::writer::VhdxWriter;
use crate::{Error, ErrorKind, Result, map};

/// A new table is copied in pieces of this size.
const PIECE_BYTES: u64 = MIB;

/// Makes the disk larger; a log that waits is replayed first. `parent` is the flattened view of the parent of a
/// differencing image, which must not show through behind the old end.
///
/// # Errors
/// `Invalid` for a size that is smaller, no whole number of sectors or more than 64 TiB; as [`VhdxWriter::open`].
pub fn grow(
    file: &Arc<dyn WriteAt>,
    parent: Option<Arc<dyn ReadAt>>,
    size_bytes: u64,
    ids: &IdSource,
) -> Result<()> {
    let before = VhdxWriter::open(Arc::clone(file), parent.clone(), ids.clone())?;
    let old_size = before.size_bytes();
    if size_bytes < old_size {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("vhdx: a disk of {old_size} bytes is not made smaller"),
        ));
    }
    before.finish()?;
    if size_bytes == old_size {
        return Ok(());
    }
    make_room(file, size_bytes, ids)?;
    let writer = VhdxWriter::open_larger(Arc::clone(file), parent, ids.clone(), size_bytes)?;
    for extent in map::extents_in(&writer, old_size, size_bytes.saturating_sub(old_size)) {
        let extent = extent?;
        match extent.kind {
            ExtentKind::Data => writer.zero_range(extent.offset, extent.length_bytes)?,
            ExtentKind::InParent => {
                return Err(Error::new(
                    ErrorKind::ParentNotFound,
                    "vhdx: a child is enlarged only with its parent at hand",
                ));
            }
            ExtentKind::Zero | ExtentKind::Unallocated => {}
        }
    }
    writer.keep_fixed_allocated(old_size)?;
    writer.commit_size(size_bytes)?;
    writer.finish()
}

/// Changes of small structures, by page, so that one log entry can carry them.
struct PagePatch<'a> {
    file: &'a dyn ReadAt,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl<'a> PagePatch<'a> {
    fn new(file: &'a dyn ReadAt) -> Self {
        Self {
            file,
            pages: BTreeMap::new(),
        }
    }

    /// Puts bytes at a place of the file; pages that stay as they are are left out.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let page = at.saturating_sub(at % PAGE);
            let within = to_usize(at.saturating_sub(page));
            let (now, later) = rest.split_at(PAGE_BYTES.saturating_sub(within).min(rest.len()));
            let mut content = match self.pages.get(&page) {
                Some(content) => content.clone(),
                None => {
                    let mut content = vec![0; PAGE_BYTES];
                    self.file.read_at(page, &mut content)?;
                    content
                }
            };
            let place = content.get_mut(within..within.saturating_add(now.len()));
            if let Some(place) = place.filter(|place| **place != *now) {
                place.copy_from_slice(now);
                self.pages.insert(page, content);
            }
            at = at.saturating_add(to_u64(now.len()));
            rest = later;
        }
        Ok(())
    }

    fn finish(self) -> Vec<(u64, Vec<u8>)> {
        self.pages.into_iter().collect()
    }
}

/// Puts into the file what an image of this size needs, while it still has the old one.
fn make_room(file: &Arc<dyn WriteAt>, size_bytes: u64, ids: &IdSource) -> Result<()> {
    let structure = structure::open(structure::read_view(file), Accept::Finished)?;
    let mut metadata = structure.metadata.clone();
    metadata.size = size_bytes;
    let wanted = metadata.geometry()?;
    let (current, slot) = header::select(file.as_ref())?;
    let mut journal = Journal::new(current, slot, ids.next())?;
    let file_write = ids.next();
    journal.update_header(file.as_ref(), |header| header.file_write = file_write)?;
    complete_last_block(file.as_ref(), &structure, &wanted)?;

    let mut patch = PagePatch::new(structure.file.as_ref());
    let needed = wanted.entry_count().saturating_mul(BAT_ENTRY_BYTES);
    if needed <= structure.regions.bat.length {
        empty_slots(file.as_ref(), &structure, &wanted, &mut patch)?;
    } else {
        let bat = move_table(file.as_ref(), &structure, &wanted)?;
        let table = region::with_bat(&region::read_valid(structure.file.as_ref())?, bat)?;
        for offset in region::TABLE_OFFSETS {
            patch.put(offset, &table)?;
        }
    }
    let pages = patch.finish();
    if pages.is_empty() {
        file.flush()?;
        return Ok(());
    }
    journal.commit(file.as_ref(), &pages)?;
    journal.close(file.as_ref())
}

/// The last block may end with the file; from now on all of it belongs to the disk.
fn complete_last_block(file: &dyn WriteAt, structure: &Structure, wanted: &Geometry) -> Result<()> {
    let geometry = &structure.geometry;
    let last = geometry.block_count().saturating_sub(1);
    let slot = geometry.payload_index(last).saturating_mul(BAT_ENTRY_BYTES);
    let mut word = [0; 8];
    structure
        .file
        .read_at(structure.regions.bat.offset.saturating_add(slot), &mut word)?;
    let entry = PayloadEntry::decode(u64::from_le_bytes(word), geometry.lineage)
        .map_err(|why| Error::corrupt(format!("vhdx BAT: block {last}: {why}")))?;
    let end = entry.offset.saturating_add(wanted.block_length(last));
    if entry.is_used() && end > file.size_bytes() {
        file.set_size(end)?;
    }
    Ok(())
}

/// A piece of the table as the larger disk needs it: slots that meant nothing so far mean "not present" from now on.
/// Answers whether a slot of it is in use.
fn clean_slots(
    piece: &mut [u8],
    first_index: u64,
    structure: &Structure,
    wanted: &Geometry,
) -> bool {
    let mut is_used = false;
    for (index, word) in (first_index..).zip(piece.as_chunks_mut::<8>().0) {
        if structure.geometry.slot(index).is_some() {
            is_used = true;
        } else if wanted.slot(index).is_some() {
            *word = [0; 8];
        }
    }
    is_used
}

/// Empties slots in place: pages that are in use go through the log, nobody reads the others yet.
fn empty_slots(
    file: &dyn WriteAt,
    structure: &Structure,
    wanted: &Geometry,
    patch: &mut PagePatch<'_>,
) -> Result<()> {
    let last = structure.geometry.block_count().saturating_sub(1);
    let first_new = structure.geometry.payload_index(last).saturating_add(1);
    let start = first_new.saturating_mul(BAT_ENTRY_BYTES);
    let end = wanted.entry_count().saturating_mul(BAT_ENTRY_BYTES);
    let bat = structure.regions.bat;
    let mut at = start.saturating_sub(start % PAGE);
    while at < end {
        let place = bat.offset.saturating_add(at);
        let extent = structure.file.extent_at(place, end.saturating_sub(at))?;
        if extent.kind.is_zero() && extent.length_bytes >= PAGE {
            let whole = extent
                .length_bytes
                .saturating_sub(extent.length_bytes % PAGE);
            at = at.saturating_add(whole);
            continue;
        }
        let mut page = vec![0; PAGE_BYTES];
        structure.file.read_at(place, &mut page)?;
        let before = page.clone();
        let is_used = clean_slots(&mut page, at / BAT_ENTRY_BYTES, structure, wanted);
        if page != before {
            if is_used {
                patch.put(place, &page)?;
            } else {
                file.write_at(place, &page)?;
            }
        }
        at = at.saturating_add(PAGE);
    }
    Ok(())
}

/// Writes a longer table into free space, and answers where.
fn move_table(file: &dyn WriteAt, structure: &Structure, wanted: &Geometry) -> Result<Span> {
    let space = structure.survey(Anchors::Kept)?;
    let needed = wanted.entry_count().saturating_mul(BAT_ENTRY_BYTES);
    let length = needed.next_multiple_of(MIB);
    let offset = space
        .find_free(length / MIB, 0)
        .unwrap_or_else(|| space.end());
    let bat = Span { offset, length };
    if bat.end() > file.size_bytes() {
        file.set_size(bat.end())?;
    }
    file.zero_range(bat.offset, bat.length)?;
    let old = structure.regions.bat;
    let used = structure
        .geometry
        .entry_count()
        .saturating_mul(BAT_ENTRY_BYTES);
    let mut at = 0;
    while at < used {
        let place = old.offset.saturating_add(at);
        let left = used.saturating_sub(at);
        let extent = structure.file.extent_at(place, left)?;
        let known = extent.length_bytes.clamp(1, left);
        let whole = known.saturating_sub(known % BAT_ENTRY_BYTES);
        if extent.kind.is_zero() && whole > 0 {
            at = at.saturating_add(whole);
            continue;
        }
        let count = PIECE_BYTES.min(left).min(whole.max(BAT_ENTRY_BYTES));
        let mut piece = vec![0; to_usize(count)];
        structure.file.read_at(place, &mut piece)?;
        clean_slots(&mut piece, at / BAT_ENTRY_BYTES, structure, wanted);
        file.write_at(bat.offset.saturating_add(at), &piece)?;
        at = at.saturating_add(count);
    }
    file.flush()?;
    Ok(bat)
}

/// The pages that give the metadata another disk size.
pub(super) fn size_pages(
    file: &dyn ReadAt,
    region: Span,
    size_bytes: u64,
) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut table = vec![0; metadata::TABLE_BYTES];
    file.read_at(region.offset, &mut table)?;
    let place = metadata::disk_size_place(&table)?;
    let mut patch = PagePatch::new(file);
    patch.put(
        region.offset.saturating_add(place),
        &size_bytes.to_le_bytes(),
    )?;
    Ok(patch.finish())
}
