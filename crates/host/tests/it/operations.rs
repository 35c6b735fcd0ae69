//! Power, checkpoints of operators, clusters, moves.

use host::boundary::{ClusterMembership, Mobility, Power, StopMode, UserCheckpoints};
use host::checkpoint::{DeleteScope, MergeState, UserCheckpointKind, UserCheckpointRequest};
use host::cluster::{
    MigrationKind, MigrationRequest, NodeState, RoleSpec, RoleTarget, VolumeAccess,
};
use host::definition::{ExportRequest, ExportStorage};
use host::facts::{PowerState, RoleState};
use host::ids::{CheckpointId, CheckpointRef, NodeName};
use host::path::HostPath;
use host::{CancelToken, ErrorKind};

use super::fake::{Act, FakeEstate, row, texts, vm};
use super::fake_definition::{add_cluster, add_role};

fn calm() -> CancelToken {
    CancelToken::new()
}

fn estate() -> FakeEstate {
    let estate = FakeEstate::new(&["hv01", "hv02"]);
    estate.nodes[0].add_vm(vm(1), "sql01", &["D:\\vm\\a.vhdx"]);
    estate
}

fn node(text: &str) -> NodeName {
    NodeName::new(text).expect("a name")
}

#[test]
fn states_are_reached_and_reached_again_without_asking() {
    let estate = estate();
    let driver = estate.driver();
    let asked = || estate.nodes[0].calls("RequestStateChange");
    driver.start(vm(1), &calm()).expect("it runs");
    assert_eq!(asked(), 0);
    for (mode, state) in [
        (StopMode::Pause, PowerState::Paused),
        (StopMode::Save, PowerState::Saved),
        (StopMode::TurnOff, PowerState::Off),
    ] {
        driver.stop(vm(1), mode, &calm()).expect("stopped");
        assert_eq!(driver.power_state(vm(1), &calm()).expect("a state"), state);
    }
    driver.start(vm(1), &calm()).expect("started");
    assert_eq!(asked(), 4);
    driver
        .stop(vm(1), StopMode::Shutdown, &calm())
        .expect("shut down");
    assert_eq!(
        driver.power_state(vm(1), &calm()).expect("a state"),
        PowerState::Off
    );
    assert_eq!(asked(), 4, "the guest was asked, not the plug pulled");
}

#[test]
fn a_state_that_is_not_reached_is_an_error() {
    let estate = estate();
    estate.nodes[0].act("RequestStateChange", Act::Vanish { with_effect: false });
    let error = estate
        .driver()
        .stop(vm(1), StopMode::Save, &calm())
        .expect_err("not saved");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    estate.nodes[0].act("RequestStateChange", Act::Return(32_775));
    let error = estate
        .driver()
        .stop(vm(1), StopMode::Save, &calm())
        .expect_err("refused");
    assert_eq!(
        (error.kind(), error.code().map(|it| it.0)),
        (ErrorKind::State, Some(32_775))
    );
}

fn user(estate: &FakeEstate, kind: UserCheckpointKind) -> CheckpointRef {
    let request = UserCheckpointRequest {
        vm: vm(1),
        name: "before the patch".to_owned(),
        kind,
    };
    let made = estate
        .driver()
        .create_checkpoint(&request, &calm())
        .expect("a checkpoint");
    made.reference
}

#[test]
fn an_operators_checkpoint_is_made_named_and_deleted_with_its_merge_watched() {
    let estate = estate();
    let driver = estate.driver();
    let reference = user(&estate, UserCheckpointKind::AsSet);
    assert_eq!(estate.nodes[0].checkpoints(vm(1))[0].1, "before the patch");
    driver
        .rename_checkpoint(&reference, "kept", &calm())
        .expect("renamed");
    assert_eq!(estate.nodes[0].checkpoints(vm(1))[0].1, "kept");
    let released = driver
        .delete_checkpoint(&reference, DeleteScope::One, &calm())
        .expect("deleted");
    assert_eq!(released.merge, MergeState::Done);
    assert_eq!(estate.nodes[0].checkpoints(vm(1)), []);
}

#[test]
fn the_kind_of_a_checkpoint_is_set_for_it_alone() {
    let estate = estate();
    let setting = || {
        let id = format!("Microsoft:{}", vm(1));
        let mut rows = estate.nodes[0].lock();
        let settings = rows
            .find("Msvm_VirtualSystemSettingData", &id)
            .expect("settings");
        settings.u64("UserSnapshotType").expect("a kind")
    };
    user(&estate, UserCheckpointKind::Production);
    assert_eq!(setting(), 3);
    estate.nodes[0].act("CreateSnapshot", Act::Return(32_768));
    let request = UserCheckpointRequest {
        vm: vm(1),
        name: "x".to_owned(),
        kind: UserCheckpointKind::Standard,
    };
    estate
        .driver()
        .create_checkpoint(&request, &calm())
        .expect_err("failed");
    assert_eq!(setting(), 3, "also after a failure");
}

#[test]
fn a_checkpoint_is_applied_to_a_machine_that_stands_and_a_backups_is_none_of_an_operator() {
    let estate = estate();
    let driver = estate.driver();
    let reference = user(&estate, UserCheckpointKind::AsSet);
    let error = driver
        .apply_checkpoint(&reference, &calm())
        .expect_err("it runs");
    assert_eq!(error.kind(), ErrorKind::State);
    driver.stop(vm(1), StopMode::TurnOff, &calm()).expect("off");
    driver
        .apply_checkpoint(&reference, &calm())
        .expect("applied");
    let id = estate.nodes[0].add_foreign(vm(1), "x", "Microsoft:Hyper-V:Snapshot:Recovery", 1);
    let backup = CheckpointRef {
        vm: vm(1),
        checkpoint: CheckpointId::new(id).expect("an id"),
    };
    let error = driver
        .delete_checkpoint(&backup, DeleteScope::One, &calm())
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[test]
fn an_export_without_disks_does_not_leave_merging_off() {
    let estate = estate();
    let driver = estate.driver();
    let reference = user(&estate, UserCheckpointKind::AsSet);
    let request = ExportRequest {
        folder: HostPath::new("D:\\export").expect("a path"),
        storage: ExportStorage::Leave,
    };
    driver
        .export_checkpoint(&reference, &request, &calm())
        .expect("exported");
    let id = format!("Microsoft:{}\\DeviceSpecificData", vm(1));
    let mut rows = estate.nodes[0].lock();
    let settings = rows
        .find("Msvm_DiskMergeSettingData", &id)
        .expect("settings");
    assert_eq!(settings.u64("EnabledState").expect("a state"), 1);
}

fn clustered() -> FakeEstate {
    let estate = estate();
    for node in &estate.nodes {
        add_cluster(&mut node.lock(), &["HV01", "HV02"]);
    }
    estate
}

#[test]
fn a_cluster_is_told_with_nodes_volumes_and_roles() {
    let estate = clustered();
    add_role(&mut estate.nodes[0].lock(), &vm(1).to_string(), "HV01");
    let clusters = estate.driver().clusters(&calm()).expect("clusters");
    assert_eq!(clusters.len(), 1, "told once, by whichever node");
    let states: Vec<NodeState> = clusters[0].nodes.iter().map(|it| it.state).collect();
    assert_eq!(
        states,
        [NodeState::Up, NodeState::Up, NodeState::Unknown],
        "-1 as an unsigned number"
    );
    assert_eq!(clusters[0].volumes[0].access, VolumeAccess::Redirected);
    assert_eq!(clusters[0].roles[0].0, vm(1));
    assert_eq!(clusters[0].roles[0].1.state, RoleState::Online);
    assert_eq!(
        FakeEstate::new(&["hv09"])
            .driver()
            .clusters(&calm())
            .expect("none"),
        []
    );
}

#[test]
fn a_role_whose_machine_is_withheld_is_told_by_the_name_that_its_owner_knows() {
    let withhold = |estate: &FakeEstate| {
        for resource in estate.nodes[0].lock().of("MSCluster_Resource") {
            resource.properties.remove("PrivateProperties");
        }
    };
    let estate = clustered();
    add_role(&mut estate.nodes[0].lock(), "SQL01", "HV01");
    withhold(&estate);
    let driver = estate.driver();
    let told = driver.clusters(&calm()).expect("clusters").remove(0);
    assert_eq!(told.roles.len(), 1);
    assert_eq!(told.roles[0].0, vm(1));
    // It has a role: nobody is asked to make another.
    driver
        .add_role(vm(1), &RoleSpec::default(), &calm())
        .expect("there already");
    assert_eq!(estate.nodes[0].calls("AddVirtualMachine"), 0);
    // Two machines of that name on the owner: neither is given the role.
    estate.nodes[0].add_vm(vm(2), "sql01", &[]);
    let told = driver.clusters(&calm()).expect("clusters").remove(0);
    assert_eq!(told.roles, []);
    // The owner does not have it, another node does.
    let estate = clustered();
    add_role(&mut estate.nodes[0].lock(), "sql01", "HV02");
    withhold(&estate);
    let told = estate.driver().clusters(&calm()).expect("clusters");
    assert_eq!(told[0].roles, []);
}

#[test]
fn a_role_is_made_set_and_removed() {
    let estate = clustered();
    let driver = estate.driver();
    let spec = RoleSpec {
        possible_owners: vec![node("HV01")],
        priority: Some(3000),
    };
    driver.add_role(vm(1), &spec, &calm()).expect("a role");
    let told = driver.clusters(&calm()).expect("clusters").remove(0);
    assert_eq!(told.roles[0].1.priority, Some(3000));
    let owners = estate.nodes[0].lock().of("MSCluster_Resource")[0]
        .texts("TestOwners")
        .expect("texts");
    assert_eq!(owners, ["HV01"]);
    driver
        .set_role(vm(1), RoleTarget::Offline, &calm())
        .expect("offline");
    assert_eq!(
        estate.nodes[0].lock().of("MSCluster_ResourceGroup")[0].text_ref("State"),
        Some("1")
    );
    driver
        .set_role(vm(1), RoleTarget::Online, &calm())
        .expect("online");
    driver.remove_role(vm(1), &calm()).expect("removed");
    let error = driver
        .set_role(vm(1), RoleTarget::Online, &calm())
        .expect_err("no role");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn moves_are_seen_and_a_silent_node_is_no_move() {
    let estate = estate();
    let driver = estate.driver();
    let known = [(vm(1), node("hv01"))];
    assert_eq!(driver.moves(&known, &calm()).expect("moves"), []);
    estate.migrate(vm(1), 0, 1);
    let moves = driver.moves(&known, &calm()).expect("moves");
    assert_eq!(moves[0].to.as_ref().map(NodeName::as_str), Some("hv02"));
    estate.nodes[0]
        .down
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let known = [(vm(5), node("hv01")), (vm(6), node("hv02"))];
    let moves = driver.moves(&known, &calm()).expect("moves");
    assert_eq!(
        moves
            .iter()
            .map(|it| (it.vm, it.to.clone()))
            .collect::<Vec<_>>(),
        [(vm(6), None)]
    );
}

#[test]
fn a_migration_that_does_not_arrive_is_told() {
    let estate = clustered();
    add_role(&mut estate.nodes[0].lock(), &vm(1).to_string(), "HV01");
    let request = MigrationRequest {
        vm: vm(1),
        what: MigrationKind::Machine { to: node("hv02") },
    };
    // The fake's cluster takes the order and does nothing.
    let error = estate
        .driver()
        .migrate(&request, &calm())
        .expect_err("it stays");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(estate.nodes[0].calls("MoveToNewNode"), 1);
    let here = MigrationRequest {
        vm: vm(1),
        what: MigrationKind::Machine {
            to: node("HV01.example.net"),
        },
    };
    assert_eq!(
        estate
            .driver()
            .migrate(&here, &calm())
            .expect("there already")
            .node,
        node("hv01")
    );
}

#[test]
fn a_role_without_private_properties_is_known_by_its_name_unless_two_have_it() {
    use host::boundary::Inventory;
    let estate = clustered();
    let resource = |group: &str| {
        row(
            "MSCluster_Resource",
            &[
                ("Name", "Virtual Machine sql01"),
                ("Type", "virtual machine"),
                ("OwnerGroup", group),
                ("OwnerNode", "HV01"),
            ],
        )
        .with("Ignored", texts(&["x"]))
    };
    estate.nodes[0]
        .lock()
        .of("MSCluster_Resource")
        .push(resource("g1"));
    let machine = estate.driver().machine(vm(1), &calm()).expect("a machine");
    assert_eq!(machine.role.expect("a role").group, "g1");
    estate.nodes[0]
        .lock()
        .of("MSCluster_Resource")
        .push(resource("g2"));
    let machine = estate.driver().machine(vm(1), &calm()).expect("a machine");
    assert_eq!(machine.role, None);
}
