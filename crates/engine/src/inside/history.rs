//! One path through all versions of a name: where it is, since when, with which contents; and the newest version that has it.
//!
//! ```text
//!   version ─► did a block that the last look depended on change?  ─ no ─► the same answer, nothing read
//!                    └ yes ─► open, find the path ─► does the file lie in equal blocks? ─ yes ─► the same contents
//!                                                          └ no ─► its bytes are read and hashed
//! ```
//!
//! The path is the one that was typed; links on the way are followed, a link at its end is told as a link. Its volume is the
//! one that it means in the newest version that knows it, and is found again in the others by what it is
//! ([`super::identity`]). What cannot be read in one version is told there, and the others go on.

use std::sync::Arc;

use block::ChangedRanges;
use guestfs::FileName;
use guestfs::encrypted::UnlockKey;
use guestfs::filesystem::{FileKind, Metadata, Timestamp, UnixOwner};
use repo::{ProtectedName, RecoveryPoint, Repository};

use super::chain::{ChainScope, LookCost, OpenedVersion, VersionChain, VersionStamp};
use super::chain::{ends_all, is_absence};
use super::contents::{ContentHash, ContentSignature, content_places, hash_contents};
use super::identity::VolumeIdentity;
use super::place::{components, walk};
use super::{LastLink, Place, Separators, VolumeNumber};
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

/// A file as one version has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenFile {
    /// What it is.
    pub kind: FileKind,
    /// Bytes of its contents.
    pub size_bytes: u64,
    /// The last change of its bytes, as its file system says.
    pub modified: Option<Timestamp>,
    /// Owner and mode on Unix file systems.
    pub owner: Option<UnixOwner>,
    /// Attributes on those of Windows.
    pub windows_attributes: Option<u32>,
    /// BLAKE3 of its bytes; none of what has no bytes.
    pub content: Option<ContentHash>,
    /// Where it leads, if it is a link.
    pub link_target: Option<FileName>,
    /// Why its bytes could not be read.
    pub unread: Option<String>,
}

impl SeenFile {
    fn has_equal_contents(&self, other: &Self) -> bool {
        (self.kind, self.size_bytes, self.content) == (other.kind, other.size_bytes, other.content)
            && self.link_target == other.link_target
            && self.unread == other.unread
    }
}

/// What became of a path in a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathState {
    /// It is not there.
    Absent,
    /// It is there.
    Present(SeenFile),
    /// That cannot be told; why.
    Unreadable(String),
}

/// What happened at the first version of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEvent {
    /// The oldest version has it.
    ThereFromTheStart,
    /// It came.
    Appeared,
    /// It came back after it was gone.
    Reappeared,
    /// Its contents are others.
    Changed,
    /// Its contents are the same; times, owner, mode or attributes are others.
    MetadataChanged,
    /// It went.
    Deleted,
    /// The oldest version does not have it.
    NotThereYet,
    /// It cannot be told.
    Unreadable,
}

impl PathEvent {
    /// Its name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::ThereFromTheStart => "there-from-the-start",
            Self::Appeared => "appeared",
            Self::Reappeared => "reappeared",
            Self::Changed => "changed",
            Self::MetadataChanged => "metadata-changed",
            Self::Deleted => "deleted",
            Self::NotThereYet => "not-there-yet",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Versions one after the other in which a path is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRun {
    /// The oldest of them.
    pub first: VersionStamp,
    /// The newest of them.
    pub last: VersionStamp,
    /// How many.
    pub versions: u64,
    /// What happened at the first.
    pub event: PathEvent,
    /// What it is in all of them.
    pub state: PathState,
}

/// A path through all versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryReport {
    /// Whose versions.
    pub name: ProtectedName,
    /// The path on its volume.
    pub path: String,
    /// The number of the volume in the newest version that has the volume.
    pub volume: VolumeNumber,
    /// Runs of equal versions, oldest first.
    pub runs: Vec<HistoryRun>,
    /// The newest version that has it, and how that numbers the volume.
    pub newest_with: Option<(VersionStamp, VolumeNumber)>,
    /// What looking cost.
    pub cost: LookCost,
}

/// What one look answered, and what it depended on.
struct Look<'p> {
    point: &'p RecoveryPoint,
    state: PathState,
    volume: Option<VolumeNumber>,
    signature: Option<ContentSignature>,
    looked_at: Vec<ChangedRanges>,
}

/// Tells a path through the versions of a name that `scope` includes.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no version, or no version has the volume that is typed; [`ErrorKind::Invalid`]
/// when a volume has to be typed; [`ErrorKind::Io`] and [`ErrorKind::Cancelled`].
pub fn history(
    repository: &Repository,
    (name, scope): (&ProtectedName, ChainScope),
    typed: &str,
    keys: &[UnlockKey],
    context: JobContext<'_>,
) -> Result<HistoryReport> {
    let chain = VersionChain::open(repository, (name, scope), keys, context)?;
    context.progress.begin("looking into versions", None);
    let outcome = told(&chain, name, typed, context);
    context.progress.end();
    chain.finish(context);
    outcome
}

fn told(
    chain: &VersionChain<'_>,
    name: &ProtectedName,
    typed: &str,
    context: JobContext<'_>,
) -> Result<HistoryReport> {
    let (meant, volume, path) = meant_volume(chain, typed, context)?;
    let mut cost = LookCost::default();
    let mut before: Option<Look<'_>> = None;
    let mut runs: Vec<HistoryRun> = Vec::new();
    let mut newest_with = None;
    for point in &chain.points {
        context.cancel.check()?;
        let is_same = match &before {
            Some(look) if !matches!(look.state, PathState::Unreadable(_)) => {
                chain.is_same((look.point, point), &look.looked_at)?
            }
            _ => false,
        };
        if is_same {
            cost.versions_unchanged = cost.versions_unchanged.saturating_add(1);
        } else {
            let version = Look::at(chain, point, (&meant, path), before.as_ref(), context);
            let (look, was_read) = version?;
            cost.versions_read = cost.versions_read.saturating_add(1);
            cost.contents_read = cost.contents_read.saturating_add(u64::from(was_read));
            before = Some(look);
        }
        if let Some(look) = &before {
            if matches!(look.state, PathState::Present(_)) {
                newest_with = Some((VersionStamp::of(point), look.volume.unwrap_or(volume)));
            }
            add_to_runs(&mut runs, VersionStamp::of(point), &look.state);
        }
    }
    cost.blocks_fetched = chain.blocks_fetched();
    Ok(HistoryReport {
        name: name.clone(),
        path: path.to_owned(),
        volume,
        runs,
        newest_with,
        cost,
    })
}

/// Which volume a typed path means: as the newest version that knows it says.
fn meant_volume<'t>(
    chain: &VersionChain<'_>,
    typed: &'t str,
    context: JobContext<'_>,
) -> Result<(VolumeIdentity, VolumeNumber, &'t str)> {
    let mut first = None;
    for point in chain.points.iter().rev() {
        context.cancel.check()?;
        let meant = chain.look_into(point).and_then(|version| {
            let (Some(number), path) = version.inside.choose_volume(typed)? else {
                let what = "this names the list of volumes: name a file or a folder";
                return Err(Error::new(ErrorKind::Invalid, what));
            };
            let identity = VolumeIdentity::of(&version.inside, number);
            let gone = || Error::new(ErrorKind::NotFound, format!("there is no volume {number}"));
            Ok((identity.ok_or_else(gone)?, number, path))
        });
        match meant {
            Ok(meant) => return Ok(meant),
            Err(error) if ends_all(&error) => return Err(error),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| Error::new(ErrorKind::NotFound, "there is no version")))
}

/// Finds a path on a volume of an opened version.
fn locate_on(
    version: &OpenedVersion,
    meant: &VolumeIdentity,
    path: &str,
    last: LastLink,
) -> Result<Place> {
    let found = meant.find_in(&version.inside);
    // Where it is locked, or a part of it is missing, opening it tells that: the path may be there.
    let found = found.or_else(|| meant.find_closed_in(&version.inside));
    let number = found.ok_or_else(|| {
        let what = "this version has no such volume";
        Error::new(ErrorKind::NotFound, what)
    })?;
    let file_system = version.inside.file_system(number)?;
    let names = components(path, Separators::of(file_system.facts().kind))?;
    let root = Place {
        volume: number,
        file: file_system.root(),
        file_system: Arc::clone(&file_system),
        path: Vec::new(),
    };
    walk(&root, names, last)
}

impl<'p> Look<'p> {
    /// Looks at one version; also tells whether contents were read.
    fn at(
        chain: &VersionChain<'_>,
        point: &'p RecoveryPoint,
        (meant, path): (&VolumeIdentity, &str),
        before: Option<&Look<'_>>,
        context: JobContext<'_>,
    ) -> Result<(Self, bool)> {
        let unreadable = |error: &Error| Self {
            point,
            state: PathState::Unreadable(explained(error)),
            volume: None,
            signature: None,
            looked_at: Vec::new(),
        };
        let version = match chain.look_into(point) {
            Ok(version) => version,
            Err(error) if ends_all(&error) => return Err(error),
            Err(error) => return Ok((unreadable(&error), false)),
        };
        let mut was_read = false;
        let found = locate_on(&version, meant, path, LastLink::Keep)
            .and_then(|place| seen(&version, &place, before, &mut was_read, context));
        let (state, signature) = match found {
            Ok((file, signature)) => (PathState::Present(file), signature),
            Err(error) if is_absence(&error) => (PathState::Absent, None),
            Err(error) if ends_all(&error) => return Err(error),
            Err(error) => return Ok((unreadable(&error), was_read)),
        };
        let look = Self {
            point,
            state,
            volume: meant.find_in(&version.inside),
            signature,
            looked_at: version.looked_at()?,
        };
        Ok((look, was_read))
    }
}

fn described(metadata: &Metadata) -> SeenFile {
    SeenFile {
        kind: metadata.kind,
        size_bytes: metadata.size_bytes,
        modified: metadata.times.modified,
        owner: metadata.owner,
        windows_attributes: metadata.windows_attributes,
        content: None,
        link_target: None,
        unread: metadata.obstacle.clone(),
    }
}

/// What is known of a file; its bytes are read only when nothing else tells them.
fn seen(
    version: &OpenedVersion,
    place: &Place,
    before: Option<&Look<'_>>,
    was_read: &mut bool,
    context: JobContext<'_>,
) -> Result<(SeenFile, Option<ContentSignature>)> {
    let metadata = place.file_system.metadata(place.file)?;
    let mut file = described(&metadata);
    match metadata.kind {
        FileKind::SymbolicLink => {
            file.link_target = Some(place.file_system.read_link(place.file)?);
            return Ok((file, None));
        }
        FileKind::Regular if file.unread.is_none() => {}
        _ => return Ok((file, None)),
    }
    let places = content_places(version, place, &metadata)?;
    let signature = match &places {
        Some(places) => places.signature(version)?,
        None => None,
    };
    if let Some(look) = before
        && signature.is_some()
        && look.signature == signature
        && let PathState::Present(earlier) = &look.state
    {
        file.content = earlier.content;
        return Ok((file, signature));
    }
    *was_read = true;
    match hash_contents(place, context.cancel) {
        Ok(hash) => file.content = Some(hash),
        Err(error) if ends_all(&error) => return Err(error),
        Err(error) => {
            file.unread = Some(explained(&error));
            return Ok((file, None));
        }
    }
    Ok((file, signature))
}

fn add_to_runs(runs: &mut Vec<HistoryRun>, stamp: VersionStamp, state: &PathState) {
    let was_there = runs
        .iter()
        .any(|run| matches!(run.state, PathState::Present(_)));
    if let Some(last) = runs.last_mut()
        && last.state == *state
    {
        last.versions = last.versions.saturating_add(1);
        last.last = stamp;
        return;
    }
    let event = match (runs.last().map(|run| &run.state), state) {
        (_, PathState::Unreadable(_)) => PathEvent::Unreadable,
        (None, PathState::Present(_)) => PathEvent::ThereFromTheStart,
        (None, PathState::Absent) => PathEvent::NotThereYet,
        (Some(_), PathState::Absent) if was_there => PathEvent::Deleted,
        (Some(_), PathState::Absent) => PathEvent::NotThereYet,
        (Some(PathState::Present(a)), PathState::Present(b)) if a.has_equal_contents(b) => {
            PathEvent::MetadataChanged
        }
        (Some(PathState::Present(_)), PathState::Present(_)) => PathEvent::Changed,
        (Some(PathState::Absent), PathState::Present(_)) if !was_there => PathEvent::Appeared,
        (Some(PathState::Absent), PathState::Present(_)) => PathEvent::Reappeared,
        (Some(PathState::Unreadable(_)), PathState::Present(seen)) => {
            let earlier = runs.iter().rev().find_map(|run| match &run.state {
                PathState::Present(file) => Some(file),
                _ => None,
            });
            match earlier {
                Some(file) if file.has_equal_contents(seen) => PathEvent::MetadataChanged,
                Some(_) => PathEvent::Changed,
                None => PathEvent::Appeared,
            }
        }
    };
    runs.push(HistoryRun {
        first: stamp.clone(),
        last: stamp,
        versions: 1,
        event,
        state: state.clone(),
    });
}

/// The newest version, among those that `scope` includes, in which every one of these paths or patterns means something.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no version at all; [`ErrorKind::Io`] and [`ErrorKind::Cancelled`].
pub fn newest_with(
    repository: &Repository,
    (name, scope): (&ProtectedName, ChainScope),
    typed: &[String],
    keys: &[UnlockKey],
    context: JobContext<'_>,
) -> Result<Option<VersionStamp>> {
    let chain = VersionChain::open(repository, (name, scope), keys, context)?;
    context
        .progress
        .begin("looking for the newest version", None);
    let outcome = search(&chain, typed, context);
    context.progress.end();
    chain.finish(context);
    outcome
}

fn search(
    chain: &VersionChain<'_>,
    typed: &[String],
    context: JobContext<'_>,
) -> Result<Option<VersionStamp>> {
    let mut without: Option<(&RecoveryPoint, Vec<ChangedRanges>)> = None;
    for point in chain.points.iter().rev() {
        context.cancel.check()?;
        if let Some((from, looked_at)) = &without
            && chain.is_same((from, point), looked_at)?
        {
            continue;
        }
        let version = match chain.look_into(point) {
            Ok(version) => version,
            Err(error) if ends_all(&error) => return Err(error),
            // A version that cannot be looked into does not have it to give.
            Err(_) => continue,
        };
        match version.inside.select(typed) {
            Ok(_) => return Ok(Some(VersionStamp::of(point))),
            Err(error) if ends_all(&error) => return Err(error),
            Err(error) if is_absence(&error) => without = Some((point, version.looked_at()?)),
            Err(_) => without = None,
        }
    }
    Ok(None)
}
