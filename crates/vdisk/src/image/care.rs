//! Checking and repairing one image file, whatever its format.
//!
//! | format | check | repair |
//! |---|---|---|
//! | VHDX, VHD, qcow2 | every structure, every reference | see the format's own `repair` |
//! | VMDK | opened, and its whole map walked | none |
//! | raw | nothing can be wrong | none |

use std::path::Path;
use std::sync::Arc;

use block::{ReadAt, WriteAt};

use super::{ChainMode, FormatHint, Image, OpenOptions, probe};
use crate::file::{FileAccess, HostFile};
use crate::vhdx::IdSource;
use crate::{CheckReport, Error, ErrorKind, Format, RepairMode, Result, Severity};
use crate::{map, qcow2, vhd, vhdx};

/// Checks the file at `path`, without its parents.
///
/// # Errors
/// Only what keeps the file from being read: damage is a finding.
pub fn check(path: &Path, options: &OpenOptions) -> Result<CheckReport> {
    let Some(file) = options.opener.open_file(path)? else {
        return Err(Error::new(
            ErrorKind::Io,
            format!("{} is not there", path.display()),
        ));
    };
    match format_of(&*file, options.format)? {
        Format::Raw => Ok(CheckReport::default()),
        Format::Vhd => vhd::check(file),
        Format::Vhdx => vhdx::check(&file),
        Format::Qcow2 => qcow2::check(&*file),
        Format::Vmdk => walk(path, options),
    }
}

/// What a repair found and what it left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// What was wrong before.
    pub before: CheckReport,
    /// What is wrong still.
    pub after: CheckReport,
}

/// Repairs the file at `path` of this host, as far as `mode` allows. A sound file is not written to.
///
/// # Errors
/// `Unsupported` for VMDK; `Corrupt` when nothing can be made of the file, or not without losing data.
pub fn repair(
    path: &Path,
    format: FormatHint,
    mode: RepairMode,
    ids: &IdSource,
) -> Result<RepairReport> {
    let options = OpenOptions {
        format,
        ..OpenOptions::default()
    };
    let before = check(path, &options)?;
    if before.is_clean() {
        return Ok(RepairReport {
            after: before.clone(),
            before,
        });
    }
    let file: Arc<dyn WriteAt> = Arc::new(HostFile::open(path, FileAccess::ReadWrite)?);
    match format_of(&*file, format)? {
        Format::Raw => {}
        Format::Vhd => drop(vhd::repair(file, mode)?),
        Format::Vhdx => drop(vhdx::repair(&file, mode, ids)?),
        Format::Qcow2 => drop(qcow2::repair(&*file, mode)?),
        Format::Vmdk => {
            let context = format!("repairing {}: VMDK", path.display());
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
    }
    Ok(RepairReport {
        before,
        after: check(path, &options)?,
    })
}

fn format_of(file: &dyn ReadAt, hint: FormatHint) -> Result<Format> {
    match hint {
        FormatHint::Probe => probe(file),
        FormatHint::Exactly(format) => Ok(format),
    }
}

/// For a format without counters to compare: what opening and walking all tables finds.
fn walk(path: &Path, options: &OpenOptions) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let leaf = OpenOptions {
        chain: ChainMode::LeafOnly,
        ..options.clone()
    };
    let outcome = Image::open(path, &leaf)
        .and_then(|image| map::extents(&image).try_for_each(|extent| extent.map(drop)));
    match outcome {
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(error) => report.add(Severity::Damage, None, error.to_string()),
        Ok(()) => {}
    }
    Ok(report)
}
