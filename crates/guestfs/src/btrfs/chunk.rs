//! Chunks: from the one logical address space to places on devices, and back for what is in use.
//!
//! ```text
//!   logical ─► chunk ─┬─ single            stripe 0
//!                     ├─ DUP, RAID1, C3, C4  the same on every stripe
//!                     ├─ RAID0             unit n on stripe n mod N
//!                     ├─ RAID10            unit n on pair n mod N/2
//!                     └─ RAID5, RAID6      row by row, parity one stripe further in each row:
//!                                            row 0   D0 D1 P        row 1   P D0 D1   (D0 is on stripe row mod N)
//! ```
//!
//! **Invariants.** Chunks do not overlap, have at least as many stripes as their profile asks for, and units of 64 KiB,
//! as Linux demands. A copy is a number: 0 reads straight, others are other stripes, or what parity gives.

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

use std::ops::{ControlFlow, Range, RangeInclusive};

use super::superblock::{DeviceId, uuid};
use crate::{Error, Result, field};

const UNIT_BYTES: u64 = 64 << 10;
/// 10 GiB each at most, usually 1 GiB: a pebibyte.
const MAX_CHUNKS: usize = 1 << 20;
const MAX_STRIPES: usize = 1024;

/// How a chunk lies on its stripes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Profile {
    /// One stripe, or the same on all.
    Copies,
    /// Units in turn, each on as many stripes one behind the other.
    Striped { copies: usize },
    /// Units in turn, and so many parities.
    Parity { parities: usize },
}

/// A part of a chunk on a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stripe {
    pub(super) device: DeviceId,
    pub(super) device_number: u64,
    pub(super) offset: u64,
}

/// A part of the logical address space.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub(super) logical: u64,
    pub(super) length: u64,
    pub(super) flags: u64,
    pub(super) profile: Profile,
    pub(super) stripes: Vec<Stripe>,
}

/// Where a part of a unit lies: in which row, which datum of it, how far inside.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnitPlace {
    pub(super) row: u64,
    pub(super) column: usize,
    pub(super) within: u64,
}

impl Chunk {
    /// From the item of the chunk tree at `logical`; and how many bytes of `bytes` it took.
    pub(super) fn parse(logical: u64, bytes: &[u8]) -> Result<(Self, usize)> {
        let place = || format!("chunk {logical}");
        let length = field::u64_le(bytes, 0)?;
        let flags = field::u64_le(bytes, 24)?;
        let count = usize::from(field::u16_le(bytes, 44)?);
        if length == 0 || logical.checked_add(length).is_none() {
            return Err(Error::corrupt(format!("{}: {length} bytes", place())));
        }
        if field::u64_le(bytes, 16)? != UNIT_BYTES {
            return Err(Error::corrupt(format!("{}: odd units", place())));
        }
        let sub_stripes = usize::from(field::u16_le(bytes, 46)?);
        let (profile, counts) = profile(flags, sub_stripes)
            .ok_or_else(|| Error::corrupt(format!("{}: profile {flags:#x}", place())))?;
        let is_multiple = match profile {
            Profile::Striped { copies } => count.is_multiple_of(copies),
            _ => true,
        };
        if !counts.contains(&count) || !is_multiple {
            return Err(Error::corrupt(format!("{}: {count} stripes", place())));
        }
        let mut stripes = Vec::with_capacity(count);
        let mut at = 48_usize;
        for _ in 0..count {
            stripes.push(Stripe {
                device_number: field::u64_le(bytes, at)?,
                offset: field::u64_le(bytes, at.saturating_add(8))?,
                device: DeviceId(uuid(bytes, at.saturating_add(16))?),
            });
            at = at.saturating_add(32);
        }
        let chunk = Self {
            logical,
            length,
            flags,
            profile,
            stripes,
        };
        if (chunk.stripes.iter()).any(|stripe| stripe.offset.checked_add(length).is_none()) {
            return Err(Error::corrupt(format!("{}: behind every device", place())));
        }
        Ok((chunk, at))
    }

    pub(super) fn end(&self) -> u64 {
        self.logical.saturating_add(self.length)
    }

    /// Stripes that hold different data in one row.
    pub(super) fn data_stripes(&self) -> usize {
        let count = self.stripes.len();
        match self.profile {
            Profile::Copies => 1,
            Profile::Striped { copies } => count.checked_div(copies).unwrap_or(1),
            Profile::Parity { parities } => count.saturating_sub(parities).max(1),
        }
    }

    /// Ways to read a byte.
    pub(super) fn copies(&self) -> usize {
        match self.profile {
            Profile::Copies => self.stripes.len(),
            Profile::Striped { copies } => copies,
            Profile::Parity { parities } => parities.saturating_add(1),
        }
    }

    /// Bytes that each stripe takes on its device.
    pub(super) fn stripe_bytes(&self) -> u64 {
        let data = field::bytes(self.data_stripes());
        self.length.checked_div(data).unwrap_or(self.length)
    }

    /// Where a byte of the chunk lies, and how many bytes behind it lie beside it.
    pub(super) fn unit(&self, within_chunk: u64) -> (UnitPlace, u64) {
        let left = self.length.saturating_sub(within_chunk);
        if self.profile == Profile::Copies {
            let place = UnitPlace {
                row: 0,
                column: 0,
                within: within_chunk,
            };
            return (place, left);
        }
        let (unit, within) = (within_chunk / UNIT_BYTES, within_chunk % UNIT_BYTES);
        let data = field::bytes(self.data_stripes());
        let column = unit.checked_rem(data).unwrap_or(0);
        let place = UnitPlace {
            row: unit.checked_div(data).unwrap_or(0),
            column: usize::try_from(column).unwrap_or(0),
            within,
        };
        (place, left.min(UNIT_BYTES.saturating_sub(within)))
    }

    /// The byte of a stripe that a place means.
    pub(super) fn offset_of(&self, stripe: &Stripe, place: UnitPlace) -> u64 {
        (stripe.offset)
            .saturating_add(place.row.saturating_mul(UNIT_BYTES))
            .saturating_add(place.within)
    }

    /// The stripe of a copy of a place; of parity profiles, of the datum itself.
    pub(super) fn stripe_of(&self, place: UnitPlace, copy: usize) -> Option<&Stripe> {
        let index = match self.profile {
            Profile::Copies => copy,
            Profile::Striped { copies } => place.column.saturating_mul(copies).saturating_add(copy),
            Profile::Parity { .. } => self.rotated(place.row, place.column),
        };
        self.stripes.get(index)
    }

    /// Of parity profiles: where in a row the n-th datum lies; the parities follow the last one.
    pub(super) fn rotated(&self, row: u64, column: usize) -> usize {
        let count = field::bytes(self.stripes.len());
        let turned = row.wrapping_add(field::bytes(column)).checked_rem(count);
        usize::try_from(turned.unwrap_or(0)).unwrap_or(0)
    }

    /// Tells which bytes of a stripe's device hold something of a range of the chunk. With parity, whole rows.
    pub(super) fn on_stripe(
        &self,
        index: usize,
        logical: Range<u64>,
        visit: &mut dyn FnMut(Range<u64>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some(stripe) = self.stripes.get(index) else {
            return ControlFlow::Continue(());
        };
        let mut at = logical.start.saturating_sub(self.logical);
        let end = logical.end.saturating_sub(self.logical).min(self.length);
        while at < end {
            let (place, length) = self.unit(at);
            let length = length.min(end.saturating_sub(at));
            let is_here = match self.profile {
                Profile::Copies => true,
                Profile::Striped { copies } => index.checked_div(copies) == Some(place.column),
                Profile::Parity { .. } => false,
            };
            if is_here {
                let start = self.offset_of(stripe, place);
                visit(start..start.saturating_add(length))?;
            }
            at = at.saturating_add(length);
            if matches!(self.profile, Profile::Parity { .. }) {
                let start = (stripe.offset).saturating_add(place.row.saturating_mul(UNIT_BYTES));
                visit(start..start.saturating_add(UNIT_BYTES))?;
                let row_bytes = UNIT_BYTES.saturating_mul(field::bytes(self.data_stripes()));
                at = place.row.saturating_add(1).saturating_mul(row_bytes);
            }
        }
        ControlFlow::Continue(())
    }

    /// Its profile as Linux writes it.
    pub(super) fn profile_name(&self) -> &'static str {
        NAMES
            .iter()
            .find(|(bit, ..)| self.flags & bit != 0)
            .map_or("single", |(_, name, ..)| name)
    }
}

const NAMES: [(u64, &str); 8] = [
    (1 << 3, "raid0"),
    (1 << 4, "raid1"),
    (1 << 5, "dup"),
    (1 << 6, "raid10"),
    (1 << 7, "raid5"),
    (1 << 8, "raid6"),
    (1 << 9, "raid1c3"),
    (1 << 10, "raid1c4"),
];

/// A profile and how many stripes it may have.
fn profile(flags: u64, sub_stripes: usize) -> Option<(Profile, RangeInclusive<usize>)> {
    Some(match flags >> 3 {
        0 => (Profile::Copies, 1..=1),
        0x01 => (Profile::Striped { copies: 1 }, 1..=MAX_STRIPES),
        0x02 | 0x04 => (Profile::Copies, 2..=2),
        0x40 => (Profile::Copies, 3..=3),
        0x80 => (Profile::Copies, 4..=4),
        0x08 if sub_stripes == 2 => (Profile::Striped { copies: 2 }, 2..=MAX_STRIPES),
        0x10 => (Profile::Parity { parities: 1 }, 2..=MAX_STRIPES),
        0x20 => (Profile::Parity { parities: 2 }, 3..=MAX_STRIPES),
        _ => return None,
    })
}

/// All chunks, by their logical address.
#[derive(Debug, Default)]
pub(super) struct ChunkMap(Vec<Chunk>);

impl ChunkMap {
    /// Sorts, and refuses what overlaps.
    pub(super) fn new(mut chunks: Vec<Chunk>) -> Result<Self> {
        if chunks.len() > MAX_CHUNKS {
            return Err(Error::new(
                crate::ErrorKind::Limit,
                format!("more than {MAX_CHUNKS} chunks"),
            ));
        }
        chunks.sort_by_key(|chunk| chunk.logical);
        for (one, next) in chunks.iter().zip(chunks.iter().skip(1)) {
            if one.end() > next.logical {
                return Err(Error::corrupt(format!(
                    "chunks {} and {} overlap",
                    one.logical, next.logical
                )));
            }
        }
        Ok(Self(chunks))
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Chunk> {
        self.0.iter()
    }

    /// The chunk over a logical address.
    pub(super) fn at(&self, logical: u64) -> Result<&Chunk> {
        let behind = self.0.partition_point(|chunk| chunk.logical <= logical);
        behind
            .checked_sub(1)
            .and_then(|index| self.0.get(index))
            .filter(|chunk| logical < chunk.end())
            .ok_or_else(|| Error::corrupt(format!("no chunk holds address {logical}")))
    }
}
