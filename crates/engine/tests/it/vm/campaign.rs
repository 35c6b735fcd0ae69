//! A campaign of faults from seeds: something goes wrong at a random moment of a backup, and afterwards nothing of ours is left, no
//! guest stands still, every point holds what it says, and the neighbour's backup went on.
//!
//! `HIKAE_CAMPAIGN=full` runs 300 rounds instead of a few; `HIKAE_CAMPAIGN_SEED=N` runs one again.

use std::time::Duration;

use lab::estate::{
    Estate, Fault, FaultKind, HostName, HostState, MigrationKind, MigrationRequest, PowerState,
    Random, Repeat, Trigger, VmId,
};
use lab::guest::Consistency as Bytes;
use repo::Consistency as Label;

use super::site::{Blow, Death, MIB, Site, host};

/// What goes wrong in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// The estate's own fault, of the machine that is backed up.
    Fault(FaultKind),
    /// The machine moves to the other node.
    Migration,
    /// Its files move.
    StorageMigration,
    /// Its node loses power, and comes back after a minute.
    NodeCrash,
    /// Our process dies.
    Death,
    /// An answer is lost.
    Line,
}

/// A fault of the estate that a backup of a machine can meet.
const FAULTS: [FaultKind; 11] = [
    FaultKind::WriterFails,
    FaultKind::WriterTimesOut,
    FaultKind::WriterLies,
    FaultKind::MergeFails,
    FaultKind::CheckpointFails,
    FaultKind::ConversionFails,
    FaultKind::DiskFull,
    FaultKind::JobVanishes,
    FaultKind::JobIsSlow,
    FaultKind::JobIsNotNamed,
    FaultKind::TrackingLost,
];

fn pick(random: &mut Random) -> Wrong {
    match random.below(16) {
        at @ 0..11 => Wrong::Fault(FAULTS[usize::try_from(at).unwrap()]),
        11 => Wrong::Migration,
        12 => Wrong::StorageMigration,
        13 => Wrong::NodeCrash,
        14 => Wrong::Death,
        _ => Wrong::Line,
    }
}

fn migration(site: &Site, vm: VmId, wrong: Wrong) -> Blow {
    let estate = site.estate.clone();
    let home = site.home(vm);
    Box::new(move || {
        estate.write(|estate| {
            // Whether the estate takes it at that moment is its own affair.
            let _ = match wrong {
                Wrong::StorageMigration => storage(estate, &home, vm),
                _ => cluster(estate, &home, vm),
            };
        });
    })
}

fn storage(estate: &mut Estate, home: &HostName, vm: VmId) -> lab::Result<()> {
    let number = estate.now().0;
    let folder =
        lab::estate::WindowsPath::parse(&format!("C:\\ClusterStorage\\Volume1\\moved-{number}"))?;
    let request = MigrationRequest {
        destination: None,
        kind: MigrationKind::Storage,
        folder: Some(folder),
    };
    estate.migrate(home, vm, request).map(drop)
}

fn cluster(estate: &mut Estate, home: &HostName, vm: VmId) -> lab::Result<()> {
    let other = if home.to_string() == "HV01" {
        "HV02"
    } else {
        "HV01"
    };
    let group = estate
        .cluster_of(home)
        .and_then(|cluster| cluster.group_of(vm))
        .map(|group| group.name.clone());
    match group {
        Some(group) => estate.move_group(home, &group, &host(other)),
        None => Ok(()),
    }
}

fn crash(site: &Site, vm: VmId) -> Blow {
    let estate = site.estate.clone();
    let home = site.home(vm);
    Box::new(move || {
        estate.write(|estate| {
            estate.crash_host(&home).unwrap();
            estate.start_host(&home).unwrap();
        });
    })
}

/// Arms what goes wrong; gives the death of the process, or whatever strikes during its questions.
fn arm(site: &Site, vm: VmId, wrong: Wrong, question: u64) -> std::sync::Arc<Death> {
    match wrong {
        Wrong::Fault(kind) => {
            let fault = Fault::next(kind).of_vm(vm).repeated(Repeat::Times(1));
            let fault = fault.when(Trigger::Next);
            site.estate.write(|estate| estate.inject(fault));
            Death::never()
        }
        Wrong::Migration | Wrong::StorageMigration => {
            Death::struck(question, migration(site, vm, wrong))
        }
        Wrong::NodeCrash => Death::struck(question, crash(site, vm)),
        Wrong::Death => Death::after(question),
        Wrong::Line => Death::once(question),
    }
}

/// What bytes may say for what a point says.
fn is_honest(label: Label, bytes: &Bytes, wrong: Wrong) -> bool {
    let lies = wrong == Wrong::Fault(FaultKind::WriterLies);
    match (label, bytes) {
        (_, Bytes::Inconsistent(_) | Bytes::Empty) => false,
        (Label::Application, Bytes::Application) => true,
        // What a writer that lies says is only told by the bytes.
        (Label::Application, _) => lies,
        (Label::FileSystem, Bytes::Crash) => lies,
        _ => true,
    }
}

fn one_round(site: &Site, seed: u64) {
    let mut random = Random::seeded(seed);
    let (vm, name) = match random.below(2) {
        0 => (site.sql01, "sql01"),
        _ => (site.lin01, "lin01"),
    };
    let wrong = pick(&mut random);
    let question = 1 + random.below(130);
    let told = format!("seed {seed}: {wrong:?} at question {question} of a backup of {name}");
    site.write(vm, MIB);
    let death = arm(site, vm, wrong, question);
    let outcome = site.back_up_with(&site.request(vm, name), &death);
    // The neighbour's backup goes on, whatever happened here; a node that is down takes both with it.
    if wrong != Wrong::NodeCrash {
        site.back_up(site.raw01, "raw01");
    }
    site.estate.write(Estate::clear_faults);
    site.pass(Duration::from_secs(180));
    let down = site.estate.read(|estate| {
        estate
            .hosts()
            .filter(|host| host.state != HostState::Up)
            .count()
    });
    assert_eq!(down, 0, "{told}");
    for vm in [vm, site.raw01] {
        let is_clean = |remains: &super::site::Remains| {
            (remains.checkpoints, remains.marks) == (0, 0)
                && remains.reference_points <= 1
                && remains.power == PowerState::Running
        };
        let remains = site.sweep_until(vm, is_clean);
        assert!(is_clean(&remains), "{told}: {outcome:?} left {remains:?}");
    }
    let newest = |name: &str| {
        let selector: repo::PointSelector = name.parse().unwrap();
        site.world.repository.find_point(&selector).unwrap().point
    };
    let made = outcome.as_ref().map(|_| (vm, name)).ok();
    let neighbour = (wrong != Wrong::NodeCrash).then_some((site.raw01, "raw01"));
    for (vm, name) in made.into_iter().chain(neighbour) {
        let point = newest(name);
        let seen = site.examine(vm, &point);
        let (label, sequence) = (point.consistency, point.sequence);
        assert!(
            is_honest(label, &seen.consistency, wrong),
            "{told}: {name}@{sequence} says {label:?}, and its bytes {seen:?}"
        );
    }
}

#[test]
fn whatever_goes_wrong_nothing_is_left_and_every_point_holds_what_it_says() {
    let rounds = match std::env::var("HIKAE_CAMPAIGN").as_deref() {
        Ok("full") => 0..300,
        _ => 0..16,
    };
    let rounds = match std::env::var("HIKAE_CAMPAIGN_SEED").map(|seed| seed.parse()) {
        Ok(Ok(seed)) => seed..seed + 1,
        _ => rounds,
    };
    let mut site = Site::new(21);
    site.back_up(site.sql01, "sql01");
    site.back_up(site.lin01, "lin01");
    for seed in rounds {
        // Not for ever on one estate: what an earlier round changed may hide what this one does.
        if seed % 8 == 7 {
            site = Site::new(seed);
        }
        one_round(&site, seed);
    }
}
