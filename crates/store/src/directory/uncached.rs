//! Large reads and writes that do not fill the host's memory with what nobody will read soon.
//!
//! ```text
//!   Linux 6.16 and later, file systems that can:  preadv2, pwritev2 with RWF_DONTCACHE: written back at once, then dropped
//!   elsewhere, small lengths:                     pread, pwrite
//! ```
//!
//! A backup that goes through the page cache evicts what the host's real work needs, and pays for every fresh page: here
//! that was two thirds of the processor time of writing a pack. The flag is a hint about caching and changes nothing
//! about what is durable when; the caller syncs as ever.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Smaller bodies may well be read again soon, and cost nothing.
const MIN_BYTES: usize = 1 << 20;
/// Smaller reads are of one file or one node.
const MIN_READ_BYTES: usize = 512 << 10;
/// `RWF_DONTCACHE` of `linux/fs.h`.
#[cfg(target_os = "linux")]
const DONT_CACHE: rustix::io::ReadWriteFlags = rustix::io::ReadWriteFlags::from_bits_retain(0x80);
/// Whether the flag may be used: Linux 6.14 had it with a use after free, 6.15 was released with it switched off.
#[cfg(target_os = "linux")]
fn is_sound_here() -> bool {
    static SOUND: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let system = rustix::system::uname();
        let release = system.release().to_string_lossy();
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
        (number(), number()) >= (Some(6), Some(16))
    });
    *SOUND
}

/// Bytes of one call: enough to keep the disk busy, few enough that writing back begins early.
const STEP_BYTES: usize = 1 << 20;

/// Writes a whole body at the start of a new file.
///
/// # Errors
/// Those of writing.
pub(super) fn write_all(file: &File, body: &[u8]) -> io::Result<()> {
    let done = if body.len() < MIN_BYTES {
        0
    } else {
        write_dropping(file, body)?
    };
    let rest = body.get(done..).unwrap_or_default();
    file.write_all_at(rest, done as u64)
}

/// Reads a whole buffer.
///
/// # Errors
/// Those of reading; `UnexpectedEof` when the file ends before.
pub(super) fn read_exact_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let done = if buffer.len() < MIN_READ_BYTES {
        0
    } else {
        read_dropping(file, offset, buffer)?
    };
    let rest = buffer.get_mut(done..).unwrap_or_default();
    file.read_exact_at(rest, offset.saturating_add(done as u64))
}

/// Reads what one call gives; nothing when the system refuses the flag.
#[cfg(target_os = "linux")]
fn read_dropping(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    use rustix::io::Errno;
    if !is_sound_here() {
        return Ok(0);
    }
    match rustix::io::preadv2(file, &mut [io::IoSliceMut::new(buffer)], offset, DONT_CACHE) {
        Ok(read) => Ok(read),
        Err(Errno::INTR | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn read_dropping(_: &File, _: u64, _: &mut [u8]) -> io::Result<usize> {
    Ok(0)
}

/// Writes as much as can be written uncached: all, or nothing more from the moment the system refuses the flag.
#[cfg(target_os = "linux")]
fn write_dropping(file: &File, body: &[u8]) -> io::Result<usize> {
    use rustix::io::Errno;
    if !is_sound_here() {
        return Ok(0);
    }
    let mut done = 0;
    while let Some(rest) = body.get(done..).filter(|rest| !rest.is_empty()) {
        let step = io::IoSlice::new(rest.get(..STEP_BYTES).unwrap_or(rest));
        match rustix::io::pwritev2(file, &[step], done as u64, DONT_CACHE) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            // Of those who do not know the flag, or the call.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

#[cfg(not(target_os = "linux"))]
fn write_dropping(_: &File, _: &[u8]) -> io::Result<usize> {
    Ok(0)
}
