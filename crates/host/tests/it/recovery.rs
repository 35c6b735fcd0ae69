//! Checkpoints for backups: made, marked, settled, released, under every fault that a call can meet.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use host::boundary::{Checkpoints, Inventory};
use host::checkpoint::{Changes, Checkpoint, CheckpointRequest, MergeState, Presence, WarningCode};
use host::consistency::{Consistency, ConsistencyPolicy, GuestBackupType};
use host::custody::{Custody, CustodyLog, HeldKind, MemoryLog};
use host::hyperv::HyperV;
use host::ids::{CheckpointId, CheckpointRef, JobId, OwnerId};
use host::{CancelToken, ErrorKind};

use super::fake::{Act, FakeEstate, texts, vm};
use super::fake_definition::{add_cluster, add_role};

pub fn custody(log: &Arc<MemoryLog>, job: u8) -> Custody {
    let owner = OwnerId::new("server-1").expect("a name");
    Custody::new(
        Arc::clone(log) as Arc<dyn CustodyLog>,
        owner,
        JobId::from_bytes([job; 16]),
    )
}

pub struct Scene {
    pub estate: FakeEstate,
    pub driver: HyperV,
    pub log: Arc<MemoryLog>,
    pub custody: Custody,
}

pub fn scene() -> Scene {
    let estate = FakeEstate::new(&["hv01", "hv02"]);
    estate.nodes[0].add_vm(vm(1), "sql01", &["D:\\vm\\a.vhdx", "D:\\vm\\data\\bb.vhdx"]);
    let driver = estate.driver();
    let log = Arc::new(MemoryLog::default());
    let custody = custody(&log, 7);
    Scene {
        estate,
        driver,
        log,
        custody,
    }
}

impl Scene {
    pub fn create(&self, policy: ConsistencyPolicy) -> host::Result<Checkpoint> {
        let mut request = CheckpointRequest::new(vm(1));
        request.policy = policy;
        self.driver
            .create(&request, &self.custody, &CancelToken::new())
    }

    fn open_entries(&self) -> usize {
        self.log.open_entries().expect("entries").len()
    }

    fn assert_clean(&self) {
        for node in &self.estate.nodes {
            assert_eq!(node.checkpoints(vm(1)), Vec::<(String, String)>::new());
        }
        assert_eq!(self.open_entries(), 0);
    }
}

pub fn crash() -> ConsistencyPolicy {
    ConsistencyPolicy::only(Consistency::Crash)
}

fn codes(made: &Checkpoint) -> Vec<WarningCode> {
    made.warnings.iter().map(|it| it.code).collect()
}

#[test]
fn a_checkpoint_is_application_consistent_and_carries_the_mark() {
    let scene = scene();
    let made = scene
        .create(ConsistencyPolicy::default())
        .expect("a checkpoint");
    assert_eq!(made.reached, Consistency::Application);
    assert!(made.missed.is_empty());
    let (id, name) = scene.estate.nodes[0].checkpoints(vm(1)).remove(0);
    assert_eq!(id, made.reference.checkpoint.as_str());
    assert_eq!(name, "hikae:07070707-0707-0707-0707-070707070707@server-1");
    let paths: Vec<&str> = made.disks.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, ["D:\\vm\\a.vhdx", "D:\\vm\\data\\bb.vhdx"]);
    assert_eq!(made.disks[0].size_bytes, Some(40 << 30));
    assert!(made.disks[0].identity.is_some());
    assert_ne!(made.disks[0].device, made.disks[1].device);
    assert!(made.still.frozen_at_most_ms.is_some());
    assert!(!codes(&made).contains(&WarningCode::LongFreeze));
    let released = scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("released");
    assert_eq!(
        (released.was, released.merge),
        (Presence::Removed, MergeState::Done)
    );
    scene.assert_clean();
}

#[test]
fn what_the_guest_cannot_is_passed_over_by_the_policy_alone() {
    let scene = scene();
    scene.estate.nodes[0].make_linux(vm(1));
    let made = scene
        .create(ConsistencyPolicy::default())
        .expect("a checkpoint");
    assert_eq!(made.reached, Consistency::FileSystem);
    assert_eq!(made.missed[0].wanted, Consistency::Application);
    assert!(codes(&made).contains(&WarningCode::LessConsistent));
    scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("released");
    let error = scene
        .create(ConsistencyPolicy::only(Consistency::Application))
        .expect_err("not reached");
    assert_eq!(error.kind(), ErrorKind::Consistency);
    assert_eq!(scene.estate.nodes[0].calls("CreateSnapshot"), 1);
    scene.assert_clean();
}

#[test]
fn a_writer_that_fails_makes_it_crash_consistent_when_allowed() {
    let scene = scene();
    scene.estate.nodes[0].act("CreateSnapshot", Act::Exception(32_768));
    scene.estate.nodes[0].act("CreateSnapshot", Act::Return(32_768));
    let made = scene
        .create(ConsistencyPolicy::default())
        .expect("a checkpoint");
    assert_eq!(made.reached, Consistency::Crash);
    assert_eq!(made.missed.len(), 2);
    assert_eq!(made.missed[0].code, Some(32_768));
    assert!(
        made.missed[0].reason.contains("チェックポイント"),
        "{}",
        made.missed[0].reason
    );
    scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("released");
    scene.assert_clean();
}

#[test]
fn the_backup_type_is_a_copy_and_is_left_out_where_windows_does_not_know_it() {
    for (build, knows) in [(17_763, true), (14_393, false)] {
        let estate = FakeEstate::new(&["hv01"]);
        estate.nodes[0].add_vm(vm(1), "x", &["D:\\a.vhdx"]);
        estate.nodes[0].set_build(build);
        let driver = estate.driver();
        let log = Arc::new(MemoryLog::default());
        let mut request = CheckpointRequest::new(vm(1));
        request.backup_type = GuestBackupType::Full;
        let made = driver
            .create(&request, &custody(&log, 1), &CancelToken::new())
            .expect("a checkpoint");
        let is_told = made.warnings.iter().any(|it| it.text.contains("full one"));
        assert_eq!(is_told, !knows, "build {build}");
    }
}

#[test]
fn a_job_that_vanished_is_judged_by_its_effect() {
    let scene = scene();
    scene.estate.nodes[0].act("CreateSnapshot", Act::Vanish { with_effect: true });
    let made = scene.create(crash()).expect("found by its effect");
    scene.estate.nodes[0].act("DestroySnapshot", Act::Vanish { with_effect: true });
    scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("released");
    scene.assert_clean();
    scene.estate.nodes[0].act("CreateSnapshot", Act::Vanish { with_effect: false });
    let error = scene.create(crash()).expect_err("no effect");
    assert_eq!(error.kind(), ErrorKind::Protocol);
    // Nobody knows whether it still comes: the custodian looks again.
    assert_eq!(scene.open_entries(), 1);
}

#[test]
fn a_line_cut_after_the_host_made_it_leaves_nothing() {
    let scene = scene();
    scene.estate.nodes[0].act("CreateSnapshot", Act::Cut { with_effect: true });
    let error = scene.create(crash()).expect_err("cut");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    scene.assert_clean();
    scene.estate.nodes[0].act("CreateSnapshot", Act::Cut { with_effect: false });
    scene.create(crash()).expect_err("cut");
    assert_eq!(scene.open_entries(), 1, "nobody knows whether it was made");
}

#[test]
fn two_new_checkpoints_are_one_too_many_to_choose_from() {
    let scene = scene();
    scene.estate.nodes[0].act("CreateSnapshot", Act::Vanish { with_effect: true });
    // The other product's comes between our look before and our look after.
    scene.estate.nodes[0].add_foreign(vm(1), "theirs", "Microsoft:Hyper-V:Snapshot:Recovery", 1);
    let made = scene.create(crash()).expect("the one before is not ours");
    assert_ne!(
        made.reference.checkpoint.as_str(),
        scene.estate.nodes[0].checkpoints(vm(1))[0].0
    );
    assert!(codes(&made).contains(&WarningCode::Foreign));
}

#[test]
fn a_job_that_hangs_ends_in_bounded_time() {
    let scene = scene();
    scene.estate.nodes[0].act("CreateSnapshot", Act::Hang);
    let error = scene.create(crash()).expect_err("hangs");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(scene.open_entries(), 1);
    let calls = scene.estate.nodes[0].calls("RequestStateChange");
    assert_eq!(calls, 1, "the job was asked to end");
}

#[test]
fn a_busy_machine_is_waited_for_and_then_left() {
    let scene = scene();
    let busy = texts(&["2", "32772"]);
    scene.estate.nodes[0]
        .lock()
        .system(vm(1))
        .set("OperationalStatus", busy);
    let error = scene.create(crash()).expect_err("busy for ever");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("merging"), "{error}");
    assert_eq!(scene.estate.nodes[0].calls("CreateSnapshot"), 0);
    scene.assert_clean();
}

#[test]
fn a_name_that_cannot_be_given_is_a_warning_and_the_journal_is_enough() {
    let scene = scene();
    scene.estate.nodes[0]
        .refuse_marks
        .store(true, Ordering::SeqCst);
    let made = scene.create(crash()).expect("a checkpoint");
    assert!(codes(&made).contains(&WarningCode::Unmarked));
    scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("ours by the journal");
    scene.assert_clean();
}

#[test]
fn what_is_not_known_to_be_ours_is_not_destroyed() {
    let scene = scene();
    let id = scene.estate.nodes[0].add_foreign(
        vm(1),
        "theirs",
        "Microsoft:Hyper-V:Snapshot:Recovery",
        1,
    );
    let reference = CheckpointRef {
        vm: vm(1),
        checkpoint: CheckpointId::new(id).expect("an id"),
    };
    let error = scene
        .driver
        .release(&reference, &scene.custody, &CancelToken::new())
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(scene.estate.nodes[0].calls("DestroySnapshot"), 0);
}

#[test]
fn merging_that_was_switched_off_is_on_before_ours_is_destroyed() {
    let scene = scene();
    let made = scene.create(crash()).expect("a checkpoint");
    let id = format!("Microsoft:{}\\DeviceSpecificData", vm(1));
    scene.estate.nodes[0]
        .lock()
        .find("Msvm_DiskMergeSettingData", &id)
        .expect("settings")
        .set("EnabledState", "0");
    let released = scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("released");
    assert_eq!(released.warnings[0].code, WarningCode::MergeSuspended);
    let rows = scene.estate.nodes[0].lock().calls.clone();
    let at = |method: &str| rows.iter().position(|it| it == method).expect("called");
    assert!(at("ModifyDiskMergeSettings") < at("DestroySnapshot"));
}

#[test]
fn a_release_waits_for_a_host_that_is_busy() {
    let scene = scene();
    let made = scene.create(crash()).expect("a checkpoint");
    scene.estate.nodes[0].act("DestroySnapshot", Act::Exception(32_775));
    scene.estate.nodes[0].act("DestroySnapshot", Act::Return(32_774));
    scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("released");
    assert_eq!(scene.estate.nodes[0].calls("DestroySnapshot"), 3);
    scene.assert_clean();
}

#[test]
fn where_checkpoints_are_not_destroyed_they_become_points_that_are() {
    let scene = scene();
    let made = scene.create(crash()).expect("a checkpoint");
    for _ in 0..3 {
        scene.estate.nodes[0].act("DestroySnapshot", Act::Return(32_775));
    }
    let released = scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("released");
    assert_eq!(released.was, Presence::Removed);
    assert_eq!(scene.estate.nodes[0].calls("ConvertToReferencePoint"), 1);
    assert_eq!(scene.estate.nodes[0].points(vm(1)), Vec::<String>::new());
    scene.assert_clean();
}

#[test]
fn a_machine_that_moved_is_released_where_it_is() {
    let scene = scene();
    let made = scene.create(crash()).expect("a checkpoint");
    scene.estate.migrate(vm(1), 0, 1);
    let opened = scene
        .driver
        .open(&made.reference, &CancelToken::new())
        .expect("followed");
    assert_eq!(opened.node.as_str(), "hv02");
    assert_eq!(opened.disks, made.disks);
    scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("released");
    scene.assert_clean();
    assert_eq!(scene.estate.nodes[0].calls("DestroySnapshot"), 0);
}

#[test]
fn settling_gives_a_token_for_each_disk_and_one_point_is_left_at_rest() {
    let scene = scene();
    let calm = CancelToken::new();
    let made = scene.create(crash()).expect("a checkpoint");
    let settled = scene
        .driver
        .settle(&made, &scene.custody, &calm)
        .expect("settled");
    let point = settled.point.clone().expect("a point");
    assert_eq!(settled.tokens.len(), 2);
    assert_eq!(scene.estate.nodes[0].checkpoints(vm(1)), []);
    let entries = scene.log.open_entries().expect("entries");
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].intent.kind, HeldKind::TrackingPoint);
    assert_eq!(
        scene.estate.nodes[0].host_items(),
        1,
        "the second place of custody"
    );
    scene
        .driver
        .keep_tracking(&point, &scene.custody)
        .expect("kept");
    assert_eq!(scene.open_entries(), 0);
    assert_eq!(scene.estate.nodes[0].host_items(), 0);

    scene.estate.nodes[0].lock().changes = vec![(65_536, 4096), (30 << 30, 1)];
    let next = scene.create(crash()).expect("a checkpoint");
    let (device, token) = &settled.tokens[0];
    let disk = next
        .disks
        .iter()
        .find(|it| it.device == *device)
        .expect("the disk");
    let changes = scene
        .driver
        .changed_ranges(&next.reference, disk, token, &calm)
        .expect("changes");
    let Changes::Known(ranges) = changes else {
        panic!("{changes:?}")
    };
    assert_eq!(ranges.total_bytes(), 4097);
    let second = scene
        .driver
        .settle(&next, &scene.custody, &calm)
        .expect("settled");
    assert_eq!(scene.estate.nodes[0].points(vm(1)).len(), 2);
    scene
        .driver
        .drop_tracking(&point, &scene.custody, &calm)
        .expect("dropped");
    assert_eq!(
        scene.estate.nodes[0].points(vm(1)),
        [second.point.expect("a point").point.to_string()]
    );
}

#[test]
fn a_conversion_that_fails_leaves_the_checkpoint_and_no_entry_of_a_point() {
    let scene = scene();
    let calm = CancelToken::new();
    let made = scene.create(crash()).expect("a checkpoint");
    scene.estate.nodes[0].act("ConvertToReferencePoint", Act::Exception(32_768));
    scene
        .driver
        .settle(&made, &scene.custody, &calm)
        .expect_err("failed");
    let kinds: Vec<HeldKind> = scene
        .log
        .open_entries()
        .expect("entries")
        .iter()
        .map(|it| it.intent.kind)
        .collect();
    assert_eq!(kinds, [HeldKind::Checkpoint]);
    scene
        .driver
        .release(&made.reference, &scene.custody, &calm)
        .expect("released");
    scene.assert_clean();
}

#[test]
fn lists_of_a_point_that_do_not_pair_give_no_tokens() {
    let scene = scene();
    let calm = CancelToken::new();
    let made = scene.create(crash()).expect("a checkpoint");
    scene.estate.nodes[0].act("ConvertToReferencePoint", Act::Vanish { with_effect: true });
    let settled = scene
        .driver
        .settle(&made, &scene.custody, &calm)
        .expect("settled");
    assert_eq!(
        settled.tokens.len(),
        2,
        "a job that vanished is judged by its effect"
    );
    let point = settled.point.expect("a point");
    let id = point.point.to_string();
    let machine = scene.driver.machine(vm(1), &calm).expect("a machine");
    assert_eq!(machine.tracking_points[0].id, point.point);
    assert_eq!(machine.tracking_points[0].disk_count, 2);
    assert_eq!(scene.estate.nodes[0].points(vm(1)), [id]);
}

#[test]
fn an_old_configuration_is_released_and_not_converted() {
    let scene = scene();
    let id = format!("Microsoft:{}", vm(1));
    scene.estate.nodes[0]
        .lock()
        .find("Msvm_VirtualSystemSettingData", &id)
        .expect("settings")
        .set("Version", "5.0");
    let made = scene.create(crash()).expect("a checkpoint");
    let settled = scene
        .driver
        .settle(&made, &scene.custody, &CancelToken::new())
        .expect("settled");
    assert_eq!(settled.point, None);
    assert_eq!(scene.estate.nodes[0].calls("ConvertToReferencePoint"), 0);
    scene.assert_clean();
}

#[test]
fn a_machine_is_saved_for_an_instant_and_its_downtime_measured() {
    let scene = scene();
    let made = scene
        .create(ConsistencyPolicy::only(Consistency::SavedState))
        .expect("a checkpoint");
    assert_eq!(made.reached, Consistency::SavedState);
    assert!(made.still.downtime_ms.expect("measured") > 0);
    assert_eq!(scene.estate.nodes[0].state(vm(1)), "2");
    assert_eq!(scene.estate.nodes[0].host_items(), 0);
    scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("released");
    scene.assert_clean();
}

#[test]
fn a_machine_runs_again_when_its_checkpoint_failed_or_somebody_said_stop() {
    let scene = scene();
    scene.estate.nodes[0].act("CreateSnapshot", Act::Return(32_768));
    scene
        .create(ConsistencyPolicy::only(Consistency::SavedState))
        .expect_err("failed");
    assert_eq!(scene.estate.nodes[0].state(vm(1)), "2");
    scene.assert_clean();
}

#[test]
fn a_machine_that_cannot_be_started_stays_in_the_journal() {
    let scene = scene();
    for _ in 0..20 {
        scene.estate.nodes[0].act("CreateSnapshot", Act::Return(32_768));
    }
    // The first request saves; all that follow, to start, fail.
    let save = Act::Vanish { with_effect: true };
    scene.estate.nodes[0].act("RequestStateChange", save);
    for _ in 0..20 {
        scene.estate.nodes[0].act("RequestStateChange", Act::Return(32_778));
    }
    scene
        .create(ConsistencyPolicy::only(Consistency::SavedState))
        .expect_err("failed");
    assert_eq!(scene.estate.nodes[0].state(vm(1)), "6");
    let entries = scene.log.open_entries().expect("entries");
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].intent.kind, HeldKind::SavedState);
    assert_eq!(
        scene.estate.nodes[0].host_items(),
        1,
        "the machine tells it too"
    );
}

#[test]
fn a_clustered_machine_goes_through_its_cluster() {
    let scene = scene();
    {
        let mut rows = scene.estate.nodes[0].lock();
        add_cluster(&mut rows, &["hv01", "hv02"]);
        add_role(&mut rows, &vm(1).to_string(), "HV01");
    }
    // The cluster of the fake does not save by itself: what it did not do is seen, and Hyper-V brings the machine back.
    let error = scene
        .create(ConsistencyPolicy::only(Consistency::SavedState))
        .expect_err("not saved");
    assert_eq!(error.kind(), ErrorKind::Consistency, "{error}");
    assert_eq!(scene.estate.nodes[0].calls("TakeOffline"), 1);
    assert_eq!(scene.estate.nodes[0].calls("BringOnline"), 1);
    assert_eq!(scene.estate.nodes[0].state(vm(1)), "2");
    scene.assert_clean();
}

#[test]
fn a_machine_that_is_off_needs_no_freeze() {
    let scene = scene();
    scene.estate.nodes[0].set_state(vm(1), "3");
    let made = scene
        .create(ConsistencyPolicy::only(Consistency::Application))
        .expect("a checkpoint");
    assert_eq!(made.reached, Consistency::SavedState);
    assert_eq!(made.still.downtime_ms, None);
    assert_eq!(scene.estate.nodes[0].state(vm(1)), "3", "nobody started it");
}

#[test]
fn an_old_host_is_backed_up_by_saved_state_alone() {
    let scene = scene();
    scene.estate.nodes[0].set_build(9600);
    let error = scene
        .create(ConsistencyPolicy::default())
        .expect_err("not online");
    assert_eq!(error.kind(), ErrorKind::Consistency);
    let made = scene
        .create(ConsistencyPolicy::only(Consistency::SavedState))
        .expect("a checkpoint");
    let settled = scene
        .driver
        .settle(&made, &scene.custody, &CancelToken::new())
        .expect("settled");
    assert_eq!(settled.point, None);
    scene.assert_clean();
}

#[test]
fn a_long_freeze_and_a_merge_that_does_not_end_are_told() {
    let scene = scene();
    let mut request = CheckpointRequest::new(vm(1));
    request.freeze_limit = Duration::ZERO;
    let made = scene
        .driver
        .create(&request, &scene.custody, &CancelToken::new())
        .expect("a checkpoint");
    // The fake's job ends at the first look, in no time.
    assert!(!codes(&made).contains(&WarningCode::LongFreeze));
    scene
        .driver
        .release(&made.reference, &scene.custody, &CancelToken::new())
        .expect("released");
    let id = format!(
        "Microsoft:{}\\C0FFEE00-0000-4000-8000-000000000001\\0\\0\\L",
        vm(1)
    );
    let leaf = texts(&["D:\\vm\\a_5B7E.avhdx"]);
    scene.estate.nodes[0]
        .lock()
        .find("Msvm_StorageAllocationSettingData", &id)
        .expect("a disk")
        .set("HostResource", leaf);
    let state = scene
        .driver
        .watch_merge(vm(1), &CancelToken::new())
        .expect("watched");
    assert_eq!(state, MergeState::Stalled);
    assert_eq!(
        scene
            .driver
            .checkpoint_size(&made.reference, &CancelToken::new()),
        Some(4 << 20)
    );
}
