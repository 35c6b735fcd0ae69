//! Images made by mkfs.xfs and filled by Linux with what is nasty, compared with what Linux sees.

use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::filesystem::{Cleanliness, DirectoryCursor, FileKind};
use guestfs::{FileId, FileName};

use super::linux;
use crate::conformance;
use crate::images::{FileVolume, has_commands, missing, script};

const FILL: &str = r#"
mount -o loop image mnt
cd mnt
mkdir few many deep
for i in 1 2 3; do echo "$i" > few/$i; done
for i in $(seq 1 5000); do : > "many/a file with a rather long name, so that blocks fill up: $i"; done
for i in $(seq 1 60); do echo $i > "many/$i"; rm "many/a file with a rather long name, so that blocks fill up: $((i*50))"; done
d=deep; for i in $(seq 1 100); do d=$d/d; mkdir $d; done; echo bottom > $d/bottom
head -c 3000000 /dev/urandom > data
truncate -s 5T huge; printf end | dd of=huge bs=1 seek=4000000000000 conv=notrunc status=none
fallocate -l 1M unwritten; printf x | dd of=unwritten bs=1 seek=300000 conv=notrunc status=none
python3 - <<'P'
import os
f = os.open('pieces', os.O_RDWR | os.O_CREAT)
for i in range(2000):
    os.pwrite(f, bytes([i % 251]) * 4096, i * 12288)
os.close(f)
P
ln data few/hard
ln -s ../data few/short
ln -s "$(printf 'x%.0s' $(seq 1 900))" few/long
ln -s circle circle
mkfifo few/fifo
mknod few/null c 1 3
chown 1234:5678 few/1; chmod 4751 few/1
touch -d '1969-12-31T23:59:58.5Z' few/2
printf 'é' > 'few/ünï'
python3 - <<'P'
import os, struct
def attribute(path, name, size):
    os.setxattr(path, name, bytes(i * 7 % 251 for i in range(size)))
attribute('few/1', 'user.empty', 0)
attribute('few/1', 'user.short', 10)
attribute('few/1', 'security.three', 3000)
attribute('few/1', 'user.largest', 65536)
for i in range(800): attribute('few/3', f'user.one of many names, which fill leaves and nodes {i}', i % 200)
for i in range(0, 800, 3): os.removexattr('few/3', f'user.one of many names, which fill leaves and nodes {i}')
for i in range(40): attribute('deep', f'trusted.remote{i}', 5000 + i)
entry = lambda tag, rights, who: struct.pack('<HHI', tag, rights, who & 0xffffffff)
list = struct.pack('<I', 2) + entry(1, 7, -1) + entry(2, 5, 4711) + entry(4, 5, -1) + entry(8, 4, 815) + entry(16, 7, -1) + entry(32, 4, -1)
os.setxattr('few', 'system.posix_acl_access', list)
os.setxattr('few', 'system.posix_acl_default', list)
P
cd ..
# What Linux allocates ahead is only on the volume when it is.
umount mnt
mount -o loop,noatime image mnt
python3 lister.py mnt list
umount mnt
"#;

fn check(options: &str) {
    if !has_commands(&["mkfs.xfs", "mount", "python3"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    linux::make(folder.path(), "image", &format!("-L hikae {options}"));
    std::fs::write(folder.path().join("lister.py"), linux::LISTER).expect("a script");
    if let Err(why) = script(folder.path(), FILL) {
        missing(&format!("XFS cannot be mounted here: {why}"));
        return;
    }
    let volume: Arc<dyn ReadAt> = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::xfs::open(Arc::clone(&volume)).expect("XFS");
    assert_eq!(fs.facts().cleanliness, Cleanliness::Clean);
    assert_eq!(fs.facts().label.as_deref(), Some("hikae"));
    let tree = conformance::check(&fs);
    linux::compare(options, &tree, &folder.path().join("list"));
    conformance::check_unused(volume, &tree, &super::open);
}

#[test]
fn a_filled_file_system_reads_as_linux_reads_it() {
    check("-m bigtime=1");
}

#[test]
fn small_blocks_and_large_directory_blocks_read_as_linux_reads_them() {
    check("-b size=1024 -n size=8192 -m bigtime=0,reflink=0");
}

#[test]
fn a_link_over_several_blocks_and_wide_inodes_read_as_linux_reads_them() {
    check("-b size=1024 -i size=512,nrext64=1 -m rmapbt=1,inobtcount=1 -d agcount=8");
}

fn find(fs: &dyn FileSystem, path: &str) -> FileId {
    path.split('/').fold(fs.root(), |folder, name| {
        let found = fs.find(folder, &FileName::from(name));
        found.expect("a search").unwrap_or_else(|| panic!("{path}"))
    })
}

#[test]
fn a_name_among_a_hundred_thousand_on_a_tebibyte_costs_a_few_blocks() {
    if !has_commands(&["mkfs.xfs", "mount", "python3"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let made = script(
        folder.path(),
        "truncate -s 1T image
         mkfs.xfs -q -l size=64m image
         mkdir mnt; mount -o loop image mnt; mkdir mnt/many
         python3 -c \"for i in range(100000): open('mnt/many/%d' % i, 'w').write(str(i)) if i % 1000 == 7 else open('mnt/many/%d' % i, 'w')\"
         umount mnt",
    );
    if let Err(why) = made {
        missing(&format!("XFS cannot be mounted here: {why}"));
        return;
    }
    let volume = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::xfs::open(volume.clone()).expect("XFS");
    let many = find(&fs, "many");
    for number in [7, 54_007, 99_007] {
        let before = volume.read_bytes();
        let file = find(&fs, &format!("many/{number}"));
        let contents = fs.open(file, None).expect("a file");
        let mut bytes = vec![0; usize::try_from(contents.size_bytes()).expect("small")];
        contents.read_at(0, &mut bytes).expect("its bytes");
        assert_eq!(bytes, number.to_string().as_bytes());
        let cost = volume.read_bytes() - before;
        assert!(cost < 200_000, "{cost} bytes were read for one of ten");
    }
    let absent = fs.find(many, &FileName::from("100000")).expect("a search");
    assert_eq!(absent, None);
    assert!(volume.read_bytes() < 1 << 20, "{}", volume.read_bytes());
    let entries = conformance::entries(&fs, many, DirectoryCursor::default());
    assert_eq!(entries.len(), 100_000);
    // All of them are found as they are listed.
    for entry in entries.iter().step_by(97) {
        assert_eq!(
            fs.find(many, &entry.name).expect("a search"),
            Some(entry.file)
        );
    }
}

/// What no Linux of today mounts: mkfs fills it, and xfs_db gives it attributes.
#[test]
fn version_4_reads_as_it_was_filled() {
    if !has_commands(&["mkfs.xfs", "xfs_db", "python3"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let made = script(
        folder.path(),
        r#"
head -c 300000 /dev/urandom > data
python3 - <<'P'
with open('proto', 'w') as p:
    p.write('/none\n0 0\nd--755 0 0\n')
    p.write(f'data ---644 1000 1001 data\n')
    p.write(f'link l--777 0 0 {"x" * 900}\n')
    p.write('null c--666 0 0 1 3\n')
    p.write('many d--755 3 4\n')
    for i in range(3000): p.write(f'a_file_with_a_long_name_so_that_blocks_fill_{i} ---600 {i} 7 /dev/null\n')
    p.write('$\n$\n')
P
truncate -s 400M image
mkfs.xfs -q -m crc=0 -b size=1024 -n size=4096 -p proto image
for i in $(seq 60); do echo "attr_set -u -v $((i*3)) name$i"; done > attributes
inode=$(xfs_db -c 'ls /' image | awk '$6=="data" {print $2}')
{ echo "inode $inode"; cat attributes; echo 'attr_set -u -v 20000 large'; echo 'attr_set -s -v 2500 label'; } > commands
xfs_db -x -f image < commands
"#,
    );
    let Ok(_) = made.map_err(|why| missing(&format!("version 4 cannot be made here: {why}")))
    else {
        return;
    };
    let volume: Arc<dyn ReadAt> = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::xfs::open(Arc::clone(&volume)).expect("XFS");
    assert_eq!(fs.facts().version.as_deref(), Some("4"));
    assert_eq!(fs.facts().cleanliness, Cleanliness::Clean);
    let tree = conformance::check(&fs);
    assert_eq!(tree.len(), 3005);
    let data = &tree[b"/data".as_slice()];
    let contents = fs.open(data.file, None).expect("a file");
    let mut bytes = vec![0; 300_000];
    contents.read_at(0, &mut bytes).expect("its bytes");
    assert_eq!(
        bytes,
        std::fs::read(folder.path().join("data")).expect("a file")
    );
    assert_eq!(data.attributes.len(), 62, "{:?}", data.attributes);
    for attribute in &data.attributes {
        let length = match attribute.name.as_bytes() {
            b"user.large" => 20_000,
            b"security.label" => 2500,
            name => {
                3 * String::from_utf8_lossy(&name[9..])
                    .parse::<usize>()
                    .expect("a number")
            }
        };
        assert_eq!(attribute.value, vec![b'v'; length], "{}", attribute.name);
    }
    let link = &tree[b"/link".as_slice()];
    assert_eq!(link.target, Some(vec![b'x'; 900]));
    let null = tree[b"/null".as_slice()].metadata.kind;
    assert!(
        matches!(null, FileKind::CharacterDevice(device) if (device.major, device.minor) == (1, 3))
    );
    conformance::check_unused(volume, &tree, &super::open);
}

/// Linux counts no case there, and neither does the search; mkfs fills it, for the Linux of the tests cannot mount it.
#[test]
fn names_without_case_are_found_in_any_case() {
    if !has_commands(&["mkfs.xfs", "python3"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    script(
        folder.path(),
        r#"
python3 - <<'P'
with open('proto', 'w') as p:
    p.write('/none\n0 0\nd--755 0 0\nReadMe ---644 0 0 /dev/null\nMany d--755 3 4\n')
    for i in range(2000): p.write(f'A_File_With_A_Name_{i} ---600 {i} 7 /dev/null\n')
    p.write('$\n$\n')
P
truncate -s 400M image
mkfs.xfs -q -n version=ci -p proto image
"#,
    )
    .expect("an image");
    let volume: Arc<dyn ReadAt> = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::xfs::open(volume).expect("XFS");
    assert!(fs.facts().is_case_insensitive);
    assert_eq!(conformance::check(&fs).len(), 2003);
    find(&fs, "README");
    for number in (0..2000).step_by(17) {
        let upper = find(&fs, &format!("MANY/A_FILE_WITH_A_NAME_{number}"));
        let lower = find(&fs, &format!("many/a_file_with_a_name_{number}"));
        assert_eq!(upper, lower);
        let owner = fs
            .metadata(upper)
            .expect("metadata")
            .owner
            .expect("an owner");
        assert_eq!(owner.user, number);
    }
}

#[test]
fn what_is_not_done_is_said_by_name() {
    if !has_commands(&["mkfs.xfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = "truncate -s 400M image; truncate -s 64M log
        mkfs.xfs -q -l logdev=log,size=64m image";
    script(folder.path(), text).expect("an image");
    let path = folder.path().join("image");
    let fs = guestfs::xfs::open(FileVolume::open(&path)).expect("XFS");
    let told = format!("{:?}", fs.facts().cleanliness);
    assert!(
        told.contains("Dirty") && told.contains("another device"),
        "{told}"
    );
    assert!(
        fs.used_ranges(&mut |_| std::ops::ControlFlow::Continue(()))
            .is_err()
    );
    assert!(conformance::entries(&fs, fs.root(), DirectoryCursor::default()).is_empty());
    // Features of newer versions of mkfs, whose bits are set by hand.
    for (bits, name) in [
        (0x100_u32, "metadir"),
        (0x200, "zones"),
        (0x8000_0000, "unknown"),
    ] {
        let mut bytes = std::fs::read(&path).expect("the image");
        bytes[216..220].copy_from_slice(&(1 | bits).to_be_bytes());
        bytes[224..228].fill(0);
        let sum = crc32c::crc32c(&bytes[..512]);
        bytes[224..228].copy_from_slice(&sum.to_le_bytes());
        let refused = guestfs::xfs::open(crate::corpus::Bytes::shared(bytes))
            .map(|_| ())
            .expect_err("it is not done");
        assert_eq!(refused.kind(), guestfs::ErrorKind::Unsupported);
        assert!(refused.to_string().contains(name), "{refused}");
    }
}
