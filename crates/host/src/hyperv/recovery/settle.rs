//! From a checkpoint that was read to a reference point, and the tokens that belong to the version.

use std::sync::Arc;
use std::time::Duration;

use wsman::cim::{CimInstance, CimValue};

use super::super::HyperV;
use super::super::decode::{id_key, text};
use super::super::inventory::tail_of;
use super::super::jobs::Ended;
use super::super::names::{REFERENCE_POINT, SNAPSHOT_SERVICE};
use super::super::node::{Node, Realm, quoted};
use super::super::routing::find_with_machine;
use super::describe::settings_of;
use super::{affected, is_definite};
use crate::checkpoint::{Checkpoint, Settled, Warning, WarningCode};
use crate::clock::CancelToken;
use crate::custody::{Closing, Custody, HeldKind, MachineMark};
use crate::facts::{CheckpointKind, HostGeneration};
use crate::ids::{
    CheckpointRef, DeviceId, TrackingPointId, TrackingPointRef, TrackingScheme, TrackingToken, VmId,
};
use crate::{Error, ErrorKind, Result};

/// How long a converted checkpoint may take to go before its entry is left to the custodian.
const GOING: Duration = Duration::from_secs(60);

impl HyperV {
    /// Converts, where the host can track; releases otherwise.
    pub(super) fn convert(
        &self,
        checkpoint: &Checkpoint,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Settled> {
        let reference = &checkpoint.reference;
        let vm = reference.vm;
        let (machine, location) = self.on_owner(vm, cancel, |node| self.machine_on(node, vm))?;
        let facts = machine
            .checkpoints
            .iter()
            .find(|it| it.id == reference.checkpoint)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("checkpoint {} is gone", reference.checkpoint),
                )
            })?;
        let can_track = facts.kind == CheckpointKind::Recovery
            && machine.host_generation != Some(HostGeneration::Server2012R2)
            && machine.version.is_none_or(|version| version.major >= 8);
        if !can_track {
            let released = self.destroy(reference, custody, cancel)?;
            return Ok(Settled {
                point: None,
                tokens: Vec::new(),
                node: location.node,
                warnings: released.warnings,
            });
        }
        self.convert_tracked(checkpoint, custody, cancel)
    }

    fn convert_tracked(
        &self,
        checkpoint: &Checkpoint,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Settled> {
        let reference = &checkpoint.reference;
        let vm = reference.vm;
        let mut warnings = Vec::new();
        let (node, row, id) = self.make_point(reference, custody, &mut warnings, cancel)?;
        let mark = MachineMark {
            kind: HeldKind::TrackingPoint,
            mark: custody.mark().clone(),
            id: Some(id.to_string()),
        };
        self.mark_machine(&node, vm, &mark, &mut warnings);
        self.close_converted(reference, custody)?;
        let tokens = tokens_of(&row, checkpoint, &mut warnings);
        Ok(Settled {
            point: Some(TrackingPointRef { vm, point: id }),
            tokens,
            node: node.name().clone(),
            warnings,
        })
    }

    /// Asks the host to turn a checkpoint into a point, with the journal before and after.
    pub(super) fn make_point(
        &self,
        reference: &CheckpointRef,
        custody: &Custody,
        warnings: &mut Vec<Warning>,
        cancel: &CancelToken,
    ) -> Result<(Arc<Node>, CimInstance, TrackingPointId)> {
        let vm = reference.vm;
        let (node, _) = self.find_owner(vm, cancel)?;
        settings_of(&node, reference)?;
        // Converting lets the host merge: with merging switched off, the difference files would stay for good.
        self.resume_merging(&node, vm, warnings, cancel);
        let before: Vec<String> = points_on(&node, vm)?
            .iter()
            .filter_map(|row| text(row, "InstanceID"))
            .collect();
        let entry = custody.intend(
            HeldKind::TrackingPoint,
            vm,
            node.name(),
            self.moment(&node),
            before.clone(),
        )?;
        let inputs = [
            (
                "AffectedSnapshot",
                CimValue::from(node.checkpoint(&reference.checkpoint)),
            ),
            ("ReferencePointSettings", CimValue::Text(String::new())),
        ];
        let service = node.service(SNAPSHOT_SERVICE);
        let ended = self
            .run(&node, &service, "ConvertToReferencePoint", &inputs, cancel)
            .and_then(|ended| self.point_made_by(&node, &ended, vm, &before));
        let row = match ended {
            Ok(row) => row,
            Err(error) => {
                if is_definite(&error) {
                    custody.close(entry, Closing::NeverMade)?;
                }
                return Err(error);
            }
        };
        let id = TrackingPointId::new(text(&row, "InstanceID").unwrap_or_default())?;
        custody.made(entry, id.as_str())?;
        Ok((node, row, id))
    }

    /// The checkpoint goes with the conversion: its entry is closed when it is seen to be gone.
    fn close_converted(&self, reference: &CheckpointRef, custody: &Custody) -> Result<()> {
        let calm = CancelToken::new();
        let gone = self.poll(GOING, "waiting for a checkpoint to go", &calm, || {
            let (row, _) = self.on_owner(reference.vm, &calm, |node| {
                let path = node.checkpoint(&reference.checkpoint);
                find_with_machine(node, reference.vm, &path)
            })?;
            Ok(row.is_none().then_some(()))
        });
        match gone {
            Ok(Some(())) => custody.close_made(
                HeldKind::Checkpoint,
                reference.vm,
                reference.checkpoint.as_str(),
                Closing::Removed,
            ),
            // Not seen to be gone: the entry stays open, and the custodian looks again.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn point_made_by(
        &self,
        node: &Node,
        ended: &Ended,
        vm: VmId,
        before: &[String],
    ) -> Result<CimInstance> {
        if let Ok(Some(path)) = ended.output.opt_reference("ResultingReferencePoint")
            && let Some(row) = node.find(&path)?
        {
            return Ok(row);
        }
        let is_new = |row: &CimInstance| {
            text(row, "VirtualSystemIdentifier").and_then(|it| it.parse().ok()) == Some(vm)
                && text(row, "InstanceID").is_some_and(|id| !before.contains(&id))
        };
        if let Some(job) = &ended.job {
            let mut new: Vec<CimInstance> = affected(node, job, REFERENCE_POINT)
                .into_iter()
                .filter(is_new)
                .collect();
            if new.len() == 1
                && let Some(row) = new.pop()
            {
                return Ok(row);
            }
        }
        let calm = CancelToken::new();
        let (rows, _) = self.on_owner(vm, &calm, |node| points_on(node, vm))?;
        let mut new: Vec<CimInstance> = rows.into_iter().filter(is_new).collect();
        match (new.pop(), new.len()) {
            (Some(row), 0) => Ok(row),
            (None, _) => Err(Error::new(
                ErrorKind::Protocol,
                format!(
                    "no new reference point of machine {vm} after the host said that it made one"
                ),
            )),
            (Some(_), others) => Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "{} new reference points of machine {vm}: which one is ours cannot be told",
                    others.saturating_add(1)
                ),
            )),
        }
    }
}

/// Reference points of a machine on a node.
pub(super) fn points_on(node: &Node, vm: VmId) -> Result<Vec<CimInstance>> {
    let condition = format!("VirtualSystemIdentifier = {}", quoted(&vm.to_string()));
    match node.rows(Realm::Virtualization, REFERENCE_POINT, Some(&condition)) {
        Ok(rows) => Ok(rows),
        // A generation that has none.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Disk by disk its token. Lists of different length pair with nothing: then every disk is read whole next time.
fn tokens_of(
    row: &CimInstance,
    checkpoint: &Checkpoint,
    warnings: &mut Vec<Warning>,
) -> Vec<(DeviceId, TrackingToken)> {
    let disks = row.texts("VirtualDiskIdentifiers").unwrap_or_default();
    let values = row
        .texts("ResilientChangeTrackingIdentifiers")
        .unwrap_or_default();
    if disks.len() != values.len() {
        warnings.push(Warning {
            code: WarningCode::Skipped,
            text: format!(
                "the reference point names {} disks and {} points of tracking: disks are read whole next time",
                disks.len(),
                values.len()
            ),
        });
        return Vec::new();
    }
    let tail = |device: &str| tail_of(device).map_or_else(|| id_key(device), |(_, tail)| tail);
    let mut tokens = Vec::new();
    for (disk, value) in disks.iter().zip(values) {
        let wanted = tail(disk);
        let frozen = checkpoint
            .disks
            .iter()
            .find(|it| tail(it.device.as_str()) == wanted);
        let Some(frozen) = frozen else { continue };
        let (Some(size_bytes), false) = (frozen.size_bytes, value.is_empty()) else {
            continue;
        };
        tokens.push((
            frozen.device.clone(),
            TrackingToken {
                scheme: TrackingScheme::Rct,
                value,
                disk: frozen.identity,
                size_bytes,
            },
        ));
    }
    tokens
}
