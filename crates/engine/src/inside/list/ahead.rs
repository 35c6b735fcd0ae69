//! Folders that are read before they are told: several threads are where the telling goes next.
//!
//! ```text
//!   telling ─ expect ─► [folder][folder][folder] ─► threads: names, what is known of them, sorted ─┐
//!      ▲                                                                                           │
//!      └──────────── take, in its own order: waits for what is being read ◄── held ◄───────────────┘
//!      └── what no thread has begun is read by the telling itself
//! ```
//!
//! **Invariants.** At most [`AHEAD_FOLDERS`] folders are expected at once beyond those that are held, of each at most
//! [`AHEAD_ENTRIES`] names, and nothing is begun while [`HELD_ENTRIES_MAX`] names are held. What reading answered is told
//! where the folder is told, never earlier. What is given out is what the telling itself would have read.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use guestfs::filesystem::{DirectoryCursor, DirectoryEntry, FileKind, Metadata};
use guestfs::{FileId, FileName, FileSystem};

use super::Detail;
use crate::Cancellation;

/// Folders that are read beforehand.
pub(super) const AHEAD_FOLDERS: usize = 16;
/// Names of one folder that are read beforehand; who tells it reads the rest.
const AHEAD_ENTRIES: usize = 8192;
const HELD_ENTRIES_MAX: usize = 65_536;

/// What is known of a file besides its name.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) metadata: guestfs::Result<Metadata>,
    pub(super) link_target: Option<FileName>,
}

/// A name that is to be told.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: FileName,
    pub(super) file: FileId,
    pub(super) kind: Option<FileKind>,
    /// Nothing where names are enough.
    pub(super) known: Option<Known>,
}

/// Names of a folder, or the first of them.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) entries: Vec<Entry>,
    /// Where to go on, if there may be more.
    pub(super) next: Option<DirectoryCursor>,
    /// What reading them answered.
    pub(super) outcome: guestfs::Result<()>,
}

/// Asks the file system for all that is told of a file.
pub(super) fn known(fs: &dyn FileSystem, file: FileId) -> Known {
    let metadata = fs.metadata(file);
    let is_link = metadata
        .as_ref()
        .is_ok_and(|metadata| metadata.kind == FileKind::SymbolicLink);
    Known {
        // A link that cannot be read is told as one that leads nowhere; opening it tells why.
        link_target: is_link.then(|| fs.read_link(file).ok()).flatten(),
        metadata,
    }
}

/// Reads at most so many names of a folder behind a place, sorted. Whoever sets `stop` does not want them any more.
pub(super) fn names(
    fs: &dyn FileSystem,
    (folder, after): (FileId, DirectoryCursor),
    detail: Detail,
    limit: usize,
    stop: &dyn Fn() -> bool,
) -> Names {
    let (mut entries, mut cursor) = (Vec::new(), after);
    let mut visit = |entry: DirectoryEntry| {
        cursor = entry.next;
        entries.push(Entry {
            name: entry.name,
            file: entry.file,
            kind: entry.kind,
            known: None,
        });
        if entries.len() >= limit || (entries.len().is_multiple_of(1024) && stop()) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let outcome = fs.list(folder, after, &mut visit);
    let is_cut = outcome.is_ok() && entries.len() >= limit;
    if detail == Detail::Metadata || entries.iter().any(|entry| entry.kind.is_none()) {
        // In the order in which they were made: so they lie, mostly.
        entries.sort_unstable_by_key(|entry| entry.file);
        for entry in &mut entries {
            if stop() {
                break;
            }
            if detail == Detail::Metadata || entry.kind.is_none() {
                entry.known = Some(known(fs, entry.file));
            }
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Names {
        entries,
        next: is_cut.then_some(cursor),
        outcome,
    }
}

enum Slot {
    /// No thread has begun.
    Expected,
    Coming,
    Here(Names),
}

#[derive(Default)]
struct State {
    expected: VecDeque<FileId>,
    slots: HashMap<FileId, Slot>,
    held_entries: usize,
}

/// Folders on their way.
pub(super) struct Ahead<'a> {
    fs: &'a dyn FileSystem,
    detail: Detail,
    cancel: &'a Cancellation,
    state: Mutex<State>,
    /// There is something to read, or nothing ever again.
    begun: Condvar,
    /// Something was read.
    read: Condvar,
    is_over: AtomicBool,
}

/// Gives up what a thread has begun and did not finish.
struct Begun<'s, 'a> {
    ahead: &'s Ahead<'a>,
    folder: FileId,
    names: Option<Names>,
}

impl Drop for Begun<'_, '_> {
    fn drop(&mut self) {
        let mut state = self.ahead.lock();
        match self.names.take() {
            Some(names) => {
                state.held_entries = state.held_entries.saturating_add(names.entries.len());
                state.slots.insert(self.folder, Slot::Here(names));
            }
            None => {
                state.slots.remove(&self.folder);
            }
        }
        drop(state);
        self.ahead.read.notify_all();
    }
}

impl<'a> Ahead<'a> {
    pub(super) fn new(fs: &'a dyn FileSystem, detail: Detail, cancel: &'a Cancellation) -> Self {
        Self {
            fs,
            detail,
            cancel,
            state: Mutex::default(),
            begun: Condvar::new(),
            read: Condvar::new(),
            is_over: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || self.cancel.check().is_err()
    }

    /// Says which folders are told next, the next one first. Whether there is something to do for threads.
    pub(super) fn expect(&self, folders: impl Iterator<Item = FileId>) -> bool {
        let mut state = self.lock();
        if state.held_entries >= HELD_ENTRIES_MAX {
            return false;
        }
        let mut is_new = false;
        for folder in folders {
            if !state.slots.contains_key(&folder) {
                state.slots.insert(folder, Slot::Expected);
                state.expected.push_back(folder);
                is_new = true;
            }
        }
        drop(state);
        if is_new {
            self.begun.notify_all();
        }
        is_new
    }

    /// What was read of a folder; nothing when no thread has begun it.
    pub(super) fn take(&self, folder: FileId) -> Option<Names> {
        let mut state = self.lock();
        while let Some(Slot::Coming) = state.slots.get(&folder) {
            let waited = self.read.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        match state.slots.remove(&folder)? {
            Slot::Here(names) => {
                state.held_entries = state.held_entries.saturating_sub(names.entries.len());
                Some(names)
            }
            Slot::Expected | Slot::Coming => None,
        }
    }

    /// Lets the threads end.
    pub(super) fn end(&self) {
        let state = self.lock();
        self.is_over.store(true, Ordering::Relaxed);
        drop(state);
        self.begun.notify_all();
    }

    /// The next folder that nobody has begun; waits for one. Nothing when it is over.
    fn next(&self) -> Option<Begun<'_, 'a>> {
        let mut state = self.lock();
        loop {
            if self.is_over() {
                return None;
            }
            let Some(folder) = state.expected.pop_front() else {
                let waited = self.begun.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // Otherwise it was told meanwhile.
            if let Some(slot @ Slot::Expected) = state.slots.get_mut(&folder) {
                *slot = Slot::Coming;
                return Some(Begun {
                    ahead: self,
                    folder,
                    names: None,
                });
            }
        }
    }

    /// Reads what is expected until it is over: what a thread does.
    pub(super) fn work(&self) {
        while let Some(mut begun) = self.next() {
            let from = (begun.folder, DirectoryCursor::default());
            let stop = || self.is_over();
            begun.names = Some(names(self.fs, from, self.detail, AHEAD_ENTRIES, &stop));
        }
    }
}

/// Ends the threads however the telling ends.
pub(super) struct Ending<'s, 'a>(pub(super) &'s Ahead<'a>);

impl Drop for Ending<'_, '_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
