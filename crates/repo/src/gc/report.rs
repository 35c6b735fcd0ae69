//! What a collection did, counted: every number was measured.

use crate::lease::{BreakOutcome, LeaseKind};
use crate::points::PointKey;
use crate::{LeaseId, PackId};

use super::plan::GcMode;

/// A damaged or missing object that was met; it is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The object or blob.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// A lease that the collection waited for or broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitedFor {
    /// The lease.
    pub lease: LeaseId,
    /// What its owner does, if its beat is readable.
    pub kind: Option<LeaseKind>,
    /// Host and process, for people.
    pub owner: String,
    /// How it ended, if it had to be broken.
    pub broken: Option<BreakOutcome>,
}

/// Counts and bytes of one phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcPhase {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub size_bytes: u64,
}

impl GcPhase {
    pub(crate) fn add(&mut self, size_bytes: u64) {
        self.objects = self.objects.saturating_add(1);
        self.size_bytes = self.size_bytes.saturating_add(size_bytes);
    }
}

/// What one run of garbage collection found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcReport {
    /// Whether anything was changed.
    pub mode: GcMode,
    /// Generations that this run opened.
    pub generations: Vec<u64>,
    /// Generations of earlier runs that it finished.
    pub finished: Vec<u64>,
    /// Generations of earlier runs that it aborted.
    pub aborted: Vec<u64>,
    /// Packs in the store at the start.
    pub packs_before: GcPhase,
    /// Blobs in them, and how many of these are needed.
    pub blobs: u64,
    /// Blobs that points and leases need.
    pub live_blobs: u64,
    /// Nodes that marking read.
    pub nodes_read: u64,
    /// Packs without a live blob (to be) deleted.
    pub dead: GcPhase,
    /// Packs (to be) packed anew and deleted.
    pub repacked: GcPhase,
    /// Packs that repacking wrote.
    pub written: GcPhase,
    /// Packs deleted in all.
    pub deleted: GcPhase,
    /// Condemned packs that turned out to be needed.
    pub rescued: Vec<PackId>,
    /// Forgotten points that were removed.
    pub dropped: Vec<PointKey>,
    /// Points moved into bundles.
    pub bundled: u64,
    /// Index segments before and after.
    pub segments_before: u64,
    /// Index segments that are left.
    pub segments_after: u64,
    /// Damaged objects that were met.
    pub quarantined: Vec<Quarantined>,
    /// Whether packs were spared because live blobs are missing or cannot be read.
    pub spared: bool,
    /// Whether repacking was left out because the store is full.
    pub store_full: bool,
    /// Whom it waited for.
    pub waited_for: Vec<WaitedFor>,
}

impl GcReport {
    pub(crate) fn new(mode: GcMode) -> Self {
        Self {
            mode,
            generations: Vec::new(),
            finished: Vec::new(),
            aborted: Vec::new(),
            packs_before: GcPhase::default(),
            blobs: 0,
            live_blobs: 0,
            nodes_read: 0,
            dead: GcPhase::default(),
            repacked: GcPhase::default(),
            written: GcPhase::default(),
            deleted: GcPhase::default(),
            rescued: Vec::new(),
            dropped: Vec::new(),
            bundled: 0,
            segments_before: 0,
            segments_after: 0,
            quarantined: Vec::new(),
            spared: false,
            store_full: false,
            waited_for: Vec::new(),
        }
    }
}
