//! A few threads for work that nobody waits for: reading ahead.
//!
//! **Invariants.** The queue is bounded; what does not fit is not done. [`Pool::stop`] forgets what waits and waits for what
//! runs. Dropping a pool without that lets its threads end by themselves.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// Most jobs that wait.
const WAITING_MAX: usize = 64;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let mut queue = self.queue();
            let job = loop {
                if queue.stopped {
                    return;
                }
                match queue.jobs.pop_front() {
                    Some(job) => break job,
                    None => {
                        queue = self
                            .changed
                            .wait(queue)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            drop(queue);
            job();
        }
    }
}

/// The threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// As many threads as can be had, up to `threads`; with none, nothing is ever done.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let started = (0..threads)
            .filter_map(|_| {
                let shared = Arc::clone(&shared);
                let named = std::thread::Builder::new().name("read-ahead".to_owned());
                named.spawn(move || shared.run()).ok()
            })
            .collect();
        Self {
            shared,
            threads: Mutex::new(started),
        }
    }

    /// Does it later, unless too much waits already; whether it will be done.
    pub(crate) fn try_run(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let mut queue = self.shared.queue();
        if queue.stopped || queue.jobs.len() >= WAITING_MAX {
            return false;
        }
        queue.jobs.push_back(Box::new(job));
        drop(queue);
        self.shared.changed.notify_one();
        true
    }

    fn forget(&self) {
        let waiting = {
            let mut queue = self.shared.queue();
            queue.stopped = true;
            std::mem::take(&mut queue.jobs)
        };
        self.shared.changed.notify_all();
        drop(waiting);
    }

    /// Ends the threads. Not to be called by a job.
    pub(crate) fn stop(&self) {
        self.forget();
        let threads = {
            let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *threads)
        };
        for thread in threads {
            // A job that panicked took its thread with it; nobody waits for either.
            drop(thread.join());
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.forget();
    }
}
