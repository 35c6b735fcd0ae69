//! What can be typed behind `hikae lab`.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::ImageOpenArgs;

const UP_HELP: &str = "Then, in another terminal:
  hikae lab status                         how it is
  hikae lab fault list                     what can go wrong, on request
  hikae lab migrate VM NODE                move a machine
  hikae lab guest VM write 64              make a guest write 64 MiB
  hikae lab run 10m                        let ten minutes of the lab's clock pass at once
  hikae lab down                           end it";

const INJECT_EXAMPLES: &str = "Examples:
  hikae lab fault inject writer-fails --vm sql         the next checkpoint that asks the guest fails
  hikae lab fault inject merge-fails --times 3         the next three merges fail, whoever's they are
  hikae lab fault inject node-crashes --node NODE1     in the middle of the next job on NODE1
  hikae lab fault inject node-off --node NODE1         now
  hikae lab fault inject volume-full --volume 'C:\\ClusterStorage\\Volume1'
  hikae lab fault inject wire-cut-inside --after 10 --node ALONE
All kinds, and which flags each takes: hikae lab fault list";

#[derive(Debug, Subcommand)]
pub enum LabVerb {
    /// Start an estate and serve its hosts on this machine until Ctrl-C or `hikae lab down`
    ///
    /// Without a scenario: a cluster of two nodes and a host of its own, with four machines: a Windows and a Linux that are backed up
    /// online, one whose guest does not answer, one with a pass-through disk. Everything is simulated; nothing leaves this machine.
    #[command(after_help = UP_HELP)]
    Up(LabUpArgs),
    /// How a lab is: hosts, clusters, volumes, machines, jobs, faults to come
    Status {
        #[command(flatten)]
        place: LabPlaceArgs,
    },
    /// End a lab
    Down {
        #[command(flatten)]
        place: LabPlaceArgs,
    },
    /// Let time pass at once: guests write, jobs end, groups fail over
    Run {
        /// How much of the lab's clock: 90s, 10m, 2h, 1d
        duration: DurationArg,
        #[command(flatten)]
        place: LabPlaceArgs,
    },
    /// Make things go wrong: guests, checkpoints, merges, nodes, volumes, the wire
    Fault {
        #[command(subcommand)]
        verb: LabFaultVerb,
    },
    /// Move a machine to another node, its files to another folder, or both, as an operator would
    ///
    /// A role of a cluster is moved by its cluster; to a node outside, it is taken out of its cluster first.
    Migrate(LabMigrateArgs),
    /// A machine and the guest in it: look, make it write, start, stop; judge restored bytes
    Guest(LabGuestArgs),
}

/// Which lab is meant.
#[derive(Debug, Clone, Default, Args)]
pub struct LabPlaceArgs {
    /// The folder of the lab; the only one that runs for this user when not given
    #[arg(long = "lab", value_name = "FOLDER", env = "HIKAE_LAB", global = true)]
    pub lab: Option<PathBuf>,
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
    /// Offer the hosts' files over SMB 3 too, as Windows does (C$, D$, shares): by a private Samba for each host, which must be installed
    #[arg(long)]
    pub smb: bool,
}

#[derive(Debug, Subcommand)]
pub enum LabFaultVerb {
    /// Every kind of fault, those to come, and those that struck
    List {
        #[command(flatten)]
        place: LabPlaceArgs,
    },
    /// Plan one, or do at once what a disaster does
    #[command(after_help = INJECT_EXAMPLES)]
    Inject(LabInjectArgs),
    /// Take back those to come; volumes are as they should be again. Nodes stay as they are
    Clear {
        #[command(flatten)]
        place: LabPlaceArgs,
    },
}

#[derive(Debug, Args)]
pub struct LabInjectArgs {
    /// Its kind, as `hikae lab fault list` shows it
    pub kind: String,
    /// Only this machine: name or id
    #[arg(long)]
    pub vm: Option<String>,
    /// Only this node
    #[arg(long)]
    pub node: Option<String>,
    /// This volume, by its path on the hosts
    #[arg(long, value_name = "PATH")]
    pub volume: Option<String>,
    /// Let so many operations (or requests, on the wire) go well first
    #[arg(long, value_name = "N")]
    pub after: Option<u32>,
    /// Not before so much of the lab's clock has passed
    #[arg(long = "in", value_name = "DURATION", conflicts_with = "after")]
    pub within: Option<DurationArg>,
    /// So many times [default: once]
    #[arg(long, value_name = "N")]
    pub times: Option<NonZeroU32>,
    /// Until it is taken back
    #[arg(long, conflicts_with = "times")]
    pub always: bool,
    /// How slow, of our own clock [default: 5s]
    #[arg(long, value_name = "DURATION")]
    pub lasts: Option<DurationArg>,
    /// How much room is left on the volume, in MiB [default: none]
    #[arg(long, value_name = "MIB")]
    pub leave: Option<u64>,
    /// Which fault the wire answers with
    #[arg(long, value_name = "CODE")]
    pub fault: Option<String>,
    #[command(flatten)]
    pub place: LabPlaceArgs,
}

#[derive(Debug, Args)]
pub struct LabMigrateArgs {
    /// Name or id of the machine
    pub vm: String,
    /// Where to; its own node when only its files move
    pub node: String,
    /// The folder that its files go to, as that node sees it, such as D:\vm\web
    #[arg(long, value_name = "FOLDER")]
    pub storage: Option<String>,
    /// Make it a role of the cluster it comes to
    #[arg(long, conflicts_with = "no_wait")]
    pub as_role: bool,
    /// Do not wait for its end
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub place: LabPlaceArgs,
}

#[derive(Debug, Args)]
pub struct LabGuestArgs {
    /// Name or id of the machine
    pub vm: String,
    #[command(subcommand)]
    pub verb: LabGuestVerb,
    #[command(flatten)]
    pub place: LabPlaceArgs,
}

#[derive(Debug, Subcommand)]
pub enum LabGuestVerb {
    /// What runs in it, its last committed transaction, how its writers behave
    Status,
    /// Make it write at once: behind its workload, over and over from there, each time other bytes
    Write {
        /// How much
        mib: NonZeroU64,
    },
    /// How its writers (in Linux: its freeze) behave from now on
    Writers {
        /// How
        #[arg(value_enum)]
        state: WritersArg,
    },
    /// Start it, or let it go on from saved or paused
    Start,
    /// Let its guest shut down in good order
    ShutDown,
    /// Pull the plug: what was not flushed is lost
    TurnOff,
    /// Save its memory to a file
    Save,
    /// Let it hold still
    Pause,
    /// Pull the plug and start it again
    Reset,
    /// Judge restored images: do the bytes show an application at rest, a file system at rest, or a crash? Of which moment?
    ///
    /// The verdict comes from the bytes alone: the guest keeps a ledger, two copies of its data and a mark of its file system, and
    /// knows which of them may differ. Ends with 3 when they contradict each other, or hold nothing of it.
    Examine {
        /// The images, in the order of the machine's drives
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<PathBuf>,
        #[command(flatten)]
        open: ImageOpenArgs,
    },
}

/// How a guest's writers behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WritersArg {
    /// As they should
    Stable,
    /// They refuse
    Fails,
    /// They hang until they are timed out
    TimesOut,
    /// They say that all is well and have done nothing
    Lies,
}

/// A duration as people write it: `90s`, `1h30m`, `500ms`; a bare number is seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationArg(pub Duration);

impl DurationArg {
    /// In milliseconds.
    pub fn milliseconds(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for DurationArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 5] = [
            ("ms", 1),
            ("s", 1000),
            ("m", 60_000),
            ("h", 3_600_000),
            ("d", 86_400_000),
        ];
        let wrong = || format!("`{text}` is no duration: such as 90s, 10m, 1h30m, 2d");
        let mut rest = text.trim();
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            let (number, behind) = rest.split_at(digits);
            let letters = behind
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(behind.len());
            let (unit, behind) = behind.split_at(letters);
            let unit = if unit.is_empty() { "s" } else { unit };
            let factor = UNITS.iter().find(|(name, _)| *name == unit);
            let (_, factor) = factor.ok_or_else(wrong)?;
            let number: u64 = number.parse().map_err(|_| wrong())?;
            total = number
                .checked_mul(*factor)
                .and_then(|it| total.checked_add(it))
                .ok_or_else(wrong)?;
            rest = behind;
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, milliseconds) in [
            ("90", 90_000),
            ("90s", 90_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("0", 0),
        ] {
            let read = DurationArg::from_str(text).map(DurationArg::milliseconds);
            assert_eq!(read, Ok(milliseconds), "{text}");
        }
        for text in [
            "",
            "s",
            "-1s",
            "1 h",
            "1w",
            "99999999999999999999",
            "9999999999999999d",
            "1.5h",
        ] {
            assert!(DurationArg::from_str(text).is_err(), "{text}");
        }
    }
}
