//! The real files of disks: made, named as parents, told apart.
//!
//! **Invariants.** A child names its parent by identity, relative path and Windows path. A VHD has no place to name another
//! parent later: it is written again under its name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::WriteAt;
use uuid::Uuid;
use vdisk::convert::NoProgress;
use vdisk::file::{FileAccess, HostFile};
use vdisk::image::{ChainMode, Image, ImageReader, OpenOptions};
use vdisk::vhdx::{IdSource, ParentLocator};
use vdisk::{DiskId, Format, Subformat, merge, vhd, vhdx};

use super::clock::VirtualTime;
use super::disk::{DiskFacts, DiskFile, DiskFormat, DiskType, at_disk};
use super::path::WindowsPath;
use crate::{Error, Result, ReturnCode};

pub(super) fn beside(file: &Path, extension: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    file.with_file_name(name)
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

pub(super) fn make_file(
    disk: &DiskFile,
    parent: Option<&DiskFile>,
    ids: &IdSource,
    now: VirtualTime,
) -> Result<DiskFacts> {
    let facts = &disk.facts;
    let wrong = |error| at_disk("making", &disk.path)(error);
    let file: Arc<dyn WriteAt> = Arc::new(HostFile::create_new(&disk.backing).map_err(wrong)?);
    let relative = parent.map(|it| relative_path(&disk.backing, &it.backing));
    let reader = parent.map(leaf_reader).transpose()?;
    match facts.format {
        DiskFormat::Vhd => {
            let allocation = match (facts.disk_type, reader.as_deref(), parent) {
                (DiskType::Fixed, _, _) => vhd::Allocation::Fixed,
                (_, Some(ImageReader::Vhd(below)), Some(parent)) => {
                    vhd::Allocation::Differencing(vhd::ParentLink {
                        id: below.unique_id(),
                        time: below.time(),
                        relative_path: relative,
                        absolute_path: Some(parent.path.to_string()),
                    })
                }
                _ => vhd::Allocation::Dynamic,
            };
            let unique_id = match parent {
                Some(_) => ids.disk_id(),
                None => DiskId(facts.disk_id),
            };
            let options = vhd::CreateOptions {
                size_bytes: facts.size_bytes,
                allocation,
                block_bytes: facts.block_bytes,
                unique_id,
                time: vhd::VhdTime::from_unix_seconds(now.unix_seconds()),
            };
            vhd::create(&*file, &options).map_err(wrong)?;
            Ok(DiskFacts {
                disk_id: unique_id.0,
                ..facts.clone()
            })
        }
        DiskFormat::Vhdx | DiskFormat::VhdSet => {
            let mut options =
                vhdx::CreateOptions::new(facts.size_bytes, DiskId(facts.disk_id), ids.clone());
            options.block_bytes = Some(facts.block_bytes);
            options.logical_sector_bytes = facts.logical_sector_bytes;
            options.physical_sector_bytes = facts.physical_sector_bytes;
            options.allocation = match (facts.disk_type, reader.as_deref(), parent) {
                (DiskType::Fixed, _, _) => vhdx::Allocation::Fixed,
                (_, Some(ImageReader::Vhdx(below)), Some(parent)) => {
                    let link =
                        locator(below.data_write_id(), &relative.unwrap_or_default(), parent);
                    vhdx::Allocation::Differencing(link)
                }
                _ => vhdx::Allocation::Dynamic,
            };
            vhdx::create(&file, &options).map_err(wrong)?;
            Ok(facts.clone())
        }
    }
}

fn locator(write_id: vhdx::WriteId, relative: &str, parent: &DiskFile) -> ParentLocator {
    ParentLocator::new(write_id)
        .with(vhdx::RELATIVE_PATH, relative)
        .with(vhdx::ABSOLUTE_WIN32_PATH, parent.path.to_string())
}

fn leaf_reader(disk: &DiskFile) -> Result<Arc<ImageReader>> {
    let options = OpenOptions {
        chain: ChainMode::LeafOnly,
        ..disk.options()
    };
    let image = Image::open(&disk.backing, &options).map_err(at_disk("opening", &disk.path))?;
    image
        .chain()
        .first()
        .map(|layer| Arc::clone(layer.reader()))
        .ok_or_else(|| Error::invalid(format!("{} has no layer", disk.path)))
}

/// What changes whenever the bytes of the disk may have changed.
pub(super) fn stamp(disk: &DiskFile) -> Result<Option<Uuid>> {
    Ok(match &*leaf_reader(disk)? {
        ImageReader::Vhdx(reader) => Some(reader.data_write_id().0),
        ImageReader::Vhd(reader) => Some(reader.unique_id().0),
        _ => None,
    })
}

pub(super) fn facts_of(info: &vdisk::ImageInfo, path: &WindowsPath) -> Result<DiskFacts> {
    let format = match info.format {
        Format::Vhd => DiskFormat::Vhd,
        Format::Vhdx if path.extension() == "vhds" => DiskFormat::VhdSet,
        Format::Vhdx => DiskFormat::Vhdx,
        _ => {
            return Err(Error::returned(
                ReturnCode::NotSupported,
                format!("{path} is no VHD or VHDX"),
            ));
        }
    };
    let disk_type = match info.subformat {
        Subformat::Fixed => DiskType::Fixed,
        Subformat::Differencing => DiskType::Differencing,
        _ => DiskType::Dynamic,
    };
    let unit = info.allocation_unit_bytes.unwrap_or(0);
    Ok(DiskFacts {
        format,
        disk_type,
        size_bytes: info.size_bytes,
        block_bytes: u32::try_from(unit).unwrap_or(u32::MAX),
        logical_sector_bytes: info.logical_sector_bytes,
        physical_sector_bytes: info.physical_sector_bytes,
        disk_id: info.disk_id.map_or(Uuid::nil(), |id| id.0),
    })
}

/// The parent as seen from the child's folder, in Windows' form.
fn relative_path(child: &Path, parent: &Path) -> String {
    let empty = Path::new("");
    let mut from = child.parent().unwrap_or(empty).components().peekable();
    let mut to = parent.components().peekable();
    while from.peek().is_some() && from.peek() == to.peek() {
        from.next();
        to.next();
    }
    let mut parts: Vec<String> = from.map(|_| "..".to_owned()).collect();
    parts.extend(to.map(|part| part.as_os_str().to_string_lossy().into_owned()));
    format!(".\\{}", parts.join("\\"))
}

/// Makes a child name its parent anew. A VHDX has a place for that; a VHD is written again under its name.
pub(super) fn relink(child: &DiskFile, parent: &DiskFile, ids: &IdSource) -> Result<()> {
    let wrong = |error| at_disk("relinking", &child.path)(error);
    let relative = relative_path(&child.backing, &parent.backing);
    match &*leaf_reader(parent)? {
        ImageReader::Vhdx(below) => {
            let file: Arc<dyn WriteAt> =
                Arc::new(HostFile::open(&child.backing, FileAccess::ReadWrite).map_err(wrong)?);
            vhdx::relink(
                &file,
                &locator(below.data_write_id(), &relative, parent),
                ids,
            )
            .map_err(wrong)
        }
        ImageReader::Vhd(below) => {
            let own = leaf_reader(child)?;
            let ImageReader::Vhd(old) = &*own else {
                return Err(Error::invalid(format!("{} is no VHD", child.path)));
            };
            let fresh = beside(&child.backing, "relinked");
            remove_file(&fresh)?;
            let file: Arc<dyn WriteAt> = Arc::new(HostFile::create_new(&fresh).map_err(wrong)?);
            let options = vhd::CreateOptions {
                size_bytes: child.facts.size_bytes,
                allocation: vhd::Allocation::Differencing(vhd::ParentLink {
                    id: below.unique_id(),
                    time: below.time(),
                    relative_path: Some(relative),
                    absolute_path: Some(parent.path.to_string()),
                }),
                block_bytes: child.facts.block_bytes,
                unique_id: old.unique_id(),
                time: old.time(),
            };
            vhd::create(&*file, &options).map_err(wrong)?;
            let below: Arc<dyn block::ReadAt> = Arc::new(
                Image::open(&parent.backing, &parent.options())
                    .map_err(at_disk("opening", &parent.path))?,
            );
            let writer = vhd::VhdWriter::open(file, Some(below)).map_err(wrong)?;
            merge::copy_own(&*own, &writer, 0, &NoProgress).map_err(wrong)?;
            writer.finish().map_err(wrong)?;
            std::fs::rename(&fresh, &child.backing)
                .map_err(|error| Error::io(format!("renaming to {}", child.path), error))
        }
        _ => Err(Error::invalid(format!("{} has no children", parent.path))),
    }
}
