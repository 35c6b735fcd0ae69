//! Whether a driver keeps the contract of [`crate::boundary`]: checks that run on any driver, over a machine that may be worked on.
//!
//! ```text
//!   a test of a driver ── Fixture (driver, machine, what the place can do) ──► run_all ──► Outcome for each check
//! ```
//!
//! A check answers with a sentence when the contract is broken. One that the place cannot show (it has nobody to migrate to, no
//! bytes to read) is told as skipped with the reason, never as passed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::boundary::{DiskReads, Mobility, UserCheckpoints};
use crate::checkpoint::{Changes, Checkpoint, CheckpointRequest, Presence, Settled};
use crate::clock::{CancelToken, Timestamp};
use crate::consistency::{Consistency, ConsistencyPolicy};
use crate::custody::{
    Closing, Custodian, CustodianOptions, Custody, CustodyHost, CustodyLog, Entry, EntryId,
    HeldKind, Intent, MemoryLog,
};
use crate::facts::{PowerState, VmFacts};
use crate::ids::{JobId, OwnerId, TrackingScheme, TrackingToken, VmId};
use crate::{Error, ErrorKind};

/// All traits of a place where machines run, clusters apart.
pub trait Driver: CustodyHost + DiskReads + UserCheckpoints + Mobility {}

impl<T: CustodyHost + DiskReads + UserCheckpoints + Mobility> Driver for T {}

/// What is checked, and what the place can do.
pub struct Fixture<'a> {
    /// The driver.
    pub driver: &'a dyn Driver,
    /// A machine that runs, with at least one disk that can be tracked, that may be worked on.
    pub vm: VmId,
    /// An id that no machine has.
    pub absent: VmId,
    /// Moves the machine to another node behind the driver's back; `None` where there is none.
    pub relocate: Option<&'a dyn Fn()>,
    /// Makes a checkpoint for a backup as another product would; gives its name. `None` where that cannot be done.
    pub make_foreign: Option<&'a dyn Fn()>,
    /// Whether frozen disks can be read.
    pub bytes: Bytes,
    /// The time as the place has it.
    pub now: &'a dyn Fn() -> Timestamp,
}

/// Whether frozen disks can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bytes {
    /// They can.
    Readable,
    /// The place has none.
    Absent,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The contract was kept.
    Kept,
    /// The place cannot show it.
    Skipped(String),
    /// The contract was broken, and how.
    Broken(String),
}

type Checked = std::result::Result<Outcome, String>;
type Check = fn(&Fixture<'_>) -> Checked;

/// The checks, by name.
pub const CHECKS: &[(&str, Check)] = &[
    (
        "each machine is told once, where it can be asked for",
        told_once,
    ),
    ("a machine that is not there is not found", not_found),
    (
        "nothing is made when the journal cannot be written",
        no_journal,
    ),
    (
        "a checkpoint is marked, found again, and gone after its release",
        life_of_one,
    ),
    ("releasing twice is releasing once", released_twice),
    (
        "only levels that the policy names are taken",
        policy_is_kept,
    ),
    (
        "a machine that was saved runs again, and the downtime is measured",
        saved_runs,
    ),
    (
        "settling leaves a point and no checkpoint, and the old point stays until it is dropped",
        two_points,
    ),
    (
        "tokens of other disks and trackers are lost, not believed",
        wrong_tokens,
    ),
    ("frozen disks can be read whole", bytes_are_there),
    (
        "a checkpoint is followed to where its machine went",
        followed,
    ),
    ("checkpoints of others are not touched", foreign_is_safe),
    ("what a dead job left is removed", dead_job),
    (
        "told to stop, it stops, and leaves nothing that is not in the journal",
        cancelled,
    ),
];

/// Runs every check; after each, nothing of it may be left.
pub fn run_all(fixture: &Fixture<'_>) -> Vec<(&'static str, Outcome)> {
    CHECKS
        .iter()
        .map(|(name, check)| {
            let outcome = check(fixture).unwrap_or_else(Outcome::Broken);
            let outcome = match (outcome, left_over(fixture)) {
                (Outcome::Kept, Some(left)) => Outcome::Broken(left),
                (outcome, _) => outcome,
            };
            (*name, outcome)
        })
        .collect()
}

fn owner() -> OwnerId {
    OwnerId::new("conformance").unwrap_or_else(|_| unreachable!("the name is not empty"))
}

/// A job that no other check has.
fn custody(log: &Arc<MemoryLog>) -> Custody {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut bytes = [0xC0; 16];
    for (byte, part) in bytes.iter_mut().zip(number.to_be_bytes()) {
        *byte = part;
    }
    let log: Arc<dyn CustodyLog> = Arc::clone(log) as Arc<dyn CustodyLog>;
    Custody::new(log, owner(), JobId::from_bytes(bytes))
}

fn said(what: &str) -> impl Fn(Error) -> String + '_ {
    move |error| format!("{what}: {}", crate::error::chain_text(&error))
}

fn ensure(holds: bool, otherwise: impl Into<String>) -> std::result::Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

fn machine(fixture: &Fixture<'_>) -> std::result::Result<VmFacts, String> {
    fixture
        .driver
        .machine(fixture.vm, &CancelToken::new())
        .map_err(said("the machine"))
}

/// What of ours is on the machine, where nothing should be.
fn left_over(fixture: &Fixture<'_>) -> Option<String> {
    let machine = match machine(fixture) {
        Ok(machine) => machine,
        Err(error) => return Some(error),
    };
    let checkpoint = machine.checkpoints.iter().find(|it| {
        it.mark
            .as_ref()
            .is_some_and(|mark| mark.owner == Some(owner()))
    });
    if let Some(checkpoint) = checkpoint {
        return Some(format!("checkpoint {} is left", checkpoint.id));
    }
    if !matches!(machine.power, PowerState::Running) {
        return Some(format!("the machine is {}", machine.power));
    }
    None
}

fn make(
    fixture: &Fixture<'_>,
    log: &Arc<MemoryLog>,
    policy: ConsistencyPolicy,
) -> std::result::Result<(Checkpoint, Custody), String> {
    let custody = custody(log);
    let mut request = CheckpointRequest::new(fixture.vm);
    request.policy = policy;
    let made = fixture
        .driver
        .create(&request, &custody, &CancelToken::new())
        .map_err(said("making a checkpoint"))?;
    Ok((made, custody))
}

fn crash() -> ConsistencyPolicy {
    ConsistencyPolicy::only(Consistency::Crash)
}

fn release(
    fixture: &Fixture<'_>,
    made: &Checkpoint,
    custody: &Custody,
) -> std::result::Result<Presence, String> {
    fixture
        .driver
        .release(&made.reference, custody, &CancelToken::new())
        .map(|released| released.was)
        .map_err(said("releasing"))
}

fn told_once(fixture: &Fixture<'_>) -> Checked {
    let calm = CancelToken::new();
    let report = fixture
        .driver
        .inventory(&calm)
        .map_err(said("the inventory"))?;
    let mut ids: Vec<VmId> = report.machines.iter().map(|it| it.id).collect();
    ids.sort();
    let count = ids.len();
    ids.dedup();
    ensure(count == ids.len(), "a machine is told twice")?;
    ensure(ids.contains(&fixture.vm), "the machine is not told")?;
    let told = report.machines.iter().find(|it| it.id == fixture.vm);
    let one = machine(fixture)?;
    ensure(
        told.is_some_and(|it| it.disks == one.disks && it.node == one.node),
        "the machine alone is told otherwise than among all",
    )?;
    Ok(Outcome::Kept)
}

fn not_found(fixture: &Fixture<'_>) -> Checked {
    match fixture.driver.machine(fixture.absent, &CancelToken::new()) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Outcome::Kept),
        Err(error) => Err(format!("kind {:?} instead of not found", error.kind())),
        Ok(_) => Err("a machine that is not there was told".to_owned()),
    }
}

/// A log that cannot be written.
struct FullDisk;

impl CustodyLog for FullDisk {
    fn intend(&self, _intent: Intent) -> crate::Result<EntryId> {
        Err(Error::new(ErrorKind::Custody, "the disk is full"))
    }

    fn made(&self, _entry: EntryId, _id: &str) -> crate::Result<()> {
        Err(Error::new(ErrorKind::Custody, "the disk is full"))
    }

    fn close(&self, _entry: EntryId, _closing: Closing) -> crate::Result<()> {
        Err(Error::new(ErrorKind::Custody, "the disk is full"))
    }

    fn open_entries(&self) -> crate::Result<Vec<Entry>> {
        Ok(Vec::new())
    }
}

fn no_journal(fixture: &Fixture<'_>) -> Checked {
    let before = machine(fixture)?.checkpoints.len();
    let custody = Custody::new(Arc::new(FullDisk), owner(), JobId::from_bytes([0xFD; 16]));
    let request = CheckpointRequest::new(fixture.vm);
    let made = fixture
        .driver
        .create(&request, &custody, &CancelToken::new());
    match made {
        Err(error) if error.kind() == ErrorKind::Custody => {}
        Err(error) => return Err(format!("kind {:?} instead of custody", error.kind())),
        Ok(_) => return Err("a checkpoint was made without a journal".to_owned()),
    }
    let after = machine(fixture)?.checkpoints.len();
    ensure(
        before == after,
        "a checkpoint is there that is in no journal",
    )?;
    Ok(Outcome::Kept)
}

fn life_of_one(fixture: &Fixture<'_>) -> Checked {
    let log = Arc::new(MemoryLog::default());
    let (made, custody) = make(fixture, &log, ConsistencyPolicy::default())?;
    let entries = log.open_entries().map_err(said("the journal"))?;
    let id = made.reference.checkpoint.to_string();
    ensure(
        entries
            .iter()
            .any(|it| it.made.as_deref() == Some(id.as_str())),
        "the journal does not have the checkpoint's id",
    )?;
    let facts = machine(fixture)?;
    let told = facts
        .checkpoints
        .iter()
        .find(|it| it.id == made.reference.checkpoint);
    let mark = told.and_then(|it| it.mark.as_ref());
    ensure(
        mark == Some(custody.mark()),
        "the checkpoint does not carry the job's mark",
    )?;
    let again = fixture
        .driver
        .open(&made.reference, &CancelToken::new())
        .map_err(said("opening"))?;
    ensure(again.disks == made.disks, "opened again it has other disks")?;
    ensure(!made.disks.is_empty(), "it has no disks")?;
    release(fixture, &made, &custody)?;
    let gone = fixture.driver.open(&made.reference, &CancelToken::new());
    ensure(
        matches!(&gone, Err(error) if error.kind() == ErrorKind::NotFound),
        "after its release it can be opened",
    )?;
    let entries = log.open_entries().map_err(said("the journal"))?;
    ensure(
        entries.is_empty(),
        "the journal has open entries after the release",
    )?;
    Ok(Outcome::Kept)
}

fn released_twice(fixture: &Fixture<'_>) -> Checked {
    let log = Arc::new(MemoryLog::default());
    let (made, custody) = make(fixture, &log, crash())?;
    let first = release(fixture, &made, &custody)?;
    let second = release(fixture, &made, &custody)?;
    ensure(
        first == Presence::Removed,
        "it was not there at its first release",
    )?;
    ensure(
        second == Presence::Absent,
        "it was there at its second release",
    )?;
    Ok(Outcome::Kept)
}

fn policy_is_kept(fixture: &Fixture<'_>) -> Checked {
    let policies = [
        crash(),
        ConsistencyPolicy::only(Consistency::FileSystem),
        ConsistencyPolicy::default(),
    ];
    for policy in policies {
        let log = Arc::new(MemoryLog::default());
        let named = policy.attempts();
        let job = custody(&log);
        let mut request = CheckpointRequest::new(fixture.vm);
        request.policy = policy;
        match fixture.driver.create(&request, &job, &CancelToken::new()) {
            Ok(made) => {
                let reached = made.reached;
                release(fixture, &made, &job)?;
                ensure(
                    named.iter().any(|level| reached.satisfies(*level)),
                    format!("{reached} was taken where {named:?} was named"),
                )?;
            }
            Err(error) if error.kind() == ErrorKind::Consistency => {}
            Err(error) => return Err(said("making a checkpoint")(error)),
        }
    }
    Ok(Outcome::Kept)
}

fn saved_runs(fixture: &Fixture<'_>) -> Checked {
    let log = Arc::new(MemoryLog::default());
    let (made, custody) = make(
        fixture,
        &log,
        ConsistencyPolicy::only(Consistency::SavedState),
    )?;
    let state = fixture
        .driver
        .power_state(fixture.vm, &CancelToken::new())
        .map_err(said("the state"))?;
    let released = release(fixture, &made, &custody);
    ensure(
        state == PowerState::Running,
        format!("the machine is {state}"),
    )?;
    ensure(
        made.reached == Consistency::SavedState,
        "another level was reached",
    )?;
    ensure(
        made.still.downtime_ms.is_some(),
        "the downtime was not measured",
    )?;
    released?;
    Ok(Outcome::Kept)
}

fn settle(
    fixture: &Fixture<'_>,
    log: &Arc<MemoryLog>,
) -> std::result::Result<(Checkpoint, Settled, Custody), String> {
    let (made, custody) = make(fixture, log, crash())?;
    let settled = fixture
        .driver
        .settle(&made, &custody, &CancelToken::new())
        .map_err(said("settling"))?;
    Ok((made, settled, custody))
}

fn two_points(fixture: &Fixture<'_>) -> Checked {
    let log = Arc::new(MemoryLog::default());
    let calm = CancelToken::new();
    let at_rest = machine(fixture)?.tracking_points.len();
    let (_, first, job) = settle(fixture, &log)?;
    let Some(old) = &first.point else {
        return Ok(Outcome::Skipped(
            "this place does not track changes".to_owned(),
        ));
    };
    fixture
        .driver
        .keep_tracking(old, &job)
        .map_err(said("keeping"))?;
    let (made, next) = make(fixture, &log, crash())?;
    for (device, token) in &first.tokens {
        let Some(disk) = made.disks.iter().find(|it| it.device == *device) else {
            return Err(format!("no disk for the token of {device}"));
        };
        let changes = fixture
            .driver
            .changed_ranges(&made.reference, disk, token, &calm)
            .map_err(said("changes"))?;
        ensure(
            matches!(changes, Changes::Known(_)),
            format!("the token of the last version is {changes:?}"),
        )?;
    }
    let second = fixture
        .driver
        .settle(&made, &next, &calm)
        .map_err(said("settling again"))?;
    let facts = machine(fixture)?;
    ensure(
        facts.tracking_points.len() == at_rest + 2,
        "between settling and the commit there are not two points",
    )?;
    let Some(new) = &second.point else {
        return Err("the second run has no point".to_owned());
    };
    fixture
        .driver
        .drop_tracking(old, &next, &calm)
        .map_err(said("dropping"))?;
    let facts = machine(fixture)?;
    ensure(
        facts.tracking_points.len() == at_rest + 1,
        "at rest there is not one point",
    )?;
    fixture
        .driver
        .drop_tracking(new, &next, &calm)
        .map_err(said("dropping"))?;
    let again = fixture
        .driver
        .drop_tracking(new, &next, &calm)
        .map_err(said("dropping"))?;
    ensure(
        again.was == Presence::Absent,
        "a point that is gone was dropped again",
    )?;
    let entries = log.open_entries().map_err(said("the journal"))?;
    ensure(
        entries.is_empty(),
        format!("open entries are left: {entries:?}"),
    )?;
    Ok(Outcome::Kept)
}

fn wrong_tokens(fixture: &Fixture<'_>) -> Checked {
    let log = Arc::new(MemoryLog::default());
    let (made, custody) = make(fixture, &log, crash())?;
    let disk = made.disks.first().cloned();
    let mut broken = Vec::new();
    if let Some(disk) = disk {
        let size_bytes = disk.size_bytes.unwrap_or(1 << 30);
        let wrong = |scheme, value: &str, size_bytes| TrackingToken {
            scheme,
            value: value.to_owned(),
            disk: disk.identity,
            size_bytes,
        };
        let tokens = [
            wrong(TrackingScheme::Rct, "nobody:knows:this", size_bytes),
            wrong(TrackingScheme::DirtyBitmap, "nobody-knows-this", size_bytes),
            wrong(
                TrackingScheme::Rct,
                "nobody:knows:this",
                size_bytes.wrapping_add(512),
            ),
        ];
        for token in tokens {
            let changes =
                fixture
                    .driver
                    .changed_ranges(&made.reference, &disk, &token, &CancelToken::new());
            match changes {
                Ok(Changes::Lost { .. }) => {}
                other => broken.push(format!("{token:?} gives {other:?}")),
            }
        }
    }
    release(fixture, &made, &custody)?;
    ensure(broken.is_empty(), broken.join("; "))?;
    Ok(Outcome::Kept)
}

fn bytes_are_there(fixture: &Fixture<'_>) -> Checked {
    if fixture.bytes == Bytes::Absent {
        return Ok(Outcome::Skipped("the place has no bytes".to_owned()));
    }
    let log = Arc::new(MemoryLog::default());
    let (made, custody) = make(fixture, &log, crash())?;
    let mut broken = None;
    for disk in &made.disks {
        let read = fixture
            .driver
            .open_disk(&made.reference, disk, &CancelToken::new())
            .map_err(said("opening a disk"))
            .and_then(|opened| {
                let mut buffer = vec![0_u8; 64 << 10];
                let last = opened.size_bytes().saturating_sub(buffer.len() as u64);
                for offset in [0, last] {
                    opened
                        .read_at(offset, &mut buffer)
                        .map_err(|error| error.to_string())?;
                }
                Ok(())
            });
        if let Err(error) = read {
            broken = Some(error);
        }
    }
    release(fixture, &made, &custody)?;
    broken.map_or(Ok(Outcome::Kept), Err)
}

fn followed(fixture: &Fixture<'_>) -> Checked {
    let Some(relocate) = fixture.relocate else {
        return Ok(Outcome::Skipped("there is no other node".to_owned()));
    };
    let log = Arc::new(MemoryLog::default());
    let (made, custody) = make(fixture, &log, crash())?;
    relocate();
    let opened = fixture.driver.open(&made.reference, &CancelToken::new());
    let released = release(fixture, &made, &custody)?;
    let opened = opened.map_err(said("opening after the move"))?;
    ensure(opened.node != made.node, "it is told where it was")?;
    ensure(
        released == Presence::Removed,
        "it was not there at its release",
    )?;
    Ok(Outcome::Kept)
}

fn foreign_is_safe(fixture: &Fixture<'_>) -> Checked {
    let Some(make_foreign) = fixture.make_foreign else {
        return Ok(Outcome::Skipped("there is nobody else".to_owned()));
    };
    let before: Vec<_> = machine(fixture)?
        .checkpoints
        .into_iter()
        .map(|it| it.id)
        .collect();
    make_foreign();
    let after = machine(fixture)?;
    let foreign = after
        .checkpoints
        .iter()
        .find(|it| !before.contains(&it.id))
        .ok_or("the other product's checkpoint is not told")?;
    let reference = crate::ids::CheckpointRef {
        vm: fixture.vm,
        checkpoint: foreign.id.clone(),
    };
    let log = Arc::new(MemoryLog::default());
    let released = fixture
        .driver
        .release(&reference, &custody(&log), &CancelToken::new());
    ensure(
        matches!(&released, Err(error) if error.kind() == ErrorKind::Refused),
        "a checkpoint of another product was released",
    )?;
    let report = sweep(fixture, &log, fixture.now)?;
    ensure(
        report
            .foreign
            .iter()
            .any(|it| it.checkpoint == foreign.id && !it.command.is_empty()),
        "the custodian does not report it",
    )?;
    let still = machine(fixture)?;
    ensure(
        still.checkpoints.iter().any(|it| it.id == foreign.id),
        "the custodian removed it",
    )?;
    Ok(Outcome::Kept)
}

fn sweep(
    fixture: &Fixture<'_>,
    log: &Arc<MemoryLog>,
    now: &dyn Fn() -> Timestamp,
) -> std::result::Result<crate::custody::SweepReport, String> {
    let options = CustodianOptions {
        owner: owner(),
        now: now(),
        is_alive: &|_| false,
        is_committed: &|_| false,
        settling: Duration::from_secs(60),
        window: Duration::from_secs(1800),
    };
    let log: Arc<dyn CustodyLog> = Arc::clone(log) as Arc<dyn CustodyLog>;
    let host: &dyn CustodyHost = fixture.driver;
    Custodian::new(host, log, options)
        .sweep(&CancelToken::new())
        .map_err(said("the custodian"))
}

fn dead_job(fixture: &Fixture<'_>) -> Checked {
    // With the journal, then without it: the mark alone must do.
    for keeps_journal in [true, false] {
        let log = Arc::new(MemoryLog::default());
        let (made, _) = make(fixture, &log, crash())?;
        let log = if keeps_journal {
            log
        } else {
            Arc::new(MemoryLog::default())
        };
        let report = sweep(fixture, &log, fixture.now)?;
        ensure(
            report.done.iter().any(|it| it.kind == HeldKind::Checkpoint),
            format!("the custodian did nothing: {report:?}"),
        )?;
        let facts = machine(fixture)?;
        ensure(
            facts
                .checkpoints
                .iter()
                .all(|it| it.id != made.reference.checkpoint),
            "the dead job's checkpoint is still there",
        )?;
        let entries = log.open_entries().map_err(said("the journal"))?;
        ensure(entries.is_empty(), "entries are open after the custodian")?;
    }
    Ok(Outcome::Kept)
}

fn cancelled(fixture: &Fixture<'_>) -> Checked {
    let log = Arc::new(MemoryLog::default());
    let cancel = CancelToken::new();
    cancel.cancel();
    let request = CheckpointRequest::new(fixture.vm);
    let made = fixture.driver.create(&request, &custody(&log), &cancel);
    ensure(
        matches!(&made, Err(error) if error.kind() == ErrorKind::Cancelled),
        "it went on although it was told to stop",
    )?;
    let later = || Timestamp((fixture.now)().0.saturating_add(120_000));
    sweep(fixture, &log, &later)?;
    let entries = log.open_entries().map_err(said("the journal"))?;
    ensure(entries.is_empty(), "entries are open after the custodian")?;
    Ok(Outcome::Kept)
}
