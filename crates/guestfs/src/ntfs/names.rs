//! Names in directories: what an entry says, and names from outside in the form that NTFS keeps.
//!
//! ```text
//!  key of an entry: parent │ 4 times │ allocated │ size │ attributes (56) │ reparse tag (60) │ units (64) │ name space (65) │ name
//! ```

use super::record::{NUMBER_MASK, utf16};
use crate::filesystem::FileKind;
use crate::{Error, FileName, Result, field};

/// Records below belong to the file system itself, which shows them to nobody.
const FIRST_USER_RECORD: u64 = 16;
const DOS_NAME_SPACE: u8 = 2;
const MAX_NAME_UNITS: usize = 255;

const SYSTEM: u32 = 0x0000_0004;
const REPARSE: u32 = 0x0000_0400;
const DIRECTORY: u32 = 0x1000_0000;

/// What an entry of a directory says of a file.
pub(super) struct NameEntry<'a> {
    pub(super) reference: u64,
    /// Two bytes a unit.
    name: &'a [u8],
    attributes: u32,
    name_space: u8,
}

impl<'a> NameEntry<'a> {
    /// `entry` is a whole entry of the index, `key` its key.
    pub(super) fn parse(entry: &[u8], key: &'a [u8]) -> Result<Self> {
        let units = usize::from(field::u8_at(key, 64)?);
        if units == 0 {
            return Err(Error::corrupt("a file without a name in a directory"));
        }
        Ok(Self {
            reference: field::u64_le(entry, 0)?,
            name: field::slice(key, 66, units.saturating_mul(2))?,
            attributes: field::u32_le(key, 56)?,
            name_space: field::u8_at(key, 65)?,
        })
    }

    /// Its name as it is compared.
    pub(super) fn units(&self) -> Vec<u16> {
        utf16(self.name)
    }

    /// Its name as it is told.
    pub(super) fn file_name(&self) -> FileName {
        let units = self.name.as_chunks().0.iter();
        FileName::from_utf16(units.map(|unit| u16::from_le_bytes(*unit)))
    }

    /// Whether a listing tells it: neither a short name beside a long one, nor a file of the file system itself.
    pub(super) fn is_shown(&self) -> bool {
        self.name_space != DOS_NAME_SPACE && self.reference & NUMBER_MASK >= FIRST_USER_RECORD
    }

    /// What the file is, where the entry is enough to know.
    pub(super) fn kind(&self) -> Option<FileKind> {
        // Reparse points and files of the system may be links, devices and more.
        let is_directory = self.attributes & DIRECTORY != 0;
        let is_system = self.attributes & SYSTEM != 0 && !is_directory;
        match self.attributes & REPARSE != 0 || is_system {
            true => None,
            false if is_directory => Some(FileKind::Directory),
            false => Some(FileKind::Regular),
        }
    }
}

/// Whether a `$FILE_NAME` counts as a name of its own.
pub(super) fn is_own_name(value: &[u8]) -> bool {
    field::u8_at(value, 65).is_ok_and(|name_space| name_space != DOS_NAME_SPACE)
}

/// A name in UTF-16; `None` when NTFS can have no such name.
pub(super) fn encode(name: &FileName) -> Option<Vec<u16>> {
    let mut units = Vec::new();
    let mut rest = name.as_bytes();
    while !rest.is_empty() {
        let valid = match std::str::from_utf8(rest) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(rest.get(..error.valid_up_to())?).ok()?,
        };
        units.extend(valid.encode_utf16());
        rest = rest.get(valid.len()..)?;
        // What is no UTF-8 may be half a pair of UTF-16, in three bytes as WTF-8 has it.
        if let [0xED, middle @ 0xA0..=0xBF, last @ 0x80..=0xBF, ..] = rest {
            units.push(0xD000 | u16::from(middle & 0x3F) << 6 | u16::from(last & 0x3F));
            rest = rest.get(3..)?;
        } else if !rest.is_empty() {
            return None;
        }
        if units.len() > MAX_NAME_UNITS {
            return None;
        }
    }
    (!units.is_empty() && units.len() <= MAX_NAME_UNITS).then_some(units)
}
