//! What is asked of a running lab and what it answers: one JSON object a line, each way.
//!
//! ```text
//!   {"ask":"guest-write","vm":"sql","bytes":4194304}   ─►
//!                                                      ◄─  {"done":{…}}  or  {"refused":{"kind":"not-found","text":"…"}}
//! ```
//!
//! **Invariants.** A word that is not known is refused. Sizes are in bytes, times in milliseconds of the estate's clock.

use serde::{Deserialize, Serialize};

use crate::guest::{GuestOs, Layout, WriterState};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How everything is: [`StatusReport`].
    Status {},
    /// To end: [`DownReport`]; the connection is closed once it has ended.
    Down {},
    /// To let time pass at once: [`RunReport`].
    Run {
        /// How much.
        duration_ms: u64,
    },
    /// Which faults there are, are armed, have struck: [`FaultsReport`].
    Faults {},
    /// To plan a fault, or to do what a disaster does: [`InjectReport`].
    Inject(FaultRequest),
    /// To take back all faults that did not strike: [`ClearReport`].
    Clear {},
    /// To move a VM as an operator does: [`MigrateReport`].
    Migrate(MigrateRequest),
    /// How a VM's guest is: [`GuestReport`].
    Guest {
        /// Name or id.
        vm: String,
    },
    /// To make a guest write: [`GuestReport`].
    GuestWrite {
        /// Name or id.
        vm: String,
        /// How much.
        bytes: u64,
    },
    /// To make a guest's writers behave so: [`GuestReport`].
    GuestWriters {
        /// Name or id.
        vm: String,
        /// How.
        state: WriterState,
    },
    /// To change the state of a VM, and to wait until it has it: [`GuestReport`].
    GuestPower {
        /// Name or id.
        vm: String,
        /// What is done to it.
        change: PowerChange,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply<T> {
    /// It was done.
    Done(T),
    /// It was not.
    Refused(Refusal),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What one can do about it.
    pub kind: RefusalKind,
    /// A lower-case fragment that says what is wrong.
    pub text: String,
}

/// What one can do about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// Name something that is there.
    NotFound,
    /// Ask for something that makes sense.
    Invalid,
    /// Nothing: the estate refuses, as Windows would, or it went wrong.
    Failed,
}

/// A fault that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultRequest {
    /// Its kind, as the list of kinds names it.
    pub kind: String,
    /// The VM that it strikes: name or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// The node that it strikes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The volume that it strikes: its path, such as `C:\ClusterStorage\Volume1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// How often it could have struck before it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u32>,
    /// Not before so much time has passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_ms: Option<u64>,
    /// How often it strikes; once when nothing is said, always with 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// How slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lasts_ms: Option<u64>,
    /// How much room is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave_bytes: Option<u64>,
    /// The code of a fault of the wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// A move that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Name or id.
    pub vm: String,
    /// Where to: its own node when only its files move.
    pub node: String,
    /// The folder that its files go to, as that node sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<String>,
    /// Whether it becomes a role of the cluster it comes to.
    #[serde(default)]
    pub as_role: bool,
    /// Whether to answer as soon as it has begun.
    #[serde(default)]
    pub no_wait: bool,
}

/// What an operator does to a VM's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerChange {
    /// Start, or go on from saved or paused.
    Start,
    /// The guest shuts down in good order.
    ShutDown,
    /// The plug is pulled.
    TurnOff,
    /// Memory goes to a file.
    Save,
    /// It holds still.
    Pause,
    /// The plug is pulled, and it starts again.
    Reset,
}

/// How everything is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Nothing here is a real host.
    pub simulated: bool,
    /// Where the lab lies.
    pub folder: String,
    /// Its process.
    pub process: u32,
    /// The estate's clock: ISO 8601, UTC.
    pub time: String,
    /// How many seconds of the estate are one of ours.
    pub speed: u32,
    /// Hosts.
    pub hosts: Vec<HostStatus>,
    /// Clusters.
    pub clusters: Vec<ClusterStatus>,
    /// Volumes of hosts, of clusters, and shares.
    pub volumes: Vec<VolumeStatus>,
    /// VMs.
    pub vms: Vec<VmStatus>,
    /// Jobs under way.
    pub jobs: Vec<JobStatus>,
    /// Faults to come.
    pub armed: Vec<ArmedFault>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub name: String,
    /// `up` or `down`.
    pub state: String,
    /// What its cluster says of it: `up`, `down`, `paused`, `joining`.
    pub in_cluster: Option<String>,
    /// Its cluster.
    pub cluster: Option<String>,
    /// Its Windows.
    pub windows: String,
    /// Where it listens.
    pub address: Option<String>,
    /// The port of its files over SMB.
    pub smb_port: Option<u16>,
    /// VMs on it.
    pub vms: usize,
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<String>,
    /// Its roles that are VMs.
    pub roles: Vec<RoleStatus>,
}

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleStatus {
    /// Name of the group.
    pub name: String,
    /// The node that owns it.
    pub owner: String,
    /// `online`, `offline`, `failed`, `partially-online`, `pending`.
    pub state: String,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its path as hosts see it.
    pub path: String,
    /// The host, the cluster; nothing for a share.
    pub of: Option<String>,
    /// The node that coordinates a shared one.
    pub owner: Option<String>,
    /// `online`, `redirected`, `no-access`, `maintenance`.
    pub state: String,
    /// Bytes.
    pub capacity_bytes: u64,
    /// Bytes left.
    pub free_bytes: u64,
    /// Where its files lie on this machine.
    pub folder: String,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Display name.
    pub name: String,
    /// Id.
    pub id: String,
    /// Where it is.
    pub node: String,
    /// `running`, `off`, `saved`, …
    pub state: String,
    /// What it is doing: `creating-checkpoint`, `migrating`, `merging`, …
    pub doing: Option<String>,
    /// Whether merges are suspended.
    pub merges_suspended: bool,
    /// The role it is, if it is one.
    pub role: Option<String>,
    /// Operators' checkpoints.
    pub checkpoints: usize,
    /// Backups' checkpoints.
    pub recovery_checkpoints: usize,
    /// Reference points.
    pub reference_points: usize,
}

/// A job under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its id.
    pub id: String,
    /// Where it runs.
    pub host: String,
    /// What it does, if it does something to a VM.
    pub doing: Option<String>,
    /// The VM.
    pub vm: Option<String>,
    /// How far it is.
    pub percent: u16,
    /// How long it still takes, on the estate's clock.
    pub left_ms: u64,
}

/// A fault to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmedFault {
    /// Its kind.
    pub kind: String,
    /// The VM, if it strikes only one.
    pub vm: Option<String>,
    /// The node, if it strikes only one.
    pub node: Option<String>,
    /// When: `next`, `after 3`, a time.
    pub when: String,
    /// How often; always with 0.
    pub times: u32,
}

/// A fault that struck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StruckFault {
    /// When, on the estate's clock.
    pub time: String,
    /// What.
    pub kind: String,
}

/// A kind of fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultKindReport {
    /// Its name.
    pub kind: String,
    /// What can be said of it: `vm`, `node`, `volume`, `after`, `in`, `times`, `lasts`, `leave`, `fault`.
    pub takes: Vec<String>,
    /// What happens.
    pub help: String,
}

/// Which faults there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultsReport {
    /// Kinds.
    pub kinds: Vec<FaultKindReport>,
    /// To come.
    pub armed: Vec<ArmedFault>,
    /// Struck, the newest last.
    pub struck: Vec<StruckFault>,
}

/// What came of asking for a fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectReport {
    /// Its kind.
    pub kind: String,
    /// What is going to happen or has happened, one sentence.
    pub told: String,
    /// All faults to come.
    pub armed: Vec<ArmedFault>,
}

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearReport {
    /// Faults of the estate.
    pub estate: usize,
    /// Faults of the wire.
    pub wire: usize,
    /// Volumes that were full, redirected or gone and are as they should be again.
    pub volumes: Vec<String>,
    /// Nodes that are down or paused still: those are turned on one by one.
    pub nodes_away: Vec<String>,
}

/// What came of a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateReport {
    /// The VM.
    pub vm: VmStatus,
    /// Where it was.
    pub from: String,
    /// What was done, one sentence each.
    pub told: Vec<String>,
    /// Whether it is still under way.
    pub under_way: bool,
}

/// How long it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunReport {
    /// The clock before.
    pub from: String,
    /// The clock now.
    pub to: String,
    /// What guests committed meanwhile.
    pub guests: Vec<GuestProgress>,
}

/// What a guest did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestProgress {
    /// The VM.
    pub vm: String,
    /// Its last committed transaction before.
    pub from: u64,
    /// And now.
    pub to: u64,
}

/// It is going to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownReport {
    /// Where it lay.
    pub folder: String,
    /// Whether the folder stays.
    pub folder_stays: bool,
}

/// How a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Display name.
    pub vm: String,
    /// Id.
    pub id: String,
    /// Where it is; nothing when the VM is gone and only remembered.
    pub node: Option<String>,
    /// State of the VM; nothing when it is gone.
    pub state: Option<String>,
    /// The guest; nothing where none writes.
    pub guest: Option<GuestFacts>,
}

/// What writes in a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFacts {
    /// What runs in it.
    pub os: GuestOs,
    /// How its writers (or its freeze) behave.
    pub writers: WriterState,
    /// The last transaction that it committed.
    pub committed: u64,
    /// Writes in its cache.
    pub unflushed: usize,
    /// Whether it holds still.
    pub frozen: bool,
    /// Why it works no more, if it found its disks inconsistent.
    pub broken: Option<String>,
    /// What its records are marked with.
    pub tag: u64,
    /// Where its workload lies.
    pub layout: Layout,
    /// How many disks its workload is on.
    pub disks: usize,
}
