//! Packs: their directories, and the blobs of those that the scope chooses.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use store::{ListEntry, list_all};

use crate::access::ObjectAccess;
use crate::format::blob::BLOCK_BYTES;
use crate::format::{FRAME_HEADER_BYTES, MAX_PACK_BYTES, PackKind};
use crate::gc::ground::Ground;
use crate::gc::mark::is_damage;
use crate::index::BlobPlace;
use crate::pack::{PackFile, check_whole_pack};
use crate::read::ReadSession;
use crate::{Error, ErrorKind, PackId, Result, names};

use super::{FindingSeverity, SampleBudget, VerifyReport, VerifyScope};

/// What is known bad: whole packs by number, single blobs by place.
#[derive(Debug, Default)]
pub(crate) struct BadPlaces {
    /// Packs of which nothing can be read here, for whatever reason.
    pub(crate) packs: HashSet<u32>,
    /// Blobs that do not decode, in packs that otherwise can be read.
    pub(crate) blobs: HashSet<BlobPlace>,
    /// Packs whose bytes are not what was written. A pack of a key that is not here, or of a newer program, is not among
    /// them: nobody can say that about it.
    pub(crate) damaged: HashSet<u32>,
    /// Packs of which nothing can be read and that the index therefore does not know, because of their bytes.
    pub(crate) unindexed: BTreeSet<PackId>,
    /// Packs that were looked at, each once.
    seen: HashSet<PackId>,
    /// Packs of which every blob was read.
    read: HashSet<u32>,
}

impl BadPlaces {
    pub(crate) fn contains(&self, place: BlobPlace) -> bool {
        self.packs.contains(&place.pack) || self.blobs.contains(&place)
    }

    /// Whether every blob of the place's pack was read.
    pub(crate) fn was_read(&self, place: BlobPlace) -> bool {
        self.read.contains(&place.pack)
    }

    /// Writes down that nothing of a pack can be read.
    fn lose_pack(&mut self, id: PackId, number: Option<u32>, judgement: Judgement) {
        self.packs.extend(number);
        match (judgement, number) {
            (Judgement::Unknown, _) => {}
            (Judgement::Damaged, Some(number)) => drop(self.damaged.insert(number)),
            (Judgement::Damaged, None) => drop(self.unindexed.insert(id)),
        }
    }

    /// Keeps of one pack's faults those that another look found again.
    fn keep_repeated(&mut self, id: PackId, number: Option<u32>, again: &Self) {
        if !again.unindexed.contains(&id) {
            self.unindexed.remove(&id);
        }
        let Some(number) = number else { return };
        if self.packs.contains(&number) && !again.packs.contains(&number) {
            self.packs.remove(&number);
            self.blobs.extend(&again.blobs);
        }
        self.blobs
            .retain(|place| place.pack != number || again.contains(*place));
        if !again.damaged.contains(&number) {
            self.damaged.remove(&number);
        }
    }
}

/// What can be said about a pack that cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    /// Its bytes are not what was written.
    Damaged,
    /// It may be as it was written: its key is not here, or a newer program wrote it.
    Unknown,
}

struct Listed {
    kind: PackKind,
    id: PackId,
    name: store::ObjectName,
    size_bytes: u64,
}

fn list_packs(ground: &Ground) -> Result<Vec<Listed>> {
    let mut packs = Vec::new();
    for kind in PackKind::ALL {
        for entry in list_all(ground.vault.store(), &names::packs(kind)?) {
            let ListEntry { name, size_bytes } = entry?;
            if let Some(id) = names::last_id::<PackId>(&name) {
                packs.push(Listed {
                    kind,
                    id,
                    name,
                    size_bytes,
                });
            }
        }
    }
    Ok(packs)
}

/// Looks at every pack that is listed.
pub(crate) fn check_packs(
    ground: &Ground,
    scope: VerifyScope,
    session: &Arc<ReadSession>,
    report: &mut VerifyReport,
) -> Result<BadPlaces> {
    let mut bad = BadPlaces::default();
    let packs = list_packs(ground)?;
    let chosen = choose(&packs, scope);
    check_listed(ground, &packs, &chosen, session, &mut bad, report)?;
    Ok(bad)
}

/// Looks at the packs that appeared since: what was moved out of vanished packs lies there. Of a sample they are no part.
pub(crate) fn check_new_packs(
    ground: &Ground,
    scope: VerifyScope,
    session: &Arc<ReadSession>,
    bad: &mut BadPlaces,
    report: &mut VerifyReport,
) -> Result<()> {
    ground.refresh()?;
    let mut packs = list_packs(ground)?;
    packs.retain(|pack| !bad.seen.contains(&pack.id));
    let chosen = match scope {
        VerifyScope::Full => choose(&packs, scope),
        VerifyScope::Structure | VerifyScope::Sample { .. } => HashSet::new(),
    };
    check_listed(ground, &packs, &chosen, session, bad, report)
}

fn check_listed(
    ground: &Ground,
    packs: &[Listed],
    chosen: &HashSet<PackId>,
    session: &Arc<ReadSession>,
    bad: &mut BadPlaces,
    report: &mut VerifyReport,
) -> Result<()> {
    if packs
        .iter()
        .any(|pack| ground.index.pack_number(pack.id).is_none())
    {
        ground.refresh()?;
    }
    for pack in packs {
        session.check()?;
        let outcome = if chosen.contains(&pack.id) {
            check_whole(ground, pack, bad, report)
        } else {
            check_directory(ground, pack)
        };
        bad.seen.insert(pack.id);
        match outcome {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Deleted since the listing. What it held is somewhere else now, or it is lost.
                if let Some(number) = ground.index.pack_number(pack.id) {
                    ground.index.mark_absent(number);
                }
                continue;
            }
            Err(error) if is_damage(&error) => {
                report.find(&pack.name, &error, FindingSeverity::Damaged);
            }
            Err(error) => return Err(error),
        }
        let coverage = &mut report.coverage;
        coverage.packs = coverage.packs.saturating_add(1);
        coverage.pack_bytes = coverage.pack_bytes.saturating_add(pack.size_bytes);
    }
    Ok(())
}

/// Reads every pack again that something is wrong with, and forgets what does not show a second time: what is to be deleted
/// must not rest on one reading.
pub(crate) fn confirm_damage(
    ground: &Ground,
    session: &Arc<ReadSession>,
    bad: &mut BadPlaces,
) -> Result<()> {
    let mut scratch = VerifyReport::default();
    for pack in list_packs(ground)? {
        let number = ground.index.pack_number(pack.id);
        let suspected = bad.unindexed.contains(&pack.id)
            || number
                .is_some_and(|number| bad.packs.contains(&number) || bad.damaged.contains(&number));
        if !suspected {
            continue;
        }
        session.check()?;
        let mut again = BadPlaces::default();
        match check_whole(ground, &pack, &mut again, &mut scratch) {
            Ok(()) => {}
            Err(error) if is_damage(&error) => {}
            Err(error) => return Err(error),
        }
        bad.keep_repeated(pack.id, number, &again);
    }
    Ok(())
}

/// The packs whose blobs are read: by a keyed order that only the seed decides.
fn choose(packs: &[Listed], scope: VerifyScope) -> HashSet<PackId> {
    let (seed, budget) = match scope {
        VerifyScope::Structure => return HashSet::new(),
        VerifyScope::Full => return packs.iter().map(|pack| pack.id).collect(),
        VerifyScope::Sample { seed, budget } => (seed, budget),
    };
    let mut order: Vec<([u8; 32], &Listed)> = packs
        .iter()
        .map(|pack| {
            let mut hasher = blake3::Hasher::new_derive_key("hikae v1 verify sample");
            hasher.update(&seed.to_le_bytes());
            hasher.update(pack.id.as_bytes());
            (*hasher.finalize().as_bytes(), pack)
        })
        .collect();
    order.sort_by_key(|(rank, _)| *rank);
    let all: u64 = u64::try_from(packs.len()).unwrap_or(u64::MAX);
    let count = match budget {
        SampleBudget::Bytes(_) => u64::MAX,
        SampleBudget::Percent(percent) => all
            .saturating_mul(u64::from(percent.min(100)))
            .div_ceil(100),
        SampleBudget::Packs(count) => count,
    };
    let mut left = if let SampleBudget::Bytes(bytes) = budget {
        bytes
    } else {
        u64::MAX
    };
    let mut chosen = HashSet::new();
    for (_, pack) in order
        .into_iter()
        .take(usize::try_from(count.max(1)).unwrap_or(usize::MAX))
    {
        if chosen.is_empty() || pack.size_bytes <= left {
            left = left.saturating_sub(pack.size_bytes);
            chosen.insert(pack.id);
        }
    }
    chosen
}

fn check_directory(ground: &Ground, pack: &Listed) -> Result<()> {
    let file = PackFile::open(&ground.vault, pack.kind, pack.id)?;
    if file.is_whole() {
        Ok(())
    } else {
        Err(Error::corrupt(
            &pack.name,
            "its directory is damaged; blobs were found by their frames",
        ))
    }
}

/// Reads a pack and decodes all its blobs.
fn check_whole(
    ground: &Ground,
    pack: &Listed,
    bad: &mut BadPlaces,
    report: &mut VerifyReport,
) -> Result<()> {
    let limit = u64::try_from(MAX_PACK_BYTES).unwrap_or(u64::MAX);
    let bytes = ground.vault.store().get_bounded(&pack.name, limit)?;
    let number = ground.index.pack_number(pack.id);
    let find_key = |id| ground.vault.data_key(id);
    let whole = check_whole_pack(&pack.name, pack.kind, pack.id, &bytes, &find_key).map(|_| ());
    // Even when the checksum is wrong, most blobs may be right: only what does not decode is lost.
    let file = match PackFile::open(&ground.vault, pack.kind, pack.id) {
        Ok(file) => file,
        Err(error) if !is_damage(&error) || error.kind() == ErrorKind::NotFound => {
            return Err(error);
        }
        Err(error) => {
            let judgement = judge(ground, number, &whole, &error);
            bad.lose_pack(pack.id, number, judgement);
            return whole.and(Err(error));
        }
    };
    report.coverage.packs_read = report.coverage.packs_read.saturating_add(1);
    report.coverage.pack_bytes_read = report
        .coverage
        .pack_bytes_read
        .saturating_add(pack.size_bytes);
    let Some(number) = number else { return whole };
    bad.read.insert(number);
    if whole.is_err() {
        bad.damaged.insert(number);
    }
    // Frames that were found one by one may have gaps between their numbers.
    let found = file
        .blobs()
        .last()
        .map_or(0, |(at, _)| at.saturating_add(1));
    let told = ground.index.pack(number).map_or(0, |row| row.blobs);
    let mut plain = vec![0u8; BLOCK_BYTES];
    for ordinal in 0..told.max(found) {
        let place = BlobPlace {
            pack: number,
            ordinal,
        };
        let outcome = decode(&file, ordinal, &bytes, &mut plain);
        match outcome {
            Ok(()) => report.coverage.blobs_read = report.coverage.blobs_read.saturating_add(1),
            Err(error) => {
                bad.blobs.insert(place);
                bad.damaged.insert(number);
                report.find(&pack.name, &error, FindingSeverity::Damaged);
            }
        }
    }
    whole
}

/// Whether a pack that cannot be opened is damaged. A wrong checksum alone does not say so of a pack whose key is not here:
/// with the key, most of it might still be read.
fn judge(ground: &Ground, number: Option<u32>, whole: &Result<()>, opening: &Error) -> Judgement {
    let byte_for_byte = !matches!(whole, Err(error) if error.kind() == ErrorKind::Corrupt);
    match opening.kind() {
        ErrorKind::Corrupt if whole_is_newer(whole) => Judgement::Unknown,
        ErrorKind::Corrupt => Judgement::Damaged,
        _ if byte_for_byte => Judgement::Unknown,
        // The index knows its key, and it is another than the header says, or nothing is missing here.
        _ => {
            let known = number
                .and_then(|number| ground.index.pack(number))
                .is_some_and(|row| ground.vault.data_key(row.key_id).is_some());
            if known {
                Judgement::Damaged
            } else {
                Judgement::Unknown
            }
        }
    }
}

fn whole_is_newer(whole: &Result<()>) -> bool {
    matches!(whole, Err(error) if error.kind() == ErrorKind::Unsupported)
}

fn decode(file: &PackFile, ordinal: u32, bytes: &[u8], plain: &mut [u8]) -> Result<()> {
    let lost = || Error::corrupt(file.name(), format_args!("blob {ordinal} is lost"));
    let entry = file.entry(ordinal).ok_or_else(lost)?;
    let start = usize::try_from(entry.offset).map_err(|_| lost())?;
    let stored = usize::try_from(entry.stored_len).map_err(|_| lost())?;
    let end = start
        .saturating_add(FRAME_HEADER_BYTES)
        .saturating_add(stored);
    let mut frame = bytes.get(start..end).ok_or_else(lost)?.to_vec();
    let plain = plain.get_mut(..entry.name.plain_len()).ok_or_else(lost)?;
    file.decode(ordinal, &mut frame, plain)
}
