//! What is done to a lab that runs: looked at, moved on, broken, put right, ended; and what a driver sees of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::super::site::{Outcome, Site, text};
use super::process::Lab;
use super::{named, names, without_json};

fn ask(site: &Site, words: &[&str]) -> Outcome {
    let mut all = vec!["lab"];
    all.extend(words);
    site.run(all)
}

#[track_caller]
fn done(site: &Site, words: &[&str]) -> Value {
    ask(site, words).expect(0).json()
}

fn vm(site: &Site, name: &str) -> Value {
    let status = done(site, &["status"]);
    named(&status["vms"], name).clone()
}

fn add_all(site: &Site, lab: &Lab) {
    for node in ["NODE1", "NODE2", "ALONE"] {
        lab.add(site, node, lab.password_file(), &[]).expect(0);
    }
}

/// What the wire says of where a machine is.
fn seen(site: &Site, name: &str) -> (String, String) {
    let list = site.run(["vm", "list"]).expect(0).json();
    let machine = named(&list["machines"], name);
    let word = |key: &str| {
        machine[key]
            .as_str()
            .unwrap_or_else(|| panic!("no {key}: {machine}"))
            .to_owned()
    };
    (word("node").to_uppercase(), word("power"))
}

#[test]
fn a_lab_is_found_looked_at_and_ended_by_its_user_alone() {
    let site = Site::new();
    let refused = ask(&site, &["status"]).expect(1);
    assert!(refused.stdout.contains("lab up"), "{refused:?}");
    let lab = Lab::up(&site, &[]);
    let socket = Path::new(lab.ready["control"].as_str().expect("a socket")).to_owned();
    let mode = fs::metadata(&socket)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let folder = socket.parent().expect("a folder").to_owned();
    let mode = fs::metadata(&folder)
        .expect("the folder")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);

    let status = done(&site, &["status"]);
    assert_eq!(status["simulated"], true);
    assert_eq!(names(&status["hosts"]), ["ALONE", "NODE1", "NODE2"]);
    assert_eq!(names(&status["vms"]), ["legacy", "san", "sql", "web"]);
    let sql = named(&status["vms"], "sql");
    assert_eq!(
        (&sql["node"], &sql["state"]),
        (&"NODE1".into(), &"running".into())
    );
    assert_eq!(names(&status["clusters"]), ["CLUSTER"]);
    let roles = status["clusters"][0]["roles"].as_array().expect("roles");
    assert!(
        roles.iter().all(|role| role["state"] == "online"),
        "{status}"
    );
    let said = without_json(&mut site.command(["lab", "status"]));
    for word in [
        "A LAB",
        "C:\\ClusterStorage\\Volume1",
        "CLUSTER: up",
        "legacy",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    done(&site, &["status", "--lab", text(&folder)]);

    // A second one: somebody has to say which is meant.
    let second = Lab::up(&site, &["--folder", "second"]);
    let refused = ask(&site, &["status"]).expect(1);
    assert!(refused.stdout.contains("--lab"), "{refused:?}");
    let ended = done(&site, &["down", "--lab", "second"]);
    assert_eq!(ended["folder_stays"], true);
    second.ended();
    assert!(site.path("second/estate").exists());
    assert!(!site.path("second/control.sock").exists());

    // One that was killed is not found, and does not stand in the way.
    let killed = Lab::up(&site, &["--folder", "killed"]);
    rustix::process::kill_process(killed.pid(), Signal::KILL).expect("it runs");
    drop(killed);
    ask(&site, &["status", "--lab", "killed"]).expect(2);
    done(&site, &["down"]);
    lab.ended();
    assert!(!folder.exists());
    ask(&site, &["status"]).expect(1);
}

#[test]
fn a_lab_in_a_folder_with_a_long_name_is_reached() {
    let site = Site::new();
    let long = format!("{}/lab", "a-name-that-is-long".repeat(10));
    fs::create_dir(site.path(&"a-name-that-is-long".repeat(10))).expect("a folder");
    let lab = Lab::up(&site, &["--folder", &long]);
    done(&site, &["status", "--lab", &long]);
    done(&site, &["down"]);
    lab.ended();
}

#[test]
fn time_passes_at_once_and_guests_work_meanwhile() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    let report = done(&site, &["run", "10m"]);
    let guests = report["guests"].as_array().expect("guests");
    assert_eq!(guests.len(), 4, "{report}");
    for guest in guests {
        let (from, to) = (guest["from"].as_u64(), guest["to"].as_u64());
        assert!(
            to.zip(from).is_some_and(|(to, from)| to >= from + 600),
            "{report}"
        );
    }
    let day = |text: &Value| text.as_str().map(|it| it[11..16].to_owned());
    assert_ne!(day(&report["from"]), day(&report["to"]));
    ask(&site, &["run", "soon"]).expect(2);
    ask(&site, &["run", "900d"]).expect(1);
    lab.down();
}

#[test]
fn faults_strike_what_the_driver_does() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    lab.add(&site, "ALONE", lab.password_file(), &[]).expect(0);
    let list = done(&site, &["fault", "list"]);
    let kinds = list["kinds"].as_array().expect("kinds");
    assert!(kinds.len() > 30, "{list}");
    assert!(
        kinds
            .iter()
            .all(|kind| kind["help"].as_str().is_some_and(|it| !it.is_empty()))
    );

    // An operation fails once, and is told as the host told it.
    let create = |name: &str| {
        site.run([
            "vm",
            "checkpoint",
            "create",
            "legacy",
            "--name",
            name,
            "--kind",
            "standard",
        ])
    };
    let armed = done(
        &site,
        &["fault", "inject", "checkpoint-fails", "--vm", "legacy"],
    );
    assert_eq!(armed["armed"][0]["vm"], "legacy");
    let failed = create("first");
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    create("second").expect(0);
    let list = done(&site, &["fault", "list"]);
    assert_eq!(list["struck"][0]["kind"], "checkpoint-fails");
    assert_eq!(list["armed"].as_array().map(Vec::len), Some(0));
    lab.down();
}

#[test]
fn faults_of_the_wire_are_met_and_nonsense_is_refused() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    lab.add(&site, "ALONE", lab.password_file(), &[]).expect(0);

    // The wire breaks in the middle of an answer, and the driver asks again; it is slow; it refuses for no reason.
    for fault in ["wire-cut-inside", "wire-cut-before", "wire-login-expires"] {
        done(
            &site,
            &["fault", "inject", fault, "--node", "ALONE", "--after", "1"],
        );
        let list = site.run(["vm", "list"]).expect(0).json();
        assert_eq!(names(&list["machines"]).len(), 2, "{fault}: {list}");
    }
    done(
        &site,
        &[
            "fault",
            "inject",
            "wire-slow",
            "--lasts",
            "1500ms",
            "--node",
            "ALONE",
        ],
    );
    let slow = site.run(["vm", "list"]).expect(0);
    assert!(slow.took.as_millis() >= 1500, "{slow:?}");
    let many = ["--times", "500", "--node", "ALONE"];
    let refuse = ["fault", "inject", "wire-fault", "--fault", "accessdenied"];
    done(&site, &[&refuse[..], &many].concat());
    let denied = site.run(["vm", "list"]);
    assert_ne!(denied.status.code(), Some(0), "{denied:?}");
    assert!(denied.stdout.contains("asked for"), "{denied:?}");
    let cleared = done(&site, &["fault", "clear"]);
    assert!(
        cleared["wire"].as_u64().is_some_and(|it| it > 400),
        "{cleared}"
    );
    site.run(["vm", "list"]).expect(0);

    // What makes no sense is refused.
    let refused = ask(&site, &["fault", "inject", "gremlins"]).expect(2);
    assert!(refused.stdout.contains("gremlins"), "{refused:?}");
    let refused = ask(&site, &["fault", "inject", "node-off", "--vm", "legacy"]).expect(1);
    assert!(refused.stdout.contains("--node"), "{refused:?}");
    ask(
        &site,
        &["fault", "inject", "wire-fault", "--fault", "Nonsense"],
    )
    .expect(2);
    ask(&site, &["fault", "inject", "merge-fails", "--vm", "nobody"]).expect(2);
    lab.down();
}

#[test]
fn disasters_of_nodes_and_volumes_are_seen_and_end() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    add_all(&site, &lab);
    assert_eq!(seen(&site, "sql").0, "NODE1");

    // A node loses power: what it ran starts on the other one.
    done(&site, &["fault", "inject", "node-off", "--node", "node1"]);
    done(&site, &["run", "1m"]);
    let status = done(&site, &["status"]);
    assert_eq!(named(&status["hosts"], "NODE1")["state"], "down");
    assert_eq!(vm(&site, "sql")["node"], "NODE2");
    let list = site.run(["vm", "list"]).expect(3).json();
    let sql = named(&list["machines"], "sql");
    assert_eq!(
        sql["node"].as_str().map(str::to_uppercase).as_deref(),
        Some("NODE2")
    );
    ask(&site, &["fault", "inject", "node-off", "--node", "NODE1"]).expect(1);
    let cleared = done(&site, &["fault", "clear"]);
    assert_eq!(cleared["nodes_away"], serde_json::json!(["NODE1"]));
    done(&site, &["fault", "inject", "node-on", "--node", "NODE1"]);
    done(&site, &["run", "3m"]);
    assert_eq!(
        named(&done(&site, &["status"])["hosts"], "NODE1")["state"],
        "up"
    );

    // The other one is drained: its roles go back.
    done(&site, &["fault", "inject", "node-drain", "--node", "NODE2"]);
    done(&site, &["run", "1m"]);
    assert_eq!(seen(&site, "sql").0, "NODE1");
    assert_eq!(seen(&site, "web").0, "NODE1");
    done(
        &site,
        &["fault", "inject", "node-resume", "--node", "NODE2"],
    );

    // A volume is full; a drive letter that several hosts have needs a node.
    let path = "C:\\ClusterStorage\\Volume1";
    let full = ["fault", "inject", "volume-full", "--volume"];
    done(&site, &[&full[..], &[path]].concat());
    let free = |path: &str| {
        let status = done(&site, &["status"]);
        let volumes = status["volumes"].as_array().expect("volumes");
        let volume = volumes.iter().find(|it| it["path"] == path);
        volume
            .and_then(|it| it["free_bytes"].as_u64())
            .expect("a volume")
    };
    assert_eq!(free(path), 0);
    done(&site, &["fault", "clear"]);
    assert!(free(path) > 1 << 30);
    let several = ask(&site, &[&full[..], &["D:"]].concat()).expect(1);
    assert!(several.stdout.contains("--node"), "{several:?}");
    done(
        &site,
        &[&full[..], &["D:", "--node", "ALONE", "--leave", "1"]].concat(),
    );
    lab.down();
}

#[test]
fn machines_move_and_the_driver_follows() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    add_all(&site, &lab);
    let moved = done(&site, &["migrate", "sql", "NODE2"]);
    assert_eq!(moved["vm"]["node"], "NODE2");
    assert_eq!(
        seen(&site, "sql"),
        ("NODE2".to_owned(), "running".to_owned())
    );
    ask(&site, &["migrate", "sql", "NODE2"]).expect(1);
    ask(&site, &["migrate", "sql", "NODE9"]).expect(2);
    ask(&site, &["migrate", "nobody", "NODE1"]).expect(2);

    // Its files alone.
    let old = lab.local("ALONE", "D:\\vm\\legacy\\legacy.vhd");
    assert!(old.exists(), "{}", old.display());
    done(
        &site,
        &["migrate", "legacy", "ALONE", "--storage", "D:\\moved"],
    );
    assert!(!old.exists());
    assert!(lab.local("ALONE", "D:\\moved\\legacy.vhd").exists());

    // Into the cluster, with its files, as a role; and no way to an older Windows, where it stays a role.
    let into = ["migrate", "legacy", "NODE1", "--as-role", "--storage"];
    let place = "C:\\ClusterStorage\\Volume1\\legacy";
    let moved = done(&site, &[&into[..], &[place]].concat());
    assert!(moved["vm"]["role"].is_string(), "{moved}");
    assert_eq!(seen(&site, "legacy").0, "NODE1");
    let role = vm(&site, "web")["role"].clone();
    ask(&site, &["migrate", "web", "ALONE", "--storage", "D:\\web"]).expect(1);
    assert_eq!(vm(&site, "web")["role"], role);

    // Without waiting; and one that fails leaves the machine where it is.
    done(
        &site,
        &["fault", "inject", "migration-fails", "--vm", "web"],
    );
    let failed = ask(&site, &["migrate", "web", "NODE1"]).expect(1);
    assert!(failed.stdout.contains("did not succeed"), "{failed:?}");
    let begun = done(&site, &["migrate", "web", "NODE1", "--no-wait"]);
    assert_eq!(begun["from"], "NODE2");
    done(&site, &["run", "1m"]);
    assert_eq!(seen(&site, "web").0, "NODE1");
    lab.down();
}

/// The verdict on images, and the transaction they are at.
fn examined(site: &Site, machine: &str, images: &[&Path]) -> (String, u64) {
    let mut words = vec!["guest", machine, "examine"];
    words.extend(images.iter().map(|path| text(path)));
    let report = done(site, &words);
    let consistency = report["consistency"].as_str().expect("a verdict");
    (
        consistency.to_owned(),
        report["committed"].as_u64().expect("a number"),
    )
}

#[test]
fn bytes_tell_what_a_guest_was_doing() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    add_all(&site, &lab);
    let folder = "C:\\ClusterStorage\\Volume1";
    let sql = ["sql.vhdx", "sql-data.vhdx"];
    let sql = sql.map(|file| lab.local("NODE1", &format!("{folder}\\sql\\{file}")));
    let sql: Vec<&Path> = sql.iter().map(std::path::PathBuf::as_path).collect();
    let web = lab.local("NODE2", &format!("{folder}\\web\\web.vhdx"));
    done(&site, &["run", "1m"]);

    // The plug is pulled: what was flushed is there, a transaction is open.
    let before = done(&site, &["guest", "sql", "status"]);
    let before = before["guest"]["committed"].as_u64().expect("a number");
    assert!(before >= 60);
    let off = done(&site, &["guest", "sql", "turn-off"]);
    assert_eq!(off["state"], "off");
    let (verdict, committed) = examined(&site, "sql", &sql);
    assert_eq!(verdict, "crash");
    assert!(committed >= before, "{committed} {before}");

    // Shut down in good order, it is at rest; started, it writes where it was.
    done(&site, &["guest", "sql", "start"]);
    done(&site, &["run", "30s"]);
    done(&site, &["guest", "sql", "shut-down"]);
    let (verdict, later) = examined(&site, "sql", &sql);
    assert_eq!(verdict, "application");
    assert!(later > committed);
    done(&site, &["guest", "sql", "start"]);

    // Disks of two moments are found out; too few are refused.
    let copy = site.path("old.vhdx");
    fs::copy(sql[1], &copy).expect("a copy");
    done(&site, &["run", "1m"]);
    done(&site, &["guest", "sql", "shut-down"]);
    let wrong = ask(
        &site,
        &["guest", "sql", "examine", text(sql[0]), text(&copy)],
    )
    .expect(3);
    assert_eq!(wrong.json()["consistency"], "inconsistent");
    ask(&site, &["guest", "sql", "examine", text(sql[0])]).expect(1);
    let swapped = ask(
        &site,
        &["guest", "sql", "examine", text(sql[1]), text(sql[0])],
    )
    .expect(3);
    assert_eq!(swapped.json()["consistency"], "empty");
    done(&site, &["guest", "sql", "start"]);

    // A production checkpoint: Windows finishes what is open, Linux freezes its file system; a liar does neither.
    let checkpoint = |machine: &str, name: &str, kind: &str| {
        site.run([
            "vm",
            "checkpoint",
            "create",
            machine,
            "--name",
            name,
            "--kind",
            kind,
        ])
        .expect(0);
    };
    checkpoint("sql", "rest", "production");
    checkpoint("web", "rest", "production");
    done(&site, &["run", "1m"]);
    assert_eq!(examined(&site, "sql", &sql).0, "application");
    assert_eq!(examined(&site, "web", &[&web]).0, "file-system");
    for machine in ["sql", "web"] {
        site.run(["vm", "checkpoint", "delete", machine, "rest"])
            .expect(0);
    }
    let lying = done(&site, &["guest", "sql", "writers", "lies"]);
    assert_eq!(lying["guest"]["writers"], "lies");
    checkpoint("sql", "lie", "production");
    done(&site, &["run", "1m"]);
    assert_eq!(examined(&site, "sql", &sql).0, "crash");
    lab.down();
}

#[test]
fn a_guest_writes_what_it_is_told_to() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    let disk = lab.local("ALONE", "D:\\vm\\legacy\\legacy.vhd");
    let size = || {
        let allocated = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&disk).expect("it"));
        allocated * 512
    };
    let before = size();
    let report = done(&site, &["guest", "legacy", "write", "16"]);
    assert!(report["guest"]["committed"].is_u64(), "{report}");
    let grown = size().saturating_sub(before);
    assert!(grown >= 15 << 20, "{grown}");
    // Again: more than there is room for goes round.
    done(&site, &["guest", "legacy", "write", "100"]);
    done(&site, &["guest", "legacy", "pause"]);
    let refused = ask(&site, &["guest", "legacy", "write", "1"]).expect(1);
    assert!(refused.stdout.contains("does not run"), "{refused:?}");
    done(&site, &["guest", "legacy", "start"]);
    done(&site, &["guest", "legacy", "save"]);
    assert_eq!(vm(&site, "legacy")["state"], "saved");
    assert_eq!(examined(&site, "legacy", &[&disk]).0, "crash");
    done(&site, &["guest", "legacy", "start"]);
    done(&site, &["guest", "legacy", "reset"]);
    let status = done(&site, &["guest", "legacy", "status"]);
    assert_eq!(status["guest"]["broken"], Value::Null);
    lab.down();
}

/// The printed command that writes a node down, as a shell runs it.
fn printed(site: &Site, lab: &Lab, node: &str, more: &str) -> Command {
    let add = named(&lab.ready["nodes"], node)["add"].as_str();
    let plain = site.command::<&str>([]);
    let mut shell = Command::new("sh");
    for (key, value) in plain.get_envs() {
        match value {
            Some(value) => shell.env(key, value),
            None => shell.env_remove(key),
        };
    }
    let program = plain.get_program().to_str().expect("a path");
    let add = add.expect("a command");
    let line = format!("hikae() {{ '{program}' \"$@\"; }}; {add} {more} --json");
    shell.arg("-c").arg(line).current_dir(site.path(""));
    shell
}

#[test]
fn the_printed_commands_write_hosts_down_with_their_files() {
    let site = Site::new();
    let lab = Lab::up(&site, &[]);
    for node in ["NODE1", "ALONE"] {
        let output = printed(&site, &lab, node, "").output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        let report: Value = serde_json::from_str(&said).expect("JSON");
        let steps = report["hosts"][0]["steps"].as_array().expect("steps");
        let files: Vec<&Value> = steps.iter().filter(|it| it["step"] == "files").collect();
        assert!(files.len() >= 2, "{said}");
        assert!(files.iter().all(|it| it["outcome"] == "ok"), "{said}");
    }
    lab.down();
}

#[test]
fn files_of_hosts_are_offered_over_smb_as_windows_offers_them() {
    let is_there = |path: &str| Path::new(path).exists();
    let smbd = is_there("/usr/sbin/smbd");
    if !smbd {
        assert!(std::env::var_os("CI").is_none(), "smbd is needed");
        println!("SKIP: no smbd: the lab's files were not offered over SMB");
        return;
    }
    let site = Site::new();
    let up = site.run(["lab", "up", "--smb", "--scenario", "absent"]);
    assert_eq!(up.status.code(), Some(1), "{up:?}");
    let lab = Lab::up(&site, &["--smb"]);
    for node in ["NODE1", "ALONE"] {
        let output = printed(&site, &lab, node, "").output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        let report: Value = serde_json::from_str(&said).expect("JSON");
        let steps = report["hosts"][0]["steps"].as_array().expect("steps");
        let files: Vec<&Value> = steps.iter().filter(|it| it["step"] == "files").collect();
        assert!(files.len() >= 2, "{said}");
        assert!(files.iter().all(|it| it["outcome"] == "ok"), "{said}");
    }

    // A host that is down offers nothing; one that is back, the same.
    let status = done(&site, &["status"]);
    let port = named(&status["hosts"], "ALONE")["smb_port"].as_u64();
    let port = u16::try_from(port.expect("a port")).expect("a port");
    let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    assert!(listens());
    done(&site, &["fault", "inject", "node-off", "--node", "ALONE"]);
    let begun = std::time::Instant::now();
    while listens() {
        assert!(begun.elapsed().as_secs() < 60, "it still listens");
        std::thread::yield_now();
    }
    done(&site, &["fault", "inject", "node-on", "--node", "ALONE"]);
    done(&site, &["run", "3m"]);
    while !listens() {
        assert!(begun.elapsed().as_secs() < 120, "it does not listen again");
        std::thread::yield_now();
    }
    done(&site, &["down"]);
    lab.ended();
    assert!(!listens());
}
