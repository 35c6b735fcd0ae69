//! `hikae vm leftovers`: what jobs have left on hosts. Ours goes when its job is dead, others' is shown with the command that
//! removes it.

use std::time::{Duration, Instant};

use host::Clock;
use host::custody::SweepReport;
use host::ids::OwnerId;
use serde::Serialize;

use super::custody::Keeping;
use crate::args::VmLeftoversArgs;
use crate::exit::Exit;
use crate::host::connect::Estate;
use crate::keys;
use crate::output::{Output, bytes};

/// Between two rounds.
const BETWEEN: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Report {
    /// Who marks on hosts say that we are.
    owner: OwnerId,
    rounds: u32,
    #[serde(flatten)]
    sweep: SweepReport,
}

/// Runs the verb.
pub fn run(arguments: &VmLeftoversArgs, output: &Output) -> anyhow::Result<Exit> {
    let repository = keys::open(&arguments.repo)?;
    let estate = Estate::open(&arguments.place)?;
    let mut keeping = Keeping::of(&repository)?;
    if let Some(lost) = &arguments.of_lost {
        keeping.owner = OwnerId::new(lost.clone())?;
    }
    let begun = Instant::now();
    let wait = Duration::from_secs(arguments.wait.unwrap_or(0));
    let mut done = Vec::new();
    let mut rounds = 0;
    let mut sweep = loop {
        rounds += 1;
        let mut sweep = keeping.sweep(&estate, &repository)?;
        done.append(&mut sweep.done);
        let is_over = sweep.waiting.is_empty() && sweep.problems.is_empty();
        if is_over || begun.elapsed() >= wait || estate.cancel.is_cancelled() {
            break sweep;
        }
        keeping.clock.pause(BETWEEN, &estate.cancel);
    };
    sweep.done = done;
    for problem in &estate.problems {
        let text = format!("{}: {}", problem.node, problem.text);
        sweep.problems.push(text);
    }
    let report = Report {
        owner: keeping.owner.clone(),
        rounds,
        sweep,
    };
    output.report(&report, |report| text(&report.sweep))?;
    Ok(exit(&report.sweep))
}

fn exit(sweep: &SweepReport) -> Exit {
    let remains = !sweep.waiting.is_empty()
        || !sweep.alerts.is_empty()
        || !sweep.foreign.is_empty()
        || !sweep.foreign_tracking.is_empty()
        || !sweep.problems.is_empty();
    if remains { Exit::Found } else { Exit::Done }
}

fn text(sweep: &SweepReport) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    for found in &sweep.done {
        let id = found.id.as_deref().unwrap_or("");
        line(format!(
            "removed: {} {id} of machine {}, of job {}",
            found.kind.name(),
            found.vm,
            found.job
        ));
    }
    for waiting in &sweep.waiting {
        line(format!(
            "later:   {} of machine {}: {}",
            waiting.kind.name(),
            waiting.vm,
            waiting.reason
        ));
    }
    for alert in &sweep.alerts {
        line(format!("DECIDE:  machine {}: {}", alert.vm, alert.text));
        for command in &alert.commands {
            line(format!("         {command}"));
        }
    }
    for foreign in &sweep.foreign {
        let age = foreign.age.map_or("of unknown age".to_owned(), |age| {
            format!("{} h old", age.as_secs() / 3600)
        });
        let size = foreign
            .size_bytes
            .map_or(String::new(), |it| format!(", {}", bytes(it)));
        line(format!(
            "others': checkpoint \"{}\" of {} on {}, {age}{size}. To remove it: {}",
            foreign.name, foreign.machine, foreign.node, foreign.command
        ));
    }
    for foreign in &sweep.foreign_tracking {
        line(format!(
            "others': tracking point {} of {} on {}. To remove it: {}",
            foreign.point, foreign.machine, foreign.node, foreign.command
        ));
    }
    for problem in &sweep.problems {
        line(format!("problem: {problem}"));
    }
    if text.is_empty() {
        text.push_str("Nothing is left of any backup, ours or others'.\n");
    } else if !sweep.waiting.is_empty() {
        text.push_str("Next: hikae vm leftovers --wait 300\n");
    }
    text
}
