//! Registry hives: the given ones against independent tools, recovery from logs, and damage.
//!
//! `registry/golden.txt` was made with dissect.regf 3.14 (where logs are named, over a hive to which a script of its own
//! had applied their entries): per hive the number of keys and values, and the SHA-256 over one line per key and value
//! in the order of the hive.

mod damage;
mod windows;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::ReadAt;
use guestfs::filesystem::Cleanliness;
use guestfs::registry::{Hive, WalkEvent};
use guestfs::{ErrorKind, FileName};
use sha2::{Digest, Sha256};

use crate::corpus::{self, Bytes};

/// What a walk told.
#[derive(Default)]
struct Told {
    keys: usize,
    values: usize,
    damage: Vec<String>,
    digest: String,
}

fn join(path: &[FileName]) -> Vec<u8> {
    let parts: Vec<&[u8]> = path.iter().map(FileName::as_bytes).collect();
    parts.join(&b'\\')
}

fn walk(hive: &Hive) -> Told {
    let mut told = Told::default();
    let mut sum = Sha256::new();
    hive.walk(&mut |event| {
        match event {
            WalkEvent::Key(path, _) => {
                told.keys += 1;
                sum.update(b"K ");
                sum.update(join(path));
                sum.update(b"\n");
            }
            WalkEvent::Value(_, value) => {
                told.values += 1;
                match value.data() {
                    Ok(data) => {
                        let mut one = Sha256::new();
                        one.update(&data);
                        sum.update(b"V ");
                        sum.update(value.name().as_bytes());
                        let line = format!(" {} {}\n", value.kind().number(), hex(&one.finalize()));
                        sum.update(line);
                    }
                    Err(error) => told.damage.push(error.to_string()),
                }
            }
            WalkEvent::Damage(_, error) => told.damage.push(error.to_string()),
        }
        ControlFlow::Continue(())
    });
    told.digest = hex(&sum.finalize());
    told
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn open(name: &str, logs: &[&str]) -> Option<guestfs::Result<Hive>> {
    let primary = corpus::bytes(&format!("registry/{name}"))?;
    let logs: Vec<Arc<dyn ReadAt>> = logs
        .iter()
        .map(|log| corpus::bytes(&format!("registry/{log}")).map(Bytes::shared))
        .collect::<Option<_>>()?;
    Some(Hive::open(Bytes::shared(primary), &logs))
}

#[test]
fn every_given_hive_has_the_keys_and_values_that_other_tools_see() {
    for line in include_str!("registry/golden.txt").lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, keys, values, digest, logs @ ..] = fields.as_slice() else {
            panic!("golden line {line:?}");
        };
        let Some(hive) = open(name, logs) else { return };
        let told = walk(&hive.unwrap_or_else(|error| panic!("{name}: {error}")));
        assert!(told.damage.is_empty(), "{name}: {:?}", told.damage);
        assert_eq!(told.keys.to_string(), *keys, "keys of {name} with {logs:?}");
        assert_eq!(
            told.values.to_string(),
            *values,
            "values of {name} with {logs:?}"
        );
        assert_eq!(told.digest, *digest, "contents of {name} with {logs:?}");
    }
}

#[test]
fn the_counts_of_the_manifest_hold_without_logs() {
    let Some(entries) = corpus::entries("registry") else {
        return;
    };
    let mut seen = 0;
    for entry in entries {
        let (Some(keys), Some(values)) = (
            entry["expected"]["keys"].as_u64(),
            entry["expected"]["values"].as_u64(),
        ) else {
            continue;
        };
        let path = entry["path"].as_str().expect("path");
        let bytes = corpus::bytes(path).expect("given");
        let hive = Hive::open(Bytes::shared(bytes), &[]).expect(path);
        let told = walk(&hive);
        // The walk counts the root; the manifest's tool may not.
        assert_eq!(
            (told.keys as u64, told.values as u64),
            (keys, values),
            "{path}"
        );
        seen += 1;
    }
    assert!(seen >= 12, "{seen} hives");
}

#[test]
fn a_hive_in_the_middle_of_a_write_is_told_so_and_its_logs_bring_it_up_to_date() {
    let dirty = "regipy-transactions_NTUSER.DAT.xz";
    let log1 = "regipy-transactions_ntuser.dat.log1.xz";
    let log2 = "regipy-transactions_ntuser.dat.log2.xz";
    let Some(alone) = open(dirty, &[]) else {
        return;
    };
    let alone = alone.expect("a hive");
    assert!(matches!(alone.facts().cleanliness, Cleanliness::Dirty(_)));
    let mut digests = Vec::new();
    for logs in [[log1, log2], [log2, log1]] {
        let hive = open(dirty, &logs).expect("given").expect("a hive");
        assert_eq!(hive.facts().cleanliness, Cleanliness::Replayed);
        assert_eq!(
            hive.facts().bins_bytes,
            0xe2000,
            "the hive grew in its logs"
        );
        digests.push(walk(&hive).digest);
    }
    assert_eq!(
        digests[0], digests[1],
        "the order in which logs are given does not count"
    );
    assert_ne!(digests[0], walk(&alone).digest);
    // Entries older than the hive change nothing.
    let stale = open(dirty, &[log2]).expect("given").expect("a hive");
    assert!(matches!(stale.facts().cleanliness, Cleanliness::Dirty(_)));
    assert_eq!(walk(&stale).digest, walk(&alone).digest);
}

#[test]
fn an_entry_that_does_not_hash_to_itself_and_all_behind_it_are_left_out() {
    let dirty = "registry/regipy-transactions_NTUSER.DAT.xz";
    let Some(primary) = corpus::bytes(dirty) else {
        return;
    };
    let log = corpus::bytes("registry/regipy-transactions_ntuser.dat.log1.xz").expect("given");
    let open = |log: Vec<u8>| {
        Hive::open(Bytes::shared(primary.clone()), &[Bytes::shared(log)]).expect("a hive")
    };
    let mut cut = log.clone();
    cut.truncate(0x55000);
    let mut torn = log.clone();
    torn[0x55000 + 5000] ^= 1;
    let (cut, torn, whole) = (open(cut), open(torn), open(log));
    assert_eq!(cut.facts().bins_bytes, 0xbf000);
    assert_eq!(torn.facts().bins_bytes, 0xbf000);
    assert_eq!(walk(&cut).digest, walk(&torn).digest);
    assert_ne!(walk(&cut).digest, walk(&whole).digest);
}

/// A log in the old form over a hive: what `after` has and `before` has not, as 512-byte pages.
fn old_log(before: &[u8], after: &[u8]) -> Vec<u8> {
    let mut log = after[..512].to_vec();
    log[28..32].copy_from_slice(&1_u32.to_le_bytes());
    fix_base(&mut log);
    let bins = after.len() - 4096;
    let mut bitmap = vec![0_u8; bins / 512 / 8];
    let mut pages = Vec::new();
    for page in 0..bins / 512 {
        let at = 4096 + page * 512;
        if before.get(at..at + 512) != Some(&after[at..at + 512]) {
            bitmap[page / 8] |= 1 << (page % 8);
            pages.extend_from_slice(&after[at..at + 512]);
        }
    }
    log.extend_from_slice(b"DIRT");
    log.extend(bitmap);
    log.resize(log.len().next_multiple_of(512), 0);
    log.extend(pages);
    log
}

fn fix_base(bytes: &mut [u8]) {
    let sum = bytes[..508].chunks_exact(4).fold(0_u32, |sum, word| {
        sum ^ u32::from_le_bytes(word.try_into().expect("4"))
    });
    bytes[508..512].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_log_in_the_old_form_brings_back_torn_pages_and_a_lost_base_block() {
    let Some(after) = corpus::bytes("registry/regipy-SAM.xz") else {
        return;
    };
    let whole = walk(&Hive::open(Bytes::shared(after.clone()), &[]).expect("a hive"));
    let mut before = after.clone();
    before[4096 + 0x1000..4096 + 0x3000].fill(0xAA);
    let log = old_log(&before, &after);
    before[8..12].copy_from_slice(&0x5f_u32.to_le_bytes());
    fix_base(&mut before);
    let hive = Hive::open(Bytes::shared(before.clone()), &[Bytes::shared(log.clone())]);
    let hive = hive.expect("a hive");
    assert_eq!(hive.facts().cleanliness, Cleanliness::Replayed);
    assert_eq!(walk(&hive).digest, whole.digest);
    // A log of another moment is none for this hive.
    let mut other = before.clone();
    other[12] ^= 1;
    fix_base(&mut other);
    let hive = Hive::open(Bytes::shared(other), &[Bytes::shared(log.clone())]).expect("a hive");
    assert!(matches!(hive.facts().cleanliness, Cleanliness::Dirty(_)));
    // The base block itself is torn.
    before[100] ^= 1;
    let Err(error) = Hive::open(Bytes::shared(before.clone()), &[]) else {
        panic!("a base block with a wrong checksum was believed");
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let hive = Hive::open(Bytes::shared(before), &[Bytes::shared(log)]).expect("a hive");
    assert_eq!(walk(&hive).digest, whole.digest);
}

#[test]
fn names_in_latin_1_and_utf_16_and_with_a_nul_are_told_as_they_are() {
    let Some(hive) = open("hivex-special", &[]) else {
        return;
    };
    let hive = hive.expect("a hive");
    let mut names: Vec<String> = hive
        .root()
        .expect("root")
        .subkeys()
        .expect("subkeys")
        .iter()
        .map(|key| key.name().to_string())
        .collect();
    names.sort();
    assert_eq!(names, ["abcd_äöüß", "weird™", "zero\0key"]);
    let key = hive
        .key("ABCD_ÄÖÜß")
        .expect("sound")
        .expect("found without case");
    assert_eq!(key.values().expect("values").len(), 1);
    assert!(key.security().expect("sound").is_some());
    assert!(hive.key(r"no\such").expect("sound").is_none());
}
