//! Backups that die at any call on the store, or are told to stop: nothing half is visible, the rest is sent later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::job::JobContext;
use engine::job::backup_disk::{BackupRequest, backup_disk};
use engine::{Cancellation, CheckpointEvery, ErrorKind, Progress};
use store::Store;
use store::faulty::{FaultyStore, Moment};

use crate::support::{
    LEAF, SparseDisk, World, context, environment, gone, read_version, request, same_bytes,
    tracking,
};

fn careful(name: &str) -> BackupRequest {
    let mut request = request(name);
    request.checkpoint_every = CheckpointEvery {
        stored_bytes: 2 << 20,
        elapsed_ms: u64::MAX,
    };
    request
}

fn disk() -> SparseDisk {
    SparseDisk::filled(
        4 * LEAF,
        (0..40).chain(130..170).chain(260..300).chain(400..440),
        3,
    )
}

#[test]
fn a_backup_that_dies_at_any_call_is_completed_by_the_next_one() {
    let disk = disk();
    let mut resumed = 0;
    let mut committed = 0;
    for number in 1.. {
        let moment = if number % 2 == 0 {
            Moment::Before
        } else {
            Moment::After
        };
        let world = World::new();
        let memory = world.store.inner().clone();
        let faulty = Arc::new(FaultyStore::crashing_at(memory.clone(), number, moment));
        let store: Arc<dyn Store> = faulty.clone();
        let died = world
            .open(store, &gone())
            .map_err(engine::Error::from)
            .and_then(|repository| backup_disk(&repository, &careful("vm"), &disk, context()));
        let before: u64 = memory.used_bytes();
        if !faulty.has_crashed() {
            died.unwrap();
            break;
        }
        let store: Arc<dyn Store> = memory.clone();
        let repository = world.open(store, &environment()).unwrap();
        let (points, damaged) = repository.points().unwrap();
        assert!(damaged.is_empty(), "call {number}: {damaged:?}");
        for record in &points {
            // The answer was lost, the commit was not.
            same_bytes(
                &read_version(&repository, &format!("vm@{}", record.point.sequence)),
                &disk.bytes(),
            );
            committed += 1;
        }
        let report = backup_disk(&repository, &careful("vm"), &disk, context()).unwrap();
        same_bytes(&read_version(&repository, "vm"), &disk.bytes());
        resumed += u64::from(report.resumed);
        if report.resumed {
            assert!(
                report.changed_blocks < 160,
                "call {number}: only the rest differs"
            );
        }
        if before > (8 << 20) {
            assert!(
                report.stored_blocks < 160,
                "call {number}: only the rest is stored"
            );
        }
    }
    assert!(resumed > 3, "some runs got as far as a checkpoint");
    assert!(committed > 0, "some runs died behind the commit");
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

fn stopped_after(world: &World, bytes: u64, request: &BackupRequest, disk: &SparseDisk) {
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
    let error = backup_disk(&repository, request, disk, context).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn a_backup_told_to_stop_goes_on_where_it_stopped() {
    let world = World::new();
    let disk = SparseDisk::filled(40 * LEAF, 0..5120, 3);
    stopped_after(&world, 12 * LEAF, &careful("vm"), &disk);
    assert_eq!(world.point_count(), 0);
    let report = world.back_up_with(&careful("vm"), &disk).unwrap();
    assert!(report.resumed);
    assert!(
        report.changed_blocks <= 28 * 128,
        "{} of 5120 blocks were left",
        report.changed_blocks
    );
    same_bytes(&world.read("vm"), &disk.bytes());
}

#[test]
fn resuming_with_tracking_sees_what_changed_back_meanwhile() {
    let world = World::new();
    let first = SparseDisk::filled(40 * LEAF, 0..5120, 3);
    world.back_up("vm", &first);
    let mut second = first.clone();
    (0..2000).for_each(|block| second.fill(block, 50_000 + block));
    let mut tracked = careful("vm");
    tracked.tracking = Some(tracking(0..2000, 0));
    stopped_after(&world, 8 * LEAF, &tracked, &second);
    // The next checkpoint: the first half went back to what the parent has, the tracker knows of nothing else.
    let mut third = first.clone();
    third.fill(4000, 1);
    tracked.tracking = Some(tracking([4000], 0));
    let report = world.back_up_with(&tracked, &third).unwrap();
    assert!(report.resumed && !report.fell_back);
    same_bytes(&world.read("vm"), &third.bytes());
}
