//! Defining, exporting, importing and changing systems: what a restore needs.

use std::path::PathBuf;

use lab::estate::{
    Affected, ConsistencyLevel, DiskSharing, DriveSpec, ExportFolder, ExportRequest, ExportStorage,
    HostName, ImportId, MergeState, PowerState, Realm, ResourceChange, ResourceRef, ResourceSpec,
    SystemChange, SystemDefinition, SystemTarget, VmGeneration, VmId,
};
use lab::guest::{Consistency, Health};
use lab::{ErrorKind, HResult, ReturnCode};

use super::rig::{Rig, code, path};

impl Rig {
    fn import(&mut self, file: &str, import_id: ImportId) -> Result<VmId, ReturnCode> {
        let host = self.host.clone();
        let started = self.estate.import_system(&host, &path(file), import_id);
        let made = self
            .wait(&started.map_err(|it| code(&it))?)
            .map_err(|it| it.code)?;
        match made.first() {
            Some(Affected::System(id)) => Ok(*id),
            other => panic!("made {other:?}"),
        }
    }

    fn export(&mut self, request: ExportRequest) {
        let (host, vm) = (self.host.clone(), self.vm);
        let started = self.estate.export_system(&host, vm, request).unwrap();
        self.wait(&started).unwrap();
    }
}

/// A backup product puts configuration and disks onto another host by itself.
fn put_there(rig: &mut Rig, target: &HostName, files: &[PathBuf], disks: &[Vec<u8>]) {
    let folder = rig.estate.backing(target, &path(r"D:\restored")).unwrap();
    std::fs::create_dir_all(&folder).unwrap();
    for file in files {
        std::fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
    }
    for (bytes, name) in disks.iter().zip(["a.vhdx", "b.vhdx"]) {
        let options = vdisk::image::CreateOptions {
            size_bytes: bytes.len() as u64,
            profile: vdisk::image::ImageProfile::of(vdisk::Format::Vhdx),
            if_exists: vdisk::image::IfExists::Refuse,
            ids: vdisk::vhdx::IdSource::seeded(5),
            unix_seconds: 0,
        };
        let writer = vdisk::image::create(&folder.join(name), &options).unwrap();
        writer.write_at(0, bytes).unwrap();
        writer.finish().unwrap();
    }
}

/// The disks of a planned system are elsewhere.
fn point_planned(rig: &mut Rig, vm: VmId, files: [&str; 2]) {
    let target = rig.host.clone();
    let planned = rig.estate.planned(&target, vm).unwrap();
    assert_eq!(planned.settings.name, "sql01");
    let drives: Vec<_> = planned
        .settings
        .hardware
        .disks()
        .map(|(at, _)| at)
        .collect();
    let changes = drives.iter().zip(files);
    let changes = changes
        .map(|(drive, file)| ResourceChange::Medium {
            drive: *drive,
            path: path(file),
        })
        .collect();
    let started = rig
        .estate
        .modify_resources(&target, SystemTarget::Planned(vm), changes)
        .unwrap();
    rig.wait(&started).unwrap();
}

#[test]
fn a_checkpoint_is_restored_to_another_host_by_its_files_alone() {
    let mut rig = Rig::new();
    rig.start();
    rig.pass(12);
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    let files = rig.frozen_files(id);
    let frozen = rig.bytes(&files);
    let config = rig.estate.checkpoint_files(&rig.host, id).unwrap();
    assert_eq!(config.len(), 3, "{config:?}");
    let source: Vec<_> = config
        .iter()
        .map(|it| rig.estate.backing(&rig.host, it).unwrap())
        .collect();
    assert!(source.iter().all(|it| it.is_file()), "{source:?}");
    let target = rig.add_host("HV02");
    put_there(&mut rig, &target, &source, &frozen);
    let checkpoint = rig.vm;
    rig.host = target.clone();
    let vm = rig
        .import(&format!(r"D:\restored\{id}.vmcx"), ImportId::Keep)
        .unwrap();
    assert_eq!(vm, checkpoint, "the id of the VM, not of the checkpoint");
    let started = rig.estate.realize_planned(&target, vm).unwrap();
    assert_eq!(
        rig.wait(&started).unwrap_err().code,
        ReturnCode::FileNotFound
    );
    point_planned(&mut rig, vm, [r"D:\restored\a.vhdx", r"D:\restored\b.vhdx"]);
    let started = rig.estate.validate_planned(&target, vm).unwrap();
    rig.wait(&started).unwrap();
    let started = rig.estate.realize_planned(&target, vm).unwrap();
    rig.wait(&started).unwrap();
    let live = rig.live_files();
    assert!(rig.bytes(&live) == frozen);
    assert_eq!(rig.consistency(&live), Consistency::Application);
    rig.start();
    rig.pass(5);
    let of = rig.estate.vm(&target, vm).unwrap();
    assert_eq!(of.guest().unwrap().health(), &Health::Working);
    assert_eq!(
        rig.import(&format!(r"D:\restored\{id}.vmcx"), ImportId::Keep),
        Err(ReturnCode::InvalidParameter)
    );
    let other = rig
        .import(&format!(r"D:\restored\{id}.vmcx"), ImportId::Generate)
        .unwrap();
    assert_ne!(other, vm);
    let started = rig
        .estate
        .destroy_system(&target, SystemTarget::Planned(other))
        .unwrap();
    rig.wait(&started).unwrap();
    assert_eq!(rig.estate.planned_on(&target).count(), 0);
}

#[test]
fn a_saved_vm_is_restored_with_its_memory() {
    let mut rig = Rig::new();
    rig.start();
    rig.pass(9);
    rig.request(6);
    let committed = rig
        .estate
        .vm(&rig.host, rig.vm)
        .unwrap()
        .guest()
        .unwrap()
        .committed();
    rig.export(ExportRequest {
        directory: path(r"C:\export"),
        checkpoint: None,
        storage: ExportStorage::Copy,
        folder: ExportFolder::Named,
    });
    let host = rig.host.clone();
    rig.request(3);
    let started = rig
        .estate
        .destroy_system(&host, SystemTarget::Realized(rig.vm))
        .unwrap();
    rig.wait(&started).unwrap();
    let file = format!(r"C:\export\sql01\Virtual Machines\{}.vmcx", rig.vm);
    let vm = rig.import(&file, ImportId::Keep).unwrap();
    let started = rig.estate.realize_planned(&host, vm).unwrap();
    rig.wait(&started).unwrap();
    let of = rig.estate.vm(&host, vm).unwrap();
    assert_eq!(of.power, PowerState::Saved);
    assert_eq!(of.guest().unwrap().committed(), committed);
    rig.start();
    rig.pass(5);
    rig.request(6);
    let live = rig.live_files();
    assert!(
        live[0]
            .to_string()
            .starts_with(r"C:\export\sql01\Virtual Hard Disks\"),
        "{live:?}"
    );
    assert_eq!(rig.consistency(&live), Consistency::Crash);
    assert!(rig.examine(&live).committed >= committed);
}

#[test]
fn an_export_without_storage_leaves_merging_suspended_until_it_is_enabled() {
    let mut rig = Rig::new();
    rig.start();
    let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
    rig.export(ExportRequest {
        directory: path(r"C:\export"),
        checkpoint: Some(id),
        storage: ExportStorage::LeaveOut,
        folder: ExportFolder::AsGiven,
    });
    let file = path(&format!(r"C:\export\Virtual Machines\{}.vmcx", rig.vm));
    assert!(rig.estate.backing(&rig.host, &file).unwrap().is_file());
    rig.convert(id).unwrap();
    rig.pass(300);
    assert!(rig.live_files()[0].file_name().contains("avhdx"));
    let (host, vm) = (rig.host.clone(), rig.vm);
    rig.estate
        .set_merge_state(&host, vm, MergeState::Enabled)
        .unwrap();
    rig.settle();
    assert_eq!(rig.live_files()[0].file_name(), "sql01.vhdx");
}

#[test]
fn the_configuration_file_is_what_guestfs_reads() {
    let rig = Rig::new();
    let file = rig
        .estate
        .vm(&rig.host, rig.vm)
        .unwrap()
        .configuration_file();
    let file = rig.estate.backing(&rig.host, &file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let source: std::sync::Arc<dyn block::ReadAt> = std::sync::Arc::new(Owned(bytes));
    let stored = guestfs::vmconfig::StoredConfiguration::read(&source).unwrap();
    let model = stored.model().unwrap();
    assert_eq!(model.name.as_deref(), Some("sql01"));
    assert_eq!(model.id, Some(rig.vm.to_string()));
    assert_eq!(model.generation, Some(guestfs::vmconfig::Generation::Two));
    assert_eq!(model.version, Some((10, 0)));
    assert_eq!(model.disks.len(), 2);
    assert_eq!(
        model.disks[1].path.as_deref(),
        Some(r"D:\vm\sql01\sql01-data.vhdx")
    );
    assert_eq!(model.network.len(), 1);
    assert_eq!(model.security.is_secure_boot, Some(true));
}

struct Owned(Vec<u8>);

impl block::ReadAt for Owned {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        super::rig::Bytes(&self.0).read_at(offset, buffer)
    }
}

#[test]
fn a_vm_is_built_piece_by_piece_and_taken_apart_in_order() {
    let mut rig = Rig::new();
    let host = rig.host.clone();
    let definition = SystemDefinition {
        name: "built".into(),
        generation: VmGeneration::Two,
        version: None,
        folder: Some(path(r"D:\built")),
        notes: String::new(),
    };
    let started = rig
        .estate
        .define_system(&host, definition, Realm::Realized)
        .unwrap();
    let made = rig.wait(&started).unwrap();
    let Some(Affected::System(id)) = made.first().cloned() else {
        panic!("{made:?}");
    };
    let target = SystemTarget::Realized(id);
    let add = |rig: &mut Rig, spec| {
        let started = rig.estate.add_resources(&host, target, vec![spec]).unwrap();
        rig.wait(&started).map(|made| made[0].clone())
    };
    let Affected::Device(_, controller) = add(&mut rig, ResourceSpec::ScsiController).unwrap()
    else {
        panic!("no controller");
    };
    let drive = ResourceSpec::Drive {
        controller,
        number: 0,
        slot: None,
        kind: DriveSpec::VirtualDisk,
    };
    let Affected::Drive(_, drive) = add(&mut rig, drive).unwrap() else {
        panic!("no drive");
    };
    let medium = |file: &str| ResourceSpec::Medium {
        drive,
        path: path(file),
        sharing: DiskSharing::Private,
    };
    let failure = add(&mut rig, medium(r"D:\built\none.vhdx")).unwrap_err();
    assert_eq!(failure.code, ReturnCode::FileNotFound);
    add(&mut rig, medium(r"D:\vm\sql01\sql01.vhdx")).unwrap();
    assert_eq!(
        add(&mut rig, medium(r"D:\vm\sql01\sql01.vhdx"))
            .unwrap_err()
            .code,
        ReturnCode::InvalidParameter
    );
    let remove = |rig: &mut Rig, what| {
        let started = rig.estate.remove_resources(&host, target, vec![what])?;
        rig.wait(&started).unwrap();
        Ok::<_, lab::Error>(())
    };
    let error = remove(&mut rig, ResourceRef::Drive(drive)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Wmi(HResult::FAILED));
    let error = remove(&mut rig, ResourceRef::Controller(controller)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Wmi(HResult::FAILED));
    remove(&mut rig, ResourceRef::Medium(drive)).unwrap();
    remove(&mut rig, ResourceRef::Drive(drive)).unwrap();
    remove(&mut rig, ResourceRef::Controller(controller)).unwrap();
    let started = rig.estate.destroy_system(&host, target).unwrap();
    rig.wait(&started).unwrap();
    assert!(rig.estate.vm(&host, id).is_err());
}

#[test]
fn a_vm_that_runs_is_not_destroyed_and_one_that_is_off_keeps_its_disks() {
    let mut rig = Rig::new();
    rig.start();
    rig.pass(5);
    let (host, vm) = (rig.host.clone(), rig.vm);
    let target = SystemTarget::Realized(vm);
    let error = rig.estate.destroy_system(&host, target).unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidState);
    rig.checkpoint(lab::estate::CheckpointRequest::user())
        .unwrap();
    rig.pass(5);
    rig.request(3);
    let live = rig.live_files();
    let before = rig.bytes(&live);
    let config = rig.estate.vm(&host, vm).unwrap().configuration_file();
    let config = rig.estate.backing(&host, &config).unwrap();
    assert!(config.is_file());
    let started = rig.estate.destroy_system(&host, target).unwrap();
    rig.wait(&started).unwrap();
    assert!(!config.exists());
    let base = [
        path(r"D:\vm\sql01\sql01.vhdx"),
        path(r"D:\vm\sql01\sql01-data.vhdx"),
    ];
    assert!(rig.bytes(&base) == before);
}

#[test]
fn host_items_are_kept_on_the_vm() {
    let mut rig = Rig::new();
    let (host, vm) = (rig.host.clone(), rig.vm);
    rig.estate
        .set_host_item(&host, vm, "hikae", Some("job 7"))
        .unwrap();
    assert_eq!(
        rig.estate.vm(&host, vm).unwrap().host_items["hikae"],
        "job 7"
    );
    rig.estate.set_host_item(&host, vm, "hikae", None).unwrap();
    let error = rig
        .estate
        .set_host_item(&host, vm, "hikae", None)
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidParameter);
}

#[test]
fn a_vm_is_renamed_and_noted_on() {
    let mut rig = Rig::new();
    let host = rig.host.clone();
    let target = SystemTarget::Realized(rig.vm);
    let change = SystemChange {
        name: Some("renamed".into()),
        notes: Some("two".into()),
        ..SystemChange::default()
    };
    let started = rig.estate.modify_system(&host, target, change).unwrap();
    rig.wait(&started).unwrap();
    assert_eq!(rig.estate.vms_named("Renamed").count(), 1);
    let of = rig.estate.vm(&host, rig.vm).unwrap();
    assert_eq!(of.settings.notes, "two");
}
