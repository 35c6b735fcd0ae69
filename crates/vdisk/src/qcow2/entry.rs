//! What one L1 or L2 entry says. Pure.
//!
//! ```text
//! L1   63 owned │ 55..9 offset of an L2 table
//! L2   63 owned │ 62 compressed=0 │ 55..9 host offset │ 0 reads as zeros          (v3, not extended)
//!      62 compressed=1 │ sectors beyond the first (cluster_bits - 8 bits) │ host offset, not aligned
//! extended L2 adds a second word: 63..32 subcluster reads as zeros, 31..0 subcluster is allocated
//! ```
//!
//! "Owned" (QEMU: COPIED) means a reference count of exactly one: the cluster may be written in place.

use super::header::Qcow2Header;
use crate::{Error, Result};

pub(super) const OWNED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
pub(super) const ZERO: u64 = 1;
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Subclusters of a cluster with extended L2 entries.
pub(super) const SUBCLUSTERS: u64 = 32;

/// Where a guest cluster lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    /// Nowhere: the parent answers, or zeros.
    Unallocated,
    /// Reads as zeros; `host` is space kept for it, or 0.
    Zero { host: u64, owned: bool },
    /// Guest bytes as they are.
    Data { host: u64, owned: bool },
    /// `length` bytes from `offset` on, unaligned, ending on a 512-byte boundary.
    Compressed { offset: u64, length: u64 },
    /// Extended L2: every subcluster for itself.
    Split {
        host: u64,
        allocated: u32,
        zero: u32,
    },
}

/// Offset of the L2 table that an L1 entry names, or `None` when it names none.
pub(super) fn l2_offset(header: &Qcow2Header, entry: u64, l1_index: u64) -> Result<Option<u64>> {
    let offset = entry & OFFSET_MASK;
    if offset == 0 {
        return Ok(None);
    }
    if !header.is_aligned(offset) {
        return Err(Error::corrupt(format!(
            "qcow2 L1 entry {l1_index}: table offset {offset:#x} is not on a cluster"
        )));
    }
    Ok(Some(offset))
}

/// Decodes an L2 entry of the guest cluster at `guest`; `bitmap` is its second word, when entries are extended.
pub(super) fn decode(
    header: &Qcow2Header,
    entry: u64,
    bitmap: Option<u64>,
    guest: u64,
) -> Result<Cluster> {
    if entry & COMPRESSED != 0 {
        return decode_compressed(header, entry, guest);
    }
    let host = entry & OFFSET_MASK;
    let owned = entry & OWNED != 0;
    let allocated = if header.needs_data_file() {
        host != 0 || owned
    } else {
        host != 0
    };
    if !header.is_aligned(host) {
        return Err(Error::corrupt(format!(
            "qcow2 L2 entry of guest offset {guest:#x}: host offset {host:#x} is not on a cluster"
        )));
    }
    if header.needs_data_file() && allocated && host != guest {
        return Err(Error::corrupt(format!(
            "qcow2 L2 entry of guest offset {guest:#x}: lies at {host:#x} of the external data file"
        )));
    }
    if let Some(bitmap) = bitmap {
        return decode_split(host, owned, allocated, bitmap, guest);
    }
    if entry & ZERO != 0 {
        if header.version < 3 {
            return Err(Error::corrupt(format!(
                "qcow2 L2 entry of guest offset {guest:#x}: zero cluster in a version 2 image"
            )));
        }
        return Ok(Cluster::Zero { host, owned });
    }
    Ok(if allocated {
        Cluster::Data { host, owned }
    } else {
        Cluster::Unallocated
    })
}

fn decode_split(
    host: u64,
    owned: bool,
    allocated: bool,
    bitmap: u64,
    guest: u64,
) -> Result<Cluster> {
    let present = u32::try_from(bitmap & 0xffff_ffff).unwrap_or(0);
    let zero = u32::try_from(bitmap >> 32).unwrap_or(0);
    if present & zero != 0 {
        return Err(Error::corrupt(format!(
            "qcow2 L2 entry of guest offset {guest:#x}: subclusters both allocated and zero ({bitmap:#018x})"
        )));
    }
    if present != 0 && !allocated {
        return Err(Error::corrupt(format!(
            "qcow2 L2 entry of guest offset {guest:#x}: subclusters allocated without a cluster"
        )));
    }
    Ok(match (present, zero) {
        (0, 0) => Cluster::Unallocated,
        (u32::MAX, _) => Cluster::Data { host, owned },
        (_, u32::MAX) => Cluster::Zero { host, owned },
        _ => Cluster::Split {
            host,
            allocated: present,
            zero,
        },
    })
}

fn decode_compressed(header: &Qcow2Header, entry: u64, guest: u64) -> Result<Cluster> {
    if header.needs_data_file() {
        return Err(Error::corrupt(format!(
            "qcow2 L2 entry of guest offset {guest:#x}: compressed, but the data file is external"
        )));
    }
    let offset_bits = offset_bits(header);
    let body = entry & (COMPRESSED.wrapping_sub(1));
    let offset_mask = 1u64.checked_shl(offset_bits).unwrap_or(0).wrapping_sub(1);
    let offset = body & offset_mask;
    if offset >> 56 != 0 {
        return Err(Error::corrupt(format!(
            "qcow2 L2 entry of guest offset {guest:#x}: compressed data at {offset:#x}"
        )));
    }
    let more_sectors = body.checked_shr(offset_bits).unwrap_or(0);
    let length = more_sectors
        .saturating_add(1)
        .saturating_mul(512)
        .saturating_sub(offset & 511);
    Ok(Cluster::Compressed { offset, length })
}

/// The entry for `length` compressed bytes at `offset`.
pub(super) fn encode_compressed(header: &Qcow2Header, offset: u64, length: u64) -> u64 {
    let last = offset.saturating_add(length).saturating_sub(1);
    let more_sectors = (last / 512).saturating_sub(offset / 512);
    COMPRESSED | offset | more_sectors.checked_shl(offset_bits(header)).unwrap_or(0)
}

/// Bits of the host offset in a compressed entry: 62 - (cluster_bits - 8).
pub(super) fn offset_bits(header: &Qcow2Header) -> u32 {
    70u32.saturating_sub(header.cluster_bits)
}
