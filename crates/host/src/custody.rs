//! Custody: whatever we cause on a host is written down before it is made, in two places, and goes away whatever happens.
//!
//! ```text
//!   intend ──► host is asked ──► made(id) ──► mark on the host ──► … ──► released
//!     │              │              │                                       ▲
//!     └── crash ─────┴── crash ─────┴──── crash ──► Custodian ──────────────┘
//!         nothing, or the     known by id,           adopts the sole possible candidate, releases what is ours,
//!         one that was not    or by the mark         tells what it cannot decide, reports what is foreign
//!         there before
//! ```
//!
//! The first place is a [`CustodyLog`] (a [`JournalFile`], synced before the host is asked). The second is a [`Mark`] on what
//! was made: the name of a checkpoint, or an item beside a machine where the thing itself has no name. A server that was rebuilt
//! has the same [`OwnerId`] and so knows its marks again.
//!
//! **Invariants.** No entry is closed because somebody forgot it: only seeing that the thing is gone, or that it never came to
//! be, closes one. An entry that cannot be written stops what it was for.

mod custodian;
mod folder;
mod journal;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use custodian::{
    Alert, Custodian, CustodianOptions, CustodyHost, Finding, ForeignTracking, SweepReport, Waiting,
};
pub use folder::{DeadJournals, JobJournal, JournalFolder};
pub use journal::JournalFile;

use crate::clock::Timestamp;
use crate::ids::{JobId, NodeName, OwnerId, VmId};
use crate::{Error, ErrorKind, Result};

/// Whose something is, as its name says: `hikae:JOB@OWNER`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The job that made it.
    pub job: JobId,
    /// The server that ran the job, where the mark says so.
    pub owner: Option<OwnerId>,
}

const MARK_PREFIX: &str = "hikae:";
const ITEM_PREFIX: &str = "hikae.";

impl Mark {
    /// Reads a name; `None` when it is no mark.
    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(MARK_PREFIX)?;
        let (job, owner) = match rest.split_once('@') {
            Some((job, owner)) => (job, Some(OwnerId::new(owner).ok()?)),
            None => (rest, None),
        };
        Some(Self {
            job: job.parse().ok()?,
            owner,
        })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK_PREFIX}{}", self.job)?;
        match &self.owner {
            Some(owner) => write!(f, "@{owner}"),
            None => Ok(()),
        }
    }
}

/// A mark beside a machine, for what has no name of its own: a tracking point, a saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineMark {
    /// What was made.
    pub kind: HeldKind,
    /// Whose it is.
    pub mark: Mark,
    /// Its id, where it has one.
    pub id: Option<String>,
}

impl MachineMark {
    /// Name of the item that holds it.
    pub fn item_name(&self) -> String {
        format!("{ITEM_PREFIX}{}.{}", self.kind.name(), self.mark.job)
    }

    /// Content of the item that holds it.
    pub fn item_text(&self) -> String {
        match &self.id {
            Some(id) => format!("{} {id}", self.mark),
            None => self.mark.to_string(),
        }
    }

    /// Reads an item; `None` when it is none of ours.
    pub fn parse(name: &str, text: &str) -> Option<Self> {
        let rest = name.strip_prefix(ITEM_PREFIX)?;
        let (kind, _) = rest.split_once('.')?;
        let (mark, id) = match text.split_once(' ') {
            Some((mark, id)) => (mark, Some(id.to_owned())),
            None => (text, None),
        };
        Some(Self {
            kind: HeldKind::of_name(kind)?,
            mark: Mark::parse(mark)?,
            id,
        })
    }
}

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldKind {
    /// A checkpoint for a backup.
    Checkpoint,
    /// A point from which changes are tracked.
    TrackingPoint,
    /// A machine that was saved and must run again.
    SavedState,
    /// A machine that exists halfway, during an import.
    PlannedMachine,
    /// A guest that was frozen from outside (KVM).
    Freeze,
}

impl HeldKind {
    /// `checkpoint`, `tracking-point`, `saved-state`, `planned-machine`, `freeze`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::TrackingPoint => "tracking-point",
            Self::SavedState => "saved-state",
            Self::PlannedMachine => "planned-machine",
            Self::Freeze => "freeze",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        [
            Self::Checkpoint,
            Self::TrackingPoint,
            Self::SavedState,
            Self::PlannedMachine,
            Self::Freeze,
        ]
        .into_iter()
        .find(|kind| kind.name() == name)
    }
}

/// Number of an entry in its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(pub u64);

/// A moment, by two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// By ours.
    pub ours: Timestamp,
    /// By the node's, where it told.
    pub host: Option<Timestamp>,
}

impl From<Timestamp> for Moment {
    /// Where a node's clock is not known.
    fn from(ours: Timestamp) -> Self {
        Self { ours, host: None }
    }
}

/// What is about to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The job.
    pub job: JobId,
    /// What.
    pub kind: HeldKind,
    /// The machine.
    pub vm: VmId,
    /// The node that is asked; the machine may move.
    pub node: NodeName,
    /// When, by our clock.
    pub at: Timestamp,
    /// When, by the node's clock, where it told: what it makes carries its time, and clocks differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_at: Option<Timestamp>,
    /// Ids of that kind that exist already: none of them is what we make.
    pub before: Vec<String>,
}

/// An entry that is open: something may exist on a host because of us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number.
    pub id: EntryId,
    /// What was to be made.
    pub intent: Intent,
    /// The host's id of what was made; `None` while that is not known.
    pub made: Option<String>,
}

/// Why an entry is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Closing {
    /// It was removed, and seen to be gone.
    Removed,
    /// It was gone already.
    Gone,
    /// It never came to be.
    NeverMade,
    /// It belongs to a committed version and stays.
    Kept,
}

/// Where entries are written down.
///
/// **Must** have an entry durable before [`CustodyLog::intend`] and [`CustodyLog::made`] return. **Never** loses an open entry,
/// and never answers from memory what is not on disk.
pub trait CustodyLog: Send + Sync {
    /// Opens an entry.
    fn intend(&self, intent: Intent) -> Result<EntryId>;

    /// Notes the host's id of what was made.
    fn made(&self, entry: EntryId, id: &str) -> Result<()>;

    /// Closes an entry. One that is closed already stays closed.
    fn close(&self, entry: EntryId, closing: Closing) -> Result<()>;

    /// Entries that are open, oldest first.
    fn open_entries(&self) -> Result<Vec<Entry>>;
}

/// A log in memory, for tests and for what needs no log of its own. It survives nothing.
#[derive(Debug, Default)]
pub struct MemoryLog {
    state: Mutex<MemoryState>,
}

#[derive(Debug, Default)]
struct MemoryState {
    next: u64,
    entries: Vec<Entry>,
}

impl CustodyLog for MemoryLog {
    fn intend(&self, intent: Intent) -> Result<EntryId> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let id = EntryId(state.next);
        state.next = state.next.saturating_add(1);
        state.entries.push(Entry {
            id,
            intent,
            made: None,
        });
        Ok(id)
    }

    fn made(&self, entry: EntryId, id: &str) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let found = state.entries.iter_mut().find(|it| it.id == entry);
        found.ok_or_else(|| no_entry(entry))?.made = Some(id.to_owned());
        Ok(())
    }

    fn close(&self, entry: EntryId, _closing: Closing) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.entries.retain(|it| it.id != entry);
        Ok(())
    }

    fn open_entries(&self) -> Result<Vec<Entry>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(state.entries.clone())
    }
}

fn no_entry(entry: EntryId) -> Error {
    Error::new(
        ErrorKind::Custody,
        format!("the custody journal has no open entry {}", entry.0),
    )
}

/// One job's hand on the log.
#[derive(Clone)]
pub struct Custody {
    log: Arc<dyn CustodyLog>,
    mark: Mark,
}

impl Custody {
    /// For one run of a job of one server.
    pub fn new(log: Arc<dyn CustodyLog>, owner: OwnerId, job: JobId) -> Self {
        let mark = Mark {
            job,
            owner: Some(owner),
        };
        Self { log, mark }
    }

    /// The mark for what this job makes.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// The log.
    pub fn log(&self) -> &Arc<dyn CustodyLog> {
        &self.log
    }

    /// Writes down what is about to be made. After this returned, and not before, the host may be asked.
    pub fn intend(
        &self,
        kind: HeldKind,
        vm: VmId,
        node: &NodeName,
        at: impl Into<Moment>,
        before: Vec<String>,
    ) -> Result<EntryId> {
        let Moment { ours, host } = at.into();
        self.log.intend(Intent {
            job: self.mark.job,
            kind,
            vm,
            node: node.clone(),
            at: ours,
            host_at: host,
            before,
        })
    }

    /// Notes the id of what was made.
    pub fn made(&self, entry: EntryId, id: &str) -> Result<()> {
        self.log.made(entry, id)
    }

    /// Closes an entry.
    pub fn close(&self, entry: EntryId, closing: Closing) -> Result<()> {
        self.log.close(entry, closing)
    }

    /// Closes whatever entry says that this was made, by any job.
    pub fn close_made(&self, kind: HeldKind, vm: VmId, id: &str, closing: Closing) -> Result<()> {
        for entry in self.log.open_entries()? {
            let is_it = entry.intent.kind == kind
                && entry.intent.vm == vm
                && entry.made.as_deref() == Some(id);
            if is_it {
                self.log.close(entry.id, closing)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Custody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Custody").field("mark", &self.mark).finish()
    }
}
