//! Defining, importing, realizing, changing and destroying systems (`Msvm_VirtualSystemManagementService`).
//!
//! ```text
//!   DefineSystem ───────────────────────────► realized
//!   ImportSystemDefinition ─► planned ─► Modify… ─► ValidatePlannedSystem ─► RealizePlannedSystem ─► realized
//!                                └─ DestroySystem
//! ```
//!
//! **Invariants.** A VM's id is unique on a host, and in a cluster among its nodes. A system is destroyed without its disks:
//! what was in checkpoints is merged into them first.

use std::collections::BTreeMap;

use super::hardware::{Controller, ControllerKind, Drive, IDE_CONTROLLER};
use super::ids::{HostName, SystemKey, VmId};
use super::job::{Affected, JobClass, JobFailure, Started};
use super::vm::{
    Activity, ConfigurationVersion, PowerState, Realm, StartAction, UserCheckpointType,
    VirtualMachine, VmGeneration, VmSettings,
};
use super::work::{JobPlan, Outcome};
use super::{Estate, Hardware, WindowsPath};
use crate::{Error, Result, ReturnCode};

/// A system on a host: `Msvm_ComputerSystem` or `Msvm_PlannedComputerSystem`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SystemTarget {
    /// A VM.
    Realized(VmId),
    /// A planned system.
    Planned(VmId),
}

/// What `DefineSystem` is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemDefinition {
    /// Display name.
    pub name: String,
    /// `VirtualSystemSubType`.
    pub generation: VmGeneration,
    /// Configuration version; the host's own when `None`.
    pub version: Option<ConfigurationVersion>,
    /// `ConfigurationDataRoot`; the host's usual one when `None`.
    pub folder: Option<WindowsPath>,
    /// Notes.
    pub notes: String,
}

/// What `ModifySystemSettings` changes; `None` leaves as is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SystemChange {
    /// Display name.
    pub name: Option<String>,
    /// Notes.
    pub notes: Option<String>,
    /// Kind of user checkpoints.
    pub user_checkpoints: Option<UserCheckpointType>,
    /// What happens when the host starts.
    pub start_action: Option<StartAction>,
}

/// Which id an imported system gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImportId {
    /// The one in the file.
    Keep,
    /// A new one.
    Generate,
}

pub(super) fn refuse<T>(code: ReturnCode, why: impl Into<String>) -> Result<T> {
    Err(Error::returned(code, why))
}

impl Estate {
    /// A system of a host.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn target(&self, host: &HostName, target: SystemTarget) -> Result<&VirtualMachine> {
        match target {
            SystemTarget::Realized(id) => self.vm(host, id),
            SystemTarget::Planned(id) => self.planned(host, id),
        }
    }

    pub(super) fn idle_target(
        &self,
        host: &HostName,
        target: SystemTarget,
    ) -> Result<&VirtualMachine> {
        self.live_host(host)?;
        let vm = self.target(host, target)?;
        self.check_idle(vm)?;
        Ok(vm)
    }

    pub(super) fn system_job(
        &self,
        host: &HostName,
        job_type: u16,
        key: SystemKey,
        id: VmId,
    ) -> JobPlan {
        JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type,
            system: Some(key),
            activity: Some(Activity::Modifying),
            lasts: self.timings.modify,
            affected: vec![Affected::System(id)],
            destination: None,
        }
    }

    fn free_job(&self, host: &HostName, job_type: u16) -> JobPlan {
        JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type,
            system: None,
            activity: None,
            lasts: self.timings.define,
            affected: Vec::new(),
            destination: None,
        }
    }

    /// `DefineSystem` and `DefinePlannedSystem`. Resources are added by [`Self::add_resources`].
    ///
    /// # Errors
    /// `InvalidParameter` without a name; `NotSupported` for a version that the host does not make.
    pub fn define_system(
        &mut self,
        host: &HostName,
        definition: SystemDefinition,
        realm: Realm,
    ) -> Result<Started> {
        let of_host = self.live_host(host)?;
        let newest = of_host.windows.configuration_version();
        if definition.name.is_empty() {
            return refuse(ReturnCode::InvalidParameter, "a system without a name");
        }
        let version = definition.version.unwrap_or(newest);
        if version > newest {
            return refuse(
                ReturnCode::NotSupported,
                format!("configuration version {version}"),
            );
        }
        let folder = definition
            .folder
            .unwrap_or_else(|| of_host.default_configuration_root.clone());
        self.locate(host, &folder)?;
        let plan = self.free_job(host, 1);
        let host = host.clone();
        Ok(self.begin(plan, move |estate| {
            let mut hardware = Hardware::minimal();
            if definition.generation == VmGeneration::One {
                hardware.controllers = [0, 1]
                    .map(|number| Controller {
                        kind: ControllerKind::Ide,
                        device: IDE_CONTROLLER,
                        number,
                        drives: BTreeMap::new(),
                    })
                    .to_vec();
            }
            hardware.security.is_secure_boot = definition.generation == VmGeneration::Two;
            let settings = VmSettings {
                name: definition.name,
                generation: definition.generation,
                version,
                notes: definition.notes,
                configuration_root: folder.clone(),
                checkpoint_root: folder,
                user_checkpoints: UserCheckpointType::ProductionFallback,
                start_action: StartAction::RestartIfRunning,
                bios_serial: estate.bios_serial(),
                hardware,
            };
            let id = VmId(estate.random.uuid());
            let key = estate.insert_system(&host, id, realm, settings)?;
            estate.write_realized(key)?;
            Ok(vec![Affected::System(id)])
        }))
    }

    /// Planned systems have no files of their own yet.
    pub(super) fn write_realized(&mut self, key: SystemKey) -> Result<()> {
        match self.vm_of(key)?.realm {
            Realm::Realized => self.write_configuration(key),
            Realm::Planned => Ok(()),
        }
    }

    /// `ImportSystemDefinition`: a planned system from a configuration file.
    ///
    /// # Errors
    /// `FileNotFound`; `InvalidParameter` when it is no configuration. An id that is taken, and a version that is too new, are
    /// told by the job.
    pub fn import_system(
        &mut self,
        host: &HostName,
        file: &WindowsPath,
        import_id: ImportId,
    ) -> Result<Started> {
        self.live_host(host)?;
        if !self.backing(host, file)?.is_file() {
            return refuse(ReturnCode::FileNotFound, format!("there is no {file}"));
        }
        let plan = self.free_job(host, 61);
        let (host, file) = (host.clone(), file.clone());
        Ok(self.begin(plan, move |estate| {
            estate.do_import(&host, &file, import_id)
        }))
    }

    fn do_import(&mut self, host: &HostName, file: &WindowsPath, import_id: ImportId) -> Outcome {
        let stored = self.read_configuration(host, file)?;
        let newest = self.live_host(host)?.windows.configuration_version();
        if stored.settings.version > newest {
            let text = format!(
                "configuration version {} is newer than this host",
                stored.settings.version
            );
            return Err(JobFailure::new(ReturnCode::NotSupported, text));
        }
        let id = match import_id {
            ImportId::Generate => VmId(self.random.uuid()),
            ImportId::Keep => {
                self.check_free_id(host, stored.id)?;
                stored.id
            }
        };
        let mut settings = stored.settings;
        let folder = file.parent();
        let is_subfolder = ["Virtual Machines", "Snapshots"]
            .iter()
            .any(|name| folder.file_name().eq_ignore_ascii_case(name));
        let root = if is_subfolder {
            folder.parent()
        } else {
            folder
        };
        settings.configuration_root = root.clone();
        settings.checkpoint_root = root;
        if stored.is_checkpoint {
            // A checkpoint is named after its VM and the time.
            if let Some((name, _)) = settings.name.rsplit_once(" - (") {
                settings.name = name.to_owned();
            }
        }
        let memory = match stored.is_saved {
            true => self.read_saved_state(host, file)?,
            false => None,
        };
        let key = self.insert_system(host, id, Realm::Planned, settings)?;
        let vm = self.vm_mut(key)?;
        vm.integration = stored.integration;
        vm.guest_facts = stored.guest_facts;
        vm.guest = stored.guest;
        if let (Some(guest), Some(memory)) = (&mut vm.guest, memory) {
            guest.resume(memory);
            vm.power = PowerState::Saved;
        }
        Ok(vec![Affected::System(id)])
    }

    /// No VM or planned system of the host, nor a VM of its cluster, has the id.
    fn check_free_id(&self, host: &HostName, id: VmId) -> std::result::Result<(), JobFailure> {
        let here = self.host(host)?;
        let in_cluster = self.cluster_of(host).is_some_and(|cluster| {
            let nodes = cluster.nodes.keys();
            nodes
                .filter_map(|node| self.hosts.get(node))
                .any(|node| node.realized.contains_key(&id))
        });
        if here.realized.contains_key(&id) || here.planned.contains_key(&id) || in_cluster {
            let text = format!("the identifier {id} already exists");
            return Err(JobFailure::new(ReturnCode::InvalidParameter, text));
        }
        Ok(())
    }

    /// What stands between a planned system and a VM.
    fn check_planned(&mut self, key: SystemKey) -> std::result::Result<(), JobFailure> {
        let vm = self.vm_of(key)?;
        let host = vm.host.clone();
        let hardware = vm.settings.hardware.clone();
        let switches = &self.host(&host)?.switches;
        for adapter in &hardware.adapters {
            let missing = adapter
                .switch
                .as_ref()
                .filter(|name| !switches.iter().any(|it| it.name == **name));
            if let Some(name) = missing {
                let text = format!("there is no virtual switch {name}");
                return Err(JobFailure::new(ReturnCode::InvalidParameter, text));
            }
        }
        for (_, medium) in hardware.disks() {
            self.adopt(&host, &medium.path)?;
        }
        let known = &self.host(&host)?.disks;
        for (address, drive) in hardware.drives() {
            if let Drive::PassThrough(disk) = drive
                && !known.iter().any(|it| it.device == disk.device)
            {
                let text = format!("the disk at {address} is not on this host");
                return Err(JobFailure::new(ReturnCode::InvalidParameter, text));
            }
        }
        Ok(())
    }

    /// `ValidatePlannedSystem`.
    ///
    /// # Errors
    /// `NotFound`; what is wrong is told by the job.
    pub fn validate_planned(&mut self, host: &HostName, id: VmId) -> Result<Started> {
        let key = self.idle_target(host, SystemTarget::Planned(id))?.key;
        let plan = self.system_job(host, 140, key, id);
        Ok(self.begin(plan, move |estate| {
            estate.check_planned(key).map(|()| Vec::new())
        }))
    }

    /// `RealizePlannedSystem`.
    ///
    /// # Errors
    /// `NotFound`; what is wrong is told by the job, and the system stays planned.
    pub fn realize_planned(&mut self, host: &HostName, id: VmId) -> Result<Started> {
        let key = self.idle_target(host, SystemTarget::Planned(id))?.key;
        let plan = self.system_job(host, 141, key, id);
        Ok(self.begin(plan, move |estate| {
            estate.check_planned(key)?;
            let host = estate.vm_of(key)?.host.clone();
            if estate.vm(&host, id).is_ok() {
                let text = format!("the identifier {id} already exists");
                return Err(JobFailure::new(ReturnCode::InvalidParameter, text));
            }
            if let Some(owner) = estate.hosts.get_mut(&host) {
                owner.planned.remove(&id);
                owner.realized.insert(id, key);
            }
            estate.vm_mut(key)?.realm = Realm::Realized;
            estate.write_configuration(key)?;
            if estate.vm_of(key)?.power == PowerState::Saved {
                estate.write_saved_state(key)?;
            }
            Ok(vec![Affected::System(id)])
        }))
    }

    /// `DestroySystem`: the disks stay.
    ///
    /// # Errors
    /// `InvalidState` unless it is off and nothing merges.
    pub fn destroy_system(&mut self, host: &HostName, target: SystemTarget) -> Result<Started> {
        let vm = self.idle_target(host, target)?;
        let (key, id) = (vm.key, vm.id);
        let is_planned = vm.realm == Realm::Planned;
        if vm.merging.is_some() || (!is_planned && vm.power != PowerState::Off) {
            return refuse(
                ReturnCode::InvalidState,
                "it is not off, or its disks are being merged",
            );
        }
        let plan = self.system_job(host, 3, key, id);
        Ok(self.begin(plan, move |estate| {
            if !is_planned {
                estate.settle_files(key)?;
                estate.remove_configuration(key)?;
            }
            estate.forget_system(key);
            Ok(Vec::new())
        }))
    }

    /// `ModifySystemSettings` of a system. (That of a checkpoint is [`Self::rename_checkpoint`].)
    ///
    /// # Errors
    /// `InvalidState`, `SystemInUse`, `InvalidParameter`.
    pub fn modify_system(
        &mut self,
        host: &HostName,
        target: SystemTarget,
        change: SystemChange,
    ) -> Result<Started> {
        let vm = self.idle_target(host, target)?;
        let (key, id) = (vm.key, vm.id);
        if change.name.as_ref().is_some_and(String::is_empty) {
            return refuse(ReturnCode::InvalidParameter, "a system without a name");
        }
        let plan = self.system_job(host, 2, key, id);
        Ok(self.begin(plan, move |estate| {
            let settings = &mut estate.vm_mut(key)?.settings;
            if let Some(name) = change.name {
                settings.name = name;
            }
            if let Some(notes) = change.notes {
                settings.notes = notes;
            }
            if let Some(kind) = change.user_checkpoints {
                settings.user_checkpoints = kind;
            }
            if let Some(action) = change.start_action {
                settings.start_action = action;
            }
            estate.write_realized(key)?;
            Ok(Vec::new())
        }))
    }

    /// `UpgradeSystemVersion`: to the host's own.
    ///
    /// # Errors
    /// `InvalidState` unless the VM is off.
    pub fn upgrade_version(&mut self, host: &HostName, id: VmId) -> Result<Started> {
        let vm = self.idle_vm(host, id)?;
        let key = vm.key;
        if vm.power != PowerState::Off {
            return refuse(ReturnCode::InvalidState, "it is not off");
        }
        let newest = self.host(host)?.windows.configuration_version();
        let plan = self.system_job(host, 2, key, id);
        Ok(self.begin(plan, move |estate| {
            estate.remove_configuration(key)?;
            estate.vm_mut(key)?.settings.version = newest;
            estate.write_configuration(key)?;
            Ok(Vec::new())
        }))
    }

    /// `AddKvpItems`, `ModifyKvpItems` and, with `None`, `RemoveKvpItems`: what the host keeps about a VM.
    ///
    /// # Errors
    /// `NotFound`; `InvalidParameter` for removing what is not there.
    pub fn set_host_item(
        &mut self,
        host: &HostName,
        id: VmId,
        name: &str,
        value: Option<&str>,
    ) -> Result<Started> {
        self.live_host(host)?;
        let key = self.vm(host, id)?.key;
        let items = &mut self.vm_mut(key)?.host_items;
        let was_there = match value {
            Some(value) => items.insert(name.to_owned(), value.to_owned()).is_some(),
            None => items.remove(name).is_some(),
        };
        if value.is_none() && !was_there {
            return refuse(
                ReturnCode::InvalidParameter,
                format!("there is no item {name}"),
            );
        }
        self.touch();
        Ok(Started::Done(Vec::new()))
    }
}
