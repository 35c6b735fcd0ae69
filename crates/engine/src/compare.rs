//! A disk against a tree: what differs, found by hashes alone.
//!
//! ```text
//!   disk:  extents ─► scan ─► block hashes ┐
//!                                          ├─► differing blocks, in order
//!   tree:  leaf hash, leaf node ───────────┘   a leaf whose hash is equal costs 32 bytes of tree
//! ```
//!
//! Where the disk knows to be zero, only the tree is asked. The stored bytes are never read.

use block::sync::{LeafScan, Scope, SlotSet, SyncPlan, SyncStats, SyncStep, Unreadable};
use block::tree::{DiskTree, Node, NodeSource, TreeReader};
use block::{
    BLOCK_SIZE_BYTES, BlockHash, ByteRange, ChangedRanges, FANOUT, LEAF_SIZE_BYTES, LeafIndex,
    NodeHash, ReadAt,
};

use crate::job::JobContext;
use crate::pipeline::{Width, run_ordered};
use crate::{Error, Result};

/// Leaves of a zero run that one worker looks at.
const ZERO_LEAVES_PER_STEP: u64 = 128;

/// Which leaves are compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeafWindow {
    pub first: LeafIndex,
    /// The first that is not.
    pub end: LeafIndex,
}

impl LeafWindow {
    /// All of them.
    pub(crate) const ALL: Self = Self {
        first: LeafIndex(0),
        end: LeafIndex(u64::MAX),
    };
}

/// Which blocks of a leaf of the disk are not what the tree has.
pub(crate) struct LeafMismatch {
    pub leaf: LeafIndex,
    pub slots: SlotSet,
    /// What the tree has there.
    pub wanted: Node,
}

struct Scratch<'a> {
    scan: LeafScan,
    tree: TreeReader<'a>,
}

/// Compares `disk` with `tree` and hands every leaf that differs to `found`, in order. Blocks behind the disk's end count
/// as zeros. Answers what it cost. The caller begins and ends the step that it advances.
pub(crate) fn compare_with_tree(
    disk: &dyn ReadAt,
    tree: DiskTree,
    nodes: &dyn NodeSource,
    window: LeafWindow,
    context: JobContext<'_>,
    mut found: impl FnMut(LeafMismatch) -> Result<()>,
) -> Result<SyncStats> {
    let mut stats = SyncStats::default();
    let mut steps = Steps::new(disk, tree, window);
    run_ordered(
        Width::of(None),
        || {
            context.cancel.check()?;
            steps.next()
        },
        || {
            Ok(Scratch {
                scan: LeafScan::new(),
                tree: TreeReader::new(tree, nodes)?,
            })
        },
        |scratch, step| compare_step(disk, scratch, step),
        |(mismatches, cost, bytes)| {
            stats.add(&cost);
            context.progress.advance(bytes);
            mismatches.into_iter().try_for_each(&mut found)
        },
    )?;
    Ok(stats)
}

/// The steps of a comparison over the longer of both.
struct Steps<'a> {
    disk: &'a dyn ReadAt,
    plan: SyncPlan,
    length_bytes: u64,
    /// A zero run that is handed out in pieces.
    zeros: Option<(LeafIndex, u64)>,
    behind_disk: bool,
    window: LeafWindow,
}

impl<'a> Steps<'a> {
    fn new(disk: &'a dyn ReadAt, tree: DiskTree, window: LeafWindow) -> Self {
        let mut plan = SyncPlan::new(
            disk.size_bytes(),
            None,
            Scope::Everything,
            &ChangedRanges::none(),
        );
        let length_bytes = disk.size_bytes().max(tree.length_bytes);
        plan.skip_to(window.first);
        Self {
            disk,
            plan,
            length_bytes,
            zeros: None,
            behind_disk: false,
            window,
        }
    }

    /// The next step that begins in the window.
    fn next(&mut self) -> Result<Option<SyncStep>> {
        let step = self.next_anywhere()?;
        Ok(step.filter(|step| match step {
            SyncStep::Leaf(task) => task.leaf < self.window.end,
            SyncStep::Same { first, .. } | SyncStep::Zeros { first, .. } => {
                *first < self.window.end
            }
        }))
    }

    fn next_anywhere(&mut self) -> Result<Option<SyncStep>> {
        if let Some((first, count)) = self.zeros.take() {
            return Ok(Some(self.some_zeros(first, count)));
        }
        match self.plan.next_step(self.disk).map_err(disk_failed)? {
            Some(SyncStep::Zeros { first, count }) => Ok(Some(self.some_zeros(first, count))),
            Some(step) => Ok(Some(step)),
            None if self.behind_disk => Ok(None),
            None => {
                self.behind_disk = true;
                let first =
                    block::geometry::leaf_count(self.disk.size_bytes()).max(self.window.first.0);
                let count = block::geometry::leaf_count(self.length_bytes).saturating_sub(first);
                Ok((count > 0).then(|| self.some_zeros(LeafIndex(first), count)))
            }
        }
    }

    fn some_zeros(&mut self, first: LeafIndex, count: u64) -> SyncStep {
        let inside = self.window.end.0.saturating_sub(first.0).max(1);
        let taken = count.min(ZERO_LEAVES_PER_STEP).min(inside);
        if count > taken {
            self.zeros = Some((LeafIndex(first.0.saturating_add(taken)), count - taken));
        }
        SyncStep::Zeros {
            first,
            count: taken,
        }
    }
}

type Compared = (Vec<LeafMismatch>, SyncStats, u64);

fn compare_step(disk: &dyn ReadAt, scratch: &mut Scratch<'_>, step: SyncStep) -> Result<Compared> {
    match step {
        SyncStep::Leaf(task) => {
            let scan = &mut scratch.scan;
            scan.scan(disk, task.leaf, task.look, Unreadable::Fail)
                .map_err(disk_failed)?;
            let cost = scan.stats();
            let mut stats = SyncStats {
                read_bytes: cost.read_bytes,
                hashed_bytes: cost.hashed_bytes,
                known_zero_bytes: cost.known_zero_bytes,
                compared_leaves: 1,
                ..SyncStats::default()
            };
            let wanted = scratch.tree.leaf_hash(task.leaf)?;
            if scan.leaf_hash() == Some(wanted) {
                return Ok((Vec::new(), stats, LEAF_SIZE_BYTES));
            }
            stats.changed_leaves = 1;
            let node = scratch.tree.leaf(task.leaf)?;
            let slots = differing(&node, |slot| scan.hash(slot));
            let mismatch = LeafMismatch {
                leaf: task.leaf,
                slots,
                wanted: node,
            };
            Ok((vec![mismatch], stats, LEAF_SIZE_BYTES))
        }
        SyncStep::Zeros { first, count } | SyncStep::Same { first, count } => {
            let mut mismatches = Vec::new();
            let end = first.0.saturating_add(count);
            let mut at = first;
            while at.0 < end {
                let Some(run) = scratch.tree.run_at(at)? else {
                    break;
                };
                if run.hash != NodeHash::zero(1) {
                    let wanted = scratch.tree.leaf(at)?;
                    let slots = differing(&wanted, |_| BlockHash::zero());
                    mismatches.push(LeafMismatch {
                        leaf: at,
                        slots,
                        wanted,
                    });
                }
                at = LeafIndex(at.0.saturating_add(run.count));
            }
            let bytes = count.saturating_mul(LEAF_SIZE_BYTES);
            let changed_leaves = mismatches.len() as u64;
            let stats = SyncStats {
                known_zero_bytes: bytes,
                changed_leaves,
                ..SyncStats::default()
            };
            Ok((mismatches, stats, bytes))
        }
    }
}

fn differing(wanted: &Node, hash: impl Fn(usize) -> BlockHash) -> SlotSet {
    let mut slots = SlotSet::EMPTY;
    for slot in (0..FANOUT).filter(|slot| wanted.block(*slot) != hash(*slot)) {
        slots.insert(slot);
    }
    slots
}

fn disk_failed(error: block::Error) -> Error {
    let kind = Error::from(block::Error::new(error.kind(), "")).kind();
    Error::new(kind, "reading the disk that is compared").caused_by(error)
}

/// The bytes of some blocks of a leaf, as ranges cut off at the end of the disk.
pub(crate) fn slot_ranges(leaf: LeafIndex, slots: SlotSet, length_bytes: u64) -> Vec<ByteRange> {
    let mut ranges: Vec<ByteRange> = Vec::new();
    for slot in slots.iter() {
        let offset = leaf
            .offset()
            .saturating_add((slot as u64).saturating_mul(BLOCK_SIZE_BYTES));
        let length = BLOCK_SIZE_BYTES.min(length_bytes.saturating_sub(offset));
        match ranges.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.end() == offset => last.length_bytes += length,
            _ => ranges.push(ByteRange {
                offset,
                length_bytes: length,
            }),
        }
    }
    ranges
}
