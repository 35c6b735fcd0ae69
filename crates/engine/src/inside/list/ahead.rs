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

use std::collections::{HashMap, VecDeque, hash_map};
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
            if let hash_map::Entry::Vacant(slot) = state.slots.entry(folder) {
                slot.insert(Slot::Expected);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use block::ReadAt;
    use guestfs::filesystem::{
        Cleanliness, FileSystemFacts, FileSystemKind, FileTimes, VolumeRange,
    };

    use super::super::{Depth, list};
    use super::*;
    use crate::inside::{Place, VolumeNumber};

    /// Folders in folders: a folder's number says what is in it, and where damage is.
    struct Tree(FileSystemFacts);

    const DEPTH: u64 = 3;
    const WIDE: u64 = 2 * AHEAD_ENTRIES as u64 + 77;

    /// What lies in a folder: its folders, then its files.
    fn content(folder: u64) -> (Vec<u64>, u64) {
        let depth = (0..).find(|level| folder < 40_u64.pow(*level)).unwrap_or(9);
        let folders = if u64::from(depth) > DEPTH {
            Vec::new()
        } else {
            (1..=folder % 7 + 3).map(|it| folder * 40 + it).collect()
        };
        (folders, if folder == 42 { WIDE } else { folder % 50 })
    }

    impl FileSystem for Tree {
        fn facts(&self) -> &FileSystemFacts {
            &self.0
        }

        fn root(&self) -> FileId {
            FileId { tree: 0, number: 1 }
        }

        fn metadata(&self, file: FileId) -> guestfs::Result<Metadata> {
            Ok(Metadata {
                kind: if file.tree == 0 {
                    FileKind::Directory
                } else {
                    FileKind::Regular
                },
                size_bytes: file.number,
                allocated_bytes: 0,
                link_count: 1,
                times: FileTimes::default(),
                owner: None,
                windows_attributes: None,
                obstacle: None,
            })
        }

        fn list(
            &self,
            directory: FileId,
            after: DirectoryCursor,
            visit: &mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>,
        ) -> guestfs::Result<()> {
            let (folders, files) = content(directory.number);
            let folders = folders.into_iter().map(|number| (0, number));
            // From the last to the first, so that they must be sorted.
            let all = (0..files).rev().map(|number| (1, number)).chain(folders);
            for (next, (tree, number)) in (1..).zip(all) {
                let entry = DirectoryEntry {
                    name: FileName::from(format!("{number:08}-{tree}").as_str()),
                    file: FileId { tree, number },
                    // Some directories do not say what they hold.
                    kind: (number % 3 > 0).then_some(if tree == 0 {
                        FileKind::Directory
                    } else {
                        FileKind::Regular
                    }),
                    next: DirectoryCursor(next),
                };
                if next > after.0 && visit(entry).is_break() {
                    return Ok(());
                }
            }
            if directory.number % 11 == 5 {
                return Err(guestfs::Error::corrupt(format!(
                    "folder {}",
                    directory.number
                )));
            }
            Ok(())
        }

        fn open(&self, _: FileId, _: Option<&FileName>) -> guestfs::Result<Box<dyn ReadAt + '_>> {
            Err(guestfs::Error::unsupported("no bytes"))
        }

        fn read_link(&self, _: FileId) -> guestfs::Result<FileName> {
            Err(guestfs::Error::unsupported("no links"))
        }

        fn used_ranges(
            &self,
            _: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
        ) -> guestfs::Result<()> {
            Ok(())
        }
    }

    /// What a listing has to tell, and what of it is damaged.
    fn expected(folder: u64, path: &str, told: &mut Vec<String>, damaged: &mut Vec<String>) {
        let (folders, files) = content(folder);
        let mut here: Vec<_> = (0..files).map(|it| format!("{path}/{it:08}-1")).collect();
        here.extend(folders.iter().map(|it| format!("{path}/{it:08}-0")));
        here.sort();
        told.extend(here);
        if folder % 11 == 5 {
            damaged.push(format!("{path}: inside the disk: folder {folder}"));
        }
        for it in folders {
            expected(it, &format!("{path}/{it:08}-0"), told, damaged);
        }
    }

    fn place() -> Place {
        Place {
            volume: VolumeNumber(1),
            file_system: Arc::new(Tree(FileSystemFacts {
                kind: FileSystemKind::Ext4,
                version: None,
                label: None,
                id: None,
                size_bytes: 0,
                free_bytes: 0,
                cluster_bytes: 4096,
                cleanliness: Cleanliness::Clean,
                times_are_local: false,
                is_case_insensitive: false,
            })),
            file: FileId { tree: 0, number: 1 },
            path: Vec::new(),
        }
    }

    #[test]
    fn what_was_read_beforehand_is_told_in_order_and_nothing_else() {
        let (mut wanted, mut damaged) = (Vec::new(), Vec::new());
        expected(1, "", &mut wanted, &mut damaged);
        assert!(wanted.len() > 15_000 && damaged.len() > 5);
        for detail in [Detail::Names, Detail::Metadata] {
            let (place, cancel) = (place(), Cancellation::default());
            let mut told = Vec::new();
            let found = list(&place, Depth::Everything, detail, &cancel, |file| {
                assert!(detail == Detail::Names || file.known().is_some());
                told.push(file.display_path());
                Ok(())
            });
            assert_eq!(found.expect("listed"), damaged);
            assert!(told == wanted, "{} of {}", told.len(), wanted.len());
        }
    }

    #[test]
    fn threads_end_with_a_telling_that_is_given_up() {
        let (place, cancel) = (place(), Cancellation::default());
        let mut told = 0;
        let given_up = list(&place, Depth::Everything, Detail::Names, &cancel, |_| {
            told += 1;
            if told < 500 {
                return Ok(());
            }
            Err(crate::Error::new(crate::ErrorKind::Io, "enough"))
        });
        assert_eq!(given_up.expect_err("given up").to_string(), "enough");
        assert_eq!(told, 500);
    }
}
