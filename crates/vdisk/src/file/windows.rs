//! The calls that Windows has for positioned I/O. Holes are neither seen nor made here.

use std::fs::File;
use std::io;
use std::os::windows::fs::FileExt;
use std::path::Path;

use block::ExtentKind;

use super::{AccessPattern, FileKind};

pub fn measure(file: &File) -> io::Result<(FileKind, u64)> {
    Ok((FileKind::Regular, file.metadata()?.len()))
}

pub fn read_exact_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let (mut at, mut rest) = (offset, buffer);
    while !rest.is_empty() {
        let count = match file.seek_read(rest, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let (_, behind) = rest.split_at_mut(count);
        rest = behind;
        at = at.saturating_add(count as u64);
    }
    Ok(())
}

pub fn write_all_at(file: &File, offset: u64, buffer: &[u8]) -> io::Result<()> {
    let (mut at, mut rest) = (offset, buffer);
    while !rest.is_empty() {
        let count = match file.seek_write(rest, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let (_, behind) = rest.split_at(count);
        rest = behind;
        at = at.saturating_add(count as u64);
    }
    Ok(())
}

pub fn can_skip_cache() -> bool {
    false
}

/// Windows decides that when a file is opened, not at a read.
pub fn read_exact_uncached_at(_: &File, _: u64, _: &mut [u8]) -> io::Result<bool> {
    Ok(false)
}

/// Windows decides that when a file is opened, not at a write.
pub fn write_all_uncached_at(_: &File, _: u64, _: &[u8]) -> io::Result<bool> {
    Ok(false)
}

pub fn next_change(_: &File, _: u64) -> io::Result<(ExtentKind, Option<u64>)> {
    Err(io::ErrorKind::Unsupported.into())
}

pub fn punch(_: &File, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

pub fn advise(_: &File, _: AccessPattern) {}

/// NTFS journals its directories; there is no handle to flush.
pub fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}
