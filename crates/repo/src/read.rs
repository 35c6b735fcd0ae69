//! Reading versions: by position, node by node, and whole disks in bulk.
//!
//! ```text
//!   tree ──► leaf node: 128 block hashes ──► index: (pack, ordinal) each ──► runs of neighbouring frames, gaps allowed
//!                                                         one get_range per run ──► decode, hash ──► place in the buffer
//! ```
//!
//! **Invariants.** Every byte that is returned was hashed against the tree. A blob is looked for wherever it lies: one
//! damaged or vanished pack is survived when another one holds it. Memory is bounded: caches by count, bulk reads by the
//! number of workers.

mod bulk;
mod fetch;
mod nodes;

use std::sync::{Arc, Mutex, PoisonError};

use block::geometry::{BLOCK_SIZE_BYTES, LEAF_SIZE_BYTES};
use block::tree::{Node, NodeSource, TreeReader};
use block::{BlockHash, BlockIndex, Extent, ExtentKind, LeafIndex, NodeHash, ReadAt};

pub use bulk::{BulkRead, BulkStats, LeafBlocks};
pub(crate) use fetch::{Wanted, fetch};
pub(crate) use nodes::NodeCache;

use crate::access::ObjectAccess;
use crate::format::blob::BLOCK_BYTES;
use crate::lease::{Lease, LeaseKind, LeaseRequest, ReadsOnly};
use crate::marks::{PointVisibility, read_marks_of};
use crate::points::{DiskVersion, RecoveryPoint};
use crate::repository::Repository;
use crate::session::tree_root;
use crate::{BlobName, Error, ErrorKind, Result};

/// Decoded blocks that a reader keeps for small reads.
const KEPT_BLOCKS: usize = 32;

/// How often a blob is looked for while packs move.
const LOOKS_MAX: usize = 4;

/// Whether what is read is protected from garbage collection meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReadProtection {
    /// By a lease.
    #[default]
    Lease,
    /// By a lease where one can be written; where the store refuses it because nothing may be written there, not at all.
    /// [`ReadSession::protection`] says which it became.
    LeaseIfWritable,
    /// Not at all. A read can fail when garbage is collected meanwhile; it never gives wrong bytes.
    None,
}

/// What keeps points readable while somebody reads them; ends when it is dropped.
pub struct ReadSession {
    lease: Option<Lease>,
}

impl ReadSession {
    /// What it is protected by: [`ReadProtection::Lease`] or [`ReadProtection::None`].
    pub fn protection(&self) -> ReadProtection {
        match self.lease {
            Some(_) => ReadProtection::Lease,
            None => ReadProtection::None,
        }
    }

    /// Fails once the lease was broken.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`].
    pub fn check(&self) -> Result<()> {
        self.lease.as_ref().map_or(Ok(()), Lease::check)
    }

    /// Shows that this session lives, besides its regular heartbeat.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] once the lease was broken, else what the store answered.
    pub fn beat(&self) -> Result<()> {
        self.lease.as_ref().map_or(Ok(()), Lease::beat)
    }

    /// Ends the protection and says whether that worked.
    ///
    /// # Errors
    /// What the store answered; what is left over falls to the stall rule.
    pub fn finish(mut self) -> Result<()> {
        self.lease.take().map_or(Ok(()), Lease::release)
    }
}

impl Drop for ReadSession {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            // A lease that cannot be removed now falls to the stall rule; `finish` tells why.
            lease.release().ok();
        }
    }
}

impl Repository {
    /// Protects points while they are read.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when one of them is forgotten or gone by now; [`ErrorKind::Denied`] when the store lets no
    /// lease be written and one is asked for.
    pub fn read_session(
        &self,
        kind: LeaseKind,
        points: &[&RecoveryPoint],
        protection: ReadProtection,
    ) -> Result<Arc<ReadSession>> {
        if protection == ReadProtection::None {
            return Ok(Arc::new(ReadSession { lease: None }));
        }
        let vault = self.vault();
        let mut request = LeaseRequest::new(kind);
        for point in points {
            request.points.push(point.key());
            request.roots.extend(point.trees().map(tree_root));
        }
        let access: Arc<dyn ObjectAccess> = Arc::clone(vault) as Arc<dyn ObjectAccess>;
        let terms = self.lease_terms();
        let lease = match Lease::acquire(
            access,
            vault.environment(),
            request,
            &terms,
            Arc::new(ReadsOnly),
        ) {
            Err(error)
                if protection == ReadProtection::LeaseIfWritable
                    && error.kind() == ErrorKind::Denied =>
            {
                return Ok(Arc::new(ReadSession { lease: None }));
            }
            outcome => outcome?,
        };
        // Dropped from here on, it is given back.
        let session = ReadSession { lease: Some(lease) };
        for point in points {
            let marks = read_marks_of(vault.as_ref(), point.key())?;
            if marks.visibility() == PointVisibility::Forgotten {
                session.finish()?;
                let what = format!("{}@{}: forgotten", point.name, point.sequence);
                return Err(Error::new(ErrorKind::NotFound, what));
            }
        }
        Ok(Arc::new(session))
    }

    /// Opens one disk of a point.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the version's root is not its own; what loading the index answered.
    pub fn open_version(
        &self,
        disk: &DiskVersion,
        session: &Arc<ReadSession>,
    ) -> Result<VersionReader> {
        disk.check(&"a version")?;
        self.index()?;
        Ok(VersionReader {
            repository: self.clone(),
            session: Arc::clone(session),
            disk: disk.clone(),
            kept: Mutex::new(Vec::new()),
        })
    }

    /// Reads one blob from wherever it lies.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when no pack holds it, else why the last that does could not be read.
    pub(crate) fn read_blob(&self, name: &BlobName) -> Result<Vec<u8>> {
        let index = self.index()?;
        let mut looks = 1usize;
        loop {
            let epoch = index.epoch();
            match self.try_read_blob(name) {
                // It may have been moved by a repack since the index was loaded. A refresh that was under way may have
                // listed the packs before that, so that one more look is not always enough.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    if looks >= LOOKS_MAX || !index.refresh_after_miss(self.vault(), epoch)? {
                        return Err(error);
                    }
                    looks = looks.saturating_add(1);
                }
                Ok(found) => {
                    if looks > 1 {
                        index.forgive_misses();
                    }
                    return Ok(found);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn try_read_blob(&self, name: &BlobName) -> Result<Vec<u8>> {
        let index = self.index()?;
        let mut last = None;
        for place in index.find_all(name)? {
            let Some(row) = index.pack(place.pack) else {
                continue;
            };
            let read = self
                .pack_cache()
                .open(self.vault(), row.kind, row.id)
                .and_then(|pack| match pack.entry(place.ordinal) {
                    Some(entry) if entry.name == *name => {
                        pack.read_blob(self.vault(), place.ordinal)
                    }
                    _ => Err(Error::corrupt(
                        pack.name(),
                        format_args!("it does not hold {name}"),
                    )),
                });
            match read {
                Ok(plain) => return Ok(plain),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    index.mark_absent(place.pack);
                    self.pack_cache().forget(row.id);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(ErrorKind::NotFound, format!("{name}: in no pack"))))
    }
}

impl NodeSource for Repository {
    fn node(&self, level: u8, hash: NodeHash) -> block::Result<Node> {
        Ok(self.node_cache().node(self, level, hash)?)
    }
}

/// One disk of a point, readable by position.
pub struct VersionReader {
    repository: Repository,
    session: Arc<ReadSession>,
    disk: DiskVersion,
    /// Blocks decoded last, for readers of small pieces; the newest at the end.
    kept: Mutex<Vec<(BlockHash, Arc<Vec<u8>>)>>,
}

impl VersionReader {
    /// What is read.
    pub fn disk(&self) -> &DiskVersion {
        &self.disk
    }

    /// A walker over its tree.
    ///
    /// # Errors
    /// When the tree is longer than any disk may be.
    pub fn tree(&self) -> Result<TreeReader<'_>> {
        Ok(TreeReader::new(self.disk.tree(), self)?)
    }

    /// Reads one block whole; behind the end of the disk it is padded with zeros.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] or [`ErrorKind::Corrupt`] naming the blob or the pack.
    pub fn block(&self, hash: BlockHash) -> Result<Arc<Vec<u8>>> {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = kept.iter().position(|(name, _)| *name == hash) {
                let found = kept.remove(at);
                let plain = Arc::clone(&found.1);
                kept.push(found);
                return Ok(plain);
            }
        }
        let plain = Arc::new(self.repository.read_blob(&BlobName::Block(hash))?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_BLOCKS {
            kept.remove(0);
        }
        kept.push((hash, Arc::clone(&plain)));
        Ok(plain)
    }

    fn read_range(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.session.check()?;
        let mut tree = self.tree()?;
        let mut at = offset;
        let mut rest = buffer;
        let mut wanted = Vec::new();
        while !rest.is_empty() {
            let block = BlockIndex::holding(at);
            let inside = usize::try_from(at.saturating_sub(block.offset())).unwrap_or(0);
            let length = rest.len().min(BLOCK_BYTES.saturating_sub(inside));
            let (piece, after) = rest.split_at_mut(length);
            let hash = tree.block_hash(block)?;
            if hash == BlockHash::zero() {
                piece.fill(0);
            } else if piece.len() == BLOCK_BYTES {
                wanted.push(Wanted {
                    name: BlobName::Block(hash),
                    plain: piece,
                });
            } else {
                let plain = self.block(hash)?;
                let end = inside.saturating_add(length);
                match plain.get(inside..end) {
                    Some(bytes) => piece.copy_from_slice(bytes),
                    None => return Err(Error::corrupt(hash, "shorter than a block")),
                }
            }
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
            rest = after;
        }
        fetch(&self.repository, wanted)
    }

    fn extent(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        let size = self.disk.length_bytes;
        let left = size.saturating_sub(offset).min(limit_bytes);
        if left == 0 {
            let what = format!("extent at {offset} of {size}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut tree = self.tree()?;
        let leaf = LeafIndex::holding(offset);
        let run = tree.run_at(leaf)?;
        let zero_leaf = NodeHash::zero(1);
        let (end, kind) = match run {
            Some(run) if run.hash == zero_leaf => {
                let end = run
                    .first
                    .0
                    .saturating_add(run.count)
                    .saturating_mul(LEAF_SIZE_BYTES);
                (end, ExtentKind::Unallocated)
            }
            _ => {
                // Within one leaf: neighbours that are zero, or neighbours that are not.
                let node = tree.leaf(leaf)?;
                let first = BlockIndex::holding(offset);
                let zero = node.block(first.slot()) == BlockHash::zero();
                let alike = node
                    .blocks()
                    .skip(first.slot())
                    .take_while(|hash| (*hash == BlockHash::zero()) == zero)
                    .count();
                let blocks = u64::try_from(alike).unwrap_or(1);
                let end = first
                    .offset()
                    .saturating_add(blocks.saturating_mul(BLOCK_SIZE_BYTES));
                (
                    end,
                    if zero {
                        ExtentKind::Zero
                    } else {
                        ExtentKind::Data
                    },
                )
            }
        };
        let length_bytes = end.saturating_sub(offset).min(left);
        Ok(Extent {
            offset,
            length_bytes,
            kind,
        })
    }
}

impl NodeSource for VersionReader {
    fn node(&self, level: u8, hash: NodeHash) -> block::Result<Node> {
        self.repository.node(level, hash)
    }
}

impl ReadAt for VersionReader {
    fn size_bytes(&self) -> u64 {
        self.disk.length_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        if offset
            .checked_add(length)
            .is_none_or(|end| end > self.disk.length_bytes)
        {
            let what = format!("{length} bytes at {offset} of {}", self.disk.length_bytes);
            return Err(block::Error::new(block::ErrorKind::OutOfRange, what));
        }
        Ok(self.read_range(offset, buffer)?)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        Ok(self.extent(offset, limit_bytes)?)
    }
}
