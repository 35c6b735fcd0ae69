//! `hikae disk list`: the versions, oldest first.

use repo::marks::PointVisibility;
use repo::retention::{HoldState, PointHealth};
use serde::Serialize;

use crate::args::RepoArgs;
use crate::exit::Exit;
use crate::keys;
use crate::output::{Output, Table, bytes};

/// Which points are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those that can be restored.
    Visible,
    /// Also those that are forgotten but not yet gone.
    All,
}

impl Scope {
    /// From the flag.
    pub fn of(all: bool) -> Self {
        if all { Self::All } else { Self::Visible }
    }
}

#[derive(Serialize)]
struct PointReport {
    name: String,
    version: u64,
    point: String,
    created: String,
    root: String,
    bytes_logical: u64,
    bytes_stored: Option<u64>,
    bytes_left_out: u64,
    state: &'static str,
    held: bool,
    forgotten: bool,
    signed: bool,
}

#[derive(Serialize)]
struct Report {
    points: Vec<PointReport>,
    damaged: Vec<String>,
}

/// Runs the verb.
pub fn run(
    repo: &RepoArgs,
    name: Option<&str>,
    scope: Scope,
    output: &Output,
) -> anyhow::Result<Exit> {
    let repository = keys::open(repo)?;
    let (records, errors) = repository.points()?;
    let mut points = Vec::new();
    for record in &records {
        let is_forgotten = record.marks.visibility() == PointVisibility::Forgotten;
        let point = &record.point;
        if name.is_some_and(|name| point.name.to_string() != name)
            || (is_forgotten && scope == Scope::Visible)
        {
            continue;
        }
        points.push(PointReport {
            name: point.name.to_string(),
            version: point.sequence,
            point: point.point.to_string(),
            created: point.created.clone(),
            root: point
                .disks
                .first()
                .map(|disk| disk.root.to_string())
                .unwrap_or_default(),
            bytes_logical: point.disks.iter().map(|disk| disk.length_bytes).sum(),
            bytes_stored: point.counters.get("stored_bytes").copied(),
            bytes_left_out: point
                .disks
                .iter()
                .filter_map(|disk| disk.omissions.as_ref())
                .flat_map(|omissions| &omissions.ranges)
                .fold(0, |sum, range| sum.saturating_add(range.length_bytes)),
            state: match record.marks.health() {
                PointHealth::Damaged => "damaged",
                PointHealth::Verified => "verified",
                PointHealth::Unverified => "",
            },
            held: record.marks.hold() == HoldState::Held,
            forgotten: is_forgotten,
            signed: point.signature == repo::SignatureState::Good,
        });
    }
    let report = Report {
        points,
        damaged: errors.iter().map(ToString::to_string).collect(),
    };
    output.report(&report, text)?;
    Ok(if report.damaged.is_empty() {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn text(report: &Report) -> String {
    let mut table = Table::new(
        &["name@version", "made", "disk", "stored", "root", "state"],
        &[2, 3],
    );
    for point in &report.points {
        let mut state = vec![point.state];
        if point.held {
            state.push("held");
        }
        if point.forgotten {
            state.push("forgotten");
        }
        if point.bytes_left_out > 0 {
            state.push("parts left out");
        }
        state.retain(|word| !word.is_empty());
        table.row(vec![
            format!("{}@{}", point.name, point.version),
            point.created.replace('T', " ").chars().take(19).collect(),
            bytes(point.bytes_logical),
            point.bytes_stored.map_or(String::new(), bytes),
            point.root.chars().take(16).collect(),
            state.join(", "),
        ]);
    }
    let mut text = if report.points.is_empty() {
        "No versions yet. Next: hikae disk backup IMAGE --name NAME\n".to_owned()
    } else {
        table.to_string()
    };
    for damaged in &report.damaged {
        text.push_str(&format!("damaged: {damaged}\n"));
    }
    text
}
