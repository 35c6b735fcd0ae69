//! A folder of the host, entered without following links; everything below is named relative to it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::Existing;
use crate::{Error, ErrorKind, Result};

const WALK: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// How often a lock is tried again after its owner took the file away.
pub(super) const LOCK_TRIES: usize = 64;

/// What a new file or folder may be used for by whom, until it gets its own mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// By its maker only.
    Private,
    /// As its own mode says.
    Rights(u16),
    /// As the surroundings of the process say (umask).
    Usual,
}

impl Access {
    fn new_file_mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Rights(mode) => u32::from(mode & 0o777),
            Self::Usual => 0o666,
        }
    }
}

/// Who has the lock of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// This process, until the file is closed.
    ByUs,
    /// Somebody else.
    ByOthers,
}

/// Locks an open file. On a file system without locks nobody is kept off.
pub(super) fn lock(file: &File) -> Result<Held> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => Ok(Held::ByUs),
        Err(Errno::WOULDBLOCK) => Ok(Held::ByOthers),
        Err(error) => Err(host_error("locking a file", error)),
    }
}

/// Whether a folder can hold what somebody else put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// It was made just now.
    New,
    /// It was there.
    Older,
}

/// What a failure of the host means for the job: some belong to one file.
fn kind_of(error: &io::Error) -> ErrorKind {
    match Errno::from_io_error(error) {
        Some(Errno::EXIST) => ErrorKind::AlreadyExists,
        Some(Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::NOTEMPTY) => ErrorKind::Refused,
        Some(Errno::NOSPC | Errno::DQUOT) => ErrorKind::Full,
        // A name that this host cannot hold.
        Some(Errno::INVAL | Errno::NAMETOOLONG | Errno::ILSEQ) => ErrorKind::Invalid,
        // A size or kind that it cannot hold.
        Some(Errno::FBIG | Errno::OPNOTSUPP | Errno::PERM | Errno::MLINK) => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    }
}

/// An error of the host while a file is made.
pub(super) fn host_error(what: impl Into<String>, error: impl Into<io::Error>) -> Error {
    let error: io::Error = error.into();
    Error::new(kind_of(&error), what).caused_by(error)
}

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

fn named(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

impl Folder {
    /// The target itself, which an operator named: links on the way to it are the operator's.
    pub(super) fn target(path: &Path) -> Result<Self> {
        let what = path.display();
        std::fs::create_dir_all(path).map_err(|error| {
            Error::new(ErrorKind::Io, format!("making {what}")).caused_by(error)
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        opened
            .map(Self)
            .map_err(|error| host_error(what.to_string(), error))
    }

    /// A folder in it, made when it is not there.
    pub(super) fn enter(&self, name: &OsStr, access: Access) -> Result<Self> {
        self.enter_or_make(name, access).map(|(folder, _)| folder)
    }

    /// The same, and whether it was made.
    pub(super) fn enter_or_make(&self, name: &OsStr, access: Access) -> Result<(Self, Age)> {
        let mode = match access {
            // Its own mode might keep its maker out of it.
            Access::Private | Access::Rights(_) => 0o700,
            Access::Usual => 0o777,
        };
        let age = match rustix::fs::mkdirat(&self.0, name, Mode::from_raw_mode(mode)) {
            Ok(()) => Age::New,
            Err(Errno::EXIST) => Age::Older,
            Err(error) => return Err(host_error(format!("entering {}", named(name)), error)),
        };
        Ok((self.open(name)?, age))
    }

    /// A folder in it that is there.
    pub(super) fn open(&self, name: &OsStr) -> Result<Self> {
        let opened = rustix::fs::openat(&self.0, name, WALK, Mode::empty());
        opened
            .map(Self)
            .map_err(|error| host_error(format!("entering {}", named(name)), error))
    }

    /// The folder above, if it is still the one that it was.
    pub(super) fn above(&self, identity: (u64, u64)) -> Result<Self> {
        let above = self.open(OsStr::new(".."))?;
        if above.identity()? == identity {
            return Ok(above);
        }
        let what = "somebody moved a folder of the target meanwhile";
        Err(Error::new(ErrorKind::Refused, what))
    }

    /// What tells it from every other folder of the host.
    pub(super) fn identity(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.0)
            .map_err(|error| host_error("looking at a folder of the target", error))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// The same folder once more.
    pub(super) fn again(&self) -> Result<Self> {
        let copy = self.0.try_clone();
        copy.map(Self)
            .map_err(|error| Error::new(ErrorKind::Io, "the target").caused_by(error))
    }

    /// The folder of a path below it, which is made as far as it is missing; and the last name of the path.
    pub(super) fn parent_of(&self, path: &[u8], access: Access) -> Result<(Self, OsString)> {
        let mut folder = self.again()?;
        let mut names = path.split(|byte| *byte == b'/');
        let last = names.next_back().unwrap_or_default();
        for name in names {
            folder = folder.enter(OsStr::from_bytes(name), access)?;
        }
        Ok((folder, OsString::from_vec(last.to_vec())))
    }

    /// Makes the names in it durable.
    pub(super) fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.0).map_err(|error| host_error("syncing a folder", error))
    }

    /// Its descriptor.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// What has this name in it, if anything.
    pub(super) fn look(&self, name: &OsStr) -> Result<Option<Stat>> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(host_error(named(name), error)),
        }
    }

    /// A new file; one of this name that a killed run left is replaced.
    pub(super) fn create(&self, name: &str, access: Access) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(access.new_file_mode());
        let create = || rustix::fs::openat(&self.0, name, flags, mode);
        let created = match create() {
            Err(Errno::EXIST) => {
                self.remove(OsStr::new(name))?;
                create()
            }
            outcome => outcome,
        };
        created
            .map(File::from)
            .map_err(|error| host_error("making a file", error))
    }

    /// A new file without any name, for [`Self::name`]; nothing where the host has no such files.
    #[cfg(target_os = "linux")]
    pub(super) fn create_nameless(&self, access: Access) -> Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(access.new_file_mode());
        match rustix::fs::openat(&self.0, ".", flags, mode) {
            Ok(made) => Ok(Some(made.into())),
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::ISDIR | Errno::NOSYS) => Ok(None),
            Err(error) => Err(host_error("making a file", error)),
        }
    }

    /// There are no such files here.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn create_nameless(&self, _access: Access) -> Result<Option<File>> {
        Ok(None)
    }

    /// Gives a file without a name one in this folder, unless something has it.
    pub(super) fn name(&self, nameless: &File, name: &OsStr) -> Result<()> {
        let none = AtFlags::empty();
        #[cfg(target_os = "linux")]
        let flags = AtFlags::EMPTY_PATH;
        #[cfg(not(target_os = "linux"))]
        let flags = none;
        let named_so = match rustix::fs::linkat(nameless, "", &self.0, name, flags) {
            // Older systems let only some do that; everybody may through the list of open files.
            Err(Errno::NOENT) => {
                use std::os::fd::AsRawFd;
                let path = format!("/proc/self/fd/{}", nameless.as_raw_fd());
                let flags = none.union(AtFlags::SYMLINK_FOLLOW);
                rustix::fs::linkat(rustix::fs::CWD, path, &self.0, name, flags)
            }
            outcome => outcome,
        };
        named_so.map_err(|error| host_error(named(name), error))
    }

    /// Whether files can be made without a name here, and get one later.
    pub(super) fn holds_nameless(&self) -> Result<bool> {
        const TRIED: &str = "tried";
        let Some(file) = self.create_nameless(Access::Private)? else {
            return Ok(false);
        };
        self.remove(OsStr::new(TRIED))?;
        let is_named = self.name(&file, OsStr::new(TRIED)).is_ok();
        self.remove(OsStr::new(TRIED))?;
        Ok(is_named)
    }

    /// A new file that nobody else creates in this way as long as it is open: it is locked. One of this name that a killed
    /// run left is replaced.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when another process, or thread, has it.
    pub(super) fn create_locked(&self, name: &str, access: Access) -> Result<File> {
        let failed = |error: Errno| host_error("making a file", error);
        let plain = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(access.new_file_mode());
        for _ in 0..LOCK_TRIES {
            let new = plain | OFlags::CREATE | OFlags::EXCL;
            match rustix::fs::openat(&self.0, name, new, mode) {
                Ok(made) => {
                    let made = File::from(made);
                    if lock(&made)? == Held::ByOthers {
                        break;
                    }
                    // Whoever saw it before it was locked took it for one that a killed run left.
                    if self.is_at(&made, name)? {
                        return Ok(made);
                    }
                    continue;
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(error)),
            }
            match rustix::fs::openat(&self.0, name, plain, Mode::empty()) {
                Ok(left) => {
                    let left = File::from(left);
                    if lock(&left)? == Held::ByOthers {
                        break;
                    }
                    if self.is_at(&left, name)? {
                        self.remove(OsStr::new(name))?;
                    }
                }
                // A link, or what only its owner may open: nobody writes through it.
                Err(Errno::LOOP | Errno::ACCESS | Errno::NXIO) => self.remove(OsStr::new(name))?,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let what = format!("another run is writing {name}");
        Err(Error::new(ErrorKind::Busy, what))
    }

    /// Whether a name in it is that of an open file.
    pub(super) fn is_at(&self, file: &File, name: &str) -> Result<bool> {
        let here = rustix::fs::fstat(file).map_err(|error| host_error(name, error))?;
        let there = self.look(OsStr::new(name))?;
        Ok(there.is_some_and(|it| (it.st_dev, it.st_ino) == (here.st_dev, here.st_ino)))
    }

    /// Opens a file of ours to read and write, made when it is not there.
    pub(super) fn open_own(&self, name: &str, more: OFlags) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
        let opened = rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o600));
        opened
            .map(File::from)
            .map_err(|error| host_error(name, error))
    }

    /// Opens a file to read it, without leaving a trace where that is allowed; nothing when it is no plain file.
    pub(super) fn open_plain(&self, name: &OsStr) -> Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |flags| rustix::fs::openat(&self.0, name, flags, Mode::empty());
        #[cfg(target_os = "linux")]
        let opened = match open(flags | OFlags::NOATIME) {
            Err(Errno::PERM) => open(flags),
            outcome => outcome,
        };
        #[cfg(not(target_os = "linux"))]
        let opened = open(flags);
        let file = match opened {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(host_error(named(name), error)),
        };
        let metadata = file
            .metadata()
            .map_err(|error| host_error(named(name), error))?;
        Ok(metadata.is_file().then_some(file))
    }

    /// Takes a file, or link, away.
    pub(super) fn remove(&self, name: &OsStr) -> Result<()> {
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(host_error("removing an unfinished file", error)),
        }
    }

    /// Takes an empty folder away.
    pub(super) fn remove_folder(&self, name: &OsStr) -> Result<()> {
        rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)
            .map_err(|error| host_error(named(name), error))
    }

    /// Takes all files in it away, but this one.
    pub(super) fn clear_but(&self, kept: &str) -> Result<()> {
        let failed = |error: Errno| host_error("looking for unfinished files", error);
        let entries = rustix::fs::Dir::read_from(&self.0).map_err(failed)?;
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") && name != kept.as_bytes() {
                self.remove(OsStr::from_bytes(name))?;
            }
        }
        Ok(())
    }

    /// Makes a link.
    pub(super) fn make_link(&self, name: &str, target: &[u8]) -> Result<()> {
        self.remove(OsStr::new(name))?;
        rustix::fs::symlinkat(OsStr::from_bytes(target), &self.0, name)
            .map_err(|error| host_error("making a link", error))
    }

    /// Makes a pipe or a device.
    pub(super) fn make_special(&self, name: &str, kind: FileType, device: u64) -> Result<()> {
        self.remove(OsStr::new(name))?;
        rustix::fs::mknodat(&self.0, name, kind, Mode::from_raw_mode(0o600), device)
            .map_err(|error| host_error("making a special file", error))
    }

    /// Gives a file in another folder one more name, in this one.
    pub(super) fn make_name(&self, name: &str, of: (&Folder, &OsStr)) -> Result<()> {
        self.remove(OsStr::new(name))?;
        rustix::fs::linkat(&of.0.0, of.1, &self.0, name, AtFlags::empty())
            .map_err(|error| host_error("giving a file one more name", error))
    }

    /// Moves what was made here to its place.
    pub(super) fn hand_over(
        &self,
        made: &str,
        to: &Folder,
        name: &OsStr,
        existing: Existing,
    ) -> Result<()> {
        let (from, to_folder) = (&self.0, &to.0);
        let moved = match existing {
            Existing::Replace => rustix::fs::renameat(from, made, to_folder, name),
            Existing::Refuse => {
                let flags = RenameFlags::NOREPLACE;
                match rustix::fs::renameat_with(from, made, to_folder, name, flags) {
                    // Not every file system can; then looking first has to do.
                    Err(Errno::INVAL | Errno::NOSYS) => match to.look(name)? {
                        Some(_) => Err(Errno::EXIST),
                        None => rustix::fs::renameat(from, made, to_folder, name),
                    },
                    outcome => outcome,
                }
            }
        };
        moved.map_err(|error| host_error(named(name), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = Folder::target(&place.path().join("to")).expect("made");
        std::os::unix::fs::symlink(place.path(), place.path().join("to/link")).expect("a link");
        let link = OsStr::new("link");
        let entered = folder.enter(link, Access::Private);
        assert_eq!(
            entered.map_err(|error| error.kind()).err(),
            Some(ErrorKind::Refused)
        );
        assert!(folder.open_plain(link).expect("looked at").is_none());
        assert!(folder.look(link).expect("looked at").is_some());
        folder.create("made", Access::Private).expect("made");
        let refused = folder.hand_over("made", &folder, link, Existing::Refuse);
        assert_eq!(
            refused.map_err(|error| error.kind()),
            Err(ErrorKind::AlreadyExists)
        );
        folder
            .hand_over("made", &folder, link, Existing::Replace)
            .expect("replaced");
        assert!(folder.open_plain(link).expect("looked at").is_some());
    }

    #[test]
    fn the_way_up_leads_to_the_same_folder_or_nowhere() {
        let place = tempfile::tempdir().expect("a folder");
        let top = Folder::target(place.path()).expect("it");
        let (parent, last) = top
            .parent_of(b"a/b/c", Access::Private)
            .expect("made on the way");
        assert_eq!(last, "c");
        let identity = top.open(OsStr::new("a")).expect("made").identity();
        let identity = identity.expect("it has one");
        parent.above(identity).expect("it is above");
        std::fs::rename(place.path().join("a/b"), place.path().join("b")).expect("moved");
        let moved = parent.above(identity).map_err(|error| error.kind());
        assert_eq!(moved.err(), Some(ErrorKind::Refused));
    }
}
