//! Hostile bytes: thousands of small lies in every structure, with right checksums as often as not. Everything that can
//! be done with an image is done; nothing may panic, hang or take memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{ReadAt, WriteAt};
use vdisk::memory::MemoryFile;
use vdisk::vhdx::{
    Allocation, IdSource, ParentLocator, RELATIVE_PATH, VhdxBuilder, VhdxReader, VhdxWriter,
    WriteId, check, create, relink, repair,
};
use vdisk::{ErrorKind, RepairMode};

use crate::vhdx_model::{options, pattern, readable, writable};

const MIB: u64 = 1 << 20;
const ROUNDS: u64 = 2500;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    /// Values that arithmetic trips over, more often than not.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => self.below(5000),
            _ => self.next(),
        }
    }
}

/// Where the structures lie: offset, and how many bytes of it matter.
const TARGETS: [(u64, u64); 9] = [
    (0, 16),
    (64 << 10, 80),
    (128 << 10, 80),
    (192 << 10, 80),
    (256 << 10, 80),
    (MIB, 12 << 10),
    (2 * MIB, 256),
    (2 * MIB + (64 << 10), 256),
    (3 * MIB, 128),
];

fn mutate(file: &MemoryFile, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let (base, length) = TARGETS[random.below(TARGETS.len() as u64) as usize];
        let at = base + random.below(length);
        let bytes = random.value().to_le_bytes();
        let count = [1, 2, 4, 8][random.below(4) as usize];
        let at = if random.below(2) == 0 { at / 4 * 4 } else { at };
        file.write_at(at, &bytes[..count]).expect("mutate");
    }
    if random.below(4) > 0 {
        for at in [64 << 10, 128 << 10] {
            sign(file, at, 4096);
        }
        for at in [192 << 10, 256 << 10] {
            sign(file, at, 65536);
        }
        let mut length = [0; 4];
        file.read_at(MIB + 8, &mut length).expect("read");
        let length = u32::from_le_bytes(length);
        if length > 0 && u64::from(length) <= MIB {
            sign(file, MIB, length as usize);
        }
    }
    if random.below(10) == 0 {
        file.set_size(random.below(file.size_bytes())).expect("cut");
    }
}

/// Puts the right checksum where one belongs.
fn sign(file: &MemoryFile, at: u64, length: usize) {
    let mut bytes = vec![0; length];
    file.read_at(at, &mut bytes).expect("read");
    bytes[4..8].fill(0);
    let crc = crc32c::crc32c(&bytes);
    file.write_at(at + 4, &crc.to_le_bytes()).expect("write");
}

/// Does everything with it. Answers whether a reader opened it.
fn exercise(file: &Arc<MemoryFile>, parent: Option<Arc<dyn ReadAt>>) -> bool {
    let reader = VhdxReader::open(readable(file), parent.clone());
    if let Ok(reader) = &reader {
        let size = reader.size_bytes();
        let mut at = 0;
        for _ in 0..200 {
            let Ok(extent) = reader.extent_at(at, size) else {
                break;
            };
            assert!(extent.length_bytes > 0 && extent.end() <= size && extent.offset == at);
            let mut bytes = vec![0; extent.length_bytes.min(70_000) as usize];
            if reader.read_at(at, &mut bytes).is_ok() && extent.kind.is_zero() {
                assert!(bytes.iter().all(|byte| *byte == 0));
            }
            at = extent.end();
            if at >= size {
                break;
            }
        }
        let _ = (reader.info(), reader.parent_linkages());
    }
    let copy = || Arc::new(file.as_ref().clone());
    let seed = IdSource::seeded(1);
    check(&readable(file)).expect("a check always has an answer");
    let written = copy();
    if let Ok(writer) = VhdxWriter::open(writable(&written), parent.clone(), seed.clone()) {
        let size = writer.size_bytes();
        let outcomes = [
            writer.write_at(size.saturating_sub(700), &vec![3; size.min(700) as usize]),
            writer.write_at(0, &vec![4; size.min(3 * MIB) as usize]),
            writer.zero_range(0, size.min(2 * MIB)),
            writer.flush(),
        ];
        if outcomes.iter().all(Result::is_ok) && writer.finish().is_ok() {
            VhdxReader::open(readable(&written), parent).expect("what was written is sound");
        }
    }
    let repaired = copy();
    if let Ok(report) = repair(&writable(&repaired), RepairMode::DataLoss, &seed)
        && report.remaining.is_clean()
    {
        VhdxReader::open(readable(&repaired), None).expect("what was repaired is sound");
    }
    let relinked = copy();
    let locator = ParentLocator::new(WriteId(uuid::Uuid::from_u128(5)));
    if relink(&writable(&relinked), &locator, &seed).is_ok() {
        let reader = VhdxReader::open(readable(&relinked), None);
        assert!(reader.map_or_else(
            |fault| fault.kind() == ErrorKind::Corrupt,
            |reader| { reader.parent_locator() == Some(&locator) }
        ));
    }
    let resumed = copy();
    if let Ok(builder) = VhdxBuilder::resume(writable(&resumed)) {
        let outcome = builder.write_at(0, &[5; 512]);
        if outcome.is_ok() && builder.finish().is_ok() {
            VhdxReader::open(readable(&resumed), None).expect("what was built is sound");
        }
    }
    assert!(written.allocated_bytes() < 64 * MIB && repaired.allocated_bytes() < 64 * MIB);
    reader.is_ok()
}

fn torment(name: &str, image: &MemoryFile, parent: Option<Arc<dyn ReadAt>>) {
    let mut opened = 0;
    for seed in 0..ROUNDS {
        let file = Arc::new(image.clone());
        mutate(&file, &mut Random(seed));
        let begun = Instant::now();
        println!("{name}: seed {seed}");
        opened += u64::from(exercise(&file, parent.clone()));
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{name}: seed {seed} takes too long"
        );
    }
    assert!(
        opened > ROUNDS / 20,
        "{name}: only {opened} opened, the lies are too crude"
    );
    assert!(opened < ROUNDS, "{name}: no lie was noticed");
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .expect("peak memory");
        assert!(peak < 1 << 20, "{name}: {peak} KiB were needed at the peak");
    }
}

fn dynamic_with_waiting_log() -> MemoryFile {
    let file = Arc::new(MemoryFile::new());
    let mut options = options(9 * MIB);
    options.block_bytes = Some(1 << 20);
    create(&writable(&file), &options).expect("create");
    let writer = VhdxWriter::open(writable(&file), None, IdSource::seeded(3)).expect("open");
    writer.write_at(MIB, &pattern(MIB, MIB, 1)).expect("write");
    writer
        .write_at(5 * MIB, &pattern(5 * MIB, 2 * MIB, 1))
        .expect("write");
    writer.flush().expect("flush");
    drop(writer);
    let reader = VhdxReader::open(readable(&file), None).expect("opens");
    assert!(reader.info().has_pending_log);
    file.as_ref().clone()
}

#[test]
fn a_lying_image_with_a_log_harms_nobody() {
    torment("log", &dynamic_with_waiting_log(), None);
}

#[test]
fn a_lying_clean_image_harms_nobody() {
    let file = Arc::new(dynamic_with_waiting_log());
    VhdxWriter::open(writable(&file), None, IdSource::seeded(3))
        .expect("open")
        .finish()
        .expect("finish");
    torment("clean", &file, None);
}

#[test]
fn a_lying_child_harms_nobody() {
    let base = Arc::new(dynamic_with_waiting_log());
    let parent = Arc::new(VhdxReader::open(readable(&base), None).expect("parent"));
    let mut options = options(9 * MIB);
    options.block_bytes = Some(2 << 20);
    options.allocation = Allocation::Differencing(
        ParentLocator::new(parent.data_write_id()).with(RELATIVE_PATH, ".\\base.vhdx"),
    );
    let file = Arc::new(MemoryFile::new());
    create(&writable(&file), &options).expect("create");
    let writer =
        VhdxWriter::open(writable(&file), Some(parent.clone()), IdSource::seeded(3)).expect("open");
    writer.write_at(MIB, &pattern(MIB, 5000, 1)).expect("write");
    writer
        .write_at(4 * MIB, &pattern(4 * MIB, 2 * MIB, 1))
        .expect("write");
    writer.finish().expect("finish");
    torment("child", &file, Some(parent));
}

#[test]
fn a_lying_unfinished_image_harms_nobody() {
    let file = Arc::new(MemoryFile::new());
    let mut options = options(9 * MIB);
    options.block_bytes = Some(1 << 20);
    let builder = VhdxBuilder::create(writable(&file), &options).expect("create");
    builder
        .write_at(MIB, &pattern(MIB, 3 * MIB, 1))
        .expect("write");
    builder.flush().expect("flush");
    drop(builder);
    let mut resumed = 0;
    for seed in 0..ROUNDS {
        let image = Arc::new(file.as_ref().clone());
        mutate(&image, &mut Random(seed));
        println!("unfinished: seed {seed}");
        resumed += u64::from(VhdxBuilder::resume(writable(&image)).is_ok());
        exercise(&image, None);
    }
    assert!(
        resumed > ROUNDS / 20 && resumed < ROUNDS,
        "{resumed} resumed"
    );
}
