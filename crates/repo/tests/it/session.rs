//! Writing versions, and what a later version costs.

use std::sync::Arc;

use block::BlockHash;
use repo::{
    BeginOptions, BlobName, DiskVersion, Encryption, ErrorKind, PointDraft, PointSelector,
    Repository, Unlock,
};
use store::memory::MemoryStore;
use store::recording::RecordingStore;
use store::{Store, Verb};

use crate::support::{
    create, disk_of, environment, is_zero_tree, memory, name, open_options, protect, read_all,
    write_disk,
};

const MIB: usize = 1 << 20;

fn selector(text: &str) -> PointSelector {
    text.parse().expect("a selector")
}

#[test]
fn versions_come_back_byte_for_byte() {
    for encryption in [Encryption::Aes256Gcm, Encryption::None] {
        let (_, store) = memory();
        let repository = create(&store, encryption).repository;
        let first = disk_of(1, 21 * MIB + 12_345);
        let mut second = first.clone();
        second[3 * MIB..3 * MIB + 100].fill(7);
        second[20 * MIB..20 * MIB + 400_000].fill(0);
        let one = protect(&repository, "vm", &first);
        let two = protect(&repository, "vm", &second);
        assert_eq!((one.sequence, two.sequence), (1, 2));
        assert_eq!(two.parent.map(|parent| parent.point), Some(one.point));
        assert!(read_all(&repository, &one) == first);
        assert!(read_all(&repository, &two) == second);
    }
}

#[test]
fn a_reopened_repository_gives_the_same_bytes() {
    let (_, store) = memory();
    let created = create(&store, Encryption::Aes256Gcm);
    let bytes = disk_of(2, 9 * MIB);
    protect(&created.repository, "vm", &bytes);
    drop(created.repository);
    let unlock = Unlock::KeyFile(created.key_file.expect("a key file"));
    let again = Repository::open(store, &unlock, &open_options(), &environment()).expect("open");
    let record = again.find_point(&selector("vm")).expect("the point");
    assert!(read_all(&again, &record.point) == bytes);
}

#[test]
fn an_unchanged_version_puts_no_pack() {
    let recording = Arc::new(RecordingStore::new(MemoryStore::new()));
    let store: Arc<dyn Store> = Arc::clone(&recording) as Arc<dyn Store>;
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let bytes = disk_of(3, 20 * MIB);
    let one = protect(&repository, "vm", &bytes);
    recording.take_calls();
    let two = protect(&repository, "vm", &bytes);
    let puts: Vec<String> = recording
        .calls()
        .iter()
        .filter(|call| call.verb == Verb::PutNew)
        .map(|call| call.name.to_string())
        .filter(|name| !name.starts_with("leases/"))
        .collect();
    assert_eq!(puts.len(), 1, "{puts:?}");
    assert!(puts[0].starts_with("points/"));
    assert_eq!(one.disks[0].root, two.disks[0].root);
}

#[test]
fn equal_blocks_of_another_name_are_not_stored_again() {
    let recording = Arc::new(RecordingStore::new(MemoryStore::new()));
    let store: Arc<dyn Store> = Arc::clone(&recording) as Arc<dyn Store>;
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let bytes = disk_of(4, 20 * MIB);
    protect(&repository, "one", &bytes);
    recording.take_calls();
    let point = protect(&repository, "two", &bytes);
    let packs = recording
        .calls()
        .iter()
        .filter(|call| call.verb == Verb::PutNew && call.name.to_string().starts_with("data/"))
        .count();
    assert_eq!(packs, 0);
    assert!(read_all(&repository, &point) == bytes);
}

#[test]
fn a_disk_of_zeros_costs_nothing() {
    let (memory, store) = memory();
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let before = memory.used_bytes();
    let point = protect(&repository, "vm", &vec![0; 30 * MIB]);
    assert!(is_zero_tree(&point.disks[0].tree()));
    assert!(memory.used_bytes() - before < 4096);
    assert!(read_all(&repository, &point) == vec![0; 30 * MIB]);
}

#[test]
fn an_abandoned_session_leaves_no_point() {
    let (_, store) = memory();
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let session = repository
        .begin(&name("vm"), &BeginOptions::default())
        .expect("a session");
    write_disk(&repository, session.blobs(), None, &disk_of(5, 9 * MIB));
    session.blobs().flush().expect("flushed");
    session.abandon().expect("abandoned");
    let error = repository
        .find_point(&selector("vm"))
        .expect_err("no point");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let (points, damaged) = repository.points().expect("points");
    assert!(points.is_empty() && damaged.is_empty());
}

#[test]
fn a_second_writer_of_a_name_is_told_busy() {
    let (_, store) = memory();
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let first = repository
        .begin(&name("vm"), &BeginOptions::default())
        .expect("a session");
    let error = repository
        .begin(&name("vm"), &BeginOptions::default())
        .map(|_| ())
        .expect_err("the name is being written");
    assert_eq!(error.kind(), ErrorKind::Busy);
    let other = repository
        .begin(&name("other"), &BeginOptions::default())
        .expect("another name");
    other.abandon().expect("abandoned");
    first.commit(PointDraft::default()).expect("committed");
    let next = repository
        .begin(&name("vm"), &BeginOptions::default())
        .expect("free again");
    assert_eq!(next.key().sequence, 2);
}

#[test]
fn points_are_found_by_number_and_by_id() {
    let (_, store) = memory();
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let one = protect(&repository, "vm", &disk_of(6, MIB));
    let two = protect(&repository, "vm", &disk_of(7, MIB));
    let find = |text: &str| {
        repository
            .find_point(&selector(text))
            .map(|record| record.point.point)
    };
    assert_eq!(find("vm@1").expect("first"), one.point);
    assert_eq!(find("vm@latest").expect("last"), two.point);
    assert_eq!(find("vm").expect("last"), two.point);
    let prefix: String = one.point.to_string().chars().take(10).collect();
    assert_eq!(find(&format!("vm@{prefix}")).expect("by id"), one.point);
    assert_eq!(find("vm@3").expect_err("none").kind(), ErrorKind::NotFound);
    assert_eq!(find("vm2").expect_err("none").kind(), ErrorKind::NotFound);
    for bad in ["vm@", "vm@xyz", "@3", "vm@-1", "a@b@c"] {
        assert!(bad.parse::<PointSelector>().is_err(), "{bad}");
    }
}

#[test]
fn an_interrupted_session_of_this_process_is_taken_over_with_what_it_reached() {
    let recording = Arc::new(RecordingStore::new(MemoryStore::new()));
    let store: Arc<dyn Store> = Arc::clone(&recording) as Arc<dyn Store>;
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let bytes = disk_of(8, 20 * MIB);
    let session = repository
        .begin(&name("vm"), &BeginOptions::default())
        .expect("a session");
    let tree = write_disk(&repository, session.blobs(), None, &bytes);
    session
        .checkpoint(DiskVersion::new("disk", tree))
        .expect("a checkpoint");
    drop(session);

    recording.take_calls();
    let next = repository
        .begin(&name("vm"), &BeginOptions::default())
        .expect("taken over");
    let partial = next
        .base()
        .partial_disk("disk")
        .cloned()
        .expect("what was reached");
    assert_eq!(partial.tree(), tree);
    let tree = write_disk(&repository, next.blobs(), Some(&partial), &bytes);
    let disks = vec![DiskVersion::new("disk", tree)];
    let point = next
        .commit(PointDraft {
            disks,
            ..PointDraft::default()
        })
        .expect("committed");
    let packs = recording
        .calls()
        .iter()
        .filter(|call| call.verb == Verb::PutNew)
        .map(|call| call.name.to_string())
        .filter(|name| name.starts_with("data/") || name.starts_with("node/"))
        .count();
    assert_eq!(packs, 0, "nothing is stored twice");
    assert!(read_all(&repository, &point) == bytes);
    let leases = store::list_all(
        store.as_ref(),
        &store::Prefix::new("leases").expect("a prefix"),
    );
    let left = leases.filter(|entry| entry.is_ok()).count();
    assert_eq!(left, 0, "every lease is given back");
}

#[test]
fn each_disk_of_an_interrupted_session_is_taken_over_also_when_the_second_session_dies_too() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let begin = || {
        repository
            .begin(&name("vm"), &BeginOptions::default())
            .expect("a session")
    };
    let session = begin();
    let mut trees = Vec::new();
    for (label, seed) in [("one", 11), ("two", 12)] {
        let tree = write_disk(&repository, session.blobs(), None, &disk_of(seed, 9 * MIB));
        session
            .checkpoint(DiskVersion::new(label, tree))
            .expect("a checkpoint");
        trees.push((label, tree));
    }
    drop(session);
    drop(begin());
    let third = begin();
    for (label, tree) in trees {
        let partial = third.base().partial_disk(label).expect("what was reached");
        assert_eq!(partial.tree(), tree, "{label}");
    }
    assert!(third.base().partial_disk("three").is_none());
}

#[test]
fn a_failed_commit_does_not_block_the_name() {
    let memory = Arc::new(MemoryStore::new());
    let store: Arc<dyn Store> = Arc::clone(&memory) as Arc<dyn Store>;
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let session = repository
        .begin(&name("vm"), &BeginOptions::default())
        .expect("a session");
    let tree = write_disk(&repository, session.blobs(), None, &disk_of(9, 9 * MIB));
    memory.set_capacity(Some(memory.used_bytes() + 1000));
    let disks = vec![DiskVersion::new("disk", tree)];
    let error = session
        .commit(PointDraft {
            disks: disks.clone(),
            ..PointDraft::default()
        })
        .expect_err("the store is full");
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(repository.points().expect("points").0.is_empty());
    memory.set_capacity(None);
    let point = protect(&repository, "vm", &disk_of(9, 9 * MIB));
    assert!(read_all(&repository, &point) == disk_of(9, 9 * MIB));
}

#[test]
fn a_blob_that_is_not_what_its_name_says_is_never_stored() {
    let (_, store) = memory();
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let session = repository
        .begin(&name("vm"), &BeginOptions::default())
        .expect("a session");
    let wrong = BlobName::Block(BlockHash::of(&vec![1; 65_536]));
    let blob = session
        .blobs()
        .encode(wrong, &vec![2; 65_536])
        .expect("encoded");
    session
        .blobs()
        .append(vec![blob])
        .expect("not looked at yet");
    let error = session
        .blobs()
        .flush()
        .expect_err("the lie is found before the pack is put");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(session.commit(PointDraft::default()).is_err());
    let packs = store::list_all(
        store.as_ref(),
        &store::Prefix::new("data").expect("a prefix"),
    );
    assert_eq!(packs.count(), 0);
}
