//! A small cache of blocks over a volume, so that readers of small structures may read them as often as they like.
//!
//! ```text
//!   reader ─ get(block) ─► cached? ─ yes ─► Arc<[u8]>
//!                             └ no ─► volume.read_at ─► kept, the least recently used goes
//! ```
//!
//! **Invariants.** At most `capacity_blocks` blocks of `block_bytes` are kept, the least recently used goes first. A
//! block that reaches behind the end of the volume is an error, never zeros. Large reads of contents go past it.

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

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::ReadAt;

use crate::{Error, Result};

/// Blocks of a volume, the last used ones in memory.
pub struct BlockCache {
    volume: Arc<dyn ReadAt>,
    block_bytes: usize,
    capacity_blocks: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Block number to its bytes and when it was last used.
    blocks: HashMap<u64, (Arc<[u8]>, u64)>,
    /// When used to block number; each moment is used once.
    order: BTreeMap<u64, u64>,
    moment: u64,
}

impl BlockCache {
    /// A cache of at most `capacity_blocks` (at least one) blocks of `block_bytes` (at least one) each.
    pub fn new(volume: Arc<dyn ReadAt>, block_bytes: usize, capacity_blocks: usize) -> Self {
        Self {
            volume,
            block_bytes: block_bytes.max(1),
            capacity_blocks: capacity_blocks.max(1),
            kept: Mutex::default(),
        }
    }

    /// What it caches.
    pub fn volume(&self) -> &Arc<dyn ReadAt> {
        &self.volume
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// A whole block. The last one of a volume may be cut by its end: then what is there.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when it lies wholly behind the end; what the volume says.
    pub fn block(&self, number: u64) -> Result<Arc<[u8]>> {
        if let Some(found) = self.lock().touch(number) {
            return Ok(found);
        }
        let width = u64::try_from(self.block_bytes).unwrap_or(u64::MAX);
        let outside = || {
            Error::corrupt(format!(
                "block {number} of {} bytes lies behind the end of a volume of {} bytes",
                self.block_bytes,
                self.volume.size_bytes()
            ))
        };
        let offset = number.checked_mul(width).ok_or_else(outside)?;
        let left = self.volume.size_bytes().saturating_sub(offset);
        let length = usize::try_from(left.min(width)).unwrap_or(0);
        if length == 0 {
            return Err(outside());
        }
        let mut bytes = vec![0; length];
        self.volume.read_at(offset, &mut bytes)?;
        let bytes: Arc<[u8]> = bytes.into();
        self.lock().keep(number, &bytes, self.capacity_blocks);
        Ok(bytes)
    }

    /// Fills a buffer from any offset, through the cache. For small reads.
    ///
    /// # Errors
    /// As [`Self::block`]; [`crate::ErrorKind::Corrupt`] when the range reaches behind the end.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let width = u64::try_from(self.block_bytes).unwrap_or(u64::MAX);
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let mut position = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let number = position.checked_div(width).unwrap_or(0);
            let within =
                usize::try_from(position.checked_rem(width).unwrap_or(0)).unwrap_or(usize::MAX);
            let block = self.block(number)?;
            let Some(part) = block.get(within..).filter(|part| !part.is_empty()) else {
                return Err(Error::corrupt(format!(
                    "{length} bytes at {offset} reach behind the end of a volume of {} bytes",
                    self.volume.size_bytes()
                )));
            };
            let count = part.len().min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            if let Some(source) = part.get(..count) {
                head.copy_from_slice(source);
            }
            position = position.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            rest = tail;
        }
        Ok(())
    }

    /// A panic of another thread leaves at worst a block less in the cache: what is there is always whole.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn touch(&mut self, number: u64) -> Option<Arc<[u8]>> {
        self.moment = self.moment.wrapping_add(1);
        let (bytes, used) = self.blocks.get_mut(&number)?;
        self.order.remove(used);
        *used = self.moment;
        self.order.insert(self.moment, number);
        Some(Arc::clone(bytes))
    }

    fn keep(&mut self, number: u64, bytes: &Arc<[u8]>, capacity_blocks: usize) {
        self.moment = self.moment.wrapping_add(1);
        let moment = self.moment;
        if let Some((_, used)) = self.blocks.insert(number, (Arc::clone(bytes), moment)) {
            self.order.remove(&used);
        }
        self.order.insert(moment, number);
        while self.blocks.len() > capacity_blocks {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            self.blocks.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Counted {
        bytes: Vec<u8>,
        reads: AtomicU64,
    }

    impl ReadAt for Counted {
        fn size_bytes(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let start = usize::try_from(offset).expect("small");
            buffer.copy_from_slice(&self.bytes[start..start + buffer.len()]);
            Ok(())
        }
    }

    fn counted(length: usize) -> Arc<Counted> {
        Arc::new(Counted {
            bytes: (0..length).map(|at| (at % 251) as u8).collect(),
            reads: AtomicU64::new(0),
        })
    }

    #[test]
    fn what_was_used_last_stays_and_the_oldest_goes() {
        let volume = counted(64);
        let cache = BlockCache::new(volume.clone(), 16, 2);
        for number in [0, 1, 0, 2, 0] {
            cache.block(number).expect("inside");
        }
        assert_eq!(volume.reads.load(Ordering::Relaxed), 3, "0 and 1 and 2");
        cache.block(1).expect("inside");
        assert_eq!(volume.reads.load(Ordering::Relaxed), 4, "1 had to go for 2");
    }

    #[test]
    fn reads_cross_blocks_and_stop_at_the_end() {
        let volume = counted(40);
        let cache = BlockCache::new(volume.clone(), 16, 4);
        for start in 0..40_usize {
            for end in start..=40 {
                let mut buffer = vec![0; end - start];
                cache.read(start as u64, &mut buffer).expect("inside");
                assert_eq!(buffer, volume.bytes[start..end]);
            }
        }
        for (offset, length) in [
            (39, 2),
            (40, 1),
            (1 << 40, 1),
            (u64::MAX, 1),
            (u64::MAX - 1, 9),
        ] {
            let error = cache
                .read(offset, &mut vec![0; length])
                .expect_err("behind the end");
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
        }
    }
}
