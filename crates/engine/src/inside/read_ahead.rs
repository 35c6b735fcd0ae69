//! A volume whose blocks are fetched once for many readers: who reads on where others have read gets more than asked for.
//!
//! ```text
//!   load(ranges) ─► whole blocks, neighbours together ──────┐
//!   read_at ─► block held? ── yes ──────────────► copied ◄──┤ kept; what was not used longest goes
//!                ├─ coming: somebody reads it ─► waits ─────┤
//!                ├─ no, few of them ─► read, with what follows if the one before is held ─┘
//!                └─ no, many ─► straight into the reader's buffer
//! ```
//!
//! It passes everything on until [`ReadAhead::begin`]: looks into versions note what they read, and must not note more.
//!
//! **Invariants.** At most 64 MiB are kept, besides what is being read. A read takes in at most twice as much as was read
//! just before it, and 1 MiB. What cannot be read beforehand is left out: the reader that needs it learns why.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use block::{Extent, ReadAt};
use guestfs::filesystem::VolumeRange;

/// What is fetched whole: a block of the repository.
const BLOCK_BYTES: u64 = 64 << 10;
/// What lies between two ranges and is rather read, too.
const GAP_BYTES: u64 = BLOCK_BYTES;
const STRETCH_BYTES_MAX: u64 = 4 << 20;
const LOADED_BYTES_MAX: u64 = 8 << 20;
/// Blocks that one read takes in at most, beyond what was asked for.
const WINDOW_BLOCKS: u64 = 16;
/// As many whole blocks, of which none is held, are not kept but read into the reader's own buffer.
const DIRECT_BLOCKS: u64 = 8;
/// Who comes back to where he was later than this has many places that he goes on at: there is no room for more of each.
const PACE_BLOCKS: u64 = 128;
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Buffers that wait to be used again: fresh memory costs more than filling it.
const SPARE_BYTES_MAX: usize = 8 << 20;

/// Neighbouring blocks of a volume in memory.
struct Stretch {
    offset: u64,
    bytes: Vec<u8>,
    /// What of `bytes` is meant.
    length: usize,
    /// How many blocks had been read before it.
    read_before: u64,
    /// When it was used last.
    used: AtomicU64,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.offset.saturating_add(to_u64(self.length))
    }

    /// Fills a buffer as far as this reaches; how much that was.
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let from = usize::try_from(offset.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let held = self.bytes.get(..self.length).unwrap_or_default();
        let held = held.get(from..).unwrap_or_default();
        let length = held.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), held.get(..length)) {
            to.copy_from_slice(from);
        }
        length
    }
}

/// A block that is held, or is being read together with so many.
enum Slot {
    Coming(u64),
    Here(Arc<Stretch>),
}

#[derive(Default)]
struct Kept {
    slots: HashMap<u64, Slot>,
    stretches: Vec<Arc<Stretch>>,
    held_bytes: usize,
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
    moment: u64,
    /// Blocks that were claimed so far.
    blocks_read: u64,
}

/// Blocks that somebody reads now.
struct Claim {
    first: u64,
    count: u64,
}

/// Where the next bytes of a read come from.
enum Source {
    Held(Arc<Stretch>),
    /// To be read and kept.
    Claimed(Claim),
    /// So many bytes, straight into the reader's buffer.
    Direct(usize),
}

/// A volume with blocks of it in memory.
pub(crate) struct ReadAhead {
    volume: Arc<dyn ReadAt>,
    is_on: AtomicBool,
    kept: Mutex<Kept>,
    changed: Condvar,
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn to_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

impl Kept {
    /// Blocks from `first` on, at most so many, that are neither held nor coming.
    fn absent(&self, first: u64, count_max: u64) -> u64 {
        let blocks = first..first.saturating_add(count_max);
        let absent = blocks.take_while(|block| !self.slots.contains_key(block));
        to_u64(absent.count())
    }

    /// Takes blocks that are absent: those wanted, and more when what lies before them was read just now.
    fn claim(&mut self, first: u64, wanted: u64, blocks_max: u64) -> Claim {
        let before = first
            .checked_sub(1)
            .and_then(|before| self.slots.get(&before));
        let window = match before {
            None => 0,
            Some(Slot::Coming(count)) => count.saturating_mul(2),
            Some(Slot::Here(stretch))
                if self.blocks_read.saturating_sub(stretch.read_before) <= PACE_BLOCKS =>
            {
                to_u64(stretch.length)
                    .div_ceil(BLOCK_BYTES)
                    .saturating_mul(2)
            }
            Some(Slot::Here(_)) => 0,
        };
        let reach = wanted.max(window.min(WINDOW_BLOCKS));
        let count = self
            .absent(first, reach.min(blocks_max.saturating_sub(first)))
            .max(1);
        for block in first..first.saturating_add(count) {
            self.slots.insert(block, Slot::Coming(count));
        }
        self.blocks_read = self.blocks_read.saturating_add(count);
        Claim { first, count }
    }

    /// A buffer of at least so many bytes.
    fn buffer(&mut self, length: usize) -> Vec<u8> {
        let fits = |one: &Vec<u8>| one.len() >= length && one.len() / 4 <= length;
        match self.spare.iter().position(fits) {
            Some(at) => {
                let found = self.spare.swap_remove(at);
                self.spare_bytes = self.spare_bytes.saturating_sub(found.len());
                found
            }
            None => Vec::new(),
        }
    }

    fn touch(&mut self, stretch: &Stretch) {
        self.moment = self.moment.wrapping_add(1);
        stretch.used.store(self.moment, Ordering::Relaxed);
    }

    /// Keeps what was read, and lets go what was not used longest.
    fn keep(&mut self, claim: &Claim, stretch: &Arc<Stretch>) {
        self.touch(stretch);
        for block in claim.first..claim.first.saturating_add(claim.count) {
            self.slots.insert(block, Slot::Here(Arc::clone(stretch)));
        }
        self.held_bytes = self.held_bytes.saturating_add(stretch.bytes.len());
        self.stretches.push(Arc::clone(stretch));
        while self.held_bytes > KEPT_BYTES_MAX && self.stretches.len() > 1 {
            let used = |one: &Arc<Stretch>| one.used.load(Ordering::Relaxed);
            let oldest = self.stretches.iter().enumerate();
            let Some((at, _)) = oldest.min_by_key(|(_, one)| used(one)) else {
                break;
            };
            let gone = self.stretches.swap_remove(at);
            self.held_bytes = self.held_bytes.saturating_sub(gone.bytes.len());
            for block in gone.offset / BLOCK_BYTES..gone.end().div_ceil(BLOCK_BYTES) {
                self.slots.remove(&block);
            }
            if let Some(gone) = Arc::into_inner(gone)
                && self.spare_bytes.saturating_add(gone.bytes.len()) <= SPARE_BYTES_MAX
            {
                self.spare_bytes = self.spare_bytes.saturating_add(gone.bytes.len());
                self.spare.push(gone.bytes);
            }
        }
    }
}

/// Gives claimed blocks up again unless they were kept.
struct Pending<'a> {
    ahead: &'a ReadAhead,
    claim: Option<Claim>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            let mut kept = self.ahead.lock();
            for block in claim.first..claim.first.saturating_add(claim.count) {
                kept.slots.remove(&block);
            }
        }
        self.ahead.changed.notify_all();
    }
}

impl ReadAhead {
    pub(crate) fn new(volume: Arc<dyn ReadAt>) -> Self {
        Self {
            volume,
            is_on: AtomicBool::new(false),
            kept: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// From now on blocks are kept.
    pub(crate) fn begin(&self) {
        self.is_on.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block_count(&self) -> u64 {
        self.volume.size_bytes().div_ceil(BLOCK_BYTES)
    }

    /// Reads what lies in these ranges beforehand, as far as one request may.
    pub(crate) fn load(&self, ranges: Vec<VolumeRange>) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        for range in plan(ranges, self.volume.size_bytes()) {
            let end = range.offset.saturating_add(range.length_bytes);
            let (mut block, end) = (range.offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
            while block < end {
                let mut kept = self.lock();
                let absent = kept.absent(block, end.saturating_sub(block));
                if absent == 0 {
                    block = block.saturating_add(1);
                    continue;
                }
                let claim = kept.claim(block, absent, self.block_count());
                drop(kept);
                block = block.saturating_add(claim.count);
                self.read(claim);
            }
        }
    }

    /// Reads claimed blocks and keeps them; nothing when they cannot be read.
    fn read(&self, claim: Claim) -> Option<Arc<Stretch>> {
        let offset = claim.first.saturating_mul(BLOCK_BYTES);
        let left = self.volume.size_bytes().saturating_sub(offset);
        let length = to_usize(claim.count.saturating_mul(BLOCK_BYTES).min(left));
        let mut pending = Pending {
            ahead: self,
            claim: Some(claim),
        };
        let (mut bytes, read_before) = {
            let mut kept = self.lock();
            (kept.buffer(length), kept.blocks_read)
        };
        if bytes.is_empty() {
            bytes = vec![0; length];
        }
        self.volume.read_at(offset, bytes.get_mut(..length)?).ok()?;
        let stretch = Arc::new(Stretch {
            offset,
            bytes,
            length,
            read_before,
            used: AtomicU64::new(0),
        });
        if let Some(claim) = pending.claim.take() {
            self.lock().keep(&claim, &stretch);
        }
        Some(stretch)
    }

    /// Where the next of so many bytes come from; waits for blocks that are coming.
    fn source(&self, offset: u64, wanted: usize) -> Source {
        let block = offset / BLOCK_BYTES;
        let end = offset.saturating_add(to_u64(wanted));
        let mut kept = self.lock();
        loop {
            match kept.slots.get(&block) {
                Some(Slot::Here(stretch)) => {
                    let stretch = Arc::clone(stretch);
                    kept.touch(&stretch);
                    return Source::Held(stretch);
                }
                Some(Slot::Coming(_)) => {
                    let waited = self.changed.wait(kept);
                    kept = waited.unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        let first_whole = offset.div_ceil(BLOCK_BYTES);
        let whole = (end / BLOCK_BYTES).saturating_sub(first_whole);
        let is_long = kept.absent(first_whole, whole.min(DIRECT_BLOCKS)) >= DIRECT_BLOCKS;
        if is_long && first_whole == block {
            let absent = kept.absent(block, whole);
            return Source::Direct(to_usize(absent.saturating_mul(BLOCK_BYTES)));
        }
        let claim = if is_long {
            // The rest of it is read at once; only the block at the edge is shared with a neighbour.
            kept.slots.insert(block, Slot::Coming(1));
            Claim {
                first: block,
                count: 1,
            }
        } else {
            let wanted = end.div_ceil(BLOCK_BYTES).saturating_sub(block);
            kept.claim(block, wanted, self.block_count())
        };
        Source::Claimed(claim)
    }

    fn read_through(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let done = match self.source(at, rest.len()) {
                Source::Held(stretch) => stretch.fill(at, rest),
                Source::Direct(length) => self.direct(at, rest, length)?,
                Source::Claimed(claim) => {
                    let reach = claim.first.saturating_add(claim.count);
                    let reach = reach.saturating_mul(BLOCK_BYTES).saturating_sub(at);
                    match self.read(claim) {
                        Some(stretch) => stretch.fill(at, rest),
                        // Only what is needed: the damage may lie elsewhere.
                        None => self.direct(at, rest, to_usize(reach))?,
                    }
                }
            };
            if done == 0 {
                // Nothing of it is held after all.
                return self.volume.read_at(at, rest);
            }
            at = at.saturating_add(to_u64(done));
            rest = rest.get_mut(done..).unwrap_or_default();
        }
        Ok(())
    }

    fn direct(&self, offset: u64, buffer: &mut [u8], length: usize) -> block::Result<usize> {
        let length = length.min(buffer.len());
        let piece = buffer.get_mut(..length).unwrap_or_default();
        self.volume.read_at(offset, piece)?;
        Ok(length)
    }
}

impl ReadAt for ReadAhead {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let end = offset.checked_add(to_u64(buffer.len()));
        let is_inside = end.is_some_and(|end| end <= self.volume.size_bytes());
        if is_inside && self.is_on.load(Ordering::Relaxed) {
            return self.read_through(offset, buffer);
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
    use std::sync::atomic::AtomicUsize;

    /// A volume that counts how often it is read, and how much; each byte tells its place. One block may be damaged.
    struct Counted {
        reads: AtomicUsize,
        bytes: AtomicU64,
        size_bytes: u64,
        damaged: Option<u64>,
    }

    impl ReadAt for Counted {
        fn size_bytes(&self) -> u64 {
            self.size_bytes
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
            let end = offset + buffer.len() as u64;
            if end > self.size_bytes {
                return Err(block::Error::new(block::ErrorKind::OutOfRange, "behind it"));
            }
            if let Some(damaged) = self.damaged
                && offset < (damaged + 1) * BLOCK_BYTES
                && end > damaged * BLOCK_BYTES
            {
                return Err(block::Error::new(block::ErrorKind::Corrupt, "damaged"));
            }
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            fill(offset, buffer);
            Ok(())
        }
    }

    fn fill(offset: u64, buffer: &mut [u8]) {
        for (byte, at) in buffer.iter_mut().zip(offset..) {
            *byte = (at % 251) as u8;
        }
    }

    fn counted(size_bytes: u64, damaged: Option<u64>) -> (Arc<Counted>, ReadAhead) {
        let counted = Arc::new(Counted {
            reads: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            size_bytes,
            damaged,
        });
        let ahead = ReadAhead::new(counted.clone());
        ahead.begin();
        (counted, ahead)
    }

    fn check(ahead: &ReadAhead, offset: u64, length: usize) {
        let (mut bytes, mut wanted) = (vec![0; length], vec![0; length]);
        ahead.read_at(offset, &mut bytes).expect("read");
        fill(offset, &mut wanted);
        assert!(bytes == wanted, "{length} bytes at {offset}");
    }

    fn range(offset: u64, length_bytes: u64) -> VolumeRange {
        VolumeRange {
            offset,
            length_bytes,
        }
    }

    #[test]
    fn neighbours_are_read_once_and_what_is_far_is_not() {
        let (counted, ahead) = counted(100 << 20, None);
        let reads = || counted.reads.load(Ordering::Relaxed);
        let files: Vec<_> = (0..50).map(|number| range(number * 9000, 8000)).collect();
        ahead.load(files.clone());
        assert_eq!(reads(), 1);
        for file in &files {
            check(&ahead, file.offset, 8000);
        }
        assert_eq!(reads(), 1);
        check(&ahead, 90 << 20, 10);
        assert_eq!(reads(), 2);
        assert_eq!(
            counted.bytes.load(Ordering::Relaxed),
            8 * BLOCK_BYTES,
            "seven blocks and one far away"
        );
    }

    #[test]
    fn nothing_is_kept_before_it_is_asked_for() {
        let (counted, _) = counted(1 << 20, None);
        let ahead = ReadAhead::new(counted.clone());
        ahead.load(vec![range(0, 1000)]);
        check(&ahead, 10, 100);
        check(&ahead, 10, 100);
        assert_eq!(counted.bytes.load(Ordering::Relaxed), 200);
    }

    #[test]
    fn who_reads_on_gets_more_and_every_block_is_read_once() {
        let size = 32 << 20;
        let (counted, ahead) = counted(size, None);
        for at in (0..size).step_by(4096) {
            check(&ahead, at, 4096);
        }
        assert_eq!(counted.bytes.load(Ordering::Relaxed), size);
        let reads = counted.reads.load(Ordering::Relaxed);
        assert!(reads <= 36, "{reads} reads of 32 MiB");
    }

    #[test]
    fn long_reads_fetch_only_their_edges_for_others() {
        let (counted, ahead) = counted(16 << 20, None);
        check(&ahead, 1000, 4 << 20);
        check(&ahead, 1000 + (4 << 20), 4 << 20);
        let blocks = counted.bytes.load(Ordering::Relaxed) / BLOCK_BYTES;
        assert_eq!(blocks, 129, "the block between the two is read once");
        assert_eq!(counted.reads.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let size = 4 * KEPT_BYTES_MAX as u64;
        let (_, ahead) = counted(size, None);
        for at in (0..size).step_by(3 * BLOCK_BYTES as usize) {
            check(&ahead, at, 10);
            assert!(ahead.lock().held_bytes <= KEPT_BYTES_MAX);
        }
        let kept = ahead.lock();
        assert!(kept.slots.len() as u64 <= KEPT_BYTES_MAX as u64 / BLOCK_BYTES);
    }

    #[test]
    fn damage_is_told_to_whom_it_hits_and_to_nobody_else() {
        let (_, ahead) = counted(4 << 20, Some(10));
        ahead.load(vec![range(0, 20 * BLOCK_BYTES)]);
        check(&ahead, 0, 10 * BLOCK_BYTES as usize);
        check(&ahead, 11 * BLOCK_BYTES, 9 * BLOCK_BYTES as usize);
        let hit = ahead.read_at(10 * BLOCK_BYTES + 5, &mut [0; 10]);
        assert_eq!(
            hit.map_err(|error| error.kind()),
            Err(block::ErrorKind::Corrupt)
        );
        let outside = ahead.read_at(4 << 20, &mut []);
        assert!(outside.is_ok());
    }

    #[test]
    fn many_threads_read_the_same_bytes_and_fetch_them_once() {
        let size = 8 << 20;
        let (counted, ahead) = counted(size, None);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for at in (0..size).step_by(8192) {
                        check(&ahead, at, 8192);
                    }
                });
            }
        });
        assert_eq!(counted.bytes.load(Ordering::Relaxed), size);
    }

    #[test]
    fn the_last_block_of_a_volume_may_be_short() {
        let size = (1 << 20) + 777;
        let (counted, ahead) = counted(size, None);
        check(&ahead, size - 100, 100);
        check(&ahead, 0, (1 << 20) + 777);
        assert_eq!(counted.bytes.load(Ordering::Relaxed), size);
        assert!(ahead.read_at(size, &mut [0]).is_err());
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
