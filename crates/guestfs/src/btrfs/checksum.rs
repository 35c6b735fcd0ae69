//! The four checksums that a Btrfs may carry, over metadata and over contents alike.
//!
//! ```text
//!   0 CRC-32C (4 bytes)   1 xxHash64 (8)   2 SHA-256 (32)   3 BLAKE2b-256 (32)      numbers are little-endian
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

use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest as _};
use twox_hash::XxHash64;

use crate::{Error, Result};

/// Which checksum a file system uses; it is one for all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChecksumKind {
    Crc32c,
    XxHash64,
    Sha256,
    Blake2b,
}

impl ChecksumKind {
    /// By its number in the superblock.
    pub(super) fn of(number: u16) -> Result<Self> {
        Ok(match number {
            0 => Self::Crc32c,
            1 => Self::XxHash64,
            2 => Self::Sha256,
            3 => Self::Blake2b,
            other => {
                return Err(Error::unsupported(format!("checksums of kind {other}")));
            }
        })
    }

    /// Bytes of one sum.
    pub(super) fn size_bytes(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::XxHash64 => 8,
            Self::Sha256 | Self::Blake2b => 32,
        }
    }

    /// Whether `stored`, of which only the first bytes count, is the sum of `data`.
    pub(super) fn proves(self, data: &[u8], stored: &[u8]) -> bool {
        let Some(stored) = stored.get(..self.size_bytes()) else {
            return false;
        };
        // Builds for fuzzing let lies get behind checksums.
        if cfg!(fuzzing) {
            return true;
        }
        match self {
            Self::Crc32c => stored == crc32c::crc32c(data).to_le_bytes(),
            Self::XxHash64 => stored == XxHash64::oneshot(0, data).to_le_bytes(),
            Self::Sha256 => stored == <sha2::Sha256 as sha2::Digest>::digest(data).as_slice(),
            Self::Blake2b => stored == Blake2b::<U32>::digest(data).as_slice(),
        }
    }
}

/// The hash by which a directory finds a name: CRC-32C that begins with all bits but the lowest, and is not inverted.
pub(super) fn name_hash(name: &[u8]) -> u32 {
    !crc32c::crc32c_append(1, name)
}

/// The hash by which an inode finds a name that it has in a directory, among its extended references.
pub(super) fn reference_hash(directory: u64, name: &[u8]) -> u32 {
    let low = u32::try_from(directory & u64::from(u32::MAX)).unwrap_or(0);
    !crc32c::crc32c_append(!low, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hash_as_linux_hashes_them() {
        // The entry of every root tree that leads to the default subvolume.
        assert_eq!(name_hash(b"default"), 0x8DBF_C2D2);
    }
}
