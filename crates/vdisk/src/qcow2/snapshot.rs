//! The table of internal snapshots: names and where their L1 tables lie. Their states are not read.
//!
//! **Invariants.** At most 65,536 entries and 64 MiB are looked at, as QEMU does; more is refused.

use block::ReadAt;

use super::header::{MAX_L1_BYTES, Qcow2Header};
use crate::field::{be16, be32, be64, index};
use crate::{Error, ErrorKind, Result};

const MAX_SNAPSHOTS: u32 = 65_536;
const MAX_TABLE_BYTES: u64 = 64 << 20;
const MAX_EXTRA_BYTES: u64 = 1024;

/// An internal snapshot as the image lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Unique text id ("1", "2", …).
    pub id: String,
    /// The name it was given.
    pub name: String,
    /// Seconds since the Unix epoch when it was taken.
    pub taken_s: u32,
    /// Bytes of the virtual disk at that time, where recorded.
    pub size_bytes: Option<u64>,
    /// Bytes of saved machine state, 0 for a disk-only snapshot.
    pub vm_state_bytes: u64,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u64,
}

/// Reads the snapshot table and tells the bytes it takes in the file.
pub(super) fn read_table(
    header: &Qcow2Header,
    file: &(impl ReadAt + ?Sized),
) -> Result<(Vec<Snapshot>, u64)> {
    if header.snapshot_count > MAX_SNAPSHOTS {
        return Err(Error::corrupt(format!(
            "qcow2 header: {} snapshots are too many",
            header.snapshot_count
        )));
    }
    if header.snapshot_count > 0 && !header.is_aligned(header.snapshots_offset) {
        return Err(Error::corrupt(format!(
            "qcow2 snapshot table: offset {:#x} is not on a cluster",
            header.snapshots_offset
        )));
    }
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    for number in 0..header.snapshot_count {
        let (snapshot, length) = read_entry(header, file, at, number)?;
        snapshots.push(snapshot);
        at = at.saturating_add(length);
        if at.saturating_sub(header.snapshots_offset) > MAX_TABLE_BYTES {
            return Err(Error::corrupt("qcow2 snapshot table: longer than 64 MiB"));
        }
    }
    Ok((snapshots, at.saturating_sub(header.snapshots_offset)))
}

fn read_entry(
    header: &Qcow2Header,
    file: &(impl ReadAt + ?Sized),
    at: u64,
    number: u32,
) -> Result<(Snapshot, u64)> {
    let place = |error: block::Error| {
        let kind = if error.kind() == block::ErrorKind::OutOfRange {
            ErrorKind::Corrupt
        } else {
            ErrorKind::Io
        };
        Error::with_source(kind, format!("qcow2 snapshot {number} at {at:#x}"), error)
    };
    let mut fixed = [0u8; 40];
    file.read_at(at, &mut fixed).map_err(place)?;
    let what = "snapshot entry";
    let id_length = u64::from(be16(&fixed, 12, what)?);
    let name_length = u64::from(be16(&fixed, 14, what)?);
    let extra_length = u64::from(be32(&fixed, 36, what)?);
    if extra_length > MAX_EXTRA_BYTES {
        return Err(Error::corrupt(format!(
            "qcow2 snapshot {number}: {extra_length} bytes of extra data"
        )));
    }
    let variable = extra_length
        .saturating_add(id_length)
        .saturating_add(name_length);
    let mut rest = vec![0u8; index(variable)];
    file.read_at(at.saturating_add(40), &mut rest)
        .map_err(place)?;
    let (extra, texts) = rest.split_at(index(extra_length).min(rest.len()));
    let (id, name) = texts.split_at(index(id_length).min(texts.len()));
    let l1_offset = be64(&fixed, 0, what)?;
    let l1_entries = u64::from(be32(&fixed, 8, what)?);
    if l1_entries.saturating_mul(8) > MAX_L1_BYTES || !header.is_aligned(l1_offset) {
        return Err(Error::corrupt(format!(
            "qcow2 snapshot {number}: L1 table of {l1_entries} entries at {l1_offset:#x}"
        )));
    }
    let snapshot = Snapshot {
        id: String::from_utf8_lossy(id).into_owned(),
        name: String::from_utf8_lossy(name).into_owned(),
        taken_s: be32(&fixed, 16, what)?,
        size_bytes: be64(extra, 8, what).ok(),
        vm_state_bytes: be64(extra, 0, what).or_else(|_| be32(&fixed, 32, what).map(u64::from))?,
        l1_offset,
        l1_entries,
    };
    let length = 40u64.saturating_add(variable);
    Ok((
        snapshot,
        length.checked_next_multiple_of(8).unwrap_or(u64::MAX),
    ))
}
