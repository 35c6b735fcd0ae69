//! Packs: their directories, and the blobs of those that the scope chooses.

use std::collections::HashSet;
use std::sync::Arc;

use store::{ListEntry, list_all};

use crate::access::ObjectAccess;
use crate::format::blob::BLOCK_BYTES;
use crate::format::{FRAME_HEADER_BYTES, MAX_PACK_BYTES, PackKind};
use crate::gc::ground::Ground;
use crate::index::BlobPlace;
use crate::pack::{PackFile, check_whole_pack};
use crate::read::ReadSession;
use crate::{Error, ErrorKind, PackId, Result, names};

use super::{FindingSeverity, SampleBudget, VerifyReport, VerifyScope};

/// What is known bad: whole packs by number, single blobs by place.
#[derive(Debug, Default)]
pub(crate) struct BadPlaces {
    pub(crate) packs: HashSet<u32>,
    pub(crate) blobs: HashSet<BlobPlace>,
}

impl BadPlaces {
    pub(crate) fn contains(&self, place: BlobPlace) -> bool {
        self.packs.contains(&place.pack) || self.blobs.contains(&place)
    }
}

struct Listed {
    kind: PackKind,
    id: PackId,
    name: store::ObjectName,
    size_bytes: u64,
}

pub(crate) fn check_packs(
    ground: &Ground,
    scope: VerifyScope,
    session: &Arc<ReadSession>,
    report: &mut VerifyReport,
) -> Result<BadPlaces> {
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
    report.coverage.packs = u64::try_from(packs.len()).unwrap_or(u64::MAX);
    report.coverage.pack_bytes = packs.iter().map(|pack| pack.size_bytes).sum();
    let chosen = choose(&packs, scope);
    let mut bad = BadPlaces::default();
    for pack in &packs {
        session.check()?;
        let outcome = if chosen.contains(&pack.id) {
            check_whole(ground, pack, &mut bad, report)
        } else {
            check_directory(ground, pack)
        };
        match outcome {
            Ok(()) => {}
            // Deleted since the listing, by garbage collection: no point that is protected needs it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if crate::gc::mark::is_damage(&error) => {
                report.find(&pack.name, &error, FindingSeverity::Damaged);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(bad)
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
    report.coverage.packs_read = report.coverage.packs_read.saturating_add(1);
    report.coverage.pack_bytes_read = report
        .coverage
        .pack_bytes_read
        .saturating_add(pack.size_bytes);
    let find_key = |id| ground.vault.data_key(id);
    let whole = check_whole_pack(&pack.name, pack.kind, pack.id, &bytes, &find_key).map(|_| ());
    // Even when the checksum is wrong, most blobs may be right: only what does not decode is lost.
    let number = ground.index.pack_number(pack.id);
    let file = match PackFile::open(&ground.vault, pack.kind, pack.id) {
        Ok(file) => file,
        Err(error) => {
            bad.packs.extend(number);
            return whole.and(Err(error));
        }
    };
    let Some(number) = number else { return whole };
    let row_blobs = ground.index.pack(number).map_or(0, |row| row.blobs);
    let mut plain = vec![0u8; BLOCK_BYTES];
    for ordinal in 0..row_blobs {
        let place = BlobPlace {
            pack: number,
            ordinal,
        };
        let outcome = decode(&file, ordinal, &bytes, &mut plain);
        match outcome {
            Ok(()) => report.coverage.blobs_read = report.coverage.blobs_read.saturating_add(1),
            Err(error) => {
                bad.blobs.insert(place);
                report.find(&pack.name, &error, FindingSeverity::Damaged);
            }
        }
    }
    whole
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
