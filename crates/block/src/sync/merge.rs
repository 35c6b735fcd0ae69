//! The target's side of one leaf: what the base has there, what the source says, and which blocks are missing.
//!
//! ```text
//!   description ──► begin ──► wanted slots ──► accept(block)* ──► node
//!                               └ none: the node is known at once
//! ```
//!
//! A description is only a claim. A block counts when its bytes hash to what was claimed.

use super::{LeafDescription, SlotSet};
use crate::geometry::{self, BLOCK_SIZE_BYTES, FANOUT};
use crate::tree::Node;
use crate::{BlockHash, Error, ErrorKind, LeafIndex, Result};

/// A leaf on its way: its node, and the slots whose blocks have not come yet.
#[derive(Debug, Clone)]
pub struct LeafMerge {
    leaf: LeafIndex,
    node: Node,
    missing: SlotSet,
}

impl LeafMerge {
    /// Lays a description over the base's leaf. Missing is what differs from it there and is not zero.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the description contradicts itself or describes content behind the end.
    pub fn begin(base: Node, description: &LeafDescription, length_bytes: u64) -> Result<Self> {
        let leaf = description.leaf;
        if description.slots.len() != description.hashes.len() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the description of leaf {} has {} slots and {} hashes",
                    leaf.0,
                    description.slots.len(),
                    description.hashes.len()
                ),
            ));
        }
        let inside = geometry::block_count(length_bytes).saturating_sub(leaf.first_block().0);
        let inside = usize::try_from(inside).unwrap_or(FANOUT).min(FANOUT);
        let mut node = base;
        let mut missing = SlotSet::EMPTY;
        for slot in inside..FANOUT {
            node.set_block(slot, BlockHash::zero());
        }
        for (slot, hash) in description.slots.iter().zip(&description.hashes) {
            let zero = *hash == BlockHash::zero();
            if slot >= inside && !zero {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "slot {slot} of leaf {} lies behind the end and is not zero",
                        leaf.0
                    ),
                ));
            }
            if !zero && node.block(slot) != *hash {
                missing.insert(slot);
            }
            node.set_block(slot, *hash);
        }
        Ok(Self {
            leaf,
            node,
            missing,
        })
    }

    /// The leaf.
    pub fn leaf(&self) -> LeafIndex {
        self.leaf
    }

    /// Slots whose blocks are needed and have not come.
    pub fn missing(&self) -> SlotSet {
        self.missing
    }

    /// Takes a block after hashing it, and answers its hash.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it was not asked for, came already, has another length, or is not what was described.
    pub fn accept(&mut self, slot: usize, bytes: &[u8]) -> Result<BlockHash> {
        let place = || format!("block in slot {slot} of leaf {}", self.leaf.0);
        if !self.missing.contains(slot) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} was not asked for", place()),
            ));
        }
        if bytes.len() as u64 != BLOCK_SIZE_BYTES {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} has {} bytes", place(), bytes.len()),
            ));
        }
        let hash = BlockHash::of(bytes);
        if hash != self.node.block(slot) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} is not what was described", place()),
            ));
        }
        self.missing.remove(slot);
        Ok(hash)
    }

    /// The hash that a slot has or will have; `None` for one that does not exist.
    pub fn hash(&self, slot: usize) -> Option<BlockHash> {
        (slot < FANOUT).then(|| self.node.block(slot))
    }

    /// The leaf's node. It may be believed when nothing is missing.
    pub fn node(&self) -> &Node {
        &self.node
    }
}
