//! `hikae repo hold`: a point stays whatever retention says.

use serde::Serialize;

use crate::args::HoldArgs;
use crate::exit::Exit;
use crate::keys;
use crate::output::Output;

#[derive(Serialize)]
struct Report {
    name: String,
    version: u64,
    held: bool,
}

/// Runs the verb.
pub fn run(arguments: &HoldArgs, output: &Output) -> anyhow::Result<Exit> {
    let repository = keys::open(&arguments.repo)?;
    let point = repository.find_point(&arguments.selector.parse()?)?.point;
    if arguments.release {
        repository.release(&point, &arguments.reason)?;
    } else {
        repository.hold(&point, &arguments.reason)?;
    }
    let report = Report {
        name: point.name.to_string(),
        version: point.sequence,
        held: !arguments.release,
    };
    output.report(&report, |report| {
        let what = if report.held {
            "is held: only a release lets it go"
        } else {
            "is held no longer"
        };
        format!("{}@{} {what}.\n", report.name, report.version)
    })?;
    Ok(Exit::Done)
}
