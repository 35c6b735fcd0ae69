//! Deleting checkpoints, going back to them, renaming them.
//!
//! ```text
//!   delete ─► the checkpoint is gone at once, its files are released ─► merged beside
//!   apply  ─► a new leaf on the frozen files; the old leaf is released
//! ```
//!
//! **Invariants.** A checkpoint that goes takes no byte with it that anybody else shows. Going back ends tracking.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checkpoint::Checkpoint;
use super::checkpointing::{invalid_state, point_at, stem_of_disk};
use super::hardware::DiskSharing;
use super::ids::{CheckpointId, DriveAddress, HostName, SystemKey};
use super::job::{Affected, JobFailure, Started};
use super::storage::FilePlace;
use super::switch::Switch;
use super::vm::{Activity, PowerState};
use super::work::{Event, JobPlan, Outcome};
use super::{DiskFormat, Estate, WindowsPath};
use crate::{Error, Result, ReturnCode};

impl Estate {
    /// `DestroySnapshot`.
    ///
    /// # Errors
    /// `NotFound`; `InvalidState` while anything goes on, and for recovery checkpoints where the switch says so.
    pub fn destroy_checkpoint(&mut self, host: &HostName, id: CheckpointId) -> Result<Started> {
        self.live_host(host)?;
        let vm = self.vm_of_checkpoint(host, id)?;
        self.check_idle(vm)?;
        let is_recovery = vm.checkpoint(id).is_some_and(|it| !it.kind.is_user());
        if is_recovery && !self.switches.is_kind(Switch::DestroyRecoveryCheckpoint) {
            return invalid_state("a recovery checkpoint is converted, not destroyed");
        }
        self.begin_destroying(host, vec![id])
    }

    /// `DestroySnapshotTree`.
    ///
    /// # Errors
    /// As [`Self::destroy_checkpoint`]; `NotSupported` for recovery checkpoints.
    pub fn destroy_checkpoint_tree(
        &mut self,
        host: &HostName,
        id: CheckpointId,
    ) -> Result<Started> {
        self.live_host(host)?;
        let vm = self.vm_of_checkpoint(host, id)?;
        self.check_idle(vm)?;
        if vm.checkpoint(id).is_some_and(|it| !it.kind.is_user()) {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                "a recovery checkpoint has no tree",
            ));
        }
        let mut tree = vec![id];
        let mut at = 0;
        while let Some(of) = tree.get(at).copied() {
            let children = vm.checkpoints.values().filter(|it| it.parent == Some(of));
            tree.extend(children.filter(|it| it.kind.is_user()).map(|it| it.id));
            at += 1;
        }
        self.begin_destroying(host, tree)
    }

    fn begin_destroying(&mut self, host: &HostName, ids: Vec<CheckpointId>) -> Result<Started> {
        let Some((first, others)) = ids.split_first() else {
            return Err(Error::invalid("no checkpoint to destroy"));
        };
        let vm = self.vm_of_checkpoint(host, *first)?;
        let key = vm.key;
        let lasts = self.timings.destroy_checkpoint;
        let mut plan = JobPlan::of_checkpoint(vm, *first, 72, Activity::DeletingCheckpoint, lasts);
        let others = others.iter().copied().map(Affected::Checkpoint);
        plan.affected.extend(others);
        Ok(self.begin(plan, move |estate| {
            for id in &ids {
                if let Some(gone) = estate.take_checkpoint(key, *id)? {
                    for state in gone.tracked.values() {
                        estate.storage.forget_moment(&state.id);
                    }
                }
            }
            Ok(Vec::new())
        }))
    }

    /// Takes a checkpoint out of its VM; its files may be merged.
    pub(super) fn take_checkpoint(
        &mut self,
        key: SystemKey,
        id: CheckpointId,
    ) -> Result<Option<Checkpoint>> {
        let now = self.now();
        let vm = self.vm_mut(key)?;
        let host = vm.host.clone();
        let Some(gone) = vm.checkpoints.remove(&id) else {
            return Ok(None);
        };
        for other in vm.checkpoints.values_mut() {
            if other.parent == Some(id) {
                other.parent = gone.parent;
            }
        }
        if vm.current_parent == Some(id) {
            vm.current_parent = gone.parent;
        }
        if vm.last_applied == Some(id) {
            vm.last_applied = None;
        }
        vm.configuration_changed = now;
        let files: Vec<FilePlace> = gone
            .settings
            .hardware
            .own_disks()
            .filter_map(|(_, medium)| self.locate(&host, &medium.path).ok())
            .collect();
        // What an auto-recovery file stands on was frozen by the same checkpoint.
        let below: Vec<FilePlace> = files
            .iter()
            .filter_map(|place| self.storage.disk(place)?.parent.clone())
            .filter(|place| self.was_frozen_with(place, &files))
            .collect();
        self.release_files(files.into_iter().chain(below));
        self.remove_checkpoint_configuration(key, id, &gone)?;
        self.timeline
            .schedule_in(Duration::ZERO, Event::LookForMerges(key));
        self.touch();
        Ok(Some(gone))
    }

    fn was_frozen_with(&self, place: &FilePlace, files: &[FilePlace]) -> bool {
        files.iter().any(|file| {
            let is_child = self
                .storage
                .disk(file)
                .is_some_and(|it| it.parent.as_ref() == Some(place));
            is_child && file.path.ends_with("-autorecovery.avhdx")
        })
    }

    /// `ApplySnapshot`: the VM goes back to a checkpoint.
    ///
    /// # Errors
    /// `InvalidState` unless the VM is off or saved; `NotSupported` for recovery checkpoints.
    pub fn apply_checkpoint(&mut self, host: &HostName, id: CheckpointId) -> Result<Started> {
        self.live_host(host)?;
        let vm = self.vm_of_checkpoint(host, id)?;
        self.check_idle(vm)?;
        if !matches!(vm.power, PowerState::Off | PowerState::Saved) {
            return invalid_state("only a VM that is off or saved goes back to a checkpoint");
        }
        if vm.checkpoint(id).is_some_and(|it| !it.kind.is_user()) {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                "a recovery checkpoint is not applied",
            ));
        }
        let key = vm.key;
        let lasts = self.timings.apply;
        let plan = JobPlan::of_checkpoint(vm, id, 71, Activity::ApplyingCheckpoint, lasts);
        Ok(self.begin(plan, move |estate| estate.go_back(key, id)))
    }

    fn go_back(&mut self, key: SystemKey, id: CheckpointId) -> Outcome {
        let vm = self.vm_of(key)?;
        let host = vm.host.clone();
        let Some(checkpoint) = vm.checkpoint(id).cloned() else {
            return Err(JobFailure::new(
                ReturnCode::Failed,
                "the checkpoint is gone",
            ));
        };
        let abandoned: Vec<(DriveAddress, FilePlace, DiskSharing)> = self.disk_places(key)?;
        let name = vm.settings.name.clone();
        let mut settings = checkpoint.settings.clone();
        settings.name = name;
        for (_, place, _) in &abandoned {
            self.storage.lose_tracking(place);
        }
        let mut leaves = BTreeMap::new();
        let (ids, now) = (self.disk_ids.clone(), self.now());
        let frozen: Vec<(DriveAddress, WindowsPath)> = settings
            .hardware
            .own_disks()
            .map(|(address, medium)| (address, medium.path.clone()))
            .collect();
        for (address, path) in frozen {
            let below = self.locate(&host, &path)?;
            self.storage.lose_tracking(&below);
            let guid = CheckpointId(self.random.uuid());
            let format = self.storage.known(&below)?.facts.format;
            let extension = if format == DiskFormat::Vhd {
                "avhd"
            } else {
                "avhdx"
            };
            let leaf = path.with_file_name(&format!("{}_{guid}.{extension}", stem_of_disk(&path)));
            let spot = self.spot(&host, &leaf)?;
            self.storage.create_child(spot, &below, &ids, now)?;
            leaves.insert(address, leaf);
        }
        point_at(&mut settings, &leaves);
        self.drop_saved_state(key)?;
        let vm = self.vm_mut(key)?;
        vm.settings = settings;
        vm.current_parent = Some(id);
        vm.last_applied = Some(id);
        vm.configuration_changed = now;
        if let (Some(guest), Some(memory)) = (&mut vm.guest, checkpoint.memory.clone()) {
            guest.resume(memory);
        } else if let Some(guest) = &mut vm.guest {
            guest.lose_power();
        }
        let after = if checkpoint.has_memory {
            PowerState::Saved
        } else {
            PowerState::Off
        };
        self.set_power(key, after)?;
        if checkpoint.has_memory {
            self.write_saved_state(key)?;
        }
        self.release_files(abandoned.into_iter().map(|(_, place, _)| place));
        self.timeline
            .schedule_in(Duration::ZERO, Event::LookForMerges(key));
        self.write_configuration(key)?;
        Ok(Vec::new())
    }

    /// `ClearSnapshotState`: the memory of a checkpoint is dropped.
    ///
    /// # Errors
    /// `NotFound`, `InvalidState`.
    pub fn clear_checkpoint_state(&mut self, host: &HostName, id: CheckpointId) -> Result<Started> {
        self.live_host(host)?;
        let vm = self.vm_of_checkpoint(host, id)?;
        self.check_idle(vm)?;
        let key = vm.key;
        if let Some(checkpoint) = self.vm_mut(key)?.checkpoints.get_mut(&id) {
            checkpoint.has_memory = false;
            checkpoint.memory = None;
        }
        self.touch();
        Ok(Started::Done(Vec::new()))
    }

    /// Renames a checkpoint (`ModifySystemSettings` with its InstanceID and a new `ElementName`).
    ///
    /// # Errors
    /// `NotFound`.
    pub fn rename_checkpoint(
        &mut self,
        host: &HostName,
        id: CheckpointId,
        name: &str,
    ) -> Result<Started> {
        self.live_host(host)?;
        let key = self.vm_of_checkpoint(host, id)?.key;
        if let Some(checkpoint) = self.vm_mut(key)?.checkpoints.get_mut(&id) {
            name.clone_into(&mut checkpoint.settings.name);
        }
        self.write_checkpoint_configuration(key, id)?;
        self.touch();
        Ok(Started::Done(Vec::new()))
    }
}
