//! What things are called: 16 random bytes, written as 32 lower-case hexadecimal digits, never reused.
//!
//! **Invariant.** An id of one kind is a type of its own and never passes for another. Ids hide nothing and prove
//! nothing; what an object *is* is bound by its checksum and its encryption, see [`crate::format`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, ErrorKind, Random, Result};

/// Writes bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text
}

/// Reads exactly `N` bytes from lower-case hexadecimal digits.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N.checked_mul(2)? {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => digit.checked_sub(b'0'),
        b'a'..=b'f' => digit.checked_sub(b'a')?.checked_add(10),
        _ => None,
    };
    let mut bytes = [0u8; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Some(bytes)
}

macro_rules! id_type {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Length in bytes.
            pub const LENGTH: usize = 16;
            /// Takes the bytes for what they are said to be.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }
            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
            /// Draws a new one.
            ///
            /// # Errors
            /// When the source of randomness fails.
            pub fn generate(random: &dyn Random) -> Result<Self> {
                let mut bytes = [0; 16];
                random.fill(&mut bytes)?;
                Ok(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                unhex(text).map(Self).ok_or_else(|| {
                    let shown: String = text.chars().take(40).collect();
                    Error::new(
                        ErrorKind::Invalid,
                        format!(concat!(stringify!($name), " {:?}: not 32 hexadecimal digits"), shown),
                    )
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

id_type!(
    /// One repository.
    RepositoryId,
    /// One data key, or the master key that wraps them all; zeros where nothing is encrypted.
    KeyId,
    /// One key slot: one way to unlock.
    SlotId,
    /// One pack.
    PackId,
    /// One index segment.
    SegmentId,
    /// A protected name, without saying it: a keyed hash in an encrypted repository.
    NameId,
    /// One recovery point.
    PointId,
    /// One bundle of recovery points.
    BundleId,
    /// One lease.
    LeaseId,
    /// One mark.
    MarkId,
);

impl KeyId {
    /// The key of repositories without encryption.
    pub const PLAIN: Self = Self([0; 16]);
}
