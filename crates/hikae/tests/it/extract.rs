//! What is extracted is what was put in, as programs that are not ours see it: folders, tar, zip; killed, damaged, hostile.

mod again;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::disk::Random;
use super::site::{Outcome, Repository, Site, text};

const MIB: u64 = 1 << 20;

/// Whether the tools are there; without them a test is skipped, but not in CI.
fn have(tools: &[&str]) -> bool {
    for tool in tools {
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
fn tool(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("the tool starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// What can be seen of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    size_bytes: u64,
    changed: (i64, i64),
    bytes: Option<blake3::Hash>,
    target: Option<PathBuf>,
    attributes: BTreeMap<OsString, Vec<u8>>,
    /// The first, in the order of names, that it is the same file as.
    same_as: Vec<u8>,
}

fn attributes(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).expect("its named values");
    let names = names[..length].split(|byte| *byte == 0);
    let mut found = BTreeMap::new();
    for name in names.filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; 64 << 10];
        let name = OsStr::from_bytes(name);
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("a named value");
        value.truncate(length);
        found.insert(name.to_owned(), value);
    }
    found
}

/// Everything below a folder but what is ours.
fn seen(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut paths = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let inside = path.strip_prefix(root).expect("inside").to_owned();
            let is_ours =
                inside.starts_with("lost+found") || inside == Path::new("hikae-metadata.jsonl");
            if is_ours {
                continue;
            }
            if path.symlink_metadata().expect("its metadata").is_dir() {
                folders.push(path);
            }
            paths.push(inside.into_os_string().into_vec());
        }
    }
    paths.sort();
    let mut first = BTreeMap::new();
    let mut found = BTreeMap::new();
    for inside in paths {
        let path = root.join(OsStr::from_bytes(&inside));
        let metadata = path.symlink_metadata().expect("its metadata");
        let same_as = first
            .entry(metadata.ino())
            .or_insert_with(|| inside.clone());
        let same_as = same_as.clone();
        let one = Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            size_bytes: if metadata.is_dir() {
                0
            } else {
                metadata.size()
            },
            changed: (metadata.mtime(), metadata.mtime_nsec()),
            bytes: metadata.is_file().then(|| super::disk::hash_file(&path)),
            target: fs::read_link(&path).ok(),
            attributes: attributes(&path),
            same_as,
        };
        found.insert(inside, one);
    }
    found
}

#[track_caller]
fn expect_same(wanted: &BTreeMap<Vec<u8>, Seen>, got: &BTreeMap<Vec<u8>, Seen>) {
    for (path, wanted) in wanted {
        let path_text = String::from_utf8_lossy(path);
        let got = got.get(path);
        assert_eq!(Some(wanted), got, "{path_text}");
    }
    let more: Vec<_> = got
        .keys()
        .filter(|path| !wanted.contains_key(*path))
        .collect();
    assert!(more.is_empty(), "more than was put in: {more:?}");
}

/// A tree with nasty things.
fn fill(root: &Path, random: &mut Random) {
    let bytes = |random: &mut Random, count: u64| -> Vec<u8> {
        (0..count / 8)
            .flat_map(|_| random.next().to_le_bytes())
            .collect()
    };
    let write = |path: &str, bytes: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    };
    write("etc/hostname", b"inside\n");
    write("etc/secret", b"do not read\n");
    fs::set_permissions(root.join("etc/secret"), fs::Permissions::from_mode(0o4711)).expect("mode");
    write("srv/large.bin", &bytes(random, 21 * MIB));
    write("srv/Grüße 🦀.txt", "umlauts\n".as_bytes());
    write("srv/a\nb\\c.txt", b"a name in two lines\n");
    write("srv/empty", b"");
    for number in 0..300 {
        let length = random.below(20_000) / 8 * 8;
        write(&format!("srv/many/{number}.dat"), &bytes(random, length));
    }
    let name = OsString::from_vec(b"srv/no text \xFF\xFE".to_vec());
    fs::write(root.join(name), b"bytes").expect("a file");
    write(&format!("srv/{}", "n".repeat(255)), b"a long name");
    write(&format!("srv/{}/deepest", ["d"; 250].join("/")), b"deep");
    fs::create_dir(root.join("srv/nothing")).expect("a folder");
    fs::hard_link(root.join("srv/large.bin"), root.join("srv/twin.bin")).expect("a twin");
    fs::hard_link(root.join("etc/hostname"), root.join("srv/many/name")).expect("a twin");
    for (target, path) in [
        ("../srv", "etc/up"),
        ("circle", "etc/circle"),
        ("/nowhere", "etc/dangling"),
    ] {
        symlink(target, root.join(path)).expect("a link");
    }
    let sparse = File::create(root.join("srv/sparse.img")).expect("a file");
    sparse.set_len(40 * MIB).expect("its size");
    for at in [3 * MIB, 17 * MIB + 100, 39 * MIB] {
        sparse
            .write_all_at(&bytes(random, 5000), at)
            .expect("some bytes");
    }
    fill_what_stands_beside(root);
    for (path, time) in [
        ("srv/many", "2001-02-03 04:05:06"),
        ("etc/hostname", "1969-12-31 23:00:00"),
        ("srv/nothing", "2037-01-01 00:00:00"),
    ] {
        tool(
            Command::new("touch")
                .args(["-d", time])
                .arg(root.join(path)),
        );
    }
}

/// A pipe, named values and access lists.
fn fill_what_stands_beside(root: &Path) {
    tool(Command::new("mkfifo").arg(root.join("srv/pipe")));
    let note = ["-n", "user.note", "-v", "of a file"];
    tool(
        Command::new("setfattr")
            .args(note)
            .arg(root.join("etc/hostname")),
    );
    tool(
        Command::new("setfattr")
            .args(note)
            .arg(root.join("srv/many")),
    );
    let list = ["-m", "u:1234:r-x,g:99:rw-"];
    tool(
        Command::new("setfacl")
            .args(list)
            .arg(root.join("etc/secret")),
    );
    tool(
        Command::new("setfacl")
            .args(["-d", "-m", "u:7:rwx"])
            .arg(root.join("srv/nothing")),
    );
}

/// An ext4 volume of a tree.
fn make_ext4(volume: &Path, tree: &Path, size_bytes: u64) {
    File::create(volume)
        .and_then(|file| file.set_len(size_bytes))
        .expect("the volume");
    tool(
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(tree)
            .arg(volume),
    );
}

/// What was put in, without the fractions of seconds, which `mke2fs` does not take over.
fn put_in(tree: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut wanted = seen(tree);
    for one in wanted.values_mut() {
        one.changed.1 = 0;
    }
    wanted
}

const TREE_TOOLS: [&str; 7] = [
    "mke2fs",
    "setfattr",
    "setfacl",
    "tar",
    "python3",
    "sha256sum",
    "mkfifo",
];

#[track_caller]
fn image(site: &Site, arguments: &[&str]) -> Outcome {
    site.run(words(&[&["image"], arguments].concat()))
}

#[test]
fn a_folder_holds_everything_that_was_put_in() {
    if !have(&TREE_TOOLS) {
        return;
    }
    let site = Site::new();
    let (tree, volume, out) = (site.path("tree"), site.path("volume"), site.path("out"));
    fill(&tree, &mut Random::new(41));
    make_ext4(&volume, &tree, 120 * MIB);
    let hashes = site.path("hashes");
    let arguments = [
        "extract",
        text(&volume),
        "/",
        "--to",
        text(&out),
        "--verify",
    ];
    let manifest = ["--manifest", text(&hashes)];
    let report = image(&site, &[&arguments[..], &manifest].concat())
        .expect(0)
        .json();
    assert_eq!(
        (&report["failed"], &report["unlinked"]),
        (&0.into(), &0.into())
    );
    expect_same(&put_in(&tree), &seen(&out));
    let sparse = fs::metadata(out.join("srv/sparse.img")).expect("it");
    assert!(sparse.blocks() * 512 < MIB, "holes were filled");
    tool(
        Command::new("sha256sum")
            .args(["--check", "--quiet", text(&hashes)])
            .current_dir(&out),
    );
    // A name that is no text stands in it as it is.
    let lines = fs::read(&hashes).expect("the hashes");
    let lines = lines.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(report["files"], lines);
    assert!(!out.join(".hikae-partial").exists());

    // One line for each file, and the same after it was all written once more.
    let notes = || fs::read_to_string(out.join("hikae-metadata.jsonl")).expect("the notes");
    let paths = |notes: &str| -> BTreeSet<String> {
        let path = |line: &str| {
            let note: serde_json::Value = serde_json::from_str(line).expect("an object");
            format!("{} {}", note["path"], note["path_bytes"])
        };
        notes.lines().map(path).collect()
    };
    let first = notes();
    assert_eq!(paths(&first).len(), first.lines().count());
    image(&site, &[&arguments[..], &["--overwrite"]].concat()).expect(0);
    let second = notes();
    assert_eq!(paths(&first), paths(&second));
    assert_eq!(first.lines().count(), second.lines().count());
    expect_same(&put_in(&tree), &seen(&out));
}

fn expect_tar_through_a_pipe_and_replaced(site: &Site, volume: &Path, tar: &Path) {
    // The same bytes through a pipe; the report stands on standard error.
    let arguments = words(&["image", "extract", text(volume), "/", "--tar", "-"]);
    let streamed = site.command(arguments).output().expect("it runs");
    assert!(streamed.status.success());
    assert!(streamed.stdout == fs::read(tar).expect("the archive"));
    let told: serde_json::Value = serde_json::from_slice(&streamed.stderr).expect("the report");
    assert_eq!(told["target"], "-");
    image(
        site,
        &["extract", text(volume), "/etc", "--tar", "-", "--verify"],
    )
    .expect(1);
    image(site, &["extract", text(volume), "/etc", "--tar", text(tar)]).expect(1);
    image(
        site,
        &[
            "extract",
            text(volume),
            "/etc",
            "--tar",
            text(tar),
            "--overwrite",
        ],
    )
    .expect(0);
    let listed = tool(Command::new("tar").arg("-tf").arg(tar));
    assert!(listed.starts_with(b"etc/\n"), "{listed:?}");
}

#[test]
fn a_tar_is_unpacked_by_gnu_tar_and_read_by_python_with_everything_in_it() {
    if !have(&TREE_TOOLS) {
        return;
    }
    let site = Site::new();
    let (tree, volume, tar) = (site.path("tree"), site.path("volume"), site.path("a.tar"));
    fill(&tree, &mut Random::new(42));
    make_ext4(&volume, &tree, 120 * MIB);
    let report = image(
        &site,
        &[
            "extract",
            text(&volume),
            "/",
            "--tar",
            text(&tar),
            "--verify",
        ],
    );
    assert_eq!(report.expect(0).json()["failed"], 0);
    assert!(
        fs::metadata(&tar).expect("it").len() < 40 * MIB,
        "holes were filled"
    );
    let out = site.path("out");
    fs::create_dir(&out).expect("a folder");
    tool(
        Command::new("tar")
            .args([
                "--xattrs",
                "--xattrs-include=*",
                "--acls",
                "--numeric-owner",
                "-xpf",
            ])
            .arg(&tar)
            .arg("-C")
            .arg(&out),
    );
    expect_same(&put_in(&tree), &seen(&out));

    let script = "import sys, tarfile\n\
        archive = tarfile.open(sys.argv[1])\n\
        for member in archive.getmembers():\n\
        \x20   if member.isfile() and member.name.startswith('srv/'):\n\
        \x20       want = open(sys.argv[2] + '/' + member.name, 'rb').read()\n\
        \x20       assert archive.extractfile(member).read() == want, member.name\n\
        names = archive.getnames()\n\
        assert 'hikae-metadata.jsonl' in names and 'srv/twin.bin' in names, names\n";
    tool(
        Command::new("python3")
            .args(["-c", script])
            .arg(&tar)
            .arg(&tree),
    );

    expect_tar_through_a_pipe_and_replaced(&site, &volume, &tar);
}

/// Compares a zip archive with a tree: bytes, kinds, rights, moments, links.
const ZIP_SCRIPT: &str = r#"
import os, stat, sys, time, zipfile
archive, tree = zipfile.ZipFile(sys.argv[1]), os.fsencode(sys.argv[2])
assert archive.testzip() is None
names, count = {info.filename: info for info in archive.infolist()}, 0
for folder, folders, files in os.walk(tree):
    for name in folders + files:
        path = os.path.join(folder, name)
        inside = os.path.relpath(path, tree)
        told = os.lstat(path)
        if stat.S_ISFIFO(told.st_mode) or b'\xff' in inside or b'\\' in inside:
            continue
        is_folder = stat.S_ISDIR(told.st_mode)
        info = names[inside.decode() + ('/' if is_folder else '')]
        assert info.external_attr >> 16 == told.st_mode, (inside, oct(info.external_attr >> 16))
        if stat.S_ISREG(told.st_mode):
            assert archive.read(info) == open(path, 'rb').read(), inside
        if stat.S_ISLNK(told.st_mode):
            assert archive.read(info) == os.readlink(path), inside
        if 1980 <= time.gmtime(told.st_mtime).tm_year < 2108 and not stat.S_ISLNK(told.st_mode):
            moment = time.gmtime(int(told.st_mtime) // 2 * 2)
            assert info.date_time == tuple(moment)[:6], (inside, info.date_time)
        count += 1
assert count > 500, count
assert not any('\\' in name for name in names), names
assert any(name.startswith('srv/a\nb_c.txt~') for name in names), names
notes = archive.read('hikae-metadata.jsonl').decode()
assert '"path":"/srv/pipe"' in notes and 'user.note' in notes and 'no text' in notes, notes
"#;

#[test]
fn a_zip_is_read_by_python_and_unzip() {
    if !have(&TREE_TOOLS) || !have(&["unzip"]) {
        return;
    }
    let site = Site::new();
    let (tree, volume, zip) = (site.path("tree"), site.path("volume"), site.path("a.zip"));
    fill(&tree, &mut Random::new(43));
    make_ext4(&volume, &tree, 120 * MIB);
    let report = image(
        &site,
        &[
            "extract",
            text(&volume),
            "/",
            "--zip",
            text(&zip),
            "--verify",
        ],
    );
    let report = report.expect(0).json();
    assert_eq!(
        (&report["failed"], &report["unlinked"]),
        (&0.into(), &4.into())
    );
    tool(
        Command::new("python3")
            .args(["-c", ZIP_SCRIPT])
            .arg(&zip)
            .arg(&tree),
    );
    tool(Command::new("unzip").args(["-tq"]).arg(&zip));
    let arguments = words(&["image", "extract", text(&volume), "/", "--zip", "-"]);
    let streamed = site.command(arguments).output().expect("it runs");
    assert!(streamed.status.success());
    assert!(streamed.stdout == fs::read(&zip).expect("the archive"));
}

/// A repository with a version of a tree of many files.
fn many<'a>(site: &'a Site, seed: u64) -> (Repository<'a>, PathBuf) {
    let repository = site.init("repo");
    let tree = site.path("tree");
    fill(&tree, &mut Random::new(seed));
    for number in 0..2000 {
        let folder = tree.join(format!("more/{}", number % 40));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(number.to_string()), number.to_string()).expect("a file");
    }
    let volume = site.path("volume");
    make_ext4(&volume, &tree, 200 * MIB);
    repository.back_up(&volume, "vm");
    (repository, tree)
}

#[test]
fn a_killed_extraction_goes_on_where_it_stopped() {
    if !have(&TREE_TOOLS) {
        return;
    }
    let site = Site::new();
    let (repository, tree) = many(&site, 44);
    let out = site.path("out");
    let arguments = ["vm@1", "/", "--to", text(&out)];
    let mut kept = 0;
    for milliseconds in [60, 120, 200, 300, 450, 700] {
        let run = site.start(repository.disk_arguments("extract", &arguments));
        run.wait_until("its folder is there", || {
            out.join(".hikae-partial/job.json").exists()
        });
        let ended = run.kill_after(Duration::from_millis(milliseconds));
        if ended.status.success() {
            kept += ended.json()["kept"].as_u64().expect("a number");
        }
        if !out.join(".hikae-partial/job.json").exists() {
            // Fast enough to be done, if not to say so: begun anew by the next one.
            expect_same(&put_in(&tree), &seen(&out));
            fs::remove_dir_all(&out).expect("removed");
        }
    }
    let report = repository.disk("extract", &arguments).expect(0).json();
    kept += report["kept"].as_u64().expect("a number");
    assert!(kept > 0, "nothing was kept: {report}");
    assert!(!out.join(".hikae-partial").exists());
    expect_same(&put_in(&tree), &seen(&out));
    let notes = fs::read_to_string(out.join("hikae-metadata.jsonl")).expect("the notes");
    let lines: BTreeSet<&str> = notes
        .lines()
        .map(|line| {
            assert!(line.ends_with('}'), "{line}");
            line.split("\"kind\"").next().expect("its begin")
        })
        .collect();
    assert_eq!(lines.len(), notes.lines().count(), "a file is noted twice");
    assert!(lines.len() > 2000);
}

#[test]
fn only_what_this_extraction_wrote_is_taken_for_finished() {
    if !have(&TREE_TOOLS) {
        return;
    }
    let site = Site::new();
    let (repository, tree) = many(&site, 45);
    let out = site.path("out");
    // The same name, size and time, but not the same bytes, and older than the extraction.
    let standing = out.join("etc/hostname");
    fs::create_dir_all(out.join("etc")).expect("a folder");
    fs::write(&standing, b"ANOTHER").expect("a file");
    let original = fs::metadata(tree.join("etc/hostname"))
        .expect("it")
        .modified();
    let file = File::options().write(true).open(&standing).expect("it");
    file.set_modified(original.expect("its time")).expect("set");
    let extract = |more: &[&str]| {
        let arguments = ["vm@1", "/more", "/etc", "--to", text(&out)];
        repository.disk("extract", &[&arguments[..], more].concat())
    };
    let refused = extract(&[]).expect(1).json();
    assert_eq!(refused["problem"]["code"], "HK-3003");
    assert_eq!(fs::read(&standing).expect("it"), b"ANOTHER");
    // What was written before stays, is not read again, and does not stand in the way.
    let again = extract(&[]).expect(1).json();
    assert_eq!(again["problem"]["code"], "HK-3003");
    let report = extract(&["--overwrite"]).expect(0).json();
    assert!(report["kept"].as_u64() >= Some(2000), "{report}");
    assert_eq!(fs::read(&standing).expect("it"), b"inside\n");
    // Finished: what is there now is in the way again.
    extract(&[]).expect(1);
    // Something else is asked for: what was begun is given up.
    let begun = ["vm@1", "/srv/many", "/etc", "--to", text(&out)];
    repository.disk("extract", &begun).expect(1);
    let other = repository.disk("extract", &["vm@1", "/srv/empty", "--to", text(&out)]);
    let other = other.expect(0);
    assert!(other.stderr.contains("given up"), "{other:#?}");
    assert!(!out.join(".hikae-partial").exists());
}

/// An NTFS volume with a file of two streams.
fn make_ntfs(site: &Site, streams: [(&str, &[u8]); 2]) -> PathBuf {
    let volume = site.path("ntfs");
    File::create(&volume)
        .and_then(|file| file.set_len(24 * MIB))
        .expect("the volume");
    tool(
        Command::new("mkntfs")
            .args(["-Q", "-F", "-q", "-L", "DATA"])
            .arg(&volume),
    );
    let file = site.path("contents");
    fs::write(&file, b"a report").expect("a file");
    let copy = |arguments: &[&str], file: &Path| {
        tool(
            Command::new("ntfscp")
                .arg("-q")
                .args(arguments)
                .arg(&volume)
                .arg(file)
                .arg("Report.txt"),
        );
    };
    copy(&[], &file);
    for (name, bytes) in streams {
        fs::write(&file, bytes).expect("a file");
        copy(&["-N", name], &file);
    }
    volume
}

#[test]
fn alternate_streams_and_rights_of_windows_are_kept_beside_the_tree() {
    if !have(&["mkntfs", "ntfscp", "tar", "unzip"]) {
        return;
    }
    let site = Site::new();
    let large: Vec<u8> = (0..9 * MIB / 8)
        .flat_map(|number| number.to_le_bytes())
        .collect();
    let volume = make_ntfs(
        &site,
        [("Zone.Identifier", b"[ZoneTransfer]"), ("large", &large)],
    );
    let (out, tar, zip) = (site.path("out"), site.path("a.tar"), site.path("a.zip"));
    let from = ["extract", text(&volume), "/REPORT.*"];
    image(&site, &[&from[..], &["--to", text(&out)]].concat()).expect(0);
    image(&site, &[&from[..], &["--tar", text(&tar)]].concat()).expect(0);
    image(&site, &[&from[..], &["--zip", text(&zip)]].concat()).expect(0);
    let (tar_out, zip_out) = (site.path("tar"), site.path("zip"));
    for folder in [&tar_out, &zip_out] {
        fs::create_dir(folder).expect("a folder");
    }
    tool(
        Command::new("tar")
            .arg("-xf")
            .arg(&tar)
            .arg("-C")
            .arg(&tar_out),
    );
    tool(
        Command::new("unzip")
            .arg("-q")
            .arg(&zip)
            .arg("-d")
            .arg(&zip_out),
    );
    for out in [out, tar_out, zip_out] {
        let read = |name: &str| fs::read(out.join(name)).expect("it is there");
        assert_eq!(read("Report.txt"), b"a report", "{out:?}");
        assert_eq!(
            read("hikae-streams/Report.txt:Zone.Identifier"),
            b"[ZoneTransfer]"
        );
        assert!(read("hikae-streams/Report.txt:large") == large, "{out:?}");
        let notes = String::from_utf8(read("hikae-metadata.jsonl")).expect("text");
        let note: serde_json::Value = serde_json::from_str(&notes).expect("one line");
        assert_eq!(note["path"], "/Report.txt");
        let sddl = note["security_descriptor_sddl"].as_str().expect("text");
        assert!(
            sddl.starts_with("O:S-1-5-") && sddl.contains("D:(A;"),
            "{sddl}"
        );
        assert!(note["windows_attributes"].is_u64());
        assert_eq!(note["streams"].as_array().map(Vec::len), Some(2));
    }
}

/// Replaces names in the directories of a volume without checksums by others of the same length.
fn rename_in_place(volume: &Path, names: &[(&[u8], &[u8])]) {
    let mut bytes = fs::read(volume).expect("the volume");
    for (from, to) in names {
        let mut found = 0;
        for at in 0..bytes.len() - from.len() {
            if &bytes[at..at + from.len()] == *from {
                bytes[at..at + to.len()].copy_from_slice(to);
                found += 1;
            }
        }
        assert!(found > 0, "{from:?} is nowhere");
    }
    fs::write(volume, bytes).expect("the volume");
}

#[test]
fn no_name_leads_out_of_the_target() {
    if !have(&["mke2fs", "tar", "unzip"]) {
        return;
    }
    let site = Site::new();
    let tree = site.path("tree");
    fs::create_dir_all(tree.join("FOLDER")).expect("a folder");
    for name in ["EVIL-ONE", "EVIL-TWO", "EVIL-NUL", "FOLDER/in"] {
        fs::write(tree.join(name), name).expect("a file");
    }
    let volume = site.path("volume");
    File::create(&volume)
        .and_then(|file| file.set_len(8 * MIB))
        .expect("the volume");
    let made = ["-q", "-F", "-t", "ext4", "-O", "^metadata_csum", "-d"];
    tool(Command::new("mke2fs").args(made).arg(&tree).arg(&volume));
    rename_in_place(
        &volume,
        &[
            (b"EVIL-ONE", b"../../up"),
            (b"EVIL-TWO", b"/tmp/abs"),
            (b"EVIL-NUL", b"a\0b\0c\0de"),
            (b"FOLDER", b"../../"),
        ],
    );
    let (out, inner) = (site.path("deep/er/out"), site.path("deep"));
    image(&site, &["extract", text(&volume), "/", "--to", text(&out)]).expect(0);
    let names: BTreeSet<String> = fs::read_dir(&out)
        .expect("a folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("text")
        })
        .filter(|name| name.contains('~'))
        .map(|name| name.split('~').next().expect("its begin").to_owned())
        .collect();
    let wanted = [".._.._", ".._.._up", "_tmp_abs", "a_b_c_de"];
    assert_eq!(names, wanted.map(str::to_owned).into_iter().collect());
    let count = |folder: &Path| fs::read_dir(folder).expect("a folder").count();
    assert_eq!((count(&inner), count(&site.path("deep/er"))), (1, 1));
    for (flag, name) in [("--tar", "a.tar"), ("--zip", "a.zip")] {
        let archive = site.path(name);
        image(
            &site,
            &["extract", text(&volume), "/", flag, text(&archive)],
        )
        .expect(0);
        let listed = match flag {
            "--tar" => tool(Command::new("tar").arg("-tf").arg(&archive)),
            _ => tool(Command::new("unzip").arg("-Z1").arg(&archive)),
        };
        let listed = String::from_utf8(listed).expect("text");
        let leads_out = |name: &str| name.starts_with('/') || name.split('/').any(|it| it == "..");
        assert!(!listed.lines().any(leads_out), "{listed}");
        assert!(listed.contains("_tmp_abs~"), "{listed}");
    }
}

#[test]
fn two_stars_mean_any_number_of_folders() {
    if !have(&["mke2fs"]) {
        return;
    }
    let site = Site::new();
    let tree = site.path("tree");
    for path in [
        "a.txt",
        "x/b.txt",
        "x/y/z/c.txt",
        "x/y/z/c.dat",
        "x/loop/d.txt",
    ] {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, b"it").expect("a file");
    }
    symlink("..", tree.join("x/y/up")).expect("a link");
    let volume = site.path("volume");
    make_ext4(&volume, &tree, 8 * MIB);
    let files = |pattern: &str, number: u32| -> Vec<String> {
        let out = site.path(&format!("out{number}"));
        image(
            &site,
            &["extract", text(&volume), pattern, "--to", text(&out)],
        )
        .expect(0);
        let is_file = |path: &&Vec<u8>| out.join(OsStr::from_bytes(path)).is_file();
        let seen = seen(&out);
        let paths = seen.keys().filter(is_file);
        paths
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect()
    };
    assert_eq!(
        files("/**/*.txt", 1),
        ["a.txt", "x/b.txt", "x/loop/d.txt", "x/y/z/c.txt"]
    );
    assert_eq!(files("/x/**/z/**", 2), ["x/y/z/c.dat", "x/y/z/c.txt"]);
    assert_eq!(files("/**/c.*", 3), ["x/y/z/c.dat", "x/y/z/c.txt"]);
    image(
        &site,
        &[
            "extract",
            text(&volume),
            "/**/*.none",
            "--to",
            text(&site.path("none")),
        ],
    )
    .expect(1);
}

#[test]
fn a_listing_ends_when_nobody_reads_on() {
    if !have(&["mke2fs"]) {
        return;
    }
    let site = Site::new();
    let tree = site.path("tree");
    fs::create_dir(&tree).expect("a folder");
    for number in 0..5000 {
        let name = format!("a file with quite a long name {number}");
        fs::write(tree.join(name), b"").expect("a file");
    }
    let volume = site.path("volume");
    make_ext4(&volume, &tree, 32 * MIB);
    let mut child = site
        .command(words(&["image", "ls", text(&volume), "/", "--recursive"]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut reader = BufReader::new(child.stdout.take().expect("its output"));
    let mut first = String::new();
    reader.read_line(&mut first).expect("a line");
    drop(reader);
    let ended = child.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(first.trim_end(), r#"{"files": ["#);
    assert!(ended.stderr.is_empty(), "{ended:?}");
    let whole = image(&site, &["ls", text(&volume), "/"]).expect(0).json();
    assert_eq!(whole["files"].as_array().map(Vec::len), Some(5001));
}

#[test]
fn further_names_of_a_file_that_cannot_be_read_are_told_and_are_nobody_elses() {
    if !have(&["mke2fs", "debugfs", "tar"]) {
        return;
    }
    let site = Site::new();
    let (tree, volume, out) = (site.path("tree"), site.path("volume"), site.path("out"));
    fs::create_dir_all(tree.join("sub")).expect("a folder");
    fs::write(tree.join("x"), vec![7; 100_000]).expect("a file");
    fs::hard_link(tree.join("x"), tree.join("sub/y")).expect("a twin");
    make_ext4(&volume, &tree, 20 * MIB);
    // Its blocks lie where there are none.
    let change = "set_inode_field /x block[5] 0xFFFFFFF";
    tool(
        Command::new("debugfs")
            .args(["-w", "-R", change])
            .arg(&volume),
    );
    // Something else has the first name there already.
    fs::create_dir(&out).expect("a folder");
    fs::write(out.join("x"), b"of yesterday").expect("a file");
    let arguments = ["extract", text(&volume), "/x", "/sub", "--overwrite"];
    let report = image(&site, &[&arguments[..], &["--to", text(&out)]].concat()).expect(3);
    assert_eq!(report.json()["failed"], 2, "{}", report.json());
    assert!(!out.join("sub/y").exists());
    let tar = site.path("a.tar");
    let report = image(&site, &[&arguments[..], &["--tar", text(&tar)]].concat()).expect(3);
    assert_eq!(report.json()["failed"], 2, "{}", report.json());
    let listed = tool(Command::new("tar").arg("-tvf").arg(&tar));
    let listed = String::from_utf8_lossy(&listed).into_owned();
    assert!(!listed.contains("sub/y"), "{listed}");
}
