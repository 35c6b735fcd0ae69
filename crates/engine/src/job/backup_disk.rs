//! Backup of one disk: the next version of a name.
//!
//! ```text
//!   plan      newest point + disk + tracking ──► initial copy | compare everything | changed ranges + audit
//!   execute   begin (lease) ──► transfer ──► commit (the point)
//!                │                 │ fails: progress stays durable, the next run goes on from it
//!                └─ nothing moved yet: the lease is given back
//! ```
//!
//! A parent that is marked damaged, or whose tree turns out to lack something, is not built upon: the disk is compared with
//! nothing, and what is stored is read back before it counts, so that the new version is whole (*healing*). Tracking is used
//! only if it can count from nothing else than the parent.
//!
//! What is left out on purpose is shown to the transfer as zeros and recorded in the version. What the version before (or an
//! interrupted run) left out is looked at whatever tracking says, and so is what this one leaves out: the version holds
//! zeros in exactly the ranges that it records, whatever came before.
//!
//! Nothing is visible before the commit. There is nothing else to undo: what was stored without a point belongs to the next
//! run, or to garbage collection.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use block::diff::LeafDifferences;
use block::sync::{LeftOut, SyncStats, Unreadable};
use block::{ByteRange, ChangedRanges, LEAF_SIZE_BYTES, ReadAt};
use repo::retention::PointHealth;
use repo::{
    BeginOptions, Consistency, DiskVersion, Omissions, PointDraft, PointRecord, PointSelector,
    ProtectedName, Repository, SessionBase, UnknownFields, VersionSession, Which,
};
use serde::Serialize;

use super::{JobContext, Steps};
use crate::transfer::{
    Base, Belief, CheckpointEvery, Tracking, Transfer, TransferEnd, Transferred, explained,
    is_damage,
};
use crate::{Error, ErrorKind, Result};

/// Most ranges that a report or a comparison with an interrupted transfer keeps apart.
const MAX_RANGES: usize = 65_536;

/// Asked right before a version is committed: an error ends the job, and nothing new is visible.
pub type CommitCheck = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// What is to be backed up, and how.
#[derive(Clone)]
pub struct BackupRequest {
    /// Whose version it becomes.
    pub name: ProtectedName,
    /// Which disk of it.
    pub label: String,
    /// What image it is.
    pub image: repo::ImageProfile,
    /// What change tracking says, if there is any.
    pub tracking: Option<Tracking>,
    /// The number of the version that the tracking counts from; the newest when absent, if no version that is gone by now
    /// can have been newer. Tracking that counts from another version than the one compared with is not used.
    pub tracking_since: Option<u64>,
    /// Ranges left out on purpose; they come back as zeros.
    pub left_out: Option<Omissions>,
    /// What must still hold when all was transferred: that the source is the one that [`Self::left_out`] was told of.
    pub commit_check: Option<CommitCheck>,
    /// What to do with unreadable ranges.
    pub unreadable: Unreadable,
    /// What the checkpoint reached.
    pub consistency: Consistency,
    /// Facts about the source, for the point.
    pub source: UnknownFields,
    /// What to ask change tracking with next time.
    pub tracking_token: Option<String>,
    /// How often progress is made durable.
    pub checkpoint_every: CheckpointEvery,
    /// Threads that read, hash and compress; chosen when absent.
    pub workers: Option<usize>,
    /// How the session is begun.
    pub session: BeginOptions,
}

impl BackupRequest {
    /// An ordinary backup of the only disk of `name`.
    pub fn new(name: ProtectedName) -> Self {
        Self {
            name,
            label: "disk".to_owned(),
            image: repo::ImageProfile::default(),
            tracking: None,
            tracking_since: None,
            left_out: None,
            commit_check: None,
            unreadable: Unreadable::Fail,
            consistency: Consistency::Crash,
            source: UnknownFields::new(),
            tracking_token: None,
            checkpoint_every: CheckpointEvery::default(),
            workers: None,
            session: BeginOptions::default(),
        }
    }
}

/// How much is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum BackupScope {
    /// There is nothing to compare with.
    InitialCopy,
    /// All of the disk is compared with the version before.
    CompareEverything {
        /// Why tracking is not used although it was given; empty when none was given.
        reason: String,
    },
    /// All of the disk is read, and all that is stored of it is read back: what is lost is stored again.
    Heal {
        /// What is wrong with the version before.
        reason: String,
    },
    /// Only what changed is looked at, and a sample of the rest.
    ChangedRanges {
        /// How many ranges.
        ranges: usize,
        /// Their bytes.
        bytes: u64,
        /// How many of a million other blocks are read all the same.
        audit_per_million: u32,
    },
}

impl BackupScope {
    /// Why everything is compared, if that was not what was asked for.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::CompareEverything { reason } | Self::Heal { reason } => {
                Some(reason.as_str()).filter(|reason| !reason.is_empty())
            }
            Self::InitialCopy | Self::ChangedRanges { .. } => None,
        }
    }
}

/// What a backup will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupPlan {
    /// Whose version.
    pub name: String,
    /// Length of the disk.
    pub length_bytes: u64,
    /// The version compared with.
    pub parent: Option<u64>,
    /// How much is looked at.
    pub scope: BackupScope,
    /// Bytes left out on purpose.
    pub left_out_bytes: u64,
}

impl fmt::Display for BackupPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "back up {} ({} bytes): ", self.name, self.length_bytes)?;
        match &self.scope {
            BackupScope::InitialCopy => write!(f, "initial copy of what is allocated")?,
            BackupScope::CompareEverything { reason } if reason.is_empty() => {
                write!(f, "compare everything that is allocated")?;
            }
            BackupScope::CompareEverything { reason } => {
                write!(f, "compare everything that is allocated ({reason})")?;
            }
            BackupScope::Heal { reason } => write!(
                f,
                "read everything and store again what the repository has lost ({reason})"
            )?,
            BackupScope::ChangedRanges {
                ranges,
                bytes,
                audit_per_million,
            } => write!(
                f,
                "read {bytes} bytes in {ranges} changed ranges and {audit_per_million} of a million other blocks"
            )?,
        }
        if let Some(parent) = self.parent {
            write!(f, "; compare with version {parent}")?;
        }
        if self.left_out_bytes > 0 {
            write!(f, "; leave out {} bytes", self.left_out_bytes)?;
        }
        Ok(())
    }
}

/// What a backup did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupReport {
    /// Whose version.
    pub name: String,
    /// Its number.
    pub sequence: u64,
    /// Its id.
    pub point: String,
    /// The version that it was compared with.
    pub parent: Option<u64>,
    /// Root of the disk.
    pub root: String,
    /// Length of the disk.
    pub length_bytes: u64,
    /// Whether it went on where an interrupted run had stopped.
    pub resumed: bool,
    /// Whether everything was compared although tracking was given.
    pub fell_back: bool,
    /// Why everything was compared, or healed, if that was not what was asked for; else empty.
    pub reason: String,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Bytes hashed.
    pub hashed_bytes: u64,
    /// Bytes known to be zero without reading.
    pub known_zero_bytes: u64,
    /// What travelled from source to repository: blocks, and the hashes that were compared.
    pub sent_bytes: u64,
    /// Blocks that the base does not have at their place.
    pub changed_blocks: u64,
    /// Blocks among them that the repository did not have anywhere.
    pub stored_blocks: u64,
    /// Nodes stored.
    pub stored_nodes: u64,
    /// Bytes of packs put: what it cost in the store.
    pub stored_bytes: u64,
    /// Packs put.
    pub packs: u64,
    /// Unchanged blocks read to audit change tracking.
    pub audited_blocks: u64,
    /// Ranges that tracking called unchanged and that had changed.
    pub lies: Vec<(u64, u64)>,
    /// Ranges that could not be read and were taken for zeros.
    pub unreadable: Vec<(u64, u64)>,
    /// Bytes left out on purpose.
    pub left_out_bytes: u64,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// Works out what a backup would do. Pure but for looking at the newest point.
///
/// # Errors
/// What the repository answers.
pub fn plan_backup_disk(
    repository: &Repository,
    request: &BackupRequest,
    source: &dyn ReadAt,
) -> Result<BackupPlan> {
    let selector = PointSelector {
        name: request.name.clone(),
        which: Which::Latest,
    };
    let parent = match repository.find_point(&selector) {
        Ok(record) => Some(record),
        Err(error) if error.kind() == repo::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let next = repository.next_sequence(&request.name)?;
    let doubt = doubt_of(repository, request, parent.as_ref(), next)?;
    let base = SessionBase {
        parent: parent.map(|record| record.point),
        partials: Vec::new(),
    };
    Ok(plan_on(request, &base, doubt, source.size_bytes()))
}

/// Why the version before cannot simply be built upon.
enum Doubt {
    None,
    /// Some of it is lost.
    Damaged(String),
    /// Tracking may count from another version.
    Tracking(String),
}

/// What speaks against building the version `next` upon `parent`.
fn doubt_of(
    repository: &Repository,
    request: &BackupRequest,
    parent: Option<&PointRecord>,
    next: u64,
) -> Result<Doubt> {
    let Some(parent) = parent else {
        return Ok(Doubt::None);
    };
    let number = parent.point.sequence;
    if parent.marks.health() == PointHealth::Damaged {
        return Ok(Doubt::Damaged(format!("version {number} is damaged")));
    }
    if request.tracking.is_none() {
        return Ok(Doubt::None);
    }
    match request.tracking_since {
        Some(since) if since != number => Ok(Doubt::Tracking(format!(
            "tracking counts from version {since}"
        ))),
        Some(_) => Ok(Doubt::None),
        None if repository.only_tombstones_between(&request.name, number, next)? => Ok(Doubt::None),
        None => Ok(Doubt::Tracking(format!(
            "tracking may count from a version after {number} that is gone"
        ))),
    }
}

/// As [`doubt_of`], of what a session is based on.
fn doubt_of_session(session: &VersionSession, request: &BackupRequest) -> Result<Doubt> {
    let Some(parent) = &session.base().parent else {
        return Ok(Doubt::None);
    };
    let selector = PointSelector {
        name: request.name.clone(),
        which: Which::Sequence(parent.sequence),
    };
    let record = session.repository().find_point(&selector)?;
    let next = session.key().sequence;
    doubt_of(session.repository(), request, Some(&record), next)
}

fn plan_on(
    request: &BackupRequest,
    base: &SessionBase,
    doubt: Doubt,
    length_bytes: u64,
) -> BackupPlan {
    let disk = base.disk(&request.label);
    let parent = base.parent.as_ref().map(|parent| parent.sequence);
    let scope = match (&request.tracking, disk, doubt) {
        (_, _, Doubt::Damaged(reason)) => BackupScope::Heal { reason },
        (_, None, _) => BackupScope::InitialCopy,
        (Some(_), Some(_), Doubt::Tracking(reason)) => BackupScope::CompareEverything { reason },
        (Some(tracking), Some(_), _) => BackupScope::ChangedRanges {
            ranges: tracking.changed.len(),
            bytes: tracking
                .changed
                .rounded_to_blocks(length_bytes)
                .total_bytes(),
            audit_per_million: tracking.audit_per_million,
        },
        (None, Some(_), _) => BackupScope::CompareEverything {
            reason: String::new(),
        },
    };
    let left_out = request
        .left_out
        .as_ref()
        .map_or(&[][..], |left_out| &left_out.ranges);
    let left_out_bytes = left_out
        .iter()
        .fold(0u64, |sum, range| sum.saturating_add(range.length_bytes));
    BackupPlan {
        name: request.name.to_string(),
        length_bytes,
        parent,
        scope,
        left_out_bytes,
    }
}

/// Backs up a disk.
///
/// # Errors
/// [`ErrorKind::Busy`] when the name is being written, [`ErrorKind::Fenced`] when this run was declared dead; what the source
/// or the repository answer. After an error nothing new is visible.
pub fn backup_disk(
    repository: &Repository,
    request: &BackupRequest,
    source: &dyn ReadAt,
    context: JobContext<'_>,
) -> Result<BackupReport> {
    let mut steps = Steps::new(context, format!("backup of {}", request.name));
    let clock = repository.environment().clock.clone();
    let started_ms = clock.monotonic_ms();
    let result = run(repository, request, source, context, &mut steps).map(|mut report| {
        report.elapsed_ms = clock.monotonic_ms().saturating_sub(started_ms);
        report
    });
    steps.finish(result)
}

fn run(
    repository: &Repository,
    request: &BackupRequest,
    source: &dyn ReadAt,
    context: JobContext<'_>,
    steps: &mut Steps<'_>,
) -> Result<BackupReport> {
    let name = request.name.to_string();
    let session = steps.step("begin", &name, || {
        Ok(repository.begin(&request.name, &request.session)?)
    })?;
    let transferred = steps.step("transfer", &name, || {
        let source = LeftOut::new(source, left_out_ranges(request)?);
        let doubt = doubt_of_session(&session, request)?;
        let plan = plan_on(request, session.base(), doubt, source.size_bytes());
        transfer(&session, request, plan, &source, context)
    });
    let (plan, transferred) = match transferred {
        Ok(transferred) => transferred,
        Err(error) => {
            // With something stored, the dead session's progress is found and taken over by the next one.
            if session.blobs().stats().packs == 0
                && let Err(failed) = session.abandon()
            {
                context.progress.warn(&format!(
                    "the lease could not be given back: {}",
                    explained(&failed.into())
                ));
            }
            return Err(error);
        }
    };
    if let Some(check) = &request.commit_check {
        steps.step("check the source", &name, || check())?;
    }
    steps.step("commit", &name, || {
        commit(session, request, &plan, transferred)
    })
}

/// One disk that arrived in a session, to be committed with others.
pub(super) struct Moved {
    pub plan: BackupPlan,
    pub version: DiskVersion,
    pub transferred: Transferred,
    pub is_resumed: bool,
}

/// Moves one disk of several into a session that is open, and makes that durable: an interrupted run goes on behind it.
pub(super) fn move_disk(
    session: &VersionSession,
    request: &BackupRequest,
    source: &dyn ReadAt,
    context: JobContext<'_>,
) -> Result<Moved> {
    let source = LeftOut::new(source, left_out_ranges(request)?);
    let doubt = doubt_of_session(session, request)?;
    let plan = plan_on(request, session.base(), doubt, source.size_bytes());
    let is_resumed = session.base().partial_disk(&request.label).is_some();
    let (plan, transferred) = transfer(session, request, plan, &source, context)?;
    let version = finished_version(request, &transferred);
    session.checkpoint(DiskVersion {
        tracking_token: None,
        ..version.clone()
    })?;
    Ok(Moved {
        is_resumed: is_resumed && !matches!(plan.scope, BackupScope::Heal { .. }),
        plan,
        version,
        transferred,
    })
}

fn left_out_ranges(request: &BackupRequest) -> Result<ChangedRanges> {
    let ranges = request
        .left_out
        .as_ref()
        .map_or(&[][..], |left_out| &left_out.ranges);
    Ok(ChangedRanges::new(ranges.iter().map(to_block_range))?)
}

fn to_block_range(range: &repo::ByteRange) -> ByteRange {
    ByteRange {
        offset: range.offset,
        length_bytes: range.length_bytes,
    }
}

/// Transfers as planned, and without the base when that turns out to be damaged. Answers what was done in the end.
fn transfer(
    session: &VersionSession,
    request: &BackupRequest,
    mut plan: BackupPlan,
    source: &dyn ReadAt,
    context: JobContext<'_>,
) -> Result<(BackupPlan, Transferred)> {
    loop {
        if let Some(reason) = plan.scope.reason() {
            context
                .progress
                .warn(&format!("everything is compared: {reason}"));
        }
        let reason = match transfer_once(session, request, &plan, source, context)? {
            TransferEnd::Arrived(transferred) => return Ok((plan, transferred)),
            TransferEnd::BaseDamaged(reason) => reason,
        };
        if matches!(plan.scope, BackupScope::Heal { .. }) {
            return Err(Error::new(ErrorKind::Corrupt, reason));
        }
        plan.scope = BackupScope::Heal {
            reason: format!("the version before cannot be built upon: {reason}"),
        };
    }
}

fn transfer_once(
    session: &VersionSession,
    request: &BackupRequest,
    plan: &BackupPlan,
    source: &dyn ReadAt,
    context: JobContext<'_>,
) -> Result<TransferEnd> {
    let repository = session.repository();
    let parent = session.base().disk(&request.label);
    let partial = session.base().partial_disk(&request.label);
    let heals = matches!(plan.scope, BackupScope::Heal { .. });
    let base = match partial.or(parent).filter(|_| !heals) {
        Some(disk) => Some(Base {
            tree: disk.tree(),
            nodes: repository,
            look_also: match look_also(repository, parent, partial) {
                Ok(ranges) => ranges.union(&left_out_ranges(request)?),
                Err(error) if is_damage(error.kind()) => {
                    return Ok(TransferEnd::BaseDamaged(explained(&error.into())));
                }
                Err(error) => return Err(error.into()),
            },
        }),
        None => None,
    };
    let tracking = match &plan.scope {
        BackupScope::ChangedRanges { .. } => request.tracking.clone(),
        _ => None,
    };
    let clock = repository.environment().clock.clone();
    let transfer = Transfer {
        source,
        base,
        tracking,
        unreadable: request.unreadable,
        repository,
        belief: if heals {
            Belief::Reading
        } else {
            Belief::Index
        },
        blobs: session.blobs(),
        context,
        checkpoint_every: request.checkpoint_every,
        clock: clock.as_ref(),
        workers: request.workers,
    };
    transfer.run(&mut |tree| Ok(session.checkpoint(version(request, tree))?))
}

/// What must be looked at whatever tracking says: it counts from the parent, and knows nothing of what the parent left out
/// or of where an interrupted run has gone beyond the parent. What this run leaves out comes on top: the parent may have
/// bytes there, which become zeros now.
fn look_also(
    repository: &Repository,
    parent: Option<&DiskVersion>,
    partial: Option<&DiskVersion>,
) -> repo::Result<ChangedRanges> {
    let mut ranges = ChangedRanges::none();
    for disk in [parent, partial].into_iter().flatten() {
        let left_out = disk
            .omissions
            .iter()
            .flat_map(|omissions| &omissions.ranges);
        let unreadable = left_out.chain(&disk.unreadable).map(to_block_range);
        ranges = ranges.union(&ChangedRanges::new(unreadable)?);
    }
    if let (Some(parent), Some(partial)) = (parent, partial) {
        let mut some: Vec<ByteRange> = Vec::new();
        for leaf in LeafDifferences::new(parent.tree(), repository, partial.tree(), repository)? {
            let range = ByteRange {
                offset: leaf?.leaf.offset(),
                length_bytes: LEAF_SIZE_BYTES,
            };
            match some.last_mut() {
                Some(last) if last.end() == range.offset => last.length_bytes += range.length_bytes,
                _ => some.push(range),
            }
            if some.len() >= MAX_RANGES {
                ranges = ranges
                    .union(&ChangedRanges::new(some.drain(..))?)
                    .coarsened(MAX_RANGES);
            }
        }
        ranges = ranges
            .union(&ChangedRanges::new(some)?)
            .coarsened(MAX_RANGES);
    }
    Ok(ranges)
}

fn version(request: &BackupRequest, tree: block::DiskTree) -> DiskVersion {
    let mut disk = DiskVersion::new(&request.label, tree);
    if let Some(omissions) = request
        .left_out
        .clone()
        .filter(|left_out| !left_out.ranges.is_empty())
    {
        disk = disk.with_omissions(omissions);
    }
    disk.image = request.image.clone();
    disk
}

fn finished_version(request: &BackupRequest, transferred: &Transferred) -> DiskVersion {
    let mut disk = version(request, transferred.tree);
    disk.tracking_token.clone_from(&request.tracking_token);
    disk.unreadable = transferred
        .unreadable
        .iter()
        .map(|range| repo::ByteRange {
            offset: range.offset,
            length_bytes: range.length_bytes,
        })
        .collect();
    disk
}

fn commit(
    session: VersionSession,
    request: &BackupRequest,
    plan: &BackupPlan,
    transferred: Transferred,
) -> Result<BackupReport> {
    let disk = finished_version(request, &transferred);
    session.blobs().flush()?;
    let blobs = session.blobs().stats();
    let resumed = session.base().partial_disk(&request.label).is_some()
        && !matches!(plan.scope, BackupScope::Heal { .. });
    let stats = transferred.stats;
    let draft = PointDraft {
        disks: vec![disk.clone()],
        consistency: request.consistency,
        source: request.source.clone(),
        counters: counters(&stats, &blobs, plan.left_out_bytes),
        ..PointDraft::default()
    };
    let point = session.commit(draft)?;
    Ok(BackupReport {
        name: point.name.to_string(),
        sequence: point.sequence,
        point: point.point.to_string(),
        parent: plan.parent,
        root: disk.root.to_string(),
        length_bytes: disk.length_bytes,
        resumed,
        fell_back: request.tracking.is_some()
            && (stats.lies > 0 || !matches!(plan.scope, BackupScope::ChangedRanges { .. })),
        reason: plan.scope.reason().unwrap_or_default().to_owned(),
        read_bytes: stats.read_bytes,
        hashed_bytes: stats.hashed_bytes,
        known_zero_bytes: stats.known_zero_bytes,
        sent_bytes: stats.sent_bytes(),
        changed_blocks: stats.sent_blocks,
        stored_blocks: blobs.blocks_stored,
        stored_nodes: blobs.nodes_stored,
        stored_bytes: blobs.stored_bytes,
        packs: blobs.packs,
        audited_blocks: stats.audited_blocks,
        lies: pairs(&transferred.lies),
        unreadable: pairs(&transferred.unreadable),
        left_out_bytes: plan.left_out_bytes,
        elapsed_ms: 0,
    })
}

/// Ranges as a report tells them: offset and length.
pub(super) fn pairs(ranges: &[ByteRange]) -> Vec<(u64, u64)> {
    ranges
        .iter()
        .take(MAX_RANGES)
        .map(|range| (range.offset, range.length_bytes))
        .collect()
}

pub(super) fn counters(
    stats: &SyncStats,
    blobs: &repo::BlobStats,
    left_out_bytes: u64,
) -> BTreeMap<String, u64> {
    let read = [
        ("read_bytes", stats.read_bytes),
        ("hashed_bytes", stats.hashed_bytes),
        ("known_zero_bytes", stats.known_zero_bytes),
        ("sent_blocks", stats.sent_blocks),
        ("audited_blocks", stats.audited_blocks),
        ("lies", stats.lies),
        ("left_out_bytes", left_out_bytes),
    ];
    let read = read
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count));
    read.chain(stored_counters(blobs)).collect()
}

/// What it cost in the store.
pub(super) fn stored_counters(blobs: &repo::BlobStats) -> [(String, u64); 2] {
    [
        ("stored_blocks".to_owned(), blobs.blocks_stored),
        ("stored_bytes".to_owned(), blobs.stored_bytes),
    ]
}

/// Backs up an image as the first version of a name, so that only what differs from it is new afterwards: for a copy of
/// the disk that came on a medium, or an older image of it.
///
/// # Errors
/// [`ErrorKind::Refused`] when the name has versions already; otherwise as [`backup_disk`].
pub fn seed_disk(
    repository: &Repository,
    request: &BackupRequest,
    seed: &dyn ReadAt,
    context: JobContext<'_>,
) -> Result<BackupReport> {
    let plan = plan_backup_disk(repository, request, seed)?;
    if let Some(parent) = plan.parent {
        let what = format!(
            "{} has version {parent} already: a seed comes first",
            request.name
        );
        return Err(Error::new(ErrorKind::Refused, what));
    }
    let mut first = request.clone();
    first.tracking = None;
    first.tracking_token = None;
    first
        .source
        .insert("seed".to_owned(), serde_json::Value::Bool(true));
    backup_disk(repository, &first, seed, context)
}
