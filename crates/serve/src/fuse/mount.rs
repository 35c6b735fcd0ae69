//! Mounting and unmounting, and clearing away what a killed process left.
//!
//! ```text
//!   nothing mounted ───────────────► mount ──► serving ──► unmount ──► gone
//!   a dead folder of ours ─► clear ───┘                      └─ in use ─► detached: gone from the folder tree; its users
//!   a living one, somebody else's ─► refused                              get errors when this process ends
//! ```
//!
//! **Invariants.** Only a dead mount of this program is cleared away. Root mounts by itself; others through `fusermount3`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::mount::UnmountFlags;

use super::folder::{Folder, ServedFile};
use crate::{Error, ErrorKind, Result, Watch};

/// What the kernel calls a mount of ours.
const KIND: &str = "hikae";
/// Threads that answer the kernel.
const THREADS: usize = 4;

/// Who may look into the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The user who mounts it.
    Owner,
    /// Every user of this machine.
    Everybody,
}

/// How a folder is mounted.
#[derive(Debug, Clone, Copy)]
pub struct FuseOptions {
    /// Who may look into it.
    pub access: Access,
}

/// How a folder went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// Nobody used it any more.
    Cleanly,
    /// Somebody still uses files in it, and gets errors from now on.
    WhileInUse,
}

/// A folder that is there.
pub struct FuseMount {
    session: BackgroundSession,
    dir: PathBuf,
}

impl FuseMount {
    /// Mounts a folder with these files over `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when something is mounted there, [`ErrorKind::AlreadyExists`] when it is not an empty folder,
    /// [`ErrorKind::Io`] with what the system says: no right to, no FUSE here.
    pub fn mount(
        dir: &Path,
        files: Vec<ServedFile>,
        options: FuseOptions,
        watch: Arc<dyn Watch>,
    ) -> Result<Self> {
        if let Some(bad) = files.iter().find(|file| !is_file_name(&file.name)) {
            let what = format!("{:?} cannot be the name of a file", bad.name);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let dir = prepare(dir)?;
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(KIND.to_owned()),
            MountOption::Subtype(KIND.to_owned()),
            MountOption::RO,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
            MountOption::NoAtime,
            MountOption::DefaultPermissions,
        ];
        config.acl = match options.access {
            Access::Owner => SessionACL::Owner,
            Access::Everybody => SessionACL::All,
        };
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let context = || format!("mounting {}", dir.display());
        let session = Session::new(Folder::new(files, watch), &dir, &config)
            .and_then(Session::spawn)
            .map_err(|error| Error::io(context(), error))?;
        Ok(Self { session, dir })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether somebody else has unmounted it.
    pub fn has_ended(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// Unmounts it. Who still reads gets an answer first; who still has a file open is not waited for.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the system refuses even to detach it.
    pub fn unmount(self) -> Result<Unmounted> {
        let Self { session, dir } = self;
        let context = || format!("unmounting {}", dir.display());
        let is_there = mounted_at(&dir)
            .map_err(|error| Error::io(context(), error))?
            .is_some_and(|mounted| mounted.is_ours());
        if is_there && unmount(&dir, Users::Respected).is_err() {
            // The threads end with the process: as long as files are open the kernel keeps them waiting.
            unmount(&dir, Users::Ignored)?;
            return Ok(Unmounted::WhileInUse);
        }
        session
            .join()
            .map_err(|error| Error::io(context(), error))?;
        Ok(Unmounted::Cleanly)
    }
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(['/', '\0'])
}

/// The folder to mount over, by its whole path, with nothing mounted there.
fn prepare(dir: &Path) -> Result<PathBuf> {
    let context = || format!("folder {}", dir.display());
    let failed = |error| Error::io(context(), error);
    // A dead mount can be neither entered nor looked at, so that the path is found by its parent.
    let whole = std::path::absolute(dir).map_err(failed)?;
    let place = match (whole.parent(), whole.file_name()) {
        (Some(parent), Some(name)) => {
            std::fs::create_dir_all(parent).map_err(failed)?;
            parent.canonicalize().map_err(failed)?.join(name)
        }
        _ => whole.clone(),
    };
    match mounted_at(&place).map_err(failed)? {
        Some(mounted) if mounted.is_ours() => match std::fs::metadata(&place) {
            Err(error) if is_dead(&error) => unmount(&place, Users::Ignored)?,
            _ => {
                let what = format!("{}: disks are already served there", context());
                return Err(Error::new(ErrorKind::Busy, what));
            }
        },
        Some(mounted) => {
            let kind = mounted.kind.to_string_lossy();
            let what = format!("{}: something else ({kind}) is mounted there", context());
            return Err(Error::new(ErrorKind::Busy, what));
        }
        None => {}
    }
    std::fs::create_dir_all(&place).map_err(failed)?;
    let place = place.canonicalize().map_err(failed)?;
    if std::fs::read_dir(&place).map_err(failed)?.next().is_some() {
        let what = format!("{}: it is not empty", context());
        return Err(Error::new(ErrorKind::AlreadyExists, what));
    }
    Ok(place)
}

/// Whether this is what a mount says whose process is gone.
fn is_dead(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [rustix::io::Errno::NOTCONN, rustix::io::Errno::CONNABORTED]
        .iter()
        .any(|dead| code == Some(dead.raw_os_error()))
}

/// What is mounted somewhere.
struct Mounted {
    /// The kind of file system: `fuse` when root mounts, `fuse.hikae` through `fusermount3`.
    kind: OsString,
    /// What it says that it came from.
    source: OsString,
}

impl Mounted {
    fn is_ours(&self) -> bool {
        let kind = self.kind.as_encoded_bytes();
        self.source == OsStr::new(KIND) && (kind == b"fuse" || kind.starts_with(b"fuse."))
    }
}

/// What is mounted exactly at a path, the topmost one.
fn mounted_at(place: &Path) -> io::Result<Option<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mut found = None;
    for line in table.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else {
            continue;
        };
        let behind = |count: usize| fields.get(dash.saturating_add(count)).copied();
        if let (Some(at), Some(kind), Some(source)) = (fields.get(4), behind(1), behind(2))
            && unescaped(at) == place.as_os_str()
        {
            found = Some(Mounted {
                kind: unescaped(kind),
                source: unescaped(source),
            });
        }
    }
    Ok(found)
}

/// A field of the mount table, in which `\040` stands for a space.
fn unescaped(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        };
        match (first, after.split_at_checked(3)) {
            (b'\\', Some((digits, behind))) if octal(digits).is_some() => {
                bytes.extend(octal(digits));
                rest = behind;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// What becomes of those who use a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    /// It stays as long as there are any.
    Respected,
    /// It vanishes from the folder tree at once.
    Ignored,
}

/// Takes a mount out of the folder tree.
fn unmount(place: &Path, users: Users) -> Result<()> {
    let context = || format!("unmounting {}", place.display());
    let (flags, argument) = match users {
        Users::Respected => (UnmountFlags::empty(), "-u"),
        Users::Ignored => (UnmountFlags::DETACH, "-uz"),
    };
    match rustix::mount::unmount(place, flags) {
        Ok(()) => return Ok(()),
        // Those without rights have a program for it.
        Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(Error::io(context(), error.into())),
    }
    let output = Command::new("fusermount3")
        .args([argument, "--"])
        .arg(place)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::io(format!("{} with fusermount3", context()), error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let what = format!("{}: {}", context(), said.trim());
    Err(Error::new(ErrorKind::Io, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_in_the_mount_table_are_read() {
        assert_eq!(unescaped(b"/mnt/a\\040b\\134c"), OsStr::new("/mnt/a b\\c"));
        assert_eq!(unescaped(b"/mnt\\04"), OsStr::new("/mnt\\04"));
        assert_eq!(unescaped(b"\\"), OsStr::new("\\"));
    }

    #[test]
    fn what_is_mounted_is_found_and_what_is_not_is_not() {
        let proc = mounted_at(Path::new("/proc")).expect("the mount table");
        let proc = proc.expect("it is mounted");
        assert_eq!(proc.kind, OsStr::new("proc"));
        assert!(!proc.is_ours());
        let inside = mounted_at(Path::new("/proc/self")).expect("the mount table");
        assert!(inside.is_none());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\0b"] {
            assert!(!is_file_name(bad), "{bad:?}");
        }
        assert!(is_file_name("web01@3.raw"));
    }
}
