//! Names in directories.
//!
//! ```text
//!   in the inode: count:1 wide:1 parent:4|8 (length:1 offset:2 name kind:1 inode:4|8)…
//!   blocks below 32 GiB of the directory: header │ inode:8 length:1 name kind:1 … tag:2 │ 0xffff length:2 … free
//!     a directory of one block ends with its hash table and (count:4 stale:4); others keep theirs above 32 GiB
//! ```
//!
//! **Invariants.** A block is proved before its names are told; one that is damaged is skipped, and said at the end.

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

use super::inode::{Fork, ForkForm, Inode, Run};
use super::{Xfs, superblock};
use crate::filesystem::{DirectoryCursor, DirectoryEntry, FileKind};
use crate::{Error, FileId, FileName, Result, field};

/// Where hash tables begin.
pub(super) const LEAF_OFFSET: u64 = 32 << 30;

type Visit<'v> = &'v mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>;

fn kind(code: u8) -> Option<FileKind> {
    Some(match code {
        1 => FileKind::Regular,
        2 => FileKind::Directory,
        5 => FileKind::Fifo,
        6 => FileKind::Socket,
        7 => FileKind::SymbolicLink,
        _ => return None,
    })
}

fn entry(name: &[u8], inode: u64, code: Option<u8>, next: u64) -> Option<DirectoryEntry> {
    if matches!(name, b"." | b"..") {
        return None;
    }
    Some(DirectoryEntry {
        name: FileName::from_bytes(name),
        file: FileId {
            tree: 0,
            number: inode,
        },
        kind: code.and_then(kind),
        next: DirectoryCursor(next),
    })
}

impl Xfs {
    pub(super) fn list_directory(
        &self,
        inode: &Inode,
        after: DirectoryCursor,
        visit: Visit<'_>,
    ) -> Result<()> {
        let place = |error: Error| error.within(format!("directory {}", inode.number));
        match inode.fork(Fork::Data).map_err(place)? {
            Some((ForkForm::Local, bytes)) => self.list_local(bytes, after, visit).map_err(place),
            _ => self.list_blocks(inode, after, visit).map_err(place),
        }
    }

    fn list_local(&self, bytes: &[u8], after: DirectoryCursor, visit: Visit<'_>) -> Result<()> {
        let count = u64::from(field::u8_at(bytes, 0)?);
        let width: usize = if field::u8_at(bytes, 1)? == 0 { 4 } else { 8 };
        let mut at = width.saturating_add(2);
        for index in 0..count {
            let length = usize::from(field::u8_at(bytes, at)?);
            let name = field::slice(bytes, at.saturating_add(3), length)?;
            at = at.saturating_add(3).saturating_add(length);
            let code = if self.superblock.has_file_types {
                let code = field::u8_at(bytes, at)?;
                at = at.saturating_add(1);
                Some(code)
            } else {
                None
            };
            let inode = if width == 4 {
                u64::from(field::u32_be(bytes, at)?)
            } else {
                field::u64_be(bytes, at)?
            };
            at = at.saturating_add(width);
            let next = index.saturating_add(1);
            if next <= after.0 {
                continue;
            }
            if let Some(entry) = entry(name, inode, code, next)
                && visit(entry).is_break()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    fn list_blocks(&self, inode: &Inode, after: DirectoryCursor, visit: Visit<'_>) -> Result<()> {
        let runs = self.runs(inode, Fork::Data)?;
        let unit = u64::from(self.superblock.directory_bytes);
        let block_bytes = u64::from(self.superblock.block_bytes);
        let mut damage = None;
        let mut done = None;
        for run in &runs {
            let first = run.file_block.saturating_mul(block_bytes);
            let end = first.saturating_add(run.count.saturating_mul(block_bytes));
            let mut number = first.checked_div(unit).unwrap_or(0);
            loop {
                let at = number.saturating_mul(unit);
                if at >= end || at >= LEAF_OFFSET {
                    break;
                }
                let unit_end = at.saturating_add(unit);
                if done.is_none_or(|done| number > done) && unit_end > after.0 {
                    done = Some(number);
                    match self.directory_block(&runs, at) {
                        Ok(bytes) => match self.list_block(&bytes, &runs, at, after, visit) {
                            Ok(ControlFlow::Break(())) => return Ok(()),
                            Ok(ControlFlow::Continue(())) => {}
                            Err(error) => damage = damage.or(Some(error)),
                        },
                        Err(error) => damage = damage.or(Some(error)),
                    }
                }
                number = number.saturating_add(1);
            }
        }
        damage.map_or(Ok(()), Err)
    }

    /// A directory block, which may lie in pieces.
    pub(super) fn directory_block(&self, runs: &[Run], at: u64) -> Result<Vec<u8>> {
        let size = usize::try_from(self.superblock.directory_bytes).unwrap_or(0);
        let mut bytes = vec![0; size];
        self.read_runs(runs, at, &mut bytes)?;
        Ok(bytes)
    }

    /// Proves a block of a directory. One that lies in pieces and was changed by the log has no checksum yet: the log
    /// tells of each piece by itself, and its own checksums were right.
    pub(super) fn check_directory_sum(
        &self,
        bytes: &[u8],
        runs: &[Run],
        at: u64,
        place: usize,
    ) -> Result<()> {
        let proved = superblock::check_sum(bytes, place);
        let Some(overlay) = self.overlay.as_ref().filter(|_| proved.is_err()) else {
            return proved;
        };
        let end = at.saturating_add(field::bytes(bytes.len()));
        let (mut position, mut pieces, mut is_touched) = (at, 0_u32, false);
        while position < end {
            let (run, until) = self.place(runs, position);
            let Some(run) = run else {
                return proved;
            };
            let into = position.saturating_sub(run.file_block << self.superblock.block_log);
            let start = self.superblock.block_offset(run.volume_block)?;
            let length = until.min(end).saturating_sub(position);
            is_touched |= overlay.touches(start.saturating_add(into), length);
            pieces = pieces.saturating_add(1);
            position = until.max(position.saturating_add(1));
        }
        if pieces > 1 && is_touched {
            return Ok(());
        }
        proved
    }

    fn list_block(
        &self,
        bytes: &[u8],
        runs: &[Run],
        base: u64,
        after: DirectoryCursor,
        visit: Visit<'_>,
    ) -> Result<ControlFlow<()>> {
        let place = |error: Error| error.within(format!("block at {base}"));
        let (is_single, mut at) = match field::slice(bytes, 0, 4)? {
            b"XD2B" => (true, 16),
            b"XD2D" => (false, 16),
            b"XDB3" => (true, 64),
            b"XDD3" => (false, 64),
            _ => return Err(place(Error::corrupt("no directory block"))),
        };
        if at == 64 {
            self.check_directory_sum(bytes, runs, base, 4)
                .map_err(place)?;
        }
        let mut end = bytes.len();
        if is_single {
            let tail = end.saturating_sub(8);
            let count = usize::try_from(field::u32_be(bytes, tail)?).unwrap_or(usize::MAX);
            end = tail.saturating_sub(count.saturating_mul(8));
        }
        let typed = usize::from(self.superblock.has_file_types);
        while at < end {
            if field::u16_be(bytes, at)? == 0xFFFF {
                let length = usize::from(field::u16_be(bytes, at.saturating_add(2))?);
                if length == 0 || !length.is_multiple_of(8) {
                    return Err(place(Error::corrupt(format!(
                        "free space of {length} bytes"
                    ))));
                }
                at = at.saturating_add(length);
                continue;
            }
            let inode = field::u64_be(bytes, at)?;
            let length = usize::from(field::u8_at(bytes, at.saturating_add(8))?);
            let name = field::slice(bytes, at.saturating_add(9), length)?;
            let code_at = at.saturating_add(9).saturating_add(length);
            let code = if typed == 1 {
                Some(field::u8_at(bytes, code_at)?)
            } else {
                None
            };
            if length == 0 {
                return Err(place(Error::corrupt("a name without letters")));
            }
            let size = 11_usize.saturating_add(length).saturating_add(typed);
            at = at.saturating_add(size.checked_next_multiple_of(8).unwrap_or(usize::MAX));
            let next = base.saturating_add(field::bytes(at));
            if next <= after.0 {
                continue;
            }
            if let Some(entry) = entry(name, inode, code, next)
                && visit(entry).is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
