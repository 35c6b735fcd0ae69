//! The real binary: started with an environment of its own, watched, stopped, killed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use serde_json::Value;

/// Longest time that any one process may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a process.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// A folder to work in, and the binary that works there. Everything a process keeps (caches, keys, temporary files) lies in the
/// folder, so that a copy of it is a copy of the whole world.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The binary.
    pub(super) binary: PathBuf,
    /// Working folder and home.
    pub(super) folder: PathBuf,
    /// Where data packs are closed.
    pub(super) pack_bytes: u64,
}

/// How a process came to its end.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// Its exit code; absent when a signal ended it.
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) took: Duration,
}

impl Outcome {
    /// Demands an exit code.
    pub(super) fn expect(self, code: i32, what: &str) -> Result<Self> {
        ensure!(
            self.code == Some(code),
            "{what}: wanted exit {code}, had {:?}\n{}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        ensure!(
            !self.stderr.contains("panicked at"),
            "{what}: {}",
            self.stderr
        );
        Ok(self)
    }

    /// The JSON object that it printed.
    pub(super) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}", self.stdout))
    }
}

/// What is seen of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// It ended, with this exit code if no signal ended it.
    Ended(Option<i32>),
    /// It is stopped.
    Stopped,
    /// It still runs.
    Running,
}

impl Program {
    /// A command with nothing of the surroundings in its environment.
    pub(super) fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.binary);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("HIKAE_") {
                command.env_remove(key);
            }
        }
        let home = self.folder.join("home");
        command
            .args(words)
            .arg("--json")
            .env("HOME", &home)
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("TMPDIR", &self.folder)
            .env("HIKAE_PACK_BYTES", self.pack_bytes.to_string())
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Runs a command to its end.
    pub(super) fn run<S: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Outcome> {
        Running::start(self.command(words), &self.folder)?.wait()
    }
}

/// A process that is watched. Killed when it is dropped.
pub(super) struct Running {
    /// Only its id counts: who it is waited for by is this type.
    child: Child,
    begun: Instant,
    output: [PathBuf; 2],
    ended: Option<Option<i32>>,
}

impl Running {
    /// Starts a command whose output goes to files of this folder.
    pub(super) fn start(mut command: Command, folder: &Path) -> Result<Self> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let output =
            ["stdout", "stderr"].map(|stream| folder.join(format!("output-{number}.{stream}")));
        let [stdout, stderr] = &output;
        let child = command
            .stdout(File::create(stdout).context("make a file for output")?)
            .stderr(File::create(stderr).context("make a file for output")?)
            .spawn()
            .with_context(|| {
                format!("start {}", OsString::from(command.get_program()).display())
            })?;
        Ok(Self {
            child,
            begun: Instant::now(),
            output,
            ended: None,
        })
    }

    /// How long it has run.
    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Looks at it once.
    pub(super) fn look(&mut self) -> Result<Sight> {
        if let Some(code) = self.ended {
            return Ok(Sight::Ended(code));
        }
        let pid = Pid::from_child(&self.child);
        let options = WaitOptions::UNTRACED | WaitOptions::NOHANG;
        let Some((_, status)) = rustix::process::waitpid(Some(pid), options)? else {
            return Ok(Sight::Running);
        };
        Ok(self.saw(status))
    }

    fn saw(&mut self, status: WaitStatus) -> Sight {
        if status.stopped() {
            return Sight::Stopped;
        }
        let code = status.exit_status();
        self.ended = Some(code);
        Sight::Ended(code)
    }

    /// Looks until it is stopped or ended, or this moment of its age has come.
    pub(super) fn watch_until(&mut self, age: Duration) -> Result<Sight> {
        loop {
            let sight = self.look()?;
            if sight != Sight::Running || self.age() >= age {
                return Ok(sight);
            }
            std::thread::sleep(LOOK_AGAIN.min(age.saturating_sub(self.age())));
        }
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        rustix::process::kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("send {signal:?}"))
    }

    /// Kills it and waits until it is gone.
    pub(super) fn kill(mut self) -> Result<Outcome> {
        self.signal(Signal::KILL)?;
        self.finish()
    }

    /// Waits for its end.
    pub(super) fn wait(mut self) -> Result<Outcome> {
        self.finish()
    }

    fn finish(&mut self) -> Result<Outcome> {
        let deadline = self.age() + PATIENCE;
        let code = loop {
            match self.watch_until(deadline)? {
                Sight::Ended(code) => break code,
                Sight::Stopped => {}
                Sight::Running => bail!("a process never ended: {:?}", self.output),
            }
        };
        let took = self.age();
        let [stdout, stderr] = &self.output;
        let outcome = Outcome {
            code,
            stdout: std::fs::read_to_string(stdout).context("read its output")?,
            stderr: std::fs::read_to_string(stderr).context("read its output")?,
            took,
        };
        for file in &self.output {
            std::fs::remove_file(file).context("remove its output")?;
        }
        Ok(outcome)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // A failure leaves no process behind; there is nobody to tell that it was gone already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
