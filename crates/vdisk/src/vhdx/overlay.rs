//! The file as it will be once its log has been replayed, without changing it.
//!
//! ```text
//!   read ──► page of the log? ──► zeroed by the log? ──► the file itself
//! ```
//!
//! **Invariants.** A read-only consumer never sees what the log is about to replace. Memory: the pages in the log, which
//! is bounded, and one interval per zero descriptor.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use block::{Error, ErrorKind, Extent, ExtentKind, ReadAt};

use super::bytes::{to_u64, to_usize};
use super::log::{ActiveSequence, LOG_SECTOR, UpdateSink};
use crate::Result;

/// A disk of 64 TiB, its bitmaps and twice as much in soft anchors: what is longer is damage.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 40;

/// What a log changes.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pages: HashMap<u64, Box<[u8]>>,
    /// First byte → first byte behind; disjoint.
    zeros: BTreeMap<u64, u64>,
    end: u64,
}

impl Overlay {
    fn is_zeroed(&self, page: u64) -> bool {
        self.zeros
            .range(..=page)
            .next_back()
            .is_some_and(|(_, end)| *end > page)
    }
}

impl UpdateSink for Overlay {
    fn page(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.pages.insert(offset, bytes.into());
        self.end = self.end.max(offset.saturating_add(LOG_SECTOR));
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = offset.saturating_add(length);
        self.pages.retain(|page, _| *page < offset || *page >= end);
        let (mut from, mut to) = (offset, end);
        // Joins what it touches, so that the intervals stay disjoint.
        while let Some((first, behind)) = self
            .zeros
            .range(..=to)
            .next_back()
            .map(|(first, behind)| (*first, *behind))
        {
            if behind < from {
                break;
            }
            from = from.min(first);
            to = to.max(behind);
            self.zeros.remove(&first);
        }
        self.zeros.insert(from, to);
        self.end = self.end.max(end);
        Ok(())
    }
}

/// The file with its log applied.
pub(super) struct ReplayedFile {
    file: Arc<dyn ReadAt>,
    overlay: Overlay,
    size: u64,
}

impl ReplayedFile {
    /// Replays into memory.
    pub(super) fn new(file: Arc<dyn ReadAt>, active: &ActiveSequence) -> Result<Self> {
        let mut overlay = Overlay::default();
        active.replay(file.as_ref(), &mut overlay)?;
        let size = file
            .size_bytes()
            .max(active.last_file_bytes)
            .max(overlay.end);
        if size > MAX_FILE_BYTES {
            return Err(crate::Error::corrupt(format!(
                "vhdx log: makes the file {size} bytes long, more than any disk needs"
            )));
        }
        Ok(Self {
            file,
            overlay,
            size,
        })
    }

    /// Reads what lies in one page: `offset` and the buffer do not cross its end.
    fn read_piece(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let within = offset % LOG_SECTOR;
        let page = offset.saturating_sub(within);
        if let Some(bytes) = self.overlay.pages.get(&page) {
            let at = to_usize(within);
            let found = bytes
                .get(at..at.saturating_add(buffer.len()))
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::Corrupt,
                        format!("vhdx log: page at {page:#x} is short"),
                    )
                })?;
            buffer.copy_from_slice(found);
            return Ok(());
        }
        if self.overlay.is_zeroed(page) {
            buffer.fill(0);
            return Ok(());
        }
        block::read_padded(self.file.as_ref(), offset, buffer)
    }
}

impl ReadAt for ReplayedFile {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let end = offset.saturating_add(to_u64(buffer.len()));
        if end > self.size {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "read of {} bytes at {offset} of {}",
                    buffer.len(),
                    self.size
                ),
            ));
        }
        // Far from everything logged, the file is read in one piece.
        if offset >= self.overlay.end {
            return block::read_padded(self.file.as_ref(), offset, buffer);
        }
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let in_page = to_usize(LOG_SECTOR.saturating_sub(at % LOG_SECTOR));
            let count = rest.len().min(in_page);
            let (head, tail) = rest.split_at_mut(count);
            self.read_piece(at, head)?;
            at = at.saturating_add(to_u64(count));
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let left = self.size.saturating_sub(offset).min(limit_bytes);
        if left == 0 {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("extent at {offset} of {}", self.size),
            ));
        }
        Ok(Extent {
            offset,
            length_bytes: left,
            kind: ExtentKind::Data,
        })
    }
}
