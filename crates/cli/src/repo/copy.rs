//! `hikae repo copy`: points into another repository, sending only what it lacks. Ends with 3 when the source is damaged.

use std::time::Instant;

use repo::copy::{CopyOptions, CopySelection};
use repo::marks::PointVisibility;
use repo::{ProtectedName, ReadProtection, Repository};
use serde::Serialize;

use crate::args::{CopyArgs, RepoArgs, UnlockArgs};
use crate::exit::Exit;
use crate::output::{Output, bytes, seconds};
use crate::watched::{Traffic, Watch};

#[derive(Serialize)]
struct Copied {
    name: String,
    version: u64,
    version_at_target: u64,
}

#[derive(Serialize)]
struct Failed {
    name: String,
    version: u64,
    why: String,
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    copied: Vec<Copied>,
    present: u64,
    failed: Vec<Failed>,
    blocks_read: u64,
    blocks_stored: u64,
    nodes_stored: u64,
    bytes_stored: u64,
    protected_from_gc: bool,
    seconds: f64,
}

/// Runs the verb.
pub fn run(arguments: &CopyArgs, output: &Output) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let source_args = arguments.source.to_repo_args();
    let watch = Watch::new(output);
    let source = watch.open(&source_args, Traffic::Hidden)?;
    let to = RepoArgs {
        repo: arguments.to.clone(),
        unlock: UnlockArgs {
            key_file: arguments.to_key_file.clone(),
            cache_dir: source_args.unlock.cache_dir.clone(),
            ..UnlockArgs::default()
        },
    };
    let target = watch.open(&to, Traffic::Hidden)?;
    let name = arguments.name.clone().map(ProtectedName::new).transpose()?;
    let mut report = if arguments.dry_run {
        plan(&source, &target, name.as_ref())?
    } else {
        execute(&source, &target, name, &watch)?
    };
    report.seconds = started.elapsed().as_secs_f64();
    output.report(&report, text)?;
    Ok(if report.failed.is_empty() {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn execute(
    source: &Repository,
    target: &Repository,
    name: Option<ProtectedName>,
    watch: &Watch,
) -> anyhow::Result<Report> {
    let options = CopyOptions {
        selection: name.map_or(CopySelection::All, |name| CopySelection::Names(vec![name])),
        protection: ReadProtection::LeaseIfWritable,
        ..CopyOptions::default()
    };
    let compare = || Ok(None);
    let done = watch.run("comparing", compare, || {
        source.copy_to_watched(target, &options, watch)
    })?;
    Ok(Report {
        dry_run: false,
        copied: done
            .copied
            .iter()
            .map(|point| Copied {
                name: point.name.to_string(),
                version: point.source.sequence,
                version_at_target: point.target.sequence,
            })
            .collect(),
        present: done.present,
        failed: done
            .failed
            .iter()
            .map(|(name, version, why)| Failed {
                name: name.to_string(),
                version: *version,
                why: why.clone(),
            })
            .collect(),
        blocks_read: done.blocks_read,
        blocks_stored: done.blocks_stored,
        nodes_stored: done.nodes_stored,
        bytes_stored: done.stored_bytes,
        protected_from_gc: watch.tell_protection(done.protection),
        seconds: 0.0,
    })
}

/// What a copy would do, from the points alone.
fn plan(
    source: &Repository,
    target: &Repository,
    name: Option<&ProtectedName>,
) -> anyhow::Result<Report> {
    let present = target.points()?.0;
    let is_present = |point: &repo::RecoveryPoint| {
        present.iter().any(|there| {
            there.point.point == point.point
                || repo::copy::PointOrigin::of(&there.point)
                    .is_some_and(|origin| origin.point == point.point)
        })
    };
    let mut report = Report {
        dry_run: true,
        copied: Vec::new(),
        present: 0,
        failed: Vec::new(),
        blocks_read: 0,
        blocks_stored: 0,
        nodes_stored: 0,
        bytes_stored: 0,
        protected_from_gc: true,
        seconds: 0.0,
    };
    for record in source.points()?.0 {
        let point = &record.point;
        if name.is_some_and(|name| *name != point.name)
            || record.marks.visibility() == PointVisibility::Forgotten
        {
            continue;
        }
        if is_present(point) {
            report.present += 1;
        } else {
            report.copied.push(Copied {
                name: point.name.to_string(),
                version: point.sequence,
                version_at_target: point.sequence,
            });
        }
    }
    Ok(report)
}

fn text(report: &Report) -> String {
    let verb = if report.dry_run {
        "would copy"
    } else {
        "copied"
    };
    let mut text = String::new();
    for point in &report.copied {
        let renumbered = if point.version == point.version_at_target {
            String::new()
        } else {
            format!(" as @{}", point.version_at_target)
        };
        text.push_str(&format!(
            "{verb} {}@{}{renumbered}\n",
            point.name, point.version
        ));
    }
    for point in &report.failed {
        text.push_str(&format!(
            "NOT copied: {}@{}: {}\n",
            point.name, point.version, point.why
        ));
    }
    text.push_str(&format!(
        "{} points {verb}, {} were there already",
        report.copied.len(),
        report.present
    ));
    if report.dry_run {
        text.push('\n');
    } else {
        text.push_str(&format!(
            "; {} blocks stored, {}, {}\n",
            report.blocks_stored,
            bytes(report.bytes_stored),
            seconds(report.seconds)
        ));
    }
    text
}
