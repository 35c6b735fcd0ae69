//! The file or stream that an archive is written to.
//!
//! A file of the host gets its name when the archive is whole; until then it is locked, so that two runs never write one
//! archive. What is no plain file (a tape, a pipe) and a stream are written as they are.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::super::content::drop_cache;
use super::super::folder::{Access, Folder, host_error};
use super::super::manifest::ContentHash;
use super::super::{ArchiveOutput, Existing, Verification};
use crate::{Cancellation, Error, ErrorKind, Result};

const BUFFER_BYTES: usize = 1 << 20;
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

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::New { file, .. } => file.write(bytes),
            Self::Stream(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::New { file, .. } => file.flush(),
            Self::Stream(stream) => stream.flush(),
        }
    }
}

/// The archive that grows.
pub(super) struct Output {
    sink: BufWriter<Sink>,
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
            sink: BufWriter::with_capacity(BUFFER_BYTES, sink),
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
        self.sink.write_all(bytes).map_err(failed)?;
        if let Some(hash) = &mut self.hash {
            hash.add(bytes);
        }
        let length = u64::try_from(bytes.len()).unwrap_or(0);
        self.position = self.position.saturating_add(length);
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
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => return Ok(()),
                length => self.write(buffer.get(..length).unwrap_or_default())?,
            }
        }
    }

    /// Makes it durable, reads it again where that was asked for, and gives it its name.
    pub(super) fn finish(mut self) -> Result<()> {
        self.sink.flush().map_err(failed)?;
        let sink = self.sink.into_inner();
        let sink = sink.map_err(|error| failed(error.into_error()))?;
        let Sink::New {
            folder,
            unfinished,
            file,
        } = sink
        else {
            return Ok(());
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
        let (sink, _) = self.sink.into_parts();
        match sink {
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
