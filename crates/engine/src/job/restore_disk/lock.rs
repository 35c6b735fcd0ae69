//! One restore at a time into one target.
//!
//! Two of them would write into the same partial file, and the first to finish would publish what the other has not
//! written yet. A new image is locked by a file beside it, `.NAME.partial.lock`; what is written in place is locked itself.
//! The system gives a lock back when its process dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use vdisk::image;

use super::RestoreMode;
use crate::job::target::is_device;
use crate::{Error, ErrorKind, Result};

/// How often the lock file is tried again after its owner removed it.
const MAX_TRIES: usize = 16;

/// Holds the lock until it is dropped.
pub(super) struct TargetLock {
    /// Dropped after the file beside the target was removed: who waits for it finds that it is gone, and makes another.
    _file: File,
    beside: Option<PathBuf>,
}

impl TargetLock {
    pub(super) fn take(target: &Path, mode: RestoreMode) -> Result<Self> {
        if mode == RestoreMode::InPlace || is_device(target) {
            let file = File::open(target).map_err(|error| at_path(target, error))?;
            lock(&file, target)?;
            return Ok(Self {
                _file: file,
                beside: None,
            });
        }
        let mut path = image::partial_path(target).into_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        for _ in 0..MAX_TRIES {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false);
            let file = options.open(&path).map_err(|error| at_path(&path, error))?;
            lock(&file, target)?;
            if is_at(&file, &path) {
                return Ok(Self {
                    _file: file,
                    beside: Some(path),
                });
            }
        }
        Err(busy(target))
    }
}

impl Drop for TargetLock {
    fn drop(&mut self) {
        if let Some(path) = &self.beside {
            // What cannot be removed is an empty file that nobody holds; the next restore takes and removes it.
            fs::remove_file(path).unwrap_or(());
        }
    }
}

fn lock(file: &File, target: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(busy(target)),
        // A file system without locks: there is nothing to hold on to.
        Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
            Ok(())
        }
        Err(TryLockError::Error(error)) => Err(at_path(target, error)),
    }
}

fn busy(target: &Path) -> Error {
    let what = format!("another restore is writing {}", target.display());
    Error::new(ErrorKind::Busy, what)
}

fn at_path(path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Io,
    };
    Error::new(kind, path.display().to_string()).caused_by(error)
}

/// Whether the path still leads to the file that was locked: its last owner may have removed it in between.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let there = fs::metadata(path).and_then(|there| file.metadata().map(|here| (here, there)));
    there.is_ok_and(|(here, there)| (here.dev(), here.ino()) == (there.dev(), there.ino()))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}
