//! `root/MSCluster`: the cluster, its nodes, groups, resources and shared volumes.
//!
//! ```text
//!   MSCluster_Cluster ─ Node ─ ResourceGroup ─ Resource ─ ClusterSharedVolume
//! ```
//!
//! Names are keys. `PrivateProperties` is nil unless the switch for it is kind: nobody has seen it on the wire.

use wsman::cim::{CimInstance, CimPath};

use super::{Scene, row};
use crate::estate::{
    Cluster, Group, GroupState, GroupType, Node, Resource, ResourceType, Switch, Volume, VolumeKind,
};
use crate::provider::identity::CLUSTER;

/// An object of the cluster, by class and name.
pub(in crate::provider) fn path(class: &str, name: impl std::fmt::Display) -> CimPath {
    CimPath::new(&*CLUSTER, class).with("Name", name.to_string())
}

/// The cluster.
pub(in crate::provider) fn cluster_row(cluster: &Cluster) -> CimInstance {
    row(&CLUSTER, "MSCluster_Cluster")
        .with("BackupInProgress", 0_u32)
        .with("ClusterFunctionalLevel", cluster.functional_level)
        .with("ClusterUpgradeVersion", 0_u32)
        .with("CreationClassName", "MSCluster_Cluster")
        .with("DynamicQuorumEnabled", 1_u32)
        .with("EnableSharedVolumes", 1_u32)
        .with("Fqdn", cluster.full_name())
        .with("Name", cluster.name.to_string())
        .with("QuorumType", "Node Majority")
        .with("QuorumTypeValue", 1_u32)
        .with("S2DEnabled", 0_u32)
        .with("SharedVolumesRoot", "C:\\ClusterStorage")
        .with("Status", "OK")
}

/// A node.
pub(in crate::provider) fn node_row(scene: &Scene<'_>, node: &Node) -> CimInstance {
    let host = scene.estate.host(&node.host).ok();
    let build = host.map_or(0, |host| host.windows.build());
    let old = host.is_some_and(|host| host.windows.version() == "6.3");
    row(&CLUSTER, "MSCluster_Node")
        .with("BuildNumber", build)
        .with("CreationClassName", "MSCluster_Node")
        .with("DynamicWeight", 1_u32)
        .with("Id", node.id.to_string())
        .with("MajorVersion", if old { 6_u32 } else { 10 })
        .with("MinorVersion", if old { 3_u32 } else { 0 })
        .with("Name", node.host.to_string())
        .with("NodeDrainStatus", if node.is_drained { 2_u32 } else { 0 })
        .with("NodeWeight", 1_u32)
        .with(
            "State",
            u32::try_from(node.state.value()).unwrap_or(u32::MAX),
        )
}

/// A group.
pub(in crate::provider) fn group_row(group: &Group) -> CimInstance {
    row(&CLUSTER, "MSCluster_ResourceGroup")
        .with("AutoFailbackType", 0_u32)
        .with("Caption", group.name.to_string())
        .with("DefaultOwner", u32::MAX)
        .with("FailoverPeriod", 6_u32)
        .with("FailoverThreshold", u32::MAX)
        .with("GroupType", group.group_type.value())
        .with("Id", group.id.to_string().to_lowercase())
        .with("IsCore", group.group_type == GroupType::Core)
        .with("Name", group.name.to_string())
        .with("OwnerNode", group.owner.to_string())
        .with("PersistentState", group.is_wanted_online)
        .with("Priority", group.priority)
        .with(
            "State",
            u32::try_from(group.state.value()).unwrap_or(u32::MAX),
        )
        .with(
            "StatusInformation",
            if group.state == GroupState::Pending {
                1_u64
            } else {
                0
            },
        )
}

/// A resource.
pub(in crate::provider) fn resource_row(
    scene: &Scene<'_>,
    cluster: &Cluster,
    resource: &Resource,
) -> CimInstance {
    let owner = cluster.owner_of(resource).map(ToString::to_string);
    let mut instance = row(&CLUSTER, "MSCluster_Resource")
        .with("Caption", resource.name.to_string())
        .with("CoreResource", false)
        .with("Id", resource.id.to_string().to_lowercase())
        .with("IsClusterSharedVolume", resource.volume.is_some())
        .with("Name", resource.name.to_string())
        .with("OwnerGroup", resource.group.to_string())
        .with("OwnerNode", owner)
        .with("PersistentState", true)
        .with(
            "State",
            u32::try_from(resource.state.value()).unwrap_or(u32::MAX),
        )
        .with("StatusInformation", 0_u64)
        .with("Type", resource.resource_type.name());
    if !scene.estate.switches().is_kind(Switch::PrivateProperties) {
        return instance;
    }
    if let Some(vm) = resource.vm {
        // Windows mixes the cases of this one: lower here, upper elsewhere.
        let mut private = CimInstance::new("MSCluster_Property")
            .in_namespace(&*CLUSTER)
            .with("VmID", vm.to_string().to_lowercase());
        if resource.resource_type == ResourceType::VirtualMachineConfiguration {
            private.set("VmStoreRootPath", vm_root(scene, cluster, vm));
        } else {
            private.set("OfflineAction", 1_u32);
        }
        instance.set("PrivateProperties", private);
    }
    instance
}

fn vm_root(scene: &Scene<'_>, cluster: &Cluster, vm: crate::estate::VmId) -> String {
    let owner = cluster.group_of(vm).map(|group| &group.owner);
    let found = owner.and_then(|owner| scene.estate.vm(owner, vm).ok());
    found.map_or_else(String::new, |vm| vm.settings.configuration_root.to_string())
}

/// A type of resource.
pub(in crate::provider) fn resource_type_row(resource_type: ResourceType) -> CimInstance {
    row(&CLUSTER, "MSCluster_ResourceType")
        .with("DisplayName", resource_type.name())
        .with("Name", resource_type.name())
}

/// Every type of resource.
pub(in crate::provider) const RESOURCE_TYPES: [ResourceType; 4] = [
    ResourceType::NetworkName,
    ResourceType::PhysicalDisk,
    ResourceType::VirtualMachine,
    ResourceType::VirtualMachineConfiguration,
];

/// A shared volume.
pub(in crate::provider) fn volume_row(volume: &Volume) -> CimInstance {
    row(&CLUSTER, "MSCluster_ClusterSharedVolume")
        .with("BackupState", 0_u32)
        .with("FaultState", volume.state.fault_state())
        .with("Name", volume.path())
        .with("VolumeName", format!("\\\\?\\Volume{{{}}}\\", volume.guid))
        .with("VolumeOffset", 0_u64)
}

/// Shared volumes of a cluster.
pub(in crate::provider) fn volumes<'a>(
    scene: &Scene<'a>,
    cluster: &'a Cluster,
) -> impl Iterator<Item = &'a Volume> + use<'a> {
    let storage = scene.estate.storage();
    cluster
        .volumes
        .iter()
        .filter_map(move |id| storage.volume(*id))
        .filter(|volume| matches!(volume.kind, VolumeKind::Csv { .. }))
}
