//! Inodes in the log: their core in the machine's byte order, and forks as they lie on the volume.
//!
//! ```text
//!   format 56 (52): kind:2 regions:2 fields:4 attributes:2 data:2 (pad:4) inode:8 device:16 sector:8 sectors:4 offset:4
//!   region 1: core, little-endian, otherwise as on the volume    2, 3: data fork, attribute fork
//! ```
//!
//! **Invariants.** An inode is only laid over one, never over a newer one, and only where its number says.

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

use super::transactions::Item;
use crate::xfs::superblock::{self, Superblock};
use crate::{Error, Result, field};

const DATA: u32 = 2 | 4;
const DATA_ROOT: u32 = 8;
const DEVICE: u32 = 0x10;
const ATTRIBUTES: u32 = 0x40 | 0x80;
const ATTRIBUTE_ROOT: u32 = 0x100;

/// Numbers of a core: (place, bytes). What is not here is single bytes, ids, or not taken over.
const NUMBERS: [(usize, usize); 17] = [
    (2, 2),
    (8, 4),
    (12, 4),
    (16, 4),
    (20, 2),
    (22, 2),
    (56, 8),
    (64, 8),
    (72, 4),
    (84, 4),
    (88, 2),
    (90, 2),
    (92, 4),
    (104, 8),
    (120, 8),
    (128, 4),
    (152, 8),
];
const CORE_V4: usize = 96;
const CORE_V5: usize = 176;

/// Where an inode lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    number: u64,
    fields: u32,
    regions: u16,
    device: u32,
    pub(super) sector: u64,
    pub(super) sectors: u16,
    pub(super) offset: u32,
}

/// Reads the format, of 64-bit machines or of 32-bit ones.
pub(super) fn place(format: &[u8]) -> Result<Place> {
    let shift = match format.len() {
        56 => 4_usize,
        52 => 0,
        other => {
            return Err(Error::corrupt(format!("a format of {other} bytes")));
        }
    };
    let at = |offset: usize| offset.saturating_add(shift);
    Ok(Place {
        regions: field::u16_le(format, 2)?,
        fields: field::u32_le(format, 4)?,
        number: field::u64_le(format, at(12))?,
        device: field::u32_le(format, at(20))?,
        sector: field::u64_le(format, at(36))?,
        sectors: u16::try_from(field::u32_le(format, at(44))?)
            .map_err(|_| Error::corrupt("a cluster without end"))?,
        offset: field::u32_le(format, at(48))?,
    })
}

/// Lays an item over an inode; whether it did.
pub(super) fn apply(
    bytes: &mut [u8],
    item: &Item,
    place: &Place,
    superblock: &Superblock,
    lsn: u64,
) -> Result<bool> {
    let within = |error: Error| error.within(format!("inode {}", place.number));
    let wanted = superblock.inode_offset(place.number).map_err(within)?;
    let told =
        (place.sector.checked_mul(512)).and_then(|at| at.checked_add(u64::from(place.offset)));
    if told != Some(wanted) {
        return Err(within(Error::corrupt("it lies elsewhere")));
    }
    if field::slice(bytes, 0, 2)? != b"IN" {
        return Err(within(Error::corrupt("nothing to lay it over")));
    }
    let core = item.region(1)?;
    if field::u16_le(core, 0)? != 0x494E {
        return Err(within(Error::corrupt("it is none")));
    }
    if is_newer(bytes, core, superblock, lsn)? {
        return Ok(false);
    }
    lay_core(bytes, core, superblock, lsn).map_err(within)?;
    lay_forks(bytes, item, place, superblock).map_err(within)?;
    if superblock.is_v5 {
        superblock::set_sum(bytes, 100)?;
    }
    Ok(true)
}

fn is_newer(bytes: &[u8], core: &[u8], superblock: &Superblock, lsn: u64) -> Result<bool> {
    if superblock.is_v5 {
        let written = field::u64_be(bytes, 112)?;
        let has = field::u8_at(bytes, 4)? >= 3;
        return Ok(has && written != 0 && written != u64::MAX && written > lsn);
    }
    let (logged, there) = (field::u16_le(core, 30)?, field::u16_be(bytes, 30)?);
    // The counter went round.
    let is_round = there == u16::MAX && logged < u16::MAX >> 1;
    Ok(logged < there && !is_round)
}

fn lay_core(bytes: &mut [u8], core: &[u8], superblock: &Superblock, lsn: u64) -> Result<()> {
    let version = field::u8_at(core, 4)?;
    let length = if superblock.is_v5 { CORE_V5 } else { CORE_V4 };
    if core.len() < length || (version == 3) != superblock.is_v5 {
        return Err(Error::corrupt(format!(
            "a core of {} bytes, version {version}",
            core.len()
        )));
    }
    let flags2 = if superblock.is_v5 {
        field::u64_le(core, 120)?
    } else {
        0
    };
    let mut numbers: Vec<(usize, usize)> = NUMBERS.to_vec();
    for time in [32_usize, 40, 48, 144] {
        if flags2 & superblock::INODE_BIG_TIME != 0 {
            numbers.push((time, 8));
        } else {
            numbers.extend([(time, 4), (time.saturating_add(4), 4)]);
        }
    }
    if flags2 & superblock::INODE_WIDE_COUNTS != 0 {
        numbers.extend([(24, 8), (76, 4), (80, 2)]);
    } else {
        numbers.extend([(76, 4), (80, 2)]);
    }
    for (at, width) in numbers {
        if at.saturating_add(width) > length {
            continue;
        }
        let source = field::slice(core, at, width)?;
        let target = bytes
            .get_mut(at..at.saturating_add(width))
            .unwrap_or(&mut []);
        for (to, from) in target.iter_mut().zip(source.iter().rev()) {
            *to = *from;
        }
    }
    for (at, width) in [(4_usize, 2_usize), (82, 2)] {
        put(bytes, at, field::slice(core, at, width)?);
    }
    put(bytes, 6, &[0; 2]);
    if flags2 & superblock::INODE_WIDE_COUNTS == 0 {
        // Among others the counter of flushes begins anew.
        put(bytes, 24, &[0; 8]);
    }
    if superblock.is_v5 {
        put(bytes, 112, &lsn.to_be_bytes());
        put(bytes, 132, &[0; 12]);
        put(bytes, 160, field::slice(core, 160, 16)?);
    }
    Ok(())
}

fn put(bytes: &mut [u8], at: usize, source: &[u8]) {
    if let Some(target) = bytes.get_mut(at..at.saturating_add(source.len())) {
        target.copy_from_slice(source);
    }
}

fn lay_forks(bytes: &mut [u8], item: &Item, place: &Place, superblock: &Superblock) -> Result<()> {
    let core: usize = if superblock.is_v5 { CORE_V5 } else { 100 };
    let room = bytes.len().saturating_sub(core);
    let offset = usize::from(field::u8_at(bytes, 82)?).saturating_mul(8);
    if offset > room {
        return Err(Error::corrupt("its attribute fork begins behind its end"));
    }
    let data = if offset == 0 { room } else { offset };
    let split = core.saturating_add(data);
    let header = if superblock.is_v5 { 72 } else { 24 };
    let (head, attributes) = bytes.split_at_mut(split.min(bytes.len()));
    let data = head.get_mut(core..).unwrap_or(&mut []);
    if place.fields & DEVICE != 0 {
        put(data, 0, &place.device.to_be_bytes());
    }
    if place.regions <= 2 {
        return Ok(());
    }
    let mut region = 2_usize;
    if place.fields & (DATA | DATA_ROOT) != 0 {
        let source = item.region(region)?;
        region = region.saturating_add(1);
        if place.fields & DATA_ROOT != 0 {
            lay_root(data, source, header)?;
        } else {
            lay_bytes(data, source)?;
        }
    }
    if place.fields & (ATTRIBUTES | ATTRIBUTE_ROOT) != 0 {
        let source = item.region(region)?;
        if place.fields & ATTRIBUTE_ROOT != 0 {
            lay_root(attributes, source, header)?;
        } else {
            lay_bytes(attributes, source)?;
        }
    }
    Ok(())
}

/// Regions are filled up to four bytes.
fn lay_bytes(fork: &mut [u8], source: &[u8]) -> Result<()> {
    let count = source.len().min(fork.len());
    if source.len().saturating_sub(count) > 3 {
        return Err(Error::corrupt("a fork that does not fit"));
    }
    put(fork, 0, field::slice(source, 0, count)?);
    Ok(())
}

/// The root of a tree has a long header in memory, and four bytes on the volume.
fn lay_root(fork: &mut [u8], source: &[u8], header: usize) -> Result<()> {
    let count = usize::from(field::u16_be(source, 6)?);
    let room = |length: usize, header: usize| {
        let slots = length.saturating_sub(header).checked_div(16);
        slots.unwrap_or(0)
    };
    let (slots, wanted) = (room(fork.len(), 4), room(source.len(), header));
    if count > slots || count > wanted {
        return Err(Error::corrupt("the root of a tree that does not fit"));
    }
    let bytes = count.saturating_mul(8);
    put(fork, 0, field::slice(source, 4, 4)?);
    put(fork, 4, field::slice(source, header, bytes)?);
    let from = header.saturating_add(wanted.saturating_mul(8));
    let to = slots.saturating_mul(8).saturating_add(4);
    put(fork, to, field::slice(source, from, bytes)?);
    Ok(())
}

/// A new inode that nobody uses.
pub(super) fn blank(
    inode: &mut [u8],
    superblock: &Superblock,
    number: u64,
    generation: u32,
) -> Result<()> {
    put(inode, 0, b"IN");
    put(inode, 4, &[if superblock.is_v5 { 3 } else { 2 }]);
    put(inode, 92, &generation.to_be_bytes());
    put(inode, 96, &u32::MAX.to_be_bytes());
    if superblock.is_v5 {
        put(inode, 152, &number.to_be_bytes());
        put(inode, 160, &superblock.meta_uuid);
        superblock::set_sum(inode, 100)?;
    }
    Ok(())
}
