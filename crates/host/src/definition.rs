//! Words of making machines: from stored configuration, or from a description.

use serde::{Deserialize, Serialize};

use crate::facts::{ControllerKind, DiskSlot};
use crate::ids::{NodeName, VmId};
use crate::path::HostPath;

/// Whether a machine comes back as itself or as a copy of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// With its own id, which must not exist on that host or in its cluster.
    Keep,
    /// With a new id.
    New,
}

/// What a network adapter is connected to afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicConnection {
    /// As stored, where a switch of that name is on the host; else disconnected, and told.
    AsStored,
    /// To the switch of this name.
    Switch(String),
    /// To nothing.
    Disconnected,
}

/// A machine to register from its stored configuration, whose files are on the host already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRequest {
    /// The node that is to run it.
    pub node: NodeName,
    /// The configuration (`.vmcx`, or `.xml` of old).
    pub configuration: HostPath,
    /// Whether it keeps its id.
    pub identity: Identity,
    /// Its name, where another one is wanted.
    pub name: Option<String>,
    /// Where each disk's image lies now. A disk of the configuration that is not here is removed from it, and told.
    pub disks: Vec<(DiskSlot, HostPath)>,
    /// What adapters are connected to.
    pub nics: NicConnection,
    /// Whether a stored memory is kept or dropped: dropped, the machine starts as after a power cut.
    pub saved_state: SavedState,
}

/// What becomes of a stored memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedState {
    /// Dropped.
    Drop,
    /// Kept.
    Keep,
}

/// A machine to make from a description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Its name.
    pub name: String,
    /// 1 (BIOS) or 2 (UEFI).
    pub generation: u8,
    /// Folder of its configuration.
    pub root: Option<HostPath>,
    /// Memory at start, in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub processors: u64,
    /// Its disks: slot and image.
    pub disks: Vec<DiskSpec>,
    /// Its network adapters.
    pub nics: Vec<NicSpec>,
    /// Free text.
    pub notes: Option<String>,
}

/// A disk of a machine to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Where it is plugged in.
    pub slot: DiskSlot,
    /// Its image.
    pub path: HostPath,
}

/// A network adapter of a machine to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// Display name.
    pub name: String,
    /// Fixed address without separators; `None` for a dynamic one.
    pub mac: Option<String>,
    /// Switch to connect it to; `None` leaves it disconnected.
    pub switch: Option<String>,
}

/// A machine that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Defined {
    /// Its id.
    pub vm: VmId,
    /// Where it was made.
    pub node: NodeName,
    /// What differs from what was asked: disks removed, adapters disconnected.
    pub notes: Vec<String>,
}

/// Where an exported machine goes, and what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRequest {
    /// The folder on the host.
    pub folder: HostPath,
    /// Whether disks go with it.
    pub storage: ExportStorage,
}

/// Whether disks are part of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExportStorage {
    /// With the disks.
    Include,
    /// The configuration alone. The host suspends merging of the machine's disks by that: it is switched on again afterwards.
    Leave,
}

/// Why a description cannot be made, found before anything is asked of a host.
pub fn spec_faults(spec: &MachineSpec) -> Vec<String> {
    let mut faults = Vec::new();
    if spec.name.trim().is_empty() {
        faults.push("the machine has no name".to_owned());
    }
    if !matches!(spec.generation, 1 | 2) {
        faults.push(format!("there is no generation {}", spec.generation));
    }
    if spec.memory_mib == 0 || spec.processors == 0 {
        faults.push("a machine needs memory and a processor".to_owned());
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        let slot = disk.slot;
        let is_twice = spec
            .disks
            .iter()
            .take(index)
            .any(|other| other.slot == slot);
        if is_twice {
            faults.push(format!("two disks at {slot}"));
        }
        let is_known = match slot.controller {
            ControllerKind::Ide => spec.generation == 1 && slot.number < 2 && slot.location < 2,
            ControllerKind::Scsi => slot.number < 4 && slot.location < 64,
            ControllerKind::Pmem | ControllerKind::Virtio | ControllerKind::Other => false,
        };
        if !is_known {
            faults.push(format!(
                "generation {} has no place {slot}",
                spec.generation
            ));
        }
    }
    faults
}
