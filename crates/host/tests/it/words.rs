//! Ids, paths, marks and times.

use std::time::Duration;

use host::consistency::{Consistency, ConsistencyPolicy};
use host::custody::{HeldKind, MachineMark, Mark};
use host::facts::{ConfigurationVersion, HostGeneration, ImageKind, StorageKind};
use host::ids::{CheckpointId, JobId, NodeName, OwnerId, VmId};
use host::path::{HostPath, PathPlace};
use host::{ErrorKind, Timestamp};
use proptest::prelude::*;

fn path(text: &str) -> HostPath {
    HostPath::new(text).expect("a path")
}

#[test]
fn a_machine_is_the_same_in_any_case_and_reads_in_upper_case() {
    let lower: VmId = "0f1c2c66-93a5-4b1e-8d4c-0123456789ab"
        .parse()
        .expect("an id");
    let upper: VmId = "{0F1C2C66-93A5-4B1E-8D4C-0123456789AB}"
        .parse()
        .expect("an id");
    assert_eq!(lower, upper);
    assert_eq!(lower.to_string(), "0F1C2C66-93A5-4B1E-8D4C-0123456789AB");
    let error = "HV01".parse::<VmId>().expect_err("a host's name is no id");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn a_node_is_the_same_with_its_domain_and_an_address_is_not_cut() {
    let node = |text: &str| NodeName::new(text).expect("a name");
    assert_eq!(node("HV01"), node("hv01.example.net"));
    assert_ne!(node("hv01"), node("hv02"));
    assert_ne!(node("10.0.0.1"), node("10.0.0.2"));
    assert!(NodeName::new("two words").is_err());
    assert!(NodeName::new("").is_err());
}

#[test]
fn ids_from_a_host_are_bounded() {
    assert!(CheckpointId::new("").is_err());
    assert!(CheckpointId::new("x".repeat(5000)).is_err());
    assert_eq!(
        CheckpointId::new("Microsoft:AB").expect("an id").as_str(),
        "Microsoft:AB"
    );
}

#[test]
fn paths_of_windows_compare_without_case_and_know_their_place() {
    assert_eq!(path("D:\\VM\\a.vhdx"), path("d:/vm/A.VHDX"));
    assert_ne!(path("/vm/a"), path("/VM/a"));
    assert_eq!(
        path("D:\\vm\\a.AVHDX").extension().as_deref(),
        Some("avhdx")
    );
    assert_eq!(path("D:\\vm\\a.vhdx").place(), PathPlace::Drive('D'));
    assert_eq!(path("\\\\?\\D:\\vm\\a.vhdx").place(), PathPlace::Drive('D'));
    assert_eq!(
        path("\\\\?\\Volume{0123}\\a.vhdx").place(),
        PathPlace::Volume
    );
    let share = PathPlace::Share {
        server: "sofs".to_owned(),
        share: "vms".to_owned(),
    };
    assert_eq!(path("\\\\sofs\\vms\\a.vhdx").place(), share);
    assert_eq!(path("\\\\?\\UNC\\sofs\\vms\\a.vhdx").place(), share);
    assert_eq!(path("a.vhdx").place(), PathPlace::Other);
    assert!(path("D:\\vm\\x\\a.vhdx").is_below(&path("d:\\VM\\")));
    assert!(!path("D:\\vms\\a.vhdx").is_below(&path("D:\\vm")));
    assert!(HostPath::new("D:\\a\u{0}b").is_err());
}

#[test]
fn what_is_joined_to_a_path_stays_below_it() {
    let root = path("D:\\vm\\");
    assert_eq!(
        root.join("Snapshots\\a.vmcx").expect("below").as_str(),
        "D:\\vm\\Snapshots\\a.vmcx"
    );
    for hostile in [
        "..\\a",
        "x\\..\\..\\a",
        "\\windows\\a",
        "C:\\a",
        "x/../../a",
    ] {
        assert_eq!(
            root.join(hostile).expect_err(hostile).kind(),
            ErrorKind::Invalid
        );
    }
}

#[test]
fn storage_and_kind_of_an_image_follow_from_its_path() {
    let csv = StorageKind::of_path(&path("C:\\ClusterStorage\\Volume1\\a\\a.vhdx"));
    assert_eq!(
        csv,
        StorageKind::Csv {
            volume: "volume1".to_owned()
        }
    );
    assert_eq!(
        StorageKind::of_path(&path("E:\\a.vhdx")),
        StorageKind::Local { drive: 'E' }
    );
    assert_eq!(
        StorageKind::of_path(&path("\\\\?\\Volume{1}\\a.vhd")),
        StorageKind::MountPoint
    );
    assert_eq!(ImageKind::of_path(&path("E:\\a.vhds")), ImageKind::VhdSet);
    assert_eq!(ImageKind::of_path(&path("E:\\a.avhd")), ImageKind::Vhd);
    assert_eq!(ImageKind::of_path(&path("E:\\a")), ImageKind::Other);
}

#[test]
fn builds_between_two_generations_count_as_the_older() {
    assert_eq!(HostGeneration::of_build(9200), None);
    assert_eq!(
        HostGeneration::of_build(9600),
        Some(HostGeneration::Server2012R2)
    );
    assert_eq!(
        HostGeneration::of_build(14_393),
        Some(HostGeneration::Server2016)
    );
    assert_eq!(
        HostGeneration::of_build(17_134),
        Some(HostGeneration::Server2016)
    );
    assert_eq!(
        HostGeneration::of_build(17_763),
        Some(HostGeneration::Server2019)
    );
    assert_eq!(
        HostGeneration::of_build(20_348),
        Some(HostGeneration::Server2022)
    );
    assert_eq!(
        HostGeneration::of_build(26_100),
        Some(HostGeneration::Server2025)
    );
    let parse = ConfigurationVersion::parse;
    assert!(parse("10.0") > parse("9.0"));
    assert_eq!(parse("eight"), None);
}

#[test]
fn marks_are_read_back_and_names_of_others_are_none() {
    let mark = Mark {
        job: JobId::from_bytes([7; 16]),
        owner: Some(OwnerId::new("server-1").expect("a name")),
    };
    assert_eq!(Mark::parse(&mark.to_string()), Some(mark.clone()));
    assert!(
        mark.to_string().chars().count() <= 100,
        "longer than a checkpoint's name may be"
    );
    for other in [
        "hikae",
        "hikae:",
        "hikae:job",
        "sql01 - (5/2/2026)",
        "",
        "hikae:@x",
    ] {
        assert_eq!(Mark::parse(other), None, "{other:?}");
    }
    let beside = MachineMark {
        kind: HeldKind::TrackingPoint,
        mark,
        id: Some("Microsoft:AB CD".to_owned()),
    };
    assert_eq!(
        MachineMark::parse(&beside.item_name(), &beside.item_text()),
        Some(beside)
    );
    assert_eq!(MachineMark::parse("OSName", "Windows"), None);
}

#[test]
fn times_read_as_a_calendar() {
    assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00Z");
    assert_eq!(
        Timestamp(1_709_164_799_000).to_string(),
        "2024-02-28T23:59:59Z"
    );
    assert_eq!(
        Timestamp(1_709_164_800_000).to_string(),
        "2024-02-29T00:00:00Z"
    );
    assert_eq!(Timestamp(-1000).to_string(), "1969-12-31T23:59:59Z");
    assert_eq!(
        Timestamp(1000).age_at(Timestamp(4000)),
        Duration::from_secs(3)
    );
    assert_eq!(Timestamp(4000).age_at(Timestamp(1000)), Duration::ZERO);
}

#[test]
fn a_level_satisfies_what_it_is_at_least_as_good_as() {
    use Consistency::{Application, Crash, FileSystem, SavedState};
    assert!(SavedState.satisfies(Application));
    assert!(Application.satisfies(FileSystem));
    assert!(!FileSystem.satisfies(Application));
    assert!(!Crash.satisfies(FileSystem));
    assert!(!Application.satisfies(SavedState));
    let policy = ConsistencyPolicy {
        wanted: Application,
        otherwise: vec![Crash, Application, Crash],
    };
    assert_eq!(policy.attempts(), [Application, Crash]);
}

proptest! {
    #[test]
    fn no_text_makes_an_id_path_or_mark_panic(text in ".{0,300}") {
        let _ = text.parse::<VmId>();
        let _ = NodeName::new(text.clone());
        let _ = Mark::parse(&text);
        let _ = MachineMark::parse(&text, &text);
        if let Ok(path) = HostPath::new(text.clone()) {
            let _ = (path.place(), path.extension(), path.folder(), StorageKind::of_path(&path));
            let _ = path.join(&text);
        }
    }

    #[test]
    fn a_machine_survives_its_text(bytes in any::<[u8; 16]>()) {
        let id = VmId::from_bytes(bytes);
        prop_assert_eq!(id.to_string().parse::<VmId>().expect("its own text"), id);
        let json = serde_json::to_string(&id).expect("json");
        prop_assert_eq!(serde_json::from_str::<VmId>(&json).expect("its own json"), id);
    }
}
