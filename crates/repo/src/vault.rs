//! The opened keys and the sealed small objects: what every other part of the crate stands on.
//!
//! **Invariants.** In an encrypted repository nothing is read back that was not encrypted: a plain object that somebody
//! put there is corrupt. A key id that is not in the ring makes the ring be read again once, because another process may
//! have rotated it.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use serde::Serialize;
use serde::de::DeserializeOwned;
use store::{ObjectName, Store};

use crate::access::ObjectAccess;
use crate::config::{Config, Encryption};
use crate::crypto::{self, SecretKey};
use crate::format::envelope::{self, MAX_ENVELOPE_BYTES, SealKey};
use crate::format::{Cipher, ObjectKind, context};
use crate::keys::{self, Keyring};
use crate::pack::PackTargets;
use crate::points::{PointKey, ProtectedName, Signer};
use crate::{Environment, Error, ErrorKind, KeyId, LeaseId, NameId, RepositoryId, Result, names};

/// An unlocked repository's keys and small objects.
pub(crate) struct Vault {
    store: Arc<dyn Store>,
    environment: Environment,
    config: Config,
    unlocked: Option<Unlocked>,
    pack_targets: PackTargets,
}

/// What an encrypted repository has besides.
struct Unlocked {
    master: SecretKey,
    ring: RwLock<Keyring>,
    signer: Signer,
}

/// The key that is written with.
pub(crate) struct WriteKey {
    pub(crate) id: KeyId,
    pub(crate) cipher: Cipher,
    pub(crate) key: SecretKey,
}

impl Vault {
    pub(crate) fn plain(store: Arc<dyn Store>, environment: Environment, config: Config) -> Self {
        Self {
            store,
            environment,
            config,
            unlocked: None,
            pack_targets: PackTargets::default(),
        }
    }

    pub(crate) fn unlocked(
        store: Arc<dyn Store>,
        environment: Environment,
        config: Config,
        master: SecretKey,
        ring: Keyring,
    ) -> Result<Self> {
        let expected = crate::points::root_public_key(&ring.signing_seed)?;
        if config.signing_public_key.as_deref() != Some(expected.as_str()) {
            return Err(Error::corrupt(
                "config",
                "its signing key is not the keyring's",
            ));
        }
        let signer = Signer::new(&ring.signing_seed, environment.random.as_ref())?;
        let unlocked = Some(Unlocked {
            master,
            ring: RwLock::new(ring),
            signer,
        });
        Ok(Self {
            store,
            environment,
            config,
            unlocked,
            pack_targets: PackTargets::default(),
        })
    }

    /// The same with packs that are closed elsewhere.
    pub(crate) fn with_pack_targets(mut self, pack_targets: PackTargets) -> Self {
        self.pack_targets = pack_targets;
        self
    }

    /// Where packs are closed.
    pub(crate) fn pack_targets(&self) -> PackTargets {
        self.pack_targets
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// How everything but configuration and slots is written here.
    pub(crate) fn cipher(&self) -> Cipher {
        match self.config.encryption {
            Encryption::None => Cipher::Plain,
            Encryption::Aes256Gcm => Cipher::Aes256Gcm,
        }
    }

    pub(crate) fn repository_id(&self) -> RepositoryId {
        self.config.repository
    }

    pub(crate) fn shared_store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    pub(crate) fn master(&self) -> Option<&SecretKey> {
        self.unlocked.as_ref().map(|unlocked| &unlocked.master)
    }

    fn ring(&self) -> Option<RwLockReadGuard<'_, Keyring>> {
        // A ring is replaced whole, so that one behind a panic is whole, too.
        self.unlocked
            .as_ref()
            .map(|u| u.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A copy of the ring as it is now.
    pub(crate) fn keyring(&self) -> Option<Keyring> {
        self.ring().map(|ring| ring.clone())
    }

    /// Takes a newer ring.
    pub(crate) fn replace_keyring(&self, ring: Keyring) {
        if let Some(unlocked) = &self.unlocked {
            let mut held = unlocked
                .ring
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if ring.generation > held.generation {
                *held = ring;
            }
        }
    }

    /// The key that new objects and packs are written with.
    pub(crate) fn write_key(&self) -> Result<WriteKey> {
        match self.ring() {
            None => Ok(WriteKey {
                id: KeyId::PLAIN,
                cipher: Cipher::Plain,
                key: SecretKey::from_bytes([0; 32]),
            }),
            Some(ring) => {
                let current = ring.current()?;
                Ok(WriteKey {
                    id: current.id,
                    cipher: Cipher::Aes256Gcm,
                    key: current.key.clone(),
                })
            }
        }
    }

    /// A data key by its id.
    pub(crate) fn data_key(&self, id: KeyId) -> Option<SecretKey> {
        if let Some(key) = self.ring()?.data_key(id) {
            return Some(key.clone());
        }
        let master = self.master()?;
        let fresh = keys::read_ring(self.store.as_ref(), master, self.repository_id()).ok()?;
        let key = fresh.data_key(id).cloned();
        self.replace_keyring(fresh);
        key
    }

    /// The id of a name.
    pub(crate) fn name_id(&self, name: &ProtectedName) -> NameId {
        let text = name.as_str().as_bytes();
        match self.ring() {
            Some(ring) => {
                let mut hasher = blake3::Hasher::new_keyed(ring.name_key.bytes());
                hasher.update(text);
                NameId::from_bytes(crypto::first_half(hasher.finalize().as_bytes()))
            }
            None => NameId::from_bytes(crypto::derive_id(context::PLAIN_NAME, &[text])),
        }
    }

    /// The key of the local index.
    pub(crate) fn index_key(&self) -> SecretKey {
        match self.ring() {
            Some(ring) => ring.index_key.clone(),
            None => crypto::derive(context::PLAIN_INDEX_KEY, &[self.repository_id().as_bytes()]),
        }
    }

    /// Signs points, in an encrypted repository.
    pub(crate) fn signer(&self) -> Option<&Signer> {
        self.unlocked.as_ref().map(|unlocked| &unlocked.signer)
    }

    /// Gets an object and says what kind it is.
    pub(crate) fn get_any(
        &self,
        name: &ObjectName,
        limit_bytes: u64,
    ) -> Result<(ObjectKind, Vec<u8>)> {
        let most = u64::try_from(MAX_ENVELOPE_BYTES).unwrap_or(u64::MAX);
        let bytes = self
            .store
            .get_bounded(name, limit_bytes.saturating_add(4_096).min(most))?;
        let (header, text) = envelope::open(name, &bytes, &|id| self.data_key(id))?;
        if (header.cipher == Cipher::Plain) != (self.config.encryption == Encryption::None) {
            return Err(Error::corrupt(
                name,
                "its encryption is not the repository's",
            ));
        }
        Ok((header.kind, text))
    }

    /// Puts a value as JSON.
    pub(crate) fn put_json<T: Serialize>(
        &self,
        kind: ObjectKind,
        name: &ObjectName,
        value: &T,
    ) -> Result<()> {
        let text = serde_json::to_vec(value).map_err(|error| {
            Error::new(ErrorKind::Invalid, format!("writing {name}")).caused_by(error)
        })?;
        self.put_sealed(kind, name, &text)
    }

    /// Gets a value from JSON.
    pub(crate) fn get_json<T: DeserializeOwned>(
        &self,
        kind: ObjectKind,
        name: &ObjectName,
        limit_bytes: u64,
    ) -> Result<T> {
        let text = self.get_sealed(kind, name, limit_bytes)?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::corrupt(name, "malformed").caused_by(error))
    }
}

impl ObjectAccess for Vault {
    fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    fn put_sealed(&self, kind: ObjectKind, name: &ObjectName, text: &[u8]) -> Result<()> {
        let random = self.environment.random.as_ref();
        let write = self.write_key()?;
        let key = match write.cipher {
            Cipher::Plain => SealKey::Plain,
            Cipher::Aes256Gcm => SealKey::Key {
                id: write.id,
                key: &write.key,
            },
        };
        let bytes = envelope::seal(name, kind, &key, random, text)?;
        self.store.put_new(name, &bytes)?;
        Ok(())
    }

    fn get_sealed(&self, kind: ObjectKind, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        let (found, text) = self.get_any(name, limit_bytes)?;
        if found == kind {
            Ok(text)
        } else {
            Err(Error::corrupt(
                name,
                format_args!("a {found:?} where a {kind:?} belongs"),
            ))
        }
    }

    fn put_tombstone(&self, key: PointKey, broken: LeaseId) -> Result<()> {
        let text = serde_json::json!({ "broken": broken }).to_string();
        self.put_sealed(ObjectKind::Tombstone, &names::point(key)?, text.as_bytes())
    }
}
