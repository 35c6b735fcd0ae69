//! One name in a directory: through the hash table where there is one, else by listing.
//!
//! ```text
//!   above 32 GiB of the directory: node (hash:4 block:4)… ─► leaf (hash:4 place:4)… ─► entry at place × 8 below 32 GiB
//!     a node's hash is the largest below it; leaves lie in order and know the next one
//! ```
//!
//! **Invariants.** A leaf is visited once. When the table is damaged the directory is listed instead: a name is only said
//! to be absent when one of both says so without an error.

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
use std::ops::ControlFlow;

use super::directory::LEAF_OFFSET;
use super::inode::{Fork, ForkForm, Inode, Run};
use super::{MAX_TREE_LEVELS, Xfs};
use crate::filesystem::DirectoryCursor;
use crate::{Error, FileId, FileName, Result, field};

const LEAF_ONE_V4: u16 = 0xD2F1;
const LEAF_ONE_V5: u16 = 0x3DF1;
const LEAF_V4: u16 = 0xD2FF;
const LEAF_V5: u16 = 0x3DFF;
const NODE_V4: u16 = 0xFEBE;
const NODE_V5: u16 = 0x3EBE;

/// Lower case as XFS has it where case does not count: ASCII and Latin-1.
fn fold(byte: u8) -> u8 {
    match byte {
        b'A'..=b'Z' | 0xC0..=0xD6 | 0xD8..=0xDE => byte.wrapping_add(32),
        other => other,
    }
}

/// The hash of a name: 7 bits on for each byte.
fn hash(name: &[u8]) -> u32 {
    name.iter()
        .fold(0_u32, |hash, &byte| hash.rotate_left(7) ^ u32::from(byte))
}

impl Xfs {
    /// Whose name this is.
    pub(super) fn lookup(&self, inode: &Inode, name: &FileName) -> Result<Option<FileId>> {
        let place = |error: Error| error.within(format!("directory {}", inode.number));
        let form = inode.fork(Fork::Data).map_err(place)?;
        if matches!(form, Some((ForkForm::Extents | ForkForm::Tree, _))) {
            let runs = self.runs(inode, Fork::Data)?;
            let table = LEAF_OFFSET >> self.superblock.block_log;
            let has_table = runs.last().is_some_and(|run| run.file_block >= table);
            if has_table && let Ok(found) = self.lookup_hash(&runs, name) {
                return Ok(found);
            }
        }
        let mut found = None;
        self.list_directory(inode, DirectoryCursor::default(), &mut |entry| {
            if self.is_same(entry.name.as_bytes(), name.as_bytes()) {
                found = Some(entry.file);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    fn is_same(&self, left: &[u8], right: &[u8]) -> bool {
        if !self.superblock.is_case_insensitive {
            return left == right;
        }
        left.len() == right.len()
            && (left.iter().zip(right)).all(|(left, right)| fold(*left) == fold(*right))
    }

    fn lookup_hash(&self, runs: &[Run], name: &FileName) -> Result<Option<FileId>> {
        let wanted = if self.superblock.is_case_insensitive {
            let folded: Vec<u8> = name.as_bytes().iter().copied().map(fold).collect();
            hash(&folded)
        } else {
            hash(name.as_bytes())
        };
        let Some((mut number, mut block)) = self.lookup_leaf(runs, wanted)? else {
            return Ok(None);
        };
        let mut seen = HashSet::new();
        loop {
            if !seen.insert(number) {
                return Err(Error::corrupt("leaves that meet themselves"));
            }
            let (count_at, first): (usize, usize) = match field::u16_be(&block, 8)? {
                LEAF_ONE_V5 | LEAF_V5 => (56, 64),
                LEAF_ONE_V4 | LEAF_V4 => (12, 16),
                _ => return Err(Error::corrupt("no leaf")),
            };
            let count = usize::from(field::u16_be(&block, count_at)?);
            let entries = field::slice(&block, first, count.saturating_mul(8))?;
            let mut is_past = false;
            for entry in entries.chunks_exact(8) {
                let hash = field::u32_be(entry, 0)?;
                let place = field::u32_be(entry, 4)?;
                is_past = hash > wanted;
                if is_past {
                    break;
                }
                if hash == wanted
                    && place != 0
                    && let Some(found) = self.entry_at(runs, u64::from(place) << 3, name)?
                {
                    return Ok(Some(found));
                }
            }
            number = u64::from(field::u32_be(&block, 0)?);
            if is_past || number == 0 {
                return Ok(None);
            }
            block = self.table_block(runs, number)?;
        }
    }

    /// The first leaf that may have a hash; `None` when all hashes are smaller.
    fn lookup_leaf(&self, runs: &[Run], wanted: u32) -> Result<Option<(u64, Vec<u8>)>> {
        let mut number = LEAF_OFFSET >> self.superblock.block_log;
        for _ in 0..MAX_TREE_LEVELS {
            let block = self.table_block(runs, number)?;
            let (count_at, first): (usize, usize) = match field::u16_be(&block, 8)? {
                NODE_V5 => (56, 64),
                NODE_V4 => (12, 16),
                _ => return Ok(Some((number, block))),
            };
            let count = usize::from(field::u16_be(&block, count_at)?);
            let entries = field::slice(&block, first, count.saturating_mul(8))?;
            let mut below = None;
            for entry in entries.chunks_exact(8) {
                if field::u32_be(entry, 0)? >= wanted {
                    below = Some(u64::from(field::u32_be(entry, 4)?));
                    break;
                }
            }
            match below {
                Some(below) => number = below,
                None => return Ok(None),
            }
        }
        Err(Error::corrupt("a hash table of too many levels"))
    }

    fn table_block(&self, runs: &[Run], number: u64) -> Result<Vec<u8>> {
        let at = number.saturating_mul(u64::from(self.superblock.block_bytes));
        let bytes = self.directory_block(runs, at)?;
        if self.superblock.is_v5 {
            self.check_directory_sum(&bytes, runs, at, 12)?;
        }
        Ok(bytes)
    }

    /// Whose name stands at a byte of the directory, if it is this one.
    fn entry_at(&self, runs: &[Run], place: u64, name: &FileName) -> Result<Option<FileId>> {
        let unit = u64::from(self.superblock.directory_bytes);
        let within = place.checked_rem(unit).unwrap_or(0);
        let base = place.saturating_sub(within);
        let bytes = self.directory_block(runs, base)?;
        match field::slice(&bytes, 0, 4)? {
            b"XDB3" | b"XDD3" => self.check_directory_sum(&bytes, runs, base, 4)?,
            b"XD2B" | b"XD2D" => {}
            _ => return Err(Error::corrupt(format!("no names at {base}"))),
        }
        let at = usize::try_from(within).unwrap_or(usize::MAX);
        let length = usize::from(field::u8_at(&bytes, at.saturating_add(8))?);
        let told = field::slice(&bytes, at.saturating_add(9), length)?;
        if !self.is_same(told, name.as_bytes()) || matches!(told, b"." | b"..") {
            return Ok(None);
        }
        Ok(Some(FileId {
            tree: 0,
            number: field::u64_be(&bytes, at)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_linux() {
        // As the command `hash` of xfs_db has them.
        assert_eq!(hash(b"foobar"), 0xFDF8_B3C4);
        assert_eq!(hash(b"a_name_of_some_length"), 0x7E92_A97D);
    }
}
