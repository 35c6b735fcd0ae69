//! The writing guest: transactions, cache, flushes, and holding still.
//!
//! ```text
//!   boot ─► (examine, make whole) ─► tick … tick ─► quiesce ─► thaw ─► tick …      shut_down, or power lost: cache gone
//! ```
//!
//! **Invariants.** Writes reach the disks in the order in which they were made. Between ticks a transaction is open, with
//! its record in the ledger on disk.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::examine::{Consistency, examine_with};
use super::record::{Layout, Place, RECORD_BYTES, Record, RecordKind, effect};
use crate::estate::Random;
use crate::{Error, Result};

/// What runs in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestOs {
    /// Windows: writers make applications hold still.
    Windows,
    /// Linux: the file system is frozen, applications are not asked.
    Linux,
}

/// How the guest's writers (or its freeze) behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriterState {
    /// As they should.
    Stable,
    /// They refuse.
    Fails,
    /// They hang until they are timed out.
    TimesOut,
    /// They say that all is well and have done nothing.
    Lies,
}

/// The disks that a guest sees, in the order of its drives.
pub trait GuestDisks {
    /// Reads from a disk.
    fn read(&self, disk: usize, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// Writes to a disk.
    fn write(&mut self, disk: usize, offset: u64, bytes: &[u8]) -> Result<()>;
}

/// Whether the guest works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Working,
    /// It found its disks inconsistent when it booted, and why: it writes nothing more.
    Broken(String),
}

/// What came of asking the guest to hold still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiesced {
    /// It does, says it.
    Held,
    /// It refused.
    Refused,
    /// It did not answer.
    TimedOut,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct CachedWrite {
    place: Place,
    record: [u64; 3],
    kind: u8,
    index: u32,
}

/// What a saved guest remembers: kept in the saved state, so that it goes on where it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuestMemory {
    committed: u64,
    step: u8,
    mounts: u64,
    ballast: u64,
    random: u64,
    cache: VecDeque<CachedWrite>,
    /// Chunks written in bulk so far.
    #[serde(default)]
    bulk: u64,
}

/// A guest that writes.
pub struct Guest {
    os: GuestOs,
    layout: Layout,
    tag: u64,
    writers: WriterState,
    transactions_per_tick: u32,
    memory: GuestMemory,
    random: Random,
    health: Health,
    is_frozen: bool,
}

/// What a guest writes at once in bulk.
pub const BULK_BYTES: u64 = 64 << 10;

/// Steps of a transaction.
const WRITE_LEDGER: u8 = 0;
const FLUSH_LEDGER: u8 = 1;
const WRITE_A: u8 = 2;
const WRITE_B: u8 = 3;
const FLUSH_COPIES: u8 = 4;
const WRITE_HEAD: u8 = 5;
const FLUSH_HEAD: u8 = 6;
/// Ballast written by one transaction.
const BALLAST_PER_TRANSACTION: u64 = 2;

const CLEAN: u64 = 1;
const DIRTY: u64 = 2;

impl Guest {
    /// A guest that was never booted. `tag` tells its records from those of others.
    pub fn new(os: GuestOs, layout: Layout, tag: u64, transactions_per_tick: u32) -> Self {
        let mut random = Random::seeded(tag);
        let memory = GuestMemory {
            committed: 0,
            step: WRITE_LEDGER,
            mounts: 0,
            ballast: 0,
            random: random.next_u64(),
            cache: VecDeque::new(),
            bulk: 0,
        };
        Self {
            os,
            layout,
            tag,
            writers: WriterState::Stable,
            transactions_per_tick,
            random: Random::seeded(memory.random),
            memory,
            health: Health::Working,
            is_frozen: false,
        }
    }

    /// What runs in it.
    pub fn os(&self) -> GuestOs {
        self.os
    }

    /// Where its workload lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What its records are marked with.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The last transaction that it committed, in its own memory.
    pub fn committed(&self) -> u64 {
        self.memory.committed
    }

    /// Writes that it made and did not flush.
    pub fn unflushed(&self) -> usize {
        self.memory.cache.len()
    }

    /// Whether it works.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// How its writers behave.
    pub fn writers(&self) -> WriterState {
        self.writers
    }

    /// Makes its writers behave so.
    pub fn set_writers(&mut self, state: WriterState) {
        self.writers = state;
    }

    /// How much it works between two ticks.
    pub fn transactions_per_tick(&self) -> u32 {
        self.transactions_per_tick
    }

    /// A guest like it that was never booted: what runs when a copy of its disks is started as another VM.
    #[must_use]
    pub fn twin(&self) -> Self {
        let mut twin = Self::new(
            self.os,
            self.layout.clone(),
            self.tag,
            self.transactions_per_tick,
        );
        twin.writers = self.writers;
        twin
    }

    /// What a saved state keeps of it.
    pub fn memory(&self) -> GuestMemory {
        let mut memory = self.memory.clone();
        memory.random = self.random.clone().next_u64();
        memory
    }

    /// Goes on from a saved state.
    pub fn resume(&mut self, memory: GuestMemory) {
        self.random = Random::seeded(memory.random);
        self.memory = memory;
        self.is_frozen = false;
        self.health = Health::Working;
    }

    /// Loses everything that was in memory only.
    pub fn lose_power(&mut self) {
        self.memory.cache.clear();
        self.is_frozen = false;
    }

    /// Boots: makes an empty disk ready, makes a crashed one whole, and refuses an inconsistent one.
    pub fn boot(&mut self, disks: &mut dyn GuestDisks) -> Result<()> {
        self.memory.cache.clear();
        self.is_frozen = false;
        self.health = Health::Working;
        let found = examine_with(&self.layout, self.tag, |disk, offset, buffer| {
            disks.read(disk, offset, buffer)
        })?;
        self.memory.mounts = found.mounts.saturating_add(1);
        self.memory.step = WRITE_LEDGER;
        match found.consistency {
            Consistency::Inconsistent(why) => {
                self.health = Health::Broken(why);
                return Ok(());
            }
            Consistency::Empty => {
                self.memory.committed = 0;
                self.push(self.layout.head(), RecordKind::Head, 0, 0, 0);
            }
            _ => {
                self.memory.committed = found.committed;
                if found.in_flight.is_some() {
                    // The ledger says what was meant: do it again, from the copies on.
                    self.memory.step = WRITE_A;
                }
            }
        }
        self.push_file_system(DIRTY);
        self.flush(disks)?;
        if self.memory.step == WRITE_A {
            self.finish_transaction(disks)?;
        }
        self.open_transaction(disks)
    }

    /// Works for one tick.
    pub fn tick(&mut self, disks: &mut dyn GuestDisks) -> Result<()> {
        if self.is_frozen || self.health != Health::Working {
            return Ok(());
        }
        for _ in 0..self.transactions_per_tick {
            self.finish_transaction(disks)?;
            self.open_transaction(disks)?;
        }
        // Somewhere in the middle of the open transaction, with part of the cache written down.
        let steps = self.random.below(4);
        for _ in 0..steps {
            self.step(disks)?;
            if self.memory.step == FLUSH_HEAD {
                break;
            }
        }
        let down = self.random.below(self.memory.cache.len() as u64 + 1);
        for _ in 0..down {
            self.write_down_one(disks)?;
        }
        Ok(())
    }

    /// Whether it holds still.
    pub fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// Writes so many chunks of [`BULK_BYTES`] at once into an area of its own, over and over from its beginning, each time with
    /// other bytes. What was in the cache goes first. A guest that holds still or is broken writes nothing: how many were written.
    pub fn write_bulk(
        &mut self,
        disks: &mut dyn GuestDisks,
        area: Place,
        area_bytes: u64,
        chunks: u64,
    ) -> Result<u64> {
        let slots = area_bytes / BULK_BYTES;
        if self.is_frozen || self.health != Health::Working || slots == 0 {
            return Ok(0);
        }
        self.flush(disks)?;
        let mut bytes = vec![0; usize::try_from(BULK_BYTES).unwrap_or(0)];
        for _ in 0..chunks {
            let number = self.memory.bulk;
            let mut hasher = blake3::Hasher::new();
            hasher.update(&self.tag.to_le_bytes());
            hasher.update(&number.to_le_bytes());
            hasher.finalize_xof().fill(&mut bytes);
            let offset = area.offset + number % slots * BULK_BYTES;
            disks.write(area.disk, offset, &bytes)?;
            self.memory.bulk = number.wrapping_add(1);
        }
        Ok(chunks)
    }

    /// Asks it to hold still: Windows' writers finish the transaction, Linux freezes its file system.
    pub fn quiesce(&mut self, disks: &mut dyn GuestDisks) -> Result<Quiesced> {
        match self.writers {
            WriterState::Fails => return Ok(Quiesced::Refused),
            WriterState::TimesOut => return Ok(Quiesced::TimedOut),
            WriterState::Lies => {
                self.is_frozen = true;
                return Ok(Quiesced::Held);
            }
            WriterState::Stable => {}
        }
        if self.health == Health::Working {
            if self.os == GuestOs::Windows {
                self.finish_transaction(disks)?;
            }
            self.push_file_system(CLEAN);
            self.flush(disks)?;
        }
        self.is_frozen = true;
        Ok(Quiesced::Held)
    }

    /// Lets it go on.
    pub fn thaw(&mut self, disks: &mut dyn GuestDisks) -> Result<()> {
        let was_frozen = std::mem::take(&mut self.is_frozen);
        if !was_frozen || self.health != Health::Working || self.writers == WriterState::Lies {
            return Ok(());
        }
        self.push_file_system(DIRTY);
        self.flush(disks)?;
        if self.os == GuestOs::Windows {
            self.open_transaction(disks)?;
        }
        Ok(())
    }

    /// What its writers write into the frozen disks once they are frozen.
    pub fn recovery_writes(&self) -> Vec<(Place, Vec<u8>)> {
        let record = Record {
            kind: RecordKind::Recovered,
            index: 0,
            sequence: self.memory.committed,
            value: self.memory.mounts,
        };
        vec![(self.layout.recovered(), record.encode(self.tag))]
    }

    /// Shuts down in good order.
    pub fn shut_down(&mut self, disks: &mut dyn GuestDisks) -> Result<()> {
        if self.health == Health::Working {
            self.finish_transaction(disks)?;
            self.push_file_system(CLEAN);
            self.flush(disks)?;
        }
        Ok(())
    }

    fn push(&mut self, place: Place, kind: RecordKind, index: u64, sequence: u64, value: u64) {
        self.memory.cache.push_back(CachedWrite {
            place,
            record: [sequence, value, 0],
            kind: kind_number(kind),
            index: u32::try_from(index).unwrap_or(u32::MAX),
        });
    }

    fn push_file_system(&mut self, state: u64) {
        let place = self.layout.file_system();
        self.push(place, RecordKind::FileSystem, 0, self.memory.mounts, state);
    }

    fn write_down_one(&mut self, disks: &mut dyn GuestDisks) -> Result<()> {
        let Some(write) = self.memory.cache.front() else {
            return Ok(());
        };
        let [sequence, value, _] = write.record;
        let record = Record {
            kind: kind_of(write.kind)?,
            index: write.index,
            sequence,
            value,
        };
        let bytes = record.encode(self.tag);
        debug_assert_eq!(bytes.len(), RECORD_BYTES);
        disks.write(write.place.disk, write.place.offset, &bytes)?;
        self.memory.cache.pop_front();
        Ok(())
    }

    fn flush(&mut self, disks: &mut dyn GuestDisks) -> Result<()> {
        while !self.memory.cache.is_empty() {
            self.write_down_one(disks)?;
        }
        Ok(())
    }

    /// Finishes the transaction that is open, if one is.
    fn finish_transaction(&mut self, disks: &mut dyn GuestDisks) -> Result<()> {
        while self.memory.step != WRITE_LEDGER {
            self.step(disks)?;
        }
        Ok(())
    }

    /// Begins the next transaction, up to its durable record in the ledger.
    fn open_transaction(&mut self, disks: &mut dyn GuestDisks) -> Result<()> {
        while self.memory.step <= FLUSH_LEDGER {
            self.step(disks)?;
        }
        Ok(())
    }

    fn step(&mut self, disks: &mut dyn GuestDisks) -> Result<()> {
        let next = self.memory.committed + 1;
        let (cell, value) = effect(self.tag, next);
        match self.memory.step {
            WRITE_LEDGER => {
                let slot = self.layout.ledger_slot(next);
                self.push(slot, RecordKind::Ledger, cell, next, value);
                for _ in 0..BALLAST_PER_TRANSACTION.min(self.layout.ballast_records) {
                    let index = self.random.below(self.layout.ballast_records);
                    self.memory.ballast += 1;
                    let place = self.layout.ballast.record(index);
                    let number = self.memory.ballast;
                    self.push(place, RecordKind::Ballast, index, next, number);
                }
            }
            WRITE_A => {
                let place = self.layout.copy_a.record(cell);
                self.push(place, RecordKind::Cell, cell, next, value);
            }
            WRITE_B => {
                let place = self.layout.copy_b.record(cell);
                self.push(place, RecordKind::Cell, cell, next, value);
            }
            WRITE_HEAD => self.push(self.layout.head(), RecordKind::Head, 0, next, value),
            FLUSH_LEDGER | FLUSH_COPIES => self.flush(disks)?,
            _ => {
                self.flush(disks)?;
                self.memory.committed = next;
            }
        }
        self.memory.step = match self.memory.step {
            FLUSH_HEAD => WRITE_LEDGER,
            step => step + 1,
        };
        Ok(())
    }
}

fn kind_number(kind: RecordKind) -> u8 {
    match kind {
        RecordKind::FileSystem => 1,
        RecordKind::Head => 2,
        RecordKind::Recovered => 3,
        RecordKind::Ledger => 4,
        RecordKind::Cell => 5,
        RecordKind::Ballast => 6,
    }
}

fn kind_of(number: u8) -> Result<RecordKind> {
    [
        RecordKind::FileSystem,
        RecordKind::Head,
        RecordKind::Recovered,
        RecordKind::Ledger,
        RecordKind::Cell,
        RecordKind::Ballast,
    ]
    .into_iter()
    .find(|kind| kind_number(*kind) == number)
    .ok_or_else(|| Error::invalid(format!("a saved guest holds a record of kind {number}")))
}
