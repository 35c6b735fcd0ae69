//! A store held to so many bytes and requests per second, shared by all its callers.
//!
//! ```text
//!   time ─────────────────────────────────────────────►
//!   line  [ request 1 ][ request 2 ][ 3 ]                each request takes its cost on the line
//!                                        ▲ free_at       a later one waits until the line is free
//! ```
//!
//! What was read is charged after reading, because only then it is known: the next call waits for it.
//!
//! **Invariants.** Over any stretch of calls the mean stays at or below the limit, but for the first call. Waiting is the
//! clock's: a test that owns the clock waits for nothing.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{ListPage, ObjectName, Prefix, Result, Store};

/// Time that only goes forwards, and waiting for it.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;
    /// Returns when `duration` has passed.
    fn sleep(&self, duration: Duration);
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// How fast a store may be used; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThrottleOptions {
    /// Bytes put and read per second.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Calls per second.
    pub requests_per_second: Option<NonZeroU64>,
}

/// A store with a speed limit.
pub struct ThrottledStore<S> {
    inner: S,
    options: ThrottleOptions,
    clock: Arc<dyn Clock>,
    free_at: Mutex<Duration>,
}

impl<S> ThrottledStore<S> {
    /// Holds `inner` to `options`, by `clock`.
    pub fn new(inner: S, options: ThrottleOptions, clock: Arc<dyn Clock>) -> Self {
        Self {
            inner,
            options,
            clock,
            free_at: Mutex::default(),
        }
    }

    /// Waits for a place on the line and takes it.
    fn enter(&self, requests: u64, bytes: usize) {
        let now = self.clock.now();
        let start = self.charge(now, requests, bytes);
        let wait = start.saturating_sub(now);
        if !wait.is_zero() {
            self.clock.sleep(wait);
        }
    }

    /// Takes a place on the line; when it begins.
    fn charge(&self, now: Duration, requests: u64, bytes: usize) -> Duration {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let cost = time_of(requests, self.options.requests_per_second)
            .max(time_of(bytes, self.options.bytes_per_second));
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = now.max(*free_at);
        *free_at = start.saturating_add(cost);
        start
    }

    fn read(&self, call: impl FnOnce(&S) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        self.enter(1, 0);
        let bytes = call(&self.inner)?;
        self.charge(self.clock.now(), 0, bytes.len());
        Ok(bytes)
    }
}

fn time_of(amount: u64, per_second: Option<NonZeroU64>) -> Duration {
    let Some(rate) = per_second else {
        return Duration::ZERO;
    };
    let nanoseconds = u128::from(amount).saturating_mul(1_000_000_000) / u128::from(rate.get());
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

impl<S: Store> Store for ThrottledStore<S> {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
        self.enter(1, body.len());
        self.inner.put_new(name, body)
    }

    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        self.read(|inner| inner.get_bounded(name, limit_bytes))
    }

    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
        self.read(|inner| inner.get_range(name, offset, length_bytes))
    }

    fn size(&self, name: &ObjectName) -> Result<u64> {
        self.enter(1, 0);
        self.inner.size(name)
    }

    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
        self.enter(1, 0);
        self.inner.list(prefix, after, limit)
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.enter(1, 0);
        self.inner.delete(name)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
