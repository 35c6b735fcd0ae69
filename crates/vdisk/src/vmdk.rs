//! VMware's VMDK: read every layout that hosts and OVAs carry, write the two that others import.
//!
//! ```text
//!  descriptor (text, alone or at sector 1 of a sparse file)         sparse extent (little-endian, sectors of 512)
//!  ┌──────────────────────────────┐                                ┌────────┬────────────┬─────────────┬─────────
//!  │ CID=…  parentCID=…           │      ┌── FLAT   raw bytes      │ header │ descriptor │ grain dir + │ grains …
//!  │ createType="…"               │──────┤── SPARSE ──────────────►│ "KDMV" │ (optional) │ grain tables│
//!  │ RW 8192 SPARSE "x-s001.vmdk" │      ├── ZERO                  └────────┴────────────┴─────────────┴─────────
//!  │ parentFileNameHint="…"       │      └── VMFSSPARSE, SESPARSE  stream-optimized: marker+deflated grain, tables behind
//!  └──────────────────────────────┘                                their grains, directory, footer, end of stream
//! ```
//!
//! | type | use |
//! |---|---|
//! | [`VmdkReader`] | monolithic and split, flat and sparse, stream-optimized, delta links, ESX `COWD` and `SESPARSE`; read-only |
//! | [`StreamOptimizedWriter`] | one pass in disk order, grains deflated on several cores: what goes into an OVA |
//! | [`SparseBuilder`] | `monolithicSparse`, written in any order |
//!
//! **Invariants.** Grain tables are paged through a bounded cache. The names in a descriptor are a stranger's: a name
//! that leaves the descriptor's directory is refused unless the caller allowed it, and opening is always the caller's
//! own act ([`ExtentOpener`]). Nothing is allocated from a length in the file before it was held against a limit.
//!
//! **Not done.** Writing into an existing image, raw device mappings, encrypted images, a dirty seSparse journal:
//! refused with [`crate::ErrorKind::Unsupported`].
//!
//! Sources: VMware "Virtual Disk Format 5.0"; for `SESPARSE`, which VMware never published, QEMU's findings.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod builder;
mod descriptor;
mod layout;
mod reader;
mod sparse;
mod stream;

pub use builder::SparseBuilder;
pub(crate) use descriptor::begins_descriptor;
pub use descriptor::{ContentId, ExtentKind, ExtentLine, ExtentPaths, VmdkDescriptor};
pub use layout::VmdkOptions;
pub use reader::{ExtentOpener, NoExtents, VmdkReader, VmdkSources};
pub use stream::StreamOptimizedWriter;

/// Bytes of a sector, the unit of every number in a VMDK.
const SECTOR_BYTES: u64 = 512;
