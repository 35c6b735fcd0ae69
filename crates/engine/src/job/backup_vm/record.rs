//! What a recovery point keeps of its machine, so that it can be made again where nothing of it is left: ids, places,
//! sizes, disks and their slots, adapters, the role in a cluster, and the tracking point that belongs to this version.
//!
//! It lies in the point's source facts under `machine`. Fields that a later program adds are kept by the repository; this
//! program ignores them.

use host::Timestamp;
use host::checkpoint::{Checkpoint, ConfigurationFileKind, SkippedDisk, StillFacts};
use host::consistency::{Consistency, MissedConsistency};
use host::coverage::{DiskCoverage, plan_coverage};
use host::eligibility::{Evidence, Verdict, judge};
use host::facts::{DiskSlot, HostGeneration, ImageKind, VmFacts};
use host::ids::{DeviceId, NodeName, TrackingPointRef, VmId};
use host::path::HostPath;
use repo::RecoveryPoint;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// Where it lies in the source facts of a point.
pub(super) const MACHINE: &str = "machine";

/// A disk of a machine, as of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// What it is called in the repository.
    pub label: String,
    /// Where it was plugged in.
    pub slot: DiskSlot,
    /// The host's name for it.
    pub device: DeviceId,
    /// The live image of the machine at that time: with checkpoints, the top of a chain.
    pub path: HostPath,
    /// Where the disk's own image lay, the last of the chain.
    pub home: HostPath,
    /// Kind of the image.
    pub image: ImageKind,
}

/// A network adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRecord {
    /// Display name.
    pub name: String,
    /// Its address, where it is fixed.
    pub mac: Option<String>,
    /// Switch that it was connected to.
    pub switch: Option<String>,
}

/// A file of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationRecord {
    /// Its name, as in the point.
    pub name: String,
    /// What it is.
    pub kind: ConfigurationFileKind,
}

/// The role in a failover cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleRecord {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the group.
    pub group: String,
    /// Priority as the cluster counts it.
    pub priority: Option<u32>,
}

/// A machine, as of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Its id.
    pub vm: VmId,
    /// Its display name.
    pub name: String,
    /// Where its checkpoint was made.
    pub node: NodeName,
    /// Generation of that host.
    pub host_generation: Option<HostGeneration>,
    /// 1 (BIOS) or 2 (UEFI).
    pub generation: Option<u8>,
    /// Version of its configuration.
    pub version: Option<String>,
    /// Memory at start, in MiB.
    pub memory_mib: Option<u64>,
    /// Virtual processors.
    pub processors: Option<u64>,
    /// Folder of its configuration.
    pub root: Option<HostPath>,
    /// Its disks in this version.
    pub disks: Vec<DiskRecord>,
    /// Its adapters.
    pub nics: Vec<NicRecord>,
    /// Files of its configuration in this version.
    pub configuration: Vec<ConfigurationRecord>,
    /// Its role in a cluster.
    pub role: Option<RoleRecord>,
    /// Whether it has a virtual TPM, or is shielded: without its key protector it does not start elsewhere.
    pub needs_key_protector: bool,
    /// What was reached.
    pub consistency: Consistency,
    /// What was tried before and not reached.
    pub missed: Vec<MissedConsistency>,
    /// How long the guest stood still.
    pub still: StillFacts,
    /// When the checkpoint was made.
    pub checkpoint_at: Timestamp,
    /// What the checkpoint could not hold.
    pub skipped: Vec<SkippedDisk>,
    /// Disks that are not in this version, and why.
    pub not_protected: Vec<String>,
    /// Rules of eligibility that were not kept, as `CODE measured`.
    pub rules_broken: Vec<String>,
    /// Where change tracking starts from for the next version.
    pub tracking_point: Option<TrackingPointRef>,
}

impl MachineRecord {
    /// What a point says about its machine; `None` when it is not of a machine.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when it says something that this program does not understand.
    pub fn of_point(point: &RecoveryPoint) -> Result<Option<Self>> {
        let Some(value) = point.source.get(MACHINE) else {
            return Ok(None);
        };
        let record = Self::deserialize(value).map_err(|error| {
            let what = format!("the machine of {}@{}", point.name, point.sequence);
            Error::new(ErrorKind::Unsupported, what).caused_by(error)
        })?;
        Ok(Some(record))
    }

    /// A record of what is known when the checkpoint was made; disks and files are added as they arrive.
    pub(super) fn begun(
        machine: &VmFacts,
        checkpoint: &Checkpoint,
        not_protected: &[String],
    ) -> Self {
        let role = machine.role.as_ref().map(|role| RoleRecord {
            cluster: role.cluster.clone(),
            group: role.group.clone(),
            priority: role.priority,
        });
        let security = machine.security;
        let report = judge(&Evidence::of(machine));
        Self {
            vm: machine.id,
            name: machine.name.clone(),
            node: checkpoint.node.clone(),
            host_generation: machine.host_generation,
            generation: machine.generation,
            version: machine.version.map(|version| version.to_string()),
            memory_mib: machine.sizing.memory_mib,
            processors: machine.sizing.processors,
            root: machine.files.root.clone(),
            disks: Vec::new(),
            nics: machine.nics.iter().map(nic).collect(),
            configuration: Vec::new(),
            role,
            needs_key_protector: security.has_tpm == Some(true)
                || security.is_shielded == Some(true),
            consistency: checkpoint.reached,
            missed: checkpoint.missed.clone(),
            still: checkpoint.still,
            checkpoint_at: checkpoint.made_at,
            skipped: checkpoint.skipped.clone(),
            not_protected: not_protected.to_vec(),
            rules_broken: report
                .broken()
                .filter(|rule| rule.verdict == Verdict::No)
                .map(|rule| format!("{} {}", rule.code.as_str(), rule.measured))
                .collect(),
            tracking_point: None,
        }
    }

    /// The disk of a label.
    pub fn disk(&self, label: &str) -> Option<&DiskRecord> {
        self.disks.iter().find(|disk| disk.label == label)
    }
}

fn nic(nic: &host::facts::NicFacts) -> NicRecord {
    NicRecord {
        name: nic.name.clone(),
        mac: nic.mac.clone().filter(|_| nic.has_static_mac == Some(true)),
        switch: nic.switch.clone(),
    }
}

/// The live image of the machine's disk at a slot.
pub(super) fn live_image(machine: &VmFacts, slot: DiskSlot) -> Option<&HostPath> {
    let disk = machine.disks.iter().find(|disk| disk.slot == Some(slot));
    disk.and_then(|disk| disk.path())
}

/// The slots of disks that can be protected and are not among these.
pub(super) fn missing(
    machine: &VmFacts,
    exclusions: &[host::coverage::Exclusion],
    slots: &[DiskSlot],
) -> Vec<DiskSlot> {
    let coverage = plan_coverage(machine, exclusions);
    coverage
        .lines
        .iter()
        .filter(|line| matches!(line.coverage, DiskCoverage::Protected { .. }))
        .filter_map(|line| line.slot)
        .filter(|slot| !slots.contains(slot))
        .collect()
}
