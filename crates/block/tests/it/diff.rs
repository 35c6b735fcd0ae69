//! Differences of two trees against looking at every block.

use block::diff::{BlockDifferences, LeafDifferences};
use block::geometry::BLOCK_SIZE_BYTES;
use block::tree::{DiskTree, Node, NodeMap, NodeSource};
use block::{ByteRange, NodeHash};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::Disk;
use crate::tree::disk;

fn naive(a: &Disk, b: &Disk) -> Vec<ByteRange> {
    let end = a.length_bytes.max(b.length_bytes);
    let mut ranges: Vec<ByteRange> = Vec::new();
    for block in a.differing_blocks(b) {
        let offset = block * BLOCK_SIZE_BYTES;
        let length_bytes = BLOCK_SIZE_BYTES.min(end - offset);
        match ranges.last_mut() {
            Some(last) if last.end() == offset => last.length_bytes += length_bytes,
            _ => ranges.push(ByteRange {
                offset,
                length_bytes,
            }),
        }
    }
    ranges
}

struct Counting<'a>(&'a NodeMap, AtomicU64);

impl NodeSource for Counting<'_> {
    fn node(&self, level: u8, hash: NodeHash) -> block::Result<Node> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.node(level, hash)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn differences_equal_those_found_by_looking_at_every_block(a in disk(), b in disk()) {
        let mut nodes = NodeMap::new();
        let (ta, tb) = (a.tree(&mut nodes), b.tree(&mut nodes));
        let found: Vec<_> = BlockDifferences::new(ta, &nodes, tb, &nodes).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(found, naive(&a, &b));
        let leaves: Vec<_> = LeafDifferences::new(ta, &nodes, tb, &nodes).unwrap().map(|one| one.unwrap().leaf).collect();
        prop_assert_eq!(leaves, a.differing_leaves(&b));
    }

    #[test]
    fn a_disk_and_a_changed_copy_differ_where_it_was_changed(
        a in disk(), changes in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4), 0..6)
    ) {
        let mut b = a.clone();
        let blocks: Vec<u64> = a.blocks.keys().copied().collect();
        for (at, fill) in changes {
            if !blocks.is_empty() {
                b.blocks.insert(blocks[at.index(blocks.len())], fill);
            }
        }
        let b = Disk::new(b.length_bytes, b.blocks);
        let mut nodes = NodeMap::new();
        let (ta, tb) = (a.tree(&mut nodes), b.tree(&mut nodes));
        let found: Vec<_> = BlockDifferences::new(ta, &nodes, tb, &nodes).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(found, naive(&a, &b));
    }
}

#[test]
fn equal_subtrees_are_not_loaded() {
    let a = Disk::new(1 << 40, (0..4000).map(|at| (at * 4000, 1)));
    let mut b = a.clone();
    b.blocks.insert(4000 * 2000, 2);
    let mut nodes = NodeMap::new();
    let (ta, tb) = (a.tree(&mut nodes), b.tree(&mut nodes));
    let counting = Counting(&nodes, AtomicU64::new(0));
    assert_eq!(
        BlockDifferences::new(ta, &counting, tb, &counting)
            .unwrap()
            .count(),
        1
    );
    assert_eq!(
        counting.1.load(Ordering::Relaxed),
        8,
        "one node per level and side"
    );
}

#[test]
fn a_missing_node_ends_the_walk_with_an_error() {
    let a = Disk::new(1 << 30, [(1, 1), (9000, 1)]);
    let tree = a.tree(&mut NodeMap::new());
    let zero = DiskTree::zero(1 << 30).unwrap();
    let empty = NodeMap::new();
    let found: Vec<_> = BlockDifferences::new(tree, &empty, zero, &empty)
        .unwrap()
        .collect();
    assert_eq!(found.len(), 1);
    assert!(found[0].is_err());
}
