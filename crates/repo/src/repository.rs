//! The repository as its users see it: create, unlock, list, begin, read.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use store::Store;

use crate::access::ObjectAccess;
use crate::catalog::{self, PointMemory, PointRecord};
use crate::config::{self, Compression, Config, Encryption};
use crate::crypto::SecretKey;
use crate::environment::rfc3339;
use crate::format::FORMAT_VERSION;
use crate::index::{Index, IndexOptions, IndexStats};
use crate::keys::{
    self, KeyFile, Keyring, RecoveryKey, Slot, SlotInfo, SlotKind, SlotSecret, Unlock,
};
use crate::lease::LeaseTerms;
use crate::pack::{PackCache, PackTargets};
use crate::points::{PointSelector, ProtectedName, UnknownFields};
use crate::read::NodeCache;
use crate::session::{BeginOptions, VersionSession};
use crate::vault::Vault;
use crate::{Environment, Error, ErrorKind, RepositoryId, Result, SlotId, names};

/// Bytes of pack directories kept.
const PACK_CACHE_BYTES: usize = 24 << 20;

/// What a new repository shall be.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Whether it is encrypted.
    pub encryption: Encryption,
    /// How blobs are compressed unless a session says otherwise.
    pub compression: Compression,
    /// A passphrase that opens it, besides the key file.
    pub passphrase: Option<String>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            encryption: Encryption::Aes256Gcm,
            compression: Compression::default(),
            passphrase: None,
        }
    }
}

/// How a repository is opened.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// Where the local index is kept between openings; it can be deleted at any time.
    pub cache_dir: Option<PathBuf>,
    /// The times that leases live by.
    pub lease_terms: LeaseTerms,
    /// Where packs are closed.
    pub pack_targets: PackTargets,
}

/// A new repository and what opens it; keys are told here and never again.
#[derive(Debug)]
pub struct Created {
    /// The repository, unlocked.
    pub repository: Repository,
    /// To be kept outside the repository; absent when nothing is encrypted.
    pub key_file: Option<KeyFile>,
    /// To be shown once; absent when nothing is encrypted.
    pub recovery_key: Option<RecoveryKey>,
}

/// An open repository. Cheap to clone; all clones share caches and keys.
#[derive(Clone)]
pub struct Repository {
    shared: Arc<Shared>,
}

struct Shared {
    vault: Arc<Vault>,
    options: OpenOptions,
    index: Mutex<Option<Arc<Index>>>,
    memory: PointMemory,
    packs: PackCache,
    nodes: NodeCache,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repository({})", self.id())
    }
}

pub(crate) fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Repository {
    /// Makes a repository in a store that holds none.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when there is one; what the store answered otherwise.
    pub fn create(
        store: Arc<dyn Store>,
        options: &CreateOptions,
        open: &OpenOptions,
        environment: &Environment,
    ) -> Result<Created> {
        match config::read_config(store.as_ref()) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
            _ => {
                let what = format!("{}: there is a repository already", store.describe());
                return Err(Error::new(ErrorKind::AlreadyExists, what));
            }
        }
        let random = environment.random.as_ref();
        let id = RepositoryId::generate(random)?;
        let mut config = Config {
            format: FORMAT_VERSION,
            repository: id,
            encryption: options.encryption,
            signing_public_key: None,
            compression: options.compression,
            created: rfc3339(environment.clock.unix_ms()),
            more: UnknownFields::new(),
        };
        let mut secrets = None;
        if options.encryption == Encryption::Aes256Gcm {
            let made = make_keys(store.as_ref(), options, environment, id)?;
            let seed = &made.ring.signing_seed;
            config.signing_public_key = Some(crate::points::root_public_key(seed)?);
            secrets = Some(made);
        }
        // The configuration makes it a repository: it comes last, its copy before it.
        config::put_config(store.as_ref(), random, &names::config_copy()?, &config)?;
        config::put_config(store.as_ref(), random, &names::config()?, &config)?;
        let (vault, key_file, recovery_key) = match secrets {
            None => (Vault::plain(store, environment.clone(), config), None, None),
            Some(made) => {
                let vault =
                    Vault::unlocked(store, environment.clone(), config, made.master, made.ring)?;
                (vault, Some(made.key_file), Some(made.recovery_key))
            }
        };
        let repository = Self::assemble(vault, open.clone());
        Ok(Created {
            repository,
            key_file,
            recovery_key,
        })
    }

    /// Unlocks a repository.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none, [`ErrorKind::WrongKey`] when this opens nothing.
    pub fn open(
        store: Arc<dyn Store>,
        unlock: &Unlock,
        options: &OpenOptions,
        environment: &Environment,
    ) -> Result<Self> {
        let config = config::read_config(store.as_ref())?;
        let vault = match (config.encryption, unlock) {
            (Encryption::None, Unlock::Plain) => Vault::plain(store, environment.clone(), config),
            (Encryption::None, _) => {
                // Whoever has a key expects secrecy: a configuration that says otherwise may be somebody's doing.
                let what = "the repository says that it is not encrypted, but a key was given";
                return Err(Error::new(ErrorKind::WrongKey, what));
            }
            (Encryption::Aes256Gcm, _) => {
                let id = config.repository;
                let (_, master) = keys::open_any(store.as_ref(), id, unlock)?;
                let ring = keys::read_ring(store.as_ref(), &master, id)?;
                Vault::unlocked(store, environment.clone(), config, master, ring)?
            }
        };
        Ok(Self::assemble(vault, options.clone()))
    }

    fn assemble(vault: Vault, options: OpenOptions) -> Self {
        let vault = vault.with_pack_targets(options.pack_targets);
        Self {
            shared: Arc::new(Shared {
                vault: Arc::new(vault),
                options,
                index: Mutex::new(None),
                memory: PointMemory::default(),
                packs: PackCache::new(PACK_CACHE_BYTES),
                nodes: NodeCache::default(),
            }),
        }
    }

    pub(crate) fn vault(&self) -> &Arc<Vault> {
        &self.shared.vault
    }

    pub(crate) fn memory(&self) -> &PointMemory {
        &self.shared.memory
    }

    pub(crate) fn pack_cache(&self) -> &PackCache {
        &self.shared.packs
    }

    pub(crate) fn node_cache(&self) -> &NodeCache {
        &self.shared.nodes
    }

    /// Where local files are kept between openings, if anywhere.
    pub(crate) fn cache_dir(&self) -> Option<&std::path::Path> {
        self.shared.options.cache_dir.as_deref()
    }

    /// The times that leases live by.
    pub(crate) fn lease_terms(&self) -> LeaseTerms {
        self.shared.options.lease_terms
    }

    /// The index, loaded when it is first asked for.
    pub(crate) fn index(&self) -> Result<Arc<Index>> {
        let mut held = self
            .shared
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = held.as_ref() {
            return Ok(Arc::clone(index));
        }
        let options = IndexOptions {
            cache_dir: self.shared.options.cache_dir.clone(),
            ..IndexOptions::default()
        };
        let index = Arc::new(Index::open(self.vault(), &options)?);
        index.refresh(self.vault())?;
        *held = Some(Arc::clone(&index));
        Ok(index)
    }

    /// Which repository it is.
    pub fn id(&self) -> RepositoryId {
        self.vault().repository_id()
    }

    /// Whether it is encrypted.
    pub fn encryption(&self) -> Encryption {
        self.vault().config().encryption
    }

    /// Where it lies, for people.
    pub fn describe(&self) -> String {
        self.vault().store().describe()
    }

    /// The store below.
    pub fn store(&self) -> Arc<dyn Store> {
        self.vault().shared_store()
    }

    /// The world around it.
    pub fn environment(&self) -> &Environment {
        self.vault().environment()
    }

    /// What the local index holds and costs; loads it.
    ///
    /// # Errors
    /// What the store or the cache directory answered.
    pub fn index_stats(&self) -> Result<IndexStats> {
        Ok(self.index()?.stats())
    }

    /// Every point, by name and number, forgotten ones included; and what could not be read.
    ///
    /// # Errors
    /// What the store answered; damage is told in the second half.
    pub fn points(&self) -> Result<(Vec<PointRecord>, Vec<Error>)> {
        catalog::point_records(self.vault(), self.memory())
    }

    /// The point that a selector names. `NAME` and `NAME@latest` look at visible ones only.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`] when it is there and damaged.
    pub fn find_point(&self, selector: &PointSelector) -> Result<PointRecord> {
        catalog::find_point(self.vault(), self.memory(), selector)
    }

    /// Begins a new version of a name.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when another session of the name lives.
    pub fn begin(&self, name: &ProtectedName, options: &BeginOptions) -> Result<VersionSession> {
        VersionSession::begin(self, name, options)
    }

    /// The key slots: what each is, or why it cannot be read.
    ///
    /// # Errors
    /// What the store answered.
    pub fn slots(&self) -> Result<Vec<Result<SlotInfo>>> {
        let slots = keys::list_slots(self.vault().store())?;
        Ok(slots
            .into_iter()
            .map(|(_, slot)| slot.map(|slot| slot.info()))
            .collect())
    }

    /// Adds a way to unlock with a new key file.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when nothing is encrypted.
    pub fn add_key_file(&self, label: &str) -> Result<KeyFile> {
        let secret = SecretKey::generate(self.environment().random.as_ref())?;
        let id = self.add_slot(SlotKind::KeyFile, label, &SlotSecret::Key(&secret))?;
        Ok(KeyFile::new(self.id(), id, secret))
    }

    /// Adds a passphrase.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when nothing is encrypted, [`ErrorKind::Invalid`] when it is empty.
    pub fn add_passphrase(&self, label: &str, passphrase: &str) -> Result<SlotId> {
        if passphrase.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "an empty passphrase"));
        }
        self.add_slot(
            SlotKind::Passphrase,
            label,
            &SlotSecret::Passphrase(passphrase),
        )
    }

    /// Adds a recovery key.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when nothing is encrypted.
    pub fn add_recovery_key(&self, label: &str) -> Result<RecoveryKey> {
        let secret = SecretKey::generate(self.environment().random.as_ref())?;
        self.add_slot(SlotKind::Recovery, label, &SlotSecret::Key(&secret))?;
        Ok(RecoveryKey::new(secret))
    }

    fn add_slot(&self, kind: SlotKind, label: &str, secret: &SlotSecret<'_>) -> Result<SlotId> {
        let vault = self.vault();
        let master = vault.master().ok_or_else(not_encrypted)?;
        let environment = vault.environment();
        let id = SlotId::generate(environment.random.as_ref())?;
        let slot = Slot::wrap(self.id(), id, kind, label, secret, master, environment)?;
        keys::put_slot(vault.store(), environment, &slot)?;
        Ok(id)
    }

    /// Removes a way to unlock; see [`crate::keys`] for what that protects from.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when no other readable slot would be left, [`ErrorKind::NotFound`].
    pub fn remove_slot(&self, id: SlotId) -> Result<()> {
        let vault = self.vault();
        let slots = keys::list_slots(vault.store())?;
        let name = names::slot(id)?;
        if !slots.iter().any(|(other, _)| *other == name) {
            return Err(Error::new(ErrorKind::NotFound, format!("no key slot {id}")));
        }
        if !slots
            .iter()
            .any(|(other, slot)| *other != name && slot.is_ok())
        {
            let what = format!("key slot {id} is the last: nobody could open the repository");
            return Err(Error::new(ErrorKind::Refused, what));
        }
        vault.store().delete(&name)?;
        Ok(())
    }

    /// Draws a new data key: what is written from now on has it; what is there stays readable and is not counted on for
    /// de-duplication any more. Sessions that are running go on with the old key.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when nothing is encrypted, [`ErrorKind::Conflict`] when another rotation was first.
    pub fn rotate_data_key(&self) -> Result<()> {
        let vault = self.vault();
        let master = vault.master().ok_or_else(not_encrypted)?;
        let environment = vault.environment();
        let mut ring = keys::read_ring(vault.store(), master, self.id())?;
        ring.add_data_key(environment)?;
        match keys::put_ring(vault.store(), environment.random.as_ref(), master, &ring) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "another rotation was first",
                ));
            }
            Err(error) => return Err(error),
        }
        vault.replace_keyring(ring);
        Ok(())
    }

    /// Whether something unlocks this repository; which slot.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when it does not.
    pub fn test_unlock(store: &dyn Store, unlock: &Unlock) -> Result<SlotId> {
        let config = config::read_config(store)?;
        let (slot, master) = keys::open_any(store, config.repository, unlock)?;
        keys::read_ring(store, &master, config.repository)?;
        Ok(slot)
    }
}

fn not_encrypted() -> Error {
    Error::new(
        ErrorKind::Refused,
        "the repository is not encrypted: it has no keys",
    )
}

/// The keys of a new repository.
struct MadeKeys {
    master: SecretKey,
    ring: Keyring,
    key_file: KeyFile,
    recovery_key: RecoveryKey,
}

fn make_keys(
    store: &dyn Store,
    options: &CreateOptions,
    environment: &Environment,
    id: RepositoryId,
) -> Result<MadeKeys> {
    let random = environment.random.as_ref();
    let master = SecretKey::generate(random)?;
    let ring = Keyring::generate(id, environment)?;
    let put = |kind: SlotKind, label: &str, secret: &SlotSecret<'_>| -> Result<SlotId> {
        let slot = SlotId::generate(random)?;
        let wrapped = Slot::wrap(id, slot, kind, label, secret, &master, environment)?;
        keys::put_slot(store, environment, &wrapped)?;
        Ok(slot)
    };
    let file_secret = SecretKey::generate(random)?;
    let slot = put(
        SlotKind::KeyFile,
        "first key file",
        &SlotSecret::Key(&file_secret),
    )?;
    let recovery_secret = SecretKey::generate(random)?;
    put(
        SlotKind::Recovery,
        "recovery key",
        &SlotSecret::Key(&recovery_secret),
    )?;
    if let Some(passphrase) = &options.passphrase {
        put(
            SlotKind::Passphrase,
            "passphrase",
            &SlotSecret::Passphrase(passphrase),
        )?;
    }
    keys::put_ring(store, random, &master, &ring)?;
    Ok(MadeKeys {
        master,
        ring,
        key_file: KeyFile::new(id, slot, file_secret),
        recovery_key: RecoveryKey::new(recovery_secret),
    })
}
