//! Checkpoints and reference points: what is remembered of a moment.
//!
//! ```text
//!   before         base.vhdx ◄ live
//!   checkpoint     base.vhdx (frozen, named by the checkpoint)  ◄── base_GUID.avhdx (live)
//!   application-consistent, with the file that the guest's writers finished:
//!                  base.vhdx ◄── base-AutoRecovery.avhdx (named by the checkpoint)
//! ```
//!
//! **Invariant.** What a checkpoint's files show never changes while it exists, whatever is merged.

use std::collections::BTreeMap;

use super::checkpointing::GuestBackupType;
use super::clock::VirtualTime;
use super::ids::{CheckpointId, DriveAddress, RctId, ReferencePointId};
use super::vm::VmSettings;
use crate::guest::GuestMemory;

/// What a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckpointKind {
    /// A user's, with the memory of a running VM.
    Standard,
    /// A user's, made with the guest's help, without memory.
    Production,
    /// A backup's.
    Recovery,
}

impl CheckpointKind {
    /// Whether a user made it: it stands in Hyper-V Manager, and a backup keeps its hands off.
    pub fn is_user(self) -> bool {
        self != Self::Recovery
    }

    /// `VirtualSystemType` of a realized system.
    pub fn system_type(self) -> &'static str {
        match self {
            Self::Standard | Self::Production => "Microsoft:Hyper-V:Snapshot:Realized",
            Self::Recovery => "Microsoft:Hyper-V:Snapshot:Recovery",
        }
    }
}

/// `ConsistencyLevel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConsistencyLevel {
    /// 1: with the guest's help.
    Application,
    /// 2: without asking the guest.
    Crash,
}

impl ConsistencyLevel {
    /// The number on the wire.
    pub fn value(self) -> u8 {
        match self {
            Self::Application => 1,
            Self::Crash => 2,
        }
    }
}

/// Which state of its tracker a frozen disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedState {
    /// The name of that state.
    pub id: RctId,
}

/// A checkpoint of a VM.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Its id.
    pub id: CheckpointId,
    /// What it is.
    pub kind: CheckpointKind,
    /// When it was taken.
    pub created: VirtualTime,
    /// The checkpoint it is based on.
    pub parent: Option<CheckpointId>,
    /// Settings of the VM then; media name the frozen files, `name` is the checkpoint's own.
    pub settings: VmSettings,
    /// Whether the memory of the running VM was kept.
    pub has_memory: bool,
    /// What was reached. What the guest really did is in the bytes.
    pub consistency: ConsistencyLevel,
    /// What the guest was told the backup is for.
    pub backup_type: Option<GuestBackupType>,
    /// States of the disks that are tracked.
    pub tracked: BTreeMap<DriveAddress, TrackedState>,
    /// Why it cannot be used, if something of it is missing.
    pub is_missing: bool,
    pub(super) memory: Option<GuestMemory>,
}

/// What a reference point is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReferencePointKind {
    /// 1 (0 in `CreateReferencePoint`): a log, of Hyper-V Replica.
    Log,
    /// 2 (1 in `CreateReferencePoint`): resilient change tracking.
    Rct,
}

impl ReferencePointKind {
    /// `ReferencePointType` as a property.
    pub fn value(self) -> u16 {
        match self {
            Self::Log => 1,
            Self::Rct => 2,
        }
    }
}

/// A moment of a VM that changes can be asked from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferencePoint {
    /// Its id.
    pub id: ReferencePointId,
    /// What it is for.
    pub kind: ReferencePointKind,
    /// How consistent the moment was.
    pub consistency: ConsistencyLevel,
    /// When it was made.
    pub created: VirtualTime,
    /// The disks that have one, with the text that names their state: `VirtualDiskIdentifiers` and
    /// `ResilientChangeTrackingIdentifiers`, in step.
    pub disks: Vec<(DriveAddress, RctId)>,
}
