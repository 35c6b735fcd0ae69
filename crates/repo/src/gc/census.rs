//! Everything that holds blobs, looked at once: points single and bundled, tombstones, marks.
//!
//! **Invariants.** Single points are listed before bundles: a point that moves meanwhile is seen in its bundle. What is
//! damaged is listed with its error and does not end the census.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{PlaceState, PointMemory, Whose, list_places};
use crate::marks::{PointMarks, PointVisibility, read_all_marks};
use crate::points::{PointKey, RecoveryPoint, SignedPoint};
use crate::retention::HoldState;
use crate::vault::Vault;
use crate::{Error, NameId, Result};

use super::numbers::{Numbers, Seen};
use super::records::{newest_seen, read_records, union_of_numbers};

/// All points of a repository at one look.
#[derive(Debug, Default)]
pub(crate) struct PointCensus {
    /// Readable points.
    pub(crate) points: BTreeMap<PointKey, RecoveryPoint>,
    /// The readable points exactly as they were committed.
    pub(crate) signed: BTreeMap<PointKey, SignedPoint>,
    /// Places of fenced writers.
    pub(crate) tombstones: BTreeSet<PointKey>,
    /// Objects that cannot be read: places and bundles.
    pub(crate) unreadable: Vec<(String, Option<PointKey>, Error)>,
    /// Marks by point, also of points that are not there.
    pub(crate) marks: BTreeMap<PointKey, PointMarks>,
    /// What verdicts said of numbers when the places were listed already: what they call removed is not among the points.
    pub(crate) numbers: Numbers,
    /// The highest number of each name that verdicts told before anything was listed: something must be there for it.
    pub(crate) given: BTreeMap<NameId, u64>,
    /// What the newest verdict had seen before anything was listed, of names that lost no point meanwhile.
    pub(crate) seen: Option<Seen>,
}

impl PointCensus {
    /// Looks at everything. What `memory` has read before is taken from there: points never change.
    pub(crate) fn take(vault: &Vault, memory: &PointMemory) -> Result<Self> {
        let before = read_records(vault)?;
        let told = union_of_numbers(&before);
        let mut seen = newest_seen(&before).cloned();
        // Marks come first: what they speak of was there before, so that it is listed, or was removed.
        let marks = read_all_marks(vault)?;
        let mut listing = list_places(vault, memory, Whose::All)?;
        let numbers = union_of_numbers(&read_records(vault)?);
        listing.drop_retired(&numbers.retired);
        if let Some(seen) = &mut seen {
            seen.marks
                .retain(|name, _| (told.retired.ranges(*name)).eq(numbers.retired.ranges(*name)));
        }
        let mut census = Self {
            marks,
            numbers,
            given: told.given,
            seen,
            ..Self::default()
        };
        for (key, place) in listing.places {
            match place.state {
                PlaceState::Point { point, signed } => {
                    census.points.insert(key, *point);
                    census.signed.insert(key, signed);
                }
                PlaceState::Tombstone => {
                    census.tombstones.insert(key);
                }
                PlaceState::Damaged(error) => {
                    census
                        .unreadable
                        .push((place.object.to_string(), Some(key), error));
                }
            }
        }
        for (object, error) in listing.damaged_bundles {
            census.unreadable.push((object.to_string(), None, error));
        }
        Ok(census)
    }

    /// Whether garbage collection may drop the point: forgotten and not held.
    pub(crate) fn is_droppable(&self, key: PointKey) -> bool {
        self.marks.get(&key).is_some_and(|marks| {
            marks.visibility() == PointVisibility::Forgotten && marks.hold() == HoldState::Free
        })
    }

    /// Places that are taken: points, tombstones, unreadable ones.
    pub(crate) fn taken(&self) -> BTreeSet<PointKey> {
        let damaged = self.unreadable.iter().filter_map(|(_, key, _)| *key);
        self.points
            .keys()
            .chain(&self.tombstones)
            .copied()
            .chain(damaged)
            .collect()
    }

    /// What a verdict that drops `dropped` shall say of numbers and marks: all that is known, and all that is seen here.
    pub(crate) fn note(&self, dropped: &[PointKey]) -> (Numbers, BTreeMap<NameId, u64>) {
        let mut numbers = self.numbers.clone();
        let parents = self.points.values().filter_map(|point| {
            let (name_id, parent) = (point.name_id, point.parent.as_ref()?);
            let sequence = parent.sequence;
            Some(PointKey { name_id, sequence })
        });
        let marked = (self.marks.iter()).filter(|(_, marks)| !marks.marks.is_empty());
        let marked = marked.map(|(key, _)| *key);
        let places = self.points.keys().chain(&self.tombstones).copied();
        for key in places.chain(parents).chain(marked) {
            numbers.see(key);
        }
        for key in dropped {
            numbers.retired.insert(*key);
        }
        let marks = self.mark_sums(&numbers);
        (numbers, marks)
    }

    /// Of each name, the highest numbers of the marks of all its points that were not removed, added up.
    fn mark_sums(&self, numbers: &Numbers) -> BTreeMap<NameId, u64> {
        let mut sums: BTreeMap<NameId, u64> = BTreeMap::new();
        for (key, marks) in &self.marks {
            if !numbers.retired.contains(*key) && !marks.marks.is_empty() {
                let sum = sums.entry(key.name_id).or_default();
                *sum = sum.saturating_add(marks.highest_number());
            }
        }
        sums
    }

    /// Names of which a mark is gone that was there when the newest verdict was put, and that leaves no gap. Where a mark
    /// cannot be read, that is what is to be told.
    pub(crate) fn names_without_newest_mark(&self) -> Vec<NameId> {
        let Some(seen) = &self.seen else {
            return Vec::new();
        };
        let unreadable: BTreeSet<NameId> = (self.marks.iter())
            .filter(|(_, marks)| !marks.unreadable.is_empty())
            .map(|(key, _)| key.name_id)
            .collect();
        let sums = self.mark_sums(&self.numbers);
        let less = |name: &NameId, sum: u64| sums.get(name).copied().unwrap_or(0) < sum;
        (seen.marks.iter())
            .filter(|(name, sum)| !unreadable.contains(*name) && less(name, **sum))
            .map(|(name, _)| *name)
            .collect()
    }

    /// The numbers of each name that have something readable or damaged at their place, as ranges.
    pub(crate) fn places(&self) -> BTreeMap<NameId, Vec<(u64, u64)>> {
        let mut places: BTreeMap<NameId, Vec<(u64, u64)>> = BTreeMap::new();
        for key in self.taken() {
            let ranges = places.entry(key.name_id).or_default();
            ranges.push((key.sequence, key.sequence));
        }
        places
    }
}
