//! Into a folder of the host.
//!
//! ```text
//!   walk ─► group of small files ─► task          (a worker writes them)
//!        ─► large file ─► its pieces ─► tasks     (workers write them) ─► step: metadata, name
//!        ─► one more name of a file ─► step       (after the file itself)
//!        ─► end of a folder ─► step               (its times, after everything in it)
//! ```
//!
//! **Invariants.** Everything is opened relative to the folder above it and no link is followed, so that nothing leaves
//! the target whatever the disk says. At most so many folders are open; one above is found again through `..` of one below,
//! and must be the same. Steps run in order, on the walk's own thread.

mod files;
mod unfinished;

use std::ffi::OsStr;
use std::fs::File;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use block::ReadAt;
use guestfs::filesystem::FileKind;
use guestfs::{FileName, FileSystem};

pub(super) use files::{Done, Named, link_target, stream_path};
use files::{Shared, Standing, Way, access};
use unfinished::Unfinished;

use super::content::{self, Run};
use super::folder::{Access, Age, Folder, host_error};
use super::links::{LinkTable, Name};
use super::manifest::ManifestWriter;
use super::metadata;
use super::note::Beside;
use super::queue::{Queue, Ready, with_queue};
use super::trail::{NameRule, Trail};
use super::walk::{Found, Role, Visitor, is_of_file, walk};
use super::{Existing, ExtractReport, ExtractRequest};
use crate::inside::{InsideDisks, Place, ReadAhead};
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

/// Files at least as large are read in pieces by several threads.
pub(super) const LARGE_BYTES: u64 = 8 << 20;
/// Bytes and files that one thread extracts at a time.
pub(super) const GROUP_BYTES: u64 = 2 << 20;
pub(super) const GROUP_FILES: usize = 64;
const OPEN_FOLDERS: usize = 100;

/// A folder that the walk is in.
struct Level {
    folder: Option<Arc<Folder>>,
    age: Age,
    identity: (u64, u64),
    /// What it gets in the end; nothing where the operator's own, or one on the way.
    named: Option<Named>,
}

/// A large file on its way.
struct Large {
    volume: usize,
    age: Age,
    folder: Arc<Folder>,
    named: Named,
    existing: Existing,
    beside: Beside,
    unnamed: String,
    target: Arc<File>,
    failed: Arc<Mutex<Option<Error>>>,
}

enum Step<'env> {
    Folder(&'env dyn FileSystem, usize, Arc<Folder>, Named),
    Name(Arc<Folder>, Named, Vec<u8>),
    Large(&'env dyn FileSystem, Box<Large>),
}

struct IntoFolder<'env> {
    shared: &'env Shared<'env>,
    queue: Queue<'env, Step<'env>, Done>,
    inside: &'env InsideDisks,
    fs: Option<&'env dyn FileSystem>,
    ahead: Option<Arc<ReadAhead>>,
    volume: usize,
    trail: Trail,
    stack: Vec<Level>,
    links: LinkTable,
    manifest: Option<ManifestWriter>,
    report: ExtractReport,
}

/// Extracts into a folder.
pub(super) fn extract(
    inside: &InsideDisks,
    places: &[Place],
    target: &std::path::Path,
    request: &ExtractRequest,
    context: JobContext<'_>,
) -> Result<ExtractReport> {
    let folder = Folder::target(target)?;
    let unfinished = Unfinished::open(&folder, request, context)?;
    let manifest = request.manifest.as_deref().map(ManifestWriter::create);
    let shared = Shared {
        notes: Mutex::new(unfinished.notes()?),
        host: metadata::host_kind(folder.descriptor()),
        holds_nameless: unfinished.folder().holds_nameless()?,
        target: folder,
        unfinished,
        existing: request.existing,
        devices: request.devices,
        check: request.verification.check(),
        has_manifest: request.manifest.is_some(),
        next_name: AtomicU64::new(0),
        context,
    };
    let manifest = manifest.transpose()?;
    let outcome = with_queue(super::worker_count(), |queue| {
        let mut visitor = IntoFolder {
            shared: &shared,
            queue,
            inside,
            fs: None,
            ahead: None,
            volume: 0,
            trail: Trail::new(NameRule::Bytes),
            stack: Vec::new(),
            links: LinkTable::default(),
            manifest,
            report: ExtractReport {
                target: target.to_owned(),
                ..ExtractReport::default()
            },
        };
        let walked = walk(places, &mut visitor, context.cancel).and_then(|()| visitor.finish());
        walked.map_err(|error| (error, visitor.report.is_empty()))
    });
    let (target, unfinished) = (shared.target, shared.unfinished);
    match outcome {
        Ok(report) => {
            sync(&target)?;
            unfinished.finish(&target)?;
            Ok(report)
        }
        Err((error, true)) if unfinished.trust == unfinished::Trust::Nothing => {
            // Nothing to go on from. Should this fail as well, the first error is the one that matters.
            unfinished.give_up(&target).ok();
            Err(error)
        }
        Err((error, _)) => Err(error),
    }
}

/// What is told as done lies on the disk.
fn sync(target: &Folder) -> Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(target.descriptor()).map_err(|error| host_error("syncing", error))?;
    #[cfg(not(target_os = "linux"))]
    rustix::fs::sync();
    let _ = target;
    Ok(())
}

impl<'env> IntoFolder<'env> {
    fn fs(&self) -> Result<&'env dyn FileSystem> {
        self.fs
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "no volume was begun"))
    }

    /// The folder that the walk is in.
    fn here(&self) -> Result<Arc<Folder>> {
        let level = self.stack.last().and_then(|level| level.folder.as_ref());
        let missing = || Error::new(ErrorKind::Invalid, "no folder is open");
        level.map(Arc::clone).ok_or_else(missing)
    }

    /// Whether others may have put something into the folder that the walk is in.
    fn age(&self) -> Age {
        self.stack.last().map_or(Age::Older, |level| level.age)
    }

    fn push_level(&mut self, (folder, age): (Folder, Age), named: Option<Named>) -> Result<()> {
        let identity = folder.identity()?;
        if let Some(far) = self.stack.len().checked_sub(OPEN_FOLDERS)
            && let Some(level) = self.stack.get_mut(far)
        {
            level.folder = None;
        }
        self.stack.push(Level {
            folder: Some(Arc::new(folder)),
            age,
            identity,
            named,
        });
        Ok(())
    }

    fn named(&self, found: Found) -> Result<Named> {
        let (source, written, host) = self.trail.below(&found.name, found.file.number)?;
        Ok(Named {
            found,
            source,
            written,
            host,
        })
    }

    /// Makes room in the queue.
    fn make_room(&mut self) -> Result<()> {
        while self.queue.is_full() {
            self.take()?;
        }
        Ok(())
    }

    fn step(&mut self, step: Step<'env>) -> Result<()> {
        self.make_room()?;
        self.queue.push_step(step);
        Ok(())
    }

    /// Takes what comes next; whether there was anything.
    fn take(&mut self) -> Result<bool> {
        let done = match self.queue.next()? {
            None => return Ok(false),
            Some(Ready::Done(done)) => done,
            Some(Ready::Step(step)) => self.run(step)?,
        };
        self.settle(done)?;
        Ok(true)
    }

    /// Takes in what was done: its hashes and its counts.
    fn settle(&mut self, done: Done) -> Result<()> {
        if let Some(manifest) = &mut self.manifest {
            manifest.add(&done.manifest)?;
        }
        self.report.add(done)
    }

    fn run(&mut self, step: Step<'env>) -> Result<Done> {
        let mut done = Done::default();
        let (path, outcome) = match step {
            Step::Folder(fs, volume, folder, named) => {
                self.report.folders = self.report.folders.saturating_add(1);
                let way = Way {
                    fs,
                    volume,
                    folder: &folder,
                    age: Age::Older,
                    ahead: None,
                };
                let outcome = self.finish_folder(&way, &named, &mut done);
                (named.source, outcome)
            }
            Step::Name(folder, named, first) => {
                let outcome = self.finish_name(&folder, &named, &first, &mut done);
                (named.source, outcome)
            }
            Step::Large(fs, large) => {
                let mut large = *large;
                let outcome = self.finish_large(fs, &mut large, &mut done);
                if outcome.is_err() {
                    let unnamed = self.shared.unfinished.folder();
                    unnamed.remove(OsStr::new(&large.unnamed))?;
                }
                (large.named.source, outcome)
            }
        };
        match outcome {
            Err(error) if is_of_file(&error) => done.fail(&path, &explained(&error)),
            outcome => outcome?,
        }
        Ok(done)
    }

    fn finish_folder(&self, way: &Way<'_>, named: &Named, done: &mut Done) -> Result<()> {
        let mut beside = self.shared.beside(way, named)?;
        self.shared.streams(way, named, &mut beside, done)?;
        let (file, host) = (way.folder.descriptor(), self.shared.host);
        rustix::fs::fstat(file)
            .and_then(|held| metadata::set(file, &held, &named.found, &mut beside, host))
            .map_err(|error| host_error("metadata of a folder", error))?;
        self.shared.tell(&beside, done)
    }

    /// Gives a file that was written one more name.
    fn finish_name(
        &self,
        folder: &Folder,
        named: &Named,
        first: &[u8],
        done: &mut Done,
    ) -> Result<()> {
        let (shared, unnamed) = (self.shared, self.shared.unfinished.folder());
        let (first_folder, first_name) = shared.target.parent_of(first, Access::Private)?;
        let gone = || {
            let first = String::from_utf8_lossy(first).into_owned();
            let what = format!("it is one more name of {first}, which was not written");
            Error::new(ErrorKind::NotFound, what)
        };
        // What has the name, but was there before, is another file.
        let original = first_folder.look(&first_name)?;
        let original = original.filter(|stat| shared.unfinished.is_touched(stat));
        let original = original.ok_or_else(gone)?;
        let there = folder.look(&named.host)?;
        let is_same = |stat: &rustix::fs::Stat| {
            (stat.st_dev, stat.st_ino) == (original.st_dev, original.st_ino)
        };
        if there.as_ref().is_some_and(is_same) {
            return shared.keep(folder, named, done);
        }
        let existing = match there {
            Some(stat) if shared.unfinished.is_ours(&stat) => Existing::Replace,
            _ => shared.existing,
        };
        let name = shared.unnamed();
        unnamed.make_name(&name, (&first_folder, &first_name))?;
        let moved = unnamed.hand_over(&name, folder, &named.host, existing);
        // Renaming one name of a file to another does nothing; then this one is still there.
        unnamed.remove(OsStr::new(&name))?;
        moved?;
        if shared.has_manifest
            && let Some(file) = folder.open_plain(&named.host)?
        {
            let hash = super::manifest::hash_file(&file, shared.context.cancel)?;
            done.manifest.extend(hash.line(&named.written));
        }
        done.files = done.files.saturating_add(1);
        Ok(())
    }

    fn finish_large(
        &self,
        fs: &'env dyn FileSystem,
        large: &mut Large,
        done: &mut Done,
    ) -> Result<()> {
        let failed = large
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(error) = failed {
            return Err(error);
        }
        let way = Way {
            fs,
            volume: large.volume,
            folder: &large.folder,
            age: large.age,
            ahead: None,
        };
        let unnamed = (large.unnamed.as_str(), &*large.target);
        let (named, beside) = (&large.named, &mut large.beside);
        self.shared
            .finish(&way, named, unnamed, large.existing, beside, done)
    }

    /// Hands neighbours to a worker.
    fn group(&mut self, folder: &Arc<Folder>, files: &mut Vec<Named>) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        self.make_room()?;
        let (files, folder) = (std::mem::take(files), Arc::clone(folder));
        let (fs, volume, shared) = (self.fs()?, self.volume, self.shared);
        let (age, ahead) = (self.age(), self.ahead.clone());
        self.queue.push_task(move || {
            let way = Way {
                fs,
                volume,
                folder: &folder,
                age,
                ahead: ahead.as_deref(),
            };
            shared.group(&way, &files)
        })
    }

    /// Hands the pieces of a large file to workers.
    fn large(&mut self, folder: &Arc<Folder>, named: Named) -> Result<()> {
        let (fs, shared) = (self.fs()?, self.shared);
        let source: Arc<dyn ReadAt + 'env> = Arc::from(fs.open(named.found.file, None)?);
        let existing = match shared.standing((folder, self.age()), &named, Some(&*source))? {
            Standing::Finished => {
                let mut done = Done::default();
                shared.keep(folder, &named, &mut done)?;
                return self.settle(done);
            }
            Standing::Write(existing) => existing,
        };
        let way = Way {
            fs,
            volume: self.volume,
            folder,
            age: self.age(),
            ahead: None,
        };
        let beside = shared.beside(&way, &named)?;
        let runs = content::runs(&*source, shared.context.cancel)?;
        let unnamed = shared.unnamed();
        let target = shared
            .unfinished
            .folder()
            .create(&unnamed, access(&named.found))?;
        let large = Large {
            volume: self.volume,
            age: self.age(),
            folder: Arc::clone(folder),
            existing,
            beside,
            unnamed,
            target: Arc::new(target),
            failed: Arc::default(),
            named,
        };
        let sized = large.target.set_len(source.size_bytes());
        if let Err(error) = sized {
            let mut failed = large.failed.lock().unwrap_or_else(PoisonError::into_inner);
            *failed = Some(host_error("the size of a file", error));
        } else {
            for piece in runs.into_iter().flat_map(Run::pieces) {
                self.piece(&source, &large, piece)?;
            }
        }
        self.step(Step::Large(fs, Box::new(large)))
    }

    fn piece(&mut self, source: &Arc<dyn ReadAt + 'env>, large: &Large, piece: Run) -> Result<()> {
        self.make_room()?;
        let (source, target) = (Arc::clone(source), Arc::clone(&large.target));
        let (failed, shared) = (Arc::clone(&large.failed), self.shared);
        self.queue.push_task(move || {
            let mut done = Done::default();
            let failed = || failed.lock().unwrap_or_else(PoisonError::into_inner);
            if failed().is_some() {
                return done;
            }
            let copied = shared.context.cancel.check();
            match copied.and_then(|()| content::copy(&*source, piece, &target, shared.writing())) {
                Ok(()) => {
                    shared.context.progress.advance(piece.length_bytes);
                    done.written_bytes = piece.length_bytes;
                }
                Err(error) => {
                    failed().get_or_insert(error);
                }
            }
            done
        })
    }

    fn finish(&mut self) -> Result<ExtractReport> {
        while self.take()? {}
        if let Some(manifest) = self.manifest.take() {
            manifest.finish()?;
        }
        Ok(std::mem::take(&mut self.report))
    }
}

impl<'env> Visitor<'env> for IntoFolder<'env> {
    fn begin(&mut self, place: &'env Place, below: Option<&str>) -> Result<()> {
        self.fs = Some(&*place.file_system);
        self.volume = place.volume.0;
        self.ahead = self.inside.read_ahead(place.volume);
        let mut folder = self.shared.target.again()?;
        if let Some(below) = below {
            folder = folder.enter(OsStr::new(below), Access::Usual)?;
            self.trail.enter_written(below);
        }
        self.push_level((folder, Age::Older), None)
    }

    fn enter(&mut self, folder: Found, role: Role) -> Result<()> {
        let named = self.named(folder)?;
        let access = match role {
            Role::Wanted => access(&named.found),
            Role::OnTheWay => Access::Usual,
        };
        let entered = self.here()?.enter_or_make(&named.host, access)?;
        self.trail
            .enter(&named.found.name, named.found.file.number)?;
        self.push_level(entered, (role == Role::Wanted).then_some(named))
    }

    fn files(&mut self, files: Vec<Found>) -> Result<()> {
        let folder = self.here()?;
        let (mut group, mut group_bytes) = (Vec::new(), 0_u64);
        let mut more_names = Vec::new();
        for found in files {
            let name = found.name.clone();
            let named = match self.named(found) {
                Err(error) if is_of_file(&error) => {
                    self.fail(Some(&name), &explained(&error));
                    continue;
                }
                named => named?,
            };
            match self.links.meet(self.volume, &named.found, &named.written) {
                Name::Another(first) => {
                    more_names.push((named, first));
                    continue;
                }
                Name::Forgotten => self.report.unlinked = self.report.unlinked.saturating_add(1),
                Name::First => {}
            }
            let metadata = &named.found.metadata;
            if metadata.kind == FileKind::Regular && metadata.size_bytes >= LARGE_BYTES {
                match self.large(&folder, named) {
                    Err(error) if is_of_file(&error) => self.fail(Some(&name), &explained(&error)),
                    outcome => outcome?,
                }
                continue;
            }
            group_bytes = group_bytes.saturating_add(metadata.size_bytes);
            group.push(named);
            if group_bytes >= GROUP_BYTES || group.len() >= GROUP_FILES {
                self.group(&folder, &mut group)?;
                group_bytes = 0;
            }
        }
        self.group(&folder, &mut group)?;
        for (named, first) in more_names {
            self.step(Step::Name(Arc::clone(&folder), named, first))?;
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        let Some(level) = self.stack.pop() else {
            return Ok(());
        };
        self.trail.leave();
        let missing = || Error::new(ErrorKind::Invalid, "no folder is open");
        let folder = level.folder.ok_or_else(missing)?;
        if let Some(above) = self.stack.last_mut()
            && above.folder.is_none()
        {
            above.folder = Some(Arc::new(folder.above(above.identity)?));
        }
        if let Some(named) = level.named {
            let (fs, volume) = (self.fs()?, self.volume);
            self.step(Step::Folder(fs, volume, folder, named))?;
        }
        Ok(())
    }

    fn fail(&mut self, name: Option<&FileName>, why: &str) {
        let mut path = self.trail.source().to_vec();
        if let Some(name) = name {
            path.push(b'/');
            path.extend(name.as_bytes());
        }
        self.report.fail(&path, why);
    }

    fn end(&mut self, _place: &Place) -> Result<()> {
        while self.stack.pop().is_some() {}
        self.trail = Trail::new(NameRule::Bytes);
        Ok(())
    }
}
