//! A larger disk in the same image.
//!
//! | format | how far |
//! |---|---|
//! | raw | any whole number of sectors; a device has its size |
//! | VHD | fixed, dynamic, differencing; 2040 GiB |
//! | VHDX | fixed, dynamic, differencing; 64 TiB |
//! | qcow2 | what its clusters allow |
//!
//! **Invariants.** Planning changes nothing. A crash while it is executed leaves the old size or the new one and every byte
//! of the disk. What is new reads as zeros, whatever a parent has there. A disk is never made smaller.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{ReadAt, WriteAt};

use super::{ChainMode, Image, ImageReader, OpenOptions};
use crate::file::{FileAccess, HostFile};
use crate::vhdx::IdSource;
use crate::{Error, ErrorKind, Format, ImageInfo, Result, qcow2, vhd, vhdx};

/// What a resize will do.
#[derive(Debug, Clone)]
pub struct ResizePlan {
    path: PathBuf,
    info: ImageInfo,
    size_bytes: u64,
}

/// What a resize did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResizeReport {
    /// Bytes of the disk before.
    pub old_size_bytes: u64,
    /// Bytes of the disk now.
    pub size_bytes: u64,
    /// Bytes of the file before.
    pub old_file_bytes: u64,
    /// Bytes of the file now.
    pub file_bytes: u64,
}

impl ResizePlan {
    /// The image as it is.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// Bytes that the disk will have.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// Judges whether the image at `path` can have a disk of `size_bytes`.
///
/// # Errors
/// `Invalid` for a smaller disk, one that is no whole number of sectors or beyond the format's limit; `Unsupported` for
/// VMDK; as [`Image::open`].
pub fn plan_resize(path: &Path, size_bytes: u64, options: &OpenOptions) -> Result<ResizePlan> {
    let image = Image::open(path, &whole(options))?;
    plan_for(path, &image.info(), size_bytes)
}

fn whole(options: &OpenOptions) -> OpenOptions {
    OpenOptions {
        chain: ChainMode::Whole,
        ..options.clone()
    }
}

fn plan_for(path: &Path, info: &ImageInfo, size_bytes: u64) -> Result<ResizePlan> {
    let invalid = |why: String| {
        let context = format!("resizing {}: {why}", path.display());
        Err(Error::new(ErrorKind::Invalid, context))
    };
    let now = info.size_bytes;
    if size_bytes < now {
        let lost = now.saturating_sub(size_bytes);
        return invalid(format!(
            "the disk has {now} bytes; with {size_bytes} the last {lost} would be lost, and a disk is never made smaller"
        ));
    }
    let sector = u64::from(info.logical_sector_bytes).max(512);
    if !size_bytes.is_multiple_of(sector) {
        return invalid(format!(
            "{size_bytes} bytes are not a whole number of sectors of {sector}"
        ));
    }
    let most = match info.format {
        Format::Raw | Format::Qcow2 => i64::MAX.unsigned_abs(),
        Format::Vhd => vhd::MAX_DISK_BYTES,
        Format::Vhdx => vhdx::MAX_DISK_BYTES,
        Format::Vmdk => {
            let context = format!("resizing {}: VMDK is not written in place", path.display());
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
    };
    if size_bytes > most {
        return invalid(format!(
            "{size_bytes} bytes are more than the {most} that the format allows"
        ));
    }
    Ok(ResizePlan {
        path: path.to_owned(),
        info: info.clone(),
        size_bytes,
    })
}

/// Does what was planned. `options` are those of the plan; new ids that the format asks for come from `ids`.
///
/// # Errors
/// `Io`; as planning, when the image has changed since.
pub fn resize(plan: &ResizePlan, options: &OpenOptions, ids: &IdSource) -> Result<ResizeReport> {
    let path = &plan.path;
    let image = Image::open(path, &whole(options))?;
    let plan = &plan_for(path, &image.info(), plan.size_bytes)?;
    let parent = image.chain().get(1).map(|layer| {
        let parent: Arc<dyn ReadAt> = layer.reader().clone();
        parent
    });
    let file: Arc<dyn WriteAt> = Arc::new(HostFile::open(path, FileAccess::ReadWrite)?);
    let old_file_bytes = file.size_bytes();
    match image.chain().first().map(|leaf| &**leaf.reader()) {
        Some(ImageReader::Vhd(_)) => vhd::grow(&file, parent, plan.size_bytes)?,
        Some(ImageReader::Vhdx(_)) => vhdx::grow(&file, parent, plan.size_bytes, ids)?,
        Some(ImageReader::Qcow2(_)) => qcow2::grow(&file, parent, plan.size_bytes)?,
        Some(ImageReader::Raw(_)) => {
            file.set_size(plan.size_bytes)?;
            file.flush()?;
        }
        Some(ImageReader::Vmdk(_)) | None => {
            let context = format!("resizing {}: not written in place", path.display());
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
    }
    Ok(ResizeReport {
        old_size_bytes: plan.info.size_bytes,
        size_bytes: plan.size_bytes,
        old_file_bytes,
        file_bytes: file.size_bytes(),
    })
}
