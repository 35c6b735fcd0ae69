//! Bits in little-endian words of 16, and canonical Huffman codes: what XPRESS and LZX share.
//!
//! The most significant bit of a word comes first. Behind the end of the input zeros follow: the formats end by the count of
//! what they give.

use crate::{Error, Result};

/// The longest code of both formats.
pub(super) const MAX_CODE_BITS: u32 = 16;
/// Codes up to here are looked up at once.
const FAST_BITS: u32 = 10;

pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, from the top.
    buffer: u64,
    available: u32,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            buffer: 0,
            available: 0,
        }
    }

    /// Makes at least this many bits (16 at most) available, taking as few words as that needs.
    pub(super) fn need(&mut self, count: u32) {
        while self.available < count {
            let word = match self.bytes.get(self.at..).unwrap_or_default() {
                [low, high, ..] => u16::from_le_bytes([*low, *high]),
                [low] => u16::from(*low),
                [] => 0,
            };
            self.at = self.at.saturating_add(2);
            self.buffer |= u64::from(word).wrapping_shl(48_u32.saturating_sub(self.available));
            self.available = self.available.saturating_add(16);
        }
    }

    fn top(&self, count: u32) -> usize {
        if count == 0 {
            return 0;
        }
        let bits = self.buffer.wrapping_shr(64_u32.saturating_sub(count));
        usize::try_from(bits).unwrap_or(0)
    }

    fn drop_bits(&mut self, count: u32) {
        self.buffer = self.buffer.wrapping_shl(count);
        self.available = self.available.saturating_sub(count);
    }

    /// The next bits, 16 at most.
    pub(super) fn bits(&mut self, count: u32) -> usize {
        self.need(count);
        let bits = self.top(count);
        self.drop_bits(count);
        bits
    }

    /// A byte that stands between the words, behind those taken so far.
    pub(super) fn byte(&mut self) -> Result<u8> {
        let byte = self.bytes.get(self.at).copied();
        self.at = self.at.saturating_add(1);
        byte.ok_or_else(|| Error::corrupt("packed bytes end too early"))
    }

    /// Bytes that stand between the words.
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.saturating_add(count);
        let bytes = self
            .bytes
            .get(self.at..end)
            .ok_or_else(|| Error::corrupt("packed bytes end too early"))?;
        self.at = end;
        Ok(bytes)
    }

    /// Goes to the next word, skipping a whole one when it stands at a word's beginning already.
    pub(super) fn skip_to_word(&mut self) {
        self.need(1);
        let skipped = match self.available % 16 {
            0 => 16,
            odd => odd,
        };
        let words = self.available.saturating_sub(skipped) / 16;
        self.at = self
            .at
            .saturating_sub(usize::try_from(words).unwrap_or(0).saturating_mul(2));
        self.buffer = 0;
        self.available = 0;
    }

    /// Whether more was taken than there is, by more than a reader takes ahead.
    pub(super) fn is_exhausted(&self) -> bool {
        self.at > self.bytes.len().saturating_add(4)
    }
}

/// A canonical code: shorter codes first, equal ones in the order of their symbols.
pub(super) struct HuffmanCode {
    /// `symbol << 5 | bits` by the next [`FAST_BITS`]; 0 where the code is longer or none.
    fast: Vec<u32>,
    /// How many codes have each length.
    counts: [u32; 17],
    /// All symbols that have a code, in the order of their codes.
    symbols: Vec<u16>,
}

impl HuffmanCode {
    /// The code with these lengths, 0 for symbols that have none.
    pub(super) fn new(lengths: &[u8]) -> Result<Self> {
        let mut counts = [0_u32; 17];
        for length in lengths {
            let count = counts
                .get_mut(usize::from(*length))
                .ok_or_else(|| Error::corrupt("a Huffman code longer than 16 bits"))?;
            *count = count.saturating_add(1);
        }
        if let Some(unused) = counts.first_mut() {
            *unused = 0;
        }
        let mut room = 1_u32;
        for count in counts.iter().skip(1) {
            room = room
                .wrapping_shl(1)
                .checked_sub(*count)
                .ok_or_else(|| Error::corrupt("more Huffman codes than there can be"))?;
        }
        let mut order: Vec<(u8, u16)> = lengths
            .iter()
            .zip(0_u16..)
            .filter(|(length, _)| **length != 0)
            .map(|(length, symbol)| (*length, symbol))
            .collect();
        order.sort_unstable();
        let mut fast = Vec::with_capacity(1 << FAST_BITS);
        for (length, symbol) in &order {
            let bits = u32::from(*length);
            if bits > FAST_BITS {
                break;
            }
            let entry = u32::from(*symbol).wrapping_shl(5) | bits;
            let repeats = 1_usize.wrapping_shl(FAST_BITS.saturating_sub(bits));
            fast.resize(fast.len().saturating_add(repeats), entry);
        }
        fast.resize(1 << FAST_BITS, 0);
        Ok(Self {
            fast,
            counts,
            symbols: order.into_iter().map(|(_, symbol)| symbol).collect(),
        })
    }

    /// The next symbol.
    pub(super) fn decode(&self, reader: &mut BitReader<'_>) -> Result<usize> {
        reader.need(MAX_CODE_BITS);
        let entry = self.fast.get(reader.top(FAST_BITS)).copied().unwrap_or(0);
        if entry != 0 {
            reader.drop_bits(entry & 31);
            return Ok(usize::try_from(entry >> 5).unwrap_or(0));
        }
        let mut first = 0_usize;
        let mut index = 0_usize;
        for (bits, count) in (0_u32..).zip(self.counts).skip(1) {
            let count = usize::try_from(count).unwrap_or(0);
            first = first.wrapping_shl(1);
            let inside = reader.top(bits).wrapping_sub(first);
            if inside < count {
                reader.drop_bits(bits);
                return self
                    .symbols
                    .get(index.saturating_add(inside))
                    .map(|symbol| usize::from(*symbol))
                    .ok_or_else(|| Error::corrupt("a Huffman code of no symbol"));
            }
            first = first.saturating_add(count);
            index = index.saturating_add(count);
        }
        Err(Error::corrupt("a Huffman code of no symbol"))
    }
}
