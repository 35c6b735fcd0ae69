//! Names in a subvolume while a log is replayed: looked up, taken away and added as Linux does it.
//!
//! ```text
//!   directory ── by hash ──► name, name…    ┐ a name is in all three,        inode ◄── reference: (directory) index name…
//!             ── by index ─► name           ┘ or in none                           ◄── extended reference: (hash) directory index name…
//! ```
//!
//! **Invariants.** The tree below is never changed: every change is an item over it.

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

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::checksum::{name_hash, reference_hash};
use super::inode::names;
use super::tree::{Forest, Key, Overlay, Tree, kind};
use crate::{Error, ErrorKind, Result, field};

/// A name as an inode knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) parent: u64,
    pub(super) index: u64,
    pub(super) name: Vec<u8>,
}

/// Whether the inode is told of a name that its directory gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Back {
    Add,
    Keep,
}

/// The names in a reference item of either kind.
pub(super) fn references(key: Key, item: &[u8]) -> Result<Vec<Reference>> {
    let is_extended = key.kind == kind::INODE_EXTREF;
    let head = if is_extended { 18 } else { 10 };
    let mut found = Vec::new();
    let mut rest = item;
    while !rest.is_empty() {
        let (parent, index) = if is_extended {
            (field::u64_le(rest, 0)?, field::u64_le(rest, 8)?)
        } else {
            (key.offset, field::u64_le(rest, 0)?)
        };
        let length = usize::from(field::u16_le(rest, usize::saturating_sub(head, 2))?);
        found.push(Reference {
            parent,
            index,
            name: field::slice(rest, head, length)?.to_vec(),
        });
        rest = rest.get(head.saturating_add(length)..).unwrap_or_default();
    }
    Ok(found)
}

fn unparse(key: Key, references: &[Reference]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for one in references {
        if key.kind == kind::INODE_EXTREF {
            bytes.extend_from_slice(&one.parent.to_le_bytes());
        }
        bytes.extend_from_slice(&one.index.to_le_bytes());
        let length = u16::try_from(one.name.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&one.name);
    }
    bytes
}

/// What a name says its file is, by the file's mode.
fn type_of(mode: u32) -> u8 {
    match mode & 0xF000 {
        0x8000 => 1,
        0x4000 => 2,
        0x2000 => 3,
        0x6000 => 4,
        0x1000 => 5,
        0xC000 => 6,
        0xA000 => 7,
        _ => 0,
    }
}

/// Items looked at in one replay: a log that leads to more is hostile.
const MAX_STEPS: u64 = 16 << 20;
/// A reference item that is longer gets no more names: extended references do.
const MAX_REFERENCE_BYTES: usize = 3000;
/// Names of one hash; Linux keeps them in one node.
const MAX_HASHED_BYTES: usize = 64 << 10;

/// A subvolume under replay.
pub(super) struct Names<'f> {
    forest: &'f Forest,
    base: Tree,
    pub(super) over: Overlay,
    /// Inodes whose names changed.
    touched: BTreeSet<u64>,
    steps: Cell<u64>,
}

impl<'f> Names<'f> {
    pub(super) fn new(forest: &'f Forest, base: Tree) -> Self {
        Self {
            forest,
            base,
            over: Overlay::new(),
            touched: BTreeSet::new(),
            steps: Cell::new(0),
        }
    }

    /// Its links will be counted.
    pub(super) fn touch(&mut self, inode: u64) {
        self.touched.insert(inode);
    }

    /// Counts what is looked at.
    fn step(&self) -> Result<()> {
        self.steps.set(self.steps.get().saturating_add(1));
        if self.steps.get() > MAX_STEPS {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("a log that leads to more than {MAX_STEPS} items"),
            ));
        }
        Ok(())
    }

    pub(super) fn set(&mut self, key: Key, item: Option<Arc<[u8]>>) {
        self.over.insert(key, item);
    }

    pub(super) fn get(&self, key: Key) -> Result<Option<Vec<u8>>> {
        if let Some(over) = self.over.get(&key) {
            return Ok(over.as_ref().map(|bytes| bytes.to_vec()));
        }
        let found = self.forest.get(&self.base, key)?;
        Ok(found.map(|item| item.bytes().to_vec()))
    }

    /// The items between two keys, both ends included, at most so many.
    pub(super) fn range(&self, from: Key, to: Key) -> Result<Vec<(Key, Vec<u8>)>> {
        if from > to {
            return Ok(Vec::new());
        }
        let mut found = std::collections::BTreeMap::new();
        self.forest.walk(&self.base, from..=to, &mut |key, item| {
            self.step()?;
            if !self.over.contains_key(&key) {
                found.insert(key, item.to_vec());
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for (key, item) in self.over.range(from..=to) {
            self.step()?;
            if let Some(item) = item {
                found.insert(*key, item.to_vec());
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The last item between two keys, both ends included.
    pub(super) fn last(&self, from: Key, to: Key) -> Result<Option<(Key, Vec<u8>)>> {
        let over = self.over.range(from..=to).rev();
        let over = over
            .filter_map(|(key, item)| Some((*key, item.as_ref()?.to_vec())))
            .next();
        let mut to = to;
        let base = loop {
            self.step()?;
            match self.forest.last(&self.base, from, to)? {
                Some((key, _)) if self.over.contains_key(&key) => match key.offset.checked_sub(1) {
                    Some(offset) => to = Key::new(key.object, key.kind, offset),
                    None => break None,
                },
                found => break found.map(|(key, item)| (key, item.bytes().to_vec())),
            }
        };
        Ok(match (over, base) {
            (Some(over), Some(base)) => Some(if over.0 > base.0 { over } else { base }),
            (over, base) => over.or(base),
        })
    }

    fn hashed(directory: u64, name: &[u8]) -> Key {
        Key::new(directory, kind::DIR_ITEM, u64::from(name_hash(name)))
    }

    /// Where an inode may know a name from.
    fn reference_keys(directory: u64, inode: u64, name: &[u8]) -> [Key; 2] {
        let hash = u64::from(reference_hash(directory, name));
        [
            Key::new(inode, kind::INODE_REF, directory),
            Key::new(inode, kind::INODE_EXTREF, hash),
        ]
    }

    /// Where a name leads.
    pub(super) fn target(&self, directory: u64, name: &[u8]) -> Result<Option<Key>> {
        let item = self.get(Self::hashed(directory, name))?.unwrap_or_default();
        let found = names(&item)?.into_iter().find(|one| one.name == name);
        Ok(found.map(|one| one.location))
    }

    /// Where a name leads that stands at an index.
    pub(super) fn target_at(&self, directory: u64, index: u64, name: &[u8]) -> Result<Option<Key>> {
        let found = self.any_at(directory, index)?;
        Ok(found.filter(|(_, own)| own == name).map(|(found, _)| found))
    }

    /// The name at an index, and where it leads.
    pub(super) fn any_at(&self, directory: u64, index: u64) -> Result<Option<(Key, Vec<u8>)>> {
        let key = Key::new(directory, kind::DIR_INDEX, index);
        let item = self.get(key)?.unwrap_or_default();
        let found = names(&item)?.into_iter().next();
        Ok(found.map(|one| (one.location, one.name.to_vec())))
    }

    /// Takes a name away, from its directory and from its inode.
    pub(super) fn remove(
        &mut self,
        directory: u64,
        inode: u64,
        name: &[u8],
        index: Option<u64>,
    ) -> Result<()> {
        self.touch(inode);
        let mut indexes: BTreeSet<u64> = index.into_iter().collect();
        for key in Self::reference_keys(directory, inode, name) {
            let Some(item) = self.get(key)? else {
                continue;
            };
            let all = references(key, &item)?;
            let (gone, left): (Vec<_>, Vec<_>) =
                (all.into_iter()).partition(|one| one.parent == directory && one.name == name);
            if gone.is_empty() {
                continue;
            }
            indexes.extend(gone.iter().map(|one| one.index));
            let left = (!left.is_empty()).then(|| unparse(key, &left).into());
            self.set(key, left);
        }
        for index in indexes {
            if self.target_at(directory, index, name)?.is_some() {
                self.set(Key::new(directory, kind::DIR_INDEX, index), None);
            }
        }
        let key = Self::hashed(directory, name);
        if let Some(item) = self.get(key)? {
            let left: Vec<u8> = names(&item)?
                .iter()
                .filter(|one| one.name != name)
                .flat_map(|one| one.raw.iter().copied())
                .collect();
            self.set(key, (!left.is_empty()).then(|| left.into()));
        }
        Ok(())
    }

    /// Gives a directory a name of an inode.
    pub(super) fn add(
        &mut self,
        directory: u64,
        inode: u64,
        index: u64,
        name: &[u8],
        back: Back,
    ) -> Result<()> {
        self.touch(inode);
        let target = Key::new(inode, kind::INODE, 0);
        let item = (self.get(target)?).ok_or_else(|| {
            Error::corrupt(format!("a name of inode {inode}, which is not there"))
        })?;
        let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
        let mut entry = Vec::new();
        entry.extend_from_slice(&target.object.to_le_bytes());
        entry.push(target.kind);
        entry.extend_from_slice(&target.offset.to_le_bytes());
        entry.extend_from_slice(&[0; 10]);
        entry.extend_from_slice(&length.to_le_bytes());
        entry.push(type_of(field::u32_le(&item, 52)?));
        entry.extend_from_slice(name);
        let by_index = Key::new(directory, kind::DIR_INDEX, index);
        self.set(by_index, Some(entry.clone().into()));
        let by_name = Self::hashed(directory, name);
        let old = self.get(by_name)?.unwrap_or_default();
        let mut all: Vec<u8> = names(&old)?
            .iter()
            .filter(|one| one.name != name)
            .flat_map(|one| one.raw.iter().copied())
            .collect();
        all.extend_from_slice(&entry);
        if all.len() > MAX_HASHED_BYTES {
            return Err(Error::corrupt(format!(
                "names of directory {directory} whose hashes are the same"
            )));
        }
        self.set(by_name, Some(all.into()));
        if back == Back::Add {
            let [plain, extended] = Self::reference_keys(directory, inode, name);
            let held = self.get(plain)?.map_or(0, |item| item.len());
            let key = if held > MAX_REFERENCE_BYTES {
                extended
            } else {
                plain
            };
            let mut all = references(key, &self.get(key)?.unwrap_or_default())?;
            all.push(Reference {
                parent: directory,
                index,
                name: name.to_vec(),
            });
            self.set(key, Some(unparse(key, &all).into()));
        }
        Ok(())
    }

    /// Sets the link counts of inodes whose names changed; what has no name any more is gone.
    pub(super) fn count_links(&mut self) -> Result<()> {
        for inode in std::mem::take(&mut self.touched) {
            let key = Key::new(inode, kind::INODE, 0);
            let Some(mut item) = self.get(key)? else {
                continue;
            };
            let from = Key::new(inode, kind::INODE_REF, 0);
            let to = Key::new(inode, kind::INODE_EXTREF, u64::MAX);
            let mut count = 0_usize;
            for (key, item) in self.range(from, to)? {
                count = count.saturating_add(references(key, &item)?.len());
            }
            if count == 0 {
                self.set(key, None);
                continue;
            }
            let links = u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
            if let Some(place) = item.get_mut(40..44) {
                place.copy_from_slice(&links);
            }
            self.set(key, Some(item.into()));
        }
        Ok(())
    }
}
