//! Packs: their directories, and the blobs of those that the scope chooses.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

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

use super::{FindingSeverity, SampleBudget, VerifyReport, VerifyScope, pool};

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

    /// Takes over what was found out about another pack.
    fn absorb(&mut self, other: Self) {
        self.packs.extend(other.packs);
        self.blobs.extend(other.blobs);
        self.damaged.extend(other.damaged);
        self.unindexed.extend(other.unindexed);
        self.seen.extend(other.seen);
        self.read.extend(other.read);
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

/// A pack as the store lists it.
pub(super) struct Listed {
    pub(super) kind: PackKind,
    pub(super) id: PackId,
    pub(super) name: store::ObjectName,
    pub(super) size_bytes: u64,
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
    for (pack, look) in packs
        .iter()
        .zip(pool::look_at_packs(ground, packs, chosen, session)?)
    {
        bad.absorb(look.bad);
        report.absorb(look.report);
        bad.seen.insert(pack.id);
        match look.outcome {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Deleted since the listing. What it held is somewhere else now, or it is lost.
                if let Some(number) = ground.index.pack_number(pack.id) {
                    ground.index.mark_absent(number);
                }
                continue;
            }
            Err(error) => report.find(&pack.name, &error, FindingSeverity::Damaged),
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

pub(super) fn check_directory(ground: &Ground, pack: &Listed) -> Result<()> {
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
    match open_whole(ground, pack, &Mutex::new(()), bad, report)? {
        None => Ok(()),
        Some(whole) => {
            let decoded = whole.decode(0..whole.ordinals);
            whole.conclude(decoded, bad, report)
        }
    }
}

/// A pack whose bytes are in memory, its blobs still to be decoded.
pub(super) struct WholePack {
    file: PackFile,
    bytes: Vec<u8>,
    number: u32,
    /// What its checksum said.
    whole: Result<()>,
    /// Blobs have ordinals below this.
    pub(super) ordinals: u32,
}

/// What decoding some blobs of a pack showed.
#[derive(Default)]
pub(super) struct Decoded {
    good: u64,
    lost: Vec<(u32, Error)>,
}

impl Decoded {
    pub(super) fn absorb(&mut self, mut other: Self) {
        self.good = self.good.saturating_add(other.good);
        self.lost.append(&mut other.lost);
    }

    /// Puts the lost blobs in order, whoever found them first.
    pub(super) fn sort(&mut self) {
        self.lost.sort_by_key(|(ordinal, _)| *ordinal);
    }
}

/// Reads a pack and looks at it as a whole; nothing is left to decode when that ends it. Packs that must be searched for
/// their frames are read a second time, one at once under `rare`, so that memory stays bounded.
pub(super) fn open_whole(
    ground: &Ground,
    pack: &Listed,
    rare: &Mutex<()>,
    bad: &mut BadPlaces,
    report: &mut VerifyReport,
) -> Result<Option<WholePack>> {
    let limit = u64::try_from(MAX_PACK_BYTES).unwrap_or(u64::MAX);
    let bytes = ground.vault.store().get_bounded(&pack.name, limit)?;
    let number = ground.index.pack_number(pack.id);
    let find_key = |id| ground.vault.data_key(id);
    let (whole, opened) = match check_whole_pack(&pack.name, pack.kind, pack.id, &bytes, &find_key)
    {
        Ok(entries) => {
            let opened = PackFile::of_whole(&ground.vault, &pack.name, &bytes, entries);
            (Ok(()), opened)
        }
        // Even when the checksum is wrong, most blobs may be right: only what does not decode is lost.
        Err(error) => {
            let _one_at_once = rare.lock().unwrap_or_else(PoisonError::into_inner);
            let opened = PackFile::open(&ground.vault, pack.kind, pack.id);
            (Err(error), opened)
        }
    };
    let file = match opened {
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
    let coverage = &mut report.coverage;
    coverage.packs_read = coverage.packs_read.saturating_add(1);
    coverage.pack_bytes_read = coverage.pack_bytes_read.saturating_add(pack.size_bytes);
    let Some(number) = number else {
        return whole.map(|()| None);
    };
    // Frames that were found one by one may have gaps between their numbers.
    let found = file
        .blobs()
        .last()
        .map_or(0, |(at, _)| at.saturating_add(1));
    let told = ground.index.pack(number).map_or(0, |row| row.blobs);
    Ok(Some(WholePack {
        file,
        bytes,
        number,
        whole,
        ordinals: told.max(found),
    }))
}

impl WholePack {
    /// Decodes and hashes some of its blobs.
    pub(super) fn decode(&self, ordinals: Range<u32>) -> Decoded {
        let mut decoded = Decoded::default();
        let mut plain = vec![0u8; BLOCK_BYTES];
        let mut frame = Vec::new();
        for ordinal in ordinals {
            match decode(&self.file, ordinal, &self.bytes, &mut frame, &mut plain) {
                Ok(()) => decoded.good = decoded.good.saturating_add(1),
                Err(error) => decoded.lost.push((ordinal, error)),
            }
        }
        decoded
    }

    /// Writes down what was found out; its checksum's verdict is the outcome.
    pub(super) fn conclude(
        self,
        decoded: Decoded,
        bad: &mut BadPlaces,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let pack = self.number;
        bad.read.insert(pack);
        if self.whole.is_err() || !decoded.lost.is_empty() {
            bad.damaged.insert(pack);
        }
        let coverage = &mut report.coverage;
        coverage.blobs_read = coverage.blobs_read.saturating_add(decoded.good);
        for (ordinal, error) in decoded.lost {
            bad.blobs.insert(BlobPlace { pack, ordinal });
            report.find(self.file.name(), &error, FindingSeverity::Damaged);
        }
        self.whole
    }
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

fn decode(
    file: &PackFile,
    ordinal: u32,
    bytes: &[u8],
    frame: &mut Vec<u8>,
    plain: &mut [u8],
) -> Result<()> {
    let lost = || Error::corrupt(file.name(), format_args!("blob {ordinal} is lost"));
    let entry = file.entry(ordinal).ok_or_else(lost)?;
    let start = usize::try_from(entry.offset).map_err(|_| lost())?;
    let stored = usize::try_from(entry.stored_len).map_err(|_| lost())?;
    let end = start
        .saturating_add(FRAME_HEADER_BYTES)
        .saturating_add(stored);
    frame.clear();
    frame.extend_from_slice(bytes.get(start..end).ok_or_else(lost)?);
    let plain = plain.get_mut(..entry.name.plain_len()).ok_or_else(lost)?;
    file.decode(ordinal, frame, plain)
}
