//! Key slots: each is one way to the master key, one small plain object.
//!
//! The wrapped key is AES-256-GCM under the slot key, with the slot's random nonce; associated data:
//! `hikae v1 slot` ‖ repository id ‖ slot id ‖ kind word.
//!
//! **Invariant.** Argon2id costs from an object are bounded before they are paid.

use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use store::Store;

use crate::crypto::{self, AeadKey, SecretKey};
use crate::format::envelope::{self, SealKey};
use crate::format::{ObjectKind, context};
use crate::ids::{hex, unhex};
use crate::{Environment, Error, ErrorKind, KeyId, RepositoryId, Result, SlotId, names};

use super::{KeyFile, RecoveryKey, Unlock, master_id};

/// Most slots that are looked at.
const MAX_SLOTS: usize = 64;
/// Longest slot object.
const MAX_SLOT_BYTES: u64 = 64 << 10;
/// Argon2id memory of new slots, in KiB.
const ARGON_MEMORY_KIB: u32 = 64 << 10;
/// Argon2id passes of new slots.
const ARGON_PASSES: u32 = 3;
/// Most memory that a slot may ask for, in KiB.
const MAX_ARGON_MEMORY_KIB: u32 = 128 << 10;
/// Most passes that a slot may ask for.
const MAX_ARGON_PASSES: u32 = 16;

/// What opens a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotKind {
    /// A key file.
    KeyFile,
    /// A passphrase.
    Passphrase,
    /// A recovery key.
    Recovery,
}

impl SlotKind {
    fn word(self) -> &'static str {
        match self {
            Self::KeyFile => "keyfile",
            Self::Passphrase => "passphrase",
            Self::Recovery => "recovery",
        }
    }
}

/// What can be told about a slot without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotInfo {
    /// The slot.
    pub id: SlotId,
    /// What opens it.
    pub kind: SlotKind,
    /// What its maker called it.
    pub label: String,
    /// When it was made, RFC 3339.
    pub created: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Argon {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
}

/// A slot as it lies in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) slot: SlotId,
    pub(crate) kind: SlotKind,
    pub(crate) label: String,
    pub(crate) created: String,
    pub(crate) master: KeyId,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2id: Option<Argon>,
    nonce: String,
    wrapped: String,
}

/// The secret that a slot is made for.
pub(crate) enum SlotSecret<'a> {
    Key(&'a SecretKey),
    Passphrase(&'a str),
}

impl Slot {
    pub(crate) fn info(&self) -> SlotInfo {
        SlotInfo {
            id: self.slot,
            kind: self.kind,
            label: self.label.clone(),
            created: self.created.clone(),
        }
    }

    /// Wraps the master key for a secret.
    pub(crate) fn wrap(
        repository: RepositoryId,
        id: SlotId,
        kind: SlotKind,
        label: &str,
        secret: &SlotSecret<'_>,
        master: &SecretKey,
        environment: &Environment,
    ) -> Result<Self> {
        let random = environment.random.as_ref();
        let mut nonce = [0u8; 12];
        random.fill(&mut nonce)?;
        let argon2id = match secret {
            SlotSecret::Key(_) => None,
            SlotSecret::Passphrase(_) => {
                let mut salt = [0u8; 16];
                random.fill(&mut salt)?;
                let (memory_kib, passes) = (ARGON_MEMORY_KIB, ARGON_PASSES);
                Some(Argon {
                    memory_kib,
                    passes,
                    lanes: 1,
                    salt: hex(&salt),
                })
            }
        };
        let key = slot_key(id, secret, argon2id.as_ref())?;
        let mut wrapped = master.bytes().to_vec();
        let aad = associated_data(repository, id, kind);
        let tag = AeadKey::new(&key)?.seal_in_place(nonce, &aad, &mut wrapped)?;
        wrapped.extend_from_slice(&tag);
        Ok(Self {
            slot: id,
            kind,
            label: label.to_owned(),
            created: crate::environment::rfc3339(environment.clock.unix_ms()),
            master: master_id(master),
            argon2id,
            nonce: hex(&nonce),
            wrapped: hex(&wrapped),
        })
    }

    /// The master key, or `None` when the secret is not this slot's.
    pub(crate) fn unwrap(
        &self,
        repository: RepositoryId,
        secret: &SlotSecret<'_>,
    ) -> Result<Option<SecretKey>> {
        let malformed = || Error::corrupt(format_args!("key slot {}", self.slot), "malformed");
        let nonce = unhex::<12>(&self.nonce).ok_or_else(malformed)?;
        let mut wrapped = unhex::<48>(&self.wrapped).ok_or_else(malformed)?;
        let key = slot_key(self.slot, secret, self.argon2id.as_ref())?;
        let aad = associated_data(repository, self.slot, self.kind);
        if AeadKey::new(&key)?
            .open_in_place(nonce, &aad, &mut wrapped)
            .is_none()
        {
            return Ok(None);
        }
        let master = wrapped
            .first_chunk::<32>()
            .map(|bytes| SecretKey::from_bytes(*bytes));
        Ok(master.filter(|master| master_id(master) == self.master))
    }
}

fn associated_data(repository: RepositoryId, slot: SlotId, kind: SlotKind) -> Vec<u8> {
    let parts: [&[u8]; 4] = [
        b"hikae v1 slot",
        repository.as_bytes(),
        slot.as_bytes(),
        kind.word().as_bytes(),
    ];
    parts.concat()
}

fn slot_key(id: SlotId, secret: &SlotSecret<'_>, argon: Option<&Argon>) -> Result<SecretKey> {
    match (secret, argon) {
        (SlotSecret::Key(key), None) => Ok(crypto::derive(
            context::SLOT_KEY,
            &[key.bytes(), id.as_bytes()],
        )),
        (SlotSecret::Passphrase(text), Some(argon)) => {
            let bad = |what: &str| Error::corrupt(format_args!("key slot {id}"), what);
            if argon.memory_kib > MAX_ARGON_MEMORY_KIB
                || argon.passes > MAX_ARGON_PASSES
                || argon.lanes != 1
            {
                return Err(bad("it asks for more work than any slot of ours"));
            }
            let salt = unhex::<16>(&argon.salt).ok_or_else(|| bad("a malformed salt"))?;
            let params = Params::new(argon.memory_kib, argon.passes, argon.lanes, Some(32))
                .map_err(|_| bad("impossible costs"))?;
            let mut key = [0u8; 32];
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into(text.as_bytes(), &salt, &mut key)
                .map_err(|_| Error::new(ErrorKind::Invalid, "the passphrase is too long"))?;
            Ok(SecretKey::from_bytes(key))
        }
        _ => Err(Error::corrupt(
            format_args!("key slot {id}"),
            "its derivation does not fit its kind",
        )),
    }
}

/// Puts a slot.
pub(crate) fn put_slot(store: &dyn Store, environment: &Environment, slot: &Slot) -> Result<()> {
    let name = names::slot(slot.slot)?;
    let text = serde_json::to_vec(slot)
        .map_err(|error| Error::new(ErrorKind::Invalid, "a key slot").caused_by(error))?;
    let random = environment.random.as_ref();
    let bytes = envelope::seal(&name, ObjectKind::Slot, &SealKey::Plain, random, &text)?;
    store.put_new(&name, &bytes)?;
    Ok(())
}

/// Every slot: readable, or why not.
pub(crate) fn list_slots(store: &dyn Store) -> Result<Vec<(store::ObjectName, Result<Slot>)>> {
    let mut slots = Vec::new();
    for entry in store::list_all(store, &names::keys()?) {
        let entry = entry?;
        if entry.name.as_str().starts_with("keys/slot-") && slots.len() < MAX_SLOTS {
            let slot = read_slot(store, &entry.name);
            slots.push((entry.name, slot));
        }
    }
    Ok(slots)
}

fn read_slot(store: &dyn Store, name: &store::ObjectName) -> Result<Slot> {
    let bytes = store.get_bounded(name, MAX_SLOT_BYTES)?;
    let (header, text) = envelope::open(name, &bytes, &|_| None)?;
    if header.kind != ObjectKind::Slot {
        return Err(Error::corrupt(name, "not a key slot"));
    }
    let slot: Slot = serde_json::from_slice(&text)
        .map_err(|error| Error::corrupt(name, "malformed").caused_by(error))?;
    if names::slot(slot.slot)? == *name {
        Ok(slot)
    } else {
        Err(Error::corrupt(name, "another slot's"))
    }
}

/// Finds the slot that this opens; the slot and the master key.
///
/// # Errors
/// [`ErrorKind::WrongKey`] when it opens none; a damaged slot is told as its cause.
pub(crate) fn open_any(
    store: &dyn Store,
    repository: RepositoryId,
    unlock: &Unlock,
) -> Result<(SlotId, SecretKey)> {
    let wanted = |slot: &Slot| match unlock {
        Unlock::KeyFile(file) => slot.kind == SlotKind::KeyFile && slot.slot == file.slot(),
        Unlock::Passphrase(_) => slot.kind == SlotKind::Passphrase,
        Unlock::RecoveryKey(_) => slot.kind == SlotKind::Recovery,
        Unlock::Plain => false,
    };
    if let Unlock::KeyFile(file) = unlock
        && file.repository() != repository
    {
        let what = format!(
            "the key file is of repository {}, this is {repository}",
            file.repository()
        );
        return Err(Error::new(ErrorKind::WrongKey, what));
    }
    let mut damaged = None;
    for (_, slot) in list_slots(store)? {
        let slot = match slot {
            Ok(slot) => slot,
            Err(error) => {
                damaged = Some(error);
                continue;
            }
        };
        if !wanted(&slot) {
            continue;
        }
        let opened = match unlock {
            Unlock::KeyFile(file) => {
                slot.unwrap(repository, &SlotSecret::Key(KeyFile::secret(file)))?
            }
            Unlock::RecoveryKey(key) => {
                slot.unwrap(repository, &SlotSecret::Key(RecoveryKey::secret(key)))?
            }
            Unlock::Passphrase(text) => slot.unwrap(repository, &SlotSecret::Passphrase(text))?,
            Unlock::Plain => None,
        };
        if let Some(master) = opened {
            return Ok((slot.slot, master));
        }
    }
    let error = Error::new(
        ErrorKind::WrongKey,
        format!("this opens no key slot of repository {repository}"),
    );
    Err(match damaged {
        Some(cause) => error.caused_by(cause),
        None => error,
    })
}
