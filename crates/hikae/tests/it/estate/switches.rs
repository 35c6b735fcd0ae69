//! Each fact that nobody has verified, with both answers: the driver works, or says why not, and leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use host::boundary::{
    Checkpoints, ClusterMembership, Definition, Inventory, Mobility, Power, StopMode,
};
use host::checkpoint::{CheckpointRequest, Presence};
use host::cluster::RoleSpec;
use host::consistency::{Consistency, ConsistencyPolicy};
use host::definition::{
    ExportRequest, ExportStorage, Identity, ImportRequest, NicConnection, SavedState,
};
use host::facts::{ControllerKind, DiskSlot, PowerState};
use host::hyperv::HyperV;
use host::{CancelToken, Clock, ErrorKind, Timestamp};
use lab::estate::{Answer, Switch, Switches, WindowsGeneration};
use lab::provider::Pace;
use wsman::client::CimClient;
use wsman::message::{Association, AssociationQuery};

use super::place::{Home, LabClock, Place, Plan, Tree, calm, host_name, host_path, node};
use super::round::{Backup, Tracked, nothing_is_left, sweep};

/// What is done for a switch, with one of its answers.
type Row = fn(Plan, Answer);

/// A switch without a row does not compile.
fn row_of(switch: Switch) -> Row {
    match switch {
        Switch::WqlOnVirtualization => queries,
        Switch::AssociationFilter => associations,
        Switch::FrozenFilesFromEveryNode => frozen_files_of_another_node,
        Switch::LimitIdAcrossUserCheckpoints => changes_across_checkpoints_of_operators,
        Switch::NoAutoRecoveryFile => finished_by_the_guest,
        Switch::FullByteLength => changes_of_whole_disks,
        Switch::GuestBackupTypeOn2016 => backup_type_on_2016,
        Switch::DestroyRecoveryCheckpoint => given_up,
        Switch::PrivateProperties => roles,
        Switch::AddVirtualMachine => a_new_role,
        Switch::MoveToNewNodeParams => moved,
        Switch::ReferencePointsMigrate => tracked_across_a_move,
        Switch::TrackingSurvivesPowerLoss => tracked_across_a_crash,
        Switch::ForeignShares => on_a_foreign_share,
        Switch::ComputerAccountForShares => exported_to_a_share,
        Switch::NoNamespaceSelector => references,
        Switch::CancelCheckpointJobs => told_to_stop,
    }
}

/// A part of the switches, so that several run beside each other.
fn both_answers(part: usize) {
    let mine = Switch::ALL.iter().skip(part).step_by(4);
    for switch in mine {
        for answer in [Answer::Pessimistic, Answer::Optimistic] {
            println!("{} {answer:?}", switch.name());
            let plan = Plan {
                switches: Switches::default().with(*switch, answer),
                ..Plan::new()
            };
            row_of(*switch)(plan, answer);
        }
    }
}

#[test]
fn every_switch_both_ways_first_part() {
    both_answers(0);
}

#[test]
fn every_switch_both_ways_second_part() {
    both_answers(1);
}

#[test]
fn every_switch_both_ways_third_part() {
    both_answers(2);
}

#[test]
fn every_switch_both_ways_fourth_part() {
    both_answers(3);
}

#[test]
fn a_machine_is_backed_up_when_everything_is_answered_kindly_or_hard() {
    let kind = Switches::all_optimistic();
    let hard = Switches::default().with(Switch::WqlOnVirtualization, Answer::Pessimistic);
    for switches in [kind, hard] {
        for home in [Home::Cluster, Home::Drive] {
            let plan = Plan {
                switches: switches.clone(),
                home,
                ..Plan::new()
            };
            let place = Place::new(plan);
            rounds(&place, &Tracked::Known);
        }
    }
}

fn is_hard(answer: Answer) -> bool {
    answer == Answer::Pessimistic
}

fn only(level: Consistency) -> ConsistencyPolicy {
    ConsistencyPolicy::only(level)
}

/// Three rounds while the guest writes; the later ones are tracked as expected. Nothing is left in the end.
fn rounds(place: &Place, expected: &Tracked) {
    let driver = place.driver();
    let mut backup = Backup::new(place, &driver);
    for number in 0..3 {
        let round = backup
            .run(ConsistencyPolicy::default())
            .unwrap_or_else(|error| panic!("round {number}: {error:?}"));
        match (number, expected) {
            (0, _) => assert_eq!(round.tracked, Tracked::First),
            (_, Tracked::Lost(_)) => {
                assert!(matches!(&round.tracked, Tracked::Lost(reason) if !reason.is_empty()));
            }
            (_, expected) => assert_eq!(round.tracked, *expected),
        }
        place.pass(20);
    }
    backup.finish();
}

fn queries(plan: Plan, answer: Answer) {
    let place = Place::new(plan);
    place.estate.set_pace(Pace::Manual);
    let told = place.driver().inventory(&calm()).expect("an inventory");
    let other = match answer {
        Answer::Pessimistic => Answer::Optimistic,
        Answer::Optimistic => Answer::Pessimistic,
    };
    let set = |answer| {
        place
            .estate
            .write(|it| it.set_switch(Switch::WqlOnVirtualization, answer));
    };
    set(other);
    assert_eq!(place.driver().inventory(&calm()).expect("again"), told);
    set(answer);
    place
        .estate
        .set_pace(Pace::PerRequest(Duration::from_millis(500)));
    rounds(&place, &Tracked::Known);
}

fn associations(plan: Plan, _answer: Answer) {
    let place = Place::new(plan);
    let client = place.client("HV01");
    let system = wsman::cim::CimPath::new(
        wsman::cim::Namespace::new("root/virtualization/v2"),
        "Msvm_ComputerSystem",
    )
    .with("CreationClassName", "Msvm_ComputerSystem")
    .with("Name", place.vm.to_string());
    let query =
        AssociationQuery::of(Association::Associators, system).through("Msvm_SettingsDefineState");
    let found = client.associators(&query).expect("one way or the other");
    assert_eq!(found.len(), 1);
    rounds(&place, &Tracked::Known);
}

fn frozen_files_of_another_node(plan: Plan, _answer: Answer) {
    let place = Place::new(plan);
    place.relocate();
    assert_eq!(place.at(), host_name("HV02"), "HV01 owns the volume");
    rounds(&place, &Tracked::Known);
}

fn changes_across_checkpoints_of_operators(plan: Plan, answer: Answer) {
    let place = Place::new(Plan {
        tree: Tree::Branch,
        ..plan
    });
    let expected = if is_hard(answer) {
        Tracked::Lost(String::new())
    } else {
        Tracked::Known
    };
    rounds(&place, &expected);
}

fn finished_by_the_guest(plan: Plan, answer: Answer) {
    let place = Place::new(plan);
    let driver = place.driver();
    let mut backup = Backup::new(&place, &driver);
    for _ in 0..2 {
        let round = backup.run(only(Consistency::Application)).expect("a round");
        assert_eq!(round.made.reached, Consistency::Application);
        let names_it = round.made.disks.iter().any(|disk| {
            let path = disk.path.as_str().to_lowercase();
            path.ends_with("-autorecovery.avhdx")
        });
        assert_eq!(names_it, is_hard(answer));
        place.pass(20);
    }
    backup.finish();
}

fn changes_of_whole_disks(plan: Plan, _answer: Answer) {
    rounds(&Place::new(plan), &Tracked::Known);
}

fn backup_type_on_2016(plan: Plan, _answer: Answer) {
    let place = Place::new(Plan {
        windows: WindowsGeneration::Server2016,
        ..plan
    });
    let driver = place.driver();
    let mut backup = Backup::new(&place, &driver);
    for _ in 0..2 {
        let round = backup.run(only(Consistency::Application)).expect("a round");
        assert_eq!(round.made.missed, []);
        place.pass(20);
    }
    backup.finish();
}

fn given_up(plan: Plan, _answer: Answer) {
    let place = Place::new(plan);
    let driver = place.driver();
    let mut backup = Backup::new(&place, &driver);
    for level in [Consistency::Application, Consistency::Crash] {
        let custody = backup.custody();
        let mut request = CheckpointRequest::new(place.id());
        request.policy = only(level);
        let made = driver.create(&request, &custody, &calm()).expect("made");
        let released = driver
            .release(&made.reference, &custody, &calm())
            .expect("released");
        assert_eq!(released.was, Presence::Removed);
    }
    nothing_is_left(&place, &driver, &backup.log);
    rounds(&place, &Tracked::Known);
}

fn roles(plan: Plan, _answer: Answer) {
    let place = Place::new(plan);
    let driver = place.driver();
    let told = driver.clusters(&calm()).expect("clusters").remove(0);
    let role = told.roles.iter().find(|it| it.0 == place.id());
    let role = &role.expect("its role is told").1;
    assert_eq!(
        (role.group.as_str(), role.owner.as_str()),
        ("app01", "HV01")
    );
    let spec = RoleSpec {
        possible_owners: Vec::new(),
        priority: Some(3000),
    };
    driver
        .add_role(place.id(), &spec, &calm())
        .expect("it has one, and its priority is set");
    let machine = driver.machine(place.id(), &calm()).expect("the machine");
    assert_eq!(machine.role.expect("a role").priority, Some(3000));
    place.relocate();
    let told = driver.clusters(&calm()).expect("clusters").remove(0);
    assert_eq!(told.roles[0].1.owner.as_str(), "HV02");
    rounds(&place, &Tracked::Known);
}

fn a_new_role(plan: Plan, answer: Answer) {
    let place = Place::new(plan);
    let driver = place.driver();
    driver.remove_role(place.id(), &calm()).expect("removed");
    let machine = driver.machine(place.id(), &calm()).expect("the machine");
    assert_eq!((machine.role, machine.power), (None, PowerState::Running));
    let added = driver.add_role(place.id(), &RoleSpec::default(), &calm());
    if is_hard(answer) {
        let error = added.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        assert!(error.to_string().contains("AddVirtualMachine"), "{error}");
    } else {
        added.expect("added");
        place.relocate();
    }
    let has_role = driver.clusters(&calm()).expect("clusters")[0].roles.len() == 1;
    assert_eq!(has_role, !is_hard(answer));
    rounds(&place, &Tracked::Known);
}

fn moved(plan: Plan, _answer: Answer) {
    let place = Place::new(plan);
    let driver = place.driver();
    let before = driver.locate(place.id(), &calm()).expect("a place");
    place.relocate();
    let moves = driver
        .moves(&[(place.id(), before.node)], &calm())
        .expect("moves");
    let to = moves[0].to.as_ref().map(|it| it.as_str().to_uppercase());
    assert_eq!(to.as_deref(), Some("HV02"));
    rounds(&place, &Tracked::Known);
    place.relocate();
    rounds(&place, &Tracked::Known);
}

/// A version, then something happens, then another one.
fn with_something_between(place: &Place, is_lost: bool, something: impl FnOnce(&HyperV)) {
    let driver = place.driver();
    let mut backup = Backup::new(place, &driver);
    backup.run(ConsistencyPolicy::default()).expect("a version");
    place.pass(10);
    something(&driver);
    place.pass(10);
    let round = backup.run(ConsistencyPolicy::default()).expect("another");
    match &round.tracked {
        Tracked::Lost(reason) => assert!(is_lost && !reason.is_empty()),
        other => assert!(!is_lost && *other == Tracked::Known),
    }
    assert!(round.has_point && backup.has_version());
    place.pass(10);
    let round = backup.run(ConsistencyPolicy::default()).expect("a third");
    assert_eq!(round.tracked, Tracked::Known, "tracking begins anew");
    backup.finish();
}

fn tracked_across_a_move(plan: Plan, answer: Answer) {
    let place = Place::new(plan);
    with_something_between(&place, is_hard(answer), |_| place.relocate());
}

fn tracked_across_a_crash(plan: Plan, answer: Answer) {
    // That reference points survive the way to the other node is another question.
    let switches = plan
        .switches
        .clone()
        .with(Switch::ReferencePointsMigrate, Answer::Optimistic);
    let place = Place::new(Plan { switches, ..plan });
    with_something_between(&place, is_hard(answer), |driver| {
        place
            .estate
            .write(|it| it.crash_host(&host_name("HV01")))
            .expect("a crash");
        place.pass(60);
        let at = driver.locate(place.id(), &calm()).expect("it failed over");
        assert_eq!(at.node.as_str().to_uppercase(), "HV02");
        place
            .estate
            .write(|it| it.start_host(&host_name("HV01")))
            .expect("it boots");
        place.pass(300);
    });
}

fn on_a_foreign_share(plan: Plan, answer: Answer) {
    let place = Place::at_rest(Plan {
        home: Home::ForeignShare,
        ..plan
    });
    let driver = place.driver();
    let started = driver.start(place.id(), &calm());
    if is_hard(answer) {
        let error = started.expect_err("refused");
        let text = format!("{error:?}");
        assert!(text.to_lowercase().contains("denied"), "{text}");
        let machine = driver.machine(place.id(), &calm()).expect("the machine");
        assert_eq!(machine.power, PowerState::Off);
    } else {
        started.expect("it starts");
        place.pass(5);
        rounds(&place, &Tracked::Known);
    }
}

fn exported_to_a_share(plan: Plan, answer: Answer) {
    let place = Place::new(plan);
    let driver = place.driver();
    for (folder, storage) in [
        ("\\\\files\\vms\\whole", ExportStorage::Include),
        ("\\\\files\\vms\\alone", ExportStorage::Leave),
        ("D:\\whole", ExportStorage::Include),
        ("D:\\alone", ExportStorage::Leave),
    ] {
        let request = ExportRequest {
            folder: host_path(folder),
            storage,
        };
        // Disks of a machine that runs are not copied.
        if storage == ExportStorage::Include {
            driver
                .stop(place.id(), StopMode::TurnOff, &calm())
                .expect("it stands");
        }
        let exported = driver.export(place.id(), &request, &calm());
        driver.start(place.id(), &calm()).expect("it runs");
        if folder.starts_with('\\') && is_hard(answer) {
            let error = exported.expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        } else {
            exported.unwrap_or_else(|error| panic!("{folder}: {error:?}"));
        }
        if exported_whole(folder, answer) {
            import(&place, &driver, folder);
        }
    }
    place.pass(5);
    rounds(&place, &Tracked::Known);
}

fn exported_whole(folder: &str, answer: Answer) -> bool {
    folder.ends_with("whole") && !(folder.starts_with('\\') && is_hard(answer))
}

/// Makes a copy of the machine from what was exported, and takes it out again.
fn import(place: &Place, driver: &HyperV, folder: &str) {
    let files = place.files_below("HV01", folder);
    let ending_in = |ending: &str| {
        let found = files.iter().find(|it| it.to_lowercase().ends_with(ending));
        host_path(found.unwrap_or_else(|| panic!("no {ending} in {files:?}")))
    };
    let slot = |location| DiskSlot {
        controller: ControllerKind::Scsi,
        number: 0,
        location,
    };
    let request = ImportRequest {
        node: node("HV01"),
        configuration: ending_in(".vmcx"),
        identity: Identity::New,
        name: Some("copy01".to_owned()),
        disks: vec![
            (slot(0), ending_in("\\app01.vhdx")),
            (slot(1), ending_in("\\app01-data.vhdx")),
        ],
        nics: NicConnection::AsStored,
        saved_state: SavedState::Drop,
    };
    let mut backup = Backup::new(place, driver);
    let custody = backup.custody();
    let made = driver
        .import(&request, &custody, &calm())
        .unwrap_or_else(|error| panic!("{folder}: {error:?}"));
    let machine = driver.machine(made.vm, &calm()).expect("the copy");
    assert_eq!((machine.name.as_str(), machine.disks.len()), ("copy01", 2));
    assert_ne!(made.vm, place.id());
    driver.start(made.vm, &calm()).expect("the copy runs");
    driver
        .stop(made.vm, StopMode::TurnOff, &calm())
        .expect("it stands");
    driver.unregister(made.vm, &calm()).expect("it goes");
    nothing_is_left(place, driver, &backup.log);
}

fn references(plan: Plan, _answer: Answer) {
    let place = Place::new(plan);
    let driver = place.driver();
    let told = driver.clusters(&calm()).expect("clusters").remove(0);
    let owner = told.volumes[0].owner.as_ref().expect("an owner");
    assert_eq!(owner.as_str().to_uppercase(), "HV01");
    rounds(&place, &Tracked::Known);
}

/// The estate's clock; says stop in a certain pause.
struct Stopping {
    clock: LabClock,
    left: AtomicU32,
    stop: CancelToken,
}

impl Clock for Stopping {
    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn pause(&self, duration: Duration, cancel: &CancelToken) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.stop.cancel();
        }
        self.clock.pause(duration, cancel);
    }
}

fn told_to_stop(plan: Plan, _answer: Answer) {
    let place = Place::new(plan);
    let mut was_stopped = false;
    for pauses in 1..8 {
        let stop = CancelToken::new();
        let driver = place.driver_with_clock(Arc::new(Stopping {
            clock: LabClock(place.estate.clone()),
            left: AtomicU32::new(pauses),
            stop: stop.clone(),
        }));
        let mut backup = Backup::new(&place, &driver);
        let custody = backup.custody();
        let request = CheckpointRequest::new(place.id());
        match driver.create(&request, &custody, &stop) {
            Ok(made) => {
                let released = driver.release(&made.reference, &custody, &calm());
                released.expect("released");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
                was_stopped = true;
            }
        }
        let calm_driver = place.driver();
        let swept = sweep(&place, &calm_driver, &backup.log);
        assert_eq!(swept.alerts, [], "after {pauses} pauses");
        nothing_is_left(&place, &calm_driver, &backup.log);
    }
    assert!(was_stopped, "no pause was long enough");
    rounds(&place, &Tracked::Known);
}
