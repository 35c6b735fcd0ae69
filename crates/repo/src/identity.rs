//! What anybody may know of a repository without a key: which one it is, and whether a key is needed.

use store::Store;

use crate::config::{self, Encryption};
use crate::{RepositoryId, Result};

/// The public facts of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepositoryIdentity {
    /// Which repository it is.
    pub id: RepositoryId,
    /// Whether a key is needed to open it.
    pub encryption: Encryption,
}

impl RepositoryIdentity {
    /// Reads the configuration, or its copy.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when there is no repository.
    pub fn read(store: &dyn Store) -> Result<Self> {
        let config = config::read_config(store)?;
        Ok(Self {
            id: config.repository,
            encryption: config.encryption,
        })
    }
}
