//! What can be typed. Only shapes and help texts; each verb's file says what it does with them.

mod disk;
mod host;
mod inside;
mod lab;
mod names;
mod serve;
mod vm;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use disk::{BackupArgs, DiskVerb, RestoreArgs};
pub use host::{HostAddArgs, HostFilesArgs, HostVerb, HostsFileArgs, LoginArg};
pub use inside::{
    CatImageArgs, CatVersionArgs, ExtractArgs, ExtractImageArgs, ExtractVersionArgs,
    InspectImagesArgs, InspectVersionArgs, LsArgs, LsImageArgs, LsVersionArgs, VolumeKeysArgs,
};
pub use lab::{
    DurationArg, LabFaultVerb, LabGuestArgs, LabGuestVerb, LabInjectArgs, LabMigrateArgs,
    LabPlaceArgs, LabUpArgs, LabVerb, WritersArg,
};
pub use names::{DiffFilesArgs, FindArgs, HistoryArgs};
pub use serve::{ServeArgs, ServeImageArgs, ServeVersionArgs};
pub use vm::{
    CheckpointKindArg, ConsistencyArg, RestoreTo, VmBackupArgs, VmCheckpointVerb, VmLeftoversArgs,
    VmPlaceArgs, VmRestoreArgs, VmVerb,
};

const RECOVER_HELP: &str = "Bring a deleted file back:
  hikae disk extract NAME PATH --last-present --to DIR   from the newest version that has it
  hikae disk find NAME report                            where is it? by a part of its name, in all versions
  hikae disk history NAME PATH                           what became of it, version by version
  hikae disk diff-files NAME@3 NAME@4                    what else was removed, added, changed
(NAME is what `hikae disk list` shows; PATH is such as /srv/report.txt, or 2:/srv/report.txt on volume 2.)";

/// Open protection of virtual machines.
#[derive(Debug, Parser)]
#[command(name = "hikae", version, about, long_about = None, propagate_version = true, max_term_width = 100, after_help = RECOVER_HELP)]
pub struct Arguments {
    /// Print one JSON object on standard output instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    pub noun: Noun,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputMode {
    /// Tables and sentences.
    Text,
    /// One JSON object.
    Json,
}

impl Arguments {
    /// How results are to be printed.
    pub fn json_mode(&self) -> OutputMode {
        if self.json {
            OutputMode::Json
        } else {
            OutputMode::Text
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Noun {
    /// See it work, on a simulated estate: protect four machines, move one, protect what changed, bring one back, prove it
    Quickstart(QuickstartArgs),
    /// Repositories: make, verify, clean, copy, repair, keys
    Repo {
        #[command(subcommand)]
        verb: RepoVerb,
    },
    /// Disks: back up, list, restore, check, compare versions; find and bring back files of any version
    #[command(after_help = RECOVER_HELP)]
    Disk {
        #[command(subcommand)]
        verb: DiskVerb,
    },
    /// Virtual disk images: look inside, check, convert, merge
    Image {
        #[command(subcommand)]
        verb: ImageVerb,
    },
    /// Hyper-V hosts: write down how they are reached, try them
    Host {
        #[command(subcommand)]
        verb: HostVerb,
    },
    /// Machines on Hyper-V hosts: what there is, what can be protected and how well; backup, restore, checkpoints
    Vm {
        #[command(subcommand)]
        verb: VmVerb,
    },
    /// A Hyper-V estate in software, to try things on: simulated hosts behind a real wire
    Lab {
        #[command(subcommand)]
        verb: LabVerb,
    },
    /// Look at the repository's own objects
    Debug {
        #[command(subcommand)]
        verb: DebugVerb,
    },
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub struct QuickstartArgs {
    /// Where to work; a new folder under the system's temporary directory when not given
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave everything in place
    #[arg(long)]
    pub keep: bool,
    /// On one sample disk alone, without a lab
    #[arg(long)]
    pub disk: bool,
}

/// Which repository, and how to open it.
#[derive(Debug, Clone, Args)]
pub struct RepoArgs {
    /// The repository: a folder, or s3://bucket/prefix
    #[arg(long = "repo", env = "HIKAE_REPO", value_name = "REPO")]
    pub repo: String,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

/// The repository as a plain argument, for the verbs of `repo`.
#[derive(Debug, Clone, Args)]
pub struct RepoTarget {
    /// The repository: a folder, or s3://bucket/prefix
    #[arg(value_name = "REPO", required_unless_present = "repo_flag")]
    repo: Option<String>,
    /// The same, as a flag
    #[arg(
        long = "repo",
        value_name = "REPO",
        env = "HIKAE_REPO",
        conflicts_with = "repo"
    )]
    repo_flag: Option<String>,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

impl RepoTarget {
    /// The repository that was named, whichever way.
    pub fn to_repo_args(&self) -> RepoArgs {
        let repo = self
            .repo
            .clone()
            .or_else(|| self.repo_flag.clone())
            .unwrap_or_default();
        RepoArgs {
            repo,
            unlock: self.unlock.clone(),
        }
    }
}

/// How an encrypted repository is opened. Without any, the key file that `repo init` wrote is looked for.
#[derive(Debug, Clone, Default, Args)]
pub struct UnlockArgs {
    /// Key file
    #[arg(long, env = "HIKAE_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// File whose first line is a passphrase
    #[arg(
        long,
        env = "HIKAE_PASSPHRASE_FILE",
        value_name = "FILE",
        conflicts_with = "key_file"
    )]
    pub passphrase_file: Option<PathBuf>,
    /// File that holds the recovery key
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key_file", "passphrase_file"])]
    pub recovery_key_file: Option<PathBuf>,
    /// Folder for the local index cache
    #[arg(long, env = "HIKAE_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// A lease that does not beat for this long counts as stalled
    #[arg(skip)]
    pub stall_seconds: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum RepoVerb {
    /// Make a new repository, encrypted unless told otherwise
    Init(InitArgs),
    /// Read the repository and compare everything with its hashes
    Verify(VerifyArgs),
    /// Free what no point needs any more
    Gc(GcArgs),
    /// Decide which points stay, say why, and forget the others
    Retain(RetainArgs),
    /// Bytes per name: logical, unique, shared; and what the store holds
    Stats {
        #[command(flatten)]
        target: RepoTarget,
    },
    /// Copy points to another repository, sending only what it lacks
    Copy(CopyArgs),
    /// Heal damage from another repository or from a source image
    Repair(RepairArgs),
    /// Try whether a store keeps the promises that a repository needs
    CheckStore {
        /// A folder, or s3://bucket/prefix
        store: String,
    },
    /// Ways to open the repository
    Key {
        #[command(subcommand)]
        verb: KeyVerb,
    },
    /// What runs on the repository now
    Lease {
        #[command(subcommand)]
        verb: LeaseVerb,
    },
    /// Keep points whatever retention says, or give them back to it
    Hold(HoldArgs),
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub target: RepoTarget,
    /// Read only this share of the packs, in percent, chosen by the seed
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub sample: Option<u8>,
    /// Stop choosing packs once this many bytes are to be read
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub budget: Option<u64>,
    /// Chooses the sample; the same seed chooses the same packs
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Only the structure: every point's tree and every blob's place, no data read
    #[arg(long, conflicts_with_all = ["sample", "budget", "without_keys"])]
    pub structure: bool,
    /// Compare checksums of the encrypted bytes only; needs no key
    #[arg(long)]
    pub without_keys: bool,
    /// Write "verified" or "damaged" marks on the points
    #[arg(long)]
    pub mark: bool,
}

#[derive(Debug, Args)]
pub struct GcArgs {
    #[command(flatten)]
    pub target: RepoTarget,
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Rewrite packs whose live share is below this, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 60, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub repack_below: u8,
    /// Rewrite at most this many bytes in one run
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub repack_budget: Option<u64>,
    /// A writer whose lease does not beat for this long is fenced
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub stall: u64,
}

#[derive(Debug, Args)]
pub struct RetainArgs {
    #[command(flatten)]
    pub target: RepoTarget,
    /// Only the points of this name
    #[arg(long)]
    pub name: Option<String>,
    /// Keep the newest N points
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep the newest point of each of the last N hours that have one
    #[arg(long, value_name = "N")]
    pub keep_hourly: Option<u32>,
    /// … of each of the last N days
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<u32>,
    /// … of each of the last N ISO weeks
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<u32>,
    /// … of each of the last N months
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<u32>,
    /// … of each of the last N years
    #[arg(long, value_name = "N")]
    pub keep_yearly: Option<u32>,
    /// Keep everything younger than this before the newest point, such as 2y5m7d3h
    #[arg(long, value_name = "SPAN")]
    pub keep_within: Option<String>,
    /// Never forget a point younger than this, whatever the rules say, such as 3d
    #[arg(long, value_name = "SPAN")]
    pub minimum_age: Option<String>,
    /// Offset from UTC in which days begin, such as +09:00
    #[arg(
        long,
        value_name = "OFFSET",
        default_value = "+00:00",
        allow_hyphen_values = true
    )]
    pub time_zone: String,
    /// Say for each point why it stays or goes, and change nothing
    #[arg(long, visible_alias = "simulate")]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct CopyArgs {
    #[command(flatten)]
    pub source: RepoTarget,
    /// The repository to copy into
    #[arg(long, value_name = "REPO")]
    pub to: String,
    /// Key file of the target
    #[arg(long, value_name = "FILE")]
    pub to_key_file: Option<PathBuf>,
    /// Only this name
    #[arg(long)]
    pub name: Option<String>,
    /// Print what would be copied and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct RepairArgs {
    #[command(flatten)]
    pub target: RepoTarget,
    /// Take good bytes from this repository
    #[arg(long, value_name = "REPO")]
    pub from: Option<String>,
    /// Key file of that repository
    #[arg(long, value_name = "FILE", requires = "from")]
    pub from_key_file: Option<PathBuf>,
    /// Take good bytes from this image
    #[arg(long, value_name = "IMAGE")]
    pub from_image: Option<PathBuf>,
    /// Give up points that nobody can read and no source has: they are put away, and the next gc frees their space
    #[arg(long)]
    pub give_up: bool,
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// The key slots
    List {
        #[command(flatten)]
        target: RepoTarget,
    },
    /// Add a way to open the repository
    Add {
        #[command(flatten)]
        target: RepoTarget,
        /// What to add
        #[arg(long, value_enum)]
        kind: SlotKindArg,
        /// For a key file: where to write it. For a passphrase: a file whose first line is the new one
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Remove a key slot; the last one stays
    Remove {
        #[command(flatten)]
        target: RepoTarget,
        /// Its id, as `key list` shows it
        #[arg(long)]
        slot: String,
    },
    /// Encrypt new packs with a new data key; old packs stay readable
    Rotate {
        #[command(flatten)]
        target: RepoTarget,
    },
    /// Write another key file that opens the repository
    Export {
        #[command(flatten)]
        target: RepoTarget,
        /// Where to write it
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Prove that the given key opens the repository and reads every data key in use
    Test {
        #[command(flatten)]
        target: RepoTarget,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SlotKindArg {
    /// A file with a secret
    KeyFile,
    /// Something to remember
    Passphrase,
    /// Something to print and lock away; shown once
    RecoveryKey,
}

#[derive(Debug, Subcommand)]
pub enum LeaseVerb {
    /// Running operations and what they hold
    List {
        #[command(flatten)]
        target: RepoTarget,
    },
    /// Declare an operation dead: it can never commit afterwards
    Break {
        #[command(flatten)]
        target: RepoTarget,
        /// Its id, as `lease list` shows it
        #[arg(long)]
        lease: String,
    },
}

/// How an image is opened.
#[derive(Debug, Clone, Args)]
pub struct ImageOpenArgs {
    /// Take the image for this format instead of looking at its contents
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub source_format: Option<FormatArg>,
    /// Where a parent lies: CHILD-OR-NAME=FILE; may be given several times
    #[arg(long, value_name = "NAME=FILE")]
    pub parent_map: Vec<String>,
    /// Follow absolute parent paths that the image names
    #[arg(long)]
    pub follow_absolute_parents: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    Vhdx,
    Vhd,
    Qcow2,
    Vmdk,
    Raw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SubformatArg {
    Fixed,
    Dynamic,
    StreamOptimized,
}

#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// What an image says about itself
    Info {
        image: PathBuf,
        /// Also its parents
        #[arg(long)]
        chain: bool,
        #[command(flatten)]
        open: ImageOpenArgs,
    },
    /// Whether an image keeps its format's rules
    Check {
        image: PathBuf,
        /// Mend what can be mended without losing data
        #[arg(long)]
        repair: bool,
        /// With --repair: also drop references to bytes that are not there
        #[arg(long, requires = "repair")]
        accept_data_loss: bool,
        #[arg(long, value_enum, value_name = "FORMAT")]
        source_format: Option<FormatArg>,
    },
    /// What lies where: data, zero, unallocated, in the parent
    Map {
        image: PathBuf,
        /// Only the image itself, not its parents
        #[arg(long)]
        leaf: bool,
        #[command(flatten)]
        open: ImageOpenArgs,
    },
    /// Write an image's contents in another format; a chain is flattened
    Convert(ConvertArgs),
    /// Whether two images hold the same bytes
    Compare {
        first: PathBuf,
        second: PathBuf,
        #[command(flatten)]
        open: ImageOpenArgs,
        /// Format of the second image
        #[arg(long, value_enum, value_name = "FORMAT")]
        second_format: Option<FormatArg>,
    },
    /// Make an empty image
    Create(CreateArgs),
    /// Write what a child holds into its parent
    Merge {
        child: PathBuf,
        #[command(flatten)]
        open: ImageOpenArgs,
        /// Remove the child when its bytes are safe in the parent
        #[arg(long)]
        delete_child: bool,
        /// Say what would be written and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Make an image's disk larger, without touching what is in it
    Resize {
        image: PathBuf,
        /// Size that the disk shall have, such as 80G
        #[arg(value_name = "SIZE", value_parser = parse_bytes)]
        size: u64,
        #[command(flatten)]
        open: ImageOpenArgs,
        /// Say what would be done and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// What lies inside disks: volumes, file systems, operating systems
    Inspect(InspectImagesArgs),
    /// Files in an image, without mounting anything
    Ls(LsImageArgs),
    /// Print a file in an image
    Cat(CatImageArgs),
    /// Take files and folders out of an image, into a folder
    Extract(ExtractImageArgs),
    /// Serve images read-only to other programs, over NBD or as raw and VHDX files, until Ctrl-C
    Serve(ServeImageArgs),
}

#[derive(Debug, Subcommand)]
pub enum DebugVerb {
    /// A pack's header and directory
    Pack {
        #[command(flatten)]
        repo: RepoArgs,
        /// Pack id
        pack: String,
    },
    /// The nodes of a version's tree
    Tree {
        #[command(flatten)]
        repo: RepoArgs,
        selector: String,
        /// Stop at this level (1 = leaf nodes)
        #[arg(long, default_value_t = 1)]
        level: u8,
    },
    /// A recovery point as it is stored
    Version {
        #[command(flatten)]
        repo: RepoArgs,
        selector: String,
    },
}

/// A version that changed ranges are relative to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentArg {
    /// Whose version, if that was said.
    pub name: Option<String>,
    /// Its number.
    pub version: u64,
}

/// Reads `7` or `NAME@7`.
pub fn parse_parent(text: &str) -> Result<ParentArg, String> {
    let (name, number) = match text.trim().rsplit_once('@') {
        Some((name, number)) => (Some(name.to_owned()), number),
        None => (None, text.trim()),
    };
    number
        .parse()
        .map(|version| ParentArg { name, version })
        .map_err(|_| format!("`{text}` is not a version; write its number, such as 7 or NAME@7"))
}

/// Reads a share between 0 and 1.
pub fn parse_share(text: &str) -> Result<f64, String> {
    text.trim()
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("`{text}` is not a share; write a number from 0 to 1, such as 0.01"))
}

/// Reads a size such as `4096`, `64K`, `2M`, `40G`, `16T` (powers of 1024).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text.get(digits.len()..).unwrap_or("").to_ascii_uppercase();
    let shift = match suffix.trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(format!("`{text}` is not a size; write 512M, 40G or 2T")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is not a size; write 512M, 40G or 2T"))?;
    number
        .checked_mul(1u64 << shift)
        .ok_or_else(|| format!("`{text}` is too large"))
}

#[derive(Debug, Args)]
pub struct ConvertArgs {
    pub source: PathBuf,
    pub target: PathBuf,
    /// Format of the target; from its extension when not given
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    #[arg(long, value_enum)]
    pub subformat: Option<SubformatArg>,
    /// Allocation unit of the target, such as 2M
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub block_size: Option<u64>,
    /// Replace the target if it exists
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    pub open: ImageOpenArgs,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    pub image: PathBuf,
    /// Size of the disk, such as 40G; a child takes its parent's
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, required_unless_present = "parent")]
    pub size: Option<u64>,
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    #[arg(long, value_enum)]
    pub subformat: Option<SubformatArg>,
    /// Make a differencing image on this parent
    #[arg(long, value_name = "IMAGE")]
    pub parent: Option<PathBuf>,
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub block_size: Option<u64>,
    /// 512 or 4096
    #[arg(long, default_value_t = 512)]
    pub logical_sector: u32,
    /// 512 or 4096
    #[arg(long, default_value_t = 4096)]
    pub physical_sector: u32,
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where: a folder that is empty or absent, or s3://bucket/prefix
    pub repo: String,
    /// Write the key file here instead of the configuration folder
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Keep everything readable for whoever can read the store
    #[arg(long, conflicts_with = "key_file")]
    pub no_encryption: bool,
    /// Also add a passphrase, the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "no_encryption")]
    pub passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct HoldArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME@VERSION
    pub selector: String,
    /// Give the point back to retention
    #[arg(long)]
    pub release: bool,
    /// Why, for whoever reads it later
    #[arg(long, default_value = "")]
    pub reason: String,
}
