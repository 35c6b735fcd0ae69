//! The management service: settings and resources of systems, marks on VMs.
//!
//! ```text
//!   an embedded instance ─► compared with the row as it is ─► what differs is a change that is modelled, or refused (32770)
//! ```

use wsman::cim::{CimInstance, CimValue, embedded as cim_xml};

use super::arguments::{SettingsOf, Strictness, invalid_parameter};
use super::{Answer, Call, Outcome, Refusal};
use crate::ReturnCode;
use crate::estate::{
    MergeState, Realm, StartAction, SystemChange, SystemTarget, UserCheckpointType,
};
use crate::provider::identity::{DISK_MERGE, PartedId};
use crate::provider::rows::{Holder, Scene, settings};

pub(super) fn not_supported() -> Refusal {
    Refusal::Code(ReturnCode::NotSupported.value())
}

pub(super) fn target(realm: Realm, id: crate::estate::VmId) -> SystemTarget {
    match realm {
        Realm::Realized => SystemTarget::Realized(id),
        Realm::Planned => SystemTarget::Planned(id),
    }
}

/// Names of the properties that are given and are not as they stand, keys left out.
pub(in crate::provider) fn differences(given: &CimInstance, now: &CimInstance) -> Vec<String> {
    let differs = |name: &str, value: &CimValue| {
        !value.is_null() && folded(value) != now.get(name).map_or_else(Vec::new, folded)
    };
    let properties = given.properties.iter();
    properties
        .filter(|(name, value)| *name != "InstanceID" && differs(name, value))
        .map(|(name, _)| name.clone())
        .collect()
}

/// A value as texts, in one spelling: without case, with single backslashes.
fn folded(value: &CimValue) -> Vec<String> {
    let one = |value: &CimValue| {
        let text = value.to_wire_text().unwrap_or_default();
        text.replace("\\\\", "\\").to_lowercase()
    };
    match value {
        CimValue::Array(values) => values.iter().map(one).collect(),
        value => vec![one(value)],
    }
}

/// `ModifyDiskMergeSettings`: `InstanceID` tells the VM.
pub(super) fn modify_disk_merge_settings(call: &mut Call<'_>) -> Answer {
    let given = call
        .embedded("SettingData", "Msvm_DiskMergeSettingData")?
        .ok_or_else(invalid_parameter)?;
    let id = given.text_ref("InstanceID").and_then(PartedId::parse);
    let id = id.filter(|id| id.rest.eq_ignore_ascii_case(DISK_MERGE));
    let id = id.ok_or_else(invalid_parameter)?;
    let state = match given.opt_u64("EnabledState") {
        Ok(Some(1)) => MergeState::Enabled,
        Ok(Some(0)) => MergeState::Suspended,
        _ => return Err(invalid_parameter()),
    };
    let host = call.host.clone();
    let started = call.estate.set_merge_state(&host, id.vm(), state)?;
    Ok(call.answer(&started, None))
}

/// `ModifySystemSettings`: of a system, or the name of a checkpoint.
pub(super) fn modify_system_settings(call: &mut Call<'_>) -> Answer {
    let given = call
        .embedded("SystemSettings", "Msvm_VirtualSystemSettingData")?
        .ok_or_else(invalid_parameter)?;
    let path = crate::provider::identity::by_instance_id(
        "Msvm_VirtualSystemSettingData",
        given.text_ref("InstanceID").ok_or_else(invalid_parameter)?,
    );
    let host = call.host.clone();
    let of = call.settings_of_path(&path)?;
    let changed = {
        let scene = scene(call)?;
        let (vm, checkpoint) = match of {
            SettingsOf::System(realm, id) => (scene.estate.target(&host, target(realm, id))?, None),
            SettingsOf::Checkpoint(id) => {
                let vm = scene.estate.vm_of_checkpoint(&host, id)?;
                (vm, vm.checkpoint(id))
            }
        };
        let now = settings::settings_row(&scene, &Holder { vm, checkpoint });
        differences(&given, &now)
    };
    let started = match of {
        SettingsOf::Checkpoint(id) => {
            if changed.iter().any(|name| name != "ElementName") {
                return Err(not_supported());
            }
            let name = given.text_ref("ElementName").unwrap_or_default();
            call.estate.rename_checkpoint(&host, id, name)?
        }
        SettingsOf::System(realm, id) => {
            let change = system_change(&given, &changed)?;
            call.estate
                .modify_system(&host, target(realm, id), change)?
        }
    };
    Ok(call.answer(&started, None))
}

fn system_change(given: &CimInstance, changed: &[String]) -> Result<SystemChange, Refusal> {
    let mut change = SystemChange::default();
    for name in changed {
        let number = || given.u64(name).map_err(|_| invalid_parameter());
        match name.as_str() {
            "ElementName" => change.name = given.text_ref(name).map(str::to_owned),
            "Notes" => change.notes = Some(notes(given)?),
            "UserSnapshotType" => {
                change.user_checkpoints = Some(match number()? {
                    2 => UserCheckpointType::Disabled,
                    3 => UserCheckpointType::ProductionFallback,
                    4 => UserCheckpointType::ProductionOnly,
                    5 => UserCheckpointType::Standard,
                    _ => return Err(invalid_parameter()),
                });
            }
            "AutomaticStartupAction" => {
                change.start_action = Some(match number()? {
                    2 => StartAction::Nothing,
                    3 => StartAction::RestartIfRunning,
                    4 => StartAction::Always,
                    _ => return Err(invalid_parameter()),
                });
            }
            _ => return Err(not_supported()),
        }
    }
    Ok(change)
}

/// Of several notes the first is kept; `&` and `<` are refused, as hosts were seen to do.
pub(super) fn notes(given: &CimInstance) -> Result<String, Refusal> {
    let notes = given.texts("Notes").map_err(|_| invalid_parameter())?;
    let first = notes.into_iter().next().unwrap_or_default();
    if first.contains(['&', '<']) {
        return Err(Refusal::Code(ReturnCode::Failed.value()));
    }
    Ok(first)
}

pub(super) fn scene<'s>(call: &'s Call<'_>) -> Result<Scene<'s>, Refusal> {
    Ok(Scene {
        estate: &*call.estate,
        host: call.estate.live_host(&call.host)?,
        language: call.language,
    })
}

/// Whether items may be there already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Items {
    Add,
    Modify,
    Remove,
}

/// `AddKvpItems`: each must be new.
pub(super) fn add_kvp_items(call: &mut Call<'_>) -> Answer {
    kvp_items(call, Items::Add)
}

/// `ModifyKvpItems`: each must be there.
pub(super) fn modify_kvp_items(call: &mut Call<'_>) -> Answer {
    kvp_items(call, Items::Modify)
}

/// `RemoveKvpItems`.
pub(super) fn remove_kvp_items(call: &mut Call<'_>) -> Answer {
    kvp_items(call, Items::Remove)
}

/// At most 128 items; only those that the host keeps for itself (`Source` 4) are modelled.
fn kvp_items(call: &mut Call<'_>, what: Items) -> Answer {
    let id = call.vm("TargetSystem")?;
    let items = call.embedded_list("DataItems", "Msvm_KvpExchangeDataItem", Strictness::Other)?;
    if items.is_empty() || items.len() > 128 {
        return Err(invalid_parameter());
    }
    let host = call.host.clone();
    let mut checked = Vec::new();
    for item in &items {
        match item.opt_u64("Source") {
            Ok(Some(4)) => {}
            Ok(None | Some(0)) => return Err(not_supported()),
            _ => return Err(invalid_parameter()),
        }
        let name = item.text("Name").map_err(|_| invalid_parameter())?;
        let data = item.text_ref("Data").unwrap_or_default().to_owned();
        let is_there = call.estate.vm(&host, id)?.host_items.contains_key(&name);
        if name.is_empty() || is_there == (what == Items::Add) {
            return Err(invalid_parameter());
        }
        checked.push((name, data));
    }
    let mut last = None;
    for (name, data) in checked {
        let value = (what != Items::Remove).then_some(data.as_str());
        last = Some(call.estate.set_host_item(&host, id, &name, value)?);
    }
    Ok(last.map_or_else(|| Outcome::code(0), |started| call.answer(&started, None)))
}

/// `FormatError`: the messages of errors, one below the other.
pub(super) fn format_error(call: &mut Call<'_>) -> Answer {
    let mut lines = Vec::new();
    for text in call.inputs.texts("Errors") {
        let error = cim_xml::read(&text).map_err(|_| invalid_parameter())?;
        lines.extend(error.text_ref("Message").map(str::to_owned));
    }
    Ok(Outcome::code(0).with("ErrorMessage", lines.join("\n")))
}
