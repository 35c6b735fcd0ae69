//! Jobs: how long they are there, and what can be done about them.

use std::time::Duration;

use lab::estate::{
    Answer, CheckpointRequest, ConsistencyLevel, EstateOptions, Fault, FaultKind, JobState,
    PowerState, Started, Switch, Trigger,
};
use lab::guest::GuestOs;
use lab::{ErrorKind, ReturnCode};

use super::rig::{Rig, code, spec};

#[test]
fn a_job_is_there_for_five_minutes_after_its_end() {
    let mut rig = Rig::new();
    let (host, vm) = (rig.host.clone(), rig.vm);
    let started = rig.estate.request_state_change(&host, vm, 2).unwrap();
    let id = started.job().unwrap();
    rig.estate.advance(Duration::from_secs(1)).unwrap();
    let job = rig.estate.job(&host, id).unwrap();
    assert_eq!(job.state, JobState::Running);
    assert!((1..=99).contains(&job.percent_complete(rig.estate.now())));
    rig.wait(&started).unwrap();
    rig.pass(299);
    let job = rig.estate.job(&host, id).unwrap();
    assert_eq!(job.percent_complete(rig.estate.now()), 100);
    assert_eq!(job.elapsed(rig.estate.now()), Duration::from_secs(2));
    rig.pass(2);
    assert_eq!(
        rig.estate.job(&host, id).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn what_a_job_made_is_named_only_once_it_completed() {
    let mut rig = Rig::new();
    let (host, vm) = (rig.host.clone(), rig.vm);
    let request = CheckpointRequest::recovery(ConsistencyLevel::Crash);
    let started = rig.estate.create_checkpoint(&host, vm, request).unwrap();
    let id = started.job().unwrap();
    assert!(rig.estate.job(&host, id).unwrap().created.is_empty());
    assert_eq!(rig.wait(&started).unwrap().len(), 1);
}

#[test]
fn jobs_can_vanish_early_be_slow_or_go_unnamed() {
    let mut rig = Rig::new();
    let (host, vm) = (rig.host.clone(), rig.vm);
    rig.inject(Fault::next(FaultKind::JobIsSlow));
    let started = rig.estate.request_state_change(&host, vm, 2).unwrap();
    let job = rig.estate.job(&host, started.job().unwrap()).unwrap();
    assert_eq!(job.ends.since(job.started), Duration::from_secs(40));
    rig.inject(Fault::next(FaultKind::JobVanishes));
    rig.pass(41);
    assert_eq!(
        rig.estate
            .job(&host, started.job().unwrap())
            .unwrap_err()
            .kind(),
        ErrorKind::NotFound
    );
    assert_eq!(rig.estate.vm(&host, vm).unwrap().power, PowerState::Running);
    rig.inject(Fault::next(FaultKind::JobIsNotNamed));
    let started = rig.estate.request_state_change(&host, vm, 3).unwrap();
    assert_eq!(started, Started::UnnamedJob);
    rig.pass(2);
    assert_eq!(rig.estate.vm(&host, vm).unwrap().power, PowerState::Off);
}

#[test]
fn a_job_that_is_cancelled_does_nothing() {
    let mut rig = Rig::new();
    rig.start();
    let (host, vm) = (rig.host.clone(), rig.vm);
    let request = CheckpointRequest::recovery(ConsistencyLevel::Crash);
    let started = rig.estate.create_checkpoint(&host, vm, request).unwrap();
    let id = started.job().unwrap();
    let error = rig.estate.cancel_job(&host, id).unwrap_err();
    assert_eq!(code(&error), ReturnCode::InvalidState);
    rig.wait(&started).unwrap();
    let made = *rig
        .estate
        .vm(&host, vm)
        .unwrap()
        .checkpoints
        .keys()
        .next()
        .unwrap();
    rig.convert(made).unwrap();
    rig.settle();
    rig.estate
        .set_switch(Switch::CancelCheckpointJobs, Answer::Optimistic);
    let started = rig.estate.create_checkpoint(&host, vm, request).unwrap();
    let id = started.job().unwrap();
    rig.estate.cancel_job(&host, id).unwrap();
    assert_eq!(
        rig.estate.job(&host, id).unwrap().state,
        JobState::Terminated
    );
    rig.pass(10);
    let of = rig.estate.vm(&host, vm).unwrap();
    assert!(of.checkpoints.is_empty() && of.activity.is_none());
    assert_eq!(
        code(&rig.estate.cancel_job(&host, id).unwrap_err()),
        ReturnCode::InvalidState
    );
}

#[test]
fn a_fault_strikes_at_its_operation_or_its_time_and_only_its_vm() {
    let mut rig = Rig::new();
    let host = rig.host.clone();
    let other = rig
        .estate
        .add_vm(&host, spec("other", GuestOs::Linux))
        .unwrap();
    rig.start();
    let fault = Fault::next(FaultKind::CheckpointFails);
    rig.inject(fault.clone().of_vm(other));
    rig.inject(
        fault
            .clone()
            .of_vm(rig.vm)
            .when(Trigger::AfterOperations(1)),
    );
    let first = rig.recovery(ConsistencyLevel::Crash).unwrap();
    rig.convert(first).unwrap();
    rig.settle();
    rig.recovery(ConsistencyLevel::Crash).unwrap_err();
    let later = rig.estate.now().after(Duration::from_secs(3600));
    rig.estate.clear_faults();
    rig.inject(fault.when(Trigger::At(later)));
    let id = rig.recovery(ConsistencyLevel::Crash).unwrap();
    rig.convert(id).unwrap();
    rig.settle();
    rig.estate.advance_to(later).unwrap();
    rig.recovery(ConsistencyLevel::Crash).unwrap_err();
}

#[test]
fn two_estates_of_one_seed_are_one_estate() {
    let run = |seed| {
        let mut rig = Rig::with(EstateOptions::seeded(seed), spec("a", GuestOs::Windows));
        rig.start();
        rig.pass(20);
        let id = rig.recovery(ConsistencyLevel::Application).unwrap();
        rig.pass(5);
        let point = rig.convert(id).unwrap();
        rig.settle();
        rig.request(6);
        let live = rig.live_files();
        let files: Vec<Vec<u8>> = live
            .iter()
            .map(|file| std::fs::read(rig.estate.backing(&rig.host, file).unwrap()).unwrap())
            .collect();
        let hashes: Vec<String> = files.iter().map(|it| format!("{:?}", hash(it))).collect();
        (rig.vm, id, point, hashes, rig.estate.now())
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
