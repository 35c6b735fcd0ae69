//! What jobs cost: bytes read, packs put, nodes stored.

use crate::support::{BLOCK, LEAF, SparseDisk, World, request, same_bytes, tracking};

#[test]
fn with_tracking_only_what_changed_and_the_sample_are_read() {
    let world = World::new();
    let mut disk = SparseDisk::filled(40 * LEAF, 0..5120, 1);
    world.back_up("vm", &disk);
    let changed: Vec<u64> = (0..50).map(|at| at * 97).collect();
    for block in &changed {
        disk.fill(*block, 9_000 + block);
    }
    disk.take_read_bytes();
    let mut next = request("vm");
    next.tracking = Some(tracking(changed.iter().copied(), 20_000));
    let report = world.back_up_with(&next, &disk).unwrap();
    assert!(
        (40..200).contains(&report.audited_blocks),
        "{} audited",
        report.audited_blocks
    );
    let expected = (50 + report.audited_blocks) * BLOCK as u64;
    assert_eq!(
        (report.read_bytes, disk.take_read_bytes()),
        (expected, expected)
    );
    assert_eq!(report.stored_blocks, 50);
    assert!(!report.fell_back && report.lies.is_empty());
    same_bytes(&world.read("vm"), &disk.bytes());
}

#[test]
fn a_huge_sparse_disk_costs_what_it_holds() {
    let small = World::new();
    let large = World::new();
    let blocks = || (0..64u64).chain(10_000..10_064);
    let a = small.back_up("vm", &SparseDisk::filled(2 << 30, blocks(), 1));
    let b = large.back_up("vm", &SparseDisk::filled(16 << 40, blocks(), 1));
    assert_eq!(a.read_bytes, b.read_bytes);
    assert_eq!(a.stored_blocks, b.stored_blocks);
    assert!(
        b.stored_nodes <= a.stored_nodes + 2,
        "{} and {} nodes",
        a.stored_nodes,
        b.stored_nodes
    );
    let calls = |world: &World| world.store.take_calls().len();
    assert_eq!(calls(&small), calls(&large));
}

#[test]
fn blocks_of_zeros_that_were_written_are_not_stored() {
    let world = World::new();
    let mut disk = SparseDisk::filled(2 * LEAF, 0..4, 1);
    for block in 50..100 {
        disk.blocks.insert(block, vec![0; BLOCK]);
    }
    let report = world.back_up("vm", &disk);
    assert_eq!(
        (report.read_bytes, report.hashed_bytes),
        (54 * BLOCK as u64, 4 * BLOCK as u64)
    );
    assert_eq!(report.stored_blocks, 4);
}
