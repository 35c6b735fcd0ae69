//! A VHDX that is made up over a disk: every reader takes it for one, and it has the bytes of the disk.

use std::sync::Arc;

use block::{Extent, ExtentKind, ReadAt, WriteAt};
use proptest::prelude::*;
use vdisk::ErrorKind;
use vdisk::memory::MemoryFile;
use vdisk::vhdx::{Allocation, CreateOptions, IdSource, VhdxReader, VhdxView, check};

use crate::vhdx_model::{assert_same, export, has_qemu_img, options, pattern, qemu_agrees};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

fn view_of(disk: &Arc<MemoryFile>, options: &CreateOptions) -> vdisk::Result<VhdxView> {
    let source: Arc<dyn ReadAt> = disk.clone();
    VhdxView::open(source, options, &mut |at, limit| disk.extent_at(at, limit))
}

fn whole(file: &dyn ReadAt) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.size_bytes()).expect("small")];
    file.read_at(0, &mut bytes).expect("readable");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn readers_take_it_for_a_vhdx_with_the_bytes_of_the_disk(
        sectors in 1..12_000_u64,
        sector in prop_oneof![Just(512_u32), Just(4096)],
        block in prop_oneof![Just(1_u32 << 20), Just(2 << 20), Just(8 << 20)],
        writes in prop::collection::vec((any::<u64>(), 1..300_000_u64), 0..6),
        reads in prop::collection::vec((any::<u64>(), any::<u64>()), 8),
    ) {
        let size = sectors * u64::from(sector);
        let disk = Arc::new(MemoryFile::with_size(size));
        for (at, length) in writes {
            let at = at % size;
            let length = length.min(size - at);
            disk.write_at(at, &pattern(at, length, 3)).expect("memory");
        }
        let mut wanted = options(size);
        wanted.logical_sector_bytes = sector;
        wanted.block_bytes = Some(block);
        let file: Arc<dyn ReadAt> = Arc::new(view_of(&disk, &wanted).expect("a view"));
        let report = check(&file).expect("readable");
        prop_assert!(report.findings.is_empty(), "{report:?}");
        let reader = VhdxReader::open(file.clone(), None).expect("a VHDX");
        prop_assert_eq!(reader.info().logical_sector_bytes, sector);
        assert_same(&reader, disk.as_ref(), "a view");

        // In pieces as in one go, and what is called a hole is one.
        let bytes = whole(file.as_ref());
        for (at, length) in reads {
            let at = at % file.size_bytes();
            let length = (length % (file.size_bytes() - at)).min(3 * MIB);
            let (from, to) = (usize::try_from(at).expect("small"), usize::try_from(at + length).expect("small"));
            let mut piece = vec![0xAA; to - from];
            file.read_at(at, &mut piece).expect("readable");
            prop_assert!(piece == bytes[from..to], "{} bytes at {}", length, at);
        }
        let mut at = 0;
        while at < file.size_bytes() {
            let extent = file.extent_at(at, u64::MAX).expect("told");
            prop_assert!(extent.offset == at && extent.length_bytes > 0 && extent.end() <= file.size_bytes());
            if extent.kind != ExtentKind::Data {
                let (from, to) = (usize::try_from(at).expect("small"), usize::try_from(extent.end()).expect("small"));
                prop_assert!(bytes[from..to].iter().all(|byte| *byte == 0), "at {}", at);
            }
            at = extent.end();
        }
    }
}

#[test]
fn qemu_takes_it_for_a_sound_vhdx() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    for (number, size) in [61 * MIB + 512, 300 * MIB].into_iter().enumerate() {
        let disk = Arc::new(MemoryFile::with_size(size));
        for at in [0, 20 * MIB + 5, size - 700] {
            disk.write_at(at, &pattern(at, 700, 3)).expect("memory");
        }
        let view = view_of(&disk, &options(size)).expect("a view");
        assert_eq!(view.block_count(), 3);
        let image = dir.path().join(format!("{number}.vhdx"));
        export(&view, &image);
        qemu_agrees(&image, disk.as_ref());
    }
}

#[test]
fn the_same_disk_and_ids_give_the_same_file() {
    let disk = Arc::new(MemoryFile::with_size(9 * MIB));
    disk.write_at(MIB, &pattern(1, 5000, 3)).expect("memory");
    let made = || {
        let mut wanted = options(9 * MIB);
        wanted.ids = IdSource::seeded(4);
        whole(&view_of(&disk, &wanted).expect("a view"))
    };
    assert!(made() == made());
}

#[test]
fn a_disk_of_64_tib_is_laid_out_by_what_is_told_about_it() {
    let disk = Arc::new(MemoryFile::with_size(64 * TIB));
    let places = [0, 17 * TIB + 3, 64 * TIB - 4096];
    for at in places {
        disk.write_at(at, &pattern(at, 4096, 3)).expect("memory");
    }
    let mut asked = 0;
    let source: Arc<dyn ReadAt> = disk.clone();
    let mut extents = |at: u64, limit: u64| -> block::Result<Extent> {
        asked += 1;
        // Coarse, as of whole leaves.
        let next = places
            .iter()
            .map(|place| place / (8 * MIB) * (8 * MIB))
            .find(|place| *place >= at);
        let (kind, end) = match next {
            Some(next) if next == at => (ExtentKind::Data, at + 8 * MIB),
            Some(next) => (ExtentKind::Unallocated, next),
            None => (ExtentKind::Unallocated, u64::MAX),
        };
        let length_bytes = (end - at).min(limit);
        Ok(Extent {
            offset: at,
            length_bytes,
            kind,
        })
    };
    let view = VhdxView::open(source, &options(64 * TIB), &mut extents).expect("a view");
    assert!(asked < 10 && view.block_count() == 3, "{asked}");
    assert_eq!(view.data_bytes(), 24 * MIB);
    let file: Arc<dyn ReadAt> = Arc::new(view);
    let reader = VhdxReader::open(file, None).expect("a VHDX");
    for at in places {
        let mut bytes = vec![0; 4096];
        reader.read_at(at, &mut bytes).expect("readable");
        assert!(bytes == pattern(at, 4096, 3));
    }
}

#[test]
fn what_no_vhdx_can_hold_is_refused() {
    for (size, change) in [
        (1000, None),
        (65 * TIB, None),
        (MIB, Some(Allocation::Fixed)),
    ] {
        let disk = Arc::new(MemoryFile::with_size(size));
        let mut wanted = options(size);
        if let Some(allocation) = change {
            wanted.allocation = allocation;
        }
        let refused = view_of(&disk, &wanted).err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::Invalid), "{size}");
    }
    let disk = Arc::new(MemoryFile::with_size(MIB));
    let other = view_of(&disk, &options(2 * MIB)).err();
    assert_eq!(other.map(|error| error.kind()), Some(ErrorKind::Invalid));
}

#[test]
fn reads_behind_the_end_and_of_a_disk_that_fails_are_errors() {
    let disk = Arc::new(MemoryFile::with_size(9 * MIB));
    disk.write_at(0, &pattern(1, 5000, 3)).expect("memory");
    let view = view_of(&disk, &options(9 * MIB)).expect("a view");
    let size = view.size_bytes();
    for (at, length) in [(size, 1), (size - 1, 2), (u64::MAX, 1)] {
        let error = view.read_at(at, &mut vec![0; length]).expect_err("behind");
        assert_eq!(error.kind(), block::ErrorKind::OutOfRange);
    }
    assert!(view.extent_at(size, 1).is_err());
    // Telling nothing is no way to end a loop.
    let source: Arc<dyn ReadAt> = disk.clone();
    let mut silent = |offset, _| {
        Ok(Extent {
            offset,
            length_bytes: 0,
            kind: ExtentKind::Data,
        })
    };
    assert!(VhdxView::open(source, &options(9 * MIB), &mut silent).is_err());
}
