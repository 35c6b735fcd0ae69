//! What can be typed behind `hikae vm`.

use clap::{Args, Subcommand, ValueEnum};

use super::HostsFileArgs;

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
