//! `kill -9` at chosen calls: before, within and after each kind of call that changes a repository.
//!
//! The same code as `cargo xtask crash`, with few rounds in a small world (still more than 20 packs), and no blow left to chance:
//! the process stops itself at the call and is killed there. What holds after each kill is in `xtask/src/crash/round.rs`.

use xtask::crash::{Blows, CrashOptions, CrashReport, Moment, Operation, SceneSize, execute};

use super::kill::{chosen_seed, rounds};

/// Kills an operation at all moments of these calls; asserts that the blows fell there.
#[track_caller]
fn kill_at(operation: Operation, calls: &[&str]) -> CrashReport {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let targets: Vec<(String, Moment)> = calls
        .iter()
        .flat_map(|call| Moment::ALL.map(|moment| ((*call).to_owned(), moment)))
        .collect();
    let options = CrashOptions {
        binary: env!("CARGO_BIN_EXE_hikae").into(),
        folder: folder.path().to_owned(),
        rounds: rounds(u64::try_from(targets.len()).expect("few")),
        seed: chosen_seed(),
        size: SceneSize::SMALL,
        blows: Blows::At(targets),
    };
    let report = execute(operation, &options).unwrap_or_else(|error| panic!("{error:?}"));
    assert!(report.packs >= 20, "{report}");
    for call in calls {
        for moment in [Moment::Before, Moment::After] {
            assert!(
                report.coverage.was_hit(call, moment),
                "no kill {moment:?} {call}: {report}"
            );
        }
    }
    // How long a call takes is the machine's affair: not each can be promised to be met while it works.
    assert!(
        calls
            .iter()
            .any(|call| report.coverage.was_hit(call, Moment::Within)),
        "no kill within any call: {report}"
    );
    report
}

#[test]
fn a_backup_killed_at_any_put_commits_whole_or_not_at_all() {
    let report = kill_at(
        Operation::Backup,
        &[
            "put lease",
            "put data pack",
            "put node pack",
            "put index segment",
            "put point",
        ],
    );
    assert!(report.tally.committed > 0, "{report}");
}

#[test]
fn a_gc_killed_at_any_decision_or_deletion_keeps_every_point() {
    let calls = [
        "put condemned record",
        "put verdict",
        "delete node pack",
        "put node pack",
        "delete condemned record",
    ];
    kill_at(Operation::Gc, &calls);
}

#[test]
fn a_copy_killed_at_any_put_goes_on_where_it_was() {
    let calls = ["put data pack", "put index segment", "put point"];
    kill_at(Operation::Copy, &calls);
}

#[test]
fn a_repair_killed_at_any_put_or_deletion_can_be_repeated() {
    let calls = ["put data pack", "put condemned record", "delete data pack"];
    let report = kill_at(Operation::Repair, &calls);
    // That the damage hits a version is seen to when it is done. Whether one of the few that are looked at before
    // the repair is among those hit is a matter of the seed.
    assert!(report.tally.restored > 0, "nothing was compared: {report}");
}
