//! From damaged blobs to the points they hit: every tree is walked, every node once.
//!
//! **Invariant.** Memory is one entry per node of all trees, and the damage itself.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use block::NodeHash;
use block::geometry::MAX_HEIGHT;
use block::tree::{Node, NodeSource};

use crate::gc::ground::Ground;
use crate::gc::mark::is_damage;
use crate::{BlobName, Error, Result, names};

use super::packs::BadPlaces;
use super::{Finding, FindingSeverity};

/// Which damage lies below a node: numbers into [`DamageWalk::damage`].
type Damage = Arc<BTreeSet<usize>>;

/// Walks trees and remembers what is damaged below each node.
pub(crate) struct DamageWalk<'a> {
    ground: &'a Ground,
    bad: &'a BadPlaces,
    sound: HashSet<(u8, NodeHash)>,
    hit: HashMap<(u8, NodeHash), Damage>,
    blobs: HashMap<BlobName, usize>,
    /// What was found, each blob once.
    pub(crate) damage: Vec<Finding>,
    /// The blobs that were found, in the same order.
    pub(crate) lost: Vec<BlobName>,
    pub(crate) nodes_walked: u64,
    /// Whether a blob was found only in packs that nobody has read yet; asked in a full run.
    pub(crate) met_unread: bool,
    /// Whether the index was brought up to date since the walk began.
    is_fresh: bool,
}

impl<'a> DamageWalk<'a> {
    pub(crate) fn new(ground: &'a Ground, bad: &'a BadPlaces) -> Self {
        Self {
            ground,
            bad,
            sound: HashSet::new(),
            hit: HashMap::new(),
            blobs: HashMap::new(),
            damage: Vec::new(),
            lost: Vec::new(),
            nodes_walked: 0,
            met_unread: false,
            is_fresh: false,
        }
    }

    /// What is damaged in a tree. Recursion is as deep as the tree is high: five levels.
    pub(crate) fn visit(&mut self, level: u8, hash: NodeHash) -> Result<Damage> {
        if level == 0 || level > MAX_HEIGHT || hash == NodeHash::zero(level) {
            return Ok(Damage::default());
        }
        if self.sound.contains(&(level, hash)) {
            return Ok(Damage::default());
        }
        if let Some(known) = self.hit.get(&(level, hash)) {
            return Ok(Arc::clone(known));
        }
        self.nodes_walked = self.nodes_walked.saturating_add(1);
        let name = BlobName::Node { level, hash };
        let mut found: BTreeSet<usize> = self.check(&name)?.into_iter().collect();
        if found.is_empty() {
            match self.ground.nodes.node(level, hash).map_err(Error::from) {
                Ok(node) => self.visit_children(level, &node, &mut found)?,
                Err(error) if is_damage(&error) => {
                    found.insert(self.lose(&name, &error)?);
                }
                Err(error) => return Err(error),
            }
        }
        if found.is_empty() {
            self.sound.insert((level, hash));
            return Ok(Damage::default());
        }
        let found = Arc::new(found);
        self.hit.insert((level, hash), Arc::clone(&found));
        Ok(found)
    }

    fn visit_children(
        &mut self,
        level: u8,
        node: &Node,
        found: &mut BTreeSet<usize>,
    ) -> Result<()> {
        if level == 1 {
            for block in node.blocks() {
                let name = BlobName::Block(block);
                if !name.is_zero() {
                    found.extend(self.check(&name)?);
                }
            }
            return Ok(());
        }
        for child in node.children() {
            let below = self.visit(level.saturating_sub(1), child)?;
            found.extend(below.iter().copied());
        }
        Ok(())
    }

    /// The number of a blob's damage, if no good place of it is left.
    fn check(&mut self, name: &BlobName) -> Result<Option<usize>> {
        if let Some(known) = self.blobs.get(name) {
            return Ok(Some(*known));
        }
        let mut places = self.ground.index.find_all(name)?;
        if places.is_empty() && !self.is_fresh {
            // It may have been moved by garbage collection. Once is enough: what is live then is found.
            self.is_fresh = true;
            self.ground.refresh()?;
            places = self.ground.index.find_all(name)?;
        }
        let mut good = places.iter().filter(|place| !self.bad.contains(**place));
        if let Some(first) = good.next() {
            let read = self.bad.was_read(*first) || good.any(|place| self.bad.was_read(*place));
            self.met_unread |= !read;
            return Ok(None);
        }
        let blamed = places
            .first()
            .and_then(|place| self.ground.index.pack(place.pack));
        let error = match blamed {
            Some(row) => {
                let pack = names::pack(row.kind, row.id)?;
                Error::corrupt(pack, format_args!("{name} is damaged"))
            }
            None => Error::new(crate::ErrorKind::NotFound, format!("{name}: in no pack")),
        };
        self.lose(name, &error).map(Some)
    }

    fn lose(&mut self, name: &BlobName, error: &Error) -> Result<usize> {
        let number = self.damage.len();
        self.damage.push(Finding {
            object: name.to_string(),
            what: error.to_string(),
            severity: FindingSeverity::Damaged,
        });
        self.lost.push(*name);
        self.blobs.insert(*name, number);
        Ok(number)
    }
}
