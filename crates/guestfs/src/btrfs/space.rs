//! What of the devices is in use.
//!
//! ```text
//!   each device: first MiB │ superblocks │ chunk's stripe ─► extents of the chunk in the extent tree ─► bytes on this stripe
//!                                                          + what a log holds besides
//! ```
//!
//! **Invariants.** All copies count as used, of rows with parity the whole row. The extent tree knows all that the last
//! commit needs, its own nodes included; what a log needs is known from the log. Told in the order of the volume.

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

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};

use super::Btrfs;
use super::chunk::Chunk;
use super::superblock::{PLACES, SUPERBLOCK_BYTES};
use super::tree::{Key, Tree, kind};
use crate::filesystem::VolumeRange;
use crate::{Error, Result, field};

/// Linux keeps the first MiB of each device for boot loaders.
const HEAD_BYTES: u64 = 1 << 20;

/// A chunk's stripe on a device.
struct Part<'c> {
    start: u64,
    base: u64,
    chunk: &'c Chunk,
    index: usize,
}

/// Joins what touches, and puts in at its place what was known before.
struct Joined<'v> {
    known: VecDeque<Range<u64>>,
    open: Option<Range<u64>>,
    visit: &'v mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
}

impl Joined<'_> {
    fn add(&mut self, range: Range<u64>) -> ControlFlow<()> {
        while let Some(known) = self.known.front() {
            if known.start > range.start {
                break;
            }
            let known = known.clone();
            self.known.pop_front();
            self.join(known)?;
        }
        self.join(range)
    }

    fn join(&mut self, range: Range<u64>) -> ControlFlow<()> {
        match &mut self.open {
            Some(open) if range.start <= open.end => {
                open.end = open.end.max(range.end);
                ControlFlow::Continue(())
            }
            open => open
                .replace(range)
                .map_or(ControlFlow::Continue(()), |done| {
                    (self.visit)(VolumeRange {
                        offset: done.start,
                        length_bytes: done.end.saturating_sub(done.start),
                    })
                }),
        }
    }

    fn finish(mut self) -> ControlFlow<()> {
        while let Some(known) = self.known.pop_front() {
            self.join(known)?;
        }
        match self.open.take() {
            Some(done) => (self.visit)(VolumeRange {
                offset: done.start,
                length_bytes: done.end.saturating_sub(done.start),
            }),
            None => ControlFlow::Continue(()),
        }
    }
}

/// Tells all that is in use.
pub(super) fn used_ranges(
    btrfs: &Btrfs,
    visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
) -> Result<()> {
    let extents = btrfs.tree(super::EXTENT_TREE)?;
    let parts = parts(btrfs)?;
    let mut joined = Joined {
        known: known(btrfs)?,
        open: None,
        visit,
    };
    for part in &parts {
        if tell_part(btrfs, &extents, part, &mut joined)?.is_break() {
            return Ok(());
        }
    }
    let _ = joined.finish();
    Ok(())
}

/// All stripes in the order of the volume.
fn parts(btrfs: &Btrfs) -> Result<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    for chunk in btrfs.forest.chunks.iter() {
        for (index, stripe) in chunk.stripes.iter().enumerate() {
            let member = btrfs.forest.devices.member(stripe)?;
            let base = member.base;
            if stripe.offset.saturating_add(chunk.stripe_bytes()) > member.size_bytes {
                return Err(Error::corrupt(format!(
                    "chunk {} reaches behind the end of device {}",
                    chunk.logical, stripe.device_number
                )));
            }
            parts.push(Part {
                start: base.saturating_add(stripe.offset),
                base,
                chunk,
                index,
            });
        }
    }
    parts.sort_by_key(|part| part.start);
    for (one, next) in parts.iter().zip(parts.iter().skip(1)) {
        if one.start.saturating_add(one.chunk.stripe_bytes()) > next.start {
            return Err(Error::corrupt(format!(
                "chunks {} and {} lie over each other",
                one.chunk.logical, next.chunk.logical
            )));
        }
    }
    Ok(parts)
}

/// What is in use whatever the extent tree says: the heads and superblocks of the devices, and what a log holds.
fn known(btrfs: &Btrfs) -> Result<VecDeque<Range<u64>>> {
    let mut known = Vec::new();
    for member in btrfs.forest.devices.members() {
        let end = member.base.saturating_add(member.size_bytes);
        let mut add = |offset: u64, length: u64| {
            let start = member.base.saturating_add(offset);
            if start < end {
                known.push(start..start.saturating_add(length).min(end));
            }
        };
        add(0, HEAD_BYTES);
        for place in PLACES {
            add(place, field::bytes(SUPERBLOCK_BYTES));
        }
    }
    for range in &btrfs.logged {
        let chunk = btrfs.forest.chunks.at(range.start)?;
        for (index, stripe) in chunk.stripes.iter().enumerate() {
            let base = btrfs.forest.devices.member(stripe)?.base;
            let _ = chunk.on_stripe(index, range.clone(), &mut |one| {
                known.push(base.saturating_add(one.start)..base.saturating_add(one.end));
                ControlFlow::Continue(())
            });
        }
    }
    known.sort_by_key(|range| (range.start, range.end));
    Ok(known.into())
}

fn tell_part(
    btrfs: &Btrfs,
    extents: &Tree,
    part: &Part<'_>,
    joined: &mut Joined<'_>,
) -> Result<ControlFlow<()>> {
    let node_bytes = u64::from(btrfs.superblock.node_bytes);
    let chunk = part.chunk;
    let mut is_stopped = false;
    let mut known_end = chunk.logical;
    let from = Key::new(chunk.logical, 0, 0);
    let to = Key::new(chunk.end().saturating_sub(1), u8::MAX, u64::MAX);
    btrfs.forest.walk(extents, from..=to, &mut |key, _| {
        let length = match key.kind {
            kind::EXTENT => key.offset,
            kind::METADATA => node_bytes,
            _ => return Ok(ControlFlow::Continue(())),
        };
        let end = key.object.checked_add(length);
        let Some(end) = end.filter(|end| *end <= chunk.end()) else {
            return Err(Error::corrupt(format!(
                "extent {} reaches out of its chunk",
                key.object
            )));
        };
        if key.object < known_end {
            return Err(Error::corrupt(format!(
                "extent {} lies in the one before it",
                key.object
            )));
        }
        known_end = end;
        let flow = chunk.on_stripe(part.index, key.object..end, &mut |one| {
            joined.add(part.base.saturating_add(one.start)..part.base.saturating_add(one.end))
        });
        is_stopped = flow.is_break();
        Ok(flow)
    })?;
    Ok(if is_stopped {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    })
}
