//! FAT12, FAT16 and FAT32, read without mounting; exFAT is in [`exfat`].
//!
//! ```text
//!   [boot sector] reserved … [FAT] [FAT copy] [root directory of FAT12/16] [cluster 2] [cluster 3] …
//!   directory: [long name n|0x40] … [long name 1] [short name: attributes, times, first cluster, size] …
//!   FileId.number = where the short entry lies on the volume; 0 for the root
//! ```
//!
//! **Invariants.** A chain is followed to what its entry's size asks for: one that ends earlier or goes astray is an
//! error, one that is longer is cut. A directory has at most 65,536 entries, as everywhere else. Deleted entries and
//! the label are not told.
//!
//! **Not done.** Short names are taken for code page 437. The copy of the table is not compared with the first one.
//! The entry of a file is found where it was; an id that was made up can hit bytes that look like an entry.
//!
//! Source: Microsoft FAT specification (2004), with what Linux and Windows really do.

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

mod boot;
pub mod exfat;
mod heap;
mod names;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::ReadAt;

use self::boot::Boot;
use self::heap::{Contents, Heap, Ranges, Runs, Width};
use self::names::LongName;
use crate::field::{u8_at, u16_le, u32_le};
use crate::filesystem::{
    DirectoryCursor, DirectoryEntry, FileKind, FileSystemFacts, FileTimes, Metadata, VolumeRange,
};
use crate::{Error, ErrorKind, FileId, FileName, FileSystem, Result};

const ENTRY_BYTES: u64 = 32;
const ENTRY_LENGTH: usize = 32;
const MAX_DIRECTORY_BYTES: u64 = 65_536 * ENTRY_BYTES;
const LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0F;
const DELETED: u8 = 0xE5;

/// A FAT12, FAT16 or FAT32 file system.
pub struct FatFileSystem {
    boot: Boot,
    heap: Heap,
    facts: FileSystemFacts,
}

/// Opens the file system on a volume.
///
/// # Errors
/// [`ErrorKind::Corrupt`] without a sound boot sector.
pub fn open(volume: Arc<dyn ReadAt>) -> Result<FatFileSystem> {
    let boot = Boot::read(&*volume)?;
    let heap = boot.heap(volume);
    let facts = boot.facts(&heap)?;
    let mut fs = FatFileSystem { boot, heap, facts };
    // The label in the root is the one that everybody shows and changes.
    let mut label = None;
    let told = fs.walk(Directory::Root, 0, &mut |item| {
        if item
            .raw
            .get(11)
            .is_some_and(|bits| bits & (LABEL | DIRECTORY) == LABEL)
        {
            let text = names::text(item.raw.get(..11).unwrap_or_default());
            label = Some(text.trim_end().to_owned());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    if let Err(error) = told
        && matches!(error.kind(), ErrorKind::Io | ErrorKind::Cancelled)
    {
        return Err(error);
    }
    fs.facts.label = label
        .or(fs.facts.label.take())
        .filter(|label| !label.is_empty());
    Ok(fs)
}

/// Where a directory's entries are.
#[derive(Debug, Clone, Copy)]
enum Directory {
    Root,
    Cluster(u32),
}

/// An entry as it was met: not a long name, not deleted.
struct Item {
    raw: [u8; ENTRY_LENGTH],
    position: u64,
    long: Option<FileName>,
    /// The number of the entry behind it.
    next: u64,
}

impl Item {
    fn name(&self) -> FileName {
        self.long
            .clone()
            .unwrap_or_else(|| names::short_name(&self.raw))
    }

    /// Whether it is a file or a directory with a name of its own.
    fn is_file(&self) -> bool {
        let attributes = self.raw.get(11).copied().unwrap_or(0);
        attributes & LABEL == 0
            && !self.raw.starts_with(b".          ")
            && !self.raw.starts_with(b"..         ")
    }

    fn kind(&self) -> FileKind {
        if self.raw.get(11).is_some_and(|bits| bits & DIRECTORY != 0) {
            FileKind::Directory
        } else {
            FileKind::Regular
        }
    }

    fn file(&self) -> FileId {
        FileId {
            tree: 0,
            number: self.position,
        }
    }
}

impl FatFileSystem {
    /// The entry of a file that is not the root.
    fn entry(&self, file: FileId) -> Result<[u8; ENTRY_LENGTH]> {
        let nothing = || {
            Error::new(
                ErrorKind::NotFound,
                format!("no entry at byte {}", file.number),
            )
        };
        let position = file.number;
        if file.tree != 0
            || !position.is_multiple_of(ENTRY_BYTES)
            || !self.boot.can_hold_entries(&self.heap, position)
        {
            return Err(nothing());
        }
        let mut raw = [0; ENTRY_LENGTH];
        self.heap.cache.read(position, &mut raw)?;
        let item = Item {
            raw,
            position,
            long: None,
            next: 0,
        };
        let first = u8_at(&raw, 0)?;
        if matches!(first, 0 | DELETED) || !item.is_file() {
            return Err(nothing());
        }
        Ok(raw)
    }

    fn directory(&self, file: FileId) -> Result<Directory> {
        if file == self.root() {
            return Ok(Directory::Root);
        }
        let raw = self.entry(file)?;
        if u8_at(&raw, 11)? & DIRECTORY == 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("the entry at byte {} is of no directory", file.number),
            ));
        }
        Ok(Directory::Cluster(self.first_cluster(&raw)?))
    }

    fn first_cluster(&self, raw: &[u8]) -> Result<u32> {
        let high = if self.heap.width == Width::Bits32 {
            u16_le(raw, 20)?
        } else {
            0
        };
        Ok(u32::from(u16_le(raw, 26)?) | u32::from(high) << 16)
    }

    /// Tells entries from a number on: everything that is neither deleted nor part of a long name.
    fn walk(
        &self,
        directory: Directory,
        from: u64,
        visit: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<()> {
        let fixed = match directory {
            Directory::Root => self.boot.fixed_root(),
            Directory::Cluster(_) => None,
        };
        let (runs, length) = match (fixed, directory) {
            (Some((_, length)), _) => (None, length),
            (None, Directory::Root) => self.directory_runs(self.boot.root_cluster)?,
            (None, Directory::Cluster(first)) => self.directory_runs(first)?,
        };
        let mut long = LongName::default();
        let mut number = from;
        loop {
            let offset = number.saturating_mul(ENTRY_BYTES);
            if offset >= length {
                return Ok(());
            }
            let position = match (&runs, fixed) {
                (Some(runs), _) => runs.place(&self.heap, offset)?.0,
                (None, Some((start, _))) => start.saturating_add(offset),
                (None, None) => return Ok(()),
            };
            let mut raw = [0; ENTRY_LENGTH];
            self.heap.cache.read(position, &mut raw)?;
            number = number.saturating_add(1);
            match u8_at(&raw, 0)? {
                0 => return Ok(()),
                DELETED => long.clear(),
                _ if u8_at(&raw, 11)? & 0x3F == LONG_NAME => long.add(&raw),
                _ => {
                    let long = long.take(&raw);
                    if visit(Item {
                        raw,
                        position,
                        long,
                        next: number,
                    })
                    .is_break()
                    {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The clusters of a directory and their bytes.
    fn directory_runs(&self, first: u32) -> Result<(Option<Runs>, u64)> {
        let width = self.heap.cluster_bytes.max(1);
        let limit = MAX_DIRECTORY_BYTES.div_ceil(width);
        let runs = self.heap.whole_chain(first, limit)?;
        let length = runs.cluster_count.saturating_mul(width);
        Ok((Some(runs), length))
    }

    fn size_and_runs(&self, raw: &[u8]) -> Result<(u64, Runs)> {
        let size_bytes = u64::from(u32_le(raw, 28)?);
        let wanted = size_bytes.div_ceil(self.heap.cluster_bytes.max(1));
        if wanted == 0 {
            return Ok((0, Runs::default()));
        }
        Ok((
            size_bytes,
            self.heap.chain(self.first_cluster(raw)?, wanted)?,
        ))
    }

    fn regular(&self, file: FileId) -> Result<[u8; ENTRY_LENGTH]> {
        let is_root = file == self.root();
        let raw = if is_root {
            [DIRECTORY; ENTRY_LENGTH]
        } else {
            self.entry(file)?
        };
        if u8_at(&raw, 11)? & DIRECTORY != 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("the entry at byte {} is of a directory", file.number),
            ));
        }
        Ok(raw)
    }
}

impl FileSystem for FatFileSystem {
    fn facts(&self) -> &FileSystemFacts {
        &self.facts
    }

    fn root(&self) -> FileId {
        FileId { tree: 0, number: 0 }
    }

    fn metadata(&self, file: FileId) -> Result<Metadata> {
        if file == self.root() {
            return Ok(directory_metadata(
                FileTimes::default(),
                u32::from(DIRECTORY),
            ));
        }
        let raw = self.entry(file)?;
        let attributes = u8_at(&raw, 11)?;
        let times = FileTimes {
            created: names::timestamp(u16_le(&raw, 16)?, u16_le(&raw, 14)?, u8_at(&raw, 13)?),
            modified: names::timestamp(u16_le(&raw, 24)?, u16_le(&raw, 22)?, 0),
            changed: None,
            accessed: names::timestamp(u16_le(&raw, 18)?, 0, 0),
        };
        let bits = u32::from(attributes & 0x3F);
        if attributes & DIRECTORY != 0 {
            return Ok(directory_metadata(times, bits));
        }
        let size_bytes = u64::from(u32_le(&raw, 28)?);
        let width = self.heap.cluster_bytes.max(1);
        Ok(Metadata {
            kind: FileKind::Regular,
            size_bytes,
            allocated_bytes: size_bytes.div_ceil(width).saturating_mul(width),
            ..directory_metadata(times, bits)
        })
    }

    fn list(
        &self,
        directory: FileId,
        after: DirectoryCursor,
        visit: &mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        let place = self.directory(directory)?;
        self.walk(place, after.0, &mut |item| {
            if !item.is_file() {
                return ControlFlow::Continue(());
            }
            visit(DirectoryEntry {
                name: item.name(),
                file: item.file(),
                kind: Some(item.kind()),
                next: DirectoryCursor(item.next),
            })
        })
        .map_err(|error| error.within(format!("directory at byte {}", directory.number)))
    }

    fn find(&self, directory: FileId, name: &FileName) -> Result<Option<FileId>> {
        let wanted = fold(name);
        let mut found = None;
        self.walk(self.directory(directory)?, 0, &mut |item| {
            let is_it =
                fold(&item.name()) == wanted || fold(&names::short_name(&item.raw)) == wanted;
            if item.is_file() && is_it {
                found = Some(item.file());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    fn open(&self, file: FileId, stream: Option<&FileName>) -> Result<Box<dyn ReadAt + '_>> {
        let raw = self.regular(file)?;
        refuse_stream(stream)?;
        let (size_bytes, runs) = self
            .size_and_runs(&raw)
            .map_err(|error| error.within(format!("file at byte {}", file.number)))?;
        Ok(Box::new(Contents {
            heap: &self.heap,
            runs,
            size_bytes,
            valid_bytes: size_bytes,
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
        let went_through = self.heap.each_used(&mut |cluster| {
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
        let (size_bytes, runs) = self.size_and_runs(&self.regular(file)?)?;
        tell_ranges(&self.heap, &runs, size_bytes, visit)
    }
}

/// A directory's metadata: what files and directories have in common.
fn directory_metadata(times: FileTimes, windows_attributes: u32) -> Metadata {
    Metadata {
        kind: FileKind::Directory,
        size_bytes: 0,
        allocated_bytes: 0,
        link_count: 1,
        times,
        owner: None,
        windows_attributes: Some(windows_attributes),
        obstacle: None,
    }
}

/// A name as it is compared.
fn fold(name: &FileName) -> String {
    name.to_string().to_uppercase()
}

fn refuse_stream(stream: Option<&FileName>) -> Result<()> {
    match stream {
        Some(stream) => Err(Error::new(
            ErrorKind::NotFound,
            format!("no stream {stream}"),
        )),
        None => Ok(()),
    }
}

fn no_link(file: FileId) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("the entry {} is no link", file.number),
    )
}

fn refuse_dirty(facts: &FileSystemFacts) -> Result<()> {
    match &facts.cleanliness {
        crate::filesystem::Cleanliness::Dirty(why) => Err(Error::unsupported(format!(
            "what is in use is not known for sure: {why}"
        ))),
        _ => Ok(()),
    }
}

/// Tells whole clusters, up to the one that holds the last byte.
fn tell_ranges(
    heap: &Heap,
    runs: &Runs,
    size_bytes: u64,
    visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
) -> Result<()> {
    let width = heap.cluster_bytes.max(1);
    let end = size_bytes.div_ceil(width).saturating_mul(width);
    let mut position = 0;
    while position < end {
        let (offset, left) = runs.place(heap, position)?;
        let length_bytes = left.min(end.saturating_sub(position));
        if visit(VolumeRange {
            offset,
            length_bytes,
        })
        .is_break()
        {
            break;
        }
        position = position.saturating_add(length_bytes);
    }
    Ok(())
}
