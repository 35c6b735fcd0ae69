//! `hikae disk diff`: ranges that differ between two versions, from their trees alone.

use engine::job::diff_disk::{DiffReport, diff_disks};
use engine::job::{JobContext, NoJournal};
use serde::Serialize;

use crate::args::RepoArgs;
use crate::exit::Exit;
use crate::keys;
use crate::output::{Output, Table, bytes};
use crate::progress::{Bars, cancellation};

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    summary: DiffReport,
    differing: Vec<(u64, u64)>,
}

/// Runs the verb.
pub fn run(
    repo: &RepoArgs,
    (older, newer): (&str, &str),
    label: Option<&str>,
    output: &Output,
) -> anyhow::Result<Exit> {
    let repository = keys::open(repo)?;
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let mut differing = Vec::new();
    let summary = diff_disks(
        &repository,
        (&older.parse()?, &newer.parse()?),
        label,
        context,
        |offset, length| {
            differing.push((offset, length));
            Ok(())
        },
    );
    engine::Progress::end(&bars);
    output.report(
        &Report {
            summary: summary?,
            differing,
        },
        text,
    )?;
    Ok(Exit::Done)
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&["offset", "bytes", ""], &[0, 1, 2]);
    for (offset, length) in &report.differing {
        table.row(vec![offset.to_string(), length.to_string(), bytes(*length)]);
    }
    let listed = if report.differing.is_empty() {
        String::new()
    } else {
        table.to_string()
    };
    format!(
        "{listed}{} to {}: {} in {} ranges differ\n",
        report.summary.older,
        report.summary.newer,
        bytes(report.summary.differing_bytes),
        report.summary.ranges
    )
}
