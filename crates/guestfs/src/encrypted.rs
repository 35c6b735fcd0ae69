//! Encrypted volumes, opened with a key: LUKS 1 and 2 of Linux, BitLocker of Windows.
//!
//! ```text
//!   volume ─► header (copies, checksums) ─► key slots ── a key fits? ──► volume key ─► sectors, decrypted one by one
//!                                               └ no: what kinds of keys it takes
//! ```
//!
//! **Invariants.** Keys and what is derived from them are wiped when dropped, and stand in no text and no error. Nothing
//! is derived unless somebody gave a key: without one a hostile header costs a few reads. With one, what a header may
//! ask for is bounded ([`derive`](self)): 1 GiB of memory for one derivation, and a number of steps for all of a
//! volume. A key is right when the header's digest (LUKS) or the message authentication code (BitLocker) says so.
//!
//! **Not done.** Nothing is written. LUKS: authenticated encryption, headers that lie elsewhere, self-encrypting disks,
//! a re-encryption under way; tokens (TPM, FIDO2, networks). BitLocker: TPM, smart cards, networks. All of that is
//! named in the error.

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

mod bitlocker;
mod cipher;
mod derive;
mod luks;
mod sectors;

use zeroize::Zeroizing;

use crate::probe::Encryption;
use crate::volume::pieces::Source;
use crate::{Error, ErrorKind, Result};

/// Longest passphrase or key file: what cryptsetup reads at most.
pub const KEY_BYTES_MAX: usize = 8 << 20;

/// Something that may open an encrypted volume. It is never shown.
#[derive(Clone)]
pub enum UnlockKey {
    /// A passphrase of LUKS, a password of BitLocker; as it is typed, in UTF-8.
    Passphrase(Secret),
    /// The whole of a key file of LUKS, or of a startup key (`.BEK`) of BitLocker.
    KeyFile(Secret),
    /// The number of 48 digits that opens a BitLocker volume.
    RecoveryPassword(RecoveryPassword),
}

/// Bytes that are wiped when dropped.
pub type Secret = Zeroizing<Vec<u8>>;

/// BitLocker's number of 48 digits, as the 128 bits that it stands for.
#[derive(Clone)]
pub struct RecoveryPassword(Zeroizing<[u8; 16]>);

impl RecoveryPassword {
    /// Eight groups of six digits, with anything but digits between them.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with which group is mistyped: each is a multiple of eleven below 720 896.
    pub fn parse(text: &str) -> Result<Self> {
        let digits: Zeroizing<Vec<u8>> = Zeroizing::new(
            text.bytes()
                .filter(u8::is_ascii_digit)
                .map(|digit| digit.wrapping_sub(b'0'))
                .collect(),
        );
        if digits.len() != 48 {
            let what = format!(
                "a recovery password has 48 digits in eight groups; this has {}",
                digits.len()
            );
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut bits = Zeroizing::new([0_u8; 16]);
        let places = bits.as_chunks_mut::<2>().0;
        for (number, (group, place)) in digits.chunks_exact(6).zip(places).enumerate() {
            let value = group.iter().fold(0_u32, |value, digit| {
                value.saturating_mul(10).saturating_add(u32::from(*digit))
            });
            let part = value
                .checked_div(11)
                .filter(|part| part.saturating_mul(11) == value)
                .and_then(|part| u16::try_from(part).ok())
                .ok_or_else(|| {
                    let number = number.saturating_add(1);
                    let what = format!("group {number} of the recovery password is mistyped");
                    Error::new(ErrorKind::Invalid, what)
                })?;
            *place = part.to_le_bytes();
        }
        Ok(Self(bits))
    }

    fn bits(&self) -> &[u8; 16] {
        &self.0
    }
}

impl UnlockKey {
    /// A passphrase or password.
    pub fn passphrase(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Passphrase(Zeroizing::new(bytes.into()))
    }

    /// What a key file holds.
    pub fn key_file(bytes: impl Into<Vec<u8>>) -> Self {
        Self::KeyFile(Zeroizing::new(bytes.into()))
    }

    /// A recovery password of BitLocker.
    ///
    /// # Errors
    /// As [`RecoveryPassword::parse`].
    pub fn recovery_password(text: &str) -> Result<Self> {
        RecoveryPassword::parse(text).map(Self::RecoveryPassword)
    }

    /// What kind of key it is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Passphrase(_) => "passphrase",
            Self::KeyFile(_) => "key file",
            Self::RecoveryPassword(_) => "recovery password",
        }
    }
}

impl std::fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UnlockKey({})", self.kind())
    }
}

/// An encrypted volume that a key opened.
#[derive(Clone)]
pub struct OpenedVolume {
    /// What lies in it.
    pub reader: Source,
    /// What opened it, in words: "key slot 1", "the recovery password {…}".
    pub opened_by: String,
    /// How it is encrypted: "aes-xts-plain64".
    pub cipher: String,
    /// What is not as it should be.
    pub findings: Vec<String>,
}

impl std::fmt::Debug for OpenedVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenedVolume")
            .field("size_bytes", &self.reader.size_bytes())
            .field("opened_by", &self.opened_by)
            .field("cipher", &self.cipher)
            .field("findings", &self.findings)
            .finish()
    }
}

/// Opens a volume with the first of the keys that fits; BitLocker whose protection is suspended needs none.
///
/// # Errors
/// [`ErrorKind::Locked`] when no key fits, with the kinds of keys it takes; [`ErrorKind::Unsupported`] with what is not
/// done here; [`ErrorKind::Limit`] when the header asks for more work than any tool writes; [`ErrorKind::Corrupt`].
pub fn open(volume: Source, encryption: Encryption, keys: &[UnlockKey]) -> Result<OpenedVolume> {
    match encryption {
        Encryption::Luks1 | Encryption::Luks2 => luks::open(volume, keys),
        Encryption::BitLocker => bitlocker::open(volume, keys),
    }
}

/// The end of a sentence about a volume that stays locked.
fn tried(keys: &[UnlockKey], fitting: usize) -> String {
    match (keys.len(), fitting) {
        (0, _) => "no key was given".to_owned(),
        (_, 0) => "none of the keys given is of such a kind".to_owned(),
        (_, 1) => "the key given does not open it".to_owned(),
        (_, count) => format!("none of the {count} keys given opens it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_passwords_are_checked_group_by_group() {
        let good = "471207-278498-422125-177177-561902-537405-468006-693451";
        let key = RecoveryPassword::parse(good).expect("from the documentation");
        assert_eq!(key.bits()[..2], (471_207_u32 / 11).to_le_bytes()[..2]);
        let spaced = good.replace('-', " ");
        assert!(RecoveryPassword::parse(&spaced).is_ok());
        for (bad, says) in [
            (good.replace("278498", "278499"), "group 2"),
            (good.replace("693451", "720896"), "group 8"),
            (good.replace("-693451", ""), "42"),
            (String::new(), "has 0"),
        ] {
            let error = RecoveryPassword::parse(&bad).err().expect("mistyped");
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn keys_are_never_shown() {
        let key = UnlockKey::passphrase("hunter2");
        assert_eq!(format!("{key:?}"), "UnlockKey(passphrase)");
    }
}
