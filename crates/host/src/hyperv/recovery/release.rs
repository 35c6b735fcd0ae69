//! Taking away what is ours, and watching disks merge.

use wsman::cim::{CimInstance, CimValue};

use super::super::HyperV;
use super::super::decode::text;
use super::super::inventory::disks_on;
use super::super::jobs::is_passing;
use super::super::names::{
    IMAGE_SERVICE, MERGE_SETTING, REFERENCE_SERVICE, SNAPSHOT_SERVICE, SYSTEM_SERVICE, embed,
    merge_settings,
};
use super::super::node::{Node, Realm};
use super::super::routing::{find_with_machine, must_be_on};
use super::describe::embedded_output;
use crate::checkpoint::{MergeState, Presence, Released, Warning, WarningCode};
use crate::clock::CancelToken;
use crate::custody::{Closing, Custody, HeldKind, MachineMark, Mark};
use crate::error::chain_text;
use crate::facts::{Activity, CheckpointKind, DiskFacts};
use crate::ids::{CheckpointRef, TrackingPointRef, VmId};
use crate::{Error, ErrorKind, Result};

/// How often a host may refuse to destroy a checkpoint before another way is taken.
const REFUSALS: usize = 3;
/// Values of `EnabledState` of merging.
const MERGING_OFF: u64 = 0;
const MERGING_ON: u64 = 1;

impl HyperV {
    pub(super) fn destroy(
        &self,
        reference: &CheckpointRef,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Released> {
        let vm = reference.vm;
        let mut warnings = Vec::new();
        let (row, _) = self.on_owner(vm, cancel, |node| {
            find_with_machine(node, vm, &node.checkpoint(&reference.checkpoint))
        })?;
        let was = match row {
            None => Presence::Absent,
            Some(row) => {
                self.prove_ours(reference, &row, custody)?;
                self.destroy_present(reference, custody, &mut warnings, cancel)?;
                Presence::Removed
            }
        };
        custody.close_made(
            HeldKind::Checkpoint,
            vm,
            reference.checkpoint.as_str(),
            match was {
                Presence::Removed => Closing::Removed,
                Presence::Absent => Closing::Gone,
            },
        )?;
        let merge = self.merge_seen(vm, cancel).unwrap_or(MergeState::Running);
        Ok(Released {
            was,
            merge,
            warnings,
        })
    }

    /// A checkpoint is ours by its mark or by the journal, else it is not touched.
    fn prove_ours(
        &self,
        reference: &CheckpointRef,
        row: &CimInstance,
        custody: &Custody,
    ) -> Result<()> {
        let name = text(row, "ElementName").unwrap_or_default();
        let is_marked = Mark::parse(&name).is_some_and(|mark| {
            mark.job == custody.mark().job
                || (mark.owner.is_some() && mark.owner == custody.mark().owner)
        });
        if is_marked {
            return Ok(());
        }
        let is_entered = custody.log().open_entries()?.iter().any(|entry| {
            entry.intent.kind == HeldKind::Checkpoint
                && entry.intent.vm == reference.vm
                && entry.made.as_deref() == Some(reference.checkpoint.as_str())
        });
        if is_entered {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Refused,
            format!(
                "checkpoint {name:?} ({}) of machine {} is not known to be ours",
                reference.checkpoint, reference.vm
            ),
        ))
    }

    fn destroy_present(
        &self,
        reference: &CheckpointRef,
        custody: &Custody,
        warnings: &mut Vec<Warning>,
        cancel: &CancelToken,
    ) -> Result<()> {
        let what = format!("destroying checkpoint {}", reference.checkpoint);
        let mut last: Option<Error> = None;
        let mut refusals = 0_usize;
        let gone = self.poll(self.options.busy_timeout, &what, cancel, || {
            let step = self.on_owner(reference.vm, cancel, |node| {
                self.resume_merging(node, reference.vm, warnings, cancel);
                let path = node.checkpoint(&reference.checkpoint);
                if find_with_machine(node, reference.vm, &path)?.is_none() {
                    return Ok(());
                }
                let inputs = [("AffectedSnapshot", CimValue::from(path.clone()))];
                let service = node.service(SNAPSHOT_SERVICE);
                self.run(node, &service, "DestroySnapshot", &inputs, cancel)?;
                match find_with_machine(node, reference.vm, &path)? {
                    None => Ok(()),
                    Some(_) => Err(Error::new(
                        ErrorKind::Busy,
                        format!("checkpoint {} is still there", reference.checkpoint),
                    )),
                }
            });
            match step {
                Ok(_) => Ok(Some(())),
                Err(error) if is_refusal(&error) => {
                    refusals = refusals.saturating_add(1);
                    last = Some(error);
                    let is_gone = refusals.is_multiple_of(REFUSALS)
                        && self.convert_away(reference, custody, warnings, cancel)?;
                    Ok(is_gone.then_some(()))
                }
                Err(error) if may_pass(&error) => {
                    last = Some(error);
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        })?;
        match (gone, last) {
            (Some(()), _) => Ok(()),
            (None, Some(error)) => Err(error.within(what)),
            (None, None) => Err(Error::new(ErrorKind::TimedOut, what)),
        }
    }

    /// The other way to be rid of a recovery checkpoint, on a host that does not destroy it: it becomes a reference point, which is
    /// destroyed. `false` when that is no way here, or not now.
    fn convert_away(
        &self,
        reference: &CheckpointRef,
        custody: &Custody,
        warnings: &mut Vec<Warning>,
        cancel: &CancelToken,
    ) -> Result<bool> {
        let vm = reference.vm;
        let (may_convert, _) = self.on_owner(vm, cancel, |node| {
            let all = self.checkpoints_on(node, vm)?;
            let is_recovery = all
                .iter()
                .any(|it| it.id == reference.checkpoint && it.kind == CheckpointKind::Recovery);
            Ok(is_recovery && self.activities_on(node, vm)?.is_empty())
        })?;
        if !may_convert {
            return Ok(false);
        }
        let point = match self.make_point(reference, custody, warnings, cancel) {
            Ok((_, _, point)) => TrackingPointRef { vm, point },
            Err(error) if is_refusal(&error) || is_passing(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        self.destroy_point(&point, custody, cancel)?;
        let (left, _) = self.on_owner(vm, cancel, |node| {
            find_with_machine(node, vm, &node.checkpoint(&reference.checkpoint))
        })?;
        Ok(left.is_none())
    }

    pub(super) fn destroy_point(
        &self,
        point: &TrackingPointRef,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Released> {
        let what = format!("destroying reference point {}", point.point);
        let mut last: Option<Error> = None;
        let was = self.poll(self.options.busy_timeout, &what, cancel, || {
            let step = self.on_owner(point.vm, cancel, |node| {
                let path = node.reference_point(point);
                if find_with_machine(node, point.vm, &path)?.is_none() {
                    return Ok(Presence::Absent);
                }
                let inputs = [("AffectedReferencePoint", CimValue::from(path))];
                let service = node.service(REFERENCE_SERVICE);
                self.run(node, &service, "DestroyReferencePoint", &inputs, cancel)?;
                match find_with_machine(node, point.vm, &node.reference_point(point))? {
                    None => Ok(Presence::Removed),
                    Some(_) => Err(Error::new(
                        ErrorKind::Busy,
                        format!("reference point {} is still there", point.point),
                    )),
                }
            });
            match step {
                Ok((was, _)) => Ok(Some(was)),
                Err(error) if may_pass(&error) => {
                    last = Some(error);
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        })?;
        let Some(was) = was else {
            return Err(match last {
                Some(error) => error.within(what),
                None => Error::new(ErrorKind::TimedOut, what),
            });
        };
        custody.close_made(
            HeldKind::TrackingPoint,
            point.vm,
            point.point.as_str(),
            match was {
                Presence::Removed => Closing::Removed,
                Presence::Absent => Closing::Gone,
            },
        )?;
        let mut warnings = Vec::new();
        let mark = MachineMark {
            kind: HeldKind::TrackingPoint,
            mark: custody.mark().clone(),
            id: Some(point.point.to_string()),
        };
        if let Err(error) = self.unmark_machine(point.vm, &mark, cancel) {
            warnings.push(Warning {
                code: WarningCode::Unmarked,
                text: chain_text(&error),
            });
        }
        Ok(Released {
            was,
            merge: MergeState::Done,
            warnings,
        })
    }

    /// Switches merging on where it is found off. An export without storage leaves it off, and then nothing ever merges.
    pub(in super::super) fn resume_merging(
        &self,
        node: &Node,
        vm: VmId,
        warnings: &mut Vec<Warning>,
        cancel: &CancelToken,
    ) {
        let rows = node.rows(
            Realm::Virtualization,
            MERGE_SETTING,
            Some(&format!("InstanceID LIKE 'Microsoft:{vm}%'")),
        );
        // A host without the class merges by itself.
        let Ok(rows) = rows else { return };
        let Some(row) = rows.first() else { return };
        if row.opt_u64("EnabledState").ok().flatten() != Some(MERGING_OFF) {
            return;
        }
        let Some(id) = text(row, "InstanceID") else {
            return;
        };
        let settings = CimInstance::new(MERGE_SETTING)
            .with("InstanceID", id)
            .with("EnabledState", MERGING_ON);
        let resumed = embed(&settings, &merge_settings()).and_then(|settings| {
            let service = node.service(SYSTEM_SERVICE);
            let inputs = [("SettingData", settings)];
            self.run(node, &service, "ModifyDiskMergeSettings", &inputs, cancel)
        });
        let text = match resumed {
            Ok(_) => "merging of disks was switched off, and is on again".to_owned(),
            Err(error) => format!(
                "merging of disks is switched off, and could not be switched on: {}",
                chain_text(&error)
            ),
        };
        if warnings.iter().all(|it| it.text != text) {
            warnings.push(Warning {
                code: WarningCode::MergeSuspended,
                text,
            });
        }
    }

    /// One look at how far merging is.
    pub(in super::super) fn merge_seen(
        &self,
        vm: VmId,
        cancel: &CancelToken,
    ) -> Result<MergeState> {
        let (state, _) = self.on_owner(vm, cancel, |node| {
            if self.activities_on(node, vm)?.contains(&Activity::Merging) {
                return Ok(MergeState::Running);
            }
            if !self.checkpoints_on(node, vm)?.is_empty() {
                return Ok(MergeState::Done);
            }
            let disks = disks_on(node, vm)?;
            must_be_on(node, vm)?;
            Ok(without_checkpoints(&disks))
        })?;
        Ok(state)
    }

    /// Watches until disks are merged.
    pub(in super::super) fn merge_watched(
        &self,
        vm: VmId,
        cancel: &CancelToken,
    ) -> Result<MergeState> {
        let what = format!("watching the merge of machine {vm}");
        let mut last = MergeState::Running;
        let done = self.poll(self.options.merge_timeout, &what, cancel, || {
            match self.merge_seen(vm, cancel) {
                Ok(MergeState::Done) => Ok(Some(())),
                Ok(state) => {
                    last = state;
                    Ok(None)
                }
                Err(error) if is_passing(&error) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        Ok(match done {
            Some(()) => MergeState::Done,
            None => last,
        })
    }

    /// Bytes of the difference files that a machine writes into now.
    pub(super) fn difference_bytes(&self, vm: VmId, cancel: &CancelToken) -> Option<u64> {
        let (node, _) = self.find_owner(vm, cancel).ok()?;
        let disks = disks_on(&node, vm).ok()?;
        let mut total = 0_u64;
        let mut is_measured = false;
        for path in disks.iter().filter_map(DiskFacts::path) {
            if !is_difference(path.extension().as_deref()) {
                continue;
            }
            let inputs = [("Path", CimValue::Text(path.to_string()))];
            let service = node.service(IMAGE_SERVICE);
            let ended = self
                .run(&node, &service, "GetVirtualHardDiskState", &inputs, cancel)
                .ok()?;
            let state = embedded_output(&ended.output, "State")?;
            total = total.saturating_add(state.opt_u64("FileSize").ok().flatten()?);
            is_measured = true;
        }
        is_measured.then_some(total)
    }
}

/// Whether waiting may help: somebody else is at it.
fn may_pass(error: &Error) -> bool {
    is_passing(error) || error.kind() == ErrorKind::State
}

/// Whether the host says that it will not, as against: not now.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::State | ErrorKind::Unsupported | ErrorKind::Invalid
    )
}

fn is_difference(extension: Option<&str>) -> bool {
    matches!(extension, Some("avhdx" | "avhd"))
}

/// How far merging is on a machine that has no checkpoint left and says nothing: then no difference file may be in use.
fn without_checkpoints(disks: &[DiskFacts]) -> MergeState {
    let is_stacked = disks
        .iter()
        .filter_map(DiskFacts::path)
        .any(|path| is_difference(path.extension().as_deref()));
    if is_stacked {
        MergeState::Stalled
    } else {
        MergeState::Done
    }
}
