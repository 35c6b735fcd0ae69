//! The parent locator: how a differencing image names its parent.
//!
//! ```text
//!   type:16 0:2 count:2 │ key-offset:4 value-offset:4 key-length:2 value-length:2 │ … │ UTF-16LE texts
//! ```
//! Source: MS-VHDX 2.6.2.6. Offsets count from the item's start, lengths are in bytes.
//!
//! **Invariants.** At most 256 pairs, kept in the order of the file, unknown keys too. Nothing here opens a path: an
//! image that nobody vouches for must not choose which file is read.

use uuid::{Uuid, uuid};

use super::bytes::{Encoder, Fields};
use super::info::WriteId;
use crate::{Error, ErrorKind, Result};

/// The only locator type there is: the parent is a VHDX.
const VHDX_LOCATOR: Uuid = uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913");
const MAX_PAIRS: u16 = 256;
const PAIRS_AT: usize = 20;
const PAIR_BYTES: usize = 12;

/// Key of the parent's data write id.
pub const PARENT_LINKAGE: &str = "parent_linkage";
/// Key of a second id that is accepted too: Windows sets it while it merges, and to zeros otherwise.
pub const PARENT_LINKAGE2: &str = "parent_linkage2";
/// Key of the path relative to the child.
pub const RELATIVE_PATH: &str = "relative_path";
/// Key of the path by volume GUID.
pub const VOLUME_PATH: &str = "volume_path";
/// Key of the absolute path.
pub const ABSOLUTE_WIN32_PATH: &str = "absolute_win32_path";

/// What a differencing image says about its parent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParentLocator {
    entries: Vec<(String, String)>,
}

impl ParentLocator {
    /// A locator that names the parent's data write id and no path yet.
    pub fn new(parent: WriteId) -> Self {
        Self {
            entries: vec![(PARENT_LINKAGE.into(), braced(parent))],
        }
    }

    /// Adds a pair, replacing the value of a key that is there.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        match self.entries.iter_mut().find(|entry| entry.0 == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key, value)),
        }
        self
    }

    /// Every pair, in the order of the file.
    pub fn entries(&self) -> &[(String, String)] {
        &self.entries
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries
            .iter()
            .find(|entry| entry.0 == key)
            .map(|entry| entry.1.as_str())
    }

    /// The ids that the parent may have: `parent_linkage`, then `parent_linkage2` unless it is all zeros.
    pub fn linkages(&self) -> Vec<WriteId> {
        [PARENT_LINKAGE, PARENT_LINKAGE2]
            .into_iter()
            .filter_map(|key| self.get(key))
            .filter_map(|text| Uuid::parse_str(text.trim()).ok())
            .filter(|id| !id.is_nil())
            .map(WriteId)
            .collect()
    }

    /// The paths that it names, most trusted first: relative, volume, absolute.
    pub fn paths(&self) -> Vec<String> {
        [RELATIVE_PATH, VOLUME_PATH, ABSOLUTE_WIN32_PATH]
            .into_iter()
            .filter_map(|key| self.get(key))
            .filter(|path| !path.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Whether an image with this data write id is the parent that the child was made on, unchanged since.
    ///
    /// # Errors
    /// [`ErrorKind::ParentMismatch`] when it is not.
    pub fn check_linkage(&self, parent: WriteId) -> Result<()> {
        let linkages = self.linkages();
        if linkages.contains(&parent) {
            return Ok(());
        }
        let wanted: Vec<String> = linkages.iter().map(ToString::to_string).collect();
        Err(Error::new(
            ErrorKind::ParentMismatch,
            format!(
                "vhdx parent: its data write id is {parent}, the child was made on {}",
                if wanted.is_empty() {
                    "none that can be read".into()
                } else {
                    wanted.join(" or ")
                }
            ),
        ))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let fields = Fields::new(bytes, "vhdx parent locator");
        let kind = fields.guid(0)?;
        if kind != VHDX_LOCATOR {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("vhdx parent locator: of unknown type {kind}"),
            ));
        }
        let count = fields.u16(18)?;
        if count > MAX_PAIRS {
            return Err(Error::corrupt(format!(
                "vhdx parent locator: {count} pairs"
            )));
        }
        let mut entries: Vec<(String, String)> = Vec::new();
        for index in 0..usize::from(count) {
            let at = PAIRS_AT.saturating_add(index.saturating_mul(PAIR_BYTES));
            let key = text(&fields, fields.u32(at)?, fields.u16(at.saturating_add(8))?)?;
            let value = text(
                &fields,
                fields.u32(at.saturating_add(4))?,
                fields.u16(at.saturating_add(10))?,
            )?;
            if entries.iter().any(|entry| entry.0 == key) {
                return Err(Error::corrupt(format!(
                    "vhdx parent locator: two keys {key:?}"
                )));
            }
            entries.push((key, value));
        }
        Ok(Self { entries })
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let too_long = || {
            Error::new(
                ErrorKind::Invalid,
                "vhdx parent locator: a key or value is too long to store",
            )
        };
        let count = u16::try_from(self.entries.len()).map_err(|_| too_long())?;
        if count > MAX_PAIRS {
            return Err(too_long());
        }
        let mut bytes = Encoder::new(PAIRS_AT);
        bytes.guid(0, VHDX_LOCATOR);
        bytes.u16(18, count);
        let mut text_at = PAIRS_AT.saturating_add(self.entries.len().saturating_mul(PAIR_BYTES));
        let mut at = PAIRS_AT;
        for (key, value) in &self.entries {
            for (part, offset_at, length_at) in [(key, 0, 8), (value, 4, 10)] {
                let units: Vec<u8> = part.encode_utf16().flat_map(u16::to_le_bytes).collect();
                bytes.u32(
                    at.saturating_add(offset_at),
                    u32::try_from(text_at).map_err(|_| too_long())?,
                );
                bytes.u16(
                    at.saturating_add(length_at),
                    u16::try_from(units.len()).map_err(|_| too_long())?,
                );
                bytes.put(text_at, &units);
                text_at = text_at.saturating_add(units.len());
            }
            at = at.saturating_add(PAIR_BYTES);
        }
        Ok(bytes.finish())
    }
}

fn braced(id: WriteId) -> String {
    format!("{{{id}}}")
}

fn text(fields: &Fields<'_>, offset: u32, length: u16) -> Result<String> {
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let units: Vec<u16> = fields
        .slice(at, usize::from(length))?
        .as_chunks::<2>()
        .0
        .iter()
        .map(|unit| u16::from_le_bytes(*unit))
        .collect();
    Ok(String::from_utf16_lossy(&units))
}
