//! What the VHDX tests share: a model disk, comparing disks without reading what both know to be zero, host files, qemu-img.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use block::{ReadAt, WriteAt};
use vdisk::DiskId;
use vdisk::memory::MemoryFile;
use vdisk::vhdx::{CreateOptions, IdSource};

/// One change of a disk.
#[derive(Debug, Clone)]
pub enum Step {
    Write { offset: u64, length: u64, seed: u8 },
    WriteZeros { offset: u64, length: u64 },
    Zero { offset: u64, length: u64 },
    Flush,
    Reopen,
}

/// A write of [`pattern`].
pub fn write(offset: u64, length: u64, seed: u8) -> Step {
    Step::Write {
        offset,
        length,
        seed,
    }
}

/// A zeroing.
pub fn zero(offset: u64, length: u64) -> Step {
    Step::Zero { offset, length }
}

/// Bytes that differ from sector to sector and are never zero.
pub fn pattern(offset: u64, length: u64, seed: u8) -> Vec<u8> {
    (offset..offset + length)
        .map(|at| ((at / 512).wrapping_mul(31) as u8 ^ (at as u8).wrapping_mul(7) ^ seed) | 1)
        .collect()
}

/// Does a step on any disk.
pub fn apply(disk: &dyn WriteAt, step: &Step) -> block::Result<()> {
    match step {
        Step::Write {
            offset,
            length,
            seed,
        } => disk.write_at(*offset, &pattern(*offset, *length, *seed)),
        Step::WriteZeros { offset, length } => disk.write_at(*offset, &vec![0; *length as usize]),
        Step::Zero { offset, length } => disk.zero_range(*offset, *length),
        Step::Flush => disk.flush(),
        Step::Reopen => Ok(()),
    }
}

/// Panics at the first difference between what two disks read as.
pub fn assert_same(found: &dyn ReadAt, wanted: &dyn ReadAt, context: &str) {
    assert_eq!(found.size_bytes(), wanted.size_bytes(), "{context}: size");
    let mut at = 0;
    while at < wanted.size_bytes() {
        let a = found.extent_at(at, 1 << 40).expect("extent");
        let b = wanted.extent_at(at, 1 << 40).expect("extent");
        assert_eq!((a.offset, b.offset), (at, at), "{context}");
        let both_zero = a.kind.is_zero() && b.kind.is_zero();
        let length = a.length_bytes.min(b.length_bytes);
        let length = if both_zero {
            length
        } else {
            length.min(1 << 20)
        };
        assert!(length > 0, "{context}: empty extent at {at}");
        if !both_zero {
            let (mut x, mut y) = (vec![0; length as usize], vec![1; length as usize]);
            found.read_at(at, &mut x).expect("read");
            wanted.read_at(at, &mut y).expect("read");
            if let Some(first) = (0..x.len()).find(|index| x[*index] != y[*index]) {
                panic!(
                    "{context}: byte {} is {:#x}, not {:#x} (extents {a:?} {b:?})",
                    at + first as u64,
                    x[first],
                    y[first]
                );
            }
            if a.kind.is_zero() {
                assert!(
                    x.iter().all(|byte| *byte == 0),
                    "{context}: {a:?} is not zero"
                );
            }
        }
        at += length;
    }
}

/// Options with a fixed seed.
pub fn options(size_bytes: u64) -> CreateOptions {
    CreateOptions::new(
        size_bytes,
        DiskId(uuid::Uuid::from_u128(0xD15C)),
        IdSource::seeded(7),
    )
}

/// A shared handle on a memory file, as the image code wants it.
pub fn writable(file: &Arc<MemoryFile>) -> Arc<dyn WriteAt> {
    Arc::clone(file) as Arc<dyn WriteAt>
}

/// A shared handle for reading.
pub fn readable(file: &Arc<MemoryFile>) -> Arc<dyn ReadAt> {
    Arc::clone(file) as Arc<dyn ReadAt>
}

/// Writes a disk to the host, leaving holes.
pub fn export(disk: &dyn ReadAt, path: &Path) {
    let mut file = File::create(path).expect("create");
    file.set_len(disk.size_bytes()).expect("size");
    let mut at = 0;
    let mut buffer = vec![0; 1 << 20];
    while at < disk.size_bytes() {
        let extent = disk.extent_at(at, 1 << 20).expect("extent");
        if !extent.kind.is_zero() {
            let piece = &mut buffer[..extent.length_bytes as usize];
            disk.read_at(at, piece).expect("read");
            file.seek(SeekFrom::Start(at)).expect("seek");
            file.write_all(piece).expect("write");
        }
        at += extent.length_bytes;
    }
}

/// Reads a host file into memory.
pub fn import(path: &Path) -> Arc<MemoryFile> {
    let mut file = File::open(path).expect("open");
    let memory = MemoryFile::with_size(file.metadata().expect("metadata").len());
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let count = file.read(&mut buffer).expect("read");
        if count == 0 {
            return Arc::new(memory);
        }
        memory.write_at(at, &buffer[..count]).expect("memory");
        at += count as u64;
    }
}

/// Whether qemu-img is there; where it is not, CI fails and others are told.
pub fn has_qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "no qemu-img");
    if !found {
        println!("SKIP: no qemu-img");
    }
    found
}

/// Runs qemu-img and fails with what it said.
pub fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("qemu-img runs");
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Lets qemu-img check an image and compare it with what it must read as.
pub fn qemu_agrees(image: &Path, wanted: &dyn ReadAt) {
    let raw = image.with_extension("wanted.raw");
    export(wanted, &raw);
    let (image, raw) = (image.to_str().expect("path"), raw.to_str().expect("path"));
    qemu_img(&["check", "-q", "-f", "vhdx", image]);
    qemu_img(&["compare", "-q", "-f", "vhdx", "-F", "raw", image, raw]);
}
