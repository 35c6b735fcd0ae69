//! Items of committed transactions, done to the overlay in the order in which Linux does them.
//!
//! ```text
//!   pass 1: which buffers are cancelled, how often (their blocks were freed, and may hold a file by now)
//!   pass 2: buffers and new inodes ─► inodes, intents ─► lists of unlinked inodes ─► cancellations     each transaction
//!           not over what is newer: version 5 compares log sequence numbers, version 4 inodes' flush counters
//!   end:    checksums of all that was changed; intents that were not done
//! ```
//!
//! **Invariants.** Work and memory are bounded by budgets. An item that is not known is an error: the log is then not
//! replayed at all.
//!
//! **Not done.** Quotas, and what only the real-time device knows. Intents to free, to count references and to map back
//! are not finished: their blocks stay in use, which loses nothing. Intents to map are told, for the reader to heed.

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

use std::collections::HashMap;

use super::buffers::layout_of;
use super::inodes;
use super::transactions::Item;
use crate::xfs::inode::Run;
use crate::xfs::overlay::Overlay;
use crate::xfs::superblock::{self, Superblock};
use crate::{Error, ErrorKind, Result, field};

const SECTOR: usize = 512;
/// Of one buffer: directories and clusters of inodes have up to 64 KiB.
const MAX_BUFFER_SECTORS: u64 = 256;
const MAX_CREATED_BYTES: u64 = 256 << 10;
const CHUNK: usize = 128;
const MAX_REMEMBERED: usize = 1 << 18;
const MAX_PROMISED_BYTES: usize = 16 << 20;
/// What a promise costs besides its bytes.
const PROMISE_COST: usize = 128;
/// Bytes that may be written, and whose checksums may be made.
const BUDGET_BYTES: u64 = 8 << 30;

const EFI: u16 = 0x1236;
const EFD: u16 = 0x1237;
const INODE: u16 = 0x123B;
const BUFFER: u16 = 0x123C;
const DQUOT: u16 = 0x123D;
const QUOTA_OFF: u16 = 0x123E;
const CREATE: u16 = 0x123F;
const RUI: u16 = 0x1240;
const CUD: u16 = 0x1243;
const BUI: u16 = 0x1244;
const BUD: u16 = 0x1245;
const ATTRI: u16 = 0x1246;
const ATTRD: u16 = 0x1247;
const XMI: u16 = 0x1248;
const XMD: u16 = 0x1249;
/// The same as EFI to CUD, for the real-time device.
const REAL_TIME: std::ops::RangeInclusive<u16> = 0x124A..=0x124F;

const IS_INODES: u16 = 1;
const IS_CANCELLED: u16 = 2;
const IS_QUOTA: u16 = 4 | 8 | 0x10;

/// A change of where a file's bytes lie that was promised and not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::xfs) enum Mapping {
    Map(Run),
    Unmap { file_block: u64, count: u64 },
}

/// What pass 1 finds: buffers that are freed, and how often, by sector and length.
#[derive(Default)]
pub(super) struct Cancelled(HashMap<(u64, u16), u32>);

impl Cancelled {
    /// Takes a transaction.
    pub(super) fn gather(&mut self, items: &[Item]) -> Result<()> {
        for item in items {
            if item.kind()? != BUFFER {
                continue;
            }
            let format = item.region(0)?;
            if field::u16_le(format, 4)? & IS_CANCELLED != 0 {
                let count = self.0.entry(buffer_key(format)?).or_default();
                *count = count.saturating_add(1);
            }
            if self.0.len() > MAX_REMEMBERED {
                return Err(Error::new(ErrorKind::Limit, "it frees too many buffers"));
            }
        }
        Ok(())
    }

    fn has(&self, sector: u64, sectors: u16) -> bool {
        self.0.contains_key(&(sector, sectors))
    }

    fn pass(&mut self, key: (u64, u16)) {
        if let Some(count) = self.0.get_mut(&key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.0.remove(&key);
            }
        }
    }
}

fn buffer_key(format: &[u8]) -> Result<(u64, u16)> {
    Ok((field::u64_le(format, 8)?, field::u16_le(format, 6)?))
}

/// A replay under way.
pub(super) struct Replay<'s> {
    superblock: &'s Superblock,
    overlay: Overlay,
    cancelled: Cancelled,
    /// Transactions that began in the same record have the same number.
    lsn: u64,
    /// Buffers changed under this number.
    recent: Vec<u64>,
    /// All changed buffers: offset and length.
    changed: HashMap<u64, usize>,
    /// What was promised and not done yet, by kind and id.
    intents: HashMap<(u16, u64), Intent>,
    promised: u64,
    promised_bytes: usize,
    budget: u64,
}

struct Intent {
    order: u64,
    kind: u16,
    format: Vec<u8>,
}

/// What comes out of a replay.
pub(super) struct Outcome {
    pub(super) overlay: Overlay,
    pub(super) mappings: HashMap<u64, Vec<Mapping>>,
}

impl<'s> Replay<'s> {
    pub(super) fn new(superblock: &'s Superblock, overlay: Overlay, cancelled: Cancelled) -> Self {
        Self {
            superblock,
            overlay,
            cancelled,
            lsn: 0,
            recent: Vec::new(),
            changed: HashMap::new(),
            intents: HashMap::new(),
            promised: 0,
            promised_bytes: 0,
            budget: BUDGET_BYTES,
        }
    }

    /// Does a committed transaction.
    pub(super) fn transaction(&mut self, lsn: u64, items: &[Item]) -> Result<()> {
        if lsn != self.lsn {
            self.stamp()?;
            self.lsn = lsn;
        }
        let mut order: [Vec<&Item>; 4] = Default::default();
        for item in items {
            let turn = match item.kind()? {
                CREATE => 0,
                BUFFER => match field::u16_le(item.region(0)?, 4)? {
                    flags if flags & IS_CANCELLED != 0 => 3,
                    flags if flags & IS_INODES != 0 => 2,
                    _ => 0,
                },
                _ => 1,
            };
            if let Some(turn) = order.get_mut(turn) {
                turn.push(item);
            }
        }
        for item in order.iter().flatten() {
            self.item(item)?;
        }
        Ok(())
    }

    fn item(&mut self, item: &Item) -> Result<()> {
        let kind = item.kind()?;
        match kind {
            BUFFER => self
                .buffer(item)
                .map_err(|error| error.within("a buffer in the log")),
            INODE => self
                .inode(item)
                .map_err(|error| error.within("an inode in the log")),
            CREATE => self
                .create(item.region(0)?)
                .map_err(|error| error.within("new inodes in the log")),
            BUI | ATTRI | XMI => {
                let format = item.region(0)?;
                let id = field::u64_le(format, 8)?;
                let cost = format.len().saturating_add(PROMISE_COST);
                self.promised_bytes = self.promised_bytes.saturating_add(cost);
                if self.promised_bytes > MAX_PROMISED_BYTES {
                    return Err(Error::new(ErrorKind::Limit, "it promises too much"));
                }
                self.promised = self.promised.saturating_add(1);
                let intent = Intent {
                    order: self.promised,
                    kind,
                    format: format.to_vec(),
                };
                self.intents.insert((kind, id), intent);
                Ok(())
            }
            BUD | ATTRD | XMD => {
                let id = field::u64_le(item.region(0)?, 8)?;
                if let Some(intent) = self.intents.remove(&(kind.saturating_sub(1), id)) {
                    let cost = intent.format.len().saturating_add(PROMISE_COST);
                    self.promised_bytes = self.promised_bytes.saturating_sub(cost);
                }
                Ok(())
            }
            EFI | EFD | RUI..=CUD | DQUOT | QUOTA_OFF => Ok(()),
            kind if REAL_TIME.contains(&kind) => Ok(()),
            other => Err(Error::unsupported(format!(
                "an item of unknown kind {other:#x}"
            ))),
        }
    }

    fn spend(&mut self, length: usize) -> Result<()> {
        match self.budget.checked_sub(field::bytes(length)) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(Error::new(ErrorKind::Limit, "replaying it takes too long")),
        }
    }

    fn buffer(&mut self, item: &Item) -> Result<()> {
        let format = item.region(0)?;
        let flags = field::u16_le(format, 4)?;
        let key = buffer_key(format)?;
        if flags & IS_CANCELLED != 0 {
            self.cancelled.pass(key);
            return Ok(());
        }
        let (sector, sectors) = key;
        if self.cancelled.has(sector, sectors) || flags & IS_QUOTA != 0 {
            return Ok(());
        }
        if sectors == 0 || u64::from(sectors) > MAX_BUFFER_SECTORS || sector >> 54 != 0 {
            return Err(Error::corrupt(format!(
                "{sectors} sectors at sector {sector}"
            )));
        }
        let offset = sector << 9;
        let length = usize::from(sectors).saturating_mul(SECTOR);
        let head = self.overlay.read(offset, SECTOR)?;
        if self.is_newer(&head)? {
            return Ok(());
        }
        let is_inodes = flags & IS_INODES != 0;
        for (at, bytes) in logged(item, length)? {
            self.spend(bytes.len())?;
            if is_inodes {
                self.unlinked(offset, at, bytes)?;
            } else {
                let place = offset.saturating_add(field::bytes(at));
                self.overlay.write(place, bytes)?;
            }
        }
        if !is_inodes && self.superblock.is_v5 {
            if self.changed.len() >= MAX_REMEMBERED || self.recent.len() >= MAX_REMEMBERED {
                return Err(Error::new(ErrorKind::Limit, "it changes too many buffers"));
            }
            self.recent.push(offset);
            self.changed.insert(offset, length);
        }
        Ok(())
    }

    /// Whether a buffer on the volume already has what this transaction did, and perhaps more.
    fn is_newer(&self, head: &[u8]) -> Result<bool> {
        if !self.superblock.is_v5 {
            return Ok(false);
        }
        let Some(layout) = layout_of(head, self.superblock.has_meta_uuid)? else {
            return Ok(false);
        };
        let written = field::u64_be(head, layout.lsn)?;
        let is_ours = field::slice(head, layout.uuid, 16)? == self.superblock.meta_uuid;
        Ok(is_ours && written != 0 && written != u64::MAX && written >= self.lsn)
    }

    /// Of inodes in a buffer only their places in the lists of unlinked ones count: all else comes with the inodes.
    fn unlinked(&mut self, offset: u64, from: usize, bytes: &[u8]) -> Result<()> {
        const NEXT: usize = 96;
        let size = usize::from(self.superblock.inode_bytes);
        let end = from.saturating_add(bytes.len());
        let mut inode = from.checked_div(size).unwrap_or(0).saturating_mul(size);
        while inode < end {
            let at = inode.saturating_add(NEXT);
            let word = (at >= from)
                .then(|| bytes.get(at.saturating_sub(from)..)?.get(..4))
                .flatten();
            if let Some(word) = word {
                let place = offset.saturating_add(field::bytes(inode));
                let mut whole = self.overlay.read(place, size)?;
                if field::slice(&whole, 0, 2)? == b"IN" {
                    if let Some(target) = whole.get_mut(NEXT..NEXT.saturating_add(4)) {
                        target.copy_from_slice(word);
                    }
                    if field::u8_at(&whole, 4)? == 3 {
                        superblock::set_sum(&mut whole, 100)?;
                    }
                    self.overlay.write(place, &whole)?;
                }
            }
            inode = inode.saturating_add(size);
        }
        Ok(())
    }

    fn inode(&mut self, item: &Item) -> Result<()> {
        let place = inodes::place(item.region(0)?)?;
        if self.cancelled.has(place.sector, place.sectors) {
            return Ok(());
        }
        let offset = (place.sector.checked_mul(512))
            .and_then(|offset| offset.checked_add(u64::from(place.offset)))
            .ok_or_else(|| Error::corrupt("outside of everything"))?;
        let size = usize::from(self.superblock.inode_bytes);
        self.spend(size)?;
        let mut bytes = self.overlay.read(offset, size)?;
        if inodes::apply(&mut bytes, item, &place, self.superblock, self.lsn)? {
            self.overlay.write(offset, &bytes)?;
        }
        Ok(())
    }

    /// New inodes, which the log only counts.
    fn create(&mut self, format: &[u8]) -> Result<()> {
        let word = |index: usize| field::u32_be(format, index.saturating_mul(4));
        let (group, block, count) = (word(1)?, word(2)?, word(3)?);
        let (size, blocks, generation) = (word(4)?, word(5)?, word(6)?);
        let first = u64::from(group) << self.superblock.group_log | u64::from(block);
        let offset = self
            .superblock
            .run_offset(first, u64::from(blocks).max(1))?;
        let length = u64::from(blocks).saturating_mul(u64::from(self.superblock.block_bytes));
        let is_sane = size == u32::from(self.superblock.inode_bytes)
            && u64::from(count).saturating_mul(u64::from(size)) == length
            && (1..=MAX_CREATED_BYTES).contains(&length);
        if !is_sane {
            return Err(Error::corrupt(format!(
                "{count} of {size} bytes in {blocks} blocks"
            )));
        }
        let sectors = (offset >> 9)..(offset.saturating_add(length) >> 9);
        // Their clusters were freed again.
        if (self.cancelled.0.keys()).any(|(sector, _)| sectors.contains(sector)) {
            return Ok(());
        }
        let length = usize::try_from(length).unwrap_or(0);
        self.spend(length)?;
        let mut bytes = vec![0; length];
        let number = first << self.superblock.inodes_per_block_log;
        let width = usize::from(self.superblock.inode_bytes);
        for (index, inode) in (0_u64..).zip(bytes.chunks_exact_mut(width)) {
            inodes::blank(
                inode,
                self.superblock,
                number.saturating_add(index),
                generation,
            )?;
        }
        self.overlay.write(offset, &bytes)
    }

    /// Says in all buffers that were changed under a number that they were.
    fn stamp(&mut self) -> Result<()> {
        for offset in std::mem::take(&mut self.recent) {
            let head = self.overlay.read(offset, SECTOR)?;
            if let Some(layout) = layout_of(&head, self.superblock.has_meta_uuid)? {
                let place = offset.saturating_add(field::bytes(layout.lsn));
                self.overlay.write(place, &self.lsn.to_be_bytes())?;
            }
        }
        Ok(())
    }

    /// Makes the checksums, and tells what was promised.
    pub(super) fn finish(mut self) -> Result<Outcome> {
        self.stamp()?;
        for (offset, length) in std::mem::take(&mut self.changed) {
            let head = self.overlay.read(offset, SECTOR)?;
            let Some(layout) = layout_of(&head, self.superblock.has_meta_uuid)? else {
                continue;
            };
            let whole = usize::try_from(self.superblock.directory_bytes).unwrap_or(0);
            // The reader takes those in pieces without a checksum: the log's own was right.
            let is_piece = layout.is_directory && length < whole;
            let is_attribute = field::u16_be(&head, 8)? == 0x3BEE;
            if is_piece && !is_attribute && !self.may_be_attributes(&head, length)? {
                continue;
            }
            self.spend(length)?;
            let mut bytes = self.overlay.read(offset, length)?;
            superblock::set_sum(&mut bytes, layout.checksum)?;
            let place = offset.saturating_add(field::bytes(layout.checksum));
            let sum = field::slice(&bytes, layout.checksum, 4)?;
            self.overlay.write(place, sum)?;
        }
        let mappings = self.promises()?;
        Ok(Outcome {
            overlay: self.overlay,
            mappings,
        })
    }

    /// What was promised and not done, as far as a reader must know.
    fn promises(&mut self) -> Result<HashMap<u64, Vec<Mapping>>> {
        let mut intents: Vec<Intent> = self.intents.drain().map(|(_, intent)| intent).collect();
        intents.sort_by_key(|intent| intent.order);
        let mut mappings: HashMap<u64, Vec<Mapping>> = HashMap::new();
        for Intent { kind, format, .. } in intents {
            match kind {
                BUI => {
                    for (inode, mapping) in promised_mappings(&format)? {
                        mappings.entry(inode).or_default().push(mapping);
                    }
                }
                ATTRI if !is_back_link(&format)? => {
                    return Err(Error::unsupported(format!(
                        "an attribute of inode {} is half changed",
                        field::u64_le(&format, 16)?
                    )));
                }
                XMI => {
                    return Err(Error::unsupported(format!(
                        "inodes {} and {} have exchanged half of their contents",
                        field::u64_le(&format, 16)?,
                        field::u64_le(&format, 24)?
                    )));
                }
                _ => {}
            }
        }
        Ok(mappings)
    }

    /// Nodes of trees of attributes have one block, those of directories a directory's.
    fn may_be_attributes(&self, head: &[u8], length: usize) -> Result<bool> {
        let is_block = field::bytes(length) == u64::from(self.superblock.block_bytes);
        Ok(is_block && field::u16_be(head, 8)? == 0x3EBE)
    }
}

/// The pieces of a buffer that an item has: where in the buffer, and their bytes.
fn logged(item: &Item, length: usize) -> Result<Vec<(usize, &[u8])>> {
    let format = item.region(0)?;
    let words = usize::try_from(field::u32_le(format, 16)?).unwrap_or(usize::MAX);
    let map = field::slice(format, 20, words.saturating_mul(4))?;
    let bits = map.len().saturating_mul(8);
    let is_set = |bit: usize| {
        map.get(bit >> 3)
            .is_some_and(|byte| byte >> (bit & 7) & 1 != 0)
    };
    let mut found = Vec::new();
    let mut bit = 0_usize;
    let mut region = 1_usize;
    while bit < bits {
        if !is_set(bit) {
            bit = bit.saturating_add(1);
            continue;
        }
        let run = (bit..bits).take_while(|bit| is_set(*bit)).count();
        let bytes = item.region(region)?;
        // A run that crosses a page of the machine comes in several regions.
        let count = run.min(bytes.len().checked_div(CHUNK).unwrap_or(0));
        if count == 0 {
            return Err(Error::corrupt("a piece of no bytes"));
        }
        let at = bit.saturating_mul(CHUNK);
        let bytes = field::slice(bytes, 0, count.saturating_mul(CHUNK))?;
        if at.saturating_add(bytes.len()) > length {
            return Err(Error::corrupt("a piece behind its end"));
        }
        found.push((at, bytes));
        region = region.saturating_add(1);
        bit = bit.saturating_add(count);
    }
    Ok(found)
}

/// inode:8 block:8 in-file:8 length:4 flags:4, after 16 bytes.
fn promised_mappings(format: &[u8]) -> Result<Vec<(u64, Mapping)>> {
    const ATTRIBUTES: u32 = 1 << 31;
    const UNWRITTEN: u32 = 1 << 30;
    const REAL_TIME: u32 = 1 << 29;
    let count = usize::try_from(field::u32_le(format, 4)?).unwrap_or(usize::MAX);
    let mut found = Vec::new();
    for extent in field::slice(format, 16, count.saturating_mul(32))?.chunks_exact(32) {
        let flags = field::u32_le(extent, 28)?;
        if flags & ATTRIBUTES != 0 {
            return Err(Error::unsupported("blocks of attributes are half changed"));
        }
        if flags & REAL_TIME != 0 {
            continue;
        }
        let file_block = field::u64_le(extent, 16)?;
        let count = u64::from(field::u32_le(extent, 24)?);
        let mapping = match flags & 0xFF {
            1 => Mapping::Map(Run {
                file_block,
                volume_block: field::u64_le(extent, 8)?,
                count,
                is_unwritten: flags & UNWRITTEN != 0,
            }),
            2 => Mapping::Unmap { file_block, count },
            other => return Err(Error::corrupt(format!("a promise of kind {other}"))),
        };
        found.push((field::u64_le(extent, 0)?, mapping));
    }
    Ok(found)
}

/// Whether an intent is about links from files back to directories, which nobody is told of.
fn is_back_link(format: &[u8]) -> Result<bool> {
    Ok(matches!(field::u32_le(format, 24)? & 0xFF, 4..=6))
}
