//! Transfers between the two ends, in any order of delivery, interrupted and resumed, with and without tracking.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use block::diff::LeafDifferences;
use block::geometry::{BLOCK_SIZE_BYTES, LEAF_SIZE_BYTES};
use block::sync::{
    LeftOut, SourceEvent, SourceOptions, SyncOutcome, SyncSource, SyncStats, SyncTarget,
    TargetOptions, TargetSink, ToTarget, Unreadable,
};
use block::tree::{DiskTree, Node, NodeMap, NodeSink, NodeSource};
use block::{
    BlockHash, BlockIndex, ByteRange, ChangedRanges, ErrorKind, LeafIndex, NodeHash, ReadAt,
};
use proptest::prelude::*;

use crate::model::{Disk, Source};
use crate::tree::disk;

/// What a repository would be: nodes and blocks, readable at once.
#[derive(Default)]
pub struct Kept {
    pub nodes: Mutex<NodeMap>,
    pub blocks: Mutex<BTreeMap<BlockHash, u64>>,
}

impl NodeSource for Kept {
    fn node(&self, level: u8, hash: NodeHash) -> block::Result<Node> {
        self.nodes.lock().unwrap().node(level, hash)
    }
}

pub struct KeptSink<'a>(pub &'a Kept);

impl NodeSink for KeptSink<'_> {
    fn put_node(&mut self, level: u8, hash: NodeHash, node: &Node) -> block::Result<()> {
        assert_eq!(node.hash(level), hash);
        if level == 1 {
            let blocks = self.0.blocks.lock().unwrap();
            for hash in node.blocks().filter(|hash| *hash != BlockHash::zero()) {
                assert!(
                    blocks.contains_key(&hash),
                    "a node names a block that was never put"
                );
            }
        }
        self.0.nodes.lock().unwrap().put_node(level, hash, node)
    }
}

impl TargetSink for KeptSink<'_> {
    fn put_block(&mut self, _at: BlockIndex, hash: BlockHash, bytes: &[u8]) -> block::Result<()> {
        assert_eq!(BlockHash::of(bytes), hash);
        *self.0.blocks.lock().unwrap().entry(hash).or_default() += 1;
        Ok(())
    }
}

impl Kept {
    /// Keeps a version as if it had been transferred.
    pub fn keep(&self, disk: &Disk) -> DiskTree {
        let mut blocks = self.blocks.lock().unwrap();
        for block in disk.blocks.keys() {
            blocks.insert(BlockHash::of(&disk.block(*block)), 0);
        }
        disk.tree(&mut self.nodes.lock().unwrap())
    }
}

/// Which leaf a message is about; messages about one leaf stay in order, `None` is a barrier.
fn about(message: &ToTarget) -> Option<LeafIndex> {
    match message {
        ToTarget::Same { first, .. } | ToTarget::Zeros { first, .. } => Some(*first),
        ToTarget::Leaf(description, _) => Some(description.leaf),
        ToTarget::Block { leaf, .. } => Some(*leaf),
        _ => None,
    }
}

pub struct Run {
    pub outcome: Option<SyncOutcome>,
    pub partial: Option<DiskTree>,
    pub source: SyncStats,
    pub target: SyncStats,
    pub lies: Vec<BlockIndex>,
    pub unreadable: Vec<ByteRange>,
}

/// Runs a transfer to its end, or until `budget` messages were delivered to the target. `seed` 0 keeps the order.
pub fn transfer(
    source: &dyn ReadAt,
    options: SourceOptions,
    base: Option<DiskTree>,
    kept: &Kept,
    look_also: ChangedRanges,
    (seed, budget): (u64, usize),
) -> block::Result<Run> {
    let mut sink = KeptSink(kept);
    let mut target = SyncTarget::new(
        base,
        kept,
        TargetOptions {
            look_also,
            ..TargetOptions::default()
        },
    )?;
    let mut source = SyncSource::new(source, options)?;
    source.receive(target.begin())?;
    let mut wire: VecDeque<ToTarget> = VecDeque::new();
    let mut random = seed;
    let mut delivered = 0;
    let mut done = false;
    while delivered < budget {
        while !done && wire.len() < 12 {
            match source.next_event()? {
                SourceEvent::Send(message) => wire.push_back(message),
                SourceEvent::Wait => break,
                SourceEvent::Done => done = true,
            }
        }
        if wire.is_empty() {
            assert!(done, "both ends wait");
            break;
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let barrier = wire
            .iter()
            .position(|message| about(message).is_none())
            .unwrap_or(wire.len());
        let mut pick = if seed == 0 || barrier == 0 {
            0
        } else {
            usize::try_from(random >> 33).unwrap() % barrier
        };
        let leaf = about(&wire[pick]);
        pick = wire
            .iter()
            .position(|message| about(message) == leaf)
            .unwrap_or(pick);
        let message = wire.remove(pick).unwrap();
        delivered += 1;
        if let Some(answer) = target.receive(message, &mut sink)? {
            source.receive(answer)?;
        }
    }
    let partial = if target.outcome().is_none() {
        target.checkpoint(&mut sink).ok()
    } else {
        None
    };
    Ok(Run {
        outcome: target.outcome(),
        partial,
        source: source.stats(),
        target: target.stats(),
        lies: source.lies().to_vec(),
        unreadable: source.unreadable().to_vec(),
    })
}

fn ranges(blocks: impl IntoIterator<Item = u64>) -> ChangedRanges {
    let range = |block| ByteRange {
        offset: block * BLOCK_SIZE_BYTES + 100,
        length_bytes: 7,
    };
    ChangedRanges::new(blocks.into_iter().map(range)).unwrap()
}

const ALL: (u64, usize) = (0, usize::MAX);

/// Disks small enough to be read whole, with clumps of data; more than one leaf, some with a tail.
fn small_disk() -> impl Strategy<Value = Disk> {
    (
        1u64..(5 * LEAF_SIZE_BYTES),
        prop::collection::vec((0u64..640, 1u8..4, 1u64..40), 0..8),
    )
        .prop_map(|(length, clumps)| {
            let blocks = clumps
                .into_iter()
                .flat_map(|(at, fill, run)| (at..at + run).map(move |b| (b, fill)));
            Disk::new(length, blocks.collect::<Vec<_>>())
        })
}

fn changed(base: &Disk, changes: &[(u64, u8)], length: u64) -> Disk {
    let mut next = base.clone();
    next.blocks.extend(changes.iter().copied());
    Disk::new(length, next.blocks)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_version_arrives_whole_over_any_base_in_any_order(
        base in small_disk(), next in small_disk(), first in any::<bool>(), extents in any::<bool>(), seed in 0u64..1000
    ) {
        let kept = Kept::default();
        let base_tree = (!first).then(|| kept.keep(&base));
        let source = Source::new(&next, extents);
        let run = transfer(&source, SourceOptions::default(), base_tree, &kept, ChangedRanges::none(), (seed, usize::MAX)).unwrap();
        let outcome = run.outcome.unwrap();
        prop_assert_eq!(outcome.tree, next.tree(&mut NodeMap::new()));
        prop_assert!(outcome.confirmed);
        let naive = if first { next.blocks.len() } else {
            next.differing_blocks(&base).into_iter().filter(|at| next.blocks.contains_key(at)).count()
        };
        prop_assert_eq!(run.source.sent_blocks, naive as u64);
        prop_assert_eq!(run.target.sent_blocks, naive as u64);
        if extents {
            let tail = next.blocks.last_key_value().map_or(0, |_| BLOCK_SIZE_BYTES);
            prop_assert!(run.source.read_bytes + tail >= next.blocks.len() as u64 * BLOCK_SIZE_BYTES);
            prop_assert!(run.source.read_bytes <= next.blocks.len() as u64 * BLOCK_SIZE_BYTES);
        }
    }

    #[test]
    fn tracking_that_tells_the_truth_reads_only_what_changed(
        base in small_disk(), changes in prop::collection::vec((0u64..640, 0u8..4), 0..10), seed in 0u64..1000,
        grow in 0u64..(2 * LEAF_SIZE_BYTES), shrink in any::<bool>(), resize in any::<bool>(),
    ) {
        let length = match (resize, shrink) {
            (false, _) => base.length_bytes,
            (true, true) => base.length_bytes.saturating_sub(grow).max(1),
            (true, false) => base.length_bytes + grow,
        };
        let next = changed(&base, &changes, length);
        let kept = Kept::default();
        let base_tree = kept.keep(&base);
        let source = Source::new(&next, true);
        let told = ranges(changes.iter().map(|(block, _)| *block));
        let options = SourceOptions { changed: Some(told.clone()), audit_per_million: 0, ..SourceOptions::default() };
        let run = transfer(&source, options, Some(base_tree), &kept, ChangedRanges::none(), (seed, usize::MAX)).unwrap();
        prop_assert_eq!(run.outcome.unwrap().tree, next.tree(&mut NodeMap::new()));
        let looked = told.rounded_to_blocks(length).total_bytes() + length.saturating_sub(base.length_bytes);
        prop_assert!(run.source.read_bytes <= looked + BLOCK_SIZE_BYTES);
    }

    #[test]
    fn an_interrupted_transfer_goes_on_where_it_stopped(
        base in small_disk(), next in small_disk(), first in any::<bool>(), budget in 0usize..60, seed in 0u64..1000
    ) {
        let kept = Kept::default();
        let base_tree = (!first).then(|| kept.keep(&base));
        let source = Source::new(&next, true);
        let none = ChangedRanges::none;
        let cut = transfer(&source, SourceOptions::default(), base_tree, &kept, none(), (seed, budget)).unwrap();
        let partial = cut.outcome.map(|outcome| outcome.tree).or(cut.partial).or(base_tree);
        let mut blocks_left = 0;
        let partial_disk = partial.unwrap_or(DiskTree { length_bytes: 0, top: NodeHash::zero(1) });
        let next_tree = kept.keep(&next);
        for leaf in LeafDifferences::new(partial_disk, &kept, next_tree, &kept).unwrap() {
            let leaf = leaf.unwrap();
            let old = if leaf.a == NodeHash::zero(1) { Node::zero(1) } else { kept.node(1, leaf.a).unwrap() };
            let new = if leaf.b == NodeHash::zero(1) { Node::zero(1) } else { kept.node(1, leaf.b).unwrap() };
            blocks_left += old.blocks().zip(new.blocks()).filter(|(a, b)| a != b && *b != BlockHash::zero()).count();
        }
        let rest = transfer(&source, SourceOptions::default(), partial, &kept, none(), (seed, usize::MAX)).unwrap();
        prop_assert_eq!(rest.outcome.unwrap().tree, next_tree);
        prop_assert_eq!(rest.source.sent_blocks, blocks_left as u64, "only the rest is sent");
    }

    #[test]
    fn resuming_with_tracking_also_looks_where_the_remains_differ_from_the_parent(
        base in small_disk(), first in prop::collection::vec((0u64..640, 0u8..4), 0..10),
        second in prop::collection::vec((0u64..640, 0u8..4), 0..10), budget in 0usize..40
    ) {
        let kept = Kept::default();
        let parent = kept.keep(&base);
        let told = |changes: &[(u64, u8)]| SourceOptions {
            changed: Some(ranges(changes.iter().map(|(block, _)| *block))), audit_per_million: 0, ..SourceOptions::default()
        };
        let middle = changed(&base, &first, base.length_bytes);
        let source = Source::new(&middle, true);
        let cut = transfer(&source, told(&first), Some(parent), &kept, ChangedRanges::none(), (0, budget)).unwrap();
        let partial = cut.outcome.map(|outcome| outcome.tree).or(cut.partial).unwrap_or(parent);
        // The next attempt reads another instant: what the first changed may have gone back to what the parent has.
        let last = changed(&base, &second, base.length_bytes);
        let remains = LeafDifferences::new(parent, &kept, partial, &kept).unwrap().map(|leaf| ByteRange {
            offset: leaf.unwrap().leaf.offset(), length_bytes: LEAF_SIZE_BYTES,
        });
        let look_also = ChangedRanges::new(remains).unwrap();
        let source = Source::new(&last, true);
        let run = transfer(&source, told(&second), Some(partial), &kept, look_also, ALL).unwrap();
        prop_assert_eq!(run.outcome.unwrap().tree, last.tree(&mut NodeMap::new()));
    }

    #[test]
    fn huge_sparse_disks_cost_what_they_hold(base in disk(), next in disk(), seed in 0u64..1000) {
        let kept = Kept::default();
        let tree = kept.keep(&base);
        let source = Source::new(&next, true);
        // A base that lies scattered over terabytes is asked for run by run; the wire would be long, not wrong.
        prop_assume!(next.length_bytes < 1 << 40);
        let run = transfer(&source, SourceOptions::default(), Some(tree), &kept, ChangedRanges::none(), (seed, usize::MAX)).unwrap();
        prop_assert_eq!(run.outcome.unwrap().tree, next.tree(&mut NodeMap::new()));
        prop_assert!(run.source.read_bytes <= next.blocks.len() as u64 * BLOCK_SIZE_BYTES);
    }
}

#[test]
fn a_lying_tracker_is_found_out_and_everything_is_compared() {
    let base = Disk::new(4 * LEAF_SIZE_BYTES, (0..512).map(|at| (at, 1)));
    let next = changed(
        &base,
        &(0..400).map(|at| (at, 2)).collect::<Vec<_>>(),
        base.length_bytes,
    );
    let kept = Kept::default();
    let tree = kept.keep(&base);
    let source = Source::new(&next, true);
    let options = SourceOptions {
        changed: Some(ranges([0])),
        audit_per_million: 50_000,
        audit_seed: 7,
        ..SourceOptions::default()
    };
    let run = transfer(
        &source,
        options,
        Some(tree),
        &kept,
        ChangedRanges::none(),
        ALL,
    )
    .unwrap();
    assert!(!run.lies.is_empty() && run.lies.iter().all(|block| (1..400).contains(&block.0)));
    assert_eq!(run.source.lies, run.lies.len() as u64);
    let outcome = run.outcome.unwrap();
    assert!(outcome.confirmed, "all leaves were seen");
    assert_eq!(outcome.tree, next.tree(&mut NodeMap::new()));
    assert_eq!(run.source.sent_blocks, 400, "reading, never sending again");
}

#[test]
fn the_audit_reads_about_its_share_and_never_what_is_told_anyway() {
    let base = Disk::new(40 * LEAF_SIZE_BYTES, (0..5120).map(|at| (at, 1)));
    let next = changed(&base, &[(3, 9)], base.length_bytes);
    let kept = Kept::default();
    let tree = kept.keep(&base);
    let source = Source::new(&next, true);
    for (per_million, low, high) in [(0, 0, 0), (100_000, 400, 640), (1_000_000, 5119, 5119)] {
        let options = SourceOptions {
            changed: Some(ranges([3])),
            audit_per_million: per_million,
            audit_seed: 99,
            ..SourceOptions::default()
        };
        let run = transfer(
            &source,
            options,
            Some(tree),
            &kept,
            ChangedRanges::none(),
            ALL,
        )
        .unwrap();
        assert!(run.lies.is_empty());
        let audited = run.source.audited_blocks;
        assert!(
            (low..=high).contains(&audited),
            "{audited} of 5119 at {per_million} per million"
        );
        assert_eq!(run.source.read_bytes, (audited + 1) * BLOCK_SIZE_BYTES);
        assert_eq!(run.outcome.unwrap().tree, next.tree(&mut NodeMap::new()));
    }
}

#[test]
fn an_unchanged_disk_sends_no_block_and_no_node() {
    let disk = Disk::new(300 << 30, (0..2000).map(|at| (at * 7, 3)));
    let kept = Kept::default();
    let tree = kept.keep(&disk);
    let source = Source::new(&disk, true);
    let before = kept.nodes.lock().unwrap().len();
    let run = transfer(
        &source,
        SourceOptions::default(),
        Some(tree),
        &kept,
        ChangedRanges::none(),
        ALL,
    )
    .unwrap();
    let outcome = run.outcome.unwrap();
    assert_eq!(
        (
            run.source.sent_blocks,
            run.source.changed_leaves,
            outcome.nodes.nodes_put
        ),
        (0, 0, 0)
    );
    assert_eq!(outcome.tree, tree);
    assert_eq!(kept.nodes.lock().unwrap().len(), before);
}

#[test]
fn left_out_ranges_are_zeros_and_are_not_read() {
    let disk = Disk::new(2 * LEAF_SIZE_BYTES, (0..256).map(|at| (at, 1)));
    let left_out = ByteRange {
        offset: 10 * BLOCK_SIZE_BYTES,
        length_bytes: 100 * BLOCK_SIZE_BYTES,
    };
    let source = LeftOut::new(
        Source::new(&disk, true),
        ChangedRanges::new([left_out]).unwrap(),
    );
    let kept = Kept::default();
    let run = transfer(
        &source,
        SourceOptions::default(),
        None,
        &kept,
        ChangedRanges::none(),
        ALL,
    )
    .unwrap();
    let shown = Disk::new(
        disk.length_bytes,
        (0..256)
            .filter(|at| !(10..110).contains(at))
            .map(|at| (at, 1)),
    );
    assert_eq!(run.outcome.unwrap().tree, shown.tree(&mut NodeMap::new()));
    assert_eq!(run.source.read_bytes, 156 * BLOCK_SIZE_BYTES);
    let mut bytes = vec![9; 2 * 65536];
    source.read_at(9 * BLOCK_SIZE_BYTES, &mut bytes).unwrap();
    assert!(
        bytes[..65536].iter().all(|byte| *byte == 1)
            && bytes[65536..].iter().all(|byte| *byte == 0)
    );
}

#[test]
fn an_unreadable_block_fails_the_transfer_or_is_recorded() {
    let disk = Disk::new(LEAF_SIZE_BYTES, (0..128).map(|at| (at, 1)));
    let mut source = Source::new(&disk, false);
    source.bad.extend([40, 41, 90]);
    let kept = Kept::default();
    let failed = transfer(
        &source,
        SourceOptions::default(),
        None,
        &kept,
        ChangedRanges::none(),
        ALL,
    );
    assert_eq!(failed.map(|_| ()).unwrap_err().kind(), ErrorKind::Io);
    let options = SourceOptions {
        unreadable: Unreadable::Record,
        ..SourceOptions::default()
    };
    let run = transfer(&source, options, None, &kept, ChangedRanges::none(), ALL).unwrap();
    let range = |block: u64, count: u64| ByteRange {
        offset: block * 65536,
        length_bytes: count * 65536,
    };
    assert_eq!(run.unreadable, [range(40, 2), range(90, 1)]);
    let shown = Disk::new(
        LEAF_SIZE_BYTES,
        (0..128)
            .filter(|at| ![40, 41, 90].contains(at))
            .map(|at| (at, 1)),
    );
    assert_eq!(run.outcome.unwrap().tree, shown.tree(&mut NodeMap::new()));
}
