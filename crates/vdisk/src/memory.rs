//! Files that live in memory: a sparse one, and one that loses power when told to.
//!
//! ```text
//!   MemoryFile    size ─┐   pages (4 KiB, absent = zeros, shared copy-on-write between snapshots)
//!
//!   CrashFile     durable image ◄── flush ── pending changes ◄── write / zero / set_size
//!                      └──────────── survivors(loss) ───────────────┘   what a reboot finds
//! ```
//!
//! **Invariants.** A page that is absent reads as zeros; writing zeros to an absent page keeps it absent, so that a
//! 64 TiB disk costs what is in it. A crash never loses what a returned `flush` covered, and never changes anything
//! else than what is pending. Randomness comes from a seed, nothing here touches the operating system.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use block::{Error, ErrorKind, Extent, ExtentKind, ReadAt, Result, WriteAt};

const PAGE_BYTES: usize = 4096;
const PAGE: u64 = 4096;
/// What a disk tears: the unit that is written whole or not at all.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Default)]
struct Pages {
    size: u64,
    pages: HashMap<u64, Arc<Vec<u8>>>,
}

impl Pages {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "read of {} bytes at {offset} of {}",
                    buffer.len(),
                    self.size
                ),
            ));
        }
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let inside = (at % PAGE) as usize;
            let count = rest.len().min(PAGE_BYTES - inside);
            let (head, tail) = rest.split_at_mut(count);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => head.copy_from_slice(&page[inside..inside + count]),
                None => head.fill(0),
            }
            at += count as u64;
            rest = tail;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, buffer: &[u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).ok_or_else(|| {
            Error::new(
                ErrorKind::OutOfRange,
                format!("write at {offset} leaves 64 bits"),
            )
        })?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let inside = (at % PAGE) as usize;
            let count = rest.len().min(PAGE_BYTES - inside);
            let (head, tail) = rest.split_at(count);
            let key = at / PAGE;
            if self.pages.contains_key(&key) || head.iter().any(|byte| *byte != 0) {
                let page = self
                    .pages
                    .entry(key)
                    .or_insert_with(|| Arc::new(vec![0; PAGE_BYTES]));
                Arc::make_mut(page)[inside..inside + count].copy_from_slice(head);
            }
            at += count as u64;
            rest = tail;
        }
        self.size = self.size.max(end);
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = offset.checked_add(length).ok_or_else(|| {
            Error::new(
                ErrorKind::OutOfRange,
                format!("zeroing at {offset} leaves 64 bits"),
            )
        })?;
        self.clear(offset, end);
        self.size = self.size.max(end);
        Ok(())
    }

    /// Makes the pages of a range zero, at the price of the pages that exist.
    fn clear(&mut self, offset: u64, end: u64) {
        let within = |key: u64| key >= offset.div_ceil(PAGE) && key < end / PAGE;
        if (end - offset) / PAGE > self.pages.len() as u64 {
            self.pages.retain(|key, _| !within(*key));
        } else {
            for key in offset.div_ceil(PAGE)..end / PAGE {
                self.pages.remove(&key);
            }
        }
        for key in [offset / PAGE, end / PAGE] {
            let first = key * PAGE;
            let from = offset.clamp(first, first + PAGE) - first;
            let to = end.clamp(first, first + PAGE) - first;
            if from < to
                && let Some(page) = self.pages.get_mut(&key)
            {
                Arc::make_mut(page)[from as usize..to as usize].fill(0);
            }
        }
    }

    fn resize(&mut self, size: u64) {
        if size < self.size {
            self.clear(size, self.size);
        }
        self.size = size;
    }

    fn extent(&self, offset: u64, limit: u64) -> Result<Extent> {
        let left = self.size.saturating_sub(offset).min(limit);
        if left == 0 {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("extent at {offset} of {}", self.size),
            ));
        }
        let kind = |key: u64| {
            if self.pages.contains_key(&key) {
                ExtentKind::Data
            } else {
                ExtentKind::Unallocated
            }
        };
        let first = kind(offset / PAGE);
        let mut end = (offset / PAGE + 1) * PAGE;
        // Where the rest is long and pages are few, asking the pages is cheaper than asking for every page.
        if first == ExtentKind::Unallocated && left / PAGE > self.pages.len() as u64 {
            let next = self.pages.keys().filter(|key| **key * PAGE >= end).min();
            end = next.map_or(u64::MAX, |key| key * PAGE);
        } else {
            while end < offset + left && kind(end / PAGE) == first {
                end += PAGE;
            }
        }
        Ok(Extent {
            offset,
            length_bytes: left.min(end - offset),
            kind: first,
        })
    }
}

/// A sparse file in memory. Cloning takes a snapshot that shares unchanged pages.
#[derive(Debug, Default)]
pub struct MemoryFile {
    pages: RwLock<Pages>,
}

impl Clone for MemoryFile {
    fn clone(&self) -> Self {
        Self {
            pages: RwLock::new(self.shared().clone()),
        }
    }
}

impl MemoryFile {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file of zeros.
    pub fn with_size(size_bytes: u64) -> Self {
        Self {
            pages: RwLock::new(Pages {
                size: size_bytes,
                pages: HashMap::new(),
            }),
        }
    }

    /// A file that holds these bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut pages = Pages::default();
        // Cannot fail: a slice ends below 2^64.
        let written = pages.write(0, bytes);
        debug_assert!(written.is_ok());
        Self {
            pages: RwLock::new(pages),
        }
    }

    /// Bytes of the pages that hold something: what the file costs.
    pub fn allocated_bytes(&self) -> u64 {
        self.shared().pages.len() as u64 * PAGE
    }

    fn shared(&self) -> std::sync::RwLockReadGuard<'_, Pages> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> std::sync::RwLockWriteGuard<'_, Pages> {
        self.pages.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAt for MemoryFile {
    fn size_bytes(&self) -> u64 {
        self.shared().size
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.shared().read(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        self.shared().extent(offset, limit_bytes)
    }
}

impl WriteAt for MemoryFile {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.exclusive().write(offset, buffer)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.exclusive().zero(offset, length_bytes)
    }
    fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.exclusive().resize(size_bytes);
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// What a power cut does to the changes that no flush covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of them are lost.
    Everything,
    /// None is lost: the cache happened to be written out.
    Nothing,
    /// Each change is kept or lost as a whole, in any combination.
    Subset {
        /// Where the choice comes from.
        seed: u64,
    },
    /// Each 512-byte sector of each change is kept or lost on its own.
    Torn {
        /// Where the choice comes from.
        seed: u64,
    },
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, length: u64 },
    Size(u64),
}

impl Change {
    fn apply(&self, pages: &mut Pages) -> Result<()> {
        match self {
            Self::Write { offset, bytes } => pages.write(*offset, bytes),
            Self::Zero { offset, length } => pages.zero(*offset, *length),
            Self::Size(size) => {
                pages.resize(*size);
                Ok(())
            }
        }
    }
}

#[derive(Debug)]
struct CrashState {
    durable: Pages,
    current: Pages,
    pending: Vec<Change>,
    operations: u64,
    cut_at: Option<u64>,
}

impl CrashState {
    /// Counts one operation; from the cut on, nothing works any more.
    fn step(&mut self) -> Result<()> {
        let number = self.operations;
        self.operations += 1;
        if self.cut_at.is_some_and(|cut| number >= cut) {
            return Err(Error::new(
                ErrorKind::Io,
                format!("power was cut at operation {number}"),
            ));
        }
        Ok(())
    }

    fn change(&mut self, change: Change) -> Result<()> {
        let was_alive = self.cut_at.is_none_or(|cut| self.operations <= cut);
        let step = self.step();
        // The very operation that the cut hits may still have reached the disk, wholly or in part.
        if was_alive {
            change.apply(&mut self.current)?;
            self.pending.push(change);
        }
        step
    }
}

/// A file whose power can be cut at any operation, and which then shows what a reboot could find.
///
/// Operations are numbered from 0: every write, zeroing, resize and flush is one. The operation that the cut hits
/// fails and its change counts as pending; all later ones fail and change nothing.
#[derive(Debug)]
pub struct CrashFile {
    state: Mutex<CrashState>,
}

impl CrashFile {
    /// A file that holds the image, durably, and whose power fails at operation `cut_at`.
    pub fn new(image: &MemoryFile, cut_at: Option<u64>) -> Self {
        let pages = image.shared().clone();
        Self {
            state: Mutex::new(CrashState {
                durable: pages.clone(),
                current: pages,
                pending: Vec::new(),
                operations: 0,
                cut_at,
            }),
        }
    }

    /// How many operations were asked for so far.
    pub fn operations(&self) -> u64 {
        self.locked().operations
    }

    /// What a reboot finds after this loss.
    pub fn survivors(&self, loss: Loss) -> Result<MemoryFile> {
        let state = self.locked();
        let mut pages = state.durable.clone();
        let mut random = SplitMix::new(match loss {
            Loss::Subset { seed } | Loss::Torn { seed } => seed,
            Loss::Everything | Loss::Nothing => 0,
        });
        for change in &state.pending {
            match (loss, change) {
                (Loss::Everything, _) => {}
                (Loss::Torn { .. }, Change::Write { offset, bytes }) => {
                    for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                        if random.flip() {
                            pages.write(offset + (index * SECTOR_BYTES) as u64, sector)?;
                        }
                    }
                }
                (Loss::Subset { .. } | Loss::Torn { .. }, _) => {
                    if random.flip() {
                        change.apply(&mut pages)?;
                    }
                }
                (Loss::Nothing, _) => change.apply(&mut pages)?,
            }
        }
        Ok(MemoryFile {
            pages: RwLock::new(pages),
        })
    }

    fn locked(&self) -> MutexGuard<'_, CrashState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAt for CrashFile {
    fn size_bytes(&self) -> u64 {
        self.locked().current.size
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.locked().current.read(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        self.locked().current.extent(offset, limit_bytes)
    }
}

impl WriteAt for CrashFile {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.locked().change(Change::Write {
            offset,
            bytes: buffer.to_vec(),
        })
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.locked().change(Change::Zero {
            offset,
            length: length_bytes,
        })
    }
    fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.locked().change(Change::Size(size_bytes))
    }
    fn flush(&self) -> Result<()> {
        let mut state = self.locked();
        state.step()?;
        state.durable = state.current.clone();
        state.pending.clear();
        Ok(())
    }
}

/// Steele, Lea and Flood's SplitMix64: small, good enough to choose what is lost, and the same everywhere.
#[derive(Debug, Clone)]
struct SplitMix(u64);

impl SplitMix {
    fn new(seed: u64) -> Self {
        Self(seed)
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn flip(&mut self) -> bool {
        self.next() & 1 == 1
    }
}
