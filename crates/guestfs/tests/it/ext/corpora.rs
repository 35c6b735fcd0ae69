//! Every image of the corpora against the tree that Linux saw in it.

use std::path::Path;
use std::sync::Arc;

use guestfs::FileSystem;
use guestfs::filesystem::{Cleanliness, FileKind};
use serde_json::Value;

use crate::conformance::{self, Tree};
use crate::images::{FileVolume, corpora, unpack};

/// The expected tree. Python wrote bytes that are no UTF-8 as lone surrogates (`\\udcXX`), which JSON does not know: they
/// become private characters here, see [`bytes_of`].
fn parse(text: &str) -> Value {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("\\udc") {
        let (before, behind) = rest.split_at(at);
        plain.push_str(before);
        let is_pair = before.len() >= 6
            && ["\\ud8", "\\ud9", "\\uda", "\\udb"]
                .iter()
                .any(|high| before[before.len() - 6..].starts_with(high));
        plain.push_str(if is_pair { "\\udc" } else { "\\ue0" });
        rest = &behind["\\udc".len()..];
    }
    plain.push_str(rest);
    serde_json::from_str(&plain).expect("JSON")
}

/// The bytes of a path.
fn bytes_of(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for character in path.chars() {
        match u32::from(character) {
            private @ 0xE000..=0xE0FF => bytes.push((private & 0xFF) as u8),
            _ => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// Compares with the entries of a mount: `[path, kind, size and hash or target]`.
fn assert_tree(image: &str, tree: &Tree, expected: &Value) {
    let expected = expected.as_array().expect("a list");
    for entry in expected {
        let path = entry[0].as_str().expect("a path");
        // Without a key Linux makes up names for what is in an encrypted directory.
        let parent =
            path.rsplit_once('/').map_or(
                "/",
                |(parent, _)| if parent.is_empty() { "/" } else { parent },
            );
        let above = tree.get(&bytes_of(parent));
        if above.is_some_and(|above| above.metadata.obstacle.is_some()) {
            continue;
        }
        let seen = tree
            .get(&bytes_of(path))
            .unwrap_or_else(|| panic!("{image}: {path} was not seen"));
        match entry[1].as_str().expect("a kind") {
            "dir" => assert_eq!(seen.metadata.kind, FileKind::Directory, "{image}: {path}"),
            "file" => {
                assert_eq!(seen.metadata.kind, FileKind::Regular, "{image}: {path}");
                assert_eq!(
                    Some(seen.metadata.size_bytes),
                    entry[2].as_u64(),
                    "{image}: {path}"
                );
                if seen.metadata.obstacle.is_none() {
                    assert_eq!(seen.sha256.as_deref(), entry[3].as_str(), "{image}: {path}");
                }
            }
            "symlink" => {
                let target = entry[2].as_str().map(bytes_of);
                assert_eq!(seen.target, target, "{image}: {path}");
            }
            other => assert_ne!(
                seen.metadata.kind,
                FileKind::Regular,
                "{image}: {path} {other}"
            ),
        }
    }
    let names = tree.keys().filter(|path| path.as_slice() != b"/").count();
    assert!(
        names <= expected.len(),
        "{image}: {names} seen, {} are there",
        expected.len()
    );
}

fn check(corpora: &Path, name: &str, kind: &str, version: &str) -> Cleanliness {
    let folder = tempfile::tempdir().expect("a folder");
    let volume = FileVolume::open(&unpack(corpora, &format!("ext/{name}"), folder.path()));
    let fs = guestfs::ext::open(volume.clone()).expect("a file system");
    let expected = std::fs::read_to_string(corpora.join(format!("expected/{name}.tree.json")))
        .expect("a tree");
    let expected = parse(&expected);
    let (blkid, mount) = (&expected[0]["blkid"], &expected[0]["mount"]["entries"]);
    let facts = fs.facts();
    assert_eq!(
        (facts.kind.name(), facts.version.as_deref()),
        (kind, Some(version)),
        "{name}"
    );
    assert_eq!(blkid["TYPE"].as_str(), Some(kind), "{name}");
    assert_eq!(facts.id.as_deref(), blkid["UUID"].as_str(), "{name}");
    let label = blkid["LABEL"]
        .as_str()
        .map(|label| label.replace("\\ ", " "));
    assert_eq!(facts.label, label, "{name}");
    let tree = conformance::check(&fs);
    assert_tree(name, &tree, mount);
    if !matches!(facts.cleanliness, Cleanliness::Dirty(_)) {
        conformance::check_unused(volume, &tree, &super::open);
    }
    fs.facts().cleanliness.clone()
}

#[test]
fn every_image_of_the_corpora_reads_as_linux_reads_it() {
    let Some(corpora) = corpora() else { return };
    let images = [
        ("dfvfs-ext2.raw.xz", "ext2"),
        ("dissect-ext4_sparse.bin.gz", "ext4"),
        ("ext4view-test_disk1.bin.zst", "ext4"),
        ("ext4view-test_disk_ext2.bin.zst", "ext2"),
        ("ext4view-test_disk_ext3.bin.zst", "ext3"),
    ];
    for (name, kind) in images {
        check(&corpora, name, kind, "1.0");
    }
}

#[test]
fn a_live_journal_is_replayed_as_linux_replays_it() {
    let Some(corpora) = corpora() else { return };
    let name = "ext4view-test_disk_4k_block_journal.bin.zst";
    assert_eq!(check(&corpora, name, "ext4", "1.0"), Cleanliness::Replayed);
}

#[test]
fn damaged_images_of_the_corpora_give_what_is_sound() {
    let Some(corpora) = corpora() else { return };
    let images = [
        "e2fsprogs-f_extents.img.gz",
        "e2fsprogs-f_badcluster.img.gz",
        "e2fsprogs-j_recover_csum2_32bit.img.bz2",
    ];
    for name in images {
        let folder = tempfile::tempdir().expect("a folder");
        let volume = FileVolume::open(&unpack(&corpora, &format!("ext/{name}"), folder.path()));
        let fs = guestfs::ext::open(Arc::clone(&volume) as _).expect("its superblock is sound");
        let seen = super::damage::wander(&fs);
        assert!(seen.files > 0, "{name}: something is readable");
    }
}
