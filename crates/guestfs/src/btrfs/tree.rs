//! Trees: nodes proved by their checksums, and walks in the order of keys.
//!
//! ```text
//!   node: sum·32 fsid·16 place·8 flags·8 uuid·16 generation·8 owner·8 items·4 level·1 │ level > 0: key·17 place·8 generation·8 …
//!                                                                                   │ level 0:   key·17 offset·4 size·4 … bytes
//!   key: object·8 kind·1 offset·8
//! ```
//!
//! **Invariants.** A node is believed when its checksum, place, level, generation and first key are what its parent says;
//! else the other copies are tried. Keys rise inside a node and from node to node, so that each node is seen once in a
//! walk. At most eight levels. What a log changed ([`Overlay`]) lies over the tree and counts before it.

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

use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, PoisonError};

use super::checksum::ChecksumKind;
use super::chunk::ChunkMap;
use super::device::Devices;
use crate::{Error, Result, field};

const HEADER_BYTES: usize = 101;
/// Of nodes in memory.
const CACHE_BYTES: usize = 8 << 20;

/// Kinds of items.
pub(super) mod kind {
    pub(in super::super) const INODE: u8 = 1;
    pub(in super::super) const INODE_REF: u8 = 12;
    pub(in super::super) const INODE_EXTREF: u8 = 13;
    pub(in super::super) const XATTR: u8 = 24;
    pub(in super::super) const DIR_LOG_INDEX: u8 = 72;
    pub(in super::super) const DIR_ITEM: u8 = 84;
    pub(in super::super) const DIR_INDEX: u8 = 96;
    pub(in super::super) const EXTENT_DATA: u8 = 108;
    pub(in super::super) const CHECKSUMS: u8 = 128;
    pub(in super::super) const ROOT: u8 = 132;
    pub(in super::super) const ROOT_REF: u8 = 156;
    pub(in super::super) const EXTENT: u8 = 168;
    pub(in super::super) const METADATA: u8 = 169;
    pub(in super::super) const DEVICE: u8 = 216;
    pub(in super::super) const CHUNK: u8 = 228;
}

/// What an item is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) fn new(object: u64, kind: u8, offset: u64) -> Self {
        Self {
            object,
            kind,
            offset,
        }
    }

    pub(super) fn parse(bytes: &[u8], at: usize) -> Result<Self> {
        Ok(Self {
            object: field::u64_le(bytes, at)?,
            kind: field::u8_at(bytes, at.saturating_add(8))?,
            offset: field::u64_le(bytes, at.saturating_add(9))?,
        })
    }

    /// The largest key below this one.
    fn before(self) -> Option<Self> {
        if let Some(offset) = self.offset.checked_sub(1) {
            return Some(Self { offset, ..self });
        }
        if let Some(kind) = self.kind.checked_sub(1) {
            return Some(Self::new(self.object, kind, u64::MAX));
        }
        let object = self.object.checked_sub(1)?;
        Some(Self::new(object, u8::MAX, u64::MAX))
    }
}

/// Where a tree begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) place: u64,
    pub(super) level: u8,
    pub(super) generation: u64,
}

/// Items that count before those of the tree; none: the tree's does not count any more.
pub(super) type Overlay = BTreeMap<Key, Option<Arc<[u8]>>>;

/// A tree, and what lies over it.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub(super) root: Root,
    pub(super) overlay: Option<Arc<Overlay>>,
}

impl Tree {
    pub(super) fn plain(root: Root) -> Self {
        Self {
            root,
            overlay: None,
        }
    }
}

/// What is done with an item, and whether to go on.
type Visit<'v> = dyn FnMut(Key, &[u8]) -> Result<ControlFlow<()>> + 'v;

/// The bytes of an item.
#[derive(Debug, Clone)]
pub(super) enum Item {
    InNode(Arc<Node>, Range<usize>),
    Over(Arc<[u8]>),
}

impl Item {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::InNode(node, range) => node.bytes.get(range.clone()).unwrap_or_default(),
            Self::Over(bytes) => bytes,
        }
    }
}

/// A node that was proved.
#[derive(Debug)]
pub(super) struct Node {
    bytes: Vec<u8>,
    level: u8,
    generation: u64,
    slots: Vec<(Key, Slot)>,
}

#[derive(Debug)]
enum Slot {
    Child { place: u64, generation: u64 },
    Item(Range<usize>),
}

impl Node {
    fn parse(bytes: Vec<u8>) -> Result<Self> {
        let level = field::u8_at(&bytes, 100)?;
        let count = usize::try_from(field::u32_le(&bytes, 96)?).unwrap_or(usize::MAX);
        let width = if level == 0 { 25 } else { 33 };
        let room = bytes.len().saturating_sub(HEADER_BYTES);
        if count > room.checked_div(width).unwrap_or(0) || level > 7 {
            return Err(Error::corrupt(format!("{count} items on level {level}")));
        }
        let mut slots: Vec<(Key, Slot)> = Vec::with_capacity(count);
        let mut at = HEADER_BYTES;
        for _ in 0..count {
            let key = Key::parse(&bytes, at)?;
            if slots.last().is_some_and(|(last, _)| *last >= key) {
                return Err(Error::corrupt("its keys do not rise"));
            }
            let slot = if level == 0 {
                let word = |behind| -> Result<usize> {
                    let word = field::u32_le(&bytes, at.saturating_add(behind))?;
                    Ok(usize::try_from(word).unwrap_or(usize::MAX))
                };
                let start = word(17)?.saturating_add(HEADER_BYTES);
                let length = word(21)?;
                field::slice(&bytes, start, length)?;
                Slot::Item(start..start.saturating_add(length))
            } else {
                Slot::Child {
                    place: field::u64_le(&bytes, at.saturating_add(17))?,
                    generation: field::u64_le(&bytes, at.saturating_add(25))?,
                }
            };
            slots.push((key, slot));
            at = at.saturating_add(width);
        }
        Ok(Self {
            level,
            generation: field::u64_le(&bytes, 80)?,
            slots,
            bytes,
        })
    }

    /// Where the first key at or behind this one is.
    fn position(&self, key: Key) -> usize {
        self.slots.partition_point(|(own, _)| *own < key)
    }

    /// The last slot whose key is not behind this one, or the first.
    fn towards(&self, key: Key) -> usize {
        (self.slots)
            .partition_point(|(own, _)| *own <= key)
            .saturating_sub(1)
    }
}

/// Nodes, the last used ones in memory.
#[derive(Default)]
struct Cache {
    nodes: HashMap<u64, (Arc<Node>, u64)>,
    order: BTreeMap<u64, u64>,
    moment: u64,
}

impl Cache {
    fn touch(&mut self, place: u64) -> Option<Arc<Node>> {
        self.moment = self.moment.wrapping_add(1);
        let (node, used) = self.nodes.get_mut(&place)?;
        self.order.remove(used);
        *used = self.moment;
        self.order.insert(self.moment, place);
        Some(Arc::clone(node))
    }

    fn keep(&mut self, place: u64, node: &Arc<Node>, capacity: usize) {
        self.moment = self.moment.wrapping_add(1);
        if let Some((_, used)) = (self.nodes).insert(place, (Arc::clone(node), self.moment)) {
            self.order.remove(&used);
        }
        self.order.insert(self.moment, place);
        while self.nodes.len() > capacity {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            self.nodes.remove(&oldest);
        }
    }
}

/// Everything that is needed to read nodes.
pub(super) struct Forest {
    pub(super) devices: Devices,
    pub(super) chunks: ChunkMap,
    pub(super) checksum: ChecksumKind,
    node_bytes: usize,
    cache: Mutex<Cache>,
}

/// What a parent says of its child.
#[derive(Clone, Copy)]
struct Expected {
    place: u64,
    level: u8,
    generation: u64,
    first: Option<Key>,
}

impl Forest {
    pub(super) fn new(
        devices: Devices,
        chunks: ChunkMap,
        checksum: ChecksumKind,
        node_bytes: u32,
    ) -> Self {
        Self {
            devices,
            chunks,
            checksum,
            node_bytes: usize::try_from(node_bytes).unwrap_or(1 << 16),
            cache: Mutex::default(),
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, wanted: Expected) -> Result<Arc<Node>> {
        let within = |error: Error| error.within(format!("tree node {}", wanted.place));
        let cached = self.cache().touch(wanted.place);
        if let Some(node) = cached {
            check(&node, wanted).map_err(within)?;
            return Ok(node);
        }
        let copies = self.chunks.at(wanted.place).map_err(within)?.copies();
        let mut trouble = None;
        for copy in 0..copies.max(1) {
            match self.read_node(wanted, copy) {
                Ok(node) => {
                    let capacity = CACHE_BYTES.checked_div(self.node_bytes).unwrap_or(128);
                    let node = Arc::new(node);
                    self.cache().keep(wanted.place, &node, capacity);
                    return Ok(node);
                }
                Err(error) => {
                    trouble.get_or_insert(error);
                }
            }
        }
        Err(within(
            trouble.unwrap_or_else(|| Error::corrupt("it has no copy")),
        ))
    }

    fn read_node(&self, wanted: Expected, copy: usize) -> Result<Node> {
        let mut bytes = vec![0; self.node_bytes];
        (self.devices).read(&self.chunks, wanted.place, copy, &mut bytes)?;
        if !(self.checksum).proves(bytes.get(32..).unwrap_or_default(), &bytes) {
            return Err(Error::corrupt("its checksum is wrong"));
        }
        if field::u64_le(&bytes, 48)? != wanted.place {
            return Err(Error::corrupt("it belongs elsewhere"));
        }
        let node = Node::parse(bytes)?;
        check(&node, wanted)?;
        Ok(node)
    }

    /// The leaf where a key is or would be, and the first key of what follows it.
    fn leaf(&self, root: Root, key: Key) -> Result<(Arc<Node>, Option<Key>)> {
        let mut bound = None;
        let mut node = self.node(Expected {
            place: root.place,
            level: root.level,
            generation: root.generation,
            first: None,
        })?;
        while node.level > 0 {
            let index = node.towards(key);
            if let Some((next, _)) = node.slots.get(index.saturating_add(1)) {
                bound = Some(*next);
            }
            let Some((first, Slot::Child { place, generation })) = node.slots.get(index) else {
                return Err(Error::corrupt(format!(
                    "tree node without children below {}",
                    root.place
                )));
            };
            let wanted = Expected {
                place: *place,
                level: node.level.saturating_sub(1),
                generation: *generation,
                first: Some(*first),
            };
            node = self.node(wanted)?;
            let last = node.slots.last().map(|(last, _)| *last);
            if bound.is_some_and(|bound| last.is_some_and(|last| last >= bound)) {
                return Err(Error::corrupt(format!(
                    "tree node {} reaches into its neighbour",
                    wanted.place
                )));
            }
        }
        Ok((node, bound))
    }

    /// Tells the items from a key on, without what lies over the tree.
    pub(super) fn walk_plain(
        &self,
        root: Root,
        from: Key,
        visit: &mut dyn FnMut(Key, Item) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut from = Some(from);
        while let Some(start) = from {
            let (leaf, bound) = self.leaf(root, start)?;
            let position = leaf.position(start);
            for (key, slot) in leaf.slots.get(position..).unwrap_or_default() {
                if let Slot::Item(range) = slot
                    && visit(*key, Item::InNode(Arc::clone(&leaf), range.clone()))?.is_break()
                {
                    return Ok(());
                }
            }
            from = bound;
        }
        Ok(())
    }

    /// Tells the items of a range of keys, both ends included.
    pub(super) fn walk(
        &self,
        tree: &Tree,
        keys: std::ops::RangeInclusive<Key>,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let (from, to) = keys.into_inner();
        if from > to {
            return Ok(());
        }
        let Some(overlay) = &tree.overlay else {
            return self.walk_plain(tree.root, from, &mut |key, item| {
                if key > to {
                    return Ok(ControlFlow::Break(()));
                }
                visit(key, item.bytes())
            });
        };
        let mut over = overlay.range(from..=to).peekable();
        let mut is_stopped = false;
        self.walk_plain(tree.root, from, &mut |key, item| {
            while let Some((own, bytes)) = over.next_if(|(own, _)| **own <= key) {
                if let Some(bytes) = bytes
                    && visit(*own, bytes)?.is_break()
                {
                    is_stopped = true;
                    return Ok(ControlFlow::Break(()));
                }
            }
            if key > to {
                return Ok(ControlFlow::Break(()));
            }
            if overlay.contains_key(&key) {
                return Ok(ControlFlow::Continue(()));
            }
            let flow = visit(key, item.bytes())?;
            is_stopped = flow.is_break();
            Ok(flow)
        })?;
        for (own, bytes) in over {
            if is_stopped {
                break;
            }
            if let Some(bytes) = bytes {
                is_stopped = visit(*own, bytes)?.is_break();
            }
        }
        Ok(())
    }

    /// The item of exactly this key.
    pub(super) fn get(&self, tree: &Tree, key: Key) -> Result<Option<Item>> {
        if let Some(over) = tree.overlay.as_ref().and_then(|over| over.get(&key)) {
            return Ok(over.clone().map(Item::Over));
        }
        let (leaf, _) = self.leaf(tree.root, key)?;
        let found = leaf.slots.get(leaf.position(key));
        Ok(match found {
            Some((own, Slot::Item(range))) if *own == key => {
                Some(Item::InNode(Arc::clone(&leaf), range.clone()))
            }
            _ => None,
        })
    }

    /// The last item between these keys, both ends included.
    pub(super) fn last(&self, tree: &Tree, from: Key, to: Key) -> Result<Option<(Key, Item)>> {
        let over = tree.overlay.as_deref();
        let mut below = Some(to);
        let mut found = None;
        while let Some(key) = below.take().filter(|key| *key >= from) {
            found = self.last_plain(tree.root, key)?;
            // What the overlay replaces or takes away does not count.
            if let Some((own, _)) = &found
                && over.is_some_and(|over| over.contains_key(own))
            {
                below = own.before();
                found = None;
            }
        }
        let found = found.filter(|(key, _)| *key >= from);
        let above = over
            .filter(|_| from <= to)
            .and_then(|over| {
                over.range(from..=to)
                    .rev()
                    .find_map(|(key, item)| Some((*key, Item::Over(item.clone()?))))
            })
            .filter(|(key, _)| found.as_ref().is_none_or(|(own, _)| own < key));
        Ok(above.or(found))
    }

    fn last_plain(&self, root: Root, key: Key) -> Result<Option<(Key, Item)>> {
        let (leaf, _) = self.leaf(root, key)?;
        Ok(match leaf.slots.get(leaf.towards(key)) {
            Some((own, Slot::Item(range))) if *own <= key => {
                Some((*own, Item::InNode(Arc::clone(&leaf), range.clone())))
            }
            _ => None,
        })
    }

    /// The first item between these keys, both ends included.
    pub(super) fn first(&self, tree: &Tree, from: Key, to: Key) -> Result<Option<Key>> {
        let mut found = None;
        self.walk(tree, from..=to, &mut |key, _| {
            found = Some(key);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// The places of all nodes of a tree that has at most so many.
    pub(super) fn node_places(&self, root: Root, most: usize) -> Result<Vec<u64>> {
        let mut waiting = vec![Expected {
            place: root.place,
            level: root.level,
            generation: root.generation,
            first: None,
        }];
        let mut places = Vec::new();
        while let Some(wanted) = waiting.pop() {
            places.push(wanted.place);
            if places.len() > most {
                return Err(Error::new(
                    crate::ErrorKind::Limit,
                    "a log of more nodes than are kept in memory",
                ));
            }
            if wanted.level == 0 {
                continue;
            }
            let node = self.node(wanted)?;
            for (first, slot) in &node.slots {
                if let Slot::Child { place, generation } = slot {
                    waiting.push(Expected {
                        place: *place,
                        level: wanted.level.saturating_sub(1),
                        generation: *generation,
                        first: Some(*first),
                    });
                }
            }
        }
        Ok(places)
    }
}

/// Whether a node is what its parent says.
fn check(node: &Node, wanted: Expected) -> Result<()> {
    if node.level != wanted.level {
        return Err(Error::corrupt(format!(
            "it is of level {}, not {}",
            node.level, wanted.level
        )));
    }
    if node.generation != wanted.generation {
        return Err(Error::corrupt(format!(
            "it is of generation {}, not {}",
            node.generation, wanted.generation
        )));
    }
    if let Some(first) = wanted.first
        && node.slots.first().is_none_or(|(own, _)| *own != first)
    {
        return Err(Error::corrupt("it does not begin where its parent says"));
    }
    Ok(())
}
