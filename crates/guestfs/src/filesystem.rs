//! What every reader of a file system offers, and the one model of a file that they share.
//!
//! ```text
//!   FileSystem ── root ──► FileId ──┬─ metadata ─► Metadata      kind, sizes, times, owner, attributes
//!                                   ├─ list ─────► DirectoryEntry (name, FileId, kind) in a stream, resumable
//!                                   ├─ streams ──► Stream         the contents, and others beside them
//!                                   ├─ open ─────► ReadAt         bytes; holes are extents of their own
//!                                   ├─ read_link, extended_attributes, security
//!              └── used_ranges ──► what of the volume is allocated
//! ```
//!
//! An implementer **must** give exactly the bytes and metadata that the file system's own driver would give after
//! replaying its journal, or a typed error; say in [`FileSystemFacts`] what it did not look at; list a directory of any
//! size in bounded memory. It **may rely on** nothing that it reads: every number comes from a stranger. It must
//! **never** panic, recurse without a bound, loop for ever, or allocate what a field of the disk says without a limit.

use std::fmt;
use std::ops::ControlFlow;

use block::ReadAt;

use crate::{Error, ErrorKind, Result};

/// A file while its file system is open: an inode number, an MFT reference, with the tree it counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// Which tree of files: a Btrfs subvolume; 0 where there is only one.
    pub tree: u64,
    /// Its number there.
    pub number: u64,
}

/// One component of a path, as bytes: what Unix file systems hold, and for UTF-16 ones their WTF-8 form, which is UTF-8
/// wherever the name is well-formed and still tells unpaired surrogates apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(Vec<u8>);

impl FileName {
    /// A name as a Unix file system holds it.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// A name as Windows holds it.
    pub fn from_utf16(units: impl IntoIterator<Item = u16>) -> Self {
        let units = units.into_iter();
        // Most names are of letters that take one byte.
        let mut bytes = Vec::with_capacity(units.size_hint().0);
        for decoded in char::decode_utf16(units) {
            match decoded {
                Ok(character) => {
                    bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Err(error) => {
                    let unit = u32::from(error.unpaired_surrogate());
                    // Three bytes, as UTF-8 would encode it if it were a character: WTF-8.
                    for byte in [
                        0xE0 | unit >> 12,
                        0x80 | (unit >> 6 & 0x3F),
                        0x80 | (unit & 0x3F),
                    ] {
                        bytes.push(u8::try_from(byte).unwrap_or(b'?'));
                    }
                }
            }
        }
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it can be a component of a path on the host: not empty, not `.` or `..`, without `/` and NUL.
    pub fn is_safe(&self) -> bool {
        !matches!(self.as_bytes(), b"" | b"." | b"..")
            && !self.0.iter().any(|byte| matches!(byte, 0 | b'/'))
    }
}

impl From<&str> for FileName {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Bytes.
    Regular,
    /// Names.
    Directory,
    /// A path to somewhere else: a Unix symbolic link, a Windows symbolic link or junction.
    SymbolicLink,
    /// A Windows reparse point that is no link and that this reader does not resolve; its tag.
    ReparsePoint(u32),
    /// A character device.
    CharacterDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// The number of a device file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// The device.
    pub minor: u32,
}

/// A moment: seconds since 1970-01-01 00:00 UTC (or in the volume's local time, see
/// [`FileSystemFacts::times_are_local`]) and nanoseconds on top, also before 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0..1_000_000_000.
    pub nanoseconds: u32,
}

/// When things happened to a file, as far as its file system keeps that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileTimes {
    /// Its birth.
    pub created: Option<Timestamp>,
    /// The last change of its bytes.
    pub modified: Option<Timestamp>,
    /// The last change of anything of it.
    pub changed: Option<Timestamp>,
    /// The last reading.
    pub accessed: Option<Timestamp>,
}

/// Owner and mode, where the file system keeps them as Unix does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnixOwner {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
    /// Permission bits with set-id and sticky bits (`0o7777`), without the kind.
    pub mode: u16,
}

/// What is known of a file besides its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Bytes of its contents; of a link's target; 0 for others.
    pub size_bytes: u64,
    /// Bytes that its contents take on the volume, as far as that is known without reading them all.
    pub allocated_bytes: u64,
    /// Names that it has.
    pub link_count: u32,
    /// Times.
    pub times: FileTimes,
    /// Owner and mode on Unix file systems.
    pub owner: Option<UnixOwner>,
    /// Attributes on FAT, exFAT and NTFS, as `FILE_ATTRIBUTE_*` of Windows.
    pub windows_attributes: Option<u32>,
    /// Why its contents cannot be read though it is whole, for instance EFS, deduplication, a placeholder of a cloud.
    pub obstacle: Option<String>,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name.
    pub name: FileName,
    /// Whose name it is.
    pub file: FileId,
    /// What that is, as far as the directory says so; the file's own metadata is the truth.
    pub kind: Option<FileKind>,
    /// Where a listing goes on behind this entry.
    pub next: DirectoryCursor,
}

/// A place in a directory, meaningful to the reader that gave it, for as long as the file system is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DirectoryCursor(pub u64);

/// Bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// The name of an alternate data stream; `None` for the contents.
    pub name: Option<FileName>,
    /// How many.
    pub size_bytes: u64,
}

/// A named value of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtendedAttribute {
    /// With its name space as Linux writes it: `user.comment`, `security.selinux`, `system.posix_acl_access`.
    pub name: FileName,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// A Windows security descriptor in its self-relative form (MS-DTYP 2.4.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityDescriptor(pub Vec<u8>);

/// Whether a file system was shut down properly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cleanliness {
    /// Unmounted, or its journal is empty.
    Clean,
    /// Its journal was replayed in memory: what is read is what a mount would show.
    Replayed,
    /// It was not, or not fully; why, and what that may mean.
    Dirty(String),
}

/// Kinds of file systems that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileSystemKind {
    /// NTFS.
    Ntfs,
    /// The second extended file system.
    Ext2,
    /// With a journal.
    Ext3,
    /// With extents.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT with 12 bits.
    Fat12,
    /// FAT with 16 bits.
    Fat16,
    /// FAT with 32 bits.
    Fat32,
    /// exFAT.
    ExFat,
}

impl FileSystemKind {
    /// Its usual name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ntfs => "ntfs",
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Fat12 => "fat12",
            Self::Fat16 => "fat16",
            Self::Fat32 => "fat32",
            Self::ExFat => "exfat",
        }
    }
}

/// What is known of a file system as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystemFacts {
    /// What it is.
    pub kind: FileSystemKind,
    /// Version or revision, where it has one: `3.1` of NTFS.
    pub version: Option<String>,
    /// Its label.
    pub label: Option<String>,
    /// Its id as its own tools write it: a UUID, or the serial number of NTFS and FAT.
    pub id: Option<String>,
    /// Bytes that it covers.
    pub size_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Bytes of a cluster or block.
    pub cluster_bytes: u32,
    /// Whether it was shut down properly.
    pub cleanliness: Cleanliness,
    /// Times are of an unknown time zone (FAT).
    pub times_are_local: bool,
    /// Whether names that differ in case only are the same.
    pub is_case_insensitive: bool,
}

/// A run of bytes of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length_bytes: u64,
}

/// A file system opened for reading. Any thread may use it at once.
pub trait FileSystem: Send + Sync {
    /// What it is.
    fn facts(&self) -> &FileSystemFacts;

    /// What a person who looks for files should know besides: subvolumes that the root does not lead to.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Its root directory.
    fn root(&self) -> FileId;

    /// What is known of a file.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an id that is not in use, [`ErrorKind::Corrupt`].
    fn metadata(&self, file: FileId) -> Result<Metadata>;

    /// Tells the names of a directory behind `after` (from the beginning: the default) until told to stop. `.` and `..`
    /// are not told. No order is promised, but it is the same every time.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is no directory; [`ErrorKind::Corrupt`] after telling what could be read.
    fn list(
        &self,
        directory: FileId,
        after: DirectoryCursor,
        visit: &mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>,
    ) -> Result<()>;

    /// Whose name this is, found as the file system finds it: by its rules of case.
    ///
    /// # Errors
    /// As [`Self::list`].
    fn find(&self, directory: FileId, name: &FileName) -> Result<Option<FileId>> {
        let mut found = None;
        self.list(directory, DirectoryCursor::default(), &mut |entry| {
            if entry.name == *name {
                found = Some(entry.file);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// The streams of a file: its contents first, then the others. A directory may have some, too.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    fn streams(&self, file: FileId) -> Result<Vec<Stream>> {
        let metadata = self.metadata(file)?;
        Ok(match metadata.kind {
            FileKind::Regular => vec![Stream {
                name: None,
                size_bytes: metadata.size_bytes,
            }],
            _ => Vec::new(),
        })
    }

    /// The bytes of a stream. Holes are extents of kind `Unallocated`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without such a stream, [`ErrorKind::Unsupported`] with the obstacle named.
    fn open(&self, file: FileId, stream: Option<&FileName>) -> Result<Box<dyn ReadAt + '_>>;

    /// Where a link leads, as it stands there.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is no link.
    fn read_link(&self, file: FileId) -> Result<FileName>;

    /// Named values of a file.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    fn extended_attributes(&self, file: FileId) -> Result<Vec<ExtendedAttribute>> {
        let _ = file;
        Ok(Vec::new())
    }

    /// Who may do what with it, on file systems of Windows.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    fn security(&self, file: FileId) -> Result<Option<SecurityDescriptor>> {
        let _ = file;
        Ok(None)
    }

    /// Tells what of the volume is in use, in ascending order and without overlaps, until told to stop. Everything else
    /// may read as anything without any file changing.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when that cannot be told soundly (a journal that was not replayed).
    fn used_ranges(&self, visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>) -> Result<()>;

    /// Where the bytes of a file's contents lie on the volume; empty for what lies in metadata or nowhere. Of a directory:
    /// all that its listing is read from besides its own record; nothing, or an error, where that cannot be told.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`]; [`ErrorKind::Unsupported`] where contents are not plain runs (compressed).
    fn file_ranges(
        &self,
        file: FileId,
        visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
    ) -> Result<()> {
        let _ = (file, visit);
        Err(Error::new(
            ErrorKind::Unsupported,
            "this reader does not tell where files lie",
        ))
    }
}
