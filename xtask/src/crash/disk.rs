//! Raw disks from a seed, and changes to them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Content of a file, as BLAKE3 sees it.
pub(super) type ContentHash = blake3::Hash;

const BLOCK_BYTES: u64 = 64 << 10;

/// SplitMix64: the same numbers from the same seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`; zero when that is zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next().checked_rem(limit).unwrap_or(0)
    }

    /// A place in something of this length.
    pub(super) fn index(&mut self, length: usize) -> usize {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        usize::try_from(self.below(length)).unwrap_or(0)
    }

    /// A number between 0 and 1.
    pub(super) fn share(&mut self) -> f64 {
        f64::from(u32::try_from(self.below(1 << 32)).unwrap_or(0)) / f64::from(u32::MAX)
    }

    fn bytes(&mut self, count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while u64::try_from(bytes.len()).unwrap_or(u64::MAX) < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        bytes
    }
}

/// Makes a sparse disk whose first part of each MiB is incompressible data, about `data_bytes` in all.
pub(super) fn create(
    path: &Path,
    size_bytes: u64,
    data_bytes: u64,
    random: &mut Random,
) -> Result<()> {
    let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
    file.set_len(size_bytes)?;
    let runs = (size_bytes >> 20).max(1);
    for run in 0..runs {
        file.write_all_at(&random.bytes(data_bytes / runs), run << 20)?;
    }
    Ok(())
}

/// Overwrites as many blocks anywhere.
pub(super) fn change(path: &Path, blocks: u64, random: &mut Random) -> Result<()> {
    let file = File::options()
        .write(true)
        .open(path)
        .with_context(|| format!("change {}", path.display()))?;
    let count = file.metadata()?.len() / BLOCK_BYTES;
    for _ in 0..blocks {
        file.write_all_at(
            &random.bytes(BLOCK_BYTES),
            random.clone().below(count) * BLOCK_BYTES,
        )?;
        random.next();
    }
    Ok(())
}

/// Flips a byte of a file, whoever may write to it.
pub(super) fn flip(path: &Path, offset: u64) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let text = || format!("damage {}", path.display());
    let mut permissions = std::fs::metadata(path).with_context(text)?.permissions();
    permissions.set_mode(permissions.mode() | 0o200);
    std::fs::set_permissions(path, permissions).with_context(text)?;
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(text)?;
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, offset).with_context(text)?;
    file.write_all_at(&[byte[0] ^ 0x41], offset)
        .with_context(text)
}

/// Hash of a whole file.
pub(super) fn hash(path: &Path) -> Result<ContentHash> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    hasher.update_reader(file)?;
    Ok(hasher.finalize())
}
