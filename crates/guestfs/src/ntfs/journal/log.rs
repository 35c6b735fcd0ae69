//! The log itself: pages in a ring, records that may span them, and where the last record is.
//!
//! ```text
//!  page:    "RCRD" │ 8 last LSN │ 16 flags: a record ends here │ 20 pages written together │ 22 which of them this is
//!           24 next record at │ 32 LSN of the last record that ends here │ 40 fixups │ 60 home (2.0) │ records …
//!  record:  0 LSN │ 8 previous of its client │ 16 next to undo │ 24 bytes of data │ 28 client │ 32 kind
//!          36 transaction │ 40 flags │ 48 data
//!  LSN:     how often the ring went round │ place in the ring, in units of eight bytes
//!
//!  [restart 0][restart 1][unfinished pages, kept twice][ home page ][ home page ] … ─┐
//!                                  └── copy of ──────────►  ▲                         │
//!                                                           └─────────────────────────┘
//! ```
//!
//! Unfinished pages are first written beside the ring (two places in version 1, 32 in version 2), so that a torn write never
//! takes what was already durable. A page is therefore read from whichever copy holds what is asked for.
//!
//! **Invariants.** A record counts only when it bears the LSN of its place and all its pages are whole and not older than it. The
//! log ends where the next record does not; that there is newer work behind a hole makes the log damaged, never shorter.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::arithmetic::{add, align_eight, length, plus};
use super::super::cache::GenerationCache;
use super::super::record::apply_fixups;
use super::super::stream::AttributeReader;
use super::restart::RestartArea;
use crate::{Error, ErrorKind, Result, field};

const CACHED_PAGES: usize = 64;
const HEAD_BYTES: usize = 48;
const HAS_END: u32 = 1;
/// More than the tables of any checkpoint.
const MAX_RECORD_BYTES: usize = 16 << 20;
/// How far behind the end newer pages are looked for.
const PAGES_BEHIND: usize = 64;

/// A page of records, its fixups applied.
struct LogPage {
    bytes: Vec<u8>,
    /// The newest LSN that begins here, or goes on from before.
    last_lsn: u64,
    last_end_lsn: u64,
    has_end: bool,
    /// Which of the pages written together this is, from 1.
    position: u16,
}

/// One record.
#[derive(Debug, Clone)]
pub(super) struct LogRecord {
    pub(super) lsn: u64,
    pub(super) undo_next: u64,
    /// 1: a change; 2: a checkpoint.
    pub(super) kind: u32,
    pub(super) transaction: u32,
    pub(super) flags: u16,
    pub(super) data: Vec<u8>,
    /// Where the next one can begin: behind this one, or on the next page.
    next: [u64; 2],
}

pub(super) struct Log<'a> {
    reader: &'a AttributeReader,
    page_bytes: u64,
    log_bytes: u64,
    first_page: u64,
    data_offset: usize,
    offset_bits: u32,
    major: u16,
    /// Copies of unfinished pages by their home.
    tails: BTreeMap<u64, Vec<Arc<LogPage>>>,
    homes: GenerationCache<u64, Option<Arc<LogPage>>>,
}

impl<'a> Log<'a> {
    pub(super) fn open(reader: &'a AttributeReader, area: &RestartArea) -> Result<Self> {
        area.check(reader.size_bytes())?;
        let mut log = Self {
            reader,
            page_bytes: area.page_bytes,
            log_bytes: area.log_bytes,
            first_page: area.first_page(),
            data_offset: usize::from(area.data_offset),
            offset_bits: 64_u32.saturating_sub(area.sequence_bits),
            major: area.version.0,
            tails: BTreeMap::new(),
            homes: GenerationCache::new(CACHED_PAGES),
        };
        let mut at = log.page_bytes.saturating_mul(2);
        while at < log.first_page {
            if let Some((home, page)) = log.tail(at)? {
                log.tails.entry(home).or_default().push(Arc::new(page));
            }
            at = add(at, log.page_bytes)?;
        }
        Ok(log)
    }

    /// Where in the log an LSN stands.
    fn offset(&self, lsn: u64) -> u64 {
        let mask = 1_u64.wrapping_shl(self.offset_bits).wrapping_sub(1);
        (lsn & mask).wrapping_shl(3)
    }

    fn lap(&self, lsn: u64) -> u64 {
        lsn.wrapping_shr(self.offset_bits)
    }

    fn lsn(&self, lap: u64, offset: u64) -> u64 {
        lap.wrapping_shl(self.offset_bits) | offset.wrapping_shr(3)
    }

    fn home(&self, lsn: u64) -> u64 {
        let offset = self.offset(lsn);
        offset.saturating_sub(self.inside(offset))
    }

    fn inside(&self, offset: u64) -> u64 {
        // A page is never of no bytes.
        offset.checked_rem(self.page_bytes).unwrap_or(0)
    }

    fn next_page(&self, home: u64) -> u64 {
        let next = home.saturating_add(self.page_bytes);
        if next.saturating_add(self.page_bytes) > self.log_bytes {
            self.first_page
        } else {
            next
        }
    }

    /// Whether an LSN stands where records are; others were never written.
    pub(super) fn is_real(&self, lsn: u64) -> bool {
        self.offset(lsn) >= self.first_page
    }

    /// A page as it lies there; `None` for one that is torn or none at all.
    fn page_at(&self, at: u64) -> Result<Option<LogPage>> {
        let mut bytes = vec![0; length(self.page_bytes)?];
        self.reader.read(at, &mut bytes)?;
        if apply_fixups(&mut bytes, b"RCRD").is_err() {
            return Ok(None);
        }
        Ok(Some(LogPage {
            last_lsn: field::u64_le(&bytes, 8)?,
            last_end_lsn: field::u64_le(&bytes, 32)?,
            has_end: field::u32_le(&bytes, 16)? & HAS_END != 0,
            position: field::u16_le(&bytes, 22)?,
            bytes,
        }))
    }

    /// A copy of an unfinished page, and where it belongs.
    fn tail(&self, at: u64) -> Result<Option<(u64, LogPage)>> {
        let Some(mut page) = self.page_at(at)? else {
            return Ok(None);
        };
        let home = if self.major < 2 {
            // Its home stands where other pages have their last LSN.
            let home = page.last_lsn;
            page.last_lsn = page.last_end_lsn;
            home
        } else {
            match u64::from(field::u32_le(&page.bytes, 60)?) {
                0 => self.home_of_tail(&page),
                home => home,
            }
        };
        let is_home = home >= self.first_page
            && home.saturating_add(self.page_bytes) <= self.log_bytes
            && self.inside(home) == 0;
        Ok(is_home.then_some((home, page)))
    }

    /// The home of a copy that does not say it: the page on which its last record stands, or the one behind when that record
    /// began before.
    fn home_of_tail(&self, page: &LogPage) -> u64 {
        let home = self.home(page.last_lsn);
        let inside = usize::try_from(self.inside(self.offset(page.last_lsn)));
        let stands_here = inside
            .is_ok_and(|at| field::u64_le(&page.bytes, at).is_ok_and(|lsn| lsn == page.last_lsn));
        if stands_here {
            home
        } else {
            self.next_page(home)
        }
    }

    /// All copies of a page, the one with the newest end first.
    fn pages(&mut self, home: u64) -> Result<Vec<Arc<LogPage>>> {
        let own = match self.homes.get(&home) {
            Some(page) => page,
            None => {
                let page = self.page_at(home)?.map(Arc::new);
                self.homes.insert(home, page.clone());
                page
            }
        };
        let tails = self.tails.get(&home).into_iter().flatten().cloned();
        let mut pages: Vec<_> = own.into_iter().chain(tails).collect();
        pages.sort_by_key(|page| std::cmp::Reverse((page.last_lsn, page.last_end_lsn)));
        Ok(pages)
    }

    /// The record with an LSN; `None` when it is not there whole.
    pub(super) fn record(&mut self, lsn: u64) -> Result<Option<LogRecord>> {
        let home = self.home(lsn);
        let inside = length(self.inside(self.offset(lsn)))?;
        let page_bytes = length(self.page_bytes)?;
        if home < self.first_page
            || home.saturating_add(self.page_bytes) > self.log_bytes
            || inside < self.data_offset
            || inside.saturating_add(HEAD_BYTES) > page_bytes
        {
            return Ok(None);
        }
        for page in self.pages(home)? {
            if field::u64_le(&page.bytes, inside)? == lsn
                && let Some(record) = self.record_on(lsn, home, inside, &page)?
            {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    fn record_on(
        &mut self,
        lsn: u64,
        mut home: u64,
        inside: usize,
        page: &Arc<LogPage>,
    ) -> Result<Option<LogRecord>> {
        let head = field::slice(&page.bytes, inside, HEAD_BYTES)?;
        let size = length(u64::from(field::u32_le(head, 24)?))?;
        if field::bytes(size) > self.log_bytes || size > MAX_RECORD_BYTES {
            return Ok(None);
        }
        let mut data = Vec::with_capacity(size.min(length(self.page_bytes)?));
        let mut at = plus(inside, HEAD_BYTES)?;
        let mut page = Arc::clone(page);
        let mut lap = self.lap(lsn);
        loop {
            let rest = page.bytes.get(at..).unwrap_or_default();
            let count = rest.len().min(size.saturating_sub(data.len()));
            data.extend_from_slice(rest.get(..count).unwrap_or_default());
            at = plus(at, count)?;
            if data.len() >= size {
                break;
            }
            (home, lap) = self.step(home, lap);
            at = self.data_offset;
            // What goes on here is not older than the record itself, and not from the next time round.
            let Some(next) = self
                .pages(home)?
                .into_iter()
                .find(|page| page.last_lsn >= lsn && self.lap(page.last_lsn) <= lap)
            else {
                return Ok(None);
            };
            page = next;
        }
        if !page.has_end || page.last_end_lsn < lsn {
            return Ok(None);
        }
        let next = self.next_places(home, lap, at)?;
        Ok(Some(LogRecord {
            lsn,
            undo_next: field::u64_le(head, 16)?,
            kind: field::u32_le(head, 32)?,
            transaction: field::u32_le(head, 36)?,
            flags: field::u16_le(head, 40)?,
            data,
            next,
        }))
    }

    /// The next page, and how often the ring went round there.
    fn step(&self, home: u64, lap: u64) -> (u64, u64) {
        let next = self.next_page(home);
        let wraps = u64::from(next <= home);
        (next, lap.wrapping_add(wraps))
    }

    fn next_places(&self, home: u64, lap: u64, end: usize) -> Result<[u64; 2]> {
        let (page, page_lap) = self.step(home, lap);
        let on_next = self.lsn(page_lap, add(page, field::bytes(self.data_offset))?);
        let here = align_eight(end)?;
        if plus(here, HEAD_BYTES)? > length(self.page_bytes)? {
            return Ok([on_next; 2]);
        }
        Ok([self.lsn(lap, add(home, field::bytes(here))?), on_next])
    }

    /// The record behind one; `None` at the end of the log.
    pub(super) fn next(&mut self, record: &LogRecord) -> Result<Option<LogRecord>> {
        let [here, on_next] = record.next;
        if let Some(next) = self.record(here)? {
            return Ok(Some(next));
        }
        if on_next == here {
            return Ok(None);
        }
        self.record(on_next)
    }

    /// Makes sure that the log ends behind its last record, and not at a hole with work behind it.
    pub(super) fn check_end(&mut self, last: &LogRecord, newest_lsn: u64) -> Result<()> {
        let torn = |what: String| Err(Error::new(ErrorKind::Corrupt, what));
        if self.is_real(newest_lsn) && last.lsn < newest_lsn {
            return torn(format!(
                "its records end at LSN {:#x}, though LSN {newest_lsn:#x} was written",
                last.lsn
            ));
        }
        let first = self.home(last.next[0]);
        let mut home = first;
        for distance in 0..PAGES_BEHIND {
            for page in self.pages(home)? {
                let newest = if page.has_end { page.last_end_lsn } else { 0 };
                let newest = if distance == 0 {
                    newest
                } else {
                    newest.max(page.last_lsn)
                };
                // Pages written in one go with the torn one may have come through.
                let began = distance
                    .saturating_add(1)
                    .checked_sub(usize::from(page.position));
                if newest > last.lsn && (distance == 0 || began.is_some_and(|began| began > 0)) {
                    return torn(format!(
                        "a page of it is damaged behind LSN {:#x}, and LSN {newest:#x} follows",
                        last.lsn
                    ));
                }
            }
            home = self.next_page(home);
            if home == first {
                break;
            }
        }
        Ok(())
    }
}
