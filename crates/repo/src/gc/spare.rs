//! Blobs that lie more than once: the places that marking did not choose are spare, and a spare one goes only when a chosen
//! one was read and hashed.
//!
//! ```text
//!   blob ──► chosen place, marked            pack of the spare place is to go:
//!        └─► spare place                       chosen place reads well ──► it may
//!                                              it does not, this one does ──► this one is marked as well: its pack stays
//!                                              neither does ──► nothing is lost by it that was not lost before
//! ```
//!
//! A bit may have flipped in the chosen place since it was written, and a later backup may have stored the blob anew because of
//! just that. Without this check the good copy would be the one to go.
//!
//! **Invariants.** Only packs that are to go are looked into, so that the cost is one read per copy that is given up. Answers err
//! to the side of keeping.

use std::collections::BTreeSet;

use crate::index::BlobPlace;
use crate::pack::PackFile;
use crate::parallel::read_each;
use crate::{BlobName, Error, PackId, Result};

use super::ground::Ground;
use super::mark::{BlobMarks, is_damage};
use super::report::Quarantined;

/// What was learnt about places so far.
#[derive(Debug, Default)]
pub(super) struct SpareCheck {
    /// Places that were read and hashed.
    good: BlobMarks,
    /// Packs whose spare places are all settled.
    settled: BTreeSet<PackId>,
}

/// What became of a pack that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpareOutcome {
    /// Every live blob of it has a good place elsewhere, or was no good here either.
    MayGo,
    /// So many of its blobs were marked: they are nowhere else.
    Needed(u32),
    /// What is in it cannot be told.
    Unreadable,
}

/// What reading a spare blob's places showed.
enum Copies {
    /// This marked place is good.
    Elsewhere(BlobPlace),
    /// Only the spare one is good; the marked one is damaged.
    OnlyHere(Error),
    /// None is good, or nothing needs the blob.
    Nowhere,
}

impl SpareCheck {
    /// Looks at the spare places of a pack that is to go.
    ///
    /// # Errors
    /// Failures of the store or the index that are no damage.
    pub(super) fn settle(
        &mut self,
        ground: &Ground,
        pack: PackId,
        spares: &BlobMarks,
        marks: &mut BlobMarks,
        quarantined: &mut Vec<Quarantined>,
    ) -> Result<SpareOutcome> {
        let Some(number) = ground.index.pack_number(pack) else {
            return Ok(SpareOutcome::MayGo);
        };
        if spares.count(number) == 0 || !self.settled.insert(pack) {
            return Ok(SpareOutcome::MayGo);
        }
        let Some(row) = ground.index.pack(number) else {
            return Ok(SpareOutcome::MayGo);
        };
        let file = match PackFile::open(&ground.vault, row.kind, row.id) {
            Ok(file) => file,
            Err(error) if is_damage(&error) => {
                let object = pack.to_string();
                let what = error.to_string();
                quarantined.push(Quarantined { object, what });
                return Ok(SpareOutcome::Unreadable);
            }
            Err(error) => return Err(error),
        };
        let place = |ordinal| BlobPlace {
            pack: number,
            ordinal,
        };
        let doubled: Vec<(u32, BlobName)> = file
            .blobs()
            .filter(|(ordinal, _)| spares.contains(place(*ordinal)))
            .filter(|(ordinal, _)| !marks.contains(place(*ordinal)))
            .map(|(ordinal, entry)| (ordinal, entry.name))
            .collect();
        let (known, live) = (&self.good, &*marks);
        let found = read_each(&doubled, |(ordinal, name)| {
            look(ground, &file, *ordinal, name, known, live)
        })?;
        let mut needed = 0u32;
        for ((ordinal, name), copies) in doubled.iter().zip(found) {
            match copies {
                Copies::Elsewhere(good) => drop(self.good.insert(good)),
                Copies::OnlyHere(error) => {
                    marks.insert(place(*ordinal));
                    self.good.insert(place(*ordinal));
                    needed = needed.saturating_add(1);
                    let object = name.to_string();
                    let what = error.to_string();
                    quarantined.push(Quarantined { object, what });
                }
                Copies::Nowhere => {}
            }
        }
        Ok(match needed {
            0 => SpareOutcome::MayGo,
            count => SpareOutcome::Needed(count),
        })
    }
}

/// Reads the marked places of a blob until one is good, then the spare one.
fn look(
    ground: &Ground,
    file: &PackFile,
    ordinal: u32,
    name: &BlobName,
    known: &BlobMarks,
    marks: &BlobMarks,
) -> Result<Copies> {
    let mut damage = None;
    let homes = ground.homes().homes(name)?;
    for place in homes.into_iter().filter(|place| marks.contains(*place)) {
        if known.contains(place) {
            return Ok(Copies::Elsewhere(place));
        }
        match read_at(ground, name, place) {
            Ok(()) => return Ok(Copies::Elsewhere(place)),
            Err(error) if is_damage(&error) => damage = Some(error),
            Err(error) => return Err(error),
        }
    }
    let Some(damage) = damage else {
        return Ok(Copies::Nowhere);
    };
    match file.read_blob(&ground.vault, ordinal) {
        Ok(_) => Ok(Copies::OnlyHere(damage)),
        Err(error) if is_damage(&error) => Ok(Copies::Nowhere),
        Err(error) => Err(error),
    }
}

/// Reads one place, decodes and hashes it.
fn read_at(ground: &Ground, name: &BlobName, place: BlobPlace) -> Result<()> {
    let gone = || Error::corrupt(name, format_args!("nothing in pack number {}", place.pack));
    let row = ground.index.pack(place.pack).ok_or_else(gone)?;
    let cache = ground.repository.pack_cache();
    let file = cache.open(&ground.vault, row.kind, row.id)?;
    let entry = file.entry(place.ordinal).ok_or_else(gone)?;
    if entry.name != *name {
        return Err(gone());
    }
    file.read_blob(&ground.vault, place.ordinal).map(|_| ())
}
