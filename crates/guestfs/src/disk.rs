//! Several disks of one machine, looked at together: tables, partitions, volumes, and what lies in each.
//!
//! ```text
//!   disks ─► tables ─► partitions ─┬─► MD sets (twice: sets of sets) ─► tables in sets
//!                      bare disks ─┘         └──────► LVM groups
//!            dynamic disks ─────────────────────────► LDM groups
//!            everything so far ─────────────────────► Btrfs on several devices
//!   after each step: encrypted volumes that a key opens ─► volumes of their own, which may be members again
//!   every volume: a name, its place, a reader, what it holds
//! ```
//!
//! Nothing is left out for being a member of something else: a physical volume of LVM is listed as what it is, and so
//! are the volumes that it carries. An encrypted volume is listed as it lies, and what a key opened in it beside.

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

use std::sync::Arc;

use crate::btrfs::pool;
use crate::encrypted::{self, UnlockKey};
use crate::filesystem::FileSystemKind;
use crate::partition::{self, PartitionRole, PartitionTable, PartitionType};
use crate::probe::{self, Content, ContentKind};
use crate::volume::pieces::{Source, Window};
use crate::volume::{Candidate, LogicalVolume, Obstacle, VolumeScheme, ldm, lvm, md};
use crate::{ErrorKind, Result};

/// No machine has more encrypted volumes; each may hold others.
const OPENED_MAX: usize = 1024;

/// One disk.
#[derive(Debug, Clone)]
pub struct DiskFacts {
    /// Its number among those given, from zero.
    pub number: usize,
    /// Bytes.
    pub size_bytes: u64,
    /// What it says about its parts.
    pub table: PartitionTable,
    /// Name of the dynamic disk group that it belongs to.
    pub ldm_group: Option<String>,
}

/// Where a volume lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumePlace {
    /// A disk without a table.
    Disk {
        /// Number of the disk, from zero.
        disk: usize,
    },
    /// A partition.
    Partition {
        /// Number of the disk, from zero.
        disk: usize,
        /// Number of the partition in its table.
        partition: u32,
        /// First byte on the disk.
        offset: u64,
        /// What the table says it is for.
        kind: PartitionType,
    },
    /// Put together by a volume manager.
    Logical {
        /// Who.
        manager: VolumeScheme,
        /// Disk group or volume group; empty for MD.
        group: String,
        /// Name there.
        name: String,
        /// How it is made.
        layout: String,
    },
    /// A partition of a set.
    InnerPartition {
        /// Name of the set.
        set: String,
        /// Number of the partition in the table of the set.
        partition: u32,
    },
    /// What a key opened in an encrypted volume.
    Opened {
        /// Name of that volume.
        container: String,
        /// What opened it, in words: "key slot 1".
        opened_by: String,
    },
}

/// How an encrypted volume stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// A key opened it: what lies in it is the volume of this name.
    Opened {
        /// That name.
        volume: String,
    },
    /// It stays closed: which keys it takes, or what is not done.
    Closed(Obstacle),
}

/// A volume, and what lies in it.
#[derive(Clone)]
pub struct Volume {
    /// Its name for people and for commands: `disk0.p2`, `vg/root`, `Stripe1`.
    pub name: String,
    /// Where it lies.
    pub place: VolumePlace,
    /// Its id as its table or manager writes it.
    pub id: Option<String>,
    /// What lies in it.
    pub content: Content,
    /// Whether it was opened, if it is encrypted.
    pub lock: Option<Lock>,
    /// Members that are missing, by name.
    pub missing: Vec<String>,
    /// What else is not as it should be.
    pub findings: Vec<String>,
    /// Its bytes, or why it cannot be read.
    pub reader: std::result::Result<Source, Obstacle>,
}

impl Volume {
    /// Bytes, where it can be read.
    pub fn size_bytes(&self) -> Option<u64> {
        self.reader.as_ref().ok().map(|reader| reader.size_bytes())
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("name", &self.name)
            .field("place", &self.place)
            .field("id", &self.id)
            .field("size_bytes", &self.size_bytes())
            .field("content", &self.content)
            .field("lock", &self.lock)
            .field("missing", &self.missing)
            .field("findings", &self.findings)
            .field("obstacle", &self.reader.as_ref().err())
            .finish()
    }
}

/// What was found on all disks.
#[derive(Debug, Clone, Default)]
pub struct DiskLayout {
    /// One for each disk given, in that order.
    pub disks: Vec<DiskFacts>,
    /// Volumes: on partitions and bare disks first, then those of managers.
    pub volumes: Vec<Volume>,
    /// Damage that hides something, in words that name the place.
    pub findings: Vec<String>,
}

impl DiskLayout {
    /// A volume by its name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }
}

/// Looks at the disks of one machine; of encrypted volumes only those that need no key are opened.
///
/// # Errors
/// [`crate::ErrorKind::Io`] when a disk cannot be read. Damage is a finding, and what cannot be read says why.
pub fn inspect(disks: &[Source]) -> Result<DiskLayout> {
    inspect_with_keys(disks, &[])
}

/// Looks at the disks of one machine, and into the encrypted volumes that one of the keys opens.
///
/// # Errors
/// [`crate::ErrorKind::Io`] when a disk cannot be read. Damage is a finding, and what cannot be read says why; so is a
/// volume that no key opens.
pub fn inspect_with_keys(disks: &[Source], keys: &[UnlockKey]) -> Result<DiskLayout> {
    let mut layout = DiskLayout::default();
    let mut tables = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let table = partition::read(&**disk)?;
        tables.push((
            Candidate {
                name: format!("disk {number}"),
                source: Arc::clone(disk),
            },
            table,
        ));
    }
    let dynamic = ldm::assemble(&tables)?;
    for (number, (candidate, table)) in tables.into_iter().enumerate() {
        let ldm_group = dynamic
            .members
            .iter()
            .find(|(member, _)| *member == number)
            .map(|(_, group)| group.clone());
        base_volumes(number, &candidate.source, &table, &mut layout)?;
        layout.disks.push(DiskFacts {
            number,
            size_bytes: candidate.source.size_bytes(),
            table,
            ldm_group,
        });
    }
    layout.findings.extend(dynamic.findings);
    open_encrypted(&mut layout, 0, keys)?;
    let mut candidates = candidates(&layout);
    // Sets of sets: two rounds see them.
    let mut newest = candidates.clone();
    for _ in 0..2 {
        let sets = md::assemble(&newest)?;
        let known = layout.volumes.len();
        newest = add_sets(sets, &mut layout)?;
        newest.extend(open_encrypted(&mut layout, known, keys)?);
        candidates.extend(newest.iter().cloned());
        if newest.is_empty() {
            break;
        }
    }
    let known = layout.volumes.len();
    add_groups(&candidates, &mut layout)?;
    for volume in dynamic.volumes {
        add_logical(volume, &mut layout)?;
    }
    // An encrypted logical volume may carry another group.
    let inner = open_encrypted(&mut layout, known, keys)?;
    if !inner.is_empty() {
        let known = layout.volumes.len();
        add_groups(&inner, &mut layout)?;
        open_encrypted(&mut layout, known, keys)?;
    }
    add_pools(&mut layout)?;
    Ok(layout)
}

/// Lists file systems on several devices, which are then told as members.
fn add_pools(layout: &mut DiskLayout) -> Result<()> {
    let btrfs = ContentKind::FileSystem(FileSystemKind::Btrfs);
    let mut devices = candidates(layout);
    devices.retain(|candidate| {
        let volume = layout.volume(&candidate.name);
        volume.is_some_and(|volume| volume.content.kind == btrfs)
    });
    for pool in pool::assemble(&devices)? {
        for volume in &mut layout.volumes {
            if pool.members.contains(&volume.name) {
                volume.content.kind = ContentKind::Member(probe::Membership::Btrfs);
            }
        }
        add_logical(pool.volume, layout)?;
    }
    Ok(())
}

/// The volumes of the LVM groups that lie on these.
fn add_groups(candidates: &[Candidate], layout: &mut DiskLayout) -> Result<()> {
    let groups = lvm::assemble(candidates)?;
    layout.findings.extend(groups.findings);
    for volume in groups.volumes {
        add_logical(volume, layout)?;
    }
    Ok(())
}

/// Opens what is encrypted among the volumes from this one on, and what is encrypted in that; tells what may be a
/// member of something.
fn open_encrypted(
    layout: &mut DiskLayout,
    from: usize,
    keys: &[UnlockKey],
) -> Result<Vec<Candidate>> {
    let mut members = Vec::new();
    let mut at = from;
    while let Some(volume) = layout.volumes.get(at).cloned() {
        at = at.saturating_add(1);
        let (ContentKind::Encrypted(encryption), Ok(source)) =
            (volume.content.kind, &volume.reader)
        else {
            continue;
        };
        if members.len() >= OPENED_MAX {
            break;
        }
        let (lock, cipher, finding) = match encrypted::open(Arc::clone(source), encryption, keys) {
            Ok(opened) => {
                let cipher = Some(opened.cipher.clone());
                let (name, mut inner) = add_opened(&volume.name, opened, layout)?;
                members.append(&mut inner);
                (Lock::Opened { volume: name }, cipher, None)
            }
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => {
                // Without a key nobody expects it to open.
                let is_finding = !keys.is_empty() || error.kind() == ErrorKind::Corrupt;
                let finding = is_finding.then(|| error.to_string());
                (Lock::Closed(error.into()), None, finding)
            }
        };
        if let Some(volume) = layout.volumes.get_mut(at.saturating_sub(1)) {
            volume.lock = Some(lock);
            volume.content.cipher = cipher.or(volume.content.cipher.take());
            volume.findings.extend(finding);
        }
    }
    Ok(members)
}

/// Lists what a key opened, and the partitions in it; its name, and what of it may be a member.
fn add_opened(
    container: &str,
    opened: encrypted::OpenedVolume,
    layout: &mut DiskLayout,
) -> Result<(String, Vec<Candidate>)> {
    let name = unused_name(layout, format!("{container}.open"));
    layout.volumes.push(Volume {
        name: name.clone(),
        place: VolumePlace::Opened {
            container: container.to_owned(),
            opened_by: opened.opened_by,
        },
        id: None,
        content: tolerant(probe::probe_with_copies(&*opened.reader))?,
        lock: None,
        missing: Vec::new(),
        findings: opened.findings,
        reader: Ok(Arc::clone(&opened.reader)),
    });
    let members = add_inner_partitions(&name, &opened.reader, layout)?;
    Ok((name, members))
}

/// Everything so far that may be a member of something.
fn candidates(layout: &DiskLayout) -> Vec<Candidate> {
    layout
        .volumes
        .iter()
        .filter_map(|volume| {
            let source = volume.reader.as_ref().ok()?;
            Some(Candidate {
                name: volume.name.clone(),
                source: Arc::clone(source),
            })
        })
        .collect()
}

fn base_volumes(
    number: usize,
    disk: &Source,
    table: &PartitionTable,
    layout: &mut DiskLayout,
) -> Result<()> {
    if table.partitions.is_empty() && table.kind == partition::TableKind::None {
        layout.volumes.push(Volume {
            name: format!("disk{number}"),
            place: VolumePlace::Disk { disk: number },
            id: None,
            content: probe::probe_with_copies(&**disk)?,
            lock: None,
            missing: Vec::new(),
            findings: Vec::new(),
            reader: Ok(Arc::clone(disk)),
        });
        return Ok(());
    }
    for one in &table.partitions {
        if one.role != PartitionRole::Data {
            continue;
        }
        let window: Source = Arc::new(Window::new(Arc::clone(disk), one.offset, one.size_bytes));
        let mut findings = Vec::new();
        if window.size_bytes() < one.size_bytes {
            findings.push(format!(
                "{} of its {} bytes lie behind the end of the disk",
                one.size_bytes.saturating_sub(window.size_bytes()),
                one.size_bytes
            ));
        }
        layout.volumes.push(Volume {
            name: format!("disk{number}.p{}", one.number),
            place: VolumePlace::Partition {
                disk: number,
                partition: one.number,
                offset: one.offset,
                kind: one.kind,
            },
            id: one.id.map(|id| id.to_string()),
            content: content(one.kind, &*window)?,
            lock: None,
            missing: Vec::new(),
            findings,
            reader: Ok(window),
        });
    }
    Ok(())
}

/// What lies in a partition. Some kinds are told by the table and have no signature of their own.
fn content(kind: PartitionType, volume: &dyn block::ReadAt) -> Result<Content> {
    let Some(told) = probe::Content::of_partition(kind) else {
        return probe::probe_with_copies(volume);
    };
    let probed = probe::probe(volume)?;
    let is_told = probed.kind == probe::ContentKind::Unknown || told.kind.is_member();
    Ok(if is_told { told } else { probed })
}

/// Lists sets, and the partitions in them; what of that may again be a member.
fn add_sets(sets: Vec<LogicalVolume>, layout: &mut DiskLayout) -> Result<Vec<Candidate>> {
    let mut members = Vec::new();
    for set in sets {
        let name = set.name.clone();
        let reader = set.reader.clone();
        add_logical(set, layout)?;
        let Ok(source) = reader else { continue };
        members.extend(add_inner_partitions(&name, &source, layout)?);
    }
    Ok(members)
}

/// Lists the partitions in a volume; they, or the volume itself when it has none, may be members of something.
fn add_inner_partitions(
    name: &str,
    source: &Source,
    layout: &mut DiskLayout,
) -> Result<Vec<Candidate>> {
    // A set of which too much is missing is listed, but nothing can stand on it.
    let table = match partition::read(&**source) {
        Ok(table) => table,
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(_) => return Ok(Vec::new()),
    };
    if table.data_partitions().next().is_none() {
        return Ok(vec![Candidate {
            name: name.to_owned(),
            source: Arc::clone(source),
        }]);
    }
    let mut members = Vec::new();
    for one in table.data_partitions() {
        let window: Source = Arc::new(Window::new(Arc::clone(source), one.offset, one.size_bytes));
        let inner = format!("{name}.p{}", one.number);
        members.push(Candidate {
            name: inner.clone(),
            source: Arc::clone(&window),
        });
        layout.volumes.push(Volume {
            name: inner,
            place: VolumePlace::InnerPartition {
                set: name.to_owned(),
                partition: one.number,
            },
            id: one.id.map(|id| id.to_string()),
            content: tolerant(content(one.kind, &*window))?,
            lock: None,
            missing: Vec::new(),
            findings: Vec::new(),
            reader: Ok(window),
        });
    }
    Ok(members)
}

/// Nothing is known of a volume whose first bytes are on a member that is missing.
fn tolerant(outcome: Result<Content>) -> Result<Content> {
    match outcome {
        Err(error) if error.kind() != crate::ErrorKind::Io => Ok(Content::unknown()),
        outcome => outcome,
    }
}

fn add_logical(volume: LogicalVolume, layout: &mut DiskLayout) -> Result<()> {
    let content = match &volume.reader {
        Ok(source) => tolerant(probe::probe_with_copies(&**source))?,
        Err(_) => Content::unknown(),
    };
    let base = if volume.group.is_empty() || volume.manager == VolumeScheme::Ldm {
        volume.name.clone()
    } else {
        format!("{}/{}", volume.group, volume.name)
    };
    let name = unused_name(layout, base);
    layout.volumes.push(Volume {
        name,
        place: VolumePlace::Logical {
            manager: volume.manager,
            group: volume.group,
            name: volume.name,
            layout: volume.layout,
        },
        id: volume.id,
        content,
        lock: None,
        missing: volume.missing,
        findings: volume.findings,
        reader: volume.reader,
    });
    Ok(())
}

/// Two groups may have volumes of one name.
fn unused_name(layout: &DiskLayout, base: String) -> String {
    let mut name = base.clone();
    let mut count = 1_u32;
    while layout.volumes.iter().any(|known| known.name == name) {
        count = count.saturating_add(1);
        name = format!("{base}#{count}");
    }
    name
}
