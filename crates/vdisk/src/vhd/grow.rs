//! A larger disk in the same file.
//!
//! ```text
//!   fixed    │ data │ footer │                 ─► │ data │ zeros │ footer │
//!   others   │ … │ table │ … │ block │ footer │ ─► │ … │ (old table) │ … │ block │ table │ footer │
//!
//!   1 the old footer again, behind the new end     2 table, zeros behind the old end of the disk
//!   3 header: one sector that names the table      4 footer with the new size: one sector, then its copy
//! ```
//!
//! **Invariants.** A crash at any moment leaves the old size or the new one, and every byte of the old disk; what lies
//! behind the old end reads as zeros from the moment that it is part of the disk. Each switch is the write of one sector.
//!
//! Not done: making a disk smaller; a child that is smaller than its parent, which no other program has.

use std::sync::Arc;

use block::{ExtentKind, ReadAt, WriteAt};

use super::create::{CREATOR, check_size, next_block_start};
use super::format::{
    FOOTER_SIZE, Footer, Geometry, HEADER_BYTES, Header, SECTOR_BYTES, UNUSED_BLOCK, length_u64,
};
use super::reader::{Blocks, VhdReader};
use super::writer::VhdWriter;
use crate::{Error, ErrorKind, Result, map};

/// Entries of a table that are written at once.
const PIECE_ENTRIES: u64 = 64 * 1024;
/// A table that is moved begins on a page and fills whole ones.
const PAGE_BYTES: u64 = 4096;

/// Makes the disk larger. `parent` is what a differencing image lies on.
///
/// # Errors
/// `Invalid` for a size that is smaller, no whole number of sectors or more than 2040 GiB; `Unsupported` for a child whose
/// parent is larger; as [`VhdWriter::open`].
pub fn grow(
    file: &Arc<dyn WriteAt>,
    parent: Option<Arc<dyn ReadAt>>,
    size_bytes: u64,
) -> Result<()> {
    // Opening judges the image and gives it back a footer that it lost.
    VhdWriter::open(Arc::clone(file), parent.clone())?.finish()?;
    let view: Arc<dyn ReadAt> = file.clone();
    let reader = VhdReader::open(view, None)?;
    let old_size = reader.size_bytes();
    if size_bytes < old_size {
        let context = format!("vhd: a disk of {old_size} bytes is not made smaller");
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    if size_bytes == old_size {
        return Ok(());
    }
    check_size(size_bytes)?;
    let mut footer = reader.footer().clone();
    footer.current_size_bytes = size_bytes;
    // The size at creation tells nobody anything, but some readers (libvhdi) take it for the size.
    footer.original_size_bytes = size_bytes;
    footer.geometry = Geometry::for_size(size_bytes);
    // Some readers take the geometry for the size when older programs are named.
    (footer.creator, footer.creator_version, footer.creator_os) = CREATOR;
    match reader.blocks() {
        None => grow_fixed(&**file, &reader, &footer),
        Some(blocks) => {
            if let Some(parent) = parent.as_ref().filter(|it| it.size_bytes() > old_size) {
                let context = format!(
                    "vhd: a child of {old_size} bytes on a parent of {}",
                    parent.size_bytes()
                );
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
            let moved = make_room(&**file, &reader, blocks, size_bytes)?;
            let writer = VhdWriter::open_larger(Arc::clone(file), footer.clone(), parent)?;
            zero_behind(&writer, old_size)?;
            drop(writer);
            switch_footers(&**file, moved, &footer)
        }
    }
}

fn grow_fixed(file: &dyn WriteAt, reader: &VhdReader, footer: &Footer) -> Result<()> {
    let (size, old_end) = (footer.current_size_bytes, reader.data_end());
    let end = size.max(old_end);
    if end > old_end {
        if end.saturating_sub(old_end) < SECTOR_BYTES {
            let context = format!("vhd: the footer at {old_end} is not on a sector");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        file.write_at(end, &reader.footer().encode())?;
        file.flush()?;
    }
    let old_size = reader.size_bytes();
    file.zero_range(old_size, size.saturating_sub(old_size))?;
    file.flush()?;
    file.write_at(end, &footer.encode())?;
    file.flush()?;
    Ok(())
}

/// Gives the file a table that is long enough and a last block that is whole. Answers where the last footer lies then.
fn make_room(
    file: &dyn WriteAt,
    reader: &VhdReader,
    blocks: &Blocks,
    size_bytes: u64,
) -> Result<u64> {
    let old_count = reader.size_bytes().div_ceil(blocks.block_bytes);
    let count = size_bytes.div_ceil(blocks.block_bytes);
    let mut end = reader.data_end();
    if let Some(start) = blocks.start_of(old_count.saturating_sub(1))? {
        let block_end = start
            .saturating_add(blocks.bitmap_bytes)
            .saturating_add(blocks.block_bytes);
        end = end.max(block_end);
    }
    let table = blocks.header.table_offset;
    if count <= u64::from(blocks.header.table_entries) {
        let footer_at = match end == reader.data_end() {
            true => end,
            false => next_block_start(end, blocks.bitmap_bytes),
        };
        let table_end = table.saturating_add(count.saturating_mul(4));
        if table_end > file.size_bytes() {
            return Err(Error::corrupt(format!(
                "vhd table of {count} entries at {table} lies outside the file"
            )));
        }
        put_footer_behind(file, reader, footer_at)?;
        let unused = |_| Ok(UNUSED_BLOCK);
        write_entries(file, table, old_count..count, &unused)?;
        file.flush()?;
        return Ok(footer_at);
    }
    // Room for whole pages of entries, so that the next growth may do without.
    let entries = count.next_multiple_of(PAGE_BYTES / 4);
    let place = end.next_multiple_of(PAGE_BYTES);
    let table_end = place.saturating_add(entries.saturating_mul(4));
    let footer_at = next_block_start(table_end, blocks.bitmap_bytes);
    put_footer_behind(file, reader, footer_at)?;
    let old = |index| match index < old_count {
        true => blocks.table.get(index),
        false => Ok(UNUSED_BLOCK),
    };
    write_entries(file, place, 0..entries, &old)?;
    file.flush()?;
    let header_at = reader.footer().header_offset.unwrap_or(FOOTER_SIZE);
    let mut header = [0; HEADER_BYTES];
    file.read_at(header_at, &mut header)?;
    Header::move_table(
        &mut header,
        place,
        u32::try_from(entries).unwrap_or(u32::MAX),
    );
    let (sector, _) = header.split_at(512);
    file.write_at(header_at, sector)?;
    file.flush()?;
    Ok(footer_at)
}

/// The footer as it is, where it will be: the file is a whole image again before anything overwrites the old place.
fn put_footer_behind(file: &dyn WriteAt, reader: &VhdReader, footer_at: u64) -> Result<()> {
    if footer_at > reader.data_end() {
        file.write_at(footer_at, &reader.footer().encode())?;
        file.flush()?;
    }
    Ok(())
}

/// Writes a range of the entries of the table at `table`.
fn write_entries(
    file: &dyn WriteAt,
    table: u64,
    range: std::ops::Range<u64>,
    entry: &dyn Fn(u64) -> Result<u32>,
) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let behind = at.saturating_add(PIECE_ENTRIES).min(range.end);
        let mut bytes = Vec::new();
        for index in at..behind {
            bytes.extend_from_slice(&entry(index)?.to_be_bytes());
        }
        debug_assert!(length_u64(&bytes) <= PIECE_ENTRIES.saturating_mul(4));
        file.write_at(table.saturating_add(at.saturating_mul(4)), &bytes)?;
        at = behind;
    }
    Ok(())
}

/// Zeroes what the last block holds behind the old end.
fn zero_behind(writer: &VhdWriter, old_size: u64) -> Result<()> {
    let length = writer.size_bytes().saturating_sub(old_size);
    for extent in map::extents_in(writer, old_size, length) {
        let extent = extent?;
        if extent.kind == ExtentKind::Data {
            writer.zero_range(extent.offset, extent.length_bytes)?;
        }
    }
    Ok(writer.flush()?)
}

/// The moment of the new size: the footer at the end rules, the copy follows.
fn switch_footers(file: &dyn WriteAt, footer_at: u64, footer: &Footer) -> Result<()> {
    let bytes = footer.encode();
    for place in [footer_at, 0] {
        file.write_at(place, &bytes)?;
        file.flush()?;
    }
    Ok(())
}
