//! The source's side of one leaf: reads what must be read, and names every block that was looked at.
//!
//! ```text
//!   extents   ░░░░▓▓▓▓▓▓░░▓▓▓▓▓▓▓▓░░░░░░      ░ zero: not read, not hashed
//!   blocks    │    │    │    │    │    │      ▓ data: read in runs as long as they get, zero blocks found by
//!                                               comparing, the others hashed
//! ```
//!
//! One buffer of a leaf's size is used again and again; nothing is allocated per block.

use super::{LeafDescription, SlotSet};
use crate::geometry::{BLOCK_SIZE_BYTES, FANOUT, LEAF_SIZE_BYTES};
use crate::ranges::ByteRange;
use crate::tree::Node;
use crate::{BlockHash, Error, ErrorKind, LeafIndex, NodeHash, ReadAt, Result};

const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
const LEAF: usize = LEAF_SIZE_BYTES as usize;
/// What a block is compared with, piece by piece, to find out that it is zero.
static ZEROS: [u8; 4096] = [0; 4096];

/// What a scan cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes hashed.
    pub hashed_bytes: u64,
    /// Bytes known to be zero without reading.
    pub known_zero_bytes: u64,
}

/// A leaf's worth of disk in memory, with the names of its blocks. 8 MiB, to be kept and used again.
pub struct LeafScan {
    leaf: LeafIndex,
    looked: SlotSet,
    buffer: Vec<u8>,
    node: Node,
    stats: ScanStats,
    unreadable: Vec<ByteRange>,
}

/// What to do with a range that the source cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unreadable {
    /// The scan fails.
    #[default]
    Fail,
    /// It becomes zeros, block by block, and is recorded.
    Record,
}

impl Default for LeafScan {
    fn default() -> Self {
        Self::new()
    }
}

impl LeafScan {
    /// An empty scan; its buffer is allocated here.
    pub fn new() -> Self {
        Self {
            leaf: LeafIndex(0),
            looked: SlotSet::EMPTY,
            buffer: vec![0; LEAF],
            node: Node::zero(1),
            stats: ScanStats::default(),
            unreadable: Vec::new(),
        }
    }

    /// Reads and names the blocks `look` of a leaf. What lies behind the end of the disk is zero.
    ///
    /// # Errors
    /// Whatever the source answers, unless unreadable ranges are to be recorded;
    /// [`ErrorKind::Corrupt`] when the source describes extents that make no progress.
    pub fn scan(
        &mut self,
        source: &(impl ReadAt + ?Sized),
        leaf: LeafIndex,
        look: SlotSet,
        unreadable: Unreadable,
    ) -> Result<()> {
        self.leaf = leaf;
        self.looked = look;
        self.stats = ScanStats::default();
        self.unreadable.clear();
        let mut runs = look.bits();
        while runs != 0 {
            let first = runs.trailing_zeros() as usize;
            let length = (!(runs >> first)).trailing_zeros() as usize;
            let end = (first + length).min(FANOUT);
            runs &= !SlotSet::run(first, end).bits();
            let touched = self.read_run(source, first * BLOCK, end * BLOCK, unreadable)?;
            self.name_run(first, end, touched);
        }
        Ok(())
    }

    /// The leaf that was scanned.
    pub fn leaf(&self) -> LeafIndex {
        self.leaf
    }

    /// The slots that were looked at.
    pub fn looked(&self) -> SlotSet {
        self.looked
    }

    /// What the last scan cost.
    pub fn stats(&self) -> ScanStats {
        self.stats
    }

    /// Ranges that the last scan could not read, in ascending order.
    pub fn unreadable(&self) -> &[ByteRange] {
        &self.unreadable
    }

    /// The bytes of a block that was looked at and is not zero; of another one they mean nothing.
    ///
    /// # Panics
    /// If `slot` is not below [`FANOUT`].
    pub fn block(&self, slot: usize) -> &[u8] {
        &self.buffer[slot * BLOCK..(slot + 1) * BLOCK]
    }

    /// The name of a block that was looked at.
    ///
    /// # Panics
    /// If `slot` is not below [`FANOUT`].
    pub fn hash(&self, slot: usize) -> BlockHash {
        self.node.block(slot)
    }

    /// The leaf's name, when every slot was looked at.
    pub fn leaf_hash(&self) -> Option<NodeHash> {
        (self.looked == SlotSet::ALL).then(|| self.node.hash(1))
    }

    /// What was looked at, for the target.
    pub fn description(&self) -> LeafDescription {
        LeafDescription {
            leaf: self.leaf,
            slots: self.looked,
            hashes: self
                .looked
                .iter()
                .map(|slot| self.node.block(slot))
                .collect(),
        }
    }

    /// Fills the buffer from `start` to `end` and answers the slots that may hold data.
    fn read_run(
        &mut self,
        source: &(impl ReadAt + ?Sized),
        start: usize,
        end: usize,
        unreadable: Unreadable,
    ) -> Result<SlotSet> {
        let base = self.leaf.offset();
        let size = usize::try_from(source.size_bytes().saturating_sub(base)).unwrap_or(usize::MAX);
        let inside = size.clamp(start, end);
        let mut touched = SlotSet::EMPTY;
        let mut at = start;
        while at < inside {
            let limit = (inside - at) as u64;
            let extent = source.extent_at(base + at as u64, limit)?;
            let length = usize::try_from(extent.length_bytes)
                .unwrap_or(usize::MAX)
                .min(inside - at);
            if length == 0 {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "the source describes an empty extent at {}",
                        base + at as u64
                    ),
                ));
            }
            if extent.kind.is_zero() {
                self.stats.known_zero_bytes += length as u64;
                self.clear_shared_blocks(at, at + length);
            } else {
                self.read_data(source, at, length, unreadable)?;
                touched = touched.union(SlotSet::run(at / BLOCK, (at + length).div_ceil(BLOCK)));
            }
            at += length;
        }
        self.clear_shared_blocks(inside, end);
        Ok(touched)
    }

    /// Zeroes the first and last block's part of a zero extent: data may share those blocks, and only those.
    fn clear_shared_blocks(&mut self, from: usize, to: usize) {
        let head = from.next_multiple_of(BLOCK).min(to);
        let tail = (to - to % BLOCK).max(head);
        self.buffer[from..head].fill(0);
        self.buffer[tail..to].fill(0);
    }

    fn read_data(
        &mut self,
        source: &(impl ReadAt + ?Sized),
        at: usize,
        length: usize,
        unreadable: Unreadable,
    ) -> Result<()> {
        let base = self.leaf.offset();
        let whole = source.read_at(base + at as u64, &mut self.buffer[at..at + length]);
        self.stats.read_bytes += length as u64;
        let Err(error) = whole else { return Ok(()) };
        if unreadable == Unreadable::Fail || error.kind() == ErrorKind::Cancelled {
            return Err(error);
        }
        // Block by block, so that one bad sector costs one block.
        let mut from = at;
        while from < at + length {
            let to = (from + 1).next_multiple_of(BLOCK).min(at + length);
            if source
                .read_at(base + from as u64, &mut self.buffer[from..to])
                .is_err()
            {
                self.buffer[from..to].fill(0);
                let range = ByteRange {
                    offset: base + from as u64,
                    length_bytes: (to - from) as u64,
                };
                match self.unreadable.last_mut() {
                    Some(last) if last.end() == range.offset => {
                        last.length_bytes += range.length_bytes
                    }
                    _ => self.unreadable.push(range),
                }
            }
            from = to;
        }
        Ok(())
    }

    fn name_run(&mut self, first: usize, end: usize, touched: SlotSet) {
        for slot in first..end {
            let block = &self.buffer[slot * BLOCK..(slot + 1) * BLOCK];
            let hash = if !touched.contains(slot) || is_zero(block) {
                BlockHash::zero()
            } else {
                self.stats.hashed_bytes += BLOCK_SIZE_BYTES;
                BlockHash::of(block)
            };
            self.node.set_block(slot, hash);
        }
    }
}

/// Whether a block is all zeros; a block of data is left at its first 4 KiB that are not.
fn is_zero(block: &[u8]) -> bool {
    block
        .chunks(ZEROS.len())
        .all(|piece| *piece == ZEROS[..piece.len()])
}
