//! Many packs at once: some are fetched while others are decoded, on all cores, and no more of them are in memory than fit.
//!
//! ```text
//!   listing order ──► fetchers ──► bytes + checksum + directory ──► queue ──► decoders: 128 blobs at a time ──► a look per pack
//!                        ▲ only while room is left                               the last piece concludes │
//!                        └──────────────────────────── room is given back ◄──────────────────────────────┘
//! ```
//!
//! **Invariants.** Looks come back in the order of the listing, whatever order they were made in. At most [`HELD_BYTES_MAX`]
//! of packs are in memory (a single larger pack is let in alone). A failure that says nothing about a pack ends everything;
//! of several the one of the first pack in the listing is told.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::gc::ground::Ground;
use crate::gc::mark::is_damage;
use crate::read::ReadSession;
use crate::{Error, ErrorKind, PackId, Result};

use super::VerifyReport;
use super::packs::{BadPlaces, Decoded, Listed, WholePack, check_directory, open_whole};

/// Bytes of packs that are in memory at once: two full ones, and some that are not.
const HELD_BYTES_MAX: u64 = 80 << 20;
/// Packs that are asked for at once: enough to hide the latency of a distant store when only directories are read.
const FETCHERS: usize = 8;
/// Most threads that decode.
const DECODERS_MAX: usize = 32;
/// Blobs that a thread decodes at a time: 8 MiB.
const PIECE_BLOBS: u32 = 128;

/// What looking at one pack showed.
pub(super) struct Look {
    /// Damage of the pack as a whole, or that it is gone.
    pub(super) outcome: Result<()>,
    pub(super) bad: BadPlaces,
    pub(super) report: VerifyReport,
}

/// A pack that is being decoded.
struct Held {
    at: usize,
    pack: WholePack,
    bad: BadPlaces,
    report: VerifyReport,
}

/// How far a held pack is.
struct Queued {
    held: Arc<Held>,
    next: u32,
}

struct Progress {
    at: usize,
    undecoded: u32,
    decoded: Decoded,
}

struct State {
    /// The next pack to fetch.
    next: usize,
    held_bytes: u64,
    queue: VecDeque<Queued>,
    under_way: Vec<Progress>,
    looks: Vec<Option<Look>>,
    missing: usize,
    failed: Option<(usize, Error)>,
}

struct Pool<'a> {
    ground: &'a Ground,
    packs: &'a [Listed],
    chosen: &'a HashSet<PackId>,
    session: &'a ReadSession,
    /// Held by who searches a damaged pack for its frames.
    rare: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

/// Looks at packs: at all blobs of the chosen ones, at the directories of the others.
///
/// # Errors
/// What the store answered, if that says nothing about what lies in it; [`ErrorKind::Fenced`] when the session was broken.
pub(super) fn look_at_packs(
    ground: &Ground,
    packs: &[Listed],
    chosen: &HashSet<PackId>,
    session: &ReadSession,
) -> Result<Vec<Look>> {
    let pool = Pool {
        ground,
        packs,
        chosen,
        session,
        rare: Mutex::new(()),
        state: Mutex::new(State {
            next: 0,
            held_bytes: 0,
            queue: VecDeque::new(),
            under_way: Vec::new(),
            looks: packs.iter().map(|_| None).collect(),
            missing: packs.len(),
            failed: None,
        }),
        changed: Condvar::new(),
    };
    let decoders = match chosen.len() {
        0 => 0,
        _ => crate::repository::core_count().clamp(1, DECODERS_MAX),
    };
    std::thread::scope(|scope| {
        for _ in 0..FETCHERS.min(packs.len()) {
            scope.spawn(|| pool.work(Pool::fetch_all));
        }
        for _ in 0..decoders.min(packs.len().saturating_mul(DECODERS_MAX)) {
            scope.spawn(|| pool.work(Pool::decode_all));
        }
    });
    let state = pool
        .state
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match state.failed {
        Some((_, error)) => Err(error),
        None => {
            let looks: Vec<Look> = state.looks.into_iter().flatten().collect();
            assert_eq!(looks.len(), packs.len(), "every pack was looked at");
            Ok(looks)
        }
    }
}

impl Pool<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a thread's part. One that panics must not leave the others waiting for it; the scope passes the panic on.
    fn work(&self, part: fn(&Self)) {
        struct Alarm<'a, 'b>(&'a Pool<'b>);
        impl Drop for Alarm<'_, '_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    let what = "a thread of the verification panicked";
                    self.0.fail(0, Error::new(ErrorKind::Local, what));
                }
            }
        }
        let alarm = Alarm(self);
        part(self);
        drop(alarm);
    }

    fn fail(&self, at: usize, error: Error) {
        let mut state = self.lock();
        if state.failed.as_ref().is_none_or(|(first, _)| at < *first) {
            state.failed = Some((at, error));
        }
        self.changed.notify_all();
    }

    /// What a pack costs while it is looked at.
    fn cost_bytes(&self, pack: &Listed) -> u64 {
        if self.chosen.contains(&pack.id) {
            pack.size_bytes
        } else {
            0
        }
    }

    /// The next pack to fetch, once there is room for it.
    fn next_pack(&self) -> Option<(usize, &Listed)> {
        let mut state = self.lock();
        loop {
            let at = state.next;
            let pack = self.packs.get(at).filter(|_| state.failed.is_none())?;
            let held_bytes = state.held_bytes.saturating_add(self.cost_bytes(pack));
            if held_bytes <= HELD_BYTES_MAX || state.held_bytes == 0 {
                state.next = at.saturating_add(1);
                state.held_bytes = held_bytes;
                return Some((at, pack));
            }
            state = self.wait(state);
        }
    }

    fn fetch_all(&self) {
        while let Some((at, pack)) = self.next_pack() {
            let mut bad = BadPlaces::default();
            let mut report = VerifyReport::default();
            let outcome = self.session.check().and_then(|()| {
                if self.chosen.contains(&pack.id) {
                    open_whole(self.ground, pack, &self.rare, &mut bad, &mut report)
                } else {
                    check_directory(self.ground, pack).map(|()| None)
                }
            });
            match outcome {
                Ok(Some(whole)) => self.enqueue(Held {
                    at,
                    pack: whole,
                    bad,
                    report,
                }),
                Err(error) if !is_damage(&error) => self.fail(at, error),
                outcome => self.finish(
                    at,
                    Look {
                        outcome: outcome.map(|_| ()),
                        bad,
                        report,
                    },
                ),
            }
        }
    }

    fn enqueue(&self, held: Held) {
        if held.pack.ordinals == 0 {
            self.conclude(held, Decoded::default());
            return;
        }
        let mut state = self.lock();
        state.under_way.push(Progress {
            at: held.at,
            undecoded: held.pack.ordinals,
            decoded: Decoded::default(),
        });
        state.queue.push_back(Queued {
            held: Arc::new(held),
            next: 0,
        });
        self.changed.notify_all();
    }

    /// The next blobs to decode; `None` when nothing will come any more.
    fn next_piece(&self) -> Option<(Arc<Held>, Range<u32>)> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() || state.missing == 0 {
                return None;
            }
            if let Some(queued) = state.queue.front_mut() {
                let first = queued.next;
                let all = queued.held.pack.ordinals;
                let end = first.saturating_add(PIECE_BLOBS).min(all);
                queued.next = end;
                let held = Arc::clone(&queued.held);
                if end == all {
                    state.queue.pop_front();
                }
                return Some((held, first..end));
            }
            state = self.wait(state);
        }
    }

    fn decode_all(&self) {
        while let Some((held, piece)) = self.next_piece() {
            let decoded = held.pack.decode(piece.clone());
            let at = held.at;
            let count = piece.end.saturating_sub(piece.start);
            // Given up before it is counted: whoever decodes the last piece is the only one to hold the pack.
            let mut held = Some(held);
            let mut state = self.lock();
            let Some(place) = state.under_way.iter().position(|one| one.at == at) else {
                continue;
            };
            if let Some(progress) = state.under_way.get_mut(place) {
                progress.decoded.absorb(decoded);
                progress.undecoded = progress.undecoded.saturating_sub(count);
                if progress.undecoded > 0 {
                    drop(held.take());
                    continue;
                }
            }
            let progress = state.under_way.swap_remove(place);
            drop(state);
            if let Some(held) = held.take().and_then(Arc::into_inner) {
                self.conclude(held, progress.decoded);
            }
        }
    }

    fn conclude(&self, held: Held, mut decoded: Decoded) {
        decoded.sort();
        let (mut bad, mut report) = (held.bad, held.report);
        let outcome = held.pack.conclude(decoded, &mut bad, &mut report);
        self.finish(
            held.at,
            Look {
                outcome,
                bad,
                report,
            },
        );
    }

    fn finish(&self, at: usize, look: Look) {
        let cost_bytes = self.packs.get(at).map_or(0, |pack| self.cost_bytes(pack));
        let mut state = self.lock();
        state.held_bytes = state.held_bytes.saturating_sub(cost_bytes);
        if let Some(place) = state.looks.get_mut(at) {
            *place = Some(look);
        }
        state.missing = state.missing.saturating_sub(1);
        self.changed.notify_all();
    }
}
