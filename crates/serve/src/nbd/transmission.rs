//! The second half of a conversation: requests, several at once, until the client leaves.
//!
//! ```text
//!   reader ──► queue (bounded) ──► worker, worker, …   hired as they are needed, up to 4 ──► output (one at a time)
//! ```
//!
//! **Invariants.** When this returns, no worker is left. Once it is told to stop, requests that were not begun are answered
//! with `ESHUTDOWN`. A client that reads no replies stops its own workers, and then its own reader.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::negotiation::Agreed;
use super::reply::{Answers, Given};
use super::request::{Request, Task, plan, read_request};
use super::wire::Fault;
use crate::{Error, Event, Result, Watch};

/// Most workers of one client.
const WORKERS_MAX: usize = 4;
/// Most requests of one client that wait for a worker.
const WAITING_MAX: usize = 64;

/// What clients asked for.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Requests that were answered.
    pub requests: AtomicU64,
    /// Bytes of disk that were asked for, holes included.
    pub read_bytes: AtomicU64,
}

/// One client's requests, and what answering them needs.
pub struct Transmission<'a> {
    /// What was agreed upon.
    pub agreed: &'a Agreed,
    /// Set when serving ends.
    pub stopping: &'a AtomicBool,
    /// Ends the client's input, when its output has failed.
    pub hang_up: &'a (dyn Fn() + Sync),
    /// Who hears of reads that fail.
    pub watch: &'a dyn Watch,
    /// Where what was done is counted.
    pub traffic: &'a Traffic,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<(Request, Task)>,
    workers: usize,
    idle: usize,
    is_closed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request wait; whether another worker is needed for it.
    fn push(&self, request: Request, task: Task) -> bool {
        let mut waiting = self.waiting();
        while waiting.requests.len() >= WAITING_MAX && !waiting.is_closed {
            waiting = self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        waiting.requests.push_back((request, task));
        let needs_one = waiting.requests.len() > waiting.idle && waiting.workers < WORKERS_MAX;
        if needs_one {
            waiting.workers = waiting.workers.saturating_add(1);
        }
        drop(waiting);
        self.changed.notify_all();
        needs_one
    }

    fn pop(&self) -> Option<(Request, Task)> {
        let mut waiting = self.waiting();
        loop {
            if let Some(request) = waiting.requests.pop_front() {
                drop(waiting);
                self.changed.notify_all();
                return Some(request);
            }
            if waiting.is_closed {
                return None;
            }
            waiting.idle = waiting.idle.saturating_add(1);
            waiting = self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
            waiting.idle = waiting.idle.saturating_sub(1);
        }
    }

    fn close(&self) {
        self.waiting().is_closed = true;
        self.changed.notify_all();
    }

    /// Nothing can be sent any more: what waits is forgotten.
    fn abandon(&self) {
        let mut waiting = self.waiting();
        waiting.is_closed = true;
        waiting.requests.clear();
        drop(waiting);
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.waiting().is_closed
    }
}

/// Closes the queue however its reader ends, so that no worker waits for ever.
struct Closing<'a>(&'a Queue);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Transmission<'_> {
    /// Answers requests until the client leaves, hangs up, breaks the protocol, or serving ends.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Protocol`] when the client does not keep to it, [`crate::ErrorKind::Io`] when it cannot be reached.
    pub fn run<W: Write + Send>(&self, input: &mut impl Read, output: W) -> Result<()> {
        let queue = Queue::default();
        let output = Mutex::new(output);
        let answers = Answers {
            agreed: self.agreed,
            output: &output,
        };
        let broken = Mutex::new(None);
        let outcome = std::thread::scope(|scope| {
            let _closing = Closing(&queue);
            loop {
                let request = match read_request(input) {
                    Ok(Some(request)) => request,
                    Ok(None) => return Ok(()),
                    Err(error) => return Err(error),
                };
                if queue.is_closed() {
                    return Ok(());
                }
                let size_bytes = self.agreed.export.disk.size_bytes();
                let (replies, allocation) = (self.agreed.replies, self.agreed.allocation);
                let task = match plan(&request, size_bytes, replies, allocation) {
                    Task::Leave => return Ok(()),
                    task => task,
                };
                if queue.push(request, task) {
                    let named = std::thread::Builder::new().name("nbd-worker".to_owned());
                    let work = || self.work(&queue, &answers, &broken);
                    if let Err(error) = named.spawn_scoped(scope, work) {
                        queue.abandon();
                        return Err(Error::io("no thread for a client's requests", error));
                    }
                }
                if self.stopping.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
        });
        let broken = broken.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (outcome, broken) {
            // What went wrong first is what matters.
            (_, Some(error)) => Err(Error::io("nothing can be sent", error)),
            (outcome, None) => outcome,
        }
    }

    fn work<W: Write + Send>(
        &self,
        queue: &Queue,
        answers: &Answers<'_, W>,
        broken: &Mutex<Option<std::io::Error>>,
    ) {
        let mut buffer = Vec::new();
        while let Some((request, task)) = queue.pop() {
            let task = if self.stopping.load(Ordering::Relaxed) {
                Task::Refuse(Fault::ShuttingDown, "serving ends")
            } else {
                task
            };
            if matches!(task, Task::Read | Task::ReadWhole) {
                let length = u64::from(request.length);
                self.traffic.read_bytes.fetch_add(length, Ordering::Relaxed);
            }
            self.traffic.requests.fetch_add(1, Ordering::Relaxed);
            match answers.give(&request, task, &mut buffer) {
                Ok(Given::Done) => {}
                Ok(Given::Failed(offset, error)) => self.watch.tell(&Event::ReadFailed {
                    disk: &self.agreed.export.name,
                    offset,
                    length_bytes: u64::from(request.length),
                    error: &error,
                }),
                Err(error) => {
                    let mut first = broken.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert(error);
                    drop(first);
                    queue.abandon();
                    (self.hang_up)();
                    return;
                }
            }
        }
    }
}
