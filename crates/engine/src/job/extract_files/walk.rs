//! The walk through what is extracted: folders on a stack of their own, what lies in them handed on in runs.
//!
//! ```text
//!   place ─► enter … enter ─► files (a run, in the order in which they lie on the volume) ─► enter a folder below ─► … ─► leave
//! ```
//!
//! **Invariants.** Memory is bounded by the depth, a run of names, and the folders that were met. Nothing is met twice:
//! a folder that leads back to itself is told as a failure. What is damaged is told and the others go on.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::ops::ControlFlow;

use guestfs::filesystem::{DirectoryCursor, FileKind, Metadata, VolumeRange};
use guestfs::{FileId, FileName, FileSystem};

use crate::inside::Place;
use crate::transfer::explained;
use crate::{Cancellation, Error, ErrorKind, Result};

const DEPTH_MAX: usize = 4100;
const FOLDERS_MAX: usize = 8 << 20;
const RUN_ENTRIES: usize = 4096;
const PIECES_MAX: usize = 32;
/// What of a file's number tells when it was made: NTFS counts above it how often the number was given.
const NUMBER_MASK: u64 = (1 << 48) - 1;

/// Something that was found.
pub(super) struct Found {
    pub(super) name: FileName,
    pub(super) file: FileId,
    pub(super) metadata: Metadata,
}

/// Who takes what the walk finds. Everything is told relative to the folder that was entered last.
pub(super) trait Visitor<'env> {
    /// Everything from here on lies on this file system; in this folder of the target, where there are several.
    fn begin(&mut self, place: &'env Place, below: Option<&str>) -> Result<()>;
    /// A folder. An error that belongs to one file means: not entered, go on.
    fn enter(&mut self, folder: Found, role: Role) -> Result<()>;
    /// Anything else, a run of it.
    fn files(&mut self, files: Vec<Found>) -> Result<()>;
    /// The folder entered last has told everything.
    fn leave(&mut self) -> Result<()>;
    /// This could not be had.
    fn fail(&mut self, name: Option<&FileName>, why: &str);
    /// What began is over.
    fn end(&mut self, place: &Place) -> Result<()>;
}

/// Why a folder is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It was asked for, with what it is.
    Wanted,
    /// It leads to what was asked for.
    OnTheWay,
}

/// Whether an error belongs to one file, so that the others can go on.
pub(super) fn is_of_file(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::NotFound | ErrorKind::Invalid
    )
}

/// Walks through all places.
pub(super) fn walk<'env>(
    places: &'env [Place],
    visitor: &mut impl Visitor<'env>,
    cancel: &Cancellation,
) -> Result<()> {
    let mut volumes = places.iter().map(|place| place.volume);
    let first = volumes.next();
    let are_several = volumes.any(|volume| Some(volume) != first);
    for place in places {
        let below = are_several.then(|| format!("volume-{}", place.volume));
        visitor.begin(place, below.as_deref())?;
        one_place(place, visitor, cancel)?;
        visitor.end(place)?;
    }
    Ok(())
}

/// Goes on after an error that belongs to one file.
fn kept_going<'env, T>(
    visitor: &mut impl Visitor<'env>,
    name: Option<&FileName>,
    outcome: Result<T>,
) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_of_file(&error) => {
            visitor.fail(name, &explained(&error));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn found(fs: &dyn FileSystem, name: FileName, file: FileId) -> Result<Found> {
    Ok(Found {
        name,
        file,
        metadata: fs.metadata(file)?,
    })
}

fn one_place<'env>(
    place: &'env Place,
    visitor: &mut impl Visitor<'env>,
    cancel: &Cancellation,
) -> Result<()> {
    let fs = &*place.file_system;
    let Some((last, above)) = place.path.split_last() else {
        return tree(fs, fs.root(), visitor, cancel);
    };
    let mut on_the_way = fs.root();
    for name in above {
        // As it was found: by the file system's own rules.
        let next = fs.find(on_the_way, name)?;
        on_the_way = next.ok_or_else(|| {
            let what = format!("{}: it is gone", place.display_path());
            Error::new(ErrorKind::NotFound, what)
        })?;
        visitor.enter(found(fs, name.clone(), on_the_way)?, Role::OnTheWay)?;
    }
    let outcome = found(fs, last.clone(), place.file);
    if let Some(it) = kept_going(visitor, Some(last), outcome)? {
        if it.metadata.kind == FileKind::Directory {
            let file = it.file;
            let entered = visitor.enter(it, Role::Wanted);
            if kept_going(visitor, Some(last), entered)?.is_some() {
                tree(fs, file, visitor, cancel)?;
                visitor.leave()?;
            }
        } else {
            visitor.files(vec![it])?;
        }
    }
    for _ in above {
        visitor.leave()?;
    }
    Ok(())
}

/// A folder on the way.
struct Frame {
    file: FileId,
    cursor: DirectoryCursor,
    /// Folders in it that are still to be entered, the next one last.
    folders: Vec<Found>,
    is_read: bool,
}

impl Frame {
    fn new(file: FileId) -> Self {
        Self {
            file,
            cursor: DirectoryCursor::default(),
            folders: Vec::new(),
            is_read: false,
        }
    }

    /// The next names. After damage there are no more.
    fn names(&mut self, fs: &dyn FileSystem) -> (Vec<(FileName, FileId)>, Result<()>) {
        let (mut cursor, mut names) = (self.cursor, Vec::new());
        let listed = fs.list(self.file, self.cursor, &mut |entry| {
            cursor = entry.next;
            names.push((entry.name, entry.file));
            if names.len() >= RUN_ENTRIES {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        self.is_read = names.len() < RUN_ENTRIES || listed.is_err();
        self.cursor = cursor;
        (names, listed.map_err(Error::from))
    }
}

/// Everything below a folder that was entered.
fn tree<'env>(
    fs: &'env dyn FileSystem,
    top: FileId,
    visitor: &mut impl Visitor<'env>,
    cancel: &Cancellation,
) -> Result<()> {
    let mut seen = HashSet::from([top]);
    let mut stack = vec![Frame::new(top)];
    while let Some(frame) = stack.last_mut() {
        cancel.check()?;
        if let Some(folder) = frame.folders.pop() {
            let (name, file) = (folder.name.clone(), folder.file);
            if stack.len() >= DEPTH_MAX {
                visitor.fail(Some(&name), "folders are nested too deep");
            } else if seen.len() >= FOLDERS_MAX || !seen.insert(file) {
                visitor.fail(Some(&name), "this folder was met before");
            } else {
                let entered = visitor.enter(folder, Role::Wanted);
                if kept_going(visitor, Some(&name), entered)?.is_some() {
                    stack.push(Frame::new(file));
                }
            }
        } else if frame.is_read {
            stack.pop();
            // The top was entered by somebody else, who leaves it.
            if !stack.is_empty() {
                visitor.leave()?;
            }
        } else {
            read_on(fs, frame, visitor)?;
        }
    }
    Ok(())
}

/// Tells the next run of files and keeps the folders among them.
fn read_on<'env>(
    fs: &'env dyn FileSystem,
    frame: &mut Frame,
    visitor: &mut impl Visitor<'env>,
) -> Result<()> {
    let (names, listed) = frame.names(fs);
    let mut files = Vec::new();
    for (name, file) in names {
        let outcome = fs.metadata(file).map_err(Error::from);
        let Some(metadata) = kept_going(visitor, Some(&name), outcome)? else {
            continue;
        };
        let it = Found {
            name,
            file,
            metadata,
        };
        if it.metadata.kind == FileKind::Directory {
            frame.folders.push(it);
        } else {
            files.push(it);
        }
    }
    // Neighbours on the volume lie in the same blocks of the repository: those are then fetched once.
    if files.len() > 1 {
        files.sort_by_cached_key(|it| first_byte(fs, it));
    }
    // Folders in the order in which they were made: so do their files lie, mostly.
    frame
        .folders
        .sort_by_key(|it| Reverse((it.file.tree, it.file.number & NUMBER_MASK)));
    if !files.is_empty() {
        visitor.files(files)?;
    }
    kept_going(visitor, None, listed).map(|_| ())
}

/// Where files lie on the volume, as far as that can be told; of each the first bytes, if it is in very many pieces.
pub(super) fn places<'a>(
    fs: &dyn FileSystem,
    files: impl Iterator<Item = &'a Found>,
) -> Vec<VolumeRange> {
    let mut ranges = Vec::new();
    for it in files {
        if it.metadata.kind != FileKind::Regular || it.metadata.size_bytes == 0 {
            continue;
        }
        let limit = ranges.len().saturating_add(PIECES_MAX);
        // Only speed hangs on it: whatever is wrong with the file is told when it is read.
        fs.file_ranges(it.file, &mut |range| {
            ranges.push(range);
            if ranges.len() >= limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .ok();
    }
    ranges
}

/// Where on the volume a file begins, as far as that can be told. What lies in metadata lies where its number says.
fn first_byte(fs: &dyn FileSystem, it: &Found) -> (u64, u64) {
    let mut first = 0;
    if it.metadata.kind == FileKind::Regular && it.metadata.size_bytes > 0 {
        let told = fs.file_ranges(it.file, &mut |range| {
            first = range.offset;
            ControlFlow::Break(())
        });
        // Only speed hangs on it: whatever is wrong with the file is told when it is read.
        if told.is_err() {
            first = 0;
        }
    }
    (first, it.file.number)
}
