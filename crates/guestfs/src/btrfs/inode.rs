//! Inodes, and the names that lead to them.
//!
//! ```text
//!   inode item (160)   generation·8 transaction·8 size·8 bytes·8 group·8 links·4 user·4 group·4 mode·4 device·8 flags·8 …
//!                      112 accessed  124 changed  136 modified  148 created      each seconds·8 nanoseconds·4
//!   name item          location key·17 transaction·8 value-length·2 name-length·2 kind·1 name value
//! ```

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

use super::tree::Key;
use crate::filesystem::{DeviceNumber, FileKind, Timestamp};
use crate::{Error, Result, field};

/// Longest name of a file, and of an attribute.
const MAX_NAME_BYTES: usize = 255;
const NO_SUMS: u64 = 1;

/// What an inode item says.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) size: u64,
    /// Bytes of extents.
    pub(super) bytes: u64,
    pub(super) links: u32,
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) mode: u32,
    device: u64,
    flags: u64,
    times: [Timestamp; 4],
}

/// Which time of an inode.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moment {
    Accessed,
    Changed,
    Modified,
    Created,
}

impl Inode {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let time = |at: usize| -> Result<Timestamp> {
            Ok(Timestamp {
                seconds: field::i64_le(bytes, at)?,
                nanoseconds: field::u32_le(bytes, at.saturating_add(8))?.min(999_999_999),
            })
        };
        Ok(Self {
            size: field::u64_le(bytes, 16)?,
            bytes: field::u64_le(bytes, 24)?,
            links: field::u32_le(bytes, 40)?,
            user: field::u32_le(bytes, 44)?,
            group: field::u32_le(bytes, 48)?,
            mode: field::u32_le(bytes, 52)?,
            device: field::u64_le(bytes, 56)?,
            flags: field::u64_le(bytes, 64)?,
            times: [time(112)?, time(124)?, time(136)?, time(148)?],
        })
    }

    pub(super) fn kind(&self) -> Result<FileKind> {
        let number = |word: u64| u32::try_from(word).unwrap_or(u32::MAX);
        let device = DeviceNumber {
            major: number(self.device >> 20),
            minor: number(self.device & 0xF_FFFF),
        };
        Ok(match self.mode & 0xF000 {
            0x1000 => FileKind::Fifo,
            0x2000 => FileKind::CharacterDevice(device),
            0x4000 => FileKind::Directory,
            0x6000 => FileKind::BlockDevice(device),
            0x8000 => FileKind::Regular,
            0xA000 => FileKind::SymbolicLink,
            0xC000 => FileKind::Socket,
            other => return Err(Error::corrupt(format!("an inode of kind {other:#x}"))),
        })
    }

    pub(super) fn has_sums(&self) -> bool {
        self.flags & NO_SUMS == 0
    }

    /// A time; the birth of files that are older than its record is not known.
    pub(super) fn time(&self, moment: Moment) -> Option<Timestamp> {
        let time = match moment {
            Moment::Accessed => self.times.first(),
            Moment::Changed => self.times.get(1),
            Moment::Modified => self.times.get(2),
            Moment::Created => self
                .times
                .get(3)
                .filter(|time| time.seconds != 0 || time.nanoseconds != 0),
        };
        time.copied()
    }
}

/// A name of a directory, or an attribute of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct NameItem<'b> {
    pub(super) location: Key,
    pub(super) kind: u8,
    pub(super) name: &'b [u8],
    pub(super) value: &'b [u8],
    /// The whole of it, as it lies there.
    pub(super) raw: &'b [u8],
}

/// The names in an item: several when their hashes are the same.
pub(super) fn names(bytes: &[u8]) -> Result<Vec<NameItem<'_>>> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let value_length = usize::from(field::u16_le(rest, 25)?);
        let name_length = usize::from(field::u16_le(rest, 27)?);
        if name_length == 0 || name_length > MAX_NAME_BYTES {
            return Err(Error::corrupt(format!("a name of {name_length} bytes")));
        }
        let end = 30_usize
            .saturating_add(name_length)
            .saturating_add(value_length);
        let raw = field::slice(rest, 0, end)?;
        found.push(NameItem {
            location: Key::parse(raw, 0)?,
            kind: field::u8_at(raw, 29)?,
            name: field::slice(raw, 30, name_length)?,
            value: field::slice(raw, name_length.saturating_add(30), value_length)?,
            raw,
        });
        rest = rest.get(end..).unwrap_or_default();
    }
    Ok(found)
}

/// What a directory says a name's file is; devices only say so themselves.
pub(super) fn kind_told(kind: u8) -> Option<FileKind> {
    Some(match kind {
        1 => FileKind::Regular,
        2 => FileKind::Directory,
        5 => FileKind::Fifo,
        6 => FileKind::Socket,
        7 => FileKind::SymbolicLink,
        _ => return None,
    })
}
