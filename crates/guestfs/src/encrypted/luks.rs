//! LUKS, the encrypted volumes of Linux: versions 1 and 2, opened with a passphrase or a key file.
//!
//! ```text
//!   header ─► key slots: secret ─derive─► slot key ─decrypts─► split key ─merge─► volume key ─► does its digest fit?
//!          └► segment: where the data lies, cipher, sector size                                       └ yes: read
//! ```
//!
//! Both versions are read into one model ([`Header`]); how a slot opens is the same for both. Slots are tried in the
//! order of their priority; one that this build cannot try does not keep the others from being tried.
//!
//! Sources: LUKS1 On-Disk Format Specification 1.2.3; LUKS2 On-Disk Format Specification 1.1.x.

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

mod v1;
mod v2;

use std::sync::Arc;

use zeroize::Zeroizing;

use super::cipher::SectorCipher;
use super::derive::{Derivation, Digester, Effort, derive, merge, split_bytes};
use super::sectors::{SectorReader, Sectors, check_sector};
use super::{OpenedVolume, Secret, UnlockKey, tried};
use crate::volume::pieces::{Source, read_exact, read_head};
use crate::{Error, ErrorKind, Result, field};

/// Sectors that initial vectors are counted in, whatever the sectors of the volume are.
const VECTOR_BYTES: u64 = 512;

/// What both versions say.
#[derive(Debug)]
struct Header {
    version: u8,
    slots: Vec<KeySlot>,
    digests: Vec<KeyDigest>,
    segment: Segment,
    /// Kinds of tokens that hold keys which are not read here.
    tokens: Vec<String>,
    findings: Vec<String>,
}

/// A place that holds the volume key, encrypted.
#[derive(Debug)]
struct KeySlot {
    number: u32,
    /// Higher ones are tried first.
    priority: u8,
    key_bytes: usize,
    stripes: usize,
    split_hash: String,
    area_offset: u64,
    area_cipher: String,
    area_key_bytes: usize,
    derivation: Derivation,
    /// Which of the digests proves its key.
    digest: usize,
}

/// What proves a volume key.
#[derive(Debug)]
struct KeyDigest {
    derivation: Derivation,
    digest: Vec<u8>,
}

/// Where the data lies.
#[derive(Debug)]
struct Segment {
    offset: u64,
    /// To the end of the volume, if not said.
    size_bytes: Option<u64>,
    vector_offset: u64,
    cipher: String,
    sector_bytes: usize,
}

/// Opens a volume with the first key that fits.
pub(super) fn open(volume: Source, keys: &[UnlockKey]) -> Result<OpenedVolume> {
    let head = read_head(&*volume, 0, 4096)?;
    let magic = field::slice(&head, 0, 6)?;
    let header = if magic == b"LUKS\xDE\xAD" {
        Err(Error::unsupported(
            "a re-encryption is under way: finish it with `cryptsetup-reencrypt`",
        ))
    } else if magic == b"LUKS\xBA\xBE" && field::u16_be(&head, 6)? == 1 {
        v1::read(&head)
    } else {
        v2::read(&*volume)
    };
    let header = header.map_err(|error| error.within("the LUKS header"))?;
    let place = format!("LUKS{}", header.version);
    // What cannot be read with any key is not worth deriving one.
    let size_bytes = data_bytes(&*volume, &header.segment).map_err(|error| error.within(&place))?;
    let (key, slot) = unlock(&*volume, &header, keys).map_err(|error| error.within(&place))?;
    let reader =
        reader(volume, &header.segment, size_bytes, &key).map_err(|error| error.within(&place))?;
    Ok(OpenedVolume {
        reader,
        opened_by: format!("key slot {slot}"),
        cipher: header.segment.cipher,
        findings: header.findings,
    })
}

/// The volume key, and the number of the slot that gave it.
fn unlock(
    volume: &dyn block::ReadAt,
    header: &Header,
    keys: &[UnlockKey],
) -> Result<(Secret, u32)> {
    let mut slots: Vec<&KeySlot> = header.slots.iter().collect();
    slots.sort_by_key(|slot| (std::cmp::Reverse(slot.priority), slot.number));
    let mut effort = Effort::new();
    let mut fitting = 0;
    let mut obstacle = None;
    for key in keys {
        let secret = match key {
            UnlockKey::Passphrase(secret) | UnlockKey::KeyFile(secret) => secret,
            UnlockKey::RecoveryPassword(_) => continue,
        };
        fitting = usize::saturating_add(fitting, 1);
        for slot in &slots {
            match try_slot(volume, header, slot, secret, &mut effort) {
                Ok(Some(key)) => return Ok((key, slot.number)),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Io => return Err(error),
                Err(error) => {
                    let error = error.within(format_args!("key slot {}", slot.number));
                    obstacle.get_or_insert(error);
                }
            }
        }
    }
    // What could not be tried says more than that the others did not fit.
    Err(obstacle.unwrap_or_else(|| locked(header, keys, fitting)))
}

fn locked(header: &Header, keys: &[UnlockKey], fitting: usize) -> Error {
    let slots: Vec<String> = header
        .slots
        .iter()
        .map(|slot| slot.number.to_string())
        .collect();
    let mut what = format!(
        "locked, {}; a passphrase or key file of key slot {} opens it",
        tried(keys, fitting),
        slots.join(", ")
    );
    if !header.tokens.is_empty() {
        what.push_str(&format!(
            " (keys held by {} are not read)",
            header.tokens.join(", ")
        ));
    }
    Error::new(ErrorKind::Locked, what)
}

/// The volume key, when the secret fits the slot.
fn try_slot(
    volume: &dyn block::ReadAt,
    header: &Header,
    slot: &KeySlot,
    secret: &[u8],
    effort: &mut Effort,
) -> Result<Option<Secret>> {
    let proof = header
        .digests
        .get(slot.digest)
        .ok_or_else(|| Error::corrupt("no digest proves its key"))?;
    let split_hash = Digester::of(&slot.split_hash)?;
    let length = split_bytes(slot.key_bytes, slot.stripes)?;
    let slot_key = derive(&slot.derivation, secret, slot.area_key_bytes, effort)?;
    let cipher = SectorCipher::of_linux(&slot.area_cipher, &slot_key)?;
    let mut area = Zeroizing::new(read_exact(
        volume,
        slot.area_offset,
        length.next_multiple_of(512),
    )?);
    for (number, sector) in (0_u64..).zip(area.chunks_exact_mut(512)) {
        cipher.decrypt(number, sector);
    }
    let split = field::slice(&area, 0, length)?;
    let key = merge(split, slot.key_bytes, split_hash);
    let digest = derive(&proof.derivation, &key, proof.digest.len(), effort)?;
    Ok(field::sum_holds(&*digest, &proof.digest).then_some(key))
}

/// How much data a volume has.
fn data_bytes(volume: &dyn block::ReadAt, segment: &Segment) -> Result<u64> {
    check_sector(segment.sector_bytes)?;
    let left = volume
        .size_bytes()
        .checked_sub(segment.offset)
        .filter(|left| *left > 0)
        .ok_or_else(|| Error::corrupt("its data lies behind the end of the volume"))?;
    Ok(segment.size_bytes.unwrap_or(left).min(left))
}

/// The data of a volume, in the clear.
fn reader(volume: Source, segment: &Segment, size_bytes: u64, key: &[u8]) -> Result<Source> {
    let sectors = LuksSectors {
        volume,
        offset: segment.offset,
        vector_offset: segment.vector_offset,
        sector_bytes: segment.sector_bytes,
        cipher: SectorCipher::of_linux(&segment.cipher, key)?,
    };
    let reader = SectorReader::new(sectors, segment.sector_bytes, size_bytes)?;
    Ok(Arc::new(reader))
}

struct LuksSectors {
    volume: Source,
    offset: u64,
    vector_offset: u64,
    sector_bytes: usize,
    cipher: SectorCipher,
}

impl Sectors for LuksSectors {
    fn read_sectors(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.volume
            .read_at(self.offset.saturating_add(offset), buffer)?;
        let first = offset.checked_div(VECTOR_BYTES).unwrap_or(0);
        let mut number = self.vector_offset.wrapping_add(first);
        let step = field::bytes(self.sector_bytes)
            .checked_div(VECTOR_BYTES)
            .unwrap_or(1);
        for sector in buffer.chunks_exact_mut(self.sector_bytes) {
            self.cipher.decrypt(number, sector);
            number = number.wrapping_add(step);
        }
        Ok(())
    }
}
