//! Versions with ranges left out, one upon the other: zeros in exactly what each records, whatever came before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::ReadAt;
use engine::job::JobContext;
use engine::job::backup_disk::{BackupReport, BackupRequest, backup_disk};
use engine::job::check_disk::check_disk;
use engine::job::diff_disk::diff_disks;
use engine::job::restore_disk::{Proof, RestoreMode, RestoreRequest, restore_disk};
use engine::{Cancellation, CheckpointEvery, ErrorKind, Progress};
use proptest::prelude::*;
use repo::Omissions;
use store::Store;
use vdisk::Format;
use vdisk::vhdx::IdSource;

use crate::support::{
    BLOCK, LEAF, SparseDisk, World, blocks, context, environment, gone, request, same_bytes,
    selector, tracking,
};

/// Ends within a block, so that the last one is short.
const LENGTH: u64 = 2 * LEAF + 5 * BLOCK as u64 + 512;
const BLOCKS: u64 = 261;

fn omissions(list: impl IntoIterator<Item = u64>) -> Option<Omissions> {
    let ranges: Vec<repo::ByteRange> = blocks(list)
        .iter()
        .map(|range| repo::ByteRange {
            offset: range.offset,
            length_bytes: range.length_bytes,
        })
        .collect();
    (!ranges.is_empty()).then(|| Omissions {
        ranges,
        reason: "free space".to_owned(),
    })
}

/// The bytes of a disk without some blocks.
fn without(disk: &SparseDisk, left_out: &BTreeSet<u64>) -> Vec<u8> {
    let mut shown = disk.clone();
    shown.blocks.retain(|block, _| !left_out.contains(block));
    shown.bytes()
}

/// Whole blocks: the last, short one is never left out.
fn runs() -> impl Strategy<Value = BTreeSet<u64>> {
    prop::collection::vec((0..BLOCKS - 1, 1_u64..60), 0..5).prop_map(|runs| {
        let blocks = runs
            .into_iter()
            .flat_map(|(first, count)| first..first + count);
        blocks.filter(|block| *block < BLOCKS - 1).collect()
    })
}

/// What happens between two versions, and how the next one is made.
#[derive(Debug, Clone)]
struct Step {
    writes: Vec<(u64, Option<u64>)>,
    left_out: BTreeSet<u64>,
    tracked: Tracked,
    /// A run before it that is told to stop after so many leaves, and what that one leaves out.
    stopped: Option<(u64, BTreeSet<u64>)>,
    /// Writes between the stopped run and the next: another checkpoint.
    later_writes: Vec<(u64, Option<u64>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tracked {
    No,
    Honest,
    /// Keeps silent about what the version before left out.
    SilentAboutLeftOut,
}

fn writes() -> impl Strategy<Value = Vec<(u64, Option<u64>)>> {
    prop::collection::vec(
        (0..BLOCKS, prop::option::weighted(0.8, any::<u64>())),
        0..20,
    )
}

fn step() -> impl Strategy<Value = Step> {
    let tracked = prop_oneof![
        Just(Tracked::No),
        Just(Tracked::Honest),
        Just(Tracked::SilentAboutLeftOut)
    ];
    let stopped = prop::option::weighted(0.4, (0_u64..3, runs()));
    (writes(), runs(), tracked, stopped, writes()).prop_map(
        |(writes, left_out, tracked, stopped, later_writes)| Step {
            writes,
            left_out,
            tracked,
            stopped,
            later_writes,
        },
    )
}

/// A name with its versions, and what the model says of them.
struct Chain {
    world: World,
    disk: SparseDisk,
    /// Blocks written since the newest version.
    changed: BTreeSet<u64>,
    left_out: BTreeSet<u64>,
    /// Numbers (an interrupted run takes one, too) and bytes.
    expected: Vec<(u64, Vec<u8>)>,
}

impl Chain {
    fn new() -> Self {
        Self {
            world: World::new(),
            disk: SparseDisk::filled(LENGTH, (0..BLOCKS).filter(|block| block % 3 != 1), 5),
            changed: BTreeSet::new(),
            left_out: BTreeSet::new(),
            expected: Vec::new(),
        }
    }

    fn write(&mut self, writes: &[(u64, Option<u64>)]) {
        for (block, seed) in writes {
            match seed {
                Some(seed) => self.disk.fill(*block, *seed),
                None => drop(self.disk.blocks.remove(block)),
            }
            self.changed.insert(*block);
        }
    }

    fn request(&self, tracked: Tracked, left_out: &BTreeSet<u64>) -> BackupRequest {
        let mut request = request("vm");
        request.left_out = omissions(left_out.iter().copied());
        request.checkpoint_every = CheckpointEvery {
            stored_bytes: 1,
            elapsed_ms: u64::MAX,
        };
        request.workers = Some(1);
        let told = |block: &&u64| tracked == Tracked::Honest || !self.left_out.contains(*block);
        if tracked != Tracked::No {
            let changed = self.changed.iter().filter(told).copied();
            request.tracking = Some(tracking(changed, 100_000));
        }
        request
    }

    fn committed(&mut self, number: u64, left_out: &BTreeSet<u64>) {
        self.expected.push((number, without(&self.disk, left_out)));
        self.changed.clear();
        self.left_out.clone_from(left_out);
        let shown = self.world.read("vm");
        same_bytes(&shown, &self.expected.last().unwrap().1);
        let report = check_disk(
            &self.world.repository,
            &selector("vm"),
            None,
            &self.disk,
            context(),
        );
        let report = report.unwrap();
        assert!(report.is_equal, "{report:?}");
        assert_eq!(report.left_out_bytes, left_out.len() as u64 * BLOCK as u64);
    }

    fn take(&mut self, step: &Step) {
        self.write(&step.writes);
        if let Some((leaves, left_out)) = &step.stopped {
            let request = self.request(step.tracked, left_out);
            match stopped_after(&self.world, leaves * LEAF, &request, &self.disk) {
                Ok(report) => self.committed(report.sequence, left_out),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}"),
            }
            self.write(&step.later_writes);
        }
        let request = self.request(step.tracked, &step.left_out);
        let report = self.world.back_up_with(&request, &self.disk).unwrap();
        assert_eq!(report.lies, [], "nobody lied about what matters");
        self.committed(report.sequence, &step.left_out);
    }
}

/// Tells the job to stop once so many bytes are done.
struct StopAt {
    after_bytes: u64,
    done: AtomicU64,
    cancel: Cancellation,
}

impl Progress for StopAt {
    fn begin(&self, _step: &str, _total: Option<u64>) {}
    fn advance(&self, bytes: u64) {
        if self.done.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.after_bytes {
            self.cancel.cancel();
        }
    }
    fn warn(&self, _text: &str) {}
    fn end(&self) {}
}

fn stopped_after(
    world: &World,
    bytes: u64,
    request: &BackupRequest,
    disk: &SparseDisk,
) -> engine::Result<BackupReport> {
    let cancel = Cancellation::default();
    let progress = StopAt {
        after_bytes: bytes,
        done: AtomicU64::new(0),
        cancel: cancel.clone(),
    };
    let store: Arc<dyn Store> = world.store.clone();
    let repository = world.open(store, &gone()).unwrap();
    let context = JobContext {
        progress: &progress,
        cancel: &cancel,
        ..context()
    };
    backup_disk(&repository, request, disk, context)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_version_of_a_chain_is_its_disk_without_what_it_left_out(
        steps in prop::collection::vec(step(), 2..6)
    ) {
        let mut chain = Chain::new();
        for step in &steps {
            chain.take(step);
        }
        for (number, expected) in &chain.expected {
            let selector = format!("vm@{number}");
            same_bytes(&chain.world.read(&selector), expected);
        }
        // And as another process sees it.
        let store: Arc<dyn Store> = chain.world.store.clone();
        let again = chain.world.open(store, &environment()).unwrap();
        prop_assert_eq!(again.points().unwrap().0.len(), chain.expected.len());
    }
}

fn half_left_out() -> (World, SparseDisk, BTreeSet<u64>) {
    let world = World::new();
    let disk = SparseDisk::filled(2 * LEAF, 0..256, 1);
    let left_out: BTreeSet<u64> = (64..192).collect();
    let mut leaving = request("vm");
    leaving.left_out = omissions(left_out.iter().copied());
    world.back_up_with(&leaving, &disk).unwrap();
    (world, disk, left_out)
}

#[test]
fn what_is_left_out_now_becomes_zeros_even_if_tracking_calls_it_unchanged() {
    let world = World::new();
    let disk = SparseDisk::filled(2 * LEAF, 0..256, 1);
    world.back_up("vm", &disk);
    let mut leaving = request("vm");
    leaving.left_out = omissions(64..192);
    // All that is called unchanged is audited: what is left out is no lie.
    leaving.tracking = Some(tracking([], 1_000_000));
    disk.take_read_bytes();
    let report = world.back_up_with(&leaving, &disk).unwrap();
    assert_eq!((report.lies, report.fell_back), (vec![], false));
    assert_eq!(report.left_out_bytes, 128 * BLOCK as u64);
    assert_eq!(disk.take_read_bytes(), 128 * BLOCK as u64, "the audit's");
    same_bytes(&world.read("vm"), &without(&disk, &(64..192).collect()));
    let mut ranges = Vec::new();
    let (older, newer) = (selector("vm@1"), selector("vm@2"));
    diff_disks(
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
    assert_eq!(ranges, [(64 * block, 128 * block)]);
}

#[test]
fn a_version_with_parts_left_out_comes_back_as_zeros_in_new_images_and_in_place() {
    let (world, disk, left_out) = half_left_out();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.raw");
    let expected = without(&disk, &left_out);
    let mut wish = RestoreRequest::new(selector("vm"), &target, IdSource::seeded(5));
    wish.proof = Proof::ReadBack;
    wish.format = Some(Format::Raw);
    let report = restore_disk(&world.repository, &wish, context()).unwrap();
    assert!(report.is_proved);
    assert_eq!(report.plan.zeroed_ranges, 1);
    same_bytes(&std::fs::read(&target).unwrap(), &expected);
    // Over a disk that has other bytes there: they become zeros, too.
    std::fs::write(&target, disk.bytes()).unwrap();
    wish.mode = RestoreMode::InPlace;
    let report = restore_disk(&world.repository, &wish, context()).unwrap();
    assert_eq!(report.zeroed_bytes, 128 * BLOCK as u64);
    assert_eq!(report.written_bytes, 0);
    same_bytes(&std::fs::read(&target).unwrap(), &expected);
}

#[test]
fn a_check_compares_what_was_kept_and_nothing_else() {
    let (world, mut disk, _) = half_left_out();
    disk.fill(100, 77);
    let check = |disk: &SparseDisk| {
        check_disk(&world.repository, &selector("vm"), None, disk, context()).unwrap()
    };
    let report = check(&disk);
    assert!(report.is_equal, "{report:?}");
    assert_eq!(report.left_out_bytes, 128 * BLOCK as u64);
    assert_eq!(report.read_bytes, 128 * BLOCK as u64);
    disk.fill(192, 77);
    let report = check(&disk);
    assert_eq!(report.ranges, [(192 * BLOCK as u64, BLOCK as u64)]);
}

#[test]
fn what_was_left_out_is_told_by_the_version_and_its_counters() {
    let (world, _, _) = half_left_out();
    let point = world.repository.find_point(&selector("vm")).unwrap().point;
    assert_eq!(point.counters["left_out_bytes"], 128 * BLOCK as u64);
    let omitted = point.disks[0].omissions.clone().unwrap();
    assert_eq!(omitted.ranges.len(), 1);
    // The root binds it: the same bytes with nothing left out are another disk.
    let plain = repo::DiskVersion::new("disk", point.disks[0].tree());
    assert_ne!(plain.root, point.disks[0].root);
}

/// Counts what is read of a disk that is mostly not there.
struct Counted {
    disk: BTreeMap<u64, Vec<u8>>,
    size_bytes: u64,
}

impl ReadAt for Counted {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        buffer.fill(0);
        for (at, bytes) in &self.disk {
            for (place, byte) in (*at..).zip(bytes) {
                let inside = place.checked_sub(offset).map(usize::try_from);
                if let Some(Ok(index)) = inside
                    && let Some(slot) = buffer.get_mut(index)
                {
                    *slot = *byte;
                }
            }
        }
        Ok(())
    }
}

/// An MBR with partitions of these types, first sectors and sectors, and other bytes at their places.
fn mbr(size_bytes: u64, partitions: &[(u8, u32, u32)], more: &[(u64, &[u8])]) -> Arc<dyn ReadAt> {
    let mut sector = vec![0; 512];
    for (entry, (kind, first, count)) in partitions.iter().enumerate() {
        let at = 446 + entry * 16;
        sector[at + 4] = *kind;
        sector[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        sector[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    let mut disk = BTreeMap::from([(0, sector)]);
    disk.extend(more.iter().map(|(at, bytes)| (*at, bytes.to_vec())));
    Arc::new(Counted { disk, size_bytes })
}

const MIB: u64 = 1 << 20;

/// The header of swap space of so many pages, with this signature.
fn swap_header(pages: u32, mark: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    bytes[1028..1032].copy_from_slice(&(pages - 1).to_le_bytes());
    bytes[4086..4086 + mark.len()].copy_from_slice(mark);
    bytes
}

fn plan(disk: Arc<dyn ReadAt>) -> engine::unneeded::UnneededPlan {
    engine::unneeded::plan_unneeded(disk, context()).unwrap()
}

#[test]
fn swap_partitions_are_left_out_but_for_both_ends() {
    let header = swap_header(4096, b"SWAPSPACE2");
    let swap = (0x82, 2048, 32_768);
    let seen = plan(mbr(64 * MIB, &[swap], &[(MIB, &header)]));
    assert_eq!(seen.kept_because, None, "{seen:?}");
    let ranges = seen.omissions.unwrap().ranges;
    let expected = repo::ByteRange {
        offset: 2 * MIB,
        length_bytes: 14 * MIB,
    };
    assert_eq!(ranges, [expected]);
    assert_eq!(seen.volumes[0].free_bytes, 14 * MIB);
    // Behind the last page that the header tells, nothing is known.
    let short = swap_header(1024, b"SWAPSPACE2");
    let seen = plan(mbr(64 * MIB, &[swap], &[(MIB, &short)]));
    assert_eq!(seen.left_out_bytes, 3 * MIB);
    // More pages than there is room for: not what it seems.
    let long = swap_header(9000, b"SWAPSPACE2");
    let seen = plan(mbr(64 * MIB, &[swap], &[(MIB, &long)]));
    assert_eq!(seen.omissions, None);
    assert!(seen.volumes[0].kept_because.is_some(), "{seen:?}");
}

#[test]
fn a_sleeping_system_keeps_the_whole_disk() {
    let (used, asleep) = (
        swap_header(4096, b"SWAPSPACE2"),
        swap_header(4096, b"S1SUSPEND"),
    );
    let partitions = [(0x82, 2048, 32_768), (0x82, 34_816, 32_768)];
    let disk = mbr(64 * MIB, &partitions, &[(MIB, &used), (17 * MIB, &asleep)]);
    let seen = plan(disk);
    assert_eq!(seen.omissions, None);
    let why = seen.kept_because.unwrap();
    assert!(why.contains("sleeping Linux"), "{why}");
    assert!(seen.volumes.iter().all(|one| one.kept_because.is_some()));
}

#[test]
fn volumes_that_share_bytes_and_doubtful_tables_keep_everything() {
    let header = swap_header(4096, b"SWAPSPACE2");
    // Two partitions over each other: the table itself is not believed.
    let partitions = [(0x82, 2048, 32_768), (0x83, 20_000, 40_000)];
    let seen = plan(mbr(64 * MIB, &partitions, &[(MIB, &header)]));
    assert_eq!(seen.omissions, None);
    assert!(seen.kept_because.unwrap().contains("overlap"));
    // One that reaches behind the end.
    let seen = plan(mbr(12 * MIB, &[(0x82, 2048, 32_768)], &[(MIB, &header)]));
    assert_eq!(seen.omissions, None);
    assert!(seen.kept_because.is_some());
}

#[test]
fn a_disk_that_cannot_be_read_is_kept_whole_and_says_so() {
    let mut disk = SparseDisk::filled(2 * LEAF, 0..256, 1);
    disk.bad.insert(0);
    let seen = plan(Arc::new(disk));
    assert_eq!(seen.omissions, None);
    assert!(seen.kept_because.unwrap().contains("block 0"));
}

#[test]
fn a_source_that_is_no_longer_the_same_makes_no_version_and_the_next_run_is_right() {
    let world = World::new();
    let disk = SparseDisk::filled(LENGTH, 0..60, 3);
    let mut refused = request("vm");
    refused.left_out = omissions(10..50);
    refused.commit_check = Some(Arc::new(|| {
        Err(engine::Error::new(ErrorKind::Refused, "it changed"))
    }));
    let error = world.back_up_with(&refused, &disk).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(world.point_count(), 0);
    // By now what was left out is in use; what the refused run stored does not speak of it.
    world.back_up("vm", &disk);
    same_bytes(&world.read("vm"), &disk.bytes());
}
