//! The coverage report: of each disk of a machine, whether it is protected, excluded and by whom, or impossible and why.
//!
//! ```text
//!   VmFacts + Exclusion* ──plan_coverage──► CoverageLine for each disk ──► Full │ Partial │ None
//! ```
//!
//! **Invariants.** Every disk that the facts name has exactly one line: nothing is left out silently, and what nobody understands
//! is impossible, not protected. An exclusion names who made it. An excluded disk is not an empty disk. An exclusion that picks no
//! disk is told, because somebody believes that it does something.

use serde::{Deserialize, Serialize};

use crate::facts::{
    DiskBacking, DiskFacts, DiskSlot, ImageKind, ReplicationRole, StorageKind, VmFacts,
};
use crate::ids::{NodeName, VmId};
use crate::path::HostPath;

/// Which disks an exclusion picks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskSelector {
    /// The disk at a slot.
    Slot(DiskSlot),
    /// The disk of this image.
    Path(HostPath),
    /// Disks of images below a folder.
    Below(HostPath),
}

impl DiskSelector {
    fn picks(&self, disk: &DiskFacts) -> bool {
        match self {
            Self::Slot(slot) => disk.slot == Some(*slot),
            Self::Path(path) => disk.path() == Some(path),
            Self::Below(folder) => disk.path().is_some_and(|path| path.is_below(folder)),
        }
    }
}

/// Somebody's decision that a disk is not protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exclusion {
    /// Which disks.
    pub selects: DiskSelector,
    /// Who decided: a user, a rule, a protection group.
    pub by: String,
    /// Why, in their words.
    pub reason: Option<String>,
}

/// Why a disk cannot be protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Obstacle {
    /// A disk of the host, passed through.
    PassThrough,
    /// Behind virtual Fibre Channel.
    FibreChannel,
    /// iSCSI inside the guest.
    GuestIscsi,
    /// Shared with other machines.
    Shared,
    /// A VHD set.
    VhdSet,
    /// On a volume that no path of ours reaches.
    Unreachable,
    /// A kind of image or device that is not understood.
    NotUnderstood,
}

impl Obstacle {
    /// Why.
    pub fn because(self) -> &'static str {
        match self {
            Self::PassThrough => "the guest talks to a disk of the host: no file holds its data",
            Self::FibreChannel => "the host does not see disks behind virtual Fibre Channel",
            Self::GuestIscsi => "the guest reaches it over the network by itself",
            Self::Shared => {
                "other machines write to it too: one machine's checkpoint cannot hold it"
            }
            Self::VhdSet => "a VHD set is checkpointed with all machines that share it",
            Self::Unreachable => "it lies on a volume without a letter or a share",
            Self::NotUnderstood => "nobody here knows what holds its data",
        }
    }

    /// What to do.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::PassThrough | Self::FibreChannel | Self::GuestIscsi => {
                "protect it from inside the guest, or move its data into a VHDX"
            }
            Self::Shared | Self::VhdSet => "protect the guest cluster from inside",
            Self::Unreachable => "share the volume, give it a letter, or run the agent on the node",
            Self::NotUnderstood => "protect it from inside the guest",
        }
    }
}

/// What becomes of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "coverage")]
pub enum DiskCoverage {
    /// It is in every point.
    Protected {
        /// Whether changes can be tracked.
        tracking: TrackingOutlook,
    },
    /// It is not, by somebody's decision.
    Excluded {
        /// Who decided.
        by: String,
        /// Why, in their words.
        reason: Option<String>,
    },
    /// It cannot be.
    Impossible {
        /// Why.
        obstacle: Obstacle,
        /// Why, in words.
        because: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// There is nothing to protect: a drive without a medium.
    Nothing,
}

/// Whether changes of a disk can be tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrackingOutlook {
    /// As far as is known.
    Expected,
    /// No: it is read whole each time, and only what changed is sent.
    ReadWhole,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CoverageLine {
    /// Where it is plugged in.
    pub slot: Option<DiskSlot>,
    /// What it is: a path, a device, a target.
    pub what: String,
    /// Storage that it lies on.
    pub storage: Option<StorageKind>,
    /// What becomes of it.
    pub coverage: DiskCoverage,
}

/// How much of a machine is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CoverageLevel {
    /// Every disk.
    Full,
    /// Some: the rest is excluded or impossible.
    Partial,
    /// No disk, although there are some.
    None,
    /// It has no disks; its configuration is protected.
    ConfigurationOnly,
}

/// All disks of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CoverageReport {
    /// The machine.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Where it was seen.
    pub node: NodeName,
    /// How much of it is protected.
    pub level: CoverageLevel,
    /// Disk by disk, in the order of the facts.
    pub lines: Vec<CoverageLine>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// Says of each disk of a machine what becomes of it.
pub fn plan_coverage(machine: &VmFacts, exclusions: &[Exclusion]) -> CoverageReport {
    let lines: Vec<CoverageLine> = machine
        .disks
        .iter()
        .map(|disk| line(machine, disk, exclusions))
        .collect();
    let mut notes = Vec::new();
    for exclusion in exclusions {
        if !machine
            .disks
            .iter()
            .any(|disk| exclusion.selects.picks(disk))
        {
            notes.push(format!(
                "an exclusion by {} picks no disk of this machine",
                exclusion.by
            ));
        }
    }
    if machine.replication == ReplicationRole::Replica {
        notes.push("a replica: protect the primary instead".to_owned());
    }
    CoverageReport {
        vm: machine.id,
        name: machine.name.clone(),
        node: machine.node.clone(),
        level: level(&lines),
        lines,
        notes,
    }
}

fn line(machine: &VmFacts, disk: &DiskFacts, exclusions: &[Exclusion]) -> CoverageLine {
    let coverage = if let Some(obstacle) = obstacle(disk) {
        // What cannot be protected is told as such even when somebody excluded it: excluding it changes nothing.
        DiskCoverage::Impossible {
            obstacle,
            because: obstacle.because(),
            remedy: obstacle.remedy(),
        }
    } else if matches!(disk.backing, DiskBacking::Empty) {
        DiskCoverage::Nothing
    } else if let Some(exclusion) = exclusions.iter().find(|it| it.selects.picks(disk)) {
        DiskCoverage::Excluded {
            by: exclusion.by.clone(),
            reason: exclusion.reason.clone(),
        }
    } else {
        DiskCoverage::Protected {
            tracking: tracking(machine, disk),
        }
    };
    CoverageLine {
        slot: disk.slot,
        what: what(disk),
        storage: disk.path().map(StorageKind::of_path),
        coverage,
    }
}

fn what(disk: &DiskFacts) -> String {
    match &disk.backing {
        DiskBacking::Image { path, .. } => path.to_string(),
        DiskBacking::PassThrough { device } => device.clone(),
        DiskBacking::FibreChannel => "virtual Fibre Channel port".to_owned(),
        DiskBacking::GuestIscsi { target } => target.clone(),
        DiskBacking::Empty => "no medium".to_owned(),
        DiskBacking::Unknown { subtype } => subtype.clone(),
    }
}

fn obstacle(disk: &DiskFacts) -> Option<Obstacle> {
    match &disk.backing {
        DiskBacking::PassThrough { .. } => Some(Obstacle::PassThrough),
        DiskBacking::FibreChannel => Some(Obstacle::FibreChannel),
        DiskBacking::GuestIscsi { .. } => Some(Obstacle::GuestIscsi),
        DiskBacking::Unknown { .. } => Some(Obstacle::NotUnderstood),
        DiskBacking::Empty => None,
        DiskBacking::Image {
            path,
            image,
            is_shared,
        } => {
            let storage = StorageKind::of_path(path);
            if *image == ImageKind::VhdSet {
                Some(Obstacle::VhdSet)
            } else if *is_shared == Some(true) {
                Some(Obstacle::Shared)
            } else if *image == ImageKind::Other {
                Some(Obstacle::NotUnderstood)
            } else if matches!(storage, StorageKind::MountPoint | StorageKind::Unknown) {
                Some(Obstacle::Unreachable)
            } else {
                None
            }
        }
    }
}

fn tracking(machine: &VmFacts, disk: &DiskFacts) -> TrackingOutlook {
    let is_vhdx = matches!(
        disk.backing,
        DiskBacking::Image {
            image: ImageKind::Vhdx,
            ..
        }
    );
    let is_new_enough = machine.version.is_some_and(|version| version.major >= 8);
    if is_vhdx && is_new_enough {
        TrackingOutlook::Expected
    } else {
        TrackingOutlook::ReadWhole
    }
}

fn level(lines: &[CoverageLine]) -> CoverageLevel {
    let counted = lines
        .iter()
        .filter(|line| line.coverage != DiskCoverage::Nothing);
    let (mut protected, mut others) = (0_usize, 0_usize);
    for line in counted {
        if matches!(line.coverage, DiskCoverage::Protected { .. }) {
            protected = protected.saturating_add(1);
        } else {
            others = others.saturating_add(1);
        }
    }
    match (protected, others) {
        (0, 0) => CoverageLevel::ConfigurationOnly,
        (0, _) => CoverageLevel::None,
        (_, 0) => CoverageLevel::Full,
        (_, _) => CoverageLevel::Partial,
    }
}
