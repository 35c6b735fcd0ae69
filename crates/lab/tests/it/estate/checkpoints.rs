//! Checkpoints: what they freeze, what they refuse, how they go.

use lab::estate::{
    Answer, CheckpointRequest, ConsistencyLevel, DiskSource, DiskSpec, EstateOptions, Fault,
    FaultKind, GuestBackupType, MergeState, NonSnapshottable, Repeat, Switch, UserCheckpointType,
    VmGeneration, WindowsGeneration,
};
use lab::guest::{Consistency, GuestOs};
use lab::{HResult, ReturnCode};

use super::rig::{Rig, code, spec, vhd_spec};

fn kind(seed: u64, switch: Switch) -> EstateOptions {
    let mut options = EstateOptions::seeded(seed);
    options.switches.set(switch, Answer::Optimistic);
    options
}

#[test]
fn frozen_bytes_stay_while_the_guest_writes_and_after_the_merge_the_disk_is_what_the_guest_wrote() {
    for spec in [
        spec("sql01", GuestOs::Windows),
        vhd_spec("old", GuestOs::Windows),
    ] {
        let mut rig = Rig::with(EstateOptions::seeded(3), spec);
        rig.start();
        rig.pass(30);
        let id = rig.recovery(ConsistencyLevel::Application).unwrap();
        let frozen = rig.frozen_files(id);
        let before = rig.bytes(&frozen);
        assert_eq!(
            rig.examine_bytes(&before).consistency,
            Consistency::Application
        );
        rig.pass(60);
        assert_eq!(rig.bytes(&frozen), before);
        rig.convert(id).unwrap();
        rig.settle();
        rig.request(6);
        let live = rig.live_files();
        assert!(
            live.iter().all(|it| !it.file_name().contains('_')),
            "{live:?}"
        );
        assert_eq!(rig.consistency(&live), Consistency::Crash);
        assert!(rig.examine(&live).committed > rig.examine_bytes(&before).committed);
        let folder = rig.estate.backing(&rig.host, &live[0].parent()).unwrap();
        let left: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.to_lowercase().contains("avhd"))
            .collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

#[test]
fn consistency_is_in_the_bytes() {
    for (os, level, wanted) in [
        (
            GuestOs::Windows,
            ConsistencyLevel::Application,
            Consistency::Application,
        ),
        (
            GuestOs::Linux,
            ConsistencyLevel::Application,
            Consistency::FileSystem,
        ),
        (
            GuestOs::Windows,
            ConsistencyLevel::Crash,
            Consistency::Crash,
        ),
        (GuestOs::Linux, ConsistencyLevel::Crash, Consistency::Crash),
    ] {
        let mut rig = Rig::with(EstateOptions::seeded(4), spec("a", os));
        rig.start();
        rig.pass(10);
        let id = rig.recovery(level).unwrap();
        let frozen = rig.frozen_files(id);
        assert_eq!(rig.consistency(&frozen), wanted, "{os:?} {level:?}");
        let vm = rig.estate.vm(&rig.host, rig.vm).unwrap();
        assert_eq!(vm.checkpoint(id).unwrap().consistency, level);
    }
}

#[test]
fn the_auto_recovery_file_is_a_switch() {
    let mut rig = Rig::new();
    rig.start();
    rig.pass(5);
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    let frozen = rig.frozen_files(id);
    assert_eq!(frozen[0].file_name(), "sql01-AutoRecovery.avhdx");
    assert!(rig.examine(&frozen).recovered.is_some());
    let id = {
        rig.convert(id).unwrap();
        rig.settle();
        rig.recovery(ConsistencyLevel::Crash).unwrap()
    };
    assert_eq!(rig.frozen_files(id)[0].file_name(), "sql01.vhdx");
    let mut rig = Rig::with(
        kind(1, Switch::NoAutoRecoveryFile),
        spec("sql01", GuestOs::Windows),
    );
    rig.start();
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    let frozen = rig.frozen_files(id);
    assert_eq!(frozen[0].file_name(), "sql01.vhdx");
    assert_eq!(rig.examine(&frozen).recovered, None);
}

#[test]
fn writers_decide_what_becomes_of_an_application_consistent_checkpoint() {
    let mut rig = Rig::new();
    rig.start();
    rig.pass(5);
    rig.inject(Fault::next(FaultKind::WriterFails).of_vm(rig.vm));
    let failure = rig.recovery(ConsistencyLevel::Application).unwrap_err();
    assert_eq!(failure.code, ReturnCode::Failed);
    rig.inject(Fault::next(FaultKind::WriterTimesOut));
    let before = rig.estate.now();
    let failure = rig.recovery(ConsistencyLevel::Application).unwrap_err();
    assert_eq!(failure.code, ReturnCode::Timeout);
    assert_eq!(rig.estate.now().since(before).as_secs(), 60);
    rig.inject(Fault::next(FaultKind::WriterLies));
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    let frozen = rig.frozen_files(id);
    assert_eq!(rig.consistency(&frozen), Consistency::Crash);
    assert_eq!(rig.live_files().len(), 2);
}

#[test]
fn what_failed_leaves_nothing_behind() {
    let mut rig = Rig::new();
    rig.start();
    let live = rig.live_files();
    for fault in [
        FaultKind::CheckpointFails,
        FaultKind::DiskFull,
        FaultKind::WriterFails,
    ] {
        rig.inject(Fault::next(fault));
        let failure = rig.recovery(ConsistencyLevel::Application).unwrap_err();
        let wants = (fault == FaultKind::DiskFull).then_some(HResult::DISK_FULL);
        assert_eq!(failure.cause, wants);
    }
    assert_eq!(rig.live_files(), live);
    assert!(
        rig.estate
            .vm(&rig.host, rig.vm)
            .unwrap()
            .checkpoints
            .is_empty()
    );
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    rig.inject(Fault::next(FaultKind::ConversionFails));
    rig.convert(id).unwrap_err();
    assert!(
        rig.estate
            .vm(&rig.host, rig.vm)
            .unwrap()
            .checkpoint(id)
            .is_some()
    );
    rig.convert(id).unwrap();
}

#[test]
fn a_second_checkpoint_waits_for_the_first_and_for_the_merge() {
    let mut rig = Rig::new();
    rig.start();
    let (host, vm) = (rig.host.clone(), rig.vm);
    let request = CheckpointRequest::recovery(ConsistencyLevel::Crash);
    let started = rig.estate.create_checkpoint(&host, vm, request).unwrap();
    let error = rig
        .estate
        .create_checkpoint(&host, vm, request)
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::SystemInUse);
    assert_eq!(
        rig.estate.vm(&host, vm).unwrap().operational_status(),
        [2, 32768]
    );
    rig.wait(&started).unwrap();
    let id = *rig
        .estate
        .vm(&host, vm)
        .unwrap()
        .checkpoints
        .keys()
        .next()
        .unwrap();
    rig.convert(id).unwrap();
    rig.estate
        .advance(std::time::Duration::from_millis(100))
        .unwrap();
    assert_eq!(
        rig.estate.vm(&host, vm).unwrap().operational_status(),
        [2, 32772]
    );
    let error = rig
        .estate
        .create_checkpoint(&host, vm, request)
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidState);
    let error = rig
        .estate
        .destroy_system(&host, lab::estate::SystemTarget::Realized(vm))
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidState);
    rig.settle();
    rig.recovery(ConsistencyLevel::Crash).unwrap();
}

#[test]
fn recovery_checkpoints_are_destroyed_only_where_the_switch_says_so() {
    let mut rig = Rig::new();
    rig.start();
    let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
    let host = rig.host.clone();
    let error = rig.estate.destroy_checkpoint(&host, id).unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidState);
    rig.estate
        .set_switch(Switch::DestroyRecoveryCheckpoint, Answer::Optimistic);
    let started = rig.estate.destroy_checkpoint(&host, id).unwrap();
    rig.wait(&started).unwrap();
    rig.settle();
    assert_eq!(rig.live_files()[0].file_name(), "sql01.vhdx");
    let error = rig.estate.destroy_checkpoint(&host, id).unwrap_err();
    assert_eq!(error.kind(), lab::ErrorKind::NotFound);
}

#[test]
fn old_hosts_and_old_configurations_have_no_recovery_checkpoints() {
    let request = CheckpointRequest::recovery(ConsistencyLevel::Crash);
    let mut rig = Rig::on(
        WindowsGeneration::Server2012R2,
        EstateOptions::seeded(1),
        vhd_spec("a", GuestOs::Windows),
    );
    let error = rig
        .estate
        .create_checkpoint(&rig.host, rig.vm, request)
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::NotSupported);
    let mut old = spec("a", GuestOs::Windows);
    old.version = Some(lab::estate::ConfigurationVersion { major: 5, minor: 0 });
    let mut rig = Rig::with(EstateOptions::seeded(1), old);
    let error = rig
        .estate
        .create_checkpoint(&rig.host, rig.vm, request)
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::NotSupported);
    let started = rig.estate.upgrade_version(&rig.host, rig.vm).unwrap();
    rig.wait(&started).unwrap();
    rig.recovery(ConsistencyLevel::Crash).unwrap();
}

#[test]
fn the_backup_type_is_unknown_to_server_2016_unless_the_switch_says_otherwise() {
    let mut rig = Rig::on(
        WindowsGeneration::Server2016,
        EstateOptions::seeded(1),
        spec("a", GuestOs::Windows),
    );
    let mut request = CheckpointRequest::recovery(ConsistencyLevel::Crash);
    request.backup_type = Some(GuestBackupType::Copy);
    let error = rig
        .estate
        .create_checkpoint(&rig.host, rig.vm, request)
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidParameter);
    rig.estate
        .set_switch(Switch::GuestBackupTypeOn2016, Answer::Optimistic);
    rig.checkpoint(request).unwrap();
}

#[test]
fn disks_that_no_checkpoint_freezes_are_refused_or_left_out() {
    let mut with_disk = spec("a", GuestOs::Windows);
    let mut disk = DiskSpec::new(VmGeneration::Two, 5, "", 0);
    disk.source = DiskSource::PassThrough {
        number: 3,
        size_bytes: 1 << 30,
    };
    with_disk.disks.push(disk);
    let mut rig = Rig::with(EstateOptions::seeded(1), with_disk);
    rig.start();
    let mut request = CheckpointRequest::recovery(ConsistencyLevel::Crash);
    request.non_snapshottable = NonSnapshottable::Refuse;
    assert_eq!(
        rig.checkpoint(request).unwrap_err().code,
        ReturnCode::Failed
    );
    let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
    assert_eq!(rig.frozen_files(id).len(), 2);
}

#[test]
fn user_checkpoints_are_what_the_settings_say() {
    let mut rig = Rig::new();
    let set = |rig: &mut Rig, kind| {
        let change = lab::estate::SystemChange {
            user_checkpoints: Some(kind),
            ..Default::default()
        };
        let target = lab::estate::SystemTarget::Realized(rig.vm);
        let started = rig.estate.modify_system(&rig.host, target, change).unwrap();
        rig.wait(&started).unwrap();
    };
    rig.start();
    let of = |rig: &Rig, id| {
        rig.estate
            .vm(&rig.host, rig.vm)
            .unwrap()
            .checkpoint(id)
            .unwrap()
            .clone()
    };
    let id = rig.checkpoint(CheckpointRequest::user()).unwrap();
    assert_eq!(of(&rig, id).kind, lab::estate::CheckpointKind::Production);
    assert!(!of(&rig, id).has_memory);
    rig.inject(Fault::next(FaultKind::WriterFails));
    let id = rig.checkpoint(CheckpointRequest::user()).unwrap();
    assert_eq!(of(&rig, id).kind, lab::estate::CheckpointKind::Standard);
    assert!(of(&rig, id).has_memory);
    set(&mut rig, UserCheckpointType::ProductionOnly);
    rig.inject(Fault::next(FaultKind::WriterFails));
    rig.checkpoint(CheckpointRequest::user()).unwrap_err();
    set(&mut rig, UserCheckpointType::Disabled);
    let error = rig
        .estate
        .create_checkpoint(&rig.host, rig.vm, CheckpointRequest::user())
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidState);
}

#[test]
fn a_tree_of_checkpoints_is_gone_back_and_forth_in_and_taken_down() {
    for spec in [spec("a", GuestOs::Windows), vhd_spec("b", GuestOs::Linux)] {
        let mut rig = Rig::with(EstateOptions::seeded(9), spec);
        rig.start();
        let mut seen = Vec::new();
        for _ in 0..3 {
            rig.pass(7);
            let id = rig.checkpoint(CheckpointRequest::user()).unwrap();
            let frozen = rig.frozen_files(id);
            let bytes = rig.bytes(&frozen);
            seen.push((id, bytes));
        }
        rig.pass(7);
        let host = rig.host.clone();
        let error = rig.estate.apply_checkpoint(&host, seen[0].0).unwrap_err();
        assert_eq!(code(&error), ReturnCode::InvalidState);
        rig.request(3);
        let started = rig.estate.apply_checkpoint(&host, seen[0].0).unwrap();
        rig.wait(&started).unwrap();
        rig.settle();
        let live = rig.live_files();
        assert!(rig.bytes(&live) == seen[0].1);
        rig.start();
        rig.pass(7);
        let id = rig.checkpoint(CheckpointRequest::user()).unwrap();
        let frozen = rig.frozen_files(id);
        let bytes = rig.bytes(&frozen);
        seen.push((id, bytes));
        // From the middle, the branch, the root, and the last.
        for at in [1, 2, 0, 3] {
            let started = rig.estate.destroy_checkpoint(&host, seen[at].0).unwrap();
            rig.wait(&started).unwrap();
            rig.settle();
            seen[at].1.clear();
            for (id, bytes) in seen.iter().filter(|(_, bytes)| !bytes.is_empty()) {
                let frozen = rig.frozen_files(*id);
                assert!(rig.bytes(&frozen) == *bytes, "after {at}");
            }
        }
        rig.request(6);
        let live = rig.live_files();
        assert!(
            live.iter().all(|it| !it.file_name().contains("avhd")),
            "{live:?}"
        );
        assert_eq!(rig.consistency(&live), Consistency::Crash);
    }
}

#[test]
fn a_recovery_checkpoint_under_a_users_checkpoint_goes_from_the_middle() {
    let mut rig = Rig::new();
    rig.start();
    rig.pass(5);
    let recovery = rig.recovery(ConsistencyLevel::Application).unwrap();
    rig.pass(5);
    let user = rig.checkpoint(CheckpointRequest::user()).unwrap();
    let frozen = rig.frozen_files(user);
    let before = rig.bytes(&frozen);
    rig.pass(5);
    rig.convert(recovery).unwrap();
    rig.settle();
    let frozen = rig.frozen_files(user);
    assert_eq!(frozen[0].file_name(), "sql01.vhdx");
    assert!(rig.bytes(&frozen) == before);
    rig.pass(5);
    assert!(rig.bytes(&frozen) == before);
}

#[test]
fn a_merge_that_fails_is_tried_again_and_a_suspended_one_waits() {
    let mut rig = Rig::new();
    rig.start();
    let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
    rig.inject(Fault::next(FaultKind::MergeFails).repeated(Repeat::Times(2)));
    rig.convert(id).unwrap();
    rig.pass(20);
    assert!(rig.live_files()[0].file_name().contains("avhdx"));
    rig.pass(100);
    rig.settle();
    assert_eq!(rig.live_files()[0].file_name(), "sql01.vhdx");
    let (host, vm) = (rig.host.clone(), rig.vm);
    rig.estate
        .set_merge_state(&host, vm, MergeState::Suspended)
        .unwrap();
    let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
    rig.convert(id).unwrap();
    rig.pass(600);
    assert!(rig.live_files()[0].file_name().contains("avhdx"));
    rig.estate
        .set_merge_state(&host, vm, MergeState::Enabled)
        .unwrap();
    rig.settle();
    assert_eq!(rig.live_files()[0].file_name(), "sql01.vhdx");
}

#[test]
fn a_vm_has_fifty_checkpoints_at_most() {
    let mut options = EstateOptions::seeded(1);
    options.data = lab::estate::DataMode::Lazy;
    let mut lazy = spec("a", GuestOs::Windows);
    lazy.guest = None;
    let mut rig = Rig::with(options, lazy);
    for _ in 0..50 {
        rig.checkpoint(CheckpointRequest::user()).unwrap();
    }
    let error = rig
        .estate
        .create_checkpoint(&rig.host, rig.vm, CheckpointRequest::user())
        .unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidState);
}

#[test]
fn checkpoints_of_vms_that_do_not_run() {
    let mut rig = Rig::new();
    rig.start();
    rig.pass(5);
    rig.request(6);
    let id = rig.recovery(ConsistencyLevel::Application).unwrap();
    let frozen = rig.frozen_files(id);
    assert_eq!(rig.consistency(&frozen), Consistency::Crash);
    rig.start();
    rig.pass(5);
    rig.convert(id).unwrap();
    rig.settle();
    rig.request(9);
    let failure = rig.recovery(ConsistencyLevel::Application).unwrap_err();
    assert_eq!(failure.code, ReturnCode::Failed);
    rig.recovery(ConsistencyLevel::Crash).unwrap();
}
