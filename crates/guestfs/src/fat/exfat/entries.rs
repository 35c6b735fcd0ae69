//! Entry sets of exFAT, and the table of upper-case letters.
//!
//! **Invariants.** An [`EntrySet`] had one file entry, one stream entry, as many name entries as its name needs, and the
//! right checksum. Its valid bytes are not more than its size.

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

use crate::field::{slice, u8_at, u16_le, u32_le, u64_le};
use crate::filesystem::{FileKind, FileTimes, Metadata, Timestamp};
use crate::{Error, Result};

use super::super::{directory_metadata, names};
use super::ENTRY_LENGTH;

/// The kind of the first entry of a set.
pub(super) const FILE: u8 = 0x85;
const STREAM: u8 = 0xC0;
const NAME: u8 = 0xC1;
const DIRECTORY: u16 = 0x10;

/// A file's entries, checked.
pub(super) struct EntrySet {
    pub name: Vec<u16>,
    pub first_cluster: u32,
    pub size_bytes: u64,
    pub valid_bytes: u64,
    pub is_contiguous: bool,
    attributes: u16,
    times: FileTimes,
}

impl EntrySet {
    /// Of all the bytes of a set.
    pub fn parse(set: &[u8]) -> Result<Self> {
        if !crate::field::sum_holds(checksum(set), u16_le(set, 2)?) {
            return Err(Error::corrupt("the checksum of an entry set is wrong"));
        }
        let stream = slice(set, ENTRY_LENGTH, ENTRY_LENGTH)?;
        if u8_at(stream, 0)? != STREAM {
            return Err(Error::corrupt("an entry set without a stream"));
        }
        let length = usize::from(u8_at(stream, 3)?);
        let mut name = Vec::with_capacity(length);
        for entry in set.chunks_exact(ENTRY_LENGTH).skip(2) {
            if u8_at(entry, 0)? == NAME && name.len() < length {
                name.extend(units(slice(entry, 2, 30)?));
            }
        }
        name.truncate(length);
        let (valid_bytes, size_bytes) = (u64_le(stream, 8)?, u64_le(stream, 24)?);
        if name.is_empty()
            || name.len() < length
            || valid_bytes > size_bytes
            || i64::try_from(size_bytes).is_err()
        {
            return Err(Error::corrupt(format!(
                "an entry set with {} of {length} letters, {valid_bytes} of {size_bytes} bytes",
                name.len()
            )));
        }
        let time = |at: usize, hundredths: u8, zone_at: usize| -> Result<Option<Timestamp>> {
            Ok(timestamp(
                u32_le(set, at)?,
                hundredths,
                u8_at(set, zone_at)?,
            ))
        };
        Ok(Self {
            name,
            first_cluster: u32_le(stream, 20)?,
            size_bytes,
            valid_bytes,
            is_contiguous: u8_at(stream, 1)? & 2 != 0,
            attributes: u16_le(set, 4)?,
            times: FileTimes {
                created: time(8, u8_at(set, 20)?, 22)?,
                modified: time(12, u8_at(set, 21)?, 23)?,
                changed: None,
                accessed: time(16, 0, 24)?,
            },
        })
    }

    /// What it is.
    pub fn kind(&self) -> FileKind {
        if self.attributes & DIRECTORY == 0 {
            FileKind::Regular
        } else {
            FileKind::Directory
        }
    }

    pub fn metadata(&self, cluster_bytes: u64) -> Metadata {
        let kind = self.kind();
        let width = cluster_bytes.max(1);
        Metadata {
            kind,
            size_bytes: if kind == FileKind::Regular {
                self.size_bytes
            } else {
                0
            },
            allocated_bytes: self.size_bytes.div_ceil(width).saturating_mul(width),
            ..directory_metadata(self.times, u32::from(self.attributes & 0x37))
        }
    }
}

/// Over all bytes but the checksum itself.
fn checksum(set: &[u8]) -> u16 {
    set.iter().enumerate().fold(0_u16, |sum, (index, &byte)| {
        if matches!(index, 2 | 3) {
            return sum;
        }
        sum.rotate_right(1).wrapping_add(u16::from(byte))
    })
}

/// UTF-16 out of bytes.
pub(super) fn units(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes
        .chunks_exact(2)
        .map(|pair| u16_le(pair, 0).unwrap_or(0))
}

/// Local time and how far it is from UTC, in quarters of an hour; without that it is taken for UTC.
fn timestamp(moment: u32, hundredths: u8, zone: u8) -> Option<Timestamp> {
    let date = u16::try_from(moment >> 16).unwrap_or(0);
    let time = u16::try_from(moment & 0xFFFF).unwrap_or(0);
    let mut timestamp = names::timestamp(date, time, hundredths)?;
    if zone & 0x80 != 0 {
        let quarters = i64::from((zone << 1).cast_signed() >> 1);
        timestamp.seconds = timestamp
            .seconds
            .saturating_sub(quarters.saturating_mul(900));
    }
    Some(timestamp)
}

/// A volume's own upper case, for comparing names.
#[derive(Default)]
pub(super) struct Upcase(Vec<u16>);

impl Upcase {
    /// From its compressed form: 0xFFFF and a count stand for so many letters that stay as they are.
    pub fn parse(bytes: &[u8], expected: u32) -> Result<Self> {
        let sum = bytes.iter().fold(0_u32, |sum, &byte| {
            sum.rotate_right(1).wrapping_add(u32::from(byte))
        });
        if sum != expected {
            return Err(Error::corrupt(
                "the checksum of its table of upper case is wrong",
            ));
        }
        let mut table: Vec<u16> = Vec::new();
        let mut units = units(bytes);
        while let Some(unit) = units.next() {
            if table.len() > 0xFFFF {
                break;
            }
            if unit != 0xFFFF {
                table.push(unit);
                continue;
            }
            for _ in 0..units.next().unwrap_or(0) {
                if let Ok(same) = u16::try_from(table.len()) {
                    table.push(same);
                }
            }
        }
        Ok(Self(table))
    }

    /// A name as it is compared.
    pub fn fold(&self, name: &[u16]) -> Vec<u16> {
        name.iter()
            .map(|&unit| self.0.get(usize::from(unit)).copied().unwrap_or(unit))
            .collect()
    }
}
