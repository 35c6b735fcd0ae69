//! What can be typed to serve disks to other programs.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use serve::nbd::Address;

use super::{ImageOpenArgs, RepoArgs, parse_bytes};

#[derive(Debug, Args)]
pub struct ServeVersionArgs {
    #[command(flatten)]
    pub repo: RepoArgs,
    /// NAME, NAME@VERSION; several may be given
    #[arg(required = true, value_name = "VERSION")]
    pub selectors: Vec<String>,
    #[command(flatten)]
    pub what: ServeArgs,
}

#[derive(Debug, Args)]
pub struct ServeImageArgs {
    /// Several may be given
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    #[command(flatten)]
    pub what: ServeArgs,
    #[command(flatten)]
    pub open: ImageOpenArgs,
}

/// How disks are served.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("place").required(true).multiple(true).args(["nbd", "fuse"])))]
pub struct ServeArgs {
    /// Serve over NBD, at unix:/path/of/socket or tcp:127.0.0.1:PORT (port 0 takes a free one and prints it); may be given several
    /// times
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    pub nbd: Vec<Address>,
    /// Mount a folder in which each disk is a .raw and a .vhdx file; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub fuse: Option<PathBuf>,
    /// Also serve at addresses that other machines reach: anybody there may read, without a password or encryption
    #[arg(long, requires = "nbd")]
    pub allow_remote: bool,
    /// Let every user of this machine look into the folder, not only the one who mounts it
    #[arg(long, requires = "fuse")]
    pub allow_other: bool,
    /// Keep at most this much of what was read in memory
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "256M")]
    pub cache_size: u64,
}

fn parse_address(text: &str) -> Result<Address, String> {
    text.parse()
        .map_err(|error: serve::Error| error.to_string())
}
