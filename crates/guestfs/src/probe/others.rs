//! Everything else that has a signature: named, so that a person knows what it is.

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

use super::{Content, ContentKind, Head, text, text_utf16};
use crate::{Result, field};

/// Name, place, magic; where the label lies (and how long it is), and where the UUID lies.
struct Signature {
    name: &'static str,
    place: usize,
    magic: &'static [u8],
    label: Option<(usize, usize)>,
    id: Option<usize>,
}

const fn plain(name: &'static str, place: usize, magic: &'static [u8]) -> Signature {
    Signature {
        name,
        place,
        magic,
        label: None,
        id: None,
    }
}

const fn rich(
    name: &'static str,
    place: usize,
    magic: &'static [u8],
    label: (usize, usize),
    id: usize,
) -> Signature {
    Signature {
        name,
        place,
        magic,
        label: Some(label),
        id: Some(id),
    }
}

const FILE_SYSTEMS: &[Signature] = &[
    rich("jfs", 32_768, b"JFS1", (32_768 + 152, 16), 32_768 + 136),
    rich(
        "reiserfs",
        65_536 + 52,
        b"ReIsErFs",
        (65_536 + 100, 16),
        65_536 + 84,
    ),
    rich(
        "reiserfs",
        65_536 + 52,
        b"ReIsEr2Fs",
        (65_536 + 100, 16),
        65_536 + 84,
    ),
    rich(
        "reiserfs",
        65_536 + 52,
        b"ReIsEr3Fs",
        (65_536 + 100, 16),
        65_536 + 84,
    ),
    rich(
        "reiserfs",
        8192 + 52,
        b"ReIsErFs",
        (8192 + 100, 16),
        8192 + 84,
    ),
    rich(
        "reiser4",
        65_536,
        b"ReIsEr4",
        (65_536 + 36, 16),
        65_536 + 20,
    ),
    rich(
        "gfs2",
        65_536,
        &[0x01, 0x16, 0x19, 0x70],
        (65_536 + 160, 64),
        65_536 + 256,
    ),
    rich("mpool", 0, b"mpoolDev", (8, 32), 40),
    rich("nilfs2", 1030, &[0x34, 0x34], (1024 + 168, 80), 1024 + 152),
    Signature {
        name: "apfs",
        place: 32,
        magic: b"NXSB",
        label: None,
        id: Some(72),
    },
    Signature {
        name: "romfs",
        place: 0,
        magic: b"-rom1fs-",
        label: Some((16, 16)),
        id: None,
    },
    Signature {
        name: "erofs",
        place: 1024,
        magic: &[0xE2, 0xE1, 0xF5, 0xE0],
        label: Some((1024 + 64, 16)),
        id: Some(1024 + 48),
    },
    Signature {
        name: "ocfs2",
        place: 4096,
        magic: b"OCFSV2",
        label: Some((4096 + 336, 64)),
        id: Some(4096 + 400),
    },
    Signature {
        name: "ocfs2",
        place: 2048,
        magic: b"OCFSV2",
        label: Some((2048 + 336, 64)),
        id: Some(2048 + 400),
    },
    plain("squashfs", 0, b"hsqs"),
    plain("cramfs", 0, &[0x45, 0x3D, 0xCD, 0x28]),
    plain("bfs", 0, &[0xCE, 0xFA, 0xAD, 0x1B]),
    plain("nss", 4096, b"SPB5"),
    plain("hfsplus", 1024, b"H+"),
    plain("hfsplus", 1024, b"HX"),
    Signature {
        name: "ubifs",
        place: 0,
        magic: &[0x31, 0x18, 0x10, 0x06],
        label: None,
        id: Some(108),
    },
];

const OTHERS: &[Signature] = &[
    plain("ubi", 0, b"UBI#"),
    plain("ceph_bluestore", 0, b"bluestore block device"),
    plain("drbdmanage_control_volume", 0, b"$DRBDmgr=q"),
];

pub(super) fn look(head: &Head<'_>) -> Result<Option<Content>> {
    if let Some(content) = optical(head)? {
        return Ok(Some(content));
    }
    if let Some(content) = vmfs(head)? {
        return Ok(Some(content));
    }
    if field::u32_le(&head.bytes, 1024)? == 0xF2F5_2010 {
        let label = text_utf16(head.part(1024 + 124, 1024)?, u16::from_le_bytes);
        let (major, minor) = (
            field::u16_le(&head.bytes, 1024 + 4)?,
            field::u16_le(&head.bytes, 1024 + 6)?,
        );
        return Ok(Some(
            Content::of(ContentKind::OtherFileSystem("f2fs"))
                .label(label)
                .id(head.guid(1024 + 108)?)
                .version(format_args!("{major}.{minor}")),
        ));
    }
    for signature in FILE_SYSTEMS {
        if head.has(signature.place, signature.magic) {
            return told(
                head,
                signature,
                ContentKind::OtherFileSystem(signature.name),
            )
            .map(Some);
        }
    }
    for signature in OTHERS {
        if head.has(signature.place, signature.magic) {
            return told(head, signature, ContentKind::Other(signature.name)).map(Some);
        }
    }
    if head.has(1024, b"BD") {
        return hfs(head).map(Some);
    }
    if let Some(content) = ufs(head)? {
        return Ok(Some(content));
    }
    if let Some(content) = xfs_log(head)? {
        return Ok(Some(content));
    }
    minix(head)
}

fn told(head: &Head<'_>, signature: &Signature, kind: ContentKind) -> Result<Content> {
    let mut content = Content::of(kind);
    if let Some((at, length)) = signature.label {
        content = content.label(head.text(at, length)?);
    }
    if let Some(at) = signature.id {
        content = content.id(head.guid(at)?);
    }
    Ok(content)
}

/// A name of HFS, or HFS+ wrapped in HFS.
fn hfs(head: &Head<'_>) -> Result<Content> {
    if head.has(1024 + 0x7C, b"H+") || head.has(1024 + 0x7C, b"HX") {
        return Ok(Content::of(ContentKind::OtherFileSystem("hfsplus")));
    }
    let length = usize::from(field::u8_at(&head.bytes, 1024 + 36)?.min(27));
    Ok(Content::of(ContentKind::OtherFileSystem("hfs")).label(text(head.part(1024 + 37, length)?)))
}

/// A volume of VMFS begins 2 MiB in; what carries it, 1 MiB in.
fn vmfs(head: &Head<'_>) -> Result<Option<Content>> {
    let info = head.far(2 * 1024 * 1024, 512)?;
    if field::u32_le(&info, 0)? != 0x2FAB_F15E {
        let is_member = field::u32_le(&head.far(1024 * 1024, 4)?, 0)? == 0xC001_D00D;
        return Ok(is_member.then(|| Content::of(ContentKind::Other("VMFS_volume_member"))));
    }
    let content = Content::of(ContentKind::OtherFileSystem("VMFS"));
    let tail: String = field::slice(&info, 19, 6)?
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(Some(
        content
            .id(format_args!(
                "{:08x}-{:08x}-{:04x}-{tail}",
                field::u32_le(&info, 9)?,
                field::u32_le(&info, 13)?,
                field::u16_le(&info, 17)?
            ))
            .label(text(field::slice(&info, 29, 128)?))
            .version(field::u8_at(&info, 8)?),
    ))
}

fn ufs(head: &Head<'_>) -> Result<Option<Content>> {
    for place in [8192_u64, 65_536, 262_144, 0] {
        let magic = head.far(place.saturating_add(1372), 4)?;
        let version = match (field::u32_le(&magic, 0)?, field::u32_be(&magic, 0)?) {
            (0x1954_0119, _) | (_, 0x1954_0119) => 2,
            (0x0001_1954, _) | (_, 0x0001_1954) => 1,
            _ => continue,
        };
        return Ok(Some(
            Content::of(ContentKind::OtherFileSystem("ufs")).version(version),
        ));
    }
    Ok(None)
}

/// A record header of the log in one of the first sectors.
fn xfs_log(head: &Head<'_>) -> Result<Option<Content>> {
    for sector in head.bytes.chunks_exact(512).take(128) {
        let is_header = field::u32_be(sector, 0)? == 0xFEED_BABE
            && matches!(field::u32_be(sector, 8)?, 1 | 2)
            && field::u32_be(sector, 300)? == 1;
        if is_header {
            return Ok(Some(Content::of(ContentKind::Other("xfs_external_log"))));
        }
    }
    Ok(None)
}

fn minix(head: &Head<'_>) -> Result<Option<Content>> {
    let told =
        |version: u8| Some(Content::of(ContentKind::OtherFileSystem("minix")).version(version));
    for number in [field::u16_le, field::u16_be] {
        let first_zone = number(&head.bytes, 1024 + 8)?;
        let zone_shift = number(&head.bytes, 1024 + 10)?;
        let inodes = number(&head.bytes, 1024)?;
        let is_sane = first_zone > 2 && zone_shift < 8 && inodes > 0;
        match number(&head.bytes, 1024 + 16)? {
            0x137F | 0x138F if is_sane => return Ok(told(1)),
            0x2468 | 0x2478 if is_sane => return Ok(told(2)),
            _ => {}
        }
        if number(&head.bytes, 1024 + 24)? == 0x4D5A {
            return Ok(told(3));
        }
    }
    Ok(None)
}

/// UDF and ISO 9660: descriptors from 32 KiB on, 2048 bytes (UDF: or a sector) apart.
fn optical(head: &Head<'_>) -> Result<Option<Content>> {
    let mut is_iso = None;
    let mut joliet = None;
    let mut is_udf = false;
    for step in [2048_usize, 4096] {
        for number in 0..16_usize {
            let at = 32_768_usize.saturating_add(number.saturating_mul(step));
            is_udf |= head.has(at.saturating_add(1), b"NSR02")
                || head.has(at.saturating_add(1), b"NSR03");
            if head.has(at.saturating_add(1), b"CD001") && step == 2048 {
                match field::u8_at(&head.bytes, at)? {
                    1 => is_iso = is_iso.or(Some(at)),
                    2 if head.has(at.saturating_add(88), b"%/") => joliet = joliet.or(Some(at)),
                    _ => {}
                }
            }
        }
    }
    if is_udf {
        let content = Content::of(ContentKind::OtherFileSystem("udf"));
        return Ok(Some(content.label(udf_label(head)?.unwrap_or_default())));
    }
    let Some(primary) = is_iso else {
        let is_high_sierra = head.has(32_768 + 9, b"CDROM");
        return Ok(is_high_sierra.then(|| Content::of(ContentKind::OtherFileSystem("iso9660"))));
    };
    let plain = head.text(primary.saturating_add(40), 32)?;
    let label = match joliet {
        Some(at) => {
            let wide = text_utf16(head.part(at.saturating_add(40), 32)?, u16::from_be_bytes);
            // Joliet keeps sixteen characters: where it is only a beginning, the plain one says more.
            if plain.to_lowercase().starts_with(&wide.to_lowercase()) {
                plain
            } else {
                wide
            }
        }
        None => plain,
    };
    Ok(Some(
        Content::of(ContentKind::OtherFileSystem("iso9660")).label(label),
    ))
}

/// Anchor → main sequence → logical volume descriptor.
fn udf_label(head: &Head<'_>) -> Result<Option<String>> {
    // With blocks of 4096 bytes there is nothing between the descriptors.
    let is_dense = [&b"NSR0"[..], b"BEA0", b"TEA0", b"CD00", b"BOOT"]
        .iter()
        .any(|id| head.has(32_768 + 2048 + 1, id));
    let sectors: &[u64] = if is_dense {
        &[512, 2048, 1024]
    } else {
        &[4096]
    };
    for sector in sectors.iter().copied() {
        let anchor = head.far(sector.saturating_mul(256), 512)?;
        if field::u16_le(&anchor, 0)? != 2 || field::u32_le(&anchor, 12)? != 256 {
            continue;
        }
        let length = u64::from(field::u32_le(&anchor, 16)?);
        let start = u64::from(field::u32_le(&anchor, 20)?);
        let count = length.checked_div(sector).unwrap_or(0).min(64);
        for number in 0..count {
            let place = start.saturating_add(number).saturating_mul(sector);
            let block = head.far(place, 512)?;
            match field::u16_le(&block, 0)? {
                6 => return Ok(Some(dstring(field::slice(&block, 84, 128)?)?)),
                8 => break,
                _ => {}
            }
        }
    }
    Ok(None)
}

/// OSTA compressed Unicode: the first byte says the width, the last how long it is.
fn dstring(bytes: &[u8]) -> Result<String> {
    let length = usize::from(field::u8_at(bytes, bytes.len().saturating_sub(1))?);
    let used = field::slice(bytes, 1, length.saturating_sub(1).min(126))?;
    Ok(match field::u8_at(bytes, 0)? {
        16 => text_utf16(used, u16::from_be_bytes),
        _ => used
            .iter()
            .map(|byte| char::from(*byte))
            .collect::<String>()
            .trim_end()
            .to_owned(),
    })
}
