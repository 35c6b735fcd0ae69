//! Checkpoints and reference points: the snapshot service and the reference point service.

use super::arguments::invalid_parameter;
use super::{Answer, Call, Refusal};
use crate::estate::{
    CheckpointRequest, ConsistencyLevel, GuestBackupType, NonSnapshottable, ReferencePointKind,
    SnapshotType, WindowsGeneration,
};
use crate::provider::embedded;
use wsman::cim::CimInstance;

const SETTINGS: &str = "Msvm_VirtualSystemSnapshotSettingData";

/// `CreateSnapshot`.
pub(super) fn create_snapshot(call: &mut Call<'_>) -> Answer {
    let id = call.vm("AffectedSystem")?;
    let snapshot_type = match call.inputs.required_number("SnapshotType")? {
        2 => SnapshotType::Full,
        3 => SnapshotType::Disk,
        32768 => SnapshotType::Recovery,
        _ => return Err(invalid_parameter()),
    };
    let settings = snapshot_settings(call)?;
    let request = request_of(snapshot_type, settings.as_ref())?;
    let host = call.host.clone();
    let started = call.estate.create_checkpoint(&host, id, request)?;
    Ok(call.answer(&started, Some("ResultingSnapshot")))
}

/// The settings that were given, if any. Server 2016 does not know `GuestBackupType`: what it does then is a switch, which the
/// estate answers.
fn snapshot_settings(call: &Call<'_>) -> Result<Option<CimInstance>, Refusal> {
    let windows = call.estate.host(&call.host)?.windows;
    let settings = call.embedded("SnapshotSettings", SETTINGS);
    if windows != WindowsGeneration::Server2016 {
        return settings;
    }
    let text = call.inputs.text("SnapshotSettings").unwrap_or_default();
    settings.or_else(|refused| {
        embedded::read_newer(&text, SETTINGS)
            .map(Some)
            .ok_or(refused)
    })
}

fn request_of(
    snapshot_type: SnapshotType,
    settings: Option<&CimInstance>,
) -> Result<CheckpointRequest, Refusal> {
    let number = |name: &str| {
        let value = settings.map(|it| it.opt_u64(name));
        value
            .transpose()
            .map(Option::flatten)
            .map_err(|_| invalid_parameter())
    };
    let consistency = match number("ConsistencyLevel")? {
        None | Some(0) => None,
        Some(1) => Some(ConsistencyLevel::Application),
        Some(2) => Some(ConsistencyLevel::Crash),
        Some(_) => return Err(invalid_parameter()),
    };
    let backup_type = match number("GuestBackupType")? {
        None => None,
        Some(0) => Some(GuestBackupType::Undefined),
        Some(1) => Some(GuestBackupType::Full),
        Some(2) => Some(GuestBackupType::Copy),
        Some(_) => return Err(invalid_parameter()),
    };
    let ignores = settings.map(|it| it.opt_bool("IgnoreNonSnapshottableDisks"));
    let ignores = ignores
        .transpose()
        .map_err(|_| invalid_parameter())?
        .flatten();
    Ok(CheckpointRequest {
        snapshot_type,
        consistency,
        backup_type,
        non_snapshottable: if ignores == Some(true) {
            NonSnapshottable::LeaveOut
        } else {
            NonSnapshottable::Refuse
        },
    })
}

/// `DestroySnapshot`.
pub(super) fn destroy_snapshot(call: &mut Call<'_>) -> Answer {
    let id = call.checkpoint("AffectedSnapshot")?;
    let host = call.host.clone();
    let started = call.estate.destroy_checkpoint(&host, id)?;
    Ok(call.answer(&started, None))
}

/// `DestroySnapshotTree`.
pub(super) fn destroy_snapshot_tree(call: &mut Call<'_>) -> Answer {
    let id = call.checkpoint("SnapshotSettingData")?;
    let host = call.host.clone();
    let started = call.estate.destroy_checkpoint_tree(&host, id)?;
    Ok(call.answer(&started, None))
}

/// `ApplySnapshot`.
pub(super) fn apply_snapshot(call: &mut Call<'_>) -> Answer {
    let id = call.checkpoint("Snapshot")?;
    let host = call.host.clone();
    let started = call.estate.apply_checkpoint(&host, id)?;
    Ok(call.answer(&started, None))
}

/// `ClearSnapshotState`.
pub(super) fn clear_snapshot_state(call: &mut Call<'_>) -> Answer {
    let id = call.checkpoint("SnapshotSettingData")?;
    let host = call.host.clone();
    let started = call.estate.clear_checkpoint_state(&host, id)?;
    Ok(call.answer(&started, None))
}

/// Settings of reference points: only what they say of consistency.
fn point_consistency(call: &Call<'_>) -> Result<Option<ConsistencyLevel>, Refusal> {
    let class = "Msvm_VirtualSystemReferencePointSettingData";
    let settings = call.embedded("ReferencePointSettings", class)?;
    let level = settings.map(|it| it.opt_u64("ConsistencyLevel"));
    let level = level
        .transpose()
        .map_err(|_| invalid_parameter())?
        .flatten();
    match level {
        None | Some(0) => Ok(None),
        Some(1) => Ok(Some(ConsistencyLevel::Application)),
        Some(2) => Ok(Some(ConsistencyLevel::Crash)),
        Some(_) => Err(invalid_parameter()),
    }
}

/// `ConvertToReferencePoint`. The moment was made already: settings that ask for another consistency change nothing.
pub(super) fn convert_to_reference_point(call: &mut Call<'_>) -> Answer {
    let id = call.checkpoint("AffectedSnapshot")?;
    point_consistency(call)?;
    let host = call.host.clone();
    let started = call.estate.convert_to_reference_point(&host, id)?;
    Ok(call.answer(&started, Some("ResultingReferencePoint")))
}

/// `CreateReferencePoint`: here 0 is a log and 1 is change tracking, unlike in the property.
pub(super) fn create_reference_point(call: &mut Call<'_>) -> Answer {
    let id = call.vm("AffectedSystem")?;
    let kind = match call.inputs.required_number("ReferencePointType")? {
        0 => ReferencePointKind::Log,
        1 => ReferencePointKind::Rct,
        _ => return Err(invalid_parameter()),
    };
    let consistency = point_consistency(call)?.unwrap_or(ConsistencyLevel::Crash);
    let host = call.host.clone();
    let started = call
        .estate
        .create_reference_point(&host, id, kind, consistency)?;
    Ok(call.answer(&started, Some("ResultingReferencePoint")))
}

/// `DestroyReferencePoint`.
pub(super) fn destroy_reference_point(call: &mut Call<'_>) -> Answer {
    let (vm, point) = call.reference_point("AffectedReferencePoint")?;
    let host = call.host.clone();
    let started = call.estate.destroy_reference_point(&host, vm, point)?;
    Ok(call.answer(&started, None))
}
