//! Many small objects into few: index segments and recovery points.
//!
//! **Invariants.** What is merged is durable before what it replaces is deleted. A reader that lists single points before
//! bundles, and index segments after packs, misses nothing in between. A point that a lease has reserved is not moved: the
//! name must stay taken while somebody may still want to commit or fence there. Neither is one whose number no verdict tells
//! yet: a bundle that cannot be read later must leave no doubt about which numbers were given.

use std::collections::{BTreeMap, BTreeSet};

use store::list_all;

use crate::access::ObjectAccess;
use crate::bundles::{delete_bundle, list_lone_bundles, read_bundle};
use crate::format::segment::{self, PackDirectory};
use crate::format::{MAX_ENVELOPE_TEXT_BYTES, ObjectKind, PackKind};
use crate::index::put_segment;
use crate::lease::Lease;
use crate::pack::read_directory;
use crate::points::{Bundle, BundledPoint, PointKey, SignedPoint};
use crate::vault::Vault;
use crate::{ErrorKind, PackId, Result, SegmentId, names};

use super::delete::{put_bundle, read_bundles};
use super::mark::is_damage;
use super::records::{read_records, union_of_numbers};
use super::report::Quarantined;

/// A merged segment is closed at this size.
const SEGMENT_TARGET_BYTES: usize = 16 << 20;
/// A segment smaller than this is merged with others.
const SEGMENT_SMALL_BYTES: u64 = 8 << 20;
/// A bundle is closed at this many bytes of bodies, or points.
const BUNDLE_TARGET_BYTES: usize = 8 << 20;
const BUNDLE_POINTS_MAX: usize = 4_096;
/// Longest single point that is bundled.
const POINT_SIZE_BYTES_MAX: u64 = 16 << 20;

/// Which segments are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentScope {
    /// The small ones.
    Small,
    /// All of them: much of what they say is gone.
    All,
    /// All of them, and packs that none tells of are read: some may be missing.
    Rebuild,
}

/// Merges segments into few; gives how many are left. Packs that are not in `present` are left out, packs of `present`
/// that a damaged segment may have named are read anew.
pub(crate) fn merge_segments(
    vault: &Vault,
    present: &BTreeMap<PackId, PackKind>,
    scope: SegmentScope,
    quarantined: &mut Vec<Quarantined>,
) -> Result<u64> {
    let limit = u64::try_from(MAX_ENVELOPE_TEXT_BYTES).unwrap_or(u64::MAX);
    let mut writer = SegmentWriter::new(vault);
    let mut seen: BTreeSet<PackId> = BTreeSet::new();
    let mut unreadable = false;
    let mut left = 0u64;
    for entry in list_all(vault.store(), &names::segments()?) {
        let entry = entry?;
        let Some(id) = names::last_id::<SegmentId>(&entry.name) else {
            continue;
        };
        let read = vault
            .get_sealed(ObjectKind::Segment, &entry.name, limit)
            .and_then(|text| {
                segment::decode(&text).map_err(|what| crate::Error::corrupt(&entry.name, what))
            });
        let segment = match read {
            Ok(segment) => segment,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) if is_damage(&error) => {
                let object = entry.name.to_string();
                quarantined.push(Quarantined {
                    object,
                    what: error.to_string(),
                });
                unreadable = true;
                writer.replaces.push(id);
                continue;
            }
            Err(error) => return Err(error),
        };
        if scope == SegmentScope::Small && entry.size_bytes >= SEGMENT_SMALL_BYTES {
            seen.extend(segment.packs.iter().map(|pack| pack.pack_id));
            left = left.saturating_add(1);
            continue;
        }
        for pack in segment.packs {
            if present.contains_key(&pack.pack_id) && seen.insert(pack.pack_id) {
                writer.push(pack)?;
            }
        }
        writer.replaces.push(id);
    }
    if unreadable || scope == SegmentScope::Rebuild {
        for (pack, kind) in present.iter().filter(|(pack, _)| !seen.contains(pack)) {
            match directory_of(vault, *pack, *kind) {
                Ok(directory) => writer.push(directory)?,
                Err(error) if is_damage(&error) => {
                    let object = names::pack(*kind, *pack)?.to_string();
                    quarantined.push(Quarantined {
                        object,
                        what: error.to_string(),
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(left.saturating_add(writer.finish()?))
}

/// A pack's own directory in the form of segments.
fn directory_of(vault: &Vault, pack: PackId, kind: PackKind) -> Result<PackDirectory> {
    let name = names::pack(kind, pack)?;
    let find_key = |id| vault.data_key(id);
    let (decoder, entries, size) = read_directory(vault.store(), &name, kind, pack, &find_key)?;
    let header = decoder.header();
    Ok(PackDirectory {
        pack_id: pack,
        kind,
        key_id: header.key_id,
        cipher: header.cipher,
        stored_size_bytes: u32::try_from(size).unwrap_or(u32::MAX),
        entries,
    })
}

/// Writes merged segments; the old ones go at the end, when all new ones are durable.
struct SegmentWriter<'a> {
    vault: &'a Vault,
    replaces: Vec<SegmentId>,
    open: Vec<PackDirectory>,
    open_bytes: usize,
    written: u64,
}

impl<'a> SegmentWriter<'a> {
    fn new(vault: &'a Vault) -> Self {
        Self {
            vault,
            replaces: Vec::new(),
            open: Vec::new(),
            open_bytes: 0,
            written: 0,
        }
    }

    fn push(&mut self, pack: PackDirectory) -> Result<()> {
        self.open_bytes = self.open_bytes.saturating_add(pack.encoded_bytes());
        self.open.push(pack);
        if self.open_bytes >= SEGMENT_TARGET_BYTES {
            self.close()
        } else {
            Ok(())
        }
    }

    fn close(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let packs = std::mem::take(&mut self.open);
        put_segment(self.vault, self.replaces.clone(), packs)?;
        self.open_bytes = 0;
        self.written = self.written.saturating_add(1);
        Ok(())
    }

    fn finish(mut self) -> Result<u64> {
        self.close()?;
        for id in &self.replaces {
            self.vault.store().delete(&names::segment(*id)?)?;
        }
        Ok(self.written)
    }
}

/// Moves single points into bundles, together with what small bundles there are; gives how many points were moved.
/// Points of `keep` stay single.
pub(super) fn bundle_points(
    vault: &Vault,
    lease: &Lease,
    keep: &BTreeSet<PointKey>,
    points_min: usize,
    quarantined: &mut Vec<Quarantined>,
) -> Result<u64> {
    let mut singles: Vec<PointKey> = Vec::new();
    for entry in list_all(vault.store(), &names::points()?) {
        if let Some(key) = names::parse_point(&entry?.name)
            && !keep.contains(&key)
        {
            singles.push(key);
        }
    }
    if singles.len() < points_min.max(1) {
        return Ok(0);
    }
    let numbers = union_of_numbers(&read_records(vault)?);
    singles.retain(|key| numbers.given.get(&key.name_id) >= Some(&key.sequence));
    let mut members: Vec<BundledPoint> = Vec::new();
    let mut moved: Vec<PointKey> = Vec::new();
    for key in singles {
        let name = names::point(key)?;
        match vault.get_any(&name, POINT_SIZE_BYTES_MAX) {
            Ok((ObjectKind::Point, text)) => match serde_json::from_slice::<SignedPoint>(&text) {
                Ok(point) => {
                    members.push(BundledPoint { key, point });
                    moved.push(key);
                }
                Err(error) => {
                    let object = name.to_string();
                    quarantined.push(Quarantined {
                        object,
                        what: error.to_string(),
                    });
                }
            },
            // A tombstone stays where it is for ever: it is what keeps a fenced writer out.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if is_damage(&error) => {
                let object = name.to_string();
                quarantined.push(Quarantined {
                    object,
                    what: error.to_string(),
                });
            }
            Err(error) => return Err(error),
        }
    }
    if moved.len() < points_min.max(1) {
        return Ok(0);
    }
    let mut replaced = Vec::new();
    let small = BUNDLE_POINTS_MAX / 2;
    for (id, bundle) in read_bundles(vault, quarantined)? {
        if bundle.points.len() < small && bundle.more.is_empty() && bundle.retired.is_empty() {
            members.extend(bundle.points);
            replaced.push(id);
        }
    }
    members.sort_by_key(|member| member.key);
    members.dedup_by_key(|member| member.key);
    put_bundles(vault, lease, members)?;
    for key in &moved {
        vault.store().delete(&names::point(*key)?)?;
    }
    for id in replaced {
        delete_bundle(vault.store(), id)?;
    }
    Ok(u64::try_from(moved.len()).unwrap_or(u64::MAX))
}

/// Writes bundles anew whose copy (or which themselves) are gone: a collector was stopped between the two, or worse.
pub(super) fn double_bundles(vault: &Vault, lease: &Lease) -> Result<()> {
    for id in list_lone_bundles(vault.store())? {
        match read_bundle(vault, id) {
            Ok(bundle) => {
                put_bundle(vault, lease, bundle)?;
                delete_bundle(vault.store(), id)?;
            }
            // The census tells.
            Err(error) if is_damage(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn put_bundles(vault: &Vault, lease: &Lease, members: Vec<BundledPoint>) -> Result<()> {
    let mut open = Bundle::default();
    let mut open_bytes = 0usize;
    for member in members {
        open_bytes = open_bytes.saturating_add(member.point.body.len());
        open.points.push(member);
        if open_bytes >= BUNDLE_TARGET_BYTES || open.points.len() >= BUNDLE_POINTS_MAX {
            put_bundle(vault, lease, std::mem::take(&mut open))?;
            open_bytes = 0;
        }
    }
    if !open.points.is_empty() {
        put_bundle(vault, lease, open)?;
    }
    Ok(())
}
