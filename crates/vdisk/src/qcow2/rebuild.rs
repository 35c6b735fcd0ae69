//! Counters made anew from references: how a build ends, how a table grows, how an image is repaired.
//!
//! ```text
//! before  │ header │ … clusters, old counters among them …            │
//! after   │ header │ … clusters, old counters now free …              │ blocks │ table │
//!              └──────────────────────── switched last ────────────────────────────┘
//! ```
//!
//! **Invariants.** Nothing that the old header refers to is overwritten before the new counters are durable, so a crash at
//! any write leaves the image as it was or whole. Memory: one window of counters, 32 MiB at most.

use block::WriteAt;

use super::counters;
use super::entry::OWNED;
use super::header::{MAX_REFCOUNT_TABLE_BYTES, Qcow2Header, clusters_in_file};
use super::references::{self, Counters, Holder, Met, Reference};
use crate::field::{index, put};
use crate::{Error, ErrorKind, Result};

/// Counters held at once: 32 MiB of memory, 512 GiB of file with default clusters.
pub(super) const WINDOW_CLUSTERS: u64 = 8 << 20;
/// Windows that a file may need before it is refused: 128 TiB of file with default clusters.
pub(super) const MAX_WINDOWS: u64 = 256;

/// What to do with owned bits that contradict the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnedBits {
    /// They are right already.
    Trusted,
    /// Set and cleared as the counters say.
    Corrected,
}

/// Where the new counters go.
struct Plan {
    /// First cluster behind the present file.
    base: u64,
    blocks: u64,
    table_clusters: u64,
    per_block: u64,
}

impl Plan {
    fn new(header: &Qcow2Header, file: &dyn WriteAt) -> Result<Self> {
        let base = clusters_in_file(header, file);
        let per_block = counters::per_block(header.cluster_bytes(), header.refcount_order);
        let per_table_cluster = (header.cluster_bytes() / 8).max(1);
        let (mut blocks, mut table_clusters) = (1u64, 1u64);
        // Grows to a fixed point: each round adds what the round before needs itself.
        for _ in 0..64 {
            let total = base.saturating_add(blocks).saturating_add(table_clusters);
            let need_blocks = total.div_ceil(per_block);
            // Twice the room, so that a growing image meets this rarely.
            let need_table = need_blocks.saturating_mul(2).div_ceil(per_table_cluster);
            if (need_blocks, need_table) == (blocks, table_clusters) {
                break;
            }
            blocks = blocks.max(need_blocks);
            table_clusters = table_clusters.max(need_table);
        }
        let plan = Self {
            base,
            blocks,
            table_clusters,
            per_block,
        };
        let table_bytes = table_clusters.saturating_mul(header.cluster_bytes());
        let windows = plan.total().div_ceil(plan.window());
        if table_bytes > MAX_REFCOUNT_TABLE_BYTES || windows > MAX_WINDOWS {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "qcow2: a file of {} bytes is too large for its clusters",
                    file.size_bytes()
                ),
            ));
        }
        Ok(plan)
    }

    fn total(&self) -> u64 {
        self.base
            .saturating_add(self.blocks)
            .saturating_add(self.table_clusters)
    }

    /// Clusters per window: a multiple of a block's.
    fn window(&self) -> u64 {
        let blocks = WINDOW_CLUSTERS
            .checked_div(self.per_block)
            .unwrap_or(1)
            .max(1);
        blocks.saturating_mul(self.per_block)
    }
}

/// Writes new counters and switches `header`, in the file and in memory, to them.
///
/// # Errors
/// `Corrupt` when a reference leads out of the file or cannot be followed; `Unsupported` when a count does not fit.
pub(super) fn rebuild(
    file: &dyn WriteAt,
    header: &mut Qcow2Header,
    owned: OwnedBits,
) -> Result<()> {
    let plan = Plan::new(header, file)?;
    let window = plan.window();
    let total = (window, plan.total());
    let mut numbers = references::windows(header, file, Counters::LeftOut, total)?;
    // The new counters count themselves.
    let of = |cluster: u64| cluster.checked_div(window).unwrap_or(0);
    numbers.extend(of(plan.base)..=of(plan.total().saturating_sub(1)));
    for start in numbers
        .into_iter()
        .map(|number| number.saturating_mul(window))
    {
        let end = start.saturating_add(window).min(plan.total());
        let counts = count(file, header, &plan, (start, end))?;
        if owned == OwnedBits::Corrected {
            correct_owned(file, header, &plan, (start, &counts))?;
        }
        write_blocks(file, header, &plan, (start, &counts))?;
    }
    let cluster = header.cluster_bytes();
    let mut table = vec![0u8; index(plan.table_clusters.saturating_mul(cluster))];
    for number in 0..plan.blocks {
        let offset = plan.base.saturating_add(number).saturating_mul(cluster);
        put(
            &mut table,
            index(number.saturating_mul(8)),
            &offset.to_be_bytes(),
        );
    }
    let table_offset = plan
        .base
        .saturating_add(plan.blocks)
        .saturating_mul(cluster);
    file.write_at(table_offset, &table)?;
    file.flush()?;
    header.refcount_table_offset = table_offset;
    header.refcount_table_clusters = u32::try_from(plan.table_clusters).unwrap_or(u32::MAX);
    let mut fields = [0u8; 12];
    put(&mut fields, 0, &header.refcount_table_offset.to_be_bytes());
    put(
        &mut fields,
        8,
        &header.refcount_table_clusters.to_be_bytes(),
    );
    file.write_at(48, &fields)?;
    file.flush()?;
    Ok(())
}

/// References per cluster of one window.
fn count(
    file: &dyn WriteAt,
    header: &Qcow2Header,
    plan: &Plan,
    (start, end): (u64, u64),
) -> Result<Vec<u32>> {
    let mut counts = vec![0u32; index(end.saturating_sub(start))];
    let mut add = |first: u64, behind: u64| {
        let from = index(first.max(start).saturating_sub(start));
        let to = index(behind.min(end).saturating_sub(start));
        for count in counts.get_mut(from..to).into_iter().flatten() {
            *count = count.saturating_add(1);
        }
    };
    references::walk(header, file, Counters::LeftOut, |met| {
        let (first, behind) = references::clusters(header, &reference_of(met)?, plan.base)?;
        if behind > start && first < end {
            add(first, behind);
        }
        Ok(())
    })?;
    if plan.total() > start && plan.base < end {
        add(plan.base, plan.total());
    }
    Ok(counts)
}

fn reference_of(met: Met) -> Result<Reference> {
    match met {
        Met::Reference(reference) => Ok(reference),
        Met::Broken { text, .. } => Err(Error::corrupt(format!("qcow2: {text}"))),
    }
}

/// Sets the owned bit of every active entry whose cluster lies in the window.
fn correct_owned(
    file: &dyn WriteAt,
    header: &Qcow2Header,
    plan: &Plan,
    (start, counts): (u64, &[u32]),
) -> Result<()> {
    references::walk(header, file, Counters::LeftOut, |met| {
        let reference = reference_of(met)?;
        let Some((at, word)) = reference.entry.filter(|_| reference.is_active) else {
            return Ok(());
        };
        let (first, _) = references::clusters(header, &reference, plan.base)?;
        let count = first
            .checked_sub(start)
            .and_then(|number| counts.get(index(number)));
        let Some(count) = count else { return Ok(()) };
        let should = *count == 1 && reference.holder != Holder::Compressed;
        let right = if should { word | OWNED } else { word & !OWNED };
        if right != word {
            file.write_at(at, &right.to_be_bytes())?;
        }
        Ok(())
    })
}

fn write_blocks(
    file: &dyn WriteAt,
    header: &Qcow2Header,
    plan: &Plan,
    (start, counts): (u64, &[u32]),
) -> Result<()> {
    let greatest = counters::greatest(header.refcount_order);
    let first_block = start.checked_div(plan.per_block).unwrap_or(0);
    for (block, counts) in (first_block..).zip(counts.chunks(index(plan.per_block).max(1))) {
        // What lies behind the end of the file is zero already.
        if counts.iter().all(|count| *count == 0) {
            continue;
        }
        let mut encoded = vec![0u8; index(header.cluster_bytes())];
        for (number, count) in (0u64..).zip(counts) {
            let count = u64::from(*count);
            if count > greatest {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("qcow2: {count} references to one cluster do not fit its counters"),
                ));
            }
            counters::set(&mut encoded, header.refcount_order, number, count);
        }
        let offset = plan
            .base
            .saturating_add(block)
            .saturating_mul(header.cluster_bytes());
        file.write_at(offset, &encoded)?;
    }
    Ok(())
}
