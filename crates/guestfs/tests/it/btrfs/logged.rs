//! Images as a crash leaves them: what was synced behind the last commit is in the log.

use std::path::Path;

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::filesystem::Cleanliness;

use super::told::{self, DirectoryTimes, assert_told};
use crate::conformance;
use crate::images::{FileVolume, has_commands, missing, script};

/// What happens before the last commit, and behind it.
const BEFORE: &str = r#"
import os, random
dice = random.Random(5)
def put(path, data):
    with open(path, "wb") as file: file.write(data)
os.chdir("m")
for folder in ("a", "b", "c", "c/d", "gone", "moved"): os.mkdir(folder)
for name in ("grown", "shrunk", "over", "hole", "inline", "attributes", "kept"): put(name, dice.randbytes(300000 if name != "inline" else 100))
for number in range(20): put(f"a/{number}", bytes([number]) * 5000)
os.link("a/1", "b/one"); os.link("a/1", "b/uno")
for number in range(400): os.link("a/2", f"b/{number:03d}" + "l" * 150)
put("gone/x", b"x"); put("moved/y", b"y" * 9000); put("moved/z", b"z")
os.setxattr("attributes", "user.old", b"old"); os.setxattr("attributes", "user.stays", b"stays")
os.symlink("target", "link")
"#;

/// Each case is a script of its own on a fresh copy of the same file system.
const CASES: [(&str, &str); 12] = [
    (
        "a file that grew",
        "f = os.open('grown', os.O_RDWR); os.pwrite(f, b'more' * 50000, 290000); os.fsync(f)",
    ),
    (
        "a new file",
        "put('new', dice.randbytes(150000)); sync('new'); put('new small', b'small'); sync('new small')",
    ),
    (
        "a file that shrank and grew",
        "os.truncate('shrunk', 100001); sync('shrunk'); os.truncate('shrunk', 250000); sync('shrunk')",
    ),
    (
        "parts written over",
        "f = os.open('over', os.O_RDWR)\nfor at in (5000, 100000, 131072, 200001): os.pwrite(f, b'over' * 3000, at)\nos.fsync(f)",
    ),
    (
        "a hole punched and space reserved",
        "import subprocess\nsubprocess.run(['fallocate', '-p', '-o', '40960', '-l', '81920', 'hole'], check=True); sync('hole')\nsubprocess.run(['fallocate', '-l', '700000', 'kept'], check=True); sync('kept')",
    ),
    (
        "a small file that grew out of its inode",
        "put('inline', b'i' * 3000); sync('inline'); put('tiny', b't'); sync('tiny'); f = os.open('tiny', os.O_RDWR); os.pwrite(f, b'T' * 10000, 4096); os.fsync(f)",
    ),
    (
        "attributes",
        "os.removexattr('attributes', 'user.old'); os.setxattr('attributes', 'user.new', b'n' * 500); os.chmod('attributes', 0o640); os.chown('attributes', 12, 34); sync('attributes')",
    ),
    (
        "links made and taken away",
        "os.link('a/3', 'c/three'); os.unlink('b/one'); sync('a/3'); sync('a/1'); os.link('a/2', 'c/d/two'); os.unlink('b/007' + 'l' * 150); sync('a/2')",
    ),
    (
        "renames",
        "os.rename('a/4', 'c/d/four'); sync('c/d/four'); os.rename('moved/y', 'moved/w'); sync('moved/w'); os.rename('a/5', 'a/6'); sync('a/6')",
    ),
    (
        "a folder",
        "put('c/new', b'n' * 70000); os.mkdir('c/e'); put('c/e/f', b'f'); os.unlink('a/7'); os.unlink('a/8'); put('a/new', b'a'); sync('a'); sync('c'); sync('c/e/f')",
    ),
    (
        "a file unlinked while open",
        "f = os.open('a/9', os.O_RDWR); os.unlink('a/9'); os.write(f, b'zzz'); os.fsync(f); put('after', b'after'); sync('after')",
    ),
    (
        "many things at once",
        "for number in range(10, 20):\n    os.rename(f'a/{number}', f'b/r{number}'); sync(f'b/r{number}')\nos.unlink('b/uno'); sync('b')\nos.symlink('there', 'b/new link'); os.mkfifo('b/fifo'); sync('b')\nfor number in range(500): put(f'c/many {number}', b'm' * (number * 7))\nsync('c'); f = os.open('c/many 499', os.O_RDWR); os.pwrite(f, b'q' * 100000, 1 << 20); os.fsync(f)",
    ),
];

const PRELUDE: &str = r#"
import os, random
dice = random.Random(9)
def put(path, data):
    with open(path, "wb") as file: file.write(data)
def sync(path):
    f = os.open(path, os.O_RDONLY); os.fsync(f); os.close(f)
os.chdir("m")
"#;

/// Runs a script that leaves what a crash leaves and what Linux made of it, and compares; whether there was a log.
fn compare(folder: &Path, what: &str, text: &str) -> bool {
    script(folder, text).unwrap_or_else(|why| panic!("{what}: {why}"));
    let volume = FileVolume::open(&folder.join("image"));
    let fs = guestfs::btrfs::open(volume.clone()).unwrap_or_else(|why| panic!("{what}: {why}"));
    // What a log cannot say makes Linux commit: then there is none.
    let mut log_root = [0; 8];
    volume
        .read_at(65_536 + 96, &mut log_root)
        .expect("the superblock");
    let is_logged = u64::from_le_bytes(log_root) != 0;
    let wanted = if is_logged {
        Cleanliness::Replayed
    } else {
        Cleanliness::Clean
    };
    assert_eq!(fs.facts().cleanliness, wanted, "{what}");
    let tree = conformance::check(&fs);
    let told = told::read(folder, "told.json");
    assert_told(what, &tree, &told, DirectoryTimes::OfTheReplay);
    conformance::check_unused(volume, &tree, &super::open);
    is_logged
}

fn check(options: &str, mount: &str) {
    if !has_commands(&["mkfs.btrfs", "btrfs", "python3", "unshare", "mount"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    told::write_scripts(folder.path());
    std::fs::write(folder.path().join("before.py"), BEFORE).expect("a script");
    let text = format!(
        "truncate -s 300M base; mkfs.btrfs -q {options} base; mkdir m; mount -o loop,noatime,{mount} base m
         python3 before.py; umount m"
    );
    if let Err(why) = script(folder.path(), &text) {
        missing(&format!("Btrfs {options}: {why}"));
        return;
    }
    let mut logged = 0;
    for (case, steps) in CASES {
        let what = format!("{case} ({options}, {mount})");
        std::fs::write(folder.path().join("case.py"), format!("{PRELUDE}{steps}\n"))
            .expect("a script");
        let text = format!(
            "cp --sparse=always base disk; mount -o loop,noatime,commit=300,{mount} disk m
             python3 case.py; cp --sparse=always disk image; umount m
             cp --sparse=always image mounted; mount -o loop,noatime mounted m; mount -o remount,ro m
             python3 tell.py m > told.json; umount m; btrfs check mounted"
        );
        logged += usize::from(compare(folder.path(), &what, &text));
    }
    assert!(logged > 7, "only {logged} cases left a log");
}

#[test]
fn a_crash_with_a_log_reads_as_after_its_replay() {
    check("", "rw");
}

#[test]
fn a_crash_with_a_log_of_packed_files_with_holes_reads_as_after_its_replay() {
    check("-O ^no-holes -n 4096", "compress-force=zstd");
}

#[test]
fn whatever_was_done_before_a_crash_reads_as_after_its_replay() {
    if !has_commands(&["mkfs.btrfs", "btrfs", "python3", "unshare", "mount"]) {
        return;
    }
    let first: u64 = (std::env::var("HIKAE_SEED").ok())
        .map_or(1, |seed| seed.parse().expect("a number in HIKAE_SEED"));
    let count: u64 = (std::env::var("HIKAE_SEEDS").ok())
        .map_or(3, |count| count.parse().expect("a number in HIKAE_SEEDS"));
    let folder = tempfile::tempdir().expect("a folder");
    told::write_scripts(folder.path());
    let mut logged = 0;
    for seed in first..first + count {
        let (options, mount) = [
            ("", "rw"),
            ("-O ^no-holes -n 4096", "compress-force=zstd"),
            ("-M -n 4096", "nodatacow"),
            ("--csum sha256 -n 65536", "compress=lzo,autodefrag"),
        ][usize::try_from(seed % 4).expect("small")];
        let text = format!(
            "rm -rf m disk image mounted; truncate -s 300M disk; mkfs.btrfs -q -f {options} disk; mkdir m
             mount -o loop,noatime,commit=300,{mount} disk m
             python3 wander.py m {seed} 300; btrfs filesystem sync m; python3 wander.py m 1{seed} 60
             cp --sparse=always disk image; umount m
             cp --sparse=always image mounted; mount -o loop,noatime mounted m; mount -o remount,ro m
             python3 tell.py m > told.json; umount m; btrfs check mounted"
        );
        if seed == first && script(folder.path(), &text).is_err() {
            missing("Btrfs cannot be made or mounted here");
            return;
        }
        logged += u64::from(compare(folder.path(), &format!("seed {seed}"), &text));
    }
    assert!(logged > 0, "none of {count} left a log");
}
