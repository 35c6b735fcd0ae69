//! What can be typed behind `hikae lab`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum LabVerb {
    /// Start an estate and serve its hosts on this machine until Ctrl-C
    ///
    /// Without a scenario: a cluster of two nodes and a host of its own, with four machines: a Windows and a Linux that are backed up
    /// online, one whose guest does not answer, one with a pass-through disk. Everything is simulated; nothing leaves this machine.
    Up(LabUpArgs),
}

#[derive(Debug, Args)]
pub struct LabUpArgs {
    /// What the estate is: a JSON file
    #[arg(long, value_name = "FILE")]
    pub scenario: Option<PathBuf>,
    /// Where disks and the password lie: an empty or new folder, which stays; a temporary one, which goes, when not given
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// How many seconds of the estate are one of ours
    #[arg(long, value_name = "FACTOR", default_value = "1")]
    pub speed: NonZeroU32,
}
