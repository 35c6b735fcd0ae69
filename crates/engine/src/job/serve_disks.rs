//! Versions kept readable for as long as somebody serves them to others: by position, and as the VHDX that they would be.
//!
//! ```text
//!   selectors ─► points ─► one lease over all ─► a LeasedDisk for each disk ─► whoever serves ─► finish: the lease goes back
//! ```
//!
//! **Invariants.** Once the lease was lost nothing is read any more: every call of a [`LeasedDisk`] fails. The VHDX of a version
//! has the same bytes whenever and wherever it is served: its identities follow from the version's root.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use block::{DiskRoot, Extent, ExtentKind, LEAF_SIZE_BYTES, LeafIndex, NodeHash, ReadAt};
use repo::lease::LeaseKind;
use repo::{
    ImageProfile, PointSelector, ProtectedName, ReadProtection, ReadSession, Repository,
    VersionReader,
};
use vdisk::vhdx::{CreateOptions, IdSource, VhdxView, WriteId};
use vdisk::{DiskId, Format};

use super::{JobContext, protect};
use crate::profile::profile_from;
use crate::{Error, ErrorKind, Result};

/// A disk of a version; refuses once its lease was lost.
pub struct LeasedDisk {
    reader: VersionReader,
    session: Arc<ReadSession>,
}

impl LeasedDisk {
    fn check(&self) -> block::Result<()> {
        self.session.check().map_err(|error| {
            let what = "the lease that kept the version readable was lost";
            block::Error::with_source(block::ErrorKind::Io, what, error)
        })
    }
}

impl ReadAt for LeasedDisk {
    fn size_bytes(&self) -> u64 {
        self.reader.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.check()?;
        self.reader.read_at(offset, buffer)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.check()?;
        self.reader.extent_at(offset, limit_bytes)
    }
}

/// One disk of a version.
pub struct ServedDisk {
    /// Which disk of the machine.
    pub label: String,
    /// Its root.
    pub root: DiskRoot,
    /// Its length.
    pub length_bytes: u64,
    /// What image it was.
    pub image: ImageProfile,
    reader: Arc<LeasedDisk>,
}

impl ServedDisk {
    /// Its bytes.
    pub fn reader(&self) -> Arc<dyn ReadAt> {
        Arc::clone(&self.reader) as Arc<dyn ReadAt>
    }

    /// The VHDX that it would be, over `disk`, which must have its bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when no VHDX can hold it: its length is no whole number of sectors, or more than 64 TiB.
    pub fn vhdx(&self, disk: Arc<dyn ReadAt>) -> Result<VhdxView> {
        let shape = profile_from(&self.image)
            .unwrap_or_else(|_| vdisk::image::ImageProfile::of(Format::Raw));
        let root = *self.root.as_bytes();
        let derived = move |number: u8| {
            let mut hasher =
                blake3::Hasher::new_derive_key("hikae 2026 identities of a served VHDX");
            hasher.update(&root).update(&[number]);
            let mut id = [0; 16];
            hasher.finalize_xof().fill(&mut id);
            id
        };
        let disk_id = shape
            .disk_id
            .unwrap_or_else(|| DiskId(uuid::Builder::from_random_bytes(derived(1)).into_uuid()));
        let count = AtomicU8::new(2);
        let ids = IdSource::new(move || derived(count.fetch_add(1, Ordering::Relaxed)));
        let mut options = CreateOptions::new(self.length_bytes, disk_id, ids);
        options.logical_sector_bytes = shape.logical_sector_bytes;
        if shape.format != Format::Raw {
            options.physical_sector_bytes = shape.physical_sector_bytes;
        }
        let data_write = uuid::Builder::from_random_bytes(derived(0)).into_uuid();
        options.data_write_id = Some(WriteId(data_write));
        // Whole leaves are enough to know where there is data, and no leaf has to be read for it.
        let mut tree = self.reader.reader.tree()?;
        let mut leaves = |offset: u64, limit_bytes: u64| -> block::Result<Extent> {
            let leaf = LeafIndex::holding(offset);
            let Some(run) = tree.run_at(leaf)? else {
                let what = format!("leaf {} of the disk", leaf.0);
                return Err(block::Error::new(block::ErrorKind::OutOfRange, what));
            };
            let end = run
                .first
                .0
                .saturating_add(run.count)
                .saturating_mul(LEAF_SIZE_BYTES);
            Ok(Extent {
                offset,
                length_bytes: end.saturating_sub(offset).min(limit_bytes),
                kind: if run.hash == NodeHash::zero(1) {
                    ExtentKind::Unallocated
                } else {
                    ExtentKind::Data
                },
            })
        };
        Ok(VhdxView::open(disk, &options, &mut leaves)?)
    }
}

/// A version that is served.
pub struct ServedVersion {
    /// Whose.
    pub name: ProtectedName,
    /// Its number.
    pub sequence: u64,
    /// When it was committed, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Its disks.
    pub disks: Vec<ServedDisk>,
}

/// Versions under one lease.
pub struct ServedVersions {
    versions: Vec<ServedVersion>,
    session: Arc<ReadSession>,
}

impl ServedVersions {
    /// Opens all disks of these versions; one that is named twice is opened once.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such version.
    pub fn open(
        repository: &Repository,
        selectors: &[PointSelector],
        context: JobContext<'_>,
    ) -> Result<Self> {
        let mut points = Vec::new();
        for selector in selectors {
            let point = repository.find_point(selector)?.point;
            if points
                .iter()
                .all(|known: &repo::RecoveryPoint| known.key() != point.key())
            {
                points.push(point);
            }
        }
        if points.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "no version was named"));
        }
        let needed: Vec<_> = points.iter().collect();
        let session = protect(repository, LeaseKind::Restore, &needed, context)?;
        let mut versions = Vec::new();
        for point in &points {
            let mut disks = Vec::new();
            for disk in &point.disks {
                let reader = repository.open_version(disk, &session)?;
                let session = Arc::clone(&session);
                disks.push(ServedDisk {
                    label: disk.label.clone(),
                    root: disk.root,
                    length_bytes: disk.length_bytes,
                    image: disk.image.clone(),
                    reader: Arc::new(LeasedDisk { reader, session }),
                });
            }
            versions.push(ServedVersion {
                name: point.name.clone(),
                sequence: point.sequence,
                created_unix_ms: point.created_unix_ms,
                disks,
            });
        }
        Ok(Self { versions, session })
    }

    /// What is served.
    pub fn versions(&self) -> &[ServedVersion] {
        &self.versions
    }

    /// Whether a lease protects it from garbage collection.
    pub fn protection(&self) -> ReadProtection {
        self.session.protection()
    }

    /// Fails once the lease was lost.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`].
    pub fn check(&self) -> Result<()> {
        Ok(self.session.check()?)
    }

    /// Gives the lease back, once nobody holds a reader any more.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] when it was lost; what the store answered; [`ErrorKind::Busy`] when a reader is still held.
    pub fn finish(self) -> Result<()> {
        drop(self.versions);
        match Arc::into_inner(self.session) {
            Some(session) => Ok(session.finish()?),
            None => Err(Error::new(
                ErrorKind::Busy,
                "somebody still reads: the lease ends with the process, and counts as stalled until then",
            )),
        }
    }
}
