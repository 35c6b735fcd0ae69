//! File systems on several devices, whole and with devices missing or damaged.

use std::path::Path;
use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::disk::{self, Volume, VolumePlace};
use guestfs::probe::{ContentKind, Membership};
use guestfs::volume::VolumeScheme;
use sha2::{Digest, Sha256};

use super::told::{self, DirectoryTimes, assert_told};
use crate::conformance::{self, Tree};
use crate::images::{FileVolume, has_commands, missing, script};

const SETUP: &str = "
    for i in $(seq COUNT); do truncate -s $((220 + i * 20))M disk$i; done
    loops=$(for i in $(seq COUNT); do losetup --find --show disk$i; done)
    trap 'umount m || true; for one in $loops; do losetup -d $one; done' EXIT
    first=${loops%%[[:space:]]*}
    options=$(for one in $loops; do printf ',device=%s' $one; done)
    mkfs.btrfs -q -f -L pool OPTIONS $loops; mkdir m
    mount -o noatime,MOUNT$options $first m
";
const FILL: &str = "
    python3 fill.py m old; bash more.sh m; umount m
    mount -o ro$options $first m; python3 tell.py m > told.json; umount m
    btrfs check $first >&2
";

fn disks(folder: &Path, numbers: impl IntoIterator<Item = usize>) -> Vec<Arc<dyn ReadAt>> {
    numbers
        .into_iter()
        .map(|number| -> Arc<dyn ReadAt> {
            FileVolume::open(&folder.join(format!("disk{number}")))
        })
        .collect()
}

/// The one volume of several devices among these disks.
fn pool(disks: &[Arc<dyn ReadAt>]) -> Volume {
    let layout = disk::inspect(disks).expect("files read");
    let mut found = layout.volumes.into_iter().filter(|volume| {
        matches!(
            &volume.place,
            VolumePlace::Logical {
                manager: VolumeScheme::Btrfs,
                ..
            }
        )
    });
    let volume = found.next().expect("the file system");
    assert!(found.next().is_none(), "one file system");
    volume
}

fn read(volume: &Volume) -> guestfs::Result<guestfs::btrfs::Btrfs> {
    let reader = volume.reader.as_ref().expect("a reader");
    guestfs::btrfs::open(Arc::clone(reader))
}

/// Makes a file system of `count` devices that survives the loss of `redundant` of them.
fn check(count: usize, redundant: usize, options: &str, mount: &str) {
    if !has_commands(&["mkfs.btrfs", "btrfs", "losetup", "python3", "unshare"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    told::write_scripts(folder.path());
    let setup = (SETUP.replace("COUNT", &count.to_string()))
        .replace("OPTIONS", options)
        .replace("MOUNT", mount);
    if let Err(why) = script(folder.path(), &(setup + FILL)) {
        missing(&format!("Btrfs {options} cannot be made here: {why}"));
        return;
    }
    let told = told::read(folder.path(), "told.json");
    let volume = pool(&disks(folder.path(), (1..=count).rev()));
    assert_eq!(volume.missing, Vec::<String>::new(), "{options}");
    assert_eq!(volume.findings, Vec::<String>::new(), "{options}");
    assert_eq!(volume.name, "pool");
    let fs = read(&volume).expect("Btrfs");
    let tree = conformance::check(&fs);
    assert_told(options, &tree, &told, DirectoryTimes::Compared);
    let source = Arc::clone(volume.reader.as_ref().expect("a reader"));
    conformance::check_unused(source, &tree, &super::open);
    for lost in 1..=count {
        let gone: Vec<usize> = (0..redundant.max(1))
            .map(|next| (lost + next - 1) % count + 1)
            .collect();
        let there = disks(folder.path(), (1..=count).filter(|one| !gone.contains(one)));
        check_degraded(
            &format!("{options} without {gone:?}"),
            &there,
            gone.len(),
            redundant,
            &tree,
        );
    }
}

fn check_degraded(
    what: &str,
    there: &[Arc<dyn ReadAt>],
    gone: usize,
    redundant: usize,
    tree: &Tree,
) {
    if there.is_empty() {
        return;
    }
    let volume = pool(there);
    assert_eq!(volume.missing.len(), gone, "{what}: {volume:?}");
    let opened = read(&volume);
    if gone <= redundant {
        let fs = opened.unwrap_or_else(|why| panic!("{what}: {why}"));
        let again = conformance::check(&fs);
        assert!(again == *tree, "{what}: another tree");
        let refused = fs.used_ranges(&mut |_| std::ops::ControlFlow::Continue(()));
        assert!(refused.is_err(), "{what}: what is free cannot be known");
        return;
    }
    match opened {
        Err(why) => assert!(why.to_string().contains("missing"), "{what}: {why}"),
        Ok(fs) => check_partial(what, &fs, tree),
    }
}

/// With metadata whole, contents are right or name what is missing.
fn check_partial(what: &str, fs: &dyn FileSystem, tree: &Tree) {
    let mut refused = 0;
    for (path, seen) in tree {
        if seen.metadata.size_bytes == 0 || seen.metadata.size_bytes > 4 << 20 {
            continue;
        }
        let Some(wanted) = &seen.sha256 else { continue };
        let contents = fs.open(seen.file, None).expect("contents");
        let mut bytes = vec![0; usize::try_from(contents.size_bytes()).expect("small")];
        match contents.read_at(0, &mut bytes) {
            Ok(()) => {
                let hash: String = Sha256::digest(&bytes)
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                assert_eq!(&hash, wanted, "{what}: {}", String::from_utf8_lossy(path));
            }
            Err(why) => {
                assert!(why.to_string().contains("missing"), "{what}: {why}");
                refused += 1;
            }
        }
    }
    // On single devices all may lie on the others.
    assert!(
        refused > 0 || what.contains("single"),
        "{what}: nothing was refused"
    );
}

#[test]
fn raid0_reads_whole_and_names_what_is_missing() {
    check(3, 0, "-d raid0 -m raid1", "rw");
}

#[test]
fn raid1_reads_with_a_device_missing() {
    check(3, 1, "-d raid1 -m raid1", "compress=zstd");
}

#[test]
fn raid1_of_three_and_four_copies_reads_with_all_but_one_missing() {
    check(3, 2, "-d raid1c3 -m raid1c3", "rw");
    check(4, 3, "-d raid1c4 -m raid1c4", "compress=lzo");
}

#[test]
fn raid10_reads_with_a_device_missing() {
    check(4, 1, "-d raid10 -m raid10", "rw");
}

#[test]
fn raid5_reads_with_a_device_missing() {
    check(3, 1, "-d raid5 -m raid5", "rw");
}

#[test]
fn raid6_reads_with_two_devices_missing() {
    check(5, 2, "-d raid6 -m raid6", "rw");
    check(4, 2, "-d raid6 -m raid1c3", "compress=zlib");
}

#[test]
fn single_over_several_devices_reads_whole() {
    check(2, 0, "-d single -m dup", "rw");
}

/// A device of which everything behind the superblock is garbage.
struct Spoilt(Arc<dyn ReadAt>);

impl ReadAt for Spoilt {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.0.read_at(offset, buffer)?;
        for (at, byte) in (offset..).zip(buffer) {
            if at >= 1 << 20 {
                *byte ^= 0x5A;
            }
        }
        Ok(())
    }
}

#[test]
fn what_is_wrong_on_one_device_is_read_from_another_and_members_are_told_as_such() {
    if !has_commands(&["mkfs.btrfs", "btrfs", "losetup", "python3", "unshare"]) {
        return;
    }
    for (count, options) in [
        (2, "-d raid1 -m raid1"),
        (3, "-d raid5 -m raid1"),
        (4, "-d raid6 -m raid10"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        told::write_scripts(folder.path());
        let setup = (SETUP.replace("COUNT", &count.to_string()))
            .replace("OPTIONS", options)
            .replace("MOUNT", "rw");
        if let Err(why) = script(
            folder.path(),
            &(setup + "bash more.sh m; umount m; btrfs check $first >&2"),
        ) {
            missing(&format!("Btrfs {options} cannot be made here: {why}"));
            return;
        }
        let sound = disks(folder.path(), 1..=count);
        let layout = disk::inspect(&sound).expect("files read");
        for volume in &layout.volumes[..count] {
            assert_eq!(volume.content.kind, ContentKind::Member(Membership::Btrfs));
        }
        let tree = conformance::check(&read(&pool(&sound)).expect("Btrfs"));
        for spoilt in 0..count {
            let mut disks = sound.clone();
            // Without checksums nothing tells which copy is right.
            disks[spoilt] = Arc::new(Spoilt(Arc::clone(&sound[spoilt])));
            let fs = read(&pool(&disks)).unwrap_or_else(|why| panic!("{options}, {spoilt}: {why}"));
            for path in ["random", "numbers", "reflink", "text-400000", "pieces"] {
                let file = fs
                    .find(fs.root(), &path.into())
                    .expect("a search")
                    .expect("there");
                let contents = fs.open(file, None).expect("contents");
                let hash = conformance::check_contents(path, &*contents);
                let wanted = &tree[format!("/{path}").as_bytes()].sha256;
                assert_eq!(&hash, wanted, "{options}, {spoilt}: {path}");
            }
        }
    }
}

#[test]
fn a_sprout_reads_with_its_seed() {
    if !has_commands(&[
        "mkfs.btrfs",
        "btrfs",
        "btrfstune",
        "losetup",
        "python3",
        "unshare",
    ]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    told::write_scripts(folder.path());
    let text = "for i in 1 2; do truncate -s 300M disk$i; done
        one=$(losetup --find --show disk1); two=$(losetup --find --show disk2)
        trap 'umount m || true; losetup -d $one; losetup -d $two' EXIT
        mkfs.btrfs -q -f -L seed $one; mkdir m; mount $one m; bash more.sh m; umount m
        btrfstune -S 1 $one; mount -o device=$one $one m; btrfs -q device add -f $two m
        mount -o remount,rw m; echo new > m/new; seq 5 > m/numbers; umount m
        mount -o ro,device=$one $two m; python3 tell.py m > told.json; umount m";
    if let Err(why) = script(folder.path(), text) {
        missing(&format!("a sprout cannot be made here: {why}"));
        return;
    }
    let volume = pool(&disks(folder.path(), 1..=2));
    assert_eq!(volume.missing, Vec::<String>::new(), "{volume:?}");
    let fs = read(&volume).expect("Btrfs");
    let told = told::read(folder.path(), "told.json");
    assert_told(
        "sprout",
        &conformance::check(&fs),
        &told,
        DirectoryTimes::Compared,
    );
    let alone = pool(&disks(folder.path(), [2]));
    assert_eq!(alone.missing.len(), 1, "{alone:?}");
}
