//! `hikae repo stats`: who owns which bytes.

use repo::stats::RepositoryStats;
use serde::Serialize;

use crate::args::RepoTarget;
use crate::exit::Exit;
use crate::keys;
use crate::output::{Output, Table, bytes};

#[derive(Serialize)]
struct NameReport {
    name: String,
    points: u64,
    bytes_logical: u64,
    bytes_logical_newest: u64,
    bytes_unique: u64,
    bytes_shared: u64,
    missing_blobs: u64,
}

#[derive(Serialize)]
struct Report {
    names: Vec<NameReport>,
    forgotten_points: u64,
    data_packs: u64,
    data_pack_bytes: u64,
    node_packs: u64,
    node_pack_bytes: u64,
    live_bytes: u64,
    garbage_bytes: u64,
    condemned_packs: u64,
    condemned_bytes: u64,
    index_segments: u64,
    index_bytes: u64,
    other_objects: u64,
    other_bytes: u64,
    index_memory_bytes: u64,
}

/// Runs the verb.
pub fn run(target: &RepoTarget, output: &Output) -> anyhow::Result<Exit> {
    let repository = keys::open(&target.to_repo_args())?;
    let found = repository.stats()?;
    let memory = repository.index_stats()?.memory_bytes;
    output.report(&report(&found, memory), text)?;
    Ok(Exit::Done)
}

fn report(found: &RepositoryStats, index_memory_bytes: u64) -> Report {
    Report {
        names: found
            .names
            .iter()
            .map(|(name, stats)| NameReport {
                name: name.to_string(),
                points: stats.points,
                bytes_logical: stats.logical_bytes,
                bytes_logical_newest: stats.newest_logical_bytes,
                bytes_unique: stats.unique_bytes,
                bytes_shared: stats.shared_bytes,
                missing_blobs: stats.missing_blobs,
            })
            .collect(),
        forgotten_points: found.forgotten_points,
        data_packs: found.data_packs.0,
        data_pack_bytes: found.data_packs.1,
        node_packs: found.node_packs.0,
        node_pack_bytes: found.node_packs.1,
        live_bytes: found.live_bytes,
        garbage_bytes: found.garbage_bytes,
        condemned_packs: found.condemned_packs.0,
        condemned_bytes: found.condemned_packs.1,
        index_segments: found.index_segments.0,
        index_bytes: found.index_segments.1,
        other_objects: found.other_objects.0,
        other_bytes: found.other_objects.1,
        index_memory_bytes,
    }
}

fn text(report: &Report) -> String {
    let mut table = Table::new(
        &["name", "points", "logical", "newest", "unique", "shared"],
        &[1, 2, 3, 4, 5],
    );
    for name in &report.names {
        table.row(vec![
            name.name.clone(),
            name.points.to_string(),
            bytes(name.bytes_logical),
            bytes(name.bytes_logical_newest),
            bytes(name.bytes_unique),
            bytes(name.bytes_shared),
        ]);
    }
    let mut text = format!(
        "{table}\n{} data packs, {}; {} node packs, {}; {} index segments, {}; {} other objects, {}\n",
        report.data_packs,
        bytes(report.data_pack_bytes),
        report.node_packs,
        bytes(report.node_pack_bytes),
        report.index_segments,
        bytes(report.index_bytes),
        report.other_objects,
        bytes(report.other_bytes),
    );
    text.push_str(&format!(
        "{} needed, {} to be freed by gc; index in memory: {}\n",
        bytes(report.live_bytes),
        bytes(report.garbage_bytes),
        bytes(report.index_memory_bytes)
    ));
    if report.forgotten_points > 0 {
        text.push_str(&format!(
            "{} forgotten points wait for gc\n",
            report.forgotten_points
        ));
    }
    for name in report.names.iter().filter(|name| name.missing_blobs > 0) {
        text.push_str(&format!(
            "{}: {} blobs are MISSING; see: hikae repo verify\n",
            name.name, name.missing_blobs
        ));
    }
    text
}
