//! Readers that put a volume together from pieces of other readers.
//!
//! ```text
//!   Window   ░░░[ part of one source ]░░░
//!   Concat   [ source ][ source ][ absent: an error that names it ][ source ]
//!   Absent   so many bytes that nobody has
//!   Zeros    so many bytes that nobody wrote
//! ```
//!
//! **Invariants.** The sizes are settled when a reader is made; a range behind the end is refused. Pieces never overlap.
//! What a piece knows without reading (its extents) is handed through.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use std::sync::Arc;

use block::{Extent, ExtentKind, Origin, ReadAt};

use crate::Result;

/// Bytes from which volumes are made; shared, since several volumes may lie on one disk.
pub type Source = Arc<dyn ReadAt>;

/// Reads `length` bytes, which the caller has bounded, at `offset`.
pub(crate) fn read_exact(source: &dyn ReadAt, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    source.read_at(offset, &mut buffer)?;
    Ok(buffer)
}

/// The same; what lies behind the end of the source reads as zeros.
pub(crate) fn read_head(source: &dyn ReadAt, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    block::read_padded(source, offset, &mut buffer)?;
    Ok(buffer)
}

/// The bytes of a buffer as a distance on a disk.
pub(crate) fn distance(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Refuses what reaches behind the end.
pub(crate) fn check_range(offset: u64, length_bytes: u64, size_bytes: u64) -> block::Result<()> {
    match offset.checked_add(length_bytes) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(block::Error::new(
            block::ErrorKind::OutOfRange,
            format!("{length_bytes} bytes at {offset} of a volume of {size_bytes}"),
        )),
    }
}

/// Refuses an extent that begins behind the end, and says how long it may be at most.
pub(crate) fn check_extent(offset: u64, limit_bytes: u64, size_bytes: u64) -> block::Result<u64> {
    let longest = size_bytes.saturating_sub(offset).min(limit_bytes);
    if longest == 0 {
        return Err(block::Error::new(
            block::ErrorKind::OutOfRange,
            format!("extent at {offset} of a volume of {size_bytes}"),
        ));
    }
    Ok(longest)
}

/// How long an origin from here on may be at most; none behind the end.
pub(crate) fn origin_limit(offset: u64, limit_bytes: u64, size_bytes: u64) -> Option<u64> {
    Some(size_bytes.saturating_sub(offset).min(limit_bytes)).filter(|longest| *longest > 0)
}

/// A part of a source.
pub struct Window {
    source: Source,
    offset: u64,
    size_bytes: u64,
}

impl Window {
    /// At most `size_bytes` from `offset` on: what of that lies behind the end of the source is cut off.
    pub fn new(source: Source, offset: u64, size_bytes: u64) -> Self {
        let left = source.size_bytes().saturating_sub(offset);
        Self {
            source,
            offset,
            size_bytes: size_bytes.min(left),
        }
    }
}

impl ReadAt for Window {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, distance(buffer.len()), self.size_bytes)?;
        self.source
            .read_at(self.offset.saturating_add(offset), buffer)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let limit = check_extent(offset, limit_bytes, self.size_bytes)?;
        let inner = self
            .source
            .extent_at(self.offset.saturating_add(offset), limit)?;
        Ok(Extent {
            offset,
            length_bytes: inner.length_bytes.min(limit),
            kind: inner.kind,
        })
    }

    fn origin_at(&self, offset: u64, limit_bytes: u64) -> Option<Origin> {
        let limit = origin_limit(offset, limit_bytes, self.size_bytes)?;
        self.source
            .origin_at(self.offset.checked_add(offset)?, limit)
    }
}

/// Bytes that nobody has: every read names what is missing.
pub struct Absent {
    name: String,
    size_bytes: u64,
}

impl Absent {
    /// `name` says what is missing: "disk 3 of the group".
    pub fn new(name: impl Into<String>, size_bytes: u64) -> Self {
        Self {
            name: name.into(),
            size_bytes,
        }
    }
}

impl ReadAt for Absent {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, distance(buffer.len()), self.size_bytes)?;
        if buffer.is_empty() {
            return Ok(());
        }
        Err(block::Error::new(
            block::ErrorKind::NotFound,
            format!("{} is missing", self.name),
        ))
    }
}

/// Bytes that nobody wrote.
pub struct Zeros {
    size_bytes: u64,
}

impl Zeros {
    /// So many.
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes }
    }
}

impl ReadAt for Zeros {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, distance(buffer.len()), self.size_bytes)?;
        buffer.fill(0);
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        Ok(Extent {
            offset,
            length_bytes: check_extent(offset, limit_bytes, self.size_bytes)?,
            kind: ExtentKind::Unallocated,
        })
    }
}

/// Sources one behind the other.
pub struct Concat {
    /// First byte in the volume, and what lies there; ascending, without gaps.
    parts: Vec<(u64, Source)>,
    size_bytes: u64,
}

impl Concat {
    /// In this order; empty ones are left out.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when they are longer together than any disk can be.
    pub fn new(sources: impl IntoIterator<Item = Source>) -> Result<Self> {
        let mut parts = Vec::new();
        let mut size_bytes = 0_u64;
        for source in sources {
            let length = source.size_bytes();
            if length == 0 {
                continue;
            }
            parts.push((size_bytes, source));
            size_bytes = size_bytes
                .checked_add(length)
                .ok_or_else(|| crate::Error::corrupt("a volume longer than every disk"))?;
        }
        Ok(Self { parts, size_bytes })
    }

    /// The part that holds `offset`, and where in it.
    fn part_at(&self, offset: u64) -> block::Result<(&Source, u64)> {
        let after = self.parts.partition_point(|(start, _)| *start <= offset);
        after
            .checked_sub(1)
            .and_then(|at| self.parts.get(at))
            .map(|(start, source)| (source, offset.saturating_sub(*start)))
            .ok_or_else(|| {
                block::Error::new(
                    block::ErrorKind::OutOfRange,
                    format!("nothing lies at {offset} of the volume"),
                )
            })
    }
}

impl ReadAt for Concat {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, distance(buffer.len()), self.size_bytes)?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (source, inside) = self.part_at(at)?;
            let here = take(source.size_bytes().saturating_sub(inside), &mut rest);
            source.read_at(inside, here)?;
            at = at.saturating_add(distance(here.len()));
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let limit = check_extent(offset, limit_bytes, self.size_bytes)?;
        let (source, inside) = self.part_at(offset)?;
        let inner = source.extent_at(inside, limit)?;
        Ok(Extent { offset, ..inner })
    }

    fn origin_at(&self, offset: u64, limit_bytes: u64) -> Option<Origin> {
        let limit = origin_limit(offset, limit_bytes, self.size_bytes)?;
        let (source, inside) = self.part_at(offset).ok()?;
        source.origin_at(inside, limit)
    }
}

/// Takes at most `longest` bytes (at least one, so that loops end) off the front of what is left of a buffer.
pub(crate) fn take<'a>(longest: u64, rest: &mut &'a mut [u8]) -> &'a mut [u8] {
    let length = usize::try_from(longest.max(1))
        .unwrap_or(usize::MAX)
        .min(rest.len());
    let (here, behind) = std::mem::take(rest).split_at_mut(length);
    *rest = behind;
    here
}
