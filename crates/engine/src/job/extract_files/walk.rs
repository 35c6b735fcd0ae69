//! The walk through what is extracted: folders on a stack of their own, files one after the other.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use guestfs::filesystem::{DirectoryCursor, FileKind, FileSystemKind, Metadata};
use guestfs::{FileId, FileName, FileSystem};

use super::folder::{Folder, host_name};
use super::metadata::{self, Note, hexadecimal};
use super::{Existing, ExtractReport, ExtractRequest};
use crate::inside::Place;
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

const DEPTH_MAX: usize = 400;
const RUN_ENTRIES: usize = 4096;
const PIECE_BYTES: u64 = 4 << 20;
const STREAM_BYTES_MAX: u64 = 64 << 10;
const FAILURES_MAX: usize = 1000;

/// One run of the job.
pub(super) struct Extraction<'a> {
    existing: Existing,
    context: JobContext<'a>,
    target: Folder,
    side: Option<File>,
    report: ExtractReport,
}

/// A folder on the way.
struct Frame {
    file: FileId,
    metadata: Metadata,
    folder: Folder,
    path: Vec<FileName>,
    written_as: Option<OsString>,
    cursor: DirectoryCursor,
    waiting: Vec<(FileName, FileId)>,
    is_read: bool,
}

/// Whether an error belongs to one file, so that the others can go on.
fn is_of_file(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::NotFound | ErrorKind::Invalid
    )
}

fn host_error(what: &str, error: impl Into<std::io::Error>) -> Error {
    let error: std::io::Error = error.into();
    Error::new(ErrorKind::Io, what).caused_by(error)
}

impl<'a> Extraction<'a> {
    pub(super) fn begin(request: &ExtractRequest, context: JobContext<'a>) -> Result<Self> {
        Ok(Self {
            existing: request.existing,
            context,
            target: Folder::target(&request.target)?,
            side: None,
            report: ExtractReport {
                target: request.target.clone(),
                ..ExtractReport::default()
            },
        })
    }

    /// Extracts all places.
    pub(super) fn all(mut self, places: &[Place]) -> Result<ExtractReport> {
        let are_several = places
            .iter()
            .any(|place| Some(place.volume) != places.first().map(|it| it.volume));
        for place in places {
            let below = are_several.then(|| format!("volume-{}", place.volume));
            let outcome = self.place(place, below);
            self.keep_going(&place.path, outcome)?;
        }
        Ok(self.report)
    }

    fn keep_going(&mut self, path: &[FileName], outcome: Result<()>) -> Result<()> {
        match outcome {
            Err(error) if is_of_file(&error) => {
                self.fail(path, &explained(&error));
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn fail(&mut self, path: &[FileName], why: &str) {
        self.report.failed = self.report.failed.saturating_add(1);
        if self.report.failures.len() < FAILURES_MAX {
            let path: String = path.iter().map(|name| format!("/{name}")).collect();
            self.report.failures.push(format!("{path}: {why}"));
        }
    }

    fn place(&mut self, place: &Place, below: Option<String>) -> Result<()> {
        let mut folder: Option<Folder> = None;
        let names = below.map(OsString::from).into_iter();
        let above = place.path.split_last().map_or(&[][..], |(_, above)| above);
        for name in names.chain(above.iter().map(|name| host_name(name, 0))) {
            folder = Some(folder.as_ref().unwrap_or(&self.target).enter(&name)?);
        }
        let fs = &*place.file_system;
        let Some(name) = place.path.last() else {
            let metadata = fs.metadata(place.file)?;
            let root = match folder {
                Some(folder) => folder,
                None => self.target.again()?,
            };
            let frame = Frame::new(place.file, metadata, root, Vec::new(), None);
            return self.tree(fs, frame);
        };
        let folder = match folder {
            Some(folder) => folder,
            None => self.target.again()?,
        };
        let frame = self.one(fs, &folder, name, place.file, &place.path)?;
        frame.map_or(Ok(()), |frame| self.tree(fs, frame))
    }

    /// Everything below a folder.
    fn tree(&mut self, fs: &dyn FileSystem, top: Frame) -> Result<()> {
        let mut seen = HashSet::from([top.file]);
        let mut stack = vec![top];
        while let Some(frame) = stack.last_mut() {
            self.context.cancel.check()?;
            if frame.waiting.is_empty() && !frame.is_read {
                if let Err(error) = frame.read_on(fs) {
                    let path = frame.path.clone();
                    self.keep_going(&path, Err(error))?;
                }
                continue;
            }
            let Some((name, file)) = frame.waiting.pop() else {
                let Some(done) = stack.pop() else { break };
                let path = done.path.clone();
                let outcome = self.finish_folder(fs, done);
                self.keep_going(&path, outcome)?;
                continue;
            };
            let mut path = frame.path.clone();
            path.push(name.clone());
            match self.one(fs, &frame.folder, &name, file, &path) {
                Ok(None) => {}
                Ok(Some(_)) if stack.len() >= DEPTH_MAX => {
                    self.fail(&path, "folders are nested too deep")
                }
                Ok(Some(_)) if !seen.insert(file) => self.fail(&path, "this folder was met before"),
                Ok(Some(below)) => stack.push(below),
                Err(error) => self.keep_going(&path, Err(error))?,
            }
        }
        Ok(())
    }

    /// One file; a folder is entered and given back.
    fn one(
        &mut self,
        fs: &dyn FileSystem,
        folder: &Folder,
        name: &FileName,
        file: FileId,
        path: &[FileName],
    ) -> Result<Option<Frame>> {
        let metadata = fs.metadata(file)?;
        let host = host_name(name, file.number);
        let is_changed =
            std::os::unix::ffi::OsStrExt::as_bytes(host.as_os_str()) != name.as_bytes();
        let written_as = is_changed.then(|| host.clone());
        if metadata.kind == FileKind::Directory {
            let below = folder.enter(&host)?;
            return Ok(Some(Frame::new(
                file,
                metadata,
                below,
                path.to_vec(),
                written_as,
            )));
        }
        let mut note = self.note(fs, file, &metadata, path, written_as)?;
        match metadata.kind {
            FileKind::Regular => {
                folder.check_free(&host, self.existing)?;
                let written = self.contents(fs, file, &metadata, folder, &mut note);
                let named = written.and_then(|()| folder.name_partial(&host, self.existing));
                if named.is_err() {
                    folder.remove_partial()?;
                }
                named?;
                self.report.files = self.report.files.saturating_add(1);
            }
            FileKind::SymbolicLink => {
                folder.check_free(&host, self.existing)?;
                let link = fs.read_link(file)?;
                let mut target = link.as_bytes().to_vec();
                if fs.facts().kind == FileSystemKind::Ntfs {
                    note.link_target = Some(link.to_string());
                    target
                        .iter_mut()
                        .filter(|byte| **byte == b'\\')
                        .for_each(|byte| *byte = b'/');
                }
                if target.is_empty() || target.contains(&0) {
                    return Err(Error::new(ErrorKind::Corrupt, "the link leads to no path"));
                }
                let made = folder.link_partial(&target)?;
                metadata::set_link(folder.descriptor(), made, &metadata, &mut note)
                    .map_err(|error| host_error("times of a link", error))?;
                folder.name_partial(&host, self.existing)?;
                self.report.links = self.report.links.saturating_add(1);
            }
            other => {
                note.kind = format!("{other:?}");
                note.mode = metadata.owner.map(|owner| format!("{:04o}", owner.mode));
                return self.tell(&note).map(|()| None);
            }
        }
        if note.is_needed() {
            self.tell(&note)?;
        }
        Ok(None)
    }

    fn finish_folder(&mut self, fs: &dyn FileSystem, frame: Frame) -> Result<()> {
        self.report.folders = self.report.folders.saturating_add(1);
        // The target itself is the operator's.
        if frame.path.is_empty() {
            return Ok(());
        }
        let mut note = self.note(
            fs,
            frame.file,
            &frame.metadata,
            &frame.path,
            frame.written_as,
        )?;
        let attributes = fs.extended_attributes(frame.file)?;
        metadata::set(
            frame.folder.descriptor(),
            &frame.metadata,
            &attributes,
            &mut note,
        )
        .map_err(|error| host_error("metadata of a folder", error))?;
        if note.is_needed() {
            self.tell(&note)?;
        }
        Ok(())
    }

    fn contents(
        &mut self,
        fs: &dyn FileSystem,
        file: FileId,
        metadata: &Metadata,
        folder: &Folder,
        note: &mut Note,
    ) -> Result<()> {
        let source = fs.open(file, None)?;
        let attributes = fs.extended_attributes(file)?;
        let target = folder.create_partial()?;
        let size = source.size_bytes();
        target
            .set_len(size)
            .map_err(|error| host_error("the size of a file", error))?;
        let mut buffer = Vec::new();
        let mut at = 0_u64;
        while at < size {
            self.context.cancel.check()?;
            let extent = source.extent_at(at, size.saturating_sub(at))?;
            if extent.kind.is_zero() {
                at = at.saturating_add(extent.length_bytes.max(1));
                continue;
            }
            let length = extent
                .length_bytes
                .clamp(1, PIECE_BYTES)
                .min(size.saturating_sub(at));
            buffer.resize(usize::try_from(length).unwrap_or(0), 0);
            source.read_at(at, &mut buffer)?;
            target
                .write_all_at(&buffer, at)
                .map_err(|error| host_error("writing a file", error))?;
            self.context.progress.advance(length);
            self.report.written_bytes = self.report.written_bytes.saturating_add(length);
            at = at.saturating_add(length);
        }
        metadata::set(&target, metadata, &attributes, note)
            .map_err(|error| host_error("metadata of a file", error))
    }

    /// What the host does not hold of any file of this kind of file system.
    fn note(
        &mut self,
        fs: &dyn FileSystem,
        file: FileId,
        metadata: &Metadata,
        path: &[FileName],
        written_as: Option<OsString>,
    ) -> Result<Note> {
        let bytes: Vec<u8> = path
            .iter()
            .flat_map(|name| [b"/", name.as_bytes()].concat())
            .collect();
        let mut note = Note {
            path: String::from_utf8_lossy(&bytes).into_owned(),
            path_bytes: std::str::from_utf8(&bytes)
                .is_err()
                .then(|| hexadecimal(&bytes)),
            written_as: written_as.map(|name| name.to_string_lossy().into_owned()),
            kind: match metadata.kind {
                FileKind::Directory => "folder",
                FileKind::SymbolicLink => "link",
                _ => "file",
            }
            .to_owned(),
            windows_attributes: metadata.windows_attributes,
            created: metadata
                .times
                .created
                .map(|time| (time.seconds, time.nanoseconds)),
            security_descriptor: fs.security(file)?.map(|it| hexadecimal(&it.0)),
            ..Note::default()
        };
        for stream in fs.streams(file)? {
            let Some(name) = stream.name else { continue };
            if stream.size_bytes > STREAM_BYTES_MAX {
                let why = format!(
                    "its stream {name} of {} bytes is left out",
                    stream.size_bytes
                );
                self.fail(path, &why);
                continue;
            }
            let mut bytes = vec![0; usize::try_from(stream.size_bytes).unwrap_or(0)];
            fs.open(file, Some(&name))?.read_at(0, &mut bytes)?;
            note.streams.insert(name.to_string(), hexadecimal(&bytes));
        }
        Ok(note)
    }

    fn tell(&mut self, note: &Note) -> Result<()> {
        let mut line = serde_json::to_vec(note).map_err(|error| {
            Error::new(ErrorKind::Io, "a line of the side file").caused_by(error)
        })?;
        line.push(b'\n');
        let side = match &mut self.side {
            Some(side) => side,
            None => self.side.insert(self.target.side_file()?),
        };
        side.write_all(&line)
            .map_err(|error| host_error("writing the side file", error))?;
        self.report.noted = self.report.noted.saturating_add(1);
        Ok(())
    }
}

impl Frame {
    fn new(
        file: FileId,
        metadata: Metadata,
        folder: Folder,
        path: Vec<FileName>,
        written_as: Option<OsString>,
    ) -> Self {
        Self {
            file,
            metadata,
            folder,
            path,
            written_as,
            cursor: DirectoryCursor::default(),
            waiting: Vec::new(),
            is_read: false,
        }
    }

    /// The next names. After damage there are no more.
    fn read_on(&mut self, fs: &dyn FileSystem) -> Result<()> {
        let (mut cursor, mut found) = (self.cursor, Vec::new());
        let listed = fs.list(self.file, self.cursor, &mut |entry| {
            cursor = entry.next;
            found.push((entry.name, entry.file));
            if found.len() >= RUN_ENTRIES {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        self.is_read = found.len() < RUN_ENTRIES || listed.is_err();
        found.reverse();
        (self.cursor, self.waiting) = (cursor, found);
        Ok(listed?)
    }
}
