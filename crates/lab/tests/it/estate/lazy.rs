//! Thousands of VMs without data.

use std::time::{Duration, Instant};

use lab::estate::{
    CheckpointRequest, ConsistencyLevel, DataMode, DiskSpec, Estate, EstateOptions, HostName,
    VmGeneration, VmSpec, WindowsGeneration,
};
use lab::guest::GuestOs;

use super::rig::{Rig, add_volume, path, spec};

#[test]
fn two_thousand_vms_cost_no_file_and_little_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = EstateOptions::seeded(1);
    options.data = DataMode::Lazy;
    let mut estate = Estate::new(options);
    let begun = Instant::now();
    for host in 0..16 {
        let host = HostName::new(format!("HV{host:02}"));
        estate
            .add_host(&host, WindowsGeneration::Server2022, "example.net")
            .unwrap();
        add_volume(&mut estate, &folder, &host, 'D');
        for vm in 0..125 {
            let two = VmGeneration::Two;
            let name = format!("vm{vm:03}");
            let spec = VmSpec::new(&name, two, path(&format!("D:\\vm\\{name}")))
                .with_disk(DiskSpec::new(two, 0, "os.vhdx", 128 << 30))
                .with_disk(DiskSpec::new(two, 1, "data.vhdx", 1 << 40));
            let id = estate.add_vm(&host, spec).unwrap();
            estate.request_state_change(&host, id, 2).unwrap();
        }
    }
    estate.advance(Duration::from_secs(3600)).unwrap();
    assert_eq!(estate.systems().filter(|vm| vm.is_running()).count(), 2000);
    let host = HostName::new("hv07");
    let ids: Vec<_> = estate.vms_on(&host).map(|vm| vm.id).collect();
    assert_eq!(ids.len(), 125);
    for id in ids {
        let request = CheckpointRequest::recovery(ConsistencyLevel::Application);
        estate.create_checkpoint(&host, id, request).unwrap();
    }
    estate.advance(Duration::from_secs(5)).unwrap();
    assert!(estate.vms_on(&host).all(|vm| vm.checkpoints.len() == 1));
    let files = walk(folder.path());
    assert_eq!(files, 0);
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

fn walk(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|it| it.unwrap().path());
    entries
        .map(|path| if path.is_dir() { walk(&path) } else { 1 })
        .sum()
}

#[test]
fn a_lazy_disk_becomes_a_file_with_its_chain_once_it_is_opened() {
    let mut options = EstateOptions::seeded(1);
    options.data = DataMode::Lazy;
    let mut lazy = spec("a", GuestOs::Windows);
    lazy.guest = None;
    let mut rig = Rig::with(options, lazy);
    rig.start();
    let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
    assert_eq!(walk(rig.folder.path()), 0);
    let live = rig.live_files()[0].clone();
    let file = rig.estate.materialize(&rig.host.clone(), &live).unwrap();
    assert!(file.is_file());
    let frozen = rig.frozen_files(id)[0].clone();
    assert!(rig.estate.backing(&rig.host, &frozen).unwrap().is_file());
    rig.convert(id).unwrap();
    rig.settle();
    assert!(!file.exists());
}

#[test]
fn a_lazy_disk_that_is_tracked_stays_tracked_when_it_becomes_a_file() {
    let mut options = EstateOptions::seeded(1);
    options.data = DataMode::Lazy;
    let mut lazy = spec("a", GuestOs::Windows);
    lazy.guest = None;
    let mut rig = Rig::with(options, lazy);
    rig.start();
    let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
    let point = rig.convert(id).unwrap();
    rig.settle();
    let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
    let file = rig.frozen_files(id)[0].clone();
    let host = rig.host.clone();
    rig.estate.materialize(&host, &file).unwrap();
    let vm = rig.estate.vm(&host, rig.vm).unwrap();
    let limit = vm.reference_points[&point].disks[0].1.clone();
    let changes = rig
        .estate
        .disk_changes(&host, &file, &limit, 0, 1 << 20)
        .unwrap();
    assert_eq!(changes.ranges, []);
}
