//! Raw disks from a seed, and changes to them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: u64 = 64 << 10;

/// SplitMix64: the same numbers from the same seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// One below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes
    }
}

/// Makes a sparse disk of `size_bytes`, of which about `data_bytes` are incompressible data in runs of a MiB.
pub fn create(path: &Path, size_bytes: u64, data_bytes: u64, random: &mut Random) {
    let file = File::create(path).expect("create a disk");
    file.set_len(size_bytes).expect("its size");
    let runs = (data_bytes >> 20).max(1);
    let stride = size_bytes / runs / 4096 * 4096;
    for run in 0..runs {
        file.write_all_at(&random.bytes((1 << 20).min(stride)), run * stride)
            .expect("write a run");
    }
}

/// Overwrites `writes` ranges of up to two blocks anywhere; the ranges.
pub fn change(path: &Path, writes: u64, random: &mut Random) -> Vec<(u64, u64)> {
    let file = File::options().write(true).open(path).expect("open a disk");
    let size_bytes = file.metadata().expect("its size").len();
    let mut ranges = Vec::new();
    for _ in 0..writes {
        let length = 1 + random.below(2 * BLOCK);
        let offset = random.below(size_bytes - length);
        file.write_all_at(
            &random.bytes(length)[..usize::try_from(length).expect("small")],
            offset,
        )
        .expect("write");
        ranges.push((offset, length));
    }
    ranges
}

/// Hash of a whole file.
pub fn hash_file(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hasher.update_reader(file).expect("read a disk");
    hasher.finalize()
}
