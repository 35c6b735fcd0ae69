//! The superblock of ext2, ext3 and ext4: sizes, features, and what was done at the last unmount.
//!
//! ```text
//!   byte 1024 of the volume ─► 1024 bytes, little-endian
//!   0x00 counts   0x18 log block size   0x20 per group   0x38 magic EF53   0x5C features   0x68 uuid   0x78 label
//!   0xE0 journal inode   0xFE descriptor size   0x150 high halves   0x270 checksum seed   0x3FC crc32c
//! ```
//!
//! **Invariants.** What is in a [`Superblock`] was checked: shifts and divisions by its fields cannot fail, and all
//! counts fit each other. Features that change what bytes mean and that are not known are refused by name.
//!
//! Source: Linux `Documentation/filesystems/ext4/super.rst`.

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

use crate::field::{slice, u16_le, u32_le};
use crate::{Error, ErrorKind, Result};

/// Where the first superblock lies.
pub(super) const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const MAGIC: u16 = 0xEF53;

/// Features that an old reader may ignore.
pub(super) mod compat {
    pub const HAS_JOURNAL: u32 = 0x4;
    pub const SPARSE_SUPER2: u32 = 0x200;
}

/// Features that change what the bytes mean.
pub(super) mod incompat {
    pub const COMPRESSION: u32 = 0x1;
    pub const FILETYPE: u32 = 0x2;
    pub const RECOVER: u32 = 0x4;
    pub const JOURNAL_DEVICE: u32 = 0x8;
    pub const META_BG: u32 = 0x10;
    pub const EXTENTS: u32 = 0x40;
    pub const BIT64: u32 = 0x80;
    pub const MMP: u32 = 0x100;
    pub const FLEX_BG: u32 = 0x200;
    pub const EA_INODE: u32 = 0x400;
    pub const DIRDATA: u32 = 0x1000;
    pub const CHECKSUM_SEED: u32 = 0x2000;
    pub const LARGE_DIRECTORY: u32 = 0x4000;
    pub const INLINE_DATA: u32 = 0x8000;
    pub const ENCRYPT: u32 = 0x1_0000;
    pub const CASEFOLD: u32 = 0x2_0000;

    /// What this reader knows.
    pub const KNOWN: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | BIT64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CHECKSUM_SEED
        | LARGE_DIRECTORY
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;
}

/// Features that a reader may ignore as long as it does not write.
pub(super) mod ro_compat {
    pub const SPARSE_SUPER: u32 = 0x1;
    pub const HUGE_FILE: u32 = 0x8;
    pub const GDT_CHECKSUM: u32 = 0x10;
    pub const BIGALLOC: u32 = 0x200;
    pub const METADATA_CHECKSUM: u32 = 0x400;

    /// All that Linux knows and that leaves the meaning of block bitmaps as it is. Snapshots and shared blocks do not.
    pub const KEEPS_BITMAPS: u32 = 0x1_B77F;

    /// What ext3 has; anything more makes it ext4.
    pub const EXT3: u32 = 0x7;
}

/// Bit of the state: unmounted properly.
pub(super) const STATE_VALID: u16 = 1;
/// Bit of the state: errors were found.
pub(super) const STATE_ERROR: u16 = 2;

/// What the superblock says, checked.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub inode_count: u32,
    pub block_count: u64,
    pub free_block_count: u64,
    pub first_data_block: u32,
    pub block_bytes: u32,
    pub cluster_blocks: u32,
    pub blocks_per_group: u32,
    pub clusters_per_group: u32,
    pub inodes_per_group: u32,
    pub group_count: u32,
    pub inode_bytes: u16,
    pub descriptor_bytes: u16,
    pub reserved_descriptor_blocks: u16,
    pub first_meta_group: u32,
    pub backup_groups: [u32; 2],
    pub compat: u32,
    pub incompat: u32,
    pub ro_compat: u32,
    pub state: u16,
    pub revision: (u32, u16),
    pub uuid: [u8; 16],
    pub label: Vec<u8>,
    pub journal_inode: u32,
    pub checksum_seed: u32,
    /// What hashes of names begin with.
    pub hash_seed: [u32; 4],
    pub has_unsigned_hash: bool,
}

impl Superblock {
    /// Reads the first superblock of a volume that is sound; when it is a copy, what is wrong with the first.
    ///
    /// # Errors
    /// Of the first one.
    pub fn read_any(volume: &dyn ReadAt) -> Result<(Self, Option<String>)> {
        let first = match Self::read(volume) {
            Ok(superblock) => return Ok((superblock, None)),
            Err(error) if error.kind() == ErrorKind::Corrupt => error,
            Err(error) => return Err(error),
        };
        Ok(match Self::copy(volume)? {
            Some((_, superblock)) => {
                let damage = format!("a copy of its superblock was read: {first}");
                (superblock, Some(damage))
            }
            None => return Err(first),
        })
    }

    /// The sound copy of the superblock at the begin of group 1, if there is one, as it lies there.
    pub fn copy(volume: &dyn ReadAt) -> Result<Option<([u8; SUPERBLOCK_BYTES], Self)>> {
        // For all sizes of blocks; with those of 1 KiB the groups begin at block 1.
        for log in 0..=6_u32 {
            let block = 1024_u64 << log;
            let blocks = block.saturating_mul(8).saturating_add(u64::from(log == 0));
            let offset = blocks.saturating_mul(block);
            let end = offset.saturating_add(crate::field::bytes(SUPERBLOCK_BYTES));
            if end > volume.size_bytes() {
                break;
            }
            let mut bytes = [0; SUPERBLOCK_BYTES];
            volume.read_at(offset, &mut bytes)?;
            let is_copy = u16_le(&bytes, 0x5A)? == 1;
            match Self::parse(&bytes) {
                Ok(superblock) if is_copy && u64::from(superblock.block_bytes) == block => {
                    return Ok(Some((bytes, superblock)));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Reads and checks the first superblock of a volume.
    pub fn read(volume: &dyn ReadAt) -> Result<Self> {
        let end = SUPERBLOCK_OFFSET.saturating_add(crate::field::bytes(SUPERBLOCK_BYTES));
        if volume.size_bytes() < end {
            return Err(Error::corrupt(format!(
                "a volume of {} bytes has no room for a superblock of ext",
                volume.size_bytes()
            )));
        }
        let mut bytes = [0; SUPERBLOCK_BYTES];
        volume.read_at(SUPERBLOCK_OFFSET, &mut bytes)?;
        Self::parse(&bytes).map_err(|error| error.within("superblock of ext"))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        if u16_le(bytes, 0x38)? != MAGIC {
            return Err(Error::corrupt("its magic number is not there"));
        }
        let features = (
            u32_le(bytes, 0x5C)?,
            u32_le(bytes, 0x60)?,
            u32_le(bytes, 0x64)?,
        );
        refuse_unknown(features.1)?;
        if features.2 & ro_compat::METADATA_CHECKSUM != 0 {
            let found = crc32c(u32::MAX, slice(bytes, 0, 0x3FC)?);
            if !crate::field::sum_holds(found, u32_le(bytes, 0x3FC)?) {
                return Err(Error::corrupt("its checksum is wrong"));
            }
        }
        let high = |offset: usize| -> Result<u64> {
            if features.1 & incompat::BIT64 == 0 {
                return Ok(0);
            }
            Ok(u64::from(u32_le(bytes, offset)?) << 32)
        };
        let uuid: [u8; 16] = slice(bytes, 0x68, 16)?
            .try_into()
            .map_err(|_| Error::corrupt("its UUID is cut"))?;
        let revision = (u32_le(bytes, 0x4C)?, u16_le(bytes, 0x3E)?);
        let sizes = Sizes::parse(bytes, features)?;
        let block_count = u64::from(u32_le(bytes, 4)?) | high(0x150)?;
        let first_data_block = u32_le(bytes, 0x14)?;
        let group_count = block_count
            .checked_sub(u64::from(first_data_block))
            .filter(|&count| count > 0)
            .map(|count| count.div_ceil(u64::from(sizes.blocks_per_group.max(1))))
            .and_then(|count| u32::try_from(count).ok())
            .ok_or_else(|| Error::corrupt(format!("{block_count} blocks are no count")))?;
        Ok(Self {
            inode_count: u32_le(bytes, 0)?,
            block_count,
            free_block_count: u64::from(u32_le(bytes, 12)?) | high(0x158)?,
            first_data_block,
            block_bytes: sizes.block_bytes,
            cluster_blocks: sizes.cluster_blocks,
            blocks_per_group: sizes.blocks_per_group,
            clusters_per_group: sizes.clusters_per_group,
            inodes_per_group: sizes.inodes_per_group,
            group_count,
            inode_bytes: sizes.inode_bytes,
            descriptor_bytes: sizes.descriptor_bytes,
            reserved_descriptor_blocks: u16_le(bytes, 0xCE)?,
            first_meta_group: u32_le(bytes, 0x104)?,
            backup_groups: [u32_le(bytes, 0x24C)?, u32_le(bytes, 0x250)?],
            compat: features.0,
            incompat: features.1,
            ro_compat: features.2,
            state: u16_le(bytes, 0x3A)?,
            revision,
            uuid,
            label: until_nul(slice(bytes, 0x78, 16)?).to_vec(),
            journal_inode: u32_le(bytes, 0xE0)?,
            checksum_seed: if features.1 & incompat::CHECKSUM_SEED == 0 {
                crc32c(u32::MAX, &uuid)
            } else {
                u32_le(bytes, 0x270)?
            },
            hash_seed: hash_seed(bytes)?,
            has_unsigned_hash: u32_le(bytes, 0x160)? & 2 != 0,
        })
    }

    pub fn has_compat(&self, feature: u32) -> bool {
        self.compat & feature != 0
    }

    pub fn has_incompat(&self, feature: u32) -> bool {
        self.incompat & feature != 0
    }

    pub fn has_ro_compat(&self, feature: u32) -> bool {
        self.ro_compat & feature != 0
    }

    /// Features that a reader of files need not know, but that may change what a bit of a block bitmap means.
    pub fn unknown_to_bitmaps(&self) -> u32 {
        self.ro_compat & !ro_compat::KEEPS_BITMAPS
    }

    /// Whether structures carry a crc32c.
    pub fn has_checksums(&self) -> bool {
        self.has_ro_compat(ro_compat::METADATA_CHECKSUM)
    }

    /// Bytes that the file system covers.
    pub fn size_bytes(&self) -> u64 {
        self.block_count.saturating_mul(u64::from(self.block_bytes))
    }

    /// The length of a block in memory's terms.
    pub fn block_length(&self) -> usize {
        usize::try_from(self.block_bytes).unwrap_or(usize::MAX)
    }

    /// The first block of a group.
    pub fn group_start(&self, group: u32) -> u64 {
        u64::from(group)
            .saturating_mul(u64::from(self.blocks_per_group))
            .saturating_add(u64::from(self.first_data_block))
    }

    /// Whether a group begins with a copy of the superblock.
    pub fn has_backup(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.has_compat(compat::SPARSE_SUPER2) {
            return self.backup_groups.contains(&group);
        }
        if group == 1 || !self.has_ro_compat(ro_compat::SPARSE_SUPER) {
            return true;
        }
        [3_u64, 5, 7].into_iter().any(|base| {
            let mut power = base;
            while power < u64::from(group) {
                power = power.saturating_mul(base);
            }
            power == u64::from(group)
        })
    }
}

fn hash_seed(bytes: &[u8]) -> Result<[u32; 4]> {
    let mut seed = [0; 4];
    for (word, at) in seed.iter_mut().zip([0xEC, 0xF0, 0xF4, 0xF8]) {
        *word = u32_le(bytes, at)?;
    }
    Ok(seed)
}

/// The sizes that others are divided by.
struct Sizes {
    block_bytes: u32,
    cluster_blocks: u32,
    blocks_per_group: u32,
    clusters_per_group: u32,
    inodes_per_group: u32,
    inode_bytes: u16,
    descriptor_bytes: u16,
}

impl Sizes {
    fn parse(bytes: &[u8], features: (u32, u32, u32)) -> Result<Self> {
        let log_block = u32_le(bytes, 0x18)?;
        if log_block > 6 {
            return Err(Error::corrupt(format!("blocks of 2^{log_block} KiB")));
        }
        let block_bytes = 1024_u32.checked_shl(log_block).unwrap_or(1024);
        let is_bigalloc = features.2 & ro_compat::BIGALLOC != 0;
        let log_ratio = if is_bigalloc {
            u32_le(bytes, 0x1C)?
                .checked_sub(log_block)
                .filter(|&ratio| ratio <= 20)
                .ok_or_else(|| Error::corrupt("clusters are smaller than blocks, or huge"))?
        } else {
            0
        };
        let cluster_blocks = 1_u32.checked_shl(log_ratio).unwrap_or(1);
        let blocks_per_group = u32_le(bytes, 0x20)?;
        let clusters_per_group = if is_bigalloc {
            u32_le(bytes, 0x24)?
        } else {
            blocks_per_group
        };
        let inodes_per_group = u32_le(bytes, 0x28)?;
        let bits = block_bytes.saturating_mul(8);
        if clusters_per_group == 0
            || clusters_per_group > bits
            || clusters_per_group.checked_mul(cluster_blocks) != Some(blocks_per_group)
            || inodes_per_group == 0
            || inodes_per_group > bits
        {
            return Err(Error::corrupt(format!(
                "{blocks_per_group} blocks and {inodes_per_group} inodes in a group, blocks of {block_bytes} bytes"
            )));
        }
        let inode_bytes = if u32_le(bytes, 0x4C)? == 0 {
            128
        } else {
            u16_le(bytes, 0x58)?
        };
        if !inode_bytes.is_power_of_two()
            || inode_bytes < 128
            || u32::from(inode_bytes) > block_bytes
        {
            return Err(Error::corrupt(format!("inodes of {inode_bytes} bytes")));
        }
        let descriptor_bytes = if features.1 & incompat::BIT64 == 0 {
            32
        } else {
            u16_le(bytes, 0xFE)?
        };
        if !descriptor_bytes.is_power_of_two()
            || !(32..=1024).contains(&descriptor_bytes)
            || (features.1 & incompat::BIT64 != 0 && descriptor_bytes < 64)
        {
            return Err(Error::corrupt(format!(
                "group descriptors of {descriptor_bytes} bytes"
            )));
        }
        Ok(Self {
            block_bytes,
            cluster_blocks,
            blocks_per_group,
            clusters_per_group,
            inodes_per_group,
            inode_bytes,
            descriptor_bytes,
        })
    }
}

fn refuse_unknown(incompat: u32) -> Result<()> {
    let what = match incompat {
        bits if bits & incompat::JOURNAL_DEVICE != 0 => {
            "this is the external journal of another file system".to_owned()
        }
        bits if bits & incompat::COMPRESSION != 0 => "compression (the e2compr patch)".to_owned(),
        bits if bits & incompat::DIRDATA != 0 => "data in directory entries (Lustre)".to_owned(),
        bits if bits & !incompat::KNOWN != 0 => {
            format!("unknown features {:#x}", bits & !incompat::KNOWN)
        }
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::Unsupported, what))
}

/// The part of a name before its end.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// CRC-32C as ext uses it: neither the start nor the end inverted.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// CRC-16 (polynomial 0xA001 reflected), of group descriptors before there was crc32c.
pub(super) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte), |crc, _| {
            if crc & 1 == 0 {
                crc >> 1
            } else {
                (crc >> 1) ^ 0xA001
            }
        })
    })
}
