//! `hikae repo check-store`: whether a store keeps the promises that a repository needs. Ends with 3 when it does not.

use serde::Serialize;
use store::conformance::{self, CheckOptions, CheckReport, Verdict};

use crate::exit::Exit;
use crate::keys;
use crate::output::{Output, Table};

#[derive(Serialize)]
struct CheckLine {
    check: String,
    verdict: &'static str,
    detail: Option<String>,
    remedy: Option<String>,
}

#[derive(Serialize)]
struct Report {
    store: String,
    usable: bool,
    checks: Vec<CheckLine>,
}

/// Runs the verb.
pub fn run(url: &str, output: &Output) -> anyhow::Result<Exit> {
    let store = store::create_url(url)?;
    let mut id = [0; 8];
    repo::Random::fill(keys::environment().random.as_ref(), &mut id)?;
    let mark: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let scratch = store::Prefix::new(format!("check-store-{mark}"))?;
    let mut found = CheckReport::default();
    conformance::check(store.as_ref(), &CheckOptions::new(scratch), &mut found);
    let report = Report {
        store: found.store.clone(),
        usable: found.is_usable(),
        checks: found
            .results
            .iter()
            .map(|result| {
                let (verdict, detail) = match &result.verdict {
                    Verdict::Passed => ("passed", None),
                    Verdict::Failed(seen) => ("failed", Some(seen.clone())),
                    Verdict::Undecided(why) => ("undecided", Some(why.clone())),
                };
                CheckLine {
                    check: result.id.to_string(),
                    verdict,
                    remedy: detail.is_some().then(|| result.remedy.to_owned()),
                    detail,
                }
            })
            .collect(),
    };
    output.report(&report, text)?;
    Ok(if report.usable {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&["check", "verdict"], &[]);
    for line in &report.checks {
        table.row(vec![line.check.clone(), line.verdict.to_owned()]);
    }
    let mut text = format!("{}\n\n{table}", report.store);
    for line in &report.checks {
        if let (Some(detail), Some(remedy)) = (&line.detail, &line.remedy) {
            text.push_str(&format!("\n{}: {detail}\n  next: {remedy}\n", line.check));
        }
    }
    text.push_str(if report.usable {
        "\nFit for a repository.\n"
    } else {
        "\nNOT fit for a repository.\n"
    });
    text
}
