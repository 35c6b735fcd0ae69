//! Machines out of rows: one pass to index each list, one to put each machine together.

use std::collections::HashMap;

use wsman::cim::{CimInstance, Namespace};

use super::super::cluster::ClusterView;
use super::super::decode::{
    activities, checkpoint_kind, health, id_key, id_of_path_text, owner_of_id, power_state,
    replication, service_state, text, time,
};
use super::super::names::{kind, virtualization};
use super::disks::Disks;
use super::fetch::Rows;
use super::guest;
use crate::custody::Mark;
use crate::facts::{
    CheckpointFacts, ConfigurationVersion, HostFacts, IntegrationFacts, NicFacts, SecurityFacts,
    SizingFacts, TrackingPointFacts, VmFacts, VmFiles,
};
use crate::ids::{CheckpointId, DeviceId, TrackingPointId, VmId};
use crate::path::HostPath;

type ByVm<'a> = HashMap<VmId, Vec<&'a CimInstance>>;

/// Everything of one node by machine.
struct Index<'a> {
    realized: HashMap<VmId, &'a CimInstance>,
    planned: HashMap<VmId, ()>,
    checkpoints: ByVm<'a>,
    reference_points: ByVm<'a>,
    ports: HashMap<VmId, Vec<(&'a CimInstance, bool)>>,
    connections: HashMap<String, &'a CimInstance>,
    switches: HashMap<String, String>,
    memory: HashMap<VmId, &'a CimInstance>,
    processors: HashMap<VmId, &'a CimInstance>,
    security: HashMap<VmId, &'a CimInstance>,
    backup: HashMap<VmId, &'a CimInstance>,
    exchange: HashMap<VmId, &'a CimInstance>,
    exchange_settings: HashMap<VmId, &'a CimInstance>,
    shutdown: HashMap<VmId, &'a CimInstance>,
    heartbeat: HashMap<VmId, &'a CimInstance>,
    assigned: Option<HashMap<VmId, &'a CimInstance>>,
}

/// What is known of the node's cluster.
#[derive(Clone, Copy)]
pub(super) enum Sight<'a> {
    /// It is in none.
    None,
    /// It was asked, and did not answer.
    Silent,
    /// As it tells itself.
    View(&'a ClusterView),
}

/// The machines of a node. `odd` is told what could not be understood; nothing of it hides another machine.
pub(super) fn machines(
    host: &HostFacts,
    rows: &Rows,
    cluster: Sight<'_>,
    odd: &mut dyn FnMut(String),
) -> Vec<VmFacts> {
    let namespace = virtualization();
    let index = Index::of(rows, &namespace);
    let mut disks = Disks::of(rows, &namespace);
    let mut machines = Vec::with_capacity(rows.systems.len());
    for row in &rows.systems {
        // The host itself stands among its machines, under its own name, which is no GUID.
        let Some(id) = row
            .text_ref("Name")
            .and_then(|name| name.parse::<VmId>().ok())
        else {
            continue;
        };
        let Some(settings) = index.realized.get(&id) else {
            if !index.planned.contains_key(&id) {
                odd(format!("machine {id} has no settings"));
            }
            continue;
        };
        let mut machine = machine(host, &index, id, row, settings, &namespace);
        machine.disks = disks.take(id);
        match cluster {
            Sight::View(view) => machine.role = view.role_of(id, &machine.name, &host.node),
            Sight::None => {}
            Sight::Silent => machine.is_role_known = false,
        }
        machines.push(machine);
    }
    machines
}

impl<'a> Index<'a> {
    fn of(rows: &'a Rows, namespace: &Namespace) -> Self {
        let mut realized = HashMap::new();
        let mut planned = HashMap::new();
        let mut checkpoints: ByVm<'a> = HashMap::new();
        for row in &rows.settings {
            let system = row.text_ref("VirtualSystemIdentifier");
            let Some(vm) = system.and_then(|id| id.parse::<VmId>().ok()) else {
                continue;
            };
            let system_type = row.text_ref("VirtualSystemType").unwrap_or_default();
            if system_type.eq_ignore_ascii_case(kind::REALIZED) {
                realized.insert(vm, row);
            } else if checkpoint_kind(system_type).is_some() {
                checkpoints.entry(vm).or_default().push(row);
            } else {
                planned.insert(vm, ());
            }
        }
        let mut reference_points: ByVm<'a> = HashMap::new();
        for row in &rows.reference_points {
            let system = row.text_ref("VirtualSystemIdentifier");
            if let Some(vm) = system.and_then(|id| id.parse::<VmId>().ok()) {
                reference_points.entry(vm).or_default().push(row);
            }
        }
        let mut ports: HashMap<VmId, Vec<(&CimInstance, bool)>> = HashMap::new();
        let all_ports = rows
            .synthetic_ports
            .iter()
            .map(|row| (row, false))
            .chain(rows.emulated_ports.iter().map(|row| (row, true)));
        for (row, is_legacy) in all_ports {
            if let Some((vm, _)) = row.text_ref("InstanceID").and_then(owner_of_id) {
                ports.entry(vm).or_default().push((row, is_legacy));
            }
        }
        Self {
            realized,
            planned,
            checkpoints,
            reference_points,
            ports,
            connections: by_parent(&rows.connections, namespace),
            switches: switch_names(&rows.switches),
            memory: by_prefix(&rows.memory),
            processors: by_prefix(&rows.processors),
            security: by_prefix(&rows.security),
            backup: by_device(&rows.backup),
            exchange: by_device(&rows.exchange),
            exchange_settings: by_prefix(&rows.exchange_settings),
            shutdown: by_device(&rows.shutdown),
            heartbeat: by_device(&rows.heartbeat),
            assigned: rows.assigned_devices.as_deref().map(by_prefix),
        }
    }
}

fn by_prefix(rows: &[CimInstance]) -> HashMap<VmId, &CimInstance> {
    rows.iter()
        .filter_map(|row| {
            let (vm, _) = owner_of_id(row.text_ref("InstanceID")?)?;
            Some((vm, row))
        })
        .collect()
}

fn by_device(rows: &[CimInstance]) -> HashMap<VmId, &CimInstance> {
    rows.iter()
        .filter_map(|row| Some((row.text_ref("SystemName")?.parse().ok()?, row)))
        .collect()
}

fn by_parent<'a>(
    rows: &'a [CimInstance],
    namespace: &Namespace,
) -> HashMap<String, &'a CimInstance> {
    rows.iter()
        .filter_map(|row| Some((id_of_path_text(row.text_ref("Parent")?, namespace)?, row)))
        .collect()
}

fn switch_names(rows: &[CimInstance]) -> HashMap<String, String> {
    rows.iter()
        .filter_map(|row| {
            let id = row.text_ref("Name")?.to_ascii_lowercase();
            Some((id, text(row, "ElementName")?))
        })
        .collect()
}

fn machine(
    host: &HostFacts,
    index: &Index<'_>,
    id: VmId,
    row: &CimInstance,
    settings: &CimInstance,
    namespace: &Namespace,
) -> VmFacts {
    let status = row.u64s("OperationalStatus").unwrap_or_default();
    let state = row.opt_u32("EnabledState").ok().flatten().unwrap_or(0);
    let generation = text(settings, "VirtualSystemSubType");
    VmFacts {
        id,
        name: text(settings, "ElementName")
            .or_else(|| text(row, "ElementName"))
            .unwrap_or_else(|| id.to_string()),
        node: host.node.clone(),
        host_generation: host.generation,
        generation: generation.and_then(|it| match it.rsplit(':').next() {
            Some("1") => Some(1),
            Some("2") => Some(2),
            _ => None,
        }),
        version: text(settings, "Version").and_then(|it| ConfigurationVersion::parse(&it)),
        power: power_state(state),
        health: health(&status),
        activities: activities(&status),
        disks: Vec::new(),
        nics: nics(index, id, namespace),
        checkpoints: checkpoints(index, id, namespace),
        tracking_points: tracking_points(index, id),
        integration: IntegrationFacts {
            backup: index.backup.get(&id).map(|it| service_state(it)),
            exchange: index.exchange.get(&id).map(|it| service_state(it)),
            shutdown: index.shutdown.get(&id).map(|it| service_state(it)),
            heartbeat: index.heartbeat.get(&id).map(|it| service_state(it)),
        },
        guest: index
            .exchange
            .get(&id)
            .map(|it| guest::facts(it))
            .unwrap_or_default(),
        role: None,
        is_role_known: true,
        replication: replication(row.opt_u64("ReplicationMode").ok().flatten()),
        security: security(index, id),
        sizing: sizing(index, id),
        has_assigned_devices: index.assigned.as_ref().map(|it| it.contains_key(&id)),
        files: files(settings),
        marks: index
            .exchange_settings
            .get(&id)
            .map(|it| guest::marks(it))
            .unwrap_or_default(),
    }
}

fn files(settings: &CimInstance) -> VmFiles {
    let path = |property: &str| text(settings, property).and_then(|it| HostPath::new(it).ok());
    let guest_state = path("GuestStateDataRoot")
        .zip(text(settings, "GuestStateFile"))
        .and_then(|(root, file)| root.join(&file).ok());
    VmFiles {
        root: path("ConfigurationDataRoot"),
        configuration: text(settings, "ConfigurationFile"),
        checkpoint_root: path("SnapshotDataRoot"),
        guest_state,
    }
}

fn security(index: &Index<'_>, id: VmId) -> SecurityFacts {
    let Some(row) = index.security.get(&id) else {
        return SecurityFacts::default();
    };
    let of = |property: &str| row.opt_bool(property).ok().flatten();
    SecurityFacts {
        has_tpm: of("TpmEnabled"),
        is_shielded: of("ShieldingRequested"),
        encrypts_state: of("EncryptStateAndVmMigrationTraffic"),
    }
}

fn sizing(index: &Index<'_>, id: VmId) -> SizingFacts {
    let memory = index.memory.get(&id);
    let of = |property: &str| memory.and_then(|row| row.opt_u64(property).ok().flatten());
    let is_dynamic =
        memory.is_some_and(|row| row.opt_bool("DynamicMemoryEnabled").ok().flatten() == Some(true));
    SizingFacts {
        memory_mib: of("VirtualQuantity"),
        dynamic_memory_mib: is_dynamic
            .then(|| of("Reservation").zip(of("Limit")))
            .flatten(),
        processors: index
            .processors
            .get(&id)
            .and_then(|row| row.opt_u64("VirtualQuantity").ok().flatten()),
    }
}

fn nics(index: &Index<'_>, id: VmId, namespace: &Namespace) -> Vec<NicFacts> {
    let Some(ports) = index.ports.get(&id) else {
        return Vec::new();
    };
    ports
        .iter()
        .filter_map(|(row, is_legacy)| {
            let device = text(row, "InstanceID")?;
            let connection = index.connections.get(&id_key(&device));
            Some(NicFacts {
                name: text(row, "ElementName").unwrap_or_default(),
                mac: text(row, "Address").map(|it| it.to_uppercase()),
                has_static_mac: row.opt_bool("StaticMacAddress").ok().flatten(),
                is_legacy: *is_legacy,
                switch: connection.and_then(|row| switch_of(row, index, namespace)),
                device: DeviceId::new(device).ok()?,
            })
        })
        .collect()
}

/// Name of the switch that a connection leads to; none where it is not connected.
fn switch_of(row: &CimInstance, index: &Index<'_>, namespace: &Namespace) -> Option<String> {
    if row.opt_u64("EnabledState").ok().flatten() == Some(3) {
        return None;
    }
    let first = row.texts("HostResource").ok()?.into_iter().next()?;
    let path = wsman::cim::CimPath::parse(&first, namespace).ok()?;
    let id = path.key("Name")?.to_ascii_lowercase();
    Some(index.switches.get(&id).cloned().unwrap_or(id))
}

fn checkpoints(index: &Index<'_>, id: VmId, namespace: &Namespace) -> Vec<CheckpointFacts> {
    let Some(rows) = index.checkpoints.get(&id) else {
        return Vec::new();
    };
    let mut found: Vec<CheckpointFacts> = rows
        .iter()
        .filter_map(|row| checkpoint(row, namespace))
        .collect();
    // Parents are older than children; an unknown time goes last.
    found.sort_by(|left, right| {
        let key = |it: &CheckpointFacts| (it.created.is_none(), it.created);
        key(left)
            .cmp(&key(right))
            .then_with(|| left.id.cmp(&right.id))
    });
    found
}

/// A checkpoint by the row of its settings; `None` when the row is none.
pub(in super::super) fn checkpoint(
    row: &CimInstance,
    namespace: &Namespace,
) -> Option<CheckpointFacts> {
    let system_type = row.text_ref("VirtualSystemType").unwrap_or_default();
    let name = text(row, "ElementName").unwrap_or_default();
    let parent = row
        .text_ref("Parent")
        .and_then(|parent| wsman::cim::CimPath::parse(parent, namespace).ok())
        .and_then(|path| path.key("InstanceID"))
        .and_then(|id| CheckpointId::new(id).ok());
    Some(CheckpointFacts {
        id: CheckpointId::new(text(row, "InstanceID")?).ok()?,
        kind: checkpoint_kind(system_type)?,
        mark: Mark::parse(&name),
        name,
        created: time(row, "CreationTime"),
        parent,
        holds_memory: row.opt_bool("IsSaved").ok().flatten(),
    })
}

fn tracking_points(index: &Index<'_>, id: VmId) -> Vec<TrackingPointFacts> {
    let Some(rows) = index.reference_points.get(&id) else {
        return Vec::new();
    };
    rows.iter()
        // 1 is a log of Hyper-V Replica: not for tracking by others.
        .filter(|row| row.opt_u64("ReferencePointType").ok().flatten() != Some(1))
        .filter_map(|row| {
            Some(TrackingPointFacts {
                id: TrackingPointId::new(text(row, "InstanceID")?).ok()?,
                created: time(row, "CreationTime"),
                disk_count: row
                    .texts("VirtualDiskIdentifiers")
                    .unwrap_or_default()
                    .len(),
            })
        })
        .collect()
}
