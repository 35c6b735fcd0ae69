//! Names on a share: folders made and listed, files renamed and removed, sizes, free space.
//!
//! Every handle is closed before a call returns: one that is open keeps a removed file's name from being used again.
//!
//! **Invariants.** A listing is complete or an error. The crate's stream of entries asks for the next batch by a wake-up that is lost
//! when its two tasks run at the same time; both run on one thread here, where they cannot.

use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use smb::{
    CreateDisposition, Directory, FileAccessMask, FileAttributes, FileCreateArgs,
    FileDirectoryInformation, FileDispositionInformation, FileFsFullSizeInformation,
    FileRenameInformation, GetLen, Resource,
};

use super::names::{Place, told};
use super::{Share, Shared};
use crate::boundary::{EntryKind, FolderEntry, LIST_MOST};
use crate::checkpoint::Presence;
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

/// Bytes of one answer with entries of a folder.
const LIST_ANSWER_BYTES: u32 = 1 << 20;

/// How something is opened that is there.
pub(super) fn existing(access: FileAccessMask) -> FileCreateArgs {
    FileCreateArgs::make_open_existing(access)
}

/// What is open, whatever it is.
pub(super) async fn close(resource: &Resource) -> smb::Result<()> {
    match resource {
        Resource::File(file) => file.close().await,
        Resource::Directory(folder) => folder.handle.close().await,
        Resource::Pipe(_) => Ok(()),
    }
}

impl Shared {
    /// Opens something, does one thing with it, and closes it, over a new connection when the old one is dead.
    fn with<T, F, W>(
        self: &Arc<Self>,
        place: &Place,
        what: &str,
        arguments: fn() -> FileCreateArgs,
        work: W,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = (Resource, smb::Result<T>)> + Send,
        W: Fn(Resource) -> F + Clone + Send + 'static,
    {
        self.twice(place, || {
            let share = self.share(place)?;
            let (held, below) = (Arc::clone(&share), place.path.clone());
            let (context, work) = (what.to_owned(), work.clone());
            let done = self.wait(what, async move {
                let told = |error| told(error, context.clone());
                let resource = held.tree.create(&below, &arguments()).await.map_err(told)?;
                let (resource, done) = work(resource).await;
                let closed = close(&resource).await;
                let done = done.map_err(told)?;
                closed.map_err(told)?;
                Ok(done)
            });
            self.retire(share);
            done
        })
    }

    /// Makes a folder and those above it.
    pub(super) fn create_folder(self: &Arc<Self>, place: &Place, path: &HostPath) -> Result<()> {
        match self.create_one_folder(place, path) {
            // The one above is missing.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
        for (at, _) in place.path.match_indices('\\') {
            let above = Place {
                path: place.path.get(..at).unwrap_or_default().to_owned(),
                ..place.clone()
            };
            self.create_one_folder(&above, path)?;
        }
        self.create_one_folder(place, path)
    }

    fn create_one_folder(self: &Arc<Self>, place: &Place, path: &HostPath) -> Result<()> {
        let what = format!("making folder {} for {path}", place.path);
        let arguments = || FileCreateArgs {
            disposition: CreateDisposition::OpenIf,
            attributes: FileAttributes::new().with_directory(true),
            options: smb::CreateOptions::new().with_directory_file(true),
            desired_access: FileAccessMask::new().with_file_read_attributes(true),
        };
        let made = self.with(place, &what, arguments, |it| async { (it, Ok(())) });
        match made {
            // A file has the name.
            Err(error) if error.code().is_some_and(|code| code.0 == 0xC000_0103) => {
                Err(error_as(ErrorKind::AlreadyExists, error, what))
            }
            other => other,
        }
    }

    /// Gives a file another name on its share.
    pub(super) fn rename(self: &Arc<Self>, from: &Place, to: &Place, what: &str) -> Result<()> {
        if super::share_key(from) != super::share_key(to) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{what}: they are on different shares"),
            ));
        }
        let name = to.path.clone();
        let arguments = || {
            let access = FileAccessMask::new().with_delete(true);
            existing(access.with_file_read_attributes(true))
        };
        self.with(from, what, arguments, move |it| {
            let name = name.clone();
            async move {
                let wanted = FileRenameInformation {
                    replace_if_exists: false.into(),
                    root_directory: 0,
                    file_name: name.as_str().into(),
                };
                let done = match &it {
                    Resource::File(file) => file.set_info(wanted).await,
                    Resource::Directory(folder) => folder.handle.set_info(wanted).await,
                    Resource::Pipe(_) => Err(smb::Error::InvalidState("a pipe".into())),
                };
                (it, done)
            }
        })
    }

    /// Removes a file, or a folder that is empty.
    pub(super) fn remove(self: &Arc<Self>, place: &Place, what: &str) -> Result<Presence> {
        let arguments = || {
            let access = FileAccessMask::new().with_delete(true);
            existing(access.with_file_read_attributes(true))
        };
        let removed = self.with(place, what, arguments, |it| async {
            let wanted = FileDispositionInformation::default();
            let done = match &it {
                Resource::File(file) => file.set_info(wanted).await,
                Resource::Directory(folder) => folder.handle.set_info(wanted).await,
                Resource::Pipe(_) => Err(smb::Error::InvalidState("a pipe".into())),
            };
            (it, done)
        });
        match removed {
            Ok(()) => Ok(Presence::Removed),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Presence::Absent),
            Err(error) => Err(error),
        }
    }

    /// Bytes of a file; `None` when there is none.
    pub(super) fn file_size(self: &Arc<Self>, place: &Place, what: &str) -> Result<Option<u64>> {
        let arguments = || existing(FileAccessMask::new().with_file_read_attributes(true));
        let found = self.with(place, what, arguments, |it| async {
            let size = match &it {
                Resource::File(file) => file.get_len().await.map(Some),
                _ => Ok(None),
            };
            (it, size)
        });
        match found {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other,
        }
    }

    /// Bytes that may still be written where a folder lies, or would lie.
    pub(super) fn free_space(self: &Arc<Self>, place: &Place, what: &str) -> Result<u64> {
        let mut place = place.clone();
        loop {
            let arguments = || existing(FileAccessMask::new().with_file_read_attributes(true));
            let asked = self.with(&place, what, arguments, |it| async {
                let asked = match &it {
                    Resource::File(file) => file.query_fs_info().await,
                    Resource::Directory(folder) => folder.handle.query_fs_info().await,
                    Resource::Pipe(_) => Err(smb::Error::InvalidState("a pipe".into())),
                };
                let free = asked.map(|space: FileFsFullSizeInformation| {
                    space
                        .caller_available_allocation_units
                        .saturating_mul(u64::from(space.sectors_per_allocation_unit))
                        .saturating_mul(u64::from(space.bytes_per_sector))
                });
                (it, free)
            });
            match asked {
                // One that is yet to be made will lie on the volume of the one above.
                Err(error) if error.kind() == ErrorKind::NotFound && !place.path.is_empty() => {
                    let above = place.path.rsplit_once('\\').map_or("", |(above, _)| above);
                    place.path = above.to_owned();
                }
                other => return other,
            }
        }
    }

    /// What a folder holds.
    pub(super) fn entries(
        self: &Arc<Self>,
        place: &Place,
        path: &HostPath,
    ) -> Result<Vec<FolderEntry>> {
        self.twice(place, || {
            let share = self.share(place)?;
            let listed = self.entries_once(&share, place, path);
            self.retire(share);
            let mut listed = listed?;
            listed.sort_by(|one, other| one.name.cmp(&other.name));
            Ok(listed)
        })
    }

    fn entries_once(
        &self,
        share: &Arc<Share>,
        place: &Place,
        path: &HostPath,
    ) -> Result<Vec<FolderEntry>> {
        let what = format!("listing {path} on {}", place.server);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| Error::with_source(ErrorKind::Io, what.clone(), error))?;
        let (share, below) = (Arc::clone(share), place.path.clone());
        let (limit, path) = (self.options.timeout, path.clone());
        let task = runtime.spawn({
            let what = what.clone();
            async move {
                let access = FileAccessMask::new()
                    .with_file_read_data(true)
                    .with_file_read_attributes(true);
                let mut arguments = existing(access);
                arguments.options = smb::CreateOptions::new().with_directory_file(true);
                let told = |error| told(error, what.clone());
                let opened = share.tree.create(&below, &arguments).await;
                let Resource::Directory(folder) = opened.map_err(told)? else {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!("{what}: no folder"),
                    ));
                };
                let folder = Arc::new(folder);
                let listed = read_entries(&folder, &path, &what).await;
                let closed = folder.handle.close().await;
                let listed = listed?;
                closed.map_err(told)?;
                Ok(listed)
            }
        });
        let ended = runtime.block_on(async { tokio::time::timeout(limit, task).await });
        match ended {
            Ok(Ok(listed)) => listed,
            Ok(Err(error)) => Err(Error::with_source(
                ErrorKind::Protocol,
                format!("{what}: the answer could not be understood"),
                error,
            )),
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!("{what}: no answer within {} s", limit.as_secs()),
            )),
        }
    }
}

async fn read_entries(
    folder: &Arc<Directory>,
    path: &HostPath,
    what: &str,
) -> Result<Vec<FolderEntry>> {
    let told = |error| told(error, what.to_owned());
    let query =
        Directory::query_with_options::<FileDirectoryInformation>(folder, "*", LIST_ANSWER_BYTES);
    let mut stream = query.await.map_err(told)?;
    let mut entries = Vec::new();
    loop {
        let next = std::future::poll_fn(|context| Pin::new(&mut stream).poll_next(context)).await;
        let Some(entry) = next else {
            return Ok(entries);
        };
        let entry = entry.map_err(told)?;
        let name = entry.file_name.to_string();
        if name == "." || name == ".." {
            continue;
        }
        // A name is a name: what a server says otherwise leads nowhere.
        if name.is_empty() || name.contains(['\\', '/', '\0']) {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!("{what}: {name:?} is no name"),
            ));
        }
        if entries.len() >= LIST_MOST {
            return Err(super::super::local::too_many(path));
        }
        let attributes = entry.file_attributes;
        entries.push(FolderEntry {
            name,
            kind: if attributes.reparse_point() {
                EntryKind::Other
            } else if attributes.directory() {
                EntryKind::Folder
            } else {
                EntryKind::File
            },
        });
    }
}

/// The same error under another kind, with its code.
pub(super) fn error_as(kind: ErrorKind, error: Error, what: String) -> Error {
    let code = error.code();
    let other = Error::with_source(kind, what, error);
    match code {
        Some(code) => other.coded(code),
        None => other,
    }
}
