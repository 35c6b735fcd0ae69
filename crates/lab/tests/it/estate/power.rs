//! States of a VM.

use lab::estate::{
    EstateOptions, Fault, FaultKind, PowerState, ResourceChange, ServiceName, ServiceSwitch,
    SystemTarget,
};
use lab::guest::{Consistency, GuestOs};
use lab::{HResult, ReturnCode};

use super::rig::{Rig, code, spec};

impl Rig {
    fn power(&self) -> PowerState {
        self.estate.vm(&self.host, self.vm).unwrap().power
    }
}

#[test]
fn a_vm_goes_through_its_states_and_refuses_what_does_not_fit() {
    let mut rig = Rig::new();
    let (host, vm) = (rig.host.clone(), rig.vm);
    for state in [3, 6, 9, 10, 11] {
        let error = rig
            .estate
            .request_state_change(&host, vm, state)
            .unwrap_err();
        assert_eq!(code(&error), ReturnCode::InvalidState, "{state}");
    }
    let started = rig.estate.request_state_change(&host, vm, 2).unwrap();
    assert_eq!(rig.power(), PowerState::Starting);
    assert_eq!(rig.estate.vm(&host, vm).unwrap().requested, 2);
    let error = rig.estate.request_state_change(&host, vm, 3).unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidState);
    rig.wait(&started).unwrap();
    assert_eq!(rig.power(), PowerState::Running);
    assert_eq!(rig.estate.vm(&host, vm).unwrap().requested, 12);
    for (state, after) in [
        (9, PowerState::Paused),
        (2, PowerState::Running),
        (6, PowerState::Saved),
        (2, PowerState::Running),
        (11, PowerState::Running),
        (10, PowerState::Running),
        (3, PowerState::Off),
    ] {
        rig.request(state);
        assert_eq!(rig.power(), after, "{state}");
    }
    for (state, wanted) in [
        (4, ReturnCode::NotSupported),
        (77, ReturnCode::InvalidParameter),
    ] {
        let error = rig
            .estate
            .request_state_change(&host, vm, state)
            .unwrap_err();
        assert_eq!(code(&error), wanted);
    }
}

#[test]
fn what_stands_on_the_disks_follows_from_how_the_vm_stopped() {
    let mut rig = Rig::new();
    let files = rig.live_files();
    rig.start();
    rig.pass(20);
    rig.request(3);
    assert_eq!(rig.consistency(&files), Consistency::Crash);
    rig.start();
    rig.pass(20);
    let (host, vm) = (rig.host.clone(), rig.vm);
    rig.estate.initiate_shutdown(&host, vm).unwrap();
    rig.pass(30);
    assert_eq!(rig.power(), PowerState::Off);
    assert_eq!(rig.consistency(&files), Consistency::Application);
}

#[test]
fn a_saved_vm_goes_on_with_what_it_had_in_memory() {
    let mut rig = Rig::new();
    rig.start();
    rig.pass(20);
    rig.request(6);
    let files = rig.live_files();
    assert_eq!(rig.consistency(&files), Consistency::Crash);
    let state = rig
        .folder
        .path()
        .join("HV01-D/vm/sql01/Virtual Machines")
        .join(format!("{}.vmrs", rig.vm));
    assert!(state.is_file());
    let committed = |rig: &Rig| {
        rig.estate
            .vm(&rig.host, rig.vm)
            .unwrap()
            .guest()
            .unwrap()
            .committed()
    };
    let before = committed(&rig);
    rig.pass(60);
    assert_eq!(committed(&rig), before);
    rig.start();
    assert!(!state.is_file());
    rig.pass(5);
    assert!(committed(&rig) > before);
}

#[test]
fn a_vm_without_its_file_does_not_start() {
    let mut rig = Rig::new();
    let host = rig.host.clone();
    let file = rig.estate.backing(&host, &rig.live_files()[1]).unwrap();
    std::fs::remove_file(file).unwrap();
    let started = rig.estate.request_state_change(&host, rig.vm, 2).unwrap();
    let failure = rig.wait(&started).unwrap_err();
    assert_eq!(failure.code, ReturnCode::FileNotFound);
    assert_eq!(failure.cause, Some(HResult::FILE_NOT_FOUND));
    assert_eq!(rig.power(), PowerState::Off);
}

#[test]
fn two_vms_do_not_run_from_one_disk() {
    let mut rig = Rig::new();
    let host = rig.host.clone();
    let mut twin = spec("twin", GuestOs::Windows);
    for (disk, path) in twin.disks.iter_mut().zip(rig.live_files()) {
        disk.source = lab::estate::DiskSource::Existing(path);
    }
    let other = rig.estate.add_vm(&host, twin).unwrap();
    rig.start();
    let started = rig.estate.request_state_change(&host, other, 2).unwrap();
    let failure = rig.wait(&started).unwrap_err();
    assert_eq!(failure.cause, Some(HResult::SHARING_VIOLATION));
}

#[test]
fn a_shutdown_needs_a_guest_that_listens() {
    let mut rig = Rig::new();
    let (host, vm) = (rig.host.clone(), rig.vm);
    let error = rig.estate.initiate_shutdown(&host, vm).unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidState);
    rig.start();
    let change = ResourceChange::Service(ServiceName::Shutdown, ServiceSwitch::Disabled);
    let target = SystemTarget::Realized(vm);
    let started = rig
        .estate
        .modify_resources(&host, target, vec![change])
        .unwrap();
    rig.wait(&started).unwrap();
    let error = rig.estate.initiate_shutdown(&host, vm).unwrap_err();
    assert_eq!(code(&error), ReturnCode::NotSupported);
}

#[test]
fn faults_of_state_changes_leave_the_vm_as_it_was() {
    let mut rig = Rig::with(EstateOptions::seeded(2), spec("a", GuestOs::Linux));
    let host = rig.host.clone();
    rig.inject(Fault::next(FaultKind::StateChangeFails));
    let started = rig.estate.request_state_change(&host, rig.vm, 2).unwrap();
    assert_eq!(rig.wait(&started).unwrap_err().code, ReturnCode::Failed);
    assert_eq!(rig.power(), PowerState::Off);
    rig.inject(Fault::next(FaultKind::LogonRightMissing));
    let started = rig.estate.request_state_change(&host, rig.vm, 2).unwrap();
    let failure = rig.wait(&started).unwrap_err();
    assert_eq!(failure.cause, Some(HResult::LOGON_TYPE_NOT_GRANTED));
    rig.start();
    assert_eq!(rig.estate.faults().struck().len(), 2);
}
