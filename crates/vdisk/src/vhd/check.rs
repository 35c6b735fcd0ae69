//! Looking after a VHD: what is wrong, and what can be put right.
//!
//! | finding | repair |
//! |---|---|
//! | footer at the end lost or short | written again from the copy at 0 |
//! | copy at 0 damaged or different | written again from the end |
//! | block outside the file, on another block | with [`RepairMode::DataLoss`]: its entry is cleared |
//! |  | (its range then reads as zeros, or in a differencing image as the parent) |
//! | header or table damaged | none: another copy of the image is needed |

use std::collections::HashSet;
use std::sync::Arc;

use block::{ReadAt, WriteAt};

use super::create::next_block_start;
use super::format::{DiskType, FOOTER_BYTES, FOOTER_SIZE, Footer, SECTOR_BYTES, UNUSED_BLOCK};
use super::placement::Placement;
use super::reader::{FooterPlace, find_footer, open_blocks};
use crate::{CheckReport, Error, RepairMode, Result, Severity};

/// What is wrong with an image. An error only when the file cannot be read: damage is a finding.
pub fn check(file: Arc<dyn ReadAt>) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let (footer, place) = match find_footer(&*file) {
        Ok(found) => found,
        Err(error) => return damage(report, error),
    };
    match place {
        FooterPlace::End => {}
        FooterPlace::ShortEnd => report.add(Severity::Note, None, "vhd footer of 511 bytes"),
        FooterPlace::Copy => {
            report.add(
                Severity::Repairable,
                None,
                "vhd footer at the end is lost or damaged",
            );
        }
    }
    let Some(header_offset) = footer.header_offset else {
        return Ok(report);
    };
    if place != FooterPlace::Copy && read_copy(&*file)? != Some(footer.clone()) {
        report.add(
            Severity::Repairable,
            Some(0),
            "vhd footer copy is damaged or differs",
        );
    }
    let blocks = match open_blocks(&file, &footer, header_offset) {
        Ok(blocks) => blocks,
        Err(error) => return damage(report, error),
    };
    let mut used_end = 0;
    let mut placement = Placement::new(&blocks, file.size_bytes(), footer.current_size_bytes);
    blocks.table.for_each_allocated(|index, sector| {
        let start = u64::from(sector).saturating_mul(SECTOR_BYTES);
        match placement.add(index, sector) {
            Ok(()) => used_end = used_end.max(start.saturating_add(blocks.block_bytes)),
            Err(error) => report.add(Severity::Damage, Some(start), error.to_string()),
        }
        Ok(())
    })?;
    for (one, next) in placement.overlaps() {
        let text = format!("vhd blocks at sectors {one} and {next} overlap");
        report.add(
            Severity::Damage,
            Some(u64::from(next).saturating_mul(SECTOR_BYTES)),
            text,
        );
    }
    let slack = file.size_bytes().saturating_sub(used_end);
    let expected =
        next_block_start(blocks.bitmap_bytes, blocks.bitmap_bytes).saturating_add(FOOTER_SIZE);
    if used_end > 0 && slack > blocks.block_bytes.max(expected) {
        let text = format!("vhd: {slack} bytes behind the last block are not used");
        report.add(Severity::Note, Some(used_end), text);
    }
    Ok(report)
}

/// An error of the image's own is a finding; an error of reading the file is not.
fn damage(mut report: CheckReport, error: Error) -> Result<CheckReport> {
    if error.kind() == crate::ErrorKind::Io {
        return Err(error);
    }
    report.add(Severity::Damage, None, error.to_string());
    Ok(report)
}

fn read_copy(file: &dyn ReadAt) -> Result<Option<Footer>> {
    let mut bytes = [0; FOOTER_BYTES];
    file.read_at(0, &mut bytes)?;
    Ok(Footer::decode(&bytes, "at the beginning").ok())
}

/// Puts right what can be; returns what was found before. What stays wrong, another [`check`] tells.
pub fn repair(file: Arc<dyn WriteAt>, mode: RepairMode) -> Result<CheckReport> {
    let readable: Arc<dyn ReadAt> = file.clone();
    let report = check(Arc::clone(&readable))?;
    if report.is_clean() {
        return Ok(report);
    }
    let (footer, place) = find_footer(&*file)?;
    let Some(header_offset) = footer
        .header_offset
        .filter(|_| footer.disk_type != DiskType::Fixed)
    else {
        return Ok(report);
    };
    let blocks = open_blocks(&readable, &footer, header_offset)?;
    if mode == RepairMode::DataLoss {
        clear_impossible_blocks(&*file, &blocks, &footer)?;
    }
    if place == FooterPlace::Copy {
        let end = file.size_bytes().next_multiple_of(SECTOR_BYTES);
        file.write_at(next_block_start(end, blocks.bitmap_bytes), &footer.encode())?;
    } else {
        file.write_at(0, &footer.encode())?;
    }
    file.flush()?;
    Ok(report)
}

/// Clears the entries of blocks that lie outside the file or on a block that comes before them.
fn clear_impossible_blocks(
    file: &dyn WriteAt,
    blocks: &super::reader::Blocks,
    footer: &Footer,
) -> Result<()> {
    let mut placement = Placement::new(blocks, file.size_bytes(), footer.current_size_bytes);
    let mut impossible = Vec::new();
    blocks.table.for_each_allocated(|index, sector| {
        if placement.add(index, sector).is_err() {
            impossible.push(index);
        }
        Ok(())
    })?;
    let (twice, inside): (Vec<_>, Vec<_>) =
        placement.overlaps().partition(|(one, next)| one == next);
    let twice: HashSet<u32> = twice.into_iter().map(|(_, next)| next).collect();
    let inside: HashSet<u32> = inside.into_iter().map(|(_, next)| next).collect();
    // Of blocks at one place the first by number stays; one that begins inside another goes.
    let mut kept = HashSet::new();
    blocks.table.for_each_allocated(|index, sector| {
        if inside.contains(&sector) || (twice.contains(&sector) && !kept.insert(sector)) {
            impossible.push(index);
        }
        Ok(())
    })?;
    for index in impossible {
        blocks.table.set(index, UNUSED_BLOCK)?;
    }
    blocks.table.write_changed(file)
}
