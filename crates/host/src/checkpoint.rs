//! Words of checkpoints: what is asked for, what was made, what becomes of it.
//!
//! ```text
//!              create                    settle                         drop_tracking(old)
//!   machine ───────────► Checkpoint ───────────────► TrackingPoint ─────────────────────► one tracking point at rest
//!      ▲        frozen disks are read here    (the checkpoint is gone;           (only after the point is committed)
//!      └──────────────── release ◄──────────── two points until then)
//!                (any error, cancel, crash)
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use block::ChangedRanges;

use crate::clock::Timestamp;
use crate::consistency::{Consistency, ConsistencyPolicy, GuestBackupType, MissedConsistency};
use crate::facts::{DiskSlot, ImageKind};
use crate::ids::{
    CheckpointId, CheckpointRef, DeviceId, DiskIdentity, NodeName, TrackingPointRef, TrackingToken,
    VmId,
};
use crate::path::HostPath;

/// A checkpoint for a backup, as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRequest {
    /// The machine.
    pub vm: VmId,
    /// What is wanted and what may be taken instead.
    pub policy: ConsistencyPolicy,
    /// What applications in the guest are told.
    pub backup_type: GuestBackupType,
    /// Longest that a guest that had to be saved may stand still before that is told as a warning.
    pub offline_limit: Duration,
    /// Longest that the freeze may take before it is told as a warning.
    pub freeze_limit: Duration,
}

impl CheckpointRequest {
    /// A request with the usual policy: application-consistent, else less, never a pause.
    pub fn new(vm: VmId) -> Self {
        Self {
            vm,
            policy: ConsistencyPolicy::default(),
            backup_type: GuestBackupType::Copy,
            offline_limit: Duration::from_secs(300),
            freeze_limit: Duration::from_secs(10),
        }
    }
}

/// A disk as it was at the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenDisk {
    /// Where it is plugged in.
    pub slot: DiskSlot,
    /// The host's name for the disk in the machine's own configuration (not the checkpoint's), by which runs are compared.
    pub device: DeviceId,
    /// The frozen image: the top of a chain that does not change while the checkpoint exists (KVM: the URI of an export).
    pub path: HostPath,
    /// Kind of the image.
    pub image: ImageKind,
    /// Identity that the image carries, where the host told it.
    pub identity: Option<DiskIdentity>,
    /// Size of the disk as the guest sees it, where the host told it; the image itself is the truth.
    pub size_bytes: Option<u64>,
}

/// Something on which the checkpoint stands still for nobody: not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedDisk {
    /// Where it is plugged in, where it is.
    pub slot: Option<DiskSlot>,
    /// Why it is not in the checkpoint.
    pub reason: String,
}

/// A file of the machine's configuration as of the checkpoint (`.vmcx`, `.vmrs`, `.vmgs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationFile {
    /// Where it lies.
    pub path: HostPath,
    /// What it is.
    pub kind: ConfigurationFileKind,
}

/// What a file of a configuration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfigurationFileKind {
    /// The configuration.
    Configuration,
    /// Runtime state; with a saved state, also memory.
    RuntimeState,
    /// Guest state: UEFI variables, virtual TPM.
    GuestState,
}

/// How long the guest stood still, as far as it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StillFacts {
    /// Upper bound of the freeze in milliseconds: how long the host's job took. The host owns the freeze and does not tell more.
    pub frozen_at_most_ms: Option<u64>,
    /// How long the machine did not run, in milliseconds: from the request to save it until it ran again.
    pub downtime_ms: Option<u64>,
}

/// Something that went well enough, and that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Stable name.
    pub code: WarningCode,
    /// What happened.
    pub text: String,
}

/// Stable name of a warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WarningCode {
    /// The mark could not be written: only the journal knows whose it is.
    Unmarked,
    /// The freeze may have taken longer than its limit.
    LongFreeze,
    /// The guest stood still longer than its limit.
    LongDowntime,
    /// A disk or another store of data is not in the checkpoint.
    Skipped,
    /// A virtual TPM or shielding: without its key protector the machine does not start elsewhere.
    KeyProtector,
    /// The machine could not be started again yet; the custodian goes on trying.
    NotResumed,
    /// Merging of disks was found suspended, and switched on again.
    MergeSuspended,
    /// A level of consistency that was wanted was not reached.
    LessConsistent,
    /// The machine moved while it was worked on.
    Moved,
    /// Another tool's checkpoint or tracking point was seen.
    Foreign,
    /// Files of the configuration could not be named.
    NoConfiguration,
    /// The merge of disks was not seen to end.
    MergeUnfinished,
    /// Changes are not tracked from here on: the next run reads whole.
    Untracked,
    /// Something that we made may still be on a host: the custodian goes on with it.
    LeftOver,
}

/// A checkpoint that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// How to find it again.
    pub reference: CheckpointRef,
    /// The node that it was made on; the machine may have moved since.
    pub node: NodeName,
    /// What was reached.
    pub reached: Consistency,
    /// What was tried before and not reached.
    pub missed: Vec<MissedConsistency>,
    /// Frozen disks, in order of their slots.
    pub disks: Vec<FrozenDisk>,
    /// What is not in it.
    pub skipped: Vec<SkippedDisk>,
    /// Files of the configuration.
    pub configuration: Vec<ConfigurationFile>,
    /// How long the guest stood still.
    pub still: StillFacts,
    /// When the host says it was made, or else when we saw it made.
    pub made_at: Timestamp,
    /// What an operator should know.
    pub warnings: Vec<Warning>,
}

/// What change tracking says about a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// At least everything that changed lies in these ranges.
    Known(ChangedRanges),
    /// Tracking cannot say: the disk must be read whole. Nothing is wrong with the disk.
    Lost {
        /// Why.
        reason: String,
    },
}

/// What is left of a checkpoint that was settled: where tracking starts from next time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The tracking point; `None` when this host or machine cannot track.
    pub point: Option<TrackingPointRef>,
    /// Disk by disk, by the device of [`FrozenDisk`]: its token. A disk that is not here is read whole next time.
    pub tokens: Vec<(DeviceId, TrackingToken)>,
    /// Where the machine was by then.
    pub node: NodeName,
    /// What an operator should know.
    pub warnings: Vec<Warning>,
}

/// What became of something that was to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Whether it was there.
    pub was: Presence,
    /// Whether disks were still being merged when we stopped looking.
    pub merge: MergeState,
    /// What an operator should know.
    pub warnings: Vec<Warning>,
}

/// Whether something was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// It was there, and is gone now.
    Removed,
    /// It was gone already.
    Absent,
}

/// How far a merge of disks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeState {
    /// Seen to end, or nothing to merge.
    Done,
    /// Going on.
    Running,
    /// Not going on although it should: the host says nothing of it, and the difference files are still in use.
    Stalled,
}

/// A checkpoint of an operator, as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCheckpointRequest {
    /// The machine.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: UserCheckpointKind,
}

/// What an operator's checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserCheckpointKind {
    /// Whatever the machine is set to.
    AsSet,
    /// Memory, devices and disks.
    Standard,
    /// Disks as the guest flushed them; fails when that is not reached.
    Production,
}

/// How much of a tree of checkpoints is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeleteScope {
    /// That one; what is based on it stays.
    One,
    /// That one and all that is based on it.
    Tree,
}

/// A checkpoint of an operator that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserCheckpoint {
    /// How to find it again.
    pub reference: CheckpointRef,
    /// Its name.
    pub name: String,
}

/// Left behind by somebody: shown to an operator, never touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForeignCheckpoint {
    /// The machine.
    pub vm: VmId,
    /// Display name of the machine.
    pub machine: String,
    /// Where it was seen.
    pub node: NodeName,
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Age when it was seen.
    pub age: Option<Duration>,
    /// Bytes that its difference files hold; `None` when they could not be measured.
    pub size_bytes: Option<u64>,
    /// The command that removes it, for whoever decides to.
    pub command: String,
}
