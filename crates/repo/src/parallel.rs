//! Many small reads at once: on a distant store each takes a round trip, and the trips do not wait for each other.
//!
//! **Invariants.** Answers come in the order of the questions. At most [`READERS_MAX`] calls are in flight, none for a few
//! questions. The first error by order ends the work; what is in flight is waited for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{Error, ErrorKind, Result};

/// Most calls in flight.
pub(crate) const READERS_MAX: usize = 16;
/// Questions that are worth a thread more.
const QUESTIONS_PER_READER: usize = 4;

/// Asks `read` for each item.
pub(crate) fn read_each<T: Sync, R: Send>(
    items: &[T],
    read: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let readers = items.len().div_ceil(QUESTIONS_PER_READER).min(READERS_MAX);
    if readers <= 1 {
        return items.iter().map(read).collect();
    }
    let queue = Mutex::new(items.iter().enumerate());
    let stop = AtomicBool::new(false);
    let work = || {
        let mut answers = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((at, item)) = next else {
                break;
            };
            let answer = read(item);
            stop.fetch_or(answer.is_err(), Ordering::Relaxed);
            answers.push((at, answer));
        }
        answers
    };
    let mut all = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..readers).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::with_capacity(items.len());
        for reader in readers {
            let panicked = |_| Error::new(ErrorKind::Local, "a reader of small objects panicked");
            all.extend(reader.join().map_err(panicked)?);
        }
        Ok::<_, Error>(all)
    })?;
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, answer)| answer).collect()
}
