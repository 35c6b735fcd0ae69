//! What can be typed behind `hikae host`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum HostVerb {
    /// Write down how a Hyper-V host is reached, and try it
    Add(HostAddArgs),
    /// The hosts that are written down
    List {
        #[command(flatten)]
        file: HostsFileArgs,
    },
    /// One host: how it is reached, its Windows, its cluster with nodes and shared volumes
    Show {
        /// Its name, as `host list` shows it
        name: String,
        #[command(flatten)]
        file: HostsFileArgs,
    },
    /// Try hosts step by step: line, login, rights, classes; and what to do about what fails
    Check {
        /// Names of hosts; all when none is given
        names: Vec<String>,
        #[command(flatten)]
        file: HostsFileArgs,
    },
    /// Strike a host out; nothing on the host changes
    Remove {
        /// Its name, as `host list` shows it
        name: String,
        #[command(flatten)]
        file: HostsFileArgs,
    },
}

/// Where hosts are written down.
#[derive(Debug, Clone, Default, Args)]
pub struct HostsFileArgs {
    /// File with the hosts; in the configuration folder when not given
    #[arg(long, env = "HIKAE_HOSTS_FILE", value_name = "FILE")]
    pub hosts_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct HostAddArgs {
    /// What to call it here: of a cluster's node, best its own name
    pub name: String,
    /// Where its WS-Management listens: http://HOST:5985, https://HOST:5986, or HOST alone for http
    #[arg(long, value_name = "URL")]
    pub address: String,
    /// The account: DOMAIN\user, or user for a local one
    #[arg(long, value_name = "USER")]
    pub user: String,
    /// File whose first line is the password. Only its place is written down, so it must stay
    #[arg(long, value_name = "FILE")]
    pub password_file: PathBuf,
    /// How to log in; over http only what encrypts every message is possible
    #[arg(long, value_enum, default_value = "negotiate")]
    pub login: LoginArg,
    /// Believe certificates of these authorities (PEM) instead of the system's
    #[arg(long, value_name = "FILE", conflicts_with = "pin")]
    pub ca: Option<PathBuf>,
    /// Believe the one certificate with this SHA-256 fingerprint
    #[arg(long, value_name = "SHA256")]
    pub pin: Option<String>,
    /// Replace a host of this name
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub file: HostsFileArgs,
}

/// How an account proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoginArg {
    /// NTLMv2 in Negotiate
    Negotiate,
    /// Name and password, over https alone
    Basic,
}
