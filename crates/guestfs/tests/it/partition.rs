//! Partition tables: the corpora, tables made by sfdisk, and what goes wrong with them.

use std::process::{Command, Stdio};
use std::sync::Arc;

use block::ReadAt;
use guestfs::partition::{
    self, Finding, GptCopy, Guid, PartitionRole, PartitionTable, PartitionType, TableKind,
};

use crate::corpus::{self, Bytes, Dice};
use crate::images;

fn read(bytes: &[u8]) -> PartitionTable {
    partition::read(&*Bytes::shared(bytes.to_vec())).expect("memory reads")
}

/// Offset and size of every partition of a list of `dissect`.
fn told(list: &serde_json::Value) -> Vec<(u64, u64)> {
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    list.as_array()
        .expect("a list")
        .iter()
        .map(|one| (number(&one["offset"]), number(&one["size"])))
        .collect()
}

/// `dissect` gives a GPT partition that does not end on a whole sector of its own counting one sector less.
fn is_close(ours: (u64, u64), theirs: (u64, u64)) -> bool {
    ours.0 == theirs.0 && ours.1.abs_diff(theirs.1) <= 512
}

#[test]
fn every_table_of_the_corpora_is_read_as_others_read_it() {
    let Some(mut entries) = corpus::entries("parttable") else {
        return;
    };
    entries.extend(corpus::entries("probe").expect("the group"));
    let mut count = 0;
    for entry in entries.iter().filter(|entry| entry["kind"] == "pt") {
        let path = entry["path"].as_str().expect("a path");
        let bytes = corpus::bytes(path).expect("a file");
        let table = read(&bytes);
        let kind = entry["expected"]["blkid"]["PTTYPE"].as_str();
        let ours = match table.kind {
            TableKind::Gpt | TableKind::HybridGpt => "gpt",
            TableKind::Mbr => "dos",
            other => other.name(),
        };
        match kind {
            // What blkid sees without the end of the disk.
            Some("PMBR") | None => assert!(matches!(ours, "gpt" | "dos"), "{path}: {table:?}"),
            Some(kind) => assert_eq!(ours, kind, "{path}"),
        }
        if let Some(id) = entry["expected"]["blkid"]["PTUUID"].as_str() {
            assert_eq!(table.id.as_deref(), Some(id), "{path}");
        }
        let list = &entry["expected"]["dissect_512"];
        if list.is_array() && matches!(ours, "gpt" | "dos") {
            for partition in told(list) {
                let is_there = table
                    .partitions
                    .iter()
                    .any(|one| is_close((one.offset, one.size_bytes), partition));
                // It gives what a BSD label names as distances from the slice.
                let is_inner = table.partitions.iter().any(|one| {
                    matches!(one.kind, PartitionType::Bsd(_))
                        && table.partitions.iter().any(|slice| {
                            slice.role == PartitionRole::Container
                                && one.offset == slice.offset + partition.0
                                && one.size_bytes == partition.1
                        })
                });
                // What only the protective record of a hybrid table names is a finding.
                let is_found = table.findings.iter().any(|finding| {
                    matches!(finding, Finding::BootRecord { why } if why.contains(&partition.0.to_string()))
                });
                assert!(
                    is_there || is_found || is_inner,
                    "{path}: {partition:?} of {table:#?}"
                );
            }
        }
        let listed = entry["expected"]["sfdisk"]["partitions"].as_array();
        if let Some(listed) = listed.filter(|_| kind == Some("gpt")) {
            compare_with_sfdisk(path, &table, listed);
        }
        count += 1;
    }
    assert_eq!(count, 15);
}

fn compare_with_sfdisk(path: &str, table: &PartitionTable, listed: &[serde_json::Value]) {
    assert_eq!(table.partitions.len(), listed.len(), "{path}");
    for (ours, theirs) in table.partitions.iter().zip(listed) {
        let number = |key: &str| theirs[key].as_u64().expect("a number");
        assert_eq!(ours.offset / 512, number("start"), "{path}");
        assert_eq!(ours.size_bytes / 512, number("size"), "{path}");
        let id = theirs["uuid"].as_str().and_then(Guid::parse);
        assert_eq!(ours.id, id, "{path}");
        let kind = theirs["type"].as_str().and_then(Guid::parse);
        assert_eq!(
            ours.kind,
            PartitionType::Gpt(kind.expect("a type")),
            "{path}"
        );
        assert_eq!(ours.name, theirs["name"].as_str().unwrap_or(""), "{path}");
    }
}

/// A disk that a tool made from what it is told, as bytes.
fn made_by(command: &[&str], size_bytes: u64, text: &str) -> Option<Vec<u8>> {
    if !images::has_commands(&command[..1]) {
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(size_bytes).expect("its size");
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .arg(&path)
        .env("PATH", images::search_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the tool starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("its input"), text.as_bytes())
        .expect("the tool reads");
    assert!(child.wait().expect("the tool ends").success());
    Some(std::fs::read(&path).expect("the disk"))
}

/// The same with sectors of 512 bytes, from a script of sfdisk.
fn made(size_bytes: u64, text: &str) -> Option<Vec<u8>> {
    made_by(&["sfdisk", "--quiet", "--no-reread"], size_bytes, text)
}

const FDISK: &str = "g\nn\n1\n\n+4M\nn\n2\n\n+8M\nn\n3\n\n\nx\nn\n1\none\nn\n2\nzwei\nr\nw\n";
const GPT: &str = "label: gpt\nsize=4MiB, name=one\nsize=8MiB, name=\"zwei 🙂\"\nname=rest\n";

#[test]
fn a_table_with_sectors_of_4096_bytes_is_seen_as_such() {
    let Some(bytes) = made_by(&["fdisk", "-b", "4096"], 64 << 20, FDISK) else {
        return;
    };
    let table = read(&bytes);
    assert_eq!((table.kind, table.sector_bytes), (TableKind::Gpt, 4096));
    assert_eq!(table.findings, []);
    let places: Vec<_> = table
        .partitions
        .iter()
        .map(|one| (one.offset, one.size_bytes, one.name.as_str()))
        .collect();
    assert_eq!(places[0], (1 << 20, 4 << 20, "one"));
    assert_eq!(places[1], (5 << 20, 8 << 20, "zwei"));
    assert_eq!(places.len(), 3);
}

#[test]
fn the_backup_is_read_when_the_primary_is_damaged_and_that_is_told() {
    let Some(good) = made(64 << 20, GPT) else {
        return;
    };
    let whole = read(&good);
    assert_eq!(whole.copy, Some(GptCopy::Primary));
    for place in [512, 512 + 40, 1024 + 16] {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        let table = read(&bytes);
        assert_eq!(table.copy, Some(GptCopy::Backup), "{place}");
        assert_eq!(table.partitions, whole.partitions, "{place}");
        assert!(
            matches!(
                table.findings.as_slice(),
                [Finding::DamagedCopy {
                    copy: GptCopy::Primary,
                    ..
                }]
            ),
            "{place}: {:?}",
            table.findings
        );
    }
    // The signatures gone; something in the headers changed.
    for (place, told) in [(0, 0), (40, 2)] {
        let mut bytes = good.clone();
        bytes[512 + place] ^= 0xFF;
        let end = bytes.len() - 512;
        bytes[end + place] ^= 0xFF;
        let table = read(&bytes);
        assert_eq!(table.kind, TableKind::ProtectiveOnly);
        let is_copy = |it: &&Finding| matches!(it, Finding::DamagedCopy { .. });
        assert_eq!(table.findings.iter().filter(is_copy).count(), told);
    }
}

#[test]
fn entries_that_no_checksum_vouches_for_are_shown_when_there_is_nothing_better() {
    let Some(good) = made(64 << 20, GPT) else {
        return;
    };
    let whole = read(&good);
    let backup = good.len() - 512 * 33;
    for (is_first_gone, copy) in [(false, GptCopy::Primary), (true, GptCopy::Backup)] {
        let mut bytes = good.clone();
        // A name of the third entry, in both arrays.
        bytes[1024 + 2 * 128 + 60] ^= 1;
        bytes[backup + 2 * 128 + 60] ^= 1;
        if is_first_gone {
            bytes[512] = 0;
        }
        let table = read(&bytes);
        assert_eq!(table.copy, Some(copy));
        assert_eq!(table.partitions[..2], whole.partitions[..2]);
        let copies = table
            .findings
            .iter()
            .filter(|it| matches!(it, Finding::DamagedCopy { .. }));
        assert_eq!(copies.count(), 2, "{:?}", table.findings);
    }
}

#[test]
fn an_enlarged_disk_finds_its_backup_where_the_primary_says() {
    let Some(mut bytes) = made(64 << 20, GPT) else {
        return;
    };
    bytes.resize(80 << 20, 0);
    let table = read(&bytes);
    assert_eq!(table.kind, TableKind::Gpt);
    assert_eq!(table.findings, []);
}

#[test]
fn logical_partitions_count_from_five_and_a_chain_in_a_circle_ends() {
    let text = "label: dos\nsize=4MiB, type=83\ntype=5\nsize=2MiB, type=83\nsize=3MiB, type=7\n";
    let Some(good) = made(32 << 20, text) else {
        return;
    };
    let table = read(&good);
    let numbers: Vec<_> = table.data_partitions().map(|one| one.number).collect();
    assert_eq!(numbers, [1, 5, 6]);
    assert_eq!(table.partitions[1].role, PartitionRole::Container);
    assert_eq!(table.findings, []);
    // The second boot record of the chain names the first as the next.
    let mut bytes = good.clone();
    let extended = usize::try_from(table.partitions[1].offset).expect("small");
    let link = u32::from_le_bytes(
        bytes[extended + 470..extended + 474]
            .try_into()
            .expect("four"),
    );
    let second = extended + 512 * link as usize;
    bytes[second + 462..second + 478]
        .copy_from_slice(&[0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    let table = read(&bytes);
    assert!(
        table
            .findings
            .iter()
            .any(|one| matches!(one, Finding::BrokenChain { .. })),
        "{table:?}"
    );
    assert_eq!(table.data_partitions().count(), 3);
}

#[test]
fn partitions_that_overlap_or_end_behind_the_disk_are_named() {
    let mut bytes = vec![0; 1 << 20];
    for (number, (start, sectors)) in [(64_u32, 256_u32), (128, 256), (1024, 4096)]
        .iter()
        .enumerate()
    {
        let at = 446 + 16 * number;
        bytes[at + 4] = 0x83;
        bytes[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    }
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    let table = read(&bytes);
    assert_eq!(
        table.findings,
        [
            Finding::Overlap {
                first: 1,
                second: 2
            },
            Finding::BehindEnd { partition: 3 }
        ]
    );
}

#[test]
fn a_bare_volume_is_no_table() {
    for path in [
        "probe/blkid-fat.img.xz",
        "probe/blkid-ntfs.img.xz",
        "probe/blkid-exfat.img.xz",
    ] {
        let Some(bytes) = corpus::bytes(path) else {
            return;
        };
        assert_eq!(read(&bytes).kind, TableKind::None, "{path}");
    }
    assert_eq!(read(&[]).kind, TableKind::None);
}

#[test]
fn damaged_tables_are_read_or_named_and_nothing_else() {
    let text = "label: dos\nsize=4MiB, type=83\ntype=5\nsize=2MiB, type=83\nsize=3MiB, type=7\n";
    let (Some(gpt), Some(dos)) = (
        made(8 << 20, "label: gpt\nsize=1MiB\nsize=1MiB\n"),
        made(16 << 20, text),
    ) else {
        return;
    };
    let mut dice = Dice::new(6);
    for round in 0..400 {
        let mut bytes = if round % 2 == 0 {
            gpt.clone()
        } else {
            dos.clone()
        };
        let end = if round % 2 == 0 { 17 * 1024 } else { 6 << 20 };
        for _ in 0..=dice.below(4) {
            dice.damage(&mut bytes[..end], 440);
        }
        let disk: Arc<dyn ReadAt> = Bytes::shared(bytes);
        let table = partition::read(&*disk).expect("damage is no error");
        assert!(table.partitions.len() < 2000, "round {round}");
    }
}
