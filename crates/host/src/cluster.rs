//! Words of failover clusters and of moving machines about.

use serde::{Deserialize, Serialize};

use crate::facts::{RoleFacts, RoleState};
use crate::ids::{NodeName, VmId};
use crate::path::HostPath;

/// State of a cluster's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Up.
    Up,
    /// Down.
    Down,
    /// Paused, or being drained.
    Paused,
    /// Joining.
    Joining,
    /// The cluster does not know, or another number.
    Unknown,
}

/// A node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterNode {
    /// Its name.
    pub name: NodeName,
    /// Its state.
    pub state: NodeState,
    /// Number of its build.
    pub build: Option<u32>,
}

/// How a cluster shared volume is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeAccess {
    /// Directly.
    Direct,
    /// Through the node that owns it: slow.
    Redirected,
    /// Not at all.
    None,
    /// In maintenance.
    Maintenance,
    /// Another number.
    Unknown,
}

/// A cluster shared volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SharedVolume {
    /// Its mount point, such as `C:\ClusterStorage\Volume1`.
    pub path: HostPath,
    /// Node that owns it: where reading it is cheapest.
    pub owner: Option<NodeName>,
    /// How it is reached.
    pub access: VolumeAccess,
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterFacts {
    /// Its name.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<ClusterNode>,
    /// Its shared volumes.
    pub volumes: Vec<SharedVolume>,
    /// Roles of machines, by the machine's id; those whose machine nobody tells are not there.
    pub roles: Vec<(VmId, RoleFacts)>,
}

/// A role to make or to set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RoleSpec {
    /// Nodes that may own it; empty for all.
    pub possible_owners: Vec<NodeName>,
    /// Priority as the cluster counts it.
    pub priority: Option<u32>,
}

/// Where a role is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RoleTarget {
    /// Running.
    Online,
    /// Not running.
    Offline,
}

/// A machine that is somewhere else than it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Move {
    /// The machine.
    pub vm: VmId,
    /// Where it was; `None` for one that was not known.
    pub from: Option<NodeName>,
    /// Where it is; `None` for one that is nowhere that answered.
    pub to: Option<NodeName>,
}

/// A migration, as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationRequest {
    /// The machine.
    pub vm: VmId,
    /// What moves.
    pub what: MigrationKind,
}

/// What of a machine moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationKind {
    /// The running machine, to a node that reaches its disks.
    Machine {
        /// The node.
        to: NodeName,
    },
    /// Its files, on the same node.
    Storage {
        /// The folder.
        to: HostPath,
    },
    /// Both.
    MachineAndStorage {
        /// The node.
        to: NodeName,
        /// The folder there.
        folder: HostPath,
    },
}

/// A state of a role that a cluster tells as a number.
pub(crate) fn group_state(number: i64) -> RoleState {
    match number {
        0 => RoleState::Online,
        1 => RoleState::Offline,
        2 => RoleState::Failed,
        3 => RoleState::Partial,
        4 => RoleState::Pending,
        _ => RoleState::Unknown,
    }
}
