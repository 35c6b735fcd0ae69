//! Restart pages: where the log begins, how it is cut into pages, and whether it was closed.
//!
//! ```text
//!  page 0, page 1:  "RSTR" │ fixups │ 16 bytes of a system page │ 20 of a log page │ 24 area at │ 26 minor │ 28 major
//!  area:    0 newest LSN │ 10 free clients │ 12 clients in use │ 14 flags │ 16 bits of a sequence number
//!          22 clients at │ 24 bytes of the log │ 32 bytes of the newest record │ 36 of a record's head │ 38 of a page's
//!  client:  0 oldest LSN │ 8 LSN of its last checkpoint │ … │ 28 name
//! ```
//!
//! Two copies are written by turns; the one with the newer LSN counts, and one alone when the other is damaged.

use super::super::arithmetic::{length, multiply, plus};
use super::super::record::apply_fixups;
use super::super::stream::AttributeReader;
use crate::{Error, Result, field};

const NO_CLIENT: u16 = 0xFFFF;
const IS_CLEAN: u16 = 2;
const CLIENT_BYTES: usize = 0xA0;
/// As LFS itself wants it.
const MIN_PAGES: u64 = 48;

/// What the head of the log says.
pub(super) enum LogHead {
    /// Never used since it was filled: nothing to replay.
    Empty,
    /// `chkdsk` put its mark there.
    Checked,
    Restart(RestartArea),
}

/// A restart area, not yet checked against the log's size.
#[derive(Debug, Clone)]
pub(super) struct RestartArea {
    pub(super) newest_lsn: u64,
    /// Whether nobody was using the log.
    pub(super) is_clean: bool,
    pub(super) version: (u16, u16),
    pub(super) page_bytes: u64,
    pub(super) system_page_bytes: u64,
    pub(super) sequence_bits: u32,
    pub(super) log_bytes: u64,
    pub(super) record_head_bytes: u16,
    pub(super) data_offset: u16,
    /// Where NTFS, the only client, wrote its last checkpoint; 0 when never.
    pub(super) checkpoint_lsn: u64,
}

/// Reads both copies.
pub(super) fn read(reader: &AttributeReader) -> Result<LogHead> {
    let mut page_bytes = 4096;
    let first = match page(reader, 0, page_bytes) {
        Ok(LogHead::Restart(area)) => {
            page_bytes = area.system_page_bytes;
            Ok(area)
        }
        Ok(other) => return Ok(other),
        Err(error) => Err(error),
    };
    let second = match page(reader, page_bytes, page_bytes) {
        Ok(LogHead::Checked) => return Ok(LogHead::Checked),
        Ok(LogHead::Restart(area)) => Some(area),
        Ok(LogHead::Empty) | Err(_) => None,
    };
    match (first, second) {
        (Ok(first), Some(second)) if second.newest_lsn > first.newest_lsn => {
            Ok(LogHead::Restart(second))
        }
        (Ok(first), _) => Ok(LogHead::Restart(first)),
        (Err(_), Some(second)) => Ok(LogHead::Restart(second)),
        (Err(error), None) => Err(error),
    }
}

fn page(reader: &AttributeReader, offset: u64, size: u64) -> Result<LogHead> {
    let mut page = block(reader, offset, size)?;
    match field::slice(&page, 0, 4)? {
        b"\xFF\xFF\xFF\xFF" => return Ok(LogHead::Empty),
        b"CHKD" => return Ok(LogHead::Checked),
        b"RSTR" => {}
        _ => return Err(Error::corrupt("no restart page")),
    }
    let system_page_bytes = u64::from(field::u32_le(&page, 16)?);
    if system_page_bytes != size {
        page = block(reader, offset, system_page_bytes)?;
    }
    apply_fixups(&mut page, b"RSTR")?;
    area(&page, system_page_bytes).map(LogHead::Restart)
}

fn block(reader: &AttributeReader, offset: u64, size: u64) -> Result<Vec<u8>> {
    if !size.is_power_of_two() || !(512..=65536).contains(&size) {
        return Err(Error::corrupt(format!("pages of {size} bytes")));
    }
    let mut page = vec![0; length(size)?];
    reader.read(offset, &mut page)?;
    Ok(page)
}

fn area(page: &[u8], system_page_bytes: u64) -> Result<RestartArea> {
    let at = usize::from(field::u16_le(page, 24)?);
    let area = page
        .get(at..)
        .ok_or_else(|| Error::corrupt("a restart area behind its page"))?;
    let client = field::u16_le(area, 12)?;
    let flags = field::u16_le(area, 14)?;
    let clients = usize::from(field::u16_le(area, 22)?);
    let checkpoint_lsn = if client == NO_CLIENT {
        0
    } else {
        let index = usize::from(client)
            .checked_mul(CLIENT_BYTES)
            .ok_or_else(|| Error::corrupt("a client that cannot be counted"))?;
        field::u64_le(area, plus(plus(clients, index)?, 8)?)?
    };
    Ok(RestartArea {
        newest_lsn: field::u64_le(area, 0)?,
        is_clean: client == NO_CLIENT || flags & IS_CLEAN != 0,
        version: (field::u16_le(page, 28)?, field::u16_le(page, 26)?),
        page_bytes: u64::from(field::u32_le(page, 20)?),
        system_page_bytes,
        sequence_bits: field::u32_le(area, 16)?,
        log_bytes: field::u64_le(area, 24)?,
        record_head_bytes: field::u16_le(area, 36)?,
        data_offset: field::u16_le(area, 38)?,
        checkpoint_lsn,
    })
}

impl RestartArea {
    /// Whether the log can be walked as this says.
    pub(super) fn check(&self, stream_bytes: u64) -> Result<()> {
        if !matches!(self.version, (1, 0 | 1) | (2, 0)) {
            let (major, minor) = self.version;
            return Err(Error::unsupported(format!(
                "version {major}.{minor} of the log"
            )));
        }
        let page = self.page_bytes;
        if page != self.system_page_bytes {
            return Err(Error::unsupported(format!(
                "log pages of {page} bytes on system pages of {}",
                self.system_page_bytes
            )));
        }
        if self.log_bytes > stream_bytes
            || !self.log_bytes.is_multiple_of(page)
            || self.log_bytes < multiply(page, MIN_PAGES)?
        {
            return Err(Error::corrupt(format!(
                "a log of {} bytes in a stream of {stream_bytes}",
                self.log_bytes
            )));
        }
        // The number is as long as it must be for the rest to count the log in units of eight bytes.
        let expected = 67_u32.saturating_sub(64_u32.saturating_sub(self.log_bytes.leading_zeros()));
        if self.sequence_bits != expected {
            return Err(Error::corrupt(format!(
                "sequence numbers of {} bits",
                self.sequence_bits
            )));
        }
        if self.record_head_bytes != 48
            || self.data_offset < 48
            || u64::from(self.data_offset) >= page / 2
        {
            return Err(Error::corrupt(format!(
                "heads of {} and {} bytes",
                self.record_head_bytes, self.data_offset
            )));
        }
        Ok(())
    }

    /// Where the pages with records begin: behind two restart pages and the copies of unfinished pages.
    pub(super) fn first_page(&self) -> u64 {
        let pages = if self.version.0 >= 2 { 0x22 } else { 4 };
        self.page_bytes.saturating_mul(pages)
    }
}
