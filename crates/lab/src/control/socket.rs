//! Sockets in folders whose names are long, and lines that are not.
//!
//! **Invariants.** A path of a socket holds about 100 bytes; longer ones go by way of the folder's descriptor. A line that is
//! longer than its bound is refused before it is kept.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// What fits into an address, with room to spare.
const ADDRESS_MAX_BYTES: usize = 100;

/// A path that is short enough, and what must stay open while it is used.
fn shortened(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= ADDRESS_MAX_BYTES {
        return Ok((path.to_owned(), None));
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("no path of a socket"));
    };
    let folder = File::open(folder)?;
    let short = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name);
    Ok((short, Some(folder)))
}

pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    let (short, _open) = shortened(path)?;
    UnixListener::bind(short)
}

pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let (short, _open) = shortened(path)?;
    UnixStream::connect(short)
}

/// One line without its end; `None` at the end of the stream.
pub(super) fn read_line(reader: &mut impl BufRead, max_bytes: u64) -> io::Result<Option<String>> {
    let mut line = String::new();
    let read = reader.take(max_bytes).read_line(&mut line)?;
    if read == 0 {
        return Ok(None);
    }
    if !line.ends_with('\n') && u64::try_from(read).is_ok_and(|read| read >= max_bytes) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a line is too long",
        ));
    }
    Ok(Some(line.trim_end().to_owned()))
}
