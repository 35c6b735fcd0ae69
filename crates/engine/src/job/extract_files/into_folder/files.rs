//! Single files into a folder of the host: what the threads of an extraction do.
//!
//! ```text
//!   there already? ─ finished earlier ─► kept
//!        │ no                        └─ in the way ─► the job ends, or it is replaced
//!        ▼
//!   nameless file, or one among the unfinished ─► bytes ─► what stands beside them ─► streams ─► note ─► its name
//! ```
//!
//! Some files of a group get their names together, after all notes about them were written at once.
//!
//! **Invariants.** A file has its name only when everything else of it was written and noted.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use block::ReadAt;
use guestfs::filesystem::{DeviceNumber, FileKind, FileSystemKind, Timestamp};
use guestfs::{FileName, FileSystem};
use rustix::fs::{FileType, Stat};

use super::super::content::{self, Check, NextUse, Run};
use super::super::folder::{Access, Age, Folder, host_error};
use super::super::manifest::hash_file;
use super::super::metadata::{self, HostKind};
use super::super::note::{Beside, StreamNote};
use super::super::trail::{NameRule, host_name};
use super::super::walk::{Found, is_of_file, places};
use super::super::{Devices, Existing, STREAMS_FOLDER};
use super::unfinished::{Trust, Unfinished};
use crate::inside::ReadAhead;
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

/// Longest name of a file that holds a stream.
const NAME_BYTES_MAX: usize = 255;
const KEPT_BYTES: usize = 110;

/// Something found, with its paths on the volume and in the target, and its name there.
pub(in super::super) struct Named {
    pub(in super::super) found: Found,
    pub(in super::super) source: Vec<u8>,
    pub(in super::super) written: Vec<u8>,
    pub(in super::super) host: OsString,
}

impl Named {
    /// The same once more.
    pub(in super::super) fn again(&self) -> Self {
        Self {
            found: Found {
                name: self.found.name.clone(),
                file: self.found.file,
                metadata: self.found.metadata.clone(),
            },
            source: self.source.clone(),
            written: self.written.clone(),
            host: self.host.clone(),
        }
    }
}

/// What a task did.
#[derive(Default)]
pub(in super::super) struct Done {
    pub(in super::super) files: u64,
    pub(in super::super) links: u64,
    pub(in super::super) specials: u64,
    pub(in super::super) kept: u64,
    pub(in super::super) written_bytes: u64,
    pub(in super::super) noted: u64,
    pub(in super::super) failures: Vec<String>,
    pub(in super::super) manifest: Vec<u8>,
    pub(in super::super) fatal: Option<Error>,
}

impl Done {
    pub(in super::super) fn fail(&mut self, path: &[u8], why: &str) {
        let path = String::from_utf8_lossy(path);
        self.failures.push(format!("{path}: {why}"));
    }
}

/// Whether a name is free.
pub(super) enum Standing {
    /// It may be written, in this way.
    Write(Existing),
    /// An earlier run finished it.
    Finished,
}

/// What all threads share.
pub(super) struct Shared<'env> {
    pub(super) target: Folder,
    pub(super) unfinished: Unfinished,
    pub(super) notes: Mutex<File>,
    pub(super) existing: Existing,
    pub(super) devices: Devices,
    pub(super) check: Check,
    pub(super) has_manifest: bool,
    pub(super) host: HostKind,
    pub(super) next_name: AtomicU64,
    /// Whether the host holds files without names.
    pub(super) holds_nameless: bool,
    pub(super) context: JobContext<'env>,
}

/// Where a file lies and is going to.
pub(super) struct Way<'a> {
    pub(super) fs: &'a dyn FileSystem,
    pub(super) volume: usize,
    pub(super) folder: &'a Folder,
    pub(super) age: Age,
    pub(super) ahead: Option<&'a ReadAhead>,
}

/// Files up to this size are read beforehand, together with their neighbours.
const SMALL_BYTES: u64 = 512 << 10;

/// Reads beforehand what lies together.
fn load(way: &Way<'_>, files: &[Named]) {
    let Some(ahead) = way.ahead.filter(|_| files.len() > 1) else {
        return;
    };
    let founds = files.iter().map(|it| &it.found);
    let small = founds.filter(|it| it.metadata.size_bytes <= SMALL_BYTES);
    ahead.load(places(way.fs, small));
}

/// Whole files that wait for their names at most: each is open.
const NAMELESS_MAX: usize = 16;

/// A file that is written.
enum Made {
    /// It has no name at all.
    Nameless(File),
    /// It has this one among the unfinished ones.
    Unfinished(String),
}

/// A file that is whole but for its name.
struct Nameless<'a> {
    it: &'a Named,
    made: Made,
    existing: Existing,
    note: Vec<u8>,
    manifest: Vec<u8>,
}

/// Until it gets its own mode. Where it has none, it is as any file that is made here.
pub(super) fn access(found: &Found) -> Access {
    let owner = found.metadata.owner;
    owner.map_or(Access::Usual, |owner| Access::Rights(owner.mode))
}

fn is_time(wanted: Option<Timestamp>, stat: &Stat) -> bool {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(u32::MAX);
    wanted.is_some_and(|wanted| {
        let coarse = [
            wanted.nanoseconds,
            wanted.nanoseconds / 100 * 100,
            wanted.nanoseconds / 1000 * 1000,
            0,
        ];
        stat.st_mtime == wanted.seconds && coarse.contains(&nanoseconds)
    })
}

impl Shared<'_> {
    /// Extracts neighbours.
    pub(super) fn group(&self, way: &Way<'_>, files: &[Named]) -> Done {
        let mut done = Done::default();
        let mut nameless = Vec::new();
        load(way, files);
        for it in files {
            let outcome = self.context.cancel.check();
            let outcome = outcome.and_then(|()| self.one(way, it, &mut nameless, &mut done));
            match outcome {
                Ok(()) if nameless.len() < NAMELESS_MAX => continue,
                Ok(()) => {}
                Err(error) if is_of_file(&error) => {
                    done.fail(&it.source, &explained(&error));
                    continue;
                }
                Err(error) => {
                    done.fatal = Some(error);
                    break;
                }
            }
            let named = self.name(way, &nameless, &mut done);
            nameless.clear();
            if let Err(error) = named {
                done.fatal = Some(error);
                break;
            }
        }
        if let Err(error) = self.name(way, &nameless, &mut done) {
            done.fatal.get_or_insert(error);
        }
        done
    }

    /// Notes what is to be noted of files, then gives them their names. What cannot have its name is taken away.
    fn name(&self, way: &Way<'_>, files: &[Nameless<'_>], done: &mut Done) -> Result<()> {
        let notes = files.iter().filter(|file| !file.note.is_empty()).count();
        let lines: Vec<&[u8]> = files.iter().map(|file| file.note.as_slice()).collect();
        let mut stopped = self.write_notes(&lines.concat()).err();
        if stopped.is_none() {
            done.noted = done.noted.saturating_add(u64::try_from(notes).unwrap_or(0));
        }
        let unnamed = self.unfinished.folder();
        for file in files {
            let host = &file.it.host;
            let handed = match (&file.made, &stopped) {
                (Made::Nameless(made), None) => way.folder.name(made, host),
                (Made::Nameless(_), Some(_)) => Ok(()),
                (Made::Unfinished(name), None) => {
                    unnamed.hand_over(name, way.folder, host, file.existing)
                }
                (Made::Unfinished(name), Some(_)) => unnamed.remove(OsStr::new(name)),
            };
            match handed.map_err(|error| twin(error, way.age)) {
                Ok(()) if stopped.is_none() => {
                    done.files = done.files.saturating_add(1);
                    done.manifest.extend_from_slice(&file.manifest);
                }
                Ok(()) => {}
                Err(error) => {
                    if let Made::Unfinished(name) = &file.made {
                        unnamed.remove(OsStr::new(name))?;
                    }
                    if is_of_file(&error) {
                        done.fail(&file.it.source, &explained(&error));
                    } else {
                        stopped.get_or_insert(error);
                    }
                }
            }
        }
        stopped.map_or(Ok(()), Err)
    }

    fn one<'a>(
        &self,
        way: &Way<'_>,
        it: &'a Named,
        nameless: &mut Vec<Nameless<'a>>,
        done: &mut Done,
    ) -> Result<()> {
        match it.found.metadata.kind {
            FileKind::Regular => {
                nameless.extend(self.regular(way, it, done)?);
                Ok(())
            }
            FileKind::SymbolicLink => self.link(way, it, done),
            FileKind::Fifo => self.special(way, it, (FileType::Fifo, None), done),
            FileKind::CharacterDevice(number) if self.devices == Devices::Make => {
                self.special(way, it, (FileType::CharacterDevice, Some(number)), done)
            }
            FileKind::BlockDevice(number) if self.devices == Devices::Make => {
                self.special(way, it, (FileType::BlockDevice, Some(number)), done)
            }
            _ => {
                let mut beside = self.beside(way, it)?;
                beside.note.add_owner(&it.found);
                for attribute in &beside.attributes {
                    beside.note.add_attribute(attribute);
                }
                beside.note.add_times(&it.found.metadata.times);
                self.streams(way, it, &mut beside, done)?;
                self.tell(&beside, done)
            }
        }
    }

    pub(super) fn beside(&self, way: &Way<'_>, it: &Named) -> Result<Beside> {
        Beside::read(way.fs, way.volume, (&it.source, &it.written), &it.found)
    }

    /// A name for something that has none yet.
    pub(super) fn unnamed(&self) -> String {
        self.next_name.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// Looks at what has the name already.
    pub(super) fn standing(
        &self,
        (folder, age): (&Folder, Age),
        it: &Named,
        source: Option<&dyn ReadAt>,
    ) -> Result<Standing> {
        if age == Age::New {
            return Ok(Standing::Write(Existing::Refuse));
        }
        let Some(stat) = folder.look(&it.host)? else {
            return Ok(Standing::Write(Existing::Refuse));
        };
        let metadata = &it.found.metadata;
        let is_ours = self.unfinished.is_ours(&stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_alike = match metadata.kind {
            FileKind::Regular => {
                kind == FileType::RegularFile
                    && u64::try_from(stat.st_size) == Ok(metadata.size_bytes)
            }
            FileKind::SymbolicLink => kind == FileType::Symlink,
            FileKind::Fifo => kind == FileType::Fifo,
            _ => false,
        } && is_time(metadata.times.modified, &stat);
        if is_ours && is_alike {
            // Whoever wants it verified, or its hash, does not want to hear what size and time promise.
            let is_believed = self.check == Check::None && !self.has_manifest;
            let trust = match self.unfinished.trust {
                Trust::Times if !is_believed => Trust::Bytes,
                trust => trust,
            };
            let is_finished = match (trust, source) {
                (Trust::Times, _) => true,
                (Trust::Bytes, Some(source)) => match folder.open_plain(&it.host)? {
                    Some(file) => content::is_equal(source, &file, self.context.cancel)?,
                    None => false,
                },
                _ => false,
            };
            if is_finished {
                return Ok(Standing::Finished);
            }
        }
        if is_ours || self.existing == Existing::Replace {
            return Ok(Standing::Write(Existing::Replace));
        }
        let what = String::from_utf8_lossy(&it.written).into_owned();
        Err(Error::new(ErrorKind::AlreadyExists, what))
    }

    /// A file that an earlier run finished.
    pub(super) fn keep(&self, folder: &Folder, it: &Named, done: &mut Done) -> Result<()> {
        done.kept = done.kept.saturating_add(1);
        if self.has_manifest
            && it.found.metadata.kind == FileKind::Regular
            && let Some(file) = folder.open_plain(&it.host)?
        {
            let hash = hash_file(&file, self.context.cancel)?;
            done.manifest.extend(hash.line(&it.written));
        }
        Ok(())
    }

    /// Writes a file but for its name; nothing when an earlier run finished it.
    fn regular<'a>(
        &self,
        way: &Way<'_>,
        it: &'a Named,
        done: &mut Done,
    ) -> Result<Option<Nameless<'a>>> {
        let source = way.fs.open(it.found.file, None)?;
        let existing = match self.standing((way.folder, way.age), it, Some(&*source))? {
            Standing::Finished => {
                self.keep(way.folder, it, done)?;
                return Ok(None);
            }
            Standing::Write(existing) => existing,
        };
        let mut beside = self.beside(way, it)?;
        let (target, name) = self.new_file(way, it, existing)?;
        let written = self.fill(&*source, &target).and_then(|written| {
            done.written_bytes = done.written_bytes.saturating_add(written);
            let manifest = self.complete(way, it, &target, &mut beside, done)?;
            Ok((note_of(&beside)?, manifest))
        });
        match written {
            Ok((note, manifest)) => Ok(Some(Nameless {
                it,
                made: name.map_or(Made::Nameless(target), Made::Unfinished),
                existing,
                note,
                manifest,
            })),
            Err(error) => {
                if let Some(name) = name {
                    self.unfinished.folder().remove(OsStr::new(&name))?;
                }
                Err(error)
            }
        }
    }

    /// A new file, and its name among the unfinished ones, if it needs one: what replaces another file does.
    fn new_file(
        &self,
        way: &Way<'_>,
        it: &Named,
        existing: Existing,
    ) -> Result<(File, Option<String>)> {
        let access = access(&it.found);
        if self.holds_nameless
            && existing == Existing::Refuse
            && let Some(file) = way.folder.create_nameless(access)?
        {
            return Ok((file, None));
        }
        let name = self.unnamed();
        let file = self.unfinished.folder().create(&name, access)?;
        Ok((file, Some(name)))
    }

    /// How bytes are written.
    pub(super) fn writing(&self) -> (Check, NextUse) {
        let next = if self.has_manifest || self.check != Check::None {
            NextUse::Soon
        } else {
            NextUse::Unknown
        };
        (self.check, next)
    }

    /// Copies bytes; holes stay holes. How many were written.
    fn fill(&self, source: &dyn ReadAt, target: &File) -> Result<u64> {
        let size = source.size_bytes();
        let runs = content::runs(source, self.context.cancel)?;
        let whole = Run {
            offset: 0,
            length_bytes: size,
        };
        if size > 0 && runs != [whole] {
            target
                .set_len(size)
                .map_err(|error| host_error("the size of a file", error))?;
        }
        let mut written = 0_u64;
        for piece in runs.into_iter().flat_map(Run::pieces) {
            self.context.cancel.check()?;
            content::copy(source, piece, target, self.writing())?;
            self.context.progress.advance(piece.length_bytes);
            written = written.saturating_add(piece.length_bytes);
        }
        Ok(written)
    }

    /// Gives a file that has its bytes everything else but notes and name; its line in the list of hashes.
    fn complete(
        &self,
        way: &Way<'_>,
        it: &Named,
        target: &File,
        beside: &mut Beside,
        done: &mut Done,
    ) -> Result<Vec<u8>> {
        let held = rustix::fs::fstat(target);
        let held = held.map_err(|error| host_error("looking at a file", error))?;
        check_size(&held, it.found.metadata.size_bytes)?;
        let mut manifest = Vec::new();
        if self.has_manifest {
            manifest = hash_file(target, self.context.cancel)?.line(&it.written);
        }
        metadata::set(target, &held, &it.found, beside, self.host)
            .map_err(|error| host_error("metadata of a file", error))?;
        self.streams(way, it, beside, done)?;
        Ok(manifest)
    }

    /// The same, and its name.
    pub(super) fn finish(
        &self,
        way: &Way<'_>,
        it: &Named,
        (name, target): (&str, &File),
        existing: Existing,
        beside: &mut Beside,
        done: &mut Done,
    ) -> Result<()> {
        let manifest = self.complete(way, it, target, beside, done)?;
        self.tell(beside, done)?;
        let unnamed = self.unfinished.folder();
        let handed = unnamed.hand_over(name, way.folder, &it.host, existing);
        handed.map_err(|error| twin(error, way.age))?;
        done.manifest.extend(manifest);
        done.files = done.files.saturating_add(1);
        Ok(())
    }

    fn link(&self, way: &Way<'_>, it: &Named, done: &mut Done) -> Result<()> {
        let existing = match self.standing((way.folder, way.age), it, None)? {
            Standing::Finished => return self.keep(way.folder, it, done),
            Standing::Write(existing) => existing,
        };
        let mut beside = self.beside(way, it)?;
        let target = link_target(way.fs, &it.found, &mut beside)?;
        let (name, unnamed) = (self.unnamed(), self.unfinished.folder());
        unnamed.make_link(&name, &target)?;
        let made = metadata::set_by_name(unnamed.descriptor(), &name, &it.found, &mut beside)
            .map_err(|error| host_error("metadata of a link", error))
            .and_then(|()| self.tell(&beside, done))
            .and_then(|()| unnamed.hand_over(&name, way.folder, &it.host, existing))
            .map_err(|error| twin(error, way.age));
        if made.is_err() {
            unnamed.remove(OsStr::new(&name))?;
        }
        made?;
        done.links = done.links.saturating_add(1);
        Ok(())
    }

    fn special(
        &self,
        way: &Way<'_>,
        it: &Named,
        (kind, number): (FileType, Option<DeviceNumber>),
        done: &mut Done,
    ) -> Result<()> {
        let existing = match self.standing((way.folder, way.age), it, None)? {
            Standing::Finished => return self.keep(way.folder, it, done),
            Standing::Write(existing) => existing,
        };
        let mut beside = self.beside(way, it)?;
        let (name, unnamed) = (self.unnamed(), self.unfinished.folder());
        let device = number.map_or(0, |it| rustix::fs::makedev(it.major, it.minor));
        unnamed.make_special(&name, kind, device)?;
        // Made: then it need not be noted as what could not be.
        beside.note.device = None;
        let made = metadata::set_by_name(unnamed.descriptor(), &name, &it.found, &mut beside)
            .map_err(|error| host_error("metadata of a special file", error))
            .and_then(|()| self.tell(&beside, done))
            .and_then(|()| unnamed.hand_over(&name, way.folder, &it.host, existing))
            .map_err(|error| twin(error, way.age));
        if made.is_err() {
            unnamed.remove(OsStr::new(&name))?;
        }
        made?;
        done.specials = done.specials.saturating_add(1);
        Ok(())
    }

    /// Writes the alternate streams of a file into files of their own.
    pub(super) fn streams(
        &self,
        way: &Way<'_>,
        it: &Named,
        beside: &mut Beside,
        done: &mut Done,
    ) -> Result<()> {
        for (name, size_bytes) in &beside.streams {
            let path = stream_path(&it.written, name, it.found.file.number);
            match self.stream(way, it, name, &path) {
                Ok(written) => {
                    done.written_bytes = done.written_bytes.saturating_add(written);
                    beside.note.streams.push(StreamNote {
                        name: name.to_string(),
                        size_bytes: *size_bytes,
                        written_as: String::from_utf8_lossy(&path).into_owned(),
                    });
                }
                Err(error) if is_of_file(&error) => {
                    let why = format!("its stream {name}: {}", explained(&error));
                    done.fail(&it.source, &why);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn stream(&self, way: &Way<'_>, it: &Named, name: &FileName, path: &[u8]) -> Result<u64> {
        let source = way.fs.open(it.found.file, Some(name))?;
        let (folder, last) = self.target.parent_of(path, Access::Usual)?;
        let existing = match folder.look(&last)? {
            None => Existing::Refuse,
            Some(stat) if self.unfinished.is_ours(&stat) => Existing::Replace,
            Some(_) => self.existing,
        };
        let (unnamed, number) = (self.unfinished.folder(), self.unnamed());
        let target = unnamed.create(&number, Access::Usual)?;
        let made = self.fill(&*source, &target).and_then(|written| {
            unnamed.hand_over(&number, &folder, &last, existing)?;
            Ok(written)
        });
        if made.is_err() {
            unnamed.remove(OsStr::new(&number))?;
        }
        made
    }

    /// Notes what the host does not hold.
    pub(super) fn tell(&self, beside: &Beside, done: &mut Done) -> Result<()> {
        let note = note_of(beside)?;
        if !note.is_empty() {
            self.write_notes(&note)?;
            done.noted = done.noted.saturating_add(1);
        }
        Ok(())
    }

    fn write_notes(&self, lines: &[u8]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut notes = self
            .notes
            .lock()
            .map_err(|_| Error::new(ErrorKind::Io, "a thread of the extraction panicked"))?;
        notes
            .write_all(lines)
            .map_err(|error| host_error("writing the side file", error))
    }
}

/// The line about a file; empty when everything is where it belongs.
fn note_of(beside: &Beside) -> Result<Vec<u8>> {
    if beside.note.is_needed() {
        beside.note.line()
    } else {
        Ok(Vec::new())
    }
}

/// Compares the size of what was written with what it had to be.
fn check_size(held: &Stat, size: u64) -> Result<()> {
    if u64::try_from(held.st_size) == Ok(size) {
        return Ok(());
    }
    let what = format!("{} bytes were written of {size}", held.st_size);
    Err(Error::new(ErrorKind::Io, what))
}

/// What is in the way in a folder that was made just now came from the same disk: that is no reason to end.
fn twin(error: Error, age: Age) -> Error {
    if age == Age::New && error.kind() == ErrorKind::AlreadyExists {
        let what =
            "another file of this folder has the same name, or one that is the same to this host";
        return Error::new(ErrorKind::Invalid, what).caused_by(error);
    }
    error
}

/// Where a link leads on the host; what Windows wrote there is noted.
pub(in super::super) fn link_target(
    fs: &dyn FileSystem,
    found: &Found,
    beside: &mut Beside,
) -> Result<Vec<u8>> {
    let link = fs.read_link(found.file)?;
    let mut target = link.as_bytes().to_vec();
    if fs.facts().kind == FileSystemKind::Ntfs {
        beside.note.link_target = Some(link.to_string());
        target
            .iter_mut()
            .filter(|byte| **byte == b'\\')
            .for_each(|byte| *byte = b'/');
    }
    if target.is_empty() || target.contains(&0) {
        return Err(Error::new(ErrorKind::Corrupt, "the link leads to no path"));
    }
    Ok(target)
}

/// Where the bytes of a stream go: beside the tree, under the path of its file, a colon, and its own name.
pub(in super::super) fn stream_path(written: &[u8], stream: &FileName, number: u64) -> Vec<u8> {
    let (above, last) = match written.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (
            written.get(..=at).unwrap_or_default(),
            written.get(at.saturating_add(1)..).unwrap_or_default(),
        ),
        None => (&b""[..], written),
    };
    let stream = host_name(stream, number, NameRule::Bytes, false);
    let whole = [last, b":", stream.as_bytes()].concat();
    let name = if whole.len() <= NAME_BYTES_MAX {
        whole
    } else {
        let cut = |name: &[u8]| {
            String::from_utf8_lossy(name.get(..KEPT_BYTES / 2).unwrap_or(name)).into_owned()
        };
        let (last, stream) = (cut(last), cut(stream.as_bytes()));
        format!("{last}~{number:x}:{stream}").into_bytes()
    };
    [STREAMS_FOLDER.as_bytes(), b"/", above, &name].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_lie_beside_the_tree_under_the_path_of_their_file() {
        let path = |written: &[u8], stream: &str| {
            let path = stream_path(written, &FileName::from(stream), 0x2a);
            String::from_utf8(path).expect("text")
        };
        assert_eq!(path(b"a/b.txt", "x"), "hikae-streams/a/b.txt:x");
        assert_eq!(path(b"b.txt", "Zone"), "hikae-streams/b.txt:Zone");
        let long = path(&[b'n'; 250], "a long name of a stream");
        assert!(long.len() < 255 && long.contains("~2a:"), "{long}");
    }
}
