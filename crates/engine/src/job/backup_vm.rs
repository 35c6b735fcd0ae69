//! Backup of a machine: the next recovery point of its name, with all of its disks and its configuration.
//!
//! ```text
//!   plan      facts + newest point ──► which disks, how each is looked at, which levels of consistency are tried
//!   execute   begin (lease) ─► checkpoint ─► disk by disk: changed ranges, transfer ─► configuration ─► settle ─► commit
//!                                  │ on failure: released              on failure: dropped │               │
//!                                  └───────────────────────────────────────────────────────┘   keep the new tracking point,
//!                                                                                                 drop the one before
//! ```
//!
//! The lease comes first, so that no guest is frozen for a run that may not write. The checkpoint is turned into a tracking
//! point before the commit, because the point says which tracking point its tokens belong to; the tracking point of the
//! version before goes only after the commit. Between the two there are two tracking points, at rest one.
//!
//! **Invariants.** Whatever is made on a host is in the custody journal before. Nothing is visible before the commit. What
//! goes wrong after the commit is a warning: the custodian finishes it.

mod configuration;
mod followed;
mod moved;
mod record;

use std::fmt;

use block::sync::Unreadable;
use host::boundary::{Checkpoints, DiskReads, Inventory};
use host::checkpoint::{
    Changes, Checkpoint, CheckpointRequest, FrozenDisk, StillFacts, Warning, WarningCode,
};
use host::consistency::{Consistency, MissedConsistency};
use host::coverage::{CoverageReport, DiskCoverage, Exclusion, TrackingOutlook, plan_coverage};
use host::custody::Custody;
use host::facts::{DiskSlot, ImageKind, VmFacts};
use host::ids::{NodeName, TrackingPointRef, TrackingToken, VmId};
use host::{CancelToken, Clock};
use repo::{
    BeginOptions, PointDraft, PointSelector, ProtectedName, RecoveryPoint, Repository,
    UnknownFields, VersionSession, Which,
};
use serde::Serialize;

pub use self::moved::{DiskReport, SourceRead};
pub use self::record::{ConfigurationRecord, DiskRecord, MachineRecord, NicRecord, RoleRecord};

use super::backup_disk::{BackupRequest, move_disk, stored_counters};
use super::{JobContext, Steps};
use crate::transfer::{CheckpointEvery, Tracking, explained};
use crate::{Error, ErrorKind, Result};

/// What this job needs of a driver.
pub trait BackupHost: Inventory + Checkpoints + DiskReads {}

impl<T: Inventory + Checkpoints + DiskReads + ?Sized> BackupHost for T {}

/// What is to be backed up, and how.
#[derive(Clone)]
pub struct VmBackupRequest {
    /// Whose point it becomes.
    pub name: ProtectedName,
    /// What is asked of the host: the machine, the levels of consistency, the limits.
    pub checkpoint: CheckpointRequest,
    /// Disks that somebody decided to leave out.
    pub exclusions: Vec<Exclusion>,
    /// How many of a million blocks that tracking calls unchanged are read all the same.
    pub audit_per_million: u32,
    /// What the sample is drawn from.
    pub audit_seed: u64,
    /// What to do with unreadable ranges.
    pub unreadable: Unreadable,
    /// How often progress is made durable.
    pub checkpoint_every: CheckpointEvery,
    /// Threads that read, hash and compress; chosen when absent.
    pub workers: Option<usize>,
    /// How the session is begun.
    pub session: BeginOptions,
}

impl VmBackupRequest {
    /// An ordinary backup of a machine.
    pub fn new(name: ProtectedName, vm: VmId) -> Self {
        Self {
            name,
            checkpoint: CheckpointRequest::new(vm),
            exclusions: Vec::new(),
            audit_per_million: DEFAULT_AUDIT_PER_MILLION,
            audit_seed: 0,
            unreadable: Unreadable::Fail,
            checkpoint_every: CheckpointEvery::default(),
            workers: None,
            session: BeginOptions::default(),
        }
    }
}

/// How what is still on a host goes.
const LATER: &str = "; the next run, or hikae vm leftovers, does it";

/// One of a thousand blocks.
pub const DEFAULT_AUDIT_PER_MILLION: u32 = 1000;

/// What a backup of a machine works with.
#[derive(Clone, Copy)]
pub struct VmBackupTools<'a> {
    /// The driver.
    pub host: &'a dyn BackupHost,
    /// The repository.
    pub repository: &'a Repository,
    /// The job's hand on the journal.
    pub custody: &'a Custody,
    /// Stops what is asked of hosts; to be set together with the context's own switch.
    pub cancel: &'a CancelToken,
    /// For pauses between tries.
    pub clock: &'a dyn Clock,
}

/// How a disk will be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "look")]
pub enum DiskLook {
    /// There is no version before.
    InitialCopy,
    /// Only what changed, as tracking says.
    Changes,
    /// All that is allocated; only what changed is sent.
    Whole {
        /// Why.
        reason: String,
    },
}

/// One disk of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedDisk {
    /// What it is called in the repository.
    pub label: String,
    /// Where it is plugged in.
    pub slot: DiskSlot,
    /// Its live image.
    pub path: String,
    /// How it will be looked at.
    #[serde(flatten)]
    pub look: DiskLook,
}

/// What a backup of a machine will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmBackupPlan {
    /// Whose point.
    pub name: String,
    /// The machine.
    pub vm: VmId,
    /// Its display name.
    pub machine: String,
    /// Where it is.
    pub node: NodeName,
    /// The version compared with.
    pub parent: Option<u64>,
    /// The levels of consistency that are tried, in order.
    pub levels: Vec<Consistency>,
    /// The disks.
    pub disks: Vec<PlannedDisk>,
    /// What is not in the point, and why.
    pub not_protected: Vec<String>,
    /// The tracking point that goes after the commit.
    pub drops: Option<TrackingPointRef>,
}

impl fmt::Display for VmBackupPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels: Vec<&str> = self.levels.iter().map(|it| it.name()).collect();
        writeln!(
            f,
            "back up {} on {} as {}: checkpoint {}",
            self.machine,
            self.node,
            self.name,
            levels.join(", else ")
        )?;
        for disk in &self.disks {
            let look = match &disk.look {
                DiskLook::InitialCopy => "initial copy".to_owned(),
                DiskLook::Changes => "what changed, by change tracking".to_owned(),
                DiskLook::Whole { reason } => format!("compared whole: {reason}"),
            };
            writeln!(f, "  {}  {}  {look}", disk.label, disk.path)?;
        }
        for line in &self.not_protected {
            writeln!(f, "  not in it: {line}")?;
        }
        Ok(())
    }
}

/// What a backup of a machine did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmBackupReport {
    /// Whose point.
    pub name: String,
    /// Its number.
    pub sequence: u64,
    /// Its id.
    pub point: String,
    /// The version that it was compared with.
    pub parent: Option<u64>,
    /// The machine.
    pub vm: VmId,
    /// Its display name.
    pub machine: String,
    /// Where the checkpoint was made.
    pub node: NodeName,
    /// What was reached.
    pub consistency: Consistency,
    /// What was tried before and not reached.
    pub missed: Vec<MissedConsistency>,
    /// How long the guest stood still.
    pub still: StillFacts,
    /// Disk by disk.
    pub disks: Vec<DiskReport>,
    /// Configuration files in the point.
    pub configuration: Vec<String>,
    /// What is not in the point, and why.
    pub not_protected: Vec<String>,
    /// The tracking point that the next run starts from.
    pub tracking_point: Option<TrackingPointRef>,
    /// What it cost: sums over disks and configuration.
    #[serde(flatten)]
    pub read: SourceRead,
    /// Bytes of packs put: what it cost in the store.
    pub stored_bytes: u64,
    /// What an operator should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// What a disk is called in the repository: by its slot, which stays when its image is renamed or moved.
pub fn disk_label(slot: DiskSlot) -> String {
    slot.to_string().to_lowercase().replace([' ', ':'], "-")
}

/// Works out what a backup would do, from facts alone.
///
/// # Errors
/// [`ErrorKind::Refused`] when the name belongs to another machine.
pub fn plan_backup_vm(
    request: &VmBackupRequest,
    machine: &VmFacts,
    parent: Option<&RecoveryPoint>,
) -> Result<VmBackupPlan> {
    let before = match parent {
        Some(parent) => MachineRecord::of_point(parent)?,
        None => None,
    };
    check_owner(request, machine.id, parent, before.as_ref())?;
    let coverage = plan_coverage(machine, &request.exclusions);
    let mut disks = Vec::new();
    for line in &coverage.lines {
        let (DiskCoverage::Protected { tracking }, Some(slot)) = (&line.coverage, line.slot) else {
            continue;
        };
        let label = disk_label(slot);
        let kept = parent.and_then(|parent| parent.disk(&label));
        let look = match kept {
            None => DiskLook::InitialCopy,
            Some(_) if *tracking == TrackingOutlook::ReadWhole => DiskLook::Whole {
                reason: "changes of this disk are not tracked".to_owned(),
            },
            Some(kept) if kept.tracking_token.is_none() => DiskLook::Whole {
                reason: "the version before has no place to track from".to_owned(),
            },
            Some(_) => DiskLook::Changes,
        };
        disks.push(PlannedDisk {
            label,
            slot,
            path: line.what.clone(),
            look,
        });
    }
    Ok(VmBackupPlan {
        name: request.name.to_string(),
        vm: machine.id,
        machine: machine.name.clone(),
        node: machine.node.clone(),
        parent: parent.map(|parent| parent.sequence),
        levels: request.checkpoint.policy.attempts(),
        disks,
        not_protected: not_protected(&coverage),
        drops: before.and_then(|before| before.tracking_point),
    })
}

/// The newest point of a name.
///
/// # Errors
/// What the repository answers.
pub fn newest_point(
    repository: &Repository,
    name: &ProtectedName,
) -> Result<Option<RecoveryPoint>> {
    let selector = PointSelector {
        name: name.clone(),
        which: Which::Latest,
    };
    match repository.find_point(&selector) {
        Ok(record) => Ok(Some(record.point)),
        Err(error) if error.kind() == repo::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn check_owner(
    request: &VmBackupRequest,
    vm: VmId,
    parent: Option<&RecoveryPoint>,
    before: Option<&MachineRecord>,
) -> Result<()> {
    let (Some(parent), other) = (parent, before.map(|before| before.vm)) else {
        return Ok(());
    };
    if other == Some(vm) {
        return Ok(());
    }
    let whose = match other {
        Some(other) => format!("of machine {other}"),
        None => "of a disk image".to_owned(),
    };
    let what = format!(
        "{}@{} is a version {whose}, not of machine {vm}",
        request.name, parent.sequence
    );
    Err(Error::new(ErrorKind::Refused, what)
        .advised("Protect it under another name: hikae vm backup VM --name NAME"))
}

fn not_protected(coverage: &CoverageReport) -> Vec<String> {
    let lines = coverage.lines.iter().filter_map(|line| {
        let place = line.slot.map_or(String::new(), |slot| format!("{slot}, "));
        match &line.coverage {
            DiskCoverage::Protected { .. } | DiskCoverage::Nothing => None,
            DiskCoverage::Excluded { by, reason } => {
                let reason = reason
                    .as_deref()
                    .map_or(String::new(), |it| format!(": {it}"));
                Some(format!("{place}{}: excluded by {by}{reason}", line.what))
            }
            DiskCoverage::Impossible {
                because, remedy, ..
            } => Some(format!("{place}{}: {because}; {remedy}", line.what)),
        }
    });
    lines.chain(coverage.notes.iter().cloned()).collect()
}

/// Backs up a machine.
///
/// # Errors
/// [`ErrorKind::Busy`] when the name is being written or the machine is at work, [`ErrorKind::HostFailed`] when no level of
/// consistency that the policy allows is reached; what host and repository answer. After an error nothing new is visible, and
/// nothing of this job is on a host, or the journal says what is.
pub fn backup_vm(
    tools: VmBackupTools<'_>,
    request: &VmBackupRequest,
    context: JobContext<'_>,
) -> Result<VmBackupReport> {
    let mut steps = Steps::new(context, format!("backup of {}", request.name));
    let clock = tools.repository.environment().clock.clone();
    let started_ms = clock.monotonic_ms();
    let job = Job {
        tools,
        request,
        context,
    };
    let result = job.run(&mut steps).map(|mut report| {
        report.elapsed_ms = clock.monotonic_ms().saturating_sub(started_ms);
        report
    });
    steps.finish(result)
}

struct Job<'a> {
    tools: VmBackupTools<'a>,
    request: &'a VmBackupRequest,
    context: JobContext<'a>,
}

/// All that is in the session and waits for the commit.
struct Gathered {
    draft: PointDraft,
    record: MachineRecord,
    report: VmBackupReport,
}

impl<'a> Job<'a> {
    fn run(&self, steps: &mut Steps<'a>) -> Result<VmBackupReport> {
        let name = self.request.name.to_string();
        let session = steps.step("begin", &name, || {
            Ok(self
                .tools
                .repository
                .begin(&self.request.name, &self.request.session)?)
        })?;
        let before = session.base().parent.clone();
        let gathered = match self.gather(&session, before.as_ref(), steps) {
            Ok(gathered) => gathered,
            Err(error) => {
                self.give_up(session);
                return Err(error);
            }
        };
        let Gathered {
            mut draft,
            record,
            mut report,
        } = gathered;
        let point = steps.step("commit", &name, || {
            session.blobs().flush()?;
            let stored = session.blobs().stats();
            report.stored_bytes = stored.stored_bytes;
            draft.counters.extend(stored_counters(&stored));
            Ok(session.commit(draft)?)
        })?;
        report.sequence = point.sequence;
        report.point = point.point.to_string();
        self.after_commit(&record, &mut report);
        Ok(report)
    }

    /// With something stored, the dead session's progress is found and taken over by the next one.
    fn give_up(&self, session: VersionSession) {
        if session.blobs().stats().packs == 0
            && let Err(failed) = session.abandon()
        {
            self.context.progress.warn(&format!(
                "the lease could not be given back: {}",
                explained(&failed.into())
            ));
        }
    }

    fn gather(
        &self,
        session: &VersionSession,
        before: Option<&RecoveryPoint>,
        steps: &mut Steps<'a>,
    ) -> Result<Gathered> {
        let vm = self.request.checkpoint.vm;
        let (host, custody, cancel) = (self.tools.host, self.tools.custody, self.tools.cancel);
        let machine = steps.step("look at the machine", &vm.to_string(), || {
            Ok(host.machine(vm, cancel)?)
        })?;
        let plan = plan_backup_vm(self.request, &machine, before)?;
        let checkpoint = steps.step("checkpoint", &vm.to_string(), || {
            self.context.progress.begin("checkpoint", None);
            let made = host.create(&self.request.checkpoint, custody, cancel);
            self.context.progress.end();
            Ok(made?)
        })?;
        let reference = checkpoint.reference.clone();
        steps.on_failure("checkpoint", &vm.to_string(), move || {
            // Told to stop or not, what we made is ours to remove.
            host.release(&reference, custody, &CancelToken::new())?;
            Ok(())
        });
        let mut moved = moved::Gathering::new(&plan, &machine, &checkpoint);
        let untracked = untracked(&plan, &machine);
        for frozen in self.chosen(&plan, &checkpoint) {
            let label = disk_label(frozen.slot);
            let disk = steps.step("disk", &label, || {
                self.one_disk(session, before, &checkpoint, frozen, untracked)
            })?;
            moved.add_disk(frozen, disk);
        }
        moved.check_complete(&checkpoint)?;
        for slot in record::missing(&machine, &self.request.exclusions, &moved.slots()) {
            moved.miss(slot);
        }
        for file in &checkpoint.configuration {
            let kept = steps.step("configuration", file.path.file_name(), || {
                configuration::move_file(self, session, &checkpoint, file)
            })?;
            moved.add_file(file, kept);
        }
        let settled = steps.step("settle", &vm.to_string(), || {
            self.settle(&checkpoint, &mut moved)
        })?;
        if let Some(point) = settled {
            let id = point.point.to_string();
            steps.on_failure("settle", &id, move || {
                host.drop_tracking(&point, custody, &CancelToken::new())?;
                Ok(())
            });
        }
        moved.finish(self.request.name.as_str())
    }

    /// The frozen disks that the plan has, and such as it does not know: what is frozen is not thrown away.
    fn chosen<'c>(&self, plan: &VmBackupPlan, checkpoint: &'c Checkpoint) -> Vec<&'c FrozenDisk> {
        let left_out = |disk: &FrozenDisk| {
            let is_planned = plan.disks.iter().any(|planned| planned.slot == disk.slot);
            !is_planned
                && self
                    .request
                    .exclusions
                    .iter()
                    .any(|exclusion| excludes(exclusion, disk))
        };
        checkpoint
            .disks
            .iter()
            .filter(|disk| !left_out(disk))
            .collect()
    }

    fn one_disk(
        &self,
        session: &VersionSession,
        before: Option<&RecoveryPoint>,
        checkpoint: &Checkpoint,
        frozen: &FrozenDisk,
        untracked: Option<&'static str>,
    ) -> Result<moved::MovedDisk> {
        let label = disk_label(frozen.slot);
        let (tracking, reason) = match untracked {
            Some(reason) => (None, Some(reason.to_owned())),
            None => self.tracking(before, checkpoint, frozen, &label)?,
        };
        let source = followed::FollowedDisk::open(self.tools, &checkpoint.reference, frozen)?;
        let mut request = BackupRequest::new(self.request.name.clone());
        request.label = label;
        request.image = profile(&source, frozen);
        request.tracking = tracking;
        request.tracking_since = before.map(|before| before.sequence);
        request.unreadable = self.request.unreadable;
        request.checkpoint_every = self.request.checkpoint_every;
        request.workers = self.request.workers;
        let disk = move_disk(session, &request, &source, self.context)?;
        Ok(moved::MovedDisk {
            reopened: source.reopened(),
            home: source.home(),
            untracked_because: reason,
            disk,
        })
    }

    /// What changed since the version before, where that can be told; else why not. Whatever goes wrong with tracking costs
    /// reading, and nothing more.
    fn tracking(
        &self,
        before: Option<&RecoveryPoint>,
        checkpoint: &Checkpoint,
        frozen: &FrozenDisk,
        label: &str,
    ) -> Result<(Option<Tracking>, Option<String>)> {
        let Some(token) = before
            .and_then(|before| before.disk(label))
            .and_then(|disk| disk.tracking_token.as_deref())
        else {
            return Ok((None, None));
        };
        let Ok(token) = serde_json::from_str::<TrackingToken>(token) else {
            let reason = "the version before was tracked by something that is not known here";
            return Ok((None, Some(reason.to_owned())));
        };
        let (host, cancel) = (self.tools.host, self.tools.cancel);
        let reason = match host.changed_ranges(&checkpoint.reference, frozen, &token, cancel) {
            Ok(Changes::Known(changed)) => {
                let tracking = Tracking {
                    changed,
                    audit_per_million: self.request.audit_per_million,
                    audit_seed: self.request.audit_seed,
                };
                return Ok((Some(tracking), None));
            }
            Ok(Changes::Lost { reason }) => reason,
            Err(error) if error.kind() == host::ErrorKind::Cancelled => return Err(error.into()),
            Err(error) => explained(&error.into()),
        };
        self.context
            .progress
            .warn(&format!("{label}: change tracking is lost: {reason}"));
        Ok((None, Some(reason)))
    }

    /// Turns the checkpoint into a tracking point. Where that fails, all was read already: the checkpoint goes, and the
    /// next run reads whole.
    fn settle(
        &self,
        checkpoint: &Checkpoint,
        moved: &mut moved::Gathering<'_>,
    ) -> Result<Option<TrackingPointRef>> {
        let (host, custody, cancel) = (self.tools.host, self.tools.custody, self.tools.cancel);
        let error = match host.settle(checkpoint, custody, cancel) {
            Ok(settled) => {
                let point = settled.point.clone();
                moved.settled(settled)?;
                return Ok(point);
            }
            Err(error) if error.kind() == host::ErrorKind::Cancelled => return Err(error.into()),
            Err(error) => error,
        };
        let calm = CancelToken::new();
        let text = explained(&error.into());
        moved.warn(
            WarningCode::Untracked,
            format!("no tracking point could be made, so the next run reads whole: {text}"),
        );
        if let Err(error) = host.release(&checkpoint.reference, custody, &calm) {
            let text = explained(&error.into());
            moved.warn(
                WarningCode::LeftOver,
                format!("the checkpoint could not be released yet{LATER}: {text}"),
            );
        }
        Ok(None)
    }

    /// The point is there: nothing that happens now makes the job fail.
    fn after_commit(&self, record: &MachineRecord, report: &mut VmBackupReport) {
        let (host, custody) = (self.tools.host, self.tools.custody);
        let mut left = |text: String| {
            report.warnings.push(Warning {
                code: WarningCode::LeftOver,
                text,
            });
        };
        if let Some(point) = &record.tracking_point
            && let Err(error) = host.keep_tracking(point, custody)
        {
            let text = explained(&error.into());
            left(format!(
                "the journal was not brought up to date{LATER}: {text}"
            ));
        }
        let outlived = match self.outlived(record) {
            Ok(outlived) => outlived,
            Err(error) => {
                let text = explained(&error);
                left(format!(
                    "older tracking points were not looked for{LATER}: {text}"
                ));
                return;
            }
        };
        for old in outlived {
            if let Err(error) = host.drop_tracking(&old, custody, &CancelToken::new()) {
                let text = explained(&error.into());
                let point = &old.point;
                left(format!(
                    "tracking point {point} could not be dropped{LATER}: {text}"
                ));
            }
        }
    }

    /// Tracking points of earlier versions that are on the host still: of the version before, and of such as were forgotten
    /// or fell out of the order since.
    fn outlived(&self, record: &MachineRecord) -> Result<Vec<TrackingPointRef>> {
        let machine = self.tools.host.machine(record.vm, &CancelToken::new())?;
        let (points, _) = self.tools.repository.points()?;
        let mut outlived = Vec::new();
        for found in points
            .iter()
            .filter(|it| it.point.name == self.request.name)
        {
            let theirs = MachineRecord::of_point(&found.point)?.and_then(|it| it.tracking_point);
            let is_older = theirs != record.tracking_point;
            if let Some(theirs) = theirs.filter(|it| is_older && it.vm == record.vm)
                && machine
                    .tracking_points
                    .iter()
                    .any(|there| there.id == theirs.point)
            {
                outlived.push(theirs);
            }
        }
        outlived.sort();
        outlived.dedup();
        Ok(outlived)
    }
}

/// Why no disk's token counts: the tracking point that they belong to is gone, as after a restore over the machine.
fn untracked(plan: &VmBackupPlan, machine: &VmFacts) -> Option<&'static str> {
    let point = plan.drops.as_ref()?;
    let is_there = machine
        .tracking_points
        .iter()
        .any(|it| it.id == point.point);
    (!is_there).then_some("the tracking point of the version before is gone from the host")
}

fn excludes(exclusion: &Exclusion, disk: &FrozenDisk) -> bool {
    use host::coverage::DiskSelector;
    match &exclusion.selects {
        DiskSelector::Slot(slot) => *slot == disk.slot,
        DiskSelector::Path(path) => *path == disk.path,
        DiskSelector::Below(folder) => disk.path.is_below(folder),
    }
}

/// The shape that the disk's image has, so that it comes back alike.
fn profile(source: &followed::FollowedDisk<'_>, frozen: &FrozenDisk) -> repo::ImageProfile {
    if let Some(info) = source.shape() {
        return crate::profile::profile_of(&info);
    }
    let format = match frozen.image {
        ImageKind::Vhdx | ImageKind::VhdSet => Some("vhdx"),
        ImageKind::Vhd => Some("vhd"),
        ImageKind::Qcow2 => Some("qcow2"),
        ImageKind::Raw => Some("raw"),
        ImageKind::Other => None,
    };
    repo::ImageProfile {
        format: format.map(str::to_owned),
        disk_id: frozen.identity.map(|id| id.to_string()),
        ..repo::ImageProfile::default()
    }
}

/// What a point says about its source.
fn source_facts(record: &MachineRecord) -> Result<UnknownFields> {
    let mut facts = UnknownFields::new();
    let value = serde_json::to_value(record)
        .map_err(|error| Error::new(ErrorKind::Invalid, "the machine's record").caused_by(error))?;
    facts.insert(record::MACHINE.to_owned(), value);
    Ok(facts)
}
