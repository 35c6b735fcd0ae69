//! Reading a whole version, or what a caller wants of it, as fast as cores and store allow.
//!
//! ```text
//!   one walker (under a lock) ──► next leaf that is not all zeros ──► worker: fetch its blocks ──► sink, on the worker
//! ```
//!
//! Leaves are handed out in disk order, so that packs are read forwards; they arrive at the sink in any order.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use block::geometry::{FANOUT, LEAF_SIZE_BYTES};
use block::tree::{Node, TreeReader};
use block::{BlockHash, BlockIndex, LeafIndex, NodeHash};

use crate::format::blob::BLOCK_BYTES;
use crate::{BlobName, Error, ErrorKind, Result};

use super::{VersionReader, Wanted, fetch};

/// How a bulk read works.
#[derive(Debug, Clone)]
pub struct BulkRead {
    /// Leaves read at once, each with about 12 MiB of buffers. More than cores, so that reading and decoding overlap.
    pub workers: usize,
    /// The first leaf.
    pub first: LeafIndex,
    /// The first leaf that is not read any more; the end of the disk when absent.
    pub end: Option<LeafIndex>,
}

impl Default for BulkRead {
    fn default() -> Self {
        let workers = crate::repository::core_count()
            .saturating_mul(2)
            .clamp(2, 8);
        Self {
            workers,
            first: LeafIndex(0),
            end: None,
        }
    }
}

/// What a bulk read did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BulkStats {
    /// Leaves that are not all zeros.
    pub leaves: u64,
    /// Blocks read, decoded and handed over.
    pub blocks: u64,
}

/// The blocks of one leaf that were wanted.
pub struct LeafBlocks<'a> {
    /// Which leaf.
    pub leaf: LeafIndex,
    /// Its node: the hash of every block, wanted or not.
    pub node: &'a Node,
    bytes: &'a [u8],
    read: &'a [bool; FANOUT],
    length_bytes: u64,
}

impl<'a> LeafBlocks<'a> {
    /// Whether the block in this slot was read.
    pub fn is_read(&self, slot: usize) -> bool {
        self.read.get(slot).copied().unwrap_or(false)
    }

    /// Runs of neighbouring blocks that were read: disk offset and bytes. The last block of a disk is cut at its end.
    pub fn runs(&self) -> impl Iterator<Item = (u64, &'a [u8])> + '_ {
        let mut slot = 0;
        std::iter::from_fn(move || {
            while slot < FANOUT && !self.is_read(slot) {
                slot += 1;
            }
            let first = slot;
            while slot < FANOUT && self.is_read(slot) {
                slot += 1;
            }
            let offset = self
                .leaf
                .offset()
                .saturating_add(u64::try_from(first * BLOCK_BYTES).unwrap_or(u64::MAX));
            let left =
                usize::try_from(self.length_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
            let bytes = self.bytes.get(first * BLOCK_BYTES..slot * BLOCK_BYTES)?;
            let bytes = bytes.get(..bytes.len().min(left))?;
            (!bytes.is_empty()).then_some((offset, bytes))
        })
    }
}

/// Where the walk is.
struct Walk<'a> {
    tree: TreeReader<'a>,
    next: LeafIndex,
    end: u64,
}

impl Walk<'_> {
    /// The next leaf that is not all zeros.
    fn next_leaf(&mut self) -> Result<Option<(LeafIndex, Node)>> {
        while self.next.0 < self.end {
            let Some(run) = self.tree.run_at(self.next)? else {
                return Ok(None);
            };
            if run.hash == NodeHash::zero(1) {
                self.next = LeafIndex(run.first.0.saturating_add(run.count));
                continue;
            }
            let leaf = self.next;
            let node = self.tree.leaf(leaf)?;
            self.next = LeafIndex(leaf.0.saturating_add(1));
            return Ok(Some((leaf, node)));
        }
        Ok(None)
    }
}

/// What the workers share.
struct Work<'a> {
    reader: &'a VersionReader,
    walk: Mutex<Walk<'a>>,
    wanted: &'a (dyn Fn(BlockIndex, BlockHash) -> bool + Sync),
    sink: &'a (dyn Fn(&LeafBlocks<'_>) -> Result<()> + Sync),
    failed: Mutex<Option<Error>>,
    stop: AtomicBool,
    leaves: AtomicU64,
    blocks: AtomicU64,
}

impl VersionReader {
    /// Reads every block that is not zeros and that `wanted` says yes to, and gives them to `sink` leaf by leaf, from many
    /// threads, in no order. A leaf of which nothing is wanted is still shown, with no runs.
    ///
    /// # Errors
    /// The first failure of a read or of the sink; nothing is given to the sink after it, apart from what is under way.
    pub fn read_leaves(
        &self,
        options: &BulkRead,
        wanted: &(dyn Fn(BlockIndex, BlockHash) -> bool + Sync),
        sink: &(dyn Fn(&LeafBlocks<'_>) -> Result<()> + Sync),
    ) -> Result<BulkStats> {
        let count = self.disk.tree().leaf_count();
        let end = options.end.map_or(count, |end| end.0.min(count));
        let work = Work {
            reader: self,
            walk: Mutex::new(Walk {
                tree: self.tree()?,
                next: options.first,
                end,
            }),
            wanted,
            sink,
            failed: Mutex::new(None),
            stop: AtomicBool::new(false),
            leaves: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
        };
        let threads = usize::try_from(end.saturating_sub(options.first.0)).unwrap_or(usize::MAX);
        std::thread::scope(|scope| {
            for _ in 0..options.workers.clamp(1, 32).min(threads) {
                scope.spawn(|| work.run());
            }
        });
        let failed = work
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match failed {
            Some(error) => Err(error),
            None => Ok(BulkStats {
                leaves: work.leaves.load(Ordering::Relaxed),
                blocks: work.blocks.load(Ordering::Relaxed),
            }),
        }
    }
}

impl Work<'_> {
    fn run(&self) {
        let mut buffer = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            match self.step(&mut buffer) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(error);
                    return;
                }
            }
        }
    }

    /// One leaf; `false` when there is none left.
    fn step(&self, buffer: &mut Vec<u8>) -> Result<bool> {
        self.reader.session.check()?;
        let next = {
            // A panic of another worker ends the whole read when the scope joins it.
            let mut walk = self
                .walk
                .lock()
                .map_err(|_| Error::new(ErrorKind::Local, "a reading thread panicked"))?;
            walk.next_leaf()?
        };
        let Some((leaf, node)) = next else {
            return Ok(false);
        };
        buffer.resize(usize::try_from(LEAF_SIZE_BYTES).unwrap_or(0), 0);
        let mut read = [false; FANOUT];
        let mut wanted = Vec::new();
        for (slot, plain) in buffer.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            let hash = node.block(slot);
            let at = u64::try_from(slot).unwrap_or(0);
            let block = BlockIndex(leaf.first_block().0.saturating_add(at));
            if hash == BlockHash::zero() || !(self.wanted)(block, hash) {
                continue;
            }
            if let Some(flag) = read.get_mut(slot) {
                *flag = true;
            }
            wanted.push(Wanted {
                name: BlobName::Block(hash),
                plain,
            });
        }
        let count = u64::try_from(wanted.len()).unwrap_or(0);
        fetch(&self.reader.repository, wanted)?;
        self.leaves.fetch_add(1, Ordering::Relaxed);
        self.blocks.fetch_add(count, Ordering::Relaxed);
        let length_bytes = self.reader.disk.length_bytes;
        (self.sink)(&LeafBlocks {
            leaf,
            node: &node,
            bytes: buffer,
            read: &read,
            length_bytes,
        })?;
        Ok(true)
    }
}
