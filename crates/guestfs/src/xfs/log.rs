//! The log: whether anything lies in it, and what a mount would do with it.
//!
//! ```text
//!   ring ─► state ─┬─ clean
//!                  └─ live: records ─► transactions ─► pass 1: what is cancelled   ─► overlay over the volume
//!                                                  └─► pass 2: items, in order     ─► promised mappings
//! ```
//!
//! **Invariants.** Nothing is written. A log that cannot be replayed in full is not replayed at all: the file system is
//! then read as it stands and said to be dirty, with the reason.
//!
//! **Not done.** Logs on another device, logs of machines of the other byte order: named.

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

mod buffers;
mod inodes;
mod replay;
mod ring;
mod transactions;

use std::collections::HashMap;
use std::sync::Arc;

use block::ReadAt;

pub(super) use self::replay::Mapping;
use self::replay::{Cancelled, Outcome, Replay};
use self::ring::{Checksums, Live, Ring, State};
use self::transactions::{Keep, Transactions};
use super::overlay::Overlay;
use super::superblock::Superblock;
use crate::filesystem::Cleanliness;
use crate::{Error, ErrorKind, Result};

/// How often the beginning of the live part may turn out to be overwritten.
const MAX_BEGINNINGS: usize = 64;
/// The only feature of logs so far: attributes are changed by intents.
const KNOWN_LOG_FEATURES: u32 = 1;

/// A file system after its log was looked at.
pub(super) struct Recovered {
    pub(super) cleanliness: Cleanliness,
    pub(super) overlay: Option<Arc<Overlay>>,
    /// Changes of files, by inode, that were promised and not done.
    pub(super) mappings: HashMap<u64, Vec<Mapping>>,
}

/// Replays the log in memory, if anything lies in it.
///
/// # Errors
/// When the volume cannot be read. Whatever is wrong with the log is said in the cleanliness.
pub(super) fn recover(volume: &Arc<dyn ReadAt>, superblock: &Superblock) -> Result<Recovered> {
    let told = |cleanliness| Recovered {
        cleanliness,
        overlay: None,
        mappings: HashMap::new(),
    };
    let Some(log) = superblock.log else {
        return Ok(told(Cleanliness::Dirty(
            "its log is on another device: whether it is empty is not known".to_owned(),
        )));
    };
    match replay(volume, superblock, log) {
        Ok(None) => Ok(told(Cleanliness::Clean)),
        Ok(Some(outcome)) => Ok(Recovered {
            cleanliness: Cleanliness::Replayed,
            overlay: Some(Arc::new(outcome.overlay)),
            mappings: outcome.mappings,
        }),
        Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::Cancelled) => Err(error),
        Err(error) => Ok(told(Cleanliness::Dirty(format!(
            "its log could not be replayed ({error}): the newest changes may be missing or half done"
        )))),
    }
}

fn replay(
    volume: &Arc<dyn ReadAt>,
    superblock: &Superblock,
    (block, count): (u64, u64),
) -> Result<Option<Outcome>> {
    let start = superblock.run_offset(block, count)?;
    let bytes = count.saturating_mul(u64::from(superblock.block_bytes));
    let ring = Ring::new(volume, start, bytes)?;
    let State::Live(live) = ring.state()? else {
        return Ok(None);
    };
    if superblock.log_features & !KNOWN_LOG_FEATURES != 0 {
        return Err(Error::unsupported(format!(
            "unknown features {:#x} of the log",
            superblock.log_features
        )));
    }
    let (live, cancelled) = first_pass(&ring, live, superblock)?;
    let overlay = Overlay::over(Arc::clone(volume));
    let mut replay = Replay::new(superblock, overlay, cancelled);
    let mut transactions = Transactions::new(Keep::All);
    let walked = ring.walk(
        live,
        Checksums::Believe,
        &superblock.uuid,
        &mut |record, body| {
            transactions.record(record, body, &mut |lsn, items| {
                replay.transaction(lsn, &items)
            })
        },
    );
    walked.map_err(|bad| bad.error)?;
    replay.finish().map(Some)
}

/// Proves all records, and gathers what is cancelled. What was written last may have gone over the beginning of the live
/// part when the ring was full: then it begins later.
fn first_pass(
    ring: &Ring<'_>,
    mut live: Live,
    superblock: &Superblock,
) -> Result<(Live, Cancelled)> {
    let checksums = if superblock.is_v5 {
        Checksums::Prove
    } else {
        Checksums::ProveIfPresent
    };
    for _ in 0..MAX_BEGINNINGS {
        let mut cancelled = Cancelled::default();
        let mut transactions = Transactions::new(Keep::Formats);
        let walked = ring.walk(live, checksums, &superblock.uuid, &mut |record, body| {
            transactions.record(record, body, &mut |_, items| cancelled.gather(&items))
        });
        let Err(bad) = walked else {
            return Ok((live, cancelled));
        };
        if bad.error.kind() != ErrorKind::Corrupt || !ring.is_near(bad.block, live.head) {
            return Err(bad.error);
        }
        let next = ring.record_from(ring.behind(bad.block), live.head)?;
        live.tail = next.ok_or(bad.error)?;
    }
    Err(Error::corrupt("the log has no beginning"))
}
