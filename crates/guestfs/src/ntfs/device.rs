//! The volume below, with a cache for small reads.
//!
//! Small reads (records, index blocks, compressed chunks) come through pages of 16 KiB, at most 8 MiB of them; long reads go
//! straight to the caller's buffer. Who asks for one page behind the other (a listing, the file table from its beginning) is
//! given eight at once from the second on, and so are several who do so at different places; nothing else is read ahead beyond
//! a page.

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
/// Places that somebody may go on at.
const PLACES: usize = 8;

pub(super) struct Device {
    volume: Arc<dyn ReadAt>,
    pages: Mutex<GenerationCache<u64, Arc<[u8]>>>,
    expected: Mutex<Expected>,
}

/// The pages behind those that were read from the volume last.
struct Expected {
    pages: [u64; PLACES],
    oldest: usize,
}

impl Expected {
    /// How many pages are read for who asks for one.
    fn count(&mut self, number: u64) -> u64 {
        if let Some(place) = self.pages.iter_mut().find(|page| **page == number) {
            *place = number.saturating_add(PAGES_AHEAD);
            return PAGES_AHEAD;
        }
        if let Some(place) = self.pages.get_mut(self.oldest) {
            *place = number.saturating_add(1);
        }
        self.oldest = self.oldest.saturating_add(1) % PLACES;
        1
    }
}

impl Device {
    pub(super) fn new(volume: Arc<dyn ReadAt>) -> Self {
        Self {
            volume,
            pages: Mutex::new(GenerationCache::new(PAGES)),
            expected: Mutex::new(Expected {
                pages: [u64::MAX; PLACES],
                oldest: 0,
            }),
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
        let count = {
            let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
            expected.count(number)
        };
        let offset = number.saturating_mul(PAGE_BYTES);
        let left = self.size_bytes().saturating_sub(offset);
        let mut bytes = vec![0; length(left.min(count.saturating_mul(PAGE_BYTES)))?];
        if self.volume.read_at(offset, &mut bytes).is_err() {
            // What was not asked for may be what cannot be read.
            bytes.truncate(length(PAGE_BYTES)?);
            self.volume.read_at(offset, &mut bytes)?;
        }
        let mut pages = lock();
        for (number, page) in (number..).zip(bytes.chunks(length(PAGE_BYTES)?)) {
            pages.insert(number, page.into());
        }
        drop(pages);
        bytes.truncate(length(PAGE_BYTES)?);
        Ok(bytes.into())
    }
}
