//! NTFS, every version from 1.2 to 3.1, read-only.
//!
//! ```text
//!  boot sector ─► file table ─► file = attributes ─┬─ $STANDARD_INFORMATION   times, attributes, security id
//!                                                  ├─ $FILE_NAME              names
//!                                                  ├─ $DATA [name]            contents and streams: resident, runs, LZNT1
//!                                                  ├─ $INDEX_ROOT, …          a directory's B-tree
//!                                                  ├─ $REPARSE_POINT          links, WOF, things that lie elsewhere
//!                                                  └─ $EA
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `boot`, `table`, `record`, `runs` | from the boot sector to a file with all its attributes |
//! | `stream`, `lznt1`, `wof`, `xpress`, `lzx`, `huffman` | bytes of a stream, compressed ones unpacked |
//! | `index`, `names`, `upcase` | directories: listed in the order of their blocks, looked up by descent |
//! | `inspect`, `reparse`, `security` | what belongs to a file |
//! | `space` | the volume as a whole |
//! | `journal`, `overlay` | what was written to the journal and not yet to its place |
//!
//! **Invariants.** As [`crate::filesystem`] asks. Names of DOS (8.3) beside a long name are found but not listed; the files of
//! the file system itself (`$MFT` and others below number 16) likewise.
//!
//! The journal of a volume that was in use is replayed in memory ([`Cleanliness::Replayed`]), as a mount by Windows would; where that
//! cannot be done in full, nothing is, files are read as they stand, and no used ranges are told.
//!
//! **Not done.** Files of EFS, of Windows data deduplication and of clouds are named as such and refused. The change journal and
//! shadow copies are files and streams like any other.
//!
//! Sources: \[MS-FSCC\], \[MS-XCA\], the Linux-NTFS project's documentation of the format.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

mod arithmetic;
mod boot;
mod cache;
mod device;
mod huffman;
mod index;
mod inspect;
mod journal;
mod lznt1;
mod lzx;
mod names;
mod overlay;
mod record;
mod reparse;
mod runs;
mod security;
mod space;
mod stream;
mod table;
mod upcase;
mod wof;
mod xpress;

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use block::{Extent, ReadAt};

use self::arithmetic::multiply;
use self::boot::{BootOrigin, BootSector};
use self::device::Device;
use self::index::Index;
use self::inspect::Nature;
use self::journal::{Journal, Replayed};
use self::names::NameEntry;
use self::record::{DATA, VOLUME_INFORMATION, VOLUME_NAME, utf16};
use self::reparse::Reparse;
use self::stream::AttributeReader;
use self::table::{File, FileTable};
use self::upcase::{NameMatch, UpperCase};
use self::wof::WofReader;
use crate::filesystem::{
    Cleanliness, DirectoryCursor, DirectoryEntry, ExtendedAttribute, FileSystemFacts,
    FileSystemKind, Metadata, SecurityDescriptor, Stream, VolumeRange,
};
use crate::{Error, ErrorKind, FileId, FileName, FileSystem, Result, field};

const VOLUME_RECORD: u64 = 3;
const ROOT_RECORD: u64 = 5;
const IS_DIRTY: u16 = 1;
const DIRECTORY_INDEX: [u16; 4] = [0x24, 0x49, 0x33, 0x30];
const WOF_STREAM: &str = "WofCompressedData";

/// An NTFS volume.
pub struct NtfsFileSystem {
    table: FileTable,
    boot: BootSector,
    origin: BootOrigin,
    upper_case: UpperCase,
    root: FileId,
    journal: JournalState,
    facts: OnceLock<FileSystemFacts>,
    /// The runs of the bitmap that the facts counted, when they are few.
    used: OnceLock<space::UsedRuns>,
}

/// How what is read came through the journal.
enum JournalState {
    Closed,
    Replayed {
        /// The volume as it stands, for what lies there before Windows replays the journal itself.
        before: Box<FileTable>,
        records: Vec<u64>,
        places: space::UsedRuns,
    },
    Pending(String),
}

/// Opens the NTFS on a volume. Reads the boot sector and a few file records, and replays the journal of a volume that was in use,
/// in memory; [`FileSystem::facts`] reads the bitmap when it is asked for the first time.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when this is no NTFS, or neither boot sector, file table nor their copies can be read.
pub fn open(volume: Arc<dyn ReadAt>) -> Result<NtfsFileSystem> {
    let (boot, origin) = BootSector::read(volume.as_ref())?;
    let table = FileTable::open(&Arc::new(Device::new(Arc::clone(&volume))), &boot)?;
    let (table, journal) = match journal::open(&volume, &table, &boot) {
        Journal::Closed => (table, JournalState::Closed),
        Journal::Pending(reason) => (table, JournalState::Pending(reason)),
        Journal::Replayed(replayed) => {
            let Replayed {
                table: replayed,
                records,
                places,
            } = *replayed;
            let before = Box::new(table);
            (
                replayed,
                JournalState::Replayed {
                    before,
                    records,
                    places,
                },
            )
        }
    };
    let root = table
        .file(ROOT_RECORD)
        .map_err(|error| error.within("root directory"))?;
    if !root.is_directory {
        return Err(Error::corrupt("the root is no directory"));
    }
    Ok(NtfsFileSystem {
        table,
        boot,
        origin,
        upper_case: UpperCase::new(),
        root: root.id(),
        journal,
        facts: OnceLock::new(),
        used: OnceLock::new(),
    })
}

impl NtfsFileSystem {
    fn file(&self, id: FileId) -> Result<Arc<File>> {
        if id.tree != 0 {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("NTFS has no tree {}", id.tree),
            ));
        }
        self.table.file(id.number)
    }

    fn directory(&self, id: FileId) -> Result<Arc<File>> {
        let file = self.file(id)?;
        // What stands for another place has no names of its own.
        let is_directory =
            file.is_directory && matches!(inspect::nature(&self.table, &file)?, Nature::Plain);
        if !is_directory {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("file record {} is no directory", file.number),
            ));
        }
        Ok(file)
    }

    fn read_facts(&self) -> FileSystemFacts {
        let volume = self.table.file(VOLUME_RECORD);
        let mut trouble = Vec::new();
        let (mut version, mut label) = (None, None);
        match volume.as_deref() {
            Ok(file) => {
                label = file
                    .resident(VOLUME_NAME)
                    .map(|name| FileName::from_utf16(utf16(name)).to_string())
                    .filter(|label| !label.is_empty());
                match volume_information(file) {
                    Ok((text, flags)) => {
                        version = Some(text);
                        if flags & IS_DIRTY != 0 {
                            trouble.push("it is marked dirty: chkdsk was to run".to_owned());
                        }
                    }
                    Err(error) => trouble.push(format!("$Volume cannot be read: {error}")),
                }
            }
            Err(error) => trouble.push(format!("$Volume cannot be read: {error}")),
        }
        if let JournalState::Pending(reason) = &self.journal {
            trouble.push(reason.clone());
        }
        match self.is_hibernated() {
            Ok(false) => {}
            Ok(true) => trouble.push(
                "Windows hibernates (or was shut down with fast startup) and holds changes in hiberfil.sys".to_owned(),
            ),
            Err(error) => trouble.push(format!("hiberfil.sys cannot be read: {error}")),
        }
        if self.origin == BootOrigin::Backup {
            trouble.push("its boot sector is damaged; the copy of it answered".to_owned());
        }
        let free_bytes = match space::count(&self.table) {
            Ok((free_bytes, runs)) => {
                if let Some(runs) = runs {
                    self.used.get_or_init(|| runs);
                }
                free_bytes
            }
            Err(error) => {
                trouble.push(format!("$Bitmap cannot be read: {error}"));
                0
            }
        };
        FileSystemFacts {
            kind: FileSystemKind::Ntfs,
            version,
            label,
            id: Some(format!("{:016X}", self.boot.serial)),
            size_bytes: self.boot.size_bytes(),
            free_bytes,
            cluster_bytes: u32::try_from(self.boot.cluster_bytes).unwrap_or(u32::MAX),
            cleanliness: match &self.journal {
                _ if !trouble.is_empty() => Cleanliness::Dirty(trouble.join("; ")),
                JournalState::Replayed { .. } => Cleanliness::Replayed,
                _ => Cleanliness::Clean,
            },
            times_are_local: false,
            is_case_insensitive: true,
        }
    }

    fn is_hibernated(&self) -> Result<bool> {
        let Some(id) = self.find(self.root, &FileName::from("hiberfil.sys"))? else {
            return Ok(false);
        };
        let file = self.file(id)?;
        if file.is_directory || file.parts(DATA, &[]).is_empty() {
            return Ok(false);
        }
        let reader = self.table.reader(&file, DATA, &[])?;
        let mut magic = [0; 4];
        if reader.size_bytes() < field::bytes(magic.len()) {
            return Ok(false);
        }
        reader.read(0, &mut magic)?;
        Ok(magic.eq_ignore_ascii_case(b"hibr"))
    }

    /// The contents of a file, unpacked where Windows would.
    fn contents(&self, file: &File) -> Result<NtfsStream> {
        let refuse = |reason: &str| Err(Error::unsupported(reason.to_owned()));
        let invalid = |reason: &str| {
            Err(Error::new(
                ErrorKind::Invalid,
                format!("file record {} is {reason}", file.number),
            ))
        };
        let algorithm = match inspect::nature(&self.table, file)? {
            Nature::Plain if file.is_directory => return invalid("a directory"),
            Nature::Plain => None,
            Nature::Link(_) => return invalid("a link"),
            Nature::Special(_) => return invalid("a device, a pipe or a socket"),
            Nature::Reparse(Reparse::Elsewhere { reason, .. }) => return refuse(&reason),
            Nature::Reparse(Reparse::Wof(algorithm)) => Some(algorithm),
            Nature::Reparse(_) => None,
        };
        if inspect::contents(file).is_some_and(|part| part.is_encrypted()) {
            return refuse(inspect::ENCRYPTED);
        }
        let Some(algorithm) = algorithm else {
            return Ok(NtfsStream::Attribute(self.table.reader(file, DATA, &[])?));
        };
        let size = inspect::contents(file).map_or(0, |part| part.size_bytes());
        let name: Vec<u16> = WOF_STREAM.encode_utf16().collect();
        let packed = self
            .table
            .reader(file, DATA, &name)
            .map_err(|error| Error::corrupt(error.to_string()))?;
        Ok(NtfsStream::Wof(WofReader::open(packed, algorithm, size)))
    }
}

fn volume_information(file: &File) -> Result<(String, u16)> {
    let bytes = file
        .resident(VOLUME_INFORMATION)
        .ok_or_else(|| Error::corrupt("no volume information"))?;
    let major = field::u8_at(bytes, 8)?;
    let minor = field::u8_at(bytes, 9)?;
    Ok((format!("{major}.{minor}"), field::u16_le(bytes, 10)?))
}

impl FileSystem for NtfsFileSystem {
    fn facts(&self) -> &FileSystemFacts {
        self.facts.get_or_init(|| self.read_facts())
    }

    fn root(&self) -> FileId {
        self.root
    }

    fn metadata(&self, file: FileId) -> Result<Metadata> {
        inspect::metadata(&self.table, &*self.file(file)?)
    }

    fn list(
        &self,
        directory: FileId,
        after: DirectoryCursor,
        visit: &mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        let file = self.directory(directory)?;
        let index = Index::open(&self.table, &file, &DIRECTORY_INDEX)?;
        index.list(after.0, &mut |entry, next| {
            let name = NameEntry::parse(entry.bytes, entry.key)
                .map_err(|error| error.within(format!("directory {}", file.number)))?;
            if !name.is_shown() {
                return Ok(ControlFlow::Continue(()));
            }
            Ok(visit(DirectoryEntry {
                kind: name.kind(),
                file: FileId {
                    tree: 0,
                    number: name.reference,
                },
                name: name.file_name(),
                next: DirectoryCursor(next),
            }))
        })
    }

    fn find(&self, directory: FileId, name: &FileName) -> Result<Option<FileId>> {
        let file = self.directory(directory)?;
        let Some(wanted) = names::encode(name).filter(|_| name.is_safe()) else {
            return Ok(None);
        };
        let index = Index::open(&self.table, &file, &DIRECTORY_INDEX)?;
        let mut without_case = None;
        let exact = index.descend(&mut |entry| {
            let found = NameEntry::parse(entry.bytes, entry.key)?;
            let (order, same) = self
                .upper_case
                .compare(&self.table, &wanted, &found.units())?;
            if same == NameMatch::WithoutCase {
                without_case.get_or_insert(found.reference);
            }
            Ok(order)
        })?;
        let number = match exact {
            Some(entry) => Some(field::u64_le(&entry, 0)?),
            None => without_case,
        };
        Ok(number.map(|number| FileId { tree: 0, number }))
    }

    fn streams(&self, file: FileId) -> Result<Vec<Stream>> {
        inspect::streams(&self.table, &*self.file(file)?)
    }

    fn open(&self, file: FileId, stream: Option<&FileName>) -> Result<Box<dyn ReadAt + '_>> {
        let file = self.file(file)?;
        let Some(name) = stream else {
            return Ok(Box::new(self.contents(&file)?));
        };
        let name = names::encode(name).unwrap_or_default();
        let parts = file.parts(DATA, &name);
        match parts.first() {
            Some(part) if part.is_encrypted() => Err(Error::unsupported(inspect::ENCRYPTED)),
            Some(_) if !name.is_empty() => Ok(Box::new(NtfsStream::Attribute(
                self.table.reader(&file, DATA, &name)?,
            ))),
            _ => Err(Error::new(
                ErrorKind::NotFound,
                format!("file record {} has no such stream", file.number),
            )),
        }
    }

    fn read_link(&self, file: FileId) -> Result<FileName> {
        let file = self.file(file)?;
        match inspect::nature(&self.table, &file)? {
            Nature::Link(target) => Ok(target),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("file record {} is no link", file.number),
            )),
        }
    }

    fn extended_attributes(&self, file: FileId) -> Result<Vec<ExtendedAttribute>> {
        inspect::extended_attributes(&self.table, &*self.file(file)?)
    }

    fn security(&self, file: FileId) -> Result<Option<SecurityDescriptor>> {
        security::read(&self.table, &*self.file(file)?)
    }

    fn used_ranges(&self, visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>) -> Result<()> {
        if let Cleanliness::Dirty(reason) = &self.facts().cleanliness {
            return Err(Error::unsupported(format!(
                "what is in use cannot be told of this NTFS: {reason}"
            )));
        }
        let JournalState::Replayed {
            before,
            records,
            places,
        } = &self.journal
        else {
            if let Some(runs) = self.used.get() {
                return space::known_ranges(&self.table, runs, visit);
            }
            return space::used_ranges(&[&self.table], &[], visit);
        };
        let tables = [&self.table, before.as_ref()];
        let others = space::clusters_of_replay(&tables, records, places)?;
        space::used_ranges(&tables, &others, visit)
    }

    fn file_ranges(
        &self,
        file: FileId,
        visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
    ) -> Result<()> {
        let file = self.file(file)?;
        let NtfsStream::Attribute(contents) = self.contents(&file)? else {
            return Err(Error::unsupported(
                "a compressed file has no bytes that lie anywhere as they are",
            ));
        };
        let cluster_bytes = self.boot.cluster_bytes;
        for run in contents.plain_runs()?.map_or(&[][..], |runs| runs.runs()) {
            let Some(place) = run.place else { continue };
            let range = VolumeRange {
                offset: multiply(place, cluster_bytes)?,
                length_bytes: multiply(run.clusters, cluster_bytes)?,
            };
            if visit(range).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Contents or a stream, opened.
enum NtfsStream {
    Attribute(AttributeReader),
    Wof(WofReader),
}

impl ReadAt for NtfsStream {
    fn size_bytes(&self) -> u64 {
        match self {
            Self::Attribute(reader) => reader.size_bytes(),
            Self::Wof(reader) => reader.size_bytes(),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let end = offset.checked_add(field::bytes(buffer.len()));
        if end.is_none_or(|end| end > self.size_bytes()) {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!(
                    "{} bytes at {offset} of a file of {}",
                    buffer.len(),
                    self.size_bytes()
                ),
            ));
        }
        Ok(match self {
            Self::Attribute(reader) => reader.read(offset, buffer),
            Self::Wof(reader) => reader.read(offset, buffer),
        }?)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        match self {
            Self::Attribute(reader) => Ok(reader.extent(offset, limit_bytes)?),
            Self::Wof(reader) => {
                let left = reader.size_bytes().saturating_sub(offset).min(limit_bytes);
                if left == 0 {
                    return Err(block::Error::new(
                        block::ErrorKind::OutOfRange,
                        format!("extent at {offset} of {}", reader.size_bytes()),
                    ));
                }
                Ok(Extent {
                    offset,
                    length_bytes: left,
                    kind: block::ExtentKind::Data,
                })
            }
        }
    }
}
