//! Files and folders out of a disk or a version, into a folder of the host.
//!
//! ```text
//!   select ─► each place: folder? ─► made, entered, its entries in runs, its metadata last
//!                         file?   ─► .hikae-partial ─► extents, holes kept ─► metadata ─► renamed
//!                         link?   ─► made, never followed
//!   what the host cannot hold ─► hikae-metadata.jsonl, one object a line
//! ```
//!
//! A file lies below the target by its path on its volume, below `volume-N` when several volumes are meant. Everything
//! is opened relative to the folder above it and no link is followed, so that nothing leaves the target whatever the
//! disk says. Names that the host cannot hold are changed and noted. A file that is damaged is told and the others go
//! on; a file of the host that is in the way ends the job unless it may be replaced. Interrupted, no half file has the
//! name of a whole one.
//!
//! **Not done.** Devices, sockets and pipes are noted, not made; hard links become files of their own. Alternate streams
//! above 64 KiB are noted without their bytes, which is told as a failure. Folders deeper than 400 are told as failures.

#[cfg(unix)]
mod folder;
#[cfg(unix)]
mod metadata;
#[cfg(unix)]
mod walk;

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

/// What is to be extracted.
#[derive(Debug, Clone)]
pub struct ExtractRequest {
    /// Paths as an operator types them, with `*` and `?`.
    pub paths: Vec<String>,
    /// The folder that they go to; made when it is not there.
    pub target: PathBuf,
    /// What happens to what is in the way.
    pub existing: Existing,
}

/// What was extracted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ExtractReport {
    /// Where to.
    pub target: PathBuf,
    /// Files that were written.
    pub files: u64,
    /// Folders that were made or entered.
    pub folders: u64,
    /// Links that were made.
    pub links: u64,
    /// Bytes that were written, without holes.
    pub written_bytes: u64,
    /// Lines in the side file: files of which the host cannot hold everything.
    pub noted: u64,
    /// What could not be read, with why; at most 1,000 lines.
    pub failures: Vec<String>,
    /// How many there were.
    pub failed: u64,
}

/// Name of the side file.
pub const SIDE_FILE: &str = "hikae-metadata.jsonl";

/// Extracts.
///
/// # Errors
/// [`crate::ErrorKind::AlreadyExists`] when something is in the way; [`crate::ErrorKind::NotFound`] when a path means
/// nothing; [`crate::ErrorKind::Cancelled`]; what reading the disk or writing the host answered.
#[cfg(unix)]
pub fn extract_files(
    inside: &InsideDisks,
    request: &ExtractRequest,
    context: JobContext<'_>,
) -> Result<ExtractReport> {
    let places = inside.select(&request.paths)?;
    context.progress.begin("extracting", None);
    let outcome = walk::Extraction::begin(request, context).and_then(|run| run.all(&places));
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
    _request: &ExtractRequest,
    _context: JobContext<'_>,
) -> Result<ExtractReport> {
    let what = "files are extracted on Linux and other Unix systems only";
    Err(crate::Error::new(crate::ErrorKind::Unsupported, what))
}
