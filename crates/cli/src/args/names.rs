//! What can be typed to find files in versions and to follow them through versions.

use clap::Args;

use super::{RepoArgs, VolumeKeysArgs};

#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct FindArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, or NAME@VERSION to search only that version; all names when not given
    #[arg(value_name = "NAME")]
    pub selector: Option<String>,
    /// Part of a file's name; or with * and ?, what its whole name fits; or with slashes, what its whole path fits
    pub pattern: String,
    /// Ignore case; on file systems of Windows it always is
    #[arg(long, short)]
    pub ignore_case: bool,
    /// The pattern is the whole name, not a part of it
    #[arg(long)]
    pub exact: bool,
    /// Only what the newest version does not have any more
    #[arg(long)]
    pub deleted: bool,
    /// Tell at most this many paths
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    pub limit: usize,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, or NAME@VERSION to look no further than that version
    #[arg(value_name = "NAME")]
    pub selector: String,
    /// Such as /etc/fstab, or 2:/etc/fstab on volume 2
    pub path: String,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
}

#[derive(Debug, Args)]
pub struct DiffFilesArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME@VERSION
    pub older: String,
    /// NAME@VERSION
    pub newer: String,
    /// Only below this folder, such as /srv, or 2:/srv on volume 2
    pub path: Option<String>,
    /// Believe equal size and times of files whose blocks cannot be compared (compressed ones), instead of reading both
    #[arg(long)]
    pub trust_times: bool,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
}
