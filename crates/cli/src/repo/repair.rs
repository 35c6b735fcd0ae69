//! `hikae repo repair`: damage is healed from another repository or from a source image. Ends with 3 when some is left.

use std::time::Instant;

use repo::repair::{RepairMode, RepairReport, RepairSource};
use serde::Serialize;
use vdisk::{Image, OpenOptions};

use crate::args::{RepairArgs, RepoArgs, UnlockArgs};
use crate::exit::Exit;
use crate::output::{Output, seconds};
use crate::watched::{PackBytes, Traffic, Watch};

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    sound: bool,
    configuration_restored: Vec<String>,
    points_restored: usize,
    blobs_lost: u64,
    blobs_fetched: u64,
    blobs_salvaged: u64,
    packs_replaced: Vec<String>,
    packs_left_to_running_sessions: Vec<String>,
    index_segments: u64,
    still_damaged: Vec<String>,
    points_still_hit: Vec<String>,
    seconds: f64,
}

/// Runs the verb.
pub fn run(arguments: &RepairArgs, output: &Output) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let target = arguments.target.to_repo_args();
    let watch = Watch::new(output);
    let repository = watch.open(&target, Traffic::Reads)?;
    let other = match &arguments.from {
        Some(from) => {
            let from = RepoArgs {
                repo: from.clone(),
                unlock: UnlockArgs {
                    key_file: arguments.from_key_file.clone(),
                    cache_dir: target.unlock.cache_dir.clone(),
                    ..UnlockArgs::default()
                },
            };
            Some(watch.open(&from, Traffic::Hidden)?)
        }
        None => None,
    };
    let image = match &arguments.from_image {
        Some(path) => Some(Image::open(path, &OpenOptions::default())?),
        None => None,
    };
    let mut sources = Vec::new();
    sources.extend(other.as_ref().map(RepairSource::Repository));
    sources.extend(image.as_ref().map(|image| RepairSource::Image(image)));
    let mode = if arguments.dry_run {
        RepairMode::DryRun
    } else {
        RepairMode::Execute
    };
    // Everything is read before, and again afterwards to prove what was done.
    let readings = match mode {
        RepairMode::DryRun => 1,
        RepairMode::Execute => 2,
    };
    let total = || {
        PackBytes::of(repository.store().as_ref())
            .map(|packs| Some(packs.full_read().saturating_mul(readings)))
    };
    let done = watch.run("repairing", total, || repository.repair(&sources, mode))?;
    let report = report(&done, mode, started);
    output.report(&report, text)?;
    Ok(if report.sound {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn report(done: &RepairReport, mode: RepairMode, started: Instant) -> Report {
    let after = done.after.as_ref();
    Report {
        dry_run: mode == RepairMode::DryRun,
        sound: match after {
            Some(after) => after.is_sound(),
            None => done.fetched_blobs >= done.lost_blobs,
        },
        configuration_restored: done.configuration.clone(),
        points_restored: done.points_restored.len(),
        blobs_lost: done.lost_blobs,
        blobs_fetched: done.fetched_blobs,
        blobs_salvaged: done.salvaged_blobs,
        packs_replaced: done
            .packs_replaced
            .iter()
            .map(ToString::to_string)
            .collect(),
        packs_left_to_running_sessions: done.packs_left.iter().map(ToString::to_string).collect(),
        index_segments: done.segments,
        still_damaged: after.map_or(Vec::new(), |after| {
            after
                .findings
                .iter()
                .map(|one| format!("{}: {}", one.object, one.what))
                .collect()
        }),
        points_still_hit: after.map_or(Vec::new(), |after| {
            after
                .damaged_points
                .iter()
                .map(|point| {
                    let name = point
                        .name
                        .as_ref()
                        .map_or("?".to_owned(), ToString::to_string);
                    format!("{name}@{}", point.key.sequence)
                })
                .collect()
        }),
        seconds: started.elapsed().as_secs_f64(),
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let would = if report.dry_run { "would be " } else { "" };
    for object in &report.configuration_restored {
        text.push_str(&format!("{object}: {would}restored from its copy\n"));
    }
    for pack in &report.packs_replaced {
        text.push_str(&format!("pack {pack}: {would}replaced\n"));
    }
    for pack in &report.packs_left_to_running_sessions {
        text.push_str(&format!(
            "pack {pack}: left, a running session owns it or counts on it\n"
        ));
    }
    text.push_str(&format!(
        "{} lost blobs, {} {would}found in the sources; {} {would}saved from damaged packs; {} points {would}put back; {}\n",
        report.blobs_lost,
        report.blobs_fetched,
        report.blobs_salvaged,
        report.points_restored,
        seconds(report.seconds)
    ));
    for damage in &report.still_damaged {
        text.push_str(&format!("still damaged: {damage}\n"));
    }
    for point in &report.points_still_hit {
        text.push_str(&format!("still hit: {point}\n"));
    }
    text.push_str(match (report.sound, report.dry_run) {
        (true, false) => "Sound.\n",
        (true, true) => "Everything could be healed.\n",
        (false, false) => "NOT everything is healed.\n  next: give another --from REPO or --from-image IMAGE, or forget the points that are hit\n",
        (false, true) => "NOT everything could be healed with these sources.\n",
    });
    text
}
