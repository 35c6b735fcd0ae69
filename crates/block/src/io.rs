//! Positioned reading and writing, and what is known about a range without reading it.
//!
//! A file, a VHDX, a chain of checkpoints and a version in the repository are all the same shape: so many bytes,
//! readable at any offset from any thread.

use crate::{Error, ErrorKind, Result};

/// What lies in a range, as far as its owner knows without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Bytes that must be read to be known.
    Data,
    /// Reads as zeros, and was said to be zero (zeroed, unmapped, trimmed).
    Zero,
    /// Reads as zeros because nothing was ever written there.
    Unallocated,
    /// Nothing here: the parent image answers. Only an image looked at without its chain reports this.
    InParent,
}

impl ExtentKind {
    /// Whether the range is known to read as zeros.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Zero | Self::Unallocated)
    }
}

/// A run of bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// How many bytes, never zero.
    pub length_bytes: u64,
    /// What lies there.
    pub kind: ExtentKind,
}

impl Extent {
    /// The first byte behind the run.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length_bytes)
    }
}

/// Where a run of bytes of something that was put together lies below: on a disk, byte for byte and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// First byte on the disk.
    pub disk_offset: u64,
    /// How many bytes, never zero.
    pub length_bytes: u64,
}

/// Bytes readable by position, from any thread at once.
///
/// An implementer **must** answer every range inside `size_bytes` with exactly the bytes there or an error, and refuse
/// a range that reaches behind it with [`ErrorKind::OutOfRange`]. It **may rely on** nothing about alignment.
/// It must **never** panic on any content, nor use memory in proportion to the disk.
pub trait ReadAt: Send + Sync {
    /// Size in bytes. May grow while a writer has the same object open.
    fn size_bytes(&self) -> u64;

    /// Fills the whole buffer from `offset` on.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// The extent that begins at `offset`: at most `limit_bytes` long (which is at least one), and possibly shorter
    /// than what lies there, never reaching behind the end. Its cost is bounded by what it describes, never by the disk.
    /// A plain source knows nothing and says `Data`.
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        let left = self.size_bytes().saturating_sub(offset);
        if left == 0 || limit_bytes == 0 {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("extent at {offset} of {}", self.size_bytes()),
            ));
        }
        Ok(Extent {
            offset,
            length_bytes: left.min(limit_bytes),
            kind: ExtentKind::Data,
        })
    }

    /// Where the bytes from `offset` on lie on the disk below: at most `limit_bytes` of them. `None` when that is not known,
    /// or when they do not stand there as they are, or when the disk holds more of them than this one copy (a mirror, a
    /// parity): whoever writes to the place told would break nothing else. A disk below says so itself; most know nothing.
    fn origin_at(&self, offset: u64, limit_bytes: u64) -> Option<Origin> {
        let _ = (offset, limit_bytes);
        None
    }
}

/// Bytes writable by position.
///
/// A write is visible to the next read at once, and durable when a later [`WriteAt::flush`] has returned.
pub trait WriteAt: ReadAt {
    /// Writes the whole buffer at `offset`. Inside a disk the range must lie inside its size; a host file grows.
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()>;

    /// Makes a range read as zeros, giving space back where the format can.
    fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()>;

    /// Sets the size of a host file; a virtual disk refuses with [`ErrorKind::Unsupported`].
    fn set_size(&self, size_bytes: u64) -> Result<()> {
        let _ = size_bytes;
        Err(Error::new(ErrorKind::Unsupported, "this cannot be resized"))
    }

    /// Makes every earlier write durable.
    fn flush(&self) -> Result<()>;
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        (**self).extent_at(offset, limit_bytes)
    }
    fn origin_at(&self, offset: u64, limit_bytes: u64) -> Option<Origin> {
        (**self).origin_at(offset, limit_bytes)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for std::sync::Arc<T> {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        (**self).extent_at(offset, limit_bytes)
    }
    fn origin_at(&self, offset: u64, limit_bytes: u64) -> Option<Origin> {
        (**self).origin_at(offset, limit_bytes)
    }
}

impl<T: WriteAt + ?Sized> WriteAt for std::sync::Arc<T> {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        (**self).write_at(offset, buffer)
    }
    fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
        (**self).zero_range(offset, length_bytes)
    }
    fn set_size(&self, size_bytes: u64) -> Result<()> {
        (**self).set_size(size_bytes)
    }
    fn flush(&self) -> Result<()> {
        (**self).flush()
    }
}

/// Reads what of the range lies inside the source and zeroes the rest of the buffer: how the last block is padded.
pub fn read_padded(source: &(impl ReadAt + ?Sized), offset: u64, buffer: &mut [u8]) -> Result<()> {
    let left = source.size_bytes().saturating_sub(offset);
    let inside = usize::try_from(left)
        .unwrap_or(usize::MAX)
        .min(buffer.len());
    let (head, tail) = buffer.split_at_mut(inside);
    tail.fill(0);
    if head.is_empty() {
        Ok(())
    } else {
        source.read_at(offset, head)
    }
}
