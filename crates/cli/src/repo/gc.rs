//! `hikae repo gc`: what no point needs any more is freed, beside everything else that runs.

use std::time::Instant;

use repo::gc::{GcMode, GcOptions, GcReport, collect_garbage};
use serde::Serialize;

use crate::args::GcArgs;
use crate::exit::Exit;
use crate::output::{Output, bytes, seconds};
use crate::watched::{PackBytes, Traffic, Watch};

#[derive(Serialize)]
struct Damage {
    object: String,
    what: String,
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    packs_before: u64,
    bytes_before: u64,
    blobs: u64,
    live_blobs: u64,
    nodes_read: u64,
    packs_dead: u64,
    bytes_dead: u64,
    packs_repacked: u64,
    bytes_repacked: u64,
    bytes_written: u64,
    packs_deleted: u64,
    bytes_deleted: u64,
    packs_rescued: usize,
    points_dropped: usize,
    points_bundled: u64,
    segments_before: u64,
    segments_after: u64,
    quarantined: Vec<Damage>,
    spared_because_blobs_are_missing: bool,
    store_full: bool,
    waited_for: Vec<String>,
    seconds: f64,
}

/// Runs the verb.
pub fn run(arguments: &GcArgs, output: &Output) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let mut repo = arguments.target.to_repo_args();
    repo.unlock.stall_seconds = Some(arguments.stall);
    let watch = Watch::new(output);
    let repository = watch.open(&repo, Traffic::ReadsThenPacking)?;
    let mut options = GcOptions {
        repack_below_percent: arguments.repack_below,
        mode: if arguments.dry_run {
            GcMode::DryRun
        } else {
            GcMode::Execute
        },
        ..GcOptions::default()
    };
    if let Some(budget) = arguments.repack_budget {
        options.repack_budget_bytes = budget;
    }
    // What is needed is found by reading every node.
    let total = || PackBytes::of(repository.store().as_ref()).map(|packs| Some(packs.node));
    let done = watch.run("finding what is needed", total, || {
        collect_garbage(&repository, &options)
    })?;
    let report = report(&done, started);
    output.report(&report, text)?;
    Ok(if report.quarantined.is_empty() {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn report(done: &GcReport, started: Instant) -> Report {
    Report {
        dry_run: done.mode == GcMode::DryRun,
        packs_before: done.packs_before.objects,
        bytes_before: done.packs_before.size_bytes,
        blobs: done.blobs,
        live_blobs: done.live_blobs,
        nodes_read: done.nodes_read,
        packs_dead: done.dead.objects,
        bytes_dead: done.dead.size_bytes,
        packs_repacked: done.repacked.objects,
        bytes_repacked: done.repacked.size_bytes,
        bytes_written: done.written.size_bytes,
        packs_deleted: done.deleted.objects,
        bytes_deleted: done.deleted.size_bytes,
        packs_rescued: done.rescued.len(),
        points_dropped: done.dropped.len(),
        points_bundled: done.bundled,
        segments_before: done.segments_before,
        segments_after: done.segments_after,
        quarantined: done
            .quarantined
            .iter()
            .map(|one| Damage {
                object: one.object.clone(),
                what: one.what.clone(),
            })
            .collect(),
        spared_because_blobs_are_missing: done.spared,
        store_full: done.store_full,
        waited_for: done
            .waited_for
            .iter()
            .map(|one| {
                let fate = if one.broken.is_some() {
                    " (declared dead)"
                } else {
                    ""
                };
                format!("{} {}{fate}", one.lease, one.owner)
            })
            .collect(),
        seconds: started.elapsed().as_secs_f64(),
    }
}

fn text(report: &Report) -> String {
    let verb = if report.dry_run {
        "Would free"
    } else {
        "Freed"
    };
    let freed = if report.dry_run {
        report.bytes_dead.saturating_add(report.bytes_repacked)
    } else {
        report.bytes_deleted
    };
    let mut text = format!(
        "{} packs, {}: {} of {} blobs are needed\n{verb} {} in {} packs",
        report.packs_before,
        bytes(report.bytes_before),
        report.live_blobs,
        report.blobs,
        bytes(freed),
        if report.dry_run {
            report.packs_dead.saturating_add(report.packs_repacked)
        } else {
            report.packs_deleted
        },
    );
    if report.bytes_repacked > 0 {
        text.push_str(&format!(
            " ({} packs packed anew, {} written)",
            report.packs_repacked,
            bytes(report.bytes_written)
        ));
    }
    text.push_str(&format!(", {}\n", seconds(report.seconds)));
    if report.points_dropped > 0 || report.points_bundled > 0 {
        text.push_str(&format!(
            "{} forgotten points removed, {} points bundled\n",
            report.points_dropped, report.points_bundled
        ));
    }
    for waited in &report.waited_for {
        text.push_str(&format!("waited for {waited}\n"));
    }
    if report.store_full {
        text.push_str("The store is full: nothing was packed anew. Run gc again now that some space is free.\n");
    }
    for damage in &report.quarantined {
        text.push_str(&format!(
            "damaged, left alone: {}: {}\n",
            damage.object, damage.what
        ));
    }
    if report.spared_because_blobs_are_missing {
        text.push_str(
            "Points need blobs that are missing, so no pack was deleted.\n  next: hikae repo verify, then hikae repo repair\n",
        );
    }
    text
}
