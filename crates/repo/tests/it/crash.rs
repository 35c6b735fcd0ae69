//! A process that dies at any call on its store: what was committed reads back, nothing else is visible, and garbage
//! collection afterwards leaves exactly what is needed.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use repo::{BlobName, BusyPolicy, PointDraft, Repository, Result};
use store::Store;
use store::faulty::{Fault, FaultyStore, Moment, SeededFaults};

use crate::gc::{collect, options, stored_blobs};
use crate::world::{
    Disk, TestRandom, World, back_up, begin_options, block_hash, check_point, commit, name, point,
    transfer, visible_points,
};

fn seeds(range: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    range.map(|index| (index, index + 1)).collect()
}

/// Blocks that packs hold, as texts.
fn blocks_of(disks: &[&Disk]) -> BTreeSet<String> {
    disks
        .iter()
        .flat_map(|disk| disk.blocks.values())
        .map(|seed| BlobName::Block(block_hash(*seed)).to_string())
        .collect()
}

/// Runs `work` over a store that dies at each of its calls, and `check` on what is left.
fn at_every_call(
    world: &World,
    work: impl Fn(&Repository) -> Result<()>,
    check: impl Fn(&World, &str),
) {
    let counting = Arc::new(FaultyStore::sound(world.fork().memory));
    work(&world.open_over(Arc::clone(&counting) as Arc<dyn Store>)).unwrap();
    let calls = counting.calls();
    assert!(calls > 10, "only {calls} calls");
    for number in 1..=calls {
        for moment in [Moment::Before, Moment::After] {
            let fork = world.fork();
            let dying = FaultyStore::crashing_at(Arc::clone(&fork.memory), number, moment);
            let told = format!("call {number} of {calls}, {moment:?}");
            if let Ok(repository) = fork.try_open_over(Arc::new(dying)) {
                // Whatever it answers: what counts is what is in the store.
                drop(work(&repository));
            }
            check(&fork, &told);
        }
    }
}

#[test]
fn a_backup_that_dies_at_any_call_is_there_whole_or_not_at_all() {
    let world = World::new(1);
    let old = Disk::new(300, &seeds(0..6));
    back_up(&world.open(), "vm", &old).unwrap();
    let mut new = old.clone();
    new.set(2, 900);
    new.set(250, 901);
    at_every_call(
        &world,
        |repository| {
            let session = repository.begin(&name("vm"), &begin_options())?;
            let version = transfer(&session, &new)?;
            session.checkpoint(version)?;
            commit(session, &new).map(|_| ())
        },
        |fork, told| {
            let repository = fork.open();
            let points = visible_points(&repository);
            assert!(
                points == ["vm@1"] || points == ["vm@1", "vm@2"],
                "{told}: {points:?}"
            );
            check_point(&repository, &point(&repository, "vm@1"), &old).unwrap();
            let committed = points.len() == 2;
            if committed {
                check_point(&repository, &point(&repository, "vm@2"), &new).unwrap();
            }
            collect(&repository);
            assert_eq!(visible_points(&repository), points, "{told}");
            let wanted = if committed {
                blocks_of(&[&old, &new])
            } else {
                blocks_of(&[&old])
            };
            let stored: BTreeSet<String> = stored_blobs(fork)
                .into_iter()
                .filter(|name| name.starts_with("block "))
                .collect();
            assert_eq!(stored, wanted, "{told}");
            assert!(fork.objects("leases/").is_empty(), "{told}");
            // The next backup goes on, with a number that was never used.
            let made = back_up(&fork.open(), "vm", &new).unwrap();
            assert!(
                made.sequence > u64::try_from(points.len()).unwrap(),
                "{told}"
            );
            check_point(&fork.open(), &made, &new).unwrap();
        },
    );
}

#[test]
fn a_resumed_backup_that_dies_as_well_loses_nothing_that_was_committed() {
    let world = World::new(2);
    let old = Disk::new(300, &seeds(0..4));
    back_up(&world.open(), "vm", &old).unwrap();
    let mut new = old.clone();
    (10..16).for_each(|index| new.set(index, 700 + index));
    {
        // One that died with a partial tree in its lease.
        let repository = world.open();
        let session = repository.begin(&name("vm"), &begin_options()).unwrap();
        let version = transfer(&session, &new).unwrap();
        session.checkpoint(version).unwrap();
    }
    let resume = repo::BeginOptions {
        busy: BusyPolicy::WaitForStall,
        ..begin_options()
    };
    at_every_call(
        &world,
        |repository| {
            let session = repository.begin(&name("vm"), &resume)?;
            commit(session, &new).map(|_| ())
        },
        |fork, told| {
            let repository = fork.open();
            check_point(&repository, &point(&repository, "vm@1"), &old).unwrap();
            let session = repository.begin(&name("vm"), &resume);
            let session = session.unwrap_or_else(|error| panic!("{told}: {error}"));
            let version = transfer(&session, &new).unwrap();
            let draft = PointDraft {
                disks: vec![version],
                ..PointDraft::default()
            };
            let made = session.commit(draft).unwrap();
            collect(&repository);
            check_point(&fork.open(), &made, &new).unwrap();
            check_point(&fork.open(), &point(&repository, "vm@1"), &old).unwrap();
        },
    );
}

#[test]
fn forgetting_holding_and_undeleting_survive_a_death_at_any_call() {
    let world = World::new(3);
    let disk = Disk::new(300, &seeds(0..6));
    back_up(&world.open(), "vm", &disk).unwrap();
    at_every_call(
        &world,
        |repository| {
            let made = repository.find_point(&"vm@1".parse()?)?.point;
            repository.forget(&made, "")?;
            repository.undelete(&made, "")?;
            repository.hold(&made, "")?;
            repository.release(&made, "").map(|_| ())
        },
        |fork, told| {
            let repository = fork.open();
            let before = visible_points(&repository);
            collect(&repository);
            assert_eq!(visible_points(&repository), before, "{told}");
            if before.is_empty() {
                assert!(fork.objects("data/").is_empty(), "{told}");
            } else {
                check_point(&fork.open(), &point(&repository, "vm@1"), &disk).unwrap();
            }
        },
    );
}

#[test]
fn a_store_that_fails_now_and_then_costs_runs_and_never_a_byte() {
    for seed in 0..24u64 {
        let world = World::new(100 + seed);
        let random = TestRandom::new(seed);
        let mut disk = Disk::new(300, &seeds(0..10));
        let mut committed = Vec::new();
        for round in 0..6u64 {
            disk.set(random.below(300), 1_000 + round);
            let faults = vec![
                Fault::FailBefore(store::ErrorKind::Unavailable),
                Fault::FailAfter(store::ErrorKind::Unavailable),
                Fault::FailBefore(store::ErrorKind::Full),
            ];
            let plan = SeededFaults::new(random.next(), 15, faults);
            let flaky = Arc::new(FaultyStore::new(Arc::clone(&world.memory), plan));
            let before = world.objects("points/").len();
            let Ok(repository) = world.try_open_over(flaky) else {
                continue;
            };
            let outcome = back_up(&repository, "vm", &disk);
            if let Ok(made) = &outcome {
                committed.push((made.clone(), disk.clone()));
            } else if world.objects("points/").len() > before {
                // The answer was lost, or it was fenced: whoever lists the points knows.
                let listed = world.open().points().unwrap().0;
                let known: Vec<_> = committed.iter().map(|(one, _)| one.point).collect();
                for record in listed {
                    if !known.contains(&record.point.point) {
                        committed.push((record.point, disk.clone()));
                    }
                }
            }
            drop(repo::gc::collect_garbage(&repository, &options()));
            let sound = world.open();
            for (point, disk) in &committed {
                check_point(&sound, point, disk)
                    .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
        }
        let repository = world.open();
        collect(&repository);
        assert_eq!(
            visible_points(&repository).len(),
            committed.len(),
            "seed {seed}"
        );
        for (point, disk) in &committed {
            check_point(&world.open(), point, disk).unwrap();
        }
    }
}
