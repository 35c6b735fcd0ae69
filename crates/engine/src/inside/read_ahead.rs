//! A volume of which stretches can be read beforehand: whoever is about to read many small files says where they lie.
//!
//! ```text
//!   load(ranges) ─► whole blocks, neighbours together ─► Loaded ─┐ held in memory until it is dropped
//!   file system ─ read_at ─► in a stretch? ─ yes ─► copied ◄─────┘
//!                              └ no ─► volume
//! ```
//!
//! **Invariants.** Nothing is read beforehand that nobody asked for. One request holds at most 8 MiB. What cannot be read
//! beforehand is left out: the reader that needs it learns why.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{Extent, ReadAt};
use guestfs::filesystem::VolumeRange;

/// Stretches begin and end at multiples of this: a block of the repository.
const BLOCK_BYTES: u64 = 64 << 10;
/// What lies between two ranges and is rather read, too.
const GAP_BYTES: u64 = BLOCK_BYTES;
const STRETCH_BYTES_MAX: u64 = 4 << 20;
const LOADED_BYTES_MAX: u64 = 8 << 20;

/// Bytes of a volume in memory.
struct Stretch {
    offset: u64,
    bytes: Vec<u8>,
}

/// A volume with stretches of it in memory.
pub(crate) struct ReadAhead {
    volume: Arc<dyn ReadAt>,
    stretches: Mutex<Vec<Arc<Stretch>>>,
    /// As many as there are in `stretches`, to be asked without waiting.
    count: AtomicUsize,
}

/// Keeps stretches in memory until it is dropped.
pub(crate) struct Loaded<'a> {
    ahead: &'a ReadAhead,
    stretches: Vec<Arc<Stretch>>,
}

impl ReadAhead {
    pub(crate) fn new(volume: Arc<dyn ReadAt>) -> Self {
        Self {
            volume,
            stretches: Mutex::default(),
            count: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Stretch>>> {
        self.stretches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what lies in these ranges, as far as one request may hold it.
    pub(crate) fn load(&self, ranges: Vec<VolumeRange>) -> Loaded<'_> {
        let mut loaded = Vec::new();
        for range in plan(ranges, self.volume.size_bytes()) {
            let mut bytes = vec![0; usize::try_from(range.length_bytes).unwrap_or(0)];
            if self.volume.read_at(range.offset, &mut bytes).is_ok() {
                loaded.push(Arc::new(Stretch {
                    offset: range.offset,
                    bytes,
                }));
            }
        }
        let mut stretches = self.lock();
        stretches.extend(loaded.iter().map(Arc::clone));
        self.count.store(stretches.len(), Ordering::Release);
        Loaded {
            ahead: self,
            stretches: loaded,
        }
    }

    /// Fills a buffer from memory, if all of it lies in one stretch.
    fn fill_from_memory(&self, offset: u64, buffer: &mut [u8]) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let found = self.lock().iter().find_map(|stretch| {
            let from = usize::try_from(offset.checked_sub(stretch.offset)?).ok()?;
            let end = from.checked_add(buffer.len())?;
            (end <= stretch.bytes.len()).then(|| (Arc::clone(stretch), from, end))
        });
        let Some((stretch, from, end)) = found else {
            return false;
        };
        match stretch.bytes.get(from..end) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        let mut stretches = self.ahead.lock();
        stretches.retain(|stretch| !self.stretches.iter().any(|own| Arc::ptr_eq(own, stretch)));
        self.ahead.count.store(stretches.len(), Ordering::Release);
    }
}

impl ReadAt for ReadAhead {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        if self.fill_from_memory(offset, buffer) {
            return Ok(());
        }
        self.volume.read_at(offset, buffer)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.volume.extent_at(offset, limit_bytes)
    }
}

/// Whole blocks that hold these ranges, in order, neighbours together.
fn plan(mut ranges: Vec<VolumeRange>, size_bytes: u64) -> Vec<VolumeRange> {
    ranges.sort();
    let mut stretches: Vec<VolumeRange> = Vec::new();
    let mut left = LOADED_BYTES_MAX;
    for range in ranges {
        let from = range.offset / BLOCK_BYTES * BLOCK_BYTES;
        let end = range.offset.saturating_add(range.length_bytes);
        let end = end
            .checked_next_multiple_of(BLOCK_BYTES)
            .unwrap_or(u64::MAX)
            .min(size_bytes);
        // What the last stretch holds already.
        let held = stretches
            .last()
            .map_or(0, |last| last.offset.saturating_add(last.length_bytes));
        let begin = from.max(held);
        if begin >= end {
            continue;
        }
        if let Some(last) = stretches.last_mut() {
            let joined = end.saturating_sub(last.offset);
            let more = end.saturating_sub(held);
            if from <= held.saturating_add(GAP_BYTES) && joined <= STRETCH_BYTES_MAX && more <= left
            {
                last.length_bytes = joined;
                left = left.saturating_sub(more);
                continue;
            }
        }
        let length_bytes = end.saturating_sub(begin).min(STRETCH_BYTES_MAX);
        if length_bytes > left {
            break;
        }
        left = left.saturating_sub(length_bytes);
        stretches.push(VolumeRange {
            offset: begin,
            length_bytes,
        });
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume that counts how often it is read; each byte tells its place.
    struct Counted(AtomicUsize, u64);

    impl ReadAt for Counted {
        fn size_bytes(&self) -> u64 {
            self.1
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            for (byte, at) in buffer.iter_mut().zip(offset..) {
                *byte = (at % 251) as u8;
            }
            Ok(())
        }
    }

    fn range(offset: u64, length_bytes: u64) -> VolumeRange {
        VolumeRange {
            offset,
            length_bytes,
        }
    }

    #[test]
    fn neighbours_are_read_once_and_what_is_far_is_not() {
        let counted = Arc::new(Counted(AtomicUsize::new(0), 100 << 20));
        let ahead = ReadAhead::new(counted.clone());
        let reads = || counted.0.load(Ordering::Relaxed);
        let files: Vec<_> = (0..50).map(|number| range(number * 9000, 8000)).collect();
        let loaded = ahead.load(files.clone());
        assert_eq!(reads(), 1);
        for file in &files {
            let mut bytes = vec![0; 8000];
            ahead.read_at(file.offset, &mut bytes).expect("read");
            let wanted: Vec<u8> = (file.offset..)
                .take(8000)
                .map(|at| (at % 251) as u8)
                .collect();
            assert!(bytes == wanted, "at {}", file.offset);
        }
        assert_eq!(reads(), 1);
        ahead.read_at(90 << 20, &mut [0; 10]).expect("read");
        assert_eq!(reads(), 2);
        drop(loaded);
        ahead.read_at(0, &mut [0; 10]).expect("read");
        assert_eq!(reads(), 3);
    }

    #[test]
    fn stretches_are_whole_blocks_within_the_volume_and_bounded() {
        let planned = plan(
            vec![range(70_000, 10), range(5, 5), range(300_000, 1)],
            310_000,
        );
        assert_eq!(planned, [range(0, 131_072), range(262_144, 47_856)]);
        let all = plan(vec![range(0, u64::MAX), range(7, u64::MAX)], u64::MAX);
        assert!(all.iter().map(|one| one.length_bytes).sum::<u64>() <= LOADED_BYTES_MAX);
        let outside = plan(vec![range(u64::MAX, 5), range(100, 1)], 50);
        assert_eq!(outside, [range(0, 50)]);
        let spread = (0..1000).map(|number| range(number << 20, 1)).collect();
        let held: u64 = plan(spread, u64::MAX)
            .iter()
            .map(|one| one.length_bytes)
            .sum();
        assert_eq!(held, LOADED_BYTES_MAX);
    }
}
