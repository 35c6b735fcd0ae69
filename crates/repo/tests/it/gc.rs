//! Garbage collection: exactly what nothing needs goes, and nothing else, whoever works beside it.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use repo::gc::{
    GcMode, GcOptions, GcReport, MissingPolicy, PackFacts, PinReason, collect_garbage, plan_packs,
};
use repo::lease::LeaseKind;
use repo::{ErrorKind, KeyId, PackId, PackKind, ReadProtection, Repository};
use store::Store;
use store::recording::RecordingStore;

use crate::world::{
    Disk, World, back_up, begin_options, block_hash, check_point, commit, name, point, transfer,
    visible_points,
};

pub fn options() -> GcOptions {
    GcOptions::default()
}

/// Runs `work` in a thread while somebody's lease beats as fast as it can.
pub fn while_beating<T: Send>(
    beat: &dyn Fn() -> repo::Result<()>,
    work: impl FnOnce() -> T + Send,
) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(work);
        while !worker.is_finished() {
            beat().unwrap();
        }
        worker.join().unwrap()
    })
}

pub fn collect(repository: &Repository) -> GcReport {
    collect_garbage(repository, &options()).unwrap()
}

/// Blobs that packs hold, each pack read for itself.
pub fn stored_blobs(world: &World) -> BTreeSet<String> {
    let repository = world.open();
    let dump = repository.dump_index().unwrap();
    let mut blobs = BTreeSet::new();
    for pack in dump.packs {
        for (_, entry) in repository.dump_pack(pack.kind, pack.id).unwrap().blobs {
            blobs.insert(entry.name.to_string());
        }
    }
    blobs
}

fn seeds(range: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    range.map(|index| (index, index + 1)).collect()
}

#[test]
fn what_no_point_needs_is_gone_after_one_run_and_the_rest_reads_back() {
    let world = World::new(1);
    let repository = world.open();
    let first = Disk::new(300, &seeds(0..40));
    let mut second = first.clone();
    (0..40).for_each(|index| second.set(index, 1_000 + index));
    let one = back_up(&repository, "vm", &first).unwrap();
    let two = back_up(&repository, "vm", &second).unwrap();
    repository.forget(&one, "no longer wanted").unwrap();
    let before = world.memory.used_bytes();

    let report = collect(&repository);
    assert_eq!(report.dropped, [one.key()]);
    assert_eq!(
        report.dead.objects, 2,
        "a data pack and a node pack: {report:#?}"
    );
    assert_eq!(report.deleted, report.dead);
    assert!(world.memory.used_bytes() < before);
    assert!(report.quarantined.is_empty() && report.rescued.is_empty() && !report.spared);
    assert_eq!(visible_points(&repository), ["vm@2"]);
    check_point(&repository, &two, &second).unwrap();
    check_point(&world.open(), &two, &second).unwrap();

    let blobs = stored_blobs(&world);
    assert!(blobs.contains(&repo::BlobName::Block(block_hash(1_000)).to_string()));
    assert!(!blobs.contains(&repo::BlobName::Block(block_hash(1)).to_string()));
    assert!(
        world.objects("marks/").is_empty(),
        "the dropped point's marks went with it"
    );
    assert!(world.objects("leases/").is_empty());
    // The number of the generation stays taken.
    let verdict = "gc/0000000000000001.verdict";
    assert_eq!(
        world.objects("gc/"),
        [verdict.to_owned(), format!("{verdict}.copy")]
    );

    let again = collect(&repository);
    assert_eq!(again.generations, [0u64; 0]);
    assert_eq!(again.deleted.objects, 0);
    // A dropped number is never given again.
    assert_eq!(back_up(&repository, "vm", &first).unwrap().sequence, 3);
}

#[test]
fn numbers_go_on_after_every_point_of_a_name_was_removed() {
    let world = World::new(2);
    let repository = world.open();
    for round in 1..=3 {
        let made = back_up(&repository, "vm", &Disk::new(8, &[(0, round)])).unwrap();
        assert_eq!(made.sequence, round);
        repository.forget(&made, "").unwrap();
        collect(&repository);
        assert!(visible_points(&repository).is_empty());
    }
    assert!(world.objects("data/").is_empty());
    assert!(world.objects("node/").is_empty());
}

#[test]
fn blocks_that_versions_share_stay_and_sparse_packs_are_packed_anew() {
    let world = World::new(3);
    let repository = world.open();
    let first = Disk::new(300, &seeds(0..100));
    let mut second = first.clone();
    (10..100).for_each(|index| second.set(index, 0));
    let one = back_up(&repository, "vm", &first).unwrap();
    let two = back_up(&repository, "vm", &second).unwrap();
    repository.forget(&one, "").unwrap();
    let report = collect(&repository);
    // The first data pack holds 10 live blocks of 100: its live blobs move.
    assert_eq!(report.repacked.objects, 1, "{report:#?}");
    assert_eq!(report.generations, [1, 2]);
    assert!(report.written.objects >= 1);
    check_point(&repository, &two, &second).unwrap();
    check_point(&world.open(), &two, &second).unwrap();
    let expected = 10 + 2;
    assert_eq!(
        stored_blobs(&world).len(),
        expected,
        "10 blocks, a leaf, a top"
    );
}

#[test]
fn a_dry_run_says_what_a_run_does_and_changes_nothing() {
    let world = World::new(4);
    let repository = world.open();
    let one = back_up(&repository, "vm", &Disk::new(300, &seeds(0..50))).unwrap();
    back_up(&repository, "vm", &Disk::new(300, &seeds(100..150))).unwrap();
    repository.forget(&one, "").unwrap();
    let before: Vec<String> = world.objects("");
    let dry = collect_garbage(
        &repository,
        &GcOptions {
            mode: GcMode::DryRun,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(world.objects(""), before);
    let real = collect(&repository);
    assert_eq!(
        (dry.dead, dry.repacked, &dry.dropped),
        (real.dead, real.repacked, &real.dropped)
    );
    assert_eq!(dry.live_blobs, real.live_blobs);
}

#[test]
fn a_running_backup_keeps_what_it_put_and_what_it_counted_on() {
    let world = World::new(5);
    let repository = world.open();
    let shared = Disk::new(300, &seeds(0..30));
    let one = back_up(&repository, "old", &shared).unwrap();

    // Another process begins, counts on the old blocks, and appends its own.
    let other = world.open();
    let session = other.begin(&name("new"), &begin_options()).unwrap();
    let mut mine = shared.clone();
    (100..110).for_each(|index| mine.set(index, 5_000 + index));
    let version = transfer(&session, &mine).unwrap();
    session.blobs().flush().unwrap();
    repository.forget(&one, "").unwrap();

    // The collector condemns the old packs and waits for the session, which beats from another thread.
    let report = while_beating(&|| session.lease().beat(), || {
        collect(&world.open_patient())
    });
    assert_eq!(report.dropped, [one.key()]);
    assert!(
        !report.rescued.is_empty(),
        "the session had counted on them: {report:#?}"
    );
    let draft = repo::PointDraft {
        disks: vec![version],
        ..repo::PointDraft::default()
    };
    let made = session.commit(draft).unwrap();
    check_point(&world.open(), &made, &mine).unwrap();
    collect(&repository);
    check_point(&world.open(), &made, &mine).unwrap();
}

#[test]
fn a_writer_that_was_stopped_over_a_whole_collection_cannot_commit() {
    let world = World::new(6);
    let repository = world.open();
    let shared = Disk::new(300, &seeds(0..30));
    let one = back_up(&repository, "old", &shared).unwrap();
    let other = world.open();
    let session = other.begin(&name("new"), &begin_options()).unwrap();
    let version = transfer(&session, &shared).unwrap();
    session.blobs().flush().unwrap();
    repository.forget(&one, "").unwrap();

    // It does not beat; the collector watches it for the stall time of its own clock, and fences it.
    let report = collect(&repository);
    assert!(
        report
            .waited_for
            .iter()
            .any(|waited| { waited.kind == Some(LeaseKind::Backup) && waited.broken.is_some() })
    );
    assert!(
        world.objects("data/").is_empty(),
        "nothing needs the blocks any more"
    );
    let draft = repo::PointDraft {
        disks: vec![version],
        ..repo::PointDraft::default()
    };
    let error = session.commit(draft).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert!(visible_points(&repository).is_empty());
    // The fenced number stays taken.
    assert_eq!(back_up(&repository, "new", &shared).unwrap().sequence, 2);
}

#[test]
fn a_fenced_writer_cannot_commit_even_when_it_never_beats_again() {
    // As above, but the lease itself is not looked at by the writer: the tombstone alone stops it.
    let world = World::new(7);
    let other = world.open();
    let session = other.begin(&name("vm"), &begin_options()).unwrap();
    let disk = Disk::new(8, &[(0, 1)]);
    let version = transfer(&session, &disk).unwrap();
    let repository = world.open();
    collect(&repository);
    assert_eq!(world.objects("points/").len(), 1, "the tombstone");
    let draft = repo::PointDraft {
        disks: vec![version],
        ..repo::PointDraft::default()
    };
    assert_eq!(session.commit(draft).unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(collect(&repository).quarantined, []);
    assert_eq!(world.objects("points/").len(), 1, "it stays for ever");
}

#[test]
fn a_reader_keeps_a_point_that_is_forgotten_meanwhile() {
    let world = World::new(8);
    let repository = world.open();
    let disk = Disk::new(300, &seeds(0..30));
    let made = back_up(&repository, "vm", &disk).unwrap();
    let reading = repository
        .read_session(LeaseKind::Restore, &[&made], ReadProtection::Lease)
        .unwrap();
    repository.forget(&made, "").unwrap();
    // Its root keeps the blocks.
    let report = while_beating(&|| reading.beat(), || collect(&world.open_patient()));
    assert_eq!(report.deleted.objects, 0, "{report:#?}");
    check_point(&repository, &made, &disk).unwrap();
    reading.check().unwrap();
    Arc::into_inner(reading).unwrap().finish().unwrap();
    collect(&repository);
    assert!(world.objects("data/").is_empty());
}

#[test]
fn an_undeleted_point_stays_and_a_removed_one_cannot_be_undeleted() {
    let world = World::new(9);
    let repository = world.open();
    let disk = Disk::new(300, &seeds(0..30));
    let made = back_up(&repository, "vm", &disk).unwrap();
    repository.forget(&made, "a mistake").unwrap();
    assert!(visible_points(&repository).is_empty());
    repository.undelete(&made, "sorry").unwrap();
    assert_eq!(visible_points(&repository), ["vm@1"]);
    collect(&repository);
    check_point(&world.open(), &made, &disk).unwrap();

    repository.forget(&made, "").unwrap();
    collect(&repository);
    let error = repository.undelete(&made, "").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn a_held_point_is_neither_forgotten_nor_dropped() {
    let world = World::new(10);
    let repository = world.open();
    let made = back_up(&repository, "vm", &Disk::new(8, &[(0, 1)])).unwrap();
    repository.hold(&made, "court order").unwrap();
    assert_eq!(
        repository.forget(&made, "").unwrap_err().kind(),
        ErrorKind::Refused
    );
    repository.release(&made, "").unwrap();
    repository.forget(&made, "").unwrap();
    assert_eq!(
        repository.hold(&made, "").unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(collect(&repository).dropped, [made.key()]);
}

#[test]
fn many_points_are_bundled_and_stay_what_they_were() {
    let world = World::new(11);
    let repository = world.open();
    let mut disk = Disk::new(300, &seeds(0..20));
    let mut made = Vec::new();
    for round in 0..20u64 {
        disk.set(round, 900 + round);
        made.push((back_up(&repository, "vm", &disk).unwrap(), disk.clone()));
    }
    let small = GcOptions {
        bundle_points_min: 8,
        ..options()
    };
    let report = collect_garbage(&repository, &small).unwrap();
    assert_eq!(report.bundled, 20);
    assert!(world.objects("points/").is_empty());
    assert_eq!(world.objects("bundles/").len(), 2, "a bundle and its copy");
    let fresh = world.open();
    assert_eq!(visible_points(&fresh).len(), 20);
    for (point, disk) in &made {
        check_point(&fresh, point, disk).unwrap();
    }
    // A point of a bundle can be dropped, and the next one gets the next number.
    fresh.forget(&made[3].0, "").unwrap();
    assert_eq!(
        collect_garbage(&fresh, &small).unwrap().dropped,
        [made[3].0.key()]
    );
    assert_eq!(visible_points(&world.open()).len(), 19);
    assert_eq!(back_up(&fresh, "vm", &disk).unwrap().sequence, 21);
    assert_eq!(point(&world.open(), "vm@20").point, made[19].0.point);
}

#[test]
fn small_packs_and_segments_are_merged() {
    let world = World::new(12);
    let repository = world.open();
    let mut disk = Disk::new(300, &[]);
    for round in 0..24u64 {
        disk.set(round, 900 + round);
        back_up(&repository, "vm", &disk).unwrap();
    }
    let last = point(&repository, "vm@24");
    assert_eq!(world.objects("data/").len(), 24);
    let report = collect(&repository);
    assert_eq!(world.objects("data/").len(), 1, "{report:#?}");
    assert_eq!(world.objects("node/").len(), 1);
    assert!(
        world.objects("index/").len() <= 2,
        "{:?}",
        world.objects("index/")
    );
    let fresh = world.open();
    check_point(&fresh, &last, &disk).unwrap();
    assert_eq!(
        fresh.index_stats().unwrap().directories_read,
        0,
        "segments tell of every pack"
    );
}

#[test]
fn what_an_earlier_collector_left_is_finished_or_aborted() {
    let world = World::new(13);
    let repository = world.open();
    let disk = Disk::new(300, &seeds(0..30));
    let one = back_up(&repository, "vm", &disk).unwrap();
    let two = back_up(&repository, "vm", &Disk::new(300, &seeds(50..80))).unwrap();
    repository.forget(&one, "").unwrap();
    // Count the calls of a whole run, then let a run die at each of them.
    let counting = store::faulty::FaultyStore::sound(world.fork().memory);
    let counting = Arc::new(counting);
    collect(&world.open_over(Arc::clone(&counting) as Arc<dyn Store>));
    let calls = counting.calls();
    assert!(calls > 20);
    for number in 1..=calls {
        for moment in [store::faulty::Moment::Before, store::faulty::Moment::After] {
            let fork = world.fork();
            let dying =
                store::faulty::FaultyStore::crashing_at(Arc::clone(&fork.memory), number, moment);
            if let Ok(repository) = fork.try_open_over(Arc::new(dying)) {
                collect_garbage(&repository, &options())
                    .map(|_| ())
                    .unwrap_or_default();
            }
            let repository = fork.open();
            check_point(&repository, &two, &Disk::new(300, &seeds(50..80))).unwrap();
            collect(&repository);
            assert_eq!(
                visible_points(&repository),
                ["vm@2"],
                "call {number} {moment:?}"
            );
            check_point(&fork.open(), &two, &Disk::new(300, &seeds(50..80))).unwrap();
            assert_eq!(fork.objects("data/").len(), 1, "call {number} {moment:?}");
            assert!(
                fork.objects("leases/").is_empty(),
                "call {number} {moment:?}"
            );
        }
    }
}

#[test]
fn two_collectors_do_not_work_at_once() {
    let world = World::new(14);
    let repository = world.open();
    back_up(&repository, "vm", &Disk::new(8, &[(0, 1)])).unwrap();
    let reading = repository
        .read_session(LeaseKind::Gc, &[], ReadProtection::Lease)
        .unwrap();
    // The other collector's lease beats; this one sees it and gives way.
    let outcome = while_beating(&|| reading.beat(), || {
        collect_garbage(&world.open_patient(), &options())
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Busy);
    Arc::into_inner(reading).unwrap().finish().unwrap();
    collect(&repository);
}

#[test]
fn a_missing_pack_spares_the_others_until_told_otherwise() {
    let world = World::new(15);
    let repository = world.open();
    let one = back_up(&repository, "a", &Disk::new(300, &seeds(0..30))).unwrap();
    back_up(&repository, "b", &Disk::new(300, &seeds(50..80))).unwrap();
    repository.forget(&one, "").unwrap();
    let nodes = world.objects("node/");
    world.memory.delete(&nodes[1].parse().unwrap()).unwrap();
    let repository = world.open();
    let packs = world.objects("data/").len();
    let report = collect(&repository);
    if report.spared {
        assert_eq!(world.objects("data/").len(), packs);
        assert!(!report.quarantined.is_empty());
    } else {
        // The pack that is gone was the forgotten point's own.
        assert_eq!(report.quarantined, []);
    }
    let bold = GcOptions {
        on_missing: MissingPolicy::Proceed,
        ..options()
    };
    collect_garbage(&world.open(), &bold).unwrap();
    assert!(world.objects("data/").len() < packs);
}

#[test]
fn a_full_store_still_gives_space_back() {
    let world = World::new(16);
    let repository = world.open();
    let mut disk = Disk::new(300, &seeds(0..60));
    let one = back_up(&repository, "vm", &disk).unwrap();
    (10..60).for_each(|index| disk.set(index, 0));
    let two = back_up(&repository, "vm", &disk).unwrap();
    let three = back_up(&repository, "vm", &Disk::new(300, &seeds(200..260))).unwrap();
    repository.forget(&one, "").unwrap();
    repository.forget(&three, "").unwrap();
    // Room for records and heartbeats, not for a pack.
    world
        .memory
        .set_capacity(Some(world.memory.used_bytes() + 6_000));
    let before = world.memory.used_bytes();
    let report = collect(&repository);
    assert!(report.deleted.objects >= 2, "{report:#?}");
    assert!(world.memory.used_bytes() < before);
    check_point(&world.open(), &two, &disk).unwrap();
}

#[test]
fn the_cost_of_marking_does_not_grow_with_the_number_of_versions() {
    let reads = |versions: u64| {
        let world = World::new(17);
        let repository = world.open();
        let mut disk = Disk::new(128 * 40, &[]);
        for leaf in 0..40 {
            disk.set(leaf * 128, 1 + leaf);
        }
        for round in 0..versions {
            disk.set((round % 40) * 128 + 1, 10_000 + round % 400);
            back_up(&repository, "vm", &disk).unwrap();
        }
        // Only the newest ten stay: both repositories then hold the same number of live versions.
        for sequence in 1..=versions.saturating_sub(10) {
            repository
                .forget(&point(&repository, &format!("vm@{sequence}")), "")
                .unwrap();
        }
        let lean = GcOptions {
            bundle_points_min: 4,
            ..options()
        };
        collect_garbage(&repository, &lean).unwrap();
        let recording = Arc::new(RecordingStore::new(Arc::clone(&world.memory)));
        let repository = world.open_over(Arc::clone(&recording) as Arc<dyn Store>);
        recording.take_calls();
        let report = collect_garbage(&repository, &lean).unwrap();
        (recording.counts(), report.nodes_read)
    };
    let (few, few_nodes) = reads(10);
    let (many, many_nodes) = reads(120);
    let total = |counts: &store::recording::CallCounts| {
        counts.gets + counts.range_gets + counts.lists + counts.puts + counts.deletes + counts.sizes
    };
    assert!(total(&many) * 2 <= total(&few) * 3, "{few:?}\n{many:?}");
    assert!(many_nodes * 2 <= few_nodes * 3, "{few_nodes} {many_nodes}");
}

#[test]
fn an_old_session_that_resumes_goes_on_from_what_it_made_durable() {
    let world = World::new(18);
    let repository = world.open();
    let disk = Disk::new(300, &seeds(0..40));
    let session = repository.begin(&name("vm"), &begin_options()).unwrap();
    let version = transfer(&session, &disk).unwrap();
    session.checkpoint(version).unwrap();
    drop(session);
    // The dead session's partial tree is a root until somebody fences it; the one who does takes it over.
    let resumed = repository
        .begin(
            &name("vm"),
            &repo::BeginOptions {
                busy: repo::BusyPolicy::WaitForStall,
                ..begin_options()
            },
        )
        .unwrap();
    assert!(resumed.base().partial_disk("disk").is_some());
    while_beating(&|| resumed.lease().beat(), || {
        collect(&world.open_patient())
    });
    let packs = world.objects("data/");
    let made = commit(resumed, &disk).unwrap();
    assert_eq!(world.objects("data/"), packs, "nothing was sent twice");
    assert_eq!(made.sequence, 2, "the dead session's number is fenced");
    check_point(&world.open(), &made, &disk).unwrap();
}

#[test]
fn the_plan_takes_the_cheapest_packs_within_its_budget() {
    let facts = |id: u8, stored_bytes: u64, blobs: u32, live_blobs: u32| PackFacts {
        pack: PackId::from_bytes([id; 16]),
        kind: PackKind::Data,
        key: KeyId::PLAIN,
        stored_bytes,
        blobs,
        live_blobs,
        pinned: None,
    };
    let mut own = facts(9, 100, 10, 0);
    own.pinned = Some(PinReason::OwnedByLease);
    let all = [
        facts(1, 1_000, 100, 0),
        facts(2, 1_000, 100, 49),
        facts(3, 1_000, 100, 10),
        facts(4, 1_000, 100, 50),
        own,
    ];
    let options = GcOptions {
        repack_budget_bytes: 500,
        ..GcOptions::default()
    };
    let plan = plan_packs(&all, &options, |_| 1_000);
    assert_eq!(plan.dead, [PackId::from_bytes([1; 16])]);
    // 100 bytes move out of pack 3; the 490 of pack 2 no longer fit.
    assert_eq!(plan.repack, [PackId::from_bytes([3; 16])]);
    let plan = plan_packs(&all, &GcOptions::default(), |_| 1_000);
    assert_eq!(
        plan.repack,
        [PackId::from_bytes([3; 16]), PackId::from_bytes([2; 16])]
    );
}

#[test]
fn a_lease_whose_newest_heartbeat_is_damaged_is_not_taken_for_what_it_said_before() {
    let world = World::new(19);
    let repository = world.open();
    let made = back_up(&repository, "vm", &Disk::new(300, &seeds(0..10))).unwrap();
    // The first beat knows nothing of the root that a later one adds; the later one is damaged.
    let reading = repository
        .read_session(LeaseKind::Restore, &[], ReadProtection::Lease)
        .unwrap();
    reading.beat().unwrap();
    let newest = world.objects("leases/").pop().unwrap();
    world
        .memory
        .damage(&newest.parse().unwrap(), |bytes| bytes[90] ^= 1)
        .unwrap();
    repository.forget(&made, "").unwrap();
    let dry = GcOptions {
        mode: GcMode::DryRun,
        ..options()
    };
    let report = collect_garbage(&world.open_patient(), &dry).unwrap();
    assert!(report.spared, "nobody knows what it relies on: {report:#?}");
    assert_eq!(report.dead.objects, 0);
    // It beats again, or it stalls and is broken by what its first beat says.
    collect(&world.open());
    assert!(world.objects("leases/").is_empty() && world.objects("data/").is_empty());
    assert_eq!(reading.beat().unwrap_err().kind(), ErrorKind::Fenced);
}
