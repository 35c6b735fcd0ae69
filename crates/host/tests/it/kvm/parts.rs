//! What of ours is in a QEMU, found by its names alone: nothing is remembered between two calls.
//!
//! ```text
//!   checkpoint ID      job ID.N, overlay node ID.N, export ID.N for disk N     hikae-0123456789abcdef-1.0 (31 bytes at most)
//!   point ID=MARK      bitmap on every disk, recording since checkpoint ID     hikae-…-1=hikae:JOB@OWNER
//!   frozen copy ID<P   bitmap on every disk: what point P held at checkpoint ID; gone with the checkpoint
//! ```

use host::Result;
use host::custody::Mark;
use serde_json::{Value, json};

use super::qmp::Monitor;

const PREFIX: &str = "hikae-";

/// Name of the point that belongs to a checkpoint.
pub(super) fn point_name(id: &str, mark: &Mark) -> String {
    format!("{id}={mark}")
}

/// Name of the copy of a point's bitmap that is as old as a checkpoint.
pub(super) fn frozen_name(id: &str, point: &str) -> String {
    let of = point.split_once('=').map_or(point, |(of, _)| of);
    format!("{id}<{of}")
}

/// Name of a part of a checkpoint for one disk.
pub(super) fn part_name(id: &str, disk: usize) -> String {
    format!("{id}.{disk}")
}

/// Name of a disk's node.
pub(super) fn disk_name(disk: usize) -> String {
    format!("disk{disk}")
}

/// The checkpoint that a part belongs to; `None` when it is none of ours.
fn id_of_part(name: &str) -> Option<&str> {
    let (id, _) = name.split_once('.')?;
    id.starts_with(PREFIX).then_some(id)
}

/// A bitmap of a node.
#[derive(Debug, Clone)]
pub(super) struct Bitmap {
    pub(super) name: String,
    /// Whether it was written down when QEMU ended last; without that it says nothing.
    pub(super) is_sound: bool,
}

impl Bitmap {
    /// Checkpoint and mark, when it is a point.
    pub(super) fn point(&self) -> Option<(&str, Mark)> {
        let (id, mark) = self.name.split_once('=')?;
        let mark = Mark::parse(mark)?;
        id.starts_with(PREFIX).then_some((id, mark))
    }
}

/// A node of QEMU's graph of block devices.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) size_bytes: Option<u64>,
    pub(super) held_bytes: Option<u64>,
    pub(super) bitmaps: Vec<Bitmap>,
}

/// What is in a QEMU at this moment.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// What the machine is doing, by QEMU's word.
    pub(super) status: String,
    /// Jobs that copy for a backup.
    pub(super) jobs: Vec<String>,
    pub(super) exports: Vec<String>,
    pub(super) nodes: Vec<Node>,
}

impl Look {
    /// Looks.
    pub(super) fn take(monitor: &mut Monitor<'_>) -> Result<Self> {
        let status = monitor.ask("query-status")?;
        let jobs = monitor.ask("query-block-jobs")?;
        let exports = monitor.ask("query-block-exports")?;
        let nodes = monitor.ask_with("query-named-block-nodes", &json!({"flat": true}))?;
        Ok(Self {
            status: text(&status, "/status").unwrap_or_default(),
            jobs: list(&jobs)
                .iter()
                .filter(|it| text(it, "/type").as_deref() == Some("backup"))
                .filter_map(|it| text(it, "/device"))
                .collect(),
            exports: list(&exports)
                .iter()
                .filter_map(|it| text(it, "/id"))
                .collect(),
            nodes: list(&nodes).iter().filter_map(node).collect(),
        })
    }

    /// Checkpoints of which anything is there, ours by id, others by the name of their job.
    pub(super) fn checkpoints(&self) -> (Vec<String>, Vec<String>) {
        let nodes = self.nodes.iter().map(|node| &node.name);
        let mut ours: Vec<String> = nodes
            .chain(&self.jobs)
            .chain(&self.exports)
            .filter_map(|name| id_of_part(name))
            .map(str::to_owned)
            .collect();
        ours.extend(self.bitmaps().filter_map(|(_, bitmap)| {
            let (id, _) = bitmap.name.split_once('<')?;
            id.starts_with(PREFIX).then(|| id.to_owned())
        }));
        ours.sort();
        ours.dedup();
        let theirs = self
            .jobs
            .iter()
            .filter(|job| id_of_part(job).is_none())
            .cloned()
            .collect();
        (ours, theirs)
    }

    /// Bitmaps, with the nodes that they are of.
    pub(super) fn bitmaps(&self) -> impl Iterator<Item = (&Node, &Bitmap)> {
        self.nodes
            .iter()
            .flat_map(|node| node.bitmaps.iter().map(move |bitmap| (node, bitmap)))
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The mark of a checkpoint, as its point carries it.
    pub(super) fn mark_of(&self, id: &str) -> Option<Mark> {
        self.bitmaps().find_map(|(_, bitmap)| {
            let (of, mark) = bitmap.point()?;
            (of == id).then_some(mark)
        })
    }
}

fn node(value: &Value) -> Option<Node> {
    let bitmaps = value.get("dirty-bitmaps").map(list).unwrap_or_default();
    Some(Node {
        name: text(value, "/node-name")?,
        size_bytes: value.pointer("/image/virtual-size").and_then(Value::as_u64),
        held_bytes: value.pointer("/image/actual-size").and_then(Value::as_u64),
        bitmaps: bitmaps
            .iter()
            .filter_map(|it| {
                let is_damaged = it.get("inconsistent").and_then(Value::as_bool);
                Some(Bitmap {
                    name: text(it, "/name")?,
                    is_sound: is_damaged != Some(true),
                })
            })
            .collect(),
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value, pointer: &str) -> Option<String> {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .map(str::to_owned)
}
