//! Hives that lie: a typed error or a part that says so, in bounded time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use guestfs::registry::{Hive, WalkEvent, windows::WindowsFacts};

use crate::corpus::{self, Bytes, Dice};

/// Walks all of it, with data, and asks for facts.
fn exercise(bytes: Vec<u8>, logs: Vec<Vec<u8>>) -> (usize, usize) {
    let logs: Vec<_> = logs.into_iter().map(Bytes::shared).collect();
    let Ok(hive) = Hive::open(Bytes::shared(bytes), &logs) else {
        return (0, 1);
    };
    let (mut sound, mut damaged) = (0, 0);
    hive.walk(&mut |event| {
        let result = match event {
            WalkEvent::Key(_, key) => key.class_name().and_then(|_| key.security()).map(|_| ()),
            WalkEvent::Value(_, value) => value.texts().and_then(|_| value.data()).map(|_| ()),
            WalkEvent::Damage(_, error) => Err(error),
        };
        match result {
            Ok(()) => sound += 1,
            Err(_) => damaged += 1,
        }
        ControlFlow::Continue(())
    });
    let _ = WindowsFacts::read(Some(&hive), Some(&hive));
    (sound, damaged)
}

#[test]
fn a_damaged_hive_shows_what_is_whole_and_says_what_is_not() {
    let Some(bytes) = corpus::bytes("registry/regipy-corrupted_system_hive.xz") else {
        return;
    };
    let begin = Instant::now();
    let (sound, damaged) = exercise(bytes, Vec::new());
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert!(sound > 1000, "{sound} keys and values are whole");
    assert!(damaged > 0, "it is known to be damaged");
}

#[test]
fn lies_in_a_hive_cost_little_and_never_panic() {
    let Some(sam) = corpus::bytes("registry/regipy-SAM.xz") else {
        return;
    };
    let bcd = corpus::bytes("registry/regipy-BCD.xz").expect("given");
    for seed in 0..600 {
        let mut dice = Dice::new(seed);
        let mut bytes = if seed % 2 == 0 { &sam } else { &bcd }.clone();
        for _ in 0..=dice.below(24) {
            dice.damage(&mut bytes, 512);
        }
        if dice.below(8) == 0 {
            let keep = dice.below(bytes.len());
            bytes.truncate(keep);
        }
        let begin = Instant::now();
        exercise(bytes, Vec::new());
        assert!(begin.elapsed() < Duration::from_secs(5), "seed {seed}");
    }
}

#[test]
fn lies_in_a_log_cost_little_and_never_panic() {
    let Some(primary) = corpus::bytes("registry/regipy-transactions_NTUSER.DAT.xz") else {
        return;
    };
    let log = corpus::bytes("registry/regipy-transactions_ntuser.dat.log2.xz").expect("given");
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let mut bytes = log.clone();
        for _ in 0..=dice.below(8) {
            dice.damage(&mut bytes, 512);
        }
        exercise(primary[..0x8000].to_vec(), vec![bytes]);
    }
}

#[test]
fn a_key_that_is_its_own_child_ends_the_walk() {
    let Some(mut bytes) = corpus::bytes("registry/regipy-BCD.xz") else {
        return;
    };
    // Every list of subkeys names the root in each of its places.
    let root = u32::from_le_bytes(bytes[36..40].try_into().expect("4"));
    let mut changed = 0;
    for at in (4096..bytes.len() - 8).step_by(4) {
        if matches!(&bytes[at..at + 2], b"lf" | b"lh") {
            bytes[at + 4..at + 8].copy_from_slice(&root.to_le_bytes());
            changed += 1;
        }
    }
    assert!(changed > 5);
    let (_, damaged) = exercise(bytes, Vec::new());
    assert!(damaged > 0);
}
