//! Bytes of a file, from the disk to somewhere else: in pieces, without its holes.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use block::ReadAt;

use super::folder::host_error;
use crate::{Cancellation, Error, ErrorKind, Result};

/// What is read at once.
pub(super) const PIECE_BYTES: u64 = 4 << 20;
/// Pieces at least as large, which nobody reads soon, go past the host's memory: every fresh page costs more than
/// filling it. Smaller ones are written together later.
const UNCACHED_BYTES_MIN: usize = 512 << 10;
/// Runs that are told apart; the rest of a file with more is one run.
const RUNS_MAX: usize = 100_000;

/// Bytes of a file that are no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) offset: u64,
    pub(super) length_bytes: u64,
}

impl Run {
    /// The first byte behind it.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length_bytes)
    }

    /// The same bytes in pieces that are read at once.
    pub(super) fn pieces(self) -> impl Iterator<Item = Run> {
        let end = self.end();
        let mut at = self.offset;
        std::iter::from_fn(move || {
            let length_bytes = end.saturating_sub(at).min(PIECE_BYTES);
            let piece = Run {
                offset: at,
                length_bytes,
            };
            at = piece.end();
            (length_bytes > 0).then_some(piece)
        })
    }
}

/// Where bytes stand in a file, in order; holes lie between.
pub(super) fn runs(source: &dyn ReadAt, cancel: &Cancellation) -> Result<Vec<Run>> {
    let size = source.size_bytes();
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0_u64;
    while at < size {
        cancel.check()?;
        let left = size.saturating_sub(at);
        let extent = source.extent_at(at, left)?;
        let length = extent.length_bytes.clamp(1, left);
        if !extent.kind.is_zero() {
            if runs.len() >= RUNS_MAX {
                if let Some(last) = runs.last_mut() {
                    last.length_bytes = size.saturating_sub(last.offset);
                }
                break;
            }
            match runs.last_mut().filter(|last| last.end() == at) {
                Some(last) => last.length_bytes = last.length_bytes.saturating_add(length),
                None => runs.push(Run {
                    offset: at,
                    length_bytes: length,
                }),
            }
        }
        at = at.saturating_add(length);
    }
    Ok(runs)
}

/// Reads one piece.
pub(super) fn read(source: &dyn ReadAt, piece: Run, into: &mut Vec<u8>) -> Result<()> {
    into.resize(usize::try_from(piece.length_bytes).unwrap_or(0), 0);
    Ok(source.read_at(piece.offset, into)?)
}

/// Whether what was written is read again and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// It is.
    ReadBack,
    /// The host is believed.
    None,
}

/// Whether somebody reads soon what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextUse {
    /// Its hash is wanted, or it is compared.
    Soon,
    /// Nobody that is known.
    Unknown,
}

thread_local! {
    /// What each thread copies through: as large as its largest piece was.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Copies one piece to its place, and looks whether it is there.
pub(super) fn copy(
    source: &dyn ReadAt,
    piece: Run,
    target: &File,
    (check, next): (Check, NextUse),
) -> Result<()> {
    SCRATCH.with_borrow_mut(|scratch| {
        let length = usize::try_from(piece.length_bytes).unwrap_or(usize::MAX);
        if scratch.len() < length {
            // Nothing of it is to be kept, so that it need not be copied.
            *scratch = vec![0; length.checked_next_power_of_two().unwrap_or(length)];
        }
        let bytes = scratch.get_mut(..length).unwrap_or_default();
        source.read_at(piece.offset, bytes)?;
        write(target, piece.offset, bytes, (check, next))
    })
}

/// Writes one piece at its place, and looks whether it is there.
fn write(target: &File, offset: u64, bytes: &[u8], (check, next): (Check, NextUse)) -> Result<()> {
    let written = if next == NextUse::Unknown && bytes.len() >= UNCACHED_BYTES_MIN {
        vdisk::file::write_uncached_at(target, offset, bytes)
    } else {
        target.write_all_at(bytes, offset)
    };
    written.map_err(|error| host_error("writing a file", error))?;
    if check == Check::None {
        return Ok(());
    }
    // From the disk, not from memory, wherever the host can drop what it keeps.
    target
        .sync_data()
        .map_err(|error| host_error("syncing a file", error))?;
    let length = u64::try_from(bytes.len()).unwrap_or(0);
    drop_cache(target, offset, length);
    let mut back = vec![0; bytes.len()];
    target
        .read_exact_at(&mut back, offset)
        .map_err(|error| host_error("reading a file back", error))?;
    if back != bytes {
        let what = format!("bytes from {offset} on were not what had been written");
        return Err(Error::new(ErrorKind::Io, what));
    }
    Ok(())
}

/// Asks the host to forget what it keeps of a file in memory; of all of it from `offset` on, where no length is said.
pub(super) fn drop_cache(file: &File, offset: u64, length_bytes: u64) {
    #[cfg(target_os = "linux")]
    {
        let length = std::num::NonZeroU64::new(length_bytes);
        // Advice: where it is not taken, memory is compared.
        rustix::fs::fadvise(file, offset, length, rustix::fs::Advice::DontNeed).ok();
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, offset, length_bytes);
}

/// Whether a file holds the same bytes as the source, holes read as zeros.
pub(super) fn is_equal(source: &dyn ReadAt, file: &File, cancel: &Cancellation) -> Result<bool> {
    let whole = Run {
        offset: 0,
        length_bytes: source.size_bytes(),
    };
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for piece in whole.pieces() {
        cancel.check()?;
        read(source, piece, &mut new)?;
        old.resize(new.len(), 0);
        match file.read_exact_at(&mut old, piece.offset) {
            Ok(()) if old == new => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(host_error("reading what is there", error)),
        }
    }
    Ok(true)
}
