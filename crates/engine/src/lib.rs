//! The protection domain: what is done with disks, images and a repository, one job per file.
//!
//! ```text
//!   caller ──► plan (pure, printable) ──► execute ──► report (serialisable)
//!                                           │  Progress, Cancellation, Journal in; undo when it fails
//!                                  SyncPlan │ LeafScan │ pipeline over all cores
//!                                           ▼
//!                                   repo sessions, vdisk images
//! ```
//!
//! - [`job`]: what jobs have in common; the jobs themselves are its submodules.
//! - [`Progress`], [`Cancellation`]: how a caller watches a job and stops it.
//! - [`Problem`]: an error as an operator needs it: code, cause, evidence, next command.
//! - [`inside`]: volumes, file systems and files of disks and versions, read without mounting.
//! - [`unneeded`]: what of a disk a backup may leave out.
//! - [`quickstart`]: the whole round on a sample disk.
//!
//! **Invariants.** A job either ends with its report, or fails having undone what it can and kept what can be resumed.
//! Memory is bounded by the number of workers, never by the disk. Nothing here prints, and every clock is injected.

mod compare;
mod error;
pub mod inside;
pub mod job;
mod pipeline;
mod problem;
pub mod profile;
mod progress;
pub mod quickstart;
mod transfer;
pub mod unneeded;

pub use error::{Error, ErrorKind, Result};
pub use problem::{Problem, ProblemCode};
pub use progress::{Cancellation, Progress, Unwatched};
pub use transfer::{CheckpointEvery, Tracking};
