//! Power cuts: at every write and flush of a script, with every kind of loss, what a flush covered is there and nothing
//! else changed than what was in flight.

use std::sync::Arc;

use block::{ReadAt, WriteAt};
use vdisk::memory::{CrashFile, Loss, MemoryFile};
use vdisk::vhdx::{
    Allocation, CreateOptions, IdSource, ParentLocator, VhdxBuilder, VhdxReader, VhdxWriter, create,
};
use vdisk::{DiskId, ErrorKind};

use crate::vhdx_model::{
    Step, apply, assert_same, export, has_qemu_img, options, pattern, qemu_agrees, qemu_img,
    readable, writable, write, zero,
};

const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;
const DISK: u64 = 6 * MIB + 4096;

/// What every sector may hold: one of the states that the disk was in since the last flush.
struct Expectation {
    states: Vec<Vec<u8>>,
}

impl Expectation {
    fn new(disk: &dyn ReadAt) -> Self {
        Self {
            states: vec![bytes_of(disk)],
        }
    }

    /// A step that was asked for: done or not, it may be seen from now on.
    fn asked(&mut self, step: &Step) {
        let last = MemoryFile::from_bytes(self.states.last().expect("a state"));
        apply(&last, step).expect("model");
        self.states.push(bytes_of(&last));
    }

    /// A flush returned: only the newest state counts.
    fn flushed(&mut self) {
        self.states.drain(..self.states.len() - 1);
    }

    fn check(&self, disk: &dyn ReadAt, context: &str) {
        let found = bytes_of(disk);
        for (index, sector) in found.chunks(SECTOR).enumerate() {
            let at = index * SECTOR;
            let known = self
                .states
                .iter()
                .any(|state| state[at..at + sector.len()] == *sector);
            assert!(
                known,
                "{context}: sector {index} begins {:02x?} and is none of {} states, the first {:02x?}",
                &sector[..8],
                self.states.len(),
                &self.states[0][at..at + 8]
            );
        }
    }
}

fn bytes_of(disk: &dyn ReadAt) -> Vec<u8> {
    let mut bytes = vec![0; disk.size_bytes() as usize];
    disk.read_at(0, &mut bytes).expect("read");
    bytes
}

/// Touches everything that moves metadata: new blocks, whole and partial, given up and used again, overwritten in place.
fn script() -> Vec<Step> {
    vec![
        write(0, 9000, 1),
        write(3 * MIB, MIB, 2),
        Step::Flush,
        write(4096, 4096, 3),
        zero(3 * MIB, MIB),
        Step::Flush,
        // Takes the space of the block that was given up.
        write(5 * MIB + 512, 2048, 4),
        write(MIB - 1024, 2048, 5),
        zero(0, 4096),
        Step::Flush,
        zero(5 * MIB, MIB),
        write(4 * MIB, MIB, 6),
        write(5 * MIB + 8192, 512, 7),
        Step::Flush,
        write(2 * MIB + 100, 50, 8),
        write(6 * MIB, 4096, 9),
    ]
}

/// Other choices at every cut, so that each combination of a few pending writes comes up somewhere.
fn losses(cut: u64) -> Vec<Loss> {
    let seeds = cut * 3..cut * 3 + 3;
    let mut losses = vec![Loss::Everything, Loss::Nothing];
    losses.extend(seeds.clone().map(|seed| Loss::Subset { seed }));
    losses.extend(seeds.map(|seed| Loss::Torn { seed }));
    losses
}

/// Runs the script until the power goes. Answers whether it went.
fn run(
    file: &Arc<CrashFile>,
    parent: Option<Arc<dyn ReadAt>>,
    expectation: &mut Expectation,
    script: &[Step],
) -> bool {
    let opened = VhdxWriter::open(
        Arc::clone(file) as Arc<dyn WriteAt>,
        parent,
        IdSource::seeded(file.operations() + 5),
    );
    let Ok(writer) = opened else { return true };
    for step in script {
        expectation.asked(step);
        if apply(&writer, step).is_err() {
            return true;
        }
        if matches!(step, Step::Flush) {
            expectation.flushed();
        }
    }
    if writer.finish().is_err() {
        return true;
    }
    expectation.flushed();
    false
}

/// Cuts at every operation and looks at what is left, as a reader and as a writer see it.
fn cut_everywhere(image: &MemoryFile, parent: Option<Arc<dyn ReadAt>>, script: &[Step]) -> u64 {
    let open = |file: MemoryFile| VhdxReader::open(Arc::new(file), parent.clone());
    let start = open(image.clone()).expect("sound before");
    let mut cut = 0;
    loop {
        let file = Arc::new(CrashFile::new(image, Some(cut)));
        let mut expectation = Expectation::new(&start);
        let was_cut = run(&file, parent.clone(), &mut expectation, script);
        for (number, loss) in losses(cut).into_iter().enumerate() {
            let context = format!("cut at operation {cut}, {loss:?}");
            let left = file.survivors(loss).expect("survivors");
            let reader = open(left.clone()).unwrap_or_else(|fault| panic!("{context}: {fault}"));
            expectation.check(&reader, &context);
            // Some of each kind also go through a replay that is cut itself.
            if (cut + number as u64).is_multiple_of(9) {
                cut_the_replay(&left, parent.clone(), &reader, &context);
            }
            let left = Arc::new(left);
            let ids = IdSource::seeded(cut + 1000);
            let writer = VhdxWriter::open(writable(&left), parent.clone(), ids)
                .unwrap_or_else(|fault| panic!("{context}: {fault}"));
            assert_same(&writer, &reader, &context);
            writer
                .write_at(MIB, &pattern(MIB, 1024, 99))
                .expect("goes on");
            writer.finish().expect("finish");
            VhdxReader::open(readable(&left), parent.clone()).expect("sound after");
        }
        if !was_cut {
            return cut;
        }
        cut += 1;
    }
}

fn cut_the_replay(
    image: &MemoryFile,
    parent: Option<Arc<dyn ReadAt>>,
    wanted: &dyn ReadAt,
    context: &str,
) {
    for cut in 0..100 {
        let file = Arc::new(CrashFile::new(image, Some(cut)));
        let opened = VhdxWriter::open(
            Arc::clone(&file) as Arc<dyn WriteAt>,
            parent.clone(),
            IdSource::seeded(1),
        );
        let left = file.survivors(Loss::Torn { seed: cut }).expect("survivors");
        let reader = VhdxReader::open(Arc::new(left), parent.clone())
            .unwrap_or_else(|fault| panic!("{context}, replay cut at {cut}: {fault}"));
        assert_same(&reader, wanted, &format!("{context}, replay cut at {cut}"));
        if opened.is_ok() {
            return;
        }
    }
    panic!("{context}: the replay never ends");
}

fn small(size: u64, allocation: Allocation) -> CreateOptions {
    let mut options = options(size);
    options.allocation = allocation;
    options.block_bytes = Some(1 << 20);
    options
}

fn made(options: &CreateOptions) -> Arc<MemoryFile> {
    let file = Arc::new(MemoryFile::new());
    create(&writable(&file), options).expect("create");
    file
}

#[test]
fn a_dynamic_image_survives_a_cut_anywhere() {
    let image = made(&small(DISK, Allocation::Dynamic));
    let operations = cut_everywhere(&image, None, &script());
    assert!(operations > 40, "only {operations} operations were cut");
}

#[test]
fn a_fixed_image_survives_a_cut_anywhere() {
    let image = made(&small(DISK, Allocation::Fixed));
    cut_everywhere(&image, None, &script());
}

#[test]
fn a_differencing_image_survives_a_cut_anywhere() {
    let base = made(&small(DISK - MIB, Allocation::Dynamic));
    let writer = VhdxWriter::open(writable(&base), None, IdSource::seeded(3)).expect("open");
    writer
        .write_at(0, &pattern(0, 3 * MIB + 512, 200))
        .expect("write");
    writer.finish().expect("finish");
    let parent = Arc::new(VhdxReader::open(readable(&base), None).expect("parent"));
    let locator = ParentLocator::new(parent.data_write_id());
    let image = made(&small(DISK, Allocation::Differencing(locator)));
    let operations = cut_everywhere(&image, Some(parent), &script());
    assert!(operations > 40, "only {operations} operations were cut");
}

#[test]
fn an_image_with_many_changes_between_flushes_survives_a_cut() {
    // Two chunks of 1 MiB blocks, so that the BAT has more pages than one entry of the log takes: commits come by themselves.
    let size = 120 << 30;
    let image = made(&CreateOptions {
        size_bytes: size,
        block_bytes: Some(1 << 20),
        ..options(size)
    });
    let places: Vec<u64> = (0..230).map(|number| number * 512 * MIB).collect();
    let count = |cut: Option<u64>| {
        let file = Arc::new(CrashFile::new(&image, cut));
        let mut flushed = 0;
        let writer = VhdxWriter::open(
            Arc::clone(&file) as Arc<dyn WriteAt>,
            None,
            IdSource::seeded(9),
        );
        if let Ok(writer) = writer {
            for (number, place) in places.iter().enumerate() {
                if writer.write_at(*place, &pattern(*place, 512, 1)).is_err() {
                    break;
                }
                if number == 120 && writer.flush().is_ok() {
                    flushed = number + 1;
                }
            }
        }
        (file, flushed)
    };
    let total = count(None).0.operations();
    assert!(total > 230);
    for cut in (0..total).step_by(7) {
        let (file, flushed) = count(Some(cut));
        for loss in losses(cut) {
            let left = file.survivors(loss).expect("survivors");
            let reader = VhdxReader::open(Arc::new(left), None)
                .unwrap_or_else(|fault| panic!("cut at {cut}, {loss:?}: {fault}"));
            for (number, place) in places.iter().enumerate() {
                let mut found = [0; 512];
                reader.read_at(*place, &mut found).expect("read");
                let is_there = found == *pattern(*place, 512, 1);
                assert!(
                    is_there || (number >= flushed && found == [0; 512]),
                    "cut at {cut}, {loss:?}"
                );
            }
        }
    }
}

#[test]
fn building_goes_on_after_a_cut_anywhere() {
    let steps = [
        write(0, 5000, 1),
        write(3 * MIB + 512, 100_000, 2),
        Step::Flush,
        write(MIB, 2 * MIB, 3),
        Step::Flush,
        write(5 * MIB, 4096, 4),
    ];
    let wanted = MemoryFile::with_size(DISK);
    for step in &steps {
        apply(&wanted, step).expect("model");
    }
    let mut cut = 0;
    let mut resumed = 0;
    loop {
        let file = Arc::new(CrashFile::new(&MemoryFile::new(), Some(cut)));
        let mut durable = 0;
        let mut finished = false;
        let options = small(DISK, Allocation::Dynamic);
        if let Ok(builder) = VhdxBuilder::create(Arc::clone(&file) as Arc<dyn WriteAt>, &options) {
            for (number, step) in steps.iter().enumerate() {
                if apply(&builder, step).is_err() {
                    break;
                }
                if matches!(step, Step::Flush) {
                    durable = number + 1;
                }
            }
            finished = builder.finish().is_ok();
        }
        for loss in losses(cut) {
            let context = format!("cut at {cut}, {loss:?}");
            let left = Arc::new(file.survivors(loss).expect("survivors"));
            match VhdxReader::open(readable(&left), None) {
                Ok(reader) => assert_same(&reader, &wanted, &context),
                Err(fault) => {
                    assert!(!finished, "{context}: {fault}");
                    assert!(
                        matches!(fault.kind(), ErrorKind::Incomplete | ErrorKind::Corrupt),
                        "{context}: {fault}"
                    );
                    if durable > 0 {
                        assert_eq!(fault.kind(), ErrorKind::Incomplete, "{context}: {fault}");
                        resume(&left, &steps, durable, &wanted, &context);
                        resumed += 1;
                    }
                }
            }
        }
        if finished {
            break;
        }
        cut += 1;
    }
    assert!(resumed > 20, "only {resumed} resumed");
}

fn resume(
    left: &Arc<MemoryFile>,
    steps: &[Step],
    durable: usize,
    wanted: &MemoryFile,
    context: &str,
) {
    let builder =
        VhdxBuilder::resume(writable(left)).unwrap_or_else(|fault| panic!("{context}: {fault}"));
    let covered = MemoryFile::with_size(DISK);
    for step in &steps[..durable] {
        apply(&covered, step).expect("model");
    }
    // What the flush covered is there; elsewhere there may be a part of what came later.
    for step in &steps[..durable] {
        if let Step::Write { offset, length, .. } = step {
            let (mut found, mut want) = (vec![0; *length as usize], vec![0; *length as usize]);
            builder.read_at(*offset, &mut found).expect("read");
            covered.read_at(*offset, &mut want).expect("read");
            assert!(found == want, "{context}: flushed write at {offset}");
        }
    }
    for step in &steps[durable..] {
        apply(&builder, step).expect("step");
    }
    builder.finish().expect("finish");
    let reader = VhdxReader::open(readable(left), None).expect("finished");
    assert_same(&reader, wanted, context);
}

#[test]
fn a_creation_that_was_cut_leaves_no_image() {
    let wanted = small(DISK, Allocation::Dynamic);
    assert_eq!(wanted.disk_id, DiskId(uuid::Uuid::from_u128(0xD15C)));
    for cut in 0..20 {
        let file = Arc::new(CrashFile::new(&MemoryFile::new(), Some(cut)));
        let made = create(&(Arc::clone(&file) as Arc<dyn WriteAt>), &wanted);
        for loss in losses(cut) {
            let left = Arc::new(file.survivors(loss).expect("survivors"));
            match VhdxReader::open(readable(&left), None) {
                Ok(reader) => {
                    assert_same(
                        &reader,
                        &MemoryFile::with_size(DISK),
                        "a whole, empty image",
                    );
                }
                Err(fault) => {
                    assert!(made.is_err(), "{fault}");
                    assert!(
                        matches!(fault.kind(), ErrorKind::Incomplete | ErrorKind::Corrupt),
                        "{fault}"
                    );
                }
            }
        }
    }
}

#[test]
fn qemu_replays_our_log_to_the_same_disk() {
    if !has_qemu_img() {
        return;
    }
    let place = tempfile::tempdir().expect("directory");
    let path = |name: &str| place.path().join(name).to_str().expect("path").to_owned();
    let image = made(&small(DISK, Allocation::Dynamic));
    let mut replayed = 0;
    for cut in 0.. {
        let file = Arc::new(CrashFile::new(&image, Some(cut)));
        let start = MemoryFile::with_size(DISK);
        let was_cut = run(&file, None, &mut Expectation::new(&start), &script());
        let left = Arc::new(file.survivors(Loss::Everything).expect("survivors"));
        let reader = VhdxReader::open(readable(&left), None).expect("opens");
        if reader.info().has_pending_log {
            export(left.as_ref(), path("dirty.vhdx").as_ref());
            qemu_img(&[
                "check",
                "-q",
                "-f",
                "vhdx",
                "-r",
                "all",
                &path("dirty.vhdx"),
            ]);
            qemu_agrees(path("dirty.vhdx").as_ref(), &reader);
            replayed += 1;
        }
        if !was_cut {
            break;
        }
    }
    assert!(replayed > 10, "only {replayed} logs were replayed");
}
