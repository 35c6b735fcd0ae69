//! The asking half of HTTP: a pool of connections to one host, each logged in on its own.
//!
//! ```text
//!   post ──► a free place (at most N) ──► idle connection ──┐            ┌─► 200, 400, 500: opened, given back to the pool
//!                                    └─► connect, TLS, log in ─► POST ───┤
//!                                          ▲                             ├─► 401 on a used connection: once more, on a new one
//!                                          └─────────────────────────────┘
//!                                                                        └─► anything else: an error, the connection is closed
//! ```
//!
//! Being logged in belongs to the TCP connection, hence no general HTTP client: one request in flight on each, and whose
//! login expired starts again from the first byte.
//!
//! **Invariants.** Nothing but sealed bodies, or TLS: a password or an envelope never goes in clear over the wire. A request is
//! sent twice only when the other side refused it unread (401) or not a byte of it was sent. Sizes and times are bounded.
//!
//! **What it does not do.** No proxies, no redirects, no cookies, no HTTP/2.

mod connection;
mod login;
mod options;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};

use self::connection::{Connection, Exchanged};
use super::runtime::TransportRuntime;
use super::{Answer, Post, Transport, tls};
use crate::{Error, ErrorKind, Result};

pub use options::{Credentials, Endpoint, HttpTransportOptions, Line};

/// Envelopes to one host over HTTP or HTTPS.
pub struct HttpTransport {
    inner: Arc<Inner>,
    runtime: TransportRuntime,
}

/// What connections share.
pub(super) struct Inner {
    options: HttpTransportOptions,
    address: String,
    tls: Option<Arc<rustls::ClientConfig>>,
    places: Semaphore,
    idle: Mutex<VecDeque<(Connection, Instant)>>,
}

/// One request, owned by the task that carries it.
struct Carried {
    body: Vec<u8>,
    timeout: Duration,
    answer_max_bytes: usize,
}

impl HttpTransport {
    /// Nothing is connected before the first request.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] for credentials that would cross the wire in clear, [`ErrorKind::Invalid`] for certificates or
    /// an address that make no sense.
    pub fn new(options: HttpTransportOptions, runtime: TransportRuntime) -> Result<Self> {
        options.check()?;
        let tls = match &options.endpoint.line {
            Line::Plain => None,
            Line::Tls(trust) => Some(tls::client_config(trust, options.identity())?),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                address: options.endpoint.address(),
                tls,
                places: Semaphore::new(options.connections_max.get()),
                idle: Mutex::default(),
                options,
            }),
            runtime,
        })
    }
}

impl Transport for HttpTransport {
    fn post(&self, post: &Post<'_>) -> Result<Answer> {
        let cancelled = Arc::new(Notify::new());
        let wake = Arc::clone(&cancelled);
        let _watch = post.cancel.watch(move || wake.notify_one());
        let (done, outcome) = mpsc::sync_channel(1);
        let inner = Arc::clone(&self.inner);
        let carried = Carried {
            body: post.body.to_vec(),
            timeout: post.timeout,
            answer_max_bytes: post.answer_max_bytes,
        };
        self.runtime.handle().spawn(async move {
            let place = inner.address.clone();
            let outcome = tokio::select! {
                biased;
                () = cancelled.notified() => Err(Error::new(ErrorKind::Cancelled, "stopped")),
                outcome = tokio::time::timeout(carried.timeout, inner.carry(&carried)) => {
                    outcome.unwrap_or_else(|_| Err(no_answer(carried.timeout)))
                }
            };
            // Nobody listens any more only when the caller's thread died.
            let _ = done.send(outcome.map_err(|error| error.within(place)));
        });
        outcome.recv().unwrap_or_else(|cause| {
            Err(Error::new(ErrorKind::Io, "the transport's threads ended").caused_by(cause))
        })
    }

    fn address(&self) -> &str {
        &self.inner.address
    }
}

fn no_answer(timeout: Duration) -> Error {
    Error::new(
        ErrorKind::TimedOut,
        format!("no answer within {} ms", timeout.as_millis()),
    )
}

impl Inner {
    fn idle(&self) -> MutexGuard<'_, VecDeque<(Connection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that was used last, unless it is too old or was closed.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle();
        while let Some((connection, since)) = idle.pop_back() {
            if connection.is_open() && since.elapsed() < self.options.idle_timeout {
                return Some(connection);
            }
        }
        None
    }

    async fn carry(&self, carried: &Carried) -> Result<Answer> {
        let _place = self.places.acquire().await.map_err(|cause| {
            Error::new(ErrorKind::Io, "the pool of connections").caused_by(cause)
        })?;
        let mut is_again = false;
        loop {
            let (mut connection, is_used) = match self.take_idle() {
                Some(connection) if !is_again => (connection, true),
                _ => (Connection::open(self).await?, false),
            };
            let exchanged = connection
                .exchange(self, &carried.body, carried.answer_max_bytes)
                .await?;
            match exchanged {
                Exchanged::Answered(answer) => {
                    if connection.is_open() {
                        self.idle().push_back((connection, Instant::now()));
                    }
                    return Ok(answer);
                }
                Exchanged::Unauthorized | Exchanged::NotSent if is_used && !is_again => {
                    is_again = true;
                }
                Exchanged::Unauthorized => {
                    return Err(Error::new(
                        ErrorKind::Unauthorized,
                        "status 401: the credentials are not taken",
                    ));
                }
                Exchanged::NotSent => {
                    return Err(Error::new(
                        ErrorKind::Io,
                        "the connection was closed before the request was sent",
                    ));
                }
            }
        }
    }
}
