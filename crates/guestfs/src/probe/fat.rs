//! FAT12, FAT16 and FAT32: no sure signature, so the boot sector's numbers must make sense together.

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

use super::{Content, ContentKind, Head};
use crate::filesystem::FileSystemKind;
use crate::{Error, Result, field};

/// Clusters of a FAT32 root directory in which the label is looked for.
const MAX_ROOT_CLUSTERS: u32 = 64;

struct Boot {
    sector: u64,
    cluster: u64,
    reserved: u64,
    fats: u64,
    fat_sectors: u64,
    root_entries: u64,
    root_cluster: u32,
    kind: FileSystemKind,
}

pub(super) fn look(head: &Head<'_>) -> Result<Option<Content>> {
    let Some(boot) = parse(head)? else {
        return Ok(None);
    };
    let is_32 = boot.kind == FileSystemKind::Fat32;
    let extended = if is_32 { 66 } else { 38 };
    let mut content = Content::of(ContentKind::FileSystem(boot.kind));
    if matches!(field::u8_at(&head.bytes, extended)?, 0x28 | 0x29) {
        let serial = field::u32_le(&head.bytes, extended.saturating_add(1))?;
        content = content.id(format_args!("{:04X}-{:04X}", serial >> 16, serial & 0xFFFF));
    }
    content.label = label(head, &boot).unwrap_or_default();
    Ok(Some(content))
}

fn parse(head: &Head<'_>) -> Result<Option<Boot>> {
    let bytes = &head.bytes;
    let sector = u64::from(field::u16_le(bytes, 11)?);
    let per_cluster = u64::from(field::u8_at(bytes, 13)?);
    let reserved = u64::from(field::u16_le(bytes, 14)?);
    let fats = u64::from(field::u8_at(bytes, 16)?);
    let root_entries = u64::from(field::u16_le(bytes, 17)?);
    let media = field::u8_at(bytes, 21)?;
    let named = [
        (54, &b"FAT12   "[..]),
        (54, b"FAT16   "),
        (54, b"FAT     "),
        (82, b"FAT32   "),
        (82, b"MSWIN"),
        (54, b"MSDOS"),
    ]
    .iter()
    .any(|(at, name)| head.has(*at, name));
    let jumps = matches!(field::u8_at(bytes, 0)?, 0xEB | 0xE9) && head.has(510, &[0x55, 0xAA]);
    let sound = matches!(sector, 512 | 1024 | 2048 | 4096)
        && per_cluster.is_power_of_two()
        && reserved != 0
        && matches!(fats, 1..=4)
        && (media == 0xF0 || media >= 0xF8);
    if !(sound && (named || jumps)) {
        return Ok(None);
    }
    let short = u64::from(field::u16_le(bytes, 19)?);
    let total = if short == 0 {
        u64::from(field::u32_le(bytes, 32)?)
    } else {
        short
    };
    let short_fat = u64::from(field::u16_le(bytes, 22)?);
    let fat_sectors = if short_fat == 0 {
        u64::from(field::u32_le(bytes, 36)?)
    } else {
        short_fat
    };
    let root_sectors = root_entries.saturating_mul(32).div_ceil(sector.max(1));
    let before = reserved
        .saturating_add(fats.saturating_mul(fat_sectors))
        .saturating_add(root_sectors);
    let clusters = total
        .saturating_sub(before)
        .checked_div(per_cluster)
        .unwrap_or(0);
    if fat_sectors == 0 || total == 0 {
        return Ok(None);
    }
    let kind = match clusters {
        _ if short_fat == 0 => FileSystemKind::Fat32,
        0..4085 => FileSystemKind::Fat12,
        4085..65_525 => FileSystemKind::Fat16,
        _ => FileSystemKind::Fat32,
    };
    Ok(Some(Boot {
        sector,
        cluster: per_cluster.saturating_mul(sector),
        reserved,
        fats,
        fat_sectors,
        root_entries,
        root_cluster: field::u32_le(bytes, 44)?,
        kind,
    }))
}

/// The entry of the root directory that is the label; the one in the boot sector is only a copy, often stale.
fn label(head: &Head<'_>, boot: &Boot) -> Result<Option<String>> {
    let data = boot
        .reserved
        .saturating_add(boot.fats.saturating_mul(boot.fat_sectors))
        .saturating_mul(boot.sector);
    if boot.kind != FileSystemKind::Fat32 {
        let length = boot.root_entries.saturating_mul(32).min(1024 * 1024);
        let root = head.far(data, usize::try_from(length).unwrap_or(0))?;
        return Ok(find(&root)?.unwrap_or_default());
    }
    let length = usize::try_from(boot.cluster.min(1024 * 1024)).unwrap_or(0);
    let mut cluster = boot.root_cluster;
    for _ in 0..MAX_ROOT_CLUSTERS {
        let Some(number) = cluster.checked_sub(2).filter(|_| cluster < 0x0FFF_FFF7) else {
            return Ok(None);
        };
        let place = data.saturating_add(u64::from(number).saturating_mul(boot.cluster));
        if place >= head.size() {
            return Err(Error::corrupt("root directory behind the volume"));
        }
        if let Some(label) = find(&head.far(place, length)?)? {
            return Ok(label);
        }
        let entry = boot
            .reserved
            .saturating_mul(boot.sector)
            .saturating_add(u64::from(cluster).saturating_mul(4));
        cluster = field::u32_le(&head.far(entry, 4)?, 0)? & 0x0FFF_FFFF;
    }
    Ok(None)
}

/// `Some(None)` where the directory ends without a label.
#[expect(
    clippy::option_option,
    reason = "whether to go on, and then whether there is one"
)]
fn find(directory: &[u8]) -> Result<Option<Option<String>>> {
    for entry in directory.chunks_exact(32) {
        let first = field::u8_at(entry, 0)?;
        let attributes = field::u8_at(entry, 11)?;
        if first == 0 {
            return Ok(Some(None));
        }
        if first == 0xE5 || attributes & 0x3F == 0x0F || attributes & 0x18 != 0x08 {
            continue;
        }
        let label = String::from_utf8_lossy(field::slice(entry, 0, 11)?)
            .trim_end()
            .to_owned();
        return Ok(Some((!label.is_empty()).then_some(label)));
    }
    Ok(None)
}
