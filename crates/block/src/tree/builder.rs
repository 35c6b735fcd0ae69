//! Builds the tree of the next version from a base and the leaves that were replaced.
//!
//! ```text
//!   level 4            [ open ]          one open node per level; a node is opened with the base's children
//!   level 3        ██  [ open ]          (zero behind the new end), takes replaced children in ascending order,
//!   level 2        ██  [ open ]  ░░░░    and is closed (hashed, put if new, handed up) when the order passes it
//!                  └ done         └ not reached: whatever the base has there
//! ```
//!
//! Growing raises the base under new upper nodes; shrinking cuts what lies behind the new end.

use super::{DiskTree, Node, NodeSink, NodeSource, TreeReader, check_length};
use crate::geometry::{self, BLOCK_SIZE_BYTES, FANOUT, LEAF_SIZE_BYTES, MAX_HEIGHT};
use crate::{BlockHash, BlockIndex, Error, ErrorKind, LeafIndex, NodeHash, Result};

/// What a builder did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeBuilderStats {
    /// Leaves whose hash differs from the base's.
    pub leaves_changed: u64,
    /// Nodes put, leaves included.
    pub nodes_put: u64,
}

#[derive(Clone)]
struct OpenNode {
    index: u64,
    node: Node,
    /// The base's hash here: putting it again is needless.
    base: NodeHash,
}

/// Builds the next version's tree. Memory: two nodes per level.
#[derive(Clone)]
pub struct TreeBuilder<'a> {
    length_bytes: u64,
    base: TreeReader<'a>,
    /// By level, index 0 = level 1 (which is never open: leaves come whole).
    open: Vec<Option<OpenNode>>,
    top: NodeHash,
    next: LeafIndex,
    stats: TreeBuilderStats,
}

impl<'a> TreeBuilder<'a> {
    /// A builder of a disk of `length_bytes` that starts as `base` (a tree of zeros when there is none).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when a length is above the limit; whatever `nodes` answers.
    pub fn new(base: DiskTree, nodes: &'a dyn NodeSource, length_bytes: u64) -> Result<Self> {
        check_length(length_bytes)?;
        let mut base = TreeReader::new(base, nodes)?;
        let height = geometry::height(length_bytes);
        let top = base.node_hash(height, 0)?;
        Ok(Self {
            length_bytes,
            base,
            open: vec![None; usize::from(MAX_HEIGHT)],
            top,
            next: LeafIndex(0),
            stats: TreeBuilderStats::default(),
        }
        .raised())
    }

    /// What was done so far.
    pub fn stats(&self) -> TreeBuilderStats {
        self.stats
    }

    /// The first leaf that may still be replaced.
    pub fn next_leaf(&self) -> LeafIndex {
        self.next
    }

    /// Replaces a leaf, and puts it unless the base has it at the same place.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] when the leaf lies behind the end, was passed already, or has a block behind the end
    /// that is not zero; whatever the base's source and `sink` answer.
    pub fn replace(
        &mut self,
        leaf: LeafIndex,
        node: &Node,
        sink: &mut dyn NodeSink,
    ) -> Result<NodeHash> {
        self.pass(leaf, 1)?;
        self.check_tail(leaf, node)?;
        let hash = node.hash(1);
        if hash != self.base.leaf_hash(leaf)? {
            self.stats.leaves_changed += 1;
            if hash != NodeHash::zero(1) {
                self.stats.nodes_put += 1;
                sink.put_node(1, hash, node)?;
            }
        }
        self.place(1, leaf.0, hash, sink)?;
        Ok(hash)
    }

    /// Replaces a leaf of which only the name is known; whoever needs its node must have it from elsewhere.
    ///
    /// # Errors
    /// As [`TreeBuilder::replace`], except that content behind the end cannot be seen.
    pub fn replace_hash(
        &mut self,
        leaf: LeafIndex,
        hash: NodeHash,
        sink: &mut dyn NodeSink,
    ) -> Result<()> {
        self.pass(leaf, 1)?;
        if hash != self.base.leaf_hash(leaf)? {
            self.stats.leaves_changed += 1;
        }
        self.place(1, leaf.0, hash, sink)
    }

    /// Makes `count` leaves from `first` on zero; its cost is the tree's height, not the count.
    ///
    /// # Errors
    /// As [`TreeBuilder::replace`].
    pub fn replace_with_zeros(
        &mut self,
        first: LeafIndex,
        count: u64,
        sink: &mut dyn NodeSink,
    ) -> Result<()> {
        self.pass(first, count)?;
        let height = geometry::height(self.length_bytes);
        let reaches_end = first.0.saturating_add(count) >= geometry::leaf_count(self.length_bytes);
        let mut at = first.0;
        // A run up to the end may cover the zeros behind it as well: fewer and larger steps.
        let all = geometry::leaf_count(geometry::covered_bytes(height));
        let end = if reaches_end {
            all
        } else {
            first.0.saturating_add(count)
        };
        while at < end {
            let mut level = 1;
            while level < height {
                let covered = leaves_under(level + 1);
                if !at.is_multiple_of(covered) || end - at < covered {
                    break;
                }
                level += 1;
            }
            self.place(level, at / leaves_under(level), NodeHash::zero(level), sink)?;
            at += leaves_under(level);
        }
        Ok(())
    }

    /// The tree as it would be if nothing more were replaced, for resuming later; the builder goes on.
    ///
    /// A tail block that shrinking cut through and that was not replaced yet becomes zero in it.
    ///
    /// # Errors
    /// Whatever the base's source and `sink` answer.
    pub fn checkpoint(&mut self, sink: &mut dyn NodeSink) -> Result<DiskTree> {
        let mut copy = self.clone();
        copy.cut(CutTail::Zero, sink)?;
        let tree = copy.close_all(sink)?;
        self.stats.nodes_put = copy.stats.nodes_put;
        Ok(tree)
    }

    /// Closes every node and answers the new tree.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] when shrinking cut through a block and its leaf was not replaced (its new hash cannot
    /// be known); whatever the base's source and `sink` answer.
    pub fn finish(mut self, sink: &mut dyn NodeSink) -> Result<(DiskTree, TreeBuilderStats)> {
        self.cut(CutTail::Refuse, sink)?;
        let tree = self.close_all(sink)?;
        Ok((tree, self.stats))
    }

    /// Puts the base's top under the first upper node that the base does not have.
    fn raised(mut self) -> Self {
        let base = self.base.tree();
        let height = geometry::height(self.length_bytes);
        if base.height() < height && !base.is_zero() {
            let level = base.height() + 1;
            let mut node = Node::zero(level);
            node.set_child(0, base.top);
            self.open[usize::from(level) - 1] = Some(OpenNode {
                index: 0,
                node,
                base: NodeHash::zero(level),
            });
        }
        self
    }

    fn pass(&mut self, first: LeafIndex, count: u64) -> Result<()> {
        let end = first.0.checked_add(count);
        match end {
            Some(end) if first >= self.next && end <= geometry::leaf_count(self.length_bytes) => {
                self.next = LeafIndex(end);
                Ok(())
            }
            _ => Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "{count} leaves at {} of a tree of {} bytes whose next is {}",
                    first.0, self.length_bytes, self.next.0
                ),
            )),
        }
    }

    fn check_tail(&self, leaf: LeafIndex, node: &Node) -> Result<()> {
        let blocks = geometry::block_count(self.length_bytes).saturating_sub(leaf.first_block().0);
        let inside = usize::try_from(blocks).unwrap_or(usize::MAX);
        if inside < FANOUT
            && node
                .blocks()
                .skip(inside)
                .any(|hash| hash != BlockHash::zero())
        {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "leaf {} has content behind the end at {}",
                    leaf.0, self.length_bytes
                ),
            ));
        }
        Ok(())
    }

    /// Sets child `index` of `level` in its parent, closing what the order has passed.
    fn place(
        &mut self,
        level: u8,
        index: u64,
        hash: NodeHash,
        sink: &mut dyn NodeSink,
    ) -> Result<()> {
        let height = geometry::height(self.length_bytes);
        for lower in 2..=level {
            self.close(lower, sink)?;
        }
        if level >= height {
            self.top = hash;
            return Ok(());
        }
        let parent = level + 1;
        let parent_index = index / FANOUT as u64;
        let place = usize::from(parent) - 1;
        if self.open[place]
            .as_ref()
            .is_some_and(|open| open.index != parent_index)
        {
            // Children below were closed or belong to the passed parent: close upwards in order.
            self.close(parent, sink)?;
        }
        if self.open[place].is_none() {
            let open = self.open_node(parent, parent_index)?;
            self.open[place] = Some(open);
        }
        if let Some(open) = &mut self.open[place] {
            open.node
                .set_child(usize::try_from(index % FANOUT as u64).unwrap_or(0), hash);
        }
        Ok(())
    }

    /// The base's node, without what lies behind the new end.
    fn open_node(&mut self, level: u8, index: u64) -> Result<OpenNode> {
        let base = self.base.node_hash(level, index)?;
        let mut node = self.base.node(level, index)?;
        let child_bytes = geometry::covered_bytes(level - 1);
        let start = index.saturating_mul(geometry::covered_bytes(level));
        let inside = self
            .length_bytes
            .saturating_sub(start)
            .div_ceil(child_bytes);
        for slot in usize::try_from(inside).unwrap_or(FANOUT).min(FANOUT)..FANOUT {
            node.set_child(slot, NodeHash::zero(level - 1));
        }
        Ok(OpenNode { index, node, base })
    }

    fn close(&mut self, level: u8, sink: &mut dyn NodeSink) -> Result<()> {
        let Some(open) = self.open[usize::from(level) - 1].take() else {
            return Ok(());
        };
        let hash = open.node.hash(level);
        if hash != open.base && hash != NodeHash::zero(level) {
            self.stats.nodes_put += 1;
            sink.put_node(level, hash, &open.node)?;
        }
        self.place(level, open.index, hash, sink)
    }

    fn close_all(&mut self, sink: &mut dyn NodeSink) -> Result<DiskTree> {
        for level in 2..=geometry::height(self.length_bytes) {
            self.close(level, sink)?;
        }
        Ok(DiskTree {
            length_bytes: self.length_bytes,
            top: self.top,
        })
    }

    /// Takes away what the base has behind the new end.
    fn cut(&mut self, tail: CutTail, sink: &mut dyn NodeSink) -> Result<()> {
        let leaves = geometry::leaf_count(self.length_bytes);
        if self.base.tree().length_bytes <= self.length_bytes || self.next.0 >= leaves {
            // Nothing to cut, or the last leaf was replaced and its path is cut already.
            return if leaves == 0 {
                self.place_zero_top()
            } else {
                Ok(())
            };
        }
        let last = LeafIndex(leaves - 1);
        let mut node = self.base.leaf(last)?;
        let inside_bytes = self.length_bytes - last.offset();
        let cut = BlockIndex::holding(inside_bytes).0;
        if inside_bytes < LEAF_SIZE_BYTES {
            let first_cut = usize::try_from(cut).unwrap_or(FANOUT);
            let through = !inside_bytes.is_multiple_of(BLOCK_SIZE_BYTES);
            if through && tail == CutTail::Refuse && node.block(first_cut) != BlockHash::zero() {
                return Err(Error::new(
                    ErrorKind::OutOfRange,
                    format!(
                        "the new end at {} cuts a block that was not read",
                        self.length_bytes
                    ),
                ));
            }
            for slot in first_cut..FANOUT {
                node.set_block(slot, BlockHash::zero());
            }
        }
        self.replace(last, &node, sink).map(|_| ())
    }

    fn place_zero_top(&mut self) -> Result<()> {
        self.top = NodeHash::zero(geometry::height(self.length_bytes));
        Ok(())
    }
}

/// What to do with a block that the new end cuts through and nobody replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CutTail {
    Refuse,
    Zero,
}

fn leaves_under(level: u8) -> u64 {
    geometry::covered_bytes(level) / LEAF_SIZE_BYTES
}
