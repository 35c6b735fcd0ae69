//! The tables that a checkpoint writes down: open attributes, their names, dirty pages, transactions.
//!
//! ```text
//!  0 bytes of an entry │ 2 entries │ 4 entries in use │ …     24: entries; one in use begins with 0xFFFFFFFF
//!  An entry is named by its offset in the table.
//! ```
//!
//! Entries have two forms: that of a checkpoint of version 0 (44 bytes for an attribute) and of version 1 (40 bytes).
//!
//! **Invariants.** At most [`MAX_CLUSTERS`] clusters of dirty pages and [`MAX_ENTRIES`] other entries are held.

use std::collections::BTreeMap;

use super::super::record::utf16;
use super::action::size;
use crate::{Error, ErrorKind, Result, field};

const HEAD_BYTES: usize = 24;
const IN_USE: u32 = 0xFFFF_FFFF;
const MAX_CLUSTERS: usize = 4 << 20;
const MAX_ENTRIES: usize = 1 << 20;

/// Which of the two forms the entries have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableForm {
    Old,
    New,
}

/// Entries in use with their offsets.
fn entries(table: &[u8]) -> Result<Vec<(u32, &[u8])>> {
    let width = usize::from(field::u16_le(table, 0)?);
    let count = usize::from(field::u16_le(table, 2)?);
    if width < 4 {
        return Err(Error::corrupt(format!("entries of {width} bytes")));
    }
    let mut found = Vec::new();
    for index in 0..count {
        let at = HEAD_BYTES.saturating_add(index.saturating_mul(width));
        let entry = field::slice(table, at, width)?;
        if field::u32_le(entry, 0)? == IN_USE {
            let offset =
                u32::try_from(at).map_err(|_| Error::corrupt("a table that cannot be counted"))?;
            found.push((offset, entry));
        }
    }
    Ok(found)
}

fn limit(what: &str) -> Error {
    Error::new(ErrorKind::Limit, format!("too many {what}"))
}

/// An attribute that was being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OpenAttribute {
    pub(super) kind: u32,
    pub(super) reference: u64,
    pub(super) index_bytes: u64,
    pub(super) name: Vec<u16>,
}

impl OpenAttribute {
    pub(super) fn parse(entry: &[u8], form: TableForm) -> Result<Self> {
        let (kind, reference, index) = match form {
            TableForm::Old => (28, 8, 40),
            TableForm::New => (8, 16, 4),
        };
        Ok(Self {
            kind: field::u32_le(entry, kind)?,
            reference: field::u64_le(entry, reference)?,
            index_bytes: u64::from(field::u32_le(entry, index)?),
            name: Vec::new(),
        })
    }
}

/// Attributes by what records call them.
#[derive(Debug, Default)]
pub(super) struct OpenAttributes {
    entries: BTreeMap<u32, OpenAttribute>,
}

impl OpenAttributes {
    pub(super) fn read(&mut self, table: &[u8], form: TableForm) -> Result<()> {
        for (offset, entry) in entries(table)? {
            self.insert(offset, OpenAttribute::parse(entry, form)?)?;
        }
        Ok(())
    }

    /// Names follow each other: offset of the entry, bytes, the name, a zero.
    pub(super) fn read_names(&mut self, mut names: &[u8]) -> Result<()> {
        while names.len() >= 4 {
            let offset = u32::from(field::u16_le(names, 0)?);
            let bytes = usize::from(field::u16_le(names, 2)?);
            if offset == 0 {
                break;
            }
            let name = utf16(field::slice(names, 4, bytes)?);
            if let Some(entry) = self.entries.get_mut(&offset) {
                entry.name = name;
            }
            names = names.get(bytes.saturating_add(6)..).unwrap_or_default();
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, offset: u32, entry: OpenAttribute) -> Result<()> {
        if self.entries.len() >= MAX_ENTRIES {
            return Err(limit("open attributes"));
        }
        self.entries.insert(offset, entry);
        Ok(())
    }

    pub(super) fn get(&self, offset: u32) -> Option<&OpenAttribute> {
        self.entries.get(&offset)
    }
}

/// A page that was changed in memory.
#[derive(Debug)]
struct DirtyPage {
    oldest_lsn: u64,
    /// Where its clusters lie; 0 for one that is not allocated.
    clusters: Vec<u64>,
}

/// Dirty pages by attribute and first cluster in it.
#[derive(Debug)]
pub(super) struct DirtyPages {
    pages: BTreeMap<(u32, u64), DirtyPage>,
    /// Clusters of a page: a power of two.
    page_clusters: u64,
    clusters: usize,
}

impl DirtyPages {
    pub(super) fn new(page_bytes: u64, cluster_bytes: u64) -> Self {
        let clusters = page_bytes.checked_div(cluster_bytes).unwrap_or(1).max(1);
        Self {
            pages: BTreeMap::new(),
            page_clusters: clusters,
            clusters: 0,
        }
    }

    pub(super) fn read(&mut self, table: &[u8], form: TableForm) -> Result<()> {
        let (vcn, oldest, list) = match form {
            TableForm::Old => (20, 28, 36),
            TableForm::New => (16, 24, 32),
        };
        for (_, entry) in entries(table)? {
            let target = field::u32_le(entry, 4)?;
            let count = size(field::u32_le(entry, 12)?)?;
            let bytes = field::slice(entry, list, count.saturating_mul(8))?;
            let clusters: Vec<u64> = bytes
                .chunks_exact(8)
                .map(|cluster| field::u64_le(cluster, 0))
                .collect::<Result<_>>()?;
            if field::bytes(clusters.len()) != self.page_clusters {
                return Err(Error::unsupported(format!(
                    "dirty pages of {} clusters, where pages have {}",
                    clusters.len(),
                    self.page_clusters
                )));
            }
            let page = DirtyPage {
                oldest_lsn: field::u64_le(entry, oldest)?,
                clusters,
            };
            self.insert((target, field::u64_le(entry, vcn)?), page)?;
        }
        Ok(())
    }

    fn insert(&mut self, key: (u32, u64), mut page: DirtyPage) -> Result<()> {
        if key.1.checked_rem(self.page_clusters) != Some(0) {
            return Err(Error::corrupt(format!("a dirty page at cluster {}", key.1)));
        }
        self.clusters = self.clusters.saturating_add(page.clusters.len());
        if self.clusters > MAX_CLUSTERS {
            return Err(limit("dirty pages"));
        }
        // Pages of a cluster larger than they are share its entry: the oldest counts.
        if let Some(before) = self.pages.get(&key) {
            page.oldest_lsn = page.oldest_lsn.min(before.oldest_lsn);
        }
        self.pages.insert(key, page);
        Ok(())
    }

    fn key(&self, target: u32, vcn: u64) -> (u32, u64) {
        let inside = vcn.checked_rem(self.page_clusters).unwrap_or(0);
        (target, vcn.saturating_sub(inside))
    }

    /// Notes that a record changed these clusters of an attribute.
    pub(super) fn change(&mut self, lsn: u64, target: u32, vcn: u64, places: &[u64]) -> Result<()> {
        for (vcn, place) in (0..).map(|index| vcn.checked_add(index)).zip(places) {
            let vcn = vcn.ok_or_else(|| Error::corrupt("a cluster that cannot be counted"))?;
            let key = self.key(target, vcn);
            if !self.pages.contains_key(&key) {
                let page = DirtyPage {
                    oldest_lsn: lsn,
                    clusters: vec![0; size(u32::try_from(self.page_clusters).unwrap_or(u32::MAX))?],
                };
                self.insert(key, page)?;
            }
            if let Some(cluster) = self.cluster_mut(target, vcn) {
                *cluster = *place;
            }
        }
        Ok(())
    }

    fn cluster_mut(&mut self, target: u32, vcn: u64) -> Option<&mut u64> {
        let key = self.key(target, vcn);
        let index = usize::try_from(vcn.checked_sub(key.1)?).ok()?;
        self.pages.get_mut(&key)?.clusters.get_mut(index)
    }

    /// Moves a cluster that is still there to a better place.
    pub(super) fn hot_fix(&mut self, target: u32, vcn: u64, place: u64) {
        if let Some(cluster) = self.cluster_mut(target, vcn).filter(|place| **place != 0) {
            *cluster = place;
        }
    }

    /// Forgets clusters that were given up; says how many it looked at.
    pub(super) fn delete(&mut self, first: u64, count: u64) -> u64 {
        let range = first..first.saturating_add(count);
        for page in self.pages.values_mut() {
            for cluster in &mut page.clusters {
                if range.contains(cluster) {
                    *cluster = 0;
                }
            }
        }
        field::bytes(self.clusters)
    }

    /// From which LSN on a page must be done again; `None` when it was not dirty.
    pub(super) fn oldest_lsn(&self, target: u32, vcn: u64) -> Option<u64> {
        Some(self.pages.get(&self.key(target, vcn))?.oldest_lsn)
    }

    /// Where a cluster lies: 0 when it was given up, `None` when its page was not dirty.
    pub(super) fn place(&self, target: u32, vcn: u64) -> Option<u64> {
        let key = self.key(target, vcn);
        let index = usize::try_from(vcn.checked_sub(key.1)?).ok()?;
        self.pages.get(&key)?.clusters.get(index).copied()
    }

    /// The oldest change that may not have reached the volume.
    pub(super) fn redo_lsn(&self) -> Option<u64> {
        self.pages
            .values()
            .map(|page| page.oldest_lsn)
            .filter(|lsn| *lsn != 0)
            .min()
    }
}

/// How far a transaction came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransactionState {
    Active,
    Prepared,
    Committed,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Transaction {
    pub(super) state: TransactionState,
    pub(super) first_lsn: u64,
    /// The newest change that is to be taken back; 0 for none.
    pub(super) undo_next: u64,
}

/// Transactions that were going on, by their number.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    entries: BTreeMap<u32, Transaction>,
}

impl Transactions {
    pub(super) fn read(&mut self, table: &[u8]) -> Result<()> {
        for (offset, entry) in entries(table)? {
            let state = match field::u8_at(entry, 4)? {
                0 | 1 => TransactionState::Active,
                2 => TransactionState::Prepared,
                3 => TransactionState::Committed,
                other => {
                    return Err(Error::corrupt(format!("a transaction in state {other}")));
                }
            };
            let transaction = Transaction {
                state,
                first_lsn: field::u64_le(entry, 8)?,
                undo_next: field::u64_le(entry, 24)?,
            };
            self.entries.insert(offset, transaction);
        }
        Ok(())
    }

    /// The transaction of a record, begun when it is new.
    pub(super) fn entry(&mut self, number: u32, lsn: u64) -> Result<&mut Transaction> {
        if self.entries.len() >= MAX_ENTRIES {
            return Err(limit("transactions"));
        }
        Ok(self.entries.entry(number).or_insert(Transaction {
            state: TransactionState::Active,
            first_lsn: lsn,
            undo_next: 0,
        }))
    }

    pub(super) fn forget(&mut self, number: u32) {
        self.entries.remove(&number);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Transaction> {
        self.entries.values()
    }
}
