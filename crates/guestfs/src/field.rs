//! Numbers out of untrusted bytes: every look is checked, nothing is indexed.
//!
//! All functions fail with [`crate::ErrorKind::Corrupt`] when the record is too short.

use crate::{Error, Result};

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N]> {
    offset
        .checked_add(N)
        .and_then(|end| bytes.get(offset..end))
        .and_then(|part| part.try_into().ok())
        .ok_or_else(|| {
            Error::corrupt(format!(
                "{N} bytes at {offset} of a record of {}",
                bytes.len()
            ))
        })
}

/// Whether a checksum is what it should be. In a build for fuzzing every one is, so that lies get behind them.
pub fn sum_holds<T: PartialEq>(found: T, stored: T) -> bool {
    cfg!(fuzzing) || found == stored
}

/// The bytes of a range.
pub fn slice(bytes: &[u8], offset: usize, length: usize) -> Result<&[u8]> {
    offset
        .checked_add(length)
        .and_then(|end| bytes.get(offset..end))
        .ok_or_else(|| {
            Error::corrupt(format!(
                "{length} bytes at {offset} of a record of {}",
                bytes.len()
            ))
        })
}

macro_rules! numbers {
    ($($little:ident $big:ident $type:ty),*) => {$(
        #[doc = concat!("A little-endian `", stringify!($type), "`.")]
        pub fn $little(bytes: &[u8], offset: usize) -> Result<$type> {
            array(bytes, offset).map(<$type>::from_le_bytes)
        }

        #[doc = concat!("A big-endian `", stringify!($type), "`.")]

        pub fn $big(bytes: &[u8], offset: usize) -> Result<$type> {
            array(bytes, offset).map(<$type>::from_be_bytes)
        }
    )*};
}

numbers!(u16_le u16_be u16, u32_le u32_be u32, u64_le u64_be u64, i64_le i64_be i64);

/// One byte.
pub fn u8_at(bytes: &[u8], offset: usize) -> Result<u8> {
    array::<1>(bytes, offset).map(|[byte]| byte)
}

/// A length as the disk's arithmetic wants it.
pub fn bytes(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
