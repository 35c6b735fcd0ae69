//! The L1 table and a bounded set of L2 tables of an image that is being written.
//!
//! **Invariants.** The L1 table is whole in memory (32 MiB at most); L2 tables take 32 MiB at most. A changed table leaves memory
//! only after it was written: [`Tables::make_room`] refuses to drop one, and its owner writes first.

use std::collections::{BTreeSet, HashMap};

use block::{ReadAt, WriteAt};

use super::entry::{self, OFFSET_MASK};
use super::header::Qcow2Header;
use crate::field::{index, put};
use crate::{Error, Result};

const CACHE_BYTES: u64 = 32 << 20;
/// Entries of the L1 table that are written together: a disk sector.
const L1_GROUP: u64 = 64;

struct Table {
    entries: Vec<u64>,
    dirty: bool,
    used: u64,
}

/// The mapping of guest clusters in memory.
pub(super) struct Tables {
    l1: Vec<u64>,
    l1_dirty: BTreeSet<u64>,
    l2: HashMap<u64, Table>,
    greatest_count: usize,
    clock: u64,
}

impl Tables {
    /// An empty mapping for a new image.
    pub fn empty(header: &Qcow2Header) -> Self {
        let greatest = CACHE_BYTES
            .checked_div(header.cluster_bytes())
            .unwrap_or(4)
            .clamp(4, 16_384);
        Self {
            l1: vec![0; index(header.l1_entries)],
            l1_dirty: BTreeSet::new(),
            l2: HashMap::new(),
            greatest_count: index(greatest),
            clock: 0,
        }
    }

    /// The mapping of an image in a file.
    pub fn load(header: &Qcow2Header, file: &dyn ReadAt) -> Result<Self> {
        let mut tables = Self::empty(header);
        let mut raw = vec![0u8; index(header.l1_entries.saturating_mul(8))];
        if !raw.is_empty() {
            file.read_at(header.l1_offset, &mut raw)?;
        }
        tables.l1 = words(&raw);
        Ok(tables)
    }

    /// The L1 entry.
    pub fn l1(&self, number: u64) -> u64 {
        self.l1.get(index(number)).copied().unwrap_or(0)
    }

    /// Sets an L1 entry.
    pub fn set_l1(&mut self, number: u64, entry: u64) {
        if let Some(place) = self.l1.get_mut(index(number)) {
            *place = entry;
            self.l1_dirty.insert(number / L1_GROUP);
        }
    }

    /// The L1 table as it lies in a file.
    pub fn encode_l1(&self) -> Vec<u8> {
        encode(&self.l1)
    }

    /// Makes place for one more table; `false` when all are dirty.
    pub fn make_room(&mut self) -> bool {
        if self.l2.len() < self.greatest_count {
            return true;
        }
        let oldest = self
            .l2
            .iter()
            .filter(|(_, table)| !table.dirty)
            .min_by_key(|(_, table)| table.used)
            .map(|(number, _)| *number);
        oldest.is_some_and(|number| self.l2.remove(&number).is_some())
    }

    pub fn holds(&self, number: u64) -> bool {
        self.l2.contains_key(&number)
    }

    /// Reads the L2 table of an L1 entry into memory. There must be room.
    pub fn fetch(&mut self, header: &Qcow2Header, file: &dyn ReadAt, number: u64) -> Result<()> {
        let Some(offset) = entry::l2_offset(header, self.l1(number), number)? else {
            return Err(Error::corrupt(format!("qcow2 L1 entry {number}: no table")));
        };
        if offset.saturating_add(header.cluster_bytes()) > file.size_bytes() {
            return Err(Error::corrupt(format!(
                "qcow2 L1 entry {number}: table at {offset:#x} is outside the file"
            )));
        }
        let mut raw = vec![0u8; index(header.cluster_bytes())];
        file.read_at(offset, &mut raw)?;
        self.insert(number, words(&raw), false);
        Ok(())
    }

    /// Puts a table into memory. There must be room.
    pub fn insert(&mut self, number: u64, entries: Vec<u64>, dirty: bool) {
        self.clock = self.clock.wrapping_add(1);
        self.l2.insert(
            number,
            Table {
                entries,
                dirty,
                used: self.clock,
            },
        );
    }

    /// A copy of a table in memory.
    pub fn copy_of(&self, number: u64) -> Option<Vec<u64>> {
        self.l2.get(&number).map(|table| table.entries.clone())
    }

    /// An entry of a table in memory; 0 if the table is not there.
    pub fn get(&mut self, number: u64, slot: u64) -> u64 {
        self.clock = self.clock.wrapping_add(1);
        let now = self.clock;
        self.l2.get_mut(&number).map_or(0, |table| {
            table.used = now;
            table.entries.get(index(slot)).copied().unwrap_or(0)
        })
    }

    /// Sets an entry of a table in memory.
    pub fn set(&mut self, number: u64, slot: u64, entry: u64) -> Result<()> {
        let place = self.l2.get_mut(&number).and_then(|table| {
            table.dirty = true;
            table.entries.get_mut(index(slot))
        });
        let place = place
            .ok_or_else(|| Error::corrupt(format!("qcow2 L2 table {number} is not loaded")))?;
        *place = entry;
        Ok(())
    }

    pub fn has_dirty_l2(&self) -> bool {
        self.l2.values().any(|table| table.dirty)
    }

    pub fn has_dirty_l1(&self) -> bool {
        !self.l1_dirty.is_empty()
    }

    /// Writes every changed L2 table to where its L1 entry says.
    pub fn write_l2(&mut self, file: &dyn WriteAt) -> Result<()> {
        let mut dirty: Vec<u64> = self
            .l2
            .iter()
            .filter(|(_, table)| table.dirty)
            .map(|(number, _)| *number)
            .collect();
        dirty.sort_unstable();
        for number in dirty {
            let offset = self.l1(number) & OFFSET_MASK;
            if let Some(table) = self.l2.get_mut(&number) {
                file.write_at(offset, &encode(&table.entries))?;
                table.dirty = false;
            }
        }
        Ok(())
    }

    /// Writes the changed parts of the L1 table.
    pub fn write_l1(&mut self, header: &Qcow2Header, file: &dyn WriteAt) -> Result<()> {
        while let Some(group) = self.l1_dirty.first().copied() {
            let first = group.saturating_mul(L1_GROUP);
            let from = index(first);
            let to = from.saturating_add(index(L1_GROUP)).min(self.l1.len());
            let entries = self.l1.get(from..to).unwrap_or_default();
            file.write_at(
                header.l1_offset.saturating_add(first.saturating_mul(8)),
                &encode(entries),
            )?;
            self.l1_dirty.remove(&group);
        }
        Ok(())
    }
}

fn words(raw: &[u8]) -> Vec<u64> {
    raw.as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_be_bytes(*word))
        .collect()
}

fn encode(entries: &[u64]) -> Vec<u8> {
    let mut raw = vec![0u8; entries.len().saturating_mul(8)];
    for (number, entry) in entries.iter().enumerate() {
        put(&mut raw, number.saturating_mul(8), &entry.to_be_bytes());
    }
    raw
}
