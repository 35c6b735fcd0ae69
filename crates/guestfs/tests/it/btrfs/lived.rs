//! File systems that have lived: converted, spread over other devices, grown and shrunk, with quotas, with another id.

use std::path::Path;
use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::filesystem::Cleanliness;

use super::told::{self, DirectoryTimes, assert_told};
use crate::conformance;
use crate::images::{FileVolume, has_commands, missing, script};

/// Runs a script that makes `image` and what Linux told of it, and compares.
fn check(what: &str, commands: &[&str], text: &str) {
    if !has_commands(&["mkfs.btrfs", "btrfs", "python3", "unshare", "mount"])
        || !has_commands(commands)
    {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    told::write_scripts(folder.path());
    if let Err(why) = script(folder.path(), text) {
        missing(&format!("{what}: {why}"));
        return;
    }
    compare(what, folder.path());
}

fn compare(what: &str, folder: &Path) {
    let volume = FileVolume::open(&folder.join("image"));
    let fs = guestfs::btrfs::open(volume.clone()).unwrap_or_else(|why| panic!("{what}: {why}"));
    assert_eq!(fs.facts().cleanliness, Cleanliness::Clean, "{what}");
    let tree = conformance::check(&fs);
    let told = told::read(folder, "told.json");
    assert_told(what, &tree, &told, DirectoryTimes::Compared);
    conformance::check_unused(volume, &tree, &super::open);
}

const TELL: &str = "mount -o loop,ro image m; python3 tell.py m > told.json; umount m";

#[test]
fn an_ext4_that_was_converted_reads_as_linux_reads_it() {
    let text = format!(
        "truncate -s 500M image; mke2fs -q -F -t ext4 -b 4096 image; mkdir m
         mount -o loop,noatime image m; python3 fill.py m old; umount m
         btrfs-convert --no-progress image >&2; {TELL}"
    );
    check("converted", &["btrfs-convert", "mke2fs"], &text);
}

#[test]
fn another_id_over_the_old_metadata_reads_as_linux_reads_it() {
    let text = format!(
        "truncate -s 300M image; mkfs.btrfs -q image; mkdir m
         mount -o loop,noatime image m; bash more.sh m; umount m
         btrfstune -f -m image >&2; {TELL}"
    );
    check("another id", &["btrfstune"], &text);
}

#[test]
fn with_quotas_deleted_subvolumes_and_a_smaller_size_it_reads_as_linux_reads_it() {
    let text = format!(
        "truncate -s 1G image; mkfs.btrfs -q -d dup -m dup image; mkdir m
         mount -o loop,noatime image m; btrfs quota enable m; bash more.sh m
         btrfs -q subvolume create m/other; bash more.sh m/other 20
         btrfs -q subvolume delete m/snapshot; btrfs -q subvolume delete m/sub/inner
         btrfs filesystem resize -300M m >&2
         btrfs filesystem defragment -r -czstd m/other >&2
         btrfs balance start -f -dconvert=single,soft -mconvert=single m >&2; umount m; {TELL}"
    );
    check("lived", &[], &text);
}

#[test]
fn sectors_larger_than_pages_are_read() {
    if !has_commands(&["mkfs.btrfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text =
        "mkdir -p tree/a; seq 50000 > tree/a/numbers; echo small > tree/small; ln -s a tree/link
         truncate -s 600M image; mkfs.btrfs -q -s 16384 -n 65536 --rootdir tree image";
    if let Err(why) = script(folder.path(), text) {
        missing(&why);
        return;
    }
    let volume = FileVolume::open(&folder.path().join("image"));
    let fs = guestfs::btrfs::open(volume.clone()).expect("Btrfs");
    let tree = conformance::check(&fs);
    let seen = &tree[&b"/a/numbers"[..]];
    let contents = fs.open(seen.file, None).expect("contents");
    let mut bytes = vec![0; usize::try_from(contents.size_bytes()).expect("small")];
    contents.read_at(0, &mut bytes).expect("bytes");
    let wanted = std::fs::read(folder.path().join("tree/a/numbers")).expect("numbers");
    assert!(bytes == wanted, "other numbers");
    assert_eq!(tree.len(), 5);
    conformance::check_unused(volume, &tree, &super::open);
}

#[test]
fn a_pool_that_was_rebuilt_on_other_devices_reads_as_linux_reads_it() {
    if !has_commands(&["mkfs.btrfs", "btrfs", "losetup", "python3", "unshare"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    told::write_scripts(folder.path());
    let text = "for i in 1 2 3 4; do truncate -s $((900 + i * 50))M disk$i; done
        l() { losetup --find --show disk$1; }; one=$(l 1); two=$(l 2); three=$(l 3); four=$(l 4)
        trap 'umount m || true; losetup -d $one $two $three $four' EXIT
        mkfs.btrfs -q -f -L pool -d single -m dup $one $two; mkdir m; mount -o noatime,device=$two $one m
        bash more.sh m; btrfs -q device add -f $three m; btrfs -q balance start -f -dconvert=raid1 -mconvert=raid1c3 m
        btrfs replace start -B -f 1 $four m >&2; btrfs -q balance start -f -dconvert=raid10,soft -mconvert=raid1 m || true
        btrfs -q balance start -f -dconvert=raid5,limit=1 m
        umount m; btrfs device scan --forget; mount -o ro,device=$two,device=$three $four m; python3 tell.py m > told.json; umount m";
    if let Err(why) = script(folder.path(), text) {
        missing(&format!("a pool cannot be rebuilt here: {why}"));
        return;
    }
    let disks: Vec<Arc<dyn ReadAt>> = (1..=4)
        .map(|number| -> Arc<dyn ReadAt> {
            FileVolume::open(&folder.path().join(format!("disk{number}")))
        })
        .collect();
    let layout = guestfs::disk::inspect(&disks).expect("files read");
    let volume = layout.volume("pool").expect("the file system");
    assert_eq!(volume.missing, Vec::<String>::new(), "{volume:?}");
    let source = Arc::clone(volume.reader.as_ref().expect("a reader"));
    let fs = guestfs::btrfs::open(Arc::clone(&source)).expect("Btrfs");
    let tree = conformance::check(&fs);
    let told = told::read(folder.path(), "told.json");
    assert_told("rebuilt", &tree, &told, DirectoryTimes::Compared);
    conformance::check_unused(source, &tree, &super::open);
}
