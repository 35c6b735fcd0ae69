//! Work on the pieces of a disk by several threads, with bounded memory.
//!
//! ```text
//!   next piece (one thread at a time) ──► work (all threads) ──► commit (one at a time; in order when asked)
//! ```
//!
//! **Invariants.** A thread holds one piece and one buffer. The first error stops all threads and is what the caller
//! gets. With [`CommitOrder::Ascending`] pieces are committed in the order in which they were handed out.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::{Error, Result};

/// Most threads, and so most buffers.
const MAX_THREADS: usize = 16;

/// The order in which pieces are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommitOrder {
    /// As they get ready.
    Any,
    /// As they were handed out.
    Ascending,
}

/// How many threads work. More than cores wait for one another: the kernel lets one at a time write to a file.
pub(crate) fn thread_count() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    cores.clamp(2, MAX_THREADS)
}

struct Source<N> {
    next: N,
    number: u64,
}

struct Turn<C> {
    commit: C,
    number: u64,
    failure: Option<Error>,
}

struct Shared<N, C> {
    source: Mutex<Source<N>>,
    turn: Mutex<Turn<C>>,
    turned: Condvar,
    order: CommitOrder,
}

/// Runs until `next` has no more pieces. `work` gets a buffer that its thread keeps.
pub(crate) fn run<I, O>(
    threads: usize,
    order: CommitOrder,
    next: impl FnMut() -> Result<Option<I>> + Send,
    work: impl Fn(&I, &mut Vec<u8>) -> Result<O> + Sync,
    commit: impl FnMut(I, O, &mut Vec<u8>) -> Result<()> + Send,
) -> Result<()>
where
    I: Send,
    O: Send,
{
    let shared = Shared {
        source: Mutex::new(Source { next, number: 0 }),
        turn: Mutex::new(Turn {
            commit,
            number: 0,
            failure: None,
        }),
        turned: Condvar::new(),
        order,
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(|| shared.drain(&work));
        }
        shared.drain(&work);
    });
    match shared
        .turn
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .failure
    {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl<N, C> Shared<N, C> {
    fn drain<I, O>(&self, work: &(impl Fn(&I, &mut Vec<u8>) -> Result<O> + Sync))
    where
        N: FnMut() -> Result<Option<I>>,
        C: FnMut(I, O, &mut Vec<u8>) -> Result<()>,
    {
        let mut buffer = Vec::new();
        loop {
            let piece = {
                let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
                if self.has_failed() {
                    return;
                }
                let number = source.number;
                source.number = number.saturating_add(1);
                (source.next)().map(|piece| piece.map(|piece| (number, piece)))
            };
            let result = match piece {
                Ok(None) => return,
                Err(error) => Err(error),
                Ok(Some((number, piece))) => work(&piece, &mut buffer)
                    .and_then(|done| self.commit(number, piece, done, &mut buffer)),
            };
            if let Err(error) = result {
                let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
                turn.failure.get_or_insert(error);
                self.turned.notify_all();
                return;
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .failure
            .is_some()
    }

    fn commit<I, O>(&self, number: u64, piece: I, done: O, buffer: &mut Vec<u8>) -> Result<()>
    where
        C: FnMut(I, O, &mut Vec<u8>) -> Result<()>,
    {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while self.order == CommitOrder::Ascending
            && turn.number != number
            && turn.failure.is_none()
        {
            turn = self
                .turned
                .wait(turn)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if turn.failure.is_some() {
            return Ok(());
        }
        let result = (turn.commit)(piece, done, buffer);
        turn.number = turn.number.saturating_add(1);
        self.turned.notify_all();
        result
    }
}
