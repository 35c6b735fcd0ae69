//! NTFS: the corpora, volumes made by mkntfs and filled through ntfs-3g, files of CompactOS, journals, damage.

mod corpora;
mod damage;
mod journal;
mod made;
mod packed;
mod special;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use block::ReadAt;
use guestfs::filesystem::FileKind;
use guestfs::{FileId, FileName, FileSystem};

use crate::conformance::{Seen, Tree};

/// Opens as the suites want it.
pub fn open(volume: Arc<dyn ReadAt>) -> Box<dyn FileSystem> {
    Box::new(guestfs::ntfs::open(volume).expect("an NTFS"))
}

/// A file by its path.
pub fn at(fs: &dyn FileSystem, path: &str) -> FileId {
    path.split('/')
        .filter(|part| !part.is_empty())
        .fold(fs.root(), |directory, name| {
            fs.find(directory, &FileName::from(name))
                .unwrap_or_else(|error| panic!("{path}: {error}"))
                .unwrap_or_else(|| panic!("no {name} of {path}"))
        })
}

/// Everything of a stream.
pub fn bytes(fs: &dyn FileSystem, file: FileId, stream: Option<&str>) -> Vec<u8> {
    let name = stream.map(FileName::from);
    let reader = fs.open(file, name.as_ref()).expect("the stream opens");
    let mut bytes = vec![0; usize::try_from(reader.size_bytes()).expect("small")];
    reader.read_at(0, &mut bytes).expect("the stream reads");
    bytes
}

/// What a mount shows, as `fill.py tell` wrote it down: kind, size, and hash or target by path.
pub type Told = BTreeMap<String, (String, u64, String)>;

pub fn told(path: &Path) -> Told {
    let text = std::fs::read_to_string(path).expect("what the mount showed");
    let entries: Vec<(String, String, u64, String)> =
        serde_json::from_str(&text).expect("a list in JSON");
    entries
        .into_iter()
        .map(|(path, kind, size, content)| (path, (kind, size, content)))
        .collect()
}

/// What the reader saw, in the same words.
pub fn seen(tree: &Tree) -> Told {
    tree.iter()
        .filter(|(path, _)| path.as_slice() != b"/")
        .map(|(path, seen)| (String::from_utf8_lossy(path).into_owned(), words(seen)))
        .collect()
}

fn words(seen: &Seen) -> (String, u64, String) {
    let (kind, content) = match seen.metadata.kind {
        FileKind::Regular => ("file", seen.sha256.clone().unwrap_or_default()),
        FileKind::Directory => return ("dir".to_owned(), 0, String::new()),
        FileKind::SymbolicLink => {
            let target = seen.target.clone().unwrap_or_default();
            ("symlink", String::from_utf8_lossy(&target).into_owned())
        }
        FileKind::Fifo => ("fifo", String::new()),
        FileKind::Socket => ("socket", String::new()),
        FileKind::CharacterDevice(number) => ("char", format!("{}:{}", number.major, number.minor)),
        FileKind::BlockDevice(number) => ("block", format!("{}:{}", number.major, number.minor)),
        FileKind::ReparsePoint(tag) => ("reparse", format!("{tag:#x}")),
    };
    (kind.to_owned(), seen.metadata.size_bytes, content)
}

/// Asserts that two trees are equal, naming the first differences.
pub fn assert_equal(seen: &Told, told: &Told) {
    let differences: Vec<String> = told
        .iter()
        .filter(|(path, what)| seen.get(*path) != Some(what))
        .map(|(path, what)| format!("{path}: {:?}, but {what:?}", seen.get(path)))
        .chain(
            seen.keys()
                .filter(|path| !told.contains_key(*path))
                .map(|path| format!("{path} should not be there")),
        )
        .take(10)
        .collect();
    assert!(differences.is_empty(), "{differences:#?}");
}
