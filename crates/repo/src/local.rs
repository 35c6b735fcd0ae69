//! Files of this host that hold what was worked out from a repository and can be worked out again: an index of names.
//!
//! ```text
//!   <cache>/<repository id>/<topic>/<name id>/  lock            shared by all who use the folder, exclusive to tidy it
//!                                               <id>.sealed     whole, or not there
//!                                               tmp-…           being written; what a crash left goes when nobody works
//!
//!   <id>.sealed:  magic 8 ‖ salt 32 ‖ frame … ‖ table ‖ table offset u64 ‖ table length u32
//!   frame, table: AES-256-GCM(zstd(bytes)), key = derive(index key, salt), nonce = its number from 0, the table's all ones
//!   table:        count u32 ‖ (offset u64 ‖ sealed length u32 ‖ plain length u32) per frame
//! ```
//!
//! **Invariants.** In an encrypted repository nobody reads them without its keys: the key comes from the repository's key
//! of local indexes. A salt is random and a file is written once, so that no nonce is used twice. What does not
//! authenticate is an error, never wrong bytes. The repository never depends on these files: they may be deleted any time.
//! A file appears under its name when it is whole.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::crypto::{self, AeadKey, SecretKey};
use crate::format::TAG_BYTES;
use crate::ids::hex;
use crate::points::ProtectedName;
use crate::repository::Repository;
use crate::{Error, ErrorKind, Random, Result};

const MAGIC: [u8; 8] = *b"HIKAELF1";
const SALT_BYTES: usize = 32;
const FOOTER_BYTES: u64 = 12;
const ROW_BYTES: usize = 16;
const ENDING: &str = ".sealed";
const LEFT_OVER: &str = "tmp-";
/// Longest frame before it is compressed.
pub const FRAME_BYTES_MAX: usize = 128 << 20;
/// Most frames of a file.
const FRAMES_MAX: usize = 1 << 20;
const TABLE_NONCE: [u8; 12] = [0xFF; 12];

/// Which file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalFileId(String);

/// Whether the folder may be tidied: nobody else uses it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderUse {
    /// This process alone, until [`LocalFolder::share`].
    Alone,
    /// Others may use it, too.
    Shared,
}

/// A folder for one purpose and one protected name.
pub struct LocalFolder {
    path: PathBuf,
    key: SecretKey,
    random: Arc<dyn Random>,
    lock: File,
    held: FolderUse,
    /// Where nothing can be kept, the folder goes with this value.
    temporary: Option<tempfile::TempDir>,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::local(path.display().to_string(), source)
}

fn damaged(path: &Path, what: &str) -> Error {
    let what = format!("{}: {what}", path.display());
    Error::new(ErrorKind::Local, what)
}

impl Repository {
    /// The local folder for a purpose; a temporary one where none can be kept.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] when not even that can be made.
    pub fn local_folder(&self, topic: &'static str, name: &ProtectedName) -> Result<LocalFolder> {
        let vault = self.vault();
        let key = crypto::derive(
            "hikae v1 local files",
            &[vault.index_key().bytes(), topic.as_bytes()],
        );
        let random = Arc::clone(&vault.environment().random);
        let kept = self.cache_dir().and_then(|cache| {
            let path = cache
                .join(self.id().to_string())
                .join(topic)
                .join(vault.name_id(name).to_string());
            LocalFolder::at(path, key, random, None).ok()
        });
        match kept {
            Some(folder) => Ok(folder),
            None => self.temporary_folder(),
        }
    }

    /// A folder that goes with its value; its key is random, so that what a crash leaves of it is noise.
    ///
    /// # Errors
    /// [`ErrorKind::Local`].
    pub fn temporary_folder(&self) -> Result<LocalFolder> {
        let random = Arc::clone(&self.vault().environment().random);
        let place = tempfile::Builder::new()
            .prefix("hikae-local-")
            .tempdir()
            .map_err(|source| Error::local("a temporary directory", source))?;
        let key = SecretKey::generate(random.as_ref())?;
        LocalFolder::at(place.path().to_owned(), key, random, Some(place))
    }
}

impl LocalFolder {
    fn at(
        path: PathBuf,
        key: SecretKey,
        random: Arc<dyn Random>,
        temporary: Option<tempfile::TempDir>,
    ) -> Result<Self> {
        fs::create_dir_all(&path).map_err(failed(&path))?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        let mut folder = Self {
            path,
            key,
            random,
            lock,
            held: FolderUse::Shared,
            temporary,
        };
        match folder.lock.try_lock() {
            Ok(()) => {
                folder.held = FolderUse::Alone;
                folder.remove_left_overs()?;
            }
            Err(fs::TryLockError::WouldBlock) => {
                folder.lock.lock_shared().map_err(failed(&lock_path))?;
            }
            Err(fs::TryLockError::Error(source)) => return Err(failed(&lock_path)(source)),
        }
        Ok(folder)
    }

    /// Whether this process is alone in it.
    pub fn held(&self) -> FolderUse {
        self.held
    }

    /// Whether what is written here is found again.
    pub fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    /// Lets others in.
    ///
    /// # Errors
    /// [`ErrorKind::Local`].
    pub fn share(&mut self) -> Result<()> {
        self.lock.unlock().map_err(failed(&self.path))?;
        self.lock.lock_shared().map_err(failed(&self.path))?;
        self.held = FolderUse::Shared;
        Ok(())
    }

    fn remove_left_overs(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(failed(&self.path))? {
            let entry = entry.map_err(failed(&self.path))?;
            if entry.file_name().to_string_lossy().starts_with(LEFT_OVER) {
                fs::remove_file(entry.path()).map_err(failed(&entry.path()))?;
            }
        }
        Ok(())
    }

    /// The files that are there, in the order of their names.
    ///
    /// # Errors
    /// [`ErrorKind::Local`].
    pub fn files(&self) -> Result<Vec<LocalFileId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed(&self.path))? {
            let entry = entry.map_err(failed(&self.path))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            found.extend(
                name.strip_suffix(ENDING)
                    .map(|id| LocalFileId(id.to_owned())),
            );
        }
        found.sort();
        Ok(found)
    }

    fn path_of(&self, id: &LocalFileId) -> PathBuf {
        self.path.join(format!("{}{ENDING}", id.0))
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] when it is gone or not what was written.
    pub fn open(&self, id: &LocalFileId) -> Result<LocalFileReader> {
        LocalFileReader::open(self.path_of(id), &self.key)
    }

    /// Removes a file; one that is gone already is none the worse for it.
    ///
    /// # Errors
    /// [`ErrorKind::Local`].
    pub fn remove(&self, id: &LocalFileId) -> Result<()> {
        let path = self.path_of(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(failed(&path)(source))
            }
            _ => Ok(()),
        }
    }

    /// Begins a new file.
    ///
    /// # Errors
    /// [`ErrorKind::Local`].
    pub fn create(&self) -> Result<LocalFileWriter> {
        let mut salt = [0; SALT_BYTES];
        self.random.fill(&mut salt)?;
        let temporary = tempfile::Builder::new()
            .prefix(LEFT_OVER)
            .tempfile_in(&self.path)
            .map_err(failed(&self.path))?;
        let mut writer = LocalFileWriter {
            aead: file_key(&self.key, &salt)?,
            id: LocalFileId(hex(&crypto::derive_id(
                "hikae v1 local file name",
                &[&salt],
            ))),
            folder: self.path.clone(),
            file: BufWriter::with_capacity(256 << 10, temporary),
            at: 0,
            table: Vec::new(),
        };
        writer.put(&MAGIC)?;
        writer.put(&salt)?;
        Ok(writer)
    }
}

fn file_key(key: &SecretKey, salt: &[u8; SALT_BYTES]) -> Result<AeadKey> {
    AeadKey::new(&crypto::derive("hikae v1 local file", &[key.bytes(), salt]))
}

fn nonce_of(frame: usize) -> Result<[u8; 12]> {
    let number = u32::try_from(frame)
        .ok()
        .filter(|_| frame < FRAMES_MAX)
        .ok_or_else(|| Error::new(ErrorKind::Local, "a local file has too many frames"))?;
    let mut nonce = [0; 12];
    for (to, from) in nonce.iter_mut().zip(number.to_le_bytes()) {
        *to = from;
    }
    Ok(nonce)
}

/// Where a frame lies.
#[derive(Debug, Clone, Copy)]
struct Row {
    offset: u64,
    sealed_bytes: u32,
    plain_bytes: u32,
}

/// Writes one file.
pub struct LocalFileWriter {
    aead: AeadKey,
    id: LocalFileId,
    folder: PathBuf,
    file: BufWriter<tempfile::NamedTempFile>,
    at: u64,
    table: Vec<Row>,
}

impl LocalFileWriter {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(failed(&self.folder))?;
        self.at = self
            .at
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn put_sealed(&mut self, nonce: [u8; 12], plain: &[u8]) -> Result<Row> {
        let too_long = || Error::new(ErrorKind::Local, "a frame of a local file is too long");
        if plain.len() > FRAME_BYTES_MAX {
            return Err(too_long());
        }
        let mut text = zstd::bulk::compress(plain, 3)
            .map_err(|source| Error::local("compressing a local file", source))?;
        let tag = self.aead.seal_in_place(nonce, &MAGIC, &mut text)?;
        text.extend_from_slice(&tag);
        let row = Row {
            offset: self.at,
            sealed_bytes: u32::try_from(text.len()).map_err(|_| too_long())?,
            plain_bytes: u32::try_from(plain.len()).map_err(|_| too_long())?,
        };
        self.put(&text)?;
        Ok(row)
    }

    /// Adds a frame of at most [`FRAME_BYTES_MAX`]; its number, from zero.
    ///
    /// # Errors
    /// [`ErrorKind::Local`].
    pub fn frame(&mut self, plain: &[u8]) -> Result<usize> {
        let number = self.table.len();
        let row = self.put_sealed(nonce_of(number)?, plain)?;
        self.table.push(row);
        Ok(number)
    }

    /// Makes the file visible under its name.
    ///
    /// # Errors
    /// [`ErrorKind::Local`].
    pub fn finish(mut self) -> Result<LocalFileId> {
        let mut table = Vec::with_capacity(self.table.len().saturating_mul(ROW_BYTES));
        for row in &self.table {
            table.extend_from_slice(&row.offset.to_le_bytes());
            table.extend_from_slice(&row.sealed_bytes.to_le_bytes());
            table.extend_from_slice(&row.plain_bytes.to_le_bytes());
        }
        let row = self.put_sealed(TABLE_NONCE, &table)?;
        self.put(&row.offset.to_le_bytes())?;
        self.put(&row.sealed_bytes.to_le_bytes())?;
        let folder = self.folder;
        let temporary = self
            .file
            .into_inner()
            .map_err(|error| failed(&folder)(error.into_error()))?;
        temporary.as_file().sync_all().map_err(failed(&folder))?;
        let path = folder.join(format!("{}{ENDING}", self.id.0));
        temporary
            .persist(&path)
            .map_err(|error| failed(&path)(error.error))?;
        Ok(self.id)
    }
}

/// Reads one file, frame by frame. It is opened for each, so that thousands of readers may stand side by side.
pub struct LocalFileReader {
    path: PathBuf,
    aead: AeadKey,
    table: Vec<Row>,
}

impl LocalFileReader {
    fn open(path: PathBuf, key: &SecretKey) -> Result<Self> {
        let size = fs::metadata(&path).map_err(failed(&path))?.len();
        let mut reader = Self {
            aead: file_key(key, &[0; SALT_BYTES])?,
            path,
            table: Vec::new(),
        };
        let mut head = [0; 8 + SALT_BYTES];
        reader.read_exact_at(&mut head, 0)?;
        let (magic, salt) = head.split_at(8);
        let salt: [u8; SALT_BYTES] = salt.try_into().unwrap_or([0; SALT_BYTES]);
        let mut footer = [0; 12];
        let footer_at = size.saturating_sub(FOOTER_BYTES);
        reader.read_exact_at(&mut footer, footer_at)?;
        let (offset, length) = footer.split_at(8);
        let offset = u64::from_le_bytes(offset.try_into().unwrap_or_default());
        let length = u32::from_le_bytes(length.try_into().unwrap_or_default());
        if magic != MAGIC || offset.checked_add(u64::from(length)) != Some(footer_at) {
            return Err(damaged(&reader.path, "cut short, or of another version"));
        }
        reader.aead = file_key(key, &salt)?;
        let most = FRAMES_MAX.saturating_mul(ROW_BYTES);
        let table = reader.unsealed(TABLE_NONCE, offset, length, most)?;
        for row in table.as_chunks::<ROW_BYTES>().0 {
            let (offset, lengths) = row.split_at(8);
            let (sealed, plain) = lengths.split_at(4);
            reader.table.push(Row {
                offset: u64::from_le_bytes(offset.try_into().unwrap_or_default()),
                sealed_bytes: u32::from_le_bytes(sealed.try_into().unwrap_or_default()),
                plain_bytes: u32::from_le_bytes(plain.try_into().unwrap_or_default()),
            });
        }
        Ok(reader)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut file = File::open(&self.path).map_err(failed(&self.path))?;
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.read_exact(buffer))
            .map_err(failed(&self.path))
    }

    fn unsealed(&self, nonce: [u8; 12], offset: u64, sealed: u32, most: usize) -> Result<Vec<u8>> {
        let size = fs::metadata(&self.path).map_err(failed(&self.path))?.len();
        let length = usize::try_from(sealed).unwrap_or(usize::MAX);
        let is_inside = offset
            .checked_add(u64::from(sealed))
            .is_some_and(|end| end <= size);
        if !is_inside || length < TAG_BYTES {
            return Err(damaged(&self.path, "a frame behind its end"));
        }
        let mut text = vec![0; length];
        self.read_exact_at(&mut text, offset)?;
        let opened = self.aead.open_in_place(nonce, &MAGIC, &mut text);
        let length = opened.ok_or_else(|| damaged(&self.path, "a frame is not authentic"))?;
        text.truncate(length);
        zstd::bulk::decompress(&text, most)
            .map_err(|source| Error::local(self.path.display().to_string(), source))
    }

    /// How many frames it has.
    pub fn frame_count(&self) -> usize {
        self.table.len()
    }

    /// A frame by its number.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] when there is none, or it is not what was written.
    pub fn frame(&self, number: usize) -> Result<Vec<u8>> {
        let row = self
            .table
            .get(number)
            .ok_or_else(|| damaged(&self.path, "it has no such frame"))?;
        let plain = usize::try_from(row.plain_bytes).unwrap_or(usize::MAX);
        if plain > FRAME_BYTES_MAX {
            return Err(damaged(&self.path, "a frame is too long"));
        }
        self.unsealed(nonce_of(number)?, row.offset, row.sealed_bytes, plain)
    }
}
