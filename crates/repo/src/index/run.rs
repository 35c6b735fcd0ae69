//! One sorted run of entries in a local file.
//!
//! ```text
//!   page 0..n, 4096 bytes each:  tag 16 ‖ 170 entries of 24: key 16 ‖ pack u32 ‖ ordinal u32   (unused ones 0xFF)
//!   tag = first 16 bytes of keyed BLAKE3(run id 16 ‖ page number u64 ‖ entries u64 ‖ the page's entries)
//! ```
//!
//! Entries ascend over the whole run. In memory: the first eight bytes of each page's first key (the fence), a filter.
//!
//! **Invariant.** What a look-up returns comes from a page whose tag was checked.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::filter::Filter;
use super::{BlobPlace, Entry, EntryKey};
use crate::crypto::{self, SecretKey};
use crate::{Error, ErrorKind, Result};

const PAGE_BYTES: usize = 4096;
const TAG_BYTES: usize = 16;
const ENTRY_BYTES: usize = 24;
const PAGE_ENTRIES: usize = (PAGE_BYTES - TAG_BYTES) / ENTRY_BYTES;

/// What a run is called on disk and in the table.
pub(crate) type RunId = [u8; 16];

/// A run that can be looked up in.
pub(crate) struct Run {
    id: RunId,
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    entries: u64,
    fence: Vec<u64>,
    filter: Filter,
}

/// Writes a run's entries in ascending order.
pub(crate) struct RunWriter {
    id: RunId,
    path: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    page: Vec<u8>,
    entries: u64,
    fence: Vec<u64>,
    filter: Filter,
}

fn prefix(key: &EntryKey) -> u64 {
    key.first_chunk::<8>()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn tag(hasher: &blake3::Hasher, page: u64, entries: &[u8]) -> [u8; TAG_BYTES] {
    let mut hasher = hasher.clone();
    hasher.update(&page.to_le_bytes());
    hasher.update(entries);
    crypto::first_half(hasher.finalize().as_bytes())
}

fn run_hasher(key: &SecretKey, id: &RunId) -> blake3::Hasher {
    let key = crypto::derive("hikae v1 local index pages", &[key.bytes(), id]);
    blake3::Hasher::new_keyed(key.bytes())
}

fn damaged(path: &Path) -> Error {
    Error::new(
        ErrorKind::Local,
        format!("{}: a damaged run of the local index", path.display()),
    )
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::local(path.display().to_string(), source)
}

/// Fills the buffer from a place in the file, without moving its cursor on Unix.
#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

/// Fills the buffer from a place in the file.
#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let (_, rest) = buffer.split_at_mut(read);
        buffer = rest;
        offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
    }
    Ok(())
}

impl RunWriter {
    pub(crate) fn create(
        path: PathBuf,
        id: RunId,
        key: &SecretKey,
        expected: usize,
    ) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        let file = file.map_err(failed(&path))?;
        Ok(Self {
            id,
            file: BufWriter::with_capacity(256 << 10, file),
            path,
            hasher: run_hasher(key, &id),
            page: Vec::with_capacity(PAGE_BYTES),
            entries: 0,
            fence: Vec::new(),
            filter: Filter::new(expected),
        })
    }

    pub(crate) fn push(&mut self, entry: Entry) -> Result<()> {
        if self.page.is_empty() {
            self.fence.push(prefix(&entry.key));
        }
        self.page.extend_from_slice(&entry.key);
        self.page.extend_from_slice(&entry.place.pack.to_le_bytes());
        self.page
            .extend_from_slice(&entry.place.ordinal.to_le_bytes());
        self.filter.insert(&entry.key);
        self.entries += 1;
        if self.page.len() == PAGE_ENTRIES * ENTRY_BYTES {
            self.end_page()
        } else {
            Ok(())
        }
    }

    fn end_page(&mut self) -> Result<()> {
        if self.page.is_empty() {
            return Ok(());
        }
        self.page.resize(PAGE_BYTES - TAG_BYTES, 0xFF);
        let number = u64::try_from(self.fence.len()).unwrap_or(0);
        let tag = tag(&self.hasher, number, &self.page);
        let written = self
            .file
            .write_all(&tag)
            .and_then(|()| self.file.write_all(&self.page));
        written.map_err(failed(&self.path))?;
        self.page.clear();
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Run> {
        self.end_page()?;
        let file = self
            .file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error);
        let file = file.map_err(failed(&self.path))?;
        Ok(Run {
            id: self.id,
            path: self.path,
            file,
            hasher: self.hasher,
            entries: self.entries,
            fence: self.fence,
            filter: self.filter,
        })
    }
}

impl Run {
    /// Opens a run again, reading all of it: every page is checked, fence and filter are made anew.
    pub(crate) fn open(path: PathBuf, id: RunId, key: &SecretKey, entries: u64) -> Result<Self> {
        let file = File::open(&path).map_err(failed(&path))?;
        let pages = entries.div_ceil(PAGE_ENTRIES as u64);
        let length = file.metadata().map_err(failed(&path))?.len();
        if Some(length) != pages.checked_mul(PAGE_BYTES as u64) {
            return Err(damaged(&path));
        }
        let mut run = Self {
            id,
            path,
            file,
            hasher: run_hasher(key, &id),
            entries,
            fence: Vec::new(),
            filter: Filter::new(usize::try_from(entries).map_err(|_| damaged(Path::new("index")))?),
        };
        let (mut fence, mut filter) = (
            Vec::new(),
            std::mem::replace(&mut run.filter, Filter::new(0)),
        );
        let mut last = None;
        for page in 0..pages {
            let entries = run.page(page)?;
            fence.extend(entries.first().map(|entry| prefix(&entry.key)));
            for entry in &entries {
                if last.is_some_and(|last| last >= *entry) {
                    return Err(damaged(&run.path));
                }
                last = Some(*entry);
                filter.insert(&entry.key);
            }
        }
        (run.fence, run.filter) = (fence, filter);
        Ok(run)
    }

    /// Every entry of a key.
    pub(crate) fn find(&self, key: &EntryKey) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        if !self.filter.may_hold(key) {
            return Ok(found);
        }
        let wanted = prefix(key);
        // Equal prefixes may begin in the page before the first whose own first entry has it.
        let first = self
            .fence
            .partition_point(|at| *at < wanted)
            .saturating_sub(1);
        for page in first..self.fence.len() {
            if self.fence.get(page).is_none_or(|at| *at > wanted) {
                break;
            }
            let entries = self.page(u64::try_from(page).unwrap_or(u64::MAX))?;
            found.extend(entries.into_iter().filter(|entry| entry.key == *key));
        }
        Ok(found)
    }

    /// All entries, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Result<Entry>> + '_ {
        let pages = self.entries.div_ceil(PAGE_ENTRIES as u64);
        (0..pages).flat_map(|page| match self.page(page) {
            Ok(entries) => entries.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })
    }

    fn page(&self, number: u64) -> Result<Vec<Entry>> {
        let mut bytes = [0u8; PAGE_BYTES];
        let offset = number.saturating_mul(PAGE_BYTES as u64);
        read_exact_at(&self.file, &mut bytes, offset).map_err(failed(&self.path))?;
        let (found, body) = bytes.split_at(TAG_BYTES);
        // Pages are numbered from one in their tags: the writer counts a page when it begins.
        if tag(&self.hasher, number.saturating_add(1), body) != found {
            return Err(damaged(&self.path));
        }
        let before = number.saturating_mul(PAGE_ENTRIES as u64);
        let count = self.entries.saturating_sub(before).min(PAGE_ENTRIES as u64);
        let count = usize::try_from(count).unwrap_or(0);
        let (raw, _) = body.as_chunks::<ENTRY_BYTES>();
        let entries = raw.iter().take(count).filter_map(|raw| {
            let (key, rest) = raw.split_first_chunk::<16>()?;
            let (pack, ordinal) = rest.split_first_chunk::<4>()?;
            let place = BlobPlace {
                pack: u32::from_le_bytes(*pack),
                ordinal: u32::from_le_bytes(ordinal.try_into().ok()?),
            };
            Some(Entry { key: *key, place })
        });
        Ok(entries.collect())
    }

    pub(crate) fn id(&self) -> RunId {
        self.id
    }

    pub(crate) fn entry_count(&self) -> u64 {
        self.entries
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.filter.memory_bytes() + u64::try_from(self.fence.capacity() * 8).unwrap_or(0)
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        u64::try_from(self.fence.len() * PAGE_BYTES).unwrap_or(u64::MAX)
    }

    /// Removes the file of a run that was merged away. One that stays is removed when the cache is opened next.
    pub(crate) fn discard(self) {
        drop(self.file);
        std::fs::remove_file(&self.path).ok();
    }

    /// Makes the file durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(failed(&self.path))
    }
}
