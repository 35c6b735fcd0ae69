//! Disks made from seeds, and versions of them written the plain way.

use std::sync::Arc;

use block::geometry::{BLOCK_SIZE_BYTES, FANOUT, LEAF_SIZE_BYTES};
use block::tree::{DiskTree, Node, TreeBuilder, TreeReader};
use block::{BlockHash, LeafIndex, NodeHash, ReadAt};
use repo::lease::{HeartbeatMode, LeaseKind, LeaseTerms};
use repo::{
    BeginOptions, BlobName, BlobWriter, CreateOptions, Created, DiskVersion, Encryption,
    Environment, OpenOptions, PointDraft, ProtectedName, ReadProtection, RecoveryPoint, Repository,
    VersionReader,
};
use store::Store;
use store::memory::MemoryStore;

pub const BLOCK: usize = 65_536;

/// A stream of numbers from a seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

pub fn environment() -> Environment {
    Environment::system("repo tests")
}

pub fn terms() -> LeaseTerms {
    LeaseTerms {
        heartbeat: HeartbeatMode::Manual,
        ..LeaseTerms::default()
    }
}

pub fn open_options() -> OpenOptions {
    OpenOptions {
        lease_terms: terms(),
        ..OpenOptions::default()
    }
}

pub fn create(store: &Arc<dyn Store>, encryption: Encryption) -> Created {
    let options = CreateOptions {
        encryption,
        ..CreateOptions::default()
    };
    Repository::create(Arc::clone(store), &options, &open_options(), &environment())
        .expect("a new repository")
}

pub fn memory() -> (Arc<MemoryStore>, Arc<dyn Store>) {
    let memory = Arc::new(MemoryStore::new());
    (Arc::clone(&memory), memory)
}

pub fn name(text: &str) -> ProtectedName {
    ProtectedName::new(text).expect("a good name")
}

/// One block: noise, text-like, or zeros, as the seed says.
pub fn block_of(seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut block = vec![0u8; BLOCK];
    match seed % 4 {
        0 => {}
        1 => {
            for chunk in block.chunks_exact_mut(8) {
                chunk.copy_from_slice(&dice.next().to_le_bytes());
            }
        }
        _ => {
            for chunk in block.chunks_exact_mut(16) {
                let word = dice.below(200);
                chunk[..8].copy_from_slice(&word.to_le_bytes());
                chunk[8..].copy_from_slice(b"compress");
            }
        }
    }
    block
}

/// A disk in memory.
pub fn disk_of(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + BLOCK);
    let mut dice = Dice::new(seed);
    while bytes.len() < length {
        bytes.extend_from_slice(&block_of(dice.next() % 1000));
    }
    bytes.truncate(length);
    bytes
}

/// Writes what differs from the base and gives the new tree.
pub fn write_disk(
    repository: &Repository,
    blobs: &BlobWriter,
    base: Option<&DiskVersion>,
    bytes: &[u8],
) -> DiskTree {
    let length = bytes.len() as u64;
    let base_tree = match base {
        Some(base) => base.tree(),
        None => DiskTree::zero(length).expect("a small disk"),
    };
    let mut builder = TreeBuilder::new(base_tree, repository, length).expect("a builder");
    let mut old = TreeReader::new(base_tree, repository).expect("a reader");
    let mut sink = blobs;
    for (at, leaf_bytes) in bytes.chunks(LEAF_SIZE_BYTES as usize).enumerate() {
        let leaf = LeafIndex(at as u64);
        let mut node = Node::zero(1);
        let mut encoded = Vec::new();
        let old_leaf = old.leaf(leaf).expect("the base's leaf");
        for (slot, block) in leaf_bytes.chunks(BLOCK).enumerate() {
            let mut padded = block.to_vec();
            padded.resize(BLOCK, 0);
            let hash = BlockHash::of(&padded);
            node.set_block(slot, hash);
            if hash != BlockHash::zero()
                && hash != old_leaf.block(slot)
                && !blobs.contains_block(hash).expect("the index")
            {
                encoded.push(
                    blobs
                        .encode(BlobName::Block(hash), &padded)
                        .expect("encoded"),
                );
            }
        }
        assert!(leaf_bytes.len() <= FANOUT * BLOCK_SIZE_BYTES as usize);
        blobs.append(encoded).expect("appended");
        if node.hash(1) != old.leaf_hash(leaf).expect("the base's leaf") {
            builder.replace(leaf, &node, &mut sink).expect("a leaf");
        }
    }
    builder.finish(&mut sink).expect("a tree").0
}

/// Commits a version of one disk called `disk`.
pub fn protect(repository: &Repository, who: &str, bytes: &[u8]) -> RecoveryPoint {
    let session = repository
        .begin(&name(who), &BeginOptions::default())
        .expect("a session");
    let base = session.base().disk("disk").cloned();
    let tree = write_disk(repository, session.blobs(), base.as_ref(), bytes);
    let draft = PointDraft {
        disks: vec![DiskVersion::new("disk", tree)],
        ..PointDraft::default()
    };
    session.commit(draft).expect("a commit")
}

pub fn reader(repository: &Repository, point: &RecoveryPoint) -> VersionReader {
    let session = repository
        .read_session(LeaseKind::Restore, &[point], ReadProtection::Lease)
        .expect("a lease");
    repository
        .open_version(&point.disks[0], &session)
        .expect("a version")
}

pub fn read_all(repository: &Repository, point: &RecoveryPoint) -> Vec<u8> {
    let reader = reader(repository, point);
    let mut bytes = vec![0xAA; usize::try_from(reader.size_bytes()).expect("a small disk")];
    reader.read_at(0, &mut bytes).expect("read");
    bytes
}

pub fn is_zero_tree(tree: &DiskTree) -> bool {
    tree.top == NodeHash::zero(tree.height())
}
