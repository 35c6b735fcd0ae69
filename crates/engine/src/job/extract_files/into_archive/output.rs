//! The file or stream that an archive is written to.
//!
//! A file of the host gets its name when the archive is whole; until then it is locked, so that two runs never write one
//! archive. What is no plain file (a tape, a pipe) and a stream are written as they are.
//!
//! **Invariants.** What waits in memory begins at a whole page of the file: whole pages go past the host's memory, where
//! every fresh one costs more than filling it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::super::content::drop_cache;
use super::super::folder::{Access, Folder, host_error};
use super::super::manifest::ContentHash;
use super::super::{ArchiveOutput, Existing, Verification};
use crate::{Cancellation, Error, ErrorKind, Result};

/// What waits at most until it is written.
const BUFFER_BYTES: usize = 2 << 20;
/// As much at once is written from where it is.
const DIRECT_BYTES_MIN: usize = 512 << 10;
const PAGE_BYTES: usize = 4096;
const UNFINISHED: &str = ".hikae-partial";

/// Where bytes go.
enum Sink {
    /// A new file of this name in this folder.
    New {
        folder: Folder,
        unfinished: String,
        file: File,
    },
    /// Something that is there.
    Stream(Box<dyn Write>),
}

impl Sink {
    /// Writes all bytes; `offset` is how many there were before.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::New { file, .. } => vdisk::file::write_uncached_at(file, offset, bytes),
            Self::Stream(stream) => stream.write_all(bytes),
        }
    }
}

/// The archive that grows.
pub(super) struct Output {
    sink: Sink,
    /// Bytes that were not written yet.
    waiting: Vec<u8>,
    position: u64,
    hash: Option<ContentHash>,
    existing: Existing,
    name: std::ffi::OsString,
}

fn failed(error: io::Error) -> Error {
    host_error("writing the archive", error)
}

impl Output {
    /// Opens what the archive goes to.
    pub(super) fn create(
        output: ArchiveOutput,
        existing: Existing,
        verification: Verification,
    ) -> Result<Self> {
        let (sink, name) = match output {
            ArchiveOutput::Stream(stream) => (Sink::Stream(stream), std::ffi::OsString::new()),
            ArchiveOutput::File(path) => open(&path, existing)?,
        };
        let is_new = matches!(sink, Sink::New { .. });
        if verification == Verification::ReadBack && !is_new {
            let what = "what goes to a stream cannot be read again: verify where it arrives";
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(Self {
            sink,
            waiting: Vec::with_capacity(BUFFER_BYTES),
            position: 0,
            hash: (verification == Verification::ReadBack).then(ContentHash::default),
            existing,
            name,
        })
    }

    /// Bytes so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(hash) = &mut self.hash {
            hash.add(bytes);
        }
        let mut rest = bytes;
        if bytes.len() >= DIRECT_BYTES_MIN {
            let lead = self.waiting.len().next_multiple_of(PAGE_BYTES);
            let lead = lead.saturating_sub(self.waiting.len());
            let (head, behind) = bytes.split_at_checked(lead).unwrap_or((bytes, &[]));
            self.wait(head);
            self.write_waiting()?;
            let tail = behind.len() % PAGE_BYTES;
            let whole = behind.len().saturating_sub(tail);
            let (whole, tail) = behind.split_at_checked(whole).unwrap_or((&[], behind));
            self.sink.write(self.position, whole).map_err(failed)?;
            self.count(whole.len());
            rest = tail;
        }
        self.wait(rest);
        if self.waiting.len() >= BUFFER_BYTES {
            self.write_waiting()?;
        }
        Ok(())
    }

    fn count(&mut self, length: usize) {
        let length = u64::try_from(length).unwrap_or(0);
        self.position = self.position.saturating_add(length);
    }

    fn wait(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
        self.count(bytes.len());
    }

    /// Writes whole pages of what waits.
    fn write_waiting(&mut self) -> Result<()> {
        let tail = self.waiting.len() % PAGE_BYTES;
        self.write_all_but(tail)
    }

    fn write_all_but(&mut self, tail: usize) -> Result<()> {
        let length = self.waiting.len().saturating_sub(tail);
        let waiting = u64::try_from(self.waiting.len()).unwrap_or(0);
        let begin = self.position.saturating_sub(waiting);
        let whole = self.waiting.get(..length).unwrap_or_default();
        self.sink.write(begin, whole).map_err(failed)?;
        self.waiting.drain(..length);
        Ok(())
    }

    pub(super) fn write_zeros(&mut self, mut count: u64) -> Result<()> {
        let zeros = vec![0; 1 << 16];
        while count > 0 {
            let length = count.min(1 << 16);
            let piece = usize::try_from(length).unwrap_or(0);
            self.write(zeros.get(..piece).unwrap_or_default())?;
            count = count.saturating_sub(length);
        }
        Ok(())
    }

    /// Copies a file to the end.
    pub(super) fn append(&mut self, file: &mut File) -> Result<()> {
        let mut buffer = vec![0; DIRECT_BYTES_MIN];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => return Ok(()),
                length => self.write(buffer.get(..length).unwrap_or_default())?,
            }
        }
    }

    /// Makes it durable, reads it again where that was asked for, and gives it its name.
    pub(super) fn finish(mut self) -> Result<()> {
        self.write_all_but(0)?;
        let (folder, unfinished, file) = match self.sink {
            Sink::New {
                folder,
                unfinished,
                file,
            } => (folder, unfinished, file),
            Sink::Stream(mut stream) => return stream.flush().map_err(failed),
        };
        file.sync_all().map_err(failed)?;
        if let Some(hash) = self.hash {
            drop_cache(&file, 0, 0);
            let back = super::super::manifest::hash_file(&file, &Cancellation::default())?;
            if back.line(b"") != hash.line(b"") {
                let what = "the archive is not what had been written";
                return Err(Error::new(ErrorKind::Io, what));
            }
        }
        folder.hand_over(&unfinished, &folder, &self.name, self.existing)?;
        folder.sync()
    }

    /// Takes away what is not finished.
    pub(super) fn give_up(self) -> Result<()> {
        match self.sink {
            Sink::New {
                folder,
                unfinished,
                file,
            } => {
                // Whoever waits for the name finds it free or locked, never ours and given back.
                let removed = folder.remove(OsStr::new(&unfinished));
                drop(file);
                removed
            }
            Sink::Stream(_) => Ok(()),
        }
    }
}

fn open(path: &Path, existing: Existing) -> Result<(Sink, std::ffi::OsString)> {
    let invalid = || Error::new(ErrorKind::Invalid, format!("{} is no file", path.display()));
    let name = path.file_name().ok_or_else(invalid)?.to_owned();
    match std::fs::metadata(path) {
        Ok(there) if there.is_dir() => return Err(invalid()),
        Ok(there) if !there.is_file() => {
            let opened = File::options().write(true).open(path);
            let file = opened.map_err(|error| host_error(path.display().to_string(), error))?;
            return Ok((Sink::Stream(Box::new(file)), name));
        }
        Ok(_) if existing == Existing::Refuse => {
            let what = path.display().to_string();
            return Err(Error::new(ErrorKind::AlreadyExists, what));
        }
        // Whatever is wrong with it is told when it is made.
        Ok(_) | Err(_) => {}
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = Folder::target(folder)?;
    let unfinished = format!("{}{UNFINISHED}", String::from_utf8_lossy(name.as_bytes()));
    let file = folder.create_locked(&unfinished, Access::Usual)?;
    Ok((
        Sink::New {
            folder,
            unfinished,
            file,
        },
        name,
    ))
}
