//! Disks that are cheap to make, and a repository in memory that counts its calls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::geometry::BLOCK_SIZE_BYTES;
use block::{ByteRange, ChangedRanges, Error, ErrorKind, Extent, ExtentKind, ReadAt};
use engine::job::backup_disk::{BackupReport, BackupRequest, backup_disk};
use engine::job::{JobContext, NoJournal};
use engine::{Cancellation, Tracking, Unwatched};
use repo::lease::{HeartbeatMode, LeaseKind, LeaseTerms};
use repo::{
    CreateOptions, Encryption, Environment, OpenOptions, PointSelector, ProtectedName,
    ReadProtection, Repository, Unlock,
};
use store::Store;
use store::memory::MemoryStore;
use store::recording::RecordingStore;

pub const BLOCK: usize = 65_536;
pub const LEAF: u64 = 8 << 20;

/// A disk that keeps what was written to it, block by block.
#[derive(Default)]
pub struct SparseDisk {
    pub length_bytes: u64,
    pub blocks: BTreeMap<u64, Vec<u8>>,
    pub bad: BTreeSet<u64>,
    pub read_bytes: AtomicU64,
}

impl Clone for SparseDisk {
    fn clone(&self) -> Self {
        let (length_bytes, blocks, bad) =
            (self.length_bytes, self.blocks.clone(), self.bad.clone());
        Self {
            length_bytes,
            blocks,
            bad,
            read_bytes: AtomicU64::new(0),
        }
    }
}

impl SparseDisk {
    pub fn new(length_bytes: u64) -> Self {
        Self {
            length_bytes,
            ..Self::default()
        }
    }

    /// A disk with these blocks filled from the seed.
    pub fn filled(length_bytes: u64, blocks: impl IntoIterator<Item = u64>, seed: u64) -> Self {
        let mut disk = Self::new(length_bytes);
        for block in blocks {
            disk.fill(block, seed.wrapping_mul(1_000_003).wrapping_add(block));
        }
        disk
    }

    /// Fills a block with half noise and half text.
    pub fn fill(&mut self, block: u64, seed: u64) {
        let mut bytes = vec![0; BLOCK];
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for chunk in bytes[..BLOCK / 2].chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        bytes[BLOCK / 2..].fill(b'-');
        let inside = self
            .length_bytes
            .saturating_sub(block * BLOCK_SIZE_BYTES)
            .min(BLOCK_SIZE_BYTES);
        bytes[usize::try_from(inside).unwrap()..].fill(0);
        if inside > 0 {
            self.blocks.insert(block, bytes);
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.length_bytes).unwrap()];
        for (block, content) in &self.blocks {
            let at = usize::try_from(block * BLOCK_SIZE_BYTES).unwrap();
            let length = content.len().min(bytes.len() - at);
            bytes[at..at + length].copy_from_slice(&content[..length]);
        }
        bytes
    }

    pub fn take_read_bytes(&self) -> u64 {
        self.read_bytes.swap(0, Ordering::Relaxed)
    }
}

impl ReadAt for SparseDisk {
    fn size_bytes(&self) -> u64 {
        self.length_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let end = offset + buffer.len() as u64;
        assert!(end <= self.length_bytes, "a read behind the end");
        self.read_bytes
            .fetch_add(buffer.len() as u64, Ordering::Relaxed);
        buffer.fill(0);
        let blocks = offset / BLOCK_SIZE_BYTES..end.div_ceil(BLOCK_SIZE_BYTES);
        if let Some(bad) = self.bad.range(blocks.clone()).next() {
            return Err(Error::new(
                ErrorKind::Io,
                format!("block {bad} cannot be read"),
            ));
        }
        for (block, content) in self.blocks.range(blocks) {
            let start = block * BLOCK_SIZE_BYTES;
            let (from, to) = (start.max(offset), (start + BLOCK_SIZE_BYTES).min(end));
            let place = |at: u64, base: u64| usize::try_from(at - base).unwrap();
            buffer[place(from, offset)..place(to, offset)]
                .copy_from_slice(&content[place(from, start)..place(to, start)]);
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let left = self.length_bytes.saturating_sub(offset).min(limit_bytes);
        assert!(left > 0, "an extent behind the end");
        let block = offset / BLOCK_SIZE_BYTES;
        let (kind, end) = match self.blocks.range(block..).next() {
            Some((at, _)) if *at == block => (ExtentKind::Data, (block + 1) * BLOCK_SIZE_BYTES),
            Some((at, _)) => (ExtentKind::Unallocated, at * BLOCK_SIZE_BYTES),
            None => (ExtentKind::Unallocated, u64::MAX),
        };
        Ok(Extent {
            offset,
            length_bytes: left.min(end - offset),
            kind,
        })
    }
}

/// A repository in memory.
pub struct World {
    pub store: Arc<RecordingStore<Arc<MemoryStore>>>,
    pub repository: Repository,
    pub unlock: Unlock,
}

impl World {
    pub fn new() -> Self {
        Self::with(Encryption::Aes256Gcm)
    }

    pub fn with(encryption: Encryption) -> Self {
        let store = Arc::new(RecordingStore::new(Arc::new(MemoryStore::new())));
        let shared: Arc<dyn Store> = store.clone();
        let options = CreateOptions {
            encryption,
            ..CreateOptions::default()
        };
        let created =
            Repository::create(shared, &options, &open_options(), &environment()).unwrap();
        let unlock = created.key_file.map_or(Unlock::Plain, Unlock::KeyFile);
        Self {
            store,
            repository: created.repository,
            unlock,
        }
    }

    /// Opens the repository again, through another store if wanted, as another process.
    pub fn open(
        &self,
        store: Arc<dyn Store>,
        environment: &Environment,
    ) -> repo::Result<Repository> {
        Repository::open(store, &self.unlock, &open_options(), environment)
    }

    pub fn back_up(&self, name: &str, disk: &dyn ReadAt) -> BackupReport {
        self.back_up_with(&request(name), disk).unwrap()
    }

    pub fn back_up_with(
        &self,
        request: &BackupRequest,
        disk: &dyn ReadAt,
    ) -> engine::Result<BackupReport> {
        backup_disk(&self.repository, request, disk, context())
    }

    /// The bytes of a version.
    pub fn read(&self, selector: &str) -> Vec<u8> {
        read_version(&self.repository, selector)
    }

    pub fn point_count(&self) -> usize {
        let (points, damaged) = self.repository.points().unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        points.len()
    }

    /// Packs put since the last call, data and node packs alike.
    pub fn take_packs_put(&self) -> usize {
        let calls = self.store.take_calls();
        let is_pack = |name: &str| name.starts_with("data/") || name.starts_with("node/");
        calls
            .iter()
            .filter(|call| call.verb == store::Verb::PutNew && is_pack(&call.name))
            .count()
    }
}

pub fn read_version(repository: &Repository, selector: &str) -> Vec<u8> {
    let point = repository
        .find_point(&selector.parse().unwrap())
        .unwrap()
        .point;
    let session = repository
        .read_session(LeaseKind::Restore, &[&point], ReadProtection::Lease)
        .unwrap();
    let reader = repository.open_version(&point.disks[0], &session).unwrap();
    let mut bytes = vec![0; usize::try_from(reader.size_bytes()).unwrap()];
    reader.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Without a heartbeat thread, whose calls would come at any time.
fn open_options() -> OpenOptions {
    let lease_terms = LeaseTerms {
        heartbeat: HeartbeatMode::Manual,
        ..LeaseTerms::default()
    };
    OpenOptions {
        lease_terms,
        ..OpenOptions::default()
    }
}

pub fn environment() -> Environment {
    Environment::system("engine tests")
}

/// A process of this host that is gone.
pub fn gone() -> Environment {
    let mut environment = environment();
    environment.host.pid = u32::MAX - 7;
    environment.host.process_started = 1;
    environment
}

static NEVER: std::sync::LazyLock<Cancellation> = std::sync::LazyLock::new(Cancellation::default);

pub fn context() -> JobContext<'static> {
    JobContext {
        progress: &Unwatched,
        cancel: &NEVER,
        journal: &NoJournal,
    }
}

pub fn request(name: &str) -> BackupRequest {
    BackupRequest::new(ProtectedName::new(name).unwrap())
}

pub fn selector(text: &str) -> PointSelector {
    text.parse().unwrap()
}

pub fn blocks(list: impl IntoIterator<Item = u64>) -> ChangedRanges {
    let range = |block| ByteRange {
        offset: block * BLOCK_SIZE_BYTES,
        length_bytes: BLOCK_SIZE_BYTES,
    };
    ChangedRanges::new(list.into_iter().map(range)).unwrap()
}

pub fn tracking(list: impl IntoIterator<Item = u64>, audit_per_million: u32) -> Tracking {
    Tracking {
        changed: blocks(list),
        audit_per_million,
        audit_seed: 11,
    }
}

pub fn same_bytes(a: &[u8], b: &[u8]) {
    assert_eq!(a.len(), b.len(), "lengths");
    let first = a.iter().zip(b).position(|(a, b)| a != b);
    assert_eq!(first, None, "the first byte that differs");
}
