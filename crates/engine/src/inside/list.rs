//! Files of a folder, told one after the other in bounded memory; and the bytes of one file.
//!
//! Each folder is told sorted by name, as long as it has at most 65,536 entries; longer ones are told in runs of that
//! many, each sorted. A folder's own names come first, then what lies below its folders. Links are not followed. Where
//! names are enough, no more is read than the directories themselves.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use guestfs::filesystem::{
    DirectoryCursor, DirectoryEntry, FileKind, Metadata, Timestamp, UnixOwner,
};
use guestfs::{FileId, FileName};

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
        match &self.name {
            None => "/".to_owned(),
            Some(name) => {
                let name = String::from_utf8_lossy(name.as_bytes());
                [self.folder.text.as_str(), &name].concat()
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
        let told = listing.told(&folder, place.path.last().cloned(), place.file, None)?;
        (listing.visit)(told)?;
        return Ok(listing.damage.finish());
    }
    let mut seen = HashSet::from([place.file]);
    let mut path = place.path.clone();
    // Folders that are still to be told, those of one folder together, the next one last.
    let mut waiting = vec![listing.folder(place.file, &path)?];
    if depth == Depth::Folder {
        return Ok(listing.damage.finish());
    }
    while let Some(folders) = waiting.last_mut() {
        let Some((name, file)) = folders.pop() else {
            waiting.pop();
            if !waiting.is_empty() {
                path.pop();
            }
            continue;
        };
        path.push(name);
        if path.len() > DEPTH_MAX || seen.len() >= FOLDERS_MAX || !seen.insert(file) {
            listing.damage.add(&path, "met before, or too deep");
            path.pop();
            continue;
        }
        waiting.push(listing.folder(file, &path)?);
    }
    Ok(listing.damage.finish())
}

/// A name that is to be told.
struct Entry {
    name: FileName,
    file: FileId,
    kind: Option<FileKind>,
}

impl<V: FnMut(ListedFile) -> Result<()>> Listing<'_, V> {
    /// Tells the names in one folder, and gives back the folders among them, the last one first.
    fn folder(&mut self, folder: FileId, path: &[FileName]) -> Result<Vec<(FileName, FileId)>> {
        let listed = ListedFolder::new(path.to_vec());
        let mut cursor = DirectoryCursor::default();
        let mut below = Vec::new();
        loop {
            self.cancel.check()?;
            let (mut entries, next) = self.run_of(folder, cursor, path)?;
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            for entry in entries {
                let file = entry.file;
                let told = self.told(&listed, Some(entry.name), file, entry.kind)?;
                if told.kind == Some(FileKind::Directory)
                    && let Some(name) = &told.name
                {
                    below.push((name.clone(), file));
                }
                (self.visit)(told)?;
            }
            match next {
                Some(next) => cursor = next,
                None => break,
            }
        }
        below.reverse();
        Ok(below)
    }

    /// The next entries of a folder, and where to go on, if there is more. Damage ends the folder.
    fn run_of(
        &mut self,
        folder: FileId,
        after: DirectoryCursor,
        path: &[FileName],
    ) -> Result<(Vec<Entry>, Option<DirectoryCursor>)> {
        let (mut entries, mut cursor) = (Vec::new(), after);
        let mut visit = |entry: DirectoryEntry| {
            cursor = entry.next;
            entries.push(Entry {
                name: entry.name,
                file: entry.file,
                kind: entry.kind,
            });
            if entries.len() >= SORTED_MAX {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let listed = self.place.file_system.list(folder, after, &mut visit);
        match listed {
            Ok(()) => {
                let is_full = entries.len() >= SORTED_MAX;
                Ok((entries, is_full.then_some(cursor)))
            }
            Err(error) if is_local(error.kind()) => {
                self.damage.add(path, &explained(&Error::from(error)));
                Ok((entries, None))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn told(
        &self,
        folder: &Arc<ListedFolder>,
        name: Option<FileName>,
        file: FileId,
        kind: Option<FileKind>,
    ) -> Result<ListedFile> {
        let fs = &self.place.file_system;
        let mut told = ListedFile {
            folder: Arc::clone(folder),
            name,
            kind,
            metadata: None,
            link_target: None,
        };
        if self.detail == Detail::Names && kind.is_some() {
            return Ok(told);
        }
        let metadata = match fs.metadata(file) {
            Ok(metadata) => Ok(metadata),
            Err(error) if is_local(error.kind()) => Err(explained(&error.into())),
            Err(error) => return Err(error.into()),
        };
        told.kind = metadata.as_ref().ok().map(|metadata| metadata.kind);
        told.metadata = Some(metadata);
        if told.kind == Some(FileKind::SymbolicLink) {
            // A link that cannot be read is told as one that leads nowhere; opening it tells why.
            told.link_target = fs.read_link(file).ok();
        }
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
