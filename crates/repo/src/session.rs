//! Writing one version of a name.
//!
//! ```text
//!   begin: newest point ─► lease (reserves the next number, keeps the parent) ─► is anybody else here? ─► index
//!     │
//!     ├── blobs(): append …          checkpoint(partial): flush, then say so in the lease
//!     │
//!   commit: data packs ─► node packs ─► index segment ─► point, created if absent ─► lease removed
//!                                                          │ taken: a tombstone: Fenced; a point: Conflict
//!   abandon or drop: nothing is visible; a drop leaves the lease to the stall rule, as a crash does
//! ```
//!
//! **Invariants.** Nothing is visible before the point, everything is after it. A dead writer of the same name is fenced
//! before its place is taken, and what it had made durable is taken over.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use block::geometry;

use crate::access::ObjectAccess;
use crate::blobs::{BlobWriter, Reliance};
use crate::catalog::{self, MAX_POINT_BYTES};
use crate::config::Compression;
use crate::environment::{HostIdentity, rfc3339};
use crate::format::ObjectKind;
use crate::gc::retired_points;
use crate::index::Index;
use crate::lease::{
    BreakOutcome, Lease, LeaseKind, LeaseRequest, LeaseView, Liveness, StallWatch, TreeRoot,
    break_lease, list_leases,
};
use crate::marks::{PointVisibility, read_marks_of};
use crate::points::{
    DiskVersion, POINT_FORMAT, ParentPoint, PointDraft, PointKey, PointWriter, ProtectedName,
    RecoveryPoint, SignatureState, SignedPoint,
};
pub(crate) use crate::repository::Repository;
use crate::{Error, ErrorKind, LeaseId, PointId, Result, names};

/// How often a session is begun anew when others commit meanwhile.
const MAX_TRIES: usize = 4;
/// Between two looks at a lease that may be stalled.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// What to do when another writer of the name holds a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BusyPolicy {
    /// Refuse with [`ErrorKind::Busy`], unless its process is known to be gone from this host.
    #[default]
    Refuse,
    /// Watch it: refuse once it beats, fence it once it is stalled.
    WaitForStall,
}

/// How a version is written.
#[derive(Debug, Clone, Default)]
pub struct BeginOptions {
    /// Compression of new blobs; the repository's own when absent.
    pub compression: Option<Compression>,
    /// Sealing threads; one per core when absent.
    pub threads: Option<usize>,
    /// What to do when another writer of the name is there.
    pub busy: BusyPolicy,
}

/// What a new version can be compared with.
#[derive(Debug, Clone, Default)]
pub struct SessionBase {
    /// The newest visible point of the name.
    pub parent: Option<RecoveryPoint>,
    /// How far an interrupted transfer of the same name came, disk by disk; every blob below is durable.
    pub partials: Vec<DiskVersion>,
}

impl SessionBase {
    /// The parent's disk of this label.
    pub fn disk(&self, label: &str) -> Option<&DiskVersion> {
        self.parent.as_ref().and_then(|parent| parent.disk(label))
    }

    /// How far an interrupted transfer of the disk of this label came.
    pub fn partial_disk(&self, label: &str) -> Option<&DiskVersion> {
        self.partials.iter().find(|partial| partial.label == label)
    }
}

/// A version being written.
pub struct VersionSession {
    repository: Repository,
    name: ProtectedName,
    key: PointKey,
    base: SessionBase,
    lease: Arc<Lease>,
    blobs: BlobWriter,
    _alive: Alive,
}

/// The leases of this process's sessions that are still in use. One of ours that is not here belongs to a session that was
/// dropped: it is as dead as one of a process that is gone. Held while a lease is taken, so that nobody sees a first beat
/// whose lease is not here yet.
static LIVE: Mutex<BTreeSet<LeaseId>> = Mutex::new(BTreeSet::new());

fn live() -> MutexGuard<'static, BTreeSet<LeaseId>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session's place among the live ones.
struct Alive(LeaseId);

impl Drop for Alive {
    fn drop(&mut self) {
        live().remove(&self.0);
    }
}

/// A lease just taken, and what it keeps.
struct Taken {
    alive: Alive,
    lease: Arc<Lease>,
    reliance: Arc<Reliance>,
    key: PointKey,
    /// The first number that was free when points were listed; the ones up to `key` were reserved by other leases.
    first_free: u64,
    parent: Option<RecoveryPoint>,
}

pub(crate) fn tree_root(disk: &DiskVersion) -> TreeRoot {
    TreeRoot {
        height: disk.height,
        top: disk.top,
    }
}

impl VersionSession {
    pub(crate) fn begin(
        repository: &Repository,
        name: &ProtectedName,
        options: &BeginOptions,
    ) -> Result<Self> {
        for _ in 0..MAX_TRIES {
            let taken = take_lease(repository, name)?;
            match Self::settle(repository, name, options, taken) {
                Ok(Some(session)) => return Ok(session),
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("{name}: others keep committing to it"),
        ))
    }

    /// Makes a session of a lease; `None` when another point took the reserved place before the lease was there.
    fn settle(
        repository: &Repository,
        name: &ProtectedName,
        options: &BeginOptions,
        taken: Taken,
    ) -> Result<Option<Self>> {
        let vault = repository.vault();
        let partials = match look_around(repository, name, options, &taken) {
            Ok(Some(found)) => found.partials,
            Ok(None) => {
                give_back(taken.lease)?;
                return Ok(None);
            }
            Err(error) => {
                // The first error is the one to tell. A lease that stays is one of a session that is not alive.
                give_back(taken.lease).ok();
                return Err(error);
            }
        };
        let blobs = BlobWriter::new(
            Arc::clone(vault),
            Arc::clone(&taken.lease),
            taken.reliance,
            options.compression.unwrap_or(vault.config().compression),
            options
                .threads
                .unwrap_or_else(crate::repository::core_count),
        )?;
        Ok(Some(Self {
            repository: repository.clone(),
            name: name.clone(),
            key: taken.key,
            base: SessionBase {
                parent: taken.parent,
                partials,
            },
            lease: taken.lease,
            blobs,
            _alive: taken.alive,
        }))
    }

    /// The name that is written.
    pub fn name(&self) -> &ProtectedName {
        &self.name
    }

    /// The place that the point will have.
    pub fn key(&self) -> PointKey {
        self.key
    }

    /// What to compare with.
    pub fn base(&self) -> &SessionBase {
        &self.base
    }

    /// The lease that protects the session.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The repository that is written to; its nodes are those of the base.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Where blobs go.
    pub fn blobs(&self) -> &BlobWriter {
        &self.blobs
    }

    /// Makes progress durable: another session of the name can go on from `partial` if this one dies. Everything below it
    /// must have been appended, or be part of the base.
    ///
    /// # Errors
    /// As [`BlobWriter::flush`]; [`ErrorKind::Fenced`] when this session was declared dead.
    pub fn checkpoint(&self, partial: DiskVersion) -> Result<()> {
        partial.check(&"a checkpoint")?;
        self.blobs.flush()?;
        self.lease.set_partial(partial)
    }

    /// Makes the version visible.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] when this session was declared dead, [`ErrorKind::Conflict`] when another point took the
    /// place; then nothing of it is visible. After any other error the outcome is whatever the store did: list the points.
    pub fn commit(self, draft: PointDraft) -> Result<RecoveryPoint> {
        for disk in draft
            .disks
            .iter()
            .chain(draft.configuration.iter().map(|file| &file.content))
        {
            disk.check(&"a draft")?;
        }
        self.blobs.flush()?;
        self.blobs.put_segment()?;
        self.lease.check()?;
        let (point, signed) = self.stamp(draft)?;
        self.put_point(&signed)?;
        let Self { lease, blobs, .. } = self;
        drop(blobs);
        // The point is durable: a lease that cannot be removed now must not make it look as if it were not. The stall
        // rule removes it.
        give_back(lease).ok();
        Ok(point)
    }

    fn stamp(&self, draft: PointDraft) -> Result<(RecoveryPoint, SignedPoint)> {
        let vault = self.repository.vault();
        let environment = vault.environment();
        let now = environment.clock.unix_ms();
        let parent = self.base.parent.as_ref().map(|parent| ParentPoint {
            sequence: parent.sequence,
            point: parent.point,
        });
        let mut more = draft.more;
        if let Some(copied) = &draft.copied {
            more.insert("copied_from".to_owned(), serde_json::json!(copied.point));
        }
        let (created_unix_ms, created) = match &draft.copied {
            Some(copied) => (copied.created_unix_ms, copied.created.clone()),
            None => (now, rfc3339(now)),
        };
        let mut point = RecoveryPoint {
            format: POINT_FORMAT,
            name: self.name.clone(),
            sequence: self.key.sequence,
            point: PointId::generate(environment.random.as_ref())?,
            parent,
            created,
            created_unix_ms,
            disks: draft.disks,
            configuration: draft.configuration,
            consistency: draft.consistency,
            source: draft.source,
            counters: draft.counters,
            writer: PointWriter {
                host: environment.host.host.clone(),
                program: environment.host.program.clone(),
            },
            name_id: self.key.name_id,
            signature: SignatureState::Absent,
            more,
        };
        let body = serde_json::to_string(&point)
            .map_err(|error| Error::new(ErrorKind::Invalid, "the point").caused_by(error))?;
        let signature = vault.signer().map(|signer| signer.sign(&body));
        if signature.is_some() {
            point.signature = SignatureState::Good;
        }
        Ok((point, SignedPoint { body, signature }))
    }

    fn put_point(&self, signed: &SignedPoint) -> Result<()> {
        let vault = self.repository.vault();
        let place = names::point(self.key)?;
        match vault.put_json(ObjectKind::Point, &place, signed) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let (kind, text) = vault.get_any(&place, MAX_POINT_BYTES)?;
                if kind == ObjectKind::Tombstone {
                    let what = format!("{}: this session was declared dead", self.name);
                    return Err(Error::new(ErrorKind::Fenced, what));
                }
                // The store may have done what it said it had not.
                if serde_json::from_slice::<SignedPoint>(&text).is_ok_and(|there| there == *signed)
                {
                    return Ok(());
                }
                let what = format!(
                    "{}: point {} is there already",
                    self.name, self.key.sequence
                );
                Err(Error::new(ErrorKind::Conflict, what))
            }
            outcome => outcome,
        }
    }

    /// Ends the session without a version. What was appended stays until garbage collection takes it.
    ///
    /// # Errors
    /// What the store answered when the lease was removed.
    pub fn abandon(self) -> Result<()> {
        let Self { lease, blobs, .. } = self;
        drop(blobs);
        give_back(lease)
    }
}

/// What was found after a lease was taken.
struct Surroundings {
    /// What a dead session of the name had reached, disk by disk.
    partials: Vec<DiskVersion>,
}

/// Looks around after the lease was taken, and brings the index up to date; `None` when the session must be begun anew.
fn look_around(
    repository: &Repository,
    name: &ProtectedName,
    options: &BeginOptions,
    taken: &Taken,
) -> Result<Option<Surroundings>> {
    let vault = repository.vault();
    let partials = clear_rivals(repository, name, options, taken)?;
    let occupied = match vault.store().size(&names::point(taken.key)?) {
        Ok(_) => true,
        Err(error) if error.kind() == store::ErrorKind::NotFound => false,
        Err(error) => return Err(error.into()),
    };
    let parent_gone = match &taken.parent {
        Some(parent) => {
            // Verdicts after marks: a removed point loses its marks, and its number is retired before.
            let marks = read_marks_of(vault.as_ref(), parent.key())?;
            marks.visibility() != PointVisibility::Visible
                || retired_points(vault.as_ref())?.contains(parent.key())
        }
        None => false,
    };
    if occupied || parent_gone || !only_tombstones(vault.as_ref(), taken)? {
        return Ok(None);
    }
    repository.index()?.refresh(vault)?;
    Ok(Some(Surroundings { partials }))
}

/// Whether a lease is one of this very process whose session was dropped.
fn was_dropped(view: &LeaseView, here: &HostIdentity) -> bool {
    let ours = view.body.as_ref().is_ok_and(|body| body.owner == *here);
    ours && here.process_started != 0 && !live().contains(&view.id)
}

/// Whether every number that was skipped is a fenced writer's: then no number is without a trace, and no point is newer than
/// the parent.
fn only_tombstones(vault: &crate::vault::Vault, taken: &Taken) -> Result<bool> {
    for sequence in taken.first_free..taken.key.sequence {
        let key = PointKey {
            name_id: taken.key.name_id,
            sequence,
        };
        match vault.get_any(&names::point(key)?, MAX_POINT_BYTES) {
            Ok((ObjectKind::Tombstone, _)) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Removes a lease that nobody else uses any more.
fn give_back(lease: Arc<Lease>) -> Result<()> {
    match Arc::into_inner(lease) {
        Some(lease) => lease.release(),
        // A sealing thread still holds it for the length of one put: the stall rule removes the lease.
        None => Ok(()),
    }
}

fn take_lease(repository: &Repository, name: &ProtectedName) -> Result<Taken> {
    let vault = repository.vault();
    let (parent, next) = catalog::newest_and_next(vault, repository.memory(), name)?;
    let first_free = next;
    let name_id = vault.name_id(name);
    // A dead writer is fenced at the number that it reserved. This one takes the number behind it, so that it need not
    // begin anew and can go on from what the dead one had made durable.
    let reserved = list_leases(vault.as_ref())?
        .iter()
        .filter_map(|view| view.body.as_ref().ok().and_then(|body| body.reserved))
        .filter(|reserved| reserved.name_id == name_id)
        .map(|reserved| reserved.sequence.saturating_add(1))
        .max();
    let key = PointKey {
        name_id,
        sequence: next.max(reserved.unwrap_or(next)),
    };
    let index: Arc<Index> = repository.index()?;
    let reliance = Arc::new(Reliance::new(index));
    let mut request = LeaseRequest::new(LeaseKind::Backup);
    request.reserved = Some(key);
    if let Some(parent) = &parent {
        request.points.push(parent.key());
        request.roots.extend(parent.trees().map(tree_root));
    }
    let access: Arc<dyn ObjectAccess> = Arc::clone(vault) as Arc<dyn ObjectAccess>;
    let observer = Arc::clone(&reliance) as Arc<dyn crate::lease::CondemnedObserver>;
    let terms = repository.lease_terms();
    let mut living = live();
    let lease = Lease::acquire(access, vault.environment(), request, &terms, observer)?;
    living.insert(lease.id());
    drop(living);
    let alive = Alive(lease.id());
    Ok(Taken {
        alive,
        lease: Arc::new(lease),
        reliance,
        key,
        first_free,
        parent,
    })
}

/// Refuses when another writer of the name lives, fences the dead ones; gives what a dead one had reached.
fn clear_rivals(
    repository: &Repository,
    name: &ProtectedName,
    options: &BeginOptions,
    taken: &Taken,
) -> Result<Vec<DiskVersion>> {
    let vault = repository.vault();
    let environment = vault.environment();
    let terms = repository.lease_terms();
    let mut watch = StallWatch::default();
    let mut first_beats = std::collections::HashMap::new();
    let mut partials: Vec<DiskVersion> = Vec::new();
    loop {
        let mut waiting = false;
        for view in list_leases(vault.as_ref())? {
            if view.id == taken.lease.id() || !is_rival(&view, taken.key) {
                continue;
            }
            let now = environment.clock.monotonic_ms();
            let liveness = if was_dropped(&view, &environment.host) {
                Liveness::Gone
            } else {
                watch.judge(&view, &environment.host, &terms, now)
            };
            let first = *first_beats.entry(view.id).or_insert(view.beat);
            match liveness {
                Liveness::Alive if options.busy == BusyPolicy::Refuse || first != view.beat => {
                    let what = format!("{name}: another session is writing it");
                    return Err(Error::new(ErrorKind::Busy, what));
                }
                Liveness::Alive => waiting = true,
                Liveness::Stalled | Liveness::Gone => {
                    for disk in take_over(vault.as_ref(), taken, &view)? {
                        partials.retain(|it| it.label != disk.label);
                        partials.push(disk);
                    }
                }
            }
        }
        if !waiting {
            return Ok(partials);
        }
        environment.clock.sleep(WATCH_INTERVAL);
    }
}

fn is_rival(view: &LeaseView, key: PointKey) -> bool {
    match &view.body {
        Ok(body) => body
            .reserved
            .is_some_and(|reserved| reserved.name_id == key.name_id),
        // Nobody can know whose it is; garbage collection reports it.
        Err(_) => false,
    }
}

/// Fences a dead session after this one's lease keeps what it had reached.
fn take_over(
    access: &dyn ObjectAccess,
    taken: &Taken,
    view: &LeaseView,
) -> Result<Vec<DiskVersion>> {
    let Ok(body) = &view.body else {
        return Ok(Vec::new());
    };
    let mut partials = body.partials.clone();
    partials.retain(|disk| disk.check(&"a lease").is_ok() && disk.height <= geometry::MAX_HEIGHT);
    if !partials.is_empty() {
        // Kept as this session's own, so that a third one finds it when this one dies before it got anywhere.
        taken.lease.set_partials(partials.clone())?;
    }
    match break_lease(access, view)? {
        BreakOutcome::Fenced => Ok(partials),
        // It had committed: its point is the better base, and the caller finds its place taken.
        BreakOutcome::AlreadyDecided | BreakOutcome::Removed => Ok(Vec::new()),
    }
}
