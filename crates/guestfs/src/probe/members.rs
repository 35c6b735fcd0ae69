//! Members of sets, and encryption: what must be told before the file system that shines through.

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

use super::{Content, ContentKind, Encryption, Head, Membership};
use crate::volume::lvm::label::read_label;
use crate::volume::md::read_superblock;
use crate::{Result, field};

const BCACHE: [u8; 16] = [
    0xC6, 0x85, 0x73, 0xF6, 0x4E, 0x1A, 0x45, 0xCA, 0x82, 0x65, 0xF5, 0x7F, 0x48, 0xBA, 0x6D, 0x81,
];

pub(super) fn look(head: &Head<'_>) -> Result<Option<Content>> {
    let member = |kind| Content::of(ContentKind::Member(kind));
    if head.has(0, b"LUKS\xBA\xBE") {
        return luks(head);
    }
    // While the old tool re-encrypts, nobody else is to open it.
    if head.has(0, b"LUKS\xDE\xAD") {
        return Ok(Some(
            Content::of(ContentKind::Encrypted(Encryption::Luks1)).version(1),
        ));
    }
    if let Some(label) = read_label(head.volume)? {
        return Ok(Some(
            member(Membership::Lvm).id(label.id).version("LVM2 001"),
        ));
    }
    if let Some(superblock) = read_superblock(head.volume)? {
        return Ok(Some(
            member(Membership::Md)
                .id(superblock.set)
                .version(superblock.version)
                .label(superblock.name),
        ));
    }
    if head.has(4096 + 24, &BCACHE) {
        return Ok(Some(member(Membership::Bcache).id(head.guid(4096 + 40)?)));
    }
    if let Some(content) = zfs(head)? {
        return Ok(Some(content));
    }
    if head.has(0, b"dmvdo001") {
        return Ok(Some(vdo(head)?));
    }
    controller(head)
}

fn vdo(head: &Head<'_>) -> Result<Content> {
    // The geometry block: magic, header, then the id.
    let content = Content::of(ContentKind::Other("vdo"));
    Ok(content.id(head.guid(40)?))
}

fn luks(head: &Head<'_>) -> Result<Option<Content>> {
    let id = head.text(168, 40)?;
    match field::u16_be(&head.bytes, 6)? {
        1 => {
            let mut content = Content::of(ContentKind::Encrypted(Encryption::Luks1))
                .version(1)
                .id(id);
            content.cipher = Some(format!("{}-{}", head.text(8, 32)?, head.text(40, 32)?));
            Ok(Some(content))
        }
        2 => {
            let mut content = Content::of(ContentKind::Encrypted(Encryption::Luks2))
                .version(2)
                .id(id)
                .label(head.text(24, 48)?);
            // The area behind the header is JSON; the segment says its cipher.
            let area = head.text(4096, 12 * 1024)?;
            content.cipher = area
                .split_once("\"encryption\":\"")
                .and_then(|(_, rest)| rest.split_once('"'))
                .map(|(cipher, _)| cipher.to_owned());
            Ok(Some(content))
        }
        other => Ok(Some(
            Content::of(ContentKind::Other("crypto_LUKS")).version(other),
        )),
    }
}

/// A volume of LUKS 2 whose first header is gone: the second one, at the places where its length may have put it.
pub(super) fn luks_copy(head: &Head<'_>) -> Result<Option<Content>> {
    for place in [16_usize << 10, 32 << 10, 64 << 10] {
        if head.has(place, b"SKUL\xBA\xBE\0\x02") {
            let content = Content::of(ContentKind::Encrypted(Encryption::Luks2))
                .version(2)
                .id(head.text(place.saturating_add(168), 40)?)
                .label(head.text(place.saturating_add(24), 48)?);
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// An uberblock in one of the labels, and the pool's name from the list before it.
fn zfs(head: &Head<'_>) -> Result<Option<Content>> {
    const UBERBLOCKS_AT: u64 = 128 * 1024;
    const LABEL_BYTES: u64 = 256 * 1024;
    let end = head.size() & !(LABEL_BYTES.saturating_sub(1));
    let places = [
        0,
        LABEL_BYTES,
        end.saturating_sub(LABEL_BYTES),
        end.saturating_sub(LABEL_BYTES.saturating_mul(2)),
    ];
    for label in places {
        if head.size() < LABEL_BYTES {
            return Ok(None);
        }
        // Sixteen uberblocks are enough to see whether there are any.
        let blocks = head.far(label.saturating_add(UBERBLOCKS_AT), 128 * 1024)?;
        let is_there = blocks.chunks_exact(1024).any(|block| {
            matches!(
                field::u64_le(block, 0),
                Ok(0x00BA_B10C | 0x0CB1_BA00_0000_0000)
            )
        });
        if !is_there {
            continue;
        }
        let list = head.far(label.saturating_add(16 * 1024), 112 * 1024)?;
        let mut content = Content::of(ContentKind::Member(Membership::Zfs));
        if let Some(rest) = behind(&list, b"\0\0\0\x04name\0\0\0\x09\0\0\0\x01") {
            let length = usize::try_from(field::u32_be(rest, 0)?).unwrap_or(usize::MAX);
            content = content.label(super::text(field::slice(rest, 4, length.min(256))?));
        }
        if let Some(rest) = behind(&list, b"\0\0\0\x09pool_guid\0\0\0\0\0\0\x08\0\0\0\x01") {
            content = content.id(field::u64_be(rest, 0)?);
        }
        if let Some(rest) = behind(&list, b"\0\0\0\x07version\0\0\0\0\x08\0\0\0\x01") {
            content = content.version(field::u64_be(rest, 0)?);
        }
        return Ok(Some(content));
    }
    Ok(None)
}

/// What stands behind the first such bytes.
fn behind<'a>(bytes: &'a [u8], pattern: &[u8]) -> Option<&'a [u8]> {
    let at = bytes
        .windows(pattern.len())
        .position(|window| window == pattern)?;
    bytes.get(at.checked_add(pattern.len())?..)
}

/// Controllers put their superblock in the last sectors of a disk.
fn controller(head: &Head<'_>) -> Result<Option<Content>> {
    let sectors = head.size() / 512;
    let from_end = |count: u64| head.far(sectors.saturating_sub(count).saturating_mul(512), 512);
    let told = |name| {
        Some(Content::of(ContentKind::Member(Membership::Controller(
            name,
        ))))
    };
    if sectors < 64 {
        return Ok(None);
    }
    let last = from_end(1)?;
    let starts = |sector: &[u8], magic: &[u8]| sector.starts_with(magic);
    if starts(&last, &[0xDE, 0x11, 0xDE, 0x11]) {
        return Ok(told("ddf_raid_member").map(|one| {
            let version = super::text(field::slice(&last, 32, 8).unwrap_or_default());
            one.version(version)
        }));
    }
    if starts(&from_end(257)?, &[0xDE, 0x11, 0xDE, 0x11]) {
        return Ok(told("ddf_raid_member"));
    }
    if starts(&last, &[0x37, 0xFC, 0x4D, 0x1E]) {
        return Ok(told("adaptec_raid_member"));
    }
    if starts(&last, b"JM") && field::u8_at(&last, 2)? < 4 {
        return Ok(told("jmicron_raid_member"));
    }
    if starts(&last, b"$XIDE$") {
        return Ok(told("lsi_mega_raid_member"));
    }
    let second = from_end(2)?;
    if starts(&second, b"Intel Raid ISM Cfg Sig. ") {
        let version = super::text(field::slice(&second, 24, 6)?);
        return Ok(told("isw_raid_member").map(|one| one.version(version)));
    }
    if starts(&second, b"NVIDIA") {
        return Ok(told("nvidia_raid_member"));
    }
    if matches!(
        field::u32_le(&head.bytes, 9 * 512 + 32)?,
        0x5A78_16F0 | 0x5A78_16FD
    ) {
        return Ok(told("hpt37x_raid_member"));
    }
    if matches!(field::u32_le(&from_end(11)?, 0)?, 0x5A78_16F3 | 0x5A78_16FD) {
        return Ok(told("hpt45x_raid_member"));
    }
    for count in [
        63, 255, 256, 16, 399, 591, 675, 735, 911, 974, 991, 951, 3087,
    ] {
        if sectors > count && starts(&from_end(count)?, b"Promise Technology, Inc.") {
            return Ok(told("promise_fasttrack_raid_member"));
        }
    }
    drbd(head)
}

fn drbd(head: &Head<'_>) -> Result<Option<Content>> {
    let place = head.size().saturating_sub(4096);
    let block = head.far(place, 512)?;
    for (magic_at, id_at, version) in [(60, 40, "v08"), (60, 48, "v09")] {
        let magic = field::u32_be(&block, magic_at)?;
        let wanted: &[u32] = if version == "v08" {
            &[0x8374_026B, 0x8374_026C]
        } else {
            &[0x8374_026D]
        };
        if wanted.contains(&magic) {
            return Ok(Some(
                Content::of(ContentKind::Other("drbd"))
                    .version(version)
                    .id(format_args!("{:016x}", field::u64_be(&block, id_at)?)),
            ));
        }
    }
    Ok(None)
}
