//! The conformance suite over a guest that runs.

use std::path::Path;
use std::time::Instant;

use host::conformance::{Bytes, Fixture, Outcome, run_all};
use host::ids::VmId;
use host::{CancelToken, Clock};
use serde_json::{Value, json};

use super::guest::QemuGuest;
use super::image;
use super::place::{Place, Started};
use super::qmp::Monitor;
use super::steps::Steps;
use super::{agent, parts};

/// The machine of these tests.
pub(super) fn vm() -> VmId {
    VmId::from_bytes([0x51; 16])
}

/// A guest that was booted; `None`, said aloud, where there can be none.
pub(super) fn boot(folder: &Path) -> Option<(Started, QemuGuest)> {
    let parts = image::parts()?;
    let begin = Instant::now();
    let place = Place::create(folder, vm(), image::build(&parts, folder));
    let started = Started(place.clone());
    place.launch(None).expect("QEMU starts");
    let guest = QemuGuest::new(place, Steps::default());
    wait_for(&guest, 1);
    println!("booted, writing: {:?}", begin.elapsed());
    Some((started, guest))
}

/// The last number that the guest wrote to both of its disks.
pub(super) fn progress(guest: &QemuGuest) -> Option<u64> {
    let agent = guest.place.agent();
    let handle = agent::ask_with(&agent, "guest-file-open", &json!({"path": "/run/seq"})).ok()?;
    let handle = json!({"handle": handle});
    let read = agent::ask_with(&agent, "guest-file-read", &handle);
    agent::ask_with(&agent, "guest-file-close", &handle).ok()?;
    let encoded = read.ok()?;
    let digits = decoded(encoded.get("buf-b64").and_then(Value::as_str)?);
    String::from_utf8(digits).ok()?.trim().parse().ok()
}

/// Waits until the guest has written a number; the number that it was at.
pub(super) fn wait_for(guest: &QemuGuest, number: u64) -> u64 {
    let begin = guest.clock.elapsed();
    loop {
        if let Some(at) = progress(guest).filter(|at| *at >= number) {
            return at;
        }
        let waited = guest.clock.elapsed().saturating_sub(begin).as_secs();
        assert!(waited < 120, "the guest does not get to {number}");
        guest
            .clock
            .pause(std::time::Duration::from_millis(50), &CancelToken::new());
    }
}

fn decoded(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let values = text
        .bytes()
        .filter_map(|byte| LETTERS.iter().position(|it| *it == byte));
    let mut bytes = Vec::new();
    let (mut held, mut bits) = (0_usize, 0);
    for value in values {
        held = held << 6 | value;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xFF).expect("a byte"));
        }
    }
    bytes
}

/// Holds what is in QEMU, in the guest and on the node against a machine that nobody ever worked on.
pub(super) fn assert_clean(guest: &QemuGuest, when: &str) {
    let steps = Steps::default();
    let monitor = Monitor::connect(&guest.place.observer(), &steps);
    let mut monitor = monitor.expect("a monitor").expect("QEMU runs");
    let look = parts::Look::take(&mut monitor).expect("a look");
    assert_eq!(look.status, "running", "{when}");
    assert_eq!(look.jobs, Vec::<String>::new(), "{when}");
    assert_eq!(look.exports, Vec::<String>::new(), "{when}");
    let named: Vec<&str> = look
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .filter(|name| !name.starts_with('#'))
        .collect();
    assert!(
        named.iter().all(|name| ["disk0", "disk1"].contains(name)),
        "{when}: {named:?}"
    );
    let bitmaps: Vec<&str> = look
        .bitmaps()
        .map(|(_, bitmap)| bitmap.name.as_str())
        .collect();
    assert_eq!(bitmaps, Vec::<&str>::new(), "{when}");
    assert!(!guest.place.nbd().exists(), "{when}: an NBD server is left");
    assert_eq!(guest.place.noted().expect("notes"), Vec::<String>::new());
    assert_eq!(guest.place.marks().expect("marks"), Vec::new(), "{when}");
    let status = agent::ask(&guest.place.agent(), "guest-fsfreeze-status");
    assert_eq!(status.expect("the agent answers"), "thawed", "{when}");
}

#[test]
fn the_driver_for_qemu_keeps_the_contract_with_a_guest_that_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some((_started, guest)) = boot(folder.path()) else {
        return;
    };
    let observed = Steps::default();
    // Another product's: a copy before each write into its own overlay, as ours, under a name of its own.
    let make_foreign = || {
        let overlay = folder.path().join("theirs.qcow2");
        image::tool(
            "qemu-img",
            [
                "create".as_ref(),
                "-q".as_ref(),
                "-f".as_ref(),
                "qcow2".as_ref(),
                overlay.as_os_str(),
                "64M".as_ref(),
            ],
        );
        let monitor = Monitor::connect(&guest.place.observer(), &observed);
        let mut monitor = monitor.expect("a monitor").expect("QEMU runs");
        let node = json!({"driver": "qcow2", "node-name": "theirs", "backing": "disk0",
            "file": {"driver": "file", "filename": overlay}});
        monitor.change("blockdev-add", &node).expect("an overlay");
        let job = json!({"job-id": "theirs", "device": "disk0", "target": "theirs",
            "sync": "none"});
        monitor.change("blockdev-backup", &job).expect("a job");
    };
    let now = || guest.clock.now();
    let fixture = Fixture {
        driver: &guest,
        vm: vm(),
        absent: VmId::from_bytes([0x99; 16]),
        relocate: None,
        make_foreign: Some(&make_foreign),
        bytes: Bytes::Readable,
        now: &now,
    };
    let begin = Instant::now();
    let outcomes = run_all(&fixture);
    println!("the suite: {:?}", begin.elapsed());
    let others: Vec<_> = outcomes
        .iter()
        .filter(|(_, outcome)| *outcome != Outcome::Kept)
        .collect();
    let [("a checkpoint is followed to where its machine went", Outcome::Skipped(_))] =
        others.as_slice()
    else {
        panic!("{others:#?}");
    };
    // What is left is the other product's alone.
    let monitor = Monitor::connect(&guest.place.observer(), &observed);
    let mut monitor = monitor.expect("a monitor").expect("QEMU runs");
    monitor
        .change("block-job-cancel", &json!({"device": "theirs"}))
        .expect("their job ends");
    monitor
        .wait("their job does not end", |monitor| {
            Ok(parts::Look::take(monitor)?.jobs.is_empty())
        })
        .expect("their job ends");
    monitor
        .change("blockdev-del", &json!({"node-name": "theirs"}))
        .expect("their overlay goes");
    drop(monitor);
    assert_clean(&guest, "after the suite");
    let at = progress(&guest).expect("a number");
    wait_for(&guest, at + 2);
}
