//! Rounds of backups over a guest that keeps writing: what the bytes of a checkpoint say, and what changed between two.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::ChangedRanges;
use host::boundary::{Checkpoints, DiskReads, Power, StopMode};
use host::checkpoint::{Changes, Checkpoint, CheckpointRequest, ConfigurationFileKind, Settled};
use host::consistency::{Consistency, ConsistencyPolicy};
use host::custody::{Custody, CustodyLog, MemoryLog};
use host::facts::PowerState;
use host::ids::{JobId, OwnerId, TrackingToken};
use host::{CancelToken, ErrorKind};

use super::guest::QemuGuest;
use super::image::{GuestImage, tool};
use super::place::{Place, Started};
use super::steps::Steps;
use super::suite::{assert_clean, boot, progress, vm, wait_for};

/// What a bitmap counts by.
const GRAIN: usize = 64 << 10;
/// What is read at once.
const PIECE: usize = 1 << 20;

fn owner() -> OwnerId {
    OwnerId::new("rounds").expect("an owner")
}

fn custody(log: &Arc<MemoryLog>, job: u8) -> Custody {
    let log: Arc<dyn CustodyLog> = Arc::clone(log) as Arc<dyn CustodyLog>;
    Custody::new(log, owner(), JobId::from_bytes([job; 16]))
}

fn make(guest: &QemuGuest, custody: &Custody, level: Consistency) -> Checkpoint {
    let mut request = CheckpointRequest::new(vm());
    request.policy = ConsistencyPolicy::only(level);
    let begin = Instant::now();
    let made = guest
        .create(&request, custody, &CancelToken::new())
        .expect("a checkpoint");
    println!("{level}: {:?} in {:?}", made.still, begin.elapsed());
    made
}

/// Whole disks, through the trait.
fn read(guest: &QemuGuest, made: &Checkpoint) -> Vec<Vec<u8>> {
    let begin = Instant::now();
    let disks = made.disks.iter().map(|disk| {
        let opened = guest
            .open_disk(&made.reference, disk, &CancelToken::new())
            .expect("a frozen disk");
        assert_eq!(Some(opened.size_bytes()), disk.size_bytes);
        let mut bytes = vec![0; usize::try_from(opened.size_bytes()).expect("a small disk")];
        let mut reads: Vec<_> = bytes
            .chunks_mut(PIECE)
            .enumerate()
            .map(|(number, buffer)| host::boundary::RangeRead {
                offset: (number * PIECE) as u64,
                buffer,
            })
            .collect();
        opened.read_batch(&mut reads).expect("bytes");
        bytes
    });
    let disks = disks.collect();
    println!("read: {:?}", begin.elapsed());
    disks
}

/// The last number in a file of a disk, asked of e2fsprogs.
fn last_number(image: &Path, file: &str) -> u64 {
    let request = format!("cat {file}");
    let said = tool(
        "debugfs",
        ["-R".as_ref(), request.as_ref(), image.as_os_str()],
    );
    let last = said.lines().last().expect("a line");
    last.trim().parse().expect("a number")
}

/// File systems without a fault, and numbers that were there at one moment; that of the second disk.
fn examine(folder: &Path, disks: &[Vec<u8>]) -> u64 {
    let mut numbers = Vec::new();
    for (number, (bytes, file)) in disks.iter().zip(["/data/seq", "/seq"]).enumerate() {
        let image = folder.join(format!("examined{number}.raw"));
        fs::write(&image, bytes).expect("a file");
        tool("e2fsck", ["-fn".as_ref(), image.as_os_str()]);
        numbers.push(last_number(&image, file));
    }
    let [first, second] = numbers.as_slice() else {
        panic!("{} disks", numbers.len());
    };
    // One of two disks that were frozen a moment apart would be ahead.
    assert!(
        first == second || *first == second + 1,
        "disk0 is at {first}, disk1 at {second}"
    );
    *second
}

fn changes(guest: &QemuGuest, made: &Checkpoint, settled: &Settled) -> Vec<Changes> {
    let disks = made.disks.iter().map(|disk| {
        let token: &TrackingToken = settled
            .tokens
            .iter()
            .find_map(|(device, token)| (*device == disk.device).then_some(token))
            .expect("a token");
        guest
            .changed_ranges(&made.reference, disk, token, &CancelToken::new())
            .expect("changes")
    });
    disks.collect()
}

fn known(changes: Vec<Changes>) -> Vec<ChangedRanges> {
    let known = changes.into_iter().map(|changes| match changes {
        Changes::Known(ranges) => ranges,
        Changes::Lost { reason } => panic!("changes are lost: {reason}"),
    });
    known.collect()
}

/// Everything that differs is told, and little else.
fn assert_covers(changes: &[ChangedRanges], old: &[Vec<u8>], new: &[Vec<u8>]) {
    for ((ranges, old), new) in changes.iter().zip(old).zip(new) {
        let mut told = vec![false; old.len().div_ceil(GRAIN)];
        for range in ranges.iter() {
            let first = usize::try_from(range.offset).expect("small") / GRAIN;
            let behind = usize::try_from(range.end()).expect("small").div_ceil(GRAIN);
            told[first..behind].fill(true);
        }
        let differs: Vec<bool> = old
            .chunks(GRAIN)
            .zip(new.chunks(GRAIN))
            .map(|(old, new)| old != new)
            .collect();
        let missing = differs
            .iter()
            .zip(&told)
            .position(|(is, told)| *is && !told);
        assert_eq!(missing, None, "a grain differs and is not told");
        let count = |grains: &[bool]| grains.iter().filter(|it| **it).count();
        let (told, differs) = (count(&told), count(&differs));
        println!(
            "{told} of {} grains told, {differs} differ",
            old.len() / GRAIN
        );
        assert!(differs > 0, "the guest wrote, and nothing differs");
        // A block that is written again as it was is told and does not differ.
        assert!(told <= differs + 4, "{told} told where {differs} differ");
    }
}

fn settle(guest: &QemuGuest, made: &Checkpoint, custody: &Custody) -> Settled {
    let begin = Instant::now();
    let settled = guest
        .settle(made, custody, &CancelToken::new())
        .expect("a point");
    println!("settled: {:?}", begin.elapsed());
    assert_eq!(settled.tokens.len(), made.disks.len());
    let again = guest.open(&made.reference, &CancelToken::new());
    assert_eq!(again.map_err(|it| it.kind()), Err(ErrorKind::NotFound));
    settled
}

fn drop_point(guest: &QemuGuest, settled: &Settled, custody: &Custody) {
    let point = settled.point.as_ref().expect("a point");
    guest
        .drop_tracking(point, custody, &CancelToken::new())
        .expect("the point goes");
}

#[test]
fn a_guest_that_keeps_writing_is_read_as_of_one_moment_and_then_by_what_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some((_started, guest)) = boot(folder.path()) else {
        return;
    };
    let log = Arc::new(MemoryLog::default());
    let calm = CancelToken::new();

    let before = progress(&guest).expect("a number");
    let first_job = custody(&log, 1);
    let first = make(&guest, &first_job, Consistency::FileSystem);
    let after = wait_for(&guest, before + 3);
    let old = read(&guest, &first);
    let at = examine(folder.path(), &old);
    assert!((before..=after).contains(&at), "{before} {at} {after}");
    wait_for(&guest, after + 3);
    assert!(read(&guest, &first) == old, "a frozen disk changed");
    let first = settle(&guest, &first, &first_job);

    wait_for(&guest, after + 8);
    let second_job = custody(&log, 2);
    let second = make(&guest, &second_job, Consistency::FileSystem);
    // What is written from here on belongs to the next round, and is not to be told.
    wait_for(&guest, after + 12);
    let new = read(&guest, &second);
    let begin = Instant::now();
    let told = known(changes(&guest, &second, &first));
    println!("changes: {:?}", begin.elapsed());
    assert_covers(&told, &old, &new);
    assert!(examine(folder.path(), &new) > at);
    let second = settle(&guest, &second, &second_job);
    drop_point(&guest, &first, &second_job);

    // A machine that was saved and started in another process goes on, and so do its points.
    guest.stop(vm(), StopMode::Save, &calm).expect("saved");
    let state = guest.power_state(vm(), &calm).expect("a state");
    assert_eq!(state, PowerState::Saved);
    let begin = Instant::now();
    guest.start(vm(), &calm).expect("started");
    let number = progress(&guest).expect("a number");
    println!("runs again: {:?}", begin.elapsed());
    wait_for(&guest, number + 2);
    let third_job = custody(&log, 3);
    let third = make(&guest, &third_job, Consistency::Crash);
    let newest = read(&guest, &third);
    let told = known(changes(&guest, &third, &second));
    assert_covers(&told, &new, &newest);
    guest
        .release(&third.reference, &third_job, &calm)
        .expect("released");
    drop_point(&guest, &second, &third_job);
    assert!(log.open_entries().expect("entries").is_empty());
    assert_clean(&guest, "after three rounds");
}

#[test]
fn a_saved_checkpoint_goes_on_elsewhere_and_a_power_cut_costs_tracking_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some((_started, guest)) = boot(folder.path()) else {
        return;
    };
    let log = Arc::new(MemoryLog::default());
    let calm = CancelToken::new();
    let job = custody(&log, 1);

    let crash = make(&guest, &job, Consistency::Crash);
    let settled = settle(&guest, &crash, &job);

    let before = wait_for(&guest, progress(&guest).expect("a number") + 2);
    let saved = make(&guest, &job, Consistency::SavedState);
    let after = wait_for(&guest, before + 4);
    known(changes(&guest, &saved, &settled));
    let other = tempfile::tempdir().expect("a folder");
    let (_other, copy) = bring_up(&guest, &saved, other.path());
    let number = progress(&copy).expect("a number");
    assert!((before..=after).contains(&number), "{number} of {after}");
    wait_for(&copy, number + 3);
    copy.stop(vm(), StopMode::Shutdown, &calm)
        .expect("shut down");
    let state = copy.power_state(vm(), &calm).expect("a state");
    assert_eq!(state, PowerState::Off);
    guest
        .release(&saved.reference, &job, &calm)
        .expect("released");

    // The bitmap has been in the image since it was saved or never; after the cut it is not believed.
    let held = make(&guest, &job, Consistency::FileSystem);
    guest.place.kill();
    let gone = guest.open(&held.reference, &calm);
    assert_eq!(gone.map_err(|it| it.kind()), Err(ErrorKind::NotFound));
    guest.start(vm(), &calm).expect("boots");
    wait_for(&guest, after);
    let released = guest.release(&held.reference, &job, &calm);
    println!(
        "what a power cut left: {:?}",
        released.expect("released").was
    );
    let next = make(&guest, &job, Consistency::Crash);
    for changes in changes(&guest, &next, &settled) {
        assert!(matches!(changes, Changes::Lost { .. }), "{changes:?}");
    }
    guest
        .release(&next.reference, &job, &calm)
        .expect("released");
    drop_point(&guest, &settled, &job);
    assert!(log.open_entries().expect("entries").is_empty());
    assert_clean(&guest, "after a power cut");
}

/// Makes a machine of a saved checkpoint, from what the traits give alone, and lets it go on.
fn bring_up(guest: &QemuGuest, saved: &Checkpoint, folder: &Path) -> (Started, QemuGuest) {
    let calm = CancelToken::new();
    let files: BTreeMap<_, _> = saved
        .configuration
        .iter()
        .map(|file| (format!("{:?}", file.kind), file))
        .collect();
    let kind = |kind: ConfigurationFileKind| files[&format!("{kind:?}")];
    let definition = guest
        .read_configuration(
            &saved.reference,
            kind(ConfigurationFileKind::Configuration),
            &calm,
        )
        .expect("a definition");
    let machine: super::place::MachineFile =
        serde_json::from_slice(&definition).expect("a definition");
    let mut disks = Vec::new();
    for (number, bytes) in read(guest, saved).iter().enumerate() {
        let raw = folder.join(format!("disk{number}.raw"));
        let image = folder.join(format!("disk{number}.qcow2"));
        fs::write(&raw, bytes).expect("a disk");
        let convert = ["convert", "-O", "qcow2"].map(AsRef::as_ref);
        tool(
            "qemu-img",
            convert
                .into_iter()
                .chain([raw.as_os_str(), image.as_os_str()]),
        );
        disks.push(image);
    }
    let place = Place::create(
        folder,
        machine.id,
        GuestImage {
            kernel: machine.kernel,
            initrd: machine.initrd,
            disks,
        },
    );
    let memory = guest
        .open_configuration(
            &saved.reference,
            kind(ConfigurationFileKind::RuntimeState),
            &calm,
        )
        .expect("memory");
    let mut bytes = vec![0; usize::try_from(memory.size_bytes()).expect("small")];
    memory.read_at(0, &mut bytes).expect("memory");
    println!("memory: {} MiB", bytes.len() >> 20);
    fs::write(place.saved_state(), bytes).expect("memory");
    let started = Started(place.clone());
    let copy = QemuGuest::new(place, Steps::default());
    let begin = Instant::now();
    copy.start(vm(), &calm).expect("goes on");
    wait_for(&copy, 1);
    println!("goes on elsewhere: {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(60));
    (started, copy)
}
