//! A running server: accepts clients, gives each a thread, and lets all go at the end.
//!
//! ```text
//!   accept ──► too many? sent away at once
//!      └────► client: negotiate (deadline) ──► transmit ──► gone          stop: no more input ─► grace ─► hung up
//! ```
//!
//! **Invariants.** [`NbdServer::stop`] returns when no client is left, or after the grace when a disk does not answer; the
//! socket is gone then. What is counted was answered.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::export::Exports;
use super::listener::{Address, NbdListener, Stream};
use super::negotiation::{Negotiated, negotiate};
use super::transmission::{Traffic, Transmission};
use crate::{Error, Event, Result, Watch};

/// Bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct NbdOptions {
    /// Most clients at once.
    pub clients_max: usize,
    /// How long a client may take to choose.
    pub negotiation_ms: u64,
    /// How long clients may take their last replies when serving ends.
    pub grace_ms: u64,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            clients_max: 32,
            negotiation_ms: 30_000,
            grace_ms: 3_000,
        }
    }
}

/// What a server did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NbdStats {
    /// Clients that chose an export.
    pub clients: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Bytes of disk that were asked for, holes included.
    pub read_bytes: u64,
}

struct Shared {
    exports: Exports,
    options: NbdOptions,
    watch: Arc<dyn Watch>,
    stopping: AtomicBool,
    clients: AtomicU64,
    traffic: Traffic,
    /// Those that are there, to be hung up at the end.
    here: Mutex<HashMap<u64, Stream>>,
    changed: Condvar,
}

/// A server that runs.
pub struct NbdServer {
    shared: Arc<Shared>,
    address: Address,
    accepting: Option<JoinHandle<()>>,
}

impl NbdServer {
    /// Begins to serve.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] when there is no thread for it.
    pub fn start(
        listener: NbdListener,
        exports: Exports,
        options: NbdOptions,
        watch: Arc<dyn Watch>,
    ) -> Result<Self> {
        let address = listener.address().clone();
        let shared = Arc::new(Shared {
            exports,
            options,
            watch,
            stopping: AtomicBool::new(false),
            clients: AtomicU64::new(0),
            traffic: Traffic::default(),
            here: Mutex::default(),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || accept_all(&accepting, &listener))
            .map_err(|error| Error::io("no thread for a server", error))?;
        Ok(Self {
            shared,
            address,
            accepting: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What it did until now.
    pub fn stats(&self) -> NbdStats {
        let traffic = &self.shared.traffic;
        NbdStats {
            clients: self.shared.clients.load(Ordering::Relaxed),
            requests: traffic.requests.load(Ordering::Relaxed),
            read_bytes: traffic.read_bytes.load(Ordering::Relaxed),
        }
    }

    /// Lets all clients go and ends.
    pub fn stop(mut self) -> NbdStats {
        self.end();
        self.stats()
    }

    fn end(&mut self) {
        let Some(accepting) = self.accepting.take() else {
            return;
        };
        self.shared.stopping.store(true, Ordering::Relaxed);
        // A thread that panicked accepts nobody, which is all that is wanted here.
        drop(accepting.join());
        let grace = Duration::from_millis(self.shared.options.grace_ms);
        let mut here = self.shared.here();
        for stream in here.values() {
            stream.shut_down(Shutdown::Read);
        }
        here = self.shared.wait_until_gone(here, grace);
        for stream in here.values() {
            stream.shut_down(Shutdown::Both);
        }
        drop(self.shared.wait_until_gone(here, grace));
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn here(&self) -> MutexGuard<'_, HashMap<u64, Stream>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until_gone<'a>(
        &self,
        here: MutexGuard<'a, HashMap<u64, Stream>>,
        grace: Duration,
    ) -> MutexGuard<'a, HashMap<u64, Stream>> {
        self.changed
            .wait_timeout_while(here, grace, |here| !here.is_empty())
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

fn accept_all(shared: &Arc<Shared>, listener: &NbdListener) {
    let mut number = 0u64;
    while !shared.stopping.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok(None) => {}
            Ok(Some((stream, peer))) => {
                number = number.wrapping_add(1);
                admit(shared, number, stream, &peer);
            }
            Err(error) => {
                // Out of descriptors, mostly: clients that leave give some back. Not in a busy loop.
                let error = Error::io(listener.address().to_string(), error);
                shared.watch.tell(&Event::Deaf { error: &error });
                let here = shared.here();
                let pause = Duration::from_millis(500);
                drop(shared.changed.wait_timeout(here, pause));
            }
        }
    }
}

/// Gives a client a thread, unless there are too many.
fn admit(shared: &Arc<Shared>, number: u64, stream: Stream, peer: &str) {
    let refused = |why: &str| shared.watch.tell(&Event::Refused { peer, why });
    let kept = match stream.try_clone() {
        Ok(kept) => kept,
        Err(error) => return refused(&format!("no room for it: {error}")),
    };
    {
        let mut here = shared.here();
        if here.len() >= shared.options.clients_max {
            drop(here);
            return refused("too many clients are here already");
        }
        here.insert(number, kept);
    }
    let leaving = Leaving {
        shared: Arc::clone(shared),
        number,
    };
    let peer = peer.to_owned();
    let spawned = std::thread::Builder::new()
        .name("nbd-client".to_owned())
        .spawn(move || {
            let shared = &leaving.shared;
            let outcome = converse(shared, &stream, &peer);
            stream.shut_down(Shutdown::Both);
            let why = outcome.as_ref().err();
            shared.watch.tell(&Event::Left { peer: &peer, why });
        });
    if let Err(error) = spawned {
        let why = format!("no thread for it: {error}");
        shared.watch.tell(&Event::Refused {
            peer: "a client",
            why: &why,
        });
    }
}

/// Takes a client off the list, however its thread ends.
struct Leaving {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.shared.here().remove(&self.number);
        self.shared.changed.notify_all();
    }
}

/// Reads until a deadline, however slowly the bytes come.
struct Timed<'a> {
    stream: &'a Stream,
    until: Option<Instant>,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(until) = self.until {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_timeouts(Some(left))?;
        }
        let mut stream = self.stream;
        stream.read(buffer)
    }
}

fn converse(shared: &Shared, stream: &Stream, peer: &str) -> Result<()> {
    let patience = Duration::from_millis(shared.options.negotiation_ms);
    let timed = Timed {
        stream,
        until: Instant::now().checked_add(patience),
    };
    let mut input = BufReader::new(timed);
    let mut output = stream;
    let agreed = match negotiate(&mut input, &mut output, &shared.exports)? {
        Negotiated::Chosen(agreed) => agreed,
        Negotiated::Left => return Ok(()),
    };
    input.get_mut().until = None;
    stream
        .set_timeouts(None)
        .map_err(|error| Error::io("a client's socket", error))?;
    shared.clients.fetch_add(1, Ordering::Relaxed);
    let export = &agreed.export.name;
    shared.watch.tell(&Event::Connected { peer, export });
    let transmission = Transmission {
        agreed: &agreed,
        stopping: &shared.stopping,
        hang_up: &|| stream.shut_down(Shutdown::Both),
        watch: shared.watch.as_ref(),
        traffic: &shared.traffic,
    };
    let outcome = transmission.run(&mut input, output);
    match outcome {
        // Whoever is hung up at the end has done nothing wrong.
        Err(_) if shared.stopping.load(Ordering::Relaxed) => Ok(()),
        outcome => outcome,
    }
}
