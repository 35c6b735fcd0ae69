//! Disks as files of a folder, through FUSE (Linux).
//!
//! ```text
//!   DIR/web01@3.raw, DIR/web01@3.vhdx ◄── kernel ◄── /dev/fuse ◄── FuseMount: 4 threads ──► ReadAt
//! ```
//!
//! - `mount`: makes the folder appear and go away, and clears away the one of a process that was killed.
//! - `folder`: what is in it.
//!
//! **Invariants.** The folder never changes while it is there, so that the kernel may remember all of it. Nothing can be
//! written. Holes are told (`SEEK_HOLE`), in bounded time.

mod folder;
mod mount;

pub use folder::ServedFile;
pub use mount::{Access, FuseMount, FuseOptions, Unmounted};
