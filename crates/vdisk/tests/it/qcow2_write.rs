//! Writing qcow2: built images and images written in place against a plain vector, and against QEMU's own check.

use std::path::Path;
use std::sync::Arc;

use block::{ReadAt, WriteAt};
use proptest::prelude::*;
use vdisk::file::{FileAccess, HostFile};
use vdisk::memory::{CrashFile, Loss, MemoryFile};
use vdisk::qcow2::{
    self, BackingName, Compression, Qcow2Builder, Qcow2Options, Qcow2Reader, Qcow2Writer,
};
use vdisk::{ErrorKind, RepairMode, Severity};

use crate::qcow2_tool::{
    Numbers, assert_reads_as, check_clean, contents, has_qemu, open, qemu_img, qemu_io, raw_of, run,
};

fn create_file(path: &Path) -> Arc<HostFile> {
    Arc::new(HostFile::create_new(path).expect("create"))
}

fn open_writable(path: &Path) -> Arc<HostFile> {
    Arc::new(HostFile::open(path, FileAccess::ReadWrite).expect("open"))
}

/// No finding at all, not even a leak.
#[track_caller]
fn assert_spotless(file: &dyn ReadAt, what: &str) {
    let report = qcow2::check(file).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
}

/// Writes a disk in pieces of odd sizes, from several threads, in no order.
fn write_all(target: &(impl WriteAt + ?Sized), disk: &[u8], threads: usize) {
    const STEP: usize = 200_000;
    let pieces: Vec<usize> = (0..disk.len().div_ceil(STEP)).collect();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let pieces = &pieces;
            scope.spawn(move || {
                for piece in pieces
                    .iter()
                    .rev()
                    .filter(|piece| *piece % threads == thread)
                {
                    let at = piece * STEP;
                    let end = (at + STEP).min(disk.len());
                    target.write_at(at as u64, &disk[at..end]).expect("write");
                }
            });
        }
    });
}

#[test]
fn qemu_finds_no_error_and_the_same_bytes_in_what_is_built() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let disk = contents(71, (7 << 20) + 512 * 3);
    let mut options: Vec<Qcow2Options> = (9..=21)
        .map(|bits| Qcow2Options {
            cluster_bytes: 1 << bits,
            ..Qcow2Options::new(disk.len() as u64)
        })
        .collect();
    for cluster_bytes in [512, 4096, 65536, 2 << 20] {
        for compression in [Compression::Zlib, Compression::Zstd] {
            let compression = Some(compression);
            let size = disk.len() as u64;
            options.push(Qcow2Options {
                cluster_bytes,
                compression,
                ..Qcow2Options::new(size)
            });
        }
    }
    for (number, options) in options.iter().enumerate() {
        let name = format!("image{number}.qcow2");
        let file = create_file(&at.join(&name));
        let builder = Qcow2Builder::create(file, options, None).expect("create");
        write_all(&builder, &disk, 3);
        let what = format!("{options:?}");
        assert_reads_as(&builder, &disk, &what);
        builder.finish().expect("finish");
        check_clean(at, &name);
        assert_spotless(&open(&at.join(&name)), &what);
        assert!(
            raw_of(at, &name, "qcow2") == disk,
            "{what}: QEMU reads something else"
        );
        let image = Qcow2Reader::open(open(&at.join(&name)), None).expect("open");
        assert_reads_as(&image, &disk, &what);
        std::fs::remove_file(at.join(&name)).expect("remove");
    }
}

#[test]
fn compression_makes_the_file_smaller_and_zeros_take_no_space() {
    let size = 8 << 20;
    let disk: Vec<u8> = (0..size / 2)
        .map(|index| (index / 4096) as u8)
        .chain((0..size / 2).map(|_| 0))
        .collect();
    let mut lengths = Vec::new();
    for compression in [None, Some(Compression::Zlib), Some(Compression::Zstd)] {
        let file = Arc::new(MemoryFile::new());
        let options = Qcow2Options {
            compression,
            ..Qcow2Options::new(size)
        };
        let builder = Qcow2Builder::create(file.clone(), &options, None).expect("create");
        builder.write_at(0, &disk).expect("write");
        builder.finish().expect("finish");
        lengths.push(file.size_bytes());
    }
    assert!(
        lengths[0] < size / 2 + (1 << 20),
        "zeros were stored: {lengths:?}"
    );
    assert!(
        lengths[1] < size / 8 && lengths[2] < size / 8,
        "{lengths:?}"
    );
}

#[test]
fn empty_images_of_any_size_are_accepted_by_qemu() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    for (number, size) in [0u64, 512, 1 << 20, 5 << 40, 64 << 40]
        .into_iter()
        .enumerate()
    {
        let name = format!("empty{number}.qcow2");
        qcow2::create(create_file(&at.join(&name)), &Qcow2Options::new(size)).expect("create");
        check_clean(at, &name);
        let info = qemu_img(at, &format!("info --output=json {name}"));
        assert!(
            info.contains(&format!("\"virtual-size\": {size}")),
            "{info}"
        );
        assert_spotless(&open(&at.join(&name)), &name);
    }
}

#[test]
fn an_overlay_is_built_over_its_parent() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let mut disk = contents(81, 3 << 20);
    std::fs::write(at.join("base.raw"), &disk).expect("write");
    disk.resize(4 << 20, 0);
    let backing = BackingName {
        path: "base.raw".to_owned(),
        format: Some("raw".to_owned()),
    };
    for compression in [None, Some(Compression::Zlib)] {
        let mut disk = disk.clone();
        let options = Qcow2Options {
            backing: Some(backing.clone()),
            compression,
            ..Qcow2Options::new(4 << 20)
        };
        let file = create_file(&at.join("overlay.qcow2"));
        let builder =
            Qcow2Builder::create(file, &options, Some(open(&at.join("base.raw")))).expect("create");
        for (from, length, byte) in [
            (1000usize, 3usize, 7u8),
            (65_536, 131_072, 9),
            (3_100_000, 100_000, 5),
            (70_000, 20, 1),
        ] {
            disk[from..from + length].fill(byte);
            builder
                .write_at(from as u64, &vec![byte; length])
                .expect("write");
        }
        for (from, length) in [
            (200_000usize, 500_000usize),
            (1 << 20, 65_536),
            (2_000_000, 5),
        ] {
            disk[from..from + length].fill(0);
            builder
                .zero_range(from as u64, length as u64)
                .expect("zero");
        }
        assert_reads_as(&builder, &disk, "before finish");
        builder.finish().expect("finish");
        check_clean(at, "overlay.qcow2");
        assert!(raw_of(at, "overlay.qcow2", "qcow2") == disk);
        let info = qemu_img(at, "info --output=json overlay.qcow2");
        assert!(
            info.contains("\"backing-filename-format\": \"raw\""),
            "{info}"
        );
        std::fs::remove_file(at.join("overlay.qcow2")).expect("remove");
    }
}

#[test]
fn a_build_that_was_interrupted_is_no_image_and_goes_on_where_it_was_flushed() {
    let disk = contents(91, 2 << 20);
    let file = Arc::new(MemoryFile::new());
    let options = Qcow2Options {
        cluster_bytes: 4096,
        ..Qcow2Options::new(disk.len() as u64)
    };
    let builder = Qcow2Builder::create(file.clone(), &options, None).expect("create");
    builder.write_at(0, &disk[..1 << 20]).expect("write");
    builder.flush().expect("flush");
    builder
        .write_at(1 << 20, &disk[1 << 20..(1 << 20) + 70_000])
        .expect("write");
    drop(builder);

    let error = Qcow2Reader::open(file.clone(), None)
        .err()
        .expect("unfinished");
    assert_eq!(error.kind(), ErrorKind::Incomplete);
    let builder = Qcow2Builder::resume(file.clone(), None, None).expect("resume");
    let mut half = vec![0; 1 << 20];
    builder.read_at(0, &mut half).expect("read");
    assert!(half == disk[..1 << 20]);
    builder.write_at(1 << 20, &disk[1 << 20..]).expect("write");
    builder.finish().expect("finish");
    assert_spotless(&*file, "resumed");
    assert_reads_as(
        &Qcow2Reader::open(file.clone(), None).expect("open"),
        &disk,
        "resumed",
    );
    let error = Qcow2Builder::resume(file, None, None)
        .err()
        .expect("finished");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn qemu_refuses_an_unfinished_build_by_name() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let file = create_file(&directory.path().join("x.qcow2"));
    let builder = Qcow2Builder::create(file, &Qcow2Options::new(1 << 20), None).expect("create");
    builder.flush().expect("flush");
    let output = std::process::Command::new("qemu-img")
        .args(["info", "x.qcow2"])
        .current_dir(directory.path())
        .output()
        .expect("qemu-img");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("unfinished build"), "{text}");
}

#[test]
fn options_that_contradict_the_format_are_refused() {
    let attempt = |options: &Qcow2Options| {
        Qcow2Builder::create(Arc::new(MemoryFile::new()), options, None)
            .err()
            .map(|error| error.kind())
    };
    let good = Qcow2Options::new(1 << 20);
    assert_eq!(attempt(&good), None);
    for cluster_bytes in [0, 256, 1000, 4 << 20] {
        assert_eq!(
            attempt(&Qcow2Options {
                cluster_bytes,
                ..good.clone()
            }),
            Some(ErrorKind::Invalid)
        );
    }
    assert_eq!(attempt(&Qcow2Options::new(513)), Some(ErrorKind::Invalid));
    let huge = Qcow2Options {
        cluster_bytes: 512,
        ..Qcow2Options::new(1 << 40)
    };
    assert_eq!(attempt(&huge), Some(ErrorKind::Invalid));
    let long = BackingName {
        path: "x".repeat(1024),
        format: None,
    };
    assert_eq!(
        attempt(&Qcow2Options {
            backing: Some(long),
            ..good.clone()
        }),
        Some(ErrorKind::Invalid)
    );
    let used = Arc::new(MemoryFile::with_size(1));
    let error = Qcow2Builder::create(used, &good, None).err().expect("used");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Write { at: usize, length: usize, byte: u8 },
    Zero { at: usize, length: usize },
    Flush,
    Read { at: usize, length: usize },
}

fn steps(size: usize) -> impl Strategy<Value = Vec<Step>> {
    let range = (
        0..size,
        prop_oneof![1..600usize, 1..9000usize, 1..70_000usize],
    )
        .prop_map(move |(at, length)| (at, length.min(size - at)));
    let step = prop_oneof![
        5 => (range.clone(), any::<u8>()).prop_map(|((at, length), byte)| Step::Write { at, length, byte }),
        2 => range.clone().prop_map(|(at, length)| Step::Zero { at, length }),
        1 => Just(Step::Flush),
        2 => range.prop_map(|(at, length)| Step::Read { at, length }),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Plays a history on a target and on a vector, comparing every read.
fn play(target: &dyn WriteAt, model: &mut [u8], steps: &[Step]) {
    for step in steps {
        match *step {
            Step::Write { at, length, byte } => {
                // Not constant, so that a misplaced cluster is seen.
                let bytes: Vec<u8> = (0..length)
                    .map(|index| byte.wrapping_add((index / 100) as u8))
                    .collect();
                model[at..at + length].copy_from_slice(&bytes);
                target.write_at(at as u64, &bytes).expect("write");
            }
            Step::Zero { at, length } => {
                model[at..at + length].fill(0);
                target.zero_range(at as u64, length as u64).expect("zero");
            }
            Step::Flush => target.flush().expect("flush"),
            Step::Read { at, length } => {
                let mut got = vec![0xa5; length];
                target.read_at(at as u64, &mut got).expect("read");
                assert!(got == model[at..at + length], "read of {length} at {at}");
            }
        }
    }
}

const MODEL_SIZE: usize = 512 * 600;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_builder_behaves_as_a_vector(
        history in steps(MODEL_SIZE),
        cluster_log in 9u32..=16,
        compression in prop_oneof![Just(None), Just(Some(Compression::Zlib)), Just(Some(Compression::Zstd))],
        has_parent in any::<bool>(),
    ) {
        let parent = contents(101, MODEL_SIZE / 2);
        let backing = has_parent.then(|| BackingName { path: "p".to_owned(), format: None });
        let reader = || has_parent.then(|| Arc::new(MemoryFile::from_bytes(&parent)) as Arc<dyn ReadAt>);
        let mut model = vec![0; MODEL_SIZE];
        if has_parent {
            model[..parent.len()].copy_from_slice(&parent);
        }
        let file = Arc::new(MemoryFile::new());
        let options = Qcow2Options {
            size_bytes: MODEL_SIZE as u64,
            cluster_bytes: 1 << cluster_log,
            backing,
            compression,
        };
        let builder = Qcow2Builder::create(file.clone(), &options, reader()).expect("create");
        play(&builder, &mut model, &history);
        builder.finish().expect("finish");
        assert_spotless(&*file, "finished");
        let image = Qcow2Reader::open(file, reader()).expect("open");
        assert_reads_as(&image, &model, "finished");
    }

    #[test]
    fn a_writer_behaves_as_a_vector(
        history in steps(MODEL_SIZE),
        more in steps(MODEL_SIZE),
        cluster_log in 9u32..=16,
        compression in prop_oneof![Just(None), Just(Some(Compression::Zlib))],
        has_parent in any::<bool>(),
    ) {
        let parent = contents(102, MODEL_SIZE / 2);
        let backing = has_parent.then(|| BackingName { path: "p".to_owned(), format: None });
        let reader = || has_parent.then(|| Arc::new(MemoryFile::from_bytes(&parent)) as Arc<dyn ReadAt>);
        let file = Arc::new(MemoryFile::new());
        let options = Qcow2Options {
            size_bytes: MODEL_SIZE as u64,
            cluster_bytes: 1 << cluster_log,
            backing,
            compression,
        };
        let mut model = vec![0; MODEL_SIZE];
        if has_parent {
            model[..parent.len()].copy_from_slice(&parent);
        }
        let builder = Qcow2Builder::create(file.clone(), &options, reader()).expect("create");
        let first = contents(103, MODEL_SIZE / 3);
        model[..first.len()].copy_from_slice(&first);
        builder.write_at(0, &first).expect("write");
        builder.finish().expect("finish");
        for history in [&history, &more] {
            let writer = Qcow2Writer::open(file.clone(), reader()).expect("open");
            play(&writer, &mut model, history);
            writer.finish().expect("finish");
            assert_spotless(&*file, "finished");
            let image = Qcow2Reader::open(file.clone(), reader()).expect("open");
            assert_reads_as(&image, &model, "finished");
        }
    }
}

/// Random writes through a writer, mirrored into a vector.
fn scribble(writer: &dyn WriteAt, model: &mut [u8], numbers: &mut Numbers, count: usize) {
    for _ in 0..count {
        let at = numbers.below(model.len() as u64) as usize;
        let length = (1 + numbers.below(100_000) as usize).min(model.len() - at);
        if numbers.below(4) == 0 {
            model[at..at + length].fill(0);
            writer.zero_range(at as u64, length as u64).expect("zero");
        } else {
            let byte = numbers.next() as u8;
            model[at..at + length].fill(byte);
            writer
                .write_at(at as u64, &vec![byte; length])
                .expect("write");
        }
    }
}

#[test]
fn images_that_qemu_made_are_written_in_place() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let disk = contents(111, 6 << 20);
    std::fs::write(at.join("disk.raw"), &disk).expect("write");
    for (number, option) in [
        "",
        "-o compat=0.10",
        "-o cluster_size=512",
        "-o cluster_size=1024,refcount_bits=64",
        "-o cluster_size=2097152",
        "-o refcount_bits=1",
        "-o refcount_bits=2,cluster_size=4096",
        "-o refcount_bits=8",
        "-c",
        "-c -o cluster_size=512",
        "-c -o compression_type=zstd",
        "-o preallocation=metadata",
        "-o preallocation=full,cluster_size=4096",
        "-o lazy_refcounts=on",
    ]
    .into_iter()
    .enumerate()
    {
        qemu_img(
            at,
            &format!("convert -f raw -O qcow2 {option} disk.raw image.qcow2"),
        );
        qemu_img(at, "resize -q image.qcow2 8M");
        let mut model = disk.clone();
        model.resize(8 << 20, 0);
        let writer = Qcow2Writer::open(open_writable(&at.join("image.qcow2")), None)
            .unwrap_or_else(|error| panic!("{option}: {error}"));
        let mut numbers = Numbers::new(number as u64);
        scribble(&writer, &mut model, &mut numbers, 60);
        writer.flush().expect("flush");
        scribble(&writer, &mut model, &mut numbers, 60);
        assert_reads_as(&writer, &model, option);
        writer.finish().expect("finish");
        check_clean(at, "image.qcow2");
        assert!(
            raw_of(at, "image.qcow2", "qcow2") == model,
            "{option}: QEMU reads something else"
        );
    }
}

#[test]
fn snapshots_keep_their_bytes_while_the_active_state_is_written() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let disk = contents(121, 4 << 20);
    std::fs::write(at.join("disk.raw"), &disk).expect("write");
    for option in ["", "-o cluster_size=4096", "-c", "-o compat=0.10"] {
        qemu_img(
            at,
            &format!("convert -f raw -O qcow2 {option} disk.raw image.qcow2"),
        );
        qemu_img(at, "snapshot -c one image.qcow2");
        qemu_io(at, "image.qcow2", "qcow2", &["write -P 5 1M 100k"]);
        qemu_img(at, "snapshot -c two image.qcow2");
        let mut model = disk.clone();
        model[1 << 20..(1 << 20) + 102_400].fill(5);
        let two = model.clone();
        let writer = Qcow2Writer::open(open_writable(&at.join("image.qcow2")), None).expect("open");
        scribble(&writer, &mut model, &mut Numbers::new(9), 80);
        writer.finish().expect("finish");
        check_clean(at, "image.qcow2");
        assert!(
            raw_of(at, "image.qcow2", "qcow2") == model,
            "{option}: active"
        );
        for (name, expected) in [("one", &disk), ("two", &two)] {
            qemu_img(
                at,
                &format!("convert -f qcow2 -l snapshot.name={name} -O raw image.qcow2 old.raw"),
            );
            assert!(
                &std::fs::read(at.join("old.raw")).expect("raw") == expected,
                "{option}: {name}"
            );
        }
    }
}

#[test]
fn a_full_counter_table_is_replaced() {
    let file = Arc::new(MemoryFile::new());
    let size = 96 << 20;
    let options = Qcow2Options {
        cluster_bytes: 512,
        ..Qcow2Options::new(size)
    };
    qcow2::create(file.clone(), &options).expect("create");
    let writer = Qcow2Writer::open(file.clone(), None).expect("open");
    let disk = contents(131, 40 << 20);
    writer.write_at(1 << 20, &disk).expect("write");
    writer.finish().expect("finish");
    assert_spotless(&*file, "grown");
    let image = Qcow2Reader::open(file, None).expect("open");
    let mut got = vec![0; disk.len()];
    image.read_at(1 << 20, &mut got).expect("read");
    assert!(got == disk);
}

#[test]
fn an_image_with_a_persistent_bitmap_is_written_and_the_bitmap_is_given_up() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    qemu_img(at, "create -q -f qcow2 image.qcow2 4M");
    qemu_img(at, "bitmap --add image.qcow2 b0");
    qemu_io(at, "image.qcow2", "qcow2", &["write -P 1 0 1M"]);
    assert_spotless(&open(&at.join("image.qcow2")), "with a bitmap");
    let writer = Qcow2Writer::open(open_writable(&at.join("image.qcow2")), None).expect("open");
    writer.write_at(2 << 20, &[7; 512]).expect("write");
    writer.finish().expect("finish");
    let report = qcow2::repair(
        &*open_writable(&at.join("image.qcow2")),
        RepairMode::Lossless,
    )
    .expect("repair");
    assert_eq!(
        report.worst,
        Some(Severity::Note),
        "its clusters leak until a repair: {report:?}"
    );
    check_clean(at, "image.qcow2");
}

/// One flushed write of a story: offset, length, byte.
type Told = (usize, usize, u8);

/// Plays a story on a writer whose power is cut at every operation, under every kind of loss.
/// Returns what the whole story leaves.
fn cut_everywhere(image: &MemoryFile, before: &[u8], story: &[Told], step: u64) -> MemoryFile {
    let tell = |file: Arc<CrashFile>, flushed: &mut usize| -> block::Result<()> {
        let writer = Qcow2Writer::open(file, None)?;
        for (at, length, byte) in story {
            writer.write_at(*at as u64, &vec![*byte; *length])?;
            writer.flush()?;
            *flushed += 1;
        }
        Ok(writer.finish()?)
    };
    let whole = Arc::new(CrashFile::new(image, None));
    tell(whole.clone(), &mut 0).expect("uncut");
    let total = whole.operations();
    assert!(total > 30, "{total} operations");
    for cut in (0..total).step_by(step as usize) {
        for loss in [
            Loss::Everything,
            Loss::Nothing,
            Loss::Subset { seed: cut },
            Loss::Torn { seed: cut },
        ] {
            let crash = Arc::new(CrashFile::new(image, Some(cut)));
            let mut flushed = 0;
            let error = tell(crash.clone(), &mut flushed).expect_err("cut");
            assert_eq!(error.kind(), block::ErrorKind::Io, "cut {cut}: {error}");
            let survivor = crash.survivors(loss).expect("survivors");
            let what = format!("cut {cut}, {loss:?}");
            let report = qcow2::check(&survivor).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(report.is_clean(), "{what}: {:?}", report.findings);
            let disk = Qcow2Reader::open(Arc::new(survivor), None).expect("open");
            let mut got = vec![0; before.len()];
            disk.read_at(0, &mut got)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_is_a_prefix(&got, before, story, flushed, &what);
        }
    }
    whole.survivors(Loss::Nothing).expect("the end")
}

#[test]
fn whatever_write_power_is_cut_at_flushed_bytes_stay_and_counters_cover_references() {
    let size = 64 << 10;
    let image = Arc::new(MemoryFile::new());
    let compression = Some(Compression::Zlib);
    let options = Qcow2Options {
        cluster_bytes: 512,
        compression,
        ..Qcow2Options::new(size)
    };
    let builder = Qcow2Builder::create(image.clone(), &options, None).expect("create");
    let mut before = contents(141, 20_000);
    builder.write_at(0, &before).expect("write");
    builder.finish().expect("finish");
    before.resize(size as usize, 0);
    let story = [
        (100, 1000, 1),
        (30_000, 3000, 2),
        (5000, 512, 0),
        (40_960, 4096, 3),
        (0, 20_000, 0),
        (50_000, 700, 4),
    ];
    cut_everywhere(&image, &before, &story, 1);
}

#[test]
fn power_is_cut_while_counter_blocks_and_the_counter_table_grow() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    // 64 counters per block, 64 blocks per table cluster: the table is full at 2 MiB.
    qemu_img(
        at,
        "create -q -f qcow2 -o cluster_size=512,refcount_bits=64 image.qcow2 3M",
    );
    let image = MemoryFile::from_bytes(&std::fs::read(at.join("image.qcow2")).expect("read"));
    let story: Vec<Told> = (0..5)
        .map(|number| (number * 500_000, 450_000, 1 + number as u8))
        .collect();
    let end = cut_everywhere(&image, &vec![0; 3 << 20], &story, 7);
    let (mut old, mut new) = ([0; 12], [0; 12]);
    image.read_at(48, &mut old).expect("read");
    end.read_at(48, &mut new).expect("read");
    assert_ne!(old, new, "the counter table was not replaced");
}

#[test]
fn power_is_cut_while_clusters_shared_with_a_snapshot_are_copied() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let disk = contents(142, 256 << 10);
    std::fs::write(at.join("disk.raw"), &disk).expect("write");
    qemu_img(
        at,
        "convert -f raw -O qcow2 -o cluster_size=4096 disk.raw image.qcow2",
    );
    qemu_img(at, "snapshot -c s image.qcow2");
    let image = MemoryFile::from_bytes(&std::fs::read(at.join("image.qcow2")).expect("read"));
    let story = [
        (1000, 9000, 1),
        (100_000, 50_000, 0),
        (200_000, 30_000, 2),
        (1000, 500, 3),
    ];
    cut_everywhere(&image, &disk, &story, 1);
}

#[test]
fn an_old_overlay_without_zero_clusters_is_written_and_zeroed() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let base = contents(143, 2 << 20);
    std::fs::write(at.join("base.raw"), &base).expect("write");
    for options in ["compat=0.10", "compat=1.1,cluster_size=4096"] {
        qemu_img(
            at,
            &format!("create -q -f qcow2 -b base.raw -F raw -o {options} over.qcow2 3M"),
        );
        let mut model = base.clone();
        model.resize(3 << 20, 0);
        let parent = Some(open(&at.join("base.raw")));
        let writer =
            Qcow2Writer::open(open_writable(&at.join("over.qcow2")), parent).expect("open");
        scribble(&writer, &mut model, &mut Numbers::new(17), 60);
        model[500_000..900_000].fill(0);
        writer.zero_range(500_000, 400_000).expect("zero");
        assert_reads_as(&writer, &model, options);
        writer.finish().expect("finish");
        check_clean(at, "over.qcow2");
        assert!(raw_of(at, "over.qcow2", "qcow2") == model, "{options}");
    }
}

/// The disk is the state after the flushed writes, with the next one in any part, or after more.
#[track_caller]
fn assert_is_a_prefix(got: &[u8], before: &[u8], writes: &[Told], flushed: usize, what: &str) {
    let mut state = before.to_vec();
    for next in 0..=writes.len() {
        let range = writes
            .get(next)
            .map_or(0..0, |(at, length, _)| *at..at + length);
        let byte = writes.get(next).map_or(0, |(_, _, byte)| *byte);
        let fits = got
            .iter()
            .zip(&state)
            .enumerate()
            .all(|(index, (got, old))| got == old || (range.contains(&index) && *got == byte));
        if fits && next >= flushed {
            return;
        }
        state[range].fill(byte);
    }
    panic!("{what}: the disk is no state that ever was");
}

#[test]
fn a_repair_makes_wrong_counters_right_without_touching_the_disk() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let disk = contents(151, 3 << 20);
    std::fs::write(at.join("disk.raw"), &disk).expect("write");
    for option in [
        "",
        "-o refcount_bits=1",
        "-o cluster_size=512",
        "-c",
        "-o extended_l2=on",
    ] {
        qemu_img(
            at,
            &format!("convert -f raw -O qcow2 {option} disk.raw image.qcow2"),
        );
        let path = at.join("image.qcow2");
        // Some counters of the first block are lost, their neighbours count what is not there.
        let mut image = std::fs::read(&path).expect("read");
        let table = u64::from_be_bytes(image[48..56].try_into().expect("8")) as usize;
        let block = u64::from_be_bytes(image[table..table + 8].try_into().expect("8")) as usize;
        image[block + 2..block + 4].fill(0);
        image[block + 4..block + 6].fill(0xff);
        std::fs::write(&path, &image).expect("write");
        let found = qcow2::check(&open(&path)).expect("check");
        assert_eq!(
            found.worst,
            Some(Severity::Repairable),
            "{option}: {:?}",
            found.findings
        );
        if !option.contains("extended") {
            let error = Qcow2Writer::open(open_writable(&path), None)
                .err()
                .expect("refused");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{option}");
        }
        let repaired = qcow2::repair(&*open_writable(&path), RepairMode::Lossless).expect("repair");
        assert_eq!(repaired, found, "{option}");
        assert_spotless(&open(&path), option);
        check_clean(at, "image.qcow2");
        assert!(raw_of(at, "image.qcow2", "qcow2") == disk, "{option}");
    }
}

#[test]
fn damage_is_dropped_only_when_loss_is_allowed() {
    let disk = contents(161, 1 << 20);
    let file = Arc::new(MemoryFile::new());
    let builder =
        Qcow2Builder::create(file.clone(), &Qcow2Options::new(1 << 20), None).expect("create");
    builder.write_at(0, &disk).expect("write");
    builder.finish().expect("finish");
    let mut word = [0; 8];
    file.read_at(65536, &mut word).expect("L1");
    let l2 = u64::from_be_bytes(word) & 0x00ff_ffff_ffff_fe00;
    // The third cluster leads out of the file, the fifth into the L2 table, the seventh to where the sixth is.
    file.write_at(l2 + 16, &((1u64 << 63) | (1 << 40)).to_be_bytes())
        .expect("write");
    file.write_at(l2 + 32, &((1u64 << 63) | l2).to_be_bytes())
        .expect("write");
    let mut sixth = [0; 8];
    file.read_at(l2 + 40, &mut sixth).expect("entry");
    file.write_at(l2 + 48, &sixth).expect("write");
    let report = qcow2::check(&*file).expect("check");
    assert_eq!(report.worst, Some(Severity::Damage));
    let error = qcow2::repair(&*file, RepairMode::Lossless).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    qcow2::repair(&*file, RepairMode::DataLoss).expect("repair");
    assert_spotless(&*file, "repaired");
    let mut expected = disk;
    expected[2 * 65536..3 * 65536].fill(0);
    expected[4 * 65536..5 * 65536].fill(0);
    expected.copy_within(5 * 65536..6 * 65536, 6 * 65536);
    assert_reads_as(
        &Qcow2Reader::open(file.clone(), None).expect("open"),
        &expected,
        "repaired",
    );
    // The shared cluster is copied before one of its two owners changes.
    let writer = Qcow2Writer::open(file.clone(), None).expect("open");
    writer.write_at(5 * 65536 + 7, b"changed").expect("write");
    expected[5 * 65536 + 7..5 * 65536 + 14].copy_from_slice(b"changed");
    writer.finish().expect("finish");
    assert_reads_as(
        &Qcow2Reader::open(file, None).expect("open"),
        &expected,
        "written",
    );
}

#[test]
fn an_uncounted_cluster_behind_a_thousand_leaks_still_keeps_the_writer_out() {
    let file = Arc::new(MemoryFile::new());
    let options = Qcow2Options {
        cluster_bytes: 512,
        ..Qcow2Options::new(4 << 20)
    };
    let builder = Qcow2Builder::create(file.clone(), &options, None).expect("create");
    builder.write_at(0, &vec![1; 3 << 20]).expect("write");
    builder.finish().expect("finish");
    let mut word = [0; 8];
    file.read_at(48, &mut word).expect("table");
    let table = u64::from_be_bytes(word);
    // Every second cluster is counted twice, and the last counted one not at all.
    let mut last = 0;
    for number in 0..26 {
        file.read_at(table + number * 8, &mut word).expect("block");
        let block = u64::from_be_bytes(word);
        if block == 0 {
            break;
        }
        for slot in 0..256u64 {
            let mut count = [0; 2];
            file.read_at(block + slot * 2, &mut count).expect("count");
            if count == [0, 1] {
                last = block + slot * 2;
                if slot % 2 == 0 {
                    file.write_at(last, &[0, 2]).expect("write");
                }
            }
        }
    }
    file.write_at(last, &[0, 0]).expect("write");
    let report = qcow2::check(&*file).expect("check");
    assert!(report.unlisted > 0 && report.worst == Some(Severity::Repairable));
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.severity == Severity::Note)
    );
    let error = Qcow2Writer::open(file.clone(), None)
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    qcow2::repair(&*file, RepairMode::Lossless).expect("repair");
    assert_spotless(&*file, "repaired");
}

#[test]
fn dirty_and_corrupt_marks_are_respected() {
    let file = Arc::new(MemoryFile::new());
    qcow2::create(file.clone(), &Qcow2Options::new(1 << 20)).expect("create");
    file.write_at(79, &[1]).expect("dirty");
    assert!(
        Qcow2Reader::open(file.clone(), None)
            .expect("open")
            .info()
            .has_pending_log
    );
    let writer = Qcow2Writer::open(file.clone(), None).expect("a dirty image is repaired");
    assert!(!writer.header().is_dirty());
    writer.finish().expect("finish");
    file.write_at(79, &[2]).expect("corrupt");
    assert!(
        Qcow2Reader::open(file.clone(), None)
            .expect("open")
            .header()
            .is_marked_corrupt()
    );
    let error = Qcow2Writer::open(file.clone(), None)
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    qcow2::repair(&*file, RepairMode::Lossless).expect("repair");
    Qcow2Writer::open(file, None).expect("repaired");
}

#[test]
fn a_large_image_is_built_with_bounded_tables() {
    // More L2 tables than memory keeps: 600 of 64 KiB, each touched twice in no order.
    let file = Arc::new(MemoryFile::new());
    let size = 600u64 << 29;
    let builder =
        Qcow2Builder::create(file.clone(), &Qcow2Options::new(size), None).expect("create");
    let mut numbers = Numbers::new(171);
    let mut places: Vec<u64> = (0..600)
        .flat_map(|table| [table << 29, (table << 29) + (77 << 16)])
        .collect();
    for index in (1..places.len()).rev() {
        places.swap(index, numbers.below(index as u64 + 1) as usize);
    }
    for place in &places {
        builder
            .write_at(*place, &place.to_le_bytes().repeat(64))
            .expect("write");
    }
    builder.finish().expect("finish");
    assert_spotless(&*file, "large");
    let image = Qcow2Reader::open(file, None).expect("open");
    for place in &places {
        let mut got = [0; 512];
        image.read_at(*place, &mut got).expect("read");
        assert_eq!(got.to_vec(), place.to_le_bytes().repeat(64));
    }
}

#[test]
fn qemu_goes_on_with_an_image_that_was_written_in_place() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    qcow2::create(
        create_file(&at.join("x.qcow2")),
        &Qcow2Options::new(4 << 20),
    )
    .expect("create");
    let writer = Qcow2Writer::open(open_writable(&at.join("x.qcow2")), None).expect("open");
    writer.write_at(100_000, &[1; 100_000]).expect("write");
    writer.finish().expect("finish");
    qemu_io(
        at,
        "x.qcow2",
        "qcow2",
        &["write -P 2 150k 1M", "read -P 2 150k 1M"],
    );
    qemu_img(at, "snapshot -c s x.qcow2");
    run(at, "qemu-img", &["rebase", "-u", "-b", "", "x.qcow2"]);
    check_clean(at, "x.qcow2");
    assert_spotless(&open(&at.join("x.qcow2")), "after QEMU");
}
