//! `hikae image map`: what lies where in an image or a whole chain.

use std::path::Path;

use block::ExtentKind;
use serde::Serialize;
use vdisk::image::{ChainMode, Image};

use super::open_options;
use crate::args::ImageOpenArgs;
use crate::exit::Exit;
use crate::output::{Output, Table, bytes};

/// How much of a chain is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The disk as the machine sees it.
    Whole,
    /// The one file.
    Leaf,
}

impl Depth {
    /// From the flag.
    pub fn of(leaf: bool) -> Self {
        if leaf { Self::Leaf } else { Self::Whole }
    }
}

#[derive(Serialize)]
struct ExtentReport {
    offset: u64,
    length_bytes: u64,
    kind: &'static str,
}

#[derive(Default, Serialize)]
struct Totals {
    data_bytes: u64,
    zero_bytes: u64,
    unallocated_bytes: u64,
    in_parent_bytes: u64,
}

#[derive(Serialize)]
struct Report {
    size_bytes: u64,
    extents: Vec<ExtentReport>,
    totals: Totals,
}

/// Runs the verb.
pub fn run(
    path: &Path,
    depth: Depth,
    open: &ImageOpenArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    let mode = match depth {
        Depth::Whole => ChainMode::Whole,
        Depth::Leaf => ChainMode::LeafOnly,
    };
    let image = Image::open(path, &open_options(open, mode)?)?;
    let mut report = Report {
        size_bytes: block::ReadAt::size_bytes(&image),
        extents: Vec::new(),
        totals: Totals::default(),
    };
    for extent in vdisk::map::extents(&image) {
        let extent = extent?;
        let (kind, total) = match extent.kind {
            ExtentKind::Data => ("data", &mut report.totals.data_bytes),
            ExtentKind::Zero => ("zero", &mut report.totals.zero_bytes),
            ExtentKind::Unallocated => ("unallocated", &mut report.totals.unallocated_bytes),
            ExtentKind::InParent => ("in parent", &mut report.totals.in_parent_bytes),
        };
        *total = total.saturating_add(extent.length_bytes);
        report.extents.push(ExtentReport {
            offset: extent.offset,
            length_bytes: extent.length_bytes,
            kind,
        });
    }
    output.report(&report, text)?;
    Ok(Exit::Done)
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&["offset", "bytes", "", "kind"], &[0, 1, 2]);
    for extent in &report.extents {
        table.row(vec![
            extent.offset.to_string(),
            extent.length_bytes.to_string(),
            bytes(extent.length_bytes),
            extent.kind.to_owned(),
        ]);
    }
    let totals = &report.totals;
    format!(
        "{table}\n{} of disk: {} data, {} zero, {} unallocated, {} in the parent\n",
        bytes(report.size_bytes),
        bytes(totals.data_bytes),
        bytes(totals.zero_bytes),
        bytes(totals.unallocated_bytes),
        bytes(totals.in_parent_bytes),
    )
}
