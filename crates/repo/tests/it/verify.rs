//! Verification names what is damaged and whom it hits: every kind of object, every kind of damage.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use repo::lease::LeaseKind;
use repo::retention::PointHealth;
use repo::verify::{
    FindingSeverity, SampleBudget, VerifyMarks, VerifyOptions, VerifyReport, VerifyScope,
    verify_without_keys,
};
use repo::{Encryption, ReadProtection, Repository};
use store::faulty::{Fault, FaultPlan, FaultyStore, PlannedCall};
use store::memory::MemoryStore;
use store::{ObjectName, Store, Verb};

use crate::gc::{collect, options};
use crate::world::{Disk, World, back_up, begin_options, name, point, transfer};

fn quiet() -> VerifyOptions {
    VerifyOptions {
        scope: VerifyScope::Full,
        marks: VerifyMarks::ReportOnly,
        protection: ReadProtection::None,
    }
}

fn verify(repository: &Repository) -> VerifyReport {
    repository.verify(&quiet()).unwrap()
}

fn seeds(range: std::ops::Range<u64>) -> Vec<(u64, u64)> {
    range.map(|index| (index, index + 1)).collect()
}

/// A repository with one of everything: singles, a bundle, a tombstone, marks, leases, records, a dropped point.
fn one_of_everything(seed: u64, encryption: Encryption) -> World {
    let world = World::with_encryption(seed, encryption);
    let repository = world.open();
    let mut disk = Disk::new(300, &seeds(0..20));
    for round in 0..6u64 {
        disk.set(round, 500 + round);
        back_up(&repository, "vm", &disk).unwrap();
    }
    let forgotten = point(&repository, "vm@2");
    repository.forget(&forgotten, "").unwrap();
    let small = repo::gc::GcOptions {
        bundle_points_min: 2,
        ..options()
    };
    repo::gc::collect_garbage(&repository, &small).unwrap();
    disk.set(250, 77);
    let newest = back_up(&repository, "vm", &disk).unwrap();
    repository.hold(&newest, "kept").unwrap();
    repository.release(&newest, "").unwrap();
    // A session that dies is fenced: its tombstone stays. Another one stays alive with its lease.
    let dead = repository.begin(&name("other"), &begin_options()).unwrap();
    transfer(&dead, &Disk::new(8, &[(0, 9_000)])).unwrap();
    drop(dead);
    collect(&repository);
    back_up(&repository, "other", &Disk::new(8, &[(1, 9_001)])).unwrap();
    repository.verify(&VerifyOptions::default()).unwrap();
    let alive = repository.begin(&name("third"), &begin_options()).unwrap();
    drop(alive);
    world
}

#[test]
fn a_sound_repository_is_sound() {
    for encryption in [Encryption::Aes256Gcm, Encryption::None] {
        let world = one_of_everything(1, encryption);
        let report = verify(&world.open());
        assert!(
            report.is_sound() && report.findings.is_empty(),
            "{report:#?}"
        );
        assert_eq!(report.sound_points.len(), 7);
        let coverage = report.coverage;
        assert_eq!(coverage.packs, coverage.packs_read);
        assert_eq!(coverage.pack_bytes, coverage.pack_bytes_read);
        assert!(
            coverage.blobs_read > 30 && coverage.nodes_walked > 5,
            "{coverage:?}"
        );
        let blind = verify_without_keys(world.memory.as_ref()).unwrap();
        assert!(blind.is_sound() && blind.findings.is_empty(), "{blind:#?}");
    }
}

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    FlipFirst,
    FlipMiddle,
    FlipLast,
    CutShort,
    Empty,
    Swap,
    Delete,
}

const DAMAGES: [Damage; 7] = [
    Damage::FlipFirst,
    Damage::FlipMiddle,
    Damage::FlipLast,
    Damage::CutShort,
    Damage::Empty,
    Damage::Swap,
    Damage::Delete,
];

fn apply(world: &World, object: &ObjectName, other: &ObjectName, damage: Damage) {
    let flip = |at: fn(usize) -> usize| {
        world
            .memory
            .damage(object, |bytes| {
                let at = at(bytes.len());
                bytes[at] ^= 0x10;
            })
            .unwrap();
    };
    match damage {
        Damage::FlipFirst => flip(|_| 0),
        Damage::FlipMiddle => flip(|length| length / 2),
        Damage::FlipLast => flip(|length| length - 1),
        Damage::CutShort => {
            world
                .memory
                .damage(object, |bytes| bytes.truncate(bytes.len() - 1))
                .unwrap();
        }
        Damage::Empty => world.memory.damage(object, Vec::clear).unwrap(),
        Damage::Swap => {
            let theirs = world.memory.get(other).unwrap();
            world
                .memory
                .damage(object, |bytes| *bytes = theirs.clone())
                .unwrap();
        }
        Damage::Delete => world.memory.delete(object).unwrap(),
    }
}

#[test]
fn every_damage_to_every_object_is_found_and_names_it() {
    let world = one_of_everything(2, Encryption::Aes256Gcm);
    let objects: Vec<ObjectName> = world
        .objects("")
        .iter()
        .map(|object| object.parse().unwrap())
        .collect();
    let kinds: BTreeSet<&str> = objects
        .iter()
        .map(|name| name.as_str().split('/').next().unwrap())
        .collect();
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        [
            "bundles",
            "config",
            "config.copy",
            "data",
            "gc",
            "index",
            "keys",
            "leases",
            "marks",
            "node",
            "points"
        ]
    );
    for (at, object) in objects.iter().enumerate() {
        let first = object.as_str().split('/').next().unwrap();
        let kin: Vec<&ObjectName> = objects
            .iter()
            .filter(|other| *other != object && other.as_str().starts_with(first))
            .collect();
        let other = kin
            .first()
            .copied()
            .unwrap_or(&objects[(at + 1) % objects.len()]);
        for damage in DAMAGES {
            let fork = world.fork();
            apply(&fork, object, other, damage);
            let told = format!("{damage:?} of {object}");
            check_found(&fork, object, damage, &told);
        }
    }
}

fn check_found(fork: &World, object: &ObjectName, damage: Damage, told: &str) {
    let text = object.as_str();
    if damage != Damage::Delete {
        let blind = verify_without_keys(fork.memory.as_ref()).unwrap();
        assert!(
            blind.findings.iter().any(|one| one.object == text),
            "{told}: {blind:#?}"
        );
    }
    // A heartbeat that is gone is its owner's to notice; a deleted key slot is one way less to unlock; nothing speaks of
    // the newest mark of a point.
    let unseen = damage == Damage::Delete
        && (text.starts_with("leases/")
            || text.starts_with("keys/slot-")
            || text.contains("/verified-"));
    if text.starts_with("keys/")
        && let Err(error) = fork.try_open_over(fork.memory.clone())
    {
        assert!(!error.to_string().is_empty(), "{told}");
        return;
    }
    let report = verify(&fork.open());
    if unseen {
        return;
    }
    assert!(!report.findings.is_empty(), "{told}: {report:#?}");
    let lost = text.starts_with("data/") || text.starts_with("node/");
    if lost {
        assert!(!report.is_sound(), "{told}: {report:#?}");
    }
    if damage != Damage::Delete {
        assert!(
            report.findings.iter().any(|one| one.object == text),
            "{told}: {report:#?}"
        );
    } else if lost {
        assert!(!report.damaged_points.is_empty(), "{told}: {report:#?}");
    } else if text.starts_with("points/") {
        assert!(!report.missing_points.is_empty(), "{told}: {report:#?}");
    } else if text.starts_with("bundles/") {
        // Its copy has the same points.
        assert!(report.is_sound(), "{told}: {report:#?}");
    }
}

#[test]
fn a_damaged_block_names_exactly_the_points_that_need_it() {
    let world = World::new(3);
    let repository = world.open();
    let mut disk = Disk::new(300, &[(0, 1)]);
    back_up(&repository, "vm", &disk).unwrap();
    disk.set(1, 2);
    back_up(&repository, "vm", &disk).unwrap();
    disk.set(1, 3);
    back_up(&repository, "vm", &disk).unwrap();
    back_up(&repository, "other", &Disk::new(300, &[(7, 2)])).unwrap();
    // The block of number 2 lies alone in the second data pack to be put: found by what the points need.
    let target = world
        .objects("data/")
        .into_iter()
        .find(|object| {
            let id = object.rsplit('/').next().unwrap().parse().unwrap();
            let dump = repository.dump_pack(repo::PackKind::Data, id).unwrap();
            dump.blobs.len() == 1
                && dump.blobs[0].1.name == repo::BlobName::Block(crate::world::block_hash(2))
        })
        .unwrap();
    world
        .memory
        .damage(&target.parse().unwrap(), |bytes| bytes[90] ^= 1)
        .unwrap();
    let report = verify(&world.open());
    let hit: Vec<String> = report
        .damaged_points
        .iter()
        .map(|hit| format!("{}@{}", hit.name.clone().unwrap(), hit.key.sequence))
        .collect();
    let mut sorted = hit.clone();
    sorted.sort();
    assert_eq!(sorted, ["other@1", "vm@2"]);
    assert_eq!(report.sound_points.len(), 2);
    assert!(report.findings.iter().any(|one| one.object == target));
}

#[test]
fn a_full_run_marks_points_verified_and_a_later_one_marks_them_damaged() {
    let world = World::new(4);
    let repository = world.open();
    back_up(&repository, "vm", &Disk::new(300, &seeds(0..10))).unwrap();
    let health = |repository: &Repository| {
        repository
            .find_point(&"vm@1".parse().unwrap())
            .unwrap()
            .marks
            .health()
    };
    let structure = VerifyOptions {
        scope: VerifyScope::Structure,
        ..VerifyOptions::default()
    };
    repository.verify(&structure).unwrap();
    assert_eq!(
        health(&repository),
        PointHealth::Unverified,
        "nothing was read"
    );
    repository.verify(&VerifyOptions::default()).unwrap();
    assert_eq!(health(&repository), PointHealth::Verified);
    let pack: ObjectName = world.objects("data/")[0].parse().unwrap();
    world.memory.damage(&pack, |bytes| bytes[100] ^= 1).unwrap();
    let repository = world.open();
    assert_eq!(
        repository.verify(&structure).unwrap().damaged_points,
        [],
        "not looked at"
    );
    assert_eq!(health(&repository), PointHealth::Verified);
    repository.verify(&VerifyOptions::default()).unwrap();
    repository.verify(&VerifyOptions::default()).unwrap();
    assert_eq!(health(&repository), PointHealth::Damaged);
    assert_eq!(
        world.objects("marks/").len(),
        2,
        "the same news is written once"
    );
    assert!(world.objects("leases/").is_empty());
}

#[test]
fn a_sample_is_the_same_for_the_same_seed_and_as_large_as_told() {
    let world = World::new(5);
    let repository = world.open();
    for round in 0..12u64 {
        back_up(
            &repository,
            &format!("vm{round}"),
            &Disk::new(8, &[(0, 100 + round)]),
        )
        .unwrap();
    }
    let sample = |seed: u64, budget: SampleBudget| {
        let scope = VerifyScope::Sample { seed, budget };
        repository
            .verify(&VerifyOptions { scope, ..quiet() })
            .unwrap()
            .coverage
    };
    assert_eq!(sample(1, SampleBudget::Packs(3)).packs_read, 3);
    assert_eq!(sample(1, SampleBudget::Percent(25)).packs_read, 6);
    assert_eq!(sample(1, SampleBudget::Percent(100)).packs_read, 24);
    let some = sample(1, SampleBudget::Bytes(2_000));
    assert!(
        some.packs_read >= 1 && some.packs_read < 24 && some.pack_bytes_read <= 2_000,
        "{some:?}"
    );
    assert_eq!(some, sample(1, SampleBudget::Bytes(2_000)));
    let different = (2..20).any(|seed| sample(seed, SampleBudget::Bytes(2_000)) != some);
    assert!(different, "the seed decides");
}

#[test]
fn index_segments_that_are_gone_are_told_and_lose_nothing() {
    let world = World::new(6);
    let repository = world.open();
    back_up(&repository, "vm", &Disk::new(8, &[(0, 1)])).unwrap();
    for object in world.objects("index/") {
        world.memory.delete(&object.parse().unwrap()).unwrap();
    }
    let report = verify(&world.open());
    assert!(report.is_sound());
    assert_eq!(report.findings.len(), 2);
    assert!(
        report
            .findings
            .iter()
            .all(|one| one.severity == FindingSeverity::Degraded)
    );
}

#[test]
fn a_verification_keeps_its_points_from_garbage_collection() {
    let world = World::new(7);
    let repository = world.open();
    let made = back_up(&repository, "vm", &Disk::new(300, &seeds(0..10))).unwrap();
    let reading = repository
        .read_session(LeaseKind::Verify, &[&made], ReadProtection::Lease)
        .unwrap();
    repository.forget(&made, "").unwrap();
    crate::gc::while_beating(&|| reading.beat(), || collect(&world.open_patient()));
    assert!(!world.objects("data/").is_empty());
    // Forgotten points are not verified: they are on their way out.
    let report = verify(&world.open());
    assert!(
        report.is_sound() && report.sound_points.is_empty(),
        "{report:#?}"
    );
}

/// Deletes a pack just before it is read whole for the first time.
struct Vanishing {
    memory: Arc<MemoryStore>,
    pack: ObjectName,
}

impl FaultPlan for Vanishing {
    fn fault(&mut self, call: &PlannedCall<'_>) -> Option<Fault> {
        if call.verb == Verb::Get && call.name == self.pack.as_str() {
            self.memory.delete(&self.pack).unwrap();
        }
        None
    }
}

#[test]
fn a_pack_that_vanishes_while_it_is_verified_is_missed() {
    let world = World::new(8);
    back_up(&world.open(), "vm", &Disk::new(300, &seeds(0..10))).unwrap();
    let pack: ObjectName = world.objects("data/")[0].parse().unwrap();
    let memory = Arc::clone(&world.memory);
    let store = FaultyStore::new(Arc::clone(&memory), Vanishing { memory, pack });
    let repository = world.open_over(Arc::new(store));
    let report = repository.verify(&VerifyOptions::default()).unwrap();
    assert_eq!(report.damaged_points.len(), 1, "{report:#?}");
    assert_eq!(report.sound_points, []);
    assert!(
        world
            .objects("marks/")
            .iter()
            .all(|mark| !mark.contains("/verified-"))
    );
}

/// Before a pack is read whole, moves what lies in it: another process collected garbage meanwhile.
struct Moving {
    world: World,
    pack: String,
    done: bool,
}

impl FaultPlan for Moving {
    fn fault(&mut self, call: &PlannedCall<'_>) -> Option<Fault> {
        if call.verb == Verb::Get && call.name == self.pack && !self.done {
            self.done = true;
            let eager = repo::gc::GcOptions {
                repack_below_percent: 100,
                ..options()
            };
            repo::gc::collect_garbage(&self.world.open(), &eager).unwrap();
        }
        None
    }
}

#[test]
fn what_is_moved_while_it_is_verified_is_read_where_it_lies_then() {
    for damage in [false, true] {
        let world = World::new(9);
        let repository = world.open();
        let one = back_up(&repository, "old", &Disk::new(300, &seeds(0..30))).unwrap();
        let two = back_up(&repository, "vm", &Disk::new(300, &seeds(0..4))).unwrap();
        repository.forget(&one, "").unwrap();
        let before = world.objects("data/");
        let moving = Moving {
            world: World {
                clock: world.clock.clone(),
                random: world.random.clone(),
                memory: world.memory.clone(),
                key_file: world.key_file.clone(),
            },
            pack: before[0].clone(),
            done: false,
        };
        let flips = Flipping {
            moving,
            known: before.clone(),
            active: damage,
        };
        let store = FaultyStore::new(Arc::clone(&world.memory), flips);
        let report = world.open_over(Arc::new(store)).verify(&quiet()).unwrap();
        assert!(!world.objects("data/").contains(&before[0]), "it was moved");
        assert_eq!(report.is_sound(), !damage, "{report:#?}");
        let coverage = report.coverage;
        assert_eq!(coverage.packs, coverage.packs_read, "{coverage:?}");
        let hit = report.damaged_points.iter().any(|hit| hit.key == two.key());
        assert_eq!(hit, damage);
    }
}

/// Besides, damages the packs that were made by that.
struct Flipping {
    moving: Moving,
    known: Vec<String>,
    active: bool,
}

impl FaultPlan for Flipping {
    fn fault(&mut self, call: &PlannedCall<'_>) -> Option<Fault> {
        self.moving.fault(call);
        let new = call.name.starts_with("data/") && !self.known.iter().any(|old| old == call.name);
        (self.active && new && call.verb == Verb::Get).then_some(Fault::FlipBit(720))
    }
}

#[test]
fn stray_objects_with_absurd_numbers_cost_nothing_and_are_named() {
    let world = World::new(10);
    let made = back_up(&world.open(), "vm", &Disk::new(8, &[(0, 1)])).unwrap();
    let name_id = made.name_id;
    let id = "0123456789abcdef0123456789abcdef";
    let strays = [
        format!("points/{name_id}/ffffffffffffffff"),
        format!("marks/{name_id}-fffffffffffffff0/hold-{id}"),
    ];
    for stray in &strays {
        world.memory.put_new(&stray.parse().unwrap(), b"?").unwrap();
    }
    let report = verify(&world.open());
    assert_eq!(report.missing_points, []);
    for stray in &strays {
        assert!(
            report.findings.iter().any(|one| one.object == *stray),
            "{stray}: {report:#?}"
        );
    }
    // The next version gets the next number.
    let next = back_up(&world.open(), "vm", &Disk::new(8, &[(0, 2)])).unwrap();
    assert_eq!(next.sequence, 2);
}

#[test]
fn missing_points_are_told_as_ranges() {
    let world = World::new(11);
    let repository = world.open();
    let mut made = Vec::new();
    for round in 1..=6u64 {
        made.push(back_up(&repository, "vm", &Disk::new(8, &[(0, round)])).unwrap());
    }
    let objects = world.objects("points/");
    for at in [1, 2, 4] {
        world.memory.delete(&objects[at].parse().unwrap()).unwrap();
    }
    let gaps: Vec<(u64, u64)> = verify(&world.open())
        .missing_points
        .iter()
        .map(|gap| (gap.first, gap.last))
        .collect();
    assert_eq!(gaps, [(2, 3), (5, 5)]);
}

/// Several packs of which some are damaged: whatever order threads take them in, the report is the same.
#[test]
fn packs_that_are_read_at_once_are_reported_in_one_order() {
    let world = World::new(20);
    let repository = world.open();
    for round in 0..24u64 {
        let disk = Disk::new(2000, &seeds(round * 40..round * 40 + 200));
        back_up(&repository, &format!("vm{round}"), &disk).unwrap();
    }
    let packs = world.objects("data/");
    assert!(packs.len() >= 24, "{packs:?}");
    for (pack, damage) in packs.iter().step_by(5).zip(DAMAGES) {
        let pack: ObjectName = pack.parse().unwrap();
        apply(&world, &pack, &packs[1].parse().unwrap(), damage);
    }
    let first = world.open().verify(&quiet()).unwrap();
    assert!(first.damaged_points.len() >= 3, "{first:#?}");
    assert!(first.findings.is_sorted());
    for _ in 0..8 {
        assert_eq!(world.open().verify(&quiet()).unwrap(), first);
    }
    let told: BTreeSet<&str> = first
        .findings
        .iter()
        .map(|one| one.object.as_str())
        .collect();
    let listed = world.objects("data/");
    for pack in packs.iter().step_by(5).take(DAMAGES.len()) {
        assert!(
            told.contains(pack.as_str()) || !listed.contains(pack),
            "{pack} is not among {told:?}"
        );
    }
}

#[test]
fn a_store_that_fails_ends_a_verification_with_its_error() {
    let world = World::new(21);
    let repository = world.open();
    for round in 0..12u64 {
        let disk = Disk::new(2000, &seeds(round * 40..round * 40 + 40));
        back_up(&repository, "vm", &disk).unwrap();
    }
    let packs = world.objects("data/");
    for kind in [store::ErrorKind::Unavailable, store::ErrorKind::Cancelled] {
        let bad = packs[packs.len() / 2].clone();
        let fault = move |call: &PlannedCall<'_>| {
            (call.verb == Verb::Get && call.name == bad).then_some(Fault::FailBefore(kind))
        };
        let store = FaultyStore::new(Arc::clone(&world.memory), fault);
        let error = world
            .open_over(Arc::new(store))
            .verify(&quiet())
            .unwrap_err();
        let expected = repo::Error::from(store::Error::new(kind, "")).kind();
        assert_eq!(error.kind(), expected, "{error}");
    }
    assert!(verify(&world.open()).is_sound());
}

/// Lets nothing be written, as a read-only mount or credentials that may only read.
fn read_only(call: &PlannedCall<'_>) -> Option<Fault> {
    matches!(call.verb, Verb::PutNew | Verb::Delete)
        .then_some(Fault::FailBefore(store::ErrorKind::Denied))
}

#[test]
fn what_may_not_be_written_is_read_without_a_lease_and_never_written() {
    let world = World::new(22);
    let disk = Disk::new(300, &seeds(0..20));
    let made = back_up(&world.open(), "vm", &disk).unwrap();
    let before = world.objects("");
    let store = FaultyStore::new(Arc::clone(&world.memory), read_only);
    let repository = world.open_over(Arc::new(store));
    let options = |protection, marks| VerifyOptions {
        scope: VerifyScope::Full,
        marks,
        protection,
    };
    let wished = ReadProtection::LeaseIfWritable;
    let report = repository
        .verify(&options(wished, VerifyMarks::ReportOnly))
        .unwrap();
    assert!(report.is_sound() && report.protection == ReadProtection::None);
    let session = repository
        .read_session(LeaseKind::Restore, &[&made], wished)
        .unwrap();
    assert_eq!(session.protection(), ReadProtection::None);
    crate::world::check_point(&repository, &made, &disk).unwrap();
    let there = World::new(23);
    let copy = repo::copy::CopyOptions {
        protection: wished,
        ..repo::copy::CopyOptions::default()
    };
    let copied = repository.copy_to(&there.open(), &copy).unwrap();
    assert_eq!(copied.copied.len(), 1);
    assert_eq!(copied.protection, ReadProtection::None);

    let denied = |outcome: repo::Result<()>| {
        assert_eq!(outcome.unwrap_err().kind(), repo::ErrorKind::Denied);
    };
    denied(
        repository
            .verify(&options(wished, VerifyMarks::Put))
            .map(drop),
    );
    denied(
        repository
            .verify(&options(ReadProtection::Lease, VerifyMarks::ReportOnly))
            .map(drop),
    );
    denied(repository.begin(&name("vm"), &begin_options()).map(drop));
    denied(repo::gc::collect_garbage(&repository, &options_of_gc()).map(drop));
    assert_eq!(world.objects(""), before);

    // Where a lease can be written it is.
    let report = world
        .open()
        .verify(&options(wished, VerifyMarks::ReportOnly))
        .unwrap();
    assert_eq!(report.protection, ReadProtection::Lease);
    assert!(world.objects("leases/").is_empty());
}

fn options_of_gc() -> repo::gc::GcOptions {
    options()
}

/// Lets nothing be written, and removes a point and what only it needed before the first pack is read.
struct Freeing {
    world: World,
    done: bool,
}

impl FaultPlan for Freeing {
    fn fault(&mut self, call: &PlannedCall<'_>) -> Option<Fault> {
        if call.verb == Verb::Get && call.name.starts_with("data/") && !self.done {
            self.done = true;
            let repository = self.world.open();
            repository.forget(&point(&repository, "old@1"), "").unwrap();
            collect(&repository);
        }
        read_only(call)
    }
}

#[test]
fn a_point_that_goes_while_an_unprotected_reader_verifies_is_no_damage() {
    let world = World::new(24);
    back_up(&world.open(), "old", &Disk::new(300, &seeds(0..20))).unwrap();
    let kept = back_up(&world.open(), "vm", &Disk::new(300, &seeds(50..60))).unwrap();
    let before = world.objects("data/").len();
    let freeing = Freeing {
        world: World {
            clock: world.clock.clone(),
            random: world.random.clone(),
            memory: world.memory.clone(),
            key_file: world.key_file.clone(),
        },
        done: false,
    };
    let store = FaultyStore::new(Arc::clone(&world.memory), freeing);
    let report = world
        .open_over(Arc::new(store))
        .verify(&VerifyOptions {
            marks: VerifyMarks::ReportOnly,
            protection: ReadProtection::LeaseIfWritable,
            ..VerifyOptions::default()
        })
        .unwrap();
    assert!(world.objects("data/").len() < before, "it was freed");
    assert_eq!(report.damaged_points, [], "{report:#?}");
    assert_eq!(report.sound_points, [kept.key()]);
}
