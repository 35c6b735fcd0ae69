//! Points that nobody can read and no source has: what is given up, and how no number is used twice because of it.
//!
//! ```text
//!   damaged bundle, damaged point ──► do other objects account for all numbers that were given?
//!        yes (all of it was restored elsewhere) ─────────────────────────► put away
//!        no ── told to give up ──► verdict: these numbers are lost ──────► put away; the point's place gets a tombstone
//!           └─ not told ─────────► reported, left as it is
//!
//!   verdict and its copy damaged ──► numbers that nothing has are taken for removed; a floor far above all known numbers is
//!                                    laid for every name, since the highest ones are not known ──► empty verdicts
//! ```
//!
//! **Invariants.** The numbers are written down before anything is put away, and put away means: durable under `quarantine/`
//! before it goes from where it was. A number that a lease has reserved is not declared lost. A lost number is never given again; a
//! point that a later source brings back to it is shown.

use std::collections::BTreeMap;

use crate::access::ObjectAccess;
use crate::catalog::PointMemory;
use crate::format::envelope::MAX_ENVELOPE_BYTES;
use crate::gc::Numbers;
use crate::gc::census::PointCensus;
use crate::gc::records::{PutOutcome, Verdict, VerdictOutcome, put_verdict, read_records};
use crate::lease::list_leases;
use crate::points::PointKey;
use crate::verify::PointGap;
use crate::{Error, ErrorKind, NameId, Result, names};
use store::ObjectName;

use super::{Repair, RepairMode};

/// What becomes of points that nobody can read and no source has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnreadablePolicy {
    /// They stay where they are, and keep all packs: what they need is not known.
    Keep,
    /// They are put away, and what only they needed is garbage.
    GiveUp,
}

/// What of points is lost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LostPoints {
    /// Points and bundles that nobody can read.
    pub unreadable: Vec<String>,
    /// Those of them that are (to be) put away.
    pub put_away: Vec<String>,
    /// Numbers of which nothing tells what had them. They are never given again.
    pub numbers: Vec<PointGap>,
    /// Numbers up to this one are never given again, of any name: verdicts that told them are lost.
    pub floor: Option<u64>,
}

/// A damaged object, and the point's place that it is.
type Unreadable = (ObjectName, Option<PointKey>);

impl Repair<'_> {
    /// Gives up what nobody can read, if told to or if nothing is lost by it.
    pub(super) fn give_up_points(&mut self) -> Result<()> {
        let vault = &self.ground.vault;
        let census = PointCensus::take(vault, &PointMemory::default())?;
        let mut objects: Vec<Unreadable> = Vec::new();
        for (object, key, error) in &census.unreadable {
            // One whose key is not here, or of a newer program, may be as good as any.
            if error.kind() == ErrorKind::Corrupt {
                objects.push((object.parse()?, *key));
            }
        }
        let all_corrupt = objects.len() == census.unreadable.len();
        let bundles = objects.iter().any(|(_, key)| key.is_none());
        // A floor stands for numbers that lost verdicts told: below it, nothing says that a number is explained.
        let certain = !bundles
            || (census.numbers.tell_of_bundles()
                && census.numbers.floor == 0
                && are_all_verdicts_readable(vault.as_ref())?);
        let mut numbers = self.numbers_given_up(&census, certain)?;
        let lost = &mut self.report.lost;
        lost.unreadable = (objects.iter())
            .map(|(object, _)| object.to_string())
            .collect();
        lost.numbers = numbers.gaps.clone();
        // A bundle holds nothing that is not elsewhere when no number is unaccounted for.
        let nothing_lost = certain && all_corrupt && numbers.gaps.is_empty();
        match self.unreadable {
            UnreadablePolicy::GiveUp => {}
            UnreadablePolicy::Keep if nothing_lost => objects.retain(|(_, key)| key.is_none()),
            UnreadablePolicy::Keep => return Ok(()),
        }
        if objects.is_empty() && numbers.gaps.is_empty() {
            return Ok(());
        }
        lost.put_away = (objects.iter())
            .map(|(object, _)| object.to_string())
            .collect();
        if !certain {
            lost.floor = Some(numbers.told.floor);
        }
        if self.mode == RepairMode::DryRun {
            return Ok(());
        }
        let singles: Vec<PointKey> = objects.iter().filter_map(|(_, key)| *key).collect();
        let strays: Vec<PointKey> = (singles.iter().copied())
            .filter(|key| !numbers.told.is_plausible(*key))
            .collect();
        for key in singles.iter().filter(|key| !strays.contains(key)) {
            numbers.told.see(*key);
            numbers.told.lost.insert(*key);
        }
        if !numbers.gaps.is_empty() || !certain || singles.len() > strays.len() {
            self.put_numbers(numbers.told)?;
        }
        for (object, key) in objects {
            self.put_away(&object)?;
            match key {
                // So far above all others no writer put it: a place taken there would end the name's numbers.
                Some(key) if strays.contains(&key) => {}
                // It may have been a tombstone: whoever was fenced by it must still find the place taken.
                Some(key) => self.take_place(key)?,
                None => {
                    let copy = names::twin(&object);
                    copy.map_or(Ok(()), |copy| self.put_away(&copy))?;
                }
            }
        }
        Ok(())
    }

    fn take_place(&self, key: PointKey) -> Result<()> {
        match self.ground.vault.put_tombstone(key, self.lease.id()) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Copies a damaged object as it is, then takes it from its place.
    fn put_away(&self, object: &ObjectName) -> Result<()> {
        self.lease.check()?;
        let vault = &self.ground.vault;
        let limit = u64::try_from(MAX_ENVELOPE_BYTES).unwrap_or(u64::MAX);
        let bytes = match vault.store().get_bounded(object, limit) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == store::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match vault.store().put_new(&names::put_away(object)?, &bytes) {
            Ok(()) => {}
            // An earlier repair was stopped behind this.
            Err(error) if error.kind() == store::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
        Ok(vault.store().delete(object)?)
    }

    /// What is to be told of numbers once the unreadable points are given up.
    fn numbers_given_up(&self, census: &PointCensus, certain: bool) -> Result<GivenUp> {
        let (mut told, _) = census.note(&[]);
        let there = self.accounted(census)?;
        let gaps = unaccounted(&told, &there);
        for gap in &gaps {
            told.lost.insert_range(gap.name_id, gap.first, gap.last);
        }
        if !certain {
            told.lay_floor(&there);
        }
        Ok(GivenUp { told, gaps })
    }

    /// What is to be told of numbers when verdicts are lost: what nothing has was removed by garbage collection, or else lies
    /// in a damaged bundle; and nobody knows the highest ones.
    pub(super) fn numbers_without_verdicts(&mut self) -> Result<Numbers> {
        let census = PointCensus::take(&self.ground.vault, &PointMemory::default())?;
        let (mut told, _) = census.note(&[]);
        let there = self.accounted(&census)?;
        let bundles = census.unreadable.iter().any(|(_, key, _)| key.is_none());
        for gap in unaccounted(&told, &there) {
            let set = if bundles {
                &mut told.lost
            } else {
                &mut told.retired
            };
            set.insert_range(gap.name_id, gap.first, gap.last);
            self.report.lost.numbers.push(gap);
        }
        self.report.lost.floor = Some(told.lay_floor(&there));
        Ok(told)
    }

    /// Numbers that something has: a point, a tombstone, a damaged point, a lease that reserved it.
    fn accounted(&self, census: &PointCensus) -> Result<BTreeMap<NameId, Vec<(u64, u64)>>> {
        let mut there = census.places();
        let (told, _) = census.note(&[]);
        let strays = (census.unreadable.iter()).filter_map(|(_, key, _)| *key);
        for stray in strays.filter(|key| !told.is_plausible(*key)) {
            if let Some(ranges) = there.get_mut(&stray.name_id) {
                ranges.retain(|(first, _)| *first != stray.sequence);
            }
        }
        for view in list_leases(self.ground.vault.as_ref())? {
            if let Ok(body) = &view.body
                && let Some(key) = body.reserved
            {
                let ranges = there.entry(key.name_id).or_default();
                ranges.push((key.sequence, key.sequence));
            }
        }
        Ok(there)
    }

    /// Puts a verdict that deletes nothing and tells of numbers.
    pub(super) fn put_numbers(&self, numbers: Numbers) -> Result<()> {
        let vault = self.ground.vault.as_ref();
        let highest = read_records(vault)?
            .last()
            .map_or(0, |record| record.generation);
        let verdict = Verdict {
            generation: highest.saturating_add(1),
            outcome: VerdictOutcome::Delete,
            packs: Vec::new(),
            points: Vec::new(),
            numbers,
            seen: None,
        };
        self.lease.beat()?;
        match put_verdict(vault, &verdict)? {
            PutOutcome::Put => Ok(()),
            PutOutcome::Taken => Err(Error::new(ErrorKind::Busy, "garbage is being collected")),
        }
    }
}

fn are_all_verdicts_readable(access: &dyn ObjectAccess) -> Result<bool> {
    let records = read_records(access)?;
    Ok(!(records.iter()).any(|record| matches!(record.verdict, Some(Err(_)))))
}

/// What is told, and the numbers that are declared lost by it.
struct GivenUp {
    told: Numbers,
    gaps: Vec<PointGap>,
}

/// Numbers up to the highest given one of each name that nothing has and nothing explains.
fn unaccounted(told: &Numbers, there: &BTreeMap<NameId, Vec<(u64, u64)>>) -> Vec<PointGap> {
    let gaps = told.gaps(there, |name| told.highest(name));
    (gaps.into_iter())
        .flat_map(|(name_id, gaps)| {
            gaps.into_iter().map(move |(first, last)| PointGap {
                name_id,
                first,
                last,
            })
        })
        .collect()
}
