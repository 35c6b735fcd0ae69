//! `hikae image compare`: whether two images hold the same bytes. Ends with 3 when they do not.

use std::path::Path;

use serde::Serialize;
use vdisk::image::{ChainMode, Image};

use super::{open_image, open_options};
use crate::args::{FormatArg, ImageOpenArgs};
use crate::exit::Exit;
use crate::output::{Output, bytes};
use crate::progress::DiskBar;

#[derive(Serialize)]
struct Report {
    equal: bool,
    first_size_bytes: u64,
    second_size_bytes: u64,
    first_difference: Option<u64>,
    different_bytes: u64,
    different_ranges: u64,
}

/// Runs the verb.
pub fn run(
    first: &Path,
    second: &Path,
    open: &ImageOpenArgs,
    second_format: Option<FormatArg>,
    output: &Output,
) -> anyhow::Result<Exit> {
    let left = open_image(first, open)?;
    let second_open = ImageOpenArgs {
        source_format: second_format,
        ..open.clone()
    };
    let right = Image::open(second, &open_options(&second_open, ChainMode::Whole)?)?;
    let bar = DiskBar::new(output, "comparing");
    let found = vdisk::compare::compare(&left, &right, &bar)?;
    bar.finish();
    let report = Report {
        equal: found.is_equal(),
        first_size_bytes: found.left_size_bytes,
        second_size_bytes: found.right_size_bytes,
        first_difference: found.first_difference,
        different_bytes: found.differing_bytes,
        different_ranges: found.differing_ranges,
    };
    output.report(&report, text)?;
    Ok(if report.equal {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    if report.first_size_bytes != report.second_size_bytes {
        text.push_str(&format!(
            "The sizes differ: {} and {} bytes.\n",
            report.first_size_bytes, report.second_size_bytes
        ));
    }
    match report.first_difference {
        None if report.equal => {
            text.push_str(&format!("Equal: {}.\n", bytes(report.first_size_bytes)));
        }
        None => text.push_str("What lies behind the shorter one's end reads as zeros.\n"),
        Some(offset) => text.push_str(&format!(
            "Different: {} bytes in {} ranges, the first at offset {offset}.\n",
            report.different_bytes, report.different_ranges
        )),
    }
    text
}
