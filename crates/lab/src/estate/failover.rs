//! Hosts that lose power and come back, and what their cluster makes of it.
//!
//! ```text
//!   node lost ─► its VMs lose power, its jobs are gone ─► after a while each group starts on another node, high priority first
//!   host back ─► groups that found no node start again; VMs that ran start, as their settings say
//! ```
//!
//! **Invariants.** A VM stands as it was on its disks. What is not clustered stays with its host.

use super::Estate;
use super::cluster::{Group, GroupState, GroupType, NodeState};
use super::host::HostState;
use super::ids::{ClusterName, GroupName, HostName, JobId, SystemKey, VmId};
use super::switch::Switch;
use super::vm::{MergeState, PowerState, Realm, StartAction};
use super::work::Event;
use crate::{Error, Result};

impl Estate {
    /// A host loses power. What it ran stands as it was on the disks.
    ///
    /// # Errors
    /// `NotFound`; `Io`.
    pub fn crash_host(&mut self, name: &HostName) -> Result<()> {
        self.host(name)?;
        let jobs: Vec<JobId> = self.jobs_on(name).map(|job| job.id).collect();
        for id in jobs {
            self.kill_job(id, "the host is gone");
            self.jobs.remove(&id);
        }
        // Migrations that come in from elsewhere fail there.
        let incoming =
            |job: &&super::Job| job.destination.as_ref() == Some(name) && !job.state.is_over();
        let incoming: Vec<JobId> = self
            .jobs
            .values()
            .filter(incoming)
            .map(|job| job.id)
            .collect();
        for id in incoming {
            self.kill_job(id, "the destination is gone");
        }
        let planned: Vec<SystemKey> = self
            .hosts
            .get(name)
            .into_iter()
            .flat_map(|it| it.planned.values().copied())
            .collect();
        for key in planned {
            self.forget_system(key);
        }
        let keys: Vec<SystemKey> = self
            .hosts
            .get(name)
            .into_iter()
            .flat_map(|it| it.realized.values().copied())
            .collect();
        let mut restart = Vec::new();
        for key in keys {
            self.crash_vm(key, &mut restart)?;
        }
        self.drop_planned_of_lost_migrations(name);
        if let Some(host) = self.hosts.get_mut(name) {
            host.state = HostState::Down;
            host.restart = restart;
        }
        self.move_volumes_from(name);
        self.schedule_failovers(name);
        self.touch();
        Ok(())
    }

    fn crash_vm(&mut self, key: SystemKey, restart: &mut Vec<SystemKey>) -> Result<()> {
        let survives = self.switches.is_kind(Switch::TrackingSurvivesPowerLoss);
        let vm = self.vm_mut(key)?;
        let held = vm.power.holds_disks();
        vm.activity = None;
        vm.merging = None;
        vm.requested = 12;
        vm.merge_state = MergeState::Enabled;
        if held {
            restart.push(key);
            self.cut_power(key)?;
            if !survives {
                for (_, place, _) in self.disk_places(key)? {
                    self.storage.lose_tracking(&place);
                }
            }
        }
        Ok(())
    }

    /// Targets of migrations from a host that is gone forget what they were preparing.
    fn drop_planned_of_lost_migrations(&mut self, source: &HostName) {
        let ids: Vec<VmId> = self
            .hosts
            .get(source)
            .into_iter()
            .flat_map(|it| it.realized.keys().copied())
            .collect();
        let doomed: Vec<SystemKey> = self
            .systems
            .values()
            .filter(|vm| {
                vm.realm == Realm::Planned
                    && vm.migrates_from.as_ref() == Some(source)
                    && ids.contains(&vm.id)
            })
            .map(|vm| vm.key)
            .collect();
        for key in doomed {
            self.forget_system(key);
        }
    }

    fn schedule_failovers(&mut self, name: &HostName) {
        let Some(cluster) = self.hosts.get(name).and_then(|host| host.cluster.clone()) else {
            return;
        };
        let lasts = self.timings.failover;
        let Some(found) = self.clusters.get_mut(&cluster) else {
            return;
        };
        if let Some(node) = found.nodes.get_mut(name) {
            node.state = NodeState::Down;
        }
        let mut lost: Vec<(u32, GroupName)> = found
            .groups
            .values_mut()
            .filter(|group| group.owner == *name && group.volume_free())
            .map(|group| {
                group.state = GroupState::Pending;
                (group.priority, group.name.clone())
            })
            .collect();
        lost.sort_by(|left, right| right.0.cmp(&left.0).then(left.1.cmp(&right.1)));
        for (_, group) in lost {
            self.timeline
                .schedule_in(lasts, Event::Failover(cluster.clone(), group));
        }
    }

    /// A group whose node is gone starts elsewhere, if there is anywhere.
    pub(super) fn fail_over(&mut self, cluster: &ClusterName, group: &GroupName) {
        let Some(found) = self.clusters.get(cluster) else {
            return;
        };
        let Some(role) = found.groups.get(group) else {
            return;
        };
        let owner_is_up = found
            .nodes
            .get(&role.owner)
            .is_some_and(|it| it.state == NodeState::Up);
        if owner_is_up {
            return;
        }
        let (owner, vm, online) = (role.owner.clone(), role.vm, role.is_wanted_online);
        let target = self.best_owner(found, group);
        let role = self
            .clusters
            .get_mut(cluster)
            .and_then(|it| it.groups.get_mut(group));
        let Some(role) = role else {
            return;
        };
        let Some(target) = target else {
            role.state = GroupState::Failed;
            return;
        };
        role.owner = target.clone();
        role.state = GroupState::Online;
        if let Some(vm) = vm {
            let key = self
                .hosts
                .get(&owner)
                .and_then(|it| it.realized.get(&vm))
                .copied();
            if let Some(key) = key {
                self.move_system(key, &target);
                self.lose_reference_points_of(key, Switch::TrackingSurvivesPowerLoss);
                self.timeline
                    .schedule_in(self.timings.guest_tick, Event::LookForMerges(key));
            }
            self.follow_in_cluster(vm);
            if online
                && self.request_state_change(&target, vm, 2).is_err()
                && let Some(role) = self
                    .clusters
                    .get_mut(cluster)
                    .and_then(|it| it.groups.get_mut(group))
            {
                role.state = GroupState::Failed;
            }
        }
        self.touch();
    }

    /// Starts a host that is down; it answers after a while.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when it is up.
    pub fn start_host(&mut self, name: &HostName) -> Result<()> {
        if self.host(name)?.state == HostState::Up {
            return Err(Error::invalid(format!("{name} is up")));
        }
        let lasts = self.timings.boot;
        self.timeline
            .schedule_in(lasts, Event::HostIsUp(name.clone()));
        Ok(())
    }

    pub(super) fn host_is_up(&mut self, name: &HostName) {
        let now = self.now();
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        host.state = HostState::Up;
        host.booted = now;
        let restart = std::mem::take(&mut host.restart);
        let cluster = host.cluster.clone();
        let mut failed = Vec::new();
        if let Some(cluster) = cluster.as_ref().and_then(|it| self.clusters.get_mut(it)) {
            if let Some(node) = cluster.nodes.get_mut(name) {
                node.state = NodeState::Up;
            }
            let waiting = cluster
                .groups
                .values_mut()
                .filter(|it| it.state == GroupState::Failed);
            failed = waiting
                .map(|group| {
                    group.state = GroupState::Online;
                    (
                        group.owner.clone(),
                        group.name.clone(),
                        group.vm,
                        group.is_wanted_online,
                    )
                })
                .collect();
        }
        for (owner, group, vm, online) in failed {
            match (vm, owner == *name) {
                (Some(vm), true) => {
                    self.follow_in_cluster(vm);
                    if online {
                        self.start_again(name, vm);
                    }
                }
                _ => {
                    if let Some(cluster) = &cluster {
                        self.fail_over(cluster, &group);
                    }
                }
            }
        }
        for key in restart {
            let is_here = self.systems.get(&key).filter(|vm| vm.host == *name);
            let starts = is_here.filter(|vm| {
                vm.settings.start_action != StartAction::Nothing
                    && vm.power == PowerState::Off
                    && vm.activity.is_none()
            });
            if let Some(id) = starts.map(|vm| vm.id) {
                self.start_again(name, id);
            }
        }
        let keys: Vec<SystemKey> = self.vms_on(name).map(|vm| vm.key).collect();
        for key in keys {
            self.timeline
                .schedule_in(self.timings.guest_tick, Event::LookForMerges(key));
        }
        self.touch();
    }

    /// A start nobody waits for: when it is refused, the VM stays off, which is what an operator would see.
    fn start_again(&mut self, host: &HostName, id: VmId) {
        if self.request_state_change(host, id, 2).is_err() {
            self.follow_in_cluster(id);
        }
    }
}

impl Group {
    /// Groups of volumes are given away at once, not failed over.
    fn volume_free(&self) -> bool {
        self.group_type != GroupType::AvailableStorage
    }
}
