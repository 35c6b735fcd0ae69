//! The given images against what Linux saw in them.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;
use guestfs::filesystem::{Cleanliness, FileKind};

use crate::conformance::{self, Tree};
use crate::corpus::{self, Bytes};

#[test]
fn every_given_image_has_the_tree_that_linux_sees() {
    let Some(entries) = corpus::entries("btrfs") else {
        return;
    };
    for entry in entries {
        let path = entry["path"].as_str().expect("path");
        let volume: Arc<dyn ReadAt> = Bytes::shared(corpus::bytes(path).expect("given"));
        let fs = guestfs::btrfs::open(Arc::clone(&volume))
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(fs.facts().cleanliness, Cleanliness::Clean, "{path}");
        let tree = conformance::check(&fs);
        let expected =
            corpus::bytes(entry["expected"]["tree"].as_str().expect("tree")).expect("given");
        let expected: serde_json::Value = serde_json::from_slice(&expected).expect("JSON");
        let told = &expected[0]["blkid"];
        let facts = fs.facts();
        assert_eq!(facts.label.as_deref(), told["LABEL"].as_str(), "{path}");
        assert_eq!(facts.id.as_deref(), told["UUID"].as_str(), "{path}");
        let wanted: BTreeMap<String, serde_json::Value> = expected[0]["mount"]["entries"]
            .as_array()
            .expect("entries")
            .iter()
            .map(|entry| (entry[0].as_str().expect("path").to_owned(), entry.clone()))
            .collect();
        compare(path, &tree, &wanted);
        conformance::check_unused(volume, &tree, &super::open);
    }
}

/// Each path of the expected tree with kind, size and hash; and no other.
fn compare(image: &str, tree: &Tree, wanted: &BTreeMap<String, serde_json::Value>) {
    let told: Vec<&[u8]> = tree
        .keys()
        .map(Vec::as_slice)
        .filter(|path| *path != b"/")
        .collect();
    let paths: Vec<&[u8]> = wanted.keys().map(String::as_bytes).collect();
    assert_eq!(told, paths, "{image}");
    for (path, entry) in wanted {
        let seen = &tree[path.as_bytes()];
        match entry[1].as_str().expect("kind") {
            "dir" => assert_eq!(seen.metadata.kind, FileKind::Directory, "{image} {path}"),
            "file" => {
                let size = entry[2].as_u64().expect("size");
                assert_eq!(seen.metadata.size_bytes, size, "{image} {path}");
                assert_eq!(seen.sha256.as_deref(), entry[3].as_str(), "{image} {path}");
            }
            "symlink" => {
                let target = seen.target.as_deref().map(String::from_utf8_lossy);
                assert_eq!(target.as_deref(), entry[2].as_str(), "{image} {path}");
            }
            other => panic!("{image} {path}: {other}"),
        }
    }
}
