//! Ids of 16 bytes as disks hold them.

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

use std::fmt;

use crate::Result;

/// An id of 16 bytes; printed in lower case, `c12a7328-f81f-11d2-ba4b-00a0c93ec93b`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid([u8; 16]);

impl Guid {
    /// No id.
    pub const NIL: Self = Self([0; 16]);
    /// EFI system partition.
    pub const EFI_SYSTEM: Self = Self::of(0xC12A_7328_F81F_11D2_BA4B_00A0_C93E_C93B);
    /// Database of the logical disk manager of Windows.
    pub const LDM_METADATA: Self = Self::of(0x5808_C8AA_7E8F_42E0_85D2_E1E9_0434_CFB3);
    /// Data of the logical disk manager of Windows.
    pub const LDM_DATA: Self = Self::of(0xAF9B_60A0_1431_4F62_BC68_3311_714A_69AD);
    /// Reserved by Windows, holds nothing.
    pub const MICROSOFT_RESERVED: Self = Self::of(0xE3C9_E316_0B5C_4DB8_817D_F92D_F002_15AE);
    /// Storage Spaces.
    pub const STORAGE_SPACES: Self = Self::of(0xE75C_AF8F_F680_4CEE_AFA3_B001_E56E_FC2D);

    const fn of(number: u128) -> Self {
        Self(number.to_be_bytes())
    }

    /// From the order in which it is printed.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// From 16 bytes of a disk in the mixed order of Microsoft and UEFI: the first three parts little-endian.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when the record is too short.
    pub fn from_mixed(record: &[u8], offset: usize) -> Result<Self> {
        let part = crate::field::slice(record, offset, 16)?;
        let mut bytes = [0; 16];
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15_usize];
        for (byte, from) in bytes.iter_mut().zip(order) {
            *byte = crate::field::u8_at(part, from)?;
        }
        Ok(Self(bytes))
    }

    /// From 16 bytes of a disk in the order in which it is printed.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when the record is too short.
    pub fn from_plain(record: &[u8], offset: usize) -> Result<Self> {
        let part = crate::field::slice(record, offset, 16)?;
        let mut bytes = [0; 16];
        bytes.copy_from_slice(part);
        Ok(Self(bytes))
    }

    /// From its printed form.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text
            .trim_matches(['{', '}'])
            .chars()
            .filter(|one| *one != '-')
            .collect();
        if digits.len() != 32 {
            return None;
        }
        u128::from_str_radix(&digits, 16).ok().map(Self::of)
    }

    /// Its bytes in the order in which it is printed.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Whether it is all zeros.
    pub fn is_nil(&self) -> bool {
        *self == Self::NIL
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
