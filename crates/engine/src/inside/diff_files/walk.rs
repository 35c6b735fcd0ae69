//! The walk over both sides of one volume.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use guestfs::filesystem::{DirectoryCursor, DirectoryEntry, FileKind, Metadata};
use guestfs::{FileId, FileName};

use super::moves::{Held, Lone, tells_moves};
use super::{ChangedFile, DiffFilesReport, Doubt, FileChange, Sides};
use crate::inside::Place;
use crate::inside::chain::ends_all;
use crate::inside::contents::content_places;
use crate::inside::list::is_local;
use crate::inside::place::display_path;
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

const DAMAGE_MAX: usize = 1000;
const DEPTH_MAX: usize = 10_000;
/// Names of one folder that are compared.
const NAMES_MAX: usize = 4 << 20;
const READ_BYTES: usize = 1 << 20;

/// One comparison of two trees of files.
pub(super) struct Comparison<'a> {
    sides: &'a Sides,
    doubt: Doubt,
    context: JobContext<'a>,
    visit: &'a mut dyn FnMut(ChangedFile) -> Result<()>,
    report: &'a mut DiffFilesReport,
    held: Held,
    holds: bool,
}

/// A folder on one side or both.
struct Folders {
    a: Option<FileId>,
    b: Option<FileId>,
    path: Vec<FileName>,
}

struct Names {
    names: Vec<(FileName, FileId)>,
    is_whole: bool,
}

/// Where the walk is on either side.
struct Roots {
    a: Option<Place>,
    b: Option<Place>,
    seen: HashSet<(bool, FileId)>,
    left: Vec<Folders>,
}

fn at(root: &Place, file: FileId, path: &[FileName]) -> Place {
    Place {
        volume: root.volume,
        file_system: Arc::clone(&root.file_system),
        file,
        path: path.to_vec(),
    }
}

impl<'a> Comparison<'a> {
    pub(super) fn new(
        sides: &'a Sides,
        doubt: Doubt,
        context: JobContext<'a>,
        visit: &'a mut dyn FnMut(ChangedFile) -> Result<()>,
        report: &'a mut DiffFilesReport,
    ) -> Self {
        Self {
            sides,
            doubt,
            context,
            visit,
            report,
            held: Held::default(),
            holds: false,
        }
    }

    /// Compares what lies at two places, and everything below.
    pub(super) fn volume(mut self, a: Option<Place>, b: Option<Place>) -> Result<()> {
        let kinds = (a.as_ref(), b.as_ref());
        self.holds = matches!(kinds, (Some(a), Some(b))
            if tells_moves(a.file_system.facts().kind)
                && a.file_system.facts().id == b.file_system.facts().id);
        let mut roots = Roots {
            a,
            b,
            seen: HashSet::new(),
            left: Vec::new(),
        };
        let ids = |place: &Option<Place>| place.as_ref().map(|place| place.file);
        let (a, b) = (ids(&roots.a), ids(&roots.b));
        let path = roots
            .b
            .as_ref()
            .or(roots.a.as_ref())
            .map(|place| place.path.clone())
            .unwrap_or_default();
        self.one(&mut roots, a, b, &path)?;
        while let Some(folders) = roots.left.pop() {
            self.context.cancel.check()?;
            self.folder(&mut roots, &folders)?;
        }
        self.settle(&roots)
    }

    fn damage(&mut self, what: String) {
        if self.report.damage.len() < DAMAGE_MAX {
            self.report.damage.push(what);
        }
    }

    /// Metadata of a file; damage is told.
    fn metadata(
        &mut self,
        root: &Place,
        file: FileId,
        path: &[FileName],
    ) -> Result<Option<Metadata>> {
        match root.file_system.metadata(file) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if is_local(error.kind()) => {
                let why = explained(&error.into());
                self.damage(format!("{}: {why}", display_path(path)));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn names(
        &mut self,
        root: Option<&Place>,
        file: Option<FileId>,
        path: &[FileName],
    ) -> Result<Names> {
        let mut names = Vec::new();
        let (Some(root), Some(file)) = (root, file) else {
            let is_whole = true;
            return Ok(Names { names, is_whole });
        };
        let mut visit = |entry: DirectoryEntry| {
            names.push((entry.name, entry.file));
            if names.len() > NAMES_MAX {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let listed = root
            .file_system
            .list(file, DirectoryCursor::default(), &mut visit);
        let mut is_whole = names.len() <= NAMES_MAX;
        match listed {
            Ok(()) if is_whole => {}
            Ok(()) => self.damage(format!("{}: too many names", display_path(path))),
            Err(error) if is_local(error.kind()) => {
                is_whole = false;
                let why = explained(&error.into());
                self.damage(format!("{}: {why}", display_path(path)));
            }
            Err(error) => return Err(error.into()),
        }
        names.sort_unstable();
        names.dedup_by(|a, b| a.0 == b.0);
        Ok(Names { names, is_whole })
    }

    /// Merges both sides of a folder, name by name.
    fn folder(&mut self, roots: &mut Roots, folders: &Folders) -> Result<()> {
        let a = self.names(roots.a.as_ref(), folders.a, &folders.path)?;
        let b = self.names(roots.b.as_ref(), folders.b, &folders.path)?;
        let both_whole = a.is_whole && b.is_whole;
        let before = roots.left.len();
        let (mut left, mut right) = (
            a.names.into_iter().peekable(),
            b.names.into_iter().peekable(),
        );
        loop {
            self.context.cancel.check()?;
            let order = match (left.peek(), right.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => a.0.cmp(&b.0),
            };
            let a = if order.is_le() { left.next() } else { None };
            let b = if order.is_ge() { right.next() } else { None };
            // A name that is missing on a side that could not be listed wholly may be there all the same.
            if order.is_ne() && !both_whole {
                continue;
            }
            let name = b.as_ref().or(a.as_ref()).map(|(name, _)| name.clone());
            let mut path = folders.path.clone();
            path.extend(name);
            self.one(roots, a.map(|(_, id)| id), b.map(|(_, id)| id), &path)?;
        }
        if let Some(added) = roots.left.get_mut(before..) {
            added.reverse();
        }
        Ok(())
    }

    /// Compares one name; folders are noted to be entered.
    fn one(
        &mut self,
        roots: &mut Roots,
        a: Option<FileId>,
        b: Option<FileId>,
        path: &[FileName],
    ) -> Result<()> {
        let side = |root: &Option<Place>, file: Option<FileId>| {
            root.as_ref()
                .zip(file)
                .map(|(root, file)| at(root, file, path))
        };
        let (a, b) = (side(&roots.a, a), side(&roots.b, b));
        let known = |it: &mut Self, place: &Option<Place>| match place {
            Some(place) => it.metadata(place, place.file, path),
            None => Ok(None),
        };
        let (in_a, in_b) = (known(self, &a)?, known(self, &b)?);
        match (a, b, in_a, in_b) {
            (Some(a), Some(b), Some(old), Some(new)) => {
                let kind = std::mem::discriminant(&old.kind);
                if kind == std::mem::discriminant(&new.kind) {
                    self.enter(roots, (Some(&a), &old), (Some(&b), &new), path);
                    return self.both((&a, &old), (&b, &new), FileChange::Changed, None);
                }
                self.enter(roots, (Some(&a), &old), (None, &new), path);
                self.enter(roots, (None, &old), (Some(&b), &new), path);
                self.alone(FileChange::Removed, &a, old)?;
                self.alone(FileChange::Added, &b, new)
            }
            (Some(a), None, Some(old), None) => {
                self.enter(roots, (Some(&a), &old), (None, &old), path);
                self.alone(FileChange::Removed, &a, old)
            }
            (None, Some(b), None, Some(new)) => {
                self.enter(roots, (None, &new), (Some(&b), &new), path);
                self.alone(FileChange::Added, &b, new)
            }
            // What is damaged was told.
            _ => Ok(()),
        }
    }

    fn enter(
        &mut self,
        roots: &mut Roots,
        (a, old): (Option<&Place>, &Metadata),
        (b, new): (Option<&Place>, &Metadata),
        path: &[FileName],
    ) {
        let mut folder = |place: Option<&Place>, metadata: &Metadata, is_newer: bool| {
            let place = place.filter(|_| metadata.kind == FileKind::Directory)?;
            Some((place.file, roots.seen.insert((is_newer, place.file))))
        };
        let (a, b) = (folder(a, old, false), folder(b, new, true));
        if a.is_none() && b.is_none() {
            return;
        }
        let is_again = [a, b].iter().flatten().any(|(_, is_new)| !is_new);
        if is_again || path.len() > DEPTH_MAX {
            self.damage(format!("{}: met before, or too deep", display_path(path)));
            return;
        }
        roots.left.push(Folders {
            a: a.map(|(file, _)| file),
            b: b.map(|(file, _)| file),
            path: path.to_vec(),
        });
    }

    /// A file on one side only.
    fn alone(&mut self, change: FileChange, place: &Place, metadata: Metadata) -> Result<()> {
        let lone = Lone {
            file: place.file,
            path: place.path.clone(),
            metadata,
        };
        let lone = match change {
            _ if !self.holds => Some(lone),
            FileChange::Removed => self.held.hold_removed(lone),
            _ => self.held.hold_added(lone),
        };
        match lone {
            Some(lone) => self.tell_lone(change, place, &lone),
            None => Ok(()),
        }
    }

    fn tell_lone(&mut self, change: FileChange, root: &Place, lone: &Lone) -> Result<()> {
        let size = Some(lone.metadata.size_bytes);
        let is_added = change == FileChange::Added;
        let count = if is_added {
            &mut self.report.added
        } else {
            &mut self.report.removed
        };
        *count = count.saturating_add(1);
        (self.visit)(ChangedFile {
            change,
            volume: root.volume,
            path: lone.path.clone(),
            from: None,
            kind: lone.metadata.kind,
            size_before: size.filter(|_| !is_added),
            size_now: size.filter(|_| is_added),
            modified: lone.metadata.times.modified,
        })
    }

    fn settle(&mut self, roots: &Roots) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        if held.is_full() {
            let what =
                "too many files are on one side only: not all that were moved are told as moved";
            self.report.notes.push(what.to_owned());
        }
        let (moved, removed, added) = held.settle();
        for (old, new) in moved {
            let (Some(a), Some(b)) = (&roots.a, &roots.b) else {
                continue;
            };
            let (from, to) = (at(a, old.file, &old.path), at(b, new.file, &new.path));
            let (old_side, new_side) = ((&from, &old.metadata), (&to, &new.metadata));
            self.both(
                old_side,
                new_side,
                FileChange::MovedAndChanged,
                Some(&old.path),
            )?;
        }
        for (change, files, root) in [
            (FileChange::Removed, removed, &roots.a),
            (FileChange::Added, added, &roots.b),
        ] {
            for lone in files {
                if let Some(root) = root {
                    self.tell_lone(change, root, &lone)?;
                }
            }
        }
        Ok(())
    }

    /// A file on both sides, under one path or moved.
    fn both(
        &mut self,
        (a, old): (&Place, &Metadata),
        (b, new): (&Place, &Metadata),
        if_changed: FileChange,
        from: Option<&[FileName]>,
    ) -> Result<()> {
        let has_equal_contents = match self.has_equal_contents((a, old), (b, new)) {
            Ok(answer) => answer,
            Err(error) if ends_all(&error) => return Err(error),
            Err(error) => {
                let why = explained(&error);
                self.damage(format!("{}: {why}", b.display_path()));
                return Ok(());
            }
        };
        let change = match (has_equal_contents, from) {
            (false, _) => if_changed,
            (true, Some(_)) => FileChange::Moved,
            (true, None) if !has_equal_metadata(old, new) => FileChange::MetadataChanged,
            (true, None) => return Ok(()),
        };
        let report = &mut *self.report;
        let counts = match change {
            FileChange::MetadataChanged => [Some(&mut report.metadata_changed), None],
            FileChange::Moved => [Some(&mut report.moved), None],
            FileChange::MovedAndChanged => [Some(&mut report.moved), Some(&mut report.changed)],
            _ => [Some(&mut report.changed), None],
        };
        for count in counts.into_iter().flatten() {
            *count = count.saturating_add(1);
        }
        (self.visit)(ChangedFile {
            change,
            volume: b.volume,
            path: b.path.clone(),
            from: from.map(<[FileName]>::to_vec),
            kind: new.kind,
            size_before: Some(old.size_bytes),
            size_now: Some(new.size_bytes),
            modified: new.times.modified,
        })
    }

    fn has_equal_contents(
        &mut self,
        (a, old): (&Place, &Metadata),
        (b, new): (&Place, &Metadata),
    ) -> Result<bool> {
        match (old.kind, new.kind) {
            (FileKind::Directory, FileKind::Directory) => return Ok(true),
            (FileKind::SymbolicLink, FileKind::SymbolicLink) => {
                let targets = (
                    a.file_system.read_link(a.file)?,
                    b.file_system.read_link(b.file)?,
                );
                return Ok(targets.0 == targets.1);
            }
            (FileKind::Regular, FileKind::Regular) if old.size_bytes == new.size_bytes => {}
            (FileKind::Regular, FileKind::Regular) => return Ok(false),
            (one, other) => return Ok(one == other),
        }
        if old.size_bytes == 0 {
            return Ok(true);
        }
        let sides = self.sides;
        let places = (
            content_places(&sides.a, a, old)?,
            content_places(&sides.b, b, new)?,
        );
        let has_places = places.0.is_some() && places.1.is_some();
        if let (Some(one), Some(other)) = &places {
            let changed = sides.changed_of((a.volume, b.volume));
            let is_equal = match changed {
                Some((changed, _)) if one == other => {
                    !other.ranges.iter().any(|range| changed.touches(*range))
                }
                _ => {
                    let one = one.signature(&sides.a)?;
                    one.is_some() && one == other.signature(&sides.b)?
                }
            };
            if is_equal {
                self.report.equal_by_blocks = self.report.equal_by_blocks.saturating_add(1);
                return Ok(true);
            }
        }
        let is_same_file = a.file == b.file
            && old.times.modified.is_some()
            && old.times.modified == new.times.modified
            && old.times.changed == new.times.changed;
        if self.doubt == Doubt::BelieveTimes && !has_places && is_same_file {
            self.report.believed = self.report.believed.saturating_add(1);
            return Ok(true);
        }
        if old.obstacle.is_some() || new.obstacle.is_some() {
            let why = new.obstacle.as_ref().or(old.obstacle.as_ref());
            let what = format!(
                "its contents cannot be read: {}",
                why.map_or("", String::as_str)
            );
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        self.report.compared_by_reading = self.report.compared_by_reading.saturating_add(1);
        reads_equal(a, b, self.context)
    }
}

/// Whether everything besides names and contents is equal. Times of folders change with what is in them.
fn has_equal_metadata(old: &Metadata, new: &Metadata) -> bool {
    let lasting = |it: &Metadata| (it.owner, it.windows_attributes);
    if old.kind == FileKind::Directory {
        return lasting(old) == lasting(new);
    }
    let times = |it: &Metadata| (it.times.created, it.times.modified, it.times.changed);
    lasting(old) == lasting(new) && times(old) == times(new)
}

/// Reads two files of one length up to the first difference.
fn reads_equal(a: &Place, b: &Place, context: JobContext<'_>) -> Result<bool> {
    let (one, other) = (
        a.file_system.open(a.file, None)?,
        b.file_system.open(b.file, None)?,
    );
    let size = one.size_bytes();
    if size != other.size_bytes() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0_u8; READ_BYTES], vec![0_u8; READ_BYTES]);
    let mut at = 0_u64;
    while at < size {
        context.cancel.check()?;
        let rest = size.saturating_sub(at);
        let (x, y) = (one.extent_at(at, rest)?, other.extent_at(at, rest)?);
        let run = x.length_bytes.min(y.length_bytes).max(1);
        if x.kind.is_zero() && y.kind.is_zero() {
            at = at.saturating_add(run);
            continue;
        }
        let length = usize::try_from(rest).unwrap_or(usize::MAX).min(READ_BYTES);
        let (x, y) = (left.get_mut(..length), right.get_mut(..length));
        let (x, y) = (x.unwrap_or_default(), y.unwrap_or_default());
        one.read_at(at, x)?;
        other.read_at(at, y)?;
        if x != y {
            return Ok(false);
        }
        at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
    }
    Ok(true)
}
