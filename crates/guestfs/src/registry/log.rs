//! Bringing a hive up to date in memory from its transaction logs.
//!
//! ```text
//!   new form (Windows 8.1 on), file type 6:  base copy │ HvLE entry │ HvLE entry │ …        at multiples of 512
//!     entry: "HvLE" size:4 flags:4 seq:4 bins:4 pages:4 hash1:8 hash2:8 (offset:4 size:4)×pages bytes…
//!     hash1 = Marvin32 of all behind byte 40, hash2 = Marvin32 of the first 32 bytes
//!   old form, file type 1 or 2:  base copy │ "DIRT" bitmap, one bit per 512 bytes of bins │ the pages that are set
//! ```
//! Which entries count: those that follow one another without a gap, from the secondary sequence number of the primary
//! file on (applying what is already there changes nothing, since all later entries follow), over both logs, the one
//! with the lower numbers first.
//!
//! **Invariants.** An entry with a wrong hash, size or page ends the replay: it and what follows it were not finished.
//! Logs above [`MAX_LOG_BYTES`] are refused; the work is bounded by their length.

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
use std::sync::Arc;

use block::ReadAt;

use super::bins::{BaseBlock, Bins, ChangedPage, PAGE_BYTES};
use crate::filesystem::Cleanliness;
use crate::{Error, ErrorKind, Result, field};

/// Windows keeps logs far smaller than this.
const MAX_LOG_BYTES: u64 = 64 << 20;
/// Two are usual.
const MAX_LOGS: usize = 4;
const FIRST_SECTOR_BYTES: usize = 512;
const ENTRY_HEADER_BYTES: usize = 40;
const NEW_LOG: u32 = 6;
const OLD_LOGS: [u32; 2] = [1, 2];
/// The seed of the hashes of log entries.
const MARVIN_SEED: u64 = 0x82EF_4D88_7A4E_55C5;

/// A hive with its logs applied.
pub(super) struct Recovered {
    pub(super) base: BaseBlock,
    pub(super) bins: Bins,
    pub(super) cleanliness: Cleanliness,
}

/// A log whose base block is whole.
struct Log {
    index: usize,
    base: BaseBlock,
}

/// What the logs change.
#[derive(Default)]
struct Changes {
    pages: BTreeMap<u32, ChangedPage>,
    bins_bytes: Option<u32>,
    entries: usize,
    last_sequence: Option<u32>,
    /// Why the replay ended before the end of the logs.
    stopped: Option<String>,
}

/// Opens the primary file and applies what its logs have.
pub(super) fn recover(primary: Arc<dyn ReadAt>, logs: &[Arc<dyn ReadAt>]) -> Result<Recovered> {
    let mut first = vec![0; FIRST_SECTOR_BYTES];
    if primary.size_bytes() < field::bytes(super::bins::BASE_BYTES) {
        return Err(Error::corrupt("a hive shorter than its base block"));
    }
    primary.read_at(0, &mut first)?;
    let own = BaseBlock::parse(&first);
    if let Err(error) = &own
        && (error.kind() == ErrorKind::Unsupported || !first.starts_with(b"regf"))
    {
        return Err(own.err().unwrap_or_else(|| Error::corrupt("no hive")));
    }
    let clean = own
        .as_ref()
        .is_ok_and(|base| base.primary_sequence == base.secondary_sequence);
    if let (true, Ok(base)) = (clean, &own) {
        let bins = Bins::new(primary, Vec::new(), BTreeMap::new(), base.bins_bytes);
        let base = base.clone();
        return Ok(Recovered {
            base,
            bins,
            cleanliness: Cleanliness::Clean,
        });
    }
    let texts = read_logs(logs)?;
    let whole: Vec<Log> = texts
        .iter()
        .enumerate()
        .filter_map(|(index, text)| {
            let base = BaseBlock::parse(text).ok()?;
            Some(Log { index, base })
        })
        .collect();
    let changes = replay(&own, &whole, &texts);
    let mut base = match own {
        Ok(base) => base,
        // The logs keep a copy of the base block; only a log that was applied can stand in for it.
        Err(error) => whole
            .iter()
            .filter(|_| changes.entries > 0)
            .map(|log| log.base.clone())
            .max_by_key(|base| base.primary_sequence)
            .ok_or(error)?,
    };
    base.bins_bytes = changes.bins_bytes.unwrap_or(base.bins_bytes);
    let cleanliness = match (changes.entries, changes.stopped) {
        (0, None) if texts.is_empty() => Cleanliness::Dirty(
            "it was being written and no log was given: keys may be old or torn".to_owned(),
        ),
        (0, None) => Cleanliness::Dirty(
            "it was being written and no log has anything newer: keys may be torn".to_owned(),
        ),
        (_, Some(why)) => Cleanliness::Dirty(format!(
            "it was being written, and {} log entries were applied until {why}",
            changes.entries
        )),
        (_, None) => Cleanliness::Replayed,
    };
    Ok(Recovered {
        bins: Bins::new(primary, texts, changes.pages, base.bins_bytes),
        base,
        cleanliness,
    })
}

fn read_logs(logs: &[Arc<dyn ReadAt>]) -> Result<Vec<Vec<u8>>> {
    let mut texts = Vec::new();
    for (index, log) in logs.iter().take(MAX_LOGS).enumerate() {
        let size = log.size_bytes();
        if size > MAX_LOG_BYTES {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("log {index} has {size} bytes"),
            ));
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
        log.read_at(0, &mut text)?;
        texts.push(text);
    }
    Ok(texts)
}

fn replay(own: &Result<BaseBlock>, logs: &[Log], texts: &[Vec<u8>]) -> Changes {
    let mut changes = Changes::default();
    let mut new: Vec<&Log> = logs
        .iter()
        .filter(|log| log.base.file_type == NEW_LOG)
        .collect();
    new.sort_by_key(|log| log.base.primary_sequence);
    for log in new {
        let text = texts.get(log.index).map_or(&[][..], Vec::as_slice);
        // Without a base block of its own, the hive takes what the log was begun for.
        let from = match own {
            Ok(base) => base.secondary_sequence,
            Err(_) => log.base.secondary_sequence,
        };
        apply_entries(text, log.index, from, &mut changes);
        if changes.stopped.is_some() {
            break;
        }
    }
    if changes.entries > 0 || changes.stopped.is_some() {
        return changes;
    }
    for log in logs {
        let text = texts.get(log.index).map_or(&[][..], Vec::as_slice);
        let is_finished = log.base.primary_sequence == log.base.secondary_sequence;
        let belongs = own
            .as_ref()
            .map_or(true, |base| base.written_raw == log.base.written_raw);
        if !OLD_LOGS.contains(&log.base.file_type) || !is_finished || !belongs {
            continue;
        }
        match dirty_pages(text, log) {
            Ok(pages) => {
                changes.pages = pages;
                changes.bins_bytes = Some(log.base.bins_bytes);
                changes.entries = 1;
                return changes;
            }
            Err(error) => changes.stopped = Some(format!("log {}: {error}", log.index)),
        }
    }
    changes
}

/// Applies the entries of one log that come next.
fn apply_entries(text: &[u8], index: usize, from: u32, changes: &mut Changes) {
    let mut at = FIRST_SECTOR_BYTES;
    while let Some(entry) = text.get(at..).filter(|rest| rest.starts_with(b"HvLE")) {
        let Ok(header) = EntryHeader::parse(entry) else {
            // Torn, or left from an earlier round: it was never finished.
            return;
        };
        at = at.saturating_add(header.size);
        if header.sequence < from {
            continue;
        }
        match changes.last_sequence {
            Some(last) if header.sequence <= last => continue,
            Some(last) if Some(header.sequence) != last.checked_add(1) => {
                changes.stopped = Some(format!(
                    "entry {} of log {index} does not follow {last}",
                    header.sequence
                ));
                return;
            }
            _ => {}
        }
        let Ok(pages) = header.pages(entry, at.saturating_sub(header.size), index) else {
            return;
        };
        changes.pages.extend(pages);
        changes.bins_bytes = Some(header.bins_bytes);
        changes.last_sequence = Some(header.sequence);
        changes.entries = changes.entries.saturating_add(1);
    }
}

struct EntryHeader {
    size: usize,
    sequence: u32,
    bins_bytes: u32,
    count: usize,
}

impl EntryHeader {
    /// Reads and proves an entry.
    fn parse(bytes: &[u8]) -> Result<Self> {
        let size = usize::try_from(field::u32_le(bytes, 4)?).unwrap_or(usize::MAX);
        let whole = field::slice(bytes, 0, size)?;
        let body = field::slice(whole, ENTRY_HEADER_BYTES, size.saturating_sub(40))?;
        let head = field::slice(whole, 0, 32)?;
        let bins_bytes = field::u32_le(bytes, 16)?;
        if !size.is_multiple_of(512)
            || !bins_bytes.is_multiple_of(4096)
            || !field::sum_holds(marvin32(body), field::u64_le(whole, 24)?)
            || !field::sum_holds(marvin32(head), field::u64_le(whole, 32)?)
        {
            return Err(Error::corrupt("log entry that does not hash to itself"));
        }
        Ok(Self {
            size,
            sequence: field::u32_le(bytes, 12)?,
            bins_bytes,
            count: usize::try_from(field::u32_le(bytes, 20)?).unwrap_or(usize::MAX),
        })
    }

    fn pages(
        &self,
        entry: &[u8],
        entry_at: usize,
        log: usize,
    ) -> Result<BTreeMap<u32, ChangedPage>> {
        let entry = field::slice(entry, 0, self.size)?;
        let list_bytes = self.count.saturating_mul(8);
        let mut data = ENTRY_HEADER_BYTES.saturating_add(list_bytes);
        // The whole list must be there before anything is read by its count.
        field::slice(entry, ENTRY_HEADER_BYTES, list_bytes)?;
        let mut pages = BTreeMap::new();
        for index in 0..self.count {
            let at = ENTRY_HEADER_BYTES.saturating_add(index.saturating_mul(8));
            let offset = field::u32_le(entry, at)?;
            let size = field::u32_le(entry, at.saturating_add(4))?;
            let length = usize::try_from(size).unwrap_or(usize::MAX);
            field::slice(entry, data, length)?;
            let end = offset.checked_add(size);
            if !offset.is_multiple_of(512)
                || !size.is_multiple_of(512)
                || end.is_none_or(|end| end > self.bins_bytes)
            {
                return Err(Error::corrupt("log entry with a page outside the bins"));
            }
            let first = offset.checked_div(512).unwrap_or(0);
            for page in 0..size.checked_div(512).unwrap_or(0) {
                let at = entry_at.saturating_add(data);
                pages.insert(first.saturating_add(page), ChangedPage { log, at });
                data = data.saturating_add(PAGE_BYTES);
            }
        }
        Ok(pages)
    }
}

/// The pages of a log in the old form.
fn dirty_pages(text: &[u8], log: &Log) -> Result<BTreeMap<u32, ChangedPage>> {
    // The first sector is one of the disk below; its size is told in units of 512 bytes.
    let cluster = usize::try_from(field::u32_le(text, 44)?).unwrap_or(usize::MAX);
    let start = cluster.clamp(1, 8).saturating_mul(512);
    if field::slice(text, start, 4)? != b"DIRT" {
        return Err(Error::corrupt("no DIRT signature"));
    }
    let bits = usize::try_from(log.base.bins_bytes)
        .unwrap_or(usize::MAX)
        .div_ceil(PAGE_BYTES);
    let bitmap_at = start.saturating_add(4);
    let bitmap_bytes = bits.div_ceil(8);
    let bitmap = field::slice(text, bitmap_at, bitmap_bytes)?;
    let mut at = bitmap_at
        .saturating_add(bitmap_bytes)
        .checked_next_multiple_of(start)
        .unwrap_or(usize::MAX);
    let mut pages = BTreeMap::new();
    for (index, byte) in bitmap.iter().enumerate() {
        for bit in 0..8_usize {
            if byte >> bit & 1 == 0 {
                continue;
            }
            field::slice(text, at, PAGE_BYTES)?;
            let page = index.saturating_mul(8).saturating_add(bit);
            let page = u32::try_from(page).map_err(|_| Error::corrupt("page number"))?;
            pages.insert(page, ChangedPage { log: log.index, at });
            at = at.saturating_add(PAGE_BYTES);
        }
    }
    Ok(pages)
}

/// The hash that guards log entries.
fn marvin32(data: &[u8]) -> u64 {
    fn mix((low, high): (u32, u32), word: u32) -> (u32, u32) {
        let low = low.wrapping_add(word);
        let high = high ^ low;
        let low = low.rotate_left(20).wrapping_add(high);
        let high = high.rotate_left(9) ^ low;
        let low = low.rotate_left(27).wrapping_add(high);
        (low, high.rotate_left(19))
    }
    let half = |shift: u32| u32::try_from(MARVIN_SEED >> shift & 0xFFFF_FFFF).unwrap_or(0);
    let mut state = (half(0), half(32));
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        state = mix(state, word.try_into().map_or(0, u32::from_le_bytes));
    }
    let mut last = [0_u8; 4];
    let tail = words.remainder().iter().chain(&[0x80]);
    for (place, byte) in last.iter_mut().zip(tail) {
        *place = *byte;
    }
    let (low, high) = mix(mix(state, u32::from_le_bytes(last)), 0);
    u64::from(high) << 32 | u64::from(low)
}
