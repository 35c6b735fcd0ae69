//! A disk of a version that remembers which of its blocks were looked at, over a memory of blocks that the versions of
//! one run share.
//!
//! ```text
//!   file system ─► RecordedDisk ─ small read ─► BlockMemory (by hash) ─ miss ─► repository
//!                       │       └ large read ─────────────────────────────────► repository, many blocks at once
//!                       └ notes the range      a block that did not change between versions is fetched once
//! ```
//!
//! **Invariants.** Who asks for the hash of a block depends on the block as who reads it does: both are noted. What a walk
//! answers is a function of the blocks that were noted meanwhile and of the disks' lengths, as
//! long as the disk was opened for that walk: then a version in which those blocks have the same hashes gives the same
//! answer, and nothing of it needs to be read. Memory is bounded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::geometry::{BLOCK_SIZE_BYTES, FANOUT};
use block::tree::{DiskTree, TreeReader};
use block::{BlockHash, BlockIndex, ByteRange, ChangedRanges, Extent, LeafIndex, ReadAt};
use repo::{Repository, VersionReader};

use crate::Result;

/// Blocks that are kept: 64 MiB.
const BLOCKS_MAX: usize = 1024;
/// Notes that are held before they are merged.
const NOTES_MAX: usize = 1 << 15;
/// Merged notes beyond which neighbours are taken together: then more than was read counts as read.
const RANGES_MAX: usize = 1 << 16;

type Block = Arc<Vec<u8>>;

/// Blocks read lately, by name.
#[derive(Default)]
pub(super) struct BlockMemory {
    kept: Mutex<Kept>,
    fetched: AtomicU64,
}

#[derive(Default)]
struct Kept {
    blocks: HashMap<BlockHash, (u64, Block)>,
    moment: u64,
}

impl BlockMemory {
    /// Blocks that were asked of the repository so far.
    pub(super) fn fetched_blocks(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block(&self, hash: BlockHash, reader: &VersionReader) -> repo::Result<Block> {
        {
            let mut kept = self.lock();
            kept.moment = kept.moment.wrapping_add(1);
            let now = kept.moment;
            if let Some((used, block)) = kept.blocks.get_mut(&hash) {
                *used = now;
                return Ok(Arc::clone(block));
            }
        }
        let block = reader.block(hash)?;
        self.fetched.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.lock();
        if kept.blocks.len() >= BLOCKS_MAX {
            // Half of them at once, so that making room is rare.
            let mut ages: Vec<u64> = kept.blocks.values().map(|(used, _)| *used).collect();
            let half = ages.len() / 2;
            let (_, median, _) = ages.select_nth_unstable(half);
            let median = *median;
            kept.blocks.retain(|_, (used, _)| *used > median);
        }
        let now = kept.moment;
        kept.blocks.insert(hash, (now, Arc::clone(&block)));
        Ok(block)
    }
}

/// One disk of a version.
pub(super) struct RecordedDisk {
    reader: VersionReader,
    memory: Arc<BlockMemory>,
    notes: Mutex<Vec<ByteRange>>,
}

impl RecordedDisk {
    pub(super) fn new(reader: VersionReader, memory: Arc<BlockMemory>) -> Self {
        Self {
            reader,
            memory,
            notes: Mutex::default(),
        }
    }

    /// The names of its blocks; those asked for count as looked at.
    pub(super) fn hashes(&self) -> Result<NotedHashes<'_>> {
        Ok(NotedHashes {
            disk: self,
            tree: self.reader.tree()?,
        })
    }

    /// What was looked at so far, in whole blocks.
    pub(super) fn noted(&self) -> Result<ChangedRanges> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let merged = self.merged(&notes)?;
        *notes = merged.iter().collect();
        Ok(merged)
    }

    fn merged(&self, notes: &[ByteRange]) -> block::Result<ChangedRanges> {
        let all = ChangedRanges::new(notes.iter().copied())?;
        let whole = all.rounded_to_blocks(self.reader.size_bytes());
        Ok(whole.coarsened(RANGES_MAX))
    }

    fn note(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = notes.last().is_some_and(|last| {
            last.offset <= offset && offset.saturating_add(length_bytes) <= last.end()
        });
        if is_known {
            return Ok(());
        }
        let start = offset - offset % BLOCK_SIZE_BYTES;
        let end = offset.saturating_add(length_bytes);
        if let Some(last) = notes.last_mut()
            && last.end() == start
        {
            let more = end.saturating_sub(start).next_multiple_of(BLOCK_SIZE_BYTES);
            last.length_bytes = last.length_bytes.saturating_add(more);
            return Ok(());
        }
        notes.push(ByteRange {
            offset: start,
            length_bytes: end.saturating_sub(start).next_multiple_of(BLOCK_SIZE_BYTES),
        });
        if notes.len() >= NOTES_MAX {
            let merged = self.merged(&notes)?;
            // Merging that saves little must not happen at every note.
            if merged.len() > NOTES_MAX / 2 {
                *notes = merged.coarsened(NOTES_MAX / 2).iter().collect();
            } else {
                *notes = merged.iter().collect();
            }
        }
        Ok(())
    }

    fn read_small(&self, offset: u64, buffer: &mut [u8]) -> repo::Result<()> {
        let mut tree = self.reader.tree()?;
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let index = BlockIndex::holding(at);
            let inside = usize::try_from(at - index.offset()).unwrap_or(usize::MAX);
            let whole = usize::try_from(BLOCK_SIZE_BYTES).unwrap_or(usize::MAX);
            let length = rest.len().min(whole.saturating_sub(inside));
            let (piece, after) = rest.split_at_mut(length);
            let hash = tree.block_hash(index)?;
            if hash == BlockHash::zero() {
                piece.fill(0);
            } else {
                let block = self.memory.block(hash, &self.reader)?;
                let bytes = block.get(inside..inside.saturating_add(length));
                let bytes =
                    bytes.ok_or_else(|| repo::Error::corrupt(hash, "shorter than a block"))?;
                piece.copy_from_slice(bytes);
            }
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
            rest = after;
        }
        Ok(())
    }
}

/// Walks over the names of the blocks of a disk, and notes which were asked for.
pub(super) struct NotedHashes<'d> {
    disk: &'d RecordedDisk,
    tree: TreeReader<'d>,
}

impl NotedHashes<'_> {
    /// The name of a block.
    pub(super) fn block_hash(&mut self, block: BlockIndex) -> Result<BlockHash> {
        self.disk.note(block.offset(), BLOCK_SIZE_BYTES)?;
        Ok(self.tree.block_hash(block)?)
    }
}

impl ReadAt for RecordedDisk {
    fn size_bytes(&self) -> u64 {
        self.reader.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let is_inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.size_bytes());
        if !is_inside || buffer.is_empty() {
            // The version says what is wrong with it.
            return self.reader.read_at(offset, buffer);
        }
        self.note(offset, length)?;
        if length > 2 * BLOCK_SIZE_BYTES {
            self.memory
                .fetched
                .fetch_add(length.div_ceil(BLOCK_SIZE_BYTES), Ordering::Relaxed);
            return self.reader.read_at(offset, buffer);
        }
        Ok(self.read_small(offset, buffer)?)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let extent = self.reader.extent_at(offset, limit_bytes)?;
        self.note(offset, extent.length_bytes)?;
        Ok(extent)
    }
}

/// Whether two disks have the same bytes in these ranges, as their hashes tell: no data is read.
pub(super) fn are_equal_in(
    repository: &Repository,
    (a, b): (DiskTree, DiskTree),
    ranges: &ChangedRanges,
) -> Result<bool> {
    if a == b {
        return Ok(true);
    }
    if a.length_bytes != b.length_bytes {
        return Ok(false);
    }
    let (mut a, mut b) = (
        TreeReader::new(a, repository)?,
        TreeReader::new(b, repository)?,
    );
    for range in ranges.iter() {
        let mut at = range.offset;
        while at < range.end() {
            let leaf = LeafIndex::holding(at);
            let next = LeafIndex(leaf.0.saturating_add(1)).offset();
            if a.leaf_hash(leaf)? != b.leaf_hash(leaf)? {
                let last = range.end().min(next).div_ceil(BLOCK_SIZE_BYTES);
                let blocks = BlockIndex::holding(at).0..last;
                debug_assert!(blocks.clone().count() <= FANOUT);
                for block in blocks {
                    if a.block_hash(BlockIndex(block))? != b.block_hash(BlockIndex(block))? {
                        return Ok(false);
                    }
                }
            }
            at = next;
        }
    }
    Ok(true)
}
