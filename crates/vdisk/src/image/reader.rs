//! One image file of any format, without its chain.

use std::path::Path;
use std::sync::Arc;

use block::{Extent, ReadAt};

use crate::chain::ParentCheck;
use crate::raw::RawReader;
use crate::vhd::VhdReader;
use crate::{Error, ErrorKind, Format, ImageInfo, Result};

/// Whether a child and its parent belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linkage {
    /// The parent carries the id that the child remembers.
    Verified,
    /// The id is right, but the parent's time of change is not the one remembered: some tools change it without harm.
    VerifiedTimeDiffers,
    /// The format remembers nothing to verify.
    Unverifiable,
}

/// One image file, by its format. Reading a differencing image that was given no parent refuses what lies there.
#[non_exhaustive]
pub enum ImageReader {
    /// The bytes themselves.
    Raw(RawReader),
    /// Microsoft VHD.
    Vhd(Box<VhdReader>),
}

impl ImageReader {
    /// Opens a file in a format that is already known.
    pub fn open(file: Arc<dyn ReadAt>, format: Format) -> Result<Self> {
        match format {
            Format::Raw => Ok(Self::Raw(RawReader::open(file))),
            Format::Vhd => Ok(Self::Vhd(Box::new(VhdReader::open(file, None)?))),
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!("images of format {other:?}"),
            )),
        }
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        match self {
            Self::Raw(reader) => reader.info(),
            Self::Vhd(reader) => reader.info(),
        }
    }

    /// Whether the image names a parent, and if so whether it can tell it from another.
    pub fn parent_check(&self) -> Option<ParentCheck> {
        match self {
            Self::Raw(_) => None,
            Self::Vhd(reader) => reader.parent_identity().map(|_| ParentCheck::ById),
        }
    }

    /// The format that the child says its parent has.
    pub fn parent_format(&self) -> Option<Format> {
        match self {
            Self::Raw(_) => None,
            Self::Vhd(reader) => reader.parent_identity().map(|_| Format::Vhd),
        }
    }

    /// Whether `parent` is the image that this one was made on: [`ErrorKind::ParentMismatch`] when it is not.
    pub fn check_parent(&self, parent: &Self, parent_path: &Path) -> Result<Linkage> {
        match (self, parent) {
            (Self::Vhd(child), Self::Vhd(parent)) => check_vhd(child, parent, parent_path),
            (Self::Vhd(_), other) => Err(mismatch(
                parent_path,
                &format!(
                    "a VHD needs a VHD as parent, this is {:?}",
                    other.info().format
                ),
            )),
            (Self::Raw(_), _) => Ok(Linkage::Unverifiable),
        }
    }

    /// Reads through this parent from now on.
    pub fn with_parent(self, parent: Arc<dyn ReadAt>) -> Result<Self> {
        Ok(match self {
            Self::Raw(reader) => Self::Raw(reader),
            Self::Vhd(reader) => Self::Vhd(Box::new(reader.with_parent(parent))),
        })
    }

    fn inner(&self) -> &dyn ReadAt {
        match self {
            Self::Raw(reader) => reader,
            Self::Vhd(reader) => &**reader,
        }
    }
}

impl ReadAt for ImageReader {
    fn size_bytes(&self) -> u64 {
        self.inner().size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.inner().read_at(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.inner().extent_at(offset, limit_bytes)
    }
}

fn check_vhd(child: &VhdReader, parent: &VhdReader, parent_path: &Path) -> Result<Linkage> {
    let Some(wanted) = child.parent_identity() else {
        return Ok(Linkage::Unverifiable);
    };
    if wanted.id != parent.unique_id() {
        let text = format!(
            "the child names {}, this is {}",
            wanted.id,
            parent.unique_id()
        );
        return Err(mismatch(parent_path, &text));
    }
    Ok(if wanted.time == parent.time() {
        Linkage::Verified
    } else {
        Linkage::VerifiedTimeDiffers
    })
}

fn mismatch(parent_path: &Path, text: &str) -> Error {
    Error::new(
        ErrorKind::ParentMismatch,
        format!("parent {}: {text}", parent_path.display()),
    )
}
