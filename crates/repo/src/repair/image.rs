//! Lost blobs from an image of a protected disk: it is hashed once, and what is wanted of it is remembered by place.
//!
//! **Invariants.** Memory is what is wanted, and one node per level. A block is hashed again when it is handed out: the image may
//! have changed since.

use std::collections::{HashMap, HashSet};

use block::geometry::{BLOCK_SIZE_BYTES, FANOUT};
use block::tree::Node;
use block::{BlockHash, NodeHash, ReadAt, read_padded};

use crate::format::blob::BLOCK_BYTES;
use crate::{BlobName, Result};

/// Blobs of an image that are wanted: where blocks lie, and nodes made from their hashes.
#[derive(Default)]
pub(super) struct ImageBlobs<'a> {
    blocks: HashMap<BlockHash, (&'a dyn ReadAt, u64)>,
    nodes: HashMap<BlobName, Node>,
}

impl<'a> ImageBlobs<'a> {
    /// Hashes an image and remembers what of it is wanted. Memory: what is wanted, and one node per level.
    pub(super) fn learn(&mut self, image: &'a dyn ReadAt, wanted: &[BlobName]) -> Result<()> {
        let wanted: HashSet<&BlobName> = wanted.iter().collect();
        let size = image.size_bytes();
        let mut block = vec![0u8; BLOCK_BYTES];
        let mut level: Vec<[u8; 32]> = Vec::new();
        let mut offset = 0u64;
        let mut leaves: Vec<NodeHash> = Vec::new();
        while offset < size {
            let extent = image.extent_at(offset, BLOCK_SIZE_BYTES)?;
            let hash = if extent.kind.is_zero() && extent.length_bytes >= BLOCK_SIZE_BYTES {
                BlockHash::zero()
            } else {
                read_padded(image, offset, &mut block)?;
                BlockHash::of(&block)
            };
            if wanted.contains(&BlobName::Block(hash)) {
                self.blocks.insert(hash, (image, offset));
            }
            level.push(*hash.as_bytes());
            offset = offset.saturating_add(BLOCK_SIZE_BYTES);
            if level.len() == FANOUT || offset >= size {
                leaves.push(self.close(1, &mut level, &wanted)?);
            }
        }
        let mut height = 1u8;
        let mut below = leaves;
        while below.len() > 1 || height < block::geometry::height(size) {
            height = height.saturating_add(1);
            let mut above = Vec::with_capacity(below.len().div_ceil(FANOUT));
            for children in below.chunks(FANOUT) {
                let mut level: Vec<[u8; 32]> =
                    children.iter().map(|child| *child.as_bytes()).collect();
                above.push(self.close(height, &mut level, &wanted)?);
            }
            below = above;
        }
        Ok(())
    }

    /// Makes a node of hashes, padded with zeros of the level below.
    fn close(
        &mut self,
        level: u8,
        children: &mut Vec<[u8; 32]>,
        wanted: &HashSet<&BlobName>,
    ) -> Result<NodeHash> {
        let zero = match level {
            1 => *BlockHash::zero().as_bytes(),
            _ => *NodeHash::zero(level.saturating_sub(1)).as_bytes(),
        };
        children.resize(FANOUT, zero);
        let node = Node::from_bytes(children.as_flattened())?;
        children.clear();
        let hash = node.hash(level);
        let name = BlobName::Node { level, hash };
        if wanted.contains(&name) {
            self.nodes.insert(name, node);
        }
        Ok(hash)
    }

    pub(super) fn get(&self, name: &BlobName) -> Result<Option<Vec<u8>>> {
        if let Some(node) = self.nodes.get(name) {
            return Ok(Some(node.as_bytes().to_vec()));
        }
        let BlobName::Block(hash) = name else {
            return Ok(None);
        };
        let Some((image, offset)) = self.blocks.get(hash) else {
            return Ok(None);
        };
        let mut block = vec![0u8; BLOCK_BYTES];
        read_padded(*image, *offset, &mut block)?;
        // The image may have changed since it was hashed.
        Ok(name.names(&block).then_some(block))
    }
}
