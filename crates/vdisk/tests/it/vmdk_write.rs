//! Writing VMDK: both layouts against QEMU and a plain vector; hostile mutations of every layout.

use std::num::NonZeroUsize;
use std::sync::Arc;

use block::{ReadAt, WriteAt};
use proptest::prelude::*;
use vdisk::file::HostFile;
use vdisk::memory::MemoryFile;
use vdisk::vmdk::{
    ContentId, NoExtents, SparseBuilder, StreamOptimizedWriter, VmdkOptions, VmdkReader,
};
use vdisk::{ErrorKind, Subformat};

use crate::qcow2_tool::{Numbers, assert_reads_as, contents, has_qemu, open, qemu_img, raw_of};

fn options(size: usize) -> VmdkOptions {
    VmdkOptions {
        size_bytes: size as u64,
        cid: ContentId(0x1234_abcd),
        name: "image.vmdk".to_owned(),
    }
}

fn threads(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).expect("not zero")
}

#[test]
fn qemu_reads_a_stream_optimized_image_as_it_was_written() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    for (seed, size) in [(1, 512usize), (2, 65_536), (3, (100 << 20) + 512 * 11)] {
        let disk = contents(seed, size);
        let file = Arc::new(HostFile::create_new(&at.join("image.vmdk")).expect("create"));
        let writer =
            StreamOptimizedWriter::create(file, &options(size), threads(3)).expect("create");
        for (number, piece) in disk.chunks(300_000).enumerate() {
            writer
                .write_at(number as u64 * 300_000, piece)
                .expect("write");
        }
        assert_eq!(writer.position(), size as u64);
        writer.finish().expect("finish");
        assert!(raw_of(at, "image.vmdk", "vmdk") == disk, "seed {seed}");
        let check = qemu_img(at, "check -f vmdk image.vmdk");
        assert!(check.contains("No errors"), "{check}");
        let info = qemu_img(at, "info image.vmdk");
        assert!(
            info.contains("streamOptimized") && info.contains("cid: 305441741"),
            "{info}"
        );
        let image = VmdkReader::open(open(&at.join("image.vmdk")), &NoExtents, None).expect("open");
        assert_eq!(image.info().subformat, Subformat::StreamOptimized);
        assert_eq!(image.cid(), Some(ContentId(0x1234_abcd)));
        assert_reads_as(&image, &disk, "stream");
        std::fs::remove_file(at.join("image.vmdk")).expect("remove");
    }
}

#[test]
fn the_stream_does_not_depend_on_the_number_of_threads_or_the_size_of_writes() {
    let size = 20 << 20;
    let disk = contents(4, size);
    let mut streams = Vec::new();
    for (count, step) in [(1, size), (2, 1 << 20), (7, 12_345)] {
        let file = Arc::new(MemoryFile::new());
        let writer = StreamOptimizedWriter::create(file.clone(), &options(size), threads(count))
            .expect("create");
        for (number, piece) in disk.chunks(step).enumerate() {
            writer
                .write_at((number * step) as u64, piece)
                .expect("write");
        }
        writer.finish().expect("finish");
        let mut stream = vec![0; file.size_bytes() as usize];
        file.read_at(0, &mut stream).expect("read");
        streams.push(stream);
    }
    assert!(streams[0] == streams[1] && streams[0] == streams[2]);
}

#[test]
fn a_stream_goes_forwards_only_and_is_incomplete_until_it_is_finished() {
    let file = Arc::new(MemoryFile::new());
    let writer = StreamOptimizedWriter::create(file.clone(), &options(10 << 20), threads(1))
        .expect("create");
    writer.write_at(1 << 20, &[1; 6 << 20]).expect("write");
    let error = writer.write_at(0, &[1]).expect_err("backwards");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("disk order"), "{error}");
    assert_eq!(
        writer.zero_range(5, 1).expect_err("backwards").kind(),
        ErrorKind::Invalid
    );
    assert_eq!(
        writer.write_at(10 << 20, &[1]).expect_err("behind").kind(),
        ErrorKind::OutOfRange
    );
    writer.flush().expect("flush");
    let error = VmdkReader::open(file.clone(), &NoExtents, None)
        .err()
        .expect("not finished");
    assert_eq!(error.kind(), ErrorKind::Incomplete);
    writer
        .write_at(8 << 20, &[2; 3])
        .expect("a refused write does no harm");
    writer.finish().expect("finish");
    let mut expected = vec![0; 10 << 20];
    expected[1 << 20..7 << 20].fill(1);
    expected[8 << 20..(8 << 20) + 3].fill(2);
    assert_reads_as(
        &VmdkReader::open(file, &NoExtents, None).expect("open"),
        &expected,
        "stream",
    );
}

#[test]
fn qemu_reads_a_sparse_image_that_was_built_in_any_order() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    for (seed, size) in [(11, 512usize), (12, (70 << 20) + 512 * 3)] {
        let disk = contents(seed, size);
        let file = Arc::new(HostFile::create_new(&at.join("image.vmdk")).expect("create"));
        let builder = SparseBuilder::create(file, &options(size)).expect("create");
        std::thread::scope(|scope| {
            for thread in 0..3usize {
                let (builder, disk) = (&builder, &disk);
                scope.spawn(move || {
                    let pieces: Vec<_> = disk.chunks(200_000).enumerate().collect();
                    for (number, piece) in pieces
                        .iter()
                        .rev()
                        .filter(|(number, _)| number % 3 == thread)
                    {
                        builder
                            .write_at(*number as u64 * 200_000, piece)
                            .expect("write");
                    }
                });
            }
        });
        assert_reads_as(&builder, &disk, "before finish");
        assert!(VmdkReader::open(open(&at.join("image.vmdk")), &NoExtents, None).is_err());
        builder.finish().expect("finish");
        assert!(raw_of(at, "image.vmdk", "vmdk") == disk, "seed {seed}");
        let check = qemu_img(at, "check -f vmdk image.vmdk");
        assert!(check.contains("No errors"), "{check}");
        let image = VmdkReader::open(open(&at.join("image.vmdk")), &NoExtents, None).expect("open");
        assert_reads_as(&image, &disk, "sparse");
        std::fs::remove_file(at.join("image.vmdk")).expect("remove");
    }
}

#[test]
fn options_that_no_vmdk_can_have_are_refused() {
    for bad in [
        VmdkOptions {
            size_bytes: 0,
            ..options(512)
        },
        VmdkOptions {
            size_bytes: 513,
            ..options(512)
        },
        VmdkOptions {
            size_bytes: 3 << 40,
            ..options(512)
        },
        VmdkOptions {
            cid: ContentId(u32::MAX),
            ..options(512)
        },
        VmdkOptions {
            name: "a\"b".to_owned(),
            ..options(512)
        },
        VmdkOptions {
            name: String::new(),
            ..options(512)
        },
    ] {
        let error = SparseBuilder::create(Arc::new(MemoryFile::new()), &bad)
            .err()
            .expect("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{bad:?}");
        let error =
            StreamOptimizedWriter::create(Arc::new(MemoryFile::new()), &bad, threads(1)).err();
        assert_eq!(
            error.expect("refused").kind(),
            ErrorKind::Invalid,
            "{bad:?}"
        );
    }
    let used = Arc::new(MemoryFile::with_size(1));
    let error = SparseBuilder::create(used, &options(512))
        .err()
        .expect("used");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

const MODEL_SIZE: usize = 65_536 * 40 + 512;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_sparse_builder_behaves_as_a_vector(
        steps in proptest::collection::vec((0..MODEL_SIZE, 1..200_000usize, 0..6u8), 1..30),
    ) {
        let file = Arc::new(MemoryFile::new());
        let builder = SparseBuilder::create(file.clone(), &options(MODEL_SIZE)).expect("create");
        let mut model = vec![0; MODEL_SIZE];
        for (at, length, kind) in steps {
            let length = length.min(MODEL_SIZE - at);
            match kind {
                0 => builder.flush().expect("flush"),
                1 => {
                    model[at..at + length].fill(0);
                    builder.zero_range(at as u64, length as u64).expect("zero");
                }
                byte => {
                    model[at..at + length].fill(byte);
                    builder.write_at(at as u64, &vec![byte; length]).expect("write");
                }
            }
        }
        assert_reads_as(&builder, &model, "builder");
        builder.finish().expect("finish");
        assert_reads_as(&VmdkReader::open(file, &NoExtents, None).expect("open"), &model, "finished");
    }

    #[test]
    fn a_stream_behaves_as_a_vector_that_grows(
        steps in proptest::collection::vec((0..300_000usize, 1..900_000usize, 0..4u8), 1..20),
    ) {
        let size = 16 << 20;
        let file = Arc::new(MemoryFile::new());
        let writer = StreamOptimizedWriter::create(file.clone(), &options(size), threads(2)).expect("create");
        let mut model = vec![0; size];
        let mut at = 0;
        for (gap, length, byte) in steps {
            let start = (at + gap).min(size);
            let end = (start + length).min(size);
            if byte == 0 {
                writer.zero_range(start as u64, (end - start) as u64).expect("zero");
            } else {
                model[start..end].fill(byte);
                writer.write_at(start as u64, &model[start..end]).expect("write");
            }
            at = end;
        }
        writer.finish().expect("finish");
        assert_reads_as(&VmdkReader::open(file, &NoExtents, None).expect("open"), &model, "stream");
    }
}

/// Reads a mutated image here and there.
fn exercise(image: &[u8], numbers: &mut Numbers) {
    let opener = |name: &str| -> vdisk::Result<Arc<dyn ReadAt>> {
        assert!(!name.contains(".."), "the name was judged first");
        Ok(Arc::new(MemoryFile::from_bytes(image)))
    };
    let Ok(disk) = VmdkReader::open(Arc::new(MemoryFile::from_bytes(image)), &opener, None) else {
        return;
    };
    let size = disk.size_bytes();
    let mut buffer = vec![0; 150_000];
    for _ in 0..6 {
        let at = numbers.below(size.max(1)) >> (numbers.below(2) * 12);
        let length = usize::try_from(size.saturating_sub(at))
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let _ = disk.read_at(at, &mut buffer[..length]);
        if let Ok(extent) = disk.extent_at(at, u64::MAX) {
            assert!(extent.length_bytes > 0 && extent.end() <= size);
        }
    }
}

#[test]
fn mutations_of_every_layout_never_panic_hang_or_grow() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    std::fs::write(at.join("disk.raw"), contents(21, 300_032)).expect("write");
    let mut images = Vec::new();
    for layout in [
        "monolithicSparse",
        "streamOptimized",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
    ] {
        qemu_img(
            at,
            &format!("convert -f raw -O vmdk -o subformat={layout} disk.raw {layout}.vmdk"),
        );
        images.push((
            layout,
            std::fs::read(at.join(format!("{layout}.vmdk"))).expect("read"),
        ));
    }
    let file = Arc::new(MemoryFile::new());
    let writer =
        StreamOptimizedWriter::create(file.clone(), &options(300_032), threads(1)).expect("create");
    writer.write_at(0, &contents(22, 300_032)).expect("write");
    writer.finish().expect("finish");
    let mut stream = vec![0; file.size_bytes() as usize];
    file.read_at(0, &mut stream).expect("read");
    images.push(("ours", stream));
    for (layout, image) in images {
        let tail = image.len().saturating_sub(3000);
        let hot = [
            0..100.min(image.len()),
            0..900.min(image.len()),
            tail..image.len(),
            0..image.len(),
        ];
        for round in 0..1200u64 {
            let mut numbers = Numbers::new(round.wrapping_add(image.len() as u64) << 8);
            let mut bad = image.clone();
            for _ in 0..1 + numbers.below(4) {
                let range = hot[numbers.below(4) as usize].clone();
                let place = range.start + numbers.below(range.len() as u64) as usize;
                let word =
                    [0, 1, u64::MAX, 1 << 31, 0x1ff, numbers.next()][numbers.below(6) as usize];
                let length = ([1, 1, 2, 4, 8][numbers.below(5) as usize]).min(bad.len() - place);
                bad[place..place + length].copy_from_slice(&word.to_le_bytes()[..length]);
            }
            if numbers.below(10) == 0 {
                bad.truncate(numbers.below(bad.len() as u64) as usize);
            }
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                exercise(&bad, &mut numbers);
            }));
            assert!(outcome.is_ok(), "{layout}, round {round}");
        }
    }
}

/// An ESX redo log made by hand: 1 MiB, grains of 512 bytes, one table.
pub fn cowd() -> Vec<u8> {
    let mut image = vec![0u8; 512 * 64];
    image[..4].copy_from_slice(b"COWD");
    for (at, value) in [(4, 1u32), (8, 3), (12, 2048), (16, 1), (20, 4), (24, 1)] {
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    image[4 * 512..4 * 512 + 4].copy_from_slice(&8u32.to_le_bytes());
    image[8 * 512 + 4 * 5..8 * 512 + 4 * 6].copy_from_slice(&50u32.to_le_bytes());
    image[50 * 512..51 * 512].fill(0xcd);
    image
}

/// A seSparse extent made by hand: 1 MiB, grains of 4 KiB, one table.
fn sesparse() -> Vec<u8> {
    let mut image = vec![0u8; 512 * 256];
    let words = [
        (0usize, 0xcafe_babeu64),
        (8, 0x2_0000_0001),
        (16, 2048),
        (24, 8),
        (32, 64),
        (80, 1),
        (88, 1),
        (128, 2),
        (136, 1),
        (144, 8),
        (152, 64),
        (192, 80),
        (200, 64),
        (512, 0xcafe_cafe),
        (1024, 0x1000_0000_0000_0000),
    ];
    for (at, value) in words {
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    // Grain 3 lies at grain 2 of the data, grains 4 and 5 were zeroed and unmapped.
    for (slot, entry) in [
        (3usize, 0x3002_0000_0000_0000u64),
        (4, 0x2000_0000_0000_0000),
        (5, 0x1000_0000_0000_0000),
    ] {
        let at = 8 * 512 + slot * 8;
        image[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    }
    let at = (80 + 2 * 8) * 512;
    image[at..at + 4096].fill(0xee);
    image
}

#[test]
fn esx_extents_are_read() {
    let mut expected = vec![0; 1 << 20];
    expected[5 * 512..6 * 512].fill(0xcd);
    let image = VmdkReader::open(Arc::new(MemoryFile::from_bytes(&cowd())), &NoExtents, None)
        .expect("COWD");
    assert_reads_as(&image, &expected, "COWD");
    let mut expected = vec![0; 1 << 20];
    expected[3 * 4096..4 * 4096].fill(0xee);
    let bytes = sesparse();
    let image = VmdkReader::open(Arc::new(MemoryFile::from_bytes(&bytes)), &NoExtents, None)
        .expect("seSparse");
    assert_reads_as(&image, &expected, "seSparse");
    assert_eq!(
        image.extent_at(4 * 4096, 1 << 20).expect("extent").kind,
        block::ExtentKind::Zero
    );

    let mut dirty = bytes;
    dirty[512 + 24] = 1;
    let error = VmdkReader::open(Arc::new(MemoryFile::from_bytes(&dirty)), &NoExtents, None).err();
    assert_eq!(error.expect("refused").kind(), ErrorKind::Unsupported);
    for image in [cowd(), sesparse()] {
        for round in 0..1500 {
            let mut numbers = Numbers::new(round);
            let mut bad = image.clone();
            let limit = [210, 5000][numbers.below(2) as usize];
            let place = numbers.below(limit) as usize;
            bad[place] = numbers.next() as u8;
            exercise(&bad, &mut numbers);
        }
    }
}
