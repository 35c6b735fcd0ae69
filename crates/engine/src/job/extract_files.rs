//! Files and folders out of a disk or a version: into a folder of the host, a tar or a zip archive.
//!
//! ```text
//!   select ─► walk ─► queue ─┬─ workers: read, write or pack ─┐
//!                            └─ steps in order ───────────────┴─► folder │ archive
//!   what that place cannot hold ─► hikae-metadata.jsonl, one object a line;  alternate streams ─► hikae-streams/
//! ```
//!
//! A file lies below the target by its path on its volume, below `volume-N` when several volumes are meant. Names that the
//! other side cannot hold are changed and noted. A file that is damaged is told and the others go on; a file of the host
//! that is in the way ends the job unless it may be replaced. Interrupted, no half file has the name of a whole one, and
//! the same request goes on where it stopped. What an operator must know stands in docs/EXTRACT.md.
//!
//! **Invariants.** Nothing leaves the target, whatever the disk says. Memory is bounded: by the tasks under way, the depth
//! of folders, the folders that were met, and a table of files with several names.
//!
//! **Not done.** Sockets are noted only, and so are devices unless they are asked for. Folders deeper than 4,100 or paths
//! longer than 60 KiB are told as failures. Short names of Windows are not kept.

#[cfg(unix)]
mod acl;
#[cfg(unix)]
mod content;
#[cfg(unix)]
mod folder;
#[cfg(unix)]
mod into_archive;
#[cfg(unix)]
mod into_folder;
#[cfg(unix)]
mod links;
#[cfg(unix)]
mod manifest;
#[cfg(unix)]
mod metadata;
#[cfg(unix)]
mod note;
#[cfg(unix)]
mod queue;
#[cfg(unix)]
mod sddl;
#[cfg(unix)]
mod trail;
#[cfg(unix)]
mod walk;

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;

use super::JobContext;
use crate::Result;
use crate::inside::InsideDisks;

/// What happens to files of the host that are in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// The job ends.
    #[default]
    Refuse,
    /// They are replaced; folders are merged.
    Replace,
}

/// What happens to device files, in a folder. A tar archive holds them, whoever unpacks it decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Devices {
    /// They are noted in the side file.
    #[default]
    Note,
    /// They are made; that takes the rights of root.
    Make,
}

/// Whether what was written is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verification {
    /// The host is believed.
    #[default]
    None,
    /// It is read again, from the disk wherever the host lets its memory go, and compared.
    ReadBack,
}

/// What the bytes of a disk are known by, so that an interrupted extraction can tell whether it is of the same ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceId(pub String);

/// Kinds of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// POSIX tar with pax headers.
    Tar,
    /// Zip with 64-bit sizes.
    Zip,
}

/// What an archive is written to.
pub enum ArchiveOutput {
    /// A file; it has its name when it is whole.
    File(PathBuf),
    /// A stream, such as standard output.
    Stream(Box<dyn Write>),
}

/// Where files go.
pub enum ExtractTarget {
    /// A folder of the host; made when it is not there.
    Folder(PathBuf),
    /// One archive.
    Archive(ArchiveKind, ArchiveOutput),
}

/// What is to be extracted, and how.
#[derive(Debug, Clone, Default)]
pub struct ExtractRequest {
    /// Paths as an operator types them, with `*`, `?` and `**`.
    pub paths: Vec<String>,
    /// What happens to what is in the way.
    pub existing: Existing,
    /// What happens to device files.
    pub devices: Devices,
    /// Whether what was written is read again.
    pub verification: Verification,
    /// A list of hashes to be written, as `sha256sum --check` reads it.
    pub manifest: Option<PathBuf>,
    /// What is read; without, an interrupted extraction believes only bytes that it compared.
    pub source: Option<SourceId>,
}

/// What was extracted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ExtractReport {
    /// Where to; `-` for a stream.
    pub target: PathBuf,
    /// Files that were written, each name of one counted.
    pub files: u64,
    /// Folders that were made or entered.
    pub folders: u64,
    /// Symbolic links that were made.
    pub links: u64,
    /// Pipes and devices that were made.
    pub specials: u64,
    /// Files and links that an earlier run had finished.
    pub kept: u64,
    /// Bytes that were written, without holes; as packed in an archive.
    pub written_bytes: u64,
    /// Names of files with several that became files of their own.
    pub unlinked: u64,
    /// Lines in the side file: files of which the place cannot hold everything.
    pub noted: u64,
    /// What could not be read, with why; at most 1,000 lines.
    pub failures: Vec<String>,
    /// How many there were.
    pub failed: u64,
}

/// Name of the side file.
pub const SIDE_FILE: &str = "hikae-metadata.jsonl";
/// Folder of alternate streams.
pub const STREAMS_FOLDER: &str = "hikae-streams";
/// Folder of what is not finished.
pub const PARTIAL_FOLDER: &str = ".hikae-partial";

/// Extracts.
///
/// # Errors
/// [`crate::ErrorKind::AlreadyExists`] when something is in the way; [`crate::ErrorKind::NotFound`] when a path means
/// nothing; [`crate::ErrorKind::Busy`] while somebody else extracts into the same folder;
/// [`crate::ErrorKind::Cancelled`]; what reading the disk or writing the host answered.
#[cfg(unix)]
pub fn extract_files(
    inside: &InsideDisks,
    target: ExtractTarget,
    request: &ExtractRequest,
    context: JobContext<'_>,
) -> Result<ExtractReport> {
    let places = inside.select(&request.paths)?;
    context.progress.begin("extracting", None);
    let outcome = match target {
        ExtractTarget::Folder(target) => {
            into_folder::extract(inside, &places, &target, request, context)
        }
        ExtractTarget::Archive(kind, output) => {
            into_archive::extract(inside, &places, kind, output, request, context)
        }
    };
    context.progress.end();
    outcome
}

/// Files are extracted on Unix only.
///
/// # Errors
/// [`crate::ErrorKind::Unsupported`].
#[cfg(not(unix))]
pub fn extract_files(
    _inside: &InsideDisks,
    _target: ExtractTarget,
    _request: &ExtractRequest,
    _context: JobContext<'_>,
) -> Result<ExtractReport> {
    let what = "files are extracted on Linux and other Unix systems only";
    Err(crate::Error::new(crate::ErrorKind::Unsupported, what))
}

/// Threads that read and write: more than cores, so that reading and decoding overlap.
#[cfg(unix)]
fn worker_count() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    cores.saturating_mul(2).clamp(2, 16)
}

#[cfg(unix)]
impl Verification {
    fn check(self) -> content::Check {
        match self {
            Self::None => content::Check::None,
            Self::ReadBack => content::Check::ReadBack,
        }
    }
}

#[cfg(unix)]
impl ExtractReport {
    const FAILURES_MAX: usize = 1000;

    /// Whether nothing was written.
    fn is_empty(&self) -> bool {
        self.files == 0 && self.links == 0 && self.specials == 0 && self.folders == 0
    }

    fn tell(&mut self, failure: String) {
        self.failed = self.failed.saturating_add(1);
        if self.failures.len() < Self::FAILURES_MAX {
            self.failures.push(failure);
        }
    }

    /// Counts what could not be had.
    fn fail(&mut self, path: &[u8], why: &str) {
        let path = if path.is_empty() { &b"/"[..] } else { path };
        self.tell(format!("{}: {why}", String::from_utf8_lossy(path)));
    }

    /// Counts what a task did.
    fn add(&mut self, done: into_folder::Done) -> Result<()> {
        for (sum, more) in [
            (&mut self.files, done.files),
            (&mut self.links, done.links),
            (&mut self.specials, done.specials),
            (&mut self.kept, done.kept),
            (&mut self.written_bytes, done.written_bytes),
            (&mut self.noted, done.noted),
        ] {
            *sum = sum.saturating_add(more);
        }
        for failure in done.failures {
            self.tell(failure);
        }
        done.fatal.map_or(Ok(()), Err)
    }
}
