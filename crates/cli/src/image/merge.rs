//! `hikae image merge`: what a child holds is written into its parent.
//!
//! From its first write on, the parent is no longer the image that the child was made on. So that an interrupted merge can
//! be told from a stranger's change, a note with the parent's path lies beside the child (`.NAME.merge`) while it runs; the
//! same command then goes on from the beginning, which gives the same parent.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use block::ExtentKind;
use serde::Serialize;
use vdisk::image::{ChainMode, Image};
use vdisk::merge::MergeStart;

use super::convert::system_ids;
use super::open_options;
use crate::args::ImageOpenArgs;
use crate::exit::Exit;
use crate::output::{Output, bytes};
use crate::progress::DiskBar;

/// How far the verb goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Only say what would be done.
    Plan,
    /// Merge; the child stays.
    Merge,
    /// Merge, then remove the child.
    MergeAndDelete,
}

impl Wish {
    /// From the flags.
    pub fn of(delete_child: bool, dry_run: bool) -> Self {
        match (dry_run, delete_child) {
            (true, _) => Self::Plan,
            (false, false) => Self::Merge,
            (false, true) => Self::MergeAndDelete,
        }
    }
}

#[derive(Serialize)]
struct Report {
    child: String,
    parent: String,
    dry_run: bool,
    bytes_written: u64,
    bytes_zeroed: u64,
    child_deleted: bool,
}

/// Runs the verb.
pub fn run(
    child: &Path,
    open: &ImageOpenArgs,
    wish: Wish,
    output: &Output,
) -> anyhow::Result<Exit> {
    let options = open_options(open, ChainMode::Whole)?;
    let note = note_path(child);
    let (parent, start) = match read_note(&note)? {
        Some(parent) => (parent, MergeStart::Resume { offset: 0 }),
        None => {
            let image = Image::open(child, &options)?;
            let layer = image
                .chain()
                .get(1)
                .context("the image has no parent to merge into")?;
            (layer.path().to_owned(), MergeStart::Begin)
        }
    };
    let mut report = Report {
        child: child.display().to_string(),
        parent: parent.display().to_string(),
        dry_run: wish == Wish::Plan,
        bytes_written: 0,
        bytes_zeroed: 0,
        child_deleted: false,
    };
    if wish == Wish::Plan {
        let alone = Image::open(child, &open_options(open, ChainMode::LeafOnly)?)?;
        for extent in vdisk::map::extents(&alone) {
            let extent = extent?;
            match extent.kind {
                ExtentKind::Data => report.bytes_written += extent.length_bytes,
                ExtentKind::Zero | ExtentKind::Unallocated => {
                    report.bytes_zeroed += extent.length_bytes;
                }
                ExtentKind::InParent => {}
            }
        }
    } else {
        if start == MergeStart::Begin {
            write_note(&note, &parent)?;
        }
        let bar = DiskBar::new(output, "merging");
        let stats = vdisk::merge::merge(child, &parent, start, &options, system_ids()?, &bar)?;
        bar.finish();
        report.bytes_written = stats.written_bytes;
        report.bytes_zeroed = stats.zeroed_bytes;
        if wish == Wish::MergeAndDelete {
            std::fs::remove_file(child).with_context(|| format!("removing {}", child.display()))?;
            report.child_deleted = true;
        }
        std::fs::remove_file(&note).with_context(|| format!("removing {}", note.display()))?;
    }
    output.report(&report, text)?;
    Ok(Exit::Done)
}

/// Where the note of a running merge lies.
fn note_path(child: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(child.file_name().unwrap_or_default());
    name.push(".merge");
    child.with_file_name(name)
}

/// The parent that an interrupted merge was writing to.
fn read_note(note: &Path) -> anyhow::Result<Option<PathBuf>> {
    match std::fs::read_to_string(note) {
        Ok(text) => Ok(Some(PathBuf::from(text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", note.display())),
    }
}

fn write_note(note: &Path, parent: &Path) -> anyhow::Result<()> {
    let parent = std::fs::canonicalize(parent)?;
    let parent = parent.to_str().context("the parent's path is not UTF-8")?;
    let mut file =
        std::fs::File::create_new(note).with_context(|| format!("writing {}", note.display()))?;
    file.write_all(parent.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

fn text(report: &Report) -> String {
    let verb = if report.dry_run {
        "Would merge"
    } else {
        "Merged"
    };
    format!(
        "{verb} {} into {}: {} written, {} zeroed{}\n",
        report.child,
        report.parent,
        bytes(report.bytes_written),
        bytes(report.bytes_zeroed),
        if report.child_deleted {
            "; the child is gone"
        } else {
            ""
        }
    )
}
