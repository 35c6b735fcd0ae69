//! Work on many cores with results in order.
//!
//! ```text
//!   produce ──► 0 1 2 3 4 …          one at a time, under the lock
//!               │ │ │
//!              worker threads        each with its own scratch; at most `window` items begun and not taken
//!               │ │ │
//!   consume ◄── 0 1 2 …              in order, on the caller's thread
//! ```
//!
//! The window bounds memory: a slow first item holds back the others. The first error stops everything; a panic in a
//! worker stops everything too and is passed on.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use block::LEAF_SIZE_BYTES;

use crate::{Error, ErrorKind, Result};

struct State<P, R> {
    produce: P,
    begun: u64,
    taken: u64,
    is_exhausted: bool,
    failed: Option<Error>,
    stopped: bool,
    ready: BTreeMap<u64, R>,
}

struct Shared<P, R> {
    state: Mutex<State<P, R>>,
    changed: Condvar,
    window: u64,
}

impl<P, R> Shared<P, R> {
    fn lock(&self) -> MutexGuard<'_, State<P, R>> {
        // A panic in a worker is passed on by the scope; the state itself is whole between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State<P, R>>) -> MutexGuard<'a, State<P, R>> {
        self.changed
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, error: Option<Error>) {
        let mut state = self.lock();
        state.stopped = true;
        if state.failed.is_none() {
            state.failed = error;
        }
        self.changed.notify_all();
    }
}

/// Stops the others when a worker unwinds.
struct StopOnPanic<'a, P, R>(&'a Shared<P, R>);

impl<P, R> Drop for StopOnPanic<'_, P, R> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(None);
        }
    }
}

/// Bytes that workers and the results they wait with may hold, a leaf (8 MiB) each. With the packs being filled and sealed
/// (about 100 MiB) and the index, a job stays below 256 MiB whatever the number of cores.
const BUDGET_BYTES: u64 = 88 << 20;
/// Leaves that fit in that.
const LEAVES: usize = (BUDGET_BYTES / LEAF_SIZE_BYTES) as usize;

/// How many threads, and how far they may run ahead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Width {
    pub workers: usize,
    pub window: usize,
}

impl Width {
    /// As many workers as wanted, as far as memory allows; one per core and one more when nothing is said, so that reading
    /// and computing overlap.
    pub(crate) fn of(workers: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        // Each worker needs its own leaf and room for what it makes of it, and one result more is being taken.
        let most = (LEAVES - 1) / 2;
        let workers = workers.unwrap_or(cores.saturating_add(1)).clamp(1, most);
        Self {
            workers,
            window: (workers + 2).min(LEAVES - workers),
        }
    }
}

/// Runs `work` on what `produce` gives until it gives nothing, and hands the results to `consume` in order.
///
/// # Errors
/// The first error of any of them.
pub(crate) fn run_ordered<T, R, S>(
    width: Width,
    produce: impl FnMut() -> Result<Option<T>> + Send,
    scratch: impl Fn() -> Result<S> + Sync,
    work: impl Fn(&mut S, T) -> Result<R> + Sync,
    mut consume: impl FnMut(R) -> Result<()>,
) -> Result<()>
where
    T: Send,
    R: Send,
{
    let state = State {
        produce,
        begun: 0,
        taken: 0,
        is_exhausted: false,
        failed: None,
        stopped: false,
        ready: BTreeMap::new(),
    };
    let window = width.window.max(width.workers).max(1) as u64;
    let shared = Shared {
        state: Mutex::new(state),
        changed: Condvar::new(),
        window,
    };
    std::thread::scope(|scope| -> Result<()> {
        for number in 0..width.workers.max(1) {
            let worker = || {
                let _guard = StopOnPanic(&shared);
                if let Err(error) = run_worker(&shared, &scratch, &work) {
                    shared.stop(Some(error));
                }
            };
            let name = format!("worker-{number}");
            if let Err(error) = std::thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, worker)
            {
                shared.stop(None);
                let what = "no thread for a worker";
                return Err(Error::new(ErrorKind::Io, what).caused_by(error));
            }
        }
        let consumed = consume_in_order(&shared, &mut consume);
        if consumed.is_err() {
            shared.stop(None);
        }
        consumed
    })?;
    let state = shared
        .state
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match state.failed {
        Some(error) => Err(error),
        None if state.stopped => Err(Error::new(ErrorKind::Io, "a worker died")),
        None => Ok(()),
    }
}

fn run_worker<T, R, S, P: FnMut() -> Result<Option<T>>>(
    shared: &Shared<P, R>,
    scratch: &(impl Fn() -> Result<S> + Sync),
    work: &(impl Fn(&mut S, T) -> Result<R> + Sync),
) -> Result<()> {
    let mut scratch = scratch()?;
    loop {
        let (number, item) = {
            let mut state = shared.lock();
            while !state.stopped
                && !state.is_exhausted
                && state.begun.saturating_sub(state.taken) >= shared.window
            {
                state = shared.wait(state);
            }
            if state.stopped || state.is_exhausted {
                return Ok(());
            }
            let Some(item) = (state.produce)()? else {
                state.is_exhausted = true;
                shared.changed.notify_all();
                return Ok(());
            };
            let number = state.begun;
            state.begun += 1;
            (number, item)
        };
        let result = work(&mut scratch, item)?;
        let mut state = shared.lock();
        state.ready.insert(number, result);
        if number == state.taken {
            shared.changed.notify_all();
        }
    }
}

fn consume_in_order<R, P>(
    shared: &Shared<P, R>,
    consume: &mut impl FnMut(R) -> Result<()>,
) -> Result<()> {
    loop {
        let result = {
            let mut state = shared.lock();
            loop {
                if state.stopped {
                    return Ok(());
                }
                let next = state.taken;
                if let Some(result) = state.ready.remove(&next) {
                    break result;
                }
                if state.is_exhausted && state.taken == state.begun {
                    return Ok(());
                }
                state = shared.wait(state);
            }
        };
        consume(result)?;
        // Only now is there room: what is being consumed counts as held.
        shared.lock().taken += 1;
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const WIDTH: Width = Width {
        workers: 3,
        window: 5,
    };

    #[test]
    fn results_come_in_order_whatever_the_workers_do() {
        let mut next = 0u64;
        let mut seen = Vec::new();
        let produce = || {
            next += 1;
            Ok((next <= 500).then_some(next))
        };
        let work = |spin: &mut u64, item: u64| {
            *spin = (0..(item * 7919) % 3000).fold(*spin, |sum, at| sum.wrapping_add(at));
            Ok(item)
        };
        let consume = |item| {
            seen.push(item);
            Ok(())
        };
        run_ordered(WIDTH, produce, || Ok(0u64), work, consume).unwrap();
        assert_eq!(seen, (1..=500).collect::<Vec<_>>());
    }

    #[test]
    fn whatever_is_wished_fits_the_budget() {
        for workers in [None, Some(0), Some(1), Some(2), Some(16), Some(usize::MAX)] {
            let width = Width::of(workers);
            let leaves = (width.workers + width.window) as u64;
            assert!(leaves * LEAF_SIZE_BYTES <= BUDGET_BYTES, "{width:?}");
            assert!(
                width.workers >= 1 && width.window > width.workers,
                "{width:?}"
            );
        }
    }

    #[test]
    fn no_more_than_the_window_is_held() {
        let (held, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut left = 200;
        let produce = || {
            most.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            left -= 1;
            Ok((left > 0).then_some(()))
        };
        let consume = |()| {
            held.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        run_ordered(WIDTH, produce, || Ok(()), |(), ()| Ok(()), consume).unwrap();
        assert!(most.load(Ordering::SeqCst) <= WIDTH.window + 1);
    }

    #[test]
    fn the_first_error_of_any_stage_stops_all() {
        let fail = |what: &str| Error::new(ErrorKind::Corrupt, what);
        for stage in ["produce", "scratch", "work", "consume"] {
            let mut at = 0;
            let at_stage = |name: &str, now: bool| {
                if stage == name && now {
                    Err(fail(name))
                } else {
                    Ok(())
                }
            };
            let produce = || {
                at += 1;
                at_stage("produce", at > 20)?;
                Ok(Some(at))
            };
            let work = |(): &mut (), item| at_stage("work", item == 20).map(|()| item);
            let consume = |item| at_stage("consume", item == 20);
            let error = run_ordered(WIDTH, produce, || at_stage("scratch", true), work, consume)
                .unwrap_err();
            assert_eq!(error.to_string(), stage);
        }
    }

    #[test]
    #[should_panic(expected = "a scoped thread panicked")]
    fn a_panic_in_a_worker_is_passed_on_and_hangs_nobody() {
        let mut at = 0;
        let produce = || {
            at += 1;
            Ok(Some(at))
        };
        let work = |(): &mut (), item: i32| {
            assert!(item != 30, "on purpose");
            Ok(item)
        };
        let _ = run_ordered(WIDTH, produce, || Ok(()), work, |_| Ok(()));
    }
}
