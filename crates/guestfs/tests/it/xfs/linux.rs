//! What Linux says of a mounted file system: every name with its metadata, attributes, and the hash of its contents.

use std::path::Path;

use guestfs::filesystem::{FileKind, Timestamp};

use crate::conformance::{Seen, Tree};
use crate::images::script;

/// Lists a folder into a file, one JSON array a line.
pub const LISTER: &str = r#"
import hashlib, json, os, stat, sys
top, out = os.fsencode(sys.argv[1]), open(sys.argv[2], 'w')
def attributes(path):
    # Access lists are told as such; XFS shows them a second time, in its own form.
    return sorted((n.encode().hex(), os.getxattr(path, n, follow_symlinks=False).hex())
                  for n in os.listxattr(path, follow_symlinks=False) if not n.startswith('trusted.SGI_ACL'))
def tell(path, name):
    s = os.lstat(path)
    digest = link = None
    if stat.S_ISREG(s.st_mode) and s.st_blocks * 512 < 100 << 20 and s.st_size < 120 << 20:
        digest = hashlib.sha256(open(path, 'rb').read()).hexdigest()
    if stat.S_ISLNK(s.st_mode):
        link = os.readlink(path).hex()
    print(json.dumps([name.hex(), s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_size, s.st_blocks, s.st_mtime_ns,
                      s.st_ctime_ns, s.st_ino, s.st_rdev, link, digest, attributes(path)]), file=out)
tell(top, b'/')
for folder, folders, files in os.walk(top):
    for name in folders + files:
        path = os.path.join(folder, name)
        tell(path, path[len(top):])
"#;

fn number(line: &serde_json::Value, index: usize) -> i128 {
    line[index].as_i64().map_or_else(
        || line[index].as_u64().expect("a number").into(),
        i128::from,
    )
}

fn bytes(line: &serde_json::Value) -> Vec<u8> {
    let text = line.as_str().expect("hex").as_bytes();
    text.chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex"))
        .collect()
}

fn nanoseconds(time: Option<Timestamp>) -> i128 {
    let time = time.expect("a time");
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds)
}

/// Holds a tree against what Linux told; `what` names both in messages.
pub fn compare(what: &str, tree: &Tree, listed: &Path) {
    let text = std::fs::read_to_string(listed).expect("a listing");
    let mut count = 0;
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let path = bytes(&line[0]);
        let place = format!("{what}: {}", String::from_utf8_lossy(&path));
        let seen = tree
            .get(&path)
            .unwrap_or_else(|| panic!("{place} is missing"));
        compare_metadata(&place, seen, &line);
        if !line[11].is_null() {
            assert_eq!(seen.target, Some(bytes(&line[11])), "{place}: target");
        }
        if let Some(sum) = line[12].as_str() {
            assert_eq!(seen.sha256.as_deref(), Some(sum), "{place}: contents");
        }
        let mut attributes: Vec<(Vec<u8>, Vec<u8>)> = (seen.attributes.iter())
            .map(|one| (one.name.as_bytes().to_vec(), one.value.clone()))
            .collect();
        attributes.sort();
        let wanted: Vec<(Vec<u8>, Vec<u8>)> = (line[13].as_array().expect("attributes").iter())
            .map(|pair| (bytes(&pair[0]), bytes(&pair[1])))
            .collect();
        assert_eq!(attributes, wanted, "{place}: attributes");
        count += 1;
    }
    assert_eq!(tree.len(), count, "{what}: files that Linux does not have");
}

fn compare_metadata(place: &str, seen: &Seen, line: &serde_json::Value) {
    let told = &seen.metadata;
    let mode = number(line, 1);
    let owner = told.owner.expect("owner");
    assert_eq!(
        (
            i128::from(owner.mode),
            i128::from(owner.user),
            i128::from(owner.group),
            i128::from(told.link_count),
        ),
        (
            mode & 0o7777,
            number(line, 2),
            number(line, 3),
            number(line, 4)
        ),
        "{place}: mode, owner, links"
    );
    let kind = match told.kind {
        FileKind::Fifo => 0o1,
        FileKind::CharacterDevice(_) => 0o2,
        FileKind::Directory => 0o4,
        FileKind::BlockDevice(_) => 0o6,
        FileKind::Regular => 0o10,
        FileKind::SymbolicLink => 0o12,
        FileKind::Socket => 0o14,
        FileKind::ReparsePoint(_) => panic!("{place}: a reparse point"),
    };
    assert_eq!(kind, mode >> 12, "{place}: kind");
    if matches!(told.kind, FileKind::Regular | FileKind::SymbolicLink) {
        assert_eq!(
            i128::from(told.size_bytes),
            number(line, 5),
            "{place}: size"
        );
    }
    let allocated = i128::from(told.allocated_bytes);
    assert_eq!(allocated, number(line, 6) * 512, "{place}: blocks");
    let (modified, changed) = (told.times.modified, told.times.changed);
    assert_eq!(nanoseconds(modified), number(line, 7), "{place}: modified");
    assert_eq!(nanoseconds(changed), number(line, 8), "{place}: changed");
    assert_eq!(
        i128::from(seen.file.number),
        number(line, 9),
        "{place}: inode"
    );
    if let FileKind::CharacterDevice(device) | FileKind::BlockDevice(device) = told.kind {
        let rdev = i128::from(device.major) << 8 | i128::from(device.minor);
        assert_eq!(rdev, number(line, 10), "{place}: device");
    }
}

/// Makes an XFS of 400 MiB and a folder to mount it on. mkfs makes logs as small as tests want them, which then go
/// round, when it is told that they are tests.
pub fn make(folder: &Path, image: &str, options: &str) {
    let text = format!(
        "truncate -s 400M {image}; mkdir -p mnt
         TEST_DIR=. TEST_DEV=. QA_CHECK_FS=1 mkfs.xfs -q {options} {image}"
    );
    script(folder, &text).unwrap_or_else(|why| panic!("mkfs.xfs {options}: {why}"));
}

/// Mounts a copy of an image, which replays its log, and lists it; the copy stays, unmounted.
pub fn list(folder: &Path, image: &str, listed: &str) -> Result<(), String> {
    std::fs::write(folder.join("lister.py"), LISTER).map_err(|error| error.to_string())?;
    let text = format!(
        "cp --sparse=always {image} {listed}.image
         mkdir -p {listed}.mnt; mount -o loop,nouuid,noatime {listed}.image {listed}.mnt
         python3 lister.py {listed}.mnt {listed}
         stat -f -c '%f %b' {listed}.mnt > {listed}.space
         umount {listed}.mnt"
    );
    script(folder, &text).map(|_| ())
}
