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
    /// NAME@SEQUENCE, of each disk that was backed up by itself.
    version: String,
    /// The same and the root of each disk.
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
        Self::open_together(repository, selector, &[], &[], context)
    }

    /// The same, with versions of the machine's other disks, for volumes that lie on several, and keys for encrypted ones.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_together(
        repository: &Repository,
        selector: &PointSelector,
        others: &[PointSelector],
        keys: &[UnlockKey],
        context: JobContext<'_>,
    ) -> Result<Self> {
        let mut points = Vec::new();
        for selector in std::iter::once(selector).chain(others) {
            points.push(repository.find_point(selector)?.point);
        }
        let protected: Vec<_> = points.iter().collect();
        let session = protect(repository, LeaseKind::Restore, &protected, context)?;
        let mut disks: Vec<Arc<dyn ReadAt>> = Vec::new();
        let mut names = Vec::new();
        let mut roots = String::new();
        for point in &points {
            for disk in &point.disks {
                disks.push(Arc::new(repository.open_version(disk, &session)?));
                roots.push_str(&format!(" {}", disk.root));
            }
            names.push(format!("{}@{}", point.name, point.sequence));
        }
        let version = names.join(" + ");
        Ok(Self {
            inside: InsideDisks::open_with_keys(&disks, keys)?,
            session,
            identity: version.clone() + &roots,
            version,
        })
    }

    /// What lies inside.
    pub fn inside(&self) -> &InsideDisks {
        &self.inside
    }

    /// NAME@SEQUENCE; with ` + ` between them where several were opened together.
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
