//! How consistent the bytes of a guest's disks are, told from the bytes alone.
//!
//! **Invariants.** Reads only. A label of the one who froze the disks plays no part.

use std::collections::BTreeMap;

use block::ReadAt;

use super::record::{
    CELLS, LEDGER_RECORDS, Layout, Place, RECORD_BYTES, Record, RecordKind, effect,
};
use crate::{Error, Result};

/// More transactions than this are not replayed.
const MAX_TRANSACTIONS: u64 = 10_000_000;

/// What the bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consistency {
    /// No guest ever wrote here.
    Empty,
    /// Nothing is open, everything is flushed.
    Application,
    /// Flushed, with a transaction open.
    FileSystem,
    /// A prefix of the writes.
    Crash,
    /// No prefix of the writes, and why.
    Inconsistent(String),
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examination {
    /// How consistent.
    pub consistency: Consistency,
    /// The last committed transaction.
    pub committed: u64,
    /// The open transaction, if its record is in the ledger.
    pub in_flight: Option<u64>,
    /// How often the file system was mounted.
    pub mounts: u64,
    /// The transaction that the guest's writers finished the frozen disk at, if they did.
    pub recovered: Option<u64>,
}

/// Looks at the disks of a guest, given in the order of its drives.
///
/// # Errors
/// When a disk cannot be read; what the bytes are is never an error.
pub fn examine(disks: &[&dyn ReadAt], layout: &Layout, tag: u64) -> Result<Examination> {
    examine_with(layout, tag, |disk, offset, buffer| {
        let disk = disks
            .get(disk)
            .ok_or_else(|| Error::invalid(format!("the layout needs disk {disk}")))?;
        disk.read_at(offset, buffer)
            .map_err(|error| Error::io("reading a guest's disk", error))
    })
}

enum Found {
    Nothing,
    Torn,
    Record(Record),
}

struct Looking<'r, F> {
    read: &'r F,
    tag: u64,
}

impl<F: Fn(usize, u64, &mut [u8]) -> Result<()>> Looking<'_, F> {
    fn at(&self, place: Place, kind: RecordKind) -> Result<Found> {
        let mut bytes = vec![0; RECORD_BYTES];
        (self.read)(place.disk, place.offset, &mut bytes)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Found::Nothing);
        }
        Ok(Record::decode(kind, self.tag, &bytes).map_or(Found::Torn, Found::Record))
    }
}

pub(super) fn examine_with(
    layout: &Layout,
    tag: u64,
    read: impl Fn(usize, u64, &mut [u8]) -> Result<()>,
) -> Result<Examination> {
    let looking = Looking { read: &read, tag };
    let mut found = Examination {
        consistency: Consistency::Empty,
        committed: 0,
        in_flight: None,
        mounts: 0,
        recovered: None,
    };
    let outcome = judge(layout, &looking, &mut found)?;
    found.consistency = outcome.unwrap_or_else(Consistency::Inconsistent);
    Ok(found)
}

/// `Err` inside is why the bytes are inconsistent.
fn judge<F: Fn(usize, u64, &mut [u8]) -> Result<()>>(
    layout: &Layout,
    looking: &Looking<'_, F>,
    found: &mut Examination,
) -> Result<std::result::Result<Consistency, String>> {
    let state = looking.at(layout.file_system(), RecordKind::FileSystem)?;
    let is_clean = match (looking.at(layout.head(), RecordKind::Head)?, state) {
        (Found::Nothing, Found::Nothing) => return Ok(Ok(Consistency::Empty)),
        (Found::Torn, _) => return Ok(Err("the head is torn".into())),
        (_, Found::Torn) => return Ok(Err("the file system's state is torn".into())),
        (Found::Nothing, Found::Record(_)) => return Ok(Err("there is no head".into())),
        // The first boot writes the head before the state.
        (Found::Record(_), Found::Nothing) => false,
        (Found::Record(head), Found::Record(state)) => {
            found.committed = head.sequence;
            found.mounts = state.sequence;
            state.value == 1
        }
    };
    if found.committed > MAX_TRANSACTIONS {
        return Ok(Err(format!("{} transactions", found.committed)));
    }
    match looking.at(layout.recovered(), RecordKind::Recovered)? {
        Found::Nothing => {}
        Found::Torn => return Ok(Err("the recovery mark is torn".into())),
        Found::Record(mark) => found.recovered = Some(mark.sequence),
    }
    if let Err(why) = ledger(layout, looking, found)? {
        return Ok(Err(why));
    }
    if let Err(why) = copies(layout, looking, found)? {
        return Ok(Err(why));
    }
    if let Err(why) = ballast(layout, looking, found)? {
        return Ok(Err(why));
    }
    Ok(Ok(match (is_clean, found.in_flight) {
        (true, None) => Consistency::Application,
        (true, Some(_)) => Consistency::FileSystem,
        (false, _) => Consistency::Crash,
    }))
}

fn ledger<F: Fn(usize, u64, &mut [u8]) -> Result<()>>(
    layout: &Layout,
    looking: &Looking<'_, F>,
    found: &mut Examination,
) -> Result<std::result::Result<(), String>> {
    let next = found.committed + 1;
    for back in 0..LEDGER_RECORDS {
        let Some(sequence) = next.checked_sub(back).filter(|it| *it > 0) else {
            break;
        };
        let record = match looking.at(layout.ledger_slot(sequence), RecordKind::Ledger)? {
            Found::Torn => return Ok(Err(format!("ledger record {sequence} is torn"))),
            Found::Nothing if sequence == next && next <= LEDGER_RECORDS => continue,
            Found::Nothing => return Ok(Err(format!("ledger record {sequence} is not there"))),
            Found::Record(record) => record,
        };
        let (_, value) = effect(looking.tag, sequence);
        if record.sequence == sequence && record.value == value {
            if sequence == next {
                found.in_flight = Some(next);
            }
            continue;
        }
        let is_older = sequence == next && record.sequence + LEDGER_RECORDS == next;
        if !is_older {
            return Ok(Err(format!(
                "ledger record {sequence} is that of {}",
                record.sequence
            )));
        }
    }
    Ok(Ok(()))
}

/// Both copies must show every committed transaction, and of the open one A before B.
fn copies<F: Fn(usize, u64, &mut [u8]) -> Result<()>>(
    layout: &Layout,
    looking: &Looking<'_, F>,
    found: &Examination,
) -> Result<std::result::Result<(), String>> {
    let mut expected: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for sequence in 1..=found.committed {
        let (cell, value) = effect(looking.tag, sequence);
        expected.insert(cell, (sequence, value));
    }
    let open = found.in_flight.map(|next| {
        let (cell, value) = effect(looking.tag, next);
        (cell, (next, value))
    });
    for cell in 0..CELLS {
        let mut new = [false; 2];
        for (which, (name, copy)) in [("A", layout.copy_a), ("B", layout.copy_b)]
            .iter()
            .enumerate()
        {
            let held = match looking.at(copy.record(cell), RecordKind::Cell)? {
                Found::Torn => return Ok(Err(format!("cell {cell} of copy {name} is torn"))),
                Found::Nothing => None,
                Found::Record(record) => Some((record.sequence, record.value)),
            };
            let is_open = open.is_some_and(|(of, what)| of == cell && held == Some(what));
            if is_open {
                if let Some(flag) = new.get_mut(which) {
                    *flag = true;
                }
            } else if held != expected.get(&cell).copied() {
                let wanted = expected.get(&cell).map_or(0, |(sequence, _)| *sequence);
                let is = held.map_or(0, |(sequence, _)| sequence);
                return Ok(Err(format!(
                    "cell {cell} of copy {name} is of transaction {is}, not {wanted}"
                )));
            }
        }
        if new == [false, true] {
            return Ok(Err(format!("cell {cell} reached copy B before copy A")));
        }
    }
    Ok(Ok(()))
}

fn ballast<F: Fn(usize, u64, &mut [u8]) -> Result<()>>(
    layout: &Layout,
    looking: &Looking<'_, F>,
    found: &Examination,
) -> Result<std::result::Result<(), String>> {
    for index in 0..layout.ballast_records {
        match looking.at(layout.ballast.record(index), RecordKind::Ballast)? {
            Found::Nothing => {}
            Found::Torn => return Ok(Err(format!("ballast {index} is torn"))),
            Found::Record(record) if record.sequence > found.committed + 1 => {
                return Ok(Err(format!(
                    "ballast {index} is of transaction {}, behind the open one",
                    record.sequence
                )));
            }
            Found::Record(_) => {}
        }
    }
    Ok(Ok(()))
}
