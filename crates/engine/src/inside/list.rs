//! Files of a folder, told one after the other in bounded memory; and the bytes of one file.
//!
//! Each folder is told sorted by name, as long as it has at most 65,536 entries; longer ones are told in runs of that
//! many, each sorted. Below the first folder nothing is sorted across folders. Links are not followed.

use std::collections::HashSet;
use std::ops::ControlFlow;

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
const READ_BYTES: usize = 1 << 20;

/// How far down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What stands in the folder.
    Folder,
    /// Everything below, too.
    Everything,
}

/// When it happened: modified and created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListedTimes {
    /// The last change of its bytes.
    pub modified: Option<Timestamp>,
    /// Its birth.
    pub created: Option<Timestamp>,
}

/// A file as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Path from the root of its file system.
    pub path: Vec<FileName>,
    /// What is known of it, or why nothing is.
    pub metadata: std::result::Result<Metadata, String>,
    /// Where it leads, if it is a link.
    pub link_target: Option<FileName>,
}

impl ListedFile {
    /// Its path as text.
    pub fn display_path(&self) -> String {
        display_path(&self.path)
    }

    /// Its owner and mode, where that is known.
    pub fn owner(&self) -> Option<UnixOwner> {
        self.metadata.as_ref().ok()?.owner
    }

    /// When it was made and changed.
    pub fn times(&self) -> ListedTimes {
        self.metadata
            .as_ref()
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

/// Tells the files of a folder, or the one file that `place` is. What is damaged is returned in words.
///
/// # Errors
/// [`ErrorKind::Cancelled`], what reading or `visit` answered.
pub fn list(
    place: &Place,
    depth: Depth,
    cancel: &Cancellation,
    mut visit: impl FnMut(ListedFile) -> Result<()>,
) -> Result<Vec<String>> {
    let metadata = place.file_system.metadata(place.file)?;
    let mut damage = Vec::new();
    if metadata.kind != FileKind::Directory {
        visit(told(place, place.file, place.path.clone())?)?;
        return Ok(damage);
    }
    let mut seen = HashSet::from([place.file]);
    let mut folders = vec![(place.file, place.path.clone())];
    while let Some((folder, path)) = folders.pop() {
        let mut cursor = DirectoryCursor::default();
        let mut below = Vec::new();
        loop {
            cancel.check()?;
            let (entries, is_end) = match run_of(place, folder, cursor, &path, &mut damage)? {
                Some(run) => run,
                None => break,
            };
            cursor = entries
                .iter()
                .map(|entry| entry.0)
                .next_back()
                .unwrap_or(cursor);
            let mut names: Vec<_> = entries
                .into_iter()
                .map(|(_, name, file)| (name, file))
                .collect();
            names.sort();
            for (name, file) in names {
                let mut path = path.clone();
                path.push(name);
                let listed = told(place, file, path.clone())?;
                let is_folder = listed
                    .metadata
                    .as_ref()
                    .is_ok_and(|it| it.kind == FileKind::Directory);
                visit(listed)?;
                if is_folder && depth == Depth::Everything {
                    if path.len() > DEPTH_MAX || seen.len() >= FOLDERS_MAX || !seen.insert(file) {
                        damage.push(format!("{}: met before, or too deep", display_path(&path)));
                    } else {
                        below.push((file, path));
                    }
                }
            }
            if is_end {
                break;
            }
        }
        folders.extend(below.into_iter().rev());
    }
    Ok(damage)
}

type Run = (Vec<(DirectoryCursor, FileName, FileId)>, bool);

/// The next entries of a folder, and whether those are the last. Damage ends the folder.
fn run_of(
    place: &Place,
    folder: FileId,
    after: DirectoryCursor,
    path: &[FileName],
    damage: &mut Vec<String>,
) -> Result<Option<Run>> {
    let mut entries = Vec::new();
    let mut visit = |entry: DirectoryEntry| {
        entries.push((entry.next, entry.name, entry.file));
        if entries.len() >= SORTED_MAX {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let listed = place.file_system.list(folder, after, &mut visit);
    let is_full = entries.len() >= SORTED_MAX;
    match listed {
        Ok(()) => Ok(Some((entries, !is_full))),
        Err(error) if is_local(error.kind()) => {
            let error = Error::from(error);
            damage.push(format!("{}: {}", display_path(path), explained(&error)));
            Ok((!entries.is_empty()).then_some((entries, true)))
        }
        Err(error) => Err(error.into()),
    }
}

fn told(place: &Place, file: FileId, path: Vec<FileName>) -> Result<ListedFile> {
    let fs = &place.file_system;
    let metadata = match fs.metadata(file) {
        Ok(metadata) => Ok(metadata),
        Err(error) if is_local(error.kind()) => Err(explained(&error.into())),
        Err(error) => return Err(error.into()),
    };
    let is_link = matches!(&metadata, Ok(metadata) if metadata.kind == FileKind::SymbolicLink);
    // A link that cannot be read is told as one that leads nowhere; opening it tells why.
    let link_target = if is_link {
        fs.read_link(file).ok()
    } else {
        None
    };
    Ok(ListedFile {
        path,
        metadata,
        link_target,
    })
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
