//! Copying a disk into a new image.
//!
//! ```text
//!   extents ──► pieces of 2 MiB that hold data ──► read ──► zeros left out ──► write       (each thread one piece)
//!      └── zero, unallocated: skipped, or zeroed when the target is not blank
//! ```
//!
//! **Invariants.** What reads as zeros is not written, whether an extent says so or the bytes do, except in gaps of a few
//! sectors. Memory is one piece per
//! thread, at most 32 MiB. A target that takes its bytes in ascending order gets them so. An error or a cancelled copy
//! leaves no image under the target's name.

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

use std::path::Path;

use block::ReadAt;

use crate::field::bytes;
use crate::image::{self, CreateOptions, ImageWriter, WriteOrder};
use crate::pipeline::{self, CommitOrder};
use crate::{Error, ErrorKind, Result};

/// Bytes of disk that a thread takes at a time.
const PIECE_BYTES: u64 = 2 << 20;
/// Bytes are looked at for being zero in units of this many.
const GRANULE_BYTES: usize = 4096;
/// Zeros between two runs of data are written along with them up to this length: one call costs more than they do.
const MAX_GAP_BYTES: usize = 16 * 1024;
static ZEROS: [u8; GRANULE_BYTES] = [0; GRANULE_BYTES];

/// Is told how far a long operation is, and tells whether to stop.
pub trait Progress: Send + Sync {
    /// So many bytes of disk are done, of so many. Called from any thread, and seldom.
    fn advance(&self, done_bytes: u64, total_bytes: u64);

    /// Whether to stop with [`ErrorKind::Cancelled`].
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// For those who do not watch.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn advance(&self, _: u64, _: u64) {}
}

/// What the target holds where nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetContent {
    /// Zeros: a new image. Zero ranges are skipped.
    Blank,
    /// Anything: a resumed image, a used device. Zero ranges are zeroed.
    Unknown,
}

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConvertStats {
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Bytes written to the target; the rest are zeros.
    pub written_bytes: u64,
}

/// A range that one thread copies, or zeroes.
enum Piece {
    Data { offset: u64, length: u64 },
    Zero { offset: u64, length: u64 },
}

impl Piece {
    fn end(&self) -> u64 {
        match self {
            Self::Data { offset, length } | Self::Zero { offset, length } => {
                offset.saturating_add(*length)
            }
        }
    }
}

/// What a thread found in its piece.
#[derive(Default)]
struct Copied {
    read_bytes: u64,
    written_bytes: u64,
    /// For an ascending target: what of the buffer is to be written, as (offset, length) from the piece's start.
    runs: Vec<(usize, usize)>,
}

/// Copies a whole disk; the writer is not finished by it.
///
/// # Errors
/// `Invalid` when the sizes differ, `Cancelled`, and whatever reading and writing give.
pub fn copy(
    source: &dyn ReadAt,
    target: &dyn ImageWriter,
    content: TargetContent,
    progress: &dyn Progress,
) -> Result<ConvertStats> {
    let size = source.size_bytes();
    let target_size = target.info().size_bytes;
    if size != target_size {
        let context = format!("a disk of {size} bytes does not fit one of {target_size}");
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    let order = match target.order() {
        WriteOrder::Any => CommitOrder::Any,
        WriteOrder::Ascending => CommitOrder::Ascending,
    };
    let mut planner = Planner {
        source,
        content,
        at: 0,
        size,
    };
    let mut stats = ConvertStats {
        disk_bytes: size,
        ..ConvertStats::default()
    };
    let mut done: u64 = 0;
    pipeline::run(
        pipeline::thread_count(),
        order,
        move || {
            if progress.is_cancelled() {
                Err(cancelled())
            } else {
                planner.next()
            }
        },
        |piece, buffer| match *piece {
            Piece::Data { offset, length } => {
                let mut copied = read_piece(source, offset, length, buffer)?;
                if order == CommitOrder::Any {
                    write_piece(target, offset, length, content, &copied.runs, buffer)?;
                    copied.runs.clear();
                }
                Ok(copied)
            }
            Piece::Zero { offset, length } => {
                if order == CommitOrder::Any {
                    target.zero_range(offset, length)?;
                }
                Ok(Copied::default())
            }
        },
        |piece, copied, buffer| {
            if order == CommitOrder::Ascending {
                match piece {
                    Piece::Data { offset, length } => {
                        write_piece(target, offset, length, content, &copied.runs, buffer)?;
                    }
                    Piece::Zero { offset, length } => target.zero_range(offset, length)?,
                }
            }
            stats.read_bytes = stats.read_bytes.saturating_add(copied.read_bytes);
            stats.written_bytes = stats.written_bytes.saturating_add(copied.written_bytes);
            done = done.max(piece.end());
            progress.advance(done, size);
            Ok(())
        },
    )?;
    progress.advance(size, size);
    Ok(stats)
}

/// Copies a disk into a new image at `target` and publishes it; on an error nothing is left.
///
/// # Errors
/// As [`copy`] and [`image::create`].
pub fn convert(
    source: &dyn ReadAt,
    target: &Path,
    options: &CreateOptions,
    progress: &dyn Progress,
) -> Result<ConvertStats> {
    let writer = image::create(target, options)?;
    let result = copy(source, &*writer, TargetContent::Blank, progress)
        .and_then(|stats| writer.finish().map(|()| stats));
    if result.is_err() {
        // The first error is the one to tell; a partial file that cannot be removed is replaced by the next attempt.
        image::discard_partial(target).unwrap_or(());
    }
    result
}

/// Hands out the pieces of a disk in ascending order.
struct Planner<'a> {
    source: &'a dyn ReadAt,
    content: TargetContent,
    at: u64,
    size: u64,
}

impl Planner<'_> {
    fn next(&mut self) -> Result<Option<Piece>> {
        while self.at < self.size {
            let offset = self.at;
            let extent = self
                .source
                .extent_at(offset, self.size.saturating_sub(offset))?;
            if extent.kind.is_zero() {
                let length = extent
                    .length_bytes
                    .clamp(1, self.size.saturating_sub(offset));
                self.at = offset.saturating_add(length);
                if self.content == TargetContent::Unknown {
                    return Ok(Some(Piece::Zero { offset, length }));
                }
                continue;
            }
            let boundary = (offset / PIECE_BYTES)
                .saturating_add(1)
                .saturating_mul(PIECE_BYTES);
            let end = boundary.min(self.size);
            self.at = end;
            return Ok(Some(Piece::Data {
                offset,
                length: end.saturating_sub(offset),
            }));
        }
        Ok(None)
    }
}

/// Reads what of a piece may hold data; returns the runs that are not zero.
fn read_piece(
    source: &dyn ReadAt,
    offset: u64,
    length: u64,
    buffer: &mut Vec<u8>,
) -> Result<Copied> {
    let room = usize::try_from(length).unwrap_or(0);
    if buffer.len() < room {
        buffer.resize(room, 0);
    }
    let mut copied = Copied::default();
    for extent in crate::map::extents_in(source, offset, length) {
        let extent = extent?;
        let from = usize::try_from(extent.offset.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = usize::try_from(extent.length_bytes).unwrap_or(usize::MAX);
        let Some(place) = buffer
            .get_mut(from..)
            .and_then(|tail| tail.get_mut(..count))
        else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "an extent reaches out of its piece",
            ));
        };
        if extent.kind.is_zero() {
            // A short gap may be written along with its neighbours.
            place.fill(0);
            continue;
        }
        source.read_at(extent.offset, place)?;
        copied.read_bytes = copied.read_bytes.saturating_add(extent.length_bytes);
        let mut at = from;
        for granule in place.chunks(GRANULE_BYTES) {
            let is_zero = ZEROS
                .get(..granule.len())
                .is_some_and(|zeros| zeros == granule);
            if !is_zero {
                push_run(&mut copied.runs, at, granule.len());
            }
            at = at.saturating_add(granule.len());
        }
    }
    for (_, length) in &copied.runs {
        copied.written_bytes = copied.written_bytes.saturating_add(bytes(*length));
    }
    Ok(copied)
}

/// Adds a run, joined to the one before when they nearly touch.
fn push_run(runs: &mut Vec<(usize, usize)>, at: usize, length: usize) {
    let end = at.saturating_add(length);
    match runs.last_mut() {
        Some((start, so_far))
            if at.saturating_sub(start.saturating_add(*so_far)) <= MAX_GAP_BYTES =>
        {
            *so_far = end.saturating_sub(*start);
        }
        _ => runs.push((at, length)),
    }
}

/// Writes the runs of a piece, and zeroes what lies between them when the target may hold something there.
fn write_piece(
    target: &dyn ImageWriter,
    offset: u64,
    length: u64,
    content: TargetContent,
    runs: &[(usize, usize)],
    buffer: &[u8],
) -> Result<()> {
    let place = |at: usize| offset.saturating_add(bytes(at));
    let zero_between = |from: u64, to: u64| {
        if content == TargetContent::Unknown && from < to {
            target.zero_range(from, to.saturating_sub(from))
        } else {
            Ok(())
        }
    };
    let mut done = offset;
    for (at, count) in runs {
        let Some(run) = buffer.get(*at..).and_then(|tail| tail.get(..*count)) else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a run reaches out of its piece",
            ));
        };
        zero_between(done, place(*at))?;
        target.write_at(place(*at), run)?;
        done = place(at.saturating_add(*count));
    }
    zero_between(done, offset.saturating_add(length))
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the copy was told to stop")
}
