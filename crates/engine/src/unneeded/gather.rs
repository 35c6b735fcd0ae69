//! Ranges of volumes become whole blocks of the disk, in bounded memory.
//!
//! ```text
//!   ranges   ...[######][######]....[###].......      neighbours are joined first
//!   blocks   |    |XXXX|XXXX|    |    |    |          then rounded inwards: a block that is needed in part is kept
//! ```

use block::{BLOCK_SIZE_BYTES, ReadAt};
use guestfs::filesystem::VolumeRange;

use super::pieces::Pieces;

/// Runs held before they are joined, and half of them given up if that does not help: 16 MiB.
const MAX_RUNS: usize = 1 << 20;
/// Extents looked at to find out that a run is zero.
const MAX_EXTENTS: usize = 4_096;

/// Runs of whole blocks.
pub(super) struct BlockRuns {
    disk_bytes: u64,
    /// First block, number of blocks.
    runs: Vec<(u64, u64)>,
    /// Bytes of the disk that may go on with the next range.
    open: Option<(u64, u64)>,
}

impl BlockRuns {
    /// None, of a disk of so many bytes.
    pub(super) fn new(disk_bytes: u64) -> Self {
        Self {
            disk_bytes,
            runs: Vec::new(),
            open: None,
        }
    }

    /// Adds a range of a volume.
    pub(super) fn add(&mut self, pieces: &Pieces, range: VolumeRange) {
        for (from, to) in pieces.places(range.offset, range.length_bytes) {
            match &mut self.open {
                Some((_, end)) if *end == from => *end = to,
                _ => {
                    self.close();
                    self.open = Some((from, to));
                }
            }
        }
    }

    /// Ends the range that is open.
    pub(super) fn close(&mut self) {
        let Some((from, to)) = self.open.take() else {
            return;
        };
        // What is left of the last block of a disk is no whole block: it is kept.
        let first = from.div_ceil(BLOCK_SIZE_BYTES);
        let end = to.min(self.disk_bytes) / BLOCK_SIZE_BYTES;
        if first < end {
            self.push((first, end.saturating_sub(first)));
        }
    }

    fn push(&mut self, run: (u64, u64)) {
        self.runs.push(run);
        if self.runs.len() >= MAX_RUNS {
            self.join();
            if self.runs.len() > MAX_RUNS / 2 {
                self.keep_longest(MAX_RUNS / 2);
            }
        }
    }

    /// Sorts, and joins what touches or overlaps.
    fn join(&mut self) {
        self.runs.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(self.runs.len());
        for (first, count) in self.runs.drain(..) {
            let end = first.saturating_add(count);
            match joined.last_mut() {
                Some((start, length)) if first <= start.saturating_add(*length) => {
                    *length = end
                        .max(start.saturating_add(*length))
                        .saturating_sub(*start);
                }
                _ => joined.push((first, count)),
            }
        }
        self.runs = joined;
    }

    fn keep_longest(&mut self, count: usize) {
        if self.runs.len() > count {
            self.runs
                .sort_unstable_by_key(|(first, length)| (std::cmp::Reverse(*length), *first));
            self.runs.truncate(count);
            self.runs.sort_unstable();
        }
    }

    /// Takes out what the disk knows to be zero without reading: leaving that out would save nothing.
    pub(super) fn drop_zeros(&mut self, disk: &dyn ReadAt) {
        self.close();
        self.join();
        self.runs.retain(|(first, count)| {
            let mut at = first.saturating_mul(BLOCK_SIZE_BYTES);
            let end = at.saturating_add(count.saturating_mul(BLOCK_SIZE_BYTES));
            for _ in 0..MAX_EXTENTS {
                match disk.extent_at(at, end.saturating_sub(at)) {
                    Ok(extent) if extent.kind.is_zero() && extent.length_bytes > 0 => {
                        at = extent.end();
                    }
                    // Where it cannot even be asked, reading would fail, and is not needed.
                    Ok(_) | Err(_) => return true,
                }
                if at >= end {
                    return false;
                }
            }
            true
        });
    }

    /// Takes over all runs of another.
    pub(super) fn take(&mut self, mut other: Self) {
        other.close();
        for run in other.runs {
            self.push(run);
        }
    }

    /// Bytes in all runs.
    pub(super) fn total_bytes(&mut self) -> u64 {
        self.close();
        self.join();
        let blocks = self
            .runs
            .iter()
            .fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
        blocks.saturating_mul(BLOCK_SIZE_BYTES)
    }

    /// At most so many ranges, the longest ones, in ascending order.
    pub(super) fn longest(mut self, count: usize) -> Vec<repo::ByteRange> {
        self.close();
        self.join();
        self.keep_longest(count);
        self.runs
            .iter()
            .map(|(first, count)| repo::ByteRange {
                offset: first.saturating_mul(BLOCK_SIZE_BYTES),
                length_bytes: count.saturating_mul(BLOCK_SIZE_BYTES),
            })
            .collect()
    }
}
