//! Conversion, comparison and publishing, checked by qemu-img where it can.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, like tests"
)]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{ReadAt, WriteAt};
use proptest::prelude::*;
use vdisk::compare::compare;
use vdisk::convert::{NoProgress, Progress, TargetContent, convert, copy};
use vdisk::image::{
    self, CreateOptions, IfExists, ImageProfile, OpenOptions, create, partial_path, resume,
};
use vdisk::memory::MemoryFile;
use vdisk::vhdx::IdSource;
use vdisk::{DiskId, ErrorKind, Format, Image, Subformat};

fn options(size_bytes: u64, profile: ImageProfile) -> CreateOptions {
    CreateOptions {
        size_bytes,
        profile,
        if_exists: IfExists::Refuse,
        ids: IdSource::seeded(5),
        unix_seconds: 1_700_000_000,
    }
}

fn profiles() -> Vec<(ImageProfile, &'static str)> {
    let fixed = |format| ImageProfile {
        subformat: Subformat::Fixed,
        ..ImageProfile::of(format)
    };
    vec![
        (ImageProfile::of(Format::Raw), "raw"),
        (ImageProfile::of(Format::Vhd), "vpc"),
        (fixed(Format::Vhd), "vpc"),
        (ImageProfile::of(Format::Vhdx), "vhdx"),
        (fixed(Format::Vhdx), "vhdx"),
        (ImageProfile::of(Format::Qcow2), "qcow2"),
        (ImageProfile::of(Format::Vmdk), "vmdk"),
        (
            ImageProfile {
                subformat: Subformat::Dynamic,
                ..ImageProfile::of(Format::Vmdk)
            },
            "vmdk",
        ),
    ]
}

/// Data, zeros that are written, and holes; not a whole number of mebibytes.
fn sample(seed: u64) -> MemoryFile {
    let size = (37 << 20) + 4096;
    let file = MemoryFile::with_size(size);
    let mut state = seed | 1;
    for _ in 0..20 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let (at, length) = (state % (size - 300_000), 1 + (state >> 33) % 300_000);
        let fill: Vec<u8> = (0..length)
            .map(|n| u8::try_from((n * n) % 251).unwrap())
            .collect();
        file.write_at(at, &fill).unwrap();
    }
    file.zero_range(10 << 20, 500_000).unwrap();
    file
}

fn write_out(source: &MemoryFile, path: &Path) {
    let mut bytes = vec![0; usize::try_from(source.size_bytes()).unwrap()];
    source.read_at(0, &mut bytes).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn open(path: &Path) -> Image {
    Image::open(path, &OpenOptions::default()).unwrap()
}

#[test]
fn every_target_reads_as_its_source_here_and_in_qemu() {
    let directory = tempfile::tempdir().unwrap();
    let source = sample(1);
    let raw = directory.path().join("source.raw");
    write_out(&source, &raw);
    for (number, (profile, driver)) in profiles().into_iter().enumerate() {
        let target = directory.path().join(format!("target-{number}"));
        let wanted = ImageProfile {
            disk_id: Some(DiskId(uuid::Uuid::from_u128(77))),
            ..profile
        };
        let stats = convert(
            &source,
            &target,
            &options(source.size_bytes(), wanted.clone()),
            &NoProgress,
        )
        .unwrap();
        assert!(
            stats.written_bytes <= stats.read_bytes && stats.written_bytes < source.size_bytes()
        );
        assert!(!partial_path(&target).exists());
        let image = open(&target);
        assert!(
            compare(&source, &image, &NoProgress).unwrap().is_equal(),
            "{wanted:?}"
        );
        let got = ImageProfile::from(&image.info());
        assert_eq!(
            (got.format, got.subformat),
            (wanted.format, wanted.subformat)
        );
        if !matches!(wanted.format, Format::Raw | Format::Qcow2 | Format::Vmdk) {
            assert_eq!(got.disk_id, wanted.disk_id);
            assert_eq!(got.physical_sector_bytes, wanted.physical_sector_bytes);
        }
        let output = Command::new("qemu-img")
            .args(["compare", "-f", "raw", "-F", driver])
            .args([&raw, &target])
            .output()
            .expect("qemu-img");
        assert!(output.status.success(), "{wanted:?}: {output:?}");
        // And onwards: the result is a source like any other.
        let back = directory.path().join(format!("back-{number}"));
        convert(
            &image,
            &back,
            &options(source.size_bytes(), ImageProfile::of(Format::Vhdx)),
            &NoProgress,
        )
        .unwrap();
        assert!(
            compare(&open(&back), &source, &NoProgress)
                .unwrap()
                .is_equal()
        );
    }
}

#[test]
fn a_disk_that_is_there_stays_unless_told_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("disk.vhdx");
    std::fs::write(&target, b"precious").unwrap();
    let source = sample(2);
    let mut wanted = options(source.size_bytes(), ImageProfile::of(Format::Vhdx));
    let error = convert(&source, &target, &wanted, &NoProgress).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    wanted.if_exists = IfExists::Replace;
    convert(&source, &target, &wanted, &NoProgress).unwrap();
    assert!(
        compare(&source, &open(&target), &NoProgress)
            .unwrap()
            .is_equal()
    );
}

/// Stops after so many reports.
struct Stopper {
    left: AtomicU64,
    seen_bytes: AtomicU64,
}

impl Progress for Stopper {
    fn advance(&self, done_bytes: u64, total_bytes: u64) {
        assert!(done_bytes <= total_bytes);
        self.seen_bytes.fetch_max(done_bytes, Ordering::Relaxed);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(left.saturating_sub(1))
            })
            .unwrap();
    }
    fn is_cancelled(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }
}

#[test]
fn a_cancelled_conversion_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("disk.vhd");
    let source = sample(3);
    let stopper = Stopper {
        left: AtomicU64::new(2),
        seen_bytes: AtomicU64::new(0),
    };
    let wanted = options(source.size_bytes(), ImageProfile::of(Format::Vhd));
    let error = convert(&source, &target, &wanted, &stopper).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(stopper.seen_bytes.load(Ordering::Relaxed) > 0);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_refused_shape_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::Vhdx, Format::Vhd, Format::Qcow2, Format::Vmdk] {
        let target = folder.path().join("disk");
        let odd = options((1 << 20) + 1, ImageProfile::of(format));
        let refused = create(&target, &odd).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{format:?}");
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "{format:?}");
    }
}

#[test]
fn an_interrupted_copy_goes_on_and_ends_right() {
    let directory = tempfile::tempdir().unwrap();
    let (old, source) = (sample(4), sample(5));
    let resumable = profiles()
        .into_iter()
        .filter(|(profile, _)| profile.format != Format::Vmdk);
    for (number, (profile, _)) in resumable.enumerate() {
        let target = directory.path().join(format!("disk-{number}"));
        let wanted = options(source.size_bytes(), profile);
        // Half of another disk lies in the partial file: what was written after the last flush counts for nothing.
        let writer = create(&target, &wanted).unwrap();
        let stopper = Stopper {
            left: AtomicU64::new(6),
            seen_bytes: AtomicU64::new(0),
        };
        assert!(copy(&old, &*writer, TargetContent::Blank, &stopper).is_err());
        writer.flush().unwrap();
        drop(writer);
        assert!(!target.exists() && partial_path(&target).exists());
        let writer = resume(&target, &wanted).unwrap();
        copy(&source, &*writer, TargetContent::Unknown, &NoProgress).unwrap();
        writer.finish().unwrap();
        assert!(
            compare(&source, &open(&target), &NoProgress)
                .unwrap()
                .is_equal(),
            "{:?}",
            wanted.profile
        );
    }
}

#[test]
fn resuming_refuses_another_shape() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("disk");
    let wanted = options(8 << 20, ImageProfile::of(Format::Vhdx));
    drop(create(&target, &wanted).unwrap());
    let other = options(9 << 20, ImageProfile::of(Format::Vhdx));
    assert_eq!(
        resume(&target, &other).err().expect("refused").kind(),
        ErrorKind::Invalid
    );
    assert!(resume(&target, &options(8 << 20, ImageProfile::of(Format::Vhd))).is_err());
    image::discard_partial(&target).unwrap();
    assert!(resume(&target, &wanted).is_err());
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let writer = create(
        &directory.path().join("x"),
        &options(1 << 20, ImageProfile::of(Format::Raw)),
    )
    .unwrap();
    let error = copy(
        &MemoryFile::with_size(2 << 20),
        &*writer,
        TargetContent::Blank,
        &NoProgress,
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn a_longer_disk_is_compared_with_zeros() {
    let short = MemoryFile::from_bytes(&[1; 1000]);
    let long = MemoryFile::from_bytes(&[1; 1000]);
    long.set_size(5 << 20).unwrap();
    let report = compare(&short, &long, &NoProgress).unwrap();
    assert!(report.content_is_equal() && !report.is_equal());
    assert_eq!(
        (report.left_size_bytes, report.right_size_bytes),
        (1000, 5 << 20)
    );
    long.write_at(4 << 20, &[1, 1, 0, 1]).unwrap();
    let report = compare(&short, &long, &NoProgress).unwrap();
    assert_eq!(report.first_difference, Some(4 << 20));
    assert_eq!((report.differing_bytes, report.differing_ranges), (3, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn comparing_counts_like_a_loop(
        edits in proptest::collection::vec((0..5_u64 << 20, 1..5000_usize, any::<u8>()), 0..6),
        at_edge in any::<bool>(),
    ) {
        let size = 5_u64 << 20;
        let (left, right) = (MemoryFile::with_size(size), MemoryFile::with_size(size));
        left.write_at(1 << 20, &[3; 1 << 20]).unwrap();
        right.write_at(1 << 20, &[3; 1 << 20]).unwrap();
        if at_edge {
            right.write_at((2 << 20) - 10, &[9; 20]).unwrap();
        }
        for (at, length, value) in edits {
            let length = length.min(usize::try_from(size - at).unwrap());
            right.write_at(at, &vec![value; length]).unwrap();
        }
        let (mut a, mut b) = (vec![0; 5 << 20], vec![0; 5 << 20]);
        left.read_at(0, &mut a).unwrap();
        right.read_at(0, &mut b).unwrap();
        let differs: Vec<bool> = a.iter().zip(&b).map(|(one, other)| one != other).collect();
        let bytes = differs.iter().filter(|it| **it).count() as u64;
        let starts = differs.iter().enumerate().filter(|(at, it)| **it && (*at == 0 || !differs[at - 1])).count() as u64;
        let report = compare(&left, &right, &NoProgress).unwrap();
        prop_assert_eq!(report.first_difference, differs.iter().position(|it| *it).map(|at| at as u64));
        prop_assert_eq!((report.differing_bytes, report.differing_ranges), (bytes, starts));
    }
}
