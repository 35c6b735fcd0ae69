//! The disks of a version in a repository, looked into. Only what is asked for is fetched.

use std::sync::Arc;

use block::ReadAt;
use guestfs::encrypted::UnlockKey;
use repo::lease::LeaseKind;
use repo::{PointSelector, ReadProtection, ReadSession, Repository};

use super::InsideDisks;
use crate::Result;
use crate::job::{JobContext, protect};
use crate::transfer::explained;

/// An opened version. A lease keeps garbage collection off it until [`VersionInside::finish`].
pub struct VersionInside {
    inside: InsideDisks,
    session: Arc<ReadSession>,
    /// NAME@SEQUENCE.
    version: String,
    /// NAME@SEQUENCE and the root of each disk.
    identity: String,
}

impl VersionInside {
    /// Opens all disks of a version together.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when there is no such version, [`crate::ErrorKind::Corrupt`] when the repository
    /// lacks or has damaged what lies where tables and volumes are described.
    pub fn open(
        repository: &Repository,
        selector: &PointSelector,
        context: JobContext<'_>,
    ) -> Result<Self> {
        Self::open_with_keys(repository, selector, &[], context)
    }

    /// The same, with keys for encrypted volumes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_keys(
        repository: &Repository,
        selector: &PointSelector,
        keys: &[UnlockKey],
        context: JobContext<'_>,
    ) -> Result<Self> {
        let point = repository.find_point(selector)?.point;
        let session = protect(repository, LeaseKind::Restore, &[&point], context)?;
        let mut disks: Vec<Arc<dyn ReadAt>> = Vec::new();
        for disk in &point.disks {
            disks.push(Arc::new(repository.open_version(disk, &session)?));
        }
        let version = format!("{}@{}", point.name, point.sequence);
        let mut identity = version.clone();
        for disk in &point.disks {
            identity.push_str(&format!(" {}", disk.root));
        }
        Ok(Self {
            inside: InsideDisks::open_with_keys(&disks, keys)?,
            session,
            version,
            identity,
        })
    }

    /// What lies inside.
    pub fn inside(&self) -> &InsideDisks {
        &self.inside
    }

    /// NAME@SEQUENCE.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What its bytes are known by: equal only where all of them are.
    pub fn identity(&self) -> String {
        self.identity.clone()
    }

    /// Whether a lease protects it from garbage collection.
    pub fn protection(&self) -> ReadProtection {
        self.session.protection()
    }

    /// Gives the lease back; whoever watches is told when that fails.
    pub fn finish(self, context: JobContext<'_>) {
        drop(self.inside);
        let ended = Arc::into_inner(self.session).map_or(Ok(()), ReadSession::finish);
        if let Err(error) = ended {
            let why = explained(&error.into());
            let text = format!("the reader's lease could not be given back: {why}");
            context.progress.warn(&text);
        }
    }
}
