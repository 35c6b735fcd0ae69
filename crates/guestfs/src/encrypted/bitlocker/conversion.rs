//! How far a BitLocker volume is converted, where Windows 10 and later do it bit by bit.
//!
//! ```text
//!   record   "FVE-EOW"    length, chunk bytes, regions, CRC-32, places of the bitmaps
//!   bitmap   "FVE-EOWBM"  region of the volume, two records
//!   record   "FVE-EOWBR"  sequence number, CRC-32, a bit per chunk: set, it is encrypted     the newer sound one counts
//! ```
//!
//! **Not done.** The logs beside the bitmaps are not replayed: a chunk that was worked on when the power went may be
//! half encrypted. The volume says that it was being converted.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use block::ReadAt;

use super::boot::Boot;
use crate::volume::pieces::{read_exact, read_head};
use crate::{Error, ErrorKind, Result, field};

/// All bitmaps of a volume together; a bit stands for some MiB.
const BITMAPS_BYTES_MAX: usize = 32 << 20;
const CHUNK_BYTES_MIN: u64 = 4096;

/// Which parts of a volume are encrypted.
#[derive(Debug)]
pub(super) struct Conversion {
    chunk_bytes: u64,
    /// Ascending.
    regions: Vec<Region>,
    /// Ranges of the volume that hold all this: first byte, length.
    pub(super) own_ranges: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Region {
    offset: u64,
    size_bytes: u64,
    bits: Vec<u8>,
    bit_count: u64,
}

impl Conversion {
    /// Whether what lies at an offset is encrypted, and how far that is so at least.
    pub(super) fn at(&self, offset: u64) -> Result<(bool, u64)> {
        let after = self
            .regions
            .partition_point(|region| region.offset <= offset);
        let uncovered = || Error::corrupt(format!("no bitmap says whether {offset} is encrypted"));
        let region = after
            .checked_sub(1)
            .and_then(|at| self.regions.get(at))
            .ok_or_else(uncovered)?;
        let inside = offset.saturating_sub(region.offset);
        let left = region.size_bytes.saturating_sub(inside);
        let chunk = inside.checked_div(self.chunk_bytes).unwrap_or(0);
        if left == 0 || chunk >= region.bit_count {
            return Err(uncovered());
        }
        let byte = usize::try_from(chunk >> 3)
            .ok()
            .and_then(|at| region.bits.get(at))
            .copied()
            .ok_or_else(uncovered)?;
        let is_encrypted = byte >> (chunk & 7) & 1 == 1;
        let end = chunk.saturating_add(1).saturating_mul(self.chunk_bytes);
        Ok((is_encrypted, end.saturating_sub(inside).min(left)))
    }
}

/// The first sound record, if the volume is of that kind.
pub(super) fn read(
    volume: &dyn ReadAt,
    boot: &Boot,
    findings: &mut Vec<String>,
) -> Result<Option<Conversion>> {
    let mut first_error = None;
    for place in &boot.conversion_places {
        match record(volume, *place) {
            Ok(mut found) => {
                for place in &boot.conversion_places {
                    found.own_ranges.push((*place, 4096));
                }
                return Ok(Some(found));
            }
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => {
                let error = error.within("the record of its conversion");
                findings.push(error.to_string());
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(None), Err)
}

/// Bytes with the checksum in them taken as zeros.
fn is_sound(mut bytes: Vec<u8>, sum_at: usize) -> Result<bool> {
    let said = field::u32_le(&bytes, sum_at)?;
    if let Some(place) = bytes.get_mut(sum_at..).and_then(|rest| rest.get_mut(..4)) {
        place.fill(0);
    }
    Ok(crc32fast::hash(&bytes) == said)
}

fn check_magic(bytes: &[u8], magic: &[u8]) -> Result<()> {
    if field::slice(bytes, 0, magic.len())? == magic {
        return Ok(());
    }
    let name = String::from_utf8_lossy(magic.trim_ascii_end()).replace('\0', "");
    Err(Error::corrupt(format!(
        "{name} does not lie where it should"
    )))
}

fn record(volume: &dyn ReadAt, place: u64) -> Result<Conversion> {
    let fields = read_head(volume, place, 56)?;
    check_magic(&fields, b"FVE-EOW\0")?;
    let header = usize::from(field::u16_le(&fields, 8)?);
    let length = usize::from(field::u16_le(&fields, 10)?);
    if header < 56 || length < header {
        return Err(Error::corrupt(format!("a record of {length} bytes")));
    }
    let whole = read_exact(volume, place, length)?;
    if !is_sound(whole.clone(), 36)? {
        return Err(Error::corrupt("the checksum of the record does not fit"));
    }
    let chunk_bytes = u64::from(field::u32_le(&fields, 20)?);
    let log_bytes = u64::from(field::u32_le(&fields, 24)?);
    if chunk_bytes < CHUNK_BYTES_MIN || !chunk_bytes.is_power_of_two() {
        return Err(Error::corrupt(format!("chunks of {chunk_bytes} bytes")));
    }
    let mut found = Conversion {
        chunk_bytes,
        regions: Vec::new(),
        own_ranges: Vec::new(),
    };
    let mut room = BITMAPS_BYTES_MAX;
    for place in whole.get(header..).unwrap_or_default().chunks_exact(8) {
        bitmap(
            volume,
            field::u64_le(place, 0)?,
            log_bytes,
            &mut room,
            &mut found,
        )?;
    }
    found.regions.sort_by_key(|region| region.offset);
    Ok(found)
}

fn bitmap(
    volume: &dyn ReadAt,
    place: u64,
    log_bytes: u64,
    room: &mut usize,
    found: &mut Conversion,
) -> Result<()> {
    let fields = read_head(volume, place, 60)?;
    check_magic(&fields, b"FVE-EOWBM\0")?;
    let length = usize::try_from(field::u32_le(&fields, 12)?).unwrap_or(usize::MAX);
    *room = room
        .checked_sub(length)
        .ok_or_else(|| Error::new(ErrorKind::Limit, "bitmaps of more than 32 MiB"))?;
    let whole = read_exact(volume, place, length)?;
    let records = [field::u32_le(&fields, 44)?, field::u32_le(&fields, 48)?];
    let records = records.map(|at| usize::try_from(at).unwrap_or(usize::MAX));
    let head = field::slice(&whole, 0, records.into_iter().min().unwrap_or(0))?;
    if !is_sound(head.to_vec(), 56)? {
        return Err(Error::corrupt("the checksum of a bitmap does not fit"));
    }
    let mut newest: Option<(u64, &[u8], u64)> = None;
    for at in records {
        let record = whole.get(at..).unwrap_or_default();
        let Some((sequence, bits, count)) = bits(record)? else {
            continue;
        };
        if newest.is_none_or(|(newest, _, _)| sequence > newest) {
            newest = Some((sequence, bits, count));
        }
    }
    let (_, bits, bit_count) =
        newest.ok_or_else(|| Error::corrupt("no record of a bitmap is sound"))?;
    let log = field::u64_le(&fields, 36)?;
    found.own_ranges.push((place, field::bytes(length)));
    found.own_ranges.push((log, log_bytes));
    found.regions.push(Region {
        offset: field::u64_le(&fields, 20)?,
        size_bytes: field::u64_le(&fields, 28)?,
        bits: bits.to_vec(),
        bit_count,
    });
    Ok(())
}

/// Sequence number, bits and their count of a record, if it is sound.
fn bits(record: &[u8]) -> Result<Option<(u64, &[u8], u64)>> {
    if check_magic(record, b"FVE-EOWBR\0").is_err() {
        return Ok(None);
    }
    let header = usize::from(field::u16_le(record, 10)?);
    let length = usize::try_from(field::u32_le(record, 12)?).unwrap_or(usize::MAX);
    let whole = field::slice(record, 0, length)?;
    if header < 36 || length < header || !is_sound(whole.to_vec(), 32)? {
        return Ok(None);
    }
    let bits = whole.get(header..).unwrap_or_default();
    let count = u64::from(field::u32_le(record, 16)?);
    Ok(Some((field::u64_le(record, 20)?, bits, count)))
}
