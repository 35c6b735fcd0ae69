//! Nodes read lately, and their neighbours in the pack: a walk in disk order meets them next.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use block::NodeHash;
use block::geometry::NODE_SIZE_BYTES;
use block::tree::Node;

use crate::access::ObjectAccess;
use crate::format::FRAME_HEADER_BYTES;
use crate::pack::PackFile;
use crate::repository::Repository;
use crate::{BlobName, Error, Result};

/// Nodes kept: 4 MiB.
const MAX_NODES: usize = 1024;
/// Bytes of a node pack that are read at once.
const READ_AHEAD_BYTES: u64 = 128 << 10;

/// Nodes by level and hash.
#[derive(Default)]
pub(crate) struct NodeCache {
    inner: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    nodes: HashMap<(u8, NodeHash), (u64, Node)>,
    clock: u64,
}

impl Kept {
    fn insert(&mut self, level: u8, hash: NodeHash, node: Node) {
        if self.nodes.len() >= MAX_NODES {
            // Half of them at once, so that making room is rare.
            let mut ages: Vec<u64> = self.nodes.values().map(|(used, _)| *used).collect();
            let half = ages.len() / 2;
            let (_, median, _) = ages.select_nth_unstable(half);
            let median = *median;
            self.nodes.retain(|_, (used, _)| *used > median);
        }
        let now = self.clock;
        self.nodes.insert((level, hash), (now, node));
    }
}

impl NodeCache {
    /// A node, from here or from its pack.
    pub(crate) fn node(&self, repository: &Repository, level: u8, hash: NodeHash) -> Result<Node> {
        {
            let mut kept = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            kept.clock = kept.clock.wrapping_add(1);
            let now = kept.clock;
            if let Some((used, node)) = kept.nodes.get_mut(&(level, hash)) {
                *used = now;
                return Ok(node.clone());
            }
        }
        let Some(name) = BlobName::from_parts(level, *hash.as_bytes()) else {
            return Err(Error::corrupt(
                hash,
                format_args!("no tree has a level {level}"),
            ));
        };
        if let Some(node) = self.read_neighbourhood(repository, &name)? {
            return Ok(node);
        }
        // The careful way: every place that it may lie at, and what is wrong with them.
        let node = Node::from_bytes(&repository.read_blob(&name)?)?;
        let mut kept = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(level, hash, node.clone());
        Ok(node)
    }

    /// Reads the node and what follows it in its pack. `None` when anything is in the way.
    fn read_neighbourhood(&self, repository: &Repository, name: &BlobName) -> Result<Option<Node>> {
        let index = repository.index()?;
        let Some(place) = index.find_all(name)?.pop() else {
            return Ok(None);
        };
        let Some(row) = index.pack(place.pack) else {
            return Ok(None);
        };
        let Ok(pack) = repository
            .pack_cache()
            .open(repository.vault(), row.kind, row.id)
        else {
            return Ok(None);
        };
        Ok(self.read_from(repository, &pack, place.ordinal, name))
    }

    fn read_from(
        &self,
        repository: &Repository,
        pack: &PackFile,
        ordinal: u32,
        name: &BlobName,
    ) -> Option<Node> {
        let first = pack.entry(ordinal).filter(|entry| entry.name == *name)?;
        let start = u64::from(first.offset);
        let mut last = ordinal;
        let mut end = first.end();
        while let Some(next) = pack.entry(last.saturating_add(1)) {
            if next.end().saturating_sub(start) > READ_AHEAD_BYTES {
                break;
            }
            (last, end) = (last.saturating_add(1), next.end());
        }
        let length = end.saturating_sub(start);
        let mut bytes = repository
            .vault()
            .store()
            .get_range(pack.name(), start, length)
            .ok()?;
        let mut rest = bytes.as_mut_slice();
        let mut found = None;
        let mut plain = vec![0; NODE_SIZE_BYTES];
        let mut kept = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for at in ordinal..=last {
            let entry = pack.entry(at)?;
            let length = FRAME_HEADER_BYTES.saturating_add(usize::try_from(entry.stored_len).ok()?);
            let (frame, after) = rest.split_at_mut_checked(length)?;
            rest = after;
            let BlobName::Node { level, hash } = entry.name else {
                continue;
            };
            if at != ordinal && kept.nodes.contains_key(&(level, hash)) {
                continue;
            }
            // A damaged neighbour is told when somebody asks for it.
            if pack.decode(at, frame, &mut plain).is_err() {
                continue;
            }
            let node = Node::from_bytes(&plain).ok()?;
            if at == ordinal {
                found = Some(node.clone());
            }
            kept.insert(level, hash, node);
        }
        found
    }
}
