//! The log: what was synced behind the last commit, replayed in memory.
//!
//! ```text
//!   superblock ─► tree of logs ─► log of each subvolume ─► 1 inodes, attributes and names that went
//!                                                          2 names that came with their directory
//!                                                          3 names that came with their file, extents, attributes
//!                                                          4 link counts        ─► items over the subvolume's tree
//! ```
//!
//! **Invariants.** What is shown is what Linux shows after a mount, but for times of directories that Linux sets to the
//! moment of its replay. Nothing is written. A log that cannot be replayed whole is not replayed at all: the last commit
//! is sound by itself.

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

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::contents::{ExtentData, Form};
use super::data::CHECKSUM_OBJECT;
use super::inode::names;
use super::names::Names;
use super::superblock::Superblock;
use super::tree::{Forest, Key, Overlay, Root, Tree, kind};
use crate::{Error, ErrorKind, Result, field};

/// A log holds what was synced since the last commit, usually within 30 seconds; its items are kept in memory.
const MAX_BYTES: u64 = 32 << 20;
const LOG_OBJECT: u64 = 6_u64.wrapping_neg();

/// What a replay gave.
#[derive(Default)]
pub(super) struct Replayed {
    /// Items over the tree of each subvolume.
    pub(super) overlays: HashMap<u64, Arc<Overlay>>,
    /// Sums of contents, by address.
    pub(super) sums: BTreeMap<u64, Arc<[u8]>>,
    /// Addresses that the log needs: ascending, apart from each other.
    pub(super) used: Vec<Range<u64>>,
}

/// Replays the log over subvolumes that `subvolume` finds.
pub(super) fn replay(
    forest: &Forest,
    superblock: &Superblock,
    subvolume: &dyn Fn(u64) -> Result<Root>,
) -> Result<Replayed> {
    let mut replayed = Replayed::default();
    let logs = Root {
        place: superblock.log_root,
        level: superblock.log_root_level,
        generation: superblock.generation.wrapping_add(1),
    };
    let node_bytes = u64::from(superblock.node_bytes);
    let budget = MAX_BYTES.checked_div(node_bytes).unwrap_or(0);
    let mut budget = usize::try_from(budget).unwrap_or(0);
    let mut used = Vec::new();
    let mut add_nodes = |root: Root| -> Result<()> {
        let places = forest.node_places(root, budget)?;
        budget = (budget.checked_sub(places.len()))
            .ok_or_else(|| Error::new(ErrorKind::Limit, "a log of too many nodes"))?;
        used.extend(places.iter().map(|at| *at..at.saturating_add(node_bytes)));
        Ok(())
    };
    add_nodes(logs)?;
    let mut roots = Vec::new();
    let from = Key::new(LOG_OBJECT, kind::ROOT, 0);
    let to = Key::new(LOG_OBJECT, kind::ROOT, u64::MAX);
    forest.walk(&Tree::plain(logs), from..=to, &mut |key, item| {
        roots.push((key.offset, super::root_of(item)?));
        Ok(ControlFlow::Continue(()))
    })?;
    for (id, root) in roots {
        add_nodes(root)?;
        let mut one = Replay {
            names: Names::new(forest, Tree::plain(subvolume(id)?)),
            log: BTreeMap::new(),
            sector_bytes: u64::from(superblock.sector_bytes),
            ignored: BTreeSet::new(),
            referred: HashSet::new(),
            bytes: BTreeMap::new(),
        };
        forest.walk_plain(root, Key::new(0, 0, 0), &mut |key, item| {
            let bytes: Arc<[u8]> = item.bytes().into();
            if key.object == CHECKSUM_OBJECT && key.kind == kind::CHECKSUMS {
                replayed.sums.insert(key.offset, bytes);
            } else {
                one.log.insert(key, bytes);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        one.run()?;
        for (key, item) in &one.log {
            if key.kind == kind::EXTENT_DATA
                && let Form::Regular(place) | Form::Reserved(place) =
                    ExtentData::parse(item)?.0.form
            {
                used_extent(&mut replayed.used, place.logical, place.length);
            }
        }
        replayed.overlays.insert(id, Arc::new(one.names.over));
    }
    replayed.used.extend(used);
    replayed.used = joined(std::mem::take(&mut replayed.used));
    Ok(replayed)
}

fn used_extent(used: &mut Vec<Range<u64>>, start: u64, length: u64) {
    used.push(start..start.saturating_add(length));
}

fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The replay over one subvolume.
struct Replay<'f> {
    names: Names<'f>,
    log: BTreeMap<Key, Arc<[u8]>>,
    sector_bytes: u64,
    /// Inodes that had no name any more when they were synced.
    ignored: BTreeSet<u64>,
    /// Names that the log itself says inodes have: inode, directory, name.
    referred: HashSet<(u64, u64, Vec<u8>)>,
    /// How many bytes of extents each file gained, or lost.
    bytes: BTreeMap<u64, i128>,
}

impl Replay<'_> {
    fn run(&mut self) -> Result<()> {
        let log = std::mem::take(&mut self.log);
        for (key, item) in &log {
            if matches!(key.kind, kind::INODE_REF | kind::INODE_EXTREF) {
                for one in super::names::references(*key, item)? {
                    self.referred.insert((key.object, one.parent, one.name));
                }
            }
        }
        for (key, item) in &log {
            if key.kind == kind::INODE {
                self.inode(&log, *key, item)?;
            }
        }
        let items = || log.iter().map(|(key, item)| (*key, item));
        for (key, item) in items().filter(|(key, _)| key.kind == kind::DIR_INDEX) {
            if !self.ignored.contains(&key.object) {
                self.name_of_directory(key, item)?;
            }
        }
        for (key, item) in items() {
            if self.ignored.contains(&key.object) {
                continue;
            }
            match key.kind {
                kind::INODE_REF | kind::INODE_EXTREF => self.references(key, item)?,
                kind::EXTENT_DATA => self.extent(key, item)?,
                kind::XATTR => self.names.set(key, Some(Arc::clone(item))),
                _ => {}
            }
        }
        for (inode, change) in std::mem::take(&mut self.bytes) {
            let key = Key::new(inode, kind::INODE, 0);
            if let Some(mut item) = self.names.get(key)? {
                let held = i128::from(field::u64_le(&item, 24)?).saturating_add(change);
                put(&mut item, 24, u64::try_from(held).unwrap_or(0));
                self.names.set(key, Some(item.into()));
            }
        }
        self.names.count_links()?;
        self.log = log;
        Ok(())
    }

    /// The item of an inode, and what its directory or its attributes lost.
    fn inode(&mut self, log: &BTreeMap<Key, Arc<[u8]>>, key: Key, item: &[u8]) -> Result<()> {
        if field::u32_le(item, 40)? == 0 {
            self.ignored.insert(key.object);
            return Ok(());
        }
        self.names.touch(key.object);
        self.lost_attributes(log, key.object)?;
        let mode = field::u32_le(item, 52)? & 0xF000;
        if mode == 0x4000 {
            self.lost_names(log, key.object)?;
        }
        let known = self.names.get(key)?;
        let mut new = item.to_vec();
        if let Some(mut known) = known {
            let is_only_there = field::u64_le(item, 0)? == 0;
            if is_only_there {
                // Logged because a directory names it: what it holds was not synced.
                let size = field::u64_le(item, 16)?;
                if mode == 0x8000 && field::u32_le(&known, 52)? & 0xF000 == 0x8000 && size != 0 {
                    put(&mut known, 16, size);
                }
                new = known;
            } else {
                let held = field::u64_le(&known, 24)?;
                put(&mut new, 24, held);
            }
        } else {
            put(&mut new, 24, 0);
        }
        let size = field::u64_le(&new, 16)?;
        self.names.set(key, Some(new.into()));
        if mode == 0x8000 {
            let from = (size.checked_next_multiple_of(self.sector_bytes)).unwrap_or(u64::MAX);
            self.drop_extents(key.object, from, u64::MAX)?;
        }
        Ok(())
    }

    /// Attributes that the subvolume has and the log has not are gone.
    fn lost_attributes(&mut self, log: &BTreeMap<Key, Arc<[u8]>>, inode: u64) -> Result<()> {
        let from = Key::new(inode, kind::XATTR, 0);
        let to = Key::new(inode, kind::XATTR, u64::MAX);
        for (key, item) in self.names.range(from, to)? {
            let empty: Arc<[u8]> = Arc::new([]);
            let kept = log.get(&key).unwrap_or(&empty);
            let kept: Vec<&[u8]> = names(kept)?.iter().map(|one| one.name).collect();
            let all = names(&item)?;
            let left: Vec<u8> = all
                .iter()
                .filter(|one| kept.contains(&one.name))
                .flat_map(|one| one.raw.iter().copied())
                .collect();
            if left.len() != item.len() {
                self.names.set(key, (!left.is_empty()).then(|| left.into()));
            }
        }
        Ok(())
    }

    /// In the ranges of a directory that the log knows whole, names that it does not have are gone.
    fn lost_names(&mut self, log: &BTreeMap<Key, Arc<[u8]>>, directory: u64) -> Result<()> {
        let from = Key::new(directory, kind::DIR_LOG_INDEX, 0);
        let to = Key::new(directory, kind::DIR_LOG_INDEX, u64::MAX);
        let ranges: Vec<(u64, u64)> = log
            .range(from..=to)
            .map(|(key, item)| Ok((key.offset, field::u64_le(item, 0)?)))
            .collect::<Result<_>>()?;
        for (first, last) in ranges {
            let from = Key::new(directory, kind::DIR_INDEX, first);
            let to = Key::new(directory, kind::DIR_INDEX, last);
            for (key, item) in self.names.range(from, to)? {
                let kept = log.get(&key).map(|item| names(item)).transpose()?;
                for one in names(&item)? {
                    let is_kept = (kept.iter().flatten()).any(|other| other.name == one.name);
                    if !is_kept {
                        self.names.remove(
                            directory,
                            one.location.object,
                            one.name,
                            Some(key.offset),
                        )?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A name that was logged with its directory.
    fn name_of_directory(&mut self, key: Key, item: &[u8]) -> Result<()> {
        let directory = key.object;
        if self
            .names
            .get(Key::new(directory, kind::INODE, 0))?
            .is_none()
        {
            return Err(Error::corrupt(format!(
                "names of directory {directory}, which is not there"
            )));
        }
        for one in names(item)? {
            let target = one.location.object;
            let is_inode = one.location.kind == kind::INODE;
            let exists = is_inode && self.names.get(Key::new(target, kind::INODE, 0))?.is_some();
            let mut is_same = [false; 2];
            let found = [
                self.names.target(directory, one.name)?,
                self.names.target_at(directory, key.offset, one.name)?,
            ];
            for (found, is_same) in found.into_iter().zip(&mut is_same) {
                match found {
                    Some(found) if found == one.location => *is_same = true,
                    Some(found) if exists => {
                        self.names.remove(directory, found.object, one.name, None)?;
                    }
                    _ => {}
                }
            }
            let is_referred = (self.referred).contains(&(target, directory, one.name.to_vec()));
            if is_same == [true; 2] || !exists || is_referred {
                continue;
            }
            self.names.add(
                directory,
                target,
                key.offset,
                one.name,
                super::names::Back::Add,
            )?;
        }
        Ok(())
    }

    /// Names that were logged with their file.
    fn references(&mut self, key: Key, item: &Arc<[u8]>) -> Result<()> {
        let inode = key.object;
        if self.names.get(Key::new(inode, kind::INODE, 0))?.is_none() {
            return Err(Error::corrupt(format!(
                "names of inode {inode}, which is not there"
            )));
        }
        for one in super::names::references(key, item)? {
            // The root of a subvolume is its own parent.
            if one.parent == inode {
                continue;
            }
            let parent = Key::new(one.parent, kind::INODE, 0);
            if self.names.get(parent)?.is_none() {
                continue;
            }
            let by_name = self.names.target(one.parent, &one.name)?;
            let by_index = self.names.target_at(one.parent, one.index, &one.name)?;
            let is_it = |found: Option<Key>| {
                found.is_some_and(|found| found.object == inode && found.kind == kind::INODE)
            };
            if is_it(by_name) && is_it(by_index) {
                continue;
            }
            if let Some(other) = by_name {
                self.names
                    .remove(one.parent, other.object, &one.name, None)?;
            }
            if let Some((other, name)) = self.names.any_at(one.parent, one.index)? {
                self.names
                    .remove(one.parent, other.object, &name, Some(one.index))?;
            }
            let back = super::names::Back::Keep;
            self.names
                .add(one.parent, inode, one.index, &one.name, back)?;
        }
        // Names that the subvolume still has under this key and the log has not are gone.
        if let Some(old) = self.names.get(key)? {
            let kept = super::names::references(key, item)?;
            for one in super::names::references(key, &old)? {
                let is_kept = kept
                    .iter()
                    .any(|other| other.name == one.name && other.parent == one.parent);
                let named = (inode, one.parent, one.name);
                if !is_kept && !self.referred.contains(&named) {
                    let (inode, parent, name) = named;
                    self.names.remove(parent, inode, &name, Some(one.index))?;
                }
            }
        }
        self.names.set(key, Some(Arc::clone(item)));
        Ok(())
    }

    fn extent(&mut self, key: Key, item: &Arc<[u8]>) -> Result<()> {
        if self
            .names
            .get(Key::new(key.object, kind::INODE, 0))?
            .is_none()
        {
            return Err(Error::corrupt(format!(
                "an extent of inode {}, which is not there",
                key.object
            )));
        }
        let (extent, length) = ExtentData::parse(item)?;
        let mut end = key.offset.saturating_add(length);
        if extent.form == Form::Inline {
            end = (key.offset.saturating_add(extent.unpacked_bytes))
                .checked_next_multiple_of(self.sector_bytes)
                .unwrap_or(u64::MAX);
        }
        self.drop_extents(key.object, key.offset, end)?;
        if extent.form != Form::Hole {
            self.grow(key.object, i128::from(length));
        }
        self.names.set(key, Some(Arc::clone(item)));
        Ok(())
    }

    fn grow(&mut self, inode: u64, bytes: i128) {
        let held = self.bytes.entry(inode).or_default();
        *held = held.saturating_add(bytes);
    }

    /// Takes a range out of what a file holds.
    fn drop_extents(&mut self, inode: u64, start: u64, end: u64) -> Result<()> {
        let key = |offset| Key::new(inode, kind::EXTENT_DATA, offset);
        let Some(last) = end.checked_sub(1) else {
            return Ok(());
        };
        let mut found = self.names.range(key(start), key(last))?;
        if let Some(below) = start.checked_sub(1)
            && let Some(one) = self.names.last(key(0), key(below))?
        {
            found.insert(0, one);
        }
        for (own, item) in found {
            let (extent, length) = ExtentData::parse(&item)?;
            let own_end = own.offset.saturating_add(length);
            if own_end <= start || own.offset >= end {
                continue;
            }
            let is_inline = extent.form == Form::Inline;
            if is_inline && own.offset < start {
                continue;
            }
            let cut_start = own.offset.max(start);
            let cut_end = if is_inline { own_end } else { own_end.min(end) };
            if extent.form != Form::Hole {
                self.grow(
                    inode,
                    i128::from(cut_end.saturating_sub(cut_start)).saturating_neg(),
                );
            }
            self.names.set(own, None);
            if own.offset < start {
                let mut left = item.clone();
                put(&mut left, 45, start.saturating_sub(own.offset));
                self.names.set(own, Some(left.into()));
            }
            if cut_end < own_end {
                let skipped = cut_end.saturating_sub(own.offset);
                let mut right = item;
                let offset = field::u64_le(&right, 37)?;
                put(&mut right, 37, offset.saturating_add(skipped));
                put(&mut right, 45, own_end.saturating_sub(cut_end));
                self.names.set(key(cut_end), Some(right.into()));
            }
        }
        Ok(())
    }
}

/// A number over what lies there.
fn put(bytes: &mut [u8], at: usize, number: u64) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(8)) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(joined(vec![8..9, 0..4, 4..6, 5..7]), [0..7, 8..9]);
    }
}
