//! VHD: the corpus, other programs as second opinion, a model, power cuts and hostile bytes.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, like tests"
)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use block::{ExtentKind, ReadAt, WriteAt};
use proptest::prelude::*;
use vdisk::file::{FileAccess, HostFile};
use vdisk::memory::{CrashFile, Loss, MemoryFile};
use vdisk::vhd::{
    Allocation, CreateOptions, ParentLink, VhdBuilder, VhdReader, VhdTime, VhdWriter, check,
    create, repair,
};
use vdisk::{DiskId, ErrorKind, RepairMode, Severity, Subformat};

use crate::corpora::{self, Trust};

const MIB: u64 = 1 << 20;

fn disk_id(n: u8) -> DiskId {
    DiskId(uuid::Uuid::from_bytes([n; 16]))
}

fn options(size_bytes: u64, allocation: Allocation) -> CreateOptions {
    CreateOptions {
        size_bytes,
        allocation,
        block_bytes: 2 << 20,
        unique_id: disk_id(1),
        time: VhdTime::from_unix_seconds(1_700_000_000),
    }
}

fn child_of(parent: DiskId) -> Allocation {
    Allocation::Differencing(ParentLink {
        id: parent,
        time: VhdTime(0),
        relative_path: Some(".\\parent.vhd".into()),
        absolute_path: Some("C:\\disks\\parent.vhd".into()),
    })
}

fn all_bytes(disk: &dyn ReadAt) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.size_bytes()).unwrap()];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

/// What extents say is what reading says, and they cover the disk without gaps.
fn assert_extents_agree(disk: &dyn ReadAt, bytes: &[u8]) {
    let mut at = 0;
    while at < disk.size_bytes() {
        let extent = disk.extent_at(at, disk.size_bytes() - at).unwrap();
        assert!(
            extent.offset == at && extent.length_bytes > 0 && extent.end() <= disk.size_bytes()
        );
        if extent.kind.is_zero() {
            let range =
                &bytes[usize::try_from(at).unwrap()..usize::try_from(extent.end()).unwrap()];
            assert!(
                range.iter().all(|byte| *byte == 0),
                "extent at {at} is not zero"
            );
        }
        at = extent.end();
    }
}

// ---- corpus -----------------------------------------------------------------------------------------------------

#[test]
fn corpus_images_read_as_independent_readers_agree() {
    let Some(root) = corpora::root() else { return };
    let mut seen = 0;
    for image in corpora::manifest(&root)
        .iter()
        .filter(|it| it.group == "vhd" && it.kind == "disk")
    {
        let parent = image.parent.as_ref().map(|name| {
            let file = Arc::new(corpora::load(&root, &format!("vhd/{name}")));
            Arc::new(VhdReader::open(file, None).unwrap()) as Arc<dyn ReadAt>
        });
        let file = Arc::new(corpora::load(&root, &image.path));
        let disk = VhdReader::open(file.clone(), parent).unwrap();
        assert_eq!(
            Some(disk.size_bytes()),
            image.virtual_size_bytes,
            "{}",
            image.path
        );
        for trust in [Trust::Reads, Trust::Extents] {
            assert_eq!(
                Some(corpora::sha256(&disk, trust)),
                image.raw_sha256,
                "{}",
                image.path
            );
        }
        assert!(check(file).unwrap().is_clean(), "{}", image.path);
        seen += 1;
    }
    assert_eq!(seen, 6, "images of the manifest");
}

#[test]
fn generated_images_read_as_their_recipe_says() {
    let Some(root) = corpora::root() else { return };
    let cases = corpora::synth_cases(&root, &[".vhd", ".avhd"]);
    assert!(cases.len() >= 2, "{} cases", cases.len());
    for case in cases {
        assert_eq!(case.policy, "ok", "{}", case.name);
        let mut disk: Option<Arc<dyn ReadAt>> = None;
        for name in case.chain.iter().rev() {
            let file = Arc::new(corpora::load(&root, &format!("synth/{name}")));
            disk = Some(Arc::new(VhdReader::open(file, disk.take()).unwrap()));
        }
        let disk = disk.unwrap();
        assert_eq!(
            Some(disk.size_bytes()),
            case.virtual_size_bytes,
            "{}",
            case.name
        );
        assert_eq!(
            Some(corpora::sha256(&*disk, Trust::Reads)),
            case.raw_sha256,
            "{}",
            case.name
        );
    }
}

#[test]
fn the_size_is_the_current_size_and_not_the_geometry() {
    let Some(root) = corpora::root() else { return };
    let image = corpora::image(&root, "vhd/qemu-hyperv2012r2-dynamic.vhd.bz2");
    let disk = VhdReader::open(Arc::new(corpora::load(&root, &image.path)), None).unwrap();
    assert_eq!(Some(disk.size_bytes()), image.virtual_size_bytes);
    let extent = disk.extent_at(0, u64::MAX).unwrap();
    assert_eq!(
        (extent.length_bytes, extent.kind),
        (disk.size_bytes(), ExtentKind::Unallocated)
    );
}

#[test]
fn a_wrong_checksum_in_both_footers_is_refused() {
    let Some(root) = corpora::root() else { return };
    let file = Arc::new(corpora::load(&root, "vhd/dfvfs-image-badchecksum.vhd"));
    let error = VhdReader::open(file.clone(), None).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("checksum"), "{error}");
    assert_eq!(check(file).unwrap().worst, Some(Severity::Damage));
}

#[test]
fn a_child_without_its_parent_never_answers_with_zeros() {
    let Some(root) = corpora::root() else { return };
    let file = Arc::new(corpora::load(&root, "vhd/dfvfs-fat-differential.vhd"));
    let disk = VhdReader::open(file, None).unwrap();
    assert_eq!(disk.info().subformat, Subformat::Differencing);
    assert_eq!(disk.info().parent_paths[0], ".\\fat-parent.vhd");
    assert_eq!(
        disk.extent_at(2 * MIB, MIB).unwrap().kind,
        ExtentKind::InParent
    );
    let error = disk.read_at(2 * MIB, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), block::ErrorKind::NotFound);
}

// ---- layout -----------------------------------------------------------------------------------------------------

#[test]
fn a_new_image_lies_as_windows_lays_it_out() {
    // 4 MiB: Windows puts the table at 0x600 and the first block at sector 15, the second 4104 sectors behind it.
    let file = Arc::new(MemoryFile::new());
    let builder = VhdBuilder::create(file.clone(), &options(4 * MIB, Allocation::Dynamic)).unwrap();
    builder.write_at(0, &[1]).unwrap();
    builder.write_at(2 * MIB, &[2]).unwrap();
    builder.finish().unwrap();
    let mut table = [0; 8];
    file.read_at(0x600, &mut table).unwrap();
    assert_eq!(table, [0, 0, 0, 15, 0, 0, 0x10, 0x17]);
    assert_eq!(file.size_bytes(), 8224 * 512, "as long as Windows' own");

    // The differencing image of the corpus has its only block at sector 159.
    let file = Arc::new(MemoryFile::new());
    create(&*file, &options(4 * MIB, child_of(disk_id(9)))).unwrap();
    let writer = VhdWriter::open(file.clone(), None).unwrap();
    writer.write_at(0, &[1; 512]).unwrap();
    writer.finish().unwrap();
    file.read_at(8192, &mut table).unwrap();
    assert_eq!(table[..4], [0, 0, 0, 159]);
    let reader = VhdReader::open(file, None).unwrap();
    let parent = reader.parent_identity().unwrap();
    assert_eq!(parent.id, disk_id(9));
    assert_eq!(
        parent.paths[..2],
        [".\\parent.vhd", "C:\\disks\\parent.vhd"]
    );
}

#[test]
fn sizes_that_vhd_cannot_hold_are_refused() {
    for size in [0, 100, 2041 << 30] {
        let error = create(&MemoryFile::new(), &options(size, Allocation::Dynamic)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{size}");
    }
    let mut odd = options(MIB, Allocation::Dynamic);
    odd.block_bytes = 3 << 20;
    assert_eq!(
        create(&MemoryFile::new(), &odd).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn the_greatest_disk_costs_its_table_and_what_is_in_it() {
    let file = Arc::new(MemoryFile::new());
    let size = 2040 << 30;
    let builder = VhdBuilder::create(file.clone(), &options(size, Allocation::Dynamic)).unwrap();
    builder.write_at(size - 512, &[7; 512]).unwrap();
    builder.zero_range(0, size - 512).unwrap();
    builder.finish().unwrap();
    assert!(
        file.allocated_bytes() < 5 * MIB,
        "{}",
        file.allocated_bytes()
    );
    let reader = VhdReader::open(file, None).unwrap();
    let mut last = [0; 512];
    reader.read_at(size - 512, &mut last).unwrap();
    assert_eq!(last, [7; 512]);
}

// ---- unfinished images ------------------------------------------------------------------------------------------

#[test]
fn an_unfinished_image_is_no_image_and_can_be_gone_on_with() {
    for allocation in [Allocation::Fixed, Allocation::Dynamic] {
        let image = MemoryFile::new();
        let file = Arc::new(CrashFile::new(&image, None));
        let builder =
            VhdBuilder::create(file.clone(), &options(9 * MIB, allocation.clone())).unwrap();
        builder.write_at(3 * MIB, &[3; 4096]).unwrap();
        builder.flush().unwrap();
        builder.write_at(5 * MIB, &[5; 4096]).unwrap();
        drop(builder);
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn { seed: 4 }] {
            let left = Arc::new(file.survivors(loss).unwrap());
            let error = VhdReader::open(left.clone(), None)
                .err()
                .expect("unfinished");
            assert_eq!(
                error.kind(),
                ErrorKind::Incomplete,
                "{allocation:?}: {error}"
            );
            let builder = VhdBuilder::resume(left.clone()).unwrap();
            builder.write_at(5 * MIB, &[6; 8192]).unwrap();
            builder.finish().unwrap();
            let mut expected = vec![0; 9 << 20];
            expected[3 << 20..(3 << 20) + 4096].fill(3);
            expected[5 << 20..(5 << 20) + 8192].fill(6);
            let reader = VhdReader::open(left.clone(), None).unwrap();
            assert!(all_bytes(&reader) == expected, "{allocation:?} {loss:?}");
            assert!(check(left).unwrap().is_clean());
        }
    }
}

// ---- model ------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Step {
    Write { at: u64, length: u64, value: u8 },
    Zero { at: u64, length: u64 },
    Flush,
    Reopen,
}

fn steps(size: u64) -> impl Strategy<Value = Vec<Step>> {
    let range = (
        0..size,
        prop_oneof![1..600_u64, Just(512), Just(4096), 1..size],
    );
    let step = prop_oneof![
        5 => (range.clone(), 1..=255_u8).prop_map(|((at, length), value)| Step::Write { at, length, value }),
        2 => range.prop_map(|(at, length)| Step::Zero { at, length }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..24)
}

/// Small blocks make small disks interesting: 16 KiB blocks, 100 KiB and a sector of disk.
const SMALL: u64 = 100 * 1024 + 512;

fn small(allocation: Allocation) -> CreateOptions {
    CreateOptions {
        block_bytes: 16384,
        ..options(SMALL, allocation)
    }
}

fn apply(disk: &dyn WriteAt, model: &mut [u8], step: &Step) {
    let clip = |at: u64, length: u64| {
        let end = (at + length).min(model.len() as u64);
        (usize::try_from(at).unwrap(), usize::try_from(end).unwrap())
    };
    match *step {
        Step::Write { at, length, value } => {
            let (from, to) = clip(at, length);
            let bytes: Vec<u8> = (from..to)
                .map(|n| value ^ u8::try_from(n % 7).unwrap())
                .collect();
            disk.write_at(at, &bytes).unwrap();
            model[from..to].copy_from_slice(&bytes);
        }
        Step::Zero { at, length } => {
            let (from, to) = clip(at, length);
            disk.zero_range(at, (to - from) as u64).unwrap();
            model[from..to].fill(0);
        }
        Step::Flush | Step::Reopen => disk.flush().unwrap(),
    }
}

/// A parent shorter than its children, full of bytes that are never zero.
fn small_parent() -> (Arc<dyn ReadAt>, Vec<u8>) {
    let bytes: Vec<u8> = (0..SMALL - 20_000)
        .map(|n| u8::try_from(n % 251).unwrap() + 1)
        .collect();
    let mut seen = bytes.clone();
    seen.resize(usize::try_from(SMALL).unwrap(), 0);
    (Arc::new(MemoryFile::from_bytes(&bytes)), seen)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_writer_is_a_vector(plan in steps(SMALL), kind in 0..3) {
        let (allocation, parent, mut model) = match kind {
            0 => (Allocation::Fixed, None, vec![0; usize::try_from(SMALL).unwrap()]),
            1 => (Allocation::Dynamic, None, vec![0; usize::try_from(SMALL).unwrap()]),
            _ => {
                let (parent, seen) = small_parent();
                (child_of(disk_id(9)), Some(parent), seen)
            }
        };
        let file = Arc::new(MemoryFile::new());
        create(&*file, &small(allocation)).unwrap();
        let mut writer = VhdWriter::open(file.clone(), parent.clone()).unwrap();
        for step in &plan {
            apply(&writer, &mut model, step);
            if matches!(step, Step::Reopen) {
                writer.finish().unwrap();
                writer = VhdWriter::open(file.clone(), parent.clone()).unwrap();
            }
            prop_assert!(all_bytes(&writer) == model);
        }
        writer.finish().unwrap();
        let reader = VhdReader::open(file.clone(), parent).unwrap();
        prop_assert!(all_bytes(&reader) == model);
        assert_extents_agree(&reader, &model);
        prop_assert!(check(file).unwrap().is_clean());
    }

    #[test]
    fn a_builder_is_a_vector(plan in steps(SMALL), is_fixed in any::<bool>()) {
        let allocation = if is_fixed { Allocation::Fixed } else { Allocation::Dynamic };
        let mut model = vec![0; usize::try_from(SMALL).unwrap()];
        let file = Arc::new(MemoryFile::new());
        let mut builder = VhdBuilder::create(file.clone(), &small(allocation)).unwrap();
        for step in &plan {
            apply(&builder, &mut model, step);
            if matches!(step, Step::Reopen) {
                drop(builder);
                builder = VhdBuilder::resume(file.clone()).unwrap();
            }
        }
        builder.finish().unwrap();
        let reader = VhdReader::open(file.clone(), None).unwrap();
        prop_assert!(all_bytes(&reader) == model);
        assert_extents_agree(&reader, &model);
        prop_assert!(check(file).unwrap().is_clean());
    }

    /// Power fails anywhere: what was flushed is there, and every byte is one that was written, or the one before.
    #[test]
    fn a_power_cut_loses_only_what_was_not_flushed(
        plan in steps(SMALL), cut in 0..120_u64, seed in any::<u64>(), is_child in any::<bool>(),
    ) {
        let (allocation, parent, start) = if is_child {
            let (parent, seen) = small_parent();
            (child_of(disk_id(9)), Some(parent), seen)
        } else {
            (Allocation::Dynamic, None, vec![0; usize::try_from(SMALL).unwrap()])
        };
        let image = MemoryFile::new();
        create(&image, &small(allocation)).unwrap();
        let file = Arc::new(CrashFile::new(&image, Some(cut)));
        let Ok(writer) = VhdWriter::open(file.clone(), parent.clone()) else { return Ok(()) };
        // Per byte: every value it may have after the cut.
        let mut possible: Vec<Vec<u8>> = start.iter().map(|byte| vec![*byte]).collect();
        for step in &plan {
            let result = match *step {
                Step::Write { at, length, value } => {
                    let length = length.min(SMALL - at);
                    let bytes = vec![value; usize::try_from(length).unwrap()];
                    for slot in &mut possible[usize::try_from(at).unwrap()..][..bytes.len()] {
                        slot.push(value);
                    }
                    writer.write_at(at, &bytes)
                }
                Step::Zero { at, length } => {
                    let length = length.min(SMALL - at);
                    for slot in &mut possible[usize::try_from(at).unwrap()..][..usize::try_from(length).unwrap()] {
                        slot.push(0);
                    }
                    writer.zero_range(at, length)
                }
                Step::Flush | Step::Reopen => writer.flush(),
            };
            if result.is_err() {
                break;
            }
            if matches!(step, Step::Flush | Step::Reopen) {
                for slot in &mut possible {
                    let last = *slot.last().unwrap();
                    *slot = vec![last];
                }
            }
        }
        for loss in [Loss::Everything, Loss::Nothing, Loss::Subset { seed }, Loss::Torn { seed }] {
            let left = Arc::new(file.survivors(loss).unwrap());
            let reader = VhdReader::open(left.clone(), parent.clone()).unwrap();
            for (at, (byte, slot)) in all_bytes(&reader).iter().zip(&possible).enumerate() {
                prop_assert!(slot.contains(byte), "byte {} is {}, not of {:?} ({:?})", at, byte, slot, loss);
            }
            // And it can be written on.
            let again = VhdWriter::open(left.clone(), parent.clone()).unwrap();
            again.write_at(SMALL - 512, &[9; 512]).unwrap();
            again.finish().unwrap();
            prop_assert!(repair(left.clone(), RepairMode::Lossless).is_ok());
            prop_assert!(check(left).unwrap().is_clean());
        }
    }
}

#[test]
fn threads_may_write_at_once() {
    let file = Arc::new(MemoryFile::new());
    let builder = VhdBuilder::create(file.clone(), &small(Allocation::Dynamic)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let builder = &builder;
            scope.spawn(move || {
                for sector in (thread..SMALL / 512).step_by(4) {
                    builder
                        .write_at(
                            sector * 512,
                            &[u8::try_from(sector % 200).unwrap() + 1; 512],
                        )
                        .unwrap();
                }
            });
        }
    });
    builder.finish().unwrap();
    let bytes = all_bytes(&VhdReader::open(file, None).unwrap());
    for (sector, content) in bytes.chunks(512).enumerate() {
        assert!(
            content
                .iter()
                .all(|byte| usize::from(*byte) == sector % 200 + 1),
            "sector {sector}"
        );
    }
}

// ---- check and repair -------------------------------------------------------------------------------------------

fn sample() -> (MemoryFile, Vec<u8>) {
    let file = Arc::new(MemoryFile::new());
    let builder = VhdBuilder::create(file.clone(), &small(Allocation::Dynamic)).unwrap();
    let mut model = vec![0; usize::try_from(SMALL).unwrap()];
    for at in [0_u64, 40_000, 90_000] {
        let bytes: Vec<u8> = (0..9000)
            .map(|n| u8::try_from((n + at) % 255).unwrap() + 1)
            .collect();
        builder.write_at(at, &bytes).unwrap();
        model[usize::try_from(at).unwrap()..][..9000].copy_from_slice(&bytes);
    }
    builder.finish().unwrap();
    ((*file).clone(), model)
}

#[test]
fn a_damaged_footer_is_found_and_put_right_from_the_other() {
    let (whole, model) = sample();
    let end = whole.size_bytes();
    let cut = |file: &MemoryFile| file.set_size(end - 512).unwrap();
    let smear = |file: &MemoryFile| file.write_at(end - 300, b"smear").unwrap();
    let copy = |file: &MemoryFile| file.write_at(70, b"smear").unwrap();
    for damage in [&cut as &dyn Fn(&MemoryFile), &smear, &copy] {
        let file = Arc::new(whole.clone());
        damage(&file);
        assert!(all_bytes(&VhdReader::open(file.clone(), None).unwrap()) == model);
        assert_eq!(
            check(file.clone()).unwrap().worst,
            Some(Severity::Repairable)
        );
        repair(file.clone(), RepairMode::Lossless).unwrap();
        assert!(check(file.clone()).unwrap().is_clean());
        assert!(all_bytes(&VhdReader::open(file, None).unwrap()) == model);
    }
}

#[test]
fn a_footer_of_511_bytes_is_read() {
    let (whole, model) = sample();
    whole.set_size(whole.size_bytes() - 1).unwrap();
    let file = Arc::new(whole);
    assert!(all_bytes(&VhdReader::open(file.clone(), None).unwrap()) == model);
    let writer = VhdWriter::open(file.clone(), None).unwrap();
    writer.write_at(70_000, &[8; 512]).unwrap();
    writer.finish().unwrap();
    let mut expected = model;
    expected[70_000..70_512].fill(8);
    assert!(all_bytes(&VhdReader::open(file.clone(), None).unwrap()) == expected);
    assert!(check(file).unwrap().is_clean());
}

#[test]
fn blocks_that_cannot_be_are_refused_and_given_up_only_when_told() {
    let (whole, _) = sample();
    for (entry, what) in [
        ([0, 0, 0, 15_u8], "overlap"),
        ([0x00, 0xFF, 0xFF, 0xFF], "behind"),
    ] {
        let file = Arc::new(whole.clone());
        // Block 1 was never written.
        file.write_at(0x600 + 4, &entry).unwrap();
        let error = VhdReader::open(file.clone(), None).err().expect("refused");
        assert!(
            error.kind() == ErrorKind::Corrupt && error.to_string().contains(what),
            "{error}"
        );
        assert_eq!(check(file.clone()).unwrap().worst, Some(Severity::Damage));
        repair(file.clone(), RepairMode::Lossless).unwrap();
        assert!(VhdReader::open(file.clone(), None).is_err());
        repair(file.clone(), RepairMode::DataLoss).unwrap();
        assert!(VhdReader::open(file.clone(), None).is_ok());
        assert!(check(file).unwrap().is_clean());
    }
}

// ---- hostile bytes ----------------------------------------------------------------------------------------------

/// Footers and header get a right checksum again, so that the damage reaches what is behind it.
fn reseal(file: &MemoryFile) {
    let size = file.size_bytes();
    for (offset, length, at) in [(size - 512, 512_usize, 64), (0, 512, 64), (512, 1024, 36)] {
        let mut bytes = vec![0; length];
        file.read_at(offset, &mut bytes).unwrap();
        bytes[at..at + 4].fill(0);
        let sum = !bytes
            .iter()
            .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        file.write_at(offset + at as u64, &sum.to_be_bytes())
            .unwrap();
    }
}

#[test]
fn mutated_images_give_bytes_or_a_typed_error() {
    let (dynamic, _) = sample();
    let child = MemoryFile::new();
    create(&child, &small(child_of(disk_id(9)))).unwrap();
    let child = Arc::new(child);
    let writer = VhdWriter::open(child.clone(), None).unwrap();
    writer.write_at(512, &[1; 5120]).unwrap();
    writer.finish().unwrap();
    let (parent, _) = small_parent();
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut opened = 0;
    for round in 0..6000 {
        let source = if round % 2 == 0 { &dynamic } else { &*child };
        let file = Arc::new(source.clone());
        let size = file.size_bytes();
        for _ in 0..=next() % 4 {
            // Structures: footer copy and header, table of the child, footer at the end.
            let at = match next() % 4 {
                0 => next() % 512,
                1 => 512 + next() % 1024,
                2 => [1536, 8192][usize::try_from(next() % 2).unwrap()] + next() % 64,
                _ => size - 512 + next() % 512,
            };
            let value = [0, 0xFF, 0x80, 1, u8::try_from(next() % 256).unwrap()];
            file.write_at(at, &[value[usize::try_from(next() % 5).unwrap()]])
                .unwrap();
        }
        if round % 3 != 0 {
            reseal(&file);
        }
        let report = check(file.clone()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        if let Ok(disk) = VhdReader::open(file.clone(), Some(parent.clone())) {
            opened += 1;
            let mut buffer = vec![0; 20_000];
            for at in [0, 16_000, disk.size_bytes().saturating_sub(20_000)] {
                if at + 20_000 <= disk.size_bytes() {
                    disk.read_at(at, &mut buffer)
                        .unwrap_or_else(|error| panic!("round {round}: {error} {report:?}"));
                }
                if at < disk.size_bytes() {
                    assert!(
                        disk.extent_at(at, u64::MAX).unwrap().length_bytes > 0,
                        "round {round}"
                    );
                }
            }
        }
    }
    assert!(
        opened > 500,
        "{opened} of 6000 mutations were still images: the test reaches nothing"
    );
}

// ---- other programs ---------------------------------------------------------------------------------------------

fn host_file(path: &Path) -> Arc<HostFile> {
    Arc::new(HostFile::create_new(path).unwrap())
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// 23 MiB and a sector, with data at both ends and in the middle.
fn qemu_sample(path: &Path) -> Arc<HostFile> {
    let size = 23 * MIB + 512;
    let raw = host_file(path);
    raw.set_size(size).unwrap();
    for (at, length) in [(0, 100_000_u64), (3 * MIB - 5, 3 * MIB), (size - 700, 700)] {
        let bytes: Vec<u8> = (0..length)
            .map(|n| u8::try_from((n * n + at) % 256).unwrap())
            .collect();
        raw.write_at(at, &bytes).unwrap();
    }
    raw
}

#[test]
fn qemu_reads_what_is_built() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let text = |name: &str| path(name).to_string_lossy().into_owned();
    let raw = qemu_sample(&path("disk.raw"));
    let size = raw.size_bytes();
    for (name, allocation) in [
        ("fixed.vhd", Allocation::Fixed),
        ("dynamic.vhd", Allocation::Dynamic),
    ] {
        let builder =
            VhdBuilder::create(host_file(&path(name)), &options(size, allocation)).unwrap();
        let mut at = 0;
        while at < size {
            let extent = raw.extent_at(at, size - at).unwrap();
            if extent.kind == ExtentKind::Data {
                let mut bytes = vec![0; usize::try_from(extent.length_bytes).unwrap()];
                raw.read_at(at, &mut bytes).unwrap();
                builder.write_at(at, &bytes).unwrap();
            }
            at = extent.end();
        }
        builder.finish().unwrap();
        run(
            "qemu-img",
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                "vpc",
                &text("disk.raw"),
                &text(name),
            ],
        );
    }
}

#[test]
fn what_qemu_makes_is_read_and_written_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let text = |name: &str| path(name).to_string_lossy().into_owned();
    let raw = qemu_sample(&path("disk.raw"));
    for subformat in ["fixed", "dynamic"] {
        let name = format!("qemu-{subformat}.vhd");
        let option = format!("subformat={subformat},force_size=on");
        run(
            "qemu-img",
            &[
                "convert",
                "-O",
                "vpc",
                "-o",
                &option,
                &text("disk.raw"),
                &text(&name),
            ],
        );
        let file = Arc::new(HostFile::open(&path(&name), FileAccess::ReadWrite).unwrap());
        let reader = VhdReader::open(file.clone(), None).unwrap();
        assert!(all_bytes(&reader) == all_bytes(&*raw), "{name}");
        // And what qemu made can be written in place.
        let writer = VhdWriter::open(file, None).unwrap();
        writer.write_at(20 * MIB, &[5; 4096]).unwrap();
        writer.zero_range(0, 50_000).unwrap();
        writer.finish().unwrap();
        let mut expected = all_bytes(&*raw);
        expected[20 << 20..(20 << 20) + 4096].fill(5);
        expected[..50_000].fill(0);
        std::fs::write(path("expected.raw"), &expected).unwrap();
        run(
            "qemu-img",
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                "vpc",
                &text("expected.raw"),
                &text(&name),
            ],
        );
    }
}

/// libvhdi is wrong about some differencing images, so it is asked about the others, and about a child's metadata.
#[test]
fn libvhdi_reads_what_is_built() {
    let ask = |script: &str, path: &Path| {
        Command::new("python3")
            .arg("-c")
            .arg(script)
            .arg(path)
            .output()
            .ok()
            .filter(|it| it.status.success())
    };
    let directory = tempfile::tempdir().unwrap();
    if ask("import pyvhdi", directory.path()).is_none() {
        assert!(
            std::env::var_os("LIBVHDI_REQUIRED").is_none(),
            "python3 has no pyvhdi"
        );
        println!("SKIP: python3 has no pyvhdi (pip install libvhdi-python)");
        return;
    }
    let path = directory.path().join("dynamic.vhd");
    let builder = VhdBuilder::create(
        host_file(&path),
        &options(9 * MIB + 512, Allocation::Dynamic),
    )
    .unwrap();
    let content: Vec<u8> = (0..3 * MIB + 700)
        .map(|n| u8::try_from(n % 253).unwrap())
        .collect();
    builder.write_at(MIB, &content).unwrap();
    builder.finish().unwrap();
    let script = "import sys,pyvhdi,hashlib\nf=pyvhdi.file();f.open(sys.argv[1])\n\
                  print(f.get_media_size(),hashlib.sha256(f.read_buffer_at_offset(f.get_media_size(),0)).hexdigest())";
    let output = ask(script, &path).expect("libvhdi opens it");
    let reader = VhdReader::open(
        Arc::new(HostFile::open(&path, FileAccess::ReadOnly).unwrap()),
        None,
    )
    .unwrap();
    let expected = format!(
        "{} {}",
        reader.size_bytes(),
        corpora::sha256(&reader, Trust::Reads)
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected);

    let path = directory.path().join("child.vhd");
    create(&*host_file(&path), &options(4 * MIB, child_of(disk_id(9)))).unwrap();
    let script =
        "import sys,pyvhdi\nf=pyvhdi.file();f.open(sys.argv[1])\nprint(f.get_parent_filename())";
    let output = ask(script, &path).expect("libvhdi opens it");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "C:\\disks\\parent.vhd"
    );
}

/// The locators that Windows no longer writes: Xen's tools name the parent by a URL, older ones by single bytes.
#[test]
fn every_code_of_a_parents_path_is_read() {
    let child = MemoryFile::new();
    vdisk::vhd::create(&child, &options(2 * MIB, child_of(disk_id(1)))).unwrap();
    let locator = |number: u64, code: &[u8; 4], text: &[u8]| {
        let place = 60_000 + number * 512;
        child.write_at(place, text).unwrap();
        let mut entry = [0; 24];
        entry[..4].copy_from_slice(code);
        entry[4..8].copy_from_slice(&512_u32.to_be_bytes());
        entry[8..12].copy_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        entry[16..24].copy_from_slice(&place.to_be_bytes());
        child.write_at(512 + 576 + number * 24, &entry).unwrap();
    };
    locator(3, b"MacX", b"file://./a%20parent.vhd");
    locator(4, b"Wi2r", b".\\old.vhd\0");
    locator(5, b"Wi2k", b"C:\\old\\old.vhd");
    locator(6, b"What", b"no path at all");
    let mut footer = [0; 512];
    child.read_at(0, &mut footer).unwrap();
    child.write_at(128 * 512, &footer).unwrap();
    reseal(&child);
    let reader = VhdReader::open(Arc::new(child), None).unwrap();
    let paths = &reader.parent_identity().unwrap().paths;
    for path in [".\\old.vhd", "C:\\old\\old.vhd", "./a parent.vhd"] {
        assert!(paths.iter().any(|found| found == path), "{path}: {paths:?}");
    }
    assert!(
        !paths.iter().any(|path| path.contains("no path")),
        "{paths:?}"
    );
}
