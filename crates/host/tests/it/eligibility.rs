//! Rules: each broken alone, and what follows for the ways of backup.

use host::consistency::Consistency;
use host::eligibility::{
    EligibilityReport, Evidence, GuestDisks, GuestVolume, LastAttempt, RuleSet, ShadowStorage,
    Verdict, judge,
};
use host::facts::{
    Activity, CheckpointKind, ConfigurationVersion, DiskBacking, GuestFamily, Health,
    HostGeneration, ImageKind, PowerState, ReplicationRole, RoleFacts, RoleState, ServiceState,
    TrackingPointFacts, VmFacts,
};
use host::ids::{NodeName, TrackingPointId};
use host::path::HostPath;

use super::facts::{checkpoint, disk, machine};

const GIB: u64 = 1 << 30;

fn volume(name: &str) -> GuestVolume {
    GuestVolume {
        name: name.to_owned(),
        file_system: "NTFS".to_owned(),
        size_bytes: Some(40 * GIB),
        free_bytes: Some(9 * GIB),
        shadow_storage: ShadowStorage::Same,
    }
}

fn disks() -> GuestDisks {
    GuestDisks {
        has_dynamic: Some(false),
        volumes: Some(vec![volume("C:"), volume("D:")]),
    }
}

fn judged(machine: &VmFacts, disks: &GuestDisks, last: Option<&LastAttempt>) -> EligibilityReport {
    judge(&Evidence {
        machine,
        disks: Some(disks),
        last,
        owner: None,
    })
}

fn well() -> LastAttempt {
    LastAttempt {
        reached: Some(Consistency::Application),
        code: None,
        text: String::new(),
    }
}

#[test]
fn a_machine_that_is_well_keeps_every_rule_that_can_be_measured() {
    let report = judged(&machine(), &disks(), Some(&well()));
    let others: Vec<_> = report
        .rules
        .iter()
        .filter(|rule| rule.verdict != Verdict::Yes)
        .map(|rule| (rule.code.as_str(), rule.verdict))
        .collect();
    // What a guest does over the network, no host can see.
    assert_eq!(others, [("HK-E-ISCSI", Verdict::Unknown)]);
    let modes = report.modes;
    for verdict in [
        modes.application,
        modes.file_system,
        modes.crash,
        modes.saved_state,
        modes.tracking,
        modes.whole,
    ] {
        assert_eq!(verdict, Verdict::Yes, "{modes:?}");
    }
}

#[test]
fn codes_are_unique_and_every_no_has_a_remedy() {
    let mut machine = machine();
    machine.power = PowerState::Paused;
    machine.health = Health::LowSpace;
    machine.integration.backup = Some(ServiceState::Disabled);
    machine.replication = ReplicationRole::Replica;
    machine.has_assigned_devices = Some(true);
    let report = judged(
        &machine,
        &GuestDisks {
            has_dynamic: Some(true),
            volumes: Some(vec![]),
        },
        None,
    );
    let mut codes: Vec<&str> = report.rules.iter().map(|rule| rule.code.as_str()).collect();
    let count = codes.len();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), count);
    for rule in &report.rules {
        assert!(!rule.measured.is_empty(), "{}", rule.code);
        assert_eq!(
            rule.remedy.is_some(),
            rule.verdict == Verdict::No,
            "{}",
            rule.code
        );
    }
}

/// One thing broken, the rule that says so, and what it closes.
type Case = (&'static str, fn(&mut VmFacts), Closed);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Closed {
    Application,
    Online,
    Checkpoints,
    All,
    Tracking,
    Whole,
    Nothing,
}

const CASES: &[Case] = &[
    (
        "HK-E-SERVICE",
        |it| it.integration.backup = Some(ServiceState::Disabled),
        Closed::Online,
    ),
    (
        "HK-E-SERVICE",
        |it| it.integration.backup = Some(ServiceState::NoContact),
        Closed::Online,
    ),
    (
        "HK-E-SERVICE",
        |it| it.integration.backup = Some(ServiceState::Incompatible),
        Closed::Online,
    ),
    (
        "HK-E-OS",
        |it| it.guest.os_version = Some("5.0.2195".to_owned()),
        Closed::Application,
    ),
    (
        "HK-E-LINUX",
        |it| it.guest.family = Some(GuestFamily::Linux),
        Closed::Application,
    ),
    (
        "HK-E-RUNNING",
        |it| it.power = PowerState::Paused,
        Closed::Application,
    ),
    (
        "HK-E-RUNNING",
        |it| it.power = PowerState::Off,
        Closed::Nothing,
    ),
    (
        "HK-E-HOST",
        |it| it.host_generation = Some(HostGeneration::Server2012R2),
        Closed::Checkpoints,
    ),
    (
        "HK-E-HEALTH",
        |it| it.health = Health::Degraded,
        Closed::All,
    ),
    (
        "HK-E-HEALTH",
        |it| it.health = Health::LowSpace,
        Closed::All,
    ),
    (
        "HK-E-IDLE",
        |it| it.activities = vec![Activity::Merging],
        Closed::All,
    ),
    ("HK-E-COUNT", many_checkpoints, Closed::All),
    (
        "HK-E-REPLICA",
        |it| it.replication = ReplicationRole::Replica,
        Closed::All,
    ),
    (
        "HK-E-REPLICA",
        |it| it.replication = ReplicationRole::TestReplica,
        Closed::All,
    ),
    (
        "HK-E-ASSIGNED",
        |it| it.has_assigned_devices = Some(true),
        Closed::All,
    ),
    (
        "HK-E-VERSION",
        |it| it.version = Some(ConfigurationVersion { major: 5, minor: 0 }),
        Closed::Tracking,
    ),
    (
        "HK-E-FORMAT",
        |it| it.disks = vec![disk(0, "D:\\a.vhd")],
        Closed::Tracking,
    ),
    (
        "HK-E-FORMAT",
        |it| it.disks = vec![disk(0, "D:\\a.vhd"), disk(1, "D:\\b.vhdx")],
        Closed::Nothing,
    ),
    (
        "HK-E-PATH",
        |it| it.disks = vec![disk(0, "\\\\?\\Volume{1}\\a.vhdx")],
        Closed::Whole,
    ),
    (
        "HK-E-PASSTHROUGH",
        |it| {
            it.disks[0].backing = DiskBacking::PassThrough {
                device: "2".to_owned(),
            }
        },
        Closed::Whole,
    ),
    (
        "HK-E-FC",
        |it| it.disks[0].backing = DiskBacking::FibreChannel,
        Closed::Whole,
    ),
    (
        "HK-E-ISCSI",
        |it| {
            it.disks[0].backing = DiskBacking::GuestIscsi {
                target: "iqn".to_owned(),
            }
        },
        Closed::Whole,
    ),
    ("HK-E-SHARED", |it| share(it, "D:\\a.vhdx"), Closed::Whole),
    (
        "HK-E-VHDSET",
        |it| {
            share(it, "D:\\a.vhds");
            it.disks.push(disk(1, "D:\\b.vhdx"));
        },
        Closed::Whole,
    ),
    (
        "HK-E-CLUSTER",
        |it| it.role = Some(role(RoleState::Failed)),
        Closed::Online,
    ),
    (
        "HK-E-FOREIGN",
        |it| {
            it.checkpoints = vec![checkpoint(
                "Microsoft:1",
                CheckpointKind::Recovery,
                "theirs",
            )]
        },
        Closed::Nothing,
    ),
    (
        "HK-E-TREE",
        |it| {
            it.checkpoints = vec![checkpoint(
                "Microsoft:1",
                CheckpointKind::User,
                "before patch",
            )]
        },
        Closed::Nothing,
    ),
    (
        "HK-E-TPM",
        |it| it.security.has_tpm = Some(true),
        Closed::Nothing,
    ),
    (
        "HK-E-TPM",
        |it| it.security.is_shielded = Some(true),
        Closed::Nothing,
    ),
    (
        "HK-E-REFERENCES",
        |it| it.tracking_points = vec![point("a"), point("b")],
        Closed::Nothing,
    ),
];

fn many_checkpoints(machine: &mut VmFacts) {
    machine.checkpoints = (0..50)
        .map(|number| checkpoint(&format!("Microsoft:{number}"), CheckpointKind::Other, ""))
        .collect();
}

fn share(machine: &mut VmFacts, path: &str) {
    let path = HostPath::new(path).expect("a path");
    machine.disks[0].backing = DiskBacking::Image {
        image: ImageKind::of_path(&path),
        path,
        is_shared: Some(true),
    };
}

fn role(state: RoleState) -> RoleFacts {
    RoleFacts {
        cluster: "CL1".to_owned(),
        group: "sql01".to_owned(),
        owner: NodeName::new("hv01").expect("a name"),
        state,
        saves_when_offline: None,
        priority: None,
    }
}

fn point(id: &str) -> TrackingPointFacts {
    TrackingPointFacts {
        id: TrackingPointId::new(id).expect("an id"),
        created: None,
        disk_count: 1,
    }
}

#[test]
fn each_rule_is_broken_by_its_own_fault_and_closes_what_it_must() {
    for (code, fault, closed) in CASES {
        let mut machine = machine();
        fault(&mut machine);
        let report = judged(&machine, &disks(), Some(&well()));
        assert_eq!(report.verdict(code), Some(Verdict::No), "{code}");
        let modes = report.modes;
        let is_closed = |verdict: Verdict| verdict == Verdict::No;
        let expected = match closed {
            Closed::Application => [true, false, false, false, false, false],
            Closed::Online => [true, true, false, false, false, false],
            Closed::Checkpoints => [true, true, true, false, true, false],
            Closed::All => [true, true, true, true, true, false],
            Closed::Tracking => [false, false, false, false, true, false],
            Closed::Whole => [false, false, false, false, false, true],
            Closed::Nothing => [false; 6],
        };
        let measured = [
            is_closed(modes.application),
            is_closed(modes.file_system),
            is_closed(modes.crash),
            is_closed(modes.saved_state),
            is_closed(modes.tracking),
            is_closed(modes.whole),
        ];
        assert_eq!(measured, expected, "{code}: {modes:?}");
    }
}

type VolumeCase = (&'static str, fn(&mut GuestVolume));

#[test]
fn volumes_of_the_guest_are_measured_and_the_bad_one_is_named() {
    let cases: [VolumeCase; 4] = [
        ("HK-E-NTFS", |it| it.file_system = "FAT32".to_owned()),
        ("HK-E-ROOM", |it| it.free_bytes = Some(299 << 20)),
        ("HK-E-ROOM", |it| it.size_bytes = Some(GIB - 1)),
        ("HK-E-STORAGE", |it| {
            it.shadow_storage = ShadowStorage::Other
        }),
    ];
    for (code, fault) in cases {
        let mut disks = disks();
        fault(&mut disks.volumes.as_mut().expect("volumes")[1]);
        let report = judged(&machine(), &disks, Some(&well()));
        let rule = report
            .rules
            .iter()
            .find(|rule| rule.code.as_str() == code)
            .expect("the rule");
        assert_eq!(rule.verdict, Verdict::No, "{code}");
        assert!(
            rule.measured.contains("D:") && !rule.measured.contains("C:"),
            "{}",
            rule.measured
        );
        assert_eq!(report.modes.application, Verdict::No, "{code}");
        assert_eq!(report.modes.crash, Verdict::Yes, "{code}");
    }
}

#[test]
fn room_is_met_at_exactly_its_bounds() {
    let mut disks = disks();
    disks.volumes.as_mut().expect("volumes")[0].size_bytes = Some(GIB);
    disks.volumes.as_mut().expect("volumes")[0].free_bytes = Some(300 << 20);
    let report = judged(&machine(), &disks, None);
    assert_eq!(report.verdict("HK-E-ROOM"), Some(Verdict::Yes));
}

#[test]
fn what_nobody_looked_at_is_unknown_and_never_met() {
    let report = judge(&Evidence::of(&machine()));
    for code in [
        "HK-E-DYNAMIC",
        "HK-E-NTFS",
        "HK-E-ROOM",
        "HK-E-STORAGE",
        "HK-E-WRITERS",
        "HK-E-LOGON",
    ] {
        assert_eq!(report.verdict(code), Some(Verdict::Unknown), "{code}");
    }
    assert_eq!(report.modes.application, Verdict::Unknown);
    assert_eq!(report.modes.crash, Verdict::Yes);
    let mut silent = machine();
    silent.guest.family = None;
    silent.host_generation = None;
    silent.integration.backup = None;
    silent.is_role_known = false;
    let report = judge(&Evidence::of(&silent));
    assert_eq!(report.rule_set, RuleSet::Unknown);
    for code in ["HK-E-OS", "HK-E-HOST", "HK-E-SERVICE", "HK-E-CLUSTER"] {
        assert_eq!(report.verdict(code), Some(Verdict::Unknown), "{code}");
    }
    assert_eq!(report.modes.tracking, Verdict::Unknown);
}

#[test]
fn rules_about_a_windows_are_not_asked_of_a_linux_nor_tracking_of_an_old_host() {
    let mut machine = machine();
    machine.guest.family = Some(GuestFamily::Linux);
    let report = judge(&Evidence::of(&machine));
    for code in [
        "HK-E-OS",
        "HK-E-NTFS",
        "HK-E-ROOM",
        "HK-E-DYNAMIC",
        "HK-E-WRITERS",
    ] {
        assert_eq!(report.verdict(code), None, "{code}");
    }
    assert_eq!(report.modes.file_system, Verdict::Yes);
    machine.host_generation = Some(HostGeneration::Server2012R2);
    let report = judge(&Evidence::of(&machine));
    assert_eq!(report.rule_set, RuleSet::Saved);
    for code in ["HK-E-VERSION", "HK-E-FORMAT", "HK-E-REFERENCES"] {
        assert_eq!(report.verdict(code), None, "{code}");
    }
    assert_eq!(report.modes.saved_state, Verdict::Yes);
}

#[test]
fn the_last_attempt_tells_of_writers_and_of_the_right_to_log_on() {
    let last = LastAttempt {
        reached: Some(Consistency::Crash),
        code: Some(0x8004_23F4),
        text: "writer failed".to_owned(),
    };
    let report = judged(&machine(), &disks(), Some(&last));
    assert_eq!(report.verdict("HK-E-WRITERS"), Some(Verdict::No));
    assert_eq!(report.verdict("HK-E-LOGON"), Some(Verdict::Yes));
    let last = LastAttempt {
        reached: None,
        code: Some(0x8007_052F),
        text: String::new(),
    };
    let report = judged(&machine(), &disks(), Some(&last));
    assert_eq!(report.verdict("HK-E-LOGON"), Some(Verdict::No));
    assert_eq!(report.modes.crash, Verdict::No);
}

#[test]
fn our_own_checkpoint_is_not_foreign() {
    let mut machine = machine();
    let mark = format!("hikae:{}@server-1", "07070707-0707-0707-0707-070707070707");
    machine.checkpoints = vec![checkpoint("Microsoft:1", CheckpointKind::Recovery, &mark)];
    let owner = host::ids::OwnerId::new("server-1").expect("a name");
    let other = host::ids::OwnerId::new("server-2").expect("a name");
    let of = |owner| {
        judge(&Evidence {
            machine: &machine,
            disks: None,
            last: None,
            owner: Some(owner),
        })
    };
    assert_eq!(of(&owner).verdict("HK-E-FOREIGN"), Some(Verdict::Yes));
    assert_eq!(of(&other).verdict("HK-E-FOREIGN"), Some(Verdict::No));
}
