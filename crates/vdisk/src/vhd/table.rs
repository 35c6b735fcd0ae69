//! The block allocation table and the sector bitmaps, read page by page, and changed in memory until they may be written.
//!
//! ```text
//!   table  │ entry 0 │ entry 1 │ … │     u32, big-endian: first sector of the block, or all ones when there is none
//!          └──── page of 4096 entries ────┘   at most PAGES pages are in memory, whatever the disk's size
//! ```
//!
//! **Invariants.** Memory is bounded by the constants below, plus the changed pages, of which the writer keeps few.
//! Nothing is believed that the table says, it is only read. A change is seen by readers at once and reaches the file
//! only when the writer says so, because what it points at must be durable first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{ReadAt, WriteAt};

use super::format::UNUSED_BLOCK;
use crate::Result;

/// Entries of one page.
const PAGE_ENTRIES: u64 = 4096;
/// Pages of the table kept in memory: 4 MiB, which is all of a 2 TiB disk with blocks of 2 MiB.
const PAGES: usize = 256;

/// Sector bitmaps kept in memory (512 bytes each with blocks of 2 MiB).
const BITMAPS: usize = 256;

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

/// Pages by number: recently used ones, and those that were changed and not written yet.
struct Pages<T> {
    clean: Recent<Arc<Vec<T>>>,
    changed: BTreeMap<u64, Arc<Vec<T>>>,
}

impl<T> Pages<T> {
    fn new(capacity: usize) -> Mutex<Self> {
        Mutex::new(Self {
            clean: Recent::new(capacity),
            changed: BTreeMap::new(),
        })
    }

    fn get(&mut self, number: u64) -> Option<Arc<Vec<T>>> {
        self.changed
            .get(&number)
            .cloned()
            .or_else(|| self.clean.get(number))
    }

    /// Marks a page as written; a page that was changed again meanwhile stays.
    fn written(&mut self, number: u64, page: &Arc<Vec<T>>) {
        if self
            .changed
            .get(&number)
            .is_some_and(|now| Arc::ptr_eq(now, page))
        {
            self.changed.remove(&number);
            self.clean.put(number, Arc::clone(page));
        }
    }
}

/// The block allocation table of an image.
pub struct BlockTable {
    file: Arc<dyn ReadAt>,
    offset: u64,
    entries: u64,
    pages: Mutex<Pages<u32>>,
}

impl BlockTable {
    /// The table at `offset` with as many entries as the disk needs; that it lies inside the file is the caller's check.
    pub fn new(file: Arc<dyn ReadAt>, offset: u64, entries: u64) -> Self {
        Self {
            file,
            offset,
            entries,
            pages: Pages::new(PAGES),
        }
    }

    /// First sector of the block, or [`UNUSED_BLOCK`].
    pub fn get(&self, index: u64) -> Result<u32> {
        let page = self.page(index / PAGE_ENTRIES)?;
        Ok(lookup(&page, index))
    }

    /// Changes an entry in memory; [`BlockTable::write_changed`] writes it.
    pub fn set(&self, index: u64, sector: u32) -> Result<()> {
        let number = index / PAGE_ENTRIES;
        let page = self.page(number)?;
        let mut pages = lock(&self.pages);
        let page = pages.changed.entry(number).or_insert(page);
        if let Some(entry) = slot(index).and_then(|slot| Arc::make_mut(page).get_mut(slot)) {
            *entry = sector;
        }
        Ok(())
    }

    /// Pages that wait to be written.
    pub fn changed_pages(&self) -> usize {
        lock(&self.pages).changed.len()
    }

    /// Writes every changed page, without flushing.
    pub fn write_changed(&self, file: &dyn WriteAt) -> Result<()> {
        let changed: Vec<_> = lock(&self.pages)
            .changed
            .iter()
            .map(|(number, page)| (*number, Arc::clone(page)))
            .collect();
        for (number, page) in changed {
            let bytes: Vec<u8> = page.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            file.write_at(self.page_offset(number), &bytes)?;
            lock(&self.pages).written(number, &page);
        }
        Ok(())
    }

    /// How many blocks from `index` on, at most `limit`, are absent.
    pub fn absent_run(&self, index: u64, limit: u64) -> Result<u64> {
        let end = index.saturating_add(limit).min(self.entries);
        let mut at = index;
        while at < end {
            let page = self.page(at / PAGE_ENTRIES)?;
            let next_page = (at / PAGE_ENTRIES)
                .saturating_add(1)
                .saturating_mul(PAGE_ENTRIES);
            while at < next_page.min(end) {
                if lookup(&page, at) != UNUSED_BLOCK {
                    return Ok(at.saturating_sub(index));
                }
                at = at.saturating_add(1);
            }
        }
        Ok(end.saturating_sub(index))
    }

    /// Every allocated block as (index, sector), in order of index, as the file has it, without disturbing the cache.
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

    fn page(&self, number: u64) -> Result<Arc<Vec<u32>>> {
        let found = lock(&self.pages).get(number);
        if let Some(page) = found {
            return Ok(page);
        }
        let page = self.load(number)?;
        lock(&self.pages).clean.put(number, Arc::clone(&page));
        Ok(page)
    }

    fn page_offset(&self, number: u64) -> u64 {
        self.offset
            .saturating_add(number.saturating_mul(PAGE_ENTRIES * 4))
    }

    fn load(&self, number: u64) -> Result<Arc<Vec<u32>>> {
        let first = number.saturating_mul(PAGE_ENTRIES);
        let count = self.entries.saturating_sub(first).min(PAGE_ENTRIES);
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0).saturating_mul(4)];
        self.file.read_at(self.page_offset(number), &mut bytes)?;
        let (entries, _) = bytes.as_chunks::<4>();
        Ok(Arc::new(
            entries
                .iter()
                .map(|entry| u32::from_be_bytes(*entry))
                .collect(),
        ))
    }
}

/// The sector bitmaps of a differencing image, by block.
pub struct Bitmaps {
    file: Arc<dyn ReadAt>,
    bytes: usize,
    pages: Mutex<Pages<u8>>,
    /// Where each changed bitmap lies.
    places: Mutex<BTreeMap<u64, u64>>,
}

impl Bitmaps {
    /// Bitmaps of this many bytes each.
    pub fn new(file: Arc<dyn ReadAt>, bytes: usize) -> Self {
        Self {
            file,
            bytes,
            pages: Pages::new(BITMAPS),
            places: Mutex::default(),
        }
    }

    /// The bitmap of a block that begins at `block_start` in the file.
    pub fn get(&self, index: u64, block_start: u64) -> Result<Arc<Vec<u8>>> {
        let found = lock(&self.pages).get(index);
        if let Some(bitmap) = found {
            return Ok(bitmap);
        }
        let mut bytes = vec![0; self.bytes];
        self.file.read_at(block_start, &mut bytes)?;
        let bitmap = Arc::new(bytes);
        lock(&self.pages).clean.put(index, Arc::clone(&bitmap));
        Ok(bitmap)
    }

    /// Marks a run of sectors as the child's own, in memory.
    pub fn set(&self, index: u64, block_start: u64, first: u64, count: u64) -> Result<()> {
        let bitmap = self.get(index, block_start)?;
        if bit_run(&bitmap, first, count) == (true, count) {
            return Ok(());
        }
        let mut pages = lock(&self.pages);
        let bitmap = pages.changed.entry(index).or_insert(bitmap);
        set_bits(Arc::make_mut(bitmap).as_mut_slice(), first, count);
        lock(&self.places).insert(index, block_start);
        Ok(())
    }

    /// Bitmaps that wait to be written.
    pub fn changed_pages(&self) -> usize {
        lock(&self.pages).changed.len()
    }

    /// Writes every changed bitmap, without flushing.
    pub fn write_changed(&self, file: &dyn WriteAt) -> Result<()> {
        let changed: Vec<_> = lock(&self.pages)
            .changed
            .iter()
            .map(|(index, bits)| (*index, Arc::clone(bits)))
            .collect();
        for (index, bitmap) in changed {
            let place = lock(&self.places).get(&index).copied();
            if let Some(place) = place {
                file.write_at(place, &bitmap)?;
            }
            lock(&self.pages).written(index, &bitmap);
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn slot(index: u64) -> Option<usize> {
    usize::try_from(index % PAGE_ENTRIES).ok()
}

/// An entry of a loaded page; behind the table's end nothing is allocated.
fn lookup(page: &[u32], index: u64) -> u32 {
    slot(index)
        .and_then(|slot| page.get(slot))
        .copied()
        .unwrap_or(UNUSED_BLOCK)
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
        if at.is_multiple_of(8) && byte == Some(&whole) && limit.saturating_sub(length) >= 8 {
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
fn set_bits(bitmap: &mut [u8], first: u64, count: u64) {
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
