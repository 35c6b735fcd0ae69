//! `Msvm_ComputerSystem` of the host and of VMs, `Msvm_PlannedComputerSystem`, and their services.

use wsman::cim::{CimInstance, CimPath, CimValue};

use super::{Scene, datetime, never, row};
use crate::estate::{Activity, Realm, VirtualMachine};
use crate::provider::identity::{self, VIRTUALIZATION};
use crate::provider::texts::Phrase;

/// The host's own entry: `Name` is no GUID, `ProcessID` is nil, nothing is ever requested.
pub(in crate::provider) fn host_row(scene: &Scene<'_>) -> CimInstance {
    let host = scene.host;
    row(&VIRTUALIZATION, "Msvm_ComputerSystem")
        .with("Caption", scene.say(Phrase::HostingSystem))
        .with("CreationClassName", "Msvm_ComputerSystem")
        .with("Description", scene.say(Phrase::HostingSystemDescription))
        .with("ElementName", host.name.to_string())
        .with("EnabledDefault", 2_u16)
        .with("EnabledState", 2_u16)
        .with("HealthState", 5_u16)
        .with("HwThreadsPerCoreRealized", 0_u32)
        .with("Name", host.name.to_string())
        .with("NumberOfNumaNodes", 1_u16)
        .with("OperationalStatus", vec![2_u16])
        .with("RequestedState", 12_u16)
        .with("ResetCapability", 1_u16)
        .with(
            "StatusDescriptions",
            vec![scene.say(Phrase::OperatingNormally)],
        )
        .with("TimeOfLastConfigurationChange", datetime(host.booted))
        .with("TimeOfLastStateChange", datetime(host.booted))
        .with("TransitioningToState", 12_u16)
}

/// A VM or a planned system.
pub(in crate::provider) fn system_row(scene: &Scene<'_>, vm: &VirtualMachine) -> CimInstance {
    let class = identity::system_class(vm.realm);
    let status = vm.operational_status();
    let uptime = vm.running_since.map(|since| scene.now().since(since));
    let milliseconds = uptime.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX));
    let mut instance = row(&VIRTUALIZATION, class)
        .with("Caption", scene.say(Phrase::VirtualMachine))
        .with("CreationClassName", class)
        .with("Description", scene.say(Phrase::VirtualMachineDescription))
        .with("ElementName", vm.settings.name.as_str())
        .with("EnabledDefault", 2_u16)
        .with("EnabledState", vm.power.value())
        .with("HealthState", health(vm))
        .with("InstallDate", datetime(vm.created))
        .with("Name", vm.id.to_string())
        .with("OnTimeInMilliseconds", milliseconds)
        .with("OperationalStatus", status.clone())
        .with("ProcessID", process_id(vm))
        .with("RequestedState", vm.requested)
        .with("ResetCapability", 1_u16)
        .with("StatusDescriptions", descriptions(scene, &status))
        .with(
            "TimeOfLastConfigurationChange",
            datetime(vm.configuration_changed),
        )
        .with("TimeOfLastStateChange", datetime(vm.state_changed))
        .with("TransitioningToState", 12_u16);
    if vm.realm == Realm::Realized {
        for (property, value) in [
            ("EnhancedSessionModeState", 3_u16),
            ("FailedOverReplicationType", 0),
            ("LastReplicationType", 0),
            ("NumberOfNumaNodes", 1),
            ("ReplicationHealth", u16::from(vm.replication.value() != 0)),
            ("ReplicationMode", vm.replication.value()),
            (
                "ReplicationState",
                if vm.replication.value() == 0 { 0 } else { 3 },
            ),
        ] {
            instance.set(property, value);
        }
        instance.set("HwThreadsPerCoreRealized", 0_u32);
        // The host's VSS writer sets it; backups through WMI do not.
        instance.set("LastSuccessfulBackupTime", never());
        instance.set("LastReplicationTime", never());
        instance.set("LastApplicationConsistentReplicationTime", never());
    }
    instance
}

/// `HealthState`: 5 OK, 25 critical.
pub(in crate::provider) fn health(vm: &VirtualMachine) -> u16 {
    if vm.is_storage_lost { 25 } else { 5 }
}

/// The worker process of a VM; none while it is off.
fn process_id(vm: &VirtualMachine) -> CimValue {
    if !vm.power.holds_disks() {
        return CimValue::Null;
    }
    let low = u32::try_from(vm.id.0.as_u128() & 0x3fff).unwrap_or(0);
    CimValue::from(4 * (low + 100))
}

/// `StatusDescriptions`, in step with `OperationalStatus`.
pub(in crate::provider) fn descriptions(scene: &Scene<'_>, status: &[u16]) -> Vec<&'static str> {
    let words = |code: &u16| {
        let of = |activity: Activity| activity.operational_status() == Some(*code);
        let phrase = match *code {
            2 => Phrase::OperatingNormally,
            3 => Phrase::Degraded,
            _ if of(Activity::CreatingCheckpoint) => Phrase::CreatingSnapshot,
            _ if of(Activity::ApplyingCheckpoint) => Phrase::ApplyingSnapshot,
            _ if of(Activity::DeletingCheckpoint) => Phrase::DeletingSnapshot,
            _ if of(Activity::MergingDisks) => Phrase::MergingDisks,
            _ if of(Activity::Exporting) => Phrase::Exporting,
            _ => Phrase::Migrating,
        };
        scene.say(phrase)
    };
    status.iter().map(words).collect()
}

/// A service of the host: class and `Name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::provider) struct ServiceName {
    pub class: &'static str,
    pub name: &'static str,
}

/// The services of a host, by class.
pub(in crate::provider) const SERVICES: &[ServiceName] = &[
    ServiceName {
        class: "Msvm_VirtualSystemManagementService",
        name: "vmms",
    },
    ServiceName {
        class: "Msvm_VirtualSystemSnapshotService",
        name: "vssnapsvc",
    },
    ServiceName {
        class: "Msvm_VirtualSystemReferencePointService",
        name: "vsrefpointsvc",
    },
    ServiceName {
        class: "Msvm_ImageManagementService",
        name: "vhdsvc",
    },
    ServiceName {
        class: "Msvm_ReplicationService",
        name: "replicasvc",
    },
    ServiceName {
        class: "Msvm_VirtualSystemMigrationService",
        name: "migrationwmi",
    },
];

/// A service of the host.
pub(in crate::provider) fn service_row(scene: &Scene<'_>, service: ServiceName) -> CimInstance {
    let mut instance = row(&VIRTUALIZATION, service.class)
        .with("Caption", service.name)
        .with("CreationClassName", service.class)
        .with("ElementName", service.name)
        .with("EnabledDefault", 2_u16)
        .with("EnabledState", 5_u16)
        .with("HealthState", 5_u16)
        .with("Name", service.name)
        .with("OperationalStatus", vec![2_u16])
        .with("RequestedState", 12_u16)
        .with("StartMode", "Automatic")
        .with("Started", true)
        .with(
            "StatusDescriptions",
            vec![scene.say(Phrase::OperatingNormally)],
        )
        .with("SystemCreationClassName", "Msvm_ComputerSystem")
        .with("SystemName", scene.host.name.to_string());
    if service.class == "Msvm_VirtualSystemMigrationService" {
        let migrating = scene
            .systems()
            .filter(|vm| {
                vm.activity
                    .is_some_and(|(activity, _)| activity == Activity::Migrating)
            })
            .count();
        instance.set("ActiveStorageMigrationCount", 0_u32);
        instance.set(
            "ActiveVirtualSystemMigrationCount",
            u32::try_from(migrating).unwrap_or(u32::MAX),
        );
    }
    instance
}

/// Path of a service.
pub(in crate::provider) fn service_path(scene: &Scene<'_>, service: ServiceName) -> CimPath {
    CimPath::new(&*VIRTUALIZATION, service.class)
        .with("CreationClassName", service.class)
        .with("Name", service.name)
        .with("SystemCreationClassName", "Msvm_ComputerSystem")
        .with("SystemName", scene.host.name.to_string())
}

/// A virtual switch of the host.
pub(in crate::provider) fn switch_row(
    scene: &Scene<'_>,
    switch: &crate::estate::VirtualSwitch,
) -> CimInstance {
    row(&VIRTUALIZATION, "Msvm_VirtualEthernetSwitch")
        .with("Caption", "Virtual Switch")
        .with("CreationClassName", "Msvm_VirtualEthernetSwitch")
        .with("ElementName", switch.name.to_string())
        .with("EnabledDefault", 2_u16)
        .with("EnabledState", 5_u16)
        .with("HealthState", 5_u16)
        .with("InstallDate", datetime(scene.host.booted))
        .with("MaxIOVOffloads", 0_u32)
        .with("MaxVMQOffloads", 0_u32)
        .with("Name", switch.device.to_string())
        .with("OperationalStatus", vec![2_u16])
        .with("RequestedState", 12_u16)
        .with(
            "StatusDescriptions",
            vec![scene.say(Phrase::OperatingNormally)],
        )
}
