//! Which of a leaf's 128 blocks are meant: one bit each.

use std::fmt;

use crate::geometry::FANOUT;

/// A set of slots of one leaf.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct SlotSet(u128);

impl SlotSet {
    /// No slot.
    pub const EMPTY: Self = Self(0);
    /// Every slot.
    pub const ALL: Self = Self(u128::MAX);

    /// The set with these bits, the lowest being slot 0.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// One bit per slot, the lowest being slot 0.
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// The slots from `first` up to but not with `end`; what lies behind the last slot is cut off.
    pub fn run(first: usize, end: usize) -> Self {
        let below = |end: usize| {
            if end >= FANOUT {
                u128::MAX
            } else {
                (1u128 << end) - 1
            }
        };
        Self(below(end) & !below(first))
    }

    /// Whether the slot is in it; never for one that does not exist.
    pub fn contains(self, slot: usize) -> bool {
        slot < FANOUT && self.0 >> slot & 1 == 1
    }

    /// Adds a slot; one that does not exist is ignored.
    pub fn insert(&mut self, slot: usize) {
        *self = self.union(Self::run(slot, slot.saturating_add(1)));
    }

    /// Takes a slot out.
    pub fn remove(&mut self, slot: usize) {
        *self = self.without(Self::run(slot, slot.saturating_add(1)));
    }

    /// What is in either.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this and not in the other.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether it has no slot.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many slots.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The slots in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let slot = left.trailing_zeros();
            (left != 0).then(|| {
                left &= left - 1;
                slot as usize
            })
        })
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
