//! Numbers and texts of Hyper-V, as facts.

use wsman::cim::{CimInstance, CimPath, Namespace};

use crate::clock::Timestamp;
use crate::facts::{
    Activity, CheckpointKind, GuestFamily, Health, PowerState, ReplicationRole, ServiceState,
};
use crate::ids::VmId;

use super::names::kind;

/// `EnabledState` of a machine. The numbers of the old namespace mean the same.
pub(super) fn power_state(number: u32) -> PowerState {
    match number {
        2 => PowerState::Running,
        3 => PowerState::Off,
        6 | 32_769 | 32_779 => PowerState::Saved,
        9 | 32_768 => PowerState::Paused,
        4 | 10 | 32_770 | 32_773 | 32_776 | 32_777 | 32_780 => PowerState::Changing,
        other => PowerState::Critical(other),
    }
}

/// `OperationalStatus[0]` of a machine.
pub(super) fn health(status: &[u64]) -> Health {
    match status.first().copied() {
        // In service and dormant are ways of being well.
        None | Some(2 | 11 | 15) => Health::Ok,
        Some(3) => Health::Degraded,
        Some(5) => Health::LowSpace,
        Some(other) => Health::Other(u32::try_from(other).unwrap_or(u32::MAX)),
    }
}

/// `OperationalStatus[1..]` of a machine.
pub(super) fn activities(status: &[u64]) -> Vec<Activity> {
    status
        .iter()
        .skip(1)
        .filter(|number| **number != 0)
        .map(|number| match number {
            32_768 => Activity::CreatingCheckpoint,
            32_769 => Activity::ApplyingCheckpoint,
            32_770 => Activity::DeletingCheckpoint,
            32_771 => Activity::WaitingToStart,
            32_772 => Activity::Merging,
            32_773 => Activity::Exporting,
            32_774 => Activity::Migrating,
            other => Activity::Other(u32::try_from(*other).unwrap_or(u32::MAX)),
        })
        .take(16)
        .collect()
}

/// `ReplicationMode`.
pub(super) fn replication(mode: Option<u64>) -> ReplicationRole {
    match mode {
        Some(1) => ReplicationRole::Primary,
        Some(2) => ReplicationRole::Replica,
        Some(3) => ReplicationRole::TestReplica,
        Some(4) => ReplicationRole::ExtendedReplica,
        _ => ReplicationRole::None,
    }
}

/// `VirtualSystemType` of a checkpoint's settings; `None` when they are no checkpoint's.
pub(super) fn checkpoint_kind(system_type: &str) -> Option<CheckpointKind> {
    let starts = |prefix: &str| {
        system_type
            .get(..prefix.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(prefix))
    };
    if !starts(kind::SNAPSHOT) {
        None
    } else if system_type.eq_ignore_ascii_case(kind::USER) {
        Some(CheckpointKind::User)
    } else if system_type.eq_ignore_ascii_case(kind::RECOVERY) {
        Some(CheckpointKind::Recovery)
    } else if starts(kind::REPLICA) {
        Some(CheckpointKind::Replica)
    } else {
        Some(CheckpointKind::Other)
    }
}

/// State of an integration component.
pub(super) fn service_state(row: &CimInstance) -> ServiceState {
    let enabled = row.opt_u64("EnabledState").ok().flatten();
    if enabled == Some(3) {
        return ServiceState::Disabled;
    }
    let status = row.u64s("OperationalStatus").unwrap_or_default();
    match status.first().copied() {
        Some(2 | 3) => ServiceState::Ok,
        Some(12 | 13) => ServiceState::NoContact,
        Some(7) => ServiceState::Incompatible,
        _ => ServiceState::Enabled,
    }
}

/// A time of the host; 1601 means none.
pub(super) fn time(row: &CimInstance, property: &str) -> Option<Timestamp> {
    let time = row.opt_datetime(property).ok().flatten()?;
    (!time.is_none()).then(|| Timestamp(time.unix_micros().div_euclid(1000)))
}

/// A text that is there and not empty.
pub(super) fn text(row: &CimInstance, property: &str) -> Option<String> {
    let text = row.text_ref(property)?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// The machine (or checkpoint) that an `InstanceID` of settings belongs to, and what stands behind it.
///
/// `Microsoft:GUID`, `Microsoft:GUID\…`, and the same with doubled backslashes.
pub(super) fn owner_of_id(id: &str) -> Option<(VmId, &str)> {
    const PREFIX: &str = "microsoft:";
    let head = id.get(..PREFIX.len())?;
    if !head.eq_ignore_ascii_case(PREFIX) {
        return None;
    }
    let rest = id.get(PREFIX.len()..)?;
    let guid = rest.get(..36)?;
    let tail = rest.get(36..)?;
    if !tail.is_empty() && !tail.starts_with('\\') {
        return None;
    }
    Some((guid.parse().ok()?, tail.trim_start_matches('\\')))
}

/// By what two spellings of an `InstanceID` are the same: case and doubled backslashes do not count.
pub(super) fn id_key(id: &str) -> String {
    let mut key = id.to_ascii_lowercase();
    while key.contains("\\\\") {
        key = key.replace("\\\\", "\\");
    }
    key
}

/// The `InstanceID` that an object path in a text names.
pub(super) fn id_of_path_text(text: &str, namespace: &Namespace) -> Option<String> {
    let path = CimPath::parse(text, namespace).ok()?;
    Some(id_key(&path.key("InstanceID")?))
}

/// Family of a guest by what it told through the key-value exchange.
pub(super) fn guest_family(name: Option<&str>, platform: Option<&str>) -> Option<GuestFamily> {
    // VER_PLATFORM_WIN32_NT is 2; Linux guests leave the item out or empty.
    let name = name.unwrap_or_default().to_lowercase();
    if platform.map(str::trim) == Some("2") || name.contains("windows") {
        Some(GuestFamily::Windows)
    } else if name.is_empty() {
        None
    } else {
        Some(GuestFamily::Linux)
    }
}
