//! The ring that a log is: where it ends, where its live part begins, and its records.
//!
//! ```text
//!   blocks of 512 bytes, each begins with its cycle       5 5 5 5 5 │ 4 4 4 4 4      the head is where it falls
//!   record: magic:4 cycle:4 version:4 length:4 lsn:8 tail:8 crc:4 before:4 operations:4 words:4×64 format:4 uuid:16 size:4
//!           [more words, a block each 32 KiB] │ body: the first word of each block stands in the header's words
//! ```
//!
//! **Invariants.** Records that were being written when the power went are cut off, as Linux does it: up to eight before
//! the head whose checksums are wrong. What lies between tail and head is read record by record; a record is at most
//! 512 KiB, the ring at most 2 GiB.
//!
//! Source: the on-disk format documentation of the kernel's XFS developers; what Linux does on recovery.

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

use crate::{Error, ErrorKind, Result, field};

const BLOCK: usize = 512;
const BLOCK_BYTES: u64 = 512;
const RECORD_MAGIC: u32 = 0xFEED_BABE;
/// Bytes of a body whose first words stand in one header.
const WORDS_BYTES: u32 = 32 << 10;
const MAX_RING_BYTES: u64 = 2 << 30;
const MAX_BODY_BYTES: u32 = 512 << 10;
/// The longest record with its headers.
const LONGEST_RECORD_BLOCKS: u64 = 1040;
/// Records that may be on their way to the disk at once, and the blocks that they take.
const IN_FLIGHT_RECORDS: usize = 8;
const IN_FLIGHT_BLOCKS: u64 = 4096;
const UNMOUNT: u8 = 0x20;

/// Whether anything lies in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::xfs) enum State {
    /// Nothing: the last that was written is an unmount, or nothing was ever written.
    Clean,
    /// What lies from the tail up to the head must be replayed.
    Live(Live),
}

/// The part of a log that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::xfs) struct Live {
    /// Block of the first record.
    pub(in crate::xfs) tail: u64,
    /// Behind the last one.
    pub(in crate::xfs) head: u64,
}

/// The header of a record.
#[derive(Debug, Clone)]
pub(in crate::xfs) struct Record {
    /// Where it stands.
    block: u64,
    length: u32,
    /// When it was written; larger is later.
    pub(in crate::xfs) lsn: u64,
    tail: u64,
    checksum: u32,
    pub(in crate::xfs) operations: u32,
    format: u32,
    uuid: [u8; 16],
    header_blocks: u64,
    body_blocks: u64,
}

/// What a walk met that cannot be: where, and what.
pub(in crate::xfs) struct Bad {
    pub(in crate::xfs) block: u64,
    pub(in crate::xfs) error: Error,
}

/// What a walk does with checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::xfs) enum Checksums {
    /// Each must be right.
    Prove,
    /// They are right or absent, as old kernels and mkfs leave them.
    ProveIfPresent,
    /// An earlier walk proved them.
    Believe,
}

/// A log on a volume.
pub(in crate::xfs) struct Ring<'v> {
    volume: &'v dyn ReadAt,
    start: u64,
    blocks: u64,
}

impl<'v> Ring<'v> {
    /// A log of so many bytes from a byte of the volume on.
    pub(in crate::xfs) fn new(volume: &'v dyn ReadAt, start: u64, bytes: u64) -> Result<Self> {
        let is_inside = (start.checked_add(bytes)).is_some_and(|end| end <= volume.size_bytes());
        let blocks = bytes.checked_div(BLOCK_BYTES).unwrap_or(0);
        if !is_inside || blocks < 2 || bytes > MAX_RING_BYTES {
            return Err(Error::corrupt(format!(
                "a log of {bytes} bytes at byte {start}"
            )));
        }
        Ok(Self {
            volume,
            start,
            blocks,
        })
    }

    /// The block `count` further round.
    fn ahead(&self, block: u64, count: u64) -> u64 {
        block
            .saturating_add(count)
            .checked_rem(self.blocks)
            .unwrap_or(0)
    }

    fn back(&self, block: u64, count: u64) -> u64 {
        let count = count.checked_rem(self.blocks).unwrap_or(0);
        self.ahead(block, self.blocks.saturating_sub(count))
    }

    /// Blocks from one place to another.
    fn distance(&self, from: u64, to: u64) -> u64 {
        self.back(to, from)
    }

    /// Blocks from a place on, round the end.
    fn read(&self, block: u64, count: u64) -> Result<Vec<u8>> {
        let limit = IN_FLIGHT_BLOCKS.max(LONGEST_RECORD_BLOCKS);
        if count > limit.min(self.blocks) {
            return Err(Error::corrupt(format!("{count} blocks of the log at once")));
        }
        let length = usize::try_from(count.saturating_mul(BLOCK_BYTES)).unwrap_or(0);
        let mut bytes = vec![0; length];
        let first = self.blocks.saturating_sub(block).min(count);
        let cut = usize::try_from(first.saturating_mul(BLOCK_BYTES)).unwrap_or(0);
        let (before, behind) = bytes.split_at_mut(cut.min(length));
        let at = self.start.saturating_add(block.saturating_mul(BLOCK_BYTES));
        self.volume.read_at(at, before)?;
        if !behind.is_empty() {
            self.volume.read_at(self.start, behind)?;
        }
        Ok(bytes)
    }

    fn cycle(&self, block: u64) -> Result<u32> {
        cycle_of(&self.read(block, 1)?)
    }

    /// The first block of a cycle behind `low`, which is of another one, up to `high`, which is of it.
    fn bisect(&self, mut low: u64, mut high: u64, cycle: u32) -> Result<u64> {
        while high.saturating_sub(low) > 1 {
            let middle = low.midpoint(high);
            if self.cycle(middle)? == cycle {
                high = middle;
            } else {
                low = middle;
            }
        }
        Ok(high)
    }

    /// The first block of a cycle among `count`.
    fn earliest(&self, from: u64, count: u64, cycle: u32) -> Result<Option<u64>> {
        let bytes = self.read(from, count)?;
        for (index, block) in (0_u64..).zip(bytes.chunks_exact(BLOCK)) {
            if cycle_of(block)? == cycle {
                return Ok(Some(from.saturating_add(index)));
            }
        }
        Ok(None)
    }

    /// The nearest header before a place, among so many blocks.
    fn record_before(&self, place: u64, mut limit: u64) -> Result<Option<Record>> {
        limit = limit.min(self.blocks);
        let mut place = place;
        while limit > 0 {
            let count = limit.min(8);
            let first = self.back(place, count);
            let bytes = self.read(first, count)?;
            for (index, block) in (0..count)
                .zip(bytes.chunks_exact(BLOCK))
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
            {
                if field::u32_be(block, 0)? == RECORD_MAGIC {
                    return Record::parse(self.ahead(first, index), block).map(Some);
                }
            }
            place = first;
            limit = limit.saturating_sub(count);
        }
        Ok(None)
    }

    /// What must be replayed.
    pub(in crate::xfs) fn state(&self) -> Result<State> {
        let Some(guess) = self.guess_head()? else {
            return Ok(State::Clean);
        };
        // What was unmounted was written in full before: then the first guess is the truth.
        if let Some(record) = self.record_before(self.ahead(guess, 0), LONGEST_RECORD_BLOCKS)?
            && self.is_unmount(&record, self.ahead(guess, 0))?
        {
            return Ok(State::Clean);
        }
        let head = self.ahead(self.verify_head(guess)?, 0);
        let nothing = || Error::corrupt("no record of the log lies before its end");
        let record = self.record_before(head, LONGEST_RECORD_BLOCKS)?;
        let record = record.ok_or_else(nothing)?;
        let whole = record.blocks();
        let (record, head) = if self.distance(record.block, head) == whole {
            (record, head)
        } else {
            // It was being written.
            let head = record.block;
            let before = self.record_before(head, LONGEST_RECORD_BLOCKS)?;
            (before.ok_or_else(nothing)?, head)
        };
        if self.is_unmount(&record, head)? {
            return Ok(State::Clean);
        }
        self.cut_torn(record, head)
    }

    /// Where the cycle falls, by halving; `None` for a log that was never written.
    fn guess_head(&self) -> Result<Option<u64>> {
        let end = self.blocks.saturating_sub(1);
        let (first, last) = (self.cycle(0)?, self.cycle(end)?);
        if first == 0 {
            return Ok(None);
        }
        if last == 0 && first != 1 {
            return Err(Error::corrupt("its cycles do not begin with 1"));
        }
        Ok(Some(if first == last {
            self.blocks
        } else {
            self.bisect(0, end, last)?
        }))
    }

    /// Looks for holes among the last writes, which may have come out of order.
    fn verify_head(&self, guess: u64) -> Result<u64> {
        let (first, last) = (self.cycle(0)?, self.cycle(self.blocks.saturating_sub(1))?);
        let stop = if first == last {
            last.wrapping_sub(1)
        } else {
            last
        };
        let span = IN_FLIGHT_BLOCKS.min(self.blocks);
        if guess >= span || last == 0 {
            let from = guess.saturating_sub(span);
            let found = self.earliest(from, guess.saturating_sub(from), stop)?;
            return Ok(found.unwrap_or(guess));
        }
        let round = span.saturating_sub(guess);
        let from = self.blocks.saturating_sub(round);
        if let Some(found) = self.earliest(from, round, stop.wrapping_sub(1))? {
            return Ok(found);
        }
        Ok(self.earliest(0, guess, stop)?.unwrap_or(guess))
    }

    fn is_unmount(&self, record: &Record, head: u64) -> Result<bool> {
        if record.operations != 1
            || record.length == 0
            || self.distance(record.block, head) != record.blocks()
        {
            return Ok(false);
        }
        let Ok(body) = self.body(record, Checksums::ProveIfPresent) else {
            return Ok(false);
        };
        Ok(field::u8_at(&body, 9)? & UNMOUNT != 0)
    }

    /// Cuts off what was not written in full.
    fn cut_torn(&self, last: Record, head: u64) -> Result<State> {
        let mut recent = vec![last.clone()];
        while recent.len() < IN_FLIGHT_RECORDS {
            let Some(oldest) = recent.last() else { break };
            if oldest.block == self.tail_of(&last)? {
                break;
            }
            match self.record_before(oldest.block, LONGEST_RECORD_BLOCKS)? {
                Some(record) if record.lsn < oldest.lsn => recent.push(record),
                _ => break,
            }
        }
        let torn = recent.iter().rev().find(|record| {
            record.length > 0 && self.body(record, Checksums::ProveIfPresent).is_err()
        });
        let Some(torn) = torn else {
            let tail = self.tail_of(&last)?;
            return Ok(State::Live(Live { tail, head }));
        };
        let head = torn.block;
        let before = self.record_before(head, LONGEST_RECORD_BLOCKS)?;
        let before = before.ok_or_else(|| Error::corrupt("all of the log is damaged"))?;
        if self.is_unmount(&before, head)? {
            return Ok(State::Clean);
        }
        let tail = self.tail_of(&before)?;
        Ok(State::Live(Live { tail, head }))
    }

    fn tail_of(&self, record: &Record) -> Result<u64> {
        let tail = record.tail & u64::from(u32::MAX);
        if tail >= self.blocks {
            return Err(Error::corrupt(format!("the log begins at block {tail}")));
        }
        Ok(tail)
    }

    /// The first header from a place on, before the head.
    pub(in crate::xfs) fn record_from(&self, mut place: u64, head: u64) -> Result<Option<u64>> {
        let mut left = self.distance(place, head).min(IN_FLIGHT_BLOCKS);
        while left > 0 {
            if field::u32_be(&self.read(place, 1)?, 0)? == RECORD_MAGIC {
                return Ok(Some(place));
            }
            place = self.ahead(place, 1);
            left = left.saturating_sub(1);
        }
        Ok(None)
    }

    /// Whether a place is so near behind the head that what was written last may have gone over it.
    pub(in crate::xfs) fn is_near(&self, place: u64, head: u64) -> bool {
        self.distance(head, place) <= IN_FLIGHT_BLOCKS
    }

    /// The place behind one.
    pub(in crate::xfs) fn behind(&self, place: u64) -> u64 {
        self.ahead(place, 1)
    }

    /// Shows all records of the live part with their bodies.
    pub(in crate::xfs) fn walk(
        &self,
        live: Live,
        checksums: Checksums,
        uuid: &[u8; 16],
        visit: &mut dyn FnMut(&Record, &[u8]) -> Result<()>,
    ) -> std::result::Result<(), Bad> {
        let mut place = live.tail;
        let mut left = self.distance(live.tail, live.head);
        while left > 0 {
            let bad = |error: Error| Bad {
                error: error.within(format!("record at block {place} of the log")),
                block: place,
            };
            let block = self.read(place, 1).map_err(bad)?;
            let record = Record::parse(place, &block).map_err(bad)?;
            if record.blocks() > left {
                return Err(bad(Error::corrupt("it reaches over the head")));
            }
            // Empty ones stand where torn ones were cut off at an earlier mount.
            if record.length > 0 {
                record.check_origin(uuid).map_err(bad)?;
                let body = self.body(&record, checksums).map_err(bad)?;
                visit(&record, &body).map_err(bad)?;
            }
            left = left.saturating_sub(record.blocks());
            place = self.ahead(place, record.blocks());
        }
        Ok(())
    }

    /// The body of a record with the first words back in their places.
    fn body(&self, record: &Record, checksums: Checksums) -> Result<Vec<u8>> {
        let headers = self.read(record.block, record.header_blocks)?;
        let first = self.ahead(record.block, record.header_blocks);
        let mut body = self.read(first, record.body_blocks)?;
        body.truncate(usize::try_from(record.length).unwrap_or(0));
        let must = match checksums {
            Checksums::Prove => true,
            Checksums::ProveIfPresent => record.checksum != 0,
            Checksums::Believe => false,
        };
        if must && !record.is_sound(&headers, &body)? {
            return Err(Error::corrupt("wrong checksum"));
        }
        for (index, block) in body.chunks_mut(BLOCK).enumerate() {
            // 64 words behind 44 bytes of the first header, 64 behind 4 bytes of each other one.
            let (header, word) = (index >> 6, index & 63);
            let base = if header == 0 { 44 } else { 4 };
            let at = header
                .saturating_mul(BLOCK)
                .saturating_add(base)
                .saturating_add(word.saturating_mul(4));
            // Only the padding of the record that mkfs makes has no words.
            let Ok(word) = field::slice(&headers, at, 4) else {
                break;
            };
            if let Some(target) = block.get_mut(..4) {
                target.copy_from_slice(word);
            }
        }
        Ok(body)
    }
}

fn cycle_of(block: &[u8]) -> Result<u32> {
    let first = field::u32_be(block, 0)?;
    if first == RECORD_MAGIC {
        return field::u32_be(block, 4);
    }
    Ok(first)
}

impl Record {
    fn parse(block: u64, bytes: &[u8]) -> Result<Self> {
        let version = field::u32_be(bytes, 8)?;
        let length = field::u32_be(bytes, 12)?;
        let size = field::u32_be(bytes, 320)?;
        if field::u32_be(bytes, 0)? != RECORD_MAGIC || !matches!(version, 1..=3) {
            return Err(Error::corrupt("no header"));
        }
        let headers = match version & 2 {
            0 => 1,
            _ => size.div_ceil(WORDS_BYTES).max(1),
        };
        if length > MAX_BODY_BYTES
            || size > MAX_BODY_BYTES
            || length.div_ceil(WORDS_BYTES) > headers
        {
            // mkfs says 32 KiB, and pads its one record to the stripe.
            let is_made = length <= MAX_BODY_BYTES && size <= MAX_BODY_BYTES;
            if !is_made || field::u32_be(bytes, 40)? != 1 {
                return Err(Error::corrupt(format!("{length} bytes of {size}")));
            }
        }
        Ok(Self {
            block,
            length,
            lsn: field::u64_be(bytes, 16)?,
            tail: field::u64_be(bytes, 24)?,
            checksum: field::u32_le(bytes, 32)?,
            operations: field::u32_be(bytes, 40)?,
            format: field::u32_be(bytes, 300)?,
            uuid: field::slice(bytes, 304, 16)?.try_into().unwrap_or([0; 16]),
            header_blocks: u64::from(headers),
            body_blocks: u64::from(length).div_ceil(BLOCK_BYTES),
        })
    }

    fn blocks(&self) -> u64 {
        self.header_blocks.saturating_add(self.body_blocks)
    }

    fn check_origin(&self, uuid: &[u8; 16]) -> Result<()> {
        if self.format != 1 {
            return Err(Error::unsupported(
                "written by a machine of the other byte order",
            ));
        }
        if self.uuid != *uuid {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "it belongs to another file system",
            ));
        }
        Ok(())
    }

    /// Over the header, what is used of the further ones, and the body as it lies there. The compilers of two machines
    /// make the header 328 or 324 bytes long.
    fn is_sound(&self, headers: &[u8], body: &[u8]) -> Result<bool> {
        for length in [328_usize, 324] {
            let mut sum = crc32c::crc32c(field::slice(headers, 0, 32)?);
            sum = crc32c::crc32c_append(sum, &[0; 4]);
            let rest = length.saturating_sub(36);
            sum = crc32c::crc32c_append(sum, field::slice(headers, 36, rest)?);
            let used = usize::try_from(self.length.div_ceil(WORDS_BYTES)).unwrap_or(0);
            for further in headers.chunks_exact(BLOCK).take(used).skip(1) {
                sum = crc32c::crc32c_append(sum, field::slice(further, 0, 260)?);
            }
            if field::sum_holds(crc32c::crc32c_append(sum, body), self.checksum) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
