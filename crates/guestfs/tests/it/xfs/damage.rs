//! Images that lie: a typed error or a part, in bounded time.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::filesystem::{Cleanliness, DirectoryCursor, FileKind};

use super::{linux, replay};
use crate::corpus::{self, Bytes, Dice};
use crate::images::{FileVolume, has_commands};

fn exercise(volume: Arc<dyn ReadAt>) {
    let Ok(fs) = guestfs::xfs::open(volume) else {
        return;
    };
    let mut waiting = vec![fs.root()];
    let mut steps = 0;
    while let Some(file) = waiting.pop() {
        steps += 1;
        if steps > 500 {
            break;
        }
        let _ = fs.extended_attributes(file);
        let _ = fs.read_link(file);
        if let Ok(contents) = fs.open(file, None) {
            let mut buffer = vec![0; 4096];
            let size = contents.size_bytes().min(4096);
            let length = usize::try_from(size).expect("small");
            let _ = contents.read_at(contents.size_bytes() - size, &mut buffer[..length]);
        }
        if fs
            .metadata(file)
            .is_ok_and(|it| it.kind == FileKind::Directory)
        {
            let _ = fs.list(file, DirectoryCursor::default(), &mut |entry| {
                waiting.push(entry.file);
                ControlFlow::Continue(())
            });
        }
    }
    let _ = fs.used_ranges(&mut |_| ControlFlow::Continue(()));
}

#[test]
fn lies_cost_little_and_never_panic() {
    let Some(image) = corpus::bytes("xfs/dissect-xfs_symlink_test.bin.gz") else {
        return;
    };
    // Damage goes where metadata is: what is not zero, in the first 1 MiB.
    for seed in 0..400 {
        let mut dice = Dice::new(seed);
        let mut bytes = image.clone();
        for _ in 0..=dice.below(40) {
            let from = if dice.below(10) == 0 { 0 } else { 512 };
            dice.damage(&mut bytes[..1 << 20], from);
        }
        let begin = Instant::now();
        exercise(Bytes::shared(bytes));
        assert!(begin.elapsed() < Duration::from_secs(5), "seed {seed}");
    }
}

/// Makes the checksums right of everything that has one.
fn mend(bytes: &mut [u8]) {
    let mut at = 0;
    while at + 512 <= bytes.len() {
        let (sum, length) = match &bytes[at..at + 4] {
            b"XFSB" => (224, 512),
            b"XAGF" => (216, 512),
            b"XAGI" => (312, 512),
            b"IN\x81\xA4" | b"IN\x41\xED" | b"IN\xA1\xFF" => (100, 512),
            b"AB3B" => (52, 4096),
            b"BMA3" => (64, 4096),
            b"XDB3" | b"XDD3" => (4, 4096),
            b"XSLM" => (12, 4096),
            _ => (0, 0),
        };
        if sum > 0 && at + length <= bytes.len() {
            let part = &mut bytes[at..at + length];
            part[sum..sum + 4].fill(0);
            let found = crc32c::crc32c(part);
            part[sum..sum + 4].copy_from_slice(&found.to_le_bytes());
        }
        at += 512;
    }
}

#[test]
fn lies_under_right_checksums_cost_little_and_never_panic() {
    let Some(image) = corpus::bytes("xfs/dissect-xfs_symlink_test.bin.gz") else {
        return;
    };
    for seed in 0..400 {
        let mut dice = Dice::new(0x5EED_0000 + seed);
        let mut bytes = image.clone();
        for _ in 0..=dice.below(30) {
            dice.damage(&mut bytes[..1 << 20], 512);
        }
        mend(&mut bytes[..1 << 20]);
        let begin = Instant::now();
        exercise(Bytes::shared(bytes));
        assert!(begin.elapsed() < Duration::from_secs(5), "seed {seed}");
    }
}

/// A volume with a few bytes changed.
struct Patched {
    volume: Arc<dyn ReadAt>,
    blocks: BTreeMap<u64, [u8; 512]>,
}

impl ReadAt for Patched {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.volume.read_at(offset, buffer)?;
        let end = offset + buffer.len() as u64;
        for (&number, bytes) in self.blocks.range(offset / 512..end.div_ceil(512)) {
            for (index, byte) in bytes.iter().enumerate() {
                let at = number * 512 + index as u64;
                if (offset..end).contains(&at) {
                    buffer[usize::try_from(at - offset).expect("small")] = *byte;
                }
            }
        }
        Ok(())
    }
}

/// How often a log went round.
pub fn newest_cycle(volume: &dyn ReadAt) -> u32 {
    let cycles = records(volume).into_iter().map(|(block, _)| {
        let mut bytes = [0; 4];
        volume.read_at(block * 512 + 4, &mut bytes).expect("inside");
        u32::from_be_bytes(bytes)
    });
    cycles.max().expect("a record")
}

/// Where the records of a log are: first block and how many, all within the volume.
fn records(volume: &dyn ReadAt) -> Vec<(u64, u64)> {
    let mut superblock = vec![0; 512];
    volume.read_at(0, &mut superblock).expect("inside");
    let word = |at: usize| u32::from_be_bytes(superblock[at..at + 4].try_into().expect("four"));
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    let (block, group, log) = (long(48), u64::from(word(84)), u32::from(superblock[124]));
    let first = ((block >> log) * group + (block & ((1 << log) - 1))) * u64::from(word(4)) / 512;
    let count = u64::from(word(96)) * u64::from(word(4)) / 512;
    let mut found = Vec::new();
    let mut at = first;
    let mut bytes = vec![0; 512];
    while at < first + count {
        volume.read_at(at * 512, &mut bytes).expect("inside");
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four"));
        if word(0) != 0xFEED_BABE || word(12) == 0 {
            at += 1;
            continue;
        }
        let blocks =
            u64::from(word(320).div_ceil(32 << 10).max(1)) + u64::from(word(12)).div_ceil(512);
        if at + blocks <= first + count {
            found.push((at, blocks));
        }
        at += blocks;
    }
    found
}

/// Wounds in one record, and its checksum made right again.
fn wound(patched: &mut Patched, record: (u64, u64), dice: &mut Dice) {
    let length = usize::try_from(record.1 * 512).expect("small");
    let mut bytes = vec![0; length];
    patched.read_at(record.0 * 512, &mut bytes).expect("inside");
    let headers = u32::from_be_bytes(bytes[320..324].try_into().expect("four"));
    let headers = headers.div_ceil(32 << 10).max(1) as usize;
    for _ in 0..=dice.below(6) {
        let from = if dice.below(8) == 0 {
            12
        } else {
            headers * 512
        };
        dice.damage(&mut bytes, from);
    }
    let body = u32::from_be_bytes(bytes[12..16].try_into().expect("four")) as usize;
    let end = (headers * 512 + body).min(length);
    if headers * 512 < end {
        bytes[32..36].fill(0);
        let mut sum = crc32c::crc32c(&bytes[..328]);
        for header in 1..body.div_ceil(32 << 10).min(headers) {
            sum = crc32c::crc32c_append(sum, &bytes[header * 512..header * 512 + 260]);
        }
        sum = crc32c::crc32c_append(sum, &bytes[headers * 512..end]);
        bytes[32..36].copy_from_slice(&sum.to_le_bytes());
    }
    for (block, bytes) in (record.0..).zip(bytes.chunks_exact(512)) {
        patched
            .blocks
            .insert(block, bytes.try_into().expect("a block"));
    }
}

#[test]
fn lies_in_a_log_cost_little_and_never_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = "-l size=16m -m rmapbt=1,reflink=1";
    if replay::crash(folder.path(), options, 4, 400, "flush").is_none() {
        return;
    }
    let volume: Arc<dyn ReadAt> = FileVolume::open(&folder.path().join("image"));
    let records = records(&*volume);
    assert!(records.len() > 3, "{records:?}");
    let (mut replayed, mut dirty) = (0, 0);
    for seed in 0..150 {
        let mut dice = Dice::new(seed);
        let mut patched = Patched {
            volume: Arc::clone(&volume),
            blocks: BTreeMap::new(),
        };
        for _ in 0..=dice.below(3) {
            let record = records[dice.below(records.len())];
            wound(&mut patched, record, &mut dice);
        }
        let begin = Instant::now();
        let patched: Arc<dyn ReadAt> = Arc::new(patched);
        match guestfs::xfs::open(Arc::clone(&patched)).map(|fs| fs.facts().cleanliness.clone()) {
            Ok(Cleanliness::Replayed) => replayed += 1,
            Ok(Cleanliness::Dirty(_)) => dirty += 1,
            Ok(Cleanliness::Clean) | Err(_) => {}
        }
        exercise(patched);
        assert!(begin.elapsed() < Duration::from_secs(10), "seed {seed}");
    }
    // Both happen: what is behind the checksums is reached, and what is found there is refused.
    assert!(replayed > 5 && dirty > 20, "{replayed} {dirty}");
}

/// The checksum of a sector of XFS at its place.
fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = crc32c::crc32c(bytes);
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn counts_of_free_space_that_do_not_agree_free_nothing() {
    if !has_commands(&["mkfs.xfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    linux::make(folder.path(), "image", "-m crc=1");
    let image = std::fs::read(folder.path().join("image")).expect("the image");
    let used = |bytes: Vec<u8>| {
        let fs = guestfs::xfs::open(Bytes::shared(bytes)).expect("an XFS");
        assert_eq!(fs.facts().cleanliness, Cleanliness::Clean);
        fs.used_ranges(&mut |_| ControlFlow::Continue(()))
            .map_err(|error| error.kind())
    };
    assert_eq!(used(image.clone()), Ok(()));
    // The superblock's count of free blocks; the first group's. Both sealed again.
    let mut bytes = image.clone();
    bytes[151] ^= 1;
    seal(&mut bytes[..512], 224);
    assert_eq!(used(bytes), Err(guestfs::ErrorKind::Corrupt));
    // Both of them less by one, so that they agree, and the tree does not.
    let mut bytes = image;
    for (sector, at, seal_at) in [(0..512, 144..152, 224), (512..1024, 52..56, 216)] {
        let sector = &mut bytes[sector];
        let less = sector[at.clone()]
            .iter()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
            - 1;
        let width = at.len();
        sector[at].copy_from_slice(&less.to_be_bytes()[8 - width..]);
        seal(sector, seal_at);
    }
    assert_eq!(used(bytes), Err(guestfs::ErrorKind::Corrupt));
}
