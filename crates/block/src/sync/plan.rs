//! What the source looks at: every leaf that is not known to be zero, or only what change tracking names.
//!
//! ```text
//!   Everything      Leaf Leaf Zeros────────── Leaf Leaf        extents decide what is zero
//!   Changed         Same───── Leaf(2 slots) Same──── Leaf      ranges decide what is looked at
//! ```
//!
//! Steps come in ascending order, cover every leaf exactly once, and a run costs one step however long it is.
//! The audit draws a sample of what tracking calls unchanged, from a seed, before the first step is taken.

use super::SlotSet;
use crate::geometry::{self, BLOCK_SIZE_BYTES, LEAF_SIZE_BYTES};
use crate::ranges::{ByteRange, ChangedRanges};
use crate::{BlockIndex, Error, ErrorKind, LeafIndex, ReadAt, Result};

/// Most extents looked at for one step, so that a step's cost is bounded however an image is cut up.
const MAX_EXTENTS_PER_STEP: usize = 65_536;

/// How much of the disk is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of it, as far as it is not known to be zero.
    Everything,
    /// What may have changed since the base; the rest is what the base has.
    Changed(ChangedRanges),
}

/// One leaf to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafTask {
    /// The leaf.
    pub leaf: LeafIndex,
    /// Its blocks that are to be read and named.
    pub look: SlotSet,
}

/// One step of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncStep {
    /// Leaves known to be zero without reading.
    Zeros {
        /// The first.
        first: LeafIndex,
        /// How many.
        count: u64,
    },
    /// Leaves that are what the base has.
    Same {
        /// The first.
        first: LeafIndex,
        /// How many.
        count: u64,
    },
    /// A leaf to look at.
    Leaf(LeafTask),
}

/// The steps of one transfer, drawn one by one.
#[derive(Debug, Clone)]
pub struct SyncPlan {
    length_bytes: u64,
    scope: Scope,
    next: LeafIndex,
}

impl SyncPlan {
    /// Plans a disk of `length_bytes` against a base. Without a base there is nothing that could be unchanged, so that
    /// everything is looked at; what a change of length touches, and `look_also`, is looked at in any case.
    pub fn new(
        length_bytes: u64,
        base_length_bytes: Option<u64>,
        scope: Scope,
        look_also: &ChangedRanges,
    ) -> Self {
        let scope = match (scope, base_length_bytes) {
            (Scope::Changed(ranges), Some(base)) => {
                let ranges = ranges.union(look_also).union(&resized(base, length_bytes));
                Scope::Changed(ranges.rounded_to_blocks(length_bytes))
            }
            _ => Scope::Everything,
        };
        Self {
            length_bytes,
            scope,
            next: LeafIndex(0),
        }
    }

    /// What is looked at; ranges are rounded out to blocks.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The first leaf that no step has covered.
    pub fn position(&self) -> LeafIndex {
        self.next
    }

    /// Goes on from `leaf`: what lies before it was done by someone else.
    pub fn skip_to(&mut self, leaf: LeafIndex) {
        self.next = self.next.max(leaf);
    }

    /// The next step; `None` at the end of the disk.
    ///
    /// # Errors
    /// Whatever the source answers about its extents.
    pub fn next_step(&mut self, source: &(impl ReadAt + ?Sized)) -> Result<Option<SyncStep>> {
        let leaves = geometry::leaf_count(self.length_bytes);
        let first = self.next;
        if first.0 >= leaves {
            return Ok(None);
        }
        let (look, limit) = match &self.scope {
            Scope::Everything => (SlotSet::ALL, self.length_bytes),
            Scope::Changed(ranges) => {
                let touched = ranges.first_from(first.offset());
                let holding = touched.map_or(leaves, |range| range.offset / LEAF_SIZE_BYTES);
                if holding > first.0 {
                    let count = holding.min(leaves) - first.0;
                    return Ok(Some(self.cover(SyncStep::Same { first, count }, count)));
                }
                (ranges.slots(first), touched.map_or(0, |range| range.end()))
            }
        };
        let zeros = self.zero_leaves(source, first, limit.min(self.length_bytes))?;
        if zeros > 0 {
            return Ok(Some(self.cover(
                SyncStep::Zeros {
                    first,
                    count: zeros,
                },
                zeros,
            )));
        }
        Ok(Some(
            self.cover(SyncStep::Leaf(LeafTask { leaf: first, look }), 1),
        ))
    }

    fn cover(&mut self, step: SyncStep, count: u64) -> SyncStep {
        self.next = LeafIndex(self.next.0.saturating_add(count));
        step
    }

    /// How many whole leaves from `first` on are known to be zero and lie before `limit`.
    fn zero_leaves(
        &self,
        source: &(impl ReadAt + ?Sized),
        first: LeafIndex,
        limit: u64,
    ) -> Result<u64> {
        let start = first.offset();
        let whole = limit.saturating_sub(start) >= LEAF_SIZE_BYTES || limit == self.length_bytes;
        let mut at = start;
        let mut looked = 0;
        // A range that touches a part of this leaf says nothing about the rest of it.
        while whole && at < limit && looked < MAX_EXTENTS_PER_STEP {
            let extent = source.extent_at(at, limit - at)?;
            if !extent.kind.is_zero() {
                break;
            }
            if extent.length_bytes == 0 {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("the source describes an empty extent at {at}"),
                ));
            }
            at = extent.end().min(limit);
            looked += 1;
        }
        let end = if at == self.length_bytes {
            geometry::leaf_count(self.length_bytes)
        } else {
            at / LEAF_SIZE_BYTES
        };
        // In a changed scope the first leaf counts only when it is touched from its first byte on.
        let from_start = match &self.scope {
            Scope::Everything => true,
            Scope::Changed(ranges) => ranges
                .first_from(start)
                .is_some_and(|range| range.offset == start),
        };
        Ok(if from_start {
            end.saturating_sub(first.0)
        } else {
            0
        })
    }
}

/// What a change of length touches: from the block of the nearer end to the new end.
fn resized(base_bytes: u64, length_bytes: u64) -> ChangedRanges {
    if base_bytes == length_bytes {
        return ChangedRanges::none();
    }
    let nearer = base_bytes.min(length_bytes);
    let offset = nearer - nearer % BLOCK_SIZE_BYTES;
    let range = ByteRange {
        offset,
        length_bytes: length_bytes.saturating_sub(offset),
    };
    // Offset plus length is the length of a disk, which was checked.
    ChangedRanges::new([range]).unwrap_or_default()
}

/// A seeded sample of the blocks that tracking calls unchanged, leaf by leaf.
#[derive(Debug, Clone)]
pub struct AuditPlan {
    changed: ChangedRanges,
    blocks: u64,
    next: u64,
    per_million: u32,
    random: u64,
}

impl AuditPlan {
    /// Samples the unchanged blocks of a base of `length_bytes`, `per_million` of a million, drawn from `seed`.
    pub fn new(changed: &ChangedRanges, length_bytes: u64, per_million: u32, seed: u64) -> Self {
        let blocks = if per_million == 0 {
            0
        } else {
            geometry::block_count(length_bytes)
        };
        let changed = changed.rounded_to_blocks(length_bytes);
        let mut plan = Self {
            changed,
            blocks,
            next: 0,
            per_million,
            random: seed,
        };
        plan.next = plan.gap();
        plan
    }

    /// The next leaf with sampled blocks, in ascending order.
    pub fn next_task(&mut self) -> Option<LeafTask> {
        let mut task: Option<LeafTask> = None;
        while self.next < self.blocks {
            let block = BlockIndex(self.next);
            if task.as_ref().is_some_and(|task| task.leaf != block.leaf()) {
                break;
            }
            self.next = self.next.saturating_add(1).saturating_add(self.gap());
            let range = ByteRange {
                offset: block.offset(),
                length_bytes: BLOCK_SIZE_BYTES,
            };
            if !self.changed.touches(range) {
                let task = task.get_or_insert(LeafTask {
                    leaf: block.leaf(),
                    look: SlotSet::EMPTY,
                });
                task.look.insert(block.slot());
            }
        }
        task
    }

    /// Blocks passed over before the next sampled one: geometrically distributed, so that the cost is the sample's.
    fn gap(&mut self) -> u64 {
        if self.per_million >= 1_000_000 || self.per_million == 0 {
            return 0;
        }
        // SplitMix64 (public domain, Steele, Lea and Flood 2014): a sample needs spread, not secrecy.
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        let uniform = ((mixed >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        let chance = f64::from(self.per_million) / 1e6;
        (uniform.ln() / (1.0 - chance).ln()) as u64
    }
}
