//! The files of a case as sources of bytes.

use std::sync::Arc;

use block::{Error, ErrorKind, Extent, ExtentKind, ReadAt, Result};

use crate::case::SECTOR_BYTES;
use crate::table::{Run, Table};

const SECTOR: u64 = SECTOR_BYTES as u64;

/// One file of a case; what no run covers is zero.
pub struct SparseFile {
    size_bytes: u64,
    input: Arc<Vec<u8>>,
    /// Ascending by first sector; where two overlap, the later one hides the rest of the earlier one.
    runs: Vec<Run>,
}

/// The files of a case, in order; those without a size are left out.
pub fn files(input: &[u8]) -> Vec<Arc<dyn ReadAt>> {
    let table = Table::of(input);
    let input = Arc::new(input.to_vec());
    let sized = table
        .sizes
        .iter()
        .enumerate()
        .filter(|(_, size)| **size > 0);
    sized
        .map(|(index, size)| {
            let mut runs: Vec<Run> = table
                .runs
                .iter()
                .filter(|it| it.file == index)
                .copied()
                .collect();
            runs.sort_by_key(|run| run.first);
            let file = SparseFile {
                // Some sources cannot be larger, and no reader may depend on it.
                size_bytes: (*size).min(1 << 62),
                input: Arc::clone(&input),
                runs,
            };
            Arc::new(file) as Arc<dyn ReadAt>
        })
        .collect()
}

impl SparseFile {
    /// The run that covers a byte, and where the next one begins.
    fn at(&self, offset: u64) -> (Option<&Run>, u64) {
        let sector = offset / SECTOR;
        let after = self.runs.partition_point(|run| run.first <= sector);
        let next = self
            .runs
            .get(after)
            .map_or(u64::MAX, |run| run.first * SECTOR);
        let covering = after.checked_sub(1).and_then(|index| self.runs.get(index));
        (
            covering.filter(|run| sector < run.first + run.sectors as u64),
            next,
        )
    }
}

impl ReadAt for SparseFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes) {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("reading at {offset}"),
            ));
        }
        buffer.fill(0);
        let mut done = 0;
        while done < buffer.len() {
            let place = offset + done as u64;
            let (run, next) = self.at(place);
            let left = buffer.len() - done;
            let Some(run) = run else {
                done += usize::try_from(next - place).unwrap_or(left).min(left);
                continue;
            };
            let end = (run.first * SECTOR + run.sectors as u64 * SECTOR).min(next);
            let length = usize::try_from(end - place).unwrap_or(left).min(left);
            let from = run.at + (place - run.first * SECTOR) as usize;
            let stored = self.input.get(from..).unwrap_or_default();
            let stored = &stored[..stored.len().min(length)];
            buffer[done..done + stored.len()].copy_from_slice(stored);
            done += length;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        let left = self.size_bytes.saturating_sub(offset).min(limit_bytes);
        if left == 0 {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("extent at {offset}"),
            ));
        }
        let (run, next) = self.at(offset);
        let (end, kind) = match run {
            Some(run) => {
                let end = (run.first + run.sectors as u64) * SECTOR;
                (end.min(next), ExtentKind::Data)
            }
            None => (next, ExtentKind::Unallocated),
        };
        Ok(Extent {
            offset,
            length_bytes: left.min(end - offset),
            kind,
        })
    }
}
