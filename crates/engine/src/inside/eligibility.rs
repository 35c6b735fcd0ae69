//! Whether a host can back a machine up online, as far as its disks tell: one line for each rule, with what was measured.
//!
//! | code | rule | answered by |
//! |---|---|---|
//! | `HK-E-OS` | Windows Server 2003 or later (NT 5.2), so that VSS is there | SOFTWARE, SYSTEM |
//! | `HK-E-SERVICE` | the backup service of the integration services is there and not disabled | SYSTEM |
//! | `HK-E-DYNAMIC` | no dynamic disks | LDM databases |
//! | `HK-E-NTFS` | every volume is NTFS | volumes |
//! | `HK-E-ROOM` | every NTFS volume has 1 GiB or more, of which 300 MiB are free | volumes |
//! | `HK-E-STORAGE` | shadow copies of a volume are stored on that volume | header at 0x1E00 of the volume |
//! | `HK-E-RUNNING` `HK-E-CLUSTER` `HK-E-WRITERS` | the machine runs; its group is online; its writers are well | the host |
//! | `HK-E-LINUX` | Linux: file systems are frozen, there is no VSS | the host |
//!
//! A code never changes its meaning and is never used again. The rules are those that Microsoft documents for System Center
//! DPM and Hyper-V.
//!
//! **Invariants.** [`judge`] is pure: facts in, verdicts out. What was not read is [`Verdict::Unknown`], never met. Broken
//! wins over unknown, unknown over met. Not counted as volumes of Windows: its EFI system, reserved and recovery partitions,
//! members of dynamic disks and the outside of an encrypted volume that is open. A volume that no Windows here gives a drive
//! letter (the "System Reserved" of an MBR disk) breaks no rule by being small: VSS has limits of its own for those.
//!
//! It asks no host, and does not decide what a job does.

use std::fmt;

use guestfs::registry::windows::{IntegrationService, ServiceStart};
use serde::Serialize;

use super::system::start_word;

const MIB: u64 = 1 << 20;
const LEAST_SIZE_BYTES: u64 = 1 << 30;
const LEAST_FREE_BYTES: u64 = 300 * MIB;
/// Windows Server 2003.
const LEAST_VERSION: (u32, u32) = (5, 2);
const BACKUP_SERVICE: &str = "vmicvss";

/// Stable name of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct RuleCode(&'static str);

impl fmt::Display for RuleCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

/// How a machine stands to a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It keeps it.
    Met,
    /// It does not: an online backup is refused, or falls back to a saved state.
    Broken,
    /// The disks do not tell.
    Unknown,
}

impl Verdict {
    /// `met`, `broken`, `unknown`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Broken => "broken",
            Self::Unknown => "unknown",
        }
    }
}

/// One rule, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleReport {
    /// Stable code.
    pub code: RuleCode,
    /// The rule, in words.
    pub rule: &'static str,
    /// Number of the volume with the system that it is about; none where it is about the whole machine.
    pub system_volume: Option<usize>,
    /// How it stands.
    pub verdict: Verdict,
    /// What was measured.
    pub measured: String,
    /// What to do; only where it is broken.
    pub remedy: Option<String>,
}

/// What the registry of a Windows tells for the rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WindowsBackupFacts {
    /// Major and minor version of its kernel.
    pub version: Option<(u32, u32)>,
    /// Integration services of Hyper-V.
    pub services: Vec<IntegrationService>,
    /// Their version, where the guest carries its own.
    pub integration_version: Option<String>,
    /// When the service of shadow copies starts.
    pub shadow_copy_service: Option<ServiceStart>,
    /// Whether its services could be read without damage: what is not among them is not there.
    pub is_complete: bool,
}

/// A system that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSystem {
    /// Number of its volume.
    pub volume: usize,
    /// What it is.
    pub family: GuestFamily,
}

/// What a system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestFamily {
    /// Windows, and what its registry tells.
    Windows(WindowsBackupFacts),
    /// Linux.
    Linux,
}

/// Where the shadow copies of an NTFS volume are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShadowStorage {
    /// None was ever set up.
    NotSet,
    /// On the volume.
    SameVolume,
    /// On the volume with this id.
    OtherVolume(String),
    /// It could not be read, and why.
    Unread(String),
}

/// What a volume is to Windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestContent {
    /// NTFS.
    Ntfs {
        /// Free bytes, where its files can be read.
        free_bytes: Option<u64>,
        /// Where its shadow copies are.
        storage: ShadowStorage,
    },
    /// Something else that Windows would have to snapshot: its name.
    Other(&'static str),
    /// Nothing that Windows snapshots: why.
    NotCounted(&'static str),
    /// It cannot be told: why.
    Closed(String),
}

/// What the Windows on the disks calls a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriveLetter {
    /// `C:`
    Is(String),
    /// Others have letters, this one has none.
    None,
    /// No letter of any volume is known.
    Unknown,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestVolume {
    /// Its number.
    pub number: usize,
    /// Bytes, where it can be read.
    pub size_bytes: Option<u64>,
    /// Its drive letter.
    pub letter: DriveLetter,
    /// What lies in it.
    pub content: GuestContent,
}

impl fmt::Display for GuestVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {}", self.number)?;
        match &self.letter {
            DriveLetter::Is(letter) => write!(f, " ({letter})"),
            DriveLetter::None | DriveLetter::Unknown => Ok(()),
        }
    }
}

/// What the disks of a machine tell for the rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EligibilityFacts {
    /// Systems on them.
    pub systems: Vec<GuestSystem>,
    /// Numbers of disks (from zero) that are dynamic, with the names of their groups.
    pub dynamic_disks: Vec<(usize, String)>,
    /// Volumes.
    pub volumes: Vec<GuestVolume>,
}

/// What was found for a rule, by what it says of it.
#[derive(Default)]
struct Evidence {
    met: Vec<String>,
    unknown: Vec<String>,
    broken: Vec<String>,
}

impl Evidence {
    fn report(self, code: &'static str, rule: &'static str, remedy: &str) -> RuleReport {
        let verdict = match (self.broken.is_empty(), self.unknown.is_empty()) {
            (false, _) => Verdict::Broken,
            (true, false) => Verdict::Unknown,
            (true, true) if self.met.is_empty() => Verdict::Unknown,
            (true, true) => Verdict::Met,
        };
        let told = [self.broken, self.unknown, self.met].concat();
        RuleReport {
            code: RuleCode(code),
            rule,
            system_volume: None,
            verdict,
            measured: if told.is_empty() {
                "the disks do not tell".to_owned()
            } else {
                told.join("; ")
            },
            remedy: (verdict == Verdict::Broken).then(|| remedy.to_owned()),
        }
    }
}

/// Judges every rule: those of each Windows, then those of its disks, then those that only a host can answer. Without
/// Windows one line for each Linux, and nothing where no system was found.
pub fn judge(facts: &EligibilityFacts) -> Vec<RuleReport> {
    let mut rules = Vec::new();
    for system in &facts.systems {
        if let GuestFamily::Windows(windows) = &system.family {
            for mut rule in [system_rule(windows), service_rule(windows)] {
                rule.system_volume = Some(system.volume);
                rules.push(rule);
            }
        }
    }
    if !rules.is_empty() {
        rules.push(dynamic_rule(&facts.dynamic_disks));
        rules.push(ntfs_rule(&facts.volumes));
        rules.push(room_rule(&facts.volumes));
        rules.push(storage_rule(&facts.volumes));
        rules.extend(host_rules());
    }
    for system in &facts.systems {
        if system.family == GuestFamily::Linux {
            rules.push(RuleReport {
                system_volume: Some(system.volume),
                ..of_host(
                    "HK-E-LINUX",
                    "Linux is backed up online by freezing its file systems, not by VSS",
                    "whether the service that freezes them (hv_vss_daemon, qemu-ga) runs, only the host can tell",
                )
            });
        }
    }
    rules
}

fn of_host(code: &'static str, rule: &'static str, measured: &str) -> RuleReport {
    RuleReport {
        code: RuleCode(code),
        rule,
        system_volume: None,
        verdict: Verdict::Unknown,
        measured: measured.to_owned(),
        remedy: None,
    }
}

fn host_rules() -> [RuleReport; 3] {
    const HOST: &str = "only the host can tell";
    [
        of_host("HK-E-RUNNING", "the machine is running", HOST),
        of_host(
            "HK-E-CLUSTER",
            "if it is clustered, its resource group is online",
            HOST,
        ),
        of_host("HK-E-WRITERS", "the VSS writers inside are well", HOST),
    ]
}

fn system_rule(windows: &WindowsBackupFacts) -> RuleReport {
    let mut found = Evidence::default();
    let mut remedy = "";
    match windows.version {
        Some((major, minor)) => {
            let told = format!("Windows NT {major}.{minor}");
            if (major, minor) >= LEAST_VERSION {
                found.met.push(told);
            } else {
                found.broken.push(told);
                remedy = "This system has no VSS for it: back the machine up offline (saved state)";
            }
        }
        None => found
            .unknown
            .push("its registry does not tell its version".to_owned()),
    }
    match windows.shadow_copy_service {
        Some(ServiceStart::Disabled) => {
            found.broken.push("the service VSS is disabled".to_owned());
            if remedy.is_empty() {
                remedy = "In the guest: sc.exe config VSS start= demand";
            }
        }
        Some(start) => found
            .met
            .push(format!("service VSS: {}", start_word(start))),
        None => found
            .unknown
            .push("its registry does not tell of the service VSS".to_owned()),
    }
    let rule = "the system is Windows Server 2003 or later, and VSS is not disabled";
    found.report("HK-E-OS", rule, remedy)
}

fn service_rule(windows: &WindowsBackupFacts) -> RuleReport {
    let mut found = Evidence::default();
    let mut remedy = "In the guest, install the integration services of Hyper-V (up to Windows Server 2012 R2 from the \
        setup disk of its host; later ones bring them), then turn on Backup among them in the settings of the machine";
    let mut is_there = false;
    for service in &windows.services {
        let told = format!("{}: {}", service.name, start_word(service.start));
        if !service.name.eq_ignore_ascii_case(BACKUP_SERVICE) {
            found.met.push(told);
            continue;
        }
        is_there = true;
        match service.start {
            ServiceStart::Disabled => {
                found.broken.push(told);
                remedy = "In the guest: sc.exe config vmicvss start= demand";
            }
            ServiceStart::Other(_) => found.unknown.push(told),
            ServiceStart::Boot
            | ServiceStart::System
            | ServiceStart::Automatic
            | ServiceStart::Manual => found.met.push(told),
        }
    }
    if !is_there && windows.is_complete {
        found.broken.push("there is no service vmicvss".to_owned());
    } else if !is_there {
        let what = "its services could not all be read, and vmicvss is not among those that were";
        found.unknown.push(what.to_owned());
    }
    if let Some(version) = &windows.integration_version {
        found.met.push(format!("their version: {version}"));
    }
    let rule = "the backup service of the integration services is installed and not disabled";
    found.report("HK-E-SERVICE", rule, remedy)
}

fn dynamic_rule(dynamic_disks: &[(usize, String)]) -> RuleReport {
    let mut found = Evidence::default();
    for (number, group) in dynamic_disks {
        let told = format!("disk {number} is a dynamic disk of {group}");
        found.broken.push(told);
    }
    if dynamic_disks.is_empty() {
        found.met.push("none is dynamic".to_owned());
    }
    let remedy = "Move the volumes to basic disks; until then back the machine up offline";
    found.report("HK-E-DYNAMIC", "no disk is a dynamic disk", remedy)
}

fn ntfs_rule(volumes: &[GuestVolume]) -> RuleReport {
    let mut found = Evidence::default();
    for volume in volumes {
        match &volume.content {
            GuestContent::Ntfs { .. } => found.met.push(format!("{volume}: NTFS")),
            GuestContent::Other(what) => found.broken.push(format!("{volume}: {what}")),
            GuestContent::NotCounted(why) => found.met.push(format!("{volume}: {why}")),
            GuestContent::Closed(why) => found.unknown.push(format!("{volume}: {why}")),
        }
    }
    let remedy = "Move what these volumes hold to NTFS (FAT: convert X: /fs:ntfs); until then back the machine up offline";
    found.report("HK-E-NTFS", "every volume is NTFS", remedy)
}

fn room_rule(volumes: &[GuestVolume]) -> RuleReport {
    let mut found = Evidence::default();
    for volume in volumes {
        let free_bytes = match &volume.content {
            GuestContent::Ntfs { free_bytes, .. } => *free_bytes,
            GuestContent::Closed(why) => {
                found.unknown.push(format!("{volume}: {why}"));
                continue;
            }
            GuestContent::Other(_) | GuestContent::NotCounted(_) => continue,
        };
        let (Some(size_bytes), Some(free_bytes)) = (volume.size_bytes, free_bytes) else {
            let told = format!("{volume}: its room could not be read");
            found.unknown.push(told);
            continue;
        };
        // Rounded down: what is too little never reads as enough.
        let (size_mib, free_mib) = (size_bytes / MIB, free_bytes / MIB);
        let told = format!("{volume}: {size_mib} MiB, {free_mib} MiB free");
        if size_bytes >= LEAST_SIZE_BYTES && free_bytes >= LEAST_FREE_BYTES {
            found.met.push(told);
        } else if volume.letter == DriveLetter::None {
            let why = "without a drive letter: VSS decides by limits of its own";
            found.unknown.push(format!("{told}, {why}"));
        } else {
            found.broken.push(told);
        }
    }
    let rule = "every NTFS volume has 1024 MiB or more, and 300 MiB free";
    let remedy = "Make room on these volumes, or enlarge them (hikae image resize, then extend the volume in the guest)";
    found.report("HK-E-ROOM", rule, remedy)
}

fn storage_rule(volumes: &[GuestVolume]) -> RuleReport {
    let mut found = Evidence::default();
    for volume in volumes {
        match &volume.content {
            GuestContent::Ntfs { storage, .. } => match storage {
                ShadowStorage::NotSet => found.met.push(format!("{volume}: none set up")),
                ShadowStorage::SameVolume => found.met.push(format!("{volume}: on itself")),
                ShadowStorage::OtherVolume(id) => {
                    found.broken.push(format!("{volume}: on volume {id}"));
                }
                ShadowStorage::Unread(why) => found.unknown.push(format!("{volume}: {why}")),
            },
            GuestContent::Closed(why) => found.unknown.push(format!("{volume}: {why}")),
            GuestContent::Other(_) | GuestContent::NotCounted(_) => {}
        }
    }
    let remedy = "In the guest: vssadmin list shadowstorage, then for each of these: vssadmin delete shadowstorage \
        /for=X: /on=Y:, and vssadmin add shadowstorage /for=X: /on=X:";
    let rule = "shadow copies of a volume are stored on that volume";
    found.report("HK-E-STORAGE", rule, remedy)
}
