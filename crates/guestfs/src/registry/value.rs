//! Values of keys.
//!
//! ```text
//!   vk: "vk" name-length:2 size:4 data:4 kind:4 flags:2 spare:2 name …
//!        size bit 31: up to 4 bytes stand in the data field
//!        size > 16344 from version 1.4 on: data ─► "db" segments:2 list:4 ─► cells of 16344 bytes
//! ```
//!
//! **Invariants.** Data above [`MAX_DATA_BYTES`] is refused before it is allocated.

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

use super::bins::{self, Bins, CellOffset};
use crate::{Error, ErrorKind, FileName, Result, field};

/// The largest value that is read.
const MAX_DATA_BYTES: usize = 64 << 20;
/// Data bytes of a segment of big data.
const SEGMENT_BYTES: usize = 16_344;
const IN_PLACE: u32 = 1 << 31;

/// What a value says its data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueKind {
    /// `REG_NONE`.
    None,
    /// `REG_SZ`.
    Text,
    /// `REG_EXPAND_SZ`: text with `%VARIABLES%`.
    ExpandableText,
    /// `REG_BINARY`.
    Binary,
    /// `REG_DWORD`.
    Number32,
    /// `REG_DWORD_BIG_ENDIAN`.
    Number32BigEndian,
    /// `REG_LINK`.
    Link,
    /// `REG_MULTI_SZ`.
    Texts,
    /// `REG_QWORD`.
    Number64,
    /// Resource lists of drivers, and what only single programs know.
    Other(u32),
}

impl From<u32> for ValueKind {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Text,
            2 => Self::ExpandableText,
            3 => Self::Binary,
            4 => Self::Number32,
            5 => Self::Number32BigEndian,
            6 => Self::Link,
            7 => Self::Texts,
            11 => Self::Number64,
            other => Self::Other(other),
        }
    }
}

impl ValueKind {
    /// The number that stands in the hive.
    pub fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Text => 1,
            Self::ExpandableText => 2,
            Self::Binary => 3,
            Self::Number32 => 4,
            Self::Number32BigEndian => 5,
            Self::Link => 6,
            Self::Texts => 7,
            Self::Number64 => 11,
            Self::Other(number) => number,
        }
    }
}

/// A value of a key.
#[derive(Clone)]
pub struct Value<'h> {
    bins: &'h Bins,
    minor_version: u32,
    offset: CellOffset,
    name: FileName,
    kind: ValueKind,
    size: u32,
    data: u32,
}

impl<'h> Value<'h> {
    pub(super) fn read(bins: &'h Bins, minor_version: u32, offset: CellOffset) -> Result<Self> {
        let place = || format!("value at cell {offset}");
        let cell = bins.cell(offset).map_err(|error| error.within(place()))?;
        if field::slice(&cell, 0, 2)? != b"vk" {
            return Err(Error::corrupt(format!("{}: no value", place())));
        }
        let length = usize::from(field::u16_le(&cell, 2)?);
        let is_latin1 = field::u16_le(&cell, 16)? & 1 != 0;
        let name = field::slice(&cell, 20, length).map_err(|error| error.within(place()))?;
        Ok(Self {
            bins,
            minor_version,
            offset,
            name: bins::name(name, is_latin1),
            kind: field::u32_le(&cell, 12)?.into(),
            size: field::u32_le(&cell, 4)?,
            data: field::u32_le(&cell, 8)?,
        })
    }

    /// Its name; empty for the default value.
    pub fn name(&self) -> &FileName {
        &self.name
    }

    /// What it says its data is; any data may stand under any kind.
    pub fn kind(&self) -> ValueKind {
        self.kind
    }

    /// Bytes of its data.
    pub fn size_bytes(&self) -> u32 {
        self.size & !IN_PLACE
    }

    /// Its data.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`]; [`ErrorKind::Limit`] above 64 MiB.
    pub fn data(&self) -> Result<Vec<u8>> {
        self.read_data()
            .map_err(|error| error.within(format!("data of the value at cell {}", self.offset)))
    }

    fn read_data(&self) -> Result<Vec<u8>> {
        let size = usize::try_from(self.size_bytes()).unwrap_or(usize::MAX);
        if self.size & IN_PLACE != 0 {
            return Ok(field::slice(&self.data.to_le_bytes(), 0, size)?.to_vec());
        }
        if size == 0 {
            return Ok(Vec::new());
        }
        if size > MAX_DATA_BYTES {
            return Err(Error::new(ErrorKind::Limit, format!("{size} bytes")));
        }
        let mut cell = self.bins.cell(CellOffset(self.data))?;
        let is_big = size > SEGMENT_BYTES && self.minor_version > 3 && cell.starts_with(b"db");
        if !is_big {
            if cell.len() < size {
                return Err(Error::corrupt(format!(
                    "{size} bytes in a cell of {}",
                    cell.len()
                )));
            }
            cell.truncate(size);
            return Ok(cell);
        }
        let count = usize::from(field::u16_le(&cell, 2)?);
        let list = self.bins.cell(CellOffset(field::u32_le(&cell, 4)?))?;
        let mut data = Vec::new();
        for index in 0..count {
            let left = size.saturating_sub(data.len());
            if left == 0 {
                break;
            }
            let at = field::u32_le(&list, index.saturating_mul(4))?;
            let segment = self.bins.cell(CellOffset(at))?;
            data.extend_from_slice(field::slice(&segment, 0, left.min(SEGMENT_BYTES))?);
        }
        if data.len() < size {
            return Err(Error::corrupt(format!(
                "{count} segments hold {} of {size} bytes",
                data.len()
            )));
        }
        Ok(data)
    }

    /// Its data as text up to the first NUL, if its kind says text.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub fn text(&self) -> Result<Option<String>> {
        match self.kind {
            ValueKind::Text | ValueKind::ExpandableText | ValueKind::Link => {
                Ok(texts_of(&self.data()?).into_iter().next())
            }
            _ => Ok(None),
        }
    }

    /// Its data as texts, if its kind says so; a single text is a list of one.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub fn texts(&self) -> Result<Option<Vec<String>>> {
        match self.kind {
            ValueKind::Texts => {
                let mut texts = texts_of(&self.data()?);
                while texts.last().is_some_and(String::is_empty) {
                    texts.pop();
                }
                Ok(Some(texts))
            }
            _ => Ok(self.text()?.map(|text| vec![text])),
        }
    }

    /// Its data as a number, if its kind says so and the length fits.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub fn number(&self) -> Result<Option<u64>> {
        let data = self.data()?;
        Ok(match self.kind {
            ValueKind::Number32 => data.try_into().ok().map(u32::from_le_bytes).map(u64::from),
            ValueKind::Number32BigEndian => {
                data.try_into().ok().map(u32::from_be_bytes).map(u64::from)
            }
            ValueKind::Number64 => data.try_into().ok().map(u64::from_le_bytes),
            _ => None,
        })
    }
}

/// UTF-16 texts, each ended by a NUL or by the end; what is no UTF-16 becomes the replacement character.
fn texts_of(data: &[u8]) -> Vec<String> {
    let units: Vec<u16> = data
        .chunks_exact(2)
        .filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes))
        .collect();
    units
        .split(|unit| *unit == 0)
        .map(String::from_utf16_lossy)
        .collect()
}
