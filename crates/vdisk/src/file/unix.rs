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

/// `RWF_DONTCACHE` of `linux/fs.h`: what this call brings into the page cache leaves it again.
#[cfg(target_os = "linux")]
const DONT_CACHE: rustix::io::ReadWriteFlags = rustix::io::ReadWriteFlags::from_bits_retain(0x80);

/// Whether the flag may be used: Linux 6.14 had it with a use after free, 6.15 was released with it switched off.
#[cfg(target_os = "linux")]
pub fn can_skip_cache() -> bool {
    static SOUND: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let system = rustix::system::uname();
        let release = system.release().to_string_lossy();
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
        (number(), number()) >= (Some(6), Some(16))
    });
    *SOUND
}

#[cfg(not(target_os = "linux"))]
pub fn can_skip_cache() -> bool {
    false
}

/// Whether kernel or file system do not know the flag, or the call.
#[cfg(target_os = "linux")]
fn is_refused(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)
}

/// Reads without leaving behind what nobody will read soon; `false` when nothing was read because the system cannot.
#[cfg(target_os = "linux")]
pub fn read_exact_uncached_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
    let read = loop {
        let whole = &mut [io::IoSliceMut::new(buffer)];
        match rustix::io::preadv2(file, whole, offset, DONT_CACHE) {
            Ok(read) => break read,
            Err(Errno::INTR) => {}
            Err(error) if is_refused(error) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    };
    // Seldom: a signal or the end of the file cut the call short. The usual way goes on, or says why not.
    let behind = offset.saturating_add(u64::try_from(read).unwrap_or(0));
    match buffer.split_at_mut_checked(read) {
        Some((_, [])) => Ok(true),
        Some((_, rest)) => file.read_exact_at(rest, behind).map(|()| true),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Writes so that the host's memory does not fill with what nobody will read soon; `false` when nothing was written
/// because the system cannot.
#[cfg(target_os = "linux")]
pub fn write_all_uncached_at(file: &File, offset: u64, buffer: &[u8]) -> io::Result<bool> {
    let written = loop {
        match rustix::io::pwritev2(file, &[io::IoSlice::new(buffer)], offset, DONT_CACHE) {
            Ok(written) => break written,
            Err(Errno::INTR) => {}
            Err(error) if is_refused(error) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    };
    // Seldom: a full disk or a signal cut the call short. The usual way goes on, or says why not.
    let behind = offset.saturating_add(u64::try_from(written).unwrap_or(0));
    match buffer.split_at_checked(written) {
        Some((_, rest)) => file.write_all_at(rest, behind).map(|()| true),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(not(target_os = "linux"))]
pub fn read_exact_uncached_at(_: &File, _: u64, _: &mut [u8]) -> io::Result<bool> {
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
pub fn write_all_uncached_at(_: &File, _: u64, _: &[u8]) -> io::Result<bool> {
    Ok(false)
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
        AccessPattern::Sequential | AccessPattern::Once => Advice::Sequential,
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
