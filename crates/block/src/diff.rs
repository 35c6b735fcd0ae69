//! Where two versions differ: both trees are walked together, equal subtrees are skipped.
//!
//! ```text
//!   a: [ x  y  z ]      y ≠ y' only: one node of each side is loaded per level, whatever lies under x and z
//!   b: [ x  y' z ]
//! ```
//!
//! Versions of different length are compared as if the shorter one went on with zeros; a caller who cares compares the
//! lengths itself. Memory: the differing siblings along one path.

use crate::geometry::{BLOCK_SIZE_BYTES, FANOUT};
use crate::ranges::ByteRange;
use crate::tree::{DiskTree, Node, NodeSource, check_length};
use crate::{LeafIndex, NodeHash, Result};

/// A leaf that differs, with its name on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafDifference {
    /// Which leaf.
    pub leaf: LeafIndex,
    /// Its name in the first tree.
    pub a: NodeHash,
    /// Its name in the second.
    pub b: NodeHash,
}

/// One side of a pair of subtrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subtree {
    /// A real node, perhaps the zero one.
    Named(NodeHash),
    /// Above the top of the lower tree: its only child that is not zero is the first.
    Above,
}

struct Side<'a> {
    tree: DiskTree,
    nodes: &'a dyn NodeSource,
}

impl Side<'_> {
    fn at_height(&self, level: u8) -> Subtree {
        if level > self.tree.height() {
            Subtree::Above
        } else {
            Subtree::Named(self.tree.top)
        }
    }

    fn children(&self, level: u8, subtree: Subtree) -> Result<Vec<Subtree>> {
        match subtree {
            Subtree::Named(hash) => {
                let node = load(self.nodes, level, hash)?;
                Ok(node.children().map(Subtree::Named).collect())
            }
            Subtree::Above => {
                let mut children = vec![Subtree::Named(NodeHash::zero(level - 1)); FANOUT];
                children[0] = self.at_height(level - 1);
                Ok(children)
            }
        }
    }
}

fn load(nodes: &dyn NodeSource, level: u8, hash: NodeHash) -> Result<Node> {
    if hash == NodeHash::zero(level) {
        Ok(Node::zero(level))
    } else {
        nodes.node(level, hash)
    }
}

/// Differing leaves in ascending order. Stops after the first error.
pub struct LeafDifferences<'a> {
    a: Side<'a>,
    b: Side<'a>,
    /// What is still to be looked at, the next one last: level, number at that level, both sides.
    stack: Vec<(u8, u64, Subtree, Subtree)>,
}

impl<'a> LeafDifferences<'a> {
    /// Compares `a`, whose nodes `a_nodes` has, with `b`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unsupported`] when a tree says to be longer than any disk may be.
    pub fn new(
        a: DiskTree,
        a_nodes: &'a dyn NodeSource,
        b: DiskTree,
        b_nodes: &'a dyn NodeSource,
    ) -> Result<Self> {
        check_length(a.length_bytes)?;
        check_length(b.length_bytes)?;
        let level = a.height().max(b.height());
        let (a, b) = (
            Side {
                tree: a,
                nodes: a_nodes,
            },
            Side {
                tree: b,
                nodes: b_nodes,
            },
        );
        let stack = vec![(level, 0, a.at_height(level), b.at_height(level))];
        Ok(Self { a, b, stack })
    }

    fn step(&mut self) -> Result<Option<LeafDifference>> {
        while let Some((level, index, a, b)) = self.stack.pop() {
            if a == b {
                continue;
            }
            match (level, a, b) {
                (1, Subtree::Named(a), Subtree::Named(b)) => {
                    return Ok(Some(LeafDifference {
                        leaf: LeafIndex(index),
                        a,
                        b,
                    }));
                }
                _ => {
                    let first = index.saturating_mul(FANOUT as u64);
                    let pairs = self
                        .a
                        .children(level, a)?
                        .into_iter()
                        .zip(self.b.children(level, b)?);
                    let below = (first..).zip(pairs).filter(|(_, (a, b))| a != b);
                    let below: Vec<_> = below.map(|(at, (a, b))| (level - 1, at, a, b)).collect();
                    self.stack.extend(below.into_iter().rev());
                }
            }
        }
        Ok(None)
    }
}

impl Iterator for LeafDifferences<'_> {
    type Item = Result<LeafDifference>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.stack.clear();
        }
        step.transpose()
    }
}

/// Differing ranges in ascending order, in whole blocks cut off at the longer version's end; neighbours are merged.
pub struct BlockDifferences<'a> {
    leaves: LeafDifferences<'a>,
    end: u64,
    open: Option<ByteRange>,
    ready: std::collections::VecDeque<ByteRange>,
}

impl<'a> BlockDifferences<'a> {
    /// Compares `a`, whose nodes `a_nodes` has, with `b`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unsupported`] when a tree says to be longer than any disk may be.
    pub fn new(
        a: DiskTree,
        a_nodes: &'a dyn NodeSource,
        b: DiskTree,
        b_nodes: &'a dyn NodeSource,
    ) -> Result<Self> {
        let end = a.length_bytes.max(b.length_bytes);
        let leaves = LeafDifferences::new(a, a_nodes, b, b_nodes)?;
        Ok(Self {
            leaves,
            end,
            open: None,
            ready: std::collections::VecDeque::new(),
        })
    }

    fn take_leaf(&mut self, difference: LeafDifference) -> Result<()> {
        let a = load(self.leaves.a.nodes, 1, difference.a)?;
        let b = load(self.leaves.b.nodes, 1, difference.b)?;
        let first = difference.leaf.first_block().0;
        for (block, (a, b)) in (first..).zip(a.blocks().zip(b.blocks())) {
            let offset = block.saturating_mul(BLOCK_SIZE_BYTES);
            if a == b || offset >= self.end {
                continue;
            }
            let length_bytes = BLOCK_SIZE_BYTES.min(self.end - offset);
            match &mut self.open {
                Some(open) if open.end() == offset => open.length_bytes += length_bytes,
                open => self.ready.extend(open.replace(ByteRange {
                    offset,
                    length_bytes,
                })),
            }
        }
        Ok(())
    }
}

impl Iterator for BlockDifferences<'_> {
    type Item = Result<ByteRange>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            match self.leaves.next() {
                Some(Ok(difference)) => {
                    if let Err(error) = self.take_leaf(difference) {
                        self.leaves.stack.clear();
                        self.open = None;
                        return Some(Err(error));
                    }
                }
                Some(Err(error)) => {
                    self.open = None;
                    return Some(Err(error));
                }
                None => return self.open.take().map(Ok),
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
