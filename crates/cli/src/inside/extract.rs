//! `extract`: files and folders into a folder of the host. Ends with 3 when some of them could not be read.

use engine::inside::InsideDisks;
use engine::job::JobContext;
use engine::job::extract_files::{
    Existing, ExtractReport, ExtractRequest, SIDE_FILE, extract_files,
};

use crate::args::ExtractArgs;
use crate::exit::Exit;
use crate::output::{Output, bytes};

/// Extracts.
pub fn run(
    inside: &InsideDisks,
    arguments: &ExtractArgs,
    context: JobContext<'_>,
    output: &Output,
) -> anyhow::Result<Exit> {
    let request = ExtractRequest {
        paths: arguments.paths.clone(),
        target: arguments.to.clone(),
        existing: if arguments.overwrite {
            Existing::Replace
        } else {
            Existing::Refuse
        },
    };
    let report = extract_files(inside, &request, context)?;
    output.report(&report, text)?;
    Ok(if report.failed == 0 {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn text(report: &ExtractReport) -> String {
    let mut text = format!(
        "{} files, {} folders, {} links: {} written to {}.\n",
        report.files,
        report.folders,
        report.links,
        bytes(report.written_bytes),
        report.target.display()
    );
    if report.noted > 0 {
        let noted = report.noted;
        text.push_str(&format!(
            "What this place cannot hold of {noted} of them stands in {SIDE_FILE}.\n"
        ));
    }
    for failure in &report.failures {
        text.push_str(&format!("failed: {failure}\n"));
    }
    if report.failed > 0 {
        text.push_str(&format!("{} failed.\n", report.failed));
    }
    text
}
