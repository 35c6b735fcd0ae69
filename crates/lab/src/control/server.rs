//! The answering half: a socket, a thread for each connection, one line after the other.
//!
//! ```text
//!   accept ─► at most 16 at once ─► line ─► ControlDesk ─► line … until the other end closes, is silent for a minute, or down
//! ```
//!
//! **Invariants.** The socket's file has mode 0600 from the moment on at which it can be connected to. A connection that asked
//! for the end is kept open until the process has ended, so that the other end sees it.

use std::io::{BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::desk::ControlDesk;
use super::messages::{Refusal, RefusalKind, Reply, Request};
use super::socket;
use crate::{Error, Result};

const LINE_MAX_BYTES: u64 = 64 << 10;
const CONNECTIONS_MAX: usize = 16;
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A lab's socket, listening.
pub struct ControlServer {
    path: PathBuf,
    desk: Arc<ControlDesk>,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens at a path where nothing is yet.
    ///
    /// # Errors
    /// `Io` when there is something already, or no socket can be made.
    pub fn start(path: &Path, desk: Arc<ControlDesk>) -> Result<Self> {
        let wrong = |error| Error::io(format!("the socket {}", path.display()), error);
        // Made beside and then named: nobody finds it before only its owner may connect.
        let unready = path.with_extension("new");
        let listener = socket::bind(&unready).map_err(wrong)?;
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&unready, owner_only).map_err(wrong)?;
        std::fs::rename(&unready, path).map_err(wrong)?;
        let is_stopped = Arc::new(AtomicBool::new(false));
        let (of_thread, stopped) = (Arc::clone(&desk), Arc::clone(&is_stopped));
        let thread = std::thread::Builder::new()
            .name("lab-control".into())
            .spawn(move || accept(&listener, &of_thread, &stopped))
            .map_err(wrong)?;
        Ok(Self {
            path: path.to_owned(),
            desk,
            is_stopped,
            thread: Some(thread),
        })
    }

    /// What it asks.
    pub fn desk(&self) -> &ControlDesk {
        &self.desk
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        self.desk.close();
        // Wakes the thread that accepts; when even that is not possible, it ends with the process.
        let woken = socket::connect(&self.path).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _panicked = thread.join();
        }
        let _gone = std::fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, desk: &Arc<ControlDesk>, is_stopped: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if is_stopped.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else {
            // Out of descriptors: others will close theirs.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (desk, open_too) = (Arc::clone(desk), Arc::clone(&open));
        let begun = std::thread::Builder::new()
            .name("lab-asked".into())
            .spawn(move || {
                // A connection that breaks concerns only who made it.
                let _broken = converse(stream, &desk);
                open_too.fetch_sub(1, Ordering::AcqRel);
            });
        if begun.is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn converse(stream: UnixStream, desk: &ControlDesk) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let mut writing = stream.try_clone()?;
    let mut reading = BufReader::new(stream);
    while let Some(line) = socket::read_line(&mut reading, LINE_MAX_BYTES)? {
        let request = serde_json::from_str::<Request>(&line);
        let is_last = matches!(request, Ok(Request::Down {}));
        let reply = match request {
            Ok(request) => desk.answer(request),
            Err(error) => refused(&Error::invalid(format!("the request: {error}"))),
        };
        let mut text = reply.to_string();
        text.push('\n');
        writing.write_all(text.as_bytes())?;
        if is_last {
            desk.ask_to_end();
            // Kept open until the process is gone, or the other end.
            socket::read_line(&mut reading, LINE_MAX_BYTES)?;
            return Ok(());
        }
    }
    Ok(())
}

/// What is said where something is not done.
pub(super) fn refused(error: &Error) -> Value {
    let kind = match error.kind() {
        crate::ErrorKind::NotFound => RefusalKind::NotFound,
        crate::ErrorKind::Invalid => RefusalKind::Invalid,
        _ => RefusalKind::Failed,
    };
    let mut text = error.to_string();
    if let Some(code) = error.return_code() {
        text = format!("{text} (return value {})", code.value());
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    json!(Reply::<()>::Refused(Refusal { kind, text }))
}
