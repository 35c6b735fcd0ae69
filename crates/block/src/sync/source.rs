//! The end that has the disk. Reads, names, and sends what the other end lacks.
//!
//! ```text
//!   AwaitTerms ──► Auditing ◄──► AwaitVerdict ──► Comparing ──► Finished
//!                     │ no tracking, no base          ▲  leaves in flight: described, waiting for Want,
//!                     └───────────────────────────────┘  their bytes kept (8 MiB each, bounded)
//! ```

use std::collections::{BTreeMap, VecDeque};

use super::{
    AuditPlan, Delivery, LeafScan, LeafTask, MAX_AUDIT_BLOCKS, MAX_BASE_LEAVES, MAX_MESSAGES_AHEAD,
    Scope, SlotSet, SyncPlan, SyncStats, SyncStep, Terms, ToSource, ToTarget, Unreadable,
};
use crate::ranges::{ByteRange, ChangedRanges};
use crate::tree::{LeafRun, NoNodes, TreeBuilder};
use crate::{
    BlockHash, BlockIndex, DiskTree, Error, ErrorKind, LeafIndex, NodeHash, ReadAt, Result,
};

/// How a source goes about it.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// What change tracking says changed since the base; `None` when it has no answer.
    pub changed: Option<ChangedRanges>,
    /// How many of a million unchanged blocks are read to audit the tracking.
    pub audit_per_million: u32,
    /// What the sample is drawn from.
    pub audit_seed: u64,
    /// Leaves kept in memory at most, 8 MiB each.
    pub max_open_leaves: usize,
    /// What to do with unreadable ranges.
    pub unreadable: Unreadable,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            changed: None,
            audit_per_million: 1000,
            audit_seed: 0,
            max_open_leaves: 4,
            unreadable: Unreadable::Fail,
        }
    }
}

/// What the driver of a source does next.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// Deliver this message.
    Send(ToTarget),
    /// Nothing to do until a message comes.
    Wait,
    /// All was sent.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    AwaitTerms,
    Auditing,
    AwaitVerdict,
    Comparing,
    Finished,
}

/// The source's end of one transfer.
pub struct SyncSource<'a> {
    source: &'a dyn ReadAt,
    options: SourceOptions,
    length_bytes: u64,
    phase: Phase,
    terms: Option<Terms>,
    audit: Option<AuditPlan>,
    plan: SyncPlan,
    outbox: VecDeque<ToTarget>,
    /// The base's leaves from the plan's position on, as far as they were asked for.
    base_runs: VecDeque<LeafRun>,
    asked: bool,
    /// Described leaves that wait for an answer, with the number of their step.
    waiting: BTreeMap<LeafIndex, (u64, LeafScan)>,
    steps: u64,
    sending: VecDeque<(LeafScan, SlotSet)>,
    idle: Vec<LeafScan>,
    /// The disk's tree by the source's own count, as long as it looks at everything.
    own: Option<TreeBuilder<'static>>,
    stats: SyncStats,
    lies: Vec<BlockIndex>,
    unreadable: Vec<ByteRange>,
}

impl<'a> SyncSource<'a> {
    /// A source of the disk `source`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the disk is above the limit.
    pub fn new(source: &'a dyn ReadAt, options: SourceOptions) -> Result<Self> {
        let length_bytes = source.size_bytes();
        DiskTree::zero(length_bytes)?;
        Ok(Self {
            source,
            options,
            length_bytes,
            phase: Phase::AwaitTerms,
            terms: None,
            audit: None,
            plan: SyncPlan::new(
                length_bytes,
                None,
                Scope::Everything,
                &ChangedRanges::none(),
            ),
            outbox: VecDeque::new(),
            base_runs: VecDeque::new(),
            asked: false,
            waiting: BTreeMap::new(),
            steps: 0,
            sending: VecDeque::new(),
            idle: Vec::new(),
            own: None,
            stats: SyncStats::default(),
            lies: Vec::new(),
            unreadable: Vec::new(),
        })
    }

    /// What it cost so far.
    pub fn stats(&self) -> SyncStats {
        self.stats
    }

    /// Audited blocks that had changed although tracking said no; not empty means that everything was compared instead.
    pub fn lies(&self) -> &[BlockIndex] {
        &self.lies
    }

    /// Ranges that could not be read and were recorded.
    pub fn unreadable(&self) -> &[ByteRange] {
        &self.unreadable
    }

    /// Takes a message from the target.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it does not fit what was said before.
    pub fn receive(&mut self, message: ToSource) -> Result<()> {
        match (message, self.phase) {
            (ToSource::Begin(terms), Phase::AwaitTerms) => self.begin(terms),
            (ToSource::AuditVerdict { lies }, Phase::AwaitVerdict) => self.judge(lies),
            (ToSource::BaseLeaves { runs }, Phase::Comparing) if self.asked => self.take_base(runs),
            (ToSource::Want { leaf, slots }, Phase::Comparing) => self.take_want(leaf, slots),
            (message, phase) => Err(peer(format!("{message:?} while {phase:?}"))),
        }
    }

    /// What to do next. Reads the source when there is room for another leaf.
    ///
    /// # Errors
    /// Whatever the source answers.
    pub fn next_event(&mut self) -> Result<SourceEvent> {
        loop {
            if let Some(message) = self.outbox.pop_front() {
                return Ok(SourceEvent::Send(message));
            }
            match self.phase {
                Phase::AwaitTerms | Phase::AwaitVerdict => return Ok(SourceEvent::Wait),
                Phase::Finished => return Ok(SourceEvent::Done),
                Phase::Auditing => self.audit_some()?,
                Phase::Comparing => {
                    if let Some(block) = self.next_block() {
                        return Ok(SourceEvent::Send(block));
                    }
                    if !self.compare_some()? {
                        return Ok(SourceEvent::Wait);
                    }
                }
            }
        }
    }

    fn begin(&mut self, terms: Terms) -> Result<()> {
        self.outbox.push_back(ToTarget::Begin {
            length_bytes: self.length_bytes,
        });
        let scope = self
            .options
            .changed
            .clone()
            .map_or(Scope::Everything, Scope::Changed);
        let base = terms.base_length_bytes;
        self.plan = SyncPlan::new(self.length_bytes, base, scope, &terms.look_also);
        if let (Scope::Changed(ranges), Some(base)) = (self.plan.scope(), base) {
            self.audit = Some(AuditPlan::new(
                ranges,
                base.min(self.length_bytes),
                self.options.audit_per_million,
                self.options.audit_seed,
            ));
            self.phase = Phase::Auditing;
        } else {
            self.compare_everything()?;
        }
        self.terms = Some(terms);
        Ok(())
    }

    fn compare_everything(&mut self) -> Result<()> {
        let none = ChangedRanges::none();
        self.plan = SyncPlan::new(self.length_bytes, None, Scope::Everything, &none);
        let zero = DiskTree::zero(self.length_bytes)?;
        self.own = Some(TreeBuilder::new(zero, &NoNodes, self.length_bytes)?);
        self.phase = Phase::Comparing;
        Ok(())
    }

    fn audit_some(&mut self) -> Result<()> {
        let mut blocks = Vec::new();
        while blocks.len() < MAX_AUDIT_BLOCKS - SlotSet::ALL.len() {
            let Some(task) = self.audit.as_mut().and_then(AuditPlan::next_task) else {
                break;
            };
            let scan = self.scan(task)?;
            let first = task.leaf.first_block().0;
            blocks.extend(task.look.iter().map(|slot| {
                (
                    BlockIndex(first.saturating_add(slot as u64)),
                    scan.hash(slot),
                )
            }));
            self.idle.push(scan);
        }
        self.stats.audited_blocks += blocks.len() as u64;
        if blocks.is_empty() {
            self.phase = Phase::Comparing;
        } else {
            self.outbox.push_back(ToTarget::Audit { blocks });
            self.phase = Phase::AwaitVerdict;
        }
        Ok(())
    }

    fn judge(&mut self, lies: Vec<BlockIndex>) -> Result<()> {
        if lies.is_empty() {
            self.phase = Phase::Auditing;
            return Ok(());
        }
        if lies.len() > MAX_AUDIT_BLOCKS {
            return Err(peer(format!(
                "{} lies found in one audit message",
                lies.len()
            )));
        }
        self.stats.lies += lies.len() as u64;
        self.lies = lies;
        self.compare_everything()
    }

    fn take_base(&mut self, runs: Vec<LeafRun>) -> Result<()> {
        self.asked = false;
        let mut next = self.plan.position().0;
        if runs.is_empty() || runs.len() > MAX_BASE_LEAVES {
            return Err(peer(format!("{} runs of base leaves", runs.len())));
        }
        for run in &runs {
            if run.first.0 != next || run.count == 0 {
                return Err(peer(format!(
                    "base leaves at {} instead of {next}",
                    run.first.0
                )));
            }
            next = next.saturating_add(run.count);
        }
        self.base_runs = runs.into();
        Ok(())
    }

    fn take_want(&mut self, leaf: LeafIndex, slots: SlotSet) -> Result<()> {
        let Some((_, scan)) = self.waiting.remove(&leaf) else {
            return Err(peer(format!(
                "blocks wanted of leaf {}, which waits for nothing",
                leaf.0
            )));
        };
        let zero = BlockHash::zero();
        let unknown = slots.without(scan.looked());
        if !unknown.is_empty() || slots.iter().any(|slot| scan.hash(slot) == zero) {
            return Err(peer(format!(
                "blocks {slots:?} of leaf {} were never described",
                leaf.0
            )));
        }
        self.sending.push_back((scan, slots));
        Ok(())
    }

    fn next_block(&mut self) -> Option<ToTarget> {
        while let Some((scan, slots)) = self.sending.front_mut() {
            if let Some(slot) = slots.iter().next() {
                slots.remove(slot);
                self.stats.sent_blocks += 1;
                let bytes = scan.block(slot).to_vec();
                return Some(ToTarget::Block {
                    leaf: scan.leaf(),
                    slot,
                    bytes,
                });
            }
            let sent = self.sending.pop_front();
            self.idle.extend(sent.map(|(scan, _)| scan));
        }
        None
    }

    /// Takes the next step of the plan; `false` when a message must come first.
    fn compare_some(&mut self) -> Result<bool> {
        let first_waiting = self
            .waiting
            .first_key_value()
            .map_or(self.steps, |(_, (step, _))| *step);
        if self.waiting.len() >= self.options.max_open_leaves.max(1)
            || self.steps.saturating_sub(first_waiting) >= MAX_MESSAGES_AHEAD
        {
            return Ok(false);
        }
        let base = match self.base_hash() {
            Some(base) => base,
            None if self.asked => return Ok(false),
            None => {
                self.asked = true;
                let first = self.plan.position();
                self.outbox.push_back(ToTarget::AskBase {
                    first,
                    count: MAX_BASE_LEAVES,
                });
                return Ok(true);
            }
        };
        self.steps += 1;
        match self.plan.next_step(self.source)? {
            Some(SyncStep::Same { first, count }) => {
                self.outbox.push_back(ToTarget::Same { first, count });
            }
            Some(SyncStep::Zeros { first, count }) => {
                let bytes = self.length_bytes.saturating_sub(first.offset());
                let covered = count.saturating_mul(crate::LEAF_SIZE_BYTES);
                self.stats.known_zero_bytes += bytes.min(covered);
                if let Some(own) = &mut self.own {
                    own.replace_with_zeros(first, count, &mut NoNodes)?;
                }
                self.outbox.push_back(ToTarget::Zeros { first, count });
            }
            Some(SyncStep::Leaf(task)) => self.compare_leaf(task, base)?,
            None if self.waiting.is_empty() => {
                let top = match self.own.take() {
                    Some(own) => Some(own.finish(&mut NoNodes)?.0.top),
                    None => None,
                };
                self.outbox.push_back(ToTarget::Finish { top });
                self.phase = Phase::Finished;
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    fn compare_leaf(&mut self, task: LeafTask, base: Option<NodeHash>) -> Result<()> {
        let leaf = task.leaf;
        let scan = self.scan(task)?;
        self.stats.compared_leaves += 1;
        let hash = scan.leaf_hash();
        if let (Some(own), Some(hash)) = (&mut self.own, hash) {
            own.replace_hash(leaf, hash, &mut NoNodes)?;
        }
        if hash.is_some() && hash == base {
            self.outbox.push_back(ToTarget::Same {
                first: leaf,
                count: 1,
            });
            self.idle.push(scan);
            return Ok(());
        }
        self.stats.changed_leaves += 1;
        let description = scan.description();
        if base == Some(NodeHash::zero(1)) {
            // The base has nothing here: every block that is not zero is missing, no need to ask.
            let zero = BlockHash::zero();
            let mut slots = scan.looked();
            for slot in scan.looked().iter().filter(|slot| scan.hash(*slot) == zero) {
                slots.remove(slot);
            }
            self.outbox
                .push_back(ToTarget::Leaf(description, Delivery::AtOnce));
            self.sending.push_back((scan, slots));
        } else {
            self.outbox
                .push_back(ToTarget::Leaf(description, Delivery::OnRequest));
            self.waiting.insert(leaf, (self.steps, scan));
        }
        Ok(())
    }

    /// The base's hash of the plan's next leaf, as far as it is needed: `Some(None)` when it is not.
    /// `None` when it must be asked for.
    fn base_hash(&mut self) -> Option<Option<NodeHash>> {
        let zero = Some(Some(NodeHash::zero(1)));
        let next = self.plan.position();
        let Some(base_bytes) = self.terms.as_ref()?.base_length_bytes else {
            return zero;
        };
        if self.plan.scope() != &Scope::Everything || next.offset() >= self.length_bytes {
            return Some(None);
        }
        if next.offset() >= base_bytes {
            return zero;
        }
        while let Some(run) = self.base_runs.front() {
            if next.0 < run.first.0.saturating_add(run.count) {
                return Some(Some(run.hash));
            }
            self.base_runs.pop_front();
        }
        None
    }

    fn scan(&mut self, task: LeafTask) -> Result<LeafScan> {
        let mut scan = self.idle.pop().unwrap_or_default();
        scan.scan(self.source, task.leaf, task.look, self.options.unreadable)?;
        let cost = scan.stats();
        self.stats.read_bytes += cost.read_bytes;
        self.stats.hashed_bytes += cost.hashed_bytes;
        self.stats.known_zero_bytes += cost.known_zero_bytes;
        self.unreadable.extend_from_slice(scan.unreadable());
        Ok(scan)
    }
}

fn peer(what: String) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the target of a transfer broke the protocol: {what}"),
    )
}
