//! Every small object, one by one: does it open under its name, as its kind, with a key of this repository?

use std::collections::BTreeSet;

use store::{ListEntry, ObjectName, Prefix, Store, list_all};

use crate::access::ObjectAccess;
use crate::format::envelope::{self, MAX_ENVELOPE_BYTES};
use crate::format::{MAX_PACK_BYTES, ObjectKind, PackKind, segment};
use crate::gc::mark::is_damage;
use crate::gc::{Condemned, Verdict};
use crate::lease::{LeaseBody, list_leases};
use crate::marks::Mark;
use crate::pack::check_whole_pack;
use crate::points::Bundle;
use crate::vault::Vault;
use crate::{Error, ErrorKind, PackId, Result, config, names};

use super::{FindingSeverity, VerifyReport, note};

/// What a name says that its object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Kind(ObjectKind),
    /// A point or a tombstone.
    Place,
    Pack(PackKind, PackId),
    /// What a repair put away because nobody can read it.
    PutAway,
    /// Nothing that belongs into a repository.
    Stranger,
}

const PUT_AWAY: &str = "put away by a repair because nobody can read it; nothing needs it any more";

fn expected(name: &ObjectName) -> Expected {
    let text = name.as_str();
    let (first, rest) = text.split_once('/').unwrap_or((text, ""));
    let kind = match first {
        "config" | "config.copy" if rest.is_empty() => ObjectKind::Config,
        "keys" if rest.starts_with("slot-") => ObjectKind::Slot,
        "keys" if rest.starts_with("ring-") => ObjectKind::Ring,
        "index" => ObjectKind::Segment,
        "points" => return Expected::Place,
        "bundles" => ObjectKind::Bundle,
        "marks" => ObjectKind::Mark,
        "leases" => ObjectKind::Lease,
        "gc" if rest.ends_with(".condemned") => ObjectKind::Condemned,
        "gc" if rest.ends_with(".verdict") || rest.ends_with(".verdict.copy") => {
            ObjectKind::Verdict
        }
        "quarantine" => return Expected::PutAway,
        _ => {
            let pack = PackKind::ALL
                .into_iter()
                .find(|kind| kind.directory() == first);
            return match (pack, names::last_id::<PackId>(name)) {
                (Some(kind), Some(id)) => Expected::Pack(kind, id),
                _ => Expected::Stranger,
            };
        }
    };
    Expected::Kind(kind)
}

/// Opens every object that is not a pack.
pub(super) fn check_small_objects(vault: &Vault, report: &mut VerifyReport) -> Result<()> {
    let mut indexed: BTreeSet<PackId> = BTreeSet::new();
    let mut packs: BTreeSet<PackId> = BTreeSet::new();
    let mut rings: BTreeSet<String> = BTreeSet::new();
    let mut doubled: BTreeSet<ObjectName> = BTreeSet::new();
    for entry in list_all(vault.store(), &Prefix::root()) {
        let ListEntry { name, .. } = entry?;
        let outcome = match expected(&name) {
            Expected::Pack(_, id) => {
                packs.insert(id);
                continue;
            }
            Expected::Stranger => {
                report.find(
                    &name,
                    "not an object of this repository",
                    FindingSeverity::Degraded,
                );
                continue;
            }
            Expected::PutAway => {
                report.find(&name, PUT_AWAY, FindingSeverity::Degraded);
                continue;
            }
            Expected::Place => check_place(vault, &name),
            Expected::Kind(ObjectKind::Ring) => {
                rings.insert(name.to_string());
                check_ring(vault, &name)
            }
            Expected::Kind(ObjectKind::Config) => check_config(vault, &name),
            Expected::Kind(ObjectKind::Slot) => check_slot(vault, &name),
            Expected::Kind(kind) => check_sealed(vault, kind, &name, &mut indexed),
        };
        report.coverage.small_objects = report.coverage.small_objects.saturating_add(1);
        if names::twin(&name).is_some() {
            doubled.insert(name.clone());
        }
        match outcome {
            // Deleted since the listing: a beat, or garbage.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::Corrupt && has_good_twin(vault, &name)? => {
                report.find(&name, error, FindingSeverity::Degraded);
            }
            Err(error)
                if name.as_str().starts_with("index/") && error.kind() == ErrorKind::Corrupt =>
            {
                // Nothing is lost: the packs tell the same.
                report.find(&name, error, FindingSeverity::Degraded);
            }
            outcome => note(report, &name, outcome)?,
        }
    }
    check_presence(vault, &rings, report)?;
    check_twins(vault, &doubled, report)?;
    let own: BTreeSet<PackId> = list_leases(vault)?
        .iter()
        .filter_map(|view| view.body.as_ref().ok())
        .flat_map(LeaseBody::own_pack_ids)
        .collect();
    for pack in packs
        .iter()
        .filter(|pack| !indexed.contains(pack) && !own.contains(pack))
    {
        report.find(
            pack,
            "no index segment tells of this pack",
            FindingSeverity::Degraded,
        );
    }
    Ok(())
}

fn check_config(vault: &Vault, name: &ObjectName) -> Result<()> {
    if config::read_one(vault.store(), name)? == *vault.config() {
        return Ok(());
    }
    let what = "it is not what this repository was opened with";
    Err(Error::corrupt(name, what))
}

/// Whether the same text lies beside an object, and is good.
fn has_good_twin(vault: &Vault, name: &ObjectName) -> Result<bool> {
    let Some(twin) = names::twin(name) else {
        return Ok(false);
    };
    let Expected::Kind(kind) = expected(&twin) else {
        return Ok(false);
    };
    match check_sealed(vault, kind, &twin, &mut BTreeSet::new()) {
        Ok(()) => Ok(true),
        Err(error) if is_damage(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Of objects that lie there twice, finds those of which one is gone.
fn check_twins(
    vault: &Vault,
    doubled: &BTreeSet<ObjectName>,
    report: &mut VerifyReport,
) -> Result<()> {
    let is_there = |name: &ObjectName| match vault.store().size(name) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == store::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::from(error)),
    };
    for (name, twin) in doubled
        .iter()
        .filter_map(|name| Some((name, names::twin(name)?)))
    {
        // Both may have come or gone since the listing.
        if !doubled.contains(&twin) && !is_there(&twin)? && is_there(name)? {
            let what = "missing; the other copy is there";
            report.find(&twin, what, FindingSeverity::Degraded);
        }
    }
    Ok(())
}

fn check_presence(
    vault: &Vault,
    rings: &BTreeSet<String>,
    report: &mut VerifyReport,
) -> Result<()> {
    let mut missing = Vec::new();
    for name in [names::config()?, names::config_copy()?] {
        match vault.store().size(&name) {
            Ok(_) => {}
            Err(error) if error.kind() == store::ErrorKind::NotFound => missing.push(name),
            Err(error) => return Err(error.into()),
        }
    }
    let (what, severity) = if missing.len() < 2 {
        let what = "missing; the other copy is there";
        (what, FindingSeverity::Degraded)
    } else {
        ("missing, and its copy too", FindingSeverity::Damaged)
    };
    for name in missing {
        report.find(&name, what, severity);
    }
    if let Some(ring) = vault.keyring() {
        for generation in 1..=ring.generation {
            let pair = [names::ring(generation)?, names::ring_copy(generation)?];
            let severity = if pair.iter().any(|name| rings.contains(name.as_str())) {
                FindingSeverity::Degraded
            } else {
                FindingSeverity::Damaged
            };
            for name in pair {
                if !rings.contains(name.as_str()) {
                    report.find(&name, "missing", severity);
                }
            }
        }
    }
    Ok(())
}

fn check_place(vault: &Vault, name: &ObjectName) -> Result<()> {
    let limit = crate::catalog::MAX_POINT_BYTES;
    match vault.get_any(name, limit)? {
        (ObjectKind::Point | ObjectKind::Tombstone, _) if names::parse_point(name).is_some() => {
            Ok(())
        }
        (kind, _) => Err(Error::corrupt(
            name,
            format_args!("a {kind:?} where a point belongs"),
        )),
    }
}

/// Slots are wrapped under secrets that are not here: their checksum binds name and bytes.
fn check_slot(vault: &Vault, name: &ObjectName) -> Result<()> {
    let bytes = get_small(vault.store(), name)?;
    let (header, _) = envelope::check(name, &bytes)?;
    if header.kind == ObjectKind::Slot {
        Ok(())
    } else {
        Err(Error::corrupt(
            name,
            format_args!("a {:?} where a key slot belongs", header.kind),
        ))
    }
}

fn check_ring(vault: &Vault, name: &ObjectName) -> Result<()> {
    let bytes = get_small(vault.store(), name)?;
    let (header, _) = envelope::check(name, &bytes)?;
    let master = vault
        .master()
        .ok_or_else(|| Error::corrupt(name, "nothing here is encrypted"))?;
    if header.kind != ObjectKind::Ring {
        return Err(Error::corrupt(
            name,
            format_args!("a {:?} where a keyring belongs", header.kind),
        ));
    }
    envelope::open(name, &bytes, &|_| Some(master.clone())).map(|_| ())
}

fn check_sealed(
    vault: &Vault,
    kind: ObjectKind,
    name: &ObjectName,
    indexed: &mut BTreeSet<PackId>,
) -> Result<()> {
    let limit = u64::try_from(MAX_ENVELOPE_BYTES).unwrap_or(u64::MAX);
    let text = vault.get_sealed(kind, name, limit)?;
    let malformed = |error: serde_json::Error| Error::corrupt(name, "malformed").caused_by(error);
    match kind {
        ObjectKind::Segment => {
            let segment = segment::decode(&text).map_err(|what| Error::corrupt(name, what))?;
            indexed.extend(segment.packs.iter().map(|pack| pack.pack_id));
        }
        ObjectKind::Lease => drop(serde_json::from_slice::<LeaseBody>(&text).map_err(malformed)?),
        ObjectKind::Mark => drop(serde_json::from_slice::<Mark>(&text).map_err(malformed)?),
        ObjectKind::Condemned => {
            drop(serde_json::from_slice::<Condemned>(&text).map_err(malformed)?);
        }
        ObjectKind::Verdict => drop(serde_json::from_slice::<Verdict>(&text).map_err(malformed)?),
        // Its members were read one by one when points were listed.
        ObjectKind::Bundle => drop(serde_json::from_slice::<Bundle>(&text).map_err(malformed)?),
        _ => {}
    }
    Ok(())
}

fn get_small(store: &dyn Store, name: &ObjectName) -> Result<Vec<u8>> {
    Ok(store.get_bounded(name, u64::try_from(MAX_ENVELOPE_BYTES).unwrap_or(u64::MAX))?)
}

/// Verifies what a site without keys can: that every object is bit for bit what was written under its name. It cannot tell
/// whether an object is missing, nor what is in it.
///
/// # Errors
/// What the store answered, if that says nothing about what lies in it.
pub fn verify_without_keys(store: &dyn Store) -> Result<VerifyReport> {
    let mut report = VerifyReport {
        protection: crate::read::ReadProtection::None,
        ..VerifyReport::default()
    };
    for entry in list_all(store, &Prefix::root()) {
        let ListEntry { name, size_bytes } = entry?;
        let outcome = match expected(&name) {
            Expected::Stranger => {
                report.find(
                    &name,
                    "not an object of a repository",
                    FindingSeverity::Degraded,
                );
                continue;
            }
            Expected::PutAway => {
                report.find(&name, PUT_AWAY, FindingSeverity::Degraded);
                continue;
            }
            Expected::Pack(kind, id) => {
                let coverage = &mut report.coverage;
                coverage.packs = coverage.packs.saturating_add(1);
                coverage.pack_bytes = coverage.pack_bytes.saturating_add(size_bytes);
                coverage.packs_read = coverage.packs_read.saturating_add(1);
                coverage.pack_bytes_read = coverage.pack_bytes_read.saturating_add(size_bytes);
                let limit = u64::try_from(MAX_PACK_BYTES).unwrap_or(u64::MAX);
                store
                    .get_bounded(&name, limit)
                    .map_err(Error::from)
                    .and_then(|bytes| {
                        check_whole_pack(&name, kind, id, &bytes, &|_| None).map(|_| ())
                    })
            }
            expectation => {
                let coverage = &mut report.coverage;
                coverage.small_objects = coverage.small_objects.saturating_add(1);
                get_small(store, &name).and_then(|bytes| {
                    let (header, _) = envelope::check(&name, &bytes)?;
                    let fits = match expectation {
                        Expected::Place => {
                            matches!(header.kind, ObjectKind::Point | ObjectKind::Tombstone)
                        }
                        other => other == Expected::Kind(header.kind),
                    };
                    if fits {
                        Ok(())
                    } else {
                        let what = format!("a {:?} that does not belong here", header.kind);
                        Err(Error::corrupt(&name, what))
                    }
                })
            }
        };
        match outcome {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            outcome => note(&mut report, &name, outcome)?,
        }
    }
    report.settle();
    Ok(report)
}
