//! What to ask a host for, for a level of consistency: pure.

use wsman::cim::CimInstance;

use super::{FULL, RECOVERY};
use crate::checkpoint::{Warning, WarningCode};
use crate::consistency::{Consistency, GuestBackupType};
use crate::facts::{
    CheckpointKind, GuestFamily, HostGeneration, PowerState, ServiceState, VmFacts,
};

/// One try.
pub(in super::super) struct Attempt {
    /// What it reaches when it succeeds.
    pub reached: Consistency,
    /// Whether the machine must be saved first.
    pub must_save: bool,
    /// `SnapshotType`.
    pub snapshot_type: u64,
    /// Settings; `None` for the host's own.
    pub settings: Option<CimInstance>,
    /// What an operator should know.
    pub warnings: Vec<Warning>,
}

impl Attempt {
    pub(in super::super) fn kind(&self) -> CheckpointKind {
        if self.snapshot_type == RECOVERY {
            CheckpointKind::Recovery
        } else {
            CheckpointKind::User
        }
    }
}

/// Values of `ConsistencyLevel`.
const FLUSHED: u64 = 1;
const CRASH: u64 = 2;

/// Plans a try, or says why the level cannot be reached.
pub(super) fn plan_attempt(
    machine: &VmFacts,
    level: Consistency,
    backup_type: GuestBackupType,
) -> Result<Attempt, String> {
    match machine.power {
        PowerState::Off | PowerState::Saved => {
            // Nothing moves: the disks are as consistent as they can be, whatever was asked for.
            return Ok(attempt(
                machine,
                Consistency::SavedState,
                CRASH,
                backup_type,
            ));
        }
        PowerState::Running => {}
        PowerState::Paused => {
            return match level {
                Consistency::Crash if !is_old(machine) => {
                    Ok(attempt(machine, Consistency::Crash, CRASH, backup_type))
                }
                _ => Err("the machine is paused".to_owned()),
            };
        }
        state @ (PowerState::Changing | PowerState::Critical(_)) => {
            return Err(format!("the machine is {state}"));
        }
    }
    if level == Consistency::SavedState {
        if machine.has_assigned_devices == Some(true) {
            return Err("a machine with devices of the host cannot be saved".to_owned());
        }
        let mut saved = attempt(machine, Consistency::SavedState, CRASH, backup_type);
        saved.must_save = true;
        return Ok(saved);
    }
    if is_old(machine) {
        return Err(
            "Windows Server 2012 R2 makes no recovery checkpoints over WMI: only saved state"
                .to_owned(),
        );
    }
    if level == Consistency::Crash {
        return Ok(attempt(machine, Consistency::Crash, CRASH, backup_type));
    }
    plan_flushed(machine, level, backup_type)
}

/// A checkpoint for which the guest flushes: file systems, and applications where it is a Windows.
fn plan_flushed(
    machine: &VmFacts,
    level: Consistency,
    backup_type: GuestBackupType,
) -> Result<Attempt, String> {
    match machine.integration.backup {
        Some(ServiceState::Disabled) => {
            return Err("the backup integration service is switched off".to_owned());
        }
        Some(ServiceState::NoContact) => {
            return Err("the backup integration service in the guest does not answer".to_owned());
        }
        Some(ServiceState::Incompatible) => {
            return Err("the backup integration service in the guest is incompatible".to_owned());
        }
        Some(ServiceState::Ok | ServiceState::Enabled) | None => {}
    }
    // A freeze of file systems and a flush of applications are the same request: which it is, only the guest decides.
    match (machine.guest.family, level) {
        (Some(GuestFamily::Windows), _) => Ok(attempt(
            machine,
            Consistency::Application,
            FLUSHED,
            backup_type,
        )),
        (Some(GuestFamily::Linux), Consistency::Application) => Err(
            "Linux has no VSS: its file systems can be frozen, its applications cannot".to_owned(),
        ),
        (None, Consistency::Application) => Err(
            "the guest did not tell its system: whether applications are flushed cannot be known"
                .to_owned(),
        ),
        (_, _) => Ok(attempt(
            machine,
            Consistency::FileSystem,
            FLUSHED,
            backup_type,
        )),
    }
}

fn is_old(machine: &VmFacts) -> bool {
    machine.host_generation == Some(HostGeneration::Server2012R2)
}

fn attempt(
    machine: &VmFacts,
    reached: Consistency,
    consistency_level: u64,
    backup_type: GuestBackupType,
) -> Attempt {
    let mut warnings = Vec::new();
    if is_old(machine) {
        return Attempt {
            reached,
            must_save: false,
            snapshot_type: FULL,
            settings: None,
            warnings,
        };
    }
    let mut settings = CimInstance::new("Msvm_VirtualSystemSnapshotSettingData")
        .with("ConsistencyLevel", consistency_level)
        .with("IgnoreNonSnapshottableDisks", true);
    // The property came after Windows Server 2016, which may refuse an instance with it.
    let knows_type = machine
        .host_generation
        .is_some_and(|generation| generation >= HostGeneration::Server2019);
    let number: u64 = match backup_type {
        GuestBackupType::Full => 1,
        GuestBackupType::Copy => 2,
    };
    if knows_type {
        settings.set("GuestBackupType", number);
    } else if backup_type == GuestBackupType::Full && consistency_level == FLUSHED {
        warnings.push(Warning {
            code: WarningCode::LessConsistent,
            text: "this host cannot be told that the backup is a full one: logs of applications are left as they are"
                .to_owned(),
        });
    }
    Attempt {
        reached,
        must_save: false,
        snapshot_type: RECOVERY,
        settings: Some(settings),
        warnings,
    }
}
