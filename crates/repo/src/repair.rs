//! Repair: what is damaged is replaced from elsewhere, what is good of it is saved, and what is lost is forgotten by the index,
//! so that the next backup stores it anew.
//!
//! ```text
//!   alone? ─► configuration and bundles from their copies ─► points from another repository's copies of them
//!     ─► verify everything ─► lost blobs ─► fetch: another repository by name, or an image by hashing it ─┐
//!            ▲ a fetched node shows further lost blobs below it                                          │
//!            └────────────────────────────────────────────────────────────────────────────── put ◄──────┘
//!     ─► good blobs of damaged packs into new packs ─► index segments
//!     ─► damaged packs condemned ─► every session knows, or is gone ─► verdict ─► they are deleted
//!     ─► undecidable records of garbage collection put away ─► verify again
//! ```
//!
//! **Invariants.** Nothing is deleted before all that is good of it is durable elsewhere and indexed. Every fetched blob is
//! hashed against the name that a tree asks for. A crash at any step leaves what the next run finishes. Sessions beside it
//! are safe: they look blobs up by name, no good blob is ever without a place, and packs are deleted by a generation of
//! garbage collection, so that a running writer stops counting on them first; one that has counted on a pack keeps it. A pack
//! is called damaged after two readings, and never because its key is not here or a newer program wrote it.
//!
//! **What it does not do.** It invents nothing: a blob that no source has stays lost, and the points that need it stay
//! damaged until a source is found. Keyrings and key slots cannot be made again. Points that nobody can read are given up
//! only when that is asked for: see [`lost`].

mod image;
mod lost;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use block::ReadAt;
use store::{ObjectName, list_all};

use crate::access::ObjectAccess;
use crate::bundles::{BundleHalves, delete_bundle, list_bundles, put_bundle, read_both};
use crate::catalog::{PlaceState, PointMemory, read_place};
use crate::compress;
use crate::config;
use crate::copy::PointOrigin;
use crate::format::{ObjectKind, PackKind};
use crate::gc::census::PointCensus;
use crate::gc::ground::Ground;
use crate::gc::mark::is_damage;
use crate::gc::records::{
    Condemned, PutOutcome, Verdict, VerdictOutcome, delete_verdict, put_condemned, put_verdict,
    read_records, union_of_numbers,
};
use crate::gc::wait::Waiter;
use crate::gc::{BlobMover, SegmentScope, merge_segments};
use crate::keys::{RingCare, mend_rings};
use crate::lease::{Lease, LeaseKind, LeaseRequest, ReadsOnly, list_leases};
use crate::marks::PointVisibility;
use crate::pack::PackFile;
use crate::points::PointKey;
use crate::read::ReadProtection;
use crate::repository::Repository;
use crate::session::tree_root;
use crate::vault::Vault;
use crate::verify::packs::{BadPlaces, check_packs, confirm_damage};
use crate::verify::walk::DamageWalk;
use crate::verify::{VerifyMarks, VerifyOptions, VerifyReport, VerifyScope};
use crate::{BlobName, Error, ErrorKind, PackId, Result, names};

use image::ImageBlobs;
pub use lost::{LostPoints, UnreadablePolicy};

/// Where lost blobs may be found.
#[derive(Clone, Copy)]
pub enum RepairSource<'a> {
    /// Another repository, for instance a copy.
    Repository(&'a Repository),
    /// An image of a protected disk: any state of it, as much of it as is unchanged helps.
    Image(&'a dyn ReadAt),
}

/// Whether anything is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RepairMode {
    /// Find out what could be done.
    DryRun,
    /// Do it.
    Execute,
}

/// How to repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RepairOptions {
    /// Whether anything is changed.
    pub mode: RepairMode,
    /// What becomes of points that nobody can read and no source has.
    pub unreadable: UnreadablePolicy,
}

impl From<RepairMode> for RepairOptions {
    /// Gives nothing up.
    fn from(mode: RepairMode) -> Self {
        Self {
            mode,
            unreadable: UnreadablePolicy::Keep,
        }
    }
}

/// What a repair found and did (or would do).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepairReport {
    /// Configuration objects that were restored from their copy.
    pub configuration: Vec<String>,
    /// Bundles of points of which only one of the two copies is good and that are (to be) written anew.
    pub bundles_rewritten: u64,
    /// Points that were put back from another repository's copies of them.
    pub points_restored: Vec<PointKey>,
    /// Blobs that points need and that could not be read.
    pub lost_blobs: u64,
    /// How many of these a source had.
    pub fetched_blobs: u64,
    /// Blobs of damaged packs that were saved.
    pub salvaged_blobs: u64,
    /// Damaged packs that were replaced.
    pub packs_replaced: Vec<PackId>,
    /// Damaged packs that were left because a living session owns them or had already counted on them, or because a lease
    /// cannot be read. The next repair can replace them.
    pub packs_left: Vec<PackId>,
    /// Index segments after the repair.
    pub segments: u64,
    /// Records of garbage collection that nobody can read and that are put away.
    pub records_put_away: Vec<u64>,
    /// Points that nobody can read, what is (to be) put away of them, and the numbers that are never given again.
    pub lost: LostPoints,
    /// What is still wrong afterwards; absent after a dry run.
    pub after: Option<VerifyReport>,
}

/// Rounds of fetching: each can show one more level of a tree.
const ROUNDS_MAX: usize = 8;

impl Repository {
    /// Repairs what can be repaired.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while garbage is collected or another repair runs; [`ErrorKind::Corrupt`] when a keyring that is
    /// newer than the one in use cannot be read, because packs of its keys would look damaged; else what the store answered.
    pub fn repair(
        &self,
        sources: &[RepairSource<'_>],
        options: impl Into<RepairOptions>,
    ) -> Result<RepairReport> {
        let RepairOptions { mode, unreadable } = options.into();
        check_newest_ring(self.vault())?;
        let ground = Ground::new(self)?;
        let request = LeaseRequest::new(LeaseKind::Repair);
        let observer = Arc::new(ReadsOnly);
        let environment = ground.vault.environment();
        let lease = Lease::acquire(
            ground.access(),
            environment,
            request,
            &ground.terms,
            observer,
        )?;
        let mut report = RepairReport::default();
        let outcome = Repair {
            ground: &ground,
            lease: &lease,
            sources,
            mode,
            unreadable,
            report: &mut report,
            condemned: None,
        }
        .execute();
        let released = lease.release();
        outcome?;
        released?;
        if mode == RepairMode::Execute {
            let options = VerifyOptions {
                scope: VerifyScope::Full,
                marks: VerifyMarks::ReportOnly,
                protection: ReadProtection::Lease,
            };
            report.after = Some(self.verify(&options)?);
        }
        Ok(report)
    }
}

struct Repair<'a> {
    ground: &'a Ground,
    lease: &'a Lease,
    sources: &'a [RepairSource<'a>],
    mode: RepairMode,
    unreadable: UnreadablePolicy,
    report: &'a mut RepairReport,
    /// The generation that packs were condemned in.
    condemned: Option<u64>,
}

impl Repair<'_> {
    fn execute(&mut self) -> Result<()> {
        let waiter = Waiter {
            access: self.ground.vault.as_ref(),
            environment: self.ground.vault.environment(),
            terms: &self.ground.terms,
            own: self.lease,
        };
        for kind in [LeaseKind::Gc, LeaseKind::Repair] {
            waiter.be_alone(kind)?;
        }
        self.abort_unfinished()?;
        self.restore_configuration()?;
        self.restore_bundles()?;
        self.restore_points()?;
        self.ground.refresh()?;
        let bad = self.find_bad()?;
        let fetched = self.fetch_lost(&bad)?;
        let replaced = self.salvage(&bad)?;
        self.give_up_points()?;
        if self.mode == RepairMode::DryRun {
            self.report.records_put_away = self.broken_records()?;
            return Ok(());
        }
        let deleted = self.condemn(replaced)?;
        let mut present = BTreeMap::new();
        for kind in PackKind::ALL {
            for entry in list_all(self.ground.vault.store(), &names::packs(kind)?) {
                if let Some(id) = names::last_id::<PackId>(&entry?.name)
                    && !deleted.contains(&id)
                {
                    present.insert(id, kind);
                }
            }
        }
        if fetched || !deleted.is_empty() || self.segments_are_damaged(&present)? {
            let scope = SegmentScope::Rebuild;
            let mut quarantined = Vec::new();
            self.report.segments =
                merge_segments(&self.ground.vault, &present, scope, &mut quarantined)?;
        }
        for id in &deleted {
            self.lease.check()?;
            for kind in PackKind::ALL {
                self.ground.vault.store().delete(&names::pack(kind, *id)?)?;
            }
            self.report.packs_replaced.push(*id);
        }
        self.put_condemned_away()?;
        self.put_records_away()?;
        self.ground.refresh()
    }

    /// Ends generations that nobody will end: no collector is there. Their packs count again.
    fn abort_unfinished(&self) -> Result<()> {
        if self.mode == RepairMode::DryRun {
            return Ok(());
        }
        let vault = self.ground.vault.as_ref();
        for record in read_records(vault)? {
            if matches!(record.condemned, Some(Ok(_))) && record.verdict.is_none() {
                put_verdict(vault, &Verdict::aborted(record.generation))?;
            }
        }
        Ok(())
    }

    /// Condemns packs in a generation of their own, waits until every session knows, and gives those that may be deleted: not
    /// those that somebody had already counted on.
    fn condemn(&mut self, packs: BTreeSet<PackId>) -> Result<BTreeSet<PackId>> {
        if packs.is_empty() {
            return Ok(packs);
        }
        let vault = self.ground.vault.as_ref();
        let taken = || Error::new(ErrorKind::Busy, "garbage is being collected");
        let highest = read_records(vault)?
            .last()
            .map_or(0, |record| record.generation);
        let record = Condemned {
            generation: highest.saturating_add(1),
            lease: self.lease.id(),
            packs: packs.iter().copied().collect(),
            points: Vec::new(),
        };
        self.lease.beat()?;
        if put_condemned(vault, &record)? == PutOutcome::Taken {
            return Err(taken());
        }
        self.ground.index.condemn(record.generation, &record.packs);
        let waiter = Waiter {
            access: vault,
            environment: vault.environment(),
            terms: &self.ground.terms,
            own: self.lease,
        };
        let waited = waiter.until_observed(record.generation);
        let leases = list_leases(vault)?;
        let mut kept: BTreeSet<PackId> = BTreeSet::new();
        for view in leases.iter().filter(|view| view.id != self.lease.id()) {
            match &view.body {
                Ok(body) => kept.extend(body.claims.iter().copied().chain(body.own_pack_ids())),
                // What its owner counts on is not known.
                Err(_) => kept.extend(&packs),
            }
        }
        match waited {
            Ok(_) => {}
            // A lease of which nothing can be read can neither be waited for nor be broken.
            Err(error) if is_damage(&error) => kept.extend(&packs),
            Err(error) => return Err(error),
        }
        let deleted: BTreeSet<PackId> = packs.difference(&kept).copied().collect();
        self.report.packs_left.extend(packs.intersection(&kept));
        let verdict = Verdict {
            generation: record.generation,
            outcome: VerdictOutcome::Delete,
            packs: deleted.iter().copied().collect(),
            points: Vec::new(),
            numbers: union_of_numbers(&read_records(vault)?),
            seen: None,
        };
        self.lease.beat()?;
        if put_verdict(vault, &verdict)? == PutOutcome::Taken {
            return Err(taken());
        }
        self.condemned = Some(record.generation);
        Ok(deleted)
    }

    /// Deletes the record of the packs that are gone; the verdict keeps the generation's number taken.
    fn put_condemned_away(&self) -> Result<()> {
        match self.condemned {
            Some(generation) => {
                let name = names::condemned(generation)?;
                Ok(self.ground.vault.store().delete(&name)?)
            }
            None => Ok(()),
        }
    }

    /// Puts the better of the two configurations in the place of a damaged or missing one. One of them is always there.
    fn restore_configuration(&mut self) -> Result<()> {
        let vault = &self.ground.vault;
        if let (Some(master), Some(ring)) = (vault.master(), vault.keyring()) {
            let care = match self.mode {
                RepairMode::DryRun => RingCare::Look,
                RepairMode::Execute => RingCare::Mend,
            };
            let random = vault.environment().random.as_ref();
            let mended = mend_rings(vault.store(), random, master, &ring, care)?;
            self.report
                .configuration
                .extend(mended.iter().map(ToString::to_string));
        }
        for (name, other) in [
            (names::config()?, names::config_copy()?),
            (names::config_copy()?, names::config()?),
        ] {
            let broken = match config::read_one(vault.store(), &name) {
                Ok(found) => found != *vault.config(),
                Err(error) if is_damage(&error) => true,
                Err(error) => return Err(error),
            };
            if !broken {
                continue;
            }
            self.report.configuration.push(name.to_string());
            if self.mode == RepairMode::DryRun {
                continue;
            }
            // What this repository was opened with is what one of the two says.
            if config::read_one(vault.store(), &other).is_ok_and(|found| found == *vault.config()) {
                vault.store().delete(&name)?;
                let random = vault.environment().random.as_ref();
                config::put_config(vault.store(), random, &name, vault.config())?;
            }
        }
        Ok(())
    }

    /// Writes bundles anew of which only one of the two objects is good.
    fn restore_bundles(&mut self) -> Result<()> {
        let vault = Arc::clone(&self.ground.vault);
        for id in list_bundles(vault.store())? {
            let Some((bundle, BundleHalves::One)) = read_both(&vault, id)? else {
                continue;
            };
            self.report.bundles_rewritten = self.report.bundles_rewritten.saturating_add(1);
            if self.mode == RepairMode::Execute {
                self.lease.check()?;
                put_bundle(&vault, &bundle)?;
                delete_bundle(vault.store(), id)?;
            }
        }
        Ok(())
    }

    /// Puts damaged and missing points back as they were signed, where another repository has copies of them.
    fn restore_points(&mut self) -> Result<()> {
        let vault = Arc::clone(&self.ground.vault);
        let census = PointCensus::take(&vault, &PointMemory::default())?;
        let taken = census.taken();
        let broken: BTreeSet<PointKey> = census
            .unreadable
            .iter()
            .filter_map(|(_, key, _)| *key)
            .collect();
        let retired = crate::gc::retired_points(vault.as_ref())?;
        // A backup that runs may commit at its reserved place at any moment.
        let mut reserved = BTreeSet::new();
        for view in crate::lease::list_leases(vault.as_ref())? {
            reserved.extend(view.body.ok().and_then(|body| body.reserved));
        }
        if self.mode == RepairMode::Execute && !self.sources.is_empty() {
            self.tell_of_broken(&census, &broken)?;
        }
        for source in self.sources {
            let RepairSource::Repository(source) = source else {
                continue;
            };
            for record in source.points()?.0 {
                let Some(origin) = PointOrigin::of(&record.point) else {
                    continue;
                };
                if origin.repository != vault.repository_id() {
                    continue;
                }
                let name_id = vault.name_id(&record.point.name);
                let key = PointKey {
                    name_id,
                    sequence: origin.sequence,
                };
                let here = taken.contains(&key) && !broken.contains(&key);
                let name = names::point(key)?;
                let good = crate::catalog::open_point(&vault, &name, key, &origin.signed);
                if here || retired.contains(key) || reserved.contains(&key) || good.is_err() {
                    continue;
                }
                if self.mode == RepairMode::Execute {
                    // Only what is still damaged goes; what came meanwhile stays.
                    if broken.contains(&key) && self.is_still_damaged(key, &name)? {
                        vault.store().delete(&name)?;
                    }
                    match vault.put_json(ObjectKind::Point, &name, &origin.signed) {
                        Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                        other => other?,
                    }
                }
                self.report.points_restored.push(key);
            }
        }
        Ok(())
    }

    fn is_still_damaged(&self, key: PointKey, name: &ObjectName) -> Result<bool> {
        let state = read_place(&self.ground.vault, &PointMemory::default(), key, name)?;
        Ok(matches!(state, Some(PlaceState::Damaged(_))))
    }

    /// Writes down the numbers of damaged points before any of them leaves its place: a stop in between gives none again.
    fn tell_of_broken(&self, census: &PointCensus, broken: &BTreeSet<PointKey>) -> Result<()> {
        let (mut told, _) = census.note(&[]);
        let unknown: Vec<PointKey> = (broken.iter().copied())
            .filter(|key| told.is_plausible(*key) && key.sequence > told.highest(key.name_id))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        for key in unknown {
            told.see(key);
        }
        self.put_numbers(told)
    }

    /// Reads every pack and finds what of it is bad.
    fn find_bad(&mut self) -> Result<BadPlaces> {
        let reading =
            self.ground
                .repository
                .read_session(LeaseKind::Other, &[], ReadProtection::None)?;
        let mut scratch = VerifyReport::default();
        let mut bad = check_packs(self.ground, VerifyScope::Full, &reading, &mut scratch)?;
        confirm_damage(self.ground, &reading, &mut bad)?;
        Ok(bad)
    }

    /// Blobs that visible points need and that have no good place.
    fn lost(&self, bad: &BadPlaces) -> Result<Vec<BlobName>> {
        let census = PointCensus::take(&self.ground.vault, &PointMemory::default())?;
        // A point that was committed meanwhile needs packs that came with it.
        self.ground.refresh()?;
        let mut walk = DamageWalk::new(self.ground, bad);
        for (key, point) in &census.points {
            let marks = census.marks.get(key);
            if marks.is_some_and(|marks| marks.visibility() == PointVisibility::Forgotten) {
                continue;
            }
            for disk in point.trees() {
                let root = tree_root(disk);
                walk.visit(root.height, root.top)?;
            }
        }
        Ok(walk.lost)
    }

    /// Fetches lost blobs round by round; whether any was put.
    fn fetch_lost(&mut self, bad: &BadPlaces) -> Result<bool> {
        let mut any = false;
        let mut images = ImageBlobs::default();
        for round in 0..ROUNDS_MAX {
            let lost = self.lost(bad)?;
            if round == 0 {
                self.report.lost_blobs = u64::try_from(lost.len()).unwrap_or(u64::MAX);
            }
            let mut mover = BlobMover::new(self.ground, self.lease)?;
            let mut fetched = 0u64;
            for source in self.sources {
                if let RepairSource::Image(image) = source {
                    images.learn(*image, &lost)?;
                }
            }
            for name in &lost {
                let Some(plain) = self.fetch(name, &images)? else {
                    continue;
                };
                fetched = fetched.saturating_add(1);
                if self.mode == RepairMode::Execute {
                    let compression = self.ground.vault.config().compression;
                    let (codec, bytes) = compress::compress(compression, &plain)?;
                    mover.push(*name, codec, &bytes)?;
                }
            }
            self.report.fetched_blobs = self.report.fetched_blobs.saturating_add(fetched);
            if round > 0 {
                let more = u64::try_from(lost.len()).unwrap_or(u64::MAX);
                self.report.lost_blobs = self.report.lost_blobs.saturating_add(more.min(fetched));
            }
            for directory in mover.finish()? {
                self.ground.index.add_pack(&directory)?;
                any = true;
            }
            if fetched == 0 || self.mode == RepairMode::DryRun {
                break;
            }
        }
        Ok(any)
    }

    fn fetch(&self, name: &BlobName, images: &ImageBlobs<'_>) -> Result<Option<Vec<u8>>> {
        for source in self.sources {
            if let RepairSource::Repository(source) = source {
                match source.read_blob(name) {
                    Ok(plain) if name.names(&plain) => return Ok(Some(plain)),
                    Ok(_) => {}
                    Err(error) if is_damage(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        images.get(name)
    }

    /// Moves what is good out of damaged packs; gives those that may go.
    fn salvage(&mut self, bad: &BadPlaces) -> Result<BTreeSet<PackId>> {
        let ground = self.ground;
        let damaged: BTreeSet<u32> = bad.damaged.iter().copied().collect();
        let leases = list_leases(ground.vault.as_ref())?;
        let own: BTreeSet<PackId> = leases
            .iter()
            .filter_map(|view| view.body.as_ref().ok())
            .flat_map(crate::lease::LeaseBody::own_pack_ids)
            .collect();
        let mut mover = BlobMover::new(ground, self.lease)?;
        let mut replaced = BTreeSet::new();
        for id in &bad.unindexed {
            // Not one blob of it can be read.
            if own.contains(id) {
                self.report.packs_left.push(*id);
            } else {
                replaced.insert(*id);
            }
        }
        for number in damaged {
            let Some(row) = ground.index.pack(number) else {
                continue;
            };
            if own.contains(&row.id) {
                self.report.packs_left.push(row.id);
                continue;
            }
            replaced.insert(row.id);
            if bad.packs.contains(&number) {
                continue;
            }
            let file = PackFile::open(&ground.vault, row.kind, row.id)?;
            let good = |ordinal: u32| {
                !bad.contains(crate::index::BlobPlace {
                    pack: number,
                    ordinal,
                }) && file.entry(ordinal).is_some()
            };
            let saved = file.blobs().filter(|(ordinal, _)| good(*ordinal)).count();
            let saved = u64::try_from(saved).unwrap_or(u64::MAX);
            self.report.salvaged_blobs = self.report.salvaged_blobs.saturating_add(saved);
            if self.mode == RepairMode::Execute {
                mover.take_file(&file, good)?;
            }
        }
        for directory in mover.finish()? {
            ground.index.add_pack(&directory)?;
        }
        if self.mode == RepairMode::DryRun {
            self.report.packs_replaced.extend(&replaced);
        }
        Ok(replaced)
    }

    fn segments_are_damaged(&self, present: &BTreeMap<PackId, PackKind>) -> Result<bool> {
        let mut told: BTreeSet<PackId> = BTreeSet::new();
        for entry in list_all(self.ground.vault.store(), &names::segments()?) {
            let name = entry?.name;
            let limit = u64::try_from(crate::format::MAX_ENVELOPE_TEXT_BYTES).unwrap_or(u64::MAX);
            match self
                .ground
                .vault
                .get_sealed(ObjectKind::Segment, &name, limit)
            {
                Ok(text) => match crate::format::segment::decode(&text) {
                    Ok(segment) => told.extend(segment.packs.iter().map(|pack| pack.pack_id)),
                    Err(_) => return Ok(true),
                },
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if is_damage(&error) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(present.keys().any(|id| !told.contains(id)))
    }

    /// Generations with a record that nobody can read, while no lease but this one is there: then nobody can still be
    /// deleting by them.
    fn broken_records(&self) -> Result<Vec<u64>> {
        let vault = self.ground.vault.as_ref();
        // A record whose key is not here may be as good as any.
        let corrupt = |error: &Error| error.kind() == ErrorKind::Corrupt;
        let broken = |record: &crate::gc::records::GenerationRecords| {
            matches!(&record.verdict, Some(Err(error)) if corrupt(error))
                || matches!(&record.condemned, Some(Err(error)) if corrupt(error))
        };
        let records = read_records(vault)?;
        let broken: Vec<u64> = (records.iter())
            .filter(|one| broken(one))
            .map(|one| one.generation)
            .collect();
        let others = list_leases(vault)?
            .iter()
            .any(|view| view.id != self.lease.id());
        Ok(if others { Vec::new() } else { broken })
    }

    /// Ends generations whose records nobody can read.
    fn put_records_away(&mut self) -> Result<()> {
        let broken = self.broken_records()?;
        if broken.is_empty() {
            return Ok(());
        }
        let vault = Arc::clone(&self.ground.vault);
        let vault = vault.as_ref();
        let records = read_records(vault)?;
        let verdicts_lost = (records.iter()).any(|one| matches!(one.verdict, Some(Err(_))));
        let numbers = if verdicts_lost {
            self.numbers_without_verdicts()?
        } else {
            union_of_numbers(&records)
        };
        self.put_numbers(numbers)?;
        for generation in broken {
            vault.store().delete(&names::condemned(generation)?)?;
            let unreadable = (records.iter())
                .find(|one| one.generation == generation)
                .is_some_and(|one| matches!(one.verdict, Some(Err(_))));
            if unreadable {
                delete_verdict(vault, generation)?;
                // A collector that was stopped before its verdict must find the place taken.
                put_verdict(vault, &Verdict::aborted(generation))?;
            }
            self.report.records_put_away.push(generation);
        }
        Ok(())
    }
}

/// Makes sure that no keyring is newer than the one in use: packs of its keys could not be opened, and would look lost.
fn check_newest_ring(vault: &Vault) -> Result<()> {
    let Some(master) = vault.master() else {
        return Ok(());
    };
    let store = vault.store();
    vault.replace_keyring(crate::keys::read_ring(
        store,
        master,
        vault.repository_id(),
    )?);
    let used = names::ring(vault.keyring().map_or(0, |ring| ring.generation))?;
    // Names of generations have one length, so that they sort like numbers; a copy's name only goes on behind it.
    let newer = |name: &str| {
        let generation = name.get(..used.as_str().len()).unwrap_or(name);
        name.starts_with("keys/ring-") && generation > used.as_str()
    };
    for entry in list_all(store, &names::keys()?) {
        let name = entry?.name;
        if newer(name.as_str()) {
            let what = "this keyring cannot be read; put it back from a copy of the store first, or packs of its keys \
                        would be taken for damaged";
            return Err(Error::corrupt(name, what));
        }
    }
    Ok(())
}
