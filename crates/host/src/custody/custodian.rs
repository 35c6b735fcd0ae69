//! The custodian: cleans up behind jobs that died, on whatever node the machine lives by then, with or without the journal.
//!
//! ```text
//!   for each open entry of a job that is dead            for each machine
//!     made, still there        → release                   mark of this server, no entry, job dead → release
//!     made, gone               → close                     mark of another server                  → report
//!     not known to be made:                                no mark                                 → report as foreign
//!       host is busy, or too early → wait
//!       no candidate             → close
//!       one candidate            → adopt, release
//!       several                  → alert with the commands that remove them
//! ```
//!
//! A *candidate* is of the right kind on the right machine, was not there before, carries no mark of somebody else, and was
//! made at a time that fits.
//!
//! **Invariants.** What may be a stranger's is never touched. A failure with one machine is told and goes on with the next. What
//! belongs to a committed version is kept, even when the process died before it could say so.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Closing, Custody, CustodyLog, Entry, HeldKind, MachineMark};
use crate::boundary::{Checkpoints, Definition, Inventory, Power};
use crate::checkpoint::{ForeignCheckpoint, MergeState, Presence, Warning};
use crate::clock::{CancelToken, Timestamp};
use crate::error::chain_text;
use crate::facts::{Activity, CheckpointFacts, CheckpointKind, PowerState, VmFacts};
use crate::ids::{
    CheckpointId, CheckpointRef, JobId, NodeName, OwnerId, TrackingPointId, TrackingPointRef, VmId,
};
use crate::{Error, ErrorKind, Result};

/// What the custodian needs of a driver.
pub trait CustodyHost: Inventory + Checkpoints + Power + Definition {}

impl<T: Inventory + Checkpoints + Power + Definition + ?Sized> CustodyHost for T {}

/// Who decides what: bounds and knowledge of the caller.
pub struct CustodianOptions<'a> {
    /// This server.
    pub owner: OwnerId,
    /// The time.
    pub now: Timestamp,
    /// Whether a job runs right now, in this process or under a lease: its things are not touched.
    pub is_alive: &'a dyn Fn(JobId) -> bool,
    /// Whether a committed version needs this tracking point.
    pub is_committed: &'a dyn Fn(&TrackingPointRef) -> bool,
    /// How long a host may still be making what it was asked for before the process died.
    pub settling: Duration,
    /// How much later than it was asked for something may have been made and still be ours; also how far clocks may differ.
    pub window: Duration,
}

/// Something that was found and dealt with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: HeldKind,
    /// The machine.
    pub vm: VmId,
    /// The job that made it.
    pub job: JobId,
    /// The host's id of it.
    pub id: Option<String>,
    /// What became of it.
    pub closing: Closing,
    /// How far its disks are merged, where that is a question.
    pub merge: Option<MergeState>,
    /// What an operator should know.
    pub warnings: Vec<Warning>,
}

/// Something to look at again later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// What it is.
    pub kind: HeldKind,
    /// The machine.
    pub vm: VmId,
    /// The job that made it.
    pub job: JobId,
    /// What is waited for.
    pub reason: String,
}

/// Something that only an operator can decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// What it is.
    pub kind: HeldKind,
    /// The machine.
    pub vm: VmId,
    /// The job.
    pub job: JobId,
    /// What is the matter.
    pub text: String,
    /// Commands, one for each candidate, of which the right one removes it.
    pub commands: Vec<String>,
}

/// A tracking point that is nobody's that we know of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForeignTracking {
    /// The machine.
    pub vm: VmId,
    /// Display name of the machine.
    pub machine: String,
    /// Where it was seen.
    pub node: NodeName,
    /// The point.
    pub point: TrackingPointId,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// The command that removes it, for whoever decides to.
    pub command: String,
}

/// What one round of the custodian found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SweepReport {
    /// Dealt with.
    pub done: Vec<Finding>,
    /// To be looked at again.
    pub waiting: Vec<Waiting>,
    /// For an operator.
    pub alerts: Vec<Alert>,
    /// Checkpoints of others.
    pub foreign: Vec<ForeignCheckpoint>,
    /// Tracking points of others.
    pub foreign_tracking: Vec<ForeignTracking>,
    /// What went wrong, node by node and machine by machine.
    pub problems: Vec<String>,
}

/// The custodian of one log and one place where machines run.
pub struct Custodian<'a> {
    host: &'a dyn CustodyHost,
    log: Arc<dyn CustodyLog>,
    options: CustodianOptions<'a>,
}

/// What is known about an entry's thing after a look at the machine.
enum Sight {
    Known(String),
    Absent,
    Wait(String),
    Several(Vec<String>),
}

impl<'a> Custodian<'a> {
    /// For one round.
    pub fn new(
        host: &'a dyn CustodyHost,
        log: Arc<dyn CustodyLog>,
        options: CustodianOptions<'a>,
    ) -> Self {
        Self { host, log, options }
    }

    /// Looks at everything once. It fails only when the log or every node cannot be read.
    pub fn sweep(&self, cancel: &CancelToken) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        for entry in self.log.open_entries()? {
            cancel.check("the custodian")?;
            if (self.options.is_alive)(entry.intent.job) {
                continue;
            }
            if let Err(error) = self.settle_entry(&entry, &mut report, cancel) {
                report.waiting.push(Waiting {
                    kind: entry.intent.kind,
                    vm: entry.intent.vm,
                    job: entry.intent.job,
                    reason: chain_text(&error),
                });
            }
        }
        let inventory = self.host.inventory(cancel)?;
        for problem in &inventory.problems {
            report
                .problems
                .push(format!("{}: {}", problem.node, problem.text));
        }
        let claimed = self.claimed()?;
        for machine in &inventory.machines {
            cancel.check("the custodian")?;
            self.look_for_marks(machine, &claimed, &mut report, cancel);
        }
        Ok(report)
    }

    fn custody(&self, job: JobId) -> Custody {
        Custody::new(Arc::clone(&self.log), self.options.owner.clone(), job)
    }

    /// Ids that open entries name, of jobs dead or alive: those are no left-overs.
    fn claimed(&self) -> Result<BTreeSet<(HeldKind, VmId, String)>> {
        let entries = self.log.open_entries()?;
        Ok(entries
            .into_iter()
            .filter_map(|entry| Some((entry.intent.kind, entry.intent.vm, entry.made?)))
            .collect())
    }

    fn settle_entry(
        &self,
        entry: &Entry,
        report: &mut SweepReport,
        cancel: &CancelToken,
    ) -> Result<()> {
        if entry.intent.kind == HeldKind::PlannedMachine {
            return self.settle_planned(entry, report, cancel);
        }
        let machine = match self.host.machine(entry.intent.vm, cancel) {
            Ok(machine) => machine,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Every node answered and none has it: with the machine went whatever hung on it.
                return self.close(
                    entry,
                    Closing::Gone,
                    entry.made.clone(),
                    None,
                    Vec::new(),
                    report,
                );
            }
            Err(error) => return Err(error),
        };
        match entry.intent.kind {
            HeldKind::SavedState => self.settle_saved(entry, &machine, report, cancel),
            HeldKind::Freeze => {
                let closing = match self.host.thaw(machine.id, cancel)? {
                    Presence::Removed => Closing::Removed,
                    Presence::Absent => Closing::Gone,
                };
                self.close(entry, closing, None, None, Vec::new(), report)?;
                self.remove_marks(&machine, entry, report, cancel);
                Ok(())
            }
            kind => {
                let sight = self.look(entry, &machine);
                self.settle_sight(entry, kind, sight, report, cancel)
            }
        }
    }

    fn settle_sight(
        &self,
        entry: &Entry,
        kind: HeldKind,
        sight: Sight,
        report: &mut SweepReport,
        cancel: &CancelToken,
    ) -> Result<()> {
        let id = match sight {
            Sight::Known(id) => id,
            Sight::Absent => {
                let closing = if entry.made.is_some() {
                    Closing::Gone
                } else {
                    Closing::NeverMade
                };
                return self.close(entry, closing, entry.made.clone(), None, Vec::new(), report);
            }
            Sight::Wait(reason) => {
                report.waiting.push(Waiting {
                    kind,
                    vm: entry.intent.vm,
                    job: entry.intent.job,
                    reason,
                });
                return Ok(());
            }
            Sight::Several(ids) => {
                report.alerts.push(Alert {
                    kind,
                    vm: entry.intent.vm,
                    job: entry.intent.job,
                    text: format!(
                        "{} things could be the {} that a job made before it died: none is touched",
                        ids.len(),
                        kind.name()
                    ),
                    commands: ids
                        .iter()
                        .map(|id| removal_command(kind, entry.intent.vm, id))
                        .collect(),
                });
                return Ok(());
            }
        };
        if entry.made.is_none() {
            // From here on a second death finds it by its id.
            self.log.made(entry.id, &id)?;
        }
        self.remove(entry, kind, id, report, cancel)
    }

    fn remove(
        &self,
        entry: &Entry,
        kind: HeldKind,
        id: String,
        report: &mut SweepReport,
        cancel: &CancelToken,
    ) -> Result<()> {
        let custody = self.custody(entry.intent.job);
        let vm = entry.intent.vm;
        let released = if kind == HeldKind::TrackingPoint {
            let point = TrackingPointRef {
                vm,
                point: TrackingPointId::new(id.clone())?,
            };
            if (self.options.is_committed)(&point) {
                return self.close(entry, Closing::Kept, Some(id), None, Vec::new(), report);
            }
            self.host.drop_tracking(&point, &custody, cancel)?
        } else {
            let reference = CheckpointRef {
                vm,
                checkpoint: CheckpointId::new(id.clone())?,
            };
            self.host.release(&reference, &custody, cancel)?
        };
        let closing = match released.was {
            Presence::Removed => Closing::Removed,
            Presence::Absent => Closing::Gone,
        };
        self.close(
            entry,
            closing,
            Some(id),
            Some(released.merge),
            released.warnings,
            report,
        )
    }

    fn close(
        &self,
        entry: &Entry,
        closing: Closing,
        id: Option<String>,
        merge: Option<MergeState>,
        warnings: Vec<Warning>,
        report: &mut SweepReport,
    ) -> Result<()> {
        self.log.close(entry.id, closing)?;
        report.done.push(Finding {
            kind: entry.intent.kind,
            vm: entry.intent.vm,
            job: entry.intent.job,
            id,
            closing,
            merge,
            warnings,
        });
        Ok(())
    }

    /// What of the entry's kind can be what the entry announced.
    fn look(&self, entry: &Entry, machine: &VmFacts) -> Sight {
        let candidates: Vec<String> = match entry.intent.kind {
            HeldKind::TrackingPoint => machine
                .tracking_points
                .iter()
                .filter(|it| self.fits(entry, it.id.as_str(), it.created))
                .map(|it| it.id.to_string())
                .collect(),
            _ => self.checkpoint_candidates(entry, machine),
        };
        if let Some(made) = &entry.made {
            let is_there = match entry.intent.kind {
                HeldKind::TrackingPoint => machine
                    .tracking_points
                    .iter()
                    .any(|it| it.id.as_str() == made),
                _ => machine.checkpoints.iter().any(|it| it.id.as_str() == made),
            };
            return if is_there {
                Sight::Known(made.clone())
            } else {
                Sight::Absent
            };
        }
        let is_busy = machine.activities.iter().any(|activity| {
            matches!(
                activity,
                Activity::CreatingCheckpoint | Activity::DeletingCheckpoint | Activity::Migrating
            )
        });
        let age = entry.intent.at.age_at(self.options.now);
        let mut candidates = candidates.into_iter();
        match (candidates.next(), candidates.next()) {
            (Some(first), Some(second)) => {
                let mut all = vec![first, second];
                all.extend(candidates);
                Sight::Several(all)
            }
            (Some(only), None) => Sight::Known(only),
            (None, _) if is_busy => Sight::Wait("the host is still at work on the machine".into()),
            (None, _) if age < self.options.settling => {
                Sight::Wait("the host may still be making it".into())
            }
            (None, _) => Sight::Absent,
        }
    }

    fn checkpoint_candidates(&self, entry: &Entry, machine: &VmFacts) -> Vec<String> {
        let is_ours = |it: &&CheckpointFacts| {
            it.mark
                .as_ref()
                .is_some_and(|mark| mark.job == entry.intent.job)
        };
        // Of any kind: an old host makes ordinary checkpoints for backups too.
        let marked: Vec<String> = machine
            .checkpoints
            .iter()
            .filter(is_ours)
            .map(|it| it.id.to_string())
            .collect();
        if !marked.is_empty() {
            return marked;
        }
        machine
            .recovery_checkpoints()
            .filter(|it| it.mark.is_none() && self.fits(entry, it.id.as_str(), it.created))
            .map(|it| it.id.to_string())
            .collect()
    }

    fn fits(&self, entry: &Entry, id: &str, created: Option<Timestamp>) -> bool {
        let was_there = entry.intent.before.iter().any(|it| it == id);
        let window_ms = i64::try_from(self.options.window.as_millis()).unwrap_or(i64::MAX);
        // By the clock of whoever stamps what it makes.
        let at = entry.intent.host_at.unwrap_or(entry.intent.at).0;
        let is_timely = created.is_none_or(|created| {
            created.0 >= at.saturating_sub(window_ms) && created.0 <= at.saturating_add(window_ms)
        });
        !was_there && is_timely
    }

    fn settle_saved(
        &self,
        entry: &Entry,
        machine: &VmFacts,
        report: &mut SweepReport,
        cancel: &CancelToken,
    ) -> Result<()> {
        match machine.power {
            PowerState::Saved | PowerState::Paused => {
                self.host.start(machine.id, cancel)?;
                self.close(entry, Closing::Removed, None, None, Vec::new(), report)?;
            }
            PowerState::Changing => {
                report.waiting.push(Waiting {
                    kind: entry.intent.kind,
                    vm: machine.id,
                    job: entry.intent.job,
                    reason: "the machine is between two states".into(),
                });
                return Ok(());
            }
            PowerState::Running | PowerState::Off => {
                let age = entry.intent.at.age_at(self.options.now);
                if machine.power == PowerState::Running && age < self.options.settling {
                    report.waiting.push(Waiting {
                        kind: entry.intent.kind,
                        vm: machine.id,
                        job: entry.intent.job,
                        reason: "the host may still be about to save it".into(),
                    });
                    return Ok(());
                }
                self.close(entry, Closing::Gone, None, None, Vec::new(), report)?;
            }
            PowerState::Critical(number) => {
                return Err(Error::new(
                    ErrorKind::State,
                    format!("{} is in state {number}", machine.id),
                ));
            }
        }
        self.remove_marks(machine, entry, report, cancel);
        Ok(())
    }

    fn remove_marks(
        &self,
        machine: &VmFacts,
        entry: &Entry,
        report: &mut SweepReport,
        cancel: &CancelToken,
    ) {
        let of_entry = |mark: &&MachineMark| {
            mark.mark.job == entry.intent.job && mark.kind == entry.intent.kind
        };
        for mark in machine.marks.iter().filter(of_entry) {
            if let Err(error) = self.host.unmark(machine.id, mark, cancel) {
                report
                    .problems
                    .push(format!("{}: {}", machine.id, chain_text(&error)));
            }
        }
    }

    fn settle_planned(
        &self,
        entry: &Entry,
        report: &mut SweepReport,
        cancel: &CancelToken,
    ) -> Result<()> {
        let node = &entry.intent.node;
        let planned = self.host.planned(node, cancel)?;
        let new: Vec<VmId> = planned
            .into_iter()
            .filter(|id| match &entry.made {
                Some(made) => *made == id.to_string(),
                None => !entry.intent.before.contains(&id.to_string()),
            })
            .collect();
        let age = entry.intent.at.age_at(self.options.now);
        let sight = match new.as_slice() {
            [] if entry.made.is_none() && age < self.options.settling => {
                Sight::Wait("the host may still be making it".into())
            }
            [] => Sight::Absent,
            [only] => Sight::Known(only.to_string()),
            several => Sight::Several(several.iter().map(ToString::to_string).collect()),
        };
        if let Sight::Known(id) = &sight {
            let vm: VmId = id.parse()?;
            let custody = self.custody(entry.intent.job);
            self.log.made(entry.id, id)?;
            let released = self.host.discard_planned(node, vm, &custody, cancel)?;
            let closing = match released.was {
                Presence::Removed => Closing::Removed,
                Presence::Absent => Closing::Gone,
            };
            return self.close(
                entry,
                closing,
                Some(id.clone()),
                None,
                released.warnings,
                report,
            );
        }
        self.settle_sight(entry, HeldKind::PlannedMachine, sight, report, cancel)
    }

    /// Left-overs that no entry knows: by their marks ours, or else somebody else's.
    fn look_for_marks(
        &self,
        machine: &VmFacts,
        claimed: &BTreeSet<(HeldKind, VmId, String)>,
        report: &mut SweepReport,
        cancel: &CancelToken,
    ) {
        let of_backups = machine
            .checkpoints
            .iter()
            .filter(|it| it.kind == CheckpointKind::Recovery || it.mark.is_some());
        for checkpoint in of_backups {
            let id = checkpoint.id.to_string();
            if claimed.contains(&(HeldKind::Checkpoint, machine.id, id)) {
                continue;
            }
            self.look_at_checkpoint(machine, checkpoint, report, cancel);
        }
        for mark in &machine.marks {
            let is_ours = mark.mark.owner.as_ref() == Some(&self.options.owner);
            if is_ours && !(self.options.is_alive)(mark.mark.job) {
                let outcome = self.follow_machine_mark(machine, mark, claimed, report, cancel);
                if let Err(error) = outcome {
                    report
                        .problems
                        .push(format!("{}: {}", machine.id, chain_text(&error)));
                }
            }
        }
        for point in &machine.tracking_points {
            let reference = TrackingPointRef {
                vm: machine.id,
                point: point.id.clone(),
            };
            let key = (HeldKind::TrackingPoint, machine.id, point.id.to_string());
            let is_marked = machine
                .marks
                .iter()
                .any(|mark| mark.id.as_deref() == Some(point.id.as_str()));
            let is_known =
                claimed.contains(&key) || is_marked || (self.options.is_committed)(&reference);
            if !is_known {
                report.foreign_tracking.push(ForeignTracking {
                    vm: machine.id,
                    machine: machine.name.clone(),
                    node: machine.node.clone(),
                    point: point.id.clone(),
                    created: point.created,
                    command: removal_command(
                        HeldKind::TrackingPoint,
                        machine.id,
                        point.id.as_str(),
                    ),
                });
            }
        }
    }

    fn look_at_checkpoint(
        &self,
        machine: &VmFacts,
        checkpoint: &CheckpointFacts,
        report: &mut SweepReport,
        cancel: &CancelToken,
    ) {
        let reference = CheckpointRef {
            vm: machine.id,
            checkpoint: checkpoint.id.clone(),
        };
        let job = match &checkpoint.mark {
            Some(mark) if mark.owner.as_ref() == Some(&self.options.owner) => Some(mark.job),
            _ => None,
        };
        let Some(job) = job else {
            report.foreign.push(ForeignCheckpoint {
                vm: machine.id,
                machine: machine.name.clone(),
                node: machine.node.clone(),
                checkpoint: checkpoint.id.clone(),
                name: checkpoint.name.clone(),
                created: checkpoint.created,
                age: checkpoint.created.map(|it| it.age_at(self.options.now)),
                size_bytes: self.host.checkpoint_size(&reference, cancel),
                command: removal_command(HeldKind::Checkpoint, machine.id, checkpoint.id.as_str()),
            });
            return;
        };
        if (self.options.is_alive)(job) {
            return;
        }
        match self.host.release(&reference, &self.custody(job), cancel) {
            Ok(released) => report.done.push(Finding {
                kind: HeldKind::Checkpoint,
                vm: machine.id,
                job,
                id: Some(checkpoint.id.to_string()),
                closing: Closing::Removed,
                merge: Some(released.merge),
                warnings: released.warnings,
            }),
            Err(error) => report.waiting.push(Waiting {
                kind: HeldKind::Checkpoint,
                vm: machine.id,
                job,
                reason: chain_text(&error),
            }),
        }
    }

    fn follow_machine_mark(
        &self,
        machine: &VmFacts,
        mark: &MachineMark,
        claimed: &BTreeSet<(HeldKind, VmId, String)>,
        report: &mut SweepReport,
        cancel: &CancelToken,
    ) -> Result<()> {
        let mut closing = Closing::Gone;
        match (mark.kind, &mark.id) {
            (HeldKind::SavedState, _)
                if matches!(machine.power, PowerState::Saved | PowerState::Paused) =>
            {
                self.host.start(machine.id, cancel)?;
                closing = Closing::Removed;
            }
            (HeldKind::Freeze, _) => {
                closing = match self.host.thaw(machine.id, cancel)? {
                    Presence::Removed => Closing::Removed,
                    Presence::Absent => Closing::Gone,
                };
            }
            (HeldKind::TrackingPoint, Some(id)) => {
                let point = TrackingPointRef {
                    vm: machine.id,
                    point: TrackingPointId::new(id.clone())?,
                };
                let key = (HeldKind::TrackingPoint, machine.id, id.clone());
                let is_there = machine
                    .tracking_points
                    .iter()
                    .any(|it| it.id.as_str() == id);
                if claimed.contains(&key) {
                    return Ok(());
                }
                if is_there && (self.options.is_committed)(&point) {
                    // It belongs to a version: its job died before it could take the mark away.
                    closing = Closing::Kept;
                } else if is_there {
                    let custody = self.custody(mark.mark.job);
                    self.host.drop_tracking(&point, &custody, cancel)?;
                    closing = Closing::Removed;
                }
            }
            _ => {}
        }
        self.host.unmark(machine.id, mark, cancel)?;
        report.done.push(Finding {
            kind: mark.kind,
            vm: machine.id,
            job: mark.mark.job,
            id: mark.id.clone(),
            closing,
            merge: None,
            warnings: Vec::new(),
        });
        Ok(())
    }
}

/// The command that removes something, for an operator who decided that it is to go.
pub(crate) fn removal_command(kind: HeldKind, vm: VmId, id: &str) -> String {
    match kind {
        // A machine that stands still is not removed.
        HeldKind::SavedState => format!("hikae vm show {vm}"),
        HeldKind::Checkpoint
        | HeldKind::TrackingPoint
        | HeldKind::PlannedMachine
        | HeldKind::Freeze => format!("hikae vm checkpoint drop {vm} \"{id}\""),
    }
}
