//! What must be there and is not: points and tombstones by their numbers, marks by theirs, key slots by what was seen.
//!
//! ```text
//!   highest number that anything readable speaks of ──► every number up to it has a point, a tombstone, or an explanation
//!   newest verdict ──► the sum of the numbers of each name's newest marks, the key slots
//! ```
//!
//! **Invariant.** Only sealed objects speak of others: a stray name proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::access::ObjectAccess;
use crate::gc::census::PointCensus;
use crate::gc::ground::Ground;
use crate::points::PointKey;
use crate::{NameId, Result, names};

use super::{FindingSeverity, PointGap, VerifyReport};

/// Looks for numbers without a point, and for what speaks of points that are not there.
pub(super) fn check_places(
    ground: &Ground,
    census: &PointCensus,
    report: &mut VerifyReport,
) -> Result<()> {
    for (object, _, error) in &census.unreadable {
        report.find(object, error, FindingSeverity::Damaged);
    }
    let mut highest: BTreeMap<NameId, u64> = census.given.clone();
    let parents = census.points.values().filter_map(|point| {
        let sequence = point.parent.as_ref()?.sequence;
        Some(PointKey {
            name_id: point.name_id,
            sequence,
        })
    });
    let retired_highest = census.numbers.retired.names().filter_map(|name_id| {
        Some(PointKey {
            name_id,
            sequence: census.numbers.retired.highest(name_id)?,
        })
    });
    // Only what can be read speaks of other places: anybody can put an object with any number in its name.
    let marked = census
        .marks
        .iter()
        .filter(|(_, marks)| !marks.marks.is_empty());
    let spoken_of = (census.points.keys().chain(&census.tombstones))
        .chain(marked.map(|(key, _)| key))
        .copied()
        .chain(parents);
    for key in spoken_of.chain(retired_highest) {
        let highest = highest.entry(key.name_id).or_default();
        *highest = (*highest).max(key.sequence);
    }
    let highest_of = |name_id| highest.get(&name_id).copied().unwrap_or(0);
    for (name_id, gaps) in census.numbers.gaps(&census.places(), highest_of) {
        for (first, last) in gaps {
            report.missing_points.push(PointGap {
                name_id,
                first,
                last,
            });
            let what = match last.saturating_sub(first) {
                0 => {
                    "there must have been a point or a tombstone, and nothing removed it".to_owned()
                }
                _ => format!(
                    "from here to {last:016x} there must have been points or tombstones, and nothing removed them"
                ),
            };
            let sequence = first;
            let place = names::point(PointKey { name_id, sequence })?;
            report.find(place, what, FindingSeverity::Damaged);
        }
    }
    check_slots(ground, census, report)?;
    check_marks(census, report)
}

/// Looks for key slots that were there when garbage was collected last.
fn check_slots(ground: &Ground, census: &PointCensus, report: &mut VerifyReport) -> Result<()> {
    for slot in census.seen.iter().flat_map(|seen| &seen.slots) {
        let name = names::slot(*slot)?;
        match ground.vault.store().size(&name) {
            Ok(_) => {}
            Err(error) if error.kind() == store::ErrorKind::NotFound => {
                let what = "this key slot is gone since garbage was collected last; if you removed it, all is well";
                report.find(name, what, FindingSeverity::Degraded);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Looks for marks that are gone.
fn check_marks(census: &PointCensus, report: &mut VerifyReport) -> Result<()> {
    for name_id in census.names_without_newest_mark() {
        let what = "the newest mark of one of its points is missing";
        report.find(format!("marks/{name_id}-…"), what, FindingSeverity::Damaged);
    }
    for (key, marks) in &census.marks {
        let numbers: BTreeSet<u64> = marks.marks.iter().map(|mark| mark.number).collect();
        let newest = numbers.last().copied().unwrap_or(0);
        let readable = u64::try_from(numbers.len()).unwrap_or(u64::MAX);
        let unreadable = u64::try_from(marks.unreadable.len()).unwrap_or(u64::MAX);
        if readable.saturating_add(unreadable) < newest {
            report.find(
                names::marks_of(*key)?,
                "a mark is missing",
                FindingSeverity::Damaged,
            );
        }
    }
    Ok(())
}
