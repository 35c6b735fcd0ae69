//! Ranges against a bitmap.

use block::geometry::{BLOCK_SIZE_BYTES, FANOUT};
use block::{ByteRange, ChangedRanges, ErrorKind, LeafIndex};
use proptest::prelude::*;

fn some_ranges() -> impl Strategy<Value = Vec<ByteRange>> {
    let range = (
        0u64..40_000_000,
        prop_oneof![Just(0), 1u64..100, 1u64..5_000_000],
    );
    prop::collection::vec(
        range.prop_map(|(offset, length_bytes)| ByteRange {
            offset,
            length_bytes,
        }),
        0..10,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merged_ranges_hold_exactly_the_bytes_that_were_put_in(ranges in some_ranges(), probe in 0u64..46_000_000) {
        let merged = ChangedRanges::new(ranges.clone()).unwrap();
        let holds = |at: u64| ranges.iter().any(|range| range.offset <= at && at < range.end());
        prop_assert_eq!(merged.touches(ByteRange { offset: probe, length_bytes: 1 }), holds(probe));
        for range in &ranges {
            if range.length_bytes > 0 {
                let byte = |offset| ByteRange { offset, length_bytes: 1 };
                prop_assert!(merged.touches(byte(range.offset)));
                prop_assert!(merged.touches(byte(range.end() - 1)));
            }
        }
        let list: Vec<_> = merged.iter().collect();
        prop_assert!(list.windows(2).all(|pair| pair[0].end() < pair[1].offset));
        prop_assert!(list.iter().all(|range| range.length_bytes > 0));
    }

    #[test]
    fn rounded_ranges_hold_every_block_that_is_touched_and_no_other(ranges in some_ranges(), length in 1u64..50_000_000) {
        let ranges = ChangedRanges::new(ranges).unwrap();
        let rounded = ranges.rounded_to_blocks(length);
        for block in 0..length.div_ceil(BLOCK_SIZE_BYTES) {
            let offset = block * BLOCK_SIZE_BYTES;
            let inside = ByteRange { offset, length_bytes: BLOCK_SIZE_BYTES.min(length - offset) };
            let whole = ByteRange { offset, length_bytes: BLOCK_SIZE_BYTES };
            prop_assert_eq!(ranges.touches(inside), rounded.touches(whole));
            let leaf = LeafIndex(block / FANOUT as u64);
            let slot = usize::try_from(block % FANOUT as u64).unwrap();
            prop_assert_eq!(rounded.slots(leaf).contains(slot), ranges.touches(inside));
        }
        prop_assert!(rounded.end() < length + BLOCK_SIZE_BYTES);
    }

    #[test]
    fn coarser_ranges_cover_the_finer_ones(ranges in some_ranges(), count in 1usize..6) {
        let fine = ChangedRanges::new(ranges).unwrap();
        let coarse = fine.clone().coarsened(count);
        prop_assert!(coarse.len() <= count);
        for range in fine.iter() {
            let first = coarse.first_from(range.offset).unwrap();
            prop_assert!(first.offset == range.offset && first.end() >= range.end());
        }
    }
}

#[test]
fn a_range_behind_every_disk_is_refused() {
    let range = ByteRange {
        offset: u64::MAX,
        length_bytes: 2,
    };
    assert_eq!(
        ChangedRanges::new([range]).unwrap_err().kind(),
        ErrorKind::OutOfRange
    );
}
