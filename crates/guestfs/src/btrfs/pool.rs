//! File systems on several devices, put together from everything that may be one of them.
//!
//! ```text
//!   candidates ─► superblocks ─► by file system ─► newest of each device ─► devices one behind the other
//!                                                + seed devices, which are of another file system
//! ```
//!
//! **Invariants.** The device with the newest superblock comes first: it says what the file system is. A device that is
//! not there is named; what the others hold is readable all the same. Two candidates that are the same device: the newer
//! counts, and it is said.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::superblock::{DeviceId, Superblock};
use super::{Btrfs, Uuid};
use crate::Result;
use crate::volume::pieces::{Concat, Source, Window};
use crate::volume::{Candidate, LogicalVolume, Obstacle, VolumeScheme};

/// A file system on several devices.
pub struct Pool {
    /// The volume of which it takes the form.
    pub volume: LogicalVolume,
    /// Names of the candidates that are part of it.
    pub members: Vec<String>,
}

#[derive(Clone)]
struct Found {
    name: String,
    source: Source,
    superblock: Superblock,
}

/// Puts together all file systems on more than one device of which a device is among these.
///
/// # Errors
/// [`crate::ErrorKind::Io`] when a candidate cannot be read.
pub fn assemble(candidates: &[Candidate]) -> Result<Vec<Pool>> {
    let mut found = Vec::new();
    for candidate in candidates {
        match Superblock::read(&*candidate.source, 0) {
            Ok(Some(superblock)) => found.push(Found {
                name: candidate.name.clone(),
                source: Arc::clone(&candidate.source),
                superblock,
            }),
            Err(error) if error.kind() == crate::ErrorKind::Io => return Err(error),
            Ok(None) | Err(_) => {}
        }
    }
    let mut groups: BTreeMap<[u8; 16], Vec<Found>> = BTreeMap::new();
    for one in found.iter().filter(|one| one.superblock.device_count > 1) {
        groups
            .entry(one.superblock.id)
            .or_default()
            .push(one.clone());
    }
    Ok(groups
        .into_values()
        .map(|group| put_together(group, &found))
        .collect())
}

/// The newest of each device, the newest of all first.
fn newest_of_each(mut group: Vec<Found>, findings: &mut Vec<String>) -> Vec<Found> {
    group.sort_by_key(|one| {
        let superblock = &one.superblock;
        (
            std::cmp::Reverse(superblock.generation),
            superblock.device_number,
        )
    });
    let newest = group.first().map_or(0, |one| one.superblock.generation);
    let mut devices: Vec<Found> = Vec::new();
    for one in group {
        let superblock = &one.superblock;
        if let Some(known) =
            (devices.iter()).find(|known| known.superblock.device == superblock.device)
        {
            findings.push(format!(
                "{} is the same device as {}, and not newer: it is not used",
                one.name, known.name
            ));
            continue;
        }
        if superblock.device_bytes > one.source.size_bytes() {
            findings.push(format!(
                "{} is shorter than the {} bytes that it says it has: it is not used",
                one.name, superblock.device_bytes
            ));
            continue;
        }
        if superblock.generation < newest {
            findings.push(format!(
                "{} was last written in generation {}, the newest is {newest}: what it holds is proved by checksums",
                one.name, superblock.generation
            ));
        }
        devices.push(one);
    }
    devices
}

fn put_together(group: Vec<Found>, all: &[Found]) -> Pool {
    let mut findings = Vec::new();
    let mut devices = newest_of_each(group, &mut findings);
    let mut reader = concat(&devices);
    let mut missing = Vec::new();
    let mut layout = "several devices".to_owned();
    if let Ok(source) = &reader {
        match super::open(Arc::clone(source)) {
            Ok(btrfs) => {
                layout = btrfs.profiles();
                let is_whole = add_seeds(&mut devices, all, &btrfs, &mut missing);
                if !is_whole {
                    reader = concat(&devices);
                }
            }
            Err(error) => findings.push(error.to_string()),
        }
    }
    let first = devices.first();
    let wanted = first.map_or(0, |one| one.superblock.device_count);
    let known = crate::field::bytes(devices.len().saturating_add(missing.len()));
    for _ in known..wanted.min(known.saturating_add(64)) {
        missing.push("a device".to_owned());
    }
    let (name, id) = first.map_or_else(Default::default, |one| {
        let id = Uuid(one.superblock.id).to_string();
        let label = one.superblock.label.clone();
        (if label.is_empty() { id.clone() } else { label }, id)
    });
    Pool {
        members: devices.iter().map(|one| one.name.clone()).collect(),
        volume: LogicalVolume {
            manager: VolumeScheme::Btrfs,
            group: String::new(),
            name,
            id: Some(id),
            layout,
            missing,
            findings,
            reader: reader.map_err(Obstacle::from),
        },
    }
}

/// Adds devices that the file system names and that carry another one's id; says which are missing. Whether nothing was
/// added.
fn add_seeds(
    devices: &mut Vec<Found>,
    all: &[Found],
    btrfs: &Btrfs,
    missing: &mut Vec<String>,
) -> bool {
    let before = devices.len();
    for (number, id) in btrfs.device_ids() {
        let has = |one: &Found, id: DeviceId| one.superblock.device == id;
        if devices.iter().any(|one| has(one, id)) {
            continue;
        }
        match all.iter().find(|one| has(one, id)) {
            Some(seed) => devices.push(seed.clone()),
            None => missing.push(format!("device {number} ({id})")),
        }
    }
    devices.len() == before
}

fn concat(devices: &[Found]) -> Result<Source> {
    let mut parts: Vec<Source> = Vec::new();
    for one in devices {
        let size_bytes = one.superblock.device_bytes;
        parts.push(Arc::new(Window::new(
            Arc::clone(&one.source),
            0,
            size_bytes,
        )));
    }
    Ok(Arc::new(Concat::new(parts)?))
}
