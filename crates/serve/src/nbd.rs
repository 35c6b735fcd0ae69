//! NBD, the network block device protocol, as a server that only reads.
//!
//! ```text
//!   NbdListener ─► NbdServer: one thread that accepts, one per client
//!                     │
//!                     ├─ negotiate   options ◄─► replies, until an export is chosen          (any byte stream)
//!                     └─ transmit    requests ─► up to 4 workers of this client ─► replies   (any byte stream)
//! ```
//!
//! Spoken: fixed newstyle; the options `EXPORT_NAME`, `ABORT`, `LIST`, `INFO`, `GO`, `STRUCTURED_REPLY`, `LIST_META_CONTEXT`,
//! `SET_META_CONTEXT` (`base:allocation`); the commands `READ`, `BLOCK_STATUS`, `CACHE`, `DISC`. Whatever would write is
//! answered with `EPERM`. Not spoken: TLS, extended headers. Source: `doc/proto.md` of NetworkBlockDevice/nbd.
//!
//! **Invariants.** The protocol knows no sockets, so that it can be tried with any bytes. Options, their bytes, requests in
//! flight and bytes of replies in memory are bounded per client, and clients are bounded per server. Negotiation has a
//! deadline; a chosen export has none.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

mod export;
mod listener;
mod negotiation;
mod reply;
mod request;
mod server;
mod transmission;
mod wire;

pub use export::{Export, Exports};
pub use listener::{Address, NbdListener, Reach};
pub use negotiation::{Agreed, Allocation, Negotiated, Replies, negotiate};
pub use server::{NbdOptions, NbdServer, NbdStats};
pub use transmission::{Traffic, Transmission};
