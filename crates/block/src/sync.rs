//! Checksum sync: how a disk's next version travels from where it lies to where it is kept.
//!
//! ```text
//!   target (has the base's hashes)                    source (has the disk)
//!        │ Begin{base, look also}                         │
//!        ├───────────────────────────────────────────────►│
//!        │                 Audit{block hashes}            │   only with change tracking: a sample of what
//!        │◄───────────────────────────────────────────────┤   it calls unchanged, before anything else
//!        │ AuditVerdict{lies}                             │   a lie → the source compares everything
//!        ├───────────────────────────────────────────────►│
//!        │                 AskBase{leaves}                │
//!        │◄───────────────────────────────────────────────┤
//!        │ BaseLeaves{runs}                               │   32 bytes per 8 MiB
//!        ├───────────────────────────────────────────────►│
//!        │     Same | Zeros | Leaf{slots, hashes}         │
//!        │◄───────────────────────────────────────────────┤   one per leaf (or run of leaves), any order
//!        │ Want{leaf, slots}                              │   unless the base has nothing there:
//!        ├───────────────────────────────────────────────►│   then the blocks follow at once
//!        │                 Block{leaf, slot, bytes}       │
//!        │◄───────────────────────────────────────────────┤
//!        │                 Finish{top}                    │
//!        │◄───────────────────────────────────────────────┤
//! ```
//!
//! - [`SyncSource`] and [`SyncTarget`]: the two ends; they take and give messages and know no transport.
//! - [`SyncPlan`], [`LeafScan`], [`LeafMerge`]: the parts they are made of, for a driver that has both ends in one
//!   process and works on many leaves at once.
//!
//! **Invariants.** The target believes a block only after hashing it. It never tells a source about a hash that is not
//! in the source's own base. A block that is not looked at keeps the base's hash, and which blocks may be passed over is
//! decided by change tracking and by nothing else. Memory is bounded on both ends whatever the peer says.
//!
//! Left-out ranges need nothing here: a source shows them as zero extents ([`LeftOut`]).

mod left_out;
mod merge;
mod plan;
mod scan;
mod slots;
mod source;
mod target;

pub use left_out::LeftOut;
pub use merge::LeafMerge;
pub use plan::{AuditPlan, LeafTask, Scope, SyncPlan, SyncStep};
pub use scan::{LeafScan, ScanStats, Unreadable};
pub use slots::SlotSet;
pub use source::{SourceEvent, SourceOptions, SyncSource};
pub use target::{SyncTarget, TargetOptions, TargetSink};

use crate::ranges::ChangedRanges;
use crate::tree::{DiskTree, LeafRun, TreeBuilderStats};
use crate::{BlockHash, BlockIndex, LeafIndex, NodeHash};

/// Most leaves whose hashes are asked for at once: 8 TiB of zeros or 8 GiB of data fit well below a MiB.
pub const MAX_BASE_LEAVES: usize = 1024;
/// Most audited blocks in one message.
pub const MAX_AUDIT_BLOCKS: usize = 4096;

/// Messages about later leaves that a source sends at most while a leaf waits for an answer.
pub const MAX_MESSAGES_AHEAD: u64 = 128;

/// What the target says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Length of the base; `None` when there is none and everything is to be sent.
    pub base_length_bytes: Option<u64>,
    /// Ranges to be compared whatever change tracking says: what was left out of the base and is not any more, and where
    /// the remains of an interrupted transfer differ from the version that tracking counts from.
    pub look_also: ChangedRanges,
}

/// From target to source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToSource {
    /// The terms, first and once.
    Begin(Terms),
    /// Audited blocks that are not what the base has: change tracking did not tell the truth about them.
    AuditVerdict {
        /// The blocks.
        lies: Vec<BlockIndex>,
    },
    /// Names of the base's leaves, in answer to [`ToTarget::AskBase`], in ascending order without a gap.
    BaseLeaves {
        /// Runs of equal leaves.
        runs: Vec<LeafRun>,
    },
    /// Blocks of a described leaf that are to be sent.
    Want {
        /// The leaf.
        leaf: LeafIndex,
        /// The blocks.
        slots: SlotSet,
    },
}

/// From source to target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToTarget {
    /// Length of the disk, in answer to the terms.
    Begin {
        /// Length in bytes.
        length_bytes: u64,
    },
    /// Blocks that tracking calls unchanged, as they are now. An empty list ends the audit.
    Audit {
        /// At most [`MAX_AUDIT_BLOCKS`].
        blocks: Vec<(BlockIndex, BlockHash)>,
    },
    /// Asks for the names of the base's leaves.
    AskBase {
        /// The first.
        first: LeafIndex,
        /// At most how many runs are wanted, up to [`MAX_BASE_LEAVES`].
        count: usize,
    },
    /// These leaves are what the base has.
    Same {
        /// The first.
        first: LeafIndex,
        /// How many.
        count: u64,
    },
    /// These leaves are zero.
    Zeros {
        /// The first.
        first: LeafIndex,
        /// How many.
        count: u64,
    },
    /// What some or all blocks of a leaf are now; the others are what the base has.
    Leaf(LeafDescription, Delivery),
    /// A block that was wanted (or would be, when the base's leaf is zero).
    Block {
        /// The leaf.
        leaf: LeafIndex,
        /// Which of its blocks.
        slot: usize,
        /// The block, padded with zeros if it is the last one.
        bytes: Vec<u8>,
    },
    /// Nothing more comes.
    Finish {
        /// The source's own top, when it looked at everything.
        top: Option<NodeHash>,
    },
}

/// When a described leaf's blocks travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// After the target has said which it wants.
    OnRequest,
    /// Right behind the description, all that are not zero: the base has nothing there.
    AtOnce,
}

/// What some or all blocks of a leaf are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafDescription {
    /// The leaf.
    pub leaf: LeafIndex,
    /// The blocks that are described.
    pub slots: SlotSet,
    /// Their hashes, in the order of the slots.
    pub hashes: Vec<BlockHash>,
}

/// What a transfer cost and found. Bytes are counted in whole blocks of the disk, except what was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncStats {
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Bytes hashed (data that was read and was not zero).
    pub hashed_bytes: u64,
    /// Bytes known to be zero without reading them.
    pub known_zero_bytes: u64,
    /// Blocks that the base does not have at their place and that had to be sent.
    pub sent_blocks: u64,
    /// Leaves that were looked at.
    pub compared_leaves: u64,
    /// Leaves among them that differ from the base.
    pub changed_leaves: u64,
    /// Unchanged blocks that were read to audit change tracking.
    pub audited_blocks: u64,
    /// Audited blocks that had changed.
    pub lies: u64,
}

impl SyncStats {
    /// What travels between the ends: the blocks that were sent, a hash for every leaf that was compared, and the hashes of
    /// its blocks for every leaf that differed.
    pub fn sent_bytes(&self) -> u64 {
        let hash = std::mem::size_of::<crate::BlockHash>() as u64;
        let blocks = self.sent_blocks.saturating_mul(crate::BLOCK_SIZE_BYTES);
        let leaves = self.compared_leaves.saturating_mul(hash);
        let described = self
            .changed_leaves
            .saturating_mul(hash * crate::FANOUT as u64);
        blocks.saturating_add(leaves).saturating_add(described)
    }

    /// Adds the counters of a part.
    pub fn add(&mut self, part: &Self) {
        self.read_bytes += part.read_bytes;
        self.hashed_bytes += part.hashed_bytes;
        self.known_zero_bytes += part.known_zero_bytes;
        self.sent_blocks += part.sent_blocks;
        self.compared_leaves += part.compared_leaves;
        self.changed_leaves += part.changed_leaves;
        self.audited_blocks += part.audited_blocks;
        self.lies += part.lies;
    }
}

/// What the target has at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncOutcome {
    /// The new version's tree.
    pub tree: DiskTree,
    /// What building it did.
    pub nodes: TreeBuilderStats,
    /// Whether the source confirmed the top by its own count.
    pub confirmed: bool,
}
