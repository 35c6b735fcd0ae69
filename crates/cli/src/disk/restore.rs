//! `hikae disk restore`: a version comes back as an image or onto a device.

use std::time::Instant;

use engine::job::restore_disk::{
    Identity, RestoreMode, RestorePlan, RestoreReport, RestoreRequest, plan_restore_disk,
    restore_disk,
};
use engine::job::{JobContext, NoJournal};
use serde::Serialize;

use crate::args::RestoreArgs;
use crate::exit::Exit;
use crate::image::convert::system_ids;
use crate::image::{format_of, subformat_of};
use crate::keys;
use crate::output::{Output, bytes, seconds};
use crate::progress::{Bars, cancellation};

#[derive(Serialize)]
struct Report {
    version: String,
    root: String,
    target: String,
    format: Option<String>,
    subformat: Option<String>,
    bytes_logical: u64,
    bytes_written: u64,
    bytes_zeroed: u64,
    bytes_read_back: u64,
    zeroed_ranges: usize,
    resumed: bool,
    protected_from_gc: bool,
    seconds: f64,
}

/// Runs the verb.
pub fn run(arguments: &RestoreArgs, output: &Output) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let repository = keys::open(&arguments.repo)?;
    let mut request = RestoreRequest::new(
        arguments.selector.parse()?,
        arguments.out.clone(),
        system_ids()?,
    );
    request.label.clone_from(&arguments.disk);
    request.format = arguments.format.map(format_of);
    request.subformat = arguments.subformat.map(subformat_of);
    request.workers = arguments.threads;
    if arguments.new_disk_id {
        request.identity = Identity::New;
    }
    request.mode = match (arguments.in_place, arguments.overwrite) {
        (true, _) => RestoreMode::InPlace,
        (false, true) => RestoreMode::Replace,
        (false, false) => RestoreMode::New,
    };
    if arguments.dry_run {
        let plan = plan_restore_disk(&repository, &request)?;
        output.report(&plan, plan_text)?;
        return Ok(Exit::Done);
    }
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let result = restore_disk(&repository, &request, context);
    engine::Progress::end(&bars);
    let report = report(result?, started);
    output.report(&report, text)?;
    Ok(Exit::Done)
}

fn plan_text(plan: &RestorePlan) -> String {
    format!(
        "Would restore {} ({}) to {}{}.\n",
        plan.version,
        bytes(plan.length_bytes),
        plan.target.display(),
        plan.format
            .as_ref()
            .map_or(String::new(), |format| format!(" as {format}")),
    )
}

fn report(done: RestoreReport, started: Instant) -> Report {
    Report {
        version: done.plan.version,
        root: done.plan.root,
        target: done.plan.target.display().to_string(),
        format: done.plan.format,
        subformat: done.plan.subformat,
        bytes_logical: done.plan.length_bytes,
        bytes_written: done.written_bytes,
        bytes_zeroed: done.zeroed_bytes,
        bytes_read_back: done.read_back_bytes,
        zeroed_ranges: done.plan.zeroed_ranges,
        resumed: done.resumed,
        protected_from_gc: done.protected_from_gc,
        seconds: started.elapsed().as_secs_f64(),
    }
}

fn text(report: &Report) -> String {
    let shape = match (&report.format, &report.subformat) {
        (Some(format), Some(subformat)) => format!(" ({format}, {subformat})"),
        (Some(format), None) => format!(" ({format})"),
        _ => String::new(),
    };
    let mut text = format!(
        "{} restored to {}{shape}\n  {} of disk, {} written in {}; every block checked against root\n  {}\n",
        report.version,
        report.target,
        bytes(report.bytes_logical),
        bytes(report.bytes_written),
        seconds(report.seconds),
        report.root,
    );
    if report.resumed {
        text.push_str("  went on where an interrupted run had stopped\n");
    }
    if report.zeroed_ranges > 0 {
        text.push_str(&format!(
            "  {} ranges were left out of the version or unreadable at its source; they are zeros here\n",
            report.zeroed_ranges
        ));
    }
    text
}
