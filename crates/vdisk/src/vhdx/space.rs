//! Which mebibytes of the file are taken: one bit each, and only where something is.
//!
//! ```text
//!   file mebibyte ──► leaf of 32,768 bits (4 KiB, made when first needed) ──► bit
//! ```
//!
//! **Invariants.** Memory follows what is allocated, at most 1 bit per mebibyte of file plus one leaf. Taking what is
//! taken is an error that names the place.

use std::collections::HashMap;

use super::bytes::to_usize;
use super::header::MIB;
use super::region::Span;

const LEAF_WORDS: u64 = 512;
const WORD_BITS: u64 = 64;

/// Whether taking what is taken is a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    Exclusive,
    /// Marks what nobody reads but somebody may own: never a fault.
    Lenient,
}

/// The mebibytes of one file.
#[derive(Debug, Default)]
pub(super) struct SpaceMap {
    leaves: HashMap<u64, Vec<u64>>,
    /// First mebibyte behind everything taken.
    end_mib: u64,
    taken_mib: u64,
}

/// The bits `from..to` of a word, both cut to 64.
fn mask(from: u64, to: u64) -> u64 {
    let below = |count: u64| match u32::try_from(count) {
        Ok(count) if count < 64 => 1u64.wrapping_shl(count).wrapping_sub(1),
        _ => u64::MAX,
    };
    below(to) & !below(from)
}

impl SpaceMap {
    /// Visits the words that a range touches: leaf, word in the leaf, mask, first mebibyte of the word.
    fn words(first: u64, end: u64) -> impl Iterator<Item = (u64, usize, u64, u64)> {
        (first / WORD_BITS..end.div_ceil(WORD_BITS)).map(move |word| {
            let base = word.saturating_mul(WORD_BITS);
            (
                word / LEAF_WORDS,
                to_usize(word % LEAF_WORDS),
                mask(first.saturating_sub(base), end.saturating_sub(base)),
                base,
            )
        })
    }

    /// Takes a range. On a fault answers the offset of the first mebibyte that was taken before, having taken the rest.
    pub(super) fn claim(&mut self, span: Span, claim: Claim) -> Result<(), u64> {
        let first = span.offset / MIB;
        let end = span.end().div_ceil(MIB);
        let mut fault = None;
        for (leaf, index, mask, base) in Self::words(first, end) {
            let words = self
                .leaves
                .entry(leaf)
                .or_insert_with(|| vec![0; to_usize(LEAF_WORDS)]);
            let Some(word) = words.get_mut(index) else {
                continue;
            };
            let before = *word & mask;
            if before != 0 && fault.is_none() {
                let bit = u64::from(before.trailing_zeros());
                fault = Some(base.saturating_add(bit).saturating_mul(MIB));
            }
            *word |= mask;
            let fresh = u64::from((mask & !before).count_ones());
            self.taken_mib = self.taken_mib.saturating_add(fresh);
        }
        self.end_mib = self.end_mib.max(end);
        match (fault, claim) {
            (Some(offset), Claim::Exclusive) => Err(offset),
            _ => Ok(()),
        }
    }

    /// Offset of the first mebibyte of a range that is taken, if one is.
    pub(super) fn probe(&self, span: Span) -> Option<u64> {
        Self::words(span.offset / MIB, span.end().div_ceil(MIB)).find_map(
            |(leaf, index, mask, base)| {
                let taken = self.leaves.get(&leaf)?.get(index)? & mask;
                let bit = u64::from(taken.trailing_zeros());
                (taken != 0).then(|| base.saturating_add(bit).saturating_mul(MIB))
            },
        )
    }

    /// Gives a range back.
    pub(super) fn release(&mut self, span: Span) {
        for (leaf, index, mask, _) in Self::words(span.offset / MIB, span.end().div_ceil(MIB)) {
            if let Some(word) = self
                .leaves
                .get_mut(&leaf)
                .and_then(|words| words.get_mut(index))
            {
                let freed = u64::from((*word & mask).count_ones());
                *word &= !mask;
                self.taken_mib = self.taken_mib.saturating_sub(freed);
            }
        }
    }

    /// Byte behind everything that was ever taken.
    pub(super) fn end(&self) -> u64 {
        self.end_mib.saturating_mul(MIB)
    }

    /// Mebibytes below [`Self::end`] that nobody has.
    pub(super) fn free_mib(&self) -> u64 {
        self.end_mib.saturating_sub(self.taken_mib)
    }

    /// The first free run of so many mebibytes at or behind `from`, wholly below [`Self::end`].
    pub(super) fn find_free(&self, length_mib: u64, from: u64) -> Option<u64> {
        let mut at = from / MIB;
        let mut run = 0u64;
        while at < self.end_mib {
            let word = self
                .leaves
                .get(&(at / WORD_BITS / LEAF_WORDS))
                .and_then(|words| words.get(to_usize(at / WORD_BITS % LEAF_WORDS)))
                .copied()
                .unwrap_or(0);
            if word == u64::MAX {
                run = 0;
                at = (at / WORD_BITS).saturating_add(1).saturating_mul(WORD_BITS);
                continue;
            }
            let bit = u32::try_from(at % WORD_BITS).unwrap_or(0);
            run = if word.wrapping_shr(bit) & 1 == 1 {
                0
            } else {
                run.saturating_add(1)
            };
            at = at.saturating_add(1);
            if run == length_mib {
                return Some(at.saturating_sub(run).saturating_mul(MIB));
            }
        }
        None
    }
}
