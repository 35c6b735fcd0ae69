//! Leases: how operations that run at the same time tell each other what they rely on, without a clock in common.
//!
//! ```text
//!   acquire                        every interval_ms, or on demand               release
//!   put beat 1 ──► read gc/ ──┬──► put beat n+1 ─► is beat n still there? ─► delete beat n ──► delete all
//!   (reserves a point,        │        no: somebody broke this lease: Lost, for ever
//!    names its roots)         └── a new generation is condemned: the observer drops its packs and says which of
//!                                 them it had counted on; the beat carries them as claims
//! ```
//!
//! | what a lease says | who relies on it |
//! |---|---|
//! | roots, partial | gc marks everything below as live |
//! | reserved point | a second writer of the name is told "busy"; a fence is put exactly there |
//! | reserved pack ids | gc leaves packs alone that no point mentions yet |
//! | observed generation | gc deletes nothing before every lease has observed its list |
//! | claims | gc rescues condemned packs that somebody counted on before he knew |
//!
//! **Invariants.** A pack is put only after a beat that covers its id is durable. `observed_generation` is raised only after
//! the observer has dropped that generation's packs, in the same beat as the claims. A lost lease never works again.
//! Being late is never unsafe: whoever is broken by mistake loses a run, not a byte (see [`watch`](self)).
//!
//! **What it does not do.** It does not know what a point or a pack holds, and nobody has to ask it before a commit.

mod body;
mod heartbeat;
mod operator;
mod watch;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use body::{LeaseBody, LeaseKind, OWN_PACKS_MAX, TreeRoot, own_pack_id};
use heartbeat::Heartbeat;
pub use watch::{BreakOutcome, LeaseView, Liveness, ProcessState, StallWatch, probe_process};
pub(crate) use watch::{break_lease, list_leases, remove_beats};

use crate::access::ObjectAccess;
use crate::environment::{Environment, HostIdentity};
use crate::format::ObjectKind;
use crate::gc::records;
use crate::points::{DiskVersion, PointKey};
use crate::{Error, ErrorKind, LeaseId, PackId, Result, names};

/// How many pack ids a writer reserves with one beat at first; each further batch doubles, up to 4,096.
const OWN_PACKS_BATCH: u64 = 64;
const OWN_PACKS_BATCH_MAX: u64 = 4_096;

/// Who beats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeartbeatMode {
    /// A thread of the lease's own, until it is released or dropped.
    Thread,
    /// Only calls of [`Lease::beat`]: for simulations.
    Manual,
}

/// The times that leases live by, and how a dead process is told.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTerms {
    /// Between two beats.
    pub interval_ms: u64,
    /// How long a beat may stay unchanged, on the observer's clock, until its lease may be broken.
    pub stall_ms: u64,
    /// Who beats.
    pub heartbeat: HeartbeatMode,
    /// Whether the owner of a lease is gone, as seen from this process.
    pub probe: fn(here: &HostIdentity, owner: &HostIdentity) -> ProcessState,
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self {
            interval_ms: 5_000,
            stall_ms: 30_000,
            heartbeat: HeartbeatMode::Thread,
            probe: probe_process,
        }
    }
}

/// What a lease is wanted for.
#[derive(Debug, Clone, PartialEq)]
pub struct LeaseRequest {
    /// What its owner does.
    pub kind: LeaseKind,
    /// The point that a writer will commit.
    pub reserved: Option<PointKey>,
    /// Points that must stay.
    pub points: Vec<PointKey>,
    /// Trees that must stay.
    pub roots: Vec<TreeRoot>,
}

impl LeaseRequest {
    /// For an operation that relies on nothing yet.
    pub fn new(kind: LeaseKind) -> Self {
        Self {
            kind,
            reserved: None,
            points: Vec::new(),
            roots: Vec::new(),
        }
    }
}

/// Who must know when packs are condemned while the lease lives.
///
/// An implementer **must** treat the packs as absent from the moment the call returns (also for look-ups that are
/// running), and answer with those of them that it has already counted on in this session. Readers, who look nothing up
/// in order to leave it out, answer with nothing.
pub trait CondemnedObserver: Send + Sync {
    /// `packs` were condemned by `generation`.
    fn condemned(&self, generation: u64, packs: &[PackId]) -> Vec<PackId>;
}

/// For operations that never leave a block out because it is already there.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadsOnly;

impl CondemnedObserver for ReadsOnly {
    fn condemned(&self, _generation: u64, _packs: &[PackId]) -> Vec<PackId> {
        Vec::new()
    }
}

/// A lease that this process holds. Dropping it without [`Lease::release`] stops the heartbeat and leaves the rest to
/// the stall rule, as a crash would.
pub struct Lease {
    core: Arc<LeaseCore>,
    heartbeat: Option<Heartbeat>,
}

struct LeaseCore {
    access: Arc<dyn ObjectAccess>,
    observer: Arc<dyn CondemnedObserver>,
    id: LeaseId,
    lost: AtomicBool,
    /// Held over a whole beat: beats of one lease never overtake each other.
    state: Mutex<LeaseState>,
}

struct LeaseState {
    body: LeaseBody,
    /// Ids handed out so far; at most `body.own_packs` of the last durable beat.
    own_packs_used: u64,
    own_packs_durable: u64,
    /// Number of the last beat that is known durable.
    durable_beat: u64,
    last_error: Option<Error>,
}

impl Lease {
    /// Puts the first beat, learns what is condemned, and starts the heartbeat.
    ///
    /// The caller decides afterwards, by [`list_leases`], whether it stands in somebody's way: both of two racing writers
    /// see each other then.
    ///
    /// # Errors
    /// What the store answered; then no lease is held (a first beat that cannot be removed is left to the stall rule).
    pub(crate) fn acquire(
        access: Arc<dyn ObjectAccess>,
        environment: &Environment,
        request: LeaseRequest,
        terms: &LeaseTerms,
        observer: Arc<dyn CondemnedObserver>,
    ) -> Result<Self> {
        let id = LeaseId::generate(environment.random.as_ref())?;
        let body = LeaseBody {
            lease: id,
            beat: 0,
            kind: request.kind,
            owner: environment.host.clone(),
            started_unix_ms: environment.clock.unix_ms(),
            reserved: request.reserved,
            points: request.points,
            roots: request.roots,
            partials: Vec::new(),
            observed_generation: 0,
            claims: Vec::new(),
            own_packs: if request.kind == LeaseKind::Backup {
                OWN_PACKS_BATCH
            } else {
                0
            },
        };
        let state = LeaseState {
            body,
            own_packs_used: 0,
            own_packs_durable: 0,
            durable_beat: 0,
            last_error: None,
        };
        let core = Arc::new(LeaseCore {
            access,
            observer,
            id,
            lost: AtomicBool::new(false),
            state: Mutex::new(state),
        });
        // The lease comes before the look at what is condemned: a generation that this look misses was condemned after
        // the lease was there, and waits for it.
        core.put_next_beat(&mut core.lock())?;
        let mut lease = Self {
            core,
            heartbeat: None,
        };
        if let Err(error) = lease.core.beat(BeatReason::News) {
            // Best effort: what is left over falls to the stall rule. The first error is the one to tell.
            lease.release().ok();
            return Err(error);
        }
        if terms.heartbeat == HeartbeatMode::Thread {
            lease.heartbeat = Some(Heartbeat::start(
                Arc::clone(&lease.core),
                terms.interval_ms,
            )?);
        }
        Ok(lease)
    }

    /// Its id.
    pub fn id(&self) -> LeaseId {
        self.core.id
    }

    /// What the last beat said (or the next one will say).
    pub fn body(&self) -> LeaseBody {
        self.core.lock().body.clone()
    }

    /// The error of the last beat, if it failed; the heartbeat goes on trying.
    pub fn last_error(&self) -> Option<String> {
        self.core
            .lock()
            .last_error
            .as_ref()
            .map(ToString::to_string)
    }

    /// Fails once somebody broke this lease.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`].
    pub fn check(&self) -> Result<()> {
        self.core.check()
    }

    /// Beats now: learns what is condemned, says what is relied on.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] when the lease was broken, else what the store answered.
    pub fn beat(&self) -> Result<()> {
        self.core.beat(BeatReason::Due)
    }

    /// Makes more points and trees stay, durably when this returns. The caller then checks that the points are still
    /// there: whatever was live at that moment stays.
    ///
    /// # Errors
    /// As [`Lease::beat`].
    pub fn rely_on(&self, points: &[PointKey], roots: &[TreeRoot]) -> Result<()> {
        {
            let mut state = self.core.lock();
            state.body.points.extend_from_slice(points);
            state.body.roots.extend_from_slice(roots);
        }
        self.beat()
    }

    /// Says how far the transfer of one disk came; everything below `partial` must be durable. What was said of other
    /// disks stays. Durable when this returns.
    ///
    /// # Errors
    /// As [`Lease::beat`].
    pub fn set_partial(&self, partial: DiskVersion) -> Result<()> {
        self.set_partials(vec![partial])
    }

    /// As [`Lease::set_partial`], of several disks at once.
    ///
    /// # Errors
    /// As [`Lease::beat`].
    pub fn set_partials(&self, reached: Vec<DiskVersion>) -> Result<()> {
        {
            let partials = &mut self.core.lock().body.partials;
            for partial in reached {
                match partials.iter_mut().find(|it| it.label == partial.label) {
                    Some(of_disk) => *of_disk = partial,
                    None => partials.push(partial),
                }
            }
        }
        self.beat()
    }

    /// The id of the next pack to put. Beats first when the reserved ids are used up.
    ///
    /// # Errors
    /// As [`Lease::beat`]; [`ErrorKind::Refused`] after [`OWN_PACKS_MAX`] packs.
    pub fn next_pack_id(&self) -> Result<PackId> {
        self.check()?;
        let mut state = self.core.lock();
        if state.own_packs_used >= state.own_packs_durable {
            let batch = state
                .own_packs_used
                .clamp(OWN_PACKS_BATCH, OWN_PACKS_BATCH_MAX);
            let wanted = state
                .own_packs_used
                .saturating_add(batch)
                .min(OWN_PACKS_MAX);
            if wanted <= state.own_packs_used {
                return Err(Error::new(
                    ErrorKind::Refused,
                    "a session may put no more packs",
                ));
            }
            state.body.own_packs = state.body.own_packs.max(wanted);
            self.core.beat_locked(&mut state, BeatReason::Due)?;
        }
        let number = state.own_packs_used;
        state.own_packs_used = number.saturating_add(1);
        Ok(own_pack_id(self.core.id, number))
    }

    /// Stops the heartbeat and removes the lease.
    ///
    /// # Errors
    /// What the store answered; what is left over falls to the stall rule.
    pub fn release(mut self) -> Result<()> {
        self.heartbeat = None;
        // A beat that is being put now must not appear after the others are gone.
        let state = self.core.lock();
        self.core.lost.store(true, Ordering::Release);
        let outcome = remove_beats(self.core.access.as_ref(), self.core.id);
        drop(state);
        outcome
    }
}

/// Why a beat is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BeatReason {
    /// It is time, or there is something to say.
    Due,
    /// Only if something was condemned that this lease has not observed.
    News,
}

impl LeaseCore {
    fn lock(&self) -> MutexGuard<'_, LeaseState> {
        // A thread that panicked while it held the lock left a body that is whole: fields are replaced one by one and
        // each beat says all of it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<()> {
        if self.lost.load(Ordering::Acquire) {
            return Err(self.lost_error());
        }
        Ok(())
    }

    fn lost_error(&self) -> Error {
        Error::new(
            ErrorKind::Fenced,
            format!("lease {} was broken by another process", self.id),
        )
    }

    fn beat(&self, reason: BeatReason) -> Result<()> {
        self.beat_locked(&mut self.lock(), reason)
    }

    fn beat_locked(&self, state: &mut LeaseState, reason: BeatReason) -> Result<()> {
        let outcome = self.try_beat(state, reason);
        state.last_error = outcome.as_ref().err().map(Error::again);
        outcome
    }

    fn try_beat(&self, state: &mut LeaseState, reason: BeatReason) -> Result<()> {
        self.check()?;
        let news = self.observe(state)?;
        if reason == BeatReason::News && !news {
            return Ok(());
        }
        self.put_next_beat(state)
    }

    /// Hands newly condemned packs to the observer; whether there were any.
    fn observe(&self, state: &mut LeaseState) -> Result<bool> {
        let fresh = records::condemned_since(self.access.as_ref(), state.body.observed_generation)?;
        let mut claims: BTreeSet<PackId> = state.body.claims.iter().copied().collect();
        for record in &fresh {
            claims.extend(self.observer.condemned(record.generation, &record.packs));
            state.body.observed_generation = state.body.observed_generation.max(record.generation);
        }
        state.body.claims = claims.into_iter().collect();
        Ok(!fresh.is_empty())
    }

    fn put_next_beat(&self, state: &mut LeaseState) -> Result<()> {
        let access = self.access.as_ref();
        let before = state.durable_beat;
        // Counted up even when the put fails: its outcome is then unknown, and a name is never used twice.
        state.body.beat = state.body.beat.saturating_add(1);
        let text = serde_json::to_vec(&state.body)
            .map_err(|error| Error::new(ErrorKind::Local, "a heartbeat").caused_by(error))?;
        let name = names::beat(self.id, state.body.beat)?;
        access.put_sealed(ObjectKind::Lease, &name, &text)?;
        if before > 0 {
            match access.store().size(&names::beat(self.id, before)?) {
                Ok(_) => {}
                Err(error) if error.kind() == store::ErrorKind::NotFound => {
                    self.lost.store(true, Ordering::Release);
                    access.store().delete(&name)?;
                    return Err(self.lost_error());
                }
                Err(error) => return Err(error.into()),
            }
        }
        state.durable_beat = state.body.beat;
        state.own_packs_durable = state.body.own_packs;
        // Everything between the first beat and this one: usually one, more after beats with an unknown outcome.
        for old in before.max(2)..state.durable_beat {
            access.store().delete(&names::beat(self.id, old)?)?;
        }
        Ok(())
    }
}
