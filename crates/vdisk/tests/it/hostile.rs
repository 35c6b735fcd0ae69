//! Hostile images of every format, through the same door as everybody's: no panic, no hang, little memory, an error that
//! says where.
//!
//! ```text
//!   samples (files in memory) ─► mutations by structure, checksums put right again ─► info, check, map, convert, compare,
//!                                                                                    repair, enlarge
//! ```
//! `HIKAE_HOSTILE_SEED` and `HIKAE_HOSTILE_CASES` (per sample) choose another walk; each case follows from its seed alone. `HIKAE_HOSTILE_ONLY` (a sample's name) and
//! `HIKAE_HOSTILE_FIRST` (a case) come back to one that failed.
//! The limits are the operating system's: the cases run in a process of their own under `prlimit`.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{ReadAt, WriteAt};
use vdisk::chain::FileOpener;
use vdisk::compare::compare;
use vdisk::convert::{self, Progress, TargetContent};
use vdisk::image::{self, ChainMode, ChildOptions, ImageWriter, OpenOptions};
use vdisk::memory::MemoryFile;
use vdisk::qcow2::{BackingName, Compression, Qcow2Builder, Qcow2Options};
use vdisk::vhdx::{IdSource, VhdxWriter};
use vdisk::vmdk::{ContentId, SparseBuilder, StreamOptimizedWriter, VmdkOptions};
use vdisk::{Format, Image, ImageInfo, RepairMode, map, qcow2, vhd, vhdx};

use crate::qcow2_tool::Numbers;
use crate::vhdx_model::{apply, export, import, options, writable, write, zero};

const MIB: u64 = 1 << 20;
/// What one case may take.
const CASE_LIMIT: Duration = Duration::from_secs(20);
/// What all of a process may take: the limit is on data, that is heap, stacks and private mappings.
const MEMORY_LIMIT_BYTES: u64 = 256 << 20;
/// A disk of claims may be endless; a conversion is told to stop after this.
const COPY_LIMIT: Duration = Duration::from_millis(400);

/// Files of one directory, in memory.
#[derive(Clone, Default)]
struct Files(HashMap<PathBuf, Arc<MemoryFile>>);

impl FileOpener for Files {
    fn open_file(&self, path: &Path) -> vdisk::Result<Option<Arc<dyn ReadAt>>> {
        let found = self.0.get(path.strip_prefix("./").unwrap_or(path));
        Ok(found.map(|file| Arc::clone(file) as Arc<dyn ReadAt>))
    }
    fn canonical_path(&self, path: &Path) -> vdisk::Result<PathBuf> {
        Ok(Path::new("/images").join(path.strip_prefix("./").unwrap_or(path)))
    }
}

/// Where the structures of a file lie, and how wide and which way round their numbers are.
#[derive(Clone)]
struct Hot {
    range: Range<u64>,
    width: u64,
    is_big_endian: bool,
}

fn hot(range: Range<u64>, width: u64, is_big_endian: bool) -> Hot {
    Hot {
        range,
        width,
        is_big_endian,
    }
}

/// A sound image with all that it leans on. The first file is the image.
struct Sample {
    name: String,
    format: Format,
    files: Vec<(String, MemoryFile)>,
}

impl Sample {
    fn one(name: &str, format: Format, file: MemoryFile) -> Self {
        Self {
            name: name.to_owned(),
            format,
            files: vec![("a.img".to_owned(), file)],
        }
    }

    /// The places where lies are worth telling.
    fn hot(&self, file: usize) -> Vec<Hot> {
        let size = self.files[file].1.size_bytes();
        let tail = size.saturating_sub(1024)..size;
        let found = match self.format {
            Format::Vhdx => vec![
                hot(65536..65536 + 80, 8, false),
                hot(131_072..131_072 + 80, 4, false),
                hot(196_608..196_608 + 80, 4, false),
                hot(MIB..MIB + 8192, 4, false),
                hot(2 * MIB..2 * MIB + 256, 4, false),
                hot(2 * MIB + 65536..2 * MIB + 65536 + 512, 4, false),
                hot(3 * MIB..3 * MIB + 400, 8, false),
                hot(3 * MIB..3 * MIB + 40_000, 8, false),
            ],
            Format::Vhd => vec![
                hot(0..512, 4, true),
                hot(512..1536, 4, true),
                hot(1536..4096, 4, true),
                hot(8192..12_288, 4, true),
                hot(tail, 8, true),
            ],
            Format::Qcow2 => vec![
                hot(0..112, 4, true),
                hot(0..112, 8, true),
                hot(104..600, 4, true),
                hot(512..4096, 8, true),
                hot(65536..65536 + 64, 8, true),
                hot(131_072..131_072 + 64, 8, true),
                hot(196_608..196_608 + 128, 8, true),
                hot(262_144..262_144 + 256, 8, true),
                hot(0..size, 8, true),
            ],
            Format::Vmdk | Format::Raw => vec![
                hot(0..100, 4, false),
                hot(0..100, 8, false),
                hot(512..1200, 1, false),
                hot(512..size, 4, false),
                hot(tail, 4, false),
            ],
        };
        let is_inside = |hot: &Hot| hot.range.end <= size && hot.range.start + 8 < hot.range.end;
        let mut found: Vec<Hot> = found.into_iter().filter(is_inside).collect();
        found.push(hot(0..size, 1, false));
        found
    }
}

fn fill(disk: &dyn WriteAt) {
    let size = disk.size_bytes();
    for step in [
        write(0, 5000, 1),
        write(100_000, 70_000, 2),
        write(size - 4096, 4096, 3),
    ] {
        apply(disk, &step).expect("write");
    }
}

fn content(file: &Arc<MemoryFile>) -> MemoryFile {
    file.as_ref().clone()
}

fn vhdx_samples() -> Vec<Sample> {
    let make = || {
        let file = Arc::new(MemoryFile::new());
        let mut options = options(9 * MIB);
        options.block_bytes = Some(1 << 20);
        vhdx::create(&writable(&file), &options).expect("create");
        let writer = VhdxWriter::open(writable(&file), None, IdSource::seeded(3)).expect("open");
        fill(&writer);
        (file, writer)
    };
    let (clean, writer) = make();
    writer.finish().expect("finish");
    let (waiting, writer) = make();
    writer.flush().expect("flush");
    apply(&writer, &write(4 * MIB, 3000, 9)).expect("write");
    writer.flush().expect("flush");
    drop(writer);
    vec![
        Sample::one("vhdx", Format::Vhdx, content(&clean)),
        Sample::one("vhdx with a log", Format::Vhdx, content(&waiting)),
    ]
}

fn vhd_samples() -> Vec<Sample> {
    let make = |allocation| {
        let file = Arc::new(MemoryFile::new());
        let options = vhd::CreateOptions {
            size_bytes: 2 * MIB,
            allocation,
            block_bytes: 65536,
            unique_id: vdisk::DiskId(uuid::Uuid::from_u128(5)),
            time: vhd::VhdTime(0),
        };
        vhd::create(&*file, &options).expect("create");
        let writer = vhd::VhdWriter::open(file.clone(), None).expect("open");
        fill(&writer);
        writer.finish().expect("finish");
        content(&file)
    };
    vec![
        Sample::one("vhd dynamic", Format::Vhd, make(vhd::Allocation::Dynamic)),
        Sample::one("vhd fixed", Format::Vhd, make(vhd::Allocation::Fixed)),
    ]
}

/// A child, its parent, and the parent's parent, in one format.
fn chain(format: Format, root: &Sample) -> Sample {
    let place = tempfile::tempdir().expect("directory");
    let path = |name: &str| place.path().join(name);
    export(&root.files[0].1, &path("c.img"));
    for (child, parent) in [("b.img", "c.img"), ("a.img", "b.img")] {
        let options = ChildOptions {
            allocation_unit_bytes: None,
            ids: IdSource::seeded(8),
            unix_seconds: 0,
        };
        let open = OpenOptions::default();
        image::create_child(&path(child), &path(parent), &open, &options).expect("child");
        let editor =
            image::ImageEditor::open(&path(child), &open, IdSource::seeded(9)).expect("editor");
        apply(&editor, &write(200_000, 9000, 5)).expect("write");
        apply(&editor, &zero(100_000, 4096)).expect("zero");
        editor.finish().expect("finish");
    }
    let names = ["a.img", "b.img", "c.img"];
    Sample {
        name: format!("{format:?} chain").to_lowercase(),
        format,
        files: names
            .map(|name| (name.to_owned(), content(&import(&path(name)))))
            .into(),
    }
}

fn qcow2_samples() -> Vec<Sample> {
    let make = |cluster_bytes, compression, backing: Option<&str>| {
        let file = Arc::new(MemoryFile::new());
        let options = Qcow2Options {
            cluster_bytes,
            compression,
            backing: backing.map(|path| BackingName {
                path: path.to_owned(),
                format: Some("qcow2".to_owned()),
            }),
            ..Qcow2Options::new(2 * MIB)
        };
        let below = backing.map(|_| Arc::new(MemoryFile::with_size(2 * MIB)) as Arc<dyn ReadAt>);
        let builder = Qcow2Builder::create(file.clone(), &options, below).expect("create");
        fill(&builder);
        builder.finish().expect("finish");
        content(&file)
    };
    let small = make(512, None, None);
    let child = Sample {
        name: "qcow2 chain".to_owned(),
        format: Format::Qcow2,
        files: vec![
            ("a.img".to_owned(), make(4096, None, Some("b.img"))),
            ("b.img".to_owned(), make(65536, None, Some("c.img"))),
            ("c.img".to_owned(), small.clone()),
        ],
    };
    let mut samples = vec![
        Sample::one("qcow2 small", Format::Qcow2, small),
        Sample::one("qcow2", Format::Qcow2, make(65536, None, None)),
        child,
    ];
    for compression in [Compression::Zlib, Compression::Zstd] {
        samples.push(Sample::one(
            &format!("qcow2 {compression:?}"),
            Format::Qcow2,
            make(4096, Some(compression), None),
        ));
    }
    samples
}

fn vmdk_samples() -> Vec<Sample> {
    let options = VmdkOptions {
        size_bytes: 2 * MIB,
        cid: ContentId(7),
        name: "a.img".to_owned(),
    };
    let sparse = Arc::new(MemoryFile::new());
    let builder = SparseBuilder::create(sparse.clone(), &options).expect("create");
    fill(&builder);
    builder.finish().expect("finish");
    let stream = Arc::new(MemoryFile::new());
    let one = NonZeroUsize::MIN;
    let writer = StreamOptimizedWriter::create(stream.clone(), &options, one).expect("create");
    writer.write_at(0, &[7; 200_000]).expect("write");
    writer.finish().expect("finish");
    let text = "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\n\
        createType=\"custom\"\nRW 4096 SPARSE \"b.img\"\nRW 4096 SPARSE \"c.img\"\n\
        RW 900 FLAT \"c.img\" 3\nRW 77 ZERO\n";
    let split = Sample {
        name: "vmdk split".to_owned(),
        format: Format::Vmdk,
        files: vec![
            ("a.img".to_owned(), MemoryFile::from_bytes(text.as_bytes())),
            ("b.img".to_owned(), content(&sparse)),
            ("c.img".to_owned(), content(&stream)),
        ],
    };
    vec![
        Sample::one("vmdk sparse", Format::Vmdk, content(&sparse)),
        Sample::one("vmdk stream", Format::Vmdk, content(&stream)),
        Sample::one(
            "vmdk cowd",
            Format::Vmdk,
            MemoryFile::from_bytes(&crate::vmdk_write::cowd()),
        ),
        split,
    ]
}

fn samples() -> Vec<Sample> {
    let mut all = vhdx_samples();
    all.push(chain(Format::Vhdx, &all[0]));
    let vhds = vhd_samples();
    all.push(chain(Format::Vhd, &vhds[0]));
    all.extend(vhds);
    all.extend(qcow2_samples());
    all.extend(vmdk_samples());
    all
}

/// Numbers that break arithmetic, and numbers that lead somewhere in this file.
fn number(numbers: &mut Numbers, old: u64, size: u64) -> u64 {
    match numbers.below(14) {
        0 => 0,
        1 => u64::MAX,
        2 => u64::MAX >> (8 * numbers.below(8)),
        3 => 1 << numbers.below(64),
        4 => old.wrapping_add(1),
        5 => old.wrapping_sub(1),
        6 => old ^ (1 << numbers.below(64)),
        7 => old.wrapping_mul(1 + numbers.below(1 << 16)),
        // A place in the file, in bytes, sectors, mebibytes; with the marks that an entry carries.
        8 => numbers.below(size) & !511,
        9 => numbers.below(size) / 512,
        10 => ((1 + numbers.below(size / MIB + 2)) << 20) | numbers.below(8),
        11 => (numbers.below(size) & !511) | (numbers.below(4) << 62),
        12 => numbers.below(64),
        _ => numbers.next(),
    }
}

fn mutate_number(file: &MemoryFile, spot: &Hot, numbers: &mut Numbers) {
    let span = spot.range.end - spot.range.start - spot.width;
    let at = spot.range.start + numbers.below(span + 1) / spot.width * spot.width;
    let mut bytes = [0; 8];
    let width = usize::try_from(spot.width).expect("small");
    file.read_at(at, &mut bytes[..width]).expect("inside");
    let size = file.size_bytes();
    if spot.is_big_endian {
        let old = u64::from_be_bytes(bytes) >> (64 - 8 * spot.width);
        let new = number(numbers, old, size).to_be_bytes();
        file.write_at(at, &new[8 - width..]).expect("inside");
    } else {
        let new = number(numbers, u64::from_le_bytes(bytes), size).to_le_bytes();
        file.write_at(at, &new[..width]).expect("inside");
    }
}

/// Copies one stretch over another: tables over tables, headers over data.
fn mutate_stretch(file: &MemoryFile, numbers: &mut Numbers) {
    let size = file.size_bytes();
    let unit = [512, 4096, 65536][usize::try_from(numbers.below(3)).expect("small")];
    if size < 2 * unit {
        return;
    }
    let mut bytes = vec![0; usize::try_from(unit).expect("small")];
    let places = size / unit;
    file.read_at(numbers.below(places) * unit, &mut bytes)
        .expect("inside");
    file.write_at(numbers.below(places) * unit, &bytes)
        .expect("inside");
}

/// Lets an image name another one of the directory, often itself.
fn mutate_names(file: &MemoryFile, numbers: &mut Numbers) {
    let letter = |number: u64| b'a' + u8::try_from(number).expect("small");
    let (from, to) = (letter(numbers.below(3)), letter(numbers.below(4)));
    let size = file.size_bytes().min(4 * MIB);
    let mut bytes = vec![0; usize::try_from(size).expect("small")];
    file.read_at(0, &mut bytes).expect("inside");
    for wide in [1, 2] {
        let pattern: Vec<u8> = [from, b'.', b'i', b'm', b'g']
            .iter()
            .flat_map(|byte| [*byte, 0].into_iter().take(wide))
            .collect();
        let found: Vec<usize> = bytes
            .windows(pattern.len())
            .enumerate()
            .filter(|(_, window)| *window == pattern)
            .map(|(at, _)| at)
            .collect();
        for at in found {
            file.write_at(at as u64, &[to]).expect("inside");
        }
    }
}

/// Puts right the checksums, so that the lies behind them are believed.
fn reseal(format: Format, file: &MemoryFile) {
    let size = file.size_bytes();
    match format {
        Format::Vhdx if size > 4 * MIB => {
            let sign = |at: u64, length: usize| {
                let mut bytes = vec![0; length];
                file.read_at(at, &mut bytes).expect("inside");
                bytes[4..8].fill(0);
                let sum = crc32c::crc32c(&bytes);
                file.write_at(at + 4, &sum.to_le_bytes()).expect("inside");
            };
            for at in [65536, 131_072] {
                sign(at, 4096);
            }
            for at in [196_608, 262_144] {
                sign(at, 65536);
            }
            let mut at = MIB;
            while at < MIB + 65536 {
                let mut head = [0; 12];
                file.read_at(at, &mut head).expect("inside");
                let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
                if head.starts_with(b"loge") && (4096..=65536).contains(&length) {
                    sign(at, usize::try_from(length).expect("small"));
                }
                at += 4096;
            }
        }
        Format::Vhd if size >= 2048 => {
            let sign = |at: u64, length: usize, field: usize| {
                let mut bytes = vec![0; length];
                file.read_at(at, &mut bytes).expect("inside");
                bytes[field..field + 4].fill(0);
                let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
                file.write_at(at + field as u64, &(!sum).to_be_bytes())
                    .expect("inside");
            };
            let mut head = [0; 8];
            file.read_at(0, &mut head).expect("inside");
            if head == *b"conectix" {
                sign(0, 512, 64);
                sign(512, 1024, 36);
            }
            sign(size - 512, 512, 64);
        }
        _ => {}
    }
}

/// The files of a sample with some lies in them.
fn lie(sample: &Sample, numbers: &mut Numbers) -> Files {
    let mut files = Files::default();
    let victim = match numbers.below(8) {
        0 => usize::try_from(numbers.below(sample.files.len() as u64)).expect("small"),
        _ => 0,
    };
    for (index, (name, original)) in sample.files.iter().enumerate() {
        let file = original.clone();
        if index == victim {
            let spots = sample.hot(index);
            for _ in 0..1 + numbers.below(5) {
                match numbers.below(16) {
                    0 => mutate_stretch(&file, numbers),
                    1 => mutate_names(&file, numbers),
                    _ => {
                        let spot = numbers.below(spots.len() as u64);
                        mutate_number(
                            &file,
                            &spots[usize::try_from(spot).expect("small")],
                            numbers,
                        );
                    }
                }
            }
            if numbers.below(5) > 0 {
                reseal(sample.format, &file);
            }
            match numbers.below(20) {
                0 => file
                    .set_size(numbers.below(file.size_bytes()))
                    .expect("cut"),
                1 => file.set_size(file.size_bytes() & !4095).expect("cut"),
                2 => file
                    .set_size(file.size_bytes() << numbers.below(24))
                    .expect("longer"),
                _ => {}
            }
        }
        files.0.insert(PathBuf::from(name), Arc::new(file));
    }
    files
}

/// Takes everything and keeps nothing.
struct Nowhere(ImageInfo);

impl ImageWriter for Nowhere {
    fn info(&self) -> ImageInfo {
        self.0.clone()
    }
    fn write_at(&self, _: u64, _: &[u8]) -> vdisk::Result<()> {
        Ok(())
    }
    fn zero_range(&self, _: u64, _: u64) -> vdisk::Result<()> {
        Ok(())
    }
    fn flush(&self) -> vdisk::Result<()> {
        Ok(())
    }
    fn finish(self: Box<Self>) -> vdisk::Result<()> {
        Ok(())
    }
}

/// Patience with a disk that never ends.
struct Patience(Instant);

impl Progress for Patience {
    fn advance(&self, _: u64, _: u64) {}
    fn is_cancelled(&self) -> bool {
        self.0.elapsed() > COPY_LIMIT
    }
}

/// An error must say something, and not a book.
fn judge<T>(result: vdisk::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            assert!(
                (12..4000).contains(&text.len()),
                "an error of {} bytes: {text:.200}",
                text.len()
            );
            None
        }
    }
}

/// Everything that a command does to a stranger's image.
fn put_through(format: Format, files: &Files) {
    let path = Path::new("a.img");
    let base = OpenOptions {
        opener: Arc::new(files.clone()),
        ..OpenOptions::default()
    };
    if let Some(report) = judge(image::check(path, &base)) {
        assert!(report.findings.len() <= 10_000, "a report without end");
    }
    for chain in [ChainMode::Whole, ChainMode::LeafOnly] {
        let options = OpenOptions {
            chain,
            ..base.clone()
        };
        let Some(image) = judge(Image::open(path, &options)) else {
            continue;
        };
        let size = image.size_bytes();
        assert_eq!(image.info().size_bytes, size);
        let mut at = 0;
        let patience = Patience(Instant::now());
        for extent in map::extents(&image) {
            let Some(extent) = judge(extent) else { break };
            assert!(extent.offset == at && extent.length_bytes > 0 && extent.end() <= size);
            at = extent.end();
            if patience.is_cancelled() {
                break;
            }
        }
        let patience = Patience(Instant::now());
        let target = Nowhere(image.info());
        judge(convert::copy(
            &image,
            &target,
            TargetContent::Unknown,
            &patience,
        ));
        let patience = Patience(Instant::now());
        if let Some(report) = judge(compare(&image, &image, &patience)) {
            assert!(report.is_equal(), "an image differs from itself");
        }
    }
    change(format, &files.0[path]);
}

/// What mends an image and what enlarges it.
fn change(format: Format, file: &Arc<MemoryFile>) {
    let target: Arc<dyn WriteAt> = Arc::clone(file) as Arc<dyn WriteAt>;
    let view: Arc<dyn ReadAt> = Arc::clone(file) as Arc<dyn ReadAt>;
    let ids = IdSource::seeded(1);
    match format {
        Format::Vhd => {
            let size = judge(vhd::VhdReader::open(view, None)).map(|disk| disk.size_bytes());
            if let Some(size) = size.filter(|size| *size < 64 << 30) {
                judge(vhd::grow(&target, None, size + (1 << 30)));
            }
            judge(vhd::repair(target, RepairMode::DataLoss));
        }
        Format::Vhdx => {
            let size = judge(vhdx::VhdxReader::open(view, None)).map(|disk| disk.size_bytes());
            if let Some(size) = size.filter(|size| *size < 1 << 40) {
                judge(vhdx::grow(&target, None, size + (1 << 30), &ids));
            }
            judge(vhdx::repair(&target, RepairMode::DataLoss, &ids));
        }
        Format::Qcow2 => {
            let size = judge(qcow2::Qcow2Reader::open(view, None)).map(|disk| disk.size_bytes());
            if let Some(size) = size.filter(|size| *size < 1 << 40) {
                let larger = (size + (1 << 30)) & !511;
                if judge(qcow2::grow(&target, None, larger)).is_some() {
                    let report = qcow2::check(file).expect("still an image");
                    assert!(report.is_clean(), "enlarging made it worse: {report:?}");
                }
            }
            judge(qcow2::repair(&*target, RepairMode::DataLoss));
        }
        Format::Vmdk | Format::Raw => {}
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Runs the cases of this process and says how far it was, so that a process that is killed is known by its last line.
fn run_cases(seed: u64, cases: u64, is_talkative: bool) {
    let samples = samples();
    let mut slowest = (Duration::ZERO, String::new());
    let only = std::env::var("HIKAE_HOSTILE_ONLY").ok();
    let first = setting("HIKAE_HOSTILE_FIRST", 0);
    for (index, sample) in samples.iter().enumerate() {
        if only.as_ref().is_some_and(|only| *only != sample.name) {
            continue;
        }
        for case in first..first + cases {
            let own = seed.wrapping_mul(1_000_003) ^ (index as u64) << 48 ^ case;
            let name = format!("{}, seed {seed}, case {case}", sample.name);
            if is_talkative {
                println!("CASE {name}");
            }
            let files = lie(sample, &mut Numbers::new(own));
            let started = Instant::now();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                put_through(sample.format, &files);
            }));
            assert!(outcome.is_ok(), "{name}");
            let took = started.elapsed();
            assert!(took < CASE_LIMIT, "{name}: {took:?}");
            if took > slowest.0 {
                slowest = (took, name);
            }
        }
    }
    if is_talkative {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak = status.lines().find(|line| line.starts_with("VmHWM"));
        println!("SLOWEST {:?} {}", slowest.0, slowest.1);
        println!(
            "DONE {} cases, {}",
            cases * samples.len() as u64,
            peak.unwrap_or("")
        );
    }
}

/// The child of the next test; alone, a few cases without limits.
#[test]
fn lies_give_bytes_or_a_typed_error() {
    if std::env::var_os("HIKAE_HOSTILE_CHILD").is_some() {
        let seed = setting("HIKAE_HOSTILE_SEED", 1);
        run_cases(seed, setting("HIKAE_HOSTILE_CASES", 12), true);
    } else {
        run_cases(77, 2, false);
    }
}

#[test]
fn lies_cost_little_memory_and_time() {
    let has_prlimit = Command::new("prlimit").arg("--version").output().is_ok();
    if !has_prlimit {
        assert!(std::env::var_os("CI").is_none(), "no prlimit");
        println!("SKIP: no prlimit");
        return;
    }
    let output = Command::new("prlimit")
        .arg(format!("--data={MEMORY_LIMIT_BYTES}"))
        .arg(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "hostile::lies_give_bytes_or_a_typed_error",
            "--nocapture",
        ])
        .env("HIKAE_HOSTILE_CHILD", "1")
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let last: Vec<&str> = said.lines().rev().take(8).collect();
    assert!(
        output.status.success() && said.contains("DONE"),
        "{}: {last:#?}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    for line in said
        .lines()
        .filter(|line| line.starts_with("DONE") || line.starts_with("SLOW"))
    {
        println!("{line}");
    }
}
