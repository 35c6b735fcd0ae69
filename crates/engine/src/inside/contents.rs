//! Where the bytes of a file lie, in terms of the disks, so that hashes of blocks can say whether they changed.
//!
//! ```text
//!   stream ─► data extents (holes and ranges never written are none)  ─┐
//!   file_ranges ─► ranges of the volume ─► ranges of one disk          ─┴─► ContentPlaces ─► signature
//! ```
//!
//! Two files with equal places and equal blocks there have equal bytes. Places are told only where that conclusion is
//! sound: contents that lie as they are (not compressed, not in metadata), on a volume that is one run of one disk.
//! Elsewhere the answer is `None` and contents have to be read. A journal that was replayed in memory may hold newer
//! bytes than the blocks: there the file's own times of change, which every write moves, are part of its places.

use std::ops::ControlFlow;

use block::{BlockIndex, ByteRange, ExtentKind};
use guestfs::FileId;
use guestfs::disk::VolumePlace;
use guestfs::filesystem::{Cleanliness, FileKind, FileTimes, Metadata, VolumeRange};

use super::Place;
use super::chain::OpenedVersion;
use crate::{Cancellation, Error, ErrorKind, Result};

/// Extents and ranges of one file beyond which its places are not told.
const PIECES_MAX: usize = 1 << 18;
const READ_BYTES: usize = 1 << 20;

/// The hash of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash(blake3::Hash);

impl std::fmt::Display for ContentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.to_hex().fmt(f)
    }
}

/// What stands for a file's bytes without reading them: equal ones mean equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentSignature(blake3::Hash);

/// Where a file's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContentPlaces {
    size_bytes: u64,
    extents: Vec<(u64, u64)>,
    /// Which disk, and what of it.
    disk: usize,
    pub(super) ranges: Vec<ByteRange>,
    /// When the file was last changed, where blocks alone do not tell.
    stamp: Option<(FileId, FileTimes)>,
}

/// Where a volume begins on the one disk that it is a run of.
pub(super) fn run_of_disk(place: &VolumePlace) -> Option<(usize, u64)> {
    match place {
        VolumePlace::Disk { disk } => Some((*disk, 0)),
        VolumePlace::Partition { disk, offset, .. } => Some((*disk, *offset)),
        VolumePlace::Logical { .. }
        | VolumePlace::InnerPartition { .. }
        | VolumePlace::Opened { .. } => None,
    }
}

/// Where a file or a folder lies on the disks, as its reader tells; `None` where it tells nothing.
pub(super) fn ranges_on_disk(
    version: &OpenedVersion,
    place: &Place,
) -> Result<Option<(usize, Vec<ByteRange>)>> {
    let Some((disk, base)) = run_of_disk(&version.inside.volume(place.volume)?.place) else {
        return Ok(None);
    };
    let mut ranges: Vec<ByteRange> = Vec::new();
    let mut visit = |range: VolumeRange| {
        ranges.push(ByteRange {
            offset: base.saturating_add(range.offset),
            length_bytes: range.length_bytes,
        });
        if ranges.len() > PIECES_MAX {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    match place.file_system.file_ranges(place.file, &mut visit) {
        Ok(()) if ranges.len() <= PIECES_MAX => Ok(Some((disk, ranges))),
        Ok(()) => Ok(None),
        Err(error) => match error.kind() {
            guestfs::ErrorKind::Io | guestfs::ErrorKind::Cancelled => Err(error.into()),
            // Reading says what is wrong with it.
            _ => Ok(None),
        },
    }
}

/// Where a file's bytes lie, as far as that is told soundly.
pub(super) fn content_places(
    version: &OpenedVersion,
    place: &Place,
    metadata: &Metadata,
) -> Result<Option<ContentPlaces>> {
    if metadata.kind != FileKind::Regular || metadata.obstacle.is_some() {
        return Ok(None);
    }
    let Some((disk, ranges)) = ranges_on_disk(version, place)? else {
        return Ok(None);
    };
    let stream = match place.file_system.open(place.file, None) {
        Ok(stream) => stream,
        Err(error) if super::list::is_local(error.kind()) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let size_bytes = stream.size_bytes();
    let (mut extents, mut at, mut data_bytes) = (Vec::<(u64, u64)>::new(), 0_u64, 0_u64);
    while at < size_bytes {
        let extent = stream.extent_at(at, size_bytes.saturating_sub(at))?;
        if extent.length_bytes == 0 || extents.len() > PIECES_MAX {
            return Ok(None);
        }
        if extent.kind == ExtentKind::Data {
            data_bytes = data_bytes.saturating_add(extent.length_bytes);
            match extents.last_mut() {
                Some((start, length)) if start.saturating_add(*length) == at => {
                    *length = length.saturating_add(extent.length_bytes);
                }
                _ => extents.push((at, extent.length_bytes)),
            }
        }
        at = at.saturating_add(extent.length_bytes);
    }
    let told = ranges
        .iter()
        .fold(0_u64, |sum, range| sum.saturating_add(range.length_bytes));
    // Bytes that lie in metadata are in no range.
    Ok((told >= data_bytes).then_some(ContentPlaces {
        size_bytes,
        extents,
        disk,
        ranges,
        stamp: stamp_of(place, metadata),
    }))
}

/// What stands in for bytes that a replayed journal may hold.
pub(super) fn stamp_of(place: &Place, metadata: &Metadata) -> Option<(FileId, FileTimes)> {
    let is_replayed = place.file_system.facts().cleanliness == Cleanliness::Replayed;
    is_replayed.then_some((
        place.file,
        FileTimes {
            accessed: None,
            ..metadata.times
        },
    ))
}

/// The stamp as bytes to hash.
pub(super) fn stamp_bytes(stamp: Option<&(FileId, FileTimes)>) -> Vec<u8> {
    let Some((file, times)) = stamp else {
        return Vec::new();
    };
    let mut bytes = [file.tree.to_le_bytes(), file.number.to_le_bytes()].concat();
    for time in [times.created, times.modified, times.changed] {
        bytes.push(u8::from(time.is_some()));
        if let Some(time) = time {
            bytes.extend_from_slice(&time.seconds.to_le_bytes());
            bytes.extend_from_slice(&time.nanoseconds.to_le_bytes());
        }
    }
    bytes
}

impl ContentPlaces {
    /// What stands for the bytes: their places in the file, and the hashes of the blocks that hold them.
    pub(super) fn signature(&self, version: &OpenedVersion) -> Result<Option<ContentSignature>> {
        let Some(disk) = version.disks.get(self.disk) else {
            return Ok(None);
        };
        let mut hasher = blake3::Hasher::new_derive_key("hikae v1 where a file's bytes lie");
        let mut number = |value: u64| {
            hasher.update(&value.to_le_bytes());
        };
        number(self.size_bytes);
        number(u64::try_from(self.extents.len()).unwrap_or(u64::MAX));
        for (offset, length) in &self.extents {
            number(*offset);
            number(*length);
        }
        hasher.update(&stamp_bytes(self.stamp.as_ref()));
        let mut hashes = disk.hashes()?;
        for range in &self.ranges {
            let first = BlockIndex::holding(range.offset);
            hasher.update(&range.offset.saturating_sub(first.offset()).to_le_bytes());
            hasher.update(&range.length_bytes.to_le_bytes());
            let mut block = first;
            while block.offset() < range.end() {
                hasher.update(hashes.block_hash(block)?.as_bytes());
                block = BlockIndex(block.0.saturating_add(1));
            }
        }
        Ok(Some(ContentSignature(hasher.finalize())))
    }
}

/// Gives a file's bytes piece by piece; holes are given without reading them.
pub(super) fn each_piece(
    place: &Place,
    cancel: &Cancellation,
    mut take: impl FnMut(&[u8]) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let reader = place.file_system.open(place.file, None)?;
    let size = reader.size_bytes();
    let mut buffer = vec![0_u8; READ_BYTES];
    let mut at = 0_u64;
    while at < size {
        cancel.check()?;
        let extent = reader.extent_at(at, size.saturating_sub(at))?;
        let end = at.saturating_add(extent.length_bytes).min(size);
        if end <= at {
            let what = format!("{}: an extent without bytes", place.display_path());
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        let is_zero = extent.kind.is_zero();
        if is_zero {
            buffer.fill(0);
        }
        while at < end {
            cancel.check()?;
            let length = usize::try_from(end.saturating_sub(at))
                .unwrap_or(usize::MAX)
                .min(READ_BYTES);
            let piece = buffer.get_mut(..length).unwrap_or_default();
            if !is_zero {
                reader.read_at(at, piece)?;
            }
            if take(piece)?.is_break() {
                return Ok(());
            }
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
    }
    Ok(())
}

/// Reads a file and hashes it.
pub(super) fn hash_contents(place: &Place, cancel: &Cancellation) -> Result<ContentHash> {
    let mut hasher = blake3::Hasher::new();
    each_piece(place, cancel, |piece| {
        hasher.update(piece);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(ContentHash(hasher.finalize()))
}
