//! What is inside a disk: partitions, volumes, file systems, and the files in them, read without mounting anything.
//!
//! ```text
//!   disks (ReadAt) ─► partition tables ─► volume managers (LDM, LVM, MD) ─► volumes (ReadAt) ─► probe ─► FileSystem
//! ```
//!
//! **Invariants.** Nothing here writes. Every byte comes from a stranger: whatever it says, the answer is right, or a
//! typed error that names the place; memory, time and depth are bounded. One model of a file for all file systems
//! ([`filesystem`]).
//!
//! It opens no files of the host and knows nothing of repositories: a disk is a [`block::ReadAt`].

/// How much the readers here can read, counted up: it grows in every commit after which some disk reads otherwise than
/// before (a feature more, a fault less). Whoever keeps what was read keeps this with it, and reads again when it grew.
pub const READER_GENERATION: u32 = 2;

pub mod btrfs;
pub mod cache;
pub mod disk;
pub mod encrypted;
mod error;
pub mod ext;
pub mod fat;
pub mod field;
pub mod filesystem;
pub mod ntfs;
pub mod partition;
pub mod probe;
pub mod registry;
pub mod vmconfig;
pub mod volume;
pub mod xfs;

pub use error::{Error, ErrorKind, Result};
pub use filesystem::{FileId, FileName, FileSystem};
