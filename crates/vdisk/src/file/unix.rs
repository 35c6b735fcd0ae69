//! The calls that Unix has for positioned I/O, holes and advice.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use block::ExtentKind;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{AccessPattern, FileKind};

/// What the file is and how many bytes it has; a device tells its size only by seeking to its end.
pub fn measure(file: &File) -> io::Result<(FileKind, u64)> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        return Ok((
            FileKind::BlockDevice,
            rustix::fs::seek(file, SeekFrom::End(0))?,
        ));
    }
    if metadata.is_file() {
        return Ok((FileKind::Regular, metadata.len()));
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "neither a regular file nor a block device",
    ))
}

pub fn read_exact_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

pub fn write_all_at(file: &File, offset: u64, buffer: &[u8]) -> io::Result<()> {
    file.write_all_at(buffer, offset)
}

/// What lies at `offset`, and where that changes (`None`: not before the end).
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub fn next_change(file: &File, offset: u64) -> io::Result<(ExtentKind, Option<u64>)> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) if data > offset => Ok((ExtentKind::Unallocated, Some(data))),
        Ok(_) => Ok((
            ExtentKind::Data,
            Some(rustix::fs::seek(file, SeekFrom::Hole(offset))?),
        )),
        // No data behind the offset: a hole to the end.
        Err(Errno::NXIO) => Ok((ExtentKind::Unallocated, None)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub fn next_change(_: &File, _: u64) -> io::Result<(ExtentKind, Option<u64>)> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives the space back; the range reads as zeros afterwards and the size stays.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn punch(file: &File, offset: u64, length_bytes: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offset, length_bytes)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn punch(_: &File, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether the file system said that it does not do this at all, rather than that it failed.
pub fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || Errno::from_io_error(error).is_some_and(|errno| {
            matches!(
                errno,
                Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV
            )
        })
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub fn advise(file: &File, pattern: AccessPattern) {
    use rustix::fs::Advice;
    let advice = match pattern {
        AccessPattern::Normal => Advice::Normal,
        AccessPattern::Sequential => Advice::Sequential,
        AccessPattern::Random => Advice::Random,
    };
    // A hint that the kernel may refuse; reading is right either way.
    rustix::fs::fadvise(file, 0, None, advice).unwrap_or(());
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub fn advise(_: &File, _: AccessPattern) {}

pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
