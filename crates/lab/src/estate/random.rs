//! Numbers and ids that follow from a seed.
//!
//! **Invariant.** The same seed and the same calls give the same numbers, on every machine.

use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;
use vdisk::vhdx::IdSource;

/// A stream of numbers from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The stream of a seed.
    pub fn seeded(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64().checked_rem(bound).unwrap_or(0)
    }

    /// An id, marked as a random (version 4) UUID.
    pub fn uuid(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.bytes16()).into_uuid()
    }

    /// Sixteen bytes.
    pub fn bytes16(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for half in bytes.as_chunks_mut::<8>().0 {
            *half = self.next_u64().to_le_bytes();
        }
        bytes
    }

    /// An independent stream.
    pub fn fork(&mut self) -> Self {
        Self::seeded(self.next_u64())
    }

    /// An independent source of ids for disks.
    pub(super) fn id_source(&mut self) -> IdSource {
        let stream = Arc::new(Mutex::new(self.fork()));
        IdSource::new(move || {
            stream
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .bytes16()
        })
    }
}
