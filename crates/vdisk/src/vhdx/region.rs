//! The region table: where the BAT and the metadata lie.
//!
//! ```text
//!   64 KiB at 192 KiB, a copy at 256 KiB:
//!   "regi" crc32c:4 count:4 0:4 │ guid:16 offset:8 length:4 required:4 │ …
//! ```
//! Source: MS-VHDX 2.2.3.
//!
//! **Invariants.** The first copy with a valid checksum decides. A region that is unknown and required is refused, one
//! that is unknown and optional is kept clear of. Regions lie in whole mebibytes behind the header section, inside the
//! file, and neither overlap each other nor the log.

use block::ReadAt;
use uuid::{Uuid, uuid};

use super::bytes::{Encoder, Fields, checksum_holds};
use super::header::{HEADER_SECTION_BYTES, MIB};
use crate::{Error, ErrorKind, Result};

pub(super) const BAT_REGION: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
pub(super) const METADATA_REGION: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");
/// Where the two copies lie.
pub(super) const TABLE_OFFSETS: [u64; 2] = [192 * 1024, 256 * 1024];
const TABLE_BYTES: usize = 64 * 1024;
const MAX_ENTRIES: u32 = 2047;
const ENTRY_BYTES: usize = 32;
const FIRST_ENTRY: usize = 16;

/// A range of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Span {
    pub(super) fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

/// Where everything but payload lies.
#[derive(Debug, Clone)]
pub(super) struct Regions {
    pub(super) bat: Span,
    pub(super) metadata: Span,
    /// Optional regions of others.
    pub(super) foreign: Vec<Span>,
}

/// One copy as it lies in the file.
pub(super) fn read_table(file: &dyn ReadAt, offset: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; TABLE_BYTES];
    file.read_at(offset, &mut bytes)?;
    Ok(bytes)
}

/// Whether a copy may be believed.
pub(super) fn table_is_valid(bytes: &[u8]) -> bool {
    bytes.starts_with(b"regi") && checksum_holds(bytes)
}

/// Reads the table and checks it against the file and the log.
pub(super) fn read(file: &dyn ReadAt, log: Option<Span>) -> Result<Regions> {
    decode(&read_valid(file)?, file.size_bytes(), log)
}

/// The copy that decides, as it lies in the file.
pub(super) fn read_valid(file: &dyn ReadAt) -> Result<Vec<u8>> {
    for offset in TABLE_OFFSETS {
        let bytes = read_table(file, offset)?;
        if table_is_valid(&bytes) {
            return Ok(bytes);
        }
    }
    Err(Error::corrupt("vhdx: neither region table is valid"))
}

/// A table with the BAT at another place; every other entry, ours or not, stays as it is.
pub(super) fn with_bat(table: &[u8], bat: Span) -> Result<Vec<u8>> {
    let fields = Fields::new(table, "vhdx region table");
    let count = usize::try_from(fields.u32(8)?.min(MAX_ENTRIES)).unwrap_or(0);
    let mut bytes = Encoder::new(table.len());
    bytes.put(0, table);
    for index in 0..count {
        let at = FIRST_ENTRY.saturating_add(index.saturating_mul(ENTRY_BYTES));
        if fields.guid(at)? == BAT_REGION {
            bytes.u64(at.saturating_add(16), bat.offset);
            bytes.u32(
                at.saturating_add(24),
                u32::try_from(bat.length).unwrap_or(u32::MAX),
            );
        }
    }
    Ok(bytes.finish_with_checksum())
}

fn decode(bytes: &[u8], file_size: u64, log: Option<Span>) -> Result<Regions> {
    let fields = Fields::new(bytes, "vhdx region table");
    let count = fields.u32(8)?;
    if count > MAX_ENTRIES {
        return Err(Error::corrupt(format!(
            "vhdx region table: {count} entries"
        )));
    }
    let mut bat = None;
    let mut metadata = None;
    let mut foreign = Vec::new();
    let mut taken: Vec<Span> = log.into_iter().collect();
    for index in 0..usize::try_from(count).unwrap_or(0) {
        let at = FIRST_ENTRY.saturating_add(index.saturating_mul(ENTRY_BYTES));
        let entry = Fields::new(fields.slice(at, ENTRY_BYTES)?, "vhdx region entry");
        let guid = entry.guid(0)?;
        let span = Span {
            offset: entry.u64(16)?,
            length: u64::from(entry.u32(24)?),
        };
        let is_required = entry.u32(28)? & 1 == 1;
        check_span(guid, span, &taken)?;
        taken.push(span);
        let is_known = guid == BAT_REGION || guid == METADATA_REGION;
        if is_known && span.end() > file_size {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!(
                    "vhdx region {guid}: ends at {:#x}, the file at {file_size:#x}",
                    span.end()
                ),
            ));
        }
        if guid == BAT_REGION && bat.replace(span).is_none()
            || guid == METADATA_REGION && metadata.replace(span).is_none()
        {
            continue;
        }
        if is_known {
            return Err(Error::corrupt(format!("vhdx region {guid}: listed twice")));
        }
        if is_required {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("vhdx region {guid}: unknown and required"),
            ));
        }
        foreign.push(span);
    }
    Ok(Regions {
        bat: bat.ok_or_else(|| Error::corrupt("vhdx region table: no BAT"))?,
        metadata: metadata.ok_or_else(|| Error::corrupt("vhdx region table: no metadata"))?,
        foreign,
    })
}

fn check_span(guid: Uuid, span: Span, taken: &[Span]) -> Result<()> {
    let aligned =
        span.offset.is_multiple_of(MIB) && span.length.is_multiple_of(MIB) && span.length > 0;
    if !aligned
        || span.offset < HEADER_SECTION_BYTES
        || span.offset.checked_add(span.length).is_none()
    {
        return Err(Error::corrupt(format!(
            "vhdx region {guid}: {} bytes at {:#x} are not in whole mebibytes behind the headers",
            span.length, span.offset
        )));
    }
    if let Some(other) = taken.iter().find(|other| other.overlaps(span)) {
        return Err(Error::corrupt(format!(
            "vhdx region {guid}: at {:#x} overlaps what lies at {:#x}",
            span.offset, other.offset
        )));
    }
    Ok(())
}

/// The table that Windows would write for these two regions.
pub(super) fn encode(bat: Span, metadata: Span) -> Vec<u8> {
    let mut bytes = Encoder::new(TABLE_BYTES);
    bytes.put(0, b"regi");
    bytes.u32(8, 2);
    for (at, guid, span) in [(16, BAT_REGION, bat), (48, METADATA_REGION, metadata)] {
        let mut entry = Encoder::new(ENTRY_BYTES);
        entry.guid(0, guid);
        entry.u64(16, span.offset);
        entry.u32(24, u32::try_from(span.length).unwrap_or(u32::MAX));
        entry.u32(28, 1);
        bytes.put(at, &entry.finish());
    }
    bytes.finish_with_checksum()
}
