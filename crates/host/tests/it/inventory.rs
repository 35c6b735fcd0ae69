//! What the driver makes of a node's rows, odd ones included.

use std::sync::atomic::Ordering;

use host::boundary::Inventory;
use host::facts::{
    Activity, CheckpointKind, ControllerKind, DiskBacking, GuestFamily, Health, HostGeneration,
    PowerState, ReplicationRole, RoleState, ServiceState,
};
use host::{CancelToken, ErrorKind};

use super::fake::{FakeEstate, row, texts, vm};
use super::fake_definition::{add_cluster, add_role};

fn calm() -> CancelToken {
    CancelToken::new()
}

#[test]
fn a_machine_is_told_with_its_disks_places_and_services() {
    let estate = FakeEstate::new(&["hv01"]);
    estate.nodes[0].add_vm(vm(1), "sql01", &["D:\\vm\\a.vhdx", "D:\\vm\\b.vhd"]);
    let report = estate.driver().inventory(&calm()).expect("an inventory");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.hosts[0].generation, Some(HostGeneration::Server2019));
    // The host stands among its machines in the table, and is none.
    assert_eq!(report.machines.len(), 1);
    let machine = &report.machines[0];
    assert_eq!(machine.id, vm(1));
    assert_eq!(machine.name, "sql01");
    assert_eq!(machine.generation, Some(2));
    assert_eq!(machine.power, PowerState::Running);
    assert_eq!(machine.health, Health::Ok);
    assert_eq!(machine.integration.backup, Some(ServiceState::Ok));
    assert_eq!(machine.guest.family, Some(GuestFamily::Windows));
    assert_eq!(machine.guest.os_version.as_deref(), Some("10.0.20348"));
    assert_eq!(machine.replication, ReplicationRole::None);
    let slots: Vec<String> = machine
        .disks
        .iter()
        .map(|it| it.slot.expect("a slot").to_string())
        .collect();
    assert_eq!(slots, ["SCSI 0:0", "SCSI 0:1"]);
    assert_eq!(
        machine.disks[1].path().expect("a path").as_str(),
        "D:\\vm\\b.vhd"
    );
}

#[test]
fn how_often_a_node_is_asked_does_not_depend_on_its_machines() {
    let count = |machines: u8| {
        let estate = FakeEstate::new(&["hv01"]);
        for number in 0..machines {
            estate.nodes[0].add_vm(vm(number), "x", &["D:\\vm\\a.vhdx"]);
        }
        estate.driver().inventory(&calm()).expect("an inventory");
        estate.nodes[0].lock().calls.len()
    };
    assert_eq!(count(1), count(100));
    assert!(count(1) < 30, "{} questions", count(1));
}

#[test]
fn one_machine_alone_is_told_as_among_all() {
    let estate = FakeEstate::new(&["hv01"]);
    for number in 1..4 {
        estate.nodes[0].add_vm(vm(number), "x", &["D:\\vm\\a.vhdx"]);
    }
    let driver = estate.driver();
    let report = driver.inventory(&calm()).expect("an inventory");
    let alone = driver.machine(vm(2), &calm()).expect("a machine");
    assert_eq!(
        report.machines.iter().find(|it| it.id == vm(2)),
        Some(&alone)
    );
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "a table: one row for each kind of disk"
)]
fn disks_that_are_no_files_are_told_apart() {
    let estate = FakeEstate::new(&["hv01"]);
    let node = &estate.nodes[0];
    node.add_vm(vm(1), "x", &["D:\\vm\\a.vhdx"]);
    let id = vm(1).to_string();
    let mut rows = node.lock();
    let parent = format!(
        "Msvm_ResourceAllocationSettingData.InstanceID=\"Microsoft:{id}\\\\C0FFEE00-0000-4000-8000-000000000001\\\\0\""
    );
    let drive = |tail: &str, subtype: &str, place: &str| {
        row(
            "Msvm_ResourceAllocationSettingData",
            &[
                ("InstanceID", &format!("Microsoft:{id}\\X\\0\\{tail}\\D")),
                ("ResourceSubType", subtype),
                ("Parent", &parent),
                ("AddressOnParent", place),
            ],
        )
    };
    let physical = drive("7", "Microsoft:Hyper-V:Physical Disk Drive", "7")
        .with("HostResource", texts(&["\\\\HV01\\root\\virtualization\\v2:Msvm_DiskDrive.CreationClassName=\"Msvm_DiskDrive\",DeviceID=\"Microsoft:353B3BE8\\\\2\""]));
    rows.of("Msvm_ResourceAllocationSettingData").push(physical);
    let empty = drive("8", "Microsoft:Hyper-V:Synthetic Disk Drive", "8");
    rows.of("Msvm_ResourceAllocationSettingData").push(empty);
    let medium = |tail: &str, subtype: &str| {
        row(
            "Msvm_StorageAllocationSettingData",
            &[
                (
                    "InstanceID",
                    &format!("Microsoft:{id}\\C0FFEE00-0000-4000-8000-000000000001\\0\\{tail}\\L"),
                ),
                ("ResourceSubType", subtype),
            ],
        )
        .with("HostResource", texts(&["D:\\x.vhdx"]))
    };
    let strange = medium("9", "Acme:Holographic Disk");
    rows.of("Msvm_StorageAllocationSettingData").push(strange);
    let optical = medium("10", "Microsoft:Hyper-V:Virtual CD/DVD Disk");
    rows.of("Msvm_StorageAllocationSettingData").push(optical);
    let shared = medium("11", "Microsoft:Hyper-V:Virtual Hard Disk")
        .with("PersistentReservationsSupported", "TRUE");
    rows.of("Msvm_StorageAllocationSettingData").push(shared);
    let channel = row(
        "Msvm_SyntheticFcPortSettingData",
        &[("InstanceID", &format!("Microsoft:{id}\\FC"))],
    );
    rows.of("Msvm_SyntheticFcPortSettingData").push(channel);
    drop(rows);
    let machine = estate.driver().machine(vm(1), &calm()).expect("a machine");
    let of = |location: u32| {
        let found = machine
            .disks
            .iter()
            .find(|it| it.slot.is_some_and(|slot| slot.location == location));
        &found.expect("a disk").backing
    };
    assert!(matches!(
        of(0),
        DiskBacking::Image {
            is_shared: None,
            ..
        }
    ));
    let DiskBacking::PassThrough { device } = of(7) else {
        panic!("{:?}", of(7))
    };
    assert_eq!(device, "Microsoft:353B3BE8\\2");
    assert_eq!(*of(8), DiskBacking::Empty);
    assert!(
        matches!(of(9), DiskBacking::Unknown { subtype } if subtype == "Acme:Holographic Disk")
    );
    assert!(matches!(
        of(11),
        DiskBacking::Image {
            is_shared: Some(true),
            ..
        }
    ));
    assert!(
        machine
            .disks
            .iter()
            .any(|it| it.backing == DiskBacking::FibreChannel)
    );
    assert_eq!(
        machine.disks.len(),
        6,
        "a DVD is no disk: {:?}",
        machine.disks
    );
}

#[test]
fn ide_controllers_count_by_their_address() {
    let estate = FakeEstate::new(&["hv01"]);
    let node = &estate.nodes[0];
    node.add_vm(vm(1), "x", &[]);
    let id = vm(1).to_string();
    let mut rows = node.lock();
    for address in ["1", "0"] {
        let controller = format!("Microsoft:{id}\\83F8638B-8DCA-4152-9EDA-2CA8B33039B4\\{address}");
        rows.of("Msvm_ResourceAllocationSettingData").push(row(
            "Msvm_ResourceAllocationSettingData",
            &[
                ("InstanceID", &controller),
                (
                    "ResourceSubType",
                    "Microsoft:Hyper-V:Emulated IDE Controller",
                ),
                ("Address", address),
            ],
        ));
    }
    let drive = row(
        "Msvm_ResourceAllocationSettingData",
        &[
            (
                "InstanceID",
                &format!("Microsoft:{id}\\83F8638B-8DCA-4152-9EDA-2CA8B33039B4\\1\\1\\D"),
            ),
            ("ResourceSubType", "Microsoft:Hyper-V:Synthetic Disk Drive"),
            (
                "Parent",
                &format!(
                    "Msvm_ResourceAllocationSettingData.InstanceID='Microsoft:{id}\\83F8638B-8DCA-4152-9EDA-2CA8B33039B4\\1'"
                ),
            ),
            ("AddressOnParent", "1"),
        ],
    );
    rows.of("Msvm_ResourceAllocationSettingData").push(drive);
    drop(rows);
    let machine = estate.driver().machine(vm(1), &calm()).expect("a machine");
    let slot = machine.disks[0].slot.expect("a slot");
    assert_eq!(
        (slot.controller, slot.number, slot.location),
        (ControllerKind::Ide, 1, 1)
    );
}

#[test]
fn odd_values_cost_a_fact_and_not_the_machine() {
    let estate = FakeEstate::new(&["hv01"]);
    let node = &estate.nodes[0];
    node.add_vm(vm(1), "x", &["D:\\vm\\a.vhdx"]);
    node.add_vm(vm(2), "y", &["D:\\vm\\b.vhdx"]);
    {
        let mut rows = node.lock();
        let system = rows.system(vm(1));
        system.set("EnabledState", "32787");
        system.set("OperationalStatus", texts(&["5", "32772", "0", "4242"]));
        system.set("ReplicationMode", "many");
        system.set("ElementName", "仮想マシン");
        let id = format!("Microsoft:{}", vm(1));
        let settings = rows
            .find("Msvm_VirtualSystemSettingData", &id)
            .expect("settings");
        settings.set("Version", "acht");
        settings.set("VirtualSystemSubType", "Microsoft:Hyper-V:SubType:9");
        settings.properties.remove("ElementName");
        // A row of nobody, and one that is no row of a machine at all.
        rows.of("Msvm_StorageAllocationSettingData").push(row(
            "Msvm_StorageAllocationSettingData",
            &[("InstanceID", "Microsoft:nobody\\X")],
        ));
        rows.of("Msvm_StorageAllocationSettingData")
            .push(row("Msvm_StorageAllocationSettingData", &[]));
        rows.of("Msvm_ComputerSystem")
            .push(row("Msvm_ComputerSystem", &[("Name", &vm(9).to_string())]));
    }
    let report = estate.driver().inventory(&calm()).expect("an inventory");
    assert_eq!(report.machines.len(), 2);
    let machine = &report.machines[0];
    assert_eq!(machine.name, "仮想マシン");
    assert_eq!(machine.power, PowerState::Critical(32_787));
    assert_eq!(machine.health, Health::LowSpace);
    assert_eq!(
        machine.activities,
        [Activity::Merging, Activity::Other(4242)]
    );
    assert_eq!(machine.version, None);
    assert_eq!(machine.generation, None);
    assert_eq!(report.machines[1].disks.len(), 1);
    assert!(
        report
            .problems
            .iter()
            .any(|it| it.text.contains(&vm(9).to_string())),
        "{:?}",
        report.problems
    );
}

#[test]
fn a_node_that_is_silent_hides_nobody_elses_machines() {
    let estate = FakeEstate::new(&["hv01", "hv02"]);
    estate.nodes[0].add_vm(vm(1), "x", &[]);
    estate.nodes[1].add_vm(vm(2), "y", &[]);
    estate.nodes[1].down.store(true, Ordering::SeqCst);
    let driver = estate.driver();
    let report = driver.inventory(&calm()).expect("an inventory");
    assert_eq!(
        report.machines.iter().map(|it| it.id).collect::<Vec<_>>(),
        [vm(1)]
    );
    assert_eq!(report.problems.len(), 1);
    assert_eq!(report.problems[0].kind, ErrorKind::Unreachable);
    // Nobody can say that it is gone: it may be on the silent node.
    let error = driver.machine(vm(2), &calm()).expect_err("silent");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    estate.nodes[1].down.store(false, Ordering::SeqCst);
    let error = driver.machine(vm(7), &calm()).expect_err("nowhere");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    estate.nodes[0].down.store(true, Ordering::SeqCst);
    estate.nodes[1].down.store(true, Ordering::SeqCst);
    let error = driver.inventory(&calm()).expect_err("all silent");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}

#[test]
fn a_machine_that_two_nodes_show_is_told_where_its_cluster_says() {
    let estate = FakeEstate::new(&["hv01", "hv02"]);
    for node in &estate.nodes {
        node.add_vm(vm(1), "x", &[]);
        let mut rows = node.lock();
        add_cluster(&mut rows, &["hv01", "hv02"]);
        add_role(&mut rows, &vm(1).to_string(), "HV02");
    }
    let report = estate.driver().inventory(&calm()).expect("an inventory");
    assert_eq!(report.machines.len(), 1);
    let machine = &report.machines[0];
    assert_eq!(machine.node.as_str(), "hv02");
    let role = machine.role.as_ref().expect("a role");
    assert_eq!(
        (role.state, role.priority, role.saves_when_offline),
        (RoleState::Online, Some(2000), Some(true))
    );
    assert_eq!(report.hosts[0].cluster.as_deref(), Some("CL1"));
}

#[test]
fn a_migrating_machine_is_followed_by_its_id() {
    let estate = FakeEstate::new(&["hv01", "hv02"]);
    estate.nodes[0].add_vm(vm(1), "x", &[]);
    let driver = estate.driver();
    assert_eq!(
        driver.locate(vm(1), &calm()).expect("there").moved_from,
        None
    );
    estate.migrate(vm(1), 0, 1);
    let location = driver.locate(vm(1), &calm()).expect("there");
    assert_eq!(location.node.as_str(), "hv02");
    assert_eq!(location.moved_from.expect("a move").as_str(), "hv01");
    assert_eq!(
        driver.locate(vm(1), &calm()).expect("there").moved_from,
        None
    );
}

#[test]
fn checkpoints_are_told_by_kind_and_not_by_name() {
    let estate = FakeEstate::new(&["hv01"]);
    let node = &estate.nodes[0];
    node.add_vm(vm(1), "x", &["D:\\vm\\a.vhdx"]);
    let kinds = [
        ("Microsoft:Hyper-V:Snapshot:Realized", CheckpointKind::User),
        (
            "Microsoft:Hyper-V:Snapshot:Recovery",
            CheckpointKind::Recovery,
        ),
        (
            "Microsoft:Hyper-V:Snapshot:Replica:Standard",
            CheckpointKind::Replica,
        ),
        ("Microsoft:Hyper-V:Snapshot:Missing", CheckpointKind::Other),
    ];
    for (number, (kind, _)) in (0_i64..).zip(kinds) {
        node.add_foreign(vm(1), "チェックポイント", kind, 1_700_000_000_000 + number);
    }
    let machine = estate.driver().machine(vm(1), &calm()).expect("a machine");
    let told: Vec<CheckpointKind> = machine.checkpoints.iter().map(|it| it.kind).collect();
    assert_eq!(told, kinds.map(|(_, kind)| kind));
    assert_eq!(
        machine.checkpoints[0].created.map(|it| it.0),
        Some(1_700_000_000_000)
    );
    assert_eq!(
        machine.disks.len(),
        1,
        "disks of checkpoints are not the machine's"
    );
}
