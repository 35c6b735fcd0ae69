//! A Hyper-V estate in software: hosts, failover clusters, storage, virtual machines with real disks, and guests that write.
//!
//! ```text
//!   scenario ──► estate: the model; pure rules, a virtual clock, real VHDX and VHD files ◄── guest: who writes into the disks
//!                   ▲
//!                provider, wire: the same estate as a Hyper-V host shows it to the network
//! ```
//!
//! It stands in for Windows where no Windows can run. Where Microsoft documents a rule, the estate keeps it; where sources
//! disagree or are silent, a named [`Switch`](estate::Switch) has both answers and the worse one is the default.
//!
//! **Invariants.** Everything follows from a seed and from the calls made: no clock and no randomness of its own. Bytes of
//! disks are real: whoever opens a file of the estate reads what the guest wrote. What is not modelled is refused, never
//! pretended.

pub mod control;
mod error;
pub mod estate;
pub mod guest;
pub mod provider;
pub mod scenario;
pub mod schema;
pub mod smb;
pub mod wire;

pub use error::{Error, ErrorKind, HResult, Result, ReturnCode, Win32Error};
