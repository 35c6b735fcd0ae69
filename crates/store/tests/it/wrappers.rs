//! What is put around a store: faults as planned, calls as made, speed as allowed.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use store::faulty::{Fault, FaultyStore, Moment, PlannedCall, SeededFaults};
use store::memory::MemoryStore;
use store::recording::{CallCounts, RecordingStore};
use store::throttled::{Clock, ThrottleOptions, ThrottledStore};
use store::{ErrorKind, Prefix, Store, Verb, list_all};

use crate::name;

fn failing_once(fault: Fault) -> FaultyStore<MemoryStore> {
    FaultyStore::new(MemoryStore::new(), move |call: &PlannedCall<'_>| {
        (call.number == 1).then_some(fault)
    })
}

#[test]
fn a_failure_before_leaves_nothing_and_one_after_leaves_all() {
    let store = failing_once(Fault::FailBefore(ErrorKind::Full));
    assert_eq!(
        store.put_new(&name("a"), b"x").expect_err("told").kind(),
        ErrorKind::Full
    );
    assert_eq!(
        store.get(&name("a")).expect_err("absent").kind(),
        ErrorKind::NotFound
    );

    let store = failing_once(Fault::FailAfter(ErrorKind::Unavailable));
    assert!(
        store
            .put_new(&name("a"), b"x")
            .expect_err("told")
            .is_retryable()
    );
    assert_eq!(store.get(&name("a")).expect("there"), b"x");
}

#[test]
fn a_crash_ends_everything_but_what_was_put() {
    for (moment, survives) in [(Moment::Before, false), (Moment::After, true)] {
        let memory = Arc::new(MemoryStore::new());
        let store = FaultyStore::crashing_at(Arc::clone(&memory), 2, moment);
        store.put_new(&name("first"), b"1").expect("put");
        assert!(
            store
                .put_new(&name("second"), b"2")
                .expect_err("crash")
                .is_retryable()
        );
        assert!(store.has_crashed());
        assert!(store.get(&name("first")).expect_err("dead").is_retryable());
        assert!(store.delete(&name("first")).is_err());
        assert!(store.put_new(&name("third"), b"3").is_err());
        assert_eq!(store.calls(), 2);

        let after = memory.survive();
        assert_eq!(after.get(&name("first")).expect("survived"), b"1");
        assert_eq!(after.get(&name("second")).is_ok(), survives, "{moment:?}");
        assert!(after.get(&name("third")).is_err());
    }
}

#[test]
fn damaged_reads_differ_as_told_and_the_object_stays() {
    let store = FaultyStore::sound(MemoryStore::new());
    let body: Vec<u8> = (0..100).collect();
    store.put_new(&name("a"), &body).expect("put");
    store.set_plan(|_: &PlannedCall<'_>| Some(Fault::ShortRead));
    assert_eq!(store.get(&name("a")).expect("short"), body[..50]);
    assert_eq!(
        store.get_range(&name("a"), 10, 10).expect("short"),
        body[10..15]
    );
    store.set_plan(|_: &PlannedCall<'_>| Some(Fault::FlipBit(803)));
    let mut flipped = body.clone();
    flipped[0] ^= 1 << 3;
    assert_eq!(store.get(&name("a")).expect("flipped"), flipped);
    assert_eq!(store.inner().get(&name("a")).expect("untouched"), body);
}

#[test]
fn a_torn_put_leaves_half_a_body() {
    let store = failing_once(Fault::TornPut);
    assert!(store.put_new(&name("a"), b"abcd").is_err());
    assert!(store.has_crashed());
    assert_eq!(store.inner().get(&name("a")).expect("torn"), b"ab");
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let run = |seed| {
        let faults = [
            Fault::FailBefore(ErrorKind::Unavailable),
            Fault::FailAfter(ErrorKind::Io),
        ];
        let store = FaultyStore::new(MemoryStore::new(), SeededFaults::new(seed, 300, faults));
        (0..200)
            .map(|n| {
                store
                    .put_new(&name(&format!("n{n}")), b"")
                    .err()
                    .map(|error| error.kind())
            })
            .collect::<Vec<_>>()
    };
    let first = run(7);
    assert_eq!(first, run(7));
    assert_ne!(first, run(8));
    let failed = first.iter().flatten().count();
    assert!((30..90).contains(&failed), "{failed} of 200 at 30 %");
}

#[test]
fn calls_are_recorded_as_they_were_made() {
    let store = RecordingStore::new(MemoryStore::new());
    store.put_new(&name("d/a"), &[0; 10]).expect("put");
    assert!(store.put_new(&name("d/a"), &[0; 20]).is_err());
    store.get(&name("d/a")).expect("get");
    store.get_range(&name("d/a"), 2, 3).expect("range");
    store.size(&name("d/a")).expect("size");
    assert_eq!(list_all(&store, &Prefix::root()).count(), 1);
    store.delete(&name("d/a")).expect("delete");
    let expected = CallCounts {
        puts: 2,
        put_bytes: 10,
        gets: 1,
        range_gets: 1,
        read_bytes: 13,
        sizes: 1,
        lists: 1,
        deletes: 1,
        errors: 1,
    };
    assert_eq!(store.counts(), expected);
    let calls = store.take_calls();
    assert_eq!(calls.len(), 7);
    assert_eq!(calls[1].error, Some(ErrorKind::AlreadyExists));
    assert_eq!(
        (calls[3].verb, calls[3].name.as_str()),
        (Verb::GetRange, "d/a")
    );
    assert_eq!(store.counts(), CallCounts::default());
}

/// A clock that jumps ahead instead of waiting.
#[derive(Default)]
struct JumpingClock(Mutex<Duration>);

impl Clock for JumpingClock {
    fn now(&self) -> Duration {
        *self.0.lock().expect("lock")
    }
    fn sleep(&self, duration: Duration) {
        *self.0.lock().expect("lock") += duration;
    }
}

#[test]
fn bytes_and_requests_take_their_time() {
    let clock = Arc::new(JumpingClock::default());
    let options = ThrottleOptions {
        bytes_per_second: NonZeroU64::new(1_000),
        requests_per_second: NonZeroU64::new(10),
    };
    let store = ThrottledStore::new(MemoryStore::new(), options, clock.clone());
    store.put_new(&name("a"), &[0; 5_000]).expect("put");
    assert_eq!(clock.now(), Duration::ZERO, "the first call is not held up");
    store.size(&name("a")).expect("size");
    assert_eq!(
        clock.now(),
        Duration::from_secs(5),
        "5000 bytes take five seconds"
    );
    for _ in 0..10 {
        store.size(&name("a")).expect("size");
    }
    assert_eq!(
        clock.now(),
        Duration::from_secs(6),
        "ten requests take one second"
    );
    store.get(&name("a")).expect("get");
    store.size(&name("a")).expect("size");
    assert_eq!(
        clock.now(),
        Duration::from_millis(11_200),
        "what was read is charged"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_fails_an_object_is_absent_or_whole(
        seed in any::<u64>(),
        per_mille in 0u16..600,
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..30),
    ) {
        let faults = [
            Fault::FailBefore(ErrorKind::Unavailable),
            Fault::FailAfter(ErrorKind::Unavailable),
            Fault::Crash(Moment::Before),
            Fault::Crash(Moment::After),
        ];
        let memory = Arc::new(MemoryStore::new());
        let store = FaultyStore::new(Arc::clone(&memory), SeededFaults::new(seed, per_mille, faults));
        let mut told = Vec::new();
        for (n, body) in bodies.iter().enumerate() {
            told.push(store.put_new(&name(&format!("n{n}")), body).is_ok());
        }
        let survivor = memory.survive();
        for (n, body) in bodies.iter().enumerate() {
            match survivor.get(&name(&format!("n{n}"))) {
                Ok(there) => prop_assert_eq!(&there, body),
                Err(error) => {
                    prop_assert_eq!(error.kind(), ErrorKind::NotFound);
                    prop_assert!(!told[n], "a put that was answered is gone");
                }
            }
        }
    }
}
