//! One disk into a repository session: both ends of checksum sync in one process, on all cores.
//!
//! ```text
//!              ┌─ worker ─────────────────────────────────────────────────────────────┐
//!   SyncPlan ─►│ LeafScan: extents → read → hash │ equal to base? │ LeafMerge: wanted │─► in order:
//!    (steps)   │                                 └─ Same          │ there? compress   │   append blobs
//!              └──────────────────────────────────────────────────────────────────────┘   TreeBuilder → nodes
//!                                                                                           checkpoint now and then
//! ```
//!
//! The messages of `block::sync` are left out: base and source are in reach of one worker. For the same reason a block is
//! hashed once, by the worker that read it; the repository hashes it again after encoding, before its pack is put.
//!
//! Healing: nothing that is stored is believed. Every block and node that the version needs is read back, or stored again.
//!
//! **Invariants.** Change tracking is audited before it is believed; a lie makes the scope everything. Blobs are appended
//! in disk order, a node after the blocks and nodes that it names. Memory: a scan (8 MiB) per worker and the encoded
//! blocks of at most a window of leaves.

use std::sync::{Mutex, MutexGuard, PoisonError};

use block::sync::{
    AuditPlan, LeafMerge, LeafScan, LeafTask, Scope, SyncPlan, SyncStats, SyncStep, Unreadable,
};
use block::tree::{DiskTree, Node, NodeSink, NodeSource, TreeBuilder, TreeReader};
use block::{
    BLOCK_SIZE_BYTES, BlockHash, BlockIndex, ByteRange, ChangedRanges, LEAF_SIZE_BYTES, LeafIndex,
    NodeHash, ReadAt,
};
use repo::{BlobName, BlobWriter, EncodedBlob, Repository};

use crate::job::JobContext;
use crate::pipeline::{Width, run_ordered};
use crate::{Error, ErrorKind, Result};

/// When the progress of a transfer is made durable, so that an interruption costs no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointEvery {
    /// After so many bytes of disk were stored.
    pub stored_bytes: u64,
    /// After so many milliseconds.
    pub elapsed_ms: u64,
}

impl Default for CheckpointEvery {
    fn default() -> Self {
        Self {
            stored_bytes: 256 << 20,
            elapsed_ms: 10_000,
        }
    }
}

/// What change tracking said, and how far it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracking {
    /// What changed since the base.
    pub changed: ChangedRanges,
    /// How many of a million unchanged blocks are read to audit that.
    pub audit_per_million: u32,
    /// What the sample is drawn from.
    pub audit_seed: u64,
}

/// What the new version is made upon.
pub(crate) struct Base<'a> {
    /// The parent's tree, or what an interrupted transfer left.
    pub tree: DiskTree,
    /// Whoever has its nodes.
    pub nodes: &'a dyn NodeSource,
    /// What is looked at whatever tracking says.
    pub look_also: ChangedRanges,
}

/// How far what lies in the repository is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Belief {
    /// A blob that the index lists is there.
    Index,
    /// A blob is there when it was read and hashed.
    Reading,
}

/// How a transfer ended.
pub(crate) enum TransferEnd {
    /// All arrived.
    Arrived(Transferred),
    /// The base lacks something that the new version needs, or cannot be read: it must do without the base.
    BaseDamaged(String),
}

/// What was found wrong with the base first.
#[derive(Default)]
struct BaseDamage(Mutex<Option<String>>);

impl BaseDamage {
    /// Makes an error of a base's tree the transfer's own, and remembers it when it speaks of damage.
    fn note(&self, error: block::Error) -> Error {
        let error = repo::Error::from(error);
        let is_damage = is_damage(error.kind());
        let error = Error::from(error);
        if is_damage {
            self.found(&explained(&error));
        }
        error
    }

    fn found(&self, what: &str) {
        self.lock().get_or_insert_with(|| what.to_owned());
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error of the repository speaks of what lies in it, and not of the way there.
pub(crate) fn is_damage(kind: repo::ErrorKind) -> bool {
    use repo::ErrorKind as Kind;
    matches!(
        kind,
        Kind::NotFound | Kind::Corrupt | Kind::WrongKey | Kind::Unsupported
    )
}

/// An error with its causes, on one line.
pub(crate) fn explained(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// One disk on its way.
pub(crate) struct Transfer<'a> {
    pub source: &'a dyn ReadAt,
    pub base: Option<Base<'a>>,
    pub tracking: Option<Tracking>,
    pub unreadable: Unreadable,
    pub repository: &'a Repository,
    pub belief: Belief,
    pub blobs: &'a BlobWriter,
    pub context: JobContext<'a>,
    pub checkpoint_every: CheckpointEvery,
    pub clock: &'a dyn repo::Clock,
    /// Threads that read, hash and compress; chosen when absent.
    pub workers: Option<usize>,
}

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transferred {
    pub tree: DiskTree,
    pub stats: SyncStats,
    pub nodes_put: u64,
    /// Source ranges that could not be read, ascending.
    pub unreadable: Vec<ByteRange>,
    /// Audited blocks that had changed although tracking said no.
    pub lies: Vec<ByteRange>,
}

/// What a worker keeps.
struct Scratch<'a> {
    scan: LeafScan,
    base: Option<TreeReader<'a>>,
}

/// What a worker made of a step.
enum Outcome {
    Same {
        bytes: u64,
        stats: SyncStats,
    },
    Zeros {
        first: LeafIndex,
        count: u64,
        bytes: u64,
    },
    Leaf(Box<NewLeaf>),
}

struct NewLeaf {
    leaf: LeafIndex,
    node: Node,
    blobs: Vec<EncodedBlob>,
    unreadable: Vec<ByteRange>,
    bytes: u64,
    stats: SyncStats,
}

/// Nodes on their way into node packs.
struct NodesTo<'a> {
    blobs: &'a BlobWriter,
    repository: &'a Repository,
    belief: Belief,
}

impl NodeSink for NodesTo<'_> {
    fn put_node(&mut self, level: u8, hash: NodeHash, node: &Node) -> block::Result<()> {
        let name = BlobName::Node { level, hash };
        is_there(self.blobs, self.repository, self.belief, &name)?;
        let blob = self.blobs.encode(name, node.as_bytes())?;
        Ok(self.blobs.append(vec![blob])?)
    }
}

/// Whether a blob need not be stored.
fn is_there(
    blobs: &BlobWriter,
    repository: &Repository,
    belief: Belief,
    name: &BlobName,
) -> repo::Result<bool> {
    if !blobs.contains(name)? {
        return Ok(false);
    }
    if belief == Belief::Index || blobs.is_pending(name) || repository.can_read(name)? {
        return Ok(true);
    }
    blobs.distrust(*name);
    Ok(false)
}

impl<'a> Transfer<'a> {
    /// Runs it. `checkpoint` is given a tree whose blobs were all appended; making them durable is up to it.
    pub(crate) fn run(
        &self,
        checkpoint: &mut dyn FnMut(DiskTree) -> Result<()>,
    ) -> Result<TransferEnd> {
        let damage = BaseDamage::default();
        let outcome = self.run_on(&damage, checkpoint);
        match (outcome, damage.0.into_inner()) {
            (Ok(transferred), _) => Ok(TransferEnd::Arrived(transferred)),
            (Err(_), Ok(Some(what))) => Ok(TransferEnd::BaseDamaged(what)),
            (Err(error), _) => Err(error),
        }
    }

    fn run_on(
        &self,
        damage: &BaseDamage,
        checkpoint: &mut dyn FnMut(DiskTree) -> Result<()>,
    ) -> Result<Transferred> {
        let mut stats = SyncStats::default();
        let lies = self.audit(damage, &mut stats)?;
        let scope = match &self.tracking {
            Some(tracking) if lies.is_empty() => Scope::Changed(tracking.changed.clone()),
            _ => Scope::Everything,
        };
        let length = self.source.size_bytes();
        let base_length = self.base.as_ref().map(|base| base.tree.length_bytes);
        let none = ChangedRanges::none();
        let look_also = self.base.as_ref().map_or(&none, |base| &base.look_also);
        let plan = SyncPlan::new(length, base_length, scope, look_also);
        let mut transferred = self.compare(plan, damage, checkpoint)?;
        transferred.stats.add(&stats);
        transferred.lies = lies;
        Ok(transferred)
    }

    fn scratch(&self) -> Result<Scratch<'a>> {
        let base = match &self.base {
            Some(base) => Some(TreeReader::new(base.tree, base.nodes)?),
            None => None,
        };
        Ok(Scratch {
            scan: LeafScan::new(),
            base,
        })
    }

    /// Compares a sample of what tracking calls unchanged with the base.
    fn audit(&self, damage: &BaseDamage, stats: &mut SyncStats) -> Result<Vec<ByteRange>> {
        let (Some(tracking), Some(base)) = (&self.tracking, &self.base) else {
            return Ok(Vec::new());
        };
        let told = tracking.changed.union(&base.look_also);
        let length = base.tree.length_bytes.min(self.source.size_bytes());
        let mut plan = AuditPlan::new(
            &told,
            length,
            tracking.audit_per_million,
            tracking.audit_seed,
        );
        let mut lies: Vec<ByteRange> = Vec::new();
        self.context
            .progress
            .begin("audit of change tracking", None);
        let result = run_ordered(
            Width::of(self.workers),
            || {
                self.context.cancel.check()?;
                Ok(plan.next_task())
            },
            || self.scratch(),
            |scratch, task: LeafTask| self.audit_leaf(scratch, damage, task),
            |(found, cost)| {
                stats.add(&cost);
                self.context
                    .progress
                    .advance(cost.audited_blocks.saturating_mul(BLOCK_SIZE_BYTES));
                for range in found {
                    match lies.last_mut() {
                        Some(last) if last.end() == range.offset => {
                            last.length_bytes += range.length_bytes
                        }
                        _ => lies.push(range),
                    }
                }
                Ok(())
            },
        );
        self.context.progress.end();
        result.map(|()| lies)
    }

    fn audit_leaf(
        &self,
        scratch: &mut Scratch<'a>,
        damage: &BaseDamage,
        task: LeafTask,
    ) -> Result<(Vec<ByteRange>, SyncStats)> {
        let scan = &mut scratch.scan;
        scan.scan(self.source, task.leaf, task.look, self.unreadable)
            .map_err(source_failed)?;
        let mut stats = scan_cost(scan);
        stats.audited_blocks = task.look.len() as u64;
        let mut lies = Vec::new();
        for slot in task.look.iter() {
            let block = BlockIndex(task.leaf.first_block().0.saturating_add(slot as u64));
            let kept = match &mut scratch.base {
                Some(base) => base.block_hash(block).map_err(|error| damage.note(error))?,
                None => BlockHash::zero(),
            };
            if kept != scan.hash(slot) {
                stats.lies += 1;
                lies.push(ByteRange {
                    offset: block.offset(),
                    length_bytes: BLOCK_SIZE_BYTES,
                });
            }
        }
        Ok((lies, stats))
    }

    fn compare(
        &self,
        mut plan: SyncPlan,
        damage: &BaseDamage,
        checkpoint: &mut dyn FnMut(DiskTree) -> Result<()>,
    ) -> Result<Transferred> {
        let length = self.source.size_bytes();
        let mut builder = self.builder(damage)?;
        let mut nodes = self.nodes();
        let mut stats = SyncStats::default();
        let mut unreadable: Vec<ByteRange> = Vec::new();
        let mut pace = Pace::new(self.checkpoint_every, self.clock);
        self.context.progress.begin("disk", Some(length));
        let result = run_ordered(
            Width::of(self.workers),
            || {
                self.context.cancel.check()?;
                plan.next_step(self.source).map_err(source_failed)
            },
            || self.scratch(),
            |scratch, step| self.work(scratch, damage, step),
            |outcome| {
                let bytes = match outcome {
                    Outcome::Same { bytes, stats: cost } => {
                        stats.add(&cost);
                        bytes
                    }
                    Outcome::Zeros {
                        first,
                        count,
                        bytes,
                    } => {
                        builder
                            .replace_with_zeros(first, count, &mut nodes)
                            .map_err(|error| damage.note(error))?;
                        stats.known_zero_bytes += bytes;
                        bytes
                    }
                    Outcome::Leaf(new) => {
                        stats.add(&new.stats);
                        unreadable.extend(&new.unreadable);
                        pace.stored((new.blobs.len() as u64).saturating_mul(BLOCK_SIZE_BYTES));
                        self.blobs.append(new.blobs)?;
                        builder
                            .replace(new.leaf, &new.node, &mut nodes)
                            .map_err(|error| damage.note(error))?;
                        new.bytes
                    }
                };
                self.context.progress.advance(bytes);
                if pace.is_due() {
                    let tree = builder.checkpoint(&mut nodes);
                    checkpoint(tree.map_err(|error| damage.note(error))?)?;
                    pace.restart();
                }
                Ok(())
            },
        );
        self.context.progress.end();
        if let Err(error) = result {
            // On a damaged base nobody goes on.
            if damage.lock().is_none() {
                self.save(&mut builder, checkpoint);
            }
            return Err(error);
        }
        let finished = builder.finish(&mut nodes);
        let (tree, built) = finished.map_err(|error| damage.note(error))?;
        let nodes_put = built.nodes_put;
        Ok(Transferred {
            tree,
            stats,
            nodes_put,
            unreadable,
            lies: Vec::new(),
        })
    }

    fn builder(&self, damage: &BaseDamage) -> Result<TreeBuilder<'a>> {
        let length = self.source.size_bytes();
        match &self.base {
            Some(base) => {
                TreeBuilder::new(base.tree, base.nodes, length).map_err(|error| damage.note(error))
            }
            None => Ok(TreeBuilder::new(
                DiskTree::zero(length)?,
                &block::tree::NoNodes,
                length,
            )?),
        }
    }

    fn nodes(&self) -> NodesTo<'a> {
        NodesTo {
            blobs: self.blobs,
            repository: self.repository,
            belief: self.belief,
        }
    }

    /// What was done so far need not be done again. The error that ended the transfer is the one to tell.
    fn save(
        &self,
        builder: &mut TreeBuilder<'_>,
        checkpoint: &mut dyn FnMut(DiskTree) -> Result<()>,
    ) {
        let tree = builder.checkpoint(&mut self.nodes());
        if let Err(failed) = tree.map_err(Error::from).and_then(checkpoint) {
            let text = format!("progress could not be saved: {}", explained(&failed));
            self.context.progress.warn(&text);
        }
    }

    /// One step, on a worker.
    fn work(
        &self,
        scratch: &mut Scratch<'a>,
        damage: &BaseDamage,
        step: SyncStep,
    ) -> Result<Outcome> {
        let length = self.source.size_bytes();
        let covered = |first: LeafIndex, count: u64| {
            count
                .saturating_mul(LEAF_SIZE_BYTES)
                .min(length.saturating_sub(first.offset()))
        };
        match step {
            SyncStep::Same { first, count } => Ok(Outcome::Same {
                bytes: covered(first, count),
                stats: SyncStats::default(),
            }),
            SyncStep::Zeros { first, count } => Ok(Outcome::Zeros {
                first,
                count,
                bytes: covered(first, count),
            }),
            SyncStep::Leaf(task) => self.work_on_leaf(scratch, damage, task, covered(task.leaf, 1)),
        }
    }

    fn work_on_leaf(
        &self,
        scratch: &mut Scratch<'a>,
        damage: &BaseDamage,
        task: LeafTask,
        bytes: u64,
    ) -> Result<Outcome> {
        let length = self.source.size_bytes();
        let scan = &mut scratch.scan;
        scan.scan(self.source, task.leaf, task.look, self.unreadable)
            .map_err(source_failed)?;
        let mut stats = scan_cost(scan);
        stats.compared_leaves = 1;
        let zero = NodeHash::zero(1);
        let kept = match &mut scratch.base {
            Some(base) => base
                .leaf_hash(task.leaf)
                .map_err(|error| damage.note(error))?,
            None => zero,
        };
        if scan.leaf_hash() == Some(kept) && scan.unreadable().is_empty() {
            let leaf = BlobName::Node {
                level: 1,
                hash: kept,
            };
            let blocks = scan.looked().iter().map(|slot| scan.hash(slot));
            let needed = std::iter::once(leaf).chain(blocks.map(BlobName::Block));
            self.check_listed(damage, task.leaf, needed)?;
            return Ok(Outcome::Same { bytes, stats });
        }
        let node = match &mut scratch.base {
            Some(base) if kept != zero => {
                base.leaf(task.leaf).map_err(|error| damage.note(error))?
            }
            _ => Node::zero(1),
        };
        let merge = LeafMerge::begin(node, &scan.description(), length)?;
        let mut blobs = Vec::with_capacity(merge.missing().len());
        for slot in merge.missing().iter() {
            let name = BlobName::Block(scan.hash(slot));
            if !is_there(self.blobs, self.repository, self.belief, &name)? {
                blobs.push(self.blobs.encode(name, scan.block(slot))?);
            }
        }
        let missing = merge.missing();
        let kept = merge.node().blocks().enumerate();
        let kept = kept.filter(|(slot, _)| !missing.contains(*slot));
        self.check_listed(
            damage,
            task.leaf,
            kept.map(|(_, hash)| BlobName::Block(hash)),
        )?;
        stats.changed_leaves = 1;
        stats.sent_blocks = merge.missing().len() as u64;
        let unreadable = scan.unreadable().to_vec();
        let (leaf, node) = (task.leaf, merge.node().clone());
        Ok(Outcome::Leaf(Box::new(NewLeaf {
            leaf,
            node,
            blobs,
            unreadable,
            bytes,
            stats,
        })))
    }

    /// What a version takes over from its base must be somewhere: damage does not pass from version to version.
    fn check_listed(
        &self,
        damage: &BaseDamage,
        leaf: LeafIndex,
        blobs: impl Iterator<Item = BlobName>,
    ) -> Result<()> {
        for name in blobs {
            if !self.repository.lists(&name)? {
                let what = format!("{name}, of leaf {}, is in no pack", leaf.0);
                damage.found(&what);
                return Err(Error::new(ErrorKind::NotFound, what));
            }
        }
        Ok(())
    }
}

fn source_failed(error: block::Error) -> Error {
    let kind = Error::from(block::Error::new(error.kind(), "")).kind();
    Error::new(kind, "reading the source disk").caused_by(error)
}

fn scan_cost(scan: &LeafScan) -> SyncStats {
    let cost = scan.stats();
    SyncStats {
        read_bytes: cost.read_bytes,
        hashed_bytes: cost.hashed_bytes,
        known_zero_bytes: cost.known_zero_bytes,
        ..SyncStats::default()
    }
}

/// Says when the next checkpoint is due.
struct Pace<'a> {
    every: CheckpointEvery,
    clock: &'a dyn repo::Clock,
    stored_bytes: u64,
    since_ms: u64,
}

impl<'a> Pace<'a> {
    fn new(every: CheckpointEvery, clock: &'a dyn repo::Clock) -> Self {
        Self {
            every,
            clock,
            stored_bytes: 0,
            since_ms: clock.monotonic_ms(),
        }
    }

    fn stored(&mut self, bytes: u64) {
        self.stored_bytes = self.stored_bytes.saturating_add(bytes);
    }

    fn is_due(&self) -> bool {
        self.stored_bytes >= self.every.stored_bytes
            || (self.stored_bytes > 0
                && self.clock.monotonic_ms().saturating_sub(self.since_ms) >= self.every.elapsed_ms)
    }

    fn restart(&mut self) {
        self.stored_bytes = 0;
        self.since_ms = self.clock.monotonic_ms();
    }
}
