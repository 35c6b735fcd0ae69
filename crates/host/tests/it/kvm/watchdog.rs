//! A process that thaws the guest when the one that froze it dies, or takes too long.
//!
//! ```text
//!   job ── pipe ──► watchdog        "done" → it ends
//!                                   end of the pipe (the job died), or the limit → it thaws, until the guest says so
//! ```
//!
//! It is this test program, started again with one test of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use host::{Error, ErrorKind, Result};

use super::agent;
use super::steps::Steps;

const ENVIRONMENT: &str = "HIKAE_KVM_WATCHDOG";
const READY: &str = "watchdog is there";
const DONE: &[u8] = b"done";

/// A watchdog that watches.
pub(super) struct Watchdog(Child);

impl Watchdog {
    /// Starts one, and waits until it watches.
    pub(super) fn start(agent: &Path, limit: Duration) -> Result<Self> {
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .args(["--exact", "kvm::watchdog::a_watchdog", "--nocapture"])
            .env(
                ENVIRONMENT,
                format!("{}\n{}", limit.as_millis(), agent.display()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // What ends the job's group is not to end this.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let output = child.stdout.take();
        let lines = output
            .map(BufReader::new)
            .into_iter()
            .flat_map(BufRead::lines);
        let is_there = lines
            .map_while(std::result::Result::ok)
            .any(|line| line.contains(READY));
        if is_there {
            Ok(Self(child))
        } else {
            Err(Error::new(ErrorKind::Failed, "no watchdog"))
        }
    }

    /// Sends it away.
    pub(super) fn dismiss(mut self) -> Result<()> {
        if let Some(input) = &mut self.0.stdin {
            input.write_all(DONE).map_err(failed)?;
        }
        drop(self.0.stdin.take());
        self.0.wait().map_err(failed)?;
        Ok(())
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::Failed, "the watchdog of a freeze", error)
}

/// The watchdog itself, when this program is started as one.
#[test]
fn a_watchdog() {
    let Ok(order) = std::env::var(ENVIRONMENT) else {
        return;
    };
    let (limit, socket) = order.split_once('\n').expect("an order");
    let limit = Duration::from_millis(limit.parse().expect("a limit"));
    println!("{READY}");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        // A broken pipe is the same as its end: nobody said that it is done.
        let read = std::io::stdin().read_to_end(&mut said);
        sender.send(read.is_ok() && said == DONE)
    });
    if receiver.recv_timeout(limit) == Ok(true) {
        return;
    }
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        let thawed = agent::change(Path::new(socket), "guest-fsfreeze-thaw", &Steps::default());
        let status = agent::ask(Path::new(socket), "guest-fsfreeze-status");
        if thawed.is_ok() && status.is_ok_and(|it| it == "thawed") {
            return;
        }
    }
}
