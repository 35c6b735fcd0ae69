//! The header section: file identifier and the two headers.
//!
//! ```text
//!   0        "vhdxfile", creator (UTF-16)
//!   64 KiB   header 1 ┐ the current one is valid and has the larger sequence number;
//!   128 KiB  header 2 ┘ an update goes to the other one
//!   192 KiB  region table 1
//!   256 KiB  region table 2
//!   ..1 MiB  reserved
//!
//!   header: "head" crc32c:4 sequence:8 file-write:16 data-write:16 log:16 log-version:2 version:2
//!           log-length:4 log-offset:8, zeros up to 4 KiB (all little-endian, GUIDs mixed-endian)
//! ```
//! Source: MS-VHDX 2.2.
//!
//! **Invariants.** Nothing of the losing header is used, its log GUID least of all. Two headers of one sequence number
//! are accepted only when they are the same bytes.

use block::ReadAt;
use uuid::Uuid;

use super::bytes::{Encoder, Fields, checksum_holds};
use crate::{Error, ErrorKind, Result};

/// One mebibyte: the unit in which everything in the file is placed.
pub(super) const MIB: u64 = 1 << 20;
/// Bytes of the section in front of everything else.
pub(super) const HEADER_SECTION_BYTES: u64 = MIB;
const HEADER_BYTES: usize = 4096;
const CREATOR_UNITS: usize = 256;

/// Which of the two headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderSlot {
    First,
    Second,
}

impl HeaderSlot {
    pub(super) const BOTH: [Self; 2] = [Self::First, Self::Second];

    pub(super) fn offset(self) -> u64 {
        match self {
            Self::First => 64 * 1024,
            Self::Second => 128 * 1024,
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// A header whose signature, checksum and version are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    pub(super) file_write: Uuid,
    pub(super) data_write: Uuid,
    /// Nil when there is nothing to replay.
    pub(super) log: Uuid,
    pub(super) log_version: u16,
    pub(super) version: u16,
    pub(super) log_length: u32,
    pub(super) log_offset: u64,
}

impl Header {
    /// `None` when signature or checksum are wrong: such a header does not count.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>> {
        let fields = Fields::new(bytes, "vhdx header");
        if fields.slice(0, 4)? != b"head" || !checksum_holds(bytes) {
            return Ok(None);
        }
        Ok(Some(Self {
            sequence: fields.u64(8)?,
            file_write: fields.guid(16)?,
            data_write: fields.guid(32)?,
            log: fields.guid(48)?,
            log_version: fields.u16(64)?,
            version: fields.u16(66)?,
            log_length: fields.u32(68)?,
            log_offset: fields.u64(72)?,
        }))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Encoder::new(HEADER_BYTES);
        bytes.put(0, b"head");
        bytes.u64(8, self.sequence);
        bytes.guid(16, self.file_write);
        bytes.guid(32, self.data_write);
        bytes.guid(48, self.log);
        bytes.u16(64, self.log_version);
        bytes.u16(66, self.version);
        bytes.u32(68, self.log_length);
        bytes.u64(72, self.log_offset);
        bytes.finish_with_checksum()
    }

    /// Refuses what this build cannot honour. Only the current header is asked.
    pub(super) fn validate(&self) -> Result<()> {
        if self.version != 1 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("vhdx header: version {} (only 1 is known)", self.version),
            ));
        }
        let has_log = u64::from(self.log_length) > 0;
        let aligned =
            u64::from(self.log_length).is_multiple_of(MIB) && self.log_offset.is_multiple_of(MIB);
        if has_log && (!aligned || self.log_offset < HEADER_SECTION_BYTES) {
            return Err(Error::corrupt(format!(
                "vhdx header: log of {} bytes at {:#x} is not in whole mebibytes behind the headers",
                self.log_length, self.log_offset
            )));
        }
        if self.log.is_nil() {
            return Ok(());
        }
        if self.log_version != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "vhdx header: log version {} waits to be replayed",
                    self.log_version
                ),
            ));
        }
        if !has_log {
            return Err(Error::corrupt(
                "vhdx header: a log waits, but its length is zero",
            ));
        }
        Ok(())
    }
}

/// What one header slot holds.
pub(super) fn read_slot(file: &dyn ReadAt, slot: HeaderSlot) -> Result<Option<Header>> {
    let mut bytes = vec![0; HEADER_BYTES];
    file.read_at(slot.offset(), &mut bytes)?;
    Header::decode(&bytes)
}

/// The current header and where it lies.
pub(super) fn select(file: &dyn ReadAt) -> Result<(Header, HeaderSlot)> {
    let size = file.size_bytes();
    if size < HEADER_SECTION_BYTES {
        return Err(Error::new(
            ErrorKind::Incomplete,
            format!("vhdx: a file of {size} bytes is shorter than the header section"),
        ));
    }
    let first = read_slot(file, HeaderSlot::First)?;
    let second = read_slot(file, HeaderSlot::Second)?;
    let chosen = match (first, second) {
        (None, None) => return Err(Error::corrupt("vhdx: neither header is valid")),
        (Some(header), None) => (header, HeaderSlot::First),
        (None, Some(header)) => (header, HeaderSlot::Second),
        (Some(first), Some(second)) => {
            if first.sequence == second.sequence && first != second {
                return Err(Error::corrupt(format!(
                    "vhdx: two different headers have the sequence number {}",
                    first.sequence
                )));
            }
            if first.sequence >= second.sequence {
                (first, HeaderSlot::First)
            } else {
                (second, HeaderSlot::Second)
            }
        }
    };
    chosen.0.validate()?;
    Ok(chosen)
}

/// Refuses a file that is no VHDX, and says who made one that is.
pub(super) fn read_identifier(file: &dyn ReadAt) -> Result<Option<String>> {
    let mut bytes = vec![0; 8 + CREATOR_UNITS * 2];
    if file.size_bytes() < HEADER_SECTION_BYTES {
        return Err(Error::new(
            ErrorKind::Incomplete,
            format!(
                "vhdx: a file of {} bytes is shorter than the header section",
                file.size_bytes()
            ),
        ));
    }
    file.read_at(0, &mut bytes)?;
    let fields = Fields::new(&bytes, "vhdx file identifier");
    if fields.slice(0, 8)? != b"vhdxfile" {
        return Err(Error::corrupt(
            "vhdx: the file identifier is not \"vhdxfile\"",
        ));
    }
    let units: Vec<u16> = fields
        .slice(8, CREATOR_UNITS * 2)?
        .as_chunks::<2>()
        .0
        .iter()
        .map(|unit| u16::from_le_bytes(*unit))
        .take_while(|unit| *unit != 0)
        .collect();
    Ok((!units.is_empty()).then(|| String::from_utf16_lossy(&units)))
}

/// The file identifier, the creator cut to what fits.
pub(super) fn encode_identifier(creator: &str) -> Vec<u8> {
    let mut bytes = Encoder::new(8 + CREATOR_UNITS * 2);
    bytes.put(0, b"vhdxfile");
    let units: Vec<u8> = creator
        .encode_utf16()
        .take(CREATOR_UNITS - 1)
        .flat_map(u16::to_le_bytes)
        .collect();
    bytes.put(8, &units);
    bytes.finish()
}
