//! `GetSummaryInformation`: many VMs in one answer, only what was asked for.

use wsman::cim::{CimInstance, CimValue};

use super::arguments::SettingsOf;
use super::{Answer, Call, Outcome};
use crate::estate::{CheckpointId, Realm, VirtualMachine};
use crate::provider::identity::{self, VIRTUALIZATION};
use crate::provider::rows::systems::{descriptions, health};
use crate::provider::rows::{Holder, Scene, datetime, row, settings};

/// A code of `RequestedInformation`: which property of the answer it fills.
fn fill(scene: &Scene<'_>, holder: &Holder<'_>, code: u64, instance: &mut CimInstance) {
    let vm = holder.vm;
    let settings = holder.settings();
    let status = vm.operational_status();
    match code {
        0 => instance.set("Name", holder.guid_text()),
        1 => instance.set("ElementName", settings.name.as_str()),
        2 => {
            let created = holder.checkpoint.map_or(vm.created, |it| it.created);
            instance.set("CreationTime", datetime(created));
        }
        3 => instance.set("Notes", settings.notes.as_str()),
        4 => {
            let count = u16::try_from(settings.hardware.processors).unwrap_or(u16::MAX);
            instance.set("NumberOfProcessors", count);
        }
        8 => instance.set("AllocatedGPU", ""),
        9 => {
            let adapters = settings.hardware.adapters.iter();
            let switches: Vec<String> = adapters
                .filter_map(|it| it.switch.as_ref().map(ToString::to_string))
                .collect();
            if !switches.is_empty() {
                instance.set("VirtualSwitchNames", switches);
            }
        }
        10 => instance.set("Version", settings.version.to_string()),
        11 => instance.set("Shielded", settings.hardware.security.is_shielded),
        100 => instance.set("EnabledState", state(holder)),
        101 => instance.set("ProcessorLoad", u16::from(vm.is_running())),
        103 => {
            let used = if vm.is_running() {
                settings.hardware.memory.startup_mib
            } else {
                0
            };
            instance.set("MemoryUsage", used);
        }
        104 => {
            let heartbeat = vm.service_status(vm.integration.heartbeat).value();
            instance.set("Heartbeat", vm.is_running().then_some(heartbeat));
        }
        105 => instance.set("UpTime", uptime(scene, vm)),
        106 => {
            let answers = vm.service_status(vm.integration.kvp).answers();
            let name = vm.guest_facts.get("OSName").filter(|_| answers);
            instance.set("GuestOperatingSystem", name.map(String::as_str));
        }
        107 => snapshots(scene, vm, instance),
        108 => tasks(scene, vm, instance),
        109 => instance.set("HealthState", health(vm)),
        110 => instance.set("OperationalStatus", status),
        111 => instance.set("StatusDescriptions", descriptions(scene, &status)),
        114 => instance.set("ReplicationMode", vm.replication.value()),
        115 => instance.set(
            "ReplicationState",
            if vm.replication.value() == 0 {
                0_u16
            } else {
                3
            },
        ),
        116 => instance.set("ReplicationHealth", u16::from(vm.replication.value() != 0)),
        120 => instance.set("SwapFilesInUse", false),
        121 => instance.set("IntegrationServicesVersionState", 1_u16),
        123 => instance.set("MemorySpansPhysicalNumaNodes", false),
        // Thumbnails, histories and what no guest of a lab has stay null.
        _ => {}
    }
}

fn state(holder: &Holder<'_>) -> u16 {
    match holder.checkpoint {
        None => holder.vm.power.value(),
        // A checkpoint is saved or off.
        Some(it) if it.has_memory => 6,
        Some(_) => 3,
    }
}

fn uptime(scene: &Scene<'_>, vm: &VirtualMachine) -> u64 {
    let since = vm.running_since.map(|it| scene.now().since(it));
    since.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX))
}

fn snapshots(scene: &Scene<'_>, vm: &VirtualMachine, instance: &mut CimInstance) {
    let rows: Vec<CimValue> = Holder::all_of(vm)
        .filter(|holder| holder.checkpoint.is_some_and(|it| it.kind.is_user()))
        .map(|holder| CimValue::from(settings::settings_row(scene, &holder)))
        .collect();
    if !rows.is_empty() {
        instance.set("Snapshots", CimValue::Array(rows));
    }
}

fn tasks(scene: &Scene<'_>, vm: &VirtualMachine, instance: &mut CimInstance) {
    let running = vm
        .activity
        .map(|(_, job)| job)
        .into_iter()
        .chain(vm.merging);
    let rows: Vec<CimValue> = running
        .filter_map(|id| scene.estate.job(&scene.host.name, id).ok())
        .map(|job| CimValue::from(crate::provider::rows::jobs::job_row(scene, job)))
        .collect();
    if !rows.is_empty() {
        instance.set("AsynchronousTasks", CimValue::Array(rows));
    }
}

fn summary(scene: &Scene<'_>, holder: &Holder<'_>, codes: &[u64]) -> CimInstance {
    let mut instance = row(&VIRTUALIZATION, "Msvm_SummaryInformation")
        .with("HostComputerSystemName", scene.host.name.to_string())
        .with("InstanceID", identity::settings_id(holder.guid_text()))
        .with(
            "VirtualSystemSubType",
            settings::sub_type(holder.settings().generation),
        );
    for code in codes {
        fill(scene, holder, *code, &mut instance);
    }
    instance
}

/// What is wanted: a VM, or a checkpoint of one.
enum Wanted {
    System(Realm, crate::estate::VmId),
    Checkpoint(CheckpointId),
}

/// `GetSummaryInformation`: without settings, all VMs.
pub(super) fn get_summary_information(call: &mut Call<'_>) -> Answer {
    let codes = call.inputs.numbers("RequestedInformation")?;
    let mut wanted = Vec::new();
    for path in call.inputs.references("SettingData")? {
        wanted.push(match call.settings_of_path(path)? {
            SettingsOf::System(realm, id) => Wanted::System(realm, id),
            SettingsOf::Checkpoint(id) => Wanted::Checkpoint(id),
        });
    }
    let scene = Scene {
        estate: &*call.estate,
        host: call.estate.host(&call.host)?,
        language: call.language,
    };
    let host = &scene.host.name;
    let mut rows: Vec<CimValue> = Vec::new();
    if wanted.is_empty() {
        for vm in scene.estate.vms_on(host) {
            rows.push(summary(&scene, &Holder::current(vm), &codes).into());
        }
    }
    for it in wanted {
        let holder = match it {
            Wanted::System(Realm::Realized, id) => Holder::current(scene.estate.vm(host, id)?),
            Wanted::System(Realm::Planned, id) => Holder::current(scene.estate.planned(host, id)?),
            Wanted::Checkpoint(id) => {
                let vm = scene.estate.vm_of_checkpoint(host, id)?;
                Holder {
                    vm,
                    checkpoint: vm.checkpoint(id),
                }
            }
        };
        rows.push(summary(&scene, &holder, &codes).into());
    }
    let rows = (!rows.is_empty()).then_some(CimValue::Array(rows));
    Ok(Outcome::code(0).with("SummaryInformation", rows.unwrap_or_default()))
}
