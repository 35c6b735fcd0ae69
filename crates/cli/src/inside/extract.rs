//! `extract`: files and folders into a folder of the host or an archive. Ends with 3 when some of them could not be read.

use std::io;
use std::path::Path;

use engine::inside::InsideDisks;
use engine::job::JobContext;
use engine::job::extract_files::{
    ArchiveKind, ArchiveOutput, Devices, Existing, ExtractReport, ExtractRequest, ExtractTarget,
    SIDE_FILE, SourceId, Verification, extract_files,
};

use crate::args::ExtractArgs;
use crate::exit::{Exit, not_possible};
use crate::output::{Output, bytes};

/// Extracts. `source` is what is read, as far as that can be told apart from anything else.
pub fn run(
    inside: &InsideDisks,
    source: Option<SourceId>,
    arguments: &ExtractArgs,
    context: JobContext<'_>,
    output: &Output,
) -> anyhow::Result<Exit> {
    let request = ExtractRequest {
        paths: arguments.paths.clone(),
        existing: if arguments.overwrite {
            Existing::Replace
        } else {
            Existing::Refuse
        },
        devices: if arguments.devices {
            Devices::Make
        } else {
            Devices::Note
        },
        verification: if arguments.verify {
            Verification::ReadBack
        } else {
            Verification::None
        },
        manifest: arguments.manifest.clone(),
        source,
    };
    let report = extract_files(inside, target(arguments)?, &request, context)?;
    if report.target == Path::new("-") {
        // Standard output is the archive.
        output.report_beside(&report, text)?;
    } else {
        output.report(&report, text)?;
    }
    Ok(if report.failed == 0 {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn target(arguments: &ExtractArgs) -> anyhow::Result<ExtractTarget> {
    let archive = |kind, path: &Path| {
        let output = if path == Path::new("-") {
            ArchiveOutput::Stream(Box::new(io::stdout()))
        } else {
            ArchiveOutput::File(path.to_owned())
        };
        ExtractTarget::Archive(kind, output)
    };
    Ok(match (&arguments.to, &arguments.tar, &arguments.zip) {
        (Some(folder), _, _) => ExtractTarget::Folder(folder.clone()),
        (_, Some(path), _) => archive(ArchiveKind::Tar, path),
        (_, _, Some(path)) => archive(ArchiveKind::Zip, path),
        (None, None, None) => return Err(not_possible("say where to: --to, --tar or --zip")),
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
    let mut line = |count: u64, what: &str| {
        if count > 0 {
            text.push_str(&format!("{count} {what}\n"));
        }
    };
    line(report.kept, "were there already from the interrupted run.");
    line(report.specials, "pipes and devices were made.");
    line(
        report.unlinked,
        "names of files that have several became files of their own.",
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
