//! `hikae disk diff-files`: the files that differ between two versions, told while they are found.
//!
//! With `--json` one object `{"changes": […], …}` is printed, its changes while they are found; a failure on the way ends the
//! object with `"problem"`.

use engine::inside::{ChangedFile, DiffFilesReport, Doubt, FileChange, diff_files};
use engine::job::{JobContext, NoJournal};
use serde::Serialize;

use super::history::CostReport;
use crate::args::DiffFilesArgs;
use crate::exit::Exit;
use crate::inside::when::calendar;
use crate::inside::words::shown;
use crate::keys;
use crate::output::{Output, print_all};
use crate::progress::{Bars, cancellation};

/// Characters that are gathered before they are printed.
const PRINTED_CHARS: usize = 64 << 10;

#[derive(Serialize)]
struct ChangeReport {
    change: &'static str,
    volume: usize,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved_from: Option<String>,
    folder: bool,
    size_before: Option<u64>,
    size_now: Option<u64>,
    modified: Option<String>,
}

#[derive(Serialize)]
struct Summary {
    older: String,
    newer: String,
    added: u64,
    removed: u64,
    changed: u64,
    metadata_changed: u64,
    moved: u64,
    equal_by_blocks: u64,
    compared_by_reading: u64,
    believed: u64,
    volumes_unchanged: u64,
    notes: Vec<String>,
    damage: Vec<String>,
    cost: CostReport,
}

/// Where changes are printed.
struct Printer<'o> {
    output: &'o Output,
    text: String,
    has_begun: bool,
}

impl Printer<'_> {
    fn add(&mut self, file: &ChangedFile) -> engine::Result<()> {
        if self.output.is_json() {
            let before = if self.has_begun {
                ",\n"
            } else {
                "{\"changes\": [\n"
            };
            let change = serde_json::to_string(&change_report(file)).map_err(|error| {
                let what = "writing JSON";
                engine::Error::new(engine::ErrorKind::Io, what).caused_by(error)
            })?;
            self.text.push_str(before);
            self.text.push_str(&change);
        } else {
            self.text.push_str(&line(file));
        }
        self.has_begun = true;
        if self.text.len() >= PRINTED_CHARS {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> engine::Result<()> {
        let text = std::mem::take(&mut self.text);
        print_all(&text).map_err(|error| {
            let what = "writing to standard output";
            engine::Error::new(engine::ErrorKind::Io, what).caused_by(error)
        })
    }

    /// Ends the object with these members.
    fn end(mut self, members: &serde_json::Value) -> anyhow::Result<()> {
        if !self.has_begun {
            self.text.push_str("{\"changes\": [");
        }
        let members = serde_json::to_string_pretty(members)?;
        let members = members.trim_start_matches('{').trim_start();
        self.text.push_str(&format!("\n],\n  {members}\n"));
        self.flush()?;
        Ok(())
    }
}

/// Runs the verb.
pub fn run(arguments: &DiffFilesArgs, output: &Output) -> anyhow::Result<Exit> {
    let volume_keys = keys::volume_keys(&arguments.keys)?;
    let repository = keys::open(&arguments.repo)?;
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let doubt = if arguments.trust_times {
        Doubt::BelieveTimes
    } else {
        Doubt::Read
    };
    let mut printer = Printer {
        output,
        text: String::new(),
        has_begun: false,
    };
    let compared = diff_files(
        &repository,
        (&arguments.older.parse()?, &arguments.newer.parse()?),
        arguments.path.as_deref(),
        (doubt, &volume_keys),
        context,
        &mut |file| printer.add(&file),
    );
    engine::Progress::end(&bars);
    let report = match compared {
        Ok(report) => report,
        Err(error) if printer.has_begun && output.is_json() => {
            let problem = engine::Problem::of(&error);
            printer.end(&serde_json::json!({ "problem": problem }))?;
            return Ok(Exit::of(&error));
        }
        Err(error) => {
            printer.flush()?;
            return Err(error.into());
        }
    };
    let exit = if report.damage.is_empty() {
        Exit::Done
    } else {
        Exit::Found
    };
    let summary = summary_of(report);
    if output.is_json() {
        printer.end(&serde_json::to_value(&summary)?)?;
    } else {
        printer.text.push_str(&text(&summary));
        printer.flush()?;
    }
    Ok(exit)
}

fn change_report(file: &ChangedFile) -> ChangeReport {
    ChangeReport {
        change: file.change.name(),
        volume: file.volume.0,
        path: file.display_path(),
        moved_from: file.display_from(),
        folder: file.is_folder(),
        size_before: file.size_before,
        size_now: file.size_now,
        modified: file.modified.map(calendar),
    }
}

fn line(file: &ChangedFile) -> String {
    let word = match file.change {
        FileChange::Added => "added",
        FileChange::Removed => "removed",
        FileChange::Changed => "changed",
        FileChange::MetadataChanged => "metadata",
        FileChange::Moved => "moved",
        FileChange::MovedAndChanged => "moved, changed",
    };
    let slash = if file.is_folder() { "/" } else { "" };
    let path = shown(&file.display_path());
    let from = file.display_from().map_or(String::new(), |from| {
        format!("{}:{} -> ", file.volume, shown(&from))
    });
    format!("{word:<9} {from}{}:{path}{slash}\n", file.volume)
}

fn summary_of(report: DiffFilesReport) -> Summary {
    Summary {
        older: report.older,
        newer: report.newer,
        added: report.added,
        removed: report.removed,
        changed: report.changed,
        metadata_changed: report.metadata_changed,
        moved: report.moved,
        equal_by_blocks: report.equal_by_blocks,
        compared_by_reading: report.compared_by_reading,
        believed: report.believed,
        volumes_unchanged: report.volumes_unchanged,
        notes: report.notes,
        damage: report.damage,
        cost: CostReport::of(report.cost),
    }
}

fn text(summary: &Summary) -> String {
    let mut text = String::new();
    for note in &summary.notes {
        text.push_str(&format!("note: {}\n", shown(note)));
    }
    for line in &summary.damage {
        text.push_str(&format!("not compared: {}\n", shown(line)));
    }
    text.push_str(&format!(
        "{} to {}: {} added, {} removed, {} changed, {} moved, {} with other metadata only.\n",
        summary.older,
        summary.newer,
        summary.added,
        summary.removed,
        summary.changed,
        summary.moved,
        summary.metadata_changed
    ));
    let believed = match summary.believed {
        0 => String::new(),
        count => format!(", {count} believed for their size and times"),
    };
    text.push_str(&format!(
        "Files equal by the hashes of their blocks: {}; compared by reading both: {}{believed}; volumes without any change: {}.\n",
        summary.equal_by_blocks, summary.compared_by_reading, summary.volumes_unchanged
    ));
    text
}
