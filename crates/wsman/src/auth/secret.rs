//! Secrets: overwritten when dropped, never shown.

use std::fmt;

use md4::{Digest, Md4};
use zeroize::Zeroizing;

/// A password, or text as secret.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes over a text. Copies that the caller made are the caller's to overwrite.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text, for the moment of use.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What NTLM keeps of a password: MD4 of its UTF-16 (MS-NLMP 3.3.2). As good as the password to who has it.
#[derive(Clone)]
pub struct NtHash(Zeroizing<[u8; 16]>);

impl NtHash {
    /// The hash of a password.
    pub fn of(password: &Secret) -> Self {
        let wide = Zeroizing::new(utf16(password.expose()));
        Self(Zeroizing::new(Md4::digest(wide.as_slice()).into()))
    }

    /// A hash that was kept.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(super) fn expose(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for NtHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NtHash")
    }
}

/// UTF-16, low byte first.
pub(super) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}
