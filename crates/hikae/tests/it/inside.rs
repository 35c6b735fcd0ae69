//! What lies inside a disk: files of an image and of every version come out as they were put in.
//!
//! Disks are made by the tools of the file systems (`sfdisk`, `mke2fs`, `mkntfs`, `ntfscp`). Where those are missing the
//! tests are skipped aloud, and fail in CI.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::disk::Random;
use super::site::{Outcome, Repository, Site, text};

const MIB: u64 = 1 << 20;
const EXT_OFFSET: u64 = MIB;
const EXT_BYTES: u64 = 48 * MIB;
const NTFS_OFFSET: u64 = 49 * MIB;
const NTFS_BYTES: u64 = 24 * MIB;
const DISK_BYTES: u64 = 74 * MIB;

const TABLE: &str = "label: gpt\nfirst-lba: 2048\n\
    start=2048, size=98304, type=linux, name=root\n\
    start=100352, size=49152, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, name=data\n";

/// Whether the tools are there; without them a test is skipped, but not in CI.
fn have_tools() -> bool {
    for tool in ["sfdisk", "mke2fs", "mkntfs", "ntfscp"] {
        let started = Command::new(tool).arg("--version").output();
        if started.is_err() {
            assert!(std::env::var_os("CI").is_none(), "{tool} is missing");
            println!("SKIP: {tool} is missing");
            return false;
        }
    }
    true
}

#[track_caller]
fn tool(command: &mut Command) {
    let output = command.output().expect("the tool starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A folder with what a small Linux has, and nasty things.
fn fill(root: &Path, release: u32, random: &mut Random) {
    for folder in ["etc", "srv/ann/empty", "var/log", "usr/lib"] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    let write = |path: &str, bytes: &[u8]| fs::write(root.join(path), bytes).expect("a file");
    let os = format!("PRETTY_NAME=\"Test Linux {release}\"\nVERSION_ID=\"{release}\"\n");
    write("usr/lib/os-release", os.as_bytes());
    write("etc/hostname", b"inside\n");
    write("etc/secret", b"do not read\n");
    fs::set_permissions(root.join("etc/secret"), fs::Permissions::from_mode(0o600)).expect("mode");
    let large: Vec<u8> = (0..3 * MIB / 8)
        .flat_map(|_| random.next().to_le_bytes())
        .collect();
    write("srv/ann/large.bin", &large);
    write("srv/ann/Grüße 🦀.txt", "umlauts\n".as_bytes());
    write("srv/ann/star*.txt", b"literal star\n");
    write(
        &format!("var/log/{release}.log"),
        format!("log {release}\n").as_bytes(),
    );
    let links = [
        ("../usr/lib/os-release", "etc/os-release"),
        ("/nowhere", "etc/dangling"),
    ];
    for (target, path) in links {
        symlink(target, root.join(path)).expect("a link");
    }
    fs::hard_link(
        root.join("srv/ann/large.bin"),
        root.join("srv/ann/twin.bin"),
    )
    .expect("a twin");
    let mut sparse = File::create(root.join("srv/ann/sparse.img")).expect("a file");
    sparse.set_len(20 * MIB).expect("its size");
    sparse.seek(SeekFrom::Start(10 * MIB)).expect("its middle");
    sparse.write_all(b"in the middle").expect("some bytes");
}

/// Copies a volume into its place on the disk.
fn place(volume: &Path, disk: &Path, offset: u64) {
    let bytes = fs::read(volume).expect("the volume");
    let mut disk = File::options().write(true).open(disk).expect("the disk");
    disk.seek(SeekFrom::Start(offset)).expect("its place");
    disk.write_all(&bytes).expect("the volume in its place");
}

/// Makes or replaces a disk with an ext4 volume of this tree and an NTFS volume with one file.
fn make_disk(site: &Site, tree: &Path, windows_file: &[u8]) -> PathBuf {
    let disk = site.path("disk.raw");
    File::create(&disk)
        .expect("the disk")
        .set_len(DISK_BYTES)
        .expect("its size");
    let script = site.path("table");
    fs::write(&script, TABLE).expect("the script");
    tool(
        Command::new("sfdisk")
            .arg("--quiet")
            .arg(&disk)
            .stdin(File::open(&script).expect("the script")),
    );
    let ext = site.path("ext4.raw");
    File::create(&ext)
        .expect("the volume")
        .set_len(EXT_BYTES)
        .expect("its size");
    tool(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-L", "rootfs", "-d"])
            .arg(tree)
            .arg(&ext),
    );
    place(&ext, &disk, EXT_OFFSET);
    let ntfs = site.path("ntfs.raw");
    File::create(&ntfs)
        .expect("the volume")
        .set_len(NTFS_BYTES)
        .expect("its size");
    tool(
        Command::new("mkntfs")
            .args(["-Q", "-F", "-q", "-L", "DATA"])
            .arg(&ntfs),
    );
    let file = site.path("windows file");
    fs::write(&file, windows_file).expect("a file");
    tool(
        Command::new("ntfscp")
            .arg("-q")
            .arg(&ntfs)
            .arg(&file)
            .arg("Report.txt"),
    );
    place(&ntfs, &disk, NTFS_OFFSET);
    disk
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// What a verb prints, as bytes: `cat` knows no JSON.
#[track_caller]
fn printed(site: &Site, arguments: Vec<OsString>) -> Vec<u8> {
    let output = site.command(arguments).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn paths(outcome: &Outcome) -> Vec<String> {
    let files = outcome.json()["files"].as_array().expect("files").clone();
    let path = |file: &serde_json::Value| file["path"].as_str().expect("a path").to_owned();
    files.iter().map(path).collect()
}

/// All paths below a folder, as `ls --recursive` writes them.
fn tree_paths(root: &Path) -> Vec<String> {
    let mut found = vec!["/lost+found".to_owned()];
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = entry.path();
            let inside = path.strip_prefix(root).expect("inside");
            found.push(format!("/{}", inside.to_str().expect("text")));
            if entry.file_type().expect("its type").is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What `inspect` tells of the newest disk and of the first version.
#[track_caller]
fn expect_facts(site: &Site, repository: &Repository<'_>, disk: &Path) {
    let seen = site
        .run(words(&["image", "inspect", text(disk)]))
        .expect(0)
        .json();
    assert_eq!(seen["disks"][0]["table"], "gpt");
    let volumes = seen["volumes"].as_array().expect("volumes");
    let kinds: Vec<_> = volumes
        .iter()
        .map(|it| it["file_system"]["kind"].clone())
        .collect();
    assert_eq!(kinds, ["ext4", "ntfs"]);
    assert_eq!(volumes[0]["label"], "rootfs");
    assert_eq!(volumes[1]["label"], "DATA");
    assert_eq!(volumes[0]["file_system"]["state"], "clean");
    assert_eq!(seen["systems"][0]["name"], "Test Linux 2");
    assert_eq!(seen["systems"][0]["host_name"], "inside");
    let old = repository.disk("inspect", &["vm@1"]).expect(0).json();
    assert_eq!(old["systems"][0]["version"], "1");
}

#[test]
fn files_of_an_image_and_of_every_version_are_what_was_put_in() {
    if !have_tools() {
        return;
    }
    let site = Site::new();
    let repository = site.init("repo");
    let mut random = Random::new(31);
    let mut trees = Vec::new();
    for release in [1, 2] {
        let tree = site.path(&format!("tree{release}"));
        fill(&tree, release, &mut random);
        let disk = make_disk(&site, &tree, format!("report {release}").as_bytes());
        repository
            .disk("backup", &[text(&disk), "--name", "vm"])
            .expect(0);
        trees.push(tree);
    }
    let disk = site.path("disk.raw");

    expect_facts(&site, &repository, &disk);
    let root = repository.disk("ls", &["vm"]).expect(0).json();
    assert_eq!(root["volumes"].as_array().map(Vec::len), Some(2));
    repository.disk("ls", &["vm", "/etc"]).expect(1);
    repository.disk("cat", &["vm", "1:/etc/nothing"]).expect(1);
    repository.disk("cat", &["vm", "1:/etc"]).expect(1);

    for (release, tree) in ["vm@1", "vm@2"].into_iter().zip(&trees) {
        let listed = repository
            .disk("ls", &[release, "1:/", "--recursive"])
            .expect(0);
        let mut listed = paths(&listed);
        listed.sort();
        assert_eq!(listed, tree_paths(tree));
        for path in [
            "srv/ann/large.bin",
            "srv/ann/Grüße 🦀.txt",
            "srv/ann/sparse.img",
            "etc/os-release",
        ] {
            let typed = format!("rootfs:/{path}");
            let bytes = printed(&site, repository.disk_arguments("cat", &[release, &typed]));
            assert!(
                bytes == fs::read(tree.join(path)).expect("the original"),
                "{release} {path}"
            );
        }
    }
    let report = printed(
        &site,
        repository.disk_arguments("cat", &["vm@1", "data:\\REPORT.TXT"]),
    );
    assert_eq!(report, b"report 1");
    let report = printed(
        &site,
        words(&["image", "cat", text(&disk), "2:/Report.txt"]),
    );
    assert_eq!(report, b"report 2");
    let names = site
        .run(words(&["image", "ls", text(&disk), "DATA:"]))
        .expect(0);
    assert!(
        paths(&names).contains(&"/Report.txt".to_owned()),
        "{names:#?}"
    );
}

/// Compares what was extracted with what was put in: kinds, bytes, holes, modes, times, links.
#[track_caller]
fn expect_equal(original: &Path, extracted: &Path) {
    for path in tree_paths(original) {
        if path == "/lost+found" {
            continue;
        }
        let (from, to) = (original.join(&path[1..]), extracted.join(&path[1..]));
        let (old, new) = (from.symlink_metadata(), to.symlink_metadata());
        let (old, new) = (old.expect("the original"), new.expect("the extracted"));
        assert_eq!(old.mode(), new.mode(), "{path}");
        assert_eq!(old.mtime(), new.mtime(), "{path}");
        if old.is_symlink() {
            assert_eq!(fs::read_link(&from).ok(), fs::read_link(&to).ok(), "{path}");
        } else if old.is_file() {
            assert!(fs::read(&from).ok() == fs::read(&to).ok(), "{path}");
            assert!(
                new.blocks() * 512 <= old.blocks() * 512 + (1 << 17),
                "{path} grew"
            );
        }
    }
}

#[test]
fn extracted_files_are_what_was_put_in_and_nothing_is_replaced_unasked() {
    if !have_tools() {
        return;
    }
    let site = Site::new();
    let repository = site.init("repo");
    let tree = site.path("tree");
    fill(&tree, 1, &mut Random::new(32));
    let disk = make_disk(&site, &tree, b"a report");
    repository.back_up(&disk, "vm");
    let later = site.path("later");
    fill(&later, 2, &mut Random::new(33));
    fs::remove_file(later.join("srv/ann/large.bin")).expect("removed");
    make_disk(&site, &later, b"another");
    repository.back_up(&disk, "vm");

    let out = site.path("out");
    let extract =
        |more: &[&str]| repository.disk("extract", &[more, &["--to", text(&out)]].concat());
    let report = extract(&["vm@1", "1:/"]).expect(0).json();
    assert_eq!(report["failed"], 0);
    expect_equal(&tree, &out);

    let refused = extract(&["vm@1", "1:/etc/hostname"]).expect(1).json();
    assert_eq!(refused["problem"]["code"], "HK-3003");
    fs::write(out.join("etc/hostname"), b"changed").expect("changed");
    extract(&["vm@1", "1:/etc/hostname", "--overwrite"]).expect(0);
    assert_eq!(fs::read(out.join("etc/hostname")).expect("it"), b"inside\n");
    extract(&["vm@2", "1:/srv/ann/large.bin"]).expect(1);

    let some = site.path("some");
    let patterns = [
        "vm@1",
        "1:/srv/*/star*",
        "1:/etc/host?ame",
        "DATA:\\rep*.TXT",
    ];
    let report = repository.disk("extract", &[&patterns[..], &["--to", text(&some)]].concat());
    assert_eq!(report.expect(0).json()["files"], 3);
    let report = fs::read(some.join("volume-2/Report.txt")).expect("the report");
    assert_eq!(report, b"a report");
    assert!(some.join("volume-1/srv/ann/star*.txt").exists());
    let notes = fs::read_to_string(some.join("hikae-metadata.jsonl")).expect("the notes");
    assert!(
        notes.contains("security_descriptor") && notes.contains("Report.txt"),
        "{notes}"
    );

    // A link in the way leads nowhere.
    let trap = site.path("trap");
    fs::create_dir(&trap).expect("a folder");
    symlink(site.path("outside"), trap.join("etc")).expect("a link");
    fs::create_dir(site.path("outside")).expect("a folder");
    repository
        .disk(
            "extract",
            &[
                "vm@1",
                "1:/etc/hostname",
                "--overwrite",
                "--to",
                text(&trap),
            ],
        )
        .expect(1);
    let outside = fs::read_dir(site.path("outside"))
        .expect("a folder")
        .count();
    assert_eq!(outside, 0);
}
