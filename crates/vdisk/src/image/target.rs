//! The builders of all formats behind one trait: which options each one gets, and what each one cannot do.
//!
//! | format | subformats | goes on after a crash |
//! |---|---|---|
//! | raw, VHD, VHDX | fixed, dynamic | yes |
//! | qcow2 | dynamic | yes |
//! | VMDK | dynamic (monolithicSparse), stream-optimized (ascending writes only) | no: begun anew |
//!
//! Differencing images are not built here: a restored disk stands alone.

use std::num::NonZeroUsize;
use std::sync::Arc;

use block::{ReadAt, WriteAt};

use super::{CreateOptions, ImageProfile, ImageWriter, WriteOrder};
use crate::qcow2::{Qcow2Builder, Qcow2Options};
use crate::vhdx::VhdxBuilder;
use crate::vmdk::{ContentId, SparseBuilder, StreamOptimizedWriter, VmdkOptions};
use crate::{DiskId, Error, ErrorKind, Format, ImageInfo, Result, Subformat, vhd, vhdx};

/// Grains of the VMDKs that are written.
const GRAIN_BYTES: u64 = 64 * 1024;

/// Begins an image of the wanted shape in an empty file.
pub(super) fn begin(
    file: Arc<dyn WriteAt>,
    options: &CreateOptions,
    name: &str,
) -> Result<Box<dyn ImageWriter>> {
    let profile = &options.profile;
    match (profile.format, profile.subformat) {
        (Format::Raw, Subformat::Fixed | Subformat::Dynamic) => {
            file.set_size(options.size_bytes)?;
            Ok(Box::new(RawWriter {
                file,
                size_bytes: options.size_bytes,
            }))
        }
        (Format::Vhd, Subformat::Fixed | Subformat::Dynamic) => Ok(Box::new(
            vhd::VhdBuilder::create(file, &vhd_options(options)?)?,
        )),
        (Format::Vhdx, Subformat::Fixed | Subformat::Dynamic) => Ok(Box::new(VhdxBuilder::create(
            file,
            &vhdx_options(options)?,
        )?)),
        (Format::Qcow2, Subformat::Dynamic) => {
            let builder = Qcow2Builder::create(file, &qcow2_options(options), None)?;
            Ok(Box::new(Qcow2Target {
                builder,
                size_bytes: options.size_bytes,
            }))
        }
        (Format::Vmdk, Subformat::Dynamic) => {
            let wanted = vmdk_options(options, name);
            let builder = SparseBuilder::create(file, &wanted)?;
            Ok(Box::new(VmdkTarget {
                builder,
                size_bytes: options.size_bytes,
            }))
        }
        (Format::Vmdk, Subformat::StreamOptimized) => {
            let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
            let wanted = vmdk_options(options, name);
            Ok(Box::new(StreamOptimizedWriter::create(
                file, &wanted, cores,
            )?))
        }
        (format, subformat) => {
            let context = format!("new images of format {format:?}, {subformat:?}");
            Err(Error::new(ErrorKind::Unsupported, context))
        }
    }
}

/// Goes on with an unfinished image.
pub(super) fn go_on(
    file: Arc<dyn WriteAt>,
    options: &CreateOptions,
) -> Result<Box<dyn ImageWriter>> {
    match options.profile.format {
        Format::Raw => {
            let size_bytes = file.size_bytes();
            Ok(Box::new(RawWriter { file, size_bytes }))
        }
        Format::Vhd => Ok(Box::new(vhd::VhdBuilder::resume(file)?)),
        Format::Vhdx => Ok(Box::new(VhdxBuilder::resume(file)?)),
        Format::Qcow2 => {
            let builder = Qcow2Builder::resume(file, None, None)?;
            let size_bytes = builder.size_bytes();
            Ok(Box::new(Qcow2Target {
                builder,
                size_bytes,
            }))
        }
        format => {
            let context = format!("going on with an image of format {format:?}");
            Err(Error::new(ErrorKind::Unsupported, context))
        }
    }
}

fn new_disk_id(options: &CreateOptions) -> DiskId {
    options
        .profile
        .disk_id
        .unwrap_or_else(|| DiskId(options.ids.next()))
}

/// The profile's unit of allocation in the 32 bits that both Microsoft formats have for it.
fn block_bytes(profile: &ImageProfile) -> Result<Option<u32>> {
    let Some(unit) = profile.allocation_unit_bytes else {
        return Ok(None);
    };
    u32::try_from(unit).map(Some).map_err(|error| {
        Error::with_source(ErrorKind::Invalid, format!("blocks of {unit} bytes"), error)
    })
}

fn vhd_options(options: &CreateOptions) -> Result<vhd::CreateOptions> {
    let profile = &options.profile;
    if profile.logical_sector_bytes != 512 {
        let context = format!("vhd with sectors of {} bytes", profile.logical_sector_bytes);
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    Ok(vhd::CreateOptions {
        size_bytes: options.size_bytes,
        allocation: match profile.subformat {
            Subformat::Fixed => vhd::Allocation::Fixed,
            _ => vhd::Allocation::Dynamic,
        },
        block_bytes: block_bytes(profile)?.unwrap_or(vhd::DEFAULT_BLOCK_BYTES),
        unique_id: new_disk_id(options),
        time: vhd::VhdTime::from_unix_seconds(options.unix_seconds),
    })
}

fn vhdx_options(options: &CreateOptions) -> Result<vhdx::CreateOptions> {
    let profile = &options.profile;
    let mut wanted = vhdx::CreateOptions::new(
        options.size_bytes,
        new_disk_id(options),
        options.ids.clone(),
    );
    wanted.allocation = match profile.subformat {
        Subformat::Fixed => vhdx::Allocation::Fixed,
        _ => vhdx::Allocation::Dynamic,
    };
    wanted.block_bytes = block_bytes(profile)?;
    wanted.logical_sector_bytes = profile.logical_sector_bytes;
    wanted.physical_sector_bytes = profile.physical_sector_bytes;
    Ok(wanted)
}

fn qcow2_options(options: &CreateOptions) -> Qcow2Options {
    let mut wanted = Qcow2Options::new(options.size_bytes);
    if let Some(unit) = options.profile.allocation_unit_bytes {
        wanted.cluster_bytes = unit;
    }
    wanted
}

fn vmdk_options(options: &CreateOptions, name: &str) -> VmdkOptions {
    // The two highest values have a meaning of their own.
    let (number, ..) = options.ids.next().as_fields();
    let cid = ContentId(number & 0x7FFF_FFFF);
    VmdkOptions {
        size_bytes: options.size_bytes,
        cid,
        name: name.to_owned(),
    }
}

/// What an image says about itself whose builder does not say it.
fn plain_info(format: Format, subformat: Subformat, size_bytes: u64, unit: u64) -> ImageInfo {
    ImageInfo {
        format,
        subformat,
        size_bytes,
        logical_sector_bytes: 512,
        physical_sector_bytes: 512,
        allocation_unit_bytes: Some(unit),
        disk_id: None,
        parent_paths: Vec::new(),
        has_pending_log: false,
        creator: None,
    }
}

/// A raw image being filled.
struct RawWriter {
    file: Arc<dyn WriteAt>,
    size_bytes: u64,
}

impl RawWriter {
    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "raw: {length} bytes at {offset} of a disk of {}",
                    self.size_bytes
                ),
            )),
        }
    }
}

impl ImageWriter for RawWriter {
    fn info(&self) -> ImageInfo {
        ImageInfo {
            size_bytes: self.size_bytes,
            ..crate::raw::RawReader::open(self.file.clone()).info()
        }
    }
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.check_range(offset, u64::try_from(buffer.len()).unwrap_or(u64::MAX))?;
        Ok(self.file.write_at(offset, buffer)?)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.check_range(offset, length_bytes)?;
        Ok(self.file.zero_range(offset, length_bytes)?)
    }
    fn flush(&self) -> Result<()> {
        Ok(self.file.flush()?)
    }
    fn finish(self: Box<Self>) -> Result<()> {
        Ok(self.file.flush()?)
    }
}

/// The builders have the same calls; their errors are of the layer below.
macro_rules! builder_is_writer {
    ($builder:ty) => {
        impl ImageWriter for $builder {
            fn info(&self) -> ImageInfo {
                <$builder>::info(self)
            }
            fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
                Ok(WriteAt::write_at(self, offset, buffer)?)
            }
            fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
                Ok(WriteAt::zero_range(self, offset, length_bytes)?)
            }
            fn flush(&self) -> Result<()> {
                Ok(WriteAt::flush(self)?)
            }
            fn finish(self: Box<Self>) -> Result<()> {
                <$builder>::finish(*self)
            }
        }
    };
}

builder_is_writer!(vhd::VhdBuilder);
builder_is_writer!(VhdxBuilder);

/// The builders whose headers know nothing of what an [`ImageInfo`] tells.
macro_rules! builder_with_info_is_writer {
    ($target:ident, $builder:ty, |$it:ident| $info:expr) => {
        /// A builder and what its image will say about itself.
        struct $target {
            builder: $builder,
            size_bytes: u64,
        }

        impl ImageWriter for $target {
            fn info(&self) -> ImageInfo {
                let $it = self;
                $info
            }
            fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
                Ok(WriteAt::write_at(&self.builder, offset, buffer)?)
            }
            fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
                Ok(WriteAt::zero_range(&self.builder, offset, length_bytes)?)
            }
            fn flush(&self) -> Result<()> {
                Ok(WriteAt::flush(&self.builder)?)
            }
            fn finish(self: Box<Self>) -> Result<()> {
                self.builder.finish()
            }
        }
    };
}

builder_with_info_is_writer!(Qcow2Target, Qcow2Builder, |it| {
    let unit = it.builder.header().cluster_bytes();
    plain_info(Format::Qcow2, Subformat::Dynamic, it.size_bytes, unit)
});
builder_with_info_is_writer!(VmdkTarget, SparseBuilder, |it| {
    plain_info(Format::Vmdk, Subformat::Dynamic, it.size_bytes, GRAIN_BYTES)
});

impl ImageWriter for StreamOptimizedWriter {
    fn info(&self) -> ImageInfo {
        plain_info(
            Format::Vmdk,
            Subformat::StreamOptimized,
            self.size_bytes(),
            GRAIN_BYTES,
        )
    }
    fn order(&self) -> WriteOrder {
        WriteOrder::Ascending
    }
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        Self::write_at(self, offset, buffer)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
        Self::zero_range(self, offset, length_bytes)
    }
    fn flush(&self) -> Result<()> {
        Self::flush(self)
    }
    fn finish(self: Box<Self>) -> Result<()> {
        Self::finish(*self)
    }
}
