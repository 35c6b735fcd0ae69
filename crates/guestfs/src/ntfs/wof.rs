//! Files that Windows compressed for space (`compact /exe`, CompactOS): packed chunks in the stream `WofCompressedData`.
//!
//! ```text
//!  where chunk 1 ends │ where chunk 2 ends │ … │ chunk 0 │ chunk 1 │ …     u32 each, u64 for files of 4 GiB and more;
//!                                                                          places count from behind the table
//! ```
//!
//! A chunk that takes as many bytes as it gives is not packed.

use std::sync::{Arc, Mutex, PoisonError};

use super::arithmetic::{add, length, multiply, shorter};
use super::reparse::WofAlgorithm;
use super::stream::AttributeReader;
use super::{lzx, xpress};
use crate::{Error, Result, field};

/// Ends of chunks that are read at once.
const TABLE_WINDOW: u64 = 512;

impl WofAlgorithm {
    fn chunk_bytes(self) -> u64 {
        match self {
            Self::Xpress4K => 4 << 10,
            Self::Xpress8K => 8 << 10,
            Self::Xpress16K => 16 << 10,
            Self::Lzx32K => 32 << 10,
        }
    }

    fn unpack(self, packed: &[u8], size: usize) -> Result<Vec<u8>> {
        match self {
            Self::Xpress4K | Self::Xpress8K | Self::Xpress16K => xpress::decompress(packed, size),
            Self::Lzx32K => lzx::decompress(packed, size),
        }
    }
}

/// The contents of such a file.
pub(super) struct WofReader {
    packed: AttributeReader,
    algorithm: WofAlgorithm,
    size_bytes: u64,
    chunks: u64,
    entry_bytes: u64,
    table: Mutex<TableWindow>,
    /// The chunk read last.
    chunk: Mutex<Option<(u64, Arc<[u8]>)>>,
}

#[derive(Default)]
struct TableWindow {
    first: u64,
    ends: Vec<u64>,
}

impl WofReader {
    /// `size_bytes` is what the file gives unpacked.
    pub(super) fn open(packed: AttributeReader, algorithm: WofAlgorithm, size_bytes: u64) -> Self {
        Self {
            packed,
            algorithm,
            size_bytes,
            chunks: size_bytes.div_ceil(algorithm.chunk_bytes()),
            entry_bytes: if size_bytes > u64::from(u32::MAX) {
                8
            } else {
                4
            },
            table: Mutex::new(TableWindow::default()),
            chunk: Mutex::new(None),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn read(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        let chunk_bytes = self.algorithm.chunk_bytes();
        while !buffer.is_empty() {
            let number = offset.checked_div(chunk_bytes).unwrap_or(0);
            let inside = offset.checked_rem(chunk_bytes).unwrap_or(0);
            let chunk = self
                .chunk(number)
                .map_err(|error| error.within(format!("compressed chunk {number}")))?;
            let left = field::bytes(chunk.len()).saturating_sub(inside);
            let (head, rest) = buffer.split_at_mut(shorter(buffer.len(), left));
            if head.is_empty() {
                return Err(Error::corrupt(
                    "a range behind the end of a compressed file",
                ));
            }
            head.copy_from_slice(field::slice(&chunk, length(inside)?, head.len())?);
            offset = add(offset, field::bytes(head.len()))?;
            buffer = rest;
        }
        Ok(())
    }

    fn chunk(&self, number: u64) -> Result<Arc<[u8]>> {
        let lock = || self.chunk.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = lock()
            .as_ref()
            .filter(|(cached, _)| *cached == number)
            .map(|(_, bytes)| Arc::clone(bytes));
        if let Some(chunk) = cached {
            return Ok(chunk);
        }
        let chunk_bytes = self.algorithm.chunk_bytes();
        let size = self
            .size_bytes
            .saturating_sub(multiply(number, chunk_bytes)?)
            .min(chunk_bytes);
        let start = match number.checked_sub(1) {
            Some(before) => self.end(before)?,
            None => 0,
        };
        let end = self.end(number)?;
        let packed_bytes = end
            .checked_sub(start)
            .filter(|bytes| *bytes <= size && *bytes > 0)
            .ok_or_else(|| Error::corrupt(format!("{size} bytes packed into {start}..{end}")))?;
        let mut packed = vec![0; length(packed_bytes)?];
        self.packed
            .read(add(self.table_bytes()?, start)?, &mut packed)?;
        let chunk: Arc<[u8]> = if packed_bytes == size {
            packed.into()
        } else {
            self.algorithm.unpack(&packed, length(size)?)?.into()
        };
        *lock() = Some((number, Arc::clone(&chunk)));
        Ok(chunk)
    }

    fn table_bytes(&self) -> Result<u64> {
        multiply(self.chunks.saturating_sub(1), self.entry_bytes)
    }

    /// Where a chunk ends, counted from behind the table.
    fn end(&self, number: u64) -> Result<u64> {
        let entries = self.chunks.saturating_sub(1);
        if number >= entries {
            return self
                .packed
                .size_bytes()
                .checked_sub(self.table_bytes()?)
                .ok_or_else(|| Error::corrupt("a compressed file shorter than its table"));
        }
        let mut window = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = |window: &TableWindow| {
            let inside = usize::try_from(number.checked_sub(window.first)?).ok()?;
            window.ends.get(inside).copied()
        };
        if let Some(end) = cached(&window) {
            return Ok(end);
        }
        let count = entries.saturating_sub(number).min(TABLE_WINDOW);
        let mut bytes = vec![0; length(multiply(count, self.entry_bytes)?)?];
        self.packed
            .read(multiply(number, self.entry_bytes)?, &mut bytes)?;
        window.first = number;
        window.ends = bytes
            .chunks_exact(length(self.entry_bytes)?)
            .map(|entry| {
                if self.entry_bytes == 8 {
                    field::u64_le(entry, 0)
                } else {
                    field::u32_le(entry, 0).map(u64::from)
                }
            })
            .collect::<Result<_>>()?;
        cached(&window).ok_or_else(|| Error::corrupt("a chunk behind the table"))
    }
}
