//! What can be typed behind `hikae vm`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{FormatArg, HostsFileArgs, RepoArgs, parse_share};

#[derive(Debug, Subcommand)]
pub enum VmVerb {
    /// All machines: what they do, where, with how many disks and checkpoints
    List {
        #[command(flatten)]
        place: VmPlaceArgs,
    },
    /// All that is known of one machine
    Show {
        /// Its name or id
        vm: String,
        #[command(flatten)]
        place: VmPlaceArgs,
    },
    /// Disk by disk: protected, or impossible and why. Ends with 3 when a disk cannot be protected
    Coverage {
        /// Names or ids of machines; all when none is given
        vm: Vec<String>,
        #[command(flatten)]
        place: VmPlaceArgs,
    },
    /// Rule by rule: which kinds of backup are open to a machine, what stands in the way, what to do. Ends with 3 when none is open
    Eligibility {
        /// Names or ids of machines; all when none is given
        vm: Vec<String>,
        /// Also the rules that are kept
        #[arg(long)]
        all_rules: bool,
        #[command(flatten)]
        place: VmPlaceArgs,
    },
    /// Back machines up while they run: one recovery point each, with all disks and the configuration
    Backup(VmBackupArgs),
    /// Bring a machine back: over itself, onto a host, or as files in a folder
    Restore(VmRestoreArgs),
    /// What interrupted backups have left on hosts: ours is removed, what others have left is shown. Ends with 3 when something remains
    Leftovers(VmLeftoversArgs),
    /// Checkpoints of a machine
    Checkpoint {
        #[command(subcommand)]
        verb: VmCheckpointVerb,
    },
}

/// Which hosts are asked.
#[derive(Debug, Clone, Default, Args)]
pub struct VmPlaceArgs {
    /// Only this host, and the other nodes of its cluster; may be given several times
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,
    #[command(flatten)]
    pub file: HostsFileArgs,
}

#[derive(Debug, Subcommand)]
pub enum VmCheckpointVerb {
    /// All of them, of operators and of backups
    List {
        /// Name or id of the machine
        vm: String,
        #[command(flatten)]
        place: VmPlaceArgs,
    },
    /// Make one
    Create {
        /// Name or id of the machine
        vm: String,
        /// What to call it
        #[arg(long)]
        name: String,
        /// What it holds
        #[arg(long, value_enum, default_value = "as-set")]
        kind: CheckpointKindArg,
        #[command(flatten)]
        place: VmPlaceArgs,
    },
    /// Remove what a backup left on a machine, whoever made it: a checkpoint or a tracking point. Only when nobody needs it
    Drop {
        /// Name or id of the machine
        vm: String,
        /// Its id, as `vm leftovers` and `vm show` tell it
        id: String,
        #[command(flatten)]
        place: VmPlaceArgs,
    },
    /// Delete an operator's checkpoint, and wait until its disks are merged
    Delete {
        /// Name or id of the machine
        vm: String,
        /// Name or id of the checkpoint, as `checkpoint list` shows it
        checkpoint: String,
        /// And all that are based on it
        #[arg(long)]
        tree: bool,
        #[command(flatten)]
        place: VmPlaceArgs,
    },
}

/// What an operator's checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckpointKindArg {
    /// What the machine is set to
    AsSet,
    /// Memory, devices and disks
    Standard,
    /// Disks as the guest flushed them, or nothing
    Production,
}

/// How consistent a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConsistencyArg {
    /// Applications flushed and paused (VSS in a Windows guest)
    Application,
    /// File systems flushed and frozen
    FileSystem,
    /// As after a power cut
    Crash,
    /// The guest is saved meanwhile: it stands still for as long as that takes
    SavedState,
}

#[derive(Debug, Args)]
pub struct VmBackupArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// Names or ids of machines
    #[arg(required_unless_present = "all")]
    pub vm: Vec<String>,
    /// All machines of the hosts
    #[arg(long, conflicts_with_all = ["vm", "name"])]
    pub all: bool,
    /// What the versions belong to; the machine's own name when not given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// How consistent the point is to be
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "application")]
    pub want: ConsistencyArg,
    /// What to take when that is not reached, in order; file-system, then crash, when not given
    #[arg(long = "or", value_enum, value_name = "LEVEL")]
    pub otherwise: Vec<ConsistencyArg>,
    /// Fail when the level is not reached
    #[arg(long, conflicts_with = "otherwise")]
    pub require: bool,
    /// Leave this disk out: its slot as `vm coverage` shows it ("SCSI 0:1"), the path of its image, or a folder that ends with \
    #[arg(long, value_name = "DISK")]
    pub exclude: Vec<String>,
    /// Tell applications in the guest that this is a full backup: they may cut their logs
    #[arg(long)]
    pub full: bool,
    /// Share of the blocks called unchanged by change tracking to read all the same, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.001, value_parser = parse_share)]
    pub audit: f64,
    /// Chooses the audited blocks; random when not given
    #[arg(long)]
    pub audit_seed: Option<u64>,
    /// How many machines at once, within the limits for each host and each volume
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub parallel: usize,
    /// Record unreadable ranges and go on; the point is marked damaged
    #[arg(long)]
    pub tolerate_unreadable: bool,
    /// Worker threads of each backup; one per core when not given
    #[arg(long)]
    pub threads: Option<usize>,
    /// Say what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub place: VmPlaceArgs,
}

/// Where a machine goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RestoreTo {
    /// Over the machine itself, or in its place when it is gone
    Original,
    /// Onto a host, as a machine
    Host,
    /// Into a folder of this system, as images and configuration
    Folder,
}

#[derive(Debug, Args)]
pub struct VmRestoreArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, NAME@VERSION
    pub selector: String,
    /// Where it goes
    #[arg(long, value_enum)]
    pub to: RestoreTo,
    /// With `--to folder`, the folder (new or empty); with `--to host`, the folder on the host for its files
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// With `--to host`, the node that is to run it
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// With `--to host`, its name there
    #[arg(long, value_name = "NAME")]
    pub rename: Option<String>,
    /// With `--to host`, keep the machine's id, which must not exist there; a new one is made when not given
    #[arg(long)]
    pub keep_id: bool,
    /// With `--to host`, connect its network adapters to this switch; they stay unconnected when not given
    #[arg(long, value_name = "SWITCH")]
    pub switch: Option<String>,
    /// With `--to host`, make it highly available where the host is in a cluster
    #[arg(long)]
    pub role: bool,
    /// With `--to original`, turn the machine off first if it runs
    #[arg(long)]
    pub turn_off: bool,
    /// Start it when all is done
    #[arg(long)]
    pub start: bool,
    /// With `--to folder`, the format of the images; as they were when not given
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    /// Do not read the written images again
    #[arg(long)]
    pub no_proof: bool,
    /// Say what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub place: VmPlaceArgs,
}

#[derive(Debug, Args)]
pub struct VmLeftoversArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// Look again until nothing of ours is left, this long at most (seconds)
    #[arg(long, value_name = "SECONDS")]
    pub wait: Option<u64>,
    /// Act for a server that was lost: the owner that marks on the hosts name
    #[arg(long, value_name = "OWNER")]
    pub of_lost: Option<String>,
    #[command(flatten)]
    pub place: VmPlaceArgs,
}
