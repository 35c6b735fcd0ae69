//! Changes of file records, done again or taken back.
//!
//! ```text
//!  16 sequence │ 18 links │ 20 first attribute │ 22 flags │ 24 bytes in use │ 28 bytes │ 40 next attribute number
//!  attribute:  0 type │ 4 length │ 8 form │ 14 number │ resident: 16 bytes of the value │ 20 value at │ 22 is indexed
//!                                                      otherwise: 16 lowest, 24 highest cluster │ 32 pairs at │ 40 sizes
//! ```
//!
//! **Invariants.** A change that does not meet what it expects is an error; the caller gives the whole replay up.

use super::super::arithmetic::{align_eight, minus, plus};
use super::super::record::INDEX_ROOT;
use super::super::runs::RunList;
use super::action::{Change, Operation};
use super::block::Block;
use super::index_block::{entry_bytes, put_child};
use crate::{Error, Result, field};

const SEQUENCE: usize = 16;
const LINKS: usize = 18;
const FIRST_ATTRIBUTE: usize = 20;
const FLAGS: usize = 22;
const USED: usize = 24;
const NEXT_NUMBER: usize = 40;
const IN_USE: u16 = 1;
const END: u32 = 0xFFFF_FFFF;
const INDEX_HEAD: usize = 16;
/// From an index entry to the part of a file name that is updated in place.
const NAME_COPY: usize = 24;

/// Does one change.
pub(super) fn apply(block: &mut Block, change: &Change<'_>, total_clusters: u64) -> Result<()> {
    let at = change.record_offset;
    let inside = plus(at, change.attribute_offset)?;
    match change.operation {
        Operation::InitializeFileRecord => block.put(at, &change.data),
        Operation::DeallocateFileRecord => deallocate(block),
        Operation::ZeroEndOfFileRecord => block.put(inside, &vec![0; change.data.len()]),
        _ => {
            check_attribute(block, at)?;
            match change.operation {
                Operation::WriteEndOfFileRecord => {
                    block.put(at, &change.data)?;
                    block.set_size(USED, align_eight(plus(at, change.data.len())?)?)
                }
                Operation::CreateAttribute => create(block, at, &change.data),
                Operation::DeleteAttribute => delete(block, at),
                Operation::UpdateResidentValue => update_value(block, change),
                Operation::UpdateMappingPairs => update_pairs(block, change, total_clusters),
                Operation::SetNewAttributeSizes => set_sizes(block, at, &change.data),
                _ => apply_to_root(block, change, inside),
            }
        }
    }
}

fn deallocate(block: &mut Block) -> Result<()> {
    let flags = field::u16_le(block.bytes(), FLAGS)? & !IN_USE;
    block.put(FLAGS, &flags.to_le_bytes())?;
    // The next file here has another number in its references; 0 would fit all of them.
    let sequence = match field::u16_le(block.bytes(), SEQUENCE)?.wrapping_add(1) {
        0 => 1,
        sequence => sequence,
    };
    block.put(SEQUENCE, &sequence.to_le_bytes())
}

/// Makes sure that an attribute, or the end of them, begins at a place.
fn check_attribute(block: &Block, wanted: usize) -> Result<()> {
    let mut at = block.short(FIRST_ATTRIBUTE)?;
    while at < wanted && field::u32_le(block.bytes(), at)? != END {
        let size = block.size(plus(at, 4)?)?;
        if size < 16 {
            break;
        }
        at = plus(at, size)?;
    }
    if at != wanted || wanted > block.size(USED)? {
        return Err(Error::corrupt(format!("no attribute begins at {wanted}")));
    }
    Ok(())
}

/// Gives an attribute another length, and moves what lies behind.
fn resize(block: &mut Block, at: usize, size: usize) -> Result<()> {
    let old = block.size(plus(at, 4)?)?;
    let used = block.size(USED)?;
    if size > old {
        let more = minus(size, old)?;
        block.open_gap(plus(at, old)?, more, used)?;
        block.grow_size(USED, more)?;
    } else {
        let less = minus(old, size)?;
        block.close_gap(plus(at, size)?, less, used)?;
        block.shrink_size(USED, less)?;
    }
    block.set_size(plus(at, 4)?, size)
}

/// Whether an attribute is a name that counts as a link.
fn is_indexed(block: &Block, at: usize) -> Result<bool> {
    Ok(block.byte(plus(at, 8)?)? == 0 && block.byte(plus(at, 22)?)? & 1 != 0)
}

fn create(block: &mut Block, at: usize, attribute: &[u8]) -> Result<()> {
    let size = super::action::size(field::u32_le(attribute, 4)?)?;
    let attribute = field::slice(attribute, 0, size)?;
    if size < 16 || !size.is_multiple_of(8) {
        return Err(Error::corrupt(format!("an attribute of {size} bytes")));
    }
    let used = block.size(USED)?;
    block.open_gap(at, size, used)?;
    block.put(at, attribute)?;
    block.grow_size(USED, size)?;
    let number = field::u16_le(attribute, 14)?;
    if number >= field::u16_le(block.bytes(), NEXT_NUMBER)? {
        block.put(NEXT_NUMBER, &number.saturating_add(1).to_le_bytes())?;
    }
    if is_indexed(block, at)? {
        let links = field::u16_le(block.bytes(), LINKS)?.saturating_add(1);
        block.put(LINKS, &links.to_le_bytes())?;
    }
    Ok(())
}

fn delete(block: &mut Block, at: usize) -> Result<()> {
    let size = block.size(plus(at, 4)?)?;
    if size < 16 {
        return Err(Error::corrupt(format!("an attribute of {size} bytes")));
    }
    if is_indexed(block, at)? {
        let links = field::u16_le(block.bytes(), LINKS)?.saturating_sub(1);
        block.put(LINKS, &links.to_le_bytes())?;
    }
    let used = block.size(USED)?;
    block.close_gap(at, size, used)?;
    block.shrink_size(USED, size)
}

/// Bytes of a value in its record: as many as before, more at its end, or fewer there.
fn update_value(block: &mut Block, change: &Change<'_>) -> Result<()> {
    let at = change.record_offset;
    let start = change.attribute_offset;
    let end = plus(start, change.data.len())?;
    let is_resident = block.byte(plus(at, 8)?)? == 0;
    if is_resident {
        let value = block.short(plus(at, 20)?)?;
        let old_end = plus(value, block.size(plus(at, 16)?)?)?;
        let is_shorter = change.data.len() < change.replaced_bytes;
        if is_shorter && plus(start, change.replaced_bytes)? != old_end {
            return Err(Error::corrupt(format!(
                "{} bytes in place of {} that do not end their value",
                change.data.len(),
                change.replaced_bytes
            )));
        }
        if start < value && (is_shorter || end > old_end) {
            return Err(Error::corrupt("a value that begins before its place"));
        }
        if is_shorter || end > old_end {
            resize(block, at, align_eight(end)?)?;
            block.set_size(plus(at, 16)?, minus(end, value)?)?;
        }
    }
    if end > block.size(plus(at, 4)?)? {
        return Err(Error::corrupt("a value longer than its attribute"));
    }
    block.put(plus(at, start)?, &change.data)
}

fn check_nonresident(block: &Block, at: usize) -> Result<()> {
    if block.byte(plus(at, 8)?)? == 0 {
        return Err(Error::corrupt("an attribute that has no clusters"));
    }
    Ok(())
}

fn update_pairs(block: &mut Block, change: &Change<'_>, total_clusters: u64) -> Result<()> {
    let at = change.record_offset;
    check_nonresident(block, at)?;
    let pairs = block.short(plus(at, 32)?)?;
    let start = change.attribute_offset;
    if start < pairs || start > block.size(plus(at, 4)?)? {
        return Err(Error::corrupt("mapping pairs outside of their place"));
    }
    resize(block, at, align_eight(plus(start, change.data.len())?)?)?;
    block.put(plus(at, start)?, &change.data)?;
    let size = block.size(plus(at, 4)?)?;
    let attribute = field::slice(block.bytes(), at, size)?;
    let lowest = field::u64_le(attribute, 16)?;
    let runs = RunList::from_part(
        lowest,
        attribute.get(pairs..).unwrap_or_default(),
        total_clusters,
    )?;
    let highest = runs.end().wrapping_sub(1);
    block.put(plus(at, 24)?, &highest.to_le_bytes())
}

/// Allocated, valid, whole, and where it is told the size without holes: in another order than in the attribute.
fn set_sizes(block: &mut Block, at: usize, sizes: &[u8]) -> Result<()> {
    check_nonresident(block, at)?;
    for (from, to) in [(0, 40), (8, 56), (16, 48)] {
        block.put(plus(at, to)?, field::slice(sizes, from, 8)?)?;
    }
    if sizes.len() >= 32 && block.short(plus(at, 32)?)? >= 72 {
        block.put(plus(at, 64)?, field::slice(sizes, 24, 8)?)?;
    }
    Ok(())
}

/// Changes of entries in an index root.
fn apply_to_root(block: &mut Block, change: &Change<'_>, entry: usize) -> Result<()> {
    let at = change.record_offset;
    if field::u32_le(block.bytes(), at)? != INDEX_ROOT || block.byte(plus(at, 8)?)? != 0 {
        return Err(Error::corrupt(format!("no index root at {at}")));
    }
    let head = plus(plus(at, block.short(plus(at, 20)?)?)?, INDEX_HEAD)?;
    // Before something is inserted, the place may be that of the last entry, which is always there.
    let size = entry_bytes(block, head, entry)?;
    let used = block.size(USED)?;
    let sizes = [
        plus(at, 4)?,
        plus(at, 16)?,
        plus(head, 4)?,
        plus(head, 8)?,
        USED,
    ];
    match change.operation {
        Operation::AddIndexEntryRoot => {
            let count = usize::from(field::u16_le(&change.data, 8)?);
            let new = field::slice(&change.data, 0, count)?;
            if count < 16 || !count.is_multiple_of(8) {
                return Err(Error::corrupt(format!("an index entry of {count} bytes")));
            }
            block.open_gap(entry, count, used)?;
            block.put(entry, new)?;
            sizes
                .iter()
                .try_for_each(|size| block.grow_size(*size, count))
        }
        Operation::DeleteIndexEntryRoot => {
            block.close_gap(entry, size, used)?;
            sizes
                .iter()
                .try_for_each(|place| block.shrink_size(*place, size))
        }
        _ => update_entry(block, change, entry, size),
    }
}

/// What is changed of an entry in its place, in a root as in a block.
pub(super) fn update_entry(
    block: &mut Block,
    change: &Change<'_>,
    entry: usize,
    size: usize,
) -> Result<()> {
    let at = match change.operation {
        Operation::SetIndexEntryVcnRoot | Operation::SetIndexEntryVcnAllocation => {
            return put_child(block, entry, size, &change.data);
        }
        Operation::UpdateFileNameRoot | Operation::UpdateFileNameAllocation => NAME_COPY,
        Operation::UpdateRecordDataRoot | Operation::UpdateRecordDataAllocation => {
            block.short(entry)?
        }
        other => return Err(Error::unsupported(format!("{other:?}"))),
    };
    if plus(at, change.data.len())? > size {
        return Err(Error::corrupt(format!(
            "{} bytes at {at} of an index entry of {size}",
            change.data.len()
        )));
    }
    block.put(plus(entry, at)?, &change.data)
}
