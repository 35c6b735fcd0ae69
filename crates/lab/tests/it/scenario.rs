//! Scenarios: what people write, and what comes of it.

use std::time::Duration;

use lab::estate::{ControllerKind, Drive, HostName, PowerState};
use lab::scenario::Scenario;

#[test]
fn the_quickstart_is_a_cluster_a_standalone_host_and_four_vms_that_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut estate = Scenario::quickstart()
        .unwrap()
        .build(folder.path())
        .unwrap();
    estate.advance(Duration::from_secs(10)).unwrap();
    let names: Vec<_> = estate
        .systems()
        .map(|vm| vm.settings.name.clone())
        .collect();
    assert_eq!(names, ["sql", "web", "legacy", "san"]);
    assert!(estate.systems().all(|vm| vm.power == PowerState::Running));
    assert!(estate.systems().all(|vm| vm.guest().is_some()));
    let cluster = estate.clusters().next().unwrap();
    let roles: Vec<_> = cluster
        .groups
        .values()
        .filter(|group| group.vm.is_some())
        .collect();
    assert_eq!(roles.len(), 2);
    let san = estate.vms_named("san").next().unwrap();
    let handed_through = |(_, drive): &(_, &Drive)| matches!(drive, Drive::PassThrough(_));
    assert_eq!(
        san.settings
            .hardware
            .drives()
            .filter(handed_through)
            .count(),
        1
    );
}

#[test]
fn a_count_stands_for_so_many_and_ide_overflows_to_scsi() {
    let folder = tempfile::tempdir().unwrap();
    let disk = r#"{ "file": "d0.vhd", "mib": 8 }"#;
    let disks: Vec<String> = (0..6)
        .map(|it| disk.replace("d0", &format!("d{it}")))
        .collect();
    let text = format!(
        r#"{{ "data": "lazy", "hosts": [{{ "name": "H" }}],
            "vms": [{{ "name": "vm", "host": "h", "count": 30, "generation": 1, "disks": [{}] }}] }}"#,
        disks.join(",")
    );
    let mut estate = Scenario::parse(&text)
        .unwrap()
        .build(folder.path())
        .unwrap();
    estate.advance(Duration::from_secs(10)).unwrap();
    assert_eq!(estate.vms_on(&HostName::new("H")).count(), 30);
    let vm = estate.vms_named("vm0030").next().unwrap();
    let kinds: Vec<_> = vm
        .settings
        .hardware
        .controllers
        .iter()
        .map(|it| (it.kind, it.drives.len()))
        .collect();
    assert_eq!(
        kinds,
        [
            (ControllerKind::Ide, 2),
            (ControllerKind::Ide, 2),
            (ControllerKind::Scsi, 2)
        ]
    );
}

#[test]
fn what_does_not_fit_is_refused_with_its_word() {
    let folder = tempfile::tempdir().unwrap();
    for (text, word) in [
        (r#"{ "hosts": [], "vmz": [] }"#, "vmz"),
        (
            r#"{ "hosts": [{ "name": "H", "windows": "2008" }] }"#,
            "2008",
        ),
        (
            r#"{ "hosts": [], "switches": { "no-such": "optimistic" } }"#,
            "no-such",
        ),
        (
            r#"{ "hosts": [], "clusters": [{ "name": "C", "nodes": ["X"] }] }"#,
            "X",
        ),
        (
            r#"{ "hosts": [{ "name": "H" }], "vms": [{ "name": "v", "host": "H", "disks": [{ "file": "a.txt", "mib": 1 }] }] }"#,
            "a.txt",
        ),
        (
            r#"{ "hosts": [{ "name": "H" }, { "name": "h" }] }"#,
            "h already",
        ),
    ] {
        let error = Scenario::parse(text).and_then(|it| it.build(folder.path()).map(|_| ()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
