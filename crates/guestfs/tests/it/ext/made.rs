//! Images made by mke2fs, filled by Linux with nasty things, and compared with what Linux says of them.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use guestfs::filesystem::{Cleanliness, DirectoryCursor, FileKind, Metadata, Timestamp};
use guestfs::{ErrorKind, FileName, FileSystem};
use serde_json::Value;

use crate::conformance::{self, Seen, Tree};
use crate::images::{FileVolume, has_commands, missing, script, search_path};

const FILL: &str = include_str!("fill.py");
const TELL: &str = include_str!("tell.py");

/// Makes, fills and describes an image; `None` when this machine cannot.
fn make(folder: &Path, options: &str, fill_words: &str) -> Option<Value> {
    std::fs::write(folder.join("fill.py"), FILL).expect("a script");
    std::fs::write(folder.join("tell.py"), TELL).expect("a script");
    let text = format!(
        "truncate -s 160M image; mke2fs -q -F {options} image; mkdir m
         mount -o loop,noatime image m; python3 fill.py m {fill_words}; umount m
         mount -o loop,ro image m; python3 tell.py m > told.json; umount m
         e2fsck -fn image >&2"
    );
    match script(folder, &text) {
        Ok(_) => {
            let told = std::fs::read(folder.join("told.json")).expect("what Linux told");
            Some(serde_json::from_slice(&told).expect("JSON"))
        }
        Err(why) => {
            missing(&format!("mke2fs {options}: {why}"));
            None
        }
    }
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

/// Linux tells of contents that lie in the inode as if they had sectors of their own.
fn assert_allocated(path: &str, metadata: &Metadata, told: &Value) {
    let in_inode = metadata.size_bytes.next_multiple_of(512);
    let allocated = told["allocated"].as_u64().expect("allocated");
    assert!(
        allocated == metadata.allocated_bytes
            || (in_inode <= 512 && allocated == metadata.allocated_bytes + in_inode),
        "{path}: {allocated}, not {}",
        metadata.allocated_bytes
    );
}

fn assert_file(path: &str, seen: &Seen, told: &Value) {
    let metadata = &seen.metadata;
    let kind = match told["kind"].as_str().expect("a kind") {
        "reg" => matches!(metadata.kind, FileKind::Regular),
        "dir" => matches!(metadata.kind, FileKind::Directory),
        "lnk" => matches!(metadata.kind, FileKind::SymbolicLink),
        "fifo" => matches!(metadata.kind, FileKind::Fifo),
        "sock" => matches!(metadata.kind, FileKind::Socket),
        device => {
            let number = match metadata.kind {
                FileKind::CharacterDevice(number) if device == "chr" => number,
                FileKind::BlockDevice(number) if device == "blk" => number,
                other => panic!("{path}: {other:?}, not {device}"),
            };
            assert_eq!(
                Some(u64::from(number.major)),
                told["major"].as_u64(),
                "{path}"
            );
            assert_eq!(
                Some(u64::from(number.minor)),
                told["minor"].as_u64(),
                "{path}"
            );
            true
        }
    };
    assert!(kind, "{path}: {:?}, not {told}", metadata.kind);
    assert_eq!(Some(seen.file.number), told["inode"].as_u64(), "{path}");
    let owner = metadata.owner.expect("an owner");
    assert_eq!(Some(u64::from(owner.user)), told["uid"].as_u64(), "{path}");
    assert_eq!(Some(u64::from(owner.group)), told["gid"].as_u64(), "{path}");
    assert_eq!(Some(u64::from(owner.mode)), told["mode"].as_u64(), "{path}");
    assert_eq!(
        Some(u64::from(metadata.link_count)),
        told["links"].as_u64(),
        "{path}"
    );
    assert_allocated(path, metadata, told);
    let times = metadata.times;
    assert_eq!(times.modified, time(&told["mtime"]), "{path}: modified");
    assert_eq!(times.changed, time(&told["ctime"]), "{path}: changed");
    assert_eq!(times.accessed, time(&told["atime"]), "{path}: accessed");
    if metadata.kind == FileKind::Regular {
        assert_eq!(Some(metadata.size_bytes), told["size"].as_u64(), "{path}");
        if seen.sha256.is_some() {
            assert_eq!(seen.sha256.as_deref(), told["sha256"].as_str(), "{path}");
        }
    }
    let target = seen.target.as_deref().map(String::from_utf8_lossy);
    assert_eq!(target.as_deref(), told["target"].as_str(), "{path}");
    let mut attributes: Vec<(String, String)> = seen
        .attributes
        .iter()
        .map(|one| {
            (
                one.name.to_string(),
                one.value.iter().map(|byte| format!("{byte:02x}")).collect(),
            )
        })
        .collect();
    attributes.sort();
    let expected: Vec<(String, String)> =
        serde_json::from_value(told["xattrs"].clone()).expect("pairs");
    assert_eq!(attributes, expected, "{path}");
}

fn assert_told(options: &str, tree: &Tree, told: &Value) {
    let told = told.as_object().expect("files by path");
    assert!(told.len() > 100, "{options}: {}", told.len());
    for (path, value) in told {
        let bytes: Vec<u8> = (0..path.len() / 2)
            .map(|index| u8::from_str_radix(&path[index * 2..index * 2 + 2], 16).expect("hex"))
            .collect();
        let shown = format!("{options}: {}", String::from_utf8_lossy(&bytes));
        let seen = tree
            .get(&bytes)
            .unwrap_or_else(|| panic!("{shown} was not seen"));
        assert_file(&shown, seen, value);
    }
    assert_eq!(tree.len(), told.len(), "{options}");
}

fn check(options: &str, fill_words: &str) {
    if !has_commands(&["mke2fs", "e2fsck", "python3", "unshare", "mount"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let Some(told) = make(folder.path(), options, fill_words) else {
        return;
    };
    let volume = FileVolume::open(&folder.path().join("image"));
    let fs =
        guestfs::ext::open(volume.clone()).unwrap_or_else(|error| panic!("{options}: {error}"));
    assert_eq!(fs.facts().cleanliness, Cleanliness::Clean, "{options}");
    let tree = conformance::check(&fs);
    assert_told(options, &tree, &told);
    conformance::check_unused(volume, &tree, &super::open);
    assert_counts(options, folder.path(), &fs);
}

/// Free blocks and the bitmap are what dumpe2fs says.
fn assert_counts(options: &str, folder: &Path, fs: &dyn FileSystem) {
    let output = Command::new("dumpe2fs")
        .args(["-h", "image"])
        .current_dir(folder)
        .env("PATH", search_path())
        .output()
        .expect("dumpe2fs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |name: &str| -> u64 {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .expect("a line");
        line.rsplit(' ')
            .next()
            .and_then(|word| word.parse().ok())
            .expect("a number")
    };
    let block = number("Block size:");
    let facts = fs.facts();
    assert_eq!(
        facts.free_bytes,
        number("Free blocks:") * block,
        "{options}"
    );
    assert_eq!(
        facts.size_bytes,
        number("Block count:") * block,
        "{options}"
    );
    let used: u64 = conformance::used_ranges(fs)
        .iter()
        .map(|range| range.length_bytes)
        .sum();
    let boot = number("First block:") * block;
    let cluster = u64::from(facts.cluster_bytes);
    let total = (facts.size_bytes - boot).next_multiple_of(cluster);
    let free_in_bitmaps = total - (used - boot).next_multiple_of(cluster);
    assert_eq!(free_in_bitmaps, facts.free_bytes, "{options}: bitmaps");
}

#[test]
fn ext2_with_small_blocks_reads_as_linux_reads_it() {
    check("-t ext2 -b 1024", "old");
}

#[test]
fn ext2_of_the_first_revision_reads_as_linux_reads_it() {
    check("-t ext2 -r 0 -b 1024 -O none", "old plain");
}

#[test]
fn ext3_with_small_inodes_reads_as_linux_reads_it() {
    check("-t ext3 -b 4096 -I 128", "old");
}

#[test]
fn ext4_as_everybody_makes_it_reads_as_linux_reads_it() {
    check("-t ext4", "many");
}

#[test]
fn ext4_with_checksums_and_small_inodes_reads_as_linux_reads_it() {
    check("-t ext4 -O metadata_csum -I 128", "");
}

#[test]
fn ext4_with_descriptors_all_over_reads_as_linux_reads_it() {
    check(
        "-t ext4 -b 1024 -O meta_bg,^resize_inode,64bit,sparse_super2 -g 1024",
        "",
    );
}

#[test]
fn ext4_with_clusters_reads_as_linux_reads_it() {
    check("-t ext4 -O bigalloc -C 16384", "");
}

#[test]
fn ext4_with_contents_in_inodes_and_values_in_inodes_reads_as_linux_reads_it() {
    check(
        "-t ext4 -I 512 -O inline_data,ea_inode,large_dir,metadata_csum_seed,mmp",
        "large_values",
    );
}

#[test]
fn ext4_with_the_old_checksums_of_groups_reads_as_linux_reads_it() {
    check(
        "-t ext4 -b 2048 -O ^metadata_csum,uninit_bg,^64bit,^flex_bg",
        "",
    );
}

#[test]
fn a_crash_with_a_live_journal_reads_as_after_its_replay() {
    if !has_commands(&["mke2fs", "python3", "unshare", "mount"]) {
        return;
    }
    let journals = [
        "-t ext4 -b 1024",
        "-t ext3 -b 4096",
        "-t ext4 -O ^64bit,^metadata_csum",
        "-t ext4 -J size=4 -E lazy_itable_init=0",
    ];
    for options in journals {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("fill.py"), FILL).expect("a script");
        std::fs::write(folder.path().join("tell.py"), TELL).expect("a script");
        let text = format!(
            "truncate -s 160M disk; mke2fs -q -F {options} disk; mkdir m
             mount -o loop,noatime disk m; python3 fill.py m old; sync -f m
             mkdir m/later; for i in $(seq 300); do echo $i > m/later/f$i; done; sync m/later/f1
             for i in $(seq 2 200); do rm m/later/f$i; done; rm -r m/deep
             python3 -c 'import os;f=open(\"m/magic\",\"wb\");f.write(b\"\\xc0\\x3b\\x39\\x98\"*4096);f.flush();os.fsync(f.fileno())'
             cp --sparse=always disk image; umount m
             cp --sparse=always image mounted; mount -o loop mounted m; mount -o remount,ro m
             python3 tell.py m > told.json; umount m"
        );
        if let Err(why) = script(folder.path(), &text) {
            missing(&format!("{options}: {why}"));
            return;
        }
        let told = std::fs::read(folder.path().join("told.json")).expect("what Linux told");
        let told: Value = serde_json::from_slice(&told).expect("JSON");
        let volume = FileVolume::open(&folder.path().join("image"));
        let fs = guestfs::ext::open(volume.clone()).expect("a file system");
        assert_eq!(fs.facts().cleanliness, Cleanliness::Replayed, "{options}");
        let tree = conformance::check(&fs);
        assert_told(options, &tree, &told);
        conformance::check_unused(volume, &tree, &super::open);
    }
}

#[test]
fn a_small_file_of_a_huge_disk_costs_little_reading() {
    if !has_commands(&["mke2fs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = "mkdir -p tree/a/b/c; echo hello > tree/a/b/c/file
        truncate -s 1T image; mke2fs -q -F -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -d tree image";
    if let Err(why) = script(folder.path(), text) {
        missing(&why);
        return;
    }
    let volume = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::ext::open(volume.clone()).expect("a file system");
    let mut file = fs.root();
    for name in ["a", "b", "c", "file"] {
        file = fs
            .find(file, &FileName::from(name))
            .expect("a search")
            .expect("it is there");
    }
    let mut bytes = [0; 6];
    fs.open(file, None)
        .expect("contents")
        .read_at(0, &mut bytes)
        .expect("bytes");
    assert_eq!(&bytes, b"hello\n");
    let read_bytes = volume.read_bytes();
    assert!(read_bytes < 200_000, "{read_bytes} bytes were read for 6");
}

#[test]
fn a_name_among_a_hundred_thousand_costs_a_few_blocks_whatever_hashes_it() {
    if !has_commands(&["mke2fs", "tune2fs", "debugfs", "python3", "mount"]) {
        return;
    }
    // Signed and unsigned bytes, all methods, three levels.
    for (options, method, flags) in [
        ("-b 4096", "half_md4", 1),
        ("-b 1024 -O large_dir", "tea", 2),
        ("-b 1024 -O large_dir", "half_md4", 2),
        ("-b 2048 -O ^metadata_csum", "legacy", 1),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let text = format!(
            "truncate -s 256M image; mke2fs -q -F -t ext4 -N 110000 {options} image
             tune2fs -E hash_alg={method} image; debugfs -w -R 'ssv flags {flags}' image
             mkdir m; mount -o loop image m; mkdir m/many
             python3 -c 'for i in range(100000): open(\"m/many/nåme %d\" % i, \"w\").close()'
             umount m; e2fsck -fn image"
        );
        if let Err(why) = script(folder.path(), &text) {
            missing(&format!("{options}: {why}"));
            return;
        }
        let volume = FileVolume::open(&folder.path().join("image"));
        let fs = guestfs::ext::open(volume.clone()).expect("a file system");
        let find = |folder, name: &str| fs.find(folder, &FileName::from(name)).expect("a search");
        let many = find(fs.root(), "many").expect("it is there");
        for number in [0, 1, 49_999, 99_999] {
            let before = volume.read_bytes();
            assert!(find(many, &format!("nåme {number}")).is_some(), "{options}");
            let cost = volume.read_bytes() - before;
            assert!(
                cost < 65_536,
                "{options}: {cost} bytes were read for a name"
            );
        }
        let before = volume.read_bytes();
        assert_eq!(find(many, "nåme 100000"), None);
        assert!(volume.read_bytes() - before < 65_536, "{options}");
        let entries = conformance::entries(&fs, many, DirectoryCursor::default());
        assert_eq!(entries.len(), 100_000, "{options}");
        for entry in entries.iter().step_by(7) {
            let found = fs.find(many, &entry.name).expect("a search");
            assert_eq!(found, Some(entry.file), "{options}: {}", entry.name);
        }
    }
}

#[test]
fn a_copy_stands_in_for_a_damaged_superblock_and_that_is_told() {
    if !has_commands(&["mke2fs"]) {
        return;
    }
    for options in ["-b 1024", "-b 4096", "-b 2048 -O ^metadata_csum"] {
        let folder = tempfile::tempdir().expect("a folder");
        let text = format!(
            "mkdir tree; echo hello > tree/file; truncate -s 300M image
             mke2fs -q -F -t ext4 {options} -d tree image
             dd if=/dev/zero of=image bs=1024 seek=1 count=1 conv=notrunc status=none"
        );
        script(folder.path(), &text).expect("an image");
        let volume = FileVolume::open(&folder.path().join("image"));
        let fs = guestfs::ext::open(volume).expect("a file system");
        let Cleanliness::Dirty(why) = &fs.facts().cleanliness else {
            panic!("{options}: {:?}", fs.facts());
        };
        assert!(why.contains("copy"), "{why}");
        let found = fs
            .find(fs.root(), &FileName::from("file"))
            .expect("a search");
        let mut bytes = [0; 6];
        let contents = fs
            .open(found.expect("it is there"), None)
            .expect("contents");
        contents.read_at(0, &mut bytes).expect("bytes");
        assert_eq!(&bytes, b"hello\n", "{options}");
    }
}

#[test]
fn ext4_with_a_file_for_orphans_reads_as_linux_reads_it() {
    check("-t ext4 -O orphan_file,stable_inodes", "");
}

#[test]
fn a_journal_on_another_device_is_named() {
    if !has_commands(&["mke2fs", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // The bit that something lies in it, as a crash leaves it.
    let text = "truncate -s 64M image; mke2fs -q -F -t ext4 -O ^has_journal image
        debugfs -w -R 'feature has_journal needs_recovery' image";
    script(folder.path(), text).expect("an image");
    let volume = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::ext::open(volume).expect("a file system");
    let told = format!("{:?}", fs.facts().cleanliness);
    assert!(
        told.contains("Dirty") && told.contains("another device"),
        "{told}"
    );
    assert!(
        fs.used_ranges(&mut |_| std::ops::ControlFlow::Continue(()))
            .is_err()
    );
}

#[test]
fn what_is_not_ext_or_not_done_is_refused_by_name() {
    let zeros = Arc::new(crate::images::MemoryVolume(vec![0; 1 << 20]));
    let refused = guestfs::ext::open(zeros).map(|_| ()).expect_err("zeros");
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    if !has_commands(&["mke2fs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    script(folder.path(), "mke2fs -q -F -O journal_dev image 8m").expect("a journal device");
    let volume = FileVolume::open(&folder.path().join("image"));
    let refused = guestfs::ext::open(volume)
        .map(|_| ())
        .expect_err("a journal");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("journal"), "{refused}");
}
