//! Telling an operation under way to stop.
//!
//! **Invariant.** Cancelling is for good; a token is shared by cloning it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

type Wake = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    is_cancelled: bool,
    next_watch: u64,
    watches: BTreeMap<u64, Wake>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shared by whoever may stop an operation and the operation itself.
#[derive(Clone, Default)]
pub struct CancelToken {
    shared: Arc<Shared>,
}

impl CancelToken {
    /// A token that nobody has cancelled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops whatever watches this token. Again is the same as once.
    pub fn cancel(&self) {
        let watches = {
            let mut state = self.shared.lock();
            state.is_cancelled = true;
            std::mem::take(&mut state.watches)
        };
        self.shared.changed.notify_all();
        for wake in watches.into_values() {
            wake();
        }
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.shared.lock().is_cancelled
    }

    /// Waits that long, or until cancelled; whether it was cancelled.
    pub fn wait(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        let mut state = self.shared.lock();
        while !state.is_cancelled {
            let Some(left) = timeout
                .checked_sub(start.elapsed())
                .filter(|it| !it.is_zero())
            else {
                return false;
            };
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Calls `wake` once when cancelled (at once if it is already), until the watch is dropped. From the cancelling thread.
    #[must_use]
    pub fn watch(&self, wake: impl FnOnce() + Send + 'static) -> CancelWatch {
        let mut state = self.shared.lock();
        let id = state.next_watch;
        state.next_watch = state.next_watch.wrapping_add(1);
        if state.is_cancelled {
            drop(state);
            wake();
        } else {
            state.watches.insert(id, Box::new(wake));
        }
        CancelWatch {
            token: self.clone(),
            id,
        }
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken")
            .field("is_cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// While it lives, its closure is called when the token is cancelled.
#[derive(Debug)]
pub struct CancelWatch {
    token: CancelToken,
    id: u64,
}

impl Drop for CancelWatch {
    fn drop(&mut self) {
        self.token.shared.lock().watches.remove(&self.id);
    }
}
