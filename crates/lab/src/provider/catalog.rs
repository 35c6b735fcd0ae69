//! Which classes have instances, and all instances of a class.
//!
//! ```text
//!   class + hint ─► rows(): one arm per concrete class ─► instances, to be compared with the query by whoever asked
//! ```
//!
//! **Invariants.** A class of the tables is modelled ([`Coverage::Modelled`]), or known and without instances in a lab
//! ([`Coverage::Empty`]), or refused ([`Coverage::Refused`]): nothing is silently empty that a real host would have.

use wsman::cim::{CimInstance, CimPath};

use super::hint::Hint;
use super::identity::ServiceKind;
use super::links;
use super::rows::parts::{self, Part};
use super::rows::{Holder, Scene, cluster, devices, jobs, machine, points, settings, systems};
use crate::Result;
use crate::estate::{JobClass, Realm};

/// What the lab does with a class that can be enumerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Its instances are shown.
    Modelled,
    /// It has none in a lab, as on a host where the feature is not used; or only as part of messages.
    Empty,
    /// A host would have some, a lab does not show them: asking is refused.
    Refused,
}

/// Classes that a host has instances of and the lab does not show.
const REFUSED: &[&str] = &[
    "MSCluster_Disk",
    "MSCluster_DiskPartition",
    "MSCluster_DiskToDiskPartition",
    "MSCluster_Network",
    "MSCluster_NetworkInterface",
    "MSCluster_ResourceToDisk",
    "Msvm_Keyboard",
    "Msvm_ReplicationServiceSettingData",
    "Msvm_S3DisplayController",
    "Msvm_SerialPortSettingData",
    "Msvm_TerminalService",
    "Msvm_TerminalServiceSettingData",
    "Msvm_VideoHead",
    "Msvm_VirtualEthernetSwitchSettingData",
    "Win32_MountPoint",
];

/// Classes with rows of their own, beside parts, services, devices and associations.
const OWN: &[&str] = &[
    "CIM_DataFile",
    "MSCluster_Cluster",
    "MSCluster_ClusterSharedVolume",
    "MSCluster_Node",
    "MSCluster_Resource",
    "MSCluster_ResourceGroup",
    "MSCluster_ResourceType",
    "Msvm_ComputerSystem",
    "Msvm_ConcreteJob",
    "Msvm_DiskDrive",
    "Msvm_DiskMergeSettingData",
    "Msvm_GuestNetworkAdapterConfiguration",
    "Msvm_MigrationJob",
    "Msvm_PlannedComputerSystem",
    "Msvm_StorageJob",
    "Msvm_VirtualEthernetSwitch",
    "Msvm_VirtualSystemExportSettingData",
    "Msvm_VirtualSystemManagementServiceSettingData",
    "Msvm_VirtualSystemMigrationServiceSettingData",
    "Msvm_VirtualSystemReferencePoint",
    "Msvm_VirtualSystemSettingData",
    "Win32_ComputerSystem",
    "Win32_ComputerSystemProduct",
    "Win32_OperatingSystem",
    "Win32_Processor",
    "Win32_Volume",
];

/// What the lab does with a class of its tables.
pub(super) fn coverage(class: &str) -> Coverage {
    let is = |name: &&str| name.eq_ignore_ascii_case(class);
    if REFUSED.iter().any(is) {
        Coverage::Refused
    } else if OWN.iter().any(is)
        || parts::CLASSES.iter().any(is)
        || systems::SERVICES.iter().any(|it| is(&it.class))
        || ServiceKind::ALL.iter().any(|it| is(&it.device_class()))
        || links::is_association(class)
    {
        Coverage::Modelled
    } else {
        Coverage::Empty
    }
}

/// Instances of exactly this class that a hint lets through.
///
/// # Errors
/// `Invalid` when something cannot be written as the text of an embedded instance.
pub(super) fn rows(scene: &Scene<'_>, class: &str, hint: &Hint) -> Result<Vec<CimInstance>> {
    if class.starts_with("MSCluster_") {
        return Ok(cluster_rows(scene, class));
    }
    if links::is_association(class) {
        return Ok(links::rows(scene, class, None));
    }
    if parts::CLASSES.contains(&class) {
        return part_rows(scene, class, hint);
    }
    if let Some(service) = systems::SERVICES.iter().find(|it| it.class == class) {
        return Ok(vec![systems::service_row(scene, *service)]);
    }
    if let Some(kind) = ServiceKind::ALL
        .into_iter()
        .find(|it| it.device_class() == class)
    {
        let systems = hint.systems(scene).into_iter();
        let realized = systems.filter(|vm| vm.realm == Realm::Realized);
        return realized
            .map(|vm| devices::device_row(scene, vm, kind))
            .collect();
    }
    Ok(match class {
        "CIM_DataFile" => vec![machine::program_row(scene)],
        "Win32_ComputerSystem" => vec![machine::computer_system_row(scene)],
        "Win32_ComputerSystemProduct" => vec![machine::product_row(scene)],
        "Win32_OperatingSystem" => vec![machine::operating_system_row(scene)],
        "Win32_Processor" => vec![machine::processor_row(scene)],
        "Win32_Volume" => machine::volume_rows(scene),
        "Msvm_ConcreteJob" => job_rows(scene, JobClass::Concrete, hint),
        "Msvm_StorageJob" => job_rows(scene, JobClass::Storage, hint),
        "Msvm_MigrationJob" => job_rows(scene, JobClass::Migration, hint),
        _ => system_rows(scene, class, hint),
    })
}

fn system_rows(scene: &Scene<'_>, class: &str, hint: &Hint) -> Vec<CimInstance> {
    let systems = || hint.systems(scene).into_iter();
    let realized = || systems().filter(|vm| vm.realm == Realm::Realized);
    match class {
        "Msvm_ComputerSystem" => {
            let machines = realized().map(|vm| systems::system_row(scene, vm));
            std::iter::once(systems::host_row(scene))
                .chain(machines)
                .collect()
        }
        "Msvm_PlannedComputerSystem" => systems()
            .filter(|vm| vm.realm == Realm::Planned)
            .map(|vm| systems::system_row(scene, vm))
            .collect(),
        "Msvm_VirtualSystemSettingData" => systems()
            .flat_map(Holder::all_of)
            .map(|holder| settings::settings_row(scene, &holder))
            .collect(),
        "Msvm_VirtualSystemReferencePoint" => realized()
            .flat_map(|vm| {
                let points = vm.reference_points.values();
                points.map(|point| points::reference_point_row(vm, point))
            })
            .collect(),
        "Msvm_VirtualSystemExportSettingData" => realized()
            .map(|vm| settings::export_defaults_row(scene, vm))
            .collect(),
        "Msvm_DiskMergeSettingData" => realized().map(settings::disk_merge_row).collect(),
        "Msvm_GuestNetworkAdapterConfiguration" => {
            realized().flat_map(devices::guest_network_rows).collect()
        }
        "Msvm_VirtualEthernetSwitch" => {
            let switches = scene.host.switches.iter();
            switches.map(|it| systems::switch_row(scene, it)).collect()
        }
        "Msvm_DiskDrive" => {
            let disks = scene.host.disks.iter();
            disks
                .map(|it| devices::physical_disk_row(scene, it))
                .collect()
        }
        "Msvm_VirtualSystemManagementServiceSettingData" => {
            vec![settings::service_settings_row(scene)]
        }
        "Msvm_VirtualSystemMigrationServiceSettingData" => {
            vec![settings::migration_settings_row(scene)]
        }
        _ => Vec::new(),
    }
}

fn part_rows(scene: &Scene<'_>, class: &str, hint: &Hint) -> Result<Vec<CimInstance>> {
    let mut rows = Vec::new();
    for holder in hint.systems(scene).into_iter().flat_map(Holder::all_of) {
        for part in Part::all_of(scene, &holder) {
            if part.class() == class {
                rows.push(part.row(scene, &holder)?);
            }
        }
    }
    Ok(rows)
}

fn job_rows(scene: &Scene<'_>, class: JobClass, hint: &Hint) -> Vec<CimInstance> {
    let jobs = hint.jobs(scene).into_iter();
    jobs.filter(|job| job.class == class)
        .map(|job| jobs::job_row(scene, job))
        .collect()
}

fn cluster_rows(scene: &Scene<'_>, class: &str) -> Vec<CimInstance> {
    let Some(found) = scene.estate.cluster_of(&scene.host.name) else {
        return Vec::new();
    };
    if links::is_association(class) {
        return links::rows(scene, class, None);
    }
    match class {
        "MSCluster_Cluster" => vec![cluster::cluster_row(found)],
        "MSCluster_Node" => {
            let nodes = found.nodes.values();
            nodes.map(|node| cluster::node_row(scene, node)).collect()
        }
        "MSCluster_ResourceGroup" => found.groups.values().map(cluster::group_row).collect(),
        "MSCluster_Resource" => {
            let resources = found.resources.values();
            resources
                .map(|it| cluster::resource_row(scene, found, it))
                .collect()
        }
        "MSCluster_ResourceType" => {
            let types = cluster::RESOURCE_TYPES.into_iter();
            types.map(cluster::resource_type_row).collect()
        }
        "MSCluster_ClusterSharedVolume" => {
            let volumes = cluster::volumes(scene, found);
            volumes.map(cluster::volume_row).collect()
        }
        _ => Vec::new(),
    }
}

/// The instance of a path, if there is one.
///
/// # Errors
/// As [`rows`].
pub(super) fn find(scene: &Scene<'_>, path: &CimPath) -> Result<Option<CimInstance>> {
    let class = path.class.as_str();
    if let Some(found) = find_in_cluster(scene, path) {
        return Ok(Some(found));
    }
    if links::is_association(class) {
        return Ok(links::rows(scene, class, None)
            .into_iter()
            .find(|instance| links::is_same_row(path, instance)));
    }
    let hint = Hint::of_path(path);
    Ok(rows(scene, class, &hint)?
        .into_iter()
        .find(|instance| path.names(instance)))
}

/// Groups and resources by name: a cluster may have thousands.
fn find_in_cluster(scene: &Scene<'_>, path: &CimPath) -> Option<CimInstance> {
    let found = scene.estate.cluster_of(&scene.host.name)?;
    let name = path.key("Name")?;
    match path.class.as_str() {
        "MSCluster_ResourceGroup" => {
            let group = found.groups.get(&crate::estate::GroupName::new(&name))?;
            Some(cluster::group_row(group))
        }
        "MSCluster_Resource" => {
            let resource = found
                .resources
                .get(&crate::estate::ResourceName::new(&name))?;
            Some(cluster::resource_row(scene, found, resource))
        }
        _ => None,
    }
}
