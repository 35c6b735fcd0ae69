//! Extended attributes: in the inode, in a block of their own, and values in inodes of their own.
//!
//! ```text
//!   in the inode: magic EA020000, entries ►      ◄ values (offsets from behind the magic)
//!   in a block:   header of 32 bytes, entries ►  ◄ values (offsets from the block's start)
//! ```
//!
//! **Invariants.** A value has at most 64 KiB. Names stand as Linux writes them; access lists have the form in which
//! Linux gives them to programs (version 2), not the shorter one on disk. What only the file system itself uses
//! (inline contents, keys of fscrypt) is not told.

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

use super::Ext;
use super::inode::Inode;
use super::superblock::crc32c;
use crate::field::{slice, u8_at, u16_le, u32_le};
use crate::filesystem::ExtendedAttribute;
use crate::{Error, FileName, Result};

const MAGIC: u32 = 0xEA02_0000;
const MAX_VALUE_BYTES: u32 = 65536;
const MAX_ATTRIBUTES: usize = 65536;
const INDEX_SYSTEM: u8 = 7;

/// An entry and its value where it stands.
struct Entry {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Ext {
    /// All attributes of a file that a program would see.
    pub(super) fn attributes(&self, inode: &Inode) -> Result<Vec<ExtendedAttribute>> {
        let mut all = Vec::new();
        for entry in self.entries(inode)? {
            if let Some(attribute) = present(entry)? {
                all.push(attribute);
            }
        }
        Ok(all)
    }

    /// The part of inline contents that does not fit into the map.
    pub(super) fn inline_rest(&self, inode: &Inode) -> Result<Option<Vec<u8>>> {
        let entries = self.entries_in_inode(inode)?;
        Ok(entries
            .into_iter()
            .find(|entry| entry.index == INDEX_SYSTEM && entry.name == b"data")
            .map(|entry| entry.value))
    }

    fn entries(&self, inode: &Inode) -> Result<Vec<Entry>> {
        let mut entries = self.entries_in_inode(inode)?;
        if inode.xattr_block == 0 {
            return Ok(entries);
        }
        let number = inode.xattr_block;
        let more = self.cache.block(number).and_then(|block| {
            self.check_block(number, &block)?;
            self.parse(inode, &block, 32, 0)
        });
        let place = || format!("inode {}, attributes at block {number}", inode.number);
        entries.extend(more.map_err(|error| error.within(place()))?);
        Ok(entries)
    }

    fn entries_in_inode(&self, inode: &Inode) -> Result<Vec<Entry>> {
        if inode.tail.len() < 8 || u32_le(&inode.tail, 0)? != MAGIC {
            return Ok(Vec::new());
        }
        self.parse(inode, &inode.tail, 4, 4)
            .map_err(|error| error.within(format!("inode {}, attributes", inode.number)))
    }

    fn check_block(&self, number: u64, block: &[u8]) -> Result<()> {
        if u32_le(block, 0)? != MAGIC || u32_le(block, 8)? != 1 {
            return Err(Error::corrupt("this is no block of attributes"));
        }
        if !self.superblock.has_checksums() {
            return Ok(());
        }
        let mut sum = crc32c(self.superblock.checksum_seed, &number.to_le_bytes());
        for part in [
            slice(block, 0, 16)?,
            &[0; 4],
            block.get(20..).unwrap_or_default(),
        ] {
            sum = crc32c(sum, part);
        }
        if crate::field::sum_holds(sum, u32_le(block, 16)?) {
            return Ok(());
        }
        Err(Error::corrupt("its checksum is wrong"))
    }

    /// Entries from `first` on; their values' offsets count from `base`.
    fn parse(&self, inode: &Inode, area: &[u8], first: usize, base: usize) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut offset = first;
        let mut total = 0_usize;
        while offset.saturating_add(4) <= area.len() && u32_le(area, offset)? != 0 {
            let raw = slice(area, offset, 16)?;
            let name_length = usize::from(u8_at(raw, 0)?);
            let name = slice(area, offset.saturating_add(16), name_length)?.to_vec();
            let value_at = usize::from(u16_le(raw, 2)?).saturating_add(base);
            let size = u32_le(raw, 8)?;
            if size > MAX_VALUE_BYTES {
                return Err(Error::corrupt(format!("a value of {size} bytes")));
            }
            let length = usize::try_from(size).unwrap_or(usize::MAX);
            let value = match u32_le(raw, 4)? {
                _ if length == 0 => Vec::new(),
                0 => slice(area, value_at, length)?.to_vec(),
                holder => self.value(inode, holder, length)?,
            };
            total = total.saturating_add(value.len());
            if entries.len() >= MAX_ATTRIBUTES || total > (64 << 20) {
                return Err(Error::corrupt("its attributes are too many"));
            }
            entries.push(Entry {
                index: u8_at(raw, 1)?,
                name,
                value,
            });
            offset = offset
                .saturating_add(16)
                .saturating_add(name_length.next_multiple_of(4));
        }
        Ok(entries)
    }

    /// A value that has an inode of its own.
    fn value(&self, owner: &Inode, holder: u32, length: usize) -> Result<Vec<u8>> {
        let inode = self.inode(holder)?;
        // One inside an inode could lead to yet another: Linux makes none.
        if !inode.is_attribute_value() || inode.is_inline() || inode.number == owner.number {
            return Err(Error::corrupt(format!("inode {holder} holds no value")));
        }
        let mut value = vec![0; length];
        self.contents(inode)?.read_at(0, &mut value)?;
        Ok(value)
    }
}

/// As Linux gives it to programs.
fn present(entry: Entry) -> Result<Option<ExtendedAttribute>> {
    let (prefix, is_list): (&[u8], bool) = match entry.index {
        0 => (b"", false),
        1 => (b"user.", false),
        2 => (b"system.posix_acl_access", true),
        3 => (b"system.posix_acl_default", true),
        4 => (b"trusted.", false),
        6 => (b"security.", false),
        INDEX_SYSTEM if entry.name == b"data" => return Ok(None),
        INDEX_SYSTEM => (b"system.", false),
        8 => (b"system.richacl", false),
        _ => return Ok(None),
    };
    let mut name = prefix.to_vec();
    name.extend_from_slice(&entry.name);
    let value = if is_list {
        access_list(&entry.value)?
    } else {
        entry.value
    };
    Ok(Some(ExtendedAttribute {
        name: FileName::from_bytes(name),
        value,
    }))
}

/// From the form on disk (ids only where they mean something) to the one of `getxattr`.
fn access_list(disk: &[u8]) -> Result<Vec<u8>> {
    if u32_le(disk, 0)? != 1 {
        return Err(Error::corrupt("an access list of an unknown version"));
    }
    let mut list = 2_u32.to_le_bytes().to_vec();
    let mut offset = 4_usize;
    while offset < disk.len() {
        list.extend_from_slice(slice(disk, offset, 4)?);
        let has_id = matches!(u16_le(disk, offset)?, 0x2 | 0x8);
        offset = offset.saturating_add(4);
        if has_id {
            list.extend_from_slice(slice(disk, offset, 4)?);
            offset = offset.saturating_add(4);
        } else {
            list.extend_from_slice(&[0xFF; 4]);
        }
    }
    Ok(list)
}
