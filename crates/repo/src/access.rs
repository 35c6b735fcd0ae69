//! The small objects as the protocols see them: sealed, immutable, created once.
//!
//! Leases, marks and the records of garbage collection stand on this seam and not on the whole repository, so that their
//! protocols can be tested over a store alone.

use store::{ObjectName, Store};

use crate::format::ObjectKind;
use crate::points::PointKey;
use crate::{LeaseId, Result};

/// Small sealed objects.
///
/// An implementer **must** bind the kind and the whole name into what it puts, and refuse anything else with
/// [`crate::ErrorKind::Corrupt`] when it gets.
pub(crate) trait ObjectAccess: Send + Sync {
    /// Where the objects lie.
    fn store(&self) -> &dyn Store;
    /// Seals and puts, create-if-absent.
    fn put_sealed(&self, kind: ObjectKind, name: &ObjectName, text: &[u8]) -> Result<()>;
    /// Gets and opens an object of at most `limit_bytes`.
    fn get_sealed(&self, kind: ObjectKind, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>>;
    /// Puts a tombstone where a point would be; `AlreadyExists` if anything is there.
    fn put_tombstone(&self, key: PointKey, broken: LeaseId) -> Result<()>;
}
