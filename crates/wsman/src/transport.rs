//! How bytes get to the other side and back: the seam, and (in its modules) HTTP.
//!
//! ```text
//!   WsmanClient ── Post ──► Transport ══ whatever ══► SoapService of the other side
//!               ◄─ Answer ─┘
//! ```
//!
//! **Invariants.** A [`Transport`] authenticates and seals by itself; it never looks into the envelope. An answer is never
//! longer than was allowed. Status 200, 400 and 500 carry SOAP and are [`Answer`]s; any other is an error.

mod direct;
mod http;
mod runtime;
mod sealed;
mod server;
mod tls;

use std::time::Duration;

use crate::{CancelToken, Result};

pub use direct::DirectTransport;
pub use http::{Credentials, Endpoint, HttpTransport, HttpTransportOptions, Line};
pub use runtime::TransportRuntime;
pub use server::{
    BasicOffer, HttpServer, HttpServerOptions, OpenBodies, StopReport, TlsServerOptions, WireFault,
    WireFaults,
};
pub use tls::{CertificateHash, CertificateProblem, TlsIdentity, Trust};

/// One request to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Post<'a> {
    /// The envelope, in UTF-8.
    pub body: &'a [u8],
    /// How long everything may take: connecting, authenticating, sending, waiting, reading.
    pub timeout: Duration,
    /// The most bytes that the answer may have; more is [`ErrorKind::Limit`](crate::ErrorKind::Limit).
    pub answer_max_bytes: usize,
    /// Stops it, with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub cancel: &'a CancelToken,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status of HTTP: 200, 400 or 500.
    pub status: u16,
    /// The charset that the content type named, lower case, if any.
    pub charset: Option<String>,
    /// The envelope, opened (not sealed), in the encoding of the other side.
    pub body: Vec<u8>,
}

/// Gets an envelope to the other side and brings the answer. Called from many threads at once.
pub trait Transport: Send + Sync {
    /// Sends one request and waits for its answer.
    ///
    /// Must either deliver the request once or say that it may not have arrived: a request is repeated by the transport only
    /// when the other side refused it before it could act (401, connection refused, connection closed before one byte was sent).
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io), [`TimedOut`](crate::ErrorKind::TimedOut), [`Cancelled`](crate::ErrorKind::Cancelled),
    /// [`Unauthorized`](crate::ErrorKind::Unauthorized), [`Limit`](crate::ErrorKind::Limit),
    /// [`Malformed`](crate::ErrorKind::Malformed), [`Refused`](crate::ErrorKind::Refused).
    fn post(&self, post: &Post<'_>) -> Result<Answer>;

    /// The address that goes into `a:To`, such as `http://hv01.example.net:5985/wsman`.
    fn address(&self) -> &str;
}
