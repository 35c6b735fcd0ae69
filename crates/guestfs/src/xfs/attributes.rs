//! Extended attributes: in the inode, in leaves of a tree, and values in blocks of their own.
//!
//! ```text
//!   in the inode: total:2 count:1 spare:1 (name-length:1 value-length:1 flags:1 name value)…
//!   tree: node ─► leaf ─► leaf …      leaf: header │ (hash:4 place:2 flags:1 spare:1)… │ free │ names and values
//!     local: value-length:2 name-length:1 name value      remote: block:4 value-length:4 name-length:1 name
//!   value in blocks: version 5 with a header of 56 bytes each, version 4 bare
//! ```
//!
//! **Invariants.** A leaf is visited once; all values of a file are at most [`MAX_TOTAL_BYTES`]. What is half written
//! (marked incomplete) is not told, nor are the links back to directories. Access lists come as Linux gives them.

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

use std::collections::HashSet;
use std::sync::Arc;

use super::inode::{Fork, ForkForm, Inode, Run};
use super::{MAX_TREE_LEVELS, Xfs, superblock};
use crate::filesystem::ExtendedAttribute;
use crate::{Error, ErrorKind, FileName, Result, field};

const IS_LOCAL: u8 = 1;
const OF_ROOT: u8 = 2;
const OF_SECURITY: u8 = 4;
const IS_PARENT: u8 = 8;
const IS_INCOMPLETE: u8 = 0x80;

const LEAF_V4: u16 = 0xFBEE;
const LEAF_V5: u16 = 0x3BEE;
const NODE_V4: u16 = 0xFEBE;
const NODE_V5: u16 = 0x3EBE;

const REMOTE_HEADER: usize = 56;
const MAX_VALUE_BYTES: u32 = 64 << 10;
const MAX_TOTAL_BYTES: usize = 64 << 20;

/// What was found so far.
#[derive(Default)]
struct Found {
    attributes: Vec<ExtendedAttribute>,
    bytes: usize,
}

impl Found {
    fn add(&mut self, flags: u8, name: &[u8], value: Vec<u8>) -> Result<()> {
        if flags & (IS_PARENT | IS_INCOMPLETE) != 0 {
            return Ok(());
        }
        let (full, value) = match (flags & OF_ROOT != 0, name) {
            (true, b"SGI_ACL_FILE") => (b"system.posix_acl_access".to_vec(), access_list(&value)?),
            (true, b"SGI_ACL_DEFAULT") => {
                (b"system.posix_acl_default".to_vec(), access_list(&value)?)
            }
            _ => {
                let mut full = match flags {
                    flags if flags & OF_ROOT != 0 => b"trusted.".to_vec(),
                    flags if flags & OF_SECURITY != 0 => b"security.".to_vec(),
                    _ => b"user.".to_vec(),
                };
                full.extend_from_slice(name);
                (full, value)
            }
        };
        self.bytes = (self.bytes)
            .saturating_add(full.len())
            .saturating_add(value.len())
            .saturating_add(64);
        if self.bytes > MAX_TOTAL_BYTES {
            return Err(Error::new(ErrorKind::Limit, "too many attributes"));
        }
        self.attributes.push(ExtendedAttribute {
            name: FileName::from_bytes(full),
            value,
        });
        Ok(())
    }
}

/// count:4 (tag:4 id:4 permissions:2 spare:2)…, big-endian, as Linux hands it out: version:4 (tag:2 permissions:2 id:4)…
fn access_list(value: &[u8]) -> Result<Vec<u8>> {
    const USER: u32 = 2;
    const GROUP: u32 = 8;
    let count = usize::try_from(field::u32_be(value, 0)?).unwrap_or(usize::MAX);
    let mut list = 2_u32.to_le_bytes().to_vec();
    for entry in field::slice(value, 4, count.saturating_mul(12))?.chunks_exact(12) {
        let tag = field::u32_be(entry, 0)?;
        let id = match tag {
            USER | GROUP => field::u32_be(entry, 4)?,
            _ => u32::MAX,
        };
        let short = u16::try_from(tag).map_err(|_| Error::corrupt("an access list's tag"))?;
        list.extend_from_slice(&short.to_le_bytes());
        list.extend_from_slice(&field::u16_be(entry, 8)?.to_le_bytes());
        list.extend_from_slice(&id.to_le_bytes());
    }
    Ok(list)
}

impl Xfs {
    /// All attributes of a file that are told.
    pub(super) fn attributes(&self, inode: &Inode) -> Result<Vec<ExtendedAttribute>> {
        let mut found = Found::default();
        match inode.fork(Fork::Attributes)? {
            None => {}
            Some((ForkForm::Local, bytes)) => local(bytes, &mut found)?,
            Some(_) => {
                let runs = self.runs(inode, Fork::Attributes)?;
                if !runs.is_empty() {
                    self.tree(inode, &runs, &mut found)?;
                }
            }
        }
        Ok(found.attributes)
    }

    fn attribute_block(&self, runs: &[Run], number: u64) -> Result<Arc<[u8]>> {
        let block_bytes = u64::from(self.superblock.block_bytes);
        let (run, _) = self.place(runs, number.saturating_mul(block_bytes));
        let run = run.ok_or_else(|| Error::corrupt(format!("block {number} is a hole")))?;
        let within = number.saturating_sub(run.file_block);
        self.block(run.volume_block.saturating_add(within))
    }

    fn tree(&self, inode: &Inode, runs: &[Run], found: &mut Found) -> Result<()> {
        let mut number = 0_u64;
        let mut left = MAX_TREE_LEVELS;
        let mut block = self.attribute_block(runs, number)?;
        loop {
            match field::u16_be(&block, 8)? {
                LEAF_V4 | LEAF_V5 => break,
                magic @ (NODE_V4 | NODE_V5) if left > 0 => {
                    if magic == NODE_V5 {
                        superblock::check_sum(&block, 12)?;
                    }
                    let below = if magic == NODE_V5 { 68 } else { 20 };
                    number = u64::from(field::u32_be(&block, below)?);
                    block = self.attribute_block(runs, number)?;
                    left = left.saturating_sub(1);
                }
                _ => return Err(Error::corrupt(format!("block {number} of their tree"))),
            }
        }
        let mut seen = HashSet::new();
        loop {
            if !seen.insert(number) {
                return Err(Error::corrupt("leaves that meet themselves"));
            }
            self.leaf(inode, runs, &block, found)
                .map_err(|error| error.within(format!("block {number}")))?;
            number = u64::from(field::u32_be(&block, 0)?);
            if number == 0 {
                return Ok(());
            }
            block = self.attribute_block(runs, number)?;
        }
    }

    fn leaf(&self, inode: &Inode, runs: &[Run], block: &[u8], found: &mut Found) -> Result<()> {
        let (count_at, first): (usize, usize) = match field::u16_be(block, 8)? {
            LEAF_V5 => {
                superblock::check_sum(block, 12)?;
                (56, 80)
            }
            LEAF_V4 => (12, 32),
            _ => return Err(Error::corrupt("no leaf")),
        };
        let count = usize::from(field::u16_be(block, count_at)?);
        for entry in field::slice(block, first, count.saturating_mul(8))?.chunks_exact(8) {
            let at = usize::from(field::u16_be(entry, 4)?);
            let flags = field::u8_at(entry, 6)?;
            if flags & (IS_PARENT | IS_INCOMPLETE) != 0 {
                continue;
            }
            let (name, value) = if flags & IS_LOCAL != 0 {
                let length = usize::from(field::u16_be(block, at)?);
                let name = usize::from(field::u8_at(block, at.saturating_add(2))?);
                let name_at = at.saturating_add(3);
                let value = field::slice(block, name_at.saturating_add(name), length)?;
                (field::slice(block, name_at, name)?, value.to_vec())
            } else {
                let first = u64::from(field::u32_be(block, at)?);
                let length = field::u32_be(block, at.saturating_add(4))?;
                let name = usize::from(field::u8_at(block, at.saturating_add(8))?);
                let value = self.remote(inode, runs, first, length)?;
                (field::slice(block, at.saturating_add(9), name)?, value)
            };
            found.add(flags, name, value)?;
        }
        Ok(())
    }

    /// A value in blocks of its own.
    fn remote(&self, inode: &Inode, runs: &[Run], first: u64, length: u32) -> Result<Vec<u8>> {
        if length > MAX_VALUE_BYTES {
            return Err(Error::corrupt(format!("a value of {length} bytes")));
        }
        let length = usize::try_from(length).unwrap_or(0);
        let mut value = Vec::with_capacity(length);
        let mut number = first;
        while value.len() < length {
            let block = self.attribute_block(runs, number)?;
            let left = length.saturating_sub(value.len());
            let part = if self.superblock.is_v5 {
                let is_ours = field::slice(&block, 0, 4)? == b"XARM"
                    && field::u32_be(&block, 4)? == u32::try_from(value.len()).unwrap_or(u32::MAX)
                    && field::u64_be(&block, 32)? == inode.number;
                if !is_ours {
                    return Err(Error::corrupt(format!(
                        "block {number} is no part of a value"
                    )));
                }
                superblock::check_sum(&block, 12)
                    .map_err(|error| error.within(format!("block {number} of a value")))?;
                let bytes = usize::try_from(field::u32_be(&block, 8)?).unwrap_or(usize::MAX);
                if bytes == 0 {
                    return Err(Error::corrupt(format!(
                        "block {number} of a value is empty"
                    )));
                }
                field::slice(&block, REMOTE_HEADER, bytes.min(left))?
            } else {
                field::slice(&block, 0, left.min(block.len()))?
            };
            value.extend_from_slice(part);
            number = number.saturating_add(1);
        }
        Ok(value)
    }
}

fn local(bytes: &[u8], found: &mut Found) -> Result<()> {
    let mut at = 4_usize;
    for _ in 0..field::u8_at(bytes, 2)? {
        let name_length = usize::from(field::u8_at(bytes, at)?);
        let value_length = usize::from(field::u8_at(bytes, at.saturating_add(1))?);
        let flags = field::u8_at(bytes, at.saturating_add(2))?;
        let name = field::slice(bytes, at.saturating_add(3), name_length)?;
        let value_at = at.saturating_add(3).saturating_add(name_length);
        let value = field::slice(bytes, value_at, value_length)?.to_vec();
        at = value_at.saturating_add(value_length);
        found.add(flags, name, value)?;
    }
    Ok(())
}
