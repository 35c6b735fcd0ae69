//! QEMU's monitor: one JSON object a line, over a Unix socket that takes one client at a time.

use std::io::{BufRead, BufReader, ErrorKind as IoKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use host::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use super::steps::Steps;

const TIMEOUT: Duration = Duration::from_secs(20);
const MAX_LINE_BYTES: u64 = 16 << 20;
/// Longest wait for QEMU to do what it said that it would do.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a monitor.
pub(super) struct Monitor<'a> {
    reader: BufReader<UnixStream>,
    steps: &'a Steps,
}

impl<'a> Monitor<'a> {
    /// Connects; `None` when no QEMU listens there.
    pub(super) fn connect(socket: &Path, steps: &'a Steps) -> Result<Option<Self>> {
        let stream = match UnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(broken("connect to the monitor", error)),
        };
        stream
            .set_read_timeout(Some(TIMEOUT))
            .and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
            .map_err(|error| broken("set a limit of time", error))?;
        let mut monitor = Self {
            reader: BufReader::new(stream),
            steps,
        };
        match monitor.line() {
            Ok(greeting) if greeting.get("QMP").is_some() => {}
            Ok(other) => return Err(odd("greeting", &other)),
            // It ends just now: who listens next will be another process.
            Err(_) if UnixStream::connect(socket).is_err() => return Ok(None),
            Err(error) => return Err(error),
        }
        monitor.exchange("qmp_capabilities", &json!({}))?;
        Ok(Some(monitor))
    }

    /// Asks without changing anything.
    pub(super) fn ask(&mut self, query: &str) -> Result<Value> {
        self.exchange(query, &json!({}))
    }

    /// Asks without changing anything, with arguments.
    pub(super) fn ask_with(&mut self, query: &str, arguments: &Value) -> Result<Value> {
        self.exchange(query, arguments)
    }

    /// Changes something: a step.
    pub(super) fn change(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.steps.pass(command);
        self.send(command, arguments)?;
        self.steps.pass(command);
        self.answer(command)
    }

    /// Asks again and again until `is_done` says so.
    pub(super) fn wait(
        &mut self,
        what: &str,
        mut is_done: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !is_done(self)? {
            if Instant::now() > until {
                return Err(Error::new(ErrorKind::TimedOut, what));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn exchange(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.send(command, arguments)?;
        self.answer(command)
    }

    fn send(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let message = format!(
            "{}\n",
            json!({"execute": command, "arguments": arguments, "id": command})
        );
        self.reader
            .get_mut()
            .write_all(message.as_bytes())
            .map_err(|error| broken(command, error))
    }

    fn answer(&mut self, command: &str) -> Result<Value> {
        loop {
            let mut line = self.line()?;
            if let Some(error) = line.get("error") {
                let text = error.get("desc").and_then(Value::as_str).unwrap_or("");
                let class = error.get("class").and_then(Value::as_str).unwrap_or("");
                let kind = match class {
                    "DeviceNotFound" | "DeviceNotActive" => ErrorKind::NotFound,
                    "CommandNotFound" => ErrorKind::Unsupported,
                    _ => ErrorKind::Failed,
                };
                return Err(Error::new(kind, format!("{command}: {text}")));
            }
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
            if line.get("event").is_none() {
                return Err(odd(command, &line));
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        (&mut self.reader)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|error| broken("read of the monitor", error))?;
        serde_json::from_slice(&line).map_err(|error| {
            Error::with_source(ErrorKind::Protocol, "a line of the monitor", error)
        })
    }
}

fn broken(what: &str, error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::Unreachable, what, error)
}

fn odd(what: &str, answer: &Value) -> Error {
    Error::new(ErrorKind::Protocol, format!("{what} is {answer}"))
}
