//! The coverage report: every disk has a line.

use host::coverage::{
    CoverageLevel, DiskCoverage, DiskSelector, Exclusion, Obstacle, TrackingOutlook, plan_coverage,
};
use host::facts::{DiskBacking, DiskFacts, ImageKind, VmFacts};
use host::path::HostPath;

use super::facts::{disk, machine};

fn other(backing: DiskBacking) -> DiskFacts {
    DiskFacts {
        slot: None,
        device: None,
        backing,
    }
}

fn obstacle_of(backing: DiskBacking) -> Option<Obstacle> {
    let mut machine = machine();
    machine.disks = vec![other(backing)];
    let report = plan_coverage(&machine, &[]);
    match &report.lines[0].coverage {
        DiskCoverage::Impossible {
            obstacle,
            because,
            remedy,
        } => {
            assert!(!because.is_empty() && !remedy.is_empty());
            assert_eq!(report.level, CoverageLevel::None);
            Some(*obstacle)
        }
        _ => None,
    }
}

fn image(path: &str, is_shared: Option<bool>) -> DiskBacking {
    let path = HostPath::new(path).expect("a path");
    DiskBacking::Image {
        image: ImageKind::of_path(&path),
        path,
        is_shared,
    }
}

#[test]
fn what_cannot_be_protected_says_why() {
    let device = "\\\\.\\PHYSICALDRIVE2".to_owned();
    assert_eq!(
        obstacle_of(DiskBacking::PassThrough { device }),
        Some(Obstacle::PassThrough)
    );
    assert_eq!(
        obstacle_of(DiskBacking::FibreChannel),
        Some(Obstacle::FibreChannel)
    );
    let target = "iqn.2020-01.example:data".to_owned();
    assert_eq!(
        obstacle_of(DiskBacking::GuestIscsi { target }),
        Some(Obstacle::GuestIscsi)
    );
    let subtype = "Acme:Disk".to_owned();
    assert_eq!(
        obstacle_of(DiskBacking::Unknown { subtype }),
        Some(Obstacle::NotUnderstood)
    );
    assert_eq!(
        obstacle_of(image("D:\\a.vhdx", Some(true))),
        Some(Obstacle::Shared)
    );
    assert_eq!(
        obstacle_of(image("D:\\a.vhds", Some(true))),
        Some(Obstacle::VhdSet)
    );
    assert_eq!(
        obstacle_of(image("D:\\a.bin", None)),
        Some(Obstacle::NotUnderstood)
    );
    assert_eq!(
        obstacle_of(image("\\\\?\\Volume{1}\\a.vhdx", None)),
        Some(Obstacle::Unreachable)
    );
    assert_eq!(obstacle_of(image("D:\\a.vhdx", None)), None);
}

fn with_two_disks() -> VmFacts {
    let mut machine = machine();
    machine.disks = vec![disk(0, "D:\\vm\\a.vhdx"), disk(1, "E:\\scratch\\b.vhdx")];
    machine
}

#[test]
fn an_exclusion_names_who_made_it_and_leaves_the_machine_partly_protected() {
    let machine = with_two_disks();
    let exclusion = Exclusion {
        selects: DiskSelector::Below(HostPath::new("e:\\SCRATCH").expect("a path")),
        by: "rule \"no scratch disks\"".to_owned(),
        reason: Some("rebuilt every night".to_owned()),
    };
    let report = plan_coverage(&machine, &[exclusion]);
    assert_eq!(report.level, CoverageLevel::Partial);
    assert!(matches!(
        &report.lines[0].coverage,
        DiskCoverage::Protected {
            tracking: TrackingOutlook::Expected
        }
    ));
    let DiskCoverage::Excluded { by, reason } = &report.lines[1].coverage else {
        panic!("{:?}", report.lines[1]);
    };
    assert_eq!(by, "rule \"no scratch disks\"");
    assert_eq!(reason.as_deref(), Some("rebuilt every night"));
}

#[test]
fn an_exclusion_that_picks_nothing_is_told() {
    let exclusion = Exclusion {
        selects: DiskSelector::Path(HostPath::new("D:\\vm\\gone.vhdx").expect("a path")),
        by: "anna".to_owned(),
        reason: None,
    };
    let report = plan_coverage(&with_two_disks(), &[exclusion]);
    assert_eq!(report.level, CoverageLevel::Full);
    assert!(
        report.notes.iter().any(|note| note.contains("anna")),
        "{:?}",
        report.notes
    );
}

#[test]
fn excluding_what_is_impossible_anyway_hides_nothing() {
    let mut machine = with_two_disks();
    machine.disks[1].backing = DiskBacking::PassThrough {
        device: "disk 2".to_owned(),
    };
    let exclusion = Exclusion {
        selects: DiskSelector::Slot(machine.disks[1].slot.expect("a slot")),
        by: "anna".to_owned(),
        reason: None,
    };
    let report = plan_coverage(&machine, &[exclusion]);
    assert!(matches!(
        report.lines[1].coverage,
        DiskCoverage::Impossible {
            obstacle: Obstacle::PassThrough,
            ..
        }
    ));
}

#[test]
fn a_machine_without_disks_keeps_its_configuration_and_an_empty_drive_is_nothing() {
    let mut machine = machine();
    machine.disks = vec![other(DiskBacking::Empty)];
    let report = plan_coverage(&machine, &[]);
    assert_eq!(report.level, CoverageLevel::ConfigurationOnly);
    assert_eq!(report.lines[0].coverage, DiskCoverage::Nothing);
}

#[test]
fn a_vhd_and_an_old_configuration_are_read_whole() {
    let mut machine = machine();
    machine.disks = vec![disk(0, "D:\\vm\\a.vhd")];
    let whole = DiskCoverage::Protected {
        tracking: TrackingOutlook::ReadWhole,
    };
    assert_eq!(plan_coverage(&machine, &[]).lines[0].coverage, whole);
    machine.disks = vec![disk(0, "D:\\vm\\a.vhdx")];
    machine.version = None;
    assert_eq!(plan_coverage(&machine, &[]).lines[0].coverage, whole);
}
