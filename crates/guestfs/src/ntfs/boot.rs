//! The boot sector: sizes, and where the file table begins.
//!
//! ```text
//!  0   jump      3  "NTFS    "   11 sector bytes (u16)   13 sectors per cluster (u8, above 0x80: 2^(256-n))
//!  40  sectors of the volume     48 cluster of $MFT      56 cluster of $MFTMirr
//!  64  clusters per file record (i8, below 0: 2^-n bytes)   68 the same per index block   72 serial number
//! ```
//!
//! A copy lies in the last sector of the partition (Windows NT 3.51 put it in the middle); it answers when the first is
//! damaged. Sources: \[MS-FSCC\], the NTFS documentation of the Linux-NTFS project.

use block::ReadAt;

use super::arithmetic::multiply;
use crate::{Error, Result, field};

const MAGIC: &[u8] = b"NTFS    ";
const BOOT_BYTES: usize = 512;
const MAX_CLUSTER_BYTES: u64 = 2 << 20;
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// What the boot sector says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BootSector {
    pub(super) sector_bytes: u64,
    pub(super) cluster_bytes: u64,
    pub(super) record_bytes: u64,
    pub(super) index_bytes: u64,
    pub(super) total_sectors: u64,
    pub(super) mft_cluster: u64,
    pub(super) mirror_cluster: u64,
    pub(super) serial: u64,
}

/// Which boot sector answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BootOrigin {
    First,
    Backup,
}

impl BootSector {
    pub(super) fn read(volume: &dyn ReadAt) -> Result<(Self, BootOrigin)> {
        let first = Self::at(volume, 0);
        let error = match first {
            Ok(sector) => return Ok((sector, BootOrigin::First)),
            Err(error) => error,
        };
        let size = volume.size_bytes();
        let places = [
            (size / 512).saturating_sub(1).saturating_mul(512),
            (size / 4096).saturating_sub(1).saturating_mul(4096),
            (size / 1024).saturating_mul(512),
        ];
        for offset in places {
            if let Ok(sector) = Self::at(volume, offset) {
                return Ok((sector, BootOrigin::Backup));
            }
        }
        Err(error.within("boot sector"))
    }

    fn at(volume: &dyn ReadAt, offset: u64) -> Result<Self> {
        let mut bytes = [0; BOOT_BYTES];
        volume.read_at(offset, &mut bytes)?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        if field::slice(bytes, 3, MAGIC.len())? != MAGIC {
            return Err(Error::corrupt("not NTFS: no name of it in its place"));
        }
        let sector_bytes = u64::from(field::u16_le(bytes, 11)?);
        if !sector_bytes.is_power_of_two() || !(256..=4096).contains(&sector_bytes) {
            return Err(Error::corrupt(format!("sectors of {sector_bytes} bytes")));
        }
        let per_cluster = field::u8_at(bytes, 13)?;
        let sectors = if per_cluster > 0x80 {
            1_u64.checked_shl(256_u32.saturating_sub(u32::from(per_cluster)))
        } else {
            Some(u64::from(per_cluster))
        };
        let cluster_bytes = sectors
            .filter(|sectors| sectors.is_power_of_two())
            .and_then(|sectors| sectors.checked_mul(sector_bytes))
            .filter(|bytes| *bytes <= MAX_CLUSTER_BYTES)
            .ok_or_else(|| Error::corrupt(format!("{per_cluster} sectors per cluster")))?;
        let total_sectors = field::u64_le(bytes, 40)?;
        let mft_cluster = field::u64_le(bytes, 48)?;
        multiply(total_sectors, sector_bytes)?;
        multiply(mft_cluster, cluster_bytes)?;
        if total_sectors == 0 {
            return Err(Error::corrupt("a volume of no sectors"));
        }
        Ok(Self {
            sector_bytes,
            cluster_bytes,
            record_bytes: block_bytes(field::u8_at(bytes, 64)?, cluster_bytes)
                .map_err(|error| error.within("file records"))?,
            index_bytes: block_bytes(field::u8_at(bytes, 68)?, cluster_bytes)
                .map_err(|error| error.within("index blocks"))?,
            total_sectors,
            mft_cluster,
            mirror_cluster: field::u64_le(bytes, 56)?,
            serial: field::u64_le(bytes, 72)?,
        })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.total_sectors.saturating_mul(self.sector_bytes)
    }

    pub(super) fn total_clusters(&self) -> u64 {
        // `checked_div` because the lint cannot know that a cluster is never of no bytes.
        self.size_bytes()
            .checked_div(self.cluster_bytes)
            .unwrap_or(0)
    }
}

/// Clusters per block, or a power of two of bytes when negative.
fn block_bytes(encoded: u8, cluster_bytes: u64) -> Result<u64> {
    let bytes = if encoded < 0x80 {
        u64::from(encoded).checked_mul(cluster_bytes)
    } else {
        1_u64.checked_shl(256_u32.saturating_sub(u32::from(encoded)))
    };
    bytes
        .filter(|bytes| bytes.is_power_of_two() && (512..=MAX_RECORD_BYTES).contains(bytes))
        .ok_or_else(|| Error::corrupt(format!("a size encoded as {encoded:#x}")))
}
