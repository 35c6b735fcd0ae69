//! Making, building and changing VHDX images, against a model disk and against qemu-img.

use std::sync::Arc;

use block::{ExtentKind, ReadAt, WriteAt};
use proptest::prelude::*;
use vdisk::memory::MemoryFile;
use vdisk::vhdx::{
    Allocation, CreateOptions, IdSource, ParentLocator, RELATIVE_PATH, VhdxBuilder, VhdxReader,
    VhdxWriter, create,
};
use vdisk::{ErrorKind, Subformat};

use crate::vhdx_model::{
    Step, apply, assert_same, export, has_qemu_img, import, options, pattern, qemu_agrees,
    qemu_img, readable, writable, write, zero,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A kind of image.
#[derive(Debug, Clone)]
struct Shape {
    size: u64,
    block: u32,
    sector: u32,
    subformat: Subformat,
}

impl Shape {
    fn options(&self) -> CreateOptions {
        let mut options = options(self.size);
        options.block_bytes = Some(self.block);
        options.logical_sector_bytes = self.sector;
        if self.subformat == Subformat::Fixed {
            options.allocation = Allocation::Fixed;
        }
        options
    }
}

fn block_sizes() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1 << 20), Just(2 << 20), Just(32 << 20)]
}

/// Sizes around a few blocks, and such that a second and third chunk exist.
fn shapes() -> impl Strategy<Value = Shape> {
    let small = (1u64..40, 0u64..256).prop_map(|(mib, sectors)| mib * MIB + sectors * 4096);
    let large = (0u64..8, 0u64..3).prop_map(|(gib, sectors)| (5 + gib) * GIB + sectors * 4096);
    let standalone = (
        prop_oneof![3 => small, 1 => large],
        block_sizes(),
        prop_oneof![Just(512u32), Just(4096)],
    );
    standalone.prop_map(|(size, block, sector)| Shape {
        size,
        block,
        sector,
        subformat: Subformat::Dynamic,
    })
}

fn fixed_shapes() -> impl Strategy<Value = Shape> {
    (
        (1u64..12),
        (0u64..256),
        prop_oneof![Just(512u32), Just(4096)],
    )
        .prop_map(|(mib, sectors, sector)| Shape {
            size: mib * MIB + sectors * 4096,
            block: 2 << 20,
            sector,
            subformat: Subformat::Fixed,
        })
}

/// A range of the disk, more often than not near a mebibyte, a chunk border or the end.
fn ranges(size: u64, longest: u64) -> impl Strategy<Value = (u64, u64)> {
    (0u8..4, any::<u64>(), 1..longest, any::<bool>()).prop_map(
        move |(how, pick, length, aligned)| {
            let near = match how {
                0 => pick % size,
                1 => (pick % size) / MIB * MIB,
                2 => ((pick % size) / (4 * GIB) * (4 * GIB)).saturating_sub(length / 2),
                _ => size.saturating_sub(length),
            };
            let (near, length) = if aligned {
                (near / 4096 * 4096, length.div_ceil(4096) * 4096)
            } else {
                (near, length)
            };
            let near = near.min(size - 1);
            (near, length.min(size - near).max(1))
        },
    )
}

fn steps(size: u64) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (ranges(size, 300_000), any::<u8>())
            .prop_map(|((offset, length), seed)| Step::Write { offset, length, seed }),
        1 => (ranges(size, 5 << 20), any::<u8>())
            .prop_map(|((offset, length), seed)| Step::Write { offset, length, seed }),
        1 => ranges(size, 300_000).prop_map(|(offset, length)| Step::WriteZeros { offset, length }),
        2 => ranges(size, 8 << 20).prop_map(|(offset, length)| Step::Zero { offset, length }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..24)
}

fn model(size: u64) -> MemoryFile {
    MemoryFile::with_size(size)
}

fn check_with_reader(file: &Arc<MemoryFile>, parent: Option<Arc<dyn ReadAt>>, wanted: &dyn ReadAt) {
    let reader = VhdxReader::open(readable(file), parent).expect("reader opens");
    assert_same(&reader, wanted, "reader");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_built_reads_as_the_model(
        (shape, steps) in prop_oneof![3 => shapes().boxed(), 1 => fixed_shapes().boxed()]
            .prop_flat_map(|shape| { let size = shape.size; (Just(shape), steps(size)) })
    ) {
        let file = Arc::new(MemoryFile::new());
        let wanted = model(shape.size);
        let mut builder = VhdxBuilder::create(writable(&file), &shape.options()).expect("create");
        for step in &steps {
            if matches!(step, Step::Reopen) {
                builder.flush().expect("flush");
                drop(builder);
                let fault = VhdxReader::open(readable(&file), None).expect_err("unfinished");
                prop_assert_eq!(fault.kind(), ErrorKind::Incomplete);
                builder = VhdxBuilder::resume(writable(&file)).expect("resume");
            }
            apply(&builder, step).expect("step");
            apply(&wanted, step).expect("step");
        }
        assert_same(&builder, &wanted, "builder");
        builder.finish().expect("finish");
        check_with_reader(&file, None, &wanted);
    }

    #[test]
    fn what_is_written_reads_as_the_model(
        (shape, steps) in prop_oneof![3 => shapes().boxed(), 1 => fixed_shapes().boxed()]
            .prop_flat_map(|shape| { let size = shape.size; (Just(shape), steps(size)) })
    ) {
        let file = Arc::new(MemoryFile::new());
        create(&writable(&file), &shape.options()).expect("create");
        let wanted = model(shape.size);
        run_writer(&file, None, &steps, &wanted);
    }

    #[test]
    fn a_differencing_image_reads_as_the_model(
        (parent, child_block, extra, below, above) in
            (shapes(), block_sizes(), 0u64..3).prop_flat_map(|(parent, block, extra)| {
                let size = parent.size;
                let child = size + extra * 3 * MIB;
                (Just(parent), Just(block), Just(extra), steps(size), steps(child))
            })
    ) {
        let base = Arc::new(MemoryFile::new());
        create(&writable(&base), &parent.options()).expect("create");
        let wanted = model(parent.size);
        run_writer(&base, None, &below, &wanted);
        let reader = Arc::new(VhdxReader::open(readable(&base), None).expect("parent"));

        let size = parent.size + extra * 3 * MIB;
        let mut options = options(size);
        options.block_bytes = Some(child_block);
        options.logical_sector_bytes = parent.sector;
        options.allocation = Allocation::Differencing(
            ParentLocator::new(reader.data_write_id()).with(RELATIVE_PATH, ".\\base.vhdx"),
        );
        let file = Arc::new(MemoryFile::new());
        create(&writable(&file), &options).expect("create child");
        wanted.set_size(size).expect("grow");
        run_writer(&file, Some(reader), &above, &wanted);
    }
}

/// Does the steps through a writer, opening it anew where they say so, and reads the result in every way.
fn run_writer(
    file: &Arc<MemoryFile>,
    parent: Option<Arc<dyn ReadAt>>,
    steps: &[Step],
    wanted: &MemoryFile,
) {
    let open = |seed| {
        VhdxWriter::open(writable(file), parent.clone(), IdSource::seeded(seed)).expect("open")
    };
    let mut writer = open(100);
    for (number, step) in steps.iter().enumerate() {
        if matches!(step, Step::Reopen) {
            // Without finish: the log stays dirty, and a reader must see through it.
            writer.flush().expect("flush");
            drop(writer);
            check_with_reader(file, parent.clone(), wanted);
            writer = open(200 + number as u64);
        }
        apply(&writer, step).expect("step");
        apply(wanted, step).expect("step");
    }
    assert_same(&writer, wanted, "writer");
    writer.finish().expect("finish");
    let reader = VhdxReader::open(readable(file), parent).expect("reader");
    assert!(!reader.info().has_pending_log);
    assert_same(&reader, wanted, "finished");
}

fn make(way: &str, file: &Arc<MemoryFile>, options: &CreateOptions, steps: &[Step]) {
    if way == "builder" {
        let builder = VhdxBuilder::create(writable(file), options).expect("create");
        for step in steps {
            apply(&builder, step).expect("step");
        }
        return builder.finish().expect("finish");
    }
    create(&writable(file), options).expect("create");
    let writer = VhdxWriter::open(writable(file), None, IdSource::seeded(5)).expect("open");
    for step in steps {
        apply(&writer, step).expect("step");
    }
    writer.finish().expect("finish");
}

#[test]
fn qemu_reads_what_is_made() {
    if !has_qemu_img() {
        return;
    }
    let place = tempfile::tempdir().expect("directory");
    let shapes = [
        (Allocation::Dynamic, 40 * MIB + 512, None),
        (Allocation::Dynamic, 4 * GIB + 9 * MIB, Some(1 << 20)),
        (Allocation::Dynamic, 300 * MIB + 4096, Some(256 << 20)),
        (Allocation::Fixed, 7 * MIB, None),
    ];
    for (number, (allocation, size, block)) in shapes.into_iter().enumerate() {
        for way in ["builder", "writer"] {
            // qemu-img reads every byte of a sparse VHDX: the one beyond a chunk is looked at once.
            if size > 4 * GIB && way == "builder" {
                continue;
            }
            let mut options = options(size);
            options.allocation = allocation.clone();
            options.block_bytes = block;
            let file = Arc::new(MemoryFile::new());
            let wanted = model(size);
            let steps = [
                write(0, 70_000, 3),
                write(size - 5000, 5000, 9),
                write(size / 2 / 512 * 512, 3 << 20, 77),
                zero(size / 2 + MIB, MIB),
                Step::Flush,
                write(3 * MIB - 7, 20, 1),
            ];
            make(way, &file, &options, &steps);
            for step in &steps {
                apply(&wanted, step).expect("step");
            }
            let image = place.path().join(format!("{number}-{way}.vhdx"));
            export(file.as_ref(), &image);
            qemu_agrees(&image, &wanted);
        }
    }
}

#[test]
fn what_qemu_makes_is_read_and_changed_right() {
    if !has_qemu_img() {
        return;
    }
    let place = tempfile::tempdir().expect("directory");
    let path = |name: &str| place.path().join(name).to_str().expect("path").to_owned();
    for (subformat, block, size) in [
        ("dynamic", "1M", 4 * GIB + 9 * MIB),
        ("dynamic", "32M", 70 * MIB),
        ("fixed", "8M", 41 * MIB + 512),
    ] {
        let wanted = model(size);
        for (offset, length) in [
            (0, 100_000),
            (2 * MIB, 3 * MIB),
            (size - 6 * MIB - 512, 70_000),
        ] {
            apply(&wanted, &write(offset, length, 5)).expect("step");
        }
        export(&wanted, path("a.raw").as_ref());
        let image = path("a.vhdx");
        let how = format!("subformat={subformat},block_size={block}");
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "vhdx",
            "-o",
            &how,
            &path("a.raw"),
            &image,
        ]);
        let file = import(image.as_ref());
        check_with_reader(&file, None, &wanted);
        let writer = VhdxWriter::open(writable(&file), None, IdSource::seeded(1)).expect("writer");
        let changed = wanted.clone();
        for step in [
            write(size - 9 * MIB + 11, 5 * MIB, 8),
            zero(MIB, 30 * MIB),
            write(20 * MIB, 4096, 2),
        ] {
            apply(&writer, &step).expect("step");
            apply(&changed, &step).expect("step");
        }
        writer.finish().expect("finish");
        check_with_reader(&file, None, &changed);
        export(file.as_ref(), path("b.vhdx").as_ref());
        qemu_agrees(path("b.vhdx").as_ref(), &changed);
    }
}

#[test]
fn the_largest_disk_costs_what_is_in_it() {
    let size = 64 << 40;
    let file = Arc::new(MemoryFile::new());
    let mut options = options(size);
    options.block_bytes = Some(1 << 20);
    let builder = VhdxBuilder::create(writable(&file), &options).expect("create");
    for offset in [0, 33 << 40, size - MIB] {
        builder
            .write_at(offset, &pattern(offset, MIB, 1))
            .expect("write");
    }
    builder.finish().expect("finish");
    assert!(
        file.allocated_bytes() < 5 * MIB,
        "{} bytes",
        file.allocated_bytes()
    );
    let reader = VhdxReader::open(readable(&file), None).expect("opens");
    let mut bytes = vec![0; MIB as usize];
    reader.read_at(33 << 40, &mut bytes).expect("read");
    assert!(bytes == pattern(33 << 40, MIB, 1));
    assert_eq!(
        reader.extent_at(MIB, MIB).expect("extent").kind,
        ExtentKind::Unallocated
    );

    let writer = VhdxWriter::open(writable(&file), None, IdSource::seeded(2)).expect("writer");
    writer.write_at(50 << 40, &[7; 512]).expect("write");
    writer.finish().expect("finish");
    assert!(
        file.allocated_bytes() < 6 * MIB,
        "{} bytes",
        file.allocated_bytes()
    );
}

#[test]
fn many_threads_build_one_disk() {
    let size = 64 * MIB;
    let file = Arc::new(MemoryFile::new());
    let mut options = options(size);
    options.block_bytes = Some(2 << 20);
    let builder = VhdxBuilder::create(writable(&file), &options).expect("create");
    let wanted = model(size);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let builder = &builder;
            scope.spawn(move || {
                for part in (thread..size / 65536).step_by(4) {
                    let offset = part * 65536;
                    builder
                        .write_at(offset, &pattern(offset, 65536, 4))
                        .expect("write");
                }
            });
        }
    });
    wanted.write_at(0, &pattern(0, size, 4)).expect("model");
    builder.finish().expect("finish");
    check_with_reader(&file, None, &wanted);
}

#[test]
fn write_ids_change_with_the_first_write_only() {
    let file = Arc::new(MemoryFile::new());
    create(&writable(&file), &options(8 * MIB)).expect("create");
    let before = VhdxReader::open(readable(&file), None)
        .expect("opens")
        .data_write_id();
    let bytes = file.as_ref().clone();
    let open =
        |seed| VhdxWriter::open(writable(&file), None, IdSource::seeded(seed)).expect("open");
    open(1).finish().expect("finish");
    assert_same(
        file.as_ref(),
        &bytes,
        "a writer that wrote nothing changed nothing",
    );

    let writer = open(2);
    writer.write_at(0, &[1; 512]).expect("write");
    let changed = writer.data_write_id();
    assert_ne!(changed, before);
    assert_eq!(writer.data_write_id_at_open(), before);
    writer.write_at(512, &[1; 512]).expect("write");
    assert_eq!(writer.data_write_id(), changed);
    writer.finish().expect("finish");
    let after = VhdxReader::open(readable(&file), None)
        .expect("opens")
        .data_write_id();
    assert_eq!(after, changed);
}

#[test]
fn defaults_are_those_of_windows() {
    let locator = ParentLocator::new(vdisk::vhdx::WriteId(uuid::Uuid::from_u128(1)));
    for (allocation, subformat, block) in [
        (Allocation::Dynamic, Subformat::Dynamic, 32 << 20),
        (Allocation::Fixed, Subformat::Fixed, 2 << 20),
        (
            Allocation::Differencing(locator),
            Subformat::Differencing,
            2 << 20,
        ),
    ] {
        let file = Arc::new(MemoryFile::new());
        let mut options = options(10 * MIB);
        options.allocation = allocation;
        create(&writable(&file), &options).expect("create");
        let info = VhdxReader::open(readable(&file), None)
            .expect("opens")
            .info();
        assert_eq!(info.subformat, subformat);
        assert_eq!(info.allocation_unit_bytes, Some(block));
        assert_eq!(
            (info.logical_sector_bytes, info.physical_sector_bytes),
            (512, 4096)
        );
        assert_eq!(info.creator.as_deref(), Some("Hikae"));
        assert_eq!(info.disk_id, Some(options.disk_id));
    }
}

#[test]
fn options_that_the_format_does_not_allow_are_refused() {
    let refuse = |change: fn(&mut CreateOptions)| {
        let mut options = options(8 * MIB);
        change(&mut options);
        let file = Arc::new(MemoryFile::new());
        let fault = create(&writable(&file), &options).expect_err("refused");
        assert_eq!(fault.kind(), ErrorKind::Invalid, "{fault}");
        assert_eq!(file.size_bytes(), 0, "nothing was written");
    };
    refuse(|options| options.size_bytes = 0);
    refuse(|options| options.size_bytes = 1000);
    refuse(|options| options.size_bytes = (64 << 40) + 512);
    refuse(|options| options.block_bytes = Some(3 << 20));
    refuse(|options| options.block_bytes = Some(512 << 20));
    refuse(|options| options.logical_sector_bytes = 1024);
    refuse(|options| options.physical_sector_bytes = 8192);
}

#[test]
fn an_image_with_eight_million_blocks_opens_at_once() {
    let size = 16 << 40;
    let file = Arc::new(MemoryFile::new());
    let mut options = options(size);
    options.allocation = Allocation::Fixed;
    create(&writable(&file), &options).expect("create");
    let begun = std::time::Instant::now();
    let reader = VhdxReader::open(readable(&file), None).expect("opens");
    let elapsed = begun.elapsed();
    println!("16 TiB, 8388608 blocks: opened in {elapsed:?}");
    assert!(elapsed.as_secs() < 20, "{elapsed:?}");
    reader
        .read_at(size - MIB, &mut vec![1; MIB as usize])
        .expect("read");
}

#[test]
fn many_threads_change_one_disk_while_another_flushes() {
    let size = 24 * MIB;
    let base = Arc::new(MemoryFile::new());
    create(&writable(&base), &options(size)).expect("create");
    let parent = Arc::new(VhdxReader::open(readable(&base), None).expect("parent"));
    let locator = ParentLocator::new(parent.data_write_id());
    for allocation in [Allocation::Dynamic, Allocation::Differencing(locator)] {
        let file = Arc::new(MemoryFile::new());
        let mut options = options(size);
        options.block_bytes = Some(1 << 20);
        let above: Option<Arc<dyn ReadAt>> = match allocation {
            Allocation::Differencing(_) => Some(parent.clone()),
            _ => None,
        };
        options.allocation = allocation;
        create(&writable(&file), &options).expect("create");
        let writer =
            VhdxWriter::open(writable(&file), above.clone(), IdSource::seeded(1)).expect("open");
        // Every thread has every fourth 32 KiB to itself, so that all of them meet in every block.
        let places = |thread: u64| (thread..size / 32768).step_by(4).map(|part| part * 32768);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let writer = &writer;
                scope.spawn(move || {
                    for offset in places(thread) {
                        writer
                            .write_at(offset, &pattern(offset, 32768, 1))
                            .expect("write");
                        if offset / 32768 % 3 == 0 {
                            writer.zero_range(offset, 4096).expect("zero");
                        }
                        let mut found = vec![0; 512];
                        writer.read_at(offset + 8192, &mut found).expect("read");
                        assert!(found == pattern(offset + 8192, 512, 1), "at {offset}");
                        if thread == 0 {
                            writer.flush().expect("flush");
                        }
                    }
                });
            }
        });
        let wanted = model(size);
        for offset in (0..4).flat_map(places) {
            wanted
                .write_at(offset, &pattern(offset, 32768, 1))
                .expect("model");
            if offset / 32768 % 3 == 0 {
                wanted.zero_range(offset, 4096).expect("model");
            }
        }
        assert_same(&writer, &wanted, "writer");
        writer.finish().expect("finish");
        check_with_reader(&file, above, &wanted);
    }
}

#[test]
fn extents_say_whose_every_range_is() {
    let base = Arc::new(MemoryFile::new());
    let mut small = options(6 * MIB);
    small.block_bytes = Some(1 << 20);
    create(&writable(&base), &small).expect("create");
    let writer = VhdxWriter::open(writable(&base), None, IdSource::seeded(1)).expect("open");
    writer.write_at(0, &pattern(0, 2 * MIB, 1)).expect("write");
    writer.zero_range(MIB, MIB).expect("zero");
    writer.finish().expect("finish");
    let parent = Arc::new(VhdxReader::open(readable(&base), None).expect("parent"));

    let mut large = options(10 * MIB);
    large.block_bytes = Some(2 << 20);
    large.allocation = Allocation::Differencing(ParentLocator::new(parent.data_write_id()));
    let file = Arc::new(MemoryFile::new());
    create(&writable(&file), &large).expect("create");
    let writer =
        VhdxWriter::open(writable(&file), Some(parent.clone()), IdSource::seeded(2)).expect("open");
    writer
        .write_at(2 * MIB + 4096, &pattern(0, 8192, 3))
        .expect("write");
    writer.zero_range(4 * MIB, 2 * MIB).expect("zero");
    writer
        .write_at(8 * MIB, &pattern(0, 2 * MIB, 3))
        .expect("write");
    writer.finish().expect("finish");

    let list = |disk: &dyn ReadAt| {
        let mut found: Vec<(u64, ExtentKind)> = Vec::new();
        let mut at = 0;
        while at < disk.size_bytes() {
            let extent = disk.extent_at(at, u64::MAX).expect("extent");
            if found.last().is_none_or(|last| last.1 != extent.kind) {
                found.push((at, extent.kind));
            }
            at = extent.end();
        }
        found
    };
    use ExtentKind::{Data, InParent, Unallocated, Zero};
    let parent_list = [(0, Data), (MIB, Zero), (2 * MIB, Unallocated)];
    assert_eq!(list(parent.as_ref()), parent_list);
    let alone = VhdxReader::open(readable(&file), None).expect("opens");
    let (partial, behind) = (2 * MIB + 4096, 2 * MIB + 12288);
    assert_eq!(
        list(&alone),
        [
            (0, InParent),
            (partial, Data),
            (behind, InParent),
            (4 * MIB, Zero),
            (6 * MIB, InParent),
            (8 * MIB, Data)
        ]
    );
    let whole = VhdxReader::open(readable(&file), Some(parent)).expect("opens");
    assert_eq!(
        list(&whole),
        [
            (0, Data),
            (MIB, Zero),
            (2 * MIB, Unallocated),
            (partial, Data),
            (behind, Unallocated),
            (4 * MIB, Zero),
            (6 * MIB, Unallocated),
            (8 * MIB, Data)
        ]
    );
}
