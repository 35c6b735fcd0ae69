//! Resources of systems: controllers, drives, media, adapters, services (`AddResourceSettings` and its kin).
//!
//! ```text
//!   controller ◄── drive ◄── medium        put in from left to right, taken out from right to left
//! ```
//!
//! **Invariants.** A change is made whole or not at all. While a VM runs only what Windows changes hot is changed.

use std::collections::BTreeMap;

use super::defining::{SystemTarget, refuse};
use super::hardware::{
    Controller, ControllerKind, DiskSharing, Drive, IDE_CONTROLLER, Medium, Memory, PhysicalDisk,
    Security,
};
use super::ids::{DeviceId, DriveAddress, HostName, SwitchName, SystemKey};
use super::job::{Affected, JobFailure, Started};
use super::vm::{PowerState, Realm, VmGeneration};
use super::{Estate, Hardware, WindowsPath};
use crate::{Error, ErrorKind, HResult, Result, ReturnCode};

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

impl Estate {
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
        let (id, host) = (vm.id, vm.host.clone());
        let device = DeviceId(self.random.uuid());
        match spec {
            ResourceSpec::ScsiController => self.add_controller(key, device),
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
                self.put_medium(key, drive, path, sharing)?;
                Ok(Affected::Drive(id, drive))
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

    fn add_controller(&mut self, key: SystemKey, device: DeviceId) -> Result<Affected> {
        let vm = self.vm_mut(key)?;
        let kind = ControllerKind::Scsi;
        let controllers = &mut vm.settings.hardware.controllers;
        let count = controllers.iter().filter(|it| it.kind == kind).count();
        let number = u32::try_from(count).unwrap_or(u32::MAX);
        if number >= kind.limit() {
            return refuse(
                ReturnCode::InvalidParameter,
                "it has all its SCSI controllers",
            );
        }
        controllers.push(Controller {
            kind,
            device,
            number,
            drives: BTreeMap::new(),
        });
        Ok(Affected::Device(vm.id, device))
    }

    fn put_medium(
        &mut self,
        key: SystemKey,
        drive: DriveAddress,
        path: WindowsPath,
        sharing: DiskSharing,
    ) -> Result<()> {
        let vm = self.vm_of(key)?;
        if vm.realm == Realm::Realized {
            let host = vm.host.clone();
            self.adopt(&host, &path)?;
        }
        match self.vm_mut(key)?.settings.hardware.drive_mut(drive) {
            Some(Drive::VirtualDisk(medium @ None)) => {
                *medium = Some(Medium {
                    path,
                    sharing,
                    iops_limit: 0,
                });
                Ok(())
            }
            Some(Drive::Dvd(image @ None)) => {
                *image = Some(path);
                Ok(())
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
