//! Carrying out a verdict, and putting the records of finished generations away.
//!
//! ```text
//!   points ─► members of bundles ─► their marks ─► packs ─► condemned record ─► verdicts that a newer one covers
//! ```
//!
//! **Invariants.** Every step can be done again from the start by anybody who reads the verdict. A point goes before its marks:
//! the other way round it would be shown again after a crash. A bundle is written anew before the old one goes. The verdict
//! with the highest number stays. No bundle is put by a collector whose lease is broken, or with a point that is retired: one
//! that was stopped for long does not bring back what others removed meanwhile.

use std::collections::BTreeSet;

use store::list_all;

use crate::access::ObjectAccess;
use crate::bundles::{self, delete_bundle, list_bundles, read_bundle};
use crate::format::PackKind;
use crate::lease::Lease;
use crate::points::{Bundle, PointKey};
use crate::vault::Vault;
use crate::{BundleId, ErrorKind, PackId, Result, names};

use super::numbers::{NumberSet, Numbers};
use super::records::{Verdict, VerdictOutcome, delete_verdict, read_records, union_of_numbers};
use super::report::{GcPhase, Quarantined};

/// Deletes what a verdict lists; counts the packs.
pub(super) fn apply_verdict(
    vault: &Vault,
    lease: &Lease,
    verdict: &Verdict,
    quarantined: &mut Vec<Quarantined>,
) -> Result<GcPhase> {
    let mut deleted = GcPhase::default();
    if verdict.outcome == VerdictOutcome::Aborted {
        return Ok(deleted);
    }
    drop_points(vault, lease, &verdict.points, quarantined)?;
    for pack in &verdict.packs {
        delete_pack(vault, *pack, &mut deleted)?;
    }
    Ok(deleted)
}

fn delete_pack(vault: &Vault, pack: PackId, deleted: &mut GcPhase) -> Result<()> {
    // The id does not say what the pack holds; to delete what is absent is no error.
    for kind in PackKind::ALL {
        let name = names::pack(kind, pack)?;
        match vault.store().size(&name) {
            Ok(size_bytes) => {
                vault.store().delete(&name)?;
                deleted.add(size_bytes);
            }
            Err(error) if error.kind() == store::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn drop_points(
    vault: &Vault,
    lease: &Lease,
    points: &[PointKey],
    quarantined: &mut Vec<Quarantined>,
) -> Result<()> {
    if points.is_empty() {
        return Ok(());
    }
    for key in points {
        vault.store().delete(&names::point(*key)?)?;
    }
    let gone: BTreeSet<PointKey> = points.iter().copied().collect();
    for (id, bundle) in read_bundles(vault, quarantined)? {
        let before = bundle.points.len();
        let left: Vec<_> = bundle
            .points
            .iter()
            .filter(|one| !gone.contains(&one.key))
            .cloned()
            .collect();
        if left.len() == before {
            continue;
        }
        if !left.is_empty() {
            let left = Bundle {
                points: left,
                ..bundle
            };
            put_bundle(vault, lease, left)?;
        }
        delete_bundle(vault.store(), id)?;
    }
    for key in points {
        let mut marks = Vec::new();
        for entry in list_all(vault.store(), &names::marks_of(*key)?) {
            marks.push(entry?.name);
        }
        for name in marks {
            vault.store().delete(&name)?;
        }
    }
    Ok(())
}

/// All readable bundles. A damaged one is left where it is.
pub(crate) fn read_bundles(
    vault: &Vault,
    quarantined: &mut Vec<Quarantined>,
) -> Result<Vec<(BundleId, Bundle)>> {
    let mut bundles = Vec::new();
    for id in list_bundles(vault.store())? {
        match read_bundle(vault, id) {
            Ok(bundle) => bundles.push((id, bundle)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if super::mark::is_damage(&error) => {
                quarantined.push(Quarantined {
                    object: names::bundle(id)?.to_string(),
                    what: error.to_string(),
                });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(bundles)
}

/// Puts a bundle under a new id, without what is retired by now; none when nothing is left of it.
///
/// # Errors
/// [`ErrorKind::Fenced`] when the collector's lease was broken; then nothing is put, and what the bundle replaces must stay.
pub(super) fn put_bundle(vault: &Vault, lease: &Lease, mut bundle: Bundle) -> Result<()> {
    lease.beat()?;
    let retired = retired_points(vault)?;
    bundle.points.retain(|one| !retired.contains(one.key));
    if bundle.points.is_empty() {
        return Ok(());
    }
    bundles::put_bundle(vault, &bundle)
}

/// Every point that a readable verdict removed.
pub(crate) fn retired_points(access: &dyn ObjectAccess) -> Result<NumberSet> {
    Ok(union_of_numbers(&read_records(access)?).retired)
}

/// Verdicts of aborted generations stay until this many newer generations were numbered: a collector that was stopped between
/// its last heartbeat and its verdict must find the place taken, and not decide by marks that are out of date.
const ABORTED_KEPT: u64 = 64;

/// Deletes the condemned record of a generation whose verdict is carried out, then the verdicts that are no longer needed.
pub(super) fn put_away(access: &dyn ObjectAccess, generation: u64) -> Result<()> {
    access.store().delete(&names::condemned(generation)?)?;
    let records = read_records(access)?;
    let Some(newest) = records.last().map(|record| record.generation) else {
        return Ok(());
    };
    for record in &records {
        let Some(Ok(verdict)) = &record.verdict else {
            continue;
        };
        if record.generation == newest || record.condemned.is_some() {
            continue;
        }
        if verdict.outcome == VerdictOutcome::Aborted
            && newest.saturating_sub(record.generation) <= ABORTED_KEPT
        {
            continue;
        }
        // Only verdicts that stay can cover it; the ones before it may have gone in this very loop.
        let mut cover = Numbers::default();
        let mut saw = verdict.seen.is_none();
        for later in records
            .iter()
            .filter(|later| later.generation > record.generation)
        {
            if let Some(Ok(later)) = &later.verdict {
                cover.merge(&later.numbers);
                saw |= later.seen.is_some();
            }
        }
        if saw && cover.covers(&verdict.numbers) {
            delete_verdict(access, record.generation)?;
        }
    }
    Ok(())
}
