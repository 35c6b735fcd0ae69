//! Whether two disks read the same, and if not, where and how much.
//!
//! **Invariants.** What both sides know to be zero is not read. Memory is two pieces per thread. Where one disk is longer,
//! the bytes that only it has are compared with zeros, and the sizes are told.

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

use crate::convert::Progress;
use crate::pipeline::{self, CommitOrder};
use crate::{Error, ErrorKind, Result};

/// Bytes of disk that a thread takes at a time.
const PIECE_BYTES: u64 = 2 << 20;

/// What a comparison found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompareReport {
    /// Bytes of the one disk.
    pub left_size_bytes: u64,
    /// Bytes of the other.
    pub right_size_bytes: u64,
    /// The first byte that differs.
    pub first_difference: Option<u64>,
    /// How many bytes differ.
    pub differing_bytes: u64,
    /// In how many ranges without a gap they lie.
    pub differing_ranges: u64,
}

impl CompareReport {
    /// Whether every byte of both is the same; a longer disk may end in zeros.
    pub fn content_is_equal(&self) -> bool {
        self.first_difference.is_none()
    }

    /// Whether sizes and bytes are the same.
    pub fn is_equal(&self) -> bool {
        self.left_size_bytes == self.right_size_bytes && self.content_is_equal()
    }
}

/// The differences inside one piece.
#[derive(Default)]
struct Found {
    first: Option<u64>,
    /// The byte behind the last difference.
    last_end: u64,
    bytes: u64,
    ranges: u64,
}

/// Reads both disks and compares them.
///
/// # Errors
/// `Cancelled`, and whatever reading gives.
pub fn compare(
    left: &dyn ReadAt,
    right: &dyn ReadAt,
    progress: &dyn Progress,
) -> Result<CompareReport> {
    let size = left.size_bytes().max(right.size_bytes());
    let mut report = CompareReport {
        left_size_bytes: left.size_bytes(),
        right_size_bytes: right.size_bytes(),
        ..CompareReport::default()
    };
    let mut planner = Planner {
        left,
        right,
        at: 0,
        size,
    };
    let mut last_end = None;
    pipeline::run(
        pipeline::thread_count(),
        CommitOrder::Ascending,
        move || {
            if progress.is_cancelled() {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    "the comparison was told to stop",
                ));
            }
            planner.next()
        },
        |(offset, length), buffer| compare_piece(left, right, *offset, *length, buffer),
        |(offset, length), found, _| {
            if let Some(first) = found.first {
                // A range that goes on over the edge of two pieces is one.
                let goes_on = u64::from(last_end == Some(first));
                report.first_difference.get_or_insert(first);
                report.differing_bytes = report.differing_bytes.saturating_add(found.bytes);
                report.differing_ranges = report
                    .differing_ranges
                    .saturating_add(found.ranges)
                    .saturating_sub(goes_on);
                last_end = Some(found.last_end);
            }
            progress.advance(offset.saturating_add(length), size);
            Ok(())
        },
    )?;
    progress.advance(size, size);
    Ok(report)
}

/// Hands out the pieces that may differ, in ascending order.
struct Planner<'a> {
    left: &'a dyn ReadAt,
    right: &'a dyn ReadAt,
    at: u64,
    size: u64,
}

impl Planner<'_> {
    fn next(&mut self) -> Result<Option<(u64, u64)>> {
        while self.at < self.size {
            let offset = self.at;
            let left = zeros_at(self.left, offset, self.size)?;
            let both = if left == 0 {
                0
            } else {
                left.min(zeros_at(self.right, offset, self.size)?)
            };
            if both > 0 {
                self.at = offset.saturating_add(both);
                continue;
            }
            let boundary = (offset / PIECE_BYTES)
                .saturating_add(1)
                .saturating_mul(PIECE_BYTES);
            self.at = boundary.min(self.size);
            return Ok(Some((offset, self.at.saturating_sub(offset))));
        }
        Ok(None)
    }
}

/// How many bytes from `offset` on are known to be zero; behind its end a disk is.
fn zeros_at(disk: &dyn ReadAt, offset: u64, size: u64) -> Result<u64> {
    let own = disk.size_bytes();
    if offset >= own {
        return Ok(size.saturating_sub(offset));
    }
    let extent = disk.extent_at(offset, own.saturating_sub(offset))?;
    Ok(if extent.kind.is_zero() {
        extent.length_bytes.max(1)
    } else {
        0
    })
}

fn compare_piece(
    left: &dyn ReadAt,
    right: &dyn ReadAt,
    offset: u64,
    length: u64,
    buffer: &mut Vec<u8>,
) -> Result<Found> {
    let count = usize::try_from(length).unwrap_or(0);
    buffer.resize(count.saturating_mul(2), 0);
    let (ours, theirs) = buffer.split_at_mut(count);
    block::read_padded(left, offset, ours)?;
    block::read_padded(right, offset, theirs)?;
    let mut found = Found::default();
    if ours == theirs {
        return Ok(found);
    }
    for ((at, one), other) in (offset..).zip(ours.iter()).zip(theirs.iter()) {
        if one != other {
            if found.first.is_none() || found.last_end != at {
                found.ranges = found.ranges.saturating_add(1);
            }
            found.first.get_or_insert(at);
            found.bytes = found.bytes.saturating_add(1);
            found.last_end = at.saturating_add(1);
        }
    }
    Ok(found)
}
