//! What can be typed to look inside disks.

use std::path::PathBuf;

use clap::Args;

use super::{ImageOpenArgs, RepoArgs};

#[derive(Debug, Args)]
pub struct InspectVersionArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, NAME@VERSION
    pub selector: String,
}

#[derive(Debug, Args)]
pub struct LsVersionArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, NAME@VERSION
    pub selector: String,
    #[command(flatten)]
    pub what: LsArgs,
}

#[derive(Debug, Args)]
pub struct CatVersionArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, NAME@VERSION
    pub selector: String,
    /// Such as /etc/fstab, or 2:/etc/fstab on volume 2
    pub path: String,
}

#[derive(Debug, Args)]
pub struct InspectImagesArgs {
    /// All disks of one machine together
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    #[command(flatten)]
    pub open: ImageOpenArgs,
}

#[derive(Debug, Args)]
pub struct LsImageArgs {
    pub image: PathBuf,
    #[command(flatten)]
    pub what: LsArgs,
    #[command(flatten)]
    pub open: ImageOpenArgs,
}

#[derive(Debug, Args)]
pub struct CatImageArgs {
    pub image: PathBuf,
    /// Such as /etc/fstab, or 2:/etc/fstab on volume 2
    pub path: String,
    #[command(flatten)]
    pub open: ImageOpenArgs,
}

/// What is to be listed.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Folder or file, such as /etc, or 2:/etc on volume 2; `inspect` shows the volumes
    #[arg(default_value = "/")]
    pub path: String,
    /// Everything below, too
    #[arg(long, short)]
    pub recursive: bool,
    /// Also kind, mode or attributes, owner, size, time
    #[arg(long, short)]
    pub long: bool,
}

#[derive(Debug, Args)]
pub struct ExtractVersionArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, NAME@VERSION
    pub selector: String,
    #[command(flatten)]
    pub what: ExtractArgs,
}

#[derive(Debug, Args)]
pub struct ExtractImageArgs {
    pub image: PathBuf,
    #[command(flatten)]
    pub what: ExtractArgs,
    #[command(flatten)]
    pub open: ImageOpenArgs,
}

/// What is to be extracted, and where to.
#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// Files and folders, such as /etc, 2:/data or '/etc/*.conf'; folders come whole
    #[arg(required = true)]
    pub paths: Vec<String>,
    /// Folder that they go to, each below it by its own path; what it cannot hold is noted in hikae-metadata.jsonl
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    pub overwrite: bool,
}
