//! The bytes of an opened BitLocker volume.
//!
//! ```text
//!   0         moved          metadata        watermark
//!   [ moved ]▓▓▓▓▓[ zeros ]▓▓▓▓▓[ zeros ]▓▓▓▓▓░░░░░░░░░░      ▓ encrypted   ░ plain
//!       └► lies at its own place, encrypted as what lies there
//! ```
//!
//! What Windows shows as the first sectors lies elsewhere, encrypted with the number of that place; there and where the
//! metadata lies, Windows shows zeros. On Vista the first 16 sectors are plain, and two fields of the first are put back.

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

use std::sync::Arc;

use super::super::cipher::SectorCipher;
use super::super::sectors::{SectorReader, Sectors};
use super::STATE_DECRYPTED;
use super::boot::Boot;
use super::conversion::Conversion;
use super::metadata::Information;
use crate::volume::pieces::Source;
use crate::{Error, Result, field};

const VISTA_PLAIN_BYTES: u64 = 8192;
/// What Windows keeps free for a copy of the metadata; Vista rounds it to clusters.
const COPY_BYTES: u64 = 65_536;
const VISTA_COPY_BYTES: u64 = 16_384;
/// No volume has that many.
const RANGES_MAX: usize = 100_000;

/// How sectors are numbered for the cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbered {
    BySector,
    ByByte,
}

/// The cipher of a volume, if it has one.
pub(super) struct VolumeCipher {
    cipher: Option<SectorCipher>,
    numbered: Numbered,
    name: &'static str,
}

impl VolumeCipher {
    /// Of a volume that was decrypted.
    pub(super) fn none() -> Self {
        Self {
            cipher: None,
            numbered: Numbered::BySector,
            name: "none",
        }
    }

    /// By the number of the method in the metadata.
    pub(super) fn new(method: u16, key: &[u8]) -> Result<Self> {
        let part = |at: usize, length: usize| field::slice(key, at, length);
        let diffused =
            |length| SectorCipher::bitlocker_cbc(part(0, length)?, Some(part(32, length)?));
        let plain = |length| SectorCipher::bitlocker_cbc(part(0, length)?, None);
        let xts = |length| SectorCipher::bitlocker_xts(part(0, length)?, part(length, length)?);
        let (cipher, numbered, name) = match method {
            0x8000 => (diffused(16)?, Numbered::ByByte, "aes-cbc-128-elephant"),
            0x8001 => (diffused(32)?, Numbered::ByByte, "aes-cbc-256-elephant"),
            0x8002 => (plain(16)?, Numbered::ByByte, "aes-cbc-128"),
            0x8003 => (plain(32)?, Numbered::ByByte, "aes-cbc-256"),
            0x8004 => (xts(16)?, Numbered::BySector, "aes-xts-128"),
            0x8005 => (xts(32)?, Numbered::BySector, "aes-xts-256"),
            other => {
                let what = format!("encryption of method {other:#06x} is not read");
                return Err(Error::unsupported(what));
            }
        };
        Ok(Self {
            cipher: Some(cipher),
            numbered,
            name,
        })
    }

    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }
}

/// The volume as Windows shows it.
pub(super) fn open(
    volume: Source,
    boot: &Boot,
    information: &Information,
    conversion: Option<Conversion>,
    cipher: VolumeCipher,
) -> Result<Source> {
    let sector_bytes = boot.sector_bytes;
    let width = field::bytes(sector_bytes);
    let is_vista = information.version == 1;
    let moved_bytes = if is_vista {
        0
    } else {
        u64::from(information.moved_sectors).saturating_mul(width)
    };
    let size_bytes = volume.size_bytes();
    let moved_end = information.moved_to.checked_add(moved_bytes);
    if moved_bytes > 0 && moved_end.is_none_or(|end| end > size_bytes) {
        return Err(Error::corrupt(format!(
            "its first sectors lie at {}, behind the end of the volume",
            information.moved_to
        )));
    }
    let zeros = zeros(boot, information, conversion.as_ref(), moved_bytes)?;
    let sectors = BitLockerSectors {
        volume,
        sector_bytes,
        vista_mirror_cluster: is_vista.then_some(information.moved_to),
        moved_bytes,
        moved_to: information.moved_to,
        zeros,
        watermark: (information.watermark != 0).then_some(information.watermark),
        is_decrypted: information.state == STATE_DECRYPTED,
        conversion,
        cipher,
    };
    Ok(Arc::new(SectorReader::new(
        sectors,
        sector_bytes,
        size_bytes,
    )?))
}

/// Where Windows shows zeros: ascending, apart from each other, in whole sectors.
fn zeros(
    boot: &Boot,
    information: &Information,
    conversion: Option<&Conversion>,
    moved_bytes: u64,
) -> Result<Vec<(u64, u64)>> {
    let copy_bytes = if information.version == 1 {
        VISTA_COPY_BYTES.next_multiple_of(boot.cluster_bytes.clamp(512, 1 << 26))
    } else {
        COPY_BYTES
    };
    let mut ranges: Vec<(u64, u64)> = information
        .copies
        .iter()
        .map(|place| (*place, copy_bytes))
        .collect();
    if moved_bytes > 0 {
        ranges.push((information.moved_to, moved_bytes));
    }
    if let Some(conversion) = conversion {
        ranges.extend(&conversion.own_ranges);
    }
    if ranges.len() > RANGES_MAX {
        return Err(Error::corrupt("more reserved ranges than a volume has"));
    }
    let width = field::bytes(boot.sector_bytes);
    let mut ends: Vec<(u64, u64)> = ranges
        .into_iter()
        .filter(|(start, length)| *start != 0 && *length != 0)
        .map(|(start, length)| {
            let end = start.saturating_add(length);
            let broken = start.checked_rem(width).unwrap_or(0);
            let end = end.checked_next_multiple_of(width).unwrap_or(u64::MAX);
            (start.saturating_sub(broken), end)
        })
        .collect();
    ends.sort_unstable();
    let mut apart: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ends {
        match apart.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => apart.push((start, end)),
        }
    }
    Ok(apart)
}

/// What has to be done with a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    Decrypt,
    Copy,
    Zeros,
    /// The first sector of a volume of Vista.
    Restore,
}

struct BitLockerSectors {
    volume: Source,
    sector_bytes: usize,
    /// On Vista: the cluster of the copy of the file table.
    vista_mirror_cluster: Option<u64>,
    moved_bytes: u64,
    moved_to: u64,
    /// First byte and end.
    zeros: Vec<(u64, u64)>,
    watermark: Option<u64>,
    is_decrypted: bool,
    conversion: Option<Conversion>,
    cipher: VolumeCipher,
}

impl BitLockerSectors {
    /// What to do at an offset, where its bytes lie, and how far that holds (at least one sector).
    fn piece(&self, offset: u64) -> Result<(Treatment, u64, u64)> {
        if self.vista_mirror_cluster.is_some() && offset < VISTA_PLAIN_BYTES {
            return Ok(match offset {
                0 => (Treatment::Restore, 0, field::bytes(self.sector_bytes)),
                _ => (
                    Treatment::Copy,
                    offset,
                    VISTA_PLAIN_BYTES.saturating_sub(offset),
                ),
            });
        }
        if offset < self.moved_bytes {
            let place = self.moved_to.saturating_add(offset);
            let (treatment, length) = self.stored(place)?;
            let left = self.moved_bytes.saturating_sub(offset);
            return Ok((treatment, place, length.min(left)));
        }
        let after = self.zeros.partition_point(|(_, end)| *end <= offset);
        let mut limit = u64::MAX;
        if let Some((start, end)) = self.zeros.get(after) {
            if *start <= offset {
                return Ok((Treatment::Zeros, offset, end.saturating_sub(offset)));
            }
            limit = start.saturating_sub(offset);
        }
        let (treatment, length) = self.stored(offset)?;
        Ok((treatment, offset, length.min(limit)))
    }

    /// Whether the bytes of a place are encrypted.
    fn stored(&self, place: u64) -> Result<(Treatment, u64)> {
        if self.is_decrypted {
            return Ok((Treatment::Copy, u64::MAX));
        }
        if let Some(conversion) = &self.conversion {
            let (is_encrypted, length) = conversion.at(place)?;
            let treatment = if is_encrypted {
                Treatment::Decrypt
            } else {
                Treatment::Copy
            };
            return Ok((treatment, length));
        }
        Ok(match self.watermark {
            Some(watermark) if place >= watermark => (Treatment::Copy, u64::MAX),
            Some(watermark) => (Treatment::Decrypt, watermark.saturating_sub(place)),
            None => (Treatment::Decrypt, u64::MAX),
        })
    }

    fn decrypt(&self, place: u64, bytes: &mut [u8]) {
        let Some(cipher) = &self.cipher.cipher else {
            return;
        };
        let width = field::bytes(self.sector_bytes);
        let mut at = place;
        for sector in bytes.chunks_exact_mut(self.sector_bytes) {
            let number = match self.cipher.numbered {
                Numbered::ByByte => at,
                Numbered::BySector => at.checked_div(width).unwrap_or(0),
            };
            cipher.decrypt(number, sector);
            at = at.saturating_add(width);
        }
    }

    fn restore(&self, sector: &mut [u8]) {
        if let Some(name) = sector.get_mut(3..11) {
            name.copy_from_slice(b"NTFS    ");
        }
        let cluster = self.vista_mirror_cluster.unwrap_or(0);
        if let Some(place) = sector.get_mut(56..64) {
            place.copy_from_slice(&cluster.to_le_bytes());
        }
    }
}

impl Sectors for BitLockerSectors {
    fn read_sectors(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (treatment, place, length) = self.piece(at)?;
            // Whole sectors, so that every turn gets on and the cipher sees no parts.
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let broken = length.checked_rem(self.sector_bytes).unwrap_or(0);
            let length = length.saturating_sub(broken).max(self.sector_bytes);
            let (here, behind) = rest.split_at_mut(length.min(rest.len()));
            if treatment == Treatment::Zeros {
                here.fill(0);
            } else {
                self.volume.read_at(place, here)?;
            }
            match treatment {
                Treatment::Decrypt => self.decrypt(place, here),
                Treatment::Restore => self.restore(here),
                Treatment::Copy | Treatment::Zeros => {}
            }
            at = at.saturating_add(field::bytes(here.len()));
            rest = behind;
        }
        Ok(())
    }
}
