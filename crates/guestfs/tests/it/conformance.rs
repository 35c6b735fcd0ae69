//! What every reader of a file system must do, whatever it reads: one suite for all of them.
//!
//! [`check`] walks a whole file system, asserts that its answers agree with each other, and gives back what it saw, so
//! that the caller compares that with what another tool says. [`check_unused`] proves that what is said to be unused
//! is not needed.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use block::{ExtentKind, ReadAt};
use guestfs::filesystem::{
    DirectoryCursor, DirectoryEntry, ExtendedAttribute, FileKind, Metadata, VolumeRange,
};
use guestfs::{ErrorKind, FileId, FileName, FileSystem};
use sha2::{Digest, Sha256};

use crate::images::OnlyUsed;

/// Bytes of data up to which a file is read whole and hashed.
const WHOLE_BYTES: u64 = 128 << 20;

/// A file as it was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub file: FileId,
    pub metadata: Metadata,
    /// Of its contents, in hex, when they could be read.
    pub sha256: Option<String>,
    pub target: Option<Vec<u8>>,
    pub attributes: Vec<ExtendedAttribute>,
}

/// Everything in a file system by its path, `/` for the root.
pub type Tree = BTreeMap<Vec<u8>, Seen>;

/// Walks a sound file system and asserts everything that must hold for any of them.
pub fn check(fs: &dyn FileSystem) -> Tree {
    check_nothing(fs);
    check_used(fs);
    let mut tree = Tree::new();
    let mut visited = HashSet::new();
    let mut stack = vec![(b"/".to_vec(), fs.root(), None)];
    while let Some((path, file, kind)) = stack.pop() {
        let seen = look(fs, &path, file, kind);
        if seen.metadata.kind == FileKind::Directory
            && seen.metadata.obstacle.is_none()
            && visited.insert(file)
        {
            for entry in check_directory(fs, &path, file) {
                let mut below = path.clone();
                if below != b"/" {
                    below.push(b'/');
                }
                below.extend_from_slice(entry.name.as_bytes());
                stack.push((below, entry.file, entry.kind));
            }
        }
        let known = tree.insert(path.clone(), seen);
        assert!(
            known.is_none(),
            "{} is there twice",
            String::from_utf8_lossy(&path)
        );
    }
    tree
}

/// Asserts that with everything unused turned into garbage the same is read.
pub fn check_unused(
    volume: Arc<dyn ReadAt>,
    tree: &Tree,
    open: &dyn Fn(Arc<dyn ReadAt>) -> Box<dyn FileSystem>,
) {
    let used = used_ranges(&*open(Arc::clone(&volume)));
    let covered: u64 = used.iter().map(|range| range.length_bytes).sum();
    assert!(covered <= volume.size_bytes());
    let again = check(&*open(OnlyUsed::new(volume, used)));
    assert_eq!(
        again.len(),
        tree.len(),
        "files were lost with what is unused"
    );
    for (path, seen) in tree {
        assert_eq!(
            again.get(path),
            Some(seen),
            "{}",
            String::from_utf8_lossy(path)
        );
    }
}

/// All used ranges.
pub fn used_ranges(fs: &dyn FileSystem) -> Vec<VolumeRange> {
    let mut used = Vec::new();
    fs.used_ranges(&mut |range| {
        used.push(range);
        ControlFlow::Continue(())
    })
    .expect("what is used");
    used
}

/// All entries behind a cursor.
pub fn entries(
    fs: &dyn FileSystem,
    directory: FileId,
    after: DirectoryCursor,
) -> Vec<DirectoryEntry> {
    let mut entries = Vec::new();
    fs.list(directory, after, &mut |entry| {
        entries.push(entry);
        ControlFlow::Continue(())
    })
    .unwrap_or_else(|error| panic!("listing {directory:?}: {error}"));
    entries
}

/// Ids that nothing has, and names that nobody gave.
fn check_nothing(fs: &dyn FileSystem) {
    let nothing = [
        FileId {
            tree: fs.root().tree,
            number: u64::MAX,
        },
        FileId {
            tree: u64::MAX,
            number: fs.root().number,
        },
    ];
    for file in nothing {
        let found = fs
            .metadata(file)
            .map(|_| ())
            .expect_err("metadata of nothing");
        assert_eq!(found.kind(), ErrorKind::NotFound, "{file:?}: {found}");
        let found = fs
            .list(file, DirectoryCursor::default(), &mut |_| {
                ControlFlow::Continue(())
            })
            .expect_err("names in nothing");
        assert_eq!(found.kind(), ErrorKind::NotFound, "{file:?}: {found}");
        assert!(fs.open(file, None).is_err() && fs.read_link(file).is_err());
    }
    let name = FileName::from("no such name: \u{1F427}");
    assert_eq!(fs.find(fs.root(), &name).expect("a search"), None);
    let facts = fs.facts();
    assert!(facts.free_bytes <= facts.size_bytes, "{facts:?}");
    assert!(facts.cluster_bytes >= 256, "{facts:?}");
}

fn check_used(fs: &dyn FileSystem) {
    let mut end = 0;
    let mut count = 0_u64;
    let told = fs.used_ranges(&mut |range| {
        assert!(
            range.length_bytes > 0 && (range.offset >= end || count == 0),
            "{range:?}"
        );
        end = range.offset + range.length_bytes;
        count += 1;
        ControlFlow::Continue(())
    });
    match told {
        Ok(()) => {
            assert!(count > 0, "nothing is used");
            let mut calls = 0;
            fs.used_ranges(&mut |_| {
                calls += 1;
                ControlFlow::Break(())
            })
            .expect("stopped");
            assert_eq!(calls, 1, "it was told to stop");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
    }
}

fn look(fs: &dyn FileSystem, path: &[u8], file: FileId, told: Option<FileKind>) -> Seen {
    let place = String::from_utf8_lossy(path).into_owned();
    let metadata = fs
        .metadata(file)
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    if let Some(told) = told {
        assert_eq!(told, metadata.kind, "{place}: kind in its directory");
    }
    let mut seen = Seen {
        file,
        sha256: None,
        target: None,
        attributes: fs
            .extended_attributes(file)
            .unwrap_or_else(|error| panic!("{place}: {error}")),
        metadata,
    };
    if seen.metadata.obstacle.is_some() {
        if seen.metadata.kind == FileKind::Regular {
            assert!(
                fs.open(file, None).is_err(),
                "{place}: opened in spite of an obstacle"
            );
        }
        return seen;
    }
    match seen.metadata.kind {
        FileKind::Regular => {
            let streams = fs
                .streams(file)
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            let first = streams
                .first()
                .unwrap_or_else(|| panic!("{place}: no contents"));
            assert_eq!(
                (&first.name, first.size_bytes),
                (&None, seen.metadata.size_bytes),
                "{place}"
            );
            let contents = fs
                .open(file, None)
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(contents.size_bytes(), seen.metadata.size_bytes, "{place}");
            seen.sha256 = check_contents(&place, &*contents);
            assert!(
                fs.open(file, Some(&FileName::from("no such stream")))
                    .is_err()
            );
            assert!(fs.read_link(file).is_err(), "{place} is no link");
            check_ranges(fs, &place, file);
        }
        FileKind::SymbolicLink => {
            let target = fs
                .read_link(file)
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            seen.target = Some(target.as_bytes().to_vec());
        }
        _ => assert!(fs.read_link(file).is_err(), "{place} is no link"),
    }
    if seen.metadata.kind != FileKind::Directory {
        let listed = fs.list(file, DirectoryCursor::default(), &mut |_| {
            ControlFlow::Continue(())
        });
        assert!(listed.is_err(), "{place} is no directory");
    }
    seen
}

fn check_ranges(fs: &dyn FileSystem, place: &str, file: FileId) {
    let size_bytes = fs.facts().size_bytes;
    let told = fs.file_ranges(file, &mut |range| {
        let end = range.offset + range.length_bytes;
        assert!(
            range.length_bytes > 0 && end <= size_bytes,
            "{place}: {range:?}"
        );
        ControlFlow::Continue(())
    });
    if let Err(error) = told {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{place}: {error}");
    }
}

fn check_directory(fs: &dyn FileSystem, path: &[u8], directory: FileId) -> Vec<DirectoryEntry> {
    let place = String::from_utf8_lossy(path).into_owned();
    assert!(
        fs.open(directory, None).is_err(),
        "{place}: a directory has no contents"
    );
    let all = entries(fs, directory, DirectoryCursor::default());
    let mut names = HashSet::new();
    for entry in &all {
        assert!(
            !matches!(entry.name.as_bytes(), b"" | b"." | b".."),
            "{place}: {entry:?}"
        );
        assert!(
            names.insert(entry.name.clone()),
            "{place}: {entry:?} is there twice"
        );
    }
    assert_eq!(
        entries(fs, directory, DirectoryCursor::default()),
        all,
        "{place}: not the same twice"
    );
    // Every place in a small directory, some in a large one.
    let step = all.len() / 25 + 1;
    for (index, entry) in all
        .iter()
        .enumerate()
        .step_by(step)
        .chain(all.iter().enumerate().next_back())
    {
        assert_eq!(
            entries(fs, directory, entry.next),
            all[index + 1..],
            "{place}, behind {index}"
        );
        let found = fs
            .find(directory, &entry.name)
            .unwrap_or_else(|error| panic!("{place}: {error}"));
        assert_eq!(found, Some(entry.file), "{place}: {}", entry.name);
    }
    let mut calls = 0;
    fs.list(directory, DirectoryCursor::default(), &mut |_| {
        calls += 1;
        ControlFlow::Break(())
    })
    .expect("stopped");
    assert_eq!(calls, all.len().min(1), "{place}: it was told to stop");
    all
}

/// Reads a file whole and in odd pieces, holds its extents against its bytes; the hash when it is not too large.
pub fn check_contents(place: &str, contents: &dyn ReadAt) -> Option<String> {
    let size_bytes = contents.size_bytes();
    let mut byte = [0];
    assert!(
        contents.read_at(size_bytes, &mut byte).is_err(),
        "{place}: read behind the end"
    );
    assert!(
        contents.read_at(u64::MAX, &mut byte).is_err(),
        "{place}: read at the end of the world"
    );
    contents
        .read_at(size_bytes, &mut [])
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    assert!(
        contents.extent_at(size_bytes, 1).is_err(),
        "{place}: an extent behind the end"
    );
    let mut hasher = (size_bytes <= WHOLE_BYTES).then(Sha256::new);
    let mut buffer = vec![0; 1 << 20];
    let mut position = 0;
    let mut data_bytes = 0;
    while position < size_bytes {
        let extent = contents
            .extent_at(position, u64::MAX)
            .unwrap_or_else(|error| panic!("{place}, extent at {position}: {error}"));
        assert!(extent.offset == position && extent.length_bytes > 0 && extent.end() <= size_bytes);
        assert_ne!(extent.kind, ExtentKind::InParent);
        let short = contents.extent_at(position, 1).expect("one byte of it");
        assert_eq!(
            (short.length_bytes, short.kind),
            (1, extent.kind),
            "{place}"
        );
        let mut at = position;
        while at < extent.end() {
            let count = (extent.end() - at).min(buffer.len() as u64) as usize;
            let part = &mut buffer[..count];
            contents
                .read_at(at, part)
                .unwrap_or_else(|error| panic!("{place}, {count} bytes at {at}: {error}"));
            if extent.kind.is_zero() {
                assert!(
                    part.iter().all(|&byte| byte == 0),
                    "{place}: {extent:?} is not zero"
                );
            } else {
                data_bytes += count as u64;
            }
            if let Some(hasher) = &mut hasher {
                hasher.update(&*part);
            }
            at += count as u64;
            // Of a huge hole its first part is enough; what holds data is always read.
            if hasher.is_none() && extent.kind.is_zero() || data_bytes > WHOLE_BYTES {
                break;
            }
        }
        position = extent.end();
    }
    check_pieces(place, contents);
    hasher.map(|hasher| {
        hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    })
}

/// Pieces of odd lengths at odd places are what the whole has there.
fn check_pieces(place: &str, contents: &dyn ReadAt) {
    let size_bytes = contents.size_bytes();
    let window = size_bytes.min(300_000) as usize;
    for start in [
        0,
        (size_bytes - window as u64) / 2,
        size_bytes - window as u64,
    ] {
        let mut whole = vec![0; window];
        contents
            .read_at(start, &mut whole)
            .unwrap_or_else(|error| panic!("{place}: {error}"));
        let mut at = 0;
        for length in [1, 2, 3, 511, 513, 4095, 4097, 1, 65_537, 7]
            .into_iter()
            .cycle()
        {
            let length = usize::min(length, window - at);
            if length == 0 {
                break;
            }
            let mut piece = vec![0xEE; length];
            contents
                .read_at(start + at as u64, &mut piece)
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(
                piece,
                whole[at..at + length],
                "{place}: {length} bytes at {at} behind {start}"
            );
            at += length;
        }
    }
}
