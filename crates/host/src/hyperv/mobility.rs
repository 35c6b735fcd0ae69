//! Machines on the move: who is elsewhere, and moving one.
//!
//! In a cluster a machine moves with its group; between hosts, and its storage anywhere, by the migration service. What
//! comes back is where the machine is afterwards, looked up, not believed.

use std::collections::HashMap;

use wsman::cim::{CimInstance, CimValue};

use super::HyperV;
use super::cluster::{ClusterView, begin, name_on};
use super::decode::text;
use super::jobs::is_passing;
use super::names::{
    MIGRATION_SERVICE, STORAGE, embed, migration_settings, resource_settings, subtype,
};
use super::node::{Node, Realm};
use crate::boundary::Mobility;
use crate::clock::CancelToken;
use crate::cluster::{MigrationKind, MigrationRequest, Move};
use crate::facts::Location;
use crate::ids::{NodeName, VmId};
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

/// Values of `MigrationType`.
const MACHINE: u64 = 32_768;
const STORAGE_ONLY: u64 = 32_769;
const MACHINE_AND_STORAGE: u64 = 32_771;
/// `TransportType`: TCP.
const TCP: u64 = 5;

impl Mobility for HyperV {
    fn moves(&self, known: &[(VmId, NodeName)], cancel: &CancelToken) -> Result<Vec<Move>> {
        let mut where_now: HashMap<VmId, NodeName> = HashMap::new();
        let mut silent: Vec<NodeName> = Vec::new();
        for node in self.connected() {
            cancel.check("looking for moves")?;
            match machines_on(&node) {
                Ok(machines) => {
                    for vm in machines {
                        where_now.insert(vm, node.name().clone());
                    }
                }
                Err(_) => silent.push(node.name().clone()),
            }
        }
        let mut moves = Vec::new();
        for (vm, was) in known {
            match where_now.get(vm) {
                Some(now) if now == was => {}
                Some(now) => moves.push(Move {
                    vm: *vm,
                    from: Some(was.clone()),
                    to: Some(now.clone()),
                }),
                // On a node that is silent nobody can tell.
                None if silent.contains(was) => {}
                None => moves.push(Move {
                    vm: *vm,
                    from: Some(was.clone()),
                    to: None,
                }),
            }
        }
        for found in &moves {
            match &found.to {
                Some(node) => self.remember(found.vm, node),
                None => self.forget(found.vm),
            }
        }
        Ok(moves)
    }

    fn migrate(&self, request: &MigrationRequest, cancel: &CancelToken) -> Result<Location> {
        let vm = request.vm;
        let (node, location) = self.find_owner(vm, cancel)?;
        match &request.what {
            MigrationKind::Machine { to } if *to == location.node => return Ok(location),
            MigrationKind::Machine { to } => {
                if !self.move_group(&node, vm, to)? {
                    self.move_by_service(&node, vm, Some(to), MACHINE, None, cancel)?;
                }
                self.await_node(vm, to, cancel)?;
            }
            MigrationKind::Storage { to } => {
                self.move_by_service(&node, vm, None, STORAGE_ONLY, Some(to), cancel)?;
            }
            MigrationKind::MachineAndStorage { to, folder } => {
                self.move_by_service(
                    &node,
                    vm,
                    Some(to),
                    MACHINE_AND_STORAGE,
                    Some(folder),
                    cancel,
                )?;
                self.await_node(vm, to, cancel)?;
            }
        }
        self.find_owner(vm, cancel).map(|(_, location)| location)
    }
}

/// Ids of machines on a node, in one question.
fn machines_on(node: &Node) -> Result<Vec<VmId>> {
    let rows = node.rows(
        Realm::Virtualization,
        super::names::SETTINGS,
        Some("VirtualSystemType = 'Microsoft:Hyper-V:System:Realized'"),
    )?;
    Ok(rows
        .iter()
        .filter_map(|row| row.text_ref("VirtualSystemIdentifier")?.parse().ok())
        .collect())
}

impl HyperV {
    /// Moves a clustered machine with its group; `false` when it is not clustered, or not with that node.
    fn move_group(&self, node: &Node, vm: VmId, to: &NodeName) -> Result<bool> {
        let Some(cluster) = name_on(node)? else {
            return Ok(false);
        };
        let view = ClusterView::fetch(node, &cluster)?;
        if !view.has_node(to) {
            return Ok(false);
        }
        let machine = self.machine_on(node, vm)?;
        let Some(role) = machine.role else {
            return Ok(false);
        };
        let path = node.cluster_path("MSCluster_ResourceGroup", &role.group);
        let inputs = [
            ("NodeName", CimValue::Text(to.to_string())),
            ("TimeOut", CimValue::Uint(0)),
        ];
        begin(node.call(&path, "MoveToNewNode", &inputs))?;
        Ok(true)
    }

    fn move_by_service(
        &self,
        node: &Node,
        vm: VmId,
        to: Option<&NodeName>,
        kind: u64,
        folder: Option<&HostPath>,
        cancel: &CancelToken,
    ) -> Result<()> {
        let settings = CimInstance::new("Msvm_VirtualSystemMigrationSettingData")
            .with("MigrationType", kind)
            .with("TransportType", TCP);
        let mut inputs = vec![("ComputerSystem", CimValue::from(node.machine(vm)))];
        if let Some(to) = to {
            inputs.push(("DestinationHost", CimValue::Text(to.to_string())));
        }
        inputs.push((
            "MigrationSettingData",
            embed(&settings, &migration_settings())?,
        ));
        if let Some(folder) = folder {
            inputs.push(("NewResourceSettingData", new_places(node, vm, folder)?));
        }
        let service = node.service(MIGRATION_SERVICE);
        // Where it went is looked up afterwards, so a job that is gone with the source is no failure.
        self.run(
            node,
            &service,
            "MigrateVirtualSystemToHost",
            &inputs,
            cancel,
        )
        .map(drop)
    }

    fn await_node(&self, vm: VmId, to: &NodeName, cancel: &CancelToken) -> Result<()> {
        let what = format!("waiting for machine {vm} on {to}");
        let target = self.node(to)?;
        let arrived = self.poll(self.options.job_timeout, &what, cancel, || {
            match super::routing::is_realized_on(&target, vm) {
                Ok(true) => Ok(Some(())),
                Ok(false) => Ok(None),
                Err(error) if is_passing(&error) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        self.forget(vm);
        arrived.ok_or_else(|| {
            Error::new(
                ErrorKind::TimedOut,
                format!("machine {vm} did not come to {to}"),
            )
        })
    }
}

/// The machine's disks with their files in another folder.
fn new_places(node: &Node, vm: VmId, folder: &HostPath) -> Result<CimValue> {
    let rows = node.rows(
        Realm::Virtualization,
        STORAGE,
        Some(&format!("InstanceID LIKE 'Microsoft:{vm}%'")),
    )?;
    let schema = resource_settings(STORAGE);
    let mut moved = Vec::new();
    for row in &rows {
        if row.text_ref("ResourceSubType") != Some(subtype::HARD_DISK) {
            continue;
        }
        let (Some(id), Some(path)) = (
            text(row, "InstanceID"),
            row.texts("HostResource")
                .unwrap_or_default()
                .into_iter()
                .next(),
        ) else {
            continue;
        };
        let name = HostPath::new(path)?;
        let place = folder.join(name.file_name())?;
        let mut settings = CimInstance::new(STORAGE)
            .with("InstanceID", id)
            .with("HostResource", vec![place.to_string()]);
        for property in ["ResourceType", "ResourceSubType", "Parent"] {
            if let Some(value) = typed(row, property) {
                settings.set(property, value);
            }
        }
        moved.push(embed(&settings, &schema)?);
    }
    Ok(CimValue::Array(moved))
}

/// A value off the wire, which has no types, as the type that is written.
fn typed(row: &CimInstance, property: &str) -> Option<CimValue> {
    if property == "ResourceType" {
        return row.opt_u64(property).ok().flatten().map(CimValue::Uint);
    }
    text(row, property).map(CimValue::Text)
}
