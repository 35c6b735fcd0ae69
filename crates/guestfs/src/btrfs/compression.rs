//! What is packed: zlib and Zstandard streams, and LZO1X in the frame that Btrfs gives it.
//!
//! ```text
//!   LZO frame: length·4 │ (length·4 segment)…      a segment unpacks to one sector at most; no length crosses a sector's end
//! ```
//!
//! **Invariants.** Nothing grows beyond what the extent says it holds. What a stream does not give is zeros, as Linux has
//! it.

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

use std::io::Read;

use crate::{Error, Result, field};

/// How an extent is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Zlib,
    Lzo,
    Zstd,
}

impl Packing {
    /// By its number in an extent; none for what is not packed.
    pub(super) fn of(number: u8) -> Result<Option<Self>> {
        Ok(match number {
            0 => None,
            1 => Some(Self::Zlib),
            2 => Some(Self::Lzo),
            3 => Some(Self::Zstd),
            other => {
                return Err(Error::unsupported(format!("compression of kind {other}")));
            }
        })
    }

    /// Unpacks to exactly `length` bytes, which the caller has bounded.
    pub(super) fn unpack(
        self,
        packed: &[u8],
        length: usize,
        sector_bytes: usize,
    ) -> Result<Vec<u8>> {
        let mut bytes = match self {
            Self::Zlib => zlib(packed, length)?,
            Self::Lzo => lzo_frame(packed, length, sector_bytes)?,
            Self::Zstd => zstd(packed, length)?,
        };
        bytes.resize(length, 0);
        Ok(bytes)
    }
}

fn zlib(packed: &[u8], length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut stream = flate2::Decompress::new(true);
    stream
        .decompress(packed, &mut bytes, flate2::FlushDecompress::Finish)
        .map_err(|error| Error::corrupt("a zlib stream").caused_by(error))?;
    bytes.truncate(usize::try_from(stream.total_out()).unwrap_or(0));
    Ok(bytes)
}

fn zstd(packed: &[u8], length: usize) -> Result<Vec<u8>> {
    let wrong = |error: std::io::Error| Error::corrupt("a Zstandard stream").caused_by(error);
    let mut stream = zstd::stream::read::Decoder::with_buffer(packed)
        .map_err(wrong)?
        .single_frame();
    // Btrfs writes windows of 128 KiB; nothing larger can be needed.
    stream.window_log_max(20).map_err(wrong)?;
    let mut bytes = Vec::with_capacity(length);
    stream
        .take(field::bytes(length))
        .read_to_end(&mut bytes)
        .map_err(wrong)?;
    Ok(bytes)
}

fn lzo_frame(packed: &[u8], length: usize, sector_bytes: usize) -> Result<Vec<u8>> {
    let number = |at| -> Result<usize> {
        Ok(usize::try_from(field::u32_le(packed, at)?).unwrap_or(usize::MAX))
    };
    let end = number(0)?;
    if end > packed.len() {
        return Err(Error::corrupt(format!(
            "an LZO frame of {end} bytes in {}",
            packed.len()
        )));
    }
    let mut at = 4_usize;
    let mut bytes = Vec::with_capacity(length);
    while at < end && bytes.len() < length {
        let left = sector_bytes.saturating_sub(at.checked_rem(sector_bytes).unwrap_or(0));
        if left < 4 {
            at = at.saturating_add(left);
            continue;
        }
        let size = number(at)?;
        at = at.saturating_add(4);
        let segment = field::slice(packed, at, size)?;
        at = at.saturating_add(size);
        let room = length.saturating_sub(bytes.len()).min(sector_bytes);
        let start = bytes.len();
        lzo(segment, &mut bytes, room)?;
        // A short segment ends a sector: what follows begins at the next.
        if bytes.len() < length && bytes.len().saturating_sub(start) < room && at < end {
            bytes.resize(start.saturating_add(room), 0);
        }
    }
    Ok(bytes)
}

/// The input of LZO1X.
struct Bytes<'b> {
    left: &'b [u8],
}

impl<'b> Bytes<'b> {
    fn next(&mut self) -> Result<usize> {
        let (first, rest) = (self.left.split_first()).ok_or_else(|| wrong("it ends too early"))?;
        self.left = rest;
        Ok(usize::from(*first))
    }

    fn next_two(&mut self) -> Result<usize> {
        Ok(self.next()? | self.next()? << 8)
    }

    fn take(&mut self, count: usize) -> Result<&'b [u8]> {
        let (head, rest) = (self.left)
            .split_at_checked(count)
            .ok_or_else(|| wrong("it ends too early"))?;
        self.left = rest;
        Ok(head)
    }

    /// A length whose short form is zero: `base`, 255 for each zero that follows, and the byte behind them.
    fn long(&mut self, short: usize, base: usize) -> Result<usize> {
        if short != 0 {
            return Ok(short);
        }
        let mut length = base;
        loop {
            match self.next()? {
                0 => length = length.saturating_add(255),
                last => return Ok(length.saturating_add(last)),
            }
        }
    }
}

fn wrong(what: &str) -> Error {
    Error::corrupt(format!("an LZO stream: {what}"))
}

/// Appends what an LZO1X stream holds, at most `room` bytes.
fn lzo(packed: &[u8], bytes: &mut Vec<u8>, room: usize) -> Result<()> {
    let start = bytes.len();
    let limit = start.saturating_add(room);
    let mut input = Bytes { left: packed };
    // How many literals came last: 0 to 3, or 4 for a long run.
    let mut state = 0;
    let first = input.left.first().copied().map_or(0, usize::from);
    if first > 17 {
        input.next()?;
        let count = first.saturating_sub(17);
        literals(&mut input, bytes, count, limit)?;
        state = count.min(4);
    }
    loop {
        let code = input.next()?;
        let (length, distance, next) = match code {
            0..=15 if state == 0 => {
                let count = input.long(code, 15)?.saturating_add(3);
                literals(&mut input, bytes, count, limit)?;
                state = 4;
                continue;
            }
            0..=15 => {
                let far = input.next()? << 2 | code >> 2;
                if state == 4 {
                    (3, far.saturating_add(2049), code & 3)
                } else {
                    (2, far.saturating_add(1), code & 3)
                }
            }
            16..=31 => {
                let length = input.long(code & 7, 7)?.saturating_add(2);
                let word = input.next_two()?;
                let far = (code & 8) << 11 | word >> 2;
                if far == 0 {
                    return Ok(());
                }
                (length, far.saturating_add(16_384), word & 3)
            }
            32..=63 => {
                let length = input.long(code & 31, 31)?.saturating_add(2);
                let word = input.next_two()?;
                (length, (word >> 2).saturating_add(1), word & 3)
            }
            _ => {
                let length = if code < 128 {
                    (code >> 5 & 1).saturating_add(3)
                } else {
                    (code >> 5 & 3).saturating_add(5)
                };
                let far = input.next()? << 3 | code >> 2 & 7;
                (length, far.saturating_add(1), code & 3)
            }
        };
        repeat(bytes, start, length, distance, limit)?;
        literals(&mut input, bytes, next, limit)?;
        state = next;
    }
}

fn literals(input: &mut Bytes<'_>, bytes: &mut Vec<u8>, count: usize, limit: usize) -> Result<()> {
    if bytes.len().saturating_add(count) > limit {
        return Err(wrong("it holds more than a sector"));
    }
    bytes.extend_from_slice(input.take(count)?);
    Ok(())
}

fn repeat(
    bytes: &mut Vec<u8>,
    start: usize,
    length: usize,
    distance: usize,
    limit: usize,
) -> Result<()> {
    if bytes.len().saturating_add(length) > limit {
        return Err(wrong("it holds more than a sector"));
    }
    let from = (bytes.len().checked_sub(distance))
        .filter(|from| *from >= start)
        .ok_or_else(|| wrong("it repeats what was not there"))?;
    for at in (from..).take(length) {
        let byte = bytes.get(at).copied();
        bytes.push(byte.ok_or_else(|| wrong("it repeats what was not there"))?);
    }
    Ok(())
}
