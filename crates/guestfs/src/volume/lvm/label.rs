//! What a physical volume of LVM2 says: its label, its data, its copies of the group's metadata.
//!
//! ```text
//!   sector 0..4   "LABELONE" │ sector u64 │ crc │ offset u32 │ "LVM2 001" │ PV header: id, size, data areas, metadata areas
//!   metadata area 512-byte header: crc │ " LVM2 x[5A%r0N*>" │ version │ start │ size │ places of texts
//!                 then a ring of texts; the current one may go round its end
//! ```
//!
//! Source: LVM2 `lib/format_text/layout.h`.

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

use crate::volume::checksum::crc32_from;
use crate::volume::pieces::read_head;
use crate::{Error, Result, field};

const CRC_START: u32 = 0xF597_A6CF;
const AREA_HEADER_BYTES: u64 = 512;
/// LVM refuses metadata longer than half its area, which is 1 MiB by default; 64 MiB are hundreds of thousands of segments.
const MAX_TEXT_BYTES: u64 = 64 * 1024 * 1024;
const MAX_AREAS: usize = 16;

/// Id of a physical volume without its hyphens: 32 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysicalVolumeId(String);

impl PhysicalVolumeId {
    /// From the metadata, with or without hyphens.
    pub fn new(text: &str) -> Self {
        Self(text.chars().filter(|one| *one != '-').collect())
    }
}

impl std::fmt::Display for PhysicalVolumeId {
    /// With hyphens, as LVM prints it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, one) in self.0.chars().enumerate() {
            if matches!(at, 6 | 10 | 14 | 18 | 22 | 26) {
                f.write_str("-")?;
            }
            write!(f, "{one}")?;
        }
        Ok(())
    }
}

/// A label.
#[derive(Debug, Clone)]
pub struct Label {
    /// Its id.
    pub id: PhysicalVolumeId,
    /// Bytes of the physical volume.
    pub size_bytes: u64,
    areas: Vec<(u64, u64)>,
}

/// Reads the label; `None` when there is none that is sound.
///
/// # Errors
/// [`crate::ErrorKind::Io`].
pub fn read_label(source: &dyn ReadAt) -> Result<Option<Label>> {
    let head = read_head(source, 0, 2048)?;
    for (number, sector) in (0_u64..).zip(head.chunks_exact(512)) {
        if field::slice(sector, 0, 8)? == b"LABELONE"
            && field::slice(sector, 24, 8)? == b"LVM2 001"
            && field::u64_le(sector, 8)? == number
            && field::sum_holds(
                crc32_from(CRC_START, field::slice(sector, 20, 492)?),
                field::u32_le(sector, 16)?,
            )
        {
            return Ok(parse_label(sector).ok());
        }
    }
    Ok(None)
}

fn parse_label(sector: &[u8]) -> Result<Label> {
    let start = usize::try_from(field::u32_le(sector, 20)?).unwrap_or(usize::MAX);
    let header = sector
        .get(start..)
        .ok_or_else(|| Error::corrupt("label's contents"))?;
    let id = String::from_utf8_lossy(field::slice(header, 0, 32)?).into_owned();
    let mut at = 40;
    // Data areas, then metadata areas, each list ended by zeros.
    let mut lists = [Vec::new(), Vec::new()];
    for list in &mut lists {
        loop {
            let offset = field::u64_le(header, at)?;
            let size = field::u64_le(header, at.saturating_add(8))?;
            at = at.saturating_add(16);
            if offset == 0 || list.len() >= MAX_AREAS {
                break;
            }
            list.push((offset, size));
        }
    }
    let [_, areas] = lists;
    Ok(Label {
        id: PhysicalVolumeId(id),
        size_bytes: field::u64_le(header, 32)?,
        areas,
    })
}

/// The texts of all metadata areas, and what is wrong with the others.
pub(super) fn read_texts(
    source: &dyn ReadAt,
    label: &Label,
) -> Result<(Vec<Vec<u8>>, Vec<String>)> {
    let mut texts = Vec::new();
    let mut damage = Vec::new();
    for (offset, size) in &label.areas {
        match read_area(source, *offset, *size) {
            Ok(found) => texts.extend(found),
            Err(error) if error.kind() == crate::ErrorKind::Io => return Err(error),
            Err(error) => damage.push(format!("metadata area at {offset}: {error}")),
        }
    }
    Ok((texts, damage))
}

fn read_area(source: &dyn ReadAt, offset: u64, size: u64) -> Result<Option<Vec<u8>>> {
    let header = read_head(source, offset, 512)?;
    if field::slice(&header, 4, 16)? != b" LVM2 x[5A%r0N*>" {
        return Err(Error::corrupt("has no magic"));
    }
    let sum = crc32_from(CRC_START, field::slice(&header, 4, 508)?);
    if !field::sum_holds(sum, field::u32_le(&header, 0)?) {
        return Err(Error::corrupt("checksum of the header is wrong"));
    }
    if field::u64_le(&header, 24)? != offset {
        return Err(Error::corrupt("says that it lies elsewhere"));
    }
    // The label's size may be zero: to the end of what there is.
    let told = field::u64_le(&header, 32)?;
    let ring_end = if size == 0 { told } else { told.min(size) };
    let place = field::u64_le(&header, 40)?;
    let length = field::u64_le(&header, 48)?;
    let checksum = field::u32_le(&header, 56)?;
    let is_ignored = field::u32_le(&header, 60)? & 1 == 1;
    if place == 0 || length == 0 || is_ignored {
        return Ok(None);
    }
    if !(AREA_HEADER_BYTES..ring_end).contains(&place)
        || length > ring_end.saturating_sub(AREA_HEADER_BYTES)
        || length > MAX_TEXT_BYTES
    {
        return Err(Error::corrupt(format!(
            "a text of {length} bytes at {place}"
        )));
    }
    let first = length.min(ring_end.saturating_sub(place));
    let rest = length.saturating_sub(first);
    let mut text = read_head(
        source,
        offset.saturating_add(place),
        usize::try_from(first).unwrap_or(0),
    )?;
    text.extend(read_head(
        source,
        offset.saturating_add(AREA_HEADER_BYTES),
        usize::try_from(rest).unwrap_or(0),
    )?);
    if !field::sum_holds(crc32_from(CRC_START, &text), checksum) {
        return Err(Error::corrupt("checksum of the text is wrong"));
    }
    Ok(Some(text))
}
