//! What is known of the numbers that points were ever given, beyond the points that are there.
//!
//! ```text
//!   numbers of a name   1  2  3  4  5  6  7  8  9 10 11            next: 12
//!   there               ●        ●     ●     ●
//!   retired                ●  ●                          removed by garbage collection: shown never again
//!   lost                            ●     ●              in an object that nobody can read: shown if a copy brings it back
//!   given                                        = 11    the highest that was ever seen
//!   ─────────────────────────────────────────────────────────────────────────────────────────────────
//!   1..=given without any of the others: a point, a tombstone or a bundle was taken away by somebody
//! ```
//!
//! A verdict carries all of it; the union over all verdicts that are there counts and never shrinks. A bundle is put only
//! after a verdict says at least the numbers of its members, so that a bundle that cannot be read leaves no doubt about the
//! next number. Where the verdicts themselves cannot be read, no name is certain: a **floor** far above every known number
//! takes their place, for the names that are not known as well.
//!
//! **Invariants.** No operation here makes a number free again. Everything is bounded by what a record may hold.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::points::PointKey;
use crate::{NameId, SlotId};

/// How far above the highest number that anything readable speaks of a floor is laid. A name that was given a million
/// numbers more than any number that is still known of any name is not imagined.
const FLOOR_DISTANCE: u64 = 1_000_000;

/// Sequence numbers by name: ranges, both ends included, sorted, not touching.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NumberSet(BTreeMap<NameId, Vec<(u64, u64)>>);

impl NumberSet {
    /// Whether no number is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the number is in it.
    pub fn contains(&self, key: PointKey) -> bool {
        self.0.get(&key.name_id).is_some_and(|ranges| {
            ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&key.sequence))
        })
    }

    /// The highest number of a name.
    pub fn highest(&self, name: NameId) -> Option<u64> {
        self.0
            .get(&name)
            .and_then(|ranges| ranges.iter().map(|(_, last)| *last).max())
    }

    /// The numbers of a name, as sorted ranges with both ends included.
    pub fn ranges(&self, name: NameId) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.get(&name).into_iter().flatten().copied()
    }

    /// The names that have a number in it.
    pub fn names(&self) -> impl Iterator<Item = NameId> + '_ {
        self.0.keys().copied()
    }

    /// Adds one more.
    pub fn insert(&mut self, key: PointKey) {
        self.insert_range(key.name_id, key.sequence, key.sequence);
    }

    /// Adds all numbers from `first` to `last`, both included.
    pub fn insert_range(&mut self, name: NameId, first: u64, last: u64) {
        let ranges = self.0.entry(name).or_default();
        ranges.push((first, last.max(first)));
        ranges.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges.drain(..) {
            match joined.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
                _ => joined.push((first, last)),
            }
        }
        *ranges = joined;
    }

    /// Adds all of another set.
    pub fn merge(&mut self, other: &Self) {
        for (name, ranges) in &other.0 {
            for (first, last) in ranges {
                self.insert_range(*name, *first, *last);
            }
        }
    }

    /// Whether all of `other` is in here.
    pub fn covers(&self, other: &Self) -> bool {
        let mut both = self.clone();
        both.merge(other);
        both == *self
    }
}

/// A damaged object so far above everything readable says nothing about which number comes next: only a stray or a forged
/// name lies there, and numbers must not run out because of it.
pub(crate) const NUMBER_GAP_MAX: u64 = 1 << 32;

/// What a verdict says of numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Numbers {
    /// Points that garbage collection removed.
    #[serde(default, skip_serializing_if = "NumberSet::is_empty")]
    pub retired: NumberSet,
    /// Numbers of which nobody knows any more what had them: a repair gave them up.
    #[serde(default, skip_serializing_if = "NumberSet::is_empty")]
    pub lost: NumberSet,
    /// The highest number of each name that was seen, tombstones included.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub given: BTreeMap<NameId, u64>,
    /// Numbers up to this one are taken for names that `given` does not know.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub floor: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks with a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Numbers {
    /// Notes that a number was given.
    pub(crate) fn see(&mut self, key: PointKey) {
        let floor = self.floor;
        let given = self.given.entry(key.name_id).or_insert_with(|| {
            // From now on the name is known: what the floor said of it is said in full.
            if floor > 0 {
                self.lost.insert_range(key.name_id, 1, floor);
            }
            floor
        });
        *given = (*given).max(key.sequence);
    }

    /// Whether a number that an unreadable object bears can have been given: one far above all others is a stray's.
    pub(crate) fn is_plausible(&self, key: PointKey) -> bool {
        key.sequence <= self.highest(key.name_id).saturating_add(NUMBER_GAP_MAX)
    }

    /// The highest number of a name that was ever given, as far as this knows; zero when it knows of none.
    pub(crate) fn highest(&self, name: NameId) -> u64 {
        let given = self.given.get(&name).copied().unwrap_or(self.floor);
        let retired = self.retired.highest(name).unwrap_or(0);
        given.max(retired).max(self.lost.highest(name).unwrap_or(0))
    }

    /// Whether it says the numbers of the members of every bundle that is there: none is put before.
    pub(crate) fn tell_of_bundles(&self) -> bool {
        !self.given.is_empty()
    }

    /// Every name that it speaks of.
    pub(crate) fn names(&self) -> impl Iterator<Item = NameId> + '_ {
        let given = self.given.keys().copied();
        given.chain(self.retired.names()).chain(self.lost.names())
    }

    /// The numbers of a name that need no point: removed ones and lost ones, as ranges in no order.
    pub(crate) fn explained(&self, name: NameId) -> impl Iterator<Item = (u64, u64)> + '_ {
        let below_floor = (self.floor > 0 && !self.given.contains_key(&name)).then_some(self.floor);
        let below_floor = below_floor.map(|floor| (1, floor));
        (self.retired.ranges(name))
            .chain(self.lost.ranges(name))
            .chain(below_floor)
    }

    /// Adds all that another record says.
    pub(crate) fn merge(&mut self, other: &Self) {
        let floor = self.floor.max(other.floor);
        // A floor concerns the names that its own record did not know: those of the other one were known before or after
        // it was laid, and stay above it either way.
        for name in self.given.keys().filter(|_| other.floor > 0) {
            if !other.given.contains_key(name) {
                self.lost.insert_range(*name, 1, other.floor);
            }
        }
        for (name, number) in &other.given {
            if !self.given.contains_key(name) && self.floor > 0 {
                self.lost.insert_range(*name, 1, self.floor);
            }
            let given = self.given.entry(*name).or_default();
            *given = (*given).max(*number);
        }
        self.floor = floor;
        self.retired.merge(&other.retired);
        self.lost.merge(&other.lost);
    }

    /// Whether it says all that `other` says.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.retired.covers(&other.retired)
            && self.lost.covers(&other.lost)
            && self.floor >= other.floor
            && (other.given.iter()).all(|(name, number)| self.highest(*name) >= *number)
    }

    /// Lays a floor: for every name, known or not, numbers up to far above the highest known one are taken. `known` are the
    /// numbers that something readable has, by name. Gives the floor.
    pub(crate) fn lay_floor(&mut self, known: &BTreeMap<NameId, Vec<(u64, u64)>>) -> u64 {
        let there = known.values().flatten().map(|(_, last)| *last).max();
        let told = self.names().map(|name| self.highest(name)).max();
        let highest = there.max(told).unwrap_or(0).max(self.floor);
        let floor = highest.saturating_add(FLOOR_DISTANCE);
        for (name, gaps) in self.gaps(known, |_| floor) {
            for (first, last) in gaps {
                self.lost.insert_range(name, first, last);
            }
            self.given.insert(name, floor);
        }
        self.floor = floor;
        floor
    }

    /// The numbers of each name up to `highest` that nothing has and nothing explains.
    pub(crate) fn gaps(
        &self,
        known: &BTreeMap<NameId, Vec<(u64, u64)>>,
        highest: impl Fn(NameId) -> u64,
    ) -> BTreeMap<NameId, Vec<(u64, u64)>> {
        let names: std::collections::BTreeSet<NameId> =
            known.keys().copied().chain(self.names()).collect();
        let mut all = BTreeMap::new();
        for name in names {
            let there = known.get(&name).into_iter().flatten().copied();
            let mut ranges: Vec<(u64, u64)> = there.chain(self.explained(name)).collect();
            ranges.sort_unstable();
            let gaps = gaps_between(&ranges, highest(name));
            if !gaps.is_empty() {
                all.insert(name, gaps);
            }
        }
        all
    }
}

/// What of `1..=highest` lies in none of the ranges, which are sorted.
pub(crate) fn gaps_between(known: &[(u64, u64)], highest: u64) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    let mut next = 1u64;
    for (first, last) in known {
        if *first > highest {
            break;
        }
        if *first > next {
            gaps.push((next, first.saturating_sub(1)));
        }
        next = next.max(last.saturating_add(1));
        if *last == u64::MAX {
            return gaps;
        }
    }
    if next <= highest {
        gaps.push((next, highest));
    }
    gaps
}

/// What was there when a verdict was put and leaves no gap when somebody takes it away. The newest one counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Of each name, the highest numbers of the marks of all its points that stay, added up.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub marks: BTreeMap<NameId, u64>,
    /// The key slots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<SlotId>,
}
