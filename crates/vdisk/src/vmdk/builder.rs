//! Building `monolithicSparse`: one file, written in any order from any thread.
//!
//! ```text
//! │ header │ descriptor │ redundant directory + tables │ directory + tables │ grains in the order of their first write … │
//! ```
//!
//! **Invariants.** The header is written last: a file that was not finished is no VMDK. Zeros take no space. Grain tables
//! are kept in memory up to 16 MiB and written to both places when they leave it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{Extent, ExtentKind, ReadAt, WriteAt};

use super::SECTOR_BYTES;
use super::layout::{
    DESCRIPTOR_SECTORS, GRAIN_BYTES, Places, TABLE_BYTES, TABLE_COVERS, TABLE_ENTRIES, VmdkOptions,
    Written, encode_entries, sector_of,
};
use crate::field::{bytes, index, is_zero, put};
use crate::{Error, ErrorKind, Result};

/// Grain tables in memory: 16 MiB, 256 GiB of disk.
const MAX_TABLES: usize = 8192;

struct Table {
    entries: Vec<u32>,
    dirty: bool,
    used: u64,
}

struct State {
    tables: HashMap<u64, Table>,
    /// File offset of the next grain.
    end: u64,
    clock: u64,
}

/// Writes a new `monolithicSparse` image.
pub struct SparseBuilder {
    file: Arc<dyn WriteAt>,
    options: VmdkOptions,
    redundant_at: u64,
    directory_at: u64,
    first_grain: u64,
    state: Mutex<State>,
}

/// Bytes of a grain directory, in whole sectors.
fn directory_bytes(options: &VmdkOptions) -> u64 {
    options
        .table_count()
        .saturating_mul(4)
        .checked_next_multiple_of(SECTOR_BYTES)
        .unwrap_or(u64::MAX)
}

impl SparseBuilder {
    /// Begins an image in an empty file.
    ///
    /// # Errors
    /// `AlreadyExists` when the file is not empty, `Invalid` for options that no VMDK can have.
    pub fn create(file: Arc<dyn WriteAt>, options: &VmdkOptions) -> Result<Self> {
        options.judge()?;
        if file.size_bytes() != 0 {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                "vmdk creation: the file is not empty",
            ));
        }
        let redundant_at = DESCRIPTOR_SECTORS
            .saturating_add(1)
            .saturating_mul(SECTOR_BYTES);
        let both = directory_bytes(options)
            .saturating_add(options.table_count().saturating_mul(TABLE_BYTES));
        let directory_at = redundant_at.saturating_add(both);
        let first_grain = directory_at
            .saturating_add(both)
            .checked_next_multiple_of(GRAIN_BYTES)
            .unwrap_or(u64::MAX);
        sector_of(first_grain)?;
        file.set_size(first_grain)?;
        file.write_at(SECTOR_BYTES, &options.descriptor(Written::MonolithicSparse))?;
        for at in [redundant_at, directory_at] {
            let tables_at = at.saturating_add(directory_bytes(options));
            let entries = (0..options.table_count())
                .map(|number| {
                    sector_of(tables_at.saturating_add(number.saturating_mul(TABLE_BYTES)))
                })
                .collect::<Result<Vec<u32>>>()?;
            file.write_at(at, &encode_entries(&entries))?;
        }
        let state = Mutex::new(State {
            tables: HashMap::new(),
            end: first_grain,
            clock: 0,
        });
        Ok(Self {
            file,
            options: options.clone(),
            redundant_at,
            directory_at,
            first_grain,
            state,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_at(&self, directory_at: u64, number: u64) -> u64 {
        directory_at
            .saturating_add(directory_bytes(&self.options))
            .saturating_add(number.saturating_mul(TABLE_BYTES))
    }

    fn write_table(&self, number: u64, table: &mut Table) -> Result<()> {
        if table.dirty {
            let raw = encode_entries(&table.entries);
            self.file
                .write_at(self.table_at(self.redundant_at, number), &raw)?;
            self.file
                .write_at(self.table_at(self.directory_at, number), &raw)?;
            table.dirty = false;
        }
        Ok(())
    }

    /// The table in memory, read if need be.
    fn table<'a>(&self, state: &'a mut State, number: u64) -> Result<&'a mut Table> {
        state.clock = state.clock.wrapping_add(1);
        if !state.tables.contains_key(&number) {
            if state.tables.len() >= MAX_TABLES {
                let oldest = state
                    .tables
                    .iter()
                    .min_by_key(|(_, table)| table.used)
                    .map(|(key, _)| *key);
                if let Some(oldest) = oldest {
                    if let Some(table) = state.tables.get_mut(&oldest) {
                        self.write_table(oldest, table)?;
                    }
                    state.tables.remove(&oldest);
                }
            }
            let mut raw = vec![0u8; index(TABLE_BYTES)];
            block::read_padded(
                &self.file,
                self.table_at(self.directory_at, number),
                &mut raw,
            )?;
            let entries = raw
                .as_chunks::<4>()
                .0
                .iter()
                .map(|entry| u32::from_le_bytes(*entry))
                .collect();
            state.tables.insert(
                number,
                Table {
                    entries,
                    dirty: false,
                    used: 0,
                },
            );
        }
        let now = state.clock;
        let table = state
            .tables
            .get_mut(&number)
            .ok_or_else(|| Error::corrupt("vmdk: no table"))?;
        table.used = now;
        Ok(table)
    }

    /// File offset of the grain that holds `guest`.
    fn host(&self, state: &mut State, guest: u64) -> Result<Option<u64>> {
        let slot = index(guest / GRAIN_BYTES % TABLE_ENTRIES);
        let table = self.table(state, guest / TABLE_COVERS)?;
        let entry = table.entries.get(slot).copied().unwrap_or(0);
        Ok((entry != 0).then(|| u64::from(entry).saturating_mul(SECTOR_BYTES)))
    }

    /// As [`Self::host`], with a new grain where there is none.
    fn host_or_new(&self, state: &mut State, guest: u64) -> Result<u64> {
        if let Some(host) = self.host(state, guest)? {
            return Ok(host);
        }
        let host = state.end;
        let entry = sector_of(host.saturating_add(GRAIN_BYTES)).and_then(|_| sector_of(host))?;
        let slot = index(guest / GRAIN_BYTES % TABLE_ENTRIES);
        let table = self.table(state, guest / TABLE_COVERS)?;
        table.dirty = true;
        if let Some(place) = table.entries.get_mut(slot) {
            *place = entry;
        }
        state.end = host.saturating_add(GRAIN_BYTES);
        Ok(host)
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.options.size_bytes => Ok(()),
            _ => Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "vmdk: {length} bytes at {offset} of a disk of {}",
                    self.options.size_bytes
                ),
            )),
        }
    }

    fn write(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.check_range(offset, bytes(buffer.len()))?;
        let mut plan: Vec<(u64, Range<usize>)> = Vec::new();
        let mut from = 0usize;
        while from < buffer.len() {
            let at = offset.saturating_add(bytes(from));
            let within = at % GRAIN_BYTES;
            let room = index(GRAIN_BYTES.saturating_sub(within));
            let to = from.saturating_add(room).min(buffer.len());
            let zero = is_zero(buffer.get(from..to).unwrap_or_default());
            let mut state = self.lock();
            let host = if zero {
                self.host(&mut state, at)?
            } else {
                Some(self.host_or_new(&mut state, at)?)
            };
            drop(state);
            if let Some(host) = host.map(|host| host.saturating_add(within)) {
                // New grains lie one behind the other: neighbours in the buffer go out as one write.
                match plan.last_mut() {
                    Some((start, range))
                        if range.end == from
                            && start.saturating_add(bytes(range.len())) == host =>
                    {
                        range.end = to;
                    }
                    _ => plan.push((host, from..to)),
                }
            }
            from = to;
        }
        for (host, range) in plan {
            self.file
                .write_at(host, buffer.get(range).unwrap_or_default())?;
        }
        Ok(())
    }

    fn write_tables(&self) -> Result<()> {
        let mut state = self.lock();
        for (number, table) in &mut state.tables {
            self.write_table(*number, table)?;
        }
        Ok(())
    }

    /// Makes the image whole and durable: tables, then the header.
    ///
    /// # Errors
    /// `Io` when writing fails: the file stays without a header.
    pub fn finish(self) -> Result<()> {
        self.write_tables()?;
        let end = self.lock().end;
        if self.file.size_bytes() < end {
            self.file.set_size(end)?;
        }
        self.file.flush()?;
        let places = Places {
            redundant_directory: self.redundant_at / SECTOR_BYTES,
            directory: self.directory_at / SECTOR_BYTES,
            first_grain: self.first_grain / SECTOR_BYTES,
        };
        let mut header = [0u8; 512];
        put(
            &mut header,
            0,
            &self.options.header(Written::MonolithicSparse, places),
        );
        self.file.write_at(0, &header)?;
        Ok(self.file.flush()?)
    }
}

impl ReadAt for SparseBuilder {
    fn size_bytes(&self) -> u64 {
        self.options.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.check_range(offset, bytes(buffer.len()))?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let within = at % GRAIN_BYTES;
            let room = GRAIN_BYTES.saturating_sub(within);
            let (head, tail) = rest.split_at_mut(index(room).min(rest.len()));
            let host = self.host(&mut self.lock(), at)?;
            match host {
                Some(host) => block::read_padded(&self.file, host.saturating_add(within), head)?,
                None => head.fill(0),
            }
            at = at.saturating_add(bytes(head.len()));
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.check_range(offset, limit_bytes.min(1))?;
        let table_end = (offset / TABLE_COVERS)
            .saturating_add(1)
            .saturating_mul(TABLE_COVERS);
        let end = self
            .options
            .size_bytes
            .min(offset.saturating_add(limit_bytes))
            .min(table_end);
        if end <= offset {
            return Err(Error::new(ErrorKind::OutOfRange, "vmdk: an extent of no length").into());
        }
        let mut state = self.lock();
        let is_data = self.host(&mut state, offset)?.is_some();
        let mut at = offset
            .saturating_sub(offset % GRAIN_BYTES)
            .saturating_add(GRAIN_BYTES);
        while at < end && self.host(&mut state, at)?.is_some() == is_data {
            at = at.saturating_add(GRAIN_BYTES);
        }
        let kind = if is_data {
            ExtentKind::Data
        } else {
            ExtentKind::Unallocated
        };
        Ok(Extent {
            offset,
            length_bytes: at.min(end).saturating_sub(offset),
            kind,
        })
    }
}

impl WriteAt for SparseBuilder {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        Ok(self.write(offset, buffer)?)
    }

    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        self.check_range(offset, length_bytes)?;
        let end = offset.saturating_add(length_bytes);
        let mut at = offset;
        while at < end {
            let within = at % GRAIN_BYTES;
            let piece = GRAIN_BYTES
                .saturating_sub(within)
                .min(end.saturating_sub(at));
            let host = self.host(&mut self.lock(), at)?;
            if let Some(host) = host {
                self.file.zero_range(host.saturating_add(within), piece)?;
            }
            at = at.saturating_add(piece);
        }
        Ok(())
    }

    fn flush(&self) -> block::Result<()> {
        self.write_tables()?;
        self.file.flush()
    }
}
