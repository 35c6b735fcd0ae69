//! Resources of systems: added, changed, removed.
//!
//! ```text
//!   AddResourceSettings     ResourceSubType, Parent (a path), HostResource ─► ResourceSpec
//!   ModifyResourceSettings  InstanceID, and what differs                   ─► ResourceChange
//!   RemoveResourceSettings  a reference                                    ─► ResourceRef
//! ```

use wsman::cim::{CimInstance, CimPath};

use super::arguments::{SettingsOf, Strictness, invalid_parameter};
use super::management::{differences, not_supported, scene, target};
use super::{Answer, Call, Refusal};
use crate::estate::{
    DeviceId, DiskSharing, DriveSpec, Memory, Realm, ResourceChange, ResourceRef, ResourceSpec,
    ServiceName, ServiceSwitch, SwitchName, SystemTarget, VmId, WindowsPath,
};
use crate::provider::identity::{PartedId, ServiceKind, VIRTUALIZATION};
use crate::provider::rows::Holder;
use crate::provider::rows::parts::Part;

const RESOURCE: &str = "CIM_ResourceAllocationSettingData";

/// `AddResourceSettings`.
pub(super) fn add(call: &mut Call<'_>) -> Answer {
    let SettingsOf::System(realm, id) = call.settings_of("AffectedConfiguration")? else {
        return Err(invalid_parameter());
    };
    let given = call.embedded_list("ResourceSettings", RESOURCE, Strictness::Other)?;
    if given.is_empty() {
        return Err(invalid_parameter());
    }
    let specs: Result<Vec<ResourceSpec>, Refusal> =
        given.iter().map(|it| spec_of(call, id, it)).collect();
    let specs = specs?;
    let host = call.host.clone();
    let started = call.estate.add_resources(&host, target(realm, id), specs)?;
    Ok(call.answer_list(&started, "ResultingResourceSettings"))
}

fn spec_of(call: &Call<'_>, vm: VmId, given: &CimInstance) -> Result<ResourceSpec, Refusal> {
    let sub_type = given.text_ref("ResourceSubType").unwrap_or_default();
    let kind = sub_type.strip_prefix("Microsoft:Hyper-V:");
    match kind.ok_or_else(invalid_parameter)? {
        "Synthetic SCSI Controller" => Ok(ResourceSpec::ScsiController),
        "Synthetic Disk Drive" => drive(vm, given, DriveSpec::VirtualDisk),
        "Synthetic DVD Drive" => drive(vm, given, DriveSpec::Dvd),
        "Physical Disk Drive" => {
            let disk = path_in(given, "HostResource")?;
            let id = disk.key("DeviceID").as_deref().and_then(PartedId::parse);
            let id = id.ok_or_else(invalid_parameter)?;
            drive(vm, given, DriveSpec::PassThrough(DeviceId(id.guid)))
        }
        "Virtual Hard Disk" | "Virtual CD/DVD Disk" => {
            let (drive, _) = parent(vm, given)?.drive().ok_or_else(invalid_parameter)?;
            let path = WindowsPath::parse(&first(given, "HostResource")?)?;
            let is_shared = given.opt_bool("PersistentReservationsSupported");
            let is_shared = is_shared.map_err(|_| invalid_parameter())? == Some(true);
            let sharing = match (is_shared, path.extension().as_str()) {
                (true, _) => DiskSharing::SharedVhdx,
                (false, "vhds") => DiskSharing::VhdSet,
                (false, _) => DiskSharing::Private,
            };
            Ok(ResourceSpec::Medium {
                drive,
                path,
                sharing,
            })
        }
        "Synthetic Ethernet Port" => {
            let name = given
                .text_ref("ElementName")
                .filter(|name| !name.is_empty());
            let address = given
                .text_ref("Address")
                .filter(|address| !address.is_empty());
            Ok(ResourceSpec::Adapter {
                name: name.unwrap_or("Network Adapter").to_owned(),
                mac_address: address.map(str::to_owned),
            })
        }
        "Ethernet Connection" => {
            let adapter = parent(vm, given)?.device().ok_or_else(invalid_parameter)?;
            let switch = switch_of(call, given)?.ok_or_else(invalid_parameter)?;
            Ok(ResourceSpec::Connection { adapter, switch })
        }
        _ => Err(not_supported()),
    }
}

fn drive(vm: VmId, given: &CimInstance, kind: DriveSpec) -> Result<ResourceSpec, Refusal> {
    let (controller, number) = parent(vm, given)?
        .controller()
        .ok_or_else(invalid_parameter)?;
    let slot = given.text_ref("AddressOnParent").map(str::trim);
    let slot = slot.filter(|slot| !slot.is_empty()).map(str::parse);
    Ok(ResourceSpec::Drive {
        controller,
        number,
        slot: slot.transpose().map_err(|_| invalid_parameter())?,
        kind,
    })
}

/// What `Parent` names: a part of the same VM.
fn parent(vm: VmId, given: &CimInstance) -> Result<PartedId, Refusal> {
    let text = given.text_ref("Parent").ok_or_else(invalid_parameter)?;
    let path = CimPath::parse(text, &VIRTUALIZATION).map_err(|_| invalid_parameter())?;
    let id = path.key("InstanceID").as_deref().and_then(PartedId::parse);
    id.filter(|id| id.vm() == vm).ok_or_else(invalid_parameter)
}

fn first(given: &CimInstance, property: &str) -> Result<String, Refusal> {
    let values = given.texts(property).map_err(|_| invalid_parameter())?;
    let first = values.into_iter().next().filter(|it| !it.is_empty());
    first.ok_or_else(invalid_parameter)
}

fn path_in(given: &CimInstance, property: &str) -> Result<CimPath, Refusal> {
    CimPath::parse(&first(given, property)?, &VIRTUALIZATION).map_err(|_| invalid_parameter())
}

/// The switch that a connection names; nothing where it is disconnected.
fn switch_of(call: &Call<'_>, given: &CimInstance) -> Result<Option<SwitchName>, Refusal> {
    if given
        .opt_u64("EnabledState")
        .map_err(|_| invalid_parameter())?
        == Some(3)
    {
        return Ok(None);
    }
    let values = given
        .texts("HostResource")
        .map_err(|_| invalid_parameter())?;
    if values.iter().all(String::is_empty) {
        return Ok(None);
    }
    let wanted = path_in(given, "HostResource")?
        .key("Name")
        .unwrap_or_default();
    let host = call.estate.host(&call.host)?;
    let mut switches = host.switches.iter();
    let found = switches.find(|it| it.device.to_string().eq_ignore_ascii_case(&wanted));
    found
        .map(|it| Some(it.name.clone()))
        .ok_or_else(invalid_parameter)
}

/// `ModifyResourceSettings`: all of one system.
pub(super) fn modify(call: &mut Call<'_>) -> Answer {
    let given = call.embedded_list("ResourceSettings", RESOURCE, Strictness::Other)?;
    let mut of = None;
    let mut changes = Vec::new();
    for instance in &given {
        let id = instance.text_ref("InstanceID").and_then(PartedId::parse);
        let id = id.ok_or_else(invalid_parameter)?;
        let system = system_of(call, &id)?;
        if *of.get_or_insert(system) != system {
            return Err(invalid_parameter());
        }
        changes.extend(changes_of(call, system, &id, instance)?);
    }
    let system = of.ok_or_else(invalid_parameter)?;
    let host = call.host.clone();
    let started = call.estate.modify_resources(&host, system, changes)?;
    Ok(call.answer_list(&started, "ResultingResourceSettings"))
}

/// The system that has a part; parts of checkpoints cannot be changed.
fn system_of(call: &Call<'_>, id: &PartedId) -> Result<SystemTarget, Refusal> {
    if call.estate.vm(&call.host, id.vm()).is_ok() {
        return Ok(target(Realm::Realized, id.vm()));
    }
    call.estate.planned(&call.host, id.vm())?;
    Ok(target(Realm::Planned, id.vm()))
}

fn changes_of(
    call: &Call<'_>,
    system: SystemTarget,
    id: &PartedId,
    given: &CimInstance,
) -> Result<Vec<ResourceChange>, Refusal> {
    let scene = scene(call)?;
    let vm = scene.estate.target(&call.host, system)?;
    let holder = Holder::current(vm);
    let part = Part::find(&scene, &holder, id)
        .filter(|part| given.class == part.class())
        .ok_or_else(invalid_parameter)?;
    let changed = differences(given, &part.row(&scene, &holder)?);
    let only = |names: &[&str]| {
        let all = changed.iter().all(|it| names.contains(&it.as_str()));
        if all { Ok(()) } else { Err(not_supported()) }
    };
    if changed.is_empty() {
        return Ok(Vec::new());
    }
    let number = |name: &str, now: u64| {
        let value = given.opt_u64(name).map_err(|_| invalid_parameter())?;
        Ok::<u64, Refusal>(value.unwrap_or(now))
    };
    let change = match part {
        Part::Medium(drive, _) | Part::Image(drive, _) => {
            only(&["HostResource"])?;
            let path = WindowsPath::parse(&first(given, "HostResource")?)?;
            ResourceChange::Medium { drive, path }
        }
        Part::Memory => {
            only(MEMORY)?;
            ResourceChange::Memory(memory_of(given, vm.settings.hardware.memory)?)
        }
        Part::Processor => {
            only(&["VirtualQuantity"])?;
            let count = u32::try_from(number("VirtualQuantity", 1)?);
            ResourceChange::Processors(count.map_err(|_| invalid_parameter())?)
        }
        Part::Connection(it) => {
            only(&["HostResource", "EnabledState"])?;
            ResourceChange::Connection {
                adapter: it.device,
                switch: switch_of(call, given)?,
            }
        }
        Part::Adapter(it) => {
            only(&["Address", "StaticMacAddress"])?;
            let mac_address = given.text_ref("Address").ok_or_else(invalid_parameter)?;
            ResourceChange::MacAddress {
                adapter: it.device,
                mac_address: mac_address.to_owned(),
            }
        }
        Part::Service(kind) => {
            only(&["EnabledState"])?;
            let switch = match number("EnabledState", 0)? {
                2 => ServiceSwitch::Enabled,
                3 => ServiceSwitch::Disabled,
                _ => return Err(invalid_parameter()),
            };
            ResourceChange::Service(service_name(kind), switch)
        }
        _ => return Err(not_supported()),
    };
    Ok(vec![change])
}

/// Properties of memory that can be changed.
const MEMORY: &[&str] = &[
    "VirtualQuantity",
    "Reservation",
    "Limit",
    "DynamicMemoryEnabled",
];

fn memory_of(given: &CimInstance, mut memory: Memory) -> Result<Memory, Refusal> {
    for (name, field) in [
        ("VirtualQuantity", &mut memory.startup_mib),
        ("Reservation", &mut memory.minimum_mib),
        ("Limit", &mut memory.maximum_mib),
    ] {
        let value = given.opt_u64(name).map_err(|_| invalid_parameter())?;
        *field = value.unwrap_or(*field);
    }
    let dynamic = given.opt_bool("DynamicMemoryEnabled");
    let dynamic = dynamic.map_err(|_| invalid_parameter())?;
    memory.is_dynamic = dynamic.unwrap_or(memory.is_dynamic);
    Ok(memory)
}

fn service_name(kind: ServiceKind) -> ServiceName {
    match kind {
        ServiceKind::Vss => ServiceName::Vss,
        ServiceKind::Kvp => ServiceName::Kvp,
        ServiceKind::Shutdown => ServiceName::Shutdown,
        ServiceKind::Heartbeat => ServiceName::Heartbeat,
        ServiceKind::TimeSync => ServiceName::TimeSync,
        ServiceKind::GuestServices => ServiceName::GuestServices,
    }
}

/// `RemoveResourceSettings`: all of one system.
pub(super) fn remove(call: &mut Call<'_>) -> Answer {
    let mut of = None;
    let mut resources = Vec::new();
    for path in call.inputs.references("ResourceSettings")? {
        let id = path.key("InstanceID").as_deref().and_then(PartedId::parse);
        let id = id.ok_or_else(invalid_parameter)?;
        let system = system_of(call, &id)?;
        if *of.get_or_insert(system) != system {
            return Err(invalid_parameter());
        }
        resources.push(reference_of(call, system, &id)?);
    }
    let system = of.ok_or_else(invalid_parameter)?;
    let host = call.host.clone();
    let started = call.estate.remove_resources(&host, system, resources)?;
    Ok(call.answer(&started, None))
}

fn reference_of(
    call: &Call<'_>,
    system: SystemTarget,
    id: &PartedId,
) -> Result<ResourceRef, Refusal> {
    let scene = scene(call)?;
    let holder = Holder::current(scene.estate.target(&call.host, system)?);
    let part = Part::find(&scene, &holder, id);
    let part = part.ok_or_else(|| super::not_found("no such resource"))?;
    match part {
        Part::Medium(drive, _) | Part::Image(drive, _) => Ok(ResourceRef::Medium(drive)),
        Part::Drive(drive, ..) => Ok(ResourceRef::Drive(drive)),
        Part::Controller(it) => Ok(ResourceRef::Controller(it.device)),
        Part::Adapter(it) => Ok(ResourceRef::Adapter(it.device)),
        _ => Err(not_supported()),
    }
}
