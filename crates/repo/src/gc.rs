//! Garbage collection: two phases by generation, beside everything else that runs, without a clock.
//!
//! ```text
//!   alone? ─► bury the dead ─► settle what earlier collectors left ─► list packs, then leases, points, marks ─► mark ─► plan
//!        ┌──────────────────────────────────────────────────────────────────────────────────────────────┘
//!        ├─► generation g: dead packs, forgotten points
//!        ├─► repack: live blobs of sparse and small packs into new packs, then their index segment
//!        ├─► generation g+1: the packs that were packed anew
//!        └─► write down the numbers that are given, merge index segments, bundle points
//!
//!   one generation:  put condemned ─► wait for every lease ─► list leases, THEN points and marks, mark again with the
//!                    condemned packs counted as absent ─► put verdict (condemned minus rescued) ─► delete
//! ```
//!
//! # Why nothing live is deleted
//! A pack is deleted only if it was listed before the leases and points that were marked, nothing marked needs it, no lease
//! may have put it, and, after every lease that was there knew of its condemnation or can never commit, still no point
//! and no lease needs it.
//! - *A point committed after the first marking* either counted on no condemned pack (its writer knew), or its writer claimed
//!   it (rescued), or its writer was fenced (no point), or it is visible when points are listed again, because its lease
//!   was gone when leases were listed: the second marking finds what it needs.
//! - *A writer that starts later* reads `gc/` after it put its lease, so that it knows.
//! - *A second collector* can only come when the first one's lease is stalled or gone; it ends the first one's generation by
//!   its own verdict, and the first one stops when its verdict is refused.
//!
//! # Concurrency
//! What is safe, row while column is in progress, and by what:
//!
//! | | backup | restore, verify, copy from | gc | forget, retention | undelete | repair |
//! |---|---|---|---|---|---|---|
//! | **backup** | other name: disjoint; same name: reserved point, Busy | immutable objects | lease: roots, own packs, claims; condemned = absent | parent is a root of the lease | adds only | adds before it deletes; a lost pack is looked up again |
//! | **restore, verify, copy from** | points appear whole | read only | roots of the lease; a moved blob is looked up again | roots of the lease | read only | looked up again |
//! | **gc** | waits for observation, marks again | waits, marks their roots | Busy; else verdict decides | marks are read after the leases | empty verdict ends the generation | Busy: repair has the collector's place |
//! | **forget, retention** | newest points stay | mark only | counts from the next generation on | marks are ordered by number | higher number wins | mark only |
//! | **undelete** | adds only | mark only | lease first, then mark, then abort; a verdict wins: error | higher number wins | same mark twice | mark only |
//! | **repair** | adds before it deletes | looked up again | Busy | reads marks | reads marks | Busy |
//!
//! **What it does not do.** It reads no data blob unless it packs it anew or lets its second copy go, and repairs nothing: what is damaged is reported,
//! stays, and does not stop it.

pub(crate) mod census;
mod delete;
mod fold;
pub(crate) mod ground;
pub(crate) mod mark;
pub(crate) mod numbers;
mod plan;
pub(crate) mod records;
mod repack;
mod report;
mod run;
mod spare;
mod undelete;
pub(crate) mod wait;

pub(crate) use delete::retired_points;
pub(crate) use fold::{SegmentScope, merge_segments};
pub use numbers::{NumberSet, Numbers, Seen};
pub use plan::{GcMode, GcOptions, MissingPolicy, PackFacts, PackPlan, PinReason, plan_packs};
pub use records::{Condemned, Verdict, VerdictOutcome};
pub(crate) use repack::BlobMover;
pub use report::{GcPhase, GcReport, Quarantined, WaitedFor};
pub use run::collect_garbage;
