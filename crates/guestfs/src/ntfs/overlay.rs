//! A volume with changed pieces over it, in memory: what a replay of the journal would have written.
//!
//! ```text
//!  read ─► volume ─► pages of 4 KiB that were changed are put over it
//! ```
//!
//! **Invariants.** Nothing reaches the volume. At most [`MAX_PAGES`] pages are held.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::ReadAt;

use super::arithmetic::{add, length};
use crate::{Error, ErrorKind, Result, field};

const PAGE_BYTES: u64 = 4096;
const MAX_PAGES: usize = 16 << 10;

pub(super) struct Overlay {
    volume: Arc<dyn ReadAt>,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    pub(super) fn new(volume: Arc<dyn ReadAt>) -> Self {
        Self {
            volume,
            pages: BTreeMap::new(),
        }
    }

    /// Puts bytes over the volume.
    pub(super) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        let end = add(offset, field::bytes(bytes.len()))?;
        let size = self.volume.size_bytes();
        if end > size {
            return Err(Error::corrupt(format!(
                "bytes {offset}..{end} of a volume of {size}"
            )));
        }
        while !bytes.is_empty() {
            let number = offset / PAGE_BYTES;
            let inside = length(offset % PAGE_BYTES)?;
            let page = self.page(number)?;
            let room = page.get_mut(inside..).unwrap_or_default();
            let count = room.len().min(bytes.len());
            let (head, rest) = bytes.split_at(count);
            match room.get_mut(..count) {
                Some(target) if count > 0 => target.copy_from_slice(head),
                _ => return Err(Error::corrupt("a page of no bytes")),
            }
            offset = add(offset, field::bytes(count))?;
            bytes = rest;
        }
        Ok(())
    }

    fn page(&mut self, number: u64) -> Result<&mut Vec<u8>> {
        if !self.pages.contains_key(&number) {
            if self.pages.len() >= MAX_PAGES {
                return Err(Error::new(
                    ErrorKind::Limit,
                    format!("more than {MAX_PAGES} pages would be changed"),
                ));
            }
            let offset = number.saturating_mul(PAGE_BYTES);
            let left = self.volume.size_bytes().saturating_sub(offset);
            let mut page = vec![0; length(left.min(PAGE_BYTES))?];
            self.volume.read_at(offset, &mut page)?;
            self.pages.insert(number, page);
        }
        self.pages
            .get_mut(&number)
            .ok_or_else(|| Error::corrupt("a page that is not there"))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Where it differs from the volume, or may: offsets and lengths, ascending.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pages
            .iter()
            .map(|(number, page)| (number.saturating_mul(PAGE_BYTES), field::bytes(page.len())))
    }
}

impl ReadAt for Overlay {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.volume.read_at(offset, buffer)?;
        let end = offset.saturating_add(field::bytes(buffer.len()));
        let pages = offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
        for (number, page) in self.pages.range(pages) {
            let start = number.saturating_mul(PAGE_BYTES);
            let from = start.max(offset);
            let to = start.saturating_add(field::bytes(page.len())).min(end);
            let index = |place: u64, base: u64| {
                usize::try_from(place.saturating_sub(base)).unwrap_or(usize::MAX)
            };
            let source = page.get(index(from, start)..index(to, start));
            let target = buffer.get_mut(index(from, offset)..index(to, offset));
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }
}
