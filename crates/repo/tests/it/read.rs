//! Reading by position and in bulk against the bytes that were written, over random histories.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use block::geometry::LEAF_SIZE_BYTES;
use block::{ExtentKind, LeafIndex, ReadAt};
use proptest::prelude::*;
use repo::lease::LeaseKind;
use repo::{
    BeginOptions, BulkRead, CreateOptions, Encryption, ErrorKind, OpenOptions, ReadProtection,
    RecoveryPoint, Repository, Unlock,
};
use store::memory::MemoryStore;
use store::{Prefix, Store, list_all};

use crate::support::{
    BLOCK, Dice, block_of, create, disk_of, environment, memory, name, open_options, protect,
    read_all, reader, write_disk,
};
use crate::world::{Disk, World, back_up};

#[test]
fn every_range_reads_as_it_was_written() {
    let (_, store) = memory();
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let bytes = disk_of(51, (17 << 20) + 4_321);
    let point = protect(&repository, "vm", &bytes);
    let reader = reader(&repository, &point);
    let mut dice = Dice::new(7);
    for _ in 0..400 {
        let offset = usize::try_from(dice.below(bytes.len() as u64)).expect("small");
        let longest = if dice.below(3) == 0 { 3 << 20 } else { 5000 };
        let length = usize::try_from(dice.below(longest))
            .expect("small")
            .min(bytes.len() - offset);
        let mut got = vec![0xEE; length];
        reader.read_at(offset as u64, &mut got).expect("read");
        assert!(
            got == bytes[offset..offset + length],
            "{length} at {offset}"
        );
    }
    let mut one = [0];
    let error = reader
        .read_at(bytes.len() as u64, &mut one)
        .expect_err("behind the end");
    assert_eq!(error.kind(), block::ErrorKind::OutOfRange);
    assert!(reader.read_at(u64::MAX, &mut one).is_err());
}

#[test]
fn extents_tile_the_disk_and_zero_ones_read_as_zeros() {
    let (_, store) = memory();
    let repository = create(&store, Encryption::None).repository;
    let mut bytes = vec![0u8; (70 << 20) + 100];
    bytes[9 << 20..12 << 20].copy_from_slice(&disk_of(52, 3 << 20));
    let point = protect(&repository, "vm", &bytes);
    let reader = reader(&repository, &point);
    let mut at = 0u64;
    let mut count = 0;
    while at < reader.size_bytes() {
        let extent = reader.extent_at(at, u64::MAX).expect("an extent");
        assert_eq!(extent.offset, at);
        assert!(extent.length_bytes > 0);
        let (from, to) = (at as usize, extent.end() as usize);
        if extent.kind != ExtentKind::Data {
            assert!(bytes[from..to].iter().all(|byte| *byte == 0), "{extent:?}");
        }
        at = extent.end();
        count += 1;
    }
    assert_eq!(at, bytes.len() as u64);
    assert!(
        count < 100,
        "{count} extents: zero subtrees are not walked block by block"
    );
    assert!(reader.extent_at(at, 1).is_err());
}

#[test]
fn a_bulk_read_gives_every_wanted_block_once() {
    let (_, store) = memory();
    let repository = create(&store, Encryption::Aes256Gcm).repository;
    let bytes = disk_of(53, (33 << 20) + 70_000);
    let point = protect(&repository, "vm", &bytes);
    let reader = reader(&repository, &point);
    for (workers, every) in [(1, 1), (4, 1), (3, 7)] {
        let out = Mutex::new(vec![0u8; bytes.len()]);
        let touched = Mutex::new(0usize);
        let options = BulkRead {
            workers,
            ..BulkRead::default()
        };
        let stats = reader
            .read_leaves(&options, &|block, _| block.0 % every == 0, &|leaf| {
                let mut out = out.lock().expect("no panic");
                for (offset, run) in leaf.runs() {
                    let at = usize::try_from(offset).expect("small");
                    out[at..at + run.len()].copy_from_slice(run);
                    *touched.lock().expect("no panic") += run.len();
                }
                Ok(())
            })
            .expect("read");
        let out = out.into_inner().expect("no panic");
        for (at, (got, wanted)) in out.chunks(BLOCK).zip(bytes.chunks(BLOCK)).enumerate() {
            if (at as u64).is_multiple_of(every) {
                assert!(got == wanted, "block {at}");
            } else {
                assert!(
                    got.iter().all(|byte| *byte == 0),
                    "block {at} was not wanted"
                );
            }
        }
        assert!(*touched.lock().expect("no panic") <= stats.blocks as usize * BLOCK);
        assert!(stats.leaves <= bytes.len().div_ceil(LEAF_SIZE_BYTES as usize) as u64);
    }
}

#[test]
fn a_part_of_a_disk_can_be_read_in_bulk_and_a_failing_sink_ends_it() {
    let (_, store) = memory();
    let repository = create(&store, Encryption::None).repository;
    let bytes = disk_of(54, 40 << 20);
    let point = protect(&repository, "vm", &bytes);
    let reader = reader(&repository, &point);
    let leaves = Mutex::new(Vec::new());
    let options = BulkRead {
        first: LeafIndex(1),
        end: Some(LeafIndex(3)),
        ..BulkRead::default()
    };
    reader
        .read_leaves(&options, &|_, _| true, &|leaf| {
            leaves.lock().expect("no panic").push(leaf.leaf.0);
            Ok(())
        })
        .expect("read");
    let mut leaves = leaves.into_inner().expect("no panic");
    leaves.sort_unstable();
    assert_eq!(leaves, [1, 2]);
    let error = reader
        .read_leaves(&BulkRead::default(), &|_, _| true, &|_| {
            Err(repo::Error::new(ErrorKind::Cancelled, "enough"))
        })
        .expect_err("the sink refused");
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

/// What a random history does next.
#[derive(Debug, Clone)]
enum Step {
    /// Commits a version of one of three names, changed in some blocks, grown or shrunk.
    Protect {
        who: u8,
        seed: u64,
        changes: u8,
        length_blocks: u16,
    },
    /// Writes blobs and walks away.
    Abandon { seed: u64 },
    /// Opens the repository anew, with or without a cache.
    Reopen { cached: bool },
    /// Draws a new data key.
    Rotate,
    /// Loses all index segments.
    LoseSegments,
    /// Reads any version.
    Read { pick: u16 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..3u8, any::<u64>(), 0..20u8, 1..200u16).prop_map(|(who, seed, changes, length)| {
            Step::Protect { who, seed, changes, length_blocks: length }
        }),
        1 => any::<u64>().prop_map(|seed| Step::Abandon { seed }),
        2 => any::<bool>().prop_map(|cached| Step::Reopen { cached }),
        1 => Just(Step::Rotate),
        1 => Just(Step::LoseSegments),
        4 => any::<u16>().prop_map(|pick| Step::Read { pick }),
    ]
}

struct History {
    memory: Arc<MemoryStore>,
    unlock: Unlock,
    cache: tempfile::TempDir,
    repository: Repository,
    current: HashMap<u8, Vec<u8>>,
    versions: Vec<(RecoveryPoint, Vec<u8>)>,
}

impl History {
    fn new() -> Self {
        let memory = Arc::new(MemoryStore::new());
        let store: Arc<dyn Store> = Arc::clone(&memory) as Arc<dyn Store>;
        let options = CreateOptions::default();
        let created =
            Repository::create(store, &options, &open_options(), &environment()).expect("created");
        Self {
            memory,
            unlock: Unlock::KeyFile(created.key_file.expect("a key file")),
            cache: tempfile::tempdir().expect("a directory"),
            repository: created.repository,
            current: HashMap::new(),
            versions: Vec::new(),
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Protect {
                who,
                seed,
                changes,
                length_blocks,
            } => {
                let mut dice = Dice::new(*seed);
                let bytes = self.current.entry(*who).or_default();
                bytes.resize(usize::from(*length_blocks) * BLOCK + 17, 0);
                for _ in 0..*changes {
                    let block = dice.below(u64::from(*length_blocks)) as usize;
                    let new = block_of(dice.below(40));
                    bytes[block * BLOCK..][..BLOCK].copy_from_slice(&new);
                }
                let point = protect(&self.repository, &format!("vm {who}"), bytes);
                self.versions.push((point, bytes.clone()));
            }
            Step::Abandon { seed } => {
                let begun = self
                    .repository
                    .begin(&name("gone"), &BeginOptions::default());
                let session = begun.expect("a session");
                write_disk(
                    &self.repository,
                    session.blobs(),
                    None,
                    &disk_of(*seed, 3 << 20),
                );
                session.abandon().expect("abandoned");
            }
            Step::Reopen { cached } => {
                let cache_dir = cached.then(|| self.cache.path().to_owned());
                let options = OpenOptions {
                    cache_dir,
                    ..open_options()
                };
                let store: Arc<dyn Store> = Arc::clone(&self.memory) as Arc<dyn Store>;
                self.repository = Repository::open(store, &self.unlock, &options, &environment())
                    .expect("opened");
            }
            Step::Rotate => self.repository.rotate_data_key().expect("rotated"),
            Step::LoseSegments => {
                for entry in list_all(&*self.memory, &Prefix::new("index").expect("a prefix")) {
                    self.memory
                        .delete(&entry.expect("listed").name)
                        .expect("deleted");
                }
            }
            Step::Read { pick } => {
                if let Some((point, bytes)) = self
                    .versions
                    .get(usize::from(*pick) % self.versions.len().max(1))
                {
                    assert!(
                        read_all(&self.repository, point) == *bytes,
                        "{}",
                        point.point
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_history_gives_back_every_version(steps in proptest::collection::vec(step(), 1..24)) {
        let mut history = History::new();
        for step in &steps {
            history.run(step);
        }
        history.run(&Step::Reopen { cached: false });
        let (points, damaged) = history.repository.points().expect("points");
        prop_assert!(damaged.is_empty());
        prop_assert_eq!(points.len(), history.versions.len());
        for (point, bytes) in &history.versions {
            prop_assert!(read_all(&history.repository, point) == *bytes);
        }
    }
}

#[test]
fn many_readers_find_what_was_moved_under_them() {
    for seed in 0..4u64 {
        let world = World::new(40 + seed);
        let repository = world.open();
        let block = |leaf: u64| (leaf * 128, leaf + 1);
        // Every leaf in a pack of its own.
        let mut disk = Disk::new(16 * 128, &[]);
        for leaf in 0..16 {
            let (index, number) = block(leaf);
            disk.set(index, number);
            disk.set(index + 1, 1_000 + number);
            let made = back_up(&repository, "vm", &disk).expect("a step");
            disk.set(index + 1, 0);
            if leaf > 0 {
                let before = crate::world::point(&repository, &format!("vm@{}", made.sequence - 1));
                repository.forget(&before, "").expect("a step");
            }
        }
        let made = back_up(&repository, "vm", &disk).expect("a step");
        let reading = world.open();
        let session = reading
            .read_session(LeaseKind::Restore, &[&made], ReadProtection::None)
            .expect("a step");
        let reader = reading
            .open_version(made.disk("disk").expect("a step"), &session)
            .expect("a step");
        let old = world.objects("data/");
        let eager = repo::gc::GcOptions {
            repack_below_percent: 100,
            ..crate::gc::options()
        };
        repo::gc::collect_garbage(&world.open(), &eager).expect("a step");
        let new = world.objects("data/");
        let moved = old.iter().filter(|pack| !new.contains(pack)).count();
        assert!(moved >= 12, "{moved} of {} packs were moved", old.len());
        let options = BulkRead {
            workers: 16,
            ..BulkRead::default()
        };
        let stats = reader
            .read_leaves(&options, &|_, _| true, &|_| Ok(()))
            .expect("a step");
        assert_eq!(stats.blocks, 16, "seed {seed}");
    }
}
