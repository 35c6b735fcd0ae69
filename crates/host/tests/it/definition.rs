//! Machines from stored configuration and from a description; nothing is left of what failed.

use std::sync::Arc;

use host::boundary::{Definition, Inventory, Power, StopMode};
use host::custody::{CustodyLog, MemoryLog};
use host::definition::{
    DiskSpec, Identity, ImportRequest, MachineSpec, NicConnection, NicSpec, SavedState, spec_faults,
};
use host::facts::{ControllerKind, DiskSlot, PowerState};
use host::path::HostPath;
use host::{CancelToken, ErrorKind};

use super::fake::{Act, FakeEstate, row, vm};
use super::recovery::custody;

fn calm() -> CancelToken {
    CancelToken::new()
}

fn path(text: &str) -> HostPath {
    HostPath::new(text).expect("a path")
}

fn scsi(location: u32) -> DiskSlot {
    DiskSlot {
        controller: ControllerKind::Scsi,
        number: 0,
        location,
    }
}

fn estate() -> FakeEstate {
    let estate = FakeEstate::new(&["hv01", "hv02"]);
    let switch = row(
        "Msvm_VirtualEthernetSwitch",
        &[("Name", "AAAA-1"), ("ElementName", "LAN")],
    );
    estate.nodes[0]
        .lock()
        .of("Msvm_VirtualEthernetSwitch")
        .push(switch);
    estate
}

fn request(estate: &FakeEstate, identity: Identity) -> ImportRequest {
    ImportRequest {
        node: estate.nodes[0].name.clone(),
        configuration: path(&format!("D:\\restored\\{}.vmcx", vm(3))),
        identity,
        name: Some("sql01 restored".to_owned()),
        disks: vec![(scsi(0), path("D:\\restored\\system.vhdx"))],
        nics: NicConnection::AsStored,
        saved_state: SavedState::Drop,
    }
}

#[test]
fn a_stored_machine_comes_back_with_its_disks_where_they_lie_now() {
    let estate = estate();
    let driver = estate.driver();
    let log = Arc::new(MemoryLog::default());
    let defined = driver
        .import(
            &request(&estate, Identity::Keep),
            &custody(&log, 1),
            &calm(),
        )
        .expect("imported");
    assert_eq!(defined.vm, vm(3));
    let machine = driver.machine(vm(3), &calm()).expect("a machine");
    assert_eq!(machine.name, "sql01 restored");
    assert_eq!(machine.disks.len(), 1);
    assert_eq!(
        machine.disks[0].path().expect("a path").as_str(),
        "D:\\restored\\system.vhdx"
    );
    assert!(
        defined.notes.iter().any(|note| note.contains("data.vhdx")),
        "{:?}",
        defined.notes
    );
    // The switch is another one here, and found by its name in whatever case.
    let connection = estate.nodes[0]
        .lock()
        .of("Msvm_EthernetPortAllocationSettingData")[0]
        .clone();
    assert!(connection.texts("HostResource").expect("texts")[0].contains("AAAA-1"));
    assert!(log.open_entries().expect("entries").is_empty());
}

#[test]
fn two_machines_of_one_id_are_never_made() {
    let estate = estate();
    estate.nodes[1].add_vm(vm(3), "the original", &[]);
    let log = Arc::new(MemoryLog::default());
    let error = estate
        .driver()
        .import(
            &request(&estate, Identity::Keep),
            &custody(&log, 1),
            &calm(),
        )
        .expect_err("a twin");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(estate.nodes[0].calls("ImportSystemDefinition"), 0);
    let defined = estate
        .driver()
        .import(&request(&estate, Identity::New), &custody(&log, 1), &calm())
        .expect("with a new id");
    assert_ne!(defined.vm, vm(3));
}

#[test]
fn what_fails_halfway_is_taken_away() {
    for method in [
        "ModifyResourceSettings",
        "RemoveResourceSettings",
        "RealizePlannedSystem",
        "ModifySystemSettings",
    ] {
        let estate = estate();
        let driver = estate.driver();
        let log = Arc::new(MemoryLog::default());
        estate.nodes[0].act(method, Act::Return(32_768));
        driver
            .import(
                &request(&estate, Identity::Keep),
                &custody(&log, 1),
                &calm(),
            )
            .expect_err(method);
        let node = estate.nodes[0].name.clone();
        assert_eq!(
            driver.planned(&node, &calm()).expect("planned machines"),
            [],
            "{method}"
        );
        assert!(log.open_entries().expect("entries").is_empty(), "{method}");
        let error = driver.machine(vm(3), &calm()).expect_err("no machine");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

fn spec() -> MachineSpec {
    MachineSpec {
        name: "rebuilt".to_owned(),
        generation: 2,
        root: Some(path("D:\\vm")),
        memory_mib: 4096,
        processors: 2,
        disks: vec![
            DiskSpec {
                slot: scsi(0),
                path: path("D:\\vm\\a.vhdx"),
            },
            DiskSpec {
                slot: scsi(3),
                path: path("D:\\vm\\b.vhdx"),
            },
        ],
        nics: vec![
            NicSpec {
                name: "lan".to_owned(),
                mac: Some("00155D010203".to_owned()),
                switch: Some("lan".to_owned()),
            },
            NicSpec {
                name: "san".to_owned(),
                mac: None,
                switch: Some("no such switch".to_owned()),
            },
        ],
        notes: None,
    }
}

#[test]
fn a_described_machine_is_built_piece_by_piece() {
    let estate = estate();
    let driver = estate.driver();
    let log = Arc::new(MemoryLog::default());
    let node = estate.nodes[0].name.clone();
    let defined = driver
        .define(&node, &spec(), &custody(&log, 1), &calm())
        .expect("defined");
    assert_eq!(defined.notes.len(), 1, "{:?}", defined.notes);
    let machine = driver.machine(defined.vm, &calm()).expect("a machine");
    let slots: Vec<Option<DiskSlot>> = machine.disks.iter().map(|it| it.slot).collect();
    assert_eq!(slots, [Some(scsi(0)), Some(scsi(3))]);
    assert_eq!(machine.sizing.memory_mib, Some(4096));
    assert_eq!(machine.sizing.processors, Some(2));
    assert_eq!(machine.nics.len(), 2);
    assert_eq!(machine.nics[0].mac.as_deref(), Some("00155D010203"));
    assert_eq!(machine.nics[0].switch.as_deref(), Some("LAN"));
    assert_eq!(machine.power, PowerState::Off);
    assert!(log.open_entries().expect("entries").is_empty());
    driver.start(defined.vm, &calm()).expect("started");
    let error = driver.unregister(defined.vm, &calm()).expect_err("it runs");
    assert_eq!(error.kind(), ErrorKind::State);
    driver
        .stop(defined.vm, StopMode::TurnOff, &calm())
        .expect("off");
    driver.unregister(defined.vm, &calm()).expect("taken out");
    assert_eq!(
        driver
            .machine(defined.vm, &calm())
            .expect_err("gone")
            .kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn a_description_that_cannot_be_is_refused_before_anything_is_asked() {
    let mut wrong = spec();
    wrong.generation = 3;
    wrong.memory_mib = 0;
    wrong.disks[1].slot = scsi(0);
    wrong.disks.push(DiskSpec {
        slot: scsi(64),
        path: path("D:\\x.vhdx"),
    });
    assert_eq!(spec_faults(&wrong).len(), 4, "{:?}", spec_faults(&wrong));
    let estate = estate();
    let log = Arc::new(MemoryLog::default());
    let node = estate.nodes[0].name.clone();
    let error = estate
        .driver()
        .define(&node, &wrong, &custody(&log, 1), &calm())
        .expect_err("invalid");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(estate.nodes[0].lock().calls.is_empty());
}
