//! Reading at any offset what can only be decrypted sector by sector.
//!
//! ```text
//!   read_at     ░░████████░░      ░ a sector of its own, decrypted beside    █ straight into the caller's buffer
//! ```

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

use block::ReadAt;

use super::cipher::SECTOR_BYTES_MAX;
use crate::volume::pieces::check_range;
use crate::{Error, Result, field};

/// What gives whole sectors, in the clear.
pub(super) trait Sectors: Send + Sync {
    /// Reads whole sectors; offset and length are multiples of a sector and lie inside.
    fn read_sectors(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// Sectors as a volume.
pub(super) struct SectorReader<S> {
    sectors: S,
    sector_bytes: usize,
    size_bytes: u64,
}

impl<S: Sectors> SectorReader<S> {
    /// A volume of `size_bytes`, of which a last broken sector is left out.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] for sectors of an odd length.
    pub(super) fn new(sectors: S, sector_bytes: usize, size_bytes: u64) -> Result<Self> {
        check_sector(sector_bytes)?;
        let broken = size_bytes
            .checked_rem(field::bytes(sector_bytes))
            .unwrap_or(0);
        Ok(Self {
            sectors,
            sector_bytes,
            size_bytes: size_bytes.saturating_sub(broken),
        })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let width = field::bytes(self.sector_bytes);
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let inside = usize::try_from(at.checked_rem(width).unwrap_or(0)).unwrap_or(0);
            let whole = rest
                .len()
                .saturating_sub(rest.len().checked_rem(self.sector_bytes).unwrap_or(0));
            let is_aligned = inside == 0 && whole > 0;
            let count = if is_aligned {
                whole
            } else {
                self.sector_bytes.saturating_sub(inside).min(rest.len())
            };
            let (here, behind) = rest.split_at_mut(count);
            if is_aligned {
                self.sectors.read_sectors(at, here)?;
            } else {
                let mut sector = vec![0; self.sector_bytes];
                let start = at.saturating_sub(field::bytes(inside));
                self.sectors.read_sectors(start, &mut sector)?;
                here.copy_from_slice(field::slice(&sector, inside, count)?);
            }
            at = at.saturating_add(field::bytes(count));
            rest = behind;
        }
        Ok(())
    }
}

/// Refuses what no disk has.
pub(super) fn check_sector(sector_bytes: usize) -> Result<()> {
    let is_sound =
        sector_bytes.is_power_of_two() && (512..=SECTOR_BYTES_MAX).contains(&sector_bytes);
    if is_sound {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "an encrypted volume with sectors of {sector_bytes} bytes"
    )))
}

impl<S: Sectors> ReadAt for SectorReader<S> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, field::bytes(buffer.len()), self.size_bytes)?;
        Ok(self.read(offset, buffer)?)
    }
}
