//! `hikae disk find`: files by name in all versions.

use engine::inside::{ChainScope, FindReport, FindRequest, FoundFile, NamePattern, find};
use engine::job::{JobContext, NoJournal};
use repo::{PointSelector, ProtectedName, Repository, Which};
use serde::Serialize;

use super::history::{CostReport, ScopeKind};
use crate::args::{FindArgs, RepoArgs};
use crate::exit::Exit;
use crate::inside::when::calendar;
use crate::inside::words::{extract_command, shown, typed};
use crate::keys;
use crate::output::{Output, bytes};
use crate::progress::{Bars, cancellation};

#[derive(Serialize)]
struct FileReport {
    name: String,
    volume: usize,
    path: String,
    /// The bytes of a path that is no text, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    kind: &'static str,
    /// First and last of each run of versions that have it.
    versions: Vec<(u64, u64)>,
    newest_version_with_it: u64,
    newest_made: String,
    in_newest_version: bool,
    size_bytes: Option<u64>,
    modified: Option<String>,
    /// The command that brings it back.
    extract: String,
}

#[derive(Serialize)]
struct Report {
    files: Vec<FileReport>,
    cut: bool,
    versions: u64,
    versions_indexed: u64,
    folders_listed: u64,
    folders_known: u64,
    index_kept: bool,
    damage: Vec<String>,
    cost: CostReport,
}

/// Whose versions a selector means, and which of them.
pub fn scope_of(
    repository: &Repository,
    selector: &str,
    kind: ScopeKind,
) -> anyhow::Result<(ProtectedName, ChainScope)> {
    let selector: PointSelector = selector.parse()?;
    if selector.which == Which::Latest && kind == ScopeKind::UpTo {
        return Ok((selector.name, ChainScope::All));
    }
    let point = repository.find_point(&selector)?.point;
    let scope = match kind {
        ScopeKind::UpTo => ChainScope::UpTo(point.sequence),
        ScopeKind::Only => ChainScope::Only(point.sequence),
    };
    Ok((selector.name, scope))
}

/// Runs the verb.
pub fn run(arguments: &FindArgs, output: &Output) -> anyhow::Result<Exit> {
    let volume_keys = keys::volume_keys(&arguments.keys)?;
    let repository = keys::open(&arguments.repo)?;
    let (name, scope) = match &arguments.selector {
        Some(selector) if selector.contains('@') => {
            let (name, scope) = scope_of(&repository, selector, ScopeKind::Only)?;
            (Some(name), scope)
        }
        Some(name) => (Some(name.parse()?), ChainScope::All),
        None => (None, ChainScope::All),
    };
    let request = FindRequest {
        name,
        scope,
        pattern: NamePattern {
            text: arguments.pattern.clone(),
            is_whole: arguments.exact,
            ignores_case: arguments.ignore_case,
        },
        only_gone: arguments.deleted,
        limit: arguments.limit,
    };
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let found = find(&repository, &request, &volume_keys, context);
    engine::Progress::end(&bars);
    let found = found?;
    let report = report_of(&arguments.repo, found);
    output.report(&report, text)?;
    Ok(if report.damage.is_empty() {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn report_of(repo: &RepoArgs, found: FindReport) -> Report {
    Report {
        files: found
            .files
            .iter()
            .map(|file| file_report(repo, file))
            .collect(),
        cut: found.is_cut,
        versions: found.versions,
        versions_indexed: found.versions_walked,
        folders_listed: found.folders_listed,
        folders_known: found.folders_known,
        index_kept: found.is_index_kept,
        damage: found.damage,
        cost: CostReport::of(found.cost),
    }
}

fn file_report(repo: &RepoArgs, file: &FoundFile) -> FileReport {
    let path = file.display_path();
    let are_text = file
        .path
        .iter()
        .all(|name| std::str::from_utf8(name.as_bytes()).is_ok());
    let hexadecimal = || {
        let bytes = file
            .path
            .iter()
            .flat_map(|name| [b"/", name.as_bytes()].concat());
        bytes.map(|byte| format!("{byte:02x}")).collect()
    };
    let version = format!("{}@{}", file.name, file.newest.sequence);
    let word = if file.is_only_volume && !path.contains(':') {
        typed("", &path).split_off(1)
    } else {
        typed(file.volume, &path)
    };
    FileReport {
        name: file.name.to_string(),
        volume: file.volume.0,
        path_bytes: (!are_text).then(hexadecimal),
        kind: file.kind.name(),
        versions: file
            .versions
            .iter()
            .map(|range| (range.first, range.last))
            .collect(),
        newest_version_with_it: file.newest.sequence,
        newest_made: file.newest.created.clone(),
        in_newest_version: file.is_in_newest,
        size_bytes: file.size_bytes,
        modified: file.modified.map(calendar),
        extract: extract_command(repo, &version, &[word]),
        path,
    }
}

fn ranges(versions: &[(u64, u64)]) -> String {
    let range = |(first, last): &(u64, u64)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    let ranges: Vec<_> = versions.iter().map(range).collect();
    ranges.join(", ")
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for file in &report.files {
        let slash = if file.kind == "folder" { "/" } else { "" };
        let mut facts = vec![format!("version {}", ranges(&file.versions))];
        if file.kind == "file" {
            facts.extend(file.size_bytes.map(bytes));
        } else {
            facts.push(file.kind.to_owned());
        }
        facts.extend(file.modified.clone());
        if !file.in_newest_version {
            facts.push("not in the newest version".to_owned());
        }
        text.push_str(&format!(
            "{}  {}:{}{slash}\n    {}\n    {}\n",
            file.name,
            file.volume,
            shown(&file.path),
            facts.join(" · "),
            file.extract
        ));
    }
    if report.files.is_empty() {
        text.push_str("Nothing has such a name.\n");
    }
    if report.cut {
        text.push_str("There are more: narrow the pattern, or raise --limit.\n");
    }
    for line in &report.damage {
        text.push_str(&format!("not searched: {}\n", shown(line)));
    }
    text.push_str(&format!(
        "{} found in {} versions; {} versions were indexed now.\n",
        report.files.len(),
        report.versions,
        report.versions_indexed
    ));
    text
}
