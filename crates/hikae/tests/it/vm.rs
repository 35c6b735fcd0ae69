//! Machines through the real command: backed up over the wire of a lab, brought back, killed in the middle.

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use super::lab::process::Lab;
use super::site::{Outcome, Repository, Site, os, text};

const NODES: [&str; 3] = ["ALONE", "NODE1", "NODE2"];

fn lab(site: &Site) -> Lab {
    let lab = Lab::up(site, &[]);
    for node in NODES {
        lab.add(site, node, lab.password_file(), &[]).expect(0);
    }
    lab
}

fn words(repository: &Repository<'_>, verb: &str, more: &[&str]) -> Vec<OsString> {
    let mut words = vec![os("vm"), os(verb), os("--repo"), repository.place.clone()];
    words.extend([os("--key-file"), repository.key_file.clone().into()]);
    words.extend(more.iter().map(|word| os(word)));
    words
}

fn vm(repository: &Repository<'_>, verb: &str, more: &[&str]) -> Outcome {
    repository.site.run(words(repository, verb, more))
}

/// What the bytes of restored images say about the guest of a machine.
#[track_caller]
fn examined(site: &Site, machine: &str, images: &[&Path]) -> String {
    let mut words = vec!["lab", "guest", machine, "examine"];
    words.extend(images.iter().map(|path| text(path)));
    let outcome = site.run(words);
    let report = outcome.json();
    let found = report["consistency"].as_str();
    found.unwrap_or_else(|| panic!("{report}")).to_owned()
}

#[test]
fn the_quickstart_proves_what_it_restored_and_leaves_nothing() {
    let site = Site::new();
    let report = site.run(["quickstart", "--dir", "quick"]).expect(0).json();
    assert_eq!(report["is_proved"], true, "{report}");
    assert_eq!(report["simulated"], true);
    assert_eq!(report["rounds"].as_array().map(Vec::len), Some(3));
    let machines = report["machines"].as_array().expect("machines");
    let partial: Vec<&Value> = machines
        .iter()
        .filter(|it| it["covered"] == "partial")
        .collect();
    assert_eq!(partial.len(), 1, "{report}");
    let second = report["rounds"][1].as_array().expect("a round");
    let sql = second.iter().find(|it| it["name"] == "sql").expect("sql");
    assert_eq!(sql["disks"][0]["scope"]["kind"], "changed-ranges", "{sql}");
    assert!(!site.path("quick").exists());
    let kept = site
        .run(["quickstart", "--disk", "--dir", "disk"])
        .expect(0);
    assert_eq!(kept.json()["is_proved"], true);
}

#[test]
fn machines_are_backed_up_by_what_changed_wherever_they_run() {
    let site = Site::new();
    let lab = lab(&site);
    let repository = site.init("repo");
    // A disk that is passed through is not in its point, and that is told.
    let first = vm(&repository, "backup", &["--all", "--parallel", "2"])
        .expect(3)
        .json();
    assert_eq!(
        first["machines"].as_array().map(Vec::len),
        Some(4),
        "{first}"
    );
    assert_eq!(first["failed"].as_array().map(Vec::len), Some(0), "{first}");
    site.run(["lab", "run", "60"]).expect(0);
    let second = vm(&repository, "backup", &["sql"]).expect(0).json();
    let disk = &second["machines"][0]["disks"][0];
    assert_eq!(disk["scope"]["kind"], "changed-ranges", "{second}");
    site.run(["lab", "migrate", "sql", "NODE2"]).expect(0);
    let third = vm(&repository, "backup", &["sql"]).expect(0).json();
    assert_eq!(third["machines"][0]["node"], "NODE2", "{third}");
    vm(&repository, "leftovers", &[]).expect(0);
    lab.down();
}

/// One disk of a machine by its label, as any other version's.
fn one_disk_by_its_label(repository: &Repository<'_>) {
    repository.disk("restore", &["sql@2", "one.raw"]).expect(1);
    let label = ["--disk", "scsi-0-1", "--format", "raw"];
    repository
        .disk("restore", &[&["sql@2", "one.raw"][..], &label].concat())
        .expect(0);
    repository
        .disk(
            "check",
            &[
                "one.raw",
                "sql@2",
                "--disk",
                "scsi-0-1",
                "--source-format",
                "raw",
            ],
        )
        .expect(0);
}

#[test]
fn machines_are_brought_back_as_files_over_themselves_and_beside() {
    let site = Site::new();
    let lab = lab(&site);
    let repository = site.init("repo");
    vm(&repository, "backup", &["sql", "web"]).expect(0);
    site.run(["lab", "run", "60"]).expect(0);
    vm(&repository, "backup", &["sql"]).expect(0);
    vm(
        &repository,
        "restore",
        &["sql@2", "--to", "folder", "--folder", "out"],
    )
    .expect(0);
    let images = [site.path("out/sql.vhdx"), site.path("out/sql-data.vhdx")];
    let images: Vec<&Path> = images.iter().map(AsRef::as_ref).collect();
    assert_eq!(examined(&site, "sql", &images), "application");

    one_disk_by_its_label(&repository);
    let refused = vm(&repository, "restore", &["sql@1", "--to", "original"])
        .expect(1)
        .json();
    assert!(
        refused["problem"]["action"]
            .as_str()
            .is_some_and(|it| it.contains("--turn-off")),
        "{refused}"
    );
    let plan = vm(
        &repository,
        "restore",
        &["sql@1", "--to", "original", "--turn-off", "--dry-run"],
    );
    assert_eq!(
        plan.expect(0).json()["images"].as_array().map(Vec::len),
        Some(2)
    );
    let over = vm(
        &repository,
        "restore",
        &["sql@1", "--to", "original", "--turn-off", "--start"],
    );
    let over = over.expect(0).json();
    assert_eq!(
        (&over["is_started"], &over["is_proved"]),
        (&true.into(), &true.into())
    );
    let beside = vm(
        &repository,
        "restore",
        &[
            "web",
            "--to",
            "host",
            "--node",
            "NODE1",
            "--folder",
            "D:\\restored",
            "--rename",
            "web2",
        ],
    );
    assert_eq!(beside.expect(0).json()["machine"], "web2");
    let listed = site.run(["vm", "list"]).expect(0).json();
    let names = super::lab::names(&listed["machines"]);
    assert!(
        names.contains(&"web2") && names.contains(&"sql"),
        "{listed}"
    );

    // What tracking said before is believed no more.
    let after = vm(&repository, "backup", &["sql"]).expect(0).json();
    let disk = &after["machines"][0]["disks"][0];
    assert_eq!(disk["scope"]["kind"], "compare-everything", "{after}");
    lab.down();
}

#[test]
fn a_backup_that_is_killed_leaves_nothing_for_longer_than_the_next_look() {
    let site = Site::new();
    let lab = lab(&site);
    let repository = site.init("repo");
    vm(&repository, "backup", &["sql"]).expect(0);
    let whole = site.start(words(&repository, "backup", &["sql"]));
    let took = whole.wait().expect(0).took;
    let mut killed = 0;
    for part in 1..10 {
        site.run(["lab", "guest", "sql", "write", "1"]).expect(0);
        let running = site.start(words(&repository, "backup", &["sql"]));
        let outcome = running.kill_after(took.mul_f64(f64::from(part) / 10.0));
        killed += u32::from(outcome.status.code().is_none());
        let left = vm(&repository, "leftovers", &["--wait", "60"])
            .expect(0)
            .json();
        assert_eq!(left["waiting"].as_array().map(Vec::len), Some(0), "{left}");
        let status = site.run(["lab", "status"]).expect(0).json();
        let sql = super::lab::named(&status["vms"], "sql");
        assert_eq!(sql["recovery_checkpoints"], 0, "{part}: {sql}");
        assert_eq!(sql["merges_suspended"], false, "{part}: {sql}");
        assert_eq!(sql["state"], "running", "{part}: {sql}");
    }
    assert!(killed >= 4, "{killed} of 9 were killed in time");
    vm(&repository, "backup", &["sql"]).expect(0);
    vm(
        &repository,
        "restore",
        &["sql", "--to", "folder", "--folder", "out"],
    )
    .expect(0);
    let images = [site.path("out/sql.vhdx"), site.path("out/sql-data.vhdx")];
    let images: Vec<&Path> = images.iter().map(AsRef::as_ref).collect();
    assert_eq!(examined(&site, "sql", &images), "application");
    repository.repo("verify", &[]).expect(0);
    lab.down();
}

#[test]
fn what_another_product_left_is_shown_with_the_command_that_removes_it() {
    let site = Site::new();
    let lab = lab(&site);
    let (ours, other) = (site.init("repo"), site.init("other"));
    vm(&ours, "leftovers", &[]).expect(0);
    // Seen from a repository that knows nothing of it, a tracking point is a stranger's.
    vm(&other, "backup", &["web"]).expect(0);
    let seen = vm(&ours, "leftovers", &[]).expect(3).json();
    let strange = &seen["foreign_tracking"][0];
    assert_eq!(strange["machine"], "web", "{seen}");
    let command = strange["command"].as_str().expect("a command");
    let id = strange["point"].as_str().expect("an id");
    let words = [
        "vm",
        "checkpoint",
        "drop",
        strange["vm"].as_str().expect("an id"),
        id,
    ];
    assert_eq!(
        command,
        format!("hikae vm checkpoint drop {} \"{id}\"", words[3])
    );
    let dropped = site.run(words).expect(0).json();
    assert_eq!(dropped["was"], "removed", "{dropped}");
    site.run(words).expect(2);
    vm(&ours, "leftovers", &[]).expect(0);
    // Whose it was reads whole next time, and loses nothing.
    let next = vm(&other, "backup", &["web"]).expect(0).json();
    let disk = &next["machines"][0]["disks"][0];
    assert_eq!(disk["scope"]["kind"], "compare-everything", "{next}");

    // The checkpoint of a backup that was killed, and whose journal is lost.
    let mut is_left = false;
    for part in 1..40 {
        let running = site.start(self::words(&ours, "backup", &["sql"]));
        running.kill_after(std::time::Duration::from_millis(20 * part));
        let status = site.run(["lab", "status"]).expect(0).json();
        if super::lab::named(&status["vms"], "sql")["recovery_checkpoints"] != 0 {
            is_left = true;
            break;
        }
    }
    assert!(is_left, "no kill came between checkpoint and end");
    std::fs::remove_dir_all(site.path("home/.local/state/hikae/custody"))
        .expect("the journals are lost");
    // The host ends what it was asked for.
    site.run(["lab", "run", "120"]).expect(0);
    let seen = vm(&ours, "leftovers", &[]).expect(3).json();
    let strangers = seen["foreign"].as_array().expect("a list");
    assert!(!strangers.is_empty(), "{seen}");
    let mut dropped = Vec::new();
    for strange in strangers {
        let id = strange["checkpoint"].as_str().expect("an id");
        let outcome = site.run(["vm", "checkpoint", "drop", "sql", id]);
        let code = outcome.status.code();
        assert!(matches!(code, Some(0 | 3)), "{code:?}: {seen}");
        dropped.push(outcome);
    }
    let status = site.run(["lab", "status"]).expect(0).json();
    let sql = super::lab::named(&status["vms"], "sql");
    assert_eq!(sql["recovery_checkpoints"], 0, "{dropped:?}: {seen} {sql}");
    lab.down();
}
