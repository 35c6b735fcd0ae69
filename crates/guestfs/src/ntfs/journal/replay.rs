//! The second and third pass: all changes since the oldest dirty page are done again, then those of transactions that never ended
//! are taken back, newest first. Everything happens in an overlay.
//!
//! ```text
//!  log:      … ├ change ┼ change ┼ checkpoint ┼ change ┼ change ┤ end
//!  redo            ────────────────────────────────────►          where the page was dirty and does not bear the LSN yet
//!  undo            ◄──────┼──────────────────────┤                along the changes of unfinished transactions
//! ```
//!
//! **Invariants.** A replay is whole or an error: what cannot be done exactly ends it. Afterwards every file record and index
//! block that was changed is well-formed, and every file record lies where the file table has it.

use std::collections::BTreeMap;

use block::ReadAt;

use super::super::arithmetic::{add, length, multiply, plus};
use super::super::boot::BootSector;
use super::super::overlay::Overlay;
use super::super::record::{BITMAP, DATA, INDEX_ALLOCATION, NUMBER_MASK};
use super::super::table::FileTable;
use super::action::{Action, Change, Operation, Subject, bits};
use super::analysis::{Analysis, MAX_RECORDS, check_work, is_change, missing};
use super::block::Block;
use super::log::Log;
use super::tables::{OpenAttribute, TransactionState};
use super::{file_record, index_block};
use crate::{Error, ErrorKind, Result, field};

const MAX_BLOCK_BYTES: u64 = 64 << 10;
const FILE: &[u8; 4] = b"FILE";
const INDEX: &[u8; 4] = b"INDX";

/// Whether a change is done again or taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Redo,
    Undo,
}

/// Whether a change keeps some of the block that it is for, or writes it as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Part,
    Whole,
}

/// Pieces of the volume that lie one behind the other in a stream: offset and length.
type Pieces = Vec<(u64, u64)>;

pub(super) struct Replay<'a> {
    table: &'a FileTable,
    boot: &'a BootSector,
    analysis: Analysis,
    pub(super) overlay: Overlay,
    /// File records that were changed, and where they lie.
    pub(super) records: BTreeMap<u64, Pieces>,
    index_blocks: BTreeMap<u64, Pieces>,
    work: u64,
}

impl<'a> Replay<'a> {
    pub(super) fn new(
        table: &'a FileTable,
        boot: &'a BootSector,
        analysis: Analysis,
        overlay: Overlay,
    ) -> Self {
        Self {
            table,
            boot,
            analysis,
            overlay,
            records: BTreeMap::new(),
            index_blocks: BTreeMap::new(),
            work: 0,
        }
    }

    pub(super) fn run(&mut self, log: &mut Log<'_>) -> Result<()> {
        if let Some(lsn) = self.analysis.redo_lsn {
            self.redo(log, lsn)?;
        }
        self.undo(log)?;
        self.check_blocks()
    }

    fn redo(&mut self, log: &mut Log<'_>, first: u64) -> Result<()> {
        let mut record = log.record(first)?.ok_or_else(|| missing(first))?;
        loop {
            if is_change(&record) {
                let action = Action::parse(&record)?;
                self.redo_one(&action).map_err(|error| {
                    error.within(format!("LSN {:#x}, {:?}", action.lsn, action.redo))
                })?;
            }
            match log.next(&record)? {
                Some(next) => record = next,
                None => return Ok(()),
            }
        }
    }

    fn redo_one(&mut self, action: &Action<'_>) -> Result<()> {
        let is_dirty = self
            .analysis
            .pages
            .oldest_lsn(action.target, action.vcn)
            .is_some_and(|oldest| action.lsn >= oldest);
        if action.clusters.is_empty() || action.redo.subject() == Subject::Nothing || !is_dirty {
            return Ok(());
        }
        self.apply(action, &action.redo_change()?, Direction::Redo)
    }

    /// Takes back what unfinished transactions did.
    fn undo(&mut self, log: &mut Log<'_>) -> Result<()> {
        let mut chains = Vec::new();
        for transaction in self.analysis.transactions.iter() {
            match transaction.state {
                TransactionState::Active => chains.push(transaction.undo_next),
                TransactionState::Committed => {}
                TransactionState::Prepared => {
                    return Err(Error::unsupported(
                        "a transaction that another system decides upon",
                    ));
                }
            }
        }
        let mut records = BTreeMap::new();
        for mut lsn in chains {
            while lsn != 0 {
                let record = log
                    .record(lsn)?
                    .ok_or_else(|| missing(lsn).within("undo"))?;
                let next = record.undo_next;
                if next >= lsn || records.len() >= MAX_RECORDS {
                    return Err(Error::corrupt(format!(
                        "LSN {lsn:#x} leads on to {next:#x} when it is taken back"
                    )));
                }
                records.insert(lsn, record.undo_next);
                lsn = next;
            }
        }
        for lsn in records.into_keys().rev() {
            let record = log.record(lsn)?.ok_or_else(|| missing(lsn))?;
            let action = Action::parse(&record)?;
            self.undo_one(&action).map_err(|error| {
                error.within(format!("LSN {lsn:#x}, back with {:?}", action.undo))
            })?;
        }
        Ok(())
    }

    fn undo_one(&mut self, action: &Action<'_>) -> Result<()> {
        match action.undo.subject() {
            Subject::Nothing => Ok(()),
            _ if action.clusters.is_empty() => Err(Error::corrupt("a change of no clusters")),
            _ => self.apply(action, &action.undo_change()?, Direction::Undo),
        }
    }

    fn apply(
        &mut self,
        action: &Action<'_>,
        change: &Change<'_>,
        direction: Direction,
    ) -> Result<()> {
        let open = self
            .analysis
            .open
            .get(action.target)
            .cloned()
            .ok_or_else(|| Error::corrupt(format!("attribute {:#x} is not open", action.target)))?;
        let is_table =
            open.kind == DATA && open.reference & NUMBER_MASK == 0 && open.name.is_empty();
        match change.operation.subject() {
            Subject::FileRecord if is_table => {
                self.apply_to_record(action, &open, change, direction)
            }
            Subject::IndexBlock if open.kind == INDEX_ALLOCATION => {
                self.apply_to_index(action, &open, change, direction)
            }
            Subject::Value if open.kind == INDEX_ALLOCATION => {
                self.apply_to_index(action, &open, change, direction)
            }
            Subject::Value if !is_table => self.put_value(action, &open, change, direction),
            Subject::Bits if open.kind == BITMAP || (open.kind == DATA && !is_table) => {
                self.put_bits(action, &open, change, direction)
            }
            Subject::Unknown => Err(Error::unsupported("an operation that nobody described")),
            _ => Err(Error::corrupt(format!(
                "it is not for attribute {:#x} of file record {}",
                open.kind,
                open.reference & NUMBER_MASK
            ))),
        }
    }

    fn apply_to_record(
        &mut self,
        action: &Action<'_>,
        open: &OpenAttribute,
        change: &Change<'_>,
        direction: Direction,
    ) -> Result<()> {
        let size = self.boot.record_bytes;
        let Some(pieces) = self.whole(action, open, size, direction)? else {
            return Ok(());
        };
        let offset = add(
            multiply(action.vcn, self.boot.cluster_bytes)?,
            action.block_offset,
        )?;
        let number = offset.checked_div(size).unwrap_or(0);
        let is_whole = change.operation == Operation::InitializeFileRecord
            && change.record_offset == 0
            && change.data.starts_with(FILE);
        let extent = if is_whole {
            Extent::Whole
        } else {
            Extent::Part
        };
        let Some(mut block) = self.open(&pieces, FILE, extent)? else {
            return Err(Error::corrupt(format!(
                "file record {number} is torn, and not written as a whole"
            )));
        };
        if self.is_done(&block, action, direction)? {
            return Ok(());
        }
        file_record::apply(&mut block, change, self.boot.total_clusters())
            .map_err(|error| error.within(format!("file record {number}")))?;
        self.close(block, &pieces, action, direction)?;
        self.records.insert(number, pieces);
        Ok(())
    }

    fn apply_to_index(
        &mut self,
        action: &Action<'_>,
        open: &OpenAttribute,
        change: &Change<'_>,
        direction: Direction,
    ) -> Result<()> {
        let is_size = |size: &u64| size.is_power_of_two() && (512..=MAX_BLOCK_BYTES).contains(size);
        let size = Some(open.index_bytes)
            .filter(is_size)
            .unwrap_or(self.boot.index_bytes);
        let Some(pieces) = self.whole(action, open, size, direction)? else {
            return Ok(());
        };
        let is_whole = change.operation == Operation::UpdateNonresidentValue
            && plus(change.record_offset, change.attribute_offset)? == 0
            && change.data.starts_with(INDEX);
        let extent = if is_whole {
            Extent::Whole
        } else {
            Extent::Part
        };
        let place = || {
            format!(
                "index block at cluster {} of file record {}",
                action.vcn,
                open.reference & NUMBER_MASK
            )
        };
        let Some(mut block) = self.open(&pieces, INDEX, extent)? else {
            if direction == Direction::Undo && change.operation.subject() == Subject::Value {
                // What the block was before it was one.
                return self.put_value(action, open, change, direction);
            }
            return Err(Error::corrupt("it is torn, and not written as a whole").within(place()));
        };
        if self.is_done(&block, action, direction)? {
            return Ok(());
        }
        index_block::apply(&mut block, change).map_err(|error| error.within(place()))?;
        self.close(block, &pieces, action, direction)?;
        if let Some((offset, _)) = pieces.first() {
            self.index_blocks.insert(*offset, pieces.clone());
        }
        Ok(())
    }

    /// Whether a block bears the change already. An LSN newer than the log stems from one before it, and tells nothing.
    fn is_done(&self, block: &Block, action: &Action<'_>, direction: Direction) -> Result<bool> {
        if direction == Direction::Undo {
            return Ok(false);
        }
        let lsn = block.lsn()?;
        Ok(lsn >= action.lsn && lsn <= self.analysis.last_lsn)
    }

    /// A block as it is; a zeroed one when it is unreadable and about to be written as a whole.
    fn open(&mut self, pieces: &Pieces, magic: &[u8; 4], extent: Extent) -> Result<Option<Block>> {
        let bytes = self.read(pieces)?;
        let size = bytes.len();
        match Block::open(bytes, magic) {
            Ok(block) => Ok(Some(block)),
            Err(_) if extent == Extent::Whole => Ok(Some(Block::zeroed(size))),
            Err(_) => Ok(None),
        }
    }

    fn close(
        &mut self,
        mut block: Block,
        pieces: &Pieces,
        action: &Action<'_>,
        direction: Direction,
    ) -> Result<()> {
        if direction == Direction::Redo {
            block.set_lsn(action.lsn)?;
        }
        self.write(pieces, &block.finish()?)
    }

    /// Bytes of a stream that is neither the file table nor an index.
    fn put_value(
        &mut self,
        action: &Action<'_>,
        open: &OpenAttribute,
        change: &Change<'_>,
        direction: Direction,
    ) -> Result<()> {
        let inside = field::bytes(plus(change.record_offset, change.attribute_offset)?);
        let offset = add(action.block_offset, inside)?;
        let mut data: &[u8] = &change.data;
        for (place, size) in
            self.pieces(action, open, offset, field::bytes(data.len()), direction)?
        {
            let (head, rest) = data
                .split_at_checked(length(size)?)
                .ok_or_else(|| Error::corrupt("a value of too few bytes"))?;
            if let Some(place) = place {
                self.write(&vec![(place, size)], head)?;
            }
            data = rest;
        }
        Ok(())
    }

    fn put_bits(
        &mut self,
        action: &Action<'_>,
        open: &OpenAttribute,
        change: &Change<'_>,
        direction: Direction,
    ) -> Result<()> {
        let (first, count) = bits(&change.data)?;
        let end = add(first, count)?;
        let inside = field::bytes(plus(change.record_offset, change.attribute_offset)?);
        let offset = add(add(action.block_offset, inside)?, first / 8)?;
        let size = end.div_ceil(8).saturating_sub(first / 8);
        let limit = multiply(field::bytes(action.clusters.len()), self.boot.cluster_bytes)?;
        if add(offset, size)? > limit {
            return Err(Error::corrupt(format!(
                "bits {first}..{end} of {limit} bytes"
            )));
        }
        let mut number = first / 8;
        for (place, size) in self.pieces(action, open, offset, size, direction)? {
            if let Some(place) = place {
                let pieces = vec![(place, size)];
                let mut bytes = self.read(&pieces)?;
                for (number, byte) in (number..).zip(bytes.iter_mut()) {
                    let mask = mask(number, first, end);
                    *byte = if change.operation == Operation::SetBits {
                        *byte | mask
                    } else {
                        *byte & !mask
                    };
                }
                self.write(&pieces, &bytes)?;
            }
            number = add(number, size)?;
        }
        Ok(())
    }

    /// Where a block lies; `None` when its clusters were given up later.
    fn whole(
        &mut self,
        action: &Action<'_>,
        open: &OpenAttribute,
        size: u64,
        direction: Direction,
    ) -> Result<Option<Pieces>> {
        let pieces = self.pieces(action, open, action.block_offset, size, direction)?;
        let there: Pieces = pieces
            .iter()
            .filter_map(|(place, size)| place.map(|place| (place, *size)))
            .collect();
        if there.len() == pieces.len() {
            return Ok(Some(there));
        }
        if there.is_empty() {
            return Ok(None);
        }
        Err(Error::unsupported("a block of which a part was given up"))
    }

    /// Where bytes of the attribute lie, cluster by cluster; `None` for clusters that were given up.
    fn pieces(
        &self,
        action: &Action<'_>,
        open: &OpenAttribute,
        offset: u64,
        size: u64,
        direction: Direction,
    ) -> Result<Vec<(Option<u64>, u64)>> {
        let cluster_bytes = self.boot.cluster_bytes;
        let end = add(offset, size)?;
        let mut offset = offset;
        let mut pieces = Vec::new();
        while offset < end {
            let index = offset.checked_div(cluster_bytes).unwrap_or(0);
            let inside = offset.checked_rem(cluster_bytes).unwrap_or(0);
            let count = cluster_bytes
                .saturating_sub(inside)
                .min(end.saturating_sub(offset));
            let cluster = self.cluster(action, open, index, direction)?;
            let place = match cluster {
                0 => None,
                cluster if cluster < self.boot.total_clusters() => {
                    Some(add(multiply(cluster, cluster_bytes)?, inside)?)
                }
                cluster => return Err(Error::corrupt(format!("cluster {cluster}"))),
            };
            pieces.push((place, count));
            offset = add(offset, count)?;
        }
        Ok(pieces)
    }

    /// Where one cluster of an action lies; 0 when it was given up.
    fn cluster(
        &self,
        action: &Action<'_>,
        open: &OpenAttribute,
        index: u64,
        direction: Direction,
    ) -> Result<u64> {
        let vcn = add(action.vcn, index)?;
        let listed = usize::try_from(index)
            .ok()
            .and_then(|index| action.clusters.get(index).copied());
        match (self.analysis.pages.place(action.target, vcn), listed) {
            (Some(place), _) if place != 0 => Ok(place),
            // Given up later on.
            (Some(_), Some(_)) => Ok(0),
            (None, Some(place)) if direction == Direction::Undo && place != 0 => Ok(place),
            // A record lists no more clusters than it writes into.
            _ => self.mapped(open, vcn),
        }
    }

    /// Where the volume has a cluster of an attribute, as it was before the replay.
    fn mapped(&self, open: &OpenAttribute, vcn: u64) -> Result<u64> {
        let file = self.table.file(open.reference)?;
        let reader = self.table.reader(&file, open.kind, &open.name)?;
        reader
            .plain_runs()?
            .and_then(|runs| runs.at(vcn))
            .and_then(|run| run.place)
            .ok_or_else(|| Error::corrupt(format!("cluster {vcn} of the attribute is nowhere")))
    }

    fn read(&mut self, pieces: &Pieces) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (offset, size) in pieces {
            self.work = self.work.saturating_add(*size);
            check_work(self.work)?;
            let mut part = vec![0; length(*size)?];
            self.overlay.read_at(*offset, &mut part)?;
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    fn write(&mut self, pieces: &Pieces, mut bytes: &[u8]) -> Result<()> {
        for (offset, size) in pieces {
            self.work = self.work.saturating_add(*size);
            check_work(self.work)?;
            let (head, rest) = bytes
                .split_at_checked(length(*size)?)
                .ok_or_else(|| Error::corrupt("a block of too few bytes"))?;
            self.overlay.write(*offset, head)?;
            bytes = rest;
        }
        Ok(())
    }

    fn check_blocks(&mut self) -> Result<()> {
        let blocks: Vec<(Pieces, &[u8; 4])> = self
            .records
            .values()
            .map(|pieces| (pieces.clone(), FILE))
            .chain(
                self.index_blocks
                    .values()
                    .map(|pieces| (pieces.clone(), INDEX)),
            )
            .collect();
        for (pieces, magic) in blocks {
            let bytes = self.read(&pieces)?;
            // A block that was taken back may never have been one.
            let is_one = bytes.starts_with(magic);
            if is_one && Block::open(bytes, magic).is_err() {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("a block at {pieces:?} would not be whole"),
                ));
            }
        }
        Ok(())
    }
}

/// Those bits of byte `number` that lie in `first..end`.
fn mask(number: u64, first: u64, end: u64) -> u8 {
    (0..8_u32)
        .filter(|bit| {
            let bit = number.saturating_mul(8).saturating_add(u64::from(*bit));
            (first..end).contains(&bit)
        })
        .fold(0, |mask, bit| mask | 1_u8.wrapping_shl(bit))
}
