//! What can be typed to look inside disks.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{ImageOpenArgs, RepoArgs};
use crate::inside::Versions;

#[derive(Debug, Args)]
pub struct InspectVersionArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, NAME@VERSION
    pub selector: String,
    #[command(flatten)]
    pub others: OtherVersionsArgs,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
}

#[derive(Debug, Args)]
pub struct LsVersionArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, NAME@VERSION
    pub selector: String,
    #[command(flatten)]
    pub what: LsArgs,
    #[command(flatten)]
    pub others: OtherVersionsArgs,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
}

#[derive(Debug, Args)]
pub struct CatVersionArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, NAME@VERSION
    pub selector: String,
    /// Such as /etc/fstab, or 2:/etc/fstab on volume 2
    pub path: String,
    #[command(flatten)]
    pub others: OtherVersionsArgs,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
}

#[derive(Debug, Args)]
pub struct InspectImagesArgs {
    /// All disks of one machine together
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    #[command(flatten)]
    pub open: ImageOpenArgs,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
}

#[derive(Debug, Args)]
pub struct LsImageArgs {
    pub image: PathBuf,
    #[command(flatten)]
    pub what: LsArgs,
    #[command(flatten)]
    pub open: ImageOpenArgs,
    #[command(flatten)]
    pub others: OtherImagesArgs,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
}

#[derive(Debug, Args)]
pub struct CatImageArgs {
    pub image: PathBuf,
    /// Such as /etc/fstab, or 2:/etc/fstab on volume 2
    pub path: String,
    #[command(flatten)]
    pub open: ImageOpenArgs,
    #[command(flatten)]
    pub others: OtherImagesArgs,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
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
    /// For what was deleted: take the paths from the newest version that has them all
    #[arg(long, visible_alias = "newest-with")]
    pub last_present: bool,
    #[command(flatten)]
    pub what: ExtractArgs,
    #[command(flatten)]
    pub others: OtherVersionsArgs,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
}

#[derive(Debug, Args)]
pub struct ExtractImageArgs {
    pub image: PathBuf,
    #[command(flatten)]
    pub what: ExtractArgs,
    #[command(flatten)]
    pub open: ImageOpenArgs,
    #[command(flatten)]
    pub others: OtherImagesArgs,
    #[command(flatten)]
    pub keys: VolumeKeysArgs,
}

/// What is to be extracted, and where to.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("place").required(true).args(["to", "tar", "zip"]))]
pub struct ExtractArgs {
    /// Files and folders, such as /etc, 2:/data, '/etc/*.conf' or '/srv/**/*.docx'; folders come whole
    #[arg(required = true)]
    pub paths: Vec<String>,
    /// Folder that they go to, each below it by its own path; what it cannot hold is noted in hikae-metadata.jsonl. When this is interrupted, the same command goes on where it stopped
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// A tar archive instead, with owners, ACLs, named values and holes; - for standard output
    #[arg(long, value_name = "FILE")]
    pub tar: Option<PathBuf>,
    /// A zip archive instead; - for standard output
    #[arg(long, value_name = "FILE")]
    pub zip: Option<PathBuf>,
    /// Replace files that are there
    #[arg(long)]
    pub overwrite: bool,
    /// Read what was written again, from the disk, and compare it
    #[arg(long)]
    pub verify: bool,
    /// Also write a list of SHA-256 hashes, which `sha256sum --check FILE` reads in DIR
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Make device files in DIR, too (as root); without, they are noted only
    #[arg(long, requires = "to")]
    pub devices: bool,
}

/// Versions of the machine's other disks.
#[derive(Debug, Clone, Default, Args)]
pub struct OtherVersionsArgs {
    /// Another disk of the same machine, NAME or NAME@VERSION, for volumes that lie on several; may be given again
    #[arg(long = "with", value_name = "NAME")]
    pub others: Vec<String>,
}

impl OtherVersionsArgs {
    /// Them, behind a first.
    pub fn with<'a>(&'a self, selector: &'a str) -> Versions<'a> {
        Versions {
            selector,
            others: &self.others,
        }
    }
}

/// Images of the machine's other disks.
#[derive(Debug, Clone, Default, Args)]
pub struct OtherImagesArgs {
    /// Another disk of the same machine, for volumes that lie on several; may be given again
    #[arg(long = "with", value_name = "IMAGE")]
    pub others: Vec<PathBuf>,
}

impl OtherImagesArgs {
    /// Them, behind a first.
    pub fn with(&self, image: &Path) -> Vec<PathBuf> {
        let mut all = vec![image.to_owned()];
        all.extend_from_slice(&self.others);
        all
    }
}

/// Keys for encrypted volumes inside the disk. Each may be given several times; all are tried on each such volume.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Encrypted volumes (LUKS, BitLocker)")]
pub struct VolumeKeysArgs {
    /// File whose first line is a passphrase (LUKS) or password (BitLocker); /dev/stdin reads what is typed or piped
    #[arg(long, value_name = "FILE", env = "HIKAE_UNLOCK_PASSPHRASE_FILE")]
    pub unlock_passphrase_file: Vec<PathBuf>,
    /// Key file (LUKS) or startup key, .BEK (BitLocker)
    #[arg(long, value_name = "FILE", env = "HIKAE_UNLOCK_KEY_FILE")]
    pub unlock_key_file: Vec<PathBuf>,
    /// File with a recovery key of 48 digits (BitLocker), such as the one that Windows saves
    #[arg(long, value_name = "FILE", env = "HIKAE_UNLOCK_RECOVERY_KEY_FILE")]
    pub unlock_recovery_key_file: Vec<PathBuf>,
}
