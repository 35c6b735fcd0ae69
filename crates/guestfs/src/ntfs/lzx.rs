//! LZX as WIM images and compressed system files use it: chunks of 32 KiB, each on its own.
//!
//! ```text
//!  chunk = block*      block = kind (3 bits) │ 1: 32 KiB, 0: size in 16 bits │ codes │ symbols
//!  kind 1 verbatim: main code, length code           main symbol < 256: a byte
//!  kind 2 aligned:  the same, and a code for the     otherwise bits 2..0 length - 2 (7: the length code tells more),
//!                   low 3 bits of far distances                the rest: slot of the distance, 0..=2 one of the last three
//!  kind 3 raw:      three distances, bytes
//! ```
//!
//! Lengths of codes are told as differences from those of the block before. At the end, targets of x86 calls (0xE8), which the
//! packer made absolute, become relative again; the size of the file counts as 12 000 000 whatever it is.
//!
//! Sources: \[MS-PATCH\] for LZX, the WIM format as the wimlib project describes it.

use super::huffman::{BitReader, HuffmanCode};
use super::lznt1::repeat;
use crate::{Error, Result, field};

/// Bytes of a chunk, which are the window, too.
const WINDOW_BYTES: usize = 32 << 10;
const SLOTS: usize = 30;
const MAIN_SYMBOLS: usize = 256 + SLOTS * 8;
const LENGTH_SYMBOLS: usize = 249;
const CALL: u8 = 0xE8;
const CALL_FILE_BYTES: i32 = 12_000_000;

/// Unpacks one chunk, which must give exactly `size` bytes.
pub(super) fn decompress(packed: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut decoder = Decoder {
        reader: BitReader::new(packed),
        unpacked: Vec::with_capacity(size.min(WINDOW_BYTES)),
        main_lengths: vec![0; MAIN_SYMBOLS],
        length_lengths: vec![0; LENGTH_SYMBOLS],
        recent: [1; 3],
        size,
    };
    while decoder.unpacked.len() < size {
        decoder.block()?;
    }
    let mut unpacked = decoder.unpacked;
    restore_calls(&mut unpacked);
    Ok(unpacked)
}

struct Decoder<'a> {
    reader: BitReader<'a>,
    unpacked: Vec<u8>,
    main_lengths: Vec<u8>,
    length_lengths: Vec<u8>,
    recent: [usize; 3],
    size: usize,
}

impl Decoder<'_> {
    fn block(&mut self) -> Result<()> {
        let kind = self.reader.bits(3);
        let size = if self.reader.bits(1) == 1 {
            WINDOW_BYTES
        } else {
            self.reader.bits(16)
        };
        let end = self.unpacked.len().saturating_add(size);
        if size == 0 || end > self.size {
            return Err(Error::corrupt(format!("a block of LZX of {size} bytes")));
        }
        let aligned = match kind {
            1 => None,
            2 => {
                let mut lengths = [0; 8];
                for length in &mut lengths {
                    *length = u8::try_from(self.reader.bits(3)).unwrap_or(0);
                }
                Some(HuffmanCode::new(&lengths)?)
            }
            3 => return self.raw(size),
            _ => return Err(Error::corrupt(format!("a block of LZX of kind {kind}"))),
        };
        let (bytes, copies) = self.main_lengths.split_at_mut(256);
        read_lengths(&mut self.reader, bytes)?;
        read_lengths(&mut self.reader, copies)?;
        read_lengths(&mut self.reader, &mut self.length_lengths)?;
        let main = HuffmanCode::new(&self.main_lengths)?;
        let lengths = HuffmanCode::new(&self.length_lengths)?;
        while self.unpacked.len() < end {
            let symbol = main.decode(&mut self.reader)?;
            if let Ok(byte) = u8::try_from(symbol) {
                self.unpacked.push(byte);
            } else {
                self.copy(symbol.saturating_sub(256), &lengths, aligned.as_ref(), end)?;
            }
            if self.reader.is_exhausted() {
                return Err(Error::corrupt("a chunk of LZX that ends too early"));
            }
        }
        Ok(())
    }

    fn copy(
        &mut self,
        symbol: usize,
        lengths: &HuffmanCode,
        aligned: Option<&HuffmanCode>,
        end: usize,
    ) -> Result<()> {
        let mut count = symbol & 7;
        if count == 7 {
            count = count.saturating_add(lengths.decode(&mut self.reader)?);
        }
        let count = count.saturating_add(2);
        let slot = symbol >> 3;
        let distance = if slot < 3 {
            let distance = self.recent.get(slot).copied().unwrap_or(1);
            // The chosen one changes places with the first; the third is not moved up.
            self.recent.swap(0, slot);
            distance
        } else {
            let distance = self.far_distance(slot, aligned)?;
            self.recent.rotate_right(1);
            self.recent = [distance, self.recent[1], self.recent[2]];
            distance
        };
        if self.unpacked.len().saturating_add(count) > end {
            return Err(Error::corrupt(
                "a copy of LZX that reaches behind its block",
            ));
        }
        repeat(&mut self.unpacked, distance, count)
    }

    fn far_distance(&mut self, slot: usize, aligned: Option<&HuffmanCode>) -> Result<usize> {
        let extra = u32::try_from((slot >> 1).saturating_sub(1)).unwrap_or(0);
        // Slots come in pairs of equal width; 3 stands alone before them.
        let base = if slot < 4 {
            slot
        } else {
            (2 | (slot & 1)).wrapping_shl(extra)
        };
        let extra = if slot < 4 { 0 } else { extra };
        let bits = match aligned {
            Some(code) if extra >= 3 => {
                let high = self.reader.bits(extra.saturating_sub(3)).wrapping_shl(3);
                high | code.decode(&mut self.reader)?
            }
            _ => self.reader.bits(extra),
        };
        Ok(base.saturating_add(bits).saturating_sub(2))
    }

    fn raw(&mut self, size: usize) -> Result<()> {
        self.reader.skip_to_word();
        let head = self.reader.take(12)?;
        for (recent, at) in self.recent.iter_mut().zip([0, 4, 8]) {
            *recent = usize::try_from(field::u32_le(head, at)?).unwrap_or(usize::MAX);
        }
        let bytes = self.reader.take(size)?;
        self.unpacked.extend_from_slice(bytes);
        if size % 2 == 1 && self.unpacked.len() < self.size {
            self.reader.byte()?;
        }
        Ok(())
    }
}

/// New lengths of codes, told as differences from the old ones.
fn read_lengths(reader: &mut BitReader<'_>, lengths: &mut [u8]) -> Result<()> {
    let mut pretree = [0; 20];
    for length in &mut pretree {
        *length = u8::try_from(reader.bits(4)).unwrap_or(0);
    }
    let pretree = HuffmanCode::new(&pretree)?;
    let mut at = 0;
    while at < lengths.len() {
        let symbol = pretree.decode(reader)?;
        let (run, difference) = match symbol {
            17 => (reader.bits(4).saturating_add(4), None),
            18 => (reader.bits(5).saturating_add(20), None),
            19 => {
                let run = reader.bits(1).saturating_add(4);
                (run, Some(pretree.decode(reader)?))
            }
            _ => (1, Some(symbol)),
        };
        let old = lengths.get(at).copied().unwrap_or(0);
        let new = match difference {
            None => 0,
            Some(difference @ 0..=16) => {
                let sum = usize::from(old)
                    .saturating_add(17)
                    .saturating_sub(difference);
                u8::try_from(sum % 17).unwrap_or(0)
            }
            Some(_) => return Err(Error::corrupt("a run of runs in lengths of LZX")),
        };
        let end = at.saturating_add(run);
        let Some(part) = lengths.get_mut(at..end) else {
            // A run may reach behind the end only in damage: the two halves are told apart on purpose.
            return Err(Error::corrupt("more lengths of LZX than there are codes"));
        };
        part.fill(new);
        at = end;
    }
    Ok(())
}

/// Makes the absolute targets of calls relative again.
fn restore_calls(bytes: &mut [u8]) {
    let Some(end) = bytes.len().checked_sub(10) else {
        return;
    };
    let mut at = 0;
    while at < end {
        if bytes.get(at) != Some(&CALL) {
            at = at.saturating_add(1);
            continue;
        }
        let position = i32::try_from(at).unwrap_or(i32::MAX);
        let first = at.saturating_add(1);
        if let Some(target) = bytes
            .get_mut(first..)
            .and_then(|rest| rest.first_chunk_mut::<4>())
        {
            let absolute = i32::from_le_bytes(*target);
            if (0..CALL_FILE_BYTES).contains(&absolute) {
                *target = absolute.wrapping_sub(position).to_le_bytes();
            } else if absolute < 0 && absolute >= position.wrapping_neg() {
                *target = absolute.wrapping_add(CALL_FILE_BYTES).to_le_bytes();
            }
        }
        at = at.saturating_add(5);
    }
}
