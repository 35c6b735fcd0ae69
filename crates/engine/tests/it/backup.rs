//! Backups: what arrives, what is looked at, what is recorded.

use block::sync::Unreadable;
use engine::ErrorKind;
use engine::job::backup_disk::{BackupScope, plan_backup_disk, seed_disk};
use engine::job::{JobContext, MemoryJournal, StepState};
use repo::{Encryption, Omissions};

use crate::support::{BLOCK, LEAF, SparseDisk, World, context, request, same_bytes, tracking};

#[test]
fn versions_come_back_byte_for_byte_whatever_happens_to_the_disk() {
    for encryption in [Encryption::Aes256Gcm, Encryption::None] {
        let world = World::with(encryption);
        let mut disk = SparseDisk::filled(3 * LEAF + 12_345, (0..150).chain(300..384), 1);
        disk.fill(384, 77);
        let mut versions = Vec::new();
        let mut back_up = |disk: &SparseDisk| {
            let report = world.back_up("vm", disk);
            assert_eq!(report.sequence, versions.len() as u64 + 1);
            versions.push(disk.bytes());
            report
        };
        let first = back_up(&disk);
        assert_eq!(first.changed_blocks, 150 + 84 + 1);
        disk.fill(3, 1000);
        disk.blocks.remove(&310);
        assert_eq!(back_up(&disk).changed_blocks, 1);
        // Shorter, through a block; then longer than ever.
        disk.length_bytes = 2 * LEAF + 100;
        disk.blocks.retain(|block, _| *block < 256);
        disk.fill(256, 5);
        back_up(&disk);
        disk.length_bytes = 5 * LEAF;
        disk.fill(256, 6);
        disk.fill(600, 7);
        back_up(&disk);
        for (at, bytes) in versions.iter().enumerate() {
            same_bytes(&world.read(&format!("vm@{}", at + 1)), bytes);
        }
    }
}

#[test]
fn an_unchanged_disk_costs_no_pack() {
    let world = World::new();
    let disk = SparseDisk::filled(4 * LEAF, 0..400, 1);
    let first = world.back_up("vm", &disk);
    world.take_packs_put();
    let second = world.back_up("vm", &disk);
    assert_eq!(world.take_packs_put(), 0);
    assert_eq!(second.root, first.root);
    assert_eq!(
        (second.packs, second.stored_blocks, second.changed_blocks),
        (0, 0, 0)
    );
    assert_eq!(second.read_bytes, 400 * BLOCK as u64);
}

#[test]
fn a_block_that_is_stored_under_another_name_is_not_stored_again() {
    let world = World::new();
    let disk = SparseDisk::filled(2 * LEAF, 0..200, 1);
    world.back_up("one", &disk);
    let mut copy = disk.clone();
    copy.fill(17, 99);
    let report = world.back_up("two", &copy);
    assert_eq!((report.changed_blocks, report.stored_blocks), (200, 1));
    same_bytes(&world.read("two"), &copy.bytes());
}

#[test]
fn tracking_counting_from_another_version_is_not_believed() {
    let world = World::new();
    let mut disk = SparseDisk::filled(2 * LEAF, 0..100, 1);
    world.back_up("vm", &disk);
    disk.fill(5, 50);
    world.back_up("vm", &disk);
    disk.fill(6, 60);
    let mut second = request("vm");
    second.tracking = Some(tracking([6], 0));
    second.tracking_since = Some(2);
    let plan = plan_backup_disk(&world.repository, &second, &disk).unwrap();
    assert!(
        matches!(plan.scope, BackupScope::ChangedRanges { ranges: 1, .. }),
        "{plan}"
    );
    // The same ranges, but counted from version 1: block 5 may be missing from them.
    second.tracking_since = Some(1);
    let plan = plan_backup_disk(&world.repository, &second, &disk).unwrap();
    assert!(
        plan.to_string().contains("tracking counts from version 1"),
        "{plan}"
    );
    let report = world.back_up_with(&second, &disk).unwrap();
    assert!(report.fell_back);
    assert_eq!(report.read_bytes, 100 * BLOCK as u64);
    same_bytes(&world.read("vm"), &disk.bytes());
}

#[test]
fn a_lying_tracker_costs_reading_and_is_reported() {
    let world = World::new();
    let mut disk = SparseDisk::filled(4 * LEAF, 0..512, 1);
    world.back_up("vm", &disk);
    for block in 100..300 {
        disk.fill(block, 7_000 + block);
    }
    let mut next = request("vm");
    next.tracking = Some(tracking([100], 50_000));
    let report = world.back_up_with(&next, &disk).unwrap();
    assert!(report.fell_back && !report.lies.is_empty());
    assert_eq!(report.stored_blocks, 200);
    same_bytes(&world.read("vm"), &disk.bytes());
    let point = world
        .repository
        .find_point(&crate::support::selector("vm"))
        .unwrap()
        .point;
    assert!(point.counters["lies"] > 0);
}

#[test]
fn what_was_left_out_before_is_read_even_if_tracking_calls_it_unchanged() {
    let world = World::new();
    let disk = SparseDisk::filled(2 * LEAF, 0..256, 1);
    let mut first = request("vm");
    let range = repo::ByteRange {
        offset: 10 * BLOCK as u64,
        length_bytes: 20 * BLOCK as u64,
    };
    first.left_out = Some(Omissions {
        ranges: vec![range],
        reason: "page file".to_owned(),
    });
    let report = world.back_up_with(&first, &disk).unwrap();
    assert_eq!(report.read_bytes, 236 * BLOCK as u64);
    let mut shown = disk.clone();
    shown.blocks.retain(|block, _| !(10..30).contains(block));
    same_bytes(&world.read("vm@1"), &shown.bytes());
    let mut second = request("vm");
    second.tracking = Some(tracking([], 0));
    let report = world.back_up_with(&second, &disk).unwrap();
    assert_eq!(report.read_bytes, 20 * BLOCK as u64);
    same_bytes(&world.read("vm@2"), &disk.bytes());
}

#[test]
fn an_unreadable_range_fails_the_run_or_is_recorded() {
    let world = World::new();
    let mut disk = SparseDisk::filled(2 * LEAF, 0..256, 1);
    disk.bad.extend([7, 8, 200]);
    let error = world.back_up_with(&request("vm"), &disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(world.point_count(), 0);
    let mut tolerant = request("vm");
    tolerant.unreadable = Unreadable::Record;
    let report = world.back_up_with(&tolerant, &disk).unwrap();
    let block = BLOCK as u64;
    assert_eq!(
        report.unreadable,
        [(7 * block, 2 * block), (200 * block, block)]
    );
    let point = world
        .repository
        .find_point(&crate::support::selector("vm"))
        .unwrap()
        .point;
    assert_eq!(point.disks[0].unreadable.len(), 2);
    let mut shown = disk.clone();
    shown.blocks.retain(|block, _| !disk.bad.contains(block));
    same_bytes(&world.read("vm"), &shown.bytes());
    // Readable again, and called unchanged: it is read all the same.
    disk.bad.clear();
    let mut next = request("vm");
    next.tracking = Some(tracking([], 0));
    assert_eq!(world.back_up_with(&next, &disk).unwrap().stored_blocks, 3);
    same_bytes(&world.read("vm"), &disk.bytes());
}

#[test]
fn a_seed_comes_first_and_leaves_only_the_difference_to_be_stored() {
    let world = World::new();
    let mut disk = SparseDisk::filled(2 * LEAF, 0..256, 1);
    seed_disk(&world.repository, &request("vm"), &disk, context()).unwrap();
    disk.fill(9, 900);
    let report = world.back_up("vm", &disk);
    assert_eq!((report.sequence, report.stored_blocks), (2, 1));
    let late = seed_disk(&world.repository, &request("vm"), &disk, context()).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Refused);
}

#[test]
fn two_backups_of_one_name_at_a_time_are_refused() {
    let world = World::new();
    let name = repo::ProtectedName::new("vm").unwrap();
    let session = world
        .repository
        .begin(&name, &repo::BeginOptions::default())
        .unwrap();
    let disk = SparseDisk::filled(LEAF, 0..4, 1);
    let error = world.back_up_with(&request("vm"), &disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    world.back_up("other", &disk);
    session.abandon().unwrap();
    world.back_up("vm", &disk);
}

#[test]
fn every_step_is_noted_before_it_begins() {
    let world = World::new();
    let disk = SparseDisk::filled(LEAF, 0..4, 1);
    let journal = MemoryJournal::default();
    let context = JobContext {
        journal: &journal,
        ..context()
    };
    engine::job::backup_disk::backup_disk(&world.repository, &request("vm"), &disk, context)
        .unwrap();
    let noted: Vec<_> = journal
        .entries()
        .into_iter()
        .map(|entry| (entry.step, entry.state))
        .collect();
    let pairs = ["begin", "transfer", "commit"].map(|step| {
        [
            (step.to_owned(), StepState::Begun),
            (step.to_owned(), StepState::Done),
        ]
    });
    assert_eq!(noted, pairs.concat());
}
