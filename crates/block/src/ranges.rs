//! Byte ranges of a disk: sorted, merged, rounded out to blocks.
//!
//! What change tracking answers, what a diff finds and what is left out are all the same shape. Ranges here are half-open,
//! never empty, in ascending order and never touch each other. Offsets come from trackers and users: arithmetic that
//! would overflow is refused, never wrapped.

use std::fmt;

use crate::geometry::{BLOCK_SIZE_BYTES, FANOUT, LEAF_SIZE_BYTES};
use crate::sync::SlotSet;
use crate::{Error, ErrorKind, LeafIndex, Result};

/// So many bytes from an offset on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length_bytes: u64,
}

impl ByteRange {
    /// The first byte behind it.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.length_bytes)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.length_bytes)
    }
}

/// Sorted, merged, non-empty ranges of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangedRanges {
    ranges: Vec<ByteRange>,
}

impl ChangedRanges {
    /// No range at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sorts and merges; empty ranges are dropped.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] when a range reaches behind the last byte that can be addressed.
    pub fn new(ranges: impl IntoIterator<Item = ByteRange>) -> Result<Self> {
        let mut sorted = Vec::new();
        for range in ranges {
            if range.offset.checked_add(range.length_bytes).is_none() {
                return Err(Error::new(
                    ErrorKind::OutOfRange,
                    format!("range {range} reaches behind every disk"),
                ));
            }
            if range.length_bytes > 0 {
                sorted.push(range);
            }
        }
        sorted.sort_unstable();
        Ok(Self {
            ranges: merged(sorted, 0),
        })
    }

    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.ranges.iter().copied()
    }

    /// How many ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is no range.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes in all ranges together.
    pub fn total_bytes(&self) -> u64 {
        self.ranges
            .iter()
            .fold(0, |sum, range| sum.saturating_add(range.length_bytes))
    }

    /// The first byte behind the last range; zero when there is none.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, ByteRange::end)
    }

    /// What is in either.
    pub fn union(&self, other: &Self) -> Self {
        let mut all: Vec<_> = self.ranges.iter().chain(&other.ranges).copied().collect();
        all.sort_unstable();
        Self {
            ranges: merged(all, 0),
        }
    }

    /// Cut off at `length_bytes` and rounded out to whole blocks; the last block may reach behind the end.
    pub fn rounded_to_blocks(&self, length_bytes: u64) -> Self {
        let rounded = self
            .ranges
            .iter()
            .filter(|range| range.offset < length_bytes)
            .map(|range| {
                let start = range.offset - range.offset % BLOCK_SIZE_BYTES;
                let end = range.end().min(length_bytes);
                let length = (end - start)
                    .div_ceil(BLOCK_SIZE_BYTES)
                    .saturating_mul(BLOCK_SIZE_BYTES);
                ByteRange {
                    offset: start,
                    length_bytes: length,
                }
            });
        Self {
            ranges: merged(rounded.collect(), 0),
        }
    }

    /// At most `max_count` ranges that cover these, made by closing the smallest gaps first.
    pub fn coarsened(self, max_count: usize) -> Self {
        let mut gap = BLOCK_SIZE_BYTES;
        let mut ranges = self.ranges;
        while ranges.len() > max_count.max(1) && gap < u64::MAX {
            gap = gap.saturating_mul(4);
            ranges = merged(ranges, gap);
        }
        Self { ranges }
    }

    /// Whether any byte of the range is in one of these.
    pub fn touches(&self, range: ByteRange) -> bool {
        let at = self.ranges.partition_point(|one| one.end() <= range.offset);
        self.ranges
            .get(at)
            .is_some_and(|one| one.offset < range.end())
    }

    /// The first range, cut off before `offset`, that ends behind it.
    pub fn first_from(&self, offset: u64) -> Option<ByteRange> {
        let at = self.ranges.partition_point(|one| one.end() <= offset);
        self.ranges.get(at).map(|one| {
            let start = one.offset.max(offset);
            ByteRange {
                offset: start,
                length_bytes: one.end() - start,
            }
        })
    }

    /// The blocks of a leaf that these touch.
    pub fn slots(&self, leaf: LeafIndex) -> SlotSet {
        let start = leaf.offset();
        let end = start.saturating_add(LEAF_SIZE_BYTES);
        let mut slots = SlotSet::EMPTY;
        let mut at = start;
        while let Some(range) = self.first_from(at).filter(|range| range.offset < end) {
            let first = (range.offset - start) / BLOCK_SIZE_BYTES;
            let last = (range.end().min(end) - start).div_ceil(BLOCK_SIZE_BYTES);
            slots = slots.union(SlotSet::run(
                usize::try_from(first).unwrap_or(FANOUT),
                usize::try_from(last).unwrap_or(FANOUT),
            ));
            at = range.end();
        }
        slots
    }
}

/// Merges what touches or lies at most `gap` apart.
fn merged(sorted: Vec<ByteRange>, gap: u64) -> Vec<ByteRange> {
    let mut merged: Vec<ByteRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.offset <= last.end().saturating_add(gap) => {
                last.length_bytes = last.end().max(range.end()) - last.offset;
            }
            _ => merged.push(range),
        }
    }
    merged
}
