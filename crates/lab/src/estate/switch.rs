//! What nobody has verified about Windows: each such fact a switch with two answers.
//!
//! **Invariants.** The default is the answer that is harder on whoever drives the estate, with one exception that is told at
//! [`Switch::WqlOnVirtualization`]. The list is the list of unverified facts in docs/LAB.md, one for one.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::Error;

/// Which answer the estate gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The one that is harder on the client.
    Pessimistic,
    /// The one that is kinder.
    Optimistic,
}

/// A fact that nobody has verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Switch {
    /// WQL on `root/virtualization/v2`. Kind: it works. Hard: every query ends in `CannotProcessFilter`, as one host once said.
    /// The default is the kind answer: two clients that are in use against real hosts ask nothing else.
    WqlOnVirtualization,
    /// The association filter on `root/virtualization/v2`. Kind: it works. Hard: `CannotProcessFilter`.
    AssociationFilter,
    /// Frozen files can be read over SMB from every node of a cluster. Hard: only from the node that owns the volume.
    FrozenFilesFromEveryNode,
    /// A change-tracking id is taken for a disk whose chain holds user checkpoints. Hard: refused, 32773.
    LimitIdAcrossUserCheckpoints,
    /// An application-consistent recovery checkpoint of a Windows guest names its frozen files. Hard: it names
    /// `NAME-AutoRecovery.avhdx`, whose parent is the frozen file.
    NoAutoRecoveryFile,
    /// `GetVirtualDiskChanges` takes a length up to the end of the disk. Hard: a range that covers the whole disk is refused, 32773.
    FullByteLength,
    /// Server 2016 ignores `GuestBackupType`. Hard: it refuses the settings, 32773.
    GuestBackupTypeOn2016,
    /// `DestroySnapshot` takes recovery checkpoints. Hard: 32775, they must be converted.
    DestroyRecoveryCheckpoint,
    /// `MSCluster_Resource.PrivateProperties` is sent. Hard: nil.
    PrivateProperties,
    /// `AddVirtualMachine` works through WinRM. Hard: access denied, as without credentials for the second hop.
    AddVirtualMachine,
    /// `MoveToNewNodeParams` takes the parameter list. Hard: invalid parameter; `MoveToNewNode` works.
    MoveToNewNodeParams,
    /// Reference points come along with a live migration. Hard: they stay behind.
    ReferencePointsMigrate,
    /// Change tracking survives the loss of power of a host. Hard: lost.
    TrackingSurvivesPowerLoss,
    /// A VM may run from a share outside of the estate. Hard: access denied.
    ForeignShares,
    /// Calls that name UNC paths use the computer account. Hard: they act for the caller and are refused, 32769.
    ComputerAccountForShares,
    /// References carry no `__cimnamespace`. Hard: they do.
    NoNamespaceSelector,
    /// Checkpoint jobs can be cancelled. Hard: 32775.
    CancelCheckpointJobs,
}

impl Switch {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::WqlOnVirtualization,
        Self::AssociationFilter,
        Self::FrozenFilesFromEveryNode,
        Self::LimitIdAcrossUserCheckpoints,
        Self::NoAutoRecoveryFile,
        Self::FullByteLength,
        Self::GuestBackupTypeOn2016,
        Self::DestroyRecoveryCheckpoint,
        Self::PrivateProperties,
        Self::AddVirtualMachine,
        Self::MoveToNewNodeParams,
        Self::ReferencePointsMigrate,
        Self::TrackingSurvivesPowerLoss,
        Self::ForeignShares,
        Self::ComputerAccountForShares,
        Self::NoNamespaceSelector,
        Self::CancelCheckpointJobs,
    ];

    /// Its name in a scenario.
    pub fn name(self) -> &'static str {
        match self {
            Self::WqlOnVirtualization => "wql-on-virtualization",
            Self::AssociationFilter => "association-filter",
            Self::FrozenFilesFromEveryNode => "frozen-files-from-every-node",
            Self::LimitIdAcrossUserCheckpoints => "limit-id-across-user-checkpoints",
            Self::NoAutoRecoveryFile => "no-auto-recovery-file",
            Self::FullByteLength => "full-byte-length",
            Self::GuestBackupTypeOn2016 => "guest-backup-type-on-2016",
            Self::DestroyRecoveryCheckpoint => "destroy-recovery-checkpoint",
            Self::PrivateProperties => "private-properties",
            Self::AddVirtualMachine => "add-virtual-machine",
            Self::MoveToNewNodeParams => "move-to-new-node-params",
            Self::ReferencePointsMigrate => "reference-points-migrate",
            Self::TrackingSurvivesPowerLoss => "tracking-survives-power-loss",
            Self::ForeignShares => "foreign-shares",
            Self::ComputerAccountForShares => "computer-account-for-shares",
            Self::NoNamespaceSelector => "no-namespace-selector",
            Self::CancelCheckpointJobs => "cancel-checkpoint-jobs",
        }
    }

    fn default_answer(self) -> Answer {
        match self {
            Self::WqlOnVirtualization => Answer::Optimistic,
            _ => Answer::Pessimistic,
        }
    }
}

impl FromStr for Switch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .iter()
            .copied()
            .find(|switch| switch.name() == text)
            .ok_or_else(|| Error::invalid(format!("there is no switch {text:?}")))
    }
}

/// The answers of an estate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switches {
    optimistic: BTreeSet<Switch>,
}

impl Default for Switches {
    fn default() -> Self {
        let kind = |switch: &Switch| switch.default_answer() == Answer::Optimistic;
        Self {
            optimistic: Switch::ALL.iter().copied().filter(kind).collect(),
        }
    }
}

impl Switches {
    /// Every fact answered kindly.
    pub fn all_optimistic() -> Self {
        Self {
            optimistic: Switch::ALL.iter().copied().collect(),
        }
    }

    /// With one answer set.
    #[must_use]
    pub fn with(mut self, switch: Switch, answer: Answer) -> Self {
        self.set(switch, answer);
        self
    }

    /// Sets an answer.
    pub fn set(&mut self, switch: Switch, answer: Answer) {
        match answer {
            Answer::Optimistic => self.optimistic.insert(switch),
            Answer::Pessimistic => self.optimistic.remove(&switch),
        };
    }

    /// The answer.
    pub fn answer(&self, switch: Switch) -> Answer {
        if self.optimistic.contains(&switch) {
            Answer::Optimistic
        } else {
            Answer::Pessimistic
        }
    }

    /// Whether the kind answer holds.
    pub fn is_kind(&self, switch: Switch) -> bool {
        self.answer(switch) == Answer::Optimistic
    }
}
