//! A failover cluster: nodes, groups, resources, shared volumes.
//!
//! **Invariants.** A VM's group has two resources, the VM and its configuration, and moves as a whole. A group is owned by one
//! node; a group whose owner is gone waits until another node takes it.

use std::collections::BTreeMap;

use super::ids::{ClusterName, ClusterObjectId, GroupName, HostName, ResourceName, VmId};
use super::storage::VolumeId;

/// `MSCluster_Node.State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// 0.
    Up,
    /// 1.
    Down,
    /// 2.
    Paused,
    /// 3.
    Joining,
}

impl NodeState {
    /// The number on the wire.
    pub fn value(self) -> i32 {
        match self {
            Self::Up => 0,
            Self::Down => 1,
            Self::Paused => 2,
            Self::Joining => 3,
        }
    }
}

/// `MSCluster_ResourceGroup.State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupState {
    /// 0.
    Online,
    /// 1.
    Offline,
    /// 2.
    Failed,
    /// 3.
    PartiallyOnline,
    /// 4.
    Pending,
}

impl GroupState {
    /// The number on the wire.
    pub fn value(self) -> i32 {
        match self {
            Self::Online => 0,
            Self::Offline => 1,
            Self::Failed => 2,
            Self::PartiallyOnline => 3,
            Self::Pending => 4,
        }
    }
}

/// `MSCluster_Resource.State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResourceState {
    /// 2.
    Online,
    /// 3.
    Offline,
    /// 4.
    Failed,
    /// 129.
    OnlinePending,
    /// 130.
    OfflinePending,
}

impl ResourceState {
    /// The number on the wire.
    pub fn value(self) -> i32 {
        match self {
            Self::Online => 2,
            Self::Offline => 3,
            Self::Failed => 4,
            Self::OnlinePending => 129,
            Self::OfflinePending => 130,
        }
    }
}

/// `GroupType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupType {
    /// 1: the cluster itself.
    Core,
    /// 2: disks nobody uses.
    AvailableStorage,
    /// 111.
    VirtualMachine,
}

impl GroupType {
    /// The number on the wire.
    pub fn value(self) -> u32 {
        match self {
            Self::Core => 1,
            Self::AvailableStorage => 2,
            Self::VirtualMachine => 111,
        }
    }
}

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name: that of the host.
    pub host: HostName,
    /// `Id`, from 1.
    pub id: u32,
    /// Whether it takes part.
    pub state: NodeState,
    /// Whether its roles were drained away.
    pub is_drained: bool,
}

/// A group (role).
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// Its id.
    pub id: ClusterObjectId,
    /// What it is.
    pub group_type: GroupType,
    /// The node that owns it.
    pub owner: HostName,
    /// How it is.
    pub state: GroupState,
    /// 0 no automatic start, 1000 low, 2000 medium, 3000 high.
    pub priority: u32,
    /// Nodes it would rather be on, best first.
    pub preferred_owners: Vec<HostName>,
    /// The VM, for a VM's group.
    pub vm: Option<VmId>,
    /// Whether it is to be online.
    pub is_wanted_online: bool,
}

/// Types of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResourceType {
    /// "Virtual Machine".
    VirtualMachine,
    /// "Virtual Machine Configuration".
    VirtualMachineConfiguration,
    /// "Physical Disk": a shared volume.
    PhysicalDisk,
    /// "Network Name".
    NetworkName,
}

impl ResourceType {
    /// `Type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::VirtualMachine => "Virtual Machine",
            Self::VirtualMachineConfiguration => "Virtual Machine Configuration",
            Self::PhysicalDisk => "Physical Disk",
            Self::NetworkName => "Network Name",
        }
    }
}

/// A resource.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Its name.
    pub name: ResourceName,
    /// Its id.
    pub id: ClusterObjectId,
    /// Its type.
    pub resource_type: ResourceType,
    /// Its group.
    pub group: GroupName,
    /// How it is.
    pub state: ResourceState,
    /// The VM, for a VM's resources.
    pub vm: Option<VmId>,
    /// The shared volume, for one.
    pub volume: Option<VolumeId>,
    /// Nodes that may own it.
    pub possible_owners: Vec<HostName>,
}

/// A failover cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// DNS domain.
    pub domain: String,
    /// `ClusterFunctionalLevel`: that of the oldest node.
    pub functional_level: u32,
    /// Its nodes.
    pub nodes: BTreeMap<HostName, Node>,
    /// Its groups.
    pub groups: BTreeMap<GroupName, Group>,
    /// Its resources.
    pub resources: BTreeMap<ResourceName, Resource>,
    /// Its shared volumes.
    pub volumes: Vec<VolumeId>,
    pub(super) group_of_vm: BTreeMap<VmId, GroupName>,
}

impl Cluster {
    /// The group of a VM.
    pub fn group_of(&self, vm: VmId) -> Option<&Group> {
        self.groups.get(self.group_of_vm.get(&vm)?)
    }

    /// Resources of a group.
    pub fn resources_of<'a>(&'a self, group: &'a GroupName) -> impl Iterator<Item = &'a Resource> {
        self.resources.values().filter(move |it| it.group == *group)
    }

    /// The node that owns a resource: that of its group.
    pub fn owner_of(&self, resource: &Resource) -> Option<&HostName> {
        self.groups.get(&resource.group).map(|group| &group.owner)
    }

    /// `name.domain`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.name.as_str().to_lowercase(), self.domain)
    }
}
