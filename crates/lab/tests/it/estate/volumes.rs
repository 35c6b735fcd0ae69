//! Volumes, paths, locks, and real file systems on the disks of VMs.

use std::process::Command;

use block::WriteAt;
use lab::estate::{
    Answer, ConsistencyLevel, DiskFacts, DiskFormat, DiskSource, DiskType, EstateOptions, FileLock,
    Switch, VolumeKind, VolumeState,
};
use lab::guest::GuestOs;
use lab::{ErrorKind, HResult, ReturnCode};
use vdisk::image::{ImageEditor, OpenOptions};
use vdisk::vhdx::IdSource;

use super::rig::{MIB, Rig, code, path, spec, vhd_spec};

#[test]
fn paths_lead_to_one_file_in_any_case() {
    let rig = Rig::new();
    let file = rig
        .estate
        .backing(&rig.host, &path(r"D:\VM\SQL01\Sql01.VHDX"))
        .unwrap();
    assert!(file.is_file());
    let place = |text| rig.estate.locate(&rig.host, &path(text)).unwrap();
    assert_eq!(
        place(r"D:\VM\SQL01\Sql01.VHDX"),
        place("d:/vm/sql01/sql01.vhdx")
    );
    let error = rig.estate.locate(&rig.host, &path(r"E:\x")).unwrap_err();
    assert_eq!(code(&error), ReturnCode::FileNotFound);
}

#[test]
fn only_the_live_leaf_is_locked() {
    let mut rig = Rig::new();
    let lock = |rig: &Rig, file| rig.estate.file_lock(&rig.host, file).unwrap();
    let base = rig.live_files()[0].clone();
    assert_eq!(lock(&rig, &base), FileLock::Free);
    rig.start();
    assert_eq!(lock(&rig, &base), FileLock::Exclusive);
    rig.recovery(ConsistencyLevel::Crash).unwrap();
    assert_eq!(lock(&rig, &base), FileLock::ReadShared);
    let leaf = rig.live_files()[0].clone();
    assert_eq!(lock(&rig, &leaf), FileLock::Exclusive);
    let refused = rig.estate.check_readable(&rig.host, &leaf).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Wmi(HResult::SHARING_VIOLATION));
    rig.estate.check_readable(&rig.host, &base).unwrap();
}

#[test]
fn a_full_volume_and_one_that_is_gone_are_told() {
    let mut rig = Rig::new();
    rig.start();
    let id = rig.estate.locate(&rig.host, &path(r"D:\x")).unwrap().volume;
    rig.estate.fill_volume(id, 100 << 30).unwrap();
    let failure = rig.recovery(ConsistencyLevel::Crash).unwrap_err();
    assert_eq!(failure.cause, Some(HResult::DISK_FULL));
    rig.estate.fill_volume(id, 0).unwrap();
    rig.recovery(ConsistencyLevel::Crash).unwrap();
    rig.estate
        .set_volume_state(id, VolumeState::NoAccess)
        .unwrap();
    let error = rig.estate.locate(&rig.host, &path(r"D:\x")).unwrap_err();
    assert_eq!(code(&error), ReturnCode::SystemNotAvailable);
}

#[test]
fn disks_are_created_grown_and_validated_by_path() {
    let mut rig = Rig::new();
    let host = rig.host.clone();
    let facts =
        |format, size| DiskFacts::new(format, DiskType::Dynamic, size, uuid::Uuid::from_u128(9));
    let new = path(r"D:\new\x.vhdx");
    let started = rig
        .estate
        .create_disk(&host, &new, facts(DiskFormat::Vhdx, 8 * MIB), None)
        .unwrap();
    rig.wait(&started).unwrap();
    let state = rig.estate.disk_state(&host, &new).unwrap();
    assert_eq!((state.facts.size_bytes, state.is_in_use), (8 * MIB, false));
    let child = path(r"D:\new\y.avhdx");
    let mut differencing = facts(DiskFormat::Vhdx, 0);
    differencing.disk_type = DiskType::Differencing;
    let started = rig
        .estate
        .create_disk(&host, &child, differencing.clone(), Some(&new))
        .unwrap();
    rig.wait(&started).unwrap();
    let disk = rig.estate.disk_file(&host, &child).unwrap().clone();
    assert_eq!(rig.estate.parent_path(&disk), Some(new.clone()));
    for (path, facts, parent) in [
        (new.clone(), facts(DiskFormat::Vhdx, MIB), None),
        (path(r"D:\new\z.vhd"), facts(DiskFormat::Vhdx, MIB), None),
        (path(r"D:\new\z.avhdx"), differencing, None),
    ] {
        let error = rig
            .estate
            .create_disk(&host, &path, facts, parent)
            .unwrap_err();
        assert_eq!(code(&error), ReturnCode::InvalidParameter);
    }
    assert_eq!(
        code(&rig.estate.resize_disk(&host, &new, 9 * MIB).unwrap_err()),
        ReturnCode::InvalidParameter
    );
    let started = rig.estate.merge_disk(&host, &child, &new).unwrap();
    rig.wait(&started).unwrap();
    let started = rig.estate.resize_disk(&host, &new, 9 * MIB).unwrap();
    rig.wait(&started).unwrap();
    assert_eq!(
        rig.estate.disk_state(&host, &new).unwrap().facts.size_bytes,
        9 * MIB
    );
    let started = rig.estate.validate_disk(&host, &new).unwrap();
    rig.wait(&started).unwrap();
    let file = rig.estate.backing(&host, &new).unwrap();
    std::fs::write(&file, b"this is no disk at all").unwrap();
    let started = rig.estate.validate_disk(&host, &new).unwrap();
    rig.wait(&started).unwrap_err();
    let error = rig
        .estate
        .validate_disk(&host, &path(r"D:\no.vhdx"))
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::FileNotFound);
    rig.start();
    let live = rig.live_files()[0].clone();
    let error = rig.estate.resize_disk(&host, &live, 64 * MIB).unwrap_err();
    assert_eq!(code(&error), ReturnCode::SystemInUse);
}

#[test]
fn shares_are_reached_as_the_switches_say() {
    let mut rig = Rig::new();
    let host = rig.host.clone();
    let kind = VolumeKind::Share {
        server: "backup".into(),
        share: "instant".into(),
    };
    let id = rig
        .estate
        .add_volume(kind, rig.folder.path().join("share"), 10 << 30)
        .unwrap();
    rig.estate.make_foreign(id).unwrap();
    let file = path(r"\\BACKUP\instant\x.vhdx");
    let facts = DiskFacts::new(
        DiskFormat::Vhdx,
        DiskType::Dynamic,
        32 * MIB,
        uuid::Uuid::from_u128(1),
    );
    let error = rig
        .estate
        .create_disk(&host, &file, facts.clone(), None)
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::AccessDenied);
    rig.estate
        .set_switch(Switch::ComputerAccountForShares, Answer::Optimistic);
    let started = rig.estate.create_disk(&host, &file, facts, None).unwrap();
    rig.wait(&started).unwrap();
    let mut instant = spec("instant", GuestOs::Linux);
    instant.guest = None;
    instant.disks.truncate(1);
    instant.disks[0].source = DiskSource::Existing(file);
    let vm = rig.estate.add_vm(&host, instant).unwrap();
    let started = rig.estate.request_state_change(&host, vm, 2).unwrap();
    assert_eq!(
        rig.wait(&started).unwrap_err().code,
        ReturnCode::AccessDenied
    );
    rig.estate
        .set_switch(Switch::ForeignShares, Answer::Optimistic);
    let started = rig.estate.request_state_change(&host, vm, 2).unwrap();
    rig.wait(&started).unwrap();
}

/// A file system made by its own tool, at the front of a VM's disk; the guest writes behind it.
fn with_file_system(
    tool: &str,
    arguments: &[&str],
    make: fn(&str, GuestOs) -> lab::estate::VmSpec,
) {
    if Command::new(tool).arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "{tool} is not installed");
        println!("SKIP: {tool} is not installed");
        return;
    }
    let mut spec = make("fs", GuestOs::Windows);
    if let Some(guest) = &mut spec.guest {
        guest.offset = 17 * MIB;
    }
    let mut rig = Rig::with(EstateOptions::seeded(1), spec);
    let host = rig.host.clone();
    let raw = rig.folder.path().join("fs.raw");
    std::fs::File::create(&raw)
        .unwrap()
        .set_len(16 * MIB)
        .unwrap();
    let made = Command::new(tool)
        .args(arguments)
        .arg(&raw)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let bytes = std::fs::read(&raw).unwrap();
    let disk = rig.live_files()[0].clone();
    let file = rig.estate.backing(&host, &disk).unwrap();
    let editor = ImageEditor::open(&file, &OpenOptions::default(), IdSource::seeded(3)).unwrap();
    editor.write_at(0, &bytes).unwrap();
    editor.finish().unwrap();
    rig.start();
    rig.pass(10);
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    rig.pass(10);
    let files = rig.frozen_files(id);
    assert_eq!(
        rig.consistency(&files),
        lab::guest::Consistency::Application
    );
    let frozen = rig.bytes(&files);
    assert!(frozen[0][..bytes.len()] == bytes);
}

#[test]
fn ext4_on_vhdx_and_vhd_stands_beside_what_the_guest_writes() {
    with_file_system("mkfs.ext4", &["-q", "-F"], spec);
    with_file_system("mkfs.ext4", &["-q", "-F"], vhd_spec);
}

#[test]
fn ntfs_on_vhdx_and_vhd_stands_beside_what_the_guest_writes() {
    with_file_system("mkntfs", &["-q", "-F", "-f"], spec);
    with_file_system("mkntfs", &["-q", "-F", "-f"], vhd_spec);
}
