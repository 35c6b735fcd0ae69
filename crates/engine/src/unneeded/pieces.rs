//! Where volumes lie on the disk.
//!
//! ```text
//!   volume   [ piece 0      ][ piece 1 ][ piece 2  ]      ascending, without gaps
//!   disk     ..[ 1 ]....[ 0          ]..[ 2        ]..    anywhere; byte for byte
//! ```
//!
//! Only a volume whose every byte has one place has pieces at all: of mirrors, parity, thin and encrypted volumes nothing
//! is left out.

use std::collections::HashSet;
use std::sync::Arc;

use block::{Extent, Origin, ReadAt};
use guestfs::disk::{Volume, VolumePlace};
use guestfs::probe::ContentKind;

use crate::inside::InsideDisks;

/// Most pieces that a volume may have: 64 GiB in stripes of 64 KiB.
const MAX_PIECES: usize = 1 << 20;

/// The disk that everything lies on.
pub(super) struct Anchored(pub Arc<dyn ReadAt>);

impl ReadAt for Anchored {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.0.extent_at(offset, limit_bytes)
    }

    fn origin_at(&self, offset: u64, limit_bytes: u64) -> Option<Origin> {
        let left = self.0.size_bytes().saturating_sub(offset);
        Some(Origin {
            disk_offset: offset,
            length_bytes: left.min(limit_bytes),
        })
        .filter(|origin| origin.length_bytes > 0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    volume_offset: u64,
    disk_offset: u64,
    length_bytes: u64,
}

/// A volume as pieces of the disk.
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    size_bytes: u64,
}

/// The pieces of a volume, if all of them are known.
pub(super) fn of(volume: &Volume) -> Option<Pieces> {
    let reader = volume.reader.as_ref().ok()?;
    let size_bytes = reader.size_bytes();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = 0;
    while at < size_bytes {
        let origin = reader.origin_at(at, size_bytes.saturating_sub(at))?;
        if origin.length_bytes == 0 {
            return None;
        }
        match pieces.last_mut() {
            Some(last)
                if last.disk_offset.checked_add(last.length_bytes) == Some(origin.disk_offset) =>
            {
                last.length_bytes = last.length_bytes.checked_add(origin.length_bytes)?;
            }
            _ => pieces.push(Piece {
                volume_offset: at,
                disk_offset: origin.disk_offset,
                length_bytes: origin.length_bytes,
            }),
        }
        if pieces.len() > MAX_PIECES {
            return None;
        }
        at = at.checked_add(origin.length_bytes)?;
    }
    (at == size_bytes).then_some(Pieces { pieces, size_bytes })
}

impl Pieces {
    /// Length of the volume.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The places on the disk of a range of the volume, in the order of the volume: first byte and the one behind the last.
    pub(super) fn places(
        &self,
        offset: u64,
        length_bytes: u64,
    ) -> impl Iterator<Item = (u64, u64)> {
        let end = offset.saturating_add(length_bytes);
        let first = self.pieces.partition_point(|piece| {
            piece.volume_offset.saturating_add(piece.length_bytes) <= offset
        });
        let behind = self.pieces.get(first..).unwrap_or_default();
        behind
            .iter()
            .take_while(move |piece| piece.volume_offset < end)
            .filter_map(move |piece| {
                let skipped = offset.saturating_sub(piece.volume_offset);
                let cut = piece
                    .volume_offset
                    .saturating_add(piece.length_bytes)
                    .saturating_sub(end);
                let from = piece.disk_offset.saturating_add(skipped);
                let to = piece
                    .disk_offset
                    .saturating_add(piece.length_bytes.saturating_sub(cut));
                (from < to).then_some((from, to))
            })
    }

    /// The volume, read by its pieces.
    pub(super) fn reader<'a>(&'a self, disk: &'a dyn ReadAt) -> PieceReader<'a> {
        PieceReader { pieces: self, disk }
    }
}

/// Reads a volume by its pieces.
pub(super) struct PieceReader<'a> {
    pieces: &'a Pieces,
    disk: &'a dyn ReadAt,
}

impl ReadAt for PieceReader<'_> {
    fn size_bytes(&self) -> u64 {
        self.pieces.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        if offset
            .checked_add(length)
            .is_none_or(|end| end > self.pieces.size_bytes)
        {
            let what = format!("{length} bytes at {offset} of {}", self.pieces.size_bytes);
            return Err(block::Error::new(block::ErrorKind::OutOfRange, what));
        }
        let mut rest = buffer;
        for (from, to) in self.pieces.places(offset, length) {
            let here = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at_mut(here.min(rest.len()));
            self.disk.read_at(from, part)?;
            rest = behind;
        }
        Ok(())
    }
}

/// What of the disks overlaps that should not.
pub(super) struct Overlaps {
    /// For each volume, the name of another that has some of its bytes. What carries other volumes does not count.
    pub(super) volumes: Vec<Option<String>>,
    /// Two volumes, one of which carries others, that are not within one another: which of the carried ones have bytes in
    /// common is not known.
    pub(super) carriers: Option<(String, String)>,
}

/// Bytes of the disk, whose they are, and whether that carries other volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u64,
    end: u64,
    volume: usize,
    carries: bool,
}

/// The first two that overlap although one carries volumes and the other is not one of those: what is carried lies within
/// what carries it.
fn crossing(mut spans: Vec<Span>) -> Option<(usize, usize)> {
    // What may hold others comes before them.
    spans.sort_unstable_by_key(|it| (it.start, std::cmp::Reverse(it.end), !it.carries));
    let mut around: Vec<Span> = Vec::new();
    for span in spans {
        around.retain(|outer| outer.end > span.start);
        let bad = around.iter().find(|outer| {
            outer.volume != span.volume
                && (outer.carries || span.carries)
                && (span.end > outer.end || !outer.carries)
        });
        if let Some(outer) = bad {
            return Some((outer.volume, span.volume));
        }
        around.push(span);
    }
    None
}

/// Looks for overlaps.
pub(super) fn overlapping<'a>(
    inside: &InsideDisks,
    pieces: impl Iterator<Item = Option<&'a Pieces>>,
) -> Overlaps {
    let sets: HashSet<&str> = inside
        .volumes()
        .filter_map(|(_, volume)| match &volume.place {
            VolumePlace::InnerPartition { set, .. } => Some(set.as_str()),
            _ => None,
        })
        .collect();
    let volumes: Vec<&Volume> = inside.volumes().map(|(_, volume)| volume).collect();
    let mut found = vec![None; volumes.len()];
    let mut all: Vec<(u64, u64, usize)> = Vec::new();
    let mut spans = Vec::new();
    for (index, (volume, pieces)) in volumes.iter().zip(pieces).enumerate() {
        let is_plain = matches!(
            volume.content.kind,
            ContentKind::FileSystem(_) | ContentKind::Swap
        );
        let carries =
            volume.content.kind.is_member() || (!is_plain && sets.contains(volume.name.as_str()));
        spans.extend(
            pieces
                .iter()
                .flat_map(|pieces| &pieces.pieces)
                .map(|piece| Span {
                    start: piece.disk_offset,
                    end: piece.disk_offset.saturating_add(piece.length_bytes),
                    volume: index,
                    carries,
                }),
        );
        if let Some(pieces) = pieces.filter(|_| !carries) {
            all.extend(pieces.pieces.iter().map(|piece| {
                let end = piece.disk_offset.saturating_add(piece.length_bytes);
                (piece.disk_offset, end, index)
            }));
        }
    }
    all.sort_unstable();
    // The one that reaches furthest so far.
    let mut furthest: Option<(u64, usize)> = None;
    for (start, end, index) in all {
        if let Some((before, other)) = furthest
            && before > start
        {
            for (one, two) in [(index, other), (other, index)] {
                let name = volumes.get(two).map(|volume| volume.name.clone());
                if let Some(slot) = found.get_mut(one) {
                    *slot = name;
                }
            }
        }
        if furthest.is_none_or(|(before, _)| end > before) {
            furthest = Some((end, index));
        }
    }
    let name = |index: usize| volumes.get(index).map(|volume| volume.name.clone());
    let crossing = crossing(spans);
    Overlaps {
        volumes: found,
        carriers: crossing.and_then(|(one, other)| Some((name(one)?, name(other)?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_lies_within_what_carries_it() {
        let span = |start, end, volume, carries| Span {
            start,
            end,
            volume,
            carries,
        };
        // A physical volume with two logical ones, one of them in two pieces, and one beside it.
        let nested = vec![
            span(50, 60, 2, false),
            span(10, 100, 0, true),
            span(20, 40, 1, false),
            span(70, 100, 1, false),
            span(100, 120, 3, false),
        ];
        assert_eq!(crossing(nested.clone()), None);
        let with = |more| [nested.clone(), vec![more]].concat();
        // Members over each other, a member over a plain volume's end, and within a plain volume.
        assert_eq!(crossing(with(span(90, 110, 4, true))), Some((0, 4)));
        assert_eq!(crossing(with(span(110, 130, 4, true))), Some((3, 4)));
        assert_eq!(crossing(with(span(102, 110, 4, true))), Some((3, 4)));
        assert_eq!(crossing(with(span(5, 15, 4, false))), Some((4, 0)));
        // Two plain ones are not for here.
        assert_eq!(crossing(with(span(110, 130, 4, false))), None);
    }
}
