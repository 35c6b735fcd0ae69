//! One image file of any format, without its chain.

use std::path::Path;
use std::sync::Arc;

use block::{Extent, ReadAt};

use super::siblings::Siblings;
use crate::chain::{ParentCheck, ParentPolicy};
use crate::qcow2::{Qcow2Header, Qcow2Reader, Qcow2Sources};
use crate::raw::RawReader;
use crate::vhd::VhdReader;
use crate::vhdx::VhdxReader;
use crate::vmdk::{ExtentPaths, VmdkReader, VmdkSources};
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
    /// Microsoft VHDX.
    Vhdx(Box<VhdxReader>),
    /// QEMU qcow2.
    Qcow2(Box<Qcow2Reader>),
    /// VMware VMDK.
    Vmdk(Box<VmdkReader>),
}

impl ImageReader {
    /// Opens a file in a format that is already known.
    pub(super) fn open(
        file: Arc<dyn ReadAt>,
        format: Format,
        siblings: Siblings<'_>,
    ) -> Result<Self> {
        Ok(match format {
            Format::Raw => Self::Raw(RawReader::open(file)),
            Format::Vhd => Self::Vhd(Box::new(VhdReader::open(file, None)?)),
            Format::Vhdx => Self::Vhdx(Box::new(VhdxReader::open(file, None)?)),
            Format::Qcow2 => Self::Qcow2(Box::new(open_qcow2(file, siblings)?)),
            Format::Vmdk => {
                let anywhere = matches!(
                    siblings,
                    Siblings::Beside {
                        policy: ParentPolicy::Anywhere,
                        ..
                    }
                );
                let paths = if anywhere {
                    ExtentPaths::Anywhere
                } else {
                    ExtentPaths::Inside
                };
                let sources = VmdkSources {
                    parent: None,
                    paths,
                };
                Self::Vmdk(Box::new(VmdkReader::open_with(file, &siblings, sources)?))
            }
        })
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        match self {
            Self::Raw(reader) => reader.info(),
            Self::Vhd(reader) => reader.info(),
            Self::Vhdx(reader) => reader.info(),
            Self::Qcow2(reader) => reader.info(),
            Self::Vmdk(reader) => reader.info(),
        }
    }

    /// Whether the image names a parent, and if so whether it can tell it from another.
    pub fn parent_check(&self) -> Option<ParentCheck> {
        match self {
            Self::Raw(_) => None,
            Self::Vhd(reader) => reader.parent_identity().map(|_| ParentCheck::ById),
            Self::Vhdx(reader) => reader.parent_locator().map(|_| ParentCheck::ById),
            Self::Qcow2(reader) => reader.backing().map(|_| ParentCheck::ByPathOnly),
            Self::Vmdk(reader) => reader.has_parent().then_some(ParentCheck::ById),
        }
    }

    /// The format that the child says its parent has; `None` when it does not say.
    pub fn parent_format(&self) -> Option<Format> {
        match self {
            Self::Raw(_) => None,
            Self::Vhd(_) => Some(Format::Vhd),
            Self::Vhdx(_) => Some(Format::Vhdx),
            Self::Vmdk(_) => Some(Format::Vmdk),
            Self::Qcow2(reader) => match reader.backing()?.format.as_deref()? {
                "raw" | "host_device" | "file" => Some(Format::Raw),
                "qcow2" => Some(Format::Qcow2),
                "vpc" => Some(Format::Vhd),
                "vhdx" => Some(Format::Vhdx),
                "vmdk" => Some(Format::Vmdk),
                _ => None,
            },
        }
    }

    /// Whether `parent` is the image that this one was made on: [`ErrorKind::ParentMismatch`] when it is not.
    pub fn check_parent(&self, parent: &Self, parent_path: &Path) -> Result<Linkage> {
        match (self, parent) {
            (Self::Raw(_) | Self::Qcow2(_), _) => Ok(Linkage::Unverifiable),
            (Self::Vhd(child), Self::Vhd(parent)) => check_vhd(child, parent, parent_path),
            (Self::Vhdx(child), Self::Vhdx(parent)) => check_vhdx(child, parent, parent_path),
            (Self::Vmdk(child), Self::Vmdk(parent)) => {
                let (wanted, found) = (child.parent_cid(), parent.cid());
                if wanted.is_some() && wanted == found {
                    return Ok(Linkage::Verified);
                }
                let show = |id: Option<_>| id.map_or("none".to_owned(), |id| format!("{id}"));
                let text = format!(
                    "the child names content id {}, this is {}",
                    show(wanted),
                    show(found)
                );
                Err(mismatch(parent_path, &text))
            }
            (child, parent) => {
                let (child, parent) = (child.info().format, parent.info().format);
                Err(mismatch(
                    parent_path,
                    &format!("a child in {child:?} cannot lie on {parent:?}"),
                ))
            }
        }
    }

    /// Reads through this parent from now on.
    #[must_use]
    pub fn with_parent(self, parent: Arc<dyn ReadAt>) -> Self {
        match self {
            Self::Raw(reader) => Self::Raw(reader),
            Self::Vhd(reader) => Self::Vhd(Box::new(reader.with_parent(parent))),
            Self::Vhdx(reader) => Self::Vhdx(Box::new(reader.with_parent(parent))),
            Self::Qcow2(reader) => Self::Qcow2(Box::new(reader.with_parent(parent))),
            Self::Vmdk(reader) => Self::Vmdk(Box::new(reader.with_parent(parent))),
        }
    }

    fn inner(&self) -> &dyn ReadAt {
        match self {
            Self::Raw(reader) => reader,
            Self::Vhd(reader) => &**reader,
            Self::Vhdx(reader) => &**reader,
            Self::Qcow2(reader) => &**reader,
            Self::Vmdk(reader) => &**reader,
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

fn open_qcow2(file: Arc<dyn ReadAt>, siblings: Siblings<'_>) -> Result<Qcow2Reader> {
    let header = Qcow2Header::read(&file)?;
    let data_file = match (header.needs_data_file(), header.data_file_name()) {
        (true, Some(name)) => Some(siblings.open(name)?),
        _ => None,
    };
    Qcow2Reader::open_with(
        file,
        Qcow2Sources {
            parent: None,
            data_file,
        },
    )
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

fn check_vhdx(child: &VhdxReader, parent: &VhdxReader, parent_path: &Path) -> Result<Linkage> {
    let Some(locator) = child.parent_locator() else {
        return Ok(Linkage::Unverifiable);
    };
    locator
        .check_linkage(parent.data_write_id())
        .map_err(|error| {
            Error::with_source(
                error.kind(),
                format!("parent {}: {error}", parent_path.display()),
                error,
            )
        })?;
    let (ours, theirs) = (
        child.info().logical_sector_bytes,
        parent.info().logical_sector_bytes,
    );
    if ours != theirs {
        let text = format!("the child has sectors of {ours} bytes, this has {theirs}");
        return Err(mismatch(parent_path, &text));
    }
    Ok(Linkage::Verified)
}

fn mismatch(parent_path: &Path, text: &str) -> Error {
    Error::new(
        ErrorKind::ParentMismatch,
        format!("parent {}: {text}", parent_path.display()),
    )
}
