//! The asking half.
//!
//! **Invariants.** An answer that does not come, is too long or makes no sense is an error that says so. Connecting never waits.

use std::io::{BufReader, ErrorKind as IoKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::messages::{Refusal, RefusalKind, Reply, Request};
use super::socket;
use crate::{Error, ErrorKind, Result};

/// Longer answers are none: that of tens of thousands of VMs is shorter.
const ANSWER_MAX_BYTES: u64 = 256 << 20;

/// A connection to a lab.
pub struct ControlClient {
    stream: BufReader<UnixStream>,
}

impl ControlClient {
    /// Connects to the lab that listens at a socket.
    ///
    /// # Errors
    /// `NotFound` when nobody listens there; `Io`.
    pub fn connect(path: &Path) -> Result<Self> {
        let place = || format!("the lab at {}", path.display());
        let stream = socket::connect(path).map_err(|error| match error.kind() {
            IoKind::NotFound | IoKind::ConnectionRefused => {
                Error::not_found(format!("{} does not run", place()))
            }
            _ => Error::io(place(), error),
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Asks, and waits so long for the answer.
    ///
    /// # Errors
    /// What the lab refuses with: `NotFound`, `Invalid`, or `Unreachable` for what the estate would not do; `Io`.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request, patience: Duration) -> Result<T> {
        let wrong = |error: std::io::Error| match error.kind() {
            IoKind::WouldBlock | IoKind::TimedOut => {
                Error::invalid(format!("the lab did not answer within {patience:?}"))
            }
            _ => Error::io("talking to the lab", error),
        };
        let mut line = serde_json::to_string(request)
            .map_err(|error| Error::io("writing a request", error))?;
        line.push('\n');
        let stream = self.stream.get_mut();
        stream.set_read_timeout(Some(patience)).map_err(wrong)?;
        stream.set_write_timeout(Some(patience)).map_err(wrong)?;
        stream.write_all(line.as_bytes()).map_err(wrong)?;
        let line = socket::read_line(&mut self.stream, ANSWER_MAX_BYTES).map_err(wrong)?;
        let line = line.ok_or_else(|| Error::invalid("the lab ended without an answer"))?;
        let reply: Reply<T> =
            serde_json::from_str(&line).map_err(|error| Error::io("the lab's answer", error))?;
        match reply {
            Reply::Done(answer) => Ok(answer),
            Reply::Refused(refusal) => Err(error_of(refusal)),
        }
    }

    /// Waits until the lab has ended and closed the connection.
    ///
    /// # Errors
    /// `Invalid` when that takes longer; `Io`.
    pub fn wait_for_end(mut self, patience: Duration) -> Result<()> {
        let stream = self.stream.get_mut();
        stream
            .set_read_timeout(Some(patience))
            .map_err(|error| Error::io("talking to the lab", error))?;
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), IoKind::WouldBlock | IoKind::TimedOut) => Err(
                Error::invalid(format!("the lab did not end within {patience:?}")),
            ),
            // It was gone before the connection was closed in good order.
            Err(error) if error.kind() == IoKind::ConnectionReset => Ok(()),
            Err(error) => Err(Error::io("talking to the lab", error)),
        }
    }
}

/// Asks one thing of the lab at a socket.
///
/// # Errors
/// As [`ControlClient::connect`] and [`ControlClient::ask`].
pub fn ask<T: DeserializeOwned>(path: &Path, request: &Request, patience: Duration) -> Result<T> {
    ControlClient::connect(path)?.ask(request, patience)
}

fn error_of(refusal: Refusal) -> Error {
    let kind = match refusal.kind {
        RefusalKind::NotFound => ErrorKind::NotFound,
        RefusalKind::Invalid => ErrorKind::Invalid,
        RefusalKind::Failed => ErrorKind::Unreachable,
    };
    Error::new(kind, refusal.text)
}
