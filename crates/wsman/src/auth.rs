//! Who the other side is, and sealing what goes between.
//!
//! ```text
//!          Initiator (asks)                                    Acceptor (answers)
//!   step(nothing)  ── token ──────────────────────────────►  step(token)
//!   step(token)   ◄── Accepted::Continue(token) ───────────
//!                  ── token ──────────────────────────────►  step(token)
//!   finish(token) ◄── Accepted::Done: token, account ──────
//!        │                                                        │
//!        └─► Box<dyn Seal> ═════ sealed bodies, in order ═════ Box<dyn Seal>
//! ```
//!
//! - [`negotiate`]: SPNEGO with NTLMv2 inside (and Kerberos beside it); [`ntlm`]: the messages and keys of NTLMv2.
//! - `kerberos`: the system's MIT Kerberos through GSS-API (feature `kerberos`).
//! - [`basic`]: a name and a password, for sealed lines only.
//! - [`account`]: what an answering side knows of names and passwords. [`binding`]: what ties a login to a TLS channel.
//!
//! **Invariants.** Secrets are overwritten when they are dropped and are never shown. Every token is hostile until checked:
//! bounded in size and count, and a bad one is a typed error. What is compared with a secret is compared in constant time.
//! Randomness and time come from an [`Entropy`].
//!
//! **What it does not do.** No CredSSP, no NTLMv1, no anonymous logins, no delegation.

use std::time::{Duration, SystemTime};

use crate::server::AccountName;
use crate::{Error, ErrorKind, Result};

pub mod account;
pub mod basic;
pub mod binding;
mod der;
#[cfg(feature = "kerberos")]
pub mod kerberos;
pub mod negotiate;
pub mod ntlm;
mod secret;
mod spnego;

pub use secret::{NtHash, Secret};

/// The most bytes that a token of any scheme may have. A Kerberos ticket with many groups has some tens of KiB.
pub const TOKEN_MAX_BYTES: usize = 64 << 10;

/// A body that was sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// What the other side needs to open it: NTLM's signature of 16 bytes, or the header of a GSS wrap token.
    pub header: Vec<u8>,
    /// The bytes, enciphered; padding, where a mechanism has any, at their end.
    pub data: Vec<u8>,
}

/// Keys of one connection. Order matters on both sides: what was sealed first is opened first.
pub trait Seal: Send {
    /// Enciphers and signs a body.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the mechanism's library refuses.
    fn seal(&mut self, plain: &[u8]) -> Result<Sealed>;

    /// Deciphers a body and checks its signature.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when the body was not sealed by who holds the other keys, or is out of order.
    fn open(&mut self, header: &[u8], data: Vec<u8>) -> Result<Vec<u8>>;
}

/// The asking half of a login. One for each connection.
pub trait Initiator: Send {
    /// The word that stands before tokens in `Authorization` and `WWW-Authenticate`.
    fn scheme(&self) -> &'static str;

    /// The next token, from what the other side sent: nothing at first.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] for a bad token, [`ErrorKind::Unauthorized`] when the other side said no,
    /// [`ErrorKind::Refused`] when it cannot be trusted, [`ErrorKind::Unsupported`] when it can too little.
    fn step(&mut self, token: Option<&[u8]>) -> Result<Vec<u8>>;

    /// Ends the login after the other side accepted, with its last token if there was one.
    ///
    /// # Errors
    /// Those of [`Initiator::step`].
    fn finish(self: Box<Self>, token: Option<&[u8]>) -> Result<Box<dyn Seal>>;
}

/// What an [`Acceptor`] says to a token.
pub enum Accepted {
    /// Not yet: this goes back, with status 401.
    Continue(Vec<u8>),
    /// Proved.
    Done(Proof),
}

/// A login that succeeded.
pub struct Proof {
    /// What goes back last, if anything.
    pub token: Option<Vec<u8>>,
    /// Who it is.
    pub account: AccountName,
    /// The connection's keys; none where the two agreed on no sealing.
    pub seal: Option<Box<dyn Seal>>,
}

/// The answering half of a login. One for each connection and try.
pub trait Acceptor: Send {
    /// Takes the next token.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] for a bad token, [`ErrorKind::Unauthorized`] for a login that is not right,
    /// [`ErrorKind::Unsupported`] for one that is not done here.
    fn step(&mut self, token: &[u8]) -> Result<Accepted>;
}

/// Randomness and time of day, as logins need them.
pub trait Entropy: Send + Sync {
    /// Fills `bytes` with what nobody can guess.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when there is none.
    fn fill(&self, bytes: &mut [u8]) -> Result<()>;

    /// The time of day. NTLM puts it into its tokens; nothing is decided by it here.
    fn now(&self) -> SystemTime;
}

/// The operating system's randomness and clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        getrandom::fill(bytes).map_err(|cause| {
            Error::new(ErrorKind::Io, "randomness of the operating system").caused_by(cause)
        })
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Whether two byte strings are equal, in a time that depends on their lengths only.
fn equal(one: &[u8], other: &[u8]) -> bool {
    let difference = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    one.len() == other.len() && std::hint::black_box(difference) == 0
}

/// Time of day in Windows' count: steps of 100 ns since 1601.
fn filetime(time: SystemTime) -> u64 {
    const UNIX_EPOCH_SECONDS: u64 = 11_644_473_600;
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    since
        .as_secs()
        .saturating_add(UNIX_EPOCH_SECONDS)
        .saturating_mul(10_000_000)
        .saturating_add(u64::from(since.subsec_nanos() / 100))
}
