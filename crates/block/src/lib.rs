//! The vocabulary of Hikae: what a disk is when nobody asks where it lies.
//!
//! ```text
//!   disk bytes ──► blocks (64 KiB) ──► leaf nodes (128 block hashes, 8 MiB of disk)
//!                                          └─► upper nodes (128 node hashes) ──► top ──► DiskRoot
//! ```
//!
//! - [`ReadAt`], [`WriteAt`]: positioned bytes, the one shape that image readers, repositories and hosts share.
//! - [`BlockHash`], [`NodeHash`], [`DiskRoot`]: what content is called.
//! - [`tree`]: a disk's Merkle tree, read and built a path at a time.
//! - [`diff`]: where two trees differ. [`sync`]: how the next version travels. [`ChangedRanges`]: byte ranges.
//! - [`geometry`]: block and node sizes, indexes, and the arithmetic between them.
//!
//! **Invariants.** Nothing here does I/O of its own, is async, reads a clock or draws a random number.
//! A hash of one kind or level can never equal a hash of another kind or level for the same bytes.

pub mod diff;
mod error;
pub mod geometry;
mod hash;
mod io;
mod ranges;
pub mod sync;
pub mod tree;

pub use error::{Error, ErrorKind, Result};
pub use geometry::{BLOCK_SIZE_BYTES, BlockIndex, FANOUT, LEAF_SIZE_BYTES, LeafIndex};
pub use hash::{BlockHash, DiskRoot, HexError, NodeHash, OmissionHash};
pub use io::{Extent, ExtentKind, Origin, ReadAt, WriteAt, read_padded};
pub use ranges::{ByteRange, ChangedRanges};
pub use tree::{DiskTree, Node, NodeSink, NodeSource, TreeBuilder, TreeReader};
