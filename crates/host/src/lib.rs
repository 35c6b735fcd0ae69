//! The hypervisor boundary: what Hikae asks of a place where machines run, in words that fit more than one hypervisor.
//!
//! ```text
//!                engine, command line
//!                        │  words: VmFacts, CheckpointRef, TrackingToken, Consistency …
//!   ┌────────────────────▼─────────────────────────────────────────────────────────┐
//!   │ Inventory  Checkpoints  DiskReads  Power  Definition  Mobility  ClusterMembership │   small traits (boundary)
//!   └──────┬───────────────────────────────────────────────────────┬───────────────┘
//!       hyperv: CIM over WS-Management, bytes by DiskAccess      (kvm, an agent: same traits)
//!          │
//!   pure: eligibility (rules → verdicts)   coverage (disks → protected, excluded, impossible)
//!   kept: custody (what was made, written down before it is made, released whatever happens)
//! ```
//!
//! - [`boundary`]: the traits, each method as must / may rely on / never.
//! - [`facts`], [`ids`], [`consistency`], [`checkpoint`], [`definition`], [`cluster`]: their words.
//! - [`eligibility`], [`coverage`]: pure functions over facts.
//! - [`limits`]: how much is done at once.
//! - [`custody`]: the journal, the marks and the custodian.
//! - [`access`]: how a path on a host becomes bytes.
//! - [`hyperv`]: the driver for Windows Server hosts and failover clusters.
//! - `conformance` (feature): the suite that tells whether a driver keeps the contract.
//!
//! **Invariants.** A machine is known by its id, never by its name or its place; that it moved is an outcome, not an error.
//! Whatever is made on a host is in the custody journal before the host is asked for it. Nothing that was not measured is
//! told as a fact: it is `None`, or a verdict of *unknown*.
//!
//! **What it does not do.** It keeps no repository and decides no schedule. It prints nothing. The clock is handed in.

pub mod access;
pub mod boundary;
pub mod checkpoint;
pub mod clock;
pub mod cluster;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod consistency;
pub mod coverage;
pub mod custody;
pub mod definition;
pub mod eligibility;
mod error;
pub mod facts;
pub mod hyperv;
pub mod ids;
pub mod limits;
pub mod path;

pub use clock::{CancelToken, Clock, SystemClock, Timestamp};
pub use error::{Error, ErrorKind, Result};
