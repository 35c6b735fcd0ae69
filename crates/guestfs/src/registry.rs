//! Windows registry hives, read without Windows and without writing.
//!
//! ```text
//!   primary file  regf base block (4096) ─► bins: hbin header (32) cell cell … │ hbin …
//!   LOG1, LOG2    base block copy, then HvLE entries (new form) or a DIRT bitmap and pages (old form)
//!
//!   base block ─ root ─► nk ─┬─ subkeys ─► lf | lh | li  ─► nk …      (or ri ─► several of them)
//!                            ├─ values  ─► list ─► vk ─► data (4 bytes in place | a cell | db ─► segments)
//!                            ├─ security ─► sk     └─ class name
//! ```
//! Source: the public specification of the registry file format by M. Suhanov, and libhivex's notes.
//!
//! **Invariants.** A cell is read only where it is allocated and lies inside the bins. A hive that was not written out
//! fully is read as its logs would leave it, in memory; where they cannot, [`HiveFacts::cleanliness`] says why. No list
//! is longer than the hive could hold, and [`Hive::walk`] visits each cell once, so that links in circles end.
//!
//! It does not read transactions that a resource manager still holds (TxR), and shows no deleted keys.

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

mod bins;
mod log;
mod value;
pub mod windows;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use block::ReadAt;

use crate::filesystem::{Cleanliness, SecurityDescriptor, Timestamp};
use crate::{Error, ErrorKind, FileName, Result, field};
use bins::{Bins, CellOffset};
pub use value::{Value, ValueKind};

/// What no list of a hive may exceed, whatever the hive's length: Windows stops far below.
const MAX_LIST_ENTRIES: usize = 4 << 20;
/// Windows allows 512 levels.
const MAX_DEPTH: usize = 600;
/// Bytes of a key node before its name.
const KEY_NODE_BYTES: usize = 76;
/// The name is in Latin-1 instead of UTF-16.
const KEY_COMPRESSED_NAME: u16 = 0x20;

/// What is known of a hive as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiveFacts {
    /// Version of the format, minor number: 3 to 6 after `1.`.
    pub minor_version: u32,
    /// When it was last written, as its base block says.
    pub last_written: Option<Timestamp>,
    /// The end of the path that it was loaded from.
    pub file_name: FileName,
    /// Bytes of its bins.
    pub bins_bytes: u32,
    /// Whether logs had to be applied, and whether that was possible.
    pub cleanliness: Cleanliness,
}

/// A hive opened for reading. Any thread may use it at once.
pub struct Hive {
    bins: Bins,
    root: CellOffset,
    facts: HiveFacts,
}

/// A key.
#[derive(Clone)]
pub struct Key<'h> {
    hive: &'h Hive,
    offset: CellOffset,
    node: Vec<u8>,
    name: FileName,
}

/// What a walk over a hive tells.
pub enum WalkEvent<'h, 'w> {
    /// A key; names from the root (which is not named) to this key.
    Key(&'w [FileName], &'w Key<'h>),
    /// A value of the key that was told last.
    Value(&'w [FileName], &'w Value<'h>),
    /// Something below this path is damaged and left out.
    Damage(&'w [FileName], Error),
}

impl Hive {
    /// Opens a hive with what there is of its logs (`.LOG1`, `.LOG2`, or `.LOG` of Windows XP), in any order.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is no hive, or its base block is damaged and no log has a copy;
    /// [`ErrorKind::Unsupported`] for versions other than 1.2 to 1.6; [`ErrorKind::Limit`] for logs above 64 MiB.
    pub fn open(primary: Arc<dyn ReadAt>, logs: &[Arc<dyn ReadAt>]) -> Result<Self> {
        let recovered = log::recover(primary, logs)?;
        let base = recovered.base;
        let facts = HiveFacts {
            minor_version: base.minor_version,
            last_written: base.last_written,
            file_name: base.file_name,
            bins_bytes: base.bins_bytes,
            cleanliness: recovered.cleanliness,
        };
        Ok(Self {
            bins: recovered.bins,
            root: base.root,
            facts,
        })
    }

    /// What is known of it as a whole.
    pub fn facts(&self) -> &HiveFacts {
        &self.facts
    }

    /// Its root key.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    pub fn root(&self) -> Result<Key<'_>> {
        self.key_at(self.root)
    }

    /// The key at a path from the root, its parts between backslashes; case does not count.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    pub fn key(&self, path: &str) -> Result<Option<Key<'_>>> {
        let mut key = self.root()?;
        for part in path.split('\\').filter(|part| !part.is_empty()) {
            match key.subkey(part)? {
                Some(found) => key = found,
                None => return Ok(None),
            }
        }
        Ok(Some(key))
    }

    /// Tells all keys and values, each key before its values and these before its subkeys. Damage is told and left out.
    pub fn walk<'h>(&'h self, visit: &mut dyn FnMut(WalkEvent<'h, '_>) -> ControlFlow<()>) {
        let _ = Walk {
            hive: self,
            seen: HashSet::new(),
            path: Vec::new(),
            visit,
        }
        .run();
    }

    fn key_at(&self, offset: CellOffset) -> Result<Key<'_>> {
        let node = self.bins.cell(offset)?;
        let place = || format!("key at cell {offset}");
        if field::slice(&node, 0, 2)? != b"nk" {
            return Err(Error::corrupt(format!("{}: no key node", place())));
        }
        let flags = field::u16_le(&node, 2)?;
        let length = usize::from(field::u16_le(&node, 72)?);
        let bytes =
            field::slice(&node, KEY_NODE_BYTES, length).map_err(|error| error.within(place()))?;
        let name = bins::name(bytes, flags & KEY_COMPRESSED_NAME != 0);
        Ok(Key {
            hive: self,
            offset,
            node,
            name,
        })
    }

    /// Cells that a list of `count` entries of a key names; the list's own cells are told to `enter`, which says whether
    /// to read them.
    fn subkey_offsets(
        &self,
        list: CellOffset,
        enter: &mut dyn FnMut(CellOffset) -> bool,
    ) -> Result<Vec<CellOffset>> {
        let limit = self.bins.most_cells(KEY_NODE_BYTES).min(MAX_LIST_ENTRIES);
        let mut found = Vec::new();
        if !enter(list) {
            return Ok(found);
        }
        let cell = self.bins.cell(list)?;
        if field::slice(&cell, 0, 2)? == b"ri" {
            for index in 0..usize::from(field::u16_le(&cell, 2)?) {
                let at = index.saturating_mul(4).saturating_add(4);
                let child = CellOffset(field::u32_le(&cell, at)?);
                if enter(child) {
                    leaf_offsets(&self.bins.cell(child)?, &mut found)?;
                }
                if found.len() > limit {
                    break;
                }
            }
        } else {
            leaf_offsets(&cell, &mut found)?;
        }
        if found.len() > limit {
            return Err(Error::corrupt(format!(
                "subkey list at cell {list} names more keys than the hive can hold"
            )));
        }
        Ok(found)
    }
}

/// The entries of an `lf`, `lh` or `li` list.
fn leaf_offsets(cell: &[u8], found: &mut Vec<CellOffset>) -> Result<()> {
    let stride: usize = match field::slice(cell, 0, 2)? {
        b"lf" | b"lh" => 8,
        b"li" => 4,
        other => {
            return Err(Error::corrupt(format!(
                "subkey list with the signature {:?}",
                String::from_utf8_lossy(other)
            )));
        }
    };
    let count = usize::from(field::u16_le(cell, 2)?);
    for index in 0..count {
        let at = index.saturating_mul(stride).saturating_add(4);
        found.push(CellOffset(field::u32_le(cell, at)?));
    }
    Ok(())
}

impl<'h> Key<'h> {
    /// Its name.
    pub fn name(&self) -> &FileName {
        &self.name
    }

    /// When it or one of its values was last changed.
    pub fn last_written(&self) -> Option<Timestamp> {
        field::u64_le(&self.node, 4).ok().and_then(bins::file_time)
    }

    /// Its subkeys, in the order of the hive.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when one of them cannot be read; [`Hive::walk`] goes on behind damage.
    pub fn subkeys(&self) -> Result<Vec<Key<'h>>> {
        self.subkey_cells(&mut |_| true)?
            .into_iter()
            .map(|offset| self.hive.key_at(offset))
            .collect()
    }

    /// The subkey of a name; case does not count.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is not among those that can be read, and one cannot be read.
    pub fn subkey(&self, name: &str) -> Result<Option<Key<'h>>> {
        let mut damage = None;
        for offset in self.subkey_cells(&mut |_| true)? {
            match self.hive.key_at(offset) {
                Ok(key) if bins::same_name(key.name(), name) => return Ok(Some(key)),
                Ok(_) => {}
                Err(error) => damage = damage.or(Some(error)),
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// The key at a path from here, parts between backslashes.
    ///
    /// # Errors
    /// As [`Self::subkey`].
    pub fn descend(&self, path: &str) -> Result<Option<Key<'h>>> {
        let mut key = self.clone();
        for part in path.split('\\').filter(|part| !part.is_empty()) {
            match key.subkey(part)? {
                Some(found) => key = found,
                None => return Ok(None),
            }
        }
        Ok(Some(key))
    }

    /// Its values, in the order of the hive.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when one of them cannot be read.
    pub fn values(&self) -> Result<Vec<Value<'h>>> {
        self.value_cells(&mut |_| true)?
            .into_iter()
            .map(|offset| Value::read(&self.hive.bins, self.hive.facts.minor_version, offset))
            .collect()
    }

    /// The value of a name (the empty name: the default value); case does not count.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is not among those that can be read, and one cannot be read.
    pub fn value(&self, name: &str) -> Result<Option<Value<'h>>> {
        let mut damage = None;
        for offset in self.value_cells(&mut |_| true)? {
            match Value::read(&self.hive.bins, self.hive.facts.minor_version, offset) {
                Ok(value) if bins::same_name(value.name(), name) => return Ok(Some(value)),
                Ok(_) => {}
                Err(error) => damage = damage.or(Some(error)),
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// Its class name, which few keys have.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    pub fn class_name(&self) -> Result<Option<FileName>> {
        let offset = CellOffset(field::u32_le(&self.node, 48)?);
        let length = usize::from(field::u16_le(&self.node, 74)?);
        if offset.is_none() || length == 0 {
            return Ok(None);
        }
        let cell = self.hive.bins.cell(offset)?;
        Ok(Some(bins::name(field::slice(&cell, 0, length)?, false)))
    }

    /// Who may do what with it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    pub fn security(&self) -> Result<Option<SecurityDescriptor>> {
        let offset = CellOffset(field::u32_le(&self.node, 44)?);
        if offset.is_none() {
            return Ok(None);
        }
        let cell = self.hive.bins.cell(offset)?;
        if field::slice(&cell, 0, 2)? != b"sk" {
            return Err(Error::corrupt(format!("cell {offset}: no security item")));
        }
        let length = usize::try_from(field::u32_le(&cell, 16)?).unwrap_or(usize::MAX);
        Ok(Some(SecurityDescriptor(
            field::slice(&cell, 20, length)?.to_vec(),
        )))
    }

    fn subkey_cells(&self, enter: &mut dyn FnMut(CellOffset) -> bool) -> Result<Vec<CellOffset>> {
        let count = field::u32_le(&self.node, 20)?;
        let list = CellOffset(field::u32_le(&self.node, 28)?);
        if count == 0 || list.is_none() {
            return Ok(Vec::new());
        }
        self.hive
            .subkey_offsets(list, enter)
            .map_err(|error| error.within(format!("subkeys of the key at cell {}", self.offset)))
    }

    fn value_cells(&self, enter: &mut dyn FnMut(CellOffset) -> bool) -> Result<Vec<CellOffset>> {
        let count = usize::try_from(field::u32_le(&self.node, 36)?).unwrap_or(usize::MAX);
        let list = CellOffset(field::u32_le(&self.node, 40)?);
        if count == 0 || list.is_none() || !enter(list) {
            return Ok(Vec::new());
        }
        let place = || format!("values of the key at cell {}", self.offset);
        if count > MAX_LIST_ENTRIES {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("{}: {count} of them", place()),
            ));
        }
        let cell = (self.hive.bins.cell(list)).map_err(|error| error.within(place()))?;
        (0..count)
            .map(|index| field::u32_le(&cell, index.saturating_mul(4)).map(CellOffset))
            .collect::<Result<_>>()
            .map_err(|error| error.within(place()))
    }
}

struct Walk<'h, 'v> {
    hive: &'h Hive,
    /// Cells told or read as lists: what comes a second time is a link in a circle.
    seen: HashSet<CellOffset>,
    path: Vec<FileName>,
    visit: &'v mut dyn FnMut(WalkEvent<'h, '_>) -> ControlFlow<()>,
}

impl<'h> Walk<'h, '_> {
    fn run(mut self) -> ControlFlow<()> {
        // Keys still to be told, with the length of the path above them.
        let mut waiting = vec![(0_usize, self.hive.root)];
        while let Some((depth, offset)) = waiting.pop() {
            self.path.truncate(depth);
            if !self.seen.insert(offset) {
                self.damage(Error::corrupt(format!("cell {offset} has two parents")))?;
                continue;
            }
            let key = match self.hive.key_at(offset) {
                Ok(key) => key,
                Err(error) => {
                    self.damage(error)?;
                    continue;
                }
            };
            if offset != self.hive.root {
                self.path.push(key.name().clone());
            }
            (self.visit)(WalkEvent::Key(&self.path, &key))?;
            self.values(&key)?;
            let below = self.path.len();
            if below > MAX_DEPTH {
                self.damage(Error::new(ErrorKind::Limit, "keys too deep"))?;
                continue;
            }
            let seen = &mut self.seen;
            match key.subkey_cells(&mut |list| seen.insert(list)) {
                Ok(offsets) => waiting.extend(offsets.into_iter().rev().map(|at| (below, at))),
                Err(error) => self.damage(error)?,
            }
        }
        ControlFlow::Continue(())
    }

    fn values(&mut self, key: &Key<'h>) -> ControlFlow<()> {
        let seen = &mut self.seen;
        let offsets = match key.value_cells(&mut |list| seen.insert(list)) {
            Ok(offsets) => offsets,
            Err(error) => return self.damage(error),
        };
        for offset in offsets {
            if !self.seen.insert(offset) {
                self.damage(Error::corrupt(format!("cell {offset} has two parents")))?;
                continue;
            }
            match Value::read(&self.hive.bins, self.hive.facts.minor_version, offset) {
                Ok(value) => (self.visit)(WalkEvent::Value(&self.path, &value))?,
                Err(error) => self.damage(error)?,
            }
        }
        ControlFlow::Continue(())
    }

    fn damage(&mut self, error: Error) -> ControlFlow<()> {
        (self.visit)(WalkEvent::Damage(&self.path, error))
    }
}
