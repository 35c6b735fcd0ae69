//! What is known about nodes, machines and their disks: facts as measured, `None` where nothing was.
//!
//! ```text
//!   InventoryReport ─┬─ HostFacts*      (one for each node that answered)
//!                    ├─ NodeProblem*    (one for each that did not: it hides nobody else's machines)
//!                    └─ VmFacts* ─┬─ DiskFacts*  NicFacts*  CheckpointFacts*  TrackingPointFacts*
//!                                 └─ IntegrationFacts  GuestFacts  RoleFacts
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ErrorKind;
use crate::clock::Timestamp;
use crate::custody::{MachineMark, Mark};
use crate::ids::{CheckpointId, DeviceId, NodeName, TrackingPointId, VmId};
use crate::path::{HostPath, PathPlace};

/// Which Windows Server a host runs, as far as it matters for protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HostGeneration {
    /// Windows Server 2012 R2: no recovery checkpoints over WMI, no change tracking.
    #[serde(rename = "2012r2")]
    Server2012R2,
    /// Windows Server 2016 (build 14393).
    #[serde(rename = "2016")]
    Server2016,
    /// Windows Server 2019 (build 17763).
    #[serde(rename = "2019")]
    Server2019,
    /// Windows Server 2022 (build 20348).
    #[serde(rename = "2022")]
    Server2022,
    /// Windows Server 2025 (build 26100) and Azure Stack HCI 23H2 (25398).
    #[serde(rename = "2025")]
    Server2025,
}

impl HostGeneration {
    /// The generation of a build of Windows; builds between two count as the older one.
    pub fn of_build(build: u32) -> Option<Self> {
        match build {
            0..9600 => None,
            9600..14_393 => Some(Self::Server2012R2),
            14_393..17_763 => Some(Self::Server2016),
            17_763..20_348 => Some(Self::Server2019),
            20_348..25_398 => Some(Self::Server2022),
            25_398.. => Some(Self::Server2025),
        }
    }

    /// `2012 R2`, `2016`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Server2012R2 => "2012 R2",
            Self::Server2016 => "2016",
            Self::Server2019 => "2019",
            Self::Server2022 => "2022",
            Self::Server2025 => "2025",
        }
    }
}

impl fmt::Display for HostGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A node that answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Its name, as it calls itself.
    pub node: NodeName,
    /// Its generation; `None` where no number of a build was told.
    pub generation: Option<HostGeneration>,
    /// Number of its build.
    pub build: Option<u32>,
    /// Name of the cluster that it is a member of.
    pub cluster: Option<String>,
}

/// A node that did not answer, or of which a part could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeProblem {
    /// The node.
    pub node: NodeName,
    /// What a caller can do about it.
    pub kind: ErrorKind,
    /// What happened, with its causes.
    pub text: String,
}

/// All that was found in one look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct InventoryReport {
    /// Nodes that answered.
    pub hosts: Vec<HostFacts>,
    /// Nodes that did not, and parts that could not be read.
    pub problems: Vec<NodeProblem>,
    /// Machines, each once, in the order of their ids.
    pub machines: Vec<VmFacts>,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PowerState {
    /// It runs.
    Running,
    /// It is off.
    Off,
    /// Memory is in files, nothing runs.
    Saved,
    /// Memory is held, nothing runs.
    Paused,
    /// On the way from one state to another.
    Changing,
    /// A state with trouble (storage gone), or one that is not known: the host's number.
    Critical(u32),
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.pad("running"),
            Self::Off => f.pad("off"),
            Self::Saved => f.pad("saved"),
            Self::Paused => f.pad("paused"),
            Self::Changing => f.pad("changing"),
            Self::Critical(number) => write!(f, "critical ({number})"),
        }
    }
}

/// Something that a host is doing to a machine, during which a checkpoint would fail or harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Activity {
    /// A checkpoint is being made.
    CreatingCheckpoint,
    /// A checkpoint is being applied.
    ApplyingCheckpoint,
    /// A checkpoint is being deleted.
    DeletingCheckpoint,
    /// It waits to start.
    WaitingToStart,
    /// Disks of a deleted checkpoint are being merged.
    Merging,
    /// It is being exported.
    Exporting,
    /// It is being migrated.
    Migrating,
    /// Another number of the host.
    Other(u32),
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreatingCheckpoint => f.pad("creating a checkpoint"),
            Self::ApplyingCheckpoint => f.pad("applying a checkpoint"),
            Self::DeletingCheckpoint => f.pad("deleting a checkpoint"),
            Self::WaitingToStart => f.pad("waiting to start"),
            Self::Merging => f.pad("merging disks"),
            Self::Exporting => f.pad("being exported"),
            Self::Migrating => f.pad("being migrated"),
            Self::Other(number) => write!(f, "busy (status {number})"),
        }
    }
}

/// How well the host says that a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Well.
    Ok,
    /// Its configuration's storage cannot be reached: only turning off and deleting work.
    Degraded,
    /// Its storage is running full.
    LowSpace,
    /// Another number of the host.
    Other(u32),
}

/// Version of a machine's configuration, such as 8.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ConfigurationVersion {
    /// Before the dot.
    pub major: u32,
    /// Behind it.
    pub minor: u32,
}

impl ConfigurationVersion {
    /// Reads `8.0`, or `9`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl fmt::Display for ConfigurationVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One part of Hyper-V Replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicationRole {
    /// Not replicated.
    None,
    /// The machine that is replicated.
    Primary,
    /// A replica of a machine elsewhere.
    Replica,
    /// A replica made for a test failover.
    TestReplica,
    /// A replica of a replica.
    ExtendedReplica,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmFacts {
    /// Its id.
    pub id: VmId,
    /// Its display name: not unique.
    pub name: String,
    /// Where it was found.
    pub node: NodeName,
    /// Generation of the host.
    pub host_generation: Option<HostGeneration>,
    /// 1 (BIOS) or 2 (UEFI).
    pub generation: Option<u8>,
    /// Version of its configuration.
    pub version: Option<ConfigurationVersion>,
    /// What it is doing.
    pub power: PowerState,
    /// How well it is.
    pub health: Health,
    /// What is being done to it right now.
    pub activities: Vec<Activity>,
    /// Its disks, and what else stands where a disk could stand.
    pub disks: Vec<DiskFacts>,
    /// Its network adapters.
    pub nics: Vec<NicFacts>,
    /// All checkpoints, of every kind, parents before children.
    pub checkpoints: Vec<CheckpointFacts>,
    /// Where change tracking starts from.
    pub tracking_points: Vec<TrackingPointFacts>,
    /// Integration services.
    pub integration: IntegrationFacts,
    /// What the guest tells about itself.
    pub guest: GuestFacts,
    /// Its role in a failover cluster.
    pub role: Option<RoleFacts>,
    /// Whether its cluster was heard: without that, having no role means nothing.
    pub is_role_known: bool,
    /// Its part in Hyper-V Replica.
    pub replication: ReplicationRole,
    /// Virtual TPM and shielding.
    pub security: SecurityFacts,
    /// Memory and processors.
    pub sizing: SizingFacts,
    /// Whether devices of the host are assigned to it, which no checkpoint and no saved state survives.
    pub has_assigned_devices: Option<bool>,
    /// Where its files lie.
    pub files: VmFiles,
    /// Marks of ours beside the machine itself.
    pub marks: Vec<MachineMark>,
}

impl VmFacts {
    /// Checkpoints that an operator sees and owns.
    pub fn user_checkpoints(&self) -> impl Iterator<Item = &CheckpointFacts> {
        self.checkpoints
            .iter()
            .filter(|it| it.kind == CheckpointKind::User)
    }

    /// Checkpoints made for a backup, ours or another product's.
    pub fn recovery_checkpoints(&self) -> impl Iterator<Item = &CheckpointFacts> {
        self.checkpoints
            .iter()
            .filter(|it| it.kind == CheckpointKind::Recovery)
    }
}

/// Folders and files of a machine's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct VmFiles {
    /// Folder of the configuration.
    pub root: Option<HostPath>,
    /// The configuration itself, relative to `root`.
    pub configuration: Option<String>,
    /// Folder of checkpoints' configurations.
    pub checkpoint_root: Option<HostPath>,
    /// Guest state (`.vmgs`), relative to its root, where the host tells it.
    pub guest_state: Option<HostPath>,
}

/// Memory and processors of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SizingFacts {
    /// Memory at start, in MiB.
    pub memory_mib: Option<u64>,
    /// Least and most memory in MiB, where memory is dynamic.
    pub dynamic_memory_mib: Option<(u64, u64)>,
    /// Virtual processors.
    pub processors: Option<u64>,
}

/// Virtual TPM and shielding of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SecurityFacts {
    /// Whether it has a virtual TPM.
    pub has_tpm: Option<bool>,
    /// Whether it is shielded.
    pub is_shielded: Option<bool>,
    /// Whether its state and migrations are encrypted.
    pub encrypts_state: Option<bool>,
}

/// What a disk hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControllerKind {
    /// IDE (generation 1).
    Ide,
    /// SCSI.
    Scsi,
    /// Persistent memory.
    Pmem,
    /// Virtio block or another paravirtual bus.
    Virtio,
    /// Not known.
    Other,
}

/// Where a disk is plugged in: kind of controller, its number, place on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskSlot {
    /// Kind of controller.
    pub controller: ControllerKind,
    /// Number of the controller among those of its kind.
    pub number: u32,
    /// Place on the controller.
    pub location: u32,
}

impl fmt::Display for DiskSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let controller = match self.controller {
            ControllerKind::Ide => "IDE",
            ControllerKind::Scsi => "SCSI",
            ControllerKind::Pmem => "PMEM",
            ControllerKind::Virtio => "VIRTIO",
            ControllerKind::Other => "DISK",
        };
        write!(f, "{controller} {}:{}", self.number, self.location)
    }
}

/// Kind of a disk's image, told by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// VHDX, or AVHDX.
    Vhdx,
    /// VHD, or AVHD.
    Vhd,
    /// VHD set (VHDS, AVHDX behind it).
    VhdSet,
    /// qcow2.
    Qcow2,
    /// Raw bytes.
    Raw,
    /// Anything else.
    Other,
}

impl ImageKind {
    /// The kind that a path's extension promises.
    pub fn of_path(path: &HostPath) -> Self {
        match path.extension().as_deref() {
            Some("vhdx" | "avhdx") => Self::Vhdx,
            Some("vhd" | "avhd") => Self::Vhd,
            Some("vhds") => Self::VhdSet,
            Some("qcow2") => Self::Qcow2,
            Some("raw" | "img") => Self::Raw,
            _ => Self::Other,
        }
    }
}

/// What is behind a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum DiskBacking {
    /// An image file.
    Image {
        /// The live image: with checkpoints, the top of the chain.
        path: HostPath,
        /// Its kind.
        image: ImageKind,
        /// Whether other machines may have it open too (a shared VHDX).
        is_shared: Option<bool>,
    },
    /// A disk of the host, given to the guest as it is.
    PassThrough {
        /// The host's name for it.
        device: String,
    },
    /// Disks behind a virtual Fibre Channel port: the host does not see them.
    FibreChannel,
    /// Disks that the guest reaches over iSCSI by itself, as told from inside the guest.
    GuestIscsi {
        /// The target.
        target: String,
    },
    /// A drive without a medium.
    Empty,
    /// Something else that holds data, by the host's word for it.
    Unknown {
        /// The host's word.
        subtype: String,
    },
}

/// Storage that a path lies on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum StorageKind {
    /// A drive of the node.
    Local {
        /// Its letter.
        drive: char,
    },
    /// A cluster shared volume.
    Csv {
        /// Its name below the root, such as `Volume1`.
        volume: String,
    },
    /// An SMB share.
    Smb {
        /// The server, in lower case.
        server: String,
        /// The share, in lower case.
        share: String,
    },
    /// A volume that only a GUID or a mount point names.
    MountPoint,
    /// A folder of a POSIX system.
    Posix,
    /// Not known.
    Unknown,
}

impl StorageKind {
    /// The storage of a path, where cluster shared volumes lie below `C:\ClusterStorage`.
    pub fn of_path(path: &HostPath) -> Self {
        const CSV_ROOT: &str = "c:\\clusterstorage\\";
        let key = path.key();
        if let Some(rest) = key.strip_prefix(CSV_ROOT) {
            let volume = rest.split('\\').next().unwrap_or(rest);
            return Self::Csv {
                volume: volume.to_owned(),
            };
        }
        match path.place() {
            PathPlace::Drive(drive) => Self::Local { drive },
            PathPlace::Share { server, share } => Self::Smb {
                server: server.to_lowercase(),
                share: share.to_lowercase(),
            },
            PathPlace::Volume => Self::MountPoint,
            PathPlace::Posix => Self::Posix,
            PathPlace::Other => Self::Unknown,
        }
    }
}

/// A disk of a machine, or what stands where one could stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskFacts {
    /// Where it is plugged in; `None` for what has no slot that the host knows (Fibre Channel, iSCSI in the guest).
    pub slot: Option<DiskSlot>,
    /// The host's name for the medium, or for the drive where there is none.
    pub device: Option<DeviceId>,
    /// What is behind it.
    pub backing: DiskBacking,
}

impl DiskFacts {
    /// Path of the live image.
    pub fn path(&self) -> Option<&HostPath> {
        match &self.backing {
            DiskBacking::Image { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// A network adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NicFacts {
    /// The host's name for it.
    pub device: DeviceId,
    /// Display name.
    pub name: String,
    /// Address, without separators, in upper case.
    pub mac: Option<String>,
    /// Whether the address is fixed.
    pub has_static_mac: Option<bool>,
    /// Whether it is an emulated one.
    pub is_legacy: bool,
    /// Name of the switch that it is connected to.
    pub switch: Option<String>,
}

/// What a checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointKind {
    /// An operator's checkpoint, standard or production.
    User,
    /// Made for a backup.
    Recovery,
    /// A recovery point of Hyper-V Replica.
    Replica,
    /// Of a planned machine, or missing from an import.
    Other,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckpointFacts {
    /// Its id.
    pub id: CheckpointId,
    /// What it is for.
    pub kind: CheckpointKind,
    /// Display name.
    pub name: String,
    /// Whose mark the name carries, where it is a mark of Hikae.
    pub mark: Option<Mark>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// The checkpoint that it is based on.
    pub parent: Option<CheckpointId>,
    /// Whether it holds memory.
    pub holds_memory: Option<bool>,
}

/// A point from which changes are tracked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrackingPointFacts {
    /// Its id.
    pub id: TrackingPointId,
    /// When it was made, where the host tells.
    pub created: Option<Timestamp>,
    /// How many disks it tracks.
    pub disk_count: usize,
}

/// State of one integration service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Switched off at the host.
    Disabled,
    /// Switched on, and the guest answers (also with an older protocol).
    Ok,
    /// Switched on; the guest does not answer.
    NoContact,
    /// Switched on; guest and host do not understand one another.
    Incompatible,
    /// Switched on; the host says nothing more, as for a machine that does not run.
    Enabled,
}

/// Integration services of a machine; `None` where the host told nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct IntegrationFacts {
    /// Backup (volume shadow copy, or file-system freeze on Linux).
    pub backup: Option<ServiceState>,
    /// Key-value exchange.
    pub exchange: Option<ServiceState>,
    /// Orderly shutdown.
    pub shutdown: Option<ServiceState>,
    /// Heartbeat.
    pub heartbeat: Option<ServiceState>,
}

/// Family of a guest's operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestFamily {
    /// Windows.
    Windows,
    /// Linux, or another system that speaks the Linux integration services.
    Linux,
}

/// What a guest tells about itself while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct GuestFacts {
    /// Its family.
    pub family: Option<GuestFamily>,
    /// Name of its system.
    pub os_name: Option<String>,
    /// Version, such as `10.0.17763`.
    pub os_version: Option<String>,
    /// Its full name in the network.
    pub host_name: Option<String>,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Version of its integration services.
    pub integration_version: Option<String>,
    /// Everything that it told, by the guest's own names.
    pub items: BTreeMap<String, String>,
}

/// State of a cluster group or resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleState {
    /// Online.
    Online,
    /// Offline.
    Offline,
    /// Failed.
    Failed,
    /// Partly online.
    Partial,
    /// On the way.
    Pending,
    /// The cluster does not know, or another number.
    Unknown,
}

/// A machine's role in a failover cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoleFacts {
    /// The cluster.
    pub cluster: String,
    /// The group.
    pub group: String,
    /// Node that owns the group.
    pub owner: NodeName,
    /// State of the group.
    pub state: RoleState,
    /// Whether going offline saves the machine; `None` when the cluster does not tell.
    pub saves_when_offline: Option<bool>,
    /// Priority, as the cluster counts it (3000 high, 2000 medium, 1000 low, 0 no automatic start).
    pub priority: Option<u32>,
}

/// Where a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Location {
    /// The machine.
    pub vm: VmId,
    /// The node that runs it now.
    pub node: NodeName,
    /// The node where it was looked for first, when that was another one.
    pub moved_from: Option<NodeName>,
}
