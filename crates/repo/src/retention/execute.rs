//! From points to a plan, and from a plan to marks.

use crate::catalog::PointRecord;
use crate::marks::PointVisibility;
use crate::points::{ProtectedName, RecoveryPoint};
use crate::repository::Repository;
use crate::{Error, ErrorKind, Result};

use super::{PointHealth, RetentionPlan, RetentionPoint, RetentionPolicy, plan_retention};

/// What retention decided for one name, and the points that it decided on.
#[derive(Debug)]
pub struct NameRetention {
    /// Whose points.
    pub name: ProtectedName,
    /// The decisions, the oldest point first.
    pub plan: RetentionPlan,
    points: Vec<RecoveryPoint>,
}

fn facts(record: &PointRecord) -> RetentionPoint {
    let torn = record
        .point
        .disks
        .iter()
        .any(|disk| !disk.unreadable.is_empty());
    RetentionPoint {
        sequence: record.point.sequence,
        created_unix_ms: record.point.created_unix_ms,
        health: if torn {
            PointHealth::Damaged
        } else {
            record.marks.health()
        },
        hold: record.marks.hold(),
    }
}

impl Repository {
    /// Decides what retention would do with the points of a name now.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] with a [`super::RetentionRefusal`] as its cause; [`ErrorKind::Corrupt`] when a point or a
    /// bundle cannot be read: what is kept may be counted wrongly then, so that nothing may go.
    pub fn plan_retention(
        &self,
        name: &ProtectedName,
        policy: &RetentionPolicy,
    ) -> Result<NameRetention> {
        let (records, damaged) = self.points()?;
        if let Some(error) = damaged.into_iter().next() {
            return Err(error);
        }
        let records: Vec<PointRecord> = records
            .into_iter()
            .filter(|record| record.point.name == *name)
            .filter(|record| record.marks.visibility() == PointVisibility::Visible)
            .collect();
        let points: Vec<RetentionPoint> = records.iter().map(facts).collect();
        let now = self.environment().clock.unix_ms();
        let plan = plan_retention(&points, policy, now).map_err(|refusal| {
            let what = format!("retention of {name}");
            Error::new(ErrorKind::Refused, what).caused_by(refusal)
        })?;
        let points = records.into_iter().map(|record| record.point).collect();
        Ok(NameRetention {
            name: name.clone(),
            plan,
            points,
        })
    }

    /// Puts the `forgotten` marks of a plan; gives how many. A point that is held by now stays.
    ///
    /// # Errors
    /// What the store answered; marks that were put stay, and doing it again is harmless.
    pub fn execute_retention(&self, retention: &NameRetention) -> Result<u64> {
        let mut forgotten = 0u64;
        for sequence in retention.plan.forgets() {
            let Some(point) = retention
                .points
                .iter()
                .find(|point| point.sequence == sequence)
            else {
                continue;
            };
            match self.forget(point, "retention") {
                Ok(_) => forgotten = forgotten.saturating_add(1),
                Err(error) if error.kind() == ErrorKind::Refused => {}
                Err(error) => return Err(error),
            }
        }
        Ok(forgotten)
    }
}
