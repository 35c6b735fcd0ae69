//! Failover clusters.

use std::time::Duration;

use lab::estate::{
    Answer, CheckpointRequest, ClusterName, ConsistencyLevel, Drain, Estate, EstateOptions, Fault,
    FaultKind, GroupName, GroupState, HostName, HostState, NodeState, PowerState, ResourceName,
    Switch, Trigger, VmId, VolumeKind, WindowsGeneration,
};
use lab::guest::{Consistency, GuestOs, Health};
use lab::{Error, ErrorKind, Win32Error};
use tempfile::TempDir;

use super::rig::{Rig, path, spec};

/// Three nodes, one shared volume, one VM that is a role; the rig's host is the first node.
pub fn cluster() -> Rig {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let mut estate = Estate::new(EstateOptions::seeded(21));
    let nodes = ["N1", "N2", "N3"].map(HostName::new);
    for node in &nodes {
        estate
            .add_host(node, WindowsGeneration::Server2022, "example.net")
            .unwrap();
        super::rig::add_volume(&mut estate, &folder, node, 'C');
    }
    let cluster = ClusterName::new("CL1");
    estate.add_cluster(&cluster, "example.net", &nodes).unwrap();
    let kind = VolumeKind::Csv {
        cluster,
        name: "Volume1".into(),
        owner: nodes[0].clone(),
    };
    estate
        .add_volume(kind, folder.path().join("csv1"), 100 << 30)
        .unwrap();
    let mut role = spec("sql01", GuestOs::Windows);
    role.folder = path(r"C:\ClusterStorage\Volume1\sql01");
    let vm = estate.add_vm(&nodes[0], role).unwrap();
    estate.make_highly_available(&nodes[0], "sql01").unwrap();
    let mut rig = Rig {
        folder,
        estate,
        host: nodes[0].clone(),
        vm,
    };
    rig.start();
    rig.pass(10);
    rig
}

fn node(number: u32) -> HostName {
    HostName::new(format!("n{number}"))
}

fn win32(error: &Error) -> Win32Error {
    match error.kind() {
        ErrorKind::Win32(code) => code,
        other => panic!("{other:?}: {error}"),
    }
}

impl Rig {
    fn group(&self) -> (GroupState, HostName) {
        let cluster = self.estate.clusters().next().unwrap();
        let group = cluster.group_of(self.vm).unwrap();
        (group.state, group.owner.clone())
    }

    fn owner(&self) -> Vec<HostName> {
        let all = self.estate.systems().filter(|it| it.id == self.vm);
        all.map(|it| it.host.clone()).collect()
    }
}

#[test]
fn a_role_follows_its_vm() {
    let mut rig = cluster();
    assert_eq!(rig.group(), (GroupState::Online, node(1)));
    rig.request(3);
    assert_eq!(rig.group().0, GroupState::Offline);
    let name = GroupName::new("SQL01");
    rig.estate.bring_online(&node(2), &name).unwrap();
    assert_eq!(rig.group().0, GroupState::Pending);
    rig.pass(5);
    assert_eq!(rig.group().0, GroupState::Online);
    rig.estate.take_offline(&node(3), &name).unwrap();
    rig.pass(10);
    let vm = rig.estate.vm(&node(1), rig.vm).unwrap();
    assert_eq!(
        (rig.group().0, vm.power),
        (GroupState::Offline, PowerState::Saved)
    );
    let error = rig
        .estate
        .bring_online(&node(1), &GroupName::new("nobody"))
        .unwrap_err();
    assert_eq!(win32(&error), Win32Error::GROUP_NOT_FOUND);
}

#[test]
fn a_running_role_moves_live_and_its_checkpoint_with_it() {
    let mut rig = cluster();
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    let frozen = rig.frozen_files(id);
    let before = rig.bytes(&frozen);
    let name = GroupName::new("sql01");
    rig.estate.move_group(&node(3), &name, &node(2)).unwrap();
    rig.pass(5);
    assert_eq!(rig.group(), (GroupState::Pending, node(1)));
    assert!(rig.estate.planned(&node(2), rig.vm).is_ok());
    rig.pass(6);
    assert_eq!(rig.group(), (GroupState::Online, node(2)));
    assert_eq!(rig.owner(), [node(2)]);
    assert_eq!(
        rig.estate.vm(&node(1), rig.vm).err().unwrap().kind(),
        ErrorKind::NotFound
    );
    rig.host = node(2);
    rig.pass(20);
    assert!(rig.bytes(&frozen) == before);
    rig.convert(id).unwrap();
    rig.settle();
    rig.request(6);
    let live = rig.live_files();
    assert_eq!(rig.consistency(&live), Consistency::Crash);
}

#[test]
fn reference_points_stay_behind_unless_the_switch_says_otherwise() {
    for (answer, count) in [(Answer::Pessimistic, 0), (Answer::Optimistic, 1)] {
        let mut rig = cluster();
        rig.estate
            .set_switch(Switch::ReferencePointsMigrate, answer);
        let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
        rig.convert(id).unwrap();
        rig.settle();
        rig.estate
            .move_group(&node(1), &GroupName::new("sql01"), &node(2))
            .unwrap();
        rig.pass(11);
        let vm = rig.estate.vm(&node(2), rig.vm).unwrap();
        assert_eq!(vm.reference_points.len(), count, "{answer:?}");
        let points: Vec<_> = vm
            .reference_points
            .values()
            .flat_map(|it| it.disks.clone())
            .collect();
        rig.host = node(2);
        let live = rig.live_files();
        for ((_, limit), file) in points.iter().zip(&live) {
            rig.estate
                .disk_changes(&node(2), file, limit, 0, 1 << 20)
                .unwrap();
        }
    }
}

#[test]
fn groups_move_only_where_they_may() {
    let mut rig = cluster();
    let name = GroupName::new("sql01");
    let move_to = |rig: &mut Rig, target: &HostName| {
        rig.estate
            .move_group(&node(1), &name, target)
            .map_err(|error| win32(&error))
    };
    assert_eq!(
        move_to(&mut rig, &HostName::new("N9")),
        Err(Win32Error::NODE_NOT_FOUND)
    );
    rig.estate
        .pause_node(&node(1), &node(2), Drain::Keep)
        .unwrap();
    assert_eq!(move_to(&mut rig, &node(2)), Err(Win32Error::NODE_PAUSED));
    rig.estate.resume_node(&node(1), &node(2)).unwrap();
    let resource = ResourceName::new("Virtual Machine sql01");
    rig.estate
        .set_possible_owners(&node(1), &resource, vec![node(1), node(3)])
        .unwrap();
    assert_eq!(move_to(&mut rig, &node(2)), Err(Win32Error::INVALID_STATE));
    move_to(&mut rig, &node(3)).unwrap();
    assert_eq!(
        move_to(&mut rig, &node(3)),
        Err(Win32Error::INVALID_STATE),
        "already moving"
    );
    rig.pass(11);
    assert_eq!(rig.owner(), [node(3)]);
}

#[test]
fn a_drained_node_is_empty_and_its_volumes_are_elsewhere() {
    let mut rig = cluster();
    rig.estate
        .pause_node(&node(2), &node(1), Drain::MoveRoles)
        .unwrap();
    rig.pass(11);
    assert_ne!(rig.owner(), [node(1)]);
    assert_eq!(rig.estate.host(&node(1)).unwrap().vm_count(), 0);
    let csv = rig
        .estate
        .storage()
        .volumes()
        .iter()
        .find_map(|it| match &it.kind {
            VolumeKind::Csv { owner, .. } => Some(owner.clone()),
            _ => None,
        });
    assert_ne!(csv, Some(node(1)));
    let cluster = rig.estate.clusters().next().unwrap();
    assert_eq!(cluster.nodes[&node(1)].state, NodeState::Paused);
}

#[test]
fn a_node_that_crashes_loses_its_jobs_and_its_roles_start_elsewhere_from_their_disks() {
    let mut rig = cluster();
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    let frozen = rig.frozen_files(id);
    let before = rig.bytes(&frozen);
    rig.pass(7);
    let committed = rig
        .estate
        .vm(&rig.host, rig.vm)
        .unwrap()
        .guest()
        .unwrap()
        .committed();
    let started = rig.estate.convert_to_reference_point(&node(1), id).unwrap();
    rig.estate.crash_host(&node(1)).unwrap();
    assert_eq!(
        rig.estate.live_host(&node(1)).unwrap_err().kind(),
        ErrorKind::Unreachable
    );
    assert!(rig.estate.job(&node(1), started.job().unwrap()).is_err());
    assert_eq!(rig.group().0, GroupState::Pending);
    rig.pass(20);
    let owner = rig.owner()[0].clone();
    assert_ne!(owner, node(1));
    assert_eq!(rig.group(), (GroupState::Online, owner.clone()));
    rig.host = owner;
    let vm = rig.estate.vm(&rig.host, rig.vm).unwrap();
    assert_eq!(vm.guest().unwrap().health(), &Health::Working);
    assert!(vm.guest().unwrap().committed() >= committed);
    assert!(
        vm.checkpoint(id).is_some(),
        "the checkpoint is left for somebody to clean up"
    );
    assert!(rig.bytes(&frozen) == before);
    rig.convert(id).unwrap();
    rig.settle();
    rig.estate.start_host(&node(1)).unwrap();
    rig.pass(125);
    assert_eq!(rig.estate.host(&node(1)).unwrap().state, HostState::Up);
}

#[test]
fn tracking_after_a_crash_is_a_switch() {
    for answer in [Answer::Pessimistic, Answer::Optimistic] {
        let mut rig = cluster();
        rig.estate
            .set_switch(Switch::TrackingSurvivesPowerLoss, answer);
        let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
        rig.convert(id).unwrap();
        rig.settle();
        let vm = rig.estate.vm(&rig.host, rig.vm).unwrap();
        let limit = vm.reference_points.values().next().unwrap().disks[0]
            .1
            .clone();
        rig.estate.crash_host(&node(1)).unwrap();
        rig.pass(20);
        rig.host = rig.owner()[0].clone();
        let (host, file) = (rig.host.clone(), rig.live_files()[0].clone());
        let changes = rig.estate.disk_changes(&host, &file, &limit, 0, 1 << 20);
        assert_eq!(changes.is_ok(), answer == Answer::Optimistic);
    }
}

#[test]
fn a_migration_whose_node_crashes_leaves_one_vm() {
    for crashed in [1, 2] {
        let mut rig = cluster();
        rig.estate
            .move_group(&node(3), &GroupName::new("sql01"), &node(2))
            .unwrap();
        rig.pass(5);
        rig.estate.crash_host(&node(crashed)).unwrap();
        rig.pass(60);
        assert_eq!(rig.owner().len(), 1, "{crashed}");
        let owner = rig.owner()[0].clone();
        let vm = rig.estate.vm(&owner, rig.vm).unwrap();
        assert_eq!(vm.power, PowerState::Running);
        assert!(vm.activity.is_none());
        assert_eq!(rig.group(), (GroupState::Online, owner));
        let planned: usize = [1, 2, 3]
            .map(|it| rig.estate.planned_on(&node(it)).count())
            .iter()
            .sum();
        assert_eq!(planned, 0);
    }
}

#[test]
fn a_cluster_without_nodes_waits_for_one() {
    let mut rig = cluster();
    for number in [2, 3, 1] {
        rig.estate.crash_host(&node(number)).unwrap();
    }
    rig.pass(60);
    assert_eq!(rig.group().0, GroupState::Failed);
    rig.estate.start_host(&node(3)).unwrap();
    rig.pass(125);
    assert_eq!(rig.group(), (GroupState::Online, node(3)));
    assert_eq!(rig.owner(), [node(3)]);
}

#[test]
fn what_is_not_a_role_stays_with_its_host() {
    let mut rig = cluster();
    let mut local = spec("local", GuestOs::Linux);
    local.folder = path(r"C:\vm\local");
    let host = node(1);
    let id: VmId = rig.estate.add_vm(&host, local).unwrap();
    let started = rig.estate.request_state_change(&host, id, 2).unwrap();
    rig.wait(&started).unwrap();
    rig.estate.crash_host(&host).unwrap();
    rig.pass(60);
    let of = |rig: &Rig| rig.estate.vm(&node(1), id).unwrap().power;
    assert_eq!(of(&rig), PowerState::Off);
    rig.estate.start_host(&host).unwrap();
    rig.estate.advance(Duration::from_secs(125)).unwrap();
    assert_eq!(of(&rig), PowerState::Running);
}

#[test]
fn adding_a_vm_to_the_cluster_over_the_wire_is_a_switch() {
    let mut rig = cluster();
    let mut new = spec("new", GuestOs::Linux);
    new.folder = path(r"C:\ClusterStorage\Volume1\new");
    rig.estate.add_vm(&node(2), new).unwrap();
    let error = rig.estate.add_virtual_machine(&node(2), "new").unwrap_err();
    assert_eq!(win32(&error), Win32Error(5));
    rig.estate
        .set_switch(Switch::AddVirtualMachine, Answer::Optimistic);
    let error = rig.estate.add_virtual_machine(&node(1), "new").unwrap_err();
    assert_eq!(win32(&error), Win32Error::RESOURCE_NOT_FOUND);
    let group = rig.estate.add_virtual_machine(&node(2), "new").unwrap();
    let error = rig.estate.add_virtual_machine(&node(2), "new").unwrap_err();
    assert_eq!(win32(&error), Win32Error::ALREADY_EXISTS);
    rig.estate.bring_online(&node(1), &group).unwrap();
    rig.pass(3);
    rig.estate.remove_role(&node(1), &group).unwrap();
    assert_eq!(rig.estate.vms_named("NEW").count(), 1);
}

#[test]
fn a_node_can_be_told_to_crash_in_the_middle_of_a_job_or_at_a_moment() {
    let mut rig = cluster();
    let fault = Fault::next(FaultKind::NodeCrashes).on_host(node(1));
    rig.inject(fault.clone());
    let request = CheckpointRequest::recovery(ConsistencyLevel::Crash);
    rig.estate
        .create_checkpoint(&node(1), rig.vm, request)
        .unwrap();
    rig.pass(2);
    assert_eq!(rig.estate.host(&node(1)).unwrap().state, HostState::Down);
    rig.pass(20);
    let owner = rig.owner()[0].clone();
    let vm = rig.estate.vm(&owner, rig.vm).unwrap();
    assert!(vm.checkpoints.is_empty() && vm.activity.is_none());
    let later = rig.estate.now().after(Duration::from_secs(100));
    rig.inject(
        Fault::next(FaultKind::NodeCrashes)
            .on_host(owner.clone())
            .when(Trigger::At(later)),
    );
    rig.pass(99);
    assert_eq!(rig.estate.host(&owner).unwrap().state, HostState::Up);
    rig.pass(2);
    assert_eq!(rig.estate.host(&owner).unwrap().state, HostState::Down);
}
