//! Migrations between hosts, of storage, and of both.

use lab::estate::{
    ConsistencyLevel, Fault, FaultKind, MigrationKind, MigrationRequest, PowerState, VolumeKind,
};
use lab::guest::{Consistency, Health};
use lab::{ErrorKind, ReturnCode};

use super::clusters::cluster;
use super::rig::{Rig, code, path};

fn storage(folder: &str) -> MigrationRequest {
    MigrationRequest {
        destination: None,
        kind: MigrationKind::Storage,
        folder: Some(path(folder)),
    }
}

#[test]
fn a_vm_and_its_storage_move_between_hosts_that_share_nothing() {
    let mut rig = Rig::new();
    let target = rig.add_host("HV02");
    rig.start();
    rig.pass(10);
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    let frozen = rig.frozen_files(id);
    let before = rig.bytes(&frozen);
    rig.pass(5);
    let source = rig.host.clone();
    let request = MigrationRequest {
        destination: Some(target.clone()),
        kind: MigrationKind::Vm,
        folder: None,
    };
    let started = rig.estate.migrate(&source, rig.vm, request).unwrap();
    assert_eq!(
        rig.wait(&started).unwrap_err().code,
        ReturnCode::Failed,
        "no access to the files"
    );
    assert_eq!(rig.estate.planned_on(&target).count(), 0);
    let request = MigrationRequest {
        destination: Some(target.clone()),
        kind: MigrationKind::VmAndStorage,
        folder: Some(path(r"D:\moved")),
    };
    let started = rig.estate.migrate(&source, rig.vm, request).unwrap();
    rig.wait(&started).unwrap();
    assert_eq!(
        rig.estate.vm(&source, rig.vm).err().unwrap().kind(),
        ErrorKind::NotFound
    );
    rig.host = target;
    assert!(
        rig.live_files()
            .iter()
            .all(|it| it.to_string().starts_with(r"D:\moved\"))
    );
    let frozen = rig.frozen_files(id);
    assert!(rig.bytes(&frozen) == before);
    rig.pass(10);
    assert!(rig.bytes(&frozen) == before);
    rig.convert(id).unwrap();
    rig.settle();
    rig.request(6);
    let live = rig.live_files();
    assert_eq!(rig.consistency(&live), Consistency::Crash);
    rig.start();
    let vm = rig.estate.vm(&rig.host, rig.vm).unwrap();
    assert_eq!(vm.guest().unwrap().health(), &Health::Working);
}

#[test]
fn files_that_moved_are_not_tracked() {
    let mut rig = Rig::new();
    rig.start();
    let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
    let point = rig.convert(id).unwrap();
    rig.settle();
    let (host, vm) = (rig.host.clone(), rig.vm);
    let limit = rig.estate.vm(&host, vm).unwrap().reference_points[&point].disks[0]
        .1
        .clone();
    let old = rig.estate.backing(&host, &rig.live_files()[0]).unwrap();
    let started = rig
        .estate
        .migrate(&host, vm, storage(r"C:\elsewhere"))
        .unwrap();
    rig.wait(&started).unwrap();
    let file = rig.live_files()[0].clone();
    assert_eq!(file, path(r"C:\elsewhere\sql01.vhdx"));
    assert!(!old.exists());
    let of = rig.estate.vm(&host, vm).unwrap();
    let configuration = rig.estate.backing(&host, &of.configuration_file()).unwrap();
    assert!(configuration.is_file() && configuration.to_string_lossy().contains("HV01-C"));
    let error = rig
        .estate
        .disk_changes(&host, &file, &limit, 0, 4096)
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidParameter);
    rig.pass(5);
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    let frozen = rig.frozen_files(id);
    assert_eq!(rig.consistency(&frozen), Consistency::Application);
}

#[test]
fn a_migration_that_fails_leaves_the_vm_where_it_runs() {
    let mut rig = Rig::new();
    rig.start();
    let (host, vm) = (rig.host.clone(), rig.vm);
    rig.inject(Fault::next(FaultKind::MigrationFails));
    let started = rig
        .estate
        .migrate(&host, vm, storage(r"C:\elsewhere"))
        .unwrap();
    rig.wait(&started).unwrap_err();
    let of = rig.estate.vm(&host, vm).unwrap();
    assert_eq!(of.power, PowerState::Running);
    rig.pass(5);
    assert_eq!(rig.live_files()[0], path(r"D:\vm\sql01\sql01.vhdx"));
}

#[test]
fn what_cannot_be_migrated_is_refused() {
    let mut rig = Rig::new();
    let (host, vm) = (rig.host.clone(), rig.vm);
    let to = |destination: Option<&str>, folder: Option<&str>| MigrationRequest {
        destination: destination.map(Into::into),
        kind: MigrationKind::VmAndStorage,
        folder: folder.map(path),
    };
    for (request, wanted) in [
        (to(None, Some(r"D:\x")), ReturnCode::InvalidParameter),
        (
            to(Some("nowhere"), Some(r"D:\x")),
            ReturnCode::InvalidParameter,
        ),
        (to(Some("HV01"), Some(r"D:\x")), ReturnCode::InvalidState),
        (to(Some("HV01"), None), ReturnCode::InvalidParameter),
    ] {
        let error = rig.estate.migrate(&host, vm, request).unwrap_err();
        assert_eq!(code(&error), wanted);
    }
    let mut rig = cluster();
    let request = to(Some("N2"), Some(r"C:\ClusterStorage\Volume1\x"));
    let error = rig.estate.migrate(&rig.host, rig.vm, request).unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidState);
    let csv = rig
        .estate
        .storage()
        .volumes()
        .iter()
        .any(|it| matches!(it.kind, VolumeKind::Csv { .. }));
    assert!(csv);
    let started = rig
        .estate
        .migrate(
            &rig.host,
            rig.vm,
            storage(r"C:\ClusterStorage\Volume1\other"),
        )
        .unwrap();
    rig.wait(&started).unwrap();
}
