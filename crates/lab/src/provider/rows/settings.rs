//! `Msvm_VirtualSystemSettingData` of systems and checkpoints, and what hangs on a system as default settings.

use std::time::Duration;

use wsman::cim::{CimInstance, CimValue};

use super::{Holder, Scene, datetime, interval, row};
use crate::estate::{
    CheckpointId, Drive, MergeState, VirtualMachine, VmGeneration, WindowsGeneration,
};
use crate::provider::identity::{self, VIRTUALIZATION};
use crate::provider::texts::Phrase;

/// Settings of a system or of a checkpoint.
pub(in crate::provider) fn settings_row(scene: &Scene<'_>, holder: &Holder<'_>) -> CimInstance {
    let settings = holder.settings();
    let guid = holder.guid_text();
    let extension = settings.configuration_extension();
    let folder = if holder.checkpoint.is_some() {
        "Snapshots"
    } else {
        "Virtual Machines"
    };
    let root = if holder.checkpoint.is_some() {
        &settings.checkpoint_root
    } else {
        &settings.configuration_root
    };
    let created = holder.checkpoint.map_or(holder.vm.created, |it| it.created);
    let parent = match holder.checkpoint {
        Some(checkpoint) => checkpoint.parent,
        None => holder.vm.current_parent,
    };
    let is_saved = match holder.checkpoint {
        Some(checkpoint) => checkpoint.has_memory,
        None => holder.vm.power == crate::estate::PowerState::Saved,
    };
    let mut instance = row(&VIRTUALIZATION, "Msvm_VirtualSystemSettingData")
        .with("Caption", scene.say(Phrase::SettingsOfMachine))
        .with("ConfigurationDataRoot", root.to_string())
        .with("ConfigurationFile", format!("{folder}\\{guid}.{extension}"))
        .with("ConfigurationID", guid.as_str())
        .with("CreationTime", datetime(created))
        .with("ElementName", settings.name.as_str())
        .with("InstanceID", identity::settings_id(&guid))
        .with("IsSaved", is_saved)
        .with("LogDataRoot", settings.configuration_root.to_string())
        .with("Notes", vec![settings.notes.as_str()])
        .with("Parent", parent_path(scene, parent))
        .with("SnapshotDataRoot", settings.checkpoint_root.to_string())
        .with("SuspendDataRoot", settings.configuration_root.to_string())
        .with("SwapFileDataRoot", settings.configuration_root.to_string())
        .with("UserSnapshotType", settings.user_checkpoints.value())
        .with("Version", settings.version.to_string())
        .with("VirtualSystemIdentifier", holder.vm.id.to_string())
        .with("VirtualSystemSubType", sub_type(settings.generation))
        .with("VirtualSystemType", holder.system_type());
    fixed(scene, holder, &mut instance);
    boot_order(scene, holder, &guid, &mut instance);
    if scene.host.windows.has_guest_state_file() {
        instance.set("GuestStateDataRoot", root.to_string());
        instance.set("GuestStateFile", format!("{folder}\\{guid}.vmgs"));
        instance.set("IsAutomaticSnapshot", false);
        instance.set("AutomaticSnapshotsEnabled", false);
    }
    if scene.host.windows >= WindowsGeneration::Server2022 {
        instance.set("GuestStateIsolationEnabled", false);
        instance.set("GuestStateIsolationMode", 0_u16);
        instance.set("GuestStateIsolationType", 0_u16);
    }
    if scene.host.windows < WindowsGeneration::Server2016 {
        instance.properties.remove("UserSnapshotType");
    }
    instance
}

/// `VirtualSystemSubType`.
pub(in crate::provider) fn sub_type(generation: VmGeneration) -> &'static str {
    match generation {
        VmGeneration::One => "Microsoft:Hyper-V:SubType:1",
        VmGeneration::Two => "Microsoft:Hyper-V:SubType:2",
    }
}

/// What the estate does not vary.
fn fixed(scene: &Scene<'_>, holder: &Holder<'_>, instance: &mut CimInstance) {
    let settings = holder.settings();
    let two = settings.generation == VmGeneration::Two;
    for (property, value) in [
        ("AutomaticCriticalErrorAction", 1_u16),
        ("AutomaticRecoveryAction", 3),
        ("AutomaticShutdownAction", 3),
        ("AutomaticStartupAction", settings.start_action.value()),
        ("AutomaticStartupActionSequenceNumber", 0),
        ("ConsoleMode", 0),
        ("DebugPortEnabled", 0),
        ("NetworkBootPreferredProtocol", 4096),
    ] {
        instance.set(property, value);
    }
    for (property, value) in [
        ("AllowFullSCSICommandSet", false),
        ("AllowReducedFcRedundancy", false),
        ("BIOSNumLock", false),
        ("EnableHibernation", false),
        ("GuestControlledCacheTypes", false),
        ("IncrementalBackupEnabled", false),
        ("LockOnDisconnect", false),
        ("PauseAfterBootFailure", false),
        (
            "SecureBootEnabled",
            settings.hardware.security.is_secure_boot,
        ),
        ("TurnOffOnGuestRestart", false),
        ("VirtualNumaEnabled", true),
    ] {
        instance.set(property, value);
    }
    instance.set(
        "AutomaticCriticalErrorActionTimeout",
        interval(Duration::from_secs(1800)),
    );
    instance.set("AutomaticStartupActionDelay", interval(Duration::ZERO));
    instance.set("BIOSGUID", format!("{{{}}}", holder.vm.id));
    instance.set("BIOSSerialNumber", settings.bios_serial.as_str());
    instance.set("BaseBoardSerialNumber", settings.bios_serial.as_str());
    instance.set("ChassisAssetTag", settings.bios_serial.as_str());
    instance.set("ChassisSerialNumber", settings.bios_serial.as_str());
    instance.set("HighMmioGapSize", 512_u64);
    instance.set("LowMmioGapSize", 128_u64);
    if two && settings.hardware.security.is_secure_boot {
        instance.set(
            "SecureBootTemplateId",
            "1734c6e8-3154-4dda-ba5f-a874cc483422",
        );
    }
    if scene.host.windows >= WindowsGeneration::Server2019 {
        instance.set("Architecture", "x64");
        instance.set("EnhancedSessionTransportType", 0_u16);
    }
}

/// The path of the checkpoint that something is based on, as the wire writes paths in strings.
fn parent_path(scene: &Scene<'_>, parent: Option<CheckpointId>) -> CimValue {
    parent.map_or(CimValue::Null, |id| {
        CimValue::from(identity::settings(id).to_text(Some(scene.host.name.as_str())))
    })
}

fn boot_order(scene: &Scene<'_>, holder: &Holder<'_>, guid: &str, instance: &mut CimInstance) {
    match holder.settings().generation {
        VmGeneration::One => instance.set("BootOrder", vec![1_u16, 2, 3, 0]),
        VmGeneration::Two => {
            let drives = holder.settings().hardware.drives();
            let paths: Vec<String> = drives
                .filter(|(_, drive)| {
                    matches!(drive, Drive::VirtualDisk(Some(_)) | Drive::Dvd(Some(_)))
                })
                .map(|(address, _)| {
                    let id = format!("{}\\B", identity::drive_id(guid, address));
                    identity::by_instance_id("Msvm_BootSourceSettingData", id)
                        .to_text(Some(scene.host.name.as_str()))
                })
                .collect();
            if !paths.is_empty() {
                instance.set("BootSourceOrder", paths);
            }
        }
    }
}

/// `Msvm_VirtualSystemExportSettingData`: what an export takes if nothing is said.
pub(in crate::provider) fn export_defaults_row(
    scene: &Scene<'_>,
    vm: &VirtualMachine,
) -> CimInstance {
    let mut instance = row(&VIRTUALIZATION, "Msvm_VirtualSystemExportSettingData")
        .with("BackupIntent", 0_u8)
        .with("CaptureLiveState", 1_u8)
        .with("CopySnapshotConfiguration", 0_u8)
        .with("CopyVmRuntimeInformation", true)
        .with("CopyVmStorage", true)
        .with("CreateVmExportSubdirectory", true)
        .with("ExportForLiveMigration", false)
        .with("InstanceID", identity::part_id(vm.id, "Export"));
    if scene.host.windows >= WindowsGeneration::Server2019 {
        instance.set("DisableDifferentialOfIgnoredStorage", false);
    }
    instance
}

/// `Msvm_DiskMergeSettingData`: whether merges of a VM run.
pub(in crate::provider) fn disk_merge_row(vm: &VirtualMachine) -> CimInstance {
    let enabled = match vm.merge_state {
        MergeState::Enabled => 1_u32,
        MergeState::Suspended => 0,
    };
    row(&VIRTUALIZATION, "Msvm_DiskMergeSettingData")
        .with("EnabledState", enabled)
        .with("InstanceID", identity::part_id(vm.id, identity::DISK_MERGE))
}

/// `Msvm_VirtualSystemManagementServiceSettingData` of the host.
pub(in crate::provider) fn service_settings_row(scene: &Scene<'_>) -> CimInstance {
    row(
        &VIRTUALIZATION,
        "Msvm_VirtualSystemManagementServiceSettingData",
    )
    .with(
        "DefaultExternalDataRoot",
        scene.host.default_configuration_root.to_string(),
    )
    .with(
        "DefaultVirtualHardDiskPath",
        scene.host.default_disk_root.to_string(),
    )
    .with("InstanceID", format!("Microsoft:{}", scene.host.name))
    .with("MaximumMacAddress", "00155D3800FF")
    .with("MinimumMacAddress", "00155D380000")
    .with("NumaSpanningEnabled", true)
}

/// `Msvm_VirtualSystemMigrationServiceSettingData` of the host.
pub(in crate::provider) fn migration_settings_row(scene: &Scene<'_>) -> CimInstance {
    row(
        &VIRTUALIZATION,
        "Msvm_VirtualSystemMigrationServiceSettingData",
    )
    .with("AuthenticationType", 1_u16)
    .with("EnableCompression", true)
    .with("EnableSmbTransport", false)
    .with("EnableVirtualSystemMigration", scene.host.allows_migration)
    .with(
        "InstanceID",
        format!("Microsoft:{}\\Migration", scene.host.name),
    )
    .with("MaximumActiveStorageMigration", 2_u32)
    .with("MaximumActiveVirtualSystemMigration", 2_u32)
}
