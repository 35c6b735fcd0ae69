//! A running server: accepts clients, gives each a thread, and lets all go at the end.
//!
//! ```text
//!   accept ──► all places taken? ─► who chooses for longest goes ─► else who is idle for very long ─► else sent away
//!      └────► client: negotiate (deadline) ──► transmit ──► gone          stop: no more input ─► grace ─► hung up
//! ```
//!
//! A place is for whoever uses it. While there are free ones, a client that chose an export may idle for days, as a mounted
//! device does. When all are taken, a newcomer gets the place of the client that has been choosing for longest; when none
//! is choosing, that of the one that has said nothing for longest, if that is longer than [`NbdOptions::idle_ms`].
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
use crate::{Error, ErrorKind, Event, Result, Watch};

/// Bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct NbdOptions {
    /// Most clients at once.
    pub clients_max: usize,
    /// How long a client may take to choose.
    pub negotiation_ms: u64,
    /// How long a client that chose keeps its place without a word when all places are taken.
    pub idle_ms: u64,
    /// How long clients may take their last replies when serving ends.
    pub grace_ms: u64,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            clients_max: 32,
            negotiation_ms: 10_000,
            idle_ms: 600_000,
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
    here: Mutex<HashMap<u64, Client>>,
    changed: Condvar,
}

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It has not chosen yet.
    Choosing,
    /// It chose an export.
    Chosen,
    /// It lost its place and is about to notice.
    Displaced,
}

/// A client that is here.
struct Client {
    stream: Stream,
    standing: Standing,
    /// When it came, or said anything after it had chosen.
    since: Instant,
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
        for client in here.values() {
            client.stream.shut_down(Shutdown::Read);
        }
        here = self.shared.wait_until_gone(here, grace);
        for client in here.values() {
            client.stream.shut_down(Shutdown::Both);
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
    fn here(&self) -> MutexGuard<'_, HashMap<u64, Client>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self, number: u64) -> Option<Standing> {
        self.here().get(&number).map(|client| client.standing)
    }

    /// A client that chose is here and has just said something.
    fn note_chosen(&self, number: u64) {
        if let Some(client) = self.here().get_mut(&number)
            && client.standing != Standing::Displaced
        {
            client.standing = Standing::Chosen;
            client.since = Instant::now();
        }
    }

    fn wait_until_gone<'a>(
        &self,
        here: MutexGuard<'a, HashMap<u64, Client>>,
        grace: Duration,
    ) -> MutexGuard<'a, HashMap<u64, Client>> {
        self.changed
            .wait_timeout_while(here, grace, |here| !here.is_empty())
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

/// Whether one more may come in; hangs up the client whose place it gets, if that takes one.
fn make_place(here: &mut HashMap<u64, Client>, options: &NbdOptions, now: Instant) -> bool {
    let count = |here: &HashMap<u64, Client>, displaced: bool| {
        let clients = here.values();
        let is_counted = |it: &&Client| (it.standing == Standing::Displaced) == displaced;
        clients.filter(is_counted).count()
    };
    if count(here, false) < options.clients_max {
        return true;
    }
    // Those that were hung up leave at once, unless a disk keeps them: then there is room for no more threads.
    if count(here, true) >= options.clients_max {
        return false;
    }
    let patience = Duration::from_millis(options.idle_ms);
    let may_go = |client: &&mut Client| match client.standing {
        Standing::Choosing => true,
        Standing::Chosen => now.saturating_duration_since(client.since) >= patience,
        Standing::Displaced => false,
    };
    let clients = here.values_mut().filter(may_go);
    let longest = clients.min_by_key(|it| (it.standing != Standing::Choosing, it.since));
    longest.is_some_and(|client| {
        client.standing = Standing::Displaced;
        client.stream.shut_down(Shutdown::Both);
        true
    })
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
        let now = Instant::now();
        if !make_place(&mut here, &shared.options, now) {
            drop(here);
            return refused("too many clients are here already");
        }
        let client = Client {
            stream: kept,
            standing: Standing::Choosing,
            since: now,
        };
        here.insert(number, client);
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
            let outcome = converse(shared, number, &stream, &peer);
            stream.shut_down(Shutdown::Both);
            let outcome = match shared.standing(number) {
                Some(Standing::Displaced) => {
                    let what = "it had said nothing for long, and somebody else needed its place";
                    Err(Error::new(ErrorKind::Busy, what))
                }
                _ => outcome,
            };
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

/// Reads until a deadline, however slowly the bytes come; without one, notes when they came.
struct Timed<'a> {
    shared: &'a Shared,
    number: u64,
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
        let count = stream.read(buffer)?;
        if self.until.is_none() {
            self.shared.note_chosen(self.number);
        }
        Ok(count)
    }
}

fn converse(shared: &Shared, number: u64, stream: &Stream, peer: &str) -> Result<()> {
    let patience = Duration::from_millis(shared.options.negotiation_ms);
    let timed = Timed {
        shared,
        number,
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
    shared.note_chosen(number);
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
