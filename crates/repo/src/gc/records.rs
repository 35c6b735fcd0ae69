//! The two records of a generation of garbage collection, and what their presence means to everybody else.
//!
//! ```text
//!   gc/<g>.condemned   gc/<g>.verdict     the packs of condemned
//!   ────────────────   ───────────────    ───────────────────────────────────────────────────────────
//!   present            absent             count as absent for writers; gc may still rescue them
//!   present            deletes            those of the verdict are being deleted; the others count again
//!   present            aborted            all count again
//!   absent             present            gone: the generation is finished; its number is never used again
//! ```
//!
//! The newest verdict stays for ever: it keeps the generation's number taken. So do those of aborted generations for a long
//! time: a collector that was stopped before its verdict finds the place taken when it goes on. What a verdict says of
//! **numbers** proves that one without a point was removed by garbage collection and not by somebody else, and that none is
//! given twice. Since that is told nowhere else, a verdict has a **copy**, put behind it: either of the two is enough.
//!
//! **Invariants.** Both records are create-if-absent. A verdict ends its generation for everybody: whoever wants to abort one
//! puts an empty verdict, and the collector that comes second stops. The copy decides nothing: it is put by whoever put the
//! verdict, and deleted before it. The union of what all verdicts that are present say of numbers never shrinks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use store::{ObjectName, list_all};

use crate::access::ObjectAccess;
use crate::bundles::may_be_good;
use crate::format::{MAX_ENVELOPE_TEXT_BYTES, ObjectKind};
use crate::points::PointKey;
use crate::{Error, ErrorKind, LeaseId, PackId, Result, names};

use super::mark::absent_or_damaged;
use super::numbers::{Numbers, Seen};

/// Most bytes of a record that are read.
const RECORD_SIZE_BYTES_MAX: u64 = MAX_ENVELOPE_TEXT_BYTES as u64 + 4_096;

/// What a generation wants to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// Its number, equal to the one in the object's name.
    pub generation: u64,
    /// The collector's lease.
    pub lease: LeaseId,
    /// Packs that nothing live needs.
    pub packs: Vec<PackId>,
    /// Forgotten points.
    pub points: Vec<PointKey>,
}

/// What a generation deletes: at most what it condemned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its number, equal to the one in the object's name.
    pub generation: u64,
    /// Whether anything is deleted.
    pub outcome: VerdictOutcome,
    /// Packs to delete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packs: Vec<PackId>,
    /// Points to delete, with their marks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<PointKey>,
    /// What is known of numbers, those of `points` included.
    #[serde(default)]
    pub numbers: Numbers,
    /// What was there besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
}

/// How a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictOutcome {
    /// Somebody stopped it: nothing is deleted.
    Aborted,
    /// The packs and points that it lists are deleted.
    Delete,
}

impl Verdict {
    /// The verdict that ends a generation without deleting anything.
    pub fn aborted(generation: u64) -> Self {
        Self {
            generation,
            outcome: VerdictOutcome::Aborted,
            packs: Vec::new(),
            points: Vec::new(),
            numbers: Numbers::default(),
            seen: None,
        }
    }
}

/// What lies in `gc/` about one generation.
#[derive(Debug)]
pub struct GenerationRecords {
    /// Its number.
    pub generation: u64,
    /// What it condemned, if that is still there.
    pub condemned: Option<Result<Condemned>>,
    /// How it ended, if it did.
    pub verdict: Option<Result<Verdict>>,
    /// Whether the verdict lies there twice.
    pub halves: VerdictHalves,
}

/// How many of a verdict's two objects are there and of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerdictHalves {
    /// The verdict is readable and its copy is listed; or there is none of them.
    Both,
    /// Only one of them, or the verdict itself cannot be read.
    One,
}

impl GenerationRecords {
    /// The packs that must not be counted on because of it. An unreadable verdict leaves everything condemned.
    pub fn absent_packs(&self) -> &[PackId] {
        match (&self.condemned, &self.verdict) {
            (None, _) => &[],
            (Some(_), Some(Ok(verdict))) => &verdict.packs,
            (Some(Ok(condemned)), _) => &condemned.packs,
            (Some(Err(_)), _) => &[],
        }
    }
}

/// Which of the two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordPart {
    Condemned,
    Verdict,
    /// The verdict once more.
    Copy,
}

fn list_parts(access: &dyn ObjectAccess) -> Result<BTreeMap<u64, Vec<RecordPart>>> {
    let mut parts: BTreeMap<u64, Vec<RecordPart>> = BTreeMap::new();
    for entry in list_all(access.store(), &names::gc()?) {
        let entry = entry?;
        let (_, last) = entry.name.split();
        let Some((number, part)) = last.split_once('.') else {
            continue;
        };
        let part = match part {
            "condemned" => RecordPart::Condemned,
            "verdict" => RecordPart::Verdict,
            "verdict.copy" => RecordPart::Copy,
            _ => continue,
        };
        if let Some(generation) = names::parse_number(number) {
            parts.entry(generation).or_default().push(part);
        }
    }
    Ok(parts)
}

/// How often everything is read anew because a verdict that was listed is gone when it is read.
const LOOKS_MAX: usize = 64;

/// Everything in `gc/`, by generation. Unreadable records are among them as errors; other failures end the call.
///
/// A verdict goes only after a newer one covers it. One that was listed and is gone when it is read therefore means that
/// the newer one may have been missed: then all is read again, so that the union of the retired tables is whole.
pub(crate) fn read_records(access: &dyn ObjectAccess) -> Result<Vec<GenerationRecords>> {
    for _ in 0..LOOKS_MAX {
        if let Some(records) = try_read_records(access)? {
            return Ok(records);
        }
    }
    let what = "the records of garbage collection change faster than they can be read";
    Err(Error::new(ErrorKind::Busy, what))
}

fn try_read_records(access: &dyn ObjectAccess) -> Result<Option<Vec<GenerationRecords>>> {
    let mut records = Vec::new();
    for (generation, parts) in list_parts(access)? {
        let mut record = GenerationRecords {
            generation,
            condemned: None,
            verdict: None,
            halves: VerdictHalves::Both,
        };
        if parts.contains(&RecordPart::Condemned) {
            record.condemned = read_condemned(access, generation)?;
        }
        let (verdict, halves) = read_verdict(access, generation, &parts)?;
        if verdict.is_none() && parts.contains(&RecordPart::Verdict) {
            return Ok(None);
        }
        record.verdict = verdict;
        record.halves = halves;
        if record.condemned.is_some() || record.verdict.is_some() {
            records.push(record);
        }
    }
    Ok(Some(records))
}

/// A verdict from whichever of its two objects is readable, of those that were listed.
fn read_verdict(
    access: &dyn ObjectAccess,
    generation: u64,
    parts: &[RecordPart],
) -> Result<(Option<Result<Verdict>>, VerdictHalves)> {
    let half = |part, name: Result<ObjectName>| {
        if parts.contains(&part) {
            read_half(access, generation, &name?)
        } else {
            Ok(None)
        }
    };
    let verdict = half(RecordPart::Verdict, names::verdict(generation))?;
    if matches!(verdict, Some(Ok(_))) {
        // Whether the copy can be read is what a verification asks.
        let halves = if parts.contains(&RecordPart::Copy) {
            VerdictHalves::Both
        } else {
            VerdictHalves::One
        };
        return Ok((verdict, halves));
    }
    let copy = half(RecordPart::Copy, names::verdict_copy(generation))?;
    let read = match (verdict, copy) {
        (_, Some(Ok(copy))) => Some(Ok(copy)),
        // One whose key is not here may be good: then it is not called damaged.
        (_, Some(Err(copy))) if may_be_good(&copy) => Some(Err(copy)),
        (verdict, copy) => verdict.or(copy),
    };
    Ok((read, VerdictHalves::One))
}

fn read_condemned(access: &dyn ObjectAccess, generation: u64) -> Result<Option<Result<Condemned>>> {
    let name = names::condemned(generation)?;
    let read = read_record(access, ObjectKind::Condemned, &name, |body: &Condemned| {
        body.generation == generation
    });
    sort_out(read)
}

fn read_half(
    access: &dyn ObjectAccess,
    generation: u64,
    name: &ObjectName,
) -> Result<Option<Result<Verdict>>> {
    let read = read_record(access, ObjectKind::Verdict, name, |body: &Verdict| {
        body.generation == generation
    });
    sort_out(read)
}

fn read_record<T: for<'de> Deserialize<'de>>(
    access: &dyn ObjectAccess,
    kind: ObjectKind,
    name: &ObjectName,
    fits: impl Fn(&T) -> bool,
) -> Result<T> {
    let text = access.get_sealed(kind, name, RECORD_SIZE_BYTES_MAX)?;
    let body: T = serde_json::from_slice(&text).map_err(|error| {
        Error::corrupt(name, "not a record of garbage collection").caused_by(error)
    })?;
    if fits(&body) {
        Ok(body)
    } else {
        Err(Error::corrupt(name, "of another generation"))
    }
}

/// Absent is `None`, damaged is an inner error, everything else ends the caller.
fn sort_out<T>(read: Result<T>) -> Result<Option<Result<T>>> {
    match read {
        Ok(body) => Ok(Some(Ok(body))),
        Err(error) => Ok(absent_or_damaged(error)?.map(Err)),
    }
}

/// Packs that a generation has condemned and not given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CondemnedNews {
    pub(crate) generation: u64,
    pub(crate) packs: Vec<PackId>,
}

/// The generations after `observed` that are not finished, oldest first. One whose list cannot be read is aborted:
/// nobody may work on without knowing what is condemned, and an abort harms nobody.
pub(crate) fn condemned_since(
    access: &dyn ObjectAccess,
    observed: u64,
) -> Result<Vec<CondemnedNews>> {
    let mut news = Vec::new();
    for (generation, parts) in list_parts(access)? {
        if generation <= observed || !parts.contains(&RecordPart::Condemned) {
            continue;
        }
        let Some(mut condemned) = read_condemned(access, generation)? else {
            continue;
        };
        // What was put since the listing counts as well.
        let all = [RecordPart::Verdict, RecordPart::Copy];
        let (mut verdict, _) = read_verdict(access, generation, &all)?;
        if condemned.is_err() && verdict.is_none() {
            put_verdict(access, &Verdict::aborted(generation))?;
            (verdict, _) = read_verdict(access, generation, &all)?;
        }
        if let Some(Ok(verdict)) = verdict {
            news.push(CondemnedNews {
                generation,
                packs: verdict.packs,
            });
        } else {
            let packs =
                std::mem::take(&mut condemned.as_mut().map_err(|error| error.again())?.packs);
            news.push(CondemnedNews { generation, packs });
        }
    }
    Ok(news)
}

/// Whether a record was put by this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PutOutcome {
    /// Yes.
    Put,
    /// Somebody else's record is there.
    Taken,
}

pub(crate) fn put_condemned(access: &dyn ObjectAccess, record: &Condemned) -> Result<PutOutcome> {
    let name = names::condemned(record.generation)?;
    put_record(access, ObjectKind::Condemned, &name, record)
}

pub(crate) fn put_verdict(access: &dyn ObjectAccess, record: &Verdict) -> Result<PutOutcome> {
    let name = names::verdict(record.generation)?;
    if put_record(access, ObjectKind::Verdict, &name, record)? == PutOutcome::Taken {
        return Ok(PutOutcome::Taken);
    }
    let copy = names::verdict_copy(record.generation)?;
    match put_record(access, ObjectKind::Verdict, &copy, record) {
        // On a full store the verdict makes room first; the next run puts one with a copy.
        Err(error) if error.kind() == ErrorKind::Full => Ok(PutOutcome::Put),
        Err(error) => Err(error),
        Ok(_) => Ok(PutOutcome::Put),
    }
}

/// Deletes a verdict: the copy first, so that it never stands alone for long.
pub(crate) fn delete_verdict(access: &dyn ObjectAccess, generation: u64) -> Result<()> {
    access.store().delete(&names::verdict_copy(generation)?)?;
    Ok(access.store().delete(&names::verdict(generation)?)?)
}

/// What all readable verdicts say of numbers.
pub(crate) fn union_of_numbers(records: &[GenerationRecords]) -> Numbers {
    let mut all = Numbers::default();
    for record in records {
        if let Some(Ok(verdict)) = &record.verdict {
            all.merge(&verdict.numbers);
        }
    }
    all
}

/// What the newest verdict that says so saw besides.
pub(crate) fn newest_seen(records: &[GenerationRecords]) -> Option<&Seen> {
    let verdicts = records
        .iter()
        .rev()
        .filter_map(|record| record.verdict.as_ref());
    verdicts
        .filter_map(|verdict| verdict.as_ref().ok())
        .find_map(|verdict| verdict.seen.as_ref())
}

fn put_record<T: Serialize>(
    access: &dyn ObjectAccess,
    kind: ObjectKind,
    name: &ObjectName,
    record: &T,
) -> Result<PutOutcome> {
    let text = serde_json::to_vec(record).map_err(|error| {
        Error::new(ErrorKind::Local, format!("writing {name}")).caused_by(error)
    })?;
    match access.put_sealed(kind, name, &text) {
        Ok(()) => Ok(PutOutcome::Put),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(PutOutcome::Taken),
        Err(error) => Err(error),
    }
}
