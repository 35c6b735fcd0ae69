//! A small world to try a repository in: a store in memory, a clock that only moves when somebody sleeps, repeatable
//! randomness, and disks that are described by one number per block.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use block::tree::{DiskTree, Node, NodeSink, NodeSource, TreeBuilder, TreeReader};
use block::{BLOCK_SIZE_BYTES, BlockHash, BlockIndex, FANOUT, LeafIndex, NodeHash};
use repo::lease::{HeartbeatMode, LeaseKind, LeaseTerms};
use repo::{
    BeginOptions, BlobName, BlobWriter, Clock, CreateOptions, DiskVersion, Encryption, Environment,
    HostIdentity, KeyFile, OpenOptions, PointDraft, ProtectedName, Random, ReadProtection,
    RecoveryPoint, Repository, Result, Unlock, VersionSession,
};
use store::Store;
use store::memory::MemoryStore;

/// 2026-01-01 00:00 UTC.
pub const NEW_YEAR_MS: u64 = 1_767_225_600_000;

/// A clock on which sleeping takes no time.
pub struct TestClock {
    monotonic_ms: AtomicU64,
    unix_ms: AtomicU64,
}

impl TestClock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            monotonic_ms: AtomicU64::new(0),
            unix_ms: AtomicU64::new(NEW_YEAR_MS),
        })
    }
    pub fn set_unix_ms(&self, unix_ms: u64) {
        self.unix_ms.store(unix_ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn unix_ms(&self) -> u64 {
        self.unix_ms.load(Ordering::SeqCst)
    }
    fn monotonic_ms(&self) -> u64 {
        self.monotonic_ms.load(Ordering::SeqCst)
    }
    fn sleep(&self, duration: Duration) {
        let ms = u64::try_from(duration.as_millis()).unwrap();
        self.monotonic_ms.fetch_add(ms, Ordering::SeqCst);
        // Threads that are waited for get their turn.
        std::thread::yield_now();
    }
}

/// SplitMix64 from a seed.
pub struct TestRandom(AtomicU64);

impl TestRandom {
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
    pub fn next(&self) -> u64 {
        let step = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.0.fetch_add(step, Ordering::SeqCst).wrapping_add(step);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    pub fn below(&self, limit: u64) -> u64 {
        self.next() % limit
    }
}

impl Random for TestRandom {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        Ok(())
    }
}

/// The world of one test.
pub struct World {
    pub clock: Arc<TestClock>,
    pub random: Arc<TestRandom>,
    pub memory: Arc<MemoryStore>,
    pub key_file: Option<KeyFile>,
}

impl World {
    /// A new encrypted repository.
    pub fn new(seed: u64) -> Self {
        Self::with_encryption(seed, Encryption::Aes256Gcm)
    }

    pub fn with_encryption(seed: u64, encryption: Encryption) -> Self {
        let clock = TestClock::new();
        let random = Arc::new(TestRandom::new(seed));
        let memory = Arc::new(MemoryStore::new());
        let mut world = Self {
            clock,
            random,
            memory,
            key_file: None,
        };
        let options = CreateOptions {
            encryption,
            ..CreateOptions::default()
        };
        let created = Repository::create(
            Arc::clone(&world.memory) as Arc<dyn Store>,
            &options,
            &open_options(manual_terms()),
            &world.environment("creator"),
        )
        .unwrap();
        world.key_file = created.key_file;
        world
    }

    pub fn environment(&self, program: &str) -> Environment {
        let host = HostIdentity {
            host: "test".to_owned(),
            boot_id: String::new(),
            pid: 1,
            process_started: 0,
            program: program.to_owned(),
        };
        Environment {
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            random: Arc::clone(&self.random) as Arc<dyn Random>,
            host,
        }
    }

    pub fn unlock(&self) -> Unlock {
        match &self.key_file {
            Some(key_file) => Unlock::KeyFile(key_file.clone()),
            None => Unlock::Plain,
        }
    }

    /// Another process opens the repository.
    pub fn open(&self) -> Repository {
        self.open_over(Arc::clone(&self.memory) as Arc<dyn Store>)
    }

    pub fn open_over(&self, store: Arc<dyn Store>) -> Repository {
        self.try_open_over(store).unwrap()
    }

    pub fn try_open_over(&self, store: Arc<dyn Store>) -> Result<Repository> {
        let options = open_options(manual_terms());
        Repository::open(store, &self.unlock(), &options, &self.environment("test"))
    }

    /// A process that never thinks anybody dead.
    pub fn open_patient(&self) -> Repository {
        let terms = LeaseTerms {
            stall_ms: u64::MAX,
            ..manual_terms()
        };
        let store = Arc::clone(&self.memory) as Arc<dyn Store>;
        let environment = self.environment("patient");
        Repository::open(store, &self.unlock(), &open_options(terms), &environment).unwrap()
    }

    /// The same objects in a store of their own: what happens there does not happen here.
    pub fn fork(&self) -> Self {
        Self {
            clock: TestClock::new(),
            random: Arc::new(TestRandom::new(self.random.next())),
            memory: Arc::new(self.memory.snapshot()),
            key_file: self.key_file.clone(),
        }
    }

    /// Names of all objects under a prefix.
    pub fn objects(&self, prefix: &str) -> Vec<String> {
        store::list_all(self.memory.as_ref(), &prefix.parse().unwrap())
            .map(|entry| entry.unwrap().name.to_string())
            .collect()
    }
}

pub fn name(text: &str) -> ProtectedName {
    text.parse().unwrap()
}

/// Leases that only beat when told.
pub fn manual_terms() -> LeaseTerms {
    LeaseTerms {
        heartbeat: HeartbeatMode::Manual,
        ..LeaseTerms::default()
    }
}

fn open_options(lease_terms: LeaseTerms) -> OpenOptions {
    OpenOptions {
        lease_terms,
        ..OpenOptions::default()
    }
}

pub fn begin_options() -> BeginOptions {
    BeginOptions {
        threads: Some(1),
        ..BeginOptions::default()
    }
}

/// What a disk holds: a number per block, zero for zeros.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disk {
    pub length_bytes: u64,
    pub blocks: BTreeMap<u64, u64>,
}

impl Disk {
    pub fn new(block_count: u64, blocks: &[(u64, u64)]) -> Self {
        Self {
            length_bytes: block_count * BLOCK_SIZE_BYTES,
            blocks: blocks.iter().copied().collect(),
        }
    }

    pub fn set(&mut self, index: u64, seed: u64) {
        if seed == 0 {
            self.blocks.remove(&index);
        } else {
            self.blocks.insert(index, seed);
        }
    }

    fn leaf(&self, leaf: LeafIndex) -> Node {
        let mut node = Node::zero(1);
        let first = leaf.first_block().0;
        for (index, seed) in self.blocks.range(first..first + FANOUT as u64) {
            node.set_block(BlockIndex(*index).slot(), block_hash(*seed));
        }
        node
    }
}

/// The block of a number: compresses well, differs for every number.
pub fn block_bytes(seed: u64) -> Vec<u8> {
    let random = TestRandom::new(seed);
    let pattern: Vec<u8> = (0..16).flat_map(|_| random.next().to_le_bytes()).collect();
    pattern
        .iter()
        .copied()
        .cycle()
        .take(usize::try_from(BLOCK_SIZE_BYTES).unwrap())
        .collect()
}

pub fn block_hash(seed: u64) -> BlockHash {
    static KNOWN: LazyLock<Mutex<HashMap<u64, BlockHash>>> = LazyLock::new(Mutex::default);
    *KNOWN
        .lock()
        .unwrap()
        .entry(seed)
        .or_insert_with(|| BlockHash::of(&block_bytes(seed)))
}

struct Sink<'a>(&'a BlobWriter);

impl NodeSink for Sink<'_> {
    fn put_node(&mut self, level: u8, hash: NodeHash, node: &Node) -> block::Result<()> {
        let name = BlobName::Node { level, hash };
        let encoded = self.0.encode(name, node.as_bytes())?;
        Ok(self.0.append(vec![encoded])?)
    }
}

/// Appends everything of a disk that its base lacks.
pub fn transfer(session: &VersionSession, disk: &Disk) -> Result<DiskVersion> {
    let base = session
        .base()
        .partial_disk("disk")
        .or(session.base().disk("disk"));
    let base = base.map_or(DiskTree::zero(disk.length_bytes)?, DiskVersion::tree);
    let source: &dyn NodeSource = session.repository();
    let mut before = TreeReader::new(base, source)?;
    let mut builder = TreeBuilder::new(base, source, disk.length_bytes)?;
    let blobs = session.blobs();
    let leaves = disk.length_bytes.div_ceil(BLOCK_SIZE_BYTES * FANOUT as u64);
    for leaf in (0..leaves).map(LeafIndex) {
        let node = disk.leaf(leaf);
        if before.leaf_hash(leaf)? == node.hash(1) {
            continue;
        }
        let first = leaf.first_block().0;
        for seed in disk
            .blocks
            .range(first..first + FANOUT as u64)
            .map(|(_, seed)| *seed)
        {
            let hash = block_hash(seed);
            if !blobs.contains_block(hash)? {
                let encoded = blobs.encode(BlobName::Block(hash), &block_bytes(seed))?;
                blobs.append(vec![encoded])?;
            }
        }
        builder.replace(leaf, &node, &mut Sink(blobs))?;
    }
    let (tree, _) = builder.finish(&mut Sink(blobs))?;
    Ok(DiskVersion::new("disk", tree))
}

/// One whole backup.
pub fn back_up(repository: &Repository, of: &str, disk: &Disk) -> Result<RecoveryPoint> {
    let session = repository.begin(&name(of), &begin_options())?;
    commit(session, disk)
}

/// Ends a session with this content.
pub fn commit(session: VersionSession, disk: &Disk) -> Result<RecoveryPoint> {
    let version = transfer(&session, disk)?;
    session.commit(PointDraft {
        disks: vec![version],
        ..PointDraft::default()
    })
}

/// Reads a point back, every block, and compares.
pub fn check_point(repository: &Repository, point: &RecoveryPoint, disk: &Disk) -> Result<()> {
    let version = point.disk("disk").expect("a disk");
    assert_eq!(
        version.length_bytes, disk.length_bytes,
        "{}@{}",
        point.name, point.sequence
    );
    let session = repository.read_session(LeaseKind::Restore, &[point], ReadProtection::None)?;
    let reader = repository.open_version(version, &session)?;
    let mut tree = reader.tree()?;
    for index in 0..disk.length_bytes / BLOCK_SIZE_BYTES {
        let seed = disk.blocks.get(&index).copied().unwrap_or(0);
        let hash = tree.block_hash(BlockIndex(index))?;
        if seed == 0 {
            assert_eq!(
                hash,
                BlockHash::zero(),
                "block {index} of {}@{}",
                point.name,
                point.sequence
            );
        } else {
            assert_eq!(
                hash,
                block_hash(seed),
                "block {index} of {}@{}",
                point.name,
                point.sequence
            );
            assert!(
                *reader.block(hash)? == block_bytes(seed),
                "bytes of block {index}"
            );
        }
    }
    Ok(())
}

/// All visible points as `name@sequence`.
pub fn visible_points(repository: &Repository) -> Vec<String> {
    let (records, damaged) = repository.points().unwrap();
    assert!(damaged.is_empty(), "{damaged:?}");
    records
        .iter()
        .filter(|record| record.marks.visibility() == repo::marks::PointVisibility::Visible)
        .map(|record| format!("{}@{}", record.point.name, record.point.sequence))
        .collect()
}

/// The record of `name@sequence`.
pub fn point(repository: &Repository, selector: &str) -> RecoveryPoint {
    repository
        .find_point(&selector.parse().unwrap())
        .unwrap()
        .point
}
