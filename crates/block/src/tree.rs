//! The Merkle tree of a disk: what a version is, how it is read, and how the next one is built.
//!
//! ```text
//!   level 3 (top)          [ c0 c1 0 0 … 0 ]                 a node = 128 child hashes, 4096 bytes
//!                            │  └────────────┐
//!   level 2          [ l0 l1 … l127 ]  [ l0 0 … ]            0 = well-known hash of an all-zero subtree:
//!                      │                                         never stored, never asked for
//!   level 1 (leaf)   [ b0 b1 … b127 ]                        8 MiB of disk
//!                      │
//!   level 0           64 KiB block
//! ```
//!
//! - [`Node`]: 128 hashes. [`DiskTree`]: length and top hash; with the left-out ranges they make the [`DiskRoot`].
//! - [`NodeSource`], [`NodeSink`]: where nodes come from and go to. [`NodeMap`]: both, in memory.
//! - [`TreeReader`]: walks one version, keeping one path of nodes.
//! - [`TreeBuilder`]: next version from a base and replaced leaves in ascending order; emits new nodes only.
//!
//! **Invariants.** Everything behind the end of a disk hashes as zero, so that a tree depends on content and length
//! alone, never on how it came to be. The height follows from the length ([`geometry::height`]). Equal subtrees have
//! equal hashes, so that unchanged ones are shared and skipped. Memory is a path of nodes, whatever the disk's size.
//!
//! It does not read disks, store blobs, or know what a hash's bytes are kept in.

mod builder;
mod memory;
mod reader;

pub use builder::{TreeBuilder, TreeBuilderStats};
pub use memory::{NoNodes, NodeMap};
pub use reader::{LeafRun, TreeReader};

use crate::geometry::{self, FANOUT, MAX_DISK_SIZE_BYTES, NODE_SIZE_BYTES};
use crate::{BlockHash, DiskRoot, Error, ErrorKind, NodeHash, OmissionHash, Result};

/// One node: the hashes of 128 children in disk order. Boxed, so that moving one is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct Node(Box<[[u8; 32]; FANOUT]>);

impl Node {
    /// The node of `level` over nothing but zeros.
    ///
    /// # Panics
    /// If the level is not within 1..=[`geometry::MAX_HEIGHT`].
    pub fn zero(level: u8) -> Self {
        let child = if level == 1 {
            *BlockHash::zero().as_bytes()
        } else {
            *NodeHash::zero(level - 1).as_bytes()
        };
        Self(Box::new([child; FANOUT]))
    }

    /// Takes an encoded node; its hash is the caller's to check.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] unless there are exactly [`NODE_SIZE_BYTES`].
    pub fn from_bytes(encoded: &[u8]) -> Result<Self> {
        let (children, rest) = encoded.as_chunks::<32>();
        match <&[[u8; 32]; FANOUT]>::try_from(children) {
            Ok(children) if rest.is_empty() => Ok(Self(Box::new(*children))),
            _ => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "a tree node of {} bytes instead of {NODE_SIZE_BYTES}",
                    encoded.len()
                ),
            )),
        }
    }

    /// The encoded node: [`NODE_SIZE_BYTES`] bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }

    /// Its name as a node of `level`.
    ///
    /// # Panics
    /// If the level is not within 1..=[`geometry::MAX_HEIGHT`].
    pub fn hash(&self, level: u8) -> NodeHash {
        NodeHash::of(level, self.as_bytes())
    }

    /// Child of a leaf node.
    ///
    /// # Panics
    /// If `slot` is not below [`FANOUT`].
    pub fn block(&self, slot: usize) -> BlockHash {
        BlockHash::from_bytes(self.0[slot])
    }

    /// Sets a child of a leaf node.
    ///
    /// # Panics
    /// If `slot` is not below [`FANOUT`].
    pub fn set_block(&mut self, slot: usize, hash: BlockHash) {
        self.0[slot] = *hash.as_bytes();
    }

    /// Child of a node above the leaves.
    ///
    /// # Panics
    /// If `slot` is not below [`FANOUT`].
    pub fn child(&self, slot: usize) -> NodeHash {
        NodeHash::from_bytes(self.0[slot])
    }

    /// Sets a child of a node above the leaves.
    ///
    /// # Panics
    /// If `slot` is not below [`FANOUT`].
    pub fn set_child(&mut self, slot: usize, hash: NodeHash) {
        self.0[slot] = *hash.as_bytes();
    }

    /// The children of a leaf node, in disk order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockHash> + '_ {
        self.0.iter().map(|bytes| BlockHash::from_bytes(*bytes))
    }

    /// The children of a node above the leaves, in disk order.
    pub fn children(&self) -> impl Iterator<Item = NodeHash> + '_ {
        self.0.iter().map(|bytes| NodeHash::from_bytes(*bytes))
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", blake3::hash(self.as_bytes()).to_hex())
    }
}

/// The content of a disk at one instant: how long it is and what its tree's top is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskTree {
    /// Length of the disk in bytes.
    pub length_bytes: u64,
    /// Name of the top node, whose level is [`DiskTree::height`].
    pub top: NodeHash,
}

impl DiskTree {
    /// A disk of zeros.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] above [`MAX_DISK_SIZE_BYTES`].
    pub fn zero(length_bytes: u64) -> Result<Self> {
        check_length(length_bytes)?;
        Ok(Self {
            length_bytes,
            top: NodeHash::zero(geometry::height(length_bytes)),
        })
    }

    /// Level of the top node.
    pub fn height(&self) -> u8 {
        geometry::height(self.length_bytes)
    }

    /// Number of leaf nodes.
    pub fn leaf_count(&self) -> u64 {
        geometry::leaf_count(self.length_bytes)
    }

    /// Whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        self.top == NodeHash::zero(self.height())
    }

    /// The root of a version with this content.
    pub fn root(&self, omissions: Option<OmissionHash>) -> DiskRoot {
        DiskRoot::of(self.length_bytes, self.height(), self.top, omissions)
    }
}

pub(crate) fn check_length(length_bytes: u64) -> Result<()> {
    if length_bytes > MAX_DISK_SIZE_BYTES {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("a disk of {length_bytes} bytes, above the limit of {MAX_DISK_SIZE_BYTES}"),
        ));
    }
    Ok(())
}

/// Where nodes come from: a repository, a cache, a peer.
///
/// An implementer **must** answer with the node whose hash at `level` is `hash`, checked, or with an error
/// ([`ErrorKind::NotFound`] when there is none). It **may rely on** never being asked for an all-zero node.
pub trait NodeSource: Send + Sync {
    /// Fetches one node.
    fn node(&self, level: u8, hash: NodeHash) -> Result<Node>;
}

/// Where new nodes go. A node is put after its children, and possibly more than once.
pub trait NodeSink {
    /// Takes one node; `hash` is its name at `level`, never an all-zero one.
    fn put_node(&mut self, level: u8, hash: NodeHash, node: &Node) -> Result<()>;
}

impl<T: NodeSource + ?Sized> NodeSource for &T {
    fn node(&self, level: u8, hash: NodeHash) -> Result<Node> {
        (**self).node(level, hash)
    }
}

impl<T: NodeSource + ?Sized> NodeSource for std::sync::Arc<T> {
    fn node(&self, level: u8, hash: NodeHash) -> Result<Node> {
        (**self).node(level, hash)
    }
}

impl<T: NodeSink + ?Sized> NodeSink for &mut T {
    fn put_node(&mut self, level: u8, hash: NodeHash, node: &Node) -> Result<()> {
        (**self).put_node(level, hash, node)
    }
}
