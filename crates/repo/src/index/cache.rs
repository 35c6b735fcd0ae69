//! The directory that runs lie in: kept between openings where the caller gives one, else temporary.
//!
//! ```text
//!   <cache>/<repository id>/lock            held by the one process that uses it
//!                           table           packs by number, runs; sealed with a tag; replaced by rename
//!                           run-<id>        see run
//! ```
//!
//! **Invariants.** A table is written after the runs it names. Whatever does not fit (a bad tag, a missing run, another
//! version) drops the whole cache: it can be made again from the repository. A second process gets a temporary directory.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::run::{Run, RunId, RunWriter};
use super::table::{PackRow, PackState, PackTable};
use crate::crypto::{self, SecretKey};
use crate::format::PackKind;
use crate::format::cursor::Cursor;
use crate::ids::hex;
use crate::{Error, ErrorKind, KeyId, PackId, Random, RepositoryId, Result};

const TABLE_MAGIC: [u8; 8] = *b"HIKAEIX1";

/// Where runs are written.
pub(crate) struct CacheDirectory {
    path: PathBuf,
    key: SecretKey,
    random: Arc<dyn Random>,
    holding: Holding,
}

/// What keeps the directory ours.
enum Holding {
    /// The lock on a directory that is kept.
    Lock { _lock: File },
    /// A directory that goes when it is dropped.
    Temporary { _directory: tempfile::TempDir },
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::local(path.display().to_string(), source)
}

impl CacheDirectory {
    /// The directory of this repository below `cache`; a temporary one when there is none or it is in use.
    pub(crate) fn open(
        cache: Option<&Path>,
        repository: RepositoryId,
        key: &SecretKey,
        random: Arc<dyn Random>,
    ) -> Result<Self> {
        let kept = match cache {
            Some(cache) => lock_directory(&cache.join(repository.to_string()))?,
            None => None,
        };
        let (path, holding) = match kept {
            Some((path, lock)) => (path, Holding::Lock { _lock: lock }),
            None => {
                let directory = tempfile::Builder::new()
                    .prefix("hikae-index-")
                    .tempdir()
                    .map_err(|source| Error::local("a temporary directory", source))?;
                (
                    directory.path().to_owned(),
                    Holding::Temporary {
                        _directory: directory,
                    },
                )
            }
        };
        Ok(Self {
            path,
            key: key.clone(),
            random,
            holding,
        })
    }

    /// Whether what is written here is found again by the next opening.
    pub(crate) fn is_kept(&self) -> bool {
        matches!(self.holding, Holding::Lock { .. })
    }

    /// What an earlier opening left; nothing when it does not fit.
    pub(crate) fn load(&self) -> Result<(PackTable, Vec<Run>)> {
        if !self.is_kept() {
            return Ok((PackTable::default(), Vec::new()));
        }
        let loaded = self.try_load().unwrap_or_default();
        let named: HashSet<String> = loaded.1.iter().map(|run| run_name(&run.id())).collect();
        // Left by a crash, by a merge whose removal failed, or by a cache that does not fit.
        for entry in fs::read_dir(&self.path).map_err(failed(&self.path))? {
            let entry = entry.map_err(failed(&self.path))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("run-") && !named.contains(&name) {
                fs::remove_file(entry.path()).map_err(failed(&entry.path()))?;
            }
        }
        Ok(loaded)
    }

    fn try_load(&self) -> Option<(PackTable, Vec<Run>)> {
        let bytes = fs::read(self.path.join("table")).ok()?;
        let (body, tag) = bytes.split_last_chunk::<32>()?;
        if self.table_tag(body) != *tag {
            return None;
        }
        let mut cursor = Cursor::new(body);
        if cursor.array::<8>()? != TABLE_MAGIC {
            return None;
        }
        let packs = cursor.u32()?;
        let runs = cursor.u32()?;
        let mut table = PackTable::default();
        for _ in 0..packs {
            table.add(decode_row(&mut cursor)?).ok()?;
        }
        table.set_saved();
        let mut opened = Vec::new();
        for _ in 0..runs {
            let id: RunId = cursor.array()?;
            let entries = cursor.u64()?;
            opened.push(Run::open(self.path.join(run_name(&id)), id, &self.key, entries).ok()?);
        }
        Some((table, opened))
    }

    fn table_tag(&self, body: &[u8]) -> [u8; 32] {
        let key = crypto::derive("hikae v1 local index table", &[self.key.bytes()]);
        *blake3::keyed_hash(key.bytes(), body).as_bytes()
    }

    /// Starts a run.
    pub(crate) fn new_run(&self, expected: usize) -> Result<RunWriter> {
        let mut id = [0; 16];
        self.random.fill(&mut id)?;
        RunWriter::create(self.path.join(run_name(&id)), id, &self.key, expected)
    }

    /// Makes table and runs what the next opening finds.
    pub(crate) fn save(&self, table: &PackTable, runs: &[Run]) -> Result<()> {
        let rows = table.rows();
        let count = |length: usize| {
            u32::try_from(length)
                .map(u32::to_le_bytes)
                .map_err(|_| Error::new(ErrorKind::Local, "the local index is too big"))
        };
        let mut body = TABLE_MAGIC.to_vec();
        body.extend_from_slice(&count(rows.len())?);
        body.extend_from_slice(&count(runs.len())?);
        for (_, row) in &rows {
            encode_row(row, &mut body);
        }
        for run in runs {
            run.sync()?;
            body.extend_from_slice(&run.id());
            body.extend_from_slice(&run.entry_count().to_le_bytes());
        }
        let tag = self.table_tag(&body);
        body.extend_from_slice(&tag);
        let (new, table) = (self.path.join("table.new"), self.path.join("table"));
        fs::write(&new, &body).map_err(failed(&new))?;
        fs::rename(&new, &table).map_err(failed(&table))
    }
}

/// Makes and locks a directory; `None` when another process holds it or it cannot be written.
fn lock_directory(path: &Path) -> Result<Option<(PathBuf, File)>> {
    if fs::create_dir_all(path).is_err() {
        return Ok(None);
    }
    let lock = path.join("lock");
    let Ok(file) = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock)
    else {
        return Ok(None);
    };
    match file.try_lock() {
        Ok(()) => Ok(Some((path.to_owned(), file))),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(source)) => Err(failed(&lock)(source)),
    }
}

fn run_name(id: &RunId) -> String {
    format!("run-{}", hex(id))
}

fn encode_row(row: &PackRow, bytes: &mut Vec<u8>) {
    let state = u8::from(row.state == PackState::Absent);
    bytes.extend_from_slice(row.id.as_bytes());
    bytes.extend_from_slice(row.key_id.as_bytes());
    bytes.extend_from_slice(&row.size_bytes.to_le_bytes());
    bytes.extend_from_slice(&row.blobs.to_le_bytes());
    bytes.extend_from_slice(&[row.kind.byte(), state]);
}

fn decode_row(cursor: &mut Cursor<'_>) -> Option<PackRow> {
    Some(PackRow {
        id: PackId::from_bytes(cursor.array()?),
        key_id: KeyId::from_bytes(cursor.array()?),
        size_bytes: cursor.u32()?,
        blobs: cursor.u32()?,
        kind: PackKind::from_byte(cursor.u8()?)?,
        // Condemned packs are present until a generation says so again.
        state: if cursor.u8()? == 0 {
            PackState::Present
        } else {
            PackState::Absent
        },
    })
}
