//! XPRESS with Huffman codes (\[MS-XCA\] 2.1, 2.2), one block: a chunk of a file that Windows compressed for space.
//!
//! ```text
//!  256 bytes: the lengths of 512 codes, 4 bits each │ words of bits, with bytes of long lengths between them
//!  symbol < 256: a byte;   otherwise a copy: bits 3..0 length - 3 (15: more follows), 7..4 bits of the distance
//! ```

use super::huffman::{BitReader, HuffmanCode};
use super::lznt1::repeat;
use crate::{Error, Result, field};

const LENGTHS_BYTES: usize = 256;

/// Unpacks one chunk, which must give exactly `size` bytes.
pub(super) fn decompress(packed: &[u8], size: usize) -> Result<Vec<u8>> {
    let lengths: Vec<u8> = field::slice(packed, 0, LENGTHS_BYTES)?
        .iter()
        .flat_map(|byte| [byte & 15, byte >> 4])
        .collect();
    let code = HuffmanCode::new(&lengths)?;
    let mut reader = BitReader::new(packed.get(LENGTHS_BYTES..).unwrap_or_default());
    let mut unpacked = Vec::with_capacity(size);
    while unpacked.len() < size {
        let symbol = code.decode(&mut reader)?;
        if let Ok(byte) = u8::try_from(symbol) {
            unpacked.push(byte);
        } else {
            // The bytes of a length stand behind the words taken so far, which are as many as leave 16 bits.
            reader.need(16);
            let mut count = symbol & 15;
            if count == 15 {
                count = long_count(&mut reader)?;
            }
            let count = count.saturating_add(3);
            let bits = u32::try_from(symbol >> 4 & 15).unwrap_or(0);
            let distance = reader.bits(bits) | 1_usize.wrapping_shl(bits);
            if unpacked.len().saturating_add(count) > size {
                return Err(Error::corrupt("a chunk of XPRESS that gives too much"));
            }
            repeat(&mut unpacked, distance, count)?;
        }
        if reader.is_exhausted() {
            return Err(Error::corrupt("a chunk of XPRESS that ends too early"));
        }
    }
    Ok(unpacked)
}

fn long_count(reader: &mut BitReader<'_>) -> Result<usize> {
    let byte = reader.byte()?;
    if byte < 255 {
        return Ok(usize::from(byte).saturating_add(15));
    }
    let count = usize::from(field::u16_le(reader.take(2)?, 0)?);
    if count < 15 {
        return Err(Error::corrupt(
            "a length of XPRESS that needed no second form",
        ));
    }
    Ok(count)
}
