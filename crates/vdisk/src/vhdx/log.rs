//! Reading the log: finding the active sequence and saying what it changes.
//!
//! ```text
//!   ring of 4 KiB sectors; an entry may wrap:
//!   ┌ "loge" crc:4 length:4 tail:4 seq:8 descriptors:4 0:4 log:16 flushed:8 last:8 ┬ descriptor:32 × 126 ┐
//!   ├ descriptor:32 × 128 … ┤ data sector │ data sector │ …                                            ┘
//!   descriptor: "desc" trailing:4 leading:8 offset:8 seq:8   or   "zero" 0:4 length:8 offset:8 seq:8
//!   data sector: "data" seq-high:4 bytes:4084 seq-low:4   (leading ‖ bytes ‖ trailing = the page)
//! ```
//! Source: MS-VHDX 2.3.
//!
//! **Invariants.** An entry counts only when its whole checksum, its log GUID and every sequence number in it are right.
//! Replay begins at the tail of the newest entry, never at the first one that happens to join on. Memory is bounded by
//! the number of 4 KiB sectors in the ring, time by a fixed multiple of its length.

use std::collections::BTreeMap;

use block::ReadAt;
use uuid::Uuid;

use super::bytes::{Encoder, Fields, checksum_holds, to_u64, to_usize};
use super::header::Header;
use super::region::Span;
use crate::{Error, ErrorKind, Result};

/// Unit of everything in a log.
pub(super) const LOG_SECTOR: u64 = 4096;
pub(super) const LOG_SECTOR_BYTES: usize = 4096;
pub(super) const ENTRY_HEADER_BYTES: usize = 64;
pub(super) const DESCRIPTOR_BYTES: usize = 32;
/// Windows makes 1 MiB; what is larger than this is refused rather than scanned.
const MAX_LOG_BYTES: u64 = 256 << 20;
/// How often the ring's length may be read before a log counts as made to waste time.
const READ_BUDGET: u64 = 16;
/// First byte that a log may change: header section up to the region tables is never logged.
const FIRST_LOGGABLE: u64 = 192 * 1024;

/// Takes what a replay changes, in order.
pub(super) trait UpdateSink {
    /// A 4 KiB page.
    fn page(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// A range of zeros.
    fn zero(&mut self, offset: u64, length: u64) -> Result<()>;
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u64,
    length: u64,
    tail: u64,
    sequence: u64,
    descriptors: u32,
    flushed: u64,
    last: u64,
}

/// The entries to replay, oldest first.
#[derive(Debug)]
pub(super) struct ActiveSequence {
    entries: Vec<Entry>,
    ring: Span,
    /// The file is at least this long, or its end was lost.
    pub(super) flushed_file_bytes: u64,
    /// The file must be at least this long after the replay.
    pub(super) last_file_bytes: u64,
}

struct Ring<'a> {
    file: &'a dyn ReadAt,
    span: Span,
    budget: u64,
}

impl Ring<'_> {
    /// Reads one sector, `at` counted from an entry's start and wrapped.
    fn sector(&mut self, start: u64, at: u64, buffer: &mut [u8; LOG_SECTOR_BYTES]) -> Result<()> {
        self.budget = self.budget.checked_sub(1).ok_or_else(|| {
            Error::corrupt("vhdx log: its entries overlap so much that it was made to waste time")
        })?;
        let within = start
            .saturating_add(at)
            .checked_rem(self.span.length)
            .unwrap_or(0);
        Ok(self
            .file
            .read_at(self.span.offset.saturating_add(within), buffer)?)
    }

    fn next(&self, entry: &Entry) -> u64 {
        entry
            .start
            .saturating_add(entry.length)
            .checked_rem(self.span.length)
            .unwrap_or(0)
    }
}

/// Sectors in front of the data: header and descriptors.
pub(super) fn descriptor_sectors(descriptors: u32) -> u64 {
    u64::from(descriptors)
        .saturating_mul(32)
        .saturating_add(64)
        .div_ceil(LOG_SECTOR)
}

/// Finds what must be replayed for a header whose log GUID is set.
pub(super) fn find_active(file: &dyn ReadAt, header: &Header) -> Result<ActiveSequence> {
    let span = Span {
        offset: header.log_offset,
        length: u64::from(header.log_length),
    };
    if span.length > MAX_LOG_BYTES {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "vhdx log: {} bytes waiting, at most {MAX_LOG_BYTES} are replayed",
                span.length
            ),
        ));
    }
    if span.end() > file.size_bytes() {
        return Err(Error::new(
            ErrorKind::Incomplete,
            format!(
                "vhdx log: ends at {:#x}, the file at {:#x}",
                span.end(),
                file.size_bytes()
            ),
        ));
    }
    let budget = (span.length / LOG_SECTOR).saturating_mul(READ_BUDGET);
    let mut ring = Ring { file, span, budget };
    let mut entries = BTreeMap::new();
    let mut start = 0;
    while start < span.length {
        if let Some(entry) = read_entry(&mut ring, start, header.log)? {
            entries.insert(start, entry);
        }
        start = start.saturating_add(LOG_SECTOR);
    }
    let active = newest_sequence(&ring, &entries)?;
    let newest = active.last().ok_or_else(|| {
        Error::corrupt("vhdx log: the header says that it waits, but no entry of it is valid")
    })?;
    Ok(ActiveSequence {
        flushed_file_bytes: newest.flushed,
        last_file_bytes: newest.last,
        entries: active,
        ring: span,
    })
}

/// The valid sequence whose last entry is the newest.
fn newest_sequence(ring: &Ring<'_>, entries: &BTreeMap<u64, Entry>) -> Result<Vec<Entry>> {
    let successor = |entry: &Entry| {
        entries
            .get(&ring.next(entry))
            .filter(|next| entry.sequence.checked_add(1) == Some(next.sequence))
    };
    let mut ends: Vec<&Entry> = entries
        .values()
        .filter(|entry| successor(entry).is_none())
        .collect();
    ends.sort_by_key(|entry| std::cmp::Reverse(entry.sequence));
    let mut steps = to_u64(entries.len()).saturating_mul(READ_BUDGET);
    for end in ends {
        let mut sequence = Vec::new();
        let mut length = 0u64;
        let mut at = entries.get(&end.tail);
        while let Some(entry) = at {
            steps = steps
                .checked_sub(1)
                .ok_or_else(|| Error::corrupt("vhdx log: too many sequences that lead nowhere"))?;
            length = length.saturating_add(entry.length);
            sequence.push(*entry);
            if entry.start == end.start && length <= ring.span.length {
                return Ok(sequence);
            }
            at = successor(entry);
        }
    }
    Ok(Vec::new())
}

/// The entry that begins at `start`, if one does and everything about it is right.
fn read_entry(ring: &mut Ring<'_>, start: u64, log: Uuid) -> Result<Option<Entry>> {
    let mut sector = [0; LOG_SECTOR_BYTES];
    ring.sector(start, 0, &mut sector)?;
    let fields = Fields::new(&sector, "vhdx log entry");
    if fields.slice(0, 4)? != b"loge" || fields.guid(32)? != log {
        return Ok(None);
    }
    let stored_crc = fields.u32(4)?;
    let entry = Entry {
        start,
        length: u64::from(fields.u32(8)?),
        tail: u64::from(fields.u32(12)?),
        sequence: fields.u64(16)?,
        descriptors: fields.u32(24)?,
        flushed: fields.u64(48)?,
        last: fields.u64(56)?,
    };
    let front = descriptor_sectors(entry.descriptors);
    let sound = entry.length.is_multiple_of(LOG_SECTOR)
        && entry.length > 0
        && entry.length <= ring.span.length
        && entry.tail.is_multiple_of(LOG_SECTOR)
        && entry.tail < ring.span.length
        && entry.sequence > 0
        && front <= entry.length / LOG_SECTOR;
    if !sound {
        return Ok(None);
    }
    let data = count_data(ring, &entry)?;
    if data.map(|data| data.saturating_add(front)) != Some(entry.length / LOG_SECTOR) {
        return Ok(None);
    }
    let mut crc = 0;
    for index in 0..entry.length / LOG_SECTOR {
        ring.sector(start, index.saturating_mul(LOG_SECTOR), &mut sector)?;
        if index == 0 {
            let mut encoder = Encoder::new(0);
            encoder.put(0, &sector);
            encoder.u32(4, 0);
            crc = crc32c::crc32c(&encoder.finish());
            continue;
        }
        if index >= front && !data_sector_belongs(&sector, entry.sequence)? {
            return Ok(None);
        }
        crc = crc32c::crc32c_append(crc, &sector);
    }
    Ok((cfg!(fuzzing) || crc == stored_crc).then_some(entry))
}

fn data_sector_belongs(sector: &[u8], sequence: u64) -> Result<bool> {
    let fields = Fields::new(sector, "vhdx log data sector");
    let found = (u64::from(fields.u32(4)?) << 32) | u64::from(fields.u32(4092)?);
    Ok(fields.slice(0, 4)? == b"data" && found == sequence)
}

/// One descriptor of an entry.
enum Descriptor {
    Page {
        offset: u64,
        leading: [u8; 8],
        trailing: [u8; 4],
    },
    Zero {
        offset: u64,
        length: u64,
    },
}

/// `None` when it is no descriptor of an entry with this number.
fn decode_descriptor(bytes: &[u8], sequence: u64) -> Result<Option<Descriptor>> {
    let fields = Fields::new(bytes, "vhdx log descriptor");
    let offset = fields.u64(16)?;
    if fields.u64(24)? != sequence || !offset.is_multiple_of(LOG_SECTOR) {
        return Ok(None);
    }
    Ok(match fields.slice(0, 4)? {
        b"desc" => Some(Descriptor::Page {
            offset,
            leading: fields.u64(8)?.to_le_bytes(),
            trailing: fields.u32(4)?.to_le_bytes(),
        }),
        b"zero" => {
            let length = fields.u64(8)?;
            (length.is_multiple_of(LOG_SECTOR)).then_some(Descriptor::Zero { offset, length })
        }
        _ => None,
    })
}

/// Walks the descriptors of an entry; stops early when one is wrong, and says so by `false`.
fn walk_descriptors(
    ring: &mut Ring<'_>,
    entry: &Entry,
    visit: &mut dyn FnMut(&mut Ring<'_>, Descriptor) -> Result<()>,
) -> Result<bool> {
    let mut left = to_usize(u64::from(entry.descriptors));
    let mut sector = [0; LOG_SECTOR_BYTES];
    for index in 0..descriptor_sectors(entry.descriptors) {
        ring.sector(entry.start, index.saturating_mul(LOG_SECTOR), &mut sector)?;
        let skip = if index == 0 { ENTRY_HEADER_BYTES } else { 0 };
        for bytes in sector
            .get(skip..)
            .unwrap_or(&[])
            .chunks_exact(DESCRIPTOR_BYTES)
        {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(1);
            match decode_descriptor(bytes, entry.sequence)? {
                Some(descriptor) => visit(ring, descriptor)?,
                None => return Ok(false),
            }
        }
    }
    Ok(true)
}

fn count_data(ring: &mut Ring<'_>, entry: &Entry) -> Result<Option<u64>> {
    let mut pages = 0u64;
    let whole = walk_descriptors(ring, entry, &mut |_, descriptor| {
        if matches!(descriptor, Descriptor::Page { .. }) {
            pages = pages.saturating_add(1);
        }
        Ok(())
    })?;
    Ok(whole.then_some(pages))
}

impl ActiveSequence {
    /// Tells the sink every change, oldest entry first. `file` must be the one that the sequence was found in.
    pub(super) fn replay(&self, file: &dyn ReadAt, sink: &mut dyn UpdateSink) -> Result<()> {
        let budget = (self.ring.length / LOG_SECTOR).saturating_mul(READ_BUDGET);
        let mut ring = Ring {
            file,
            span: self.ring,
            budget,
        };
        for entry in &self.entries {
            let mut data_at = descriptor_sectors(entry.descriptors).saturating_mul(LOG_SECTOR);
            let log = self.ring;
            let whole =
                walk_descriptors(&mut ring, entry, &mut |ring, descriptor| match descriptor {
                    Descriptor::Page {
                        offset,
                        leading,
                        trailing,
                    } => {
                        check_target(
                            Span {
                                offset,
                                length: LOG_SECTOR,
                            },
                            log,
                        )?;
                        let mut sector = [0; LOG_SECTOR_BYTES];
                        ring.sector(entry.start, data_at, &mut sector)?;
                        data_at = data_at.saturating_add(LOG_SECTOR);
                        let body = Fields::new(&sector, "vhdx log data sector").slice(8, 4084)?;
                        sink.page(offset, &[leading.as_slice(), body, &trailing].concat())
                    }
                    Descriptor::Zero { length: 0, .. } => Ok(()),
                    Descriptor::Zero { offset, length } => {
                        check_target(Span { offset, length }, log)?;
                        sink.zero(offset, length)
                    }
                })?;
            if !whole {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!(
                        "vhdx log entry at {:#x}: changed while it was replayed",
                        entry.start
                    ),
                ));
            }
        }
        Ok(())
    }

    /// How many entries are replayed.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// Refuses a change to what is never logged.
fn check_target(target: Span, log: Span) -> Result<()> {
    let end_is_known = target.offset.checked_add(target.length).is_some();
    if !end_is_known || target.offset < FIRST_LOGGABLE || target.overlaps(log) {
        return Err(Error::corrupt(format!(
            "vhdx log: changes {} bytes at {:#x}, where nothing may be logged",
            target.length, target.offset
        )));
    }
    Ok(())
}

/// Values that every page of one entry shares.
#[derive(Debug, Clone, Copy)]
pub(super) struct EntryFrame {
    pub(super) log: Uuid,
    pub(super) sequence: u64,
    /// Where the oldest entry that is still needed begins, in the ring.
    pub(super) tail: u32,
    pub(super) flushed_file_bytes: u64,
    pub(super) last_file_bytes: u64,
}

/// An entry that sets these 4 KiB pages.
pub(super) fn encode_entry(frame: EntryFrame, pages: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let descriptors = u32::try_from(pages.len()).unwrap_or(u32::MAX);
    let front = to_usize(descriptor_sectors(descriptors).saturating_mul(LOG_SECTOR));
    let length = front.saturating_add(pages.len().saturating_mul(LOG_SECTOR_BYTES));
    let mut bytes = Encoder::new(length);
    bytes.put(0, b"loge");
    bytes.u32(8, u32::try_from(length).unwrap_or(u32::MAX));
    bytes.u32(12, frame.tail);
    bytes.u64(16, frame.sequence);
    bytes.u32(24, descriptors);
    bytes.guid(32, frame.log);
    bytes.u64(48, frame.flushed_file_bytes);
    bytes.u64(56, frame.last_file_bytes);
    let sequence = frame.sequence.to_le_bytes();
    let (low, high) = sequence.split_at(4);
    for (index, (offset, page)) in pages.iter().enumerate() {
        let at = ENTRY_HEADER_BYTES.saturating_add(index.saturating_mul(DESCRIPTOR_BYTES));
        bytes.put(at, b"desc");
        bytes.put(at.saturating_add(4), page.get(4092..4096).unwrap_or(&[]));
        bytes.put(at.saturating_add(8), page.get(..8).unwrap_or(&[]));
        bytes.u64(at.saturating_add(16), *offset);
        bytes.u64(at.saturating_add(24), frame.sequence);
        let data = front.saturating_add(index.saturating_mul(LOG_SECTOR_BYTES));
        bytes.put(data, b"data");
        bytes.put(data.saturating_add(4), high);
        bytes.put(data.saturating_add(8), page.get(8..4092).unwrap_or(&[]));
        bytes.put(data.saturating_add(4092), low);
    }
    let entry = bytes.finish_with_checksum();
    debug_assert!(checksum_holds(&entry));
    entry
}
