//! Dynamic disks of Windows: the logical disk manager.
//!
//! ```text
//!   PRIVHEAD (MBR: sector 6, GPT: end of the LDM partition)  disk id, group id, data start, place of the database
//!   database   TOCBLOCK ─► "config" ─► VMDB ─► VBLK VBLK …   every disk of the group holds all of it
//!
//!   volume ─► component (concat, stripe, RAID-5) ─► partition ─► disk, by object id
//!             two components: a mirror
//! ```
//!
//! All numbers are big-endian. The copy of the database with the highest committed sequence number counts for the whole
//! group. **Not done.** Undoing or finishing a transaction that was under way (the database says so: it is a finding).
//!
//! Sources: linux-ntfs project "LDM documentation"; `block/partitions/ldm.h` for the names of the records.

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

mod database;
mod record;

use std::collections::BTreeMap;
use std::sync::Arc;

use database::{Database, PrivateHead};
use record::{Component, ComponentKind, Part, Records, Volume};

use super::pieces::{Absent, Concat, Source, Window};
use super::raid::{Member, Mirrored, Parity, ParityCount, ParityLayout, Striped};
use super::{Candidate, LogicalVolume, Obstacle, VolumeScheme};
use crate::partition::{Guid, PartitionTable};
use crate::{Error, Result};

const SECTOR_BYTES: u64 = 512;

/// A disk as the manager sees it.
struct Disk {
    head: PrivateHead,
    source: Source,
}

/// What was found over all disks.
#[derive(Debug, Default)]
pub struct LdmVolumes {
    /// The volumes of all groups.
    pub volumes: Vec<LogicalVolume>,
    /// Numbers of the disks (as given) that belong to the manager, and their group's name.
    pub members: Vec<(usize, String)>,
    /// Damage that hides something, in words that name the place.
    pub findings: Vec<String>,
}

/// Puts together what lies on these disks, given with their partition tables.
///
/// # Errors
/// [`crate::ErrorKind::Io`] when a disk cannot be read. Damage is a finding.
pub fn assemble(disks: &[(Candidate, PartitionTable)]) -> Result<LdmVolumes> {
    let mut found = LdmVolumes::default();
    let mut groups: BTreeMap<Guid, (Option<Database>, Vec<Disk>)> = BTreeMap::new();
    for (number, (candidate, table)) in disks.iter().enumerate() {
        if !table.is_ldm() {
            continue;
        }
        let head = match database::find_head(&*candidate.source, table) {
            Ok(head) => head,
            Err(error) if error.kind() == crate::ErrorKind::Io => return Err(error),
            Err(error) => {
                found.findings.push(format!("{}: {error}", candidate.name));
                continue;
            }
        };
        found.members.push((number, head.group_name.clone()));
        let group = groups.entry(head.group).or_default();
        match Database::read(&*candidate.source, &head) {
            Ok(database) => {
                let is_newer = group
                    .0
                    .as_ref()
                    .is_none_or(|known| database.sequence > known.sequence);
                if is_newer {
                    group.0 = Some(database);
                }
            }
            Err(error) if error.kind() == crate::ErrorKind::Io => return Err(error),
            Err(error) => found.findings.push(format!("{}: {error}", candidate.name)),
        }
        let twin = group.1.iter().any(|disk| disk.head.disk == head.disk);
        if twin {
            found
                .findings
                .push(format!("{}: another disk has the same id", candidate.name));
            continue;
        }
        group.1.push(Disk {
            head,
            source: Arc::clone(&candidate.source),
        });
    }
    for (id, (database, disks)) in groups {
        let Some(database) = database else {
            found
                .findings
                .push(format!("disk group {id}: no database could be read"));
            continue;
        };
        if !database.is_committed {
            found.findings.push(format!(
                "disk group {id}: a change was under way, the database may be between two states"
            ));
        }
        group_volumes(&database, &disks, &mut found)?;
    }
    Ok(found)
}

fn group_volumes(database: &Database, disks: &[Disk], found: &mut LdmVolumes) -> Result<()> {
    let records = Records::parse(database)?;
    found.findings.extend(records.damage.iter().cloned());
    for volume in records.volumes.values() {
        let mut missing = Vec::new();
        let (layout, reader) = match read_volume(&records, volume, disks, &mut missing) {
            Ok((layout, reader)) => (layout, Ok(reader)),
            Err(error) => (volume.kind.clone(), Err(Obstacle::from(error))),
        };
        missing.sort();
        missing.dedup();
        let mut findings = Vec::new();
        if volume.state != "ACTIVE" {
            findings.push(format!("its state is {:?}", volume.state));
        }
        found.volumes.push(LogicalVolume {
            manager: VolumeScheme::Ldm,
            group: database.group_name.clone(),
            name: volume.name.clone(),
            id: Some(volume.id.to_string()),
            layout,
            missing,
            findings,
            reader,
        });
    }
    Ok(())
}

fn read_volume(
    records: &Records,
    volume: &Volume,
    disks: &[Disk],
    missing: &mut Vec<String>,
) -> Result<(String, Source)> {
    let components: Vec<&Component> = records
        .components
        .values()
        .filter(|component| component.volume == volume.object)
        .collect();
    if components.len() != volume.components {
        return Err(Error::corrupt(format!(
            "volume {} has {} components of {}",
            volume.name,
            components.len(),
            volume.components
        )));
    }
    let mut legs = Vec::new();
    let mut layout = String::new();
    let is_mirror = components.len() > 1;
    for component in components {
        let mut gone = Vec::new();
        let source = read_component(records, component, disks, &mut gone)?;
        component.kind.name(component.parts).clone_into(&mut layout);
        // A leg of a mirror that lacks anything is worse than one that lacks nothing, but better than none.
        legs.push((gone.len(), source));
        missing.append(&mut gone);
    }
    legs.sort_by_key(|(gone, _)| *gone);
    let whole: Source = if is_mirror {
        "mirrored".clone_into(&mut layout);
        let members = legs
            .into_iter()
            .map(|(_, leg)| Member::Present(leg))
            .collect();
        Arc::new(Mirrored::new(members)?)
    } else {
        match legs.into_iter().next() {
            Some((_, leg)) => leg,
            None => {
                return Err(Error::corrupt(format!(
                    "volume {} has no parts",
                    volume.name
                )));
            }
        }
    };
    let size = volume.sectors.saturating_mul(SECTOR_BYTES);
    if whole.size_bytes() < size {
        return Err(Error::corrupt(format!(
            "volume {} has {size} bytes, its parts {}",
            volume.name,
            whole.size_bytes()
        )));
    }
    Ok((layout, Arc::new(Window::new(whole, 0, size))))
}

fn read_component(
    records: &Records,
    component: &Component,
    disks: &[Disk],
    missing: &mut Vec<String>,
) -> Result<Source> {
    let mut parts: Vec<&Part> = records
        .parts
        .values()
        .filter(|part| part.component == component.object)
        .collect();
    if parts.len() != component.parts {
        return Err(Error::corrupt(format!(
            "component {} has {} partitions of {}",
            component.name,
            parts.len(),
            component.parts
        )));
    }
    if component.kind == ComponentKind::Concat {
        parts.sort_by_key(|part| part.volume_offset);
        let mut sources = Vec::new();
        let mut next = 0;
        for part in parts {
            if part.volume_offset != next {
                return Err(Error::corrupt(format!(
                    "partition {} begins at sector {} of its volume instead of {next}",
                    part.name, part.volume_offset
                )));
            }
            next = part.volume_offset.saturating_add(part.sectors);
            sources.push(match part_source(records, part, disks)? {
                Member::Present(source) => source,
                Member::Missing(name) => {
                    missing.push(name.clone());
                    Arc::new(Absent::new(name, part.sectors.saturating_mul(SECTOR_BYTES)))
                }
            });
        }
        return Ok(Arc::new(Concat::new(sources)?));
    }
    read_columns(records, component, parts, disks, missing)
}

/// Stripes and RAID-5. A column may consist of several partitions, one behind the other.
fn read_columns(
    records: &Records,
    component: &Component,
    parts: Vec<&Part>,
    disks: &[Disk],
    missing: &mut Vec<String>,
) -> Result<Source> {
    let mut columns: BTreeMap<u64, Vec<&Part>> = BTreeMap::new();
    for part in parts {
        columns.entry(part.column).or_default().push(part);
    }
    let mut members = Vec::new();
    let mut told = None;
    for (number, mut parts) in (0..).zip(columns) {
        if parts.0 != number || number >= component.columns {
            return Err(Error::corrupt(format!(
                "component {} has gaps",
                component.name
            )));
        }
        parts.1.sort_by_key(|part| part.volume_offset);
        let (member, bytes) = read_column(records, &parts.1, disks, missing)?;
        told = Some(told.map_or(bytes, |known: u64| known.min(bytes)));
        members.push(member);
    }
    if crate::field::bytes(members.len()) != component.columns {
        return Err(Error::corrupt(format!(
            "component {} has {} columns of {}",
            component.name,
            members.len(),
            component.columns
        )));
    }
    let chunk = component.chunk_sectors.saturating_mul(SECTOR_BYTES);
    Ok(if component.kind == ComponentKind::Stripe {
        Arc::new(Striped::new(members, chunk, told)?)
    } else {
        Arc::new(Parity::new(
            members,
            chunk,
            ParityLayout::LeftSymmetric,
            ParityCount::One,
            told,
        )?)
    })
}

fn read_column(
    records: &Records,
    parts: &[&Part],
    disks: &[Disk],
    missing: &mut Vec<String>,
) -> Result<(Member, u64)> {
    let mut sources: Vec<Source> = Vec::new();
    let mut lost = None;
    let mut bytes = 0_u64;
    for part in parts {
        let length = part.sectors.saturating_mul(SECTOR_BYTES);
        bytes = bytes.saturating_add(length);
        match part_source(records, part, disks)? {
            Member::Present(source) => sources.push(source),
            Member::Missing(name) => {
                missing.push(name.clone());
                sources.push(Arc::new(Absent::new(name.clone(), length)));
                lost = Some(name);
            }
        }
    }
    Ok(match lost {
        Some(name) if parts.len() == 1 => (Member::Missing(name), bytes),
        _ => (Member::Present(Arc::new(Concat::new(sources)?)), bytes),
    })
}

fn part_source(records: &Records, part: &Part, disks: &[Disk]) -> Result<Member> {
    let Some(record) = records.disks.get(&part.disk) else {
        return Err(Error::corrupt(format!(
            "partition {} lies on disk {}, which the database does not have",
            part.name, part.disk
        )));
    };
    let Some(disk) = disks.iter().find(|disk| disk.head.disk == record.id) else {
        return Ok(Member::Missing(format!(
            "{} ({}) of the disk group",
            record.name, record.id
        )));
    };
    let first = disk
        .head
        .data_start
        .checked_add(part.start)
        .and_then(|sector| sector.checked_mul(SECTOR_BYTES));
    let length = part.sectors.checked_mul(SECTOR_BYTES);
    let (Some(first), Some(length)) = (first, length) else {
        return Err(Error::corrupt(format!(
            "partition {} is impossible",
            part.name
        )));
    };
    let window = Window::new(Arc::clone(&disk.source), first, length);
    if block::ReadAt::size_bytes(&window) != length {
        return Err(Error::corrupt(format!(
            "partition {} ends behind disk {}",
            part.name, record.name
        )));
    }
    Ok(Member::Present(Arc::new(window)))
}
