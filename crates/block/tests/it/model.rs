//! The naive model: a disk is a map from block number to a fill byte, its tree is hashed level by level in full.

use std::collections::BTreeMap;

use block::geometry::{self, BLOCK_SIZE_BYTES, FANOUT};
use block::tree::{DiskTree, Node, NodeMap, NodeSink};
use block::{BlockHash, Error, ErrorKind, Extent, ExtentKind, LeafIndex, NodeHash, ReadAt};

/// A disk of blocks that are each filled with one byte; absent blocks are zero.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub length_bytes: u64,
    pub blocks: BTreeMap<u64, u8>,
}

impl Disk {
    pub fn new(length_bytes: u64, blocks: impl IntoIterator<Item = (u64, u8)>) -> Self {
        let count = geometry::block_count(length_bytes);
        let blocks = blocks
            .into_iter()
            .filter(|(at, fill)| *at < count && *fill != 0)
            .collect();
        Self {
            length_bytes,
            blocks,
        }
    }

    /// The bytes of a block, zeros behind the end.
    pub fn block(&self, index: u64) -> Vec<u8> {
        let size = usize::try_from(BLOCK_SIZE_BYTES).unwrap();
        let mut bytes = vec![0; size];
        let inside = self
            .length_bytes
            .saturating_sub(index * BLOCK_SIZE_BYTES)
            .min(BLOCK_SIZE_BYTES);
        if let Some(fill) = self.blocks.get(&index) {
            bytes[..usize::try_from(inside).unwrap()].fill(*fill);
        }
        bytes
    }

    pub fn leaf(&self, leaf: u64) -> Node {
        let mut node = Node::zero(1);
        let first = leaf * FANOUT as u64;
        for (index, _) in self.blocks.range(first..first + FANOUT as u64) {
            let slot = usize::try_from(index - first).unwrap();
            node.set_block(slot, BlockHash::of(&self.block(*index)));
        }
        node
    }

    /// Hashes everything that is not zero, level by level.
    pub fn tree(&self, nodes: &mut NodeMap) -> DiskTree {
        let mut level_hashes: BTreeMap<u64, NodeHash> = BTreeMap::new();
        let leaves: std::collections::BTreeSet<u64> = self
            .blocks
            .keys()
            .map(|block| block / FANOUT as u64)
            .collect();
        for leaf in leaves {
            let node = self.leaf(leaf);
            let hash = node.hash(1);
            if hash != NodeHash::zero(1) {
                nodes.put_node(1, hash, &node).unwrap();
                level_hashes.insert(leaf, hash);
            }
        }
        let height = geometry::height(self.length_bytes);
        for level in 2..=height {
            let mut above: BTreeMap<u64, Node> = BTreeMap::new();
            for (index, hash) in &level_hashes {
                above
                    .entry(index / FANOUT as u64)
                    .or_insert_with(|| Node::zero(level))
                    .set_child(usize::try_from(index % FANOUT as u64).unwrap(), *hash);
            }
            level_hashes = above
                .into_iter()
                .map(|(index, node)| {
                    let hash = node.hash(level);
                    nodes.put_node(level, hash, &node).unwrap();
                    (index, hash)
                })
                .collect();
        }
        let top = level_hashes
            .get(&0)
            .copied()
            .unwrap_or_else(|| NodeHash::zero(height));
        DiskTree {
            length_bytes: self.length_bytes,
            top,
        }
    }

    /// Leaves where two disks differ, looking at everything, in the longer one's numbering.
    pub fn differing_leaves(&self, other: &Self) -> Vec<LeafIndex> {
        let mut leaves = std::collections::BTreeSet::new();
        for block in self.differing_blocks(other) {
            leaves.insert(block / FANOUT as u64);
        }
        leaves.into_iter().map(LeafIndex).collect()
    }

    pub fn differing_blocks(&self, other: &Self) -> Vec<u64> {
        let all: std::collections::BTreeSet<u64> = self
            .blocks
            .keys()
            .chain(other.blocks.keys())
            .copied()
            .collect();
        all.into_iter()
            .filter(|at| self.block(*at) != other.block(*at))
            .collect()
    }
}

/// A disk as a source: what it knows about its extents, which blocks fail, and how much was read.
pub struct Source {
    pub disk: Disk,
    pub extents: bool,
    pub bad: std::collections::BTreeSet<u64>,
    pub read_bytes: std::sync::atomic::AtomicU64,
}

impl Source {
    pub fn new(disk: &Disk, extents: bool) -> Self {
        let (bad, read_bytes) = Default::default();
        Self {
            disk: disk.clone(),
            extents,
            bad,
            read_bytes,
        }
    }
}

impl ReadAt for Source {
    fn size_bytes(&self) -> u64 {
        self.disk.length_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let end = offset + buffer.len() as u64;
        assert!(end <= self.disk.length_bytes, "a read behind the end");
        self.read_bytes
            .fetch_add(buffer.len() as u64, std::sync::atomic::Ordering::Relaxed);
        buffer.fill(0);
        let first = offset / BLOCK_SIZE_BYTES;
        if let Some(bad) = self.bad.range(first..end.div_ceil(BLOCK_SIZE_BYTES)).next() {
            return Err(Error::new(
                ErrorKind::Io,
                format!("block {bad} cannot be read"),
            ));
        }
        for (block, fill) in self
            .disk
            .blocks
            .range(first..end.div_ceil(BLOCK_SIZE_BYTES))
        {
            let from = (block * BLOCK_SIZE_BYTES).max(offset) - offset;
            let to = ((block + 1) * BLOCK_SIZE_BYTES).min(end) - offset;
            buffer[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()].fill(*fill);
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let left = self
            .disk
            .length_bytes
            .saturating_sub(offset)
            .min(limit_bytes);
        assert!(left > 0, "an extent behind the end");
        if !self.extents {
            return Ok(Extent {
                offset,
                length_bytes: left,
                kind: ExtentKind::Data,
            });
        }
        let block = offset / BLOCK_SIZE_BYTES;
        let next = self.disk.blocks.range(block..).next().map(|(at, _)| *at);
        let (kind, end) = match next {
            Some(at) if at == block => (ExtentKind::Data, (block + 1) * BLOCK_SIZE_BYTES),
            Some(at) => (ExtentKind::Unallocated, at * BLOCK_SIZE_BYTES),
            None => (ExtentKind::Zero, u64::MAX),
        };
        Ok(Extent {
            offset,
            length_bytes: left.min(end - offset),
            kind,
        })
    }
}
