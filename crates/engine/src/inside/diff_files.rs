//! Which files differ between two versions: added, removed, changed, moved.
//!
//! ```text
//!   trees of hashes ─► changed blocks ─► a volume without any is equal: nothing is read
//!   volumes, paired by what they are ─► folders, both sides sorted, merged name by name
//!        in one only ───────────────► added, removed; the same file under two names: moved
//!        in both: a file whose metadata is equal and whose blocks did not change is equal unread
//!                 sizes differ ─────► changed
//!                 else ─────────────► both are read and compared up to the first difference
//! ```
//!
//! **Invariants.** Nothing is called unchanged on trust: either its blocks are the same by their hashes, or both sides were
//! read ([`Doubt::Read`]; whoever chooses [`Doubt::BelieveTimes`] is told how many files that was). A folder that is damaged
//! on one side hides no names of the other: only names that both list are compared there, and that is said. Memory:
//! the two folders at hand, the folders still to be compared, and at most 100,000 files that may turn out to be moved.

mod moves;
mod walk;

use block::ChangedRanges;
use block::diff::BlockDifferences;
use guestfs::FileName;
use guestfs::disk::VolumePlace;
use guestfs::encrypted::UnlockKey;
use guestfs::filesystem::{FileKind, Timestamp};
use repo::{PointSelector, RecoveryPoint, Repository};

use super::chain::{LookCost, OpenedVersion, VersionChain, ends_all, is_absence};
use super::contents::run_of_disk;
use super::identity::{VolumeIdentity, why_closed};
use super::place::display_path;
use super::{InsideDisks, LastLink, Place, VolumeNumber};
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};
use walk::Comparison;

/// Changed ranges of a disk that are held apart; beyond, neighbours are taken together.
const CHANGED_MAX: usize = 1 << 20;

/// Encrypted volumes within one another.
const CONTAINERS_MAX: usize = 8;

/// What is done with files whose blocks cannot be told, such as compressed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Doubt {
    /// Both sides are read.
    #[default]
    Read,
    /// Equal size and equal times of change are believed.
    BelieveTimes,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileChange {
    /// Only the newer version has it.
    Added,
    /// Only the older version has it.
    Removed,
    /// Its contents differ.
    Changed,
    /// Its contents are equal; times, owner, mode or attributes differ.
    MetadataChanged,
    /// It has another path; its contents are equal.
    Moved,
    /// It has another path and other contents.
    MovedAndChanged,
}

impl FileChange {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
            Self::MetadataChanged => "metadata-changed",
            Self::Moved => "moved",
            Self::MovedAndChanged => "moved-and-changed",
        }
    }
}

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedFile {
    /// What happened to it.
    pub change: FileChange,
    /// Its volume, as the newer version numbers it; for what was removed, as the older one does.
    pub volume: VolumeNumber,
    /// Its path there.
    pub path: Vec<FileName>,
    /// The path that it had before it was moved.
    pub from: Option<Vec<FileName>>,
    /// What it is.
    pub kind: FileKind,
    /// Bytes before.
    pub size_before: Option<u64>,
    /// Bytes now.
    pub size_now: Option<u64>,
    /// The last change of its bytes, in the version that has it, the newer one of two.
    pub modified: Option<Timestamp>,
}

impl ChangedFile {
    /// Its path as text.
    pub fn display_path(&self) -> String {
        display_path(&self.path)
    }

    /// Whether it is a folder.
    pub fn is_folder(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// The path that it had, as text.
    pub fn display_from(&self) -> Option<String> {
        self.from.as_deref().map(display_path)
    }
}

/// How many of each, and how that was found out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiffFilesReport {
    /// NAME@VERSION of the older side.
    pub older: String,
    /// NAME@VERSION of the newer side.
    pub newer: String,
    /// Files and folders that were added.
    pub added: u64,
    /// … removed.
    pub removed: u64,
    /// … whose contents changed, those moved included.
    pub changed: u64,
    /// … of which only metadata changed.
    pub metadata_changed: u64,
    /// … that were moved.
    pub moved: u64,
    /// Files that are equal by the hashes of their blocks, unread.
    pub equal_by_blocks: u64,
    /// Files that were read on both sides.
    pub compared_by_reading: u64,
    /// Files that were believed to be equal for their size and times.
    pub believed: u64,
    /// Volumes without any changed block, of which nothing was read.
    pub volumes_unchanged: u64,
    /// What else an operator should know.
    pub notes: Vec<String>,
    /// What is damaged, so that it was not or not fully compared; at most 1,000 lines.
    pub damage: Vec<String>,
    /// What looking cost.
    pub cost: LookCost,
}

/// Tells the files that differ between two versions, in the whole or below a path, in the order of folders.
///
/// # Errors
/// [`ErrorKind::NotFound`] when a version is not there, or neither version has the path; [`ErrorKind::Invalid`];
/// [`ErrorKind::Io`], [`ErrorKind::Cancelled`], and what `visit` answers.
pub fn diff_files(
    repository: &Repository,
    (older, newer): (&PointSelector, &PointSelector),
    path: Option<&str>,
    (doubt, keys): (Doubt, &[UnlockKey]),
    context: JobContext<'_>,
    visit: &mut dyn FnMut(ChangedFile) -> Result<()>,
) -> Result<DiffFilesReport> {
    let points = vec![
        repository.find_point(older)?.point,
        repository.find_point(newer)?.point,
    ];
    let chain = VersionChain::of(repository, points, &newer.name, keys, context)?;
    context.progress.begin("comparing files", None);
    let outcome = compared(&chain, path, doubt, context, visit);
    context.progress.end();
    chain.finish(context);
    outcome
}

/// Both sides, opened.
pub(super) struct Sides {
    pub(super) a: OpenedVersion,
    pub(super) b: OpenedVersion,
    /// Changed ranges disk by disk, where both sides have the disk.
    changed: Vec<ChangedRanges>,
}

fn changed_ranges(
    repository: &Repository,
    (a, b): (&RecoveryPoint, &RecoveryPoint),
    context: JobContext<'_>,
) -> Result<Vec<ChangedRanges>> {
    let mut all = Vec::new();
    for (a, b) in a.disks.iter().zip(&b.disks) {
        let mut ranges = Vec::new();
        for range in BlockDifferences::new(a.tree(), repository, b.tree(), repository)? {
            context.cancel.check()?;
            ranges.push(range?);
            if ranges.len() > 2 * CHANGED_MAX {
                let coarse = ChangedRanges::new(ranges)?.coarsened(CHANGED_MAX);
                ranges = coarse.iter().collect();
            }
        }
        all.push(ChangedRanges::new(ranges)?);
    }
    Ok(all)
}

impl Sides {
    /// The changed ranges of the disk that both volumes are the same run of.
    pub(super) fn changed_of(
        &self,
        (a, b): (VolumeNumber, VolumeNumber),
    ) -> Option<(&ChangedRanges, block::ByteRange)> {
        let (a, b) = (self.a.inside.volume(a).ok()?, self.b.inside.volume(b).ok()?);
        let (run, other) = (run_of_disk(&a.place)?, run_of_disk(&b.place)?);
        let size = a.size_bytes()?;
        if run != other || Some(size) != b.size_bytes() {
            return None;
        }
        let range = block::ByteRange {
            offset: run.1,
            length_bytes: size,
        };
        Some((self.changed.get(run.0)?, range))
    }

    /// Whether both volumes are the same bytes of the same disk, or what a key opens in such.
    fn is_untouched(&self, (a, b): (VolumeNumber, VolumeNumber)) -> bool {
        let (mut a, mut b) = (a, b);
        for _ in 0..CONTAINERS_MAX {
            let container = |version: &OpenedVersion, number| {
                let VolumePlace::Opened { container, .. } =
                    &version.inside.volume(number).ok()?.place
                else {
                    return None;
                };
                let mut volumes = version.inside.volumes();
                Some(volumes.find(|(_, one)| one.name == *container)?.0)
            };
            match (container(&self.a, a), container(&self.b, b)) {
                (Some(outer_a), Some(outer_b)) => (a, b) = (outer_a, outer_b),
                _ => {
                    let changed = self.changed_of((a, b));
                    return changed.is_some_and(|(changed, volume)| !changed.touches(volume));
                }
            }
        }
        false
    }
}

fn compared(
    chain: &VersionChain<'_>,
    path: Option<&str>,
    doubt: Doubt,
    context: JobContext<'_>,
    visit: &mut dyn FnMut(ChangedFile) -> Result<()>,
) -> Result<DiffFilesReport> {
    let [a, b] = chain.points.as_slice() else {
        return Err(Error::new(ErrorKind::Invalid, "two versions are compared"));
    };
    let mut report = DiffFilesReport {
        older: format!("{}@{}", a.name, a.sequence),
        newer: format!("{}@{}", b.name, b.sequence),
        ..DiffFilesReport::default()
    };
    let sides = Sides {
        a: chain.look_into(a)?,
        b: chain.look_into(b)?,
        changed: changed_ranges(chain.repository(), (a, b), context)?,
    };
    let pairs = match path {
        Some(path) => vec![pair_below(&sides, path)?],
        None => pairs_of_volumes(&sides, &mut report)?,
    };
    report.cost.versions_read = 2;
    for (a, b) in pairs {
        Comparison::new(&sides, doubt, context, visit, &mut report).volume(a, b)?;
    }
    report.cost.contents_read = report.compared_by_reading.saturating_mul(2);
    report.cost.blocks_fetched = chain.blocks_fetched();
    Ok(report)
}

type Pair = (Option<Place>, Option<Place>);

fn root_of(version: &OpenedVersion, volume: VolumeNumber) -> Result<Place> {
    let file_system = version.inside.file_system(volume)?;
    Ok(Place {
        volume,
        file: file_system.root(),
        file_system,
        path: Vec::new(),
    })
}

/// The volumes of both sides: those that are the same one together, the others alone.
fn pairs_of_volumes(sides: &Sides, report: &mut DiffFilesReport) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    let mut paired = Vec::new();
    let opened =
        |version: &OpenedVersion, number, side: &str, report: &mut DiffFilesReport| match root_of(
            version, number,
        ) {
            Ok(place) => Ok(Some(place)),
            Err(error) if ends_all(&error) => Err(error),
            Err(error) => {
                let why = explained(&error);
                report
                    .damage
                    .push(format!("volume {number} of {side} is not compared: {why}"));
                Ok(None)
            }
        };
    let (older, newer) = (report.older.clone(), report.newer.clone());
    for (number, _) in sides.b.inside.readable() {
        let identity = VolumeIdentity::of(&sides.b.inside, number);
        let other = identity.and_then(|identity| identity.find_in(&sides.a.inside));
        let other = other.filter(|other| !paired.contains(other));
        if let Some(other) = other
            && sides.is_untouched((other, number))
        {
            paired.push(other);
            report.volumes_unchanged = report.volumes_unchanged.saturating_add(1);
            continue;
        }
        let b = opened(&sides.b, number, &newer, report)?;
        let Some(other) = other else {
            let lone = (&sides.b.inside, number, newer.as_str());
            if may_be_closed(lone, &sides.a.inside, &mut report.damage) {
                continue;
            }
            let what = format!("volume {number} is only in {newer}: all its files count as added");
            report.notes.push(what);
            pairs.push((None, b));
            continue;
        };
        paired.push(other);
        let a = opened(&sides.a, other, &older, report)?;
        if let (Some(a), Some(b)) = (a, b) {
            pairs.push((Some(a), Some(b)));
        }
    }
    for (number, _) in sides.a.inside.readable() {
        let lone = (&sides.a.inside, number, older.as_str());
        if !paired.contains(&number) && !may_be_closed(lone, &sides.b.inside, &mut report.damage) {
            let what =
                format!("volume {number} is only in {older}: all its files count as removed");
            report.notes.push(what);
            pairs.push((opened(&sides.a, number, &older, report)?, None));
        }
    }
    tell_closed(sides, report);
    Ok(pairs)
}

/// Tells which volumes cannot be read; those that are the same byte for byte have the same files whatever they are.
fn tell_closed(sides: &Sides, report: &mut DiffFilesReport) {
    let mut unchanged = Vec::new();
    for (number, _) in sides.b.inside.volumes() {
        if let Some(why) = why_closed(&sides.b.inside, number) {
            let identity = VolumeIdentity::of(&sides.b.inside, number);
            let other = identity.and_then(|it| it.find_closed_in(&sides.a.inside));
            if let Some(other) = other.filter(|other| sides.is_untouched((*other, number))) {
                unchanged.push(other);
                report.volumes_unchanged = report.volumes_unchanged.saturating_add(1);
            } else {
                let newer = &report.newer;
                let what = format!("volume {number} of {newer} is not compared: {why}");
                report.damage.push(what);
            }
        }
    }
    for (number, _) in sides.a.inside.volumes() {
        if let Some(why) = why_closed(&sides.a.inside, number)
            && !unchanged.contains(&number)
        {
            let older = &report.older;
            let what = format!("volume {number} of {older} is not compared: {why}");
            report.damage.push(what);
        }
    }
}

/// A volume of one side without its like on the other: whether it may be one there that cannot be read, which is told.
fn may_be_closed(
    (inside, number, side): (&InsideDisks, VolumeNumber, &str),
    other: &InsideDisks,
    damage: &mut Vec<String>,
) -> bool {
    let identity = VolumeIdentity::of(inside, number);
    let Some(closed) = identity.and_then(|it| it.find_closed_in(other)) else {
        return false;
    };
    let what = format!(
        "volume {number} of {side} is not compared: volume {closed} of the other cannot be read, and may be the same"
    );
    damage.push(what);
    true
}

/// The same path on both sides.
fn pair_below(sides: &Sides, path: &str) -> Result<Pair> {
    let locate = |version: &OpenedVersion| match version.inside.locate(path, LastLink::Follow) {
        Ok(Some(place)) => Ok(Some(place)),
        Ok(None) => Err(Error::new(
            ErrorKind::Invalid,
            "this names the list of volumes: name a folder, or nothing to compare all",
        )),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    };
    let (a, b) = (locate(&sides.a)?, locate(&sides.b)?);
    if a.is_none() && b.is_none() {
        // Asked again for its words.
        sides.b.inside.locate(path, LastLink::Follow)?;
    }
    Ok((a, b))
}
