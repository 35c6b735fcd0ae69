//! The metadata of a BitLocker volume: three copies of a header, a tree of entries, and a checksum behind them.
//!
//! ```text
//!    0  "-FVE-FS-"  length  version  state, next state  watermark [8]  bytes of a step  sectors moved  three places [8]
//!   56  where the first sectors were moved to (Vista: cluster of the copy of the file table)
//!   64  length of the entries   version   first   end   id [16]   counter   method [2]  …  time [8]
//!  112  entries: length  role  kind  flags  …         an entry may hold entries
//!  len  length  version  CRC-32 of all before  an entry: the SHA-256 of the same, encrypted with the master key
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

use super::super::derive::Digester;
use super::boot::Boot;
use super::protector;
use crate::volume::pieces::{read_exact, read_head};
use crate::{Error, ErrorKind, Result, field};

const HEADER_BYTES: usize = 64;
const DATASET_BYTES: usize = 48;
/// Room for the checksum and the entry behind it.
const VALIDATION_BYTES: usize = 512;
const ENTRIES_MAX: usize = 1024;

pub(super) const ROLE_MASTER_KEY: u16 = 2;
pub(super) const ROLE_VOLUME_KEY: u16 = 3;
pub(super) const ROLE_STARTUP_KEY: u16 = 6;
pub(super) const KIND_KEY: u16 = 1;
pub(super) const KIND_STRETCH_KEY: u16 = 3;
pub(super) const KIND_ENCRYPTED_KEY: u16 = 5;
pub(super) const KIND_MASTER_KEY: u16 = 8;
pub(super) const KIND_EXTERNAL_KEY: u16 = 9;

/// One entry.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) role: u16,
    pub(super) kind: u16,
    pub(super) data: Vec<u8>,
}

/// Reads entries one behind the other, up to what is no entry any more.
pub(super) fn entries(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut at = 0_usize;
    while bytes.len().saturating_sub(at) >= 8 {
        let length = usize::from(field::u16_le(bytes, at)?);
        if length == 0 {
            break;
        }
        if length < 8 || found.len() >= ENTRIES_MAX {
            return Err(Error::corrupt(format!("an entry of {length} bytes")));
        }
        let entry = field::slice(bytes, at, length)?;
        found.push(Entry {
            role: field::u16_le(entry, 2)?,
            kind: field::u16_le(entry, 4)?,
            data: entry.get(8..).unwrap_or_default().to_vec(),
        });
        at = at.saturating_add(length);
    }
    Ok(found)
}

/// The entries of a metadata area or of a startup key's file, and its method of encryption.
pub(super) fn dataset(bytes: &[u8]) -> Result<(Vec<Entry>, u16)> {
    let first = usize::try_from(field::u32_le(bytes, 8)?).unwrap_or(usize::MAX);
    let end = usize::try_from(field::u32_le(bytes, 12)?).unwrap_or(usize::MAX);
    let length = end
        .checked_sub(first)
        .filter(|_| first >= DATASET_BYTES)
        .ok_or_else(|| Error::corrupt(format!("entries from {first} to {end}")))?;
    let method = field::u16_le(bytes, 36)?;
    Ok((entries(field::slice(bytes, first, length)?)?, method))
}

/// What one sound copy says.
#[derive(Debug)]
pub(super) struct Information {
    pub(super) version: u16,
    pub(super) state: u16,
    /// What lies before it is encrypted, what lies behind it is not; zero where there is none.
    pub(super) watermark: u64,
    /// Length of the log of a step of conversion.
    pub(super) step_bytes: u32,
    /// How many of the first sectors lie elsewhere.
    pub(super) moved_sectors: u32,
    /// Where all copies lie.
    pub(super) copies: [u64; 3],
    /// Where the first sectors lie; on Vista the cluster of the copy of the file table.
    pub(super) moved_to: u64,
    pub(super) method: u16,
    pub(super) entries: Vec<Entry>,
    /// What the checksum covers.
    covered: Vec<u8>,
    signature: Option<Entry>,
}

impl Information {
    /// Whether the metadata is what was written by somebody who had the master key.
    pub(super) fn is_signed_with(&self, master_key: &[u8]) -> bool {
        let Some(signature) = &self.signature else {
            return true;
        };
        protector::unwrap_key(signature, master_key).is_ok_and(|found| {
            found.is_some_and(|found| *found.bytes == *Digester::Sha256.digest(&[&self.covered]))
        })
    }
}

/// Reads the first sound copy, and says what is wrong with the others. Two copies that are equal outweigh a checksum
/// that fits neither: such volumes are met, and the keys in it prove themselves.
pub(super) fn read(volume: &dyn ReadAt, boot: &Boot) -> Result<(Information, Vec<String>)> {
    let mut findings = Vec::new();
    let mut first_error = None;
    let mut sound: Option<Information> = None;
    let mut doubtful: Vec<Information> = Vec::new();
    for (number, place) in (1_u32..).zip(&boot.places) {
        let error = match copy(volume, *place) {
            Ok((information, Checksum::Fits)) => {
                sound.get_or_insert(information);
                continue;
            }
            Ok((information, Checksum::Differs)) => {
                doubtful.push(information);
                let what = format!("the checksum of the metadata at {place} does not fit");
                Error::corrupt(what)
            }
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => error,
        };
        let error = error.within(format_args!("copy {number} of its metadata"));
        findings.push(error.to_string());
        first_error.get_or_insert(error);
    }
    let agreed = || {
        let mut rest = doubtful.into_iter();
        let first = rest.next()?;
        rest.any(|other| other.covered == first.covered)
            .then_some(first)
    };
    match (sound.or_else(agreed), first_error) {
        (Some(found), _) => Ok((found, findings)),
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::corrupt("it has no metadata")),
    }
}

/// Whether a copy is as its checksum says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checksum {
    Fits,
    Differs,
}

fn copy(volume: &dyn ReadAt, place: u64) -> Result<(Information, Checksum)> {
    let is_inside = place != 0 && place < volume.size_bytes();
    if !is_inside {
        return Err(Error::corrupt(format!("nothing lies at {place}")));
    }
    let head = read_head(volume, place, HEADER_BYTES)?;
    if field::slice(&head, 0, 8)? != b"-FVE-FS-" {
        return Err(Error::corrupt(format!("no metadata lies at {place}")));
    }
    let version = field::u16_le(&head, 10)?;
    let said = usize::from(field::u16_le(&head, 8)?);
    let length = match version {
        1 => said,
        2 => said.saturating_mul(16),
        _ => {
            let what = format!("metadata of version {version} is not read");
            return Err(Error::unsupported(what));
        }
    };
    let covered = read_exact(volume, place, length)?;
    let end = place.saturating_add(field::bytes(length));
    let validation = read_head(volume, end, VALIDATION_BYTES)?;
    let found = crc32fast::hash(&covered);
    let checksum = if field::sum_holds(found, field::u32_le(&validation, 4)?) {
        Checksum::Fits
    } else {
        Checksum::Differs
    };
    let signature = if version >= 2 {
        let length = usize::from(field::u16_le(&validation, 8)?);
        let entry = field::slice(&validation, 8, length)?;
        entries(entry)?.into_iter().next()
    } else {
        None
    };
    let set = covered.get(HEADER_BYTES..).unwrap_or_default();
    let (entries, method) = dataset(set)?;
    let information = Information {
        version,
        state: field::u16_le(&head, 12)?,
        watermark: field::u64_le(&head, 16)?,
        step_bytes: field::u32_le(&head, 24)?,
        moved_sectors: field::u32_le(&head, 28)?,
        copies: [
            field::u64_le(&head, 32)?,
            field::u64_le(&head, 40)?,
            field::u64_le(&head, 48)?,
        ],
        moved_to: field::u64_le(&head, 56)?,
        method,
        entries,
        covered,
        signature,
    };
    Ok((information, checksum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_end_where_nothing_more_is_written() {
        let mut bytes = vec![10, 0, 2, 0, 8, 0, 1, 0, 7, 7];
        bytes.extend([0; 20]);
        let found = entries(&bytes).expect("one");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].role, found[0].kind), (2, 8));
        assert_eq!(found[0].data, [7, 7]);
        assert!(entries(&[7, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(entries(&[9, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }
}
