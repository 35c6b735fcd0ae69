//! The records of a dynamic disk's database.
//!
//! ```text
//!   record      status u16 │ flags u8 │ type u8 │ bytes u32 │ object id │ name │ …     numbers and texts carry their length
//!   volume      kind │ ? │ state, 14 │ type │ ? │ number │ 3 │ flags │ components │ 16 │ sectors │ 4 │ type │ GUID
//!   component   state │ kind u8 │ 4 │ partitions │ 16 │ volume │ 1 │ [chunk │ columns]
//!   partition   4 │ 8 │ start u64 │ offset in volume u64 │ sectors │ component │ disk │ [column]
//!   disk        GUID as text (version 3) or 16 bytes (version 4)
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

use std::collections::BTreeMap;

use super::database::Database;
use crate::partition::Guid;
use crate::{Error, Result, field};

/// Number of a thing in the database.
pub(super) type ObjectNumber = u64;

#[derive(Debug)]
pub(super) struct Volume {
    pub(super) object: ObjectNumber,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) state: String,
    pub(super) components: usize,
    pub(super) sectors: u64,
    pub(super) id: Guid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ComponentKind {
    Stripe,
    Concat,
    Raid5,
}

impl ComponentKind {
    pub(super) fn name(self, parts: usize) -> &'static str {
        match self {
            Self::Stripe => "striped",
            Self::Concat if parts > 1 => "spanned",
            Self::Concat => "simple",
            Self::Raid5 => "raid5",
        }
    }
}

#[derive(Debug)]
pub(super) struct Component {
    pub(super) object: ObjectNumber,
    pub(super) name: String,
    pub(super) kind: ComponentKind,
    pub(super) parts: usize,
    pub(super) volume: ObjectNumber,
    pub(super) chunk_sectors: u64,
    pub(super) columns: u64,
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) start: u64,
    pub(super) volume_offset: u64,
    pub(super) sectors: u64,
    pub(super) component: ObjectNumber,
    pub(super) disk: ObjectNumber,
    pub(super) column: u64,
}

#[derive(Debug)]
pub(super) struct DiskRecord {
    pub(super) name: String,
    pub(super) id: Guid,
}

/// Everything of a group that matters for reading.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) volumes: BTreeMap<ObjectNumber, Volume>,
    pub(super) components: BTreeMap<ObjectNumber, Component>,
    pub(super) parts: BTreeMap<ObjectNumber, Part>,
    pub(super) disks: BTreeMap<ObjectNumber, DiskRecord>,
    pub(super) damage: Vec<String>,
}

/// Most damaged records that are named.
const MAX_DAMAGE: usize = 16;

impl Records {
    pub(super) fn parse(database: &Database) -> Result<Self> {
        let mut records = Self::default();
        for bytes in &database.records {
            if let Err(error) = records.add(bytes)
                && records.damage.len() < MAX_DAMAGE
            {
                records.damage.push(format!(
                    "disk group {}: a record is damaged: {error}",
                    database.group_name
                ));
            }
        }
        Ok(records)
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        let mut cursor = Cursor { bytes, at: 2 };
        let flags = cursor.byte()?;
        let kind = cursor.byte()?;
        cursor.skip(4)?;
        if !matches!(kind, 0x32 | 0x33 | 0x34 | 0x44 | 0x51) {
            return Ok(());
        }
        let object = cursor.number()?;
        let name = cursor.text()?;
        match kind {
            0x51 => {
                let volume = volume(object, name, &mut cursor)?;
                self.volumes.insert(object, volume);
            }
            0x32 => {
                let component = component(object, name, flags, &mut cursor)?;
                self.components.insert(object, component);
            }
            0x33 => {
                let part = part(name, flags, &mut cursor)?;
                self.parts.insert(object, part);
            }
            0x34 => {
                let text = cursor.text()?;
                let id = Guid::parse(&text)
                    .ok_or_else(|| Error::corrupt(format!("disk id {text:?}")))?;
                self.disks.insert(object, DiskRecord { name, id });
            }
            _ => {
                let id = Guid::from_plain(cursor.take(16)?, 0)?;
                self.disks.insert(object, DiskRecord { name, id });
            }
        }
        Ok(())
    }
}

fn volume(object: ObjectNumber, name: String, cursor: &mut Cursor<'_>) -> Result<Volume> {
    let kind = cursor.text()?;
    cursor.text()?;
    let state = cursor.take(14)?;
    let end = state.iter().position(|byte| *byte == 0).unwrap_or(14);
    let state = String::from_utf8_lossy(field::slice(state, 0, end)?).into_owned();
    cursor.skip(7)?;
    let components = usize::try_from(cursor.number()?).unwrap_or(usize::MAX);
    cursor.skip(16)?;
    let sectors = cursor.number()?;
    cursor.skip(5)?;
    Ok(Volume {
        object,
        name,
        kind,
        state,
        components,
        sectors,
        id: Guid::from_plain(cursor.take(16)?, 0)?,
    })
}

fn component(
    object: ObjectNumber,
    name: String,
    flags: u8,
    cursor: &mut Cursor<'_>,
) -> Result<Component> {
    cursor.text()?;
    let kind = match cursor.byte()? {
        1 => ComponentKind::Stripe,
        2 => ComponentKind::Concat,
        3 => ComponentKind::Raid5,
        other => return Err(Error::unsupported(format!("component of kind {other}"))),
    };
    cursor.skip(4)?;
    let parts = usize::try_from(cursor.number()?).unwrap_or(usize::MAX);
    cursor.skip(16)?;
    let volume = cursor.number()?;
    cursor.skip(1)?;
    let (chunk_sectors, columns) = if flags & 0x10 == 0 {
        (0, 1)
    } else {
        (cursor.number()?, cursor.number()?)
    };
    Ok(Component {
        object,
        name,
        kind,
        parts,
        volume,
        chunk_sectors,
        columns,
    })
}

fn part(name: String, flags: u8, cursor: &mut Cursor<'_>) -> Result<Part> {
    cursor.skip(12)?;
    let start = field::u64_be(cursor.take(8)?, 0)?;
    let volume_offset = field::u64_be(cursor.take(8)?, 0)?;
    let sectors = cursor.number()?;
    let component = cursor.number()?;
    let disk = cursor.number()?;
    let column = if flags & 0x08 == 0 {
        0
    } else {
        cursor.number()?
    };
    Ok(Part {
        name,
        start,
        volume_offset,
        sectors,
        component,
        disk,
        column,
    })
}

/// A place in a record.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let part = field::slice(self.bytes, self.at, length)?;
        self.at = self.at.saturating_add(length);
        Ok(part)
    }

    fn skip(&mut self, length: usize) -> Result<()> {
        self.take(length).map(|_| ())
    }

    fn byte(&mut self) -> Result<u8> {
        field::u8_at(self.take(1)?, 0)
    }

    /// A number with its length in front.
    fn number(&mut self) -> Result<u64> {
        let length = self.byte()?;
        if length > 8 {
            return Err(Error::corrupt(format!("a number of {length} bytes")));
        }
        let bytes = self.take(usize::from(length))?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A text with its length in front.
    fn text(&mut self) -> Result<String> {
        let length = self.byte()?;
        Ok(String::from_utf8_lossy(self.take(usize::from(length))?).into_owned())
    }
}
