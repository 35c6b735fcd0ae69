//! Disks made of numbers, which count, fail and wait when told to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

use block::{BLOCK_SIZE_BYTES, Error, ErrorKind, Extent, ExtentKind, ReadAt, Result};

/// SplitMix64: the same numbers from the same seed.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed(self.0)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A disk whose every byte follows from a seed. Some of its blocks are zeros, and it knows which.
pub struct Numbers {
    pub seed: u64,
    pub size_bytes: u64,
    /// Of a hundred blocks so many hold data.
    pub data_percent: u64,
    /// Bytes that were read.
    pub read_bytes: AtomicU64,
    /// Reads that touch this block fail; none when it is `u64::MAX`.
    pub bad_block: AtomicU64,
    /// Nothing can be told or read any more.
    pub gone: AtomicBool,
    gate: Mutex<bool>,
    opened: Condvar,
    /// Readers that wait at the gate.
    pub waiting: AtomicU64,
}

impl Numbers {
    pub fn new(seed: u64, size_bytes: u64, data_percent: u64) -> Self {
        Self {
            seed,
            size_bytes,
            data_percent,
            read_bytes: AtomicU64::new(0),
            bad_block: AtomicU64::new(u64::MAX),
            gone: AtomicBool::new(false),
            gate: Mutex::new(true),
            opened: Condvar::new(),
            waiting: AtomicU64::new(0),
        }
    }

    /// Lets readers wait, or go on.
    pub fn set_open(&self, is_open: bool) {
        *self.gate.lock().expect("the gate") = is_open;
        self.opened.notify_all();
    }

    fn is_data(&self, block: u64) -> bool {
        // In runs of four blocks.
        mixed(self.seed ^ (block / 4)) % 100 < self.data_percent
    }

    /// Its bytes.
    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        (offset..offset + length as u64)
            .map(|at| {
                if self.is_data(at / BLOCK_SIZE_BYTES) {
                    mixed(self.seed ^ (at / 8) << 1).to_le_bytes()[(at % 8) as usize]
                } else {
                    0
                }
            })
            .collect()
    }

    fn check(&self, offset: u64, length_bytes: u64) -> Result<()> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Io, "gone"));
        }
        if offset + length_bytes > self.size_bytes {
            return Err(Error::new(ErrorKind::OutOfRange, "behind the end"));
        }
        Ok(())
    }
}

impl ReadAt for Numbers {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length = buffer.len() as u64;
        self.check(offset, length)?;
        let mut gate = self.gate.lock().expect("the gate");
        if !*gate {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            while !*gate {
                gate = self.opened.wait(gate).expect("the gate");
            }
        }
        drop(gate);
        let bad = self
            .bad_block
            .load(Ordering::Relaxed)
            .saturating_mul(BLOCK_SIZE_BYTES);
        if offset < bad.saturating_add(BLOCK_SIZE_BYTES) && offset + length > bad {
            return Err(Error::new(ErrorKind::Corrupt, "a block is bad"));
        }
        self.read_bytes.fetch_add(length, Ordering::Relaxed);
        buffer.copy_from_slice(&self.bytes(offset, buffer.len()));
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        self.check(offset, 1)?;
        let left = (self.size_bytes - offset).min(limit_bytes);
        let first = offset / BLOCK_SIZE_BYTES;
        let is_data = self.is_data(first);
        let mut end = (first + 1) * BLOCK_SIZE_BYTES;
        while end - offset < left && self.is_data(end / BLOCK_SIZE_BYTES) == is_data {
            end += BLOCK_SIZE_BYTES;
        }
        Ok(Extent {
            offset,
            length_bytes: (end - offset).min(left),
            kind: if is_data {
                ExtentKind::Data
            } else {
                ExtentKind::Zero
            },
        })
    }
}

/// Where to begin: a seed from outside brings a failure back.
pub fn seed() -> u64 {
    let given = std::env::var("HIKAE_SERVE_SEED").ok();
    let seed = given.map_or(20_261_122, |text| text.parse().expect("a number"));
    eprintln!("HIKAE_SERVE_SEED={seed}");
    seed
}
