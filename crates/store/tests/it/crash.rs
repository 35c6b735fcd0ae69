//! Processes that are killed while they put: what is there afterwards, and what is swept away.
//!
//! A kill shows that names and bytes come together. It does not show that they outlive a power cut: that rests on the
//! order of syncs in the driver, which a test without a power switch cannot see.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use store::directory::{DirectoryStore, SweepReport};
use store::{ObjectName, Prefix, Store, list_all};

use crate::name;

/// Where the child works. When it is set, the test is the child.
const PLACE: &str = "HIKAE_STORE_CRASH_PLACE";
const ROUND: &str = "HIKAE_STORE_CRASH_ROUND";
const ROUNDS: u64 = 200;

/// The one body that an object of this name can have.
fn body_of(name: &ObjectName) -> Vec<u8> {
    let seed = name
        .as_str()
        .bytes()
        .fold(7u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
    let length = usize::try_from(1 + seed % 600_000).expect("small");
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695);
            (state >> 33).to_le_bytes()[0]
        })
        .collect()
}

fn put_for_ever(place: &Path, round: &str) -> ! {
    let store = DirectoryStore::open(place).expect("open");
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let store = &store;
            scope.spawn(move || {
                for n in 0u64.. {
                    let name = name(&format!("r{round}/d{}/t{thread}-{n}", n % 3));
                    store.put_new(&name, &body_of(&name)).expect("put");
                    let mut out = std::io::stdout().lock();
                    // The parent closes the pipe when it has killed us.
                    if writeln!(out, "PUT {name} END")
                        .and_then(|()| out.flush())
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    std::process::exit(0)
}

#[test]
fn a_killed_writer_leaves_only_whole_objects() {
    if let (Some(place), Ok(round)) = (std::env::var_os(PLACE), std::env::var(ROUND)) {
        put_for_ever(Path::new(&place), &round);
    }
    let place = tempfile::tempdir().expect("temporary directory");
    let mut swept = SweepReport::default();
    let mut seen = 0;
    for round in 0..ROUNDS {
        let root = place.path().join(format!("{}", round % 4));
        let store = DirectoryStore::create(&root).expect("create");
        let answered = run_and_kill(&root, round);
        for name in &answered {
            assert_eq!(
                store.get(name).expect("a put that was answered"),
                body_of(name),
                "{name}"
            );
        }
        let prefix = Prefix::new(format!("r{round}")).expect("valid");
        let mut found = 0;
        for entry in list_all(&store, &prefix) {
            let entry = entry.expect("entry");
            let body = store.get(&entry.name).expect("listed");
            assert!(
                body == body_of(&entry.name),
                "round {round}: {} is torn",
                entry.name
            );
            found += 1;
        }
        assert!(
            found >= answered.len(),
            "round {round}: {found} of {}",
            answered.len()
        );
        let report = store.sweep_leftovers().expect("sweep");
        assert_eq!(
            (report.in_use, report.unclear, report.foreign),
            (0, 0, 0),
            "round {round}"
        );
        assert_eq!(
            std::fs::read_dir(root.join(".tmp")).expect("tmp").count(),
            0
        );
        swept.removed += report.removed;
        seen += found;
    }
    assert!(
        seen > 100,
        "only {seen} objects in all: the writers hardly wrote"
    );
    assert!(swept.removed > 50, "only {} kills hit a put", swept.removed);
}

/// Runs a writer, reads some of its answers, and kills it; the puts that were answered before.
fn run_and_kill(root: &Path, round: u64) -> Vec<ObjectName> {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "crash::a_killed_writer_leaves_only_whole_objects",
            "--nocapture",
        ])
        .env(PLACE, root)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start a writer");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let wanted = usize::try_from(round % 5).expect("small");
    let mut answered: Vec<ObjectName> = Vec::new();
    while answered.len() <= wanted {
        let line = lines.next().expect("a writer that writes").expect("a line");
        answered.extend(answer_in(&line));
    }
    // Another moment of the next put in each round.
    let mut spin = (round * 7_919) % 4_001 * 200;
    while std::hint::black_box(spin) > 0 {
        spin -= 1;
    }
    child.kill().expect("kill");
    for line in lines {
        answered.extend(answer_in(&line.expect("a line")));
    }
    child.wait().expect("dead");
    answered
}

/// The name in a line of a writer's; the last line may be cut by the kill, before its end mark.
fn answer_in(line: &str) -> Option<ObjectName> {
    let (_, text) = line.split_once("PUT ")?;
    Some(name(text.strip_suffix(" END")?))
}

#[test]
fn leftovers_are_swept_when_nobody_holds_them() {
    let place = tempfile::tempdir().expect("temporary directory");
    let store = DirectoryStore::create(place.path()).expect("create");
    store.put_new(&name("a"), b"x").expect("put");
    let tmp = place.path().join(".tmp");
    let (dead, living) = (
        format!("{}-4000000-1", "0".repeat(32)),
        format!("{}-1-2", "a".repeat(32)),
    );
    std::fs::write(tmp.join(&dead), b"half").expect("write");
    std::fs::write(tmp.join("stranger"), b"?").expect("write");
    let held = File::create(tmp.join(&living)).expect("create");
    held.lock().expect("lock");

    let report = store.sweep_leftovers().expect("sweep");
    assert_eq!(
        report,
        SweepReport {
            removed: 1,
            in_use: 1,
            unclear: 0,
            foreign: 1
        }
    );
    assert!(!tmp.join(&dead).exists());
    assert!(tmp.join("stranger").exists());

    drop(held);
    // A new handle sweeps at its first put, without being asked.
    let again = DirectoryStore::open(place.path()).expect("open");
    assert!(tmp.join(&living).exists(), "opening changes nothing");
    again.put_new(&name("b"), b"x").expect("put");
    assert!(!tmp.join(&living).exists());
}

#[test]
fn a_put_outlives_the_removal_of_its_directories() {
    let place = tempfile::tempdir().expect("temporary directory");
    let store = DirectoryStore::create(place.path()).expect("create");
    store.put_new(&name("d/e/a"), b"1").expect("put");
    std::fs::remove_dir_all(place.path().join("d")).expect("remove");
    std::fs::remove_dir_all(place.path().join(".tmp")).expect("remove");
    store.put_new(&name("d/e/b"), b"2").expect("put");
    assert_eq!(store.get(&name("d/e/b")).expect("get"), b"2");
}
