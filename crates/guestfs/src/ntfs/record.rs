//! Blocks with fixups, file records, and the attributes in them.
//!
//! ```text
//!  file record: "FILE" │ fixups │ sequence │ link count │ first attribute ─► [ type │ length │ … ]* 0xFFFFFFFF
//!                                                              resident:  value in place
//!                                                              otherwise: mapping pairs of a part of the stream
//! ```
//!
//! The last two bytes of every 512 are replaced by a number on disk, so that a torn write shows; the bytes that belong
//! there stand in an array in the head.

use std::sync::Arc;

use super::arithmetic::length;
use crate::{Error, Result, field};

pub(super) const STANDARD_INFORMATION: u32 = 0x10;
pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
pub(super) const FILE_NAME: u32 = 0x30;
pub(super) const SECURITY_DESCRIPTOR: u32 = 0x50;
pub(super) const VOLUME_NAME: u32 = 0x60;
pub(super) const VOLUME_INFORMATION: u32 = 0x70;
pub(super) const DATA: u32 = 0x80;
pub(super) const INDEX_ROOT: u32 = 0x90;
pub(super) const INDEX_ALLOCATION: u32 = 0xA0;
pub(super) const BITMAP: u32 = 0xB0;
pub(super) const REPARSE_POINT: u32 = 0xC0;
pub(super) const EXTENDED_ATTRIBUTES: u32 = 0xE0;
const END: u32 = 0xFFFF_FFFF;

const IN_USE: u16 = 1;
const DIRECTORY: u16 = 2;

const COMPRESSED: u16 = 0x0001;
const ENCRYPTED: u16 = 0x4000;
const SPARSE: u16 = 0x8000;

/// The lower 48 bits of a reference are the number of a record, the upper ones count its reuse.
pub(super) const NUMBER_MASK: u64 = 0xFFFF_FFFF_FFFF;

/// A record of the file table, without its extensions.
#[derive(Debug)]
pub(super) struct FileRecord {
    pub(super) sequence: u16,
    pub(super) is_in_use: bool,
    pub(super) is_directory: bool,
    /// The record that this one extends; 0 for a file's first.
    pub(super) base: u64,
    pub(super) attributes: Vec<Attribute>,
}

/// One attribute record: a whole attribute, or a part of a long one.
#[derive(Debug)]
pub(super) struct Attribute {
    pub(super) kind: u32,
    pub(super) name: Vec<u16>,
    pub(super) flags: u16,
    pub(super) body: AttributeBody,
}

#[derive(Debug)]
pub(super) enum AttributeBody {
    Resident(Arc<[u8]>),
    Runs(RunsBody),
}

/// A part of a stream outside of the record. The sizes count in the part that begins at cluster 0 only.
#[derive(Debug)]
pub(super) struct RunsBody {
    pub(super) lowest: u64,
    pub(super) pairs: Vec<u8>,
    /// Clusters of a compression unit, as a power of two; 0 for none.
    pub(super) unit_shift: u8,
    pub(super) allocated_bytes: u64,
    pub(super) size_bytes: u64,
    pub(super) initialized_bytes: u64,
}

impl Attribute {
    pub(super) fn is_compressed(&self) -> bool {
        self.flags & COMPRESSED != 0
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.flags & ENCRYPTED != 0
    }

    pub(super) fn size_bytes(&self) -> u64 {
        match &self.body {
            AttributeBody::Resident(value) => field::bytes(value.len()),
            AttributeBody::Runs(runs) => runs.size_bytes,
        }
    }

    pub(super) fn is_first(&self) -> bool {
        match &self.body {
            AttributeBody::Resident(_) => true,
            AttributeBody::Runs(runs) => runs.lowest == 0,
        }
    }

    /// The value, where it stands in the record.
    pub(super) fn resident(&self) -> Option<&[u8]> {
        match &self.body {
            AttributeBody::Resident(value) => Some(value),
            AttributeBody::Runs(_) => None,
        }
    }

    /// What it takes in memory, roughly.
    pub(super) fn weight_bytes(&self) -> usize {
        let body = match &self.body {
            AttributeBody::Resident(value) => value.len(),
            AttributeBody::Runs(runs) => runs.pairs.len(),
        };
        body.saturating_add(128)
    }
}

/// Checks the head of a block and puts the right bytes at the ends of its sectors.
pub(super) fn apply_fixups(block: &mut [u8], magic: &[u8; 4]) -> Result<()> {
    if field::slice(block, 0, 4)? != magic {
        return Err(Error::corrupt(format!(
            "{:?} where {:?} begins a block",
            String::from_utf8_lossy(field::slice(block, 0, 4)?),
            String::from_utf8_lossy(magic)
        )));
    }
    let (stride, array) = fixup_array(block)?;
    let array = array.to_vec();
    let (mark, fixups) = array.split_at(2);
    for (number, (sector, fixup)) in block
        .chunks_exact_mut(stride)
        .zip(fixups.chunks_exact(2))
        .enumerate()
    {
        let Some(tail) = sector.last_chunk_mut::<2>() else {
            continue;
        };
        if tail != mark {
            return Err(Error::corrupt(format!(
                "sector {number} of a block was not written with the others"
            )));
        }
        tail.copy_from_slice(fixup);
    }
    Ok(())
}

/// Makes a block again what it is on disk; [`apply_fixups`] the other way round.
pub(super) fn protect(block: &mut [u8]) -> Result<()> {
    let (stride, array) = fixup_array(block)?;
    let mark = field::slice(array, 0, 2)?.to_vec();
    let at = usize::from(field::u16_le(block, 4)?);
    let mut saved = mark.clone();
    for sector in block.chunks_exact_mut(stride) {
        if let Some(tail) = sector.last_chunk_mut::<2>() {
            saved.extend_from_slice(tail);
            tail.copy_from_slice(&mark);
        }
    }
    at.checked_add(saved.len())
        .and_then(|end| block.get_mut(at..end))
        .ok_or_else(|| Error::corrupt("fixups behind their block"))?
        .copy_from_slice(&saved);
    Ok(())
}

/// How far the protected places lie from each other, and the mark with the bytes that belong there.
fn fixup_array(block: &[u8]) -> Result<(usize, &[u8])> {
    let at = usize::from(field::u16_le(block, 4)?);
    let sectors = usize::from(field::u16_le(block, 6)?).saturating_sub(1);
    // 512 bytes whatever the sectors of the disk are; wider strides are read where the array says so.
    let stride = block
        .len()
        .checked_div(sectors)
        .filter(|stride| stride.is_power_of_two() && *stride >= 512)
        .filter(|stride| stride.checked_mul(sectors) == Some(block.len()))
        .ok_or_else(|| Error::corrupt(format!("fixups of {sectors} sectors")))?;
    let bytes = sectors.saturating_add(1).saturating_mul(2);
    Ok((stride, field::slice(block, at, bytes)?))
}

impl FileRecord {
    /// Reads a record; its fixups are applied here.
    pub(super) fn parse(mut block: Vec<u8>) -> Result<Self> {
        apply_fixups(&mut block, b"FILE")?;
        let flags = field::u16_le(&block, 22)?;
        let used = length(u64::from(field::u32_le(&block, 24)?))?.min(block.len());
        let block = block.get(..used).unwrap_or_default();
        let is_in_use = flags & IN_USE != 0;
        Ok(Self {
            sequence: field::u16_le(block, 16)?,
            is_in_use,
            is_directory: flags & DIRECTORY != 0,
            base: field::u64_le(block, 32)?,
            attributes: if is_in_use {
                attributes(block)?
            } else {
                Vec::new()
            },
        })
    }
}

fn attributes(record: &[u8]) -> Result<Vec<Attribute>> {
    let mut found = Vec::new();
    let mut at = usize::from(field::u16_le(record, 20)?);
    // Each one takes at least 16 bytes of the record, which ends the loop.
    while field::u32_le(record, at)? != END {
        let size = length(u64::from(field::u32_le(record, at.saturating_add(4))?))?;
        if size < 16 {
            return Err(Error::corrupt(format!(
                "an attribute of {size} bytes at {at}"
            )));
        }
        let bytes = field::slice(record, at, size)?;
        let kind = field::u32_le(bytes, 0)?;
        found.push(
            attribute(bytes)
                .map_err(|error| error.within(format!("attribute {kind:#x} at {at}")))?,
        );
        at = at.saturating_add(size);
    }
    Ok(found)
}

fn attribute(bytes: &[u8]) -> Result<Attribute> {
    let units = usize::from(field::u8_at(bytes, 9)?);
    let name = if units == 0 {
        Vec::new()
    } else {
        let at = usize::from(field::u16_le(bytes, 10)?);
        utf16(field::slice(bytes, at, units.saturating_mul(2))?)
    };
    let flags = field::u16_le(bytes, 12)?;
    let body = if field::u8_at(bytes, 8)? == 0 {
        let size = length(u64::from(field::u32_le(bytes, 16)?))?;
        let at = usize::from(field::u16_le(bytes, 20)?);
        AttributeBody::Resident(field::slice(bytes, at, size)?.into())
    } else {
        let pairs = bytes
            .get(usize::from(field::u16_le(bytes, 32)?)..)
            .ok_or_else(|| Error::corrupt("mapping pairs behind the attribute"))?;
        let lowest = field::u64_le(bytes, 16)?;
        let has_total = flags & (COMPRESSED | SPARSE) != 0 && lowest == 0 && bytes.len() >= 72;
        AttributeBody::Runs(RunsBody {
            lowest,
            pairs: pairs.to_vec(),
            unit_shift: field::u8_at(bytes, 34)?,
            allocated_bytes: field::u64_le(bytes, if has_total { 64 } else { 40 })?,
            size_bytes: field::u64_le(bytes, 48)?,
            initialized_bytes: field::u64_le(bytes, 56)?,
        })
    };
    Ok(Attribute {
        kind: field::u32_le(bytes, 0)?,
        name,
        flags,
        body,
    })
}

/// The code units of a little-endian string.
pub(super) fn utf16(bytes: &[u8]) -> Vec<u16> {
    bytes
        .chunks_exact(2)
        .filter_map(|pair| pair.first_chunk::<2>())
        .map(|pair| u16::from_le_bytes(*pair))
        .collect()
}
