//! The repository's configuration: a small plain object and its copy, so that one damaged one is survivable.

use serde::{Deserialize, Serialize};
use store::Store;

use crate::format::envelope::{self, SealKey};
use crate::format::{FORMAT_VERSION, ObjectKind};
use crate::points::UnknownFields;
use crate::{Error, ErrorKind, Random, RepositoryId, Result, names};

/// Longest configuration.
const MAX_CONFIG_BYTES: u64 = 64 << 10;

/// Whether what is stored is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Encryption {
    /// With AES-256-GCM under keys that only key slots open.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// Not at all: whoever can read the store can read every disk, and points are not signed.
    #[serde(rename = "none")]
    None,
}

/// How new blobs are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard of this level.
    Zstd(i32),
    /// LZ4.
    Lz4,
    /// Not at all.
    None,
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd(1)
    }
}

/// What everybody may know of a repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) format: u16,
    pub(crate) repository: RepositoryId,
    pub(crate) encryption: Encryption,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signing_public_key: Option<String>,
    #[serde(default)]
    pub(crate) compression: Compression,
    pub(crate) created: String,
    #[serde(flatten)]
    pub(crate) more: UnknownFields,
}

/// Puts one of the two.
pub(crate) fn put_config(
    store: &dyn Store,
    random: &dyn Random,
    name: &store::ObjectName,
    config: &Config,
) -> Result<()> {
    let text = serde_json::to_vec_pretty(config)
        .map_err(|error| Error::new(ErrorKind::Invalid, "the configuration").caused_by(error))?;
    let bytes = envelope::seal(name, ObjectKind::Config, &SealKey::Plain, random, &text)?;
    store.put_new(name, &bytes)?;
    Ok(())
}

/// Reads the configuration, or its copy when it is damaged or gone.
///
/// # Errors
/// [`ErrorKind::NotFound`] when neither is there: this is no repository.
pub(crate) fn read_config(store: &dyn Store) -> Result<Config> {
    let first = match read_one(store, &names::config()?) {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    match read_one(store, &names::config_copy()?) {
        Ok(config) => Ok(config),
        Err(second)
            if first.kind() == ErrorKind::NotFound && second.kind() == ErrorKind::NotFound =>
        {
            let what = format!("{}: not a repository", store.describe());
            Err(Error::new(ErrorKind::NotFound, what))
        }
        Err(second) if first.kind() == ErrorKind::NotFound => Err(second),
        Err(_) => Err(first),
    }
}

/// Reads one of the two.
pub(crate) fn read_one(store: &dyn Store, name: &store::ObjectName) -> Result<Config> {
    let bytes = store.get_bounded(name, MAX_CONFIG_BYTES)?;
    let (header, text) = envelope::open(name, &bytes, &|_| None)?;
    if header.kind != ObjectKind::Config {
        return Err(Error::corrupt(name, "not a configuration"));
    }
    let config: Config = serde_json::from_slice(&text)
        .map_err(|error| Error::corrupt(name, "malformed").caused_by(error))?;
    if config.format == FORMAT_VERSION {
        Ok(config)
    } else {
        let what = format!(
            "{name}: format {}, this program reads {FORMAT_VERSION}",
            config.format
        );
        Err(Error::new(ErrorKind::Unsupported, what))
    }
}
