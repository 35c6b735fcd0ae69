//! A new, empty differencing image on a parent: what a hypervisor makes at a checkpoint.
//!
//! | format | names its parent by |
//! |---|---|
//! | VHDX | the parent's data write id, `relative_path` |
//! | VHD | the parent's unique id and time, `W2ru` path |
//! | qcow2 | a path, which is all that the format has |
//!
//! **Invariant.** The parent is only read. The child's sectors, size and identity are the parent's.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use block::WriteAt;

use super::{Image, ImageReader, OpenOptions};
use crate::file::HostFile;
use crate::qcow2::{self, BackingName, Qcow2Options};
use crate::vhd::{self, VhdTime};
use crate::vhdx::{self, IdSource, ParentLocator};
use crate::{DiskId, Error, ErrorKind, ImageInfo, Result, file};

/// What a new child shall be.
#[derive(Debug, Clone)]
pub struct ChildOptions {
    /// Unit of allocation; what the format's own tools choose when `None`.
    pub allocation_unit_bytes: Option<u64>,
    /// Where new ids come from.
    pub ids: IdSource,
    /// The time to record, in seconds since 1970.
    pub unix_seconds: u64,
}

/// Makes an empty child of the image at `parent`, in the parent's format. The child must not exist.
///
/// # Errors
/// `AlreadyExists`; `Unsupported` for a parent whose format has no children that we write; what opening the parent gives.
pub fn create_child(
    child: &Path,
    parent: &Path,
    open: &OpenOptions,
    options: &ChildOptions,
) -> Result<ImageInfo> {
    let image = Image::open(parent, open)?;
    let info = image.info();
    let leaf = image.chain().first().ok_or_else(|| {
        Error::new(
            ErrorKind::Invalid,
            format!("{} has no layer", parent.display()),
        )
    })?;
    let relative = path_from(child, parent)?;
    let make = || -> Result<Arc<dyn WriteAt>> { Ok(Arc::new(HostFile::create_new(child)?)) };
    match &**leaf.reader() {
        ImageReader::Vhdx(reader) => {
            let locator = ParentLocator::new(reader.data_write_id())
                .with("relative_path", windows_path(&relative));
            let mut creation =
                vhdx::CreateOptions::new(info.size_bytes, reader.disk_id(), options.ids.clone());
            creation.allocation = vhdx::Allocation::Differencing(locator);
            creation.block_bytes = unit_u32(options)?;
            creation.logical_sector_bytes = info.logical_sector_bytes;
            creation.physical_sector_bytes = info.physical_sector_bytes;
            vhdx::create(&make()?, &creation)?;
        }
        ImageReader::Vhd(reader) => {
            let link = vhd::ParentLink {
                id: reader.unique_id(),
                time: reader.time(),
                relative_path: Some(windows_path(&relative)),
                absolute_path: None,
            };
            let creation = vhd::CreateOptions {
                size_bytes: info.size_bytes,
                allocation: vhd::Allocation::Differencing(link),
                block_bytes: unit_u32(options)?.unwrap_or(vhd::DEFAULT_BLOCK_BYTES),
                unique_id: DiskId(options.ids.next()),
                time: VhdTime::from_unix_seconds(options.unix_seconds),
            };
            vhd::create(&*make()?, &creation)?;
        }
        ImageReader::Qcow2(_) => {
            let mut creation = Qcow2Options::new(info.size_bytes);
            creation.backing = Some(BackingName {
                path: relative.to_string_lossy().into_owned(),
                format: Some("qcow2".to_owned()),
            });
            if let Some(unit) = options.allocation_unit_bytes {
                creation.cluster_bytes = unit;
            }
            qcow2::create(make()?, &creation)?;
        }
        ImageReader::Raw(_) | ImageReader::Vmdk(_) => {
            let context = format!("children of {} images are not written", parent.display());
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
    }
    Ok(Image::open(child, open)?.info())
}

fn unit_u32(options: &ChildOptions) -> Result<Option<u32>> {
    let unit = options.allocation_unit_bytes.map(u32::try_from).transpose();
    unit.map_err(|_| Error::new(ErrorKind::Invalid, "an allocation unit of 4 GiB or more"))
}

/// The parent's path as seen from the child's directory.
fn path_from(child: &Path, parent: &Path) -> Result<PathBuf> {
    let parent =
        std::fs::canonicalize(parent).map_err(|e| file::at_path("resolving", parent, e))?;
    let directory = match child.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let directory =
        std::fs::canonicalize(directory).map_err(|e| file::at_path("resolving", directory, e))?;
    let mut from = directory.components().peekable();
    let mut to = parent.components().peekable();
    while from.peek().is_some() && from.peek() == to.peek() {
        from.next();
        to.next();
    }
    let up = from.map(|_| Component::ParentDir);
    Ok(up
        .chain(to)
        .map(|part| part.as_os_str().to_owned())
        .collect())
}

/// A relative path in Windows' form: `.\parent.vhdx`.
fn windows_path(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(OsStr::to_string_lossy).collect();
    format!(".\\{}", parts.join("\\"))
}
