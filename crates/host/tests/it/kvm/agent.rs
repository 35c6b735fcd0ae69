//! The guest's agent: JSON over a Unix socket that leads through a serial port into the guest.
//!
//! A connection lasts for one question: the socket takes one client at a time, and a watchdog must get through when the process
//! that froze the guest hangs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use host::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use super::steps::Steps;

/// Longest wait for an agent that runs to say that it does.
const SYNC: Duration = Duration::from_secs(10);
/// Longest wait for what it was asked.
const ANSWER: Duration = Duration::from_secs(20);
const MAX_ANSWER_BYTES: usize = 4 << 20;
const SENTINEL: u8 = 0xFF;

/// Asks without changing anything.
pub(super) fn ask(socket: &Path, command: &str) -> Result<Value> {
    ask_with(socket, command, &json!({}))
}

/// Asks without changing anything, with arguments.
pub(super) fn ask_with(socket: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let mut line = Line::open(socket)?;
    line.send(&json!({"execute": command, "arguments": arguments}))?;
    line.answer(command)
}

/// Changes something.
pub(super) fn change(socket: &Path, command: &str, steps: &Steps) -> Result<Value> {
    steps.pass(command);
    let mut line = Line::open(socket)?;
    line.send(&json!({"execute": command}))?;
    steps.pass(command);
    line.answer(command)
}

/// Tells something that is not answered.
pub(super) fn tell(socket: &Path, command: &str) -> Result<()> {
    let mut line = Line::open(socket)?;
    line.send(&json!({"execute": command}))?;
    // The agent is there, so what comes next reaches it too.
    line.synchronized()
}

struct Line {
    stream: UnixStream,
    buffer: Vec<u8>,
    id: u64,
}

impl Line {
    /// Connects, and says where what was under way for somebody else ends.
    fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).map_err(broken)?;
        stream.set_write_timeout(Some(SYNC)).map_err(broken)?;
        let mut line = Self {
            stream,
            buffer: Vec::new(),
            // Unlikely to be in somebody else's answer, which is all that it is for.
            id: u64::from(std::process::id()) << 20 | u64::from(stamp()),
        };
        line.stream.write_all(&[SENTINEL]).map_err(broken)?;
        line.send(&json!({"execute": "guest-sync-delimited", "arguments": {"id": line.id}}))?;
        Ok(line)
    }

    fn synchronized(&mut self) -> Result<()> {
        let until = Instant::now() + SYNC;
        loop {
            self.skip_sentinel(until)?;
            let answer = self.object(until)?;
            if answer.get("return").and_then(Value::as_u64) == Some(self.id) {
                return Ok(());
            }
        }
    }

    fn send(&mut self, message: &Value) -> Result<()> {
        self.stream
            .write_all(format!("{message}\n").as_bytes())
            .map_err(broken)
    }

    fn answer(&mut self, command: &str) -> Result<Value> {
        self.synchronized()?;
        let mut answer = self.object(Instant::now() + ANSWER)?;
        if let Some(answer) = answer.get_mut("return") {
            return Ok(answer.take());
        }
        let text = answer.pointer("/error/desc").and_then(Value::as_str);
        Err(Error::new(
            ErrorKind::Failed,
            format!("{command}: {}", text.unwrap_or("an odd answer")),
        ))
    }

    fn skip_sentinel(&mut self, until: Instant) -> Result<()> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == SENTINEL) {
                self.buffer.drain(..=at);
                return Ok(());
            }
            self.fill(until)?;
        }
    }

    fn object(&mut self, until: Instant) -> Result<Value> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return serde_json::from_slice(&line).map_err(|error| {
                    Error::with_source(ErrorKind::Protocol, "an answer of the agent", error)
                });
            }
            self.fill(until)?;
        }
    }

    fn fill(&mut self, until: Instant) -> Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || self.buffer.len() > MAX_ANSWER_BYTES {
            return Err(Error::new(
                ErrorKind::TimedOut,
                "the guest's agent does not answer",
            ));
        }
        self.stream.set_read_timeout(Some(left)).map_err(broken)?;
        let mut piece = [0_u8; 4096];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(Error::new(
                ErrorKind::Unreachable,
                "the way to the guest's agent was closed",
            )),
            Ok(count) => {
                self.buffer.extend(piece.iter().take(count));
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(broken(error)),
        }
    }
}

fn stamp() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) & 0xF_FFFF
}

fn broken(error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::Unreachable, "the guest's agent", error)
}
