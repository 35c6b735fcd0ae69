//! Into one archive: tar or zip, in a file or a stream.
//!
//! ```text
//!   walk ─► group of small files ─► task ─► packed members ──────────────────────────────┐ in order, one writer
//!        ─► large file ─► step: header │ tasks: its pieces │ step: what stands behind ───┴─► archive
//!   at the end: the side file as the last member, what ends the archive, its name
//! ```
//!
//! **Invariants.** Bytes are written in the order of the walk. What is remembered of members (zip's directory, the notes)
//! lies in unnamed temporary files, not in memory. An archive file has its name only when it is whole. A large file whose
//! bytes fail in the middle stands there with zeros in their place, and is told as a failure and in the side file: its size
//! had been promised.

mod output;
mod pack;
mod tar;
mod zip;

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use block::ReadAt;
use guestfs::filesystem::{FileKind, FileSystemKind, FileTimes};
use guestfs::{FileName, FileSystem};

use super::into_folder::{GROUP_BYTES, GROUP_FILES, Named, stream_path};
use output::Output;
use pack::{Item, Member, Packed, Shared, member, stream_member};
use tar::Holes;

use super::content::{self, Run};
use super::folder::host_error;
use super::links::{LinkTable, Name};
use super::manifest::{ContentHash, ManifestWriter};
use super::note::Beside;
use super::queue::{Queue, Ready, with_queue};
use super::trail::{NameRule, Trail};
use super::walk::{Found, Role, Visitor, is_of_file, places, walk};
use super::{ArchiveKind, ArchiveOutput, ExtractReport, ExtractRequest, SIDE_FILE};
use crate::inside::{InsideDisks, Place, ReadAhead};
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

/// Files at least as large are read in pieces by several threads.
const LARGE_BYTES: u64 = 4 << 20;
/// Streams at least as large are files of their own to the queue.
const LARGE_STREAM_BYTES: u64 = 64 << 10;

/// What a task gives.
enum Answer {
    Packed(Packed),
    Piece(Run, Result<Piece>),
}

/// A piece of a large file.
struct Piece {
    packed: Vec<u8>,
    sum: flate2::Crc,
    /// The bytes themselves, where they are to be hashed.
    plain: Option<Vec<u8>>,
}

/// A large file, or stream, that is being written.
struct Large {
    named: Arc<Named>,
    path: Vec<u8>,
    beside: Option<Beside>,
    size_bytes: u64,
    runs: Vec<Run>,
    holes: Holes,
    // From here on: as far as it is written.
    record: Option<zip::Record>,
    sum: zip::Sum,
    hash: Option<ContentHash>,
    at: u64,
    stored: u64,
    failure: Option<String>,
}

enum Step<'env> {
    Folder(&'env dyn FileSystem, usize, Box<Item>),
    Name(&'env dyn FileSystem, usize, Box<Named>, Vec<u8>),
    Begin(Box<Large>),
    End,
}

struct IntoArchive<'env> {
    shared: &'env Shared<'env>,
    queue: Queue<'env, Step<'env>, Answer>,
    inside: &'env InsideDisks,
    fs: Option<&'env dyn FileSystem>,
    ahead: Option<Arc<ReadAhead>>,
    volume: usize,
    trail: Trail,
    links: LinkTable,
    /// Of the first names in `links`, those that the archive holds whole.
    first_names: HashSet<Box<[u8]>>,
    manifest: Option<ManifestWriter>,
    output: Output,
    directory: BufWriter<File>,
    directory_bytes: u64,
    members: u64,
    notes: BufWriter<File>,
    large: Option<Box<Large>>,
    report: ExtractReport,
}

fn spool() -> Result<BufWriter<File>> {
    let file = tempfile::tempfile();
    let file = file.map_err(|error| host_error("making a temporary file", error))?;
    Ok(BufWriter::new(file))
}

fn spool_failed(error: std::io::Error) -> Error {
    host_error("writing a temporary file", error)
}

/// Extracts into an archive.
pub(super) fn extract(
    inside: &InsideDisks,
    places: &[Place],
    kind: ArchiveKind,
    output: ArchiveOutput,
    request: &ExtractRequest,
    context: JobContext<'_>,
) -> Result<ExtractReport> {
    let target = match &output {
        ArchiveOutput::File(path) => path.clone(),
        ArchiveOutput::Stream(_) => PathBuf::from("-"),
    };
    let manifest = request.manifest.as_deref().map(ManifestWriter::create);
    let manifest = manifest.transpose()?;
    let (notes, directory) = (spool()?, spool()?);
    let output = Output::create(output, request.existing, request.verification)?;
    let shared = Shared {
        kind,
        has_manifest: manifest.is_some(),
        context,
        spare: Mutex::default(),
    };
    with_queue(super::worker_count(), |queue| {
        let rule = match kind {
            ArchiveKind::Tar => NameRule::Bytes,
            ArchiveKind::Zip => NameRule::Text,
        };
        let mut visitor = IntoArchive {
            shared: &shared,
            queue,
            inside,
            fs: None,
            ahead: None,
            volume: 0,
            trail: Trail::new(rule),
            links: LinkTable::default(),
            first_names: HashSet::new(),
            manifest,
            output,
            directory,
            directory_bytes: 0,
            members: 0,
            notes,
            large: None,
            report: ExtractReport {
                target,
                ..ExtractReport::default()
            },
        };
        let walked = walk(places, &mut visitor, context.cancel);
        match walked.and_then(|()| visitor.end_members()) {
            Ok(()) => visitor.finish(),
            Err(error) => {
                // The first error is the one that matters.
                visitor.output.give_up().ok();
                Err(error)
            }
        }
    })
}

impl<'env> IntoArchive<'env> {
    fn fs(&self) -> Result<&'env dyn FileSystem> {
        self.fs
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "no volume was begun"))
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
        match self.queue.next()? {
            None => return Ok(false),
            Some(Ready::Done(Answer::Packed(packed))) => self.write(packed)?,
            Some(Ready::Done(Answer::Piece(run, piece))) => self.write_piece(run, piece)?,
            Some(Ready::Step(step)) => self.run(step)?,
        }
        Ok(true)
    }

    /// Writes packed members.
    fn write(&mut self, packed: Packed) -> Result<()> {
        let begin = self.output.position();
        self.output.write(&packed.bytes)?;
        self.shared.take_back(packed.bytes);
        for mut record in packed.records {
            record.offset = record.offset.saturating_add(begin);
            self.record(&record)?;
        }
        self.notes.write_all(&packed.notes).map_err(spool_failed)?;
        self.first_names.extend(packed.first_names);
        if let Some(manifest) = &mut self.manifest {
            manifest.add(&packed.done.manifest)?;
        }
        self.report.add(packed.done)
    }

    fn record(&mut self, record: &zip::Record) -> Result<()> {
        let central = zip::central(record);
        self.directory.write_all(&central).map_err(spool_failed)?;
        let length = u64::try_from(central.len()).unwrap_or(0);
        self.directory_bytes = self.directory_bytes.saturating_add(length);
        self.members = self.members.saturating_add(1);
        Ok(())
    }

    fn run(&mut self, step: Step<'env>) -> Result<()> {
        let mut packed = Packed::default();
        let (path, outcome) = match step {
            Step::Begin(large) => return self.begin_large(large),
            Step::End => return self.end_large(),
            Step::Folder(fs, volume, item) => {
                self.report.folders = self.report.folders.saturating_add(1);
                let outcome = self.folder(fs, volume, &item.named, &mut packed);
                if outcome.is_ok() {
                    self.shared.streams(fs, &item, &mut packed)?;
                }
                (item.named.source, outcome)
            }
            Step::Name(fs, volume, named, first) => {
                let outcome = self.another_name(fs, volume, &named, &first, &mut packed);
                (named.source, outcome)
            }
        };
        match outcome {
            Err(error) if is_of_file(&error) => packed.done.fail(&path, &explained(&error)),
            outcome => outcome?,
        }
        self.write(packed)
    }

    fn folder(
        &self,
        fs: &dyn FileSystem,
        volume: usize,
        named: &Named,
        packed: &mut Packed,
    ) -> Result<()> {
        let beside = self.shared.beside(fs, volume, named)?;
        self.shared.plain(&member(named, &beside, &[]), packed)?;
        self.shared.tell(&beside, packed)
    }

    /// One more name of a file that the archive holds. Only tar is given those.
    fn another_name(
        &self,
        fs: &dyn FileSystem,
        volume: usize,
        named: &Named,
        first: &[u8],
        packed: &mut Packed,
    ) -> Result<()> {
        if !self.first_names.contains(first) {
            let first = String::from_utf8_lossy(first).into_owned();
            let what = format!("it is one more name of {first}, which is not in the archive whole");
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        let beside = self.shared.beside(fs, volume, named)?;
        let mut another = member(named, &beside, first);
        another.is_another_name = true;
        self.shared.plain(&another, packed)?;
        packed.done.files = packed.done.files.saturating_add(1);
        Ok(())
    }

    fn begin_large(&mut self, mut large: Box<Large>) -> Result<()> {
        let named = Arc::clone(&large.named);
        let described = match &large.beside {
            Some(beside) => member(&named, beside, &[]),
            None => stream_member(&large.path, large.size_bytes, &named),
        };
        match self.shared.kind {
            ArchiveKind::Tar => {
                let head = tar::head(&described, &large.runs, large.holes);
                self.output.write(&head)?;
            }
            ArchiveKind::Zip => {
                let (head, mut record) = zip::begin(&described);
                record.offset = self.output.position();
                self.output.write(&head)?;
                large.record = Some(record);
            }
        }
        self.large = Some(large);
        Ok(())
    }

    fn write_piece(&mut self, run: Run, piece: Result<Piece>) -> Result<()> {
        let Some(large) = &mut self.large else {
            return Err(Error::new(ErrorKind::Invalid, "a piece of no file"));
        };
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) if is_of_file(&error) => {
                let why = format!("bytes from {} on: {}", run.offset, explained(&error));
                large.failure.get_or_insert(why);
                let zeros = vec![0; usize::try_from(run.length_bytes).unwrap_or(0)];
                self.shared.packed_piece(zeros)?
            }
            Err(error) => return Err(error),
        };
        if let Some(hash) = &mut large.hash {
            hash.add_zeros(run.offset.saturating_sub(large.at));
            hash.add(piece.plain.as_deref().unwrap_or(&piece.packed));
        }
        large.at = run.end();
        large.sum.add(&piece.sum);
        let length = u64::try_from(piece.packed.len()).unwrap_or(0);
        large.stored = large.stored.saturating_add(length);
        self.output.write(&piece.packed)?;
        self.shared.take_back(piece.packed);
        self.shared.context.progress.advance(run.length_bytes);
        Ok(())
    }

    fn end_large(&mut self) -> Result<()> {
        let Some(large) = self.large.take() else {
            return Err(Error::new(ErrorKind::Invalid, "the end of no file"));
        };
        let mut large = *large;
        let mut packed = Packed::default();
        match large.record.take() {
            None => {
                let padding = tar::padding(large.stored);
                self.output
                    .write_zeros(u64::try_from(padding).unwrap_or(0))?;
            }
            Some(mut record) => {
                let last = zip::deflate(&[], zip::PieceEnd::Last)?;
                self.output.write(&last)?;
                let length = u64::try_from(last.len()).unwrap_or(0);
                large.stored = large.stored.saturating_add(length);
                record.packed_bytes = large.stored;
                record.size_bytes = large.size_bytes;
                record.crc = large.sum.value();
                self.output.write(&zip::descriptor(&record))?;
                self.record(&record)?;
            }
        }
        if let Some(mut hash) = large.hash.take() {
            hash.add_zeros(large.size_bytes.saturating_sub(large.at));
            packed.done.manifest = hash.line(&large.path);
        }
        if let Some(why) = &large.failure {
            let why = format!("{why}; zeros stand in their place");
            packed.done.fail(&large.named.source, &why);
        }
        if let Some(beside) = &mut large.beside {
            if large.failure.is_none() && large.named.found.metadata.link_count > 1 {
                packed.first_names.push(large.path.as_slice().into());
            }
            beside.note.damage = large.failure.take();
            packed.done.files = 1;
            self.shared.tell(beside, &mut packed)?;
        }
        packed.done.written_bytes = large.stored;
        self.write(packed)
    }

    /// Hands neighbours to a worker.
    fn group(&mut self, items: &mut Vec<Item>) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        self.make_room()?;
        let items = std::mem::take(items);
        let (fs, volume, shared) = (self.fs()?, self.volume, self.shared);
        let ahead = self.ahead.clone();
        self.queue.push_task(move || {
            let founds = items.iter().map(|item| &item.named.found);
            let ahead = ahead.as_deref().filter(|_| items.len() > 1);
            if let Some(ahead) = ahead {
                ahead.load(places(fs, founds));
            }
            Answer::Packed(shared.group(fs, volume, &items))
        })
    }

    /// Hands the pieces of a large file, or of a large stream of one, to workers.
    fn large(&mut self, named: Arc<Named>, stream: Option<&FileName>) -> Result<()> {
        let (fs, shared) = (self.fs()?, self.shared);
        let source: Arc<dyn ReadAt + 'env> = Arc::from(fs.open(named.found.file, stream)?);
        let size_bytes = source.size_bytes();
        let found = content::runs(&*source, shared.context.cancel)?;
        let (runs, holes) = match shared.kind {
            ArchiveKind::Tar => tar::stored_runs(size_bytes, &found),
            ArchiveKind::Zip => {
                let whole = Run {
                    offset: 0,
                    length_bytes: size_bytes,
                };
                (vec![whole], Holes::Filled)
            }
        };
        let (path, beside) = match stream {
            Some(stream) => {
                let path = stream_path(&named.written, stream, named.found.file.number);
                (path, None)
            }
            None => {
                let beside = shared.beside(fs, self.volume, &named)?;
                (named.written.clone(), Some(beside))
            }
        };
        let pieces = runs.clone();
        self.step(Step::Begin(Box::new(Large {
            named,
            path,
            beside,
            size_bytes,
            runs,
            holes,
            record: None,
            sum: zip::Sum::default(),
            hash: shared.has_manifest.then(ContentHash::default),
            at: 0,
            stored: 0,
            failure: None,
        })))?;
        for piece in pieces.into_iter().flat_map(Run::pieces) {
            self.make_room()?;
            let source = Arc::clone(&source);
            self.queue
                .push_task(move || Answer::Piece(piece, shared.piece(&*source, piece)))?;
        }
        self.step(Step::End)
    }

    /// Streams of a file: those that go with it, and those that are large.
    fn split_streams(&self, found: &Found) -> Result<[Vec<(FileName, u64)>; 2]> {
        let fs = self.fs()?;
        let may_have = fs.facts().kind == FileSystemKind::Ntfs
            && found.metadata.kind != FileKind::SymbolicLink;
        let (mut small, mut large) = (Vec::new(), Vec::new());
        if may_have {
            for stream in fs.streams(found.file)? {
                let Some(name) = stream.name else { continue };
                let into = if stream.size_bytes < LARGE_STREAM_BYTES {
                    &mut small
                } else {
                    &mut large
                };
                into.push((name, stream.size_bytes));
            }
        }
        Ok([small, large])
    }

    fn large_streams(&mut self, named: &Arc<Named>, streams: &[(FileName, u64)]) -> Result<()> {
        for (stream, _) in streams {
            match self.large(Arc::clone(named), Some(stream)) {
                Err(error) if is_of_file(&error) => {
                    let why = format!("its stream {stream}: {}", explained(&error));
                    self.report.fail(&named.source, &why);
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// One thing: into the group, or on a way of its own.
    fn file(&mut self, found: Found, group: &mut Vec<Item>, group_bytes: &mut u64) -> Result<()> {
        let [streams, large_streams] = self.split_streams(&found)?;
        let named = self.named(found)?;
        let size = named.found.metadata.size_bytes;
        if self.shared.kind == ArchiveKind::Tar {
            match self.links.meet(self.volume, &named.found, &named.written) {
                Name::Another(first) => {
                    // Not before the file itself, which may be in the group.
                    self.group(group)?;
                    *group_bytes = 0;
                    let (fs, volume) = (self.fs()?, self.volume);
                    return self.step(Step::Name(fs, volume, Box::new(named), first));
                }
                Name::Forgotten => self.report.unlinked = self.report.unlinked.saturating_add(1),
                Name::First => {}
            }
        } else if named.found.metadata.link_count > 1 {
            self.report.unlinked = self.report.unlinked.saturating_add(1);
        }
        let is_large = named.found.metadata.kind == FileKind::Regular && size >= LARGE_BYTES;
        if is_large || !large_streams.is_empty() {
            self.group(group)?;
            *group_bytes = 0;
            return self.alone(named, streams, &large_streams);
        }
        *group_bytes = group_bytes.saturating_add(size);
        group.push(Item { named, streams });
        if *group_bytes >= GROUP_BYTES || group.len() >= GROUP_FILES {
            self.group(group)?;
            *group_bytes = 0;
        }
        Ok(())
    }

    /// A file that is large, or has large streams.
    fn alone(
        &mut self,
        named: Named,
        streams: Vec<(FileName, u64)>,
        large_streams: &[(FileName, u64)],
    ) -> Result<()> {
        let metadata = &named.found.metadata;
        let copy = Arc::new(named.again());
        if metadata.kind == FileKind::Regular && metadata.size_bytes >= LARGE_BYTES {
            self.large(Arc::clone(&copy), None)?;
            for (stream, size) in streams {
                self.large_streams(&copy, &[(stream, size)])?;
            }
        } else {
            self.group(&mut vec![Item { named, streams }])?;
        }
        self.large_streams(&copy, large_streams)
    }

    /// Writes everything that is still on its way, the notes, and what ends the archive.
    fn end_members(&mut self) -> Result<()> {
        while self.take()? {}
        self.notes.flush().map_err(spool_failed)?;
        let notes = self.notes.get_mut();
        let size_bytes = notes.seek(SeekFrom::End(0)).map_err(spool_failed)?;
        if size_bytes > 0 {
            self.side_file(size_bytes)?;
        }
        match self.shared.kind {
            ArchiveKind::Tar => {
                let end = tar::end(self.output.position());
                self.output.write(&end)
            }
            ArchiveKind::Zip => {
                let offset = self.output.position();
                self.directory.flush().map_err(spool_failed)?;
                let directory = self.directory.get_mut();
                directory.seek(SeekFrom::Start(0)).map_err(spool_failed)?;
                self.output.append(directory)?;
                let end = zip::end(self.members, offset, self.directory_bytes);
                self.output.write(&end)
            }
        }
    }

    /// The notes as the last member.
    fn side_file(&mut self, size_bytes: u64) -> Result<()> {
        let times = FileTimes::default();
        let member = Member {
            path: SIDE_FILE.as_bytes(),
            kind: FileKind::Regular,
            size_bytes,
            times: &times,
            owner: None,
            windows_attributes: None,
            attributes: &[],
            link: &[],
            is_another_name: false,
        };
        let whole = Run {
            offset: 0,
            length_bytes: size_bytes,
        };
        match self.shared.kind {
            ArchiveKind::Tar => {
                let head = tar::head(&member, &[whole], Holes::Filled);
                self.output.write(&head)?;
                let notes = self.notes.get_mut();
                notes.seek(SeekFrom::Start(0)).map_err(spool_failed)?;
                self.output.append(notes)?;
                let padding = tar::padding(size_bytes);
                self.output.write_zeros(u64::try_from(padding).unwrap_or(0))
            }
            ArchiveKind::Zip => {
                let (head, mut record) = zip::begin(&member);
                record.offset = self.output.position();
                self.output.write(&head)?;
                let (mut sum, mut packed) = (zip::Sum::default(), 0_u64);
                for piece in whole.pieces() {
                    let mut bytes = vec![0; usize::try_from(piece.length_bytes).unwrap_or(0)];
                    let notes = self.notes.get_ref();
                    std::os::unix::fs::FileExt::read_exact_at(notes, &mut bytes, piece.offset)
                        .map_err(spool_failed)?;
                    let deflated = zip::deflate(&bytes, zip::PieceEnd::Open)?;
                    sum.add(&zip::sum(&bytes));
                    packed = packed.saturating_add(u64::try_from(deflated.len()).unwrap_or(0));
                    self.output.write(&deflated)?;
                }
                let last = zip::deflate(&[], zip::PieceEnd::Last)?;
                self.output.write(&last)?;
                record.packed_bytes = packed.saturating_add(u64::try_from(last.len()).unwrap_or(0));
                record.size_bytes = size_bytes;
                record.crc = sum.value();
                self.output.write(&zip::descriptor(&record))?;
                self.record(&record)
            }
        }
    }

    fn finish(self) -> Result<ExtractReport> {
        self.output.finish()?;
        if let Some(manifest) = self.manifest {
            manifest.finish()?;
        }
        Ok(self.report)
    }
}

impl Shared<'_> {
    fn piece(&self, source: &dyn ReadAt, run: Run) -> Result<Piece> {
        self.context.cancel.check()?;
        let mut bytes = self.buffer();
        content::read(source, run, &mut bytes)?;
        self.packed_piece(bytes)
    }

    fn packed_piece(&self, bytes: Vec<u8>) -> Result<Piece> {
        Ok(match self.kind {
            ArchiveKind::Tar => Piece {
                packed: bytes,
                sum: flate2::Crc::new(),
                plain: None,
            },
            ArchiveKind::Zip => Piece {
                packed: zip::deflate(&bytes, zip::PieceEnd::Open)?,
                sum: zip::sum(&bytes),
                plain: self.has_manifest.then_some(bytes),
            },
        })
    }
}

impl<'env> Visitor<'env> for IntoArchive<'env> {
    fn begin(&mut self, place: &'env Place, below: Option<&str>) -> Result<()> {
        self.fs = Some(&*place.file_system);
        self.volume = place.volume.0;
        self.ahead = self.inside.read_ahead(place.volume);
        if let Some(below) = below {
            self.trail.enter_written(below);
        }
        Ok(())
    }

    fn enter(&mut self, folder: Found, role: Role) -> Result<()> {
        if role == Role::Wanted {
            let [streams, large_streams] = self.split_streams(&folder)?;
            let named = self.named(folder)?;
            let copy = Arc::new(named.again());
            let (fs, volume) = (self.fs()?, self.volume);
            self.trail.enter(&copy.found.name, copy.found.file.number)?;
            self.step(Step::Folder(fs, volume, Box::new(Item { named, streams })))?;
            self.large_streams(&copy, &large_streams)
        } else {
            self.trail
                .enter(&folder.name, folder.file.number)
                .map(|_| ())
        }
    }

    fn files(&mut self, files: Vec<Found>) -> Result<()> {
        let (mut group, mut group_bytes) = (Vec::new(), 0_u64);
        for found in files {
            let name = found.name.clone();
            match self.file(found, &mut group, &mut group_bytes) {
                Err(error) if is_of_file(&error) => self.fail(Some(&name), &explained(&error)),
                outcome => outcome?,
            }
        }
        self.group(&mut group)
    }

    fn leave(&mut self) -> Result<()> {
        self.trail.leave();
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
        let rule = match self.shared.kind {
            ArchiveKind::Tar => NameRule::Bytes,
            ArchiveKind::Zip => NameRule::Text,
        };
        self.trail = Trail::new(rule);
        Ok(())
    }
}
