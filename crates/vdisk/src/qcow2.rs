//! QEMU's qcow2, versions 2 and 3: read, create, write in place, check and repair.
//!
//! ```text
//!  cluster 0          anywhere in the file, all numbers big-endian
//! ┌────────────┐     ┌──────────┐      ┌──────────┐      ┌──────────────┐
//! │ header     │────►│ L1 table │─────►│ L2 table │─────►│ data cluster │   guest bytes, or a compressed
//! │ extensions │     │ u64 each │ 1:n  │ u64 each │ 1:n  │              │   run of 512-byte sectors
//! │ backing    │     └──────────┘      └──────────┘      └──────────────┘
//! │   name     │     ┌────────────────┐      ┌────────────────┐
//! │            │────►│ refcount table │─────►│ refcount block │   one counter per cluster of the file
//! └────────────┘     └────────────────┘ 1:n  └────────────────┘
//! ```
//!
//! | type | use |
//! |---|---|
//! | [`Qcow2Reader`] | any image, read-only, from any thread |
//! | [`Qcow2Builder`] | a new image that nobody else sees before [`Qcow2Builder::finish`] (conversion, restore) |
//! | [`Qcow2Writer`] | an existing image in place, safe against a crash at any write |
//! | [`check()`], [`repair()`] | counters against references, and counters made anew |
//!
//! **Invariants.** Tables are paged through bounded caches: memory does not follow the size of the disk (the writer and
//! the builder hold the L1 table, at most 32 MiB, in memory). Nothing is allocated from a length found in the file before that
//! length was held against a limit. A cluster that lies wholly outside the file is an error, never zeros.
//!
//! **Not done.** Encryption, following a backing name (the caller hands the parent in), reading the state of an internal
//! snapshot, bitmaps other than counting their clusters, writing to images with extended L2 entries or an external data
//! file: each is refused with [`crate::ErrorKind::Unsupported`].
//!
//! Source: QEMU `docs/interop/qcow2`.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod builder;
mod check;
mod codec;
mod counters;
mod editor;
mod entry;
mod grow;
mod header;
mod reader;
mod rebuild;
mod references;
mod snapshot;
mod space;
mod tables;
mod writer;

pub use builder::{Qcow2Builder, Qcow2Options, create};
pub use check::{check, repair};
pub use codec::Compression;
pub use grow::grow;
pub use header::{BackingName, Qcow2Header};
pub use reader::{Qcow2Reader, Qcow2Sources};
pub use snapshot::Snapshot;
pub use writer::Qcow2Writer;
