//! The list of hashes: one line for each file, as `sha256sum --check` reads it in the folder that files went to.
//!
//! ```text
//!   9f86d081…  etc/hostname             \9f86d081…  with\nnewline     (a backslash first: the name is escaped)
//! ```
//!
//! The list is complete or not there: it gets its name at the end.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::folder::host_error;
use super::note::hexadecimal;
use crate::{Cancellation, Error, ErrorKind, Result};

const READ_BYTES: usize = 1 << 20;

/// A SHA-256 that grows.
#[derive(Clone, Default)]
pub(super) struct ContentHash(Sha256);

impl ContentHash {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn add_zeros(&mut self, mut count: u64) {
        let zeros = [0; 4096];
        while count > 0 {
            let length = count.min(4096);
            let piece = usize::try_from(length).unwrap_or(0);
            self.0.update(zeros.get(..piece).unwrap_or_default());
            count = count.saturating_sub(length);
        }
    }

    /// The line of a file of this name.
    pub(super) fn line(self, name: &[u8]) -> Vec<u8> {
        let digits = hexadecimal(self.0.finalize().as_slice());
        let must_escape = name
            .iter()
            .any(|byte| matches!(byte, b'\\' | b'\n' | b'\r'));
        let mut line = Vec::new();
        if must_escape {
            line.push(b'\\');
        }
        line.extend(digits.as_bytes());
        line.extend(b"  ");
        for byte in name {
            match byte {
                b'\\' => line.extend(b"\\\\"),
                b'\n' => line.extend(b"\\n"),
                b'\r' => line.extend(b"\\r"),
                other => line.push(*other),
            }
        }
        line.push(b'\n');
        line
    }
}

/// Hashes what a file of the host holds, from its begin.
pub(super) fn hash_file(mut file: &File, cancel: &Cancellation) -> Result<ContentHash> {
    file.seek(SeekFrom::Start(0))
        .map_err(|error| host_error("reading what was written", error))?;
    let mut hash = ContentHash::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        cancel.check()?;
        let read = file.read(&mut buffer);
        match read.map_err(|error| host_error("reading what was written", error))? {
            0 => return Ok(hash),
            length => hash.add(buffer.get(..length).unwrap_or_default()),
        }
    }
}

/// The list while it grows.
pub(super) struct ManifestWriter {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl ManifestWriter {
    /// Begins a list that will have this name.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let file = NamedTempFile::new_in(folder).map_err(|error| failed(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
        })
    }

    pub(super) fn add(&mut self, lines: &[u8]) -> Result<()> {
        self.file
            .write_all(lines)
            .map_err(|error| failed(&self.path, error))
    }

    /// Gives it its name, also where an older one has it.
    pub(super) fn finish(self) -> Result<()> {
        let path = self.path;
        let file = self.file.into_inner();
        let file = file.map_err(|error| failed(&path, error.into_error()))?;
        file.as_file()
            .sync_all()
            .map_err(|error| failed(&path, error))?;
        file.persist(&path)
            .map_err(|error| failed(&path, error.error))?;
        Ok(())
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    let what = format!("writing the list of hashes {}", path.display());
    Error::new(ErrorKind::Io, what).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_sha256sum_writes_them() {
        let mut hash = ContentHash::default();
        hash.add(b"te");
        hash.add(b"st");
        let digits = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let plain = hash.clone().line(b"etc/x");
        assert_eq!(plain, format!("{digits}  etc/x\n").into_bytes());
        let escaped = hash.line(b"a\nb\\c");
        assert_eq!(escaped, format!("\\{digits}  a\\nb\\\\c\n").into_bytes());
        let mut zeros = ContentHash::default();
        zeros.add_zeros(5000);
        let mut same = ContentHash::default();
        same.add(&[0; 5000]);
        assert_eq!(zeros.line(b"z"), same.line(b"z"));
    }
}
