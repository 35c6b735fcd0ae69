//! What can be typed behind `hikae disk`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    CatVersionArgs, DiffFilesArgs, ExtractVersionArgs, FindArgs, FormatArg, HistoryArgs,
    ImageOpenArgs, InspectVersionArgs, LsVersionArgs, ParentArg, RepoArgs, ServeVersionArgs,
    SubformatArg, parse_parent, parse_share,
};

#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// Protect an image or a block device as the next version of a name
    Backup(BackupArgs),
    /// The versions
    List {
        #[command(flatten)]
        repo: RepoArgs,
        /// Only this name
        #[arg(long)]
        name: Option<String>,
        /// Also points that are forgotten but not yet gone
        #[arg(long)]
        all: bool,
    },
    /// Bring a version back
    Restore(RestoreArgs),
    /// Consistency check: read an image and compare it with a version
    Check {
        #[command(flatten)]
        repo: RepoArgs,
        /// Image or block device
        image: PathBuf,
        /// NAME, NAME@VERSION
        selector: String,
        /// Which disk of a machine's version, as `vm backup` calls it (scsi-0-0); its only one when not given
        #[arg(long, value_name = "LABEL")]
        disk: Option<String>,
        #[command(flatten)]
        open: ImageOpenArgs,
    },
    /// Ranges that differ between two versions
    Diff {
        #[command(flatten)]
        repo: RepoArgs,
        /// NAME@VERSION
        older: String,
        /// NAME@VERSION
        newer: String,
        /// Which disk of a machine's version, as `vm backup` calls it (scsi-0-0); its only one when not given
        #[arg(long, value_name = "LABEL")]
        disk: Option<String>,
    },
    /// Mark a version as no longer wanted; gc frees it
    Forget {
        #[command(flatten)]
        repo: RepoArgs,
        /// NAME@VERSION
        selector: String,
        /// Take it back, as long as gc has not run
        #[arg(long)]
        undo: bool,
    },
    /// What lies inside a version: volumes, file systems, operating systems
    Inspect(InspectVersionArgs),
    /// Files of a version, without mounting anything
    Ls(LsVersionArgs),
    /// Print a file of a version
    Cat(CatVersionArgs),
    /// Bring files and folders of a version back, into a folder
    Extract(ExtractVersionArgs),
    /// Find files by name in all versions, deleted ones too, and how to bring them back
    Find(FindArgs),
    /// What became of a file: in which versions it is, changed, deleted
    History(HistoryArgs),
    /// Files added, removed, changed and moved between two versions
    DiffFiles(DiffFilesArgs),
    /// Serve versions read-only to other programs, over NBD or as raw and VHDX files, until Ctrl-C
    Serve(ServeVersionArgs),
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// Image or block device
    pub image: PathBuf,
    /// What the versions belong to
    #[arg(long)]
    pub name: String,
    #[command(flatten)]
    pub open: ImageOpenArgs,
    /// Only these ranges changed since the parent version: a file with "OFFSET LENGTH" lines or a JSON array of [offset, length]
    #[arg(long, value_name = "FILE")]
    pub changed_ranges: Option<PathBuf>,
    /// Share of the blocks called unchanged to read all the same, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.001, value_parser = parse_share)]
    pub audit: f64,
    /// Chooses the audited blocks; random when not given
    #[arg(long)]
    pub audit_seed: Option<u64>,
    /// The version that the changed ranges are relative to, N or NAME@N; the newest when not given
    #[arg(long, value_name = "VERSION", value_parser = parse_parent)]
    pub parent: Option<ParentArg>,
    /// Fill the repository from this image first, so that only what differs from it is new
    #[arg(long, value_name = "IMAGE")]
    pub seed: Option<PathBuf>,
    /// Record unreadable ranges and go on; the point is marked damaged
    #[arg(long)]
    pub tolerate_unreadable: bool,
    /// Leave out what no file needs: free space of file systems, page files, swap. It comes back as zeros
    ///
    /// The image must not change meanwhile: take a snapshot, or a machine that is off. Only where it is certain: file systems that were shut down properly or whose journal can be followed, in
    /// volumes whose place on the disk is known exactly. The report says for each volume what is left out, or why
    /// nothing is; --dry-run says so without storing anything.
    #[arg(long)]
    pub skip_unneeded: bool,
    /// Worker threads; one per core when not given
    #[arg(long)]
    pub threads: Option<usize>,
    /// Say what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, NAME@VERSION
    pub selector: String,
    /// Image file or block device to write
    pub out: PathBuf,
    /// Which disk of a machine's version, as `vm backup` calls it (scsi-0-0); its only one when not given
    #[arg(long, value_name = "LABEL")]
    pub disk: Option<String>,
    /// Image format; the source's when not given
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    /// How space is taken; as the source's when not given
    #[arg(long, value_enum)]
    pub subformat: Option<SubformatArg>,
    /// Give the restored disk a new identity instead of the source's
    #[arg(long)]
    pub new_disk_id: bool,
    /// Replace OUT if it exists; needed for a block device
    #[arg(long, conflicts_with = "in_place")]
    pub overwrite: bool,
    /// Write only the blocks of OUT that differ
    #[arg(long)]
    pub in_place: bool,
    /// Worker threads; one per core when not given
    #[arg(long)]
    pub threads: Option<usize>,
    /// Say what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,
}
