//! `hikae disk history`: one path through all versions.

use engine::inside::{
    HistoryReport, HistoryRun, LookCost, PathEvent, PathState, SeenFile, history,
};
use engine::job::{JobContext, NoJournal};
use guestfs::filesystem::FileKind;
use serde::Serialize;

use super::find::scope_of;
use crate::args::HistoryArgs;
use crate::exit::Exit;
use crate::inside::when::calendar;
use crate::inside::words::{extract_command, shown, typed};
use crate::keys;
use crate::output::{Output, Table, bytes};
use crate::progress::{Bars, cancellation};

#[derive(Serialize)]
struct RunReport {
    first_version: u64,
    last_version: u64,
    versions: u64,
    first_made: String,
    last_made: String,
    event: &'static str,
    present: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    windows_attributes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_target: Option<String>,
    /// Why it, or its contents, could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

/// What looking cost, as programs read it.
#[derive(Serialize)]
pub struct CostReport {
    versions_read: u64,
    versions_unchanged: u64,
    contents_read: u64,
    blocks_fetched: u64,
}

impl CostReport {
    /// From what was counted.
    pub fn of(cost: LookCost) -> Self {
        Self {
            versions_read: cost.versions_read,
            versions_unchanged: cost.versions_unchanged,
            contents_read: cost.contents_read,
            blocks_fetched: cost.blocks_fetched,
        }
    }
}

#[derive(Serialize)]
struct Report {
    name: String,
    volume: usize,
    path: String,
    runs: Vec<RunReport>,
    newest_version_with_it: Option<u64>,
    /// The command that brings it back.
    extract: Option<String>,
    cost: CostReport,
}

/// Runs the verb.
pub fn run(arguments: &HistoryArgs, output: &Output) -> anyhow::Result<Exit> {
    let volume_keys = keys::volume_keys(&arguments.keys)?;
    let repository = keys::open(&arguments.repo)?;
    let (name, scope) = scope_of(&repository, &arguments.selector, ScopeKind::UpTo)?;
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let told = history(
        &repository,
        (&name, scope),
        &arguments.path,
        &volume_keys,
        context,
    );
    engine::Progress::end(&bars);
    let told = told?;
    let is_damaged = told
        .runs
        .iter()
        .any(|run| run.event == PathEvent::Unreadable);
    let extract = told.newest_with.as_ref().map(|(newest, volume)| {
        let path = typed(volume, &told.path);
        let version = format!("{}@{}", told.name, newest.sequence);
        extract_command(&arguments.repo, &version, &[path])
    });
    let report = report_of(&told, extract);
    output.report(&report, text)?;
    Ok(if is_damaged { Exit::Found } else { Exit::Done })
}

/// What a selector with a version means for a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScopeKind {
    /// Versions up to it.
    UpTo,
    /// It alone.
    Only,
}

fn report_of(told: &HistoryReport, extract: Option<String>) -> Report {
    Report {
        name: told.name.to_string(),
        volume: told.volume.0,
        path: told.path.clone(),
        runs: told.runs.iter().map(run_report).collect(),
        newest_version_with_it: told.newest_with.as_ref().map(|(newest, _)| newest.sequence),
        extract,
        cost: CostReport::of(told.cost),
    }
}

fn kind_word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "folder",
        FileKind::SymbolicLink => "link",
        FileKind::ReparsePoint(_) => "reparse-point",
        FileKind::CharacterDevice(_) => "character-device",
        FileKind::BlockDevice(_) => "block-device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

fn run_report(run: &HistoryRun) -> RunReport {
    let file: Option<&SeenFile> = match &run.state {
        PathState::Present(file) => Some(file),
        _ => None,
    };
    let owner = file.and_then(|file| file.owner);
    RunReport {
        first_version: run.first.sequence,
        last_version: run.last.sequence,
        versions: run.versions,
        first_made: run.first.created.clone(),
        last_made: run.last.created.clone(),
        event: run.event.name(),
        present: match &run.state {
            PathState::Present(_) => Some(true),
            PathState::Absent => Some(false),
            PathState::Unreadable(_) => None,
        },
        kind: file.map(|file| kind_word(file.kind)),
        size_bytes: file.map(|file| file.size_bytes),
        modified: file.and_then(|file| file.modified).map(calendar),
        mode: owner.map(|owner| format!("{:04o}", owner.mode)),
        user: owner.map(|owner| owner.user),
        group: owner.map(|owner| owner.group),
        windows_attributes: file.and_then(|file| file.windows_attributes),
        blake3: file.and_then(|file| file.content.map(|hash| hash.to_string())),
        link_target: file.and_then(|file| file.link_target.as_ref().map(ToString::to_string)),
        unreadable: match &run.state {
            PathState::Unreadable(why) => Some(why.clone()),
            _ => file.and_then(|file| file.unread.clone()),
        },
    }
}

fn words(event: &str) -> String {
    event.replace('-', " ")
}

fn text(report: &Report) -> String {
    let mut table = Table::new(
        &["versions", "made", "what", "bytes", "modified", "contents"],
        &[3],
    );
    for run in &report.runs {
        let versions = if run.first_version == run.last_version {
            run.first_version.to_string()
        } else {
            format!("{}-{}", run.first_version, run.last_version)
        };
        let is_file = run.kind == Some("file");
        let contents = match (&run.blake3, &run.link_target, &run.unreadable) {
            (_, _, Some(why)) => format!("unreadable: {}", shown(why)),
            (Some(hash), _, _) => hash.chars().take(16).collect(),
            (_, Some(target), _) => format!("-> {}", shown(target)),
            _ => run.kind.unwrap_or_default().to_owned(),
        };
        table.row(vec![
            versions,
            run.first_made.replace('T', " ").chars().take(19).collect(),
            words(run.event),
            run.size_bytes
                .filter(|_| is_file)
                .map_or(String::new(), bytes),
            run.modified.clone().unwrap_or_default(),
            contents,
        ]);
    }
    let mut text = format!(
        "{} on volume {} of {}\n\n{table}",
        shown(&report.path),
        report.volume,
        report.name
    );
    if let (Some(newest), Some(extract)) = (report.newest_version_with_it, &report.extract) {
        text.push_str(&format!(
            "\nThe newest version with it is {newest}. To bring it back:\n  {extract}\n"
        ));
    } else {
        text.push_str(
            "\nNo version has it. To look for it by its name: hikae disk find NAME PATTERN\n",
        );
    }
    text
}
