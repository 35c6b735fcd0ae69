//! The journal of ext3 and ext4 (JBD2), replayed without writing: its newest blocks lie over the volume's.
//!
//! ```text
//!   inode 8:  [journal superblock] [descriptor: tags] [data] [data] … [revokes] [commit] [descriptor] …   (a ring)
//!   1 scan     from the start: how far do complete transactions reach
//!   2 revoke   which blocks must not be taken from transactions up to which
//!   3 replay   block of the volume ─► where in the journal its newest copy lies
//! ```
//!
//! **Invariants.** Only where copies lie is kept, 32 bytes or so each, never the copies. Each pass looks at every block
//! of the ring at most once. Whatever is wrong with a journal is no error of the file system: it is then said to be
//! dirty, and why.
//!
//! **Not done.** Fast commits (what lies behind the last full commit) and journals on other devices: said to be dirty.
//!
//! Source: Linux `Documentation/filesystems/ext4/journal.rst`, `include/linux/jbd2.h`.

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

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use block::ReadAt;

use super::Ext;
use super::map::Place;
use super::superblock::crc32c;
use crate::field::{bytes, slice, u8_at, u16_be, u32_be};
use crate::{Error, ErrorKind, Result};

const MAGIC: u32 = 0xC03B_3998;
const MAX_RUNS: usize = 1 << 20;
const MAX_REVOKES: usize = 1 << 22;
const MAX_COPIES: usize = 1 << 22;

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;

const COMPAT_CHECKSUM: u32 = 1;
const INCOMPAT_64BIT: u32 = 2;
const INCOMPAT_CSUM2: u32 = 8;
const INCOMPAT_CSUM3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const INCOMPAT_KNOWN: u32 = 0x3F;

const TAG_ESCAPED: u16 = 1;
const TAG_SAME_UUID: u16 = 2;
const TAG_LAST: u16 = 8;

/// Where the newest copy of a block lies.
#[derive(Debug, Clone, Copy)]
struct Copied {
    block: u64,
    /// Its first four bytes were those of the journal's magic number.
    is_escaped: bool,
}

/// What a replay found.
pub(super) struct Replayed {
    pub overlay: Overlay,
    /// Why the journal could not be replayed as a mount would.
    pub trouble: Option<String>,
}

/// A volume with the newest blocks of its journal over it.
pub(super) struct Overlay {
    volume: Arc<dyn ReadAt>,
    block_bytes: u64,
    copies: BTreeMap<u64, Copied>,
}

impl Overlay {
    /// Whether anything lies over the volume.
    pub fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }
}

impl ReadAt for Overlay {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.volume.read_at(offset, buffer)?;
        let width = self.block_bytes.max(1);
        let end = offset.saturating_add(bytes(buffer.len()));
        let first = offset.checked_div(width).unwrap_or(0);
        for (&number, copied) in self.copies.range(first..end.div_ceil(width)) {
            let start = number.saturating_mul(width);
            let from = start.max(offset);
            let to = start.saturating_add(width).min(end);
            let place = |position: u64| usize::try_from(position.saturating_sub(offset)).ok();
            let part = match (place(from), place(to)) {
                (Some(from), Some(to)) => buffer.get_mut(from..to),
                _ => None,
            };
            let Some(part) = part else { continue };
            let into = from.saturating_sub(start);
            self.volume.read_at(
                copied.block.saturating_mul(width).saturating_add(into),
                part,
            )?;
            if copied.is_escaped {
                for (index, byte) in MAGIC.to_be_bytes().into_iter().enumerate() {
                    let target = bytes(index)
                        .checked_sub(into)
                        .and_then(|target| usize::try_from(target).ok())
                        .and_then(|target| part.get_mut(target));
                    if let Some(target) = target {
                        *target = byte;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The ring, and what its superblock says.
struct Ring {
    volume: Arc<dyn ReadAt>,
    block_bytes: u64,
    /// First block in the journal, how many, and where on the volume.
    runs: Vec<(u64, u64, u64)>,
    first: u32,
    /// Behind the last block of the ring.
    last: u32,
    start: u32,
    sequence: u32,
    compat: u32,
    incompat: u32,
    seed: u32,
}

/// What the passes gather.
struct Passes {
    /// The first transaction that is not complete.
    end: u32,
    revoked: HashMap<u64, u32>,
    copies: BTreeMap<u64, Copied>,
    trouble: Option<String>,
}

/// A tag of a descriptor.
struct Tag {
    target: u64,
    is_escaped: bool,
    checksum: u32,
}

/// Replays the journal of a file system; `None` when there is nothing in it.
pub(super) fn replay(ext: &Ext) -> Result<Option<Replayed>> {
    let Some(ring) = Ring::open(ext)? else {
        return Ok(None);
    };
    let mut passes = Passes {
        end: ring.sequence,
        revoked: HashMap::new(),
        copies: BTreeMap::new(),
        trouble: None,
    };
    passes.end = ring.scan()?;
    ring.walk(passes.end, &mut |kind, block, data, sequence| {
        if kind == REVOKE {
            ring.gather_revokes(block, sequence, &mut passes.revoked)?;
        }
        let _ = data;
        Ok(())
    })?;
    ring.walk(passes.end, &mut |kind, block, data, sequence| {
        if kind == DESCRIPTOR {
            ring.gather_copies(block, data, sequence, &mut passes)?;
        }
        Ok(())
    })?;
    if ring.incompat & INCOMPAT_FAST_COMMIT != 0 && passes.trouble.is_none() {
        passes.trouble = ring.fast_commit_trouble(passes.end)?;
    }
    Ok(Some(Replayed {
        overlay: Overlay {
            volume: Arc::clone(&ring.volume),
            block_bytes: ring.block_bytes,
            copies: passes.copies,
        },
        trouble: passes.trouble,
    }))
}

/// Is told of a block of the log: its kind, its bytes, where its data begins, and its transaction.
type Look<'a> = &'a mut dyn FnMut(u32, &[u8], u32, u32) -> Result<()>;

impl Ring {
    fn open(ext: &Ext) -> Result<Option<Self>> {
        let inode = ext.inode(ext.superblock.journal_inode)?;
        let block_bytes = u64::from(ext.superblock.block_bytes);
        let total = inode.size_bytes.checked_div(block_bytes).unwrap_or(0);
        let mut runs = Vec::new();
        let mut logical = 0;
        while logical < total {
            let run = ext.run_at(&inode, logical)?;
            let Place::Written(place) = run.place else {
                return Err(Error::corrupt("its journal has a hole"));
            };
            if runs.len() >= MAX_RUNS {
                return Err(Error::new(
                    ErrorKind::Limit,
                    "its journal is in too many pieces",
                ));
            }
            runs.push((logical, run.block_count, place));
            logical = logical.saturating_add(run.block_count);
        }
        let mut ring = Self {
            volume: Arc::clone(&ext.volume),
            block_bytes,
            runs,
            first: 0,
            last: 0,
            start: 0,
            sequence: 0,
            compat: 0,
            incompat: 0,
            seed: 0,
        };
        let block = ring.block(0)?;
        ring.read_superblock(&block, total)?;
        Ok((ring.start != 0).then_some(ring))
    }

    fn read_superblock(&mut self, block: &[u8], total: u64) -> Result<()> {
        let version = u32_be(block, 4)?;
        if u32_be(block, 0)? != MAGIC || !matches!(version, 3 | 4) {
            return Err(Error::corrupt("its journal has no superblock"));
        }
        let length = u32_be(block, 16)?;
        if u64::from(u32_be(block, 12)?) != self.block_bytes || u64::from(length) > total {
            return Err(Error::corrupt("its journal has another geometry"));
        }
        if version == 4 {
            self.compat = u32_be(block, 36)?;
            self.incompat = u32_be(block, 40)?;
            self.seed = crc32c(u32::MAX, slice(block, 48, 16)?);
        }
        if self.incompat & !INCOMPAT_KNOWN != 0 {
            return Err(Error::unsupported(format!(
                "its journal has unknown features {:#x}",
                self.incompat & !INCOMPAT_KNOWN
            )));
        }
        if self.has_checksums() {
            let mut sum = crc32c(u32::MAX, slice(block, 0, 252)?);
            for part in [&[0; 4], slice(block, 256, 768)?] {
                sum = crc32c(sum, part);
            }
            if sum != u32_be(block, 252)? {
                return Err(Error::corrupt(
                    "the checksum of its journal's superblock is wrong",
                ));
            }
        }
        let fast = match u32_be(block, 84)? {
            _ if self.incompat & INCOMPAT_FAST_COMMIT == 0 => 0,
            0 => 256,
            count => count,
        };
        self.first = u32_be(block, 20)?;
        self.last = length.saturating_sub(fast);
        self.sequence = u32_be(block, 24)?;
        self.start = u32_be(block, 28)?;
        if self.start != 0 && !(self.first..self.last).contains(&self.start) || self.first == 0 {
            return Err(Error::corrupt(format!(
                "its journal begins at block {}",
                self.start
            )));
        }
        Ok(())
    }

    fn has_checksums(&self) -> bool {
        self.incompat & (INCOMPAT_CSUM2 | INCOMPAT_CSUM3) != 0
    }

    fn place(&self, logical: u32) -> Result<u64> {
        let logical = u64::from(logical);
        let index = self.runs.partition_point(|&(first, ..)| first <= logical);
        index
            .checked_sub(1)
            .and_then(|index| self.runs.get(index))
            .filter(|&&(first, count, _)| logical < first.saturating_add(count))
            .map(|&(first, _, place)| place.saturating_add(logical.saturating_sub(first)))
            .ok_or_else(|| Error::corrupt(format!("block {logical} of its journal is nowhere")))
    }

    fn block(&self, logical: u32) -> Result<Vec<u8>> {
        let mut block = vec![0; usize::try_from(self.block_bytes).unwrap_or(0)];
        let offset = self.place(logical)?.saturating_mul(self.block_bytes);
        self.volume.read_at(offset, &mut block)?;
        Ok(block)
    }

    /// The block `count` blocks further round.
    fn ahead(&self, logical: u32, count: u32) -> u32 {
        let span = u64::from(self.last.saturating_sub(self.first).max(1));
        let position =
            u64::from(logical.saturating_sub(self.first)).saturating_add(u64::from(count));
        let position = u32::try_from(position.checked_rem(span).unwrap_or(0)).unwrap_or(0);
        self.first.saturating_add(position)
    }

    /// The first transaction that is not complete.
    fn scan(&self) -> Result<u32> {
        let ring_blocks = self.last.saturating_sub(self.first);
        let (mut position, mut sequence, mut seen) = (self.start, self.sequence, 0_u32);
        // Of a journal of the first version with checksums: over descriptors and data since the last commit.
        let mut sum = u32::MAX;
        while seen < ring_blocks {
            let block = self.block(position)?;
            if u32_be(&block, 0)? != MAGIC || u32_be(&block, 8)? != sequence {
                break;
            }
            let mut step = 1_u32;
            match u32_be(&block, 4)? {
                DESCRIPTOR => {
                    if !self.is_block_sound(&block)? {
                        break;
                    }
                    let tags = u32::try_from(self.tags(&block)?.len()).unwrap_or(u32::MAX);
                    if self.compat & COMPAT_CHECKSUM != 0 {
                        sum = crc32_be(sum, &block);
                        for index in 0..tags.min(ring_blocks) {
                            let data = self.ahead(position, index.saturating_add(1));
                            sum = crc32_be(sum, &self.block(data)?);
                        }
                    }
                    step = step.saturating_add(tags);
                }
                COMMIT => {
                    if !self.is_commit_sound(&block, sum)? {
                        break;
                    }
                    sum = u32::MAX;
                    sequence = sequence.wrapping_add(1);
                }
                REVOKE if self.is_block_sound(&block)? => {}
                _ => break,
            }
            seen = seen.saturating_add(step);
            position = self.ahead(position, step);
        }
        Ok(sequence)
    }

    /// Shows descriptors and revokes of all complete transactions, in order.
    fn walk(&self, end: u32, look: Look<'_>) -> Result<()> {
        let ring_blocks = self.last.saturating_sub(self.first);
        let (mut position, mut sequence, mut seen) = (self.start, self.sequence, 0_u32);
        while seen < ring_blocks && sequence != end {
            let block = self.block(position)?;
            let kind = u32_be(&block, 4)?;
            let mut step = 1_u32;
            match kind {
                COMMIT => sequence = sequence.wrapping_add(1),
                DESCRIPTOR | REVOKE => {
                    look(kind, &block, self.ahead(position, 1), sequence)?;
                    if kind == DESCRIPTOR {
                        let tags = u32::try_from(self.tags(&block)?.len()).unwrap_or(u32::MAX);
                        step = step.saturating_add(tags);
                    }
                }
                _ => break,
            }
            seen = seen.saturating_add(step);
            position = self.ahead(position, step);
        }
        Ok(())
    }

    /// Whether the checksum at the end of a descriptor or of revokes holds.
    fn is_block_sound(&self, block: &[u8]) -> Result<bool> {
        if !self.has_checksums() {
            return Ok(true);
        }
        let body = block.len().saturating_sub(4);
        let sum = crc32c(crc32c(self.seed, slice(block, 0, body)?), &[0; 4]);
        Ok(sum == u32_be(block, body)?)
    }

    fn is_commit_sound(&self, block: &[u8], sum: u32) -> Result<bool> {
        if self.has_checksums() {
            let mut own = crc32c(self.seed, slice(block, 0, 16)?);
            for part in [&[0; 4], block.get(20..).unwrap_or_default()] {
                own = crc32c(own, part);
            }
            return Ok(own == u32_be(block, 16)?);
        }
        if self.compat & COMPAT_CHECKSUM == 0 {
            return Ok(true);
        }
        let (kind, size, found) = (u8_at(block, 12)?, u8_at(block, 13)?, u32_be(block, 16)?);
        let is_absent = kind == 0 && size == 0 && found == 0;
        Ok(is_absent || (kind == 1 && size == 4 && found == sum))
    }

    fn tags(&self, block: &[u8]) -> Result<Vec<Tag>> {
        let is_wide = self.incompat & INCOMPAT_64BIT != 0;
        let is_third = self.incompat & INCOMPAT_CSUM3 != 0;
        let is_second = self.incompat & INCOMPAT_CSUM2 != 0;
        let width = match (is_third, is_second, is_wide) {
            (true, ..) => 16,
            (false, true, true) => 14,
            (false, true, false) => 10,
            (false, false, true) => 12,
            (false, false, false) => 8,
        };
        let end = block
            .len()
            .saturating_sub(if self.has_checksums() { 4 } else { 0 });
        let mut tags = Vec::new();
        let mut offset = 12_usize;
        while offset.saturating_add(width) <= end {
            let raw = slice(block, offset, width)?;
            let low = u64::from(u32_be(raw, 0)?);
            let flags = u16_be(raw, 6)?;
            let high = if is_wide {
                u64::from(u32_be(raw, 8)?) << 32
            } else {
                0
            };
            tags.push(Tag {
                target: low | high,
                is_escaped: flags & TAG_ESCAPED != 0,
                checksum: if is_third {
                    u32_be(raw, 12)?
                } else {
                    u32::from(u16_be(raw, 4)?)
                },
            });
            offset = offset.saturating_add(width);
            if flags & TAG_SAME_UUID == 0 {
                offset = offset.saturating_add(16);
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    fn gather_revokes(
        &self,
        block: &[u8],
        sequence: u32,
        revoked: &mut HashMap<u64, u32>,
    ) -> Result<()> {
        let width = if self.incompat & INCOMPAT_64BIT == 0 {
            4
        } else {
            8
        };
        let end = usize::try_from(u32_be(block, 12)?)
            .unwrap_or(usize::MAX)
            .min(block.len());
        let mut offset = 16_usize;
        while offset.saturating_add(width) <= end {
            let number = if width == 4 {
                u64::from(u32_be(block, offset)?)
            } else {
                crate::field::u64_be(block, offset)?
            };
            revoked
                .entry(number)
                .and_modify(|last| {
                    if is_newer(sequence, *last) {
                        *last = sequence;
                    }
                })
                .or_insert(sequence);
            if revoked.len() > MAX_REVOKES {
                return Err(Error::new(
                    ErrorKind::Limit,
                    "its journal revokes too many blocks",
                ));
            }
            offset = offset.saturating_add(width);
        }
        Ok(())
    }

    fn gather_copies(
        &self,
        block: &[u8],
        data: u32,
        sequence: u32,
        passes: &mut Passes,
    ) -> Result<()> {
        for (index, tag) in self.tags(block)?.into_iter().enumerate() {
            let is_revoked = passes
                .revoked
                .get(&tag.target)
                .is_some_and(|&last| !is_newer(sequence, last));
            if is_revoked {
                continue;
            }
            let position = self.ahead(data, u32::try_from(index).unwrap_or(u32::MAX));
            if self.has_checksums() && !self.is_data_sound(position, sequence, &tag)? {
                passes.trouble.get_or_insert_with(|| {
                    format!("its journal's copy of block {} is damaged", tag.target)
                });
                continue;
            }
            let copied = Copied {
                block: self.place(position)?,
                is_escaped: tag.is_escaped,
            };
            passes.copies.insert(tag.target, copied);
            if passes.copies.len() > MAX_COPIES {
                return Err(Error::new(
                    ErrorKind::Limit,
                    "its journal holds too many blocks",
                ));
            }
        }
        Ok(())
    }

    fn is_data_sound(&self, position: u32, sequence: u32, tag: &Tag) -> Result<bool> {
        let sum = crc32c(
            crc32c(self.seed, &sequence.to_be_bytes()),
            &self.block(position)?,
        );
        Ok(if self.incompat & INCOMPAT_CSUM3 != 0 {
            sum == tag.checksum
        } else {
            sum & 0xFFFF == tag.checksum
        })
    }

    /// Whether fast commits follow the last full one.
    fn fast_commit_trouble(&self, end: u32) -> Result<Option<String>> {
        let block = self.block(self.last)?;
        // A fast commit begins with a head tag (9, 8 bytes: features, transaction), little-endian.
        let is_head =
            crate::field::u16_le(&block, 0)? == 9 && crate::field::u16_le(&block, 2)? == 8;
        let is_current = crate::field::u32_le(&block, 8)? == end;
        Ok((is_head && is_current).then(|| {
            "its journal ends with fast commits, which are not replayed: the newest changes are missing"
                .to_owned()
        }))
    }
}

/// Whether a transaction came later; numbers wrap.
fn is_newer(sequence: u32, than: u32) -> bool {
    sequence.wrapping_sub(than).cast_signed() > 0
}

/// CRC-32 from the highest bit down, as the first version of journal checksums has it.
fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte) << 24, |crc, _| {
            if crc & 0x8000_0000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x04C1_1DB7
            }
        })
    })
}
