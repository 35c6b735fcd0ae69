//! LVM and MD, made by a Linux guest with `data/linux/guest.sh`, which also wrote down what its kernel read.
//!
//! Five disks of MD hold eighteen sets, one per partition number; five disks are one volume group.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use block::{ExtentKind, ReadAt};
use guestfs::disk::{self, DiskLayout};
use guestfs::probe::{ContentKind, Membership};

use super::{range_sha256, sha256};
use crate::corpus::{Bytes, Dice};

fn data(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/linux")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn disk_bytes(prefix: &str, number: usize) -> Vec<u8> {
    let packed = data(&format!("{prefix}{number}.img.xz"));
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(&packed[..], true)
        .read_to_end(&mut bytes)
        .expect("a packed disk");
    bytes
}

fn disks(prefix: &str) -> Vec<Arc<dyn ReadAt>> {
    (0..5)
        .map(|number| Bytes::shared(disk_bytes(prefix, number)))
        .collect()
}

/// Lines of `expected.txt` of one kind, as words.
fn expected(kind: &str) -> Vec<Vec<String>> {
    String::from_utf8(data("expected.txt"))
        .expect("text")
        .lines()
        .map(|line| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter(|words| words[0] == kind)
        .collect()
}

/// The disks without those of these numbers.
fn without(disks: &[Arc<dyn ReadAt>], gone: &[usize]) -> Vec<Arc<dyn ReadAt>> {
    disks
        .iter()
        .enumerate()
        .filter(|(number, _)| !gone.contains(number))
        .map(|(_, disk)| Arc::clone(disk))
        .collect()
}

fn set<'a>(layout: &'a DiskLayout, name: &str) -> Option<&'a disk::Volume> {
    // Sets of version 0.90 have no name.
    let (own, kind) = match name {
        "old-raid1" => (None, "raid1"),
        "old-raid5" => (None, "raid5"),
        name => (Some(name), ""),
    };
    layout.volumes.iter().find(|volume| match &volume.place {
        disk::VolumePlace::Logical { name, layout, .. } => match own {
            Some(own) => name == own,
            None => layout == kind && volume.id.as_ref() == Some(name),
        },
        _ => false,
    })
}

#[test]
fn every_md_set_reads_as_the_kernel_read_it_with_up_to_two_disks_missing() {
    let disks = disks("md");
    let wanted = expected("md");
    assert_eq!(wanted.len(), 18);
    let mut losses: Vec<Vec<usize>> = vec![vec![]];
    losses.extend((0..5).map(|one| vec![one]));
    losses.extend((0..5).flat_map(|one| (one + 1..5).map(move |two| vec![one, two])));
    for gone in &losses {
        let layout = disk::inspect(&without(&disks, gone)).expect("memory reads");
        for words in &wanted {
            let [_, name, size, hash, members, redundant] = words.as_slice() else {
                panic!("{words:?}");
            };
            let members: usize = members.parse().expect("a number");
            let redundant: usize = redundant.parse().expect("a number");
            // One member of this set was thrown out before more was written.
            let lost: Vec<usize> = (0..members)
                .filter(|one| gone.contains(one) || (name == "raid5stale" && *one == 1))
                .collect();
            let Some(volume) = set(&layout, name) else {
                assert!(lost.len() >= members, "{name} without {gone:?}");
                continue;
            };
            assert_eq!(volume.missing.len(), lost.len(), "{name}: {volume:?}");
            let outcome = match &volume.reader {
                Ok(reader) => sha256(&**reader).map_err(|error| error.to_string()),
                Err(obstacle) => Err(obstacle.why.clone()),
            };
            match outcome {
                Ok(ours) => {
                    assert_eq!(ours, *hash, "{name} without {gone:?}");
                    assert_eq!(volume.size_bytes(), size.parse().ok(), "{name}");
                }
                Err(why) => {
                    assert!(lost.len() > redundant, "{name} without {gone:?}: {why}");
                    assert!(why.contains("missing"), "{name}: {why}");
                }
            }
        }
    }
}

#[test]
fn a_stale_member_is_named_and_not_used() {
    let layout = disk::inspect(&disks("md")).expect("memory reads");
    let volume = set(&layout, "raid5stale").expect("the set");
    assert_eq!(volume.missing, ["member 1 of the set"]);
    assert!(
        volume.findings.iter().any(|one| one.contains("disk1.p14")),
        "{volume:?}"
    );
}

#[test]
fn every_lvm_volume_reads_as_the_kernel_read_it() {
    let layout = disk::inspect(&disks("pv")).expect("memory reads");
    assert_eq!(layout.findings, Vec::<String>::new());
    for volume in &layout.volumes[..5] {
        assert_eq!(volume.content.kind, ContentKind::Member(Membership::Lvm));
    }
    let wanted = expected("lvm");
    assert_eq!(wanted.len(), 14);
    for words in &wanted {
        let [_, name, size, hash] = words.as_slice() else {
            panic!("{words:?}");
        };
        let volume = layout
            .volume(name)
            .unwrap_or_else(|| panic!("{name} of {layout:#?}"));
        let reader = volume
            .reader
            .as_ref()
            .unwrap_or_else(|why| panic!("{name}: {why:?}"));
        assert_eq!(reader.size_bytes().to_string(), *size, "{name}");
        assert_eq!(sha256(&**reader).expect("it reads"), *hash, "{name}");
        assert_eq!(volume.missing, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_thin_volume_of_a_tebibyte_costs_what_was_written_to_it() {
    let layout = disk::inspect(&disks("pv")).expect("memory reads");
    let words = &expected("thin")[0];
    let volume = layout.volume("vg/thinbig").expect("the volume");
    let reader = volume.reader.as_ref().expect("a reader");
    assert_eq!(reader.size_bytes(), 1 << 40);
    assert_eq!(
        range_sha256(&**reader, 0, 20 << 16).expect("it reads"),
        words[3]
    );
    let place = 8_999_998 << 16;
    assert_eq!(
        range_sha256(&**reader, place, 8 << 16).expect("it reads"),
        words[4]
    );
    let (mut at, mut data, mut steps) = (0, 0, 0);
    while at < reader.size_bytes() {
        let extent = reader.extent_at(at, u64::MAX).expect("an extent");
        if extent.kind == ExtentKind::Data {
            data += extent.length_bytes;
        }
        at = extent.end();
        steps += 1;
    }
    assert_eq!((at, data), (1 << 40, 6 << 16));
    assert!(steps < 20, "{steps} extents");
}

#[test]
fn a_missing_physical_volume_is_named_by_what_needs_it_and_harms_nothing_else() {
    let disks = disks("pv");
    for gone in 0..5 {
        let layout = disk::inspect(&without(&disks, &[gone])).expect("memory reads");
        let mut whole = 0;
        for words in &expected("lvm") {
            let (name, hash) = (&words[1], &words[3]);
            let volume = layout.volume(name).unwrap_or_else(|| panic!("{name}"));
            let is_redundant = ["mir", "mirlog", "r1", "r4", "r5", "r6", "r10"]
                .contains(&name.trim_start_matches("vg/"));
            let outcome = match &volume.reader {
                Ok(reader) => sha256(&**reader).map_err(|error| error.to_string()),
                Err(obstacle) => Err(obstacle.why.clone()),
            };
            match outcome {
                Ok(ours) => {
                    assert_eq!(ours, *hash, "{name} without disk {gone}");
                    whole += 1;
                }
                Err(why) => {
                    assert!(!is_redundant, "{name} without disk {gone}: {why}");
                    assert!(why.contains("missing"), "{name}: {why}");
                }
            }
        }
        assert!(whole >= 7, "without disk {gone}");
    }
}

/// Labels and metadata of a physical volume lie before this.
const METADATA_BYTES: usize = 128 << 10;

#[test]
fn damaged_members_give_other_volumes_or_errors_and_never_a_panic() {
    let mut dice = Dice::new(8);
    for prefix in ["pv", "md"] {
        let good: Vec<Vec<u8>> = (0..5).map(|number| disk_bytes(prefix, number)).collect();
        for round in 0..6 {
            let disks: Vec<Arc<dyn ReadAt>> = good
                .iter()
                .map(|bytes| {
                    let mut bytes = bytes.clone();
                    if prefix == "pv" {
                        for _ in 0..=dice.below(6) {
                            dice.damage(&mut bytes[..METADATA_BYTES], 512);
                        }
                    } else {
                        // Superblocks lie at the beginning of the partitions, 4 KiB in.
                        for partition in 1..=20_usize {
                            let at = (partition << 20) + 4096;
                            dice.damage(&mut bytes[at..at + 600], 0);
                        }
                    }
                    Bytes::shared(bytes)
                })
                .collect();
            let layout = disk::inspect(&disks).expect("damage is no error");
            for volume in &layout.volumes {
                if let Ok(reader) = &volume.reader {
                    let mut buffer =
                        vec![0; 4096.min(usize::try_from(reader.size_bytes()).unwrap_or(4096))];
                    // Whatever it says: it ends.
                    let outcome = reader.read_at(0, &mut buffer);
                    assert!(
                        outcome.is_ok() || !outcome.expect_err("not ok").to_string().is_empty(),
                        "round {round}"
                    );
                }
            }
        }
    }
}
