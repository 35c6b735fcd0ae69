//! A disk with ranges left out on purpose: they are zero extents and are never read.

use crate::ranges::{ByteRange, ChangedRanges};
use crate::{Error, ErrorKind, Extent, ExtentKind, ReadAt, Result};

/// A source whose left-out ranges read as zeros.
pub struct LeftOut<S> {
    source: S,
    ranges: ChangedRanges,
}

impl<S: ReadAt> LeftOut<S> {
    /// Shows `source` without `ranges`.
    pub fn new(source: S, ranges: ChangedRanges) -> Self {
        Self { source, ranges }
    }

    /// The ranges.
    pub fn ranges(&self) -> &ChangedRanges {
        &self.ranges
    }
}

impl<S: ReadAt> ReadAt for LeftOut<S> {
    fn size_bytes(&self) -> u64 {
        self.source.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length_bytes = buffer.len() as u64;
        if offset
            .checked_add(length_bytes)
            .is_none_or(|end| end > self.size_bytes())
        {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "{} of {}",
                    ByteRange {
                        offset,
                        length_bytes
                    },
                    self.size_bytes()
                ),
            ));
        }
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let extent = self.extent_at(at, rest.len() as u64)?;
            let length = usize::try_from(extent.length_bytes).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at_mut(length.min(rest.len()));
            if extent.kind.is_zero() {
                part.fill(0);
            } else {
                self.source.read_at(at, part)?;
            }
            at = extent.end();
            rest = behind;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        let left = self.size_bytes().saturating_sub(offset).min(limit_bytes);
        match self.ranges.first_from(offset) {
            Some(range) if range.offset == offset && left > 0 => Ok(Extent {
                offset,
                length_bytes: range.length_bytes.min(left),
                kind: ExtentKind::Zero,
            }),
            Some(range) => self
                .source
                .extent_at(offset, limit_bytes.min(range.offset - offset)),
            None => self.source.extent_at(offset, limit_bytes),
        }
    }
}
