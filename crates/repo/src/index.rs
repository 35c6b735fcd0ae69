//! Where each blob lies: hash → (pack, ordinal), in sorted runs on local disk with a small filter in memory.
//!
//! ```text
//!   look up ──► memtable ──► newest run … oldest run             entries of packs that are absent do not count
//!                  │ full        filter ─ fence ─ one page (pread, 4 KiB)
//!                  └──► spilled as a run; many runs are merged into one
//!   refresh: list packs ──► new ones: from index segments ──► else from their own directories ──► else from their frames
//! ```
//!
//! **Invariants.** The truth is the pack directories: everything here can be thrown away and made again. An entry counts
//! only while its pack is listed in the store, for de-duplication also only while the pack is not condemned and has the
//! key that is written with. A run's page is authenticated; a bad one drops the cache, never gives a wrong place.
//! In memory per TiB of unique blocks: about 20 MiB of filter, 1 MiB of fence, 3 MiB of packs.

mod cache;
mod filter;
mod run;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use store::list_all;

use crate::access::ObjectAccess;
use crate::crypto::{self, SecretKey};
use crate::format::segment::{self, PackDirectory};
use crate::format::{MAX_ENVELOPE_TEXT_BYTES, ObjectKind, PackKind};
use crate::gc::records;
use crate::vault::Vault;
use crate::{BlobName, Error, ErrorKind, KeyId, PackId, Result, SegmentId, names, pack};

use cache::CacheDirectory;
use run::{Run, RunWriter};
use table::PackTable;
pub(crate) use table::{PackRow, PackState};

/// Pack directories that are read at once when no segment tells them.
const DIRECTORY_READERS: usize = 8;

/// How the index uses memory and disk.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Where runs are kept between openings; a temporary directory when absent, or when another process uses it.
    pub cache_dir: Option<PathBuf>,
    /// Entries held in memory before they are spilled into a run.
    pub memtable_entries: usize,
    /// Runs that are allowed to stand side by side before they are merged.
    pub max_runs: usize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self {
            cache_dir: None,
            memtable_entries: 1 << 17,
            max_runs: 8,
        }
    }
}

/// What the index holds and costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexStats {
    /// Packs that are listed in the store.
    pub packs: u64,
    /// Entries in runs and in memory, those of absent packs included.
    pub entries: u64,
    /// Runs on local disk.
    pub runs: u64,
    /// Bytes of memory: filters, fences, pack table, memtable.
    pub memory_bytes: u64,
    /// Bytes of local disk.
    pub disk_bytes: u64,
    /// Packs whose directories were read because no segment told them.
    pub directories_read: u64,
    /// Segments that could not be read.
    pub damaged_segments: u64,
    /// Packs that could not be read at all; their blobs count as absent.
    pub damaged_packs: u64,
}

/// Where a blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlobPlace {
    /// Row of the pack table.
    pub(crate) pack: u32,
    /// Which blob of the pack.
    pub(crate) ordinal: u32,
}

/// What the local index calls a blob: a keyed hash of level and hash, so that a stolen cache tells nothing.
pub(crate) type EntryKey = [u8; 16];

/// One entry of the local index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) key: EntryKey,
    pub(crate) place: BlobPlace,
}

/// The index of one open repository.
pub(crate) struct Index {
    hasher: blake3::Hasher,
    options: IndexOptions,
    inner: RwLock<Inner>,
    /// Held over a whole refresh, so that two of them do not load the same packs.
    refreshing: Mutex<()>,
    /// Look-ups that found nothing since one was helped by a refresh.
    misses: AtomicU64,
    /// Refreshes that were finished.
    epoch: AtomicU64,
    /// Whether a pack turned out to be gone since the last refresh began.
    stale: AtomicBool,
}

struct Inner {
    table: PackTable,
    memtable: BTreeSet<Entry>,
    runs: Vec<Run>,
    cache: CacheDirectory,
    stats: IndexStats,
    /// Packs that turned out to be gone, each told once: a store that lists what it does not have is not asked for ever.
    vanished: HashSet<u32>,
}

impl Index {
    /// An index with what the cache directory still holds of it; [`Index::refresh`] makes it whole.
    pub(crate) fn open(vault: &Vault, options: &IndexOptions) -> Result<Self> {
        let key = vault.index_key();
        let random = std::sync::Arc::clone(&vault.environment().random);
        let cache_dir = options.cache_dir.as_deref();
        let cache = CacheDirectory::open(cache_dir, vault.repository_id(), &key, random)?;
        let (table, runs) = cache.load()?;
        let inner = Inner {
            table,
            memtable: BTreeSet::new(),
            runs,
            cache,
            stats: IndexStats::default(),
            vanished: HashSet::new(),
        };
        Ok(Self {
            hasher: blake3::Hasher::new_keyed(entry_hash_key(&key).bytes()),
            options: options.clone(),
            inner: RwLock::new(inner),
            refreshing: Mutex::new(()),
            misses: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            stale: AtomicBool::new(false),
        })
    }

    fn key_of(&self, name: &BlobName) -> EntryKey {
        let mut hasher = self.hasher.clone();
        hasher.update(&[name.level()]);
        hasher.update(name.hash_bytes());
        crypto::first_half(hasher.finalize().as_bytes())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every place of a blob in a listed pack, in no order; condemned packs still can be read.
    pub(crate) fn find_all(&self, name: &BlobName) -> Result<Vec<BlobPlace>> {
        let inner = self.read();
        let mut places = Vec::new();
        inner.candidates(self.key_of(name), &mut |place| {
            if inner
                .table
                .row(place.pack)
                .is_some_and(|row| row.state != PackState::Absent)
            {
                places.push(place);
            }
            Search::GoOn
        })?;
        places.sort_unstable();
        places.dedup();
        Ok(places)
    }

    /// A place that new versions may count on: in a pack that is there, is not condemned, and has this key.
    pub(crate) fn find_for_reuse(
        &self,
        name: &BlobName,
        key_id: KeyId,
    ) -> Result<Option<BlobPlace>> {
        let inner = self.read();
        let mut found = None;
        inner.candidates(self.key_of(name), &mut |place| {
            let good = inner
                .table
                .row(place.pack)
                .is_some_and(|row| row.state == PackState::Present && row.key_id == key_id);
            if good {
                found = Some(place);
                return Search::Stop;
            }
            Search::GoOn
        })?;
        Ok(found)
    }

    /// The pack of a row.
    pub(crate) fn pack(&self, number: u32) -> Option<PackRow> {
        self.read().table.row(number)
    }

    /// Row of a pack.
    pub(crate) fn pack_number(&self, id: PackId) -> Option<u32> {
        self.read().table.number(id)
    }

    /// Every row, absent ones included.
    pub(crate) fn packs(&self) -> Vec<(u32, PackRow)> {
        self.read().table.rows()
    }

    /// Adds a pack that is durable in the store.
    pub(crate) fn add_pack(&self, directory: &PackDirectory) -> Result<u32> {
        let entries: Vec<(u32, BlobName)> = (0u32..)
            .zip(directory.entries.iter().map(|entry| entry.name))
            .collect();
        let row = PackRow {
            id: directory.pack_id,
            kind: directory.kind,
            key_id: directory.key_id,
            size_bytes: directory.stored_size_bytes,
            blobs: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            state: PackState::Present,
        };
        self.add_entries(row, &entries)
    }

    fn add_entries(&self, row: PackRow, entries: &[(u32, BlobName)]) -> Result<u32> {
        let keys: Vec<(u32, EntryKey)> = entries
            .iter()
            .map(|(ordinal, name)| (*ordinal, self.key_of(name)))
            .collect();
        let mut inner = self.write();
        let pack = inner.table.add(row)?;
        for (ordinal, key) in keys {
            inner.memtable.insert(Entry {
                key,
                place: BlobPlace { pack, ordinal },
            });
        }
        if inner.memtable.len() >= self.options.memtable_entries {
            inner.spill(self.options.max_runs)?;
        }
        Ok(pack)
    }

    /// Makes packs count as absent for de-duplication from now on.
    pub(crate) fn condemn(&self, generation: u64, packs: &[PackId]) {
        self.write().table.condemn(generation, packs);
    }

    /// A pack turned out not to be there.
    pub(crate) fn mark_absent(&self, number: u32) {
        let mut inner = self.write();
        inner.table.set_state(number, PackState::Absent);
        if inner.vanished.insert(number) {
            self.stale.store(true, Ordering::SeqCst);
        }
    }

    /// What it holds and costs.
    pub(crate) fn stats(&self) -> IndexStats {
        let inner = self.read();
        let entry_bytes = 40;
        let runs: u64 = inner.runs.iter().map(Run::memory_bytes).sum();
        let memtable = u64::try_from(inner.memtable.len())
            .unwrap_or(0)
            .saturating_mul(entry_bytes);
        IndexStats {
            packs: inner.table.present_count(),
            entries: inner.runs.iter().map(Run::entry_count).sum::<u64>()
                + u64::try_from(inner.memtable.len()).unwrap_or(0),
            runs: u64::try_from(inner.runs.len()).unwrap_or(0),
            memory_bytes: runs + memtable + inner.table.memory_bytes(),
            disk_bytes: inner.runs.iter().map(Run::disk_bytes).sum(),
            ..inner.stats
        }
    }

    /// How often it was brought up to date: what a look-up notes before it begins.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// A blob was in no pack, by a look-up that began at `epoch`. Whether it is worth looking again: the index was brought up
    /// to date meanwhile (a refresh that is under way is waited for), or is now.
    ///
    /// It is when a pack has just turned out to be gone; else at the first miss, the second, the fourth and so on, so that a
    /// version with many lost blobs does not list the whole store for each.
    pub(crate) fn refresh_after_miss(&self, vault: &Vault, epoch: u64) -> Result<bool> {
        let _turn = self.turn();
        if self.epoch() != epoch {
            return Ok(true);
        }
        if self.stale.load(Ordering::SeqCst) {
            self.refresh_in_turn(vault)?;
            return Ok(true);
        }
        let misses = self
            .misses
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        if !misses.is_power_of_two() {
            return Ok(false);
        }
        self.refresh_in_turn(vault)?;
        Ok(true)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A refresh after a miss found the blob: the next miss may be of the same kind.
    pub(crate) fn forgive_misses(&self) {
        self.misses.store(0, Ordering::Relaxed);
    }

    /// Brings the index up to what the store lists now.
    pub(crate) fn refresh(&self, vault: &Vault) -> Result<()> {
        let _turn = self.turn();
        self.refresh_in_turn(vault)
    }

    fn refresh_in_turn(&self, vault: &Vault) -> Result<()> {
        self.stale.store(false, Ordering::SeqCst);
        // Condemned lists come first: a pack that is condemned later is told by the lease's heartbeat.
        let generations = records::read_records(vault)?;
        let mut listed: HashMap<PackId, (PackKind, u64)> = HashMap::new();
        for kind in PackKind::ALL {
            for entry in list_all(vault.store(), &names::packs(kind)?) {
                let entry = entry?;
                if let Some(id) = names::last_id::<PackId>(&entry.name)
                    && names::pack(kind, id)? == entry.name
                {
                    listed.insert(id, (kind, entry.size_bytes));
                }
            }
        }
        {
            let mut inner = self.write();
            inner.table.retain_listed(|id| listed.contains_key(&id));
            for record in &generations {
                if record.verdict.is_some() {
                    inner.table.pardon(record.generation, record.absent_packs());
                }
                inner
                    .table
                    .condemn(record.generation, record.absent_packs());
            }
        }
        let known = self.read().table.present_ids();
        listed.retain(|id, _| !known.contains(id));
        self.load_segments(vault, &mut listed)?;
        self.load_directories(vault, &listed)?;
        self.write().save(self.options.max_runs)?;
        self.epoch.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Takes the packs that segments tell of off `missing`.
    fn load_segments(
        &self,
        vault: &Vault,
        missing: &mut HashMap<PackId, (PackKind, u64)>,
    ) -> Result<()> {
        if missing.is_empty() {
            return Ok(());
        }
        let mut damaged = 0;
        for entry in list_all(vault.store(), &names::segments()?) {
            let name = entry?.name;
            let limit = u64::try_from(MAX_ENVELOPE_TEXT_BYTES).unwrap_or(u64::MAX);
            let read = vault
                .get_sealed(ObjectKind::Segment, &name, limit)
                .and_then(|text| {
                    segment::decode(&text).map_err(|what| Error::corrupt(&name, what))
                });
            let segment = match read {
                Ok(segment) => segment,
                Err(error) => match error.kind() {
                    // Merged into another one since the listing.
                    ErrorKind::NotFound => continue,
                    ErrorKind::Corrupt | ErrorKind::WrongKey | ErrorKind::Unsupported => {
                        damaged += 1;
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            for pack in &segment.packs {
                let fits = pack.cipher == vault.cipher()
                    && missing.get(&pack.pack_id)
                        == Some(&(pack.kind, u64::from(pack.stored_size_bytes)));
                if fits {
                    self.add_pack(pack)?;
                    missing.remove(&pack.pack_id);
                }
            }
            if missing.is_empty() {
                break;
            }
        }
        self.write().stats.damaged_segments = damaged;
        Ok(())
    }

    /// Reads the directories of packs that no segment tells of, several at once: each takes a few round trips.
    fn load_directories(
        &self,
        vault: &Vault,
        missing: &HashMap<PackId, (PackKind, u64)>,
    ) -> Result<()> {
        let queue = Mutex::new(missing.iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let read = AtomicU64::new(0);
        let damaged = AtomicU64::new(0);
        let work = || -> Result<()> {
            while let Some((id, (kind, size_bytes))) = next() {
                match self.load_directory(vault, *kind, *id, *size_bytes) {
                    Ok(()) => read.fetch_add(1, Ordering::Relaxed),
                    Err(error) => match error.kind() {
                        ErrorKind::NotFound => 0,
                        ErrorKind::Corrupt | ErrorKind::WrongKey | ErrorKind::Unsupported => {
                            damaged.fetch_add(1, Ordering::Relaxed)
                        }
                        _ => return Err(error),
                    },
                };
            }
            Ok(())
        };
        let threads = missing.len().div_ceil(8).min(DIRECTORY_READERS);
        let outcome = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            readers.into_iter().try_for_each(|reader| {
                let panicked = |_| Error::new(ErrorKind::Local, "a directory reader panicked");
                reader.join().map_err(panicked)?
            })
        });
        let mut inner = self.write();
        inner.stats.damaged_packs = damaged.into_inner();
        inner.stats.directories_read += read.into_inner();
        outcome
    }

    fn load_directory(
        &self,
        vault: &Vault,
        kind: PackKind,
        id: PackId,
        size_bytes: u64,
    ) -> Result<()> {
        let file = pack::PackFile::open(vault, kind, id)?;
        let entries: Vec<(u32, BlobName)> = file
            .blobs()
            .map(|(ordinal, entry)| (ordinal, entry.name))
            .collect();
        let row = PackRow {
            id,
            kind,
            key_id: file.key_id(),
            size_bytes: u32::try_from(size_bytes).unwrap_or(u32::MAX),
            blobs: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            state: PackState::Present,
        };
        self.add_entries(row, &entries)?;
        Ok(())
    }
}

/// Derives the key that entries are hashed with from the ring's index key, which also seals the pages.
fn entry_hash_key(key: &SecretKey) -> SecretKey {
    crypto::derive("hikae v1 local index entries", &[key.bytes()])
}

/// Whether a search wants more candidates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Search {
    GoOn,
    Stop,
}

impl Inner {
    /// Shows every entry of a key.
    fn candidates(&self, key: EntryKey, show: &mut dyn FnMut(BlobPlace) -> Search) -> Result<()> {
        let first = Entry {
            key,
            place: BlobPlace {
                pack: 0,
                ordinal: 0,
            },
        };
        for entry in self.memtable.range(first..) {
            if entry.key != key {
                break;
            }
            if show(entry.place) == Search::Stop {
                return Ok(());
            }
        }
        for run in self.runs.iter().rev() {
            for entry in run.find(&key)? {
                if show(entry.place) == Search::Stop {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Turns the memtable into a run, and merges runs when there are too many.
    fn spill(&mut self, max_runs: usize) -> Result<()> {
        if !self.memtable.is_empty() {
            let mut writer = self.cache.new_run(self.memtable.len())?;
            for entry in &self.memtable {
                writer.push(*entry)?;
            }
            self.runs.push(writer.finish()?);
            self.memtable.clear();
        }
        if self.runs.len() > max_runs {
            self.merge()?;
        }
        Ok(())
    }

    /// Merges the small runs into one, leaving out entries of packs that are gone for good.
    fn merge(&mut self) -> Result<()> {
        // Runs are merged from the small end: each entry is written again only when the runs below it have grown to its
        // run's size.
        self.runs
            .sort_by_key(|run| std::cmp::Reverse(run.entry_count()));
        let mut first = self.runs.len().saturating_sub(2);
        let mut total: u64 = self.runs.iter().skip(first).map(Run::entry_count).sum();
        while first > 0 {
            let above = self.runs.get(first - 1).map_or(0, Run::entry_count);
            if above > total.saturating_mul(2) && first < 4 {
                break;
            }
            total += above;
            first -= 1;
        }
        let merged = {
            let small = self.runs.get(first..).unwrap_or_default();
            let count = usize::try_from(total).unwrap_or(usize::MAX);
            let writer = self.cache.new_run(count)?;
            let table = &self.table;
            merge_runs(small, writer, &|pack| {
                table
                    .row(pack)
                    .is_some_and(|row| row.state != PackState::Absent)
            })?
        };
        for old in self.runs.drain(first..) {
            old.discard();
        }
        self.runs.push(merged);
        Ok(())
    }

    /// Writes what is in memory to the cache directory, if it is kept.
    fn save(&mut self, max_runs: usize) -> Result<()> {
        if !self.cache.is_kept() {
            return Ok(());
        }
        if !self.memtable.is_empty() || self.table.is_changed() {
            self.spill(max_runs)?;
            self.cache.save(&self.table, &self.runs)?;
            self.table.set_saved();
        }
        Ok(())
    }
}

/// Streams sorted runs into one.
fn merge_runs(runs: &[Run], mut writer: RunWriter, wanted: &dyn Fn(u32) -> bool) -> Result<Run> {
    let mut streams: Vec<_> = runs.iter().map(Run::entries).collect();
    let mut heads: Vec<Option<Entry>> = Vec::with_capacity(streams.len());
    for stream in &mut streams {
        heads.push(stream.next().transpose()?);
    }
    let mut last = None;
    // Few runs: looking at each head is cheaper than a heap.
    while let Some((at, entry)) = heads
        .iter()
        .enumerate()
        .filter_map(|(at, head)| head.map(|entry| (at, entry)))
        .min_by_key(|(_, entry)| *entry)
    {
        if let (Some(stream), Some(head)) = (streams.get_mut(at), heads.get_mut(at)) {
            *head = stream.next().transpose()?;
        }
        if last != Some(entry) && wanted(entry.place.pack) {
            writer.push(entry)?;
            last = Some(entry);
        }
    }
    writer.finish()
}

/// Text of a new segment, sealed and put.
pub(crate) fn put_segment(
    vault: &Vault,
    replaces: Vec<SegmentId>,
    packs: Vec<PackDirectory>,
) -> Result<SegmentId> {
    let id = SegmentId::generate(vault.environment().random.as_ref())?;
    let text = segment::encode(&segment::Segment { replaces, packs });
    vault.put_sealed(ObjectKind::Segment, &names::segment(id)?, &text)?;
    Ok(id)
}
