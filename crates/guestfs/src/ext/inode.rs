//! An inode: what is known of a file, and where its bytes begin.
//!
//! ```text
//!   0 mode, uid, size, times, gid, links, blocks, flags   40 block[60]   100 generation   104 xattr block, size high
//!   116 high halves, checksum   128 extra size, nanoseconds, birth, project   128+extra: xattrs in the inode
//! ```
//!
//! **Invariants.** An [`Inode`] has a kind, its number is inside the file system, its checksum held. Seconds reach
//! from 1901 to 2446.
//!
//! Source: Linux `Documentation/filesystems/ext4/inodes.rst`.

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

use super::Ext;
use super::superblock::{crc32c, incompat, ro_compat};
use crate::field::{slice, u16_le, u32_le};
use crate::filesystem::{DeviceNumber, FileKind, FileTimes, Metadata, Timestamp, UnixOwner};
use crate::{Error, ErrorKind, FileId, Result};

const FLAG_COMPRESSED: u32 = 0x4;
const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_INDEX: u32 = 0x1000;
const FLAG_HUGE: u32 = 0x4_0000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_EA_INODE: u32 = 0x20_0000;
const FLAG_INLINE: u32 = 0x1000_0000;
const FLAG_CASEFOLD: u32 = 0x4000_0000;

/// Length of the part that says where the contents are.
pub(super) const MAP_BYTES: usize = 60;

/// An inode, checked.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub number: u32,
    pub kind: FileKind,
    pub size_bytes: u64,
    pub map: [u8; MAP_BYTES],
    pub xattr_block: u64,
    /// What the checksums of its own blocks begin with.
    pub seed: u32,
    /// The space behind the fixed fields: attributes, or nothing.
    pub tail: Vec<u8>,
    flags: u32,
    mode: u16,
    user: u32,
    group: u32,
    links: u16,
    allocated_bytes: u64,
    times: FileTimes,
}

impl Inode {
    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub fn has_extents(&self) -> bool {
        self.has(FLAG_EXTENTS)
    }

    pub fn is_inline(&self) -> bool {
        self.has(FLAG_INLINE)
    }

    pub fn is_indexed(&self) -> bool {
        self.has(FLAG_INDEX)
    }

    pub fn is_case_folded(&self) -> bool {
        self.has(FLAG_CASEFOLD)
    }

    /// Whether it holds the value of another inode's attribute.
    pub fn is_attribute_value(&self) -> bool {
        self.has(FLAG_EA_INODE)
    }

    /// Whether a link's target stands in the inode itself.
    pub fn is_fast_link(&self, cluster_bytes: u64) -> bool {
        let own = if self.xattr_block == 0 {
            0
        } else {
            cluster_bytes
        };
        !self.is_inline()
            && !self.has_extents()
            && self.size_bytes <= crate::field::bytes(MAP_BYTES)
            && self.allocated_bytes <= own
    }

    /// Why its contents cannot be had.
    pub fn obstacle(&self) -> Option<&'static str> {
        if self.has(FLAG_ENCRYPTED) {
            return Some("encrypted with fscrypt: names and contents need its key");
        }
        if self.has(FLAG_COMPRESSED) {
            return Some("compressed with e2compr");
        }
        None
    }

    /// An error when its contents cannot be had.
    pub fn refuse_obstacle(&self) -> Result<()> {
        match self.obstacle() {
            Some(obstacle) => Err(Error::unsupported(format!(
                "inode {}: {obstacle}",
                self.number
            ))),
            None => Ok(()),
        }
    }

    pub fn metadata(&self) -> Metadata {
        Metadata {
            kind: self.kind,
            size_bytes: match self.kind {
                FileKind::Regular | FileKind::SymbolicLink => self.size_bytes,
                _ => 0,
            },
            allocated_bytes: self.allocated_bytes,
            link_count: u32::from(self.links),
            times: self.times,
            owner: Some(UnixOwner {
                user: self.user,
                group: self.group,
                mode: self.mode & 0o7777,
            }),
            windows_attributes: None,
            obstacle: self.obstacle().map(str::to_owned),
        }
    }
}

impl Ext {
    /// The inode of a file, if there is one.
    pub(super) fn inode_of(&self, file: FileId) -> Result<Inode> {
        let number = u32::try_from(file.number).ok().filter(|_| file.tree == 0);
        match number {
            Some(number) => self.inode(number),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("inode {}", file.number),
            )),
        }
    }

    /// The inode of that number.
    pub(super) fn inode(&self, number: u32) -> Result<Inode> {
        let raw = self.raw_inode(number)?;
        self.parse_inode(number, &raw)
            .map_err(|error| error.within(format!("inode {number}")))
    }

    fn raw_inode(&self, number: u32) -> Result<Vec<u8>> {
        let superblock = &self.superblock;
        let index = number
            .checked_sub(1)
            .filter(|_| number <= superblock.inode_count);
        let Some(index) = index else {
            return Err(Error::new(ErrorKind::NotFound, format!("inode {number}")));
        };
        let per_group = superblock.inodes_per_group.max(1);
        let group = index.checked_div(per_group).unwrap_or(0);
        if group >= superblock.group_count {
            return Err(Error::corrupt(format!(
                "inode {number} lies in group {group}"
            )));
        }
        let within = index.checked_rem(per_group).unwrap_or(0);
        let offset = self
            .group(group)?
            .inode_table
            .checked_mul(u64::from(superblock.block_bytes))
            .and_then(|start| {
                let within = u64::from(within).checked_mul(u64::from(superblock.inode_bytes))?;
                start.checked_add(within)
            })
            .ok_or_else(|| Error::corrupt(format!("group {group}: its inodes lie nowhere")))?;
        let mut raw = vec![0; usize::from(superblock.inode_bytes)];
        self.cache.read(offset, &mut raw)?;
        Ok(raw)
    }

    fn parse_inode(&self, number: u32, raw: &[u8]) -> Result<Inode> {
        let superblock = &self.superblock;
        let mode = u16_le(raw, 0)?;
        let links = u16_le(raw, 26)?;
        if mode == 0 || links == 0 {
            return Err(Error::new(ErrorKind::NotFound, "not in use"));
        }
        let extra = if raw.len() > 130 {
            usize::from(u16_le(raw, 128)?)
        } else {
            0
        };
        if extra > raw.len().saturating_sub(128) || !extra.is_multiple_of(4) {
            return Err(Error::corrupt(format!(
                "{extra} bytes more than the old fields"
            )));
        }
        let mut seed = crc32c(superblock.checksum_seed, &number.to_le_bytes());
        seed = crc32c(seed, slice(raw, 100, 4)?);
        if superblock.has_checksums() {
            check(raw, extra, seed)?;
        }
        let flags = u32_le(raw, 32)?;
        let map: [u8; MAP_BYTES] = slice(raw, 40, MAP_BYTES)?
            .try_into()
            .map_err(|_| Error::corrupt("cut"))?;
        let kind = kind(mode, &map)?;
        let has_high_size = kind == FileKind::Regular
            || (kind == FileKind::Directory && superblock.has_incompat(incompat::LARGE_DIRECTORY));
        let high_size = if has_high_size { u32_le(raw, 108)? } else { 0 };
        let size_bytes = u64::from(u32_le(raw, 4)?) | u64::from(high_size) << 32;
        if i64::try_from(size_bytes).is_err() {
            return Err(Error::corrupt(format!("{size_bytes} bytes of contents")));
        }
        Ok(Inode {
            number,
            kind,
            size_bytes,
            map,
            xattr_block: u64::from(u32_le(raw, 104)?) | u64::from(u16_le(raw, 118)?) << 32,
            seed,
            tail: raw
                .get(128_usize.saturating_add(extra)..)
                .filter(|_| extra > 0)
                .unwrap_or_default()
                .to_vec(),
            flags,
            mode,
            user: u32::from(u16_le(raw, 2)?) | u32::from(u16_le(raw, 120)?) << 16,
            group: u32::from(u16_le(raw, 24)?) | u32::from(u16_le(raw, 122)?) << 16,
            links,
            allocated_bytes: self.allocated(raw, flags)?,
            times: times(raw, extra)?,
        })
    }

    fn allocated(&self, raw: &[u8], flags: u32) -> Result<u64> {
        let low = u64::from(u32_le(raw, 28)?);
        if !self.superblock.has_ro_compat(ro_compat::HUGE_FILE) {
            return Ok(low.saturating_mul(512));
        }
        let count = low | u64::from(u16_le(raw, 116)?) << 32;
        let unit = if flags & FLAG_HUGE == 0 {
            512
        } else {
            u64::from(self.superblock.block_bytes)
        };
        Ok(count.saturating_mul(unit))
    }
}

fn check(raw: &[u8], extra: usize, seed: u32) -> Result<()> {
    let has_high = extra >= 4;
    let mut sum = crc32c(seed, slice(raw, 0, 124)?);
    sum = crc32c(sum, &[0, 0]);
    sum = crc32c(sum, slice(raw, 126, 2)?);
    if has_high {
        sum = crc32c(sum, slice(raw, 128, 2)?);
        sum = crc32c(sum, &[0, 0]);
        sum = crc32c(sum, raw.get(132..).unwrap_or_default());
    } else {
        sum = crc32c(sum, raw.get(128..).unwrap_or_default());
    }
    let low = u32::from(u16_le(raw, 124)?);
    let (stored, found) = if has_high {
        (low | u32::from(u16_le(raw, 130)?) << 16, sum)
    } else {
        (low, sum & 0xFFFF)
    };
    if crate::field::sum_holds(found, stored) {
        return Ok(());
    }
    Err(Error::corrupt("its checksum is wrong"))
}

fn kind(mode: u16, map: &[u8]) -> Result<FileKind> {
    Ok(match mode >> 12 {
        0x1 => FileKind::Fifo,
        0x2 => FileKind::CharacterDevice(device(map)?),
        0x4 => FileKind::Directory,
        0x6 => FileKind::BlockDevice(device(map)?),
        0x8 => FileKind::Regular,
        0xA => FileKind::SymbolicLink,
        0xC => FileKind::Socket,
        _ => return Err(Error::corrupt(format!("mode {mode:#o} is of no kind"))),
    })
}

/// Numbers of 8 and 8 bits in the first word, or of 12 and 20 in the second.
fn device(map: &[u8]) -> Result<DeviceNumber> {
    let old = u32_le(map, 0)?;
    if old != 0 {
        return Ok(DeviceNumber {
            major: old >> 8 & 0xFF,
            minor: old & 0xFF,
        });
    }
    let new = u32_le(map, 4)?;
    Ok(DeviceNumber {
        major: new >> 8 & 0xFFF,
        minor: new & 0xFF | new >> 12 & 0xF_FF00,
    })
}

fn times(raw: &[u8], extra: usize) -> Result<FileTimes> {
    let end = extra.saturating_add(128);
    let time = |seconds_at: usize, extra_at: usize| -> Result<Timestamp> {
        let seconds = i64::from(u32_le(raw, seconds_at)?.cast_signed());
        if extra_at.saturating_add(4) > end {
            return Ok(Timestamp {
                seconds,
                nanoseconds: 0,
            });
        }
        let more = u32_le(raw, extra_at)?;
        Ok(Timestamp {
            seconds: seconds.saturating_add(i64::from(more & 3) << 32),
            nanoseconds: (more >> 2).min(999_999_999),
        })
    };
    Ok(FileTimes {
        created: if end >= 148 {
            Some(time(144, 148)?)
        } else {
            None
        },
        modified: Some(time(16, 136)?),
        changed: Some(time(12, 132)?),
        accessed: Some(time(8, 140)?),
    })
}
