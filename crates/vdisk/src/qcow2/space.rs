//! Where new clusters come from: behind the end of a new file, or from the counters of an existing one.
//!
//! | space | clusters | counters |
//! |---|---|---|
//! | [`BumpSpace`] | one behind the other, never used before, so zero | none until the build ends |
//! | [`CountedSpace`] | the first whose counter is 0 | raised before anything refers to the cluster, lowered after nothing does |

use std::collections::{BTreeSet, HashMap};

use block::{ReadAt, WriteAt};

use super::counters;
use super::header::{MAX_REFCOUNT_TABLE_BYTES, Qcow2Header};
use crate::field::{bytes, index, put};
use crate::{Error, ErrorKind, Result};

/// Memory for refcount blocks.
const CACHE_BYTES: u64 = 16 << 20;

/// A source of clusters.
pub(super) trait Space: Send {
    /// Clusters that it gives read as zeros and were never used: nothing has to be overwritten, nothing can leak through.
    const FRESH: bool;
    /// A cluster, counted once; `None` when the counter table is full.
    fn allocate(&mut self, file: &dyn WriteAt) -> Result<Option<u64>>;
    /// The range lost a reference. The cluster is not given out again before [`Self::settle`].
    fn release(&mut self, offset: u64, length: u64);
    /// Whether so many ranges wait that it is time to write tables.
    fn is_congested(&self) -> bool;
    /// Writes raised counters: before the tables that refer to their clusters.
    fn publish(&mut self, file: &dyn WriteAt) -> Result<()>;
    /// Lowers the counters of released ranges: after the tables that no longer refer to them are durable.
    fn settle(&mut self, file: &dyn WriteAt) -> Result<()>;
}

/// Clusters one behind the other.
pub(super) struct BumpSpace {
    cluster_bytes: u64,
    end: u64,
    /// Where compressed data goes on, inside the cluster that was given for it last.
    packed_at: Option<u64>,
}

impl BumpSpace {
    /// Begins at `end`, which is on a cluster.
    pub fn new(header: &Qcow2Header, end: u64) -> Self {
        Self {
            cluster_bytes: header.cluster_bytes(),
            end,
            packed_at: None,
        }
    }

    /// The first byte behind everything given.
    pub fn end(&self) -> u64 {
        self.end
    }

    fn take(&mut self) -> Result<u64> {
        let offset = self.end;
        self.end = offset
            .checked_add(self.cluster_bytes)
            .filter(|end| *end < 1 << 56)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Unsupported,
                    "qcow2: the file is longer than 64 PiB",
                )
            })?;
        Ok(offset)
    }

    /// Room for `length` bytes of a compressed cluster, packed behind the one before.
    pub fn take_packed(&mut self, length: u64) -> Result<u64> {
        let left = self.packed_at.map_or(0, |at| {
            let behind = at
                .checked_next_multiple_of(self.cluster_bytes)
                .unwrap_or(at);
            behind.saturating_sub(at)
        });
        let spills = length > left;
        let adjoins = self
            .packed_at
            .is_some_and(|at| at.saturating_add(left) == self.end);
        let offset = match self.packed_at {
            Some(at) if left > 0 && (!spills || adjoins) => at,
            _ => self.end,
        };
        while self.end < offset.saturating_add(length) {
            self.take()?;
        }
        self.packed_at = Some(offset.saturating_add(length));
        Ok(offset)
    }
}

impl Space for BumpSpace {
    const FRESH: bool = true;

    fn allocate(&mut self, _: &dyn WriteAt) -> Result<Option<u64>> {
        self.take().map(Some)
    }
    fn release(&mut self, _: u64, _: u64) {}
    fn is_congested(&self) -> bool {
        false
    }
    fn publish(&mut self, _: &dyn WriteAt) -> Result<()> {
        Ok(())
    }
    fn settle(&mut self, _: &dyn WriteAt) -> Result<()> {
        Ok(())
    }
}

struct Block {
    counters: Vec<u8>,
    dirty: bool,
    used: u64,
}

/// Clusters by the image's own counters.
pub(super) struct CountedSpace {
    header: Qcow2Header,
    table: Vec<u64>,
    table_dirty: BTreeSet<u64>,
    blocks: HashMap<u64, Block>,
    released: Vec<(u64, u64)>,
    next: u64,
    clock: u64,
}

impl CountedSpace {
    /// Reads the refcount table of an image.
    pub fn load(header: &Qcow2Header, file: &dyn ReadAt) -> Result<Self> {
        let length =
            u64::from(header.refcount_table_clusters).saturating_mul(header.cluster_bytes());
        if length == 0
            || length > MAX_REFCOUNT_TABLE_BYTES
            || !header.is_aligned(header.refcount_table_offset)
        {
            return Err(Error::corrupt(format!(
                "qcow2 header: refcount table of {length} bytes"
            )));
        }
        let mut raw = vec![0u8; index(length)];
        file.read_at(header.refcount_table_offset, &mut raw)?;
        let table = raw
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_be_bytes(*word) & !511)
            .collect();
        Ok(Self {
            header: header.clone(),
            table,
            table_dirty: BTreeSet::new(),
            blocks: HashMap::new(),
            released: Vec::new(),
            next: 1,
            clock: 0,
        })
    }

    /// The header with the present counters.
    pub fn header(&self) -> &Qcow2Header {
        &self.header
    }

    fn per_block(&self) -> u64 {
        counters::per_block(self.header.cluster_bytes(), self.header.refcount_order).max(1)
    }

    /// The block in memory, read if need be.
    fn block(&mut self, file: &dyn WriteAt, number: u64) -> Result<&mut Block> {
        self.clock = self.clock.wrapping_add(1);
        if !self.blocks.contains_key(&number) {
            let offset = self.table.get(index(number)).copied().unwrap_or(0);
            let mut counters = vec![0u8; index(self.header.cluster_bytes())];
            file.read_at(offset, &mut counters)?;
            self.insert(file, number, counters, false)?;
        }
        let now = self.clock;
        let block = self
            .blocks
            .get_mut(&number)
            .ok_or_else(|| Error::corrupt("qcow2: no refcount block"))?;
        block.used = now;
        Ok(block)
    }

    /// A block may leave memory at any time: counters too high on disk are leaks at worst, and they are lowered in memory
    /// only when they may be lowered on disk.
    fn insert(
        &mut self,
        file: &dyn WriteAt,
        number: u64,
        counters: Vec<u8>,
        dirty: bool,
    ) -> Result<()> {
        let greatest = CACHE_BYTES
            .checked_div(self.header.cluster_bytes())
            .unwrap_or(4)
            .max(4);
        if bytes(self.blocks.len()) >= greatest {
            let oldest = self
                .blocks
                .iter()
                .min_by_key(|(_, block)| block.used)
                .map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                self.write_block(file, oldest)?;
                self.blocks.remove(&oldest);
            }
        }
        self.blocks.insert(
            number,
            Block {
                counters,
                dirty,
                used: self.clock,
            },
        );
        Ok(())
    }

    fn write_block(&mut self, file: &dyn WriteAt, number: u64) -> Result<()> {
        let offset = self.table.get(index(number)).copied().unwrap_or(0);
        if let Some(block) = self.blocks.get_mut(&number).filter(|block| block.dirty) {
            file.write_at(offset, &block.counters)?;
            block.dirty = false;
        }
        Ok(())
    }

    /// The first free cluster of a block from `slot` on, now counted once.
    fn take_in(&mut self, file: &dyn WriteAt, number: u64, slot: u64) -> Result<Option<u64>> {
        let (order, per_block) = (self.header.refcount_order, self.per_block());
        let block = self.block(file, number)?;
        let free = (slot..per_block).find(|slot| counters::get(&block.counters, order, *slot) == 0);
        if let Some(slot) = free {
            counters::set(&mut block.counters, order, slot, 1);
            block.dirty = true;
        }
        Ok(free)
    }

    /// So many clusters in a row behind the end of the file, counted once; `None` when the counter table is too short.
    /// Nothing may have been allocated since the image was opened.
    pub fn allocate_run(&mut self, file: &dyn WriteAt, count: u64) -> Result<Option<u64>> {
        let base = super::header::clusters_in_file(&self.header, file);
        let per_block = self.per_block();
        let blocks_of = |end: u64| {
            base.checked_div(per_block).unwrap_or(0)
                ..=end.saturating_sub(1).checked_div(per_block).unwrap_or(0)
        };
        // Each missing block takes a cluster of the run's front, which may need another block.
        let mut missing: Vec<u64> = Vec::new();
        let mut end = base.saturating_add(count);
        loop {
            let mut absent = Vec::new();
            for number in blocks_of(end) {
                match self.table.get(index(number)) {
                    None => return Ok(None),
                    Some(0) => absent.push(number),
                    Some(_) => {}
                }
            }
            end = base
                .saturating_add(bytes(absent.len()))
                .saturating_add(count);
            let is_settled = absent.len() == missing.len();
            missing = absent;
            if is_settled {
                break;
            }
        }
        let cluster_bytes = self.header.cluster_bytes();
        for (place, number) in (base..).zip(&missing) {
            let place = place.saturating_mul(cluster_bytes);
            let empty = vec![0u8; index(cluster_bytes)];
            file.write_at(place, &empty)?;
            if let Some(entry) = self.table.get_mut(index(*number)) {
                *entry = place;
                self.table_dirty.insert(*number / 64);
            }
            self.insert(file, *number, empty, false)?;
        }
        let order = self.header.refcount_order;
        for cluster in base..end {
            let block = self.block(file, cluster.checked_div(per_block).unwrap_or(0))?;
            let slot = cluster.checked_rem(per_block).unwrap_or(0);
            counters::set(&mut block.counters, order, slot, 1);
            block.dirty = true;
        }
        let first = base.saturating_add(bytes(missing.len()));
        Ok(Some(first.saturating_mul(cluster_bytes)))
    }

    fn lower(&mut self, file: &dyn WriteAt, cluster: u64) -> Result<()> {
        let order = self.header.refcount_order;
        let per_block = self.per_block();
        let number = cluster.checked_div(per_block).unwrap_or(0);
        let slot = cluster.checked_rem(per_block).unwrap_or(0);
        if self.table.get(index(number)).copied().unwrap_or(0) == 0 {
            return Err(Error::corrupt(format!(
                "qcow2: cluster {cluster} is in use but not counted"
            )));
        }
        let block = self.block(file, number)?;
        let lowered = counters::get(&block.counters, order, slot)
            .checked_sub(1)
            .ok_or_else(|| {
                Error::corrupt(format!(
                    "qcow2: cluster {cluster} is in use but counted 0 times"
                ))
            })?;
        counters::set(&mut block.counters, order, slot, lowered);
        block.dirty = true;
        if lowered == 0 {
            self.next = self.next.min(cluster);
        }
        Ok(())
    }
}

impl Space for CountedSpace {
    const FRESH: bool = false;

    fn allocate(&mut self, file: &dyn WriteAt) -> Result<Option<u64>> {
        let per_block = self.per_block();
        let cluster_bytes = self.header.cluster_bytes();
        loop {
            let number = self.next.checked_div(per_block).unwrap_or(0);
            let slot = self.next.checked_rem(per_block).unwrap_or(0);
            let Some(offset) = self.table.get(index(number)).copied() else {
                return Ok(None);
            };
            if offset == 0 {
                // None of its clusters is counted, so this one is free for the block itself.
                let place = self.next.saturating_mul(cluster_bytes);
                let mut fresh = vec![0u8; index(cluster_bytes)];
                counters::set(&mut fresh, self.header.refcount_order, slot, 1);
                // On disk at once: it may leave memory before the table that names it is written.
                file.write_at(place, &fresh)?;
                if let Some(entry) = self.table.get_mut(index(number)) {
                    *entry = place;
                    self.table_dirty.insert(number / 64);
                }
                self.clock = self.clock.wrapping_add(1);
                self.insert(file, number, fresh, false)?;
                self.next = self.next.saturating_add(1);
                continue;
            }
            if let Some(found) = self.take_in(file, number, slot)? {
                let cluster = number.saturating_mul(per_block).saturating_add(found);
                self.next = cluster.saturating_add(1);
                return Ok(Some(cluster.saturating_mul(cluster_bytes)));
            }
            self.next = number.saturating_add(1).saturating_mul(per_block);
        }
    }

    fn release(&mut self, offset: u64, length: u64) {
        self.released.push((offset, length));
    }

    fn is_congested(&self) -> bool {
        self.released.len() >= 1 << 16
    }

    fn publish(&mut self, file: &dyn WriteAt) -> Result<()> {
        let mut numbers: Vec<u64> = self.blocks.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            self.write_block(file, number)?;
        }
        if !self.table_dirty.is_empty() {
            // A block is durable before the table names it.
            file.flush()?;
        }
        while let Some(group) = self.table_dirty.first().copied() {
            let first = group.saturating_mul(64);
            let from = index(first);
            let mut raw = [0u8; 512];
            let mut length = 0usize;
            for entry in self.table.iter().skip(from).take(64) {
                put(&mut raw, length, &entry.to_be_bytes());
                length = length.saturating_add(8);
            }
            let offset = self
                .header
                .refcount_table_offset
                .saturating_add(first.saturating_mul(8));
            file.write_at(offset, raw.get(..length).unwrap_or_default())?;
            self.table_dirty.remove(&group);
        }
        Ok(())
    }

    fn settle(&mut self, file: &dyn WriteAt) -> Result<()> {
        for (offset, length) in std::mem::take(&mut self.released) {
            let first = self.header.cluster_of(offset);
            let last = self
                .header
                .cluster_of(offset.saturating_add(length).saturating_sub(1));
            for cluster in first..=last {
                self.lower(file, cluster)?;
            }
        }
        Ok(())
    }
}
