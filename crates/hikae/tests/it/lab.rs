//! The lab as a process of its own, and what an operator asks of its hosts over the wire: hosts, machines, coverage,
//! eligibility, checkpoints. All addresses are ports that the system chose.

mod control;
pub mod process;

use std::fs;

use serde_json::Value;

use self::process::Lab;
use super::site::{Site, os};

/// The names in a list.
pub fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list");
    list.iter().filter_map(|it| it["name"].as_str()).collect()
}

/// The one of a name in a list.
#[track_caller]
pub fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = list
        .as_array()
        .expect("a list")
        .iter()
        .find(|it| it["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}"))
}

fn steps(report: &Value) -> Vec<(&str, &str)> {
    let steps = report["hosts"][0]["steps"].as_array().expect("steps");
    steps
        .iter()
        .filter_map(|it| Some((it["step"].as_str()?, it["outcome"].as_str()?)))
        .collect()
}

#[test]
fn hosts_of_a_lab_are_written_down_checked_and_struck_out() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    site.run(["vm", "list"]).expect(1);
    let report = lab
        .add(&site, "ALONE", lab.password_file(), &[])
        .expect(0)
        .json();
    let taken: Vec<&str> = steps(&report).into_iter().map(|it| it.0).collect();
    let expected = [
        "line", "login", "hyper-v", "windows", "cluster", "machines", "files",
    ];
    for step in expected {
        assert!(taken.contains(&step), "{step}: {report}");
    }
    assert!(steps(&report).iter().all(|it| it.1 == "ok"), "{report}");
    let again = lab.add(&site, "ALONE", lab.password_file(), &[]).expect(1);
    assert_eq!(again.json()["problem"]["code"], "HK-3003");
    lab.add(&site, "ALONE", lab.password_file(), &["--replace"])
        .expect(0);

    // Neither the file nor anything that is told has the password in it.
    let password = fs::read_to_string(lab.password_file()).expect("the password");
    let kept = fs::read_to_string(site.path("home/config/hikae/hosts.json")).expect("the hosts");
    assert!(
        !kept.contains(password.trim()) && kept.contains("password_file"),
        "{kept}"
    );
    let listed = site.run(["host", "list"]).expect(0);
    assert_eq!(names(&listed.json()["hosts"]), ["ALONE"]);
    assert!(!listed.stdout.contains(password.trim()));

    // A wrong password is found at the login, and says so to whoever asks for machines.
    let wrong = site.path("wrong");
    fs::write(&wrong, "not it\n").expect("a file");
    let report = lab
        .add(&site, "ALONE", &wrong, &["--replace"])
        .expect(3)
        .json();
    let failed: Vec<_> = steps(&report)
        .into_iter()
        .filter(|it| it.1 == "failed")
        .collect();
    assert_eq!(failed, [("login", "failed")], "{report}");
    let problem = site.run(["vm", "list"]).expect(1).json();
    assert_eq!(problem["problem"]["code"], "HK-4002", "{problem}");

    site.run(["host", "remove", "nobody"]).expect(2);
    site.run(["host", "remove", "alone"]).expect(0);
    let listed = site.run(["host", "list"]).expect(0).json();
    assert_eq!(names(&listed["hosts"]).len(), 0);
    lab.down();
}

#[test]
fn what_makes_no_sense_of_a_host_is_refused_before_anything_is_written() {
    let site = Site::new();
    fs::write(site.path("password"), "secret\n").expect("a file");
    let add = |more: &[&str]| {
        let mut words = vec![
            "host",
            "add",
            "hv",
            "--user",
            "u",
            "--password-file",
            "password",
        ];
        words.extend(more);
        site.run(words)
    };
    add(&["--address", "ftp://hv"]).expect(1);
    add(&["--address", "http://hv", "--pin", "00"]).expect(2);
    add(&["--address", "http://hv", "--login", "basic"]).expect(2);
    let good = "00".repeat(32);
    add(&["--address", "http://hv", "--pin", &good]).expect(2);
    site.run([
        "host",
        "add",
        "a b",
        "--address",
        "hv",
        "--user",
        "u",
        "--password-file",
        "password",
    ])
    .expect(1);
    assert!(!site.path("home/config/hikae/hosts.json").exists());

    // Nobody listens there: it is written down all the same, and the check says what is wrong.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("its address"));
    drop(listener);
    let report = add(&["--address", &address]).expect(3).json();
    let failed: Vec<_> = steps(&report)
        .into_iter()
        .filter(|it| it.1 == "failed")
        .collect();
    assert_eq!(failed, [("line", "failed")], "{report}");
    let problem = site.run(["vm", "list"]).expect(1).json();
    assert_eq!(problem["problem"]["code"], "HK-4001");
}

#[test]
fn machines_of_a_lab_are_listed_with_coverage_and_eligibility() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    for node in ["NODE1", "NODE2", "ALONE"] {
        lab.add(&site, node, lab.password_file(), &[]).expect(0);
    }
    let list = site.run(["vm", "list"]).expect(0).json();
    let mut found = names(&list["machines"]);
    found.sort_unstable();
    assert_eq!(found, ["legacy", "san", "sql", "web"]);
    for machine in list["machines"].as_array().expect("machines") {
        assert_eq!(machine["power"], "running", "{machine}");
    }
    // The other node of the cluster is found by itself.
    let list = site.run(["vm", "list", "--host", "node1"]).expect(0).json();
    let mut found = names(&list["machines"]);
    found.sort_unstable();
    assert_eq!(found, ["sql", "web"]);

    let shown = site.run(["vm", "show", "SQL"]).expect(0).json();
    assert_eq!(shown["machine"]["node"], "NODE1");
    assert_eq!(shown["machine"]["role"]["cluster"], "CLUSTER");
    assert_eq!(shown["machine"]["disks"].as_array().map(Vec::len), Some(2));
    let id = shown["machine"]["id"].as_str().expect("an id").to_owned();
    let by_id = site.run(["vm", "show", &id]).expect(0).json();
    assert_eq!(by_id["machine"]["name"], "sql");
    site.run(["vm", "show", "nobody"]).expect(2);

    let coverage = site.run(["vm", "coverage"]).expect(3).json();
    let machines = &coverage["machines"];
    assert_eq!(named(machines, "sql")["level"], "full");
    assert_eq!(named(machines, "san")["level"], "partial");
    let handed_through = named(machines, "san")["lines"]
        .as_array()
        .expect("lines")
        .iter()
        .find(|line| line["coverage"]["coverage"] == "impossible")
        .expect("the pass-through disk");
    assert_eq!(handed_through["coverage"]["obstacle"], "pass-through");
    site.run(["vm", "coverage", "sql", "web"]).expect(0);

    let eligibility = site.run(["vm", "eligibility"]).expect(0).json();
    let mode = |name: &str, mode: &str| {
        named(&eligibility["machines"], name)["modes"][mode]
            .as_str()
            .expect("a verdict")
            .to_owned()
    };
    assert_eq!(mode("sql", "file_system"), "yes", "{eligibility}");
    assert_eq!(mode("legacy", "application"), "no");
    assert_eq!(mode("web", "application"), "no");
    assert_eq!(mode("san", "whole"), "no");

    let host = site.run(["host", "show", "NODE2"]).expect(0).json();
    assert_eq!(host["clusters"][0]["name"], "CLUSTER");
    assert_eq!(
        host["clusters"][0]["nodes"].as_array().map(Vec::len),
        Some(2)
    );

    // People are told the same in words.
    let mut told = site.command([os("vm"), os("coverage"), os("san")]);
    let said = without_json(&mut told);
    assert!(said.contains("IMPOSSIBLE"), "{said}");
    let mut told = site.command([os("vm"), os("eligibility"), os("legacy")]);
    let said = without_json(&mut told);
    assert!(said.contains("HK-E-SERVICE"), "{said}");
    lab.down();
}

/// Runs a command as people do.
pub fn without_json(command: &mut std::process::Command) -> String {
    let words: Vec<_> = command
        .get_args()
        .filter(|word| *word != "--json")
        .map(ToOwned::to_owned)
        .collect();
    let mut plain = std::process::Command::new(command.get_program());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => plain.env(key, value),
            None => plain.env_remove(key),
        };
    }
    let output = plain.args(words).output().expect("it runs");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn checkpoints_are_made_listed_and_deleted() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    lab.add(&site, "ALONE", lab.password_file(), &[]).expect(0);
    let count = || {
        let list = site
            .run(["vm", "checkpoint", "list", "san"])
            .expect(0)
            .json();
        list["checkpoints"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(count(), 0);
    let refused = site.run(["vm", "checkpoint", "create", "san", "--name", "before"]);
    // A disk of the host cannot be in a checkpoint: Windows refuses, and so does the lab.
    assert_ne!(refused.status.code(), Some(0), "{refused:?}");
    let made = site
        .run([
            "vm",
            "checkpoint",
            "create",
            "legacy",
            "--name",
            "before",
            "--kind",
            "standard",
        ])
        .expect(0)
        .json();
    let id = made["reference"]["checkpoint"]
        .as_str()
        .expect("an id")
        .to_owned();
    let list = site
        .run(["vm", "checkpoint", "list", "legacy"])
        .expect(0)
        .json();
    assert_eq!(names(&list["checkpoints"]), ["before"]);
    assert_eq!(list["checkpoints"][0]["id"], id.as_str());
    site.run(["vm", "checkpoint", "delete", "legacy", "after"])
        .expect(2);
    let gone = site
        .run(["vm", "checkpoint", "delete", "legacy", "before"])
        .expect(0)
        .json();
    assert_eq!(gone["merge"], "done");
    let list = site
        .run(["vm", "checkpoint", "list", "legacy"])
        .expect(0)
        .json();
    assert_eq!(list["checkpoints"].as_array().map(Vec::len), Some(0));
    lab.down();
}

#[test]
fn a_lab_wants_a_scenario_that_makes_sense_and_an_empty_folder() {
    let site = Site::new();
    fs::create_dir(site.path("full")).expect("a folder");
    fs::write(site.path("full/letter"), "dear").expect("a file");
    let problem = site.run(["lab", "up", "--folder", "full"]).expect(1).json();
    assert_eq!(problem["problem"]["code"], "HK-3003");
    fs::write(
        site.path("scenario.json"),
        r#"{ "hosts": [], "hostess": 1 }"#,
    )
    .expect("a file");
    let problem = site
        .run(["lab", "up", "--scenario", "scenario.json"])
        .expect(1);
    assert!(problem.stdout.contains("hostess"), "{problem:?}");

    // Many machines without data, in a folder that stays.
    let many = r#"{ "data": "lazy", "hosts": [{ "name": "HV1" }],
        "vms": [{ "name": "vm", "host": "HV1", "count": 40, "disks": [{ "file": "d.vhdx", "mib": 8 }] }] }"#;
    fs::write(site.path("scenario.json"), many).expect("a file");
    let lab = Lab::up(&site, &["--scenario", "scenario.json", "--folder", "kept"]);
    // Disks without data are no files: only that is missing.
    let added = lab.add(&site, "HV1", lab.password_file(), &[]).expect(3);
    let added = added.json();
    let failed: Vec<_> = steps(&added)
        .into_iter()
        .filter(|it| it.1 != "ok")
        .collect();
    assert_eq!(failed, [("files", "failed")], "{added}");
    let list = site.run(["vm", "list"]).expect(0).json();
    assert_eq!(list["machines"].as_array().map(Vec::len), Some(40));
    lab.down();
    assert!(site.path("kept/password").exists());
}
