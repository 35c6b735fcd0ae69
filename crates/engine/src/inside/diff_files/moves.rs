//! Files that left one path and came up at another: held back until both sides of a volume were seen.
//!
//! A file is the same when its file system gives it the same id and the same time of birth; an id alone is given anew once
//! its file is gone. File systems that keep no time of birth, or only whole seconds of it, or whose ids are places in folders
//! (FAT, exFAT), tell nothing.

use std::collections::HashMap;

use guestfs::filesystem::{FileSystemKind, Metadata, Timestamp};
use guestfs::{FileId, FileName};

/// Files that are held back at once.
const HELD_MAX: usize = 100_000;

/// A file on one side only.
#[derive(Debug, Clone)]
pub(super) struct Lone {
    pub(super) file: FileId,
    pub(super) path: Vec<FileName>,
    pub(super) metadata: Metadata,
}

/// What makes it the same file.
type Birth = (FileId, Timestamp);

/// Files seen on one side only so far.
#[derive(Debug, Default)]
pub(super) struct Held {
    removed: HashMap<Birth, Lone>,
    added: Vec<Lone>,
    is_full: bool,
}

/// Whether ids of this file system are worth holding a file back for.
pub(super) fn tells_moves(kind: FileSystemKind) -> bool {
    use FileSystemKind as Kind;
    !matches!(kind, Kind::Fat12 | Kind::Fat16 | Kind::Fat32 | Kind::ExFat)
}

fn birth(lone: &Lone) -> Option<Birth> {
    let created = lone.metadata.times.created;
    let precise = created.filter(|time| time.nanoseconds != 0);
    precise.map(|time| (lone.file, time))
}

impl Held {
    fn has_room(&mut self) -> bool {
        let held = self.removed.len().saturating_add(self.added.len());
        self.is_full |= held >= HELD_MAX;
        !self.is_full
    }

    /// Holds a removed file back; gives it back when nothing can be known or too many are held.
    pub(super) fn hold_removed(&mut self, lone: Lone) -> Option<Lone> {
        let Some(birth) = birth(&lone).filter(|_| self.has_room()) else {
            return Some(lone);
        };
        // Of a file with several names one is held.
        self.removed.insert(birth, lone)
    }

    /// The same for an added one.
    pub(super) fn hold_added(&mut self, lone: Lone) -> Option<Lone> {
        if birth(&lone).is_none() || !self.has_room() {
            return Some(lone);
        }
        self.added.push(lone);
        None
    }

    /// Whether more files were on one side than can be held.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Moved files, then those that were removed and those that were added.
    pub(super) fn settle(self) -> (Vec<(Lone, Lone)>, Vec<Lone>, Vec<Lone>) {
        let mut removed = self.removed;
        let (mut moved, mut added) = (Vec::new(), Vec::new());
        for lone in self.added {
            let earlier = birth(&lone).and_then(|birth| {
                let is_same = |old: &Lone| old.metadata.kind == lone.metadata.kind;
                removed
                    .get(&birth)
                    .is_some_and(is_same)
                    .then(|| removed.remove(&birth))
                    .flatten()
            });
            match earlier {
                Some(earlier) => moved.push((earlier, lone)),
                None => added.push(lone),
            }
        }
        let mut removed: Vec<Lone> = removed.into_values().collect();
        removed.sort_by(|a, b| a.path.cmp(&b.path));
        (moved, removed, added)
    }
}
