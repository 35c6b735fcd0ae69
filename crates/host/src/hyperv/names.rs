//! Names of namespaces, classes and the settings that are written, with their types.

use wsman::cim::embedded::{self, Extent};
use wsman::cim::{CimInstance, CimType, CimValue, ClassName, Namespace};
use wsman::schema::ClassSchema;

use super::cim::told;
use crate::Result;

/// `root/virtualization/v2`.
pub(super) fn virtualization() -> Namespace {
    Namespace::new("root/virtualization/v2")
}

/// `root/MSCluster`.
pub(super) fn clustering() -> Namespace {
    Namespace::new("root/MSCluster")
}

/// `root/cimv2`.
pub(super) fn windows() -> Namespace {
    Namespace::new("root/cimv2")
}

/// Services, each the only instance of its class.
pub(super) const SYSTEM_SERVICE: &str = "Msvm_VirtualSystemManagementService";
pub(super) const SNAPSHOT_SERVICE: &str = "Msvm_VirtualSystemSnapshotService";
pub(super) const REFERENCE_SERVICE: &str = "Msvm_VirtualSystemReferencePointService";
pub(super) const IMAGE_SERVICE: &str = "Msvm_ImageManagementService";
pub(super) const MIGRATION_SERVICE: &str = "Msvm_VirtualSystemMigrationService";

pub(super) const SYSTEM: &str = "Msvm_ComputerSystem";
pub(super) const PLANNED: &str = "Msvm_PlannedComputerSystem";
pub(super) const SETTINGS: &str = "Msvm_VirtualSystemSettingData";
pub(super) const STORAGE: &str = "Msvm_StorageAllocationSettingData";
pub(super) const RESOURCE: &str = "Msvm_ResourceAllocationSettingData";
pub(super) const REFERENCE_POINT: &str = "Msvm_VirtualSystemReferencePoint";
pub(super) const EXCHANGE: &str = "Msvm_KvpExchangeComponent";
pub(super) const EXCHANGE_SETTING: &str = "Msvm_KvpExchangeComponentSettingData";
pub(super) const MERGE_SETTING: &str = "Msvm_DiskMergeSettingData";
pub(super) const CONNECTION: &str = "Msvm_EthernetPortAllocationSettingData";
pub(super) const SYNTHETIC_PORT: &str = "Msvm_SyntheticEthernetPortSettingData";

/// Subtypes of resources.
pub(super) mod subtype {
    pub(in super::super) const IDE: &str = "Microsoft:Hyper-V:Emulated IDE Controller";
    pub(in super::super) const SCSI: &str = "Microsoft:Hyper-V:Synthetic SCSI Controller";
    pub(in super::super) const DISK_DRIVE: &str = "Microsoft:Hyper-V:Synthetic Disk Drive";
    pub(in super::super) const PHYSICAL_DRIVE: &str = "Microsoft:Hyper-V:Physical Disk Drive";
    pub(in super::super) const HARD_DISK: &str = "Microsoft:Hyper-V:Virtual Hard Disk";
    pub(in super::super) const OPTICAL_DISK: &str = "Microsoft:Hyper-V:Virtual CD/DVD Disk";
    pub(in super::super) const FLOPPY_DISK: &str = "Microsoft:Hyper-V:Virtual Floppy Disk";
    pub(in super::super) const PMEM_DISK: &str =
        "Microsoft:Hyper-V:Persistent Memory Virtual Hard Disk";
    pub(in super::super) const NIC: &str = "Microsoft:Hyper-V:Synthetic Ethernet Port";
    pub(in super::super) const CONNECTION: &str = "Microsoft:Hyper-V:Ethernet Connection";
}

/// Types of settings (`VirtualSystemType`).
pub(super) mod kind {
    pub(in super::super) const REALIZED: &str = "Microsoft:Hyper-V:System:Realized";
    pub(in super::super) const USER: &str = "Microsoft:Hyper-V:Snapshot:Realized";
    pub(in super::super) const RECOVERY: &str = "Microsoft:Hyper-V:Snapshot:Recovery";
    pub(in super::super) const REPLICA: &str = "Microsoft:Hyper-V:Snapshot:Replica";
    pub(in super::super) const SNAPSHOT: &str = "Microsoft:Hyper-V:Snapshot:";
}

/// Writes settings as the text that methods take: what was given and nothing else.
pub(super) fn embed(instance: &CimInstance, schema: &ClassSchema) -> Result<CimValue> {
    let text = embedded::write(instance, schema, Extent::Given).map_err(|error| {
        told(
            error,
            format!("writing settings of class {}", instance.class),
        )
    })?;
    Ok(CimValue::Text(text))
}

fn class(name: &str) -> ClassSchema {
    ClassSchema::new(ClassName::new(name)).key("InstanceID", CimType::String)
}

/// `Msvm_VirtualSystemSnapshotSettingData`.
pub(super) fn snapshot_settings() -> ClassSchema {
    class("Msvm_VirtualSystemSnapshotSettingData")
        .property("ConsistencyLevel", CimType::Uint8)
        .property("GuestBackupType", CimType::Uint8)
        .property("IgnoreNonSnapshottableDisks", CimType::Boolean)
}

/// What of `Msvm_VirtualSystemSettingData` is written.
pub(super) fn system_settings() -> ClassSchema {
    class(SETTINGS)
        .property("ElementName", CimType::String)
        .property("VirtualSystemSubType", CimType::String)
        .property("ConfigurationDataRoot", CimType::String)
        .property("SnapshotDataRoot", CimType::String)
        .property("SuspendDataRoot", CimType::String)
        .property("SwapFileDataRoot", CimType::String)
        .property("UserSnapshotType", CimType::Uint16)
        .property("AutomaticSnapshotsEnabled", CimType::Boolean)
        .array("Notes", CimType::String)
}

/// What of the resource family is written: drives, disks, adapters, connections.
pub(super) fn resource_settings(name: &str) -> ClassSchema {
    class(name)
        .property("ElementName", CimType::String)
        .property("ResourceType", CimType::Uint16)
        .property("ResourceSubType", CimType::String)
        .property("Parent", CimType::String)
        .property("Address", CimType::String)
        .property("AddressOnParent", CimType::String)
        .property("EnabledState", CimType::Uint16)
        .property("StaticMacAddress", CimType::Boolean)
        .property("VirtualQuantity", CimType::Uint64)
        .array("HostResource", CimType::String)
        .array("VirtualSystemIdentifiers", CimType::String)
}

/// What of memory and processors is written.
pub(super) fn sizing_settings(name: &str) -> ClassSchema {
    class(name)
        .property("VirtualQuantity", CimType::Uint64)
        .property("DynamicMemoryEnabled", CimType::Boolean)
}

/// `Msvm_DiskMergeSettingData`.
pub(super) fn merge_settings() -> ClassSchema {
    class(MERGE_SETTING).property("EnabledState", CimType::Uint32)
}

/// `Msvm_KvpExchangeDataItem`.
pub(super) fn exchange_item() -> ClassSchema {
    ClassSchema::new(ClassName::new("Msvm_KvpExchangeDataItem"))
        .property("Name", CimType::String)
        .property("Data", CimType::String)
        .property("Source", CimType::Uint16)
}

/// `Msvm_VirtualSystemExportSettingData`.
pub(super) fn export_settings() -> ClassSchema {
    class("Msvm_VirtualSystemExportSettingData")
        .property("CopySnapshotConfiguration", CimType::Uint8)
        .property("CopyVmStorage", CimType::Boolean)
        .property("CopyVmRuntimeInformation", CimType::Boolean)
        .property("CreateVmExportSubdirectory", CimType::Boolean)
        .property("SnapshotVirtualSystem", CimType::String)
}

/// `Msvm_VirtualSystemMigrationSettingData`.
pub(super) fn migration_settings() -> ClassSchema {
    class("Msvm_VirtualSystemMigrationSettingData")
        .property("MigrationType", CimType::Uint16)
        .property("TransportType", CimType::Uint16)
}
