//! Snapshots of LVM2 that are not thin: a store of the chunks that changed.
//!
//! ```text
//!   chunk 0   "SnAp" │ valid │ version │ chunk sectors
//!   chunk 1   (old chunk u64, new chunk u64) …   as many as fit, then so many data chunks, then the next such chunk
//! ```
//!
//! Source: Linux `drivers/md/dm-snap-persistent.c`.

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

use std::sync::{Arc, Mutex};

use block::ReadAt;

use crate::volume::pieces::{Source, check_range, distance, read_exact, read_head, take};
use crate::{Error, ErrorKind, Result, field};

/// 128 MiB of memory at most; a store of 64 GiB with chunks of 4 KiB has 16 million.
const MAX_EXCEPTIONS: usize = 8_000_000;
const MAX_CHUNK_BYTES: u64 = 16 * 1024 * 1024;

/// Old chunk and its place in the store, by old chunk.
type Exceptions = Arc<Vec<(u64, u64)>>;

/// An origin, looked at as it was.
pub(super) struct Snapshot {
    origin: Source,
    store: Source,
    chunk_bytes: u64,
    /// Read when first wanted.
    exceptions: Mutex<Option<Exceptions>>,
}

impl Snapshot {
    pub(super) fn open(origin: Source, store: Source) -> Result<Self> {
        let head = read_head(&*store, 0, 512)?;
        if field::slice(&head, 0, 4)? != b"SnAp" || field::u32_le(&head, 8)? != 1 {
            return Err(Error::corrupt("the store of the snapshot has no header"));
        }
        if field::u32_le(&head, 4)? == 0 {
            return Err(Error::corrupt("the snapshot overflowed and is lost"));
        }
        let chunk_bytes = u64::from(field::u32_le(&head, 12)?).saturating_mul(512);
        if !chunk_bytes.is_power_of_two() || chunk_bytes > MAX_CHUNK_BYTES {
            return Err(Error::corrupt(format!("chunks of {chunk_bytes} bytes")));
        }
        Ok(Self {
            origin,
            store,
            chunk_bytes,
            exceptions: Mutex::new(None),
        })
    }

    fn exceptions(&self) -> Result<Exceptions> {
        let mut known = self
            .exceptions
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(list) = &*known {
            return Ok(Arc::clone(list));
        }
        let list = Arc::new(self.read_exceptions()?);
        *known = Some(Arc::clone(&list));
        Ok(list)
    }

    fn read_exceptions(&self) -> Result<Vec<(u64, u64)>> {
        let mut list = Vec::new();
        let per_area = self.chunk_bytes / 16;
        let step = per_area.saturating_add(1).saturating_mul(self.chunk_bytes);
        let mut at = self.chunk_bytes;
        while at.saturating_add(self.chunk_bytes) <= self.store.size_bytes() {
            let length = usize::try_from(self.chunk_bytes).unwrap_or(0);
            let area = read_exact(&*self.store, at, length)?;
            for pair in area.chunks_exact(16) {
                let new = field::u64_le(pair, 8)?;
                if new == 0 {
                    list.sort_unstable();
                    return Ok(list);
                }
                if list.len() >= MAX_EXCEPTIONS {
                    return Err(Error::new(
                        ErrorKind::Limit,
                        format!("the snapshot has more than {MAX_EXCEPTIONS} changed chunks"),
                    ));
                }
                list.push((field::u64_le(pair, 0)?, new));
            }
            at = at.saturating_add(step);
        }
        list.sort_unstable();
        Ok(list)
    }
}

impl ReadAt for Snapshot {
    fn size_bytes(&self) -> u64 {
        self.origin.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, distance(buffer.len()), self.size_bytes())?;
        let exceptions = self.exceptions()?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let chunk = at.checked_div(self.chunk_bytes).unwrap_or(0);
            let inside = at.checked_rem(self.chunk_bytes).unwrap_or(0);
            let here = take(self.chunk_bytes.saturating_sub(inside), &mut rest);
            match exceptions.binary_search_by_key(&chunk, |(old, _)| *old) {
                Ok(found) => {
                    let new = exceptions.get(found).map_or(0, |(_, new)| *new);
                    let place = new.saturating_mul(self.chunk_bytes).saturating_add(inside);
                    self.store.read_at(place, here)?;
                }
                Err(_) => self.origin.read_at(at, here)?,
            }
            at = at.saturating_add(distance(here.len()));
        }
        Ok(())
    }
}
