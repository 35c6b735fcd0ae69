//! Work on several threads whose results come back in the order in which it was given out, in bounded memory.
//!
//! ```text
//!   walk ─ push_task ─► [task][task][step][task] ─ next ─► results and steps, in this order, on the walk's own thread
//!                          └──────┴── workers ──┘
//! ```
//!
//! **Invariants.** At most `tasks_max` tasks are given out whose results were not taken, so that memory is bounded by what
//! one task holds. A step is taken when everything pushed before it was taken: a folder is finished after its files.
//! When the queue is dropped, tasks that no thread has begun are not begun any more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use crate::{Error, ErrorKind, Result};

/// Steps that may wait; each may hold an open folder.
const STEPS_MAX: usize = 128;

type Task<'env, T> = Box<dyn FnOnce() -> T + Send + 'env>;
type Assigned<'env, T> = (Task<'env, T>, SyncSender<T>);

/// What comes next.
pub(super) enum Ready<S, T> {
    /// To be done now, on the walk's own thread.
    Step(S),
    /// The result of a task.
    Done(T),
}

enum Waiting<S, T> {
    Step(S),
    Task(Receiver<T>),
}

/// Tasks and steps in order.
pub(super) struct Queue<'env, S, T> {
    tasks: SyncSender<Assigned<'env, T>>,
    waiting: VecDeque<Waiting<S, T>>,
    given_out: usize,
    tasks_max: usize,
    is_over: Arc<AtomicBool>,
}

/// Runs `act` with a queue whose tasks run on so many threads.
pub(super) fn with_queue<'env, S, T: Send + 'env, R>(
    workers: usize,
    act: impl FnOnce(Queue<'env, S, T>) -> R,
) -> R {
    let workers = workers.max(1);
    let tasks_max = workers.saturating_mul(3);
    let (tasks, receiver) = sync_channel::<Assigned<'env, T>>(tasks_max);
    let receiver = Mutex::new(receiver);
    let is_over = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((task, answer)) = next_task(&receiver) {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    // Nobody waits for the answer once the job has failed.
                    answer.send(task()).ok();
                }
            });
        }
        act(Queue {
            tasks,
            waiting: VecDeque::new(),
            given_out: 0,
            tasks_max,
            is_over: Arc::clone(&is_over),
        })
    })
}

fn next_task<'env, T>(receiver: &Mutex<Receiver<Assigned<'env, T>>>) -> Option<Assigned<'env, T>> {
    receiver.lock().ok()?.recv().ok()
}

impl<'env, S, T> Queue<'env, S, T> {
    /// Whether something must be taken before more is pushed.
    pub(super) fn is_full(&self) -> bool {
        let steps = self.waiting.len().saturating_sub(self.given_out);
        self.given_out >= self.tasks_max || steps >= STEPS_MAX
    }

    /// Gives work out. Only when the queue is not full, else this waits for ever.
    pub(super) fn push_task(&mut self, task: impl FnOnce() -> T + Send + 'env) -> Result<()> {
        let (answer, result) = sync_channel(1);
        self.tasks
            .send((Box::new(task), answer))
            .map_err(|_| panicked())?;
        self.waiting.push_back(Waiting::Task(result));
        self.given_out = self.given_out.saturating_add(1);
        Ok(())
    }

    /// Keeps a step until everything before it was taken.
    pub(super) fn push_step(&mut self, step: S) {
        self.waiting.push_back(Waiting::Step(step));
    }

    /// Waits for what comes next; nothing when nothing was pushed any more.
    pub(super) fn next(&mut self) -> Result<Option<Ready<S, T>>> {
        Ok(match self.waiting.pop_front() {
            None => None,
            Some(Waiting::Step(step)) => Some(Ready::Step(step)),
            Some(Waiting::Task(result)) => {
                self.given_out = self.given_out.saturating_sub(1);
                Some(Ready::Done(result.recv().map_err(|_| panicked())?))
            }
        })
    }
}

impl<S, T> Drop for Queue<'_, S, T> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Io, "a thread of the extraction panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_tasks_and_steps_between_them() {
        let told = with_queue(3, |mut queue| {
            let mut told = Vec::new();
            let take = |queue: &mut Queue<'_, u64, u64>, told: &mut Vec<u64>| match queue
                .next()
                .expect("no panic")
            {
                None => false,
                Some(Ready::Step(number) | Ready::Done(number)) => {
                    told.push(number);
                    true
                }
            };
            for number in 0..500_u64 {
                while queue.is_full() {
                    take(&mut queue, &mut told);
                }
                if number % 7 == 3 {
                    queue.push_step(number);
                } else {
                    // Some take longer than others.
                    let task = move || {
                        let spun = (0..(number * 37) % 1000).map(|one| one % 2).max();
                        number + spun.map_or(0, |spun| spun.saturating_sub(1))
                    };
                    queue.push_task(task).expect("a worker");
                }
            }
            while take(&mut queue, &mut told) {}
            told
        });
        assert_eq!(told, (0..500).collect::<Vec<_>>());
    }
}
