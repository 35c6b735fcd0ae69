//! Garbage collection between two steps of somebody else: a backup that has just listed points, or another collector that
//! was stopped and goes on. What is removed stays removed, and nothing else goes.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use repo::gc::{GcOptions, collect_garbage};
use repo::{ErrorKind, RecoveryPoint, Repository};
use store::faulty::{Fault, FaultyStore, PlannedCall};
use store::{Store, Verb};

use crate::gc::{collect, options};
use crate::world::{
    Disk, World, back_up, begin_options, check_point, commit, name, point, visible_points,
};

fn seeds(range: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    range.map(|index| (index, index + 1)).collect()
}

/// Which call a process is stopped before.
type Pick = fn(&PlannedCall<'_>) -> bool;

/// A repository whose process is stopped once, before the first call that `is_it` picks, while `work` is done by others.
fn stopped(
    world: &World,
    is_it: impl Fn(&PlannedCall<'_>) -> bool + Send + 'static,
    work: impl FnOnce() + Send + 'static,
) -> (Repository, Arc<AtomicBool>) {
    let done = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&done);
    let mut work = Some(work);
    let plan = move |call: &PlannedCall<'_>| -> Option<Fault> {
        if is_it(call)
            && let Some(work) = work.take()
        {
            work();
            told.store(true, Ordering::SeqCst);
        }
        None
    };
    let store = FaultyStore::sound(Arc::clone(&world.memory));
    let store = Arc::new(store);
    let repository = world.open_over(Arc::clone(&store) as Arc<dyn Store>);
    store.set_plan(plan);
    (repository, done)
}

/// Two versions of `vm`, and what they hold.
fn two_versions(world: &World) -> [(RecoveryPoint, Disk); 2] {
    let repository = world.open();
    let first = Disk::new(300, &seeds(0..40));
    let mut second = first.clone();
    (0..40).for_each(|index| second.set(index, 1_000 + index));
    let one = back_up(&repository, "vm", &first).unwrap();
    let two = back_up(&repository, "vm", &second).unwrap();
    [(one, first), (two, second)]
}

#[test]
fn a_version_that_was_removed_while_points_were_listed_is_no_parent() {
    let picks: [Pick; 2] = [
        // The points are listed, the marks are not read yet.
        |call| call.verb == Verb::List && call.name.starts_with("marks/"),
        // The parent is chosen, and no lease keeps it yet.
        |call| call.verb == Verb::PutNew && call.name.starts_with("leases/"),
    ];
    for (case, pick) in picks.into_iter().enumerate() {
        let world = World::new(1);
        let [(one, first), (two, second)] = two_versions(&world);
        let cleaner = world.open();
        let gone = two.clone();
        let (repository, stopped) = stopped(&world, pick, move || {
            cleaner.forget(&gone, "").unwrap();
            assert_eq!(collect(&cleaner).dropped, [gone.key()]);
        });
        let session = repository.begin(&name("vm"), &begin_options()).unwrap();
        assert!(stopped.load(Ordering::SeqCst));
        let parent = session.base().parent.as_ref().map(RecoveryPoint::key);
        assert_eq!(parent, Some(one.key()), "case {case}");
        let made = commit(session, &second).unwrap();
        assert_eq!(made.sequence, 3, "case {case}");
        check_point(&world.open(), &made, &second).unwrap();
        check_point(&world.open(), &one, &first).unwrap();
    }
}

#[test]
fn a_version_that_was_removed_while_points_were_listed_is_shown_to_nobody() {
    let is_marks =
        |call: &PlannedCall<'_>| call.verb == Verb::List && call.name.starts_with("marks/");
    for latest in [true, false] {
        let world = World::new(2);
        let [_, (two, _)] = two_versions(&world);
        let cleaner = world.open();
        cleaner.forget(&two, "").unwrap();
        let (repository, stopped) = stopped(&world, is_marks, move || {
            collect(&cleaner);
        });
        if latest {
            assert_eq!(point(&repository, "vm").sequence, 1);
        } else {
            assert_eq!(visible_points(&repository), ["vm@1"]);
        }
        assert!(stopped.load(Ordering::SeqCst));
    }
}

#[test]
fn a_damaged_upper_node_spares_what_is_below_it() {
    // One disk of two levels; a bit of its top is wrong.
    let world = World::new(3);
    let repository = world.open();
    let disk = Disk::new(300, &seeds(0..40));
    let kept = back_up(&repository, "kept", &disk).unwrap();
    let gone = back_up(&repository, "gone", &Disk::new(300, &seeds(100..140))).unwrap();
    repository.forget(&gone, "").unwrap();
    let top = kept.disks[0].top;
    let dump = repository.dump_index().unwrap();
    let mut damaged = 0;
    for pack in dump
        .packs
        .iter()
        .filter(|pack| pack.kind == repo::PackKind::Node)
    {
        for (_, entry) in repository.dump_pack(pack.kind, pack.id).unwrap().blobs {
            if matches!(entry.name, repo::BlobName::Node { level, hash } if level >= 2 && hash == top)
            {
                let id = pack.id.to_string();
                let object = world
                    .objects("node/")
                    .into_iter()
                    .find(|name| name.ends_with(&id));
                let at = usize::try_from(entry.offset).unwrap() + 20;
                let object = object.unwrap().parse().unwrap();
                world
                    .memory
                    .damage(&object, |bytes| bytes[at] ^= 4)
                    .unwrap();
                damaged += 1;
            }
        }
    }
    assert_eq!(damaged, 1);
    let packs: BTreeSet<String> = world.objects("data/").into_iter().collect();
    let report = collect(&world.open());
    assert!(
        report.spared && !report.quarantined.is_empty(),
        "{report:#?}"
    );
    let left: BTreeSet<String> = world.objects("data/").into_iter().collect();
    assert_eq!(left, packs, "what is below a damaged node is not known");
}

#[test]
fn no_number_is_given_while_it_is_not_known_which_ones_were() {
    let world = World::new(4);
    let [(one, _), (two, second)] = two_versions(&world);
    let repository = world.open();
    // The highest numbers are told by the verdict alone, which lies there twice.
    repository.forget(&one, "").unwrap();
    repository.forget(&two, "").unwrap();
    collect(&repository);
    let objects: [String; 2] = world.objects("gc/").try_into().unwrap();
    let flip = |at: usize| {
        let name = objects[at].parse().unwrap();
        world.memory.damage(&name, |bytes| bytes[70] ^= 1).unwrap();
    };
    flip(0);
    flip(1);
    let error = world
        .open()
        .begin(&name("vm"), &begin_options())
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains(&objects[0]), "{error}");
    assert!(world.objects("leases/").is_empty());
    // One of the two is enough, whichever it is.
    flip(0);
    assert_eq!(back_up(&world.open(), "vm", &second).unwrap().sequence, 3);
    flip(0);
    flip(1);
    assert_eq!(back_up(&world.open(), "vm", &second).unwrap().sequence, 4);
}

#[test]
fn a_stray_object_with_the_last_number_does_not_use_the_numbers_up() {
    let world = World::new(5);
    let [(one, _), (_, second)] = two_versions(&world);
    let stray = format!("points/{}/{:016x}", one.key().name_id, u64::MAX);
    world
        .memory
        .put_new(&stray.parse().unwrap(), b"not a point")
        .unwrap();
    assert_eq!(back_up(&world.open(), "vm", &second).unwrap().sequence, 3);
    // One that is near is a damaged point: its number stays its own.
    let near = format!("points/{}/{:016x}", one.key().name_id, 4);
    world
        .memory
        .put_new(&near.parse().unwrap(), b"not a point")
        .unwrap();
    assert_eq!(back_up(&world.open(), "vm", &second).unwrap().sequence, 5);
}

#[test]
fn a_collector_that_was_stopped_while_bundling_brings_nothing_back() {
    let small = GcOptions {
        bundle_points_min: 2,
        ..options()
    };
    let picks: [(Pick, bool); 2] = [
        // It has listed single points and not the bundles yet.
        (
            |call| call.verb == Verb::List && call.name.starts_with("bundles"),
            false,
        ),
        // The very put of the bundle.
        (
            |call| call.verb == Verb::PutNew && call.name.starts_with("bundles/"),
            true,
        ),
    ];
    for (pick, is_put) in picks {
        let world = World::new(6);
        let repository = world.open();
        let mut disk = Disk::new(300, &seeds(0..20));
        let mut made = Vec::new();
        for round in 0..6u64 {
            disk.set(round, 900 + round);
            made.push((back_up(&repository, "vm", &disk).unwrap(), disk.clone()));
        }
        let cleaner = world.open();
        let gone = made[5].0.clone();
        let (collector, stopped) = stopped(&world, pick, move || {
            cleaner.forget(&gone, "").unwrap();
            collect(&cleaner);
        });
        let outcome = collect_garbage(&collector, &small);
        assert!(stopped.load(Ordering::SeqCst));
        if !is_put {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Fenced);
        }
        let left = ["vm@1", "vm@2", "vm@3", "vm@4", "vm@5"];
        assert_eq!(visible_points(&world.open()), left);
        collect_garbage(&world.open(), &small).unwrap();
        assert_eq!(visible_points(&world.open()), left);
        for (point, disk) in &made[..5] {
            check_point(&world.open(), point, disk).unwrap();
        }
        let next = back_up(&world.open(), "vm", &disk).unwrap();
        assert_eq!(
            (next.sequence, next.parent.map(|parent| parent.sequence)),
            (7, Some(5))
        );
    }
}

#[test]
fn a_collector_that_was_stopped_decides_nothing_by_what_it_had_marked() {
    let picks: [Pick; 3] = [
        |call| call.verb != Verb::List && call.name.starts_with("node/"),
        |call| call.verb == Verb::PutNew && call.name.ends_with(".condemned"),
        |call| call.verb == Verb::PutNew && call.name.ends_with(".verdict"),
    ];
    for (case, pick) in picks.into_iter().enumerate() {
        let world = World::new(7);
        let [(one, first), (two, second)] = two_versions(&world);
        let other = back_up(&world.open(), "other", &Disk::new(300, &seeds(500..520))).unwrap();
        let cleaner = world.open();
        cleaner.forget(&one, "").unwrap();
        let (back, away) = (one.clone(), other.clone());
        let (collector, stopped) = stopped(&world, pick, move || {
            // What the first one condemned is wanted after all; others collect twice.
            cleaner.undelete(&back, "").unwrap();
            collect(&cleaner);
            cleaner.forget(&away, "").unwrap();
            assert_eq!(collect(&cleaner).dropped, [away.key()]);
        });
        let error = collect_garbage(&collector, &options()).unwrap_err();
        assert!(stopped.load(Ordering::SeqCst));
        assert_eq!(error.kind(), ErrorKind::Fenced, "case {case}: {error}");
        for _ in 0..2 {
            assert_eq!(
                visible_points(&world.open()),
                ["vm@1", "vm@2"],
                "case {case}"
            );
            check_point(&world.open(), &one, &first).unwrap();
            check_point(&world.open(), &two, &second).unwrap();
            collect(&world.open());
        }
        let records = world.objects("gc/");
        assert!(
            records.iter().all(|name| name.contains(".verdict")),
            "{records:?}"
        );
    }
}

#[test]
fn a_collector_whose_generation_an_undelete_ended_begins_again_and_removes_the_rest() {
    let world = World::new(9);
    let [(one, first), (two, second)] = two_versions(&world);
    let other = back_up(&world.open(), "other", &Disk::new(300, &seeds(500..520))).unwrap();
    let beside = world.open();
    beside.forget(&one, "").unwrap();
    beside.forget(&other, "").unwrap();
    let back = one.clone();
    let (collector, interrupted) = stopped(
        &world,
        |call| call.verb == Verb::PutNew && call.name.ends_with(".verdict"),
        move || {
            beside.undelete(&back, "").unwrap();
        },
    );
    let report = collect_garbage(&collector, &options()).unwrap();
    assert!(interrupted.load(Ordering::SeqCst));
    assert_eq!(report.dropped, [other.key()]);
    assert!(report.finished.is_empty() && report.quarantined.is_empty());
    check_point(&world.open(), &one, &first).unwrap();
    check_point(&world.open(), &two, &second).unwrap();
    assert_eq!(visible_points(&world.open()), ["vm@1", "vm@2"]);
}

#[test]
fn a_point_that_appears_damaged_before_the_verdict_spares_every_pack() {
    let world = World::new(8);
    let [(one, _), (_, second)] = two_versions(&world);
    world.open().forget(&one, "").unwrap();
    let packs = world.objects("data/");
    let memory = Arc::clone(&world.memory);
    let object = format!("points/{}/{:016x}", one.key().name_id, 3);
    let (collector, stopped) = stopped(
        &world,
        |call| call.verb == Verb::PutNew && call.name.ends_with(".condemned"),
        move || {
            let name = object.parse().unwrap();
            memory
                .put_new(&name, b"what it needs nobody knows")
                .unwrap();
        },
    );
    let report = collect(&collector);
    assert!(stopped.load(Ordering::SeqCst));
    assert!(report.spared, "{report:#?}");
    assert_eq!(report.deleted.objects, 0, "{report:#?}");
    assert_eq!(report.rescued.len(), 2, "{report:#?}");
    assert_eq!(world.objects("data/"), packs);
    check_point(&world.open(), &point(&world.open(), "vm@2"), &second).unwrap();
}
