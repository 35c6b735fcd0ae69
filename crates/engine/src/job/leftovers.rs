//! Left-overs on hosts: what jobs of ours that died have left is removed, what others have left is told.
//!
//! ```text
//!   journals of dead jobs ─┐
//!   marks on the hosts ────┼─► custodian ─► removed │ to be looked at again │ for an operator │ of others: told, not touched
//!   newest points ─────────┘ (a tracking point that a version needs is kept)
//! ```
//!
//! **Invariants.** A job whose process lives is not touched, and neither is what may be a stranger's. A tracking point that
//! the newest version of any name in the repository starts from is kept; one that an older version started from goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use host::custody::{
    Closing, Custodian, CustodianOptions, Custody, CustodyHost, CustodyLog, Finding, HeldKind,
    JournalFolder, SweepReport, Waiting,
};
use host::ids::{JobId, OwnerId, TrackingPointRef};
use host::{CancelToken, Clock};
use repo::{ProtectedName, Repository};

use super::backup_vm::MachineRecord;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

/// How long a host may still be making what it was asked for before the process died.
const SETTLING: Duration = Duration::from_secs(60);
/// How much later than it was asked for something may have been made and still be ours.
const WINDOW: Duration = Duration::from_secs(900);

/// Tracking points that versions of a repository belong to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommittedTracking {
    /// The next version of some name starts from it.
    pub needed: BTreeSet<TrackingPointRef>,
    /// A newer version has taken its place: if it is still on a host, a job died before it was dropped.
    pub outlived: BTreeSet<TrackingPointRef>,
}

/// Which tracking points the versions of a repository say are theirs.
///
/// # Errors
/// What the repository answers, also when a single point cannot be read: nobody knows what is needed then.
pub fn committed_tracking(repository: &Repository) -> Result<CommittedTracking> {
    let (points, problems) = repository.points()?;
    if let Some(problem) = problems.into_iter().next() {
        let what = "a point cannot be read, so nobody knows which tracking points are needed";
        return Err(Error::new(ErrorKind::Corrupt, what).caused_by(problem));
    }
    let mut newest: BTreeMap<ProtectedName, u64> = BTreeMap::new();
    for record in &points {
        let sequence = newest.entry(record.point.name.clone()).or_default();
        *sequence = record.point.sequence.max(*sequence);
    }
    let mut tracking = CommittedTracking::default();
    for record in &points {
        let point = &record.point;
        let Some(theirs) = MachineRecord::of_point(point)?.and_then(|it| it.tracking_point) else {
            continue;
        };
        if newest.get(&point.name) == Some(&point.sequence) {
            tracking.needed.insert(theirs);
        } else {
            tracking.outlived.insert(theirs);
        }
    }
    // A run that could not track anew leaves the one before where it is.
    let CommittedTracking { needed, outlived } = &mut tracking;
    outlived.retain(|point| !needed.contains(point));
    Ok(tracking)
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
    /// This round, among jobs.
    pub job: JobId,
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
    let custody = Custody::new(
        Arc::clone(&dead) as Arc<dyn CustodyLog>,
        tools.owner.clone(),
        tools.job,
    );
    drop_outlived(tools, &needed, &custody, &mut report);
    report.problems.extend(dead.problems().iter().cloned());
    report.problems.extend(needed.into_problem());
    dead.finish()?;
    Ok(report)
}

/// Drops tracking points that versions of this repository once started from, and that a newer version has followed: they
/// carry no mark any more.
fn drop_outlived(
    tools: LeftoversTools<'_>,
    needed: &Needed<'_>,
    custody: &Custody,
    report: &mut SweepReport,
) {
    let unknown = std::mem::take(&mut report.foreign_tracking);
    for found in unknown {
        let point = TrackingPointRef {
            vm: found.vm,
            point: found.point.clone(),
        };
        if !needed.is_outlived(&point) {
            report.foreign_tracking.push(found);
            continue;
        }
        match tools.host.drop_tracking(&point, custody, tools.cancel) {
            Ok(released) => report.done.push(Finding {
                kind: HeldKind::TrackingPoint,
                vm: found.vm,
                job: tools.job,
                id: Some(found.point.to_string()),
                closing: Closing::Removed,
                merge: Some(released.merge),
                warnings: released.warnings,
            }),
            Err(error) => report.waiting.push(Waiting {
                kind: HeldKind::TrackingPoint,
                vm: found.vm,
                job: tools.job,
                reason: explained(&error.into()),
            }),
        }
    }
}

/// What newest versions need, read again after a job was found to have ended: it may have committed since.
struct Needed<'a> {
    repository: &'a Repository,
    state: Mutex<NeededState>,
}

#[derive(Default)]
struct NeededState {
    tracking: Option<CommittedTracking>,
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
        self.lock().tracking = None;
    }

    /// While the repository cannot be read, everything is needed.
    fn contains(&self, point: &TrackingPointRef) -> bool {
        self.look(|tracking| tracking.needed.contains(point))
            .unwrap_or(true)
    }

    fn is_outlived(&self, point: &TrackingPointRef) -> bool {
        self.look(|tracking| tracking.outlived.contains(point))
            .unwrap_or(false)
    }

    fn look<T>(&self, look: impl FnOnce(&CommittedTracking) -> T) -> Option<T> {
        let mut state = self.lock();
        if state.tracking.is_none() {
            match committed_tracking(self.repository) {
                Ok(tracking) => state.tracking = Some(tracking),
                Err(error) => {
                    let text = format!("tracking points are kept: {}", explained(&error));
                    state.problem = Some(text);
                }
            }
        }
        state.tracking.as_ref().map(look)
    }

    fn into_problem(self) -> Option<String> {
        let state = self.state.into_inner();
        state.unwrap_or_else(PoisonError::into_inner).problem
    }

    fn lock(&self) -> MutexGuard<'_, NeededState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
