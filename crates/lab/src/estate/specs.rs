//! What a VM to be built is.
//!
//! **Invariant.** Plain values: nothing is checked before the estate builds it.

use std::collections::BTreeMap;

use super::hardware::{ControllerKind, DiskSharing};
use super::ids::VmId;
use super::vm::{IntegrationServices, UserCheckpointType, VmGeneration};
use super::{ConfigurationVersion, DiskFormat, DiskType, WindowsPath};
use crate::guest::GuestOs;

/// A virtual disk of a VM to be built.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    /// IDE or SCSI.
    pub controller: ControllerKind,
    /// Which controller of its kind.
    pub number: u32,
    /// Where on it.
    pub slot: u32,
    /// What it is.
    pub source: DiskSource,
    /// Whether other VMs share it.
    pub sharing: DiskSharing,
}

/// Where a disk comes from.
#[derive(Debug, Clone)]
pub enum DiskSource {
    /// Made empty in the VM's folder.
    New {
        /// File name.
        file: String,
        /// VHD or VHDX.
        format: DiskFormat,
        /// Fixed or dynamic.
        disk_type: DiskType,
        /// Bytes.
        size_bytes: u64,
    },
    /// A file that is there already.
    Existing(WindowsPath),
    /// A disk of the host handed through.
    PassThrough {
        /// Its number.
        number: u32,
        /// Bytes.
        size_bytes: u64,
    },
}

impl DiskSpec {
    /// A dynamic disk on the usual controller of a generation.
    pub fn new(generation: VmGeneration, slot: u32, file: &str, size_bytes: u64) -> Self {
        let format = if file.to_lowercase().ends_with(".vhd") {
            DiskFormat::Vhd
        } else {
            DiskFormat::Vhdx
        };
        Self {
            controller: match generation {
                VmGeneration::One => ControllerKind::Ide,
                VmGeneration::Two => ControllerKind::Scsi,
            },
            number: match generation {
                VmGeneration::One => slot / 2,
                VmGeneration::Two => 0,
            },
            slot: match generation {
                VmGeneration::One => slot % 2,
                VmGeneration::Two => slot,
            },
            source: DiskSource::New {
                file: file.to_owned(),
                format,
                disk_type: DiskType::Dynamic,
                size_bytes,
            },
            sharing: DiskSharing::Private,
        }
    }
}

/// A guest that writes, to be built.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// What runs in it.
    pub os: GuestOs,
    /// Where the workload begins on the disks.
    pub offset: u64,
    /// Records of ballast.
    pub ballast_records: u64,
    /// How much it works.
    pub transactions_per_tick: u32,
}

/// A VM to be built.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Its name.
    pub name: String,
    /// Its id; a new one when `None`.
    pub id: Option<VmId>,
    /// Its generation.
    pub generation: VmGeneration,
    /// Configuration version; the host's own when `None`.
    pub version: Option<ConfigurationVersion>,
    /// The folder that all its files go to.
    pub folder: WindowsPath,
    /// Its disks.
    pub disks: Vec<DiskSpec>,
    /// How many network adapters, on the host's first switch.
    pub adapters: u32,
    /// Memory at start in MiB.
    pub memory_mib: u64,
    /// Integration services.
    pub integration: IntegrationServices,
    /// What the guest tells of itself.
    pub guest_facts: BTreeMap<String, String>,
    /// Kind of user checkpoints.
    pub user_checkpoints: UserCheckpointType,
    /// The guest, if one is to write.
    pub guest: Option<GuestSpec>,
    /// Whether its guest has volumes by iSCSI.
    pub iscsi_in_guest: bool,
    /// Whether it has a virtual TPM.
    pub has_tpm: bool,
    /// How many virtual Fibre Channel ports it has.
    pub fibre_channel_ports: u32,
}

impl VmSpec {
    /// A VM without disks, whose guest has working integration services.
    pub fn new(name: &str, generation: VmGeneration, folder: WindowsPath) -> Self {
        Self {
            name: name.to_owned(),
            id: None,
            generation,
            version: None,
            folder,
            disks: Vec::new(),
            adapters: 1,
            memory_mib: 2048,
            integration: IntegrationServices::WORKING,
            guest_facts: BTreeMap::new(),
            user_checkpoints: UserCheckpointType::ProductionFallback,
            guest: None,
            iscsi_in_guest: false,
            has_tpm: false,
            fibre_channel_ports: 0,
        }
    }

    /// With another disk.
    #[must_use]
    pub fn with_disk(mut self, disk: DiskSpec) -> Self {
        self.disks.push(disk);
        self
    }

    /// With a guest that writes from an offset of its disks on.
    #[must_use]
    pub fn with_guest(mut self, os: GuestOs, offset: u64) -> Self {
        self.guest = Some(GuestSpec {
            os,
            offset,
            ballast_records: 256,
            transactions_per_tick: 1,
        });
        self
    }
}
