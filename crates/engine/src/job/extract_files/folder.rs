//! A folder of the host, entered without following links; everything below is named relative to it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use guestfs::FileName;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Existing, SIDE_FILE};
use crate::{Error, ErrorKind, Result};

/// Longest name that Linux file systems hold.
const NAME_BYTES_MAX: usize = 255;
const KEPT_BYTES: usize = 200;
const PARTIAL: &str = ".hikae-partial";
const WALK: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

fn failed(what: impl std::fmt::Display, error: Errno) -> Error {
    let kind = match error {
        Errno::EXIST => ErrorKind::AlreadyExists,
        Errno::LOOP | Errno::NOTDIR => ErrorKind::Refused,
        Errno::NOSPC | Errno::DQUOT => ErrorKind::Full,
        _ => ErrorKind::Io,
    };
    Error::new(kind, what.to_string()).caused_by(std::io::Error::from(error))
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
        opened.map(Self).map_err(|error| failed(what, error))
    }

    /// A folder in it, made when it is not there.
    pub(super) fn enter(&self, name: &OsStr) -> Result<Self> {
        let what = || format!("entering {}", name.to_string_lossy());
        match rustix::fs::mkdirat(&self.0, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(what(), error)),
        }
        let opened = rustix::fs::openat(&self.0, name, WALK, Mode::empty());
        opened.map(Self).map_err(|error| failed(what(), error))
    }

    /// The same folder once more.
    pub(super) fn again(&self) -> Result<Self> {
        let copy = self.0.try_clone();
        copy.map(Self)
            .map_err(|error| Error::new(ErrorKind::Io, "the target").caused_by(error))
    }

    /// Its descriptor.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// Fails when something of this name is there and may not be replaced.
    pub(super) fn check_free(&self, name: &OsStr, existing: Existing) -> Result<()> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(name.to_string_lossy(), error)),
            Ok(_) if existing == Existing::Replace => Ok(()),
            Ok(_) => Err(failed(name.to_string_lossy(), Errno::EXIST)),
        }
    }

    /// A new file without a name that counts yet.
    pub(super) fn create_partial(&self) -> Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(&self.0, PARTIAL, flags, Mode::from_raw_mode(0o600));
        let created = match create() {
            // Left behind by a run that was killed.
            Err(Errno::EXIST) => {
                self.remove_partial()?;
                create()
            }
            outcome => outcome,
        };
        created
            .map(File::from)
            .map_err(|error| failed("making a file", error))
    }

    /// Takes the unnamed file, or link, away.
    pub(super) fn remove_partial(&self) -> Result<()> {
        match rustix::fs::unlinkat(&self.0, PARTIAL, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("removing an unfinished file", error)),
        }
    }

    /// Makes a link without a name that counts yet, and tells how it is called meanwhile.
    pub(super) fn link_partial(&self, target: &[u8]) -> Result<&'static str> {
        self.remove_partial()?;
        rustix::fs::symlinkat(OsStr::from_bytes(target), &self.0, PARTIAL)
            .map_err(|error| failed("making a link", error))?;
        Ok(PARTIAL)
    }

    /// Gives what was made last its name.
    pub(super) fn name_partial(&self, name: &OsStr, existing: Existing) -> Result<()> {
        let (from, to) = (&self.0, &self.0);
        let renamed = match existing {
            Existing::Replace => rustix::fs::renameat(from, PARTIAL, to, name),
            Existing::Refuse => {
                let flags = RenameFlags::NOREPLACE;
                match rustix::fs::renameat_with(from, PARTIAL, to, name, flags) {
                    // Not every file system can; then looking first has to do.
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        self.check_free(name, existing)?;
                        rustix::fs::renameat(from, PARTIAL, to, name)
                    }
                    outcome => outcome,
                }
            }
        };
        renamed.map_err(|error| failed(name.to_string_lossy(), error))
    }

    /// Opens the side file to write at its end.
    pub(super) fn side_file(&self) -> Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.0, SIDE_FILE, flags, Mode::from_raw_mode(0o600));
        opened
            .map(File::from)
            .map_err(|error| failed(SIDE_FILE, error))
    }
}

/// The name that a file gets on the host: its own wherever that is possible. `number` tells names apart that are cut.
pub(super) fn host_name(name: &FileName, number: u64) -> OsString {
    let is_ours = |bytes: &[u8]| bytes == SIDE_FILE.as_bytes() || bytes == PARTIAL.as_bytes();
    let bytes = name.as_bytes();
    if name.is_safe() && !is_ours(bytes) && bytes.len() <= NAME_BYTES_MAX {
        return OsStr::from_bytes(bytes).to_owned();
    }
    let kept = bytes.get(..KEPT_BYTES).unwrap_or(bytes);
    let plain: Vec<u8> = kept
        .iter()
        .map(|byte| {
            if matches!(byte, 0 | b'/') {
                b'_'
            } else {
                *byte
            }
        })
        .collect();
    let mut safe = OsStr::from_bytes(&plain).to_owned();
    safe.push(format!("~{number:x}"));
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_host_cannot_hold_are_changed_and_others_are_not() {
        let host =
            |bytes: &[u8]| host_name(&FileName::from_bytes(bytes), 0x1f).into_encoded_bytes();
        assert_eq!(host(b"a\xFF b"), b"a\xFF b");
        assert_eq!(host(b".."), b"..~1f");
        assert_eq!(host(b"."), b".~1f");
        assert_eq!(host(b""), b"~1f");
        assert_eq!(host(b"../etc\0"), b".._etc_~1f");
        assert_eq!(host(SIDE_FILE.as_bytes()), b"hikae-metadata.jsonl~1f");
        assert_eq!(host(&[b'x'; 255]).len(), 255);
        assert_eq!(host(&[b'x'; 256]).len(), 203);
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = Folder::target(&place.path().join("to")).expect("made");
        std::os::unix::fs::symlink(place.path(), place.path().join("to/link")).expect("a link");
        let entered = folder.enter(OsStr::new("link"));
        assert_eq!(
            entered.map_err(|error| error.kind()).err(),
            Some(ErrorKind::Refused)
        );
        let free = folder.check_free(OsStr::new("link"), Existing::Refuse);
        assert_eq!(
            free.map_err(|error| error.kind()),
            Err(ErrorKind::AlreadyExists)
        );
    }
}
