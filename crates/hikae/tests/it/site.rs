//! A place of its own for each test: a home without the developer's keys, and the binary that runs in it.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Longest time that any one process may take before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(240);

/// A temporary home.
pub struct Site {
    dir: tempfile::TempDir,
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Outcome {
    /// The JSON object that it printed.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not one JSON object: {error}\n{self:#?}"))
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert!(!self.stderr.contains("panicked at"), "{self:#?}");
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        self
    }
}

/// A version of a disk, as `disk list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub version: u64,
    pub root: String,
}

impl Site {
    /// A new empty one.
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary, with nothing of the surroundings in its environment.
    pub fn command<S: Into<OsString>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hikae"));
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("HIKAE_") {
                command.env_remove(key);
            }
        }
        command
            .args(arguments.into_iter().map(Into::into))
            .arg("--json")
            .env("HOME", self.path("home"))
            .env("XDG_CONFIG_HOME", self.path("home/config"))
            .env("XDG_CACHE_HOME", self.path("home/cache"))
            .env("TMPDIR", self.dir.path())
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("XDG_STATE_HOME")
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Starts a command that the test watches.
    pub fn start<S: Into<OsString>>(&self, arguments: impl IntoIterator<Item = S>) -> Running {
        Running::start(self.command(arguments))
    }

    /// Starts a command that was changed after [`Site::command`] made it.
    pub fn start_command(&self, command: Command) -> Running {
        Running::start(command)
    }

    /// Runs a command to its end.
    pub fn run<S: Into<OsString>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        self.start(arguments).wait()
    }

    /// Makes a repository with a key file beside it, both under `name`.
    pub fn init(&self, name: &str) -> Repository<'_> {
        let repository = Repository {
            site: self,
            place: self.path(name).into(),
            key_file: self.path(&format!("{name}.key")),
        };
        let key = repository.key_file.clone();
        self.run([
            os("repo"),
            os("init"),
            repository.place.clone(),
            os("--key-file"),
            key.into(),
        ])
        .expect(0);
        repository
    }
}

/// Text as an argument.
pub fn os(text: &str) -> OsString {
    OsString::from(text)
}

/// An encrypted repository and its key file.
pub struct Repository<'a> {
    pub site: &'a Site,
    /// Folder or URL.
    pub place: OsString,
    pub key_file: PathBuf,
}

impl Repository<'_> {
    /// Arguments of a verb of `repo`.
    pub fn repo_arguments(&self, verb: &str, more: &[&str]) -> Vec<OsString> {
        let mut arguments = vec![os("repo"), os(verb), self.place.clone()];
        arguments.extend([os("--key-file"), self.key_file.clone().into()]);
        arguments.extend(more.iter().map(|word| os(word)));
        arguments
    }

    /// Arguments of a verb of `disk`.
    pub fn disk_arguments(&self, verb: &str, more: &[&str]) -> Vec<OsString> {
        let mut arguments = vec![os("disk"), os(verb), os("--repo"), self.place.clone()];
        arguments.extend([os("--key-file"), self.key_file.clone().into()]);
        arguments.extend(more.iter().map(|word| os(word)));
        arguments
    }

    /// Runs a verb of `repo`.
    pub fn repo(&self, verb: &str, more: &[&str]) -> Outcome {
        self.site.run(self.repo_arguments(verb, more))
    }

    /// Runs a verb of `disk`.
    pub fn disk(&self, verb: &str, more: &[&str]) -> Outcome {
        self.site.run(self.disk_arguments(verb, more))
    }

    /// Arguments of a backup of an image under a name.
    pub fn backup_arguments(&self, image: &Path, name: &str) -> Vec<OsString> {
        self.disk_arguments("backup", &[text(image), "--name", name])
    }

    /// Backs an image up; what was reported.
    #[track_caller]
    pub fn back_up(&self, image: &Path, name: &str) -> Value {
        self.site
            .run(self.backup_arguments(image, name))
            .expect(0)
            .json()
    }

    /// Restores to a raw file, hashes it and removes it.
    #[track_caller]
    pub fn restored_hash(&self, selector: &str) -> blake3::Hash {
        let out = self.site.path("restored.raw");
        self.disk("restore", &[selector, text(&out), "--format", "raw"])
            .expect(0);
        let hash = super::disk::hash_file(&out);
        fs::remove_file(&out).expect("remove what was restored");
        hash
    }

    /// The visible versions of a name, by number.
    #[track_caller]
    pub fn versions(&self, name: &str) -> Vec<Listed> {
        let report = self.disk("list", &["--name", name]).expect(0).json();
        let rows = report["points"]
            .as_array()
            .unwrap_or_else(|| panic!("no points in {report}"));
        let mut versions: Vec<Listed> = rows
            .iter()
            .map(|row| Listed {
                version: row["version"]
                    .as_u64()
                    .unwrap_or_else(|| panic!("no version in {row}")),
                root: row["root"]
                    .as_str()
                    .unwrap_or_else(|| panic!("no root in {row}"))
                    .to_owned(),
            })
            .collect();
        versions.sort_by_key(|listed| listed.version);
        versions
    }

    /// Files of the repository whose path under it begins so.
    pub fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut places = vec![Path::new(&self.place).join(prefix)];
        while let Some(place) = places.pop() {
            // A directory may vanish between being seen and being read.
            let Ok(entries) = fs::read_dir(&place) else {
                continue;
            };
            for entry in entries.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => places.push(entry.path()),
                    Ok(_) => found.push(entry.path()),
                    Err(_) => {}
                }
            }
        }
        found.sort();
        found
    }

    /// Bytes of all files whose path under the repository begins so.
    pub fn size_bytes(&self, prefix: &str) -> u64 {
        self.files(prefix)
            .iter()
            .filter_map(|file| fs::metadata(file).ok())
            .map(|metadata| metadata.len())
            .sum()
    }
}

/// A path as text.
#[track_caller]
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// A process that a test watches. Killed when it is dropped.
pub struct Running {
    child: Child,
    begun: Instant,
    ended: mpsc::Receiver<()>,
    output: Option<std::thread::JoinHandle<(String, String)>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let begun = Instant::now();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stdout = child.stdout.take().expect("its standard output");
        let mut stderr = child.stderr.take().expect("its standard error");
        let (end, ended) = mpsc::channel();
        let output = std::thread::spawn(move || {
            let errors = std::thread::spawn(move || {
                let mut text = String::new();
                stderr
                    .read_to_string(&mut text)
                    .expect("read its standard error");
                text
            });
            let mut text = String::new();
            stdout
                .read_to_string(&mut text)
                .expect("read its standard output");
            // Both pipes close when the process ends: it has no children.
            let errors = errors.join().expect("the reading thread");
            drop(end);
            (text, errors)
        });
        Self {
            child,
            begun,
            ended,
            output: Some(output),
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it ends by itself within this time.
    pub fn ends_within(&self, time: Duration) -> bool {
        self.ended.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Disconnected)
    }

    /// Waits until something is so.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so() {
            assert!(
                !self.ends_within(Duration::from_millis(1)),
                "it ended before {what}"
            );
            assert!(Instant::now() < deadline, "in vain waited for: {what}");
        }
    }

    /// Whether it was stopped, by itself or by somebody.
    pub fn stands_still(&self) -> bool {
        let path = format!("/proc/{}/stat", self.pid().as_raw_nonzero());
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_some_and(|state| state.starts_with('T'))
    }

    /// Sends a signal; a process that has just ended is none the worse for it.
    pub fn signal(&self, signal: Signal) {
        match rustix::process::kill_process(self.pid(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => panic!("signal {signal:?}: {error}"),
        }
    }

    /// Kills it after a time, unless it ended before.
    #[track_caller]
    pub fn kill_after(self, time: Duration) -> Outcome {
        if !self.ends_within(time) {
            self.signal(Signal::KILL);
        }
        self.wait()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        assert!(self.ends_within(PATIENCE), "it never ended");
        let status = self.child.wait().expect("its status");
        let took = self.begun.elapsed();
        let (stdout, stderr) = self
            .output
            .take()
            .expect("not taken")
            .join()
            .expect("the reading thread");
        Outcome {
            status,
            stdout,
            stderr,
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.output.is_some() {
            // A failing test leaves no process behind; there is nobody to tell that it was gone already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
