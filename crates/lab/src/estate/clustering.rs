//! What a failover cluster does: roles come online, move, fail over; nodes drain, crash, come back.
//!
//! ```text
//!   node lost ─► its VMs lose power, its jobs are gone ─► after a while each group starts on another node, high priority first
//!   drain     ─► each group moves live ─► node paused
//! ```
//!
//! **Invariants.** A group is where its VM is. What is not clustered stays with its host, up or down.

use super::cluster::{
    Cluster, Group, GroupState, GroupType, NodeState, Resource, ResourceState, ResourceType,
};
use super::host::HostState;
use super::ids::{ClusterObjectId, GroupName, HostName, ResourceName, VmId};
use super::storage::{VolumeId, VolumeKind};
use super::switch::Switch;
use super::vm::PowerState;
use super::{Estate, MigrationKind, MigrationRequest};
use crate::{Error, Result, Win32Error};

/// `ERROR_ACCESS_DENIED`.
const ACCESS_DENIED: Win32Error = Win32Error(5);

/// What happens to the roles of a node that is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Drain {
    /// They stay.
    Keep,
    /// They move to other nodes.
    MoveRoles,
}

impl Estate {
    /// The cluster of a node that answers.
    ///
    /// # Errors
    /// `Unreachable`, `NotFound` when the host is in none.
    pub fn live_cluster(&self, host: &HostName) -> Result<&Cluster> {
        self.live_host(host)?;
        self.cluster_of(host)
            .ok_or_else(|| Error::not_found(format!("{host} is in no cluster")))
    }

    fn cluster_mut(&mut self, host: &HostName) -> Result<&mut Cluster> {
        let name = self.live_cluster(host)?.name.clone();
        self.clusters
            .get_mut(&name)
            .ok_or_else(|| Error::not_found(format!("there is no cluster {name}")))
    }

    fn group_mut(&mut self, host: &HostName, name: &GroupName) -> Result<&mut Group> {
        let cluster = self.cluster_mut(host)?;
        cluster
            .groups
            .get_mut(name)
            .ok_or_else(|| Error::win32(Win32Error::GROUP_NOT_FOUND, format!("no group {name}")))
    }

    /// `MSCluster_Cluster.AddVirtualMachine`, asked of the node that the VM is on.
    ///
    /// # Errors
    /// `Win32`: access denied where the switch says so, already exists, not found.
    pub fn add_virtual_machine(&mut self, host: &HostName, name_or_id: &str) -> Result<GroupName> {
        if !self.switches.is_kind(Switch::AddVirtualMachine) {
            return Err(Error::win32(
                ACCESS_DENIED,
                "no credentials for the second hop",
            ));
        }
        self.make_highly_available(host, name_or_id)
    }

    /// Makes a VM a role of its host's cluster, as an administrator at the console does.
    ///
    /// # Errors
    /// `NotFound`; `Win32` when it is one already.
    pub fn make_highly_available(
        &mut self,
        host: &HostName,
        name_or_id: &str,
    ) -> Result<GroupName> {
        self.live_cluster(host)?;
        let wanted: Option<VmId> = name_or_id.parse().ok();
        let vm = self
            .vms_on(host)
            .find(|vm| wanted == Some(vm.id) || vm.settings.name.eq_ignore_ascii_case(name_or_id));
        let Some(vm) = vm else {
            return Err(Error::win32(
                Win32Error::RESOURCE_NOT_FOUND,
                format!("{host} has no VM {name_or_id}"),
            ));
        };
        let (id, name) = (vm.id, vm.settings.name.clone());
        let ids = [self.random.uuid(), self.random.uuid(), self.random.uuid()].map(ClusterObjectId);
        let cluster = self.cluster_mut(host)?;
        if cluster.group_of(id).is_some() {
            return Err(Error::win32(
                Win32Error::ALREADY_EXISTS,
                format!("{name} is a role already"),
            ));
        }
        let taken = |text: &str| cluster.groups.contains_key(&GroupName::new(text));
        let mut free = name.clone();
        let mut number = 1;
        while taken(&free) {
            free = format!("{name} ({number})");
            number += 1;
        }
        let group = GroupName::new(&free);
        let members: Vec<HostName> = cluster.nodes.keys().cloned().collect();
        let role = Group {
            name: group.clone(),
            id: ids[0],
            group_type: GroupType::VirtualMachine,
            owner: host.clone(),
            state: GroupState::Offline,
            priority: 2000,
            preferred_owners: Vec::new(),
            vm: Some(id),
            is_wanted_online: false,
        };
        for (resource_type, resource_id) in [
            (ResourceType::VirtualMachine, ids[1]),
            (ResourceType::VirtualMachineConfiguration, ids[2]),
        ] {
            let resource = Resource {
                name: ResourceName::new(format!("{} {free}", resource_type.name())),
                id: resource_id,
                resource_type,
                group: group.clone(),
                state: ResourceState::Online,
                vm: Some(id),
                volume: None,
                possible_owners: members.clone(),
            };
            cluster.resources.insert(resource.name.clone(), resource);
        }
        cluster.groups.insert(group.clone(), role);
        cluster.group_of_vm.insert(id, group.clone());
        self.follow_in_cluster(id);
        self.touch();
        Ok(group)
    }

    /// `MSCluster_ResourceGroup.DestroyGroup` of a VM's role: the VM stays.
    ///
    /// # Errors
    /// `Win32` not found.
    pub fn remove_role(&mut self, host: &HostName, group: &GroupName) -> Result<()> {
        self.group_mut(host, group)?;
        let cluster = self.cluster_mut(host)?;
        cluster.groups.remove(group);
        cluster.resources.retain(|_, it| it.group != *group);
        cluster.group_of_vm.retain(|_, it| it != group);
        self.touch();
        Ok(())
    }

    /// The role's state is that of its VM.
    pub(super) fn follow_in_cluster(&mut self, id: VmId) {
        for cluster in self.clusters.values_mut() {
            let Some(name) = cluster.group_of_vm.get(&id).cloned() else {
                continue;
            };
            let Some(group) = cluster.groups.get_mut(&name) else {
                continue;
            };
            let key = self
                .hosts
                .get(&group.owner)
                .and_then(|host| host.realized.get(&id));
            let Some(vm) = key.and_then(|key| self.systems.get(key)) else {
                continue;
            };
            let (state, of_vm) = match vm.power {
                PowerState::Running | PowerState::Paused => {
                    (GroupState::Online, ResourceState::Online)
                }
                PowerState::Off | PowerState::Saved => {
                    (GroupState::Offline, ResourceState::Offline)
                }
                PowerState::Starting | PowerState::Resuming => {
                    (GroupState::Pending, ResourceState::OnlinePending)
                }
                _ => (GroupState::Pending, ResourceState::OfflinePending),
            };
            group.state = state;
            if matches!(state, GroupState::Online | GroupState::Offline) {
                group.is_wanted_online = state == GroupState::Online;
            }
            for resource in cluster.resources.values_mut() {
                if resource.group == name && resource.resource_type == ResourceType::VirtualMachine
                {
                    resource.state = of_vm;
                }
            }
        }
    }

    fn vm_of_group(&self, host: &HostName, group: &GroupName) -> Result<(HostName, VmId)> {
        let cluster = self.live_cluster(host)?;
        let found = cluster.groups.get(group).ok_or_else(|| {
            Error::win32(Win32Error::GROUP_NOT_FOUND, format!("no group {group}"))
        })?;
        let vm = found.vm.ok_or_else(|| {
            Error::win32(
                Win32Error::INVALID_STATE,
                format!("{group} is no virtual machine"),
            )
        })?;
        let owner = found.owner.clone();
        if self.host(&owner)?.state == HostState::Down {
            return Err(Error::win32(
                Win32Error::NODE_NOT_AVAILABLE,
                format!("{owner}, which owns {group}, is down"),
            ));
        }
        Ok((owner, vm))
    }

    /// `BringOnline`: the VM starts. Begun when this returns; ask for the state.
    ///
    /// # Errors
    /// `Win32`.
    pub fn bring_online(&mut self, host: &HostName, group: &GroupName) -> Result<()> {
        let (owner, vm) = self.vm_of_group(host, group)?;
        match self.vm(&owner, vm)?.power {
            PowerState::Running | PowerState::Starting => Ok(()),
            _ => self.change_in_cluster(&owner, vm, 2),
        }
    }

    /// `TakeOffline`: the VM is saved, which is the usual offline action.
    ///
    /// # Errors
    /// `Win32`.
    pub fn take_offline(&mut self, host: &HostName, group: &GroupName) -> Result<()> {
        let (owner, vm) = self.vm_of_group(host, group)?;
        match self.vm(&owner, vm)?.power {
            PowerState::Off | PowerState::Saved => Ok(()),
            _ => self.change_in_cluster(&owner, vm, 6),
        }
    }

    fn change_in_cluster(&mut self, owner: &HostName, vm: VmId, requested: u16) -> Result<()> {
        self.request_state_change(owner, vm, requested)
            .map(|_| self.follow_in_cluster(vm))
            .map_err(|error| Error::win32(Win32Error::INVALID_STATE, error.to_string()))
    }

    /// `MoveToNewNode`: a running VM moves live, another at once.
    ///
    /// # Errors
    /// `Win32`: no such group or node, node down or paused, group busy.
    pub fn move_group(
        &mut self,
        host: &HostName,
        group: &GroupName,
        node: &HostName,
    ) -> Result<()> {
        let (owner, vm) = self.vm_of_group(host, group)?;
        let cluster = self.live_cluster(host)?;
        let target = cluster
            .nodes
            .get(node)
            .ok_or_else(|| Error::win32(Win32Error::NODE_NOT_FOUND, format!("no node {node}")))?;
        match target.state {
            NodeState::Up => {}
            NodeState::Paused => {
                return Err(Error::win32(
                    Win32Error::NODE_PAUSED,
                    format!("{node} is paused"),
                ));
            }
            NodeState::Down | NodeState::Joining => {
                return Err(Error::win32(
                    Win32Error::NODE_NOT_AVAILABLE,
                    format!("{node} is down"),
                ));
            }
        }
        let is_possible = cluster
            .resources_of(group)
            .all(|resource| resource.possible_owners.contains(node));
        if !is_possible {
            return Err(Error::win32(
                Win32Error::INVALID_STATE,
                format!("{node} is no possible owner of {group}"),
            ));
        }
        if owner == *node {
            return Ok(());
        }
        let request = MigrationRequest {
            destination: Some(node.clone()),
            kind: MigrationKind::Vm,
            folder: None,
        };
        self.begin_migration(&owner, vm, request)
            .map_err(|error| Error::win32(Win32Error::INVALID_STATE, error.to_string()))?;
        self.group_mut(host, group)?.state = GroupState::Pending;
        self.touch();
        Ok(())
    }

    /// `MSCluster_Node.Pause`.
    ///
    /// # Errors
    /// `Win32` when there is no such node, or a role cannot move.
    pub fn pause_node(&mut self, host: &HostName, node: &HostName, drain: Drain) -> Result<()> {
        let cluster = self.cluster_mut(host)?;
        let found = cluster
            .nodes
            .get_mut(node)
            .ok_or_else(|| Error::win32(Win32Error::NODE_NOT_FOUND, format!("no node {node}")))?;
        if found.state != NodeState::Up {
            return Err(Error::win32(
                Win32Error::INVALID_STATE,
                format!("{node} is not up"),
            ));
        }
        found.state = NodeState::Paused;
        found.is_drained = drain == Drain::MoveRoles;
        if drain == Drain::MoveRoles {
            let of_node = |group: &&Group| group.owner == *node && group.vm.is_some();
            let groups: Vec<GroupName> = cluster
                .groups
                .values()
                .filter(of_node)
                .map(|group| group.name.clone())
                .collect();
            for group in groups {
                let target = self.next_owner(host, &group)?;
                if let Some(target) = target {
                    self.move_group(host, &group, &target)?;
                }
            }
            self.move_volumes_from(node);
        }
        self.touch();
        Ok(())
    }

    /// `MSCluster_Node.Resume`. Roles stay where they are.
    ///
    /// # Errors
    /// `Win32` when there is no such node, or it is not paused.
    pub fn resume_node(&mut self, host: &HostName, node: &HostName) -> Result<()> {
        let cluster = self.cluster_mut(host)?;
        let found = cluster
            .nodes
            .get_mut(node)
            .ok_or_else(|| Error::win32(Win32Error::NODE_NOT_FOUND, format!("no node {node}")))?;
        if found.state != NodeState::Paused {
            return Err(Error::win32(
                Win32Error::INVALID_STATE,
                format!("{node} is not paused"),
            ));
        }
        found.state = NodeState::Up;
        found.is_drained = false;
        self.touch();
        Ok(())
    }

    /// The node that a group goes to when its own is not available.
    fn next_owner(&self, host: &HostName, group: &GroupName) -> Result<Option<HostName>> {
        let cluster = self.cluster_of(host);
        Ok(cluster.and_then(|cluster| self.best_owner(cluster, group)))
    }

    pub(super) fn best_owner(&self, cluster: &Cluster, group: &GroupName) -> Option<HostName> {
        let role = cluster.groups.get(group)?;
        let can = |node: &HostName| {
            *node != role.owner
                && cluster
                    .nodes
                    .get(node)
                    .is_some_and(|it| it.state == NodeState::Up)
                && cluster
                    .resources_of(group)
                    .all(|resource| resource.possible_owners.contains(node))
        };
        let preferred = role.preferred_owners.iter().find(|node| can(node));
        preferred.cloned().or_else(|| {
            let others = cluster.nodes.keys().filter(|node| can(node));
            others
                .min_by_key(|node| {
                    self.hosts
                        .get(*node)
                        .map_or(usize::MAX, |host| host.realized.len())
                })
                .cloned()
        })
    }

    /// Sets the nodes that a group would rather be on.
    ///
    /// # Errors
    /// `Win32` not found.
    pub fn set_preferred_owners(
        &mut self,
        host: &HostName,
        group: &GroupName,
        owners: Vec<HostName>,
    ) -> Result<()> {
        self.group_mut(host, group)?.preferred_owners = owners;
        self.touch();
        Ok(())
    }

    /// Sets a group's priority.
    ///
    /// # Errors
    /// `Win32` not found.
    pub fn set_priority(
        &mut self,
        host: &HostName,
        group: &GroupName,
        priority: u32,
    ) -> Result<()> {
        self.group_mut(host, group)?.priority = priority;
        self.touch();
        Ok(())
    }

    /// Sets the nodes that may own a resource.
    ///
    /// # Errors
    /// `Win32`: no such resource, a node that is none.
    pub fn set_possible_owners(
        &mut self,
        host: &HostName,
        resource: &ResourceName,
        owners: Vec<HostName>,
    ) -> Result<()> {
        let cluster = self.cluster_mut(host)?;
        if let Some(stranger) = owners
            .iter()
            .find(|owner| !cluster.nodes.contains_key(owner))
        {
            return Err(Error::win32(
                Win32Error::NODE_NOT_FOUND,
                format!("no node {stranger}"),
            ));
        }
        let found = cluster.resources.get_mut(resource).ok_or_else(|| {
            Error::win32(
                Win32Error::RESOURCE_NOT_FOUND,
                format!("no resource {resource}"),
            )
        })?;
        found.possible_owners = owners;
        self.touch();
        Ok(())
    }

    /// `MSCluster_ClusterSharedVolume.MoveToNewHost`.
    ///
    /// # Errors
    /// `Win32`: no such volume or node.
    pub fn move_volume(&mut self, host: &HostName, id: VolumeId, node: &HostName) -> Result<()> {
        let cluster = self.cluster_mut(host)?;
        let is_up = cluster
            .nodes
            .get(node)
            .is_some_and(|it| it.state == NodeState::Up);
        if !is_up {
            return Err(Error::win32(
                Win32Error::NODE_NOT_AVAILABLE,
                format!("{node} is not up"),
            ));
        }
        if !cluster.volumes.contains(&id) {
            return Err(Error::win32(
                Win32Error::RESOURCE_NOT_FOUND,
                "no such volume",
            ));
        }
        self.give_volume(id, node);
        self.touch();
        Ok(())
    }

    fn give_volume(&mut self, id: VolumeId, node: &HostName) {
        if let Ok(volume) = self.volume_mut(id)
            && let VolumeKind::Csv { owner, .. } = &mut volume.kind
        {
            *owner = node.clone();
        }
        for cluster in self.clusters.values_mut() {
            let group = cluster
                .resources
                .values()
                .find(|it| it.volume == Some(id))
                .map(|it| it.group.clone());
            if let Some(group) = group.and_then(|group| cluster.groups.get_mut(&group)) {
                group.owner = node.clone();
            }
        }
    }

    pub(super) fn move_volumes_from(&mut self, node: &HostName) {
        let Some(cluster) = self.cluster_of(node) else {
            return;
        };
        let up = |it: &&super::cluster::Node| it.state == NodeState::Up && it.host != *node;
        let Some(target) = cluster.nodes.values().find(up).map(|it| it.host.clone()) else {
            return;
        };
        let owned = |volume: &&super::Volume| matches!(&volume.kind, VolumeKind::Csv { owner, .. } if owner == node);
        let volumes: Vec<VolumeId> = self
            .storage
            .volumes
            .iter()
            .filter(owned)
            .map(|it| it.id)
            .collect();
        for id in volumes {
            self.give_volume(id, &target);
        }
    }
}
