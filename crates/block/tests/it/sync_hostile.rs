//! A peer that breaks the protocol gets a typed error and changes nothing.

use block::geometry::LEAF_SIZE_BYTES;
use block::sync::{
    Delivery, LeafDescription, SlotSet, SourceOptions, SyncSource, SyncTarget, TargetOptions,
    Terms, ToSource, ToTarget,
};
use block::tree::LeafRun;
use block::{BlockHash, BlockIndex, ChangedRanges, ErrorKind, LeafIndex, NodeHash};

use crate::model::{Disk, Source};
use crate::sync::{Kept, KeptSink};

const LENGTH: u64 = 4 * LEAF_SIZE_BYTES;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 65536]
}

fn describe(leaf: u64, slots: &[(usize, BlockHash)]) -> ToTarget {
    let mut set = SlotSet::EMPTY;
    slots.iter().for_each(|(slot, _)| set.insert(*slot));
    let hashes = slots.iter().map(|(_, hash)| *hash).collect();
    let description = LeafDescription {
        leaf: LeafIndex(leaf),
        slots: set,
        hashes,
    };
    ToTarget::Leaf(description, Delivery::OnRequest)
}

fn send(leaf: u64, slot: usize, bytes: Vec<u8>) -> ToTarget {
    ToTarget::Block {
        leaf: LeafIndex(leaf),
        slot,
        bytes,
    }
}

fn same(first: u64, count: u64) -> ToTarget {
    ToTarget::Same {
        first: LeafIndex(first),
        count,
    }
}

/// Delivers messages to a target with a base of four leaves; the last one must be refused.
fn refused(messages: Vec<ToTarget>) -> String {
    let kept = Kept::default();
    let base = kept.keep(&Disk::new(LENGTH, (0..512).map(|at| (at, 1))));
    let mut target = SyncTarget::new(Some(base), &kept, TargetOptions::default()).unwrap();
    let last = messages.len() - 1;
    for (at, message) in messages.into_iter().enumerate() {
        let shown = format!("{message:.60?}");
        match target.receive(message, &mut KeptSink(&kept)) {
            Ok(_) => assert!(at < last, "{shown} was accepted"),
            Err(error) => {
                assert_eq!(at, last, "{shown}: {error}");
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                return error.to_string();
            }
        }
    }
    unreachable!("the last message was accepted");
}

fn begin() -> ToTarget {
    ToTarget::Begin {
        length_bytes: LENGTH,
    }
}

fn wrong(messages: Vec<ToTarget>) -> String {
    refused(std::iter::once(begin()).chain(messages).collect())
}

#[test]
fn blocks_that_were_not_described_or_not_wanted_are_refused() {
    let two = BlockHash::of(&block(2));
    let one = BlockHash::of(&block(1));
    let asked = || describe(0, &[(3, two), (4, two)]);
    assert!(wrong(vec![asked(), send(0, 3, block(9))]).contains("not what was described"));
    assert!(wrong(vec![asked(), send(0, 5, block(2))]).contains("not asked for"));
    assert!(wrong(vec![asked(), send(0, 400, block(2))]).contains("not asked for"));
    assert!(wrong(vec![asked(), send(0, 3, vec![2; 65535])]).contains("65535 bytes"));
    assert!(wrong(vec![asked(), send(0, 3, block(2)), send(0, 3, block(2))]).contains("not asked"));
    assert!(wrong(vec![describe(0, &[(3, one)]), send(0, 3, block(1))]).contains("waits for none"));
    assert!(wrong(vec![send(2, 0, block(2))]).contains("waits for none"));
    let (leaf, slots) = (LeafIndex(0), SlotSet::run(0, 5));
    let short = LeafDescription {
        leaf,
        slots,
        hashes: vec![two; 4],
    };
    let short = ToTarget::Leaf(short, Delivery::OnRequest);
    assert!(wrong(vec![short]).contains("5 slots and 4 hashes"));
}

#[test]
fn leaves_that_overlap_or_lie_behind_the_end_are_refused() {
    let two = BlockHash::of(&block(2));
    for (before, bad) in [
        (Some(same(0, 2)), same(1, 1)),
        (Some(same(2, 1)), same(1, 2)),
        (None, same(3, 2)),
        (None, same(u64::MAX, 1)),
        (None, same(1, u64::MAX)),
        (None, same(0, 0)),
        (None, describe(9, &[(0, two)])),
    ] {
        let error = wrong(before.into_iter().chain([bad]).collect());
        assert!(
            error.contains("overlap") || error.contains("leaf 9"),
            "{error}"
        );
    }
    assert!(
        wrong(vec![ToTarget::AskBase {
            first: LeafIndex(4),
            count: 1
        }])
        .contains("no leaf 4")
    );
}

#[test]
fn beginnings_and_ends_out_of_place_are_refused() {
    let end = |top| ToTarget::Finish { top };
    assert!(wrong(vec![end(None)]).contains("an end after 0 of 4"));
    assert!(wrong(vec![same(0, 3), end(None)]).contains("an end after 3 of 4"));
    assert!(wrong(vec![same(0, 4), end(Some(NodeHash::zero(2)))]).contains("top"));
    assert!(wrong(vec![begin()]).contains("second beginning"));
    assert!(wrong(vec![same(0, 4), end(None), begin()]).contains("second beginning"));
    assert!(wrong(vec![same(0, 4), end(None), same(0, 1)]).contains("after the end"));
    let many = vec![(BlockIndex(0), BlockHash::of(&block(2))); 4097];
    assert!(wrong(vec![ToTarget::Audit { blocks: many }]).contains("4097"));
    assert!(refused(vec![same(0, 1)]).contains("before the beginning"));
}

#[test]
fn content_behind_the_end_is_refused() {
    let kept = Kept::default();
    let mut target = SyncTarget::new(None, &kept, TargetOptions::default()).unwrap();
    let mut sink = KeptSink(&kept);
    target
        .receive(
            ToTarget::Begin {
                length_bytes: 5 * 65536,
            },
            &mut sink,
        )
        .unwrap();
    let error = target
        .receive(describe(0, &[(5, BlockHash::of(&block(2)))]), &mut sink)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("behind the end"), "{error}");
}

#[test]
fn an_impossible_length_is_refused() {
    let kept = Kept::default();
    let mut target = SyncTarget::new(None, &kept, TargetOptions::default()).unwrap();
    let error = target
        .receive(
            ToTarget::Begin {
                length_bytes: u64::MAX,
            },
            &mut KeptSink(&kept),
        )
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn leaves_that_run_too_far_ahead_are_refused() {
    let kept = Kept::default();
    let options = TargetOptions {
        window: 10,
        ..TargetOptions::default()
    };
    let mut target = SyncTarget::new(None, &kept, options).unwrap();
    let mut sink = KeptSink(&kept);
    target
        .receive(
            ToTarget::Begin {
                length_bytes: 1 << 30,
            },
            &mut sink,
        )
        .unwrap();
    for leaf in 1..11 {
        target.receive(same(leaf, 1), &mut sink).unwrap();
    }
    assert_eq!(
        target.receive(same(11, 1), &mut sink).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    target.receive(same(0, 1), &mut sink).unwrap();
}

fn bad_targets() -> Vec<(Vec<ToSource>, &'static str)> {
    let terms = |base: bool| {
        let base_length_bytes = base.then_some(LENGTH);
        ToSource::Begin(Terms {
            base_length_bytes,
            look_also: ChangedRanges::none(),
        })
    };
    let hash = NodeHash::zero(1);
    let run = |first: u64, count: u64| LeafRun {
        first: LeafIndex(first),
        count,
        hash,
    };
    let leaves = |runs: Vec<LeafRun>| ToSource::BaseLeaves { runs };
    let want = ToSource::Want {
        leaf: LeafIndex(0),
        slots: SlotSet::ALL,
    };
    vec![
        (vec![terms(false), terms(false)], "Begin"),
        (
            vec![ToSource::AuditVerdict { lies: vec![] }],
            "AuditVerdict",
        ),
        (vec![terms(true), leaves(vec![])], "0 runs"),
        (
            vec![terms(true), leaves(vec![run(1, 1)])],
            "at 1 instead of 0",
        ),
        (vec![terms(true), leaves(vec![run(0, 0)])], "base leaves"),
        (
            vec![terms(true), leaves(vec![run(0, 1); 1025])],
            "1025 runs",
        ),
        (vec![terms(true), want], "waits for nothing"),
        (vec![terms(false), leaves(vec![run(0, 1)])], "BaseLeaves"),
    ]
}

#[test]
fn a_target_that_breaks_the_protocol_is_refused() {
    let disk = Disk::new(LENGTH, (0..512).map(|at| (at, 1)));
    for (messages, expected) in bad_targets() {
        let source = Source::new(&disk, true);
        let mut end = SyncSource::new(&source, SourceOptions::default()).unwrap();
        let last = messages.len() - 1;
        for (at, message) in messages.into_iter().enumerate() {
            match end.receive(message) {
                Ok(()) => assert!(at < last, "{expected} was accepted"),
                Err(error) => {
                    assert_eq!((at, error.kind()), (last, ErrorKind::Corrupt));
                    assert!(
                        error.to_string().contains(expected),
                        "{error} lacks {expected}"
                    );
                }
            }
            for _ in 0..2 {
                end.next_event().unwrap();
            }
        }
    }
}
