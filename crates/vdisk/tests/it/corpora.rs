//! The corpus of real and generated images: finding it, unpacking it into sparse memory files, hashing what is read.
//!
//! The corpus lies at `../shared/corpora` beside the workspace; `HIKAE_CORPORA` names another place. Where it is missing,
//! tests fail when `CI` is set and say `SKIP:` otherwise.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use block::{ReadAt, WriteAt};
use sha2::{Digest, Sha256};
use vdisk::memory::MemoryFile;

/// One image of the manifest.
#[derive(Debug, Clone)]
pub struct CorpusImage {
    /// Relative to the corpus.
    pub path: String,
    pub group: String,
    pub format: String,
    pub kind: String,
    pub parent: Option<String>,
    pub virtual_size_bytes: Option<u64>,
    /// Hash of the raw contents, on which independent readers agree.
    pub raw_sha256: Option<String>,
}

/// One generated case.
#[derive(Debug, Clone)]
pub struct SynthCase {
    pub name: String,
    /// File names in `synth/` without the packing suffix, leaf first.
    pub chain: Vec<String>,
    /// `ok`, `reject`, `reject-chain`.
    pub policy: String,
    pub virtual_size_bytes: Option<u64>,
    pub raw_sha256: Option<String>,
}

/// Where the corpus lies, or `None` after having said that the test is skipped.
pub fn root() -> Option<PathBuf> {
    let place = std::env::var_os("HIKAE_CORPORA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpora"),
        PathBuf::from,
    );
    if place.join("manifest.json").is_file() {
        return Some(place);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "no corpus at {}: set HIKAE_CORPORA",
        place.display()
    );
    println!("SKIP: no corpus at {}", place.display());
    None
}

/// All images of the manifest.
pub fn manifest(root: &Path) -> Vec<CorpusImage> {
    let text = std::fs::read_to_string(root.join("manifest.json")).expect("manifest");
    let json: serde_json::Value = serde_json::from_str(&text).expect("manifest is JSON");
    let word = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    json.as_array()
        .expect("manifest is a list")
        .iter()
        .map(|entry| CorpusImage {
            path: word(&entry["path"]).expect("path"),
            group: word(&entry["group"]).expect("group"),
            format: word(&entry["fmt"]).expect("fmt"),
            kind: word(&entry["kind"]).expect("kind"),
            parent: word(&entry["parent"]),
            virtual_size_bytes: entry["expected"]["virtual_size"].as_u64(),
            raw_sha256: word(&entry["expected"]["raw_sha256_ref"]),
        })
        .collect()
}

/// One image of the manifest by its path.
pub fn image(root: &Path, path: &str) -> CorpusImage {
    manifest(root)
        .into_iter()
        .find(|image| image.path == path)
        .expect("image in the manifest")
}

/// The generated cases whose leaf ends in one of these.
pub fn synth_cases(root: &Path, endings: &[&str]) -> Vec<SynthCase> {
    let text = std::fs::read_to_string(root.join("expected/synth.json")).expect("synth.json");
    let json: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).expect("JSON");
    json.into_iter()
        .map(|(name, case)| SynthCase {
            name,
            chain: case["chain_leaf_first"]
                .as_array()
                .expect("chain")
                .iter()
                .map(|file| file.as_str().expect("file name").to_owned())
                .collect(),
            policy: case["policy"].as_str().expect("policy").to_owned(),
            virtual_size_bytes: case["virtual_size"].as_u64(),
            raw_sha256: case["raw_sha256"].as_str().map(str::to_owned),
        })
        .filter(|case| endings.iter().any(|ending| case.chain[0].ends_with(ending)))
        .collect()
}

/// Unpacks a file into sparse memory; `path` is relative to the corpus, with or without its packing suffix.
pub fn load(root: &Path, path: &str) -> MemoryFile {
    let place = ["", ".xz", ".gz", ".bz2"]
        .iter()
        .map(|suffix| root.join(format!("{path}{suffix}")))
        .find(|place| place.is_file())
        .unwrap_or_else(|| panic!("no {path} in the corpus"));
    let name = place.to_string_lossy().into_owned();
    let file = BufReader::new(File::open(&place).expect("corpus file"));
    if name.ends_with(".xz") {
        sparse(lzma_rust2::XzReader::new(file, true))
    } else if name.ends_with(".gz") {
        sparse(flate2::bufread::MultiGzDecoder::new(file))
    } else if name.ends_with(".bz2") {
        sparse(bzip2::read::MultiBzDecoder::new(file))
    } else {
        sparse(file)
    }
}

fn sparse(mut source: impl Read) -> MemoryFile {
    let file = MemoryFile::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let count = source.read(&mut buffer).expect("unpacking");
        if count == 0 {
            return file;
        }
        file.write_at(at, &buffer[..count]).expect("memory");
        at += count as u64;
    }
}

/// SHA-256 of everything a disk reads as. Every byte is asked for, except where `extents` says to trust them.
pub fn sha256(disk: &dyn ReadAt, trust: Trust) -> String {
    const STEP: usize = 4 << 20;
    let zeros = vec![0u8; STEP];
    let mut buffer = vec![0u8; STEP];
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < disk.size_bytes() {
        let mut count = (disk.size_bytes() - at).min(STEP as u64);
        let mut is_zero = false;
        if trust == Trust::Extents {
            let extent = disk.extent_at(at, count).expect("extent");
            assert!(extent.length_bytes > 0 && extent.length_bytes <= count && extent.offset == at);
            count = extent.length_bytes;
            is_zero = extent.kind.is_zero();
        }
        let piece = &mut buffer[..count as usize];
        if is_zero {
            hash.update(&zeros[..count as usize]);
        } else {
            disk.read_at(at, piece).expect("read");
            hash.update(piece);
        }
        at += count;
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Whether hashing believes what extents say about zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Reads everything.
    Reads,
    /// Does not read what is said to be zero.
    Extents,
}
