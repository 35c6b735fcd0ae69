//! The custodian: after a death at any moment, what is ours goes and what is not stays.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use host::boundary::{Checkpoints, Definition, Power, StopMode};
use host::checkpoint::CheckpointRequest;
use host::consistency::{Consistency, ConsistencyPolicy};
use host::custody::{
    Closing, Custodian, CustodianOptions, CustodyLog, HeldKind, MachineMark, MemoryLog, SweepReport,
};
use host::ids::{JobId, OwnerId, TrackingPointRef};
use host::{CancelToken, Clock};

use super::fake::{Act, BEGIN, texts, vm};
use super::fake_definition::planned;
use super::recovery::{Scene, crash, scene};

const RECOVERY: &str = "Microsoft:Hyper-V:Snapshot:Recovery";

fn sweep_with(
    scene: &Scene,
    log: &Arc<MemoryLog>,
    is_alive: &dyn Fn(JobId) -> bool,
    is_committed: &dyn Fn(&TrackingPointRef) -> bool,
) -> SweepReport {
    let options = CustodianOptions {
        owner: OwnerId::new("server-1").expect("a name"),
        now: scene.estate.clock.now(),
        is_alive,
        is_committed,
        settling: Duration::from_secs(60),
        window: Duration::from_secs(1800),
    };
    let log = Arc::clone(log) as Arc<dyn CustodyLog>;
    Custodian::new(&scene.driver, log, options)
        .sweep(&CancelToken::new())
        .expect("a round")
}

fn sweep(scene: &Scene) -> SweepReport {
    sweep_with(scene, &scene.log, &|_| false, &|_| false)
}

fn open(scene: &Scene) -> usize {
    scene.log.open_entries().expect("entries").len()
}

fn announce(scene: &Scene, kind: HeldKind, before: &[String]) {
    let node = scene.estate.nodes[0].name.clone();
    scene
        .custody
        .intend(
            kind,
            vm(1),
            &node,
            scene.estate.clock.now(),
            before.to_vec(),
        )
        .expect("written");
}

#[test]
fn a_checkpoint_that_the_journal_knows_is_released_wherever_the_machine_is() {
    let scene = scene();
    scene.create(crash()).expect("a checkpoint");
    scene.estate.migrate(vm(1), 0, 1);
    let report = sweep(&scene);
    assert_eq!(report.done.len(), 1);
    assert_eq!(
        (report.done[0].kind, report.done[0].closing),
        (HeldKind::Checkpoint, Closing::Removed)
    );
    assert_eq!(scene.estate.nodes[1].checkpoints(vm(1)), []);
    assert_eq!(open(&scene), 0);
    assert_eq!(sweep(&scene), SweepReport::default());
}

#[test]
fn what_a_living_job_holds_is_left_alone() {
    let scene = scene();
    scene.create(crash()).expect("a checkpoint");
    let report = sweep_with(&scene, &scene.log, &|_| true, &|_| false);
    assert!(report.done.is_empty() && report.foreign.is_empty());
    assert_eq!(scene.estate.nodes[0].checkpoints(vm(1)).len(), 1);
}

#[test]
fn the_sole_candidate_is_adopted() {
    let scene = scene();
    let there = scene.estate.nodes[0].add_foreign(vm(1), "theirs", RECOVERY, BEGIN - 1000);
    announce(&scene, HeldKind::Checkpoint, std::slice::from_ref(&there));
    let unnamed = scene.estate.nodes[0].add_foreign(vm(1), "sql01 - (x)", RECOVERY, BEGIN + 1000);
    let report = sweep(&scene);
    assert_eq!(report.done[0].id.as_deref(), Some(unnamed.as_str()));
    let left: Vec<String> = scene.estate.nodes[0]
        .checkpoints(vm(1))
        .into_iter()
        .map(|it| it.0)
        .collect();
    assert_eq!(left, [there]);
    assert_eq!(report.foreign.len(), 1);
    assert!(report.foreign[0].command.contains(left[0].as_str()));
    assert_eq!(
        report.foreign[0].age.expect("an age"),
        Duration::from_secs(1)
    );
    assert_eq!(
        report.foreign[0].size_bytes,
        Some(8 << 20),
        "two disks of four MiB each"
    );
}

#[test]
fn of_several_candidates_none_is_touched_and_the_commands_are_told() {
    let scene = scene();
    announce(&scene, HeldKind::Checkpoint, &[]);
    scene.estate.nodes[0].add_foreign(vm(1), "one", RECOVERY, BEGIN + 1000);
    scene.estate.nodes[0].add_foreign(vm(1), "two", RECOVERY, BEGIN + 2000);
    let report = sweep(&scene);
    assert_eq!(report.alerts.len(), 1);
    assert_eq!(report.alerts[0].commands.len(), 2);
    assert_eq!(scene.estate.nodes[0].checkpoints(vm(1)).len(), 2);
    assert_eq!(open(&scene), 1);
}

#[test]
fn what_carries_another_mark_or_a_time_that_does_not_fit_is_no_candidate() {
    let scene = scene();
    announce(&scene, HeldKind::Checkpoint, &[]);
    let mark = "hikae:09090909-0909-0909-0909-090909090909@server-2";
    scene.estate.nodes[0].add_foreign(vm(1), mark, RECOVERY, BEGIN + 1000);
    scene.estate.nodes[0].add_foreign(vm(1), "old", RECOVERY, BEGIN - 100_000_000);
    scene.estate.clock.advance(Duration::from_secs(61));
    let report = sweep(&scene);
    assert_eq!(report.done[0].closing, Closing::NeverMade);
    assert_eq!(report.foreign.len(), 2);
    assert_eq!(scene.estate.nodes[0].checkpoints(vm(1)).len(), 2);
    assert_eq!(open(&scene), 0);
}

#[test]
fn what_the_host_may_still_be_making_is_waited_for() {
    let scene = scene();
    announce(&scene, HeldKind::Checkpoint, &[]);
    let report = sweep(&scene);
    assert_eq!(
        report.waiting.len(),
        1,
        "too early to say that it never came"
    );
    let creating = texts(&["2", "32768"]);
    scene.estate.nodes[0]
        .lock()
        .system(vm(1))
        .set("OperationalStatus", creating);
    scene.estate.clock.advance(Duration::from_secs(3600));
    assert_eq!(
        sweep(&scene).waiting.len(),
        1,
        "the host says that it is at it"
    );
    scene.estate.nodes[0]
        .lock()
        .system(vm(1))
        .set("OperationalStatus", texts(&["2"]));
    assert_eq!(sweep(&scene).done[0].closing, Closing::NeverMade);
}

#[test]
fn the_mark_alone_does_when_the_journal_is_lost() {
    let scene = scene();
    scene.create(crash()).expect("a checkpoint");
    let empty = Arc::new(MemoryLog::default());
    let report = sweep_with(&scene, &empty, &|_| false, &|_| false);
    assert_eq!(report.done.len(), 1);
    assert_eq!(scene.estate.nodes[0].checkpoints(vm(1)), []);
}

#[test]
fn a_machine_that_was_saved_runs_again_by_journal_or_by_mark() {
    for keeps_journal in [true, false] {
        let scene = scene();
        announce(&scene, HeldKind::SavedState, &[]);
        let mark = MachineMark {
            kind: HeldKind::SavedState,
            mark: scene.custody.mark().clone(),
            id: None,
        };
        let item = super::fake::item(&mark.item_name(), &mark.item_text());
        let id = format!("Microsoft:{}\\2A34B1C2-FD73-4043-8A5B-DD2159BC743F", vm(1));
        scene.estate.nodes[0]
            .lock()
            .find("Msvm_KvpExchangeComponentSettingData", &id)
            .expect("settings")
            .set("HostOnlyItems", texts(&[&item]));
        scene
            .driver
            .stop(vm(1), StopMode::Save, &CancelToken::new())
            .expect("saved");
        assert_eq!(scene.estate.nodes[0].state(vm(1)), "6");
        let log = if keeps_journal {
            Arc::clone(&scene.log)
        } else {
            Arc::new(MemoryLog::default())
        };
        let report = sweep_with(&scene, &log, &|_| false, &|_| false);
        assert_eq!(report.done[0].kind, HeldKind::SavedState);
        assert_eq!(scene.estate.nodes[0].state(vm(1)), "2");
        assert_eq!(scene.estate.nodes[0].host_items(), 0);
    }
}

#[test]
fn a_machine_that_somebody_saved_stays_saved() {
    let scene = scene();
    scene
        .driver
        .stop(vm(1), StopMode::Save, &CancelToken::new())
        .expect("saved");
    sweep(&scene);
    assert_eq!(scene.estate.nodes[0].state(vm(1)), "6");
}

#[test]
fn a_tracking_point_goes_unless_a_committed_version_needs_it() {
    for is_committed in [true, false] {
        let scene = scene();
        let calm = CancelToken::new();
        let made = scene.create(crash()).expect("a checkpoint");
        scene
            .driver
            .settle(&made, &scene.custody, &calm)
            .expect("settled");
        let report = sweep_with(&scene, &scene.log, &|_| false, &|_| is_committed);
        let closing = if is_committed {
            Closing::Kept
        } else {
            Closing::Removed
        };
        assert_eq!(report.done[0].closing, closing);
        assert_eq!(
            scene.estate.nodes[0].points(vm(1)).len(),
            usize::from(is_committed)
        );
        assert_eq!(open(&scene), 0);
    }
}

#[test]
fn a_tracking_point_is_found_by_its_mark_when_the_journal_is_lost() {
    let scene = scene();
    let made = scene.create(crash()).expect("a checkpoint");
    scene
        .driver
        .settle(&made, &scene.custody, &CancelToken::new())
        .expect("settled");
    let empty = Arc::new(MemoryLog::default());
    let report = sweep_with(&scene, &empty, &|_| false, &|_| false);
    assert_eq!(report.done[0].kind, HeldKind::TrackingPoint);
    assert!(report.foreign_tracking.is_empty());
    assert_eq!(scene.estate.nodes[0].points(vm(1)), Vec::<String>::new());
    assert_eq!(scene.estate.nodes[0].host_items(), 0);
}

#[test]
fn a_silent_node_keeps_the_entry_open_and_the_neighbours_are_done() {
    let scene = scene();
    scene.estate.nodes[1].add_vm(vm(2), "web01", &["D:\\w.vhdx"]);
    scene.create(crash()).expect("a checkpoint");
    let request = CheckpointRequest {
        policy: ConsistencyPolicy::only(Consistency::Crash),
        ..CheckpointRequest::new(vm(2))
    };
    scene
        .driver
        .create(&request, &scene.custody, &CancelToken::new())
        .expect("a checkpoint");
    scene.estate.nodes[0].down.store(true, Ordering::SeqCst);
    let report = sweep(&scene);
    assert_eq!((report.done.len(), report.waiting.len()), (1, 1));
    assert_eq!(report.done[0].vm, vm(2));
    assert_eq!(open(&scene), 1);
    scene.estate.nodes[0].down.store(false, Ordering::SeqCst);
    assert_eq!(sweep(&scene).done.len(), 1);
    assert_eq!(open(&scene), 0);
}

#[test]
fn with_its_machine_everything_on_it_is_gone() {
    let scene = scene();
    scene.create(crash()).expect("a checkpoint");
    super::fake::remove_machine(&mut scene.estate.nodes[0].lock(), &vm(1).to_string());
    let report = sweep(&scene);
    assert_eq!(report.done[0].closing, Closing::Gone);
    assert_eq!(open(&scene), 0);
}

#[test]
fn half_a_machine_of_a_dead_import_is_taken_away() {
    let scene = scene();
    announce(&scene, HeldKind::PlannedMachine, &[vm(8).to_string()]);
    {
        let mut rows = scene.estate.nodes[0].lock();
        planned(&mut rows, &vm(8).to_string(), "somebody's");
        planned(&mut rows, &vm(9).to_string(), "ours");
    }
    let report = sweep(&scene);
    assert_eq!(report.done[0].closing, Closing::Removed);
    let node = scene.estate.nodes[0].name.clone();
    let left = scene
        .driver
        .planned(&node, &CancelToken::new())
        .expect("planned machines");
    assert_eq!(left, [vm(8)]);
}

/// Deaths at every call of a backup: the host did it or did not, and nobody heard.
#[test]
fn after_a_death_at_any_call_one_later_round_leaves_nothing() {
    let methods = [
        "CreateSnapshot",
        "ModifySystemSettings",
        "ConvertToReferencePoint",
        "AddKvpItems",
        "DestroySnapshot",
    ];
    for method in methods {
        for with_effect in [true, false] {
            let scene = scene();
            let calm = CancelToken::new();
            scene.estate.nodes[0].act(method, Act::Cut { with_effect });
            if let Ok(made) = scene.create(crash()) {
                if method == "DestroySnapshot" {
                    let _ = scene.driver.release(&made.reference, &scene.custody, &calm);
                } else {
                    let _ = scene.driver.settle(&made, &scene.custody, &calm);
                }
            }
            scene.estate.clock.advance(Duration::from_secs(61));
            sweep(&scene);
            let name = format!("{method}, with effect: {with_effect}");
            assert_eq!(scene.estate.nodes[0].checkpoints(vm(1)), [], "{name}");
            assert_eq!(
                scene.estate.nodes[0].points(vm(1)),
                Vec::<String>::new(),
                "{name}"
            );
            assert_eq!(open(&scene), 0, "{name}");
        }
    }
}
