//! Restores: into every kind of image, in place, interrupted.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::ReadAt;
use engine::job::JobContext;
use engine::job::restore_disk::{
    Proof, RestoreMode, RestoreReport, RestoreRequest, plan_restore_disk, restore_disk,
};
use engine::profile::profile_of;
use engine::{Cancellation, ErrorKind, Progress};
use store::faulty::{FaultyStore, Moment};
use vdisk::vhdx::IdSource;
use vdisk::{Format, Image, OpenOptions, Subformat};

use crate::support::{
    BLOCK, LEAF, SparseDisk, World, context, gone, request, same_bytes, selector,
};

fn wish(version: &str, target: &Path) -> RestoreRequest {
    let mut wish = RestoreRequest::new(selector(version), target, IdSource::seeded(5));
    wish.proof = Proof::ReadBack;
    wish
}

fn restore(world: &World, wish: &RestoreRequest) -> engine::Result<RestoreReport> {
    restore_disk(&world.repository, wish, context())
}

fn image_bytes(path: &Path, format: Format) -> Vec<u8> {
    let options = OpenOptions {
        format: vdisk::image::FormatHint::Exactly(format),
        ..OpenOptions::default()
    };
    let image = Image::open(path, &options).unwrap();
    let mut bytes = vec![0; usize::try_from(image.size_bytes()).unwrap()];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

fn world(disk: &SparseDisk) -> World {
    let world = World::new();
    world.back_up("vm", disk);
    world
}

#[test]
fn a_version_comes_back_in_every_format_that_can_be_made() {
    let disk = SparseDisk::filled(3 * LEAF + 64 * 512, (0..100).chain(380..384), 1);
    let world = world(&disk);
    let folder = tempfile::tempdir().unwrap();
    for (name, format, subformat) in [
        ("a.raw", Format::Raw, Subformat::Fixed),
        ("a.vhdx", Format::Vhdx, Subformat::Dynamic),
        ("b.vhdx", Format::Vhdx, Subformat::Fixed),
        ("a.vhd", Format::Vhd, Subformat::Dynamic),
        ("b.vhd", Format::Vhd, Subformat::Fixed),
    ] {
        let target = folder.path().join(name);
        let mut wish = wish("vm", &target);
        (wish.format, wish.subformat) = (Some(format), Some(subformat));
        let report = restore(&world, &wish).unwrap();
        assert!(report.is_proved && !report.resumed, "{name}");
        assert_eq!(report.written_bytes, 104 * BLOCK as u64, "{name}");
        same_bytes(&image_bytes(&target, format), &disk.bytes());
    }
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert_eq!(
        left.len(),
        5,
        "no partial file and no note is left: {left:?}"
    );
}

#[test]
fn an_image_comes_back_in_the_shape_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SparseDisk::filled(3 * LEAF, 0..100, 1);
    let world = world(&disk);
    let first = folder.path().join("source.vhdx");
    let mut made = wish("vm", &first);
    made.format = Some(Format::Vhdx);
    restore(&world, &made).unwrap();
    let image = Image::open(&first, &OpenOptions::default()).unwrap();
    let mut again = request("image");
    again.image = profile_of(&image.info());
    let report = world.back_up_with(&again, &image).unwrap();
    assert_eq!(
        report.stored_blocks, 0,
        "the same disk, seen through an image"
    );
    let second = folder.path().join("back.vhdx");
    restore(&world, &wish("image", &second)).unwrap();
    let back = Image::open(&second, &OpenOptions::default())
        .unwrap()
        .info();
    assert_eq!(back, image.info());
}

#[test]
fn a_target_that_is_there_is_replaced_only_when_told_so() {
    let disk = SparseDisk::filled(LEAF, 0..10, 1);
    let world = world(&disk);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.raw");
    std::fs::write(&target, b"precious").unwrap();
    let mut wish = wish("vm", &target);
    assert_eq!(
        restore(&world, &wish).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    wish.mode = RestoreMode::Replace;
    let plan = plan_restore_disk(&world.repository, &wish).unwrap();
    assert!(plan.to_string().starts_with("replace "), "{plan}");
    restore(&world, &wish).unwrap();
    same_bytes(&std::fs::read(&target).unwrap(), &disk.bytes());
    let missing = restore(&world, &self::wish("nobody", &folder.path().join("x"))).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn in_place_only_what_differs_is_written() {
    let disk = SparseDisk::filled(5 * LEAF, 0..600, 1);
    let world = world(&disk);
    let folder = tempfile::tempdir().unwrap();
    for (name, format) in [
        ("disk.raw", Format::Raw),
        ("disk.vhdx", Format::Vhdx),
        ("disk.vhd", Format::Vhd),
    ] {
        let mut damaged = disk.clone();
        damaged.fill(7, 70);
        damaged.fill(300, 71);
        damaged.fill(630, 72);
        damaged.blocks.remove(&500);
        world.back_up("damaged", &damaged);
        let target = folder.path().join(name);
        let mut make = wish("damaged", &target);
        make.format = Some(format);
        restore(&world, &make).unwrap();
        let mut wish = wish("vm", &target);
        (wish.mode, wish.format) = (RestoreMode::InPlace, Some(format));
        let report = restore(&world, &wish).unwrap();
        assert!(report.is_proved, "{name}");
        let block = BLOCK as u64;
        assert_eq!(
            (report.written_bytes, report.zeroed_bytes),
            (3 * block, block),
            "{name}"
        );
        same_bytes(&image_bytes(&target, format), &disk.bytes());
        assert_eq!(
            restore(&world, &wish).unwrap().written_bytes,
            0,
            "{name}: nothing differs any more"
        );
    }
}

#[test]
fn in_place_a_disk_of_another_size_is_refused() {
    let world = world(&SparseDisk::filled(LEAF, 0..10, 1));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.raw");
    std::fs::write(&target, vec![1; 4096]).unwrap();
    let mut wish = wish("vm", &target);
    wish.mode = RestoreMode::InPlace;
    assert_eq!(
        restore(&world, &wish).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(std::fs::read(&target).unwrap(), vec![1; 4096]);
}

struct StopAt(u64, AtomicU64, Cancellation);

impl Progress for StopAt {
    fn begin(&self, _step: &str, _total: Option<u64>) {}
    fn advance(&self, bytes: u64) {
        if self.1.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.0 {
            self.2.cancel();
        }
    }
    fn warn(&self, _text: &str) {}
    fn end(&self) {}
}

#[test]
fn an_interrupted_restore_leaves_nothing_under_the_name_and_goes_on() {
    // A leaf with data every gigabyte, a flush after every eight of them.
    let blocks = (0..20u64).map(|at| at * 16_000 + 1);
    let disk = SparseDisk::filled(20 << 30, blocks, 1);
    let world = world(&disk);
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::Raw, Format::Vhdx] {
        let target = folder.path().join("disk");
        let mut wish = wish("vm", &target);
        wish.format = Some(format);
        wish.leaves_per_flush = 8;
        let cancel = Cancellation::default();
        let progress = StopAt(9 << 30, AtomicU64::new(0), cancel.clone());
        let stopping = JobContext {
            progress: &progress,
            cancel: &cancel,
            ..context()
        };
        let error = restore_disk(&world.repository, &wish, stopping).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(!target.exists());
        if format == Format::Raw {
            // What lies behind the last flush is anybody's guess.
            let partial = vdisk::image::partial_path(&target);
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(&partial)
                .unwrap();
            for offset in [(8 << 30) + 5, (15 << 30) + 4096, (20 << 30) - 9] {
                file.write_all_at(b"garbage!", offset).unwrap();
            }
        }
        let report = restore(&world, &wish).unwrap();
        assert!(report.resumed && report.is_proved, "{format:?}");
        assert!(
            report.written_bytes <= 12 * BLOCK as u64,
            "{} bytes were left",
            report.written_bytes
        );
        // Another version does not go on with this one's remains.
        std::fs::remove_file(&target).unwrap();
        let again = restore(&world, &wish).unwrap();
        assert!(!again.resumed);
        std::fs::remove_file(&target).unwrap();
    }
}

#[test]
fn a_restore_does_not_go_on_with_somebody_elses_remains() {
    let disk = SparseDisk::filled(4 * LEAF, 0..500, 1);
    let world = world(&disk);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.raw");
    let mut wish = wish("vm", &target);
    (wish.format, wish.proof) = (Some(Format::Raw), Proof::BeforeWriting);
    wish.leaves_per_flush = 1;
    let cancel = Cancellation::default();
    let progress = StopAt(3 * LEAF, AtomicU64::new(0), cancel.clone());
    let stopping = JobContext {
        progress: &progress,
        cancel: &cancel,
        ..context()
    };
    restore_disk(&world.repository, &wish, stopping).unwrap_err();
    // A conversion to the same name replaced the partial image and was interrupted too.
    let partial = vdisk::image::partial_path(&target);
    std::fs::remove_file(&partial).unwrap();
    std::fs::write(&partial, vec![7; 4 * LEAF as usize]).unwrap();
    let report = restore(&world, &wish).unwrap();
    assert!(!report.resumed);
    same_bytes(&std::fs::read(&target).unwrap(), &disk.bytes());
}

#[test]
fn as_many_workers_as_wished_give_the_same_bytes() {
    let disk = SparseDisk::filled(24 * LEAF, 0..3000, 1);
    let world = World::new();
    let mut wide = request("vm");
    wide.workers = Some(16);
    world.back_up_with(&wide, &disk).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.raw");
    let mut wish = wish("vm", &target);
    (wish.format, wish.workers) = (Some(Format::Raw), Some(16));
    assert!(restore(&world, &wish).unwrap().is_proved);
    same_bytes(&std::fs::read(&target).unwrap(), &disk.bytes());
}

#[test]
fn a_damaged_repository_never_gives_wrong_bytes() {
    let disk = SparseDisk::filled(2 * LEAF, 0..200, 1);
    let world = world(&disk);
    let calls = world.store.take_calls();
    let pack = calls
        .iter()
        .find(|call| call.verb == store::Verb::PutNew && call.name.starts_with("data/"))
        .unwrap();
    let name = store::ObjectName::new(&pack.name).unwrap();
    let flip = |body: &mut Vec<u8>| body[5_000_000] ^= 1;
    world.store.inner().damage(&name, flip).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.raw");
    let error = restore(&world, &wish("vm", &target)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert!(!target.exists());
}

#[test]
fn a_restore_whose_store_dies_at_any_call_leaves_nothing_under_the_name_and_is_repeated() {
    let disk = SparseDisk::filled(3 * LEAF, 0..300, 1);
    let world = world(&disk);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.vhdx");
    let mut wish = wish("vm", &target);
    wish.format = Some(Format::Vhdx);
    // A restore makes some dozens of calls; every third is enough for each kind of them.
    for number in (1..).step_by(3) {
        let memory = world.store.inner().clone();
        let faulty = Arc::new(FaultyStore::crashing_at(memory, number, Moment::Before));
        let store: Arc<dyn store::Store> = faulty.clone();
        let died = world
            .open(store, &gone())
            .map_err(engine::Error::from)
            .and_then(|repository| restore_disk(&repository, &wish, context()));
        if died.is_ok() {
            // What fails behind the last block (giving back the lease) does not fail the restore.
            same_bytes(&image_bytes(&target, Format::Vhdx), &disk.bytes());
            if !faulty.has_crashed() {
                break;
            }
            std::fs::remove_file(&target).unwrap();
            continue;
        }
        assert!(!target.exists(), "call {number}");
        restore(&world, &wish).unwrap();
        same_bytes(&image_bytes(&target, Format::Vhdx), &disk.bytes());
        std::fs::remove_file(&target).unwrap();
    }
}

#[test]
fn an_in_place_restore_that_was_stopped_is_simply_run_again() {
    let disk = SparseDisk::filled(6 * LEAF, 0..700, 1);
    let world = world(&disk);
    let other = SparseDisk::filled(6 * LEAF, 0..700, 2);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.raw");
    std::fs::write(&target, other.bytes()).unwrap();
    let mut wish = wish("vm", &target);
    (wish.mode, wish.format) = (RestoreMode::InPlace, Some(Format::Raw));
    let cancel = Cancellation::default();
    let progress = StopAt(3 * LEAF, AtomicU64::new(0), cancel.clone());
    let stopping = JobContext {
        progress: &progress,
        cancel: &cancel,
        ..context()
    };
    let error = restore_disk(&world.repository, &wish, stopping).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(restore(&world, &wish).unwrap().is_proved);
    same_bytes(&std::fs::read(&target).unwrap(), &disk.bytes());
}

/// Tries a second restore into the same target while the first is under way.
struct Meddler<'a> {
    world: &'a World,
    wish: RestoreRequest,
    seen: std::sync::Mutex<Option<ErrorKind>>,
}

impl Progress for Meddler<'_> {
    fn begin(&self, _step: &str, _total: Option<u64>) {
        let mut seen = self.seen.lock().unwrap();
        if seen.is_none() {
            *seen = Some(restore(self.world, &self.wish).unwrap_err().kind());
        }
    }
    fn advance(&self, _bytes: u64) {}
    fn warn(&self, _text: &str) {}
    fn end(&self) {}
}

#[test]
fn two_restores_into_one_target_at_a_time_are_refused() {
    let disk = SparseDisk::filled(2 * LEAF, 0..200, 1);
    let world = world(&disk);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.raw");
    for mode in [RestoreMode::New, RestoreMode::Replace, RestoreMode::InPlace] {
        let mut wish = wish("vm", &target);
        (wish.mode, wish.format) = (mode, Some(Format::Raw));
        let meddler = Meddler {
            world: &world,
            wish: wish.clone(),
            seen: None.into(),
        };
        let watched = JobContext {
            progress: &meddler,
            ..context()
        };
        assert!(
            restore_disk(&world.repository, &wish, watched)
                .unwrap()
                .is_proved
        );
        assert_eq!(
            meddler.seen.into_inner().unwrap(),
            Some(ErrorKind::Busy),
            "{mode:?}"
        );
        same_bytes(&std::fs::read(&target).unwrap(), &disk.bytes());
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "only the image is left"
    );
}
