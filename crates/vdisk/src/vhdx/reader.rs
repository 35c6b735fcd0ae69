//! Reading a VHDX or AVHDX.
//!
//! ```text
//!   open ─► structure (log replayed into memory) ─► survey of the BAT ─► reads from any thread
//! ```
//!
//! **Invariants.** The file is never changed, not even to replay its log. What is opened was checked: blocks lie inside
//! the file and do not overlap. Memory does not follow the size of the disk.
//! It does not find parents (see the chain), and it does not check that the given one is right: see
//! [`ParentLocator::check_linkage`].

use std::sync::Arc;

use block::{Extent, ReadAt};

use super::body::Body;
use super::info::WriteId;
use super::locator::ParentLocator;
use super::structure::{self, Accept, Anchors, Structure};
use crate::{DiskId, ImageInfo, Result};

/// A VHDX opened for reading: fixed, dynamic or differencing.
pub struct VhdxReader {
    structure: Structure,
    body: Body,
    parent: Option<Arc<dyn ReadAt>>,
}

impl VhdxReader {
    /// Opens an image. `parent` is the flattened view of the parent of a differencing one; without it, ranges that are
    /// the parent's are reported as [`block::ExtentKind::InParent`] and cannot be read.
    ///
    /// Costs one pass over the BAT, which holes in the host file shorten.
    ///
    /// # Errors
    /// `Corrupt` when it contradicts the format, overlaps itself or reaches out of the file; `Unsupported` for required
    /// parts that are unknown; `Incomplete` when its creation was interrupted or its end is lost; `Io`.
    pub fn open(file: Arc<dyn ReadAt>, parent: Option<Arc<dyn ReadAt>>) -> Result<Self> {
        let structure = structure::open(file, Accept::Finished)?;
        structure.survey(Anchors::Ignored)?;
        let body = Body::new(
            Arc::clone(&structure.file),
            structure.geometry,
            structure.regions.bat.offset,
        );
        Ok(Self {
            structure,
            body,
            parent,
        })
    }

    /// Reads through this parent from now on; an image that is not differencing has no use for one and ignores it.
    #[must_use]
    pub fn with_parent(mut self, parent: Arc<dyn ReadAt>) -> Self {
        if self.parent_locator().is_some() {
            self.parent = Some(parent);
        }
        self
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        self.structure.info()
    }

    /// Changes whenever the disk's bytes may have changed; children name their parent by it.
    pub fn data_write_id(&self) -> WriteId {
        WriteId(self.structure.header.data_write)
    }

    /// Identity of the virtual disk, which children and copies inherit.
    pub fn disk_id(&self) -> DiskId {
        self.structure.metadata.disk_id
    }

    /// Unit of allocation, in bytes.
    pub fn block_size_bytes(&self) -> u64 {
        self.body.geometry.block_size
    }

    /// What a differencing image says about its parent.
    pub fn parent_locator(&self) -> Option<&ParentLocator> {
        self.structure.metadata.locator.as_ref()
    }

    /// The ids that the parent may have; empty when there is none.
    pub fn parent_linkages(&self) -> Vec<WriteId> {
        self.parent_locator()
            .map(ParentLocator::linkages)
            .unwrap_or_default()
    }

    /// Whether a parent was given at opening.
    pub fn has_parent_view(&self) -> bool {
        self.parent.is_some()
    }
}

impl std::fmt::Debug for VhdxReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhdxReader")
            .field("info", &self.info())
            .finish_non_exhaustive()
    }
}

impl ReadAt for VhdxReader {
    fn size_bytes(&self) -> u64 {
        self.body.geometry.size
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.body.read_at(self.parent.as_deref(), offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.body
            .extent_at(self.parent.as_deref(), offset, limit_bytes)
    }
}
