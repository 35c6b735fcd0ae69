//! What the qcow2 and VMDK tests share: QEMU's tools as the second opinion, seeded disk contents, comparison.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::ReadAt;
use vdisk::file::{FileAccess, HostFile};

/// Whether QEMU's tools are there; says `SKIP:` where they are not, and fails in CI.
pub fn has_qemu() -> bool {
    if Command::new("qemu-img")
        .arg("--version")
        .output()
        .is_ok_and(|out| out.status.success())
    {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "qemu-img is missing: install qemu-utils"
    );
    println!("SKIP: qemu-img is not installed");
    false
}

/// Runs a QEMU tool, which must succeed, in a directory.
#[track_caller]
pub fn run(directory: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// `qemu-img` with arguments separated by blanks.
#[track_caller]
pub fn qemu_img(directory: &Path, line: &str) -> String {
    run(
        directory,
        "qemu-img",
        &line.split_whitespace().collect::<Vec<_>>(),
    )
}

/// `qemu-io` on one image, one command per entry.
#[track_caller]
pub fn qemu_io(directory: &Path, image: &str, format: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", format];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(image);
    let text = run(directory, "qemu-io", &arguments);
    assert!(
        !text.contains("error") && !text.contains("failed"),
        "qemu-io: {text}"
    );
}

/// `qemu-img check` finds neither corruption nor leaks.
#[track_caller]
pub fn check_clean(directory: &Path, image: &str) {
    let text = qemu_img(directory, &format!("check -f qcow2 {image}"));
    assert!(text.contains("No errors were found"), "{image}: {text}");
}

/// A host file, opened for reading.
pub fn open(path: &Path) -> Arc<dyn ReadAt> {
    Arc::new(HostFile::open(path, FileAccess::ReadOnly).expect("open"))
}

/// The raw contents as QEMU reads them.
pub fn raw_of(directory: &Path, image: &str, format: &str) -> Vec<u8> {
    let out: PathBuf = directory.join("out-of-qemu.raw");
    qemu_img(
        directory,
        &format!("convert -f {format} -O raw {image} out-of-qemu.raw"),
    );
    let bytes = std::fs::read(&out).expect("raw");
    std::fs::remove_file(&out).expect("remove");
    bytes
}

/// A small generator of numbers, so that a failure names one seed.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit.max(1)
    }
}

/// Disk contents with holes, text-like stretches and noise, in runs of 512 bytes to 128 KiB.
pub fn contents(seed: u64, size: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let mut disk = Vec::with_capacity(size);
    while disk.len() < size {
        let length = 512 << numbers.below(9);
        match numbers.below(5) {
            0 | 1 => disk.resize(disk.len() + length, 0),
            2 => {
                let word = numbers.next().to_le_bytes();
                disk.extend(word.iter().cycle().take(length));
            }
            _ => {
                for _ in 0..length / 8 {
                    disk.extend(numbers.next().to_le_bytes());
                }
            }
        }
    }
    disk.truncate(size);
    disk
}

/// Every byte, in one read and in odd pieces, and every extent that claims zeros.
#[track_caller]
pub fn assert_reads_as(disk: &dyn ReadAt, expected: &[u8], what: &str) {
    assert_eq!(disk.size_bytes(), expected.len() as u64, "{what}: size");
    let mut whole = vec![0xa5; expected.len()];
    disk.read_at(0, &mut whole)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    if let Some(at) = whole
        .iter()
        .zip(expected)
        .position(|(got, want)| got != want)
    {
        panic!("{what}: first difference at {at:#x}");
    }
    let mut numbers = Numbers::new(expected.len() as u64);
    for _ in 0..200 {
        let at = numbers.below(expected.len() as u64) as usize;
        let length = (numbers.below(70_000) as usize).min(expected.len() - at);
        let mut piece = vec![0xa5; length];
        disk.read_at(at as u64, &mut piece)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(
            piece == expected[at..at + length],
            "{what}: {length} bytes at {at:#x}"
        );
    }
    let mut at = 0u64;
    while at < disk.size_bytes() {
        let extent = disk
            .extent_at(at, u64::MAX)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(
            extent.offset == at && extent.length_bytes > 0 && extent.end() <= disk.size_bytes()
        );
        if extent.kind.is_zero() {
            let range = &expected[at as usize..extent.end() as usize];
            assert!(
                range.iter().all(|byte| *byte == 0),
                "{what}: {extent:?} is not zero"
            );
        }
        at = extent.end();
    }
    let mut beyond = [0u8; 2];
    let error = disk
        .read_at(disk.size_bytes() - 1, &mut beyond)
        .expect_err("behind the end");
    assert_eq!(error.kind(), block::ErrorKind::OutOfRange, "{what}");
}
