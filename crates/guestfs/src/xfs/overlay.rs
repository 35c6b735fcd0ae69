//! Sectors that the log brought, laid over the volume: what a mount would have written.
//!
//! ```text
//!   read ─► volume ─► sectors of 512 bytes that differ are put over it
//! ```
//!
//! **Invariants.** At most [`MAX_SECTORS`] are held; a sector that is as the volume has it takes no room. Nothing reaches
//! behind the end of the volume.

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

use std::collections::BTreeMap;
use std::sync::Arc;

use block::ReadAt;

use crate::{Error, ErrorKind, Result, field};

const SECTOR_BYTES: usize = 512;
const SECTOR_LOG: u32 = 9;
/// 96 MiB.
const MAX_SECTORS: usize = 192 << 10;

/// A volume with changed sectors over it.
pub(super) struct Overlay {
    volume: Arc<dyn ReadAt>,
    sectors: BTreeMap<u64, Box<[u8; SECTOR_BYTES]>>,
}

impl Overlay {
    /// Nothing is changed yet.
    pub(super) fn over(volume: Arc<dyn ReadAt>) -> Self {
        Self {
            volume,
            sectors: BTreeMap::new(),
        }
    }

    /// Whether the log changed any sector of a range.
    pub(super) fn touches(&self, offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length).saturating_add(511) >> SECTOR_LOG;
        self.sectors
            .range(offset >> SECTOR_LOG..end.max(offset >> SECTOR_LOG))
            .next()
            .is_some()
    }

    /// Bytes as they are by now.
    pub(super) fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let end = offset.checked_add(field::bytes(length));
        if end.is_none_or(|end| end > self.volume.size_bytes()) {
            return Err(Error::corrupt(format!(
                "{length} bytes at {offset} lie behind the end of the volume"
            )));
        }
        let mut bytes = vec![0; length];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Replaces bytes, at any place.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut position = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let number = position >> SECTOR_LOG;
            let within = usize::try_from(position & 511).unwrap_or(0);
            let count = SECTOR_BYTES.saturating_sub(within).min(rest.len());
            let (part, tail) = rest.split_at(count);
            self.write_sector(number, within, part)?;
            position = position.saturating_add(field::bytes(count));
            rest = tail;
        }
        Ok(())
    }

    fn write_sector(&mut self, number: u64, within: usize, part: &[u8]) -> Result<()> {
        let end = within.saturating_add(part.len());
        if let Some(held) = self.sectors.get_mut(&number) {
            if let Some(target) = held.get_mut(within..end) {
                target.copy_from_slice(part);
            }
            return Ok(());
        }
        let old = self.read(number << SECTOR_LOG, SECTOR_BYTES)?;
        if old.get(within..end) == Some(part) {
            return Ok(());
        }
        if self.sectors.len() >= MAX_SECTORS {
            return Err(Error::new(
                ErrorKind::Limit,
                "it changes more than is held in memory",
            ));
        }
        let mut sector = Box::new([0; SECTOR_BYTES]);
        sector.copy_from_slice(&old);
        if let Some(target) = sector.get_mut(within..end) {
            target.copy_from_slice(part);
        }
        self.sectors.insert(number, sector);
        Ok(())
    }
}

impl ReadAt for Overlay {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.volume.read_at(offset, buffer)?;
        let end = offset.saturating_add(field::bytes(buffer.len()));
        let last = end.saturating_add(511) >> SECTOR_LOG;
        for (&number, sector) in self.sectors.range(offset >> SECTOR_LOG..last) {
            let start = number << SECTOR_LOG;
            let skip = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
            let at = usize::try_from(start.saturating_sub(offset)).unwrap_or(usize::MAX);
            let source = sector.get(skip..).unwrap_or(&[]);
            let target = buffer.get_mut(at..).unwrap_or(&mut []);
            let count = source.len().min(target.len());
            if let (Some(source), Some(target)) = (source.get(..count), target.get_mut(..count)) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pattern(u64);

    impl ReadAt for Pattern {
        fn size_bytes(&self) -> u64 {
            self.0
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
            for (index, byte) in buffer.iter_mut().enumerate() {
                *byte = (offset + index as u64).wrapping_mul(7) as u8;
            }
            Ok(())
        }
    }

    #[test]
    fn what_was_written_is_read_at_any_place_and_length() {
        let mut overlay = Overlay::over(Arc::new(Pattern(8192)));
        let mut model = overlay.read(0, 8192).expect("inside");
        for (seed, (offset, length)) in [(100, 30), (500, 1200), (1024, 512), (4000, 4192), (0, 1)]
            .into_iter()
            .enumerate()
        {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 3 + seed) as u8).collect();
            overlay.write(offset as u64, &bytes).expect("inside");
            model[offset..offset + length].copy_from_slice(&bytes);
        }
        for offset in (0..8192).step_by(97) {
            for length in [1, 2, 511, 512, 513, 2000] {
                let length = length.min(8192 - offset);
                let read = overlay.read(offset as u64, length).expect("inside");
                assert_eq!(read, model[offset..offset + length]);
            }
        }
        assert!(overlay.write(8191, &[1, 2]).is_err() && overlay.read(8191, 2).is_err());
    }

    #[test]
    fn writing_what_is_there_takes_no_room() {
        let mut overlay = Overlay::over(Arc::new(Pattern(8192)));
        let same = overlay.read(512, 2048).expect("inside");
        overlay.write(512, &same).expect("inside");
        assert!(!overlay.touches(0, 8192));
        overlay.write(1000, &[0xFF]).expect("inside");
        assert!(overlay.touches(0, 8192) && overlay.touches(1023, 1));
        assert!(!overlay.touches(1024, 4096) && !overlay.touches(0, 512));
    }
}
