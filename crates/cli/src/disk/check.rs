//! `hikae disk check`: consistency check of an image against a version. Ends with 3 when they differ.

use std::path::Path;

use engine::job::check_disk::{CheckDiskReport, check_disk};
use engine::job::{JobContext, NoJournal};

use crate::args::{ImageOpenArgs, RepoArgs};
use crate::exit::Exit;
use crate::image::open_image;
use crate::keys;
use crate::output::{Output, bytes};
use crate::progress::{Bars, cancellation};

/// Runs the verb.
pub fn run(
    repo: &RepoArgs,
    image: &Path,
    (selector, label): (&str, Option<&str>),
    open: &ImageOpenArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    let repository = keys::open(repo)?;
    let disk = open_image(image, open)?;
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let result = check_disk(&repository, &selector.parse()?, label, &disk, context);
    engine::Progress::end(&bars);
    let report = result?;
    output.report(&report, text)?;
    Ok(if report.is_equal {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn text(report: &CheckDiskReport) -> String {
    if report.is_equal {
        let left_out = report.left_out_bytes;
        let compared = report.disk_length_bytes.saturating_sub(left_out);
        let mut text = format!("Equal to {}: {} compared", report.version, bytes(compared));
        if left_out > 0 {
            text.push_str(&format!(
                "; {} were left out of the version on purpose and are not compared",
                bytes(left_out)
            ));
        }
        text.push_str(".\n");
        return text;
    }
    let mut text = String::new();
    if report.disk_length_bytes != report.version_length_bytes {
        text.push_str(&format!(
            "The lengths differ: the disk has {} bytes, {} has {}.\n",
            report.disk_length_bytes, report.version, report.version_length_bytes
        ));
    }
    text.push_str(&format!(
        "Different from {}: {} in blocks that differ.\n",
        report.version,
        bytes(report.differing_bytes)
    ));
    for (offset, length) in report.ranges.iter().take(20) {
        text.push_str(&format!("  at {offset}: {length} bytes\n"));
    }
    if report.ranges.len() > 20 || report.more_ranges {
        text.push_str("  … (--json names more)\n");
    }
    text
}
