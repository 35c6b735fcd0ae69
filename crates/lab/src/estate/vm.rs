//! A virtual machine: settings, state, checkpoints, reference points, services in its guest.
//!
//! ```text
//!            start            pause             (running) save, checkpoint, migrate …
//!   Off ──► Starting ──► Running ⇄ Pausing/Paused/Resuming
//!    ▲                      │ └──► Saving ──► Saved ──► Starting
//!    └── Stopping ◄─────────┘
//! ```
//!
//! **Invariants.** Between requests `requested` is 12. A VM does one thing at a time ([`Activity`]); merging is the exception
//! and goes on beside.

use std::collections::BTreeMap;

use super::checkpoint::{Checkpoint, ReferencePoint};
use super::clock::VirtualTime;
use super::hardware::Hardware;
use super::ids::{CheckpointId, HostName, JobId, ReferencePointId, SystemKey, VmId};
use super::path::WindowsPath;
use super::running::Session;

/// Virtual machine generation: which virtual hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmGeneration {
    /// BIOS and IDE.
    One,
    /// UEFI and SCSI.
    Two,
}

/// Version of a VM's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigurationVersion {
    /// Before the point.
    pub major: u16,
    /// Behind it.
    pub minor: u16,
}

impl ConfigurationVersion {
    /// Change tracking and recovery checkpoints begin here (vendors say 6.2, Microsoft 8.0: the later one).
    pub const FIRST_WITH_TRACKING: Self = Self { major: 8, minor: 0 };
}

impl std::fmt::Display for ConfigurationVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Whether a system is a VM, or one that is being imported or migrated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Realm {
    /// A VM.
    Realized,
    /// A planned system.
    Planned,
}

/// What user checkpoints (`SnapshotType` 2) of a VM are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UserCheckpointType {
    /// 2: refused.
    Disabled,
    /// 3: production, standard when that fails.
    ProductionFallback,
    /// 4: production or nothing.
    ProductionOnly,
    /// 5: standard, with memory.
    Standard,
}

impl UserCheckpointType {
    /// `UserSnapshotType`.
    pub fn value(self) -> u16 {
        match self {
            Self::Disabled => 2,
            Self::ProductionFallback => 3,
            Self::ProductionOnly => 4,
            Self::Standard => 5,
        }
    }
}

/// What happens to a VM when its host starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StartAction {
    /// 2.
    Nothing,
    /// 3: started if it ran.
    RestartIfRunning,
    /// 4.
    Always,
}

impl StartAction {
    /// `AutomaticStartupAction`.
    pub fn value(self) -> u16 {
        match self {
            Self::Nothing => 2,
            Self::RestartIfRunning => 3,
            Self::Always => 4,
        }
    }
}

/// Settings of a VM or of one of its checkpoints: what `Msvm_VirtualSystemSettingData` and its components tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSettings {
    /// Display name; not unique.
    pub name: String,
    /// Virtual hardware generation.
    pub generation: VmGeneration,
    /// Configuration version.
    pub version: ConfigurationVersion,
    /// What the operator noted.
    pub notes: String,
    /// Folder of the configuration.
    pub configuration_root: WindowsPath,
    /// Folder of checkpoints' configuration.
    pub checkpoint_root: WindowsPath,
    /// Kind of user checkpoints.
    pub user_checkpoints: UserCheckpointType,
    /// What happens when the host starts.
    pub start_action: StartAction,
    /// BIOS serial number.
    pub bios_serial: String,
    /// Virtual hardware.
    pub hardware: Hardware,
}

/// `EnabledState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PowerState {
    /// 2.
    Running,
    /// 3.
    Off,
    /// 4.
    Stopping,
    /// 6.
    Saved,
    /// 9.
    Paused,
    /// 10.
    Starting,
    /// 32773.
    Saving,
    /// 32776.
    Pausing,
    /// 32777.
    Resuming,
}

impl PowerState {
    /// `EnabledState`.
    pub fn value(self) -> u16 {
        match self {
            Self::Running => 2,
            Self::Off => 3,
            Self::Stopping => 4,
            Self::Saved => 6,
            Self::Paused => 9,
            Self::Starting => 10,
            Self::Saving => 32773,
            Self::Pausing => 32776,
            Self::Resuming => 32777,
        }
    }

    /// Whether a worker process holds the disks open.
    pub fn holds_disks(self) -> bool {
        !matches!(self, Self::Off | Self::Saved)
    }
}

/// The one thing that a VM does: second entry of `OperationalStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activity {
    /// 32768.
    CreatingCheckpoint,
    /// 32769.
    ApplyingCheckpoint,
    /// 32770.
    DeletingCheckpoint,
    /// 32772.
    MergingDisks,
    /// 32773.
    Exporting,
    /// 32774.
    Migrating,
    /// A state change: no second status.
    ChangingState,
    /// Settings are being changed: no second status.
    Modifying,
}

impl Activity {
    /// Second entry of `OperationalStatus`, if it has one.
    pub fn operational_status(self) -> Option<u16> {
        match self {
            Self::CreatingCheckpoint => Some(32768),
            Self::ApplyingCheckpoint => Some(32769),
            Self::DeletingCheckpoint => Some(32770),
            Self::MergingDisks => Some(32772),
            Self::Exporting => Some(32773),
            Self::Migrating => Some(32774),
            Self::ChangingState | Self::Modifying => None,
        }
    }
}

/// What answers in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceStatus {
    /// 2.
    Ok,
    /// 3: an older protocol.
    Degraded,
    /// 7: an incompatible protocol.
    NonRecoverable,
    /// 12: the guest does not run the service.
    NoContact,
    /// 13.
    LostCommunication,
}

impl ServiceStatus {
    /// First entry of `OperationalStatus`.
    pub fn value(self) -> u16 {
        match self {
            Self::Ok => 2,
            Self::Degraded => 3,
            Self::NonRecoverable => 7,
            Self::NoContact => 12,
            Self::LostCommunication => 13,
        }
    }

    /// Whether requests reach the guest.
    pub fn answers(self) -> bool {
        matches!(self, Self::Ok | Self::Degraded)
    }
}

/// An integration service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntegrationService {
    /// Whether the operator left it enabled (2) or disabled it (3).
    pub is_enabled: bool,
    /// What the guest's side says while it runs.
    pub in_guest: ServiceStatus,
}

impl IntegrationService {
    /// Enabled and answering.
    pub const WORKING: Self = Self {
        is_enabled: true,
        in_guest: ServiceStatus::Ok,
    };
    /// Enabled, nothing answers.
    pub const SILENT: Self = Self {
        is_enabled: true,
        in_guest: ServiceStatus::NoContact,
    };
}

/// Integration services of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntegrationServices {
    /// Volume shadow copies, or freezing in Linux.
    pub vss: IntegrationService,
    /// Key-value pairs.
    pub kvp: IntegrationService,
    /// Shutdown.
    pub shutdown: IntegrationService,
    /// Heartbeat.
    pub heartbeat: IntegrationService,
    /// Time.
    pub time: IntegrationService,
    /// File copy.
    pub guest_services: IntegrationService,
}

impl IntegrationServices {
    /// All working.
    pub const WORKING: Self = Self {
        vss: IntegrationService::WORKING,
        kvp: IntegrationService::WORKING,
        shutdown: IntegrationService::WORKING,
        heartbeat: IntegrationService::WORKING,
        time: IntegrationService::WORKING,
        guest_services: IntegrationService {
            is_enabled: false,
            in_guest: ServiceStatus::NoContact,
        },
    };
    /// All enabled, none answering: a guest without integration services.
    pub const SILENT: Self = Self {
        vss: IntegrationService::SILENT,
        kvp: IntegrationService::SILENT,
        shutdown: IntegrationService::SILENT,
        heartbeat: IntegrationService::SILENT,
        time: IntegrationService::SILENT,
        guest_services: IntegrationService {
            is_enabled: false,
            in_guest: ServiceStatus::NoContact,
        },
    };
}

/// `ReplicationMode`, as far as a backup must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicationMode {
    /// 0.
    None,
    /// 1.
    Primary,
    /// 2.
    Replica,
    /// 3.
    TestReplica,
    /// 4.
    ExtendedReplica,
}

impl ReplicationMode {
    /// The number on the wire.
    pub fn value(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Primary => 1,
            Self::Replica => 2,
            Self::TestReplica => 3,
            Self::ExtendedReplica => 4,
        }
    }
}

/// Whether merges may run (`ModifyDiskMergeSettings`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MergeState {
    /// As usual.
    Enabled,
    /// An export without storage left it suspended; frozen files are held until it is enabled, or the host restarts.
    Suspended,
}

/// A virtual machine or a planned one.
pub struct VirtualMachine {
    /// For as long as it exists.
    pub key: SystemKey,
    /// `Msvm_ComputerSystem.Name`.
    pub id: VmId,
    /// Realized or planned.
    pub realm: Realm,
    /// Where it is now.
    pub host: HostName,
    /// Its settings now.
    pub settings: VmSettings,
    /// `EnabledState`.
    pub power: PowerState,
    /// What `RequestStateChange` asked for; 12 when nothing is asked.
    pub requested: u16,
    /// What it is doing, and the job that does it.
    pub activity: Option<(Activity, JobId)>,
    /// Merges that run beside.
    pub merging: Option<JobId>,
    /// Whether merges may run.
    pub merge_state: MergeState,
    /// When it was made.
    pub created: VirtualTime,
    /// When its state changed last.
    pub state_changed: VirtualTime,
    /// When its configuration changed last.
    pub configuration_changed: VirtualTime,
    /// When it began to run; nothing while it does not.
    pub running_since: Option<VirtualTime>,
    /// Its checkpoints, of all kinds.
    pub checkpoints: BTreeMap<CheckpointId, Checkpoint>,
    /// The checkpoint that "now" is based on.
    pub current_parent: Option<CheckpointId>,
    /// The checkpoint that was applied last.
    pub last_applied: Option<CheckpointId>,
    /// Its reference points.
    pub reference_points: BTreeMap<ReferencePointId, ReferencePoint>,
    /// Integration services.
    pub integration: IntegrationServices,
    /// What the guest tells through key-value pairs, by name (`Source` 2).
    pub guest_facts: BTreeMap<String, String>,
    /// What the operator or a product wrote on the VM (`Source` 4).
    pub host_items: BTreeMap<String, String>,
    /// Volumes that the guest reaches by iSCSI itself: invisible to the host, a fact for eligibility.
    pub iscsi_in_guest: bool,
    /// Replication.
    pub replication: ReplicationMode,
    /// A state that the host cannot reach the files of: OperationalStatus 3.
    pub is_storage_lost: bool,
    pub(super) migrates_from: Option<HostName>,
    pub(super) tick_serial: u64,
    pub(super) session: Option<Session>,
    pub(super) guest: Option<crate::guest::Guest>,
}

impl VirtualMachine {
    /// `OperationalStatus`: one entry, or two while something goes on.
    pub fn operational_status(&self) -> Vec<u16> {
        let mut status = vec![if self.is_storage_lost { 3 } else { 2 }];
        let going_on = self
            .activity
            .and_then(|(activity, _)| activity.operational_status())
            .or_else(|| {
                self.merging
                    .and_then(|_| Activity::MergingDisks.operational_status())
            });
        status.extend(going_on);
        status
    }

    /// Whether a worker process runs and the guest with it.
    pub fn is_running(&self) -> bool {
        self.power == PowerState::Running
    }

    /// What a service says to the host now.
    pub fn service_status(&self, service: IntegrationService) -> ServiceStatus {
        if !self.is_running() || !service.is_enabled {
            ServiceStatus::NoContact
        } else {
            service.in_guest
        }
    }

    /// Path of the configuration file.
    pub fn configuration_file(&self) -> WindowsPath {
        self.settings
            .configuration_root
            .join("Virtual Machines")
            .join(&format!(
                "{}.{}",
                self.id,
                self.settings.configuration_extension()
            ))
    }

    /// A checkpoint.
    pub fn checkpoint(&self, id: CheckpointId) -> Option<&Checkpoint> {
        self.checkpoints.get(&id)
    }

    /// The guest, if one writes.
    pub fn guest(&self) -> Option<&crate::guest::Guest> {
        self.guest.as_ref()
    }
}

impl VmSettings {
    /// `vmcx`, or `xml` up to version 5.
    pub fn configuration_extension(&self) -> &'static str {
        if self.version.major >= 6 {
            "vmcx"
        } else {
            "xml"
        }
    }
}
