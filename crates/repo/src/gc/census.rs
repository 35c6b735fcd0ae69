//! Everything that holds blobs, looked at once: points single and bundled, tombstones, marks.
//!
//! **Invariants.** Single points are listed before bundles: a point that moves meanwhile is seen in its bundle. What is
//! damaged is listed with its error and does not end the census.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{PlaceState, PointMemory, Whose, list_points};
use crate::marks::{PointMarks, PointVisibility, read_all_marks};
use crate::points::{PointKey, RecoveryPoint, SignedPoint};
use crate::retention::HoldState;
use crate::vault::Vault;
use crate::{Error, Result};

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
}

impl PointCensus {
    /// Looks at everything. What `memory` has read before is taken from there: points never change.
    pub(crate) fn take(vault: &Vault, memory: &PointMemory) -> Result<Self> {
        // Marks come first: what they speak of was there before, so that it is listed, or was removed.
        let mut census = Self {
            marks: read_all_marks(vault)?,
            ..Self::default()
        };
        let listing = list_points(vault, memory, Whose::All)?;
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
}
