//! `hikae repo repair`: damage is healed from another repository or from a source image. Ends with 3 when some is left.

use std::time::Instant;

use repo::repair::{RepairMode, RepairOptions, RepairReport, RepairSource, UnreadablePolicy};
use repo::verify::PointGap;
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
    bundles_rewritten: u64,
    points_restored: usize,
    blobs_lost: u64,
    blobs_fetched: u64,
    blobs_salvaged: u64,
    packs_replaced: Vec<String>,
    packs_left_to_running_sessions: Vec<String>,
    index_segments: u64,
    gc_records_put_away: Vec<u64>,
    points_unreadable: Vec<String>,
    points_put_away: Vec<String>,
    numbers_lost: Vec<String>,
    numbers_begin_above: Option<u64>,
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
    let unreadable = if arguments.give_up {
        UnreadablePolicy::GiveUp
    } else {
        UnreadablePolicy::Keep
    };
    let options = RepairOptions { mode, unreadable };
    // Everything is read before, and again afterwards to prove what was done.
    let readings = match mode {
        RepairMode::DryRun => 1,
        RepairMode::Execute => 2,
    };
    let total = || {
        PackBytes::of(repository.store().as_ref())
            .map(|packs| Some(packs.full_read().saturating_mul(readings)))
    };
    let done = watch.run("repairing", total, || repository.repair(&sources, options))?;
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
            None => {
                done.fetched_blobs >= done.lost_blobs
                    && done.lost.put_away.len() >= done.lost.unreadable.len()
            }
        },
        configuration_restored: done.configuration.clone(),
        bundles_rewritten: done.bundles_rewritten,
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
        gc_records_put_away: done.records_put_away.clone(),
        points_unreadable: done.lost.unreadable.clone(),
        points_put_away: done.lost.put_away.clone(),
        numbers_lost: done.lost.numbers.iter().map(numbers_text).collect(),
        numbers_begin_above: done.lost.floor,
        still_damaged: after.map_or(Vec::new(), |after| {
            after
                .findings
                .iter()
                // What was put away is told once, when it is.
                .filter(|one| !one.object.starts_with("quarantine/"))
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

/// Numbers of a name, of which only the id may be known.
fn numbers_text(gap: &PointGap) -> String {
    match gap.last.saturating_sub(gap.first) {
        0 => format!("{}@{}", gap.name_id, gap.first),
        _ => format!("{}@{} to {}", gap.name_id, gap.first, gap.last),
    }
}

/// What is lost of points, and what becomes of it.
fn lost_text(report: &Report) -> String {
    let mut text = String::new();
    let would = if report.dry_run { "would be " } else { "" };
    for generation in &report.gc_records_put_away {
        text.push_str(&format!(
            "gc/{generation:016x}: nobody can read it, {would}put away\n"
        ));
    }
    for object in &report.points_unreadable {
        let fate = if report.points_put_away.contains(object) {
            format!("{would}put away under quarantine/")
        } else {
            "left; --give-up puts it away".to_owned()
        };
        text.push_str(&format!("{object}: nobody can read it, {fate}\n"));
    }
    for numbers in &report.numbers_lost {
        text.push_str(&format!("{numbers}: nothing tells what had it\n"));
    }
    if let Some(floor) = report.numbers_begin_above {
        text.push_str(&format!(
            "numbers up to {floor} {would}taken for every name: the records that told them are lost\n"
        ));
    }
    text
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let would = if report.dry_run { "would be " } else { "" };
    for object in &report.configuration_restored {
        text.push_str(&format!("{object}: {would}restored from its copy\n"));
    }
    if report.bundles_rewritten > 0 {
        text.push_str(&format!(
            "{} bundles of points: {would}written anew from their copies\n",
            report.bundles_rewritten
        ));
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
    text.push_str(&lost_text(report));
    for damage in &report.still_damaged {
        text.push_str(&format!("still damaged: {damage}\n"));
    }
    for point in &report.points_still_hit {
        text.push_str(&format!("still hit: {point}\n"));
    }
    text.push_str(match (report.sound, report.dry_run) {
        (true, false) => "Sound.\n",
        (true, true) => "Everything could be healed.\n",
        (false, false) if !report.points_unreadable.is_empty() => {
            "NOT everything is healed.\n  next: give another --from REPO, or --give-up what no repository has\n"
        }
        (false, false) => "NOT everything is healed.\n  next: give another --from REPO or --from-image IMAGE, or forget the points that are hit\n",
        (false, true) => "NOT everything could be healed with these sources.\n",
    });
    text
}
