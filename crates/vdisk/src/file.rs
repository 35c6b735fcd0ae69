//! Files and block devices of the host, read and written by position.
//!
//! ```text
//!   HostFile ── pread/pwrite ──► regular file   (holes are extents, zeroing punches holes)
//!            └─────────────────► block device   (size by seeking, zeroing asks the device first)
//! ```
//!
//! **Invariants.** The size is kept here and follows every write of *this* object; another process that grows the file is
//! not noticed. No call moves a file position that another call depends on, so any thread may use it at once.
//! `zero_range` leaves zeros whatever the file system can do: where it cannot punch, zeros are written.
//!
//! It does not lock, does not follow the file when it is renamed, and does no direct I/O.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

#[cfg(unix)]
#[path = "file/unix.rs"]
mod platform;
#[cfg(windows)]
#[path = "file/windows.rs"]
mod platform;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block::{Extent, ExtentKind, ReadAt, WriteAt};

use crate::field::bytes;
use crate::{Error, ErrorKind, Result};

/// Writes of whole pages from this length on are bulk data: written once, not read soon, and kept out of the page cache.
const MIN_UNCACHED_BYTES: usize = 64 * 1024;
/// Pages of the usual machines; a write of parts of pages is left to the cache.
const PAGE_BYTES: u64 = 4096;
/// Bytes of zeros written at once where no hole can be punched.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Writes all bytes at an offset, so that they do not stay in the host's memory where the system can do that.
///
/// # Errors
/// Those of writing.
pub fn write_uncached_at(file: &File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    if platform::can_skip_cache() && platform::write_all_uncached_at(file, offset, bytes)? {
        return Ok(());
    }
    platform::write_all_at(file, offset, bytes)
}

/// What a host file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Reading; every write is refused.
    ReadOnly,
    /// Reading and writing a file that is there.
    ReadWrite,
}

/// How a file is going to be read, told to the kernel so that it reads ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessPattern {
    /// No expectation.
    #[default]
    Normal,
    /// From the beginning to the end.
    Sequential,
    /// As [`Self::Sequential`], and not again soon: what was not in the page cache does not stay there.
    Once,
    /// Here and there: reading ahead would be wasted.
    Random,
}

/// What kind of thing the path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file: it has holes and grows.
    Regular,
    /// A block device: its size is fixed.
    BlockDevice,
}

/// A file or block device of the host.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    path: PathBuf,
    access: FileAccess,
    kind: FileKind,
    size_bytes: AtomicU64,
    /// Cleared at the first refusal, so that a file system without holes is asked once.
    knows_holes: AtomicBool,
    /// The same for punching.
    can_punch: AtomicBool,
    /// The same for reading and writing past the page cache.
    can_skip_cache: AtomicBool,
    /// Whether long reads go past it.
    is_read_once: AtomicBool,
}

impl HostFile {
    /// Opens what is there.
    pub fn open(path: &Path, access: FileAccess) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(access == FileAccess::ReadWrite)
            .open(path)
            .map_err(|error| at_path("opening", path, error))?;
        Self::from_parts(file, path, access)
    }

    /// Creates an empty file; refuses with [`ErrorKind::AlreadyExists`] when something is there.
    pub fn create_new(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|error| at_path("creating", path, error))?;
        Self::from_parts(file, path, FileAccess::ReadWrite)
    }

    fn from_parts(file: File, path: &Path, access: FileAccess) -> Result<Self> {
        let (kind, size_bytes) =
            platform::measure(&file).map_err(|error| at_path("measuring", path, error))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            access,
            kind,
            size_bytes: AtomicU64::new(size_bytes),
            knows_holes: AtomicBool::new(kind == FileKind::Regular),
            can_punch: AtomicBool::new(true),
            can_skip_cache: AtomicBool::new(platform::can_skip_cache()),
            is_read_once: AtomicBool::new(false),
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Regular file or block device.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// Tells the kernel how the file will be read. A hint: nothing depends on it, so a refusal is not an error.
    pub fn advise(&self, pattern: AccessPattern) {
        platform::advise(&self.file, pattern);
        self.is_read_once
            .store(pattern == AccessPattern::Once, Ordering::Relaxed);
    }

    fn io_error(
        &self,
        doing: &str,
        offset: u64,
        length: usize,
        error: std::io::Error,
    ) -> block::Error {
        let context = format!(
            "{doing} {length} bytes at {offset} of {}",
            self.path.display()
        );
        block::Error::with_source(block::ErrorKind::Io, context, error)
    }

    fn require_writable(&self) -> block::Result<()> {
        if self.access == FileAccess::ReadWrite {
            return Ok(());
        }
        Err(block::Error::new(
            block::ErrorKind::ReadOnly,
            format!("{} was opened for reading", self.path.display()),
        ))
    }

    /// The end of a range, refused when it lies behind what a file offset can say.
    fn end_of(&self, offset: u64, length_bytes: u64) -> block::Result<u64> {
        offset
            .checked_add(length_bytes)
            .filter(|end| *end <= i64::MAX.unsigned_abs())
            .ok_or_else(|| {
                block::Error::new(
                    block::ErrorKind::OutOfRange,
                    format!(
                        "{length_bytes} bytes at {offset} of {}",
                        self.path.display()
                    ),
                )
            })
    }

    fn read_data(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        if buffer.len() >= MIN_UNCACHED_BYTES
            && self.is_read_once.load(Ordering::Relaxed)
            && self.can_skip_cache.load(Ordering::Relaxed)
        {
            if platform::read_exact_uncached_at(&self.file, offset, buffer)? {
                return Ok(());
            }
            self.can_skip_cache.store(false, Ordering::Relaxed);
        }
        platform::read_exact_at(&self.file, offset, buffer)
    }

    /// Bulk data goes past the page cache where the system can do that: through it, every fresh page costs more
    /// than writing it, and pushes out what the host's own work needs.
    fn write_data(&self, offset: u64, buffer: &[u8]) -> std::io::Result<()> {
        let is_bulk = buffer.len() >= MIN_UNCACHED_BYTES
            && offset.is_multiple_of(PAGE_BYTES)
            && bytes(buffer.len()).is_multiple_of(PAGE_BYTES);
        if is_bulk && self.can_skip_cache.load(Ordering::Relaxed) {
            if platform::write_all_uncached_at(&self.file, offset, buffer)? {
                return Ok(());
            }
            self.can_skip_cache.store(false, Ordering::Relaxed);
        }
        platform::write_all_at(&self.file, offset, buffer)
    }

    fn write_zeros(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        let end = self.end_of(offset, length_bytes)?;
        let mut at = offset;
        while at < end {
            let step = usize::try_from(end.saturating_sub(at))
                .unwrap_or(usize::MAX)
                .min(ZEROS.len());
            let (piece, _) = ZEROS.split_at(step);
            platform::write_all_at(&self.file, at, piece)
                .map_err(|error| self.io_error("zeroing", at, step, error))?;
            at = at.saturating_add(bytes(step));
        }
        Ok(())
    }
}

impl ReadAt for HostFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let end = self.end_of(offset, bytes(buffer.len()))?;
        if end > self.size_bytes() {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!(
                    "reading {} bytes at {offset} of {}, which has {}",
                    buffer.len(),
                    self.path.display(),
                    self.size_bytes()
                ),
            ));
        }
        let length = buffer.len();
        self.read_data(offset, buffer)
            .map_err(|error| self.io_error("reading", offset, length, error))
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let size = self.size_bytes();
        let left = size.saturating_sub(offset).min(limit_bytes);
        if left == 0 {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!(
                    "extent at {offset} of {}, which has {size}",
                    self.path.display()
                ),
            ));
        }
        let all_data = Extent {
            offset,
            length_bytes: left,
            kind: ExtentKind::Data,
        };
        if !self.knows_holes.load(Ordering::Relaxed) {
            return Ok(all_data);
        }
        match platform::next_change(&self.file, offset) {
            Ok((kind, change)) => {
                let run = change.map_or(left, |change| change.saturating_sub(offset));
                Ok(Extent {
                    offset,
                    length_bytes: run.clamp(1, left),
                    kind,
                })
            }
            Err(error) if platform::is_unsupported(&error) => {
                self.knows_holes.store(false, Ordering::Relaxed);
                Ok(all_data)
            }
            Err(error) => Err(self.io_error("seeking a hole in", offset, 0, error)),
        }
    }
}

impl WriteAt for HostFile {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        self.require_writable()?;
        let end = self.end_of(offset, bytes(buffer.len()))?;
        self.write_data(offset, buffer)
            .map_err(|error| self.io_error("writing", offset, buffer.len(), error))?;
        self.size_bytes.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        self.require_writable()?;
        if length_bytes == 0 {
            return Ok(());
        }
        let end = self.end_of(offset, length_bytes)?;
        let inside = self.size_bytes().saturating_sub(offset).min(length_bytes);
        if inside > 0 {
            if self.can_punch.load(Ordering::Relaxed) {
                match platform::punch(&self.file, offset, inside) {
                    Ok(()) => {}
                    Err(error) if platform::is_unsupported(&error) => {
                        self.can_punch.store(false, Ordering::Relaxed);
                        self.write_zeros(offset, inside)?;
                    }
                    Err(error) => return Err(self.io_error("punching", offset, 0, error)),
                }
            } else {
                self.write_zeros(offset, inside)?;
            }
        }
        if end > self.size_bytes() {
            self.set_size(end)?;
        }
        Ok(())
    }

    fn set_size(&self, size_bytes: u64) -> block::Result<()> {
        self.require_writable()?;
        let current = self.size_bytes();
        if self.kind == FileKind::BlockDevice {
            if size_bytes <= current {
                return Ok(());
            }
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!("{} is a device of {current} bytes", self.path.display()),
            ));
        }
        self.file
            .set_len(size_bytes)
            .map_err(|error| self.io_error("resizing", size_bytes, 0, error))?;
        self.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    fn flush(&self) -> block::Result<()> {
        if self.access == FileAccess::ReadOnly {
            return Ok(());
        }
        self.file
            .sync_data()
            .map_err(|error| self.io_error("flushing", 0, 0, error))
    }
}

/// Makes the entries of a directory durable: the last step of creating or renaming a file in it.
pub fn sync_directory(directory: &Path) -> Result<()> {
    platform::sync_directory(directory)
        .map_err(|error| at_path("flushing directory", directory, error))
}

/// An error that names the path, with the kind that the operating system's answer deserves.
pub(crate) fn at_path(doing: &str, path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        _ => ErrorKind::Io,
    };
    Error::with_source(kind, format!("{doing} {}", path.display()), error)
}
