//! Jobs: what a method started and the wire polls.
//!
//! ```text
//!   Running ──► Completed | Exception | Terminated ── five minutes ──► gone
//! ```
//!
//! **Invariants.** A job belongs to one host and dies with it. The element that a job made is named only once it completed.

use std::time::Duration;

use super::clock::VirtualTime;
use super::ids::{
    CheckpointId, DeviceId, DriveAddress, HostName, JobId, ReferencePointId, SystemKey, VmId,
};
use super::path::WindowsPath;
use crate::{HResult, ReturnCode};

/// `TimeBeforeRemoval`.
pub const TIME_BEFORE_REMOVAL: Duration = Duration::from_secs(300);

/// Which class a job is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobClass {
    /// `Msvm_ConcreteJob`.
    Concrete,
    /// `Msvm_StorageJob`.
    Storage,
    /// `Msvm_MigrationJob`.
    Migration,
}

/// `JobState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobState {
    /// 2.
    New,
    /// 3.
    Starting,
    /// 4.
    Running,
    /// 7.
    Completed,
    /// 8.
    Terminated,
    /// 9.
    Killed,
    /// 10.
    Exception,
    /// 32768.
    CompletedWithWarnings,
}

impl JobState {
    /// The number on the wire.
    pub fn value(self) -> u16 {
        match self {
            Self::New => 2,
            Self::Starting => 3,
            Self::Running => 4,
            Self::Completed => 7,
            Self::Terminated => 8,
            Self::Killed => 9,
            Self::Exception => 10,
            Self::CompletedWithWarnings => 32768,
        }
    }

    /// Whether nothing more happens.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::New | Self::Starting | Self::Running)
    }

    /// Whether it did what was asked.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Completed | Self::CompletedWithWarnings)
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFailure {
    /// `ErrorCode`.
    pub code: ReturnCode,
    /// The deeper cause: `JobCompletionStatusCode`, and what `GetErrorEx` names.
    pub cause: Option<HResult>,
    /// For people, in English; the wire translates.
    pub text: String,
}

impl JobFailure {
    /// A failure with a code and a text.
    pub fn new(code: ReturnCode, text: impl Into<String>) -> Self {
        Self {
            code,
            cause: None,
            text: text.into(),
        }
    }

    /// With a deeper cause.
    #[must_use]
    pub fn caused_by(mut self, cause: HResult) -> Self {
        self.cause = Some(cause);
        self
    }
}

/// What a job is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affected {
    /// A VM or planned system.
    System(VmId),
    /// A checkpoint.
    Checkpoint(CheckpointId),
    /// A reference point, with its VM.
    ReferencePoint(VmId, ReferencePointId),
    /// A resource of a VM: a drive or medium.
    Drive(VmId, DriveAddress),
    /// A controller or adapter of a VM.
    Device(VmId, DeviceId),
    /// A file.
    File(WindowsPath),
}

/// A job as the wire sees it.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its class.
    pub class: JobClass,
    /// `JobType` of that class.
    pub job_type: u16,
    /// Where it runs.
    pub host: HostName,
    /// The system it works on, if any.
    pub system: Option<SystemKey>,
    /// How far it is.
    pub state: JobState,
    /// When it began.
    pub started: VirtualTime,
    /// When it will end, or ended.
    pub ends: VirtualTime,
    /// Whether it can be cancelled.
    pub is_cancellable: bool,
    /// What it is about, from the beginning on.
    pub affected: Vec<Affected>,
    /// What it made, once it completed.
    pub created: Vec<Affected>,
    /// Why it failed.
    pub failure: Option<JobFailure>,
    /// `DestinationHost` of a migration.
    pub destination: Option<HostName>,
}

impl Job {
    /// `PercentComplete` at a time.
    pub fn percent_complete(&self, now: VirtualTime) -> u16 {
        if self.state.is_success() {
            return 100;
        }
        let whole = self.ends.since(self.started).as_millis().max(1);
        let done = now.since(self.started).as_millis().min(whole);
        u16::try_from(done * 99 / whole).unwrap_or(0)
    }

    /// `ElapsedTime` at a time.
    pub fn elapsed(&self, now: VirtualTime) -> Duration {
        let until = if self.state.is_over() { self.ends } else { now };
        until.since(self.started)
    }
}

/// What a method that may start a job answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// `ReturnValue` 0: it is done; what it made is here.
    Done(Vec<Affected>),
    /// `ReturnValue` 4096.
    Job(JobId),
    /// `ReturnValue` 4096, and no reference to the job: a fault.
    UnnamedJob,
}

impl Started {
    /// The job, if there is one.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::Job(id) => Some(*id),
            Self::Done(_) | Self::UnnamedJob => None,
        }
    }
}
