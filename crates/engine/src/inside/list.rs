//! Files of a folder, told one after the other in bounded memory; and the bytes of one file.
//!
//! Each folder is told sorted by name, as long as it has at most 65,536 entries; longer ones are told in runs of that
//! many, each sorted. A folder's own names come first, then what lies below its folders. Links are not followed. Where
//! names are enough, no more is read than the directories themselves. The folders that come next are read beforehand by
//! other threads.

mod ahead;

use std::collections::HashSet;
use std::sync::Arc;
use std::thread::Scope;

use guestfs::filesystem::{DirectoryCursor, FileKind, Metadata, Timestamp, UnixOwner};
use guestfs::{FileId, FileName};

use self::ahead::{AHEAD_FOLDERS, Ahead, Ending, Entry, Known, Names};
use super::Place;
use super::place::display_path;
use crate::transfer::explained;
use crate::{Cancellation, Error, ErrorKind, Result};

/// Entries that are held to be sorted.
const SORTED_MAX: usize = 65_536;
/// Folders that are known at once; a listing of more is cut and says so.
const FOLDERS_MAX: usize = 8 << 20;
const DEPTH_MAX: usize = 10_000;
const DAMAGE_MAX: usize = 10_000;
const READ_BYTES: usize = 1 << 20;

/// How far down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What stands in the folder.
    Folder,
    /// Everything below, too.
    Everything,
}

/// How much is told of each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Its name and kind.
    Names,
    /// All that is known.
    Metadata,
}

/// When it happened: modified and created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListedTimes {
    /// The last change of its bytes.
    pub modified: Option<Timestamp>,
    /// Its birth.
    pub created: Option<Timestamp>,
}

/// A folder whose names are told.
#[derive(Debug)]
struct ListedFolder {
    names: Vec<FileName>,
    /// Its path as text with a slash at the end.
    text: String,
}

impl ListedFolder {
    fn new(names: Vec<FileName>) -> Arc<Self> {
        let mut text = display_path(&names);
        if !text.ends_with('/') {
            text.push('/');
        }
        Arc::new(Self { names, text })
    }
}

/// A file as it is told.
#[derive(Debug, Clone)]
pub struct ListedFile {
    folder: Arc<ListedFolder>,
    /// Its name in its folder; none for the root of a file system.
    name: Option<FileName>,
    /// What it is, where that is known.
    pub kind: Option<FileKind>,
    /// What is known of it, or why nothing is; nothing where only names are told.
    pub metadata: Option<std::result::Result<Metadata, String>>,
    /// Where it leads, if it is a link.
    pub link_target: Option<FileName>,
}

impl ListedFile {
    /// Its path from the root of its file system as text.
    pub fn display_path(&self) -> String {
        let mut text = String::new();
        self.add_path_to(&mut text);
        text
    }

    /// Adds its path to a text.
    pub fn add_path_to(&self, text: &mut String) {
        match &self.name {
            None => text.push('/'),
            Some(name) => {
                text.push_str(&self.folder.text);
                text.push_str(&String::from_utf8_lossy(name.as_bytes()));
            }
        }
    }

    /// Its name in its folder as text.
    pub fn display_name(&self) -> String {
        let name = self.name.as_ref();
        name.map_or_else(|| "/".to_owned(), ToString::to_string)
    }

    /// The bytes of its path, where that is no text.
    pub fn path_bytes(&self) -> Option<Vec<u8>> {
        let names = || self.folder.names.iter().chain(&self.name);
        let is_text = |name: &FileName| std::str::from_utf8(name.as_bytes()).is_ok();
        if names().all(is_text) {
            return None;
        }
        Some(
            names()
                .flat_map(|name| [b"/", name.as_bytes()].concat())
                .collect(),
        )
    }

    /// Its metadata, where they were asked for and could be read.
    pub fn known(&self) -> Option<&Metadata> {
        self.metadata.as_ref()?.as_ref().ok()
    }

    /// Its owner and mode, where that is known.
    pub fn owner(&self) -> Option<UnixOwner> {
        self.known()?.owner
    }

    /// When it was made and changed.
    pub fn times(&self) -> ListedTimes {
        self.known()
            .map(|metadata| ListedTimes {
                modified: metadata.times.modified,
                created: metadata.times.created,
            })
            .unwrap_or_default()
    }
}

/// Whether an error is about what lies there, so that others can be told all the same.
pub(crate) fn is_local(kind: guestfs::ErrorKind) -> bool {
    !matches!(kind, guestfs::ErrorKind::Io | guestfs::ErrorKind::Cancelled)
}

/// What is damaged, in words; of very much, the first of it and how much more there is.
#[derive(Default)]
struct Damage {
    told: Vec<String>,
    more: u64,
}

impl Damage {
    fn add(&mut self, path: &[FileName], why: &str) {
        if self.told.len() >= DAMAGE_MAX {
            self.more = self.more.saturating_add(1);
        } else {
            self.told.push(format!("{}: {why}", display_path(path)));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told.push(format!("and {} more", self.more));
        }
        self.told
    }
}

/// A listing under way.
struct Listing<'a, V> {
    place: &'a Place,
    detail: Detail,
    cancel: &'a Cancellation,
    visit: V,
    damage: Damage,
}

/// Tells the files of a folder, or the one file that `place` is. What is damaged is returned in words.
///
/// # Errors
/// [`ErrorKind::Cancelled`], what reading or `visit` answered.
pub fn list(
    place: &Place,
    depth: Depth,
    detail: Detail,
    cancel: &Cancellation,
    visit: impl FnMut(ListedFile) -> Result<()>,
) -> Result<Vec<String>> {
    let mut listing = Listing {
        place,
        detail,
        cancel,
        visit,
        damage: Damage::default(),
    };
    let metadata = place.file_system.metadata(place.file)?;
    if metadata.kind != FileKind::Directory {
        let above = place.path.split_last().map_or(&[][..], |(_, above)| above);
        let folder = ListedFolder::new(above.to_vec());
        let entry = Entry {
            name: FileName::from_bytes(Vec::new()),
            file: place.file,
            kind: None,
            known: None,
        };
        let mut told = listing.told(&folder, entry)?;
        told.name = place.path.last().cloned();
        (listing.visit)(told)?;
        return Ok(listing.damage.finish());
    }
    let first = listing.folder(place.file, &place.path, None)?;
    if depth == Depth::Everything {
        let ahead = Ahead::new(&*place.file_system, detail, cancel);
        std::thread::scope(|scope| {
            let _ending = Ending(&ahead);
            listing.below(first, &ahead, scope)
        })?;
    }
    Ok(listing.damage.finish())
}

/// Threads that read beforehand: more than cores, for they wait for the disk.
fn thread_count() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    cores.saturating_mul(2).clamp(2, 8)
}

impl<V: FnMut(ListedFile) -> Result<()>> Listing<'_, V> {
    /// Tells everything below the folders of the first one.
    fn below<'scope>(
        &mut self,
        first: Vec<(FileName, FileId)>,
        ahead: &'scope Ahead<'_>,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<()> {
        let mut seen = HashSet::from([self.place.file]);
        let mut path = self.place.path.clone();
        // Folders that are still to be told, those of one folder together, the next one last.
        let mut waiting = vec![first];
        let mut threads = 0;
        while let Some(folders) = waiting.last_mut() {
            let Some((name, file)) = folders.pop() else {
                waiting.pop();
                if !waiting.is_empty() {
                    path.pop();
                }
                continue;
            };
            path.push(name);
            let names = ahead.take(file);
            if path.len() > DEPTH_MAX || seen.len() >= FOLDERS_MAX || !seen.insert(file) {
                self.damage.add(&path, "met before, or too deep");
                path.pop();
                continue;
            }
            let next = waiting
                .iter()
                .rev()
                .flat_map(|folders| folders.iter().rev());
            let is_new = ahead.expect(next.take(AHEAD_FOLDERS).map(|(_, file)| *file));
            if is_new && threads < thread_count() {
                threads = threads.saturating_add(1);
                scope.spawn(|| ahead.work());
            }
            waiting.push(self.folder(file, &path, names)?);
        }
        Ok(())
    }

    /// Tells the names in one folder, of which some may have been read, and gives back the folders among them, the last
    /// one first.
    fn folder(
        &mut self,
        folder: FileId,
        path: &[FileName],
        mut read: Option<Names>,
    ) -> Result<Vec<(FileName, FileId)>> {
        let listed = ListedFolder::new(path.to_vec());
        let mut cursor = Some(DirectoryCursor::default());
        let mut below = Vec::new();
        while let Some(after) = cursor {
            self.cancel.check()?;
            let (entries, next) = self.run_of(folder, after, path, read.take())?;
            cursor = next;
            for entry in entries {
                let file = entry.file;
                let told = self.told(&listed, entry)?;
                if told.kind == Some(FileKind::Directory)
                    && let Some(name) = &told.name
                {
                    below.push((name.clone(), file));
                }
                (self.visit)(told)?;
            }
        }
        below.reverse();
        Ok(below)
    }

    /// The next entries of a folder, sorted, and where to go on, if there is more. Damage ends the folder.
    fn run_of(
        &mut self,
        folder: FileId,
        mut after: DirectoryCursor,
        path: &[FileName],
        read: Option<Names>,
    ) -> Result<(Vec<Entry>, Option<DirectoryCursor>)> {
        let fs = &*self.place.file_system;
        let mut entries: Vec<Entry> = Vec::new();
        let mut read = read;
        loop {
            let room = SORTED_MAX.saturating_sub(entries.len());
            let names = read.take().unwrap_or_else(|| {
                let stop = || self.cancel.check().is_err();
                ahead::names(fs, (folder, after), self.detail, room, &stop)
            });
            self.cancel.check()?;
            let is_first = entries.is_empty();
            entries.extend(names.entries);
            if !is_first {
                entries.sort_by(|a, b| a.name.cmp(&b.name));
            }
            match names.outcome {
                Ok(()) => {}
                Err(error) if is_local(error.kind()) => {
                    self.damage.add(path, &explained(&Error::from(error)));
                    return Ok((entries, None));
                }
                Err(error) => return Err(error.into()),
            }
            match names.next {
                Some(next) if entries.len() < SORTED_MAX => after = next,
                next => return Ok((entries, next)),
            }
        }
    }

    fn told(&self, folder: &Arc<ListedFolder>, entry: Entry) -> Result<ListedFile> {
        let mut told = ListedFile {
            folder: Arc::clone(folder),
            name: Some(entry.name),
            kind: entry.kind,
            metadata: None,
            link_target: None,
        };
        if self.detail == Detail::Names && entry.kind.is_some() {
            return Ok(told);
        }
        let Known {
            metadata,
            link_target,
        } = entry
            .known
            .unwrap_or_else(|| ahead::known(&*self.place.file_system, entry.file));
        let metadata = match metadata {
            Ok(metadata) => Ok(metadata),
            Err(error) if is_local(error.kind()) => Err(explained(&error.into())),
            Err(error) => return Err(error.into()),
        };
        told.kind = metadata.as_ref().ok().map(|metadata| metadata.kind);
        told.metadata = Some(metadata);
        told.link_target = link_target;
        Ok(told)
    }
}

/// Gives the contents of a file piece by piece.
///
/// # Errors
/// [`ErrorKind::Invalid`] when it has none; what reading or `take` answered.
pub fn read_file(
    place: &Place,
    cancel: &Cancellation,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let fs = &place.file_system;
    let metadata = fs.metadata(place.file)?;
    if metadata.kind == FileKind::Directory {
        let what = format!("{} is a folder", place.display_path());
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    if metadata.kind != FileKind::Regular {
        let what = format!("{} has no contents", place.display_path());
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let reader = fs
        .open(place.file, None)
        .map_err(|error| error.within(place.display_path()))?;
    let size = reader.size_bytes();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0_u64;
    while at < size {
        cancel.check()?;
        let length = usize::try_from(size.saturating_sub(at))
            .unwrap_or(usize::MAX)
            .min(READ_BYTES);
        let piece = buffer.get_mut(..length).unwrap_or_default();
        reader.read_at(at, piece)?;
        take(piece)?;
        at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
    }
    Ok(at)
}
