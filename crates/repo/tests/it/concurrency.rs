//! Many at once: writers, collectors, readers, verifiers and repairs over one store, from repeatable schedules; and the
//! table of the crate's documentation, walked pair by pair.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use repo::gc::collect_garbage;
use repo::lease::{HeartbeatMode, LeaseTerms};
use repo::repair::RepairMode;
use repo::verify::{VerifyMarks, VerifyOptions, VerifyScope};
use repo::{
    Environment, Error, ErrorKind, OpenOptions, ReadProtection, RecoveryPoint, Repository, Result,
};
use store::Store;

use crate::gc::{collect, options};
use crate::world::{Disk, TestRandom, World, back_up, check_point, point, visible_points};

/// A process of its own with a heartbeat thread, on real time.
fn process(world: &World) -> Repository {
    let terms = LeaseTerms {
        interval_ms: 3,
        stall_ms: 60_000,
        heartbeat: HeartbeatMode::Thread,
        ..LeaseTerms::default()
    };
    let store = Arc::clone(&world.memory) as Arc<dyn Store>;
    let environment = Environment::system("racer");
    let options = OpenOptions {
        lease_terms: terms,
        ..OpenOptions::default()
    };
    Repository::open(store, &world.unlock(), &options, &environment).unwrap()
}

/// Somebody else was there first: the answer that is no failure.
fn is_rivalry(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Busy | ErrorKind::Conflict | ErrorKind::Refused
    )
}

/// Twelve versions of one name; most of them are forgotten at once.
fn write(world: &World, seed: u64, writer: u64, committed: &Mutex<Vec<(RecoveryPoint, Disk)>>) {
    let random = TestRandom::new(seed * 100 + writer);
    let repository = process(world);
    let mut disk = Disk::new(300, &[]);
    for _ in 0..12 {
        // Few different blocks, so that writers count on each other's all the time.
        for _ in 0..6 {
            disk.set(random.below(300), random.below(40));
        }
        match back_up(&repository, &format!("vm{writer}"), &disk) {
            Ok(made) if random.below(3) > 0 => drop(repository.forget(&made, "").unwrap()),
            Ok(made) => committed.lock().unwrap().push((made, disk.clone())),
            Err(error) => panic!("seed {seed}: {error}: {error:?}"),
        }
    }
}

#[test]
fn writers_and_collectors_race_and_every_committed_point_reads_back() {
    for seed in 0..3u64 {
        let world = World::new(seed);
        let committed: Mutex<Vec<(RecoveryPoint, Disk)>> = Mutex::default();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4u64)
                .map(|writer| {
                    let (world, committed) = (&world, &committed);
                    scope.spawn(move || write(world, seed, writer, committed))
                })
                .collect();
            for _ in 0..2 {
                let (world, done) = (&world, &done);
                scope.spawn(move || {
                    let repository = process(world);
                    while !done.load(Ordering::SeqCst) {
                        match collect_garbage(&repository, &options()) {
                            Ok(report) => assert!(report.quarantined.is_empty(), "{report:#?}"),
                            Err(error) => assert!(is_rivalry(&error), "seed {seed}: {error:?}"),
                        }
                    }
                });
            }
            // A writer that failed must not leave the collectors running for ever.
            let outcomes: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
            done.store(true, Ordering::SeqCst);
            outcomes.into_iter().for_each(|outcome| outcome.unwrap());
        });
        let repository = world.open();
        collect(&repository);
        let committed = committed.into_inner().unwrap();
        assert_eq!(
            visible_points(&repository).len(),
            committed.len(),
            "seed {seed}"
        );
        for (point, disk) in &committed {
            check_point(&repository, point, disk)
                .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        let full = VerifyOptions {
            marks: VerifyMarks::ReportOnly,
            ..VerifyOptions::default()
        };
        let report = repository.verify(&full).unwrap();
        assert!(report.is_sound(), "seed {seed}: {report:#?}");
        let stats = repository.stats().unwrap();
        assert!(
            stats.garbage_bytes * 2 <= stats.live_bytes + 1,
            "seed {seed}: {stats:#?}"
        );
    }
}

/// The operations of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Backup,
    Restore,
    Verify,
    CopyFrom,
    Gc,
    Forget,
    Undelete,
    Repair,
}

const OPERATIONS: [Operation; 8] = [
    Operation::Backup,
    Operation::Restore,
    Operation::Verify,
    Operation::CopyFrom,
    Operation::Gc,
    Operation::Forget,
    Operation::Undelete,
    Operation::Repair,
];

fn run(operation: Operation, repository: &Repository, name: &str, disk: &Disk) -> Result<()> {
    match operation {
        Operation::Backup => {
            let mut next = disk.clone();
            next.set(9, 333);
            back_up(repository, name, &next).map(|_| ())
        }
        Operation::Restore => {
            let made = repository.find_point(&"keep@1".parse()?)?.point;
            let session = repository.read_session(
                repo::lease::LeaseKind::Restore,
                &[&made],
                ReadProtection::Lease,
            )?;
            check_point(repository, &made, disk)?;
            session.check()?;
            Arc::into_inner(session).unwrap().finish()
        }
        Operation::Verify => {
            let options = VerifyOptions {
                scope: VerifyScope::Full,
                ..VerifyOptions::default()
            };
            let report = repository.verify(&options)?;
            assert!(report.is_sound(), "{report:#?}");
            Ok(())
        }
        Operation::CopyFrom => {
            let there = World::new(77);
            let report = repository.copy_to(&there.open(), &repo::copy::CopyOptions::default())?;
            check_point(&there.open(), &point(&there.open(), "keep@1"), disk)?;
            assert!(
                report
                    .failed
                    .iter()
                    .all(|(name, ..)| name.as_str() != "keep"),
                "{report:?}"
            );
            Ok(())
        }
        Operation::Gc => {
            let report = collect_garbage(repository, &options())?;
            assert!(
                report.quarantined.is_empty() && !report.spared,
                "{report:#?}"
            );
            Ok(())
        }
        Operation::Forget => {
            let made = repository.find_point(&"go@1".parse()?)?.point;
            repository.forget(&made, "").map(|_| ())
        }
        Operation::Undelete => {
            let Ok(record) = repository.find_point(&"gone@1".parse()?) else {
                return Ok(());
            };
            match repository.undelete(&record.point, "") {
                // Decided before: then it must be gone whole, which is checked at the end.
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                outcome => outcome.map(|_| ()),
            }
        }
        Operation::Repair => {
            let report = repository.repair(&[], RepairMode::Execute)?;
            assert_eq!(report.lost_blobs, 0);
            Ok(())
        }
    }
}

#[test]
fn every_pair_of_operations_runs_at_once_and_nothing_live_is_lost() {
    let base = World::new(50);
    let disk = Disk::new(
        300,
        &(0..30).map(|index| (index, index + 1)).collect::<Vec<_>>(),
    );
    {
        let repository = base.open();
        for name in ["keep", "go", "gone"] {
            let mut own = disk.clone();
            own.set(100, u64::try_from(name.len()).unwrap() * 1_000);
            let content = if name == "keep" { &disk } else { &own };
            back_up(&repository, name, content).unwrap();
        }
        repository
            .forget(&point(&repository, "gone@1"), "")
            .unwrap();
    }
    for first in OPERATIONS {
        for second in OPERATIONS {
            let world = base.fork();
            let start = Barrier::new(2);
            let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
                let threads = [(first, "a"), (second, "b")].map(|(operation, name)| {
                    let (world, start, disk) = (&world, &start, &disk);
                    scope.spawn(move || {
                        let repository = process(world);
                        start.wait();
                        run(operation, &repository, name, disk)
                    })
                });
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .collect()
            });
            let told = format!("{first:?} beside {second:?}");
            for outcome in &outcomes {
                if let Err(error) = outcome {
                    assert!(is_rivalry(error), "{told}: {error:?}");
                }
            }
            let repository = world.open();
            collect(&repository);
            check_point(&repository, &point(&repository, "keep@1"), &disk).unwrap();
            let options = VerifyOptions {
                marks: VerifyMarks::ReportOnly,
                ..VerifyOptions::default()
            };
            let report = repository.verify(&options).unwrap();
            assert!(report.is_sound(), "{told}: {report:#?}");
            assert!(world.objects("leases/").is_empty(), "{told}");
        }
    }
}
