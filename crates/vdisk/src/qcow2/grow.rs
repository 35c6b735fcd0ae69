//! A larger disk in the same file.
//!
//! ```text
//!   1 counters of new clusters ─flush─► longer L1 table ─flush─► header: L1 place and length (one sector) ─► old L1 released
//!   2 what would show through behind the old end ─► zeroed, while the header still has the old size
//!   3 header: size (one sector)
//! ```
//!
//! **Invariants.** A crash at any moment leaves the old size or the new one, every byte of the old disk, and leaked clusters
//! at worst. What lies behind the old end reads as zeros from the moment that it is part of the disk, also where a longer
//! parent has data. Snapshots keep their own sizes.
//!
//! Not done: making a disk smaller.

use std::sync::Arc;

use block::{ExtentKind, ReadAt, WriteAt};

use super::header::MAX_L1_BYTES;
use super::writer::Qcow2Writer;
use crate::{Error, ErrorKind, Result, map};

/// Where the size lies in the header.
const SIZE_AT: u64 = 24;
const SECTOR_BYTES: u64 = 512;

/// Makes the disk larger. `parent` is the content of the image's backing disk.
///
/// # Errors
/// `Invalid` for a size that is smaller or no whole number of sectors; `Unsupported` for more than the L1 table can hold
/// and for a version 2 image with internal snapshots, which do not know their size; as [`Qcow2Writer::open`].
pub fn grow(
    file: &Arc<dyn WriteAt>,
    parent: Option<Arc<dyn ReadAt>>,
    size_bytes: u64,
) -> Result<()> {
    let writer = Qcow2Writer::open(Arc::clone(file), parent.clone())?;
    let header = writer.header().clone();
    let old_size = header.size_bytes();
    if size_bytes < old_size || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        let context = format!(
            "qcow2: a disk of {old_size} bytes cannot become one of {size_bytes}: only larger, in sectors of 512"
        );
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    if size_bytes == old_size {
        return writer.finish();
    }
    if header.version == 2 && header.snapshot_count > 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "qcow2: a version 2 image with internal snapshots cannot be enlarged",
        ));
    }
    let entries = size_bytes.div_ceil(header.bytes_per_l2().max(1));
    if entries.saturating_mul(8) > MAX_L1_BYTES {
        let context = format!(
            "qcow2: a disk of {size_bytes} bytes needs larger clusters than {} bytes",
            header.cluster_bytes()
        );
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    if entries > header.l1_entries {
        writer.lengthen_l1(entries)?;
    }
    writer.finish()?;
    // Only what lies under the old table, or in the parent, can be anything but nothing.
    let mapped = header.l1_entries.saturating_mul(header.bytes_per_l2());
    let shown = parent.as_ref().map_or(0, |parent| parent.size_bytes());
    let end = size_bytes.min(mapped.max(shown));
    let writer = Qcow2Writer::open_larger(Arc::clone(file), parent, size_bytes)?;
    for extent in map::extents_in(&writer, old_size, end.saturating_sub(old_size)) {
        let extent = extent?;
        match extent.kind {
            ExtentKind::Data => writer.zero_range(extent.offset, extent.length_bytes)?,
            ExtentKind::InParent => {
                return Err(Error::new(
                    ErrorKind::ParentNotFound,
                    "qcow2: a child is enlarged only with its parent at hand",
                ));
            }
            ExtentKind::Zero | ExtentKind::Unallocated => {}
        }
    }
    writer.finish()?;
    file.flush()?;
    file.write_at(SIZE_AT, &size_bytes.to_be_bytes())?;
    Ok(file.flush()?)
}
