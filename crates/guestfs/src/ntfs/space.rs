//! What of the volume is in use: `$Bitmap`, one bit per cluster.

use std::ops::ControlFlow;

use super::arithmetic::{length, multiply};
use super::record::DATA;
use super::stream::AttributeReader;
use super::table::FileTable;
use crate::filesystem::VolumeRange;
use crate::{Error, ErrorKind, Result};

const BITMAP_RECORD: u64 = 6;
const WINDOW_BYTES: u64 = 256 << 10;
/// Runs of used clusters that are kept: 1 MiB.
const RUNS_KEPT: usize = 1 << 16;
/// Of the files that a replay changed.
const MAX_REPLAY_RUNS: usize = 1 << 20;

/// Clusters that must not be lost where the journal was replayed in memory only, since Windows will replay it again on what lies
/// there: what the changed file records name, before and after, and all that the replay would have written to. Ascending,
/// apart from each other: first and count.
pub(super) fn clusters_of_replay(
    tables: &[&FileTable],
    records: &[u64],
    places: &[(u64, u64)],
) -> Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for table in tables {
        let cluster_bytes = table.geometry.cluster_bytes;
        for (offset, size) in places {
            let first = offset.checked_div(cluster_bytes).unwrap_or(0);
            let end = offset.saturating_add(*size).div_ceil(cluster_bytes.max(1));
            found.push((first, end.saturating_sub(first)));
        }
        for number in records {
            // A record that is not readable on one side names nothing there; on the other it was checked.
            found.extend(table.clusters_of_record(*number).unwrap_or_default());
            if found.len() > MAX_REPLAY_RUNS {
                found = merged(found);
            }
            if found.len() > MAX_REPLAY_RUNS {
                return Err(Error::new(
                    ErrorKind::Limit,
                    "the journal changed files of too many pieces",
                ));
            }
        }
    }
    Ok(merged(found))
}

fn merged(mut runs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    runs.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (first, count) in runs {
        match merged.last_mut() {
            Some((start, length)) if first <= start.saturating_add(*length) => {
                let end = first.saturating_add(count);
                *length = (*length).max(end.saturating_sub(*start));
            }
            _ => merged.push((first, count)),
        }
    }
    merged
}

/// Runs of clusters that are in use in any of the bitmaps, or among the others; ascending.
pub(super) fn used_clusters(
    tables: &[&FileTable],
    others: &[(u64, u64)],
    visit: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let Some(total) = tables.first().map(|table| table.geometry.total_clusters) else {
        return Ok(());
    };
    let readers = tables
        .iter()
        .map(|table| bitmap(table))
        .collect::<Result<Vec<_>>>()?;
    let bytes = total.div_ceil(8);
    let mut run: Option<(u64, u64)> = None;
    let mut offset = 0;
    let mut others = others;
    while offset < bytes {
        let left = length(bytes.saturating_sub(offset).min(WINDOW_BYTES))?;
        let mut window = vec![0; left];
        let mut part = vec![0; left];
        for reader in &readers {
            reader.read(offset, &mut part)?;
            for (all, one) in window.iter_mut().zip(&part) {
                *all |= *one;
            }
        }
        others = set_bits(&mut window, offset, others);
        for (number, byte) in (0_u64..).zip(window.iter()) {
            let first = offset.saturating_add(number).saturating_mul(8);
            if extend(&mut run, first, *byte, total, visit).is_break() {
                return Ok(());
            }
        }
        offset = offset.saturating_add(WINDOW_BYTES);
    }
    if let Some((first, count)) = run {
        // The last run: whether the visitor wants more does not matter.
        let _ = visit(first, count);
    }
    Ok(())
}

/// Opens the bitmap, and sees to it that it speaks of all clusters.
fn bitmap(table: &FileTable) -> Result<AttributeReader> {
    let total = table.geometry.total_clusters;
    let file = table.file(BITMAP_RECORD)?;
    let reader = table.reader(&file, DATA, &[])?;
    if reader.size_bytes() < total.div_ceil(8) {
        return Err(Error::corrupt(format!(
            "$Bitmap has {} bytes for {total} clusters",
            reader.size_bytes()
        )));
    }
    if multiply(total, table.geometry.cluster_bytes)? > table.device.size_bytes() {
        return Err(Error::corrupt(format!(
            "the file system has {total} clusters, more than the volume"
        )));
    }
    Ok(reader)
}

/// Sets the bits of those runs that reach into a window; gives those that reach beyond.
fn set_bits<'r>(window: &mut [u8], offset: u64, mut runs: &'r [(u64, u64)]) -> &'r [(u64, u64)] {
    let start = offset.saturating_mul(8);
    let end = start.saturating_add(crate::field::bytes(window.len()).saturating_mul(8));
    while let Some(((first, count), rest)) = runs.split_first() {
        let behind = first.saturating_add(*count);
        for cluster in (*first).max(start)..behind.min(end) {
            let inside = cluster.saturating_sub(start);
            let byte = usize::try_from(inside / 8)
                .ok()
                .and_then(|index| window.get_mut(index));
            if let Some(byte) = byte {
                let bit = u32::try_from(inside % 8).unwrap_or(0);
                *byte |= 1_u8.wrapping_shl(bit);
            }
        }
        if behind > end {
            break;
        }
        runs = rest;
    }
    runs
}

/// Adds eight clusters to the run, telling it when it ends.
fn extend(
    run: &mut Option<(u64, u64)>,
    first: u64,
    byte: u8,
    total: u64,
    visit: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if byte == 0xFF && first.saturating_add(8) <= total {
        let (start, count) = run.unwrap_or((first, 0));
        *run = Some((start, count.saturating_add(8)));
        return ControlFlow::Continue(());
    }
    if byte == 0 && run.is_none() {
        return ControlFlow::Continue(());
    }
    for bit in 0..8_u8 {
        let cluster = first.saturating_add(u64::from(bit));
        let is_used = byte & 1_u8.wrapping_shl(u32::from(bit)) != 0 && cluster < total;
        match (*run, is_used) {
            (Some((start, count)), true) => *run = Some((start, count.saturating_add(1))),
            (None, true) => *run = Some((cluster, 1)),
            (Some((start, count)), false) => {
                *run = None;
                visit(start, count)?;
            }
            (None, false) => {}
        }
    }
    ControlFlow::Continue(())
}

/// The same in bytes of the volume, with what lies behind the last cluster, where the copy of the boot sector is.
pub(super) fn used_ranges(
    tables: &[&FileTable],
    others: &[(u64, u64)],
    visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
) -> Result<()> {
    let Some(table) = tables.first() else {
        return Ok(());
    };
    let mut ranges = Ranges::new(table, visit)?;
    used_clusters(tables, others, &mut |first, count| ranges.add(first, count))?;
    ranges.finish();
    Ok(())
}

/// The same of runs that [`count`] found.
pub(super) fn known_ranges(
    table: &FileTable,
    runs: &[(u64, u64)],
    visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
) -> Result<()> {
    let mut ranges = Ranges::new(table, visit)?;
    let _ = runs
        .iter()
        .try_for_each(|(first, count)| ranges.add(*first, *count));
    ranges.finish();
    Ok(())
}

/// Runs of clusters on their way to a visitor: the last one waits for what lies behind all clusters.
struct Ranges<'v> {
    cluster_bytes: u64,
    tail: u64,
    end: u64,
    last: Option<VolumeRange>,
    is_stopped: bool,
    visit: &'v mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
}

impl<'v> Ranges<'v> {
    fn new(
        table: &FileTable,
        visit: &'v mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
    ) -> Result<Self> {
        let cluster_bytes = table.geometry.cluster_bytes;
        Ok(Self {
            cluster_bytes,
            tail: multiply(table.geometry.total_clusters, cluster_bytes)?,
            end: table.device.size_bytes(),
            last: None,
            is_stopped: false,
            visit,
        })
    }

    fn add(&mut self, first: u64, count: u64) -> ControlFlow<()> {
        if let Some(range) = self.last.take()
            && (self.visit)(range).is_break()
        {
            self.is_stopped = true;
            return ControlFlow::Break(());
        }
        self.last = Some(VolumeRange {
            offset: first.saturating_mul(self.cluster_bytes),
            length_bytes: count.saturating_mul(self.cluster_bytes),
        });
        ControlFlow::Continue(())
    }

    fn finish(self) {
        if self.is_stopped {
            return;
        }
        let behind = VolumeRange {
            offset: self.tail,
            length_bytes: self.end.saturating_sub(self.tail),
        };
        let ranges = match self.last {
            Some(range) if range.offset.saturating_add(range.length_bytes) == self.tail => {
                vec![VolumeRange {
                    offset: range.offset,
                    length_bytes: self.end.saturating_sub(range.offset),
                }]
            }
            Some(range) => vec![range, behind],
            None => vec![behind],
        };
        for range in ranges.into_iter().filter(|range| range.length_bytes > 0) {
            if (self.visit)(range).is_break() {
                break;
            }
        }
    }
}

/// Runs of used clusters: the first of each and how many.
pub(super) type UsedRuns = Vec<(u64, u64)>;

/// Bytes of free clusters, and the runs of used ones when they are few: the bitmap of a large volume is read once.
pub(super) fn count(table: &FileTable) -> Result<(u64, Option<UsedRuns>)> {
    let mut used = 0_u64;
    let mut runs = Some(Vec::new());
    used_clusters(&[table], &[], &mut |first, count| {
        used = used.saturating_add(count);
        if let Some(kept) = &mut runs {
            kept.push((first, count));
        }
        if runs.as_ref().is_some_and(|kept| kept.len() > RUNS_KEPT) {
            runs = None;
        }
        ControlFlow::Continue(())
    })?;
    let free = table.geometry.total_clusters.saturating_sub(used);
    Ok((free.saturating_mul(table.geometry.cluster_bytes), runs))
}
