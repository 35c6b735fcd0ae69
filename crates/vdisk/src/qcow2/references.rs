//! Every reference from an image's structures to clusters of its file, in one walk.
//!
//! ```text
//! header ─ L1 ─ L2 … ─ data, compressed data      (active, then every internal snapshot)
//!        ├ snapshot table
//!        ├ bitmap directory ─ bitmap tables ─ bitmap data
//!        └ refcount table ─ refcount blocks        (only when asked for: a rebuild does without)
//! ```
//!
//! **Invariants.** Memory: one L1 table and one cluster. The number of entries looked at is bounded by the size of
//! the file and the number of snapshots, so that a small hostile image cannot be walked for ever.

use std::collections::BTreeSet;

use block::ReadAt;

use super::counters;
use super::entry::{self, COMPRESSED, OFFSET_MASK};
use super::header::{MAX_REFCOUNT_TABLE_BYTES, Qcow2Header};
use super::snapshot;
use crate::field::{be16, be32, be64, index};
use crate::{Error, ErrorKind, Result};

const MAX_BITMAPS: u32 = 65_535;
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
/// Greatest table of one bitmap: enough for a bit per 4 KiB of the largest disk.
const MAX_BITMAP_TABLE_ENTRIES: u64 = 4 << 20;

/// What holds a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    Header,
    RefcountTable,
    RefcountBlock,
    L1Table,
    L2Table,
    Data,
    Compressed,
    SnapshotTable,
    Bitmap,
}

/// One reference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reference {
    pub offset: u64,
    pub length: u64,
    pub holder: Holder,
    /// The L1 or L2 entry that refers, for those: its file offset and its value.
    pub entry: Option<(u64, u64)>,
    /// Whether the entry belongs to the active state: only there is its owned bit meant.
    pub is_active: bool,
}

/// What the walk meets.
#[derive(Debug)]
pub(super) enum Met {
    Reference(Reference),
    /// Something that cannot be followed, and the file offset of the L1 or L2 entry at fault, if it is one.
    Broken {
        entry_at: Option<u64>,
        text: String,
    },
}

/// Whether the counters' own clusters belong to the walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counters {
    Included,
    LeftOut,
}

struct Walk<'a, F> {
    header: &'a Qcow2Header,
    file: &'a dyn ReadAt,
    visit: F,
    budget: u64,
}

/// The numbers of the windows of `window` clusters, up to cluster `total`, in which anything is referred to or counted, and
/// of the first: a file may be long and hold little.
pub(super) fn windows(
    header: &Qcow2Header,
    file: &dyn ReadAt,
    counters: Counters,
    (window, total): (u64, u64),
) -> Result<BTreeSet<u64>> {
    let window = window.max(1);
    let mut found = BTreeSet::from([0]);
    if total <= window {
        return Ok(found);
    }
    let mut add = |first: u64, behind: u64| {
        let last = behind.min(total).saturating_sub(1);
        let at = |cluster: u64| cluster.checked_div(window).unwrap_or(0);
        found.extend(at(first.min(last))..=at(last));
    };
    if counters == Counters::Included {
        let length =
            u64::from(header.refcount_table_clusters).saturating_mul(header.cluster_bytes());
        let mut table = vec![0; index(length.min(MAX_REFCOUNT_TABLE_BYTES))];
        block::read_padded(file, header.refcount_table_offset, &mut table)?;
        let per_block = counters::per_block(header.cluster_bytes(), header.refcount_order);
        for (number, word) in (0u64..).zip(table.as_chunks::<8>().0) {
            if *word != [0; 8] {
                let first = number.saturating_mul(per_block);
                add(first, first.saturating_add(per_block));
            }
        }
    }
    walk(header, file, counters, |met| {
        if let Met::Reference(reference) = met
            && let Ok((first, behind)) = clusters(header, &reference, total)
        {
            add(first, behind);
        }
        Ok(())
    })?;
    Ok(found)
}

/// Walks every reference and hands it to `visit`, whose error ends the walk.
pub(super) fn walk(
    header: &Qcow2Header,
    file: &dyn ReadAt,
    counters: Counters,
    visit: impl FnMut(Met) -> Result<()>,
) -> Result<()> {
    let states = u64::from(header.snapshot_count.min(1024)).saturating_add(1);
    let budget = (file.size_bytes() / 8)
        .saturating_mul(states)
        .saturating_add(1 << 16);
    let mut walk = Walk {
        header,
        file,
        visit,
        budget,
    };
    walk.plain(0, header.cluster_bytes(), Holder::Header)?;
    if counters == Counters::Included {
        walk.counters()?;
    }
    walk.state(header.l1_offset, header.l1_entries, true)?;
    if header.snapshot_count > 0 {
        let (snapshots, length) = snapshot::read_table(header, file)?;
        walk.plain(header.snapshots_offset, length, Holder::SnapshotTable)?;
        for snapshot in snapshots {
            walk.state(snapshot.l1_offset, snapshot.l1_entries, false)?;
        }
    }
    walk.bitmaps()
}

impl<F: FnMut(Met) -> Result<()>> Walk<'_, F> {
    fn plain(&mut self, offset: u64, length: u64, holder: Holder) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        (self.visit)(Met::Reference(Reference {
            offset,
            length,
            holder,
            entry: None,
            is_active: false,
        }))
    }

    fn broken(&mut self, entry_at: Option<u64>, text: String) -> Result<()> {
        (self.visit)(Met::Broken { entry_at, text })
    }

    fn spend(&mut self, entries: u64) -> Result<()> {
        self.budget = self.budget.checked_sub(entries).ok_or_else(|| {
            Error::corrupt(
                "qcow2: tables refer to one another more often than the file has room for",
            )
        })?;
        Ok(())
    }

    /// A table of `count` words at `offset`, which lies inside the file; `None` (and broken) if it does not.
    fn table(&mut self, offset: u64, count: u64, what: &str) -> Result<Option<Vec<u8>>> {
        let length = count.saturating_mul(8);
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.file.size_bytes());
        if !inside {
            self.broken(
                None,
                format!("{what} at {offset:#x} reaches out of the file"),
            )?;
            return Ok(None);
        }
        self.spend(count)?;
        let mut table = vec![0u8; index(length)];
        self.file.read_at(offset, &mut table)?;
        Ok(Some(table))
    }

    fn counters(&mut self) -> Result<()> {
        let header = self.header;
        let table_bytes =
            u64::from(header.refcount_table_clusters).saturating_mul(header.cluster_bytes());
        if table_bytes > MAX_REFCOUNT_TABLE_BYTES
            || !header.is_aligned(header.refcount_table_offset)
        {
            return self.broken(
                None,
                format!(
                    "refcount table of {table_bytes} bytes at {:#x}",
                    header.refcount_table_offset
                ),
            );
        }
        self.plain(
            header.refcount_table_offset,
            table_bytes,
            Holder::RefcountTable,
        )?;
        let at = header.refcount_table_offset;
        let Some(table) = self.table(at, table_bytes / 8, "refcount table")? else {
            return Ok(());
        };
        for (number, word) in words(&table) {
            let offset = word & !511;
            if word == 0 {
                continue;
            }
            if offset == 0 || !header.is_aligned(offset) || word & 511 != 0 {
                self.broken(None, format!("refcount table entry {number} is {word:#x}"))?;
                continue;
            }
            self.plain(offset, header.cluster_bytes(), Holder::RefcountBlock)?;
        }
        Ok(())
    }

    fn state(&mut self, l1_offset: u64, l1_entries: u64, is_active: bool) -> Result<()> {
        let header = self.header;
        if l1_entries == 0 {
            return Ok(());
        }
        self.plain(l1_offset, l1_entries.saturating_mul(8), Holder::L1Table)?;
        let Some(l1) = self.table(l1_offset, l1_entries, "L1 table")? else {
            return Ok(());
        };
        for (number, word) in words(&l1) {
            let entry_at = l1_offset.saturating_add(number.saturating_mul(8));
            let l2_offset = match entry::l2_offset(header, word, number) {
                Ok(Some(offset)) => offset,
                Ok(None) => continue,
                Err(error) => {
                    self.broken(Some(entry_at), error.to_string())?;
                    continue;
                }
            };
            (self.visit)(Met::Reference(Reference {
                offset: l2_offset,
                length: header.cluster_bytes(),
                holder: Holder::L2Table,
                entry: Some((entry_at, word)),
                is_active,
            }))?;
            let words_in_table = header.cluster_bytes() / 8;
            if l2_offset.saturating_add(header.cluster_bytes()) > self.file.size_bytes() {
                self.broken(
                    Some(entry_at),
                    format!("L2 table at {l2_offset:#x} reaches out of the file"),
                )?;
                continue;
            }
            if let Some(l2) = self.table(l2_offset, words_in_table, "L2 table")? {
                self.l2(&l2, (l2_offset, number), is_active)?;
            }
        }
        Ok(())
    }

    fn l2(&mut self, l2: &[u8], (l2_offset, l1_index): (u64, u64), is_active: bool) -> Result<()> {
        let header = self.header;
        let step = if header.has_extended_l2() { 2 } else { 1 };
        for (number, word) in words(l2).step_by(step) {
            if word == 0 {
                continue;
            }
            let entry_at = l2_offset.saturating_add(number.saturating_mul(8));
            let in_table = if step == 2 { number / 2 } else { number };
            let guest = l1_index
                .saturating_mul(header.l2_entries())
                .saturating_add(in_table)
                .saturating_mul(header.cluster_bytes());
            let reference = if word & COMPRESSED != 0 {
                match entry::decode(header, word, None, guest) {
                    Ok(entry::Cluster::Compressed { offset, length }) => {
                        Some((offset, length, Holder::Compressed))
                    }
                    Ok(_) => None,
                    Err(error) => {
                        self.broken(Some(entry_at), error.to_string())?;
                        None
                    }
                }
            } else {
                self.standard(word, entry_at, guest)?
            };
            if let Some((offset, length, holder)) = reference {
                let entry = Some((entry_at, word));
                let reference = Reference {
                    offset,
                    length,
                    holder,
                    entry,
                    is_active,
                };
                (self.visit)(Met::Reference(reference))?;
            }
        }
        Ok(())
    }

    fn standard(
        &mut self,
        word: u64,
        entry_at: u64,
        guest: u64,
    ) -> Result<Option<(u64, u64, Holder)>> {
        let host = word & OFFSET_MASK;
        if !self.header.is_aligned(host) {
            let text = format!(
                "L2 entry of guest offset {guest:#x}: host offset {host:#x} is not on a cluster"
            );
            self.broken(Some(entry_at), text)?;
            return Ok(None);
        }
        // Clusters of an external data file are not counted.
        let counted = host != 0 && !self.header.needs_data_file();
        Ok(counted.then_some((host, self.header.cluster_bytes(), Holder::Data)))
    }

    fn bitmaps(&mut self) -> Result<()> {
        let Some(extension) = self.header.bitmaps else {
            return Ok(());
        };
        let (start, length) = (extension.directory_offset, extension.directory_bytes);
        if length > MAX_DIRECTORY_BYTES || extension.count > MAX_BITMAPS {
            return self.broken(None, format!("bitmap directory of {length} bytes"));
        }
        self.plain(start, length, Holder::Bitmap)?;
        let Some(directory) = self.table(start, length.div_ceil(8), "bitmap directory")? else {
            return Ok(());
        };
        let what = "bitmap directory entry";
        let mut at = 0usize;
        for _ in 0..extension.count {
            let table_offset = be64(&directory, at, what)?;
            let entries = u64::from(be32(&directory, at.saturating_add(8), what)?);
            let name = u64::from(be16(&directory, at.saturating_add(18), what)?);
            let extra = u64::from(be32(&directory, at.saturating_add(20), what)?);
            self.bitmap_table(table_offset, entries)?;
            let size = 24u64.saturating_add(name).saturating_add(extra);
            at = at.saturating_add(index(size.checked_next_multiple_of(8).unwrap_or(u64::MAX)));
        }
        Ok(())
    }

    fn bitmap_table(&mut self, offset: u64, entries: u64) -> Result<()> {
        if entries > MAX_BITMAP_TABLE_ENTRIES {
            return self.broken(None, format!("bitmap table of {entries} entries"));
        }
        self.plain(offset, entries.saturating_mul(8), Holder::Bitmap)?;
        let Some(table) = self.table(offset, entries, "bitmap table")? else {
            return Ok(());
        };
        for (_, word) in words(&table) {
            let cluster = word & OFFSET_MASK;
            if cluster != 0 {
                self.plain(cluster, self.header.cluster_bytes(), Holder::Bitmap)?;
            }
        }
        Ok(())
    }
}

/// The big-endian words of a table with their numbers.
fn words(table: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    (0u64..).zip(
        table
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_be_bytes(*word)),
    )
}

/// The clusters that a reference touches: the first and the one behind the last. Out of the file is an error.
pub(super) fn clusters(
    header: &Qcow2Header,
    reference: &Reference,
    file_clusters: u64,
) -> Result<(u64, u64)> {
    let outside = || {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "qcow2 {:?} at {:#x}, {} bytes: outside the file",
                reference.holder, reference.offset, reference.length
            ),
        )
    };
    let end = reference
        .offset
        .checked_add(reference.length)
        .ok_or_else(outside)?;
    let first = header.cluster_of(reference.offset);
    let behind = end.div_ceil(header.cluster_bytes().max(1));
    if behind > file_clusters {
        return Err(outside());
    }
    Ok((first, behind))
}
