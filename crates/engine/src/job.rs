//! What jobs have in common: a plan that can be printed, steps that are noted before they are taken, and undo.
//!
//! ```text
//!   plan ──► execute:  step ──► step ──► step ──► report
//!                       │note    │note    │ fails
//!                       └─ undo ◄┴─ undo ◄┘           in reverse order; what can be resumed is kept on purpose
//! ```
//!
//! **Invariants.** A step is noted in the journal before it begins. Undo runs for every step that was begun, also when the
//! job was told to stop. An undo that fails is reported beside the error that caused it, never instead of it.

pub mod backup_disk;
pub mod backup_vm;
pub mod check_disk;
pub mod diff_disk;
pub mod extract_files;
pub mod leftovers;
pub mod restore_disk;
pub mod restore_vm;
pub mod serve_disks;
mod target;

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use repo::lease::LeaseKind;
use repo::{DiskVersion, ReadProtection, ReadSession, RecoveryPoint, Repository};

use crate::transfer::explained;
use crate::{Cancellation, Error, ErrorKind, Progress, Result};

/// What happened to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// It is about to begin.
    Begun,
    /// It was done.
    Done,
    /// It failed.
    Failed,
    /// What it did was taken back.
    Undone,
}

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// The job, in words.
    pub job: String,
    /// The step.
    pub step: String,
    /// What happened to it.
    pub state: StepState,
    /// What is needed to take it back after a crash, if anything: a path, an id.
    pub subject: String,
}

/// Where steps are noted. Nothing is done before its note has been taken.
pub trait Journal: Send + Sync {
    /// Takes a note.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] when it cannot be kept; then the step is not begun.
    fn note(&self, entry: &JournalEntry) -> Result<()>;
}

/// No journal: for jobs whose left-overs clean themselves up (leases fence, partial files carry their name).
#[derive(Debug, Clone, Copy, Default)]
pub struct NoJournal;

impl Journal for NoJournal {
    fn note(&self, _entry: &JournalEntry) -> Result<()> {
        Ok(())
    }
}

/// A journal in memory.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<Vec<JournalEntry>>);

impl MemoryJournal {
    /// What was noted so far.
    pub fn entries(&self) -> Vec<JournalEntry> {
        self.0
            .lock()
            .map(|entries| entries.clone())
            .unwrap_or_default()
    }
}

impl Journal for MemoryJournal {
    fn note(&self, entry: &JournalEntry) -> Result<()> {
        if let Ok(mut entries) = self.0.lock() {
            entries.push(entry.clone());
        }
        Ok(())
    }
}

/// What every job is given.
#[derive(Clone, Copy)]
pub struct JobContext<'a> {
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Who may stop it.
    pub cancel: &'a Cancellation,
    /// Where steps are noted.
    pub journal: &'a dyn Journal,
}

type Undo<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

/// The steps of one run.
pub struct Steps<'a> {
    context: JobContext<'a>,
    job: String,
    undo: Vec<(String, String, Undo<'a>)>,
}

impl<'a> Steps<'a> {
    /// Begins a run of `job`.
    pub fn new(context: JobContext<'a>, job: impl Into<String>) -> Self {
        Self {
            context,
            job: job.into(),
            undo: Vec::new(),
        }
    }

    /// Notes a step, takes it, and notes how it went. A step is not begun when the job was told to stop.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Cancelled`], what the journal answers, or what the step answers.
    pub fn step<T>(
        &mut self,
        step: &str,
        subject: &str,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.context.cancel.check()?;
        self.note(step, subject, StepState::Begun)?;
        let result = act();
        let state = if result.is_ok() {
            StepState::Done
        } else {
            StepState::Failed
        };
        let noted = self.note(step, subject, state);
        let result = result?;
        noted.map(|()| result)
    }

    /// Says how to take back what a step did, should the job fail later.
    pub fn on_failure(
        &mut self,
        step: &str,
        subject: &str,
        undo: impl FnOnce() -> Result<()> + 'a,
    ) {
        self.undo
            .push((step.to_owned(), subject.to_owned(), Box::new(undo)));
    }

    /// Ends the run: on failure everything is taken back, the last step first.
    ///
    /// # Errors
    /// The result's own error.
    pub fn finish<T>(mut self, result: Result<T>) -> Result<T> {
        let Err(error) = result else { return result };
        while let Some((step, subject, undo)) = self.undo.pop() {
            let undone = undo().and_then(|()| self.note(&step, &subject, StepState::Undone));
            if let Err(failed) = undone {
                let text = format!(
                    "could not take back {step} of {subject}: {}",
                    explained(&failed)
                );
                self.context.progress.warn(&text);
            }
        }
        Err(error)
    }

    fn note(&self, step: &str, subject: &str, state: StepState) -> Result<()> {
        self.context.journal.note(&JournalEntry {
            job: self.job.clone(),
            step: step.to_owned(),
            state,
            subject: subject.to_owned(),
        })
    }
}

/// What an operator is told when a reader has no lease.
pub const UNPROTECTED: &str = "nothing can be written to the repository, so no lease protects this reader: \
     if garbage is collected meanwhile, it may fail, or find less than was there";

/// Protects points while they are read. Where nothing can be written they are read all the same, and the operator is told.
pub(crate) fn protect(
    repository: &Repository,
    kind: LeaseKind,
    points: &[&RecoveryPoint],
    context: JobContext<'_>,
) -> Result<Arc<ReadSession>> {
    let session = repository.read_session(kind, points, ReadProtection::LeaseIfWritable)?;
    if session.protection() == ReadProtection::None {
        context.progress.warn(UNPROTECTED);
    }
    Ok(session)
}

/// The disk of a point that is meant: the one of this label, or the only one.
pub(crate) fn choose_disk<'a>(
    point: &'a RecoveryPoint,
    label: Option<&str>,
) -> Result<&'a DiskVersion> {
    let (name, sequence) = (&point.name, point.sequence);
    match (label, point.disks.as_slice()) {
        (Some(label), _) => point.disk(label).ok_or_else(|| {
            let what = format!("{name}@{sequence} has no disk {label:?}");
            Error::new(ErrorKind::NotFound, what)
        }),
        (None, [disk]) => Ok(disk),
        (None, disks) => {
            let labels: Vec<_> = disks.iter().map(|disk| disk.label.as_str()).collect();
            let what = format!(
                "{name}@{sequence} has {} disks: say which of {labels:?}",
                disks.len()
            );
            Err(Error::new(ErrorKind::Invalid, what))
        }
    }
}
