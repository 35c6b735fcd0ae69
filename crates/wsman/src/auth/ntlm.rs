//! NTLMv2 (MS-NLMP): three messages, then signatures and RC4.
//!
//! ```text
//!   client                                        server
//!     NEGOTIATE (flags)            ────────────►
//!                                  ◄────────────  CHALLENGE (flags, 8 random bytes, names, time)
//!     AUTHENTICATE (names, proof,  ────────────►  looks the account up, checks proof, MIC and channel bindings
//!       enciphered session key, MIC)
//!     c→s: sign key, seal key, sequence 0…        the same keys
//!     s→c: sign key, seal key, sequence 0…
//! ```
//!
//! - [`NtlmClient`], [`NtlmServer`]: the two halves. [`NtlmSeal`]: what they end with.
//! - `message`: bytes of the messages. `keys`: what is computed from passwords and challenges.
//!
//! **Invariants.** Proofs are NTLMv2 or nothing. Keys come with extended session security and 128 bits or not at all: the asking
//! half refuses a server without, the answering half lets such a client in without keys, which suffices over HTTPS alone. A proof is
//! checked in constant time, and an unknown name takes as long as a wrong password. When the client says that it signed the
//! messages (MIC), the signature is checked.
//!
//! **What it does not do.** No NTLMv1, no LM, no anonymous or datagram logins.

mod client;
mod keys;
mod message;
mod seal;
mod server;

pub(super) use client::Mic;
pub use client::{NtlmClient, NtlmClientOptions};
pub use seal::NtlmSeal;
pub use server::{CbtHardening, NtlmProof, NtlmServer, NtlmServerOptions};
