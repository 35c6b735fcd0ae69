//! Number fields in bytes that nobody vouches for, and the conversions that go with them: qcow2 is big-endian, VMDK
//! little-endian. Pure.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used
)]

use crate::{Error, Result};

/// The array of `N` bytes at `at`, or an error that names `what`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize, what: &str) -> Result<[u8; N]> {
    at.checked_add(N)
        .and_then(|end| bytes.get(at..end))
        .and_then(|slice| slice.try_into().ok())
        .ok_or_else(|| Error::corrupt(format!("{what}: cut short at byte {at}")))
}

/// The 16-bit number at `at`.
pub(crate) fn be16(bytes: &[u8], at: usize, what: &str) -> Result<u16> {
    array(bytes, at, what).map(u16::from_be_bytes)
}

/// The 32-bit number at `at`.
pub(crate) fn be32(bytes: &[u8], at: usize, what: &str) -> Result<u32> {
    array(bytes, at, what).map(u32::from_be_bytes)
}

/// The 64-bit number at `at`.
pub(crate) fn be64(bytes: &[u8], at: usize, what: &str) -> Result<u64> {
    array(bytes, at, what).map(u64::from_be_bytes)
}

/// The little-endian 16-bit number at `at`.
pub(crate) fn le16(bytes: &[u8], at: usize, what: &str) -> Result<u16> {
    array(bytes, at, what).map(u16::from_le_bytes)
}

/// The little-endian 32-bit number at `at`.
pub(crate) fn le32(bytes: &[u8], at: usize, what: &str) -> Result<u32> {
    array(bytes, at, what).map(u32::from_le_bytes)
}

/// The little-endian 64-bit number at `at`.
pub(crate) fn le64(bytes: &[u8], at: usize, what: &str) -> Result<u64> {
    array(bytes, at, what).map(u64::from_le_bytes)
}

/// A length in memory as a number of bytes.
pub(crate) fn bytes(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// A number as an index; one that no memory can have becomes one that no slice has.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Puts `value` at `at`, if the place exists.
pub(crate) fn put(buffer: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = at
        .checked_add(value.len())
        .and_then(|end| buffer.get_mut(at..end))
    {
        place.copy_from_slice(value);
    }
}

/// Whether every byte is zero; compares in large steps, since this runs over all written data.
pub(crate) fn is_zero(buffer: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    buffer
        .chunks(ZEROS.len())
        .all(|chunk| ZEROS.get(..chunk.len()).is_some_and(|zeros| zeros == chunk))
}
