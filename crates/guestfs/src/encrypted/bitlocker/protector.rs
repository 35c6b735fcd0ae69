//! What protects the master key of a BitLocker volume, and how it is opened.
//!
//! ```text
//!   password ──────────► SHA-256 twice ┐
//!   recovery password ─► SHA-256 once  ┴► 2^20 rounds of SHA-256 with salt ─► AES-CCM ─┐
//!   startup key (.BEK) ─────────────────────────────────────────────────────► AES-CCM ─┼► master key ─► volume key
//!   in the clear, while protection is suspended ────────────────────────────► AES-CCM ─┘
//! ```
//!
//! A key is right when the authentication code of AES-CCM fits. Each stretching takes about a third of a second; at
//! most 32 are done for a volume.

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

use ccm::aead::{AeadInOut, KeyInit};
use ccm::consts::{U12, U16};
use ccm::{Ccm, Nonce};
use sha2::digest::Digest;
use sha2::{Sha256, digest::Output};
use zeroize::Zeroizing;

use super::super::{Secret, UnlockKey, tried};
use super::metadata::{
    Entry, Information, KIND_ENCRYPTED_KEY, KIND_EXTERNAL_KEY, KIND_KEY, KIND_MASTER_KEY,
    KIND_STRETCH_KEY, ROLE_MASTER_KEY, ROLE_STARTUP_KEY, ROLE_VOLUME_KEY, dataset, entries,
};
use crate::partition::Guid;
use crate::{Error, ErrorKind, Result, field};

const ROUNDS: u64 = 1 << 20;
const STRETCHES_MAX: u32 = 32;
/// Bit of a key's flags: stretched with PBKDF2 instead.
const FLAG_PBKDF2: u16 = 0x40;

/// What opens a protector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProtectorKind {
    Clear,
    Tpm,
    StartupKey,
    TpmAndPin,
    RecoveryPassword,
    Password,
    Other(u16),
}

impl ProtectorKind {
    fn of(number: u16) -> Self {
        match number & 0xFF00 {
            0 => Self::Clear,
            0x0100 => Self::Tpm,
            0x0200 => Self::StartupKey,
            0x0400 | 0x0500 => Self::TpmAndPin,
            0x0800 => Self::RecoveryPassword,
            0x2000 => Self::Password,
            _ => Self::Other(number),
        }
    }

    fn text(self, id: Guid) -> String {
        match self {
            Self::Clear => "a key in the clear".to_owned(),
            Self::Tpm => "a TPM (not here)".to_owned(),
            Self::StartupKey => format!("the startup key {{{id}}}"),
            Self::TpmAndPin => "a TPM with a PIN (not here)".to_owned(),
            Self::RecoveryPassword => format!("the recovery password {{{id}}}"),
            Self::Password => "its password".to_owned(),
            Self::Other(number) => format!("a protector of kind {number:#06x} (not here)"),
        }
    }
}

/// One place that holds the master key, encrypted.
struct Protector {
    id: Guid,
    kind: ProtectorKind,
    entries: Vec<Entry>,
}

/// A key that was unwrapped.
pub(super) struct UnwrappedKey {
    pub(super) method: u16,
    pub(super) bytes: Secret,
}

fn protectors(information: &Information) -> Result<Vec<Protector>> {
    let mut found = Vec::new();
    for entry in &information.entries {
        if entry.role != ROLE_MASTER_KEY || entry.kind != KIND_MASTER_KEY {
            continue;
        }
        found.push(Protector {
            id: Guid::from_mixed(&entry.data, 0)?,
            kind: ProtectorKind::of(field::u16_le(&entry.data, 26)?),
            entries: entries(entry.data.get(28..).unwrap_or_default())?,
        });
    }
    Ok(found)
}

fn of_kind(entries: &[Entry], kind: u16) -> Option<&Entry> {
    entries.iter().find(|entry| entry.kind == kind)
}

/// The master key, and what gave it.
pub(super) fn unlock(information: &Information, keys: &[UnlockKey]) -> Result<(Secret, String)> {
    let protectors = protectors(information)?;
    for protector in protectors
        .iter()
        .filter(|one| one.kind == ProtectorKind::Clear)
    {
        if let Some(key) = of_kind(&protector.entries, KIND_KEY)
            && let Some(found) = open_with(protector, field::slice(&key.data, 4, 32)?)?
        {
            let how = "no key: its protection is suspended".to_owned();
            return Ok((found, how));
        }
    }
    let mut stretches = STRETCHES_MAX;
    let mut fitting = 0_usize;
    let mut obstacle = None;
    for key in keys {
        let mut is_fitting = false;
        for protector in &protectors {
            match try_key(protector, key, &mut stretches) {
                Ok(Attempt::OtherKind) => {}
                Ok(Attempt::Wrong) => is_fitting = true,
                Ok(Attempt::Right(found)) => {
                    return Ok((found, protector.kind.text(protector.id)));
                }
                Err(error) => {
                    is_fitting = true;
                    obstacle.get_or_insert(error);
                }
            }
        }
        fitting = fitting.saturating_add(usize::from(is_fitting));
    }
    Err(obstacle.unwrap_or_else(|| {
        let mut ways: Vec<String> = protectors.iter().map(|one| one.kind.text(one.id)).collect();
        ways.dedup();
        let ways = match ways.as_slice() {
            [] => "nothing".to_owned(),
            ways => ways.join(", or "),
        };
        let what = format!("locked, {}; {ways} opens it", tried(keys, fitting));
        Error::new(ErrorKind::Locked, what)
    }))
}

enum Attempt {
    /// This protector takes another kind of key.
    OtherKind,
    Wrong,
    Right(Secret),
}

fn try_key(protector: &Protector, key: &UnlockKey, stretches: &mut u32) -> Result<Attempt> {
    let secret = match (protector.kind, key) {
        (ProtectorKind::Password, UnlockKey::Passphrase(password)) => {
            let Ok(password) = std::str::from_utf8(password) else {
                return Ok(Attempt::OtherKind);
            };
            let units: Zeroizing<Vec<u8>> =
                Zeroizing::new(password.encode_utf16().flat_map(u16::to_le_bytes).collect());
            stretched(protector, &sha256(&sha256(&units)), stretches)?
        }
        (ProtectorKind::RecoveryPassword, UnlockKey::RecoveryPassword(password)) => {
            stretched(protector, &sha256(password.bits()), stretches)?
        }
        (ProtectorKind::StartupKey, UnlockKey::KeyFile(file)) => match startup_key(file) {
            Some((id, key)) if id == protector.id => key,
            Some(_) => return Ok(Attempt::Wrong),
            None => return Ok(Attempt::OtherKind),
        },
        _ => return Ok(Attempt::OtherKind),
    };
    Ok(match open_with(protector, &secret)? {
        Some(found) => Attempt::Right(found),
        None => Attempt::Wrong,
    })
}

fn sha256(bytes: &[u8]) -> Output<Sha256> {
    Sha256::digest(bytes)
}

/// The slow part: the hash of the last hash, the key, the salt and the count, 2^20 times.
fn stretched(protector: &Protector, key: &[u8], stretches: &mut u32) -> Result<Secret> {
    let entry = of_kind(&protector.entries, KIND_STRETCH_KEY)
        .ok_or_else(|| Error::corrupt("a protector without salt"))?;
    if field::u16_le(&entry.data, 2)? & FLAG_PBKDF2 != 0 {
        return Err(Error::unsupported(
            "a protector stretched with PBKDF2 is not read",
        ));
    }
    *stretches = stretches
        .checked_sub(1)
        .ok_or_else(|| Error::new(ErrorKind::Limit, "more protectors than keys are tried for"))?;
    let salt = field::slice(&entry.data, 4, 16)?;
    let mut last = Output::<Sha256>::default();
    for round in 0..if cfg!(fuzzing) { 2 } else { ROUNDS } {
        let mut hasher = Sha256::new();
        hasher.update(last);
        hasher.update(key);
        hasher.update(salt);
        hasher.update(round.to_le_bytes());
        last = hasher.finalize();
    }
    Ok(Zeroizing::new(last.to_vec()))
}

fn open_with(protector: &Protector, key: &[u8]) -> Result<Option<Secret>> {
    let entry = of_kind(&protector.entries, KIND_ENCRYPTED_KEY)
        .ok_or_else(|| Error::corrupt("a protector without a key"))?;
    Ok(unwrap_key(entry, key)?.map(|found| found.bytes))
}

/// Decrypts a key with another; `None` when that is not the one.
pub(super) fn unwrap_key(entry: &Entry, key: &[u8]) -> Result<Option<UnwrappedKey>> {
    let nonce: [u8; 12] = array(&entry.data, 0)?;
    let code: [u8; 16] = array(&entry.data, 12)?;
    let mut plain = Zeroizing::new(entry.data.get(28..).unwrap_or_default().to_vec());
    let cipher = Ccm::<aes::Aes256, U16, U12>::new_from_slice(key)
        .map_err(|_| Error::corrupt(format!("a key of {} bytes", key.len())))?;
    let nonce: Nonce<U12> = nonce.into();
    let opened =
        cipher.decrypt_inout_detached(&nonce, &[], plain.as_mut_slice().into(), &code.into());
    if opened.is_err() {
        return Ok(None);
    }
    let length = usize::from(field::u16_le(&plain, 0)?);
    let key = length
        .checked_sub(12)
        .ok_or_else(|| Error::corrupt("a key without bytes"))?;
    Ok(Some(UnwrappedKey {
        method: field::u16_le(&plain, 8)?,
        bytes: Zeroizing::new(field::slice(&plain, 12, key)?.to_vec()),
    }))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    field::slice(bytes, at, N)?
        .try_into()
        .map_err(|_| Error::corrupt("an encrypted key"))
}

/// The id and the key of a `.BEK` file, if it is one.
fn startup_key(file: &[u8]) -> Option<(Guid, Secret)> {
    let (found, _) = dataset(file).ok()?;
    let entry = found
        .iter()
        .find(|entry| entry.role == ROLE_STARTUP_KEY && entry.kind == KIND_EXTERNAL_KEY)?;
    let id = Guid::from_mixed(&entry.data, 0).ok()?;
    let inner = entries(entry.data.get(24..)?).ok()?;
    let key = of_kind(&inner, KIND_KEY)?;
    let key = field::slice(&key.data, 4, 32).ok()?;
    Some((id, Zeroizing::new(key.to_vec())))
}

/// The key of the volume, opened with the master key.
pub(super) fn volume_key(information: &Information, master_key: &[u8]) -> Result<UnwrappedKey> {
    let entry = information
        .entries
        .iter()
        .find(|entry| entry.role == ROLE_VOLUME_KEY && entry.kind == KIND_ENCRYPTED_KEY)
        .ok_or_else(|| Error::corrupt("the metadata holds no volume key"))?;
    let mut found = unwrap_key(entry, master_key)?
        .ok_or_else(|| Error::corrupt("the master key does not open the volume key"))?;
    if found.method < 0x8000 {
        found.method = information.method;
    }
    Ok(found)
}
