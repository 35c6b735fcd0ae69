//! A Bloom filter over keys that are hashes already: ten bits and seven probes per entry, one in a hundred wrong.
//!
//! A published filter crate would hash the keys again and hide its size; this one takes its probes from the key and its
//! memory is known to the byte.

use super::EntryKey;

/// Bits per entry.
const BITS_PER_ENTRY: u64 = 10;
/// Probes per look-up.
const PROBES: u64 = 7;

pub(crate) struct Filter {
    words: Vec<u64>,
}

impl Filter {
    /// For so many entries.
    pub(crate) fn new(entries: usize) -> Self {
        let bits = u64::try_from(entries)
            .unwrap_or(0)
            .saturating_mul(BITS_PER_ENTRY)
            .max(64);
        let words = usize::try_from(bits.div_ceil(64)).unwrap_or(1);
        Self {
            words: vec![0; words],
        }
    }

    fn probes(&self, key: &EntryKey) -> impl Iterator<Item = (usize, u64)> + use<> {
        let (low, high) = key.split_at(8);
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or([0; 8]));
        let (start, step) = (number(low), number(high) | 1);
        let bits = u128::try_from(self.words.len()).unwrap_or(1) * 64;
        (0..PROBES).map(move |at| {
            let hash = start.wrapping_add(step.wrapping_mul(at));
            // The upper half of the product spreads the hash evenly over the bits.
            let bit = u64::try_from((u128::from(hash) * bits) >> 64).unwrap_or(0);
            (usize::try_from(bit / 64).unwrap_or(0), 1u64 << (bit % 64))
        })
    }

    pub(crate) fn insert(&mut self, key: &EntryKey) {
        for (word, bit) in self.probes(key) {
            if let Some(word) = self.words.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// `false`: certainly not there.
    pub(crate) fn may_hold(&self, key: &EntryKey) -> bool {
        self.probes(key)
            .all(|(word, bit)| self.words.get(word).is_some_and(|word| word & bit != 0))
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        u64::try_from(self.words.len())
            .unwrap_or(u64::MAX)
            .saturating_mul(8)
    }
}
