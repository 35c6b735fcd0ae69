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

use super::hardware::{
    Controller, ControllerKind, DiskSharing, Drive, IDE_CONTROLLER, Medium, Memory, PhysicalDisk,
    Security,
};
use super::ids::{DeviceId, DriveAddress, HostName, SwitchName, SystemKey, VmId};
use super::job::{Affected, JobClass, JobFailure, Started};
use super::vm::{
    Activity, ConfigurationVersion, PowerState, Realm, StartAction, UserCheckpointType,
    VirtualMachine, VmGeneration, VmSettings,
};
use super::work::{JobPlan, Outcome};
use super::{Estate, Hardware, WindowsPath};
use crate::{Error, ErrorKind, HResult, Result, ReturnCode};

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

/// A resource to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResourceSpec {
    /// A SCSI controller.
    ScsiController,
    /// A drive without a medium.
    Drive {
        /// The controller's device id.
        controller: DeviceId,
        /// Which of its kind.
        number: u32,
        /// Where; the first free slot when `None`.
        slot: Option<u32>,
        /// What it is.
        kind: DriveSpec,
    },
    /// A virtual disk for a drive.
    Medium {
        /// The drive.
        drive: DriveAddress,
        /// The file.
        path: WindowsPath,
        /// Whether it is shared.
        sharing: DiskSharing,
    },
    /// A synthetic network adapter.
    Adapter {
        /// Display name.
        name: String,
        /// Hardware address; one from the host's pool when `None`.
        mac_address: Option<String>,
    },
    /// A connection of an adapter to a switch.
    Connection {
        /// The adapter.
        adapter: DeviceId,
        /// The switch.
        switch: SwitchName,
    },
}

/// Kinds of drives to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriveSpec {
    /// For virtual disks.
    VirtualDisk,
    /// For optical images.
    Dvd,
    /// A disk of the host.
    PassThrough(DeviceId),
}

/// A change of what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResourceChange {
    /// Another file in a drive.
    Medium {
        /// The drive.
        drive: DriveAddress,
        /// The file.
        path: WindowsPath,
    },
    /// An adapter's connection.
    Connection {
        /// The adapter.
        adapter: DeviceId,
        /// The switch, or nothing.
        switch: Option<SwitchName>,
    },
    /// An adapter's hardware address.
    MacAddress {
        /// The adapter.
        adapter: DeviceId,
        /// Twelve hexadecimal digits.
        mac_address: String,
    },
    /// Memory.
    Memory(Memory),
    /// Virtual processors.
    Processors(u32),
    /// Secure boot, TPM, shielding.
    Security(Security),
    /// An integration service is enabled or disabled.
    Service(ServiceName, ServiceSwitch),
}

/// Integration services by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceName {
    /// Volume shadow copies.
    Vss,
    /// Key-value pairs.
    Kvp,
    /// Shutdown.
    Shutdown,
    /// Heartbeat.
    Heartbeat,
    /// Time.
    TimeSync,
    /// File copy.
    GuestServices,
}

/// `EnabledState` of a service's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceSwitch {
    /// 2.
    Enabled,
    /// 3.
    Disabled,
}

/// A resource to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceRef {
    /// The medium of a drive.
    Medium(DriveAddress),
    /// A drive, whose medium is gone already.
    Drive(DriveAddress),
    /// A SCSI controller, whose drives are gone already.
    Controller(DeviceId),
    /// A network adapter.
    Adapter(DeviceId),
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

fn refuse<T>(code: ReturnCode, why: impl Into<String>) -> Result<T> {
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

    fn idle_target(&self, host: &HostName, target: SystemTarget) -> Result<&VirtualMachine> {
        self.live_host(host)?;
        let vm = self.target(host, target)?;
        self.check_idle(vm)?;
        Ok(vm)
    }

    fn system_job(&self, host: &HostName, job_type: u16, key: SystemKey, id: VmId) -> JobPlan {
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
    fn write_realized(&mut self, key: SystemKey) -> Result<()> {
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

    /// `AddResourceSettings`.
    ///
    /// # Errors
    /// `InvalidState` for what cannot be added while the VM runs.
    pub fn add_resources(
        &mut self,
        host: &HostName,
        target: SystemTarget,
        resources: Vec<ResourceSpec>,
    ) -> Result<Started> {
        let vm = self.idle_target(host, target)?;
        let (key, id) = (vm.key, vm.id);
        let holds = vm.power.holds_disks();
        let is_hot = |spec: &ResourceSpec| match spec {
            ResourceSpec::Drive { controller, .. } => *controller != IDE_CONTROLLER,
            ResourceSpec::Medium { drive, .. } => drive.controller != IDE_CONTROLLER,
            ResourceSpec::Connection { .. } => true,
            ResourceSpec::Adapter { .. } => vm.settings.generation == VmGeneration::Two,
            ResourceSpec::ScsiController => false,
        };
        if vm.power == PowerState::Saved || (holds && !resources.iter().all(is_hot)) {
            return refuse(ReturnCode::InvalidState, "not while it runs or is saved");
        }
        let plan = self.system_job(host, 30, key, id);
        Ok(self.begin(plan, move |estate| {
            let before = estate.vm_of(key)?.settings.clone();
            let mut made = Vec::new();
            for spec in resources {
                match estate.add_resource(key, spec) {
                    Ok(affected) => made.push(affected),
                    Err(error) => {
                        estate.vm_mut(key)?.settings = before;
                        return Err(error.into());
                    }
                }
            }
            estate.settings_changed(key)?;
            Ok(made)
        }))
    }

    /// After a change: disks of a running VM are opened anew, the configuration is written.
    fn settings_changed(&mut self, key: SystemKey) -> std::result::Result<(), JobFailure> {
        if self.vm_of(key)?.session.is_some() {
            self.close_session(key)?;
            self.open_session(key)?;
        }
        self.write_realized(key)?;
        Ok(())
    }

    fn add_resource(&mut self, key: SystemKey, spec: ResourceSpec) -> Result<Affected> {
        let vm = self.vm_of(key)?;
        let (id, host, realm) = (vm.id, vm.host.clone(), vm.realm);
        let device = DeviceId(self.random.uuid());
        match spec {
            ResourceSpec::ScsiController => {
                let hardware = &mut self.vm_mut(key)?.settings.hardware;
                let kind = ControllerKind::Scsi;
                let count = hardware
                    .controllers
                    .iter()
                    .filter(|it| it.kind == kind)
                    .count();
                let number = u32::try_from(count).unwrap_or(u32::MAX);
                if number >= kind.limit() {
                    return refuse(
                        ReturnCode::InvalidParameter,
                        "it has all its SCSI controllers",
                    );
                }
                hardware.controllers.push(Controller {
                    kind,
                    device,
                    number,
                    drives: BTreeMap::new(),
                });
                Ok(Affected::Device(id, device))
            }
            ResourceSpec::Drive {
                controller,
                number,
                slot,
                kind,
            } => {
                let drive = self.new_drive(&host, kind)?;
                let hardware = &mut self.vm_mut(key)?.settings.hardware;
                let address = place_drive(hardware, controller, number, slot, drive)?;
                Ok(Affected::Drive(id, address))
            }
            ResourceSpec::Medium {
                drive,
                path,
                sharing,
            } => {
                if realm == Realm::Realized {
                    self.adopt(&host, &path)?;
                }
                let hardware = &mut self.vm_mut(key)?.settings.hardware;
                match hardware.drive_mut(drive) {
                    Some(Drive::VirtualDisk(medium @ None)) => {
                        *medium = Some(Medium {
                            path,
                            sharing,
                            iops_limit: 0,
                        });
                        Ok(Affected::Drive(id, drive))
                    }
                    Some(Drive::Dvd(image @ None)) => {
                        *image = Some(path);
                        Ok(Affected::Drive(id, drive))
                    }
                    Some(_) => refuse(
                        ReturnCode::InvalidParameter,
                        format!("{drive} holds something"),
                    ),
                    None => refuse(
                        ReturnCode::InvalidParameter,
                        format!("there is no drive {drive}"),
                    ),
                }
            }
            ResourceSpec::Adapter { name, mac_address } => {
                let mut adapter = self.build_adapter(None);
                adapter.name = name;
                adapter.is_mac_static = mac_address.is_some();
                if let Some(mac_address) = mac_address {
                    adapter.mac_address = mac_address;
                }
                let device = adapter.device;
                self.vm_mut(key)?.settings.hardware.adapters.push(adapter);
                Ok(Affected::Device(id, device))
            }
            ResourceSpec::Connection { adapter, switch } => {
                self.connect(key, adapter, Some(switch))?;
                Ok(Affected::Device(id, adapter))
            }
        }
    }

    fn new_drive(&self, host: &HostName, kind: DriveSpec) -> Result<Drive> {
        Ok(match kind {
            DriveSpec::VirtualDisk => Drive::VirtualDisk(None),
            DriveSpec::Dvd => Drive::Dvd(None),
            DriveSpec::PassThrough(device) => {
                let known: Option<&PhysicalDisk> =
                    self.host(host)?.disks.iter().find(|it| it.device == device);
                let Some(disk) = known else {
                    return refuse(ReturnCode::InvalidParameter, "the host has no such disk");
                };
                Drive::PassThrough(disk.clone())
            }
        })
    }

    fn connect(
        &mut self,
        key: SystemKey,
        device: DeviceId,
        switch: Option<SwitchName>,
    ) -> Result<()> {
        let host = self.vm_of(key)?.host.clone();
        let is_known = |name: &SwitchName| {
            self.hosts
                .get(&host)
                .is_some_and(|it| it.switches.iter().any(|it| it.name == *name))
        };
        if switch.as_ref().is_some_and(|name| !is_known(name)) {
            return refuse(ReturnCode::InvalidParameter, "the host has no such switch");
        }
        let adapters = &mut self.vm_mut(key)?.settings.hardware.adapters;
        match adapters.iter_mut().find(|it| it.device == device) {
            Some(adapter) => {
                adapter.switch = switch;
                Ok(())
            }
            None => refuse(ReturnCode::InvalidParameter, "there is no such adapter"),
        }
    }

    /// `ModifyResourceSettings`.
    ///
    /// # Errors
    /// `InvalidState` for what cannot be changed while the VM runs or is saved.
    pub fn modify_resources(
        &mut self,
        host: &HostName,
        target: SystemTarget,
        changes: Vec<ResourceChange>,
    ) -> Result<Started> {
        let vm = self.idle_target(host, target)?;
        let (key, id) = (vm.key, vm.id);
        let is_hot = |change: &ResourceChange| {
            matches!(
                change,
                ResourceChange::Connection { .. } | ResourceChange::Service(..)
            )
        };
        let is_off = vm.power == PowerState::Off || vm.realm == Realm::Planned;
        if !is_off && !changes.iter().all(is_hot) {
            return refuse(ReturnCode::InvalidState, "not while it runs or is saved");
        }
        let plan = self.system_job(host, 31, key, id);
        Ok(self.begin(plan, move |estate| {
            let before = estate.vm_of(key)?.settings.clone();
            for change in changes {
                if let Err(error) = estate.change_resource(key, change) {
                    estate.vm_mut(key)?.settings = before;
                    return Err(error.into());
                }
            }
            estate.settings_changed(key)?;
            Ok(Vec::new())
        }))
    }

    fn change_resource(&mut self, key: SystemKey, change: ResourceChange) -> Result<()> {
        let vm = self.vm_of(key)?;
        let (host, realm) = (vm.host.clone(), vm.realm);
        match change {
            ResourceChange::Medium { drive, path } => {
                if realm == Realm::Realized {
                    self.adopt(&host, &path)?;
                }
                let hardware = &mut self.vm_mut(key)?.settings.hardware;
                match hardware.drive_mut(drive) {
                    Some(Drive::VirtualDisk(Some(medium))) => medium.path = path,
                    Some(Drive::Dvd(image)) => *image = Some(path),
                    _ => {
                        return refuse(
                            ReturnCode::InvalidParameter,
                            format!("no medium at {drive}"),
                        );
                    }
                }
            }
            ResourceChange::Connection { adapter, switch } => self.connect(key, adapter, switch)?,
            ResourceChange::MacAddress {
                adapter,
                mac_address,
            } => {
                let adapters = &mut self.vm_mut(key)?.settings.hardware.adapters;
                let Some(found) = adapters.iter_mut().find(|it| it.device == adapter) else {
                    return refuse(ReturnCode::InvalidParameter, "there is no such adapter");
                };
                found.mac_address = mac_address;
                found.is_mac_static = true;
            }
            ResourceChange::Memory(memory) => self.vm_mut(key)?.settings.hardware.memory = memory,
            ResourceChange::Processors(count) => {
                self.vm_mut(key)?.settings.hardware.processors = count;
            }
            ResourceChange::Security(security) => {
                self.vm_mut(key)?.settings.hardware.security = security;
            }
            ResourceChange::Service(name, switch) => {
                let services = &mut self.vm_mut(key)?.integration;
                let service = match name {
                    ServiceName::Vss => &mut services.vss,
                    ServiceName::Kvp => &mut services.kvp,
                    ServiceName::Shutdown => &mut services.shutdown,
                    ServiceName::Heartbeat => &mut services.heartbeat,
                    ServiceName::TimeSync => &mut services.time,
                    ServiceName::GuestServices => &mut services.guest_services,
                };
                service.is_enabled = switch == ServiceSwitch::Enabled;
            }
        }
        Ok(())
    }

    /// `RemoveResourceSettings`.
    ///
    /// # Errors
    /// `Wmi` (generic failure) for a drive that holds a medium; `InvalidState` for IDE while the VM runs;
    /// `InvalidParameter` for what is not there.
    pub fn remove_resources(
        &mut self,
        host: &HostName,
        target: SystemTarget,
        resources: Vec<ResourceRef>,
    ) -> Result<Started> {
        let vm = self.idle_target(host, target)?;
        let (key, id) = (vm.key, vm.id);
        let runs = vm.power != PowerState::Off && vm.realm == Realm::Realized;
        let mut after = vm.settings.hardware.clone();
        for resource in &resources {
            let is_ide = match resource {
                ResourceRef::Medium(at) | ResourceRef::Drive(at) => at.controller == IDE_CONTROLLER,
                ResourceRef::Controller(_) => true,
                ResourceRef::Adapter(_) => vm.settings.generation == VmGeneration::One,
            };
            if runs && (is_ide || vm.power == PowerState::Saved) {
                return refuse(ReturnCode::InvalidState, "not while it runs or is saved");
            }
            remove_resource(&mut after, *resource)?;
        }
        let plan = self.system_job(host, 32, key, id);
        Ok(self.begin(plan, move |estate| {
            let was_open = estate.vm_of(key)?.session.is_some();
            estate.close_session(key)?;
            estate.vm_mut(key)?.settings.hardware = after;
            if was_open {
                estate.open_session(key)?;
            }
            estate.write_realized(key)?;
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

/// Puts a drive into a slot.
fn place_drive(
    hardware: &mut Hardware,
    controller: DeviceId,
    number: u32,
    slot: Option<u32>,
    drive: Drive,
) -> Result<DriveAddress> {
    let found = hardware
        .controllers
        .iter_mut()
        .find(|it| it.device == controller && it.number == number);
    let Some(found) = found else {
        return refuse(
            ReturnCode::InvalidParameter,
            format!("there is no controller {controller}"),
        );
    };
    let free = |slot: &u32| !found.drives.contains_key(slot);
    let slots = found.kind.slots();
    let chosen = match slot {
        Some(slot) => Some(slot).filter(|slot| *slot < slots).filter(free),
        None => (0..slots).find(free),
    };
    let Some(chosen) = chosen else {
        return refuse(ReturnCode::InvalidParameter, "no such slot, or it is taken");
    };
    found.drives.insert(chosen, drive);
    Ok(found.address(chosen))
}

fn remove_resource(hardware: &mut Hardware, resource: ResourceRef) -> Result<()> {
    let missing = || {
        Error::returned(
            ReturnCode::InvalidParameter,
            format!("{resource:?} is not there"),
        )
    };
    let holds = || {
        Error::new(
            ErrorKind::Wmi(HResult::FAILED),
            format!("{resource:?} holds something"),
        )
    };
    match resource {
        ResourceRef::Medium(at) => match hardware.drive_mut(at).ok_or_else(missing)? {
            Drive::VirtualDisk(medium) => medium.take().map(|_| ()).ok_or_else(missing),
            Drive::Dvd(image) => image.take().map(|_| ()).ok_or_else(missing),
            Drive::PassThrough(_) => Err(missing()),
        },
        ResourceRef::Drive(at) => {
            match hardware.drive(at).ok_or_else(missing)? {
                Drive::VirtualDisk(Some(_)) | Drive::Dvd(Some(_)) => return Err(holds()),
                _ => {}
            }
            for controller in &mut hardware.controllers {
                if controller.device == at.controller && controller.number == at.number {
                    controller.drives.remove(&at.slot);
                }
            }
            Ok(())
        }
        ResourceRef::Controller(device) => {
            let at = hardware
                .controllers
                .iter()
                .position(|it| it.device == device);
            let at = at.ok_or_else(missing)?;
            if hardware
                .controllers
                .get(at)
                .is_some_and(|it| !it.drives.is_empty())
            {
                return Err(holds());
            }
            hardware.controllers.remove(at);
            Ok(())
        }
        ResourceRef::Adapter(device) => {
            let before = hardware.adapters.len();
            hardware.adapters.retain(|it| it.device != device);
            (hardware.adapters.len() < before)
                .then_some(())
                .ok_or_else(missing)
        }
    }
}
