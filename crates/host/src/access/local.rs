//! Files of this system that stand for a host's: folders of the host mapped to folders here. For agents, mounts and tests.
//!
//! ```text
//!   D:\vm\A.VHDX ──► longest mapped folder (D:\ ► /srv/d) ──► part by part, without case ──► /srv/d/vm/a.vhdx ──► inside? ──► file
//! ```
//!
//! **Invariants.** A path never leads out of its mapped folder: not by `..`, not by a symbolic link, which is followed only
//! when it ends inside. Names of a Windows host are found without case; two that differ in case alone are never made.
//! A mapped folder that is not there is an error: a disk that is not mounted is not an empty one.
//!
//! **What it does not do.** It does not defend against somebody here who changes the mapped folders meanwhile: they are trusted as
//! the program is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{Extent, ReadAt, WriteAt};
use vdisk::file::{FileAccess, HostFile, sync_directory};

use super::DiskAccess;
use crate::boundary::{EntryKind, FolderEntry, HostFileWriter, HostFiles, LIST_MOST};
use crate::checkpoint::Presence;
use crate::ids::NodeName;
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

/// Folders of a host and where they lie here.
#[derive(Debug, Clone, Default)]
pub struct LocalPaths {
    roots: Vec<(HostPath, PathBuf)>,
}

impl LocalPaths {
    /// No folder yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the host calls `folder` lies at `here`.
    #[must_use]
    pub fn with_root(mut self, folder: HostPath, here: impl Into<PathBuf>) -> Self {
        self.roots.push((folder.without_mark(), here.into()));
        self
    }

    /// Where a path of the host lies here: below the longest folder that fits, and never outside of it.
    ///
    /// # Errors
    /// `Unsupported` when no mapped folder fits, `Invalid` when the path climbs, `Refused` when a link leads out, `Io` when the
    /// mapped folder is not there.
    pub fn local(&self, path: &HostPath) -> Result<PathBuf> {
        let plain = path.without_mark();
        let is_it = |folder: &HostPath| plain.is_below(folder) || is_same(&plain, folder);
        let best = self
            .roots
            .iter()
            .filter(|(folder, _)| is_it(folder))
            .max_by_key(|(folder, _)| folder.as_str().len());
        let Some((folder, here)) = best else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("no folder here stands for {path}"),
            ));
        };
        let root = here.canonicalize().map_err(|error| {
            let context = format!("looking for {}, which stands for {folder}", here.display());
            Error::with_source(ErrorKind::Io, context, error)
        })?;
        let rest = plain
            .as_str()
            .get(folder.as_str().trim_end_matches(['\\', '/']).len()..)
            .unwrap_or_default();
        let separators: &[char] = if path.is_posix() {
            &['/']
        } else {
            &['\\', '/']
        };
        let mut local = root.clone();
        for part in rest.split(separators) {
            match part {
                "" | "." => {}
                ".." => {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("{path} does not stay below {folder}"),
                    ));
                }
                part if path.is_posix() => local.push(part),
                part => local = beside_without_case(&local, part),
            }
        }
        stay_inside(&root, &local, path)?;
        Ok(local)
    }

    /// Where something new may be made.
    fn local_new(&self, path: &HostPath) -> Result<PathBuf> {
        path.check_new()?;
        self.local(path)
    }
}

fn is_same(one: &HostPath, other: &HostPath) -> bool {
    let bare = |path: &HostPath| path.key().trim_end_matches(['\\', '/']).to_owned();
    bare(one) == bare(other)
}

/// The entry of a folder that Windows would take for `name`: the exact one, or else one that differs in case alone.
fn beside_without_case(folder: &Path, name: &str) -> PathBuf {
    let exact = folder.join(name);
    if is_there(&exact) {
        return exact;
    }
    let lower = name.to_lowercase();
    let Ok(entries) = fs::read_dir(folder) else {
        return exact;
    };
    entries
        .filter_map(std::result::Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().to_lowercase() == lower)
        .map_or(exact, |entry| entry.path())
}

/// Whether anything has this name, a link that leads nowhere included.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Refuses a place that lies outside of a root when links are followed. What is not there yet is judged by the last folder that is.
fn stay_inside(root: &Path, local: &Path, path: &HostPath) -> Result<()> {
    let leads_out = || {
        Error::new(
            ErrorKind::Refused,
            format!("{path} leads out of {} by a link", root.display()),
        )
    };
    for place in local.ancestors() {
        match place.canonicalize() {
            Ok(real) if real.starts_with(root) => return Ok(()),
            Ok(_) => return Err(leads_out()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A link that leads nowhere would be followed by whoever makes what it names.
                if is_there(place) {
                    return Err(leads_out());
                }
            }
            // A file where a folder is named: nothing is there, and nothing can be made.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => return Err(told(error, format!("looking for {path}"))),
        }
    }
    Err(leads_out())
}

fn told(error: io::Error, context: String) -> Error {
    Error::with_source(kind_of(&error), context, error)
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Io,
    }
}

/// An error of opening, with the kind that the system's answer below it deserves.
fn told_of_open(error: vdisk::Error, context: String) -> Error {
    let mut kind = ErrorKind::Io;
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = next {
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            kind = kind_of(cause);
        }
        next = cause.source();
    }
    Error::with_source(kind, context, error)
}

impl DiskAccess for LocalPaths {
    fn open(&self, _node: &NodeName, path: &HostPath) -> Result<Option<Arc<dyn ReadAt>>> {
        let local = self.local(path)?;
        if !local.exists() {
            return Ok(None);
        }
        let file = HostFile::open(&local, FileAccess::ReadOnly)
            .map_err(|error| told_of_open(error, format!("opening {path}")))?;
        Ok(Some(Arc::new(file)))
    }
}

impl HostFiles for LocalPaths {
    fn create_folder(&self, _node: &NodeName, folder: &HostPath) -> Result<()> {
        let local = self.local_new(folder)?;
        let context = || format!("making folder {folder}");
        if local.is_dir() {
            return Ok(());
        }
        if is_there(&local) {
            return Err(Error::new(ErrorKind::AlreadyExists, context()));
        }
        fs::create_dir_all(&local).map_err(|error| told(error, context()))?;
        // Names become durable from the top down; those that were there before cost nothing.
        for place in local.ancestors().skip(1) {
            sync_directory(place).map_err(|error| told_of_open(error, context()))?;
            if self.roots.iter().any(|(_, here)| is_root(here, place)) {
                break;
            }
        }
        Ok(())
    }

    fn create_file(&self, _node: &NodeName, path: &HostPath) -> Result<Arc<dyn HostFileWriter>> {
        let local = self.local_new(path)?;
        let context = || format!("making {path}");
        if is_there(&local) {
            return Err(Error::new(ErrorKind::AlreadyExists, context()));
        }
        let file = HostFile::create_new(&local).map_err(|error| told_of_open(error, context()))?;
        Ok(Arc::new(LocalWriter {
            file,
            is_name_durable: AtomicBool::new(false),
        }))
    }

    fn open_file_for_update(
        &self,
        _node: &NodeName,
        path: &HostPath,
    ) -> Result<Arc<dyn HostFileWriter>> {
        let local = self.local(path)?;
        let file = HostFile::open(&local, FileAccess::ReadWrite)
            .map_err(|error| told_of_open(error, format!("opening {path} for writing")))?;
        Ok(Arc::new(LocalWriter {
            file,
            is_name_durable: AtomicBool::new(false),
        }))
    }

    fn rename(&self, _node: &NodeName, from: &HostPath, to: &HostPath) -> Result<()> {
        let context = || format!("renaming {from} to {to}");
        let (here, there) = (self.local(from)?, self.local_new(to)?);
        if !is_there(&here) {
            return Err(Error::new(ErrorKind::NotFound, context()));
        }
        if is_there(&there) {
            return Err(Error::new(ErrorKind::AlreadyExists, context()));
        }
        rename_without_replacing(&here, &there).map_err(|error| told(error, context()))?;
        for folder in [there.parent(), here.parent()].into_iter().flatten() {
            sync_directory(folder).map_err(|error| told_of_open(error, context()))?;
        }
        Ok(())
    }

    fn remove(&self, _node: &NodeName, path: &HostPath) -> Result<Presence> {
        let local = self.local(path)?;
        let removed = match local.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir(&local),
            Ok(_) => fs::remove_file(&local),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => Ok(Presence::Removed),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(Presence::Absent)
            }
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                let context = format!("removing {path}: the folder is not empty");
                Err(Error::with_source(ErrorKind::State, context, error))
            }
            Err(error) => Err(told(error, format!("removing {path}"))),
        }
    }

    fn size_bytes(&self, _node: &NodeName, path: &HostPath) -> Result<Option<u64>> {
        let local = self.local(path)?;
        match local.metadata() {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(told(error, format!("looking for {path}"))),
        }
    }

    fn list(&self, _node: &NodeName, folder: &HostPath) -> Result<Vec<FolderEntry>> {
        let local = self.local(folder)?;
        let context = || format!("listing {folder}");
        let mut found = Vec::new();
        for entry in fs::read_dir(&local).map_err(|error| told(error, context()))? {
            let entry = entry.map_err(|error| told(error, context()))?;
            if found.len() >= LIST_MOST {
                return Err(too_many(folder));
            }
            let kind = entry.file_type().map_err(|error| told(error, context()))?;
            found.push(FolderEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                kind: if kind.is_dir() {
                    EntryKind::Folder
                } else if kind.is_file() {
                    EntryKind::File
                } else {
                    EntryKind::Other
                },
            });
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    fn free_bytes(&self, _node: &NodeName, folder: &HostPath) -> Result<Option<u64>> {
        let local = self.local(folder)?;
        // The nearest folder that is there: one that is yet to be made will lie on the same volume.
        let place = local.ancestors().find(|place| place.is_dir());
        free_at(place.unwrap_or(&local))
            .map_err(|error| told(error, format!("asking for the free space of {folder}")))
    }
}

/// A folder has more entries than are told.
pub(super) fn too_many(folder: &HostPath) -> Error {
    Error::new(
        ErrorKind::Failed,
        format!("listing {folder}: it holds more than {LIST_MOST} entries"),
    )
}

fn is_root(here: &Path, place: &Path) -> bool {
    here.canonicalize().is_ok_and(|root| root == place)
}

/// Gives another name, and never takes one that is taken.
#[cfg(target_os = "linux")]
fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system does not know the flag.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_and_remove(from, to),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    link_and_remove(from, to)
}

/// A second name, which is refused where it is taken, then without the first: for files.
fn link_and_remove(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from)
}

#[cfg(unix)]
fn free_at(folder: &Path) -> io::Result<Option<u64>> {
    let volume = rustix::fs::statvfs(folder)?;
    Ok(Some(volume.f_bavail.saturating_mul(volume.f_frsize)))
}

#[cfg(not(unix))]
fn free_at(_folder: &Path) -> io::Result<Option<u64>> {
    Ok(None)
}

/// A file here that stands for one of the host's.
struct LocalWriter {
    file: HostFile,
    /// Whether the folder was made durable since the file was made.
    is_name_durable: AtomicBool,
}

impl ReadAt for LocalWriter {
    fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.file.read_at(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.file.extent_at(offset, limit_bytes)
    }
}

impl WriteAt for LocalWriter {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        self.file.write_at(offset, buffer)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        self.file.zero_range(offset, length_bytes)
    }
    fn set_size(&self, size_bytes: u64) -> block::Result<()> {
        self.file.set_size(size_bytes)
    }
    fn flush(&self) -> block::Result<()> {
        self.file.flush()?;
        if self.is_name_durable.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(folder) = self.file.path().parent() {
            sync_directory(folder).map_err(|error| {
                let context = format!("flushing the folder {}", folder.display());
                block::Error::with_source(block::ErrorKind::Io, context, error)
            })?;
        }
        self.is_name_durable.store(true, Ordering::Release);
        Ok(())
    }
}

impl HostFileWriter for LocalWriter {}
