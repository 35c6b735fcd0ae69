//! `hikae debug …`: the repository's own objects, for whoever looks for trouble.

use anyhow::Context;
use block::LeafIndex;
use repo::lease::LeaseKind;
use repo::{BlobName, PackKind, ReadProtection};
use serde::Serialize;

use crate::args::{DebugVerb, RepoArgs};
use crate::exit::Exit;
use crate::keys;
use crate::output::{Output, Table};
use crate::watched::Watch;

/// Runs one verb.
pub fn run(verb: &DebugVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        DebugVerb::Pack { repo, pack } => dump_pack(repo, pack, output),
        DebugVerb::Tree {
            repo,
            selector,
            level,
        } => dump_tree(repo, selector, *level, output),
        DebugVerb::Version { repo, selector } => {
            let text = keys::open(repo)?.dump_point(&selector.parse()?)?;
            let body: serde_json::Value = serde_json::from_str(&text)?;
            output.report(&body, |_| text.clone())?;
            Ok(Exit::Done)
        }
    }
}

#[derive(Serialize)]
struct BlobReport {
    ordinal: u32,
    level: u8,
    hash: String,
    offset: u32,
    stored_bytes: u32,
    plain_bytes: u32,
    codec: String,
}

#[derive(Serialize)]
struct PackReport {
    pack: String,
    kind: &'static str,
    key: String,
    directory_is_whole: bool,
    blobs: Vec<BlobReport>,
}

fn dump_pack(repo: &RepoArgs, pack: &str, output: &Output) -> anyhow::Result<Exit> {
    let repository = keys::open(repo)?;
    let id = pack.rsplit('/').next().unwrap_or(pack);
    let id = id
        .parse()
        .with_context(|| format!("`{pack}` is not a pack id"))?;
    let (kind, dump) = match repository.dump_pack(PackKind::Data, id) {
        Err(error) if error.kind() == repo::ErrorKind::NotFound => {
            ("node", repository.dump_pack(PackKind::Node, id)?)
        }
        result => ("data", result?),
    };
    let report = PackReport {
        pack: id.to_string(),
        kind,
        key: dump.header.key_id.to_string(),
        directory_is_whole: dump.is_whole,
        blobs: dump
            .blobs
            .iter()
            .map(|(ordinal, entry)| {
                let (level, hash) = match entry.name {
                    BlobName::Block(hash) => (0, hash.to_string()),
                    BlobName::Node { level, hash } => (level, hash.to_string()),
                };
                BlobReport {
                    ordinal: *ordinal,
                    level,
                    hash,
                    offset: entry.offset,
                    stored_bytes: entry.stored_len,
                    plain_bytes: entry.plain_len(),
                    codec: format!("{:?}", entry.codec).to_ascii_lowercase(),
                }
            })
            .collect(),
    };
    output.report(&report, |report| {
        let mut table = Table::new(
            &["ordinal", "level", "offset", "stored", "codec", "hash"],
            &[0, 1, 2, 3],
        );
        for blob in &report.blobs {
            table.row(vec![
                blob.ordinal.to_string(),
                blob.level.to_string(),
                blob.offset.to_string(),
                blob.stored_bytes.to_string(),
                blob.codec.clone(),
                blob.hash.clone(),
            ]);
        }
        let state = if report.directory_is_whole {
            ""
        } else {
            ", DIRECTORY DAMAGED: found by frames"
        };
        format!(
            "{} pack {}, key {}, {} blobs{state}\n{table}",
            report.kind,
            report.pack,
            report.key,
            report.blobs.len()
        )
    })?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct NodeReport {
    level: u8,
    index: u64,
    offset: u64,
    hash: String,
}

#[derive(Serialize)]
struct TreeReport {
    version: String,
    root: String,
    length_bytes: u64,
    height: u8,
    protected_from_gc: bool,
    nodes: Vec<NodeReport>,
}

/// The nodes of one level and all above it, all-zero subtrees left away.
fn dump_tree(repo: &RepoArgs, selector: &str, lowest: u8, output: &Output) -> anyhow::Result<Exit> {
    let repository = keys::open(repo)?;
    let point = repository.find_point(&selector.parse()?)?.point;
    let disk = point.disks.first().context("the version has no disk")?;
    let session =
        repository.read_session(LeaseKind::Other, &[&point], ReadProtection::LeaseIfWritable)?;
    let protected_from_gc = Watch::new(output).tell_protection(session.protection());
    let reader = repository.open_version(disk, &session)?;
    let mut tree = reader.tree()?;
    let height = disk.height;
    let mut report = TreeReport {
        version: format!("{}@{}", point.name, point.sequence),
        root: disk.root.to_string(),
        length_bytes: disk.length_bytes,
        height,
        protected_from_gc,
        nodes: Vec::new(),
    };
    let leaves = block::geometry::leaf_count(disk.length_bytes);
    let mut leaf = 0;
    let mut seen = vec![None; usize::from(height) + 1];
    while leaf < leaves {
        for level in (lowest.max(1)..=height).rev() {
            let leaves_per_node = block::geometry::covered_bytes(level) / block::LEAF_SIZE_BYTES;
            let index = leaf / leaves_per_node;
            let hash = tree.node_hash(level, index)?;
            let slot = seen
                .get_mut(usize::from(level))
                .context("a level above the top")?;
            if *slot == Some(index) {
                continue;
            }
            *slot = Some(index);
            if hash != block::NodeHash::zero(level) {
                report.nodes.push(NodeReport {
                    level,
                    index,
                    offset: index.saturating_mul(block::geometry::covered_bytes(level)),
                    hash: hash.to_string(),
                });
            }
        }
        let run = tree.run_at(LeafIndex(leaf))?;
        let zeros = run
            .filter(|run| run.hash == block::NodeHash::zero(1))
            .map_or(1, |run| run.count);
        leaf = leaf.saturating_add(zeros.max(1));
    }
    drop(tree);
    drop(reader);
    if let Some(session) = std::sync::Arc::into_inner(session) {
        session.finish()?;
    }
    output.report(&report, |report| {
        let mut table = Table::new(&["level", "index", "offset", "hash"], &[0, 1, 2]);
        for node in &report.nodes {
            table.row(vec![
                node.level.to_string(),
                node.index.to_string(),
                node.offset.to_string(),
                node.hash.clone(),
            ]);
        }
        format!(
            "{}  root {}  {} bytes, height {}\n{table}",
            report.version, report.root, report.length_bytes, report.height
        )
    })?;
    Ok(Exit::Done)
}
