//! Writing in place, merging, checking and repairing through the one door for all formats.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, like tests"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{ReadAt, WriteAt};
use vdisk::convert::{NoProgress, Progress};
use vdisk::file::{FileAccess, HostFile};
use vdisk::image::{self, ChainMode, FormatHint, ImageEditor, OpenOptions};
use vdisk::merge::{MergeStart, merge};
use vdisk::vhdx::{self, IdSource, ParentLocator, RELATIVE_PATH, VhdxReader};
use vdisk::{DiskId, ErrorKind, Image, RepairMode, Severity, vhd};

const SIZE: u64 = (5 << 20) + 8192;

fn ids() -> IdSource {
    IdSource::seeded(11)
}

fn disk_id(n: u128) -> DiskId {
    DiskId(uuid::Uuid::from_u128(n))
}

fn open(path: &Path) -> Image {
    Image::open(path, &OpenOptions::default())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn edit(path: &Path) -> ImageEditor {
    ImageEditor::open(path, &OpenOptions::default(), ids())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn all_bytes(disk: &dyn ReadAt) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.size_bytes()).unwrap()];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

fn new_file(path: &Path) -> HostFile {
    HostFile::create_new(path).unwrap()
}

/// Makes an empty image at `path`, on the parent given.
type Make = fn(path: &Path, parent: Option<&Path>, number: u128);

fn make_vhd(path: &Path, parent: Option<&Path>, number: u128) {
    let allocation = match parent {
        None => vhd::Allocation::Dynamic,
        Some(parent) => vhd::Allocation::Differencing(vhd::ParentLink {
            id: open(parent).info().disk_id.unwrap(),
            time: vhd::VhdTime(0),
            relative_path: Some(format!(
                ".\\{}",
                parent.file_name().unwrap().to_string_lossy()
            )),
            absolute_path: None,
        }),
    };
    let options = vhd::CreateOptions {
        size_bytes: SIZE,
        allocation,
        block_bytes: 65536,
        unique_id: disk_id(number),
        time: vhd::VhdTime(0),
    };
    vhd::create(&new_file(path), &options).unwrap();
}

fn make_vhdx(path: &Path, parent: Option<&Path>, number: u128) {
    let mut options = vhdx::CreateOptions::new(
        SIZE,
        disk_id(1),
        IdSource::seeded(u64::try_from(number).unwrap()),
    );
    options.block_bytes = Some(1 << 20);
    if let Some(parent) = parent {
        let file = Arc::new(HostFile::open(parent, FileAccess::ReadOnly).unwrap());
        let linkage = VhdxReader::open(file, None).unwrap().data_write_id();
        let name = format!(".\\{}", parent.file_name().unwrap().to_string_lossy());
        let locator = ParentLocator::new(linkage).with(RELATIVE_PATH, name);
        options.allocation = vhdx::Allocation::Differencing(locator);
    }
    let file: Arc<dyn WriteAt> = Arc::new(new_file(path));
    vhdx::create(&file, &options).unwrap();
}

fn make_qcow2(path: &Path, parent: Option<&Path>, _: u128) {
    let mut command = Command::new("qemu-img");
    command
        .current_dir(path.parent().unwrap())
        .args(["create", "-q", "-f", "qcow2"]);
    if let Some(parent) = parent {
        command
            .arg("-b")
            .arg(parent.file_name().unwrap())
            .args(["-F", "qcow2"]);
    }
    let output = command
        .arg(path.file_name().unwrap())
        .arg(SIZE.to_string())
        .output()
        .expect("qemu-img");
    assert!(output.status.success(), "{output:?}");
}

const FORMATS: [(&str, Make); 3] = [
    ("vhd", make_vhd),
    ("vhdx", make_vhdx),
    ("qcow2", make_qcow2),
];

/// Writes and zeroes here and there, in the image and in the model.
fn scribble(disk: &dyn WriteAt, model: &mut [u8], seed: u64) {
    let mut state = seed;
    let mut next = |bound: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 20) % bound
    };
    for round in 0..40 {
        let at = next(SIZE);
        let length = (1 + next(if round % 4 == 0 { 900_000 } else { 3000 })).min(SIZE - at);
        let range = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
        if next(3) == 0 {
            disk.zero_range(at, length).unwrap();
            model[range].fill(0);
        } else {
            let value = u8::try_from(1 + next(255)).unwrap();
            disk.write_at(at, &vec![value; range.len()]).unwrap();
            model[range].fill(value);
        }
    }
}

/// A chain of three with something in each; returns the paths, root first, and what each reads as.
fn make_chain(
    directory: &Path,
    extension: &str,
    make: Make,
    seed: u64,
) -> (Vec<PathBuf>, Vec<Vec<u8>>) {
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut models = Vec::new();
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    for number in 0..3_u8 {
        let path = directory.join(format!("{number}.{extension}"));
        make(
            &path,
            paths.last().map(PathBuf::as_path),
            u128::from(number) + 1,
        );
        let editor = edit(&path);
        assert!(
            all_bytes(&editor) == model,
            "{extension} {number} begins as its parent"
        );
        scribble(&editor, &mut model, seed + u64::from(number));
        assert!(
            all_bytes(&editor) == model,
            "{extension} {number} while open"
        );
        editor.finish().unwrap();
        assert!(
            all_bytes(&open(&path)) == model,
            "{extension} {number} after closing"
        );
        paths.push(path);
        models.push(model.clone());
    }
    (paths, models)
}

#[test]
fn chains_are_written_in_place_in_every_format() {
    for (extension, make) in FORMATS {
        let directory = tempfile::tempdir().unwrap();
        let (paths, models) = make_chain(directory.path(), extension, make, 3);
        // Writing to a leaf left its parents alone.
        for (path, model) in paths.iter().zip(&models) {
            assert!(all_bytes(&open(path)) == *model, "{}", path.display());
            assert!(
                image::check(path, &OpenOptions::default())
                    .unwrap()
                    .is_clean()
            );
        }
        assert_eq!(open(&paths[2]).chain().len(), 3);
        let error = edit(&paths[2]).write_at(SIZE - 1, &[1, 2]).unwrap_err();
        assert_eq!(error.kind(), block::ErrorKind::OutOfRange);
    }
}

#[test]
fn a_merged_parent_reads_as_the_child_did() {
    for seed in [100, 200] {
        for (extension, make) in FORMATS {
            let directory = tempfile::tempdir().unwrap();
            let (paths, models) = make_chain(directory.path(), extension, make, seed);
            let options = OpenOptions::default();
            // The middle one, which has a parent itself.
            let stats = merge(
                &paths[2],
                &paths[1],
                MergeStart::Begin,
                &options,
                ids(),
                &NoProgress,
            )
            .unwrap();
            assert!(stats.written_bytes > 0, "{extension}");
            assert!(
                all_bytes(&open(&paths[1])) == models[2],
                "{extension} seed {seed}"
            );
            assert!(
                all_bytes(&open(&paths[0])) == models[0],
                "{extension} seed {seed}"
            );
            merge(
                &paths[1],
                &paths[0],
                MergeStart::Begin,
                &options,
                ids(),
                &NoProgress,
            )
            .unwrap();
            assert!(
                all_bytes(&open(&paths[0])) == models[2],
                "{extension} seed {seed}"
            );
            assert!(
                image::check(&paths[0], &options).unwrap().is_clean(),
                "{extension} seed {seed}"
            );
        }
    }
}

/// Stops at once, and remembers how far all was durable.
#[derive(Default)]
struct Impatient {
    durable: AtomicU64,
}

impl Progress for Impatient {
    fn advance(&self, done_bytes: u64, _: u64) {
        self.durable.store(done_bytes, Ordering::Relaxed);
    }
    fn is_cancelled(&self) -> bool {
        true
    }
}

#[test]
fn an_interrupted_merge_goes_on_from_where_it_was() {
    for (extension, make) in FORMATS {
        let directory = tempfile::tempdir().unwrap();
        let (paths, models) = make_chain(directory.path(), extension, make, 50);
        let options = OpenOptions::default();
        let mut start = MergeStart::Begin;
        let mut rounds = 0;
        loop {
            let impatient = Impatient::default();
            // Ids that no image has yet, as in life.
            let ids = IdSource::seeded(500 + rounds);
            match merge(&paths[2], &paths[1], start, &options, ids, &impatient) {
                Err(error) if error.kind() == ErrorKind::Cancelled => {
                    let offset = impatient.durable.load(Ordering::Relaxed);
                    // While it runs, child over parent reads as ever (where the child is allowed to know its parent).
                    if extension != "vhdx" {
                        assert!(
                            all_bytes(&open(&paths[2])) == models[2],
                            "{extension} at {offset}"
                        );
                    }
                    start = MergeStart::Resume { offset };
                }
                outcome => {
                    outcome.unwrap();
                    break;
                }
            }
            rounds += 1;
            assert!(rounds < 500, "{extension} gets nowhere");
        }
        assert!(rounds > 3, "{extension} was not interrupted");
        assert!(all_bytes(&open(&paths[1])) == models[2], "{extension}");
        // The parent that the child was made on is no more, for a format that knows.
        let begin = MergeStart::Begin;
        let again = merge(&paths[2], &paths[1], begin, &options, ids(), &NoProgress);
        match (extension, again) {
            ("vhdx", again) => assert_eq!(again.unwrap_err().kind(), ErrorKind::ParentMismatch),
            (_, again) => drop(again.unwrap()),
        }
        // And again from the beginning: nothing changes.
        merge(
            &paths[2],
            &paths[1],
            MergeStart::Resume { offset: 0 },
            &options,
            ids(),
            &NoProgress,
        )
        .unwrap();
        assert!(all_bytes(&open(&paths[1])) == models[2], "{extension}");
    }
}

#[test]
fn a_merge_into_a_stranger_is_refused() {
    for (extension, make) in &FORMATS[..2] {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(format!("{name}.{extension}"));
        make(&at("parent"), None, 1);
        make(&at("stranger"), None, 2);
        make(&at("child"), Some(&at("parent")), 3);
        let options = OpenOptions::default();
        let error = merge(
            &at("child"),
            &at("stranger"),
            MergeStart::Begin,
            &options,
            ids(),
            &NoProgress,
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentMismatch, "{extension}");
        let error = merge(
            &at("parent"),
            &at("stranger"),
            MergeStart::Begin,
            &options,
            ids(),
            &NoProgress,
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{extension}");
    }
}

#[test]
fn raw_images_are_written_in_place_and_never_grow() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    new_file(&path).set_size(SIZE).unwrap();
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    let editor = edit(&path);
    scribble(&editor, &mut model, 9);
    assert_eq!(
        editor.write_at(SIZE - 1, &[1, 2]).unwrap_err().kind(),
        block::ErrorKind::OutOfRange
    );
    assert_eq!(
        editor.zero_range(SIZE, 1).unwrap_err().kind(),
        block::ErrorKind::OutOfRange
    );
    editor.finish().unwrap();
    assert!(all_bytes(&open(&path)) == model);
}

/// One damage of each format that a repair can undo without losing a byte.
#[test]
fn damage_that_costs_nothing_is_found_and_repaired_in_every_format() {
    for (extension, make) in FORMATS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(format!("disk.{extension}"));
        make(&path, None, 1);
        let mut model = vec![0; usize::try_from(SIZE).unwrap()];
        let editor = edit(&path);
        scribble(&editor, &mut model, 77);
        editor.finish().unwrap();
        let file = HostFile::open(&path, FileAccess::ReadWrite).unwrap();
        let place = match extension {
            "vhd" => 64,
            "vhdx" => 192 << 10,
            // The first refcount block, where qemu-img puts it: clusters that are in use look free.
            _ => (2 << 16) + 2,
        };
        file.write_at(place, &[0, 0, 0, 0]).unwrap();
        drop(file);
        let before = image::check(&path, &OpenOptions::default()).unwrap();
        assert_eq!(
            before.worst,
            Some(Severity::Repairable),
            "{extension}: {before:?}"
        );
        let report = image::repair(&path, FormatHint::Probe, RepairMode::Lossless, &ids()).unwrap();
        assert_eq!(report.before, before, "{extension}");
        assert!(report.after.is_clean(), "{extension}: {:?}", report.after);
        assert!(all_bytes(&open(&path)) == model, "{extension}");
    }
}

#[test]
fn a_leaf_alone_can_be_opened_but_not_read_through() {
    for (extension, make) in FORMATS {
        let directory = tempfile::tempdir().unwrap();
        let (paths, _) = make_chain(directory.path(), extension, make, 1);
        std::fs::remove_file(&paths[1]).unwrap();
        let alone = OpenOptions {
            chain: ChainMode::LeafOnly,
            ..OpenOptions::default()
        };
        let leaf = Image::open(&paths[2], &alone).unwrap();
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        assert!(leaf.read_at(0, &mut bytes).is_err(), "{extension}");
        let error = Image::open(&paths[2], &OpenOptions::default())
            .err()
            .expect("no parent");
        assert_eq!(error.kind(), ErrorKind::ParentNotFound, "{extension}");
    }
}
