//! Indexes: directories, and the tables of `$Secure`. B-trees of sorted entries.
//!
//! ```text
//!  $INDEX_ROOT        [ entry │ entry │ end ]        entry = what it names │ length │ key │ child block, when it has one
//!                          │             │
//!  $INDEX_ALLOCATION   [ block 0 ]   [ block 3 ]     "INDX" │ fixups │ own number │ entries
//!  $BITMAP             1 0 0 1                       which blocks are in use
//! ```
//!
//! A lookup descends from the root. A listing goes through the root and then through all blocks in the order in which they lie, as
//! the bitmap says: that needs no memory, resumes anywhere, meets every entry once, and survives damaged blocks.
//!
//! **Invariants.** A block that does not bear its own number is damage, so that runs leading back to the same place are found;
//! a descent ends after [`MAX_DEPTH`] blocks, a listing after [`MAX_DAMAGED_BLOCKS`].

use std::cmp::Ordering;
use std::ops::ControlFlow;

use super::arithmetic::{add, length, multiply};
use super::record::{BITMAP, INDEX_ALLOCATION, INDEX_ROOT, apply_fixups};
use super::stream::AttributeReader;
use super::table::{File, FileTable};
use crate::{Error, ErrorKind, Result, field};

const MAX_DEPTH: usize = 64;
const MAX_DAMAGED_BLOCKS: usize = 1024;
const MAX_BLOCKS: u64 = 64 << 20;
const HAS_CHILD: u16 = 1;
const IS_LAST: u16 = 2;
/// Positions in a block take the lower bits of a cursor.
const POSITION_BITS: u32 = 16;
const BITMAP_WINDOW_BYTES: u64 = 4096;
/// Blocks that a listing reads at once.
const LISTED_BYTES: u64 = 256 << 10;

/// An entry in a block of an index.
#[derive(Debug, Clone, Copy)]
pub(super) struct IndexEntry<'a> {
    /// The whole entry; in a directory it begins with a file reference.
    pub(super) bytes: &'a [u8],
    pub(super) key: &'a [u8],
    /// Where to go on for keys before this one.
    child: Option<u64>,
    is_last: bool,
}

pub(super) struct Index<'a> {
    table: &'a FileTable,
    name: &'a [u16],
    file: &'a File,
    root: Vec<u8>,
    block_bytes: u64,
    /// What children are counted in.
    child_unit_bytes: u64,
    allocation: Option<AttributeReader>,
}

impl<'a> Index<'a> {
    pub(super) fn open(table: &'a FileTable, file: &'a File, name: &'a [u16]) -> Result<Self> {
        let parts = file.parts(INDEX_ROOT, name);
        let root = parts
            .first()
            .and_then(|part| part.resident())
            .ok_or_else(|| {
                Error::corrupt(format!("file record {} has no index root", file.number))
            })?;
        let block_bytes = u64::from(field::u32_le(root, 8)?);
        if !block_bytes.is_power_of_two() || !(512..=65536).contains(&block_bytes) {
            return Err(Error::corrupt(format!(
                "index blocks of {block_bytes} bytes in file record {}",
                file.number
            )));
        }
        let cluster_bytes = table.geometry.cluster_bytes;
        let allocation = if file.parts(INDEX_ALLOCATION, name).is_empty() {
            None
        } else {
            Some(table.reader(file, INDEX_ALLOCATION, name)?)
        };
        Ok(Self {
            table,
            name,
            file,
            root: root.to_vec(),
            block_bytes,
            child_unit_bytes: if cluster_bytes <= block_bytes {
                cluster_bytes
            } else {
                512
            },
            allocation,
        })
    }

    /// Goes down to where `compare` (the wanted key against an entry's) says equal. `compare` sees every entry on the way,
    /// among them both neighbours of the wanted key.
    pub(super) fn descend(
        &self,
        compare: &mut dyn FnMut(&IndexEntry<'_>) -> Result<Ordering>,
    ) -> Result<Option<Vec<u8>>> {
        let mut block = self.root.clone();
        let mut head = 16;
        for _ in 0..MAX_DEPTH {
            let mut child = None;
            for entry in Entries::new(&block, head)? {
                let entry = entry?;
                let order = if entry.is_last {
                    Ordering::Less
                } else {
                    compare(&entry)?
                };
                match order {
                    Ordering::Equal => return Ok(Some(entry.bytes.to_vec())),
                    Ordering::Less => {
                        child = entry.child;
                        break;
                    }
                    Ordering::Greater => {}
                }
            }
            let Some(child) = child else { return Ok(None) };
            block = self.block(child)?;
            head = 24;
        }
        Err(Error::corrupt(format!(
            "the index of file record {} is deeper than {MAX_DEPTH} blocks",
            self.file.number
        )))
    }

    /// Tells all entries behind a place. Each comes with the place behind it.
    pub(super) fn list(
        &self,
        after: u64,
        visit: &mut dyn FnMut(&IndexEntry<'_>, u64) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut damage = Damage::default();
        let mut start = after;
        if start >> POSITION_BITS == 0 {
            if visit_block(&self.root, 16, start, &mut damage, visit).is_break() {
                return damage.end();
            }
            start = 1 << POSITION_BITS;
        }
        let Some(allocation) = &self.allocation else {
            return damage.end();
        };
        let bitmap = self.table.reader(self.file, BITMAP, self.name)?;
        let blocks = allocation
            .size_bytes()
            .checked_div(self.block_bytes)
            .unwrap_or(0)
            .min(bitmap.size_bytes().saturating_mul(8));
        if blocks > MAX_BLOCKS {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("a directory of {blocks} index blocks"),
            ));
        }
        let mut number = (start >> POSITION_BITS).saturating_sub(1);
        let mut window = BitmapWindow::default();
        let mut ahead = BlockWindow::default();
        while number < blocks {
            if window.has(&bitmap, number)? {
                let cursor = number
                    .saturating_add(1)
                    .wrapping_shl(POSITION_BITS)
                    .max(start);
                match self.listed_block(allocation, number, &mut ahead) {
                    Ok(block) => {
                        if visit_block(block, 24, cursor, &mut damage, visit).is_break() {
                            return damage.end();
                        }
                    }
                    Err(error) => damage.note(error)?,
                }
            }
            number = number.saturating_add(1);
        }
        damage.end()
    }

    fn block(&self, child: u64) -> Result<Vec<u8>> {
        self.block_at(multiply(child, self.child_unit_bytes)?)
    }

    /// A block, out of many that are read at once.
    fn listed_block<'w>(
        &self,
        allocation: &AttributeReader,
        number: u64,
        window: &'w mut BlockWindow,
    ) -> Result<&'w [u8]> {
        let offset = multiply(number, self.block_bytes)?;
        let width = length(self.block_bytes)?;
        if !window.holds(offset, width) {
            let left = allocation.size_bytes().saturating_sub(offset);
            let whole = left.min(LISTED_BYTES.max(self.block_bytes));
            let whole = whole.saturating_sub(whole.checked_rem(self.block_bytes).unwrap_or(0));
            window.first = offset;
            window.bytes.resize(length(whole)?, 0);
            if allocation.read(offset, &mut window.bytes).is_err() {
                // What was not asked for may be what cannot be read.
                window.bytes.clear();
                window.bytes = self.block_at(offset)?;
                return Ok(&window.bytes);
            }
        }
        let inside = length(offset.saturating_sub(window.first))?;
        let end = inside.saturating_add(width);
        let block = window
            .bytes
            .get_mut(inside..end)
            .ok_or_else(|| Error::corrupt("behind the end of the index"))?;
        self.check_block(offset, block)
            .map_err(|error| error.within(self.place_of_block(offset)))?;
        Ok(block)
    }

    fn place_of_block(&self, offset: u64) -> String {
        let number = self.file.number;
        format!("index block at {offset} of file record {number}")
    }

    /// Undoes the fixups of a block and looks whether it is the one that lies here.
    fn check_block(&self, offset: u64, block: &mut [u8]) -> Result<()> {
        apply_fixups(block, b"INDX")?;
        let own = field::u64_le(block, 16)?;
        if own.checked_mul(self.child_unit_bytes) != Some(offset) {
            return Err(Error::corrupt(format!("it says that it is block {own}")));
        }
        Ok(())
    }

    fn block_at(&self, offset: u64) -> Result<Vec<u8>> {
        let place = || self.place_of_block(offset);
        let allocation = self
            .allocation
            .as_ref()
            .ok_or_else(|| Error::corrupt("no blocks").within(place()))?;
        if add(offset, self.block_bytes)? > allocation.size_bytes() {
            return Err(Error::corrupt("behind the end of the index").within(place()));
        }
        let mut block = vec![0; length(self.block_bytes)?];
        allocation
            .read(offset, &mut block)
            .and_then(|()| self.check_block(offset, &mut block))
            .map_err(|error| error.within(place()))?;
        Ok(block)
    }
}

/// What could not be read of an index: the first trouble, and how often there was some.
#[derive(Default)]
struct Damage {
    first: Option<Error>,
    count: usize,
}

impl Damage {
    fn note(&mut self, error: Error) -> Result<()> {
        self.count = self.count.saturating_add(1);
        if self.count > MAX_DAMAGED_BLOCKS {
            return Err(error.within(format!("after {MAX_DAMAGED_BLOCKS} damaged index blocks")));
        }
        self.first.get_or_insert(error);
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.first.map_or(Ok(()), Err)
    }
}

fn visit_block(
    block: &[u8],
    head: usize,
    start: u64,
    damage: &mut Damage,
    visit: &mut dyn FnMut(&IndexEntry<'_>, u64) -> Result<ControlFlow<()>>,
) -> ControlFlow<()> {
    let entries = match Entries::new(block, head) {
        Ok(entries) => entries,
        Err(error) => {
            return match damage.note(error) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    damage.first = Some(error);
                    ControlFlow::Break(())
                }
            };
        }
    };
    let mut cursor = start >> POSITION_BITS << POSITION_BITS;
    for entry in entries {
        cursor = cursor.saturating_add(1);
        let outcome = entry.and_then(|entry| {
            if entry.is_last || cursor <= start {
                return Ok(ControlFlow::Continue(()));
            }
            visit(&entry, cursor)
        });
        match outcome {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return ControlFlow::Break(()),
            Err(error) => {
                if let Err(error) = damage.note(error) {
                    damage.first = Some(error);
                    return ControlFlow::Break(());
                }
            }
        }
    }
    ControlFlow::Continue(())
}

/// The entries of one block, in order, with the last one, which has no key.
struct Entries<'b> {
    rest: &'b [u8],
    is_over: bool,
}

impl<'b> Entries<'b> {
    /// `head` is where the index header stands in the block.
    fn new(block: &'b [u8], head: usize) -> Result<Self> {
        let first = length(u64::from(field::u32_le(block, head)?))?;
        let used = length(u64::from(field::u32_le(block, head.saturating_add(4))?))?;
        let bytes = block.get(head..).unwrap_or_default();
        let rest = used
            .checked_sub(first)
            .ok_or_else(|| Error::corrupt("entries of an index end before they begin"))
            .and_then(|size| field::slice(bytes, first, size))?;
        Ok(Self {
            rest,
            is_over: false,
        })
    }

    fn entry(&mut self) -> Result<IndexEntry<'b>> {
        let size = usize::from(field::u16_le(self.rest, 8)?);
        if size < 16 {
            return Err(Error::corrupt(format!("an index entry of {size} bytes")));
        }
        let bytes = field::slice(self.rest, 0, size)?;
        self.rest = self.rest.get(size..).unwrap_or_default();
        let flags = field::u16_le(bytes, 12)?;
        let is_last = flags & IS_LAST != 0;
        let key_bytes = if is_last {
            0
        } else {
            usize::from(field::u16_le(bytes, 10)?)
        };
        Ok(IndexEntry {
            bytes,
            key: field::slice(bytes, 16, key_bytes)?,
            child: if flags & HAS_CHILD == 0 {
                None
            } else {
                Some(field::u64_le(bytes, size.saturating_sub(8))?)
            },
            is_last,
        })
    }
}

impl<'b> Iterator for Entries<'b> {
    type Item = Result<IndexEntry<'b>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let entry = self.entry();
        self.is_over = entry.as_ref().map_or(true, |entry| entry.is_last);
        Some(entry)
    }
}

/// Neighbouring blocks as they lie on the volume; each is used once.
#[derive(Default)]
struct BlockWindow {
    first: u64,
    bytes: Vec<u8>,
}

impl BlockWindow {
    fn holds(&self, offset: u64, width: usize) -> bool {
        let inside = offset.checked_sub(self.first);
        let inside = inside.and_then(|inside| usize::try_from(inside).ok());
        let end = inside.and_then(|inside| inside.checked_add(width));
        end.is_some_and(|end| end <= self.bytes.len())
    }
}

/// A piece of a bitmap.
#[derive(Default)]
struct BitmapWindow {
    first: u64,
    bytes: Vec<u8>,
}

impl BitmapWindow {
    fn has(&mut self, bitmap: &AttributeReader, number: u64) -> Result<bool> {
        let at = number / 8;
        let inside = at
            .checked_sub(self.first)
            .and_then(|at| usize::try_from(at).ok());
        let byte = match inside.and_then(|inside| self.bytes.get(inside)) {
            Some(byte) => *byte,
            None => {
                let left = bitmap
                    .size_bytes()
                    .saturating_sub(at)
                    .min(BITMAP_WINDOW_BYTES);
                self.bytes = vec![0; length(left)?];
                self.first = at;
                bitmap.read(at, &mut self.bytes)?;
                self.bytes.first().copied().unwrap_or(0)
            }
        };
        let bit = u32::try_from(number % 8).unwrap_or(0);
        Ok(byte & 1_u8.wrapping_shl(bit) != 0)
    }
}
