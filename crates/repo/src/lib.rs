//! The repository: versions of disks, kept so that each can be given back byte for byte.
//!
//! ```text
//!   VersionSession ──► BlobWriter ──► packs ──┐                       ┌── VersionReader ◄── restore, verify, copy
//!     (lease, base)       │                   ├──► index ◄── lookups ─┤
//!         └── commit ──► recovery point ◄─────┴── trees of nodes ─────┘
//! ```
//!
//! - [`Repository`]: create, unlock, list points, begin versions, open them.
//! - [`VersionSession`], [`BlobWriter`]: write one version; [`VersionReader`]: read one.
//! - [`format`]: every byte layout; `docs/FORMAT.md` is its text.
//! - `lease`, `gc`, `retention`, `marks`: what keeps all of it safe while many work on it.
//!
//! **Invariants.** Data packs are durable before node packs, node packs before the index segment, all of it before the
//! point; the point, created if absent, is the only commit. Every blob is decoded and hashed before its pack is put, and
//! again whenever it is read. Objects are immutable, names are never used twice.
//!
//! It does not read images or schedule anything, and trusts no clock for safety.

mod access;
mod blobs;
mod bundles;
mod catalog;
mod compress;
mod config;
pub mod copy;
mod crypto;
pub mod debug;
mod doubt;
mod environment;
mod error;
pub mod format;
pub mod gc;
mod identity;
mod ids;
mod index;
pub mod keys;
pub mod lease;
pub mod local;
pub mod marks;
mod names;
mod pack;
mod parallel;
mod points;
mod read;
pub mod repair;
mod repository;
pub mod retention;
mod session;
pub mod stats;
mod vault;
pub mod verify;

pub use blobs::{BlobStats, BlobWriter, EncodedBlob};
pub use catalog::PointRecord;
pub use config::{Compression, Encryption};
pub use environment::{
    Clock, Environment, HostIdentity, Random, SystemClock, SystemRandom, process_started, rfc3339,
};
pub use error::{Error, ErrorKind, Result};
pub use format::{BlobName, Codec, PackKind};
pub use identity::RepositoryIdentity;
pub use ids::{
    BundleId, KeyId, LeaseId, MarkId, NameId, PackId, PointId, RepositoryId, SegmentId, SlotId,
};
pub use index::{IndexOptions, IndexStats};
pub use keys::{KeyFile, RecoveryKey, SlotInfo, SlotKind, Unlock};
pub use pack::PackTargets;
pub use points::{
    Bundle, BundledPoint, ByteRange, ConfigurationFile, Consistency, CopiedPoint, DiskVersion,
    ImageProfile, Omissions, ParentPoint, PointDraft, PointKey, PointSelector, PointSignature,
    PointWriter, ProtectedName, RecoveryPoint, SignatureState, SignedPoint, UnknownFields, Which,
};
pub use read::{BulkRead, BulkStats, LeafBlocks, ReadProtection, ReadSession, VersionReader};
pub use repository::{CreateOptions, Created, OpenOptions, Repository};
pub use session::{BeginOptions, BusyPolicy, SessionBase, VersionSession};
