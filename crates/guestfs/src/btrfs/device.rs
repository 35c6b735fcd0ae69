//! The devices of a file system, one behind the other in one volume.
//!
//! ```text
//!   volume   [ device of the newest superblock ][ another ][ … ]     each as long as it says itself
//!              0                                 base       base
//! ```
//!
//! A file system on one device is its own volume. One on several is put together by [`super::pool`] in this form, in any
//! order but the first; devices that are missing are left out, and reading what only they hold names them.

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

use block::ReadAt;

use super::chunk::{Chunk, ChunkMap, Profile, Stripe, UnitPlace};
use super::superblock::{DeviceId, Superblock};
use crate::volume::galois;
use crate::{Error, ErrorKind, Result, field};

/// More than any machine has.
const MAX_DEVICES: usize = 4096;

/// A device that is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) id: DeviceId,
    /// Where it begins in the volume.
    pub(super) base: u64,
    pub(super) size_bytes: u64,
}

/// Those that are there.
pub(super) struct Devices {
    volume: Arc<dyn ReadAt>,
    members: Vec<Member>,
}

impl Devices {
    /// Finds the devices in a volume, and the superblock that counts.
    pub(super) fn find(volume: Arc<dyn ReadAt>) -> Result<(Superblock, Self)> {
        let Some(first) = Superblock::read(&*volume, 0)? else {
            return Err(Error::corrupt("no superblock of Btrfs"));
        };
        if first.device_count <= 1 {
            let member = Member {
                id: first.device,
                base: 0,
                size_bytes: volume.size_bytes(),
            };
            let members = vec![member];
            return Ok((first, Self { volume, members }));
        }
        let mut members: Vec<Member> = Vec::new();
        let mut base = 0_u64;
        let mut next = Some(first.clone());
        while let Some(superblock) = next.take() {
            let left = volume.size_bytes().saturating_sub(base);
            let size_bytes = superblock.device_bytes.min(left);
            if size_bytes == 0 || members.len() >= MAX_DEVICES {
                break;
            }
            if members.iter().all(|known| known.id != superblock.device) {
                members.push(Member {
                    id: superblock.device,
                    base,
                    size_bytes,
                });
            }
            base = base.saturating_add(size_bytes);
            if field::bytes(members.len()) < first.device_count && base < volume.size_bytes() {
                // What follows and is none of Btrfs belongs to nobody.
                next = Superblock::read(&*volume, base).unwrap_or(None);
            }
        }
        Ok((first, Self { volume, members }))
    }

    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// The device that holds a stripe.
    pub(super) fn member(&self, stripe: &Stripe) -> Result<&Member> {
        self.members
            .iter()
            .find(|member| member.id == stripe.device)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "device {} ({}) is missing",
                        stripe.device_number, stripe.device
                    ),
                )
            })
    }

    /// Bytes of a device at a place of a stripe.
    fn read_stripe(&self, stripe: &Stripe, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let member = self.member(stripe)?;
        let end = offset.saturating_add(field::bytes(buffer.len()));
        if end > member.size_bytes {
            return Err(Error::corrupt(format!(
                "{offset} lies behind the end of device {}",
                stripe.device_number
            )));
        }
        let at = member.base.saturating_add(offset);
        Ok(self.volume.read_at(at, buffer)?)
    }

    /// Bytes at a logical address, from one of the copies.
    pub(super) fn read(
        &self,
        chunks: &ChunkMap,
        logical: u64,
        copy: usize,
        buffer: &mut [u8],
    ) -> Result<()> {
        let mut at = logical;
        let mut rest = buffer;
        while !rest.is_empty() {
            let chunk = chunks.at(at)?;
            let (place, longest) = chunk.unit(at.saturating_sub(chunk.logical));
            let here = crate::volume::pieces::take(longest, &mut rest);
            self.read_unit(chunk, place, copy, here)?;
            at = at.saturating_add(field::bytes(here.len()));
        }
        Ok(())
    }

    fn read_unit(
        &self,
        chunk: &Chunk,
        place: UnitPlace,
        copy: usize,
        buffer: &mut [u8],
    ) -> Result<()> {
        if let Profile::Parity { parities } = chunk.profile
            && copy > 0
        {
            return self.rebuild(chunk, place, parities, copy, buffer);
        }
        let stripe = chunk.stripe_of(place, copy).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("chunk {} has no copy {copy}", chunk.logical),
            )
        })?;
        self.read_stripe(stripe, chunk.offset_of(stripe, place), buffer)
    }

    /// A datum from the others of its row: copy 1 prefers the first parity, copy 2 the second.
    fn rebuild(
        &self,
        chunk: &Chunk,
        place: UnitPlace,
        parities: usize,
        copy: usize,
        buffer: &mut [u8],
    ) -> Result<()> {
        let count = chunk.data_stripes();
        let read = |column: usize| -> Result<Vec<u8>> {
            let index = chunk.rotated(place.row, column);
            let stripe = (chunk.stripes.get(index)).ok_or_else(|| Error::corrupt("no stripe"))?;
            let mut bytes = vec![0; buffer.len()];
            self.read_stripe(stripe, chunk.offset_of(stripe, place), &mut bytes)?;
            Ok(bytes)
        };
        let (mut plain, mut weighted) = (vec![0; buffer.len()], vec![0; buffer.len()]);
        let mut lost = None;
        for column in (0..count).filter(|column| *column != place.column) {
            match read(column) {
                Ok(bytes) => {
                    galois::add(&mut plain, &bytes);
                    if parities > 1 {
                        galois::add_scaled(&mut weighted, &bytes, galois::power(column));
                    }
                }
                Err(error) if lost.is_some() => return Err(error),
                Err(_) => lost = Some(column),
            }
        }
        let first = read(count);
        let second = || read(count.saturating_add(1));
        let own = galois::power(place.column);
        match (lost, first) {
            (None, Ok(parity)) if copy == 1 => {
                galois::add(&mut plain, &parity);
                buffer.copy_from_slice(&plain);
            }
            (None, Err(error)) if parities < 2 => return Err(error),
            (None, _) => {
                galois::add(&mut weighted, &second()?);
                galois::scale(&mut weighted, galois::inverse(own));
                buffer.copy_from_slice(&weighted);
            }
            (Some(_), Err(error)) => return Err(error),
            (Some(other), Ok(_)) if parities < 2 => {
                read(other)?;
                return Err(Error::corrupt("a member came back"));
            }
            (Some(other), Ok(parity)) => {
                // own·x + g^o·y = Q', x + y = P': x = (Q' + g^o·P') / (own + g^o).
                galois::add(&mut plain, &parity);
                galois::add(&mut weighted, &second()?);
                let theirs = galois::power(other);
                galois::add_scaled(&mut weighted, &plain, theirs);
                galois::scale(&mut weighted, galois::inverse(own ^ theirs));
                buffer.copy_from_slice(&weighted);
            }
        }
        Ok(())
    }
}
