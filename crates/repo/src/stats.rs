//! What a repository holds, by name: logical, unique and shared bytes, from marks alone.
//!
//! ```text
//!   trees of name A ─► bits of A ─┐     once = blobs marked by one name so far
//!   trees of name B ─► bits of B ─┼──►  more = blobs marked by two or more
//!   …                             ┘     unique(A) = A ∧ ¬more
//! ```
//!
//! Names are marked one after the other: the first time to find out what is marked by more than one name, the second time to
//! count. Stored sizes come from pack directories.
//!
//! **Invariants.** Memory is three bits per blob and one pack directory. Nothing is written and nothing locked: what garbage
//! collection removes meanwhile is counted or not.

use std::collections::BTreeMap;

use store::list_all;

use crate::access::ObjectAccess;
use crate::format::FRAME_HEADER_BYTES;
use crate::gc::census::PointCensus;
use crate::gc::ground::Ground;
use crate::gc::mark::{BlobMarks, Marker};
use crate::gc::records::read_records;
use crate::index::{BlobPlace, PackState};
use crate::lease::TreeRoot;
use crate::marks::PointVisibility;
use crate::pack::PackFile;
use crate::points::ProtectedName;
use crate::repository::Repository;
use crate::{ErrorKind, PackKind, Result};

/// What one name costs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NameStats {
    /// Visible points.
    pub points: u64,
    /// Lengths of all disks of all visible points.
    pub logical_bytes: u64,
    /// Length of the newest point's disks.
    pub newest_logical_bytes: u64,
    /// Stored bytes that no other name needs: what forgetting all its points gives back.
    pub unique_bytes: u64,
    /// Stored bytes that other names need as well.
    pub shared_bytes: u64,
    /// Blobs that it needs and that are missing.
    pub missing_blobs: u64,
}

/// What a repository holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepositoryStats {
    /// By name.
    pub names: BTreeMap<ProtectedName, NameStats>,
    /// Points that are forgotten and not removed yet.
    pub forgotten_points: u64,
    /// Data packs and their bytes.
    pub data_packs: (u64, u64),
    /// Node packs and their bytes.
    pub node_packs: (u64, u64),
    /// Stored bytes that visible points need.
    pub live_bytes: u64,
    /// Stored bytes in packs that no visible point needs: what garbage collection can give back.
    pub garbage_bytes: u64,
    /// Packs that a generation has condemned, and their bytes.
    pub condemned_packs: (u64, u64),
    /// Index segments and their bytes.
    pub index_segments: (u64, u64),
    /// Everything else: points, bundles, marks, keys, leases, records.
    pub other_objects: (u64, u64),
}

fn add(count: &mut (u64, u64), bytes: u64) {
    count.0 = count.0.saturating_add(1);
    count.1 = count.1.saturating_add(bytes);
}

impl Repository {
    /// Measures the repository.
    ///
    /// # Errors
    /// What the store answered. Damage is counted where it is met and is no error.
    pub fn stats(&self) -> Result<RepositoryStats> {
        let ground = Ground::new(self)?;
        ground.refresh()?;
        let census = PointCensus::take(&ground.vault, self.memory())?;
        let mut stats = RepositoryStats::default();
        let mut roots: BTreeMap<ProtectedName, Vec<TreeRoot>> = BTreeMap::new();
        for (key, point) in &census.points {
            let marks = census.marks.get(key);
            if marks.is_some_and(|marks| marks.visibility() == PointVisibility::Forgotten) {
                stats.forgotten_points = stats.forgotten_points.saturating_add(1);
                continue;
            }
            let logical: u64 = point.disks.iter().map(|disk| disk.length_bytes).sum();
            let name = stats.names.entry(point.name.clone()).or_default();
            name.points = name.points.saturating_add(1);
            name.logical_bytes = name.logical_bytes.saturating_add(logical);
            // Points of a name come in the order of their numbers.
            name.newest_logical_bytes = logical;
            let trees = roots.entry(point.name.clone()).or_default();
            trees.extend(point.trees().map(crate::session::tree_root));
        }
        let shares = Shares::find(&ground, &roots)?;
        for (name, roots) in &roots {
            let (marks, missing) = mark_all(&ground, roots)?;
            let (unique, shared) = shares.weigh(&ground, &marks)?;
            let name = stats.names.entry(name.clone()).or_default();
            (name.unique_bytes, name.shared_bytes, name.missing_blobs) = (unique, shared, missing);
        }
        let (once, more) = shares.weigh(&ground, &shares.once)?;
        stats.live_bytes = once.saturating_add(more);
        self.count_objects(&ground, &mut stats)?;
        let packs = stats.data_packs.1.saturating_add(stats.node_packs.1);
        stats.garbage_bytes = shares.garbage(&ground)?.min(packs);
        Ok(stats)
    }

    fn count_objects(&self, ground: &Ground, stats: &mut RepositoryStats) -> Result<()> {
        let data = PackKind::Data.directory();
        let node = PackKind::Node.directory();
        for entry in list_all(ground.vault.store(), &store::Prefix::root()) {
            let entry = entry?;
            let first = entry.name.as_str().split('/').next().unwrap_or("");
            let count = match first {
                _ if first == data => &mut stats.data_packs,
                _ if first == node => &mut stats.node_packs,
                "index" => &mut stats.index_segments,
                _ => &mut stats.other_objects,
            };
            add(count, entry.size_bytes);
        }
        for record in read_records(ground.vault.as_ref())? {
            for pack in record.absent_packs() {
                let row = ground
                    .index
                    .pack_number(*pack)
                    .and_then(|at| ground.index.pack(at));
                if let Some(row) = row.filter(|row| row.state != PackState::Absent) {
                    add(&mut stats.condemned_packs, u64::from(row.size_bytes));
                }
            }
        }
        Ok(())
    }
}

/// Marks trees; also gives how many blobs are missing.
fn mark_all(ground: &Ground, roots: &[TreeRoot]) -> Result<(BlobMarks, u64)> {
    let mut marker = Marker::new(ground.homes(), &ground.nodes);
    let mut missing = Vec::new();
    for root in roots {
        marker.mark(*root, &mut |_, _| {}, &mut missing)?;
    }
    Ok((
        marker.marks,
        u64::try_from(missing.len()).unwrap_or(u64::MAX),
    ))
}

/// Which blobs some name needs, and which several do.
struct Shares {
    once: BlobMarks,
    more: BlobMarks,
}

impl Shares {
    fn find(ground: &Ground, roots: &BTreeMap<ProtectedName, Vec<TreeRoot>>) -> Result<Self> {
        let mut shares = Self {
            once: BlobMarks::default(),
            more: BlobMarks::default(),
        };
        for roots in roots.values() {
            let mut marker = Marker::new(ground.homes(), &ground.nodes);
            let mut fresh: Vec<BlobPlace> = Vec::new();
            for root in roots {
                marker.mark(*root, &mut |place, _| fresh.push(place), &mut Vec::new())?;
                for place in fresh.drain(..) {
                    if !shares.once.insert(place) {
                        shares.more.insert(place);
                    }
                }
            }
        }
        Ok(shares)
    }

    /// Stored bytes of marked blobs that one name needs, and of those that several do.
    fn weigh(&self, ground: &Ground, marks: &BlobMarks) -> Result<(u64, u64)> {
        let (mut unique, mut shared) = (0u64, 0u64);
        for_each_blob(
            ground,
            |number| marks.count(number) > 0,
            |place, bytes| {
                if marks.contains(place) {
                    let sum = if self.more.contains(place) {
                        &mut shared
                    } else {
                        &mut unique
                    };
                    *sum = sum.saturating_add(bytes);
                }
            },
        )?;
        Ok((unique, shared))
    }

    /// Stored bytes of blobs that no name needs.
    fn garbage(&self, ground: &Ground) -> Result<u64> {
        let mut garbage = 0u64;
        for_each_blob(
            ground,
            |_| true,
            |place, bytes| {
                if !self.once.contains(place) {
                    garbage = garbage.saturating_add(bytes);
                }
            },
        )?;
        Ok(garbage)
    }
}

/// Shows every blob of the chosen packs with its stored size, frame included.
fn for_each_blob(
    ground: &Ground,
    is_chosen: impl Fn(u32) -> bool,
    mut show: impl FnMut(BlobPlace, u64),
) -> Result<()> {
    for (number, row) in ground.index.packs() {
        if row.state == PackState::Absent || !is_chosen(number) {
            continue;
        }
        let file = match PackFile::open(&ground.vault, row.kind, row.id) {
            Ok(file) => file,
            // Deleted meanwhile, or damaged: there is nothing to weigh.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let frame = u64::try_from(FRAME_HEADER_BYTES).unwrap_or(0);
        for (ordinal, entry) in file.blobs() {
            let bytes = u64::from(entry.stored_len).saturating_add(frame);
            show(
                BlobPlace {
                    pack: number,
                    ordinal,
                },
                bytes,
            );
        }
    }
    Ok(())
}
