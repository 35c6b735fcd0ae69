//! A machine becomes a recovery point, and nothing of that is left on its host.

use engine::job::backup_disk::BackupScope;
use engine::job::backup_vm::MachineRecord;
use host::consistency::{Consistency, ConsistencyPolicy};
use lab::estate::{Fault, FaultKind, PowerState};
use lab::guest;

use super::site::{Death, MIB, Remains, Site};

/// Nothing but one reference point, the machine runs.
const AT_REST: Remains = Remains {
    checkpoints: 0,
    reference_points: 1,
    power: PowerState::Running,
    marks: 0,
};

#[test]
fn a_guest_that_writes_comes_back_as_its_applications_left_it() {
    let site = Site::new(1);
    let first = site.back_up(site.sql01, "sql01");
    assert_eq!(first.consistency, Consistency::Application, "{first:#?}");
    assert_eq!(first.sequence, 1);
    assert_eq!(first.disks.len(), 2);
    assert!(
        first
            .disks
            .iter()
            .all(|it| it.scope == BackupScope::InitialCopy)
    );
    assert_eq!(first.warnings, [], "{:?}", first.warnings);
    assert_eq!(site.remains(site.sql01), AT_REST);
    let point = site.point("sql01@1");
    assert_eq!(point.consistency, repo::Consistency::Application);
    let seen = site.examine(site.sql01, &point);
    assert_eq!(seen.consistency, guest::Consistency::Application);
    assert!(seen.committed > 0);
    let record = MachineRecord::of_point(&point).unwrap().unwrap();
    assert_eq!(record.name, "sql01");
    assert_eq!(record.tracking_point, first.tracking_point);
    assert_eq!(record.role.unwrap().cluster, "CL1");
    let kinds: Vec<&str> = point
        .configuration
        .iter()
        .map(|it| it.path.rsplit('.').next().unwrap())
        .collect();
    for kind in ["vmcx", "vmrs", "vmgs"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
}

#[test]
fn the_next_run_reads_what_changed_and_the_audit() {
    let site = Site::new(2);
    site.back_up(site.sql01, "sql01");
    site.pass(std::time::Duration::from_secs(20));
    let before = site.committed(site.sql01);
    let second = site.back_up(site.sql01, "sql01");
    for disk in &second.disks {
        let BackupScope::ChangedRanges { bytes, .. } = disk.scope else {
            panic!("{disk:#?}");
        };
        let audited = disk.read.audited_blocks * 65_536;
        assert!(disk.read.read_bytes <= bytes + audited, "{disk:#?}");
        assert!(disk.read.read_bytes < 12 * MIB, "{disk:#?}");
        assert_eq!(disk.lies, []);
    }
    assert_eq!(site.remains(site.sql01), AT_REST);
    let seen = site.examine(site.sql01, &site.point("sql01@2"));
    assert_eq!(seen.consistency, guest::Consistency::Application);
    assert!(seen.committed >= before);
    let first = site.examine(site.sql01, &site.point("sql01@1"));
    assert!(first.committed < seen.committed);
}

#[test]
fn every_machine_reaches_what_its_guest_allows() {
    let site = Site::new(3);
    let linux = site.back_up(site.lin01, "lin01");
    assert_eq!(linux.consistency, Consistency::FileSystem);
    let seen = site.examine(site.lin01, &site.point("lin01"));
    assert_ne!(seen.consistency, guest::Consistency::Crash);
    assert_eq!(site.remains(site.lin01), AT_REST);

    let mut request = site.request(site.old01, "old01");
    request.checkpoint.policy = ConsistencyPolicy {
        wanted: Consistency::Application,
        otherwise: vec![Consistency::SavedState],
    };
    let saved = site.back_up_with(&request, &Death::never()).unwrap();
    assert_eq!(saved.consistency, Consistency::SavedState);
    assert!(saved.still.downtime_ms.is_some());
    assert!(!saved.missed.is_empty());
    let point = site.point("old01");
    assert_eq!(point.consistency, repo::Consistency::Offline);
    // A VHD tracks nothing: what is left is nothing.
    let remains = site.remains(site.old01);
    assert_eq!(
        (remains.checkpoints, remains.power),
        (0, PowerState::Running)
    );
    let again = site.back_up_with(&request, &Death::never()).unwrap();
    assert!(
        matches!(again.disks[0].scope, BackupScope::CompareEverything { .. }),
        "{:?}",
        again.disks[0]
    );

    let raw = site.back_up(site.raw01, "raw01");
    assert_eq!(raw.disks.len(), 1);
    assert_eq!(raw.not_protected.len(), 1, "{:?}", raw.not_protected);
    assert_eq!(site.remains(site.raw01), AT_REST);
}

#[test]
fn a_lying_tracker_is_caught_and_the_version_is_whole() {
    let site = Site::new(4);
    site.back_up(site.sql01, "sql01");
    site.write(site.sql01, 4 * MIB);
    let fault = Fault::next(FaultKind::TrackingLies).repeated(lab::estate::Repeat::Always);
    site.estate.write(|estate| estate.inject(fault));
    let mut request = site.request(site.sql01, "sql01");
    request.audit_per_million = 1_000_000;
    let report = site.back_up_with(&request, &Death::never()).unwrap();
    assert!(
        report.disks.iter().any(|disk| !disk.lies.is_empty()),
        "{report:#?}"
    );
    let seen = site.examine(site.sql01, &site.point("sql01"));
    assert_eq!(seen.consistency, guest::Consistency::Application);
}

#[test]
fn a_name_belongs_to_one_machine() {
    let site = Site::new(5);
    site.back_up(site.sql01, "shared");
    let error = site
        .back_up_with(&site.request(site.lin01, "shared"), &Death::never())
        .unwrap_err();
    assert_eq!(error.kind(), engine::ErrorKind::Refused);
    assert_eq!(site.remains(site.lin01).reference_points, 0);
    assert_eq!(site.remains(site.lin01).checkpoints, 0);
}

/// A process that dies at each question to a host, before and after it was asked; every seventh in an ordinary run, all of
/// them with `HIKAE_CAMPAIGN=full`.
#[test]
fn a_process_that_dies_leaves_what_the_next_one_removes() {
    let stride = match std::env::var("HIKAE_CAMPAIGN").as_deref() {
        Ok("full") => 1,
        _ => 7,
    };
    let whole = Death::never();
    let site = Site::new(6);
    site.back_up(site.sql01, "sql01");
    site.back_up_with(&site.request(site.sql01, "sql01"), &whole)
        .unwrap();
    let questions = whole.asked();
    assert!(questions > 20, "{questions}");
    let mut died = 0;
    for (round, question) in (1..=questions).step_by(stride).enumerate() {
        let deaths = [Death::before(question), Death::after(question)];
        for death in deaths
            .iter()
            .skip(if stride == 1 { 0 } else { round % 2 })
            .take(stride)
        {
            let outcome = site.back_up_with(&site.request(site.sql01, "sql01"), death);
            assert!(death.has_come() || outcome.is_ok(), "{death:?}");
            died += u64::from(death.has_come());
            let remains = site.sweep_until(site.sql01, |remains| *remains == AT_REST);
            assert_eq!(remains, AT_REST, "after {death:?}");
            let seen = site.examine(site.sql01, &site.point("sql01"));
            assert_eq!(
                seen.consistency,
                guest::Consistency::Application,
                "{death:?}"
            );
        }
    }
    assert!(died > 10, "{died} deaths of {questions} questions");
    let last = site.back_up(site.sql01, "sql01");
    assert_eq!(site.remains(site.sql01), AT_REST, "{last:#?}");
}
