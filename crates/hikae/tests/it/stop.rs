//! Ctrl-C and SIGTERM: what runs stops soon, says so, leaves no lease behind, and the next run just works.

use rustix::process::Signal;

use super::disk::{self, Random};
use super::kill::{begin, moment, rounds, seeded};
use super::site::{Outcome, Repository, Site, os, text};

const MIB: u64 = 1 << 20;

/// Asserts that a run was done or was stopped as documented, and that nobody waits for it; whether it was stopped.
#[track_caller]
fn was_stopped(outcome: &Outcome, places: &[&Repository<'_>]) -> bool {
    assert!(!outcome.stderr.contains("panicked"), "{outcome:#?}");
    for place in places {
        let leases = place.files("leases");
        assert!(leases.is_empty(), "{leases:?} are left by {outcome:#?}");
    }
    match outcome.status.code() {
        Some(0) => false,
        Some(1) => {
            let problem = &outcome.json()["problem"];
            assert_eq!(problem["code"], "HK-3001", "{outcome:#?}");
            assert!(outcome.stderr.contains("stopping"), "{outcome:#?}");
            true
        }
        // A signal that comes before anybody listens ends the process as it always did.
        None => false,
        Some(_) => panic!("{outcome:#?}"),
    }
}

#[test]
fn what_is_told_to_stop_leaves_no_lease_and_is_simply_run_again() {
    let mut random = seeded();
    let site = Site::new();
    let (repository, image, ledger, _) = begin(&site, &mut random);
    let target = site.init("target");
    let mut copy = repository.repo_arguments("copy", &[]);
    copy.extend([os("--to"), target.place.clone(), os("--to-key-file")]);
    copy.push(target.key_file.clone().into());

    let mut stopped = 0;
    for (verb, arguments) in [
        ("verify", repository.repo_arguments("verify", &[])),
        (
            "gc",
            repository.repo_arguments("gc", &["--repack-below", "100"]),
        ),
        ("copy", copy.clone()),
        ("repair", repository.repo_arguments("repair", &[])),
    ] {
        let typical = match verb {
            // Once copied there is nothing to copy.
            "copy" => repository.repo("verify", &[]).expect(0).took.mul_f64(3.0),
            _ => site.run(arguments.clone()).expect(0).took,
        };
        for round in 0..rounds(5) {
            if verb == "gc" {
                disk::change(&image, 60, &mut random);
                let made = repository.back_up(&image, "scratch");
                let version = format!("scratch@{}", made["version"]);
                repository.disk("forget", &[&version]).expect(0);
            }
            let running = site.start(arguments.clone());
            let signal = [Signal::INT, Signal::TERM][usize::from(round % 2 == 1)];
            if !running.ends_within(moment(typical, &mut random)) {
                running.signal(signal);
            }
            let outcome = running.wait();
            stopped += u64::from(was_stopped(&outcome, &[&repository, &target]));
        }
        site.run(arguments).expect(0);
        repository.repo("verify", &[]).expect(0);
    }
    assert!(rounds(5) < 5 || stopped > 0, "nothing was ever stopped");
    ledger.check_all(&repository);
    target.repo("verify", &[]).expect(0);
    assert_eq!(target.versions("vm").len(), ledger.known.len());
}

#[test]
fn a_verification_in_full_swing_is_stopped_within_a_moment() {
    let site = Site::new();
    let repository = site.init("repository");
    let mut random = Random::new(31);
    let image = site.path("disk.raw");
    disk::create(&image, 256 * MIB, 200 * MIB, &mut random);
    site.run(repository.disk_arguments("backup", &[text(&image), "--name", "vm"]))
        .expect(0);
    let running = site.start(repository.repo_arguments("verify", &[]));
    running.wait_until("it holds a lease", || {
        !repository.files("leases").is_empty()
    });
    running.signal(Signal::INT);
    let outcome = running.wait();
    assert!(was_stopped(&outcome, &[&repository]), "{outcome:#?}");
}
