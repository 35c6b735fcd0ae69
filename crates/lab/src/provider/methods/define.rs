//! Systems are defined, imported, realized, exported, upgraded, destroyed.

use wsman::cim::{CimInstance, CimPath};

use super::arguments::{SettingsOf, Strictness, invalid_parameter};
use super::management::{not_supported, notes, target};
use super::{Answer, Call, Refusal};
use crate::estate::{
    CheckpointId, ConfigurationVersion, ExportFolder, ExportRequest, ExportStorage, ImportId,
    Realm, SystemDefinition, VmGeneration, VmId, WindowsPath,
};
use crate::provider::identity::VIRTUALIZATION;

/// Properties of `SystemSettings` that are used; any other that is given is refused.
const DEFINED: &[&str] = &[
    "ConfigurationDataRoot",
    "ElementName",
    "Notes",
    "Version",
    "VirtualSystemSubType",
    "VirtualSystemType",
];

/// `DefineSystem`.
pub(super) fn define_system(call: &mut Call<'_>) -> Answer {
    define(call, Realm::Realized)
}

/// `DefinePlannedSystem`.
pub(super) fn define_planned_system(call: &mut Call<'_>) -> Answer {
    define(call, Realm::Planned)
}

/// Resources are added afterwards, one by one: together with the definition they are not modelled.
fn define(call: &mut Call<'_>, realm: Realm) -> Answer {
    let text = call.inputs.required_text("SystemSettings")?;
    let given = call.read_embedded(&text, "Msvm_VirtualSystemSettingData", Strictness::Define)?;
    let class = "CIM_ResourceAllocationSettingData";
    let resources = call.embedded_list("ResourceSettings", class, Strictness::Define)?;
    if !resources.is_empty() || call.inputs.reference("ReferenceConfiguration").is_some() {
        return Err(not_supported());
    }
    let definition = definition(&given)?;
    let host = call.host.clone();
    let started = call.estate.define_system(&host, definition, realm)?;
    Ok(call.answer(&started, Some("ResultingSystem")))
}

fn definition(given: &CimInstance) -> Result<SystemDefinition, Refusal> {
    let text = |name: &str| given.text_ref(name).filter(|text| !text.is_empty());
    let mut properties = given.properties.iter();
    if properties.any(|(name, value)| !value.is_null() && !DEFINED.contains(&name.as_str())) {
        return Err(not_supported());
    }
    let generation = match text("VirtualSystemSubType") {
        None | Some("Microsoft:Hyper-V:SubType:1") => VmGeneration::One,
        Some("Microsoft:Hyper-V:SubType:2") => VmGeneration::Two,
        Some(_) => return Err(invalid_parameter()),
    };
    match text("VirtualSystemType") {
        None | Some("Microsoft:Hyper-V:System:Realized" | "Microsoft:Hyper-V:System:Planned") => {}
        Some(_) => return Err(invalid_parameter()),
    }
    let folder = text("ConfigurationDataRoot").map(WindowsPath::parse);
    Ok(SystemDefinition {
        name: text("ElementName")
            .unwrap_or("New Virtual Machine")
            .to_owned(),
        generation,
        version: text("Version").map(version).transpose()?,
        folder: folder.transpose()?,
        notes: notes(given)?,
    })
}

fn version(text: &str) -> Result<ConfigurationVersion, Refusal> {
    let (major, minor) = text.split_once('.').ok_or_else(invalid_parameter)?;
    Ok(ConfigurationVersion {
        major: major.parse().map_err(|_| invalid_parameter())?,
        minor: minor.parse().map_err(|_| invalid_parameter())?,
    })
}

/// `DestroySystem`.
pub(super) fn destroy_system(call: &mut Call<'_>) -> Answer {
    let (realm, id) = call.system("AffectedSystem")?;
    let host = call.host.clone();
    let started = call.estate.destroy_system(&host, target(realm, id))?;
    Ok(call.answer(&started, None))
}

/// `ImportSystemDefinition`. Checkpoints are not imported: a folder for them is refused.
pub(super) fn import_system_definition(call: &mut Call<'_>) -> Answer {
    let file = call.inputs.path("SystemDefinitionFile")?;
    if call.inputs.text("SnapshotFolder").is_some() {
        return Err(not_supported());
    }
    let import_id = if call.inputs.flag("GenerateNewSystemIdentifier")? {
        ImportId::Generate
    } else {
        ImportId::Keep
    };
    let host = call.host.clone();
    let started = call.estate.import_system(&host, &file, import_id)?;
    Ok(call.answer(&started, Some("ImportedSystem")))
}

/// `ValidatePlannedSystem`.
pub(super) fn validate_planned_system(call: &mut Call<'_>) -> Answer {
    let id = call.planned("PlannedSystem")?;
    let host = call.host.clone();
    let started = call.estate.validate_planned(&host, id)?;
    Ok(call.answer(&started, None))
}

/// `RealizePlannedSystem`.
pub(super) fn realize_planned_system(call: &mut Call<'_>) -> Answer {
    let id = call.planned("PlannedSystem")?;
    let host = call.host.clone();
    let started = call.estate.realize_planned(&host, id)?;
    Ok(call.answer(&started, Some("ResultingSystem")))
}

/// `UpgradeSystemVersion`: to the newest that the host knows.
pub(super) fn upgrade_system_version(call: &mut Call<'_>) -> Answer {
    let id = call.vm("ComputerSystem")?;
    if call.inputs.text("UpgradeSettingData").is_some() {
        return Err(not_supported());
    }
    let host = call.host.clone();
    let started = call.estate.upgrade_version(&host, id)?;
    Ok(call.answer(&started, None))
}

/// `ExportSystemDefinition`.
pub(super) fn export_system_definition(call: &mut Call<'_>) -> Answer {
    let id = call.vm("ComputerSystem")?;
    let directory = call.inputs.path("ExportDirectory")?;
    let class = "Msvm_VirtualSystemExportSettingData";
    let settings = call.embedded("ExportSettingData", class)?;
    let request = export_request(call, id, directory, settings.as_ref())?;
    let host = call.host.clone();
    let started = call.estate.export_system(&host, id, request)?;
    Ok(call.answer(&started, None))
}

fn export_request(
    call: &Call<'_>,
    id: VmId,
    directory: WindowsPath,
    settings: Option<&CimInstance>,
) -> Result<ExportRequest, Refusal> {
    let number = |name: &str| {
        let value = settings.map(|it| it.opt_u64(name)).transpose();
        value.map(Option::flatten).map_err(|_| invalid_parameter())
    };
    let flag = |name: &str| {
        let value = settings.map(|it| it.opt_bool(name)).transpose();
        value.map(Option::flatten).map_err(|_| invalid_parameter())
    };
    let given = |name: &str| settings.is_some_and(|it| it.get(name).is_some());
    let text = |name: &str| {
        settings
            .and_then(|it| it.text_ref(name))
            .filter(|it| !it.is_empty())
    };
    // Differential exports, chosen disks and the state of running VMs are not modelled.
    let is_other = text("DifferentialBackupBase").is_some()
        || given("ExcludedVirtualHardDisks")
        || number("BackupIntent")? == Some(1)
        || flag("ExportForLiveMigration")? == Some(true);
    if is_other {
        return Err(not_supported());
    }
    let has_user_checkpoints = {
        let vm = call.estate.vm(&call.host, id)?;
        vm.checkpoints.values().any(|it| it.kind.is_user())
    };
    let checkpoint = match (
        number("CopySnapshotConfiguration")?.unwrap_or(0),
        text("SnapshotVirtualSystem"),
    ) {
        (3, Some(path)) => Some(checkpoint_of(call, path)?),
        (3, None) | (0 | 1, Some(_)) => return Err(invalid_parameter()),
        (0, None) if has_user_checkpoints => return Err(not_supported()),
        (0 | 1, None) => None,
        (2, _) => return Err(not_supported()),
        _ => return Err(invalid_parameter()),
    };
    Ok(ExportRequest {
        directory,
        checkpoint,
        storage: if flag("CopyVmStorage")?.unwrap_or(true) {
            ExportStorage::Copy
        } else {
            ExportStorage::LeaveOut
        },
        folder: if flag("CreateVmExportSubdirectory")?.unwrap_or(true) {
            ExportFolder::Named
        } else {
            ExportFolder::AsGiven
        },
    })
}

fn checkpoint_of(call: &Call<'_>, text: &str) -> Result<CheckpointId, Refusal> {
    let path = CimPath::parse(text, &VIRTUALIZATION).map_err(|_| invalid_parameter())?;
    match call.settings_of_path(&path)? {
        SettingsOf::Checkpoint(id) => Ok(id),
        SettingsOf::System(..) => Err(invalid_parameter()),
    }
}
