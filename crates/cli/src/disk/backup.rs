//! `hikae disk backup`: the next version of a name.
//!
//! The JSON object has at least `version`, `root`, `bytes_logical`, `bytes_read`, `bytes_hashed`, `bytes_sent`,
//! `bytes_stored` and `seconds`; `compared_everything_because` says why changed ranges were not used, and is null when they
//! were or none were given. `unneeded` says for each volume what was left out or why it was kept; it is null without
//! `--skip-unneeded`. With `--dry-run` the object is the plan, with `unneeded` in it.

mod unneeded;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use block::sync::Unreadable;
use block::{ByteRange, ChangedRanges};
use engine::Tracking;
use engine::job::backup_disk::{
    BackupPlan, BackupReport, BackupRequest, backup_disk, plan_backup_disk,
};
use engine::job::{JobContext, NoJournal};
use engine::profile::profile_of;
use engine::unneeded::UnneededPlan;
use repo::{PointSelector, ProtectedName, Repository, Which};
use serde::Serialize;

use crate::args::{BackupArgs, ParentArg};
use crate::audit::{per_million, random_seed};
use crate::exit::Exit;
use crate::image::open_image;
use crate::keys;
use crate::output::{Output, bytes, seconds};
use crate::progress::{Bars, cancellation};

#[derive(Serialize)]
struct Report {
    name: String,
    version: u64,
    point: String,
    root: String,
    parent: Option<u64>,
    bytes_logical: u64,
    bytes_read: u64,
    bytes_hashed: u64,
    bytes_sent: u64,
    bytes_stored: u64,
    blocks_changed: u64,
    blocks_stored: u64,
    nodes_stored: u64,
    packs_stored: u64,
    blocks_audited: u64,
    tracking_lies: Vec<(u64, u64)>,
    compared_everything_after_a_lie: bool,
    compared_everything_because: Option<String>,
    unreadable: Vec<(u64, u64)>,
    bytes_left_out: u64,
    unneeded: Option<UnneededPlan>,
    resumed: bool,
    seconds: f64,
}

#[derive(Serialize)]
struct DryRun {
    #[serde(flatten)]
    plan: BackupPlan,
    unneeded: Option<UnneededPlan>,
}

/// Runs the verb.
pub fn run(arguments: &BackupArgs, output: &Output) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let repository = keys::open(&arguments.repo)?;
    let name = ProtectedName::new(arguments.name.clone())?;
    if let Some(parent) = &arguments.parent {
        check_parent(&repository, &name, parent)?;
    }
    let mut request = request(arguments, name)?;
    if let Some(seed) = &arguments.seed {
        run_seed(&repository, &request, seed, arguments, output)?;
    }
    let image = Arc::new(open_image(&arguments.image, &arguments.open)?);
    request.image = profile_of(&image.info());
    let unneeded = match arguments.skip_unneeded {
        true => Some(unneeded::leave_out(&mut request, &image, output)?),
        false => None,
    };
    if arguments.dry_run {
        let plan = plan_backup_disk(&repository, &request, &image)?;
        output.report(&DryRun { plan, unneeded }, dry_text)?;
        return Ok(Exit::Done);
    }
    let done = run_one(&repository, &request, &image, output)?;
    let mut report = report(arguments, done, started);
    report.unneeded = unneeded;
    let has_findings = !report.tracking_lies.is_empty() || !report.unreadable.is_empty();
    output.report(&report, text)?;
    Ok(if has_findings {
        Exit::Found
    } else {
        Exit::Done
    })
}

fn dry_text(dry: &DryRun) -> String {
    let unneeded = dry.unneeded.as_ref().map_or(String::new(), unneeded::text);
    format!("Would {}.\n{unneeded}", dry.plan)
}

/// Refuses a parent that is not there: whoever names one has changed ranges that mean nothing without it.
fn check_parent(
    repository: &Repository,
    name: &ProtectedName,
    parent: &ParentArg,
) -> anyhow::Result<()> {
    let version = parent.version;
    if let Some(other) = &parent.name
        && *other != name.to_string()
    {
        return Err(crate::exit::misused_flag(format!(
            "--parent {other}@{version}: this is a backup of {name}"
        )));
    }
    let selector = PointSelector {
        name: name.clone(),
        which: Which::Sequence(version),
    };
    match repository.find_point(&selector) {
        // What is damaged is there: the backup heals it, and says so.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == repo::ErrorKind::Corrupt => Ok(()),
        Err(error) if error.kind() == repo::ErrorKind::NotFound => {
            Err(crate::exit::misused_flag(format!(
                "--parent {version}: {name} has no such version; leave --parent and --changed-ranges away to compare everything"
            )))
        }
        Err(error) => Err(error.into()),
    }
}

fn run_one(
    repository: &Repository,
    request: &BackupRequest,
    image: &vdisk::Image,
    output: &Output,
) -> anyhow::Result<BackupReport> {
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let result = backup_disk(repository, request, image, context);
    engine::Progress::end(&bars);
    Ok(result?)
}

/// Makes a version of the seed first, so that the image itself only costs what differs from it.
fn run_seed(
    repository: &Repository,
    request: &BackupRequest,
    seed: &Path,
    arguments: &BackupArgs,
    output: &Output,
) -> anyhow::Result<()> {
    let image = Arc::new(open_image(seed, &arguments.open)?);
    let mut seeding = BackupRequest {
        image: profile_of(&image.info()),
        tracking: None,
        tracking_since: None,
        ..request.clone()
    };
    if arguments.skip_unneeded {
        unneeded::leave_out(&mut seeding, &image, output)?;
    }
    if arguments.dry_run {
        let plan = plan_backup_disk(repository, &seeding, &image)?;
        output.note(&format!(
            "Would first take {} as a version of its own: {plan}.",
            seed.display()
        ));
        return Ok(());
    }
    let done = run_one(repository, &seeding, &image, output)?;
    output.note(&format!(
        "Seed {}: version {}@{}, {} stored.",
        seed.display(),
        done.name,
        done.sequence,
        bytes(done.stored_bytes)
    ));
    Ok(())
}

fn request(arguments: &BackupArgs, name: ProtectedName) -> anyhow::Result<BackupRequest> {
    let mut request = BackupRequest::new(name);
    request.session.threads = arguments.threads;
    if arguments.tolerate_unreadable {
        request.unreadable = Unreadable::Record;
    }
    if let Some(path) = &arguments.changed_ranges {
        request.tracking = Some(Tracking {
            changed: read_ranges(path)?,
            audit_per_million: per_million(arguments.audit)?,
            audit_seed: match arguments.audit_seed {
                Some(seed) => seed,
                None => random_seed()?,
            },
        });
    }
    request.tracking_since = arguments.parent.as_ref().map(|parent| parent.version);
    Ok(request)
}

/// Reads "OFFSET LENGTH" lines (`#` begins a comment), or a JSON array of `[offset, length]`.
fn read_ranges(path: &Path) -> anyhow::Result<ChangedRanges> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse_ranges(path, &text).map_err(|error| crate::exit::not_possible(format!("{error:#}")))
}

fn parse_ranges(path: &Path, text: &str) -> anyhow::Result<ChangedRanges> {
    let pairs: Vec<(u64, u64)> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text)
            .with_context(|| format!("{}: not an array of [offset, length]", path.display()))?
    } else {
        text.lines()
            .enumerate()
            .map(|(at, line)| (at, line.split('#').next().unwrap_or("").trim()))
            .filter(|(_, line)| !line.is_empty())
            .map(|(at, line)| {
                range_line(line).with_context(|| format!("{}:{}", path.display(), at + 1))
            })
            .collect::<anyhow::Result<_>>()?
    };
    Ok(ChangedRanges::new(pairs.into_iter().map(
        |(offset, length_bytes)| ByteRange {
            offset,
            length_bytes,
        },
    ))?)
}

fn range_line(line: &str) -> anyhow::Result<(u64, u64)> {
    let mut words = line
        .split(|c: char| c.is_whitespace() || c == ',')
        .filter(|word| !word.is_empty());
    match (words.next(), words.next(), words.next()) {
        (Some(offset), Some(length), None) => match (offset.parse(), length.parse()) {
            (Ok(offset), Ok(length)) => Ok((offset, length)),
            _ => Err(crate::exit::not_possible(format!(
                "`{line}` is not OFFSET LENGTH in bytes"
            ))),
        },
        _ => Err(crate::exit::not_possible(format!(
            "`{line}` is not OFFSET LENGTH"
        ))),
    }
}

/// Why everything was compared although that was not what was asked for.
fn because(arguments: &BackupArgs, done: &BackupReport) -> Option<String> {
    let is_tracked = arguments.changed_ranges.is_some();
    if !done.reason.is_empty() {
        Some(done.reason.clone())
    } else if !done.lies.is_empty() {
        Some("change tracking lied".to_owned())
    } else if is_tracked && done.parent.is_none() {
        Some("there is no version to compare with".to_owned())
    } else if arguments.parent.is_some() && !is_tracked {
        Some("--parent was given without --changed-ranges".to_owned())
    } else {
        None
    }
}

fn report(arguments: &BackupArgs, done: BackupReport, started: Instant) -> Report {
    let because = because(arguments, &done);
    Report {
        name: done.name,
        version: done.sequence,
        point: done.point,
        root: done.root,
        parent: done.parent,
        bytes_logical: done.length_bytes,
        bytes_read: done.read_bytes,
        bytes_hashed: done.hashed_bytes,
        bytes_sent: done.sent_bytes,
        bytes_stored: done.stored_bytes,
        blocks_changed: done.changed_blocks,
        blocks_stored: done.stored_blocks,
        nodes_stored: done.stored_nodes,
        packs_stored: done.packs,
        blocks_audited: done.audited_blocks,
        compared_everything_after_a_lie: !done.lies.is_empty(),
        tracking_lies: done.lies,
        compared_everything_because: because,
        unreadable: done.unreadable,
        bytes_left_out: done.left_out_bytes,
        unneeded: None,
        resumed: done.resumed,
        seconds: started.elapsed().as_secs_f64(),
    }
}

fn text(report: &Report) -> String {
    let upon = report.parent.map_or("initial copy".to_owned(), |parent| {
        format!("compared with {}@{parent}", report.name)
    });
    let mut text = format!(
        "{}@{}  {}  ({upon})\n  read {}, sent {}, stored {} in {}\n  root {}\n",
        report.name,
        report.version,
        bytes(report.bytes_logical),
        bytes(report.bytes_read),
        bytes(report.bytes_sent),
        bytes(report.bytes_stored),
        seconds(report.seconds),
        report.root,
    );
    if let Some(plan) = &report.unneeded {
        text.push_str(&unneeded::text(plan));
    }
    if report.resumed {
        text.push_str("  went on where an interrupted run had stopped\n");
    }
    if let Some(because) = &report.compared_everything_because
        && report.tracking_lies.is_empty()
    {
        text.push_str(&format!("  everything was compared: {because}\n"));
    }
    if !report.tracking_lies.is_empty() {
        text.push_str(&format!(
            "  CHANGE TRACKING LIED: {} ranges that it called unchanged had changed; everything was compared instead\n",
            report.tracking_lies.len()
        ));
    }
    if !report.unreadable.is_empty() {
        text.push_str(&format!(
            "  DAMAGED SOURCE: {} ranges could not be read and are recorded as such\n",
            report.unreadable.len()
        ));
    }
    text
}
