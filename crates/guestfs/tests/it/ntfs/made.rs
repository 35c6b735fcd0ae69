//! Volumes made by mkntfs and filled through ntfs-3g, held against what its mount shows.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use guestfs::filesystem::{Cleanliness, DirectoryCursor, FileKind};
use guestfs::{ErrorKind, FileName, FileSystem};
use sha2::{Digest, Sha256};

use super::{assert_equal, at, bytes, open, seen, told};
use crate::conformance;
use crate::images::{self, FileVolume};

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a string takes it");
            text
        })
}

/// Whether volumes can be made and mounted here.
pub fn is_possible() -> bool {
    if !images::has_commands(&["mkntfs", "ntfs-3g", "python3", "unshare"]) {
        return false;
    }
    if !Path::new("/dev/fuse").exists() {
        images::missing("there is no /dev/fuse for ntfs-3g");
        return false;
    }
    true
}

/// Makes a volume, runs a script with it mounted at `mount`, and gives its image; `None` when this machine cannot.
pub fn make(folder: &Path, size: &str, options: &str, script: &str) -> Option<PathBuf> {
    if !is_possible() {
        return None;
    }
    std::fs::write(folder.join("fill.py"), include_str!("fill.py")).expect("the script");
    let text = format!(
        "truncate -s {size} image\n\
         mkntfs -F -Q -q {options} image >mkntfs.log 2>&1 || {{ cat mkntfs.log >&2; exit 1; }}\n\
         mkdir mount\n\
         {}\n{script}\n{}\n",
        mount("xattr"),
        unmount(),
    );
    images::script(folder, &text).unwrap_or_else(|error| panic!("{text}: {error}"));
    Some(folder.join("image"))
}

/// Mounts the image at `mount`, until [`unmount`] or the end of the script, however it comes.
pub fn mount(streams: &str) -> String {
    format!(
        "trap 'umount mount 2>/dev/null || true' EXIT\n\
         ntfs-3g -o no_detach,compression,streams_interface={streams} image mount & pid=$!\n\
         until mountpoint -q mount; do kill -0 $pid; done"
    )
}

/// Unmounts, and waits until ntfs-3g has written everything.
pub fn unmount() -> &'static str {
    "umount mount; wait $pid"
}

fn check(size: &str, options: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let script = "python3 fill.py fill mount\npython3 fill.py tell mount told";
    let Some(image) = make(folder.path(), size, options, script) else {
        return;
    };
    let volume = FileVolume::open(&image);
    let fs = open(volume.clone());
    assert_eq!(fs.facts().cleanliness, Cleanliness::Clean);
    let tree = conformance::check(&*fs);
    assert_equal(&seen(&tree), &told(&folder.path().join("told")));
    conformance::check_unused(volume, &tree, &open);
    let links = tree[b"/size 900".as_slice()].metadata.link_count;
    assert_eq!(links, 301);
}

macro_rules! made {
    ($($test:ident $size:literal $options:literal),* $(,)?) => {$(
        #[test]
        fn $test() {
            check($size, $options);
        }
    )*};
}

made!(
    clusters_of_512_bytes_cut_file_records_in_two "200M" "-c 512",
    clusters_of_4096_bytes_are_read "200M" "-c 4096",
    clusters_of_64_kib_are_read "2G" "-c 65536",
    clusters_of_2_mib_are_read "20G" "-c 2097152",
    sectors_of_4096_bytes_are_read "300M" "-s 4096 -c 4096",
);

#[test]
fn attributes_descriptors_and_links_of_windows_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("windows.py"), include_str!("windows.py"))
        .expect("the script");
    let Some(image) = make(folder.path(), "64M", "-L Label\\ 1", "python3 windows.py") else {
        return;
    };
    let fs = open(FileVolume::open(&image));
    assert_eq!(fs.facts().label.as_deref(), Some("Label 1"));
    check_links(&*fs);
    check_plain(&*fs, folder.path());
    let mut covered = 0;
    fs.file_ranges(at(&*fs, "PAGEFILE.SYS"), &mut |range| {
        covered += range.length_bytes;
        std::ops::ControlFlow::Continue(())
    })
    .expect("ranges");
    assert!((100_000..110_000).contains(&covered), "{covered}");
    conformance::check(&*fs);
}

fn check_links(fs: &dyn FileSystem) {
    let target = |path| fs.read_link(at(fs, path)).expect("a link").to_string();
    assert_eq!(target("junction"), r"C:\Users\Public");
    assert_eq!(target("relative"), r"..\to\file");
    assert_eq!(target("share"), r"\\server\share\x");
    for (path, tag, word) in [
        ("dedup", 0x8000_0013, "deduplication"),
        ("away", 0x9000_601A, "cloud"),
    ] {
        let metadata = fs.metadata(at(fs, path)).expect("metadata");
        assert_eq!(metadata.kind, FileKind::ReparsePoint(tag));
        assert_eq!(metadata.size_bytes, 5000);
        assert!(metadata.obstacle.expect("an obstacle").contains(word));
        let error = fs
            .open(at(fs, path), None)
            .map(|_| ())
            .expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(bytes(fs, at(fs, "cloud"), None), vec![b'x'; 5000]);
}

fn check_plain(fs: &dyn FileSystem, folder: &Path) {
    let plain = at(fs, "PLAIN");
    let attributes = fs.extended_attributes(plain).expect("extended attributes");
    let pairs: Vec<_> = attributes
        .iter()
        .map(|attribute| (attribute.name.to_string(), attribute.value.as_slice()))
        .collect();
    assert_eq!(
        pairs,
        [
            ("FIRST".to_owned(), b"one".as_slice()),
            ("$LXMOD".to_owned(), b"\xed\x81\0\0".as_slice())
        ]
    );
    let file = |name: &str| std::fs::read(folder.join(name)).expect("what ntfs-3g told");
    let descriptor = fs.security(plain).expect("security").expect("a descriptor");
    assert_eq!(descriptor.0, file("acl"));
    let metadata = fs.metadata(plain).expect("metadata");
    let attrib = u32::from_be_bytes(file("attrib").try_into().expect("four bytes"));
    assert_eq!(metadata.windows_attributes, Some(attrib));
    let times = [
        metadata.times.created,
        metadata.times.modified,
        metadata.times.accessed,
        metadata.times.changed,
    ];
    for (time, wanted) in times.into_iter().zip(file("times").chunks_exact(8)) {
        let time = time.expect("a time");
        let ticks =
            (time.seconds + 11_644_473_600) * 10_000_000 + i64::from(time.nanoseconds / 100);
        assert_eq!(ticks.to_le_bytes(), wanted);
    }
}

#[test]
fn a_small_file_beside_a_hundred_thousand_costs_little_reading() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = "mkdir mount/many\n\
        python3 -c 'for n in range(100_000): open(f\"mount/many/file {n}\", \"w\").close()'\n\
        echo small > mount/many/small";
    let Some(image) = make(folder.path(), "1T", "-c 4096", script) else {
        return;
    };
    let volume = FileVolume::open(&image);
    let fs = open(volume.clone());
    assert_eq!(bytes(&*fs, at(&*fs, "many/SMALL"), None), b"small\n");
    assert!(
        volume.read_bytes() < 1 << 20,
        "{} bytes were read",
        volume.read_bytes()
    );
    let mut count = 0;
    fs.list(at(&*fs, "many"), DirectoryCursor::default(), &mut |entry| {
        count += 1;
        assert!(entry.name.is_safe());
        std::ops::ControlFlow::Continue(())
    })
    .expect("a listing");
    assert_eq!(count, 100_001);
}

#[test]
fn a_damaged_first_boot_sector_or_file_table_is_replaced_by_its_copy() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(image) = make(folder.path(), "32M", "-c 4096", "echo hello > mount/file") else {
        return;
    };
    let whole = std::fs::read(&image).expect("the image");
    let table =
        usize::try_from(u64::from_le_bytes(whole[48..56].try_into().expect("eight")) * 4096)
            .expect("small");
    for damage in [0..512, table..table + 1024] {
        let mut bytes_of = whole.clone();
        bytes_of[damage.clone()].fill(0);
        let fs = open(std::sync::Arc::new(images::MemoryVolume(bytes_of)));
        assert_eq!(
            bytes(&*fs, at(&*fs, "file"), None),
            b"hello\n",
            "{damage:?}"
        );
    }
}

#[test]
fn a_volume_in_use_or_hibernated_says_so_and_tells_no_used_ranges() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(image) = make(
        folder.path(),
        "32M",
        "",
        "printf 'hibr and more' > mount/hiberfil.sys",
    ) else {
        return;
    };
    let fs = open(FileVolume::open(&image));
    let Cleanliness::Dirty(reason) = &fs.facts().cleanliness else {
        panic!("{:?}", fs.facts().cleanliness);
    };
    assert!(reason.contains("hibernates"), "{reason}");
    let error = fs
        .used_ranges(&mut |_| std::ops::ControlFlow::Continue(()))
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("hiberfil.sys"), "{error}");
    assert_eq!(
        fs.find(fs.root(), &FileName::from("HIBERFIL.sys"))
            .expect("a search"),
        Some(at(&*fs, "hiberfil.sys"))
    );
}

#[test]
fn the_dirty_flag_of_a_volume_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(image) = make(folder.path(), "32M", "-c 4096", "echo hello > mount/file") else {
        return;
    };
    let mut whole = std::fs::read(&image).expect("the image");
    let first = u64::from_le_bytes(whole[48..56].try_into().expect("eight")) * 4096;
    let record = usize::try_from(first).expect("small") + 3 * 1024;
    let information = whole[record..record + 1024]
        .windows(4)
        .position(|bytes| bytes == [0x70, 0, 0, 0])
        .expect("volume information");
    // The value stands 24 bytes behind the head of its attribute, the flags 10 bytes into it.
    whole[record + information + 34] |= 1;
    let fs = open(std::sync::Arc::new(images::MemoryVolume(whole)));
    let Cleanliness::Dirty(reason) = &fs.facts().cleanliness else {
        panic!("{:?}", fs.facts().cleanliness);
    };
    assert!(reason.contains("marked dirty"), "{reason}");
    assert_eq!(bytes(&*fs, at(&*fs, "file"), None), b"hello\n");
    assert!(
        fs.used_ranges(&mut |_| std::ops::ControlFlow::Continue(()))
            .is_err()
    );
}
