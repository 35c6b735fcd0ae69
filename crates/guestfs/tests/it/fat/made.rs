//! Images made by mkfs.fat and mkfs.exfat and filled by mtools and by FUSE.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guestfs::filesystem::FileKind;
use guestfs::{ErrorKind, FileName};
use sha2::{Digest, Sha256};

use crate::conformance::{self, Tree};
use crate::ext::damage::{Dice, damage, places, wander};
use crate::images::{FileVolume, MemoryVolume, has_commands, missing, script};

/// Files below a folder of the host: path to hash, none for directories.
fn source(folder: &Path) -> BTreeMap<String, Option<String>> {
    let mut files = BTreeMap::new();
    let mut stack = vec![(folder.to_path_buf(), String::new())];
    while let Some((path, name)) = stack.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path).expect("a folder") {
                let entry = entry.expect("an entry");
                let below = format!("{name}/{}", entry.file_name().to_string_lossy());
                stack.push((entry.path(), below));
            }
            files.insert(name, None);
        } else {
            let hash = Sha256::digest(std::fs::read(&path).expect("a file"));
            files.insert(
                name,
                Some(hash.iter().map(|byte| format!("{byte:02x}")).collect()),
            );
        }
    }
    files
}

fn assert_source(what: &str, folder: &Path, tree: &Tree) {
    let expected = source(folder);
    assert!(expected.len() > 100, "{what}: {}", expected.len());
    for (path, hash) in &expected {
        let shown = if path.is_empty() { "/" } else { path };
        let seen = tree
            .get(shown.as_bytes())
            .unwrap_or_else(|| panic!("{what}: {shown} was not seen"));
        match hash {
            Some(_) => assert_eq!(&seen.sha256, hash, "{what}: {shown}"),
            None => assert_eq!(seen.metadata.kind, FileKind::Directory, "{what}: {shown}"),
        }
    }
    assert_eq!(tree.len(), expected.len(), "{what}");
}

/// A tree of the host with names and sizes that hurt.
const SOURCE: &str = r#"
    mkdir -p source/deep source/many source/names
    path=source/deep; for i in $(seq 30); do path=$path/level$i; mkdir $path; echo $i > $path/file; done
    for i in $(seq 300); do head -c $((i % 40)) /dev/urandom > "source/many/a rather long name $i.text"; done
    for name in "UPPER.TXT" "lower.txt" "Mixed.Txt" "no extension" ".dot" "日本語の名前.txt" "é è ü.txt" "🐧🐧.png" "$(printf 'x%.0s' $(seq 250))"; do
        echo "$name" > "source/names/$name"; done
    for size in 0 1 511 512 513 2047 2048 2049 70000; do head -c $size /dev/urandom > source/size-$size; done
    head -c 300000 /dev/urandom > source/large
"#;

fn check_fat(options: &str, size: &str, kind: &str) {
    if !has_commands(&["mkfs.fat", "mcopy", "mdel", "fsck.fat"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // Copying twice and deleting in between makes deleted entries and scattered files.
    let text = format!(
        "{SOURCE}
         rm source/names/🐧🐧.png # mtools writes no pairs of surrogates
         export MTOOLS_SKIP_CHECK=1; truncate -s {size} image; mkfs.fat {options} -n 'MY LABEL' -i DEADBEEF image > /dev/null
         for i in 1 2 3 4 5 6; do mcopy -i image source/large ::/fill$i; done
         mdel -i image ::/fill2 ::/fill4 ::/fill6
         mcopy -s -Q -i image source/deep source/many source/names source/size-* source/large ::/
         mdel -i image ::/fill1 ::/fill3 ::/fill5; fsck.fat -n image"
    );
    if let Err(why) = script(folder.path(), &text) {
        missing(&format!("mkfs.fat {options}: {why}"));
        return;
    }
    let volume = FileVolume::open(&folder.path().join("image"));
    let fs = super::open(volume.clone()).unwrap_or_else(|error| panic!("{options}: {error}"));
    let facts = fs.facts();
    assert_eq!(facts.kind.name(), kind, "{options}");
    assert_eq!(facts.label.as_deref(), Some("MY LABEL"), "{options}");
    assert_eq!(facts.id.as_deref(), Some("DEAD-BEEF"), "{options}");
    let tree = conformance::check(&*fs);
    assert_source(options, &folder.path().join("source"), &tree);
    conformance::check_unused(volume, &tree, &|volume| super::open(volume).expect("again"));
    let names = fs
        .find(fs.root(), &FileName::from("NAMES"))
        .expect("a search")
        .expect("there");
    let upper = fs
        .find(names, &FileName::from("upper.txt"))
        .expect("a search");
    assert_eq!(
        upper,
        fs.find(names, &FileName::from("UPPER.TXT"))
            .expect("a search")
    );
    assert!(upper.is_some(), "{options}: case does not count");
    let used: u64 = conformance::used_ranges(&*fs)
        .iter()
        .map(|range| range.length_bytes)
        .sum();
    assert!(used + facts.free_bytes <= facts.size_bytes, "{options}");
}

#[test]
fn fat12_reads_what_was_copied_into_it() {
    check_fat("-F 12 -s 4", "7M", "fat12");
}

#[test]
fn fat16_reads_what_was_copied_into_it() {
    check_fat("-F 16 -s 4", "40M", "fat16");
}

#[test]
fn fat32_reads_what_was_copied_into_it() {
    check_fat("-F 32 -s 1", "64M", "fat32");
}

#[test]
fn fat32_with_large_sectors_reads_what_was_copied_into_it() {
    check_fat("-F 32 -S 4096 -s 1", "300M", "fat32");
}

/// Fills exFAT through FUSE; `None` when this machine cannot.
fn make_exfat(folder: &Path, options: &str, source: &str, more: &str) -> Option<()> {
    if !has_commands(&["mkfs.exfat", "mount.exfat-fuse"]) {
        return None;
    }
    let text = format!(
        "{source}
         truncate -s 64M image; mkfs.exfat {options} -L 'My Label' image > /dev/null; mkdir m
         loop=$(losetup --find --show image); trap \"losetup --detach $loop\" EXIT
         mount.exfat-fuse $loop m > /dev/null 2>&1; pid=$(pgrep -f exfat-fuse.$loop); cp -r source/. m/; {more}
         umount m; tail --pid=$pid -f /dev/null; fsck.exfat -n image >&2"
    );
    match script(folder, &text) {
        Ok(_) => Some(()),
        Err(why) => {
            missing(&format!("exFAT {options}: {why}"));
            None
        }
    }
}

#[test]
fn exfat_reads_what_was_copied_into_it() {
    for options in ["-c 512", "-c 4K", "-c 64K"] {
        let folder = tempfile::tempdir().expect("a folder");
        let more = "for i in 1 2 3 4; do cp source/large m/fill$i; done; rm m/fill1 m/fill3; cat source/large source/large > m/twice; rm m/fill2 m/fill4; rm m/twice";
        let Some(()) = make_exfat(folder.path(), options, SOURCE, more) else {
            return;
        };
        let volume = FileVolume::open(&folder.path().join("image"));
        let fs = super::open(volume.clone()).unwrap_or_else(|error| panic!("{options}: {error}"));
        assert_eq!(fs.facts().label.as_deref(), Some("My Label"), "{options}");
        let tree = conformance::check(&*fs);
        assert_source(options, &folder.path().join("source"), &tree);
        if fs
            .used_ranges(&mut |_| std::ops::ControlFlow::Break(()))
            .is_ok()
        {
            conformance::check_unused(volume, &tree, &|volume| super::open(volume).expect("again"));
        }
        let names = fs
            .find(fs.root(), &FileName::from("NAMES"))
            .expect("a search")
            .expect("there");
        let lower = fs
            .find(names, &FileName::from("É È Ü.TXT"))
            .expect("a search");
        assert!(lower.is_some(), "{options}: the volume's own upper case");
    }
}

#[test]
fn any_damage_gives_an_error_or_a_partial_answer_in_bounded_time() {
    if !has_commands(&["mkfs.fat", "mcopy", "mkfs.exfat"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "{SOURCE}
         export MTOOLS_SKIP_CHECK=1
         truncate -s 4M fat12; mkfs.fat -F 12 -s 4 fat12 > /dev/null; mcopy -s -Q -i fat12 source/* ::/
         truncate -s 40M fat32; mkfs.fat -F 32 -s 1 fat32 > /dev/null; mcopy -s -Q -i fat32 source/* ::/
         truncate -s 4M exfat; mkfs.exfat exfat > /dev/null"
    );
    if let Err(why) = script(folder.path(), &text) {
        missing(&format!("no image could be made: {why}"));
        return;
    }
    for name in ["fat12", "fat32", "exfat"] {
        let image = std::fs::read(folder.path().join(name)).expect("the image");
        let sound = super::open(Arc::new(MemoryVolume(image.clone()))).expect("sound");
        assert_eq!(wander(&*sound).errors, 0, "{name}");
        // The tables and the directories lie in front.
        let places: Vec<usize> = places(&image)
            .into_iter()
            .filter(|&at| at < 4 << 20)
            .collect();
        let mut refused = 0;
        for seed in 0..100 {
            let mut dice = Dice(seed);
            let mut damaged = image.clone();
            damage(&mut damaged, &places, &mut dice);
            let start = Instant::now();
            match super::open(Arc::new(MemoryVolume(damaged))) {
                Ok(fs) => {
                    wander(&*fs);
                }
                Err(error) => {
                    assert_ne!(error.kind(), ErrorKind::Io, "{name}, seed {seed}: {error}");
                    refused += 1;
                }
            }
            let taken = start.elapsed();
            assert!(
                taken < Duration::from_secs(20),
                "{name}, seed {seed}: {taken:?}"
            );
        }
        assert!(
            refused < 100,
            "{name}: damage somewhere does not lose everything"
        );
    }
}
