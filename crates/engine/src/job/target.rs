//! An existing image or device, opened for writing in place.

use std::path::Path;
use std::sync::Arc;

use block::WriteAt;
use vdisk::file::{FileAccess, HostFile};
use vdisk::image::probe;
use vdisk::qcow2::Qcow2Writer;
use vdisk::vhd::VhdWriter;
use vdisk::vhdx::{IdSource, VhdxWriter};
use vdisk::{Format, Subformat};

use crate::{Error, ErrorKind, Result};

/// A disk that is written in place.
pub(crate) enum InPlaceTarget {
    Raw(HostFile),
    Vhdx(VhdxWriter),
    Vhd(VhdWriter),
    Qcow2(Qcow2Writer),
}

impl InPlaceTarget {
    pub(crate) fn disk(&self) -> &dyn WriteAt {
        match self {
            Self::Raw(file) => file,
            Self::Vhdx(writer) => writer,
            Self::Vhd(writer) => writer,
            Self::Qcow2(writer) => writer,
        }
    }

    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Self::Raw(file) => Ok(file.flush()?),
            Self::Vhdx(writer) => Ok(writer.finish()?),
            Self::Vhd(writer) => Ok(writer.finish()?),
            Self::Qcow2(writer) => Ok(writer.finish()?),
        }
    }
}

/// Opens an image that stands alone, of the format that the caller says or that its content shows.
pub(crate) fn open_in_place(
    path: &Path,
    format: Option<Format>,
    ids: &IdSource,
) -> Result<InPlaceTarget> {
    let file = HostFile::open(path, FileAccess::ReadWrite)?;
    let format = match format {
        Some(format) => format,
        None => probe(&file)?,
    };
    if format != Format::Raw {
        refuse_child(path, format)?;
    }
    let shared = |file: HostFile| -> Arc<dyn WriteAt> { Arc::new(file) };
    match format {
        Format::Raw => Ok(InPlaceTarget::Raw(file)),
        Format::Vhdx => Ok(InPlaceTarget::Vhdx(VhdxWriter::open(
            shared(file),
            None,
            ids.clone(),
        )?)),
        Format::Vhd => Ok(InPlaceTarget::Vhd(VhdWriter::open(shared(file), None)?)),
        Format::Qcow2 => Ok(InPlaceTarget::Qcow2(Qcow2Writer::open(shared(file), None)?)),
        Format::Vmdk => {
            let what = format!("{}: a VMDK cannot be written in place", path.display());
            Err(Error::new(ErrorKind::Unsupported, what))
        }
    }
}

/// Writing into a child without its parents would need them to be read; writing into a parent breaks its children. Only
/// images that stand alone are written.
fn refuse_child(path: &Path, format: Format) -> Result<()> {
    let options = vdisk::OpenOptions {
        format: vdisk::image::FormatHint::Exactly(format),
        chain: vdisk::image::ChainMode::LeafOnly,
        ..vdisk::OpenOptions::default()
    };
    let info = vdisk::Image::open(path, &options)?.info();
    if info.subformat == Subformat::Differencing || !info.parent_paths.is_empty() {
        let what = format!(
            "{} has a parent: restore into a new image instead",
            path.display()
        );
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    Ok(())
}

/// Whether the target is there and is neither a file nor a folder.
pub(crate) fn is_device(target: &Path) -> bool {
    std::fs::metadata(target).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// Bytes free for a new file at `target`, when the system tells; devices have the room that they have.
pub(crate) fn free_bytes(target: &Path) -> Option<u64> {
    if is_device(target) {
        return None;
    }
    let directory = target.parent().filter(|path| !path.as_os_str().is_empty());
    free_in(directory.unwrap_or(Path::new(".")))
}

#[cfg(unix)]
fn free_in(directory: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(directory).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_in(_: &Path) -> Option<u64> {
    None
}
