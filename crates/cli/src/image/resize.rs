//! `hikae image resize`: a larger disk in the same image. A disk is never made smaller.

use std::path::Path;

use serde::Serialize;
use vdisk::image::{self, ChainMode};

use super::convert::system_ids;
use super::{format_name, open_options};
use crate::args::ImageOpenArgs;
use crate::exit::Exit;
use crate::output::{Output, bytes};

/// How far the verb goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Only say what would be done.
    Plan,
    /// Do it.
    Resize,
}

impl Wish {
    /// From the flag.
    pub fn of(dry_run: bool) -> Self {
        if dry_run { Self::Plan } else { Self::Resize }
    }
}

#[derive(Serialize)]
struct Report {
    image: String,
    format: &'static str,
    dry_run: bool,
    old_size_bytes: u64,
    size_bytes: u64,
    /// Growth of the file; unknown until it is done.
    file_growth_bytes: Option<u64>,
}

/// Runs the verb.
pub fn run(
    path: &Path,
    size_bytes: u64,
    open: &ImageOpenArgs,
    wish: Wish,
    output: &Output,
) -> anyhow::Result<Exit> {
    let options = open_options(open, ChainMode::Whole)?;
    let plan = image::plan_resize(path, size_bytes, &options)?;
    let mut report = Report {
        image: path.display().to_string(),
        format: format_name(plan.info().format),
        dry_run: wish == Wish::Plan,
        old_size_bytes: plan.info().size_bytes,
        size_bytes: plan.size_bytes(),
        file_growth_bytes: None,
    };
    if wish == Wish::Resize {
        let done = image::resize(&plan, &options, &system_ids()?)?;
        report.file_growth_bytes = Some(done.file_bytes.saturating_sub(done.old_file_bytes));
    }
    output.report(&report, text)?;
    Ok(Exit::Done)
}

fn text(report: &Report) -> String {
    if report.old_size_bytes == report.size_bytes {
        let size = bytes(report.size_bytes);
        return format!("{}: has {size} already\n", report.image);
    }
    let verb = if report.dry_run {
        "would be enlarged"
    } else {
        "enlarged"
    };
    format!(
        "{} ({}): {verb} from {} to {}\n  children made before, and what tracked its changes, no longer belong to it\n",
        report.image,
        report.format,
        bytes(report.old_size_bytes),
        bytes(report.size_bytes)
    )
}
