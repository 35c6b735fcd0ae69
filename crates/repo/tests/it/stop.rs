//! Operations that are told to stop: whichever call they are at, the lease is given back, and the next run finishes.
//!
//! From the chosen call on the store refuses everything but what is about one lease, and the put of a point that all else is
//! ready for, as the command line does it.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::sync::Arc;

use repo::copy::CopyOptions;
use repo::gc::{GcOptions, collect_garbage};
use repo::repair::{RepairMode, RepairSource};
use repo::verify::{VerifyMarks, VerifyOptions};
use repo::{ErrorKind, Repository};
use store::faulty::{Fault, FaultyStore, PlannedCall};
use store::memory::MemoryStore;
use store::{ObjectName, Store, Verb};

use crate::gc::{collect, options};
use crate::world::{Disk, World, back_up, check_point, point, visible_points};

fn seeds(range: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    range.map(|index| (index, index + 1)).collect()
}

/// A store that is told to stop at a call.
fn stopping_at(memory: &Arc<MemoryStore>, number: u64) -> Arc<FaultyStore<Arc<MemoryStore>>> {
    let plan = move |call: &PlannedCall<'_>| {
        let is_lease = call
            .name
            .strip_prefix("leases/")
            .is_some_and(|rest| !rest.is_empty());
        let is_commit = call.verb == Verb::PutNew && call.name.starts_with("points/");
        (call.number >= number && !is_lease && !is_commit)
            .then_some(Fault::FailBefore(store::ErrorKind::Cancelled))
    };
    Arc::new(FaultyStore::new(Arc::clone(memory), plan))
}

fn verify_only() -> VerifyOptions {
    VerifyOptions {
        marks: VerifyMarks::ReportOnly,
        ..VerifyOptions::default()
    }
}

fn assert_sound(repository: &Repository, told: &str) {
    let report = repository.verify(&verify_only()).unwrap();
    assert!(report.is_sound(), "{told}: {report:#?}");
}

/// Runs `work` on forks of a world, stopped at each of its calls, and `check` after each.
fn at_every_call<T>(
    world: &World,
    work: impl Fn(&Repository) -> repo::Result<T>,
    check: impl Fn(&World, &str),
) {
    let counting = Arc::new(FaultyStore::sound(world.fork().memory));
    work(&world.open_over(Arc::clone(&counting) as Arc<dyn Store>)).unwrap();
    let calls = counting.calls();
    // All of them where they are few, else some from the whole run.
    let step = calls.div_ceil(250).max(1);
    let mut stopped = 0u64;
    for number in (1..=calls).step_by(usize::try_from(step).unwrap()) {
        let fork = world.fork();
        let told = format!("stopped at call {number} of {calls}");
        let store = stopping_at(&fork.memory, number);
        let Ok(repository) = fork.try_open_over(store) else {
            continue;
        };
        if let Err(error) = work(&repository) {
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{told}: {error}");
            stopped += 1;
        }
        drop(repository);
        let left = fork.objects("leases/");
        assert!(left.is_empty(), "{told}: {left:?}");
        check(&fork, &told);
    }
    assert!(stopped > 5, "only {stopped} runs were stopped");
}

/// A repository with something to keep, something to free, and packs that are worth packing anew.
fn estate(seed: u64) -> (World, Disk) {
    let world = World::new(seed);
    let repository = world.open();
    let old = back_up(&repository, "old", &Disk::new(300, &seeds(0..30))).unwrap();
    let mut disk = Disk::new(300, &seeds(0..4));
    back_up(&repository, "vm", &disk).unwrap();
    disk.set(200, 900);
    back_up(&repository, "vm", &disk).unwrap();
    repository.forget(&old, "").unwrap();
    (world, disk)
}

#[test]
fn a_verification_that_is_stopped_leaves_no_lease() {
    let (world, _) = estate(1);
    at_every_call(
        &world,
        |repository| repository.verify(&VerifyOptions::default()),
        |fork, told| assert_sound(&fork.open(), told),
    );
}

#[test]
fn a_gc_that_is_stopped_is_finished_by_the_next() {
    let (world, disk) = estate(2);
    let eager = GcOptions {
        repack_below_percent: 100,
        ..options()
    };
    at_every_call(
        &world,
        |repository| collect_garbage(repository, &eager),
        |fork, told| {
            assert_sound(&fork.open(), told);
            collect_garbage(&fork.open(), &eager).unwrap();
            collect(&fork.open());
            let repository = fork.open();
            assert_eq!(visible_points(&repository), ["vm@1", "vm@2"], "{told}");
            check_point(&repository, &point(&repository, "vm"), &disk).unwrap();
            assert_sound(&repository, told);
            let records = fork.objects("gc/");
            assert!(
                !records.iter().any(|name| name.ends_with(".condemned")),
                "{told}: {records:?}"
            );
        },
    );
}

#[test]
fn a_copy_that_is_stopped_at_either_end_goes_on_where_it_was() {
    let (here, disk) = estate(3);
    let there = World::new(103);
    let finish = |target: &World, told: &str| {
        let report = here
            .open()
            .copy_to(&target.open(), &CopyOptions::default())
            .unwrap();
        assert_eq!(report.failed, [], "{told}");
        let repository = target.open();
        assert_eq!(visible_points(&repository).len(), 2, "{told}");
        check_point(&repository, &point(&repository, "vm"), &disk).unwrap();
        assert_sound(&repository, told);
    };
    let from = here.open();
    at_every_call(
        &there,
        |target| from.copy_to(target, &CopyOptions::default()),
        finish,
    );
    at_every_call(
        &here,
        |source| {
            let target = there.fork();
            let outcome = source.copy_to(&target.open(), &CopyOptions::default());
            assert!(target.objects("leases/").is_empty());
            finish(&target, "stopped at the source");
            outcome
        },
        |_, _| {},
    );
}

#[test]
fn a_repair_that_is_stopped_can_be_repeated() {
    let (here, disk) = estate(4);
    let there = World::new(104);
    here.open()
        .copy_to(&there.open(), &CopyOptions::default())
        .unwrap();
    let copy = there.open();
    let pack: ObjectName = here.objects("data/")[0].parse().unwrap();
    here.memory
        .damage(&pack, |bytes| bytes[700] ^= 0x40)
        .unwrap();
    at_every_call(
        &here,
        |repository| repository.repair(&[RepairSource::Repository(&copy)], RepairMode::Execute),
        |fork, told| {
            let report = fork
                .open()
                .repair(&[RepairSource::Repository(&copy)], RepairMode::Execute)
                .unwrap();
            let after = report.after.unwrap();
            assert!(after.is_sound(), "{told}: {after:#?}");
            let repository = fork.open();
            check_point(&repository, &point(&repository, "vm"), &disk).unwrap();
        },
    );
}
