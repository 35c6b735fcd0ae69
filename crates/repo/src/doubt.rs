//! What the writer of a new version asks when the version before it is in doubt.
//!
//! ```text
//!   parent … next    only tombstones between them? ── no ──► a newer version was there: change tracking may count from it
//!   blob             listed? ── no ──► lost: the base is damaged            readable? ── no ──► not to be counted on
//! ```
//!
//! **Invariant.** Every answer errs to the side of doubt; nothing is changed here.

use crate::catalog::{self, MAX_POINT_BYTES};
use crate::format::ObjectKind;
use crate::points::{PointKey, ProtectedName};
use crate::repository::Repository;
use crate::{BlobName, ErrorKind, Result, names};

/// Numbers between two versions that are looked at; more of them count as more than tombstones.
const MAX_SKIPPED: u64 = 1024;

impl Repository {
    /// The number that the next version of a name would get if it were begun now and nobody else writes the name.
    ///
    /// # Errors
    /// What the store answered; what cannot be read where a number may be taken.
    pub fn next_sequence(&self, name: &ProtectedName) -> Result<u64> {
        catalog::newest_and_next(self.vault(), self.memory(), name).map(|(_, next)| next)
    }

    /// Whether every number behind `after` and before `next` is known to be a fenced writer's, so that no version can have
    /// been there. Tombstones that garbage collection has folded away are not known any more.
    ///
    /// # Errors
    /// What the store answered.
    pub fn only_tombstones_between(
        &self,
        name: &ProtectedName,
        after: u64,
        next: u64,
    ) -> Result<bool> {
        let first = after.saturating_add(1);
        if next.saturating_sub(first) > MAX_SKIPPED {
            return Ok(false);
        }
        let name_id = self.vault().name_id(name);
        for sequence in first..next {
            let place = names::point(PointKey { name_id, sequence })?;
            match self.vault().get_any(&place, MAX_POINT_BYTES) {
                Ok((ObjectKind::Tombstone, _)) => {}
                Ok(_) => return Ok(false),
                Err(error) => match error.kind() {
                    ErrorKind::NotFound
                    | ErrorKind::Corrupt
                    | ErrorKind::WrongKey
                    | ErrorKind::Unsupported => return Ok(false),
                    _ => return Err(error),
                },
            }
        }
        Ok(true)
    }

    /// Whether some pack that is listed says to hold a blob, under whichever key; zeros need no pack.
    ///
    /// # Errors
    /// When the index or the store cannot be read.
    pub fn lists(&self, name: &BlobName) -> Result<bool> {
        let index = self.index()?;
        if name.is_zero() || !index.find_all(name)?.is_empty() {
            return Ok(true);
        }
        // It may have been moved by garbage collection since the index was loaded.
        index.refresh(self.vault())?;
        Ok(!index.find_all(name)?.is_empty())
    }

    /// Whether a blob can be read from somewhere now: it is decoded and hashed.
    ///
    /// # Errors
    /// What the store answered, if that says nothing about what lies in it.
    pub fn can_read(&self, name: &BlobName) -> Result<bool> {
        if name.is_zero() {
            return Ok(true);
        }
        match self.read_blob(name) {
            Ok(_) => Ok(true),
            Err(error) => match error.kind() {
                ErrorKind::NotFound
                | ErrorKind::Corrupt
                | ErrorKind::WrongKey
                | ErrorKind::Unsupported => Ok(false),
                _ => Err(error),
            },
        }
    }
}
