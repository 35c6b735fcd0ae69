//! The bytes of a file: extents in its tree, looked up where they are asked for.
//!
//! ```text
//!   extent data: generation·8 unpacked·8 packing·1 encryption·1 other·2 kind·1 │ 0 inline: bytes
//!                                                                              │ 1 regular, 2 reserved:
//!                                                                              │   address·8 length·8 offset·8 bytes·8
//!   address 0: a hole        no item: a hole, too
//! ```
//!
//! **Invariants.** Memory does not grow with the number of extents. An extent that is packed is 128 KiB at most.

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

use std::sync::Arc;

use block::{Extent, ExtentKind, ReadAt};

use super::Btrfs;
use super::compression::Packing;
use super::data::Proof;
use super::tree::{Item, Key, Tree, kind};
use crate::volume::pieces::{check_extent, check_range, take};
use crate::{Error, Result, field};

const MAX_PACKED_BYTES: u64 = 128 << 10;
pub(super) const INLINE_HEAD_BYTES: usize = 21;

/// What an extent data item says.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExtentData {
    pub(super) unpacked_bytes: u64,
    pub(super) packing: Option<Packing>,
    pub(super) form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Inline,
    Hole,
    Reserved(OnDisk),
    Regular(OnDisk),
}

/// Where an extent lies, and which part of it is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OnDisk {
    pub(super) logical: u64,
    pub(super) length: u64,
    pub(super) offset: u64,
}

impl ExtentData {
    /// The item, and how many bytes of the file it stands for.
    pub(super) fn parse(bytes: &[u8]) -> Result<(Self, u64)> {
        let unpacked_bytes = field::u64_le(bytes, 8)?;
        let packing = Packing::of(field::u8_at(bytes, 16)?)?;
        if field::u8_at(bytes, 17)? != 0 || field::u16_le(bytes, 18)? != 0 {
            return Err(Error::unsupported("an encrypted extent"));
        }
        let kind = field::u8_at(bytes, 20)?;
        if kind == 0 {
            let held = bytes.len().saturating_sub(INLINE_HEAD_BYTES);
            let length = match packing {
                None => unpacked_bytes.min(field::bytes(held)),
                Some(_) => unpacked_bytes,
            };
            let form = Form::Inline;
            return Ok((
                Self {
                    unpacked_bytes,
                    packing,
                    form,
                },
                length,
            ));
        }
        let place = OnDisk {
            logical: field::u64_le(bytes, 21)?,
            length: field::u64_le(bytes, 29)?,
            offset: field::u64_le(bytes, 37)?,
        };
        let length = field::u64_le(bytes, 45)?;
        let form = match (kind, place.logical) {
            (1 | 2, 0) => Form::Hole,
            (1, _) => Form::Regular(place),
            (2, _) => Form::Reserved(place),
            (other, _) => {
                return Err(Error::corrupt(format!("an extent of kind {other}")));
            }
        };
        let held = if packing.is_some() {
            unpacked_bytes
        } else {
            place.length
        };
        let is_inside = (place.offset.checked_add(length)).is_some_and(|end| end <= held);
        if length == 0 || (!is_inside && form != Form::Hole) {
            return Err(Error::corrupt("an extent shows more than it holds"));
        }
        Ok((
            Self {
                unpacked_bytes,
                packing,
                form,
            },
            length,
        ))
    }
}

/// A part of a file.
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) extent: Option<(ExtentData, Item)>,
}

/// The contents of a file.
pub(super) struct Contents<'f> {
    pub(super) btrfs: &'f Btrfs,
    pub(super) tree: Tree,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) proof: Proof,
}

impl Contents<'_> {
    /// What lies over a byte of the file.
    pub(super) fn piece(&self, position: u64) -> Result<Piece> {
        let key = |offset| Key::new(self.inode, kind::EXTENT_DATA, offset);
        let forest = &self.btrfs.forest;
        let within = |error: Error| error.within(format!("inode {} at {position}", self.inode));
        let mut start = 0;
        if let Some((found, item)) =
            (forest.last(&self.tree, key(0), key(position))).map_err(within)?
        {
            let (extent, length) = ExtentData::parse(item.bytes()).map_err(within)?;
            let end = found.offset.saturating_add(length);
            if position < end {
                return Ok(Piece {
                    start: found.offset,
                    end,
                    extent: Some((extent, item)),
                });
            }
            start = end;
        }
        let next = match position.checked_add(1) {
            Some(next) if next < self.size => {
                (forest.first(&self.tree, key(next), key(u64::MAX))).map_err(within)?
            }
            _ => None,
        };
        Ok(Piece {
            start,
            end: next.map_or(u64::MAX, |next| next.offset),
            extent: None,
        })
    }

    fn read_piece(&self, piece: &Piece, position: u64, buffer: &mut [u8]) -> Result<()> {
        let within = position.saturating_sub(piece.start);
        let Some((extent, item)) = &piece.extent else {
            buffer.fill(0);
            return Ok(());
        };
        let data = &self.btrfs.data;
        match (extent.form, extent.packing) {
            (Form::Hole | Form::Reserved(_), _) => buffer.fill(0),
            (Form::Inline, packing) => {
                let held = item.bytes().get(INLINE_HEAD_BYTES..).unwrap_or_default();
                let unpacked;
                let bytes = match packing {
                    None => held,
                    Some(packing) => {
                        unpacked = self.unpack(packing, held, extent.unpacked_bytes)?;
                        unpacked.as_slice()
                    }
                };
                let at = usize::try_from(within).unwrap_or(usize::MAX);
                buffer.copy_from_slice(field::slice(bytes, at, buffer.len())?);
            }
            (Form::Regular(place), None) => {
                let logical = (place.logical.checked_add(place.offset))
                    .and_then(|start| start.checked_add(within))
                    .ok_or_else(|| Error::corrupt("an extent behind every address"))?;
                data.read(&self.btrfs.forest, logical, self.proof, buffer)?;
            }
            (Form::Regular(place), Some(packing)) => {
                let bytes = match data.remembered(place.logical) {
                    Some(bytes) => bytes,
                    None => self.unpack_extent(packing, place, extent.unpacked_bytes)?,
                };
                let at = usize::try_from(place.offset.saturating_add(within));
                let at = at.unwrap_or(usize::MAX);
                buffer.copy_from_slice(field::slice(&bytes, at, buffer.len())?);
            }
        }
        Ok(())
    }

    fn unpack_extent(
        &self,
        packing: Packing,
        place: OnDisk,
        unpacked_bytes: u64,
    ) -> Result<Arc<[u8]>> {
        if place.length > MAX_PACKED_BYTES {
            return Err(Error::corrupt(format!(
                "a packed extent of {} bytes",
                place.length
            )));
        }
        let mut packed = vec![0; usize::try_from(place.length).unwrap_or(0)];
        let data = &self.btrfs.data;
        data.read(&self.btrfs.forest, place.logical, self.proof, &mut packed)?;
        let bytes: Arc<[u8]> = self.unpack(packing, &packed, unpacked_bytes)?.into();
        data.remember(place.logical, &bytes);
        Ok(bytes)
    }

    fn unpack(&self, packing: Packing, packed: &[u8], unpacked_bytes: u64) -> Result<Vec<u8>> {
        if unpacked_bytes > MAX_PACKED_BYTES {
            return Err(Error::corrupt(format!(
                "a packed extent of {unpacked_bytes} bytes"
            )));
        }
        let length = usize::try_from(unpacked_bytes).unwrap_or(0);
        let sector_bytes = usize::try_from(self.btrfs.superblock.sector_bytes).unwrap_or(4096);
        packing.unpack(packed, length, sector_bytes)
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let piece = self.piece(at)?;
            let here = take(piece.end.saturating_sub(at), &mut rest);
            self.read_piece(&piece, at, here)
                .map_err(|error| error.within(format!("inode {} at {at}", self.inode)))?;
            at = at.saturating_add(field::bytes(here.len()));
        }
        Ok(())
    }
}

impl ReadAt for Contents<'_> {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, field::bytes(buffer.len()), self.size)?;
        Ok(self.read(offset, buffer)?)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let limit = check_extent(offset, limit_bytes, self.size)?;
        let piece = self.piece(offset)?;
        Ok(Extent {
            offset,
            length_bytes: piece.end.saturating_sub(offset).min(limit),
            kind: match piece.extent.map(|(extent, _)| extent.form) {
                None | Some(Form::Hole) => ExtentKind::Unallocated,
                Some(Form::Reserved(_)) => ExtentKind::Zero,
                Some(Form::Inline | Form::Regular(_)) => ExtentKind::Data,
            },
        })
    }
}
