//! Who can unlock a repository, and what is unlocked.
//!
//! ```text
//!   key file secret ──derive──┐
//!   recovery key ─────derive──┼─► slot key ──unwraps──► master key ──opens──► keyring n
//!   passphrase ────Argon2id───┘   keys/slot-<id>                              keys/ring-<n>
//!                                                                             data keys, signing seed,
//!                                                                             name key, local index key
//! ```
//!
//! **Invariants.** The highest readable keyring counts; rotation puts the next number with create-if-absent, so that of
//! two rotations one wins. A data key is never dropped from the ring while packs may use it. A slot that is removed can
//! still unwrap the master key from an old copy of the store: rotation protects what is written afterwards only when
//! the secret of the slot never leaked; otherwise copy into a new repository.

mod secret;
mod slot;

use serde::{Deserialize, Serialize};
use store::Store;

pub use secret::{KeyFile, RecoveryKey};
pub(crate) use slot::{Slot, SlotSecret, list_slots, open_any, put_slot};
pub use slot::{SlotInfo, SlotKind};

use crate::crypto::{self, SecretKey};
use crate::format::envelope::{self, MAX_ENVELOPE_BYTES, SealKey};
use crate::format::{ObjectKind, context};
use crate::ids::{hex, unhex};
use crate::{Environment, Error, ErrorKind, KeyId, Random, RepositoryId, Result, names};

/// How a repository is unlocked.
#[derive(Clone)]
pub enum Unlock {
    /// With a key file.
    KeyFile(KeyFile),
    /// With a passphrase.
    Passphrase(String),
    /// With the recovery key that was shown once.
    RecoveryKey(RecoveryKey),
    /// Without anything: a repository that is not encrypted.
    Plain,
}

impl std::fmt::Debug for Unlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::KeyFile(_) => "Unlock::KeyFile(..)",
            Self::Passphrase(_) => "Unlock::Passphrase(..)",
            Self::RecoveryKey(_) => "Unlock::RecoveryKey(..)",
            Self::Plain => "Unlock::Plain",
        })
    }
}

/// Thirty-two bytes as 64 hexadecimal digits in JSON.
mod hex_key {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{SecretKey, hex, unhex};

    pub(super) fn serialize<S: Serializer>(key: &SecretKey, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex(key.bytes()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SecretKey, D::Error> {
        let text = String::deserialize(d)?;
        unhex(&text)
            .map(SecretKey::from_bytes)
            .ok_or_else(|| serde::de::Error::custom("a key is not 64 hexadecimal digits"))
    }
}

/// One data key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DataKey {
    pub(crate) id: KeyId,
    #[serde(with = "hex_key")]
    pub(crate) key: SecretKey,
    pub(crate) created: String,
}

/// Everything that the master key opens. The last data key is the one that is written with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Keyring {
    pub(crate) repository: RepositoryId,
    pub(crate) generation: u32,
    pub(crate) data_keys: Vec<DataKey>,
    #[serde(with = "hex_key")]
    pub(crate) signing_seed: SecretKey,
    #[serde(with = "hex_key")]
    pub(crate) name_key: SecretKey,
    #[serde(with = "hex_key")]
    pub(crate) index_key: SecretKey,
}

impl Keyring {
    pub(crate) fn generate(repository: RepositoryId, environment: &Environment) -> Result<Self> {
        let random = environment.random.as_ref();
        let mut ring = Self {
            repository,
            generation: 0,
            data_keys: Vec::new(),
            signing_seed: SecretKey::generate(random)?,
            name_key: SecretKey::generate(random)?,
            index_key: SecretKey::generate(random)?,
        };
        ring.add_data_key(environment)?;
        Ok(ring)
    }

    /// Draws a new data key and moves to the next generation.
    pub(crate) fn add_data_key(&mut self, environment: &Environment) -> Result<()> {
        let random = environment.random.as_ref();
        self.data_keys.push(DataKey {
            id: KeyId::generate(random)?,
            key: SecretKey::generate(random)?,
            created: crate::environment::rfc3339(environment.clock.unix_ms()),
        });
        self.generation = self
            .generation
            .checked_add(1)
            .ok_or_else(|| Error::new(ErrorKind::Refused, "no keyring generation is left"))?;
        Ok(())
    }

    pub(crate) fn data_key(&self, id: KeyId) -> Option<&SecretKey> {
        self.data_keys
            .iter()
            .find(|data_key| data_key.id == id)
            .map(|data_key| &data_key.key)
    }

    pub(crate) fn current(&self) -> Result<&DataKey> {
        self.data_keys
            .last()
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "the keyring holds no data key"))
    }
}

/// Id of a master key: says which one, tells nothing about it.
pub(crate) fn master_id(master: &SecretKey) -> KeyId {
    KeyId::from_bytes(crypto::derive_id(context::MASTER_ID, &[master.bytes()]))
}

/// Puts a keyring and its copy; [`ErrorKind::AlreadyExists`] when another rotation was first. The first object decides; a
/// copy that a crash kept from being put is made by a repair.
pub(crate) fn put_ring(
    store: &dyn Store,
    random: &dyn Random,
    master: &SecretKey,
    ring: &Keyring,
) -> Result<()> {
    put_ring_as(store, random, master, ring, &names::ring(ring.generation)?)?;
    put_ring_as(
        store,
        random,
        master,
        ring,
        &names::ring_copy(ring.generation)?,
    )
}

fn put_ring_as(
    store: &dyn Store,
    random: &dyn Random,
    master: &SecretKey,
    ring: &Keyring,
    name: &store::ObjectName,
) -> Result<()> {
    let text = serde_json::to_vec(ring)
        .map_err(|error| Error::new(ErrorKind::Invalid, "the keyring").caused_by(error))?;
    let key = SealKey::Key {
        id: master_id(master),
        key: master,
    };
    let bytes = envelope::seal(name, ObjectKind::Ring, &key, random, &text)?;
    store.put_new(name, &bytes)?;
    Ok(())
}

/// Whether rings are only looked at or mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RingCare {
    /// Only name what is broken and could be mended.
    Look,
    /// Mend it.
    Mend,
}

/// Makes a damaged or missing keyring, or copy of one, again from the other of the two; gives the names of all that were.
///
/// # Errors
/// What the store answered. A generation of which neither can be read is left alone.
pub(crate) fn mend_rings(
    store: &dyn Store,
    random: &dyn Random,
    master: &SecretKey,
    current: &Keyring,
    care: RingCare,
) -> Result<Vec<store::ObjectName>> {
    let mut mended = Vec::new();
    for generation in 1..=current.generation {
        let pair = [names::ring(generation)?, names::ring_copy(generation)?];
        let [one, two] = &pair;
        for (name, other) in [(one, two), (two, one)] {
            let broken = match read_one_ring(store, name, master, current.repository) {
                Ok(_) => false,
                Err(error) => matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound),
            };
            let Ok(ring) = read_one_ring(store, other, master, current.repository) else {
                continue;
            };
            if !broken || ring.generation != generation {
                continue;
            }
            if care == RingCare::Mend {
                store.delete(name)?;
                put_ring_as(store, random, master, &ring, name)?;
            }
            mended.push(name.clone());
        }
    }
    Ok(mended)
}

/// The highest readable keyring.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is none at all, else why the highest could not be read.
pub(crate) fn read_ring(
    store: &dyn Store,
    master: &SecretKey,
    repository: RepositoryId,
) -> Result<Keyring> {
    let mut rings = Vec::new();
    for entry in store::list_all(store, &names::keys()?) {
        let entry = entry?;
        if entry.name.as_str().starts_with("keys/ring-") {
            rings.push(entry.name);
        }
    }
    let mut first_error = None;
    for name in rings.iter().rev() {
        match read_one_ring(store, name, master, repository) {
            Ok(ring) => return Ok(ring),
            // Nothing was said about what lies there.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Store | ErrorKind::Denied | ErrorKind::Cancelled
                ) =>
            {
                return Err(error);
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error
        .unwrap_or_else(|| Error::new(ErrorKind::NotFound, "the repository has no keyring")))
}

fn read_one_ring(
    store: &dyn Store,
    name: &store::ObjectName,
    master: &SecretKey,
    repository: RepositoryId,
) -> Result<Keyring> {
    let limit = u64::try_from(MAX_ENVELOPE_BYTES).unwrap_or(u64::MAX);
    let bytes = store.get_bounded(name, limit)?;
    let id = master_id(master);
    let find = |wanted: KeyId| (wanted == id).then(|| master.clone());
    let (header, text) = envelope::open(name, &bytes, &find)?;
    // A plain ring would be one that anybody could have put there.
    if header.kind != ObjectKind::Ring || header.cipher == crate::format::Cipher::Plain {
        return Err(Error::corrupt(name, "not an encrypted keyring"));
    }
    let ring: Keyring = serde_json::from_slice(&text)
        .map_err(|error| Error::corrupt(name, "malformed").caused_by(error))?;
    if ring.repository != repository {
        return Err(Error::corrupt(name, "a keyring of another repository"));
    }
    ring.current()?;
    Ok(ring)
}
