//! Writing `streamOptimized`: one pass over the disk, as an OVA carries it.
//!
//! ```text
//! │ header: directory "in the footer" │ descriptor │ grain … grain │ marker + table │ grain … │ … │ marker + directory │ marker + footer │ end │
//!                                                     LBA, length, zlib stream, padded to 512
//! ```
//!
//! **Invariants.** Writes come in disk order; going back is refused with [`ErrorKind::Invalid`], since what was written cannot be
//! written again. Gaps and zeros take no space. Grains are deflated in batches of 4 MiB on as many threads as the caller allows; the
//! bytes do not depend on how many. The directory (4 bytes per 32 MiB of disk) is in memory. Until [`StreamOptimizedWriter::finish`]
//! the file has no footer, and no reader takes it for whole.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::WriteAt;
use flate2::{Compress, FlushCompress, Status};

use super::SECTOR_BYTES;
use super::layout::{
    self, GRAIN_BYTES, Places, TABLE_COVERS, TABLE_ENTRIES, VmdkOptions, Written, encode_entries,
    sector_of,
};
use crate::field::{bytes, index, is_zero, put};
use crate::{Error, ErrorKind, Result};

/// Guest bytes collected before grains are deflated together.
const BATCH_BYTES: u64 = 4 << 20;
const FIRST_GRAIN_SECTOR: u64 = 128;
const DIRECTORY_IN_FOOTER: u64 = u64::MAX;
const MARKER_TABLE: u32 = 1;
const MARKER_DIRECTORY: u32 = 2;
const MARKER_FOOTER: u32 = 3;

struct State {
    /// Guest offset of the next byte accepted.
    position: u64,
    /// Guest offset where `batch` begins; on a grain.
    batch_at: u64,
    batch: Vec<u8>,
    /// File offset of the next byte, on a sector.
    end: u64,
    table: Vec<u32>,
    table_number: u64,
    directory: Vec<u32>,
    failed: bool,
}

/// Writes a stream-optimized VMDK in one pass.
pub struct StreamOptimizedWriter {
    file: Arc<dyn WriteAt>,
    options: VmdkOptions,
    threads: NonZeroUsize,
    state: Mutex<State>,
}

impl StreamOptimizedWriter {
    /// Begins an image in an empty file. `threads` is how many deflate at once.
    ///
    /// # Errors
    /// `AlreadyExists` when the file is not empty, `Invalid` for options that no VMDK can have.
    pub fn create(
        file: Arc<dyn WriteAt>,
        options: &VmdkOptions,
        threads: NonZeroUsize,
    ) -> Result<Self> {
        options.judge()?;
        if file.size_bytes() != 0 {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                "vmdk creation: the file is not empty",
            ));
        }
        let places = Places {
            redundant_directory: 0,
            directory: DIRECTORY_IN_FOOTER,
            first_grain: FIRST_GRAIN_SECTOR,
        };
        let end = FIRST_GRAIN_SECTOR.saturating_mul(SECTOR_BYTES);
        let mut front = vec![0u8; index(end)];
        put(
            &mut front,
            0,
            &options.header(Written::StreamOptimized, places),
        );
        put(
            &mut front,
            index(SECTOR_BYTES),
            &options.descriptor(Written::StreamOptimized),
        );
        file.write_at(0, &front)?;
        let state = Mutex::new(State {
            position: 0,
            batch_at: 0,
            batch: Vec::new(),
            end,
            table: vec![0; index(TABLE_ENTRIES)],
            table_number: 0,
            directory: vec![0; index(options.table_count())],
            failed: false,
        });
        Ok(Self {
            file,
            options: options.clone(),
            threads,
            state,
        })
    }

    /// Bytes of the virtual disk.
    pub fn size_bytes(&self) -> u64 {
        self.options.size_bytes
    }

    /// Guest offset up to which the disk is written; everything before it cannot be written again.
    pub fn position(&self) -> u64 {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .position
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failed {
            return Err(Error::new(
                ErrorKind::Io,
                "vmdk: an earlier write failed; nothing more is written",
            ));
        }
        Ok(state)
    }

    fn judge(&self, state: &State, offset: u64, length: u64) -> Result<()> {
        if offset
            .checked_add(length)
            .is_none_or(|end| end > self.options.size_bytes)
        {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "vmdk: {length} bytes at {offset} of a disk of {}",
                    self.options.size_bytes
                ),
            ));
        }
        if offset < state.position {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "vmdk: a stream-optimized image is written in disk order; {offset} lies before {}",
                    state.position
                ),
            ));
        }
        Ok(())
    }

    /// Writes guest bytes at or behind everything written so far; what is left out reads as zeros.
    ///
    /// # Errors
    /// `Invalid` for an offset before [`Self::position`], `OutOfRange` behind the disk, `Io` when writing fails.
    pub fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        let mut state = self.lock()?;
        self.judge(&state, offset, bytes(buffer.len()))?;
        let written = self
            .skip_to(&mut state, offset)
            .and_then(|()| self.take(&mut state, buffer));
        state.failed = written.is_err();
        written
    }

    /// Leaves a range out, which then reads as zeros.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    pub fn zero_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
        let mut state = self.lock()?;
        self.judge(&state, offset, length_bytes)?;
        let skipped = self.skip_to(&mut state, offset.saturating_add(length_bytes));
        state.failed = skipped.is_err();
        skipped
    }

    /// Makes what left for the file durable. The last grains stay in memory: the image is good after [`Self::finish`] only.
    ///
    /// # Errors
    /// `Io` when the file refuses.
    pub fn flush(&self) -> Result<()> {
        drop(self.lock()?);
        Ok(self.file.flush()?)
    }

    /// Writes the last grains, the directory and the footer, durably.
    ///
    /// # Errors
    /// `Io` when writing fails: the file stays incomplete.
    pub fn finish(self) -> Result<()> {
        let mut state = self.lock()?;
        self.emit_batch(&mut state)?;
        self.emit_table(&mut state)?;
        let directory = encode_entries(&state.directory);
        let sectors = bytes(directory.len()) / SECTOR_BYTES;
        self.append(&mut state, &layout::marker(sectors, MARKER_DIRECTORY))?;
        let directory_sector = state.end / SECTOR_BYTES;
        self.append(&mut state, &directory)?;
        self.append(&mut state, &layout::marker(1, MARKER_FOOTER))?;
        let places = Places {
            redundant_directory: 0,
            directory: directory_sector,
            first_grain: FIRST_GRAIN_SECTOR,
        };
        let footer = self.options.header(Written::StreamOptimized, places);
        self.append(&mut state, &footer)?;
        self.append(&mut state, &layout::marker(0, 0))?;
        Ok(self.file.flush()?)
    }

    /// Writes bytes at the end of the file, padded to a sector.
    fn append(&self, state: &mut State, content: &[u8]) -> Result<()> {
        self.file.write_at(state.end, content)?;
        state.end = state
            .end
            .saturating_add(bytes(content.len()))
            .checked_next_multiple_of(SECTOR_BYTES)
            .unwrap_or(u64::MAX);
        Ok(())
    }

    /// Moves on to `offset` over zeros.
    fn skip_to(&self, state: &mut State, offset: u64) -> Result<()> {
        let batch_end = state.batch_at.saturating_add(BATCH_BYTES);
        let in_batch = offset.min(batch_end).saturating_sub(state.batch_at);
        if bytes(state.batch.len()) < in_batch && !state.batch.is_empty() {
            state.batch.resize(index(in_batch), 0);
        }
        if offset >= batch_end {
            self.emit_batch(state)?;
        }
        if state.batch.is_empty() {
            let grain_at = offset & !GRAIN_BYTES.saturating_sub(1);
            state.batch_at = grain_at;
            state
                .batch
                .resize(index(offset.saturating_sub(grain_at)), 0);
        }
        state.position = offset;
        Ok(())
    }

    fn take(&self, state: &mut State, buffer: &[u8]) -> Result<()> {
        let mut rest = buffer;
        while !rest.is_empty() {
            let room = BATCH_BYTES.saturating_sub(bytes(state.batch.len()));
            let (head, tail) = rest.split_at(index(room).min(rest.len()));
            state.batch.extend_from_slice(head);
            state.position = state.position.saturating_add(bytes(head.len()));
            rest = tail;
            if bytes(state.batch.len()) >= BATCH_BYTES {
                self.emit_batch(state)?;
            }
        }
        Ok(())
    }

    /// Deflates and writes the grains collected so far.
    fn emit_batch(&self, state: &mut State) -> Result<()> {
        let mut batch = std::mem::take(&mut state.batch);
        let start = state.batch_at;
        state.batch_at = start.saturating_add(bytes(batch.len()));
        // The last grain of the disk is whole, whatever the disk's size.
        batch.resize(batch.len().next_multiple_of(index(GRAIN_BYTES)), 0);
        for (number, grain) in (0u64..).zip(deflate_all(&batch, start, self.threads)?) {
            if grain.is_empty() {
                continue;
            }
            let guest = start.saturating_add(number.saturating_mul(GRAIN_BYTES));
            let table_number = guest / TABLE_COVERS;
            if table_number != state.table_number {
                self.emit_table(state)?;
                state.table_number = table_number;
            }
            let slot = index(guest / GRAIN_BYTES % TABLE_ENTRIES);
            if let Some(entry) = state.table.get_mut(slot) {
                *entry = sector_of(state.end)?;
            }
            self.append(state, &grain)?;
        }
        // The buffer is large: it serves the next batch too.
        batch.clear();
        state.batch = batch;
        Ok(())
    }

    /// Writes the grain table in progress, if it holds anything.
    fn emit_table(&self, state: &mut State) -> Result<()> {
        if state.table.iter().all(|entry| *entry == 0) {
            return Ok(());
        }
        let table = encode_entries(&state.table);
        let sectors = bytes(table.len()) / SECTOR_BYTES;
        self.append(state, &layout::marker(sectors, MARKER_TABLE))?;
        let sector = sector_of(state.end)?;
        if let Some(entry) = state.directory.get_mut(index(state.table_number)) {
            *entry = sector;
        }
        state.table.fill(0);
        self.append(state, &table)
    }
}

/// Every grain of a batch with its marker, empty where the grain is all zeros.
fn deflate_all(batch: &[u8], start: u64, threads: NonZeroUsize) -> Result<Vec<Vec<u8>>> {
    let grains: Vec<(u64, &[u8])> = (0u64..)
        .map(|number| start.saturating_add(number.saturating_mul(GRAIN_BYTES)))
        .zip(batch.chunks(index(GRAIN_BYTES)))
        .collect();
    let share = grains.len().div_ceil(threads.get()).max(1);
    if grains.len() <= share {
        return grains
            .into_iter()
            .map(|(guest, grain)| deflate(guest, grain))
            .collect();
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = grains
            .chunks(share)
            .map(|part| {
                scope.spawn(move || {
                    part.iter()
                        .map(|(guest, grain)| deflate(*guest, grain))
                        .collect::<Result<Vec<_>>>()
                })
            })
            .collect();
        let mut all = Vec::with_capacity(grains.len());
        for worker in workers {
            let part = worker
                .join()
                .map_err(|_| Error::new(ErrorKind::Io, "vmdk: a deflating thread stopped"))?;
            all.extend(part?);
        }
        Ok(all)
    })
}

/// One grain with its marker: LBA, length, zlib stream.
fn deflate(guest: u64, grain: &[u8]) -> Result<Vec<u8>> {
    if is_zero(grain) {
        return Ok(Vec::new());
    }
    // Deflate's worst case is a few bytes per 16 KiB; readers accept up to twice a grain.
    let mut packed = vec![0u8; grain.len().saturating_add(1024)];
    let (marker, body) = packed.split_at_mut(12);
    let mut deflate = Compress::new(flate2::Compression::default(), true);
    let status = deflate
        .compress(grain, body, FlushCompress::Finish)
        .map_err(|error| Error::with_source(ErrorKind::Io, "deflate", error))?;
    if status != Status::StreamEnd {
        return Err(Error::new(
            ErrorKind::Io,
            "vmdk: a grain grew when it was deflated",
        ));
    }
    let length = deflate.total_out();
    put(marker, 0, &(guest / SECTOR_BYTES).to_le_bytes());
    put(
        marker,
        8,
        &u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes(),
    );
    packed.truncate(index(length.saturating_add(12)));
    Ok(packed)
}
