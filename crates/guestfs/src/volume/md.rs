//! MD, the software RAID of Linux.
//!
//! ```text
//!   version   superblock lies                          member's data
//!   0.90      64 KiB before the last 64 KiB boundary   from 0
//!   1.0       8 KiB before the end                     from data_offset
//!   1.1       at 0                                     from data_offset
//!   1.2       at 4096                                  from data_offset
//! ```
//!
//! The member with the highest event count says what the set is. A member that is one event behind is still in step (the
//! machine stopped between two superblocks); one that is further behind, or that the newest superblock calls faulty or
//! spare, is as good as missing.
//!
//! **Not done.** Sets in the middle of a reshape, containers (DDF, IMSM), multipath, journals of RAID-5 (what is in the
//! journal and not yet in the set is not read: a finding).
//!
//! Source: Linux `include/uapi/linux/raid/md_p.h`.

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

mod array;
mod superblock;

pub use superblock::{Superblock, read_superblock};

use super::{Candidate, LogicalVolume};
use crate::Result;

/// Puts together all sets of which a member is among these.
///
/// # Errors
/// [`crate::ErrorKind::Io`] when a candidate cannot be read.
pub fn assemble(candidates: &[Candidate]) -> Result<Vec<LogicalVolume>> {
    let mut sets: std::collections::BTreeMap<crate::partition::Guid, Vec<(Candidate, Superblock)>> =
        std::collections::BTreeMap::new();
    for candidate in candidates {
        let superblock = match read_superblock(&*candidate.source) {
            Ok(found) => found,
            // A set of which too much is missing: nothing can be told of what stands on it.
            Err(error) if error.kind() == crate::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if let Some(superblock) = superblock {
            sets.entry(superblock.set)
                .or_default()
                .push((candidate.clone(), superblock));
        }
    }
    Ok(sets
        .into_values()
        .map(|members| array::volume(&members))
        .collect())
}
