//! `hikae vm coverage`: of every disk of every machine, whether it is protected, and why not.

use host::coverage::{CoverageLevel, CoverageReport, DiskCoverage, TrackingOutlook, plan_coverage};
use serde::Serialize;

use super::Look;
use crate::exit::Exit;
use crate::output::{Output, Table};

#[derive(Serialize)]
struct Report<'a> {
    machines: Vec<CoverageReport>,
    problems: &'a [host::facts::NodeProblem],
}

/// Runs the verb.
pub fn run(look: &Look, names: &[String], output: &Output) -> anyhow::Result<Exit> {
    let machines = look.machines(names)?;
    let report = Report {
        // Nobody excludes anything yet: exclusions come with protection groups.
        machines: machines
            .iter()
            .map(|machine| plan_coverage(machine, &[]))
            .collect(),
        problems: look.problems(),
    };
    let is_whole = report.machines.iter().all(|machine| {
        matches!(
            machine.level,
            CoverageLevel::Full | CoverageLevel::ConfigurationOnly
        )
    });
    output.report(&report, |report| {
        format!("{}{}", text(&report.machines), look.problem_text())
    })?;
    Ok(if is_whole { look.exit() } else { Exit::Found })
}

fn verdict(coverage: &DiskCoverage) -> String {
    match coverage {
        DiskCoverage::Protected {
            tracking: TrackingOutlook::Expected,
        } => "can be protected, changes are tracked".to_owned(),
        DiskCoverage::Protected {
            tracking: TrackingOutlook::ReadWhole,
        } => "can be protected, read whole each time".to_owned(),
        DiskCoverage::Excluded { by, reason } => match reason {
            Some(reason) => format!("excluded by {by}: {reason}"),
            None => format!("excluded by {by}"),
        },
        DiskCoverage::Impossible {
            because, remedy, ..
        } => format!("IMPOSSIBLE: {because}; {remedy}"),
        DiskCoverage::Nothing => "nothing to protect".to_owned(),
    }
}

fn level(level: CoverageLevel) -> &'static str {
    match level {
        CoverageLevel::Full => "every disk",
        CoverageLevel::Partial => "NOT every disk",
        CoverageLevel::None => "NO disk",
        CoverageLevel::ConfigurationOnly => "no disks; its configuration",
    }
}

fn text(machines: &[CoverageReport]) -> String {
    let mut text = String::new();
    for machine in machines {
        text.push_str(&format!(
            "{} ({}): {} can be protected\n",
            machine.name,
            machine.node,
            level(machine.level)
        ));
        let mut table = Table::new(&["  slot", "disk", "verdict"], &[]);
        for line in &machine.lines {
            let slot = line.slot.map_or("–".to_owned(), |slot| slot.to_string());
            table.row(vec![
                format!("  {slot}"),
                line.what.clone(),
                verdict(&line.coverage),
            ]);
        }
        if !machine.lines.is_empty() {
            text.push_str(&table.to_string());
        }
        for note in &machine.notes {
            text.push_str(&format!("  note: {note}\n"));
        }
        text.push('\n');
    }
    let whole = machines
        .iter()
        .filter(|machine| machine.level == CoverageLevel::Full)
        .count();
    text.push_str(&format!(
        "{whole} of {} machines can be protected with every disk.\n",
        machines.len()
    ));
    text
}
