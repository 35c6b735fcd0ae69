//! Changes of index blocks, done again or taken back.
//!
//! ```text
//!  "INDX" │ 8 LSN │ 16 own number │ 24 first entry at │ 28 bytes in use │ 32 bytes     (from 24 on)
//! ```

use super::super::arithmetic::{minus, plus};
use super::action::{Change, Operation};
use super::block::Block;
use super::file_record::update_entry;
use crate::{Error, Result, field};

const HEAD: usize = 24;
const HAS_CHILD: usize = 1;
const IS_LAST: usize = 2;

/// Does one change.
pub(super) fn apply(block: &mut Block, change: &Change<'_>) -> Result<()> {
    let entry = plus(change.record_offset, change.attribute_offset)?;
    if change.operation == Operation::UpdateNonresidentValue {
        return block.put(entry, &change.data);
    }
    let size = entry_bytes(block, HEAD, entry)?;
    let used = plus(HEAD, block.size(plus(HEAD, 4)?)?)?;
    let room = plus(HEAD, block.size(plus(HEAD, 8)?)?)?;
    match change.operation {
        Operation::AddIndexEntryAllocation => {
            let count = usize::from(field::u16_le(&change.data, 8)?);
            let new = field::slice(&change.data, 0, count)?;
            if count < 16 || !count.is_multiple_of(8) || plus(used, count)? > room {
                return Err(Error::corrupt(format!("an index entry of {count} bytes")));
            }
            block.open_gap(entry, count, used)?;
            block.put(entry, new)?;
            block.grow_size(plus(HEAD, 4)?, count)
        }
        Operation::DeleteIndexEntryAllocation => {
            block.close_gap(entry, size, used)?;
            block.shrink_size(plus(HEAD, 4)?, size)
        }
        Operation::WriteEndOfIndexBuffer => {
            let end = plus(entry, change.data.len())?;
            if end > room {
                return Err(Error::corrupt(format!("entries up to {end} of {room}")));
            }
            block.put(entry, &change.data)?;
            block.set_size(plus(HEAD, 4)?, minus(end, HEAD)?)
        }
        _ => update_entry(block, change, entry, size),
    }
}

/// The length of the entry that begins at a place; an error when none begins there.
pub(super) fn entry_bytes(block: &Block, head: usize, wanted: usize) -> Result<usize> {
    let end = plus(head, block.size(plus(head, 4)?)?)?;
    let mut at = plus(head, block.size(head)?)?;
    loop {
        let size = block.short(plus(at, 8)?)?;
        if size < 16 || plus(at, size)? > end {
            return Err(Error::corrupt(format!(
                "an index entry of {size} bytes at {at}"
            )));
        }
        if at == wanted {
            return Ok(size);
        }
        let is_last = block.short(plus(at, 12)?)? & IS_LAST != 0;
        at = plus(at, size)?;
        if at > wanted || is_last {
            return Err(Error::corrupt(format!("no index entry begins at {wanted}")));
        }
    }
}

/// Points an entry to another block below it.
pub(super) fn put_child(block: &mut Block, entry: usize, size: usize, child: &[u8]) -> Result<()> {
    if child.len() != 8 || size < 24 || block.short(plus(entry, 12)?)? & HAS_CHILD == 0 {
        return Err(Error::corrupt("an index entry that has no block below it"));
    }
    block.put(plus(entry, minus(size, 8)?)?, child)
}
