//! How the estate's objects are called on the wire: paths, InstanceIDs, DeviceIDs, and back.
//!
//! ```text
//!   Microsoft:GUID                               settings of a VM (its id) or of a checkpoint (its id)
//!   Microsoft:GUID\CONTROLLER\NUMBER             a controller
//!   Microsoft:GUID\CONTROLLER\NUMBER\SLOT\D      a drive, \L its medium, …\B a boot source
//!   Microsoft:GUID\DEVICE                        an adapter, memory, a service; \C an adapter's connection
//! ```
//!
//! **Invariants.** Ids compare without case; doubled backslashes, as hosts write them in paths, are read as single ones.

use std::fmt::Display;
use std::sync::LazyLock;

use uuid::Uuid;
use wsman::cim::{CimPath, Namespace};

use crate::estate::{
    CheckpointId, DeviceId, DriveAddress, HostName, JobClass, JobId, Realm, ReferencePointId, VmId,
};

/// `root/virtualization/v2`.
pub static VIRTUALIZATION: LazyLock<Namespace> =
    LazyLock::new(|| Namespace::new("root/virtualization/v2"));
/// `root/MSCluster`.
pub static CLUSTER: LazyLock<Namespace> = LazyLock::new(|| Namespace::new("root/MSCluster"));
/// `root/cimv2`, of which the lab has the few classes that clients of Hyper-V ask for.
pub static CIMV2: LazyLock<Namespace> = LazyLock::new(|| Namespace::new("root/cimv2"));

/// Memory of a VM, as part of an InstanceID.
pub(super) const MEMORY: &str = "4764334D-E001-4176-82EE-5594EC9B530E";
/// Processors of a VM, as part of an InstanceID.
pub(super) const PROCESSOR: &str = "B637F346-6A0E-4DEC-AF52-BD70CB80A21D";
/// The VLAN feature of a connection, as part of an InstanceID.
pub(super) const VLAN: &str = "952C5004-4465-451C-8CB8-FA9AB382B773";
/// Security settings of a VM, as part of an InstanceID.
pub(super) const SECURITY: &str = "58F75A6D-D949-4320-99E1-A2A2576D581C";
/// Merge settings of a VM.
pub(super) const DISK_MERGE: &str = "DeviceSpecificData";

/// An integration service: its classes and its part of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServiceKind {
    Vss,
    Kvp,
    Shutdown,
    Heartbeat,
    TimeSync,
    GuestServices,
}

impl ServiceKind {
    pub(super) const ALL: [Self; 6] = [
        Self::Vss,
        Self::Kvp,
        Self::Shutdown,
        Self::Heartbeat,
        Self::TimeSync,
        Self::GuestServices,
    ];

    /// Class of the device.
    pub(super) fn device_class(self) -> &'static str {
        match self {
            Self::Vss => "Msvm_VssComponent",
            Self::Kvp => "Msvm_KvpExchangeComponent",
            Self::Shutdown => "Msvm_ShutdownComponent",
            Self::Heartbeat => "Msvm_HeartbeatComponent",
            Self::TimeSync => "Msvm_TimeSyncComponent",
            Self::GuestServices => "Msvm_GuestServiceInterfaceComponent",
        }
    }

    /// Class of the settings.
    pub(super) fn settings_class(self) -> &'static str {
        match self {
            Self::Vss => "Msvm_VssComponentSettingData",
            Self::Kvp => "Msvm_KvpExchangeComponentSettingData",
            Self::Shutdown => "Msvm_ShutdownComponentSettingData",
            Self::Heartbeat => "Msvm_HeartbeatComponentSettingData",
            Self::TimeSync => "Msvm_TimeSyncComponentSettingData",
            Self::GuestServices => "Msvm_GuestServiceInterfaceComponentSettingData",
        }
    }

    /// Part of ids.
    pub(super) fn guid(self) -> &'static str {
        match self {
            Self::Vss => "5CED1297-4598-4915-A5FC-AD21BB4D02A4",
            Self::Kvp => "2A34B1C2-FD73-4043-8A5B-DD2159BC743F",
            Self::Shutdown => "9F8233AC-BE49-4C79-8EE3-E7E1985B2077",
            Self::Heartbeat => "84EAAE65-2F2E-45F5-9BB5-0E857DC8EB47",
            Self::TimeSync => "2497F4DE-E9FA-4204-80E4-4B75C46419C0",
            Self::GuestServices => "6C09BB55-D683-4DA0-8931-C9BF705F6480",
        }
    }
}

/// `Microsoft:GUID`.
pub(super) fn settings_id(guid: impl Display) -> String {
    format!("Microsoft:{guid}")
}

/// `Microsoft:GUID\part`.
pub(super) fn part_id(guid: impl Display, part: impl Display) -> String {
    format!("Microsoft:{guid}\\{part}")
}

/// InstanceID of a drive.
pub(super) fn drive_id(guid: impl Display, address: DriveAddress) -> String {
    format!("Microsoft:{guid}\\{address}\\D")
}

/// InstanceID of a drive's medium.
pub(super) fn medium_id(guid: impl Display, address: DriveAddress) -> String {
    format!("Microsoft:{guid}\\{address}\\L")
}

/// InstanceID of a controller.
pub(super) fn controller_id(guid: impl Display, controller: DeviceId, number: u32) -> String {
    format!("Microsoft:{guid}\\{controller}\\{number}")
}

/// An instance of `root/virtualization/v2` whose only key is InstanceID.
pub(super) fn by_instance_id(class: &str, id: impl Into<String>) -> CimPath {
    CimPath::new(&*VIRTUALIZATION, class).with("InstanceID", id.into())
}

/// A VM or planned system.
pub(super) fn system(realm: Realm, id: VmId) -> CimPath {
    let class = system_class(realm);
    CimPath::new(&*VIRTUALIZATION, class)
        .with("CreationClassName", class)
        .with("Name", id.to_string())
}

/// Class of a VM or planned system.
pub(super) fn system_class(realm: Realm) -> &'static str {
    match realm {
        Realm::Realized => "Msvm_ComputerSystem",
        Realm::Planned => "Msvm_PlannedComputerSystem",
    }
}

/// The host's own `Msvm_ComputerSystem`.
pub(super) fn host_system(host: &HostName) -> CimPath {
    CimPath::new(&*VIRTUALIZATION, "Msvm_ComputerSystem")
        .with("CreationClassName", "Msvm_ComputerSystem")
        .with("Name", host.to_string())
}

/// Settings of a VM or checkpoint.
pub(super) fn settings(guid: impl Display) -> CimPath {
    by_instance_id("Msvm_VirtualSystemSettingData", settings_id(guid))
}

/// A device of a VM.
pub(super) fn device(class: &str, vm: VmId, part: impl Display) -> CimPath {
    CimPath::new(&*VIRTUALIZATION, class)
        .with("CreationClassName", class)
        .with("DeviceID", part_id(vm, part))
        .with("SystemCreationClassName", "Msvm_ComputerSystem")
        .with("SystemName", vm.to_string())
}

/// A job.
pub(super) fn job(class: JobClass, id: JobId) -> CimPath {
    by_instance_id(job_class(class), id.to_string())
}

/// Class of a job.
pub(super) fn job_class(class: JobClass) -> &'static str {
    match class {
        JobClass::Concrete => "Msvm_ConcreteJob",
        JobClass::Storage => "Msvm_StorageJob",
        JobClass::Migration => "Msvm_MigrationJob",
    }
}

/// A reference point.
pub(super) fn reference_point(vm: VmId, id: ReferencePointId) -> CimPath {
    by_instance_id("Msvm_VirtualSystemReferencePoint", id.to_string())
        .with("VirtualSystemIdentifier", vm.to_string())
}

/// A switch.
pub(super) fn switch(id: DeviceId) -> CimPath {
    CimPath::new(&*VIRTUALIZATION, "Msvm_VirtualEthernetSwitch")
        .with("CreationClassName", "Msvm_VirtualEthernetSwitch")
        .with("Name", id.to_string())
}

/// What stands in an InstanceID or DeviceID: the GUID in front and the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartedId {
    /// Of a VM or checkpoint.
    pub guid: Uuid,
    /// What follows, upper case, with single backslashes; empty for settings.
    pub rest: String,
}

impl PartedId {
    /// Reads `Microsoft:GUID` or `Microsoft:GUID\…`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let single = text.replace("\\\\", "\\");
        let behind = single
            .get(..10)
            .filter(|head| head.eq_ignore_ascii_case("Microsoft:"));
        let behind = behind.and_then(|_| single.get(10..))?;
        let (guid, rest) = behind.split_once('\\').unwrap_or((behind, ""));
        Some(Self {
            guid: Uuid::try_parse(guid).ok()?,
            rest: rest.to_uppercase(),
        })
    }

    /// `CONTROLLER\NUMBER\SLOT\D` or `…\L`: the place and the letter.
    pub(super) fn drive(&self) -> Option<(DriveAddress, char)> {
        let mut parts = self.rest.split('\\');
        let controller = Uuid::try_parse(parts.next()?).ok()?;
        let number = parts.next()?.parse().ok()?;
        let slot = parts.next()?.parse().ok()?;
        let letter = parts.next()?.chars().next()?;
        let address = DriveAddress {
            controller: DeviceId(controller),
            number,
            slot,
        };
        Some((address, letter))
    }

    /// `CONTROLLER\NUMBER`.
    pub(super) fn controller(&self) -> Option<(DeviceId, u32)> {
        let mut parts = self.rest.split('\\');
        let controller = Uuid::try_parse(parts.next()?).ok()?;
        let number = parts.next()?.parse().ok()?;
        parts
            .next()
            .is_none()
            .then_some((DeviceId(controller), number))
    }

    /// `DEVICE` or `DEVICE\C…`.
    pub(super) fn device(&self) -> Option<DeviceId> {
        let first = self.rest.split('\\').next()?;
        Uuid::try_parse(first).ok().map(DeviceId)
    }

    /// As the id of a checkpoint.
    pub(super) fn checkpoint(&self) -> CheckpointId {
        CheckpointId(self.guid)
    }

    /// As the id of a VM.
    pub(super) fn vm(&self) -> VmId {
        VmId(self.guid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_in_both_spellings() {
        let guid = Uuid::from_u128(7);
        let address = DriveAddress {
            controller: DeviceId(Uuid::from_u128(9)),
            number: 1,
            slot: 12,
        };
        let id = medium_id(VmId(guid), address);
        for text in [id.clone(), id.replace('\\', "\\\\"), id.to_lowercase()] {
            let parted = PartedId::parse(&text).expect("an id");
            assert_eq!(parted.guid, guid);
            assert_eq!(parted.drive(), Some((address, 'L')));
            assert_eq!(parted.controller(), None);
        }
        let parted = PartedId::parse(&controller_id(VmId(guid), address.controller, 1));
        let controller = parted.and_then(|id| id.controller());
        assert_eq!(controller, Some((address.controller, 1)));
        for text in [
            "",
            "Microsoft:",
            "Microsoft:x",
            "Other:00000000-0000-0000-0000-000000000007",
            "Microsof\u{20ac}:",
        ] {
            assert_eq!(PartedId::parse(text), None, "{text}");
        }
    }
}
