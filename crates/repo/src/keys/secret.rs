//! Secrets as people keep them: the key file and the recovery key.
//!
//! ```text
//!   # Hikae key file                       lines that begin with # are for people
//!   repository: <32 hexadecimal digits>
//!   slot: <32>
//!   secret: <64>
//!   checksum: <16>                         derive-key "hikae v1 secret checksum" over repository ‖ slot ‖ secret
//! ```
//!
//! A recovery key is its 32 bytes and 4 bytes of checksum, in twelve groups of six hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use crate::crypto::{self, SecretKey};
use crate::format::context;
use crate::ids::{hex, unhex};
use crate::{Error, ErrorKind, RepositoryId, Result, SlotId};

/// What a key file holds. `Display` gives the whole text of the file, secret included.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyFile {
    repository: RepositoryId,
    slot: SlotId,
    secret: SecretKey,
}

impl KeyFile {
    pub(crate) fn new(repository: RepositoryId, slot: SlotId, secret: SecretKey) -> Self {
        Self {
            repository,
            slot,
            secret,
        }
    }

    /// The repository that it opens.
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// The slot that it opens.
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    pub(crate) fn secret(&self) -> &SecretKey {
        &self.secret
    }

    fn checksum(&self) -> String {
        let parts: [&[u8]; 3] = [
            self.repository.as_bytes(),
            self.slot.as_bytes(),
            self.secret.bytes(),
        ];
        hex(&crypto::derive_id(context::SECRET_CHECKSUM, &parts))
            .chars()
            .take(16)
            .collect()
    }
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "KeyFile {{ repository: {}, slot: {}, .. }}",
            self.repository, self.slot
        )
    }
}

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Hikae key file")?;
        writeln!(
            f,
            "# Who has this file and the repository can read every disk in it. Without it (or a recovery"
        )?;
        writeln!(
            f,
            "# key, or a passphrase) nobody can. Keep copies apart from the repository."
        )?;
        writeln!(f, "repository: {}", self.repository)?;
        writeln!(f, "slot: {}", self.slot)?;
        writeln!(f, "secret: {}", hex(self.secret.bytes()))?;
        writeln!(f, "checksum: {}", self.checksum())
    }
}

impl FromStr for KeyFile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |what: &str| Error::new(ErrorKind::Invalid, format!("key file: {what}"));
        let value = |key: &str| -> Result<&str> {
            text.lines()
                .map(str::trim)
                .filter(|line| !line.starts_with('#'))
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
                .map(str::trim)
                .ok_or_else(|| invalid(&format!("no line \"{key}:\"")))
        };
        let secret = unhex(value("secret")?).ok_or_else(|| invalid("a malformed secret"))?;
        let file = Self {
            repository: value("repository")?.parse()?,
            slot: value("slot")?.parse()?,
            secret: SecretKey::from_bytes(secret),
        };
        if value("checksum")? == file.checksum() {
            Ok(file)
        } else {
            Err(invalid(
                "its checksum does not fit: a digit was changed or is missing",
            ))
        }
    }
}

/// The key of last resort, shown once. `Display` gives the secret in groups.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryKey(SecretKey);

impl RecoveryKey {
    pub(crate) fn new(secret: SecretKey) -> Self {
        Self(secret)
    }

    pub(crate) fn secret(&self) -> &SecretKey {
        &self.0
    }

    fn digits(&self) -> String {
        let sum = crypto::derive(context::SECRET_CHECKSUM, &[self.0.bytes()]);
        let sum: String = hex(sum.bytes()).chars().take(8).collect();
        format!("{}{sum}", hex(self.0.bytes()))
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(..)")
    }
}

impl fmt::Display for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, digit) in self.digits().chars().enumerate() {
            if at > 0 && at.is_multiple_of(6) {
                f.write_str("-")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

impl FromStr for RecoveryKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits: String = text
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '-')
            .map(|c| c.to_ascii_lowercase())
            .collect();
        let secret: String = digits.chars().take(64).collect();
        let key = unhex(&secret).map(SecretKey::from_bytes).map(Self);
        key.filter(|key| key.digits() == digits).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "recovery key: a digit was changed or is missing",
            )
        })
    }
}
