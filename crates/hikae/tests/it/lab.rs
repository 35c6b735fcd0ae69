//! The lab as a process of its own, and what an operator asks of its hosts over the wire: hosts, machines, coverage,
//! eligibility, checkpoints. All addresses are ports that the system chose.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::site::{Outcome, Site, os, text};

/// `hikae lab up`, running. Killed when it is dropped.
struct Lab {
    child: Child,
    _stdout: ChildStdout,
    stderr: PathBuf,
    ready: Value,
}

impl Lab {
    #[track_caller]
    fn up(site: &Site, more: &[&str]) -> Self {
        let mut words = vec!["lab", "up", "--speed", "60"];
        words.extend(more);
        let stderr = site.path("lab.stderr");
        let mut child = site
            .command(words)
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("a file"))
            .spawn()
            .expect("the binary starts");
        let mut stdout = child.stdout.take().expect("its standard output");
        let ready = serde_json::Deserializer::from_reader(&mut stdout)
            .into_iter::<Value>()
            .next()
            .and_then(Result::ok);
        let said = || fs::read_to_string(&stderr).unwrap_or_default();
        let ready = ready.unwrap_or_else(|| panic!("it said nothing but: {}", said()));
        assert_eq!(ready["simulated"], true, "{ready} {}", said());
        Self {
            child,
            _stdout: stdout,
            stderr,
            ready,
        }
    }

    fn address(&self, node: &str) -> &str {
        let nodes = self.ready["nodes"].as_array().expect("nodes");
        let found = nodes.iter().find(|it| it["name"] == node);
        let address = found.and_then(|it| it["address"].as_str());
        address.unwrap_or_else(|| panic!("no {node} in {}", self.ready))
    }

    fn password_file(&self) -> &Path {
        Path::new(self.ready["password_file"].as_str().expect("a file"))
    }

    /// Writes a node down under its own name.
    fn add(&self, site: &Site, node: &str, password_file: &Path, more: &[&str]) -> Outcome {
        let user = self.ready["user"].as_str().expect("a user");
        let mut words = vec!["host", "add", node, "--address", self.address(node)];
        words.extend(["--user", user, "--password-file", text(password_file)]);
        words.extend(more);
        site.run(words)
    }

    /// Ends it as an operator does.
    #[track_caller]
    fn down(mut self) {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it runs");
        let status = self.child.wait().expect("its end");
        let said = fs::read_to_string(&self.stderr).expect("its standard error");
        assert!(
            !said.contains("panicked") && !said.contains("warning"),
            "{said}"
        );
        assert_eq!(status.code(), Some(0), "{said}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // After `down` there is nobody left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list");
    list.iter().filter_map(|it| it["name"].as_str()).collect()
}

#[track_caller]
fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
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
    assert_eq!(
        steps(&report),
        [
            ("line", "ok"),
            ("login", "ok"),
            ("hyper-v", "ok"),
            ("windows", "ok"),
            ("cluster", "ok"),
            ("machines", "ok")
        ]
    );
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
fn without_json(command: &mut std::process::Command) -> String {
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
    lab.add(&site, "HV1", lab.password_file(), &[]).expect(0);
    let list = site.run(["vm", "list"]).expect(0).json();
    assert_eq!(list["machines"].as_array().map(Vec::len), Some(40));
    lab.down();
    assert!(site.path("kept/password").exists());
}
