//! Consistency checks and differences between versions.

use engine::job::check_disk::check_disk;
use engine::job::diff_disk::diff_disks;

use crate::support::{BLOCK, LEAF, SparseDisk, World, context, request, selector};

#[test]
fn a_check_names_exactly_the_ranges_that_differ() {
    let world = World::new();
    let mut disk = SparseDisk::filled(5 * LEAF, (0..100).chain(400..500), 1);
    world.back_up("vm", &disk);
    let check = |disk: &SparseDisk| {
        check_disk(&world.repository, &selector("vm"), None, disk, context()).unwrap()
    };
    let report = check(&disk);
    assert!(report.is_equal && report.ranges.is_empty());
    assert_eq!(report.read_bytes, 200 * BLOCK as u64);
    disk.fill(3, 9);
    disk.fill(4, 9);
    disk.fill(300, 9);
    disk.blocks.remove(&450);
    let report = check(&disk);
    let block = BLOCK as u64;
    assert!(!report.is_equal);
    assert_eq!(
        report.ranges,
        [
            (3 * block, 2 * block),
            (300 * block, block),
            (450 * block, block)
        ]
    );
    assert_eq!(report.differing_bytes, 4 * block);
    // Shorter and longer than the version.
    disk = SparseDisk::filled(4 * LEAF, (0..100).chain(400..500), 1);
    let report = check(&disk);
    assert!(!report.is_equal);
    assert_eq!(report.ranges, Vec::new());
    disk.length_bytes = 2 * LEAF;
    disk.blocks.retain(|block, _| *block < 256);
    assert_eq!(check(&disk).ranges, [(400 * block, 100 * block)]);
    disk = SparseDisk::filled(9 * LEAF, (0..100).chain(400..500).chain([1000]), 1);
    assert_eq!(check(&disk).ranges, [(1000 * block, block)]);
}

#[test]
fn what_was_left_out_on_purpose_is_no_difference() {
    let world = World::new();
    let disk = SparseDisk::filled(2 * LEAF, 0..256, 1);
    let mut leaving = request("vm");
    let range = repo::ByteRange {
        offset: 10 * BLOCK as u64,
        length_bytes: 20 * BLOCK as u64,
    };
    leaving.left_out = Some(repo::Omissions {
        ranges: vec![range],
        reason: "swap".to_owned(),
    });
    world.back_up_with(&leaving, &disk).unwrap();
    let report = check_disk(&world.repository, &selector("vm"), None, &disk, context()).unwrap();
    assert!(report.is_equal, "{report:?}");
    assert_eq!(report.read_bytes, 236 * BLOCK as u64);
}

#[test]
fn a_diff_reads_no_data() {
    let world = World::new();
    let mut disk = SparseDisk::filled(5 * LEAF, 0..600, 1);
    world.back_up("vm", &disk);
    disk.fill(10, 1);
    disk.fill(11, 1);
    disk.fill(599, 1);
    world.back_up("vm", &disk);
    world.store.take_calls();
    let mut ranges = Vec::new();
    let (older, newer) = (selector("vm@1"), selector("vm@2"));
    let report = diff_disks(
        &world.repository,
        (&older, &newer),
        None,
        context(),
        |offset, length| {
            ranges.push((offset, length));
            Ok(())
        },
    )
    .unwrap();
    let block = BLOCK as u64;
    assert_eq!(ranges, [(10 * block, 2 * block), (599 * block, block)]);
    assert_eq!((report.ranges, report.differing_bytes), (2, 3 * block));
    let reads = world.store.take_calls();
    assert!(
        reads.iter().all(|call| !call.name.starts_with("data/")),
        "{reads:?}"
    );
}
