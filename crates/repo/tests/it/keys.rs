//! Who can open a repository, and who cannot.

use std::sync::Arc;

use repo::{
    CreateOptions, Created, Encryption, ErrorKind, KeyFile, RecoveryKey, Repository, SlotKind,
    Unlock,
};
use store::Store;
use store::memory::MemoryStore;

use crate::support::{create, disk_of, environment, memory, open_options, protect, read_all};

fn open(store: &Arc<dyn Store>, unlock: &Unlock) -> repo::Result<Repository> {
    Repository::open(Arc::clone(store), unlock, &open_options(), &environment())
}

fn made() -> (Arc<MemoryStore>, Arc<dyn Store>, Created) {
    let (memory, store) = memory();
    let created = create(&store, Encryption::Aes256Gcm);
    (memory, store, created)
}

#[test]
fn a_key_file_survives_being_written_and_read() {
    let (_, store, created) = made();
    let file = created.key_file.expect("a key file");
    let text = file.to_string();
    let again: KeyFile = text
        .replace('\n', "\r\n")
        .parse()
        .expect("the same key file");
    assert_eq!(again, file);
    open(&store, &Unlock::KeyFile(again)).expect("opened");
    for (at, digit) in text
        .char_indices()
        .filter(|(at, c)| *at > 250 && c.is_ascii_digit())
    {
        let other = if digit == '1' { '2' } else { '1' };
        let mut changed = text.clone();
        changed.replace_range(at..=at, &other.to_string());
        let error = changed.parse::<KeyFile>().expect_err("a changed digit");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{at}");
    }
}

#[test]
fn a_recovery_key_opens_and_a_mistyped_one_is_told() {
    let (_, store, created) = made();
    let key = created.recovery_key.expect("a recovery key");
    let text = key.to_string();
    let typed: RecoveryKey = text
        .to_uppercase()
        .replace('-', " ")
        .parse()
        .expect("typed");
    assert_eq!(typed, key);
    open(&store, &Unlock::RecoveryKey(typed)).expect("opened");
    let first = if text.starts_with('0') { "1" } else { "0" };
    let wrong = format!("{first}{}", &text[1..]);
    assert_eq!(
        wrong.parse::<RecoveryKey>().expect_err("mistyped").kind(),
        ErrorKind::Invalid
    );
    assert!(text[..60].parse::<RecoveryKey>().is_err());
}

#[test]
fn a_passphrase_opens_and_another_does_not() {
    let (_, store) = memory();
    let options = CreateOptions {
        passphrase: Some("correct horse".to_owned()),
        ..CreateOptions::default()
    };
    Repository::create(
        Arc::clone(&store),
        &options,
        &open_options(),
        &environment(),
    )
    .expect("a repository");
    open(&store, &Unlock::Passphrase("correct horse".to_owned())).expect("opened");
    let error = open(&store, &Unlock::Passphrase("wrong".to_owned())).expect_err("not opened");
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    assert_eq!(
        open(&store, &Unlock::Plain).expect_err("locked").kind(),
        ErrorKind::WrongKey
    );
}

#[test]
fn the_key_of_another_repository_opens_nothing() {
    let (_, store, _) = made();
    let (_, _, other) = made();
    for unlock in [
        Unlock::KeyFile(other.key_file.expect("a key file")),
        Unlock::RecoveryKey(other.recovery_key.expect("a recovery key")),
    ] {
        assert_eq!(
            open(&store, &unlock).expect_err("locked").kind(),
            ErrorKind::WrongKey
        );
    }
}

#[test]
fn slots_are_added_and_removed_but_never_the_last() {
    let (_, store, created) = made();
    let repository = created.repository;
    let file = repository.add_key_file("second").expect("added");
    open(&store, &Unlock::KeyFile(file.clone())).expect("opened by the second");
    let slots: Vec<_> = repository
        .slots()
        .expect("slots")
        .into_iter()
        .map(|slot| slot.expect("whole"))
        .collect();
    assert_eq!(slots.len(), 3);
    assert!(
        slots
            .iter()
            .any(|slot| slot.label == "second" && slot.kind == SlotKind::KeyFile)
    );
    for slot in &slots {
        if slot.id != file.slot() {
            repository.remove_slot(slot.id).expect("removed");
        }
    }
    let first = Unlock::KeyFile(created.key_file.expect("a key file"));
    assert_eq!(
        open(&store, &first).expect_err("removed").kind(),
        ErrorKind::WrongKey
    );
    let error = repository.remove_slot(file.slot()).expect_err("the last");
    assert_eq!(error.kind(), ErrorKind::Refused);
    open(&store, &Unlock::KeyFile(file)).expect("still opened");
}

#[test]
fn after_rotation_old_versions_are_readable_and_new_ones_stand_alone() {
    let (_, store, created) = made();
    let repository = created.repository;
    let bytes = disk_of(11, 9 << 20);
    let one = protect(&repository, "vm", &bytes);
    let packs = repository.dump_index().expect("index").packs.len();
    repository.rotate_data_key().expect("rotated");
    let two = protect(&repository, "other", &bytes);
    assert!(
        repository.dump_index().expect("index").packs.len() > packs,
        "stored anew"
    );
    assert_eq!(one.disks[0].root, two.disks[0].root);
    let unlock = Unlock::KeyFile(created.key_file.expect("a key file"));
    let again = open(&store, &unlock).expect("opened");
    assert!(read_all(&again, &one) == bytes && read_all(&again, &two) == bytes);
}

#[test]
fn a_process_that_missed_a_rotation_still_reads() {
    let (_, store, created) = made();
    let unlock = Unlock::KeyFile(created.key_file.expect("a key file"));
    let early = open(&store, &unlock).expect("opened");
    let repository = created.repository;
    repository.rotate_data_key().expect("rotated");
    let bytes = disk_of(12, 1 << 20);
    let point = protect(&repository, "vm", &bytes);
    assert!(read_all(&early, &point) == bytes);
    assert_eq!(
        early.rotate_data_key().map_err(|error| error.kind()),
        Ok(())
    );
}

#[test]
fn a_plain_repository_refuses_keys_and_a_second_creation_is_refused() {
    let (_, store) = memory();
    let created = create(&store, Encryption::None);
    assert!(created.key_file.is_none() && created.recovery_key.is_none());
    let error = created.repository.add_key_file("x").expect_err("no keys");
    assert_eq!(error.kind(), ErrorKind::Refused);
    open(&store, &Unlock::Plain).expect("opened");
    let error = open(&store, &Unlock::Passphrase("x".to_owned())).expect_err("not encrypted");
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    let options = CreateOptions::default();
    let error = Repository::create(
        Arc::clone(&store),
        &options,
        &open_options(),
        &environment(),
    )
    .map(|_| ())
    .expect_err("there is one");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

#[test]
fn nothing_readable_lies_in_an_encrypted_store() {
    let (memory, store, created) = made();
    let mut bytes = disk_of(13, 1 << 20);
    bytes[..32].copy_from_slice(b"the secret text of a secret disk");
    protect(&created.repository, "secret-name", &bytes);
    for entry in store::list_all(store.as_ref(), &store::Prefix::root()) {
        let name = entry.expect("listed").name;
        let body = memory.get(&name).expect("an object");
        for needle in [&b"the secret text"[..], b"secret-name", b"length_bytes"] {
            assert!(
                !body.windows(needle.len()).any(|window| window == needle),
                "{name}"
            );
        }
        assert!(!name.as_str().contains("secret-name"));
    }
}
