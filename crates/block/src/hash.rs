//! What content is called: BLAKE3-256 with a derive-key context per kind and level.
//!
//! | name | BLAKE3 derive-key context | over |
//! |---|---|---|
//! | [`BlockHash`] | `hikae v1 block` | 65,536 bytes, a short tail padded with zeros |
//! | [`NodeHash`] of level *n* | `hikae v1 node level n` | 4,096 bytes: 128 child hashes in disk order |
//! | [`OmissionHash`] | `hikae v1 omissions` | the encoded left-out ranges |
//! | [`DiskRoot`] | `hikae v1 disk root` | `length_bytes: u64 LE ‖ height: u8 ‖ top node hash ‖ omission hash (zeros when nothing was left out)` |
//!
//! The contexts are public: hashes hide nothing and need no secret, so that an agent, a copy and a tape agree on roots.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use crate::geometry::{BLOCK_SIZE_BYTES, FANOUT, MAX_HEIGHT, NODE_SIZE_BYTES};

/// A text that is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 64 hexadecimal digits")]
pub struct HexError;

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Length in bytes.
            pub const LENGTH: usize = 32;
            /// Takes the bytes for what they are said to be.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = HexError;
            fn from_str(text: &str) -> Result<Self, HexError> {
                blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(|_| HexError)
            }
        }
    };
}

hash_type!(
    /// Name of one 64 KiB block.
    BlockHash
);
hash_type!(
    /// Name of one node of a disk tree; its level is part of what was hashed.
    NodeHash
);
hash_type!(
    /// Commitment to the ranges that a version leaves out on purpose.
    OmissionHash
);
hash_type!(
    /// Name of a whole disk at one instant: equal roots mean equal disks, byte for byte and in length.
    DiskRoot
);

static BLOCK_HASHER: LazyLock<blake3::Hasher> =
    LazyLock::new(|| blake3::Hasher::new_derive_key("hikae v1 block"));

static NODE_HASHERS: LazyLock<Vec<blake3::Hasher>> = LazyLock::new(|| {
    (0..=MAX_HEIGHT)
        .map(|level| blake3::Hasher::new_derive_key(&format!("hikae v1 node level {level}")))
        .collect()
});

/// Hashes of all-zero subtrees, by level; index 0 is the zero block.
static ZERO_HASHES: LazyLock<Vec<[u8; 32]>> = LazyLock::new(|| {
    let block = vec![0u8; usize::try_from(BLOCK_SIZE_BYTES).unwrap_or(0)];
    let mut hashes = vec![BlockHash::of(&block).0];
    for level in 1..=MAX_HEIGHT {
        let below = hashes[usize::from(level) - 1];
        let mut node = Vec::with_capacity(NODE_SIZE_BYTES);
        for _ in 0..FANOUT {
            node.extend_from_slice(&below);
        }
        hashes.push(NodeHash::of(level, &node).0);
    }
    hashes
});

impl BlockHash {
    /// Hashes one block.
    ///
    /// # Panics
    /// If `block` is not exactly one block long: that is a bug in the caller, never a matter of content.
    pub fn of(block: &[u8]) -> Self {
        assert_eq!(
            block.len() as u64,
            BLOCK_SIZE_BYTES,
            "a block is hashed whole"
        );
        let mut hasher = BLOCK_HASHER.clone();
        hasher.update(block);
        Self(*hasher.finalize().as_bytes())
    }

    /// The well-known hash of the zero block, which is never stored, read or sent.
    pub fn zero() -> Self {
        Self(ZERO_HASHES[0])
    }
}

impl NodeHash {
    /// Hashes one encoded node of `level` (1 = leaf).
    ///
    /// # Panics
    /// If the node is not exactly [`NODE_SIZE_BYTES`] long or the level is not within 1..=[`MAX_HEIGHT`].
    pub fn of(level: u8, node: &[u8]) -> Self {
        assert_eq!(node.len(), NODE_SIZE_BYTES, "a node is hashed whole");
        assert!((1..=MAX_HEIGHT).contains(&level), "a node has a level");
        let mut hasher = NODE_HASHERS[usize::from(level)].clone();
        hasher.update(node);
        Self(*hasher.finalize().as_bytes())
    }

    /// The well-known hash of an all-zero subtree of `level`.
    ///
    /// # Panics
    /// If the level is not within 1..=[`MAX_HEIGHT`].
    pub fn zero(level: u8) -> Self {
        assert!((1..=MAX_HEIGHT).contains(&level), "a node has a level");
        Self(ZERO_HASHES[usize::from(level)])
    }
}

impl OmissionHash {
    /// Commits to an encoded list of left-out ranges.
    pub fn of(encoded: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("hikae v1 omissions");
        hasher.update(encoded);
        Self(*hasher.finalize().as_bytes())
    }
}

impl DiskRoot {
    /// Binds the top node to the disk's length, its tree's height and what was left out.
    pub fn of(
        length_bytes: u64,
        height: u8,
        top: NodeHash,
        omissions: Option<OmissionHash>,
    ) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("hikae v1 disk root");
        hasher.update(&length_bytes.to_le_bytes());
        hasher.update(&[height]);
        hasher.update(&top.0);
        hasher.update(&omissions.map_or([0; 32], |hash| hash.0));
        Self(*hasher.finalize().as_bytes())
    }
}
