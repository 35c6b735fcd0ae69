//! Little-endian fields out of and into byte buffers, without an index that could be wrong.
//!
//! **Invariants.** Reading behind the end is a typed error that names the structure. Writing grows the buffer.

use uuid::Uuid;

use crate::{Error, Result};

/// Saturating: a `u64` that does not fit is larger than any buffer anyway, and is refused where it is used.
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A length in memory as a length in a file.
pub(super) fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Whether every byte is zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && tail.iter().all(|byte| *byte == 0)
}

/// A structure being decoded.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    name: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8], name: &'static str) -> Self {
        Self { bytes, name }
    }

    /// The bytes `at..at + length`.
    pub(super) fn slice(&self, at: usize, length: usize) -> Result<&'a [u8]> {
        self.bytes
            .get(at..at.saturating_add(length))
            .ok_or_else(|| {
                Error::corrupt(format!(
                    "{}: {length} bytes at {at} lie behind its end",
                    self.name
                ))
            })
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(at, N)?);
        Ok(array)
    }

    pub(super) fn u16(&self, at: usize) -> Result<u16> {
        self.array(at).map(u16::from_le_bytes)
    }
    pub(super) fn u32(&self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_le_bytes)
    }
    pub(super) fn u64(&self, at: usize) -> Result<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
    /// A GUID in its mixed-endian form.
    pub(super) fn guid(&self, at: usize) -> Result<Uuid> {
        self.array(at).map(Uuid::from_bytes_le)
    }
}

/// A structure being encoded, zero wherever nothing was put.
pub(super) struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(length: usize) -> Self {
        Self {
            bytes: vec![0; length],
        }
    }

    pub(super) fn put(&mut self, at: usize, value: &[u8]) {
        let end = at.saturating_add(value.len());
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        for (slot, byte) in self.bytes.iter_mut().skip(at).zip(value) {
            *slot = *byte;
        }
    }
    pub(super) fn u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }
    pub(super) fn u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }
    pub(super) fn u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
    pub(super) fn guid(&mut self, at: usize, value: Uuid) {
        self.put(at, &value.to_bytes_le());
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Puts the CRC-32C of the whole, taken with its own field zero, at byte 4, where every VHDX structure has it.
    pub(super) fn finish_with_checksum(mut self) -> Vec<u8> {
        self.u32(CHECKSUM_AT, 0);
        let checksum = crc32c::crc32c(&self.bytes);
        self.u32(CHECKSUM_AT, checksum);
        self.bytes
    }
}

/// Where every checksummed VHDX structure has its CRC-32C.
const CHECKSUM_AT: usize = 4;

/// Whether the CRC-32C at byte 4 is that of the structure.
pub(super) fn checksum_holds(bytes: &[u8]) -> bool {
    let Ok(stored) = Fields::new(bytes, "checksummed structure").u32(CHECKSUM_AT) else {
        return false;
    };
    let (Some(head), Some(tail)) = (bytes.get(..4), bytes.get(8..)) else {
        return false;
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    // A build for fuzzing takes every checksum for right, so that lies get behind them.
    cfg!(fuzzing) || crc32c::crc32c_append(crc, tail) == stored
}
