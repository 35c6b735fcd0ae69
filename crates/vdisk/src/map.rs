//! The extents of a disk, merged.
//!
//! ```text
//!   reader:  D D Z Z Z U P P D        map:  D─── Z────── U P─── D
//! ```
//!
//! Over an [`Image`](crate::Image) with its chain the map is the flattened disk; over one opened
//! [leaf only](crate::image::ChainMode::LeafOnly) it shows what this file holds and what its parent does.
//!
//! **Invariants.** Extents come in order, without gaps, and neighbours differ in kind. Nothing is read but tables.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use block::{Extent, ReadAt};

use crate::Result;

/// Iterates over the merged extents of a disk; ends after the first error.
pub struct ExtentMap<'a, R: ReadAt + ?Sized> {
    disk: &'a R,
    at: u64,
    end: u64,
    pending: Option<Extent>,
    has_failed: bool,
}

/// The merged extents of a whole disk.
pub fn extents<R: ReadAt + ?Sized>(disk: &R) -> ExtentMap<'_, R> {
    extents_in(disk, 0, disk.size_bytes())
}

/// The merged extents of a range, cut at its ends and at the disk's.
pub fn extents_in<R: ReadAt + ?Sized>(
    disk: &R,
    offset: u64,
    length_bytes: u64,
) -> ExtentMap<'_, R> {
    let end = offset.saturating_add(length_bytes).min(disk.size_bytes());
    ExtentMap {
        disk,
        at: offset,
        end,
        pending: None,
        has_failed: false,
    }
}

impl<R: ReadAt + ?Sized> Iterator for ExtentMap<'_, R> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.end && !self.has_failed {
            let found = match self
                .disk
                .extent_at(self.at, self.end.saturating_sub(self.at))
            {
                Ok(found) => found,
                Err(error) => {
                    self.has_failed = true;
                    return Some(Err(error.into()));
                }
            };
            // A reader promises progress; a second look costs nothing and ends what would never end.
            self.at = found.end().clamp(self.at.saturating_add(1), self.end);
            match &mut self.pending {
                Some(pending) if pending.kind == found.kind => {
                    pending.length_bytes = pending.length_bytes.saturating_add(found.length_bytes);
                }
                pending => {
                    if let Some(whole) = pending.replace(found) {
                        return Some(Ok(whole));
                    }
                }
            }
        }
        if self.has_failed {
            None
        } else {
            self.pending.take().map(Ok)
        }
    }
}
