//! Verification: the repository against its hashes.
//!
//! ```text
//!   every small object: checksum, name, kind, key, contents ─┐
//!   packs: directories (structure) · a sample · all of them ─┼─► damaged objects ─► trees of all points ─► points hit
//!   places of points: gaps that no record explains ──────────┘
//! ```
//!
//! | what was done to the store | found as |
//! |---|---|
//! | a bit of any object flipped, an object cut short or swapped with another | that object |
//! | a pack deleted | the blobs that it held, by every tree that needs them |
//! | a point, tombstone or bundle deleted | a number of a name that is neither a point, nor a tombstone, nor retired by a verdict |
//! | the newest point of a name deleted | if garbage was collected since it was there, it had a mark, or a later point names it as parent |
//! | a mark deleted | a gap in the numbers of its point's marks; the newest one if garbage was collected since it was there |
//! | a key slot deleted | if garbage was collected since it was there; one that the operator removed is told until the next time |
//! | a verdict or its copy deleted | missing |
//! | configuration, its copy or a keyring deleted | missing |
//! | index segments deleted | packs that no segment tells of (nothing is lost) |
//! | a heartbeat deleted | not here: its owner notices and stops |
//!
//! **Invariants.** Everything damaged is named; nothing is repaired. A point is called verified only by a full run that read
//! and hashed every blob it needs. Which packs a sample reads depends on its seed alone.

pub(crate) mod packs;
mod places;
mod pool;
mod small;
pub(crate) mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::catalog::PointMemory;
use crate::gc::census::PointCensus;
use crate::gc::ground::Ground;
use crate::gc::mark::is_damage;
use crate::lease::LeaseKind;
use crate::marks::{MarkDraft, MarkKind, PointVisibility, put_mark};
use crate::points::{PointKey, ProtectedName, RecoveryPoint};
use crate::read::{ReadProtection, ReadSession};
use crate::repository::Repository;
use crate::retention::PointHealth;
use crate::{Error, ErrorKind, NameId, Result};

pub use small::verify_without_keys;

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerifyScope {
    /// Every small object and every pack's directory; no blob but tree nodes.
    Structure,
    /// Besides, all blobs of some packs.
    Sample {
        /// Decides which packs.
        seed: u64,
        /// How many.
        budget: SampleBudget,
    },
    /// Every byte.
    Full,
}

/// Size of a sample; at least one pack is read if there is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SampleBudget {
    /// Packs of at most so many bytes together.
    Bytes(u64),
    /// So many hundredths of all packs.
    Percent(u8),
    /// So many packs.
    Packs(u64),
}

/// Whether the outcome is written down in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerifyMarks {
    /// Only reported.
    ReportOnly,
    /// Points that are hit get a `damaged` mark, sound ones a `verified` mark after a full run.
    Put,
}

/// What to verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyOptions {
    /// How much is read.
    pub scope: VerifyScope,
    /// What is written.
    pub marks: VerifyMarks,
    /// Whether garbage collection is kept off meanwhile. Marks are never put without a lease.
    pub protection: ReadProtection,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            scope: VerifyScope::Full,
            marks: VerifyMarks::Put,
            protection: ReadProtection::Lease,
        }
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingSeverity {
    /// Nothing that a point needs is lost; repair makes it whole again.
    Degraded,
    /// Something is lost, or cannot be trusted.
    Damaged,
}

/// One object that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object's name, or the blob's where no object is to blame.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// How bad it is.
    pub severity: FindingSeverity,
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VerifyCoverage {
    /// Small objects that were opened.
    pub small_objects: u64,
    /// Packs in the store.
    pub packs: u64,
    /// Packs of which every blob was read.
    pub packs_read: u64,
    /// Bytes of all packs.
    pub pack_bytes: u64,
    /// Bytes of the packs that were read.
    pub pack_bytes_read: u64,
    /// Blobs that were decoded and hashed.
    pub blobs_read: u64,
    /// Tree nodes that were walked, each once.
    pub nodes_walked: u64,
}

/// A point that cannot be given back whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedPoint {
    /// Whose point, if it could be read.
    pub name: Option<ProtectedName>,
    /// Which point.
    pub key: PointKey,
    /// Objects and blobs to blame, at most [`POINT_OBJECTS_MAX`].
    pub objects: Vec<String>,
}

/// Numbers of a name that nothing has and nothing explains: from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointGap {
    /// Whose.
    pub name_id: NameId,
    /// The first missing number.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

/// How often points may be forgotten while they are being protected, and packs moved while they are being read.
const LOOKS_MAX: usize = 16;

/// Most objects named per point; all of them are among the findings.
pub const POINT_OBJECTS_MAX: usize = 256;

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VerifyReport {
    /// Whether garbage collection was kept off meanwhile: by a lease, or not at all.
    pub protection: ReadProtection,
    /// How much was looked at.
    pub coverage: VerifyCoverage,
    /// Everything that is wrong, sorted, each once.
    pub findings: Vec<Finding>,
    /// Points that are hit.
    pub damaged_points: Vec<DamagedPoint>,
    /// Places where a point or tombstone must have been and nothing is.
    pub missing_points: Vec<PointGap>,
    /// Points that are sound as far as was read.
    pub sound_points: Vec<PointKey>,
}

impl VerifyReport {
    /// Whether nothing is lost.
    pub fn is_sound(&self) -> bool {
        self.damaged_points.is_empty()
            && self.missing_points.is_empty()
            && self
                .findings
                .iter()
                .all(|one| one.severity != FindingSeverity::Damaged)
    }

    pub(crate) fn find(
        &mut self,
        object: impl std::fmt::Display,
        what: impl std::fmt::Display,
        severity: FindingSeverity,
    ) {
        let (object, what) = (object.to_string(), what.to_string());
        self.findings.push(Finding {
            object,
            what,
            severity,
        });
    }

    /// Takes over what was found in one part.
    fn absorb(&mut self, mut part: Self) {
        self.findings.append(&mut part.findings);
        let (all, more) = (&mut self.coverage, part.coverage);
        for (sum, term) in [
            (&mut all.small_objects, more.small_objects),
            (&mut all.packs, more.packs),
            (&mut all.packs_read, more.packs_read),
            (&mut all.pack_bytes, more.pack_bytes),
            (&mut all.pack_bytes_read, more.pack_bytes_read),
            (&mut all.blobs_read, more.blobs_read),
            (&mut all.nodes_walked, more.nodes_walked),
        ] {
            *sum = sum.saturating_add(term);
        }
    }

    fn settle(&mut self) {
        self.findings.sort();
        self.findings.dedup();
        self.missing_points.sort_unstable();
        self.missing_points.dedup();
    }
}

impl Repository {
    /// Verifies the repository. Damage is no error: it is in the report.
    ///
    /// # Errors
    /// What the store answered, if that says nothing about what lies in it; [`crate::ErrorKind::Fenced`] when the lease
    /// was broken meanwhile; [`crate::ErrorKind::Denied`] when marks are to be put and nothing may be written.
    pub fn verify(&self, options: &VerifyOptions) -> Result<VerifyReport> {
        let ground = Ground::new(self)?;
        let protection = match (options.marks, options.protection) {
            (VerifyMarks::Put, ReadProtection::LeaseIfWritable) => ReadProtection::Lease,
            (_, protection) => protection,
        };
        let (census, session) = self.protect_visible(&ground, protection)?;
        ground.refresh()?;

        let mut report = VerifyReport {
            protection: session.protection(),
            ..VerifyReport::default()
        };
        small::check_small_objects(&ground.vault, &mut report)?;
        places::check_places(&ground, &census, &mut report)?;
        let mut bad = packs::check_packs(&ground, options.scope, &session, &mut report)?;
        let mut gone = BTreeSet::new();
        let (visible, mut walk) = loop {
            let mut visible = visible_points(&census);
            visible.retain(|point| !gone.contains(&point.key()));
            let walk = walk_points(
                &ground,
                options.scope,
                &session,
                &visible,
                &mut bad,
                &mut report,
            )?;
            let more = match (session.protection(), walk.damage.is_empty()) {
                (ReadProtection::None, false) => gone_meanwhile(&ground, &visible)?,
                _ => BTreeSet::new(),
            };
            if more.is_empty() {
                break (visible, walk);
            }
            gone.extend(more);
        };
        judge_points(&census, &visible, &walk, &mut report);
        report.findings.append(&mut walk.damage);
        report.settle();
        session.check()?;
        if options.marks == VerifyMarks::Put {
            self.write_down(options, &census, &report)?;
        }
        if let Some(session) = Arc::into_inner(session) {
            session.finish()?;
        }
        Ok(report)
    }

    /// Looks at all points and protects the visible ones. One that is forgotten in between makes it look again.
    fn protect_visible(
        &self,
        ground: &Ground,
        protection: ReadProtection,
    ) -> Result<(PointCensus, Arc<ReadSession>)> {
        let mut tries = 0usize;
        loop {
            // Nothing that was read before is believed: a flip since then must be found.
            let census = PointCensus::take(&ground.vault, &PointMemory::default())?;
            let visible = visible_points(&census);
            match self.read_session(LeaseKind::Verify, &visible, protection) {
                Err(error) if error.kind() == ErrorKind::NotFound && tries < LOOKS_MAX => {
                    tries = tries.saturating_add(1);
                }
                outcome => return Ok((census, outcome?)),
            }
        }
    }

    fn write_down(
        &self,
        options: &VerifyOptions,
        census: &PointCensus,
        report: &VerifyReport,
    ) -> Result<()> {
        let put = |key: PointKey, kind: MarkKind, objects: Vec<String>| {
            let Some(point) = census.points.get(&key) else {
                return Ok(());
            };
            let reason = String::new();
            let draft = MarkDraft {
                key,
                point: point.point,
                kind,
                reason,
                objects,
            };
            put_mark(self.vault().as_ref(), self.environment(), draft).map(|_| ())
        };
        for damaged in &report.damaged_points {
            let known = census
                .marks
                .get(&damaged.key)
                .map(crate::marks::PointMarks::health);
            if known != Some(PointHealth::Damaged) {
                put(damaged.key, MarkKind::Damaged, damaged.objects.clone())?;
            }
        }
        if options.scope == VerifyScope::Full {
            for key in &report.sound_points {
                put(*key, MarkKind::Verified, Vec::new())?;
            }
        }
        Ok(())
    }
}

/// What the trees of all points showed.
struct WalkedPoints {
    damage: Vec<Finding>,
    /// Which of it hits a point.
    hits: BTreeMap<PointKey, BTreeSet<usize>>,
}

/// Which of these points are not visible any more. Who reads without protection may miss what only they needed.
fn gone_meanwhile(ground: &Ground, visible: &[&RecoveryPoint]) -> Result<BTreeSet<PointKey>> {
    let now = PointCensus::take(&ground.vault, &PointMemory::default())?;
    let keys = visible.iter().map(|point| point.key());
    // One that cannot be read is still there: it is damaged, not gone.
    Ok(keys
        .filter(|key| {
            let is_there = now.points.contains_key(key)
                || now
                    .unreadable
                    .iter()
                    .any(|(_, other, _)| other.as_ref() == Some(key));
            !is_there || !is_visible(&now, *key)
        })
        .collect())
}

/// Says of each point whether it is hit.
fn judge_points(
    census: &PointCensus,
    visible: &[&RecoveryPoint],
    walk: &WalkedPoints,
    report: &mut VerifyReport,
) {
    for (object, key, _) in &census.unreadable {
        if let Some(key) = *key {
            let objects = vec![object.clone()];
            report.damaged_points.push(DamagedPoint {
                name: None,
                key,
                objects,
            });
        }
    }
    for point in visible {
        let objects: Vec<String> = walk
            .hits
            .get(&point.key())
            .into_iter()
            .flatten()
            .filter_map(|at| walk.damage.get(*at))
            .take(POINT_OBJECTS_MAX)
            .map(|finding| finding.object.clone())
            .collect();
        if objects.is_empty() {
            report.sound_points.push(point.key());
        } else {
            let name = Some(point.name.clone());
            report.damaged_points.push(DamagedPoint {
                name,
                key: point.key(),
                objects,
            });
        }
    }
}

/// Walks the trees. What garbage collection moved meanwhile is read where it lies now, and the walk begins again: of a full
/// run every place that a tree needs was read.
fn walk_points(
    ground: &Ground,
    scope: VerifyScope,
    session: &Arc<ReadSession>,
    visible: &[&RecoveryPoint],
    bad: &mut packs::BadPlaces,
    report: &mut VerifyReport,
) -> Result<WalkedPoints> {
    for _ in 0..LOOKS_MAX {
        let mut walk = walk::DamageWalk::new(ground, bad);
        let mut hits: BTreeMap<PointKey, BTreeSet<usize>> = BTreeMap::new();
        for point in visible {
            session.check()?;
            for disk in point.trees() {
                let found = walk.visit(disk.height, disk.top)?;
                hits.entry(point.key())
                    .or_default()
                    .extend(found.iter().copied());
            }
        }
        report.coverage.nodes_walked = walk.nodes_walked;
        if scope != VerifyScope::Full || !walk.met_unread {
            let damage = walk.damage;
            return Ok(WalkedPoints { damage, hits });
        }
        packs::check_new_packs(ground, scope, session, bad, report)?;
    }
    let what = "packs are moved faster than they can be read";
    Err(Error::new(ErrorKind::Busy, what))
}

fn visible_points(census: &PointCensus) -> Vec<&RecoveryPoint> {
    let shown = census
        .points
        .iter()
        .filter(|(key, _)| is_visible(census, **key));
    shown.map(|(_, point)| point).collect()
}

fn is_visible(census: &PointCensus, key: PointKey) -> bool {
    census
        .marks
        .get(&key)
        .is_none_or(|marks| marks.visibility() == PointVisibility::Visible)
}

/// Damage becomes a finding; everything else ends the verification.
fn note(
    report: &mut VerifyReport,
    object: &dyn std::fmt::Display,
    outcome: Result<()>,
) -> Result<()> {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) if is_damage(&error) => {
            report.find(object, &error, FindingSeverity::Damaged);
            Ok(())
        }
        Err(error) => Err(error),
    }
}
