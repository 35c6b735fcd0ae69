//! Objects as files under one directory: the default place of a repository.
//!
//! ```text
//!   ROOT/packs/3f/3f9a…c1.pack        an object is a file; its name is its path
//!   ROOT/.tmp/BOOT-PID-N              an object being written, locked by its writer
//!
//!   put:  .tmp/x ──write──fsync──► link to its name ──fsync directory──► unlink .tmp/x
//!                                  └─ EEXIST: AlreadyExists     (no hard links: rename without replacing)
//! ```
//!
//! **Invariants.** A file under its name is whole and synced, always. A directory on the way to it was synced before the
//! put returns. No symbolic link under the root is ever followed. What a dead writer left in `.tmp` is removed when no
//! living one holds its lock; were a living one's file ever removed, its put would be repeated, not lost.
//!
//! **Network file systems.** NFS works: link is atomic there, and a link whose answer was lost is recognised by its
//! file. For several servers on one directory the mount needs working locks and `lookupcache=none` or
//! `actimeo=0`; otherwise a client may not see the newest names for some seconds. The store check tells only what one
//! mount sees. A file system that has neither hard links nor renaming without replacing is refused at the first put.
//! One that cannot sync directories (`EINVAL`) is taken as it is: it has its own way to make names durable.
//!
//! **Directories.** One that a deletion emptied goes with it where the file system tells when a directory was made: only
//! then is a new one of the same name known not to be the durable one. The first level under the root stays.
//!
//! **What it does not do.** It changes no modes after creation, and does not notice when
//! somebody else writes into files.

mod leftovers;
mod listing;
mod uncached;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

pub use leftovers::SweepReport;
use leftovers::TemporaryFile;

use crate::store::{check_body, check_limit, check_page_limit, check_range, out_of_range, page_of};
use crate::{Error, ErrorKind, ListPage, ObjectName, Prefix, Result, Store, Verb};

/// Where objects are written before they have their name. No object can be called so: names have no leading dots.
const TEMPORARY_DIRECTORY: &str = ".tmp";

/// How often a put starts again when its file or directory was removed under it by another process.
const PUT_ATTEMPTS: u32 = 64;

/// How a written file gets its name without ever taking one that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Publishing {
    /// By a hard link; where there are none, by [`Publishing::Rename`].
    #[default]
    Link,
    /// By renaming without replacing, which NFS does not have.
    Rename,
}

/// A store in a directory.
#[derive(Debug)]
pub struct DirectoryStore {
    root: OwnedFd,
    path: PathBuf,
    publishing: Publishing,
    /// Directories known to be durable, by path, with what tells one from its successor of the same name.
    durable: Mutex<HashMap<String, Option<DirectoryIdentity>>>,
    swept: OnceLock<()>,
}

/// Which directory it is: an inode number is used again, together with the moment of birth it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DirectoryIdentity {
    inode: u64,
    born_s: i64,
    born_ns: u32,
}

/// `None` where the file system keeps no time of birth, or the system cannot be asked.
#[cfg(target_os = "linux")]
fn identify(directory: BorrowedFd<'_>) -> Option<DirectoryIdentity> {
    use rustix::fs::StatxFlags;
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    let told = StatxFlags::from_bits_retain(stat.stx_mask);
    told.contains(wanted).then_some(DirectoryIdentity {
        inode: stat.stx_ino,
        born_s: stat.stx_btime.tv_sec,
        born_ns: stat.stx_btime.tv_nsec,
    })
}

#[cfg(not(target_os = "linux"))]
fn identify(_: BorrowedFd<'_>) -> Option<DirectoryIdentity> {
    None
}

/// What a failed step was, with the system's word for it.
#[derive(Debug)]
struct Failure {
    step: &'static str,
    errno: Errno,
}

type Step<T> = std::result::Result<T, Failure>;

trait At<T> {
    fn at(self, step: &'static str) -> Step<T>;
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, step: &'static str) -> Step<T> {
        self.map_err(|errno| Failure { step, errno })
    }
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, step: &'static str) -> Step<T> {
        self.map_err(|error| Failure {
            step,
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        })
    }
}

impl Failure {
    fn from_io(step: &'static str, error: &std::io::Error) -> Self {
        Self {
            step,
            errno: Errno::from_io_error(error).unwrap_or(Errno::IO),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self.errno {
            Errno::NOENT => ErrorKind::NotFound,
            Errno::EXIST => ErrorKind::AlreadyExists,
            Errno::ACCESS | Errno::PERM | Errno::ROFS => ErrorKind::Denied,
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => ErrorKind::Full,
            Errno::INTR
            | Errno::AGAIN
            | Errno::BUSY
            | Errno::TIMEDOUT
            | Errno::STALE
            | Errno::NFILE
            | Errno::MFILE
            | Errno::NOMEM => ErrorKind::Unavailable,
            Errno::NOTDIR
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::INVAL
            | Errno::ISDIR
            | Errno::XDEV
            | Errno::OPNOTSUPP
            | Errno::NOSYS => ErrorKind::Invalid,
            _ => ErrorKind::Io,
        }
    }

    fn error(self, verb: Verb, name: impl std::fmt::Display) -> Error {
        let kind = self.kind();
        Error::of(kind, verb, name, self.step).caused_by(std::io::Error::from(self.errno))
    }
}

impl DirectoryStore {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it is not; [`ErrorKind::Invalid`] when it is no directory.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |errno: Errno| {
            let failure = Failure {
                step: "open",
                errno,
            };
            Error::new(failure.kind(), format!("open directory {}", path.display()))
                .caused_by(std::io::Error::from(errno))
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let publishing = Publishing::default();
        Ok(Self {
            root,
            path,
            publishing,
            durable: Mutex::default(),
            swept: OnceLock::new(),
        })
    }

    /// Publishes in this way instead of the usual one.
    #[must_use]
    pub fn with_publishing(self, publishing: Publishing) -> Self {
        Self { publishing, ..self }
    }

    /// Opens a directory, making it and its parents durably if they are missing.
    ///
    /// # Errors
    /// What making it met.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |error: std::io::Error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            let failure = Failure {
                step: "create",
                errno,
            };
            Error::new(
                failure.kind(),
                format!("create directory {}", path.display()),
            )
            .caused_by(error)
        };
        let absolute = std::path::absolute(path).map_err(failed)?;
        let missing: Vec<&Path> = absolute
            .ancestors()
            .take_while(|ancestor| !ancestor.exists())
            .collect();
        std::fs::create_dir_all(&absolute).map_err(failed)?;
        for made in missing.iter().rev() {
            if let Some(parent) = made.parent() {
                let parent = File::open(parent).map_err(failed)?;
                sync_directory(parent.as_fd())
                    .map_err(std::io::Error::from)
                    .map_err(failed)?;
            }
        }
        Self::open(&absolute)
    }

    /// The directory, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what dead writers left behind. The first put of each handle does this by itself.
    ///
    /// # Errors
    /// When the temporary directory cannot be read; a single file that cannot be judged is counted in the report.
    pub fn sweep_leftovers(&self) -> Result<SweepReport> {
        match self.open_directory(TEMPORARY_DIRECTORY) {
            Ok(directory) => leftovers::sweep(&directory),
            Err(failure) if failure.errno == Errno::NOENT => Ok(SweepReport::default()),
            Err(failure) => Err(failure),
        }
        .map_err(|failure| failure.error(Verb::Delete, TEMPORARY_DIRECTORY))
    }

    /// Walks from the root to a directory, following no link. An empty path is the root.
    fn open_directory(&self, path: &str) -> Step<OwnedFd> {
        let mut held = open_at(self.root.as_fd(), ".")?;
        for component in path.split('/').filter(|component| !component.is_empty()) {
            held = open_at(held.as_fd(), component)?;
        }
        Ok(held)
    }

    /// Walks to a directory, making what is missing, and sees to it that every step of the way is durable.
    fn make_directory(&self, path: &str) -> Step<OwnedFd> {
        let mut held = open_at(self.root.as_fd(), ".")?;
        let mut walked = String::new();
        for component in path.split('/').filter(|component| !component.is_empty()) {
            if !walked.is_empty() {
                walked.push('/');
            }
            walked.push_str(component);
            let next = match open_at(held.as_fd(), component) {
                Err(failure) if failure.errno == Errno::NOENT => {
                    match rustix::fs::mkdirat(&held, component, Mode::from_raw_mode(0o750)) {
                        // Made just now it is not durable, whatever it is taken for.
                        Ok(()) => {
                            self.durable().remove(&walked);
                        }
                        Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno).at("make a directory"),
                    }
                    open_at(held.as_fd(), component)?
                }
                other => other?,
            };
            // Another process may have made it and not synced it yet: the first use in this process always syncs.
            let identity = identify(next.as_fd());
            if self.durable().get(&walked) != Some(&identity) {
                sync_directory(held.as_fd()).at("sync a directory")?;
                self.durable().insert(walked.clone(), identity);
            }
            held = next;
        }
        Ok(held)
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<DirectoryIdentity>>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a directory if it is empty now. That it cannot be removed is no failure of the deletion that emptied it.
    fn remove_if_empty(&self, path: &str, directory: BorrowedFd<'_>) {
        let Some((above, leaf)) = path.rsplit_once('/') else {
            return;
        };
        if identify(directory).is_none() {
            return;
        }
        if let Ok(above) = self.open_directory(above) {
            rustix::fs::unlinkat(&above, leaf, AtFlags::REMOVEDIR).unwrap_or(());
        }
    }

    fn open_object(&self, name: &ObjectName) -> Step<(File, u64)> {
        let (parent, leaf) = name.split();
        let directory = self.open_directory(parent.unwrap_or(""))?;
        // Without NONBLOCK a pipe under an object's name would block for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, leaf, flags, Mode::empty()).at("open")?;
        let stat = rustix::fs::fstat(&file).at("look at")?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::NOENT).at("a prefix, not an object"),
            _ => return Err(Errno::INVAL).at("not a regular file"),
        }
        Ok((File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
    }

    fn put_once(&self, name: &ObjectName, body: &[u8]) -> Step<()> {
        let temporary_directory = self.make_directory(TEMPORARY_DIRECTORY)?;
        let mut temporary = TemporaryFile::create(temporary_directory.as_fd())?;
        uncached::write_all(temporary.file(), body).at("write")?;
        temporary.file().sync_all().at("sync")?;
        let (parent, leaf) = name.split();
        let directory = self.make_directory(parent.unwrap_or(""))?;
        let published = self.publish(&mut temporary, directory.as_fd(), leaf);
        match published {
            // Who meets a taken name may act on what lies there, so that must be durable too.
            Ok(())
            | Err(Failure {
                errno: Errno::EXIST,
                ..
            }) => {
                sync_directory(directory.as_fd()).at("sync the directory")?;
            }
            Err(_) => {}
        }
        published
    }

    /// Gives a written and synced file its name, unless that is taken.
    fn publish(
        &self,
        temporary: &mut TemporaryFile<'_>,
        directory: BorrowedFd<'_>,
        leaf: &str,
    ) -> Step<()> {
        if self.publishing == Publishing::Link
            && let Linked::Done = link(temporary, directory, leaf)?
        {
            return Ok(());
        }
        rename(temporary, directory, leaf)
    }

    fn read_object(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        let failed = |failure: Failure| failure.error(Verb::Get, name);
        let (file, size_bytes) = self.open_object(name).map_err(failed)?;
        let length = check_limit(name, size_bytes, limit_bytes)?;
        let mut body = zeroed(length).at("make room").map_err(failed)?;
        uncached::read_exact_at(&file, 0, &mut body)
            .at("read")
            .map_err(failed)?;
        Ok(body)
    }
}

enum Linked {
    Done,
    NoLinks,
}

impl Store for DirectoryStore {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
        check_body(name, body)?;
        if self.swept.get().is_none() {
            self.sweep_leftovers()?;
            self.swept.get_or_init(|| ());
        }
        let mut attempt = 1;
        loop {
            match self.put_once(name, body) {
                Ok(()) => return Ok(()),
                Err(failure) if failure.errno == Errno::NOENT && attempt < PUT_ATTEMPTS => {
                    self.durable().clear();
                    attempt += 1;
                }
                Err(failure) if failure.errno == Errno::EXIST => {
                    return Err(Error::already_exists(name));
                }
                Err(failure) => return Err(failure.error(Verb::PutNew, name)),
            }
        }
    }

    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        self.read_object(name, limit_bytes)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
        let failed = |failure: Failure| failure.error(Verb::GetRange, name);
        let (file, size_bytes) = self.open_object(name).map_err(failed)?;
        let length = check_range(name, offset, length_bytes, size_bytes)?;
        let mut body = zeroed(length).at("make room").map_err(failed)?;
        match uncached::read_exact_at(&file, offset, &mut body) {
            Ok(()) => Ok(body),
            // Somebody cut the file after it was opened.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(out_of_range(name, offset, length_bytes, size_bytes).caused_by(error))
            }
            Err(error) => Err(failed(Failure::from_io("read", &error))),
        }
    }

    fn size(&self, name: &ObjectName) -> Result<u64> {
        match self.open_object(name) {
            Ok((_, size_bytes)) => Ok(size_bytes),
            Err(failure) => Err(failure.error(Verb::Size, name)),
        }
    }

    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
        let limit = check_page_limit(prefix, limit)?;
        let failed = |failure: Failure| failure.error(Verb::List, prefix);
        let directory = match self.open_directory(prefix.as_directory()) {
            Err(failure) if failure.errno == Errno::NOENT => return Ok(ListPage::default()),
            other => other.map_err(failed)?,
        };
        let mut listing = listing::Listing::new(after, limit.saturating_add(1));
        match listing.walk(&directory, prefix.as_str()) {
            // Emptied and removed after it was opened.
            Err(failure) if failure.errno == Errno::NOENT && *prefix != Prefix::root() => {}
            other => other.map_err(failed)?,
        }
        Ok(page_of(listing.into_entries(), limit))
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        let (parent, leaf) = name.split();
        let removed = self
            .open_directory(parent.unwrap_or(""))
            .and_then(|directory| {
                match rustix::fs::unlinkat(&directory, leaf, AtFlags::empty()) {
                    Ok(()) => {}
                    // A directory is no object, so there was none.
                    Err(Errno::ISDIR) => return Ok(()),
                    // Somebody else's deletion may not be durable yet.
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno).at("unlink"),
                }
                // An older deletion must never come back after a newer one lasted: a point goes before its packs.
                sync_directory(directory.as_fd()).at("sync the directory")?;
                self.remove_if_empty(parent.unwrap_or(""), directory.as_fd());
                Ok(())
            });
        match removed {
            Err(failure) if failure.errno == Errno::NOENT => Ok(()),
            other => other.map_err(|failure| failure.error(Verb::Delete, name)),
        }
    }

    fn describe(&self) -> String {
        format!("directory {}", self.path.display())
    }
}

fn open_at(directory: BorrowedFd<'_>, component: &str) -> Step<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, component, flags, Mode::empty()).at("open a directory")
}

fn sync_directory(directory: BorrowedFd<'_>) -> rustix::io::Result<()> {
    match rustix::fs::fsync(directory) {
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Gives a written and synced file its name by a hard link; the file keeps its temporary name, too.
fn link(temporary: &TemporaryFile<'_>, directory: BorrowedFd<'_>, leaf: &str) -> Step<Linked> {
    let linked = rustix::fs::linkat(
        temporary.directory(),
        temporary.name(),
        directory,
        leaf,
        AtFlags::empty(),
    );
    match linked {
        Ok(()) => Ok(Linked::Done),
        Err(Errno::EXIST) => judge_taken(temporary, directory, leaf).map(|()| Linked::Done),
        // FAT, exFAT, some SMB and FUSE mounts.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => Ok(Linked::NoLinks),
        Err(errno) => Err(errno).at("link to its name"),
    }
}

/// Gives a written and synced file its name instead of its temporary one.
fn rename(temporary: &mut TemporaryFile<'_>, directory: BorrowedFd<'_>, leaf: &str) -> Step<()> {
    let renamed = rustix::fs::renameat_with(
        temporary.directory(),
        temporary.name(),
        directory,
        leaf,
        RenameFlags::NOREPLACE,
    );
    match renamed {
        Ok(()) => {
            temporary.renamed();
            Ok(())
        }
        Err(Errno::EXIST) => judge_taken(temporary, directory, leaf),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Err(Errno::OPNOTSUPP)
            .at("this file system has neither hard links nor renaming without replacing"),
        Err(errno) => Err(errno).at("rename to its name"),
    }
}

/// The name is taken: by our own file when an answer was lost on the network, by a directory, or by another object.
fn judge_taken(temporary: &TemporaryFile<'_>, directory: BorrowedFd<'_>, leaf: &str) -> Step<()> {
    let ours = rustix::fs::fstat(temporary.as_fd()).at("look at the written file")?;
    let there = rustix::fs::statat(directory, leaf, AtFlags::SYMLINK_NOFOLLOW)
        .at("look at what has the name")?;
    if ours.st_dev == there.st_dev && ours.st_ino == there.st_ino {
        return Ok(());
    }
    match FileType::from_raw_mode(there.st_mode) {
        FileType::RegularFile => Err(Errno::EXIST).at("the name is taken"),
        FileType::Directory => Err(Errno::ISDIR).at("a name cannot be an object and a prefix"),
        _ => Err(Errno::INVAL).at("the name is taken by something that is no regular file"),
    }
}

/// Memory for a body whose length was checked; a refusal is an error, not the end of the process.
fn zeroed(length: usize) -> rustix::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    body.try_reserve_exact(length).map_err(|_| Errno::NOMEM)?;
    body.resize(length, 0);
    Ok(body)
}
