//! Blocks that were read lately, shared by all disks that are served, and claims on those that are being read.
//!
//! ```text
//!   absent ──claim──► loading ──publish──► held ──(second chance)──► absent
//!     ▲                  │ the claim is dropped: the read failed
//!     └──────────────────┘
//! ```
//!
//! **Invariants.** A block is read by one thread at a time: others wait for it, and read for themselves when that failed.
//! Who claims publishes or drops before it waits for anybody else, so that nobody waits in a circle. Bytes held are bounded.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use block::BLOCK_SIZE_BYTES;

use crate::pool::Pool;

/// Fewest blocks that are kept, so that what was just read ahead is there when it is asked for.
const BLOCKS_MIN: u64 = 256;
/// Most threads that read ahead.
const AHEAD_THREADS_MAX: usize = 4;

/// A block of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    disk: u64,
    block: u64,
}

enum Slot {
    Loading,
    Held { bytes: Arc<[u8]>, is_used: bool },
}

#[derive(Default)]
struct State {
    slots: HashMap<Key, Slot>,
    /// The blocks held, in the order in which they came.
    order: VecDeque<Key>,
}

/// What is known of a block.
pub(crate) enum Look {
    /// Here it is.
    Held(Arc<[u8]>),
    /// Somebody reads it.
    Loading,
    /// Whoever looked reads it now.
    Claimed,
}

/// How a cache fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Blocks that were there when they were asked for.
    pub hits: u64,
    /// Blocks that were read for somebody.
    pub misses: u64,
    /// Blocks that were read ahead.
    pub ahead: u64,
}

/// The cache, and the threads that fill it ahead of readers.
pub struct ReadCache {
    state: Mutex<State>,
    changed: Condvar,
    blocks_max: usize,
    disks: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    ahead: AtomicU64,
    pool: Pool,
}

impl ReadCache {
    /// A cache of at most so many bytes, though of no fewer than 16 MiB.
    pub fn new(size_bytes: u64) -> Arc<Self> {
        let blocks = (size_bytes / BLOCK_SIZE_BYTES).max(BLOCKS_MIN);
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            blocks_max: usize::try_from(blocks).unwrap_or(usize::MAX),
            disks: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
            pool: Pool::new(cores.clamp(2, AHEAD_THREADS_MAX)),
        })
    }

    /// How it fared until now.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            ahead: self.ahead.load(Ordering::Relaxed),
        }
    }

    /// Ends the threads that read ahead; disks can still be read.
    pub fn stop(&self) {
        self.pool.stop();
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn next_disk(&self) -> u64 {
        self.disks.fetch_add(1, Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing of these blocks is held or being read.
    pub(crate) fn is_cold(&self, disk: u64, blocks: Range<u64>) -> bool {
        let state = self.state();
        blocks
            .into_iter()
            .all(|block| !state.slots.contains_key(&Key { disk, block }))
    }

    /// Looks for blocks, and claims those that are absent: each must be given to a [`Claim`] at once.
    pub(crate) fn look(&self, disk: u64, blocks: Range<u64>) -> Vec<Look> {
        let mut state = self.state();
        let looks: Vec<Look> = blocks
            .map(|block| {
                let key = Key { disk, block };
                match state.slots.get_mut(&key) {
                    Some(Slot::Held { bytes, is_used }) => {
                        *is_used = true;
                        Look::Held(Arc::clone(bytes))
                    }
                    Some(Slot::Loading) => Look::Loading,
                    None => {
                        state.slots.insert(key, Slot::Loading);
                        Look::Claimed
                    }
                }
            })
            .collect();
        looks
    }

    pub(crate) fn count(&self, looks: &[Look], is_ahead: bool) {
        let claimed = looks
            .iter()
            .filter(|look| matches!(look, Look::Claimed))
            .count();
        let read = u64::try_from(claimed).unwrap_or(0);
        let found = u64::try_from(looks.len().saturating_sub(claimed)).unwrap_or(0);
        if is_ahead {
            self.ahead.fetch_add(read, Ordering::Relaxed);
        } else {
            self.misses.fetch_add(read, Ordering::Relaxed);
            self.hits.fetch_add(found, Ordering::Relaxed);
        }
    }

    /// Waits for a block that somebody reads; `None` when that failed or it has gone again.
    pub(crate) fn wait_for(&self, disk: u64, block: u64) -> Option<Arc<[u8]>> {
        let key = Key { disk, block };
        let mut state = self.state();
        loop {
            match state.slots.get(&key) {
                Some(Slot::Held { bytes, .. }) => return Some(Arc::clone(bytes)),
                Some(Slot::Loading) => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                None => return None,
            }
        }
    }

    fn publish(&self, key: Key, bytes: Arc<[u8]>) {
        let mut state = self.state();
        let is_used = false;
        state.slots.insert(key, Slot::Held { bytes, is_used });
        state.order.push_back(key);
        while state.order.len() > self.blocks_max {
            let Some(oldest) = state.order.pop_front() else {
                break;
            };
            match state.slots.get_mut(&oldest) {
                Some(Slot::Held { is_used, .. }) if *is_used => {
                    *is_used = false;
                    state.order.push_back(oldest);
                }
                _ => {
                    state.slots.remove(&oldest);
                }
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Forgets what is held of a disk.
    pub(crate) fn forget(&self, disk: u64) {
        let mut state = self.state();
        state.order.retain(|key| key.disk != disk);
        let is_other =
            |key: &Key, slot: &mut Slot| key.disk != disk || matches!(slot, Slot::Loading);
        state.slots.retain(is_other);
    }
}

/// Neighbouring blocks that one thread is reading. What is not published when it is dropped is absent again.
pub(crate) struct Claim<'a> {
    cache: &'a ReadCache,
    disk: u64,
    left: Range<u64>,
}

impl<'a> Claim<'a> {
    /// Takes over what a look claimed: runs of neighbours, in order.
    pub(crate) fn runs(cache: &'a ReadCache, disk: u64, first: u64, looks: &[Look]) -> Vec<Self> {
        let mut claims: Vec<Self> = Vec::new();
        for (block, look) in (first..).zip(looks) {
            if !matches!(look, Look::Claimed) {
                continue;
            }
            let after = block.saturating_add(1);
            match claims.last_mut() {
                Some(last) if last.left.end == block => last.left.end = after,
                _ => claims.push(Self {
                    cache,
                    disk,
                    left: block..after,
                }),
            }
        }
        claims
    }

    /// What is yet to be read.
    pub(crate) fn blocks(&self) -> Range<u64> {
        self.left.clone()
    }

    /// The next block was read.
    pub(crate) fn publish_next(&mut self, bytes: &[u8]) {
        if let Some(block) = self.left.next() {
            let disk = self.disk;
            self.cache.publish(Key { disk, block }, Arc::from(bytes));
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.left.is_empty() {
            return;
        }
        let mut state = self.cache.state();
        for block in self.left.clone() {
            let disk = self.disk;
            state.slots.remove(&Key { disk, block });
        }
        drop(state);
        self.cache.changed.notify_all();
    }
}
