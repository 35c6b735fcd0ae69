//! A machine from a description: controllers, drives, disks, adapters, one after the other.

use std::collections::BTreeMap;

use wsman::cim::{CimInstance, CimValue};

use super::super::HyperV;
use super::super::decode::text;
use super::super::names::{
    CONNECTION, RESOURCE, SETTINGS, STORAGE, SYNTHETIC_PORT, SYSTEM_SERVICE, embed,
    sizing_settings, subtype, system_settings,
};
use super::super::node::Node;
use super::adapters::Switches;
use super::{path_text, rows_of};
use crate::clock::CancelToken;
use crate::custody::Custody;
use crate::definition::{Defined, DiskSpec, MachineSpec, NicSpec};
use crate::facts::ControllerKind;
use crate::ids::VmId;
use crate::{Error, ErrorKind, Result};

/// Values of `ResourceType`.
const SCSI_CONTROLLER: u64 = 6;
const NIC: u64 = 10;
const DRIVE: u64 = 17;
const DISK: u64 = 31;
const NIC_CONNECTION: u64 = 33;

impl HyperV {
    pub(super) fn define_on(
        &self,
        node: &Node,
        spec: &MachineSpec,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Defined> {
        let make = || {
            let mut settings = CimInstance::new(SETTINGS)
                .with("ElementName", spec.name.as_str())
                .with(
                    "VirtualSystemSubType",
                    format!("Microsoft:Hyper-V:SubType:{}", spec.generation),
                );
            if let Some(root) = &spec.root {
                settings.set("ConfigurationDataRoot", root.as_str());
            }
            if let Some(notes) = &spec.notes {
                // Only the first of several is kept by hosts.
                settings.set("Notes", vec![notes.clone()]);
            }
            let inputs = [("SystemSettings", embed(&settings, &system_settings())?)];
            let service = node.service(SYSTEM_SERVICE);
            self.run(node, &service, "DefinePlannedSystem", &inputs, cancel)
                .map(|ended| (ended, "ResultingSystem"))
        };
        let shape = |planned: VmId| {
            let mut notes = Vec::new();
            self.size(
                node,
                planned,
                "Msvm_MemorySettingData",
                spec.memory_mib,
                cancel,
            )?;
            self.size(
                node,
                planned,
                "Msvm_ProcessorSettingData",
                spec.processors,
                cancel,
            )?;
            self.add_disks(node, planned, &spec.disks, cancel)?;
            self.add_adapters(node, planned, &spec.nics, &mut notes, cancel)?;
            Ok(notes)
        };
        let unknown = VmId::from_bytes([0; 16]);
        self.through_planned(node, unknown, custody, cancel, &make, &shape)
    }

    fn size(
        &self,
        node: &Node,
        vm: VmId,
        class: &str,
        quantity: u64,
        cancel: &CancelToken,
    ) -> Result<()> {
        let rows = rows_of(node, class, vm)?;
        let id = rows.first().and_then(|row| text(row, "InstanceID"));
        let id = id.ok_or_else(|| {
            Error::new(
                ErrorKind::Protocol,
                format!("planned machine {vm} has no {class}"),
            )
        })?;
        let settings = CimInstance::new(class)
            .with("InstanceID", id)
            .with("VirtualQuantity", quantity);
        self.modify_resource(node, &settings, &sizing_settings(class), cancel)
    }

    fn add_disks(
        &self,
        node: &Node,
        vm: VmId,
        disks: &[DiskSpec],
        cancel: &CancelToken,
    ) -> Result<()> {
        let mut controllers = controllers_of(node, vm)?;
        for disk in disks {
            let slot = disk.slot;
            while slot.controller == ControllerKind::Scsi
                && !controllers.contains_key(&(slot.controller, slot.number))
            {
                let settings = CimInstance::new(RESOURCE)
                    .with("ResourceType", SCSI_CONTROLLER)
                    .with("ResourceSubType", subtype::SCSI);
                let id = self.add_resource(node, vm, &settings, cancel)?;
                let number = controllers
                    .keys()
                    .filter(|(kind, _)| *kind == ControllerKind::Scsi)
                    .count();
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                controllers.insert((ControllerKind::Scsi, number), id);
            }
            let controller = controllers.get(&(slot.controller, slot.number));
            let controller = controller.ok_or_else(|| {
                Error::new(
                    ErrorKind::Protocol,
                    format!("planned machine {vm} has no controller for {slot}"),
                )
            })?;
            let drive = CimInstance::new(RESOURCE)
                .with("ResourceType", DRIVE)
                .with("ResourceSubType", subtype::DISK_DRIVE)
                .with("Parent", path_text(node, RESOURCE, controller))
                .with("AddressOnParent", slot.location.to_string());
            let drive = self.add_resource(node, vm, &drive, cancel)?;
            let medium = CimInstance::new(STORAGE)
                .with("ResourceType", DISK)
                .with("ResourceSubType", subtype::HARD_DISK)
                .with("Parent", path_text(node, RESOURCE, &drive))
                .with("HostResource", vec![disk.path.to_string()]);
            self.add_resource(node, vm, &medium, cancel)?;
        }
        Ok(())
    }

    fn add_adapters(
        &self,
        node: &Node,
        vm: VmId,
        nics: &[NicSpec],
        notes: &mut Vec<String>,
        cancel: &CancelToken,
    ) -> Result<()> {
        if nics.is_empty() {
            return Ok(());
        }
        let switches = Switches::of(node)?;
        for nic in nics {
            let mut port = CimInstance::new(SYNTHETIC_PORT)
                .with("ResourceType", NIC)
                .with("ResourceSubType", subtype::NIC)
                .with("ElementName", nic.name.as_str());
            if let Some(mac) = &nic.mac {
                port.set("Address", mac.as_str());
                port.set("StaticMacAddress", CimValue::Boolean(true));
            }
            let port = self.add_resource(node, vm, &port, cancel)?;
            let Some(switch) = &nic.switch else { continue };
            let Some(path) = switches.path_of(switch) else {
                notes.push(format!(
                    "adapter {:?} is not connected: there is no switch {switch:?}",
                    nic.name
                ));
                continue;
            };
            let connection = CimInstance::new(CONNECTION)
                .with("ResourceType", NIC_CONNECTION)
                .with("ResourceSubType", subtype::CONNECTION)
                .with("Parent", path_text(node, SYNTHETIC_PORT, &port))
                .with("HostResource", vec![path.clone()]);
            self.add_resource(node, vm, &connection, cancel)?;
        }
        Ok(())
    }
}

/// Controllers that a planned machine has from the beginning.
fn controllers_of(node: &Node, vm: VmId) -> Result<BTreeMap<(ControllerKind, u32), String>> {
    let mut controllers = BTreeMap::new();
    let mut scsi_count = 0_u32;
    for row in rows_of(node, RESOURCE, vm)? {
        let Some(id) = text(&row, "InstanceID") else {
            continue;
        };
        match row.text_ref("ResourceSubType") {
            Some(subtype::IDE) => {
                let number = row.opt_u32("Address").ok().flatten().unwrap_or(0);
                controllers.insert((ControllerKind::Ide, number), id);
            }
            Some(subtype::SCSI) => {
                controllers.insert((ControllerKind::Scsi, scsi_count), id);
                scsi_count = scsi_count.saturating_add(1);
            }
            _ => {}
        }
    }
    Ok(controllers)
}
