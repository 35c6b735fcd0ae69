//! Every image of the corpora against what the Sleuth Kit found in it.

use std::collections::BTreeMap;

use guestfs::filesystem::FileKind;
use serde_json::Value;

use crate::conformance;
use crate::images::{FileVolume, corpora, unpack};

#[test]
fn every_image_of_the_corpora_reads_as_the_sleuth_kit_reads_it() {
    let Some(corpora) = corpora() else { return };
    let images = [
        ("dissect-fat12.bin.xz", "fat12"),
        ("dissect-fat32.bin.xz", "fat32"),
        ("dissect-exfat.bin.xz", "exfat"),
    ];
    for (name, kind) in images {
        let folder = tempfile::tempdir().expect("a folder");
        let volume = FileVolume::open(&unpack(&corpora, &format!("fat/{name}"), folder.path()));
        let fs = super::open(volume.clone()).expect("a file system");
        let text =
            std::fs::read(corpora.join(format!("expected/{name}.tree.json"))).expect("a tree");
        let expected: Value = serde_json::from_slice(&text).expect("JSON");
        let blkid = &expected[0]["blkid"];
        let facts = fs.facts();
        assert_eq!(facts.kind.name(), kind, "{name}");
        assert_eq!(facts.id.as_deref(), blkid["UUID"].as_str(), "{name}");
        assert_eq!(facts.label.as_deref(), blkid["LABEL"].as_str(), "{name}");
        let tree = conformance::check(&*fs);
        // `/$…` and the label are the Sleuth Kit's own inventions, `/` at the end says a directory.
        let told: BTreeMap<&str, &Value> = expected[0]["tsk"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|entry| (entry[0].as_str().expect("a path"), entry))
            .filter(|(path, _)| !path.starts_with("/$") && !path.contains("(Volume Label Entry)"))
            .collect();
        for (path, entry) in &told {
            let seen = tree
                .get(path.trim_end_matches('/').as_bytes())
                .unwrap_or_else(|| panic!("{name}: {path} was not seen"));
            if path.ends_with('/') {
                assert_eq!(seen.metadata.kind, FileKind::Directory, "{name}: {path}");
            } else {
                assert_eq!(
                    Some(seen.metadata.size_bytes),
                    entry[1].as_u64(),
                    "{name}: {path}"
                );
                assert_eq!(seen.sha256.as_deref(), entry[2].as_str(), "{name}: {path}");
            }
        }
        assert_eq!(tree.len(), told.len() + 1, "{name}: and the root");
        if fs
            .used_ranges(&mut |_| std::ops::ControlFlow::Break(()))
            .is_ok()
        {
            conformance::check_unused(volume, &tree, &|volume| super::open(volume).expect("again"));
        }
    }
}
