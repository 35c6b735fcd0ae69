//! A process that dies at each of the changes that it makes, before them and within them; the custodian cleans up behind it.
//!
//! The process is this test program, started again; so what it holds (the watchdog's pipe, the monitor, the journal's lock) goes as it goes
//! in a real death.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::boundary::Checkpoints;
use host::checkpoint::CheckpointRequest;
use host::consistency::{Consistency, ConsistencyPolicy};
use host::custody::{
    Closing, Custodian, CustodianOptions, Custody, CustodyLog, HeldKind, JournalFile, MemoryLog,
    SweepReport,
};
use host::ids::{JobId, OwnerId};
use host::{CancelToken, Clock, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::agent;
use super::guest::QemuGuest;
use super::image::tool;
use super::parts::{Look, part_name};
use super::place::{Note, Place};
use super::steps::Steps;
use super::suite::{assert_clean, boot, progress, vm, wait_for};

const ENVIRONMENT: &str = "HIKAE_KVM_JOB";
/// More than any job has.
const MOST_MOMENTS: usize = 200;

/// What a job does.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Work {
    /// Frozen, then settled.
    Settle,
    /// Saved, and left as it is.
    Save,
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    place: std::path::PathBuf,
    journal: std::path::PathBuf,
    work: Work,
    death: usize,
}

fn owner() -> OwnerId {
    OwnerId::new("kills").expect("an owner")
}

/// The job itself, when this program is started as one.
#[test]
fn a_job_that_dies() {
    let Ok(order) = std::env::var(ENVIRONMENT) else {
        return;
    };
    let order: Order = serde_json::from_str(&order).expect("an order");
    let guest = QemuGuest::new(Place::open(&order.place), Steps::until(order.death));
    let log = Arc::new(JournalFile::open(&order.journal).expect("a journal"));
    let custody = Custody::new(log, owner(), JobId::from_bytes([7; 16]));
    let calm = CancelToken::new();
    let mut request = CheckpointRequest::new(vm());
    request.policy = ConsistencyPolicy::only(match order.work {
        Work::Settle => Consistency::FileSystem,
        Work::Save => Consistency::SavedState,
    });
    let made = guest.create(&request, &custody, &calm).expect("made");
    if matches!(order.work, Work::Settle) {
        guest.settle(&made, &custody, &calm).expect("settled");
    }
}

/// What a job that died said last; `None` when it lived.
fn run(order: &Order) -> Option<String> {
    let program = std::env::current_exe().expect("this test");
    let output = Command::new(program)
        .args(["--exact", "kvm::kills::a_job_that_dies", "--nocapture"])
        .env(ENVIRONMENT, serde_json::to_string(order).expect("an order"))
        .output()
        .expect("a job");
    if output.status.success() {
        return None;
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().find_map(|line| line.split_once("DIES "));
    let (_, last) = last.unwrap_or_else(|| {
        panic!("{said}{}", String::from_utf8_lossy(&output.stderr));
    });
    Some(last.to_owned())
}

fn sweep(guest: &QemuGuest, log: Arc<dyn CustodyLog>) -> SweepReport {
    let now = guest.clock.now().0.saturating_add(600_000);
    let options = CustodianOptions {
        owner: owner(),
        now: Timestamp(now),
        is_alive: &|_| false,
        is_committed: &|_| false,
        settling: Duration::from_secs(60),
        window: Duration::from_secs(1800),
    };
    Custodian::new(guest, log, options)
        .sweep(&CancelToken::new())
        .expect("a sweep")
}

/// How long the guest stayed frozen after the job's death, with nobody but the watchdog there.
fn thawed_after(guest: &QemuGuest) -> Duration {
    let begin = Instant::now();
    loop {
        let status = agent::ask(&guest.place.agent(), "guest-fsfreeze-status");
        if status.is_ok_and(|it| it == "thawed") {
            return begin.elapsed();
        }
        assert!(begin.elapsed() < Duration::from_secs(9), "still frozen");
    }
}

fn die_everywhere(guest: &QemuGuest, folder: &Path, work: Work) -> usize {
    let mut slowest = Duration::ZERO;
    for death in 0..MOST_MOMENTS {
        let order = Order {
            place: guest.place.folder().to_owned(),
            journal: folder.join("journal"),
            work,
            death,
        };
        let died = run(&order);
        if matches!(work, Work::Settle) {
            slowest = slowest.max(thawed_after(guest));
        }
        let log = Arc::new(JournalFile::open(&order.journal).expect("a journal"));
        let when = format!("{work:?}, moment {death}: {died:?}");
        let report = sweep(guest, Arc::clone(&log) as Arc<dyn CustodyLog>);
        assert!(report.waiting.is_empty(), "{when}: {report:?}");
        assert!(report.alerts.is_empty(), "{when}: {report:?}");
        let entries = log.open_entries().expect("entries");
        assert!(entries.is_empty(), "{when}: {entries:?}");
        assert_clean(guest, &when);
        if died.is_none() {
            println!("{work:?}: {death} deaths, thawed after {slowest:?} at most");
            return death;
        }
    }
    panic!("{work:?} does not end");
}

#[test]
fn a_job_that_freezes_may_die_at_every_change_and_nothing_of_it_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some((_started, guest)) = boot(folder.path()) else {
        return;
    };
    let begin = Instant::now();
    let deaths = die_everywhere(&guest, folder.path(), Work::Settle);
    println!("in {:?}", begin.elapsed());
    assert!(deaths > 30, "{deaths} deaths");
}

#[test]
fn a_job_that_saves_may_die_at_every_change_and_nothing_of_it_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some((_started, guest)) = boot(folder.path()) else {
        return;
    };
    let begin = Instant::now();
    let deaths = die_everywhere(&guest, folder.path(), Work::Save);
    println!("in {:?}", begin.elapsed());
    assert!(deaths > 25, "{deaths} deaths");
}

#[test]
fn a_guest_that_a_dead_job_froze_or_stopped_runs_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some((_started, guest)) = boot(folder.path()) else {
        return;
    };
    frozen_by_the_dead(&guest);
    stopped_by_a_full_overlay(&guest);
}

/// The last resort: no watchdog, and then not even the journal.
fn frozen_by_the_dead(guest: &QemuGuest) {
    let kind = HeldKind::Freeze;
    for keeps_journal in [true, false] {
        let log: Arc<dyn CustodyLog> = Arc::new(MemoryLog::default());
        let custody = Custody::new(Arc::clone(&log), owner(), JobId::from_bytes([8; 16]));
        let mark = host::custody::MachineMark {
            kind,
            mark: custody.mark().clone(),
            id: None,
        };
        if keeps_journal {
            custody
                .intend(kind, vm(), &guest.node, guest.clock.now(), Vec::new())
                .expect("an entry");
        } else {
            guest.place.set_mark(&mark).expect("a mark");
        }
        agent::change(
            &guest.place.agent(),
            "guest-fsfreeze-freeze",
            &Steps::default(),
        )
        .expect("frozen");
        let report = sweep(guest, Arc::clone(&log));
        let found = report.done.iter().find(|it| it.kind == kind);
        let closing = found.map(|it| it.closing);
        assert_eq!(closing, Some(Closing::Removed), "{report:?}");
        assert!(log.open_entries().expect("entries").is_empty());
        assert_clean(guest, "after a freeze by a job that died");
    }
}

/// A checkpoint whose overlay takes no byte, because its storage is full: QEMU stops the guest at its next write.
fn stopped_by_a_full_overlay(guest: &QemuGuest) {
    let log: Arc<dyn CustodyLog> = Arc::new(MemoryLog::default());
    let custody = Custody::new(Arc::clone(&log), owner(), JobId::from_bytes([9; 16]));
    let id = "hikae-0909090909090909-1";
    let kind = HeldKind::Checkpoint;
    let entry = custody
        .intend(kind, vm(), &guest.node, guest.clock.now(), Vec::new())
        .expect("an entry");
    custody.made(entry, id).expect("an entry");
    let note = Note {
        mark: custody.mark().clone(),
        made_at: guest.clock.now(),
        checkpoint: None,
    };
    guest.place.write_note(id, &note).expect("a note");
    let overlay = guest.place.overlay(id, 0);
    let create = ["create", "-q", "-f", "qcow2"].map(AsRef::as_ref);
    tool(
        "qemu-img",
        create
            .into_iter()
            .chain([overlay.as_os_str(), "64M".as_ref()]),
    );
    let mut monitor = guest.monitor().expect("a monitor");
    let full = json!({"event": "none", "iotype": "write", "errno": 28, "once": false});
    let node = json!({"driver": "qcow2", "node-name": part_name(id, 0), "backing": "disk0",
        "file": {"driver": "blkdebug", "inject-error": [full],
            "image": {"driver": "file", "filename": overlay}}});
    monitor.change("blockdev-add", &node).expect("an overlay");
    let job = json!({"job-id": part_name(id, 0), "device": "disk0", "target": part_name(id, 0),
        "sync": "none"});
    monitor.change("blockdev-backup", &job).expect("a job");
    monitor
        .wait("the guest goes on", |monitor| {
            Ok(Look::take(monitor)?.status == "io-error")
        })
        .expect("the guest stops");
    drop(monitor);
    let report = sweep(guest, Arc::clone(&log));
    let found = report.done.iter().find(|it| it.kind == kind);
    let closing = found.map(|it| it.closing);
    assert_eq!(closing, Some(Closing::Removed), "{report:?}");
    assert_clean(guest, "after a full overlay");
    let at = progress(guest).expect("a number");
    wait_for(guest, at + 2);
}
