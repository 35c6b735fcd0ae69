//! Versions and images served to other programs: the same bytes as a restore, one lease while it lasts, nothing left behind.
//!
//! The protocol and the folder themselves are tried in `crates/serve/tests`. Where `qemu-img`, FUSE or `ntfs-3g` are missing a
//! test is skipped aloud, and fails in CI.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::disk::{self, Random, hash_file};
use super::site::{Repository, Site, text};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether a program is there; without it a test is skipped, but not in CI.
fn have(program: &str) -> bool {
    let started = Command::new(program).arg("--version").output();
    let found = started.is_ok() && (program != "fusermount3" || Path::new("/dev/fuse").exists());
    if !found {
        assert!(std::env::var_os("CI").is_none(), "{program} is missing");
        println!("SKIP: {program} is missing");
    }
    found
}

/// A process that serves. Killed when it is dropped.
struct Serving {
    child: Child,
    stdout: ChildStdout,
    stderr: PathBuf,
    ready: Value,
    dir: Option<PathBuf>,
}

impl Serving {
    /// Starts it and waits until it says that it is ready.
    #[track_caller]
    fn start(site: &Site, arguments: Vec<std::ffi::OsString>, dir: Option<&Path>) -> Self {
        let stderr = site.path("served.stderr");
        let mut child = site
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("a file"))
            .spawn()
            .expect("the binary starts");
        let mut stdout = child.stdout.take().expect("its standard output");
        let ready = serde_json::Deserializer::from_reader(&mut stdout)
            .into_iter::<Value>()
            .next()
            .and_then(Result::ok);
        let said = fs::read_to_string(&stderr).unwrap_or_default();
        let ready = ready.unwrap_or_else(|| panic!("it said nothing but: {said}"));
        assert!(ready["serving"].is_array(), "{ready} {said}");
        let dir = dir.map(Path::to_owned);
        Self {
            child,
            stdout,
            stderr,
            ready,
            dir,
        }
    }

    fn uri(&self, number: usize) -> String {
        let uri = &self.ready["serving"][number]["uris"][0];
        uri.as_str().expect("a URI").to_owned()
    }

    fn file(&self, number: usize, ending: &str) -> PathBuf {
        let files = self.ready["serving"][number]["files"].as_array();
        let files = files.expect("files").iter().filter_map(Value::as_str);
        let mut found = files
            .map(PathBuf::from)
            .filter(|path| path.extension() == Some(ending.as_ref()));
        found.next().expect("such a file")
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.stderr).expect("its standard error")
    }

    #[track_caller]
    fn wait_until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(self) {
            assert!(Instant::now() < deadline, "in vain waited for: {what}");
            std::thread::yield_now();
        }
    }

    fn signal(&mut self, signal: Signal) -> ExitStatus {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("it runs");
        self.child.wait().expect("its end")
    }

    /// Ends it as an operator does; it must have said no more than the one object.
    #[track_caller]
    fn end(mut self) -> i32 {
        let status = self.signal(Signal::TERM);
        let mut rest = String::new();
        self.stdout
            .read_to_string(&mut rest)
            .expect("its standard output");
        assert_eq!(rest.trim(), "", "{}", self.said());
        assert!(!self.said().contains("panicked"), "{}", self.said());
        status
            .code()
            .unwrap_or_else(|| panic!("{status:?}: {}", self.said()))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // A failing test leaves neither a process nor a mount behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(dir) = &self.dir {
            let mut detach = Command::new("fusermount3");
            let _ = detach
                .args(["-u", "-z", "-q", "--"])
                .arg(dir)
                .stderr(Stdio::null())
                .status();
        }
    }
}

#[track_caller]
fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("it starts");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A repository with two versions of a disk, and what they must be.
fn two_versions<'a>(
    site: &'a Site,
    size_bytes: u64,
) -> (Repository<'a>, PathBuf, [blake3::Hash; 2]) {
    let mut random = Random::new(516);
    let repository = site.init("repository");
    let image = site.path("disk.raw");
    disk::create(&image, size_bytes, size_bytes / 40, &mut random);
    let first = hash_file(&image);
    repository.back_up(&image, "vm 1");
    disk::change(&image, 40, &mut random);
    let second = hash_file(&image);
    repository.back_up(&image, "vm 1");
    (repository, image, [first, second])
}

#[test]
fn strangers_read_the_bytes_of_versions_over_nbd_also_while_they_are_forgotten_and_collected() {
    if !have("qemu-img") {
        return;
    }
    let site = Site::new();
    // No whole number of blocks, but of sectors.
    let (repository, image, hashes) = two_versions(&site, 96 * MIB + 512 * 7);
    let arguments = [
        "vm 1@1",
        "vm 1",
        "--nbd",
        "tcp:127.0.0.1:0",
        "--nbd",
        "unix:nbd.sock",
    ];
    let serving = Serving::start(&site, repository.disk_arguments("serve", &arguments), None);
    assert_eq!(serving.ready["protected_from_gc"], true);
    assert!(!repository.files("leases").is_empty());
    repository.disk("forget", &["vm 1@1"]).expect(0);
    repository.repo("gc", &[]).expect(0);
    for (number, hash) in hashes.iter().enumerate() {
        let copy = site.path("copy.raw");
        tool(
            "qemu-img",
            &[
                "convert",
                "-f",
                "raw",
                "-O",
                "raw",
                &serving.uri(number),
                text(&copy),
            ],
        );
        assert_eq!(hash_file(&copy), *hash, "version {}", number + 1);
    }
    let newest = serving.uri(1).replace("@2", "");
    tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &newest, text(&image)],
    );
    let socket = format!(
        "nbd+unix:///vm%201@2?socket={}",
        text(&site.path("nbd.sock"))
    );
    tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &socket, text(&image)],
    );
    assert_eq!(serving.end(), 0);
    assert!(repository.files("leases").is_empty());
    assert!(!site.path("nbd.sock").exists());
    repository.repo("gc", &[]).expect(0);
    repository.repo("verify", &[]).expect(0);
    assert_eq!(repository.restored_hash("vm 1"), hashes[1]);
}

#[test]
fn the_files_of_a_folder_are_the_versions_and_its_vhdx_is_always_the_same() {
    if !have("fusermount3") || !have("qemu-img") {
        return;
    }
    let site = Site::new();
    let (repository, _, hashes) = two_versions(&site, 200 * MIB);
    let dir = site.path("served");
    let arguments = ["vm 1@1", "vm 1@2", "--fuse", text(&dir)];
    let mut vhdx = Vec::new();
    for round in 0..2 {
        let serving = Serving::start(
            &site,
            repository.disk_arguments("serve", &arguments),
            Some(&dir),
        );
        assert_eq!(fs::read_dir(&dir).expect("the folder").count(), 4);
        for (number, hash) in hashes.iter().enumerate() {
            let (raw, made_up) = (serving.file(number, "raw"), serving.file(number, "vhdx"));
            assert_eq!(hash_file(&raw), *hash);
            vhdx.push(hash_file(&made_up));
            if round > 0 {
                continue;
            }
            let length = fs::metadata(&made_up).expect("its metadata").len();
            // The second version was written to all over the disk.
            assert!(
                number > 0 || length < 60 * MIB,
                "zeros take no room: {length}"
            );
            site.run(["image", "check", text(&made_up)]).expect(0);
            site.run(["image", "compare", text(&raw), text(&made_up)])
                .expect(0);
            tool("qemu-img", &["check", "-f", "vhdx", text(&made_up)]);
            tool(
                "qemu-img",
                &[
                    "compare",
                    "-f",
                    "raw",
                    "-F",
                    "vhdx",
                    text(&raw),
                    text(&made_up),
                ],
            );
            let copy = site.path("copy.vhdx");
            tool("cp", &[text(&made_up), text(&copy)]);
            let info = site.run(["image", "info", text(&copy)]).expect(0).json();
            assert_eq!(info["logical_sector_bytes"], 512, "{info}");
        }
        assert_eq!(serving.end(), 0);
        assert_eq!(fs::read_dir(&dir).expect("the folder below").count(), 0);
    }
    assert_eq!(vhdx[..2], vhdx[2..], "the same bytes the next time");
    assert_ne!(vhdx[0], vhdx[1]);
    assert!(repository.files("leases").is_empty());
}

#[test]
fn what_a_killed_server_leaves_is_in_nobodys_way() {
    if !have("fusermount3") {
        return;
    }
    let site = Site::new();
    let (repository, _, hashes) = two_versions(&site, 32 * MIB);
    let dir = site.path("served");
    let arguments = ["vm 1", "--fuse", text(&dir), "--nbd", "unix:nbd.sock"];
    let start = || {
        Serving::start(
            &site,
            repository.disk_arguments("serve", &arguments),
            Some(&dir),
        )
    };
    let mut first = start();
    let rival = repository.disk("serve", &arguments).expect(4);
    assert_eq!(rival.json()["problem"]["code"], "HK-3011");
    first.signal(Signal::KILL);
    assert!(fs::read_dir(&dir).is_err(), "a dead folder");
    first.dir = None;
    drop(first);
    let second = start();
    assert_eq!(hash_file(&second.file(0, "raw")), hashes[1]);
    assert_eq!(second.end(), 0);
}

#[test]
fn once_its_lease_is_broken_every_read_fails_and_it_is_said() {
    if !have("fusermount3") {
        return;
    }
    let site = Site::new();
    let (repository, _, _) = two_versions(&site, 32 * MIB);
    let dir = site.path("served");
    let arguments = ["vm 1", "--fuse", text(&dir)];
    let serving = Serving::start(
        &site,
        repository.disk_arguments("serve", &arguments),
        Some(&dir),
    );
    let open = File::open(serving.file(0, "raw")).expect("it opens");
    open.read_at(&mut [0; 4096], 0).expect("readable");
    let mut list = vec![
        "repo".into(),
        "lease".into(),
        "list".into(),
        repository.place.clone(),
    ];
    list.extend(["--key-file".into(), repository.key_file.clone().into()]);
    let listed = site.run(list.clone()).expect(0).json();
    let lease = listed["leases"][0]["lease"]
        .as_str()
        .expect("a lease")
        .to_owned();
    list[2] = "break".into();
    list.extend(["--lease".into(), lease.into()]);
    site.run(list).expect(0);
    serving.wait_until("it notices", |serving| {
        serving.said().contains("every read fails")
    });
    let failed = open
        .read_at(&mut [0; 4096], 20 * MIB)
        .expect_err("no longer");
    assert_eq!(failed.raw_os_error(), Some(5), "EIO");
    drop(open);
    assert_eq!(serving.end(), 5);
}

#[test]
fn ntfs_3g_mounts_a_volume_in_a_file_of_the_folder() {
    if !have("fusermount3") || !have("ntfs-3g") || !have("mkntfs") {
        return;
    }
    let site = Site::new();
    let image = site.path("ntfs.raw");
    File::create(&image)
        .and_then(|file| file.set_len(24 * MIB))
        .expect("an image");
    tool("mkntfs", &["--quiet", "--fast", "--force", text(&image)]);
    let mut random = Random::new(9);
    let bytes: Vec<u8> = (0..MIB / 8)
        .flat_map(|_| random.next().to_le_bytes())
        .collect();
    let file = site.path("file");
    fs::write(&file, &bytes).expect("a file");
    tool(
        "ntfscp",
        &["--quiet", text(&image), text(&file), "inside.bin"],
    );
    let repository = site.init("repository");
    repository.back_up(&image, "vm");
    let dir = site.path("served");
    let arguments = ["vm", "--fuse", text(&dir)];
    let serving = Serving::start(
        &site,
        repository.disk_arguments("serve", &arguments),
        Some(&dir),
    );
    let inside = site.path("inside");
    fs::create_dir(&inside).expect("a folder");
    let raw = serving.file(0, "raw");
    let mounted = Command::new("ntfs-3g")
        .args(["-o", "ro"])
        .arg(&raw)
        .arg(&inside)
        .output();
    let mounted = mounted.expect("it starts");
    if !mounted.status.success() {
        assert!(std::env::var_os("CI").is_none(), "{mounted:?}");
        println!("SKIP: ntfs-3g may not mount here: {mounted:?}");
        return;
    }
    let found = fs::read(inside.join("inside.bin"));
    tool("umount", &[text(&inside)]);
    assert!(found.expect("the file") == bytes);
    assert_eq!(serving.end(), 0);
}

#[test]
fn images_are_served_with_what_lies_in_their_parents() {
    if !have("qemu-img") {
        return;
    }
    let site = Site::new();
    let mut random = Random::new(77);
    let raw = site.path("base.raw");
    disk::create(&raw, 40 * MIB, 8 * MIB, &mut random);
    let base = site.path("base.qcow2");
    site.run(["image", "convert", text(&raw), text(&base)])
        .expect(0);
    let child = site.path("child.qcow2");
    tool(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            text(&base),
            text(&child),
        ],
    );
    tool("qemu-io", &["-c", "write -P 7 1M 100k", text(&child)]);
    let arguments = [
        "image",
        "serve",
        text(&child),
        text(&base),
        "--nbd",
        "tcp:127.0.0.1:0",
    ];
    let serving = Serving::start(&site, arguments.map(Into::into).to_vec(), None);
    tool(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "qcow2",
            &serving.uri(0),
            text(&child),
        ],
    );
    tool(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &serving.uri(1),
            text(&raw),
        ],
    );
    assert_eq!(serving.end(), 0);
}

#[test]
fn what_cannot_be_served_is_a_problem_with_a_next_step() {
    let site = Site::new();
    let (repository, _, _) = two_versions(&site, 32 * MIB);
    repository.disk("serve", &["vm 1"]).expect(2);
    repository
        .disk("serve", &["vm 1", "--nbd", "nowhere"])
        .expect(2);
    let refused = repository
        .disk("serve", &["vm 1", "--nbd", "tcp:0.0.0.0:0"])
        .expect(1)
        .json();
    assert_eq!(refused["problem"]["code"], "HK-3007");
    let action = refused["problem"]["action"].as_str().expect("an action");
    assert!(action.contains("--allow-remote"), "{action}");
    let unknown = repository
        .disk("serve", &["nobody", "--nbd", "tcp:127.0.0.1:0"])
        .expect(1);
    assert_eq!(unknown.json()["problem"]["code"], "HK-1002");
    let file = site.path("precious");
    fs::write(&file, b"mine").expect("a file");
    let there = format!("unix:{}", text(&file));
    let refused = repository
        .disk("serve", &["vm 1", "--nbd", &there])
        .expect(1);
    assert_eq!(refused.json()["problem"]["code"], "HK-3003");
    assert_eq!(fs::read(&file).expect("still there"), b"mine");
    assert!(repository.files("leases").is_empty());
}
