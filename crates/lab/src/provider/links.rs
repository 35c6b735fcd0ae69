//! Associations: pairs of paths.
//!
//! ```text
//!   Association (class, two roles) ── links(anchor) ──► (path in the first role, path in the second, effect)
//! ```
//!
//! An anchor is one end that is given: then only the links of its VM are made.
//!
//! **Invariant.** Both ends of every link are instances that can be got.

use wsman::cim::{CimInstance, CimPath};

use super::hint::Hint;
use super::identity::{self, CLUSTER, ServiceKind, VIRTUALIZATION};
use super::rows::parts::Part;
use super::rows::{Holder, Scene, cluster, devices, jobs, row, systems};
use crate::estate::{Cluster, Realm, ResourceType, VirtualMachine};

/// A class of associations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Association {
    pub class: &'static str,
    /// Names of the two references.
    pub roles: (&'static str, &'static str),
}

const fn of(class: &'static str, first: &'static str, second: &'static str) -> Association {
    Association {
        class,
        roles: (first, second),
    }
}

/// Every association that is modelled.
pub(super) const ALL: &[Association] = &[
    of("Msvm_SettingsDefineState", "ManagedElement", "SettingData"),
    of(
        "Msvm_VirtualSystemSettingDataComponent",
        "GroupComponent",
        "PartComponent",
    ),
    of("Msvm_SnapshotOfVirtualSystem", "Antecedent", "Dependent"),
    of(
        "Msvm_MostCurrentSnapshotInBranch",
        "Antecedent",
        "Dependent",
    ),
    of("Msvm_LastAppliedSnapshot", "Antecedent", "Dependent"),
    of(
        "Msvm_ReferencePointOfVirtualSystem",
        "Antecedent",
        "Dependent",
    ),
    of(
        "Msvm_AffectedJobElement",
        "AffectedElement",
        "AffectingElement",
    ),
    of("Msvm_SystemDevice", "GroupComponent", "PartComponent"),
    of(
        "Msvm_SystemExportSettingData",
        "ManagedElement",
        "SettingData",
    ),
    of("Msvm_ElementSettingData", "ManagedElement", "SettingData"),
    of(
        "MSCluster_ResourceGroupToResource",
        "GroupComponent",
        "PartComponent",
    ),
    of(
        "MSCluster_NodeToActiveGroup",
        "GroupComponent",
        "PartComponent",
    ),
    of(
        "MSCluster_NodeToActiveResource",
        "GroupComponent",
        "PartComponent",
    ),
    of(
        "MSCluster_ClusterSharedVolumeToResource",
        "GroupComponent",
        "PartComponent",
    ),
    of(
        "MSCluster_ClusterSharedVolumeToNode",
        "GroupComponent",
        "PartComponent",
    ),
    of(
        "MSCluster_ResourceToDependentResource",
        "Antecedent",
        "Dependent",
    ),
    of(
        "MSCluster_ResourceToPossibleOwner",
        "GroupComponent",
        "PartComponent",
    ),
    of(
        "MSCluster_ResourceGroupToPreferredNode",
        "GroupComponent",
        "PartComponent",
    ),
    of("MSCluster_ClusterToNode", "Dependent", "Antecedent"),
    of(
        "MSCluster_ClusterToResourceGroup",
        "GroupComponent",
        "PartComponent",
    ),
    of(
        "MSCluster_ClusterToResource",
        "GroupComponent",
        "PartComponent",
    ),
];

/// Two instances that belong together.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub ends: (CimPath, CimPath),
    /// `ElementEffects` of jobs.
    effect: Option<u16>,
}

fn link(first: CimPath, second: CimPath) -> Link {
    Link {
        ends: (first, second),
        effect: None,
    }
}

/// Whether a class is a modelled association.
pub(super) fn is_association(class: &str) -> bool {
    ALL.iter().any(|it| it.class.eq_ignore_ascii_case(class))
}

/// Instances of an association; with an anchor, those that have it at one end.
pub(super) fn rows(scene: &Scene<'_>, class: &str, anchor: Option<&CimPath>) -> Vec<CimInstance> {
    let Some(association) = ALL.iter().find(|it| it.class.eq_ignore_ascii_case(class)) else {
        return Vec::new();
    };
    let links = links(scene, association, anchor);
    links
        .into_iter()
        .map(|it| row_of(association, it))
        .collect()
}

/// The instance of a link.
pub(super) fn row_of(association: &Association, link: Link) -> CimInstance {
    let namespace = if association.class.starts_with("MSCluster_") {
        &CLUSTER
    } else {
        &VIRTUALIZATION
    };
    let mut instance = row(namespace, association.class)
        .with(association.roles.0, link.ends.0)
        .with(association.roles.1, link.ends.1);
    if let Some(effect) = link.effect {
        instance.set("ElementEffects", vec![effect]);
    }
    if association.class == "Msvm_SystemExportSettingData" {
        instance.set("IsCurrent", 1_u16);
        instance.set("IsDefault", 1_u16);
        instance.set("IsNext", 0_u16);
    }
    instance
}

/// Whether the two references of a path are those of an instance.
pub(super) fn is_same_row(path: &CimPath, instance: &CimInstance) -> bool {
    let mut keys = path.keys.keys();
    keys.all(|key| {
        let wanted = path.key_value(key);
        let has = instance.get(key);
        match (wanted, has) {
            (
                Some(wsman::cim::CimValue::Reference(wanted)),
                Some(wsman::cim::CimValue::Reference(has)),
            ) => wanted.is_same(has),
            _ => key.eq_ignore_ascii_case("__cimnamespace"),
        }
    })
}

/// Links of an association; with an anchor, those that have it at one end.
pub(super) fn links(
    scene: &Scene<'_>,
    association: &Association,
    anchor: Option<&CimPath>,
) -> Vec<Link> {
    let mut links = Vec::new();
    if association.class.starts_with("MSCluster_") {
        if let Some(found) = scene.estate.cluster_of(&scene.host.name) {
            cluster_links(scene, found, association.class, &mut links);
        }
    } else if association.class == "Msvm_AffectedJobElement" {
        job_links(scene, anchor, &mut links);
    } else if association.class == "Msvm_ElementSettingData" {
        service_links(scene, &mut links);
    } else {
        let hint = anchor.map(Hint::of_path).unwrap_or_default();
        for vm in hint.systems(scene) {
            system_links(scene, vm, association.class, &mut links);
        }
        if association.class == "Msvm_SystemDevice" {
            host_links(scene, &mut links);
        }
    }
    if let Some(anchor) = anchor {
        let id = anchor.id();
        links.retain(|it| it.ends.0.id() == id || it.ends.1.id() == id);
    }
    links
}

fn system_links(scene: &Scene<'_>, vm: &VirtualMachine, class: &str, links: &mut Vec<Link>) {
    let system = || identity::system(vm.realm, vm.id);
    let current = Holder::current(vm);
    match class {
        "Msvm_SettingsDefineState" => links.push(link(system(), current.path())),
        "Msvm_VirtualSystemSettingDataComponent" => {
            for holder in Holder::all_of(vm) {
                let guid = holder.guid_text();
                let parts = Part::all_of(scene, &holder).into_iter();
                links.extend(
                    parts
                        .filter(Part::is_direct)
                        .map(|part| link(holder.path(), part.path(&guid))),
                );
            }
        }
        "Msvm_SnapshotOfVirtualSystem" => {
            let checkpoints = vm.checkpoints.keys();
            links.extend(checkpoints.map(|id| link(system(), identity::settings(id))));
        }
        "Msvm_MostCurrentSnapshotInBranch" => {
            let parent = vm.current_parent.iter();
            links.extend(parent.map(|id| link(system(), identity::settings(id))));
        }
        "Msvm_LastAppliedSnapshot" => {
            let applied = vm.last_applied.iter();
            let known = applied.filter(|id| vm.checkpoints.contains_key(id));
            links.extend(known.map(|id| link(identity::settings(id), system())));
        }
        "Msvm_ReferencePointOfVirtualSystem" => {
            let points = vm.reference_points.keys();
            links.extend(points.map(|id| link(system(), identity::reference_point(vm.id, *id))));
        }
        "Msvm_SystemDevice" if vm.realm == Realm::Realized => {
            let kinds = ServiceKind::ALL.into_iter();
            links.extend(kinds.map(|kind| link(system(), devices::device_path(vm, kind))));
        }
        "Msvm_SystemExportSettingData" if vm.realm == Realm::Realized => {
            let id = identity::part_id(vm.id, "Export");
            let settings = identity::by_instance_id("Msvm_VirtualSystemExportSettingData", id);
            links.push(link(system(), settings));
        }
        _ => {}
    }
}

fn host_links(scene: &Scene<'_>, links: &mut Vec<Link>) {
    for disk in &scene.host.disks {
        let path = super::rows::part_rows::disk_path(scene, disk);
        links.push(link(identity::host_system(&scene.host.name), path));
    }
}

fn service_links(scene: &Scene<'_>, links: &mut Vec<Link>) {
    for (service, settings, id) in [
        (
            "Msvm_VirtualSystemManagementService",
            "Msvm_VirtualSystemManagementServiceSettingData",
            format!("Microsoft:{}", scene.host.name),
        ),
        (
            "Msvm_VirtualSystemMigrationService",
            "Msvm_VirtualSystemMigrationServiceSettingData",
            format!("Microsoft:{}\\Migration", scene.host.name),
        ),
    ] {
        if let Some(service) = systems::SERVICES.iter().find(|it| it.class == service) {
            let service = systems::service_path(scene, *service);
            links.push(link(service, identity::by_instance_id(settings, id)));
        }
    }
}

fn job_links(scene: &Scene<'_>, anchor: Option<&CimPath>, links: &mut Vec<Link>) {
    let is_job = anchor.is_some_and(|path| path.class.as_str().ends_with("Job"));
    let hint = anchor
        .filter(|_| is_job)
        .map(Hint::of_path)
        .unwrap_or_default();
    for job in hint.jobs(scene) {
        let path = identity::job(job.class, job.id);
        for (element, effect) in jobs::affected(scene, job) {
            links.push(Link {
                ends: (element, path.clone()),
                effect: Some(effect),
            });
        }
    }
}

fn cluster_links(scene: &Scene<'_>, found: &Cluster, class: &str, links: &mut Vec<Link>) {
    let cluster_path = || cluster::path("MSCluster_Cluster", &found.name);
    let node = |name: &crate::estate::HostName| cluster::path("MSCluster_Node", name);
    let group = |name: &crate::estate::GroupName| cluster::path("MSCluster_ResourceGroup", name);
    let resource = |name: &crate::estate::ResourceName| cluster::path("MSCluster_Resource", name);
    let groups = found.groups.values();
    let resources = found.resources.values();
    match class {
        "MSCluster_ResourceGroupToResource" => {
            links.extend(resources.map(|it| link(group(&it.group), resource(&it.name))));
        }
        "MSCluster_NodeToActiveGroup" => {
            links.extend(groups.map(|it| link(node(&it.owner), group(&it.name))));
        }
        "MSCluster_NodeToActiveResource" => {
            for it in resources {
                let owner = found.owner_of(it);
                links.extend(owner.map(|owner| link(node(owner), resource(&it.name))));
            }
        }
        "MSCluster_ClusterSharedVolumeToResource" => {
            for it in resources {
                let volume = it.volume.and_then(|id| scene.estate.storage().volume(id));
                let volume =
                    volume.map(|it| cluster::path("MSCluster_ClusterSharedVolume", it.path()));
                links.extend(volume.map(|volume| link(volume, resource(&it.name))));
            }
        }
        "MSCluster_ClusterSharedVolumeToNode" => {
            for volume in cluster::volumes(scene, found) {
                if let crate::estate::VolumeKind::Csv { owner, .. } = &volume.kind {
                    let path = cluster::path("MSCluster_ClusterSharedVolume", volume.path());
                    links.push(link(path, node(owner)));
                }
            }
        }
        "MSCluster_ResourceToDependentResource" => dependent_resources(found, links),
        "MSCluster_ResourceToPossibleOwner" => {
            for it in resources {
                let owners = it.possible_owners.iter();
                links.extend(owners.map(|owner| link(resource(&it.name), node(owner))));
            }
        }
        "MSCluster_ResourceGroupToPreferredNode" => {
            for it in groups {
                let owners = it.preferred_owners.iter();
                links.extend(owners.map(|owner| link(group(&it.name), node(owner))));
            }
        }
        "MSCluster_ClusterToNode" => {
            links.extend(found.nodes.keys().map(|it| link(cluster_path(), node(it))));
        }
        "MSCluster_ClusterToResourceGroup" => {
            links.extend(groups.map(|it| link(cluster_path(), group(&it.name))));
        }
        "MSCluster_ClusterToResource" => {
            links.extend(resources.map(|it| link(cluster_path(), resource(&it.name))));
        }
        _ => {}
    }
}

/// A VM's resource depends on its configuration's.
fn dependent_resources(found: &Cluster, links: &mut Vec<Link>) {
    let path = |name: &crate::estate::ResourceName| cluster::path("MSCluster_Resource", name);
    for machine in found.resources.values() {
        if machine.resource_type != ResourceType::VirtualMachine {
            continue;
        }
        let configuration = found.resources_of(&machine.group).find(|it| {
            it.resource_type == ResourceType::VirtualMachineConfiguration && it.vm == machine.vm
        });
        links.extend(configuration.map(|it| link(path(&it.name), path(&machine.name))));
    }
}
