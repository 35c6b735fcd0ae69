//! Files that are being written, and what is left of those whose writer died.
//!
//! ```text
//!   name:  BOOT (32 hex) - PID - N        BOOT: which start of which kernel, PID: which process, N: which of its files
//!
//!   leftover?   somebody holds its lock ......... kept: its writer lives, perhaps in another container
//!               nobody holds it ................. removed
//!               no locks on this file system .... removed if BOOT is this boot and PID is gone, else kept
//! ```
//!
//! **Invariants.** A writer holds an exclusive lock on its file from creating it until the file has its name, and makes
//! sure that no sweep came between creating and locking. The lock ends with the process, however it dies.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::{At, Step};

/// What a sweep found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SweepReport {
    /// Leftovers removed.
    pub removed: u64,
    /// Files that living writers are at.
    pub in_use: u64,
    /// Files that could not be judged or removed, for instance another user's.
    pub unclear: u64,
    /// Files that are none of ours by their names.
    pub foreign: u64,
}

/// Bounds how many names are tried when another container counts under the same process id.
const NAME_ATTEMPTS: u32 = 64;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// Which start of the kernel this is; zeros where the system does not say, which makes every leftover one of this boot.
static BOOT: LazyLock<String> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    if digits.len() == 32 {
        digits
    } else {
        "0".repeat(32)
    }
});

/// A file without its final name; it is unlinked when this is dropped.
#[derive(Debug)]
pub(super) struct TemporaryFile<'a> {
    directory: BorrowedFd<'a>,
    name: String,
    file: File,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Temporary,
    Renamed,
}

impl<'a> TemporaryFile<'a> {
    /// Makes an empty, locked file.
    pub(super) fn create(directory: BorrowedFd<'a>) -> Step<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        for _ in 0..NAME_ATTEMPTS {
            let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{}-{number}", *BOOT, std::process::id());
            match rustix::fs::openat(directory, &name, flags, Mode::from_raw_mode(0o640)) {
                Ok(file) => {
                    let file = File::from(file);
                    let made = Self {
                        directory,
                        name,
                        file,
                        place: Place::Temporary,
                    };
                    match rustix::fs::flock(&made.file, FlockOperation::LockExclusive) {
                        // Without locks a leftover is judged by boot and process alone.
                        Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => {}
                        Err(errno) => return Err(errno).at("lock the written file"),
                    }
                    let stat = rustix::fs::fstat(&made.file).at("look at the written file")?;
                    // A sweep that came before the lock took it for a leftover: make another one.
                    if stat.st_nlink > 0 {
                        return Ok(made);
                    }
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).at("create a temporary file"),
            }
        }
        Err(Errno::BUSY).at("find a free temporary name")
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The file has its final name and no other.
    pub(super) fn renamed(&mut self) {
        self.place = Place::Renamed;
    }
}

impl Drop for TemporaryFile<'_> {
    fn drop(&mut self) {
        if self.place == Place::Temporary {
            // A file that stays is a leftover like that of a crash: a later sweep removes it.
            let _ = rustix::fs::unlinkat(self.directory, &self.name, AtFlags::empty());
        }
    }
}

/// Removes the files of dead writers.
pub(super) fn sweep(directory: &OwnedFd) -> Step<SweepReport> {
    let mut report = SweepReport::default();
    let mut entries = Dir::read_from(directory).at("read the temporary directory")?;
    while let Some(entry) = entries.read() {
        let entry = entry.at("read the temporary directory")?;
        let bytes = entry.file_name().to_bytes();
        if bytes == b"." || bytes == b".." {
            continue;
        }
        let Some(writer) = std::str::from_utf8(bytes).ok().and_then(Writer::of) else {
            report.foreign = report.foreign.saturating_add(1);
            continue;
        };
        let verdict = judge(directory.as_fd(), &writer);
        let count = match verdict {
            Ok(Verdict::Removed) => &mut report.removed,
            Ok(Verdict::InUse) => &mut report.in_use,
            Err(_) => &mut report.unclear,
        };
        *count = count.saturating_add(1);
    }
    Ok(report)
}

enum Verdict {
    Removed,
    InUse,
}

struct Writer<'a> {
    name: &'a str,
    boot: &'a str,
    pid: Pid,
}

impl<'a> Writer<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let mut parts = name.split('-');
        let (boot, pid, number) = (parts.next()?, parts.next()?, parts.next()?);
        let whole = parts.next().is_none() && boot.len() == 32;
        let pid = pid.parse::<i32>().ok().and_then(Pid::from_raw)?;
        (whole && number.parse::<u64>().is_ok()).then_some(Self { name, boot, pid })
    }

    /// Whether the writer is known to be dead. "Not permitted" is the answer of a living process of another user.
    fn is_gone(&self) -> bool {
        self.boot == *BOOT && test_kill_process(self.pid) == Err(Errno::SRCH)
    }
}

fn judge(directory: BorrowedFd<'_>, writer: &Writer<'_>) -> rustix::io::Result<Verdict> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(directory, writer.name, flags, Mode::empty()) {
        // Another sweeper was faster.
        Err(Errno::NOENT) => return Ok(Verdict::Removed),
        other => other?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Verdict::InUse),
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) if writer.is_gone() => {}
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => return Ok(Verdict::InUse),
        Err(errno) => return Err(errno),
    }
    match rustix::fs::unlinkat(directory, writer.name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(Verdict::Removed),
        Err(errno) => Err(errno),
    }
}
