//! The thread that beats, so that a session busy with one long read still shows that it lives.
//!
//! It waits on the system's clock: a heartbeat is for other machines, whose time is real. Simulations beat by hand.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{BeatReason, LeaseCore};
use crate::{Error, ErrorKind, Result};

/// A running heartbeat; dropping it stops it and waits for the thread.
pub(super) struct Heartbeat {
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Signal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Heartbeat {
    pub(super) fn start(core: Arc<LeaseCore>, interval_ms: u64) -> Result<Self> {
        let signal = Arc::new(Signal::default());
        let seen = Arc::clone(&signal);
        let interval = Duration::from_millis(interval_ms.max(1));
        let thread = std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || run(&core, &seen, interval))
            .map_err(|error| Error::local("no thread for the heartbeat", error))?;
        Ok(Self {
            signal,
            thread: Some(thread),
        })
    }
}

fn run(core: &LeaseCore, signal: &Signal, interval: Duration) {
    let mut stopped = signal
        .stopped
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    loop {
        (stopped, _) = signal
            .changed
            .wait_timeout_while(stopped, interval, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        if *stopped {
            return;
        }
        // A failed beat is remembered in the lease's state and tried again at the next interval: until the stall time
        // is over nothing is lost. A broken lease has nothing left to say.
        if let Err(error) = core.beat(BeatReason::Due)
            && error.kind() == ErrorKind::Fenced
        {
            return;
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        *self
            .signal
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.signal.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A heartbeat that panicked has stopped beating, which is all that is wanted here.
            drop(thread.join());
        }
    }
}
