//! What can be typed behind `hikae host`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum HostVerb {
    /// Write down how a Hyper-V host is reached, and try it
    Add(Box<HostAddArgs>),
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
    /// Try hosts step by step: line, login, rights, classes, files; and what to do about what fails
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

/// How the disks on a host are read and written. Without any of these: over SMB at the host's address, as the account above.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "How the host's files are reached")]
pub struct HostFilesArgs {
    /// A folder of the host lies here: C:\ClusterStorage=/srv/csv, \\server\share=/mnt/share; as often as needed
    #[arg(long, value_name = "WINDOWS=LOCAL")]
    pub files_at: Vec<String>,
    /// Over SMB 3, encrypted, by the administrative shares (C$, D$ …) and by the shares that paths name: the default
    #[arg(long, conflicts_with = "files_at")]
    pub files_smb: bool,
    /// The host's port of SMB; 445 when not given
    #[arg(long, value_name = "PORT", conflicts_with = "files_at")]
    pub files_smb_port: Option<u16>,
    /// The host's name or address for SMB, when it is not that of --address; SERVER=ADDRESS[:PORT] says where a server is that
    /// paths name (\\SERVER\share); as often as needed
    #[arg(long, value_name = "NAME", conflicts_with = "files_at")]
    pub files_smb_server: Vec<String>,
}

#[derive(Debug, Args)]
pub struct HostAddArgs {
    /// What to call it here: of a cluster's node, best its own name
    pub name: String,
    /// Where its WS-Management listens: http://HOST:5985, https://HOST:5986, or HOST alone for http
    #[arg(long, value_name = "URL")]
    pub address: String,
    /// The account: DOMAIN\user, user@domain, or user for one of the host itself
    ///
    /// The same account reads and writes the host's files over SMB. Not needed with --certificate, nor with --login kerberos when a
    /// ticket is there (kinit).
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// File whose first line is the password. Only its place is written down, so it must stay
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
    /// How to log in; over http only what encrypts every message is possible. `certificate` when --certificate is given, else `negotiate`
    #[arg(long, value_enum)]
    pub login: Option<LoginArg>,
    /// Log in with this client certificate (PEM, its chain behind it), over https
    #[arg(long, value_name = "FILE", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// The private key of --certificate (PEM). Only its place is written down
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub key: Option<PathBuf>,
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
    // Last: its heading holds for all that follows.
    #[command(flatten)]
    pub files: HostFilesArgs,
}

/// How an account proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoginArg {
    /// NTLMv2 in Negotiate
    Negotiate,
    /// Kerberos in Negotiate: with the password, or with the ticket that kinit left
    Kerberos,
    /// Name and password, over https alone
    Basic,
    /// A client certificate, over https alone
    Certificate,
}
