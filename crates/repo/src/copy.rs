//! Copying points to another repository: only what differs travels, everything is hashed on the way.
//!
//! ```text
//!   for each point, oldest first:
//!     there already (same origin)? ─► skip
//!     lease at the source ─► session at the target, base = its newest point of the name (or an interrupted copy)
//!       leaves that differ from the base ─► blocks that the target lacks ─► encoded under the target's key
//!                                       └─► tree built anew from them ─► its root must be the source's
//!     commit: stamp, configuration, facts of the original; signed by the target, the original's signature kept beside
//! ```
//!
//! **Invariants.** A copied version has the original's root, or it is not committed. Subtrees are skipped because the target's
//! base has them at the same place, never because a node of that name is known somewhere. An interrupted copy goes on:
//! committed points are skipped, and blocks that are durable are not sent again.
//!
//! **What it does not do.** Numbers are given by the target: its points say which number and id they had at their origin.

use std::sync::Arc;

use block::geometry::{BLOCK_SIZE_BYTES, FANOUT, LEAF_SIZE_BYTES};
use block::tree::{DiskTree, Node, NodeSink, NodeSource, TreeBuilder};
use block::{BlockHash, BlockIndex, LeafIndex, NodeHash};
use serde::{Deserialize, Serialize};

use crate::blobs::BlobWriter;
use crate::catalog::{PlaceState, PointMemory, Whose, list_points};
use crate::format::blob::BLOCK_BYTES;
use crate::lease::LeaseKind;
use crate::marks::PointVisibility;
use crate::points::{
    ConfigurationFile, CopiedPoint, DiskVersion, PointDraft, PointKey, ProtectedName,
    RecoveryPoint, SignedPoint,
};
use crate::read::{BulkRead, LeafBlocks, ReadProtection, ReadSession, VersionReader};
use crate::repository::Repository;
use crate::session::{BeginOptions, BusyPolicy, VersionSession};
use crate::{BlobName, Error, ErrorKind, PointId, RepositoryId, Result};

/// The field of a copied point that says where it comes from.
pub(crate) const ORIGIN_FIELD: &str = "origin";

/// Where a copied point comes from. A copy of a copy speaks of the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointOrigin {
    /// The repository that it was committed to.
    pub repository: RepositoryId,
    /// Its number there.
    pub sequence: u64,
    /// Its id there.
    pub point: PointId,
    /// What was committed there, with its signature.
    pub signed: SignedPoint,
}

impl PointOrigin {
    /// The origin that a point speaks of.
    pub fn of(point: &RecoveryPoint) -> Option<Self> {
        point
            .more
            .get(ORIGIN_FIELD)
            .and_then(|value| serde_json::from_value(value.clone()).ok())
    }
}

/// Which points are copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySelection {
    /// Every visible one.
    All,
    /// Those of some names.
    Names(Vec<ProtectedName>),
    /// The newest one of each name.
    NewestOfEach,
}

/// How a copy is made.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// Which points.
    pub selection: CopySelection,
    /// How the source is kept from garbage collection.
    pub protection: ReadProtection,
    /// Compression at the target; its own when absent.
    pub compression: Option<crate::Compression>,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            selection: CopySelection::All,
            protection: ReadProtection::Lease,
            compression: None,
        }
    }
}

/// Watches a copy. Every method may be called from any thread, often; it must be cheap and must not block.
pub trait CopyWatch: Send + Sync {
    /// A tree of a point begins to be copied; `bytes` of its disk differ from what the target has at the same place.
    fn begin(&self, name: &ProtectedName, sequence: u64, bytes: u64);
    /// So many of them are done.
    fn advance(&self, bytes: u64);
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl CopyWatch for Unwatched {
    fn begin(&self, _name: &ProtectedName, _sequence: u64, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
}

/// A point that was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedVersion {
    /// Whose point.
    pub name: ProtectedName,
    /// Where it is at the source.
    pub source: PointKey,
    /// Where it is at the target.
    pub target: PointKey,
}

/// What a copy did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopyReport {
    /// Points that were copied, in order.
    pub copied: Vec<CopiedVersion>,
    /// Points that were there already.
    pub present: u64,
    /// Points that could not be copied because the source is damaged, and why; the others were.
    pub failed: Vec<(ProtectedName, u64, String)>,
    /// Leaves that were compared block by block.
    pub leaves_read: u64,
    /// Blocks read from the source.
    pub blocks_read: u64,
    /// Blocks stored at the target.
    pub blocks_stored: u64,
    /// Nodes stored at the target.
    pub nodes_stored: u64,
    /// Bytes of packs put at the target.
    pub stored_bytes: u64,
    /// What kept garbage collection at the source off: [`ReadProtection::None`] as soon as one point had no lease.
    pub protection: ReadProtection,
}

impl Repository {
    /// Copies points of this repository to another one.
    ///
    /// # Errors
    /// What either store answered; [`ErrorKind::Busy`] when a name is being written at the target. What was committed
    /// until then stays, and the next run goes on behind it.
    pub fn copy_to(&self, target: &Repository, options: &CopyOptions) -> Result<CopyReport> {
        self.copy_to_watched(target, options, &Unwatched)
    }

    /// As [`Repository::copy_to`], while somebody watches.
    ///
    /// # Errors
    /// The same.
    pub fn copy_to_watched(
        &self,
        target: &Repository,
        options: &CopyOptions,
        watch: &dyn CopyWatch,
    ) -> Result<CopyReport> {
        if self.id() == target.id() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a repository is not copied to itself",
            ));
        }
        let mut report = CopyReport::default();
        let present = origins(target)?;
        for (point, signed) in select(self, &options.selection)? {
            let origin = PointOrigin::of(&point).unwrap_or(PointOrigin {
                repository: self.id(),
                sequence: point.sequence,
                point: point.point,
                signed,
            });
            let known = present.contains(&(origin.repository, origin.point))
                || origin.repository == target.id();
            if known {
                report.present = report.present.saturating_add(1);
                continue;
            }
            let mut run = CopyRun {
                source: self,
                target,
                options,
                watch,
                report: &mut report,
            };
            match run.copy_point(&point, &origin) {
                Ok(made) => report.copied.push(CopiedVersion {
                    name: point.name.clone(),
                    source: point.key(),
                    target: made.key(),
                }),
                Err(error) if is_source_damage(&error) => {
                    report
                        .failed
                        .push((point.name.clone(), point.sequence, error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(report)
    }
}

/// Damage, or a point that was forgotten meanwhile: the next point may still be fine.
fn is_source_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
}

fn origins(target: &Repository) -> Result<std::collections::HashSet<(RepositoryId, PointId)>> {
    let (records, _) = target.points()?;
    Ok(records
        .iter()
        .filter_map(|record| PointOrigin::of(&record.point))
        .map(|origin| (origin.repository, origin.point))
        .collect())
}

/// The points to copy with what was signed, by name and number.
fn select(
    source: &Repository,
    selection: &CopySelection,
) -> Result<Vec<(RecoveryPoint, SignedPoint)>> {
    let marks = crate::marks::read_all_marks(source.vault().as_ref())?;
    let listing = list_points(source.vault(), &PointMemory::default(), Whose::All)?;
    let mut points: Vec<(RecoveryPoint, SignedPoint)> = listing
        .places
        .into_iter()
        .filter(|(key, _)| {
            marks
                .get(key)
                .is_none_or(|marks| marks.visibility() == PointVisibility::Visible)
        })
        .filter_map(|(_, place)| match place.state {
            PlaceState::Point { point, signed } => Some((*point, signed)),
            PlaceState::Tombstone | PlaceState::Damaged(_) => None,
        })
        .collect();
    points.sort_by(|(a, _), (b, _)| (&a.name, a.sequence).cmp(&(&b.name, b.sequence)));
    match selection {
        CopySelection::All => {}
        CopySelection::Names(names) => points.retain(|(point, _)| names.contains(&point.name)),
        CopySelection::NewestOfEach => {
            points.reverse();
            points.dedup_by(|(older, _), (newer, _)| older.name == newer.name);
            points.reverse();
        }
    }
    Ok(points)
}

/// One point on its way.
struct CopyRun<'a> {
    source: &'a Repository,
    target: &'a Repository,
    options: &'a CopyOptions,
    watch: &'a dyn CopyWatch,
    report: &'a mut CopyReport,
}

/// Two ends of a copy that are open.
struct Ends<'a> {
    reading: &'a Arc<ReadSession>,
    session: &'a VersionSession,
    point: &'a RecoveryPoint,
}

impl CopyRun<'_> {
    fn copy_point(&mut self, point: &RecoveryPoint, origin: &PointOrigin) -> Result<RecoveryPoint> {
        let protection = self.options.protection;
        let reading = self
            .source
            .read_session(LeaseKind::Copy, &[point], protection)?;
        if reading.protection() == ReadProtection::None {
            self.report.protection = ReadProtection::None;
        }
        let begin = BeginOptions {
            compression: self.options.compression,
            busy: BusyPolicy::WaitForStall,
            ..BeginOptions::default()
        };
        let session = self.target.begin(&point.name, &begin)?;
        let ends = Ends {
            reading: &reading,
            session: &session,
            point,
        };
        let draft = match self.transfer(&ends, origin) {
            Ok(draft) => draft,
            Err(error) => {
                // The first error is the one to tell. A lease that stays falls to the stall rule; what is durable is
                // found by the next copy.
                session.abandon().ok();
                return Err(error);
            }
        };
        let stats = session.blobs().stats();
        let made = session.commit(draft)?;
        let report = &mut self.report;
        report.blocks_stored = report.blocks_stored.saturating_add(stats.blocks_stored);
        report.nodes_stored = report.nodes_stored.saturating_add(stats.nodes_stored);
        report.stored_bytes = report.stored_bytes.saturating_add(stats.stored_bytes);
        if let Some(reading) = Arc::into_inner(reading) {
            reading.finish()?;
        }
        Ok(made)
    }

    fn transfer(&mut self, ends: &Ends<'_>, origin: &PointOrigin) -> Result<PointDraft> {
        let base = ends.session.base();
        for disk in &ends.point.disks {
            let base = base.partial_disk(&disk.label).or(base.disk(&disk.label));
            self.copy_disk(ends, disk, base)?;
            ends.session.checkpoint(disk.clone())?;
        }
        for ConfigurationFile { path, content } in &ends.point.configuration {
            let parent = base.parent.as_ref();
            let base = parent.and_then(|parent| {
                parent
                    .configuration
                    .iter()
                    .find(|file| file.path == *path)
                    .map(|file| &file.content)
            });
            self.copy_disk(ends, content, base)?;
        }
        // What the commit does as well; here a failure still gives the lease back.
        ends.session.blobs().flush()?;
        ends.session.blobs().put_segment()?;
        draft_of(ends.point, origin)
    }

    fn copy_disk(
        &mut self,
        ends: &Ends<'_>,
        disk: &DiskVersion,
        base: Option<&DiskVersion>,
    ) -> Result<()> {
        let reader = self.source.open_version(disk, ends.reading)?;
        let target: &dyn NodeSource = ends.session.repository();
        let source: &dyn NodeSource = self.source;
        let base = match base {
            Some(base) => base.tree(),
            None => DiskTree::zero(disk.length_bytes)?,
        };
        let differences = || block::diff::LeafDifferences::new(base, target, disk.tree(), source);
        let leaf_count = disk.tree().leaf_count();
        let mut leaves = 0u64;
        for difference in differences()? {
            leaves = leaves.saturating_add(u64::from(difference?.leaf.0 < leaf_count));
        }
        self.watch.begin(
            &ends.point.name,
            ends.point.sequence,
            leaves.saturating_mul(LEAF_SIZE_BYTES),
        );
        let mut run: Option<(u64, u64)> = None;
        for difference in differences()? {
            let leaf = difference?.leaf.0;
            if leaf >= leaf_count {
                break;
            }
            match &mut run {
                Some((_, end)) if *end == leaf => *end = leaf.saturating_add(1),
                _ => {
                    if let Some(run) = run.take() {
                        self.copy_blocks(&reader, ends.session.blobs(), run)?;
                    }
                    run = Some((leaf, leaf.saturating_add(1)));
                }
            }
        }
        if let Some(run) = run {
            self.copy_blocks(&reader, ends.session.blobs(), run)?;
        }
        self.rebuild(ends, disk, base)
    }

    /// Builds the tree anew at the target; its root must be the source's.
    fn rebuild(&self, ends: &Ends<'_>, disk: &DiskVersion, base: DiskTree) -> Result<()> {
        let target: &dyn NodeSource = ends.session.repository();
        let source: &dyn NodeSource = self.source;
        let differences = block::diff::LeafDifferences::new(base, target, disk.tree(), source)?;
        let mut builder = TreeBuilder::new(base, target, disk.length_bytes)?;
        let mut sink = Sink(ends.session.blobs());
        for difference in differences {
            let difference = difference?;
            if difference.leaf.0 >= disk.tree().leaf_count() {
                break;
            }
            let node = if difference.b == NodeHash::zero(1) {
                Node::zero(1)
            } else {
                source.node(1, difference.b)?
            };
            builder.replace(difference.leaf, &node, &mut sink)?;
        }
        let (tree, _) = builder.finish(&mut sink)?;
        if tree == disk.tree() {
            Ok(())
        } else {
            Err(Error::corrupt(
                disk.root,
                "the copy came out with another root",
            ))
        }
    }

    /// Copies the blocks of a run of leaves that the target lacks.
    fn copy_blocks(
        &mut self,
        reader: &VersionReader,
        blobs: &BlobWriter,
        (first, end): (u64, u64),
    ) -> Result<()> {
        let options = BulkRead {
            first: LeafIndex(first),
            end: Some(LeafIndex(end)),
            ..BulkRead::default()
        };
        let failed = std::sync::Mutex::new(None);
        let wanted = |_: BlockIndex, hash: BlockHash| match blobs.contains_block(hash) {
            Ok(known) => !known,
            Err(error) => {
                *failed
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                false
            }
        };
        let watch = self.watch;
        let sink = |leaf: &LeafBlocks<'_>| {
            append_leaf(blobs, leaf)?;
            watch.advance(LEAF_SIZE_BYTES);
            Ok(())
        };
        let stats = reader.read_leaves(&options, &wanted, &sink)?;
        if let Some(error) = failed
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            return Err(error);
        }
        let report = &mut self.report;
        report.leaves_read = report.leaves_read.saturating_add(stats.leaves);
        report.blocks_read = report.blocks_read.saturating_add(stats.blocks);
        let zeros = end.saturating_sub(first).saturating_sub(stats.leaves);
        watch.advance(zeros.saturating_mul(LEAF_SIZE_BYTES));
        Ok(())
    }
}

fn draft_of(point: &RecoveryPoint, origin: &PointOrigin) -> Result<PointDraft> {
    let mut more = point.more.clone();
    let origin_value = serde_json::to_value(origin)
        .map_err(|error| Error::new(ErrorKind::Invalid, "the origin").caused_by(error))?;
    more.insert(ORIGIN_FIELD.to_owned(), origin_value);
    Ok(PointDraft {
        disks: point.disks.clone(),
        configuration: point.configuration.clone(),
        consistency: point.consistency,
        source: point.source.clone(),
        counters: point.counters.clone(),
        more,
        copied: Some(CopiedPoint {
            created: point.created.clone(),
            created_unix_ms: point.created_unix_ms,
            parent: point.parent,
            point: point.point,
        }),
    })
}

struct Sink<'a>(&'a BlobWriter);

impl NodeSink for Sink<'_> {
    fn put_node(&mut self, level: u8, hash: NodeHash, node: &Node) -> block::Result<()> {
        let encoded = self
            .0
            .encode(BlobName::Node { level, hash }, node.as_bytes())?;
        Ok(self.0.append(vec![encoded])?)
    }
}

fn append_leaf(blobs: &BlobWriter, leaf: &LeafBlocks<'_>) -> Result<()> {
    let first = leaf.leaf.first_block().0;
    let mut encoded = Vec::with_capacity(FANOUT);
    let mut padded = Vec::new();
    for (offset, bytes) in leaf.runs() {
        let mut block = offset / BLOCK_SIZE_BYTES;
        for piece in bytes.chunks(BLOCK_BYTES) {
            let slot = usize::try_from(block.saturating_sub(first)).unwrap_or(FANOUT);
            if slot >= FANOUT {
                return Err(Error::corrupt(
                    reader_place(offset),
                    "a leaf longer than a leaf",
                ));
            }
            let name = BlobName::Block(leaf.node.block(slot));
            // The last block of a disk is cut at its end and was hashed padded.
            let whole = if piece.len() == BLOCK_BYTES {
                piece
            } else {
                padded.clear();
                padded.extend_from_slice(piece);
                padded.resize(BLOCK_BYTES, 0);
                &padded
            };
            encoded.push(blobs.encode(name, whole)?);
            block = block.saturating_add(1);
        }
    }
    blobs.append(encoded)
}

fn reader_place(offset: u64) -> String {
    format!("the leaf at byte {offset}")
}
