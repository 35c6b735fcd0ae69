//! `ExportSystemDefinition`: a copy of a VM, or of one of its checkpoints, in a folder.
//!
//! ```text
//!   DIRECTORY[\NAME]\Virtual Machines\ID.vmcx (.vmrs, .vmgs)      Virtual Hard Disks\…  the chain, file by file
//! ```
//!
//! **Invariants.** What is exported is complete when the job completes. An export without storage leaves merging of the VM
//! suspended until it is enabled or the host restarts.

use std::collections::BTreeMap;

use super::checkpoint::Checkpoint;
use super::ids::{CheckpointId, HostName, SystemKey, VmId};
use super::job::{Affected, JobClass, Started};
use super::storage::FilePlace;
use super::switch::Switch;
use super::vm::{Activity, MergeState};
use super::work::{JobPlan, Outcome};
use super::{DriveAddress, Estate, WindowsPath};
use crate::{Error, Result, ReturnCode};

/// Whether disks are copied (`CopyVmStorage`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExportStorage {
    /// They are.
    Copy,
    /// Configuration alone.
    LeaveOut,
}

/// Whether a folder of the VM's name is made (`CreateVmExportSubdirectory`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExportFolder {
    /// It is.
    Named,
    /// Files go to the directory itself.
    AsGiven,
}

/// What is exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRequest {
    /// `ExportDirectory`.
    pub directory: WindowsPath,
    /// The checkpoint (`CopySnapshotConfiguration` 3: one, for backup, keeping the VM's id); the VM itself when `None`.
    pub checkpoint: Option<CheckpointId>,
    /// Disks.
    pub storage: ExportStorage,
    /// Folder.
    pub folder: ExportFolder,
}

impl Estate {
    /// `ExportSystemDefinition`.
    ///
    /// # Errors
    /// `InvalidState`, `SystemInUse`; `NotSupported` for the disks of a running VM itself; `AccessDenied` for shares where the
    /// switch says so; `FileNotFound`.
    pub fn export_system(
        &mut self,
        host: &HostName,
        id: VmId,
        request: ExportRequest,
    ) -> Result<Started> {
        let vm = self.idle_vm(host, id)?;
        let key = vm.key;
        let is_live = request.checkpoint.is_none() && vm.power.holds_disks();
        if is_live && request.storage == ExportStorage::Copy {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                "an export of a running VM with its disks is not modelled",
            ));
        }
        if request
            .checkpoint
            .is_some_and(|id| vm.checkpoint(id).is_none())
        {
            return Err(Error::not_found("there is no such checkpoint"));
        }
        if request.directory.is_share() && !self.switches.is_kind(Switch::ComputerAccountForShares)
        {
            return Err(Error::returned(
                ReturnCode::AccessDenied,
                "the caller has no credentials for the share",
            ));
        }
        self.locate(host, &request.directory)?;
        let bytes: u64 = match request.storage {
            ExportStorage::LeaveOut => 0,
            ExportStorage::Copy => self
                .named_files(vm)
                .iter()
                .filter_map(|place| self.storage.disk(place))
                .map(super::DiskFile::file_bytes)
                .sum(),
        };
        let plan = JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type: 62,
            system: Some(key),
            activity: Some(Activity::Exporting),
            lasts: self.moving(self.timings.export, bytes),
            affected: vec![Affected::System(id)],
            destination: None,
        };
        Ok(self.begin(plan, move |estate| estate.export(key, &request)))
    }

    fn export(&mut self, key: SystemKey, request: &ExportRequest) -> Outcome {
        let vm = self.vm_of(key)?;
        let (host, id, name) = (vm.host.clone(), vm.id, vm.settings.name.clone());
        let at: Option<Checkpoint> = request.checkpoint.and_then(|id| vm.checkpoint(id)).cloned();
        let settings = at.as_ref().map_or(&vm.settings, |it| &it.settings).clone();
        let root = match request.folder {
            ExportFolder::Named => request.directory.join(&name),
            ExportFolder::AsGiven => request.directory.clone(),
        };
        let mut copies = BTreeMap::new();
        if request.storage == ExportStorage::Copy {
            for (address, medium) in settings.hardware.own_disks() {
                let path =
                    self.copy_chain(&host, &medium.path, &root.join("Virtual Hard Disks"))?;
                copies.insert(address, path);
            }
        } else {
            self.vm_mut(key)?.merge_state = MergeState::Suspended;
        }
        let bytes = self.encode_exported(key, request.checkpoint, &copies)?;
        let extension = settings.configuration_extension();
        let folder = root.join("Virtual Machines");
        let file = folder.join(&format!("{id}.{extension}"));
        self.write_file(&host, &file, &bytes)?;
        let others: Vec<WindowsPath> = match request.checkpoint {
            Some(checkpoint) => self.checkpoint_files(&host, checkpoint)?,
            None => {
                let own = self.vm_of(key)?.configuration_file();
                ["vmrs", "vsv", "vmgs"]
                    .iter()
                    .map(|extension| own.with_file_name(&format!("{}.{extension}", own.stem())))
                    .collect()
            }
        };
        for source in others
            .iter()
            .filter(|it| matches!(it.extension().as_str(), "vmrs" | "vsv" | "vmgs"))
        {
            let from = self.backing(&host, source)?;
            if from.is_file() {
                let bytes = std::fs::read(&from)
                    .map_err(|error| Error::io(format!("reading {source}"), error))?;
                let target = folder.join(&format!("{id}.{}", source.extension()));
                self.write_file(&host, &target, &bytes)?;
            }
        }
        Ok(Vec::new())
    }

    /// The configuration with its media pointing at the copies.
    fn encode_exported(
        &mut self,
        key: SystemKey,
        checkpoint: Option<CheckpointId>,
        copies: &BTreeMap<DriveAddress, WindowsPath>,
    ) -> Result<Vec<u8>> {
        let vm = self.vm_mut(key)?;
        let settings = match checkpoint.and_then(|id| vm.checkpoints.get_mut(&id)) {
            Some(checkpoint) => &mut checkpoint.settings,
            None => &mut vm.settings,
        };
        let before = settings.clone();
        super::checkpointing::point_at(settings, copies);
        let bytes = self.encode_configuration(key, checkpoint);
        let vm = self.vm_mut(key)?;
        match checkpoint.and_then(|id| vm.checkpoints.get_mut(&id)) {
            Some(checkpoint) => checkpoint.settings = before,
            None => vm.settings = before,
        }
        bytes
    }

    /// Copies a file and all its parents into a folder; returns where the file went.
    fn copy_chain(
        &mut self,
        host: &HostName,
        path: &WindowsPath,
        folder: &WindowsPath,
    ) -> Result<WindowsPath> {
        let (ids, now) = (self.disk_ids.clone(), self.now());
        let mut at: Option<FilePlace> = Some(self.adopt(host, path)?);
        while let Some(place) = at {
            self.storage.materialize(&place, &ids, now)?;
            let disk = self.storage.known(&place)?.clone();
            let target = folder.join(disk.path.file_name());
            let to = self.backing(host, &target)?;
            if let Some(folder) = to.parent() {
                std::fs::create_dir_all(folder)
                    .map_err(|error| Error::io(format!("making the folder of {target}"), error))?;
            }
            std::fs::copy(&disk.backing, &to)
                .map_err(|error| Error::io(format!("copying to {target}"), error))?;
            at = disk.parent;
        }
        Ok(folder.join(path.file_name()))
    }
}
