//! Any bytes end a conversation, and nothing else: no panic, no hang, no memory without a bound.
//!
//! `HIKAE_SERVE_ROUNDS` makes it longer, `HIKAE_SERVE_SEED` brings a failure back.

use std::sync::Arc;

use super::disks::{Numbers, Random, seed};
use super::speaker::{Speech, converse, two_exports};

const KIB: u64 = 1 << 10;

/// A conversation in which everything occurs.
fn everything() -> Speech {
    Speech::new(3)
        .option(3, &[])
        .option(8, &[])
        .choose(6, "a", &[1, 2, 3])
        .contexts(9, "a", &["base:"])
        .contexts(10, "a", &["base:allocation"])
        .option(4711, b"nonsense")
        .choose(7, "a", &[])
        .request(0, 0, 1, 0, 300 << 10)
        .request(4, 0, 2, 1000, 5000)
        .request(0, 7, 3, 0, 200 << 10)
        .request(0, 1, 4, 0, 64)
        .bytes(&[9; 64])
        .request(0, 5, 5, 0, 4096)
        .request(0, 2, 6, 0, 0)
}

fn mutate(speech: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let length = speech.len() as u64;
        if length == 0 {
            return;
        }
        let at = random.below(length) as usize;
        match random.below(6) {
            0 => speech[at] = random.next() as u8,
            1 => speech[at] ^= 1 << random.below(8),
            2 => speech.truncate(at),
            3 => {
                let count = (random.below(16) as usize).min(speech.len() - at);
                speech.drain(at..at + count);
            }
            4 => {
                let end = (at + random.below(64) as usize).min(speech.len());
                let copy = speech[at..end].to_vec();
                let into = random.below(length) as usize;
                speech.splice(into..into, copy);
            }
            _ => {
                // A number at a place where one may stand: the great, the small, the nearly right.
                let values = [0, 1, 0x7FFF_FFFF, 0x8000_0000, u32::MAX, 65_537, 33 << 20];
                let value = values[random.below(7) as usize].to_be_bytes();
                let end = (at + 4).min(speech.len());
                let count = end - at;
                speech[at..end].copy_from_slice(&value[..count]);
            }
        }
    }
}

#[test]
fn mutated_conversations_end() {
    let rounds = std::env::var("HIKAE_SERVE_ROUNDS").ok();
    let rounds: u64 = rounds.map_or(4000, |text| text.parse().expect("a number"));
    let mut random = Random(seed());
    let disk = Arc::new(Numbers::new(3, 512 * KIB + 3, 50));
    let exports = two_exports(&disk, &disk);
    let (mut chosen, mut broken) = (0, 0);
    for round in 0..rounds {
        let before = random.0;
        let mut speech = everything().0;
        mutate(&mut speech, &mut random);
        let heard = converse(&exports, &speech);
        let length = heard.negotiated.len() + heard.transmitted.len();
        assert!(
            length < 8 << 20,
            "round {round} from {before}: {length} bytes"
        );
        match heard.outcome {
            Ok(true) => chosen += 1,
            Ok(false) => {}
            Err(_) => broken += 1,
        }
    }
    assert!(
        chosen > rounds / 10 && broken > rounds / 10,
        "{chosen} {broken}"
    );
}

#[test]
fn nothing_but_noise_ends() {
    let mut random = Random(seed());
    let disk = Arc::new(Numbers::new(3, 64 * KIB, 50));
    let exports = two_exports(&disk, &disk);
    for _ in 0..2000 {
        let length = random.below(300);
        let mut speech: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        if random.below(2) == 0 {
            // Far enough in to be listened to.
            speech.splice(0..0, Speech::new(3).option(8, &[]).choose(7, "a", &[]).0);
        }
        let heard = converse(&exports, &speech);
        assert!(heard.transmitted.len() < 1 << 20);
    }
}

#[test]
fn lengths_that_nobody_could_mean_cost_nothing() {
    let disk = Arc::new(Numbers::new(3, 64 * KIB, 50));
    let exports = two_exports(&disk, &disk);
    let header = |option: u32, length: u32| {
        let mut speech = Speech::new(3).bytes(b"IHAVEOPT");
        speech = speech
            .bytes(&option.to_be_bytes())
            .bytes(&length.to_be_bytes());
        speech.0
    };
    for length in [u32::MAX, 1 << 31, (1 << 20) + 1] {
        assert!(converse(&exports, &header(3, length)).outcome.is_err());
    }
    // Too long to be looked at, but not to be refused.
    let mut long = header(3, 100_000);
    long.extend_from_slice(&vec![0; 100_000]);
    let long = Speech(long).option(2, &[]);
    let heard = converse(&exports, &long.0);
    assert!(!heard.outcome.expect("goes on"));
    let write = Speech::new(3)
        .choose(7, "a", &[])
        .request(0, 1, 1, 0, u32::MAX);
    assert!(converse(&exports, &write.0).outcome.is_err());
}

#[test]
fn a_flood_of_options_comes_to_an_end() {
    let disk = Arc::new(Numbers::new(3, 64 * KIB, 50));
    let mut speech = Speech::new(3);
    for _ in 0..10_000 {
        speech = speech.option(3, &[]);
    }
    let heard = converse(&two_exports(&disk, &disk), &speech.0);
    assert!(heard.outcome.is_err());
    assert!(heard.negotiated.len() < 1 << 20);
}

#[test]
fn a_flood_of_queries_is_bounded_by_its_bytes() {
    let disk = Arc::new(Numbers::new(3, 64 * KIB, 50));
    let mut data = b"\0\0\0\x01a".to_vec();
    data.extend_from_slice(&u32::MAX.to_be_bytes());
    data.extend_from_slice(&[0; 60_000]);
    let speech = Speech::new(3)
        .option(8, &[])
        .option(10, &data)
        .option(2, &[]);
    assert!(
        !converse(&two_exports(&disk, &disk), &speech.0)
            .outcome
            .expect("goes on")
    );
}
