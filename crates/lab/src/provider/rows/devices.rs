//! Logical devices of VMs (integration services), physical disks of the host, and what guests tell.

use wsman::cim::{CimInstance, CimPath};

use super::{Scene, row};
use crate::Result;
use crate::estate::{IntegrationService, PhysicalDisk, ServiceStatus, VirtualMachine};
use crate::provider::embedded;
use crate::provider::identity::{self, ServiceKind, VIRTUALIZATION};
use crate::provider::texts::Phrase;

/// Who told a key-value pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ItemSource {
    /// 2.
    GuestIntrinsic,
    /// 4.
    HostOnly,
}

/// A VM's integration service.
pub(in crate::provider) fn service_of(
    vm: &VirtualMachine,
    kind: ServiceKind,
) -> IntegrationService {
    match kind {
        ServiceKind::Vss => vm.integration.vss,
        ServiceKind::Kvp => vm.integration.kvp,
        ServiceKind::Shutdown => vm.integration.shutdown,
        ServiceKind::Heartbeat => vm.integration.heartbeat,
        ServiceKind::TimeSync => vm.integration.time,
        ServiceKind::GuestServices => vm.integration.guest_services,
    }
}

/// Path of an integration service's device.
pub(in crate::provider) fn device_path(vm: &VirtualMachine, kind: ServiceKind) -> CimPath {
    identity::device(kind.device_class(), vm.id, kind.guid())
}

/// An integration service as a device of the VM.
pub(in crate::provider) fn device_row(
    scene: &Scene<'_>,
    vm: &VirtualMachine,
    kind: ServiceKind,
) -> Result<CimInstance> {
    let service = service_of(vm, kind);
    let status = vm.service_status(service);
    let class = kind.device_class();
    let phrase = match status {
        ServiceStatus::Ok => Phrase::ServiceOk,
        ServiceStatus::Degraded | ServiceStatus::NonRecoverable => Phrase::ServiceDegraded,
        ServiceStatus::NoContact => Phrase::ServiceNoContact,
        ServiceStatus::LostCommunication => Phrase::ServiceLostContact,
    };
    let mut codes = vec![status.value()];
    let mut words = vec![scene.say(phrase)];
    if matches!(
        status,
        ServiceStatus::Degraded | ServiceStatus::NonRecoverable
    ) {
        // The protocols of host and guest differ.
        codes.push(32775);
        words.push(scene.say(Phrase::ServiceDegraded));
    }
    let mut instance = row(&VIRTUALIZATION, class)
        .with("Caption", class)
        .with("CreationClassName", class)
        .with("DeviceID", identity::part_id(vm.id, kind.guid()))
        .with("ElementName", class)
        .with("EnabledDefault", 2_u16)
        .with("EnabledState", if service.is_enabled { 2_u16 } else { 3 })
        .with("HealthState", 5_u16)
        .with("OperationalStatus", codes)
        .with("RequestedState", 12_u16)
        .with("StatusDescriptions", words)
        .with("SystemCreationClassName", "Msvm_ComputerSystem")
        .with("SystemName", vm.id.to_string());
    if kind == ServiceKind::Kvp && status.answers() {
        let items: Vec<String> = vm
            .guest_facts
            .iter()
            .map(|(name, data)| item(name, data, ItemSource::GuestIntrinsic))
            .collect::<Result<_>>()?;
        if !items.is_empty() {
            instance.set("GuestIntrinsicExchangeItems", items);
        }
    }
    Ok(instance)
}

/// `HostOnlyItems`: what was written on a VM by its host.
pub(in crate::provider) fn host_only_items(vm: &VirtualMachine) -> Result<Vec<String>> {
    vm.host_items
        .iter()
        .map(|(name, data)| item(name, data, ItemSource::HostOnly))
        .collect()
}

fn item(name: &str, data: &str, source: ItemSource) -> Result<String> {
    let source = match source {
        ItemSource::GuestIntrinsic => 2_u16,
        ItemSource::HostOnly => 4,
    };
    let instance = CimInstance::new("Msvm_KvpExchangeDataItem")
        .with("Data", data)
        .with("Name", name)
        .with("Source", source);
    embedded::text_of(&instance)
}

/// A disk of the host that can be handed through.
pub(in crate::provider) fn physical_disk_row(
    scene: &Scene<'_>,
    disk: &PhysicalDisk,
) -> CimInstance {
    let mut instance = row(&VIRTUALIZATION, "Msvm_DiskDrive")
        .with("Caption", scene.say(Phrase::PhysicalDrive))
        .with("DriveNumber", disk.number)
        .with("ElementName", format!("Disk {}", disk.number))
        .with("EnabledState", 2_u16)
        .with("HealthState", 5_u16)
        // In KiB, as CIM says.
        .with("MaxMediaSize", disk.size_bytes / 1024)
        .with("Name", format!("\\\\.\\PHYSICALDRIVE{}", disk.number))
        .with("OperationalStatus", vec![2_u16]);
    for (key, value) in super::part_rows::disk_path(scene, disk).keys {
        instance.set(key, value);
    }
    instance
}

/// `Msvm_GuestNetworkAdapterConfiguration`: addresses in the guest, one row per adapter.
pub(in crate::provider) fn guest_network_rows(vm: &VirtualMachine) -> Vec<CimInstance> {
    let answers = vm.service_status(vm.integration.kvp).answers();
    let adapters = vm.settings.hardware.adapters.iter();
    let rows = adapters.filter(|_| answers).map(|adapter| {
        let has = |mark: char| adapter.addresses.iter().any(|it| it.contains(mark));
        let family = match (has('.'), has(':')) {
            (true, true) => 4098_u16,
            (false, true) => 4097,
            _ => 4096,
        };
        row(&VIRTUALIZATION, "Msvm_GuestNetworkAdapterConfiguration")
            .with("DHCPEnabled", false)
            .with("IPAddresses", adapter.addresses.clone())
            .with("InstanceID", guest_network_id(vm, adapter.device))
            .with("ProtocolIFType", family)
    });
    rows.collect()
}

fn guest_network_id(vm: &VirtualMachine, device: crate::estate::DeviceId) -> String {
    format!("Microsoft:GuestNetwork\\{}\\{device}", vm.id)
}
