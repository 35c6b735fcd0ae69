//! Faults that are asked for: what goes wrong, to whom, and when.
//!
//! **Invariants.** A fault strikes as often as it says, in the order of the operations it waits for. A plan with the same
//! faults and the same calls strikes the same operations.

use super::clock::VirtualTime;
use super::ids::{HostName, VmId};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// A writer of the guest refuses: an application-consistent checkpoint fails.
    WriterFails,
    /// A writer of the guest hangs: the checkpoint fails after a minute.
    WriterTimesOut,
    /// A writer says that it is done and is not: the checkpoint succeeds, the bytes are as after a crash.
    WriterLies,
    /// A merge ends in an exception; the files stay as they are.
    MergeFails,
    /// A checkpoint cannot be created.
    CheckpointFails,
    /// A conversion to a reference point ends in an exception; the checkpoint stays.
    ConversionFails,
    /// A volume has no room: what needs some fails.
    DiskFull,
    /// A job vanishes as soon as it is over.
    JobVanishes,
    /// A job takes twenty times as long.
    JobIsSlow,
    /// A method answers 4096 and names no job.
    JobIsNotNamed,
    /// Tracking is gone from all disks of the VM.
    TrackingLost,
    /// Tracking leaves a part of the changes out.
    TrackingLies,
    /// A migration ends in an exception; the VM stays.
    MigrationFails,
    /// A state change ends in an exception.
    StateChangeFails,
    /// A node loses power: in the middle of the job that was begun, or at a moment.
    NodeCrashes,
    /// The account of the VM's worker processes may not log on as a service: 0x8007052F.
    LogonRightMissing,
}

impl FaultKind {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::WriterFails,
        Self::WriterTimesOut,
        Self::WriterLies,
        Self::CheckpointFails,
        Self::ConversionFails,
        Self::MergeFails,
        Self::DiskFull,
        Self::TrackingLost,
        Self::TrackingLies,
        Self::MigrationFails,
        Self::StateChangeFails,
        Self::JobIsSlow,
        Self::JobVanishes,
        Self::JobIsNotNamed,
        Self::LogonRightMissing,
        Self::NodeCrashes,
    ];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::WriterFails => "writer-fails",
            Self::WriterTimesOut => "writer-times-out",
            Self::WriterLies => "writer-lies",
            Self::MergeFails => "merge-fails",
            Self::CheckpointFails => "checkpoint-fails",
            Self::ConversionFails => "conversion-fails",
            Self::DiskFull => "disk-full",
            Self::JobVanishes => "job-vanishes",
            Self::JobIsSlow => "job-is-slow",
            Self::JobIsNotNamed => "job-is-not-named",
            Self::TrackingLost => "tracking-lost",
            Self::TrackingLies => "tracking-lies",
            Self::MigrationFails => "migration-fails",
            Self::StateChangeFails => "state-change-fails",
            Self::NodeCrashes => "node-crashes",
            Self::LogonRightMissing => "logon-right-missing",
        }
    }

    /// What happens, in one line.
    pub fn help(self) -> &'static str {
        match self {
            Self::WriterFails => {
                "a writer of the guest refuses: an application-consistent checkpoint fails"
            }
            Self::WriterTimesOut => {
                "a writer of the guest hangs: the checkpoint fails after a minute"
            }
            Self::WriterLies => "a writer says that it is done and is not: only the bytes tell",
            Self::MergeFails => "a merge ends in an exception; the files stay as they are",
            Self::CheckpointFails => "a checkpoint cannot be created",
            Self::ConversionFails => {
                "a conversion to a reference point ends in an exception; the checkpoint stays"
            }
            Self::DiskFull => "no room for what is being made or merged",
            Self::JobVanishes => "a job is gone as soon as it is over",
            Self::JobIsSlow => "a job takes twenty times as long",
            Self::JobIsNotNamed => "a method answers 4096 and names no job",
            Self::TrackingLost => "change tracking is gone from all disks of the VM",
            Self::TrackingLies => "change tracking leaves a part of the changes out",
            Self::MigrationFails => "a migration ends in an exception; the VM stays",
            Self::StateChangeFails => "a start, save or stop ends in an exception",
            Self::NodeCrashes => "a node loses power in the middle of the job that is begun",
            Self::LogonRightMissing => "worker processes may not log on as a service: 0x8007052F",
        }
    }
}

/// When it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// The next time.
    Next,
    /// After so many operations that it could have struck.
    AfterOperations(u32),
    /// The first time at or after a moment.
    At(VirtualTime),
}

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Repeat {
    /// So many times.
    Times(u32),
    /// Until it is taken back.
    Always,
}

/// A fault to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// When.
    pub trigger: Trigger,
    /// How often.
    pub repeat: Repeat,
    /// To which VM; any when `None`.
    pub vm: Option<VmId>,
    /// On which host; any when `None`.
    pub host: Option<HostName>,
}

impl Fault {
    /// The next time, once, to anybody.
    pub fn next(kind: FaultKind) -> Self {
        Self {
            kind,
            trigger: Trigger::Next,
            repeat: Repeat::Times(1),
            vm: None,
            host: None,
        }
    }

    /// To one VM only.
    #[must_use]
    pub fn of_vm(mut self, vm: VmId) -> Self {
        self.vm = Some(vm);
        self
    }

    /// On one host only.
    #[must_use]
    pub fn on_host(mut self, host: HostName) -> Self {
        self.host = Some(host);
        self
    }

    /// At another moment.
    #[must_use]
    pub fn when(mut self, trigger: Trigger) -> Self {
        self.trigger = trigger;
        self
    }

    /// More or less often.
    #[must_use]
    pub fn repeated(mut self, repeat: Repeat) -> Self {
        self.repeat = repeat;
        self
    }
}

/// The faults to come.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    planned: Vec<Fault>,
    struck: Vec<(VirtualTime, FaultKind)>,
}

impl Faults {
    /// Those still to come.
    pub fn planned(&self) -> &[Fault] {
        &self.planned
    }

    /// Those that struck, with their times.
    pub fn struck(&self) -> &[(VirtualTime, FaultKind)] {
        &self.struck
    }

    pub(super) fn add(&mut self, fault: Fault) {
        self.planned.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
    }

    /// Whether a fault strikes this operation. Asking counts as one operation.
    pub(super) fn strikes(
        &mut self,
        kind: FaultKind,
        vm: Option<VmId>,
        host: &HostName,
        now: VirtualTime,
    ) -> bool {
        let mut struck = false;
        for fault in &mut self.planned {
            let concerns = fault.kind == kind
                && fault.vm.is_none_or(|wanted| vm == Some(wanted))
                && fault.host.as_ref().is_none_or(|wanted| wanted == host);
            if !concerns || struck {
                continue;
            }
            let is_due = match &mut fault.trigger {
                Trigger::Next => true,
                Trigger::At(at) => now >= *at,
                Trigger::AfterOperations(0) => true,
                Trigger::AfterOperations(left) => {
                    *left -= 1;
                    false
                }
            };
            if !is_due {
                continue;
            }
            if let Repeat::Times(left) = &mut fault.repeat {
                *left = left.saturating_sub(1);
            }
            struck = true;
        }
        if struck {
            self.planned
                .retain(|fault| fault.repeat != Repeat::Times(0));
            self.struck.push((now, kind));
        }
        struck
    }
}
