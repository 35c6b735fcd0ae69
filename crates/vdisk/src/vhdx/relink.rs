//! Naming another parent in a differencing image: after a merge below it, or when files have moved.
//!
//! ```text
//!   new locator ─► free space of the metadata region ─► flush ─► table entry, through the log ─► (old locator: free space)
//! ```
//!
//! **Invariants.** The bytes of the disk do not change, and neither does the data write id, so that children of this image
//! stay valid. A crash leaves the old locator or the new one. Items that are not understood stay where they are.
//! It does not check that the new parent exists or reads the same: who merges knows.

use std::sync::Arc;

use block::WriteAt;

use super::bytes::{Encoder, to_u64, to_usize};
use super::header;
use super::info::IdSource;
use super::journal::{self, Journal};
use super::locator::ParentLocator;
use super::log;
use super::metadata;
use super::pages::{PAGE, PAGE_BYTES};
use super::region::Span;
use super::structure::{self, Accept};
use crate::{Error, ErrorKind, Result, Subformat};

/// Offset and length in an entry of the metadata table.
const ENTRY_PLACE_AT: u64 = 16;

/// Replaces the parent locator of a differencing image; a log that waits is replayed first.
///
/// # Errors
/// `Invalid` when the image has no parent or the locator is too long; as [`super::VhdxWriter::open`] otherwise.
pub fn relink(file: &Arc<dyn WriteAt>, locator: &ParentLocator, ids: &IdSource) -> Result<()> {
    let encoded = locator.encode()?;
    let structure = structure::open(structure::read_view(file), Accept::Finished)?;
    if structure.metadata.subformat != Subformat::Differencing {
        return Err(Error::new(
            ErrorKind::Invalid,
            "vhdx relink: the image has no parent",
        ));
    }
    let (current, slot) = header::select(file.as_ref())?;
    let mut journal = Journal::new(current, slot, ids.next())?;
    if !journal.header.log.is_nil() {
        let active = log::find_active(file.as_ref(), &journal.header)?;
        journal::replay(file.as_ref(), &active, &mut journal)?;
    }
    let region = structure.regions.metadata;
    let mut table = vec![0; metadata::TABLE_BYTES];
    file.read_at(region.offset, &mut table)?;
    let items = metadata::item_places(&table)?;
    let place = free_place(&items.spans, to_u64(encoded.len()), region.length)?;
    let file_write = ids.next();
    journal.update_header(file.as_ref(), |header| header.file_write = file_write)?;
    file.write_at(region.offset.saturating_add(place), &encoded)?;

    let entry_at = region.offset.saturating_add(items.locator_entry);
    let page_at = entry_at.saturating_sub(entry_at % PAGE);
    let mut page = vec![0; PAGE_BYTES];
    file.read_at(page_at, &mut page)?;
    let mut changed = Encoder::new(0);
    changed.put(0, &page);
    let field = to_usize(
        entry_at
            .saturating_sub(page_at)
            .saturating_add(ENTRY_PLACE_AT),
    );
    changed.u32(field, u32::try_from(place).unwrap_or(u32::MAX));
    changed.u32(
        field.saturating_add(4),
        u32::try_from(encoded.len()).unwrap_or(u32::MAX),
    );
    journal.commit(file.as_ref(), &[(page_at, changed.finish())])?;
    journal.close(file.as_ref())
}

/// The first gap between items that is long enough. The locator in use counts as taken: it is needed until the end.
fn free_place(taken: &[Span], length: u64, region_length: u64) -> Result<u64> {
    let mut spans = taken.to_vec();
    spans.sort_by_key(|span| span.offset);
    let mut at = to_u64(metadata::TABLE_BYTES);
    for span in spans {
        if span.offset.saturating_sub(at) >= length && span.offset > at {
            break;
        }
        at = at.max(span.end().next_multiple_of(8));
    }
    if at.saturating_add(length) > region_length {
        return Err(Error::new(
            ErrorKind::Invalid,
            "vhdx relink: the parent locator is too long",
        ));
    }
    Ok(at)
}
