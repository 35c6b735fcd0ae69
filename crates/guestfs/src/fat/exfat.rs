//! exFAT, read without mounting.
//!
//! ```text
//!   [boot region of 12 sectors] [its copy] [FAT] … [cluster 2] [cluster 3] …
//!   a file in a directory: [85 file: attributes, times] [C0 stream: cluster, sizes] [C1 name] [C1 name] …
//!   FileId.number = first cluster of its directory << 32 | is contiguous << 31 | number of its 85 entry; 0: the root
//! ```
//!
//! **Invariants.** The boot region's checksum held. An entry set is believed only when it is whole and its checksum is
//! right, so that an id that was made up finds nothing. What is behind `ValidDataLength` reads as zeros. Names are
//! compared by the volume's own table of upper-case letters, which is used only when its checksum is right.
//!
//! **Not done.** TexFAT's second table and bitmap are used when the volume says so, its transactions are not.
//!
//! Source: Microsoft exFAT file system specification (2019).

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

mod entries;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use block::ReadAt;

use self::entries::{EntrySet, Upcase};
use super::heap::{Contents, Heap, Ranges, Runs, Width};
use super::{no_link, refuse_dirty, refuse_stream, tell_ranges};
use crate::cache::BlockCache;
use crate::field::{slice, u8_at, u16_le, u32_le, u64_le};
use crate::filesystem::{
    Cleanliness, DirectoryCursor, DirectoryEntry, FileKind, FileSystemFacts, FileSystemKind,
    Metadata, VolumeRange,
};
use crate::{Error, ErrorKind, FileId, FileName, FileSystem, Result};

pub(super) const ENTRY_BYTES: u64 = 32;
pub(super) const ENTRY_LENGTH: usize = 32;
const MAX_DIRECTORY_BYTES: u64 = 256 << 20;
const CACHE_BLOCK: usize = 4096;
const CACHE_BLOCKS: usize = 2048;
/// Directories whose runs are remembered.
const KEPT_DIRECTORIES: usize = 4;
const CONTIGUOUS: u64 = 1 << 31;

/// An exFAT file system.
pub struct ExFatFileSystem {
    heap: Heap,
    root_cluster: u32,
    upcase: Upcase,
    bitmap: Option<(Runs, u64)>,
    facts: FileSystemFacts,
    /// The runs of the directories that were used last.
    kept: Mutex<VecDeque<(Place, Arc<Runs>)>>,
}

/// Where a directory's entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    first: u32,
    is_contiguous: bool,
}

/// Opens the file system on a volume.
///
/// # Errors
/// [`ErrorKind::Corrupt`] without a sound boot region.
pub fn open(volume: Arc<dyn ReadAt>) -> Result<ExFatFileSystem> {
    let mut raw = [0; 512];
    if volume.size_bytes() < 512 {
        return Err(Error::corrupt(
            "a volume without room for a boot sector of exFAT",
        ));
    }
    volume.read_at(0, &mut raw)?;
    let (heap, root_cluster, facts) =
        parse_boot(&raw, volume).map_err(|error| error.within("boot sector of exFAT"))?;
    let mut fs = ExFatFileSystem {
        heap,
        root_cluster,
        upcase: Upcase::default(),
        bitmap: None,
        facts,
        kept: Mutex::default(),
    };
    fs.read_root(u16_le(&raw, 106)? & 1)?;
    Ok(fs)
}

fn parse_boot(raw: &[u8], volume: Arc<dyn ReadAt>) -> Result<(Heap, u32, FileSystemFacts)> {
    if slice(raw, 3, 8)? != b"EXFAT   " || slice(raw, 11, 53)?.iter().any(|&byte| byte != 0) {
        return Err(Error::corrupt("its name is not there"));
    }
    let (sector_shift, cluster_shift) = (u8_at(raw, 108)?, u8_at(raw, 109)?);
    if !(9..=12).contains(&sector_shift) || cluster_shift > 25_u8.saturating_sub(sector_shift) {
        return Err(Error::corrupt(format!(
            "sectors of 2^{sector_shift}, clusters of 2^{cluster_shift}"
        )));
    }
    let sector = 1_u64.checked_shl(u32::from(sector_shift)).unwrap_or(512);
    let cluster_bytes = sector
        .checked_shl(u32::from(cluster_shift))
        .unwrap_or(sector);
    check_boot_region(&*volume, sector)?;
    let flags = u16_le(raw, 106)?;
    let tables = u8_at(raw, 110)?;
    let active = u64::from(flags & 1);
    let table_bytes = u64::from(u32_le(raw, 84)?).saturating_mul(sector);
    let cluster_count = u32_le(raw, 92)?;
    let heap_offset = u64::from(u32_le(raw, 88)?).saturating_mul(sector);
    let total_bytes = u64_le(raw, 72)?.saturating_mul(sector);
    let heap_bytes = u64::from(cluster_count).saturating_mul(cluster_bytes);
    if cluster_count == 0
        || cluster_count > 0xFFFF_FFF5
        || table_bytes / 4 < u64::from(cluster_count).saturating_add(2)
        || heap_offset.saturating_add(heap_bytes) > total_bytes
        || !(1..=2).contains(&tables)
        || active >= u64::from(tables)
    {
        return Err(Error::corrupt(format!(
            "{cluster_count} clusters do not fit into {total_bytes} bytes"
        )));
    }
    let cleanliness = if total_bytes > volume.size_bytes() {
        Cleanliness::Dirty(format!("it has {total_bytes} bytes, the volume fewer"))
    } else if flags & 2 != 0 {
        Cleanliness::Dirty("it was not unmounted".to_owned())
    } else if flags & 4 != 0 {
        Cleanliness::Dirty("errors of the disk were met".to_owned())
    } else {
        Cleanliness::Clean
    };
    let revision = u16_le(raw, 104)?;
    let heap = Heap {
        cache: BlockCache::new(volume, CACHE_BLOCK, CACHE_BLOCKS),
        width: Width::Full32,
        table_offset: u64::from(u32_le(raw, 80)?)
            .saturating_mul(sector)
            .saturating_add(table_bytes.saturating_mul(active)),
        heap_offset,
        cluster_bytes,
        cluster_count,
    };
    let facts = FileSystemFacts {
        kind: FileSystemKind::ExFat,
        version: Some(format!("{}.{}", revision >> 8, revision & 0xFF)),
        label: None,
        id: Some(super::boot::id(u32_le(raw, 100)?)),
        size_bytes: total_bytes,
        free_bytes: 0,
        cluster_bytes: u32::try_from(cluster_bytes).unwrap_or(u32::MAX),
        cleanliness,
        times_are_local: false,
        is_case_insensitive: true,
    };
    Ok((heap, u32_le(raw, 96)?, facts))
}

/// Eleven sectors and, again and again, their checksum in the twelfth.
fn check_boot_region(volume: &dyn ReadAt, sector: u64) -> Result<()> {
    let length = usize::try_from(sector.saturating_mul(12)).unwrap_or(0);
    if volume.size_bytes() < sector.saturating_mul(12) {
        return Err(Error::corrupt("it is cut"));
    }
    let mut region = vec![0; length];
    volume.read_at(0, &mut region)?;
    let body = length.saturating_sub(usize::try_from(sector).unwrap_or(0));
    let sum = region
        .iter()
        .take(body)
        .enumerate()
        .fold(0_u32, |sum, (index, &byte)| {
            if matches!(index, 106 | 107 | 112) {
                return sum;
            }
            sum.rotate_right(1).wrapping_add(u32::from(byte))
        });
    if !crate::field::sum_holds(sum, u32_le(&region, body)?) {
        return Err(Error::corrupt("the checksum of its region is wrong"));
    }
    Ok(())
}

impl ExFatFileSystem {
    /// Finds bitmap, upper-case table and label in the root.
    fn read_root(&mut self, active: u16) -> Result<()> {
        let runs = self
            .heap
            .whole_chain(self.root_cluster, self.directory_limit())?;
        let (mut bitmap, mut upcase, mut label) = (None, None, None);
        let count = runs.cluster_count.saturating_mul(self.heap.cluster_bytes) / ENTRY_BYTES;
        for number in 0..count {
            let raw = self.raw_entry(&runs, number)?;
            match u8_at(&raw, 0)? {
                0 => break,
                0x81 if u16::from(u8_at(&raw, 1)?) & 1 == active => bitmap = Some(raw),
                0x82 => upcase = Some(raw),
                0x83 => {
                    let count = usize::from(u8_at(&raw, 1)?).min(11);
                    let units = slice(&raw, 2, count.saturating_mul(2))?;
                    label = Some(FileName::from_utf16(entries::units(units)).to_string());
                }
                _ => {}
            }
        }
        self.facts.label = label.filter(|label| !label.is_empty());
        if let Some(raw) = upcase {
            self.upcase = self.read_upcase(&raw)?;
        }
        let Some(raw) = bitmap else {
            return Err(Error::corrupt("its root names no bitmap"));
        };
        let size = u64_le(&raw, 24)?;
        if size < u64::from(self.heap.cluster_count).div_ceil(8) || size > (1 << 29) {
            return Err(Error::corrupt(format!("a bitmap of {size} bytes")));
        }
        let wanted = size.div_ceil(self.heap.cluster_bytes.max(1));
        self.bitmap = Some((self.heap.chain(u32_le(&raw, 20)?, wanted)?, size));
        let mut used = 0_u64;
        self.each_used(&mut |_| {
            used = used.saturating_add(1);
            true
        })?;
        let free = u64::from(self.heap.cluster_count).saturating_sub(used);
        self.facts.free_bytes = free.saturating_mul(self.heap.cluster_bytes);
        Ok(())
    }

    /// The table of upper-case letters: at most two bytes for each of 65,536 units.
    fn read_upcase(&self, raw: &[u8]) -> Result<Upcase> {
        let size = u64_le(raw, 24)?;
        let length = usize::try_from(size)
            .ok()
            .filter(|&length| length <= 131_072);
        let Some(length) = length else {
            return Err(Error::corrupt(format!(
                "a table of upper case of {size} bytes"
            )));
        };
        let wanted = size.div_ceil(self.heap.cluster_bytes.max(1));
        let runs = self.heap.chain(u32_le(raw, 20)?, wanted)?;
        let mut bytes = vec![0; length];
        let contents = Contents {
            heap: &self.heap,
            runs,
            size_bytes: size,
            valid_bytes: size,
        };
        contents.read_at(0, &mut bytes)?;
        Upcase::parse(&bytes, u32_le(raw, 4)?)
    }

    /// Clusters that the bitmap says are used, in ascending order, until told to stop; whether it was not.
    fn each_used(&self, visit: &mut dyn FnMut(u32) -> bool) -> Result<bool> {
        let Some((runs, size)) = &self.bitmap else {
            return Ok(true);
        };
        let contents = Contents {
            heap: &self.heap,
            runs: runs.clone(),
            size_bytes: *size,
            valid_bytes: *size,
        };
        let mut chunk = vec![0; 65536];
        let mut cluster = super::heap::FIRST;
        let mut position = 0_u64;
        while position < *size {
            let left = usize::try_from(size.saturating_sub(position)).unwrap_or(usize::MAX);
            let count = left.min(chunk.len());
            let part = chunk.get_mut(..count).unwrap_or_default();
            contents.read_at(position, part)?;
            for &byte in &*part {
                for bit in 0..8_u32 {
                    let is_used = byte.checked_shr(bit).unwrap_or(0) & 1 == 1;
                    if is_used && self.heap.has(cluster) && !visit(cluster) {
                        return Ok(false);
                    }
                    cluster = cluster.saturating_add(1);
                }
            }
            position = position.saturating_add(crate::field::bytes(count));
        }
        Ok(true)
    }

    fn directory_limit(&self) -> u64 {
        MAX_DIRECTORY_BYTES.div_ceil(self.heap.cluster_bytes.max(1))
    }

    fn raw_entry(&self, runs: &Runs, number: u64) -> Result<[u8; ENTRY_LENGTH]> {
        let (position, _) = runs.place(&self.heap, number.saturating_mul(ENTRY_BYTES))?;
        let mut raw = [0; ENTRY_LENGTH];
        self.heap.cache.read(position, &mut raw)?;
        Ok(raw)
    }

    /// The runs of a directory. One that is contiguous is as long as the heap allows: its entries say where it ends.
    fn runs(&self, place: Place) -> Result<Arc<Runs>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, runs)) = kept.iter().find(|(known, _)| *known == place) {
            return Ok(Arc::clone(runs));
        }
        let runs = if place.is_contiguous {
            let end = self.heap.cluster_count.saturating_add(super::heap::FIRST);
            let count = u64::from(end.saturating_sub(place.first)).min(self.directory_limit());
            Runs::contiguous(&self.heap, place.first, count)?
        } else {
            self.heap.whole_chain(place.first, self.directory_limit())?
        };
        let runs = Arc::new(runs);
        kept.push_front((place, Arc::clone(&runs)));
        kept.truncate(KEPT_DIRECTORIES);
        Ok(runs)
    }

    fn root_place(&self) -> Place {
        Place {
            first: self.root_cluster,
            is_contiguous: false,
        }
    }

    /// The entries of a file that is not the root.
    fn entry_set(&self, file: FileId) -> Result<EntrySet> {
        let nothing = || Error::new(ErrorKind::NotFound, format!("no entry {:#x}", file.number));
        let first = u32::try_from(file.number >> 32).unwrap_or(0);
        if file.tree != 0 || !self.heap.has(first) {
            return Err(nothing());
        }
        let place = Place {
            first,
            is_contiguous: file.number & CONTIGUOUS != 0,
        };
        let number = file.number & (CONTIGUOUS - 1);
        let runs = self.runs(place).map_err(|error| match error.kind() {
            ErrorKind::Io => error,
            _ => nothing(),
        })?;
        if number >= runs.cluster_count.saturating_mul(self.heap.cluster_bytes) / ENTRY_BYTES {
            return Err(nothing());
        }
        let raw = self.raw_entry(&runs, number)?;
        if u8_at(&raw, 0)? != entries::FILE {
            return Err(nothing());
        }
        self.read_set(&runs, number, &raw)
            .map_err(|error| match error.kind() {
                ErrorKind::Io => error,
                _ => nothing(),
            })
    }

    fn read_set(&self, runs: &Runs, number: u64, first: &[u8; ENTRY_LENGTH]) -> Result<EntrySet> {
        let mut set = first.to_vec();
        for ahead in 1..=u64::from(u8_at(first, 1)?) {
            set.extend_from_slice(&self.raw_entry(runs, number.saturating_add(ahead))?);
        }
        EntrySet::parse(&set)
    }

    /// Where the entries of a directory are, and its bytes when they are known.
    fn directory(&self, file: FileId) -> Result<(Place, u64)> {
        if file == self.root() {
            let runs = self.runs(self.root_place())?;
            let length = runs.cluster_count.saturating_mul(self.heap.cluster_bytes);
            return Ok((self.root_place(), length));
        }
        let set = self.entry_set(file)?;
        if set.kind() != FileKind::Directory {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("the entry {:#x} is of no directory", file.number),
            ));
        }
        let place = Place {
            first: set.first_cluster,
            is_contiguous: set.is_contiguous,
        };
        Ok((place, set.size_bytes.min(MAX_DIRECTORY_BYTES)))
    }

    /// Tells entry sets from a number on, each with its number and that behind it.
    fn walk(
        &self,
        directory: FileId,
        from: u64,
        visit: &mut dyn FnMut(EntrySet, FileId, u64) -> ControlFlow<()>,
    ) -> Result<()> {
        let (place, length) = self.directory(directory)?;
        let count = length / ENTRY_BYTES;
        if count == 0 {
            return Ok(());
        }
        let runs = self.runs(place)?;
        let mut trouble = None;
        let mut number = from;
        while number < count {
            let raw = self.raw_entry(&runs, number)?;
            let kind = u8_at(&raw, 0)?;
            if kind == 0 {
                break;
            }
            if kind != entries::FILE {
                number = number.saturating_add(1);
                continue;
            }
            let behind = number
                .saturating_add(1)
                .saturating_add(u64::from(u8_at(&raw, 1)?));
            let contiguous = if place.is_contiguous { CONTIGUOUS } else { 0 };
            let file = FileId {
                tree: 0,
                number: u64::from(place.first) << 32 | contiguous | number,
            };
            match self.read_set(&runs, number, &raw) {
                Ok(set) => {
                    if visit(set, file, behind).is_break() {
                        return Ok(());
                    }
                    number = behind;
                }
                Err(error) => {
                    trouble.get_or_insert(error.within(format!("entry {number}")));
                    number = number.saturating_add(1);
                }
            }
        }
        trouble.map_or(Ok(()), Err)
    }

    fn size_and_runs(&self, set: &EntrySet) -> Result<Runs> {
        let wanted = set.size_bytes.div_ceil(self.heap.cluster_bytes.max(1));
        if wanted == 0 {
            return Ok(Runs::default());
        }
        if wanted > u64::from(self.heap.cluster_count) {
            return Err(Error::corrupt(format!(
                "{} bytes are more than the volume has",
                set.size_bytes
            )));
        }
        if set.is_contiguous {
            return Runs::contiguous(&self.heap, set.first_cluster, wanted);
        }
        self.heap.chain(set.first_cluster, wanted)
    }

    fn regular(&self, file: FileId) -> Result<EntrySet> {
        let invalid = || {
            Error::new(
                ErrorKind::Invalid,
                format!("the entry {:#x} is of a directory", file.number),
            )
        };
        if file == self.root() {
            return Err(invalid());
        }
        let set = self.entry_set(file)?;
        if set.kind() == FileKind::Directory {
            return Err(invalid());
        }
        Ok(set)
    }
}

impl FileSystem for ExFatFileSystem {
    fn facts(&self) -> &FileSystemFacts {
        &self.facts
    }

    fn root(&self) -> FileId {
        FileId { tree: 0, number: 0 }
    }

    fn metadata(&self, file: FileId) -> Result<Metadata> {
        if file == self.root() {
            return Ok(super::directory_metadata(
                Default::default(),
                u32::from(super::DIRECTORY),
            ));
        }
        Ok(self.entry_set(file)?.metadata(self.heap.cluster_bytes))
    }

    fn list(
        &self,
        directory: FileId,
        after: DirectoryCursor,
        visit: &mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        self.walk(directory, after.0, &mut |set, file, behind| {
            visit(DirectoryEntry {
                name: FileName::from_utf16(set.name.iter().copied()),
                file,
                kind: Some(set.kind()),
                next: DirectoryCursor(behind),
            })
        })
        .map_err(|error| error.within(format!("directory {:#x}", directory.number)))
    }

    fn find(&self, directory: FileId, name: &FileName) -> Result<Option<FileId>> {
        let wanted = self
            .upcase
            .fold(&name.to_string().encode_utf16().collect::<Vec<u16>>());
        let mut found = None;
        self.walk(directory, 0, &mut |set, file, _| {
            if self.upcase.fold(&set.name) == wanted {
                found = Some(file);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    fn open(&self, file: FileId, stream: Option<&FileName>) -> Result<Box<dyn ReadAt + '_>> {
        let set = self.regular(file)?;
        refuse_stream(stream)?;
        let runs = self
            .size_and_runs(&set)
            .map_err(|error| error.within(format!("file {:#x}", file.number)))?;
        Ok(Box::new(Contents {
            heap: &self.heap,
            runs,
            size_bytes: set.size_bytes,
            valid_bytes: set.valid_bytes,
        }))
    }

    fn read_link(&self, file: FileId) -> Result<FileName> {
        Err(no_link(file))
    }

    fn used_ranges(&self, visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>) -> Result<()> {
        refuse_dirty(&self.facts)?;
        let mut ranges = Ranges { open: None, visit };
        if !ranges.add(0, self.heap.heap_offset) {
            return Ok(());
        }
        let went_through = self.each_used(&mut |cluster| {
            ranges.add(self.heap.offset(cluster), self.heap.cluster_bytes)
        })?;
        if went_through {
            ranges.flush();
        }
        Ok(())
    }

    fn file_ranges(
        &self,
        file: FileId,
        visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
    ) -> Result<()> {
        let set = self.regular(file)?;
        tell_ranges(
            &self.heap,
            &self.size_and_runs(&set)?,
            set.size_bytes,
            visit,
        )
    }
}
