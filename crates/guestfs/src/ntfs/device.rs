//! The volume below, with a cache for small reads.
//!
//! Small reads (records, index blocks, compressed chunks) come through pages of 16 KiB, at most 8 MiB of them; long reads go
//! straight to the caller's buffer. Who asks for one page behind the other (a listing, the file table from its beginning) is
//! given eight at once from the second on; nothing else is read ahead beyond a page.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use block::ReadAt;

use super::arithmetic::{add, length, shorter};
use super::cache::GenerationCache;
use crate::{Error, Result, field};

const PAGE_BYTES: u64 = 16 << 10;
/// Of one generation; the cache holds two.
const PAGES: usize = 256;
/// Read at once for who goes on from page to page.
const PAGES_AHEAD: u64 = 8;

pub(super) struct Device {
    volume: Arc<dyn ReadAt>,
    pages: Mutex<GenerationCache<u64, Arc<[u8]>>>,
    /// The page behind the one that was read from the volume last.
    expected: AtomicU64,
}

impl Device {
    pub(super) fn new(volume: Arc<dyn ReadAt>) -> Self {
        Self {
            volume,
            pages: Mutex::new(GenerationCache::new(PAGES)),
            expected: AtomicU64::new(u64::MAX),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    /// Fills the buffer from a position of the volume.
    pub(super) fn read(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        let end = add(offset, field::bytes(buffer.len()))?;
        if end > self.size_bytes() {
            return Err(Error::corrupt(format!(
                "bytes {offset}..{end} of a volume of {}",
                self.size_bytes()
            )));
        }
        if field::bytes(buffer.len()) >= PAGE_BYTES {
            return Ok(self.volume.read_at(offset, buffer)?);
        }
        while !buffer.is_empty() {
            let number = offset / PAGE_BYTES;
            let page = self.page(number)?;
            let inside = length(offset % PAGE_BYTES)?;
            let part = shorter(buffer.len(), PAGE_BYTES.saturating_sub(offset % PAGE_BYTES));
            let (head, rest) = buffer.split_at_mut(part);
            head.copy_from_slice(field::slice(&page, inside, part)?);
            offset = add(offset, field::bytes(part))?;
            buffer = rest;
        }
        Ok(())
    }

    fn page(&self, number: u64) -> Result<Arc<[u8]>> {
        let lock = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = lock().get(&number);
        if let Some(page) = cached {
            return Ok(page);
        }
        let count = if self.expected.load(Ordering::Relaxed) == number {
            PAGES_AHEAD
        } else {
            1
        };
        let offset = number.saturating_mul(PAGE_BYTES);
        let left = self.size_bytes().saturating_sub(offset);
        let mut bytes = vec![0; length(left.min(count.saturating_mul(PAGE_BYTES)))?];
        if self.volume.read_at(offset, &mut bytes).is_err() {
            // What was not asked for may be what cannot be read.
            bytes.truncate(length(PAGE_BYTES)?);
            self.volume.read_at(offset, &mut bytes)?;
        }
        self.expected
            .store(number.saturating_add(count), Ordering::Relaxed);
        let mut pages = lock();
        for (number, page) in (number..).zip(bytes.chunks(length(PAGE_BYTES)?)) {
            pages.insert(number, page.into());
        }
        drop(pages);
        bytes.truncate(length(PAGE_BYTES)?);
        Ok(bytes.into())
    }
}
