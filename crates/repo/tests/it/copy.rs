//! Copying: the same roots elsewhere, under other keys, and only once.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::sync::Arc;

use repo::copy::{CopyOptions, CopyReport, CopySelection, PointOrigin};
use repo::verify::{VerifyMarks, VerifyOptions};
use repo::{Encryption, ErrorKind, Repository};
use store::Store;
use store::faulty::{FaultyStore, Moment};

use crate::world::{Disk, World, back_up, check_point, point, visible_points};

fn seeds(range: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    range.map(|index| (index, index + 1)).collect()
}

fn copy(source: &Repository, target: &Repository) -> CopyReport {
    source.copy_to(target, &CopyOptions::default()).unwrap()
}

fn assert_sound(repository: &Repository) {
    let options = VerifyOptions {
        marks: VerifyMarks::ReportOnly,
        ..VerifyOptions::default()
    };
    let report = repository.verify(&options).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}

/// A source with a growing, a shrinking and a changing disk.
fn source(seed: u64) -> (World, Vec<Disk>) {
    let world = World::new(seed);
    let repository = world.open();
    let mut disks = vec![Disk::new(300, &seeds(0..60))];
    let mut next = disks[0].clone();
    next.set(5, 7_000);
    next.set(290, 7_001);
    disks.push(next.clone());
    next.length_bytes = 70 * block::BLOCK_SIZE_BYTES;
    next.blocks.retain(|index, _| *index < 70);
    disks.push(next.clone());
    next.length_bytes = 20_000 * block::BLOCK_SIZE_BYTES;
    next.set(19_999, 7_002);
    disks.push(next);
    for disk in &disks {
        back_up(&repository, "vm", disk).unwrap();
    }
    (world, disks)
}

#[test]
fn a_copy_has_the_same_roots_stamps_and_origin_under_its_own_keys() {
    for encryption in [Encryption::Aes256Gcm, Encryption::None] {
        let (here, disks) = source(1);
        let there = World::with_encryption(2, encryption);
        there
            .clock
            .set_unix_ms(crate::world::NEW_YEAR_MS + 86_400_000);
        let (from, to) = (here.open(), there.open());
        let report = copy(&from, &to);
        assert_eq!(report.copied.len(), 4);
        assert!(report.failed.is_empty());
        let fresh = there.open();
        for (disk, sequence) in disks.iter().zip(1u64..) {
            let selector = format!("vm@{sequence}");
            let (original, made) = (point(&from, &selector), point(&fresh, &selector));
            assert_eq!(made.disks, original.disks);
            assert_eq!(made.created_unix_ms, original.created_unix_ms);
            assert_ne!(made.point, original.point);
            let origin = PointOrigin::of(&made).unwrap();
            assert_eq!(
                (origin.repository, origin.point),
                (from.id(), original.point)
            );
            assert!(
                origin.signed.signature.is_some(),
                "the original's signature is kept"
            );
            check_point(&fresh, &made, disk).unwrap();
        }
        assert_sound(&fresh);
        assert!(here.objects("leases/").is_empty() && there.objects("leases/").is_empty());
    }
}

#[test]
fn a_second_copy_sends_nothing_and_a_later_one_only_what_changed() {
    let (here, mut disks) = source(3);
    let there = World::new(4);
    let (from, to) = (here.open(), there.open());
    copy(&from, &to);
    let objects = there.objects("");
    let again = copy(&from, &to);
    assert_eq!(
        (again.copied.len(), again.present, again.blocks_read),
        (0, 4, 0)
    );
    assert_eq!(there.objects(""), objects);

    let mut disk = disks.pop().unwrap();
    disk.set(128, 8_000);
    back_up(&from, "vm", &disk).unwrap();
    let later = copy(&from, &to);
    assert_eq!(
        (later.copied.len(), later.blocks_read, later.blocks_stored),
        (1, 1, 1)
    );
    // The leaf, and the path above it.
    assert_eq!(later.nodes_stored, 3);
    check_point(&there.open(), &point(&to, "vm@5"), &disk).unwrap();
}

#[test]
fn names_and_newest_points_can_be_chosen_and_forgotten_ones_stay_behind() {
    let (here, _) = source(5);
    let from = here.open();
    back_up(&from, "other", &Disk::new(8, &[(0, 1)])).unwrap();
    from.forget(&point(&from, "vm@4"), "").unwrap();
    let there = World::new(6);
    let newest = CopyOptions {
        selection: CopySelection::NewestOfEach,
        ..CopyOptions::default()
    };
    let report = from.copy_to(&there.open(), &newest).unwrap();
    let copied: Vec<String> = report
        .copied
        .iter()
        .map(|one| format!("{}@{}", one.name, one.source.sequence))
        .collect();
    assert_eq!(copied, ["other@1", "vm@3"]);
    let there = World::new(7);
    let only = CopySelection::Names(vec!["other".parse().unwrap()]);
    let only = CopyOptions {
        selection: only,
        ..CopyOptions::default()
    };
    from.copy_to(&there.open(), &only).unwrap();
    assert_eq!(visible_points(&there.open()), ["other@1"]);
    assert_eq!(
        from.copy_to(&from, &only).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn a_damaged_point_is_told_and_the_others_are_copied() {
    let here = World::new(8);
    let from = here.open();
    back_up(&from, "bad", &Disk::new(8, &[(0, 1)])).unwrap();
    let pack = here.objects("data/")[0].clone();
    back_up(&from, "good", &Disk::new(8, &[(0, 2)])).unwrap();
    here.memory
        .damage(&pack.parse().unwrap(), |bytes| bytes[100] ^= 1)
        .unwrap();
    let there = World::new(9);
    let report = copy(&here.open(), &there.open());
    assert_eq!(report.copied.len(), 1);
    assert_eq!(
        (report.failed.len(), report.failed[0].0.as_str()),
        (1, "bad")
    );
    assert_eq!(visible_points(&there.open()), ["good@1"]);
}

#[test]
fn a_copy_that_dies_at_any_call_is_finished_by_the_next() {
    let here = World::new(10);
    let from = here.open();
    let mut disk = Disk::new(300, &seeds(0..20));
    back_up(&from, "vm", &disk).unwrap();
    disk.set(3, 900);
    back_up(&from, "vm", &disk).unwrap();
    let there = World::new(11);
    let counting = Arc::new(FaultyStore::sound(there.fork().memory));
    copy(
        &from,
        &there.open_over(Arc::clone(&counting) as Arc<dyn Store>),
    );
    for number in 1..=counting.calls() {
        for moment in [Moment::Before, Moment::After] {
            let fork = there.fork();
            let dying = FaultyStore::crashing_at(Arc::clone(&fork.memory), number, moment);
            if let Ok(to) = fork.try_open_over(Arc::new(dying)) {
                let outcome = from.copy_to(&to, &CopyOptions::default());
                drop(outcome);
            }
            let to = fork.open();
            for selector in visible_points(&to) {
                point(&to, &selector);
            }
            let report = copy(&from, &to);
            assert!(
                report.failed.is_empty(),
                "call {number} {moment:?}: {report:?}"
            );
            let newest = point(&to, "vm");
            check_point(&fork.open(), &newest, &disk).unwrap();
            let count = visible_points(&to).len();
            assert_eq!(count, 2, "call {number} {moment:?}");
            crate::gc::collect(&to);
            assert_sound(&fork.open());
            assert!(
                fork.objects("leases/").is_empty(),
                "call {number} {moment:?}"
            );
        }
    }
}
