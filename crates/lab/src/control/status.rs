//! How everything is, in words.

use super::desk::ControlDesk;
use super::messages::{
    ClusterStatus, HostStatus, JobStatus, RoleStatus, StatusReport, VmStatus, VolumeStatus,
};
use crate::estate::{
    Activity, Cluster, Estate, GroupState, Host, HostState, Job, MergeState, NodeState, PowerState,
    Realm, VirtualMachine, Volume, VolumeKind, VolumeState,
};

impl ControlDesk {
    pub(super) fn status(&self) -> StatusReport {
        let parts = &self.parts;
        let mut report = parts.estate.read(|estate| StatusReport {
            simulated: true,
            folder: parts.folder.display().to_string(),
            process: std::process::id(),
            time: estate.now().to_string(),
            speed: parts.speed,
            hosts: estate.hosts().map(|it| self.host(estate, it)).collect(),
            clusters: estate.clusters().map(cluster).collect(),
            volumes: estate
                .storage()
                .volumes()
                .iter()
                .map(|it| volume(estate, it))
                .collect(),
            vms: estate
                .systems()
                .filter(|vm| vm.realm == Realm::Realized)
                .map(|it| vm(estate, it))
                .collect(),
            jobs: estate
                .hosts()
                .flat_map(|host| estate.jobs_on(&host.name))
                .filter(|job| !job.state.is_over())
                .map(|it| job(estate, it))
                .collect(),
            armed: Vec::new(),
        });
        report
            .vms
            .sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
        report.armed = self.armed();
        report
    }

    fn host(&self, estate: &Estate, host: &Host) -> HostStatus {
        let cluster = estate.cluster_of(&host.name);
        let node = cluster.and_then(|it| it.nodes.get(&host.name));
        HostStatus {
            name: host.name.to_string(),
            state: match host.state {
                HostState::Up => "up",
                HostState::Down => "down",
            }
            .to_owned(),
            in_cluster: node.map(|it| {
                match it.state {
                    NodeState::Up => "up",
                    NodeState::Down => "down",
                    NodeState::Paused if it.is_drained => "drained",
                    NodeState::Paused => "paused",
                    NodeState::Joining => "joining",
                }
                .to_owned()
            }),
            cluster: cluster.map(|it| it.name.to_string()),
            windows: host.windows.name().to_owned(),
            address: self
                .parts
                .addresses
                .get(&host.name)
                .map(|it| format!("http://{it}")),
            smb_port: self.parts.smb_ports.get(&host.name).copied(),
            vms: host.vm_count(),
        }
    }
}

fn cluster(cluster: &Cluster) -> ClusterStatus {
    let of_vms = cluster.groups.values().filter(|group| group.vm.is_some());
    ClusterStatus {
        name: cluster.name.to_string(),
        nodes: cluster.nodes.keys().map(ToString::to_string).collect(),
        roles: of_vms
            .map(|group| RoleStatus {
                name: group.name.to_string(),
                owner: group.owner.to_string(),
                state: match group.state {
                    GroupState::Online => "online",
                    GroupState::Offline => "offline",
                    GroupState::Failed => "failed",
                    GroupState::PartiallyOnline => "partially-online",
                    GroupState::Pending => "pending",
                }
                .to_owned(),
            })
            .collect(),
    }
}

fn volume(estate: &Estate, volume: &Volume) -> VolumeStatus {
    let (of, owner) = match &volume.kind {
        VolumeKind::Local { host, .. } => (Some(host.to_string()), None),
        VolumeKind::Csv { cluster, owner, .. } => {
            (Some(cluster.to_string()), Some(owner.to_string()))
        }
        VolumeKind::Share { .. } => (None, None),
    };
    VolumeStatus {
        path: volume.path(),
        of,
        owner,
        state: match volume.state {
            VolumeState::Online => "online",
            VolumeState::Redirected => "redirected",
            VolumeState::NoAccess => "no-access",
            VolumeState::Maintenance => "maintenance",
        }
        .to_owned(),
        capacity_bytes: volume.capacity_bytes,
        free_bytes: estate.storage().free_bytes(volume.id),
        folder: volume.backing.display().to_string(),
    }
}

/// What a VM's state is called.
pub(super) fn power(state: PowerState) -> &'static str {
    match state {
        PowerState::Running => "running",
        PowerState::Off => "off",
        PowerState::Stopping => "stopping",
        PowerState::Saved => "saved",
        PowerState::Paused => "paused",
        PowerState::Starting => "starting",
        PowerState::Saving => "saving",
        PowerState::Pausing => "pausing",
        PowerState::Resuming => "resuming",
    }
}

fn activity(activity: Activity) -> &'static str {
    match activity {
        Activity::CreatingCheckpoint => "creating-checkpoint",
        Activity::ApplyingCheckpoint => "applying-checkpoint",
        Activity::DeletingCheckpoint => "deleting-checkpoint",
        Activity::MergingDisks => "merging",
        Activity::Exporting => "exporting",
        Activity::Migrating => "migrating",
        Activity::ChangingState => "changing-state",
        Activity::Modifying => "modifying",
    }
}

pub(super) fn vm(estate: &Estate, vm: &VirtualMachine) -> VmStatus {
    let users = vm.checkpoints.values().filter(|it| it.kind.is_user());
    let checkpoints = users.count();
    let doing = vm
        .activity
        .map(|(it, _)| activity(it))
        .or_else(|| vm.merging.map(|_| "merging"));
    VmStatus {
        name: vm.settings.name.clone(),
        id: vm.id.to_string(),
        node: vm.host.to_string(),
        state: power(vm.power).to_owned(),
        doing: doing.map(str::to_owned),
        merges_suspended: vm.merge_state == MergeState::Suspended,
        role: estate
            .cluster_of(&vm.host)
            .and_then(|it| it.group_of(vm.id))
            .map(|it| it.name.to_string()),
        checkpoints,
        recovery_checkpoints: vm.checkpoints.len().saturating_sub(checkpoints),
        reference_points: vm.reference_points.len(),
    }
}

fn job(estate: &Estate, job: &Job) -> JobStatus {
    let vm = job.system.and_then(|key| estate.system(key));
    let doing = vm.and_then(|vm| match vm.activity {
        Some((it, id)) if id == job.id => Some(activity(it)),
        _ if vm.merging == Some(job.id) => Some("merging"),
        _ => None,
    });
    JobStatus {
        id: job.id.to_string(),
        host: job.host.to_string(),
        doing: doing.map(str::to_owned),
        vm: vm.map(|it| it.settings.name.clone()),
        percent: job.percent_complete(estate.now()),
        left_ms: u64::try_from(job.ends.since(estate.now()).as_millis()).unwrap_or(u64::MAX),
    }
}
