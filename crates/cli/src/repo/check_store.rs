//! `hikae repo check-store`: whether a store keeps the promises that a repository needs. Ends with 3 when it does not.
//!
//! The place is left as it was found: a folder that was not there is not there afterwards, and one that was empty can become
//! a repository.

use std::path::Path;

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
    let folder = folder_of(url);
    let before = folder.map(entries);
    let store = store::create_url(url)?;
    let mut id = [0; 8];
    repo::Random::fill(keys::environment().random.as_ref(), &mut id)?;
    let mark: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let scratch = store::Prefix::new(format!("check-store-{mark}"))?;
    let mut found = CheckReport::default();
    conformance::check(store.as_ref(), &CheckOptions::new(scratch), &mut found);
    drop(store);
    if let (Some(folder), Some(before)) = (folder, before) {
        leave_as_found(folder, before.as_deref());
    }
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

/// The folder that a store's address means.
fn folder_of(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("file://").unwrap_or(url);
    (!path.contains("://")).then(|| Path::new(path))
}

/// Names in a folder; `None` when it is not there.
fn entries(folder: &Path) -> Option<Vec<std::ffi::OsString>> {
    let entries = std::fs::read_dir(folder).ok()?;
    Some(entries.flatten().map(|entry| entry.file_name()).collect())
}

/// Removes empty folders that were not there before. One that cannot be removed is in nobody's way.
fn leave_as_found(folder: &Path, before: Option<&[std::ffi::OsString]>) {
    for name in entries(folder).unwrap_or_default() {
        if before.is_none_or(|before| !before.contains(&name)) {
            remove_empty(&folder.join(name), FOLDERS_DEEP_MAX);
        }
    }
    if before.is_none() {
        std::fs::remove_dir(folder).ok();
    }
}

/// Object names have few components.
const FOLDERS_DEEP_MAX: usize = 64;

/// Removes a folder that holds nothing but folders that hold nothing. Files stay, and what they lie in.
fn remove_empty(folder: &Path, deep: usize) {
    let is_folder = std::fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir());
    if !is_folder || deep == 0 {
        return;
    }
    for name in entries(folder).unwrap_or_default() {
        remove_empty(&folder.join(name), deep - 1);
    }
    std::fs::remove_dir(folder).ok();
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
