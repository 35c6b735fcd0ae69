//! Marking: which blobs are reachable, one bit per blob, each node visited once.
//!
//! ```text
//!   roots ──► node ──► home in the index ──► bit set already? ── yes ──► skip the whole subtree
//!                                              └─ no ──► set it, read the node, go on with its children
//!   per pack number:  0110 1111 0000 …        one bit per ordinal
//! ```
//!
//! **Invariants.** Memory is one bit per blob and a path of nodes. A subtree is skipped only if its top's bit was set by this
//! very marking, never because the index knows it: a node's presence proves nothing about its children. What cannot be read
//! or found is collected and does not end the marking. Of a blob with several places one is marked and the others are noted as
//! spare: see [`super::spare`] for what has to be true before they go.

use block::NodeHash;
use block::tree::NodeSource;

use crate::index::BlobPlace;
use crate::lease::TreeRoot;
use crate::{BlobName, Error, ErrorKind, Result};

/// Where blobs lie, as far as one marking may use it.
pub(crate) trait BlobHomes {
    /// All places of a blob that may be used; the first one is taken when none is marked yet.
    fn homes(&self, name: &BlobName) -> Result<Vec<BlobPlace>>;
}

/// One bit per blob of each pack.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlobMarks {
    packs: Vec<Vec<u64>>,
}

impl BlobMarks {
    /// Sets a bit; whether it was clear before.
    pub(crate) fn insert(&mut self, home: BlobPlace) -> bool {
        let (Ok(pack), Ok(word)) = (
            usize::try_from(home.pack),
            usize::try_from(home.ordinal / 64),
        ) else {
            return false;
        };
        if self.packs.len() <= pack {
            self.packs.resize_with(pack.saturating_add(1), Vec::new);
        }
        let Some(words) = self.packs.get_mut(pack) else {
            return false;
        };
        if words.len() <= word {
            words.resize(word.saturating_add(1), 0);
        }
        let bit = 1u64 << (home.ordinal % 64);
        match words.get_mut(word) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }

    /// Whether a bit is set.
    pub(crate) fn contains(&self, home: BlobPlace) -> bool {
        let word = usize::try_from(home.ordinal / 64).unwrap_or(usize::MAX);
        self.words(home.pack)
            .get(word)
            .is_some_and(|word| word & (1u64 << (home.ordinal % 64)) != 0)
    }

    /// How many blobs of a pack are marked.
    pub(crate) fn count(&self, pack: u32) -> u32 {
        self.words(pack).iter().map(|word| word.count_ones()).sum()
    }

    /// How many blobs are marked in all.
    pub(crate) fn total(&self) -> u64 {
        self.packs
            .iter()
            .flatten()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Marks every blob of a pack whose blobs were all copied from marked ones.
    pub(crate) fn insert_all(&mut self, pack: u32, blobs: u32) {
        for ordinal in 0..blobs {
            self.insert(BlobPlace { pack, ordinal });
        }
    }

    /// Takes all marks off a pack.
    pub(crate) fn clear(&mut self, pack: u32) {
        if let Some(words) = usize::try_from(pack)
            .ok()
            .and_then(|pack| self.packs.get_mut(pack))
        {
            words.clear();
        }
    }

    fn words(&self, pack: u32) -> &[u64] {
        usize::try_from(pack)
            .ok()
            .and_then(|pack| self.packs.get(pack))
            .map_or(&[], Vec::as_slice)
    }
}

/// What marking could not reach.
#[derive(Debug)]
pub(crate) struct Unreachable {
    /// The blob.
    pub(crate) name: BlobName,
    /// `NotFound` when no pack has it, else why it could not be read.
    pub(crate) error: Error,
}

/// Marks everything below roots.
pub(crate) struct Marker<'a> {
    homes: &'a dyn BlobHomes,
    nodes: &'a dyn NodeSource,
    pub(crate) marks: BlobMarks,
    /// Places of marked blobs that were not chosen.
    pub(crate) spares: BlobMarks,
    pub(crate) nodes_read: u64,
}

/// Hears of a blob that was not marked before: where it is marked, and all of its places.
pub(crate) type Visit<'v> = dyn FnMut(BlobPlace, &[BlobPlace]) + 'v;

impl<'a> Marker<'a> {
    pub(crate) fn new(homes: &'a dyn BlobHomes, nodes: &'a dyn NodeSource) -> Self {
        Self::resume(homes, nodes, BlobMarks::default())
    }

    /// Goes on with marks that were made before over the same numbering of packs.
    pub(crate) fn resume(
        homes: &'a dyn BlobHomes,
        nodes: &'a dyn NodeSource,
        marks: BlobMarks,
    ) -> Self {
        Self {
            homes,
            nodes,
            marks,
            spares: BlobMarks::default(),
            nodes_read: 0,
        }
    }

    /// Marks one tree. `visit` hears of each blob that was not marked before; `unreachable` collects what is damaged, at
    /// most one entry per blob that was met.
    ///
    /// # Errors
    /// Failures of the store or the index that are no damage: then nothing may be concluded from the marks.
    pub(crate) fn mark(
        &mut self,
        root: TreeRoot,
        visit: &mut Visit<'_>,
        unreachable: &mut Vec<Unreachable>,
    ) -> Result<()> {
        // At most one path of nodes with all their children: height times fan-out.
        let mut stack: Vec<(u8, NodeHash)> = vec![(root.height, root.top)];
        while let Some((level, hash)) = stack.pop() {
            if level == 0 || level > block::geometry::MAX_HEIGHT || hash == NodeHash::zero(level) {
                continue;
            }
            let name = BlobName::Node { level, hash };
            if !self.reach(&name, visit, unreachable)? {
                continue;
            }
            self.nodes_read = self.nodes_read.saturating_add(1);
            let node = match self.nodes.node(level, hash) {
                Ok(node) => node,
                Err(error) => {
                    let error = Error::from(error);
                    if !is_damage(&error) {
                        return Err(error);
                    }
                    unreachable.push(Unreachable { name, error });
                    continue;
                }
            };
            if level == 1 {
                for block in node.blocks() {
                    let name = BlobName::Block(block);
                    if !name.is_zero() {
                        self.reach(&name, visit, unreachable)?;
                    }
                }
            } else {
                // The first child is marked first, so that packs are met in disk order.
                let below = level.saturating_sub(1);
                let children: Vec<NodeHash> = node.children().collect();
                stack.extend(children.into_iter().rev().map(|child| (below, child)));
            }
        }
        Ok(())
    }

    /// Marks one blob; whether it is there and was not marked before.
    fn reach(
        &mut self,
        name: &BlobName,
        visit: &mut Visit<'_>,
        unreachable: &mut Vec<Unreachable>,
    ) -> Result<bool> {
        let places = self.homes.homes(name)?;
        if places.iter().any(|place| self.marks.contains(*place)) {
            return Ok(false);
        }
        let Some(place) = places.first().copied() else {
            let error = Error::new(ErrorKind::NotFound, format!("{name}: in no pack"));
            unreachable.push(Unreachable { name: *name, error });
            return Ok(false);
        };
        self.marks.insert(place);
        for spare in places.iter().skip(1) {
            self.spares.insert(*spare);
        }
        visit(place, &places);
        Ok(true)
    }
}

/// Whether an error speaks of what lies in the store, and not of the way there.
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::WrongKey
    )
}

/// Sorts out what failed to be read: `None` is absent, `Some` is damaged, and an error says nothing about what lies there.
pub(crate) fn absent_or_damaged(error: Error) -> Result<Option<Error>> {
    match error.kind() {
        ErrorKind::NotFound => Ok(None),
        _ if is_damage(&error) => Ok(Some(error)),
        _ => Err(error),
    }
}
