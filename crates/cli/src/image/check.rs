//! `hikae image check`: whether an image keeps its format's rules, and mending it. Ends with 3 when something is wrong.

use std::path::Path;

use serde::Serialize;
use vdisk::image::{self, FormatHint, OpenOptions};
use vdisk::{CheckReport, RepairMode, Severity};

use super::convert::system_ids;
use super::format_of;
use crate::args::FormatArg;
use crate::exit::Exit;
use crate::output::Output;

/// What is to be done about what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Only look.
    Look,
    /// Mend it, as far as this allows.
    Mend(RepairMode),
}

impl Wish {
    /// From the flags.
    pub fn of(repair: bool, accept_data_loss: bool) -> Self {
        match (repair, accept_data_loss) {
            (false, _) => Self::Look,
            (true, false) => Self::Mend(RepairMode::Lossless),
            (true, true) => Self::Mend(RepairMode::DataLoss),
        }
    }
}

#[derive(Serialize)]
struct FindingReport {
    severity: &'static str,
    offset: Option<u64>,
    text: String,
}

#[derive(Serialize)]
struct Report {
    image: String,
    clean: bool,
    repaired: bool,
    findings: Vec<FindingReport>,
    unlisted: u64,
    left_after_repair: Vec<FindingReport>,
}

/// Runs the verb.
pub fn run(
    path: &Path,
    wish: Wish,
    format: Option<FormatArg>,
    output: &Output,
) -> anyhow::Result<Exit> {
    let hint = format.map_or(FormatHint::Probe, |format| {
        FormatHint::Exactly(format_of(format))
    });
    let (before, after) = match wish {
        Wish::Look => {
            let options = OpenOptions {
                format: hint,
                ..OpenOptions::default()
            };
            (image::check(path, &options)?, None)
        }
        Wish::Mend(mode) => {
            let done = image::repair(path, hint, mode, &system_ids()?)?;
            (done.before, Some(done.after))
        }
    };
    let report = Report {
        image: path.display().to_string(),
        clean: after.as_ref().unwrap_or(&before).is_clean(),
        repaired: after.is_some() && !before.is_clean(),
        findings: findings(&before),
        unlisted: before.unlisted,
        left_after_repair: after.as_ref().map(findings).unwrap_or_default(),
    };
    output.report(&report, text)?;
    Ok(if report.clean {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn findings(report: &CheckReport) -> Vec<FindingReport> {
    let word = |severity| match severity {
        Severity::Note => "note",
        Severity::Repairable => "repairable",
        Severity::Damage => "damage",
    };
    report
        .findings
        .iter()
        .map(|finding| FindingReport {
            severity: word(finding.severity),
            offset: finding.offset,
            text: finding.text.clone(),
        })
        .collect()
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut list = |findings: &[FindingReport]| {
        for finding in findings {
            let place = finding
                .offset
                .map_or(String::new(), |offset| format!(" at {offset}"));
            text.push_str(&format!("{}{place}: {}\n", finding.severity, finding.text));
        }
    };
    list(&report.findings);
    if report.repaired {
        text.push_str(&format!("{}: repaired\n", report.image));
        for finding in &report.left_after_repair {
            text.push_str(&format!(
                "still there: {}: {}\n",
                finding.severity, finding.text
            ));
        }
    }
    if report.unlisted > 0 {
        text.push_str(&format!("… and {} more\n", report.unlisted));
    }
    text.push_str(&match (report.clean, report.repaired) {
        (true, _) => format!("{}: sound\n", report.image),
        (false, false) => {
            format!("{0}: NOT sound\n  next: hikae image check {0} --repair\n", report.image)
        }
        (false, true) => format!(
            "{0}: NOT sound; what is left costs data\n  next: take another copy, or hikae image check {0} --repair --accept-data-loss\n",
            report.image
        ),
    });
    text
}
