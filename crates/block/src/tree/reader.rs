//! Walks one version: the hash or the node of any leaf, keeping the path of nodes from the top to the last one asked.
//!
//! Ascending walks load every node once. All-zero subtrees are answered without asking the source.

use super::{DiskTree, Node, NodeSource, check_length};
use crate::geometry::{FANOUT, MAX_HEIGHT};
use crate::{BlockHash, BlockIndex, LeafIndex, NodeHash, Result};

/// Neighbouring leaves of one hash: a single leaf, or as many as an all-zero subtree covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafRun {
    /// The first leaf.
    pub first: LeafIndex,
    /// How many, at least one.
    pub count: u64,
    /// The hash of each.
    pub hash: NodeHash,
}

/// Reads the tree of one version. Memory: one node per level.
#[derive(Clone)]
pub struct TreeReader<'a> {
    tree: DiskTree,
    nodes: &'a dyn NodeSource,
    /// The node last loaded at each level (index 0 = level 1), with its number among its level's nodes.
    path: Vec<Option<(u64, Node)>>,
}

/// How many nodes of `below` lie under one node of `level`, as a shift.
fn shift(level: u8, below: u8) -> u32 {
    u32::from(level.saturating_sub(below)) * FANOUT.ilog2()
}

impl<'a> TreeReader<'a> {
    /// A reader of `tree`, whose nodes `nodes` has.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unsupported`] when the tree says to be longer than any disk may be.
    pub fn new(tree: DiskTree, nodes: &'a dyn NodeSource) -> Result<Self> {
        check_length(tree.length_bytes)?;
        Ok(Self {
            tree,
            nodes,
            path: vec![None; usize::from(MAX_HEIGHT)],
        })
    }

    /// The tree that is read.
    pub fn tree(&self) -> DiskTree {
        self.tree
    }

    /// The name of node number `index` of `level`; the zero one above the top, beside it and behind the end.
    ///
    /// # Panics
    /// If the level is not within 1..=[`MAX_HEIGHT`].
    pub fn node_hash(&mut self, level: u8, index: u64) -> Result<NodeHash> {
        let height = self.tree.height();
        if level > height || (index >> shift(height, level)) != 0 {
            return Ok(NodeHash::zero(level));
        }
        Ok(self.descend(level, index)?.0)
    }

    /// Node number `index` of `level`.
    ///
    /// # Panics
    /// If the level is not within 1..=[`MAX_HEIGHT`].
    pub fn node(&mut self, level: u8, index: u64) -> Result<Node> {
        let hash = self.node_hash(level, index)?;
        Ok(self.load(level, index, hash)?.clone())
    }

    /// The name of a leaf; the zero leaf's behind the end.
    pub fn leaf_hash(&mut self, leaf: LeafIndex) -> Result<NodeHash> {
        self.node_hash(1, leaf.0)
    }

    /// A leaf node.
    pub fn leaf(&mut self, leaf: LeafIndex) -> Result<Node> {
        self.node(1, leaf.0)
    }

    /// The name of a block; the zero block's behind the end.
    pub fn block_hash(&mut self, block: BlockIndex) -> Result<BlockHash> {
        let leaf = block.leaf();
        let hash = self.leaf_hash(leaf)?;
        Ok(self.load(1, leaf.0, hash)?.block(block.slot()))
    }

    /// The leaf at `first` and, when it lies in an all-zero subtree, as many zero leaves as that covers.
    /// `None` behind the end.
    pub fn run_at(&mut self, first: LeafIndex) -> Result<Option<LeafRun>> {
        let left = self.tree.leaf_count().saturating_sub(first.0);
        if left == 0 {
            return Ok(None);
        }
        let (hash, zero_level) = self.descend(1, first.0)?;
        let count = match zero_level {
            Some(level) => {
                let covered = 1u64 << shift(level, 1);
                (covered - first.0 % covered).min(left)
            }
            None => 1,
        };
        Ok(Some(LeafRun { first, count, hash }))
    }

    /// Runs of leaves from `first` to the end.
    pub fn runs(
        &mut self,
        first: LeafIndex,
    ) -> impl Iterator<Item = Result<LeafRun>> + use<'a, '_> {
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let run = self.run_at(next?).transpose();
            next = match &run {
                Some(Ok(run)) => Some(LeafIndex(run.first.0.saturating_add(run.count))),
                _ => None,
            };
            run
        })
    }

    /// The hash of a node inside the tree, and the level of the zero subtree that it lies in, if it does.
    fn descend(&mut self, target: u8, index: u64) -> Result<(NodeHash, Option<u8>)> {
        let mut hash = self.tree.top;
        let mut level = self.tree.height();
        loop {
            if hash == NodeHash::zero(level) {
                return Ok((NodeHash::zero(target), Some(level)));
            }
            if level <= target {
                return Ok((hash, None));
            }
            let below = index >> shift(level - 1, target);
            let slot = usize::try_from(below % FANOUT as u64).unwrap_or(0);
            hash = self
                .load(level, index >> shift(level, target), hash)?
                .child(slot);
            level -= 1;
        }
    }

    fn load(&mut self, level: u8, index: u64, hash: NodeHash) -> Result<&Node> {
        let place = &mut self.path[usize::from(level) - 1];
        if !matches!(place, Some((at, _)) if *at == index) {
            let node = if hash == NodeHash::zero(level) {
                Node::zero(level)
            } else {
                self.nodes.node(level, hash)?
            };
            *place = Some((index, node));
        }
        // Filled just above, or it matched.
        Ok(&place.get_or_insert_with(|| (index, Node::zero(level))).1)
    }
}
