//! What a VM is made of: controllers, drives, adapters, memory, security.
//!
//! ```text
//!   controller ─ slot ─► drive ─► medium (a file), a disk of the host, or nothing
//! ```
//!
//! **Invariants.** A drive's slot is unique on its controller. IDE has two controllers with two slots each, SCSI up to four
//! controllers with 64; generation 2 has no IDE.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::ids::{DeviceId, DriveAddress, SwitchName};
use super::path::WindowsPath;

/// The device id of IDE controllers.
pub const IDE_CONTROLLER: DeviceId =
    DeviceId(Uuid::from_u128(0x83F8638B_8DCA_4152_9EDA_2CA8B33039B4));

/// Virtual hardware.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hardware {
    /// Virtual processors.
    pub processors: u32,
    /// Memory.
    pub memory: Memory,
    /// Storage controllers with what sits on them.
    pub controllers: Vec<Controller>,
    /// Network adapters.
    pub adapters: Vec<NetworkAdapter>,
    /// Virtual Fibre Channel ports: disks behind them are invisible to the host.
    pub fibre_channel: Vec<FibreChannelPort>,
    /// Secure boot, TPM, shielding.
    pub security: Security,
}

/// Memory in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Memory {
    /// At start.
    pub startup_mib: u64,
    /// At least, when dynamic.
    pub minimum_mib: u64,
    /// At most, when dynamic.
    pub maximum_mib: u64,
    /// Whether the host may change it while the VM runs.
    pub is_dynamic: bool,
}

/// Kinds of storage controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ControllerKind {
    /// Emulated, generation 1: two of them, two slots each.
    Ide,
    /// Synthetic: up to four, 64 slots each.
    Scsi,
}

impl ControllerKind {
    /// How many drives fit.
    pub fn slots(self) -> u32 {
        match self {
            Self::Ide => 2,
            Self::Scsi => 64,
        }
    }

    /// How many controllers fit.
    pub fn limit(self) -> u32 {
        match self {
            Self::Ide => 2,
            Self::Scsi => 4,
        }
    }
}

/// A storage controller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Controller {
    /// IDE or SCSI.
    pub kind: ControllerKind,
    /// Its device id: the same for all IDE controllers, an own one for each SCSI controller.
    pub device: DeviceId,
    /// Which of its kind, from 0.
    pub number: u32,
    /// Drives by slot.
    pub drives: BTreeMap<u32, Drive>,
}

/// A drive of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Drive {
    /// Holds a virtual hard disk, or nothing.
    VirtualDisk(Option<Medium>),
    /// A disk of the host handed through.
    PassThrough(PhysicalDisk),
    /// Optical, with or without an image.
    Dvd(Option<WindowsPath>),
}

impl std::hash::Hash for WindowsPath {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.to_string().to_lowercase().hash(state);
    }
}

/// A virtual hard disk in its drive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Medium {
    /// The file that the VM opens: the live leaf, or in a checkpoint the frozen file.
    pub path: WindowsPath,
    /// Whether other VMs may open it too.
    pub sharing: DiskSharing,
    /// Quality of service.
    pub iops_limit: u64,
}

/// Whether a virtual disk is shared between VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskSharing {
    /// It is the VM's own.
    Private,
    /// A shared VHDX (2012 R2): persistent reservations, in no checkpoint of the VM.
    SharedVhdx,
    /// A VHD set (2016 on): only a checkpoint of the collection freezes it.
    VhdSet,
}

/// A disk of the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PhysicalDisk {
    /// `\\.\PHYSICALDRIVEn`.
    pub number: u32,
    /// Bytes.
    pub size_bytes: u64,
    /// The device id of its `Msvm_DiskDrive`.
    pub device: DeviceId,
}

/// A network adapter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetworkAdapter {
    /// Its device id.
    pub device: DeviceId,
    /// Display name.
    pub name: String,
    /// Synthetic, or emulated (generation 1).
    pub kind: AdapterKind,
    /// Twelve hexadecimal digits.
    pub mac_address: String,
    /// Whether the address was given by an operator.
    pub is_mac_static: bool,
    /// The switch, if connected.
    pub switch: Option<SwitchName>,
    /// VLAN, if set.
    pub vlan: Option<u16>,
    /// Addresses in the guest, as integration services tell.
    pub addresses: Vec<String>,
}

/// Kinds of network adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AdapterKind {
    /// Through the VM bus.
    Synthetic,
    /// A DEC 21140 in software.
    Emulated,
}

/// A virtual Fibre Channel port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FibreChannelPort {
    /// Its device id.
    pub device: DeviceId,
    /// World-wide port name.
    pub world_wide_port_name: String,
}

/// What guards a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Security {
    /// Secure boot (generation 2).
    pub is_secure_boot: bool,
    /// A virtual TPM; its secrets lie in `.vmgs`, bound to a key protector.
    pub has_tpm: bool,
    /// Shielded: the host's administrator is locked out.
    pub is_shielded: bool,
}

impl Hardware {
    /// A VM without controllers and adapters.
    pub fn minimal() -> Self {
        Self {
            processors: 1,
            memory: Memory {
                startup_mib: 1024,
                minimum_mib: 512,
                maximum_mib: 1_048_576,
                is_dynamic: false,
            },
            controllers: Vec::new(),
            adapters: Vec::new(),
            fibre_channel: Vec::new(),
            security: Security::default(),
        }
    }

    /// Every drive with its place.
    pub fn drives(&self) -> impl Iterator<Item = (DriveAddress, &Drive)> {
        self.controllers.iter().flat_map(|controller| {
            controller
                .drives
                .iter()
                .map(|(slot, drive)| (controller.address(*slot), drive))
        })
    }

    /// Every virtual hard disk with its place.
    pub fn disks(&self) -> impl Iterator<Item = (DriveAddress, &Medium)> {
        self.drives().filter_map(|(address, drive)| match drive {
            Drive::VirtualDisk(Some(medium)) => Some((address, medium)),
            _ => None,
        })
    }

    /// Every virtual hard disk that a checkpoint of the VM freezes.
    pub fn own_disks(&self) -> impl Iterator<Item = (DriveAddress, &Medium)> {
        self.disks()
            .filter(|(_, medium)| medium.sharing == DiskSharing::Private)
    }

    /// The drive at a place.
    pub fn drive(&self, address: DriveAddress) -> Option<&Drive> {
        self.controllers
            .iter()
            .find(|it| it.device == address.controller && it.number == address.number)?
            .drives
            .get(&address.slot)
    }

    pub(super) fn drive_mut(&mut self, address: DriveAddress) -> Option<&mut Drive> {
        self.controllers
            .iter_mut()
            .find(|it| it.device == address.controller && it.number == address.number)?
            .drives
            .get_mut(&address.slot)
    }

    pub(super) fn disks_mut(&mut self) -> impl Iterator<Item = (DriveAddress, &mut Medium)> {
        self.controllers.iter_mut().flat_map(|controller| {
            let (device, number) = (controller.device, controller.number);
            controller
                .drives
                .iter_mut()
                .filter_map(move |(slot, drive)| {
                    let address = DriveAddress {
                        controller: device,
                        number,
                        slot: *slot,
                    };
                    match drive {
                        Drive::VirtualDisk(Some(medium)) => Some((address, medium)),
                        _ => None,
                    }
                })
        })
    }

    /// The virtual disk at a place.
    pub fn medium(&self, address: DriveAddress) -> Option<&Medium> {
        match self.drive(address)? {
            Drive::VirtualDisk(medium) => medium.as_ref(),
            _ => None,
        }
    }
}

impl Controller {
    /// The place of a slot.
    pub fn address(&self, slot: u32) -> DriveAddress {
        DriveAddress {
            controller: self.device,
            number: self.number,
            slot,
        }
    }
}
