//! Changing an image so that a crash at any moment leaves the old state or the new one.
//!
//! ```text
//!   header: new write ids ─► flush
//!   commit:  payload is written ─► flush ─► log entry (BAT and bitmap pages) ─► flush ─► header: log id, once ─► flush
//!            ─► pages in place ─► flush          (only now may space that was given up be used again)
//!   close:   header: no log ─► flush
//! ```
//! Source: MS-VHDX 2.2.2, 2.3.2.
//!
//! **Invariants.** Each entry is its own tail: everything before it is in place and flushed. An entry never overwrites the
//! one before it, so that a torn entry always leaves a valid one, and the first entry is durable before the header says
//! that there is a log. A page that was logged is never changed without being logged again.

use block::WriteAt;
use uuid::Uuid;

use super::bytes::{to_u64, to_usize};
use super::header::{Header, HeaderSlot};
use super::log::{self, ActiveSequence, EntryFrame, LOG_SECTOR, UpdateSink};
use super::overlay::MAX_FILE_BYTES;
use super::region::Span;
use super::structure;
use crate::{Error, ErrorKind, Result};

/// Most pages of one entry: with its descriptors it stays under half of the smallest log, 1 MiB.
pub(super) const MAX_ENTRY_PAGES: usize = 120;

/// The header and log of an image that is open for writing.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) header: Header,
    slot: HeaderSlot,
    ring: Span,
    /// Where the next entry goes, in the ring.
    head: u64,
    sequence: u64,
    /// The id of this session's entries.
    log: Uuid,
}

impl Journal {
    /// Takes charge of an image whose log is empty. `log` is the id that its entries will carry.
    pub(super) fn new(header: Header, slot: HeaderSlot, log: Uuid) -> Result<Self> {
        let ring = structure::log_span(&header).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "vhdx: it has no log, so it cannot be changed in place",
            )
        })?;
        Ok(Self {
            header,
            slot,
            ring,
            head: 0,
            sequence: 1,
            log,
        })
    }

    /// Where the log lies.
    pub(super) fn ring(&self) -> Span {
        self.ring
    }

    /// Writes the header that is not current, twice over, so that both say the same in the end.
    pub(super) fn update_header(
        &mut self,
        file: &dyn WriteAt,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        let mut header = self.header.clone();
        change(&mut header);
        header.log_version = 0;
        for _ in HeaderSlot::BOTH {
            header.sequence = header
                .sequence
                .checked_add(1)
                .ok_or_else(|| Error::corrupt("vhdx header: its sequence numbers are used up"))?;
            let slot = self.slot.other();
            file.write_at(slot.offset(), &header.encode())?;
            file.flush()?;
            self.slot = slot;
            self.header = header.clone();
        }
        Ok(())
    }

    /// Makes earlier payload and these pages durable, in this order.
    pub(super) fn commit(&mut self, file: &dyn WriteAt, pages: &[(u64, Vec<u8>)]) -> Result<()> {
        file.flush()?;
        for part in pages.chunks(MAX_ENTRY_PAGES) {
            let size = file.size_bytes();
            let frame = EntryFrame {
                log: self.log,
                sequence: self.sequence,
                tail: u32::try_from(self.head).unwrap_or(u32::MAX),
                flushed_file_bytes: size,
                last_file_bytes: size,
            };
            self.append(file, &log::encode_entry(frame, part))?;
            file.flush()?;
            if self.header.log != self.log {
                let log = self.log;
                self.update_header(file, |header| header.log = log)?;
            }
            for (offset, bytes) in part {
                file.write_at(*offset, bytes)?;
            }
            file.flush()?;
        }
        Ok(())
    }

    fn append(&mut self, file: &dyn WriteAt, entry: &[u8]) -> Result<()> {
        let length = to_u64(entry.len());
        debug_assert!(
            length.saturating_mul(2) <= self.ring.length && length.is_multiple_of(LOG_SECTOR)
        );
        let until_end = to_usize(self.ring.length.saturating_sub(self.head)).min(entry.len());
        let (first, wrapped) = entry.split_at(until_end);
        file.write_at(self.ring.offset.saturating_add(self.head), first)?;
        if !wrapped.is_empty() {
            file.write_at(self.ring.offset, wrapped)?;
        }
        self.head = self
            .head
            .saturating_add(length)
            .checked_rem(self.ring.length)
            .unwrap_or(0);
        self.sequence = self.sequence.saturating_add(1);
        Ok(())
    }

    /// Says that nothing waits in the log.
    pub(super) fn close(&mut self, file: &dyn WriteAt) -> Result<()> {
        if self.header.log.is_nil() {
            return Ok(());
        }
        self.update_header(file, |header| header.log = Uuid::nil())
    }
}

/// Writes a replay into the file itself.
struct InPlace<'a> {
    file: &'a dyn WriteAt,
}

impl UpdateSink for InPlace<'_> {
    fn page(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        check_end(offset, LOG_SECTOR)?;
        Ok(self.file.write_at(offset, bytes)?)
    }
    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        check_end(offset, length)?;
        let end = offset.saturating_add(length);
        if end > self.file.size_bytes() {
            self.file.set_size(end)?;
        }
        Ok(self.file.zero_range(offset, length)?)
    }
}

fn check_end(offset: u64, length: u64) -> Result<()> {
    if offset.saturating_add(length) > MAX_FILE_BYTES {
        return Err(Error::corrupt(format!(
            "vhdx log: changes {length} bytes at {offset:#x}"
        )));
    }
    Ok(())
}

/// Replays the log of a header into the file and says so in both headers. Answers the entries replayed.
pub(super) fn replay(
    file: &dyn WriteAt,
    active: &ActiveSequence,
    journal: &mut Journal,
) -> Result<usize> {
    structure::check_not_cut(file, active)?;
    // Everything is decoded before anything is changed: a log that turns out wrong half-way changes nothing.
    active.replay(file, &mut Dry)?;
    if active.last_file_bytes > file.size_bytes() {
        file.set_size(active.last_file_bytes)?;
    }
    active.replay(file, &mut InPlace { file })?;
    file.flush()?;
    journal.close(file)?;
    Ok(active.len())
}

/// Takes a replay without doing it.
struct Dry;

impl UpdateSink for Dry {
    fn page(&mut self, offset: u64, _bytes: &[u8]) -> Result<()> {
        check_end(offset, LOG_SECTOR)
    }
    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        check_end(offset, length)
    }
}
