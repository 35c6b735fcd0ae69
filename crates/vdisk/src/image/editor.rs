//! An image opened for reading and writing in place: a machine that runs from it, a merge, a mount.
//!
//! **Invariants.** What a returned flush covers survives a crash, in every format. The image's parents are only read.
//! VMDK is never written in place.

use std::path::Path;
use std::sync::Arc;

use block::{Extent, ReadAt, WriteAt};

use super::{ChainMode, Image, ImageReader, OpenOptions};
use crate::file::{FileAccess, HostFile};
use crate::qcow2::Qcow2Writer;
use crate::vhd::VhdWriter;
use crate::vhdx::{IdSource, VhdxWriter};
use crate::{Error, ErrorKind, ImageInfo, Result};

/// One image opened for reading and writing, over parents that are only read.
#[non_exhaustive]
pub enum ImageEditor {
    /// The bytes themselves.
    Raw(RawEditor),
    /// Microsoft VHD.
    Vhd(Box<VhdWriter>),
    /// Microsoft VHDX.
    Vhdx(Box<VhdxWriter>),
    /// QEMU qcow2.
    Qcow2(Box<Qcow2Editor>),
}

/// A raw image of fixed size.
pub struct RawEditor {
    file: Arc<HostFile>,
    info: ImageInfo,
}

/// A qcow2 image with what it says about itself.
pub struct Qcow2Editor {
    writer: Qcow2Writer,
    info: ImageInfo,
}

impl ImageEditor {
    /// Opens the image at `path` of this host for writing, and its parents, found as `options` say, for reading. New
    /// identities that the format asks for come from `ids`.
    ///
    /// # Errors
    /// As [`Image::open`]; `Unsupported` for formats that are not written in place.
    pub fn open(path: &Path, options: &OpenOptions, ids: IdSource) -> Result<Self> {
        let whole = OpenOptions {
            chain: ChainMode::Whole,
            ..options.clone()
        };
        let image = Image::open(path, &whole)?;
        let info = image.info();
        let parent = image.chain().get(1).map(|layer| {
            let parent: Arc<dyn ReadAt> = layer.reader().clone();
            parent
        });
        let open = || HostFile::open(path, FileAccess::ReadWrite).map(Arc::new);
        match image.chain().first().map(|leaf| &**leaf.reader()) {
            Some(ImageReader::Raw(_)) => Ok(Self::Raw(RawEditor {
                file: open()?,
                info,
            })),
            Some(ImageReader::Vhd(_)) => Ok(Self::Vhd(Box::new(VhdWriter::open(open()?, parent)?))),
            Some(ImageReader::Vhdx(_)) => Ok(Self::Vhdx(Box::new(VhdxWriter::open(
                open()?,
                parent,
                ids,
            )?))),
            Some(ImageReader::Qcow2(_)) => {
                let writer = Qcow2Writer::open(open()?, parent)?;
                Ok(Self::Qcow2(Box::new(Qcow2Editor { writer, info })))
            }
            Some(ImageReader::Vmdk(_)) | None => {
                let context = format!("{}: VMDK is not written in place", path.display());
                Err(Error::new(ErrorKind::Unsupported, context))
            }
        }
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        match self {
            Self::Raw(editor) => editor.info.clone(),
            Self::Vhd(writer) => writer.info(),
            Self::Vhdx(writer) => writer.info(),
            Self::Qcow2(editor) => editor.info.clone(),
        }
    }

    /// Makes everything durable and closes the image as its format wants it closed.
    pub fn finish(self) -> Result<()> {
        match self {
            Self::Raw(editor) => Ok(editor.file.flush()?),
            Self::Vhd(writer) => writer.finish(),
            Self::Vhdx(writer) => writer.finish(),
            Self::Qcow2(editor) => editor.writer.finish(),
        }
    }

    fn inner(&self) -> &dyn WriteAt {
        match self {
            Self::Raw(editor) => editor,
            Self::Vhd(writer) => &**writer,
            Self::Vhdx(writer) => &**writer,
            Self::Qcow2(editor) => &editor.writer,
        }
    }
}

impl ReadAt for ImageEditor {
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

impl WriteAt for ImageEditor {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        self.inner().write_at(offset, buffer)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        self.inner().zero_range(offset, length_bytes)
    }
    fn flush(&self) -> block::Result<()> {
        self.inner().flush()
    }
}

impl RawEditor {
    /// A host file grows when written behind its end; a disk does not.
    fn check_range(&self, offset: u64, length: u64) -> block::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.info.size_bytes => Ok(()),
            _ => Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!(
                    "raw: {length} bytes at {offset} of a disk of {}",
                    self.info.size_bytes
                ),
            )),
        }
    }
}

impl ReadAt for RawEditor {
    fn size_bytes(&self) -> u64 {
        self.info.size_bytes
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.file.read_at(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.file.extent_at(offset, limit_bytes)
    }
}

impl WriteAt for RawEditor {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        self.check_range(offset, u64::try_from(buffer.len()).unwrap_or(u64::MAX))?;
        self.file.write_at(offset, buffer)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        self.check_range(offset, length_bytes)?;
        self.file.zero_range(offset, length_bytes)
    }
    fn flush(&self) -> block::Result<()> {
        self.file.flush()
    }
}
