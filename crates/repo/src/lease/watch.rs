//! Looking at other people's leases: who is there, who is dead, and how to make sure that the dead stay dead.
//!
//! ```text
//!              beat moves on                    same boot, process gone
//!   Alive ◄───────────────── watched ─────────────────────────────────► Gone ─┐
//!                               │ beat unchanged for stall_ms on OUR clock    ├─► fence ─► Fenced / Committed
//!                               └──────────────────────────────────► Stalled ─┘
//! ```
//!
//! **Invariants.** Nobody's wall clock is compared with anybody else's. A fence is create-if-absent on the very key that the
//! commit is: either the tombstone is there and the writer can never commit, or the point is there and the writer has.
//! So fencing by mistake costs a backup run and never a byte. The tombstone comes before the lease is removed.

use std::collections::BTreeMap;

use store::{ObjectName, list_all};

use super::LeaseTerms;
use super::body::{BEAT_SIZE_BYTES_MAX, LeaseBody};
use crate::access::ObjectAccess;
use crate::environment::{HostIdentity, process_started};
use crate::format::ObjectKind;
use crate::gc::mark::is_damage;
use crate::{Error, ErrorKind, LeaseId, Result, names};

/// A lease as another process sees it.
#[derive(Debug)]
pub struct LeaseView {
    /// Its id.
    pub id: LeaseId,
    /// The number of its newest beat.
    pub beat: u64,
    /// What the newest beat says, or why it cannot be read. What its owner relies on is not known then.
    pub body: Result<LeaseBody>,
    /// An older beat, when the newest cannot be read: good for what never changes, the reserved point and the owner.
    pub(crate) older: Option<LeaseBody>,
}

impl LeaseView {
    /// A beat that tells what no beat changes.
    fn unchanging(&self) -> Option<&LeaseBody> {
        self.body.as_ref().ok().or(self.older.as_ref())
    }
}

/// All leases, by id. An unreadable one is among them: it may be alive.
pub(crate) fn list_leases(access: &dyn ObjectAccess) -> Result<Vec<LeaseView>> {
    let mut beats: BTreeMap<LeaseId, BTreeMap<u64, ObjectName>> = BTreeMap::new();
    for entry in list_all(access.store(), &names::leases()?) {
        let entry = entry?;
        let parsed = entry
            .name
            .as_str()
            .strip_prefix("leases/")
            .and_then(|rest| {
                let (id, beat) = rest.split_once('/')?;
                Some((id.parse().ok()?, names::parse_number(beat)?))
            });
        if let Some((id, beat)) = parsed {
            beats.entry(id).or_default().insert(beat, entry.name);
        }
    }
    let mut views = Vec::with_capacity(beats.len());
    for (id, beats) in beats {
        if let Some(view) = view_lease(access, id, &beats)? {
            views.push(view);
        }
    }
    Ok(views)
}

/// How often a lease may beat between a listing and the read of its newest beat.
const LOOKS_MAX: usize = 64;

/// Reads the newest beat. One that is gone when it is read was followed by another: only the newest says what is relied on
/// now, so that the beats are listed again, and an older beat never stands in for it.
fn view_lease(
    access: &dyn ObjectAccess,
    id: LeaseId,
    listed: &BTreeMap<u64, ObjectName>,
) -> Result<Option<LeaseView>> {
    let mut beats = listed.clone();
    for _ in 0..LOOKS_MAX {
        let Some((beat, name)) = beats.last_key_value() else {
            return Ok(None);
        };
        match read_beat(access, id, name) {
            Ok(body) => {
                let view = LeaseView {
                    id,
                    beat: *beat,
                    body: Ok(body),
                    older: None,
                };
                return Ok(Some(view));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => beats = list_beats(access, id)?,
            Err(error) if is_damage(&error) => {
                let older = beats.values().rev().skip(1);
                let older = older
                    .filter_map(|name| read_beat(access, id, name).ok())
                    .next();
                return Ok(Some(LeaseView {
                    id,
                    beat: *beat,
                    body: Err(error),
                    older,
                }));
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!("lease {id} beats faster than it can be read"),
    ))
}

fn list_beats(access: &dyn ObjectAccess, id: LeaseId) -> Result<BTreeMap<u64, ObjectName>> {
    let mut beats = BTreeMap::new();
    for entry in list_all(access.store(), &names::beats_of(id)?) {
        let name = entry?.name;
        let (_, number) = name.split();
        if let Some(beat) = names::parse_number(number) {
            beats.insert(beat, name);
        }
    }
    Ok(beats)
}

fn read_beat(access: &dyn ObjectAccess, id: LeaseId, name: &ObjectName) -> Result<LeaseBody> {
    let bytes = access.get_sealed(ObjectKind::Lease, name, BEAT_SIZE_BYTES_MAX)?;
    let body: LeaseBody = serde_json::from_slice(&bytes)
        .map_err(|error| Error::corrupt(name, "not a heartbeat").caused_by(error))?;
    if body.lease != id {
        return Err(Error::corrupt(
            name,
            format!("a heartbeat of lease {}", body.lease),
        ));
    }
    Ok(body)
}

/// Whether the owner of a lease is thought to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// It beat within the stall time, or was seen for the first time.
    Alive,
    /// It did not beat while this observer watched for the stall time.
    Stalled,
    /// Its process is gone from this very host.
    Gone,
}

/// What this host knows about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProcessState {
    /// It runs, or nothing can be said.
    MayRun,
    /// It does not run any more.
    Gone,
}

/// Asks the system about the owner of a lease. Only a process of the same host since the same boot can be known to be gone.
pub fn probe_process(here: &HostIdentity, owner: &HostIdentity) -> ProcessState {
    let comparable =
        !here.boot_id.is_empty() && here.boot_id == owner.boot_id && here.host == owner.host;
    if !comparable || owner.process_started == 0 || process_started(here.pid).is_none() {
        return ProcessState::MayRun;
    }
    if process_started(owner.pid) == Some(owner.process_started) {
        ProcessState::MayRun
    } else {
        ProcessState::Gone
    }
}

/// Remembers since when each lease showed the same beat, on the observer's own monotonic clock.
#[derive(Debug, Default)]
pub struct StallWatch {
    seen: BTreeMap<LeaseId, (u64, u64)>,
}

impl StallWatch {
    /// Judges a lease now; the longer the same watch judges, the more it knows.
    pub fn judge(
        &mut self,
        view: &LeaseView,
        here: &HostIdentity,
        terms: &LeaseTerms,
        monotonic_ms: u64,
    ) -> Liveness {
        if let Some(body) = view.unchanging()
            && (terms.probe)(here, &body.owner) == ProcessState::Gone
        {
            return Liveness::Gone;
        }
        let (beat, since) = self
            .seen
            .entry(view.id)
            .or_insert((view.beat, monotonic_ms));
        if *beat != view.beat {
            (*beat, *since) = (view.beat, monotonic_ms);
        }
        if monotonic_ms.saturating_sub(*since) >= terms.stall_ms {
            Liveness::Stalled
        } else {
            Liveness::Alive
        }
    }
}

/// What became of a lease that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BreakOutcome {
    /// A tombstone stands at the point that it reserved: it can never commit.
    Fenced,
    /// Its point was already there: it had committed, or somebody fenced it before.
    AlreadyDecided,
    /// It had reserved no point: it was only removed, and its owner will notice.
    Removed,
}

/// Ends a lease whose owner is stalled or gone: tombstone first, then the heartbeats.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when no beat is readable, so that nobody knows which point it reserved; then nothing is done.
pub(crate) fn break_lease(access: &dyn ObjectAccess, view: &LeaseView) -> Result<BreakOutcome> {
    let body = match (view.unchanging(), &view.body) {
        (Some(body), _) | (None, Ok(body)) => body,
        (None, Err(error)) => return Err(error.again()),
    };
    let outcome = match body.reserved {
        None => BreakOutcome::Removed,
        Some(key) => match access.put_tombstone(key, view.id) {
            Ok(()) => BreakOutcome::Fenced,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => BreakOutcome::AlreadyDecided,
            Err(error) => return Err(error),
        },
    };
    remove_beats(access, view.id)?;
    Ok(outcome)
}

/// Deletes every beat of a lease, the first one last: as long as one is there, so is the reserved key.
pub(crate) fn remove_beats(access: &dyn ObjectAccess, id: LeaseId) -> Result<()> {
    let mut beats = Vec::new();
    for entry in list_all(access.store(), &names::beats_of(id)?) {
        beats.push(entry?.name);
    }
    for name in beats.iter().rev() {
        access.store().delete(name)?;
    }
    Ok(())
}
