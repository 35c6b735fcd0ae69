//! Blobs that lie twice: garbage collection takes one copy of each, and never the last good one.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::collections::BTreeMap;

use repo::gc::{GcMode, GcOptions, collect_garbage};
use repo::{BlobName, PackId, PackKind, Repository};

use crate::gc::{collect, options};
use crate::world::{Disk, World, back_up, begin_options, check_point, commit, name, point};

/// Every place of every blob: pack and offset of the frame.
fn places(repository: &Repository) -> BTreeMap<String, Vec<(PackKind, PackId, u32)>> {
    let mut places: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for pack in repository.dump_index().unwrap().packs {
        for (_, entry) in repository.dump_pack(pack.kind, pack.id).unwrap().blobs {
            let places = places.entry(entry.name.to_string()).or_default();
            places.push((pack.kind, pack.id, entry.offset));
        }
    }
    places
}

fn names_of(repository: &Repository) -> Vec<BlobName> {
    let packs = repository.dump_index().unwrap().packs;
    let dumps = packs
        .iter()
        .map(|pack| repository.dump_pack(pack.kind, pack.id).unwrap());
    dumps
        .flat_map(|dump| dump.blobs)
        .map(|(_, entry)| entry.name)
        .collect()
}

/// Two names with one disk, all of whose blobs lie in two packs.
fn doubled(seed: u64) -> (World, Disk) {
    let world = World::new(seed);
    let blocks: Vec<(u64, u64)> = (0..40).map(|index| (index, index + 1)).collect();
    let disk = Disk::new(300, &blocks);
    back_up(&world.open(), "vm", &disk).unwrap();
    let writer = world.open();
    let session = writer.begin(&name("again"), &begin_options()).unwrap();
    for name in names_of(&writer) {
        session.blobs().distrust(name);
    }
    commit(session, &disk).unwrap();
    assert!(
        places(&world.open())
            .values()
            .all(|places| places.len() == 2)
    );
    (world, disk)
}

fn flip(world: &World, (kind, pack, offset): (PackKind, PackId, u32)) {
    let id = pack.to_string();
    let folder = format!("{}/", kind.directory());
    let objects = world.objects(&folder);
    let object = objects.iter().find(|name| name.ends_with(&id)).unwrap();
    let at = usize::try_from(offset).unwrap() + 20;
    let name = object.parse().unwrap();
    world.memory.damage(&name, |bytes| bytes[at] ^= 4).unwrap();
}

fn check_both(world: &World, disk: &Disk) {
    for name in ["vm", "again"] {
        let repository = world.open();
        check_point(&repository, &point(&repository, name), disk).unwrap();
    }
}

#[test]
fn of_two_copies_the_good_one_stays() {
    for seed in 0..4 {
        let (world, disk) = doubled(seed);
        // Now the one, now the other copy is damaged: whichever pack is preferred, some of it is bad.
        for (at, places) in places(&world.open()).into_values().enumerate() {
            match at % 3 {
                0 => flip(&world, places[0]),
                1 => flip(&world, places[1]),
                _ => {}
            }
        }
        check_both(&world, &disk);
        let dry = GcOptions {
            mode: GcMode::DryRun,
            ..options()
        };
        let planned = collect_garbage(&world.open(), &dry).unwrap();
        let report = collect(&world.open());
        assert_eq!(planned.dead, report.dead, "seed {seed}");
        assert!(!report.quarantined.is_empty(), "seed {seed}: {report:#?}");
        check_both(&world, &disk);
        collect(&world.open());
        check_both(&world, &disk);
    }
}

#[test]
fn a_second_copy_goes_when_the_first_one_was_read() {
    let (world, disk) = doubled(9);
    let report = collect(&world.open());
    assert!(report.quarantined.is_empty(), "{report:#?}");
    assert!(
        places(&world.open())
            .values()
            .all(|places| places.len() == 1)
    );
    check_both(&world, &disk);
}
