//! Files of a folder are the disks. Where FUSE cannot be used the tests are skipped aloud, and fail in CI.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use block::ReadAt;
use serve::fuse::{Access, FuseMount, FuseOptions, ServedFile, Unmounted};
use serve::{CachedDisk, ErrorKind, ReadCache, Unwatched};

use super::disks::{Numbers, Random, seed};

const MIB: u64 = 1 << 20;

/// Whether folders can be mounted here; without that a test is skipped, but not in CI.
fn have_fuse() -> bool {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let may = device.is_ok()
        && (rustix_is_root() || Command::new("fusermount3").arg("-V").output().is_ok());
    if !may {
        assert!(std::env::var_os("CI").is_none(), "FUSE cannot be used");
        println!("SKIP: FUSE cannot be used here");
    }
    may
}

fn rustix_is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

fn file(name: &str, disk: &Arc<Numbers>, cache: &Arc<ReadCache>) -> ServedFile {
    ServedFile {
        name: name.to_owned(),
        allocated_bytes: disk.size_bytes * disk.data_percent / 100,
        disk: CachedDisk::new(Arc::clone(disk) as Arc<dyn ReadAt>, cache),
        modified: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
    }
}

fn mount(dir: &Path, files: Vec<ServedFile>) -> FuseMount {
    let options = FuseOptions {
        access: Access::Owner,
    };
    FuseMount::mount(dir, files, options, Arc::new(Unwatched)).expect("mounted")
}

#[track_caller]
fn tool(command: &mut Command) {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[test]
fn files_are_listed_read_copied_and_cannot_be_changed() {
    if !have_fuse() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let cache = ReadCache::new(0);
    let disks = [
        Arc::new(Numbers::new(seed(), 20 * MIB + 77, 30)),
        Arc::new(Numbers::new(2, MIB, 100)),
    ];
    // Made on the way.
    let place = dir.path().join("new/served");
    let files = vec![
        file("a b@1.raw", &disks[0], &cache),
        file("ü.raw", &disks[1], &cache),
    ];
    let mounted = mount(&place, files);
    let mut names: Vec<_> = fs::read_dir(&place)
        .expect("it can be listed")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a b@1.raw", "ü.raw"]);
    let path = place.join("a b@1.raw");
    let metadata = fs::metadata(&path).expect("its metadata");
    assert_eq!(metadata.len(), 20 * MIB + 77);
    assert_eq!(metadata.permissions().mode() & 0o777, 0o444);
    assert_eq!(metadata.mtime(), 1_700_000_000);
    assert!(fs::metadata(place.join("nobody")).is_err());

    let whole = disks[0].bytes(0, 20 * MIB as usize + 77);
    assert!(fs::read(&path).expect("readable") == whole);
    let open = File::open(&path).expect("it opens");
    let mut random = Random(seed());
    for _ in 0..200 {
        let length = random.below(200_000);
        let offset = random.below(whole.len() as u64);
        let mut bytes = vec![0; length as usize];
        let count = open.read_at(&mut bytes, offset).expect("readable");
        let end = (offset + length).min(whole.len() as u64);
        assert_eq!(count as u64, end - offset);
        assert!(bytes[..count] == whole[offset as usize..end as usize]);
    }
    for refused in [
        File::options().write(true).open(&path).err(),
        File::create(place.join("new")).err(),
        fs::remove_file(&path).err(),
        fs::rename(&path, place.join("other")).err(),
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).err(),
    ] {
        let refused = refused.expect("nothing may be changed").kind();
        assert!(
            matches!(
                refused,
                std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied
            ),
            "{refused}"
        );
    }
    drop(open);
    assert_eq!(mounted.unmount().expect("unmounted"), Unmounted::Cleanly);
    assert_eq!(fs::read_dir(&place).expect("the folder below").count(), 0);
    cache.stop();
}

#[test]
fn holes_are_told_so_that_copies_are_sparse() {
    if !have_fuse() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let cache = ReadCache::new(0);
    let disk = Arc::new(Numbers::new(11, 64 * MIB, 10));
    let place = dir.path().join("served");
    let mounted = mount(&place, vec![file("d.raw", &disk, &cache)]);
    let copy = dir.path().join("copy.raw");
    tool(
        Command::new("cp")
            .arg("--sparse=auto")
            .arg(place.join("d.raw"))
            .arg(&copy),
    );
    let bytes = fs::read(&copy).expect("the copy");
    assert!(bytes == disk.bytes(0, bytes.len()) && bytes.len() as u64 == 64 * MIB);
    let allocated = fs::metadata(&copy).expect("its metadata").blocks() * 512;
    assert!(allocated < 24 * MIB, "{allocated} bytes");
    let read = disk.read_bytes.load(Ordering::Relaxed);
    assert!(read < 24 * MIB, "holes were read: {read}");
    mounted.unmount().expect("unmounted");
    cache.stop();
}

#[test]
fn many_read_at_once() {
    if !have_fuse() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let cache = ReadCache::new(0);
    let disk = Arc::new(Numbers::new(12, 16 * MIB, 80));
    let place = dir.path().join("served");
    let mounted = mount(&place, vec![file("d.raw", &disk, &cache)]);
    std::thread::scope(|scope| {
        for reader in 0..6 {
            let (path, disk) = (place.join("d.raw"), &disk);
            scope.spawn(move || {
                let mut open = File::open(path).expect("it opens");
                let mut bytes = vec![0; 300_000];
                let mut at = reader * 1_000_001;
                open.seek(SeekFrom::Start(at)).expect("sought");
                while at + 300_000 < 16 * MIB {
                    open.read_exact(&mut bytes).expect("readable");
                    assert!(bytes == disk.bytes(at, 300_000), "at {at}");
                    at += 300_000;
                }
            });
        }
    });
    mounted.unmount().expect("unmounted");
    cache.stop();
}

#[test]
fn a_read_that_fails_is_an_error_of_input() {
    if !have_fuse() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let cache = ReadCache::new(0);
    let disk = Arc::new(Numbers::new(13, 8 * MIB, 100));
    disk.bad_block.store(60, Ordering::Relaxed);
    let place = dir.path().join("served");
    let mounted = mount(&place, vec![file("d.raw", &disk, &cache)]);
    let open = File::open(place.join("d.raw")).expect("it opens");
    let error = open.read_at(&mut [0; 100], 60 * 65_536).expect_err("bad");
    assert_eq!(error.raw_os_error(), Some(5), "EIO");
    let mut bytes = [0; 100];
    open.read_at(&mut bytes, 100 * 65_536)
        .expect("the rest is readable");
    drop(open);
    mounted.unmount().expect("unmounted");
    cache.stop();
}

#[test]
fn a_folder_in_use_is_taken_away_all_the_same_and_says_so() {
    if !have_fuse() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let cache = ReadCache::new(0);
    let disk = Arc::new(Numbers::new(14, MIB, 100));
    let place = dir.path().join("served");
    let mounted = mount(&place, vec![file("d.raw", &disk, &cache)]);
    let open = File::open(place.join("d.raw")).expect("it opens");
    assert_eq!(mounted.unmount().expect("detached"), Unmounted::WhileInUse);
    assert_eq!(fs::read_dir(&place).expect("the folder below").count(), 0);
    drop(open);
    let again = mount(&place, vec![file("d.raw", &disk, &cache)]);
    again.unmount().expect("unmounted");
    cache.stop();
}

#[test]
fn what_is_mounted_or_lies_there_is_left_alone() {
    if !have_fuse() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let cache = ReadCache::new(0);
    let disk = Arc::new(Numbers::new(15, MIB, 100));
    let place = dir.path().join("served");
    let mounted = mount(&place, vec![file("d.raw", &disk, &cache)]);
    let again = |place: &Path| {
        let options = FuseOptions {
            access: Access::Owner,
        };
        let files = vec![file("d.raw", &disk, &cache)];
        let refused = FuseMount::mount(place, files, options, Arc::new(Unwatched)).err();
        refused.map(|error| error.kind())
    };
    assert_eq!(again(&place), Some(ErrorKind::Busy));
    assert!(
        fs::read(place.join("d.raw")).is_ok(),
        "the first one lives on"
    );
    mounted.unmount().expect("unmounted");
    fs::write(place.join("precious"), b"mine").expect("a file");
    assert_eq!(again(&place), Some(ErrorKind::AlreadyExists));
    assert_eq!(again(Path::new("/proc")), Some(ErrorKind::Busy));
    cache.stop();
}

#[test]
fn a_file_system_in_a_file_of_the_folder_is_mounted_over_a_loop_device() {
    if !have_fuse() {
        return;
    }
    let have_tools = rustix_is_root()
        && Path::new("/dev/loop-control").exists()
        && Command::new("mke2fs")
            .arg("-V")
            .stderr(Stdio::null())
            .status()
            .is_ok();
    if !have_tools {
        assert!(
            std::env::var_os("CI").is_none(),
            "no root, loop devices or mke2fs"
        );
        println!("SKIP: it takes root, loop devices and mke2fs");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("deep/er")).expect("folders");
    let bytes = Numbers::new(16, 3 * MIB, 90).bytes(0, 3 << 20);
    fs::write(tree.join("deep/er/large"), &bytes).expect("a file");
    let image = dir.path().join("ext4.raw");
    File::create(&image)
        .and_then(|file| file.set_len(32 * MIB))
        .expect("an image");
    tool(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(&tree)
            .arg(&image),
    );
    let source = Arc::new(WholeFile(fs::read(&image).expect("the image")));
    let cache = ReadCache::new(0);
    let served = ServedFile {
        name: "ext4.raw".to_owned(),
        allocated_bytes: 32 * MIB,
        disk: CachedDisk::new(source, &cache),
        modified: SystemTime::UNIX_EPOCH,
    };
    let place = dir.path().join("served");
    let mounted = mount(&place, vec![served]);
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).expect("a folder");
    let looped = Command::new("mount")
        .args(["-t", "ext4", "-o", "ro,noload,loop"])
        .arg(place.join("ext4.raw"))
        .arg(&inside)
        .output()
        .expect("it starts");
    if !looped.status.success() {
        assert!(std::env::var_os("CI").is_none(), "{looped:?}");
        println!("SKIP: this kernel mounts no loop devices: {looped:?}");
        mounted.unmount().expect("unmounted");
        return;
    }
    let found = fs::read(inside.join("deep/er/large"));
    tool(Command::new("umount").arg(&inside));
    assert!(found.expect("the file") == bytes);
    mounted.unmount().expect("unmounted");
    cache.stop();
}

/// A disk that lies in memory.
struct WholeFile(Vec<u8>);

impl ReadAt for WholeFile {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let offset = offset as usize;
        buffer.copy_from_slice(&self.0[offset..offset + buffer.len()]);
        Ok(())
    }
}
