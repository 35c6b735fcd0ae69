//! What one generation does, decided from collected facts alone: which packs go, which are packed anew, which stay.
//!
//! ```text
//!   no blob live ─────────────────────────────► dead
//!   live part below the threshold ──┐
//!   small, and others of its kind ──┴─ budget ► repack: live blobs move, then the pack goes
//!   own pack of a lease, damaged ─────────────► stays, whatever is live in it
//!   everything else ──────────────────────────► stays
//! ```
//!
//! **Invariant.** Pure: the same facts give the same plan. A pack that a lease may have put is in no list.

use crate::format::PackKind;
use crate::{KeyId, PackId};

/// Bounds of what a collection may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcOptions {
    /// Packs with fewer live blobs than this, in percent, are packed anew.
    pub repack_below_percent: u8,
    /// Packs smaller than this, in percent of the target size, are merged with others of their kind.
    pub merge_below_percent: u8,
    /// Most live bytes (stored form) that are moved in one run; zero = no repacking.
    pub repack_budget_bytes: u64,
    /// Index segments are merged when there are more than this many.
    pub segments_max: usize,
    /// Single points are bundled when there are at least this many.
    pub bundle_points_min: usize,
    /// What to do when live blobs are missing.
    pub on_missing: MissingPolicy,
    /// Whether anything is changed.
    pub mode: GcMode,
}

/// What to do when points need blobs that no pack has, or nodes that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MissingPolicy {
    /// Delete no pack: what is below a missing or damaged node cannot be told from garbage, and a missing pack may come back
    /// with a directory that was not mounted.
    SparePacks,
    /// Go on: what hangs only on what is missing goes.
    Proceed,
}

/// Whether a collection is only tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GcMode {
    /// Find out and report.
    DryRun,
    /// Do it.
    Execute,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            repack_below_percent: 50,
            merge_below_percent: 25,
            repack_budget_bytes: 16 << 30,
            segments_max: 16,
            bundle_points_min: 64,
            on_missing: MissingPolicy::SparePacks,
            mode: GcMode::Execute,
        }
    }
}

/// What is known of one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackFacts {
    /// Its id.
    pub pack: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// The data key it is encrypted with.
    pub key: KeyId,
    /// Bytes of the whole object.
    pub stored_bytes: u64,
    /// Its blobs.
    pub blobs: u32,
    /// Those of them that something needs.
    pub live_blobs: u32,
    /// Why it must stay, if it must.
    pub pinned: Option<PinReason>,
}

/// Why a pack stays whatever is live in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PinReason {
    /// A living lease may have put it: its point is still to come.
    OwnedByLease,
    /// It is damaged: repair may still need what is in it.
    Damaged,
}

/// Packs to delete and to pack anew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackPlan {
    /// Nothing in them is live.
    pub dead: Vec<PackId>,
    /// Their live blobs move; in the order in which they are to be read.
    pub repack: Vec<PackId>,
}

/// Live bytes of a pack, estimated by its blobs: their stored lengths differ little within a pack.
pub(crate) fn live_bytes(facts: &PackFacts) -> u64 {
    if facts.blobs == 0 {
        return 0;
    }
    let product = u128::from(facts.stored_bytes).saturating_mul(u128::from(facts.live_blobs));
    u64::try_from(product / u128::from(facts.blobs)).unwrap_or(u64::MAX)
}

/// Sorts packs into dead, repack and the rest.
pub fn plan_packs(
    facts: &[PackFacts],
    options: &GcOptions,
    target_bytes: impl Fn(PackKind) -> u64,
) -> PackPlan {
    let movable = |pack: &&PackFacts| pack.pinned.is_none();
    let dead: Vec<PackId> = facts
        .iter()
        .filter(movable)
        .filter(|pack| pack.live_blobs == 0)
        .map(|pack| pack.pack)
        .collect();

    let percent = |part: u64, percent: u8| part.saturating_mul(u64::from(percent)) / 100;
    let sparse = |pack: &PackFacts| {
        u64::from(pack.live_blobs).saturating_mul(100)
            < u64::from(pack.blobs).saturating_mul(u64::from(options.repack_below_percent))
    };
    let small = |pack: &PackFacts| {
        pack.stored_bytes < percent(target_bytes(pack.kind), options.merge_below_percent)
    };
    let mut wanted: Vec<&PackFacts> = Vec::new();
    for kind in PackKind::ALL {
        let alive: Vec<&PackFacts> = facts
            .iter()
            .filter(movable)
            .filter(|pack| pack.kind == kind && pack.live_blobs > 0)
            .collect();
        wanted.extend(alive.iter().filter(|pack| sparse(pack)));
        // Merging pays only if it makes fewer packs: together they must fill at least half of the packs they are.
        let merge: Vec<&PackFacts> = alive
            .iter()
            .copied()
            .filter(|pack| !sparse(pack) && small(pack))
            .collect();
        let bytes: u64 = merge.iter().map(|pack| live_bytes(pack)).sum();
        let after = bytes.div_ceil(target_bytes(kind).max(1));
        let count = u64::try_from(merge.len()).unwrap_or(u64::MAX);
        if count >= 4 && after.saturating_mul(2) <= count {
            wanted.extend(merge);
        }
    }
    // The most space for the fewest moved bytes first.
    wanted.sort_by_key(|pack| {
        let moved = live_bytes(pack);
        let share =
            u128::from(moved).saturating_mul(1_000_000) / u128::from(pack.stored_bytes.max(1));
        (share, pack.pack)
    });
    let mut left = options.repack_budget_bytes;
    let mut repack = Vec::new();
    for pack in wanted {
        let moved = live_bytes(pack);
        if moved <= left {
            left = left.saturating_sub(moved);
            repack.push(pack.pack);
        }
    }
    PackPlan { dead, repack }
}
