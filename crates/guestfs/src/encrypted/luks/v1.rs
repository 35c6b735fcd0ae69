//! The header of LUKS 1: 592 bytes, big-endian.
//!
//! ```text
//!      0  "LUKS\xBA\xBE"  version 1
//!      8  cipher [32]  mode [32]  hash [32]
//!    104  first sector of the data   bytes of the key   digest [20]  its salt [32]  its rounds   id [40]
//!    208  eight slots of 48: state   rounds   salt [32]   first sector of the split key   stripes
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

use super::{Derivation, Header, KeyDigest, KeySlot, Segment};
use crate::{Error, Result, field};

const SLOTS_AT: usize = 208;
const SLOT_BYTES: usize = 48;
const SLOT_ACTIVE: u32 = 0x00AC_71F3;
const SECTOR_BYTES: u64 = 512;

fn text(head: &[u8], offset: usize) -> Result<String> {
    let bytes = field::slice(head, offset, 32)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(32);
    Ok(String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned())
}

/// Reads it from the beginning of a volume.
pub(super) fn read(head: &[u8]) -> Result<Header> {
    let cipher = format!("{}-{}", text(head, 8)?, text(head, 40)?);
    let hash = text(head, 72)?;
    let data_sector = field::u32_be(head, 104)?;
    let key_bytes = usize::try_from(field::u32_be(head, 108)?).unwrap_or(usize::MAX);
    if data_sector == 0 {
        return Err(Error::unsupported(
            "it is detached: the data lies on another volume",
        ));
    }
    let mut slots = Vec::new();
    let places = field::slice(head, SLOTS_AT, SLOT_BYTES.saturating_mul(8))?;
    for (number, slot) in (0_u32..).zip(places.chunks_exact(SLOT_BYTES)) {
        if field::u32_be(slot, 0)? != SLOT_ACTIVE {
            continue;
        }
        slots.push(KeySlot {
            number,
            priority: 1,
            key_bytes,
            stripes: usize::try_from(field::u32_be(slot, 44)?).unwrap_or(usize::MAX),
            split_hash: hash.clone(),
            area_offset: u64::from(field::u32_be(slot, 40)?).saturating_mul(SECTOR_BYTES),
            area_cipher: cipher.clone(),
            area_key_bytes: key_bytes,
            derivation: Derivation::Pbkdf2 {
                hash: hash.clone(),
                iterations: field::u32_be(slot, 4)?,
                salt: field::slice(slot, 8, 32)?.to_vec(),
            },
            digest: 0,
        });
    }
    let proof = KeyDigest {
        derivation: Derivation::Pbkdf2 {
            hash,
            iterations: field::u32_be(head, 164)?,
            salt: field::slice(head, 132, 32)?.to_vec(),
        },
        digest: field::slice(head, 112, 20)?.to_vec(),
    };
    Ok(Header {
        version: 1,
        slots,
        digests: vec![proof],
        segment: Segment {
            offset: u64::from(data_sector).saturating_mul(SECTOR_BYTES),
            size_bytes: None,
            vector_offset: 0,
            cipher,
            sector_bytes: 512,
        },
        tokens: Vec::new(),
        findings: Vec::new(),
    })
}
