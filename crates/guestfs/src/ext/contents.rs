//! The bytes of a file.
//!
//! **Invariants.** Exactly `size_bytes`; holes and unwritten extents are zeros and are said to be, nothing of the
//! volume is read for them. What lies inside the inode is at most an inode long.

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

use block::{Extent, ExtentKind, ReadAt};

use super::Ext;
use super::inode::Inode;
use super::map::Place;
use crate::Result;
use crate::field::bytes;

/// The contents of a file, block by block or out of its inode.
pub(super) struct Contents<'a> {
    ext: &'a Ext,
    inode: Inode,
    inline: Option<Vec<u8>>,
}

impl Ext {
    /// The contents of a file, of the blocks of a directory, or of a link's target.
    pub(super) fn contents(&self, inode: Inode) -> Result<Contents<'_>> {
        inode.refuse_obstacle()?;
        let inline = if inode.is_inline() {
            Some(self.inline_bytes(&inode)?)
        } else {
            None
        };
        Ok(Contents {
            ext: self,
            inode,
            inline,
        })
    }

    /// What lies in the inode: its map, and the hidden attribute behind it; never more than an inode and a value. A
    /// file may be longer (mke2fs makes such from sparse files): the rest is zeros, as it is for Linux.
    pub(super) fn inline_bytes(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut inline = inode.map.to_vec();
        if let Some(rest) = self.inline_rest(inode)? {
            inline.extend_from_slice(&rest);
        }
        let length = usize::try_from(inode.size_bytes).unwrap_or(usize::MAX);
        inline.truncate(length);
        Ok(inline)
    }
}

impl Contents<'_> {
    /// The run that holds a byte: its place, how many bytes are left in it, and how far into its first block.
    fn run(&self, offset: u64) -> Result<(Place, u64, u64)> {
        let width = u64::from(self.ext.superblock.block_bytes);
        let run = self
            .ext
            .run_at(&self.inode, offset.checked_div(width).unwrap_or(0))?;
        let into = offset.checked_rem(width).unwrap_or(0);
        let left = run.block_count.saturating_mul(width).saturating_sub(into);
        Ok((run.place, left.max(1), into))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut position = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (place, left, into) = self.run(position)?;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            if let Place::Written(block) = place {
                let start = block
                    .saturating_mul(u64::from(self.ext.superblock.block_bytes))
                    .saturating_add(into);
                self.ext.volume.read_at(start, head)?;
            } else {
                head.fill(0);
            }
            position = position.saturating_add(bytes(count));
            rest = tail;
        }
        Ok(())
    }
}

impl ReadAt for Contents<'_> {
    fn size_bytes(&self) -> u64 {
        self.inode.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let end = offset.checked_add(bytes(buffer.len()));
        if end.is_none_or(|end| end > self.size_bytes()) {
            return Err(outside(offset, self.size_bytes()));
        }
        if let Some(inline) = &self.inline {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let part = inline.get(start..).unwrap_or_default();
            let (head, tail) = buffer.split_at_mut(part.len().min(buffer.len()));
            head.copy_from_slice(part.get(..head.len()).unwrap_or_default());
            tail.fill(0);
            return Ok(());
        }
        self.read(offset, buffer)?;
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let left = self.size_bytes().saturating_sub(offset).min(limit_bytes);
        if left == 0 {
            return Err(outside(offset, self.size_bytes()));
        }
        if let Some(inline) = &self.inline {
            let there = bytes(inline.len()).saturating_sub(offset);
            let (length_bytes, kind) = if there == 0 {
                (left, ExtentKind::Unallocated)
            } else {
                (left.min(there), ExtentKind::Data)
            };
            return Ok(Extent {
                offset,
                length_bytes,
                kind,
            });
        }
        let (place, run, _) = self.run(offset)?;
        Ok(Extent {
            offset,
            length_bytes: run.min(left),
            kind: match place {
                Place::Written(_) => ExtentKind::Data,
                Place::Unwritten(_) => ExtentKind::Zero,
                Place::Hole => ExtentKind::Unallocated,
            },
        })
    }
}

fn outside(offset: u64, size_bytes: u64) -> block::Error {
    block::Error::new(
        block::ErrorKind::OutOfRange,
        format!("byte {offset} of a file of {size_bytes}"),
    )
}
