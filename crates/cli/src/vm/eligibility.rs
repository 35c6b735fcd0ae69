//! `hikae vm eligibility`: which kinds of backup are open to a machine, and what stands in the way.

use host::eligibility::{EligibilityReport, Evidence, Modes, Verdict, judge};
use serde::Serialize;

use super::Look;
use crate::exit::Exit;
use crate::output::{Output, Table};

/// Which rules are shown to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Those that are not kept, or not known to be.
    Open,
    /// All of them.
    All,
}

impl Shown {
    /// From the flag.
    pub fn of(all_rules: bool) -> Self {
        if all_rules { Self::All } else { Self::Open }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    machines: Vec<EligibilityReport>,
    problems: &'a [host::facts::NodeProblem],
}

/// Runs the verb.
pub fn run(look: &Look, names: &[String], shown: Shown, output: &Output) -> anyhow::Result<Exit> {
    let machines = look.machines(names)?;
    let report = Report {
        machines: machines
            .iter()
            .map(|machine| judge(&Evidence::of(machine)))
            .collect(),
        problems: look.problems(),
    };
    let can_all = report.machines.iter().all(|it| is_any_open(&it.modes));
    output.report(&report, |report| {
        let mut text: String = report
            .machines
            .iter()
            .map(|machine| one(machine, shown))
            .collect();
        text.push_str(&look.problem_text());
        text
    })?;
    Ok(if can_all { look.exit() } else { Exit::Found })
}

/// Whether some kind of backup may work.
fn is_any_open(modes: &Modes) -> bool {
    [
        modes.application,
        modes.file_system,
        modes.crash,
        modes.saved_state,
    ]
    .iter()
    .any(|verdict| *verdict != Verdict::No)
}

fn one(machine: &EligibilityReport, shown: Shown) -> String {
    let host = machine
        .generation
        .map_or("unknown".to_owned(), |it| it.to_string());
    let modes = &machine.modes;
    let mut text = format!("{} (host: Windows Server {host})\n", machine.name);
    for (name, verdict) in [
        ("application-consistent", modes.application),
        ("file-system-consistent", modes.file_system),
        ("crash-consistent", modes.crash),
        ("by saved state", modes.saved_state),
        ("with change tracking", modes.tracking),
        ("all of its data", modes.whole),
    ] {
        text.push_str(&format!("  {name:<23} {}\n", verdict.name()));
    }
    let mut table = Table::new(&["  rule", "", "measured, and what to do"], &[]);
    let mut is_empty = true;
    for rule in &machine.rules {
        if shown == Shown::Open && rule.verdict == Verdict::Yes {
            continue;
        }
        is_empty = false;
        let mut measured = format!("{}: {}", rule.rule, rule.measured);
        if let Some(remedy) = &rule.remedy {
            measured.push_str(&format!(" → {remedy}"));
        }
        table.row(vec![
            format!("  {}", rule.code),
            rule.verdict.name().to_owned(),
            measured,
        ]);
    }
    if !is_empty {
        text.push_str(&table.to_string());
    }
    text.push('\n');
    text
}
