//! Clusters and the table that chains them: the part that FAT12, FAT16, FAT32 and exFAT share.
//!
//! ```text
//!   table:  [0][1][2 ► 3][3 ► 7][4 free][5 bad] … [7 ► end]        heap: [2][3][4] …   a file: 2, 3, 7
//! ```
//!
//! **Invariants.** A cluster that is given lies on the heap. A chain that comes back to where it was is found (Brent),
//! so that no walk is longer than twice the table; a chain is kept as runs, at most [`MAX_RUNS`] of them.

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

use block::{Extent, ExtentKind, ReadAt};

use crate::cache::BlockCache;
use crate::field::{bytes, u16_le, u32_le};
use crate::{Error, ErrorKind, Result};

/// Pieces of a file at most: 64 MiB of memory.
const MAX_RUNS: usize = 1 << 22;
/// The first cluster's number.
pub(super) const FIRST: u32 = 2;

/// How wide an entry of the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Bits12,
    Bits16,
    /// 28 bits are used.
    Bits32,
    /// exFAT: all 32 are.
    Full32,
}

/// What the table says of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Free,
    Next(u32),
    End,
    Bad,
    /// A number that is no cluster's.
    Nowhere(u32),
}

/// The clusters of a volume.
pub(super) struct Heap {
    pub cache: BlockCache,
    pub width: Width,
    /// Where the active table begins.
    pub table_offset: u64,
    /// Where cluster 2 begins.
    pub heap_offset: u64,
    pub cluster_bytes: u64,
    pub cluster_count: u32,
}

impl Heap {
    /// Whether that is a cluster.
    pub fn has(&self, cluster: u32) -> bool {
        cluster
            .checked_sub(FIRST)
            .is_some_and(|index| index < self.cluster_count)
    }

    /// Where a cluster begins on the volume.
    pub fn offset(&self, cluster: u32) -> u64 {
        u64::from(cluster.saturating_sub(FIRST))
            .saturating_mul(self.cluster_bytes)
            .saturating_add(self.heap_offset)
    }

    /// The number in the table, as it stands there.
    pub fn raw(&self, cluster: u32) -> Result<u32> {
        let index = u64::from(cluster);
        let mut raw = [0; 4];
        let (place, count) = match self.width {
            Width::Bits12 => (index.saturating_add(index / 2), 2),
            Width::Bits16 => (index.saturating_mul(2), 2),
            Width::Bits32 | Width::Full32 => (index.saturating_mul(4), 4),
        };
        if let Some(part) = raw.get_mut(..count) {
            self.cache
                .read(self.table_offset.saturating_add(place), part)?;
        }
        let low = u32::from(u16_le(&raw, 0)?);
        Ok(match self.width {
            Width::Bits12 if cluster & 1 == 1 => low >> 4,
            Width::Bits12 => low & 0xFFF,
            Width::Bits16 => low,
            Width::Bits32 => u32_le(&raw, 0)? & 0x0FFF_FFFF,
            Width::Full32 => u32_le(&raw, 0)?,
        })
    }

    /// What comes after a cluster.
    pub fn link(&self, cluster: u32) -> Result<Link> {
        let raw = self.raw(cluster)?;
        let bad = match self.width {
            Width::Bits12 => 0xFF7,
            Width::Bits16 => 0xFFF7,
            Width::Bits32 => 0x0FFF_FFF7,
            Width::Full32 => 0xFFFF_FFF7,
        };
        Ok(match raw {
            0 => Link::Free,
            raw if raw > bad => Link::End,
            raw if raw == bad => Link::Bad,
            raw if self.has(raw) => Link::Next(raw),
            raw => Link::Nowhere(raw),
        })
    }

    /// Clusters of the table that are not free, in ascending order, until told to stop; whether it was not.
    pub fn each_used(&self, visit: &mut dyn FnMut(u32) -> bool) -> Result<bool> {
        if self.width == Width::Bits12 {
            for index in 0..self.cluster_count {
                let cluster = index.saturating_add(FIRST);
                if self.raw(cluster)? != 0 && !visit(cluster) {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let width = if self.width == Width::Bits16 {
            2_usize
        } else {
            4
        };
        let end = u64::from(self.cluster_count).saturating_add(u64::from(FIRST));
        let mut chunk = vec![0; 65_536];
        let mut cluster = 0_u64;
        while cluster < end {
            let offset = cluster
                .saturating_mul(bytes(width))
                .saturating_add(self.table_offset);
            let count = usize::try_from(end.saturating_sub(cluster)).unwrap_or(usize::MAX);
            let length = count.saturating_mul(width).min(chunk.len());
            let part = chunk.get_mut(..length).unwrap_or_default();
            self.cache.volume().read_at(offset, part)?;
            for entry in part.chunks_exact(width) {
                let number = u32::try_from(cluster).unwrap_or(0);
                cluster = cluster.saturating_add(1);
                // The highest four bits of an entry of FAT32 are reserved.
                let is_used = match entry {
                    [low @ .., high] if self.width == Width::Bits32 => {
                        high & 0x0F != 0 || low.iter().any(|&byte| byte != 0)
                    }
                    whole => whole.iter().any(|&byte| byte != 0),
                };
                if is_used && self.has(number) && !visit(number) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The runs of a chain, up to `wanted` clusters; an error when it ends or goes astray before.
    pub fn chain(&self, first: u32, wanted: u64) -> Result<Runs> {
        let mut runs = Runs::default();
        self.follow(first, wanted, &mut runs)?;
        if runs.cluster_count < wanted {
            return Err(Error::corrupt(format!(
                "the chain from cluster {first} has {} clusters of {wanted}",
                runs.cluster_count
            )));
        }
        Ok(runs)
    }

    /// The runs of a chain up to its end, which must come within `limit` clusters.
    pub fn whole_chain(&self, first: u32, limit: u64) -> Result<Runs> {
        let mut runs = Runs::default();
        if !self.follow(first, limit, &mut runs)? {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("the chain from cluster {first} has more than {limit} clusters"),
            ));
        }
        Ok(runs)
    }

    /// Walks a chain; whether its end was met.
    fn follow(&self, first: u32, limit: u64, runs: &mut Runs) -> Result<bool> {
        let mut cluster = first;
        let (mut mark, mut since, mut power) = (first, 0_u64, 1_u64);
        loop {
            if !self.has(cluster) {
                return Err(Error::corrupt(format!(
                    "cluster {cluster} is not on the volume"
                )));
            }
            if runs.cluster_count >= limit {
                return Ok(false);
            }
            runs.push(cluster)?;
            cluster = match self.link(cluster)? {
                Link::Next(next) => next,
                Link::End => return Ok(true),
                link => {
                    return Err(Error::corrupt(format!(
                        "the chain from cluster {first} leads from {cluster} to {link:?}"
                    )));
                }
            };
            since = since.saturating_add(1);
            if cluster == mark {
                return Err(Error::corrupt(format!(
                    "the chain from cluster {first} is a loop of {since} clusters"
                )));
            }
            if since == power {
                (mark, since, power) = (cluster, 0, power.saturating_mul(2));
            }
        }
    }
}

/// Clusters of a file: first cluster of the file, where it lies, how many side by side.
#[derive(Debug, Default, Clone)]
pub(super) struct Runs {
    runs: Vec<(u64, u32, u32)>,
    pub cluster_count: u64,
}

impl Runs {
    /// Clusters side by side.
    pub fn contiguous(heap: &Heap, first: u32, count: u64) -> Result<Self> {
        let last = count
            .checked_sub(1)
            .and_then(|more| u32::try_from(more).ok())
            .and_then(|more| first.checked_add(more));
        match (last, u32::try_from(count)) {
            (Some(last), Ok(short)) if heap.has(first) && heap.has(last) => Ok(Self {
                runs: vec![(0, first, short)],
                cluster_count: count,
            }),
            _ => Err(Error::corrupt(format!(
                "{count} clusters from {first} are not all on the volume"
            ))),
        }
    }

    fn push(&mut self, cluster: u32) -> Result<()> {
        let position = self.cluster_count;
        self.cluster_count = position.saturating_add(1);
        if let Some((_, start, count)) = self.runs.last_mut()
            && start.checked_add(*count) == Some(cluster)
        {
            *count = count.saturating_add(1);
            return Ok(());
        }
        if self.runs.len() >= MAX_RUNS {
            return Err(Error::new(ErrorKind::Limit, "a file in too many pieces"));
        }
        self.runs.push((position, cluster, 1));
        Ok(())
    }

    /// Where a byte of the file lies on the volume, and how many bytes follow it there.
    pub fn place(&self, heap: &Heap, offset: u64) -> Result<(u64, u64)> {
        let width = heap.cluster_bytes.max(1);
        let cluster = offset.checked_div(width).unwrap_or(0);
        let index = self.runs.partition_point(|&(first, ..)| first <= cluster);
        let run = index.checked_sub(1).and_then(|index| self.runs.get(index));
        let Some(&(first, start, count)) = run else {
            return Err(Error::corrupt(format!("byte {offset} lies in no cluster")));
        };
        let into = offset.saturating_sub(first.saturating_mul(width));
        let left = u64::from(count).saturating_mul(width).saturating_sub(into);
        if left == 0 {
            return Err(Error::corrupt(format!(
                "byte {offset} lies behind its last cluster"
            )));
        }
        Ok((heap.offset(start).saturating_add(into), left))
    }
}

/// The bytes of a file: what was written, then zeros up to its size.
pub(super) struct Contents<'a> {
    pub heap: &'a Heap,
    pub runs: Runs,
    pub size_bytes: u64,
    /// Behind this nothing was ever written (exFAT).
    pub valid_bytes: u64,
}

impl ReadAt for Contents<'_> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let end = offset.checked_add(bytes(buffer.len()));
        if end.is_none_or(|end| end > self.size_bytes) {
            return Err(outside(offset, self.size_bytes));
        }
        let written = self.valid_bytes.saturating_sub(offset);
        let written = usize::try_from(written)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let (mut rest, zeros) = buffer.split_at_mut(written);
        zeros.fill(0);
        let mut position = offset;
        while !rest.is_empty() {
            let (place, left) = self.runs.place(self.heap, position)?;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            self.heap.cache.volume().read_at(place, head)?;
            position = position.saturating_add(bytes(count));
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let left = self.size_bytes.saturating_sub(offset).min(limit_bytes);
        if left == 0 {
            return Err(outside(offset, self.size_bytes));
        }
        let written = self.valid_bytes.saturating_sub(offset);
        let (length_bytes, kind) = if written == 0 {
            (left, ExtentKind::Zero)
        } else {
            (left.min(written), ExtentKind::Data)
        };
        Ok(Extent {
            offset,
            length_bytes,
            kind,
        })
    }
}

fn outside(offset: u64, size_bytes: u64) -> block::Error {
    block::Error::new(
        block::ErrorKind::OutOfRange,
        format!("byte {offset} of a file of {size_bytes}"),
    )
}

/// Joins used clusters to ranges of the volume.
pub(super) struct Ranges<'a> {
    pub open: Option<(u64, u64)>,
    pub visit: &'a mut dyn FnMut(crate::filesystem::VolumeRange) -> std::ops::ControlFlow<()>,
}

impl Ranges<'_> {
    /// Adds a range behind the last one; whether to go on.
    pub fn add(&mut self, offset: u64, length_bytes: u64) -> bool {
        if length_bytes == 0 {
            return true;
        }
        if let Some((_, end)) = &mut self.open
            && *end == offset
        {
            *end = offset.saturating_add(length_bytes);
            return true;
        }
        if !self.flush() {
            return false;
        }
        self.open = Some((offset, offset.saturating_add(length_bytes)));
        true
    }

    /// Tells the last range; whether to go on.
    pub fn flush(&mut self) -> bool {
        let Some((offset, end)) = self.open.take() else {
            return true;
        };
        let length_bytes = end.saturating_sub(offset);
        (self.visit)(crate::filesystem::VolumeRange {
            offset,
            length_bytes,
        })
        .is_continue()
    }
}
