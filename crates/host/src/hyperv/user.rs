//! Checkpoints of operators: made, applied, renamed, exported, deleted with the merge watched to its end.

use wsman::cim::{CimInstance, CimValue};

use super::HyperV;
use super::names::{
    SETTINGS, SNAPSHOT_SERVICE, SYSTEM_SERVICE, embed, export_settings, system_settings,
};
use super::node::Node;
use super::recovery::FULL;
use super::routing::find_with_machine;
use crate::boundary::{Power, UserCheckpoints};
use crate::checkpoint::{
    DeleteScope, Presence, Released, UserCheckpoint, UserCheckpointKind, UserCheckpointRequest,
    Warning, WarningCode,
};
use crate::clock::CancelToken;
use crate::definition::{ExportRequest, ExportStorage};
use crate::error::chain_text;
use crate::facts::{CheckpointFacts, CheckpointKind, PowerState};
use crate::ids::{CheckpointRef, VmId};
use crate::{Error, ErrorKind, Result};

/// Values of `UserSnapshotType`.
const PRODUCTION_ONLY: u64 = 4;
const STANDARD: u64 = 5;
/// `CopySnapshotConfiguration`: that one checkpoint as a machine of its own.
const ONE_CHECKPOINT: u64 = 2;
/// `CopySnapshotConfiguration`: no checkpoint.
const NO_CHECKPOINTS: u64 = 1;

impl UserCheckpoints for HyperV {
    fn create_checkpoint(
        &self,
        request: &UserCheckpointRequest,
        cancel: &CancelToken,
    ) -> Result<UserCheckpoint> {
        let (node, _) = self.find_owner(request.vm, cancel)?;
        let wanted = match request.kind {
            UserCheckpointKind::AsSet => None,
            UserCheckpointKind::Standard => Some(STANDARD),
            UserCheckpointKind::Production => Some(PRODUCTION_ONLY),
        };
        let before = match wanted {
            Some(wanted) => self.set_snapshot_type(&node, request.vm, wanted, cancel)?,
            None => None,
        };
        let made = self.make_one(&node, request, cancel);
        if let Some(before) = before {
            // The machine's own setting comes back whether or not the checkpoint was made, and whoever said stop.
            let restored = self.set_snapshot_type(&node, request.vm, before, &CancelToken::new());
            if let (Ok(_), Err(error)) = (&made, restored) {
                return Err(error.within(format!(
                    "the checkpoint was made; the machine's kind of checkpoints is not {before} again"
                )));
            }
        }
        made
    }

    fn apply_checkpoint(&self, reference: &CheckpointRef, cancel: &CancelToken) -> Result<()> {
        let state = self.power_state(reference.vm, cancel)?;
        if !matches!(state, PowerState::Off | PowerState::Saved) {
            return Err(Error::new(
                ErrorKind::State,
                format!(
                    "machine {} is {state}: stop it before a checkpoint is applied",
                    reference.vm
                ),
            ));
        }
        self.on_owner(reference.vm, cancel, |node| {
            super::recovery::must_exist(node, reference)?;
            let inputs = [(
                "Snapshot",
                CimValue::from(node.checkpoint(&reference.checkpoint)),
            )];
            let service = node.service(SNAPSHOT_SERVICE);
            self.run_done(node, &service, "ApplySnapshot", &inputs, cancel)
                .map(drop)
        })
        .map(drop)
    }

    fn rename_checkpoint(
        &self,
        reference: &CheckpointRef,
        name: &str,
        cancel: &CancelToken,
    ) -> Result<()> {
        if name.trim().is_empty() || name.chars().count() > 100 {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a checkpoint's name has 1 to 100 letters",
            ));
        }
        self.on_owner(reference.vm, cancel, |node| {
            self.must_be_users(node, reference)?;
            self.rename_on(node, &reference.checkpoint, name, cancel)
        })
        .map(drop)
    }

    fn export_checkpoint(
        &self,
        reference: &CheckpointRef,
        request: &ExportRequest,
        cancel: &CancelToken,
    ) -> Result<()> {
        self.on_owner(reference.vm, cancel, |node| {
            super::recovery::must_exist(node, reference)?;
            let path = node.checkpoint(&reference.checkpoint);
            let settings = CimInstance::new("Msvm_VirtualSystemExportSettingData")
                .with("CopySnapshotConfiguration", ONE_CHECKPOINT)
                .with("SnapshotVirtualSystem", path.to_text(None))
                .with("CreateVmExportSubdirectory", true);
            self.export_on(node, reference.vm, request, settings, cancel)
        })
        .map(drop)
    }

    fn delete_checkpoint(
        &self,
        reference: &CheckpointRef,
        scope: DeleteScope,
        cancel: &CancelToken,
    ) -> Result<Released> {
        let mut warnings: Vec<Warning> = Vec::new();
        let (was, _) = self.on_owner(reference.vm, cancel, |node| {
            let path = node.checkpoint(&reference.checkpoint);
            if find_with_machine(node, reference.vm, &path)?.is_none() {
                return Ok(Presence::Absent);
            }
            self.must_be_users(node, reference)?;
            self.resume_merging(node, reference.vm, &mut warnings, cancel);
            let (method, parameter) = match scope {
                DeleteScope::One => ("DestroySnapshot", "AffectedSnapshot"),
                DeleteScope::Tree => ("DestroySnapshotTree", "SnapshotSettingData"),
            };
            let inputs = [(parameter, CimValue::from(path.clone()))];
            let service = node.service(SNAPSHOT_SERVICE);
            self.run(node, &service, method, &inputs, cancel)?;
            if find_with_machine(node, reference.vm, &path)?.is_some() {
                return Err(Error::new(
                    ErrorKind::Failed,
                    format!("checkpoint {} is still there", reference.checkpoint),
                ));
            }
            Ok(Presence::Removed)
        })?;
        let merge = self.merge_watched(reference.vm, cancel)?;
        if merge != crate::checkpoint::MergeState::Done {
            warnings.push(Warning {
                code: WarningCode::MergeUnfinished,
                text: format!("the disks of machine {} are not merged yet", reference.vm),
            });
        }
        Ok(Released {
            was,
            merge,
            warnings,
        })
    }
}

impl HyperV {
    /// Sets the machine's kind of checkpoints; gives the one it had, when that was another one.
    fn set_snapshot_type(
        &self,
        node: &Node,
        vm: VmId,
        wanted: u64,
        cancel: &CancelToken,
    ) -> Result<Option<u64>> {
        let path = node.settings(vm);
        let row = node.find(&path)?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("machine {vm} is not on {}", node.name()),
            )
        })?;
        let now = row.opt_u64("UserSnapshotType").ok().flatten();
        if now == Some(wanted) {
            return Ok(None);
        }
        let settings = CimInstance::new(SETTINGS)
            .with("InstanceID", format!("Microsoft:{vm}"))
            .with("UserSnapshotType", wanted);
        let inputs = [("SystemSettings", embed(&settings, &system_settings())?)];
        let service = node.service(SYSTEM_SERVICE);
        self.run(node, &service, "ModifySystemSettings", &inputs, cancel)?;
        Ok(now)
    }

    fn make_one(
        &self,
        node: &Node,
        request: &UserCheckpointRequest,
        cancel: &CancelToken,
    ) -> Result<UserCheckpoint> {
        let before: Vec<String> = self
            .checkpoints_on(node, request.vm)?
            .iter()
            .map(|it: &CheckpointFacts| it.id.to_string())
            .collect();
        let inputs = [
            ("AffectedSystem", CimValue::from(node.machine(request.vm))),
            ("SnapshotSettings", CimValue::Text(String::new())),
            ("SnapshotType", CimValue::Uint(FULL)),
        ];
        let service = node.service(SNAPSHOT_SERVICE);
        let ended = self.run(node, &service, "CreateSnapshot", &inputs, cancel)?;
        let id = self.made_by(node, &ended, request.vm, &before, CheckpointKind::User)?;
        self.rename_on(node, &id, &request.name, cancel)
            .map_err(|error| {
                error.within(format!("checkpoint {id} was made, and has no name yet"))
            })?;
        Ok(UserCheckpoint {
            reference: CheckpointRef {
                vm: request.vm,
                checkpoint: id,
            },
            name: request.name.clone(),
        })
    }

    /// Refuses what was made for a backup: that has its own ways.
    fn must_be_users(&self, node: &Node, reference: &CheckpointRef) -> Result<()> {
        let all = self.checkpoints_on(node, reference.vm)?;
        let facts = all.iter().find(|it| it.id == reference.checkpoint);
        match facts.map(|it| it.kind) {
            Some(CheckpointKind::User) => Ok(()),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "checkpoint {} of machine {} is not on {}",
                    reference.checkpoint,
                    reference.vm,
                    node.name()
                ),
            )),
            Some(kind) => Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "checkpoint {} is none of an operator ({kind:?})",
                    reference.checkpoint
                ),
            )),
        }
    }

    /// Exports; an export without storage leaves merging suspended, which is mended at once.
    pub(super) fn export_on(
        &self,
        node: &Node,
        vm: VmId,
        request: &ExportRequest,
        settings: CimInstance,
        cancel: &CancelToken,
    ) -> Result<()> {
        let with_storage = request.storage == ExportStorage::Include;
        let settings = settings
            .with("CopyVmStorage", with_storage)
            .with("CopyVmRuntimeInformation", true);
        let inputs = [
            ("ComputerSystem", CimValue::from(node.machine(vm))),
            (
                "ExportDirectory",
                CimValue::Text(request.folder.to_string()),
            ),
            ("ExportSettingData", embed(&settings, &export_settings())?),
        ];
        let service = node.service(SYSTEM_SERVICE);
        let exported = self.run_done(node, &service, "ExportSystemDefinition", &inputs, cancel);
        let mut warnings = Vec::new();
        self.resume_merging(node, vm, &mut warnings, &CancelToken::new());
        match exported {
            Ok(_) => Ok(()),
            Err(error) if warnings.is_empty() => Err(error),
            Err(error) => {
                let texts: Vec<&str> = warnings.iter().map(|it| it.text.as_str()).collect();
                let context = format!("{} ({})", chain_text(&error), texts.join("; "));
                Err(Error::with_source(error.kind(), context, error))
            }
        }
    }

    /// Settings of an export of a whole machine, without its checkpoints.
    pub(super) fn whole_export() -> CimInstance {
        CimInstance::new("Msvm_VirtualSystemExportSettingData")
            .with("CopySnapshotConfiguration", NO_CHECKPOINTS)
            .with("CreateVmExportSubdirectory", true)
    }
}
