//! Writing blobs: encode on any thread, append in disk order, seal and put on a small pool.
//!
//! ```text
//!   encode (callers' threads) ──► append ──► open data pack ──full──┐          ┌─ seal: encrypt, decode and hash all
//!                                   │                               ├─ queue ──┤  put
//!                                   └──────► open node pack ──full──┘  (2)     └─ index, recycle the buffer
//!                                             data packs first
//! ```
//!
//! **Invariants.** When a node pack is put, every data pack that was filled or begun before it is durable. A blob that
//! was left out because it is there already lies in a pack that garbage collection was told of, or in one of this
//! writer's own. After the first failure every call fails with it. Memory: one open pack of each kind, and as many
//! packs being sealed as there are sealing threads, at most two.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

use block::geometry::NODE_SIZE_BYTES;
use block::tree::{Node, NodeSink};
use block::{BlockHash, NodeHash};

use crate::access::ObjectAccess;
use crate::compress;
use crate::config::Compression;
use crate::format::segment::PackDirectory;
use crate::index::{Index, put_segment};
use crate::lease::{CondemnedObserver, Lease};
use crate::pack::PackBuilder;
use crate::vault::{Vault, WriteKey};
use crate::{BlobName, Codec, Error, ErrorKind, PackId, PackKind, Result, names};

/// Packs being sealed or waiting for it.
const MAX_IN_FLIGHT: usize = 2;
/// Bytes of directories after which a segment is put without waiting for the end.
const SEGMENT_TARGET_BYTES: usize = 4 << 20;

/// A blob ready to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedBlob {
    pub(crate) name: BlobName,
    pub(crate) codec: Codec,
    pub(crate) bytes: Vec<u8>,
}

impl EncodedBlob {
    /// Its name.
    pub fn name(&self) -> BlobName {
        self.name
    }

    /// Bytes that it takes, apart from its frame.
    pub fn stored_len(&self) -> usize {
        self.bytes.len()
    }
}

/// What a writer has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlobStats {
    /// Blocks put into packs.
    pub blocks_stored: u64,
    /// Nodes put into packs.
    pub nodes_stored: u64,
    /// Blobs that were there already.
    pub blobs_reused: u64,
    /// Plain bytes of what was stored.
    pub plain_bytes: u64,
    /// Bytes of packs put.
    pub stored_bytes: u64,
    /// Packs put.
    pub packs: u64,
}

#[derive(Default)]
struct Counters {
    blocks: AtomicU64,
    nodes: AtomicU64,
    reused: AtomicU64,
    plain_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    packs: AtomicU64,
}

/// What a session has counted on, kept in step with what garbage collection condemns.
pub(crate) struct Reliance {
    index: Arc<Index>,
    /// Look-ups share it; the news of a condemned generation takes it alone.
    gate: RwLock<()>,
    packs: Mutex<HashSet<PackId>>,
}

impl Reliance {
    pub(crate) fn new(index: Arc<Index>) -> Self {
        Self {
            index,
            gate: RwLock::new(()),
            packs: Mutex::new(HashSet::new()),
        }
    }

    /// Whether a blob is there; if so, it is counted on from now on.
    fn rely_on(&self, name: &BlobName, write: &WriteKey) -> Result<bool> {
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = self.index.find_for_reuse(name, write.id)? else {
            return Ok(false);
        };
        let Some(row) = self.index.pack(place.pack) else {
            return Ok(false);
        };
        self.packs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(row.id);
        Ok(true)
    }
}

impl CondemnedObserver for Reliance {
    fn condemned(&self, generation: u64, packs: &[PackId]) -> Vec<PackId> {
        let _closed = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.index.condemn(generation, packs);
        let relied = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        packs
            .iter()
            .copied()
            .filter(|id| relied.contains(id))
            .collect()
    }
}

/// Writes the blobs of one session.
pub struct BlobWriter {
    shared: Arc<Shared>,
    open: Mutex<OpenPacks>,
    threads: Vec<JoinHandle<()>>,
}

struct OpenPacks {
    data: Option<PackBuilder>,
    node: Option<PackBuilder>,
}

/// What sealing threads and callers share.
struct Shared {
    vault: Arc<Vault>,
    lease: Arc<Lease>,
    reliance: Arc<Reliance>,
    write: Arc<WriteKey>,
    compression: Compression,
    counters: Counters,
    /// Blobs in packs that are not durable yet, and the pack.
    pending: Mutex<HashMap<BlobName, PackId>>,
    /// Blobs that are stored again although the index knows a place of them.
    distrusted: Mutex<HashSet<BlobName>>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<PackBuilder>,
    sealing: usize,
    buffers: Vec<Vec<u8>>,
    directories: Vec<PackDirectory>,
    failed: Option<Error>,
    closing: bool,
}

impl Queue {
    fn check(&self) -> Result<()> {
        self.failed
            .as_ref()
            .map_or(Ok(()), |error| Err(error.again()))
    }
}

impl BlobWriter {
    pub(crate) fn new(
        vault: Arc<Vault>,
        lease: Arc<Lease>,
        reliance: Arc<Reliance>,
        compression: Compression,
        threads: usize,
    ) -> Result<Self> {
        let write = Arc::new(vault.write_key()?);
        let shared = Arc::new(Shared {
            vault,
            lease,
            reliance,
            write,
            compression,
            counters: Counters::default(),
            pending: Mutex::new(HashMap::new()),
            distrusted: Mutex::new(HashSet::new()),
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
        });
        let mut writer = Self {
            shared,
            open: Mutex::new(OpenPacks {
                data: None,
                node: None,
            }),
            threads: Vec::new(),
        };
        for _ in 0..threads.clamp(1, MAX_IN_FLIGHT) {
            let shared = Arc::clone(&writer.shared);
            let thread = std::thread::Builder::new()
                .name("hikae-seal".to_owned())
                .spawn(move || shared.work())
                .map_err(|source| Error::local("a sealing thread", source))?;
            writer.threads.push(thread);
        }
        Ok(writer)
    }

    /// Whether a block need not be stored: it is zeros, or it is there and now counted on.
    ///
    /// # Errors
    /// When the local index cannot be read.
    pub fn contains_block(&self, hash: BlockHash) -> Result<bool> {
        self.contains(&BlobName::Block(hash))
    }

    /// As [`BlobWriter::contains_block`], for any blob. That a node is there says nothing about its children.
    ///
    /// # Errors
    /// When the local index cannot be read.
    pub fn contains(&self, name: &BlobName) -> Result<bool> {
        if name.is_zero() || self.shared.pending().contains_key(name) {
            return Ok(true);
        }
        if self.shared.distrusted().contains(name) {
            return Ok(false);
        }
        self.shared.reliance.rely_on(name, &self.shared.write)
    }

    /// Whether this writer was given a blob and has it in hand: it is not in a durable pack yet.
    pub fn is_pending(&self, name: &BlobName) -> bool {
        self.shared.pending().contains_key(name)
    }

    /// A blob that is there turned out to be unreadable: it counts as absent until it was appended once more.
    pub fn distrust(&self, name: BlobName) {
        self.shared.distrusted().insert(name);
    }

    /// Compresses a blob. Any thread; no look-up. The name is the caller's word and is checked before the pack is put.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the length is not the kind's.
    pub fn encode(&self, name: BlobName, plain: &[u8]) -> Result<EncodedBlob> {
        if plain.len() != name.plain_len() {
            let what = format!(
                "{name}: {} bytes instead of {}",
                plain.len(),
                name.plain_len()
            );
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let (codec, bytes) = compress::compress(self.shared.compression, plain)?;
        Ok(EncodedBlob { name, codec, bytes })
    }

    /// Adds blobs to the open packs, in this order; those that are there already are left out. Waits while two packs are
    /// being sealed.
    ///
    /// # Errors
    /// The first failure of this writer, whichever thread it happened on.
    pub fn append(&self, blobs: Vec<EncodedBlob>) -> Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for blob in &blobs {
            self.append_one(&mut open, blob)?;
        }
        Ok(())
    }

    fn append_one(&self, open: &mut OpenPacks, blob: &EncodedBlob) -> Result<()> {
        if self.contains(&blob.name)? {
            self.shared.counters.reused.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let kind = PackKind::holding(&blob.name);
        let target = self.shared.vault.pack_targets().bytes(kind);
        let slot = match kind {
            PackKind::Data => &mut open.data,
            PackKind::Node => &mut open.node,
        };
        if slot.is_none() {
            *slot = Some(self.shared.new_pack(kind)?);
        }
        let Some(pack) = slot else { return Ok(()) };
        pack.push(blob)?;
        self.shared.pending().insert(blob.name, pack.pack_id());
        self.shared.distrusted().remove(&blob.name);
        let counters = &self.shared.counters;
        let count = if kind == PackKind::Data {
            &counters.blocks
        } else {
            &counters.nodes
        };
        count.fetch_add(1, Ordering::Relaxed);
        let plain = u64::try_from(blob.name.plain_len()).unwrap_or(0);
        counters.plain_bytes.fetch_add(plain, Ordering::Relaxed);
        let room = blob.name.plain_len().max(NODE_SIZE_BYTES);
        if pack.size_bytes() >= target || !pack.has_room(room) {
            match kind {
                PackKind::Data => self.close_data(open)?,
                PackKind::Node => self.close_nodes(open)?,
            }
        }
        Ok(())
    }

    fn close_data(&self, open: &mut OpenPacks) -> Result<()> {
        match open.data.take().filter(|pack| !pack.is_empty()) {
            Some(pack) => self.shared.submit(pack),
            None => Ok(()),
        }
    }

    /// Nodes become durable only after the blocks that were appended before them.
    fn close_nodes(&self, open: &mut OpenPacks) -> Result<()> {
        self.close_data(open)?;
        self.shared.wait_idle()?;
        match open.node.take().filter(|pack| !pack.is_empty()) {
            Some(pack) => self.shared.submit(pack),
            None => Ok(()),
        }
    }

    /// Makes everything appended so far durable: data packs, then node packs.
    ///
    /// # Errors
    /// The first failure of this writer.
    pub fn flush(&self) -> Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.close_nodes(&mut open)?;
        self.shared.wait_idle()
    }

    /// Puts what is not indexed yet into a segment. Everything must be flushed.
    pub(crate) fn put_segment(&self) -> Result<()> {
        let packs = std::mem::take(&mut self.shared.queue().directories);
        if !packs.is_empty() {
            put_segment(&self.shared.vault, Vec::new(), packs)?;
        }
        Ok(())
    }

    /// What was done so far.
    pub fn stats(&self) -> BlobStats {
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BlobStats {
            blocks_stored: get(&counters.blocks),
            nodes_stored: get(&counters.nodes),
            blobs_reused: get(&counters.reused),
            plain_bytes: get(&counters.plain_bytes),
            stored_bytes: get(&counters.stored_bytes),
            packs: get(&counters.packs),
        }
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.queue();
            queue.closing = true;
            // Nobody waits for packs that were not flushed: they belong to no point.
            queue.waiting.clear();
        }
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of the thread was kept as a failure and told to whoever flushed.
            thread.join().ok();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<BlobName, PackId>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn distrusted(&self) -> MutexGuard<'_, HashSet<BlobName>> {
        self.distrusted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn new_pack(&self, kind: PackKind) -> Result<PackBuilder> {
        let id = self.lease.next_pack_id()?;
        let buffer = self.queue().buffers.pop().unwrap_or_default();
        let random = self.vault.environment().random.as_ref();
        PackBuilder::new(kind, id, Arc::clone(&self.write), random, buffer)
    }

    /// Hands a full pack to the sealing threads, waiting for room.
    fn submit(&self, pack: PackBuilder) -> Result<()> {
        let mut queue = self.queue();
        loop {
            queue.check()?;
            if queue.waiting.len() + queue.sealing < MAX_IN_FLIGHT {
                break;
            }
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        queue.waiting.push(pack);
        drop(queue);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until every pack handed over is durable.
    fn wait_idle(&self) -> Result<()> {
        let mut queue = self.queue();
        loop {
            queue.check()?;
            if queue.waiting.is_empty() && queue.sealing == 0 {
                return Ok(());
            }
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A sealing thread.
    fn work(&self) {
        let mut queue = self.queue();
        loop {
            if queue.waiting.is_empty() {
                if queue.closing {
                    return;
                }
                queue = self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let pack = queue.waiting.remove(0);
            queue.sealing += 1;
            drop(queue);
            let sealed = std::panic::AssertUnwindSafe(|| self.seal_and_put(pack));
            let outcome = std::panic::catch_unwind(sealed)
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Local, "a sealing thread panicked")));
            queue = self.queue();
            queue.sealing -= 1;
            match outcome {
                Ok((directory, buffer)) => {
                    queue.directories.push(directory);
                    queue.buffers.push(buffer);
                }
                Err(error) => queue.failed = queue.failed.take().or(Some(error)),
            }
            self.changed.notify_all();
        }
    }

    fn seal_and_put(&self, pack: PackBuilder) -> Result<(PackDirectory, Vec<u8>)> {
        let sealed = pack.seal()?;
        self.lease.check()?;
        let directory = sealed.directory;
        let name = names::pack(directory.kind, directory.pack_id)?;
        self.vault.store().put_new(&name, &sealed.bytes)?;
        self.reliance.index.add_pack(&directory)?;
        let mut pending = self.pending();
        for entry in &directory.entries {
            if pending.get(&entry.name) == Some(&directory.pack_id) {
                pending.remove(&entry.name);
            }
        }
        drop(pending);
        let size = u64::try_from(sealed.bytes.len()).unwrap_or(0);
        self.counters
            .stored_bytes
            .fetch_add(size, Ordering::Relaxed);
        self.counters.packs.fetch_add(1, Ordering::Relaxed);
        self.put_early_segment()?;
        Ok((directory, sealed.bytes))
    }

    /// A long session does not keep all its directories in memory.
    fn put_early_segment(&self) -> Result<()> {
        let ready = {
            let mut queue = self.queue();
            let bytes: usize = queue
                .directories
                .iter()
                .map(PackDirectory::encoded_bytes)
                .sum();
            if bytes < SEGMENT_TARGET_BYTES {
                Vec::new()
            } else {
                std::mem::take(&mut queue.directories)
            }
        };
        if !ready.is_empty() {
            put_segment(&self.vault, Vec::new(), ready)?;
        }
        Ok(())
    }
}

/// New nodes of a tree go where blobs go.
impl NodeSink for &BlobWriter {
    fn put_node(&mut self, level: u8, hash: NodeHash, node: &Node) -> block::Result<()> {
        let blob = self.encode(BlobName::Node { level, hash }, node.as_bytes())?;
        Ok(self.append(vec![blob])?)
    }
}
