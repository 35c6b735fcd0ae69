//! What was lost is not lost for ever: the next version of the same name is whole, and with it whatever had the same bytes.

use engine::job::backup_disk::{BackupScope, plan_backup_disk};
use repo::verify::{VerifyMarks, VerifyOptions, VerifyReport};
use store::{ObjectName, Store};

use crate::support::{BLOCK, LEAF, SparseDisk, World, request, same_bytes, selector, tracking};

/// Names of the packs of a kind, as they were put.
fn packs(world: &World, kind: &str) -> Vec<ObjectName> {
    let mut names: Vec<ObjectName> = Vec::new();
    for call in world.store.take_calls() {
        if call.verb == store::Verb::PutNew && call.name.starts_with(kind) {
            names.push(ObjectName::new(&call.name).unwrap());
        }
    }
    names
}

/// The same repository as a process sees it that has just been started.
fn reopened(mut world: World) -> World {
    let store: std::sync::Arc<dyn Store> = world.store.clone();
    world.repository = world.open(store, &crate::support::environment()).unwrap();
    world
}

fn verify(world: &World) -> VerifyReport {
    let options = VerifyOptions {
        marks: VerifyMarks::Put,
        ..VerifyOptions::default()
    };
    world.repository.verify(&options).unwrap()
}

fn damaged_versions(world: &World) -> Vec<u64> {
    let report = verify(world);
    let keys = report.damaged_points.iter().map(|point| point.key.sequence);
    keys.collect()
}

fn forget(world: &World, version: &str) {
    let point = world
        .repository
        .find_point(&selector(version))
        .unwrap()
        .point;
    world.repository.forget(&point, "a test").unwrap();
}

#[test]
fn a_lost_pack_is_made_good_by_the_next_version_of_the_same_name() {
    for kind in ["data/", "node/"] {
        let world = World::new();
        let disk = SparseDisk::filled(140 * LEAF, (0..300).chain(17_000..17_020), 1);
        world.back_up("vm", &disk);
        for name in packs(&world, kind) {
            world.store.inner().delete(&name).unwrap();
        }
        let world = reopened(world);
        // Nothing changed, and nobody has verified.
        let report = world.back_up("vm", &disk);
        assert!(report.reason.contains("cannot be built upon"), "{report:?}");
        assert_eq!(report.stored_blocks > 0, kind == "data/", "{kind}");
        let world = reopened(world);
        same_bytes(&world.read("vm"), &disk.bytes());
        assert_eq!(damaged_versions(&world), Vec::<u64>::new(), "{kind}");
        let third = world.back_up("vm", &disk);
        assert_eq!((third.packs, third.reason.as_str()), (0, ""));
    }
}

#[test]
fn a_lost_block_is_made_good_when_only_its_neighbour_changed() {
    let world = World::new();
    let mut disk = SparseDisk::filled(2 * LEAF, 0..200, 1);
    world.back_up("vm", &disk);
    for name in packs(&world, "data/") {
        world.store.inner().delete(&name).unwrap();
    }
    let world = reopened(world);
    disk.fill(3, 3_000);
    let mut next = request("vm");
    next.tracking = Some(tracking([3], 0));
    let report = world.back_up_with(&next, &disk).unwrap();
    assert!(report.fell_back);
    assert_eq!(report.stored_blocks, 200);
    same_bytes(&world.read("vm"), &disk.bytes());
}

#[test]
fn after_damage_was_marked_nothing_is_believed_unread() {
    for kind in ["data/", "node/"] {
        let world = World::new();
        let disk = SparseDisk::filled(2 * LEAF, 0..200, 1);
        world.back_up("vm", &disk);
        for name in packs(&world, kind) {
            let flip = |body: &mut Vec<u8>| body[300] ^= 1;
            world.store.inner().damage(&name, flip).unwrap();
        }
        let world = reopened(world);
        assert_eq!(damaged_versions(&world), [1]);
        let mut next = request("vm");
        next.tracking = Some(tracking([], 0));
        let plan = plan_backup_disk(&world.repository, &next, &disk).unwrap();
        assert!(
            matches!(plan.scope, BackupScope::Heal { .. }) && plan.to_string().contains("damaged"),
            "{plan}"
        );
        let report = world.back_up_with(&next, &disk).unwrap();
        assert!(report.fell_back && report.reason.contains("version 1 is damaged"));
        let stored = (report.stored_blocks, report.stored_nodes);
        assert_eq!(stored, if kind == "data/" { (1, 0) } else { (0, 1) });
        let world = reopened(world);
        same_bytes(&world.read("vm"), &disk.bytes());
        // The version before had the same bytes: it is whole again as well.
        assert_eq!(damaged_versions(&world), Vec::<u64>::new());
        let third = world.back_up_with(&next, &disk).unwrap();
        assert!(!third.fell_back && third.read_bytes == 0);
    }
}

#[test]
fn tracking_without_a_base_is_not_applied_when_a_newer_version_was_there() {
    let world = World::new();
    let mut disk = SparseDisk::filled(2 * LEAF, 0..100, 1);
    world.back_up("vm", &disk);
    disk.fill(5, 50);
    let second = world.back_up("vm", &disk);
    forget(&world, "vm@2");
    // Counted from version 2: block 5 is not among them, version 1 does not have it.
    disk.fill(6, 60);
    let mut third = request("vm");
    third.tracking = Some(tracking([6], 0));
    let plan = plan_backup_disk(&world.repository, &third, &disk).unwrap();
    let text = plan.to_string();
    assert!(
        text.contains("tracking may count from a version after 1"),
        "{text}"
    );
    let report = world.back_up_with(&third, &disk).unwrap();
    assert_eq!((report.parent, second.sequence), (Some(1), 2));
    assert!(report.fell_back && report.reason.contains("after 1"));
    assert_eq!(report.read_bytes, 100 * BLOCK as u64);
    same_bytes(&world.read("vm"), &disk.bytes());
    // From now on it counts from version 3, which is the newest.
    let report = world.back_up_with(&third, &disk).unwrap();
    assert!(!report.fell_back);
}

#[test]
fn tracking_that_names_its_base_is_taken_at_its_word() {
    let world = World::new();
    let mut disk = SparseDisk::filled(2 * LEAF, 0..100, 1);
    world.back_up("vm", &disk);
    world.back_up("vm", &disk);
    forget(&world, "vm@2");
    disk.fill(6, 60);
    let mut third = request("vm");
    third.tracking = Some(tracking([6], 0));
    third.tracking_since = Some(1);
    let report = world.back_up_with(&third, &disk).unwrap();
    assert!(!report.fell_back);
    assert_eq!(report.read_bytes, BLOCK as u64);
    same_bytes(&world.read("vm"), &disk.bytes());
}
