//! One run of garbage collection, phase by phase.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use store::list_all;

use crate::access::ObjectAccess;
use crate::format::PackKind;
use crate::index::PackState;
use crate::lease::{Lease, LeaseKind, LeaseRequest, LeaseView, ReadsOnly, TreeRoot, list_leases};
use crate::points::{DiskVersion, PointKey, RecoveryPoint};
use crate::repository::Repository;
use crate::vault::Vault;
use crate::{Error, ErrorKind, PackId, Result, names};

use super::census::PointCensus;
use super::delete::{apply_verdict, put_away};
use super::fold::{SegmentScope, bundle_points, double_bundles, merge_segments};
use super::ground::Ground;
use super::mark::{BlobMarks, Marker, Unreachable};
use super::numbers::{Numbers, Seen};
use super::plan::{
    GcMode, GcOptions, MissingPolicy, PackFacts, PackPlan, PinReason, live_bytes, plan_packs,
};
use super::records::{
    Condemned, PutOutcome, Verdict, VerdictHalves, VerdictOutcome, newest_seen, put_condemned,
    put_verdict, read_records, union_of_numbers,
};
use super::repack::BlobMover;
use super::report::{GcReport, Quarantined};
use super::spare::{SpareCheck, SpareOutcome};
use super::wait::Waiter;

/// Removes what nothing needs: forgotten points, dead packs, scattered small objects.
///
/// # Errors
/// [`ErrorKind::Busy`] while another collector (or a repair) lives; [`ErrorKind::Fenced`] when somebody ended this
/// collector's lease, or its generation [`ATTEMPTS_MAX`] times; else what the store answered. Whatever happens, the next
/// run goes on where this one ended.
pub fn collect_garbage(repository: &Repository, options: &GcOptions) -> Result<GcReport> {
    let ground = Ground::new(repository)?;
    let mut report = GcReport::new(options.mode);
    let request = LeaseRequest::new(LeaseKind::Gc);
    let lease = Lease::acquire(
        ground.access(),
        ground.vault.environment(),
        request,
        &ground.terms,
        Arc::new(ReadsOnly),
    )?;
    let mut outcome = execute(&ground, options, &lease, &mut report);
    for _ in 1..ATTEMPTS_MAX {
        let ended = matches!(&outcome, Err(error) if error.kind() == ErrorKind::Fenced);
        // With the lease alive it was an undelete that ended the generation: nothing went, and all is looked at again.
        if !ended || lease.beat().is_err() {
            break;
        }
        let waited_for = std::mem::take(&mut report.waited_for);
        report = GcReport::new(options.mode);
        report.waited_for = waited_for;
        outcome = execute(&ground, options, &lease, &mut report);
    }
    let released = lease.release();
    outcome?;
    released?;
    // Whoever was waited for twice is told once, with how it ended.
    report
        .waited_for
        .sort_by_key(|one| (one.lease, one.broken.is_none()));
    report.waited_for.dedup_by_key(|one| one.lease);
    report
        .quarantined
        .sort_by(|a, b| (&a.object, &a.what).cmp(&(&b.object, &b.what)));
    report.quarantined.dedup();
    report.rescued.sort_unstable();
    report.rescued.dedup();
    Ok(report)
}

/// How often a collector begins again because a point was undeleted meanwhile.
const ATTEMPTS_MAX: usize = 4;

fn execute(
    ground: &Ground,
    options: &GcOptions,
    lease: &Lease,
    report: &mut GcReport,
) -> Result<()> {
    Run {
        ground,
        options,
        lease,
        report,
        next_generation: 0,
        noted: None,
    }
    .execute()
}

struct Run<'a> {
    ground: &'a Ground,
    options: &'a GcOptions,
    lease: &'a Lease,
    report: &'a mut GcReport,
    /// The number that this run's next generation has. Fixed before anything is marked: another collector that worked
    /// meanwhile has taken it.
    next_generation: u64,
    /// What the last look at all points showed that no verdict of this run says yet.
    noted: Option<(Numbers, Seen)>,
}

/// What the first marking found.
struct Findings {
    facts: Vec<PackFacts>,
    marks: BlobMarks,
    /// Second places of live blobs.
    spares: BlobMarks,
    droppable: Vec<PointKey>,
}

impl Run<'_> {
    fn waiter(&self) -> Waiter<'_> {
        Waiter {
            access: self.ground.vault.as_ref(),
            environment: self.ground.vault.environment(),
            terms: &self.ground.terms,
            own: self.lease,
        }
    }

    fn execute(&mut self) -> Result<()> {
        for kind in [LeaseKind::Gc, LeaseKind::Repair] {
            let waited = self.waiter().be_alone(kind)?;
            self.report.waited_for.extend(waited);
        }
        if self.options.mode == GcMode::Execute {
            let waited = self.waiter().bury_the_dead()?;
            self.report.waited_for.extend(waited);
            self.settle()?;
            let highest = self.highest_generation()?;
            self.next_generation = highest.saturating_add(1);
        }
        let mut findings = self.find()?;
        let plan = self.plan(&mut findings)?;
        let by_id: BTreeMap<PackId, PackFacts> = findings
            .facts
            .drain(..)
            .map(|facts| (facts.pack, facts))
            .collect();
        let (dead, mut repack) = if self.spares_packs() {
            (Vec::new(), Vec::new())
        } else {
            (plan.dead, plan.repack)
        };
        if self.options.repack_budget_bytes == 0 {
            repack.clear();
        }
        for facts in dead.iter().filter_map(|pack| by_id.get(pack)) {
            self.report.dead.add(facts.stored_bytes);
        }
        for facts in repack.iter().filter_map(|pack| by_id.get(pack)) {
            self.report.repacked.add(facts.stored_bytes);
        }
        if self.options.mode == GcMode::DryRun {
            self.report.dropped = findings.droppable;
            self.report.written.size_bytes = repack
                .iter()
                .filter_map(|pack| by_id.get(pack))
                .map(live_bytes)
                .sum();
            return Ok(());
        }
        // Deletion first: it makes the room that repacking needs.
        let droppable = std::mem::take(&mut findings.droppable);
        self.generation(dead, droppable, &mut findings.marks)?;
        if !repack.is_empty() && !self.spares_packs() {
            let moved = self.repack(&repack, &mut findings.marks)?;
            self.generation(moved, Vec::new(), &mut findings.marks)?;
        }
        self.fold()
    }

    /// Decides which packs go. A pack with the only good copy of a blob is not among them.
    fn plan(&mut self, findings: &mut Findings) -> Result<PackPlan> {
        let mut check = SpareCheck::default();
        loop {
            let vault = self.ground.vault.as_ref();
            let target = |kind| target_bytes(vault, kind);
            let plan = plan_packs(&findings.facts, self.options, target);
            if self.spares_packs() {
                return Ok(plan);
            }
            let mut changed = false;
            for pack in plan.dead.iter().chain(&plan.repack) {
                self.lease.check()?;
                let outcome = check.settle(
                    self.ground,
                    *pack,
                    &findings.spares,
                    &mut findings.marks,
                    &mut self.report.quarantined,
                )?;
                let facts = findings.facts.iter_mut().find(|one| one.pack == *pack);
                match (outcome, facts) {
                    (SpareOutcome::MayGo, _) | (_, None) => continue,
                    (SpareOutcome::Needed(blobs), Some(facts)) => {
                        facts.live_blobs = facts.live_blobs.saturating_add(blobs);
                    }
                    (SpareOutcome::Unreadable, Some(facts)) => {
                        facts.pinned = Some(PinReason::Damaged);
                    }
                }
                changed = true;
            }
            // Each pack is looked into once, so that this ends.
            if !changed {
                return Ok(plan);
            }
        }
    }

    /// Finishes or aborts what earlier collectors left. Nobody else collects: this run is alone.
    fn settle(&mut self) -> Result<()> {
        let vault = self.ground.vault.as_ref();
        for record in read_records(vault)? {
            let generation = record.generation;
            if record.condemned.is_none() {
                continue;
            }
            if record.verdict.is_none()
                && put_verdict(vault, &Verdict::aborted(generation))? == PutOutcome::Put
            {
                self.report.aborted.push(generation);
            }
            let again = read_records(vault)?
                .into_iter()
                .find(|one| one.generation == generation);
            match again.and_then(|record| record.verdict) {
                Some(Ok(verdict)) => {
                    let deleted =
                        apply_verdict(vault, self.lease, &verdict, &mut self.report.quarantined)?;
                    self.count_deleted(deleted.objects, deleted.size_bytes);
                    if verdict.outcome == VerdictOutcome::Delete {
                        self.report.finished.push(generation);
                        self.report.dropped.extend(verdict.points);
                    }
                    put_away(vault, generation)?;
                }
                // Whoever put it may still be deleting: its packs stay condemned until a repair, which runs alone.
                Some(Err(error)) => self.report.quarantined.push(Quarantined {
                    object: names::verdict(generation)?.to_string(),
                    what: error.to_string(),
                }),
                None => {}
            }
        }
        Ok(())
    }

    fn highest_generation(&self) -> Result<u64> {
        let records = read_records(self.ground.vault.as_ref())?;
        Ok(records.last().map_or(0, |record| record.generation))
    }

    /// Whether something that live points or leases need is not known, and no pack may go because of it.
    fn spares_packs(&self) -> bool {
        self.report.spared && self.options.on_missing == MissingPolicy::SparePacks
    }

    fn count_deleted(&mut self, objects: u64, size_bytes: u64) {
        let deleted = &mut self.report.deleted;
        deleted.objects = deleted.objects.saturating_add(objects);
        deleted.size_bytes = deleted.size_bytes.saturating_add(size_bytes);
    }

    /// Lists packs, then leases, then points and marks, and marks what is live. The order matters: see the module.
    fn find(&mut self) -> Result<Findings> {
        let ground = self.ground;
        ground.refresh()?;
        let packs: Vec<_> = ground
            .index
            .packs()
            .into_iter()
            .filter(|(_, row)| row.state != PackState::Absent)
            .collect();
        self.quarantine_unindexed()?;
        let leases = list_leases(ground.vault.as_ref())?;
        let census = self.take_census()?;
        // Points that were committed since packs were listed need packs that came with them.
        ground.refresh()?;
        let (own, kept_points) = self.read_leases(&leases);

        let droppable: Vec<PointKey> = census
            .points
            .keys()
            .copied()
            .filter(|key| census.is_droppable(*key) && !kept_points.contains(key))
            .collect();
        let mut marker = Marker::new(ground.homes(), &ground.nodes);
        let roots = roots_of(&census, &droppable, &leases);
        let mut unreachable = Vec::new();
        for root in roots {
            marker.mark(root, &mut |_, _| {}, &mut unreachable)?;
        }
        self.report.nodes_read = marker.nodes_read;
        let (marks, spares) = (marker.marks, marker.spares);
        self.note(&census, &[])?;
        let damaged = self.quarantine_unreachable(unreachable)?;

        let mut facts = Vec::with_capacity(packs.len());
        for (number, row) in packs {
            let stored_bytes = u64::from(row.size_bytes);
            let live_blobs = marks.count(number);
            self.report.packs_before.add(stored_bytes);
            self.report.blobs = self.report.blobs.saturating_add(u64::from(row.blobs));
            let pinned = if own.contains(&row.id) {
                Some(PinReason::OwnedByLease)
            } else if damaged.contains(&number) || row.state == PackState::Condemned {
                Some(PinReason::Damaged)
            } else {
                None
            };
            facts.push(PackFacts {
                pack: row.id,
                kind: row.kind,
                key: row.key_id,
                stored_bytes,
                blobs: row.blobs,
                live_blobs,
                pinned,
            });
        }
        self.report.live_blobs = marks.total();
        Ok(Findings {
            facts,
            marks,
            spares,
            droppable,
        })
    }

    fn take_census(&mut self) -> Result<PointCensus> {
        let census = PointCensus::take(&self.ground.vault, self.ground.repository.memory())?;
        for (object, _, error) in &census.unreadable {
            // What an unreadable point needs is not known, so nothing can be called garbage for certain.
            self.report.spared = true;
            let object = object.clone();
            self.report.quarantined.push(Quarantined {
                object,
                what: error.to_string(),
            });
        }
        Ok(census)
    }

    /// Own packs of living writers, and points that leases name.
    fn read_leases(&mut self, leases: &[LeaseView]) -> (BTreeSet<PackId>, BTreeSet<PointKey>) {
        let mut own = BTreeSet::new();
        let mut points = BTreeSet::new();
        for view in leases {
            match &view.body {
                Ok(body) => {
                    own.extend(body.own_pack_ids());
                    points.extend(body.reserved.iter().chain(&body.points).copied());
                }
                Err(error) => {
                    self.report.spared = true;
                    let object = format!("leases/{}", view.id);
                    self.report.quarantined.push(Quarantined {
                        object,
                        what: error.to_string(),
                    });
                }
            }
        }
        (own, points)
    }

    /// Packs that are listed and that the index could not read.
    fn quarantine_unindexed(&mut self) -> Result<()> {
        for kind in PackKind::ALL {
            for entry in list_all(self.ground.vault.store(), &names::packs(kind)?) {
                let name = entry?.name;
                let known = names::last_id::<PackId>(&name)
                    .is_some_and(|id| self.ground.index.pack_number(id).is_some());
                if !known && self.ground.directory_fails(&name, kind)? {
                    let what = "its directory cannot be read".to_owned();
                    self.report.quarantined.push(Quarantined {
                        object: name.to_string(),
                        what,
                    });
                }
            }
        }
        Ok(())
    }

    /// Reports blobs that live trees need and that cannot be had; gives the packs that hold damaged ones.
    fn quarantine_unreachable(&mut self, unreachable: Vec<Unreachable>) -> Result<BTreeSet<u32>> {
        let mut damaged = BTreeSet::new();
        for Unreachable { name, error } in unreachable {
            // What is below it cannot be told from garbage, whether it is missing or there and damaged.
            self.report.spared = true;
            let places = self.ground.index.find_all(&name)?;
            damaged.extend(places.iter().map(|place| place.pack));
            self.report.quarantined.push(Quarantined {
                object: name.to_string(),
                what: error.to_string(),
            });
        }
        Ok(damaged)
    }

    /// Condemns, waits, marks again, decides, deletes.
    fn generation(
        &mut self,
        packs: Vec<PackId>,
        points: Vec<PointKey>,
        marks: &mut BlobMarks,
    ) -> Result<()> {
        if packs.is_empty() && points.is_empty() {
            return Ok(());
        }
        let vault = Arc::clone(&self.ground.vault);
        let vault = vault.as_ref();
        let generation = self.next_generation;
        self.next_generation = generation.saturating_add(1);
        let record = Condemned {
            generation,
            lease: self.lease.id(),
            packs,
            points,
        };
        // A lease that was broken may not have noticed yet: a beat does.
        self.lease.beat()?;
        if put_condemned(vault, &record)? == PutOutcome::Taken {
            return Err(fenced(generation));
        }
        // The place is free again when others are done with it. What they leave there for ever is their newest verdict.
        let records = read_records(vault)?;
        if records.last().is_none_or(|last| {
            last.generation != generation || last.verdict.is_some() || last.condemned.is_none()
        }) {
            return Err(fenced(generation));
        }
        self.report.generations.push(generation);
        self.ground.index.condemn(generation, &record.packs);
        let waited = self.waiter().until_observed(generation)?;
        self.report.waited_for.extend(waited);

        let verdict = self.judge(&record, marks)?;
        self.lease.beat()?;
        if put_verdict(vault, &verdict)? == PutOutcome::Taken {
            return Err(fenced(generation));
        }
        // Whatever this verdict tells need not be told again.
        self.noted = None;
        let deleted = apply_verdict(vault, self.lease, &verdict, &mut self.report.quarantined)?;
        self.count_deleted(deleted.objects, deleted.size_bytes);
        self.report.dropped.extend(verdict.points.iter().copied());
        put_away(vault, generation)
    }

    /// Marks again, with everything condemned counted as absent, and rescues what turns out to be needed.
    fn judge(&mut self, record: &Condemned, marks: &mut BlobMarks) -> Result<Verdict> {
        let ground = self.ground;
        // A lease that is gone by now has its point in the census that follows.
        let leases = list_leases(ground.vault.as_ref())?;
        let census = self.take_census()?;
        ground.refresh()?;
        let condemned: BTreeSet<PackId> = record.packs.iter().copied().collect();
        let mut rescued: BTreeSet<PackId> = BTreeSet::new();
        let (own, kept_points) = self.read_leases(&leases);
        rescued.extend(condemned.intersection(&own));
        for body in leases.iter().filter_map(|view| view.body.as_ref().ok()) {
            rescued.extend(body.claims.iter().filter(|pack| condemned.contains(pack)));
        }
        let points: Vec<PointKey> = record
            .points
            .iter()
            .copied()
            .filter(|key| census.is_droppable(*key) && !kept_points.contains(key))
            .collect();

        let numbers: BTreeSet<u32> = record
            .packs
            .iter()
            .filter_map(|pack| ground.index.pack_number(*pack))
            .collect();
        for number in &numbers {
            marks.clear(*number);
        }
        // Condemned packs are the last resort of the look-up: a blob that is found there is found nowhere else.
        let mut marker = Marker::resume(ground.homes(), &ground.nodes, std::mem::take(marks));
        let mut unreachable = Vec::new();
        let mut touched: BTreeSet<u32> = BTreeSet::new();
        for root in roots_of(&census, &points, &leases) {
            // Of a blob that was not live before nobody has read the other places.
            let mut visit = |_, places: &[crate::index::BlobPlace]| {
                let condemned = places.iter().map(|place| place.pack);
                touched.extend(condemned.filter(|pack| numbers.contains(pack)));
            };
            marker.mark(root, &mut visit, &mut unreachable)?;
        }
        self.report.nodes_read = self.report.nodes_read.saturating_add(marker.nodes_read);
        *marks = marker.marks;
        rescued.extend(
            touched
                .iter()
                .filter_map(|number| ground.index.pack(*number).map(|row| row.id)),
        );
        self.quarantine_unreachable(unreachable)?;
        if self.spares_packs() {
            rescued.extend(&condemned);
        }
        self.report.rescued.extend(&rescued);
        self.note(&census, &points)?;
        let (numbers, seen) = self.noted.clone().unwrap_or_default();
        Ok(Verdict {
            generation: record.generation,
            outcome: VerdictOutcome::Delete,
            packs: condemned.difference(&rescued).copied().collect(),
            points,
            numbers,
            seen: Some(seen),
        })
    }

    /// Keeps what the next verdict shall tell.
    fn note(&mut self, census: &PointCensus, dropped: &[PointKey]) -> Result<()> {
        let (numbers, marks) = census.note(dropped);
        let mut slots = Vec::new();
        for entry in list_all(self.ground.vault.store(), &names::keys()?) {
            slots.extend(names::parse_slot(&entry?.name));
        }
        self.noted = Some((numbers, Seen { marks, slots }));
        Ok(())
    }

    /// Puts a verdict that deletes nothing, where no verdict of this run told of the numbers that are given and of what else
    /// is there, or the newest one lies there once only.
    fn write_down(&mut self) -> Result<()> {
        let Some((numbers, seen)) = self.noted.take() else {
            return Ok(());
        };
        let vault = self.ground.vault.as_ref();
        let records = read_records(vault)?;
        let told = union_of_numbers(&records).covers(&numbers)
            && newest_seen(&records).unwrap_or(&Seen::default()) == &seen
            && records
                .last()
                .is_none_or(|last| last.halves == VerdictHalves::Both);
        if told {
            return Ok(());
        }
        let generation = self.next_generation;
        self.next_generation = generation.saturating_add(1);
        let verdict = Verdict {
            generation,
            outcome: VerdictOutcome::Delete,
            packs: Vec::new(),
            points: Vec::new(),
            numbers,
            seen: Some(seen),
        };
        self.lease.beat()?;
        if put_verdict(vault, &verdict)? == PutOutcome::Taken {
            return Err(fenced(generation));
        }
        put_away(vault, generation)
    }

    /// Copies live blobs out of the packs; gives those that may go. Stops where the store is full.
    fn repack(&mut self, packs: &[PackId], marks: &mut BlobMarks) -> Result<Vec<PackId>> {
        let ground = self.ground;
        let mut mover = BlobMover::new(ground, self.lease)?;
        let mut moved = Vec::new();
        for pack in packs {
            self.lease.check()?;
            let Some(number) = ground.index.pack_number(*pack) else {
                continue;
            };
            let taken = mover.take_pack(number, |ordinal| {
                marks.contains(crate::index::BlobPlace {
                    pack: number,
                    ordinal,
                })
            });
            match taken {
                Ok(()) => moved.push(*pack),
                Err(error) if error.kind() == ErrorKind::Full => {
                    self.report.store_full = true;
                    return Ok(Vec::new());
                }
                Err(error) if super::mark::is_damage(&error) => {
                    let object = pack.to_string();
                    let what = error.to_string();
                    self.report.quarantined.push(Quarantined { object, what });
                }
                Err(error) => return Err(error),
            }
        }
        match mover.finish() {
            Ok(written) => {
                for directory in &written {
                    let number = ground.index.add_pack(directory)?;
                    let blobs = u32::try_from(directory.entries.len()).unwrap_or(u32::MAX);
                    marks.insert_all(number, blobs);
                    self.report
                        .written
                        .add(u64::from(directory.stored_size_bytes));
                }
                Ok(moved)
            }
            Err(error) if error.kind() == ErrorKind::Full => {
                self.report.store_full = true;
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes down what numbers were given, merges index segments and bundles points where there are many.
    fn fold(&mut self) -> Result<()> {
        let outcome = self.write_down();
        self.unless_full(outcome)?;
        let vault = self.ground.vault.as_ref();
        let segments = list_all(vault.store(), &names::segments()?).count();
        self.report.segments_before = u64::try_from(segments).unwrap_or(u64::MAX);
        self.report.segments_after = self.report.segments_before;
        let many_gone = self.report.deleted.objects.saturating_mul(4)
            >= self.report.packs_before.objects.max(1);
        let outcome = if segments > self.options.segments_max || (many_gone && segments > 1) {
            let scope = if many_gone {
                SegmentScope::All
            } else {
                SegmentScope::Small
            };
            let mut present = BTreeMap::new();
            for kind in PackKind::ALL {
                for entry in list_all(vault.store(), &names::packs(kind)?) {
                    if let Some(id) = names::last_id::<PackId>(&entry?.name) {
                        present.insert(id, kind);
                    }
                }
            }
            merge_segments(vault, &present, scope, &mut self.report.quarantined)
        } else {
            Ok(self.report.segments_before)
        };
        self.report.segments_after = self
            .unless_full(outcome)?
            .unwrap_or(self.report.segments_before);

        let leases = list_leases(vault)?;
        if leases.iter().any(|view| view.body.is_err()) {
            return self.ground.refresh();
        }
        let (_, keep) = self.read_leases(&leases);
        let vault = self.ground.vault.as_ref();
        let outcome = double_bundles(vault, self.lease);
        self.unless_full(outcome)?;
        let min = self.options.bundle_points_min;
        let outcome = bundle_points(vault, self.lease, &keep, min, &mut self.report.quarantined);
        self.report.bundled = self.unless_full(outcome)?.unwrap_or(0);
        // This process's own index forgets what was deleted.
        self.ground.refresh()
    }

    fn unless_full<T>(&mut self, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == ErrorKind::Full => {
                self.report.store_full = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn fenced(generation: u64) -> Error {
    let what = format!("generation {generation} was decided by another process");
    Error::new(ErrorKind::Fenced, what)
}

/// Bytes that a full pack has.
pub(crate) fn target_bytes(vault: &Vault, kind: PackKind) -> u64 {
    u64::try_from(vault.pack_targets().bytes(kind)).unwrap_or(u64::MAX)
}

/// The tree of a disk.
pub(crate) fn root_of(disk: &DiskVersion) -> TreeRoot {
    TreeRoot {
        height: disk.height,
        top: disk.top,
    }
}

/// All trees that must stay: of every point that is not dropped, and of every lease.
fn roots_of(census: &PointCensus, dropped: &[PointKey], leases: &[LeaseView]) -> Vec<TreeRoot> {
    let dropped: BTreeSet<&PointKey> = dropped.iter().collect();
    let of_points = census
        .points
        .iter()
        .filter(|(key, _)| !dropped.contains(key))
        .flat_map(|(_, point): (_, &RecoveryPoint)| point.trees().map(root_of));
    let of_leases = leases
        .iter()
        .filter_map(|view| view.body.as_ref().ok())
        .flat_map(|body| body.all_roots());
    of_points.chain(of_leases).collect()
}
