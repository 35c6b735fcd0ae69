//! Small files of the corpora in memory, and seeded damage.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::ReadAt;

/// Where the corpora are, or none; in CI they must be there.
fn root() -> Option<PathBuf> {
    let folder = std::env::var_os("HIKAE_CORPORA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpora"),
        PathBuf::from,
    );
    if folder.join("manifest.json").exists() {
        return Some(folder);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "the corpora are not there"
    );
    println!("SKIP: the corpora are not there");
    None
}

/// The entries of a group of the manifest.
pub fn entries(group: &str) -> Option<Vec<serde_json::Value>> {
    let text = std::fs::read(root()?.join("manifest.json")).expect("the manifest");
    let all: Vec<serde_json::Value> = serde_json::from_slice(&text).expect("a list");
    let found: Vec<_> = all
        .into_iter()
        .filter(|entry| entry["group"] == group)
        .collect();
    assert!(!found.is_empty(), "the group {group}");
    Some(found)
}

/// A file of the corpora, unpacked.
pub fn bytes(name: &str) -> Option<Vec<u8>> {
    let path = root()?.join(name);
    let packed = std::fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut bytes = Vec::new();
    let mut reader: Box<dyn std::io::Read> = match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => Box::new(lzma_rust2::XzReader::new(&packed[..], true)),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(&packed[..])),
        _ => return Some(packed),
    };
    std::io::Read::read_to_end(&mut reader, &mut bytes).expect("a packed file");
    Some(bytes)
}

/// Bytes as a volume.
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// For those who share.
    pub fn shared(bytes: Vec<u8>) -> Arc<dyn ReadAt> {
        Arc::new(Self(bytes))
    }
}

impl ReadAt for Bytes {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.0.get(start..start.checked_add(buffer.len())?))
            .ok_or_else(|| block::Error::new(block::ErrorKind::OutOfRange, "behind the end"))?;
        buffer.copy_from_slice(part);
        Ok(())
    }
}

/// Numbers that a seed decides (splitmix64).
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One below a limit that is at least 1.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).expect("below a usize")
    }

    /// One wound, behind byte `from`: a bit, a byte, a word, a run, or a copy of something else.
    pub fn damage(&mut self, bytes: &mut [u8], from: usize) {
        if bytes.len() <= from + 64 {
            return;
        }
        let at = from + self.below(bytes.len() - from - 64);
        match self.below(6) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.next().to_le_bytes()[0],
            2 => bytes[at..at + 4].fill(0xFF),
            3 => bytes[at..at + 4].fill(0),
            4 => {
                let word = u32::try_from(self.below(bytes.len())).expect("small");
                bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            _ => {
                let source = self.below(bytes.len() - 64);
                bytes.copy_within(source..source + 32, at);
            }
        }
    }
}
