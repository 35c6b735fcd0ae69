//! Identities of a VHDX, and where new ones come from.
//!
//! **Invariants.** No randomness of its own: who makes or changes an image brings the source of new ids, so that a
//! simulated estate can be replayed from its seed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// Changes whenever the bytes of the virtual disk may have changed (DataWriteGuid): a child names its parent by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriteId(pub Uuid);

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

/// Where new ids come from: 16 bytes at a time, never the same twice.
#[derive(Clone)]
pub struct IdSource(Arc<dyn Fn() -> [u8; 16] + Send + Sync>);

impl fmt::Debug for IdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdSource")
    }
}

impl IdSource {
    /// Takes a source of random bytes, the operating system's in a product.
    pub fn new(source: impl Fn() -> [u8; 16] + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// Ids that follow from a seed: for simulations and tests, never for an image that somebody keeps.
    pub fn seeded(seed: u64) -> Self {
        let counter = AtomicU64::new(seed);
        Self::new(move || {
            let mut bytes = [0; 16];
            for half in bytes.as_chunks_mut::<8>().0 {
                let step = counter.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
                let mixed = (step ^ (step >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                *half = (mixed ^ (mixed >> 27))
                    .wrapping_mul(0x94D0_49BB_1331_11EB)
                    .to_le_bytes();
            }
            bytes
        })
    }

    /// A new identity for a disk.
    pub fn disk_id(&self) -> crate::DiskId {
        crate::DiskId(self.next())
    }

    /// The next id, marked as a random (version 4) UUID.
    pub(crate) fn next(&self) -> Uuid {
        uuid::Builder::from_random_bytes((self.0)()).into_uuid()
    }
}
