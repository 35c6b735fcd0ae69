//! BAT and sector bitmap pages in memory: a bounded cache, with changes that are not in the file yet.
//!
//! ```text
//!   look-up ──► dirty (BTreeMap, ordered by file offset) ──► young ──► old ──► file
//!                                                              │ full: young becomes old, old is dropped
//! ```
//!
//! **Invariants.** At most 2 × [`GENERATION_PAGES`] clean pages are kept, whatever the disk's size. A dirty page is kept
//! until its owner takes it; who writes it first (log or in place) is the owner's matter.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::ReadAt;

use super::bytes::{Fields, to_u64, to_usize};
use crate::{Error, Result};

/// Size of a page: what the log carries, and small enough for random access.
pub(super) const PAGE_BYTES: usize = 4096;
pub(super) const PAGE: u64 = 4096;
/// 4 MiB a generation.
const GENERATION_PAGES: usize = 1024;

#[derive(Default)]
struct Cache {
    dirty: BTreeMap<u64, Vec<u8>>,
    young: HashMap<u64, Arc<[u8]>>,
    old: HashMap<u64, Arc<[u8]>>,
}

/// The pages of one file.
pub(super) struct MetadataPages {
    file: Arc<dyn ReadAt>,
    cache: Mutex<Cache>,
}

impl MetadataPages {
    pub(super) fn new(file: Arc<dyn ReadAt>) -> Self {
        Self {
            file,
            cache: Mutex::new(Cache::default()),
        }
    }

    fn locked(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clean(&self, cache: &mut Cache, page: u64) -> Result<Arc<[u8]>> {
        if let Some(found) = cache.young.get(&page) {
            return Ok(Arc::clone(found));
        }
        let bytes = match cache.old.remove(&page) {
            Some(found) => found,
            None => {
                let mut bytes = vec![0; PAGE_BYTES];
                self.file.read_at(page, &mut bytes)?;
                bytes.into()
            }
        };
        if cache.young.len() >= GENERATION_PAGES {
            cache.old = std::mem::take(&mut cache.young);
        }
        cache.young.insert(page, Arc::clone(&bytes));
        Ok(bytes)
    }

    /// Shows the page that holds `offset`.
    pub(super) fn with_page<T>(&self, offset: u64, look: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let page = offset.saturating_sub(offset % PAGE);
        let mut cache = self.locked();
        if let Some(bytes) = cache.dirty.get(&page) {
            return Ok(look(bytes));
        }
        let bytes = self.clean(&mut cache, page)?;
        drop(cache);
        Ok(look(&bytes))
    }

    /// The little-endian word at an 8-byte aligned offset.
    pub(super) fn word(&self, offset: u64) -> Result<u64> {
        let at = to_usize(offset % PAGE);
        self.with_page(offset, |page| Fields::new(page, "vhdx page").u64(at))?
    }

    /// Changes bytes of one page; they must not cross its end.
    pub(super) fn change(&self, offset: u64, alter: impl FnOnce(&mut [u8])) -> Result<()> {
        let page = offset.saturating_sub(offset % PAGE);
        let at = to_usize(offset % PAGE);
        let mut cache = self.locked();
        if !cache.dirty.contains_key(&page) {
            let bytes = self.clean(&mut cache, page)?;
            cache.young.remove(&page);
            cache.dirty.insert(page, bytes.to_vec());
        }
        let bytes = cache
            .dirty
            .get_mut(&page)
            .and_then(|bytes| bytes.get_mut(at..))
            .ok_or_else(|| Error::corrupt(format!("vhdx page at {page:#x} is short")))?;
        alter(bytes);
        Ok(())
    }

    /// Sets the little-endian word at an 8-byte aligned offset.
    pub(super) fn set_word(&self, offset: u64, value: u64) -> Result<()> {
        self.change(offset, |bytes| {
            if let Some(slot) = bytes.first_chunk_mut::<8>() {
                *slot = value.to_le_bytes();
            }
        })
    }

    /// How many pages are not in the file yet.
    pub(super) fn dirty_count(&self) -> usize {
        self.locked().dirty.len()
    }

    /// The dirty pages in file order. They stay dirty until [`Self::settle`].
    pub(super) fn dirty_pages(&self) -> Vec<(u64, Vec<u8>)> {
        self.locked()
            .dirty
            .iter()
            .map(|(offset, bytes)| (*offset, bytes.clone()))
            .collect()
    }

    /// Says that these pages are in the file now.
    pub(super) fn settle(&self, pages: Vec<(u64, Vec<u8>)>) {
        let mut cache = self.locked();
        for (offset, bytes) in pages {
            cache.dirty.remove(&offset);
            if cache.young.len() < GENERATION_PAGES {
                cache.young.insert(offset, bytes.into());
            }
        }
    }

    /// Forgets clean pages of a range whose bytes were changed in the file itself.
    pub(super) fn forget(&self, offset: u64, length: u64) {
        let mut cache = self.locked();
        let end = offset.saturating_add(length);
        let Cache { young, old, .. } = &mut *cache;
        for pages in [young, old] {
            pages.retain(|page, _| page.saturating_add(PAGE) <= offset || *page >= end);
        }
    }

    /// Length of the run of equal bits that begins at `bit` of the bitmap at `bitmap_offset`, at most `limit` bits and
    /// not beyond the bit's page, and the bit's value.
    pub(super) fn bit_run(&self, bitmap_offset: u64, bit: u64, limit: u64) -> Result<(bool, u64)> {
        let byte_at = bitmap_offset.saturating_add(bit / 8);
        self.with_page(byte_at, |page| {
            let rest = page.get(to_usize(byte_at % PAGE)..).unwrap_or(&[]);
            let first = rest.first().copied().unwrap_or(0);
            let shift = u32::try_from(bit % 8).unwrap_or(0);
            let is_set = first.wrapping_shr(shift) & 1 == 1;
            // Looking for the first bit that differs: turn the wanted ones into zeros and count them.
            let fold = |byte: u8| if is_set { !byte } else { byte };
            let mut run = u64::from(fold(first).wrapping_shr(shift).trailing_zeros())
                .min(8u64.saturating_sub(u64::from(shift)));
            if run == 8u64.saturating_sub(u64::from(shift)) {
                for byte in rest.iter().skip(1) {
                    if run >= limit {
                        break;
                    }
                    let more = fold(*byte).trailing_zeros().min(8);
                    run = run.saturating_add(u64::from(more));
                    if more < 8 {
                        break;
                    }
                }
            }
            (is_set, run.min(limit))
        })
    }

    /// Sets (all ones) or clears bits `first..first + count` of the bitmap at `bitmap_offset`.
    pub(super) fn fill_bits(
        &self,
        bitmap_offset: u64,
        first: u64,
        count: u64,
        fill: Fill,
    ) -> Result<()> {
        let mut bit = first;
        let end = first.saturating_add(count);
        while bit < end {
            let byte_at = bitmap_offset.saturating_add(bit / 8);
            let bits_left_in_page = PAGE
                .saturating_sub(byte_at % PAGE)
                .saturating_mul(8)
                .saturating_sub(bit % 8);
            let stop = end.min(bit.saturating_add(bits_left_in_page));
            let origin = bit.saturating_sub(bit % 8);
            self.change(byte_at, |bytes| {
                for (index, byte) in bytes.iter_mut().enumerate() {
                    let from = origin.saturating_add(to_u64(index).saturating_mul(8));
                    if from >= stop {
                        break;
                    }
                    let mask = mask_of(bit.saturating_sub(from), stop.saturating_sub(from));
                    match fill {
                        Fill::Ones => *byte |= mask,
                        Fill::Zeros => *byte &= !mask,
                    }
                }
            })?;
            bit = stop;
        }
        Ok(())
    }
}

/// What bits become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    Ones,
    Zeros,
}

/// Bits `from..to` of a byte, both cut to 8.
fn mask_of(from: u64, to: u64) -> u8 {
    let below = |count: u64| {
        let count = u32::try_from(count.min(8)).unwrap_or(8);
        u8::try_from(1u32.wrapping_shl(count).wrapping_sub(1) & 0xFF).unwrap_or(u8::MAX)
    };
    below(to) & !below(from)
}
