//! Checking, repairing and merging.

use std::sync::Arc;

use block::{ReadAt, WriteAt};
use vdisk::convert::NoProgress;
use vdisk::memory::{CrashFile, Loss, MemoryFile};
use vdisk::merge::copy_own;
use vdisk::vhdx::{
    Allocation, IdSource, ParentLocator, VhdxBuilder, VhdxReader, VhdxWriter, WriteId, check,
    create, relink, repair,
};
use vdisk::{CheckReport, ErrorKind, RepairMode, Severity};

use crate::corpora::{self, Trust};
use crate::vhdx_model::{
    Step, apply, assert_same, export, import, options, pattern, readable, writable, write, zero,
};

const MIB: u64 = 1 << 20;
const BAT: u64 = 3 * MIB;

fn written(size: u64) -> (Arc<MemoryFile>, MemoryFile) {
    let file = Arc::new(MemoryFile::new());
    let mut options = options(size);
    options.block_bytes = Some(1 << 20);
    create(&writable(&file), &options).expect("create");
    let wanted = MemoryFile::with_size(size);
    let writer = VhdxWriter::open(writable(&file), None, IdSource::seeded(1)).expect("open");
    for block in [0, 1, 4] {
        let step = write(block * MIB, MIB, 5);
        apply(&writer, &step).expect("write");
        apply(&wanted, &step).expect("write");
    }
    writer.finish().expect("finish");
    (file, wanted)
}

fn checked(file: &Arc<MemoryFile>) -> CheckReport {
    check(&readable(file)).expect("check")
}

fn says(report: &CheckReport, severity: Severity, text: &str) {
    assert!(
        report
            .findings
            .iter()
            .any(|found| found.severity == severity && found.text.contains(text)),
        "no {severity:?} {text:?} in {report:?}"
    );
}

fn set_entry(file: &MemoryFile, index: u64, raw: u64) {
    file.write_at(BAT + index * 8, &raw.to_le_bytes())
        .expect("write");
}

fn entry(file: &MemoryFile, index: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_at(BAT + index * 8, &mut bytes).expect("read");
    u64::from_le_bytes(bytes)
}

#[test]
fn images_of_windows_and_qemu_are_found_clean() {
    let Some(root) = corpora::root() else { return };
    for image in corpora::manifest(&root) {
        if image.group != "vhdx" || image.kind != "disk" {
            continue;
        }
        let file: Arc<dyn ReadAt> = Arc::new(corpora::load(&root, &image.path));
        let report = check(&file).expect("check");
        if image.format.contains("dirty log") {
            assert_eq!(
                report.worst,
                Some(Severity::Repairable),
                "{}: {report:?}",
                image.path
            );
            says(&report, Severity::Repairable, "wait to be replayed");
        } else {
            assert!(report.is_clean(), "{}: {report:?}", image.path);
        }
    }
}

#[test]
fn generated_damage_is_found() {
    let Some(root) = corpora::root() else { return };
    for (name, severity) in [
        ("s05-hdr1bad.vhdx", Severity::Repairable),
        ("s06-hdrboth.vhdx", Severity::Damage),
        ("s08-reg1bad.vhdx", Severity::Repairable),
        ("s10-reqregion.vhdx", Severity::Damage),
        ("s13-incomplete.vhdx", Severity::Damage),
        ("s19-overlap.vhdx", Severity::Damage),
        ("s20-beyond.vhdx", Severity::Damage),
    ] {
        let file: Arc<dyn ReadAt> = Arc::new(corpora::load(&root, &format!("synth/{name}")));
        let report = check(&file).expect("check");
        assert_eq!(report.worst, Some(severity), "{name}: {report:?}");
    }
}

#[test]
fn waiting_logs_of_others_are_replayed_in_place() {
    let Some(root) = corpora::root() else { return };
    let path = "vhdx/discutils-log-replay.vhdx.gz";
    let image = corpora::image(&root, path);
    let file = Arc::new(corpora::load(&root, path));
    let report =
        repair(&writable(&file), RepairMode::Lossless, &IdSource::seeded(1)).expect("repair");
    // Five entries join on, but the tail of the newest is the fourth: the first three are in place already.
    assert_eq!(report.replayed_entries, 2);
    assert!(report.remaining.is_clean(), "{report:?}");
    let disk = VhdxReader::open(readable(&file), None).expect("opens");
    assert!(!disk.info().has_pending_log);
    assert_eq!(
        Some(corpora::sha256(&disk, Trust::Extents)),
        image.raw_sha256
    );

    let path = "vhdx/qemu-iotest-dirtylog-10G-4M.vhdx.bz2";
    let file = Arc::new(corpora::load(&root, path));
    let before = VhdxReader::open(readable(&file), None).expect("opens");
    let snapshot = Arc::new(file.as_ref().clone());
    let writer = VhdxWriter::open(writable(&file), None, IdSource::seeded(1)).expect("writer");
    let id = writer.data_write_id();
    writer.finish().expect("finish");
    let after = VhdxReader::open(readable(&file), None).expect("opens");
    assert!(before.info().has_pending_log && !after.info().has_pending_log);
    assert_eq!(
        after.data_write_id(),
        id,
        "a replay does not change what the disk holds"
    );
    let replayed_in_memory = VhdxReader::open(readable(&snapshot), None).expect("opens");
    assert_same(&after, &replayed_in_memory, "in place and in memory");
}

#[test]
fn lost_copies_are_written_anew_without_touching_the_disk() {
    for (offset, length) in [
        (64 << 10, 4096),
        (128 << 10, 4096),
        (192 << 10, 65536),
        (256 << 10, 65536),
    ] {
        let (file, wanted) = written(8 * MIB);
        assert!(checked(&file).is_clean());
        file.write_at(offset, &vec![0xEE; length]).expect("damage");
        let report = checked(&file);
        assert_eq!(report.worst, Some(Severity::Repairable), "{report:?}");
        let before = VhdxReader::open(readable(&file), None)
            .expect("opens")
            .data_write_id();
        let done =
            repair(&writable(&file), RepairMode::Lossless, &IdSource::seeded(1)).expect("repair");
        assert_eq!(done.rewritten_structures, 1);
        assert!(done.remaining.is_clean(), "{done:?}");
        let reader = VhdxReader::open(readable(&file), None).expect("opens");
        assert_eq!(reader.data_write_id(), before);
        assert_same(&reader, &wanted, "repaired");
    }
}

type Damage = fn(&MemoryFile);

#[test]
fn wrong_entries_are_dropped_only_when_loss_is_allowed() {
    let damages: [(&str, Damage); 4] = [
        ("the file at", |file| set_entry(file, 1, (5000 << 20) | 6)),
        ("overlaps", |file| set_entry(file, 1, entry(file, 0))),
        ("state 5", |file| {
            set_entry(file, 1, entry(file, 1) & !7 | 5)
        }),
        ("reserved bits", |file| {
            set_entry(file, 1, entry(file, 1) | 0x40)
        }),
    ];
    for (text, damage) in damages {
        let (file, wanted) = written(8 * MIB);
        damage(&file);
        says(&checked(&file), Severity::Damage, text);
        let fault = VhdxReader::open(readable(&file), None).expect_err("refused");
        assert_eq!(fault.kind(), ErrorKind::Corrupt);
        let snapshot = file.as_ref().clone();
        let kept =
            repair(&writable(&file), RepairMode::Lossless, &IdSource::seeded(1)).expect("repair");
        assert_eq!(kept.dropped_blocks, 0);
        assert!(!kept.remaining.is_clean());
        assert_same(file.as_ref(), &snapshot, "nothing changed");

        let lost =
            repair(&writable(&file), RepairMode::DataLoss, &IdSource::seeded(1)).expect("repair");
        assert_eq!(lost.dropped_blocks, 1);
        assert!(lost.remaining.is_clean(), "{lost:?}");
        wanted.zero_range(MIB, MIB).expect("model");
        let reader = VhdxReader::open(readable(&file), None).expect("opens");
        assert_same(
            &reader,
            &wanted,
            "the block reads as zeros, all else as before",
        );
    }
}

#[test]
fn dropping_a_bitmap_drops_what_needs_it() {
    let (base, _) = written(8 * MIB);
    let parent = Arc::new(VhdxReader::open(readable(&base), None).expect("parent"));
    let file = child_of(&parent, 8 * MIB, 2 << 20);
    let writer = VhdxWriter::open(writable(&file), Some(parent.clone()), IdSource::seeded(4))
        .expect("writer");
    writer.write_at(4096, &[9; 512]).expect("partial");
    writer
        .write_at(4 * MIB, &pattern(4 * MIB, 2 * MIB, 3))
        .expect("whole");
    writer.finish().expect("finish");
    // Chunk ratio of 2 MiB blocks and 512-byte sectors is 2048.
    set_entry(&file, 2048, (7000 << 20) | 6);
    let done =
        repair(&writable(&file), RepairMode::DataLoss, &IdSource::seeded(1)).expect("repair");
    assert_eq!((done.dropped_bitmaps, done.dropped_blocks), (1, 1));
    assert!(done.remaining.is_clean(), "{done:?}");
    let reader = VhdxReader::open(readable(&file), Some(parent)).expect("opens");
    let mut bytes = vec![1; 2 << 20];
    reader.read_at(0, &mut bytes).expect("read");
    assert!(
        bytes.iter().all(|byte| *byte == 0),
        "zeros, not the parent's older bytes"
    );
    reader.read_at(4 * MIB, &mut bytes).expect("read");
    assert!(bytes == pattern(4 * MIB, 2 * MIB, 3));
}

#[test]
fn an_unfinished_image_is_found_and_not_repaired() {
    let file = Arc::new(MemoryFile::new());
    let builder = VhdxBuilder::create(writable(&file), &options(8 * MIB)).expect("create");
    builder.write_at(0, &[1; 4096]).expect("write");
    builder.flush().expect("flush");
    drop(builder);
    says(&checked(&file), Severity::Damage, "interrupted");
    let done =
        repair(&writable(&file), RepairMode::DataLoss, &IdSource::seeded(1)).expect("repair");
    says(&done.remaining, Severity::Damage, "interrupted");
}

fn child_of(parent: &VhdxReader, size: u64, block: u32) -> Arc<MemoryFile> {
    let mut options = options(size);
    options.block_bytes = Some(block);
    options.allocation = Allocation::Differencing(ParentLocator::new(parent.data_write_id()));
    let file = Arc::new(MemoryFile::new());
    create(&writable(&file), &options).expect("create");
    file
}

/// A parent, a child on it, and what the child reads as.
fn pair() -> (Arc<MemoryFile>, Arc<MemoryFile>, MemoryFile) {
    pair_of(&[
        write(100, 9000, 50),
        write(2 * MIB, 2 * MIB, 51),
        zero(4 * MIB, 2 * MIB),
        zero(MIB + 512, 5000),
        write(9 * MIB, 512, 52),
    ])
}

fn pair_of(steps: &[Step]) -> (Arc<MemoryFile>, Arc<MemoryFile>, MemoryFile) {
    let (base, wanted) = written(9 * MIB + 512);
    let parent = Arc::new(VhdxReader::open(readable(&base), None).expect("parent"));
    let file = child_of(&parent, 9 * MIB + 512, 2 << 20);
    let writer =
        VhdxWriter::open(writable(&file), Some(parent), IdSource::seeded(4)).expect("writer");
    for step in steps {
        apply(&writer, step).expect("step");
        apply(&wanted, step).expect("step");
    }
    writer.finish().expect("finish");
    (base, file, wanted)
}

#[test]
fn a_merge_that_was_cut_goes_on_to_the_same_end() {
    let (base, file, wanted) = pair();
    let child = VhdxReader::open(readable(&file), None).expect("child");
    let mut cut = 0;
    loop {
        let crash = Arc::new(CrashFile::new(&base, Some(cut)));
        let parent = VhdxWriter::open(
            Arc::clone(&crash) as Arc<dyn WriteAt>,
            None,
            IdSource::seeded(6),
        );
        let done = parent.and_then(|parent| {
            copy_own(&child, &parent, 0, &NoProgress)?;
            parent.finish()
        });
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn { seed: cut }] {
            let left = Arc::new(crash.survivors(loss).expect("survivors"));
            let half: Arc<dyn ReadAt> =
                Arc::new(VhdxReader::open(readable(&left), None).expect("parent opens"));
            let over = VhdxReader::open(readable(&file), Some(half)).expect("child over it");
            assert_same(
                &over,
                &wanted,
                &format!("child over the parent, cut at {cut}, {loss:?}"),
            );
            let parent =
                VhdxWriter::open(writable(&left), None, IdSource::seeded(8)).expect("parent");
            copy_own(&child, &parent, 0, &NoProgress).expect("goes on");
            parent.finish().expect("finish");
            let reader = VhdxReader::open(readable(&left), None).expect("opens");
            assert_same(&reader, &wanted, &format!("merged, cut at {cut}, {loss:?}"));
        }
        if done.is_ok() {
            break;
        }
        cut += 1;
    }
    assert!(cut > 10, "only {cut} cuts");
}

#[test]
fn a_grandchild_is_linked_to_the_parent_that_its_own_was_merged_into() {
    let (base, middle, wanted) = pair();
    let bottom: Arc<dyn ReadAt> = Arc::new(VhdxReader::open(readable(&base), None).expect("base"));
    let view = VhdxReader::open(readable(&middle), Some(bottom)).expect("middle");
    let leaf = child_of(&view, 9 * MIB + 512, 2 << 20);
    let writer = VhdxWriter::open(writable(&leaf), Some(Arc::new(view)), IdSource::seeded(11))
        .expect("leaf");
    for step in [write(3 * MIB, 100_000, 60), zero(0, 4096)] {
        apply(&writer, &step).expect("step");
        apply(&wanted, &step).expect("step");
    }
    writer.finish().expect("finish");
    let leaf_id = VhdxReader::open(readable(&leaf), None)
        .expect("leaf")
        .data_write_id();

    let child = VhdxReader::open(readable(&middle), None).expect("middle");
    let parent = VhdxWriter::open(writable(&base), None, IdSource::seeded(12)).expect("base");
    copy_own(&child, &parent, 0, &NoProgress).expect("merge");
    let new_parent = parent.data_write_id();
    parent.finish().expect("finish");

    let old = child.data_write_id();
    let locator = ParentLocator::new(new_parent).with(
        vdisk::vhdx::RELATIVE_PATH,
        format!(".\\{}.vhdx", "a long name ".repeat(40)),
    );
    let base_view: Arc<dyn ReadAt> =
        Arc::new(VhdxReader::open(readable(&base), None).expect("base"));
    let mut cut = 0;
    loop {
        let crash = Arc::new(CrashFile::new(&leaf, Some(cut)));
        let target = Arc::clone(&crash) as Arc<dyn WriteAt>;
        let done = relink(&target, &locator, &IdSource::seeded(13));
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn { seed: cut }] {
            let left = Arc::new(crash.survivors(loss).expect("survivors"));
            let reader = VhdxReader::open(readable(&left), Some(Arc::clone(&base_view)))
                .unwrap_or_else(|fault| panic!("cut at {cut}, {loss:?}: {fault}"));
            assert_eq!(
                reader.data_write_id(),
                leaf_id,
                "its own children stay valid"
            );
            let found = reader.parent_locator().expect("locator").clone();
            assert!(
                found == locator || (done.is_err() && found.linkages() == [old]),
                "{found:?}"
            );
            assert_same(&reader, &wanted, "leaf over the merged base");
        }
        if done.is_ok() {
            break;
        }
        cut += 1;
    }
    assert!(cut > 5, "only {cut} cuts");
}

#[test]
fn linking_again_and_again_does_not_fill_the_metadata() {
    let (base, child, _) = pair();
    let locator = ParentLocator::new(WriteId(uuid::Uuid::from_u128(9)));
    for round in 0..1200u64 {
        let again = locator
            .clone()
            .with("round", format!("{round}").repeat(200));
        relink(&writable(&child), &again, &IdSource::seeded(round)).expect("relink");
        let reader = VhdxReader::open(readable(&child), None).expect("opens");
        assert_eq!(reader.parent_locator(), Some(&again));
    }
    assert!(checked(&child).is_clean());
    let fault = relink(&writable(&base), &locator, &IdSource::seeded(1)).expect_err("no parent");
    assert_eq!(fault.kind(), ErrorKind::Invalid);
}

/// libvhdi as a second reader of what is written into children. Where it is missing, CI fails and others are told.
#[test]
fn libvhdi_reads_our_child_over_our_parent() {
    let python = |script: &str, arguments: &[&str]| {
        std::process::Command::new("python3")
            .args(["-c", script])
            .args(arguments)
            .output()
    };
    if !python("import pyvhdi", &[]).is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "python3 has no pyvhdi");
        println!("SKIP: python3 has no pyvhdi (pip install libvhdi-python)");
        return;
    }
    // No whole block of zeros: libvhdi takes that state for the parent's, MS-VHDX 2.5.1.1 says zeros.
    let (base, file, wanted) = pair_of(&[
        write(100, 9000, 50),
        write(2 * MIB, 2 * MIB, 51),
        Step::WriteZeros {
            offset: 4 * MIB,
            length: 70_000,
        },
        zero(MIB + 512, 5000),
        write(8 * MIB + 4096 * 7, 4096 * 5, 53),
    ]);
    let place = tempfile::tempdir().expect("directory");
    let path = |name: &str| place.path().join(name).to_str().expect("path").to_owned();
    export(base.as_ref(), path("base.vhdx").as_ref());
    export(file.as_ref(), path("child.avhdx").as_ref());
    let script = "import sys,pyvhdi\n\
        p=pyvhdi.file();p.open(sys.argv[1])\n\
        c=pyvhdi.file();c.open(sys.argv[2]);c.set_parent(p)\n\
        open(sys.argv[3],'wb').write(c.read_buffer_at_offset(c.get_media_size(),0))\n\
        print(c.get_parent_identifier(),c.get_media_size())";
    let output = python(
        script,
        &[&path("base.vhdx"), &path("child.avhdx"), &path("out.raw")],
    )
    .expect("python3 runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_same(
        import(path("out.raw").as_ref()).as_ref(),
        &wanted,
        "libvhdi",
    );
}
