//! Files through versions, as a newcomer meets them: a file deleted three versions ago comes back with one command that
//! `--help` shows, or with the one that the first failure tells.
//!
//! The disk has an ext4 and an NTFS volume, changed between versions by `debugfs` and `ntfscp`. Where those are missing the
//! tests are skipped aloud, and fail in CI.

mod file_systems;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::site::{Repository, Site, text};

const MIB: u64 = 1 << 20;
const EXT: (u64, u64) = (MIB, 24 * MIB);
const NTFS: (u64, u64) = (25 * MIB, 16 * MIB);
const DISK_BYTES: u64 = 42 * MIB;
const TABLE: &str = "label: gpt\nfirst-lba: 2048\nstart=2048, size=49152, type=linux\n\
    start=51200, size=32768, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7\n";

fn have_tools() -> bool {
    for tool in ["sfdisk", "mke2fs", "debugfs", "mkntfs", "ntfscp"] {
        let started = Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if started.is_err() {
            assert!(std::env::var_os("CI").is_none(), "{tool} is missing");
            println!("SKIP: {tool} is missing");
            return false;
        }
    }
    true
}

/// A machine's disk and its two volumes, each a file that tools write to.
struct Guest<'a> {
    site: &'a Site,
}

#[track_caller]
fn tool(command: &mut Command) {
    let output = command.output().expect("the tool starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

impl<'a> Guest<'a> {
    fn new(site: &'a Site) -> Self {
        let guest = Self { site };
        for (name, size) in [("ext", EXT.1), ("ntfs", NTFS.1), ("disk", DISK_BYTES)] {
            let file = File::create(site.path(name)).expect("a file");
            file.set_len(size).expect("its size");
        }
        let script = site.path("table");
        fs::write(&script, TABLE).expect("the script");
        let script = File::open(&script).expect("the script");
        tool(
            Command::new("sfdisk")
                .arg("--quiet")
                .arg(guest.disk())
                .stdin(script),
        );
        let volume = site.path("ext");
        tool(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4"])
                .arg(volume),
        );
        tool(Command::new("mkntfs").args(["-QFq"]).arg(site.path("ntfs")));
        guest
    }

    fn disk(&self) -> PathBuf {
        self.site.path("disk")
    }

    /// Writes a file into the ext4 volume, or removes it.
    fn debugfs(&self, commands: &str) {
        let script = self.site.path("commands");
        fs::write(&script, commands).expect("the script");
        let volume = self.site.path("ext");
        tool(
            Command::new("debugfs")
                .arg("-w")
                .arg("-f")
                .arg(script)
                .arg(volume),
        );
    }

    fn write(&self, folder: &str, name: &str, bytes: &str) {
        let source = self.site.path("source");
        fs::write(&source, bytes).expect("a file");
        let source = source.display();
        self.debugfs(&format!(
            "rm {folder}/{name}\ncd {folder}\nwrite {source} {name}\n"
        ));
    }

    fn write_ntfs(&self, name: &str, bytes: &str) {
        let source = self.site.path("source");
        fs::write(&source, bytes).expect("a file");
        let volume = self.site.path("ntfs");
        tool(
            Command::new("ntfscp")
                .arg("-q")
                .arg(volume)
                .arg(&source)
                .arg(name),
        );
    }

    /// Puts the volumes in their places and backs the disk up.
    fn back_up(&self, repository: &Repository<'_>) {
        let mut disk = File::options()
            .write(true)
            .open(self.disk())
            .expect("the disk");
        for (name, (offset, _)) in [("ext", EXT), ("ntfs", NTFS)] {
            let mut bytes = Vec::new();
            let mut volume = File::open(self.site.path(name)).expect("the volume");
            volume.read_to_end(&mut bytes).expect("its bytes");
            disk.seek(SeekFrom::Start(offset)).expect("its place");
            disk.write_all(&bytes).expect("the volume in its place");
        }
        repository.back_up(&self.disk(), "vm");
    }
}

/// Four versions; `/srv/report.txt` is in the first two.
fn four_versions(guest: &Guest<'_>, repository: &Repository<'_>) {
    guest.debugfs("mkdir /srv\nmkdir /etc\n");
    guest.write("/etc", "hosts", "localhost\n");
    guest.write("/srv", "report.txt", "one\n");
    guest.write_ntfs("Report.txt", "windows one");
    guest.back_up(repository);
    guest.write("/srv", "report.txt", "two two\n");
    guest.back_up(repository);
    guest.debugfs("rm /srv/report.txt\n");
    guest.write_ntfs("Second.txt", "windows two");
    guest.back_up(repository);
    guest.write("/etc", "motd", "welcome\n");
    guest.back_up(repository);
}

/// What is printed for people.
#[track_caller]
fn plain(site: &Site, repository: &Repository<'_>, verb: &str, more: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hikae"));
    command
        .args(repository.disk_arguments(verb, more))
        .env("XDG_CACHE_HOME", site.path("home/cache"));
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command that was printed, with a folder in the place of DIR.
#[track_caller]
fn obey(site: &Site, printed: &str, folder: &Path) {
    let words = printed.split_whitespace().skip(1);
    let words = words.map(|word| match word {
        "DIR" => folder.as_os_str().to_owned(),
        word => OsString::from(word),
    });
    site.run(words).expect(0);
}

fn paths<'v>(report: &'v Value, list: &str, member: &str) -> Vec<&'v str> {
    let list = report[list].as_array().expect("a list");
    list.iter()
        .map(|it| it[member].as_str().expect("text"))
        .collect()
}

#[test]
fn a_file_deleted_versions_ago_comes_back_with_one_command() {
    if !have_tools() {
        return;
    }
    let site = Site::new();
    let repository = site.init("repo");
    let guest = Guest::new(&site);
    four_versions(&guest, &repository);

    for words in [&["--help"][..], &["disk", "--help"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_hikae"))
            .args(words)
            .output()
            .expect("it runs");
        let help = String::from_utf8(output.stdout).expect("text");
        assert!(
            help.contains("extract NAME PATH --last-present --to DIR"),
            "{help}"
        );
    }
    let out = site.path("out");
    let wanted = [
        "vm",
        "1:/srv/report.txt",
        "--last-present",
        "--to",
        text(&out),
    ];
    repository.disk("extract", &wanted).expect(0);
    assert_eq!(
        fs::read(out.join("srv/report.txt")).expect("it"),
        b"two two\n"
    );

    // Without knowing of that: the failure says which version has it, and the command.
    let elsewhere = site.path("elsewhere");
    let wanted = ["vm", "1:/srv/report.txt", "--to", text(&elsewhere)];
    let lost = repository.disk("extract", &wanted).expect(1).json();
    assert_eq!(lost["problem"]["code"], "HK-3004");
    let evidence = lost["problem"]["evidence"][0].as_str().expect("text");
    assert!(evidence.contains("vm@2"), "{lost}");
    let next = lost["problem"]["action"].as_str().expect("text");
    obey(&site, next, &elsewhere);
    assert_eq!(
        fs::read(elsewhere.join("srv/report.txt")).expect("it"),
        b"two two\n"
    );
    let lost = repository
        .disk("cat", &["vm", "1:/srv/report.txt"])
        .expect(1)
        .json();
    let next = lost["problem"]["action"].as_str().expect("text");
    assert!(next.contains("disk cat") && next.contains("vm@2"), "{lost}");
    let never = repository
        .disk("cat", &["vm", "1:/srv/never"])
        .expect(1)
        .json();
    assert_eq!(never["problem"]["code"], "HK-3004");
    let wanted = ["vm", "1:/srv/never", "--last-present", "--to", text(&out)];
    let never = repository.disk("extract", &wanted).expect(1).json();
    let next = never["problem"]["action"].as_str().expect("text");
    assert!(next.contains("disk find"), "{never}");
}

#[test]
fn files_are_found_by_name_and_a_second_search_reads_nothing() {
    if !have_tools() {
        return;
    }
    let site = Site::new();
    let repository = site.init("repo");
    let guest = Guest::new(&site);
    four_versions(&guest, &repository);

    let found = repository.disk("find", &["vm", "report"]).expect(0).json();
    assert_eq!(
        paths(&found, "files", "path"),
        ["/srv/report.txt", "/Report.txt"]
    );
    let lost = &found["files"][0];
    assert_eq!(lost["versions"], json!([[1, 2]]));
    assert_eq!(lost["size_bytes"], 8);
    assert_eq!(lost["in_newest_version"], false);
    assert_eq!(found["files"][1]["versions"], json!([[1, 4]]));
    assert_eq!(found["files"][1]["volume"], 2);
    let out = site.path("out");
    obey(&site, lost["extract"].as_str().expect("text"), &out);
    assert_eq!(
        fs::read(out.join("srv/report.txt")).expect("it"),
        b"two two\n"
    );

    let again = repository.disk("find", &["vm", "report"]).expect(0).json();
    assert_eq!(again["files"], found["files"]);
    assert_eq!(again["cost"]["blocks_fetched"], 0);
    assert_eq!(again["versions_indexed"], 0);
    let deleted = repository
        .disk("find", &["REPORT", "--deleted"])
        .expect(0)
        .json();
    assert_eq!(deleted["files"], json!([]));
    let deleted = repository
        .disk("find", &["REPORT", "--deleted", "-i"])
        .expect(0)
        .json();
    assert_eq!(paths(&deleted, "files", "path"), ["/srv/report.txt"]);
    let only = repository.disk("find", &["vm@3", "*.txt"]).expect(0).json();
    assert_eq!(
        paths(&only, "files", "path"),
        ["/Report.txt", "/Second.txt"]
    );
    let told = plain(&site, &repository, "find", &["vm", "report"]);
    assert!(
        told.contains("version 1-2") && told.contains("not in the newest"),
        "{told}"
    );
    repository.disk("find", &["nobody", "x"]).expect(1);
    // The cache tells no name.
    let mut places = vec![site.path("home/cache")];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(&place).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                places.push(path);
            } else {
                let bytes = fs::read(&path).expect("its bytes");
                let has_name = bytes.windows(10).any(|part| part == b"report.txt");
                assert!(!has_name, "{path:?}");
            }
        }
    }
}

#[test]
fn a_file_is_followed_through_versions() {
    if !have_tools() {
        return;
    }
    let site = Site::new();
    let repository = site.init("repo");
    let guest = Guest::new(&site);
    four_versions(&guest, &repository);

    let told = repository
        .disk("history", &["vm", "1:/srv/report.txt"])
        .expect(0)
        .json();
    let runs = told["runs"].as_array().expect("runs");
    let events: Vec<_> = runs.iter().map(|run| run["event"].as_str()).collect();
    assert_eq!(
        events,
        [
            Some("there-from-the-start"),
            Some("changed"),
            Some("deleted")
        ]
    );
    assert_eq!(
        runs[1]["blake3"],
        blake3::hash(b"two two\n").to_hex().as_str()
    );
    assert_eq!(
        (&runs[2]["first_version"], &runs[2]["last_version"]),
        (&json!(3), &json!(4))
    );
    assert_eq!(told["newest_version_with_it"], 2);
    let hosts = repository
        .disk("history", &["vm", "1:/etc/hosts"])
        .expect(0)
        .json();
    assert_eq!(hosts["runs"].as_array().map(Vec::len), Some(1));
    let windows = repository
        .disk("history", &["vm@2", "2:\\report.TXT"])
        .expect(0)
        .json();
    assert_eq!(windows["runs"][0]["versions"], 2);
    let text = plain(&site, &repository, "history", &["vm", "1:/srv/report.txt"]);
    assert!(
        text.contains("deleted") && text.contains("hikae disk extract"),
        "{text}"
    );
    repository.disk("history", &["vm", "/srv"]).expect(1);
}

#[test]
fn versions_are_compared_file_by_file() {
    if !have_tools() {
        return;
    }
    let site = Site::new();
    let repository = site.init("repo");
    let guest = Guest::new(&site);
    four_versions(&guest, &repository);

    let compared = repository
        .disk("diff-files", &["vm@1", "vm@4"])
        .expect(0)
        .json();
    let mut changes: Vec<(&str, &str)> = paths(&compared, "changes", "change")
        .into_iter()
        .zip(paths(&compared, "changes", "path"))
        .filter(|(_, path)| !path.starts_with("/$"))
        .collect();
    changes.sort_unstable();
    let expected = [
        ("added", "/Second.txt"),
        ("added", "/etc/motd"),
        ("removed", "/srv/report.txt"),
    ];
    assert_eq!(changes, expected, "{compared:#}");
    let below = repository
        .disk("diff-files", &["vm@1", "vm@2", "1:/srv"])
        .expect(0)
        .json();
    assert_eq!(paths(&below, "changes", "change"), ["changed"]);
    let same = repository
        .disk("diff-files", &["vm@4", "vm@4"])
        .expect(0)
        .json();
    assert_eq!(
        (&same["changes"], &same["volumes_unchanged"]),
        (&json!([]), &json!(2))
    );
    assert_eq!(same["cost"]["contents_read"], 0);
    let text = plain(&site, &repository, "diff-files", &["vm@1", "vm@4"]);
    assert!(text.contains("removed   1:/srv/report.txt"), "{text}");
    repository
        .disk("diff-files", &["vm@1", "vm@4", "1:/never"])
        .expect(1);
}
