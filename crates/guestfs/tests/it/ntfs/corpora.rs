//! NTFS volumes of others, held against what ntfs-3g and the Sleuth Kit said of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::filesystem::{Cleanliness, FileSystemKind};

use super::made::sha256;
use super::{Told, assert_equal, at, bytes, open, seen};
use crate::conformance;
use crate::images::{self, FileVolume};

/// A partition of a disk.
struct Partition {
    disk: Arc<FileVolume>,
    offset: u64,
    size_bytes: u64,
}

impl ReadAt for Partition {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.disk.read_at(self.offset + offset, buffer)
    }
}

/// The first NTFS of a raw image, as long as its boot sector says, with the backup boot sector behind it.
fn partition(path: &Path, offset: u64) -> Arc<dyn ReadAt> {
    let disk = FileVolume::open(path);
    let mut sectors = [0; 8];
    disk.read_at(offset + 40, &mut sectors)
        .expect("a boot sector");
    let size_bytes = (u64::from_le_bytes(sectors) + 1) * 512;
    let size_bytes = size_bytes.min(disk.size_bytes() - offset);
    Arc::new(Partition {
        disk,
        offset,
        size_bytes,
    })
}

fn expected(corpora: &Path, name: &str) -> serde_json::Value {
    let path = corpora.join(format!("expected/{name}.tree.json"));
    let text = std::fs::read_to_string(path).expect("what is expected");
    serde_json::from_str::<serde_json::Value>(&text).expect("JSON")[0].clone()
}

fn expected_tree(value: &serde_json::Value) -> Told {
    let entries = value["mount"]["entries"].as_array().expect("entries");
    entries
        .iter()
        .map(|entry| {
            let word = |at: usize| entry[at].as_str().expect("a word").to_owned();
            let (kind, size, content) = match entry[1].as_str().expect("a kind") {
                "file" => ("file", entry[2].as_u64().expect("a size"), word(3)),
                "symlink" => ("symlink", word(2).len() as u64, word(2)),
                "dir" => ("dir", 0, String::new()),
                other => panic!("{other} in what is expected"),
            };
            (word(0), (kind.to_owned(), size, content))
        })
        .collect()
}

fn raw(corpora: &Path, name: &str, folder: &Path) -> PathBuf {
    let image = images::unpack(corpora, name, folder);
    if name.starts_with("ntfs/") || name.starts_with("synth/") {
        return image;
    }
    let raw = folder.join("raw");
    let status = Command::new("qemu-img")
        .args(["convert", "-O", "raw"])
        .arg(&image)
        .arg(&raw)
        .status()
        .expect("qemu-img");
    assert!(status.success(), "qemu-img converts {name}");
    raw
}

fn check(name: &str) {
    if !images::has_commands(&["xz", "gzip", "qemu-img"]) {
        return;
    }
    let Some(corpora) = images::corpora() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (_, file) = name.split_once('/').expect("a group");
    let expected = expected(&corpora, file);
    let image = raw(&corpora, name, folder.path());
    let volume = partition(&image, expected["offset"].as_u64().expect("an offset"));
    let fs = open(Arc::clone(&volume));
    let facts = fs.facts();
    assert_eq!(facts.kind, FileSystemKind::Ntfs);
    if let Some(label) = expected["blkid"]["LABEL"].as_str() {
        assert_eq!(
            facts.label.as_deref(),
            Some(label.replace('\\', "").as_str())
        );
    }
    if let Some(id) = expected["blkid"]["UUID"].as_str() {
        assert_eq!(facts.id.as_deref(), Some(id));
    }
    let tree = conformance::check(&*fs);
    let mut found = seen(&tree);
    let mut wanted = expected_tree(&expected);
    // ntfs-3g makes Unix paths of the links of Windows.
    for (path, (kind, size, target)) in &mut found {
        if kind == "symlink" && target.contains('\\') {
            let (_, wanted_size, wanted_target) = wanted.get_mut(path).expect("a link there, too");
            let end = target.rsplit('\\').next().expect("a last part");
            assert!(wanted_target.ends_with(end), "{target} and {wanted_target}");
            (*wanted_size, *wanted_target) = (*size, target.clone());
        }
    }
    assert_equal(&found, &wanted);
    if let Cleanliness::Clean = facts.cleanliness {
        conformance::check_unused(volume, &tree, &open);
    } else {
        println!("{name}: {:?}", facts.cleanliness);
    }
    check_own_files(&*fs, &expected);
    for (path, seen) in &tree {
        let path = String::from_utf8_lossy(path);
        let descriptor = fs
            .security(seen.file)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let descriptor = descriptor.unwrap_or_else(|| panic!("{path} has no descriptor"));
        assert_eq!(
            descriptor.0.first(),
            Some(&1),
            "{path}: revision of a descriptor"
        );
        assert_eq!(at(&*fs, &path), seen.file);
    }
}

/// Files of NTFS itself, which listings do not show, as the Sleuth Kit reads them.
fn check_own_files(fs: &dyn FileSystem, expected: &serde_json::Value) {
    for entry in expected["tsk"].as_array().into_iter().flatten() {
        let path = entry[0].as_str().expect("a path");
        // The bad clusters are a hole as large as the volume, of which the Sleuth Kit reads nothing.
        let Some(hash) = entry[2]
            .as_str()
            .filter(|_| path.starts_with("/$") && path != "/$BadClus:$Bad")
        else {
            continue;
        };
        let (path, stream) = match path.split_once(':') {
            Some((path, stream)) => (path, Some(stream)),
            None => (path, None),
        };
        assert_eq!(
            sha256(&bytes(fs, at(fs, path), stream)),
            hash,
            "{path} {stream:?}"
        );
    }
}

macro_rules! corpus {
    ($($test:ident $name:literal),* $(,)?) => {$(
        #[test]
        fn $test() {
            check($name);
        }
    )*};
}

corpus!(
    a_directory_of_two_thousand_folders_is_as_others_say "ntfs/dissect-ntfs.bin.gz",
    attribute_lists_and_sparse_files_are_as_others_say "ntfs/ntfscrate-testfs1.xz",
    compressed_fragmented_and_odd_files_are_as_others_say "synth/ntfs-torture.img.xz",
    a_fixed_vhd_of_windows_is_as_others_say "vhd/dfvfs-ntfs-fixed.vhd",
    a_dynamic_vhd_of_windows_is_as_others_say "vhd/dfvfs-ntfs-dynamic.vhd",
    a_fixed_vhdx_of_windows_is_as_others_say "vhdx/dfvfs-ntfs-fixed.vhdx",
    a_volume_with_a_change_journal_is_as_others_say "qcow2/plaso-usnjrnl.qcow2.xz",
);

#[test]
fn a_label_in_cyrillic_and_the_serial_number_are_told() {
    if !images::has_commands(&["xz"]) {
        return;
    }
    let Some(corpora) = images::corpora() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let image = images::unpack(&corpora, "probe/blkid-ntfs.img.xz", folder.path());
    let fs = open(FileVolume::open(&image));
    assert_eq!(fs.facts().label.as_deref(), Some("Новый том"));
    assert_eq!(fs.facts().id.as_deref(), Some("09CBB6DE30C87310"));
    assert_eq!(fs.facts().version.as_deref(), Some("3.1"));
}

#[test]
fn the_streams_of_the_torture_volume_are_there() {
    if !images::has_commands(&["xz"]) {
        return;
    }
    let Some(corpora) = images::corpora() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let image = images::unpack(&corpora, "synth/ntfs-torture.img.xz", folder.path());
    let fs = open(FileVolume::open(&image));
    let expected = expected(&corpora, "ntfs-torture.img.xz");
    let all = expected["ads"].as_object().expect("streams");
    assert!(!all.is_empty());
    for (place, value) in all {
        let (path, name) = place.rsplit_once(':').expect("path:stream");
        let found = bytes(&*fs, at(&*fs, path), Some(name));
        assert_eq!(
            String::from_utf8_lossy(&found),
            value.as_str().expect("text"),
            "{place}"
        );
    }
}
