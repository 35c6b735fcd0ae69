//! Images made by mkfs.btrfs, filled by Linux with nasty things, and compared with what Linux says of them.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use block::ReadAt;
use guestfs::filesystem::{Cleanliness, DirectoryCursor, FileKind};
use guestfs::{ErrorKind, FileName, FileSystem};

use super::told::{self, DirectoryTimes, assert_told};
use crate::conformance;
use crate::images::{FileVolume, MemoryVolume, has_commands, missing, script};

const COMMANDS: [&str; 5] = ["mkfs.btrfs", "btrfs", "python3", "unshare", "mount"];

/// Runs a script; whether it could.
fn made(folder: &Path, text: &str) -> bool {
    match script(folder, text) {
        Ok(_) => true,
        Err(why) => {
            missing(&format!("{text}: {why}"));
            false
        }
    }
}

/// Makes an image with these options, fills it, and compares; then proves that what is unused is not needed.
fn check(options: &str, mount: &str, words: &str, links: &str) {
    if !has_commands(&COMMANDS) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    told::write_scripts(folder.path());
    let text = format!(
        "truncate -s 1G image; mkfs.btrfs -q -L hikae {options} image; mkdir m
         mount -o loop,noatime,{mount} image m; python3 fill.py m {words}; bash more.sh m {links}; umount m
         mount -o loop,ro image m; python3 tell.py m > told.json; umount m
         btrfs check image > check.txt 2>&1"
    );
    if !made(folder.path(), &text) {
        return;
    }
    let volume = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::btrfs::open(volume.clone()).unwrap_or_else(|why| panic!("{options}: {why}"));
    assert_eq!(fs.facts().cleanliness, Cleanliness::Clean, "{options}");
    assert_eq!(fs.facts().label.as_deref(), Some("hikae"), "{options}");
    let tree = conformance::check(&fs);
    let told = told::read(folder.path(), "told.json");
    assert_told(options, &tree, &told, DirectoryTimes::Compared);
    conformance::check_unused(volume.clone(), &tree, &super::open);
    keep_used(folder.path(), &*volume, &fs);
    let text = "btrfs check kept; mount -o loop,noatime kept m; python3 tell.py m > again.json
         btrfs scrub start -B m > scrub.txt; umount m; grep -q 'no errors found' scrub.txt";
    script(folder.path(), text).unwrap_or_else(|why| panic!("{options}, only what is used: {why}"));
    let again = told::read(folder.path(), "again.json");
    let again = again.as_object().expect("files");
    for (path, value) in told.as_object().expect("files") {
        assert_eq!(again[path]["sha256"], value["sha256"], "{options}: {path}");
    }
}

/// Writes a copy that has nothing but what is used.
fn keep_used(folder: &Path, volume: &dyn ReadAt, fs: &dyn FileSystem) {
    let file = std::fs::File::create(folder.join("kept")).expect("a file");
    file.set_len(volume.size_bytes()).expect("its size");
    for range in conformance::used_ranges(fs) {
        let mut bytes = vec![0; usize::try_from(range.length_bytes).expect("small")];
        volume.read_at(range.offset, &mut bytes).expect("bytes");
        file.write_all_at(&bytes, range.offset).expect("written");
    }
    (&file).flush().expect("written");
}

#[test]
fn btrfs_as_everybody_makes_it_reads_as_linux_reads_it() {
    check("", "rw", "many", "2000");
}

#[test]
fn packed_with_zlib_it_reads_as_linux_reads_it() {
    check("-n 4096 --csum xxhash", "compress-force=zlib:9", "", "");
}

#[test]
fn packed_with_lzo_it_reads_as_linux_reads_it() {
    check(
        "-O ^no-holes -n 65536 --csum sha256",
        "compress-force=lzo",
        "",
        "",
    );
}

#[test]
fn packed_with_zstd_it_reads_as_linux_reads_it() {
    check(
        "--csum blake2 -R ^free-space-tree",
        "compress-force=zstd:15",
        "",
        "",
    );
}

#[test]
fn mixed_groups_and_old_features_read_as_linux_reads_them() {
    check(
        "-M -O ^skinny-metadata,^extref,^no-holes -R ^free-space-tree",
        "max_inline=0",
        "",
        "9",
    );
}

#[test]
fn without_checksums_of_contents_it_reads_as_linux_reads_it() {
    check("-m single -d dup", "nodatasum", "", "");
}

#[test]
fn the_root_is_the_default_subvolume_and_the_top_level_is_found_by_name() {
    if !has_commands(&COMMANDS) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    told::write_scripts(folder.path());
    let text = "truncate -s 300M image; mkfs.btrfs -q image; mkdir m; mount -o loop,noatime image m
         mkdir m/top; btrfs -q subvolume create m/top/a; echo a > m/top/a/file; echo top > m/other
         btrfs -q subvolume create m/top/a/below; echo b > m/top/a/below/file
         btrfs subvolume set-default m/top/a; umount m
         mount -o loop,ro image m; python3 tell.py m > told.json; umount m";
    if !made(folder.path(), text) {
        return;
    }
    let fs = guestfs::btrfs::open(FileVolume::open(&folder.path().join("image"))).expect("Btrfs");
    let tree = conformance::check(&fs);
    let told = told::read(folder.path(), "told.json");
    assert_told("default", &tree, &told, DirectoryTimes::Compared);
    assert!(fs.default_subvolume().is_some());
    let remarks = fs.remarks();
    assert!(
        remarks
            .iter()
            .any(|one| one.contains(guestfs::btrfs::TOP_LEVEL)),
        "{remarks:?}"
    );
    let mut file = fs.root();
    for name in [guestfs::btrfs::TOP_LEVEL, "top", "a", "below", "file"] {
        let found = fs.find(file, &FileName::from(name)).expect("a search");
        file = found.unwrap_or_else(|| panic!("{name}"));
    }
    assert_eq!(fs.metadata(file).expect("metadata").size_bytes, 2);
}

#[test]
fn a_hundred_thousand_names_are_listed_and_found() {
    if !has_commands(&COMMANDS) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = "truncate -s 400M image; mkfs.btrfs -q image; mkdir m; mount -o loop,noatime image m
         mkdir m/many; cd m/many; python3 -c '
import os
for number in range(100000): os.close(os.open(f\"file number {number}\", os.O_CREAT))'
         cd ../..; umount m";
    if !made(folder.path(), text) {
        return;
    }
    let fs = guestfs::btrfs::open(FileVolume::open(&folder.path().join("image"))).expect("Btrfs");
    let many = fs
        .find(fs.root(), &FileName::from("many"))
        .expect("a search")
        .expect("there");
    let entries = conformance::entries(&fs, many, DirectoryCursor::default());
    assert_eq!(entries.len(), 100_000);
    for entry in entries.iter().step_by(997) {
        assert_eq!(
            fs.find(many, &entry.name).expect("a search"),
            Some(entry.file)
        );
        assert_eq!(
            fs.metadata(entry.file).expect("metadata").kind,
            FileKind::Regular
        );
    }
}

#[test]
fn a_small_file_of_a_huge_disk_costs_little_reading() {
    if !has_commands(&["mkfs.btrfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = "mkdir -p tree/a/b/c; echo hello > tree/a/b/c/file; seq 9000 > tree/a/numbers
         truncate -s 1T image; mkfs.btrfs -q --rootdir tree image";
    if !made(folder.path(), text) {
        return;
    }
    let volume = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::btrfs::open(volume.clone()).expect("Btrfs");
    let mut file = fs.root();
    for name in ["a", "b", "c", "file"] {
        let found = fs.find(file, &FileName::from(name)).expect("a search");
        file = found.expect("it is there");
    }
    let mut bytes = [0; 6];
    let contents = fs.open(file, None).expect("contents");
    contents.read_at(0, &mut bytes).expect("bytes");
    assert_eq!(&bytes, b"hello\n");
    let read_bytes = volume.read_bytes();
    assert!(read_bytes < 300_000, "{read_bytes} bytes were read for 6");
}

#[test]
fn a_swap_file_is_told_where_it_lies_and_a_file_with_checksums_is_not() {
    if !has_commands(&COMMANDS) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = "truncate -s 300M image; mkfs.btrfs -q -d single image; mkdir m; mount -o loop image m
         : > m/swap; chattr +C m/swap; dd if=/dev/urandom of=m/swap bs=1M count=20 conv=notrunc status=none
         cp m/swap copy; echo small > m/summed; umount m";
    if !made(folder.path(), text) {
        return;
    }
    let volume = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::btrfs::open(volume.clone()).expect("Btrfs");
    let file = |name: &str| {
        let found = fs.find(fs.root(), &FileName::from(name)).expect("a search");
        found.expect("it is there")
    };
    let mut bytes = Vec::new();
    fs.file_ranges(file("swap"), &mut |range| {
        let mut part = vec![0; usize::try_from(range.length_bytes).expect("small")];
        volume.read_at(range.offset, &mut part).expect("bytes");
        bytes.extend_from_slice(&part);
        std::ops::ControlFlow::Continue(())
    })
    .expect("ranges");
    let wanted = std::fs::read(folder.path().join("copy")).expect("the copy");
    assert!(bytes == wanted, "the ranges hold something else");
    let refused = fs
        .file_ranges(file("summed"), &mut |_| std::ops::ControlFlow::Continue(()))
        .expect_err("it has checksums");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}

#[test]
fn what_is_not_btrfs_or_not_done_is_refused_by_name() {
    let zeros = Arc::new(MemoryVolume(vec![0; 1 << 20]));
    let refused = guestfs::btrfs::open(zeros).map(|_| ()).expect_err("zeros");
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    let Some(mut image) = crate::corpus::bytes("btrfs/dissect-btrfs-default.bin.gz") else {
        return;
    };
    image[65_536 + 188 + 1] |= 0x10;
    let sum = crc32c::crc32c(&image[65_536 + 32..65_536 + 4096]);
    image[65_536..65_536 + 4].copy_from_slice(&sum.to_le_bytes());
    let refused = guestfs::btrfs::open(Arc::new(MemoryVolume(image)))
        .map(|_| ())
        .expect_err("zones");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("zoned"), "{refused}");
}

#[test]
fn a_lost_superblock_is_found_in_its_copy() {
    let Some(mut image) = crate::corpus::bytes("btrfs/dissect-btrfs-default.bin.gz") else {
        return;
    };
    let before = conformance::check(&*super::open(Arc::new(MemoryVolume(image.clone()))));
    // A kind of checksum that nobody knows is damage, too, as long as nothing proves it.
    image[65_536 + 197] = 0x5A;
    let after = conformance::check(&*super::open(Arc::new(MemoryVolume(image.clone()))));
    assert_eq!(before, after);
    image[65_536..65_536 + 4096].fill(0x5A);
    let after = conformance::check(&*super::open(Arc::new(MemoryVolume(image))));
    assert_eq!(before, after);
}
