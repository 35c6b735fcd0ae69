//! A page of names from a tree of directories, in order, with memory bounded by the page and not by the directory.
//!
//! ```text
//!   a directory's entries, as keys:   a-b   a/   a0        a directory sorts as its name with the slash, because
//!   the names below:                  a-b  a/x a/y  a0     that is how the names under it begin
//! ```
//!
//! A directory with more entries than a page is read again for each batch: the smallest keys behind the last one.

use std::collections::BinaryHeap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::{At, Step, open_at};
use crate::{ListEntry, MAX_COMPONENTS, ObjectName};

/// Fewest keys kept per reading of a directory, so that many empty directories do not cost a reading each.
const MIN_BATCH: usize = 1_024;

pub(super) struct Listing<'a> {
    after: Option<&'a ObjectName>,
    wanted: usize,
    entries: Vec<ListEntry>,
}

struct Batch {
    /// Sorted; a directory's key ends in a slash.
    keys: Vec<String>,
    /// Whether the directory has more keys behind these.
    rest: Rest,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    None,
    More,
}

impl<'a> Listing<'a> {
    /// Gathers up to `wanted` entries behind `after`.
    pub(super) fn new(after: Option<&'a ObjectName>, wanted: usize) -> Self {
        Self {
            after,
            wanted,
            entries: Vec::new(),
        }
    }

    pub(super) fn into_entries(self) -> Vec<ListEntry> {
        self.entries
    }

    /// Walks `directory`, whose names begin with `prefix` (empty, or ending in a slash).
    pub(super) fn walk(&mut self, directory: &OwnedFd, prefix: &str) -> Step<()> {
        let mut last: Option<String> = None;
        loop {
            let batch = self.read_batch(directory, prefix, last.as_deref())?;
            for key in &batch.keys {
                if self.entries.len() >= self.wanted {
                    return Ok(());
                }
                self.take(directory, prefix, key)?;
            }
            if batch.rest == Rest::None {
                return Ok(());
            }
            last = batch.keys.into_iter().next_back();
        }
    }

    fn take(&mut self, directory: &OwnedFd, prefix: &str, key: &str) -> Step<()> {
        if let Some(name) = key.strip_suffix('/') {
            return match open_at(directory.as_fd(), name) {
                Ok(below) => match self.walk(&below, &format!("{prefix}{key}")) {
                    // Emptied and removed after it was opened.
                    Err(failure) if failure.errno == Errno::NOENT => Ok(()),
                    other => other,
                },
                // Removed or replaced while we were listing.
                Err(failure) if matches!(failure.errno, Errno::NOENT | Errno::NOTDIR) => Ok(()),
                Err(failure) => Err(failure),
            };
        }
        let stat = match rustix::fs::statat(directory, key, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.at("look at an entry")?,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        if let Ok(name) = ObjectName::new(format!("{prefix}{key}")) {
            let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
            self.entries.push(ListEntry { name, size_bytes });
        }
        Ok(())
    }

    fn read_batch(&self, directory: &OwnedFd, prefix: &str, last: Option<&str>) -> Step<Batch> {
        let room = self
            .wanted
            .saturating_sub(self.entries.len())
            .max(MIN_BATCH);
        let mut smallest: BinaryHeap<String> = BinaryHeap::new();
        let mut rest = Rest::None;
        let mut entries = Dir::read_from(directory).at("read a directory")?;
        while let Some(entry) = entries.read() {
            let entry = entry.at("read a directory")?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            let Some(key) = key_of(directory, prefix, name, entry.file_type())? else {
                continue;
            };
            if last.is_some_and(|last| key.as_str() <= last) || !self.wants(prefix, &key) {
                continue;
            }
            smallest.push(key);
            if smallest.len() > room {
                smallest.pop();
                rest = Rest::More;
            }
        }
        Ok(Batch {
            keys: smallest.into_sorted_vec(),
            rest,
        })
    }

    /// Whether anything at or below `key` lies behind `after`.
    fn wants(&self, prefix: &str, key: &str) -> bool {
        let Some(after) = self.after else { return true };
        let full = format!("{prefix}{key}");
        full.as_str() > after.as_str() || (key.ends_with('/') && after.as_str().starts_with(&full))
    }
}

/// The key of an entry that can be an object or hold some; `None` for everything else, links included.
fn key_of(directory: &OwnedFd, prefix: &str, name: &str, said: FileType) -> Step<Option<String>> {
    // Dots cover `.`, `..`, the temporary directory, `.nfs…` and `.snapshot`.
    if ObjectName::new(name).is_err() {
        return Ok(None);
    }
    let file_type = match said {
        FileType::Unknown => match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => FileType::from_raw_mode(other.at("look at an entry")?.st_mode),
        },
        known => known,
    };
    let depth = prefix.matches('/').count();
    Ok(match file_type {
        FileType::RegularFile => Some(name.to_owned()),
        // No name has more components, so nothing deeper is an object.
        FileType::Directory if depth.saturating_add(1) < MAX_COMPONENTS => Some(format!("{name}/")),
        _ => None,
    })
}
