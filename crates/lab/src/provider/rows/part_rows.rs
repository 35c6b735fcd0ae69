//! Instances of components: see [`super::parts`].

use wsman::cim::{CimInstance, CimValue};

use super::parts::{Part, is_ide};
use super::{Holder, Scene, row};
use crate::Result;
use crate::estate::{
    AdapterKind, Controller, DiskSharing, Drive, DriveAddress, FibreChannelPort, Medium,
    NetworkAdapter, PhysicalDisk, WindowsGeneration, WindowsPath,
};
use crate::provider::identity::{self, ServiceKind, VIRTUALIZATION};
use crate::provider::texts::Phrase;

/// What all resource settings have: who, what, how much.
struct Resource<'t> {
    caption: &'t str,
    resource_type: u16,
    sub_type: Option<&'t str>,
    quantity: u64,
    units: &'t str,
}

/// The instance of a component.
pub(super) fn row_of(
    part: &Part<'_>,
    scene: &Scene<'_>,
    holder: &Holder<'_>,
) -> Result<CimInstance> {
    let guid = holder.guid_text();
    Ok(match part {
        Part::Memory => memory(part, scene, holder, &guid),
        Part::Processor => processor(part, scene, holder, &guid),
        Part::Controller(it) => controller(part, scene, it, &guid),
        Part::Drive(address, owner, it) => drive(part, scene, &guid, *address, (owner, it)),
        Part::Medium(address, it) => medium(part, scene, &guid, *address, it),
        Part::Image(address, it) => image(part, scene, &guid, *address, it),
        Part::BootSource(address) => boot_source(part, &guid, *address),
        Part::Adapter(it) => adapter(part, scene, &guid, it),
        Part::Connection(it) => connection(part, scene, &guid, it),
        Part::Vlan(_, vlan) => row(&VIRTUALIZATION, part.class())
            .with("AccessVlanId", *vlan)
            .with("InstanceID", part.instance_id(&guid))
            .with("NativeVlanId", 0_u16)
            .with("OperationMode", 1_u32),
        Part::FcPort(it) => fc_port(part, scene, &guid, it),
        Part::FcConnection(it) => fc_connection(part, scene, &guid, it),
        Part::Service(kind) => service(part, holder, &guid, *kind)?,
        Part::Security => {
            let security = &holder.settings().hardware.security;
            row(&VIRTUALIZATION, part.class())
                .with("BindToHostTpm", false)
                .with("DataProtectionRequested", security.is_shielded)
                .with(
                    "EncryptStateAndVmMigrationTraffic",
                    security.is_shielded || security.has_tpm,
                )
                .with("InstanceID", part.instance_id(&guid))
                .with("KsdEnabled", false)
                .with("ShieldingRequested", security.is_shielded)
                .with("TpmEnabled", security.has_tpm)
                .with("VirtualizationBasedSecurityOptOut", false)
        }
    })
}

fn resource(part: &Part<'_>, guid: &str, of: &Resource<'_>) -> CimInstance {
    let mut instance = row(&VIRTUALIZATION, part.class())
        .with("AllocationUnits", of.units)
        .with("AutomaticAllocation", true)
        .with("AutomaticDeallocation", true)
        .with("Caption", of.caption)
        .with("ConsumerVisibility", 3_u16)
        .with("ElementName", of.caption)
        .with("InstanceID", part.instance_id(guid))
        .with("PoolID", "")
        .with("ResourceType", of.resource_type)
        .with("VirtualQuantity", of.quantity)
        .with("VirtualQuantityUnits", of.units)
        .with("Weight", 0_u32);
    if let Some(sub_type) = of.sub_type {
        instance.set("ResourceSubType", sub_type);
    }
    instance
}

/// Text of a path that one component names another by.
fn path_text(scene: &Scene<'_>, class: &str, id: String) -> String {
    identity::by_instance_id(class, id).to_text(Some(scene.host.name.as_str()))
}

fn memory(part: &Part<'_>, scene: &Scene<'_>, holder: &Holder<'_>, guid: &str) -> CimInstance {
    let memory = &holder.settings().hardware.memory;
    let of = Resource {
        caption: scene.say(Phrase::Memory),
        resource_type: 4,
        sub_type: Some("Microsoft:Hyper-V:Memory"),
        quantity: memory.startup_mib,
        units: "byte * 2^20",
    };
    let (least, most) = if memory.is_dynamic {
        (memory.minimum_mib, memory.maximum_mib)
    } else {
        (memory.startup_mib, memory.startup_mib)
    };
    resource(part, guid, &of)
        .with("DynamicMemoryEnabled", memory.is_dynamic)
        .with("IsVirtualized", true)
        .with("Limit", most)
        .with("MaxMemoryBlocksPerNumaNode", 65536_u64)
        .with("Reservation", least)
        .with("SwapFilesInUse", false)
        .with("TargetMemoryBuffer", 20_u32)
        .with("Weight", 5000_u32)
}

fn processor(part: &Part<'_>, scene: &Scene<'_>, holder: &Holder<'_>, guid: &str) -> CimInstance {
    let of = Resource {
        caption: scene.say(Phrase::Processor),
        resource_type: 3,
        sub_type: Some("Microsoft:Hyper-V:Processor"),
        quantity: u64::from(holder.settings().hardware.processors),
        units: "percent / 1000",
    };
    let mut instance = resource(part, guid, &of)
        .with("Limit", 100_000_u64)
        .with("LimitCPUID", false)
        .with("LimitProcessorFeatures", false)
        .with("MaxNumaNodesPerSocket", 1_u64)
        .with("MaxProcessorsPerNumaNode", 64_u64)
        .with("Reservation", 0_u64)
        .with("VirtualQuantityUnits", "count")
        .with("Weight", 100_u32);
    if scene.host.windows >= WindowsGeneration::Server2016 {
        instance.set("ExposeVirtualizationExtensions", false);
    }
    instance
}

fn controller(part: &Part<'_>, scene: &Scene<'_>, it: &Controller, guid: &str) -> CimInstance {
    let ide = is_ide(it.device.0);
    let of = Resource {
        caption: scene.say(if ide {
            Phrase::IdeController
        } else {
            Phrase::ScsiController
        }),
        resource_type: if ide { 5 } else { 6 },
        sub_type: Some(if ide {
            "Microsoft:Hyper-V:Emulated IDE Controller"
        } else {
            "Microsoft:Hyper-V:Synthetic SCSI Controller"
        }),
        quantity: 1,
        units: "count",
    };
    let instance = resource(part, guid, &of);
    if ide {
        instance.with("Address", it.number.to_string())
    } else {
        instance.with(
            "VirtualSystemIdentifiers",
            vec![format!("{{{}}}", it.device)],
        )
    }
}

fn drive(
    part: &Part<'_>,
    scene: &Scene<'_>,
    guid: &str,
    address: DriveAddress,
    (owner, it): (&Controller, &Drive),
) -> CimInstance {
    let (phrase, resource_type, sub_type) = match it {
        Drive::VirtualDisk(_) => (
            Phrase::HardDrive,
            17,
            "Microsoft:Hyper-V:Synthetic Disk Drive",
        ),
        Drive::PassThrough(_) => (
            Phrase::PhysicalDrive,
            17,
            "Microsoft:Hyper-V:Physical Disk Drive",
        ),
        Drive::Dvd(_) => (
            Phrase::OpticalDrive,
            16,
            "Microsoft:Hyper-V:Synthetic DVD Drive",
        ),
    };
    let of = Resource {
        caption: scene.say(phrase),
        resource_type,
        sub_type: Some(sub_type),
        quantity: 1,
        units: "count",
    };
    let parent = identity::controller_id(guid, owner.device, owner.number);
    let parent = path_text(scene, "Msvm_ResourceAllocationSettingData", parent);
    let mut instance = resource(part, guid, &of)
        .with("AddressOnParent", address.slot.to_string())
        .with("Parent", parent);
    if let Drive::PassThrough(disk) = it {
        let path = disk_path(scene, disk).to_text(Some(scene.host.name.as_str()));
        instance.set("HostResource", vec![path]);
    }
    instance
}

/// Path of a physical disk of the host.
pub(in crate::provider) fn disk_path(
    scene: &Scene<'_>,
    disk: &PhysicalDisk,
) -> wsman::cim::CimPath {
    wsman::cim::CimPath::new(&*VIRTUALIZATION, "Msvm_DiskDrive")
        .with("CreationClassName", "Msvm_DiskDrive")
        .with(
            "DeviceID",
            format!("Microsoft:{}\\{}", disk.device, disk.number),
        )
        .with("SystemCreationClassName", "Msvm_ComputerSystem")
        .with("SystemName", scene.host.name.to_string())
}

fn storage(
    part: &Part<'_>,
    scene: &Scene<'_>,
    guid: &str,
    address: DriveAddress,
    (phrase, sub_type, path): (Phrase, &str, &WindowsPath),
) -> CimInstance {
    let of = Resource {
        caption: scene.say(phrase),
        resource_type: 31,
        sub_type: Some(sub_type),
        quantity: 1,
        units: "count",
    };
    let parent = identity::drive_id(guid, address);
    let parent = path_text(scene, "Msvm_ResourceAllocationSettingData", parent);
    let mut instance = resource(part, guid, &of)
        .with("Access", 3_u16)
        .with("CachingMode", 0_u16)
        .with("HostResource", vec![path.to_string()])
        .with("IOPSAllocationUnits", "count / second")
        .with("IOPSReservation", 0_u64)
        .with("IgnoreFlushes", false)
        .with("Limit", 1_u64)
        .with("Parent", parent)
        .with("PersistentReservationsSupported", false)
        .with("Reservation", 1_u64)
        .with("SnapshotId", "");
    if scene.host.windows >= WindowsGeneration::Server2019 {
        instance.set("WriteHardeningMethod", 0_u16);
    }
    instance
}

fn medium(
    part: &Part<'_>,
    scene: &Scene<'_>,
    guid: &str,
    address: DriveAddress,
    it: &Medium,
) -> CimInstance {
    let of = (
        Phrase::HardDiskImage,
        "Microsoft:Hyper-V:Virtual Hard Disk",
        &it.path,
    );
    storage(part, scene, guid, address, of)
        .with("IOPSLimit", it.iops_limit)
        .with(
            "PersistentReservationsSupported",
            it.sharing != DiskSharing::Private,
        )
}

fn image(
    part: &Part<'_>,
    scene: &Scene<'_>,
    guid: &str,
    address: DriveAddress,
    it: &WindowsPath,
) -> CimInstance {
    let of = (
        Phrase::OpticalImage,
        "Microsoft:Hyper-V:Virtual CD/DVD Disk",
        it,
    );
    storage(part, scene, guid, address, of)
        .with("Access", 1_u16)
        .with("IOPSLimit", 0_u64)
}

fn boot_source(part: &Part<'_>, guid: &str, address: DriveAddress) -> CimInstance {
    row(&VIRTUALIZATION, part.class())
        .with("BootSourceDescription", "EFI SCSI Device")
        .with("BootSourceType", 1_u32)
        .with(
            "FirmwareDevicePath",
            format!(
                "\\AcpiEx(VMBus,0,0)\\Scsi({},{})",
                address.number, address.slot
            ),
        )
        .with("InstanceID", part.instance_id(guid))
}

fn adapter(part: &Part<'_>, scene: &Scene<'_>, guid: &str, it: &NetworkAdapter) -> CimInstance {
    let synthetic = it.kind == AdapterKind::Synthetic;
    let of = Resource {
        caption: scene.say(if synthetic {
            Phrase::NetworkAdapter
        } else {
            Phrase::LegacyNetworkAdapter
        }),
        resource_type: 10,
        sub_type: Some(if synthetic {
            "Microsoft:Hyper-V:Synthetic Ethernet Port"
        } else {
            "Microsoft:Hyper-V:Emulated Ethernet Port"
        }),
        quantity: 1,
        units: "count",
    };
    let instance = resource(part, guid, &of)
        .with("Address", it.mac_address.as_str())
        .with("ClusterMonitored", true)
        .with("DesiredVLANEndpointMode", CimValue::Null)
        .with("ElementName", it.name.as_str())
        .with("StaticMacAddress", it.is_mac_static);
    if synthetic {
        instance.with(
            "VirtualSystemIdentifiers",
            vec![format!("{{{}}}", it.device)],
        )
    } else {
        instance
    }
}

fn connection(part: &Part<'_>, scene: &Scene<'_>, guid: &str, it: &NetworkAdapter) -> CimInstance {
    let of = Resource {
        caption: scene.say(Phrase::Connection),
        resource_type: 33,
        sub_type: Some("Microsoft:Hyper-V:Ethernet Connection"),
        quantity: 1,
        units: "count",
    };
    let class = Part::Adapter(it).class();
    let parent = path_text(scene, class, Part::Adapter(it).instance_id(guid));
    let mut instance = resource(part, guid, &of)
        .with("EnabledState", if it.switch.is_some() { 2_u16 } else { 3 })
        .with("Parent", parent);
    if let Some(name) = &it.switch {
        instance.set("LastKnownSwitchName", name.to_string());
        let mut switches = scene.host.switches.iter();
        if let Some(switch) = switches.find(|switch| switch.name == *name) {
            let path = identity::switch(switch.device).to_text(Some(scene.host.name.as_str()));
            instance.set("HostResource", vec![path]);
        }
    }
    instance
}

fn fc_port(part: &Part<'_>, scene: &Scene<'_>, guid: &str, it: &FibreChannelPort) -> CimInstance {
    let of = Resource {
        caption: scene.say(Phrase::FibreChannelAdapter),
        resource_type: 7,
        sub_type: Some("Microsoft:Hyper-V:Synthetic FiberChannel Port"),
        quantity: 1,
        units: "count",
    };
    resource(part, guid, &of)
        .with("ChapEnabled", false)
        .with("VirtualPortWWPN", it.world_wide_port_name.as_str())
        .with(
            "VirtualSystemIdentifiers",
            vec![format!("{{{}}}", it.device)],
        )
}

fn fc_connection(
    part: &Part<'_>,
    scene: &Scene<'_>,
    guid: &str,
    it: &FibreChannelPort,
) -> CimInstance {
    let of = Resource {
        caption: scene.say(Phrase::FibreChannelAdapter),
        resource_type: 64764,
        sub_type: Some("Microsoft:Hyper-V:FiberChannel Connection"),
        quantity: 1,
        units: "count",
    };
    let port = Part::FcPort(it);
    let parent = path_text(scene, port.class(), port.instance_id(guid));
    resource(part, guid, &of).with("Parent", parent)
}

fn service(
    part: &Part<'_>,
    holder: &Holder<'_>,
    guid: &str,
    kind: ServiceKind,
) -> Result<CimInstance> {
    let name = match kind {
        ServiceKind::Vss => "Microsoft:VSS Component",
        ServiceKind::Kvp => "Microsoft:Key-Value Pair Exchange Component",
        ServiceKind::Shutdown => "Microsoft:Shutdown Component",
        ServiceKind::Heartbeat => "Microsoft:Heartbeat Component",
        ServiceKind::TimeSync => "Microsoft:Time Synchronization Component",
        ServiceKind::GuestServices => "Microsoft:Guest Service Interface",
    };
    let of = Resource {
        caption: name.trim_start_matches("Microsoft:"),
        resource_type: 1,
        sub_type: None,
        quantity: 1,
        units: "count",
    };
    let enabled = super::devices::service_of(holder.vm, kind).is_enabled;
    let mut instance = resource(part, guid, &of)
        .with("EnabledState", if enabled { 2_u16 } else { 3 })
        .with("OtherResourceType", name);
    match kind {
        ServiceKind::Kvp => {
            let items = super::devices::host_only_items(holder.vm)?;
            if !items.is_empty() {
                instance.set("HostOnlyItems", items);
            }
        }
        ServiceKind::Heartbeat => {
            instance.set("ErrorThreshold", 3_u32);
            instance.set("Interval", 2000_u32);
            instance.set("Latency", 1000_u32);
        }
        ServiceKind::GuestServices => instance.set("DefaultEnabledStatePolicy", 3_u16),
        ServiceKind::Vss | ServiceKind::Shutdown | ServiceKind::TimeSync => {}
    }
    Ok(instance)
}
