//! The end that keeps the disk. Knows the base's hashes, asks for what is missing, believes nothing unhashed.
//!
//! ```text
//!   leaves:   done │ Same──── Leaf(2 missing) Zeros── Leaf(ok)  …        messages may come in any order
//!                  └ next: what is complete here goes into the tree      inside a bounded window
//! ```

use std::collections::BTreeMap;

use super::{
    Delivery, LeafDescription, LeafMerge, MAX_AUDIT_BLOCKS, MAX_BASE_LEAVES, SyncOutcome,
    SyncStats, Terms, ToSource, ToTarget,
};
use crate::geometry;
use crate::ranges::ChangedRanges;
use crate::tree::{DiskTree, NodeSink, NodeSource, TreeBuilder, TreeReader};
use crate::{BlockHash, BlockIndex, Error, ErrorKind, LeafIndex, NodeHash, Result};

/// Where what was checked goes: blocks first, nodes after the blocks that they name.
pub trait TargetSink: NodeSink {
    /// Takes a block whose bytes were hashed.
    fn put_block(&mut self, block: BlockIndex, hash: BlockHash, bytes: &[u8]) -> Result<()>;
}

/// How a target goes about it.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// Ranges that are to be compared whatever change tracking says.
    pub look_also: ChangedRanges,
    /// Messages about leaves that may wait for an earlier leaf.
    pub window: usize,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            look_also: ChangedRanges::none(),
            window: 256,
        }
    }
}

enum Pending {
    Same,
    Zeros,
    Leaf(Box<LeafMerge>),
}

/// The target's end of one transfer.
pub struct SyncTarget<'a> {
    base: Option<DiskTree>,
    nodes: &'a dyn NodeSource,
    options: TargetOptions,
    /// One path for audits and questions, one for the leaves that are merged.
    asked: TreeReader<'a>,
    merged: TreeReader<'a>,
    builder: Option<TreeBuilder<'a>>,
    length_bytes: u64,
    pending: BTreeMap<u64, (u64, Pending)>,
    next: u64,
    stats: SyncStats,
    outcome: Option<SyncOutcome>,
}

impl<'a> SyncTarget<'a> {
    /// A target whose base, if there is one, is `base`; its nodes are asked of `nodes`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the base says to be longer than any disk may be.
    pub fn new(
        base: Option<DiskTree>,
        nodes: &'a dyn NodeSource,
        options: TargetOptions,
    ) -> Result<Self> {
        let tree = base.map_or_else(|| DiskTree::zero(0), Ok)?;
        let reader = TreeReader::new(tree, nodes)?;
        Ok(Self {
            base,
            nodes,
            options,
            asked: reader.clone(),
            merged: reader,
            builder: None,
            length_bytes: 0,
            pending: BTreeMap::new(),
            next: 0,
            stats: SyncStats::default(),
            outcome: None,
        })
    }

    /// The first message to the source.
    pub fn begin(&self) -> ToSource {
        ToSource::Begin(Terms {
            base_length_bytes: self.base.map(|base| base.length_bytes),
            look_also: self.options.look_also.clone(),
        })
    }

    /// Takes a message and answers what is to be sent back.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the source breaks the protocol or sends what it did not describe;
    /// whatever the base's source and `sink` answer.
    pub fn receive(
        &mut self,
        message: ToTarget,
        sink: &mut dyn TargetSink,
    ) -> Result<Option<ToSource>> {
        if let ToTarget::Begin { length_bytes } = message {
            return self.open(length_bytes).map(|()| None);
        }
        if self.builder.is_none() {
            return Err(peer(
                "a message before the beginning or after the end".into(),
            ));
        }
        match message {
            ToTarget::Begin { .. } => Ok(None),
            ToTarget::Audit { blocks } => self.audit(&blocks).map(Some),
            ToTarget::AskBase { first, count } => self.answer_base(first, count).map(Some),
            ToTarget::Same { first, count } => {
                self.admit(first, count, Pending::Same)?;
                self.drain(sink).map(|()| None)
            }
            ToTarget::Zeros { first, count } => {
                self.admit(first, count, Pending::Zeros)?;
                self.drain(sink).map(|()| None)
            }
            ToTarget::Leaf(description, delivery) => self.describe(&description, delivery, sink),
            ToTarget::Block { leaf, slot, bytes } => {
                self.block(leaf, slot, &bytes, sink).map(|()| None)
            }
            ToTarget::Finish { top } => self.finish(top, sink).map(|()| None),
        }
    }

    /// The tree with what has come so far laid over the base, for resuming; everything it needs was put into `sink`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] before the source began; whatever the base's source and `sink` answer.
    pub fn checkpoint(&mut self, sink: &mut dyn TargetSink) -> Result<DiskTree> {
        match &mut self.builder {
            Some(builder) => builder.checkpoint(sink),
            None => Err(peer(
                "a checkpoint before the beginning or after the end".into(),
            )),
        }
    }

    /// What was received so far: blocks, leaves, audits.
    pub fn stats(&self) -> SyncStats {
        self.stats
    }

    /// The result, after the source has finished.
    pub fn outcome(&self) -> Option<SyncOutcome> {
        self.outcome
    }

    fn open(&mut self, length_bytes: u64) -> Result<()> {
        if self.builder.is_some() || self.outcome.is_some() {
            return Err(peer("a second beginning".into()));
        }
        let base = self.base.map_or_else(|| DiskTree::zero(length_bytes), Ok)?;
        self.builder = Some(TreeBuilder::new(base, self.nodes, length_bytes)?);
        self.length_bytes = length_bytes;
        Ok(())
    }

    fn audit(&mut self, blocks: &[(BlockIndex, BlockHash)]) -> Result<ToSource> {
        if blocks.len() > MAX_AUDIT_BLOCKS {
            return Err(peer(format!("an audit of {} blocks at once", blocks.len())));
        }
        let mut lies = Vec::new();
        for (block, hash) in blocks {
            if self.asked.block_hash(*block)? != *hash {
                lies.push(*block);
            }
        }
        self.stats.audited_blocks += blocks.len() as u64;
        self.stats.lies += lies.len() as u64;
        Ok(ToSource::AuditVerdict { lies })
    }

    fn answer_base(&mut self, first: LeafIndex, count: usize) -> Result<ToSource> {
        let mut runs = Vec::new();
        for run in self.asked.runs(first).take(count.min(MAX_BASE_LEAVES)) {
            runs.push(run?);
        }
        if runs.is_empty() {
            return Err(peer(format!("the base has no leaf {}", first.0)));
        }
        Ok(ToSource::BaseLeaves { runs })
    }

    fn admit(&mut self, first: LeafIndex, count: u64, pending: Pending) -> Result<()> {
        let end = first
            .0
            .checked_add(count)
            .filter(|end| *end <= geometry::leaf_count(self.length_bytes));
        let after = self
            .pending
            .range(first.0..)
            .next()
            .map_or(u64::MAX, |(at, _)| *at);
        let before = self.pending.range(..first.0).next_back();
        let before = before.map_or(self.next, |(at, (count, _))| at.saturating_add(*count));
        match end {
            Some(end) if count > 0 && first.0 >= before.max(self.next) && end <= after => {}
            _ => {
                return Err(peer(format!(
                    "{count} leaves at {}, which overlap others or the end",
                    first.0
                )));
            }
        }
        if self.pending.len() >= self.options.window.max(1) && first.0 != self.next {
            return Err(peer(format!(
                "leaf {} while {} others wait for leaf {}",
                first.0,
                self.pending.len(),
                self.next
            )));
        }
        self.pending.insert(first.0, (count, pending));
        Ok(())
    }

    fn describe(
        &mut self,
        description: &LeafDescription,
        delivery: Delivery,
        sink: &mut dyn TargetSink,
    ) -> Result<Option<ToSource>> {
        let leaf = description.leaf;
        let base = self.merged.leaf(leaf)?;
        let merge = LeafMerge::begin(base, description, self.length_bytes)?;
        let slots = merge.missing();
        self.stats.compared_leaves += 1;
        self.stats.changed_leaves += 1;
        self.admit(leaf, 1, Pending::Leaf(Box::new(merge)))?;
        self.drain(sink)?;
        Ok((delivery == Delivery::OnRequest).then_some(ToSource::Want { leaf, slots }))
    }

    fn block(
        &mut self,
        leaf: LeafIndex,
        slot: usize,
        bytes: &[u8],
        sink: &mut dyn TargetSink,
    ) -> Result<()> {
        let Some((_, Pending::Leaf(merge))) = self.pending.get_mut(&leaf.0) else {
            return Err(peer(format!(
                "a block of leaf {}, which waits for none",
                leaf.0
            )));
        };
        let hash = merge.accept(slot, bytes)?;
        self.stats.sent_blocks += 1;
        let block = BlockIndex(leaf.first_block().0.saturating_add(slot as u64));
        sink.put_block(block, hash, bytes)?;
        self.drain(sink)
    }

    fn drain(&mut self, sink: &mut dyn TargetSink) -> Result<()> {
        let Some(builder) = &mut self.builder else {
            return Ok(());
        };
        while let Some(entry) = self.pending.first_entry() {
            let ready = match &entry.get().1 {
                Pending::Leaf(merge) => merge.missing().is_empty(),
                Pending::Same | Pending::Zeros => true,
            };
            if *entry.key() != self.next || !ready {
                return Ok(());
            }
            let (first, (count, pending)) = entry.remove_entry();
            match pending {
                Pending::Same => {}
                Pending::Zeros => builder.replace_with_zeros(LeafIndex(first), count, sink)?,
                Pending::Leaf(merge) => {
                    builder.replace(LeafIndex(first), merge.node(), sink)?;
                }
            }
            self.next = first.saturating_add(count);
        }
        Ok(())
    }

    fn finish(&mut self, top: Option<NodeHash>, sink: &mut dyn TargetSink) -> Result<()> {
        let leaves = geometry::leaf_count(self.length_bytes);
        if self.next != leaves || !self.pending.is_empty() {
            return Err(peer(format!(
                "an end after {} of {leaves} leaves",
                self.next
            )));
        }
        let Some(builder) = self.builder.take() else {
            return Ok(());
        };
        let (tree, nodes) = builder.finish(sink)?;
        if top.is_some_and(|top| top != tree.top) {
            return Err(peer("a top that is not the top of what was sent".into()));
        }
        self.outcome = Some(SyncOutcome {
            tree,
            nodes,
            confirmed: top.is_some(),
        });
        Ok(())
    }
}

fn peer(what: String) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the source of a transfer broke the protocol: {what}"),
    )
}
