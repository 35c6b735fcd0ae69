//! The answering half: from an authenticated caller's bytes to the bytes of the answer.
//!
//! ```text
//!   HttpServer (sockets, authentication) ──► SoapService::serve(caller, bytes) ──► Reply
//!                                                │
//!                         WsmanService: strict reading, enumerations, limits, typing of parameters
//!                                                │
//!                                          CimProvider: the estate
//! ```
//!
//! **Invariants.** A request gets exactly one answer; what cannot be understood gets a fault. Everything that a caller can make grow
//! (contexts, items, bytes) is bounded. No clock and no randomness of its own.

mod enumeration;
mod parameters;
mod provider;
mod refusal;
mod results;
mod service;

pub use provider::{CimProvider, Invocation, Operation, not_found};
pub use refusal::refusal;
pub use service::{ContextIds, ParameterOrder, ServiceOptions, ServiceSources, WsmanService};

use std::fmt;

/// Name of an account as the authentication found it: `DOMAIN\user`, `HOST\user` or `user@REALM`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountName(String);

impl AccountName {
    /// A name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody known: only Identify is answered (`WSMANIDENTIFY: unauthenticated`).
    Anonymous,
    /// An account that has proved itself.
    Account(AccountName),
}

/// What goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status of HTTP: 200, 400 or 500.
    pub status: u16,
    /// Value of `Content-Type`, before any sealing: `application/soap+xml;charset=UTF-8`, or UTF-16 where the request was.
    pub content_type: String,
    /// The envelope.
    pub body: Vec<u8>,
}

/// Answers envelopes, whoever carries them. Called from many threads at once.
pub trait SoapService: Send + Sync {
    /// Answers one envelope of `caller`. `charset` is what the request's content type named, lower case.
    ///
    /// Always gives an answer: what cannot be understood is a fault inside it.
    fn serve(&self, caller: &Caller, charset: Option<&str>, request: &[u8]) -> Reply;
}
