//! Servers that say the same in other words, in pieces, slowly: the driver works as with any other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host::boundary::{ClusterMembership, Inventory, Power};
use lab::estate::{Fault, FaultKind, Repeat};
use lab::provider::{Language, Pace};
use wsman::client::ClientOptions;
use wsman::transport::{Answer, Post, Transport};
use wsman::xml::decode;

use super::conformance::keeps_its_contract;
use super::odd_xml::oddly;
use super::place::{Home, Images, Place, Plan, calm};

/// Says what another transport brings, each time oddly in another way.
pub struct Odd {
    inner: Arc<dyn Transport>,
    seed: u64,
    count: AtomicU64,
}

impl Odd {
    pub fn with_seed(seed: u64, inner: Arc<dyn Transport>) -> Arc<dyn Transport> {
        Arc::new(Self {
            inner,
            seed,
            count: AtomicU64::new(0),
        })
    }
}

impl Transport for Odd {
    fn post(&self, post: &Post<'_>) -> wsman::Result<Answer> {
        let answer = self.inner.post(post)?;
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let seed = self.seed.wrapping_mul(0x9E37_79B9).wrapping_add(count);
        let (text, _) = decode(&answer.body, answer.charset.as_deref())?;
        let body = oddly(&text, seed);
        // What the header says of the charset is wrong more often than the mark at the front.
        let charset = seed.is_multiple_of(5).then(|| "utf-8".to_owned());
        Ok(Answer {
            status: answer.status,
            charset,
            body,
        })
    }

    fn address(&self) -> &str {
        self.inner.address()
    }
}

/// A client that takes so many items at once, in small answers.
pub fn small_pieces(max_elements: u32) -> ClientOptions {
    ClientOptions {
        max_elements,
        max_envelope_bytes: 64 << 10,
        ..ClientOptions::default()
    }
}

fn plans() -> [Plan; 3] {
    [
        Plan::new(),
        Plan {
            home: Home::Drive,
            images: Images::Vhd,
            language: Language::Japanese,
            ..Plan::new()
        }
        .with_tree(),
        Plan {
            home: Home::Share,
            ..Plan::new()
        }
        .with_tree(),
    ]
}

#[test]
fn what_is_told_oddly_is_understood_as_what_is_told_plainly() {
    for plan in plans() {
        let place = Place::new(plan);
        place.estate.set_pace(Pace::Manual);
        let plain = place.driver();
        let inventory = plain.inventory(&calm()).expect("an inventory");
        let clusters = plain.clusters(&calm()).expect("clusters");
        assert!(!inventory.machines.is_empty() && inventory.problems.is_empty());
        for seed in 0..24 {
            let between = |_: &str, inner| Odd::with_seed(seed, inner);
            let pieces = [1, 2, 7, 250][usize::try_from(seed % 4).expect("small")];
            let odd = place.driver_through(&between, &small_pieces(pieces));
            let told = odd.inventory(&calm()).expect("an inventory");
            assert_eq!(told, inventory, "seed {seed}");
            assert_eq!(
                odd.clusters(&calm()).expect("clusters"),
                clusters,
                "seed {seed}"
            );
            let one = odd.machine(place.id(), &calm()).expect("the machine");
            let state = odd.power_state(place.id(), &calm()).expect("a state");
            assert_eq!(one.power, state, "seed {seed}");
        }
    }
}

#[test]
fn the_contract_is_kept_through_whatever_a_server_may_write() {
    for (seed, plan) in (100..).zip(plans()) {
        println!("seed {seed}");
        let place = Place::new(plan);
        let between = |_: &str, inner| Odd::with_seed(seed, inner);
        let pieces = [1, 5, 2][usize::try_from(seed % 3).expect("small")];
        let driver = place.driver_through(&between, &small_pieces(pieces));
        keeps_its_contract(&place, &driver);
    }
}

fn with_jobs_that(kind: FaultKind) {
    for plan in plans() {
        let place = Place::new(plan);
        let fault = Fault::next(kind).repeated(Repeat::Always);
        place.estate.write(|it| it.inject(fault));
        keeps_its_contract(&place, &place.driver());
    }
}

#[test]
fn the_contract_is_kept_with_slow_jobs() {
    with_jobs_that(FaultKind::JobIsSlow);
}

#[test]
fn the_contract_is_kept_with_jobs_that_vanish_when_they_are_over() {
    with_jobs_that(FaultKind::JobVanishes);
}

#[test]
fn the_contract_is_kept_with_jobs_that_nobody_names() {
    with_jobs_that(FaultKind::JobIsNotNamed);
}
