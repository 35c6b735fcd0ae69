//! A guest: what writes into the disks of a running VM, and what answers when it is asked to hold still.
//!
//! ```text
//!   transaction n:  ledger record │ flush │ cell in copy A │ cell in copy B │ flush │ head n │ flush
//!                   ───────────── every write goes to the guest's cache first; a flush writes the cache down, in order ─────
//!   between ticks:  always in the middle of a transaction, so that a frozen disk tells how it was frozen
//! ```
//!
//! [`examine`] reads restored bytes and says how consistent they are, without any label:
//!
//! | verdict | how it comes about |
//! |---|---|
//! | application | the application finished its transaction, the file system was flushed and marked clean |
//! | file system | the file system was flushed and marked clean, a transaction is open |
//! | crash | a prefix of the writes, which the ledger makes whole again |
//! | inconsistent | anything else: disks of two moments, lost or torn writes |
//!
//! **Invariants.** What is on the disks is at every moment a prefix of what the guest wrote. Everything follows from the
//! guest's seed.

mod examine;
mod record;
mod workload;

pub use examine::{Consistency, Examination, examine};
pub use record::{Layout, Place, RECORD_BYTES, Record, RecordKind};
pub use workload::{
    BULK_BYTES, Guest, GuestDisks, GuestMemory, GuestOs, Health, Quiesced, WriterState,
};
