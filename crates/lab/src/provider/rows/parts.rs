//! The components of a holder's settings: controllers, drives, media, adapters, memory, services.
//!
//! ```text
//!   Holder ─► Part (borrowed from the estate) ─► class, InstanceID ─► row (see part_rows)
//! ```
//!
//! **Invariant.** A part's InstanceID is unique in its holder, and tells class and place.

use uuid::Uuid;
use wsman::cim::{CimInstance, CimPath};

use super::{Holder, Scene, part_rows};
use crate::Result;
use crate::estate::{
    AdapterKind, Controller, Drive, DriveAddress, FibreChannelPort, Medium, NetworkAdapter,
    VmGeneration, WindowsGeneration, WindowsPath,
};
use crate::provider::identity::{self, PartedId, ServiceKind};

/// One component.
#[derive(Clone, Copy)]
pub(in crate::provider) enum Part<'a> {
    Memory,
    Processor,
    Controller(&'a Controller),
    Drive(DriveAddress, &'a Controller, &'a Drive),
    Medium(DriveAddress, &'a Medium),
    Image(DriveAddress, &'a WindowsPath),
    BootSource(DriveAddress),
    Adapter(&'a NetworkAdapter),
    Connection(&'a NetworkAdapter),
    Vlan(&'a NetworkAdapter, u16),
    FcPort(&'a FibreChannelPort),
    FcConnection(&'a FibreChannelPort),
    Service(ServiceKind),
    Security,
}

/// Classes that parts can have.
pub(in crate::provider) const CLASSES: &[&str] = &[
    "Msvm_BootSourceSettingData",
    "Msvm_EmulatedEthernetPortSettingData",
    "Msvm_EthernetPortAllocationSettingData",
    "Msvm_EthernetSwitchPortVlanSettingData",
    "Msvm_FcPortAllocationSettingData",
    "Msvm_GuestServiceInterfaceComponentSettingData",
    "Msvm_HeartbeatComponentSettingData",
    "Msvm_KvpExchangeComponentSettingData",
    "Msvm_MemorySettingData",
    "Msvm_ProcessorSettingData",
    "Msvm_ResourceAllocationSettingData",
    "Msvm_SecuritySettingData",
    "Msvm_ShutdownComponentSettingData",
    "Msvm_StorageAllocationSettingData",
    "Msvm_SyntheticEthernetPortSettingData",
    "Msvm_SyntheticFcPortSettingData",
    "Msvm_TimeSyncComponentSettingData",
    "Msvm_VssComponentSettingData",
];

impl<'a> Part<'a> {
    /// Every component of a holder.
    pub(in crate::provider) fn all_of(scene: &Scene<'_>, holder: &Holder<'a>) -> Vec<Self> {
        let settings = holder.settings();
        let hardware = &settings.hardware;
        let mut parts = vec![Self::Memory, Self::Processor];
        for controller in &hardware.controllers {
            parts.push(Self::Controller(controller));
            for (slot, drive) in &controller.drives {
                let address = controller.address(*slot);
                parts.push(Self::Drive(address, controller, drive));
                match drive {
                    Drive::VirtualDisk(Some(medium)) => parts.push(Self::Medium(address, medium)),
                    Drive::Dvd(Some(path)) => parts.push(Self::Image(address, path)),
                    Drive::VirtualDisk(None) | Drive::Dvd(None) | Drive::PassThrough(_) => continue,
                }
                if settings.generation == VmGeneration::Two {
                    parts.push(Self::BootSource(address));
                }
            }
        }
        for adapter in &hardware.adapters {
            parts.push(Self::Adapter(adapter));
            parts.push(Self::Connection(adapter));
            if let Some(vlan) = adapter.vlan {
                parts.push(Self::Vlan(adapter, vlan));
            }
        }
        for port in &hardware.fibre_channel {
            parts.push(Self::FcPort(port));
            parts.push(Self::FcConnection(port));
        }
        parts.extend(ServiceKind::ALL.into_iter().map(Self::Service));
        if scene.host.windows >= WindowsGeneration::Server2016 {
            parts.push(Self::Security);
        }
        parts
    }

    /// The component with an InstanceID.
    pub(in crate::provider) fn find(
        scene: &Scene<'_>,
        holder: &Holder<'a>,
        id: &PartedId,
    ) -> Option<Self> {
        let guid = holder.guid_text();
        let wanted = |part: &Self| {
            let found = PartedId::parse(&part.instance_id(&guid));
            found.is_some_and(|it| it == *id)
        };
        Self::all_of(scene, holder).into_iter().find(wanted)
    }

    /// Its class.
    pub(in crate::provider) fn class(&self) -> &'static str {
        match self {
            Self::Memory => "Msvm_MemorySettingData",
            Self::Processor => "Msvm_ProcessorSettingData",
            Self::Controller(_) | Self::Drive(..) => "Msvm_ResourceAllocationSettingData",
            Self::Medium(..) | Self::Image(..) => "Msvm_StorageAllocationSettingData",
            Self::BootSource(_) => "Msvm_BootSourceSettingData",
            Self::Adapter(adapter) => match adapter.kind {
                AdapterKind::Synthetic => "Msvm_SyntheticEthernetPortSettingData",
                AdapterKind::Emulated => "Msvm_EmulatedEthernetPortSettingData",
            },
            Self::Connection(_) => "Msvm_EthernetPortAllocationSettingData",
            Self::Vlan(..) => "Msvm_EthernetSwitchPortVlanSettingData",
            Self::FcPort(_) => "Msvm_SyntheticFcPortSettingData",
            Self::FcConnection(_) => "Msvm_FcPortAllocationSettingData",
            Self::Service(kind) => kind.settings_class(),
            Self::Security => "Msvm_SecuritySettingData",
        }
    }

    /// Its InstanceID in a holder.
    pub(in crate::provider) fn instance_id(&self, guid: &str) -> String {
        match self {
            Self::Memory => identity::part_id(guid, identity::MEMORY),
            Self::Processor => identity::part_id(guid, format_args!("{}\\0", identity::PROCESSOR)),
            Self::Controller(it) => identity::controller_id(guid, it.device, it.number),
            Self::Drive(address, ..) => identity::drive_id(guid, *address),
            Self::Medium(address, _) | Self::Image(address, _) => {
                identity::medium_id(guid, *address)
            }
            Self::BootSource(address) => format!("{}\\B", identity::drive_id(guid, *address)),
            Self::Adapter(it) => identity::part_id(guid, it.device),
            Self::Connection(it) => identity::part_id(guid, format_args!("{}\\C", it.device)),
            Self::Vlan(it, _) => {
                identity::part_id(guid, format_args!("{}\\C\\{}", it.device, identity::VLAN))
            }
            Self::FcPort(it) => identity::part_id(guid, it.device),
            Self::FcConnection(it) => identity::part_id(guid, format_args!("{}\\C", it.device)),
            Self::Service(kind) => identity::part_id(guid, kind.guid()),
            Self::Security => identity::part_id(guid, identity::SECURITY),
        }
    }

    /// Its path in a holder.
    pub(in crate::provider) fn path(&self, guid: &str) -> CimPath {
        identity::by_instance_id(self.class(), self.instance_id(guid))
    }

    /// Whether it hangs on the settings themselves (`Msvm_VirtualSystemSettingDataComponent`), not on another component.
    pub(in crate::provider) fn is_direct(&self) -> bool {
        !matches!(self, Self::Vlan(..) | Self::BootSource(_))
    }

    /// Its instance.
    pub(in crate::provider) fn row(
        &self,
        scene: &Scene<'_>,
        holder: &Holder<'_>,
    ) -> Result<CimInstance> {
        part_rows::row_of(self, scene, holder)
    }
}

/// Whether a device id stands for all IDE controllers.
pub(super) fn is_ide(device: Uuid) -> bool {
    device == crate::estate::IDE_CONTROLLER.0
}
