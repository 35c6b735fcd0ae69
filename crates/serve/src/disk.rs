//! A disk that is served: read through the cache, ahead of who reads in order, and closed at the end.
//!
//! ```text
//!   read ─► is it still served? ─► extent: zeros ──────────────────────────────► filled
//!                                    └─ data ─┬─ large and cold ───────────────► straight from the source
//!                                             └─ else: held │ awaited │ claimed ─► from blocks
//! ```
//!
//! **Invariants.** Every read first asks the source what lies there, also for blocks that are held: a source that refuses is
//! obeyed at once. After [`CachedDisk::close`] has returned the source is never used again. Memory of one read: 4 MiB besides
//! the caller's buffer.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use block::{BLOCK_SIZE_BYTES, Error, ErrorKind, Extent, ExtentKind, ReadAt, Result};

use crate::ahead::{Pace, Streams};
use crate::cache::{Claim, Look, ReadCache};

/// Bytes that are read through the cache in one go.
const PIECE_BYTES: u64 = 4 << 20;
/// Bytes that one job reads ahead.
const AHEAD_PIECE_BYTES: u64 = 1 << 20;
/// From here on a read that nobody reads ahead of passes the cache by.
const LARGE_BYTES: usize = 128 << 10;
/// With so many reads under way the reader keeps itself busy, and reading ahead would only be in its way.
const READS_BUSY: usize = 4;

/// A source behind a cache; many may read at once.
pub struct CachedDisk {
    source: RwLock<Option<Arc<dyn ReadAt>>>,
    size_bytes: u64,
    cache: Arc<ReadCache>,
    number: u64,
    streams: Mutex<Streams>,
    reads: AtomicUsize,
    this: Weak<Self>,
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn to_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// Blocks that a range of bytes touches.
fn blocks_of(offset: u64, length_bytes: u64) -> Range<u64> {
    offset / BLOCK_SIZE_BYTES
        ..offset
            .saturating_add(length_bytes)
            .div_ceil(BLOCK_SIZE_BYTES)
}

/// Copies what a piece of disk from `offset` on has in common with a block.
fn copy_common(piece: &mut [u8], offset: u64, block: u64, bytes: &[u8]) {
    let start = block.saturating_mul(BLOCK_SIZE_BYTES);
    let into = to_usize(start.saturating_sub(offset));
    let from = to_usize(offset.saturating_sub(start));
    let (Some(target), Some(source)) = (piece.get_mut(into..), bytes.get(from..)) else {
        return;
    };
    let length = target.len().min(source.len());
    if let (Some(target), Some(source)) = (target.get_mut(..length), source.get(..length)) {
        target.copy_from_slice(source);
    }
}

/// Counts a read while it lasts.
struct Reading<'a>(&'a AtomicUsize);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CachedDisk {
    /// Puts a source behind a cache.
    pub fn new(source: Arc<dyn ReadAt>, cache: &Arc<ReadCache>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            size_bytes: source.size_bytes(),
            source: RwLock::new(Some(source)),
            cache: Arc::clone(cache),
            number: cache.next_disk(),
            streams: Mutex::default(),
            reads: AtomicUsize::new(0),
            this: Weak::clone(this),
        })
    }

    /// Lets the source go, once nobody reads any more. Whoever still comes is refused.
    pub fn close(&self) {
        let source = {
            let mut source = self.source.write().unwrap_or_else(PoisonError::into_inner);
            source.take()
        };
        drop(source);
        self.cache.forget(self.number);
    }

    fn with_source<T>(&self, act: impl FnOnce(&dyn ReadAt) -> Result<T>) -> Result<T> {
        let source = self.source.read().unwrap_or_else(PoisonError::into_inner);
        match source.as_ref() {
            Some(source) => act(source.as_ref()),
            None => Err(Error::new(
                ErrorKind::Cancelled,
                "the disk is no longer served",
            )),
        }
    }

    /// Reads a range into the cache, later and only if there is time.
    pub fn read_ahead(&self, range: Range<u64>) {
        let mut at = range.start;
        let end = range.end.min(self.size_bytes);
        while at < end {
            // Pieces end where blocks do.
            let next = at
                .saturating_add(AHEAD_PIECE_BYTES)
                .checked_next_multiple_of(BLOCK_SIZE_BYTES)
                .unwrap_or(end)
                .min(end);
            let this = Weak::clone(&self.this);
            let piece = at..next;
            let job = move || {
                let Some(disk) = this.upgrade() else { return };
                // Whoever asks for what cannot be read is told then.
                disk.with_source(|source| disk.fill(source, piece)).ok();
            };
            if !self.cache.pool().try_run(job) {
                return;
            }
            at = next;
        }
    }

    /// Reads what of a range is data and neither held nor being read.
    fn fill(&self, source: &dyn ReadAt, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let extent = checked_extent(source, at, range.end.saturating_sub(at))?;
            if is_data(extent.kind) {
                let blocks = blocks_of(at, extent.length_bytes);
                let looks = self.cache.look(self.number, blocks.clone());
                let claims = Claim::runs(&self.cache, self.number, blocks.start, &looks);
                self.cache.count(&looks, true);
                for claim in claims {
                    self.load(source, claim, &mut |_, _| {})?;
                }
            }
            at = extent.end();
        }
        Ok(())
    }

    /// Reads claimed blocks, gives each to `sink`, and publishes it.
    fn load(
        &self,
        source: &dyn ReadAt,
        mut claim: Claim<'_>,
        sink: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<()> {
        let blocks = claim.blocks();
        let start = blocks.start.saturating_mul(BLOCK_SIZE_BYTES);
        let end = blocks
            .end
            .saturating_mul(BLOCK_SIZE_BYTES)
            .min(self.size_bytes);
        let mut bytes = vec![0; to_usize(end.saturating_sub(start))];
        source.read_at(start, &mut bytes)?;
        for (block, bytes) in blocks.zip(bytes.chunks(to_usize(BLOCK_SIZE_BYTES))) {
            sink(block, bytes);
            claim.publish_next(bytes);
        }
        Ok(())
    }

    /// Reads a range that holds data, of at most [`PIECE_BYTES`].
    fn read_data(&self, source: &dyn ReadAt, offset: u64, piece: &mut [u8]) -> Result<()> {
        let blocks = blocks_of(offset, to_u64(piece.len()));
        let looks = self.cache.look(self.number, blocks.clone());
        // All claims are taken over before anything can fail, and are read before anybody is waited for.
        let claims = Claim::runs(&self.cache, self.number, blocks.start, &looks);
        self.cache.count(&looks, false);
        for claim in claims {
            let mut place = |block: u64, bytes: &[u8]| copy_common(piece, offset, block, bytes);
            self.load(source, claim, &mut place)?;
        }
        for (block, look) in blocks.zip(looks) {
            match look {
                Look::Claimed => {}
                Look::Held(bytes) => copy_common(piece, offset, block, &bytes),
                Look::Loading => match self.cache.wait_for(self.number, block) {
                    Some(bytes) => copy_common(piece, offset, block, &bytes),
                    None => self.read_alone(source, offset, piece, block)?,
                },
            }
        }
        Ok(())
    }

    /// Reads the part of a piece that lies in one block, past the cache.
    fn read_alone(
        &self,
        source: &dyn ReadAt,
        offset: u64,
        piece: &mut [u8],
        block: u64,
    ) -> Result<()> {
        let start = block.saturating_mul(BLOCK_SIZE_BYTES);
        let end = start
            .saturating_add(BLOCK_SIZE_BYTES)
            .min(offset.saturating_add(to_u64(piece.len())));
        let begin = start.max(offset);
        let from = to_usize(begin.saturating_sub(offset));
        let to = to_usize(end.saturating_sub(offset));
        match piece.get_mut(from..to) {
            Some(part) => source.read_at(begin, part),
            None => Ok(()),
        }
    }

    fn read(&self, source: &dyn ReadAt, offset: u64, buffer: &mut [u8], pace: &Pace) -> Result<()> {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let extent = checked_extent(source, at, to_u64(rest.len()).min(PIECE_BYTES))?;
            let (piece, after) = rest.split_at_mut(to_usize(extent.length_bytes).min(rest.len()));
            if !is_data(extent.kind) {
                piece.fill(0);
            } else if *pace == Pace::Anywhere
                && piece.len() >= LARGE_BYTES
                && self
                    .cache
                    .is_cold(self.number, blocks_of(at, extent.length_bytes))
            {
                source.read_at(at, piece)?;
            } else {
                self.read_data(source, at, piece)?;
            }
            at = extent.end();
            rest = after;
        }
        Ok(())
    }
}

fn is_data(kind: ExtentKind) -> bool {
    !matches!(kind, ExtentKind::Zero | ExtentKind::Unallocated)
}

/// The extent at `offset`, and never one of no length: loops go on by it.
fn checked_extent(source: &dyn ReadAt, offset: u64, limit_bytes: u64) -> Result<Extent> {
    let mut extent = source.extent_at(offset, limit_bytes)?;
    if extent.length_bytes == 0 || extent.offset != offset {
        let what = format!("the source tells nothing about what lies at {offset}");
        return Err(Error::new(ErrorKind::Corrupt, what));
    }
    extent.length_bytes = extent.length_bytes.min(limit_bytes);
    Ok(extent)
}

impl ReadAt for CachedDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length = to_u64(buffer.len());
        if offset
            .checked_add(length)
            .is_none_or(|end| end > self.size_bytes)
        {
            let what = format!("{length} bytes at {offset} of {}", self.size_bytes);
            return Err(Error::new(ErrorKind::OutOfRange, what));
        }
        let others = self.reads.fetch_add(1, Ordering::Relaxed);
        let _reading = Reading(&self.reads);
        let pace = if others >= READS_BUSY {
            Pace::Anywhere
        } else {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            streams.note(offset, length, self.size_bytes)
        };
        if let Pace::InOrder(Some(ahead)) = &pace {
            self.read_ahead(ahead.clone());
        }
        self.with_source(|source| self.read(source, offset, buffer, &pace))
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        self.with_source(|source| source.extent_at(offset, limit_bytes))
    }
}
