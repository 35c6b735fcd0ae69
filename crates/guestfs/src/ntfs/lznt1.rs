//! LZNT1, the compression of compressed files (\[MS-XCA\] 2.5).
//!
//! ```text
//!  chunk = u16: bit 15 compressed │ 14..12 = 3 │ 11..0 bytes behind it - 1, then at most 4096 bytes of output
//!  compressed = (flags: u8, then 8 × literal byte | u16 phrase)*     phrase: distance - 1 │ length - 3
//! ```
//!
//! How many bits of a phrase are distance grows with what the chunk has given so far.

use crate::{Error, Result, field};

const CHUNK_BYTES: usize = 4096;

/// Unpacks a unit; what its chunks do not give is zeros.
pub(super) fn decompress(packed: &[u8], unit_bytes: usize) -> Result<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(unit_bytes);
    let mut rest = packed;
    while unpacked.len() < unit_bytes && rest.len() >= 2 {
        let header = field::u16_le(rest, 0)?;
        if header == 0 {
            break;
        }
        let size = usize::from(header & 0x0FFF).saturating_add(1);
        let chunk = field::slice(rest, 2, size)?;
        rest = rest.get(size.saturating_add(2)..).unwrap_or_default();
        let start = unpacked.len();
        let end = start.saturating_add(CHUNK_BYTES).min(unit_bytes);
        if header & 0x8000 == 0 {
            unpacked.extend_from_slice(chunk);
        } else {
            chunk_into(chunk, &mut unpacked, start, end)?;
        }
        if unpacked.len() > end {
            return Err(Error::corrupt("a chunk of LZNT1 that gives too much"));
        }
        unpacked.resize(end, 0);
    }
    unpacked.resize(unit_bytes, 0);
    Ok(unpacked)
}

fn chunk_into(chunk: &[u8], unpacked: &mut Vec<u8>, start: usize, end: usize) -> Result<()> {
    let mut at = 0;
    while let Some(&flags) = chunk.get(at) {
        at = at.saturating_add(1);
        for bit in 0..8_u32 {
            if at >= chunk.len() {
                return Ok(());
            }
            if flags & 1_u8.wrapping_shl(bit) == 0 {
                unpacked.push(field::u8_at(chunk, at)?);
                at = at.saturating_add(1);
            } else {
                let phrase = field::u16_le(chunk, at)?;
                at = at.saturating_add(2);
                copy_phrase(phrase, unpacked, start, end)?;
            }
            if unpacked.len() > end {
                return Err(Error::corrupt("a chunk of LZNT1 that gives too much"));
            }
        }
    }
    Ok(())
}

fn copy_phrase(phrase: u16, unpacked: &mut Vec<u8>, start: usize, end: usize) -> Result<()> {
    let given = unpacked.len().saturating_sub(start);
    let last = given
        .checked_sub(1)
        .ok_or_else(|| Error::corrupt("a phrase of LZNT1 before any byte"))?;
    // 4 bits of distance for the first 16 bytes, one more for each doubling.
    let widening = (last >> 4)
        .checked_ilog2()
        .map_or(0, |log| log.saturating_add(1));
    let distance =
        usize::from(phrase.wrapping_shr(12_u32.saturating_sub(widening))).saturating_add(1);
    let count = usize::from(phrase & 0x0FFF_u16.wrapping_shr(widening)).saturating_add(3);
    if distance > given || unpacked.len().saturating_add(count) > end {
        return Err(Error::corrupt(
            "a phrase of LZNT1 that reaches outside its chunk",
        ));
    }
    repeat(unpacked, distance, count)
}

/// Puts `count` bytes behind, each a copy of the one `distance` before it.
pub(super) fn repeat(bytes: &mut Vec<u8>, distance: usize, count: usize) -> Result<()> {
    let outside = || Error::corrupt("a copy from before the beginning");
    let from = bytes.len().checked_sub(distance).ok_or_else(outside)?;
    if distance >= count {
        bytes.extend_from_within(from..from.saturating_add(count));
        return Ok(());
    }
    for step in 0..count {
        let byte = bytes
            .get(from.saturating_add(step))
            .copied()
            .ok_or_else(outside)?;
        bytes.push(byte);
    }
    Ok(())
}
