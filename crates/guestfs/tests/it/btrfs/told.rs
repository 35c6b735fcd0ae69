//! What Linux tells of the files of a mounted image, and comparing it with what was read.

use std::path::Path;

use guestfs::filesystem::{FileKind, Metadata, Timestamp};
use serde_json::Value;

use crate::conformance::{Seen, Tree};

/// Fills a folder with what is nasty on any file system.
pub const FILL: &str = include_str!("../ext/fill.py");
/// Tells of every file below a folder.
pub const TELL: &str = include_str!("../ext/tell.py");
/// Fills a folder with what only Btrfs has.
pub const MORE: &str = include_str!("more.sh");

/// Does to a folder what a seed says.
pub const WANDER: &str = include_str!("wander.py");

/// Which times of directories must be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryTimes {
    /// All.
    Compared,
    /// None: Linux sets them when it replays a log.
    OfTheReplay,
}

/// Puts the scripts into a folder.
pub fn write_scripts(folder: &Path) {
    let scripts = [
        ("fill.py", FILL),
        ("tell.py", TELL),
        ("more.sh", MORE),
        ("wander.py", WANDER),
    ];
    for (name, text) in scripts {
        std::fs::write(folder.join(name), text).expect("a script");
    }
}

/// What was told, from a file in a folder.
pub fn read(folder: &Path, name: &str) -> Value {
    let text = std::fs::read(folder.join(name)).expect("what Linux told");
    serde_json::from_slice(&text).expect("JSON")
}

fn time(value: &Value) -> Option<Timestamp> {
    // What is behind the year 2262 fits into unsigned numbers only.
    let nanoseconds = value
        .as_i64()
        .map(i128::from)
        .or(value.as_u64().map(i128::from))?;
    Some(Timestamp {
        seconds: i64::try_from(nanoseconds.div_euclid(1_000_000_000)).expect("in range"),
        nanoseconds: u32::try_from(nanoseconds.rem_euclid(1_000_000_000)).expect("in range"),
    })
}

fn kind_of(metadata: &Metadata) -> (&'static str, Option<u64>, Option<u64>) {
    match metadata.kind {
        FileKind::Regular => ("reg", None, None),
        FileKind::Directory => ("dir", None, None),
        FileKind::SymbolicLink => ("lnk", None, None),
        FileKind::Fifo => ("fifo", None, None),
        FileKind::Socket => ("sock", None, None),
        FileKind::CharacterDevice(at) => ("chr", Some(at.major.into()), Some(at.minor.into())),
        FileKind::BlockDevice(at) => ("blk", Some(at.major.into()), Some(at.minor.into())),
        FileKind::ReparsePoint(tag) => panic!("a reparse point {tag}"),
    }
}

fn assert_file(path: &str, seen: &Seen, told: &Value, directories: DirectoryTimes) {
    let metadata = &seen.metadata;
    let number = |name: &str| told[name].as_u64();
    let (kind, major, minor) = kind_of(metadata);
    assert_eq!(Some(kind), told["kind"].as_str(), "{path}");
    assert_eq!((major, minor), (number("major"), number("minor")), "{path}");
    assert_eq!(Some(seen.file.number), number("inode"), "{path}");
    let owner = metadata.owner.expect("an owner");
    assert_eq!(Some(owner.mode.into()), number("mode"), "{path}: mode");
    assert_eq!(
        (Some(owner.user.into()), Some(owner.group.into())),
        (number("uid"), number("gid")),
        "{path}: owner"
    );
    assert_eq!(
        Some(metadata.link_count.into()),
        number("links"),
        "{path}: links"
    );
    assert_eq!(
        Some(metadata.allocated_bytes),
        number("allocated"),
        "{path}: allocated"
    );
    // The place of a subvolume in a snapshot has times of its own in each mount.
    let is_place = seen.file.number == 2;
    if !is_place && (kind != "dir" || directories == DirectoryTimes::Compared) {
        let times = metadata.times;
        assert_eq!(times.modified, time(&told["mtime"]), "{path}: modified");
        let changed = time(&told["ctime"]);
        // What lost a name in a replay was changed by it.
        let is_right = match directories {
            DirectoryTimes::Compared => times.changed == changed,
            DirectoryTimes::OfTheReplay => times.changed <= changed,
        };
        assert!(
            is_right,
            "{path}: changed {:?}, not {changed:?}",
            times.changed
        );
        assert_eq!(times.accessed, time(&told["atime"]), "{path}: accessed");
        // `btrfs-convert` knows no birth of the image that it leaves.
        let is_known = times.created.is_some() || path.contains("ext2_saved");
        assert!(is_known, "{path}: created");
    }
    if kind == "reg" {
        assert_eq!(Some(metadata.size_bytes), number("size"), "{path}: size");
        if seen.sha256.is_some() {
            assert_eq!(seen.sha256.as_deref(), told["sha256"].as_str(), "{path}");
        }
    }
    let target = seen.target.as_deref().map(String::from_utf8_lossy);
    assert_eq!(target.as_deref(), told["target"].as_str(), "{path}");
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let mut attributes: Vec<(String, String)> = (seen.attributes.iter())
        .map(|one| (one.name.to_string(), hex(&one.value)))
        .collect();
    attributes.sort();
    let expected: Vec<(String, String)> =
        serde_json::from_value(told["xattrs"].clone()).expect("pairs");
    assert_eq!(attributes, expected, "{path}: attributes");
}

/// Asserts that exactly the files that Linux told of were seen, as it told.
pub fn assert_told(what: &str, tree: &Tree, told: &Value, directories: DirectoryTimes) {
    let told = told.as_object().expect("files by path");
    for (path, value) in told {
        let bytes: Vec<u8> = (0..path.len() / 2)
            .map(|index| u8::from_str_radix(&path[index * 2..index * 2 + 2], 16).expect("hex"))
            .collect();
        let shown = format!("{what}: {}", String::from_utf8_lossy(&bytes));
        let seen = tree
            .get(&bytes)
            .unwrap_or_else(|| panic!("{shown} was not seen"));
        assert_file(&shown, seen, value, directories);
    }
    for path in tree.keys() {
        let hex: String = path.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(
            told.contains_key(&hex),
            "{what}: Linux does not see {}",
            String::from_utf8_lossy(path)
        );
    }
}
