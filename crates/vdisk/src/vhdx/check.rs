//! Checking an image without changing it, and going on where a reader would stop.
//!
//! ```text
//!   identifier ─► headers ─► log ─► region tables ─► metadata ─► BAT, entry by entry ─► space that nobody has
//! ```
//!
//! **Invariants.** Damage is a finding, never an error; an error means that the file could not be read. Findings are
//! bounded by the report, memory by one bit per mebibyte of file.

use std::sync::Arc;

use block::ReadAt;

use super::body::Body;
use super::entry::PayloadState;
use super::geometry::{BAT_ENTRY_BYTES, Slot};
use super::header::{self, HEADER_SECTION_BYTES, HeaderSlot, MIB};
use super::log;
use super::metadata::Completion;
use super::region::{self, TABLE_OFFSETS};
use super::space::{Claim, SpaceMap};
use super::structure::{self, Accept, Structure};
use crate::{CheckReport, Error, ErrorKind, Result, Severity};

/// Checks an image. What a repair can put right is told from what is lost.
///
/// # Errors
/// Only `Io`: everything else is a finding.
pub fn check(file: &Arc<dyn ReadAt>) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    if let Some(structure) = check_structure(file, &mut report)? {
        check_bat(&structure, &mut report)?;
    }
    Ok(report)
}

/// Turns what is wrong into a finding and passes on what could not be read.
fn note<T>(report: &mut CheckReport, offset: Option<u64>, outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(fault) if fault.kind() == ErrorKind::Io => Err(fault),
        Err(fault) => {
            report.add(Severity::Damage, offset, fault.to_string());
            Ok(None)
        }
    }
}

fn check_structure(file: &Arc<dyn ReadAt>, report: &mut CheckReport) -> Result<Option<Structure>> {
    let identifier = header::read_identifier(file.as_ref());
    if note(report, Some(0), identifier)?.is_none() {
        return Ok(None);
    }
    let Some((current, _)) = note(report, None, header::select(file.as_ref()))? else {
        return Ok(None);
    };
    for slot in HeaderSlot::BOTH {
        if header::read_slot(file.as_ref(), slot)?.is_none() {
            report.add(
                Severity::Repairable,
                Some(slot.offset()),
                "vhdx header: invalid, the other one is used",
            );
        }
    }
    if !current.log.is_nil() {
        let active = log::find_active(file.as_ref(), &current);
        let Some(active) = note(report, Some(current.log_offset), active)? else {
            return Ok(None);
        };
        report.add(
            Severity::Repairable,
            Some(current.log_offset),
            format!("vhdx log: {} entries wait to be replayed", active.len()),
        );
    }
    let opened = structure::open(Arc::clone(file), Accept::Unfinished);
    let Some(structure) = note(report, None, opened)? else {
        return Ok(None);
    };
    if structure.metadata.completion == Completion::Unfinished {
        report.add(
            Severity::Damage,
            Some(structure.regions.metadata.offset),
            "vhdx: carries the mark of a creation that was interrupted",
        );
    }
    check_region_copies(&structure, report)?;
    if let Some(locator) = &structure.metadata.locator
        && locator.linkages().is_empty()
    {
        report.add(
            Severity::Damage,
            None,
            "vhdx parent locator: names no parent id",
        );
    }
    let size = file.size_bytes();
    if !size.is_multiple_of(MIB) {
        report.add(
            Severity::Note,
            None,
            format!("vhdx: {size} bytes are no whole mebibytes"),
        );
    }
    Ok(Some(structure))
}

fn check_region_copies(structure: &Structure, report: &mut CheckReport) -> Result<()> {
    let [first, second] = TABLE_OFFSETS;
    let a = region::read_table(structure.file.as_ref(), first)?;
    let b = region::read_table(structure.file.as_ref(), second)?;
    let mut are_valid = true;
    for (offset, bytes) in [(first, &a), (second, &b)] {
        if !region::table_is_valid(bytes) {
            are_valid = false;
            let text = "vhdx region table: invalid, the other copy is used";
            report.add(Severity::Repairable, Some(offset), text);
        }
    }
    if are_valid && a != b {
        let text = "vhdx region table: differs from the first copy, which is used";
        report.add(Severity::Repairable, Some(second), text);
    }
    Ok(())
}

/// An entry that is wrong.
pub(super) struct BatFault {
    pub(super) slot: Slot,
    /// Where the entry lies.
    pub(super) entry_offset: u64,
    pub(super) text: String,
}

/// Looks at every entry and tells which are wrong. Of two that overlap, the later one is.
/// `body` is where dropped entries are seen: a partial block whose bitmap entry was dropped is wrong as well.
pub(super) fn examine_bat(
    structure: &Structure,
    body: &Body,
    found: &mut dyn FnMut(BatFault) -> Result<()>,
) -> Result<SpaceMap> {
    let entry_offset = |slot| {
        let index = match slot {
            Slot::Payload(block) => structure.geometry.payload_index(block),
            Slot::Bitmap(chunk) => structure.geometry.bitmap_index(chunk),
        };
        structure
            .regions
            .bat
            .offset
            .saturating_add(index.saturating_mul(BAT_ENTRY_BYTES))
    };
    let mut space = SpaceMap::default();
    for span in structure.fixed_spans() {
        space
            .claim(span, Claim::Exclusive)
            .map_err(|at| Error::corrupt(format!("vhdx: regions overlap at {at:#x}")))?;
    }
    let mut has_anchors = false;
    structure.scan_bat(&mut |slot, raw| {
        let wrong = match structure.place(slot, raw) {
            Ok(Some((span, Claim::Exclusive))) => {
                let taken = space.probe(span);
                if taken.is_none() {
                    let claimed = space.claim(span, Claim::Lenient);
                    debug_assert!(claimed.is_ok());
                }
                taken.map(|at| format!("vhdx BAT: {slot:?} overlaps something at {at:#x}"))
            }
            Ok(Some((_, Claim::Lenient))) => {
                has_anchors = true;
                None
            }
            Ok(None) => None,
            Err(fault) => Some(fault.to_string()),
        };
        match wrong {
            Some(text) => found(BatFault {
                slot,
                entry_offset: entry_offset(slot),
                text,
            }),
            None => Ok(()),
        }
    })?;
    if has_anchors || structure.geometry.is_differencing() {
        examine_again(structure, body, &mut space, found, &entry_offset)?;
    }
    Ok(space)
}

/// The second look, when all used space is known: anchors, and partial blocks without a bitmap.
fn examine_again(
    structure: &Structure,
    body: &Body,
    space: &mut SpaceMap,
    found: &mut dyn FnMut(BatFault) -> Result<()>,
    entry_offset: &dyn Fn(Slot) -> u64,
) -> Result<()> {
    structure.scan_bat(&mut |slot, raw| {
        if let Ok(Some((span, Claim::Lenient))) = structure.place(slot, raw)
            && span.end() <= structure.file.size_bytes()
        {
            let claimed = space.claim(span, Claim::Lenient);
            debug_assert!(claimed.is_ok());
        }
        let Slot::Payload(block) = slot else {
            return Ok(());
        };
        let is_partial = body
            .payload(block)
            .is_ok_and(|entry| entry.state == PayloadState::Partial);
        if !is_partial || matches!(body.bitmap(structure.geometry.chunk_of(block)), Ok(Some(_))) {
            return Ok(());
        }
        let text = format!("vhdx BAT: {slot:?} is partial, but its chunk has no bitmap");
        found(BatFault {
            slot,
            entry_offset: entry_offset(slot),
            text,
        })
    })
}

fn check_bat(structure: &Structure, report: &mut CheckReport) -> Result<()> {
    let body = Body::new(
        Arc::clone(&structure.file),
        structure.geometry,
        structure.regions.bat.offset,
    );
    let examined = examine_bat(structure, &body, &mut |fault| {
        report.add(Severity::Damage, Some(fault.entry_offset), fault.text);
        Ok(())
    });
    let Some(space) = note(report, None, examined)? else {
        return Ok(());
    };
    let file_mib = structure.file.size_bytes().max(HEADER_SECTION_BYTES) / MIB;
    let behind = file_mib.saturating_sub(space.end() / MIB);
    let unowned = space.free_mib().saturating_add(behind);
    if unowned > 0 {
        let text = format!("vhdx: {unowned} MiB of the file belong to nothing");
        report.add(Severity::Note, None, text);
    }
    Ok(())
}
