//! What a blob is called, how long it is, and how it is compressed.

use std::fmt;

use block::geometry::{BLOCK_SIZE_BYTES, MAX_HEIGHT, NODE_SIZE_BYTES};
use block::{BlockHash, NodeHash};

/// Bytes of one block, for buffers.
pub(crate) const BLOCK_BYTES: usize = {
    assert!(
        BLOCK_SIZE_BYTES == 65_536,
        "the format stands on 64 KiB blocks"
    );
    65_536
};

/// Name of a blob: what it is and the hash of its plain bytes. The level is part of the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlobName {
    /// A block of a disk, 65,536 bytes.
    Block(BlockHash),
    /// A node of a disk tree, 4,096 bytes.
    Node {
        /// 1 = leaf.
        level: u8,
        /// Its hash, under that level.
        hash: NodeHash,
    },
}

impl BlobName {
    /// The name with this level byte (0 = block) and hash; `None` when no tree has such a level.
    pub fn from_parts(level: u8, hash: [u8; 32]) -> Option<Self> {
        match level {
            0 => Some(Self::Block(BlockHash::from_bytes(hash))),
            1..=MAX_HEIGHT => Some(Self::Node {
                level,
                hash: NodeHash::from_bytes(hash),
            }),
            _ => None,
        }
    }

    /// 0 for a block, the level for a node.
    pub fn level(&self) -> u8 {
        match self {
            Self::Block(_) => 0,
            Self::Node { level, .. } => *level,
        }
    }

    /// The hash, whatever it is of.
    pub fn hash_bytes(&self) -> &[u8; 32] {
        match self {
            Self::Block(hash) => hash.as_bytes(),
            Self::Node { hash, .. } => hash.as_bytes(),
        }
    }

    /// Bytes of the plain blob.
    pub fn plain_len(&self) -> usize {
        match self {
            Self::Block(_) => BLOCK_BYTES,
            Self::Node { .. } => NODE_SIZE_BYTES,
        }
    }

    /// Whether these are the bytes that the name says.
    pub fn names(&self, plain: &[u8]) -> bool {
        if plain.len() != self.plain_len() {
            return false;
        }
        match self {
            Self::Block(hash) => BlockHash::of(plain) == *hash,
            Self::Node { level, hash } => NodeHash::of(*level, plain) == *hash,
        }
    }

    /// Whether it is the well-known name of zeros, which are never stored.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Block(hash) => *hash == BlockHash::zero(),
            Self::Node { level, hash } => *hash == NodeHash::zero(*level),
        }
    }
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(hash) => write!(f, "block {hash}"),
            Self::Node { level, hash } => write!(f, "node {hash} of level {level}"),
        }
    }
}

/// How a blob's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As they are.
    Stored,
    /// One Zstandard frame.
    Zstd,
    /// One raw LZ4 block.
    Lz4,
}

impl Codec {
    /// Its byte in frames and directories.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Stored => 0,
            Self::Zstd => 1,
            Self::Lz4 => 2,
        }
    }

    /// From its byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Stored),
            1 => Some(Self::Zstd),
            2 => Some(Self::Lz4),
            _ => None,
        }
    }
}
