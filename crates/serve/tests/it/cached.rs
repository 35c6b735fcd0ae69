//! A disk behind the cache is the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{BLOCK_SIZE_BYTES, ReadAt};
use proptest::prelude::*;
use serve::{CachedDisk, ReadCache};

use super::disks::{Numbers, Random, seed};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn cached(disk: &Arc<Numbers>, cache: &Arc<ReadCache>) -> Arc<CachedDisk> {
    CachedDisk::new(Arc::clone(disk) as Arc<dyn ReadAt>, cache)
}

#[track_caller]
fn assert_same(disk: &Numbers, cached: &CachedDisk, offset: u64, length: usize) {
    let mut bytes = vec![0xAA; length];
    cached.read_at(offset, &mut bytes).expect("it is readable");
    assert!(
        bytes == disk.bytes(offset, length),
        "{length} bytes at {offset}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_reads_in_any_order_give_the_bytes_of_the_disk(
        seed: u64,
        size in 1..5 * MIB,
        data_percent in 0..101_u64,
        reads in prop::collection::vec((any::<u64>(), 0..600 * KIB), 1..24),
    ) {
        let disk = Arc::new(Numbers::new(seed, size, data_percent));
        let cache = ReadCache::new(0);
        let cached = cached(&disk, &cache);
        for (at, length) in reads {
            let offset = at % size;
            let length = length.min(size - offset);
            assert_same(&disk, &cached, offset, usize::try_from(length).expect("small"));
        }
        cache.stop();
    }
}

#[test]
fn many_readers_of_two_disks_share_a_cache_that_is_too_small_for_them() {
    let seed = seed();
    let disks: Vec<Arc<Numbers>> = (0..2)
        .map(|number| Arc::new(Numbers::new(seed ^ number, 40 * MIB + 777, 70)))
        .collect();
    let cache = ReadCache::new(0);
    let all: Vec<_> = disks.iter().map(|disk| cached(disk, &cache)).collect();
    std::thread::scope(|scope| {
        for reader in 0..6_u64 {
            let (disks, all) = (&disks, &all);
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_add(reader));
                let (disk, cached) = (&disks[(reader % 2) as usize], &all[(reader % 2) as usize]);
                let mut at = random.below(disk.size_bytes / 2);
                for step in 0..120 {
                    // Half of them in order, half anywhere, all of odd lengths.
                    let length = 1 + random.below(90 * KIB);
                    if reader % 3 == 0 || at + length > disk.size_bytes {
                        at = random.below(disk.size_bytes - length);
                    }
                    assert_same(disk, cached, at, length as usize);
                    at += if step % 7 == 0 { 0 } else { length };
                }
            });
        }
    });
    cache.stop();
}

#[test]
fn what_was_read_is_not_read_again_and_holes_are_never_read() {
    let disk = Arc::new(Numbers::new(5, 8 * MIB, 50));
    let cache = ReadCache::new(64 * MIB);
    let cached = cached(&disk, &cache);
    for round in 0..3 {
        for block in 0..128 {
            assert_same(&disk, &cached, block * BLOCK_SIZE_BYTES + 100, 4096);
        }
        let read = disk.read_bytes.load(Ordering::Relaxed);
        let data = (0..128)
            .filter(|block| disk.bytes(block * BLOCK_SIZE_BYTES, 8) != [0; 8])
            .count() as u64;
        assert!(
            read <= data * BLOCK_SIZE_BYTES,
            "round {round}: {read} bytes"
        );
    }
    assert!(cache.stats().hits > 100, "{:?}", cache.stats());
    cache.stop();
}

#[test]
fn who_reads_in_order_finds_blocks_that_were_read_ahead() {
    let disk = Arc::new(Numbers::new(6, 64 * MIB, 100));
    let cache = ReadCache::new(64 * MIB);
    let cached = cached(&disk, &cache);
    let mut at = 0;
    while at < disk.size_bytes {
        assert_same(&disk, &cached, at, 128 << 10);
        at += 128 << 10;
    }
    let stats = cache.stats();
    assert!(stats.ahead > 500, "{stats:?}");
    let read = disk.read_bytes.load(Ordering::Relaxed);
    assert!(read <= disk.size_bytes, "nothing is read twice: {read}");
    cache.stop();
}

#[test]
fn a_read_that_fails_fails_for_whoever_asked_and_may_succeed_later() {
    let disk = Arc::new(Numbers::new(7, 4 * MIB, 100));
    let cache = ReadCache::new(0);
    let cached = cached(&disk, &cache);
    disk.bad_block.store(9, Ordering::Relaxed);
    let mut bytes = vec![0; 4096];
    for _ in 0..3 {
        let error = cached
            .read_at(9 * BLOCK_SIZE_BYTES + 5, &mut bytes)
            .expect_err("the block is bad");
        assert_eq!(error.kind(), block::ErrorKind::Corrupt);
    }
    assert_same(&disk, &cached, 8 * BLOCK_SIZE_BYTES, 65_536);
    disk.bad_block.store(u64::MAX, Ordering::Relaxed);
    assert_same(&disk, &cached, 9 * BLOCK_SIZE_BYTES + 5, 4096);
    cache.stop();
}

#[test]
fn a_disk_that_is_gone_is_not_read_from_memory_either() {
    let disk = Arc::new(Numbers::new(8, MIB, 100));
    let cache = ReadCache::new(0);
    let cached = cached(&disk, &cache);
    assert_same(&disk, &cached, 0, 4096);
    disk.gone.store(true, Ordering::Relaxed);
    assert!(
        cached.read_at(0, &mut [0; 4096]).is_err(),
        "its source says no"
    );
    disk.gone.store(false, Ordering::Relaxed);
    assert_same(&disk, &cached, 0, 4096);
    cached.close();
    let error = cached.read_at(0, &mut [0; 16]).expect_err("closed");
    assert_eq!(error.kind(), block::ErrorKind::Cancelled);
    assert_eq!(Arc::strong_count(&disk), 1, "the source was let go");
    cache.stop();
}

#[test]
fn reads_behind_the_end_are_refused() {
    let disk = Arc::new(Numbers::new(9, 100, 100));
    let cache = ReadCache::new(0);
    let cached = cached(&disk, &cache);
    for (offset, length) in [(0, 101), (100, 1), (u64::MAX, 1), (u64::MAX - 3, 64)] {
        let error = cached
            .read_at(offset, &mut vec![0; length])
            .expect_err("behind the end");
        assert_eq!(error.kind(), block::ErrorKind::OutOfRange);
    }
    cached
        .read_at(100, &mut [])
        .expect("nothing can be read anywhere inside");
    cache.stop();
}
