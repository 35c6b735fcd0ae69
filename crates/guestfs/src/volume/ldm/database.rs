//! Where the database of a dynamic disk lies, and its raw records.
//!
//! ```text
//!   PRIVHEAD   00 "PRIVHEAD" │ 0C version 2.11 or 2.12 │ 30 disk id, text │ B0 group id, text │ F0 group name
//!              │ 11B data start │ 123 data sectors │ 12B database start │ 133 database sectors
//!   TOCBLOCK   00 "TOCBLOCK" │ 24 name, 2E start, 36 sectors │ 46 name, 50 start, 58 sectors
//!   VMDB       00 "VMDB" │ 04 records │ 08 bytes of one │ 0C first │ 10 status │ 16 group name │ 35 group id │ 75 sequence
//!   VBLK       00 "VBLK" │ 04 sequence │ 08 record id │ 0C fragment u16 │ 0E fragments u16 │ 10 data
//! ```

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

use std::collections::BTreeMap;

use block::ReadAt;

use crate::partition::{Guid, PartitionTable, PartitionType};
use crate::volume::pieces::read_head;
use crate::{Error, ErrorKind, Result, field};

const SECTOR: u64 = 512;
/// Windows makes databases of 1 MiB.
const MAX_DATABASE_BYTES: u64 = 32 * 1024 * 1024;
/// A record of more fragments than this has never been seen; the largest have five.
const MAX_FRAGMENTS: u16 = 64;

/// What a disk says about itself.
#[derive(Debug, Clone)]
pub(super) struct PrivateHead {
    pub(super) disk: Guid,
    pub(super) group: Guid,
    pub(super) group_name: String,
    /// First sector of the data.
    pub(super) data_start: u64,
    database_start: u64,
    database_sectors: u64,
}

/// Text that ends with a zero, or with its field.
fn text(record: &[u8], offset: usize, length: usize) -> Result<String> {
    let bytes = field::slice(record, offset, length)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(length);
    Ok(String::from_utf8_lossy(field::slice(bytes, 0, end)?).into_owned())
}

fn guid_text(record: &[u8], offset: usize, what: &str) -> Result<Guid> {
    let text = text(record, offset, 64)?;
    Guid::parse(&text).ok_or_else(|| Error::corrupt(format!("{what} {text:?} is no id")))
}

impl PrivateHead {
    fn parse(sector: &[u8]) -> Result<Self> {
        if field::slice(sector, 0, 8)? != b"PRIVHEAD" {
            return Err(Error::corrupt("has no PRIVHEAD"));
        }
        let version = (field::u16_be(sector, 0x0C)?, field::u16_be(sector, 0x0E)?);
        if !matches!(version, (2, 11 | 12)) {
            return Err(Error::unsupported(format!(
                "dynamic disk of version {}.{}",
                version.0, version.1
            )));
        }
        Ok(Self {
            disk: guid_text(sector, 0x30, "disk id")?,
            group: guid_text(sector, 0xB0, "disk group id")?,
            group_name: text(sector, 0xF0, 31)?,
            data_start: field::u64_be(sector, 0x11B)?,
            database_start: field::u64_be(sector, 0x12B)?,
            database_sectors: field::u64_be(sector, 0x133)?,
        })
    }
}

/// Reads the first copy that is whole.
pub(super) fn find_head(disk: &dyn ReadAt, table: &PartitionTable) -> Result<PrivateHead> {
    let last = (disk.size_bytes() / SECTOR).saturating_sub(1);
    let mut places = vec![6, last];
    for partition in &table.partitions {
        if partition.kind == PartitionType::Gpt(Guid::LDM_METADATA) {
            let end = partition.end() / SECTOR;
            let start = partition.offset / SECTOR;
            places = vec![
                end.saturating_sub(1),
                start,
                start.saturating_add(1856),
                end.saturating_sub(192),
            ];
        }
    }
    // The copy inside the database of 1 MiB at the end of the disk.
    places.push(last.saturating_sub(191));
    let mut first_error = None;
    for place in places {
        let sector = read_head(disk, place.saturating_mul(SECTOR), 512)?;
        match PrivateHead::parse(&sector) {
            Ok(head) => return Ok(head),
            Err(error) => {
                let is_better = first_error
                    .as_ref()
                    .is_none_or(|known: &Error| known.kind() == ErrorKind::Corrupt);
                if is_better {
                    first_error = Some(error);
                }
            }
        }
    }
    Err(first_error.unwrap_or_else(|| Error::corrupt("has no PRIVHEAD")))
}

/// Whole records of a group, by their id.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) sequence: u64,
    pub(super) is_committed: bool,
    pub(super) group_name: String,
    pub(super) records: Vec<Vec<u8>>,
}

impl Database {
    pub(super) fn read(disk: &dyn ReadAt, head: &PrivateHead) -> Result<Self> {
        let start = head
            .database_start
            .checked_mul(SECTOR)
            .ok_or_else(|| Error::corrupt("the database lies behind every disk"))?;
        let database_bytes = head
            .database_sectors
            .saturating_mul(SECTOR)
            .min(MAX_DATABASE_BYTES);
        let (config, config_bytes) = find_config(disk, start, database_bytes)?;
        let header = read_head(disk, config, 512)?;
        if field::slice(&header, 0, 4)? != b"VMDB" {
            return Err(Error::corrupt(format!("no VMDB at {config}")));
        }
        let count = field::u32_be(&header, 4)?;
        let record_bytes = field::u32_be(&header, 8)?;
        let first = field::u32_be(&header, 0x0C)?;
        let status = field::u16_be(&header, 0x10)?;
        let version = (field::u16_be(&header, 0x12)?, field::u16_be(&header, 0x14)?);
        if version.0 != 4 {
            return Err(Error::unsupported(format!(
                "database of version {}.{}",
                version.0, version.1
            )));
        }
        let wanted = u64::from(count)
            .saturating_mul(u64::from(record_bytes))
            .min(config_bytes.saturating_sub(u64::from(first)));
        if !(32..=4096).contains(&record_bytes) {
            return Err(Error::corrupt(format!("records of {record_bytes} bytes")));
        }
        let place = config.saturating_add(u64::from(first));
        let area = read_head(disk, place, usize::try_from(wanted).unwrap_or(0))?;
        let record_bytes = usize::try_from(record_bytes).unwrap_or(usize::MAX);
        Ok(Self {
            sequence: field::u64_be(&header, 0x75)?,
            is_committed: status == 1,
            group_name: text(&header, 0x16, 31)?,
            records: join(&area, record_bytes)?,
        })
    }
}

/// Place and length of the configuration, from the first table of contents that is whole.
fn find_config(disk: &dyn ReadAt, start: u64, database_bytes: u64) -> Result<(u64, u64)> {
    let sectors = database_bytes / SECTOR;
    for place in [1, 2, sectors.saturating_sub(3), sectors.saturating_sub(2)] {
        let toc = read_head(
            disk,
            start.saturating_add(place.saturating_mul(SECTOR)),
            512,
        )?;
        if field::slice(&toc, 0, 8)? != b"TOCBLOCK" {
            continue;
        }
        for at in [0x24, 0x46] {
            if text(&toc, at, 8)? == "config" {
                let first = field::u64_be(&toc, at.saturating_add(10))?.saturating_mul(SECTOR);
                let length = field::u64_be(&toc, at.saturating_add(18))?.saturating_mul(SECTOR);
                if first >= database_bytes {
                    return Err(Error::corrupt("the configuration lies behind the database"));
                }
                let longest = database_bytes.saturating_sub(first);
                return Ok((start.saturating_add(first), length.min(longest)));
            }
        }
    }
    Err(Error::corrupt(format!(
        "no TOCBLOCK in the database at {start}"
    )))
}

/// Puts the fragments of records together, in the order of their ids.
fn join(area: &[u8], record_bytes: usize) -> Result<Vec<Vec<u8>>> {
    let mut pending: BTreeMap<u32, (u16, BTreeMap<u16, &[u8]>)> = BTreeMap::new();
    for block in area.chunks_exact(record_bytes) {
        if field::slice(block, 0, 4)? != b"VBLK" {
            continue;
        }
        let id = field::u32_be(block, 8)?;
        let fragment = field::u16_be(block, 0x0C)?;
        let fragments = field::u16_be(block, 0x0E)?;
        if fragments == 0 || fragments > MAX_FRAGMENTS || fragment >= fragments {
            continue;
        }
        let data = field::slice(block, 16, record_bytes.saturating_sub(16))?;
        let entry = pending.entry(id).or_insert((fragments, BTreeMap::new()));
        entry.1.insert(fragment, data);
    }
    Ok(pending
        .into_values()
        .filter(|(wanted, parts)| parts.len() == usize::from(*wanted))
        .map(|(_, parts)| parts.into_values().flatten().copied().collect())
        .collect())
}
