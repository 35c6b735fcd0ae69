//! Contents at logical addresses, proved by the tree of checksums.
//!
//! ```text
//!   address ─► sectors of a copy ─► their sums, from the log or the tree ─► right? ─ yes ─► bytes
//!                    ▲                                                        └ no ─► the same sector of the next copy
//!                    └────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! **Invariants.** What has checksums is never given unproved; a file without them (`nodatasum`) is read as it stands.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::tree::{Forest, Key, Tree, kind};
use crate::{Error, Result, field};

/// The object of all checksums in their tree.
pub(super) const CHECKSUM_OBJECT: u64 = 10_u64.wrapping_neg();
/// How much is read and proved at once.
const WINDOW_BYTES: usize = 1 << 20;
/// Unpacked extents in memory, of 128 KiB at most.
const UNPACKED_EXTENTS: usize = 32;

/// Whether a file's contents have checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    Summed,
    Unsummed,
}

/// Reads contents.
pub(super) struct Data {
    /// Where the sums are; none when there is no such tree.
    pub(super) sums: Option<Tree>,
    /// Sums that only a log has, by address.
    pub(super) logged: BTreeMap<u64, Arc<[u8]>>,
    pub(super) sector_bytes: u64,
    unpacked: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
}

impl Data {
    pub(super) fn new(sums: Option<Tree>, sector_bytes: u32) -> Self {
        Self {
            sums,
            logged: BTreeMap::new(),
            sector_bytes: u64::from(sector_bytes),
            unpacked: Mutex::default(),
        }
    }

    /// An extent that was unpacked before.
    pub(super) fn remembered(&self, logical: u64) -> Option<Arc<[u8]>> {
        let mut kept = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let index = kept.iter().position(|(place, _)| *place == logical)?;
        let found = kept.remove(index)?;
        let bytes = Arc::clone(&found.1);
        kept.push_back(found);
        Some(bytes)
    }

    /// Keeps an unpacked extent.
    pub(super) fn remember(&self, logical: u64, bytes: &Arc<[u8]>) {
        let mut kept = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.len() >= UNPACKED_EXTENTS {
            kept.pop_front();
        }
        kept.push_back((logical, Arc::clone(bytes)));
    }

    /// Fills a buffer from a logical address.
    pub(super) fn read(
        &self,
        forest: &Forest,
        logical: u64,
        proof: Proof,
        buffer: &mut [u8],
    ) -> Result<()> {
        if proof == Proof::Unsummed {
            return read_any(forest, logical, buffer);
        }
        let mut at = logical;
        for part in buffer.chunks_mut(WINDOW_BYTES) {
            self.read_window(forest, at, part)?;
            at = at.saturating_add(field::bytes(part.len()));
        }
        Ok(())
    }

    fn read_window(&self, forest: &Forest, logical: u64, buffer: &mut [u8]) -> Result<()> {
        let sector = self.sector_bytes;
        let skipped = logical.checked_rem(sector).unwrap_or(0);
        let start = logical.saturating_sub(skipped);
        let end = logical
            .checked_add(field::bytes(buffer.len()))
            .and_then(|end| end.checked_next_multiple_of(sector))
            .ok_or_else(|| Error::corrupt(format!("contents at address {logical}")))?;
        let length = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        if length == buffer.len() {
            return self.read_sectors(forest, start, buffer);
        }
        let mut whole = vec![0; length];
        self.read_sectors(forest, start, &mut whole)?;
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        buffer.copy_from_slice(field::slice(&whole, skipped, buffer.len())?);
        Ok(())
    }

    /// Whole sectors, each proved.
    fn read_sectors(&self, forest: &Forest, start: u64, buffer: &mut [u8]) -> Result<()> {
        let width = usize::try_from(self.sector_bytes).unwrap_or(4096);
        let count = buffer.len().checked_div(width).unwrap_or(0);
        let sums = self.sums(forest, start, count)?;
        // When the first copy cannot be read at all, each sector is looked for by itself.
        let is_read = forest
            .devices
            .read(&forest.chunks, start, 0, buffer)
            .is_ok();
        let sectors = buffer.chunks_exact_mut(width);
        let mut at = start;
        for (sector, sum) in sectors.zip(sums.chunks_exact(forest.checksum.size_bytes())) {
            if !is_read || !forest.checksum.proves(sector, sum) {
                self.read_proved(forest, at, sector, sum)?;
            }
            at = at.saturating_add(self.sector_bytes);
        }
        Ok(())
    }

    /// One sector from the first copy that is right.
    fn read_proved(&self, forest: &Forest, at: u64, sector: &mut [u8], sum: &[u8]) -> Result<()> {
        let copies = forest.chunks.at(at)?.copies();
        let mut trouble = None;
        for copy in 0..copies {
            match forest.devices.read(&forest.chunks, at, copy, sector) {
                Ok(()) if forest.checksum.proves(sector, sum) => return Ok(()),
                Ok(()) => {}
                Err(error) => trouble = Some(error),
            }
        }
        let place = format!("contents at address {at}");
        Err(match trouble {
            Some(error) => error.within(place),
            None => Error::corrupt(format!("{place}: the checksum of every copy is wrong")),
        })
    }

    /// The sums of so many sectors.
    fn sums(&self, forest: &Forest, start: u64, count: usize) -> Result<Vec<u8>> {
        let size = forest.checksum.size_bytes();
        let wanted = count.saturating_mul(size);
        let mut sums = Vec::with_capacity(wanted);
        let mut at = start;
        while sums.len() < wanted {
            let more = self.sums_at(forest, at)?;
            let left = wanted.saturating_sub(sums.len());
            let part = more.get(..left.min(more.len())).unwrap_or_default();
            sums.extend_from_slice(part);
            let sectors = field::bytes(part.len().checked_div(size).unwrap_or(0));
            at = at.saturating_add(sectors.saturating_mul(self.sector_bytes));
        }
        Ok(sums)
    }

    /// Sums from a sector on: at least one.
    fn sums_at(&self, forest: &Forest, at: u64) -> Result<Vec<u8>> {
        let logged = self.logged.range(..=at).next_back();
        if let Some((first, bytes)) = logged
            && let Some(found) = self.part(forest, *first, bytes, at)
        {
            return Ok(found.to_vec());
        }
        let key = |offset| Key::new(CHECKSUM_OBJECT, kind::CHECKSUMS, offset);
        if let Some(tree) = &self.sums
            && let Some((found, item)) = forest.last(tree, key(0), key(at))?
            && let Some(part) = self.part(forest, found.offset, item.bytes(), at)
        {
            // What the log says of later sectors counts before what the tree says.
            let next = self.logged.range(at..).next().map(|(next, _)| *next);
            let sectors = next
                .map(|next| next.saturating_sub(at))
                .and_then(|bytes| bytes.checked_div(self.sector_bytes))
                .and_then(|count| usize::try_from(count).ok())
                .unwrap_or(usize::MAX);
            let longest = sectors.max(1).saturating_mul(forest.checksum.size_bytes());
            return Ok(part.get(..longest.min(part.len())).unwrap_or(part).to_vec());
        }
        Err(Error::corrupt(format!(
            "contents at address {at}: there is no checksum"
        )))
    }

    /// The sums from a sector on in an item that begins with those of sector `first`.
    fn part<'i>(&self, forest: &Forest, first: u64, item: &'i [u8], at: u64) -> Option<&'i [u8]> {
        let size = forest.checksum.size_bytes();
        let index = at.checked_sub(first)?.checked_div(self.sector_bytes)?;
        let skip = usize::try_from(index).ok()?.checked_mul(size)?;
        let rest = item.get(skip..)?;
        let whole = rest.len().checked_div(size)?.checked_mul(size)?;
        rest.get(..whole).filter(|rest| !rest.is_empty())
    }
}

/// From the first copy that can be read, part by part.
fn read_any(forest: &Forest, logical: u64, buffer: &mut [u8]) -> Result<()> {
    let mut at = logical;
    let mut rest = buffer;
    while !rest.is_empty() {
        let chunk = forest.chunks.at(at)?;
        let (_, longest) = chunk.unit(at.saturating_sub(chunk.logical));
        let here = crate::volume::pieces::take(longest, &mut rest);
        let mut trouble = None;
        for copy in 0..chunk.copies() {
            match forest.devices.read(&forest.chunks, at, copy, here) {
                Ok(()) => {
                    trouble = None;
                    break;
                }
                Err(error) => {
                    trouble.get_or_insert(error);
                }
            }
        }
        if let Some(error) = trouble {
            return Err(error);
        }
        at = at.saturating_add(field::bytes(here.len()));
    }
    Ok(())
}
