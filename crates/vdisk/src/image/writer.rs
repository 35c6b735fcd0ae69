//! Making a new image of any format: what conversion and restore write into.
//!
//! ```text
//!   create ─► .NAME.partial ── write_at / zero_range … flush ──► finish: whole, durable ─► renamed to NAME, directory synced
//!                  └───────────── resume after a crash ◄────┘        dropped: the partial file stays, to go on with
//! ```
//!
//! [`create_on`] does the same in a file that the caller opened, wherever that lies; names are then the caller's.
//!
//! **Invariants.** Under its own name an image is either whole or not there. What was never written reads as zeros.
//! A block device has no other name: it is written in place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::WriteAt;

use super::target;
use crate::file::{self, FileAccess, FileKind, HostFile};
use crate::vhdx::IdSource;
use crate::{DiskId, Error, ErrorKind, Format, ImageInfo, Result, Subformat};

/// In which order a writer takes its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOrder {
    /// Any, from any thread.
    Any,
    /// From the beginning to the end, one call after the other.
    Ascending,
}

/// A new image being filled.
pub trait ImageWriter: Send + Sync {
    /// What the image will say about itself.
    fn info(&self) -> ImageInfo;

    /// In which order it takes its bytes.
    fn order(&self) -> WriteOrder {
        WriteOrder::Any
    }

    /// Writes the whole buffer at `offset`, inside the disk.
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()>;

    /// Makes a range read as zeros. What was never written need not be zeroed.
    fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()>;

    /// Makes every earlier write durable: [`resume`] finds it.
    fn flush(&self) -> Result<()>;

    /// Makes the image whole, durable, and known under its name.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// The shape of an image: what a restored disk shall have in common with its source. Plain values, for the caller to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageProfile {
    /// The file format.
    pub format: Format,
    /// How it takes its space. A differencing image comes back whole, as a dynamic one.
    pub subformat: Subformat,
    /// Smallest unit the guest addresses: 512 or 4096.
    pub logical_sector_bytes: u32,
    /// Smallest unit the guest believes the medium writes: 512 or 4096.
    pub physical_sector_bytes: u32,
    /// Unit of allocation; what the format's own tools choose when `None`.
    pub allocation_unit_bytes: Option<u64>,
    /// Identity of the virtual disk; a new one when `None`.
    pub disk_id: Option<DiskId>,
}

impl ImageProfile {
    /// The usual shape of a format: dynamic, 512-byte sectors (4096 physical for VHDX), a new identity.
    pub fn of(format: Format) -> Self {
        let (subformat, physical_sector_bytes) = match format {
            Format::Raw => (Subformat::Fixed, 512),
            Format::Vhdx => (Subformat::Dynamic, 4096),
            Format::Vmdk => (Subformat::StreamOptimized, 512),
            Format::Vhd | Format::Qcow2 => (Subformat::Dynamic, 512),
        };
        Self {
            format,
            subformat,
            logical_sector_bytes: 512,
            physical_sector_bytes,
            allocation_unit_bytes: None,
            disk_id: None,
        }
    }
}

impl From<&ImageInfo> for ImageProfile {
    fn from(info: &ImageInfo) -> Self {
        Self {
            format: info.format,
            subformat: match info.subformat {
                Subformat::Differencing => Subformat::Dynamic,
                other => other,
            },
            logical_sector_bytes: info.logical_sector_bytes,
            physical_sector_bytes: info.physical_sector_bytes,
            allocation_unit_bytes: info.allocation_unit_bytes,
            disk_id: info.disk_id,
        }
    }
}

/// What happens to a file that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IfExists {
    /// It stays, and creating is refused.
    #[default]
    Refuse,
    /// It is replaced, at the moment when the new image is whole.
    Replace,
}

/// What a new image shall be.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Its shape.
    pub profile: ImageProfile,
    /// What happens to a file that has the name already.
    pub if_exists: IfExists,
    /// Where new ids come from.
    pub ids: IdSource,
    /// The time to record, in seconds since 1970.
    pub unix_seconds: u64,
}

/// Where an unfinished image lies: `.NAME.partial`, beside the name it will have.
pub fn partial_path(target: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".partial");
    target.with_file_name(name)
}

/// Removes an unfinished image; not an error when there is none.
pub fn discard_partial(target: &Path) -> Result<()> {
    let partial = partial_path(target);
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(file::at_path("removing", &partial, error))
        }
        _ => Ok(()),
    }
}

/// Begins a new image. A partial file left by an earlier attempt is replaced; a refusal leaves none.
pub fn create(target: &Path, options: &CreateOptions) -> Result<Box<dyn ImageWriter>> {
    if let Some(device) = open_device(target)? {
        let file: Arc<dyn WriteAt> = device.clone();
        let builder = target::begin(file, options, &file_name(target))?;
        return Ok(Box::new(DeviceWriter {
            inner: builder,
            device,
        }));
    }
    refuse_existing(target, options.if_exists)?;
    discard_partial(target)?;
    let file: Arc<dyn WriteAt> = Arc::new(HostFile::create_new(&partial_path(target))?);
    match target::begin(file, options, &file_name(target)) {
        Ok(inner) => Ok(publish(inner, target, options)),
        Err(error) => {
            // The first error is the one to tell; a partial file that cannot be removed is replaced by the next attempt.
            discard_partial(target).unwrap_or(());
            Err(error)
        }
    }
}

/// Goes on with the image that [`create`] began and a crash interrupted: all that was written before the last flush is
/// there; what was written later is to be written again, zeros included.
pub fn resume(target: &Path, options: &CreateOptions) -> Result<Box<dyn ImageWriter>> {
    if open_device(target)?.is_some() {
        let context = format!("{} is a device: it is begun anew", target.display());
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    refuse_existing(target, options.if_exists)?;
    let partial = partial_path(target);
    let file: Arc<dyn WriteAt> = Arc::new(HostFile::open(&partial, FileAccess::ReadWrite)?);
    let inner = go_on(file, options, &partial.display())?;
    Ok(publish(inner, target, options))
}

/// Begins a new image in an empty file that the caller made, anywhere. The file is no image before `finish`, and it is durable
/// after it; giving it the name that it shall have is the caller's.
///
/// # Errors
/// `AlreadyExists` when the file is not empty, `Unsupported` for VMDK, which repeats its file's name, and what the
/// format cannot do.
pub fn create_on(file: Arc<dyn WriteAt>, options: &CreateOptions) -> Result<Box<dyn ImageWriter>> {
    if file.size_bytes() != 0 {
        let context = format!("the file has {} bytes already", file.size_bytes());
        return Err(Error::new(ErrorKind::AlreadyExists, context));
    }
    if options.profile.format == Format::Vmdk {
        let context = "a VMDK in a file without a name";
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    target::begin(file, options, "")
}

/// Goes on with the image that [`create_on`] began in a file, as [`resume`] does.
pub fn resume_on(file: Arc<dyn WriteAt>, options: &CreateOptions) -> Result<Box<dyn ImageWriter>> {
    go_on(file, options, &"the unfinished file")
}

/// Goes on with an unfinished image, if it is the one that is wanted.
fn go_on(
    file: Arc<dyn WriteAt>,
    options: &CreateOptions,
    place: &dyn std::fmt::Display,
) -> Result<Box<dyn ImageWriter>> {
    let inner = target::go_on(file, options)?;
    let info = inner.info();
    if info.size_bytes == options.size_bytes && info.format == options.profile.format {
        return Ok(inner);
    }
    let context = format!(
        "{place} is of {} bytes in {:?}, wanted are {} in {:?}",
        info.size_bytes, info.format, options.size_bytes, options.profile.format
    );
    Err(Error::new(ErrorKind::Invalid, context))
}

/// The name that some formats repeat inside the file.
fn file_name(target: &Path) -> String {
    target
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn publish(
    inner: Box<dyn ImageWriter>,
    target: &Path,
    options: &CreateOptions,
) -> Box<dyn ImageWriter> {
    Box::new(PublishingWriter {
        inner,
        target: target.to_owned(),
        if_exists: options.if_exists,
    })
}

fn refuse_existing(target: &Path, if_exists: IfExists) -> Result<()> {
    if if_exists == IfExists::Replace || std::fs::symlink_metadata(target).is_err() {
        return Ok(());
    }
    let context = format!("{} is already there", target.display());
    Err(Error::new(ErrorKind::AlreadyExists, context))
}

/// The target when it is a block device.
fn open_device(target: &Path) -> Result<Option<Arc<HostFile>>> {
    match std::fs::metadata(target) {
        Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => {
            let file = HostFile::open(target, FileAccess::ReadWrite)?;
            Ok((file.kind() == FileKind::BlockDevice).then(|| Arc::new(file)))
        }
        _ => Ok(None),
    }
}

/// Writes under the partial name and renames at the end.
struct PublishingWriter {
    inner: Box<dyn ImageWriter>,
    target: PathBuf,
    if_exists: IfExists,
}

impl ImageWriter for PublishingWriter {
    fn info(&self) -> ImageInfo {
        self.inner.info()
    }
    fn order(&self) -> WriteOrder {
        self.inner.order()
    }
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.inner.write_at(offset, buffer)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.inner.zero_range(offset, length_bytes)
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn finish(self: Box<Self>) -> Result<()> {
        self.inner.finish()?;
        refuse_existing(&self.target, self.if_exists)?;
        let partial = partial_path(&self.target);
        std::fs::rename(&partial, &self.target)
            .map_err(|error| file::at_path("renaming", &partial, error))?;
        let directory = self.target.parent().filter(|it| !it.as_os_str().is_empty());
        file::sync_directory(directory.unwrap_or(Path::new(".")))
    }
}

/// Writes straight onto a block device, which is as big as it is.
struct DeviceWriter {
    inner: Box<dyn ImageWriter>,
    device: Arc<HostFile>,
}

impl ImageWriter for DeviceWriter {
    fn info(&self) -> ImageInfo {
        self.inner.info()
    }
    fn order(&self) -> WriteOrder {
        self.inner.order()
    }
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.inner.write_at(offset, buffer)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.inner.zero_range(offset, length_bytes)
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn finish(self: Box<Self>) -> Result<()> {
        self.inner.finish()?;
        Ok(self.device.flush()?)
    }
}
