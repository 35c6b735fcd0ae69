//! The index is an accelerator: kept, lost, damaged or shared, the bytes are the same.

use std::path::Path;
use std::sync::Arc;

use repo::{CreateOptions, OpenOptions, RecoveryPoint, Repository, Unlock};
use store::memory::MemoryStore;
use store::recording::RecordingStore;
use store::{Prefix, Store, Verb, list_all};

use crate::support::{disk_of, environment, open_options, protect, read_all};

struct Made {
    recording: Arc<RecordingStore<MemoryStore>>,
    unlock: Unlock,
    point: RecoveryPoint,
    bytes: Vec<u8>,
}

fn cached(path: &Path) -> OpenOptions {
    OpenOptions {
        cache_dir: Some(path.to_owned()),
        ..open_options()
    }
}

fn made() -> Made {
    let recording = Arc::new(RecordingStore::new(MemoryStore::new()));
    let store: Arc<dyn Store> = Arc::clone(&recording) as Arc<dyn Store>;
    let created = Repository::create(
        store,
        &CreateOptions::default(),
        &open_options(),
        &environment(),
    )
    .expect("a repository");
    let bytes = disk_of(41, 10 << 20);
    let point = protect(&created.repository, "vm", &bytes);
    let unlock = Unlock::KeyFile(created.key_file.expect("a key file"));
    Made {
        recording,
        unlock,
        point,
        bytes,
    }
}

impl Made {
    fn open(&self, options: &OpenOptions) -> Repository {
        let store: Arc<dyn Store> = Arc::clone(&self.recording) as Arc<dyn Store>;
        Repository::open(store, &self.unlock, options, &environment()).expect("opened")
    }

    /// Whole and ranged reads of index segments and packs that opening the index made.
    fn loads(&self, options: &OpenOptions) -> usize {
        let repository = self.open(options);
        self.recording.take_calls();
        repository.index_stats().expect("the index");
        let calls = self.recording.take_calls();
        let reads = |verb| matches!(verb, Verb::Get | Verb::GetRange);
        let of = |name: &str| {
            ["index/", "data/", "node/"]
                .iter()
                .any(|p| name.starts_with(p))
        };
        calls
            .iter()
            .filter(|call| reads(call.verb) && of(&call.name.to_string()))
            .count()
    }

    fn delete_segments(&self) {
        let store = self.recording.inner();
        for entry in list_all(store, &Prefix::new("index").expect("a prefix")) {
            store.delete(&entry.expect("listed").name).expect("deleted");
        }
    }
}

#[test]
fn a_kept_cache_is_not_loaded_again() {
    let made = made();
    let cache = tempfile::tempdir().expect("a directory");
    assert!(made.loads(&cached(cache.path())) > 0);
    assert_eq!(made.loads(&cached(cache.path())), 0);
    assert!(
        made.loads(&open_options()) > 0,
        "without a cache everything is loaded"
    );
    let repository = made.open(&cached(cache.path()));
    assert!(read_all(&repository, &made.point) == made.bytes);
}

#[test]
fn a_lost_index_is_made_from_pack_directories() {
    let made = made();
    made.delete_segments();
    let repository = made.open(&open_options());
    assert!(read_all(&repository, &made.point) == made.bytes);
    let stats = repository.index_stats().expect("stats");
    assert!(stats.directories_read >= 2 && stats.packs == stats.directories_read);
    // And it still de-duplicates.
    let before = repository.dump_index().expect("index").packs.len();
    protect(&repository, "other", &made.bytes);
    assert_eq!(repository.dump_index().expect("index").packs.len(), before);
}

#[test]
fn a_damaged_cache_is_dropped_whatever_byte_is_wrong() {
    let made = made();
    let cache = tempfile::tempdir().expect("a directory");
    made.loads(&cached(cache.path()));
    let directory = cache
        .path()
        .join(made.open(&open_options()).id().to_string());
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .expect("the cache")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| !path.ends_with("lock"))
        .collect();
    files.sort();
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        let good = std::fs::read(&file).expect("a cache file");
        for at in [0, 17, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&file, &bad).expect("damaged");
            assert!(
                made.loads(&cached(cache.path())) > 0,
                "{file:?} byte {at} was believed"
            );
            let repository = made.open(&cached(cache.path()));
            assert!(read_all(&repository, &made.point) == made.bytes);
            drop(repository);
            // The cache was made anew under other names.
            if !file.exists() {
                break;
            }
        }
        if !file.exists() {
            made.loads(&cached(cache.path()));
        }
    }
}

#[test]
fn two_processes_share_a_cache_directory_without_harm() {
    let made = made();
    let cache = tempfile::tempdir().expect("a directory");
    let (one, two) = (
        made.open(&cached(cache.path())),
        made.open(&cached(cache.path())),
    );
    one.index_stats().expect("the one that holds the lock");
    two.index_stats()
        .expect("the one that works in a temporary directory");
    let other = disk_of(42, 3 << 20);
    let by_two = protect(&two, "two", &other);
    let by_one = protect(&one, "one", &other);
    assert!(read_all(&one, &by_two) == other && read_all(&two, &by_one) == other);
}

#[test]
fn a_pack_that_vanished_is_stored_anew() {
    let made = made();
    let cache = tempfile::tempdir().expect("a directory");
    made.loads(&cached(cache.path()));
    let store = made.recording.inner();
    for entry in list_all(store, &Prefix::new("data").expect("a prefix")) {
        store.delete(&entry.expect("listed").name).expect("deleted");
    }
    // The cache and the segments still tell of the packs, the listing does not.
    let repository = made.open(&cached(cache.path()));
    let point = protect(&repository, "other", &made.bytes);
    assert!(read_all(&repository, &point) == made.bytes);
}
