//! Putting an image right in place.
//!
//! ```text
//!   replay the log ─► rewrite a lost header ─► rewrite a lost region table ─► (data loss allowed: drop wrong entries) ─► check
//! ```
//!
//! **Invariants.** Without [`RepairMode::DataLoss`] no byte of the disk changes. Dropped blocks read as zeros, never as
//! what the parent has, and the data write id changes. Every step leaves an image that the next repair can go on with.
//! It does not invent what both copies lost: two invalid headers, or two invalid region tables, stay damage.

use std::sync::Arc;

use block::WriteAt;

use super::body::Body;
use super::check::{check, examine_bat};
use super::geometry::Slot;
use super::header::{self, HeaderSlot};
use super::info::IdSource;
use super::journal::{self, Journal};
use super::region::{self, TABLE_OFFSETS};
use super::structure::{self, Accept};
use super::{entry::PayloadEntry, entry::PayloadState, log};
use crate::{CheckReport, RepairMode, Result};

/// Dirty pages that are committed together.
const COMMIT_AT_PAGES: usize = journal::MAX_ENTRY_PAGES;

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Log entries replayed.
    pub replayed_entries: usize,
    /// Headers and region tables written anew.
    pub rewritten_structures: usize,
    /// Blocks given up: they read as zeros now. Zero unless data loss was allowed.
    pub dropped_blocks: u64,
    /// Bitmaps given up; the blocks that needed them are among those dropped.
    pub dropped_bitmaps: u64,
    /// What is wrong still.
    pub remaining: CheckReport,
}

/// Repairs an image as far as `mode` allows.
///
/// # Errors
/// `Corrupt` or `Unsupported` when what is left of header, log or metadata cannot be trusted; `Io`.
pub fn repair(file: &Arc<dyn WriteAt>, mode: RepairMode, ids: &IdSource) -> Result<RepairReport> {
    let mut report = RepairReport::default();
    let view = || structure::read_view(file);
    // Nothing is written before everything up to the BAT is known to make sense.
    structure::open(view(), Accept::Unfinished)?;
    let (current, slot) = header::select(file.as_ref())?;
    let mut journal = Journal::new(current, slot, ids.next())?;
    if !journal.header.log.is_nil() {
        let active = log::find_active(file.as_ref(), &journal.header)?;
        report.replayed_entries = journal::replay(file.as_ref(), &active, &mut journal)?;
    }
    for slot in HeaderSlot::BOTH {
        if header::read_slot(file.as_ref(), slot)?.is_none() {
            journal.update_header(file.as_ref(), |_| {})?;
            report.rewritten_structures = report.rewritten_structures.saturating_add(1);
        }
    }
    report.rewritten_structures = report
        .rewritten_structures
        .saturating_add(repair_region_tables(file.as_ref())?);
    if mode == RepairMode::DataLoss {
        drop_wrong_entries(file, &mut journal, ids, &mut report)?;
    }
    report.remaining = check(&view())?;
    Ok(report)
}

fn repair_region_tables(file: &dyn WriteAt) -> Result<usize> {
    let [first, second] = TABLE_OFFSETS;
    let a = region::read_table(file, first)?;
    let b = region::read_table(file, second)?;
    let (place, bytes) = match (region::table_is_valid(&a), region::table_is_valid(&b)) {
        (true, _) if a != b => (second, a),
        (false, true) => (first, b),
        _ => return Ok(0),
    };
    file.write_at(place, &bytes)?;
    file.flush()?;
    Ok(1)
}

fn drop_wrong_entries(
    file: &Arc<dyn WriteAt>,
    journal: &mut Journal,
    ids: &IdSource,
    report: &mut RepairReport,
) -> Result<()> {
    let structure = structure::open(structure::read_view(file), Accept::Unfinished)?;
    let body = Body::new(
        Arc::clone(&structure.file),
        structure.geometry,
        structure.regions.bat.offset,
    );
    let commit = |journal: &mut Journal| -> Result<()> {
        let pages = body.pages.dirty_pages();
        journal.commit(file.as_ref(), &pages)?;
        body.pages.settle(pages);
        Ok(())
    };
    let mut is_marked = false;
    examine_bat(&structure, &body, &mut |fault| {
        if !is_marked {
            is_marked = true;
            let (file_write, data_write) = (ids.next(), ids.next());
            journal.update_header(file.as_ref(), |header| {
                header.file_write = file_write;
                header.data_write = data_write;
            })?;
        }
        match fault.slot {
            Slot::Payload(block) => {
                let zero = PayloadEntry {
                    state: PayloadState::Zero,
                    offset: 0,
                };
                body.set_payload(block, zero)?;
                report.dropped_blocks = report.dropped_blocks.saturating_add(1);
            }
            Slot::Bitmap(chunk) => {
                body.set_bitmap(chunk, 0)?;
                report.dropped_bitmaps = report.dropped_bitmaps.saturating_add(1);
            }
        }
        if body.pages.dirty_count() >= COMMIT_AT_PAGES {
            commit(journal)
        } else {
            Ok(())
        }
    })?;
    commit(journal)?;
    journal.close(file.as_ref())
}
