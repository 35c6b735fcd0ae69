//! Numbers are given once, whatever is damaged or taken away: bundles, verdicts, points, marks; and giving up is honest.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::sync::Arc;

use repo::copy::CopyOptions;
use repo::gc::{GcOptions, GcReport, collect_garbage};
use repo::repair::{RepairMode, RepairOptions, RepairReport, RepairSource, UnreadablePolicy};
use repo::verify::{VerifyMarks, VerifyOptions, VerifyReport, VerifyScope};
use repo::{ErrorKind, ReadProtection, Repository};
use store::Store;
use store::faulty::{FaultyStore, Moment};

use crate::gc::{collect, options};
use crate::world::{Disk, World, back_up, begin_options, check_point, name, point, visible_points};

const GIVE_UP: RepairOptions = RepairOptions {
    mode: RepairMode::Execute,
    unreadable: UnreadablePolicy::GiveUp,
};

fn disk(number: u64) -> Disk {
    let blocks: Vec<(u64, u64)> = (0..20)
        .map(|index| (index, 1_000 * number + index))
        .collect();
    Disk::new(300, &blocks)
}

/// Collects, and bundles whatever can be.
fn bundle(repository: &Repository) -> GcReport {
    let small = GcOptions {
        bundle_points_min: 1,
        ..options()
    };
    collect_garbage(repository, &small).unwrap()
}

/// Three versions of `vm` and one of `other` in one bundle.
fn bundled(seed: u64) -> World {
    let world = World::new(seed);
    let repository = world.open();
    for number in 1..=3 {
        back_up(&repository, "vm", &disk(number)).unwrap();
    }
    back_up(&repository, "other", &disk(7)).unwrap();
    assert_eq!(bundle(&repository).bundled, 4);
    assert_eq!(world.objects("points/"), [""; 0]);
    world
}

fn flip(world: &World, object: &str) {
    let name = object.parse().unwrap();
    world.memory.damage(&name, |bytes| bytes[70] ^= 1).unwrap();
}

/// The bundle; its copy lies beside it.
fn the_bundle(world: &World) -> String {
    let [bundle, copy] = world.objects("bundles/").try_into().unwrap();
    assert_eq!(copy, format!("{bundle}.copy"));
    bundle
}

/// Damages the bundle and its copy; gives its name.
fn damage_bundle(world: &World) -> String {
    let bundle = the_bundle(world);
    flip(world, &bundle);
    flip(world, &format!("{bundle}.copy"));
    bundle
}

fn delete_all(world: &World, prefix: &str) {
    for object in world.objects(prefix) {
        world.memory.delete(&object.parse().unwrap()).unwrap();
    }
}

fn verify(world: &World) -> VerifyReport {
    let quiet = VerifyOptions {
        scope: VerifyScope::Full,
        marks: VerifyMarks::ReportOnly,
        protection: ReadProtection::None,
    };
    world.open().verify(&quiet).unwrap()
}

fn next_of(world: &World, of: &str) -> u64 {
    back_up(&world.open(), of, &disk(50)).unwrap().sequence
}

fn repair(world: &World, options: impl Into<RepairOptions>) -> RepairReport {
    world.open().repair(&[], options).unwrap()
}

fn copy_all(world: &World, copy: &Repository) {
    let report = world.open().copy_to(copy, &CopyOptions::default());
    assert_eq!(report.unwrap().copied.len(), 4);
}

fn refusal(world: &World, of: &str) -> ErrorKind {
    let begun = world.open().begin(&name(of), &begin_options()).map(|_| ());
    begun.unwrap_err().kind()
}

#[test]
fn a_damaged_bundle_stops_no_backup_and_no_number_is_given_twice() {
    let world = bundled(1);
    damage_bundle(&world);
    assert_eq!(next_of(&world, "vm"), 4);
    assert_eq!(next_of(&world, "other"), 2);
    assert_eq!(next_of(&world, "new"), 1);
    let report = verify(&world);
    assert!(!report.is_sound());
    let gaps: Vec<(u64, u64)> = (report.missing_points.iter())
        .map(|gap| (gap.first, gap.last))
        .collect();
    assert!(gaps.contains(&(1, 3)) && gaps.contains(&(1, 1)), "{gaps:?}");
    // What it held is not known, so that nothing goes.
    assert!(collect(&world.open()).spared);
}

#[test]
fn one_damaged_or_missing_half_of_a_bundle_loses_nothing_and_is_replaced_by_repair() {
    for half in ["", ".copy"] {
        for delete in [true, false] {
            let world = bundled(13);
            let object = format!("{}{half}", the_bundle(&world));
            if delete {
                world.memory.delete(&object.parse().unwrap()).unwrap();
            } else {
                flip(&world, &object);
            }
            let told = format!("{object}, deleted: {delete}");
            assert_eq!(visible_points(&world.open()).len(), 4, "{told}");
            let report = verify(&world);
            let named: Vec<&String> = report.findings.iter().map(|one| &one.object).collect();
            assert!(
                report.is_sound() && named == [&object],
                "{told}: {report:#?}"
            );
            if delete {
                // Garbage collection puts the other one beside it again.
                let fork = world.fork();
                collect(&fork.open());
                the_bundle(&fork);
                assert!(verify(&fork).findings.is_empty(), "{told}");
            }
            // Collected and dropped from as ever.
            let fork = world.fork();
            let repository = fork.open();
            repository.forget(&point(&repository, "vm@2"), "").unwrap();
            assert!(!bundle(&repository).spared, "{told}");
            let left = ["other@1", "vm@1", "vm@3"];
            assert_eq!(visible_points(&fork.open()), left, "{told}");
            assert!(verify(&fork).findings.is_empty(), "{told}");

            let dry = repair(&world, RepairMode::DryRun);
            let done = repair(&world, RepairMode::Execute);
            assert_eq!((dry.bundles_rewritten, done.bundles_rewritten), (1, 1));
            assert!(done.after.unwrap().findings.is_empty(), "{told}");
            the_bundle(&world);
            assert_eq!(visible_points(&world.open()).len(), 4, "{told}");
        }
    }
}

#[test]
fn a_bundle_is_given_up_only_when_told_and_stays_where_it_can_be_examined() {
    let world = bundled(2);
    let object = damage_bundle(&world);
    let body = world.memory.get(&object.parse().unwrap()).unwrap();
    let report = repair(&world, RepairMode::Execute);
    assert_eq!(report.lost.unreadable, std::slice::from_ref(&object));
    assert!(report.lost.put_away.is_empty());
    assert_eq!(the_bundle(&world), object);

    let before = world.objects("");
    let dry = RepairOptions {
        mode: RepairMode::DryRun,
        ..GIVE_UP
    };
    let planned = repair(&world, dry);
    assert_eq!(world.objects(""), before);
    let done = repair(&world, GIVE_UP);
    assert_eq!(planned.lost, done.lost);
    assert_eq!(done.lost.put_away, std::slice::from_ref(&object));
    let lost: u64 = (done.lost.numbers.iter())
        .map(|gap| gap.last - gap.first + 1)
        .sum();
    assert_eq!((lost, done.lost.floor), (4, None));

    assert_eq!(world.objects("bundles/"), [""; 0]);
    let put_away = format!("quarantine/{object}");
    assert_eq!(world.memory.get(&put_away.parse().unwrap()).unwrap(), body);
    let after = verify(&world);
    assert!(after.is_sound(), "{after:#?}");
    let named: Vec<&String> = after.findings.iter().map(|one| &one.object).collect();
    assert_eq!(named, [&put_away, &format!("{put_away}.copy")]);
    // What only the lost points needed is garbage, and their numbers are never given again.
    assert!(collect(&world.open()).deleted.objects > 0);
    assert_eq!(world.objects("data/"), [""; 0]);
    assert_eq!(next_of(&world, "vm"), 4);
    assert_eq!(next_of(&world, "other"), 2);
}

#[test]
fn what_was_given_up_comes_back_under_its_own_number_when_a_copy_is_found() {
    let world = bundled(3);
    let elsewhere = World::new(1_003);
    let copy = elsewhere.open();
    copy_all(&world, &copy);
    damage_bundle(&world);
    repair(&world, GIVE_UP);
    assert_eq!(next_of(&world, "vm"), 4);
    let sources = [RepairSource::Repository(&copy)];
    let report = world.open().repair(&sources, RepairMode::Execute).unwrap();
    assert_eq!(report.points_restored.len(), 4, "{report:#?}");
    assert_eq!(
        visible_points(&world.open()),
        ["other@1", "vm@1", "vm@2", "vm@3", "vm@4"]
    );
    let repository = world.open();
    check_point(&repository, &point(&repository, "vm@2"), &disk(2)).unwrap();
}

#[test]
fn a_bundle_whose_points_all_came_back_from_a_copy_is_put_away_unasked() {
    let world = bundled(4);
    let elsewhere = World::new(1_004);
    let copy = elsewhere.open();
    copy_all(&world, &copy);
    damage_bundle(&world);
    let sources = [RepairSource::Repository(&copy)];
    let report = world.open().repair(&sources, RepairMode::Execute).unwrap();
    assert_eq!(report.points_restored.len(), 4, "{report:#?}");
    assert_eq!(
        (report.lost.put_away.len(), report.lost.numbers.len()),
        (1, 0)
    );
    assert!(report.after.unwrap().is_sound());
    assert_eq!(visible_points(&world.open()).len(), 4);
}

#[test]
fn without_any_verdict_a_damaged_bundle_leaves_every_name_in_doubt_until_it_is_given_up() {
    let world = bundled(5);
    damage_bundle(&world);
    delete_all(&world, "gc/");
    assert_eq!(refusal(&world, "vm"), ErrorKind::Corrupt);
    assert_eq!(refusal(&world, "new"), ErrorKind::Corrupt);
    let floor = repair(&world, GIVE_UP).lost.floor.unwrap();
    // Names that were in the bundle and nowhere else are not known: no number can be sure to be new below the floor.
    for of in ["vm", "other", "new"] {
        assert_eq!(next_of(&world, of), floor + 1);
    }
    assert!(verify(&world).is_sound());
    bundle(&world.open());
    for of in ["vm", "other", "new"] {
        assert_eq!(next_of(&world, of), floor + 2);
    }
    let report = verify(&world);
    assert!(report.is_sound(), "{report:#?}");
}

#[test]
fn a_damaged_point_is_given_up_and_its_place_stays_taken() {
    let world = World::new(6);
    let repository = world.open();
    let made = back_up(&repository, "vm", &disk(1)).unwrap();
    back_up(&repository, "vm", &disk(2)).unwrap();
    let object = format!("points/{}/{:016x}", made.name_id, 1);
    flip(&world, &object);
    assert!(collect(&world.open()).spared);
    let report = repair(&world, GIVE_UP);
    assert_eq!(report.lost.put_away, std::slice::from_ref(&object));
    assert!(report.after.unwrap().is_sound());
    assert!(world.objects("points/").contains(&object), "a tombstone");
    assert_eq!(visible_points(&world.open()), ["vm@2"]);
    assert!(!collect(&world.open()).spared);
    assert_eq!(world.objects("data/").len(), 1);
    assert_eq!(next_of(&world, "vm"), 3);
}

#[test]
fn giving_up_that_dies_at_any_call_is_finished_by_the_next() {
    let world = bundled(7);
    let object = damage_bundle(&world);
    let counting = Arc::new(FaultyStore::sound(world.fork().memory));
    let whole = world.open_over(Arc::clone(&counting) as Arc<dyn Store>);
    whole.repair(&[], GIVE_UP).unwrap();
    for number in 1..=counting.calls() {
        let fork = world.fork();
        let dying = FaultyStore::crashing_at(Arc::clone(&fork.memory), number, Moment::After);
        if let Ok(repository) = fork.try_open_over(Arc::new(dying)) {
            drop(repository.repair(&[], GIVE_UP));
        }
        let kept = format!("quarantine/{object}");
        let there = fork.objects("");
        assert!(
            there.contains(&object) || there.contains(&kept),
            "call {number}"
        );
        let report = repair(&fork, GIVE_UP);
        assert!(report.after.unwrap().is_sound(), "call {number}");
        assert_eq!(next_of(&fork, "vm"), 4, "call {number}");
    }
}

/// A repository in which only verdicts tell the highest numbers: of `vm` two of three are gone, of `gone` all.
fn told_by_verdicts(seed: u64) -> World {
    let world = World::new(seed);
    let repository = world.open();
    for number in 1..=3 {
        let made = back_up(&repository, "vm", &disk(number)).unwrap();
        if number > 1 {
            repository.forget(&made, "").unwrap();
        }
    }
    let gone = back_up(&repository, "gone", &disk(9)).unwrap();
    repository.forget(&gone, "").unwrap();
    assert_eq!(collect(&repository).dropped.len(), 3);
    assert_eq!(world.objects("gc/").len(), 2, "a verdict and its copy");
    world
}

#[test]
fn one_damaged_or_missing_half_of_a_verdict_changes_nothing_and_is_replaced() {
    for half in 0..2 {
        for delete in [true, false] {
            let world = told_by_verdicts(8);
            let object = world.objects("gc/")[half].clone();
            if delete {
                world.memory.delete(&object.parse().unwrap()).unwrap();
            } else {
                flip(&world, &object);
            }
            let told = format!("{object}, deleted: {delete}");
            let report = verify(&world);
            assert!(
                report.findings.iter().any(|one| one.object == object),
                "{told}"
            );
            assert_eq!(next_of(&world, "vm"), 4, "{told}");
            assert_eq!(next_of(&world, "gone"), 2, "{told}");
            collect(&world.open());
            let report = verify(&world);
            assert!(report.findings.is_empty(), "{told}: {report:#?}");
            assert_eq!(world.objects("gc/").len(), 2, "{told}");
            assert_eq!(next_of(&world, "gone"), 3, "{told}");
        }
    }
}

#[test]
fn after_a_lost_verdict_repair_gives_no_number_again_of_any_name() {
    let world = told_by_verdicts(9);
    for object in world.objects("gc/") {
        flip(&world, &object);
    }
    assert_eq!(refusal(&world, "vm"), ErrorKind::Corrupt);
    let dry = repair(&world, RepairMode::DryRun);
    assert_eq!(dry.records_put_away, [1]);
    let report = repair(&world, RepairMode::Execute);
    assert_eq!(report.records_put_away, [1]);
    let floor = report.lost.floor.unwrap();
    assert!(report.after.unwrap().is_sound());
    for of in ["vm", "gone", "new"] {
        assert_eq!(next_of(&world, of), floor + 1, "{of}");
    }
    assert!(visible_points(&world.open()).contains(&"vm@1".to_owned()));
    bundle(&world.open());
    collect(&world.open());
    for of in ["vm", "gone", "new"] {
        assert_eq!(next_of(&world, of), floor + 2, "{of}");
    }
    let report = verify(&world);
    assert!(
        report.is_sound() && report.findings.is_empty(),
        "{report:#?}"
    );
}

#[test]
fn a_verdict_that_is_lost_with_a_bundle_hides_no_point_that_comes_back() {
    let world = bundled(10);
    let elsewhere = World::new(1_010);
    let copy = elsewhere.open();
    copy_all(&world, &copy);
    damage_bundle(&world);
    for object in world.objects("gc/") {
        flip(&world, &object);
    }
    repair(&world, RepairMode::Execute);
    let sources = [RepairSource::Repository(&copy)];
    let report = world.open().repair(&sources, GIVE_UP).unwrap();
    assert_eq!(report.points_restored.len(), 4, "{report:#?}");
    assert_eq!(visible_points(&world.open()).len(), 4);
}

#[test]
fn repairing_twice_gives_up_no_bundle_that_repairing_once_kept() {
    let world = bundled(10);
    damage_bundle(&world);
    for object in world.objects("gc/") {
        flip(&world, &object);
    }
    let bundles = world.objects("bundles/");
    for round in 0..3 {
        let report = repair(&world, RepairMode::Execute);
        assert!(report.lost.put_away.is_empty(), "{round}: {report:#?}");
        assert_eq!(world.objects("bundles/"), bundles, "{round}");
    }
    let report = world.open().repair(&[], GIVE_UP).unwrap();
    assert!(!report.lost.put_away.is_empty(), "{report:#?}");
    let next = back_up(&world.open(), "vm", &disk(9)).unwrap();
    assert!(next.sequence > 1_000_000, "{next:?}");
}

#[test]
fn a_stray_with_a_huge_number_does_not_end_the_numbers_of_its_name() {
    let world = World::new(12);
    let repository = world.open();
    let first = back_up(&repository, "vm", &disk(1)).unwrap();
    let stray = format!("points/{}/ffffffffffffffff", first.name_id);
    world
        .memory
        .put_new(&stray.parse().unwrap(), b"garbage")
        .unwrap();
    let report = world.open().repair(&[], GIVE_UP).unwrap();
    assert_eq!(report.lost.put_away, [stray], "{report:#?}");
    let next = back_up(&world.open(), "vm", &disk(2)).unwrap();
    assert_eq!(next.sequence, 2);
    collect(&world.open());
    let next = back_up(&world.open(), "vm", &disk(3)).unwrap();
    assert_eq!(next.sequence, 3);
}

#[test]
fn a_newest_point_given_up_halfway_leaves_its_number_taken() {
    let world = World::new(13);
    let repository = world.open();
    back_up(&repository, "vm", &disk(1)).unwrap();
    let newest = back_up(&repository, "vm", &disk(2)).unwrap();
    flip(
        &world,
        &format!("points/{}/{:016x}", newest.name_id, newest.sequence),
    );
    let mut completed = false;
    for number in 0..400 {
        let fork = world.fork();
        let plan = move |call: &store::faulty::PlannedCall<'_>| {
            (call.number >= number).then_some(store::faulty::Fault::FailBefore(
                store::ErrorKind::Unavailable,
            ))
        };
        let faulty = std::sync::Arc::new(store::faulty::FaultyStore::new(
            std::sync::Arc::clone(&fork.memory),
            plan,
        ));
        let Ok(dying) = fork.try_open_over(faulty) else {
            continue;
        };
        completed = dying.repair(&[], GIVE_UP).is_ok();
        drop(dying);
        let next = back_up(&fork.open(), "vm", &disk(3)).unwrap();
        assert!(next.sequence > newest.sequence, "stopped at call {number}");
        if completed {
            break;
        }
    }
    assert!(completed, "the repair never came to its end");
}

#[test]
fn points_and_marks_and_slots_that_are_taken_away_after_a_collection_are_missed() {
    let world = World::new(11);
    let repository = world.open();
    for number in 1..=2 {
        back_up(&repository, "vm", &disk(number)).unwrap();
    }
    let single = back_up(&repository, "single", &disk(5)).unwrap();
    repository.hold(&point(&repository, "vm@1"), "").unwrap();
    repository.add_recovery_key("spare").unwrap();
    collect(&repository);
    assert!(verify(&world).findings.is_empty());

    let newest = world
        .objects("points/")
        .into_iter()
        .find(|object| {
            !object.contains(&single.name_id.to_string()) && object.ends_with("0000000000000002")
        })
        .unwrap();
    let only = format!("points/{}", single.name_id);
    for taken in [newest.as_str(), only.as_str()] {
        let fork = world.fork();
        for object in fork.objects("points/") {
            if object.starts_with(taken) {
                fork.memory.delete(&object.parse().unwrap()).unwrap();
            }
        }
        let report = verify(&fork);
        assert_eq!(report.missing_points.len(), 1, "{taken}: {report:#?}");
        collect(&fork.open());
        assert_eq!(verify(&fork).missing_points.len(), 1, "{taken}");
    }
    let fork = world.fork();
    delete_all(&fork, "marks/");
    let report = verify(&fork);
    assert!(
        report
            .findings
            .iter()
            .any(|one| one.object.starts_with("marks/")),
        "{report:#?}"
    );
    assert!(!report.is_sound());

    // A key slot that is gone is told until garbage is collected again: the operator may have removed it.
    let fork = world.fork();
    let keys = fork.objects("keys/");
    let slot = keys
        .iter()
        .find(|key| {
            key.starts_with("keys/slot-") && {
                let kept = fork.fork();
                kept.memory.delete(&key.parse().unwrap()).unwrap();
                kept.try_open_over(kept.memory.clone()).is_ok()
            }
        })
        .unwrap();
    fork.memory.delete(&slot.parse().unwrap()).unwrap();
    let report = verify(&fork);
    assert!(
        report.findings.iter().any(|one| one.object == *slot),
        "{report:#?}"
    );
    assert!(report.is_sound());
    collect(&fork.open());
    assert!(verify(&fork).findings.is_empty());
}

#[test]
fn a_collection_that_finds_nothing_new_writes_nothing_down() {
    let world = told_by_verdicts(12);
    let before = world.objects("gc/");
    collect(&world.open());
    assert_eq!(world.objects("gc/"), before);
    back_up(&world.open(), "vm", &disk(4)).unwrap();
    collect(&world.open());
    let after = world.objects("gc/");
    assert!(after != before && after.len() == 2, "{after:?}");
}
