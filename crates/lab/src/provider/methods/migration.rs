//! Live and storage migration.

use super::arguments::{Strictness, invalid_parameter};
use super::{Answer, Call, Outcome, Refusal};
use crate::ReturnCode;
use crate::estate::{HostName, MigrationKind, MigrationRequest, VmId, WindowsPath};

fn not_supported() -> Refusal {
    Refusal::Code(ReturnCode::NotSupported.value())
}

/// What a call asks for: kind, destination, and one folder for all files.
fn request(call: &Call<'_>) -> Result<(VmId, MigrationRequest), Refusal> {
    let id = call.vm("ComputerSystem")?;
    let settings = call
        .embedded(
            "MigrationSettingData",
            "Msvm_VirtualSystemMigrationSettingData",
        )?
        .ok_or_else(invalid_parameter)?;
    let kind = match settings.opt_u64("MigrationType") {
        Ok(Some(32768)) => MigrationKind::Vm,
        Ok(Some(32769)) => MigrationKind::Storage,
        Ok(Some(32771)) => MigrationKind::VmAndStorage,
        Ok(Some(32770 | 32772)) => return Err(not_supported()),
        _ => return Err(invalid_parameter()),
    };
    let refused = ["DestinationPlannedVirtualSystemId", "UnmanagedVhds"];
    if refused.iter().any(|name| settings.get(name).is_some()) {
        return Err(not_supported());
    }
    let destination = match (call.inputs.text("DestinationHost"), kind) {
        (Some(name), _) => Some(short_name(&name)),
        (None, MigrationKind::Storage) => None,
        (None, _) => return Err(invalid_parameter()),
    };
    let folder = folder(call)?;
    if (kind == MigrationKind::Vm) != folder.is_none() {
        return Err(invalid_parameter());
    }
    let request = MigrationRequest {
        destination,
        kind,
        folder,
    };
    Ok((id, request))
}

/// Hosts are called by their NetBIOS or full name.
fn short_name(name: &str) -> HostName {
    HostName::new(name.split('.').next().unwrap_or(name))
}

/// The folder that the new settings name; disks must go there, too: other plans are not modelled.
fn folder(call: &Call<'_>) -> Result<Option<WindowsPath>, Refusal> {
    let system = call.embedded("NewSystemSettingData", "Msvm_VirtualSystemSettingData")?;
    let root = system.and_then(|it| it.text_ref("ConfigurationDataRoot").map(str::to_owned));
    let folder = root.map(|root| WindowsPath::parse(&root)).transpose()?;
    let class = "CIM_ResourceAllocationSettingData";
    for disk in call.embedded_list("NewResourceSettingData", class, Strictness::Other)? {
        let files = disk
            .texts("HostResource")
            .map_err(|_| invalid_parameter())?;
        for file in files {
            let file = WindowsPath::parse(&file)?;
            let is_inside = folder
                .as_ref()
                .is_some_and(|folder| file.below(folder).is_some());
            if !is_inside {
                return Err(not_supported());
            }
        }
    }
    Ok(folder)
}

/// `MigrateVirtualSystemToHost`.
pub(super) fn migrate_to_host(call: &mut Call<'_>) -> Answer {
    let (id, request) = request(call)?;
    let host = call.host.clone();
    let started = call.estate.migrate(&host, id, request)?;
    Ok(call.answer(&started, None))
}

/// `CheckVirtualSystemIsMigratableToHost`: whether both hosts allow it and the VM stands still. Processor features are not
/// modelled.
pub(super) fn check_migratable(call: &mut Call<'_>) -> Answer {
    let (id, request) = request(call)?;
    let vm = call.estate.vm(&call.host, id)?;
    let is_idle = vm.activity.is_none();
    let allows = |name: &HostName| {
        call.estate
            .live_host(name)
            .is_ok_and(|it| it.allows_migration)
    };
    let is_migratable =
        is_idle && allows(&call.host) && request.destination.as_ref().is_none_or(allows);
    Ok(Outcome::code(0).with("IsMigratable", is_migratable))
}
