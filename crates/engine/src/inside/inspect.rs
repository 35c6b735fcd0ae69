//! What lies on disks, as a report: disks, partitions, volumes, file systems, operating systems.

use guestfs::disk::{DiskFacts, Lock, Volume, VolumePlace};
use guestfs::filesystem::{Cleanliness, FileSystemKind};
use guestfs::partition::{PartitionRole, PartitionType};
use guestfs::probe::{ContentKind, Membership};
use guestfs::registry::windows::GptPartitionId;
use serde::Serialize;

use super::eligibility::{
    DriveLetter, EligibilityFacts, GuestContent, GuestFamily, GuestSystem, GuestVolume, RuleReport,
    ShadowStorage, judge,
};
use super::{InsideDisks, SystemReport, VolumeNumber};
use crate::transfer::explained;
use crate::unneeded::shadow::{self, Storage};
use crate::{ErrorKind, Result};

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InspectReport {
    /// The disks, in the order given.
    pub disks: Vec<DiskReport>,
    /// The volumes, numbered from one.
    pub volumes: Vec<VolumeReport>,
    /// Operating systems.
    pub systems: Vec<SystemReport>,
    /// Whether a host can back the machine up online: a rule each. Empty where no system was found.
    pub eligibility: Vec<RuleReport>,
    /// Damage that hides something.
    pub findings: Vec<String>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskReport {
    /// Its number, from zero.
    pub number: usize,
    /// Bytes.
    pub size_bytes: u64,
    /// `gpt`, `mbr`, `none`.
    pub table: &'static str,
    /// Bytes of a sector, as the table counts.
    pub sector_bytes: u32,
    /// GUID, or signature of a master boot record.
    pub id: Option<String>,
    /// The dynamic disk group that it belongs to.
    pub dynamic_group: Option<String>,
    /// The entries of its table.
    pub partitions: Vec<PartitionReport>,
    /// What is not as it should be.
    pub findings: Vec<String>,
}

/// One entry of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionReport {
    /// As Linux counts.
    pub number: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// What it says it is for: a GUID, or the byte of a master boot record.
    pub kind: String,
    /// `data`, `container` or `protective`.
    pub role: &'static str,
    /// Its id.
    pub id: Option<String>,
    /// Its name.
    pub name: String,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeReport {
    /// Its number: what a path may begin with.
    pub number: usize,
    /// Its name: `disk0.p2`, `vg/root`.
    pub name: String,
    /// Where it lies, in words.
    pub place: String,
    /// Its id, as its table or manager writes it.
    pub id: Option<String>,
    /// Bytes, where it can be read.
    pub size_bytes: Option<u64>,
    /// What lies in it: the name of a file system, `swap`, `BitLocker`.
    pub content: &'static str,
    /// The label of that.
    pub label: Option<String>,
    /// The id of that.
    pub content_id: Option<String>,
    /// How it is encrypted.
    pub cipher: Option<String>,
    /// Number of the volume that a key opened in it.
    pub opened_as: Option<usize>,
    /// Why it stays locked, and which keys it takes.
    pub locked: Option<String>,
    /// The file system, where it can be read.
    pub file_system: Option<FileSystemReport>,
    /// Members that are missing.
    pub missing: Vec<String>,
    /// What else is not as it should be, and why it cannot be read.
    pub findings: Vec<String>,
}

/// One file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSystemReport {
    /// `ntfs`, `ext4`.
    pub kind: &'static str,
    /// Its version, where it has one.
    pub version: Option<String>,
    /// Its label.
    pub label: Option<String>,
    /// Its id, as its own tools write it.
    pub id: Option<String>,
    /// Bytes that it covers.
    pub size_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Bytes of a cluster or block.
    pub cluster_bytes: u32,
    /// `clean`, `replayed` (its journal, in memory) or `dirty`.
    pub state: &'static str,
    /// Why it is dirty.
    pub why_dirty: Option<String>,
    /// What a person who looks for files should know besides.
    pub remarks: Vec<String>,
}

/// Looks at everything that can be told without reading files other than those of operating systems.
///
/// # Errors
/// [`ErrorKind::Io`], [`ErrorKind::Cancelled`] and what a repository answers; damage is a finding.
pub fn inspect(inside: &InsideDisks) -> Result<InspectReport> {
    let layout = inside.layout();
    let mut report = InspectReport {
        disks: layout.disks.iter().map(disk_report).collect(),
        volumes: Vec::new(),
        systems: Vec::new(),
        eligibility: Vec::new(),
        findings: layout.findings.clone(),
    };
    for (number, volume) in inside.volumes() {
        let mut one = volume_report(number, volume);
        match &volume.lock {
            Some(Lock::Opened { volume: inner }) => {
                let number = inside.volumes().find(|(_, one)| one.name == *inner);
                one.opened_as = number.map(|(number, _)| number.0);
            }
            Some(Lock::Closed(obstacle)) => one.locked = Some(obstacle.why.clone()),
            None => {}
        }
        let is_file_system = matches!(volume.content.kind, ContentKind::FileSystem(_));
        if is_file_system && volume.reader.is_ok() {
            match look_into(inside, number) {
                Ok((file_system, system)) => {
                    one.label = one.label.or(file_system.label.clone());
                    one.content_id = one.content_id.or(file_system.id.clone());
                    one.file_system = Some(file_system);
                    report.systems.extend(system);
                }
                Err(error) if is_lasting(error.kind()) => one.findings.push(explained(&error)),
                Err(error) => return Err(error),
            }
        }
        report.volumes.push(one);
    }
    report.eligibility = judge(&eligibility_facts(inside, &report));
    Ok(report)
}

fn eligibility_facts(inside: &InsideDisks, report: &InspectReport) -> EligibilityFacts {
    let systems = report.systems.iter().map(|system| GuestSystem {
        volume: system.volume,
        family: match &system.backup_facts {
            Some(facts) => GuestFamily::Windows(facts.clone()),
            None => GuestFamily::Linux,
        },
    });
    let systems: Vec<GuestSystem> = systems.collect();
    let has_windows = systems
        .iter()
        .any(|system| matches!(system.family, GuestFamily::Windows(_)));
    if !has_windows {
        return EligibilityFacts {
            systems,
            ..EligibilityFacts::default()
        };
    }
    let dynamic = |disk: &DiskReport| Some((disk.number, disk.dynamic_group.clone()?));
    EligibilityFacts {
        systems,
        dynamic_disks: report.disks.iter().filter_map(dynamic).collect(),
        volumes: inside
            .volumes()
            .zip(&report.volumes)
            .map(|((_, volume), told)| GuestVolume {
                number: told.number,
                size_bytes: told.size_bytes,
                letter: drive_letter(report, told.number),
                content: guest_content(volume, told),
            })
            .collect(),
    }
}

/// The letter of a volume; what a key opened has that of the encrypted one around it.
fn drive_letter(report: &InspectReport, number: usize) -> DriveLetter {
    let around = report
        .volumes
        .iter()
        .find(|one| one.opened_as == Some(number))
        .map(|one| one.number);
    let mut is_any_known = false;
    for (letter, volume) in report.systems.iter().flat_map(|one| &one.drive_letters) {
        is_any_known |= volume.is_some();
        if volume.is_some_and(|volume| volume == number || Some(volume) == around) {
            return DriveLetter::Is(letter.clone());
        }
    }
    if is_any_known {
        DriveLetter::None
    } else {
        DriveLetter::Unknown
    }
}

/// Why Windows makes no shadow copy of a partition of this type, if it makes none.
fn reserved_for(kind: PartitionType) -> Option<&'static str> {
    let (system, reserved) = ("EFI system partition", "reserved by Windows");
    let (recovery, dynamic) = ("recovery partition", "part of a dynamic disk");
    match kind {
        PartitionType::Mbr(0xEF) => Some(system),
        PartitionType::Mbr(0x27) => Some(recovery),
        PartitionType::Mbr(0x42) => Some(dynamic),
        PartitionType::Mbr(_) | PartitionType::Bsd(_) => None,
        PartitionType::Gpt(id) => match id.to_string().as_str() {
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => Some(system),
            "e3c9e316-0b5c-4db8-817d-f92df00215ae" => Some(reserved),
            "de94bba4-06d1-4d40-a16a-bfd50179d6ac" => Some(recovery),
            "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3" | "af9b60a0-1431-4f62-bc68-3311714a69ad" => {
                Some(dynamic)
            }
            _ => None,
        },
    }
}

fn guest_content(volume: &Volume, told: &VolumeReport) -> GuestContent {
    if let VolumePlace::Partition { kind, .. } = &volume.place
        && let Some(why) = reserved_for(*kind)
    {
        return GuestContent::NotCounted(why);
    }
    if told.opened_as.is_some() {
        return GuestContent::NotCounted("encrypted, and looked into");
    }
    let reader = match &volume.reader {
        Ok(reader) => reader,
        Err(obstacle) => return GuestContent::Closed(obstacle.why.clone()),
    };
    match volume.content.kind {
        ContentKind::FileSystem(FileSystemKind::Ntfs) => GuestContent::Ntfs {
            free_bytes: told.file_system.as_ref().map(|fs| fs.free_bytes),
            storage: match shadow::storage(&**reader) {
                Ok(Storage::NotSet) => ShadowStorage::NotSet,
                Ok(Storage::Same) => ShadowStorage::SameVolume,
                Ok(Storage::Other(id)) => {
                    ShadowStorage::OtherVolume(GptPartitionId(id).to_string())
                }
                Err(why) => ShadowStorage::Unread(why),
            },
        },
        ContentKind::Member(Membership::Ldm) => GuestContent::NotCounted("part of a dynamic disk"),
        ContentKind::Reserved => GuestContent::NotCounted("reserved by Windows"),
        ContentKind::Empty => GuestContent::NotCounted("empty"),
        ContentKind::Encrypted(_) => GuestContent::Closed(format!(
            "{}, and no key opened it",
            volume.content.kind.name()
        )),
        ContentKind::Member(_) => GuestContent::Closed(format!(
            "{}: what it is part of is not looked into",
            volume.content.kind.name()
        )),
        ContentKind::Unknown => GuestContent::Closed("what it holds is not known".to_owned()),
        other => GuestContent::Other(other.name()),
    }
}

/// Whether looking again would say the same.
fn is_lasting(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Corrupt
            | ErrorKind::Unsupported
            | ErrorKind::WrongKey
            | ErrorKind::NotFound
            | ErrorKind::Invalid
    )
}

fn look_into(
    inside: &InsideDisks,
    number: VolumeNumber,
) -> Result<(FileSystemReport, Option<SystemReport>)> {
    let fs = inside.file_system(number)?;
    let facts = fs.facts();
    let (state, why_dirty) = match &facts.cleanliness {
        Cleanliness::Clean => ("clean", None),
        Cleanliness::Replayed => ("replayed", None),
        Cleanliness::Dirty(why) => ("dirty", Some(why.clone())),
    };
    let report = FileSystemReport {
        kind: facts.kind.name(),
        version: facts.version.clone(),
        label: facts.label.clone(),
        id: facts.id.clone(),
        size_bytes: facts.size_bytes,
        free_bytes: facts.free_bytes,
        cluster_bytes: facts.cluster_bytes,
        state,
        why_dirty,
        remarks: fs.remarks(),
    };
    Ok((report, inside.system(number)?))
}

fn disk_report(disk: &DiskFacts) -> DiskReport {
    let table = &disk.table;
    DiskReport {
        number: disk.number,
        size_bytes: disk.size_bytes,
        table: table.kind.name(),
        sector_bytes: table.sector_bytes,
        id: table.id.clone(),
        dynamic_group: disk.ldm_group.clone(),
        partitions: table
            .partitions
            .iter()
            .map(|one| PartitionReport {
                number: one.number,
                offset: one.offset,
                size_bytes: one.size_bytes,
                kind: type_text(one.kind),
                role: match one.role {
                    PartitionRole::Data => "data",
                    PartitionRole::Container => "container",
                    PartitionRole::Protective => "protective",
                },
                id: one.id.map(|id| id.to_string()),
                name: one.name.clone(),
            })
            .collect(),
        findings: table.findings.iter().map(ToString::to_string).collect(),
    }
}

fn type_text(kind: PartitionType) -> String {
    match kind {
        PartitionType::Mbr(byte) => format!("0x{byte:02x}"),
        PartitionType::Gpt(id) => id.to_string(),
        PartitionType::Bsd(byte) => format!("bsd 0x{byte:02x}"),
    }
}

fn volume_report(number: VolumeNumber, volume: &Volume) -> VolumeReport {
    let mut findings = volume.findings.clone();
    if let Err(obstacle) = &volume.reader {
        findings.push(obstacle.why.clone());
    }
    VolumeReport {
        number: number.0,
        name: volume.name.clone(),
        place: place_text(&volume.place),
        id: volume.id.clone(),
        size_bytes: volume.size_bytes(),
        content: volume.content.kind.name(),
        label: volume.content.label.clone(),
        content_id: volume.content.id.clone(),
        cipher: volume.content.cipher.clone(),
        opened_as: None,
        locked: None,
        file_system: None,
        missing: volume.missing.clone(),
        findings,
    }
}

fn place_text(place: &VolumePlace) -> String {
    match place {
        VolumePlace::Disk { disk } => format!("disk {disk}"),
        VolumePlace::Partition {
            disk, partition, ..
        } => format!("disk {disk} partition {partition}"),
        VolumePlace::Logical {
            manager,
            group,
            layout,
            ..
        } if group.is_empty() => format!("{} {layout}", manager.name()),
        VolumePlace::Logical {
            manager,
            group,
            layout,
            ..
        } => format!("{} {group} {layout}", manager.name()),
        VolumePlace::InnerPartition { set, partition } => format!("{set} partition {partition}"),
        VolumePlace::Opened {
            container,
            opened_by,
        } => format!("in {container}, opened by {opened_by}"),
    }
}
