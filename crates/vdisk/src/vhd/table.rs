//! The block allocation table and the sector bitmaps, read page by page.
//!
//! ```text
//!   table  │ entry 0 │ entry 1 │ … │     u32, big-endian: first sector of the block, or all ones when there is none
//!          └──── page of 4096 entries ────┘   at most PAGES pages are in memory, whatever the disk's size
//! ```
//!
//! **Invariants.** Memory is bounded by the constants below; nothing is believed that the table says, it is only read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use block::ReadAt;

use super::format::UNUSED_BLOCK;
use crate::Result;

/// Entries of one page.
const PAGE_ENTRIES: u64 = 4096;
/// Pages of the table kept in memory: 4 MiB, which is all of a 2 TiB disk with blocks of 2 MiB.
const PAGES: usize = 256;

/// Keeps the most recently used of many equal things; eviction looks at every one, so keep few.
pub struct Recent<T> {
    entries: HashMap<u64, (u64, T)>,
    clock: u64,
    capacity: usize,
}

impl<T: Clone> Recent<T> {
    /// Keeps at most `capacity` of them.
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            clock: 0,
            capacity: capacity.max(1),
        }
    }

    /// What is kept under the key.
    pub fn get(&mut self, key: u64) -> Option<T> {
        self.clock = self.clock.saturating_add(1);
        let entry = self.entries.get_mut(&key)?;
        entry.0 = self.clock;
        Some(entry.1.clone())
    }

    /// Keeps it, forgetting the one that was not used for longest.
    pub fn put(&mut self, key: u64, value: T) {
        self.clock = self.clock.saturating_add(1);
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            let oldest = self
                .entries
                .iter()
                .min_by_key(|(_, entry)| entry.0)
                .map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(key, (self.clock, value));
    }
}

/// The block allocation table of an image.
pub struct BlockTable {
    file: Arc<dyn ReadAt>,
    offset: u64,
    entries: u64,
    pages: Mutex<Recent<Arc<[u32]>>>,
}

impl BlockTable {
    /// The table at `offset` with as many entries as the disk needs; that it lies inside the file is the caller's check.
    pub fn new(file: Arc<dyn ReadAt>, offset: u64, entries: u64) -> Self {
        Self {
            file,
            offset,
            entries,
            pages: Mutex::new(Recent::new(PAGES)),
        }
    }

    /// Entries that mean something.
    pub fn len(&self) -> u64 {
        self.entries
    }

    /// First sector of the block, or [`UNUSED_BLOCK`].
    pub fn get(&self, index: u64) -> Result<u32> {
        let page = self.page(index / PAGE_ENTRIES)?;
        Ok(lookup(&page, index))
    }

    /// How many blocks from `index` on, at most `limit`, are absent.
    pub fn absent_run(&self, index: u64, limit: u64) -> Result<u64> {
        let end = index.saturating_add(limit).min(self.entries);
        let mut at = index;
        while at < end {
            let page = self.page(at / PAGE_ENTRIES)?;
            let page_end = (at / PAGE_ENTRIES)
                .saturating_add(1)
                .saturating_mul(PAGE_ENTRIES)
                .min(end);
            while at < page_end {
                if lookup(&page, at) != UNUSED_BLOCK {
                    return Ok(at.saturating_sub(index));
                }
                at = at.saturating_add(1);
            }
        }
        Ok(end.saturating_sub(index))
    }

    /// Every allocated block as (index, sector), in order of index, without disturbing the cache.
    pub fn for_each_allocated(&self, mut visit: impl FnMut(u64, u32) -> Result<()>) -> Result<()> {
        for number in 0..self.entries.div_ceil(PAGE_ENTRIES) {
            let first = number.saturating_mul(PAGE_ENTRIES);
            for (index, sector) in (first..).zip(self.load(number)?.iter()) {
                if *sector != UNUSED_BLOCK {
                    visit(index, *sector)?;
                }
            }
        }
        Ok(())
    }

    fn page(&self, number: u64) -> Result<Arc<[u32]>> {
        let found = self
            .pages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(number);
        if let Some(page) = found {
            return Ok(page);
        }
        let page = self.load(number)?;
        self.pages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .put(number, Arc::clone(&page));
        Ok(page)
    }

    fn load(&self, number: u64) -> Result<Arc<[u32]>> {
        let first = number.saturating_mul(PAGE_ENTRIES);
        let count = self.entries.saturating_sub(first).min(PAGE_ENTRIES);
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0).saturating_mul(4)];
        self.file.read_at(
            self.offset.saturating_add(first.saturating_mul(4)),
            &mut bytes,
        )?;
        let (entries, _) = bytes.as_chunks::<4>();
        Ok(entries
            .iter()
            .map(|entry| u32::from_be_bytes(*entry))
            .collect())
    }
}

/// An entry of a loaded page; behind the table's end nothing is allocated.
fn lookup(page: &[u32], index: u64) -> u32 {
    let slot = usize::try_from(index % PAGE_ENTRIES).unwrap_or(usize::MAX);
    page.get(slot).copied().unwrap_or(UNUSED_BLOCK)
}

/// The run of equal bits from `sector` on in a bitmap whose first sector is the highest bit of its first byte:
/// (whether they are set, how many, at most `limit`).
pub fn bit_run(bitmap: &[u8], sector: u64, limit: u64) -> (bool, u64) {
    let set = bit(bitmap, sector);
    let whole = if set { 0xFF } else { 0x00 };
    let mut length = 1_u64;
    while length < limit {
        let at = sector.saturating_add(length);
        let byte = usize::try_from(at / 8)
            .ok()
            .and_then(|index| bitmap.get(index));
        if at % 8 == 0 && byte == Some(&whole) && limit.saturating_sub(length) >= 8 {
            length = length.saturating_add(8);
        } else if byte.is_some() && bit(bitmap, at) == set {
            length = length.saturating_add(1);
        } else {
            break;
        }
    }
    (set, length.min(limit))
}

/// Whether the sector's bit is set.
pub fn bit(bitmap: &[u8], sector: u64) -> bool {
    let byte = usize::try_from(sector / 8)
        .ok()
        .and_then(|index| bitmap.get(index))
        .copied()
        .unwrap_or(0);
    byte & (0x80 >> (sector % 8)) != 0
}

/// Sets the bits of a run of sectors.
pub fn set_bits(bitmap: &mut [u8], first: u64, count: u64) {
    for sector in first..first.saturating_add(count) {
        if let Some(byte) = usize::try_from(sector / 8)
            .ok()
            .and_then(|index| bitmap.get_mut(index))
        {
            *byte |= 0x80 >> (sector % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits_agree_with_counting_them_one_by_one() {
        let bitmap: Vec<u8> = (0..64_u32)
            .map(|n| [0xFF, 0x00, 0b1100_1011, 0x01][(n * 7 % 4) as usize])
            .collect();
        for sector in 0..512_u64 {
            for limit in [1, 3, 8, 64, 512] {
                let limit = limit.min(512 - sector);
                let set = bit(&bitmap, sector);
                let expected = (0..limit)
                    .take_while(|n| bit(&bitmap, sector + n) == set)
                    .count() as u64;
                assert_eq!(
                    bit_run(&bitmap, sector, limit),
                    (set, expected),
                    "sector {sector} limit {limit}"
                );
            }
        }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut recent = Recent::new(2);
        recent.put(1, 'a');
        recent.put(2, 'b');
        assert_eq!(recent.get(1), Some('a'));
        recent.put(3, 'c');
        assert_eq!(
            (recent.get(1), recent.get(2), recent.get(3)),
            (Some('a'), None, Some('c'))
        );
    }
}
