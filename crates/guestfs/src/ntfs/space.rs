//! What of the volume is in use: `$Bitmap`, one bit per cluster.

use std::ops::ControlFlow;

use super::arithmetic::{length, multiply};
use super::record::DATA;
use super::table::FileTable;
use crate::filesystem::VolumeRange;
use crate::{Error, Result};

const BITMAP_RECORD: u64 = 6;
const WINDOW_BYTES: u64 = 256 << 10;

/// Runs of clusters in use, ascending.
pub(super) fn used_clusters(
    table: &FileTable,
    visit: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let total = table.geometry.total_clusters;
    let file = table.file(BITMAP_RECORD)?;
    let reader = table.reader(&file, DATA, &[])?;
    let bytes = total.div_ceil(8);
    if reader.size_bytes() < bytes {
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
    let mut run: Option<(u64, u64)> = None;
    let mut offset = 0;
    let mut window = vec![0; length(WINDOW_BYTES.min(bytes))?];
    while offset < bytes {
        let left = length(bytes.saturating_sub(offset).min(WINDOW_BYTES))?;
        let Some(part) = window.get_mut(..left) else {
            break;
        };
        reader.read(offset, part)?;
        for (number, byte) in (0_u64..).zip(part.iter()) {
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
    table: &FileTable,
    visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
) -> Result<()> {
    let cluster_bytes = table.geometry.cluster_bytes;
    let tail = multiply(table.geometry.total_clusters, cluster_bytes)?;
    let end = table.device.size_bytes();
    let mut is_stopped = false;
    let mut last: Option<VolumeRange> = None;
    used_clusters(table, &mut |first, count| {
        if let Some(range) = last.take()
            && visit(range).is_break()
        {
            is_stopped = true;
            return ControlFlow::Break(());
        }
        last = Some(VolumeRange {
            offset: first.saturating_mul(cluster_bytes),
            length_bytes: count.saturating_mul(cluster_bytes),
        });
        ControlFlow::Continue(())
    })?;
    if is_stopped {
        return Ok(());
    }
    let behind = VolumeRange {
        offset: tail,
        length_bytes: end.saturating_sub(tail),
    };
    let ranges = match last {
        Some(range) if range.offset.saturating_add(range.length_bytes) == tail => {
            vec![VolumeRange {
                offset: range.offset,
                length_bytes: end.saturating_sub(range.offset),
            }]
        }
        Some(range) => vec![range, behind],
        None => vec![behind],
    };
    for range in ranges.into_iter().filter(|range| range.length_bytes > 0) {
        if visit(range).is_break() {
            break;
        }
    }
    Ok(())
}

/// Bytes of free clusters.
pub(super) fn free_bytes(table: &FileTable) -> Result<u64> {
    let mut used = 0_u64;
    used_clusters(table, &mut |_, count| {
        used = used.saturating_add(count);
        ControlFlow::Continue(())
    })?;
    Ok(table
        .geometry
        .total_clusters
        .saturating_sub(used)
        .saturating_mul(table.geometry.cluster_bytes))
}
