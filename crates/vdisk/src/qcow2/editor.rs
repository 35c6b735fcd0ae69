//! Writing guest bytes: what the builder and the in-place writer share.
//!
//! ```text
//! write_at ─► batches of 4 MiB ─► per cluster: owned data          write in place
//!                                              nothing, zeros      new cluster, filled from the parent where the write
//!                                              shared, compressed    leaves gaps; the old one is released
//!                                              all zeros           no cluster at all
//! sync     ─► data ─flush─► raised counters ─flush─► L2 ─flush─► L1 ─flush─► lowered counters (next sync writes them)
//! ```
//!
//! **Invariants.** On disk, a table entry never refers to a cluster that is not counted or whose bytes are not durable, and a
//! cluster is never given out again while an entry on disk may refer to it: a crash leaks clusters at worst. After a failed
//! write nothing more is written: the file stays as the last sync left it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{Extent, ExtentKind, ReadAt, WriteAt};

use super::entry::{self, Cluster, OWNED, ZERO};
use super::header::Qcow2Header;
use super::reader::{check_range, load_compressed};
use super::space::Space;
use super::tables::Tables;
use crate::field::{bytes, index, is_zero};
use crate::{Error, ErrorKind, Result};

/// Guest bytes handled under one hold of the lock.
const BATCH_BYTES: u64 = 4 << 20;

pub(super) struct State<S> {
    pub tables: Tables,
    pub space: S,
    /// A write failed: what is in memory is not to be trusted any more.
    failed: bool,
}

/// An image being written.
pub(super) struct Editor<S> {
    pub file: Arc<dyn WriteAt>,
    pub parent: Option<Arc<dyn ReadAt>>,
    pub header: Qcow2Header,
    state: Mutex<State<S>>,
}

/// Why a cluster could not be placed.
enum Stop {
    Error(Error),
    /// Tables have to be written first.
    Sync,
    /// The counter table is full.
    Grow,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<block::Error> for Stop {
    fn from(error: block::Error) -> Self {
        Self::Error(error.into())
    }
}

/// One piece of a write: at most one cluster.
#[derive(Clone, Copy)]
struct Piece {
    guest: u64,
    length: u64,
    is_zero: bool,
}

/// Pieces that have their place and wait to be written, merged where they adjoin.
struct Batch<'a> {
    offset: u64,
    buffer: &'a [u8],
    plan: Vec<(u64, Range<usize>)>,
}

impl Batch<'_> {
    fn add(&mut self, piece: Piece, host: u64) {
        let from = index(piece.guest.saturating_sub(self.offset));
        let to = from.saturating_add(index(piece.length));
        match self.plan.last_mut() {
            Some((at, range))
                if range.end == from && at.saturating_add(bytes(range.len())) == host =>
            {
                range.end = to;
            }
            _ => self.plan.push((host, from..to)),
        }
    }

    fn execute(&mut self, file: &dyn WriteAt) -> Result<()> {
        for (host, range) in self.plan.drain(..) {
            file.write_at(host, self.buffer.get(range).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// How the counter table grows; only the in-place writer can.
pub(super) type Grow<S> = fn(&Editor<S>, &mut State<S>) -> Result<()>;

impl<S: Space> Editor<S> {
    pub fn new(
        file: Arc<dyn WriteAt>,
        parent: Option<Arc<dyn ReadAt>>,
        header: Qcow2Header,
        tables: Tables,
        space: S,
    ) -> Self {
        let state = Mutex::new(State {
            tables,
            space,
            failed: false,
        });
        Self {
            file,
            parent,
            header,
            state,
        }
    }

    /// The state, unless an earlier write failed.
    pub fn lock(&self) -> Result<MutexGuard<'_, State<S>>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failed {
            return Err(Error::new(
                ErrorKind::Io,
                "qcow2: an earlier write failed; nothing more is written",
            ));
        }
        Ok(state)
    }

    fn split(&self, guest: u64) -> (u64, u64) {
        let cluster = self.header.cluster_of(guest);
        let per_table = self.header.l2_entries().max(1);
        (
            cluster.checked_div(per_table).unwrap_or(0),
            cluster.checked_rem(per_table).unwrap_or(0),
        )
    }

    fn reader(&self) -> &dyn ReadAt {
        &*self.file
    }

    /// The entry of a guest cluster.
    fn entry(&self, state: &mut State<S>, guest: u64) -> std::result::Result<u64, Stop> {
        let (table, slot) = self.split(guest);
        if state.tables.l1(table) & entry::OFFSET_MASK == 0 {
            return Ok(0);
        }
        self.load(state, table)?;
        Ok(state.tables.get(table, slot))
    }

    fn load(&self, state: &mut State<S>, table: u64) -> std::result::Result<(), Stop> {
        if !state.tables.holds(table) {
            if !state.tables.make_room() {
                return Err(Stop::Sync);
            }
            state.tables.fetch(&self.header, self.reader(), table)?;
        }
        Ok(())
    }

    fn allocate(&self, state: &mut State<S>) -> std::result::Result<u64, Stop> {
        state.space.allocate(&*self.file)?.ok_or(Stop::Grow)
    }

    /// Sets the entry of a guest cluster, in a table that is this state's own.
    fn set_entry(
        &self,
        state: &mut State<S>,
        guest: u64,
        word: u64,
    ) -> std::result::Result<(), Stop> {
        let (table, slot) = self.split(guest);
        let l1 = state.tables.l1(table);
        let cluster = self.header.cluster_bytes();
        if l1 & entry::OFFSET_MASK == 0 {
            if !state.tables.make_room() {
                return Err(Stop::Sync);
            }
            let offset = self.allocate(state)?;
            state
                .tables
                .insert(table, vec![0; index(cluster / 8)], true);
            state.tables.set_l1(table, offset | OWNED);
        } else {
            self.load(state, table)?;
            if l1 & OWNED == 0 {
                let copy = state.tables.copy_of(table).unwrap_or_default();
                let offset = self.allocate(state)?;
                state.tables.insert(table, copy, true);
                state.tables.set_l1(table, offset | OWNED);
                state.space.release(l1 & entry::OFFSET_MASK, cluster);
            }
        }
        Ok(state.tables.set(table, slot, word)?)
    }

    /// The entry that reads as zeros, where there is one.
    fn zero_word(&self) -> Option<u64> {
        match (&self.header.backing, self.header.version) {
            (None, _) => Some(0),
            (Some(_), 3..) => Some(ZERO),
            (Some(_), _) => None,
        }
    }

    /// Bytes of a guest cluster that the entry does not hold itself: the parent's, or zeros.
    fn read_parent(&self, guest: u64, buffer: &mut [u8]) -> Result<()> {
        match (&self.parent, &self.header.backing) {
            (Some(parent), _) => Ok(block::read_padded(parent, guest, buffer)?),
            (None, None) => {
                buffer.fill(0);
                Ok(())
            }
            (None, Some(backing)) => Err(Error::new(
                ErrorKind::ParentNotFound,
                format!(
                    "qcow2 guest offset {guest:#x} lies in the parent {}",
                    backing.path
                ),
            )),
        }
    }

    /// The whole content of a guest cluster.
    fn content(&self, cluster: Cluster, start: u64) -> Result<Vec<u8>> {
        let mut content = vec![0u8; index(self.header.cluster_bytes())];
        match cluster {
            Cluster::Unallocated => self.read_parent(start, &mut content)?,
            Cluster::Zero { .. } => {}
            Cluster::Data { host, .. } => block::read_padded(&self.file, host, &mut content)?,
            Cluster::Compressed { offset, length } => {
                return load_compressed(&self.header, self.reader(), (offset, length), start);
            }
            Cluster::Split { .. } => return Err(split_refused()),
        }
        Ok(content)
    }

    /// Fills what a piece leaves of the cluster at `host` with the cluster's old content.
    fn fill(&self, host: u64, old: Cluster, piece: Piece) -> Result<()> {
        let start = piece.guest & !self.header.cluster_mask();
        let within = index(piece.guest.saturating_sub(start));
        let behind = within.saturating_add(index(piece.length));
        let reads_zero = matches!(old, Cluster::Zero { .. })
            || (old == Cluster::Unallocated && self.header.backing.is_none());
        if piece.length == self.header.cluster_bytes() || (S::FRESH && reads_zero) {
            return Ok(());
        }
        let content = self.content(old, start)?;
        for range in [0..within, behind..content.len()] {
            let at = host.saturating_add(bytes(range.start));
            if let Some(part) = content.get(range).filter(|part| !part.is_empty()) {
                self.file.write_at(at, part)?;
            }
        }
        Ok(())
    }

    /// Gives a new cluster to a guest cluster and fills the gaps of the piece.
    fn replace(
        &self,
        state: &mut State<S>,
        old: Cluster,
        piece: Piece,
    ) -> std::result::Result<u64, Stop> {
        // The table first: were the cluster taken first, a stop for the table would leave it counted and unused.
        let word = self.entry(state, piece.guest)?;
        self.set_entry(state, piece.guest, word)?;
        let host = self.allocate(state)?;
        if let Err(error) = self.fill(host, old, piece) {
            state.space.release(host, self.header.cluster_bytes());
            return Err(error.into());
        }
        self.set_entry(state, piece.guest, host | OWNED)?;
        self.release(state, old);
        Ok(host)
    }

    fn release(&self, state: &mut State<S>, old: Cluster) {
        match old {
            Cluster::Data { host, .. } | Cluster::Zero { host, .. } if host != 0 => {
                state.space.release(host, self.header.cluster_bytes());
            }
            Cluster::Compressed { offset, length } => state.space.release(offset, length),
            _ => {}
        }
    }

    /// Where the bytes of a piece go, once tables say so; `None` when nothing has to be written.
    fn place(&self, state: &mut State<S>, piece: Piece) -> std::result::Result<Option<u64>, Stop> {
        let start = piece.guest & !self.header.cluster_mask();
        let within = piece.guest.saturating_sub(start);
        // What lies behind the end of the disk is nobody's.
        let is_full = within == 0
            && (piece.length == self.header.cluster_bytes()
                || piece.guest.saturating_add(piece.length) == self.header.size_bytes);
        let old = entry::decode(&self.header, self.entry(state, start)?, None, start)?;
        if state.space.is_congested() {
            return Err(Stop::Sync);
        }
        if piece.is_zero {
            match old {
                Cluster::Zero { .. } => return Ok(None),
                Cluster::Unallocated if self.header.backing.is_none() => return Ok(None),
                _ => {}
            }
            if let Some(word) = self.zero_word().filter(|_| is_full) {
                self.set_entry(state, start, word)?;
                self.release(state, old);
                return Ok(None);
            }
        }
        let host = match old {
            Cluster::Data { host, owned: true } => host,
            Cluster::Zero { host, owned: true } if host != 0 => {
                let word = self.entry(state, start)?;
                self.set_entry(state, start, word)?;
                // Kept space may hold anything, also in a new file.
                let zeros = vec![0u8; index(self.header.cluster_bytes())];
                self.file.write_at(host, &zeros)?;
                self.set_entry(state, start, host | OWNED)?;
                host
            }
            Cluster::Split { .. } => return Err(split_refused().into()),
            old => self.replace(
                state,
                old,
                Piece {
                    guest: piece.guest,
                    ..piece
                },
            )?,
        };
        Ok(Some(host.saturating_add(within)))
    }

    /// Writes guest bytes. `grow` makes room in a full counter table.
    pub fn write(&self, offset: u64, buffer: &[u8], grow: Grow<S>) -> Result<()> {
        check_range(self.header.size_bytes, offset, bytes(buffer.len()))?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let to_batch_end = BATCH_BYTES.saturating_sub(at & BATCH_BYTES.saturating_sub(1));
            let (head, tail) = rest.split_at(index(to_batch_end).min(rest.len()));
            self.write_batch(at, head, grow)?;
            at = at.saturating_add(bytes(head.len()));
            rest = tail;
        }
        Ok(())
    }

    fn pieces(&self, offset: u64, buffer: &[u8]) -> Vec<Piece> {
        let cluster = self.header.cluster_bytes();
        let mut pieces = Vec::new();
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let room = cluster.saturating_sub(at & self.header.cluster_mask());
            let (head, tail) = rest.split_at(index(room).min(rest.len()));
            let length = bytes(head.len());
            pieces.push(Piece {
                guest: at,
                length,
                is_zero: is_zero(head),
            });
            at = at.saturating_add(length);
            rest = tail;
        }
        pieces
    }

    fn write_batch(&self, offset: u64, buffer: &[u8], grow: Grow<S>) -> Result<()> {
        let pieces = self.pieces(offset, buffer);
        let mut batch = Batch {
            offset,
            buffer,
            plan: Vec::new(),
        };
        let mut state = self.lock()?;
        let mut outcome = Ok(());
        for piece in pieces {
            match self.place_or_make_room(&mut state, piece, grow, &mut batch) {
                Ok(Some(host)) => batch.add(piece, host),
                Ok(None) => {}
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        if S::FRESH {
            drop(state);
            let written = batch.execute(&*self.file);
            if written.is_err() {
                self.state
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .failed = true;
            }
            return outcome.and(written);
        }
        // Under the lock: until its bytes are written, no table may go to disk that refers to a used cluster.
        let written = batch.execute(&*self.file);
        state.failed |= written.is_err();
        outcome.and(written)
    }

    fn place_or_make_room(
        &self,
        state: &mut State<S>,
        piece: Piece,
        grow: Grow<S>,
        batch: &mut Batch<'_>,
    ) -> Result<Option<u64>> {
        // Each round makes the room that was missing; a piece needs a table and a cluster at most.
        for _ in 0..8 {
            let stop = match self.place(state, piece) {
                Ok(placed) => return Ok(placed),
                Err(Stop::Error(error)) => return Err(error),
                Err(stop) => stop,
            };
            // Tables on disk may refer only to bytes that were written.
            if let Err(error) = batch.execute(&*self.file) {
                state.failed = true;
                return Err(error);
            }
            self.sync(state)?;
            if matches!(stop, Stop::Grow) {
                grow(self, state)?;
            }
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "qcow2: the file has no room for another cluster",
        ))
    }

    /// Sets the entry of a whole guest cluster whose bytes are written already.
    pub fn assign(&self, guest: u64, word: u64) -> Result<()> {
        let mut state = self.lock()?;
        let old = self.look(&mut state, guest)?;
        for _ in 0..8 {
            match self.set_entry(&mut state, guest, word) {
                Ok(()) => {
                    self.release(&mut state, old);
                    return Ok(());
                }
                Err(Stop::Error(error)) => return Err(error),
                Err(_) => self.sync(&mut state)?,
            }
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "qcow2: no room for another table",
        ))
    }

    /// Makes a range read as zeros.
    pub fn zero(&self, offset: u64, length: u64, grow: Grow<S>) -> Result<()> {
        check_range(self.header.size_bytes, offset, length)?;
        let end = offset.saturating_add(length);
        let cluster = self.header.cluster_bytes();
        let zeros = vec![0u8; index(cluster.min(length))];
        let mut at = offset;
        while at < end {
            if let Some(next) = self.skip_empty(at)? {
                at = next;
                continue;
            }
            let room = cluster.saturating_sub(at & self.header.cluster_mask());
            let piece = room.min(end.saturating_sub(at));
            self.write_batch(at, zeros.get(..index(piece)).unwrap_or_default(), grow)?;
            at = at.saturating_add(piece);
        }
        Ok(())
    }

    /// Behind the L2 table that holds `at`, if there is no table and nothing would show through.
    fn skip_empty(&self, at: u64) -> Result<Option<u64>> {
        if self.header.backing.is_some() {
            return Ok(None);
        }
        let (table, _) = self.split(at);
        let is_empty = self.lock()?.tables.l1(table) & entry::OFFSET_MASK == 0;
        let next = table
            .saturating_add(1)
            .saturating_mul(self.header.bytes_per_l2());
        Ok(is_empty.then_some(next))
    }

    /// Writes the tables, in the order that keeps every crash harmless. For an image in use everything is durable afterwards.
    pub fn sync(&self, state: &mut State<S>) -> Result<()> {
        let synced = self.sync_in_order(state);
        if synced.is_err() {
            state.failed = true;
        }
        synced
    }

    fn sync_in_order(&self, state: &mut State<S>) -> Result<()> {
        if S::FRESH {
            // An image that is not finished has no order to keep; its owner flushes when asked to.
            state.tables.write_l2(&*self.file)?;
            return state.tables.write_l1(&self.header, &*self.file);
        }
        self.file.flush()?;
        state.space.publish(&*self.file)?;
        if state.tables.has_dirty_l2() {
            self.file.flush()?;
            state.tables.write_l2(&*self.file)?;
        }
        if state.tables.has_dirty_l1() {
            self.file.flush()?;
            state.tables.write_l1(&self.header, &*self.file)?;
        }
        self.file.flush()?;
        state.space.settle(&*self.file)
    }

    /// The cluster at `guest` as tables say; tables are written when memory is full of changed ones.
    fn look(&self, state: &mut State<S>, guest: u64) -> Result<Cluster> {
        let word = match self.entry(state, guest) {
            Err(Stop::Error(error)) => return Err(error),
            Err(_) => {
                self.sync(state)?;
                match self.entry(state, guest) {
                    Ok(word) => word,
                    Err(Stop::Error(error)) => return Err(error),
                    Err(_) => return Err(Error::corrupt("qcow2: no room for a table")),
                }
            }
            Ok(word) => word,
        };
        entry::decode(&self.header, word, None, guest)
    }

    /// Reads guest bytes as they are now.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self.header.size_bytes, offset, bytes(buffer.len()))?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let start = at & !self.header.cluster_mask();
            let within = at.saturating_sub(start);
            let room = self.header.cluster_bytes().saturating_sub(within);
            let (head, tail) = rest.split_at_mut(index(room).min(rest.len()));
            let mut state = self.lock()?;
            match self.look(&mut state, start)? {
                Cluster::Unallocated => self.read_parent(at, head)?,
                Cluster::Zero { .. } => head.fill(0),
                Cluster::Data { host, .. } => {
                    block::read_padded(&self.file, host.saturating_add(within), head)?;
                }
                compressed => {
                    let content = self.content(compressed, start)?;
                    let from = index(within);
                    let part = content
                        .get(from..from.saturating_add(head.len()))
                        .unwrap_or_default();
                    head.copy_from_slice(part);
                }
            }
            drop(state);
            at = at.saturating_add(bytes(head.len()));
            rest = tail;
        }
        Ok(())
    }

    /// The run of one kind at `offset`, looking at no more than one table.
    pub fn extent(&self, offset: u64, limit: u64) -> Result<Extent> {
        let left = self.header.size_bytes.saturating_sub(offset);
        if left == 0 || limit == 0 {
            check_range(self.header.size_bytes, offset, 1)?;
            return Err(Error::new(
                ErrorKind::OutOfRange,
                "qcow2: an extent of no length",
            ));
        }
        let (table, _) = self.split(offset);
        let table_end = table
            .saturating_add(1)
            .saturating_mul(self.header.bytes_per_l2());
        let end = offset.saturating_add(left.min(limit)).min(table_end);
        let mut state = self.lock()?;
        let first = self.kind(&mut state, offset)?;
        let mut at =
            (offset & !self.header.cluster_mask()).saturating_add(self.header.cluster_bytes());
        while at < end && self.kind(&mut state, at)? == first {
            at = at.saturating_add(self.header.cluster_bytes());
        }
        drop(state);
        let length = at.min(end).saturating_sub(offset);
        match (first, &self.parent) {
            (ExtentKind::InParent, Some(parent)) if offset < parent.size_bytes() => {
                Ok(parent.extent_at(offset, length)?)
            }
            (ExtentKind::InParent, Some(_)) => Ok(Extent {
                offset,
                length_bytes: length,
                kind: ExtentKind::Unallocated,
            }),
            (kind, _) => Ok(Extent {
                offset,
                length_bytes: length,
                kind,
            }),
        }
    }

    fn kind(&self, state: &mut State<S>, guest: u64) -> Result<ExtentKind> {
        Ok(
            match self.look(state, guest & !self.header.cluster_mask())? {
                Cluster::Unallocated if self.header.backing.is_some() => ExtentKind::InParent,
                Cluster::Unallocated => ExtentKind::Unallocated,
                Cluster::Zero { .. } => ExtentKind::Zero,
                _ => ExtentKind::Data,
            },
        )
    }
}

fn split_refused() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "qcow2: writing to an image with extended L2 entries",
    )
}
