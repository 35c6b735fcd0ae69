//! A flip, a cut and a swap of every kind of object is told with the object's name, or survived with the right bytes.

use std::sync::Arc;

use block::ReadAt;
use repo::lease::LeaseKind;
use repo::{
    Encryption, Error, ErrorKind, OpenOptions, ReadProtection, RecoveryPoint, Repository, Unlock,
};
use store::memory::MemoryStore;
use store::{ObjectName, Prefix, Store, list_all};

use crate::support::{create, disk_of, environment, open_options, protect, terms};

struct Made {
    memory: MemoryStore,
    unlock: Unlock,
    point: RecoveryPoint,
    bytes: Vec<u8>,
}

fn made(encryption: Encryption) -> Made {
    let memory = Arc::new(MemoryStore::new());
    let store: Arc<dyn Store> = Arc::clone(&memory) as Arc<dyn Store>;
    let created = create(&store, encryption);
    let bytes = disk_of(21, (9 << 20) + 777);
    let point = protect(&created.repository, "vm", &bytes);
    let unlock = created.key_file.map_or(Unlock::Plain, Unlock::KeyFile);
    Made {
        memory: memory.snapshot(),
        unlock,
        point,
        bytes,
    }
}

impl Made {
    fn objects(&self, prefix: &str) -> Vec<ObjectName> {
        let prefix = Prefix::new(prefix).expect("a prefix");
        list_all(&self.memory, &prefix)
            .map(|entry| entry.expect("listed").name)
            .collect()
    }

    /// A copy of the store with one object changed.
    fn changed(&self, name: &ObjectName, change: impl FnOnce(&mut Vec<u8>)) -> Arc<dyn Store> {
        let copy = self.memory.snapshot();
        copy.damage(name, change).expect("an object");
        Arc::new(copy)
    }

    fn open(&self, store: Arc<dyn Store>) -> repo::Result<Repository> {
        let options = OpenOptions {
            lease_terms: terms(),
            ..open_options()
        };
        Repository::open(store, &self.unlock, &options, &environment())
    }

    fn read(&self, repository: &Repository) -> repo::Result<Vec<u8>> {
        let session =
            repository.read_session(LeaseKind::Restore, &[&self.point], ReadProtection::None)?;
        let reader = repository.open_version(&self.point.disks[0], &session)?;
        let mut bytes = vec![0xAA; self.bytes.len()];
        reader.read_at(0, &mut bytes).map_err(Error::from)?;
        Ok(bytes)
    }
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// Offsets that meet every field of header and trailer, and some of the middle.
fn offsets(length: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..length.min(96)).collect();
    all.extend((96..length).step_by((length / 24).max(1)));
    all.extend(length.saturating_sub(64)..length);
    all
}

#[test]
fn a_damaged_point_is_told_by_name_and_never_listed() {
    for encryption in [Encryption::Aes256Gcm, Encryption::None] {
        let made = made(encryption);
        let name = made.objects("points").remove(0);
        let length = made.memory.get(&name).expect("the point").len();
        for at in offsets(length) {
            let repository = made
                .open(made.changed(&name, |body| body[at] ^= 0x20))
                .expect("opened");
            let (points, damaged) = repository.points().expect("listed");
            assert!(points.is_empty(), "{encryption:?} byte {at}");
            assert_eq!(damaged.len(), 1);
            assert!(
                chain(&damaged[0]).contains(name.as_str()),
                "{}",
                chain(&damaged[0])
            );
        }
        for cut in [0, 1, 79, 80, 100, length - 1] {
            let repository = made
                .open(made.changed(&name, |body| body.truncate(cut)))
                .expect("opened");
            assert_eq!(
                repository.points().expect("listed").1.len(),
                1,
                "cut at {cut}"
            );
        }
    }
}

#[test]
fn one_damaged_configuration_is_survived_and_two_are_told() {
    for encryption in [Encryption::Aes256Gcm, Encryption::None] {
        let made = made(encryption);
        let names = made
            .objects("")
            .into_iter()
            .filter(|name| name.as_str().starts_with("config"));
        let names: Vec<ObjectName> = names.collect();
        assert_eq!(names.len(), 2);
        let length = made.memory.get(&names[0]).expect("config").len();
        for name in &names {
            for at in offsets(length) {
                let repository = made
                    .open(made.changed(name, |body| body[at] ^= 1))
                    .expect("the other one");
                assert!(
                    repository
                        .find_point(&"vm".parse().expect("a selector"))
                        .is_ok()
                );
            }
        }
        let both = made.memory.snapshot();
        for name in &names {
            both.damage(name, |body| body[100] ^= 1).expect("config");
        }
        let error = made.open(Arc::new(both)).expect_err("both are damaged");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(chain(&error).contains("config"));
    }
}

#[test]
fn a_damaged_slot_or_ring_is_told_by_name() {
    let made = made(Encryption::Aes256Gcm);
    let Unlock::KeyFile(file) = &made.unlock else {
        panic!("a key file")
    };
    for name in made.objects("keys") {
        let ours = name.as_str().contains(&file.slot().to_string());
        let is_ring = name.as_str().contains("ring");
        if !ours && !is_ring {
            continue;
        }
        let length = made.memory.get(&name).expect("an object").len();
        for at in offsets(length) {
            let store = made.changed(&name, |body| body[at] ^= 4);
            if is_ring {
                // One damaged keyring is survived; without its copy nothing is readable.
                let repository = made.open(store.clone()).expect("the other copy is good");
                assert!(made.read(&repository).expect("read") == made.bytes);
                for other in made.objects("keys") {
                    if other != name && other.as_str().contains("ring") {
                        store.delete(&other).expect("deleted");
                    }
                }
            }
            let error = made.open(store).expect_err("damaged");
            assert!(
                chain(&error).contains(name.as_str()),
                "byte {at}: {}",
                chain(&error)
            );
            assert!(matches!(
                error.kind(),
                ErrorKind::Corrupt | ErrorKind::WrongKey | ErrorKind::Unsupported
            ));
        }
    }
}

#[test]
fn a_damaged_segment_is_survived() {
    for encryption in [Encryption::Aes256Gcm, Encryption::None] {
        let made = made(encryption);
        let name = made.objects("index").remove(0);
        let length = made.memory.get(&name).expect("the segment").len();
        for at in offsets(length).into_iter().step_by(7) {
            let repository = made
                .open(made.changed(&name, |body| body[at] ^= 0x80))
                .expect("opened");
            assert!(
                made.read(&repository).expect("read") == made.bytes,
                "byte {at}"
            );
            let stats = repository.index_stats().expect("stats");
            assert_eq!((stats.damaged_segments, stats.damaged_packs), (1, 0));
            assert!(stats.directories_read > 0);
        }
        let gone = made.memory.snapshot();
        gone.delete(&name).expect("deleted");
        let repository = made.open(Arc::new(gone)).expect("opened");
        assert!(made.read(&repository).expect("read") == made.bytes);
    }
}

#[test]
fn a_damaged_pack_gives_the_right_bytes_or_an_error_with_its_name() {
    for encryption in [Encryption::Aes256Gcm, Encryption::None] {
        let made = made(encryption);
        let packs = [made.objects("data"), made.objects("node")].concat();
        assert!(packs.len() >= 2);
        for name in packs {
            let length = made.memory.get(&name).expect("a pack").len();
            let (mut survived, mut told) = (0, 0);
            for at in offsets(length).into_iter().step_by(5) {
                let repository = made
                    .open(made.changed(&name, |body| body[at] ^= 0x10))
                    .expect("opened");
                match made.read(&repository) {
                    Ok(bytes) => {
                        assert!(bytes == made.bytes, "{name} byte {at}: wrong bytes");
                        survived += 1;
                    }
                    Err(error) => {
                        let text = chain(&error);
                        assert!(
                            matches!(
                                error.kind(),
                                // A flipped key id names a key that nobody has.
                                ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::WrongKey
                            ),
                            "{text}"
                        );
                        told += 1;
                    }
                }
            }
            assert!(
                survived > 0 && told > 0,
                "{name}: survived {survived}, told {told}"
            );
        }
    }
}

#[test]
fn a_frame_flipped_in_a_pack_names_the_pack() {
    let made = made(Encryption::Aes256Gcm);
    let name = made.objects("data").remove(0);
    let repository = made
        .open(made.changed(&name, |body| body[4000] ^= 1))
        .expect("opened");
    let error = made.read(&repository).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(chain(&error).contains(name.as_str()), "{}", chain(&error));
}

#[test]
fn a_pack_without_its_end_is_read_by_its_frames() {
    let made = made(Encryption::Aes256Gcm);
    for name in [made.objects("data"), made.objects("node")].concat() {
        let store = made.changed(&name, |body| {
            let keep = body.len() - 80;
            body.truncate(keep);
        });
        let repository = made.open(store).expect("opened");
        assert!(
            made.read(&repository).expect("salvaged") == made.bytes,
            "{name}"
        );
    }
}

#[test]
fn swapped_objects_are_seen() {
    for encryption in [Encryption::Aes256Gcm, Encryption::None] {
        let memory = Arc::new(MemoryStore::new());
        let store: Arc<dyn Store> = Arc::clone(&memory) as Arc<dyn Store>;
        let created = create(&store, encryption);
        let one = protect(&created.repository, "vm", &disk_of(31, 1 << 20));
        protect(&created.repository, "vm", &disk_of(32, 1 << 20));
        let points: Vec<ObjectName> = list_all(memory.as_ref(), &Prefix::new("points").expect("p"))
            .map(|entry| entry.expect("listed").name)
            .collect();
        let bodies: Vec<Vec<u8>> = points
            .iter()
            .map(|name| memory.get(name).expect("a point"))
            .collect();
        let swapped = memory.snapshot();
        swapped
            .damage(&points[0], |body| body.clone_from(&bodies[1]))
            .expect("swapped");
        swapped
            .damage(&points[1], |body| body.clone_from(&bodies[0]))
            .expect("swapped");
        let unlock = created.key_file.map_or(Unlock::Plain, Unlock::KeyFile);
        let repository =
            Repository::open(Arc::new(swapped), &unlock, &open_options(), &environment())
                .expect("opened");
        let (listed, damaged) = repository.points().expect("points");
        assert!(listed.is_empty());
        assert_eq!(damaged.len(), 2);

        let packs: Vec<ObjectName> = list_all(memory.as_ref(), &Prefix::new("data").expect("p"))
            .map(|entry| entry.expect("listed").name)
            .collect();
        let other = memory.get(&packs[1]).expect("a pack");
        let first = memory.get(&packs[0]).expect("a pack");
        let swapped = memory.snapshot();
        swapped
            .damage(&packs[0], |body| body.clone_from(&other))
            .expect("swapped");
        swapped
            .damage(&packs[1], |body| body.clone_from(&first))
            .expect("swapped");
        let repository =
            Repository::open(Arc::new(swapped), &unlock, &open_options(), &environment())
                .expect("opened");
        let session = repository
            .read_session(LeaseKind::Restore, &[&one], ReadProtection::None)
            .expect("session");
        let reader = repository
            .open_version(&one.disks[0], &session)
            .expect("a version");
        let mut bytes = vec![0; 1 << 20];
        assert!(reader.read_at(0, &mut bytes).is_err());
    }
}

#[test]
fn a_plain_object_in_an_encrypted_repository_is_not_believed() {
    let made = made(Encryption::Aes256Gcm);
    let plain = self::made(Encryption::None);
    let body = plain
        .memory
        .get(&plain.objects("points")[0])
        .expect("a plain point");
    let name = made.objects("points").remove(0);
    let repository = made
        .open(made.changed(&name, |old| *old = body))
        .expect("opened");
    let (points, damaged) = repository.points().expect("points");
    assert!(points.is_empty());
    assert_eq!(damaged.len(), 1);
}

#[test]
fn a_flip_in_the_directory_of_a_plain_pack_loses_nothing() {
    let made = made(Encryption::None);
    for name in [made.objects("data"), made.objects("node")].concat() {
        let body = made.memory.get(&name).expect("a pack");
        let fields = body.len() - 64;
        let at = |from: usize| {
            let bytes = body[fields + from..fields + from + 4].try_into();
            usize::try_from(u32::from_le_bytes(bytes.expect("four"))).expect("small")
        };
        let directory = at(8);
        for at in (directory..body.len()).step_by(11) {
            let store = made.changed(&name, |body| body[at] ^= 0x04);
            // The packs speak for themselves.
            for segment in made.objects("index") {
                store.delete(&segment).expect("deleted");
            }
            let repository = made.open(store).expect("opened");
            let read = made.read(&repository);
            assert!(
                read.is_ok_and(|bytes| bytes == made.bytes),
                "{name} byte {at}"
            );
        }
    }
}

#[test]
fn a_plain_pack_in_an_encrypted_repository_is_not_believed() {
    let made = made(Encryption::Aes256Gcm);
    let plain = self::made(Encryption::None);
    let store = made.memory.snapshot();
    for kind in ["data", "node"] {
        let (ours, theirs) = (made.objects(kind), plain.objects(kind));
        assert_eq!((ours.len(), theirs.len()), (1, 1));
        // The same blobs, unencrypted, under the name and key id of the pack that belongs there.
        let genuine = store.get(&ours[0]).expect("a pack");
        let mut forged = plain.memory.get(&theirs[0]).expect("a pack");
        forged[16..48].copy_from_slice(&genuine[16..48]);
        let sum = forged.len() - 32;
        let mut hasher = blake3::Hasher::new_derive_key("hikae v1 pack checksum");
        hasher.update(&forged[..sum]);
        forged[sum..].copy_from_slice(hasher.finalize().as_bytes());
        store
            .damage(&ours[0], |body| *body = forged)
            .expect("replaced");
    }
    for segment in made.objects("index") {
        store.delete(&segment).expect("deleted");
    }
    let repository = made.open(Arc::new(store)).expect("opened");
    made.read(&repository).expect_err("nothing of it is read");
    let stats = repository.index_stats().expect("stats");
    assert_eq!((stats.entries, stats.damaged_packs), (0, 2));
}
