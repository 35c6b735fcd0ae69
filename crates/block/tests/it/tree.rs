//! The builder and the reader against the naive model: any base, any length, any replaced leaves.

use block::geometry::{self, FANOUT};
use block::tree::{DiskTree, Node, NodeMap, TreeBuilder, TreeReader};
use block::{BlockHash, BlockIndex, ErrorKind, LeafIndex, NodeHash};
use proptest::prelude::*;

use crate::model::Disk;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Lengths that meet every height up to 4, aligned and not.
pub fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        1..=(16u64 << 20),
        Just(8u64 << 20),
        (8u64 << 20)..=(3 * GIB),
        Just(GIB),
        GIB..=(300 * GIB),
        Just(128 * GIB),
        TIB..=(20 * TIB),
    ]
}

/// Few blocks, in clumps, spread over the whole disk and its last leaves.
pub fn disk() -> impl Strategy<Value = Disk> {
    (
        length(),
        prop::collection::vec((any::<u64>(), any::<bool>(), 1u8..4, 1u64..5), 0..12),
    )
        .prop_map(|(length_bytes, places)| {
            let count = geometry::block_count(length_bytes).max(1);
            let blocks = places.into_iter().flat_map(|(seed, near_end, fill, run)| {
                let near = count - 1 - (seed % 300).min(count - 1);
                let first = if near_end { near } else { seed % count };
                (first..first + run).map(move |block| (block, fill))
            });
            Disk::new(length_bytes, blocks.collect::<Vec<_>>())
        })
}

fn build(base: &Disk, next: &Disk) -> (DiskTree, NodeMap, NodeMap) {
    let mut nodes = NodeMap::new();
    let base_tree = base.tree(&mut nodes);
    let mut new_nodes = NodeMap::new();
    let mut builder = TreeBuilder::new(base_tree, &nodes, next.length_bytes).unwrap();
    let mut leaves = base.differing_leaves(next);
    let count = geometry::leaf_count(next.length_bytes);
    if base.length_bytes != next.length_bytes && count > 0 {
        // The rule for callers: when the length changed, the leaf of the nearer end is looked at.
        let shorter = base.length_bytes.min(next.length_bytes);
        leaves.push(LeafIndex(geometry::leaf_count(shorter).saturating_sub(1)));
    }
    leaves.sort_unstable();
    leaves.dedup();
    for leaf in leaves.into_iter().filter(|leaf| leaf.0 < count) {
        builder
            .replace(leaf, &next.leaf(leaf.0), &mut new_nodes)
            .unwrap();
    }
    let (tree, stats) = builder.finish(&mut new_nodes).unwrap();
    assert!(stats.nodes_put >= new_nodes.len() as u64);
    (tree, nodes, new_nodes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_built_on_any_base_equals_the_tree_hashed_in_full(base in disk(), next in disk()) {
        let (tree, nodes, new_nodes) = build(&base, &next);
        let mut all = nodes.clone();
        let mut fresh = NodeMap::new();
        prop_assert_eq!(tree, next.tree(&mut fresh));
        for (level, hash, node) in new_nodes.iter() {
            prop_assert_eq!(node.hash(level), hash);
            block::NodeSink::put_node(&mut all, level, hash, node).unwrap();
        }
        // Every node the new tree needs is either new or of the base, and none that the base has at its place is new.
        for (level, hash, _) in fresh.iter() {
            prop_assert!(all.contains(level, hash), "level {} {}", level, hash);
        }
        let mut reader = TreeReader::new(tree, &all).unwrap();
        for block in next.blocks.keys() {
            prop_assert_eq!(reader.block_hash(BlockIndex(*block)).unwrap(), BlockHash::of(&next.block(*block)));
        }
        let mut seen = 0;
        for run in reader.runs(LeafIndex(0)) {
            let run = run.unwrap();
            prop_assert_eq!(run.first.0, seen);
            seen += run.count;
            let holds = next.blocks.range(run.first.first_block().0..(run.first.0 + run.count) * FANOUT as u64);
            prop_assert_eq!(run.hash == NodeHash::zero(1), holds.count() == 0);
            prop_assert!(run.hash == NodeHash::zero(1) || run.count == 1);
        }
        prop_assert_eq!(seen, tree.leaf_count());
    }

    #[test]
    fn zeroing_a_run_equals_replacing_every_leaf_by_zeros(
        mut base in disk(), from in any::<u64>(), count in any::<u64>()
    ) {
        let leaves = geometry::leaf_count(base.length_bytes);
        prop_assume!(leaves > 0);
        let from = from % leaves;
        let count = 1 + count % (leaves - from);
        let mut nodes = NodeMap::new();
        let tree = base.tree(&mut nodes);
        let mut builder = TreeBuilder::new(tree, &nodes, base.length_bytes).unwrap();
        let mut sink = NodeMap::new();
        builder.replace_with_zeros(LeafIndex(from), count, &mut sink).unwrap();
        let (tree, _) = builder.finish(&mut sink).unwrap();
        base.blocks.retain(|block, _| !(from..from + count).contains(&(block / FANOUT as u64)));
        prop_assert_eq!(tree, base.tree(&mut NodeMap::new()));
    }

    #[test]
    fn a_checkpoint_is_the_new_content_before_the_cursor_and_the_base_behind_it(
        base in disk(), next in disk(), cut in any::<prop::sample::Index>()
    ) {
        let next = Disk::new(base.length_bytes, next.blocks);
        let leaves = base.differing_leaves(&next);
        prop_assume!(!leaves.is_empty());
        let cut = cut.index(leaves.len());
        let mut nodes = NodeMap::new();
        let mut sink = NodeMap::new();
        let tree = base.tree(&mut nodes);
        let mut builder = TreeBuilder::new(tree, &nodes, next.length_bytes).unwrap();
        for leaf in &leaves[..cut] {
            builder.replace(*leaf, &next.leaf(leaf.0), &mut sink).unwrap();
        }
        let partial = builder.checkpoint(&mut sink).unwrap();
        let at = leaves[cut].0 * FANOUT as u64;
        let mixed = next.blocks.range(..at).chain(base.blocks.range(at..)).map(|(b, f)| (*b, *f));
        let mixed = Disk::new(next.length_bytes, mixed.collect::<Vec<_>>());
        prop_assert_eq!(partial, mixed.tree(&mut NodeMap::new()));
        for leaf in &leaves[cut..] {
            builder.replace(*leaf, &next.leaf(leaf.0), &mut sink).unwrap();
        }
        prop_assert_eq!(builder.finish(&mut sink).unwrap().0, next.tree(&mut NodeMap::new()));
    }
}

#[test]
fn an_unchanged_version_puts_no_node() {
    let disk = Disk::new(40 * GIB, [(0, 1), (5000, 2), (600_000, 3)]);
    let (tree, nodes, new_nodes) = build(&disk, &disk);
    assert!(new_nodes.is_empty());
    assert!(nodes.contains(tree.height(), tree.top));
}

#[test]
fn one_changed_block_puts_one_node_per_level() {
    let base = Disk::new(TIB, (0..5000).map(|at| (at * 3001, 1)));
    let mut next = base.clone();
    next.blocks.insert(77_777, 9);
    let (tree, _, new_nodes) = build(&base, &next);
    assert_eq!(tree.height(), 4);
    assert_eq!(new_nodes.len(), 4);
}

#[test]
fn leaves_out_of_order_and_behind_the_end_are_refused() {
    let nodes = NodeMap::new();
    let mut sink = NodeMap::new();
    let base = DiskTree::zero(20 << 20).unwrap();
    let mut builder = TreeBuilder::new(base, &nodes, 20 << 20).unwrap();
    builder
        .replace(LeafIndex(1), &Node::zero(1), &mut sink)
        .unwrap();
    let again = builder
        .replace(LeafIndex(1), &Node::zero(1), &mut sink)
        .unwrap_err();
    assert_eq!(again.kind(), ErrorKind::OutOfRange);
    let behind = builder
        .replace(LeafIndex(3), &Node::zero(1), &mut sink)
        .unwrap_err();
    assert_eq!(behind.kind(), ErrorKind::OutOfRange);
    let mut node = Node::zero(1);
    node.set_block(64, BlockHash::of(&vec![1; 65536]));
    let tail = builder.replace(LeafIndex(2), &node, &mut sink).unwrap_err();
    assert_eq!(tail.kind(), ErrorKind::OutOfRange, "content behind the end");
}

#[test]
fn shrinking_through_a_block_needs_that_block() {
    let base = Disk::new(16 << 20, [(10, 1), (200, 1)]);
    let mut nodes = NodeMap::new();
    let tree = base.tree(&mut nodes);
    let builder = TreeBuilder::new(tree, &nodes, 10 * 65536 + 17).unwrap();
    let error = builder.finish(&mut NodeMap::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
}

#[test]
fn a_node_of_another_size_is_refused() {
    assert_eq!(
        Node::from_bytes(&[0; 4095]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    assert_eq!(
        Node::from_bytes(&[0; 4128]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    let node = Node::from_bytes(&[7; 4096]).unwrap();
    assert_eq!(node.as_bytes(), [7; 4096]);
}

#[test]
fn an_impossible_length_is_refused_before_anything_is_built() {
    assert_eq!(
        DiskTree::zero(u64::MAX).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    let nodes = NodeMap::new();
    let base = DiskTree::zero(0).unwrap();
    let error = TreeBuilder::new(base, &nodes, u64::MAX)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn sparse_random_writes_cost_the_metadata_that_was_calculated() {
    // RFD 0001: 10 000 uniformly drawn blocks of 1 TiB cost 41.6 MiB of nodes.
    let mut random = 1u64;
    let mut draw = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % geometry::block_count(TIB)
    };
    let mut leaves: Vec<u64> = (0..10_000).map(|_| draw() / FANOUT as u64).collect();
    leaves.sort_unstable();
    leaves.dedup();
    let nodes = NodeMap::new();
    let mut sink = NodeMap::new();
    let mut builder = TreeBuilder::new(DiskTree::zero(TIB).unwrap(), &nodes, TIB).unwrap();
    for leaf in leaves {
        let mut node = Node::zero(1);
        let mut block = [0; 32];
        block[..8].copy_from_slice(&leaf.to_le_bytes());
        node.set_block(5, BlockHash::from_bytes(block));
        builder.replace(LeafIndex(leaf), &node, &mut sink).unwrap();
    }
    let (_, stats) = builder.finish(&mut sink).unwrap();
    let mib = stats.nodes_put as f64 * 4096.0 / 1048576.0;
    assert!((40.5..42.5).contains(&mib), "{mib} MiB of nodes");
}
