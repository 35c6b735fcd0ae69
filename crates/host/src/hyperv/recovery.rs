//! Recovery checkpoints: made, found, marked, described, turned into reference points, released.
//!
//! ```text
//!   intend ─► CreateSnapshot(32768) ─► job ─► which one is it? ─► made ─► mark (its name) ─► describe
//!               out parameter │ rows affected by the job │ the only one that was not there before
//!   intend ─► ConvertToReferencePoint ─► job ─► which one? ─► made ─► tokens, disk by disk ─► checkpoint's entry closed
//!   switch merging on if it is off ─► DestroySnapshot ─► seen to be gone ─► entry closed
//! ```
//!
//! **Invariants.** A failed call whose end is not known leaves its entry open: the custodian looks again. A checkpoint is
//! destroyed only when its mark or the journal says that it is ours.

mod attempt;
mod describe;
mod release;
mod settle;

use std::time::Duration;

use wsman::cim::{CimInstance, CimValue, Namespace};

pub(super) use self::attempt::Attempt;
use self::attempt::plan_attempt;
use super::HyperV;
use super::decode::text;
use super::jobs::{Ended, is_passing};
use super::names::{
    SETTINGS, SNAPSHOT_SERVICE, SYSTEM_SERVICE, embed, snapshot_settings, system_settings,
    virtualization,
};
use super::node::{Node, Realm, quoted};
use crate::boundary::Checkpoints;
use crate::checkpoint::{
    Changes, Checkpoint, CheckpointRequest, FrozenDisk, MergeState, Released, Settled, StillFacts,
    Warning, WarningCode,
};
use crate::clock::CancelToken;
use crate::consistency::{Consistency, MissedConsistency};
use crate::custody::{Closing, Custody, EntryId, HeldKind, MachineMark, Mark, Moment};
use crate::error::chain_text;
use crate::facts::{Activity, CheckpointFacts, CheckpointKind, VmFacts};
use crate::ids::{CheckpointId, CheckpointRef, TrackingPointRef, TrackingToken, VmId};
use crate::{Error, ErrorKind, Result};

/// `SnapshotType` of a checkpoint for backups, and of any other.
pub(super) const RECOVERY: u64 = 32_768;
pub(super) const FULL: u64 = 2;

/// A checkpoint that the host made for us.
pub(super) struct Taken {
    pub id: CheckpointId,
    pub took: Duration,
    pub warnings: Vec<Warning>,
}

impl Checkpoints for HyperV {
    fn create(
        &self,
        request: &CheckpointRequest,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Checkpoint> {
        let machine = self.ready(request.vm, cancel)?;
        let mut missed: Vec<MissedConsistency> = Vec::new();
        for level in request.policy.attempts() {
            cancel.check("making a checkpoint")?;
            let attempt = match plan_attempt(&machine, level, request.backup_type) {
                Ok(attempt) => attempt,
                Err(reason) => {
                    missed.push(MissedConsistency {
                        wanted: level,
                        reason,
                        code: None,
                    });
                    continue;
                }
            };
            match self.attempt(request, &machine, &attempt, custody, cancel) {
                Ok((taken, still)) => {
                    return self.finish(request, &machine, attempt, taken, still, missed, cancel);
                }
                Err(error) if is_missed(&error) => missed.push(MissedConsistency {
                    wanted: level,
                    reason: chain_text(&error),
                    code: error.code().map(|code| code.0),
                }),
                Err(error) => return Err(error),
            }
        }
        Err(no_level(request.vm, &missed))
    }

    fn open(&self, reference: &CheckpointRef, cancel: &CancelToken) -> Result<Checkpoint> {
        self.reopen(reference, cancel)
    }

    fn changed_ranges(
        &self,
        reference: &CheckpointRef,
        disk: &FrozenDisk,
        since: &TrackingToken,
        cancel: &CancelToken,
    ) -> Result<Changes> {
        self.changes(reference, disk, since, cancel)
    }

    fn settle(
        &self,
        checkpoint: &Checkpoint,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Settled> {
        self.convert(checkpoint, custody, cancel)
    }

    fn release(
        &self,
        reference: &CheckpointRef,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Released> {
        self.destroy(reference, custody, cancel)
    }

    fn drop_tracking(
        &self,
        point: &TrackingPointRef,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Released> {
        self.destroy_point(point, custody, cancel)
    }

    fn keep_tracking(&self, point: &TrackingPointRef, custody: &Custody) -> Result<()> {
        custody.close_made(
            HeldKind::TrackingPoint,
            point.vm,
            point.point.as_str(),
            Closing::Kept,
        )?;
        let mark = MachineMark {
            kind: HeldKind::TrackingPoint,
            mark: custody.mark().clone(),
            id: Some(point.point.to_string()),
        };
        self.unmark_machine(point.vm, &mark, &CancelToken::new())
    }

    fn unmark(&self, vm: VmId, mark: &MachineMark, cancel: &CancelToken) -> Result<()> {
        self.unmark_machine(vm, mark, cancel)
    }

    fn watch_merge(&self, vm: VmId, cancel: &CancelToken) -> Result<MergeState> {
        self.merge_watched(vm, cancel)
    }

    fn checkpoint_size(&self, reference: &CheckpointRef, cancel: &CancelToken) -> Option<u64> {
        self.difference_bytes(reference.vm, cancel)
    }
}

/// Whether another level may be tried after this error.
fn is_missed(error: &Error) -> bool {
    is_definite(error)
        && matches!(
            error.kind(),
            ErrorKind::Failed
                | ErrorKind::State
                | ErrorKind::Invalid
                | ErrorKind::TimedOut
                | ErrorKind::Unsupported
        )
}

/// Whether the host said that nothing was made, as against: nobody knows.
pub(super) fn is_definite(error: &Error) -> bool {
    let code = error.code().map(|code| code.0);
    match error.kind() {
        ErrorKind::State | ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Denied => true,
        ErrorKind::Busy | ErrorKind::NotFound => true,
        ErrorKind::TimedOut => matches!(code, Some(3 | 32_772)),
        // A fault of the provider may come after the work began; a return value or a job's end does not.
        ErrorKind::Failed => code.is_none_or(|code| code < 0x8000_0000),
        _ => false,
    }
}

fn no_level(vm: VmId, missed: &[MissedConsistency]) -> Error {
    let told: Vec<String> = missed
        .iter()
        .map(|it| format!("{}: {}", it.wanted, it.reason))
        .collect();
    let error = Error::new(
        ErrorKind::Consistency,
        format!(
            "no checkpoint of machine {vm} that the policy allows ({})",
            told.join("; ")
        ),
    );
    match missed.iter().find_map(|it| it.code) {
        Some(code) => error.coded(crate::error::HostCode(code)),
        None => error,
    }
}

impl HyperV {
    /// The machine, when nothing is being done to it any more.
    fn ready(&self, vm: VmId, cancel: &CancelToken) -> Result<VmFacts> {
        let what = format!("waiting for machine {vm} to be idle");
        let mut last = String::new();
        let ready = self.poll(self.options.busy_timeout, &what, cancel, || {
            let (activities, _) = self.on_owner(vm, cancel, |node| self.activities_on(node, vm))?;
            if activities.is_empty() {
                return Ok(Some(()));
            }
            let doing: Vec<String> = activities.iter().map(ToString::to_string).collect();
            last = doing.join(", ");
            Ok(None)
        })?;
        if ready.is_none() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("machine {vm} is still busy: {last}"),
            ));
        }
        let (machine, _) = self.on_owner(vm, cancel, |node| self.machine_on(node, vm))?;
        Ok(machine)
    }

    /// Now, by our clock and by a node's.
    pub(super) fn moment(&self, node: &Node) -> Moment {
        Moment {
            ours: self.clock.now(),
            host: super::inventory::clock_of(node),
        }
    }

    /// What is being done to a machine right now, in one question.
    pub(super) fn activities_on(&self, node: &Node, vm: VmId) -> Result<Vec<Activity>> {
        let row = node.find(&node.machine(vm))?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("machine {vm} is not on {}", node.name()),
            )
        })?;
        let status = row.u64s("OperationalStatus").unwrap_or_default();
        Ok(super::decode::activities(&status))
    }

    fn attempt(
        &self,
        request: &CheckpointRequest,
        machine: &VmFacts,
        attempt: &Attempt,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<(Taken, StillFacts)> {
        if attempt.must_save {
            return self.take_saved(request, machine, attempt, custody, cancel);
        }
        let taken = self.take(machine.id, attempt, custody, cancel)?;
        let frozen_at_most_ms = (attempt.reached != Consistency::SavedState)
            .then(|| u64::try_from(taken.took.as_millis()).unwrap_or(u64::MAX));
        Ok((
            taken,
            StillFacts {
                frozen_at_most_ms,
                downtime_ms: None,
            },
        ))
    }

    /// Asks the host for a checkpoint, with the journal before and after.
    pub(super) fn take(
        &self,
        vm: VmId,
        attempt: &Attempt,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Taken> {
        let (node, _) = self.find_owner(vm, cancel)?;
        let before: Vec<String> = self
            .checkpoints_on(&node, vm)?
            .iter()
            .map(|it| it.id.to_string())
            .collect();
        let entry = custody.intend(
            HeldKind::Checkpoint,
            vm,
            node.name(),
            self.moment(&node),
            before.clone(),
        )?;
        let settings = match &attempt.settings {
            Some(settings) => embed(settings, &snapshot_settings())?,
            None => CimValue::Text(String::new()),
        };
        let inputs = [
            ("AffectedSystem", CimValue::from(node.machine(vm))),
            ("SnapshotSettings", settings),
            ("SnapshotType", CimValue::Uint(attempt.snapshot_type)),
        ];
        let service = node.service(SNAPSHOT_SERVICE);
        let ended = self
            .run(&node, &service, "CreateSnapshot", &inputs, cancel)
            .and_then(|ended| {
                let id = self.made_by(&node, &ended, vm, &before, attempt.kind())?;
                Ok((id, ended.took))
            });
        let (id, took) = match ended {
            Ok(made) => made,
            Err(error) => {
                self.after_failed_create(entry, vm, &before, attempt, custody, &error)?;
                return Err(error);
            }
        };
        custody.made(entry, id.as_str())?;
        let mut warnings = Vec::new();
        self.mark_checkpoint(&node, vm, &id, custody.mark(), &mut warnings);
        Ok(Taken { id, took, warnings })
    }

    /// What a failed call left. Where nobody knows, one look is taken: the sole one that was not there is released.
    fn after_failed_create(
        &self,
        entry: EntryId,
        vm: VmId,
        before: &[String],
        attempt: &Attempt,
        custody: &Custody,
        error: &Error,
    ) -> Result<()> {
        if is_definite(error) {
            return custody.close(entry, Closing::NeverMade);
        }
        // Told to stop or not, what we caused is ours to remove.
        let calm = CancelToken::new();
        let Ok((now, _)) = self.on_owner(vm, &calm, |node| self.checkpoints_on(node, vm)) else {
            return Ok(());
        };
        let new: Vec<&CheckpointFacts> = now
            .iter()
            .filter(|it| is_new(it, before, attempt.kind()))
            .collect();
        let [only] = new.as_slice() else {
            return Ok(());
        };
        custody.made(entry, only.id.as_str())?;
        let reference = CheckpointRef {
            vm,
            checkpoint: only.id.clone(),
        };
        // When this fails too, the entry is open with its id: the custodian goes on from there.
        drop(self.destroy(&reference, custody, &calm));
        Ok(())
    }

    /// All checkpoints of a machine on a node.
    pub(super) fn checkpoints_on(&self, node: &Node, vm: VmId) -> Result<Vec<CheckpointFacts>> {
        let condition = format!("VirtualSystemIdentifier = {}", quoted(&vm.to_string()));
        let rows = node.rows(Realm::Virtualization, SETTINGS, Some(&condition))?;
        let namespace = virtualization();
        Ok(checkpoints_of(&rows, vm, &namespace))
    }

    /// Which checkpoint a call made.
    pub(super) fn made_by(
        &self,
        node: &Node,
        ended: &Ended,
        vm: VmId,
        before: &[String],
        kind: CheckpointKind,
    ) -> Result<CheckpointId> {
        if let Ok(Some(path)) = ended.output.opt_reference("ResultingSnapshot")
            && let Some(id) = path.key("InstanceID")
        {
            return CheckpointId::new(id);
        }
        if let Some(job) = &ended.job {
            let affected = affected(node, job, SETTINGS);
            let namespace = virtualization();
            let new: Vec<CheckpointFacts> = checkpoints_of(&affected, vm, &namespace)
                .into_iter()
                .filter(|it| is_new(it, before, kind))
                .collect();
            if let [only] = new.as_slice() {
                return Ok(only.id.clone());
            }
        }
        let calm = CancelToken::new();
        let (now, _) = self.on_owner(vm, &calm, |node| self.checkpoints_on(node, vm))?;
        let new: Vec<&CheckpointFacts> = now.iter().filter(|it| is_new(it, before, kind)).collect();
        match new.as_slice() {
            [only] => Ok(only.id.clone()),
            [] => Err(Error::new(
                ErrorKind::Protocol,
                format!("no new checkpoint of machine {vm} after the host said that it made one"),
            )),
            several => Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "{} new checkpoints of machine {vm}: which one is ours cannot be told",
                    several.len()
                ),
            )),
        }
    }

    /// Gives a checkpoint the job's mark as its name. That it cannot is a warning.
    fn mark_checkpoint(
        &self,
        node: &Node,
        vm: VmId,
        id: &CheckpointId,
        mark: &Mark,
        warnings: &mut Vec<Warning>,
    ) {
        let calm = CancelToken::new();
        let renamed = self
            .rename_on(node, id, &mark.to_string(), &calm)
            .or_else(|error| {
                if is_passing(&error) || error.kind() == ErrorKind::NotFound {
                    let again = self.on_owner(vm, &calm, |node| {
                        self.rename_on(node, id, &mark.to_string(), &calm)
                    });
                    again.map(drop)
                } else {
                    Err(error)
                }
            });
        if let Err(error) = renamed {
            warnings.push(Warning {
                code: WarningCode::Unmarked,
                text: chain_text(&error),
            });
        }
    }

    /// Renames a checkpoint.
    pub(super) fn rename_on(
        &self,
        node: &Node,
        id: &CheckpointId,
        name: &str,
        cancel: &CancelToken,
    ) -> Result<()> {
        let settings = CimInstance::new(SETTINGS)
            .with("InstanceID", id.as_str())
            .with("ElementName", name);
        let inputs = [("SystemSettings", embed(&settings, &system_settings())?)];
        let service = node.service(SYSTEM_SERVICE);
        self.run(node, &service, "ModifySystemSettings", &inputs, cancel)
            .map(drop)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "everything that a checkpoint is told of comes together here"
    )]
    fn finish(
        &self,
        request: &CheckpointRequest,
        machine: &VmFacts,
        attempt: Attempt,
        taken: Taken,
        still: StillFacts,
        missed: Vec<MissedConsistency>,
        cancel: &CancelToken,
    ) -> Result<Checkpoint> {
        let reference = CheckpointRef {
            vm: request.vm,
            checkpoint: taken.id.clone(),
        };
        let mut checkpoint = self.describe(&reference, machine, cancel)?;
        checkpoint.reached = attempt.reached;
        checkpoint.still = still;
        let mut warnings = taken.warnings;
        warnings.append(&mut checkpoint.warnings);
        warnings.extend(attempt.warnings);
        warn_of(request, &checkpoint, machine, &missed, &mut warnings);
        checkpoint.missed = missed;
        checkpoint.warnings = warnings;
        Ok(checkpoint)
    }
}

/// What an operator should know of a checkpoint that was made.
fn warn_of(
    request: &CheckpointRequest,
    checkpoint: &Checkpoint,
    machine: &VmFacts,
    missed: &[MissedConsistency],
    warnings: &mut Vec<Warning>,
) {
    let mut warn = |code: WarningCode, text: String| warnings.push(Warning { code, text });
    let limit_ms = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    if let Some(frozen_ms) = checkpoint.still.frozen_at_most_ms
        && frozen_ms > limit_ms(request.freeze_limit)
    {
        warn(
            WarningCode::LongFreeze,
            format!(
                "the host took {frozen_ms} ms for the checkpoint; the guest may have been frozen longer than {} ms",
                limit_ms(request.freeze_limit)
            ),
        );
    }
    if let Some(downtime_ms) = checkpoint.still.downtime_ms
        && downtime_ms > limit_ms(request.offline_limit)
    {
        warn(
            WarningCode::LongDowntime,
            format!("the machine did not run for {downtime_ms} ms"),
        );
    }
    for miss in missed {
        warn(
            WarningCode::LessConsistent,
            format!("{} was not reached: {}", miss.wanted, miss.reason),
        );
    }
    for skipped in &checkpoint.skipped {
        let slot = skipped
            .slot
            .map_or_else(String::new, |slot| format!("{slot}: "));
        warn(WarningCode::Skipped, format!("{slot}{}", skipped.reason));
    }
    if machine.security.has_tpm == Some(true) || machine.security.is_shielded == Some(true) {
        warn(
            WarningCode::KeyProtector,
            "the machine has a virtual TPM or is shielded: without the host's key protector it does not start elsewhere"
                .to_owned(),
        );
    }
    let foreign = machine
        .recovery_checkpoints()
        .filter(|it| it.mark.is_none())
        .count();
    if foreign > 0 {
        warn(
            WarningCode::Foreign,
            format!("{foreign} recovery checkpoints of others are on the machine"),
        );
    }
}

/// Instances that a job affected, as far as the host still tells.
pub(super) fn affected(node: &Node, job: &wsman::cim::CimPath, class: &str) -> Vec<CimInstance> {
    let wql = format!(
        "ASSOCIATORS OF {{{}}} WHERE AssocClass = Msvm_AffectedJobElement ResultClass = {class}",
        job.to_relative_text()
    );
    // Nothing here is not an error: other ways to find it follow.
    node.query(Realm::Virtualization, &wql).unwrap_or_default()
}

fn checkpoints_of(rows: &[CimInstance], vm: VmId, namespace: &Namespace) -> Vec<CheckpointFacts> {
    rows.iter()
        .filter(|row| {
            text(row, "VirtualSystemIdentifier").and_then(|it| it.parse().ok()) == Some(vm)
        })
        .filter_map(|row| super::inventory::checkpoint(row, namespace))
        .collect()
}

fn is_new(checkpoint: &CheckpointFacts, before: &[String], kind: CheckpointKind) -> bool {
    checkpoint.kind == kind && !before.iter().any(|id| id == checkpoint.id.as_str())
}

/// Fails when a checkpoint is not on a node.
pub(super) fn must_exist(node: &Node, reference: &CheckpointRef) -> Result<()> {
    describe::settings_of(node, reference).map(drop)
}
