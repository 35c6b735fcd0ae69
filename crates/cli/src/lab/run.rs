//! `hikae lab run`: time passes at once.

use lab::control::{Request, RunReport};

use super::place;
use crate::args::{DurationArg, LabPlaceArgs};
use crate::exit::Exit;
use crate::output::{Output, Table};

/// Runs the verb.
pub fn run(duration: DurationArg, place: &LabPlaceArgs, output: &Output) -> anyhow::Result<Exit> {
    let request = Request::Run {
        duration_ms: duration.milliseconds(),
    };
    let report: RunReport = place::ask(place, &request, place::LATER)?;
    output.report(&report, text)?;
    Ok(Exit::Done)
}

fn text(report: &RunReport) -> String {
    let mut text = format!("The lab's clock: from {} to {}.\n", report.from, report.to);
    let mut table = Table::new(&["machine", "transactions before", "now"], &[1, 2]);
    for guest in &report.guests {
        table.row(vec![
            guest.vm.clone(),
            guest.from.to_string(),
            guest.to.to_string(),
        ]);
    }
    if !report.guests.is_empty() {
        text.push_str(&format!("\n{table}"));
    }
    text
}
