//! Repair: from a copy, from an image, from what is left; and never worse than before.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use block::{BLOCK_SIZE_BYTES, ReadAt};
use repo::copy::CopyOptions;
use repo::repair::{RepairMode, RepairReport, RepairSource};
use repo::{ErrorKind, Repository};
use store::faulty::{Fault, FaultPlan, FaultyStore, Moment, PlannedCall};
use store::{ObjectName, Store, Verb};

use crate::gc::collect;
use crate::world::{
    Disk, World, back_up, begin_options, block_bytes, check_point, commit, name, point, transfer,
    visible_points,
};

fn seeds(range: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    range.map(|index| (index, index + 1)).collect()
}

fn repair(repository: &Repository, sources: &[RepairSource<'_>]) -> RepairReport {
    repository.repair(sources, RepairMode::Execute).unwrap()
}

fn is_whole(report: &RepairReport) -> bool {
    report
        .after
        .as_ref()
        .is_some_and(|after| after.is_sound() && after.findings.is_empty())
}

/// Two versions of a disk, and a copy of them elsewhere.
fn estate(seed: u64, blocks: u64) -> (World, World, Vec<Disk>) {
    let here = World::new(seed);
    let there = World::new(seed + 1_000);
    let repository = here.open();
    let mut disk = Disk::new(300, &seeds(0..blocks));
    let mut disks = vec![disk.clone()];
    back_up(&repository, "vm", &disk).unwrap();
    disk.set(200, 5_000);
    disks.push(disk.clone());
    back_up(&repository, "vm", &disk).unwrap();
    repository
        .copy_to(&there.open(), &CopyOptions::default())
        .unwrap();
    (here, there, disks)
}

/// The disk as an image.
struct Image(Disk);

impl ReadAt for Image {
    fn size_bytes(&self) -> u64 {
        self.0.length_bytes
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let size = usize::try_from(BLOCK_SIZE_BYTES).unwrap();
        assert_eq!(offset % BLOCK_SIZE_BYTES, 0);
        for (index, piece) in (offset / BLOCK_SIZE_BYTES..).zip(buffer.chunks_mut(size)) {
            match self.0.blocks.get(&index) {
                Some(seed) => piece.copy_from_slice(&block_bytes(*seed)[..piece.len()]),
                None => piece.fill(0),
            }
        }
        Ok(())
    }
}

fn flip(world: &World, object: &str, at: impl Fn(usize) -> usize) {
    world
        .memory
        .damage(&object.parse().unwrap(), |bytes| {
            let at = at(bytes.len());
            bytes[at] ^= 0x40;
        })
        .unwrap();
}

#[test]
fn every_pack_can_be_lost_and_comes_back_from_a_copy() {
    let (here, there, disks) = estate(1, 40);
    let copy = there.open();
    for prefix in ["data/", "node/"] {
        for object in here.objects(prefix) {
            for damage in ["delete", "flip", "cut"] {
                let fork = here.fork();
                match damage {
                    "delete" => fork.memory.delete(&object.parse().unwrap()).unwrap(),
                    "flip" => flip(&fork, &object, |length| length / 3),
                    _ => fork
                        .memory
                        .damage(&object.parse().unwrap(), |bytes| bytes.truncate(70))
                        .unwrap(),
                }
                let told = format!("{damage} {object}");
                let repository = fork.open();
                let report = repair(&repository, &[RepairSource::Repository(&copy)]);
                assert!(report.fetched_blobs >= 1, "{told}: {report:#?}");
                assert!(is_whole(&report), "{told}: {report:#?}");
                let fresh = fork.open();
                for (disk, sequence) in disks.iter().zip(1..) {
                    check_point(&fresh, &point(&fresh, &format!("vm@{sequence}")), disk).unwrap();
                }
                collect(&fresh);
                check_point(&fork.open(), &point(&fresh, "vm@2"), &disks[1]).unwrap();
            }
        }
    }
}

#[test]
fn an_image_gives_back_the_blocks_and_nodes_that_it_still_has() {
    let (here, _, disks) = estate(2, 40);
    let image = Image(disks[1].clone());
    for object in here
        .objects("data/")
        .into_iter()
        .chain(here.objects("node/"))
    {
        let fork = here.fork();
        fork.memory.delete(&object.parse().unwrap()).unwrap();
        let repository = fork.open();
        let report = repair(&repository, &[RepairSource::Image(&image)]);
        let fresh = fork.open();
        check_point(&fresh, &point(&fresh, "vm@2"), &disks[1]).unwrap();
        // The first version's own nodes are nowhere in an image of the second.
        assert!(
            object.starts_with("node/") || is_whole(&report),
            "{object}: {report:#?}"
        );
    }
}

#[test]
fn what_is_lost_for_good_is_stored_anew_by_the_next_backup() {
    let (here, _, disks) = estate(3, 40);
    let repository = here.open();
    let object = here.objects("data/")[0].clone();
    flip(&here, &object, |_| 90);
    let report = repair(&repository, &[]);
    assert_eq!((report.lost_blobs, report.fetched_blobs), (1, 0));
    assert_eq!(report.packs_replaced.len(), 1);
    assert!(!report.after.as_ref().unwrap().is_sound());
    assert!(!here.objects("data/").contains(&object));
    // The same disk again: the lost block is missed, sent, and heals the old points as well.
    let made = back_up(&here.open(), "again", &disks[1]).unwrap();
    let fresh = here.open();
    check_point(&fresh, &made, &disks[1]).unwrap();
    check_point(&fresh, &point(&fresh, "vm@2"), &disks[1]).unwrap();
}

#[test]
fn configuration_and_index_and_points_come_back() {
    let (here, there, disks) = estate(4, 40);
    let copy = there.open();
    let lost_point = here.objects("points/")[0].clone();
    let cases: Vec<(String, bool)> = ["config", "config.copy"]
        .iter()
        .map(|name| ((*name).to_owned(), false))
        .chain(here.objects("index/").into_iter().map(|name| (name, false)))
        .chain([(lost_point, true)])
        .collect();
    for (object, _) in &cases {
        for delete in ["delete", "flip"] {
            let fork = here.fork();
            if delete == "delete" {
                fork.memory.delete(&object.parse().unwrap()).unwrap();
            } else {
                flip(&fork, object, |length| length / 2);
            }
            let repository = fork.open();
            let report = repair(&repository, &[RepairSource::Repository(&copy)]);
            assert!(is_whole(&report), "{delete} {object}: {report:#?}");
            let fresh = fork.open();
            assert_eq!(
                visible_points(&fresh),
                ["vm@1", "vm@2"],
                "{delete} {object}"
            );
            check_point(&fresh, &point(&fresh, "vm@1"), &disks[0]).unwrap();
        }
    }
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let (here, there, _) = estate(5, 40);
    let object = here.objects("data/")[0].clone();
    flip(&here, &object, |_| 90);
    let before = here.objects("");
    let copy = there.open();
    let sources = [RepairSource::Repository(&copy)];
    let dry = here.open().repair(&sources, RepairMode::DryRun).unwrap();
    assert_eq!(here.objects(""), before);
    let real = repair(&here.open(), &sources);
    assert_eq!(
        (dry.lost_blobs, dry.fetched_blobs),
        (real.lost_blobs, real.fetched_blobs)
    );
    assert_eq!(dry.packs_replaced, real.packs_replaced);
    assert_eq!(dry.salvaged_blobs, real.salvaged_blobs);
    assert!(is_whole(&real));
}

#[test]
fn a_repair_that_dies_at_any_call_is_finished_by_the_next() {
    let (here, there, disks) = estate(6, 5);
    let object = here.objects("data/")[0].clone();
    flip(&here, &object, |_| 90);
    here.memory.delete(&"config.copy".parse().unwrap()).unwrap();
    let copy = there.open();
    let sources = [RepairSource::Repository(&copy)];
    let counting = Arc::new(FaultyStore::sound(here.fork().memory));
    let whole = repair(
        &here.open_over(Arc::clone(&counting) as Arc<dyn Store>),
        &sources,
    );
    assert!(is_whole(&whole), "{whole:#?}");
    for number in 1..=counting.calls() {
        for moment in [Moment::Before, Moment::After] {
            let fork = here.fork();
            let dying = FaultyStore::crashing_at(Arc::clone(&fork.memory), number, moment);
            if let Ok(repository) = fork.try_open_over(Arc::new(dying)) {
                drop(repository.repair(&sources, RepairMode::Execute));
            }
            let report = repair(&fork.open(), &sources);
            assert!(
                report.after.as_ref().unwrap().is_sound(),
                "call {number} {moment:?}: {report:#?}"
            );
            collect(&fork.open());
            let fresh = fork.open();
            check_point(&fresh, &point(&fresh, "vm@1"), &disks[0]).unwrap();
            check_point(&fresh, &point(&fresh, "vm@2"), &disks[1]).unwrap();
        }
    }
}

#[test]
fn repair_and_garbage_collection_give_way_to_each_other() {
    let (here, _, _) = estate(7, 40);
    let reading = here
        .open()
        .read_session(repo::lease::LeaseKind::Gc, &[], repo::ReadProtection::Lease)
        .unwrap();
    let outcome = crate::gc::while_beating(&|| reading.beat(), || {
        here.open_patient().repair(&[], RepairMode::Execute)
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn a_writer_beside_a_repair_stops_counting_on_what_is_deleted() {
    let (here, _, disks) = estate(8, 40);
    let object = here.objects("data/")[0].clone();
    flip(&here, &object, |_| 90);
    let writer = here.open();
    let session = writer.begin(&name("other"), &begin_options()).unwrap();
    let report = crate::gc::while_beating(&|| session.lease().beat(), || {
        repair(&here.open_patient(), &[])
    });
    assert_eq!(report.packs_replaced.len(), 1, "{report:#?}");
    assert!(!here.objects("data/").contains(&object));
    // It had opened the index before: now it sends again what the pack held.
    let made = commit(session, &disks[1]).unwrap();
    check_point(&here.open(), &made, &disks[1]).unwrap();
}

#[test]
fn a_pack_that_a_running_writer_has_counted_on_is_left_and_told() {
    let (here, _, disks) = estate(9, 40);
    let object = here.objects("data/")[0].clone();
    flip(&here, &object, |_| 90);
    let writer = here.open();
    let session = writer.begin(&name("other"), &begin_options()).unwrap();
    let version = transfer(&session, &disks[1]).unwrap();
    session.blobs().flush().unwrap();
    let report = crate::gc::while_beating(&|| session.lease().beat(), || {
        repair(&here.open_patient(), &[])
    });
    assert!(report.packs_replaced.is_empty(), "{report:#?}");
    assert_eq!(report.packs_left.len(), 1);
    assert!(object.ends_with(&report.packs_left[0].to_string()));
    assert!(here.objects("data/").contains(&object));
    let draft = repo::PointDraft {
        disks: vec![version],
        ..repo::PointDraft::default()
    };
    session.commit(draft).unwrap();
    // Now that nobody holds it any more, it goes.
    let report = repair(&here.open(), &[]);
    assert_eq!(
        (report.packs_replaced.len(), report.packs_left.len()),
        (1, 0)
    );
    assert!(!here.objects("data/").contains(&object));
}

#[test]
fn packs_of_a_key_that_is_not_here_are_never_replaced() {
    let world = World::new(10);
    let repository = world.open();
    let disk = Disk::new(300, &seeds(0..20));
    back_up(&repository, "vm", &disk).unwrap();
    repository.rotate_data_key().unwrap();
    let made = back_up(&world.open(), "other", &disk).unwrap();
    let newest: Vec<ObjectName> = world
        .objects("keys/")
        .iter()
        .filter(|name| name.starts_with("keys/ring-00000002"))
        .map(|ring| ring.parse().unwrap())
        .collect();
    assert!(!newest.is_empty());
    let packs = [world.objects("data/"), world.objects("node/")].concat();

    let damaged = world.fork();
    for ring in &newest {
        flip(&damaged, ring.as_str(), |length| length / 2);
    }
    let before = damaged.objects("");
    let error = damaged.open().repair(&[], RepairMode::Execute).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(newest[0].as_str()), "{error}");
    assert_eq!(damaged.objects(""), before);

    // Where the ring is gone altogether, nobody can know of it; still nothing of its packs goes.
    let gone = world.fork();
    for ring in &newest {
        gone.memory.delete(ring).unwrap();
    }
    let report = repair(&gone.open(), &[]);
    assert_eq!(report.packs_replaced, []);
    assert!(!report.after.unwrap().is_sound());
    assert_eq!(
        [gone.objects("data/"), gone.objects("node/")].concat(),
        packs
    );
    for ring in &newest {
        let body = world.memory.get(ring).unwrap();
        gone.memory.put_new(ring, &body).unwrap();
    }
    check_point(&gone.open(), &made, &disk).unwrap();
}

/// Flips a bit of the first whole reading of every data pack.
struct OnceWrong(BTreeSet<String>);

impl FaultPlan for OnceWrong {
    fn fault(&mut self, call: &PlannedCall<'_>) -> Option<Fault> {
        let whole = call.verb == Verb::Get && call.name.starts_with("data/");
        (whole && self.0.insert(call.name.to_owned())).then_some(Fault::FlipBit(720))
    }
}

#[test]
fn a_pack_that_was_misread_once_is_not_replaced() {
    let (here, _, _) = estate(11, 40);
    let before = here.objects("data/");
    let store = FaultyStore::new(Arc::clone(&here.memory), OnceWrong(BTreeSet::new()));
    let repository = here.open_over(Arc::new(store));
    let report = repair(&repository, &[]);
    assert_eq!(report.packs_replaced, []);
    assert_eq!((report.lost_blobs, report.salvaged_blobs), (0, 0));
    assert!(is_whole(&report), "{report:#?}");
    assert_eq!(here.objects("data/"), before);
}
