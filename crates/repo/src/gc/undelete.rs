//! Forgetting, holding and undeleting points: marks, put so that garbage collection beside it stays right.
//!
//! ```text
//!   forget:    held? refused ─► mark `forgotten`
//!   undelete:  lease on the trees ─► mark `undeleted` ─► a generation that condemns the point and has no verdict: abort it
//!                                                     └─► a verdict drops the point: too late, an error
//! ```
//!
//! **Why undelete is safe.** The collector lists leases, then marks, then puts its verdict. Either it sees the lease and the
//! mark, or it had listed before they were there: then its verdict is not there yet and the empty one wins, or it is there
//! and this fails.

use std::sync::Arc;

use crate::access::ObjectAccess;
use crate::lease::{Lease, LeaseKind, LeaseRequest, ReadsOnly};
use crate::marks::{Mark, MarkDraft, MarkKind, PointVisibility, put_mark, read_marks_of};
use crate::points::RecoveryPoint;
use crate::repository::Repository;
use crate::retention::HoldState;
use crate::{Error, ErrorKind, Result};

use super::records::{PutOutcome, Verdict, put_verdict, read_records};
use super::run::root_of;

impl Repository {
    fn put_mark(&self, point: &RecoveryPoint, kind: MarkKind, reason: &str) -> Result<Mark> {
        let draft = MarkDraft {
            key: point.key(),
            point: point.point,
            kind,
            reason: reason.to_owned(),
            objects: Vec::new(),
        };
        put_mark(self.vault().as_ref(), self.environment(), draft)
    }

    /// Marks a point to be removed by the next garbage collection; until then [`Repository::undelete`] brings it back.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] while it is held.
    pub fn forget(&self, point: &RecoveryPoint, reason: &str) -> Result<Mark> {
        let marks = read_marks_of(self.vault().as_ref(), point.key())?;
        if marks.hold() == HoldState::Held {
            let what = format!("{}@{} is held", point.name, point.sequence);
            return Err(Error::new(ErrorKind::Refused, what));
        }
        self.put_mark(point, MarkKind::Forgotten, reason)
    }

    /// Protects a point from retention and forgetting until it is released.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it is forgotten.
    pub fn hold(&self, point: &RecoveryPoint, reason: &str) -> Result<Mark> {
        let marks = read_marks_of(self.vault().as_ref(), point.key())?;
        if marks.visibility() == PointVisibility::Forgotten {
            let what = format!(
                "{}@{} is forgotten: undelete it first",
                point.name, point.sequence
            );
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        self.put_mark(point, MarkKind::Hold, reason)
    }

    /// Ends all holds of a point.
    ///
    /// # Errors
    /// What the store answered.
    pub fn release(&self, point: &RecoveryPoint, reason: &str) -> Result<Mark> {
        self.put_mark(point, MarkKind::Release, reason)
    }

    /// Brings a forgotten point back, if garbage collection has not decided on it yet.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it is being removed already.
    pub fn undelete(&self, point: &RecoveryPoint, reason: &str) -> Result<Mark> {
        let mut request = LeaseRequest::new(LeaseKind::Undelete);
        request.points.push(point.key());
        request.roots.extend(point.trees().map(root_of));
        let access: Arc<dyn ObjectAccess> = Arc::clone(self.vault()) as Arc<dyn ObjectAccess>;
        let lease = Lease::acquire(
            access,
            self.environment(),
            request,
            &self.lease_terms(),
            Arc::new(ReadsOnly),
        )?;
        let outcome = self.undelete_under_lease(point, reason);
        let released = lease.release();
        let mark = outcome?;
        released?;
        Ok(mark)
    }

    fn undelete_under_lease(&self, point: &RecoveryPoint, reason: &str) -> Result<Mark> {
        let vault = self.vault().as_ref();
        let key = point.key();
        let mark = self.put_mark(point, MarkKind::Undeleted, reason)?;
        let gone = || {
            let what = format!("{}@{} is being removed already", point.name, point.sequence);
            Error::new(ErrorKind::NotFound, what)
        };
        for record in read_records(vault)? {
            match (&record.condemned, &record.verdict) {
                (Some(Ok(condemned)), None) if !condemned.points.contains(&key) => {}
                (Some(_), None) => {
                    let aborted = Verdict::aborted(record.generation);
                    if put_verdict(vault, &aborted)? == PutOutcome::Taken
                        && self.is_retired(point)?
                    {
                        return Err(gone());
                    }
                }
                // Whether it drops the point is not known, and its deletions may still be going on.
                (Some(_), Some(Err(error))) => return Err(error.again()),
                (_, Some(Ok(verdict))) if verdict.numbers.retired.contains(key) => {
                    return Err(gone());
                }
                _ => {}
            }
        }
        // Not condemned any more, or never: it must still be where it was. A bundle counts as well as a single point.
        let there = self
            .points()?
            .0
            .iter()
            .any(|record| record.point.key() == key);
        if there { Ok(mark) } else { Err(gone()) }
    }

    fn is_retired(&self, point: &RecoveryPoint) -> Result<bool> {
        Ok(super::delete::retired_points(self.vault().as_ref())?.contains(point.key()))
    }
}
