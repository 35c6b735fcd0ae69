//! Statistics: what is counted is what is there.

use store::Store;

use crate::gc::collect;
use crate::world::{Disk, World, back_up, point};

fn seeds(range: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    range.map(|index| (index, index + 1)).collect()
}

#[test]
fn unique_and_shared_bytes_of_names_add_up_to_what_is_live() {
    let world = World::new(1);
    let repository = world.open();
    back_up(&repository, "a", &Disk::new(300, &seeds(0..20))).unwrap();
    back_up(&repository, "b", &Disk::new(300, &seeds(0..30))).unwrap();
    let third = back_up(&repository, "b", &Disk::new(300, &seeds(0..31))).unwrap();
    let stats = repository.stats().unwrap();
    let (a, b) = (
        &stats.names[&"a".parse().unwrap()],
        &stats.names[&"b".parse().unwrap()],
    );
    assert_eq!((a.points, b.points), (1, 2));
    assert_eq!(b.logical_bytes, 2 * b.newest_logical_bytes);
    assert_eq!(b.newest_logical_bytes, 300 * 65_536);
    // Twenty blocks are shared; each name has nodes of its own.
    assert_eq!(a.shared_bytes, b.shared_bytes);
    assert!(a.unique_bytes > 0 && b.unique_bytes > a.unique_bytes);
    assert_eq!(
        stats.live_bytes,
        a.unique_bytes + b.unique_bytes + a.shared_bytes
    );
    assert_eq!(stats.garbage_bytes, 0);
    assert_eq!((a.missing_blobs, b.missing_blobs), (0, 0));
    let total =
        stats.data_packs.1 + stats.node_packs.1 + stats.index_segments.1 + stats.other_objects.1;
    assert_eq!(total, world.memory.used_bytes());

    repository.forget(&third, "").unwrap();
    let stats = repository.stats().unwrap();
    assert_eq!(stats.forgotten_points, 1);
    assert!(stats.garbage_bytes > 0, "the last block and its path");
    collect(&repository);
    let after = repository.stats().unwrap();
    assert_eq!(after.live_bytes, stats.live_bytes);
    assert_eq!(after.forgotten_points, 0);
}

#[test]
fn what_a_name_alone_needs_is_what_forgetting_it_gives_back() {
    let world = World::new(2);
    let repository = world.open();
    back_up(&repository, "a", &Disk::new(300, &seeds(0..20))).unwrap();
    back_up(&repository, "b", &Disk::new(300, &seeds(10..40))).unwrap();
    let before = repository.stats().unwrap();
    let unique = before.names[&"b".parse().unwrap()].unique_bytes;
    repository.forget(&point(&repository, "b"), "").unwrap();
    let stats = repository.stats().unwrap();
    assert_eq!(stats.garbage_bytes, unique);
    assert_eq!(stats.live_bytes, before.live_bytes - unique);
}

#[test]
fn missing_blobs_are_counted_and_no_error() {
    let world = World::new(3);
    back_up(&world.open(), "a", &Disk::new(8, &seeds(0..5))).unwrap();
    let pack = world.objects("data/")[0].parse().unwrap();
    world.memory.delete(&pack).unwrap();
    let stats = world.open().stats().unwrap();
    assert_eq!(stats.names[&"a".parse().unwrap()].missing_blobs, 5);
}
