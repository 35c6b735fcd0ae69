//! Whether, and how well, a machine can be protected: each rule with what was measured, the verdict, and the remedy.
//!
//! ```text
//!   VmFacts + GuestDisks + LastAttempt ──judge──► RuleReport* ──► modes: application │ file system │ crash │ saved state │ tracking
//! ```
//!
//! | code | rule | gates |
//! |---|---|---|
//! | `HK-E-RUNNING` | the machine runs | application, file system |
//! | `HK-E-SERVICE` | the backup service of the integration services is on, and the guest answers | application, file system |
//! | `HK-E-OS` | Windows Server 2003 or later (NT 5.2) | application |
//! | `HK-E-LINUX` | Linux: file systems are frozen, there is no VSS | application |
//! | `HK-E-DYNAMIC` `HK-E-NTFS` `HK-E-ROOM` `HK-E-STORAGE` | volumes of a Windows guest, as its disks tell | application |
//! | `HK-E-WRITERS` | the writers in the guest are well | application |
//! | `HK-E-CLUSTER` | the group of a clustered machine is online | application, file system |
//! | `HK-E-PASSTHROUGH` `HK-E-FC` `HK-E-ISCSI` `HK-E-SHARED` `HK-E-VHDSET` | every disk can be in a checkpoint | whole machine |
//! | `HK-E-HOST` | recovery checkpoints over WMI (Windows Server 2016) | application, file system, crash, tracking |
//! | `HK-E-VERSION` | configuration 8.0 or later | tracking |
//! | `HK-E-FORMAT` | every image a VHDX | tracking, where no image is one |
//! | `HK-E-HEALTH` `HK-E-IDLE` `HK-E-COUNT` `HK-E-FOREIGN` `HK-E-LOGON` | the host can make a checkpoint now | all but none |
//! | `HK-E-REPLICA` | not a replica | all |
//! | `HK-E-ASSIGNED` | no device of the host is assigned | all but crash |
//! | `HK-E-PATH` | every image lies where it can be read | all |
//! | `HK-E-TREE` `HK-E-APPLIED` `HK-E-TPM` `HK-E-REFERENCES` `HK-E-WHERE` | advice: nothing is refused | – |
//!
//! A code never changes its meaning and is never used again. Sources: Microsoft's rules for System Center DPM and Hyper-V, and the
//! situations that backup of Hyper-V meets.
//!
//! **Invariants.** [`judge`] is pure. What was not measured is *unknown*, never met. A rule that does not apply to this machine
//! on this generation of host is not in its report.

mod disks;
mod guest;
mod host;

use std::fmt;

use serde::Serialize;

use crate::consistency::Consistency;
use crate::facts::{GuestFamily, HostGeneration, VmFacts};
use crate::ids::VmId;

/// Stable name of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RuleCode(pub(crate) &'static str);

impl RuleCode {
    /// The code.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for RuleCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

/// How a machine stands to a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It keeps it.
    Yes,
    /// It was not measured.
    Unknown,
    /// It does not keep it.
    No,
}

impl Verdict {
    /// `yes`, `unknown`, `no`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Unknown => "unknown",
            Self::No => "no",
        }
    }

    /// The worse of two: no wins over unknown, unknown over yes.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.max(other)
    }
}

/// What a rule stands in the way of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Gates {
    /// An application-consistent checkpoint.
    pub application: bool,
    /// A file-system-consistent checkpoint.
    pub file_system: bool,
    /// A crash-consistent checkpoint.
    pub crash: bool,
    /// A backup by saved state.
    pub saved_state: bool,
    /// Change tracking.
    pub tracking: bool,
    /// That all of the machine's data is in the point.
    pub whole: bool,
}

impl Gates {
    pub(crate) const NONE: Self = Self {
        application: false,
        file_system: false,
        crash: false,
        saved_state: false,
        tracking: false,
        whole: false,
    };
    pub(crate) const APPLICATION: Self = Self {
        application: true,
        ..Self::NONE
    };
    pub(crate) const ONLINE: Self = Self {
        file_system: true,
        ..Self::APPLICATION
    };
    pub(crate) const CHECKPOINT: Self = Self {
        crash: true,
        tracking: true,
        ..Self::ONLINE
    };
    pub(crate) const ALL: Self = Self {
        saved_state: true,
        ..Self::CHECKPOINT
    };
    pub(crate) const TRACKING: Self = Self {
        tracking: true,
        ..Self::NONE
    };
    pub(crate) const WHOLE: Self = Self {
        whole: true,
        ..Self::NONE
    };
}

/// One rule, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleReport {
    /// Stable code.
    pub code: RuleCode,
    /// The rule, in words.
    pub rule: &'static str,
    /// How the machine stands to it.
    pub verdict: Verdict,
    /// What was measured.
    pub measured: String,
    /// What to do; only where the verdict is no.
    pub remedy: Option<String>,
    /// What it stands in the way of.
    pub gates: Gates,
}

/// What the disks of a guest tell about its volumes, when somebody looked into them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct GuestDisks {
    /// Whether there are dynamic disks.
    pub has_dynamic: Option<bool>,
    /// Volumes of the guest's system, without EFI system, reserved and recovery partitions; `None` when not looked at.
    pub volumes: Option<Vec<GuestVolume>>,
}

/// A volume of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestVolume {
    /// What to call it: its letter or its place.
    pub name: String,
    /// Its file system, in upper case: `NTFS`, `REFS`, `FAT32`; empty when none was recognised.
    pub file_system: String,
    /// Its size.
    pub size_bytes: Option<u64>,
    /// Free bytes in it.
    pub free_bytes: Option<u64>,
    /// Whether shadow copies of it are stored on itself.
    pub shadow_storage: ShadowStorage,
}

/// Where shadow copies of a volume are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShadowStorage {
    /// On the volume itself, or nowhere.
    Same,
    /// On another volume.
    Other,
    /// Not known.
    Unknown,
}

/// What the last attempt at a checkpoint told, when there was one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LastAttempt {
    /// Level that was reached; `None` when none was.
    pub reached: Option<Consistency>,
    /// The host's number for what failed.
    pub code: Option<u32>,
    /// What the host said.
    pub text: String,
}

/// All that a verdict stands on.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The machine.
    pub machine: &'a VmFacts,
    /// What its disks tell.
    pub disks: Option<&'a GuestDisks>,
    /// The last attempt.
    pub last: Option<&'a LastAttempt>,
    /// Marks of checkpoints that this server made are no foreign ones: its own name.
    pub owner: Option<&'a crate::ids::OwnerId>,
}

impl<'a> Evidence<'a> {
    /// The machine alone.
    pub fn of(machine: &'a VmFacts) -> Self {
        Self {
            machine,
            disks: None,
            last: None,
            owner: None,
        }
    }

    /// Family of the guest, as it tells itself.
    pub(crate) fn family(&self) -> Option<GuestFamily> {
        self.machine.guest.family
    }
}

/// Which rules there are on a generation of host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleSet {
    /// Windows Server 2012 R2: saved state alone.
    Saved,
    /// Windows Server 2016: recovery checkpoints and tracking; no backup type for the guest.
    Recovery,
    /// Windows Server 2019 and later.
    RecoveryTyped,
    /// A host whose generation is not known: every rule, and none taken for met.
    Unknown,
}

impl RuleSet {
    /// The rules of a generation.
    pub fn of(generation: Option<HostGeneration>) -> Self {
        match generation {
            None => Self::Unknown,
            Some(HostGeneration::Server2012R2) => Self::Saved,
            Some(HostGeneration::Server2016) => Self::Recovery,
            Some(
                HostGeneration::Server2019
                | HostGeneration::Server2022
                | HostGeneration::Server2025,
            ) => Self::RecoveryTyped,
        }
    }
}

/// Which ways of backup are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Modes {
    /// Application-consistent.
    pub application: Verdict,
    /// File-system-consistent.
    pub file_system: Verdict,
    /// Crash-consistent.
    pub crash: Verdict,
    /// By saved state.
    pub saved_state: Verdict,
    /// With change tracking.
    pub tracking: Verdict,
    /// All data of the machine.
    pub whole: Verdict,
}

/// All rules for one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EligibilityReport {
    /// The machine.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Which rules were asked.
    pub rule_set: RuleSet,
    /// Generation of the host.
    pub generation: Option<HostGeneration>,
    /// Rule by rule.
    pub rules: Vec<RuleReport>,
    /// What follows.
    pub modes: Modes,
}

impl EligibilityReport {
    /// How the machine stands to a rule; `None` when the rule is not in its set.
    pub fn verdict(&self, code: &str) -> Option<Verdict> {
        let found = self.rules.iter().find(|rule| rule.code.0 == code);
        found.map(|rule| rule.verdict)
    }

    /// Rules that are not kept.
    pub fn broken(&self) -> impl Iterator<Item = &RuleReport> {
        self.rules.iter().filter(|rule| rule.verdict == Verdict::No)
    }
}

/// Judges a machine by every rule of its host's generation.
pub fn judge(evidence: &Evidence<'_>) -> EligibilityReport {
    let machine = evidence.machine;
    let rule_set = RuleSet::of(machine.host_generation);
    let mut rules = Vec::with_capacity(32);
    guest::judge(evidence, &mut rules);
    disks::judge(evidence, rule_set, &mut rules);
    host::judge(evidence, rule_set, &mut rules);
    EligibilityReport {
        vm: machine.id,
        name: machine.name.clone(),
        rule_set,
        generation: machine.host_generation,
        modes: modes_of(&rules),
        rules,
    }
}

fn modes_of(rules: &[RuleReport]) -> Modes {
    let worst = |gated: fn(&Gates) -> bool| {
        rules
            .iter()
            .filter(|rule| gated(&rule.gates))
            .fold(Verdict::Yes, |worst, rule| worst.and(rule.verdict))
    };
    Modes {
        application: worst(|gates| gates.application),
        file_system: worst(|gates| gates.file_system),
        crash: worst(|gates| gates.crash),
        saved_state: worst(|gates| gates.saved_state),
        tracking: worst(|gates| gates.tracking),
        whole: worst(|gates| gates.whole),
    }
}

/// A rule under judgement.
pub(crate) struct Rule {
    pub code: &'static str,
    pub rule: &'static str,
    pub gates: Gates,
}

impl Rule {
    pub(crate) fn yes(self, measured: impl Into<String>) -> RuleReport {
        self.report(Verdict::Yes, measured, None)
    }

    pub(crate) fn unknown(self, measured: impl Into<String>) -> RuleReport {
        self.report(Verdict::Unknown, measured, None)
    }

    pub(crate) fn no(self, measured: impl Into<String>, remedy: impl Into<String>) -> RuleReport {
        self.report(Verdict::No, measured, Some(remedy.into()))
    }

    fn report(
        self,
        verdict: Verdict,
        measured: impl Into<String>,
        remedy: Option<String>,
    ) -> RuleReport {
        RuleReport {
            code: RuleCode(self.code),
            rule: self.rule,
            verdict,
            measured: measured.into(),
            remedy,
            gates: self.gates,
        }
    }
}
