//! The versions of one name, looked into one after the other.
//!
//! A lease holds all of them while the chain is open. Each is opened when it is asked for; blocks that several versions
//! share are fetched once ([`super::recorded`]).

use std::sync::Arc;

use block::{ChangedRanges, ReadAt};
use guestfs::encrypted::UnlockKey;
use repo::lease::LeaseKind;
use repo::marks::PointVisibility;
use repo::{ProtectedName, ReadSession, RecoveryPoint, Repository};

use super::InsideDisks;
use super::recorded::{BlockMemory, RecordedDisk, are_equal_in};
use crate::job::{JobContext, protect};
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

/// Which version, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionStamp {
    /// Its number.
    pub sequence: u64,
    /// RFC 3339.
    pub created: String,
}

impl VersionStamp {
    pub(super) fn of(point: &RecoveryPoint) -> Self {
        Self {
            sequence: point.sequence,
            created: point.created.clone(),
        }
    }
}

/// What looking cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LookCost {
    /// Versions of which something was read.
    pub versions_read: u64,
    /// Versions that needed no reading: nothing that matters changed in them.
    pub versions_unchanged: u64,
    /// Files whose contents were read.
    pub contents_read: u64,
    /// Blocks of 64 KiB that were asked of the repository.
    pub blocks_fetched: u64,
}

/// The versions of a name, oldest first.
pub(super) struct VersionChain<'k> {
    repository: Repository,
    /// For encrypted volumes.
    keys: &'k [UnlockKey],
    session: Arc<ReadSession>,
    memory: Arc<BlockMemory>,
    pub(super) points: Vec<RecoveryPoint>,
}

/// Which versions belong to a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainScope {
    /// All that can be restored.
    All,
    /// Those up to this number.
    UpTo(u64),
    /// This one.
    Only(u64),
    /// These two.
    Both(u64, u64),
}

impl ChainScope {
    pub(super) fn includes(self, sequence: u64) -> bool {
        match self {
            Self::All => true,
            Self::UpTo(last) => sequence <= last,
            Self::Only(one) => sequence == one,
            Self::Both(one, other) => sequence == one || sequence == other,
        }
    }
}

/// The visible versions, oldest first, of all names.
pub(super) fn visible_points(
    repository: &Repository,
    context: JobContext<'_>,
) -> Result<Vec<RecoveryPoint>> {
    let (records, damaged) = repository.points()?;
    for error in damaged {
        let why = explained(&error.into());
        let text = format!("a version cannot be read and is left out: {why}");
        context.progress.warn(&text);
    }
    Ok(records
        .into_iter()
        .filter(|record| record.marks.visibility() == PointVisibility::Visible)
        .map(|record| record.point)
        .collect())
}

impl<'k> VersionChain<'k> {
    /// Opens the versions of a name that `scope` includes.
    pub(super) fn open(
        repository: &Repository,
        (name, scope): (&ProtectedName, ChainScope),
        keys: &'k [UnlockKey],
        context: JobContext<'_>,
    ) -> Result<Self> {
        let points = visible_points(repository, context)?
            .into_iter()
            .filter(|point| point.name == *name && scope.includes(point.sequence))
            .collect();
        Self::of(repository, points, name, keys, context)
    }

    /// A chain of these versions, which are in ascending order.
    pub(super) fn of(
        repository: &Repository,
        points: Vec<RecoveryPoint>,
        name: &ProtectedName,
        keys: &'k [UnlockKey],
        context: JobContext<'_>,
    ) -> Result<Self> {
        if points.is_empty() {
            let what = format!("{name} has no version to look into");
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        let held: Vec<&RecoveryPoint> = points.iter().collect();
        let session = protect(repository, LeaseKind::Restore, &held, context)?;
        Ok(Self {
            repository: repository.clone(),
            keys,
            session,
            memory: Arc::default(),
            points,
        })
    }

    /// Looks into the version at this place of the chain.
    pub(super) fn look_into(&self, point: &RecoveryPoint) -> Result<OpenedVersion> {
        let mut disks = Vec::new();
        for disk in &point.disks {
            let reader = self.repository.open_version(disk, &self.session)?;
            disks.push(Arc::new(RecordedDisk::new(
                reader,
                Arc::clone(&self.memory),
            )));
        }
        let sources: Vec<Arc<dyn ReadAt>> = disks
            .iter()
            .map(|disk| Arc::clone(disk) as Arc<dyn ReadAt>)
            .collect();
        Ok(OpenedVersion {
            inside: InsideDisks::open_with_keys(&sources, self.keys)?,
            disks,
        })
    }

    /// Whether what was looked at in one version is the same in another: then so is every answer.
    pub(super) fn is_same(
        &self,
        (from, to): (&RecoveryPoint, &RecoveryPoint),
        looked_at: &[ChangedRanges],
    ) -> Result<bool> {
        if from.disks.len() != to.disks.len() || looked_at.len() != from.disks.len() {
            return Ok(false);
        }
        for ((a, b), ranges) in from.disks.iter().zip(&to.disks).zip(looked_at) {
            if !are_equal_in(&self.repository, (a.tree(), b.tree()), ranges)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The repository.
    pub(super) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Blocks that were asked of it so far.
    pub(super) fn blocks_fetched(&self) -> u64 {
        self.memory.fetched_blocks()
    }

    /// Gives the lease back; whoever watches is told when that fails.
    pub(super) fn finish(self, context: JobContext<'_>) {
        let ended = Arc::into_inner(self.session).map_or(Ok(()), ReadSession::finish);
        if let Err(error) = ended {
            let why = explained(&error.into());
            let text = format!("the reader's lease could not be given back: {why}");
            context.progress.warn(&text);
        }
    }
}

/// A version that is being looked into.
pub(super) struct OpenedVersion {
    pub(super) inside: InsideDisks,
    pub(super) disks: Vec<Arc<RecordedDisk>>,
}

impl OpenedVersion {
    /// What was looked at so far, disk by disk.
    pub(super) fn looked_at(&self) -> Result<Vec<ChangedRanges>> {
        self.disks.iter().map(|disk| disk.noted()).collect()
    }
}

/// Whether an error ends the whole job rather than the look into one version.
pub(super) fn ends_all(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Io | ErrorKind::Cancelled | ErrorKind::Fenced | ErrorKind::Busy
    )
}

/// Whether an error says that a path is not there, and not that bytes of the repository are gone.
pub fn is_absence(error: &Error) -> bool {
    if error.kind() != ErrorKind::NotFound {
        return false;
    }
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if cause.is::<repo::Error>() || cause.is::<block::Error>() {
            return false;
        }
        next = cause.source();
    }
    true
}
