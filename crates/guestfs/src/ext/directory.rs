//! Directories: names in blocks one after another, or inside the inode.
//!
//! ```text
//!   leaf:       [inode, length, name length, kind, name] … [checksum tail of 12 bytes]
//!   index root: [.] [.. whose length hides the index]          index node: [empty entry as long as the block, hiding it]
//! ```
//!
//! An indexed directory (htree) is listed like any other: its index hides inside what looks like unused entries. Single
//! names are found through it, see `index.rs`.
//!
//! **Invariants.** A cursor is the byte behind an entry. A block whose checksum or chain of lengths is wrong is left
//! out, and told as an error after everything else. A directory has no more blocks than the volume.

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

use std::ops::ControlFlow;

use super::Ext;
use super::inode::{Inode, MAP_BYTES};
use super::map::Place;
use super::superblock::{crc32c, incompat};
use crate::field::{bytes, slice, u8_at, u16_le, u32_le};
use crate::filesystem::{DirectoryCursor, DirectoryEntry, FileKind};
use crate::{Error, ErrorKind, FileId, FileName, Result};

const TAIL_BYTES: usize = 12;
const TAIL_KIND: u8 = 0xDE;

/// What a listing is told with.
type Visit<'a> = &'a mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>;

/// A part of a directory that is parsed at once.
struct Part<'a> {
    bytes: &'a [u8],
    /// Where it begins in the directory.
    base: u64,
    /// Entries before this are not told.
    after: u64,
}

impl Ext {
    /// Tells the names of a directory behind a cursor.
    pub(super) fn list_names(
        &self,
        inode: &Inode,
        after: DirectoryCursor,
        visit: Visit<'_>,
    ) -> Result<()> {
        if inode.kind != FileKind::Directory {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("inode {} is no directory", inode.number),
            ));
        }
        inode.refuse_obstacle()?;
        let place = |error: Error| error.within(format!("directory {}", inode.number));
        if inode.is_inline() {
            return self.list_inline(inode, after.0, visit).map_err(place);
        }
        self.list_blocks(inode, after.0, visit).map_err(place)
    }

    fn list_inline(&self, inode: &Inode, after: u64, visit: Visit<'_>) -> Result<()> {
        let inline = self.inline_bytes(inode)?;
        // The parent's number stands first; entries do not cross from the map into the attribute.
        let map_end = inline.len().min(MAP_BYTES);
        for (start, end) in [(4, map_end), (map_end, inline.len())] {
            let bytes = inline.get(start..end).unwrap_or_default();
            let base = crate::field::bytes(start);
            if self.tell(&Part { bytes, base, after }, visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn list_blocks(&self, inode: &Inode, after: u64, visit: Visit<'_>) -> Result<()> {
        let width = u64::from(self.superblock.block_bytes);
        let total = inode.size_bytes.div_ceil(width.max(1));
        let mut logical = after.checked_div(width).unwrap_or(0);
        let mut trouble = None;
        let mut seen = 0_u64;
        while logical < total {
            let run = match self.run_at(inode, logical) {
                Ok(run) => run,
                Err(error) => return Err(trouble.unwrap_or(error)),
            };
            let count = run.block_count.min(total.saturating_sub(logical));
            if let Place::Written(start) = run.place {
                seen = seen.saturating_add(count);
                if seen > self.superblock.block_count {
                    return Err(Error::corrupt("it has more blocks than the volume"));
                }
                for index in 0..count {
                    let base = logical.saturating_add(index).saturating_mul(width);
                    let told = self
                        .cache
                        .block(start.saturating_add(index))
                        .and_then(|block| {
                            self.check_directory_block(inode, &block)?;
                            self.tell(
                                &Part {
                                    bytes: &block,
                                    base,
                                    after,
                                },
                                visit,
                            )
                        });
                    match told {
                        Ok(ControlFlow::Break(())) => return Ok(()),
                        Ok(ControlFlow::Continue(())) => {}
                        Err(error) => {
                            trouble.get_or_insert(error.within(format!("bytes from {base}")));
                        }
                    }
                }
            } else {
                trouble.get_or_insert_with(|| Error::corrupt(format!("a hole at block {logical}")));
            }
            logical = logical.saturating_add(count);
        }
        trouble.map_or(Ok(()), Err)
    }

    /// Tells the entries of one block.
    pub(super) fn tell_block(
        &self,
        bytes: &[u8],
        after: DirectoryCursor,
        visit: Visit<'_>,
    ) -> Result<ControlFlow<()>> {
        let part = Part {
            bytes,
            base: 0,
            after: after.0,
        };
        self.tell(&part, visit)
    }

    /// Tells the entries of a part that lie behind the cursor.
    fn tell(&self, part: &Part<'_>, visit: Visit<'_>) -> Result<ControlFlow<()>> {
        let mut offset = 0_usize;
        while offset.saturating_add(8) <= part.bytes.len() {
            let head = slice(part.bytes, offset, 8)?;
            let length = self.record_length(u16_le(head, 4)?);
            let name_length = if self.superblock.has_incompat(incompat::FILETYPE) {
                usize::from(u8_at(head, 6)?)
            } else {
                usize::from(u16_le(head, 6)? & 0xFF)
            };
            let number = u32_le(head, 0)?;
            let end = offset.saturating_add(length);
            if length < name_length.saturating_add(8).max(12)
                || !length.is_multiple_of(4)
                || end > part.bytes.len()
                || number > self.superblock.inode_count
            {
                return Err(Error::corrupt(format!(
                    "an entry of {length} bytes, its name of {name_length}, for inode {number}"
                )));
            }
            let position = part.base.saturating_add(bytes(offset));
            let name = slice(part.bytes, offset.saturating_add(8), name_length)?;
            let is_name = number != 0 && name_length > 0 && !matches!(name, b"." | b"..");
            if is_name && position >= part.after {
                let entry = DirectoryEntry {
                    name: FileName::from_bytes(name),
                    file: FileId {
                        tree: 0,
                        number: u64::from(number),
                    },
                    kind: self.entry_kind(u8_at(head, 7)?),
                    next: DirectoryCursor(part.base.saturating_add(bytes(end))),
                };
                if visit(entry).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            offset = end;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Lengths of 64 KiB do not fit into 16 bits; two low bits that are always zero hold the high ones.
    fn record_length(&self, stored: u16) -> usize {
        let block = self.superblock.block_length();
        if block < 65536 {
            return usize::from(stored);
        }
        if stored == 0 || stored == u16::MAX {
            return block;
        }
        usize::from(stored & !3) | usize::from(stored & 3) << 16
    }

    fn entry_kind(&self, kind: u8) -> Option<FileKind> {
        if !self.superblock.has_incompat(incompat::FILETYPE) {
            return None;
        }
        match kind & 7 {
            1 => Some(FileKind::Regular),
            2 => Some(FileKind::Directory),
            5 => Some(FileKind::Fifo),
            6 => Some(FileKind::Socket),
            7 => Some(FileKind::SymbolicLink),
            // Of devices only the inode says which.
            _ => None,
        }
    }

    pub(super) fn check_directory_block(&self, inode: &Inode, block: &[u8]) -> Result<()> {
        if !self.superblock.has_checksums() {
            return Ok(());
        }
        if inode.is_indexed()
            && let Some(limits) = self.index_limits(block)?
        {
            return check_index(inode, block, limits);
        }
        let body = block.len().saturating_sub(TAIL_BYTES);
        let tail = slice(block, body, TAIL_BYTES)?;
        if u32_le(tail, 0)? != 0
            || u16_le(tail, 4)? != 12
            || u16_le(tail, 6)? != u16::from(TAIL_KIND) << 8
        {
            return Err(Error::corrupt("it has no place for its checksum"));
        }
        let found = crc32c(inode.seed, slice(block, 0, body)?);
        if crate::field::sum_holds(found, u32_le(tail, 8)?) {
            return Ok(());
        }
        Err(Error::corrupt("its checksum is wrong"))
    }

    /// Where the limits of a block of the index stand, if it is one.
    fn index_limits(&self, block: &[u8]) -> Result<Option<usize>> {
        let first = self.record_length(u16_le(block, 4)?);
        if first == block.len() && u32_le(block, 0)? == 0 {
            return Ok(Some(8));
        }
        if first != 12 || self.record_length(u16_le(block, 16)?) != block.len().saturating_sub(12) {
            return Ok(None);
        }
        Ok((u32_le(block, 24)? == 0 && u8_at(block, 29)? == 8).then_some(32))
    }
}

fn check_index(inode: &Inode, block: &[u8], limits: usize) -> Result<()> {
    let capacity = usize::from(u16_le(block, limits)?);
    let count = usize::from(u16_le(block, limits.saturating_add(2))?);
    let tail = limits.saturating_add(capacity.saturating_mul(8));
    if count > capacity {
        return Err(Error::corrupt(format!(
            "{count} entries of an index of {capacity}"
        )));
    }
    let used = limits.saturating_add(count.saturating_mul(8));
    let mut sum = crc32c(inode.seed, slice(block, 0, used)?);
    sum = crc32c(sum, slice(block, tail, 4)?);
    sum = crc32c(sum, &[0; 4]);
    if crate::field::sum_holds(sum, u32_le(block, tail.saturating_add(4))?) {
        return Ok(());
    }
    Err(Error::corrupt("the checksum of its index is wrong"))
}
