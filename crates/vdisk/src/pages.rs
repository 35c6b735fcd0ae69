//! A bounded cache of table pages, shared by all threads that read one image (qcow2, VMDK).
//!
//! A page has a power of two of at most 64 KiB and is aligned to its size in the file.
//! At most [`MAX_PAGES`] live at once; the one unused for longest goes first. Reads happen outside the lock: two threads may
//! read the same page twice, which costs time and nothing else.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use block::ReadAt;

use super::field::{array, index};
use crate::{Error, Result};

/// 16 MiB with the largest page.
const MAX_PAGES: usize = 256;
const MAX_PAGE_BYTES: u64 = 64 * 1024;

/// One page: its bytes, zero-padded behind the end of the file, and how many of them the file has.
pub(crate) struct Page {
    bytes: Box<[u8]>,
    present: usize,
    start: u64,
}

impl Page {
    /// The `N` bytes at a file offset inside the page; bytes behind the end of the file are an error.
    pub fn array<const N: usize>(&self, offset: u64, what: &str) -> Result<[u8; N]> {
        let at = index(offset.saturating_sub(self.start));
        let inside = self.bytes.get(..self.present).unwrap_or_default();
        array(inside, at, what).map_err(|_| {
            Error::corrupt(format!(
                "{what}: file offset {offset:#x} is outside the file"
            ))
        })
    }
}

struct Slot {
    page: Arc<Page>,
    used: u64,
}

#[derive(Default)]
struct Slots {
    map: HashMap<u64, Slot>,
    clock: u64,
}

/// The cache.
pub(crate) struct Pages {
    page_bytes: u64,
    slots: Mutex<Slots>,
}

impl Pages {
    /// A cache of pages of `unit_bytes` (a power of two), or 64 KiB if that is less.
    pub fn new(unit_bytes: u64) -> Self {
        Self {
            page_bytes: unit_bytes.min(MAX_PAGE_BYTES),
            slots: Mutex::default(),
        }
    }

    /// First byte behind the page that holds `offset`.
    pub fn page_end(&self, offset: u64) -> u64 {
        self.page_start(offset).saturating_add(self.page_bytes)
    }

    fn page_start(&self, offset: u64) -> u64 {
        // Page sizes are powers of two.
        offset & !self.page_bytes.saturating_sub(1)
    }

    /// The page that holds `offset`.
    pub fn get(&self, file: &dyn ReadAt, offset: u64) -> Result<Arc<Page>> {
        let start = self.page_start(offset);
        {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.clock = slots.clock.wrapping_add(1);
            let now = slots.clock;
            if let Some(slot) = slots.map.get_mut(&start) {
                slot.used = now;
                return Ok(Arc::clone(&slot.page));
            }
        }
        let mut bytes = vec![0u8; index(self.page_bytes)].into_boxed_slice();
        let present = index(file.size_bytes().saturating_sub(start)).min(bytes.len());
        if let Some(inside) = bytes.get_mut(..present).filter(|inside| !inside.is_empty()) {
            file.read_at(start, inside)?;
        }
        let page = Arc::new(Page {
            bytes,
            present,
            start,
        });
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.map.len() >= MAX_PAGES {
            let oldest = slots
                .map
                .iter()
                .min_by_key(|(_, slot)| slot.used)
                .map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                slots.map.remove(&oldest);
            }
        }
        let used = slots.clock;
        slots.map.insert(
            start,
            Slot {
                page: Arc::clone(&page),
                used,
            },
        );
        Ok(page)
    }
}
