//! Sizes, indexes, and the arithmetic between bytes, blocks and nodes. Pure.
//!
//! | level | name | covers |
//! |---|---|---|
//! | 0 | block | 64 KiB |
//! | 1 | leaf node | 128 blocks, 8 MiB |
//! | 2 | node | 128 leaves, 1 GiB |
//! | 3 | node | 128 GiB |
//! | 4 | node | 16 TiB |
//! | 5 | node | 2 PiB |
//!
//! The tree of a disk has the smallest height of at least 1 whose top covers it; everything behind the end of the disk
//! reads as zeros, so an edge node has zero children and needs no special form.

/// Bytes of one block.
pub const BLOCK_SIZE_BYTES: u64 = 64 * 1024;
/// Children of one node.
pub const FANOUT: usize = 128;
/// Bytes of disk under one leaf node.
pub const LEAF_SIZE_BYTES: u64 = BLOCK_SIZE_BYTES * FANOUT as u64;
/// Bytes of one encoded node: its children's hashes, one after the other.
pub const NODE_SIZE_BYTES: usize = FANOUT * 32;
/// The greatest height of a tree: 2 PiB, far above the 64 TiB of a VHDX.
pub const MAX_HEIGHT: u8 = 5;
/// The greatest disk, in bytes.
pub const MAX_DISK_SIZE_BYTES: u64 = covered_bytes(MAX_HEIGHT);

/// Number of a block on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

/// Number of a leaf node on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeafIndex(pub u64);

impl BlockIndex {
    /// The block that holds this byte.
    pub const fn holding(offset: u64) -> Self {
        Self(offset / BLOCK_SIZE_BYTES)
    }
    /// Its first byte.
    pub const fn offset(self) -> u64 {
        self.0.saturating_mul(BLOCK_SIZE_BYTES)
    }
    /// The leaf above it.
    pub const fn leaf(self) -> LeafIndex {
        LeafIndex(self.0 / FANOUT as u64)
    }
    /// Which child of its leaf it is.
    pub const fn slot(self) -> usize {
        (self.0 % FANOUT as u64) as usize
    }
}

impl LeafIndex {
    /// The leaf that holds this byte.
    pub const fn holding(offset: u64) -> Self {
        Self(offset / LEAF_SIZE_BYTES)
    }
    /// Its first byte.
    pub const fn offset(self) -> u64 {
        self.0.saturating_mul(LEAF_SIZE_BYTES)
    }
    /// Its first block.
    pub const fn first_block(self) -> BlockIndex {
        BlockIndex(self.0.saturating_mul(FANOUT as u64))
    }
}

/// Bytes of disk under one entry of `level` (0 = block).
pub const fn covered_bytes(level: u8) -> u64 {
    let mut bytes = BLOCK_SIZE_BYTES;
    let mut at = 0;
    while at < level {
        bytes = bytes.saturating_mul(FANOUT as u64);
        at += 1;
    }
    bytes
}

/// Blocks of a disk, the last one possibly padded.
pub const fn block_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_SIZE_BYTES)
}

/// Leaf nodes of a disk.
pub const fn leaf_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(LEAF_SIZE_BYTES)
}

/// Height of the tree of a disk: the level of its top node, at least 1.
pub const fn height(size_bytes: u64) -> u8 {
    let mut level = 1;
    while covered_bytes(level) < size_bytes && level < MAX_HEIGHT {
        level += 1;
    }
    level
}
