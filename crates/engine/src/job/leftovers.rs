//! Left-overs on hosts: what jobs of ours that died have left is removed, what others have left is told.
//!
//! ```text
//!   journals of dead jobs ─┐
//!   marks on the hosts ────┼─► custodian ─► removed │ to be looked at again │ for an operator │ of others: told, not touched
//!   newest points ─────────┘ (a tracking point that a version needs is kept)
//! ```
//!
//! **Invariants.** A job whose process lives is not touched, and neither is what may be a stranger's. A tracking point that
//! the newest version of any name in the repository starts from is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use host::custody::{
    Custodian, CustodianOptions, CustodyHost, CustodyLog, JournalFolder, SweepReport,
};
use host::ids::{JobId, OwnerId, TrackingPointRef};
use host::{CancelToken, Clock};
use repo::{ProtectedName, RecoveryPoint, Repository};

use super::backup_vm::MachineRecord;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

/// How long a host may still be making what it was asked for before the process died.
const SETTLING: Duration = Duration::from_secs(60);
/// How much later than it was asked for something may have been made and still be ours.
const WINDOW: Duration = Duration::from_secs(900);

/// Tracking points that newest versions of a repository start from.
///
/// # Errors
/// What the repository answers, also when a single point cannot be read: nobody knows what is needed then.
pub fn committed_tracking(repository: &Repository) -> Result<BTreeSet<TrackingPointRef>> {
    let (points, problems) = repository.points()?;
    if let Some(problem) = problems.into_iter().next() {
        let what = "a point cannot be read, so nobody knows which tracking points are needed";
        return Err(Error::new(ErrorKind::Corrupt, what).caused_by(problem));
    }
    let mut newest: BTreeMap<ProtectedName, RecoveryPoint> = BTreeMap::new();
    for record in points {
        let point = record.point;
        let place = newest
            .entry(point.name.clone())
            .or_insert_with(|| point.clone());
        if place.sequence < point.sequence {
            *place = point;
        }
    }
    let mut needed = BTreeSet::new();
    for point in newest.values() {
        if let Some(record) = MachineRecord::of_point(point)? {
            needed.extend(record.tracking_point);
        }
    }
    Ok(needed)
}

/// What the round works with.
#[derive(Clone, Copy)]
pub struct LeftoversTools<'a> {
    /// The driver.
    pub host: &'a dyn CustodyHost,
    /// The journals of this server.
    pub journals: &'a JournalFolder,
    /// This server.
    pub owner: &'a OwnerId,
    /// The repository that this server's jobs write to.
    pub repository: &'a Repository,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Stops it.
    pub cancel: &'a CancelToken,
}

/// Looks once at all hosts, and removes what is ours and nobody's any more.
///
/// # Errors
/// When no host, or no journal can be read. While the repository cannot be read, every tracking point is kept.
pub fn remove_leftovers(tools: LeftoversTools<'_>) -> Result<SweepReport> {
    let dead = Arc::new(tools.journals.take_dead()?);
    let needed = Needed::new(tools.repository);
    let is_alive = |job: JobId| {
        let is_alive = !dead.jobs().contains(&job) && tools.journals.is_alive(job);
        if !is_alive {
            needed.doubt();
        }
        is_alive
    };
    let is_committed = |point: &TrackingPointRef| needed.contains(point);
    let options = CustodianOptions {
        owner: tools.owner.clone(),
        now: tools.clock.now(),
        is_alive: &is_alive,
        is_committed: &is_committed,
        settling: SETTLING,
        window: WINDOW,
    };
    let log: Arc<dyn CustodyLog> = Arc::clone(&dead) as Arc<dyn CustodyLog>;
    let custodian = Custodian::new(tools.host, log, options);
    let mut report = custodian.sweep(tools.cancel)?;
    report.problems.extend(dead.problems().iter().cloned());
    report.problems.extend(needed.into_problem());
    dead.finish()?;
    Ok(report)
}

/// What newest versions need, read again after a job was found to have ended: it may have committed since.
struct Needed<'a> {
    repository: &'a Repository,
    state: Mutex<NeededState>,
}

#[derive(Default)]
struct NeededState {
    points: Option<BTreeSet<TrackingPointRef>>,
    problem: Option<String>,
}

impl<'a> Needed<'a> {
    fn new(repository: &'a Repository) -> Self {
        Self {
            repository,
            state: Mutex::default(),
        }
    }

    fn doubt(&self) {
        self.lock().points = None;
    }

    /// While the repository cannot be read, everything is needed.
    fn contains(&self, point: &TrackingPointRef) -> bool {
        let mut state = self.lock();
        if let Some(points) = &state.points {
            return points.contains(point);
        }
        match committed_tracking(self.repository) {
            Ok(points) => state.points.insert(points).contains(point),
            Err(error) => {
                state.problem = Some(format!("tracking points are kept: {}", explained(&error)));
                true
            }
        }
    }

    fn into_problem(self) -> Option<String> {
        let state = self.state.into_inner();
        state.unwrap_or_else(PoisonError::into_inner).problem
    }

    fn lock(&self) -> MutexGuard<'_, NeededState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
