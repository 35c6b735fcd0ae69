//! The runs against a naive model, and what they cost in memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cache::CacheDirectory;
use super::filter::Filter;
use super::run::Run;
use super::{BlobPlace, Entry, EntryKey, merge_runs};
use crate::crypto::SecretKey;
use crate::{RepositoryId, SystemRandom};

fn key_of(number: u64) -> EntryKey {
    let hash = blake3::hash(&number.to_le_bytes());
    crate::crypto::first_half(hash.as_bytes())
}

fn entry_of(number: u64, pack: u32) -> Entry {
    let ordinal = u32::try_from(number % 1000).expect("small");
    Entry {
        key: key_of(number),
        place: BlobPlace { pack, ordinal },
    }
}

fn temporary() -> CacheDirectory {
    let key = SecretKey::from_bytes([9; 32]);
    let id = RepositoryId::from_bytes([1; 16]);
    CacheDirectory::open(None, id, &key, Arc::new(SystemRandom::new())).expect("a directory")
}

fn run_of(cache: &CacheDirectory, entries: &BTreeSet<Entry>) -> Run {
    let mut writer = cache.new_run(entries.len()).expect("a run");
    for entry in entries {
        writer.push(*entry).expect("pushed");
    }
    writer.finish().expect("finished")
}

#[test]
fn a_run_finds_every_entry_of_a_key_and_nothing_else() {
    let cache = temporary();
    for count in [1u64, 169, 170, 171, 340, 5000] {
        let mut entries: BTreeSet<Entry> = (0..count).map(|n| entry_of(n, 1)).collect();
        // Many duplicates of one key reach over page borders.
        entries.extend((0..400).map(|pack| entry_of(3, pack)));
        let run = run_of(&cache, &entries);
        assert_eq!(run.entry_count(), entries.len() as u64);
        assert!(
            run.entries()
                .map(|entry| entry.expect("good"))
                .eq(entries.iter().copied())
        );
        for number in 0..count + 50 {
            let key = key_of(number);
            let expected: Vec<Entry> = entries
                .iter()
                .copied()
                .filter(|entry| entry.key == key)
                .collect();
            assert_eq!(
                run.find(&key).expect("found"),
                expected,
                "{number} of {count}"
            );
        }
    }
}

#[test]
fn merging_keeps_the_wanted_entries_in_order_and_once() {
    let cache = temporary();
    let sets: Vec<BTreeSet<Entry>> = (0..4u32)
        .map(|pack| {
            (0..2000)
                .map(|n| entry_of(n * u64::from(pack + 1), pack % 3))
                .collect()
        })
        .collect();
    let runs: Vec<Run> = sets.iter().map(|set| run_of(&cache, set)).collect();
    let writer = cache.new_run(8000).expect("a run");
    let merged = merge_runs(&runs, writer, &|pack| pack != 1).expect("merged");
    let expected: BTreeSet<Entry> = sets
        .iter()
        .flatten()
        .copied()
        .filter(|entry| entry.place.pack != 1)
        .collect();
    assert!(
        merged
            .entries()
            .map(|entry| entry.expect("good"))
            .eq(expected)
    );
}

#[test]
fn a_run_costs_less_than_two_bytes_of_memory_per_entry() {
    let cache = temporary();
    let count = 400_000u64;
    let entries: BTreeSet<Entry> = (0..count).map(|n| entry_of(n, 1)).collect();
    let run = run_of(&cache, &entries);
    let per_tib = run.memory_bytes() * (16_777_216 / count);
    assert!(
        run.memory_bytes() < count * 2,
        "{} bytes",
        run.memory_bytes()
    );
    assert!(per_tib < 25 << 20, "{per_tib} bytes per TiB");
    assert_eq!(run.disk_bytes(), count.div_ceil(170) * 4096);
}

#[test]
fn the_filter_errs_on_one_in_fifty_at_most_and_never_forgets() {
    let mut filter = Filter::new(50_000);
    for number in 0..50_000 {
        filter.insert(&key_of(number));
    }
    assert!((0..50_000).all(|number| filter.may_hold(&key_of(number))));
    let wrong = (50_000..150_000)
        .filter(|number| filter.may_hold(&key_of(*number)))
        .count();
    assert!(wrong < 2_000, "{wrong} of 100000");
}
