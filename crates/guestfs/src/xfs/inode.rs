//! Inodes and where their bytes lie.
//!
//! ```text
//!   core 100 (v4) or 176 (v5) │ data fork │ attribute fork at 8 × forkoff
//!   fork: local bytes │ extents of 16 bytes │ root of a B+tree of extents
//! ```
//!
//! **Invariants.** The extents of a fork come in ascending order without overlaps, else the inode is corrupt. A tree is
//! at most 9 levels deep and none of its blocks is visited twice.

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

use super::log::Mapping;
use super::{Xfs, superblock};
use crate::filesystem::Timestamp;
use crate::{Error, ErrorKind, Result, field};

const MAX_EXTENTS: usize = 4 << 20;
const MAX_LEVELS: u16 = 9;

/// Form of a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ForkForm {
    Device,
    Local,
    Extents,
    Tree,
}

/// A run of blocks of a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) file_block: u64,
    pub(super) volume_block: u64,
    pub(super) count: u64,
    pub(super) is_unwritten: bool,
}

/// Which fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fork {
    Data,
    Attributes,
}

/// An inode in use.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) number: u64,
    bytes: Vec<u8>,
    core_bytes: usize,
    pub(super) mode: u16,
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) links: u32,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) is_realtime: bool,
    is_big_time: bool,
    data_extents: u64,
    attribute_extents: u64,
}

impl Inode {
    pub(super) fn parse(number: u64, bytes: Vec<u8>, has_wide_counts: bool) -> Result<Self> {
        if field::slice(&bytes, 0, 2)? != b"IN" {
            return Err(Error::corrupt("no inode"));
        }
        let version = field::u8_at(&bytes, 4)?;
        let is_v3 = version == 3;
        if !matches!(version, 1..=3) {
            return Err(Error::corrupt(format!("version {version}")));
        }
        if is_v3 {
            superblock::check_sum(&bytes, 100)?;
            if field::u64_be(&bytes, 152)? != number {
                return Err(Error::corrupt("it says that it is another one"));
            }
        }
        let mode = field::u16_be(&bytes, 2)?;
        if mode == 0 {
            return Err(Error::new(ErrorKind::NotFound, "not in use"));
        }
        let flags2 = if is_v3 {
            field::u64_be(&bytes, 120)?
        } else {
            0
        };
        let is_wide = has_wide_counts && flags2 & superblock::INODE_WIDE_COUNTS != 0;
        let (data_extents, attribute_extents) = if is_wide {
            (
                field::u64_be(&bytes, 24)?,
                u64::from(field::u32_be(&bytes, 76)?),
            )
        } else {
            (
                u64::from(field::u32_be(&bytes, 76)?),
                u64::from(field::u16_be(&bytes, 80)?),
            )
        };
        Ok(Self {
            number,
            core_bytes: if is_v3 { 176 } else { 100 },
            mode,
            user: field::u32_be(&bytes, 8)?,
            group: field::u32_be(&bytes, 12)?,
            links: if version == 1 {
                u32::from(field::u16_be(&bytes, 6)?)
            } else {
                field::u32_be(&bytes, 16)?
            },
            size: field::u64_be(&bytes, 56)?,
            blocks: field::u64_be(&bytes, 64)?,
            is_realtime: field::u16_be(&bytes, 90)? & 1 != 0,
            is_big_time: flags2 & superblock::INODE_BIG_TIME != 0,
            data_extents,
            attribute_extents,
            bytes,
        })
    }

    /// The time at a place of the core; the birth only where there is one.
    pub(super) fn time(&self, at: usize) -> Option<Timestamp> {
        if at >= 100 && self.core_bytes == 100 {
            return None;
        }
        if self.is_big_time {
            const UNITS: u64 = 1_000_000_000;
            let raw = field::u64_be(&self.bytes, at).ok()?;
            let seconds = i64::try_from(raw.checked_div(UNITS)?).ok()?;
            return Some(Timestamp {
                seconds: seconds.checked_sub(1 << 31)?,
                nanoseconds: u32::try_from(raw.checked_rem(UNITS)?).ok()?,
            });
        }
        let seconds = field::u32_be(&self.bytes, at).ok()?;
        let nanoseconds = field::u32_be(&self.bytes, at.checked_add(4)?).ok()?;
        Some(Timestamp {
            seconds: i64::from(i32::from_be_bytes(seconds.to_be_bytes())),
            nanoseconds: nanoseconds.min(999_999_999),
        })
    }

    /// The bytes of a fork; an attribute fork may be absent.
    pub(super) fn fork(&self, fork: Fork) -> Result<Option<(ForkForm, &[u8])>> {
        let whole = self
            .bytes
            .get(self.core_bytes..)
            .ok_or_else(|| Error::corrupt("no room for a fork"))?;
        let offset = usize::from(field::u8_at(&self.bytes, 82)?).saturating_mul(8);
        if offset > whole.len() {
            return Err(Error::corrupt("its attribute fork begins behind its end"));
        }
        let (code, bytes) = match fork {
            Fork::Data if offset == 0 => (field::u8_at(&self.bytes, 5)?, whole),
            Fork::Data => (
                field::u8_at(&self.bytes, 5)?,
                field::slice(whole, 0, offset)?,
            ),
            Fork::Attributes if offset == 0 => return Ok(None),
            Fork::Attributes => (
                field::u8_at(&self.bytes, 83)?,
                whole.get(offset..).unwrap_or(&[]),
            ),
        };
        let form = match code {
            0 => ForkForm::Device,
            1 => ForkForm::Local,
            2 => ForkForm::Extents,
            3 => ForkForm::Tree,
            other => return Err(Error::corrupt(format!("fork of form {other}"))),
        };
        Ok(Some((form, bytes)))
    }

    fn extent_count(&self, fork: Fork) -> u64 {
        match fork {
            Fork::Data => self.data_extents,
            Fork::Attributes => self.attribute_extents,
        }
    }
}

fn run(record: &[u8]) -> Result<Run> {
    let (high, low) = (field::u64_be(record, 0)?, field::u64_be(record, 8)?);
    Ok(Run {
        is_unwritten: high >> 63 != 0,
        file_block: (high >> 9) & ((1_u64 << 54).saturating_sub(1)),
        volume_block: ((high & 0x1FF) << 43) | (low >> 21),
        count: low & ((1_u64 << 21).saturating_sub(1)),
    })
}

/// Does what the log promised.
fn change(runs: &mut Vec<Run>, mapping: Mapping) {
    let (first, count) = match mapping {
        Mapping::Map(run) => (run.file_block, run.count),
        Mapping::Unmap { file_block, count } => (file_block, count),
    };
    let end = first.saturating_add(count);
    let mut kept = Vec::with_capacity(runs.len().saturating_add(2));
    for run in runs.drain(..) {
        let run_end = run.file_block.saturating_add(run.count);
        let before = first.min(run_end).saturating_sub(run.file_block);
        if before > 0 {
            kept.push(Run {
                count: before,
                ..run
            });
        }
        let skip = end.max(run.file_block).saturating_sub(run.file_block);
        if skip < run.count {
            kept.push(Run {
                file_block: run.file_block.saturating_add(skip),
                volume_block: run.volume_block.saturating_add(skip),
                count: run.count.saturating_sub(skip),
                ..run
            });
        }
    }
    if let Mapping::Map(run) = mapping {
        kept.push(run);
        kept.sort_by_key(|run| run.file_block);
    }
    *runs = kept;
}

impl Xfs {
    /// The runs of a fork, in order.
    pub(super) fn runs(&self, inode: &Inode, fork: Fork) -> Result<Vec<Run>> {
        let place = |error: Error| error.within(format!("inode {}", inode.number));
        self.runs_of(inode, fork).map_err(place)
    }

    fn runs_of(&self, inode: &Inode, fork: Fork) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        match inode.fork(fork)? {
            Some((ForkForm::Extents, bytes)) => {
                let count = usize::try_from(inode.extent_count(fork)).unwrap_or(usize::MAX);
                let bytes = field::slice(bytes, 0, count.saturating_mul(16))?;
                for record in bytes.chunks_exact(16) {
                    runs.push(run(record)?);
                }
            }
            Some((ForkForm::Tree, bytes)) => self.tree_runs(bytes, &mut runs)?,
            _ => {}
        }
        if let (Fork::Data, Some(mappings)) = (fork, self.mappings.get(&inode.number)) {
            for mapping in mappings {
                change(&mut runs, *mapping);
            }
        }
        let mut end = 0_u64;
        for run in &runs {
            self.superblock.run_offset(run.volume_block, run.count)?;
            if run.count == 0 || run.file_block < end {
                return Err(Error::corrupt("its extents are out of order"));
            }
            end = run.file_block.saturating_add(run.count);
        }
        Ok(runs)
    }

    fn tree_runs(&self, root: &[u8], runs: &mut Vec<Run>) -> Result<()> {
        let level = field::u16_be(root, 0)?;
        if level == 0 || level > MAX_LEVELS {
            return Err(Error::corrupt(format!(
                "tree of extents with {level} levels"
            )));
        }
        let header: usize = if self.superblock.is_v5 { 72 } else { 24 };
        let mut waiting: Vec<(u16, u64)> = children(root, 4, field::u16_be(root, 2)?)?
            .into_iter()
            .rev()
            .map(|child| (level.saturating_sub(1), child))
            .collect();
        let mut seen = HashSet::new();
        while let Some((level, block)) = waiting.pop() {
            if !seen.insert(block) {
                return Err(Error::corrupt("a tree of extents that meets itself"));
            }
            let bytes = self.block(block)?;
            let magic: &[u8] = if self.superblock.is_v5 {
                b"BMA3"
            } else {
                b"BMAP"
            };
            if field::slice(&bytes, 0, 4)? != magic || field::u16_be(&bytes, 4)? != level {
                return Err(Error::corrupt(format!(
                    "block {block:#x} of a tree of extents"
                )));
            }
            if self.superblock.is_v5 {
                superblock::check_sum(&bytes, 64)
                    .map_err(|error| error.within(format!("block {block:#x}")))?;
            }
            let count = field::u16_be(&bytes, 6)?;
            if level > 0 {
                let below = children(&bytes, header, count)?;
                waiting.extend(
                    below
                        .into_iter()
                        .rev()
                        .map(|at| (level.saturating_sub(1), at)),
                );
                continue;
            }
            let length = usize::from(count).saturating_mul(16);
            for record in field::slice(&bytes, header, length)?.chunks_exact(16) {
                runs.push(run(record)?);
            }
            if runs.len() > MAX_EXTENTS {
                return Err(Error::new(ErrorKind::Limit, "too many extents"));
            }
        }
        Ok(())
    }
}

/// Blocks below a node: behind as many keys as there could be.
fn children(node: &[u8], header: usize, count: u16) -> Result<Vec<u64>> {
    let room = node
        .len()
        .saturating_sub(header)
        .checked_div(16)
        .unwrap_or(0);
    if usize::from(count) > room {
        return Err(Error::corrupt("node with more children than fit"));
    }
    let first = header.saturating_add(room.saturating_mul(8));
    (0..usize::from(count))
        .map(|index| field::u64_be(node, first.saturating_add(index.saturating_mul(8))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promised_change_cuts_what_it_covers_and_nothing_else() {
        let run = |file_block, volume_block, count| Run {
            file_block,
            volume_block,
            count,
            is_unwritten: false,
        };
        let mut runs = vec![run(0, 100, 10), run(20, 300, 5)];
        let (file_block, count) = (4, 2);
        change(&mut runs, Mapping::Unmap { file_block, count });
        assert_eq!(runs, [run(0, 100, 4), run(6, 106, 4), run(20, 300, 5)]);
        change(&mut runs, Mapping::Map(run(4, 900, 2)));
        let wanted = [
            run(0, 100, 4),
            run(4, 900, 2),
            run(6, 106, 4),
            run(20, 300, 5),
        ];
        assert_eq!(runs, wanted);
        change(&mut runs, Mapping::Map(run(3, 500, 18)));
        assert_eq!(runs, [run(0, 100, 3), run(3, 500, 18), run(21, 301, 4)]);
    }
}
