//! Volumes that were in use: a log is written that leads from one state of a volume to another, both made by ntfs-3g; what is read
//! after the replay is held against that state, and against what `ntfsrecover` makes of the same volume.

mod difference;
pub mod image;
mod writer;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guestfs::ErrorKind;
use guestfs::filesystem::Cleanliness;

use self::difference::{Difference, Operation};
use self::image::{DATA, Image};
use self::writer::{End, Form, Plan, Story, Tables, Version};
use super::damage::Dice;
use super::{Told, assert_equal, made, open, seen, told};
use crate::conformance;
use crate::images::{self, MemoryVolume};

const BEFORE: &str = r#"python3 - <<'END'
import os
os.chdir("mount")
os.mkdir("few"); os.mkdir("many"); os.mkdir("gone")
for n in range(4): open(f"few/small {n}", "w").write(f"small {n}\n" * n)
for n in range(150): open(f"many/a file with a long name {n}", "w").write("x" * n * 7)
for n in range(3): open(f"gone/file {n}", "w").write("to be deleted")
open("big", "wb").write(bytes(range(256)) * 400)
open("long", "wb").write(b"long" * 50000)
END"#;

const CHANGES: &str = r#"
open("few/new", "w").write("new in a small folder\n")
open("few/small 2", "a").write("and more of it\n")
open("many/a file between", "w").write("new in a large folder\n")
os.rename("many/a file with a long name 20", "few/moved")
os.rename("many/a file with a long name 30", "many/a file with another name")
open("big", "ab").write(b"grown" * 50000)
os.truncate("long", 5000)
os.utime("many/a file with a long name 40", (1_000_000_000, 1_100_000_000))
os.setxattr("few/small 3", "user.stream", b"an alternate stream")
os.link("big", "few/a second link")
os.mkdir("brand new")
for n in range(80): open(f"brand new/file number {n} of many", "w").write(f"contents {n}" * n)
"#;

const REMOVALS: &str = r#"
os.remove("few/small 1")
os.remove("many/a file with a long name 17")
shutil.rmtree("gone")
"#;

/// Whether files are removed before others are made, which then take their records, or afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removals {
    First,
    Last,
}

fn after(removals: Removals) -> String {
    let parts = match removals {
        Removals::First => [REMOVALS, CHANGES],
        Removals::Last => [CHANGES, REMOVALS],
    };
    format!(
        "python3 - <<'END'\nimport os, shutil\nos.chdir(\"mount\")\n{}\nEND",
        parts.concat()
    )
}

/// A volume before and after, as images and as trees.
struct Volumes {
    before: Image,
    after: Image,
    tree_before: Told,
    tree_after: Told,
}

fn tree(bytes: &[u8]) -> (Cleanliness, Told) {
    let fs = open(Arc::new(MemoryVolume(bytes.to_vec())));
    let tree = conformance::check(&*fs);
    (fs.facts().cleanliness.clone(), seen(&tree))
}

/// `None` when this machine cannot make them.
fn volumes(folder: &Path, options: &str, removals: Removals) -> Option<Volumes> {
    let path = made::make(folder, "32M", options, BEFORE)?;
    let before = Image::new(std::fs::read(&path).expect("the image"));
    let text = format!(
        "{}\n{}\n{}\n",
        made::mount("xattr"),
        after(removals),
        made::unmount()
    );
    images::script(folder, &text).unwrap_or_else(|error| panic!("{error}"));
    let after = Image::new(std::fs::read(&path).expect("the image"));
    let (clean, tree_before) = tree(&before.bytes);
    assert_eq!(clean, Cleanliness::Clean);
    let (_, tree_after) = tree(&after.bytes);
    assert_ne!(tree_before, tree_after);
    Some(Volumes {
        before,
        after,
        tree_before,
        tree_after,
    })
}

fn log_bytes(image: &Image) -> usize {
    let stream = image.stream(2, DATA, "").expect("the log");
    stream.size_bytes / writer::PAGE * writer::PAGE
}

/// A volume that crashed, with its log.
fn crashed(image: &Image, after: &Image, plan: Plan, operations: &[Operation]) -> Vec<u8> {
    let log = Story::new(plan, after, log_bytes(after), operations).tell(operations);
    with_log(image, &log)
}

fn with_log(image: &Image, log: &[u8]) -> Vec<u8> {
    let mut image = image.clone();
    let stream = image.stream(2, DATA, "").expect("the log");
    image.write(&stream, 0, log);
    image.bytes
}

fn assert_replayed(bytes: &[u8], wanted: &Told) {
    let (cleanliness, told) = tree(bytes);
    assert_eq!(cleanliness, Cleanliness::Replayed);
    assert_equal(&told, wanted);
}

/// What `ntfsrecover` makes of it, as our reader and as ntfs-3g see it.
fn assert_recovered(folder: &Path, bytes: &[u8], version: Version, wanted: &Told) {
    if !images::has_commands(&["ntfsrecover"]) {
        return;
    }
    std::fs::write(folder.join("image"), bytes).expect("the crashed volume");
    let option = match version {
        Version::One => "",
        Version::Two => "--kill-fast-restart --sync",
    };
    let text = format!(
        "ntfsrecover {option} image >recover.log 2>&1 || {{ tail -50 recover.log >&2; exit 1; }}\n\
         {}\npython3 fill.py tell mount told\n{}\n",
        made::mount("xattr"),
        made::unmount()
    );
    images::script(folder, &text).unwrap_or_else(|error| panic!("{error}"));
    let recovered = std::fs::read(folder.join("image")).expect("the recovered volume");
    let (cleanliness, tree) = tree(&recovered);
    assert_eq!(cleanliness, Cleanliness::Clean);
    assert_equal(&tree, wanted);
    assert_equal(wanted, &told(&folder.join("told")));
}

fn check_versions(options: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(volumes) = volumes(folder.path(), options, Removals::First) else {
        return;
    };
    let Difference {
        operations,
        crashed: image,
    } = difference::between(&volumes.before, &volumes.after);
    let mut kinds: Vec<u16> = operations.iter().map(|operation| operation.redo).collect();
    kinds.sort_unstable();
    kinds.dedup();
    println!("{} operations of kinds {kinds:?}", operations.len());
    assert!(kinds.len() >= 13, "{kinds:?}");
    for (version, form, tables) in [
        (Version::One, Form::New, Tables::Opened),
        (Version::One, Form::Old, Tables::Dumped),
        (Version::Two, Form::New, Tables::Dumped),
    ] {
        let plan = Plan {
            version,
            form,
            tables,
            ..Plan::default()
        };
        println!("{plan:?}");
        let bytes = crashed(&image, &volumes.after, plan, &operations);
        assert_replayed(&bytes, &volumes.tree_after);
        // It does not find the beginning of some logs of such volumes ("could not wraparound"), which do not wrap.
        if options != "-c 512" {
            assert_recovered(folder.path(), &bytes, version, &volumes.tree_after);
        }
    }
}

#[test]
fn what_was_logged_and_not_written_is_read_as_after_a_mount() {
    check_versions("-c 4096");
}

#[test]
fn logs_of_volumes_with_clusters_of_512_bytes_are_replayed() {
    check_versions("-c 512");
}

#[test]
fn logs_of_volumes_with_clusters_of_64_kib_are_replayed() {
    check_versions("-c 65536");
}

/// The log of a volume that Windows had open.
#[test]
fn a_volume_that_windows_left_in_use_is_read_as_ntfsrecover_leaves_it() {
    let Some(corpora) = images::corpora() else {
        return;
    };
    if !images::has_commands(&["python3", "ntfsrecover"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "python3 -m zipfile -e '{}' .\ncp */partition.dd crashed\ncp crashed recovered\nntfsrecover recovered >&2",
        corpora.join("ntfs/SampleTinyNtfsVolume.zip").display()
    );
    images::script(folder.path(), &text).unwrap_or_else(|error| panic!("{error}"));
    let read = |name| std::fs::read(folder.path().join(name)).expect("the volume");
    let (cleanliness, recovered) = tree(&read("recovered"));
    assert_eq!(cleanliness, Cleanliness::Clean);
    assert!(recovered.len() > 10, "{recovered:?}");
    assert_replayed(&read("crashed"), &recovered);
}

/// One pair of volumes for the tests below, with the operations between them.
struct Case {
    volumes: Volumes,
    operations: Vec<Operation>,
    crashed: Image,
}

fn case(folder: &Path) -> Option<Case> {
    let volumes = volumes(folder, "-c 4096", Removals::Last)?;
    let Difference {
        operations,
        crashed,
    } = difference::between(&volumes.before, &volumes.after);
    Some(Case {
        volumes,
        operations,
        crashed,
    })
}

impl Case {
    fn log(&self, plan: Plan) -> Vec<u8> {
        let size = log_bytes(&self.volumes.after);
        Story::new(plan, &self.volumes.after, size, &self.operations).tell(&self.operations)
    }

    fn crash(&self, plan: Plan) -> Vec<u8> {
        with_log(&self.crashed, &self.log(plan))
    }
}

#[test]
fn what_an_unfinished_transaction_did_is_taken_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(case) = case(folder.path()) else {
        return;
    };
    for tables in [Tables::Opened, Tables::Dumped] {
        let plan = Plan {
            tables,
            end: End::Open,
            ..Plan::default()
        };
        let bytes = case.crash(plan);
        assert_replayed(&bytes, &case.volumes.tree_before);
        // It knows no tables of transactions.
        if tables == Tables::Opened {
            let wanted = &case.volumes.tree_before;
            assert_recovered(folder.path(), &bytes, Version::One, wanted);
        }
    }
    // Everything was written home before the crash, and must be taken back there.
    let plan = Plan {
        tables: Tables::Dumped,
        end: End::OpenAndFlushed,
        ..Plan::default()
    };
    let mut flushed = case.volumes.after.clone();
    for number in 24..flushed.count() {
        // ntfs-3g empties the records of deleted files, Windows only gives them up.
        let (Some(mut record), Some(now)) =
            (case.volumes.before.record(number), flushed.record(number))
        else {
            continue;
        };
        if image::is_in_use(&record) && !image::is_in_use(&now) {
            record[22] &= !1;
            record[16] += 1;
            flushed.put_record(number, record);
        }
    }
    let bytes = with_log(&flushed, &case.log(plan));
    assert_replayed(&bytes, &case.volumes.tree_before);
}

/// The second half of what was changed came to the volume, with the LSN of its newest change.
#[test]
fn what_was_written_already_is_not_done_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(case) = case(folder.path()) else {
        return;
    };
    let log = case.log(Plan::default());
    let mut image = case.crashed.clone();
    let table = case.volumes.after.table();
    let bitmap = case.volumes.after.stream(0, DATA, "").expect("the table");
    assert_eq!(table.clusters, bitmap.clusters);
    let mut flushed = 0;
    for number in (24..case.volumes.after.count()).filter(|number| number % 2 == 0) {
        let Some(mut record) = case.volumes.after.record(number) else {
            continue;
        };
        // Newer than all changes, as of the last record of the log.
        let newest = image::long(&log, 0x30);
        record[8..16].copy_from_slice(&newest.to_le_bytes());
        if !image::is_in_use(&record) {
            continue;
        }
        image::protect(&mut record);
        image.write(&table, number * image.record_bytes, &record);
        flushed += 1;
    }
    assert!(flushed > 50, "{flushed}");
    assert_replayed(&with_log(&image, &log), &case.volumes.tree_after);
}

#[test]
fn a_log_that_went_round_is_followed_over_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(case) = case(folder.path()) else {
        return;
    };
    let pages = log_bytes(&case.volumes.after) / writer::PAGE;
    for version in [Version::One, Version::Two] {
        for back in 1..8 {
            let plan = Plan {
                version,
                first_page: pages - back,
                ..Plan::default()
            };
            let bytes = case.crash(plan);
            assert_replayed(&bytes, &case.volumes.tree_after);
            if version == Version::One && back == 3 {
                assert_recovered(folder.path(), &bytes, version, &case.volumes.tree_after);
            }
        }
    }
}

#[test]
fn unfinished_pages_are_found_beside_the_ring() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(case) = case(folder.path()) else {
        return;
    };
    for (version, only_copies) in [
        (Version::One, 0),
        (Version::One, 1),
        (Version::Two, 0),
        (Version::Two, 3),
        (Version::Two, 9),
    ] {
        let plan = Plan {
            version,
            only_copies,
            ..Plan::default()
        };
        assert_replayed(&case.crash(plan), &case.volumes.tree_after);
    }
}

#[test]
fn one_restart_page_is_enough() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(case) = case(folder.path()) else {
        return;
    };
    let log = case.log(Plan::default());
    for page in 0..2 {
        let mut log = log.clone();
        log[page * writer::PAGE + 510] ^= 0xFF;
        assert_replayed(&with_log(&case.crashed, &log), &case.volumes.tree_after);
    }
}

/// Offsets of pages with records, in the order of the log.
fn record_pages(log: &[u8]) -> Vec<usize> {
    (4 * writer::PAGE..log.len())
        .step_by(writer::PAGE)
        .filter(|at| log[*at..].starts_with(b"RCRD"))
        .collect()
}

/// Reads a volume whose log cannot be replayed: as it stands, and said to be so.
fn assert_as_it_stands(bytes: &[u8], wanted: &Told, word: &str) {
    let fs = open(Arc::new(MemoryVolume(bytes.to_vec())));
    let Cleanliness::Dirty(reason) = &fs.facts().cleanliness else {
        panic!("{:?}, not dirty for {word}", fs.facts().cleanliness);
    };
    assert!(reason.contains(word), "{word}: {reason}");
    let error = fs
        .used_ranges(&mut |_| ControlFlow::Continue(()))
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let tree = conformance::check(&*fs);
    assert_equal(&seen(&tree), wanted);
}

#[test]
fn a_log_that_is_damaged_or_not_understood_leaves_everything_as_it_stands() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(mut case) = case(folder.path()) else {
        return;
    };
    // What is not logged has nothing to do with the log: the earlier state as a whole.
    case.crashed = case.volumes.before.clone();
    let log = case.log(Plan::default());
    let pages = record_pages(&log);
    let mut torn = log.clone();
    torn[pages[pages.len() / 2] + 1022] ^= 0xFF;
    let mut lost = log.clone();
    lost[pages[2]..pages[2] + writer::PAGE].fill(0xFF);
    let mut newer = log.clone();
    for page in 0..2 {
        newer[page * writer::PAGE + 28] = 3;
    }
    let both = {
        let mut log = log.clone();
        log[510] ^= 1;
        log[writer::PAGE + 510] ^= 1;
        log
    };
    for (log, word) in [
        (torn, "LSN"),
        (lost, "LSN"),
        (newer, "version 3.1"),
        (both, "not written with the others"),
    ] {
        let bytes = with_log(&case.crashed, &log);
        assert_as_it_stands(&bytes, &case.volumes.tree_before, word);
    }
    for (redo, word) in [(35, "Unknown(35)"), (99, "Unknown(99)")] {
        let mut operations = case.operations.clone();
        operations[20].redo = redo;
        let bytes = crashed(
            &case.crashed,
            &case.volumes.after,
            Plan::default(),
            &operations,
        );
        assert_as_it_stands(&bytes, &case.volumes.tree_before, word);
    }
}

#[test]
fn used_ranges_after_a_replay_hold_all_that_windows_will_need() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(case) = case(folder.path()) else {
        return;
    };
    let bytes = case.crash(Plan::default());
    let volume = Arc::new(MemoryVolume(bytes));
    let fs = open(volume.clone());
    let tree = conformance::check(&*fs);
    // Everything else is garbage: the log is replayed over that, too.
    conformance::check_unused(volume.clone(), &tree, &open);
    let mut used = Vec::new();
    fs.used_ranges(&mut |range| {
        used.push(range);
        ControlFlow::Continue(())
    })
    .expect("ranges");
    let holds = |place: usize| {
        let place = place as u64;
        used.iter()
            .any(|range| (range.offset..range.offset + range.length_bytes).contains(&place))
    };
    for image in [&case.volumes.before, &case.volumes.after] {
        let bitmap = image.stream(6, DATA, "").expect("the bitmap");
        let bits = image.read(&bitmap, 0..bitmap.size_bytes.next_multiple_of(512));
        for cluster in 0..image.bytes.len() / image.cluster_bytes {
            if bits[cluster / 8] >> (cluster % 8) & 1 == 1 {
                assert!(holds(cluster * image.cluster_bytes), "cluster {cluster}");
            }
        }
    }
    let total: u64 = used.iter().map(|range| range.length_bytes).sum();
    assert!(total < volume.0.len() as u64 / 2, "{total} bytes are used");
}

/// The flag asks for chkdsk: the bitmap may be wrong, whatever the log says.
#[test]
fn a_volume_marked_dirty_is_replayed_and_still_tells_no_used_ranges() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(case) = case(folder.path()) else {
        return;
    };
    let log = case.log(Plan::default());
    let mut marked = case.crashed.clone();
    let mut record = marked.record(3).expect("$Volume");
    let at = image::attributes(&record)
        .into_iter()
        .find(|(_, attribute)| image::word(attribute, 0) == 0x70)
        .map(|(at, attribute)| at + image::value(attribute).start)
        .expect("volume information");
    record[at + 10] |= 1;
    marked.put_record(3, record);
    assert_as_it_stands(
        &with_log(&marked, &log),
        &case.volumes.tree_after,
        "marked dirty",
    );
}

/// Damages pages of a log so that their marks fit again: what is written into them is believed.
fn hurt(log: &mut [u8], dice: &mut Dice) -> String {
    let pages: Vec<usize> = (0..log.len())
        .step_by(writer::PAGE)
        .filter(|at| log[*at..].starts_with(b"RCRD") || log[*at..].starts_with(b"RSTR"))
        .collect();
    let mut said = String::new();
    for _ in 0..=dice.below(5) {
        // Restart pages, tables and heads of pages are worth more than the rest.
        let at = pages[dice.below(pages.len()).min(dice.below(pages.len() * 2))];
        let page = &mut log[at..at + writer::PAGE];
        image::unprotect(page);
        let reach = [80, 600, writer::PAGE - 16][dice.below(3)];
        let place = 8 + dice.below(reach);
        let length = [1, 2, 4, 8][dice.below(4)];
        let part = &mut page[place..place + length];
        match dice.below(5) {
            0 => part[0] ^= 1 << dice.below(8),
            1 => part.fill(0),
            2 => part.fill(0xFF),
            3 => part.fill_with(|| dice.next().to_le_bytes()[0]),
            _ => part[0] = part[0].wrapping_add(8),
        }
        // What made the marks unreadable is left: the page counts as torn then.
        if page[4..8] == *b"\x28\0\x09\0" || page[4..8] == *b"\x1E\0\x09\0" {
            image::protect(page);
        }
        said.push_str(&format!("{length} bytes at {place} of the page at {at}; "));
    }
    said
}

#[test]
fn a_hostile_log_is_refused_or_replayed_soon_and_without_a_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(case) = case(folder.path()) else {
        return;
    };
    let logs: Vec<Vec<u8>> = [Tables::Opened, Tables::Dumped]
        .into_iter()
        .flat_map(|tables| {
            [End::Forgotten, End::Open].map(|end| Plan {
                tables,
                end,
                ..Plan::default()
            })
        })
        .map(|plan| case.log(plan))
        .collect();
    let end = Instant::now() + Duration::from_secs(8);
    let (mut rounds, mut dirty) = (0, 0);
    for seed in 0..4000 {
        if Instant::now() > end {
            break;
        }
        let mut dice = Dice(seed);
        let mut log = logs[dice.below(logs.len())].clone();
        let said = hurt(&mut log, &mut dice);
        let bytes = with_log(&case.crashed, &log);
        let start = Instant::now();
        if let Ok(fs) = guestfs::ntfs::open(Arc::new(MemoryVolume(bytes))) {
            let fs: &dyn guestfs::FileSystem = &fs;
            dirty += usize::from(matches!(fs.facts().cleanliness, Cleanliness::Dirty(_)));
            // Whatever comes is an answer.
            let _ = fs.used_ranges(&mut |_| ControlFlow::Continue(()));
            let _ = fs.list(fs.root(), Default::default(), &mut |_| {
                ControlFlow::Continue(())
            });
        }
        let taken = start.elapsed();
        assert!(
            taken < Duration::from_secs(20),
            "seed {seed}: {taken:?} after {said}"
        );
        rounds += 1;
    }
    println!("{rounds} damaged logs, {dirty} refused");
    assert!(rounds > 20 && dirty > 5, "{rounds} rounds, {dirty} refused");
}
