//! The superblock, sizes and features, and checksums.
//!
//! ```text
//!   group 0: superblock │ AGF (free space) │ AGI │ AGFL │ …     each a sector; group n begins at n × agblocks blocks
//!   block number: group │ block in it (group_log bits)     inode number: block number │ inode in it
//! ```
//!
//! **Invariants.** Every size that others compute with was checked here. Version 5 must have the right checksum.
//!
//! Source: the XFS on-disk format documentation of the kernel.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use block::ReadAt;

use crate::{Error, Result, field};

/// Sizes and features that everything else is computed from; each is checked.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) block_bytes: u32,
    pub(super) block_log: u32,
    pub(super) blocks: u64,
    pub(super) uuid: [u8; 16],
    /// What metadata is marked with; the same unless the id was changed later.
    pub(super) meta_uuid: [u8; 16],
    pub(super) has_meta_uuid: bool,
    pub(super) root: u64,
    pub(super) group_blocks: u32,
    pub(super) group_count: u32,
    pub(super) group_log: u32,
    pub(super) sector_bytes: u16,
    pub(super) inode_bytes: u16,
    pub(super) inodes_per_block_log: u32,
    pub(super) free_blocks: u64,
    pub(super) directory_bytes: u32,
    pub(super) is_v5: bool,
    pub(super) has_file_types: bool,
    pub(super) has_wide_counts: bool,
    pub(super) label: String,
    pub(super) log: Option<(u64, u64)>,
    pub(super) needs_repair: bool,
    /// Features that only matter while something lies in the log.
    pub(super) log_features: u32,
    /// Features that a reader need not know, unless it tells what is in use.
    pub(super) has_unknown_space: bool,
    pub(super) is_case_insensitive: bool,
}

const KNOWN_INCOMPAT: u32 = 0xFF;
const INCOMPAT_META_UUID: u32 = 4;
const REFUSED_INCOMPAT: [(u32, &str); 3] = [
    (0x100, "a tree of metadata files (metadir)"),
    (0x200, "zones"),
    (0x400, "gaps in zones"),
];
/// Free inodes, reverse mappings, reference counts, counts of inode trees.
const KNOWN_RO_COMPAT: u32 = 0xF;
const VERSION_CASE_INSENSITIVE: u16 = 0x4000;
/// Flags of inodes: times count nanoseconds from 1901 on; counts of extents are wide.
pub(super) const INODE_BIG_TIME: u64 = 8;
pub(super) const INODE_WIDE_COUNTS: u64 = 0x10;
const INCOMPAT_FTYPE: u32 = 1;
const INCOMPAT_NEEDS_REPAIR: u32 = 0x10;
const INCOMPAT_NREXT64: u32 = 0x20;
const VERSION_DIR_V2: u16 = 0x2000;
const VERSION_MORE_BITS: u16 = 0x8000;
const FEATURES2_FTYPE: u32 = 0x200;

impl Superblock {
    /// Reads and checks sector 0.
    pub(super) fn read(volume: &dyn ReadAt) -> Result<Self> {
        let mut bytes = vec![0; 512];
        if volume.size_bytes() < 512 {
            return Err(Error::corrupt("superblock: the volume is too short"));
        }
        volume.read_at(0, &mut bytes)?;
        if field::slice(&bytes, 0, 4)? != b"XFSB" {
            return Err(Error::corrupt("superblock: no XFS"));
        }
        let sector_bytes = field::u16_be(&bytes, 102)?;
        if !sector_bytes.is_power_of_two() || !(512..=32768).contains(&sector_bytes) {
            return Err(Error::corrupt(format!(
                "superblock: sectors of {sector_bytes}"
            )));
        }
        let mut sector = vec![0; usize::from(sector_bytes)];
        if volume.size_bytes() < u64::from(sector_bytes) {
            return Err(Error::corrupt("superblock: the volume is too short"));
        }
        volume.read_at(0, &mut sector)?;
        Self::parse(&sector)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let version = field::u16_be(bytes, 100)?;
        let is_v5 = version & 0xF == 5;
        if !matches!(version & 0xF, 4 | 5) {
            return Err(Error::unsupported(format!(
                "superblock: version {}",
                version & 0xF
            )));
        }
        if is_v5 {
            check_sum(bytes, 224).map_err(|error| error.within("superblock"))?;
        } else if version & VERSION_DIR_V2 == 0 {
            return Err(Error::unsupported("superblock: directories of version 1"));
        }
        let incompat = if is_v5 { field::u32_be(bytes, 216)? } else { 0 };
        check_features(incompat)?;
        let features2 = if version & VERSION_MORE_BITS != 0 {
            field::u32_be(bytes, 200)?
        } else {
            0
        };
        let directory_bytes = directory_bytes(bytes)?;
        check_sizes(bytes)?;
        let label = field::slice(bytes, 108, 12)?;
        let label = label.split(|byte| *byte == 0).next().unwrap_or(&[]);
        let uuid = field::slice(bytes, 32, 16)?.try_into().unwrap_or([0; 16]);
        let has_meta_uuid = incompat & INCOMPAT_META_UUID != 0;
        let log_start = field::u64_be(bytes, 48)?;
        let log_blocks = u64::from(field::u32_be(bytes, 96)?);
        Ok(Self {
            block_bytes: field::u32_be(bytes, 4)?,
            block_log: u32::from(field::u8_at(bytes, 120)?),
            blocks: field::u64_be(bytes, 8)?,
            uuid,
            meta_uuid: if has_meta_uuid {
                field::slice(bytes, 248, 16)?.try_into().unwrap_or(uuid)
            } else {
                uuid
            },
            has_meta_uuid,
            root: field::u64_be(bytes, 56)?,
            group_blocks: field::u32_be(bytes, 84)?,
            group_count: field::u32_be(bytes, 88)?,
            group_log: u32::from(field::u8_at(bytes, 124)?),
            sector_bytes: field::u16_be(bytes, 102)?,
            inode_bytes: field::u16_be(bytes, 104)?,
            inodes_per_block_log: u32::from(field::u8_at(bytes, 123)?),
            free_blocks: field::u64_be(bytes, 144)?,
            directory_bytes,
            is_v5,
            has_file_types: incompat & INCOMPAT_FTYPE != 0
                || (!is_v5 && features2 & FEATURES2_FTYPE != 0),
            has_wide_counts: incompat & INCOMPAT_NREXT64 != 0,
            label: String::from_utf8_lossy(label).into_owned(),
            log: (log_start != 0).then_some((log_start, log_blocks)),
            needs_repair: incompat & INCOMPAT_NEEDS_REPAIR != 0,
            log_features: if is_v5 { field::u32_be(bytes, 220)? } else { 0 },
            has_unknown_space: is_v5 && field::u32_be(bytes, 212)? & !KNOWN_RO_COMPAT != 0,
            is_case_insensitive: version & VERSION_CASE_INSENSITIVE != 0,
        })
    }

    /// Where a block of the volume lies, in bytes.
    pub(super) fn block_offset(&self, block: u64) -> Result<u64> {
        let group = block >> self.group_log;
        let within = block & (1_u64 << self.group_log).saturating_sub(1);
        let wrong = || Error::corrupt(format!("block {block:#x} is outside the file system"));
        if group >= u64::from(self.group_count) || within >= u64::from(self.group_blocks) {
            return Err(wrong());
        }
        let linear = group
            .checked_mul(u64::from(self.group_blocks))
            .and_then(|first| first.checked_add(within))
            .filter(|linear| *linear < self.blocks)
            .ok_or_else(wrong)?;
        linear
            .checked_mul(u64::from(self.block_bytes))
            .ok_or_else(wrong)
    }

    /// The bytes of the volume that a run of blocks takes; a run stays in its group.
    pub(super) fn run_offset(&self, block: u64, count: u64) -> Result<u64> {
        let last = block
            .checked_add(count.saturating_sub(1))
            .ok_or_else(|| Error::corrupt("a run of blocks without an end"))?;
        if last >> self.group_log != block >> self.group_log {
            return Err(Error::corrupt(format!(
                "run at block {block:#x} leaves its group"
            )));
        }
        self.block_offset(last)?;
        self.block_offset(block)
    }

    /// Where an inode lies.
    pub(super) fn inode_offset(&self, number: u64) -> Result<u64> {
        let block = number >> self.inodes_per_block_log;
        let index = number & (1_u64 << self.inodes_per_block_log).saturating_sub(1);
        let offset = self
            .block_offset(block)
            .map_err(|error| error.within(format!("inode {number}")))?;
        Ok(offset.saturating_add(index.saturating_mul(u64::from(self.inode_bytes))))
    }
}

fn wrong(what: &str) -> Error {
    Error::corrupt(format!("superblock: {what}"))
}

fn check_features(incompat: u32) -> Result<()> {
    let unknown = incompat & !KNOWN_INCOMPAT;
    let named = (REFUSED_INCOMPAT.iter()).find(|(bit, _)| unknown & bit != 0);
    match named {
        Some((_, name)) => Err(Error::unsupported(format!("superblock: it has {name}"))),
        None if unknown != 0 => Err(Error::unsupported(format!(
            "superblock: unknown features {unknown:#x}"
        ))),
        None => Ok(()),
    }
}

/// Bytes of a block of a directory.
fn directory_bytes(bytes: &[u8]) -> Result<u32> {
    let log = u32::from(field::u8_at(bytes, 192)?);
    field::u32_be(bytes, 4)?
        .checked_shl(log.min(16))
        .filter(|size| (512..=65536).contains(size))
        .ok_or_else(|| wrong("directory block size"))
}

/// Refuses sizes that contradict each other.
fn check_sizes(bytes: &[u8]) -> Result<()> {
    let block_bytes = field::u32_be(bytes, 4)?;
    let inode_bytes = field::u16_be(bytes, 104)?;
    let block_log = u32::from(field::u8_at(bytes, 120)?);
    let inodes_per_block_log = u32::from(field::u8_at(bytes, 123)?);
    let group_log = u32::from(field::u8_at(bytes, 124)?);
    let group_blocks = field::u32_be(bytes, 84)?;
    let group_count = field::u32_be(bytes, 88)?;
    let blocks = field::u64_be(bytes, 8)?;
    if !(9..=16).contains(&block_log) || 1_u32.checked_shl(block_log) != Some(block_bytes) {
        return Err(wrong("block size"));
    }
    let inodes = u32::from(inode_bytes).checked_shl(inodes_per_block_log.min(16));
    if !(256..=2048).contains(&inode_bytes)
        || !inode_bytes.is_power_of_two()
        || inodes != Some(block_bytes)
    {
        return Err(wrong("inode size"));
    }
    let most = u64::from(group_blocks).checked_mul(u64::from(group_count));
    if group_blocks < 64
        || group_count == 0
        || group_log > 31
        || u64::from(group_blocks) > 1 << group_log
        || most.is_none_or(|most| blocks > most)
        || blocks.checked_mul(u64::from(block_bytes)).is_none()
    {
        return Err(wrong("allocation groups"));
    }
    Ok(())
}

/// Proves a record that carries its CRC-32C at `at`, little-endian.
pub(super) fn check_sum(record: &[u8], at: usize) -> Result<()> {
    if !field::sum_holds(sum(record, at)?, field::u32_le(record, at)?) {
        return Err(Error::corrupt("wrong checksum"));
    }
    Ok(())
}

/// Makes the checksum of a record that carries it at `at`.
pub(super) fn set_sum(record: &mut [u8], at: usize) -> Result<()> {
    let sum = sum(record, at)?;
    if let Some(target) = record.get_mut(at..at.saturating_add(4)) {
        target.copy_from_slice(&sum.to_le_bytes());
    }
    Ok(())
}

fn sum(record: &[u8], at: usize) -> Result<u32> {
    let head = field::slice(record, 0, at)?;
    let tail = record.get(at.saturating_add(4)..).unwrap_or(&[]);
    let head = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    Ok(crc32c::crc32c_append(head, tail))
}
