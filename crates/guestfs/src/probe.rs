//! What lies in a volume, told from its first sectors (and, for old RAID controllers, its last).
//!
//! ```text
//!   volume ─► members of sets ─► encryption ─► file systems ─► others    the first that fits is told
//! ```
//!
//! Members of sets come first, since a mirror's member looks like the file system in the mirror. Labels and ids are told
//! where they lie at a fixed place or one step away. Which file systems are *read* is [`FileSystemKind`]'s matter: here
//! everything else is named, too, so that a person is told "BitLocker" and not "unknown".
//!
//! **Not done.** Nothing is opened or believed: a signature says what a volume claims to be.
//!
//! Sources: the formats' own documentation; util-linux `libblkid` for what is met in practice.

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

mod fat;
mod members;
mod others;
mod windows;

use block::ReadAt;

use crate::filesystem::FileSystemKind;
use crate::partition::{Guid, PartitionType};
use crate::volume::pieces::read_head;
use crate::{Result, field};

/// How much of the beginning is looked at: all fixed places but a few lie in it.
const HEAD_BYTES: usize = 72 * 1024;

/// How a volume is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encryption {
    /// BitLocker of Windows.
    BitLocker,
    /// LUKS version 1 of Linux.
    Luks1,
    /// LUKS version 2 of Linux.
    Luks2,
}

/// What a volume is a member of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Membership {
    /// A volume group of LVM2.
    Lvm,
    /// A set of MD.
    Md,
    /// A pool of Storage Spaces of Windows, which nothing outside Windows reads.
    StorageSpaces,
    /// A dynamic disk group of Windows.
    Ldm,
    /// A pool of ZFS.
    Zfs,
    /// A cache of Linux before or behind a disk.
    Bcache,
    /// A Btrfs on several devices.
    Btrfs,
    /// A set of a RAID controller; its name as `blkid` writes it.
    Controller(&'static str),
}

/// What a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ContentKind {
    /// A file system that this crate reads.
    FileSystem(FileSystemKind),
    /// Another one; its name as `blkid` writes it.
    OtherFileSystem(&'static str),
    /// Encrypted.
    Encrypted(Encryption),
    /// A member of something.
    Member(Membership),
    /// Swap space of Linux.
    Swap,
    /// Swap space that holds a sleeping system.
    Hibernation,
    /// Reserved by Windows; holds nothing.
    Reserved,
    /// Something else that is known by name.
    Other(&'static str),
    /// Zeros where signatures lie.
    Empty,
    /// Nothing known.
    Unknown,
}

impl ContentKind {
    /// Its name, as `blkid` writes it where that knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::FileSystem(kind) => kind.name(),
            Self::OtherFileSystem(name) | Self::Other(name) => name,
            Self::Encrypted(Encryption::BitLocker) => "BitLocker",
            Self::Encrypted(Encryption::Luks1 | Encryption::Luks2) => "crypto_LUKS",
            Self::Member(Membership::Lvm) => "LVM2_member",
            Self::Member(Membership::Md) => "linux_raid_member",
            Self::Member(Membership::StorageSpaces) => "storage_spaces",
            Self::Member(Membership::Ldm) => "ldm_member",
            Self::Member(Membership::Zfs) => "zfs_member",
            Self::Member(Membership::Bcache) => "bcache",
            Self::Member(Membership::Btrfs) => "btrfs",
            Self::Member(Membership::Controller(name)) => name,
            Self::Swap => "swap",
            Self::Hibernation => "swsuspend",
            Self::Reserved => "reserved",
            Self::Empty => "empty",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it is part of something larger.
    pub fn is_member(self) -> bool {
        matches!(self, Self::Member(_))
    }
}

/// What lies in a volume, as far as its first sectors tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// What it is.
    pub kind: ContentKind,
    /// Its label.
    pub label: Option<String>,
    /// Its id, as its own tools write it.
    pub id: Option<String>,
    /// Version of its format.
    pub version: Option<String>,
    /// How it is encrypted: "aes-xts-plain64".
    pub cipher: Option<String>,
}

impl Content {
    /// Of this kind, and nothing more is known.
    pub fn of(kind: ContentKind) -> Self {
        Self {
            kind,
            label: None,
            id: None,
            version: None,
            cipher: None,
        }
    }

    /// Nothing known.
    pub fn unknown() -> Self {
        Self::of(ContentKind::Unknown)
    }

    fn label(mut self, label: impl Into<String>) -> Self {
        let label = label.into();
        self.label = (!label.is_empty()).then_some(label);
        self
    }

    fn id(mut self, id: impl std::fmt::Display) -> Self {
        let id = id.to_string();
        self.id = (!id.is_empty()).then_some(id);
        self
    }

    fn version(mut self, version: impl std::fmt::Display) -> Self {
        self.version = Some(version.to_string());
        self
    }

    /// What the type of a partition says by itself, for what has no signature.
    pub fn of_partition(kind: PartitionType) -> Option<Self> {
        let kind = match kind {
            PartitionType::Mbr(0x42) => ContentKind::Member(Membership::Ldm),
            PartitionType::Gpt(Guid::LDM_DATA | Guid::LDM_METADATA) => {
                ContentKind::Member(Membership::Ldm)
            }
            PartitionType::Gpt(Guid::STORAGE_SPACES) | PartitionType::Mbr(0xE7) => {
                ContentKind::Member(Membership::StorageSpaces)
            }
            PartitionType::Gpt(Guid::MICROSOFT_RESERVED) => ContentKind::Reserved,
            _ => return None,
        };
        Some(Self::of(kind))
    }
}

/// The beginning of a volume, and the volume.
struct Head<'a> {
    volume: &'a dyn ReadAt,
    bytes: Vec<u8>,
}

impl Head<'_> {
    fn has(&self, offset: usize, magic: &[u8]) -> bool {
        field::slice(&self.bytes, offset, magic.len()).is_ok_and(|found| found == magic)
    }

    fn part(&self, offset: usize, length: usize) -> Result<&[u8]> {
        field::slice(&self.bytes, offset, length)
    }

    /// Text that ends with a zero or with its field, without blanks behind it.
    fn text(&self, offset: usize, length: usize) -> Result<String> {
        Ok(text(self.part(offset, length)?))
    }

    fn guid(&self, offset: usize) -> Result<String> {
        let guid = Guid::from_plain(&self.bytes, offset)?;
        Ok(if guid.is_nil() {
            String::new()
        } else {
            guid.to_string()
        })
    }

    /// Bytes from elsewhere in the volume, zeros behind its end.
    fn far(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        read_head(self.volume, offset, length)
    }

    fn size(&self) -> u64 {
        self.volume.size_bytes()
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    let bytes = bytes.get(..end).unwrap_or_default();
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// Text in UTF-16 that ends with a zero or with its field.
fn text_utf16(bytes: &[u8], number: fn([u8; 2]) -> u16) -> String {
    let units = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| number(*pair))
        .take_while(|unit| *unit != 0);
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect::<String>()
        .trim_end()
        .to_owned()
}

/// Tells what lies in a volume, also where only a copy of what tells it is left: an ext of which the beginning is damaged.
///
/// Opened, such a file system says that it is damaged. A whole disk with a partition table is not to be asked this way: a
/// copy may be left from before it had one.
///
/// # Errors
/// As [`probe`].
pub fn probe_with_copies(volume: &dyn ReadAt) -> Result<Content> {
    let content = probe(volume)?;
    if !matches!(content.kind, ContentKind::Unknown | ContentKind::Empty) {
        return Ok(content);
    }
    let Some(copy) = crate::ext::superblock_copy(volume)? else {
        return Ok(content);
    };
    let mut bytes = vec![0; 1024];
    bytes.extend(copy);
    ext(&Head { volume, bytes })
}

/// Tells what lies in a volume.
///
/// # Errors
/// [`crate::ErrorKind::Io`] and [`crate::ErrorKind::NotFound`] when it cannot be read.
pub fn probe(volume: &dyn ReadAt) -> Result<Content> {
    let bytes = read_head(volume, 0, HEAD_BYTES)?;
    let head = Head { volume, bytes };
    for look in [
        members::look,
        windows::look,
        linux_look,
        fat::look,
        others::look,
        members::luks_copy,
    ] {
        match look(&head) {
            Ok(Some(content)) => return Ok(content),
            Ok(None) => {}
            Err(error) if error.kind() == crate::ErrorKind::Corrupt => {}
            Err(error) => return Err(error),
        }
    }
    if head.bytes.iter().all(|byte| *byte == 0) {
        return Ok(Content::of(ContentKind::Empty));
    }
    Ok(Content::unknown())
}

fn linux_look(head: &Head<'_>) -> Result<Option<Content>> {
    let of = |kind| Content::of(ContentKind::FileSystem(kind));
    if head.has(65_536 + 64, b"_BHRfS_M") {
        return Ok(Some(
            of(FileSystemKind::Btrfs)
                .id(head.guid(65_536 + 32)?)
                .label(head.text(65_536 + 299, 256)?),
        ));
    }
    if head.has(0, b"XFSB") {
        return Ok(Some(
            of(FileSystemKind::Xfs)
                .id(head.guid(32)?)
                .label(head.text(108, 12)?),
        ));
    }
    if head.has(1024 + 56, &[0x53, 0xEF]) && field::u32_le(&head.bytes, 1024)? != 0 {
        return ext(head).map(Some);
    }
    swap(head)
}

fn ext(head: &Head<'_>) -> Result<Content> {
    let at = |offset: usize| field::u32_le(&head.bytes, offset.saturating_add(1024));
    let (compatible, incompatible, read_only) = (at(92)?, at(96)?, at(100)?);
    let kind = if incompatible & 0x8 != 0 {
        ContentKind::Other("jbd")
    } else if incompatible & !0x16 != 0 || read_only & !0x7 != 0 {
        ContentKind::FileSystem(FileSystemKind::Ext4)
    } else if compatible & 0x4 != 0 {
        ContentKind::FileSystem(FileSystemKind::Ext3)
    } else {
        ContentKind::FileSystem(FileSystemKind::Ext2)
    };
    let (major, minor) = (at(76)?, field::u16_le(&head.bytes, 1024 + 62)?);
    Ok(Content::of(kind)
        .version(format_args!("{major}.{minor}"))
        .id(head.guid(1024 + 104)?)
        .label(head.text(1024 + 120, 16)?))
}

fn swap(head: &Head<'_>) -> Result<Option<Content>> {
    // TuxOnIce writes over the beginning and leaves the signature of swap space where it is.
    let is_tux = head.has(0, &[0xED, 0xC3, 0x02, 0xE9, 0x98, 0x56, 0xE5, 0x0C]);
    for page in [4096_usize, 8192, 16_384, 32_768, 65_536] {
        let at = page.saturating_sub(10);
        let is_old = head.has(at, b"SWAP-SPACE");
        let is_asleep = [&b"S1SUSPEND"[..], b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"]
            .iter()
            .any(|magic| head.has(at, magic));
        if !is_old && !is_asleep && !head.has(at, b"SWAPSPACE2") {
            continue;
        }
        let kind = if is_tux || is_asleep {
            ContentKind::Hibernation
        } else {
            ContentKind::Swap
        };
        let content = Content::of(kind).version(u8::from(!is_old));
        return Ok(Some(if is_old {
            content
        } else {
            content
                .id(head.guid(1024 + 12)?)
                .label(head.text(1024 + 28, 16)?)
        }));
    }
    Ok(is_tux.then(|| Content::of(ContentKind::Hibernation)))
}
