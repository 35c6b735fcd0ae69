//! WS-Management as the management of Hyper-V needs it: CIM values, the messages, and both halves of the conversation.
//!
//! ```text
//!   client::CimClient                                                        server::CimProvider
//!        │ get, query, invoke …                                                    ▲ instances, get, invoke …
//!   client::WsmanClient ── message ── xml ──► bytes ══► bytes ── xml ── message ── server::WsmanService
//!        │                                                                         ▲
//!   transport::Transport (a seam)                                       server::SoapService (a seam)
//!        └── transport::HttpTransport ══ auth ══ HTTP(S) ══ auth ══ transport::HttpServer
//! ```
//!
//! - [`cim`]: names, values, instances, paths; object paths and CIM-XML as text. [`schema`]: what a class has.
//! - [`xml`]: a bounded tree reader, aware of namespaces, and a writer with the prefixes of Windows.
//! - [`message`]: requests, answers, faults. [`wql`]: the query language, read and evaluated.
//! - [`client`], [`server`]: the two halves over bytes. [`transport`], [`auth`]: the same over sockets.
//!
//! **Invariants.** Whatever the other side says is hostile until checked: size, depth, count and time of everything read are
//! bounded, and a bad answer is a typed error. Clock, ids and randomness come from the caller.
//!
//! **What it does not do.** No events, no shells, no Create and Delete: Hyper-V is changed by methods. It knows no class of
//! Hyper-V; tables of classes are the server's to bring.

pub mod auth;
pub mod cancel;
pub mod cim;
pub mod client;
mod error;
pub mod message;
pub mod schema;
pub mod server;
pub mod transport;
pub mod wql;
pub mod xml;

pub use cancel::CancelToken;
pub use error::{Error, ErrorKind, Result};
