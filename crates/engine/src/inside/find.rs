//! Finds files by name in all versions of one name or of all, from the index of names ([`super::names`]).
//!
//! ```text
//!   pattern ─► versions ─► records (made where they are missing) ─► hits ─► path: versions 1–3, 5; newest 5
//!                                                                            └─ size and time, looked up once
//! ```
//!
//! The first search over a version reads its folders; a folder that did not change since a version that was searched is not
//! listed again, and a search over versions that were all searched before reads nothing of the disks but the sizes and times
//! of files that it shows for the first time.

use std::collections::{BTreeMap, HashSet};

use guestfs::encrypted::UnlockKey;
use guestfs::filesystem::Timestamp;
use guestfs::{FileId, FileName};
use repo::{PointId, ProtectedName, RecoveryPoint, Repository};

use super::VolumeNumber;
use super::chain::{ChainScope, LookCost, VersionChain, VersionStamp, ends_all, visible_points};
use super::identity::VolumesOfChain;
use super::names::{
    Built, FileKey, Keeping, KnownFile, NameKind, NameSearch, Segments, VersionRecord, Wanted,
    enumerate, index_version,
};
use super::place::{components, display_path};
use super::{Separators, names::IndexedVolume};
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

const DAMAGE_MAX: usize = 1000;

/// What names are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    /// As typed: a text that names contain; with `*` or `?`, what whole names fit; with a slash, what whole paths fit,
    /// name by name.
    pub text: String,
    /// Whether a text without `*` and `?` must be the whole name.
    pub is_whole: bool,
    /// Whether case is ignored everywhere; on file systems of Windows it always is.
    pub ignores_case: bool,
}

/// What is looked for, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FindRequest {
    /// Whose versions; all names when none is given.
    pub name: Option<ProtectedName>,
    /// Which of them.
    pub scope: ChainScope,
    /// Which names.
    pub pattern: NamePattern,
    /// Only what the newest version does not have.
    pub only_gone: bool,
    /// Most paths that are told.
    pub limit: usize,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundKind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link or junction.
    Link,
    /// A device, a pipe, a reparse point.
    Other,
    /// Its record is damaged.
    Unknown,
}

impl FoundKind {
    /// Its name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Link => "link",
            Self::Other => "other",
            Self::Unknown => "unknown",
        }
    }
}

/// Versions one after the other: both ends belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRange {
    /// The oldest.
    pub first: u64,
    /// The newest.
    pub last: u64,
}

/// A path that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFile {
    /// Whose versions.
    pub name: ProtectedName,
    /// The volume, as the newest version with it numbers it.
    pub volume: VolumeNumber,
    /// Whether that version has only one volume with files, so that the number need not be typed.
    pub is_only_volume: bool,
    /// The path there.
    pub path: Vec<FileName>,
    /// What it is in the newest version with it.
    pub kind: FoundKind,
    /// The versions that have it.
    pub versions: Vec<VersionRange>,
    /// The newest of them.
    pub newest: VersionStamp,
    /// Whether the newest version of all has it.
    pub is_in_newest: bool,
    /// Bytes, in the newest version with it.
    pub size_bytes: Option<u64>,
    /// The last change of its bytes, there.
    pub modified: Option<Timestamp>,
}

impl FoundFile {
    /// Its path as text.
    pub fn display_path(&self) -> String {
        display_path(&self.path)
    }
}

/// What a search found and cost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FindReport {
    /// The paths, by name, volume and path.
    pub files: Vec<FoundFile>,
    /// Whether there were more than the limit.
    pub is_cut: bool,
    /// Versions that were searched.
    pub versions: u64,
    /// Those among them whose folders were walked for this search.
    pub versions_walked: u64,
    /// Folders that were listed for it.
    pub folders_listed: u64,
    /// Folders of walked versions that were known from other versions.
    pub folders_known: u64,
    /// Whether the next search finds what this one indexed.
    pub is_index_kept: bool,
    /// What could not be searched, and why; at most 1,000 lines.
    pub damage: Vec<String>,
    /// What looking cost.
    pub cost: LookCost,
}

/// Searches.
///
/// # Errors
/// [`ErrorKind::NotFound`] when the name has no version, [`ErrorKind::Invalid`] for an empty pattern, [`ErrorKind::Io`],
/// [`ErrorKind::Cancelled`]; damage is told in the report.
pub fn find(
    repository: &Repository,
    request: &FindRequest,
    keys: &[UnlockKey],
    context: JobContext<'_>,
) -> Result<FindReport> {
    let (volume, wanted) = understood(&request.pattern)?;
    let points = visible_points(repository, context)?;
    let alive: HashSet<PointId> = points.iter().map(|point| point.point).collect();
    let mut names: Vec<ProtectedName> = points.iter().map(|point| point.name.clone()).collect();
    names.dedup();
    if let Some(name) = &request.name {
        names.retain(|other| other == name);
        if names.is_empty() {
            let what = format!("{name} has no version to look into");
            return Err(Error::new(ErrorKind::NotFound, what));
        }
    }
    // Names on volumes that only a key opens are not left where the key is not needed.
    let keeping = if keys.is_empty() {
        Keeping::BetweenRuns
    } else {
        Keeping::ThisRun
    };
    let mut report = FindReport {
        is_index_kept: true,
        ..FindReport::default()
    };
    for name in names {
        let of_name = points.iter().filter(|point| point.name == name);
        let scoped = of_name.filter(|point| request.scope.includes(point.sequence));
        let scoped: Vec<RecoveryPoint> = scoped.cloned().collect();
        let mut search = OneName {
            chain: VersionChain::of(repository, scoped, &name, keys, context)?,
            index: Segments::open(repository, &name, &alive, keeping)?,
            request,
            volume: volume.as_deref(),
            context,
            volumes: VolumesOfChain::default(),
            hits: BTreeMap::new(),
            report: &mut report,
        };
        let outcome = search.run(&name, &wanted);
        search.chain.finish(context);
        outcome?;
        if report.is_cut {
            break;
        }
    }
    Ok(report)
}

/// The volume that a pattern names, if any, and what it means.
fn understood(pattern: &NamePattern) -> Result<(Option<String>, Wanted)> {
    let text = pattern.text.as_str();
    let (volume, path) = super::place::split_volume(text);
    if volume.is_some() || text.contains('/') {
        let names = components(path, Separators::Unix)?;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        if names.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "an empty pattern"));
        }
        return Ok((volume.map(str::to_owned), Wanted::Path(names)));
    }
    if text.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, "an empty pattern"));
    }
    let is_fitted = pattern.is_whole || text.contains(['*', '?']);
    Ok((
        None,
        if is_fitted {
            Wanted::Fitting(text.to_owned())
        } else {
            Wanted::Containing(text.to_owned())
        },
    ))
}

/// A path among the versions of one name.
struct Hit {
    /// Places in the chain: first and last of each run.
    runs: Vec<(usize, usize)>,
    volume: VolumeNumber,
    is_only_volume: bool,
    file: FileId,
    kind: FoundKind,
}

/// The search through the versions of one name.
struct OneName<'a> {
    chain: VersionChain<'a>,
    index: Segments,
    request: &'a FindRequest,
    volume: Option<&'a str>,
    context: JobContext<'a>,
    volumes: VolumesOfChain,
    /// By volume of the chain and path.
    hits: BTreeMap<(usize, Vec<FileName>), Hit>,
    report: &'a mut FindReport,
}

impl OneName<'_> {
    fn run(&mut self, name: &ProtectedName, wanted: &Wanted) -> Result<()> {
        self.report.is_index_kept &= self.index.is_kept();
        let mut search = NameSearch::new(wanted, self.request.pattern.ignores_case);
        let points = std::mem::take(&mut self.chain.points);
        let outcome = self.search_all(name, &points, &mut search);
        self.chain.points = points;
        let told = outcome.and_then(|()| self.tell(name));
        self.context.progress.end();
        self.report.cost.blocks_fetched = self
            .report
            .cost
            .blocks_fetched
            .saturating_add(self.chain.blocks_fetched());
        told?;
        if let Err(error) = self.index.flush() {
            let why = explained(&error);
            let text = format!("the index of names could not be kept: {why}");
            self.context.progress.warn(&text);
            self.report.is_index_kept = false;
        }
        Ok(())
    }

    fn search_all(
        &mut self,
        name: &ProtectedName,
        points: &[RecoveryPoint],
        search: &mut NameSearch,
    ) -> Result<()> {
        for (at, point) in points.iter().enumerate() {
            self.context.cancel.check()?;
            let version = format!("{name}@{}", point.sequence);
            if !self.index.records.contains_key(&point.point) {
                let step = format!("names of {version}");
                self.context.progress.begin(&step, None);
            }
            self.report.versions = self.report.versions.saturating_add(1);
            let beside = (
                at.checked_sub(1).and_then(|at| points.get(at)),
                points.get(at + 1),
            );
            let beside: Vec<&RecoveryPoint> = [beside.0, beside.1].into_iter().flatten().collect();
            let (record, built) = match self.searched((at, point), &beside, search) {
                Ok(made) => made,
                Err(error) if ends_all(&error) => return Err(error),
                Err(error) => {
                    self.damage(format!("{version}: {}", explained(&error)));
                    continue;
                }
            };
            let cost = &mut self.report.cost;
            let count = if built.was_walked {
                self.report.versions_walked = self.report.versions_walked.saturating_add(1);
                &mut cost.versions_read
            } else {
                &mut cost.versions_unchanged
            };
            *count = count.saturating_add(1);
            self.report.folders_listed = self.report.folders_listed.saturating_add(built.listed);
            self.report.folders_known = self.report.folders_known.saturating_add(built.known);
            for line in built.damage {
                self.damage(format!("{version}: {line}"));
            }
            for (number, why) in &record.skipped {
                self.damage(format!("{version}: volume {number}: {why}"));
            }
        }
        Ok(())
    }

    /// Indexes and searches one version; once more for whatever of the index turns out to be damaged meanwhile.
    fn searched(
        &mut self,
        (at, point): (usize, &RecoveryPoint),
        beside: &[&RecoveryPoint],
        search: &mut NameSearch,
    ) -> Result<(VersionRecord, Built)> {
        // Each fault drops a segment, or records that need one that is gone.
        let most = self.index.count().saturating_add(2);
        let mut tries = 0;
        loop {
            tries += 1;
            let faults = self.index.faults();
            let made = index_version(&self.chain, point, beside, &mut self.index, self.context)
                .and_then(|made| {
                    self.search_one(at, &made.0, search)?;
                    Ok(made)
                });
            match made {
                Err(_) if self.index.faults() != faults && tries < most => {}
                made => return made,
            }
        }
    }

    fn damage(&mut self, what: String) {
        if self.report.damage.len() < DAMAGE_MAX {
            self.report.damage.push(what);
        }
    }

    fn is_meant(&self, volume: &IndexedVolume) -> bool {
        self.volume.is_none_or(|wish| {
            let label = volume.label.as_deref();
            wish.parse() == Ok(volume.number)
                || volume.identity.name() == wish
                || label.is_some_and(|label| label.eq_ignore_ascii_case(wish))
        })
    }

    fn search_one(
        &mut self,
        at: usize,
        record: &VersionRecord,
        search: &mut NameSearch,
    ) -> Result<()> {
        let identities: Vec<_> = record.volumes.iter().map(|it| &it.identity).collect();
        let numbers = self.volumes.numbers_of(&identities);
        for (volume, number) in record.volumes.iter().zip(numbers) {
            if !self.is_meant(volume) {
                continue;
            }
            let (hits, is_cut) = (&mut self.hits, &mut self.report.is_cut);
            let limit = self.request.limit;
            let room = limit.saturating_sub(self.report.files.len());
            let is_only_volume = record.volumes.len() == 1 && record.skipped.is_empty();
            enumerate(
                search,
                &mut self.index,
                volume,
                self.context.cancel,
                &mut |found| {
                    let key = (number, found.path.to_vec());
                    // What is gone from the newest version is only known at the end.
                    let is_full = hits.len() >= room.max(1).saturating_mul(4).max(100_000);
                    if is_full && !hits.contains_key(&key) {
                        *is_cut = true;
                        return Ok(());
                    }
                    let hit = hits.entry(key).or_insert_with(|| Hit {
                        runs: Vec::new(),
                        volume: volume.number(),
                        is_only_volume,
                        file: found.file,
                        kind: kind_of(found.kind),
                    });
                    hit.volume = volume.number();
                    hit.is_only_volume = is_only_volume;
                    hit.file = found.file;
                    hit.kind = kind_of(found.kind);
                    match hit.runs.last_mut() {
                        Some((_, last)) if *last == at => {}
                        Some((_, last)) if last.saturating_add(1) == at => *last = at,
                        _ => hit.runs.push((at, at)),
                    }
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    /// Tells what was found, with size and time of each.
    fn tell(&mut self, name: &ProtectedName) -> Result<()> {
        let newest = self.chain.points.len().saturating_sub(1);
        let hits = std::mem::take(&mut self.hits);
        // By the version that is looked into for size and time: each is opened once.
        let mut by_version: BTreeMap<usize, Vec<(FoundFile, FileId)>> = BTreeMap::new();
        for ((_, path), hit) in hits {
            let Some((_, last)) = hit.runs.last().copied() else {
                continue;
            };
            if last == newest && self.request.only_gone {
                continue;
            }
            let sequence = |at: usize| self.chain.points.get(at).map_or(0, |point| point.sequence);
            let Some(point) = self.chain.points.get(last) else {
                continue;
            };
            let range = |(first, last): &(usize, usize)| VersionRange {
                first: sequence(*first),
                last: sequence(*last),
            };
            let found = FoundFile {
                name: name.clone(),
                volume: hit.volume,
                is_only_volume: hit.is_only_volume,
                path,
                kind: hit.kind,
                versions: hit.runs.iter().map(range).collect(),
                newest: VersionStamp::of(point),
                is_in_newest: last == newest,
                size_bytes: None,
                modified: None,
            };
            let told = by_version.values().map(Vec::len).sum::<usize>();
            if self.report.files.len().saturating_add(told) >= self.request.limit {
                self.report.is_cut = true;
                break;
            }
            by_version.entry(last).or_default().push((found, hit.file));
        }
        let mut files = Vec::new();
        for (at, found) in by_version {
            self.look_up(at, found, &mut files)?;
        }
        files.sort_by(|a, b| (a.volume, &a.path).cmp(&(b.volume, &b.path)));
        self.report.files.append(&mut files);
        Ok(())
    }

    fn look_up(
        &mut self,
        at: usize,
        found: Vec<(FoundFile, FileId)>,
        into: &mut Vec<FoundFile>,
    ) -> Result<()> {
        let Some(point) = self.chain.points.get(at) else {
            return Ok(());
        };
        let mut opened = None;
        for (mut file, id) in found {
            self.context.cancel.check()?;
            let key = FileKey {
                point: point.point,
                volume: file.volume.0,
                tree: id.tree,
                number: id.number,
            };
            if !self.index.files.contains_key(&key) {
                if opened.is_none() {
                    opened = Some(self.chain.look_into(point)?);
                }
                let metadata = opened.as_ref().map(|version| {
                    let fs = version.inside.file_system(file.volume)?;
                    Ok(fs.metadata(id)?)
                });
                match metadata {
                    Some(Ok(metadata)) => {
                        let modified = metadata.times.modified;
                        let known = KnownFile {
                            size_bytes: metadata.size_bytes,
                            modified: modified.map(|time| (time.seconds, time.nanoseconds)),
                        };
                        self.index.note_file(key, known);
                    }
                    Some(Err(error)) if ends_all(&error) => return Err(error),
                    // The name is there all the same.
                    _ => {}
                }
            }
            if let Some(known) = self.index.files.get(&key) {
                file.size_bytes = Some(known.size_bytes);
                file.modified = known.modified.map(|(seconds, nanoseconds)| Timestamp {
                    seconds,
                    nanoseconds,
                });
            }
            into.push(file);
        }
        Ok(())
    }
}

fn kind_of(kind: NameKind) -> FoundKind {
    match kind {
        NameKind::File => FoundKind::File,
        NameKind::Folder => FoundKind::Folder,
        NameKind::Link => FoundKind::Link,
        NameKind::Other => FoundKind::Other,
        NameKind::Unknown => FoundKind::Unknown,
    }
}
