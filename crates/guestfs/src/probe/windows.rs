//! What Windows keeps on its volumes besides FAT: NTFS, ReFS, BitLocker, exFAT.

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

use super::{Content, ContentKind, Encryption, Head, text_utf16};
use crate::filesystem::FileSystemKind;
use crate::partition::Guid;
use crate::{Error, Result, field};

/// In a BitLocker volume that looks like FAT from outside, at 424.
const BITLOCKER_TO_GO: &str = "4967d63b-2e29-4ad8-8399-f6a339e3d001";

pub(super) fn look(head: &Head<'_>) -> Result<Option<Content>> {
    if head.has(3, b"-FVE-FS-") {
        return Ok(Some(Content::of(ContentKind::Encrypted(
            Encryption::BitLocker,
        ))));
    }
    if head.has(3, b"MSWIN4.1")
        && Guid::from_mixed(&head.bytes, 424)?.to_string() == BITLOCKER_TO_GO
    {
        return Ok(Some(
            Content::of(ContentKind::Encrypted(Encryption::BitLocker)).version("to go"),
        ));
    }
    if head.has(3, b"ReFS\0\0\0\0") {
        let (major, minor) = (
            field::u8_at(&head.bytes, 40)?,
            field::u8_at(&head.bytes, 41)?,
        );
        return Ok(Some(
            Content::of(ContentKind::OtherFileSystem("ReFS"))
                .version(format_args!("{major}.{minor}"))
                .id(format_args!("{:016X}", field::u64_le(&head.bytes, 56)?)),
        ));
    }
    if head.has(3, b"NTFS    ") {
        let mut content = Content::of(ContentKind::FileSystem(FileSystemKind::Ntfs))
            .id(format_args!("{:016X}", field::u64_le(&head.bytes, 72)?));
        content.label = ntfs_label(head).unwrap_or_default();
        return Ok(Some(content));
    }
    if head.has(3, b"EXFAT   ") {
        let serial = field::u32_le(&head.bytes, 100)?;
        let minor = field::u8_at(&head.bytes, 104)?;
        let major = field::u8_at(&head.bytes, 105)?;
        let mut content = Content::of(ContentKind::FileSystem(FileSystemKind::ExFat))
            .version(format_args!("{major}.{minor}"))
            .id(format_args!("{:04X}-{:04X}", serial >> 16, serial & 0xFFFF));
        content.label = exfat_label(head).unwrap_or_default();
        return Ok(Some(content));
    }
    Ok(None)
}

/// The name in the fourth record of the master file table.
fn ntfs_label(head: &Head<'_>) -> Result<Option<String>> {
    let sector = u64::from(field::u16_le(&head.bytes, 11)?);
    let raw = field::u8_at(&head.bytes, 13)?;
    let cluster = power_or(raw, sector)?;
    let record = record_bytes(field::u8_at(&head.bytes, 64)?, cluster)?;
    let table = field::u64_le(&head.bytes, 48)?.saturating_mul(cluster);
    let place = table.saturating_add(u64::from(record).saturating_mul(3));
    let length = usize::try_from(record).unwrap_or(0);
    let mut bytes = head.far(place, length)?;
    if field::slice(&bytes, 0, 4)? != b"FILE" {
        return Ok(None);
    }
    fix_up(&mut bytes)?;
    let mut at = usize::from(field::u16_le(&bytes, 20)?);
    // No record holds more attributes than this.
    for _ in 0..256 {
        let kind = field::u32_le(&bytes, at)?;
        let size = usize::try_from(field::u32_le(&bytes, at.saturating_add(4))?).unwrap_or(0);
        if kind == u32::MAX || size < 24 {
            return Ok(None);
        }
        if kind == 0x60 {
            let value_bytes = field::u32_le(&bytes, at.saturating_add(16))?;
            let value_at = usize::from(field::u16_le(&bytes, at.saturating_add(20))?);
            let value = field::slice(
                &bytes,
                at.saturating_add(value_at),
                usize::try_from(value_bytes).unwrap_or(usize::MAX),
            )?;
            let label = text_utf16(value, u16::from_le_bytes);
            return Ok((!label.is_empty()).then_some(label));
        }
        at = at.saturating_add(size);
    }
    Ok(None)
}

fn power_or(raw: u8, sector: u64) -> Result<u64> {
    // Above 128 it is the negative exponent of the count of sectors.
    let sectors = if raw > 128 {
        1_u64
            .checked_shl(u32::from(raw.wrapping_neg()))
            .unwrap_or(0)
    } else {
        u64::from(raw)
    };
    match sectors.saturating_mul(sector) {
        0 => Err(Error::corrupt("clusters of no length")),
        bytes => Ok(bytes),
    }
}

fn record_bytes(raw: u8, cluster: u64) -> Result<u32> {
    let bytes = if raw > 127 {
        1_u64
            .checked_shl(u32::from(raw.wrapping_neg()))
            .unwrap_or(0)
    } else {
        u64::from(raw).saturating_mul(cluster)
    };
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| (256..=65_536).contains(bytes))
        .ok_or_else(|| Error::corrupt(format!("records of {bytes} bytes")))
}

/// Puts back what the update sequence replaced at the end of every sector.
fn fix_up(bytes: &mut [u8]) -> Result<()> {
    let at = usize::from(field::u16_le(bytes, 4)?);
    let count = usize::from(field::u16_le(bytes, 6)?);
    let words: Vec<u8> = field::slice(bytes, at, count.saturating_mul(2))?.to_vec();
    for (sector, word) in bytes
        .chunks_exact_mut(512)
        .zip(words.chunks_exact(2).skip(1))
    {
        if let Some(end) = sector.get_mut(510..512) {
            end.copy_from_slice(word);
        }
    }
    Ok(())
}

/// Clusters of the root directory in which the label is looked for.
const MAX_ROOT_CLUSTERS: u32 = 64;

/// The label in the root directory of exFAT.
fn exfat_label(head: &Head<'_>) -> Result<Option<String>> {
    let sector_shift = u32::from(field::u8_at(&head.bytes, 108)?);
    let cluster_shift = u32::from(field::u8_at(&head.bytes, 109)?);
    if !(9..=12).contains(&sector_shift) || cluster_shift > 16 {
        return Err(Error::corrupt("shifts of exFAT"));
    }
    let table = u64::from(field::u32_le(&head.bytes, 80)?) << sector_shift;
    let heap = u64::from(field::u32_le(&head.bytes, 88)?) << sector_shift;
    let cluster_bytes = 1_u64 << sector_shift << cluster_shift;
    let mut cluster = field::u32_le(&head.bytes, 96)?;
    for _ in 0..MAX_ROOT_CLUSTERS {
        let Some(number) = cluster.checked_sub(2) else {
            break;
        };
        let place = heap.saturating_add(u64::from(number).saturating_mul(cluster_bytes));
        if place >= head.size() {
            break;
        }
        let length = usize::try_from(cluster_bytes.min(1024 * 1024)).unwrap_or(0);
        for entry in head.far(place, length)?.chunks_exact(32) {
            match field::u8_at(entry, 0)? {
                0 => return Ok(None),
                0x83 => {
                    let units = usize::from(field::u8_at(entry, 1)?.min(11));
                    let label = field::slice(entry, 2, units.saturating_mul(2))?;
                    let label = text_utf16(label, u16::from_le_bytes);
                    return Ok((!label.is_empty()).then_some(label));
                }
                _ => {}
            }
        }
        let entry = table.saturating_add(u64::from(cluster).saturating_mul(4));
        cluster = field::u32_le(&head.far(entry, 4)?, 0)?;
    }
    Ok(None)
}
